import { Ring } from '../bytes/ring.ts'
import { sleep } from '../common/clock.ts'
import type { Offset } from '../common/offset.ts'
import { MIB, SECOND_MS } from '../common/units.ts'
import type { SendRecord, SendResult } from '../gen/types.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { Receipt } from './api.ts'
import type { AccumulatorOwner, FlushWaiter } from './batch-accumulator.ts'
import { type Connection, retryAfterMs, STALE_ROUTE, type TopicRoute } from './connection.ts'
import { checkSize, noPartition } from './encoded-record.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import type { PartitionChooser } from './partitioner.ts'
import { Backoff } from './retry.ts'

/** Of one call. */
const MOST_RECORDS = 1000
const MOST_BYTES: number = MIB
/** After so long without an answer a call is given up, and what has timed out meanwhile is left out of the next one. */
const CALL_TIMEOUT_MS: number = 10 * SECOND_MS
const SEND_ID_BYTES = 16
/** Reserved for a waiting record beside its bytes: its objects and its promise. */
const ENTRY_BYTES = 200

/** A record on its way: encoded, its bytes our own. */
export interface DeferredRecord {
  readonly request: Omit<SendRecord, 'sendId'>
  /** At most what it takes in a batch. */
  readonly recordBytes: number
  /** Chooses the partition where the broker's rule (by the key, else by the dedupe id, else any) is not the producer's. */
  readonly placement: Uint8Array | undefined
}

/** Own class, so that every receipt has the same hidden class. */
class SendReceipt implements Receipt {
  readonly topic: string
  readonly partition: number
  readonly offset: Offset
  readonly timestamp: number
  readonly duplicate: boolean
  readonly delayId: string | undefined
  readonly deliverAt: number | undefined

  constructor(topic: string, result: SendResult) {
    const isWaiting = result.delayId !== ''
    this.topic = topic
    this.partition = result.partition
    this.offset = (result.offset ?? Number.NaN) as Offset // The broker's own number; NaN while the record waits.
    this.timestamp = result.timestampMs
    this.duplicate = result.duplicate
    this.delayId = isWaiting ? result.delayId : undefined
    this.deliverAt = isWaiting ? result.deliverAtMs : undefined
  }
}

class Entry {
  readonly request: SendRecord
  readonly recordBytes: number
  readonly placement: Uint8Array | undefined
  readonly createdMs: number
  /** True once it has its partition and its send id, which it keeps through all tries. */
  isPrepared = false
  isSettled = false
  waiters: FlushWaiter[] | undefined
  resolve: ((receipt: Receipt) => void) | undefined
  reject: ((error: MillraceError) => void) | undefined

  constructor(record: DeferredRecord, createdMs: number) {
    this.request = { ...record.request, sendId: NO_ID }
    this.recordBytes = record.recordBytes
    this.placement = record.placement
    this.createdMs = createdMs
  }

  /** What it takes of the producer's buffer. */
  get bytes(): number {
    return this.recordBytes + ENTRY_BYTES
  }
}

const NO_ID: Buffer = Buffer.alloc(0)

/** Told of what happens to the records. */
export interface DelayedSenderOwner extends AccumulatorOwner {
  /** A record has come, and takes so much of the buffer. */
  taken(bytes: number): void
  /** Some records have been settled. */
  progressed(): void
}

export interface DelayedSenderOptions {
  readonly topic: string
  readonly chooser: PartitionChooser
  readonly deliveryTimeoutMs: number
}

/**
 * The records of one topic that wait for a time or carry a dedupe id, on their way to QueueService.Send. One call is under way at a time; what comes
 * meanwhile goes into the next, so that the more comes, the more goes in each. Repeats are harmless: a record keeps its send id through all tries, and the
 * broker answers an id that it knows with what it has made of it.
 */
export class DelayedSender {
  readonly #connection: Connection
  readonly #options: DelayedSenderOptions
  readonly #owner: DelayedSenderOwner
  readonly #backoff: Backoff
  readonly #queue: Ring<Entry> = new Ring()
  /** Older than those in the queue: a call with them came to nothing. */
  #returned: Entry[] = []
  #inFlight: readonly Entry[] = []
  #isRunning = false
  /** Of the call, or the pause, that is under way. */
  #stop: AbortController = new AbortController()

  constructor(connection: Connection, options: DelayedSenderOptions, owner: DelayedSenderOwner) {
    this.#connection = connection
    this.#options = options
    this.#owner = owner
    this.#backoff = new Backoff(connection.random)
  }

  get isEmpty(): boolean {
    return this.#queue.length === 0 && this.#returned.length === 0 && this.#inFlight.length === 0
  }

  /**
   * Takes a record; with a receipt to come for those who want one.
   * @throws MillraceError RECORD_TOO_LARGE, UNKNOWN_PARTITION, INVALID_PARTITION when that is known already; else the record fails later
   */
  add(record: DeferredRecord, wantsReceipt: boolean): Promise<Receipt> | undefined {
    const route = this.#connection.findRoute(this.#options.topic)
    if (route !== undefined) this.#check(record, route)
    const entry = new Entry(record, this.#connection.clock.monotonicMs())
    this.#queue.push(entry)
    this.#owner.taken(entry.bytes)
    this.#start()
    if (!wantsReceipt) return undefined
    return new Promise((resolve, reject) => {
      entry.resolve = resolve
      entry.reject = reject
    })
  }

  /** Makes `waiter` wait for everything that is in here now. */
  addWaiter(waiter: FlushWaiter): void {
    // They are settled in order, or handed on to an older one.
    const last = this.#queue.last() ?? this.#returned.at(-1) ?? this.#inFlight.at(-1)
    if (last === undefined || last.isSettled) return
    waiter.add()
    ;(last.waiters ??= []).push(waiter)
  }

  /** Fails what is older than `deadlineMs` (monotonic time of creation). Of what is under way nobody knows what becomes of it. */
  expire(deadlineMs: number, makeError: () => MillraceError): void {
    const late: Entry[] = []
    for (const entry of this.#oldestFirst()) {
      if (entry.createdMs > deadlineMs) break
      if (!entry.isSettled) late.push(entry)
    }
    for (const entry of late) this.#fail(entry, makeError())
    if (this.#inFlight.length > 0 && this.#inFlight.every(({ isSettled }) => isSettled)) this.#end()
  }

  /** Fails everything, and ends what is under way. */
  failAll(error: MillraceError): void {
    const entries = [...this.#oldestFirst()]
    this.#returned = []
    this.#queue.clear()
    this.#end()
    for (const entry of entries) if (!entry.isSettled) this.#fail(entry, error)
  }

  *#oldestFirst(): Generator<Entry> {
    yield* this.#inFlight
    yield* this.#returned
    yield* this.#queue
  }

  /** Ends the call, or the pause, that is under way. */
  #end(): void {
    this.#stop.abort()
    this.#stop = new AbortController()
  }

  #check(record: Pick<DeferredRecord, 'request' | 'recordBytes'>, route: TopicRoute): void {
    const { topic } = this.#options
    const { partition } = record.request
    checkSize(topic, route.maxBatchBytes, record.recordBytes)
    if (partition !== undefined && route.leaders[partition] === undefined) {
      throw noPartition(topic, partition, route.leaders.length)
    }
  }

  /** At the end of the turn, and not at once: a loop that sends a thousand makes one call, not a thousand. */
  #start(): void {
    if (this.#isRunning) return
    this.#isRunning = true
    setImmediate(() => {
      // It never rejects.
      void this.#run()
    })
  }

  async #run(): Promise<void> {
    try {
      while (this.#queue.length > 0 || this.#returned.length > 0) {
        const pauseMs = await this.#step(this.#stop.signal)
        if (pauseMs > 0) await sleep(this.#connection.clock, pauseMs, this.#stop.signal)
      }
    } catch (error) {
      this.failAll(toMillraceError(error))
    } finally {
      this.#inFlight = []
      this.#isRunning = false
      this.#owner.progressed()
      // Whoever was told may have sent more.
      if (this.#queue.length > 0) this.#start()
    }
  }

  /** One call. Resolves to how long to wait before the next. */
  async #step(signal: AbortSignal): Promise<number> {
    const { topic } = this.#options
    let entries: readonly Entry[] = []
    try {
      const route = await this.#connection.getRoute(topic)
      entries = this.#next(route)
      if (entries.length === 0) return 0
      this.#inFlight = entries
      const { results } = await this.#connection.call(
        'Send',
        { topic, records: entries.map(({ request }) => request) },
        { isRead: true, signal, timeoutMs: this.#timeoutMs(entries) },
      )
      return this.#answered(entries, results)
    } catch (error) {
      const failure = toMillraceError(error)
      if (STALE_ROUTE.has(failure.code)) this.#connection.forgetRoute(topic)
      if (!failure.retryable && !signal.aborted) {
        // Without a call it was the topic that could not be found: that goes for all.
        if (entries.length === 0) this.failAll(failure)
        for (const entry of entries) if (!entry.isSettled) this.#fail(entry, failure)
        return 0
      }
      this.#returned = [...entries.filter(({ isSettled }) => !isSettled), ...this.#returned]
      if (signal.aborted) return 0
      return Math.max(this.#backoff.nextDelayMs(), retryAfterMs(failure))
    } finally {
      this.#inFlight = []
      this.#owner.progressed()
    }
  }

  /** What goes into the next call: the oldest, as many as fit. */
  #next(route: TopicRoute): readonly Entry[] {
    const entries: Entry[] = []
    let bytes = 0
    const returned = this.#returned
    this.#returned = []
    let used = 0
    for (;;) {
      const entry = returned[used] ?? this.#queue.peek()
      if (entry === undefined) break
      const isFull = entries.length === MOST_RECORDS || bytes + entry.bytes > MOST_BYTES
      if (isFull && entries.length > 0) break
      if (used < returned.length) used++
      else this.#queue.shift()
      if (entry.isSettled) continue
      try {
        this.#prepare(entry, route)
      } catch (error) {
        this.#fail(entry, toMillraceError(error), entries.at(-1))
        continue
      }
      entries.push(entry)
      bytes += entry.bytes
    }
    this.#returned = returned.slice(used)
    this.#giveIds(entries)
    return entries
  }

  #prepare(entry: Entry, route: TopicRoute): void {
    this.#check(entry, route)
    const { chooser } = this.#options
    if (entry.isPrepared || entry.placement === undefined) return
    // By its key the broker places it as we would, and knows of new partitions sooner.
    if (entry.request.record?.key !== undefined && !chooser.isCustom) return
    const partitions = route.leaders.length
    if (chooser.needsKey(partitions)) {
      entry.request.partition = chooser.choose(entry.placement, partitions)
    }
  }

  #giveIds(entries: readonly Entry[]): void {
    const fresh = entries.filter(({ isPrepared }) => !isPrepared)
    if (fresh.length === 0) return
    const bytes = this.#connection.random.bytes(SEND_ID_BYTES * fresh.length)
    const ids = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    for (const [i, entry] of fresh.entries()) {
      entry.request.sendId = ids.subarray(SEND_ID_BYTES * i, SEND_ID_BYTES * (i + 1))
      entry.isPrepared = true
    }
  }

  /** Not longer than the youngest of them may wait. */
  #timeoutMs(entries: readonly Entry[]): number {
    const { clock } = this.#connection
    const createdMs = entries.at(-1)?.createdMs ?? clock.monotonicMs()
    const leftMs = createdMs + this.#options.deliveryTimeoutMs - clock.monotonicMs()
    return Math.max(1, Math.min(CALL_TIMEOUT_MS, leftMs))
  }

  #answered(entries: readonly Entry[], results: readonly SendResult[]): number {
    const { topic } = this.#options
    const returned: Entry[] = []
    let waitMs = 0
    for (const [i, entry] of entries.entries()) {
      if (entry.isSettled) continue
      const result = results[i]
      if (result === undefined) {
        const message = `the broker answered ${results.length} of ${entries.length} records`
        this.#fail(entry, new MillraceError('INTERNAL_ERROR', message, { topic }), returned.at(-1))
      } else if (result.error === null) {
        this.#succeed(entry, new SendReceipt(topic, result), returned.at(-1))
      } else {
        const failure = toMillraceError(toBrokerErrorFromDetail(result.error))
        if (STALE_ROUTE.has(failure.code)) this.#connection.forgetRoute(topic)
        if (failure.retryable) {
          waitMs = Math.max(waitMs, retryAfterMs(failure))
          returned.push(entry)
        } else this.#fail(entry, failure, returned.at(-1))
      }
    }
    if (returned.length === 0) {
      this.#backoff.reset()
      return 0
    }
    this.#returned = [...returned, ...this.#returned]
    return Math.max(this.#backoff.nextDelayMs(), waitMs)
  }

  /** `before`: the nearest older one that is still to be settled, if there is one. */
  #succeed(entry: Entry, receipt: Receipt, before: Entry | undefined): void {
    entry.resolve?.(receipt)
    this.#leave(entry, before)
  }

  #fail(entry: Entry, error: MillraceError, before?: Entry): void {
    if (entry.reject === undefined) this.#owner.postFailed(error, 1)
    else entry.reject(error)
    this.#leave(entry, before)
  }

  #leave(entry: Entry, before: Entry | undefined): void {
    entry.isSettled = true
    this.#owner.released(entry.bytes)
    const { waiters } = entry
    entry.waiters = undefined
    if (waiters === undefined) return
    if (before === undefined) for (const waiter of waiters) waiter.settled()
    else before.waiters = [...(before.waiters ?? []), ...waiters]
  }
}
