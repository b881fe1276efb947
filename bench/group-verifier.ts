import type { Batch } from '../src/client/index.ts'
import type { Values } from './values.ts'
import { VerificationError } from './verifier.ts'

/**
 * Holds what the members of a group see, all together, against what was written: at least once. Each partition has a producer of its own with the
 * partition's number, so offset and sequence are one. Within a member's time with a partition offsets have no gap.
 */
export class GroupVerifier {
  readonly #values: Values
  /** The end of what has been seen, by partition: all below has. */
  readonly #ends: number[]
  /** Where the present owner of a partition goes on; undefined when it has just got it. */
  readonly #next: (number | undefined)[]
  records = 0
  /** Seen more than once. */
  repeated = 0

  constructor(values: Values, partitions: number) {
    this.#values = values
    this.#ends = Array.from({ length: partitions }, () => 0)
    this.#next = Array.from({ length: partitions }, () => undefined)
  }

  /** A partition has come to another member: it goes on at what was committed, which may be behind. */
  moved(partition: number): void {
    this.#next[partition] = undefined
  }

  /** @throws VerificationError for a gap, and for a value that is not what was written there */
  take(batch: Batch<Uint8Array>): void {
    const { partition } = batch
    const cursor = batch.cursor()
    const { bytes } = cursor
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    while (cursor.next()) {
      const { offset, valueStart, valueEnd } = cursor
      const isIntact =
        this.#values.isIntact(bytes, view, valueStart, valueEnd) &&
        this.#values.producerAt(view, valueStart) === partition &&
        this.#values.sequenceAt(view, valueStart) === offset
      if (!isIntact) {
        throw new VerificationError(`the record at ${partition}:${offset} is not what was written`)
      }
      this.#see(partition, offset)
    }
  }

  /** @throws VerificationError unless each partition has been seen up to `end` */
  finish(end: number): void {
    for (const [partition, seen] of this.#ends.entries()) {
      if (seen === end) continue
      throw new VerificationError(
        `partition ${partition} holds ${end} records, and members have seen ${seen} of them`,
      )
    }
  }

  /** True when each partition has been seen up to `end`. */
  hasAll(end: number): boolean {
    return this.#ends.every((seen) => seen >= end)
  }

  #see(partition: number, offset: number): void {
    const due = this.#next[partition]
    const end = this.#ends[partition] ?? 0
    if (due === undefined ? offset > end : offset !== due) {
      throw new VerificationError(
        `partition ${partition} goes on at ${offset}, where ${due ?? `at most ${end}`} was due`,
      )
    }
    this.#next[partition] = offset + 1
    this.records++
    if (offset < end) this.repeated++
    else this.#ends[partition] = offset + 1
  }
}
