import { BrokerError } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import type {
  CommitFailure,
  CommittedOffset,
  GroupDescription,
  Groups,
  GroupSummary,
  JoinGroupRequest,
  MemberAssignment,
  MemberListener,
  MemberSession,
  OffsetCommitRequest,
  ResetOffset,
  ResetRequest,
  SubscriptionRequest,
} from '../../src/coordination/group/group-types.ts'

/** A commit that waits for the test to settle it. */
export interface HeldCommit {
  readonly memberEpoch: number
  readonly offsets: readonly OffsetCommitRequest[]
  settle(failures?: readonly CommitFailure[]): void
  refuse(error: BrokerError): void
}

/** One session, as the coordinator has it: what was asked of it, in order, and the listener to call. */
export class FakeSession implements MemberSession {
  readonly memberId: string
  readonly memberEpoch: number = 1
  readonly heartbeatIntervalMs: number = 1000
  readonly sessionTimeoutMs: number = 6000
  readonly rebalanceTimeoutMs: number = 300_000
  readonly resumed: boolean
  readonly request: JoinGroupRequest
  readonly listener: MemberListener
  readonly calls: string[] = []
  readonly commits: HeldCommit[] = []
  readonly #groups: FakeGroups

  constructor(
    groups: FakeGroups,
    memberId: string,
    request: JoinGroupRequest,
    listener: MemberListener,
  ) {
    this.#groups = groups
    this.memberId = memberId
    this.resumed = request.memberId !== ''
    this.request = request
    this.listener = listener
  }

  heartbeat(): void {
    this.calls.push('heartbeat')
  }

  commit(
    memberEpoch: number,
    offsets: readonly OffsetCommitRequest[],
  ): Promise<readonly CommitFailure[]> {
    this.calls.push('commit')
    if (!this.#groups.holdCommits) return Promise.resolve([])
    return new Promise((resolve, reject) => {
      this.commits.push({
        memberEpoch,
        offsets,
        settle: (failures = []) => resolve(failures),
        refuse: reject,
      })
    })
  }

  confirm(number: number): void {
    this.calls.push(`confirm ${number}`)
  }

  subscribe(subscription: SubscriptionRequest): Promise<void> {
    this.calls.push(`subscribe ${[...subscription.topics, subscription.pattern].join()}`)
    const { pattern } = subscription
    return pattern === '('
      ? Promise.reject(new BrokerError('INVALID_PATTERN', 'missing )'))
      : Promise.resolve()
  }

  async leave(): Promise<void> {
    this.calls.push('leave')
    await this.#groups.leaving
    if (this.#groups.leaveFailure !== undefined) throw this.#groups.leaveFailure
  }

  detach(): void {
    this.calls.push('detach')
  }

  assign(number: number, partitions: number): void {
    const assignment: MemberAssignment = {
      number,
      memberEpoch: 1,
      groupEpoch: 1,
      topics: [
        {
          topic: 'orders',
          topicId: 'id',
          partitions: Array.from({ length: partitions }, (_, partition) => ({
            partition,
            committed: undefined,
            logStartOffset: toOffset(0),
            highWatermark: toOffset(0),
          })),
        },
      ],
    }
    this.listener.assigned(assignment)
  }
}

/** Groups that a test has in its hand: every call is noted, nothing happens by itself. For what goes over the wire, not for the rules of groups. */
export class FakeGroups implements Groups {
  readonly sessions: FakeSession[] = []
  /** Commits wait for `commits[i].settle()`. */
  holdCommits = false
  /** What `leave` waits for. */
  leaving: Promise<void> = Promise.resolve()
  /** What `join` waits for. */
  joining: Promise<void> = Promise.resolve()
  /** What `join` and `leave` fail with. */
  joinFailure: BrokerError | undefined
  leaveFailure: BrokerError | undefined
  readonly requests: unknown[] = []
  closedWith: BrokerError | undefined

  async join(request: JoinGroupRequest, listener: MemberListener): Promise<MemberSession> {
    await this.joining
    if (this.joinFailure !== undefined) throw this.joinFailure
    const memberId = request.memberId === '' ? `m${this.sessions.length}` : request.memberId
    const session = new FakeSession(this, memberId, request, listener)
    this.sessions.push(session)
    return session
  }

  get session(): FakeSession {
    const session = this.sessions.at(-1)
    if (session === undefined) throw new Error('nobody has joined')
    return session
  }

  commit(): Promise<readonly CommitFailure[]> {
    return Promise.resolve([])
  }

  committed(): Promise<readonly CommittedOffset[]> {
    return Promise.resolve([])
  }

  list(filter?: object): Promise<readonly GroupSummary[]> {
    this.requests.push(filter)
    return Promise.resolve([])
  }

  describe(group: string): Promise<GroupDescription> {
    return Promise.reject(new BrokerError('UNKNOWN_GROUP', `there is no group ${group}`))
  }

  delete(): Promise<void> {
    return Promise.resolve()
  }

  deleteOffsets(): Promise<number> {
    return Promise.resolve(0)
  }

  reset(request: ResetRequest): Promise<{ offsets: readonly ResetOffset[]; executed: boolean }> {
    this.requests.push(request.target)
    return Promise.resolve({ offsets: [], executed: request.execute })
  }

  close(error: BrokerError): Promise<void> {
    this.closedWith = error
    return Promise.resolve()
  }
}
