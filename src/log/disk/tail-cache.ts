import type { Offset } from '../../common/offset.ts'
import { Ring } from '../../bytes/ring.ts'

/** What a cached batch costs beside its bytes, about: the objects that hold it. */
const ENTRY_OVERHEAD_BYTES = 160

interface CachedBatch {
  readonly bytes: Uint8Array
  readonly baseOffset: Offset
  readonly endOffset: Offset
}

/** One byte budget for the tails of all logs: whoever was written longest ago goes first, whichever log it is of. */
export class TailCacheBudget {
  readonly #budgetBytes: number
  readonly #order = new Ring<TailCache>()
  #usedBytes = 0

  constructor(budgetBytes: number) {
    this.#budgetBytes = budgetBytes
  }

  get usedBytes(): number {
    return this.#usedBytes
  }

  added(cache: TailCache, bytes: number): void {
    this.#usedBytes += bytes
    this.#order.push(cache)
    while (this.#usedBytes > this.#budgetBytes) {
      const oldest = this.#order.shift()
      if (oldest === undefined) return
      this.#usedBytes -= oldest.dropOldest()
    }
  }
}

/**
 * The last batches of one log, contiguous, as the very buffers that came from the socket: a thousand readers of the tail cost one disk
 * write and no disk read.
 */
export class TailCache {
  readonly #budget: TailCacheBudget
  readonly #batches = new Ring<CachedBatch>()
  /** Below it the log has been compacted: what is cached there is out of date, and goes with time. */
  #floor = 0

  constructor(budget: TailCacheBudget) {
    this.#budget = budget
  }

  /** The first offset that is cached, or undefined when nothing is. */
  get startOffset(): Offset | undefined {
    return this.#batches.peek()?.baseOffset
  }

  add(bytes: Uint8Array, baseOffset: Offset, endOffset: Offset): void {
    const kept = compact(bytes)
    this.#batches.push({ bytes: kept, baseOffset, endOffset })
    this.#budget.added(this, kept.length + ENTRY_OVERHEAD_BYTES)
  }

  /** Serves nothing below `offset` any more. */
  hideBelow(offset: Offset): void {
    this.#floor = Math.max(this.#floor, offset)
  }

  /** Gives up the oldest batch; its cost in bytes. Only for the budget, which has one turn for each batch. */
  dropOldest(): number {
    const batch = this.#batches.shift()
    return batch === undefined ? 0 : batch.bytes.length + ENTRY_OVERHEAD_BYTES
  }

  /**
   * Whole batches from the one that holds `from` on, until `maxBytes` or `end`; undefined when the cache does not reach back to `from`.
   * At least one batch, if one ends at or below `end`.
   */
  read(
    from: Offset,
    end: Offset,
    maxBytes: number,
  ):
    | { readonly chunks: Uint8Array[]; readonly bytes: number; readonly nextOffset: Offset }
    | undefined {
    const first = this.#batches.peek()
    if (first === undefined || from < first.baseOffset || from < this.#floor) return undefined
    let low = 0
    let high = this.#batches.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#batches.at(middle)?.endOffset ?? Infinity) <= from) low = middle + 1
      else high = middle
    }
    const chunks: Uint8Array[] = []
    let bytes = 0
    let nextOffset = from
    for (let i = low; i < this.#batches.length; i++) {
      const batch = this.#batches.at(i)
      if (batch === undefined || batch.endOffset > end) break
      if (chunks.length > 0 && bytes + batch.bytes.length > maxBytes) break
      chunks.push(batch.bytes)
      bytes += batch.bytes.length
      nextOffset = batch.endOffset
    }
    return { chunks, bytes, nextOffset }
  }
}

/** A small view of a large message would keep all of the message alive: such a one is copied. */
function compact(bytes: Uint8Array): Uint8Array {
  return bytes.length * 4 < bytes.buffer.byteLength ? Buffer.from(bytes) : bytes
}
