import { toOffset } from '../../common/offset.ts'
import { KeyHash } from '../../log/key-hash.ts'
import { IdTable } from '../dedupe/id-table.ts'
import type { SendResult } from '../queue/queue-types.ts'
import { DELAY_KEY_BYTES, formatDelayId, parseDelayId } from './delay-record.ts'

export type Sent = Extract<SendResult, { error: undefined }>

const HASH_WORDS = 4
const FIRST_SLOTS = 64
/** Partition, offset, due time, timestamp; of one that waits also the partition of `__delayed` and the offset there. */
const WORDS = 6
const NOT_THERE = -1

/**
 * What the last sends have been answered, by send id: a repeat after a lost answer gets the same. About 150 bytes each, in typed arrays: as objects they would
 * live just long enough to be moved to V8's old space, all of them, and make that grow.
 */
export class SendMemory {
  readonly #most: number
  readonly #hash: KeyHash
  readonly #slots: IdTable = new IdTable()
  #hashes: Uint32Array = new Uint32Array(FIRST_SLOTS * HASH_WORDS)
  #words: Float64Array = new Float64Array(FIRST_SLOTS * WORDS)
  #keys: Uint8Array = new Uint8Array(FIRST_SLOTS * DELAY_KEY_BYTES)
  /** The oldest, once all are in use. */
  #next = 0
  #used = 0

  /** @param secret 16 bytes that nobody else knows */
  constructor(most: number, secret: Uint8Array) {
    this.#most = most
    this.#hash = new KeyHash(secret)
  }

  find(topicId: string, sendId: Uint8Array): Sent | undefined {
    if (!this.#slots.find(this.#hashOf(topicId, sendId))) return undefined
    const at = this.#slots.place * WORDS
    const words = this.#words
    const offset = words[at + 1]!
    const shard = words[at + 4]!
    return {
      error: undefined,
      partition: words[at]!,
      offset: offset === NOT_THERE ? undefined : toOffset(offset),
      delayId: shard === NOT_THERE ? '' : this.#delayIdAt(this.#slots.place),
      deliverAtMs: words[at + 2]!,
      duplicate: false,
      timestampMs: words[at + 3]!,
    }
  }

  remember(topicId: string, sendId: Uint8Array, answer: Sent): void {
    const hash = this.#hashOf(topicId, sendId)
    const slot = this.#slots.find(hash) ? this.#slots.place : this.#takeSlot(hash)
    const id = parseDelayId(answer.delayId)
    const at = slot * WORDS
    const words = this.#words
    words[at] = answer.partition
    words[at + 1] = answer.offset ?? NOT_THERE
    words[at + 2] = answer.deliverAtMs
    words[at + 3] = answer.timestampMs
    words[at + 4] = id?.shard ?? NOT_THERE
    words[at + 5] = id?.offset ?? NOT_THERE
    if (id !== undefined) this.#keys.set(id.key, slot * DELAY_KEY_BYTES)
  }

  #delayIdAt(slot: number): string {
    const start = slot * DELAY_KEY_BYTES
    const key = this.#keys.subarray(start, start + DELAY_KEY_BYTES)
    return formatDelayId(this.#words[slot * WORDS + 4]!, this.#words[slot * WORDS + 5]!, key)
  }

  #takeSlot(hash: Uint32Array): number {
    const slot = this.#next
    const start = slot * HASH_WORDS
    if (slot < this.#used) this.#slots.delete(this.#hashes.subarray(start, start + HASH_WORDS))
    else this.#used++
    if (this.#used * HASH_WORDS > this.#hashes.length) this.#grow()
    this.#hashes.set(hash, start)
    this.#slots.set(hash, slot, 0, 0)
    this.#next = slot + 1 === this.#most ? 0 : slot + 1
    return slot
  }

  #grow(): void {
    const slots = Math.min(this.#most, (this.#hashes.length / HASH_WORDS) * 2)
    const [hashes, words, keys] = [this.#hashes, this.#words, this.#keys]
    this.#hashes = new Uint32Array(slots * HASH_WORDS)
    this.#hashes.set(hashes)
    this.#words = new Float64Array(slots * WORDS)
    this.#words.set(words)
    this.#keys = new Uint8Array(slots * DELAY_KEY_BYTES)
    this.#keys.set(keys)
  }

  /** Whoever chooses send ids must not choose where they lie. */
  #hashOf(topicId: string, sendId: Uint8Array): Uint32Array {
    const bytes = Buffer.allocUnsafe(sendId.length + topicId.length)
    bytes.set(sendId)
    bytes.write(topicId, sendId.length, 'latin1')
    this.#hash.update(bytes, 0, bytes.length)
    return this.#hash.words
  }
}

/** An id as text of one letter a byte: a map goes by the identity of byte arrays. */
export function sendKey(sendId: Uint8Array): string {
  return Buffer.from(sendId.buffer, sendId.byteOffset, sendId.length).toString('latin1')
}
