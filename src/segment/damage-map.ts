import { invariant } from '../common/assert.ts'
import type { Offset } from '../common/offset.ts'

/** Offsets [start, end) that cannot be read. Good data goes on at `endPosition` of the segment, unless that is its end. */
export interface DamagedRange {
  readonly start: Offset
  readonly end: Offset
  readonly segmentBase: Offset
  readonly endPosition: number
}

/** The damaged ranges of one log, in order, apart from each other. Few, or none. */
export class DamageMap {
  #ranges: DamagedRange[] = []

  get ranges(): readonly DamagedRange[] {
    return this.#ranges
  }

  /** Adds a range; those that it overlaps within its segment become one with it. */
  add(range: DamagedRange): void {
    invariant(range.start < range.end, 'a damaged range is not empty')
    let { start, end, endPosition } = range
    const apart: DamagedRange[] = []
    for (const other of this.#ranges) {
      if (other.end < start || other.start > end || other.segmentBase !== range.segmentBase) {
        apart.push(other)
        continue
      }
      if (other.start < start) start = other.start
      if (other.end > end) {
        end = other.end
        endPosition = other.endPosition
      }
    }
    apart.push({ start, end, endPosition, segmentBase: range.segmentBase })
    this.#ranges = apart.sort((a, b) => a.start - b.start)
  }

  find(offset: Offset): DamagedRange | undefined {
    return this.#ranges.find((range) => range.start <= offset && offset < range.end)
  }

  /** The last range of the segment that ends at or below `offset`: good data is known to begin there. */
  findLastEndingAtOrBelow(segmentBase: Offset, offset: Offset): DamagedRange | undefined {
    return this.#ranges.findLast(
      (range) => range.segmentBase === segmentBase && range.end <= offset,
    )
  }

  /** Forgets what has been noted of a segment: another file has taken its place, and nothing in that is damaged. */
  dropSegment(segmentBase: Offset): void {
    this.#ranges = this.#ranges.filter((range) => range.segmentBase !== segmentBase)
  }

  /** Forgets what lies below the log start. */
  dropBelow(offset: Offset): void {
    this.#ranges = this.#ranges.filter((range) => range.end > offset)
  }
}
