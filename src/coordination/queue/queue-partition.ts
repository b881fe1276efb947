import { invariant, unreachable } from '../../common/assert.ts'
import type { CancelTimer, Clock } from '../../common/clock.ts'
import { BrokerError, toBrokerError } from '../../common/errors.ts'
import { ATTEMPTS_HEADER, BACKOFF_HEADER, ORDERING_KEY_HEADER } from '../../common/job-headers.ts'
import { isOffset, type Offset, toOffset } from '../../common/offset.ts'
import type { Random } from '../../common/random.ts'
import { DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS } from '../../common/units.ts'
import type { RecordHeader } from '../../record/batch-builder.ts'
import type { RecordCursor } from '../../record/record-cursor.ts'
import type { Partition } from '../../topic/partition.ts'
import { respectsQueueGroups } from '../../topic/topic-config.ts'
import type { Topics } from '../../topic/topics.ts'
import type { Peer } from '../peer.ts'
import { backoffDelayMs, type BackoffOverride, parseBackoff } from './backoff.ts'
import { BatchShelf, type Shelved, type Slice } from './batch-shelf.ts'
import type { CompanionLog, QueueLogger } from './companion.ts'
import { findFormerFailures } from './dead-letter-record.ts'
import { DeadLetterWriter, type DyingQueue } from './dead-letter-writer.ts'
import { DueHeap } from './due-heap.ts'
import { type Admission, type KeyedRecord, KeyLanes } from './key-lanes.ts'
import { type Lease, LeaseBook, type LeaseHolder, type LeaseOwner, wasSettledAs } from './lease.ts'
import { isRetryTopic } from './names.ts'
import type { QueueConfig } from './queue-config.ts'
import type { DeadReason, QueueEvent, QueueState, Run } from './queue-state.ts'
import type {
  AckFailure,
  AckItem,
  Explanation,
  FailureInfo,
  QueueCounters,
  QueueDelivery,
  QueuePartitionDescription,
  WorkError,
} from './queue-types.ts'
import type { TimingWheel } from './timing-wheel.ts'

/** What a partition asks of the group that it belongs to. */
export interface QueueOwner {
  readonly group: string
  /** As they are now, for this topic. */
  readonly config: QueueConfig
  /** Where dead letters go; '': nowhere. */
  readonly deadLetterTopic: string
  /** Where those go that were promised to be written, also when none are wanted any more. */
  readonly deadLetterPlace: string
  /** Retention waits for this group here. */
  readonly holdsRetention: boolean
  /** So many more, or fewer, records of the group are leased. */
  held(records: number): void
  /** One more, or one less, is leased under `concurrency.key`. */
  heldKey(key: string, records: number): void
  /** Whether limits by key let the record go out now. */
  admit(record: KeyedRecord): Admission
  /** It goes out. */
  admitted(record: KeyedRecord): void
  count(what: keyof QueueCounters, records: number): void
  leaseLost(lease: Lease, error: BrokerError): void
  /** Something may be given out that could not be before. */
  changed(): void
  /** All groups of this partition: their state has to be loaded anew. */
  pauseGroup(untilMs: number): void
}

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

/** An item of a request that is about this partition. */
export interface PartitionAck {
  /** Its place in the request. */
  readonly index: number
  /** Of the lease. */
  readonly number: number
  readonly item: AckItem
}

/** What a record says of its own retries. */
interface RecordLimits {
  readonly attempts: number | undefined
  readonly backoff: BackoffOverride | undefined
}

/** Part of an acknowledgement that has been checked. */
interface Verified {
  readonly lease: Lease
  readonly item: AckItem
  /** Still leased. */
  readonly runs: readonly Run[]
}

const MOST_DELAY_MS: number = 30 * DAY_MS
const MOST_PAUSE_MS: number = HOUR_MS
/** A timer does not notice that somebody moves the wall clock, by which retries are due: it looks again that often. */
const LONGEST_TIMER_MS: number = MINUTE_MS
const MOST_TYPE = 128
const MOST_MESSAGE = 2048
const MOST_STACK = 8192
/** A log that cannot be read is tried again after this. */
const TROUBLE_MS: number = 5 * SECOND_MS
/** Available runs that are looked at for one that a member may have. */
const MOST_PASSED_OVER = 32
const NO_LIMITS: RecordLimits = { attempts: undefined, backoff: undefined }
const NO_ERROR: WorkError = { type: '', message: '', stack: '' }

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
  /** First offsets of available runs, for `take` without keys. */
  readonly #available = new DueHeap()
  /** First offsets of parked runs by when they are due. */
  readonly #parked = new DueHeap()
  readonly #stops: (() => void)[] = []
  #lanes: KeyLanes | undefined
  #lanesLoaded = true
  #cancelDue: CancelTimer | undefined
  #dueAtMs = Infinity
  /** No record is looked at before this, on the wall clock (`queue.delay.ms`). */
  #nextScanMs = 0
  #cancelScan: CancelTimer | undefined
  #trouble: BrokerError | undefined
  #troubleUntilMs = 0
  #isClosed = false
  #heldStart = -1
  /** Lanes were passed over for what their member has in hand: another one may have them. */
  #hasHeldBack = false
  /** What is being read, for whoever has to deal with its failure. */
  #readingAt = 0
  #cancelTrouble: CancelTimer | undefined
  /** Of leased records, by offset, the keys that `concurrency.key.max` counts. */
  readonly #heldKeys = new Map<number, string>()

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
    this.#letters = new DeadLetterWriter({
      queue: this,
      peer: options.peer,
      topics: options.topics,
      clock: options.clock,
      logger: options.logger,
    })
    for (const run of this.state.runs) this.#note(run)
    this.#configureLanes()
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

  /** Why nothing is given out, if so. */
  get trouble(): BrokerError | undefined {
    return this.source.failure ?? this.companion.failure ?? this.#trouble
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
    this.#configureLanes()
    this.#nextScanMs = 0
    this.#heldStart = -1
    this.#holdRetention()
    this.#letters.wake()
    // Never rejects.
    void this.#killWornOut()
  }

  /** Other limits may have room now. */
  retryStuck(): void {
    this.#lanes?.retryStuck()
  }

  // ── Giving out ──

  /** Whether {@link take} might find something. */
  get hasReady(): boolean {
    if (this.#isClosed || this.source.failure !== undefined || this.companion.failure !== undefined)
      return false
    if (this.#trouble !== undefined && this.#clock.monotonicMs() < this.#troubleUntilMs)
      return false
    if (this.isDeadLetteringFull) return false
    const canScan = this.#canScan()
    if (this.#lanes !== undefined) {
      if (!this.#lanesLoaded) return true
      // What was looked at ahead of its turn is not in flight yet, so there may be more of it than may be in flight.
      const isFull = this.state.count('acquired') >= this.config.maxInflight
      return !isFull && (this.#lanes.hasReady || this.#hasHeldBack || canScan)
    }
    if (this.config.order === 'partition')
      return this.#isFree() && (this.state.count('available') > 0 || canScan)
    return this.#available.length > 0 || canScan
  }

  #canScan(): boolean {
    return (
      this.state.scan < this.source.highWatermark &&
      this.#hasRoom() &&
      (this.#nextScanMs === 0 || this.#nextScanMs <= this.#clock.wallMs())
    )
  }

  #hasRoom(): boolean {
    const { state, config } = this
    if (state.runs.length >= config.maxRuns) return false
    if (this.#lanes === undefined)
      return state.count('acquired') + state.count('available') < config.maxInflight
    return (
      state.count('acquired') < config.maxInflight &&
      this.#lanes.waiting < config.maxRuns &&
      this.#lanes.keys < config.orderMaxBusyKeys
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
      if (this.#hasHeldBack) {
        this.#hasHeldBack = false
        this.#lanes?.retryStuck()
      }
      while (count < most && (bytes < mostBytes || count === 0) && this.hasReady) {
        // Settings may change at any time, and what is leased has to be known by its key before anything else is given out.
        if (!this.#lanesLoaded) {
          await this.#loadLanes()
          continue
        }
        const lanes = this.#lanes
        const offered = lanes === undefined ? this.#offer(holder) : this.#offerKeyed(lanes, holder)
        if (offered === undefined) {
          if (lanes !== undefined && this.#canScan() && (await this.#lookAhead(lanes))) continue
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
    this.#trouble = undefined
    return shelved
  }

  /** The oldest that is available again, else what has never been looked at. */
  #offer(holder: LeaseHolder): Offer | undefined {
    const { state } = this
    const passedOver: number[] = []
    let offer: Offer | undefined
    while (passedOver.length < MOST_PASSED_OVER) {
      const first = this.#available.peekOffset()
      if (first === undefined) break
      const run = state.find(first)
      if (run?.state !== 'available') {
        this.#available.pop()
        continue
      }
      const isolated = this.#isolate(run)
      if (isolated.isLastChance && holder.lastChances > 0) {
        this.#available.pop()
        passedOver.push(first)
        continue
      }
      offer = {
        first,
        end: run.end,
        run,
        most: this.config.order === 'partition' ? 1 : isolated.most,
        isLastChance: isolated.isLastChance,
        keyed: undefined,
      }
      break
    }
    for (const first of passedOver) this.#available.push(first, first)
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

  /**
   * One of these records may be what kills whoever has it: such runs are handed out in halves, and on their last attempt one by one, one at a time to a member
   * (Kafka's idea), so that it does not take its neighbours with it.
   */
  #isolate(run: Run): { readonly most: number; readonly isLastChance: boolean } {
    const limit = this.config.maxAttempts
    if (!run.stalled || limit === 0) return { most: Infinity, isLastChance: false }
    if (run.failures >= limit - 1) return { most: 1, isLastChance: true }
    if (run.deliveries >= Math.max(2, Math.ceil(limit / 2))) {
      return { most: Math.ceil((run.end - run.first) / 2), isLastChance: false }
    }
    return { most: Infinity, isLastChance: false }
  }

  /** The records offered, as far as this batch has them; undefined, and progress made, when it has none. */
  #cut(offer: Offer, shelved: Shelved, most: number, mostBytes: number): Slice | undefined {
    const { state } = this
    const end = Math.min(offer.end, shelved.end)
    if (shelved.isGap) {
      this.#pass(offer, offer.first, end)
      return undefined
    }
    if (offer.run === undefined && this.config.delayMs > 0) {
      const dueMs = shelved.maxTimestampMs + this.config.delayMs
      if (dueMs > this.#clock.wallMs()) {
        this.#waitForScan(dueMs)
        return undefined
      }
    }
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
    if (offer.keyed !== undefined) this.#lanes?.remove(first)
    if (offer.run !== undefined && end < offer.run.end) this.#available.push(end, end)
    this.#holdRetention()
  }

  #lease(holder: LeaseHolder, offer: Offer, slice: Slice, leaseMs: number): QueueDelivery {
    const { state } = this
    const nowMs = this.#clock.monotonicMs()
    const wallMs = this.#clock.wallMs()
    const lease = this.#book.grant(holder, slice, leaseMs, nowMs, offer.isLastChance)
    state.acquire(slice.first, slice.end, lease.number, wallMs)
    if (slice.count < slice.end - slice.first) this.#passHoles(lease, slice)
    if (offer.run !== undefined && offer.keyed === undefined) {
      // What was passed over may come before it: then its own entry is found out of date later.
      if (this.#available.peekOffset() === offer.first) this.#available.pop()
      if (slice.end < offer.run.end) this.#available.push(slice.end, slice.end)
    }
    if (offer.keyed !== undefined) {
      this.#lanes?.hold(offer.keyed)
      const key = offer.keyed.concurrencyKey
      if (key !== undefined) this.#holdKey(slice.first, key)
      this.owner.admitted(offer.keyed)
    }
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

  #waitForScan(dueMs: number): void {
    this.#nextScanMs = dueMs
    this.#cancelScan?.()
    const delayMs = Math.min(LONGEST_TIMER_MS, Math.max(1, dueMs - this.#clock.wallMs()))
    this.#cancelScan = this.#clock.schedule(delayMs, () => {
      // It may have been further off than a timer goes, or the clock was set back.
      if (this.#nextScanMs > this.#clock.wallMs()) this.#waitForScan(this.#nextScanMs)
      else this.owner.changed()
    })
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
    this.#trouble = trouble
    this.#troubleUntilMs = this.#clock.monotonicMs() + TROUBLE_MS
    this.#logger.error(facts, 'a queue cannot read its partition')
    this.#cancelTrouble?.()
    this.#cancelTrouble = this.#clock.schedule(TROUBLE_MS, () => {
      if (!this.#isClosed) this.owner.changed()
    })
  }

  #lostEvent(first: number, end: number): QueueEvent {
    this.owner.count('lostToRetention', end - first)
    return { type: 'dead', first, end, reason: 'retention', atMs: this.#clock.wallMs() }
  }

  // ── Keys ──

  #configureLanes(): void {
    const { config } = this
    const wanted =
      config.order === 'key' ||
      config.concurrencyKeyMax > 0 ||
      (config.rateMax > 0 && config.rateKey !== '') ||
      // Redriven records may begin with failures, which stands in their headers.
      isRetryTopic(this.source.topic)
    // Which keys records have depends on the settings, so they are looked up anew, also when there were lanes before.
    this.#lanes = wanted ? new KeyLanes() : undefined
    this.#lanesLoaded = !wanted || this.state.runs.length === 0
    if (!wanted)
      for (const run of this.state.runs)
        if (run.state === 'available') this.#available.push(run.first, run.first)
  }

  /** Looks up the keys of what is below the scan offset and not settled. */
  async #loadLanes(): Promise<void> {
    const lanes = this.#lanes
    if (lanes === undefined) return
    const add = (cursor: RecordCursor): void => {
      const run = this.state.find(cursor.offset)
      if (run === undefined || lanes.find(cursor.offset) !== undefined) return
      this.#bear(cursor, run)
      this.#addKeyed(lanes, cursor, this.#placeOf(run))
      const key = lanes.find(cursor.offset)?.concurrencyKey
      if (run.state === 'acquired' && key !== undefined) this.#holdKey(cursor.offset, key)
    }
    for (let from = this.state.start; from < this.state.scan;) {
      const run = this.state.find(from) ?? this.state.runs.find((one) => one.first >= from)
      if (run === undefined) break
      let at = Math.max(run.first, from)
      const shelved = this.shelf.find(at) ?? (await this.#load(at, true))
      if (this.#lanes !== lanes || this.#isClosed) return
      const end = Math.min(shelved.end, this.state.scan)
      while (at < end) {
        const cursor = shelved.seek(at)
        const next = Math.min(cursor?.offset ?? end, end)
        // Nobody will ever ask for what is not there.
        if (next > at) this.state.pass(at, next)
        if (cursor === undefined || next === end) break
        add(cursor)
        at = next + 1
      }
      from = toOffset(end)
    }
    this.#lanesLoaded = true
    this.#holdRetention()
  }

  #placeOf(run: Run): KeyedRecord['place'] {
    if (run.state === 'available') return 'waiting'
    if (run.state === 'acquired') return 'held'
    return this.#keepsKey() ? 'held' : 'aside'
  }

  /** What is not settled, and not to be had now, holds its key. */
  #keepsKey(): boolean {
    return this.config.order !== 'none' && this.config.orderOnFailure === 'block'
  }

  #addKeyed(lanes: KeyLanes, cursor: RecordCursor, place: KeyedRecord['place']): void {
    const { config } = this
    const headers = cursor.headerCount === 0 ? [] : cursor.readHeaders()
    const ordering = textOf(headers, ORDERING_KEY_HEADER) ?? keyOf(cursor)
    const concurrencyKey =
      config.concurrencyKeyMax === 0
        ? undefined
        : config.concurrencyKey === ''
          ? ordering
          : textOf(headers, config.concurrencyKey)
    const rateKey =
      config.rateMax === 0 || config.rateKey === ''
        ? undefined
        : config.rateKey === 'key'
          ? ordering
          : textOf(headers, config.rateKey)
    const ordered =
      config.order === 'partition' || (config.order === 'key' && ordering !== undefined)
    // A letter in front keeps a key from being taken for the absence of one. Other limits' keys make lanes too, so that one that is stuck holds up only its own.
    const lane = ordered
      ? config.order === 'partition'
        ? 'p'
        : `k${ordering}`
      : concurrencyKey !== undefined
        ? `c${concurrencyKey}`
        : rateKey === undefined
          ? ''
          : `r${rateKey}`
    lanes.add(cursor.offset, lane, ordered ? 1 : Infinity, { concurrencyKey, rateKey }, place)
  }

  /** The next record whose keys are free, of those that have been looked at. */
  #offerKeyed(lanes: KeyLanes, holder: LeaseHolder): Offer | undefined {
    const admit = (record: KeyedRecord): Admission => {
      if (holder.lastChances > 0) {
        const run = this.state.find(record.offset)
        if (run !== undefined && this.#isolate(run).isLastChance) {
          this.#hasHeldBack = true
          return 'later'
        }
      }
      return this.owner.admit(record)
    }
    for (;;) {
      const keyed = lanes.peek(admit)
      if (keyed === undefined) return undefined
      const run = this.state.find(keyed.offset)
      if (run?.state !== 'available') {
        lanes.remove(keyed.offset) // Retention has taken it.
        continue
      }
      const isLastChance = this.#isolate(run).isLastChance
      return { first: keyed.offset, end: keyed.offset + 1, run, most: 1, isLastChance, keyed }
    }
  }

  /** Puts the records of one batch into their lanes. False when there is nothing to look at now. */
  async #lookAhead(lanes: KeyLanes): Promise<boolean> {
    const from = Math.max(this.state.scan, this.source.logStartOffset)
    const shelved = this.shelf.find(from) ?? (await this.#load(from, true))
    if (this.#isClosed) return false
    // Settings have changed, or retention has gone on.
    if (this.#lanes !== lanes || from < this.state.scan) return true
    const end = Math.min(shelved.end, this.source.highWatermark)
    if (shelved.isGap) {
      this.state.pass(from, end)
      return true
    }
    if (
      this.config.delayMs > 0 &&
      shelved.maxTimestampMs + this.config.delayMs > this.#clock.wallMs()
    ) {
      this.#waitForScan(shelved.maxTimestampMs + this.config.delayMs)
      return false
    }
    let at: number = from
    while (at < end && this.#hasRoom()) {
      const cursor = shelved.seek(at)
      if (cursor === undefined || cursor.offset >= end) {
        this.state.pass(at, end)
        at = end
        break
      }
      if (cursor.offset > at) this.state.pass(at, cursor.offset)
      at = cursor.offset + 1
      this.state.advanceScan(at, 'available')
      this.#bear(cursor, this.state.find(cursor.offset))
      this.#addKeyed(lanes, cursor, 'waiting')
    }
    return true
  }

  /** A redriven record may begin with the failures that its headers tell of. Not written: it will be found so again. */
  #bear(cursor: RecordCursor, run: Run | undefined): void {
    if (run?.state !== 'available' || run.deliveries > 0 || run.failures > 0) return
    if (cursor.headerCount === 0 || !isRetryTopic(this.source.topic)) return
    const failures = findFormerFailures(this.source.topic, cursor.readHeaders())
    if (failures === 0) return
    this.state.apply({
      type: 'available',
      first: cursor.offset,
      end: cursor.offset + 1,
      deliveries: 0,
      failures,
      stalled: false,
      firstDeliveredMs: 0,
    })
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
          const verified = this.#verify(some)
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

  /** Checks everything, changes nothing. @throws BrokerError LEASE_LOST, INVALID_ACK_RANGE, INVALID_DELAY, LEASE_LIMIT_REACHED */
  #verify(items: readonly PartitionAck[]): Verified[] {
    const verified: Verified[] = []
    const byLease = new Map<Lease, { readonly items: AckItem[]; end: number }>()
    for (const { number, item } of items) {
      checkDelay(item)
      const lease = this.#book.find(number)
      if (lease === undefined) throw this.#lost(item.first)
      if (item.verdict === 'renew') {
        if (lease.isOver) throw this.#lost(lease.first)
        this.#checkRenewal(lease)
        verified.push({ lease, item, runs: [] })
        continue
      }
      const { first, end } = item
      if (
        !isOffset(first) ||
        !isOffset(end) ||
        first >= end ||
        first < lease.first ||
        end > lease.end
      ) {
        throw new BrokerError(
          'INVALID_ACK_RANGE',
          `[${first}, ${end}) is no part of what the token leases: [${lease.first}, ${lease.end}) of ${this.source.name}`,
          { ...this.#facts, first, end, leaseFirst: lease.first, leaseEnd: lease.end },
        )
      }
      const others = byLease.get(lease)
      if (others === undefined) byLease.set(lease, { items: [item], end })
      else {
        // In order they come nearly always; then nothing has to be looked through.
        const clash =
          others.end <= first
            ? undefined
            : others.items.find((one) => one.first < end && first < one.end)
        if (clash !== undefined) {
          throw new BrokerError(
            'INVALID_ACK_RANGE',
            `[${first}, ${end}) and [${clash.first}, ${clash.end}) of ${this.source.name} overlap in one request: say one thing of each record`,
            { ...this.#facts, first, end },
          )
        }
        others.items.push(item)
        others.end = Math.max(others.end, end)
      }
      // Of a lease that has run out nothing is left, also while it is being decided what becomes of its records.
      const runs = lease.isOver
        ? []
        : this.state.within(first, end).filter((run) => run.lease === lease.number)
      let open = 0
      for (const run of runs) open += run.end - run.first
      if (open < end - first && !this.#isSettled(lease, first, end, runs, item))
        throw this.#lost(first)
      verified.push({ lease, item, runs })
    }
    return verified
  }

  /** Whether all of the range that is not leased any more was settled just so, under this very lease. */
  #isSettled(
    lease: Lease,
    first: number,
    end: number,
    runs: readonly Run[],
    item: AckItem,
  ): boolean {
    let at = first
    for (const run of [...runs, { first: end, end }]) {
      if (at < run.first && !wasSettledAs(lease, at, run.first, item.verdict)) return false
      at = run.end
    }
    return true
  }

  #checkRenewal(lease: Lease): void {
    const limitMs = lease.grantedMs + this.config.leaseMaxTotalMs
    if (this.#clock.monotonicMs() < limitMs && lease.deadlineMs < limitMs) return
    throw new BrokerError(
      'LEASE_LIMIT_REACHED',
      `a lease of ${this.source.name} has been renewed up to queue.lease.max.total.ms (${this.config.leaseMaxTotalMs} ms): it runs out`,
      { ...this.#facts, first: lease.first, limit: this.config.leaseMaxTotalMs },
    )
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
      this.#logger.warn(
        { group: this.group, partition: this.source.name, cause: toBrokerError(error).message },
        'records that were given out too often could not be given up',
      )
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
    const failure: FailureInfo = {
      error: shorten(item.error ?? (kind === 'lease_expired' ? expiredError(lease) : NO_ERROR)),
      atMs: this.#clock.wallMs(),
      memberId: lease.holder.memberId,
      kind,
    }
    for (const part of splitByLimits(run, limits)) {
      const own = limits?.get(part.first) ?? NO_LIMITS
      const failures = part.failures + 1
      const limit =
        own.attempts === undefined
          ? this.config.maxAttempts
          : this.config.maxAttempts === 0
            ? own.attempts
            : Math.min(own.attempts, this.config.maxAttempts)
      if (kind === 'rejected') this.#kill(part, 'rejected', failure, failures, events)
      else if ((limit > 0 && failures >= limit) || this.#isWornOut(part)) {
        this.#kill(
          part,
          kind === 'retry' ? 'attempts_exhausted' : 'lease_expired',
          failure,
          failures,
          events,
        )
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
    const lanes = this.#lanes
    if (event.type === 'started' || event.type === 'marked') return
    if (event.type === 'parked') this.#park(event.first, event.dueMs)
    if (event.type === 'dead') this.#noteRest(event.end)
    if (lanes === undefined) {
      if (event.type === 'available') this.#available.push(event.first, event.first)
      return
    }
    for (let offset = event.first; offset < event.end; offset++) {
      if (event.type === 'available') lanes.giveBack(offset)
      else if (event.type === 'accepted' || event.type === 'dead') lanes.remove(offset)
      else if (!this.#keepsKey()) lanes.setAside(offset)
    }
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
    this.#freeKeys(run)
  }

  #holdKey(offset: number, key: string): void {
    if (this.#heldKeys.has(offset)) return
    this.#heldKeys.set(offset, key)
    this.owner.heldKey(key, 1)
  }

  /** Also when keys do not count any more: they did when the records went out. */
  #freeKeys(run: { readonly first: number; readonly end: number }): void {
    for (let offset = run.first; offset < run.end && this.#heldKeys.size > 0; offset++)
      this.#freeKey(offset)
  }

  #freeKey(offset: number): void {
    const key = this.#heldKeys.get(offset)
    if (key === undefined) return
    this.#heldKeys.delete(offset)
    this.owner.heldKey(key, -1)
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
      for (const run of this.state.within(first, end)) {
        let at = run.first
        while (at < run.end) {
          const shelved = this.shelf.find(at) ?? (await this.shelf.load(at, false))
          const cursor = shelved.seek(at)
          if (cursor === undefined) {
            at = shelved.end
            continue
          }
          if (cursor.offset < run.end && cursor.headerCount > 0) {
            const own = toLimits(cursor.readHeaders())
            if (own !== undefined) limits.set(cursor.offset, own)
          }
          at = cursor.offset + 1
        }
      }
    } catch (error) {
      this.#logger.warn(
        { group: this.group, partition: this.source.name, cause: toBrokerError(error).message },
        'the own limits of failed records could not be read',
      )
    }
  }

  #lost(offset: number): BrokerError {
    const run = this.state.find(offset)
    const now = run === undefined ? (offset < this.state.scan ? 'done' : 'unscanned') : run.state
    const holder =
      run?.state === 'acquired' ? this.#book.find(run.lease)?.holder.memberId : undefined
    return new BrokerError(
      'LEASE_LOST',
      `the lease of ${this.source.name}:${offset} has ended${holder === undefined ? '' : `, and ${holder} has it now`}: what was done will be done again unless it is done (${now})`,
      { ...this.#facts, offset, state: now, ...(holder === undefined ? {} : { holder }) },
    )
  }

  get #facts(): { group: string; topic: string; partition: number } {
    return { group: this.group, topic: this.source.topic, partition: this.source.index }
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
      { ...this.#facts, first: lease.first, end: lease.end, reason: 'lease_expired' },
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
          this.#fail(
            part,
            lease,
            'lease_expired',
            { error: undefined, delayMs: undefined },
            limits,
            events,
          )
          this.owner.count('expired', part.end - part.first)
          this.#vacate(part)
        }
      }
      await this.#written(events)
    } catch (error) {
      // The state is loaded anew then, and the leases with it are gone.
      this.#logger.warn(
        { group: this.group, partition: this.source.name, cause: toBrokerError(error).message },
        'expired leases could not be written',
      )
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
    this.#freeKeys(run)
  }

  /** Notes a run that was loaded. */
  #note(run: Run): void {
    if (run.state === 'parked') this.#park(run.first, run.dueMs)
  }

  /** What is left of a run that was cut is known by another first offset now. */
  #noteRest(first: number): void {
    const rest = this.state.find(first)
    if (rest?.first !== first) return
    if (rest.state === 'parked') this.#park(first, rest.dueMs)
    else if (rest.state === 'available' && this.#lanes === undefined)
      this.#available.push(first, first)
  }

  #park(first: number, dueMs: number): void {
    this.#parked.push(dueMs, first)
    this.#armDue()
  }

  #armDue(): void {
    const dueMs = this.#parked.peekDueMs()
    if (dueMs === undefined || this.#isClosed || dueMs >= this.#dueAtMs) return
    this.#cancelDue?.()
    this.#dueAtMs = dueMs
    const delayMs = Math.min(LONGEST_TIMER_MS, Math.max(0, dueMs - this.#clock.wallMs()))
    this.#cancelDue = this.#clock.schedule(delayMs, () => {
      this.#dueAtMs = Infinity
      this.#wakeDue()
      this.#armDue()
    })
  }

  /** A run may have been cut since it was parked: everything of it that is due is woken. */
  #wakeDue(): void {
    const nowMs = this.#clock.wallMs()
    let woken = false
    for (;;) {
      const first = this.#parked.popDue(nowMs)
      if (first === undefined) break
      const run = this.state.find(first)
      if (run?.state !== 'parked' || run.dueMs > nowMs) continue
      woken = true
      this.state.wake(run)
      if (this.#lanes === undefined) this.#available.push(run.first, run.first)
      else for (let offset = run.first; offset < run.end; offset++) this.#lanes.giveBack(offset)
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
        { ...this.#facts, first, end, reason: 'deleted' },
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
      this.#logger.warn(
        { group: this.group, partition: this.source.name, cause: toBrokerError(error).message },
        'the new start of a queue could not be written',
      )
    }
  }

  // ── Looking ──

  describe(oldestReadyMs: number | undefined): QueuePartitionDescription {
    const { state, source } = this
    return {
      topic: source.topic,
      partition: source.index,
      logStartOffset: source.logStartOffset,
      startOffset: state.start,
      scanOffset: state.scan,
      highWatermark: source.highWatermark,
      ready: this.ready,
      acquired: state.count('acquired'),
      parked: state.count('parked'),
      deadLettering: state.count('dead-lettering'),
      blocked: state.count('blocked'),
      done: state.settled,
      runs: state.runs.length,
      oldestReadyMs,
      error: this.trouble,
    }
  }

  /** The first record that is available, or has never been looked at. */
  findOldestReady(): Offset | undefined {
    const { state, source } = this
    const run =
      state.count('available') === 0
        ? undefined
        : state.runs.find((one) => one.state === 'available')
    if (run !== undefined) return toOffset(run.first)
    return state.scan < source.highWatermark
      ? toOffset(Math.max(state.scan, source.logStartOffset))
      : undefined
  }

  explain(offset: number): Explanation {
    const { state, source } = this
    const base = {
      deliveryCount: 0,
      failureCount: 0,
      dueMs: undefined,
      memberId: '',
      leaseExpiresMs: undefined,
      blockedByOffset: undefined,
      failures: [],
      startOffset: state.start,
      scanOffset: state.scan,
      highWatermark: source.highWatermark,
    }
    if (offset >= source.highWatermark) {
      return {
        ...base,
        state: 'not-yet',
        reason: `there is no record at ${offset} yet: the partition ends at ${source.highWatermark}`,
      }
    }
    const dead = state.findDead(offset)
    const run = state.find(offset)
    if (run === undefined) {
      if (dead !== undefined) {
        return {
          ...base,
          state: 'dead',
          reason: `given up (${dead.reason}) at ${new Date(dead.atMs).toISOString()}`,
        }
      }
      if (offset < source.logStartOffset) {
        return {
          ...base,
          state: 'gone',
          reason: `below the log start ${source.logStartOffset}: retention or a deletion has taken it`,
        }
      }
      if (offset >= state.scan) {
        return { ...base, state: 'unscanned', reason: this.#whyUnscanned(offset) }
      }
      return { ...base, state: 'done', reason: "settled: accepted, or never this group's business" }
    }
    const counts = {
      ...base,
      deliveryCount: run.deliveries,
      failureCount: run.failures,
      failures: run.history,
    }
    switch (run.state) {
      case 'available': {
        const blockedByOffset = this.#findBlocking(offset)
        const reason =
          blockedByOffset === undefined
            ? 'waits for a worker with room'
            : `waits until offset ${blockedByOffset}, which goes before it, is settled`
        return { ...counts, state: 'available', reason, blockedByOffset }
      }
      case 'acquired': {
        const lease = this.#book.find(run.lease)
        const leftMs = (lease?.deadlineMs ?? 0) - this.#clock.monotonicMs()
        return {
          ...counts,
          state: 'acquired',
          reason: `leased to ${lease?.holder.memberId ?? 'nobody'} for ${Math.max(0, Math.round(leftMs))} ms more`,
          memberId: lease?.holder.memberId ?? '',
          leaseExpiresMs: Math.round(this.#clock.wallMs() + leftMs),
        }
      }
      case 'parked':
        return {
          ...counts,
          state: 'parked',
          reason: `waits for its next attempt at ${new Date(run.dueMs).toISOString()}`,
          dueMs: run.dueMs,
        }
      case 'dead-lettering':
        return {
          ...counts,
          state: 'dead-lettering',
          reason: `given up (${run.reason}); its dead letter is being written to ${this.deadLetterTopic}`,
        }
      case 'blocked':
        return {
          ...counts,
          state: 'blocked',
          reason: `given up (${run.reason}) and held by dlq.policy=block until an operator says what next`,
        }
      default:
        return unreachable(run.state)
    }
  }

  #whyUnscanned(offset: number): string {
    if (this.trouble !== undefined) return `the partition cannot be read: ${this.trouble.message}`
    if (!this.#hasRoom())
      return `not looked at yet: so much is leased or waits that the queue looks no further than ${this.state.scan}`
    if (this.#nextScanMs > this.#clock.wallMs())
      return `not looked at before ${new Date(this.#nextScanMs).toISOString()} (queue.delay.ms)`
    return `not looked at yet: ${offset - this.state.scan} records are before it`
  }

  #findBlocking(offset: number): Offset | undefined {
    const byKey = this.#lanes?.findBlocking(offset)
    if (byKey !== undefined) return toOffset(byKey)
    const first = this.state.runs[0]
    if (this.config.order !== 'partition' || first === undefined || first.first >= offset)
      return undefined
    return toOffset(first.first)
  }

  /** @throws BrokerError INVALID_REQUEST when it is not blocked */
  async unblock(offset: number, skip: boolean): Promise<void> {
    const run = this.state.find(offset)
    if (run?.state !== 'blocked') {
      throw new BrokerError(
        'INVALID_REQUEST',
        `${this.source.name}:${offset} is not blocked: it is ${this.explain(offset).state}`,
        { ...this.#facts, offset },
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
    this.#cancelDue?.()
    this.#cancelScan?.()
    this.#cancelTrouble?.()
    // Those of leases that have just run out, and of which nothing has been decided yet, among them.
    if (this.acquired > 0) this.owner.held(-this.acquired)
    for (const lease of this.#book.living()) {
      this.#over(lease)
      if (error !== undefined) this.owner.leaseLost(lease, error)
    }
    for (const key of this.#heldKeys.values()) this.owner.heldKey(key, -1)
    this.#heldKeys.clear()
    this.shelf.clear()
    await this.#letters.close()
  }

  #closedError(): BrokerError {
    return new BrokerError(
      'LEASE_LOST',
      `${this.source.name} is not worked on here any more`,
      this.#facts,
    )
  }
}

/** Records that could be given out. */
interface Offer {
  readonly first: number
  readonly end: number
  /** Undefined: never looked at. */
  readonly run: Run | undefined
  readonly most: number
  readonly isLastChance: boolean
  readonly keyed: KeyedRecord | undefined
}

/** In the order of their first items. */
function groupByLease(items: readonly PartitionAck[]): Iterable<readonly PartitionAck[]> {
  if (items.length === 1) return [items]
  const groups = new Map<number, PartitionAck[]>()
  for (const item of items) {
    const group = groups.get(item.number)
    if (group === undefined) groups.set(item.number, [item])
    else group.push(item)
  }
  return groups.values()
}

function checkDelay(item: AckItem): void {
  const { delayMs } = item
  if (delayMs === undefined || (delayMs >= 0 && delayMs <= MOST_DELAY_MS)) return
  throw new BrokerError(
    'INVALID_DELAY',
    `a delay of ${delayMs} ms is outside [0, ${MOST_DELAY_MS}]`,
    { field: 'delay_ms', actual: delayMs, limit: MOST_DELAY_MS },
  )
}

function expiredError(lease: Lease): WorkError {
  return {
    type: 'LeaseExpired',
    message: `the lease of ${lease.leaseMs} ms was not renewed`,
    stack: '',
  }
}

function shorten(error: WorkError): WorkError {
  return {
    type: error.type.slice(0, MOST_TYPE),
    message: error.message.slice(0, MOST_MESSAGE),
    stack: error.stack.slice(0, MOST_STACK),
  }
}

/** Pieces whose records have the same limits: those with their own stand alone. */
function splitByLimits(run: Run, limits: ReadonlyMap<number, RecordLimits> | undefined): Run[] {
  if (limits === undefined || limits.size === 0) return [run]
  const parts: Run[] = []
  let from = run.first
  for (let offset = run.first; offset < run.end; offset++) {
    if (!limits.has(offset)) continue
    if (from < offset) parts.push({ ...run, first: from, end: offset })
    parts.push({ ...run, first: offset, end: offset + 1 })
    from = offset + 1
  }
  if (from < run.end) parts.push({ ...run, first: from })
  return parts
}

function toLimits(headers: readonly RecordHeader[]): RecordLimits | undefined {
  const attemptsText = textOf(headers, ATTEMPTS_HEADER)
  const backoffText = textOf(headers, BACKOFF_HEADER)
  if (attemptsText === undefined && backoffText === undefined) return undefined
  const attempts =
    attemptsText !== undefined && /^\d{1,4}$/.test(attemptsText) ? Number(attemptsText) : undefined
  let backoff: BackoffOverride | undefined
  try {
    if (backoffText !== undefined) backoff = parseBackoff(backoffText)
  } catch {
    backoff = undefined // A producer of another kind wrote it: the group's rule is what is left.
  }
  return { attempts: attempts === 0 ? undefined : attempts, backoff }
}

function textOf(headers: readonly RecordHeader[], name: string): string | undefined {
  const value = headers.findLast(({ key }) => key === name)?.value
  return value === undefined
    ? undefined
    : Buffer.from(value.buffer, value.byteOffset, value.length).toString('latin1')
}

/** One byte a letter: keys are compared, never shown. */
function keyOf(cursor: RecordCursor): string | undefined {
  if (cursor.keyStart < 0) return undefined
  const { bytes, keyStart, keyEnd } = cursor
  return Buffer.from(bytes.buffer, bytes.byteOffset + keyStart, keyEnd - keyStart).toString(
    'latin1',
  )
}
