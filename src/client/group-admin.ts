import { type Offset, toOffset } from '../common/offset.ts'
import type {
  GroupMember,
  GroupPartition,
  GroupState as WireState,
  GroupType as WireType,
  OffsetReset,
  ResetOffset,
  ResetOffsetsRequest,
  TopicPartitions,
} from '../gen/types.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { Connection } from './connection.ts'
import type {
  GroupAdmin,
  GroupDetails,
  GroupInfo,
  GroupMemberInfo,
  GroupOffset,
  GroupPartitionInfo,
  GroupState,
  GroupType,
  OffsetResetPlan,
  ResetOptions,
  TopicPartition,
} from './consumer-api.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { choosePartitions, findOffsets } from './offset-lookup.ts'
import { type ParsedPosition, parsePosition } from './position.ts'

const TYPES: Readonly<Record<GroupType, WireType>> = {
  stream: 'GROUP_TYPE_STREAM',
  queue: 'GROUP_TYPE_QUEUE',
}

const STATES: Readonly<Record<GroupState, WireState>> = {
  empty: 'GROUP_STATE_EMPTY',
  assigning: 'GROUP_STATE_ASSIGNING',
  reconciling: 'GROUP_STATE_RECONCILING',
  stable: 'GROUP_STATE_STABLE',
}

/** What the broker is asked for to plan a reset. */
type ResetTarget = Pick<ResetOffsetsRequest, 'to' | 'value' | 'offsets' | 'topics'>

/** The administration of groups over a connection. Every call goes to the group's coordinator. */
export class LogGroupAdmin implements GroupAdmin {
  readonly #connection: Connection

  constructor(connection: Connection) {
    this.#connection = connection
  }

  async *groups(filter: Parameters<GroupAdmin['groups']>[0] = {}): AsyncGenerator<GroupInfo> {
    const { match, type, state } = filter
    const request = {
      type: type === undefined ? 'GROUP_TYPE_UNSPECIFIED' : TYPES[type],
      state: state === undefined ? 'GROUP_STATE_UNSPECIFIED' : STATES[state],
    } as const
    // Each broker knows the groups that it coordinates.
    const answers = await Promise.all(
      this.#connection
        .brokers()
        .map((channel) =>
          this.#connection.call('ListGroups', request, { isRead: true, channel: () => channel }),
        ),
    )
    const groups = answers.flatMap((answer) => answer.groups)
    for (const found of groups.sort((a, b) => (a.group < b.group ? -1 : 1))) {
      if (match !== undefined && found.group.search(match) < 0) continue
      yield {
        group: found.group,
        type: toType(found.type),
        state: toState(found.state),
        members: found.members,
        epoch: found.groupEpoch,
      }
    }
  }

  async describeGroup(
    group: string,
    options: { readonly timeLag?: boolean | undefined } = {},
  ): Promise<GroupDetails> {
    const found = await this.#connection.call(
      'DescribeGroup',
      { group, timeLag: options.timeLag ?? true },
      { isRead: true, group },
    )
    return {
      group: found.group,
      type: toType(found.type),
      state: toState(found.state),
      epoch: found.groupEpoch,
      assignor: found.assignor === 'range' ? 'range' : 'uniform',
      members: found.members.map(toMemberInfo),
      partitions: found.partitions.map(toPartitionInfo),
      lag: found.lag,
      emptySince: found.emptySinceMs === 0 ? undefined : found.emptySinceMs,
    }
  }

  async deleteGroup(group: string): Promise<void> {
    await this.#connection.call('DeleteGroup', { group }, { isRead: false, group })
  }

  async groupOffsets(group: string): Promise<readonly GroupOffset[]> {
    const { offsets } = await this.#connection.call(
      'FetchOffsets',
      { group, topics: [] },
      { isRead: true, group },
    )
    return offsets
      .map(({ topic, partition, offset, metadata, committedMs }) => ({
        topic,
        partition,
        offset: toOffset(offset),
        metadata,
        committedAt: committedMs,
      }))
      .sort(byPlace)
  }

  async commitOffsets(
    group: string,
    offsets: Parameters<GroupAdmin['commitOffsets']>[1],
  ): Promise<void> {
    const { errors } = await this.#connection.call(
      'CommitOffsets',
      {
        group,
        memberId: '',
        memberEpoch: 0,
        offsets: offsets.map(({ topic, partition, offset, metadata = '' }) => ({
          topic,
          partition,
          offset,
          metadata,
          leaderEpoch: 0,
          topicId: '',
        })),
      },
      { isRead: false, group },
    )
    const [first] = errors
    if (first === undefined) return
    const { topic, partition, error } = first
    const failure =
      error === null
        ? new MillraceError('INTERNAL_ERROR', `the commit of ${topic}-${partition} was refused`)
        : toMillraceError(toBrokerErrorFromDetail(error))
    const others = errors.length > 1 ? ` (and ${errors.length - 1} more were refused)` : ''
    throw new MillraceError(
      failure.code,
      failure.message + others,
      {
        ...failure.details,
        topic,
        partition,
        refused: errors.length,
        committed: offsets.length - errors.length,
      },
      failure,
    )
  }

  async deleteGroupOffsets(
    group: string,
    topic: string,
    partitions?: readonly number[],
  ): Promise<number> {
    // On the wire none means all.
    if (partitions?.length === 0) return 0
    const { deleted } = await this.#connection.call(
      'DeleteOffsets',
      { group, topics: [{ topic, partitions: [...(partitions ?? [])] }] },
      { isRead: false, group },
    )
    return deleted
  }

  async resetOffsets(group: string, options: ResetOptions): Promise<readonly OffsetResetPlan[]> {
    const topics = checkTopics(options)
    const plan = await this.#plan(group, options, topics)
    if (options.dryRun === true || plan.length === 0) return plan
    // Exactly the plan, and only if nobody has committed since: what was shown is what is done.
    const offsets: OffsetReset[] = plan.map(({ topic, partition, from, to }) => ({
      topic,
      partition,
      offset: to,
      expectedOffset: from ?? -1,
    }))
    const done = await this.#connection.call(
      'ResetOffsets',
      { group, topics: [], to: 'RESET_TO_OFFSETS', value: 0, offsets, execute: true },
      { isRead: false, group },
    )
    // Retention may have moved a log start past the plan in the meantime.
    return done.offsets
      .map(toPlan)
      .sort(byPlace)
      .map((item, index) => ({ ...item, clamped: item.clamped || plan[index]?.clamped === true }))
  }

  async #plan(
    group: string,
    options: ResetOptions,
    topics: readonly string[],
  ): Promise<readonly OffsetResetPlan[]> {
    const { to, partitions } = options
    if (partitions?.length === 0) return []
    const chosen = topics.map((topic) => ({ topic, partitions: [...(partitions ?? [])] }))
    if (typeof to === 'object' && 'shift' in to) {
      return this.#dryRun(group, {
        to: 'RESET_TO_SHIFT',
        value: to.shift,
        offsets: [],
        topics: chosen,
      })
    }
    if (typeof to === 'object' && 'offsets' in to) {
      const offsets = to.offsets.filter(
        ({ topic, partition }) =>
          (topics.length === 0 || topics.includes(topic)) &&
          (partitions === undefined || partitions.includes(partition)),
      )
      return this.#planExactly(group, offsets)
    }
    const position = parsePosition(to, this.#connection.clock.wallMs())
    const target = findTarget(position)
    if (target !== undefined) return this.#dryRun(group, { ...target, topics: chosen, offsets: [] })
    return this.#planCounted(group, chosen, position)
  }

  /** For what the broker has no word for: so many records from an end of each partition. */
  async #planCounted(
    group: string,
    chosen: readonly TopicPartitions[],
    position: ParsedPosition,
  ): Promise<readonly OffsetResetPlan[]> {
    const topics = chosen.length > 0 ? chosen : await this.#committedTopics(group)
    if (topics.length === 0) {
      throw new MillraceError(
        'INVALID_REQUEST',
        `group ${group} has nothing committed: name the topic to reset`,
        { field: 'topic', group },
      )
    }
    const offsets: (TopicPartition & { offset: Offset })[] = []
    for (const { topic, partitions } of topics) {
      // Asked anew: partitions may have been added since.
      const route = await this.#connection.refreshRoute(topic)
      const wanted = choosePartitions(route, partitions.length > 0 ? partitions : undefined)
      const found = await findOffsets(this.#connection, topic, wanted, position)
      for (const [partition, offset] of found) offsets.push({ topic, partition, offset })
    }
    const plan = await this.#planExactly(group, offsets)
    const count = 'count' in position ? position.count : 0
    return plan.map((item) => ({
      ...item,
      clamped: item.clamped || count > item.highWatermark - item.logStartOffset,
    }))
  }

  async #committedTopics(group: string): Promise<TopicPartitions[]> {
    const offsets = await this.groupOffsets(group)
    return [...new Set(offsets.map(({ topic }) => topic))].map((topic) => ({
      topic,
      partitions: [],
    }))
  }

  async #planExactly(
    group: string,
    offsets: readonly (TopicPartition & { readonly offset: number })[],
  ): Promise<readonly OffsetResetPlan[]> {
    if (offsets.length === 0) return []
    return this.#dryRun(group, {
      to: 'RESET_TO_OFFSETS',
      value: 0,
      offsets: offsets.map(({ topic, partition, offset }) => ({ topic, partition, offset })),
      topics: [],
    })
  }

  async #dryRun(group: string, target: ResetTarget): Promise<readonly OffsetResetPlan[]> {
    const { offsets } = await this.#connection.call(
      'ResetOffsets',
      { group, ...target, execute: false },
      { isRead: true, group },
    )
    return offsets.map(toPlan).sort(byPlace)
  }
}

/** The position in the broker's words, if it has any for it. */
function findTarget(position: ParsedPosition): Pick<ResetTarget, 'to' | 'value'> | undefined {
  switch (position.kind) {
    case 'start':
      return { to: 'RESET_TO_EARLIEST', value: 0 }
    case 'end':
      return { to: 'RESET_TO_LATEST', value: 0 }
    case 'offset':
      return { to: 'RESET_TO_OFFSET', value: position.offset }
    case 'time':
      return { to: 'RESET_TO_TIMESTAMP', value: Math.round(position.timeMs) }
    default:
      return undefined
  }
}

function checkTopics(options: ResetOptions): readonly string[] {
  const { topic, partitions } = options
  const topics =
    topic === undefined ? [] : typeof topic === 'string' ? [topic] : [...new Set(topic)]
  if (partitions !== undefined && topics.length !== 1) {
    throw new MillraceError(
      'INVALID_REQUEST',
      `partitions are those of one topic, and ${topics.length === 0 ? 'none is' : `${topics.length} are`} named: say which with topic`,
      { field: 'partitions' },
    )
  }
  return topics
}

function toPlan(found: ResetOffset): OffsetResetPlan {
  return {
    topic: found.topic,
    partition: found.partition,
    from: found.from === undefined ? undefined : toOffset(found.from),
    to: toOffset(found.to),
    logStartOffset: toOffset(found.logStartOffset),
    highWatermark: toOffset(found.highWatermark),
    clamped: found.clamped,
  }
}

function toMemberInfo(member: GroupMember): GroupMemberInfo {
  const { topics = [], pattern = '' } = member.subscription ?? {}
  return {
    memberId: member.memberId,
    instanceId: member.instanceId === '' ? undefined : member.instanceId,
    clientId: member.clientId,
    host: member.host,
    epoch: member.memberEpoch,
    subscription: { topics, pattern: pattern === '' ? undefined : pattern },
    owned: toPlaces(member.owned),
    target: toPlaces(member.target),
    revoking: toPlaces(member.revoking),
    connected: member.connected,
    sessionTimeoutMs: member.sessionTimeoutMs,
    sinceHeartbeatMs: member.sinceHeartbeatMs,
  }
}

function toPartitionInfo(found: GroupPartition): GroupPartitionInfo {
  const { committedOffset } = found
  return {
    topic: found.topic,
    partition: found.partition,
    memberId: found.memberId === '' ? undefined : found.memberId,
    committed: committedOffset === undefined ? undefined : toOffset(committedOffset),
    metadata: found.metadata,
    committedAt: committedOffset === undefined ? undefined : found.committedMs,
    logStartOffset: toOffset(found.logStartOffset),
    highWatermark: toOffset(found.highWatermark),
    lag: found.lag,
    lagMs: found.lagMs,
  }
}

function toPlaces(topics: readonly TopicPartitions[]): TopicPartition[] {
  return topics.flatMap(({ topic, partitions }) =>
    partitions.map((partition) => ({ topic, partition })),
  )
}

function byPlace(a: TopicPartition, b: TopicPartition): number {
  if (a.topic !== b.topic) return a.topic < b.topic ? -1 : 1
  return a.partition - b.partition
}

function toType(type: WireType): GroupType {
  if (type === 'GROUP_TYPE_STREAM') return 'stream'
  if (type === 'GROUP_TYPE_QUEUE') return 'queue'
  throw unheardOf('type', type)
}

function toState(state: WireState): GroupState {
  if (state === 'GROUP_STATE_EMPTY') return 'empty'
  if (state === 'GROUP_STATE_ASSIGNING') return 'assigning'
  if (state === 'GROUP_STATE_RECONCILING') return 'reconciling'
  if (state === 'GROUP_STATE_STABLE') return 'stable'
  throw unheardOf('state', state)
}

function unheardOf(field: string, value: string): MillraceError {
  return new MillraceError(
    'UNSUPPORTED_FEATURE',
    `the broker names a ${field} of groups that this client does not know: ${value}`,
    { field, value },
  )
}
