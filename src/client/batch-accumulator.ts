import type { BufferPool } from '../bytes/buffer-pool.ts'
import { Ring } from '../bytes/ring.ts'
import { invariant } from '../common/assert.ts'
import type { Clock } from '../common/clock.ts'
import type { Offset } from '../common/offset.ts'
import { BatchBuilder, type RecordHeader } from '../record/batch-builder.ts'
import { stampProducer } from '../record/batch-header.ts'
import type { Compression, Receipt } from './api.ts'
import { MillraceError } from './errors.ts'

/** Who the broker takes us for (KIP-98). */
export interface ProducerIdentity {
  readonly producerId: number
  readonly epoch: number
}

/** What the broker said of a batch. */
export interface BatchAnswer {
  readonly baseOffset: number
  readonly appendTimeMs: number | undefined
  readonly duplicate: boolean
}

/** Counts down to the end of a flush. */
export class FlushWaiter {
  #left = 0
  #resolve: (() => void) | undefined
  readonly done: Promise<void>

  constructor() {
    this.done = new Promise((resolve) => {
      this.#resolve = resolve
    })
  }

  add(): void {
    this.#left++
  }

  settled(): void {
    this.#left--
    if (this.#left === 0) this.#resolve?.()
  }
}

/** Own class, so that every receipt has the same hidden class. */
class BatchReceipt implements Receipt {
  readonly topic: string
  readonly partition: number
  readonly offset: Offset
  readonly timestamp: number
  readonly duplicate: boolean

  constructor(
    topic: string,
    partition: number,
    offset: Offset,
    timestamp: number,
    duplicate: boolean,
  ) {
    this.topic = topic
    this.partition = partition
    this.offset = offset
    this.timestamp = timestamp
    this.duplicate = duplicate
  }
}

/**
 * The promises of one batch's sends. They are all made by `then` from one promise and one function: its reactions run in the order in which they
 * were registered, so that the k-th run makes the k-th receipt. Per send that is a promise and a reaction, about 100 bytes; `new Promise` with
 * its two resolving functions takes 230, and with 100 000 sends under way the garbage collector took half of the time.
 */
class Receipts {
  readonly #topic: string
  readonly #partition: number
  readonly #promise: Promise<void>
  readonly #take: () => Receipt
  /** Sends whose place in the batch, or whose timestamp, does not follow from the one before: few, so that a send adds nothing here. */
  readonly #jumps: Jump[] = []
  #count = 0
  /** Place and timestamp that the next send has unless it jumps; while answering, those of the next receipt. */
  #nextIndex = 0
  #timestampMs = Number.NaN
  #jumped = 0
  #resolve: () => void = () => undefined
  #reject: (error: MillraceError) => void = () => undefined
  #taken = 0
  #answer: BatchAnswer | undefined

  constructor(topic: string, partition: number) {
    this.#topic = topic
    this.#partition = partition
    this.#promise = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    this.#take = () => this.#next()
  }

  get count(): number {
    return this.#count
  }

  add(index: number, timestampMs: number): Promise<Receipt> {
    if (index !== this.#nextIndex || timestampMs !== this.#timestampMs) {
      this.#jumps.push({ at: this.#count, index, timestampMs })
      this.#timestampMs = timestampMs
    }
    this.#nextIndex = index + 1
    this.#count++
    return this.#promise.then(this.#take)
  }

  succeed(answer: BatchAnswer): void {
    this.#answer = answer
    this.#resolve()
  }

  fail(error: MillraceError): void {
    this.#reject(error)
  }

  #next(): Receipt {
    const place = this.#taken++
    const answer = this.#answer
    invariant(answer !== undefined, 'receipts are made of an answer')
    const jump = this.#jumps[this.#jumped]
    if (jump?.at === place) {
      this.#jumped++
      this.#nextIndex = jump.index
      this.#timestampMs = jump.timestampMs
    }
    return new BatchReceipt(
      this.#topic,
      this.#partition,
      // The broker's own number, checked on decoding; NaN for acks none.
      (answer.baseOffset + this.#nextIndex++) as Offset,
      answer.appendTimeMs ?? this.#timestampMs,
      answer.duplicate,
    )
  }
}

interface Jump {
  /** Of which send. */
  readonly at: number
  readonly index: number
  readonly timestampMs: number
}

class OpenBatch {
  createdMs = 0
  receipts: Receipts | undefined = undefined
  waiters: FlushWaiter[] = []
}

/** A finished batch and who waits for it. */
export class PendingBatch {
  readonly bytes: Uint8Array
  readonly count: number
  /** What it takes of the producer's buffer. */
  readonly bufferedBytes: number
  /** Monotonic time of its first record. */
  readonly createdMs: number
  readonly receipts: Receipts | undefined
  readonly waiters: FlushWaiter[]
  identity: ProducerIdentity | undefined
  baseSequence = -1
  /** True when it may be in the log although no answer said so. */
  isUncertain = false
  /** True when its records have been failed although its answer is still to come. */
  isAbandoned = false
  /** True when one behind it is in the log, so that it must be there too: it is sent again only to learn its offset. */
  isPinned = false
  /** Times it was sent. */
  attempts = 0

  constructor(
    bytes: Uint8Array,
    count: number,
    open: OpenBatch,
    bufferedBytes: number,
    identity: ProducerIdentity | undefined,
    baseSequence: number,
  ) {
    this.bytes = bytes
    this.count = count
    this.bufferedBytes = bufferedBytes
    this.createdMs = open.createdMs
    this.receipts = open.receipts
    this.waiters = open.waiters
    this.identity = identity
    this.baseSequence = baseSequence
  }
}

export interface AccumulatorOptions {
  readonly topic: string
  readonly partition: number
  readonly batchBytes: number
  readonly compression: Compression
  readonly maxInFlight: number
  readonly idempotent: boolean
  /** False with acks `none`. */
  readonly answered: boolean
  /** Batch buffers of the whole producer. */
  readonly pool: BufferPool
  readonly clock: Clock
}

/** Told of what happens in an accumulator. One object for the whole producer. */
export interface AccumulatorOwner {
  /** A batch has left the accumulator for good: `bufferedBytes` are free. */
  released(bufferedBytes: number): void
  /** Posted records of a batch have failed. */
  postFailed(error: MillraceError, records: number): void
}

/** KIP-98: sequences run from 0 to 2^31 - 1 and start again at 0. */
const SEQUENCE_MASK = 0x7fffffff

/** After these the broker wants to be met as somebody else: it has lost track of our sequences. */
const IDENTITY_LOST: ReadonlySet<string> = new Set([
  'OUT_OF_ORDER_SEQUENCE',
  'UNKNOWN_PRODUCER',
  'PRODUCER_FENCED',
])

/**
 * The records of one partition on their way out: an open batch that grows, sealed ones that wait (`ready`), and up to `maxInFlight` that have
 * been sent. No I/O and no timers: who sends, and when, is the producer's business.
 *
 * Order through failures: what must be sent again is held in `returned`, nothing new is sent until every batch under way has been
 * answered or lost, and then all go again in their old order. Sequences stay as they were, so that a batch that had arrived is recognised, unless
 * one before it is known to have failed for good: the ones behind it cannot have been taken (the broker wants sequences without gaps), and are
 * numbered anew from there. One that failed although a later one got in had arrived before: it keeps its number. When the broker has lost track of us, or we of it, the accumulator asks for a new identity.
 */
export class PartitionAccumulator {
  readonly topic: string
  readonly partition: number
  readonly #options: AccumulatorOptions
  readonly #owner: AccumulatorOwner
  readonly #builder: BatchBuilder
  #open: OpenBatch = new OpenBatch()
  #ready: Ring<PendingBatch> = new Ring()
  readonly #inFlight: Ring<PendingBatch> = new Ring()
  #returned: PendingBatch[] = []
  #identity: ProducerIdentity | undefined
  #nextSequence = 0
  /** One past the last sequence that is known to be in the log: what the first batch that may not be there must have. */
  #takenEnd = 0
  /** True when a round of failures is under way. */
  #isDisturbed = false
  #needsIdentity: boolean

  constructor(options: AccumulatorOptions, owner: AccumulatorOwner) {
    this.topic = options.topic
    this.partition = options.partition
    this.#options = options
    this.#owner = owner
    this.#needsIdentity = options.idempotent
    this.#builder = new BatchBuilder({
      maxBytes: options.batchBytes,
      compression: options.compression,
      pool: options.pool,
    })
  }

  get openRecords(): number {
    return this.#builder.count
  }

  /** Monotonic time of the open batch's first record. */
  get openedMs(): number {
    return this.#open.createdMs
  }

  get inFlight(): number {
    return this.#inFlight.length
  }

  /** True while no further batch may be under way, or one waits already. */
  get isFull(): boolean {
    return this.#inFlight.length >= this.#options.maxInFlight || this.#ready.length > 0
  }

  get readyBatches(): number {
    return this.#ready.length
  }

  get isIdle(): boolean {
    return this.#inFlight.length === 0 && this.#ready.length === 0 && this.#returned.length === 0
  }

  get isEmpty(): boolean {
    return this.isIdle && this.#builder.count === 0
  }

  /** True when a flush waits for the open batch. */
  get hasWaiters(): boolean {
    return this.#open.waiters.length > 0
  }

  /** True when sending must wait for {@link setIdentity}. */
  get needsIdentity(): boolean {
    return this.#needsIdentity
  }

  /** True when a round of failures is over: all under way has been answered, and `resume` may put things in order. */
  get isQuiesced(): boolean {
    return this.#inFlight.length === 0
  }

  /** True after a failure, until {@link resume}. Nothing new is sent meanwhile. */
  get isHalted(): boolean {
    return this.#isDisturbed
  }

  /**
   * Adds a record; seals the open batch first when it is full. Returns by how much the buffered bytes have grown.
   * The caller has checked that the record fits into a batch of its own.
   */
  append(
    key: Uint8Array | string | undefined,
    value: Uint8Array | string | undefined,
    timestampMs: number,
    headers: readonly RecordHeader[] | undefined,
  ): number {
    const builder = this.#builder
    let before = builder.count === 0 ? 0 : builder.sizeBytes
    if (!builder.tryAppend(key, value, timestampMs, headers)) {
      this.seal()
      before = 0
      builder.tryAppend(key, value, timestampMs, headers) // The first record is always taken.
    }
    if (builder.count === 1) this.#open.createdMs = this.#options.clock.monotonicMs()
    return builder.sizeBytes - before
  }

  /** A receipt, to come, for the record that has just been appended. */
  promiseReceipt(timestampMs: number): Promise<Receipt> {
    const open = this.#open
    open.receipts ??= new Receipts(this.topic, this.partition)
    return open.receipts.add(this.#builder.count - 1, timestampMs)
  }

  /** Closes the open batch, if it holds anything, and puts it behind those that wait. */
  seal(): void {
    const builder = this.#builder
    if (builder.count === 0) return
    const open = this.#open
    const size = builder.sizeBytes
    const count = builder.count
    const identity = this.#needsIdentity ? undefined : this.#identity
    let sequence = -1
    if (identity !== undefined) {
      sequence = this.#nextSequence
      builder.setProducer(identity.producerId, identity.epoch, sequence)
      this.#nextSequence = (sequence + count) & SEQUENCE_MASK
    }
    this.#open = new OpenBatch()
    this.#ready.push(new PendingBatch(builder.finish(), count, open, size, identity, sequence))
  }

  /** The next batch to send, which is then under way; undefined when there is none or it must wait. */
  takeNext(): PendingBatch | undefined {
    if (this.#needsIdentity || this.isHalted) return undefined
    if (this.#inFlight.length >= this.#options.maxInFlight) return undefined
    // The broker knows a repeat among the last five batches only: nothing may come between.
    if (this.#inFlight.peek()?.isPinned === true && this.#ready.peek()?.isPinned !== true) {
      return undefined
    }
    const batch = this.#ready.shift()
    if (batch === undefined) return undefined
    batch.attempts++
    this.#inFlight.push(batch)
    return batch
  }

  /** The producer has got an identity for this partition: everything that waits is numbered from 0 under it. */
  setIdentity(identity: ProducerIdentity): void {
    invariant(this.#inFlight.length === 0, 'identities change only when nothing is under way')
    this.#identity = identity
    this.#needsIdentity = false
    this.#takenEnd = 0
    this.#isDisturbed = true
    this.resume()
  }

  /** The batch was appended (or had been before). */
  succeeded(batch: PendingBatch, answer: BatchAnswer): void {
    this.#removeFirst(batch)
    if (this.#options.idempotent && !batch.isPinned) {
      this.#takenEnd = (batch.baseSequence + batch.count) & SEQUENCE_MASK
      // It got in although ones before it failed: so they had arrived at an earlier try, and their numbers are taken.
      for (const before of this.#returned) {
        before.isPinned = true
        before.isUncertain = true
      }
    }
    if (!batch.isAbandoned) batch.receipts?.succeed(answer)
    // Answered at the first try, so nothing in the transport refers to the bytes any more. Without an answer nobody knows.
    const { answered, batchBytes, pool } = this.#options
    const isFullSize = batch.bytes.buffer.byteLength >= batchBytes
    if (answered && batch.attempts === 1 && isFullSize) pool.give(batch.bytes)
    this.#leave(batch)
  }

  /** The broker refused the batch. Decides whether it goes again. */
  failed(batch: PendingBatch, error: MillraceError): void {
    this.#removeFirst(batch)
    if (!this.#options.idempotent) {
      if (error.retryable && error.noSideEffects && !batch.isAbandoned) {
        this.#isDisturbed = true
        this.#returned.push(batch)
      } else this.#settleFailed(batch, error)
      return
    }
    const isFirst = !this.isHalted && !this.#needsIdentity
    this.#isDisturbed = true
    if (IDENTITY_LOST.has(error.code)) {
      // Behind another failure this is only its echo. On its own, it means that the broker has lost track.
      if (isFirst) this.#needsIdentity = true
      if ((isFirst && batch.isUncertain) || batch.isAbandoned) this.#settleFailed(batch, error)
      else this.#returned.push(batch)
      return
    }
    if (error.retryable && !batch.isAbandoned && !isRepeatedCorruption(batch, error)) {
      if (!error.noSideEffects) batch.isUncertain = true
      this.#returned.push(batch)
      return
    }
    // It may have taken its sequence, now or at an earlier try: numbering cannot go on from it. Given to another batch, the broker would
    // take that one for a repeat and drop it.
    if (!error.noSideEffects || batch.isUncertain) this.#needsIdentity = true
    this.#settleFailed(batch, error)
  }

  /** The connection broke with everything from `batch` on unanswered. Called for each, in order. */
  lost(batch: PendingBatch, error: MillraceError): void {
    this.#removeFirst(batch)
    if (!this.#options.idempotent) {
      this.#settleFailed(batch, error)
      return
    }
    this.#isDisturbed = true
    if (batch.isAbandoned) {
      this.#needsIdentity = true
      this.#settleFailed(batch, error)
      return
    }
    batch.isUncertain = true
    this.#returned.push(batch)
  }

  /**
   * Ends a round of failures: what was returned goes to the front again, in order, numbered so that there is no gap. Does nothing more while an
   * identity is needed.
   */
  resume(): void {
    invariant(this.#inFlight.length === 0, 'a round of failures ends when nothing is under way')
    if (this.#returned.length > 0) {
      const ready = new Ring<PendingBatch>(this.#returned.length + this.#ready.length)
      for (const batch of this.#returned) ready.push(batch)
      for (const batch of this.#ready) ready.push(batch)
      this.#ready = ready
      this.#returned = []
    }
    this.#isDisturbed = false
    if (this.#needsIdentity) {
      this.#failUncertain()
      return
    }
    const identity = this.#identity
    if (identity === undefined) return
    let sequence = this.#takenEnd
    for (const batch of this.#ready) {
      if (batch.isPinned) continue
      if (batch.identity !== identity || batch.baseSequence !== sequence) {
        batch.identity = identity
        batch.baseSequence = sequence
        batch.isUncertain = false
        stampProducer(batch.bytes, 0, identity.producerId, identity.epoch, sequence)
      }
      sequence = (sequence + batch.count) & SEQUENCE_MASK
    }
    this.#nextSequence = sequence
  }

  /**
   * Fails what is older than `deadlineMs` (monotonic time of creation). A batch under way is given up but still waited for, since its
   * answer decides how numbering goes on.
   */
  expire(deadlineMs: number, makeError: (records: number) => MillraceError): void {
    for (const batch of this.#inFlight) {
      if (batch.createdMs > deadlineMs) return
      if (batch.isAbandoned) continue
      batch.isAbandoned = true
      this.#settleAll(batch, makeError(batch.count))
    }
    if (this.#returned.length > 0) {
      const kept: PendingBatch[] = []
      for (const batch of this.#returned) {
        if (batch.createdMs > deadlineMs) kept.push(batch)
        else this.#drop(batch, makeError(batch.count))
      }
      this.#returned = kept
    }
    for (let batch = this.#ready.peek(); batch !== undefined; batch = this.#ready.peek()) {
      if (batch.createdMs > deadlineMs) return
      this.#ready.shift()
      if (batch.identity !== undefined) this.#isDisturbed = true
      this.#drop(batch, makeError(batch.count))
    }
    if (this.#builder.count > 0 && this.#open.createdMs <= deadlineMs) this.seal()
  }

  /** Fails everything. What is under way is forgotten: call this only when its answers will not be handed in any more. */
  failAll(error: MillraceError): void {
    this.seal()
    for (const ring of [this.#inFlight, this.#ready]) {
      for (let batch = ring.shift(); batch !== undefined; batch = ring.shift()) {
        this.#settleFailed(batch, error)
      }
    }
    const returned = this.#returned
    this.#returned = []
    for (const batch of returned) this.#settleFailed(batch, error)
    this.#isDisturbed = false
    this.#needsIdentity = this.#options.idempotent
  }

  /** Makes `waiter` wait for everything that is in here now. */
  addWaiter(waiter: FlushWaiter): void {
    const add = (waiters: FlushWaiter[]): void => {
      waiter.add()
      waiters.push(waiter)
    }
    for (const batch of this.#inFlight) add(batch.waiters)
    for (const batch of this.#returned) add(batch.waiters)
    for (const batch of this.#ready) add(batch.waiters)
    if (this.#builder.count > 0) add(this.#open.waiters)
  }

  #removeFirst(batch: PendingBatch): void {
    const first = this.#inFlight.shift()
    invariant(first === batch, 'answers come in the order in which batches were sent')
  }

  /** A batch that carries a sequence goes without having been sent, or with its fate unknown. */
  #drop(batch: PendingBatch, error: MillraceError): void {
    if (batch.isUncertain) this.#needsIdentity = this.#options.idempotent
    this.#settleFailed(batch, error)
  }

  /** Batches that may have arrived under the old identity must not be sent under another: that would make two of them. */
  #failUncertain(): void {
    const kept = new Ring<PendingBatch>(this.#ready.length)
    for (const batch of this.#ready) {
      if (batch.isUncertain) {
        this.#settleFailed(
          batch,
          new MillraceError(
            'APPEND_TIMEOUT',
            `the broker lost track of this producer, and ${batch.count} records sent to ${this.topic}-${this.partition} may or may not be there`,
            { topic: this.topic, partition: this.partition },
          ),
        )
      } else kept.push(batch)
    }
    this.#ready = kept
  }

  #settleFailed(batch: PendingBatch, error: MillraceError): void {
    if (!batch.isAbandoned) this.#settleAll(batch, error)
    this.#leave(batch)
  }

  #settleAll(batch: PendingBatch, error: MillraceError): void {
    const posted = batch.count - (batch.receipts?.count ?? 0)
    batch.receipts?.fail(error)
    if (posted > 0) this.#owner.postFailed(error, posted)
  }

  #leave(batch: PendingBatch): void {
    this.#owner.released(batch.bufferedBytes)
    for (const waiter of batch.waiters) waiter.settled()
  }
}

/** Bytes that changed on their way are sent once more; if that does not help, it is not the way. */
function isRepeatedCorruption(batch: PendingBatch, error: MillraceError): boolean {
  return error.code === 'CORRUPT_BATCH' && batch.attempts > 1
}
