import { Ring } from '../../bytes/ring.ts'
import type { Acks } from '../../common/acks.ts'
import { invariant } from '../../common/assert.ts'
import type { Clock } from '../../common/clock.ts'
import { BrokerError } from '../../common/errors.ts'
import type { Offset } from '../../common/offset.ts'
import {
  isAppendTime,
  isControl,
  readMaxTimestamp,
  readRecordCount,
} from '../../record/batch-header.ts'
import { RecordCursor } from '../../record/record-cursor.ts'
import { AppendGate } from '../append-gate.ts'
import type { Admission } from '../append-gate.ts'
import { BatchFilter } from '../batch-filter.ts'
import type { LogConfig } from '../log-config.ts'
import { OffsetMap } from '../offset-map.ts'
import type {
  AppendOptions,
  AppendResult,
  CompactionNeed,
  CompactionReport,
  FetchResult,
  Isolation,
  LogStats,
  PartitionId,
  PartitionLog,
  RetentionHold,
  TimestampedOffset,
} from '../partition-log.ts'
import { partitionName } from '../partition-name.ts'
import { ProducerState } from '../producer-state.ts'
import { findRetentionStart } from '../retention.ts'
import type { SegmentFacts } from '../retention.ts'
import type { BatchList } from './batch-list.ts'

/** Nobody attacks a reference engine, and one that is the same in every run can be replayed. */
const MAP_SECRET = new Uint8Array(16)

/** What of a log outlives its closing: the memory engine's disk. */
export interface MemoryLogData {
  readonly id: PartitionId
  readonly batches: BatchList
  logStartOffset: Offset
  durableEnd: Offset
  /** Producer state from before batches were dropped. */
  producers: Uint8Array | undefined
  /** Everything below has been compacted. */
  cleanedTo: Offset
  /** When the last tombstone's grace is over; -1 when there is none. */
  tombstonesDueMs: number
}

/** What a log needs of its store. */
export interface MemoryLogHost {
  readonly clock: Clock
  readonly incarnation: number
  readonly durableDelayMs: number
  readonly storageFull: boolean
  /** A flush has failed: the store must not go on. */
  fail(cause: Error): void
}

/** An append or a flush that has not been answered. */
interface Waiter {
  endOffset: Offset
  error: BrokerError | undefined
  /** Undefined for a flush, which nobody else's failed write makes fail. */
  readonly admission: Admission | undefined
  readonly settle: () => void
  readonly reject: (error: BrokerError) => void
}

/**
 * The second engine, which keeps the seam honest: the reference of the conformance suite and the fake of the layers above. What is
 * appended counts as written in the next microtask and as durable `durableDelayMs` later, with any number of appends on their
 * way at once. It can fail on demand.
 */
export class MemoryLog implements PartitionLog {
  readonly #host: MemoryLogHost
  readonly #data: MemoryLogData
  readonly #gate: AppendGate
  readonly #listeners = new Set<() => void>()
  /** In call order. A failed one is answered in its turn, so that answers never overtake each other. */
  readonly #writeWaiters = new Ring<Waiter>()
  readonly #flushWaiters = new Ring<Waiter>()
  #config: LogConfig
  #writtenEnd: Offset
  #isWriteDue = false
  #failNextAppend: BrokerError | undefined
  #failNextFlush: Error | undefined
  /** The write that is under way fails from this offset on. */
  #failing: { readonly from: Offset; readonly error: BrokerError } | undefined
  #failure: BrokerError | undefined
  #closing: Promise<void> | undefined
  #isClosed = false

  constructor(host: MemoryLogHost, data: MemoryLogData, config: LogConfig) {
    this.#host = host
    this.#data = data
    this.#config = config
    const producers =
      data.producers === undefined ? new ProducerState() : ProducerState.decode(data.producers)
    for (const batch of data.batches) producers.replay(batch.bytes, 0)
    producers.setStableEnd(data.durableEnd)
    const last = data.batches.lastBatch?.bytes
    this.#gate = new AppendGate({
      nextOffset: data.durableEnd,
      leaderEpoch: host.incarnation,
      producers,
      clock: host.clock,
      config,
      lastAppendTimeMs:
        last !== undefined && isAppendTime(last, 0) ? readMaxTimestamp(last, 0) : undefined,
    })
    this.#writtenEnd = data.durableEnd
  }

  get logStartOffset(): Offset {
    return this.#data.logStartOffset
  }

  get highWatermark(): Offset {
    return this.#data.durableEnd
  }

  get writtenEndOffset(): Offset {
    return this.#writtenEnd
  }

  get logEndOffset(): Offset {
    return this.#gate.nextOffset
  }

  get leaderEpoch(): number {
    return this.#host.incarnation
  }

  /** True once `close` has been called. */
  get isClosing(): boolean {
    return this.#closing !== undefined
  }

  /** The next append that gets an offset fails in its write, with all that are written together after it. */
  failNextAppend(error: BrokerError): void {
    this.#failNextAppend = error
  }

  /** The next flush fails: appends on their way are FLUSH_FAILED, and the store with them. */
  failNextFlush(cause: Error = new Error('injected flush failure')): void {
    this.#failNextFlush = cause
  }

  append(batch: Uint8Array, acks: Acks, options?: AppendOptions): Promise<AppendResult> {
    // Everything that decides happens in the executor, which runs at once: before the promise is returned.
    return new Promise((resolve, reject) => {
      if (this.#closing !== undefined) throw this.#closedError()
      if (this.#failure !== undefined) throw this.#failure
      if (this.#host.storageFull && this.#data.id.companion === undefined) {
        throw new BrokerError('STORAGE_FULL', `no space is left for ${this.#name}`)
      }
      const admission = this.#gate.admit(batch, options)
      if (!admission.duplicate) this.#take(batch, admission)
      const { endOffset } = admission
      if (acks === 'none') {
        resolve(this.#toResult(admission))
        return
      }
      const settle = (): void => resolve(this.#toResult(admission))
      const waiters = acks === 'durable' ? this.#flushWaiters : this.#writeWaiters
      waiters.push({ endOffset, error: undefined, admission, settle, reject })
      // A repeat of what is there already has nothing to wait for but those before it.
      if (admission.duplicate) this.#answer()
    })
  }

  #take(bytes: Uint8Array, { baseOffset, endOffset }: Admission): void {
    const nowMs = this.#host.clock.monotonicMs()
    this.#data.batches.append({ bytes, baseOffset, endOffset }, this.#config, nowMs)
    if (this.#failNextAppend !== undefined) {
      this.#failing ??= { from: baseOffset, error: this.#failNextAppend }
      this.#failNextAppend = undefined
    }
    if (this.#isWriteDue) return
    this.#isWriteDue = true
    queueMicrotask(() => this.#write())
  }

  #write(): void {
    this.#isWriteDue = false
    if (this.#failing !== undefined) this.#undo(this.#failing.from, this.#failing.error)
    this.#failing = undefined
    const end = this.#gate.nextOffset
    const hasRisen = end > this.#writtenEnd
    this.#writtenEnd = end
    if (hasRisen && this.#host.durableDelayMs > 0) {
      this.#host.clock.schedule(this.#host.durableDelayMs, () => this.#flushTo(end))
    } else if (hasRisen) {
      this.#flushTo(end)
      return
    }
    this.#answer()
    if (hasRisen) this.#notify()
  }

  /** A write has failed: what it should have written, and all behind it, never was. */
  #undo(from: Offset, error: BrokerError): void {
    this.#data.batches.truncate(from)
    this.#gate.rollBackTo(from)
    for (const waiters of [this.#writeWaiters, this.#flushWaiters]) {
      for (const waiter of waiters) {
        if (waiter.endOffset <= from) continue
        if (waiter.admission === undefined) waiter.endOffset = from
        else waiter.error ??= error
      }
    }
  }

  #flushTo(end: Offset): void {
    if (this.#failure !== undefined) return
    if (this.#failNextFlush !== undefined) {
      const cause = this.#failNextFlush
      this.#failure = new BrokerError(
        'FLUSH_FAILED',
        `the flush of ${this.#name} failed: whether records from offset ${this.highWatermark} on are kept is unknown`,
        this.#facts(),
        cause,
      )
      this.#host.fail(cause)
    } else {
      invariant(end >= this.#data.durableEnd, 'the high watermark only rises')
      invariant(end <= this.#writtenEnd, 'what is durable has been written')
      this.#data.durableEnd = end
      this.#gate.producers.setStableEnd(end)
    }
    this.#answer()
    if (this.#failure === undefined) this.#notify()
  }

  /** Answers all whose turn has come. */
  #answer(): void {
    for (const [waiters, end] of [
      [this.#writeWaiters, this.#writtenEnd],
      [this.#flushWaiters, this.#data.durableEnd],
    ] as const) {
      for (let head = waiters.peek(); head !== undefined; head = waiters.peek()) {
        const isReached = head.endOffset <= end
        const error = head.error ?? (isReached ? undefined : this.#failure)
        if (error !== undefined) head.reject(error)
        else if (isReached) head.settle()
        else break
        waiters.shift()
      }
    }
  }

  #notify(): void {
    for (const listener of this.#listeners) listener()
  }

  #toResult({ baseOffset, endOffset, appendTimeMs, duplicate }: Admission): AppendResult {
    const isDurable = endOffset <= this.highWatermark
    return {
      baseOffset,
      endOffset,
      appendTimeMs,
      duplicate,
      acks: isDurable ? 'durable' : endOffset <= this.#writtenEnd ? 'written' : 'none',
      leaderEpoch: this.leaderEpoch,
      highWatermark: this.highWatermark,
      logStartOffset: this.logStartOffset,
    }
  }

  async read(
    from: Offset,
    maxBytes: number,
    isolation: Isolation = 'durable',
  ): Promise<FetchResult> {
    this.#checkOpen()
    const end = this.#visibleEnd(isolation)
    // Between the visible end and the log end lies what will be there soon: nothing to read yet, and no error.
    if (from < this.logStartOffset || from > this.logEndOffset) throw this.#outOfRange(from, end)
    let nextOffset = from
    let chunks: Uint8Array[] = []
    // Batches without records are passed over: they stand for a gap, or for their producer.
    while (chunks.length === 0 && nextOffset < end) {
      const found = this.#data.batches.collect(nextOffset, end, maxBytes)
      if (found.length === 0) break
      nextOffset = found.at(-1)?.endOffset ?? nextOffset
      chunks = found.map((batch) => batch.bytes).filter((bytes) => readRecordCount(bytes, 0) > 0)
    }
    return {
      chunks,
      bytes: chunks.reduce((sum, chunk) => sum + chunk.length, 0),
      nextOffset,
      highWatermark: this.highWatermark,
      logStartOffset: this.logStartOffset,
    }
  }

  async findOffsetByTimestamp(timestampMs: number): Promise<TimestampedOffset | undefined> {
    this.#checkOpen()
    const end = this.#visibleEnd(this.#config.visibility)
    return this.#data.batches.findByTimestamp(timestampMs, this.logStartOffset, end)
  }

  async advanceLogStart(to: Offset): Promise<void> {
    this.#checkOpen()
    if (to > this.highWatermark) throw this.#outOfRange(to, this.highWatermark)
    this.#raiseLogStart(to)
  }

  async applyRetention(hold?: RetentionHold): Promise<Offset> {
    this.#checkOpen()
    const { batches } = this.#data
    const { clock } = this.#host
    const wallMs = clock.wallMs()
    if (this.logEndOffset === this.highWatermark) {
      const active = batches.toFacts(this.highWatermark).at(-1)
      const ageMs = wallMs - (active?.maxTimestampMs ?? wallMs)
      const isOld = (active?.maxTimestampMs ?? -1) >= 0 && ageMs > this.#config.retentionMs
      if (isOld || this.logEndOffset === this.logStartOffset) batches.roll()
    }
    const facts = batches.toFacts(this.highWatermark)
    this.#raiseLogStart(findRetentionStart(facts, this.logStartOffset, this.#config, wallMs, hold))
    this.#gate.producers.expire(wallMs, this.#config.producerExpiryMs)
    batches.markBelow(this.logStartOffset, clock.monotonicMs())
    // What the dropped batches say of their producers must outlive them.
    this.#data.producers = this.#gate.producers.encode()
    batches.dropDoomed(clock.monotonicMs(), this.#config.deleteDelayMs)
    return this.logStartOffset
  }

  #raiseLogStart(to: Offset): void {
    if (to <= this.logStartOffset) return
    invariant(to <= this.highWatermark, 'the log start is at most the high watermark')
    this.#data.logStartOffset = to
    this.#data.batches.markBelow(to, this.#host.clock.monotonicMs())
  }

  async findCompactionNeed(): Promise<CompactionNeed | undefined> {
    this.#checkOpen()
    if (!this.#config.compact) return undefined
    const { cleanedTo, tombstonesDueMs } = this.#data
    const nowMs = this.#host.clock.wallMs()
    const closed = this.#closedSegments(nowMs)
    const totalBytes = closed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    const dirty = closed.filter(({ endOffset }) => endOffset > cleanedTo)
    const dirtyBytes = dirty.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    const { minCleanableRatio, maxCompactionLagMs } = this.#config
    const dirtyRatio = totalBytes === 0 ? 0 : dirtyBytes / totalBytes
    const isDue =
      (dirtyBytes > 0 && dirtyRatio >= minCleanableRatio) ||
      (totalBytes > 0 && tombstonesDueMs >= 0 && tombstonesDueMs <= nowMs) ||
      dirty.some(({ maxTimestampMs }) => nowMs - maxTimestampMs >= maxCompactionLagMs)
    return isDue ? { dirtyRatio, dirtyBytes, totalBytes } : undefined
  }

  /** Those that may be compacted, from the first on. */
  #closedSegments(nowMs: number): SegmentFacts[] {
    const lagMs = this.#config.minCompactionLagMs
    const facts = this.#data.batches.toFacts(this.highWatermark)
    const young = facts.findIndex(
      ({ active, maxTimestampMs }) => active || (lagMs > 0 && maxTimestampMs > nowMs - lagMs),
    )
    return young < 0 ? facts : facts.slice(0, young)
  }

  async compact(signal?: AbortSignal): Promise<CompactionReport> {
    this.#checkOpen()
    if (signal?.aborted === true) throw this.#closedError()
    const nowMs = Math.floor(this.#host.clock.wallMs())
    const closed = this.#closedSegments(nowMs)
    const cleanedTo = closed.at(-1)?.endOffset ?? this.#data.cleanedTo
    const filter = new BatchFilter({
      map: this.#mapKeys(cleanedTo),
      mapEnd: cleanedTo,
      mayDropTombstones: true,
      nowMs,
      deleteRetentionMs: this.#config.deleteRetentionMs,
      maxBatchBytes: Infinity,
      remembers: (producerId, baseOffset) => this.#gate.producers.remembers(producerId, baseOffset),
    })
    const bytesBefore = closed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    // What the batches say of their producers must outlive them.
    this.#data.producers = this.#gate.producers.encode()
    this.#data.batches.rewrite(cleanedTo, ({ bytes }) => {
      filter.begin(bytes, 0)
      while (!filter.step(Infinity)) continue
      const verdict = filter.finish()
      if (verdict === 'drop') return undefined
      return verdict === 'keep' ? bytes : filter.result
    })
    this.#data.cleanedTo = cleanedTo
    this.#data.tombstonesDueMs = filter.tombstonesDueMs
    const after = this.#data.batches.toFacts(this.highWatermark).slice(0, closed.length)
    return {
      bytesBefore,
      bytesAfter: after.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
      segmentsBefore: closed.length,
      segmentsAfter: after.length,
      recordsRemoved: filter.recordsRemoved,
      tombstonesRemoved: filter.tombstonesRemoved,
      cleanedTo,
      segmentsSkipped: 0,
      elapsedMs: 0,
    }
  }

  #mapKeys(end: Offset): OffsetMap {
    const origin = this.#data.batches.startOffset
    const map = new OffsetMap({
      maxBytes: Infinity,
      expectedKeys: end - origin,
      origin,
      secret: MAP_SECRET,
    })
    const cursor = new RecordCursor({ reuseMemory: true })
    for (const { bytes, endOffset } of this.#data.batches) {
      if (endOffset > end) break
      if (isControl(bytes, 0)) continue
      cursor.reset(bytes, 0)
      while (cursor.next()) {
        const offset = cursor.offset as Offset // Of a batch that the log has stamped.
        if (cursor.keyStart >= 0) map.put(cursor.bytes, cursor.keyStart, cursor.keyEnd, offset)
      }
    }
    return map
  }

  configure(config: LogConfig): void {
    this.#config = config
    this.#gate.configure(config)
  }

  onAdvance(listener: () => void): () => void {
    // Wrapped, so that a function that is added twice is called twice, and stopping one leaves the other.
    const own = (): void => listener()
    this.#listeners.add(own)
    return () => {
      this.#listeners.delete(own)
    }
  }

  flush(): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) throw this.#closedError()
      if (this.#failure !== undefined) throw this.#failure
      const endOffset = this.logEndOffset
      this.#flushWaiters.push({
        endOffset,
        error: undefined,
        admission: undefined,
        settle: resolve,
        reject,
      })
      this.#answer()
    })
  }

  async stats(): Promise<LogStats> {
    const { batches } = this.#data
    return { bytes: batches.sizeBytes, segments: batches.segmentCount, damaged: [] }
  }

  close(): Promise<void> {
    this.#closing ??= this.#finish()
    return this.#closing
  }

  async #finish(): Promise<void> {
    try {
      if (this.#failure === undefined) await this.flush()
    } catch (error) {
      // A failed flush has been answered to every appender and to the store: there is nothing left to close for.
      if (error !== this.#failure) throw error
    }
    this.#data.producers = this.#gate.producers.encode()
    this.#isClosed = true
    this.#listeners.clear()
  }

  get #name(): string {
    return partitionName(this.#data.id)
  }

  #facts(): { topic: string; partition: number; logStartOffset: number } {
    const { topic, partition } = this.#data.id
    return { topic, partition, logStartOffset: this.logStartOffset }
  }

  #visibleEnd(isolation: Isolation): Offset {
    return isolation === 'written' ? this.#writtenEnd : this.highWatermark
  }

  #checkOpen(): void {
    if (this.#closing !== undefined) throw this.#closedError()
  }

  #closedError(): BrokerError {
    return new BrokerError('CLOSED', `${this.#name} is closed`, this.#facts())
  }

  #outOfRange(offset: Offset, endOffset: Offset): BrokerError {
    return new BrokerError(
      'OFFSET_OUT_OF_RANGE',
      `offset ${offset} is outside [${this.logStartOffset}, ${endOffset}) of ${this.#name}`,
      { ...this.#facts(), offset, endOffset },
    )
  }
}
