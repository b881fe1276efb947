import type { Batch } from '../src/client/index.ts'
import type { Values } from './values.ts'

/** What was read is not what was written. The run is worth nothing then. */
export class VerificationError extends Error {}

/** Receipts of every so manieth record, to see that they told the truth. */
export interface ReceiptSamples {
  readonly every: number
  /** By producer, then by sequence divided by `every`; -1 where there is none. */
  readonly partitions: readonly Int32Array[]
  readonly offsets: readonly Float64Array[]
}

/** A set of the numbers from 0 on, a bit each. */
export class NumberSet {
  #bits = new Uint8Array(1 << 12)
  size = 0

  /** False when it was there already. */
  add(number: number): boolean {
    const at = Math.floor(number / 8)
    if (at >= this.#bits.length) this.#grow(at)
    const bit = 1 << (number & 7)
    const before = this.#bits[at]!
    if ((before & bit) !== 0) return false
    this.#bits[at] = before | bit
    this.size++
    return true
  }

  #grow(at: number): void {
    const larger = new Uint8Array(Math.max(at + 1, this.#bits.length * 2))
    larger.set(this.#bits)
    this.#bits = larger
  }
}

interface PartitionProgress {
  nextOffset: number
  /** Of each producer. */
  readonly lastSequences: number[]
}

/**
 * Holds what one reader sees against what producers made: offsets without a gap, each producer's records in order within a partition, none
 * twice, every byte as it was. `finish` says whether all have come.
 */
export class Verifier {
  readonly #values: Values
  readonly #partitions: PartitionProgress[] = []
  readonly #seen: NumberSet[] = []
  readonly #checksBytes: boolean
  readonly #samples: ReceiptSamples | undefined
  records = 0
  /** Of values. */
  bytes = 0
  checkedReceipts = 0

  /** `checksBytes: false` looks at offsets and sequences alone: for a timed pass, with another pass after it. */
  constructor(
    values: Values,
    options: {
      readonly checksBytes?: boolean | undefined
      readonly samples?: ReceiptSamples | undefined
      /** Where reading begins in every partition. Default 0. */
      readonly fromOffset?: number | undefined
    } = {},
  ) {
    this.#values = values
    this.#checksBytes = options.checksBytes ?? true
    this.#samples = options.samples
    this.#fromOffset = options.fromOffset ?? 0
  }

  readonly #fromOffset: number

  /** Steps through the batch with its cursor. @throws VerificationError */
  take(batch: Batch<Uint8Array>): void {
    const progress = this.#progressOf(batch.partition)
    const cursor = batch.cursor()
    const { bytes } = cursor
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    while (cursor.next()) {
      this.#takeRecord(
        progress,
        batch.partition,
        cursor.offset,
        bytes,
        view,
        cursor.valueStart,
        cursor.valueEnd,
      )
    }
  }

  /** The same for a record that has been made into an object. */
  takeValue(partition: number, offset: number, value: Uint8Array | null): void {
    if (value === null) throw new VerificationError(`a tombstone at offset ${offset}`)
    const view = new DataView(value.buffer, value.byteOffset, value.length)
    this.#takeRecord(this.#progressOf(partition), partition, offset, value, view, 0, value.length)
  }

  #takeRecord(
    progress: PartitionProgress,
    partition: number,
    offset: number,
    bytes: Uint8Array,
    view: DataView,
    start: number,
    end: number,
  ): void {
    if (offset !== progress.nextOffset) {
      throw new VerificationError(
        `partition ${partition} goes on at offset ${offset}, where ${progress.nextOffset} was due`,
      )
    }
    progress.nextOffset = offset + 1
    const values = this.#values
    if (end - start !== values.payloadBytes) {
      throw new VerificationError(
        `the value at offset ${offset} of partition ${partition} has ${end - start} bytes, not ${values.payloadBytes}`,
      )
    }
    const producer = values.producerAt(view, start)
    const sequence = values.sequenceAt(view, start)
    if (this.#checksBytes && !values.isIntact(bytes, view, start, end)) {
      throw new VerificationError(
        `the value at offset ${offset} of partition ${partition} is not what producer ${producer} sent as number ${sequence}`,
      )
    }
    const last = progress.lastSequences[producer] ?? -1
    if (sequence <= last) {
      throw new VerificationError(
        `partition ${partition} has number ${sequence} of producer ${producer} at offset ${offset}, after ${last}`,
      )
    }
    progress.lastSequences[producer] = sequence
    const seen = (this.#seen[producer] ??= new NumberSet())
    if (!seen.add(sequence)) {
      throw new VerificationError(`number ${sequence} of producer ${producer} is there twice`)
    }
    if (this.#samples !== undefined && sequence % this.#samples.every === 0) {
      this.#checkReceipt(this.#samples, producer, sequence, partition, offset)
    }
    this.records++
    this.bytes += end - start
  }

  /**
   * @param sent how many records each producer has made, and had acknowledged
   * @throws VerificationError unless all of them, and no others, have been seen
   */
  finish(sent: readonly number[]): void {
    for (const [producer, count] of sent.entries()) {
      const seen = this.#seen[producer]?.size ?? 0
      if (seen !== count) {
        throw new VerificationError(
          `${count} records of producer ${producer} were sent, ${seen} have been read`,
        )
      }
    }
    const total = sent.reduce((sum, count) => sum + count, 0)
    if (this.records !== total) {
      throw new VerificationError(`${total} records were sent, ${this.records} have been read`)
    }
  }

  #checkReceipt(
    samples: ReceiptSamples,
    producer: number,
    sequence: number,
    partition: number,
    offset: number,
  ): void {
    const at = sequence / samples.every
    const promised = samples.partitions[producer]?.[at] ?? -1
    if (promised < 0) return
    const promisedOffset = samples.offsets[producer]?.[at] ?? -1
    if (promised !== partition || promisedOffset !== offset) {
      throw new VerificationError(
        `number ${sequence} of producer ${producer} lies at ${partition}:${offset}, its receipt said ${promised}:${promisedOffset}`,
      )
    }
    this.checkedReceipts++
  }

  #progressOf(partition: number): PartitionProgress {
    return (this.#partitions[partition] ??= { nextOffset: this.#fromOffset, lastSequences: [] })
  }
}
