import { findSystemCode, BrokerError } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import type { Offset } from '../../common/offset.ts'
import { KIB } from '../../common/units.ts'
import type { UncachedFile } from '../../fs/file-system.ts'
import {
  BATCH_HEADER_BYTES,
  isCrcValid,
  isPlausibleHeader,
  readBaseOffset,
  readBatchBytes,
  readEndOffset,
  readLeaderEpoch,
  readRecordCount,
} from '../../record/batch-header.ts'
import type { DamagedRange, DamageMap } from '../../segment/damage-map.ts'
import type { OffsetIndex } from '../../segment/offset-index.ts'
import { ScanWindow, findResync } from '../../segment/segment-scan.ts'
import type { EpochHistory } from '../epoch-history.ts'
import type { SegmentIndexes } from './sealed-files.ts'

/** A segment as the reader sees it, active or sealed. */
export interface SegmentView {
  readonly baseOffset: Offset
  /** One past the last offset that lies in it now. */
  readonly endOffset: Offset
  readonly sizeBytes: number
  use<T>(work: (file: UncachedFile) => Promise<T>): Promise<T>
  indexes(): Promise<SegmentIndexes>
  /** False when compaction has put another file in the place of what this is a view of. */
  isCurrent(): boolean
  /** The index led to a place where no such batch begins: have it rebuilt. */
  distrustIndexes(): void
}

export interface SegmentChunk {
  /** Whole batches, those without records left out: none at all when compaction has taken everything up to `nextOffset`. */
  readonly chunks: readonly Uint8Array[]
  readonly bytes: number
  readonly nextOffset: Offset
}

/** The file that was read is no longer the one that the view speaks of: to be tried again with a new view. */
export class SegmentReplacedError extends Error {
  override readonly name: string = 'SegmentReplacedError'
}

const SMALLEST_READ_BYTES: number = 4 * KIB
const SECTOR_BYTES = 4096

/**
 * Reads whole batches out of segments and believes nothing: base offsets must follow on each other, leader epochs must be those that the log
 * remembers, checksums must hold. What fails is damage: it is noted, answered as SEGMENT_QUARANTINED, and never served (CONTRACT §2.3).
 */
export class SegmentReader {
  readonly #name: string
  readonly #epochs: EpochHistory
  readonly #damage: DamageMap
  readonly #maxBatchBytes: number
  readonly #onDamage: (range: DamagedRange) => void

  constructor(options: {
    /** For messages: `orders-3`. */
    readonly name: string
    readonly epochs: EpochHistory
    readonly damage: DamageMap
    readonly maxBatchBytes: number
    readonly onDamage: (range: DamagedRange) => void
  }) {
    this.#name = options.name
    this.#epochs = options.epochs
    this.#damage = options.damage
    this.#maxBatchBytes = options.maxBatchBytes
    this.#onDamage = options.onDamage
  }

  /** @throws BrokerError SEGMENT_QUARANTINED when `offset` lies in a range that is known to be damaged */
  checkReadable(offset: Offset): void {
    const range = this.#damage.find(offset)
    if (range !== undefined) throw this.#quarantined(offset, range)
  }

  /**
   * Whole batches from the one that holds `from` on, none of them past `end`; about `maxBytes`, at least one. `from` lies in the segment.
   * Undefined when the first batch reaches past `end`.
   * @throws BrokerError SEGMENT_QUARANTINED
   * @throws SegmentReplacedError
   */
  async read(
    view: SegmentView,
    from: Offset,
    end: Offset,
    maxBytes: number,
  ): Promise<SegmentChunk | undefined> {
    this.checkReadable(from)
    const { offsets } = await view.indexes()
    const start = this.#findStart(view, offsets, offsets.findAtOrBelow(from), from)
    return await view.use(async (file) => {
      const walk = new BatchWalk(salvaging(file), view, start)
      return await this.#collect(walk, view, offsets, from, end, maxBytes)
    })
  }

  /** Where to begin: entry number `entry` of the index (or below), or behind damage that ends later. */
  #findStart(view: SegmentView, offsets: OffsetIndex, entry: number, from: Offset): WalkStart {
    const start =
      entry < 0
        ? { position: 0, offset: view.baseOffset, entry: -1 }
        : { position: offsets.positionAt(entry), offset: offsets.offsetAt(entry), entry }
    const damaged = this.#damage.findLastEndingAtOrBelow(view.baseOffset, from)
    return damaged !== undefined && damaged.end > start.offset
      ? { position: damaged.endPosition, offset: damaged.end, entry: -1 }
      : start
  }

  async #collect(
    walk: BatchWalk,
    view: SegmentView,
    offsets: OffsetIndex,
    from: Offset,
    end: Offset,
    maxBytes: number,
  ): Promise<SegmentChunk | undefined> {
    let wanted = Math.max(maxBytes, SMALLEST_READ_BYTES)
    let suspect: WalkStart | undefined
    let stepBack = 1
    for (;;) {
      const have = await walk.load(wanted)
      if (have === 0 && walk.offset >= view.endOffset) return undefined
      const step = this.#takeFrom(walk, view, from, end, maxBytes)
      if (step.kind === 'chunk') {
        if (suspect !== undefined) view.distrustIndexes()
        return step.chunk
      }
      if (step.kind === 'more') {
        wanted = Math.max(step.bytes, maxBytes)
        continue
      }
      wanted = Math.max(maxBytes, SMALLEST_READ_BYTES)
      if (!walk.isVerifying) {
        // A batch that was passed over on its header's word may be the damaged one: once more, believing only checksums.
        walk.verifyFrom(walk.start)
        continue
      }
      if (walk.isAtStart && walk.start.entry >= 0) {
        // No such batch where the index sent us: it is wrong, or that very batch is damaged. From further back the two can be told apart.
        suspect ??= walk.start
        walk.verifyFrom(this.#findStart(view, offsets, walk.start.entry - stepBack, from))
        stepBack *= 2
        continue
      }
      if (!view.isCurrent()) throw new SegmentReplacedError()
      const range = await this.#findDamage(walk, view, offsets)
      // That may have taken a while: what is noted would be believed of the new file.
      if (!view.isCurrent()) throw new SegmentReplacedError()
      this.#damage.add(range)
      this.#onDamage(range)
      if (range.start === suspect?.offset) suspect = undefined
      if (range.end > from) throw this.#quarantined(from, range)
      walk.jump(range.endPosition, range.end)
    }
  }

  /** Walks through what is loaded. Believes a batch that is to be served only with its checksum. */
  #takeFrom(
    walk: BatchWalk,
    view: SegmentView,
    from: Offset,
    end: Offset,
    maxBytes: number,
  ):
    | { readonly kind: 'chunk'; readonly chunk: SegmentChunk | undefined }
    | { readonly kind: 'more'; readonly bytes: number }
    | { readonly kind: 'bad' } {
    const { bytes } = walk
    let firstAt = -1
    let hasEmpty = false
    const chunk = (): SegmentChunk => {
      const all = bytes.subarray(firstAt, walk.at)
      const chunks = hasEmpty ? withoutEmpty(all) : [all]
      const size = hasEmpty ? chunks.reduce((sum, one) => sum + one.length, 0) : all.length
      return { chunks, bytes: size, nextOffset: walk.offset }
    }
    for (;;) {
      const left = bytes.length - walk.at
      if (left < BATCH_HEADER_BYTES || left < readBatchBytes(bytes, walk.at)) {
        if (firstAt >= 0) return { kind: 'chunk', chunk: chunk() }
        const needed =
          left < BATCH_HEADER_BYTES ? BATCH_HEADER_BYTES : readBatchBytes(bytes, walk.at)
        const isThere = needed <= walk.bytesLeft && needed <= this.#maxBatchBytes
        return isThere ? { kind: 'more', bytes: needed } : { kind: 'bad' }
      }
      const next = this.#fits(bytes, walk, view)
        ? toOffset(readEndOffset(bytes, walk.at))
        : undefined
      if (next === undefined) {
        return firstAt >= 0 ? { kind: 'chunk', chunk: chunk() } : { kind: 'bad' }
      }
      const size = readBatchBytes(bytes, walk.at)
      if (firstAt >= 0 && next <= end && walk.at + size - firstAt > maxBytes) {
        return { kind: 'chunk', chunk: chunk() }
      }
      // Also one that seems to reach past `end`: where it ends is only known if its checksum holds.
      if ((next > from || walk.isVerifying) && !isCrcValid(bytes, walk.at)) {
        return firstAt >= 0 ? { kind: 'chunk', chunk: chunk() } : { kind: 'bad' }
      }
      if (next > end) return { kind: 'chunk', chunk: firstAt >= 0 ? chunk() : undefined }
      if (next > from && firstAt < 0) firstAt = walk.at
      if (readRecordCount(bytes, walk.at) === 0) hasEmpty = true
      walk.advance(size, next)
    }
  }

  #fits(bytes: Uint8Array, walk: BatchWalk, view: SegmentView): boolean {
    return (
      isPlausibleHeader(bytes, walk.at, this.#maxBatchBytes) &&
      readBaseOffset(bytes, walk.at) === walk.offset &&
      readEndOffset(bytes, walk.at) <= view.endOffset &&
      this.#epochs.allows(readLeaderEpoch(bytes, walk.at), walk.offset)
    )
  }

  async #findDamage(
    walk: BatchWalk,
    view: SegmentView,
    offsets: OffsetIndex,
  ): Promise<DamagedRange> {
    const hints: { readonly position: number; readonly offset: number }[] = []
    const first = offsets.findAfterPosition(walk.position)
    for (let i = first; i >= 0 && i < offsets.count; i++) {
      hints.push({ position: offsets.positionAt(i), offset: offsets.offsetAt(i) })
    }
    const rules = {
      minEpoch: 0,
      maxEpoch: this.#epochs.latest,
      maxBatchBytes: this.#maxBatchBytes,
      checkCrc: true,
    }
    const window = new ScanWindow(walk.file, view.sizeBytes)
    const here = { position: walk.position, offset: walk.offset }
    const next = await findResync(window, here, rules, view.endOffset, hints)
    const isOwn = next !== undefined && next.offset > walk.offset
    return {
      start: walk.offset,
      end: isOwn ? toOffset(next.offset) : view.endOffset,
      segmentBase: view.baseOffset,
      endPosition: isOwn ? next.position : view.sizeBytes,
    }
  }

  #quarantined(offset: Offset, range: DamagedRange): BrokerError {
    return new BrokerError(
      'SEGMENT_QUARANTINED',
      `offset ${offset} of ${this.#name} cannot be read: the disk has damaged [${range.start}, ${range.end}); good data goes on at ${range.end}`,
      { offset, damagedFrom: range.start, nextOffset: range.end },
    )
  }
}

/** The runs of batches that have records. */
function withoutEmpty(bytes: Uint8Array): Uint8Array[] {
  const runs: Uint8Array[] = []
  let start = 0
  let at = 0
  while (at < bytes.length) {
    const end = at + readBatchBytes(bytes, at)
    if (readRecordCount(bytes, at) === 0) {
      if (at > start) runs.push(bytes.subarray(start, at))
      start = end
    }
    at = end
  }
  if (at > start) runs.push(bytes.subarray(start, at))
  return runs
}

/** Where a walk begins. */
interface WalkStart {
  readonly position: number
  readonly offset: Offset
  /** The number of the index entry that says so; -1 when it is the segment's beginning, or behind known damage. */
  readonly entry: number
}

/** A place in a segment's file, and the bytes that have been read from there. */
class BatchWalk {
  readonly file: UncachedFile
  /** The loaded bytes: a fresh buffer each time, since it is handed out. */
  bytes: Uint8Array = new Uint8Array(0)
  at = 0
  offset: Offset
  #loadedFrom: number
  #end: number
  /** Nothing has been believed since `start`. */
  isAtStart = true
  /** Whether batches are passed over only with their checksum. */
  isVerifying = false
  start: WalkStart

  constructor(file: UncachedFile, view: SegmentView, start: WalkStart) {
    this.file = file
    this.offset = start.offset
    this.start = start
    this.#loadedFrom = start.position
    this.#end = view.sizeBytes
  }

  get position(): number {
    return this.#loadedFrom + this.at
  }

  /** Bytes of the file from here on. */
  get bytesLeft(): number {
    return this.#end - this.position
  }

  async load(wanted: number): Promise<number> {
    const position = this.position
    const size = Math.max(0, Math.min(wanted, this.#end - position))
    const buffer = Buffer.allocUnsafe(size)
    const have = size === 0 ? 0 : await this.file.read(buffer, position)
    if (have < size) this.#end = position + have // Someone has cut the file under us.
    this.bytes = buffer.subarray(0, have)
    this.#loadedFrom = position
    this.at = 0
    return have
  }

  advance(size: number, next: Offset): void {
    this.at += size
    this.offset = next
    this.isAtStart = false
  }

  /** Begins again at `start`, which may lie further back, and believes nothing without a checksum. */
  verifyFrom(start: WalkStart): void {
    this.jump(start.position, start.offset)
    this.start = start
    this.isAtStart = true
    this.isVerifying = true
  }

  jump(position: number, offset: Offset): void {
    this.#loadedFrom = position
    this.at = 0
    this.offset = offset
    this.isAtStart = false
  }
}

/** Reads around what the device cannot read: those sectors come as zeros, which no checksum forgives. */
export function salvaging(file: UncachedFile): UncachedFile {
  return {
    close: () => file.close(),
    async read(into, position) {
      try {
        return await file.read(into, position)
      } catch (error) {
        if (findSystemCode(error) !== 'EIO') throw error
      }
      let done = 0
      while (done < into.length) {
        const toBoundary = SECTOR_BYTES - ((position + done) % SECTOR_BYTES)
        const piece = into.subarray(done, done + toBoundary)
        try {
          const have = await file.read(piece, position + done)
          done += have
          if (have < piece.length) return done
        } catch (error) {
          if (findSystemCode(error) !== 'EIO') throw error
          piece.fill(0)
          done += piece.length
        }
      }
      return done
    },
  }
}
