import { invariant } from '../common/assert.ts'
import type { Offset } from '../common/offset.ts'
import { KeyHash } from './key-hash.ts'

/** Four words of hash and one for the offset, which is 0 in a free slot. */
const WORDS = 5
export const OFFSET_MAP_ENTRY_BYTES: number = WORDS * 4

/** Beyond this share of full slots a lookup takes more than a few steps. */
const MOST_LOAD = 0.75

/** Offsets are kept relative to the first, plus one, in 32 bits. */
const MOST_RELATIVE: number = 2 ** 32 - 2

/**
 * The newest offset of each key in a stretch of the log, in memory of a fixed size: open addressing over 20 bytes an entry, keys by a hash of
 * 128 bits under a secret of their own.
 */
export class OffsetMap {
  readonly #hash: KeyHash
  readonly #slots: Uint32Array
  readonly #capacity: number
  readonly #limit: number
  readonly #origin: Offset
  #size = 0

  /**
   * @param options.maxBytes what it may take
   * @param options.expectedKeys no more keys than this will come: saves memory for a small log
   * @param options.origin no offset is lower
   * @param options.secret 16 random bytes
   */
  constructor(options: {
    readonly maxBytes: number
    readonly expectedKeys: number
    readonly origin: Offset
    readonly secret: Uint8Array
  }) {
    const most = Math.max(2, Math.floor(options.maxBytes / OFFSET_MAP_ENTRY_BYTES))
    this.#capacity = Math.max(2, Math.min(most, Math.ceil(options.expectedKeys / MOST_LOAD) + 1))
    this.#limit = Math.max(1, Math.floor(this.#capacity * MOST_LOAD))
    this.#slots = new Uint32Array(this.#capacity * WORDS)
    this.#origin = options.origin
    this.#hash = new KeyHash(options.secret)
  }

  get size(): number {
    return this.#size
  }

  get sizeBytes(): number {
    return this.#slots.byteLength
  }

  /** Notes that the key in `bytes` from `start` to `end` has a record at `offset`, above all so far. False: there is no room for it. */
  put(bytes: Uint8Array, start: number, end: number, offset: Offset): boolean {
    const relative = offset - this.#origin + 1
    invariant(relative >= 1, 'an offset in the map is not below its origin')
    if (relative > MOST_RELATIVE) return false
    this.#hash.update(bytes, start, end)
    const at = this.#findSlot()
    const slots = this.#slots
    if (slots[at + 4] === 0) {
      if (this.#size >= this.#limit) return false
      slots.set(this.#hash.words, at)
      this.#size++
    }
    slots[at + 4] = relative
    return true
  }

  /** The newest offset of that key; -1 when the map has none. */
  find(bytes: Uint8Array, start: number, end: number): number {
    if (this.#size === 0) return -1
    this.#hash.update(bytes, start, end)
    const relative = this.#slots[this.#findSlot() + 4] ?? 0
    return relative === 0 ? -1 : this.#origin + relative - 1
  }

  /** Where the entry of the hash is, or would be. There is always a free slot to end at. */
  #findSlot(): number {
    const slots = this.#slots
    const { words } = this.#hash
    const [w0, w1, w2, w3] = [words[0]!, words[1]!, words[2]!, words[3]!]
    let slot = Math.floor((w0 / 2 ** 32) * this.#capacity)
    for (;;) {
      const at = slot * WORDS
      if (slots[at + 4] === 0) return at
      if (
        slots[at] === w0 &&
        slots[at + 1] === w1 &&
        slots[at + 2] === w2 &&
        slots[at + 3] === w3
      ) {
        return at
      }
      slot = slot + 1 === this.#capacity ? 0 : slot + 1
    }
  }
}
