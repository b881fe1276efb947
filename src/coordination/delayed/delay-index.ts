import { invariant } from '../../common/assert.ts'
import { HOUR_MS, MINUTE_MS, SECOND_MS } from '../../common/units.ts'
import { DelayHeap } from './delay-heap.ts'

/** Coarse to fine: a bucket is poured into those of the next level when its time has begun, the last into the heap. */
const WIDTHS_MS: readonly number[] = [HOUR_MS, MINUTE_MS, SECOND_MS]

/** The offset, and when it is due within its bucket's hour together with its target. */
const WORDS = 2
const FIRST_ENTRIES = 4
/** An hour's milliseconds above, 30 bits of target below: exact in a double. */
const TARGETS: number = 2 ** 30
const DEAD = -1
const SMALL_WORDS = 4096

/** Sees one waiting record. */
export type DelayVisitor = (dueMs: number, offset: number, target: number) => void

/**
 * When the waiting records of one partition of `__delayed` are due: 16 bytes a record, in typed arrays (a quarter more where one has just grown, and twice as much in small ones), nothing of
 * the records themselves. Those of one hour lie in one bucket, in the order of their offsets, so adding costs nothing and taking out is a binary search;
 * from an hour on they are told apart by the minute, then by the second, and those of the second that runs lie in a heap.
 *
 * A record is one (dueMs, offset) with the number of its target, below 2^30.
 */
export class DelayIndex {
  readonly #levels: readonly Level[] = WIDTHS_MS.map((widthMs) => new Level(widthMs))
  readonly #heap: DelayHeap = new DelayHeap()
  #size = 0

  get size(): number {
    return this.#size
  }

  /** Offsets are best added in their order: one that comes late goes to the heap, where it is dearer to take out. */
  add(dueMs: number, offset: number, target: number): void {
    invariant(target < TARGETS, 'a target has 30 bits')
    this.#size++
    this.#put(0, dueMs, offset, target)
  }

  /** Adds one for a time that is not its own: {@link remove} finds it all the same, by its offset. */
  postpone(dueMs: number, offset: number, target: number): void {
    invariant(target < TARGETS, 'a target has 30 bits')
    this.#size++
    this.#heap.push(dueMs, offset, target)
  }

  #put(from: number, dueMs: number, offset: number, target: number): void {
    for (let index = from; index < this.#levels.length; index++) {
      if (this.#levels[index]!.tryAdd(dueMs, offset, target)) return
    }
    this.#heap.push(dueMs, offset, target)
  }

  /** Takes a record out; its target, or -1 when it is not here. One that was postponed is found too, in O(heap). */
  remove(dueMs: number, offset: number): number {
    for (const level of this.#levels) {
      const target = level.remove(dueMs, offset)
      if (target < 0) continue
      this.#size--
      return target
    }
    if (!this.#heap.remove(offset)) return -1
    this.#size--
    return this.#heap.target
  }

  /** As far as it was added with its own due time, and in its turn. */
  has(dueMs: number, offset: number): boolean {
    return this.#levels.some((level) => level.has(dueMs, offset))
  }

  /**
   * Brings the levels to the time: what is due by then can be popped. A million records of one hour take a third of a second, so at most `most` are poured. False:
   * there are more, and what is due first may be among them.
   */
  advance(nowMs: number, most: number = Infinity): boolean {
    // All first: what is poured from one level must find the next where it belongs. When time went back they simply begin earlier again.
    for (const level of this.#levels) level.advance(nowMs)
    let left = most
    for (const [index, level] of this.#levels.entries()) {
      const pour: DelayVisitor = (dueMs, offset, target) => {
        this.#put(index + 1, dueMs, offset, target)
      }
      while (level.hasBegun) {
        if (left <= 0) return false
        left -= level.pour(left, pour)
      }
    }
    return true
  }

  /** When the first of those that {@link advance} has brought up is due; Infinity when there is none. */
  get firstMs(): number {
    return this.#heap.firstMs
  }

  /** The first of those. Only when there is one: see {@link firstMs}. The result holds until the next call. */
  pop(): { readonly dueMs: number; readonly offset: number; readonly target: number } {
    const isThere = this.#heap.pop()
    invariant(isThere, 'something is popped only where something is')
    this.#size--
    return this.#heap
  }

  /** When to look again: nothing is due before. Infinity when nothing waits. */
  get nextMs(): number {
    let nextMs = this.#heap.firstMs
    for (const level of this.#levels) nextMs = Math.min(nextMs, level.firstMs)
    return nextMs
  }

  /**
   * Shows all that are due in [fromMs, toMs), in rough order: once a bucket begins later than `lastMs()` the rest of its level is left out.
   */
  visit(fromMs: number, toMs: number, lastMs: () => number, visit: DelayVisitor): void {
    const each: DelayVisitor = (dueMs, offset, target) => {
      if (dueMs >= fromMs && dueMs < toMs) visit(dueMs, offset, target)
    }
    this.#heap.forEach(each)
    for (let index = this.#levels.length - 1; index >= 0; index--) {
      this.#levels[index]!.visit(fromMs, toMs, lastMs, each)
    }
  }
}

/** The buckets of one width. */
class Level {
  readonly #widthMs: number
  readonly #buckets = new Map<number, Bucket>()
  /** Buckets below have begun: what is due in them belongs to a finer level. */
  #begun = 0
  #first = Infinity

  constructor(widthMs: number) {
    this.#widthMs = widthMs
  }

  get firstMs(): number {
    return this.#first * this.#widthMs
  }

  tryAdd(dueMs: number, offset: number, target: number): boolean {
    const number = Math.floor(dueMs / this.#widthMs)
    if (number < this.#begun) return false
    let bucket = this.#buckets.get(number)
    if (bucket === undefined) {
      bucket = new Bucket(number * this.#widthMs)
      this.#buckets.set(number, bucket)
      this.#first = Math.min(this.#first, number)
    }
    return bucket.tryAdd(dueMs, offset, target)
  }

  remove(dueMs: number, offset: number): number {
    const number = Math.floor(dueMs / this.#widthMs)
    const bucket = this.#buckets.get(number)
    if (bucket === undefined) return -1
    const target = bucket.remove(dueMs, offset)
    if (bucket.size === 0) this.#drop(number)
    return target
  }

  has(dueMs: number, offset: number): boolean {
    return this.#buckets.get(Math.floor(dueMs / this.#widthMs))?.has(dueMs, offset) === true
  }

  advance(nowMs: number): void {
    this.#begun = Math.floor(nowMs / this.#widthMs) + 1
  }

  get hasBegun(): boolean {
    return this.#first < this.#begun
  }

  /** Takes up to `most` records out of the first bucket; how many. */
  pour(most: number, visit: DelayVisitor): number {
    const bucket = this.#buckets.get(this.#first)
    const poured = bucket?.pour(most, visit) ?? 0
    if (bucket === undefined || bucket.size === 0) this.#drop(this.#first)
    return poured
  }

  #drop(number: number): void {
    this.#buckets.delete(number)
    if (number !== this.#first) return
    // At most 9 600 hours, or 60 of the finer ones.
    this.#first = Infinity
    for (const other of this.#buckets.keys()) this.#first = Math.min(this.#first, other)
  }

  visit(fromMs: number, toMs: number, lastMs: () => number, each: DelayVisitor): void {
    const numbers: number[] = []
    for (const number of this.#buckets.keys()) {
      const startMs = number * this.#widthMs
      if (startMs < toMs && startMs + this.#widthMs > fromMs) numbers.push(number)
    }
    for (const number of numbers.sort((a, b) => a - b)) {
      if (number * this.#widthMs > lastMs()) return
      this.#buckets.get(number)?.forEach(each)
    }
  }
}

/** Records that are due within one hour, minute or second, by offset. What has been taken out stays as a dead entry for a while. */
class Bucket {
  readonly #startMs: number
  #words: Float64Array = new Float64Array(FIRST_ENTRIES * WORDS)
  #entries = 0
  #live = 0
  /** Entries that have been poured: the first ones. */
  #poured = 0

  constructor(startMs: number) {
    this.#startMs = startMs
  }

  get size(): number {
    return this.#live
  }

  /** False when a later offset is here already. */
  tryAdd(dueMs: number, offset: number, target: number): boolean {
    if (this.#entries > 0 && this.#words[(this.#entries - 1) * WORDS]! >= offset) return false
    const at = this.#entries * WORDS
    if (at === this.#words.length) this.#grow()
    this.#words[at] = offset
    this.#words[at + 1] = (dueMs - this.#startMs) * TARGETS + target
    this.#entries++
    this.#live++
    return true
  }

  has(dueMs: number, offset: number): boolean {
    return this.#findLive(dueMs, offset) >= 0
  }

  remove(dueMs: number, offset: number): number {
    const at = this.#findLive(dueMs, offset)
    if (at < 0) return -1
    const packed = this.#words[at + 1]!
    this.#words[at + 1] = DEAD
    this.#live--
    if (this.#live < this.#entries / 2 && this.#entries > 2 * FIRST_ENTRIES) this.#squeeze()
    return packed % TARGETS
  }

  #findLive(dueMs: number, offset: number): number {
    const at = this.#find(offset) * WORDS
    if (at === this.#entries * WORDS || this.#words[at] !== offset) return -1
    const packed = this.#words[at + 1]!
    return packed !== DEAD && Math.floor(packed / TARGETS) === dueMs - this.#startMs ? at : -1
  }

  /** The first entry at or above `offset`. */
  #find(offset: number): number {
    let low = 0
    let high = this.#entries
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#words[middle * WORDS]! < offset) low = middle + 1
      else high = middle
    }
    return low
  }

  /** Takes the first out, up to `most`; how many. */
  pour(most: number, visit: DelayVisitor): number {
    let count = 0
    for (; this.#poured < this.#entries && count < most; this.#poured++) {
      const at = this.#poured * WORDS
      const packed = this.#words[at + 1]!
      if (packed === DEAD) continue
      this.#words[at + 1] = DEAD
      this.#live--
      count++
      const target = packed % TARGETS
      visit(this.#startMs + (packed - target) / TARGETS, this.#words[at]!, target)
    }
    return count
  }

  forEach(visit: DelayVisitor): void {
    const words = this.#words
    for (let at = 0; at < this.#entries * WORDS; at += WORDS) {
      const packed = words[at + 1]!
      if (packed === DEAD) continue
      const target = packed % TARGETS
      visit(this.#startMs + (packed - target) / TARGETS, words[at]!, target)
    }
  }

  #grow(): void {
    const { length } = this.#words
    // Large ones grow by less: what lies unused is most of what an index costs beyond its entries.
    const entries = (length / WORDS) * (length < SMALL_WORDS ? 2 : 1.25)
    const grown = new Float64Array(Math.ceil(entries) * WORDS)
    grown.set(this.#words)
    this.#words = grown
  }

  #squeeze(): void {
    const squeezed = new Float64Array(Math.max(FIRST_ENTRIES, Math.ceil(this.#live * 1.25)) * WORDS)
    let to = 0
    for (let at = 0; at < this.#entries * WORDS; at += WORDS) {
      if (this.#words[at + 1] === DEAD) continue
      squeezed[to++] = this.#words[at]!
      squeezed[to++] = this.#words[at + 1]!
    }
    this.#words = squeezed
    this.#entries = this.#live
    this.#poured = 0 // They were dead.
  }
}
