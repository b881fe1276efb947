import { open, readFile, readdir, stat } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { compileFormat } from './record-format.ts'
import { EXIT_DONE, EXIT_FAILED, Interrupt, say } from './io.ts'
import type { CliIo } from './io.ts'
import { Output } from './output.ts'
import type { RecordWriter } from './record-fields.ts'
import { formatIso } from './time-format.ts'
import { UsageError } from './usage-error.ts'
import { crc32c } from '../bytes/crc32c.ts'
import { BrokerError, findSystemCode } from '../common/errors.ts'
import { toOffset } from '../common/offset.ts'
import { MIB } from '../common/units.ts'
import {
  BATCH_HEADER_BYTES,
  isControl,
  isCrcValid,
  isPlausibleHeader,
  readBaseOffset,
  readBaseSequence,
  readBaseTimestamp,
  readBatchBytes,
  readCompression,
  readCrc,
  readEndOffset,
  readLeaderEpoch,
  readMaxTimestamp,
  readProducerEpoch,
  readProducerId,
  readRecordCount,
} from '../record/batch-header.ts'
import { RecordCursor } from '../record/record-cursor.ts'
import { OFFSET_INDEX_ENTRY_BYTES } from '../segment/offset-index.ts'
import { parseSegmentFileName, segmentFileName } from '../segment/segment-names.ts'
import type { SegmentFileKind } from '../segment/segment-names.ts'
import { decodeSeal } from '../segment/segment-seal.ts'
import type { SegmentSeal } from '../segment/segment-seal.ts'
import { TIME_INDEX_ENTRY_BYTES } from '../segment/time-index.ts'

export interface DumpOptions {
  readonly records: boolean
  /** Only the summary and what is wrong. */
  readonly quiet: boolean
  /** `text`, `json`, or with `records` any format of records, and then nothing but records goes to stdout. */
  readonly format: string
}

const WINDOW_BYTES = MIB
/** No topic may take a batch near this size: a longer one is a damaged length. */
const MAX_BATCH_BYTES = 128 * MIB

/**
 * Shows what is in segment files, without a broker, and checks all of it: every batch's checksum, the order of offsets, both
 * indexes and the seal against the batches. A folder stands for all segments in it.
 * Resolves to 1 when something is damaged.
 */
export async function dump(
  io: CliIo,
  paths: readonly string[],
  options: DumpOptions,
): Promise<number> {
  using interrupt = new Interrupt(io)
  const out = new Output(io.stdout, () => interrupt.stop())
  const report = new DumpReport(io, out, options)
  try {
    for (const path of await listLogFiles(paths)) {
      if (interrupt.signal.aborted) break
      await dumpSegment(path, report, interrupt.signal)
    }
  } finally {
    await out.finish()
  }
  if (interrupt.received !== undefined) return interrupt.exitCode
  return report.damaged ? EXIT_FAILED : EXIT_DONE
}

/** The log files that the paths stand for: folders are opened, an index stands for its log. */
async function listLogFiles(paths: readonly string[]): Promise<string[]> {
  const files: string[] = []
  for (const path of paths) {
    const info = await stat(path).catch((error: unknown) => {
      throw new UsageError(`${path} cannot be read: ${findSystemCode(error) ?? String(error)}`)
    })
    if (!info.isDirectory()) {
      const name = parseSegmentFileName(basename(path))
      // Any other name is taken for a log: a file cut out by recovery, or a copy.
      const isBeside = name !== undefined && name.kind !== 'log'
      const log = isBeside ? join(dirname(path), segmentFileName(name.baseOffset, 'log')) : path
      if (!files.includes(log)) files.push(log)
      continue
    }
    const names = await readdir(path)
    const logs = names.filter((name) => parseSegmentFileName(name)?.kind === 'log').sort()
    if (logs.length === 0) {
      throw new UsageError(
        `${path} has no segments`,
        'name a .log file, or the folder of one partition, such as segments/orders-0',
      )
    }
    files.push(...logs.map((name) => join(path, name)))
  }
  return files
}

/** One line about one thing, for people and for programs. */
class DumpReport {
  readonly options: DumpOptions
  readonly json: boolean
  /** Set when nothing but records goes to stdout, for salvage. */
  readonly recordsOnly: boolean
  readonly writeRecord: RecordWriter
  readonly out: Output
  readonly #io: CliIo
  damaged = false

  constructor(io: CliIo, out: Output, options: DumpOptions) {
    this.#io = io
    this.out = out
    this.options = options
    this.json = options.format === 'json'
    const isOwn = this.json || options.format === 'text'
    if (!isOwn && !options.records) {
      throw new UsageError(
        `-f ${options.format} is for records`,
        'add --records, or use -f text or -f json',
      )
    }
    this.recordsOnly = !isOwn
    const recordFormat = options.format === 'text' ? 'pretty' : options.format
    const format = compileFormat(recordFormat, {
      delimiter: 0x0a,
      metaOnly: false,
      colour: false,
      columns: io.stdout.columns,
    })
    this.writeRecord = format.write
    if (format.heading !== undefined) out.writeText(`${format.heading}\n`)
  }

  fact(type: string, text: string, facts: Readonly<Record<string, unknown>>): void {
    if (this.recordsOnly) return
    if (this.json) this.out.writeText(`${JSON.stringify({ type, ...facts })}\n`)
    else this.out.writeText(`${text}\n`)
  }

  damage(file: string, position: number, end: number, reason: string): void {
    this.damaged = true
    const text = `damage: ${file} [${position}, ${end}): ${reason}`
    if (this.json) this.fact('damage', text, { file, position, end, reason })
    else say(this.#io, text)
  }
}

/** A view of a file that is walked from front to back. */
class FileWindow {
  readonly #file: FileHandle
  readonly size: number
  bytes: Buffer = Buffer.alloc(0)
  /** Place in the file of `bytes[0]`. */
  #start = 0
  #storage: Buffer = Buffer.allocUnsafeSlow(WINDOW_BYTES)

  constructor(file: FileHandle, size: number) {
    this.#file = file
    this.size = size
  }

  /** True when [position, position + size) is at hand. */
  has(position: number, size: number): boolean {
    return position >= this.#start && position + size <= this.#start + this.bytes.length
  }

  /** Where `position` lies in `bytes`. */
  at(position: number): number {
    return position - this.#start
  }

  /** Brings [position, position + size) into `bytes`. False when the file ends before. */
  async load(position: number, size: number): Promise<boolean> {
    if (this.has(position, size)) return true
    if (position + size > this.size) return false
    if (size > this.#storage.length) this.#storage = Buffer.allocUnsafeSlow(size + WINDOW_BYTES)
    const wanted = Math.min(this.#storage.length, this.size - position)
    let read = 0
    while (read < wanted) {
      const { bytesRead } = await this.#file.read(
        this.#storage,
        read,
        wanted - read,
        position + read,
      )
      if (bytesRead === 0) break
      read += bytesRead
    }
    this.#start = position
    this.bytes = this.#storage.subarray(0, read)
    return read >= size
  }
}

interface SegmentPlace {
  readonly file: string
  readonly topic: string
  readonly partition: number
  readonly baseOffset: number | undefined
}

function placeOf(path: string): SegmentPlace {
  const name = parseSegmentFileName(basename(path))
  const folder = /^(.+)-(\d+)$/.exec(basename(dirname(resolve(path))))
  return {
    file: path,
    topic: folder?.[1] ?? '?',
    partition: Number(folder?.[2] ?? 0),
    baseOffset: name?.baseOffset,
  }
}

async function dumpSegment(path: string, report: DumpReport, signal: AbortSignal): Promise<void> {
  const place = placeOf(path)
  const file = await open(path, 'r').catch((error: unknown) => {
    throw new UsageError(`${path} cannot be read: ${findSystemCode(error) ?? String(error)}`)
  })
  try {
    const { size } = await file.stat()
    await new SegmentDump(place, new FileWindow(file, size), report).run(signal)
  } finally {
    await file.close()
  }
}

class SegmentDump {
  readonly #place: SegmentPlace
  readonly #window: FileWindow
  readonly #report: DumpReport
  readonly #cursor = new RecordCursor()
  #indexCheck: IndexCheck | undefined
  #timeCheck: TimeIndexCheck | undefined
  #batches = 0
  #records = 0
  #endOffset: number | undefined
  #maxTimestampMs = -1
  #fileCrc = 0
  #wasSound = true

  constructor(place: SegmentPlace, window: FileWindow, report: DumpReport) {
    this.#place = place
    this.#window = window
    this.#report = report
  }

  async run(signal: AbortSignal): Promise<void> {
    const { file, baseOffset } = this.#place
    const index = await this.#readBeside('index')
    const timeindex = await this.#readBeside('timeindex')
    const sealBytes = await this.#readBeside('seal')
    const damage = (which: string, reason: string): void => this.#damageBeside(which, reason)
    if (index !== undefined) {
      this.#indexCheck = new IndexCheck(baseOffset ?? 0, index, (reason) => damage('index', reason))
    }
    if (timeindex !== undefined) {
      this.#timeCheck = new TimeIndexCheck(baseOffset ?? 0, timeindex, (reason) =>
        damage('timeindex', reason),
      )
    }
    await this.#walk(sealBytes !== undefined, signal)
    if (signal.aborted) return
    this.#indexCheck?.finish()
    this.#timeCheck?.finish()
    if (sealBytes !== undefined) this.#checkSeal(sealBytes, index, timeindex)
    this.#report.fact('summary', this.#summary(index, timeindex, sealBytes), {
      file,
      bytes: this.#window.size,
      batches: this.#batches,
      records: this.#records,
      endOffset: this.#endOffset,
      indexEntries: index === undefined ? undefined : this.#indexCheck?.count,
      timeindexEntries: timeindex === undefined ? undefined : this.#timeCheck?.count,
      sealed: sealBytes !== undefined,
      sound: this.#wasSound,
    })
  }

  #summary(
    index: Buffer | undefined,
    timeindex: Buffer | undefined,
    seal: Buffer | undefined,
  ): string {
    const parts = [
      `${this.#batches} batches`,
      `${this.#records} records`,
      `${this.#window.size} bytes`,
      index === undefined ? 'no index' : `${this.#indexCheck?.count ?? 0} index entries`,
      timeindex === undefined ? 'no timeindex' : `${this.#timeCheck?.count ?? 0} time entries`,
      seal === undefined ? 'not sealed' : 'sealed',
      this.#wasSound ? 'sound' : 'DAMAGED',
    ]
    return `${this.#place.file}: ${parts.join(', ')}`
  }

  async #readBeside(kind: SegmentFileKind): Promise<Buffer | undefined> {
    const { file, baseOffset } = this.#place
    if (baseOffset === undefined) return undefined
    try {
      return await readFile(join(dirname(file), segmentFileName(toOffset(baseOffset), kind)))
    } catch (error) {
      if (findSystemCode(error) === 'ENOENT') return undefined
      throw error
    }
  }

  #damage(position: number, end: number, reason: string): void {
    this.#wasSound = false
    this.#report.damage(this.#place.file, position, end, reason)
  }

  #damageBeside(kind: string, reason: string): void {
    this.#wasSound = false
    this.#report.damage(this.#place.file.replace(/\.log$/, `.${kind}`), 0, 0, reason)
  }

  async #walk(withFileCrc: boolean, signal: AbortSignal): Promise<void> {
    const window = this.#window
    let position = 0
    while (position < window.size && !signal.aborted) {
      const fault = await this.#findFault(position)
      if (fault === undefined) {
        const size = readBatchBytes(window.bytes, window.at(position))
        if (withFileCrc) {
          const at = window.at(position)
          this.#fileCrc = crc32c(window.bytes, at, at + size, this.#fileCrc)
        }
        this.#visit(position)
        position += size
      } else {
        const next = await this.#findNextBatch(position + 1, signal)
        this.#damage(
          position,
          next,
          next === window.size ? `${fault}; nothing whole follows: a torn tail` : fault,
        )
        position = next
      }
      await this.#report.out.settle()
    }
  }

  /** What is wrong with the batch at `position`, or undefined. Then the whole batch is in the window. */
  async #findFault(position: number): Promise<string | undefined> {
    const window = this.#window
    if (!(await window.load(position, BATCH_HEADER_BYTES))) return 'less than a header is left'
    const at = window.at(position)
    if (!isPlausibleHeader(window.bytes, at, MAX_BATCH_BYTES)) return 'no batch header'
    const size = readBatchBytes(window.bytes, at)
    if (!(await window.load(position, size))) return `a batch of ${size} bytes reaches past the end`
    if (!isCrcValid(window.bytes, window.at(position))) return 'the checksum does not fit'
    const base = readBaseOffset(window.bytes, window.at(position))
    const least = this.#endOffset ?? this.#place.baseOffset ?? 0
    return base < least ? `offset ${base} where ${least} or more must follow` : undefined
  }

  /** The first place from `from` on where a whole, sound batch starts that may follow; the end of the file when there is none. */
  async #findNextBatch(from: number, signal: AbortSignal): Promise<number> {
    const window = this.#window
    const least = this.#endOffset ?? this.#place.baseOffset ?? 0
    for (let position = from; position + BATCH_HEADER_BYTES <= window.size; position++) {
      if (signal.aborted) break
      if (
        !window.has(position, BATCH_HEADER_BYTES) &&
        !(await window.load(position, BATCH_HEADER_BYTES))
      ) {
        break
      }
      const at = window.at(position)
      // The magic byte first: it rules out nearly every place.
      if (window.bytes[at + 16] !== 2 || !isPlausibleHeader(window.bytes, at, MAX_BATCH_BYTES)) {
        continue
      }
      if (readBaseOffset(window.bytes, at) < least) continue
      const size = readBatchBytes(window.bytes, at)
      if (!(await window.load(position, size))) continue
      if (isCrcValid(window.bytes, window.at(position))) return position
    }
    return window.size
  }

  #visit(position: number): void {
    const { bytes } = this.#window
    const at = this.#window.at(position)
    const baseOffset = readBaseOffset(bytes, at)
    const endOffset = readEndOffset(bytes, at)
    const maxTimestampMs = readMaxTimestamp(bytes, at)
    this.#noteGap(position, baseOffset)
    this.#indexCheck?.visit(position, baseOffset)
    this.#maxTimestampMs = Math.max(this.#maxTimestampMs, maxTimestampMs)
    this.#timeCheck?.visit(baseOffset, this.#maxTimestampMs)
    this.#batches++
    this.#records += readRecordCount(bytes, at)
    this.#endOffset = endOffset
    if (!this.#report.options.quiet) this.#showBatch(position, at)
    if (this.#report.options.records) this.#showRecords(position, at)
  }

  #noteGap(position: number, baseOffset: number): void {
    const expected = this.#endOffset ?? this.#place.baseOffset ?? baseOffset
    if (baseOffset === expected) return
    this.#report.fact('gap', `  gap: offsets [${expected}, ${baseOffset}) are not here`, {
      file: this.#place.file,
      position,
      start: expected,
      end: baseOffset,
    })
  }

  #showBatch(position: number, at: number): void {
    const { bytes } = this.#window
    const facts = {
      file: this.#place.file,
      position,
      baseOffset: readBaseOffset(bytes, at),
      endOffset: readEndOffset(bytes, at),
      records: readRecordCount(bytes, at),
      bytes: readBatchBytes(bytes, at),
      compression: readCompression(bytes, at) ?? 'unknown',
      baseTimestamp: readBaseTimestamp(bytes, at),
      maxTimestamp: readMaxTimestamp(bytes, at),
      leaderEpoch: readLeaderEpoch(bytes, at),
      producerId: readProducerId(bytes, at),
      producerEpoch: readProducerEpoch(bytes, at),
      baseSequence: readBaseSequence(bytes, at),
      control: isControl(bytes, at),
      crc: readCrc(bytes, at).toString(16).padStart(8, '0'),
    }
    const producer =
      facts.producerId < 0
        ? 'no producer id'
        : `producer ${facts.producerId}/${facts.producerEpoch} sequence ${facts.baseSequence}`
    const text =
      `  @${position} offsets [${facts.baseOffset}, ${facts.endOffset}) ${facts.records} records ${facts.bytes} bytes ` +
      `${facts.compression} ${formatIso(facts.maxTimestamp)} epoch ${facts.leaderEpoch} ${producer}` +
      `${facts.control ? ' control' : ''} crc ${facts.crc}`
    this.#report.fact('batch', text, facts)
  }

  #showRecords(position: number, at: number): void {
    const { bytes } = this.#window
    if (isControl(bytes, at)) return
    const cursor = this.#cursor
    try {
      cursor.reset(bytes, at)
      while (cursor.next()) {
        this.#report.writeRecord(this.#place.topic, this.#place.partition, cursor, this.#report.out)
      }
    } catch (error) {
      if (!(error instanceof BrokerError)) throw error
      this.#damage(position, position + readBatchBytes(bytes, at), error.message)
    }
  }

  #checkSeal(bytes: Buffer, index: Buffer | undefined, timeindex: Buffer | undefined): void {
    let seal: SegmentSeal
    try {
      seal = decodeSeal(bytes)
    } catch (error) {
      if (!(error instanceof BrokerError)) throw error
      this.#damageBeside('seal', error.message)
      return
    }
    const differences: string[] = []
    const compare = (name: string, sealed: number, found: number | undefined): void => {
      if (found !== undefined && sealed !== found) {
        differences.push(`${name} is ${found}, the seal says ${sealed}`)
      }
    }
    compare('the size', seal.sizeBytes, this.#window.size)
    compare('the end offset', seal.endOffset, this.#endOffset ?? this.#place.baseOffset)
    // The whole file's checksum is known only when every batch was walked over.
    if (this.#wasSound) compare('the checksum of the log', seal.logCrc, this.#fileCrc)
    compare('the checksum of the index', seal.indexCrc, index && crc32c(index))
    compare('the checksum of the timeindex', seal.timeindexCrc, timeindex && crc32c(timeindex))
    for (const difference of differences) this.#damageBeside('seal', difference)
  }
}

/** Holds the entries of an offset index against the batches as they pass by: each must point at a batch that is there. */
class IndexCheck {
  readonly #base: number
  readonly #view: DataView
  readonly #damage: (reason: string) => void
  readonly count: number
  #next = 0

  constructor(base: number, bytes: Buffer, damage: (reason: string) => void) {
    this.#base = base
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#damage = damage
    this.count = Math.floor(bytes.length / OFFSET_INDEX_ENTRY_BYTES)
    if (bytes.length % OFFSET_INDEX_ENTRY_BYTES !== 0) damage('a piece of an entry at the end')
    for (let i = 1; i < this.count; i++) {
      if (this.#offset(i) <= this.#offset(i - 1) || this.#position(i) <= this.#position(i - 1)) {
        damage(`entry ${i} does not increase`)
        this.count = i
      }
    }
  }

  visit(position: number, baseOffset: number): void {
    while (this.#next < this.count && this.#position(this.#next) < position) this.#miss()
    if (this.#next < this.count && this.#position(this.#next) === position) {
      if (this.#offset(this.#next) !== baseOffset) {
        this.#damage(
          `entry ${this.#next} says offset ${this.#offset(this.#next)} at position ${position}; ${baseOffset} is there`,
        )
      }
      this.#next++
    }
  }

  finish(): void {
    while (this.#next < this.count) this.#miss()
  }

  #miss(): void {
    this.#damage(
      `entry ${this.#next} points at position ${this.#position(this.#next)}, where no batch starts`,
    )
    this.#next++
  }

  #offset(i: number): number {
    return this.#base + this.#view.getUint32(i * OFFSET_INDEX_ENTRY_BYTES)
  }

  #position(i: number): number {
    return this.#view.getUint32(i * OFFSET_INDEX_ENTRY_BYTES + 4)
  }
}

/** The same for a time index: each entry names a batch, and the greatest timestamp up to and with it. */
class TimeIndexCheck {
  readonly #base: number
  readonly #view: DataView
  readonly #damage: (reason: string) => void
  readonly count: number
  #next = 0

  constructor(base: number, bytes: Buffer, damage: (reason: string) => void) {
    this.#base = base
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#damage = damage
    this.count = Math.floor(bytes.length / TIME_INDEX_ENTRY_BYTES)
    if (bytes.length % TIME_INDEX_ENTRY_BYTES !== 0) damage('a piece of an entry at the end')
    for (let i = 1; i < this.count; i++) {
      if (this.#offset(i) <= this.#offset(i - 1) || this.#timestamp(i) <= this.#timestamp(i - 1)) {
        damage(`entry ${i} does not increase`)
        this.count = i
      }
    }
  }

  visit(baseOffset: number, maxTimestampMs: number): void {
    while (this.#next < this.count && this.#offset(this.#next) < baseOffset) this.#miss()
    if (this.#next < this.count && this.#offset(this.#next) === baseOffset) {
      if (this.#timestamp(this.#next) !== maxTimestampMs) {
        this.#damage(
          `entry ${this.#next} says ${this.#timestamp(this.#next)} up to offset ${baseOffset}; it is ${maxTimestampMs}`,
        )
      }
      this.#next++
    }
  }

  finish(): void {
    while (this.#next < this.count) this.#miss()
  }

  #miss(): void {
    this.#damage(
      `entry ${this.#next} names offset ${this.#offset(this.#next)}, where no batch starts`,
    )
    this.#next++
  }

  #timestamp(i: number): number {
    return Number(this.#view.getBigInt64(i * TIME_INDEX_ENTRY_BYTES))
  }

  #offset(i: number): number {
    return this.#base + this.#view.getUint32(i * TIME_INDEX_ENTRY_BYTES + 8)
  }
}
