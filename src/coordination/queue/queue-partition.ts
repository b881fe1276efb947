import { invariant, unreachable } from '../../common/assert.ts'
import type { Clock } from '../../common/clock.ts'
import { BrokerError, toBrokerError } from '../../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../../common/offset.ts'
import type { Random } from '../../common/random.ts'
import { HOUR_MS } from '../../common/units.ts'
import type { Partition } from '../../topic/partition.ts'
import { respectsQueueGroups } from '../../topic/topic-config.ts'
import type { Topics } from '../../topic/topics.ts'
import type { Peer } from '../peer.ts'
import { AckCheck, groupByLease, type PartitionAck, type Verified } from './ack-check.ts'
import { AvailableRuns } from './available-runs.ts'
import { backoffDelayMs } from './backoff.ts'
import { BatchShelf, type Shelved, type Slice } from './batch-shelf.ts'
import type { CompanionLog, QueueLogger } from './companion.ts'
import { DeadLetterWriter, type DyingQueue } from './dead-letter-writer.ts'
import { toFailure } from './failure.ts'
import { KeyedQueue } from './keyed-queue.ts'
import { type Lease, LeaseBook, type LeaseHolder, type LeaseOwner } from './lease.ts'
import { isRetryTopic } from './names.ts'
import type { Offer } from './offer.ts'
import type { QueueConfig } from './queue-config.ts'
import type { QueueOwner } from './queue-owner.ts'
import {
  describePartition,
  explainRecord,
  findOldestReady,
  type QueueView,
} from './queue-report.ts'
import type { DeadReason, QueueEvent, QueueState, Run } from './queue-state.ts'
import type {
  AckFailure,
  AckItem,
  Explanation,
  FailureInfo,
  QueueDelivery,
  QueuePartitionDescription,
} from './queue-types.ts'
import { ReadTrouble } from './read-trouble.ts'
import {
  NO_LIMITS,
  readLimits,
  type RecordLimits,
  splitByLimits,
  toAttemptsLimit,
} from './record-limits.ts'
import { RetryTimer } from './retry-timer.ts'
import { ScanDelay } from './scan-delay.ts'
import type { TimingWheel } from './timing-wheel.ts'

export interface QueuePartitionOptions {
  readonly owner: QueueOwner
  readonly source: Partition
  readonly companion: CompanionLog
  readonly state: QueueState
  /** Names this state in lease tokens. */
  readonly number: number
  readonly wheel: TimingWheel<Lease>
  readonly peer: Peer
  readonly topics: Topics
  readonly clock: Clock
  readonly random: Random
  readonly logger: QueueLogger
}

const MOST_PAUSE_MS: number = HOUR_MS
/** What a lease that runs out says of its records. */
const SILENCE: Pick<AckItem, 'error' | 'delayMs'> = { error: undefined, delayMs: undefined }

/**
 * One partition as one queue group works through it: gives out leases, takes acknowledgements, times retries. What it decides is written to the companion log before
 * it is answered. Calls of {@link take} must not overlap; everything else may come at any time.
 */
export class QueuePartition implements DyingQueue, LeaseOwner {
  readonly owner: QueueOwner
  readonly source: Partition
  readonly companion: CompanionLog
  readonly state: QueueState
  readonly shelf: BatchShelf
  readonly number: number
  readonly #wheel: TimingWheel<Lease>
  readonly #clock: Clock
  readonly #random: Random
  readonly #logger: QueueLogger
  readonly #book: LeaseBook
  readonly #letters: DeadLetterWriter
  /** For `take` without keys. */
  readonly #available: AvailableRuns
  readonly #retries: RetryTimer
  readonly #delay: ScanDelay
  readonly #keyed: KeyedQueue
  readonly #check: AckCheck
  readonly #trouble: ReadTrouble
  readonly #stops: (() => void)[] = []
  #isClosed = false
  #heldStart = -1
  /** What is being read, for whoever has to deal with its failure. */
  #readingAt = 0

  constructor(options: QueuePartitionOptions) {
    this.owner = options.owner
    this.source = options.source
    this.companion = options.companion
    this.state = options.state
    this.number = options.number
    this.#wheel = options.wheel
    this.#clock = options.clock
    this.#random = options.random
    this.#logger = options.logger
    this.shelf = new BatchShelf(options.source)
    this.#book = new LeaseBook(this, options.companion.partition.leaderEpoch, options.number)
    this.#check = new AckCheck(this, this.#book, options.clock)
    this.#available = new AvailableRuns(this)
    this.#delay = new ScanDelay(options.clock, () => this.owner.changed())
    this.#trouble = new ReadTrouble(options.clock, () => this.owner.changed())
    this.#retries = new RetryTimer(options.clock, () => this.#wakeDue())
    this.#keyed = new KeyedQueue({
      queue: this,
      load: (offset) => this.#load(offset, true),
      isTooYoung: (shelved) => this.#isTooYoung(shelved),
      holdRetention: () => this.#holdRetention(),
    })
    this.#letters = new DeadLetterWriter({
      queue: this,
      peer: options.peer,
      topics: options.topics,
      clock: options.clock,
      logger: options.logger,
    })
    for (const run of this.state.runs) this.#note(run)
    this.#configureKeys()
    this.#stops.push(
      this.source.onAdvance(() => this.owner.changed()),
      this.source.onLogStart(() => void this.#followLogStart()),
    )
    this.#holdRetention()
    this.#letters.wake()
    // Neither rejects.
    void this.#followLogStart()
    void this.#killWornOut()
  }

  /** Nothing that was given out here is leased any more. */
  get isClosed(): boolean {
    return this.#isClosed
  }

  get group(): string {
    return this.owner.group
  }

  get config(): QueueConfig {
    return this.owner.config
  }

  get deadLetterTopic(): string {
    return this.owner.deadLetterPlace
  }

  /** Which queue it is, for the details of errors. */
  get facts(): { group: string; topic: string; partition: number } {
    return { group: this.group, topic: this.source.topic, partition: this.source.index }
  }

  /** Why nothing is given out, if so. */
  get trouble(): BrokerError | undefined {
    return this.source.failure ?? this.companion.failure ?? this.#trouble.error
  }

  get acquired(): number {
    return this.state.count('acquired')
  }

  get isDeadLetteringFull(): boolean {
    return this.state.count('dead-lettering') >= this.config.dlqMaxPending
  }

  /** So much waits that no more is looked at. */
  get isWindowFull(): boolean {
    return this.state.scan < this.source.highWatermark && !this.#hasRoom()
  }

  /** Records that could be given out, about. */
  get ready(): number {
    const { source, state } = this
    return (
      Math.max(0, source.highWatermark - Math.max(state.scan, source.logStartOffset)) +
      state.count('available')
    )
  }

  /** Settings have changed. */
  configure(): void {
    this.#configureKeys()
    this.#delay.forget()
    this.#heldStart = -1
    this.#holdRetention()
    this.#letters.wake()
    // Never rejects.
    void this.#killWornOut()
  }

  /** Other limits may have room now. */
  retryStuck(): void {
    this.#keyed.retryStuck()
  }

  // ── Giving out ──

  /** Whether {@link take} might find something. */
  get hasReady(): boolean {
    if (this.#isClosed || this.source.failure !== undefined || this.companion.failure !== undefined)
      return false
    if (this.#trouble.isFresh || this.isDeadLetteringFull) return false
    const canScan = this.#canScan()
    if (this.#keyed.isOn) {
      if (!this.#keyed.isLoaded) return true
      // What was looked at ahead of its turn is not in flight yet, so there may be more of it than may be in flight.
      const isFull = this.state.count('acquired') >= this.config.maxInflight
      return !isFull && (this.#keyed.hasReady || canScan)
    }
    if (this.config.order === 'partition')
      return this.#isFree() && (this.state.count('available') > 0 || canScan)
    return this.#available.length > 0 || canScan
  }

  #canScan(): boolean {
    return this.state.scan < this.source.highWatermark && this.#hasRoom() && this.#delay.isOver
  }

  #hasRoom(): boolean {
    if (this.#keyed.isOn) return this.#keyed.hasRoom
    const { state, config } = this
    return (
      state.runs.length < config.maxRuns &&
      state.count('acquired') + state.count('available') < config.maxInflight
    )
  }

  /** With `order=partition`: nothing is leased, and nothing before what is available waits. */
  #isFree(): boolean {
    const first = this.state.runs[0]
    if (first === undefined) return true
    if (this.state.count('acquired') > 0) return false
    return first.state === 'available' || this.config.orderOnFailure === 'skip'
  }

  /**
   * Leases up to `most` records, of about `mostBytes`, to `holder`. Often nothing, also when {@link hasReady} said there might be something. Durable first where
   * `queue.persist.acquire` asks for it.
   */
  async take(
    holder: LeaseHolder,
    most: number,
    mostBytes: number,
    leaseMs: number,
  ): Promise<QueueDelivery[]> {
    const taken: QueueDelivery[] = []
    const events: QueueEvent[] = []
    let bytes = 0
    let count = 0
    try {
      this.#keyed.retryHeldBack()
      while (count < most && (bytes < mostBytes || count === 0) && this.hasReady) {
        // Settings may change at any time, and what is leased has to be known by its key before anything else is given out.
        if (!this.#keyed.isLoaded) {
          await this.#keyed.load()
          continue
        }
        const { isOn } = this.#keyed
        const offered = isOn ? this.#keyed.offer(holder) : this.#offer(holder)
        if (offered === undefined) {
          if (isOn && this.#canScan() && (await this.#keyed.lookAhead())) continue
          break
        }
        const shelved = this.shelf.find(offered.first)
        if (shelved === undefined) {
          // What is there goes first; this one is read when they come again.
          if (taken.length > 0) break
          await this.#load(offered.first, offered.run === undefined)
          continue
        }
        const limit = Math.min(offered.most, most - count)
        const slice = this.#cut(offered, shelved, limit, Math.max(1, mostBytes - bytes))
        if (slice === undefined) continue
        const delivery = this.#lease(holder, offered, slice, leaseMs)
        taken.push(delivery)
        bytes += delivery.batch.length
        count += delivery.count
        if (this.config.persistAcquire) events.push(this.#acquireEvent(delivery))
      }
    } catch (error) {
      if (taken.length === 0) await this.#passDamage(error)
    }
    if (events.length > 0) await this.companion.write(this.group, events)
    return taken
  }

  /** @throws BrokerError (as rejection) what {@link BatchShelf.load} throws */
  async #load(offset: number, ahead: boolean): Promise<Shelved> {
    this.#readingAt = offset
    const shelved = await this.shelf.load(offset, ahead)
    this.#trouble.clear()
    return shelved
  }

  /** The oldest that is available again, else what has never been looked at. */
  #offer(holder: LeaseHolder): Offer | undefined {
    const { state } = this
    const offer = this.#available.offer(holder)
    if (offer !== undefined || !this.#canScan()) return offer
    const room = this.config.maxInflight - state.count('acquired') - state.count('available')
    return {
      first: Math.max(state.scan, this.source.logStartOffset),
      end: this.source.highWatermark,
      run: undefined,
      most: this.config.order === 'partition' ? 1 : Math.max(1, room),
      isLastChance: false,
      keyed: undefined,
    }
  }

  /** The records offered, as far as this batch has them; undefined, and progress made, when it has none. */
  #cut(offer: Offer, shelved: Shelved, most: number, mostBytes: number): Slice | undefined {
    const { state } = this
    const end = Math.min(offer.end, shelved.end)
    if (shelved.isGap) {
      this.#pass(offer, offer.first, end)
      return undefined
    }
    if (offer.run === undefined && this.#isTooYoung(shelved)) return undefined
    const slice = shelved.slice(offer.first, end, most, mostBytes)
    if (slice === undefined) {
      this.#pass(offer, offer.first, end)
      return undefined
    }
    if (slice.first > offer.first) this.#pass(offer, offer.first, slice.first)
    invariant(
      offer.run !== undefined || slice.first >= state.scan,
      'fresh records are past the scan',
    )
    return slice
  }

  /** There are no records. */
  #pass(offer: Offer, first: number, end: number): void {
    this.state.pass(first, end)
    if (offer.keyed !== undefined) this.#keyed.remove(first)
    if (offer.run !== undefined && end < offer.run.end) this.#available.add(end)
    this.#holdRetention()
  }

  #lease(holder: LeaseHolder, offer: Offer, slice: Slice, leaseMs: number): QueueDelivery {
    const { state } = this
    const nowMs = this.#clock.monotonicMs()
    const wallMs = this.#clock.wallMs()
    const lease = this.#book.grant(holder, slice, leaseMs, nowMs, offer.isLastChance)
    state.acquire(slice.first, slice.end, lease.number, wallMs)
    if (slice.count < slice.end - slice.first) this.#passHoles(lease, slice)
    if (offer.run !== undefined && offer.keyed === undefined)
      this.#available.take(offer.first, slice.end, offer.run.end)
    if (offer.keyed !== undefined) this.#keyed.hold(offer.keyed)
    this.#wheel.add(lease)
    this.owner.held(slice.count)
    this.owner.count('delivered', slice.count)
    const run = state.find(slice.first)
    return {
      token: lease.token,
      topic: this.source.topic,
      partition: this.source.index,
      first: toOffset(slice.first),
      end: toOffset(slice.end),
      count: slice.count,
      deliveryCount: run?.deliveries ?? 1,
      failureCount: run?.failures ?? 0,
      leaseMs,
      leaseExpiresMs: wallMs + leaseMs,
      firstDeliveredMs: run?.firstDeliveredMs ?? wallMs,
      batch: slice.batch,
    }
  }

  /** Compaction has taken records from the middle: they are nobody's work. */
  #passHoles(lease: Lease, slice: Slice): void {
    const shelved = this.shelf.find(slice.first)
    let at = slice.first
    while (at < slice.end) {
      const next = shelved?.seek(at)?.offset ?? slice.end
      const end = Math.min(next, slice.end)
      if (end > at) {
        this.state.pass(at, end)
        lease.settled.push({ first: at, end, verdict: 'none' })
      }
      at = next + 1
    }
  }

  #acquireEvent(delivery: QueueDelivery): QueueEvent {
    return {
      type: 'available',
      first: delivery.first,
      end: delivery.end,
      deliveries: delivery.deliveryCount,
      failures: delivery.failureCount,
      stalled: this.state.find(delivery.first)?.stalled ?? false,
      firstDeliveredMs: delivery.firstDeliveredMs,
    }
  }

  /** `queue.delay.ms` forbids to look at it yet; then it is looked at again when it does not. */
  #isTooYoung(shelved: Shelved): boolean {
    if (this.config.delayMs <= 0) return false
    const dueMs = shelved.maxTimestampMs + this.config.delayMs
    if (dueMs <= this.#clock.wallMs()) return false
    this.#delay.waitUntil(dueMs)
    return true
  }

  /** Damage is passed over where the topic says so, and else told and tried again; never silently. */
  async #passDamage(error: unknown): Promise<void> {
    if (this.#isClosed || this.source.failure !== undefined) return
    const trouble = toBrokerError(error)
    const next = trouble.details['nextOffset']
    const isDamage = ['SEGMENT_QUARANTINED', 'INVALID_RECORD', 'CORRUPT_BATCH'].includes(
      trouble.code,
    )
    const facts = {
      group: this.group,
      partition: this.source.name,
      code: trouble.code,
      cause: trouble.message,
    }
    if (trouble.code === 'OFFSET_OUT_OF_RANGE') {
      await this.#followLogStart()
      return
    }
    if (isDamage && isOffset(next) && this.source.onCorruption === 'skip') {
      const from = this.#readingAt
      this.#logger.warn({ ...facts, from, to: next }, 'a queue passes over damaged records')
      const events: QueueEvent[] = []
      for (const run of this.state.within(from, next)) {
        // Whoever has one of them in hand says what becomes of it.
        if (run.state !== 'acquired') events.push(this.#lostEvent(run.first, run.end))
      }
      const unseen = Math.max(from, this.state.scan)
      if (next > unseen) events.push(this.#lostEvent(unseen, next))
      if (events.length > 0) {
        await this.commit(events)
        return
      }
    }
    this.#trouble.note(trouble)
    this.#logger.error(facts, 'a queue cannot read its partition')
  }

  #lostEvent(first: number, end: number): QueueEvent {
    this.owner.count('lostToRetention', end - first)
    return { type: 'dead', first, end, reason: 'retention', atMs: this.#clock.wallMs() }
  }

  #configureKeys(): void {
    this.#keyed.configure()
    if (this.#keyed.isOn) return
    for (const run of this.state.runs) if (run.state === 'available') this.#available.add(run.first)
  }

  // ── Acknowledgements ──

  /**
   * All or none of the items of each lease. Resolves, when what was taken is durable, to what was refused; items whose records were given up are added to `dead`.
   */
  async acknowledge(
    items: readonly PartitionAck[],
    dead: number[] = [],
  ): Promise<readonly AckFailure[]> {
    const failures: AckFailure[] = []
    const taken: PartitionAck[] = []
    let written: Promise<void> | undefined
    try {
      if (this.#isClosed) throw this.#closedError()
      if (this.companion.failure !== undefined) throw this.companion.failure
      const limits = items.some(({ item }) => item.verdict === 'retry')
        ? await this.#readLimits(items)
        : undefined
      if (this.#isClosed) throw this.#closedError()
      const events: QueueEvent[] = []
      for (const some of groupByLease(items)) {
        try {
          const verified = this.#check.verify(some)
          for (const [i, one] of verified.entries()) {
            const died = this.#settle(one, limits, events)
            if (died) dead.push(some[i]?.index ?? -1)
          }
          taken.push(...some)
        } catch (error) {
          // One lease that is lost takes nothing from the others that a worker holds.
          const failure = toBrokerError(error)
          for (const { index } of some) failures.push({ index, error: failure })
        }
      }
      if (events.length > 0) written = this.#written(events)
    } catch (error) {
      const failure = toBrokerError(error)
      return items.map(({ index }) => ({ index, error: failure }))
    }
    try {
      await written
    } catch (error) {
      const failure = toBrokerError(error)
      for (const { index } of taken) failures.push({ index, error: failure })
    }
    return failures
  }

  #settle(
    one: Verified,
    limits: ReadonlyMap<number, RecordLimits> | undefined,
    events: QueueEvent[],
  ): boolean {
    const { lease, item, runs } = one
    switch (item.verdict) {
      case 'renew':
        this.#renew(lease, item.delayMs)
        return false
      case 'accept':
        for (const run of runs) {
          this.#put(events, { type: 'accepted', first: run.first, end: run.end })
          this.#freed(lease, run, 'accept')
          this.owner.count('accepted', run.end - run.first)
        }
        return false
      case 'release':
        for (const run of runs) {
          this.#release(run, item.delayMs ?? 0, events)
          this.#freed(lease, run, 'release')
        }
        if (item.pauseGroupMs > 0) {
          this.owner.pauseGroup(this.#clock.wallMs() + Math.min(item.pauseGroupMs, MOST_PAUSE_MS))
        }
        return false
      case 'retry':
      case 'reject': {
        const before = events.length
        const isRetry = item.verdict === 'retry'
        for (const run of runs) {
          this.#fail(run, lease, isRetry ? 'retry' : 'rejected', item, limits, events)
          this.#freed(lease, run, item.verdict)
          this.owner.count(isRetry ? 'retried' : 'rejected', run.end - run.first)
        }
        return events.slice(before).some((event) => event.type !== 'parked')
      }
      default:
        return unreachable(item.verdict)
    }
  }

  #renew(lease: Lease, delayMs: number | undefined): void {
    const nowMs = this.#clock.monotonicMs()
    const wantedMs = nowMs + Math.max(1, delayMs ?? lease.leaseMs)
    const deadlineMs = Math.min(wantedMs, lease.grantedMs + this.config.leaseMaxTotalMs)
    // Never shorter; the wheel finds a later deadline by itself.
    if (deadlineMs > lease.deadlineMs) lease.deadlineMs = deadlineMs
  }

  #release(run: Run, delayMs: number, events: QueueEvent[]): void {
    const { first, end, deliveries, failures, stalled, firstDeliveredMs } = run
    const counts = { first, end, deliveries, failures, stalled, firstDeliveredMs }
    this.owner.count('released', end - first)
    if (this.#isWornOut(run)) {
      this.#kill(run, 'attempts_exhausted', undefined, failures, events)
    } else if (delayMs > 0) {
      this.#put(events, {
        type: 'parked',
        ...counts,
        dueMs: this.#clock.wallMs() + Math.ceil(delayMs),
        failure: undefined,
      })
    } else this.#put(events, { type: 'available', ...counts })
  }

  /** Given out as often as `queue.max.deliveries` allows. */
  #isWornOut(run: Run): boolean {
    const { maxDeliveries } = this.config
    return maxDeliveries > 0 && run.deliveries >= maxDeliveries
  }

  /** Those that were given out too often without an end, before a crash or under other settings. Never rejects. */
  async #killWornOut(): Promise<void> {
    if (this.config.maxDeliveries === 0) return
    const events: QueueEvent[] = []
    for (const run of this.state.runs.slice()) {
      if (run.state !== 'available' && run.state !== 'parked') continue
      if (this.#isWornOut(run))
        this.#kill(run, 'attempts_exhausted', undefined, run.failures, events)
    }
    if (events.length === 0) return
    try {
      await this.#written(events)
    } catch (error) {
      this.#warn(error, 'records that were given out too often could not be given up')
    }
  }

  #fail(
    run: Run,
    lease: Lease,
    kind: FailureInfo['kind'],
    item: Pick<AckItem, 'error' | 'delayMs'>,
    limits: ReadonlyMap<number, RecordLimits> | undefined,
    events: QueueEvent[],
  ): void {
    const failure = toFailure(kind, item.error, lease, this.#clock.wallMs())
    for (const part of splitByLimits(run, limits)) {
      const own = limits?.get(part.first) ?? NO_LIMITS
      const failures = part.failures + 1
      const limit = toAttemptsLimit(own, this.config.maxAttempts)
      if (kind === 'rejected') this.#kill(part, 'rejected', failure, failures, events)
      else if ((limit > 0 && failures >= limit) || this.#isWornOut(part)) {
        const reason = kind === 'retry' ? 'attempts_exhausted' : 'lease_expired'
        this.#kill(part, reason, failure, failures, events)
      } else {
        const delayMs =
          item.delayMs ?? backoffDelayMs(this.config, failures, this.#random, own.backoff)
        this.#put(events, {
          type: 'parked',
          first: part.first,
          end: part.end,
          deliveries: part.deliveries,
          failures,
          stalled: kind === 'lease_expired',
          firstDeliveredMs: part.firstDeliveredMs,
          dueMs: this.#clock.wallMs() + Math.ceil(delayMs),
          failure,
        })
      }
    }
  }

  #kill(
    run: Run,
    reason: DeadReason,
    failure: FailureInfo | undefined,
    failures: number,
    events: QueueEvent[],
  ): void {
    const { first, end, deliveries, stalled, firstDeliveredMs } = run
    const counts = { first, end, deliveries, failures, stalled, firstDeliveredMs }
    const { dlqPolicy } = this.config
    if (dlqPolicy === 'block') this.#put(events, { type: 'blocked', ...counts, reason, failure })
    else if (dlqPolicy === 'topic' && this.owner.deadLetterTopic !== '') {
      this.#put(events, { type: 'dead-lettering', ...counts, reason, failure })
    } else {
      this.#put(events, { type: 'dead', first, end, reason, atMs: this.#clock.wallMs() })
      this.owner.count('dropped', end - first)
      this.#logger.warn(
        { event: 'dropped', group: this.group, partition: this.source.name, first, end, reason },
        'records were dropped: the group keeps no dead letters',
      )
    }
  }

  /** Applies, and notes what follows from it; to be written. */
  #put(events: QueueEvent[], event: QueueEvent): void {
    this.state.apply(event)
    events.push(event)
    if (event.type === 'started' || event.type === 'marked') return
    if (event.type === 'parked') this.#retries.park(event.first, event.dueMs)
    if (event.type === 'dead') this.#noteRest(event.end)
    if (this.#keyed.isOn) this.#keyed.follow(event.type, event.first, event.end)
    else if (event.type === 'available') this.#available.add(event.first)
  }

  /** Records that were leased are not any more. */
  #freed(
    lease: Lease,
    run: { readonly first: number; readonly end: number },
    verdict: AckItem['verdict'] | 'none',
  ): void {
    const count = run.end - run.first
    this.#book.settle(lease, run.first, run.end, count, verdict)
    if (lease.isOver) this.#wheel.remove(lease)
    this.owner.held(-count)
    this.#keyed.freeKeys(run)
  }

  /** Written; whoever waits for an answer waits for this. What follows from it may begin. */
  async #written(events: readonly QueueEvent[]): Promise<void> {
    this.#holdRetention()
    this.owner.changed()
    await this.companion.write(this.group, events)
    if (events.some((event) => event.type === 'dead-lettering')) this.#letters.wake()
  }

  /** See {@link DyingQueue}. */
  async commit(events: readonly QueueEvent[]): Promise<void> {
    if (events.length === 0) return
    for (const event of events) {
      if (event.type === 'dead') {
        const isLetter = this.state.find(event.first)?.state === 'dead-lettering'
        if (isLetter && event.reason !== 'retention')
          this.owner.count('deadLettered', event.end - event.first)
      }
      this.#put([], event)
    }
    await this.#written(events)
  }

  failing(error: unknown): void {
    if (error === undefined)
      this.#logger.info(
        { group: this.group, partition: this.source.name },
        'dead letters are written again',
      )
    this.owner.changed()
  }

  async #readLimits(
    items: readonly PartitionAck[],
  ): Promise<ReadonlyMap<number, RecordLimits> | undefined> {
    const limits = new Map<number, RecordLimits>()
    for (const { item, number } of items) {
      if (item.verdict !== 'retry' || this.#book.find(number) === undefined) continue
      await this.#readLimitsOf(item.first, item.end, limits)
    }
    return limits.size === 0 ? undefined : limits
  }

  /** What records say of their own retries; those that cannot be read (any more) say nothing. */
  async #readLimitsOf(
    first: number,
    end: number,
    limits: Map<number, RecordLimits>,
  ): Promise<void> {
    try {
      await readLimits(this, first, end, limits)
    } catch (error) {
      this.#warn(error, 'the own limits of failed records could not be read')
    }
  }

  // ── The end of leases, and what waits ──

  /** Called by the wheel. */
  expired(lease: Lease): void {
    if (lease.isOver || this.#isClosed) return
    // From now on nothing comes under it; its records stay taken until it has been decided what becomes of them.
    const open = this.state
      .within(lease.first, lease.end)
      .filter((run) => run.lease === lease.number)
    const error = new BrokerError(
      'LEASE_LOST',
      `${lease.holder.memberId} has not renewed its lease of ${this.source.name}:${lease.first} in time`,
      { ...this.facts, first: lease.first, end: lease.end, reason: 'lease_expired' },
    )
    this.#over(lease)
    this.owner.leaseLost(lease, error)
    // Never rejects.
    void this.#failExpired(lease, open)
  }

  async #failExpired(lease: Lease, open: readonly Run[]): Promise<void> {
    try {
      const limits = new Map<number, RecordLimits>()
      for (const run of open) await this.#readLimitsOf(run.first, run.end, limits)
      if (this.#isClosed) return
      const events: QueueEvent[] = []
      for (const run of open) {
        for (const part of this.state.within(run.first, run.end)) {
          if (part.lease !== lease.number) continue
          this.#fail(part, lease, 'lease_expired', SILENCE, limits, events)
          this.owner.count('expired', part.end - part.first)
          this.#vacate(part)
        }
      }
      await this.#written(events)
    } catch (error) {
      // The state is loaded anew then, and the leases with it are gone.
      this.#warn(error, 'expired leases could not be written')
    }
  }

  /** Gives back what a member holds: not a failure. Resolves when it is durable. */
  async release(holder: LeaseHolder): Promise<void> {
    await this.#releaseAll([...this.#book.living()].filter((lease) => lease.holder === holder))
  }

  /** Gives back what nobody has seen. Resolves when it is durable. */
  async takeBack(deliveries: readonly QueueDelivery[]): Promise<void> {
    const tokens = new Set(deliveries.map(({ token }) => token))
    await this.#releaseAll([...this.#book.living()].filter(({ token }) => tokens.has(token)))
  }

  async #releaseAll(leases: readonly Lease[]): Promise<void> {
    const events: QueueEvent[] = []
    for (const lease of leases) {
      for (const run of this.state.within(lease.first, lease.end)) {
        if (run.lease !== lease.number) continue
        this.#release(run, 0, events)
        this.#freed(lease, run, 'release')
      }
      this.#over(lease)
    }
    if (events.length > 0) await this.#written(events)
  }

  #over(lease: Lease): void {
    this.#wheel.remove(lease)
    this.#book.finish(lease)
  }

  /** As {@link #freed}, for a lease that is over already. */
  #vacate(run: Run): void {
    this.owner.held(run.first - run.end)
    this.#keyed.freeKeys(run)
  }

  /** Notes a run that was loaded. */
  #note(run: Run): void {
    if (run.state === 'parked') this.#retries.park(run.first, run.dueMs)
  }

  /** What is left of a run that was cut is known by another first offset now. */
  #noteRest(first: number): void {
    const rest = this.state.find(first)
    if (rest?.first !== first) return
    if (rest.state === 'parked') this.#retries.park(first, rest.dueMs)
    else if (rest.state === 'available' && !this.#keyed.isOn) this.#available.add(first)
  }

  /** A run may have been cut since it was parked: everything of it that is due is woken. */
  #wakeDue(): void {
    const nowMs = this.#clock.wallMs()
    let woken = false
    for (;;) {
      const first = this.#retries.popDue(nowMs)
      if (first === undefined) break
      const run = this.state.find(first)
      if (run?.state !== 'parked' || run.dueMs > nowMs) continue
      woken = true
      this.state.wake(run)
      if (!this.#keyed.isOn) this.#available.add(run.first)
      else for (let offset = run.first; offset < run.end; offset++) this.#keyed.giveBack(offset)
    }
    if (woken) this.owner.changed()
  }

  // ── Retention ──

  #holdRetention(): void {
    const start = this.state.start
    if (start === this.#heldStart) return
    this.#heldStart = start
    // What was redriven to this group is for nobody else.
    const isOurs = this.owner.holdsRetention || isRetryTopic(this.source.topic)
    const holds = isOurs && respectsQueueGroups(this.source.config)
    this.source.holdRetention(`queue ${this.group}`, holds ? start : undefined)
  }

  /** Never rejects: records below the log start are lost, and that is written down and counted. */
  async #followLogStart(): Promise<void> {
    const to = this.source.logStartOffset
    const { state } = this
    if (this.#isClosed || to <= state.start) return
    const events: QueueEvent[] = []
    const taken: Lease[] = []
    let lost = Math.max(0, to - state.scan)
    for (const run of state.within(0, to)) {
      lost += run.end - run.first
      const lease = run.lease === 0 ? undefined : this.#book.find(run.lease)
      this.#put(events, {
        type: 'dead',
        first: run.first,
        end: run.end,
        reason: 'retention',
        atMs: this.#clock.wallMs(),
      })
      if (lease !== undefined && !lease.isOver) {
        this.#freed(lease, run, 'none')
        if (lease.isOver) taken.push(lease)
      } else if (lease !== undefined) this.#vacate(run)
    }
    this.#put(events, { type: 'started', offset: to })
    this.#noteRest(state.start)
    for (const lease of taken) {
      const { first, end } = lease
      const error = new BrokerError(
        'LEASE_LOST',
        `${this.source.name} begins at ${to} now: what was leased below is gone`,
        { ...this.facts, first, end, reason: 'deleted' },
      )
      this.owner.leaseLost(lease, error)
    }
    if (lost > 0) {
      this.owner.count('lostToRetention', lost)
      this.#logger.warn(
        { group: this.group, partition: this.source.name, records: lost, to },
        'retention has taken records that a queue group had not finished',
      )
    }
    try {
      await this.#written(events)
    } catch (error) {
      this.#warn(error, 'the new start of a queue could not be written')
    }
  }

  // ── Looking ──

  describe(oldestReadyMs: number | undefined): QueuePartitionDescription {
    return describePartition(this.#view(), oldestReadyMs)
  }

  /** The first record that is available, or has never been looked at. */
  findOldestReady(): Offset | undefined {
    return findOldestReady(this)
  }

  /** Where a record is, and what it waits for. */
  explain(offset: number): Explanation {
    return explainRecord(this.#view(), offset)
  }

  #view(): QueueView {
    const { source, state, config, trouble, deadLetterTopic, ready } = this
    return {
      source,
      state,
      config,
      book: this.#book,
      clock: this.#clock,
      trouble,
      deadLetterTopic,
      ready,
      hasRoom: this.#hasRoom(),
      nextScanMs: this.#delay.untilMs,
      findBlockingByKey: (offset) => this.#keyed.findBlocking(offset),
    }
  }

  /** @throws BrokerError INVALID_REQUEST when it is not blocked */
  async unblock(offset: number, skip: boolean): Promise<void> {
    const run = this.state.find(offset)
    if (run?.state !== 'blocked') {
      throw new BrokerError(
        'INVALID_REQUEST',
        `${this.source.name}:${offset} is not blocked: it is ${this.explain(offset).state}`,
        { ...this.facts, offset },
      )
    }
    const [first, end] = [offset, offset + 1]
    await this.commit([
      skip
        ? { type: 'dead', first, end, reason: 'skipped', atMs: this.#clock.wallMs() }
        : {
            type: 'available',
            first,
            end,
            deliveries: 0,
            failures: 0,
            stalled: false,
            firstDeliveredMs: run.firstDeliveredMs,
          },
    ])
  }

  // ── The end ──

  /** Ends all leases without writing anything: they are nobody's any more. `error`: why, for whoever holds some. */
  async close(error: BrokerError | undefined): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    for (const stop of this.#stops) stop()
    this.#retries.close()
    this.#delay.close()
    this.#trouble.close()
    // Those of leases that have just run out, and of which nothing has been decided yet, among them.
    if (this.acquired > 0) this.owner.held(-this.acquired)
    for (const lease of this.#book.living()) {
      this.#over(lease)
      if (error !== undefined) this.owner.leaseLost(lease, error)
    }
    this.#keyed.freeAllKeys()
    this.shelf.clear()
    await this.#letters.close()
  }

  #warn(error: unknown, message: string): void {
    const cause = toBrokerError(error).message
    this.#logger.warn({ group: this.group, partition: this.source.name, cause }, message)
  }

  #closedError(): BrokerError {
    return new BrokerError(
      'LEASE_LOST',
      `${this.source.name} is not worked on here any more`,
      this.facts,
    )
  }
}
