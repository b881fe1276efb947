import { invariant } from '../../common/assert.ts'
import type { Offset } from '../../common/offset.ts'
import type { SegmentFile } from './sealed-files.ts'

export interface SealedFacts {
  readonly sizeBytes: number
  readonly maxTimestampMs: number
  /** Records in it: fewer than offsets where compaction has been. */
  readonly records: number
}

/** A sealed segment. Its size and age are looked up when first asked for: a start must not touch each of them. */
export class SealedSegment {
  readonly baseOffset: Offset
  readonly file: SegmentFile
  facts: SealedFacts | undefined
  /** When its bytes may go, by the monotonic clock; undefined while it is part of the log. */
  deleteAtMs: number | undefined

  constructor(baseOffset: Offset, file: SegmentFile) {
    this.baseOffset = baseOffset
    this.file = file
  }
}

/** The sealed segments of a log in the order of their offsets; each ends where the next begins, the last where the active one does. */
export class SegmentList {
  #sealed: SealedSegment[] = []

  get sealed(): readonly SealedSegment[] {
    return this.#sealed
  }

  get count(): number {
    return this.#sealed.length
  }

  add(segment: SealedSegment): void {
    const last = this.#sealed.at(-1)
    invariant(last === undefined || last.baseOffset < segment.baseOffset, 'segments are in order')
    this.#sealed.push(segment)
  }

  /** The sealed segment that holds `offset` and where it ends, or undefined when it is in the active one, which begins at `activeBase`. */
  find(
    offset: Offset,
    activeBase: Offset,
  ): { readonly segment: SealedSegment; readonly endOffset: Offset } | undefined {
    if (offset >= activeBase) return undefined
    let low = 0
    let high = this.#sealed.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#sealed[middle]?.baseOffset ?? Infinity) <= offset) low = middle + 1
      else high = middle
    }
    const segment = this.#sealed[low - 1]
    if (segment === undefined) return undefined
    return { segment, endOffset: this.endOf(low - 1, activeBase) }
  }

  endOf(i: number, activeBase: Offset): Offset {
    return this.#sealed[i + 1]?.baseOffset ?? activeBase
  }

  /** Sealed segments that lie wholly below `offset`. */
  below(offset: Offset, activeBase: Offset): SealedSegment[] {
    return this.#sealed.filter((_, i) => this.endOf(i, activeBase) <= offset)
  }

  /** Puts `next` in the place of `old`, which lie side by side and begin where it does. */
  replace(old: readonly SealedSegment[], next: SealedSegment): void {
    const at = this.#sealed.findIndex((segment) => segment === old[0])
    const isRun = old.every((segment, i) => this.#sealed[at + i] === segment)
    invariant(at >= 0 && isRun, 'segments that are replaced lie side by side in the log')
    invariant(old[0]?.baseOffset === next.baseOffset, 'a segment begins where those before it did')
    this.#sealed = this.#sealed.toSpliced(at, old.length, next)
  }

  remove(segment: SealedSegment): void {
    this.#sealed = this.#sealed.filter((other) => other !== segment)
  }
}
