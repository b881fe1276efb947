import type { CancelTimer, Clock } from '../../common/clock.ts'
import { BrokerError } from '../../common/errors.ts'
import { checkGroupId } from '../../common/names.ts'
import { MIB } from '../../common/units.ts'
import type { Random } from '../../common/random.ts'
import type { Topics } from '../../topic/topics.ts'
import { murmur2 } from '../../wire/murmur2.ts'
import { TurnGate } from '../turn-gate.ts'
import type { OffsetEvent } from './group-events.ts'
import { DEFAULT_GROUP_OPTIONS, type GroupOptions } from './group-options.ts'
import { describe, listCommitted, stateOf, summarize } from './group-report.ts'
import { type GroupLogger, GroupShard, WHOLE_TURN } from './group-shard.ts'
import type { LiveGroup } from './live-group.ts'
import type {
  CommitFailure,
  CommittedOffset,
  GroupDescription,
  Groups,
  GroupStateName,
  GroupSummary,
  GroupType,
  JoinGroupRequest,
  MemberListener,
  MemberSession,
  OffsetCommitRequest,
  ResetOffset,
  ResetRequest,
  TopicPartitionList,
} from './group-types.ts'
import { checkUnchanged, type PlannedReset, planReset } from './offset-reset.ts'
import { TopicView } from './topic-view.ts'

export interface GroupCoordinatorOptions {
  readonly topics: Topics
  readonly clock: Clock
  readonly random: Random
  /** Silent by default. */
  readonly logger?: GroupLogger | undefined
  readonly options?:
    | { readonly [K in keyof GroupOptions]?: GroupOptions[K] | undefined }
    | undefined
}

export const GROUPS_TOPIC = '__groups'
export const OFFSETS_TOPIC = '__offsets'

/**
 * Small segments: only what has been rolled can be compacted. Large records: a member that names 10 000 topics of the longest names, or owns partitions of
 * 20 000 topics, takes more than the 1 MiB of other topics, and one that did not fit would end the use of its shard, for every group in it.
 */
const STATE_TOPIC_CONFIG: Readonly<Record<string, string>> = {
  'cleanup.policy': 'compact',
  'segment.bytes': String(16 * MIB),
  'max.message.bytes': String(8 * MIB),
}

const SILENT: GroupLogger = {
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
}

/**
 * The stream groups of a broker. A group lives in one shard, by the hash of its id: a partition of `__groups` for members and targets, and the
 * same of `__offsets` for what is committed. The topics are made when the first group is.
 */
export class GroupCoordinator implements Groups {
  readonly #topics: Topics
  readonly #clock: Clock
  readonly #random: Random
  readonly #logger: GroupLogger
  readonly #options: GroupOptions
  readonly #view: TopicView
  readonly #stopListening: () => void
  readonly #deleteListeners: ((group: string) => Promise<void>)[] = []
  #shards: readonly GroupShard[] = []
  #making: Promise<void> | undefined
  #cancelExpiry: CancelTimer | undefined
  #closing: Promise<void> | undefined

  private constructor(options: GroupCoordinatorOptions) {
    this.#topics = options.topics
    this.#clock = options.clock
    this.#random = options.random
    this.#logger = options.logger ?? SILENT
    this.#options = mergeOptions(options.options ?? {})
    this.#view = new TopicView(options.topics)
    this.#stopListening = options.topics.onChange(() => {
      this.#view.invalidate()
      for (const shard of this.#shards) shard.topicsChanged()
    })
  }

  /** Reads the state of all groups, if there is any. Groups whose state cannot be read answer with the reason; the others work. */
  static async open(options: GroupCoordinatorOptions): Promise<GroupCoordinator> {
    const coordinator = new GroupCoordinator(options)
    if (options.topics.find(GROUPS_TOPIC) !== undefined) await coordinator.#ensureShards()
    coordinator.#watchOffsets()
    return coordinator
  }

  async #ensureShards(): Promise<void> {
    if (this.#shards.length > 0) return
    this.#making ??= this.#makeShards().finally(() => {
      this.#making = undefined
    })
    await this.#making
  }

  async #makeShards(): Promise<void> {
    const { partitions } = this.#options
    const groups = await this.#topics.ensureInternal(GROUPS_TOPIC, partitions, STATE_TOPIC_CONFIG)
    const offsets = await this.#topics.ensureInternal(
      OFFSETS_TOPIC,
      groups.partitions.length,
      STATE_TOPIC_CONFIG,
    )
    if (this.#closing !== undefined) throw new BrokerError('CLOSED', 'the broker is stopping')
    const gate = new TurnGate(this.#clock, WHOLE_TURN)
    const shards = groups.partitions.map((groupsPartition, index) => {
      const offsetsPartition = offsets.partitions[index]
      if (offsetsPartition === undefined) {
        throw new BrokerError('STORAGE_ERROR', `${OFFSETS_TOPIC} has lost partition ${index}`)
      }
      return new GroupShard({
        clock: this.#clock,
        random: this.#random,
        logger: this.#logger,
        options: this.#options,
        topics: this.#topics,
        view: this.#view,
        groupsPartition,
        offsetsPartition,
        gate,
      })
    })
    await Promise.all(shards.map((shard) => shard.load()))
    this.#shards = shards
  }

  #watchOffsets(): void {
    this.#cancelExpiry = this.#clock.schedule(this.#options.expiryCheckMs, () => {
      void this.#expireOffsets()
    })
  }

  /** Never rejects: what fails is logged, and comes again. */
  async #expireOffsets(): Promise<void> {
    try {
      for (const shard of this.#shards) await shard.expireOffsets()
    } catch (error) {
      const cause = error instanceof Error ? error.message : String(error)
      this.#logger.error({ cause }, 'old groups could not be removed')
    } finally {
      if (this.#closing === undefined) this.#watchOffsets()
    }
  }

  /** The shard of a group, which is made with all others when there are none yet. @throws BrokerError INVALID_GROUP_ID, CLOSED */
  async #shardFor(group: string): Promise<GroupShard> {
    checkGroupId(group)
    if (this.#closing !== undefined) throw new BrokerError('CLOSED', 'the broker is stopping')
    await this.#ensureShards()
    const shard = this.#findShard(group)
    if (shard === undefined) throw new BrokerError('CLOSED', 'the broker is stopping')
    return shard
  }

  #findShard(group: string): GroupShard | undefined {
    const hash = murmur2(Buffer.from(group)) >>> 0
    return this.#shards[hash % Math.max(1, this.#shards.length)]
  }

  /** @throws BrokerError UNKNOWN_GROUP and so on, without making anything */
  #find(group: string): { readonly shard: GroupShard; readonly live: LiveGroup } {
    checkGroupId(group)
    const shard = this.#findShard(group)
    if (shard === undefined) {
      throw new BrokerError('UNKNOWN_GROUP', `there is no group ${group}`, { group })
    }
    return { shard, live: shard.getStreamGroup(group) }
  }

  async join(request: JoinGroupRequest, listener: MemberListener): Promise<MemberSession> {
    return (await this.#shardFor(request.group)).join(request, listener)
  }

  async commit(
    group: string,
    member: { readonly memberId: string; readonly memberEpoch: number },
    offsets: readonly OffsetCommitRequest[],
  ): Promise<readonly CommitFailure[]> {
    return (await this.#shardFor(group)).commit(group, member, offsets)
  }

  /**
   * Makes a group of a type, for life, unless there is one.
   * @throws BrokerError (as rejection) INVALID_GROUP_ID, GROUP_TYPE_MISMATCH
   */
  async declare(group: string, type: GroupType): Promise<void> {
    await (await this.#shardFor(group)).declare(group, type)
  }

  async committed(
    group: string,
    topics: readonly string[] = [],
  ): Promise<readonly CommittedOffset[]> {
    const { shard, live } = this.#find(group)
    const offsets = listCommitted(live, this.#topics, topics)
    await shard.settled()
    return offsets
  }

  async list(
    filter: {
      readonly type?: GroupType | undefined
      readonly state?: GroupStateName | undefined
    } = {},
  ): Promise<readonly GroupSummary[]> {
    const found: GroupSummary[] = []
    for (const shard of this.#shards) {
      shard.checkReady()
      for (const live of shard.groups.values()) {
        if (filter.type !== undefined && live.state.type !== filter.type) continue
        if (filter.state !== undefined && stateOf(live) !== filter.state) continue
        found.push(summarize(live))
      }
    }
    await Promise.all(this.#shards.map((shard) => shard.settled()))
    return found.sort((a, b) => (a.group < b.group ? -1 : 1))
  }

  async describe(
    group: string,
    options: { readonly timeLag?: boolean } = {},
  ): Promise<GroupDescription> {
    const { shard, live } = this.#find(group)
    const description = await describe(
      live,
      this.#topics,
      this.#view,
      this.#clock,
      options.timeLag === true,
    )
    await shard.settled()
    return description
  }

  /** Calls `listener` before a group is deleted: it has things of its own to forget. When it rejects, the group stays. */
  onDelete(listener: (group: string) => Promise<void>): void {
    this.#deleteListeners.push(listener)
  }

  async delete(group: string): Promise<void> {
    checkGroupId(group)
    const shard = this.#findShard(group)
    if (shard === undefined) {
      throw new BrokerError('UNKNOWN_GROUP', `there is no group ${group}`, { group })
    }
    for (const listener of this.#deleteListeners) await listener(group)
    await shard.delete(group)
  }

  async deleteOffsets(group: string, topics: readonly TopicPartitionList[]): Promise<number> {
    const { shard, live } = this.#find(group)
    const { state } = live
    const events: OffsetEvent[] = []
    for (const { topic, partitions } of topics) {
      this.#checkUnsubscribed(live, topic)
      const wanted = new Set(partitions)
      for (const [partition, record] of (state.offsets.get(topic) ?? []).entries()) {
        if (record === undefined || (wanted.size > 0 && !wanted.has(partition))) continue
        events.push({ type: 'offset-deleted', group, topic, partition })
      }
    }
    await shard.deleteOffsets(group, events)
    return events.length
  }

  #checkUnsubscribed(live: LiveGroup, topic: string): void {
    const topicId = this.#topics.find(topic)?.id
    for (const [memberId, member] of live.state.members) {
      const isNamed = member.subscription.topics.includes(topic)
      if (
        !isNamed &&
        (topicId === undefined || !this.#view.resolve(member.subscription).has(topicId))
      )
        continue
      throw new BrokerError(
        'GROUP_SUBSCRIBED',
        `member ${memberId} of group ${live.state.id} subscribes to ${topic}: its offsets can be deleted when nobody does`,
        { group: live.state.id, topic, memberId },
      )
    }
  }

  async reset(
    request: ResetRequest,
  ): Promise<{ offsets: readonly ResetOffset[]; executed: boolean }> {
    const { shard, live } = this.#find(request.group)
    const plan = await planReset(this.#topics, this.#clock, live.state, request)
    await shard.settled()
    if (live.state.members.size > 0) await shard.rewrite(request.group, []) // Says why not, in a dry run too.
    const offsets = plan.map(toResetOffset)
    if (!request.execute) return { offsets, executed: false }
    checkUnchanged(live.state, plan)
    const committedMs = this.#clock.wallMs()
    await shard.rewrite(
      request.group,
      plan.map(({ topic, topicId, partition, to, leaderEpoch }) => ({
        type: 'offset',
        group: request.group,
        topic,
        partition,
        record: { topicId, offset: to, leaderEpoch, metadata: '', committedMs },
      })),
    )
    return { offsets, executed: true }
  }

  close(reason: BrokerError): Promise<void> {
    this.#closing ??= this.#close(reason)
    return this.#closing
  }

  async #close(reason: BrokerError): Promise<void> {
    this.#stopListening()
    this.#cancelExpiry?.()
    await Promise.allSettled([this.#making])
    await Promise.all(this.#shards.map((shard) => shard.close(reason)))
  }
}

function toResetOffset(line: PlannedReset): ResetOffset {
  const { topic, partition, from, to, logStartOffset, highWatermark, clamped } = line
  return { topic, partition, from, to, logStartOffset, highWatermark, clamped }
}

function mergeOptions(given: NonNullable<GroupCoordinatorOptions['options']>): GroupOptions {
  const merged: Record<string, unknown> = { ...DEFAULT_GROUP_OPTIONS }
  for (const [name, value] of Object.entries(given)) if (value !== undefined) merged[name] = value
  return merged as unknown as GroupOptions // Every member is there from the defaults, and of its type from `given`.
}
