import { invariant } from '../common/assert.ts'
import type { Offset } from '../common/offset.ts'

/**
 * The sparse time index of one segment, in the layout of its file; integers are big-endian.
 *   byte  0            8                12
 *        ┌────────────┬────────────────┬─ next entry
 *        │ timestamp  │ offset − base  │
 *        │ i64, ms    │ u32            │
 *        └────────────┴────────────────┴─
 * An entry says: no record before the batch at this offset is younger than this timestamp. Timestamps increase strictly.
 */
export const TIME_INDEX_ENTRY_BYTES = 12

export class TimeIndex {
  readonly baseOffset: Offset
  #timestamps: number[] = []
  #relatives: number[] = []

  constructor(baseOffset: Offset) {
    this.baseOffset = baseOffset
  }

  /** Reads the bytes of a time index file. Keeps the longest good start, as {@link OffsetIndex.decode} does. */
  static decode(
    baseOffset: Offset,
    bytes: Uint8Array,
    endOffset: Offset,
  ): { readonly index: TimeIndex; readonly sound: boolean } {
    const index = new TimeIndex(baseOffset)
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const whole = Math.floor(bytes.byteLength / TIME_INDEX_ENTRY_BYTES)
    let sound = whole * TIME_INDEX_ENTRY_BYTES === bytes.byteLength
    for (let i = 0; i < whole; i++) {
      const timestampMs = Number(view.getBigInt64(i * TIME_INDEX_ENTRY_BYTES))
      const relative = view.getUint32(i * TIME_INDEX_ENTRY_BYTES + 8)
      const previous = index.#relatives.at(-1) ?? -1
      if (
        !Number.isSafeInteger(timestampMs) ||
        timestampMs <= index.maxTimestampMs ||
        relative <= previous ||
        baseOffset + relative >= endOffset
      ) {
        sound = false
        break
      }
      index.#timestamps.push(timestampMs)
      index.#relatives.push(relative)
    }
    return { index, sound }
  }

  get count(): number {
    return this.#timestamps.length
  }

  get sizeBytes(): number {
    return this.count * TIME_INDEX_ENTRY_BYTES
  }

  /** The greatest timestamp that has been noted; -Infinity when there is none. */
  get maxTimestampMs(): number {
    return this.#timestamps.at(-1) ?? -Infinity
  }

  timestampAt(i: number): number {
    const timestampMs = this.#timestamps[i]
    invariant(timestampMs !== undefined, 'a time index entry is asked for within the count')
    return timestampMs
  }

  offsetAt(i: number): Offset {
    const relative = this.#relatives[i]
    invariant(relative !== undefined, 'a time index entry is asked for within the count')
    return (this.baseOffset + relative) as Offset // base and u32 are both offsets.
  }

  /** Notes that `timestampMs` is the greatest so far, in the batch at `offset`. Ignored unless both rise. */
  maybeAppend(timestampMs: number, offset: Offset): void {
    const relative = offset - this.baseOffset
    const previous = this.#relatives.at(-1) ?? -1
    if (timestampMs <= this.maxTimestampMs || relative <= previous) return
    this.#timestamps.push(timestampMs)
    this.#relatives.push(relative)
  }

  /**
   * Number of the last entry below `timestampMs`, or -1: all before its batch are older, so the first record at or after
   * `timestampMs` lies there or further on. O(log n). Files may be damaged: check that its batch has its timestamp.
   */
  findBelow(timestampMs: number): number {
    let low = 0
    let high = this.count
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#timestamps[middle] ?? 0) < timestampMs) low = middle + 1
      else high = middle
    }
    return low - 1
  }

  /** Forgets the entries at or above an offset: the log was cut there. */
  truncateTo(offset: Offset): void {
    while (this.count > 0 && this.offsetAt(this.count - 1) >= offset) {
      this.#timestamps.pop()
      this.#relatives.pop()
    }
  }

  encode(from = 0): Buffer {
    const bytes = Buffer.allocUnsafe((this.count - from) * TIME_INDEX_ENTRY_BYTES)
    for (let i = from; i < this.count; i++) {
      const at = (i - from) * TIME_INDEX_ENTRY_BYTES
      bytes.writeBigInt64BE(BigInt(this.timestampAt(i)), at)
      bytes.writeUInt32BE(this.#relatives[i] ?? 0, at + 8)
    }
    return bytes
  }
}
