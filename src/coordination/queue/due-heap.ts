/** An offset and the time at which something is to be done with it. */
export interface DueOffset {
  readonly dueMs: number
  readonly offset: number
}

const FIRST_CAPACITY = 64

/**
 * Offsets by due time, the earliest first, and the smaller offset first among equal times. A binary heap in two flat arrays: 16 bytes an entry.
 * Entries cannot be taken out of the middle: whoever drops one remembers so, and passes over it when it comes up.
 */
export class DueHeap {
  #dueMs = new Float64Array(FIRST_CAPACITY)
  #offsets = new Float64Array(FIRST_CAPACITY)
  #length = 0

  get length(): number {
    return this.#length
  }

  /** O(log n). */
  push(dueMs: number, offset: number): void {
    if (this.#length === this.#dueMs.length) this.#resize(2 * this.#length)
    let at = this.#length++
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!isBefore(dueMs, offset, this.#dueMs[parent]!, this.#offsets[parent]!)) break
      this.#move(parent, at)
      at = parent
    }
    this.#dueMs[at] = dueMs
    this.#offsets[at] = offset
  }

  /** The earliest time; undefined when empty. */
  peekDueMs(): number | undefined {
    return this.#length === 0 ? undefined : this.#dueMs[0]
  }

  /** The offset that has the earliest time; undefined when empty. */
  peekOffset(): number | undefined {
    return this.#length === 0 ? undefined : this.#offsets[0]
  }

  /** Takes the earliest; undefined when empty. O(log n). */
  pop(): DueOffset | undefined {
    if (this.#length === 0) return undefined
    const popped: DueOffset = { dueMs: this.#dueMs[0]!, offset: this.#offsets[0]! }
    this.#removeFirst()
    return popped
  }

  /** Takes the earliest when it is due at `nowMs`, and returns its offset; else undefined. */
  popDue(nowMs: number): number | undefined {
    if (this.#length === 0 || this.#dueMs[0]! > nowMs) return undefined
    const offset = this.#offsets[0]!
    this.#removeFirst()
    return offset
  }

  clear(): void {
    this.#length = 0
    this.#resize(FIRST_CAPACITY)
  }

  #removeFirst(): void {
    const last = --this.#length
    const dueMs = this.#dueMs[last]!
    const offset = this.#offsets[last]!
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= last) break
      const right = child + 1
      if (right < last && this.#isEarlier(right, child)) child = right
      if (!isBefore(this.#dueMs[child]!, this.#offsets[child]!, dueMs, offset)) break
      this.#move(child, at)
      at = child
    }
    this.#dueMs[at] = dueMs
    this.#offsets[at] = offset
    // A burst of retries must not keep its memory for ever.
    if (last >= FIRST_CAPACITY && last < this.#dueMs.length >> 2)
      this.#resize(this.#dueMs.length >> 1)
  }

  #isEarlier(a: number, b: number): boolean {
    return isBefore(this.#dueMs[a]!, this.#offsets[a]!, this.#dueMs[b]!, this.#offsets[b]!)
  }

  #move(from: number, to: number): void {
    this.#dueMs[to] = this.#dueMs[from]!
    this.#offsets[to] = this.#offsets[from]!
  }

  #resize(capacity: number): void {
    const dueMs = new Float64Array(capacity)
    const offsets = new Float64Array(capacity)
    dueMs.set(this.#dueMs.subarray(0, this.#length))
    offsets.set(this.#offsets.subarray(0, this.#length))
    this.#dueMs = dueMs
    this.#offsets = offsets
  }
}

function isBefore(dueMs: number, offset: number, otherDueMs: number, otherOffset: number): boolean {
  return dueMs < otherDueMs || (dueMs === otherDueMs && offset < otherOffset)
}
