import { unreachable } from '../../common/assert.ts'
import type { CancelTimer, Clock } from '../../common/clock.ts'
import { BrokerError, toBrokerError } from '../../common/errors.ts'
import { checkGroupId, checkTopicName, isInternalTopic } from '../../common/names.ts'
import type { Offset } from '../../common/offset.ts'
import type { Random } from '../../common/random.ts'
import { MIB, SECOND_MS } from '../../common/units.ts'
import type { Partition } from '../../topic/partition.ts'
import { forEachLimited } from '../../topic/concurrency.ts'
import { homeGroupOf, type Topic } from '../../topic/topic.ts'
import { respectsQueueGroups } from '../../topic/topic-config.ts'
import type { Topics } from '../../topic/topics.ts'
import type { GroupType } from '../group/group-types.ts'
import type { Peer } from '../peer.ts'
import { StateLog } from '../state-log.ts'
import type { PartitionAck } from './ack-check.ts'
import type { CompanionLog, QueueLogger } from './companion.ts'
import { Companions } from './companions.ts'
import type { Lease } from './lease.ts'
import { decodeToken } from './lease-token.ts'
import { LiveSession } from './live-session.ts'
import { deadLetterTopicName, isRetryTopic, retryTopicName } from './names.ts'
import {
  applyQueueChange,
  describeQueueConfig,
  encodeQueueOverrides,
  parseQueueChange,
  parseQueueStart,
  type QueueConfigChange,
  type QueueOverrides,
} from './queue-config.ts'
import { GroupTopic, NO_NOTICE, QueueGroup, QueueMember, type TopicTraits } from './queue-group.ts'
import { QueuePartition } from './queue-partition.ts'
import { decodeQueuesRecord, encodeGroupRecord, encodeTaskRecord } from './queue-records.ts'
import { describeBroken, findOffsets } from './queue-report.ts'
import type {
  AckFailure,
  AckItem,
  Explanation,
  PeekedRecord,
  QueueDelivery,
  QueueDescription,
  QueuePartitionDescription,
  Queues,
  QueueSettingDescription,
  ReceiveRequest,
  ReceiveResult,
  RecordState,
  SettingTexts,
  WorkListener,
  WorkRequest,
  WorkSession,
} from './queue-types.ts'
import { TimingWheel } from './timing-wheel.ts'

export const QUEUES_TOPIC = '__queues'
const QUEUES_CONFIG: Readonly<Record<string, string>> = {
  'cleanup.policy': 'compact',
  'segment.bytes': String(16 * MIB),
  'max.message.bytes': String(8 * MIB),
}

/** Where group ids and their types live: the stream groups' coordinator. */
export interface GroupRegistry {
  /** Makes a group of a type, for life, unless there is one. @throws BrokerError (as rejection) INVALID_GROUP_ID, GROUP_TYPE_MISMATCH */
  declare(group: string, type: GroupType): Promise<void>
}

export interface QueueCoordinatorOptions {
  readonly topics: Topics
  readonly groups: GroupRegistry
  readonly peer: Peer
  readonly clock: Clock
  readonly random: Random
  /** Silent by default. */
  readonly logger?: QueueLogger | undefined
  /** How long acknowledgements of a partition gather while many come. 0 by default. */
  readonly stateLingerMs?: number | undefined
}

const SILENT: QueueLogger = { info: () => undefined, warn: () => undefined, error: () => undefined }
const DEFAULT_RECEIVE_BYTES: number = 4 * MIB
const MOST_RECEIVED = 1000
const LONGEST_WAIT_MS: number = 30 * SECOND_MS
const LEAST_LEASE_MS: number = SECOND_MS
const LONGEST_LEASE_MS: number = 12 * 3600 * SECOND_MS
/** States read at once after a start. */
const LOAD_AT_ONCE = 16
const RELOAD_MS: number = SECOND_MS
const FIRST_RELOAD_MS = 100
const LONGEST_RELOAD_MS: number = 30 * SECOND_MS
/** Topics of dead letters behind one another. */
const LONGEST_CHAIN = 2
const DEFAULT_PEEKED = 20
const MOST_PEEKED = 1000

/**
 * The queue groups of a broker. Settings and pauses are kept in `__queues`, what a group knows of a partition in that partition's companion log. Both are
 * made when they are first needed.
 */
export class QueueCoordinator implements Queues {
  readonly #topics: Topics
  readonly #registry: GroupRegistry
  readonly #peer: Peer
  readonly #clock: Clock
  readonly #random: Random
  readonly #logger: QueueLogger
  /** Also for what keeps its own marks there, such as redrives. */
  readonly companions: Companions
  readonly #wheel: TimingWheel<Lease>
  readonly #groups = new Map<string, QueueGroup>()
  readonly #partitions = new Map<number, QueuePartition>()
  readonly #attaching = new Map<string, Promise<GroupTopic>>()
  /** Groups that are being forgotten; never rejects. */
  readonly #deleting = new Map<string, Promise<void>>()
  readonly #tasks = new Map<string, string>()
  readonly #reloads = new Set<CancelTimer>()
  /** By companion. */
  readonly #failures = new Map<string, { readonly atMs: number; readonly waitMs: number }>()
  readonly #background = new Set<Promise<void>>()
  readonly #stopListening: () => void
  #log: StateLog | undefined
  #opening: Promise<StateLog> | undefined
  #lastMember = 0
  #isDraining = false
  #closing: Promise<void> | undefined

  private constructor(options: QueueCoordinatorOptions) {
    this.#topics = options.topics
    this.#registry = options.groups
    this.#peer = options.peer
    this.#clock = options.clock
    this.#random = options.random
    this.#logger = options.logger ?? SILENT
    this.companions = new Companions({
      topics: options.topics,
      clock: options.clock,
      logger: this.#logger,
      lingerMs: options.stateLingerMs,
    })
    this.companions.onFailed((failed, error) => this.#reload(failed, error))
    this.#wheel = new TimingWheel<Lease>(options.clock, (leases) => {
      for (const lease of leases) lease.owner.expired(lease)
    })
    this.#stopListening = options.topics.onChange(() => this.#followTopics())
  }

  /** Loads what groups there are. One whose state cannot be read says so in its description, and is tried again; the others work. */
  static async open(options: QueueCoordinatorOptions): Promise<QueueCoordinator> {
    const coordinator = new QueueCoordinator(options)
    coordinator.#holdForHomes()
    if (options.topics.find(QUEUES_TOPIC) !== undefined) {
      const records = new Map<string, readonly string[]>()
      coordinator.#log = await coordinator.#openLog(records)
      for (const [group, topics] of records) {
        for (const topic of topics) await coordinator.#attachAgain(group, topic)
      }
    }
    return coordinator
  }

  async #ensureLog(): Promise<StateLog> {
    if (this.#log !== undefined && this.#log.failure === undefined) return this.#log
    this.#opening ??= this.#openLog(new Map()).finally(() => {
      this.#opening = undefined
    })
    this.#log = await this.#opening
    return this.#log
  }

  /** `__queues`, and what it says. */
  async #openLog(topicsOf: Map<string, readonly string[]>): Promise<StateLog> {
    const topic = await this.#topics.ensureInternal(QUEUES_TOPIC, 1, QUEUES_CONFIG)
    const [partition] = topic.partitions
    if (partition === undefined)
      throw new BrokerError('STORAGE_ERROR', `${QUEUES_TOPIC} has no partition`)
    const log = new StateLog({
      partition,
      clock: this.#clock,
      onCorruption: 'halt',
      onSkipped: () => undefined,
    })
    await log.replay((key, value) => {
      const read = decodeQueuesRecord(key, value)
      if (read.kind === 'task') {
        if (read.text === null) this.#tasks.delete(read.task)
        else this.#tasks.set(read.task, read.text)
        return
      }
      const { group, record, unknown } = read
      if (unknown.length > 0)
        this.#logger.warn({ group, settings: unknown }, 'unknown settings ignored')
      if (record === undefined) {
        this.#groups.delete(group)
        topicsOf.delete(group)
        return
      }
      const live = this.#groups.get(group) ?? this.#makeGroup(group, record.overrides, true)
      live.configure(record.overrides)
      live.pause(record.pausedUntilMs)
      topicsOf.set(group, record.topics)
    })
    return log
  }

  #makeGroup(id: string, overrides: QueueOverrides, isOld: boolean): QueueGroup {
    const group = new QueueGroup({ id, overrides, clock: this.#clock, logger: this.#logger, isOld })
    group.isDraining = this.#isDraining
    this.#groups.set(id, group)
    return group
  }

  /** The group, made when there is none. @throws BrokerError (as rejection) INVALID_GROUP_ID, GROUP_TYPE_MISMATCH */
  async #ensureGroup(id: string): Promise<QueueGroup> {
    const known = this.#groups.get(id)
    if (known !== undefined) return known
    checkGroupId(id)
    // The new one must not begin with what the old one knew.
    await this.#deleting.get(id)
    await this.#registry.declare(id, 'queue')
    const made = this.#groups.get(id) ?? this.#makeGroup(id, {}, false)
    await this.#save(made)
    return made
  }

  /** @throws BrokerError UNKNOWN_GROUP */
  #getGroup(id: string): QueueGroup {
    const group = this.#groups.get(id)
    if (group !== undefined) return group
    checkGroupId(id)
    throw new BrokerError('UNKNOWN_GROUP', `there is no queue group ${id}`, { group: id })
  }

  /** @throws BrokerError UNKNOWN_GROUP, UNKNOWN_TOPIC */
  #getTopic(id: string, topic: string): GroupTopic {
    const found = this.#getGroup(id).topics.get(topic)
    if (found !== undefined) return found
    this.#topics.get(topic)
    throw new BrokerError(
      'UNKNOWN_TOPIC',
      `group ${id} does not work through ${topic}: it does from its first worker there on`,
      { group: id, topic },
    )
  }

  #save(group: QueueGroup): Promise<void> {
    return group.inTurn(async () => {
      const log = await this.#ensureLog()
      // Deleted meanwhile: what is written now would bring it back.
      if (this.#groups.get(group.id) !== group) return
      await log.write([
        encodeGroupRecord(group.id, {
          overrides: group.overrides,
          pausedUntilMs: group.pausedUntilMs,
          topics: [...group.topics.keys()],
        }),
      ])
    })
  }

  // ── Attaching a group to a topic ──

  async #attach(group: QueueGroup, name: string): Promise<GroupTopic> {
    const known = group.topics.get(name)
    if (known !== undefined && known.topicId === this.#topics.get(name).id) return known
    const key = `${group.id}/${name}`
    let attaching = this.#attaching.get(key)
    if (attaching === undefined) {
      attaching = this.#attachAnew(group, name).finally(() => this.#attaching.delete(key))
      this.#attaching.set(key, attaching)
    }
    return attaching
  }

  async #attachAnew(group: QueueGroup, name: string): Promise<GroupTopic> {
    checkTopicName(name)
    if (isInternalTopic(name)) this.#topics.checkWritable(name)
    const topic = this.#topics.get(name)
    const old = group.topics.get(name)
    if (old !== undefined) await this.#drop(group, old, 'the topic was made anew')
    const made = this.#makeTopic(group, topic)
    this.#checkDeadLetters(group, group.overrides, topic)
    try {
      for (const partition of topic.partitions) {
        if (partition.failure !== undefined) throw partition.failure
        await this.#openPartition(group, made, partition, true)
      }
      for (const partition of this.#findRetries(group, made)) {
        await this.#openPartition(group, made, partition, false)
      }
    } catch (error) {
      // Nobody would ever close what is open already, and it would work on beside what the next attempt opens.
      for (const partition of made.partitions) this.#partitions.delete(partition.number)
      await made.close(toBrokerError(error))
      throw error
    }
    group.topics.set(name, made)
    await this.#save(group)
    // Of changes since the beginning it was not told.
    this.#followTopics()
    return made
  }

  #makeTopic(group: QueueGroup, topic: Topic): GroupTopic {
    return new GroupTopic(group, topic, traitsOf(group, topic))
  }

  /** After a start. Never rejects: what cannot be loaded is tried again. */
  async #attachAgain(id: string, name: string): Promise<void> {
    const group = this.#groups.get(id)
    const topic = this.#topics.find(name)
    if (group === undefined || topic === undefined) return
    const made = this.#makeTopic(group, topic)
    group.topics.set(name, made)
    await forEachLimited(
      [...topic.partitions, ...this.#findRetries(group, made)],
      LOAD_AT_ONCE,
      (partition) => this.#openOrRetry(group, made, partition),
    )
  }

  /** Never rejects. */
  async #openOrRetry(
    group: QueueGroup,
    made: GroupTopic,
    partition: Partition,
    waitMs = RELOAD_MS,
  ): Promise<void> {
    try {
      await this.#openPartition(group, made, partition, false)
      made.broken.delete(partition)
    } catch (error) {
      const failure = toBrokerError(error)
      const isGone = this.#topics.find(made.name)?.id !== made.topicId
      // A group that was deleted keeps its topics.
      const isOver = made.isClosed || group.topics.get(made.name) !== made
      if (this.#closing !== undefined || isGone || isOver) return
      made.broken.set(partition, failure)
      this.#logger.error(
        {
          group: group.id,
          partition: partition.name,
          code: failure.code,
          cause: failure.message,
          retryMs: waitMs,
        },
        'the state of a queue could not be loaded',
      )
      const nextMs = Math.min(LONGEST_RELOAD_MS, waitMs * 2)
      this.#later(waitMs, () => this.#openOrRetry(group, made, partition, nextMs))
    }
  }

  #later(waitMs: number, act: () => Promise<void>): void {
    if (this.#closing !== undefined) return
    const cancel = this.#clock.schedule(waitMs, () => {
      this.#reloads.delete(cancel)
      this.#inBackground(act())
    })
    this.#reloads.add(cancel)
  }

  /**
   * How long to wait before a companion that has just failed is loaded anew. The first time not at all; soon after that longer each time: a disk that refuses
   * every write would else keep the broker busy with nothing but loading.
   */
  #nextReloadMs(name: string): number {
    const nowMs = this.#clock.monotonicMs()
    const last = this.#failures.get(name)
    const isSoon = last !== undefined && nowMs - last.atMs < RELOAD_MS + 2 * last.waitMs
    const waitMs = isSoon ? Math.min(LONGEST_RELOAD_MS, last.waitMs * 2 || FIRST_RELOAD_MS) : 0
    this.#failures.set(name, { atMs: nowMs, waitMs })
    return waitMs
  }

  /** `isFirst`: the group comes to the topic for the first time, and begins where its settings say; a partition added later begins at its start. */
  async #openPartition(
    group: QueueGroup,
    made: GroupTopic,
    source: Partition,
    isFirst: boolean,
  ): Promise<void> {
    // A companion is asked for by name: where the topic was made anew it is another one's, which would begin where this one was.
    this.#topics.getPartition(source.topic, source.index, source.topicId)
    const companion = await this.companions.open(source.topic, source.index)
    if (made.partitions.some((one) => one.source === source)) return
    this.#checkWorkedThrough(made)
    const known = companion.find(group.id)
    if (known === undefined) {
      const offset = isFirst ? await this.#findStart(made, source) : source.logStartOffset
      const state = companion.create(group.id)
      const event = { type: 'started', offset } as const
      state.apply(event)
      await companion.write(group.id, [event])
    }
    this.#checkWorkedThrough(made)
    if (made.partitions.some((one) => one.source === source)) return
    const partition = new QueuePartition({
      owner: made,
      source,
      companion,
      state: companion.create(group.id),
      number: this.#newNumber(),
      wheel: this.#wheel,
      peer: this.#peer,
      topics: this.#topics,
      clock: this.#clock,
      random: this.#random,
      logger: this.#logger,
    })
    this.#partitions.set(partition.number, partition)
    made.add(partition)
  }

  /** @throws BrokerError CLOSED, UNKNOWN_TOPIC */
  #checkWorkedThrough(made: GroupTopic): void {
    if (this.#closing !== undefined) throw new BrokerError('CLOSED', 'the broker is stopping')
    if (!made.isClosed) return
    throw new BrokerError('UNKNOWN_TOPIC', `${made.name} is not worked through any more`)
  }

  /** Where the records are that were redriven to the group. */
  #findRetries(group: QueueGroup, made: GroupTopic): readonly Partition[] {
    return this.#topics.find(retryTopicName(group.id, made.name))?.partitions ?? []
  }

  async #findStart(made: GroupTopic, source: Partition): Promise<Offset> {
    const start = parseQueueStart(made.config.start)
    switch (start.kind) {
      case 'earliest':
        return source.logStartOffset
      case 'latest':
        return source.highWatermark
      case 'time':
      case 'ago': {
        const timeMs = start.kind === 'time' ? start.timeMs : this.#clock.wallMs() - start.agoMs
        const found = await source.findOffsetByTimestamp(timeMs)
        return found?.offset ?? source.highWatermark
      }
      default:
        return unreachable(start)
    }
  }

  #newNumber(): number {
    for (;;) {
      const number = this.#random.uint32()
      if (!this.#partitions.has(number)) return number
    }
  }

  /** Topics or partitions have come or gone. */
  #followTopics(): void {
    if (this.#closing !== undefined) return
    this.#holdForHomes()
    this.companions.forgetDeleted()
    for (const group of this.#groups.values()) {
      for (const made of group.topics.values()) {
        const topic = this.#topics.find(made.name)
        if (topic?.id !== made.topicId) {
          this.#inBackground(this.#drop(group, made, 'the topic was deleted'))
          continue
        }
        made.follow(traitsOf(group, topic))
        const known = new Set(made.partitions.map(({ source }) => source))
        for (const partition of [...topic.partitions, ...this.#findRetries(group, made)]) {
          if (known.has(partition) || made.broken.has(partition)) continue
          this.#inBackground(this.#openOrRetry(group, made, partition))
        }
      }
    }
  }

  /** A job topic waits for its home group also before that has come for the first time. */
  #holdForHomes(): void {
    for (const topic of this.#topics.list()) {
      const home = homeGroupOf(topic)
      if (home === undefined || !respectsQueueGroups(topic.config)) continue
      if (this.#groups.get(home)?.topics.has(topic.name) === true) continue
      for (const partition of topic.partitions) {
        partition.holdRetention(`queue ${home}`, partition.logStartOffset)
      }
    }
  }

  async #drop(group: QueueGroup, made: GroupTopic, why: string): Promise<void> {
    if (group.topics.get(made.name) === made) group.topics.delete(made.name)
    for (const partition of made.partitions) this.#partitions.delete(partition.number)
    await made.close(
      new BrokerError('UNKNOWN_TOPIC', `${why}: ${made.name}`, {
        topic: made.name,
        group: group.id,
      }),
    )
    await this.#save(group)
  }

  /** A companion could not be written: what its groups know is loaded anew, and their leases are nobody's. */
  #reload(failed: CompanionLog, error: BrokerError): void {
    if (this.#closing !== undefined) return
    this.#logger.error(
      { partition: failed.partition.name, code: error.code, cause: error.message },
      'the state of queues could not be written: it is loaded anew',
    )
    const waitMs = this.#nextReloadMs(failed.partition.name)
    for (const partition of this.#partitions.values()) {
      if (partition.companion !== failed) continue
      const group = this.#groups.get(partition.group)
      const made = partition.owner
      if (group === undefined || !(made instanceof GroupTopic)) continue
      this.#partitions.delete(partition.number)
      made.remove(partition)
      // Nobody else opens it before this one has ended.
      made.broken.set(partition.source, error)
      const lost = new BrokerError(
        'LEASE_LOST',
        `the state of ${partition.source.name} could not be written, and was loaded anew: its leases have ended`,
        {
          group: group.id,
          topic: partition.source.topic,
          partition: partition.source.index,
          reason: 'reloaded',
        },
      )
      const reopen = (): Promise<void> => this.#openOrRetry(group, made, partition.source)
      this.#inBackground(
        partition.close(lost).then(() => (waitMs === 0 ? reopen() : this.#later(waitMs, reopen))),
      )
    }
  }

  #inBackground(work: Promise<void>): void {
    const running: Promise<void> = work
      .catch((error: unknown) => {
        if (this.#closing !== undefined) return
        this.#logger.error(
          { cause: toBrokerError(error).message },
          'a queue could not follow a change',
        )
      })
      .finally(() => this.#background.delete(running))
    this.#background.add(running)
  }

  // ── Settings ──

  /** Makes settings the group's own, if they are not yet. */
  async #bring(group: QueueGroup, settings: SettingTexts): Promise<void> {
    if (Object.keys(settings).length === 0) return
    await this.#change(group, parseQueueChange(settings, []))
  }

  #change(group: QueueGroup, change: QueueConfigChange): Promise<void> {
    return group.inTurn(async () => {
      await this.#setOverrides(group, applyQueueChange(group.overrides, change))
    })
  }

  /** @throws BrokerError DLQ_CYCLE, NOT_A_DLQ */
  #checkOverrides(group: QueueGroup, after: QueueOverrides): void {
    for (const name of group.topics.keys()) {
      const topic = this.#topics.find(name)
      if (topic !== undefined) this.#checkDeadLetters(group, after, topic)
    }
    this.#checkPlace(after.dlqTopic ?? '')
  }

  async #setOverrides(group: QueueGroup, after: QueueOverrides): Promise<void> {
    const texts = JSON.stringify(encodeQueueOverrides(after))
    if (texts === JSON.stringify(encodeQueueOverrides(group.overrides))) return
    this.#checkOverrides(group, after)
    const log = await this.#ensureLog()
    this.#checkKept(group)
    await log.write([
      encodeGroupRecord(group.id, {
        overrides: after,
        pausedUntilMs: group.pausedUntilMs,
        topics: [...group.topics.keys()],
      }),
    ])
    group.configure(after)
    this.#logger.info(
      { group: group.id, settings: encodeQueueOverrides(after) },
      'queue group configured',
    )
  }

  /** @throws BrokerError NOT_A_DLQ when the topic is there and is for something else */
  #checkPlace(place: string): void {
    if (place === '') return
    checkTopicName(place)
    this.#topics.checkWritable(place)
    const topic = this.#topics.find(place)
    if (topic === undefined || topic.config.dlq) return
    throw new BrokerError(
      'NOT_A_DLQ',
      `topic ${place} is not meant for dead letters: set dlq=true on it, if it is`,
      { topic: place },
    )
  }

  /** @throws BrokerError DLQ_CYCLE, NOT_A_DLQ */
  #checkDeadLetters(group: QueueGroup, overrides: QueueOverrides, topic: Topic): void {
    const place = overrides.dlqTopic ?? ''
    this.#checkPlace(place)
    if (place === '') return
    let length = topic.config.dlq ? 2 : 1
    let places = [place]
    const fail = (why: string): never => {
      throw new BrokerError(
        'DLQ_CYCLE',
        `dead letters of ${topic.name} in group ${group.id} cannot go to ${place}: ${why}`,
        {
          group: group.id,
          topic: topic.name,
          deadLetterTopic: place,
        },
      )
    }
    while (places.length > 0) {
      if (places.includes(topic.name)) fail('they would come round to where they are from')
      if (length > LONGEST_CHAIN)
        fail(`that would be more than ${LONGEST_CHAIN} topics of dead letters behind one another`)
      const next = new Set<string>()
      for (const other of this.#groups.values()) {
        const named = other === group ? place : (other.overrides.dlqTopic ?? '')
        if (named === '') continue
        for (const name of other.topics.keys()) if (places.includes(name)) next.add(named)
      }
      places = [...next]
      length++
    }
  }

  async configure(
    id: string,
    change: {
      readonly set: SettingTexts
      readonly clear: readonly string[]
      readonly validateOnly: boolean
    },
  ): Promise<readonly QueueSettingDescription[]> {
    checkGroupId(id)
    const parsed = parseQueueChange(change.set, change.clear)
    const known = this.#groups.get(id)
    const after = applyQueueChange(known?.overrides ?? {}, parsed)
    if (change.validateOnly) {
      if (known === undefined) this.#checkPlace(after.dlqTopic ?? '')
      else this.#checkOverrides(known, after)
      return describeQueueConfig(after)
    }
    const group = await this.#ensureGroup(id)
    await this.#change(group, parsed)
    return describeQueueConfig(group.overrides)
  }

  async pause(id: string, untilMs: number): Promise<void> {
    const group = this.#getGroup(id)
    if (untilMs !== 0 && untilMs <= this.#clock.wallMs()) {
      throw new BrokerError(
        'INVALID_REQUEST',
        `the pause would end at ${untilMs}, which has passed`,
        { field: 'until_ms', actual: untilMs },
      )
    }
    group.pause(untilMs === 0 ? Infinity : untilMs)
    await this.#save(group)
    this.#logger.info({ group: id, untilMs }, 'queue group paused')
  }

  async resume(id: string): Promise<void> {
    const group = this.#getGroup(id)
    group.resume()
    await this.#save(group)
    this.#logger.info({ group: id }, 'queue group resumed')
  }

  // ── Sessions ──

  async work(request: WorkRequest, listener: WorkListener): Promise<WorkSession> {
    this.#checkOpen()
    checkLease(request.leaseMs)
    this.#topics.get(request.topic)
    const group = await this.#ensureGroup(request.group)
    await this.#bring(group, request.settings)
    const topic = await this.#attach(group, request.topic)
    this.#checkOpen()
    // Deleted meanwhile: this worker is the first of a new one.
    if (this.#groups.get(group.id) !== group) return this.work(request, listener)
    const leaseMs = request.leaseMs === 0 ? topic.config.leaseMs : request.leaseMs
    const known = request.memberId === '' ? undefined : group.members.get(request.memberId)
    const isBack = known !== undefined && known.topic === topic
    if (!isBack && group.members.size >= topic.config.maxMembers) {
      throw new BrokerError(
        'GROUP_FULL',
        `group ${group.id} has ${group.members.size} members: that is all it may have`,
        {
          group: group.id,
          limit: topic.config.maxMembers,
        },
      )
    }
    const member = isBack ? known : this.#makeMember(group, topic, request, leaseMs, listener)
    if (isBack) {
      const before = member.listener
      member.cancelGrace?.()
      member.onIdle = undefined
      member.listener = listener
      member.leaseMs = leaseMs
      member.creditRecords = 0
      member.creditBytes = 0
      member.notice = NO_NOTICE
      before?.ended(
        new BrokerError('UNKNOWN_MEMBER', `member ${member.memberId} has opened another stream`, {
          group: group.id,
          memberId: member.memberId,
        }),
      )
    }
    return new LiveSession(this, group, topic, member, listener, isBack)
  }

  #makeMember(
    group: QueueGroup,
    topic: GroupTopic,
    request: { readonly clientId: string; readonly host: string },
    leaseMs: number,
    listener: WorkListener,
  ): QueueMember {
    const name = request.clientId === '' ? 'worker' : request.clientId.slice(0, 64)
    const suffix = this.#random.uint32().toString(16).padStart(8, '0')
    const memberId = `${name}-${++this.#lastMember}-${suffix}`
    const { clientId, host } = request
    const member = new QueueMember(
      { memberId, clientId, host, topic, leaseMs, listener },
      this.#clock.monotonicMs(),
    )
    group.members.set(memberId, member)
    topic.members.add(member)
    return member
  }

  async receive(request: ReceiveRequest, signal: AbortSignal): Promise<ReceiveResult> {
    this.#checkOpen()
    checkRange('max', request.max, 1, MOST_RECEIVED)
    checkRange('wait_ms', request.waitMs, 0, LONGEST_WAIT_MS)
    checkLease(request.leaseMs)
    this.#topics.get(request.topic)
    const group = await this.#ensureGroup(request.group)
    await this.#bring(group, request.settings)
    const topic = await this.#attach(group, request.topic)
    this.#checkOpen()
    if (this.#groups.get(group.id) !== group) return this.receive(request, signal)
    const leaseMs = request.leaseMs === 0 ? topic.config.leaseMs : request.leaseMs
    const deliveries: QueueDelivery[] = []
    let failure: BrokerError | undefined
    await new Promise<void>((resolve, reject) => {
      let isOver = false
      const end = (): boolean => {
        if (isOver) return false
        isOver = true
        cancel()
        signal.removeEventListener('abort', abort)
        return true
      }
      const finish = (): void => {
        if (!end()) return
        topic.part(member)
        resolve()
      }
      // Nobody hears the answer: what has been found is for others.
      const abort = (): void => {
        if (!end()) return
        deliveries.length = 0
        topic.dismiss(member).then(resolve, reject)
      }
      const listener: WorkListener = {
        // Several partitions may be looking at once: all that they find goes into the one answer.
        delivered: (delivery) => {
          deliveries.push(delivery)
          if (member.taking === 0) finish()
          else member.creditRecords = 0
        },
        leaseLost: () => undefined,
        notice: () => undefined,
        ended: (error) => {
          failure = error
          finish()
        },
      }
      const member = this.#makeMember(
        group,
        topic,
        { ...request, clientId: request.clientId || 'receive' },
        leaseMs,
        listener,
      )
      member.onSettled = () => {
        if (deliveries.length > 0 || request.waitMs === 0) finish()
      }
      const cancel = this.#clock.schedule(Math.max(1, request.waitMs), () => {
        // What is being looked up right now still counts.
        if (member.taking === 0) finish()
        else member.onSettled = finish
      })
      if (signal.aborted) {
        abort()
        return
      }
      signal.addEventListener('abort', abort)
      topic.credit(
        member,
        request.max,
        request.maxBytes === 0 ? DEFAULT_RECEIVE_BYTES : request.maxBytes,
      )
    })
    if (failure !== undefined) throw failure
    return { deliveries, notice: topic.notice() }
  }

  async acknowledge(group: string, items: readonly AckItem[]): Promise<readonly AckFailure[]> {
    this.#getGroup(group)
    return this.settle(group, items)
  }

  /** For sessions. */
  async settle(
    group: string,
    items: readonly AckItem[],
    dead?: number[],
  ): Promise<readonly AckFailure[]> {
    const failures: AckFailure[] = []
    const byPartition = new Map<QueuePartition, PartitionAck[]>()
    for (const [index, item] of items.entries()) {
      const token = decodeToken(item.token)
      if (token === undefined) {
        const message = `a lease token has 16 bytes that came with a delivery; these are ${item.token.length} others`
        failures.push({
          index,
          error: new BrokerError('INVALID_LEASE_TOKEN', message, { field: 'token' }),
        })
        continue
      }
      const partition = this.#partitions.get(token.queue)
      if (
        partition === undefined ||
        partition.group !== group ||
        partition.companion.partition.leaderEpoch !== token.epoch
      ) {
        failures.push({
          index,
          error: new BrokerError(
            'LEASE_LOST',
            'the lease has ended: the broker has been started anew since, or the topic is another one',
            { group, first: item.first },
          ),
        })
        continue
      }
      const acks = byPartition.get(partition)
      const ack = { index, number: token.number, item }
      if (acks === undefined) byPartition.set(partition, [ack])
      else acks.push(ack)
    }
    const [only] = byPartition
    if (only !== undefined && byPartition.size === 1 && failures.length === 0)
      return only[0].acknowledge(only[1], dead)
    const results = await Promise.all(
      [...byPartition].map(([partition, acks]) => partition.acknowledge(acks, dead)),
    )
    for (const result of results) failures.push(...result)
    return failures.sort((a, b) => a.index - b.index)
  }

  #checkOpen(): void {
    if (this.#closing !== undefined || this.#isDraining) {
      throw new BrokerError('BROKER_DRAINING', 'the broker is stopping and takes no new work')
    }
  }

  /** @throws BrokerError UNKNOWN_GROUP when it was deleted meanwhile */
  #checkKept(group: QueueGroup): void {
    if (this.#groups.get(group.id) !== group) this.#getGroup(group.id)
  }

  // ── Looking ──

  async describe(id: string): Promise<QueueDescription> {
    const group = this.#getGroup(id)
    const topics: QueueDescription['topics'][number][] = []
    for (const made of group.topics.values()) {
      const partitions: QueuePartitionDescription[] = []
      for (const partition of made.partitions)
        partitions.push(partition.describe(await this.#findAge(partition)))
      for (const [{ topic, index }, error] of made.broken)
        partitions.push(describeBroken(topic, index, error))
      const { deadLetterTopic } = made
      topics.push({ topic: made.name, deadLetterTopic, partitions: partitions.sort(byPlace) })
    }
    const nowMs = this.#clock.monotonicMs()
    const notices = [...group.topics.values()].map((topic) => topic.notice())
    const { pausedUntilMs } = group
    return {
      group: id,
      topics: topics.sort((a, b) => (a.topic < b.topic ? -1 : 1)),
      members: [...group.members.values()].map((member) => member.describe(nowMs)),
      config: describeQueueConfig(group.overrides),
      paused: group.isPaused,
      pausedUntilMs: pausedUntilMs === Infinity ? 0 : pausedUntilMs,
      notice: {
        throttledUntilMs: group.throttledUntilMs,
        windowFull: notices.some((notice) => notice.windowFull),
        paused: group.isPaused,
        dlqUnavailable: notices.some((notice) => notice.dlqUnavailable),
      },
      counters: { ...group.counters },
    }
  }

  /** How long the oldest record that could be given out has been there. */
  async #findAge(partition: QueuePartition): Promise<number | undefined> {
    const offset = partition.findOldestReady()
    if (offset === undefined) return undefined
    try {
      const record = await partition.shelf.readRecord(offset)
      return record === undefined
        ? undefined
        : Math.max(0, this.#clock.wallMs() - record.timestampMs)
    } catch {
      return undefined // The description tells that the partition cannot be read.
    }
  }

  async explain(id: string, topic: string, index: number, offset: number): Promise<Explanation> {
    if (!Number.isSafeInteger(offset) || offset < 0) {
      throw new BrokerError('INVALID_REQUEST', `${offset} is no offset`, {
        field: 'offset',
        actual: offset,
      })
    }
    return this.#getPartition(id, topic, index).explain(offset)
  }

  async unblock(
    id: string,
    topic: string,
    index: number,
    offset: number,
    skip: boolean,
  ): Promise<void> {
    await this.#getPartition(id, topic, index).unblock(offset, skip)
  }

  /** @throws BrokerError UNKNOWN_GROUP, UNKNOWN_TOPIC, UNKNOWN_PARTITION */
  #getPartition(id: string, topic: string, index: number): QueuePartition {
    const made = this.#findByPartitionTopic(id, topic)
    const found = made.partitions.find(
      ({ source }) => source.topic === topic && source.index === index,
    )
    if (found !== undefined) return found
    for (const [source, error] of made.broken)
      if (source.topic === topic && source.index === index) throw error
    this.#topics.getPartition(topic, index)
    throw new BrokerError('LOADING', `${topic}-${index} is being opened`, {
      topic,
      partition: index,
    })
  }

  /** A group's own retry topic may be named too. */
  #findByPartitionTopic(id: string, topic: string): GroupTopic {
    for (const made of this.#getGroup(id).topics.values()) {
      if (made.partitions.some(({ source }) => source.topic === topic)) return made
    }
    return this.#getTopic(id, topic)
  }

  async peek(request: {
    readonly group: string
    readonly topic: string
    readonly partition: number | undefined
    readonly state: RecordState | undefined
    readonly limit: number
  }): Promise<readonly PeekedRecord[]> {
    const limit = request.limit === 0 ? DEFAULT_PEEKED : request.limit
    checkRange('limit', limit, 1, MOST_PEEKED)
    const made = this.#findByPartitionTopic(request.group, request.topic)
    if (request.partition !== undefined)
      this.#getPartition(request.group, request.topic, request.partition)
    const found: PeekedRecord[] = []
    for (const partition of made.partitions) {
      if (request.partition !== undefined && partition.source.index !== request.partition) continue
      for (const offset of findOffsets(partition, request.state, limit - found.length)) {
        const record = await partition.shelf.readRecord(offset)
        if (record === undefined) continue
        found.push({
          topic: partition.source.topic,
          partition: partition.source.index,
          record,
          state: partition.explain(offset),
        })
      }
    }
    return found
  }

  /** Resolves when a group takes records from the retry topic that has just been made for it. */
  async attachRetries(id: string, topic: string): Promise<void> {
    const group = this.#groups.get(id)
    const made = group?.topics.get(topic)
    if (group === undefined || made === undefined) return
    for (const partition of this.#findRetries(group, made)) {
      await this.#openPartition(group, made, partition, false)
    }
  }

  has(group: string): boolean {
    return this.#groups.has(group)
  }

  /** Groups that work through a topic's records, for whoever wants to know where dead letters go. */
  deadLetterTopicOf(group: string, topic: string): string {
    const named = this.#groups.get(group)?.topics.get(topic)?.deadLetterTopic ?? ''
    return named === '' ? deadLetterTopicName(group, topic) : named
  }

  /** Forgets a group and all it knows. @throws BrokerError UNKNOWN_GROUP, GROUP_NOT_EMPTY while it has workers; why what it knows cannot be loaded, if so */
  async delete(id: string): Promise<void> {
    const beginning = [...this.#attaching].filter(([key]) => key.startsWith(`${id}/`))
    await Promise.allSettled(beginning.map(([, attaching]) => attaching))
    const group = this.#getGroup(id)
    const connected = [...group.members.values()].filter((member) => member.listener !== undefined)
    if (connected.length > 0) {
      throw new BrokerError(
        'GROUP_NOT_EMPTY',
        `group ${id} has ${connected.length} workers: it can be deleted when they are gone`,
        {
          group: id,
          members: connected.length,
        },
      )
    }
    // What cannot be loaded cannot be forgotten: a new group of that name would go on where this one was.
    for (const { broken } of group.topics.values()) {
      for (const failure of broken.values()) throw failure
    }
    this.#groups.delete(id)
    const deleting = this.#forget(group)
    const quiet = deleting.catch(() => undefined).finally(() => this.#deleting.delete(id))
    this.#deleting.set(id, quiet)
    await deleting
    this.#logger.info({ group: id }, 'queue group deleted')
  }

  async #forget(group: QueueGroup): Promise<void> {
    const { id } = group
    const partitions = [...group.topics.values()].flatMap((topic) => topic.partitions)
    group.close()
    for (const topic of group.topics.values()) {
      await topic.close(new BrokerError('UNKNOWN_GROUP', `group ${id} was deleted`, { group: id }))
    }
    for (const partition of partitions) {
      this.#partitions.delete(partition.number)
      const { source } = partition
      source.holdRetention(`queue ${id}`, undefined)
      // What was redriven and is done would come once more, to whoever makes the group anew; what is not done waits for that.
      if (isRetryTopic(source.topic) && source.failure === undefined) {
        await source.advanceLogStart(partition.state.start)
      }
      await partition.companion.drop(id)
    }
    await group.inTurn(async () => {
      const log = await this.#ensureLog()
      await log.write([encodeGroupRecord(id, undefined)])
    })
    this.#holdForHomes()
  }

  // ── Tasks of others that are kept beside the groups ──

  get tasks(): ReadonlyMap<string, string> {
    return this.#tasks
  }

  /** Durable when it resolves. */
  async putTask(task: string, text: string | null): Promise<void> {
    const log = await this.#ensureLog()
    if (text === null) this.#tasks.delete(task)
    else this.#tasks.set(task, text)
    await log.write([encodeTaskRecord(task, text)])
  }

  // ── The end ──

  /** Gives out nothing more and takes in nobody; acknowledgements are taken as before. */
  drain(): void {
    if (this.#isDraining) return
    this.#isDraining = true
    for (const group of this.#groups.values()) group.isDraining = true
  }

  /** Ends all sessions with `reason`, releases what they hold, waits for what is on its way. */
  close(reason: BrokerError): Promise<void> {
    this.#closing ??= this.#close(reason)
    return this.#closing
  }

  async #close(reason: BrokerError): Promise<void> {
    this.drain()
    this.#stopListening()
    for (const cancel of this.#reloads) cancel()
    await Promise.allSettled([...this.#attaching.values(), ...this.#background])
    for (const group of this.#groups.values()) {
      group.close()
      // Their records need not wait for a lease to run out after the next start: they are available then anyway.
      for (const topic of group.topics.values()) await topic.close(reason)
    }
    this.#wheel.close()
    await this.companions.close()
    try {
      await this.#log?.settled()
    } catch (error) {
      this.#logger.warn(
        { cause: toBrokerError(error).message },
        'settings of queue groups could not be flushed',
      )
    }
  }
}

function traitsOf(group: QueueGroup, topic: Topic): TopicTraits {
  return {
    jobs: topic.config.jobsEnable,
    isHome: homeGroupOf(topic) === group.id,
    holds: respectsQueueGroups(topic.config),
    isDlq: topic.config.dlq,
  }
}

function checkLease(leaseMs: number): void {
  if (leaseMs !== 0) checkRange('lease_ms', leaseMs, LEAST_LEASE_MS, LONGEST_LEASE_MS)
}

function checkRange(field: string, value: number, least: number, most: number): void {
  if (Number.isFinite(value) && value >= least && value <= most) return
  throw new BrokerError('INVALID_REQUEST', `${field} ${value} is outside [${least}, ${most}]`, {
    field,
    actual: value,
    least,
    limit: most,
  })
}

function byPlace(a: QueuePartitionDescription, b: QueuePartitionDescription): number {
  if (a.topic !== b.topic) return a.topic < b.topic ? -1 : 1
  return a.partition - b.partition
}
