import { invariant } from '../../common/assert.ts'

const HASH_WORDS = 4
const FIRST_SLOTS = 16
/** Beyond this share of full slots a lookup takes more than a few steps. */
const MOST_LOAD = 0.75

/** A 128-bit hash: four unsigned words. */
export type IdHash = ArrayLike<number>

/**
 * What is known of each id, in typed arrays: 36 bytes a slot, of which 3 in 8 to 3 in 4 are full. Open addressing; what is taken out closes the gap behind
 * it, so that no grave is left. `find` fills the fields.
 */
export class IdTable {
  /** Where the id's record is: 0 or more. */
  place = 0
  acceptedMs = 0
  /** 32 bits; 0: not known. */
  checksum = 0
  #hashes: Uint32Array = new Uint32Array(FIRST_SLOTS * HASH_WORDS)
  /** One above the place; 0 in a free slot. */
  #places: Float64Array = new Float64Array(FIRST_SLOTS)
  #accepted: Float64Array = new Float64Array(FIRST_SLOTS)
  #checksums: Uint32Array = new Uint32Array(FIRST_SLOTS)
  #slots = FIRST_SLOTS
  #size = 0

  get size(): number {
    return this.#size
  }

  /** Sets or overwrites. */
  set(hash: IdHash, place: number, acceptedMs: number, checksum: number): void {
    invariant(place >= 0, 'a place is not negative')
    if (this.#size + 1 > this.#slots * MOST_LOAD) this.#grow()
    const slot = this.#findSlot(hash)
    if (this.#places[slot] === 0) {
      for (let word = 0; word < HASH_WORDS; word++) {
        this.#hashes[slot * HASH_WORDS + word] = hash[word]!
      }
      this.#size++
    }
    this.#places[slot] = place + 1
    this.#accepted[slot] = acceptedMs
    this.#checksums[slot] = checksum
  }

  /** Fills the fields with what is known of the id; false: nothing. */
  find(hash: IdHash): boolean {
    const slot = this.#findSlot(hash)
    const place = this.#places[slot]!
    if (place === 0) return false
    this.place = place - 1
    this.acceptedMs = this.#accepted[slot]!
    this.checksum = this.#checksums[slot]!
    return true
  }

  delete(hash: IdHash): boolean {
    let gap = this.#findSlot(hash)
    if (this.#places[gap] === 0) return false
    this.#size--
    // What lies behind, up to a free slot, moves up where it may lie there: a lookup must not meet the gap before it.
    for (let slot = this.#after(gap); this.#places[slot] !== 0; slot = this.#after(slot)) {
      const home = this.#homeOf(this.#hashes[slot * HASH_WORDS]!)
      const isBetween = gap <= slot ? gap < home && home <= slot : gap < home || home <= slot
      if (isBetween) continue
      this.#hashes.copyWithin(gap * HASH_WORDS, slot * HASH_WORDS, (slot + 1) * HASH_WORDS)
      this.#places[gap] = this.#places[slot]!
      this.#accepted[gap] = this.#accepted[slot]!
      this.#checksums[gap] = this.#checksums[slot]!
      gap = slot
    }
    this.#places[gap] = 0
    return true
  }

  /** A table with those that were accepted after `sinceMs`. */
  keepSince(sinceMs: number): IdTable {
    const kept = new IdTable()
    for (let slot = 0; slot < this.#slots; slot++) {
      const place = this.#places[slot]!
      if (place === 0 || this.#accepted[slot]! <= sinceMs) continue
      const hash = this.#hashes.subarray(slot * HASH_WORDS, (slot + 1) * HASH_WORDS)
      kept.set(hash, place - 1, this.#accepted[slot]!, this.#checksums[slot]!)
    }
    return kept
  }

  #findSlot(hash: IdHash): number {
    let slot = this.#homeOf(hash[0]!)
    while (this.#places[slot] !== 0 && !this.#isAt(slot, hash)) slot = this.#after(slot)
    return slot
  }

  #isAt(slot: number, hash: IdHash): boolean {
    const at = slot * HASH_WORDS
    const hashes = this.#hashes
    return (
      hashes[at] === hash[0] &&
      hashes[at + 1] === hash[1] &&
      hashes[at + 2] === hash[2] &&
      hashes[at + 3] === hash[3]
    )
  }

  #homeOf(word: number): number {
    return Math.floor((word / 2 ** 32) * this.#slots)
  }

  #after(slot: number): number {
    return slot + 1 === this.#slots ? 0 : slot + 1
  }

  #grow(): void {
    const [hashes, places, accepted, checksums] = [
      this.#hashes,
      this.#places,
      this.#accepted,
      this.#checksums,
    ]
    const before = this.#slots
    this.#slots *= 2
    this.#hashes = new Uint32Array(this.#slots * HASH_WORDS)
    this.#places = new Float64Array(this.#slots)
    this.#accepted = new Float64Array(this.#slots)
    this.#checksums = new Uint32Array(this.#slots)
    for (let from = 0; from < before; from++) {
      if (places[from] === 0) continue
      const hash = hashes.subarray(from * HASH_WORDS, (from + 1) * HASH_WORDS)
      const slot = this.#findSlot(hash)
      this.#hashes.set(hash, slot * HASH_WORDS)
      this.#places[slot] = places[from]!
      this.#accepted[slot] = accepted[from]!
      this.#checksums[slot] = checksums[from]!
    }
  }
}
