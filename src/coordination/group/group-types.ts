import type { BrokerError } from '../../common/errors.ts'
import type { Offset } from '../../common/offset.ts'

/** A group id has one type for life (SEMANTICS §3.0). */
export type GroupType = 'stream' | 'queue'

/**
 * `empty`: no members. `assigning`: a new target assignment is about to be computed. `reconciling`: members give up or wait for partitions.
 * `stable`: everyone has what it is meant to have.
 */
export type GroupStateName = 'empty' | 'assigning' | 'reconciling' | 'stable'

export type AssignorName = 'uniform' | 'range'

/** What a member wants to read: topics by name, also ones still to come, or those whose names an RE2 expression finds. */
export interface SubscriptionRequest {
  readonly topics: readonly string[]
  /** Empty: none. Either this or `topics`. */
  readonly pattern: string
}

export interface JoinGroupRequest {
  readonly group: string
  /** Empty: a new member. Else one that comes back. */
  readonly memberId: string
  /** What a member that comes back knows. */
  readonly memberEpoch: number
  /** Empty: a dynamic member. */
  readonly instanceId: string
  readonly clientId: string
  /** Address of the other end, for people. */
  readonly host: string
  readonly rack: string
  readonly subscription: SubscriptionRequest
  /** Empty: the group's present one, `uniform` for a new group. */
  readonly assignor: string
  /** 0: the default. */
  readonly sessionTimeoutMs: number
  readonly rebalanceTimeoutMs: number
}

/** One offset to commit: the next record to be processed. */
export interface OffsetCommitRequest {
  readonly topic: string
  readonly partition: number
  readonly offset: number
  readonly leaderEpoch: number
  /** At most 4096 bytes of UTF-8. */
  readonly metadata: string
  /** Empty: whichever topic has the name now. */
  readonly topicId: string
}

/** Why one offset of a commit was refused; the others of the commit are not touched by it. */
export interface CommitFailure {
  readonly topic: string
  readonly partition: number
  readonly error: BrokerError
}

export interface CommittedOffset {
  readonly topic: string
  readonly topicId: string
  readonly partition: number
  readonly offset: Offset
  readonly leaderEpoch: number
  readonly metadata: string
  readonly committedMs: number
}

/** Everything that a member is to own from now on. */
export interface MemberAssignment {
  /** Rises within a session. To be confirmed once everything that is not named here has been given up. */
  readonly number: number
  readonly memberEpoch: number
  readonly groupEpoch: number
  readonly topics: readonly AssignedTopic[]
}

export interface AssignedTopic {
  readonly topic: string
  readonly topicId: string
  readonly partitions: readonly AssignedPartition[]
}

export interface AssignedPartition {
  readonly partition: number
  /** Undefined: nothing has been committed. */
  readonly committed: Pick<CommittedOffset, 'offset' | 'leaderEpoch' | 'metadata'> | undefined
  readonly logStartOffset: Offset
  readonly highWatermark: Offset
}

/** The member's side of a session, as its connection shows it to the coordinator. Neither call may throw. */
export interface MemberListener {
  assigned(assignment: MemberAssignment): void
  /** The session is over, and not by the member's own doing: UNKNOWN_MEMBER, INSTANCE_FENCED, LOADING (try again), BROKER_DRAINING. Last call. */
  ended(error: BrokerError): void
}

/** The coordinator's side of a session: what the member's connection may ask. Every call counts as a sign of life. */
export interface MemberSession {
  readonly memberId: string
  readonly memberEpoch: number
  readonly heartbeatIntervalMs: number
  readonly sessionTimeoutMs: number
  readonly rebalanceTimeoutMs: number
  /** True when the member came back to what it had. */
  readonly resumed: boolean
  heartbeat(): void
  /**
   * Resolves, when everything that was not refused is durable, to what was refused.
   * @throws BrokerError (as rejection) when the commit as a whole is refused: UNKNOWN_MEMBER, INSTANCE_FENCED, LOADING; or its outcome is unknown
   */
  commit(
    memberEpoch: number,
    offsets: readonly OffsetCommitRequest[],
  ): Promise<readonly CommitFailure[]>
  /** The member has given up everything that assignment `number`, and those before it, did not name. Numbers that were never given out do nothing. */
  confirm(number: number): void
  /** @throws BrokerError (as rejection) INVALID_PATTERN, INVALID_TOPIC_NAME, TOPIC_INTERNAL, INVALID_REQUEST, UNKNOWN_MEMBER */
  subscribe(subscription: SubscriptionRequest): Promise<void>
  /** Gives up everything at once. A static member keeps its place until its session times out. Resolves when durable. */
  leave(): Promise<void>
  /** The connection broke: the session goes on until it times out, and the member may come back. */
  detach(): void
}

export interface GroupSummary {
  readonly group: string
  readonly type: GroupType
  readonly state: GroupStateName
  readonly members: number
  readonly groupEpoch: number
}

export interface TopicPartitionList {
  readonly topic: string
  readonly partitions: readonly number[]
}

export interface MemberDescription {
  readonly memberId: string
  readonly instanceId: string
  readonly clientId: string
  readonly host: string
  readonly rack: string
  readonly memberEpoch: number
  readonly subscription: SubscriptionRequest
  readonly owned: readonly TopicPartitionList[]
  readonly target: readonly TopicPartitionList[]
  /** Owned, but no longer meant to be. */
  readonly revoking: readonly TopicPartitionList[]
  readonly connected: boolean
  readonly sessionTimeoutMs: number
  readonly sinceHeartbeatMs: number
}

export interface GroupPartitionDescription {
  readonly topic: string
  readonly partition: number
  /** Empty: nobody. */
  readonly memberId: string
  readonly committed: CommittedOffset | undefined
  readonly logStartOffset: Offset
  readonly highWatermark: Offset
  /** High watermark less committed offset, or less log start where nothing is committed (or what is committed is gone). */
  readonly lag: number
  /** How long the next record has been waiting. Undefined when not asked for, when there is none, or when it cannot be read. */
  readonly lagMs: number | undefined
}

export interface GroupDescription extends Omit<GroupSummary, 'members'> {
  readonly assignor: AssignorName
  readonly members: readonly MemberDescription[]
  readonly partitions: readonly GroupPartitionDescription[]
  readonly lag: number
  /** Undefined while it has members, and when it never had one. */
  readonly emptySinceMs: number | undefined
}

export type ResetTarget =
  | { readonly to: 'earliest' }
  | { readonly to: 'latest' }
  | { readonly to: 'offset'; readonly offset: number }
  | { readonly to: 'timestamp'; readonly timestampMs: number }
  | { readonly to: 'duration'; readonly durationMs: number }
  | { readonly to: 'shift'; readonly by: number }
  | { readonly to: 'offsets'; readonly offsets: readonly OffsetReset[] }

export interface OffsetReset {
  readonly topic: string
  readonly partition: number
  readonly offset: number
  /** Refuse with WRONG_EXPECTED_OFFSET when another offset is committed by now; -1: none is. Undefined: whatever it is. */
  readonly expectedOffset: number | undefined
}

export interface ResetRequest {
  readonly group: string
  /** Empty: every topic with committed offsets. Without partitions: all of the topic. */
  readonly topics: readonly TopicPartitionList[]
  readonly target: ResetTarget
  /** False: a dry run. */
  readonly execute: boolean
}

export interface ResetOffset {
  readonly topic: string
  readonly partition: number
  readonly from: Offset | undefined
  readonly to: Offset
  readonly logStartOffset: Offset
  readonly highWatermark: Offset
  /** What was asked for lies outside the log and has been brought to its edge. */
  readonly clamped: boolean
}

/** Stream groups of this broker (DESIGN §8). What the gRPC service stands on. */
export interface Groups {
  /**
   * Opens a session. `listener` is called from the next turn of the event loop on.
   * @throws BrokerError (as rejection) INVALID_GROUP_ID, INVALID_PATTERN, INVALID_TOPIC_NAME, TOPIC_INTERNAL, INVALID_REQUEST (timeouts, assignor, nothing
   *   subscribed), GROUP_TYPE_MISMATCH, GROUP_FULL, INSTANCE_ID_IN_USE, UNKNOWN_MEMBER and INSTANCE_FENCED (one that comes back too late), LOADING
   */
  join(request: JoinGroupRequest, listener: MemberListener): Promise<MemberSession>
  /**
   * A commit outside a session: as a member, or with an empty `memberId` as an administrator, which makes the group if there is none.
   * @throws BrokerError (as rejection) UNKNOWN_GROUP, UNKNOWN_MEMBER, INSTANCE_FENCED, GROUP_NOT_EMPTY, GROUP_TYPE_MISMATCH, INVALID_GROUP_ID, LOADING
   */
  commit(
    group: string,
    member: { readonly memberId: string; readonly memberEpoch: number },
    offsets: readonly OffsetCommitRequest[],
  ): Promise<readonly CommitFailure[]>
  /** @throws BrokerError (as rejection) UNKNOWN_GROUP, GROUP_TYPE_MISMATCH, LOADING, as the rest of these */
  committed(group: string, topics?: readonly string[]): Promise<readonly CommittedOffset[]>
  list(filter?: {
    readonly type?: GroupType | undefined
    readonly state?: GroupStateName | undefined
  }): Promise<readonly GroupSummary[]>
  describe(group: string, options?: { readonly timeLag?: boolean }): Promise<GroupDescription>
  /** @throws BrokerError (as rejection) GROUP_NOT_EMPTY */
  delete(group: string): Promise<void>
  /** Resolves to how many are gone. @throws BrokerError (as rejection) GROUP_SUBSCRIBED */
  deleteOffsets(group: string, topics: readonly TopicPartitionList[]): Promise<number>
  /** @throws BrokerError (as rejection) GROUP_NOT_EMPTY, UNKNOWN_TOPIC, UNKNOWN_PARTITION, WRONG_EXPECTED_OFFSET, OFFSET_OUT_OF_RANGE, INVALID_REQUEST */
  reset(request: ResetRequest): Promise<{ offsets: readonly ResetOffset[]; executed: boolean }>
  /** Ends all sessions with `error`, waits for what is on its way. */
  close(error: BrokerError): Promise<void>
}
