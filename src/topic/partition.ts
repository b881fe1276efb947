import type { Acks } from '../common/acks.ts'
import { invariant } from '../common/assert.ts'
import type { Clock } from '../common/clock.ts'
import { BrokerError } from '../common/errors.ts'
import { type Offset, toOffset } from '../common/offset.ts'
import type {
  AppendOptions,
  AppendResult,
  Companion,
  CompactionNeed,
  CompactionReport,
  FetchResult,
  LogStats,
  PartitionId,
  PartitionLog,
  RetentionHold,
  TimestampedOffset,
} from '../log/partition-log.ts'
import { partitionName } from '../log/partition-name.ts'
import { isInternalTopic } from '../common/names.ts'
import { type BatchLimits, checkKeys, validateBatch } from '../record/batch-validator.ts'
import { AppendWaiters } from './append-waiters.ts'
import { respectsQueueGroups, toLogConfig, type TopicConfig } from './topic-config.ts'

export interface PartitionAppendOptions extends AppendOptions {
  /** Take control batches, which clients may not send. */
  readonly allowControl?: boolean | undefined
}

export interface PartitionOptions {
  readonly id: PartitionId
  readonly config: TopicConfig
  readonly clock: Clock
  /** Why appends and log start moves are refused (READ_ONLY), or undefined. */
  readonly readOnly?: string | undefined
  /** There is a companion, so that queue groups may have work here that they have not told of yet. False by default. */
  readonly hasCompanion?: boolean | undefined
  /** Called when an append was refused because space is low. */
  readonly onStorageFull?: (() => void) | undefined
}

const START: Offset = toOffset(0)

type Limits = Omit<BatchLimits, 'nowMs'> & { nowMs: number }

/**
 * One partition of a topic as the services see it: the log, behind the topic's rules. A partition without a log (it is being opened,
 * or could not be) has a {@link Partition.failure} and refuses everything with it; its offsets are then 0 and mean nothing.
 */
export class Partition {
  readonly topic: string
  readonly index: number
  readonly topicId: string
  /** Set for a log that is kept beside the partition: see `Topics.openCompanion`. */
  readonly companion: Companion | undefined
  readonly #clock: Clock
  readonly #readOnly: string | undefined
  readonly #onStorageFull: (() => void) | undefined
  readonly #hasCompanion: boolean
  readonly #waiters = new AppendWaiters()
  #config: TopicConfig
  /** Compaction can do nothing for a record without a key. What the broker itself writes has one. */
  #wantsKeys: boolean
  #clientLimits: Limits
  #brokerLimits: Limits
  #log: PartitionLog | undefined
  #failure: BrokerError | undefined
  #stopListening: (() => void) | undefined
  readonly #advanceListeners = new Set<() => void>()
  readonly #startListeners = new Set<(start: Offset) => void>()
  /** By who asked. */
  readonly #holds = new Map<string, Offset>()
  /** Somebody has said whether anything is held. */
  #isHoldKnown = false
  /** What the listeners know. */
  #notedEnd: Offset = START
  #notedStart: Offset = START
  /** Deleted or closed: for good. */
  #isOver = false

  constructor(options: PartitionOptions) {
    const { id } = options
    this.topic = id.topic
    this.index = id.partition
    this.topicId = id.topicId
    this.companion = id.companion
    this.#clock = options.clock
    this.#readOnly = options.readOnly
    this.#onStorageFull = options.onStorageFull
    this.#hasCompanion = options.hasCompanion === true
    this.#config = options.config
    this.#wantsKeys = wantsKeys(id.topic, options.config)
    this.#clientLimits = this.#limitsFor(false)
    this.#brokerLimits = this.#limitsFor(true)
    this.#log = undefined
    this.#failure = new BrokerError('LOADING', `${this.name} is being opened`, this.#facts)
    this.#stopListening = undefined
  }

  /** For messages: `orders-3`, or `orders-3.state`. */
  get name(): string {
    return partitionName(this.id)
  }

  get id(): PartitionId {
    const { topic, index: partition, topicId, companion } = this
    return companion === undefined
      ? { topic, partition, topicId }
      : { topic, partition, topicId, companion }
  }

  /** Why nothing works here, or undefined when it does: LOADING, UNKNOWN_TOPIC once deleted, CLOSED, or why the log would not open. */
  get failure(): BrokerError | undefined {
    return this.#failure
  }

  /** True while there is no log, but may be one later. For `Topics`. */
  get needsLog(): boolean {
    return this.#log === undefined && !this.#isOver
  }

  get config(): TopicConfig {
    return this.#config
  }

  get logStartOffset(): Offset {
    return this.#log?.logStartOffset ?? START
  }

  get highWatermark(): Offset {
    return this.#log?.highWatermark ?? START
  }

  get logEndOffset(): Offset {
    return this.#log?.logEndOffset ?? START
  }

  get leaderEpoch(): number {
    return this.#log?.leaderEpoch ?? 0
  }

  /** The end of what plain readers see, by the topic's `visibility`. */
  get visibleEnd(): Offset {
    const log = this.#log
    if (log === undefined) return START
    return this.#config.visibility === 'written' ? log.writtenEndOffset : log.highWatermark
  }

  get onCorruption(): 'halt' | 'skip' {
    return this.#config.onCorruption
  }

  /** How many {@link waitForAppend} calls are pending. */
  get waiting(): number {
    return this.#waiters.size
  }

  /**
   * Checks `batch` against the topic's limits and appends it. The buffer belongs to the log from here on. Offsets are given out in the
   * order of the calls, before the promise is returned.
   * @throws BrokerError (as rejection) what `validateBatch` and `PartitionLog.append` throw; READ_ONLY; UNKNOWN_TOPIC once deleted
   */
  async append(
    batch: Uint8Array,
    acks: Acks,
    options?: PartitionAppendOptions,
  ): Promise<AppendResult> {
    // Nothing may be awaited before the log has the batch: pipelined calls keep their order by that.
    const log = this.#getWritableLog()
    const limits = options?.allowControl === true ? this.#brokerLimits : this.#clientLimits
    limits.nowMs = this.#clock.wallMs()
    validateBatch(batch, limits)
    if (this.#wantsKeys) checkKeys(batch, this.topic)
    try {
      return await log.append(batch, acks, options)
    } catch (error) {
      if (error instanceof BrokerError && error.code === 'STORAGE_FULL') this.#onStorageFull?.()
      throw this.#explain(error)
    }
  }

  /**
   * Whole batches from the one that holds `from` on, as far as the topic's `visibility` goes.
   * @throws BrokerError (as rejection) what `PartitionLog.read` throws; UNKNOWN_TOPIC once deleted
   */
  async read(from: Offset, maxBytes: number): Promise<FetchResult> {
    const log = this.#getLog()
    try {
      return await log.read(from, maxBytes, this.#config.visibility)
    } catch (error) {
      throw this.#explain(error)
    }
  }

  /**
   * Resolves once {@link visibleEnd} is above `from`, `signal` aborts or the partition closes: the caller looks which.
   * @throws BrokerError (as rejection) UNKNOWN_TOPIC when the topic is deleted meanwhile, and whatever {@link failure} says at the call
   */
  async waitForAppend(from: Offset, signal?: AbortSignal): Promise<void> {
    this.#getLog()
    if (this.visibleEnd > from) return
    await this.#waiters.wait(from, signal)
  }

  /**
   * Calls `listener` each time {@link visibleEnd} has risen, after the appends have been answered; from before there is a log too. It is called
   * inside the writer's turn, so it only notes that there is something to do, and throws nothing. Returns how to stop.
   */
  onAdvance(listener: () => void): () => void {
    // Wrapped, so that a function that is added twice is called twice, and stopping one leaves the other.
    const own = (): void => listener()
    this.#advanceListeners.add(own)
    return () => {
      this.#advanceListeners.delete(own)
    }
  }

  /**
   * Calls `listener` after the log start has moved, by retention or by {@link advanceLogStart}, with where it is now. It throws nothing.
   * Returns how to stop.
   */
  onLogStart(listener: (start: Offset) => void): () => void {
    const own = (start: Offset): void => listener(start)
    this.#startListeners.add(own)
    return () => {
      this.#startListeners.delete(own)
    }
  }

  /**
   * Has retention keep everything from `at` on, under the name of who has still to work through it; undefined gives it up. Where several hold,
   * the lowest counts. No segment is held for longer than `retention.hold.max.ms` after it was due; {@link advanceLogStart} is not held.
   * Not kept on the disk: whoever holds says so again after a start. Until the first call, which may be one with undefined, everything is held
   * where retention waits for queue groups and there may be one: in a topic of jobs, and where there is a companion.
   */
  holdRetention(name: string, at: Offset | undefined): void {
    this.#isHoldKnown = true
    if (at === undefined) this.#holds.delete(name)
    else this.#holds.set(name, at)
  }

  /** See `PartitionLog.findOffsetByTimestamp`. */
  async findOffsetByTimestamp(timestampMs: number): Promise<TimestampedOffset | undefined> {
    const log = this.#getLog()
    try {
      return await log.findOffsetByTimestamp(timestampMs)
    } catch (error) {
      throw this.#explain(error)
    }
  }

  /**
   * Moves the log start up to `to`, durably; `end` means the high watermark. Resolves to the log start, which a lower `to` leaves alone.
   * @throws BrokerError (as rejection) OFFSET_OUT_OF_RANGE above the high watermark, READ_ONLY
   */
  async advanceLogStart(to: Offset | 'end'): Promise<Offset> {
    const log = this.#getWritableLog()
    try {
      await log.advanceLogStart(to === 'end' ? log.highWatermark : to)
      return log.logStartOffset
    } catch (error) {
      throw this.#explain(error)
    } finally {
      this.#noteStart()
    }
  }

  async stats(): Promise<LogStats> {
    return this.#getLog().stats()
  }

  /** Applies retention and deletes what is past its grace. Nothing where the partition is read-only or without a log. */
  async applyRetention(): Promise<Offset> {
    if (this.#failure !== undefined || this.#readOnly !== undefined) return this.logStartOffset
    try {
      return await this.#getLog().applyRetention(this.#findHold())
    } finally {
      this.#noteStart()
    }
  }

  /** See `PartitionLog.findCompactionNeed`. Nothing where the partition is read-only or without a log. */
  async findCompactionNeed(): Promise<CompactionNeed | undefined> {
    if (this.#failure !== undefined || this.#readOnly !== undefined) return undefined
    return this.#getLog().findCompactionNeed()
  }

  /** See `PartitionLog.compact`. @throws BrokerError as that does; READ_ONLY; UNKNOWN_TOPIC once deleted */
  async compact(signal?: AbortSignal): Promise<CompactionReport> {
    const log = this.#getWritableLog()
    try {
      return await log.compact(signal)
    } catch (error) {
      throw this.#explain(error)
    }
  }

  /** Waits until everything appended so far is durable. */
  async flush(): Promise<void> {
    return this.#getLog().flush()
  }

  /** Gives the partition its log. For `Topics` only, as all that follow. */
  attach(log: PartitionLog): void {
    invariant(this.needsLog, `${this.name} gets one log`)
    log.configure(toLogConfig(this.#config))
    this.#log = log
    this.#failure = undefined
    this.#notedStart = log.logStartOffset
    this.#stopListening = log.onAdvance(() => this.#noteEnd())
    this.#noteEnd()
  }

  /** Notes why there is no log. A later {@link attach} ends that. */
  fail(error: BrokerError): void {
    invariant(this.needsLog, `${this.name} is without a log`)
    this.#failure = error
  }

  /** New settings, from the next append or read on. */
  configure(config: TopicConfig): void {
    this.#config = config
    this.#wantsKeys = wantsKeys(this.topic, config)
    this.#clientLimits = this.#limitsFor(false)
    this.#brokerLimits = this.#limitsFor(true)
    this.#log?.configure(toLogConfig(config))
    // A narrower visibility takes back what has been told; a wider one may show at once what someone waits for.
    if (this.visibleEnd < this.#notedEnd) this.#notedEnd = this.visibleEnd
    this.#noteEnd()
  }

  /** The topic has been deleted: everything from here on, and everyone who waits, gets UNKNOWN_TOPIC. The log is the store's to remove. */
  end(): void {
    this.#isOver = true
    this.#failure = new BrokerError(
      'UNKNOWN_TOPIC',
      `topic ${this.topic} has been deleted`,
      this.#facts,
    )
    this.#stopListening?.()
    this.#waiters.endAll(this.#failure)
  }

  /** Flushes and closes the log. Waiters are woken; later calls are CLOSED. */
  async close(): Promise<void> {
    this.#isOver = true
    this.#failure ??= new BrokerError('CLOSED', `${this.name} has been closed`, this.#facts)
    this.#stopListening?.()
    this.#waiters.endAll()
    await this.#log?.close()
  }

  #noteEnd(): void {
    const end = this.visibleEnd
    this.#waiters.wake(end)
    if (end <= this.#notedEnd) return
    this.#notedEnd = end
    for (const listener of this.#advanceListeners) listener()
  }

  /** Also when a call has failed: the log start is moved before that is made durable. */
  #noteStart(): void {
    const start = this.logStartOffset
    if (start <= this.#notedStart) return
    this.#notedStart = start
    for (const listener of this.#startListeners) listener(start)
  }

  #findHold(): RetentionHold | undefined {
    let lowest: Offset | undefined
    for (const at of this.#holds.values()) if (lowest === undefined || at < lowest) lowest = at
    const config = this.#config
    if (!this.#isHoldKnown && respectsQueueGroups(config)) {
      if (config.jobsEnable || this.#hasCompanion) lowest = START
    }
    return lowest === undefined ? undefined : { keepFrom: lowest, maxMs: config.retentionHoldMaxMs }
  }

  get #facts(): { topic: string; partition: number; topicId: string } {
    return { topic: this.topic, partition: this.index, topicId: this.topicId }
  }

  /** Kept and reused, with the time filled in for each batch: an append makes no object for its checks. */
  #limitsFor(allowControl: boolean): Limits {
    return {
      maxBatchBytes: this.#config.maxMessageBytes,
      nowMs: 0,
      // Where the broker stamps its own time, the producer's does not matter.
      maxFutureMs: this.#config.timestampType === 'append' ? Infinity : this.#config.maxFutureMs,
      allowControl,
    }
  }

  #getLog(): PartitionLog {
    if (this.#failure !== undefined) throw this.#failure
    invariant(this.#log !== undefined, `${this.name} has a log or a failure`)
    return this.#log
  }

  #getWritableLog(): PartitionLog {
    const log = this.#getLog()
    if (this.#readOnly !== undefined) {
      throw new BrokerError('READ_ONLY', `${this.name} can only be read: ${this.#readOnly}`, {
        ...this.#facts,
      })
    }
    return log
  }

  /** The log of a deleted topic says CLOSED to calls that were under way; why it is closed is what the caller has to know. */
  #explain(error: unknown): unknown {
    const ended = this.#failure
    return ended !== undefined && error instanceof BrokerError && error.code === 'CLOSED'
      ? ended
      : error
  }
}

function wantsKeys(topic: string, config: TopicConfig): boolean {
  return config.cleanupPolicy !== 'delete' && !isInternalTopic(topic)
}
