import { invariant } from '../common/assert.ts'
import { BrokerError } from '../common/errors.ts'
import type { Offset } from '../common/offset.ts'

/**
 * The sparse offset index of one segment, in the layout of its file; integers are big-endian.
 *   byte  0                4          8
 *        ┌────────────────┬──────────┬─ next entry
 *        │ offset − base  │ position │
 *        │ u32            │ u32      │
 *        └────────────────┴──────────┴─
 * An entry says: the batch with this base offset starts at this byte of the log file. Both columns increase strictly.
 * The index is a cache: whoever uses a hit checks the batch header at the position (DESIGN §4).
 */
export const OFFSET_INDEX_ENTRY_BYTES = 8

const FIRST_ENTRIES = 16

export class OffsetIndex {
  readonly baseOffset: Offset
  #entries: Uint32Array
  #count = 0

  constructor(baseOffset: Offset) {
    this.baseOffset = baseOffset
    this.#entries = new Uint32Array(FIRST_ENTRIES * 2)
  }

  /**
   * Reads the bytes of an index file. Keeps the longest good start; `sound` is false when something was dropped: entries that do
   * not increase, that lie outside [0, logBytes) or at or above `endOffset`, or a piece of an entry at the end.
   */
  static decode(
    baseOffset: Offset,
    bytes: Uint8Array,
    logBytes: number,
    endOffset: Offset,
  ): { readonly index: OffsetIndex; readonly sound: boolean } {
    const index = new OffsetIndex(baseOffset)
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const whole = Math.floor(bytes.byteLength / OFFSET_INDEX_ENTRY_BYTES)
    let sound = whole * OFFSET_INDEX_ENTRY_BYTES === bytes.byteLength
    for (let i = 0; i < whole; i++) {
      const relative = view.getUint32(i * 8)
      const position = view.getUint32(i * 8 + 4)
      const isInside = position < logBytes && baseOffset + relative < endOffset
      if (!isInside || !index.#isNext(relative, position)) {
        sound = false
        break
      }
      index.#push(relative, position)
    }
    return { index, sound }
  }

  get count(): number {
    return this.#count
  }

  get sizeBytes(): number {
    return this.#count * OFFSET_INDEX_ENTRY_BYTES
  }

  offsetAt(i: number): Offset {
    invariant(i >= 0 && i < this.#count, 'an index entry is asked for within the count')
    return (this.baseOffset + (this.#entries[i * 2] ?? 0)) as Offset // base and u32 are both offsets.
  }

  positionAt(i: number): number {
    invariant(i >= 0 && i < this.#count, 'an index entry is asked for within the count')
    return this.#entries[i * 2 + 1] ?? 0
  }

  /** Adds an entry. @throws BrokerError CORRUPT_INDEX when it does not increase */
  append(offset: Offset, position: number): void {
    const relative = offset - this.baseOffset
    if (!this.#isNext(relative, position)) {
      throw new BrokerError(
        'CORRUPT_INDEX',
        `index entry (${offset}, ${position}) does not increase on its predecessor`,
        { offset, position },
      )
    }
    this.#push(relative, position)
  }

  /** Adds an entry if it increases; else there is one fewer way in. */
  maybeAppend(offset: Offset, position: number): void {
    const relative = offset - this.baseOffset
    if (this.#isNext(relative, position)) this.#push(relative, position)
  }

  /** Number of the greatest entry at or below `target`, or -1 when there is none: start at the segment's first batch. O(log n). */
  findAtOrBelow(target: Offset): number {
    const relative = target - this.baseOffset
    let low = 0
    let high = this.#count
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#entries[middle * 2] ?? 0) <= relative) low = middle + 1
      else high = middle
    }
    return low - 1
  }

  /** Number of the first entry whose position is above `position`, or -1. O(log n). */
  findAfterPosition(position: number): number {
    let low = 0
    let high = this.#count
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#entries[middle * 2 + 1] ?? 0) <= position) low = middle + 1
      else high = middle
    }
    return low < this.#count ? low : -1
  }

  /** Forgets the entries at or above a position: the log was cut there. */
  truncateTo(position: number): void {
    while (this.#count > 0 && this.positionAt(this.#count - 1) >= position) this.#count--
  }

  /** The bytes of the entries from number `from` on, for the file. */
  encode(from = 0): Buffer {
    const bytes = Buffer.allocUnsafe((this.#count - from) * OFFSET_INDEX_ENTRY_BYTES)
    for (let i = from; i < this.#count; i++) {
      const at = (i - from) * OFFSET_INDEX_ENTRY_BYTES
      bytes.writeUInt32BE(this.#entries[i * 2] ?? 0, at)
      bytes.writeUInt32BE(this.#entries[i * 2 + 1] ?? 0, at + 4)
    }
    return bytes
  }

  #isNext(relative: number, position: number): boolean {
    if (relative < 0 || relative >= 2 ** 32 || position < 0 || position >= 2 ** 32) return false
    if (this.#count === 0) return true
    const last = (this.#count - 1) * 2
    return relative > (this.#entries[last] ?? 0) && position > (this.#entries[last + 1] ?? 0)
  }

  #push(relative: number, position: number): void {
    if (this.#count * 2 === this.#entries.length) {
      const larger = new Uint32Array(this.#entries.length * 2)
      larger.set(this.#entries)
      this.#entries = larger
    }
    this.#entries[this.#count * 2] = relative
    this.#entries[this.#count * 2 + 1] = position
    this.#count++
  }
}
