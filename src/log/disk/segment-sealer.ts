import { crc32c } from '../../bytes/crc32c.ts'
import { BrokerError, findSystemCode } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import type { Offset } from '../../common/offset.ts'
import { readWhole, replaceFile } from '../../fs/file-system.ts'
import type { File, UncachedFile } from '../../fs/file-system.ts'
import { readBaseOffset, readNewestTimestamp, readRecordCount } from '../../record/batch-header.ts'
import { OffsetIndex } from '../../segment/offset-index.ts'
import { segmentFileName } from '../../segment/segment-names.ts'
import { decodeSeal, encodeSeal } from '../../segment/segment-seal.ts'
import type { SegmentSeal } from '../../segment/segment-seal.ts'
import { ScanWindow, findResync, scanBatches } from '../../segment/segment-scan.ts'
import { TimeIndex } from '../../segment/time-index.ts'
import type { ActiveSegment } from './active-segment.ts'
import type { DiskEnvironment } from './disk-environment.ts'
import { salvaging } from './segment-reader.ts'
import type { SealedFacts, SealedSegment } from './segment-list.ts'
import type { SegmentIndexes } from './sealed-files.ts'

/** Writes, reads, checks and remakes the files that stand beside a sealed segment's log file. */
export class SegmentSealer {
  readonly #env: DiskEnvironment
  readonly #directory: string
  readonly #inBackground: DiskEnvironment['inBackground']
  /** Segments that somebody works on, and who waits for the end of that. */
  readonly #busy = new Map<Offset, { readonly free: Promise<void>; readonly release: () => void }>()

  constructor(
    env: DiskEnvironment,
    directory: string,
    inBackground: DiskEnvironment['inBackground'],
  ) {
    this.#env = env
    this.#directory = directory
    this.#inBackground = inBackground
  }

  isBusyWith(segment: SealedSegment): boolean {
    return this.#busy.has(segment.baseOffset)
  }

  /** Keeps everybody else from a segment that is not busy: no rebuild, no removal, no scrubbing, until it is released. */
  claim(baseOffset: Offset): void {
    let release = (): void => {}
    const free = new Promise<void>((resolve) => {
      release = resolve
    })
    this.#busy.set(baseOffset, { free, release })
  }

  release(baseOffset: Offset): void {
    const busy = this.#busy.get(baseOffset)
    this.#busy.delete(baseOffset)
    busy?.release()
  }

  /** Resolves when the segment is not busy any more; it may be again by then. */
  async whenFree(baseOffset: Offset): Promise<void> {
    await this.#busy.get(baseOffset)?.free
  }

  /** Seals the segment that has just been rolled: all of it is durable and nothing writes to it any more. */
  async sealActive(active: ActiveSegment, endOffset: Offset): Promise<void> {
    this.claim(active.baseOffset)
    try {
      active.isSealed = true
      const { offsets, times } = await active.indexes()
      active.finishTimeIndex()
      // Readers that come before the files are written must not make do with what lies on the disk.
      this.#env.sealedFiles.setIndexes(active.shared, { offsets, times })
      await this.write(
        active.baseOffset,
        endOffset,
        { offsets, times },
        {
          sizeBytes: active.position,
          maxTimestampMs: active.maxTimestampMs,
          records: endOffset - active.baseOffset,
          logCrc: active.state.crc,
        },
      )
    } finally {
      this.release(active.baseOffset)
      await active.file.close()
    }
  }

  /** Writes indexes and seal of a segment whose log file is whole and durable. */
  async write(
    baseOffset: Offset,
    endOffset: Offset,
    indexes: SegmentIndexes,
    log: SealedFacts & { readonly logCrc: number },
  ): Promise<void> {
    const { fs } = this.#env
    const index = indexes.offsets.encode()
    const timeindex = indexes.times.encode()
    const seal: SegmentSeal = {
      format: 1,
      baseOffset,
      endOffset,
      sizeBytes: log.sizeBytes,
      maxTimestampMs: log.maxTimestampMs,
      ...(log.records === endOffset - baseOffset ? {} : { records: log.records }),
      logCrc: log.logCrc,
      indexCrc: crc32c(index),
      timeindexCrc: crc32c(timeindex),
    }
    const directory = this.#directory
    await replaceFile(fs, directory, segmentFileName(baseOffset, 'index'), index)
    await replaceFile(fs, directory, segmentFileName(baseOffset, 'timeindex'), timeindex)
    await replaceFile(fs, directory, segmentFileName(baseOffset, 'seal'), encodeSeal(seal))
  }

  /** The seal beside a segment, or undefined when it is missing or damaged: it can be made anew. */
  async findSeal(baseOffset: Offset): Promise<SegmentSeal | undefined> {
    try {
      const path = `${this.#directory}/${segmentFileName(baseOffset, 'seal')}`
      return decodeSeal(await readWhole(this.#env.fs, path))
    } catch (error) {
      const code = error instanceof BrokerError ? error.code : findSystemCode(error)
      if (code === 'ENOENT' || code === 'EIO' || code === 'CORRUPT_INDEX') return undefined
      throw error
    }
  }

  /** Looks up size and age of a sealed segment the first time they are needed: in its seal, else in its batch headers. */
  async loadFacts(segment: SealedSegment, file: File): Promise<void> {
    if (segment.facts !== undefined) return
    const sizeBytes = await file.size()
    const seal = await this.findSeal(segment.baseOffset)
    // A file that is shorter than its seal says has lost bytes: reading it will find out which.
    if (seal !== undefined && seal.sizeBytes >= sizeBytes) {
      const { maxTimestampMs, records = seal.endOffset - seal.baseOffset } = seal
      segment.facts ??= { sizeBytes: seal.sizeBytes, maxTimestampMs, records }
      return
    }
    const scan = await this.scanIndexes(file, segment.baseOffset, sizeBytes, sizeBytes + 1, false)
    segment.facts ??= { sizeBytes, maxTimestampMs: scan.maxTimestampMs, records: scan.records }
  }

  /** Reads the indexes of a sealed segment. What is damaged comes back as far as it is good, and a rebuild is begun. */
  async loadIndexes(
    segment: SealedSegment,
    endOffset: Offset,
    intervalBytes: number,
  ): Promise<SegmentIndexes> {
    const { baseOffset } = segment
    const [index, timeindex, seal] = await Promise.all([
      this.#readIfThere(segmentFileName(baseOffset, 'index')),
      this.#readIfThere(segmentFileName(baseOffset, 'timeindex')),
      this.findSeal(baseOffset),
    ])
    const size = seal?.sizeBytes ?? Number.MAX_SAFE_INTEGER
    const isWhole =
      seal !== undefined &&
      crc32c(index) === seal.indexCrc &&
      crc32c(timeindex) === seal.timeindexCrc
    if (!isWhole && !this.isBusyWith(segment)) {
      this.#env.logger.warn(
        { directory: this.#directory.split('/').at(-1), segment: baseOffset },
        'an index is missing or damaged: rebuilding it from the log',
      )
      this.#inBackground(`rebuild an index at ${baseOffset}`, () =>
        this.rebuild(segment, endOffset, intervalBytes),
      )
    }
    return {
      offsets: OffsetIndex.decode(baseOffset, index, size, endOffset).index,
      times: TimeIndex.decode(baseOffset, timeindex, endOffset).index,
    }
  }

  async #readIfThere(name: string): Promise<Uint8Array> {
    try {
      return await readWhole(this.#env.fs, `${this.#directory}/${name}`)
    } catch (error) {
      const code = findSystemCode(error)
      if (code === 'ENOENT' || code === 'EIO') return new Uint8Array(0)
      throw error
    }
  }

  /** Makes indexes and seal of a sealed segment anew. A damaged log file gets indexes of what is good in it, and no seal. */
  async rebuild(segment: SealedSegment, endOffset: Offset, intervalBytes: number): Promise<void> {
    if (this.isBusyWith(segment)) return
    this.claim(segment.baseOffset)
    try {
      await this.#env.sealedFiles.use(segment.file, async (file) => {
        const sizeBytes = await file.size()
        // With checksums: a seal must not vouch for rot.
        const made = await this.scanIndexes(
          file,
          segment.baseOffset,
          sizeBytes,
          intervalBytes,
          true,
        )
        this.#env.sealedFiles.setIndexes(segment.file, made)
        const { maxTimestampMs, records } = made
        segment.facts ??= { sizeBytes, maxTimestampMs, records }
        if (!made.isWhole || made.endOffset !== endOffset) return
        await this.write(segment.baseOffset, endOffset, made, {
          sizeBytes,
          maxTimestampMs,
          records,
          logCrc: (await crcOfFile(file, sizeBytes)) ?? 0,
        })
      })
    } finally {
      this.release(segment.baseOffset)
    }
  }

  /** Indexes of the batches in a log file, over damage as far as good data can be found behind it. */
  async scanIndexes(
    file: UncachedFile,
    baseOffset: Offset,
    sizeBytes: number,
    intervalBytes: number,
    checkCrc: boolean,
  ): Promise<
    SegmentIndexes & {
      readonly endOffset: Offset
      readonly maxTimestampMs: number
      readonly records: number
      /** Nothing but good batches was met. */
      readonly isWhole: boolean
    }
  > {
    const offsets = new OffsetIndex(baseOffset)
    const times = new TimeIndex(baseOffset)
    let lastIndexed = 0
    let maxTimestampMs = -1
    let maxTimestampOffset = baseOffset
    let records = 0
    const take = (bytes: Uint8Array, at: number, position: number): void => {
      const offset = toOffset(readBaseOffset(bytes, at))
      const timestampMs = readNewestTimestamp(bytes, at)
      records += readRecordCount(bytes, at)
      if (timestampMs > maxTimestampMs) {
        maxTimestampMs = timestampMs
        maxTimestampOffset = offset
      }
      if (position - lastIndexed < intervalBytes) return
      offsets.append(offset, position)
      if (maxTimestampMs >= 0) times.maybeAppend(maxTimestampMs, maxTimestampOffset)
      lastIndexed = position
    }
    const window = new ScanWindow(salvaging(file), sizeBytes)
    const rules = {
      minEpoch: 0,
      maxEpoch: this.#env.incarnation,
      maxBatchBytes: this.#env.options.maxBatchBytes,
      checkCrc,
    }
    let end = await scanBatches(window, { position: 0, offset: baseOffset }, rules, take)
    let isWhole = true
    while (end.reason === 'bad') {
      isWhole = false
      const next = await findResync(window, end, rules, Infinity, [])
      if (next === undefined) break
      end = await scanBatches(window, next, rules, take)
    }
    if (maxTimestampMs >= 0) times.maybeAppend(maxTimestampMs, maxTimestampOffset)
    return { offsets, times, endOffset: toOffset(end.offset), maxTimestampMs, records, isWhole }
  }

  /**
   * Compares a sealed segment with its seal; `proceed` is called after each block, to go slowly, and answers whether to go on. True when
   * there is nothing to find fault with.
   */
  async matchesSeal(
    segment: SealedSegment,
    proceed: (bytes: number) => Promise<boolean>,
  ): Promise<boolean> {
    const seal = await this.findSeal(segment.baseOffset)
    if (seal === undefined) return true
    return await this.#env.sealedFiles.use(segment.file, async (file) => {
      if ((await file.size()) !== seal.sizeBytes) return false
      const crc = await crcOfFile(salvaging(file), seal.sizeBytes, proceed)
      return crc === undefined || crc === seal.logCrc
    })
  }
}

const BLOCK_BYTES = 256 * 1024

/** CRC-32C of a file; undefined when `proceed` said no. */
async function crcOfFile(
  file: UncachedFile,
  sizeBytes: number,
  proceed?: (bytes: number) => Promise<boolean>,
): Promise<number | undefined> {
  const block = Buffer.allocUnsafe(Math.min(BLOCK_BYTES, Math.max(1, sizeBytes)))
  let crc = 0
  let position = 0
  while (position < sizeBytes) {
    const piece = block.subarray(0, Math.min(block.length, sizeBytes - position))
    const have = await file.read(piece, position)
    if (have === 0) break
    crc = crc32c(block, 0, have, crc)
    position += have
    if (proceed !== undefined && !(await proceed(have))) return undefined
  }
  return crc
}
