import type { CancelTimer } from '../../common/clock.ts'
import { BrokerError } from '../../common/errors.ts'
import { isOffset } from '../../common/offset.ts'
import type { MemberRecord, OffsetEvent } from './group-events.ts'
import type { GroupType, JoinGroupRequest, OffsetCommitRequest } from './group-types.ts'
import type { MemberStream } from './member-stream.ts'
import { StreamGroup } from './stream-group.ts'

/** What is known of a member beside its record, and forgotten when the broker stops. */
export interface Presence {
  readonly memberId: string
  stream: MemberStream | undefined
  /** A join of it is on its way to the log. */
  isJoining: boolean
  isToBeTold: boolean
  host: string
  lastSeenMs: number
  cancelExpiry: CancelTimer | undefined
  cancelRevocation: CancelTimer | undefined
}

/** A group, and what goes on around it. */
export interface LiveGroup {
  readonly state: StreamGroup
  readonly presences: Map<string, Presence>
  /** Members, topics or partitions have come or gone since the last target. */
  isDirty: boolean
  /** So much that there has to be a new epoch. */
  isForced: boolean
  computedMs: number
  cancelCompute: CancelTimer | undefined
  /** What members have confirmed last, and has not been acted on. */
  readonly confirms: Map<Presence, { readonly stream: MemberStream; readonly number: number }>
  /** Until it fires, confirmations are gathered. */
  cancelRelease: CancelTimer | undefined
  /** Until it fires, some of what is free may still have to be given to somebody. */
  cancelGrant: CancelTimer | undefined
  /** Members whose instance id somebody else has by now; the newest ones. */
  readonly takenOver: Set<string>
}

/** A group of which nothing is known yet. */
export function newLiveGroup(id: string): LiveGroup {
  return {
    state: new StreamGroup(id),
    presences: new Map(),
    isDirty: false,
    isForced: false,
    computedMs: -Infinity,
    cancelCompute: undefined,
    confirms: new Map(),
    cancelRelease: undefined,
    cancelGrant: undefined,
    takenOver: new Set(),
  }
}

export function nameOf(request: JoinGroupRequest): string {
  const name = request.instanceId !== '' ? request.instanceId : request.clientId
  return name.replace(/[^A-Za-z0-9._-]/g, '').slice(0, 60) || 'member'
}

export function checkType(state: StreamGroup, wanted: GroupType): void {
  if (state.type === wanted) return
  throw new BrokerError(
    'GROUP_TYPE_MISMATCH',
    `group ${state.id} is a ${state.type} group, and stays one: use another id for a ${wanted} group`,
    { group: state.id, type: state.type, wanted },
  )
}

export function checkEmpty(live: LiveGroup, what: string): void {
  const { members } = live.state
  if (members.size === 0) return
  const [first] = live.presences.values()
  throw new BrokerError(
    'GROUP_NOT_EMPTY',
    `group ${live.state.id} has ${members.size} members (one of them is ${first?.memberId ?? 'unknown'} at ${first?.host ?? 'unknown'}): ${what} once they have been stopped`,
    { group: live.state.id, members: members.size },
  )
}

export function goneError(
  group: string,
  memberId: string,
  live: LiveGroup | undefined,
): BrokerError {
  if (live?.takenOver.has(memberId) === true) {
    return new BrokerError(
      'INSTANCE_FENCED',
      `member ${memberId} of group ${group} has been replaced: another process has its instance id`,
      { group, memberId },
    )
  }
  return new BrokerError(
    'UNKNOWN_MEMBER',
    `group ${group} has no member ${memberId.slice(0, 120)} (any more): join anew`,
    { group, memberId },
  )
}

export function checkOwned(
  group: string,
  asked: OffsetCommitRequest,
  topicId: string,
  by: { readonly memberId: string; readonly memberEpoch: number; readonly member: MemberRecord },
): void {
  const { topic, partition } = asked
  const { memberId, memberEpoch, member } = by
  const since = member.owned.get(topicId)?.get(partition)
  if (since === undefined) {
    throw new BrokerError(
      'PARTITION_NOT_OWNED',
      `member ${memberId} of group ${group} does not own ${topic}-${partition}: whoever does will process what it did again`,
      { group, memberId, topic, partition, memberEpoch },
    )
  }
  if (isOffset(memberEpoch) && memberEpoch >= since && memberEpoch <= member.epoch) return
  throw new BrokerError(
    'STALE_MEMBER_EPOCH',
    `member ${memberId} of group ${group} commits ${topic}-${partition} with epoch ${memberEpoch}: it has owned it from epoch ${since} to ${member.epoch}`,
    { group, memberId, topic, partition, memberEpoch, expected: member.epoch },
  )
}

export function listOffsetDeletions(state: StreamGroup): OffsetEvent[] {
  const events: OffsetEvent[] = []
  for (const [topic, records] of state.offsets) {
    for (const [partition, record] of records.entries()) {
      if (record === undefined) continue
      events.push({ type: 'offset-deleted', group: state.id, topic, partition })
    }
  }
  return events
}
