import { type CancelTimer, type Clock, holdProcess } from '../common/clock.ts'
import type { RecordHeader } from '../record/batch-builder.ts'
import { BATCH_HEADER_BYTES } from '../record/batch-header.ts'
import type { NewRecord, Producer, ProducerOptions, Receipt } from './api.ts'
import { FlushWaiter, type ProducerIdentity } from './batch-accumulator.ts'
import { findTextEncoder, type Codec, type Topic } from './codecs.ts'
import { type Connection, retryAfterMs, STALE_ROUTE, type TopicRoute } from './connection.ts'
import {
  checkSize,
  copyBytes,
  copyOf,
  type Encoded,
  encodeHeaders,
  measureRecord,
  noPartition,
  type Placement,
  RECORD_OVERHEAD_BYTES,
  toSendError,
} from './encoded-record.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { ProduceLink } from './produce-link.ts'
import { Lane, LaneAccumulator, type Parked } from './producer-lane.ts'
import { type ProducerSettings, toSettings } from './producer-settings.ts'
import { toDeferredRecord, encodeJobHeaders, findDeferral, hasSendOptions } from './send-options.ts'

/** A UTF-16 unit takes at most three bytes of UTF-8. */
const MOST_BYTES_PER_UNIT = 3
/** How long closing waits for the broker to have taken what was sent without wanting an answer. */
const LAST_WORD_MS = 5000
const RECORDS_PER_STAMP = 64
const EXPIRY_CHECK_MS = 1_000

/** A topic handle as this producer sees it. */
interface Handle {
  readonly lane: Lane
  readonly encodeValue: (value: unknown) => Uint8Array | string
  readonly encodeKey: (key: unknown) => Uint8Array | string
}

/**
 * Batches records by partition and sends the batches over one stream per broker. Measured on two cores with the broker on the other one: see
 * bench/. What happens per record is {@link LogProducer.send} down to `PartitionAccumulator.append`; everything else is per batch.
 */
export class LogProducer implements Producer {
  readonly #connection: Connection
  readonly #clock: Clock
  readonly #settings: ProducerSettings
  readonly #onClosed: (producer: LogProducer) => void
  readonly #handles: Map<unknown, Handle> = new Map()
  readonly #lanes: Map<string, Lane> = new Map()
  readonly #links: Map<number, ProduceLink<LaneAccumulator>> = new Map()
  readonly #listeners: Set<(error: MillraceError) => void> = new Set()
  readonly #lingering: Set<LaneAccumulator> = new Set()
  readonly #pauses: Set<CancelTimer> = new Set()
  #lastTopic: unknown
  #lastHandle: Handle | undefined
  #scheduled: LaneAccumulator[] = []
  #stampMs = 0
  #stampsLeft = 0
  #isStampEnding = false
  #buffered = 0
  #parkedBytes = 0
  #parkedRecords = 0
  #readyWaiters: (() => void)[] = []
  #sharedIdentity: Promise<ProducerIdentity> | undefined
  #firstPostError: MillraceError | undefined
  #failedPosts = 0
  #cancelLinger: CancelTimer | undefined
  #cancelExpiry: CancelTimer | undefined
  #letProcessEnd: CancelTimer | undefined
  /** Takes no more records. */
  #isClosed = false
  /** Sends nothing any more. */
  #isOver = false
  #closing: Promise<void> | undefined

  constructor(
    connection: Connection,
    options: ProducerOptions,
    onClosed: (producer: LogProducer) => void,
  ) {
    this.#connection = connection
    this.#clock = connection.clock
    this.#settings = toSettings(options)
    this.#onClosed = onClosed
  }

  send<V, K>(to: Topic<V, K>, record: NewRecord<V, K>): Promise<Receipt> {
    try {
      const receipt = this.#accept(to, record, true)
      // `accept` promises a receipt to those who ask for one.
      return receipt as Promise<Receipt>
    } catch (error) {
      return Promise.reject(toSendError(error, to.name))
    }
  }

  post<V, K>(to: Topic<V, K>, record: NewRecord<V, K>): boolean {
    if (this.#buffered + this.#parkedBytes >= 2 * this.#settings.bufferBytes) {
      throw new MillraceError(
        'QUOTA_EXCEEDED',
        `${this.#buffered + this.#parkedBytes} bytes wait to be answered, twice what the buffer holds: await ready() when post() answers false`,
        { limit: this.#settings.bufferBytes, actual: this.#buffered + this.#parkedBytes },
      )
    }
    try {
      void this.#accept(to, record, false) // Undefined: no receipt was asked for.
    } catch (error) {
      throw toSendError(error, to.name)
    }
    return this.#hasRoom
  }

  async sendAll<V, K>(
    to: Topic<V, K>,
    records: Iterable<NewRecord<V, K>> | AsyncIterable<NewRecord<V, K>>,
  ): Promise<readonly Receipt[]> {
    const receipts: Receipt[] = []
    const errors: MillraceError[] = []
    const pending = new FlushWaiter()
    pending.add() // Ours, until all have been handed over.
    let index = 0
    const take = (record: NewRecord<V, K>): void => {
      const place = index++
      pending.add()
      this.send(to, record)
        .then(
          (receipt) => {
            receipts[place] = receipt
            return undefined
          },
          (error: unknown) => {
            const cause = toMillraceError(error)
            const details = { ...cause.details, index: place }
            errors.push(new MillraceError(cause.code, cause.message, details, cause))
            return undefined
          },
        )
        .finally(() => pending.settled())
    }
    if (Symbol.asyncIterator in records) {
      for await (const record of records) {
        take(record)
        if (!this.#hasRoom) await this.ready()
      }
    } else {
      for (const record of records) {
        take(record)
        if (!this.#hasRoom) await this.ready()
      }
    }
    pending.settled()
    await pending.done
    if (errors.length > 0) {
      throw new AggregateError(errors, `${errors.length} of ${index} records were not written`)
    }
    return receipts
  }

  ready(): Promise<void> {
    if (this.#hasRoom || this.#isClosed) return Promise.resolve()
    return new Promise((resolve) => this.#readyWaiters.push(resolve))
  }

  async flush(options: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
    const waiter = new FlushWaiter()
    waiter.add() // Ours, so that an empty producer is flushed too.
    for (const lane of this.#lanes.values()) {
      const lastParked = lane.parked.last()
      if (lastParked !== undefined) {
        waiter.add()
        ;(lastParked.waiters ??= []).push(waiter)
      }
      for (const accumulator of lane.accumulators) {
        if (accumulator.isEmpty) continue
        accumulator.addWaiter(waiter)
        this.#seal(accumulator)
        this.#pump(accumulator)
      }
      lane.delayed.addWaiter(waiter)
    }
    waiter.settled()
    await abortable(waiter.done, options.signal)
    const error = this.#firstPostError
    if (error === undefined) return
    const failedRecords = this.#failedPosts
    this.#firstPostError = undefined
    this.#failedPosts = 0
    throw new MillraceError(error.code, error.message, { ...error.details, failedRecords }, error)
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  /** Gives up: everything unanswered fails with `error`. */
  abandon(error: MillraceError): void {
    this.#isClosed = true
    this.#letGo()
    for (const lane of this.#lanes.values()) {
      this.#failParked(lane, error)
      for (const accumulator of lane.accumulators) accumulator.failAll(error)
      lane.delayed.failAll(error)
    }
    this.#wakeReady()
    this.#onClosed(this)
  }

  on(_event: 'error', listener: (error: MillraceError) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  // ── per record ──────────────────────────────────────────────────────────────────────────────────────────────

  get #hasRoom(): boolean {
    return this.#buffered + this.#parkedBytes < this.#settings.bufferBytes
  }

  #accept<V, K>(
    to: Topic<V, K>,
    record: NewRecord<V, K>,
    wantsReceipt: boolean,
  ): Promise<Receipt> | undefined {
    if (this.#isClosed) throw new MillraceError('CLOSED', 'the producer has been closed')
    const handle =
      to === this.#lastTopic && this.#lastHandle !== undefined
        ? this.#lastHandle
        : this.#getHandle(to)
    const lane = handle.lane
    const given = record.value
    if (given === undefined) {
      throw new MillraceError('INVALID_RECORD', 'a record has no value; null makes a tombstone')
    }
    const value = given === null ? undefined : handle.encodeValue(given)
    const key = record.key === undefined ? undefined : handle.encodeKey(record.key)
    let placement: Placement = record.partition
    let headers: readonly RecordHeader[] | undefined
    if (hasSendOptions(record)) {
      headers = encodeJobHeaders(record)
      // Records of one ordering key can be kept in order only where they lie in one partition.
      if (key === undefined && record.orderingKey !== undefined) {
        placement ??= Buffer.from(record.orderingKey, 'utf8')
      }
      const deferral = findDeferral(record)
      if (deferral !== undefined) {
        const deferred = toDeferredRecord(record, deferral, key, value, headers, placement)
        return lane.delayed.add(deferred, wantsReceipt)
      }
    } else if (record.headers !== undefined) headers = encodeHeaders(record.headers)
    const timestampMs = record.timestamp === undefined ? this.#nowMs() : record.timestamp.getTime()
    const mustWait =
      lane.route === undefined ||
      lane.parked.length > 0 ||
      (wantsReceipt && this.#buffered >= this.#settings.bufferBytes)
    if (mustWait) {
      if (!wantsReceipt) {
        this.#park(lane, key, value, timestampMs, headers, placement, undefined)
        return undefined
      }
      return new Promise((resolve) => {
        this.#park(lane, key, value, timestampMs, headers, placement, resolve)
      })
    }
    const accumulator = this.#append(lane, key, value, timestampMs, headers, placement)
    return wantsReceipt ? accumulator.promiseReceipt(timestampMs) : undefined
  }

  /**
   * The wall clock, looked at once for up to 64 records of one turn of the event loop: a look costs 60 ns, a twentieth of all that a record
   * costs (bench produce --cpu-prof).
   */
  #nowMs(): number {
    if (this.#stampsLeft > 0) {
      this.#stampsLeft--
      return this.#stampMs
    }
    this.#stampMs = this.#clock.wallMs()
    this.#stampsLeft = RECORDS_PER_STAMP - 1
    if (!this.#isStampEnding) {
      this.#isStampEnding = true
      setImmediate(this.#endStamp)
    }
    return this.#stampMs
  }

  readonly #endStamp = (): void => {
    this.#isStampEnding = false
    this.#stampsLeft = 0
  }

  #append(
    lane: Lane,
    key: Encoded,
    value: Encoded,
    timestampMs: number,
    headers: readonly RecordHeader[] | undefined,
    placement: Placement,
  ): LaneAccumulator {
    const accumulators = lane.accumulators
    let partition: number
    if (placement !== undefined) {
      partition =
        typeof placement === 'number'
          ? placement
          : lane.chooser.choose(placement, accumulators.length)
    } else if (typeof key !== 'string') partition = lane.chooser.choose(key, accumulators.length)
    else if (lane.chooser.needsKey(accumulators.length)) {
      // Hashed as bytes, so written as bytes: the text is encoded once.
      key = Buffer.from(key, 'utf8')
      partition = lane.chooser.choose(key, accumulators.length)
    } else partition = lane.chooser.choose(undefined, accumulators.length)
    const accumulator = accumulators[partition]
    if (accumulator === undefined) throw noPartition(lane.topic, partition, accumulators.length)
    const units = (key?.length ?? 0) + (value?.length ?? 0)
    // Nearly all records are far too small to be too large: these are not measured.
    if (headers !== undefined || units * MOST_BYTES_PER_UNIT > lane.surelyFitsBytes) {
      const limit = lane.route?.maxBatchBytes ?? 0
      checkSize(lane.topic, limit, measureRecord(key, value, headers))
    }
    const isQuiet = this.#buffered === 0
    this.#buffered += accumulator.append(key, value, timestampMs, headers)
    if (accumulator.openRecords === 1) this.#opened(accumulator, isQuiet)
    return accumulator
  }

  // ── per batch ───────────────────────────────────────────────────────────────────────────────────────────────

  /** A record has begun a batch: the one before it may go, and this one waits for the end of the turn or for company. */
  #opened(accumulator: LaneAccumulator, isQuiet: boolean): void {
    if (isQuiet) this.#woke()
    const { lane } = accumulator
    const route = this.#connection.findRoute(lane.topic)
    if (route !== undefined && route !== lane.route) this.#applyRoute(lane, route)
    if (accumulator.readyBatches > 0) {
      lane.sealed(accumulator.partition)
      this.#pump(accumulator)
    }
    if (accumulator.isScheduled) return
    if (this.#settings.lingerMs === 0 || accumulator.isIdle) {
      accumulator.isScheduled = true
      // The end of the turn, and not at once: a loop that sends a thousand makes one batch, not a thousand.
      if (this.#scheduled.push(accumulator) === 1) setImmediate(this.#runScheduled)
      return
    }
    this.#lingering.add(accumulator)
    if (this.#cancelLinger === undefined) this.#scheduleLinger(this.#settings.lingerMs)
  }

  readonly #runScheduled = (): void => {
    const scheduled = this.#scheduled
    this.#scheduled = []
    for (const accumulator of scheduled) {
      accumulator.isScheduled = false
      this.#seal(accumulator)
      this.#pump(accumulator)
    }
  }

  #scheduleLinger(delayMs: number): void {
    this.#cancelLinger = this.#clock.schedule(delayMs, () => {
      this.#cancelLinger = undefined
      const nowMs = this.#clock.monotonicMs()
      let nextMs = Number.POSITIVE_INFINITY
      for (const accumulator of this.#lingering) {
        const leftMs = accumulator.openedMs + this.#settings.lingerMs - nowMs
        if (accumulator.openRecords > 0 && leftMs > 0) {
          nextMs = Math.min(nextMs, leftMs)
          continue
        }
        if (accumulator.openRecords > 0 && accumulator.isFull) {
          // It could not be sent, so it may as well grow: sealed now, five small batches a round trip would be all that ever goes.
          nextMs = Math.min(nextMs, this.#settings.lingerMs)
          continue
        }
        this.#lingering.delete(accumulator)
        this.#seal(accumulator)
        this.#pump(accumulator)
      }
      if (this.#lingering.size > 0) this.#scheduleLinger(Math.max(1, nextMs))
    })
  }

  #seal(accumulator: LaneAccumulator): void {
    if (accumulator.openRecords === 0) return
    accumulator.seal()
    accumulator.lane.sealed(accumulator.partition)
  }

  /** Sends what may be sent. */
  #pump(accumulator: LaneAccumulator): void {
    if (accumulator.isPaused || this.#isOver) return
    if (accumulator.needsIdentity) {
      if (accumulator.isQuiesced && accumulator.readyBatches > 0) this.#askIdentity(accumulator)
      return
    }
    const { lane } = accumulator
    const route = lane.route
    if (route === undefined || accumulator.readyBatches === 0) return
    // Batches under way hold the partition to their stream: on another one, later ones could overtake them.
    const link =
      accumulator.inFlight > 0 && accumulator.link !== undefined
        ? accumulator.link
        : this.#linkTo(route.leaders[accumulator.partition] ?? -1)
    accumulator.link = link
    const { acks } = this.#settings
    for (;;) {
      if (!link.isWritable) {
        link.waitFor(accumulator)
        return
      }
      const batch = accumulator.takeNext()
      if (batch === undefined) return
      link.send(accumulator, batch, {
        topic: lane.topic,
        partition: accumulator.partition,
        acks,
        batch: batch.bytes,
        records: undefined,
        compression: 'none',
        expectedOffset: undefined,
        topicId: route.topicId,
      })
      // Not at once: it may append what was parked, in the midst of the append that has led here.
      if (acks === 'none') queueMicrotask(() => this.#afterRelease())
    }
  }

  #linkTo(brokerId: number): ProduceLink<LaneAccumulator> {
    let link = this.#links.get(brokerId)
    if (link === undefined) {
      link = new ProduceLink<LaneAccumulator>(
        () => {
          const channel = this.#connection.leader(brokerId)
          return { call: channel.produce(), address: channel.address }
        },
        {
          mayWrite: (accumulator) => this.#pump(accumulator),
          progressed: (accumulator, error) => this.#progressed(accumulator, error),
          refusedUnasked: (error) => this.#postFailed(error, 1),
        },
        this.#clock,
        this.#connection.random,
      )
      this.#links.set(brokerId, link)
    }
    return link
  }

  #progressed(accumulator: LaneAccumulator, error: MillraceError | undefined): void {
    if (error === undefined) accumulator.backoff.reset()
    else if (STALE_ROUTE.has(error.code)) this.#connection.forgetRoute(accumulator.topic)
    if (accumulator.isHalted || accumulator.needsIdentity) {
      if (accumulator.isQuiesced) this.#recover(accumulator, error)
    } else {
      // What gathered while the last batch was under way goes now, all together.
      if (accumulator.isIdle || this.#isOverdue(accumulator)) this.#seal(accumulator)
      this.#pump(accumulator)
    }
    this.#afterRelease()
  }

  /** Has lingered long enough, and may go now. */
  #isOverdue(accumulator: LaneAccumulator): boolean {
    if (accumulator.openRecords === 0 || accumulator.isFull) return false
    return this.#clock.monotonicMs() - accumulator.openedMs >= this.#settings.lingerMs
  }

  /** Everything under way has been answered or lost, and something failed: waits a moment, then puts it in order and goes on. */
  #recover(accumulator: LaneAccumulator, error: MillraceError | undefined): void {
    if (accumulator.isPaused || this.#isOver) return
    accumulator.isPaused = true
    const delayMs = Math.max(
      accumulator.backoff.nextDelayMs(),
      error === undefined ? 0 : retryAfterMs(error),
    )
    this.#pause(delayMs, () => {
      this.#resume(accumulator).catch((failure: unknown) => {
        this.#connection.logger?.warn(`${accumulator.topic}-${accumulator.partition} waits`, {
          error: failure,
        })
        accumulator.isPaused = false
        this.#recover(accumulator, undefined)
      })
    })
  }

  async #resume(accumulator: LaneAccumulator): Promise<void> {
    const { lane } = accumulator
    if (this.#connection.findRoute(lane.topic) === undefined) {
      try {
        this.#applyRoute(lane, await this.#connection.getRoute(lane.topic))
      } catch (error) {
        const failure = toMillraceError(error)
        // Gone for good: the topic was deleted, or the client closed.
        if (!failure.retryable) {
          accumulator.isPaused = false
          accumulator.failAll(failure)
          this.#afterRelease()
          return
        }
        throw failure
      }
    }
    accumulator.isPaused = false
    accumulator.resume()
    this.#afterRelease()
    this.#pump(accumulator)
  }

  #askIdentity(accumulator: LaneAccumulator): void {
    if (accumulator.isAskingIdentity) return
    accumulator.isAskingIdentity = true
    // All partitions begin under one identity; one that has lost it gets a fresh one for itself, which disturbs nobody else.
    const asking = accumulator.hadIdentity ? this.#initProducer() : this.#getSharedIdentity()
    this.#takeIdentity(accumulator, asking).catch((error: unknown) => {
      const failure = toMillraceError(error)
      if (!failure.retryable) accumulator.failAll(failure)
      else if (!this.#isOver) {
        accumulator.isPaused = true
        this.#pause(accumulator.backoff.nextDelayMs(), () => {
          accumulator.isPaused = false
          this.#pump(accumulator)
        })
      }
      this.#afterRelease()
    })
  }

  async #takeIdentity(
    accumulator: LaneAccumulator,
    asking: Promise<ProducerIdentity>,
  ): Promise<void> {
    try {
      const identity = await asking
      if (this.#isOver) return
      accumulator.hadIdentity = true
      accumulator.setIdentity(identity)
    } finally {
      accumulator.isAskingIdentity = false
    }
    this.#pump(accumulator)
  }

  #getSharedIdentity(): Promise<ProducerIdentity> {
    if (this.#sharedIdentity === undefined) {
      const asking = this.#initProducer()
      this.#sharedIdentity = asking
      asking.catch(() => {
        this.#sharedIdentity = undefined // Who waits for it sees the failure; the next one asks again.
      })
    }
    return this.#sharedIdentity
  }

  async #initProducer(): Promise<ProducerIdentity> {
    const { producerId, producerEpoch } = await this.#connection.call(
      'InitProducer',
      { producerId: 0, producerEpoch: 0 },
      { isRead: true }, // An id that is handed out twice over is one that nobody uses.
    )
    return { producerId, epoch: producerEpoch }
  }

  // ── topics ──────────────────────────────────────────────────────────────────────────────────────────────────

  #getHandle<V, K>(to: Topic<V, K>): Handle {
    let handle = this.#handles.get(to)
    if (handle === undefined) {
      let lane = this.#lanes.get(to.name)
      if (lane === undefined) {
        lane = new Lane(to.name, this.#connection, this.#settings, {
          released: (bytes) => {
            this.#buffered -= bytes
          },
          postFailed: (error, records) => this.#postFailed(error, records),
          taken: (bytes) => {
            if (this.#buffered === 0 && this.#parkedRecords === 0) this.#woke()
            this.#buffered += bytes
          },
          progressed: () => this.#afterRelease(),
        })
        this.#lanes.set(to.name, lane)
      }
      const route = this.#connection.findRoute(to.name)
      if (lane.route === undefined && route !== undefined) this.#applyRoute(lane, route)
      handle = { lane, encodeValue: encoderOf(to.value), encodeKey: encoderOf(to.key) }
      this.#handles.set(to, handle)
    }
    this.#lastTopic = to
    this.#lastHandle = handle
    return handle
  }

  #applyRoute(lane: Lane, route: TopicRoute): void {
    lane.route = route
    const limit = route.maxBatchBytes > 0 ? route.maxBatchBytes : this.#settings.batchBytes
    const batchBytes = Math.min(this.#settings.batchBytes, limit)
    lane.surelyFitsBytes = limit - BATCH_HEADER_BYTES - RECORD_OVERHEAD_BYTES
    for (let partition = lane.accumulators.length; partition < route.leaders.length; partition++) {
      lane.accumulators.push(new LaneAccumulator(lane, partition, batchBytes, this.#settings))
    }
  }

  /** Asks for the topic's partitions, for as long as records wait for them. */
  async #load(lane: Lane): Promise<void> {
    lane.isLoading = true
    const backoff = lane.newBackoff()
    try {
      while (lane.route === undefined && lane.parked.length > 0 && !this.#isOver) {
        try {
          this.#applyRoute(lane, await this.#connection.getRoute(lane.topic))
        } catch (error) {
          const failure = toMillraceError(error)
          if (!failure.retryable) {
            this.#failParked(lane, failure)
            return
          }
          await new Promise<void>((resolve) => this.#pause(backoff.nextDelayMs(), resolve))
        }
      }
    } finally {
      lane.isLoading = false
    }
    this.#unpark(lane)
  }

  // ── records that wait for their topic or for room ───────────────────────────────────────────────────────────

  #park(
    lane: Lane,
    key: Encoded,
    value: Encoded,
    timestampMs: number,
    headers: readonly RecordHeader[] | undefined,
    placement: Placement,
    resolve: Parked['resolve'],
  ): void {
    const bytes = (key?.length ?? 0) + (value?.length ?? 0) + RECORD_OVERHEAD_BYTES
    if (this.#buffered === 0 && this.#parkedRecords === 0) this.#woke()
    lane.parked.push({
      key: copyOf(key),
      value: copyOf(value),
      timestampMs,
      headers: headers?.map((header) => ({ key: header.key, value: copyBytes(header.value) })),
      placement,
      resolve,
      bytes,
      createdMs: this.#clock.monotonicMs(),
      waiters: undefined,
    })
    this.#parkedBytes += bytes
    this.#parkedRecords++
    if (lane.route === undefined && !lane.isLoading) {
      this.#load(lane).catch((error: unknown) => this.#failParked(lane, toMillraceError(error)))
    }
  }

  #unpark(lane: Lane): void {
    if (lane.route === undefined) return
    while (lane.parked.length > 0 && this.#buffered < this.#settings.bufferBytes) {
      const record = this.#takeParked(lane)
      if (record === undefined) return
      const { key, value, timestampMs, headers, placement, resolve, waiters } = record
      try {
        const accumulator = this.#append(lane, key, value, timestampMs, headers, placement)
        resolve?.(accumulator.promiseReceipt(timestampMs))
        // All that was parked before it lies in these batches by now, or has been answered.
        for (const waiter of waiters ?? []) {
          for (const other of lane.accumulators) if (!other.isEmpty) other.addWaiter(waiter)
          waiter.settled()
        }
      } catch (error) {
        this.#failRecord(record, toSendError(error, lane.topic))
      }
    }
    // A flush that waits for a parked record wants it sent, not gathered.
    for (const accumulator of lane.accumulators) {
      if (accumulator.hasWaiters) {
        this.#seal(accumulator)
        this.#pump(accumulator)
      }
    }
  }

  #takeParked(lane: Lane): Parked | undefined {
    const record = lane.parked.shift()
    if (record === undefined) return undefined
    this.#parkedBytes -= record.bytes
    this.#parkedRecords--
    return record
  }

  #failParked(lane: Lane, error: MillraceError): void {
    for (let record = this.#takeParked(lane); record !== undefined;) {
      this.#failRecord(record, error)
      record = this.#takeParked(lane)
    }
    this.#afterRelease()
  }

  #failRecord(record: Parked, error: MillraceError): void {
    if (record.resolve === undefined) this.#postFailed(error, 1)
    else record.resolve(Promise.reject(error))
    for (const waiter of record.waiters ?? []) waiter.settled()
  }

  // ── housekeeping ────────────────────────────────────────────────────────────────────────────────────────────

  /** There is something to do again. */
  #woke(): void {
    this.#letProcessEnd ??= holdProcess()
    if (this.#cancelExpiry === undefined) this.#scheduleExpiry()
  }

  #afterRelease(): void {
    if (this.#parkedRecords > 0 && this.#buffered < this.#settings.bufferBytes) {
      for (const lane of this.#lanes.values()) {
        if (lane.parked.length > 0) this.#unpark(lane)
      }
    }
    if (this.#readyWaiters.length > 0 && this.#hasRoom) this.#wakeReady()
    if (this.#buffered === 0 && this.#parkedRecords === 0) {
      this.#letProcessEnd?.()
      this.#letProcessEnd = undefined
      this.#cancelExpiry?.()
      this.#cancelExpiry = undefined
    }
  }

  #wakeReady(): void {
    const waiters = this.#readyWaiters
    this.#readyWaiters = []
    for (const wake of waiters) wake()
  }

  #scheduleExpiry(): void {
    const everyMs = Math.max(1, Math.min(EXPIRY_CHECK_MS, this.#settings.deliveryTimeoutMs / 4))
    this.#cancelExpiry = this.#clock.schedule(everyMs, () => {
      this.#scheduleExpiry()
      this.#expire()
    })
  }

  #expire(): void {
    const { deliveryTimeoutMs } = this.#settings
    const deadlineMs = this.#clock.monotonicMs() - deliveryTimeoutMs
    for (const lane of this.#lanes.values()) {
      const makeError = (): MillraceError =>
        new MillraceError(
          'APPEND_TIMEOUT',
          `a record for ${lane.topic} was not answered within ${deliveryTimeoutMs} ms`,
          { topic: lane.topic, timeoutMs: deliveryTimeoutMs },
        )
      for (const accumulator of lane.accumulators) {
        if (accumulator.isEmpty) continue
        accumulator.expire(deadlineMs, makeError)
        if (accumulator.isHalted && accumulator.isQuiesced) this.#recover(accumulator, undefined)
      }
      lane.delayed.expire(deadlineMs, makeError)
      for (let first = lane.parked.peek(); first !== undefined; first = lane.parked.peek()) {
        if (first.createdMs > deadlineMs) break
        this.#takeParked(lane)
        this.#failRecord(first, makeError())
      }
    }
    this.#afterRelease()
  }

  #pause(delayMs: number, then: () => void): void {
    const cancel = this.#clock.schedule(delayMs, () => {
      this.#pauses.delete(cancel)
      then()
    })
    this.#pauses.add(cancel)
  }

  #postFailed(error: MillraceError, records: number): void {
    this.#firstPostError ??= error
    this.#failedPosts += records
    for (const listener of this.#listeners) listener(error)
  }

  async #close(): Promise<void> {
    this.#isClosed = true
    try {
      await this.flush()
      const links = [...this.#links.values()]
      await Promise.all(links.map((link) => link.finish(LAST_WORD_MS)))
    } finally {
      this.#letGo()
      this.#wakeReady()
      this.#onClosed(this)
    }
  }

  #letGo(): void {
    this.#isOver = true
    for (const link of this.#links.values()) link.close()
    for (const cancel of this.#pauses) cancel()
    this.#pauses.clear()
    this.#cancelLinger?.()
    this.#cancelLinger = undefined
    this.#cancelExpiry?.()
    this.#cancelExpiry = undefined
    this.#letProcessEnd?.()
    this.#letProcessEnd = undefined
  }
}

function encoderOf<T>(codec: Codec<T>): (value: unknown) => Uint8Array | string {
  // The topic's type ties its codecs to the values that `send` takes for it.
  const encode = findTextEncoder(codec) ?? ((value: T) => codec.encode(value))
  return encode as (value: unknown) => Uint8Array | string
}

/** Waits for `promise`, or rejects with the signal's reason. */
function abortable(promise: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return promise
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      reject(
        signal.reason instanceof Error
          ? signal.reason
          : new MillraceError('CANCELLED_BY_CLIENT', 'aborted', {}, signal.reason),
      )
    }
    if (signal.aborted) {
      abort()
      return
    }
    signal.addEventListener('abort', abort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}
