const WORDS = 3
const FIRST_ENTRIES = 32

/**
 * Waiting records in the order in which they are due, those of one millisecond in the order of their offsets. 24 bytes a record, none of them on
 * the heap of JavaScript. `pop` fills the fields.
 */
export class DelayHeap {
  dueMs = 0
  offset = 0
  target = 0
  #words: Float64Array = new Float64Array(0)
  #size = 0

  get size(): number {
    return this.#size
  }

  /** When the first is due; Infinity when there is none. */
  get firstMs(): number {
    return this.#size === 0 ? Infinity : this.#words[0]!
  }

  push(dueMs: number, offset: number, target: number): void {
    if ((this.#size + 1) * WORDS > this.#words.length) this.#grow()
    let at = this.#size++
    while (at > 0) {
      const parent = (at - 1) >>> 1
      if (!this.#isBelow(dueMs, offset, parent)) break
      this.#copy(parent, at)
      at = parent
    }
    this.#set(at, dueMs, offset, target)
  }

  /** Takes the first out, into the fields. False when there is none. */
  pop(): boolean {
    if (this.#size === 0) return false
    this.#load(0)
    this.#removeAt(0)
    return true
  }

  /** Takes the record at that offset out, into the fields, whenever it is due. O(size), though at a gigabyte a second. */
  remove(offset: number): boolean {
    const words = this.#words
    const end = this.#size * WORDS
    for (let at = 1; at < end; at += WORDS) {
      if (words[at] !== offset) continue
      const index = (at - 1) / WORDS
      this.#load(index)
      this.#removeAt(index)
      return true
    }
    return false
  }

  /** In no order. */
  forEach(visit: (dueMs: number, offset: number, target: number) => void): void {
    const words = this.#words
    for (let at = 0; at < this.#size * WORDS; at += WORDS) {
      visit(words[at]!, words[at + 1]!, words[at + 2]!)
    }
  }

  #removeAt(index: number): void {
    const last = --this.#size
    if (index !== last) {
      const words = this.#words
      const [dueMs, offset, target] = [
        words[last * WORDS]!,
        words[last * WORDS + 1]!,
        words[last * WORDS + 2]!,
      ]
      const parent = (index - 1) >>> 1
      if (index > 0 && this.#isBelow(dueMs, offset, parent)) {
        this.#rise(index, dueMs, offset, target)
      } else this.#sink(index, dueMs, offset, target)
    }
    // A flood that is over gives its memory back.
    if (last < this.#words.length / WORDS / 4 && last >= FIRST_ENTRIES) this.#resize(last * 2)
    else if (last === 0) this.#words = new Float64Array(0)
  }

  #rise(from: number, dueMs: number, offset: number, target: number): void {
    let at = from
    while (at > 0) {
      const parent = (at - 1) >>> 1
      if (!this.#isBelow(dueMs, offset, parent)) break
      this.#copy(parent, at)
      at = parent
    }
    this.#set(at, dueMs, offset, target)
  }

  #sink(from: number, dueMs: number, offset: number, target: number): void {
    const size = this.#size
    let at = from
    for (;;) {
      let child = at * 2 + 1
      if (child >= size) break
      const words = this.#words
      if (
        child + 1 < size &&
        this.#isBelow(words[(child + 1) * WORDS]!, words[(child + 1) * WORDS + 1]!, child)
      ) {
        child++
      }
      if (this.#isBelow(dueMs, offset, child)) break
      this.#copy(child, at)
      at = child
    }
    this.#set(at, dueMs, offset, target)
  }

  #isBelow(dueMs: number, offset: number, index: number): boolean {
    const other = this.#words[index * WORDS]!
    return dueMs < other || (dueMs === other && offset < this.#words[index * WORDS + 1]!)
  }

  #set(index: number, dueMs: number, offset: number, target: number): void {
    this.#words[index * WORDS] = dueMs
    this.#words[index * WORDS + 1] = offset
    this.#words[index * WORDS + 2] = target
  }

  #copy(from: number, to: number): void {
    this.#words.copyWithin(to * WORDS, from * WORDS, from * WORDS + WORDS)
  }

  #load(index: number): void {
    this.dueMs = this.#words[index * WORDS]!
    this.offset = this.#words[index * WORDS + 1]!
    this.target = this.#words[index * WORDS + 2]!
  }

  #grow(): void {
    this.#resize(Math.max(FIRST_ENTRIES, this.#size * 2))
  }

  #resize(entries: number): void {
    const resized = new Float64Array(entries * WORDS)
    resized.set(this.#words.subarray(0, Math.min(this.#size * WORDS, resized.length)))
    this.#words = resized
  }
}
