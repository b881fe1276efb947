import { invariant } from '../common/assert.ts'
import type { Clock } from '../common/clock.ts'
import { BrokerError, toBrokerError } from '../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../common/offset.ts'
import { KIB, MIB } from '../common/units.ts'
import { BatchBuilder } from '../record/batch-builder.ts'
import { endOfBatch } from '../record/batch-header.ts'
import { RecordCursor } from '../record/record-cursor.ts'
import type { Partition } from '../topic/partition.ts'

/** One record of state: what is known of `key` from now on; null: nothing. */
export interface StateRecord {
  readonly key: string
  readonly value: string | null
}

export interface StateLogOptions {
  readonly partition: Partition
  readonly clock: Clock
  /** What damage in the log means: `halt` refuses to load (SEGMENT_QUARANTINED), `skip` goes on with what is whole, and says so. */
  readonly onCorruption: 'halt' | 'skip'
  /** Told of each range or batch that was passed over. */
  readonly onSkipped: (error: BrokerError) => void
}

const READ_BYTES: number = MIB
const MOST_BATCH_BYTES: number = 512 * KIB

/**
 * Batches under way at once. The log gathers what waits for a sync by itself; with several under way an engine that needs long is kept
 * busy, and what comes meanwhile gathers here: at 20 000 records/s some tens share a batch.
 */
const MOST_IN_FLIGHT = 4

interface PendingBatch {
  readonly promise: Promise<void>
  readonly resolve: () => void
  readonly reject: (error: BrokerError) => void
}

/**
 * The log under a state machine: one partition of an internal, compacted topic (STYLE §6). Whoever decides writes records here and applies
 * them at once; answers go out when {@link write} has resolved. Every batch names the offset at which it must lie and the epoch of whoever
 * decided, so that none is kept behind one that was lost, or after a newer owner has begun. A write that fails therefore ends the log's use:
 * what was applied since is undone by loading the state anew with another StateLog.
 */
export class StateLog {
  readonly #partition: Partition
  readonly #clock: Clock
  readonly #onCorruption: 'halt' | 'skip'
  readonly #onSkipped: (error: BrokerError) => void
  readonly #leaderEpoch: number
  #builder: BatchBuilder = newBuilder()
  #records = 0
  #nextOffset: Offset = toOffset(0)
  #pending: PendingBatch | undefined
  #inFlight = 0
  #isScheduled = false
  #failure: BrokerError | undefined
  /** Settles with the last batch that was sent. */
  #tail: Promise<void> = Promise.resolve()

  constructor(options: StateLogOptions) {
    this.#partition = options.partition
    this.#clock = options.clock
    this.#onCorruption = options.onCorruption
    this.#onSkipped = options.onSkipped
    this.#leaderEpoch = options.partition.leaderEpoch
  }

  /** Why nothing more can be written, or undefined. */
  get failure(): BrokerError | undefined {
    return this.#failure
  }

  /** Where the next record that is written will lie, if all before it are kept. */
  get position(): Offset {
    return toOffset(this.#nextOffset + this.#records)
  }

  /**
   * Calls `apply` for each record that the log holds, oldest first. To be called once, before the first write.
   * @throws BrokerError SEGMENT_QUARANTINED and CORRUPT_BATCH for damage, unless it is to be skipped; what reading and `apply` throw
   */
  async replay(apply: (key: string, value: string | null, offset: number) => void): Promise<void> {
    const partition = this.#partition
    const cursor = new RecordCursor({ reuseMemory: true })
    await partition.flush() // What an earlier use of this partition left on its way is part of the truth.
    let from = partition.logStartOffset
    const end = partition.highWatermark
    while (from < end) {
      try {
        const { chunks, nextOffset } = await partition.read(from, READ_BYTES)
        for (const chunk of chunks) this.#replayChunk(chunk, cursor, apply)
        invariant(nextOffset > from, 'a read below the high watermark moves on')
        from = nextOffset
      } catch (error) {
        from = this.#skip(from, end, error)
      }
    }
    this.#nextOffset = partition.logEndOffset
  }

  #replayChunk(
    chunk: Uint8Array,
    cursor: RecordCursor,
    apply: (key: string, value: string | null, offset: number) => void,
  ): void {
    for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
      cursor.reset(chunk, at)
      while (cursor.next()) {
        const { bytes, keyStart, keyEnd, valueStart, valueEnd, offset } = cursor
        if (keyStart < 0) continue // Nothing of ours: our records have keys.
        const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
        const value = valueStart < 0 ? null : text.toString('utf8', valueStart, valueEnd)
        apply(text.toString('utf8', keyStart, keyEnd), value, offset)
      }
    }
  }

  #skip(from: Offset, end: Offset, error: unknown): Offset {
    const isDamage =
      error instanceof BrokerError &&
      ['SEGMENT_QUARANTINED', 'CORRUPT_BATCH', 'INVALID_RECORD'].includes(error.code)
    if (!isDamage || this.#onCorruption === 'halt') throw error
    this.#onSkipped(error)
    const next = error.details['nextOffset']
    return isOffset(next) && next > from ? next : end
  }

  /**
   * Appends records, in order with all other calls. Resolves when they, and so all before them, are durable.
   * @throws BrokerError (as rejection) what the append throws, and {@link failure} from then on
   */
  write(records: readonly StateRecord[]): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    const nowMs = this.#clock.wallMs()
    let batch = (this.#pending ??= newBatch())
    for (const { key, value } of records) {
      if (!this.#builder.tryAppend(key, value ?? undefined, nowMs)) {
        this.#send()
        batch = this.#pending ??= newBatch()
        const fits = this.#builder.tryAppend(key, value ?? undefined, nowMs)
        invariant(fits, 'a record of state is smaller than a batch')
      }
      this.#records++
    }
    this.#schedule()
    return batch.promise
  }

  /** Resolves when all that has been written so far is durable. @throws BrokerError (as rejection) as {@link write} */
  settled(): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    return this.#pending?.promise ?? this.#tail
  }

  #schedule(): void {
    if (this.#isScheduled || this.#inFlight >= MOST_IN_FLIGHT) return
    this.#isScheduled = true
    // What is decided in one turn goes together.
    queueMicrotask(() => {
      this.#isScheduled = false
      if (this.#records > 0 && this.#inFlight < MOST_IN_FLIGHT) this.#send()
    })
  }

  #send(): void {
    const pending = this.#pending
    invariant(pending !== undefined && this.#records > 0, 'there is something to send')
    const batch = this.#builder.finish()
    const expectedOffset = this.#nextOffset
    this.#nextOffset = toOffset(expectedOffset + this.#records)
    this.#records = 0
    this.#pending = undefined
    this.#inFlight++
    this.#tail = pending.promise
    const options = { expectedOffset, leaderEpoch: this.#leaderEpoch }
    void this.#append(batch, pending, options)
  }

  /** Never rejects: the batch's promise tells. */
  async #append(
    batch: Uint8Array,
    pending: PendingBatch,
    options: { readonly expectedOffset: Offset; readonly leaderEpoch: number },
  ): Promise<void> {
    try {
      await this.#partition.append(batch, 'durable', options)
      // Also when a later one has failed meanwhile: this one is in the log, and will be found there.
      pending.resolve()
    } catch (error) {
      this.#fail(toBrokerError(error))
      pending.reject(this.#failure ?? toBrokerError(error))
    }
    this.#inFlight--
    if (this.#records > 0 && this.#failure === undefined) this.#schedule()
  }

  #fail(error: BrokerError): void {
    if (this.#failure !== undefined) return
    this.#failure = error
    const pending = this.#pending
    this.#pending = undefined
    this.#records = 0
    this.#builder = newBuilder()
    pending?.reject(error)
  }
}

function newBuilder(): BatchBuilder {
  return new BatchBuilder({ maxBytes: MOST_BATCH_BYTES, initialBytes: 4 * KIB })
}

function newBatch(): PendingBatch {
  let resolve: () => void = () => undefined
  let reject: (error: BrokerError) => void = () => undefined
  const promise = new Promise<void>((done, fail) => {
    resolve = done
    reject = fail
  })
  // Whoever wrote to it hears of its failure; nobody has to be waiting when it comes.
  promise.catch(() => undefined)
  return { promise, resolve, reject }
}
