import { toOffset } from '../../common/offset.ts'
import type { Offset } from '../../common/offset.ts'
import {
  emptyBatch,
  readLeaderEpoch,
  readNewestTimestamp,
  readProducerId,
  readRecordCount,
} from '../../record/batch-header.ts'
import type { LogConfig } from '../log-config.ts'
import type { TimestampedOffset } from '../partition-log.ts'
import type { SegmentFacts } from '../retention.ts'
import { findRecordByTimestamp } from '../timestamp-lookup.ts'

export interface StoredBatch {
  readonly bytes: Uint8Array
  readonly baseOffset: Offset
  readonly endOffset: Offset
}

interface MemorySegment {
  readonly baseOffset: Offset
  readonly batches: StoredBatch[]
  sizeBytes: number
  maxTimestampMs: number
  /** Monotonic time of its first batch. */
  startedAtMs: number
  /** Monotonic time at which it fell below the log start. */
  doomedAtMs: number | undefined
}

/**
 * The batches of one log, in runs that stand for the segments of a disk, so that rolling, retention and sizes mean the same in both
 * engines. There is always one segment; the last is the active one.
 */
export class BatchList {
  readonly #segments: MemorySegment[] = []

  constructor(baseOffset: Offset) {
    this.#segments.push(emptySegment(baseOffset))
  }

  get startOffset(): Offset {
    return this.#segments[0]?.baseOffset ?? this.#active.baseOffset
  }

  get endOffset(): Offset {
    const active = this.#active
    return active.batches.at(-1)?.endOffset ?? active.baseOffset
  }

  get sizeBytes(): number {
    return this.#segments.reduce((sum, segment) => sum + segment.sizeBytes, 0)
  }

  get segmentCount(): number {
    return this.#segments.length
  }

  get lastBatch(): StoredBatch | undefined {
    return this.#active.batches.at(-1) ?? this.#segments.at(-2)?.batches.at(-1)
  }

  get #active(): MemorySegment {
    return this.#segments.at(-1) as MemorySegment // The constructor made one, and the last is never dropped.
  }

  *[Symbol.iterator](): IterableIterator<StoredBatch> {
    for (const segment of this.#segments) yield* segment.batches
  }

  append(batch: StoredBatch, config: LogConfig, nowMs: number): void {
    const active = this.#active
    const isFull = active.sizeBytes + batch.bytes.length > config.segmentBytes
    if (active.batches.length > 0 && (isFull || nowMs - active.startedAtMs >= config.segmentMs)) {
      this.roll()
    }
    const segment = this.#active
    if (segment.batches.length === 0) segment.startedAtMs = nowMs
    segment.batches.push(batch)
    segment.sizeBytes += batch.bytes.length
    segment.maxTimestampMs = Math.max(segment.maxTimestampMs, readNewestTimestamp(batch.bytes, 0))
  }

  /**
   * Runs each batch of the segments that are closed and end at or below `end` through `change`: what it answers takes the batch's place, and
   * without an answer the offsets become part of a gap.
   */
  rewrite(end: Offset, change: (batch: StoredBatch) => Uint8Array | undefined): void {
    for (const segment of this.#segments) {
      if (segment === this.#active || (segment.batches.at(-1)?.endOffset ?? 0) > end) return
      const kept: StoredBatch[] = []
      for (const batch of segment.batches) {
        const bytes = change(batch)
        const last = kept.at(-1)
        if (bytes !== undefined) {
          kept.push({ ...batch, bytes })
        } else if (last !== undefined && isGap(last) && epochOf(last) === epochOf(batch)) {
          kept[kept.length - 1] = gapOf(last.baseOffset, batch)
        } else {
          kept.push(gapOf(batch.baseOffset, batch))
        }
      }
      segment.batches.splice(0, segment.batches.length, ...kept)
      segment.sizeBytes = kept.reduce((sum, batch) => sum + batch.bytes.length, 0)
      segment.maxTimestampMs = maxTimestampOf(kept)
    }
  }

  /** Starts the next segment, unless the active one is empty. */
  roll(): void {
    if (this.#active.batches.length > 0) this.#segments.push(emptySegment(this.endOffset))
  }

  /** Forgets every batch from `end` on. */
  truncate(end: Offset): void {
    for (;;) {
      const segment = this.#active
      while ((segment.batches.at(-1)?.endOffset ?? 0) > end) {
        segment.sizeBytes -= segment.batches.pop()?.bytes.length ?? 0
      }
      segment.maxTimestampMs = maxTimestampOf(segment.batches)
      if (segment.batches.length > 0 || segment.baseOffset <= end) return
      this.#segments.pop()
    }
  }

  /** Whole batches below `end`, from the one that holds `from` on; at least one, then as many as fit in `maxBytes`. */
  collect(from: Offset, end: Offset, maxBytes: number): StoredBatch[] {
    const found: StoredBatch[] = []
    let bytes = 0
    for (let i = this.#findSegment(from); i < this.#segments.length; i++) {
      const batches = this.#segments[i]?.batches ?? []
      for (let j = findFirstEndingAfter(batches, from); j < batches.length; j++) {
        const batch = batches[j]
        if (batch === undefined || batch.endOffset > end) return found
        bytes += batch.bytes.length
        if (found.length > 0 && bytes > maxBytes) return found
        found.push(batch)
      }
    }
    return found
  }

  findByTimestamp(timestampMs: number, from: Offset, end: Offset): TimestampedOffset | undefined {
    for (const segment of this.#segments) {
      if (segment.maxTimestampMs < timestampMs) continue
      for (const batch of segment.batches) {
        if (batch.endOffset > end) return undefined
        const found = findRecordByTimestamp(batch.bytes, 0, timestampMs, from)
        if (found !== undefined) return found
      }
    }
    return undefined
  }

  /** Everything that ends above `durableEnd` counts as active: it must not go. */
  toFacts(durableEnd: Offset): SegmentFacts[] {
    return this.#segments.map((segment) => {
      const endOffset = segment.batches.at(-1)?.endOffset ?? segment.baseOffset
      return {
        baseOffset: segment.baseOffset,
        endOffset,
        sizeBytes: segment.sizeBytes,
        maxTimestampMs: segment.maxTimestampMs,
        records: segment.batches.reduce((sum, batch) => sum + readRecordCount(batch.bytes, 0), 0),
        active: segment === this.#active || endOffset > durableEnd,
      }
    })
  }

  /** Notes since when segments have been below the log start. */
  markBelow(logStartOffset: Offset, nowMs: number): void {
    for (const segment of this.#segments) {
      if (segment !== this.#active && (segment.batches.at(-1)?.endOffset ?? 0) <= logStartOffset) {
        segment.doomedAtMs ??= nowMs
      }
    }
  }

  /** Drops the segments that have been below the log start for `delayMs`. */
  dropDoomed(nowMs: number, delayMs: number): void {
    const kept = this.#segments.findIndex(
      ({ doomedAtMs }) => doomedAtMs === undefined || nowMs - doomedAtMs < delayMs,
    )
    if (kept > 0) this.#segments.splice(0, kept)
  }

  /** A list of its own over the same bytes, up to `end`: what a restart finds. */
  clone(end: Offset): BatchList {
    const copy = new BatchList(toOffset(0))
    copy.#segments.length = 0
    for (const segment of this.#segments) {
      copy.#segments.push({ ...segment, batches: [...segment.batches] })
    }
    copy.truncate(end)
    return copy
  }

  /** The last segment that starts at or below `offset`; the first when all start above. */
  #findSegment(offset: Offset): number {
    let low = 0
    let high = this.#segments.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#segments[middle]?.baseOffset ?? Infinity) <= offset) low = middle + 1
      else high = middle
    }
    return Math.max(0, low - 1)
  }
}

function emptySegment(baseOffset: Offset): MemorySegment {
  return {
    baseOffset,
    batches: [],
    sizeBytes: 0,
    maxTimestampMs: -1,
    startedAtMs: 0,
    doomedAtMs: undefined,
  }
}

function findFirstEndingAfter(batches: readonly StoredBatch[], offset: Offset): number {
  let low = 0
  let high = batches.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if ((batches[middle]?.endOffset ?? Infinity) <= offset) low = middle + 1
    else high = middle
  }
  return low
}

function maxTimestampOf(batches: readonly StoredBatch[]): number {
  return batches.reduce((most, batch) => Math.max(most, readNewestTimestamp(batch.bytes, 0)), -1)
}

function isGap({ bytes }: StoredBatch): boolean {
  return readRecordCount(bytes, 0) === 0 && readProducerId(bytes, 0) < 0
}

function epochOf({ bytes }: StoredBatch): number {
  return readLeaderEpoch(bytes, 0)
}

/** What stands for the offsets from `baseOffset` to the end of `last`. */
function gapOf(baseOffset: Offset, last: StoredBatch): StoredBatch {
  const { endOffset } = last
  return { baseOffset, endOffset, bytes: emptyBatch(baseOffset, endOffset, epochOf(last)) }
}
