import { crc32c } from '../../bytes/crc32c.ts'
import { BrokerError, findSystemCode } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import type { Offset } from '../../common/offset.ts'
import { readWhole, replaceFile } from '../../fs/file-system.ts'
import type { File, UncachedFile } from '../../fs/file-system.ts'
import { readBaseOffset, readMaxTimestamp } from '../../record/batch-header.ts'
import { OffsetIndex } from '../../segment/offset-index.ts'
import { parseSegmentFileName, segmentFileName } from '../../segment/segment-names.ts'
import { decodeSeal, encodeSeal } from '../../segment/segment-seal.ts'
import type { SegmentSeal } from '../../segment/segment-seal.ts'
import { ScanWindow, scanBatches } from '../../segment/segment-scan.ts'
import { TimeIndex } from '../../segment/time-index.ts'
import type { ActiveSegment } from './active-segment.ts'
import type { DiskEnvironment } from './disk-environment.ts'
import { salvaging } from './segment-reader.ts'
import type { SealedSegment } from './segment-list.ts'
import type { SegmentIndexes } from './sealed-files.ts'

/** Snapshots of producer state that are kept: the newest, and the one before it in case the newest is damaged. */
const KEPT_SNAPSHOTS = 2

/** Writes, reads, checks and remakes the files that stand beside a sealed segment's log file. */
export class SegmentSealer {
  readonly #env: DiskEnvironment
  readonly #directory: string
  readonly #busy = new Set<Offset>()

  constructor(env: DiskEnvironment, directory: string) {
    this.#env = env
    this.#directory = directory
  }

  isBusyWith(segment: SealedSegment): boolean {
    return this.#busy.has(segment.baseOffset)
  }

  /** Seals the segment that has just been rolled: all of it is durable and nothing writes to it any more. */
  async sealActive(active: ActiveSegment, endOffset: Offset): Promise<void> {
    this.#busy.add(active.baseOffset)
    try {
      active.isSealed = true
      const { offsets, times } = await active.indexes()
      active.finishTimeIndex()
      await this.#write(
        active.baseOffset,
        endOffset,
        { offsets, times },
        {
          sizeBytes: active.position,
          maxTimestampMs: active.maxTimestampMs,
          logCrc: active.state.crc,
        },
      )
      await active.file.close()
    } finally {
      this.#busy.delete(active.baseOffset)
    }
  }

  async #write(
    baseOffset: Offset,
    endOffset: Offset,
    indexes: SegmentIndexes,
    log: {
      readonly sizeBytes: number
      readonly maxTimestampMs: number
      readonly logCrc: number
    },
  ): Promise<void> {
    const { fs } = this.#env
    const index = indexes.offsets.encode()
    const timeindex = indexes.times.encode()
    const seal: SegmentSeal = {
      format: 1,
      baseOffset,
      endOffset,
      ...log,
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
      segment.facts ??= { sizeBytes: seal.sizeBytes, maxTimestampMs: seal.maxTimestampMs }
      return
    }
    const scan = await this.scanIndexes(file, segment.baseOffset, sizeBytes, sizeBytes + 1)
    segment.facts ??= { sizeBytes, maxTimestampMs: scan.maxTimestampMs }
  }

  /** Reads the indexes of a sealed segment. What is damaged comes back as far as it is good, and a rebuild is begun. */
  async loadIndexes(segment: SealedSegment, endOffset: Offset): Promise<SegmentIndexes> {
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
      this.#env.inBackground(`rebuild an index at ${baseOffset}`, () =>
        this.rebuild(segment, endOffset, 4096),
      )
    }
    return {
      offsets: OffsetIndex.decode(baseOffset, index, size).index,
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

  /** Makes indexes and seal of a sealed segment anew. A damaged log file gets indexes of its good part, and no seal. */
  async rebuild(segment: SealedSegment, endOffset: Offset, intervalBytes: number): Promise<void> {
    if (this.isBusyWith(segment)) return
    this.#busy.add(segment.baseOffset)
    try {
      await this.#env.sealedFiles.use(segment.path, async (file) => {
        const sizeBytes = await file.size()
        const made = await this.scanIndexes(file, segment.baseOffset, sizeBytes, intervalBytes)
        this.#env.sealedFiles.setIndexes(segment.path, made)
        segment.facts ??= { sizeBytes, maxTimestampMs: made.maxTimestampMs }
        if (made.endOffset !== endOffset) return
        await this.#write(segment.baseOffset, endOffset, made, {
          sizeBytes,
          maxTimestampMs: made.maxTimestampMs,
          logCrc: (await crcOfFile(file, sizeBytes)) ?? 0,
        })
      })
    } finally {
      this.#busy.delete(segment.baseOffset)
    }
  }

  /** Indexes of the batches in a log file, from its headers, up to the first that does not belong there. */
  async scanIndexes(
    file: UncachedFile,
    baseOffset: Offset,
    sizeBytes: number,
    intervalBytes: number,
  ): Promise<SegmentIndexes & { readonly endOffset: Offset; readonly maxTimestampMs: number }> {
    const offsets = new OffsetIndex(baseOffset)
    const times = new TimeIndex(baseOffset)
    let lastIndexed = 0
    let maxTimestampMs = -1
    let maxTimestampOffset = baseOffset
    const end = await scanBatches(
      new ScanWindow(salvaging(file), sizeBytes),
      { position: 0, offset: baseOffset },
      {
        minEpoch: 0,
        maxEpoch: this.#env.incarnation,
        maxBatchBytes: this.#env.options.maxBatchBytes,
        checkCrc: false,
      },
      (bytes, at, position) => {
        const offset = toOffset(readBaseOffset(bytes, at))
        const timestampMs = readMaxTimestamp(bytes, at)
        if (timestampMs > maxTimestampMs) {
          maxTimestampMs = timestampMs
          maxTimestampOffset = offset
        }
        if (position - lastIndexed < intervalBytes) return
        offsets.append(offset, position)
        if (maxTimestampMs >= 0) times.maybeAppend(maxTimestampMs, maxTimestampOffset)
        lastIndexed = position
      },
    )
    if (maxTimestampMs >= 0) times.maybeAppend(maxTimestampMs, maxTimestampOffset)
    return { offsets, times, endOffset: toOffset(end.offset), maxTimestampMs }
  }

  /** Removes all snapshots but that at `newest` and the one before it. */
  async removeOldSnapshots(newest: Offset): Promise<void> {
    const names = await this.#env.fs.list(this.#directory)
    const offsets = names
      .map((name) => parseSegmentFileName(name))
      .filter((parsed) => parsed?.kind === 'snapshot')
      .map((parsed) => parsed?.baseOffset ?? toOffset(0))
      .filter((offset) => offset <= newest)
      .sort((a, b) => b - a)
    for (const offset of offsets.slice(KEPT_SNAPSHOTS)) {
      await this.#env.fs.remove(`${this.#directory}/${segmentFileName(offset, 'snapshot')}`)
    }
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
    return await this.#env.sealedFiles.use(segment.path, async (file) => {
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
