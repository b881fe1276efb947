import type { UntypedServiceImplementation } from '@grpc/grpc-js'
import { unreachable } from '../common/assert.ts'
import { BrokerError } from '../common/errors.ts'
import { isOffset } from '../common/offset.ts'
import type {
  GroupDescription,
  GroupPartitionDescription,
  GroupStateName,
  GroupType as GroupTypeName,
  MemberDescription,
  OffsetReset as RequestedReset,
  ResetOffset as PlannedReset,
  ResetTarget,
  TopicPartitionList,
} from '../coordination/group/group-types.ts'
import type {
  CommitOffsetsRequest,
  CommitOffsetsResponse,
  DescribeGroupResponse,
  GroupMember,
  GroupPartition,
  GroupServiceMethods,
  GroupState,
  GroupType,
  OffsetReset,
  ResetOffset,
  ResetOffsetsRequest,
  TopicPartitions,
} from '../gen/types.ts'
import { GROUP_SERVICE, type ServiceMethods } from '../wire/definitions.ts'
import type { ServiceEnvironment } from './environment.ts'
import { checkTimestamp } from './fetch-session.ts'
import { type JoinCall, JoinSession } from './join-session.ts'
import { checkCommitCount, sortOutOffsets, toOffsetErrors } from './offset-messages.ts'
import {
  checkEnum,
  implementService,
  implementUnary,
  takeRawRequests,
  type UnaryHandlers,
} from './unary.ts'

export const GROUP_SERVICE_DEFINITION: ServiceMethods = takeRawRequests(GROUP_SERVICE)

type UnaryMethods = Omit<GroupServiceMethods, 'Join' | 'CommitOffsets'>

/** GroupService: a thin face of Groups, which holds the rules. */
export function groupService(environment: ServiceEnvironment): UntypedServiceImplementation {
  const commitOffsets = async (request: CommitOffsetsRequest): Promise<CommitOffsetsResponse> => {
    const { group, memberId, memberEpoch, offsets } = request
    checkCommitCount(offsets)
    const { valid, refused } = sortOutOffsets(offsets)
    const failures = await environment.groups().commit(group, { memberId, memberEpoch }, valid)
    const all = [...refused, ...failures]
    return { errors: toOffsetErrors(all, environment.errors, 'CommitOffsets') }
  }
  const describeStreamGroup = async (
    group: string,
    timeLag: boolean,
  ): Promise<GroupDescription> => {
    try {
      return await environment.groups().describe(group, { timeLag })
    } catch (error) {
      if (!(error instanceof BrokerError) || error.code !== 'GROUP_TYPE_MISMATCH') throw error
      throw new BrokerError(
        error.code,
        `group ${group} is a queue group: DescribeQueue shows it`,
        error.details,
        error,
      )
    }
  }
  const decodeCommit = (bytes: Buffer): CommitOffsetsRequest =>
    // What the method's own deserializer makes, which is the type that gen/types.ts has for it.
    GROUP_SERVICE['CommitOffsets']?.requestDeserialize(bytes) as CommitOffsetsRequest

  const handlers: UnaryHandlers<UnaryMethods> = {
    FetchOffsets: async ({ group, topics }) => {
      const asked = topics.length > 0 ? topics : undefined
      const offsets = await environment.groups().committed(group, asked)
      return {
        offsets: offsets.map(
          ({ topic, partition, offset, leaderEpoch, metadata, committedMs }) => ({
            topic,
            partition,
            offset,
            leaderEpoch,
            metadata,
            committedMs,
          }),
        ),
      }
    },
    ListGroups: async (request) => {
      checkEnum('type', request.type)
      checkEnum('state', request.state)
      const groups = await environment.groups().list({
        type: TYPE_NAMES[request.type],
        state: STATE_NAMES[request.state],
      })
      return {
        groups: groups.map(({ group, type, state, members, groupEpoch }) => ({
          group,
          type: TYPES[type],
          state: STATES[state],
          members,
          groupEpoch,
        })),
      }
    },
    DescribeGroup: async (request): Promise<DescribeGroupResponse> => {
      const { group, timeLag } = request
      const description = await describeStreamGroup(group, timeLag)
      return {
        group: description.group,
        type: TYPES[description.type],
        state: STATES[description.state],
        groupEpoch: description.groupEpoch,
        assignor: description.assignor,
        members: description.members.map(toMember),
        partitions: description.partitions.map(toPartition),
        lag: description.lag,
        emptySinceMs: description.emptySinceMs ?? 0,
      }
    },
    DeleteGroup: async ({ group }) => {
      await environment.groups().delete(group)
      return {}
    },
    DeleteOffsets: async ({ group, topics }) => ({
      deleted: await environment.groups().deleteOffsets(group, topics),
    }),
    ResetOffsets: async (request) => {
      const { group, topics, execute } = request
      checkEnum('to', request.to)
      const target = toTarget(request)
      const done = await environment.groups().reset({ group, topics, target, execute })
      return { offsets: done.offsets.map(toResetOffset), executed: done.executed }
    },
  }
  return {
    Join: (call: JoinCall) => new JoinSession(call, environment).start(),
    CommitOffsets: implementUnary(environment, 'CommitOffsets', decodeCommit, commitOffsets, {
      timeoutCode: 'COMMIT_TIMEOUT',
    }),
    ...implementService<UnaryMethods>(environment, GROUP_SERVICE, handlers),
  }
}

const TYPES: Readonly<Record<GroupTypeName, GroupType>> = {
  stream: 'GROUP_TYPE_STREAM',
  queue: 'GROUP_TYPE_QUEUE',
}

const TYPE_NAMES: Readonly<Record<GroupType, GroupTypeName | undefined>> = {
  GROUP_TYPE_UNSPECIFIED: undefined,
  GROUP_TYPE_STREAM: 'stream',
  GROUP_TYPE_QUEUE: 'queue',
}

const STATES: Readonly<Record<GroupStateName, GroupState>> = {
  empty: 'GROUP_STATE_EMPTY',
  assigning: 'GROUP_STATE_ASSIGNING',
  reconciling: 'GROUP_STATE_RECONCILING',
  stable: 'GROUP_STATE_STABLE',
}

const STATE_NAMES: Readonly<Record<GroupState, GroupStateName | undefined>> = {
  GROUP_STATE_UNSPECIFIED: undefined,
  GROUP_STATE_EMPTY: 'empty',
  GROUP_STATE_ASSIGNING: 'assigning',
  GROUP_STATE_RECONCILING: 'reconciling',
  GROUP_STATE_STABLE: 'stable',
}

function toMember(member: MemberDescription): GroupMember {
  return {
    memberId: member.memberId,
    instanceId: member.instanceId,
    clientId: member.clientId,
    host: member.host,
    rack: member.rack,
    memberEpoch: member.memberEpoch,
    subscription: {
      topics: [...member.subscription.topics],
      pattern: member.subscription.pattern,
    },
    owned: toTopicPartitions(member.owned),
    target: toTopicPartitions(member.target),
    revoking: toTopicPartitions(member.revoking),
    connected: member.connected,
    sessionTimeoutMs: member.sessionTimeoutMs,
    sinceHeartbeatMs: Math.round(member.sinceHeartbeatMs),
  }
}

function toTopicPartitions(topics: readonly TopicPartitionList[]): TopicPartitions[] {
  return topics.map(({ topic, partitions }) => ({ topic, partitions: [...partitions] }))
}

function toPartition(partition: GroupPartitionDescription): GroupPartition {
  const { committed, lagMs } = partition
  const message: GroupPartition = {
    topic: partition.topic,
    partition: partition.partition,
    memberId: partition.memberId,
    logStartOffset: partition.logStartOffset,
    highWatermark: partition.highWatermark,
    lag: partition.lag,
    metadata: committed?.metadata ?? '',
    committedMs: committed?.committedMs ?? 0,
  }
  if (committed !== undefined) message.committedOffset = committed.offset
  if (lagMs !== undefined) message.lagMs = Math.round(lagMs)
  return message
}

function toResetOffset(planned: PlannedReset): ResetOffset {
  const { from, topic, partition, to, logStartOffset, highWatermark, clamped } = planned
  const message: ResetOffset = { topic, partition, to, logStartOffset, highWatermark, clamped }
  if (from !== undefined) message.from = from
  return message
}

/** @throws BrokerError INVALID_REQUEST, INVALID_POSITION */
function toTarget(request: ResetOffsetsRequest): ResetTarget {
  const { to, value, offsets } = request
  if (offsets.length > 0 && to !== 'RESET_TO_OFFSETS') {
    throw invalid('offsets', `offsets go with RESET_TO_OFFSETS only, not with ${to}`)
  }
  switch (to) {
    case 'RESET_TO_UNSPECIFIED':
      throw invalid('to', 'say where to: to is not set')
    case 'RESET_TO_EARLIEST':
      return { to: 'earliest' }
    case 'RESET_TO_LATEST':
      return { to: 'latest' }
    case 'RESET_TO_OFFSET':
      if (!isOffset(value)) throw invalid('value', `${value} is no offset`, value)
      return { to: 'offset', offset: value }
    case 'RESET_TO_TIMESTAMP':
      checkTimestamp(value)
      return { to: 'timestamp', timestampMs: value }
    case 'RESET_TO_DURATION':
      if (!isOffset(value)) throw invalid('value', `${value} ms is no duration`, value)
      return { to: 'duration', durationMs: value }
    case 'RESET_TO_SHIFT':
      if (!Number.isSafeInteger(value)) throw invalid('value', `${value} is no distance`, value)
      return { to: 'shift', by: value }
    case 'RESET_TO_OFFSETS':
      checkCommitCount(offsets)
      for (const { offset, expectedOffset } of offsets) {
        if (!isOffset(offset)) throw invalid('offset', `${offset} is no offset`, offset)
        if (expectedOffset !== undefined && expectedOffset !== -1 && !isOffset(expectedOffset)) {
          throw invalid('expected_offset', `${expectedOffset} is no offset`, expectedOffset)
        }
      }
      return { to: 'offsets', offsets: offsets.map(toReset) }
    default:
      return unreachable(to)
  }
}

function toReset(reset: OffsetReset): RequestedReset {
  const { topic, partition, offset, expectedOffset } = reset
  return { topic, partition, offset, expectedOffset }
}

function invalid(field: string, message: string, actual?: number): BrokerError {
  return new BrokerError('INVALID_REQUEST', message, { field, actual })
}
