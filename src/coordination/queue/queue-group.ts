import type { CancelTimer, Clock } from '../../common/clock.ts'
import { type BrokerError, toBrokerError } from '../../common/errors.ts'
import { MINUTE_MS, SECOND_MS } from '../../common/units.ts'
import type { Partition } from '../../topic/partition.ts'
import type { QueueLogger } from './companion.ts'
import type { Admission, KeyedRecord } from './key-lanes.ts'
import type { Lease, LeaseHolder } from './lease.ts'
import { deadLetterTopicName } from './names.ts'
import { type QueueConfig, type QueueOverrides, resolveQueueConfig } from './queue-config.ts'
import type { QueueOwner } from './queue-owner.ts'
import type { QueuePartition } from './queue-partition.ts'
import type {
  QueueCounters,
  QueueDelivery,
  QueueMemberDescription,
  WorkListener,
  WorkNotice,
} from './queue-types.ts'
import { type BucketLimits, KeyedBuckets, TokenBucket } from './token-bucket.ts'

/** How long a member whose connection broke may take to come back, where leases are released then. */
const GRACE_MS: number = 2 * SECOND_MS
/** A timer does not notice that somebody moves the wall clock, by which a pause ends: it looks again that often. */
const LONGEST_TIMER_MS: number = MINUTE_MS

export interface MemberRequest {
  readonly memberId: string
  readonly clientId: string
  readonly host: string
  readonly topic: GroupTopic
  readonly leaseMs: number
  readonly listener: WorkListener
}

/** Somebody who takes records: a session of Work, or one call of Receive. */
export class QueueMember implements LeaseHolder {
  readonly memberId: string
  readonly topic: GroupTopic
  readonly clientId: string
  readonly host: string
  leaseMs: number
  /** Undefined while nobody listens: broken off, or a call that has had its answer. */
  listener: WorkListener | undefined
  creditRecords = 0
  creditBytes = 0
  /** How often its credit was replaced. */
  creditChanges = 0
  lastChances = 0
  heardMs: number
  /** Partitions that are looking for something for it. */
  taking = 0
  cancelGrace: CancelTimer | undefined
  /** Called when it holds nothing any more. */
  onIdle: (() => void) | undefined
  /** Called when a partition has looked for something for it, and none is looking any more. */
  onSettled: (() => void) | undefined
  notice: WorkNotice = NO_NOTICE
  #acquired = 0

  constructor(request: MemberRequest, nowMs: number) {
    this.memberId = request.memberId
    this.clientId = request.clientId
    this.host = request.host
    this.topic = request.topic
    this.leaseMs = request.leaseMs
    this.listener = request.listener
    this.heardMs = nowMs
  }

  get acquired(): number {
    return this.#acquired
  }

  set acquired(count: number) {
    this.#acquired = count
    if (count === 0) this.onIdle?.()
  }

  get isHungry(): boolean {
    return this.listener !== undefined && this.creditRecords > 0 && this.creditBytes > 0
  }

  describe(nowMs: number): QueueMemberDescription {
    return {
      memberId: this.memberId,
      clientId: this.clientId,
      host: this.host,
      topic: this.topic.name,
      acquired: this.acquired,
      credit: this.creditRecords,
      connected: this.listener !== undefined,
      sinceHeardMs: Math.round(nowMs - this.heardMs),
    }
  }
}

export const NO_NOTICE: WorkNotice = {
  throttledUntilMs: 0,
  windowFull: false,
  paused: false,
  dlqUnavailable: false,
}

interface Slot {
  readonly partition: QueuePartition
  busy: boolean
  /** Members for whom there was nothing, until something changes. */
  readonly tried: Set<QueueMember>
  /** How often something has changed. */
  changes: number
}

export interface QueueGroupOptions {
  readonly id: string
  readonly overrides: QueueOverrides
  readonly clock: Clock
  readonly logger: QueueLogger
  /** Buckets begin empty: the group has run before. */
  readonly isOld: boolean
}

/** A queue group: its settings and limits, and the topics that it works through. */
export class QueueGroup {
  readonly id: string
  readonly topics: Map<string, GroupTopic> = new Map()
  readonly members: Map<string, QueueMember> = new Map()
  readonly counters: Record<keyof QueueCounters, number> = {
    delivered: 0,
    accepted: 0,
    released: 0,
    retried: 0,
    rejected: 0,
    expired: 0,
    deadLettered: 0,
    dropped: 0,
    lostToRetention: 0,
  }
  readonly clock: Clock
  readonly logger: QueueLogger
  #overrides: QueueOverrides
  /** On the wall clock; Infinity: until resumed; 0: not paused. */
  #pausedUntilMs = 0
  /** A worker has asked for it: on the wall clock, and forgotten at a restart. */
  #restUntilMs = 0
  #cancelResume: CancelTimer | undefined
  #held = 0
  #reserved = 0
  readonly #heldKeys = new Map<string, number>()
  #bucket: TokenBucket | undefined
  #buckets: KeyedBuckets | undefined
  #bucketStart: 'full' | 'empty'
  #cancelRate: CancelTimer | undefined
  /** When that timer is due. */
  #rateAtMs = 0
  #throttledUntilMs = 0
  isDraining = false
  #last: Promise<unknown> = Promise.resolve()

  constructor(options: QueueGroupOptions) {
    this.id = options.id
    this.clock = options.clock
    this.logger = options.logger
    this.#overrides = options.overrides
    this.#bucketStart = options.isOld ? 'empty' : 'full'
    this.#configureRate()
  }

  /** One after the other: what is written of the group is all that is known of it, so that nothing older may be written later. */
  inTurn<T>(work: () => Promise<T>): Promise<T> {
    const running = this.#last.then(work, work)
    // Whoever asked hears of a failure.
    this.#last = running.catch(() => undefined)
    return running
  }

  get overrides(): QueueOverrides {
    return this.#overrides
  }

  /** On the wall clock; Infinity: until resumed; 0: not paused. */
  get pausedUntilMs(): number {
    return this.isPaused ? this.#pausedUntilMs : 0
  }

  get isPaused(): boolean {
    return this.#pausedUntilMs > this.clock.wallMs()
  }

  configFor(jobs: boolean): QueueConfig {
    return resolveQueueConfig(this.#overrides, { jobs })
  }

  configure(overrides: QueueOverrides): void {
    this.#overrides = overrides
    this.#configureRate()
    for (const topic of this.topics.values()) topic.configure()
    this.changed()
  }

  pause(untilMs: number): void {
    this.#pausedUntilMs = untilMs
    this.#armResume()
    this.changed()
  }

  resume(): void {
    this.#pausedUntilMs = 0
    this.#restUntilMs = 0
    this.changed()
  }

  rest(untilMs: number): void {
    this.#restUntilMs = Math.max(this.#restUntilMs, untilMs)
    this.#armResume()
    this.changed()
  }

  #armResume(): void {
    this.#cancelResume?.()
    const nowMs = this.clock.wallMs()
    const times = [this.#pausedUntilMs, this.#restUntilMs].filter(
      (ms) => ms > nowMs && ms < Infinity,
    )
    if (times.length === 0) return
    const delayMs = Math.min(LONGEST_TIMER_MS, Math.max(1, Math.min(...times) - nowMs))
    this.#cancelResume = this.clock.schedule(delayMs, () => {
      this.#armResume()
      this.changed()
    })
  }

  changed(): void {
    for (const topic of this.topics.values()) topic.changed()
  }

  close(): void {
    this.#cancelResume?.()
    this.#cancelRate?.()
  }

  // ── Limits ──

  held(records: number): void {
    this.#held += records
    // Room under `concurrency.max` is room for every topic.
    if (records < 0 && this.topics.size > 1) this.changed()
  }

  heldKey(key: string, records: number): void {
    const count = (this.#heldKeys.get(key) ?? 0) + records
    if (count > 0) this.#heldKeys.set(key, count)
    else this.#heldKeys.delete(key)
    if (records < 0) for (const topic of this.topics.values()) topic.retryStuck()
  }

  admit(record: KeyedRecord, config: QueueConfig): Admission {
    const { concurrencyKey, rateKey } = record
    if (concurrencyKey !== undefined && config.concurrencyKeyMax > 0) {
      if ((this.#heldKeys.get(concurrencyKey) ?? 0) >= config.concurrencyKeyMax) return 'later'
    }
    if (rateKey !== undefined && this.#buckets !== undefined) {
      const nowMs = this.clock.monotonicMs()
      const atMs = this.#buckets.bucketOf(rateKey, nowMs).nextAtMs(nowMs)
      if (atMs > nowMs) {
        this.#waitForRate(atMs - nowMs)
        return 'later'
      }
    }
    return 'yes'
  }

  admitted(record: KeyedRecord): void {
    if (record.rateKey === undefined || this.#buckets === undefined) return
    const nowMs = this.clock.monotonicMs()
    this.#buckets.bucketOf(record.rateKey, nowMs).take(nowMs, 1)
  }

  /** How many of `wanted` may go out now; to be {@link settle}d. */
  reserve(wanted: number, config: QueueConfig): number {
    if (this.isDraining || this.isPaused || this.#restUntilMs > this.clock.wallMs()) return 0
    let granted = wanted
    if (config.concurrencyMax > 0) {
      granted = Math.min(granted, config.concurrencyMax - this.#held - this.#reserved)
    }
    if (granted <= 0) return 0
    if (this.#bucket !== undefined) {
      const nowMs = this.clock.monotonicMs()
      granted = this.#bucket.take(nowMs, granted)
      if (granted === 0) {
        const waitMs = this.#bucket.nextAtMs(nowMs) - nowMs
        this.#throttledUntilMs = Math.ceil(this.clock.wallMs() + waitMs)
        this.#waitForRate(waitMs)
      }
    }
    this.#reserved += granted
    return granted
  }

  settle(granted: number, used: number): void {
    this.#reserved -= granted
    if (used === granted) return
    this.#bucket?.give(granted - used)
    // Others may have been refused what has not been used; they know whom they had nothing for.
    if (this.topics.size > 1) for (const topic of this.topics.values()) topic.wake()
  }

  get throttledUntilMs(): number {
    const until = Math.max(this.#throttledUntilMs, this.#restUntilMs)
    return until > this.clock.wallMs() ? until : 0
  }

  /** Each key has a time of its own: the earliest counts. */
  #waitForRate(waitMs: number): void {
    const delayMs = Math.min(LONGEST_TIMER_MS, Math.max(1, Math.ceil(waitMs)))
    const atMs = this.clock.monotonicMs() + delayMs
    if (this.#cancelRate !== undefined && this.#rateAtMs <= atMs) return
    this.#cancelRate?.()
    this.#rateAtMs = atMs
    this.#cancelRate = this.clock.schedule(delayMs, () => {
      this.#cancelRate = undefined
      for (const topic of this.topics.values()) topic.retryStuck()
    })
  }

  #configureRate(): void {
    const { rateMax, rateDurationMs, rateBurst, rateKey } = this.configFor(false)
    const nowMs = this.clock.monotonicMs()
    if (rateMax === 0) {
      this.#bucket = undefined
      this.#buckets = undefined
    } else {
      const limits: BucketLimits = {
        max: rateMax,
        durationMs: rateDurationMs,
        burst: rateBurst === 0 ? rateMax : rateBurst,
      }
      if (rateKey === '') {
        this.#buckets = undefined
        if (this.#bucket === undefined)
          this.#bucket = new TokenBucket(limits, this.#bucketStart, nowMs)
        else this.#bucket.setLimits(limits, nowMs)
      } else {
        this.#bucket = undefined
        if (this.#buckets === undefined)
          this.#buckets = new KeyedBuckets(limits, this.#bucketStart, nowMs)
        else this.#buckets.setLimits(limits, nowMs)
      }
    }
    // Whoever is limited later on has been running without a limit before.
    this.#bucketStart = 'empty'
  }

  /** Forgets a member that is neither connected nor holds anything. */
  forget(member: QueueMember): void {
    if (member.listener !== undefined || member.acquired > 0 || member.taking > 0) return
    member.cancelGrace?.()
    if (this.members.get(member.memberId) === member) this.members.delete(member.memberId)
    member.topic.members.delete(member)
  }
}

/** What of a topic's settings matters to a group. */
export interface TopicTraits {
  readonly jobs: boolean
  /** The group is the one that the jobs are for. */
  readonly isHome: boolean
  /** Retention waits for queue groups. */
  readonly holds: boolean
  readonly isDlq: boolean
}

/** One topic as a group works through it: the partitions, its own retry topic's among them, and who works. */
export class GroupTopic implements QueueOwner {
  readonly name: string
  readonly topicId: string
  readonly members: Set<QueueMember> = new Set()
  readonly #group: QueueGroup
  #traits: TopicTraits
  readonly #slots = new Map<QueuePartition, Slot>()
  #config: QueueConfig
  #isScheduled = false
  #turn = 0
  #isClosed = false

  constructor(
    group: QueueGroup,
    topic: { readonly name: string; readonly id: string },
    traits: TopicTraits,
  ) {
    this.#group = group
    this.name = topic.name
    this.topicId = topic.id
    this.#traits = traits
    this.#config = group.configFor(traits.jobs)
  }

  /** Partitions whose state could not be loaded, and why. */
  readonly broken: Map<Partition, BrokerError> = new Map()

  /** The topic's settings may be others now. */
  follow(traits: TopicTraits): void {
    const { jobs, isHome, holds, isDlq } = this.#traits
    const isSame =
      jobs === traits.jobs &&
      isHome === traits.isHome &&
      holds === traits.holds &&
      isDlq === traits.isDlq
    if (isSame) return
    this.#traits = traits
    this.configure()
    this.changed()
  }

  get holdsRetention(): boolean {
    const { isHome, holds, jobs } = this.#traits
    return isHome || (holds && !jobs)
  }

  get group(): string {
    return this.#group.id
  }

  get config(): QueueConfig {
    return this.#config
  }

  get isHome(): boolean {
    return this.#traits.isHome
  }

  /** A group that reads dead letters keeps none of its own unless it names a place. */
  get deadLetterTopic(): string {
    const { dlqTopic, dlqEnable } = this.#config
    if (dlqTopic !== '') return dlqTopic
    if (!dlqEnable || this.#traits.isDlq) return ''
    return deadLetterTopicName(this.#group.id, this.name)
  }

  get deadLetterPlace(): string {
    return this.deadLetterTopic || deadLetterTopicName(this.#group.id, this.name)
  }

  get isClosed(): boolean {
    return this.#isClosed
  }

  get partitions(): readonly QueuePartition[] {
    return [...this.#slots.keys()]
  }

  add(partition: QueuePartition): void {
    this.#slots.set(partition, { partition, busy: false, tried: new Set(), changes: 0 })
    this.changed()
  }

  remove(partition: QueuePartition): void {
    this.#slots.delete(partition)
  }

  configure(): void {
    this.#config = this.#group.configFor(this.#traits.jobs)
    for (const partition of this.#slots.keys()) partition.configure()
  }

  retryStuck(): void {
    for (const partition of this.#slots.keys()) partition.retryStuck()
    this.changed()
  }

  // ── QueueOwner ──

  held(records: number): void {
    this.#group.held(records)
  }

  heldKey(key: string, records: number): void {
    this.#group.heldKey(key, records)
  }

  admit(record: KeyedRecord): Admission {
    return this.#group.admit(record, this.#config)
  }

  admitted(record: KeyedRecord): void {
    this.#group.admitted(record)
  }

  count(what: keyof QueueCounters, records: number): void {
    this.#group.counters[what] += records
  }

  leaseLost(lease: Lease, error: BrokerError): void {
    const member = this.#group.members.get(lease.holder.memberId)
    if (member === lease.holder) member.listener?.leaseLost(lease.token, error)
  }

  pauseGroup(untilMs: number): void {
    this.#group.rest(untilMs)
  }

  /** What was decided in this turn is looked at together. */
  changed(): void {
    for (const slot of this.#slots.values()) {
      slot.changes++
      if (slot.tried.size > 0) slot.tried.clear()
    }
    this.#schedule()
  }

  /** There may be room. Where there was nothing for a member, nothing has changed. */
  wake(): void {
    this.#schedule()
  }

  #schedule(): void {
    if (this.#isScheduled || this.#isClosed) return
    this.#isScheduled = true
    queueMicrotask(() => {
      this.#isScheduled = false
      if (!this.#isClosed) this.#dispatch()
    })
  }

  // ── Who gets what ──

  #dispatch(): void {
    const hungry = [...this.members].filter((member) => member.isHungry)
    if (hungry.length === 0) return
    for (const slot of this.#slots.values()) {
      if (slot.busy || !slot.partition.hasReady) continue
      const member = this.#pick(hungry, slot)
      if (member === undefined) continue
      // Where there is little, everybody gets some of it.
      const share = Math.max(1, Math.ceil(slot.partition.ready / hungry.length))
      const granted = this.#group.reserve(Math.min(member.creditRecords, share), this.#config)
      if (granted === 0) break
      // Handles its own failures.
      void this.#serve(slot, member, granted)
    }
    this.#tell(hungry)
  }

  /** The next in turn for whom this partition may have something. */
  #pick(hungry: readonly QueueMember[], slot: Slot): QueueMember | undefined {
    for (let i = 0; i < hungry.length; i++) {
      const member = hungry[(this.#turn + i) % hungry.length]
      if (member === undefined || !member.isHungry || slot.tried.has(member)) continue
      this.#turn = (this.#turn + i + 1) % hungry.length
      return member
    }
    return undefined
  }

  async #serve(slot: Slot, member: QueueMember, granted: number): Promise<void> {
    slot.busy = true
    member.taking++
    const bytes = member.creditBytes
    const asker = member.listener
    const { changes } = slot
    const { creditChanges } = member
    member.creditRecords -= granted
    let deliveries: readonly QueueDelivery[] = []
    let used = 0
    try {
      deliveries = await slot.partition.take(member, granted, bytes, member.leaseMs)
    } catch (error) {
      this.#group.logger.error(
        {
          group: this.group,
          partition: slot.partition.source.name,
          cause: toBrokerError(error).message,
        },
        'records could not be given out',
      )
    }
    // A partition that was closed meanwhile has ended its leases.
    if (slot.partition.isClosed) deliveries = []
    for (const delivery of deliveries) used += delivery.count
    this.#group.settle(granted, used)
    slot.busy = false
    member.taking--
    const { listener } = member
    if (listener === undefined || listener !== asker || member.creditChanges !== creditChanges) {
      // It went while we looked, or wants them no more, or came back by another stream, which has asked for nothing yet: nobody has seen them.
      if (used > 0) await this.#takeBack(slot.partition, deliveries)
      this.#group.forget(member)
    } else {
      member.creditRecords += granted - used
      for (const delivery of deliveries) {
        member.creditBytes -= delivery.batch.length
        listener.delivered(delivery)
      }
    }
    // What has changed while we looked may be something for it.
    if (used === 0 && slot.changes === changes) slot.tried.add(member)
    if (member.taking === 0) member.onSettled?.()
    this.#schedule()
  }

  /** Never rejects. */
  async #takeBack(partition: QueuePartition, deliveries: readonly QueueDelivery[]): Promise<void> {
    try {
      await partition.takeBack(deliveries)
    } catch (error) {
      this.#group.logger.warn(
        {
          group: this.group,
          partition: partition.source.name,
          cause: toBrokerError(error).message,
        },
        'records could not be released',
      )
    }
  }

  /** Says why there is nothing, where it is not because there is nothing. */
  #tell(hungry: readonly QueueMember[]): void {
    const notice = this.notice()
    for (const member of hungry) {
      if (isSame(member.notice, notice)) continue
      member.notice = notice
      member.listener?.notice(notice)
    }
  }

  notice(): WorkNotice {
    const partitions = [...this.#slots.keys()]
    return {
      throttledUntilMs: this.#group.throttledUntilMs,
      windowFull: partitions.some((partition) => partition.isWindowFull && !partition.hasReady),
      paused: this.#group.isPaused,
      dlqUnavailable: partitions.some((partition) => partition.isDeadLetteringFull),
    }
  }

  // ── Members ──

  /** Adds to what a member may be given, or replaces it. */
  credit(member: QueueMember, records: number, bytes: number, replaces = false): void {
    member.heardMs = this.#group.clock.monotonicMs()
    if (replaces) {
      member.creditRecords = 0
      member.creditBytes = 0
      member.creditChanges++
    }
    member.creditRecords += records
    member.creditBytes += bytes
    for (const slot of this.#slots.values()) slot.tried.delete(member)
    this.#schedule()
  }

  /** Gives back all that it holds, durably, and lets it go. */
  async dismiss(member: QueueMember): Promise<void> {
    member.listener = undefined
    member.creditRecords = 0
    try {
      await Promise.all([...this.#slots.keys()].map((partition) => partition.release(member)))
    } finally {
      this.#group.forget(member)
    }
  }

  /** It has had its answer, and is known by its leases alone. */
  part(member: QueueMember): void {
    member.listener = undefined
    member.creditRecords = 0
    member.creditBytes = 0
    member.heardMs = this.#group.clock.monotonicMs()
    member.onIdle = () => this.#group.forget(member)
    this.#group.forget(member)
  }

  /** Its connection broke: its leases run on, or are released after a while, as the group has it. */
  detach(member: QueueMember): void {
    this.part(member)
    if (this.#config.releaseOnDisconnect && member.acquired > 0) {
      member.cancelGrace = this.#group.clock.schedule(GRACE_MS, () => {
        member.cancelGrace = undefined
        if (member.listener === undefined) {
          this.dismiss(member).catch((error: unknown) => {
            this.#group.logger.warn(
              { group: this.group, memberId: member.memberId, cause: toBrokerError(error).message },
              'records could not be released',
            )
          })
        }
      })
    }
  }

  /** Ends everything here. Leases end without a word in the log. */
  async close(reason: BrokerError): Promise<void> {
    this.#isClosed = true
    for (const member of this.members) {
      const { listener } = member
      member.listener = undefined
      member.cancelGrace?.()
      this.#group.members.delete(member.memberId)
      listener?.ended(reason)
    }
    this.members.clear()
    await Promise.all([...this.#slots.keys()].map((partition) => partition.close(undefined)))
  }
}

function isSame(a: WorkNotice, b: WorkNotice): boolean {
  return (
    a.throttledUntilMs === b.throttledUntilMs &&
    a.windowFull === b.windowFull &&
    a.paused === b.paused &&
    a.dlqUnavailable === b.dlqUnavailable
  )
}
