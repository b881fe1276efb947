import type { UncachedFile } from '../fs/file-system.ts'
import { crc32c } from '../bytes/crc32c.ts'
import {
  BATCH_HEADER_BYTES,
  BATCH_PREFIX_BYTES,
  MAGIC,
  attributesAt,
  isCrcValid,
  isPlausibleHeader,
  magicAt,
  readBaseOffset,
  readBatchBytes,
  readCrc,
  readEndOffset,
  readLeaderEpoch,
} from '../record/batch-header.ts'
import { KIB, MIB } from '../common/units.ts'
import { CrcRanges } from './crc-ranges.ts'

/** What a batch must be to be believed, beyond its own checksum (CONTRACT §2.4). Epochs are inclusive bounds. */
export interface ScanRules {
  readonly minEpoch: number
  readonly maxEpoch: number
  readonly maxBatchBytes: number
  /** False: headers only, as a scan of everything must do when both checkpoints are gone. */
  readonly checkCrc: boolean
  /** Stop, well, as soon as the next batch would begin here or later: a newer segment takes over. */
  readonly stopAtOffset?: number | undefined
}

export interface ScanEnd {
  /** One past the last good byte. */
  readonly position: number
  /** One past the last good offset. */
  readonly offset: number
  readonly epoch: number
  /** `end`: no bytes left. `stopped`: at `stopAtOffset`. `bad`: what lies at `position` is no batch that may stand there. */
  readonly reason: 'end' | 'stopped' | 'bad'
  readonly batches: number
}

/** Called for each good batch: `at` is where it lies in `bytes`, which is reused after the call. */
export type OnBatch = (bytes: Uint8Array, at: number, position: number) => void

const BLOCK_BYTES: number = MIB

/** A checksum over more than this is put together from parts that other checksums share. */
const DIRECT_CRC_BYTES: number = 16 * KIB

/** A window of a file that follows a scan forwards. Reuses one buffer; grows it for a batch that is larger. */
export class ScanWindow {
  bytes: Uint8Array = new Uint8Array(0)
  start = 0
  length = 0
  readBytes = 0
  /** Where the file ends, or where the caller wants it to. */
  readonly end: number
  readonly #file: UncachedFile
  readonly #header: Buffer = Buffer.alloc(BATCH_HEADER_BYTES)
  #crcs: CrcRanges | undefined

  constructor(file: UncachedFile, end: number) {
    this.#file = file
    this.end = end
  }

  /** Makes [position, position + wanted) available, as far as the file goes. Returns how many bytes are there. */
  async ensure(position: number, wanted: number): Promise<number> {
    const have = this.start + this.length - position
    if (position >= this.start && (have >= wanted || this.start + this.length >= this.end))
      return have
    const size = Math.min(Math.max(wanted, BLOCK_BYTES), Math.max(0, this.end - position))
    if (this.bytes.length < size) this.bytes = Buffer.allocUnsafe(size)
    this.start = position
    this.length = await this.#file.read(this.bytes.subarray(0, size), position)
    this.readBytes += this.length
    return this.length
  }

  /** Where `position` lies in `bytes`. */
  at(position: number): number {
    return position - this.start
  }

  /** The batch header at `position`, without moving the window; undefined when less of the file is left. Valid until the next call. */
  async findHeader(position: number): Promise<Uint8Array | undefined> {
    if (position + BATCH_HEADER_BYTES > this.end) return undefined
    if (this.#holds(position, position + BATCH_HEADER_BYTES)) {
      const at = this.at(position)
      return this.bytes.subarray(at, at + BATCH_HEADER_BYTES)
    }
    const have = await this.#read(this.#header, position)
    return have < BATCH_HEADER_BYTES ? undefined : this.#header
  }

  /**
   * CRC-32C of [start, end) of the file, without moving the window; undefined when the file ends before. However many ranges are asked
   * for, and however they overlap, the bytes are gone through about once: a payload full of forged headers cannot make a scan slow.
   */
  async findCrc(start: number, end: number): Promise<number | undefined> {
    if (end > this.end) return undefined
    if (end - start <= DIRECT_CRC_BYTES) {
      if (this.#holds(start, end)) return crc32c(this.bytes, this.at(start), this.at(end))
      const bytes = Buffer.allocUnsafe(end - start)
      return (await this.#read(bytes, start)) < bytes.length ? undefined : crc32c(bytes)
    }
    if (this.#crcs === undefined || this.#crcs.origin > start) {
      this.#crcs = new CrcRanges((into, position) => this.#read(into, position), start)
    }
    return await this.#crcs.find(start, end)
  }

  #holds(start: number, end: number): boolean {
    return start >= this.start && end <= this.start + this.length
  }

  async #read(into: Uint8Array, position: number): Promise<number> {
    const have = await this.#file.read(into, position)
    this.readBytes += have
    return have
  }
}

/**
 * Walks the batches of a log file from `position`, where the batch at `offset` should begin, to the first that may not stand there.
 * Reads each byte once.
 */
export async function scanBatches(
  window: ScanWindow,
  from: { readonly position: number; readonly offset: number },
  rules: ScanRules,
  onBatch: OnBatch,
): Promise<ScanEnd> {
  let { position, offset } = from
  let epoch = rules.minEpoch
  let batches = 0
  for (;;) {
    const end = { position, offset, epoch, batches }
    if (rules.stopAtOffset !== undefined && offset >= rules.stopAtOffset) {
      return { ...end, reason: 'stopped' }
    }
    const size = await loadBatch(window, position, rules.maxBatchBytes)
    if (size === 0) return { ...end, reason: 'end' }
    if (size < 0) return { ...end, reason: 'bad' }
    const at = window.at(position)
    const batchEpoch = readLeaderEpoch(window.bytes, at)
    if (
      readBaseOffset(window.bytes, at) !== offset ||
      batchEpoch < epoch ||
      batchEpoch > rules.maxEpoch ||
      (rules.checkCrc && !isCrcValid(window.bytes, at))
    ) {
      return { ...end, reason: 'bad' }
    }
    onBatch(window.bytes, at, position)
    epoch = batchEpoch
    offset = readEndOffset(window.bytes, at)
    position += size
    batches++
  }
}

/** Bytes of the whole batch at `position`, now in the window; 0 at the end of the file; -1 when none can begin there. */
async function loadBatch(
  window: ScanWindow,
  position: number,
  maxBatchBytes: number,
): Promise<number> {
  let have = await window.ensure(position, BATCH_HEADER_BYTES)
  if (have <= 0) return 0
  if (have < BATCH_HEADER_BYTES) return -1
  if (!isPlausibleHeader(window.bytes, window.at(position), maxBatchBytes)) return -1
  const size = readBatchBytes(window.bytes, window.at(position))
  if (have < size) have = await window.ensure(position, size)
  return have < size ? -1 : size
}

/** A good batch after a damaged place. */
export interface Resync {
  readonly position: number
  readonly offset: number
  readonly epoch: number
}

/**
 * Finds where good data goes on after the damage at `from`: the first batch that can be believed and has an offset in (`from.offset`,
 * `beforeOffset`); the batch at `from` itself is what was damaged. Tried in this order, so that a batch forged inside a payload is the last
 * to be believed: the length that the damaged batch states; that length with one bit turned back; the places in `hints` (the index, rising);
 * then every byte. No checksum covers a base offset: it has to be the one at which the damaged batch would end, or the hint's, or the batch must be
 * followed by one that begins where it ends, or by the end of the file. Undefined when nothing good follows.
 */
export async function findResync(
  window: ScanWindow,
  from: { readonly position: number; readonly offset: number },
  rules: ScanRules,
  beforeOffset: number,
  hints: Iterable<{ readonly position: number; readonly offset: number }>,
): Promise<Resync | undefined> {
  const search = new ResyncSearch(window, from, rules, beforeOffset)
  const behind = await search.findBehindOwnLength()
  if (behind !== undefined) return behind === 'end of file' ? undefined : behind
  for (const { position, offset } of hints) {
    if (position <= from.position) continue
    const next = await search.findGood(position, offset)
    if (next !== undefined) return next
  }
  return await search.findByEachByte()
}

class ResyncSearch {
  readonly #window: ScanWindow
  readonly #from: { readonly position: number; readonly offset: number }
  readonly #rules: ScanRules
  readonly #beforeOffset: number

  constructor(
    window: ScanWindow,
    from: { readonly position: number; readonly offset: number },
    rules: ScanRules,
    beforeOffset: number,
  ) {
    this.#window = window
    this.#from = from
    this.#rules = rules
    this.#beforeOffset = beforeOffset
  }

  /** The batch at `position`, if it can be believed. @param expected the offset that something else says it has */
  async findGood(position: number, expected?: number): Promise<Resync | undefined> {
    const header = await this.#window.findHeader(position)
    if (header === undefined || !this.#mayBegin(header, 0, position)) return undefined
    const found = {
      position,
      offset: readBaseOffset(header, 0),
      epoch: readLeaderEpoch(header, 0),
    }
    const size = readBatchBytes(header, 0)
    const endOffset = readEndOffset(header, 0)
    if (!(await this.#hasCrc(position, size, readCrc(header, 0)))) return undefined
    if (found.offset === expected) return found
    return (await this.#isFollowed(position + size, endOffset)) ? found : undefined
  }

  /** What can be told from the header of a batch at `position`: cheap. */
  #mayBegin(bytes: Uint8Array, at: number, position: number): boolean {
    if (!isPlausibleHeader(bytes, at, this.#rules.maxBatchBytes)) return false
    const offset = readBaseOffset(bytes, at)
    if (offset <= this.#from.offset || offset >= this.#beforeOffset) return false
    const epoch = readLeaderEpoch(bytes, at)
    if (epoch < this.#rules.minEpoch || epoch > this.#rules.maxEpoch) return false
    return position + readBatchBytes(bytes, at) <= this.#window.end
  }

  async #hasCrc(position: number, size: number, crc: number): Promise<boolean> {
    return (await this.#window.findCrc(position + attributesAt, position + size)) === crc
  }

  /** Goes by the length field of the damaged batch, as it stands, and with each single bit of it turned. */
  async findBehindOwnLength(): Promise<Resync | 'end of file' | undefined> {
    const { position, offset } = this.#from
    const header = await this.#window.findHeader(position)
    if (header === undefined) return undefined
    const length = readBatchBytes(header, 0) - BATCH_PREFIX_BYTES
    const crc = readCrc(header, 0)
    const isItself =
      isPlausibleHeader(header, 0, this.#rules.maxBatchBytes) &&
      readBaseOffset(header, 0) === offset
    const endOffset = isItself ? readEndOffset(header, 0) : undefined
    let stated: Resync | 'end of file' | undefined
    for (let bit = -1; bit < 32; bit++) {
      const size = BATCH_PREFIX_BYTES + (bit < 0 ? length : (length ^ (1 << bit)) >>> 0)
      const end = position + size
      if (size < BATCH_HEADER_BYTES || size > this.#rules.maxBatchBytes) continue
      if (end > this.#window.end) continue
      const next = end === this.#window.end ? 'end of file' : await this.findGood(end, endOffset)
      if (next === undefined) continue
      // Proven: it is the length that is wrong, or nothing that the checksum covers.
      if (await this.#hasCrc(position, size, crc)) return next
      if (bit < 0) stated = next
    }
    return stated
  }

  async findByEachByte(): Promise<Resync | undefined> {
    const window = this.#window
    let position = this.#from.position + 1
    for (;;) {
      const have = await window.ensure(position, BATCH_HEADER_BYTES)
      if (have < BATCH_HEADER_BYTES) return undefined
      const last = position + have - BATCH_HEADER_BYTES
      // Only the magic byte is looked at for most positions: about 1 ns each.
      for (let candidate = position; candidate <= last; candidate++) {
        const at = window.at(candidate)
        if (window.bytes[at + magicAt] !== MAGIC || !this.#mayBegin(window.bytes, at, candidate)) {
          continue
        }
        const found = await this.findGood(candidate)
        if (found !== undefined) return found
      }
      position = last + 1
    }
  }

  /** True when nothing more than a torn piece comes at `position`, or the header of a batch that begins at `offset`. */
  async #isFollowed(position: number, offset: number): Promise<boolean> {
    const header = await this.#window.findHeader(position)
    if (header === undefined) return true
    return (
      isPlausibleHeader(header, 0, this.#rules.maxBatchBytes) &&
      readBaseOffset(header, 0) === offset
    )
  }
}
