import type { CancelTimer, Clock } from '../../common/clock.ts'
import { BrokerError, toBrokerError } from '../../common/errors.ts'
import { type Offset, toOffset } from '../../common/offset.ts'
import { newUuid, type Random } from '../../common/random.ts'
import type { Partition } from '../../topic/partition.ts'
import type { Topics } from '../../topic/topics.ts'
import { StateLog } from '../state-log.ts'
import type { TurnGate } from '../turn-gate.ts'
import { ASSIGNORS } from './assignor.ts'
import {
  decodeGroupEvent,
  decodeOffsetEvent,
  encodeGroupEvent,
  encodeOffsetEvent,
  type GroupEvent,
  type MemberRecord,
  type OffsetEvent,
} from './group-events.ts'
import type { GroupOptions } from './group-options.ts'
import type {
  AssignedTopic,
  CommitFailure,
  GroupType,
  JoinGroupRequest,
  MemberAssignment,
  MemberListener,
  MemberSession,
  OffsetCommitRequest,
  SubscriptionRequest,
} from './group-types.ts'
import { checkJoin, checkSubscription, isSameSubscription } from './join-check.ts'
import {
  checkEmpty,
  checkOwned,
  checkType,
  goneError,
  listOffsetDeletions,
  type LiveGroup,
  nameOf,
  newLiveGroup,
  type Presence,
} from './live-group.ts'
import { MemberStream } from './member-stream.ts'
import { countPartitions } from './partition-set.ts'
import { checkCommit } from './offset-check.ts'
import type { StreamGroup } from './stream-group.ts'
import type { TopicView } from './topic-view.ts'

export interface GroupLogger {
  info(details: object, message: string): void
  warn(details: object, message: string): void
  error(details: object, message: string): void
}

export interface ShardOptions {
  readonly clock: Clock
  readonly random: Random
  readonly logger: GroupLogger
  readonly options: GroupOptions
  readonly topics: Topics
  readonly view: TopicView
  /** Of `__groups` and `__offsets`: the same number of both. */
  readonly groupsPartition: Partition
  readonly offsetsPartition: Partition
  /** What comes by hundreds at once goes through it. All shards have one, since they share an event loop. Of {@link WHOLE_TURN}. */
  readonly gate: TurnGate
}

const RETRY_LOAD_MS = 1000
/**
 * Costs for the gate, gRPC's part included, in partitions of an assignment: each takes about 3 µs, on two busy cores; a message by itself takes
 * about 90 µs, a join about 300 µs. So a turn is about 4 ms, to which whatever else the turn brings is added.
 */
const MESSAGE_COST = 30
const JOIN_COST = 70
const TELL_COST = 10
export const WHOLE_TURN = 1200
/** Members whose confirmations are dealt with in one turn: with ten partitions each, most of a thousand others get something. */
const MOST_RELEASES = 200
/** Members that are given what has become free in one turn: the others in the next ones. Each takes about 60 µs. */
export const MOST_GAINS = 200
const MOST_TAKEN_OVER = 1000

/**
 * The groups of one pair of partitions of `__groups` and `__offsets`. Everything that changes a group is decided on what is in memory, written, and
 * applied on the same side of any `await`; answers and assignments go out when it is durable. When a write fails, what was applied since is worth
 * nothing: sessions are ended with LOADING, and the state is loaded again from the log.
 */
export class GroupShard {
  readonly groups: Map<string, LiveGroup> = new Map()
  readonly #env: ShardOptions
  #groupLog: StateLog
  #offsetLog: StateLog
  #failure: BrokerError | undefined = new BrokerError('LOADING', 'the groups are being loaded')
  #loading: Promise<void> | undefined
  #cancelRetry: CancelTimer | undefined
  #isClosed = false
  readonly #gate: TurnGate

  constructor(options: ShardOptions) {
    this.#env = options
    this.#gate = options.gate
    this.#groupLog = this.#newLog(options.groupsPartition)
    this.#offsetLog = this.#newLog(options.offsetsPartition)
  }

  // ── loading ──

  /** Reads both logs. Never rejects: what goes wrong is what every call is answered with, and is tried again. */
  load(): Promise<void> {
    this.#loading ??= this.#load().finally(() => {
      this.#loading = undefined
    })
    return this.#loading
  }

  async #load(): Promise<void> {
    const { clock, logger, groupsPartition, offsetsPartition } = this.#env
    const startMs = clock.monotonicMs()
    // Of the two logs one may still be at work, and what it adds is part of the state too.
    await Promise.allSettled([this.#groupLog.settled(), this.#offsetLog.settled()])
    if (this.#isClosed) return
    this.#groupLog = this.#newLog(groupsPartition)
    this.#offsetLog = this.#newLog(offsetsPartition)
    this.groups.clear()
    try {
      await this.#groupLog.replay((key, value) => {
        const event = decodeGroupEvent(key, value)
        this.#liveGroup(event.group).state.apply(event)
      })
      await this.#offsetLog.replay((key, value) => {
        const event = decodeOffsetEvent(key, value)
        this.#liveGroup(event.group).state.apply(event)
      })
    } catch (error) {
      const failure = toBrokerError(error)
      this.groups.clear()
      if (this.#isClosed) return
      logger.error(
        { partition: groupsPartition.index, code: failure.code, cause: failure.message },
        'groups could not be loaded',
      )
      this.#failure = failure
      this.#cancelRetry = clock.schedule(RETRY_LOAD_MS * 10, () => void this.load())
      return
    }
    if (this.#isClosed) return
    this.#failure = undefined
    for (const [id, live] of this.groups) this.#revive(id, live)
    logger.info(
      {
        partition: groupsPartition.index,
        groups: this.groups.size,
        elapsedMs: Math.round(clock.monotonicMs() - startMs),
      },
      'groups loaded',
    )
    this.topicsChanged()
  }

  /** Members of before have a whole session timeout from now on to come back. */
  #revive(id: string, live: LiveGroup): void {
    const { state } = live
    if (state.isGone) {
      this.groups.delete(id)
      return
    }
    const overlaps = state.mendOverlaps()
    if (overlaps > 0) {
      this.#env.logger.error(
        { group: id, overlaps },
        'partitions had two owners: taken from the former',
      )
    }
    for (const [memberId, member] of state.members) {
      this.#appear(live, memberId, member.host)
    }
    if (state.members.size > 0) {
      this.#markDirty(live, false)
      return
    }
    // The last member went, and the record that says when did not reach the log, or is damaged: its offsets have their whole time from now on.
    if (state.isRecorded && state.record.emptySinceMs === undefined) {
      const emptySinceMs = this.#env.clock.wallMs()
      // #broke hears of a failure.
      void this.#write(live, [state.decideRecord({ emptySinceMs })])
    }
  }

  #newLog(partition: Partition): StateLog {
    const { clock, logger, options } = this.#env
    return new StateLog({
      partition,
      clock,
      onCorruption: options.onCorruption,
      onSkipped: (error) =>
        logger.error(
          { partition: partition.name, code: error.code, cause: error.message },
          'damaged group state was passed over: offsets or members are missing',
        ),
    })
  }

  /** A write failed, so what is in memory is ahead of the log. */
  #broke(error: unknown): void {
    if (this.#failure !== undefined || this.#isClosed) return
    const cause = toBrokerError(error)
    this.#env.logger.error(
      { partition: this.#env.groupsPartition.index, code: cause.code, cause: cause.message },
      'group state could not be written: loading it again',
    )
    this.#failure = new BrokerError('LOADING', 'the groups are being loaded again', {}, cause)
    this.#endAll(this.#failure)
    this.#cancelRetry = this.#env.clock.schedule(RETRY_LOAD_MS, () => void this.load())
  }

  #endAll(error: BrokerError): void {
    for (const live of this.groups.values()) {
      live.cancelCompute?.()
      live.cancelRelease?.()
      live.cancelGrant?.()
      for (const presence of live.presences.values()) {
        presence.cancelExpiry?.()
        presence.cancelRevocation?.()
        this.#endStream(presence, error)
      }
    }
    this.groups.clear()
  }

  /** Ends sessions; what has been written is durable when this resolves, if it can be. */
  async close(reason: BrokerError): Promise<void> {
    this.#isClosed = true
    this.#failure ??= reason
    this.#cancelRetry?.()
    this.#endAll(reason)
    await Promise.allSettled([this.#loading, this.#groupLog.settled(), this.#offsetLog.settled()])
  }

  /** @throws BrokerError LOADING, or why the groups cannot be had */
  checkReady(): void {
    if (this.#failure !== undefined) throw this.#failure
  }

  /** Waits until everything that can be seen now is durable: what is told of it then is true for good. */
  async settled(): Promise<void> {
    this.checkReady()
    await Promise.all([this.#groupLog.settled(), this.#offsetLog.settled()])
  }

  // ── groups ──

  #liveGroup(id: string): LiveGroup {
    let live = this.groups.get(id)
    if (live === undefined) {
      live = newLiveGroup(id)
      this.groups.set(id, live)
    }
    return live
  }

  /** @throws BrokerError UNKNOWN_GROUP, GROUP_TYPE_MISMATCH */
  getStreamGroup(id: string): LiveGroup {
    this.checkReady()
    const live = this.groups.get(id)
    if (live === undefined) {
      throw new BrokerError('UNKNOWN_GROUP', `there is no group ${id}`, { group: id })
    }
    checkType(live.state, 'stream')
    return live
  }

  /** Gives a group its type for life, unless it has one. @throws BrokerError GROUP_TYPE_MISMATCH */
  async declare(id: string, type: GroupType): Promise<void> {
    this.checkReady()
    const { state } = this.#liveGroup(id)
    if (state.isRecorded || !state.isGone) checkType(state, type)
    if (state.isRecorded) return
    const nowMs = this.#env.clock.wallMs()
    await this.#write(this.#liveGroup(id), [state.decideRecord({ type, emptySinceMs: nowMs })])
  }

  // ── writing ──

  /** Writes and applies what was decided, and has those told whom it concerns. Resolves when it is durable. */
  #write(live: LiveGroup, events: readonly GroupEvent[]): Promise<void> {
    if (events.length === 0) return Promise.resolve()
    const written = this.#groupLog.write(events.map(encodeGroupEvent))
    const concerned = new Set<string>()
    for (const event of events) {
      live.state.apply(event)
      if (event.type === 'member') concerned.add(event.memberId)
    }
    written.catch((error: unknown) => this.#broke(error))
    for (const memberId of concerned) {
      const presence = live.presences.get(memberId)
      if (presence !== undefined) this.#tellSoon(live, presence)
    }
    return written
  }

  /** In this turn, or, of a target for a thousand members, in one of the next: what is told is what holds then. */
  #tellSoon(live: LiveGroup, presence: Presence): void {
    if (presence.isToBeTold) return
    presence.isToBeTold = true
    this.#gate.enter(TELL_COST, () => {
      presence.isToBeTold = false
      if (this.#failure === undefined) this.#tell(live, presence)
    })
  }

  async #writeOffsets(live: LiveGroup, events: readonly OffsetEvent[]): Promise<void> {
    if (events.length === 0) return
    const written = this.#offsetLog.write(events.map(encodeOffsetEvent))
    for (const event of events) live.state.apply(event)
    try {
      await written
    } catch (error) {
      this.#broke(error)
      throw error
    }
  }

  /** Sends a member what it is to own now, if that is something new, once that is durable: its partitions and the offsets in it. */
  #tell(live: LiveGroup, presence: Presence): void {
    const { stream } = presence
    const member = live.state.members.get(presence.memberId)
    if (stream === undefined || !stream.isOpen || member === undefined) return
    if (member.standing !== 'active') return
    const next = stream.takeNext(member)
    this.#watchRevocation(live, presence, member, false)
    if (next === undefined) return
    const assignment: MemberAssignment = {
      number: next.number,
      memberEpoch: member.epoch,
      groupEpoch: live.state.epoch,
      topics: this.#describeAssigned(live.state, next.partitions),
    }
    void this.#deliver(presence, stream, assignment)
  }

  /** Never rejects. */
  async #deliver(
    presence: Presence,
    stream: MemberStream,
    assignment: MemberAssignment,
  ): Promise<void> {
    try {
      await Promise.all([this.#groupLog.settled(), this.#offsetLog.settled()])
    } catch (error) {
      this.#broke(error)
      return
    }
    this.#gate.enter(costOf(assignment), () => {
      if (presence.stream === stream) stream.listener.assigned(assignment)
    })
  }

  #describeAssigned(
    state: StreamGroup,
    partitions: ReadonlyMap<string, readonly number[]>,
  ): AssignedTopic[] {
    const topics: AssignedTopic[] = []
    for (const [topicId, some] of partitions) {
      const topic = this.#env.view.findById(topicId)
      if (topic === undefined) continue // Deleted this moment: the next target leaves it out.
      const described = some.map((index) => {
        const committed = state.findCommitted(topic.name, topicId, index)
        const partition = topic.partitions[index]
        const end = partition?.visibleEnd ?? ZERO
        return {
          partition: index,
          committed,
          logStartOffset: partition?.logStartOffset ?? ZERO,
          highWatermark: end,
        }
      })
      topics.push({ topic: topic.name, topicId, partitions: described })
    }
    return topics
  }

  // ── sessions ──

  /** See `Groups.join`. */
  async join(request: JoinGroupRequest, listener: MemberListener): Promise<MemberSession> {
    await this.#gate.pass(JOIN_COST)
    this.checkReady()
    const wanted = checkJoin(request, this.#env.options)
    const known = this.groups.get(request.group)
    if (known !== undefined) checkType(known.state, 'stream')
    if (request.memberId !== '') return this.#resume(request, wanted.subscription, listener)
    const live = known ?? this.#liveGroup(request.group)
    const { state } = live
    const { options, random, logger } = this.#env
    if (state.members.size >= options.maxMembers) {
      throw new BrokerError(
        'GROUP_FULL',
        `group ${state.id} has ${state.members.size} members, and takes ${options.maxMembers}`,
        { group: state.id, limit: options.maxMembers, actual: state.members.size },
      )
    }
    this.#checkInstance(live, request.instanceId)
    const memberId = `${nameOf(request)}-${newUuid(random)}`
    const formerId = state.instances.get(request.instanceId)
    const events = state.decideJoin(memberId, wanted.member, wanted.assignor)
    const presence = this.#appear(live, memberId, request.host, wanted.member.sessionTimeoutMs)
    presence.isJoining = true
    const written = this.#write(live, events)
    if (formerId !== undefined) this.#takeOver(live, formerId)
    this.#markDirty(live, true)
    await written
    await this.#gate.pass(MESSAGE_COST)
    presence.isJoining = false
    logger.info(
      { group: state.id, memberId, instanceId: request.instanceId, host: request.host },
      'member joined',
    )
    return this.#openStream(live, presence, listener, false)
  }

  #checkInstance(live: LiveGroup, instanceId: string): void {
    const formerId = live.state.instances.get(instanceId)
    if (formerId === undefined) return
    const former = live.presences.get(formerId)
    if (former?.stream === undefined && former?.isJoining !== true) return
    throw new BrokerError(
      'INSTANCE_ID_IN_USE',
      `instance id ${instanceId} of group ${live.state.id} is held by a living member at ${former.host}: stop that one first, or use another id`,
      { group: live.state.id, instanceId, memberId: formerId, host: former.host },
    )
  }

  /** The instance id of a member has gone to another: it may no longer come back, and owns what it owned until its session has expired. */
  #takeOver(live: LiveGroup, formerId: string): void {
    live.takenOver.add(formerId)
    if (live.takenOver.size > MOST_TAKEN_OVER) {
      for (const oldest of live.takenOver) {
        live.takenOver.delete(oldest)
        break
      }
    }
    if (!live.state.members.has(formerId)) this.#vanish(live, formerId)
  }

  /** Comes back to what it had: nothing is written, and nothing moves. */
  async #resume(
    request: JoinGroupRequest,
    subscription: SubscriptionRequest,
    listener: MemberListener,
  ): Promise<MemberSession> {
    const { memberId, memberEpoch } = request
    const live = this.groups.get(request.group)
    const member = live?.state.members.get(memberId)
    const presence = live?.presences.get(memberId)
    if (live === undefined || member === undefined || presence === undefined) {
      throw goneError(request.group, memberId, live)
    }
    if (member.standing !== 'active' || memberEpoch > live.state.epoch) {
      throw goneError(request.group, memberId, live)
    }
    this.#see(presence)
    if (!isSameSubscription(member.subscription, subscription)) {
      const events = live.state.decideChange(memberId, { subscription })
      const written = this.#write(live, events)
      this.#markDirty(live, true)
      await written
    }
    presence.host = request.host
    this.#endStream(
      presence,
      new BrokerError('CANCELLED_BY_CLIENT', 'the member has come back on another stream'),
    )
    return this.#openStream(live, presence, listener, true)
  }

  #openStream(
    live: LiveGroup,
    presence: Presence,
    listener: MemberListener,
    resumed: boolean,
  ): MemberSession {
    const member = live.state.members.get(presence.memberId)
    if (member === undefined || this.#failure !== undefined) {
      throw this.#failure ?? goneError(live.state.id, presence.memberId, live)
    }
    if (this.groups.get(live.state.id) !== live) {
      throw new BrokerError('LOADING', 'the groups have been loaded again meanwhile')
    }
    const stream = new MemberStream(listener)
    presence.stream = stream
    this.#see(presence)
    // Not before whoever asked has its answer.
    this.#env.clock.schedule(0, () => {
      if (presence.stream !== stream || this.#failure !== undefined) return
      stream.isOpen = true
      this.#tell(live, presence)
    })
    return this.#toSession(live, presence, stream, member, resumed)
  }

  #toSession(
    live: LiveGroup,
    presence: Presence,
    stream: MemberStream,
    member: MemberRecord,
    resumed: boolean,
  ): MemberSession {
    const { memberId } = presence
    const { sessionTimeoutMs, rebalanceTimeoutMs } = member
    /** @throws BrokerError when this stream is not the member's any more */
    const check = (): void => {
      this.checkReady()
      if (presence.stream !== stream) throw goneError(live.state.id, memberId, live)
      this.#see(presence)
    }
    const isOurs = (): boolean => presence.stream === stream && this.#failure === undefined
    return {
      memberId,
      memberEpoch: member.epoch,
      heartbeatIntervalMs: this.#env.options.heartbeatIntervalMs(sessionTimeoutMs),
      sessionTimeoutMs,
      rebalanceTimeoutMs,
      resumed,
      heartbeat: () => {
        if (isOurs()) this.#see(presence)
      },
      commit: async (memberEpoch, offsets) => {
        check()
        return this.#commitAs(live, memberId, memberEpoch, offsets)
      },
      confirm: (number) => {
        if (!isOurs()) return
        this.#see(presence)
        live.confirms.set(presence, { stream, number })
        if (live.cancelRelease === undefined) this.#releaseConfirmed(live)
      },
      subscribe: async (subscription) => {
        check()
        checkSubscription(subscription)
        await this.#write(live, live.state.decideChange(memberId, { subscription }))
        this.#markDirty(live, true)
      },
      leave: async () => {
        check()
        await this.#leave(live, presence)
      },
      detach: () => {
        if (presence.stream !== stream) return
        // Its last word counts.
        if (live.confirms.has(presence) && isOurs()) this.#release(live, [presence])
        presence.stream = undefined
      },
    }
  }

  /**
   * Gives on what members have confirmed to have given up: the first at once, and in a flood as many together as came while the ones before were dealt
   * with and for as long again, so that half of the time is everyone else's.
   */
  #releaseConfirmed(live: LiveGroup): void {
    const { clock } = this.#env
    const startMs = clock.monotonicMs()
    const some: Presence[] = []
    for (const presence of live.confirms.keys()) {
      if (some.push(presence) === MOST_RELEASES) break
    }
    this.#release(live, some)
    live.cancelRelease = clock.schedule(clock.monotonicMs() - startMs, () => {
      live.cancelRelease = undefined
      if (live.confirms.size > 0 && this.#failure === undefined) this.#releaseConfirmed(live)
    })
  }

  #release(live: LiveGroup, presences: readonly Presence[]): void {
    const { state, confirms } = live
    const releases = new Map<string, (topicId: string, partition: number) => boolean>()
    const released: Presence[] = []
    for (const presence of presences) {
      const confirmed = confirms.get(presence)
      confirms.delete(presence)
      // On another stream it is told anew, and confirms that.
      if (confirmed === undefined || presence.stream !== confirmed.stream) continue
      const isReleased = confirmed.stream.takeConfirmed(confirmed.number)
      if (isReleased === undefined) continue
      releases.set(presence.memberId, isReleased)
      released.push(presence)
    }
    if (releases.size === 0) return
    const events = state.decideReleases(releases, MOST_GAINS)
    // #broke hears of a failure.
    void this.#write(live, events)
    if (events.length >= MOST_GAINS) this.#grantSoon(live)
    for (const presence of released) {
      const member = state.members.get(presence.memberId)
      if (member !== undefined) this.#watchRevocation(live, presence, member, true)
    }
  }

  /** What was freed and has not been given on, for want of time: in the next turns. */
  #grantSoon(live: LiveGroup): void {
    if (live.cancelGrant !== undefined) return
    live.cancelGrant = this.#env.clock.schedule(0, () => {
      live.cancelGrant = undefined
      if (this.#failure !== undefined) return
      const events = live.state.decideGrants(MOST_GAINS)
      // #broke hears of a failure.
      void this.#write(live, events)
      if (events.length >= MOST_GAINS) this.#grantSoon(live)
    })
  }

  async #leave(live: LiveGroup, presence: Presence): Promise<void> {
    const { memberId } = presence
    const member = live.state.members.get(memberId)
    if (member === undefined) return
    presence.stream = undefined
    // A static member's place is kept for its session timeout: it has nothing to give up any more.
    presence.cancelRevocation?.()
    presence.cancelRevocation = undefined
    this.#env.logger.info({ group: live.state.id, memberId }, 'member left')
    if (member.instanceId !== '') {
      await this.#write(live, live.state.decideStepDown(memberId))
      return
    }
    await this.#remove(live, memberId)
  }

  /** A member goes, and its partitions with it. */
  #remove(live: LiveGroup, memberId: string): Promise<void> {
    this.#vanish(live, memberId)
    const { state } = live
    const written = this.#write(live, state.decideLeave(memberId, this.#env.clock.wallMs()))
    if (state.members.size > 0) this.#markDirty(live, true)
    return written
  }

  // ── presence ──

  #appear(live: LiveGroup, memberId: string, host: string, sessionTimeoutMs?: number): Presence {
    const nowMs = this.#env.clock.monotonicMs()
    const presence: Presence = {
      memberId,
      stream: undefined,
      isJoining: false,
      isToBeTold: false,
      host,
      lastSeenMs: nowMs,
      cancelExpiry: undefined,
      cancelRevocation: undefined,
    }
    live.presences.set(memberId, presence)
    const timeoutMs = sessionTimeoutMs ?? live.state.members.get(memberId)?.sessionTimeoutMs ?? 0
    this.#watchExpiry(live, presence, timeoutMs)
    return presence
  }

  #see(presence: Presence): void {
    presence.lastSeenMs = this.#env.clock.monotonicMs()
  }

  /** One timer per member, set again for the rest when it goes off early: a heartbeat costs a number. */
  #watchExpiry(live: LiveGroup, presence: Presence, delayMs: number): void {
    const { clock } = this.#env
    presence.cancelExpiry = clock.schedule(delayMs, () => {
      const member = live.state.members.get(presence.memberId)
      if (member === undefined) return
      const leftMs = presence.lastSeenMs + member.sessionTimeoutMs - clock.monotonicMs()
      if (leftMs > 0) {
        this.#watchExpiry(live, presence, leftMs)
        return
      }
      this.#expire(live, presence, member)
    })
  }

  #expire(live: LiveGroup, presence: Presence, member: MemberRecord): void {
    const { memberId } = presence
    this.#env.logger.warn(
      {
        group: live.state.id,
        memberId,
        host: presence.host,
        sessionTimeoutMs: member.sessionTimeoutMs,
      },
      'session of a member expired',
    )
    this.#endStream(
      presence,
      new BrokerError(
        'UNKNOWN_MEMBER',
        `nothing was heard of member ${memberId} for ${member.sessionTimeoutMs} ms: its session has expired`,
        { group: live.state.id, memberId, sessionTimeoutMs: member.sessionTimeoutMs },
      ),
    )
    // #broke hears of a failure.
    void this.#remove(live, memberId)
  }

  /** While a member has partitions to give up, its rebalance timeout runs: from the first of them on, and anew when it has given up some. */
  #watchRevocation(live: LiveGroup, presence: Presence, member: MemberRecord, anew: boolean): void {
    const isGivingUp = presence.stream?.isGivingUp === true
    if (anew || !isGivingUp) {
      presence.cancelRevocation?.()
      presence.cancelRevocation = undefined
    }
    if (!isGivingUp || presence.cancelRevocation !== undefined) return
    presence.cancelRevocation = this.#env.clock.schedule(member.rebalanceTimeoutMs, () => {
      presence.cancelRevocation = undefined
      this.#fence(live, presence, member)
    })
  }

  /** It did not give up in time. What it owns is still its until its session has expired: it may be at work without hearing us. */
  #fence(live: LiveGroup, presence: Presence, member: MemberRecord): void {
    const { memberId } = presence
    const { rebalanceTimeoutMs } = member
    this.#env.logger.warn(
      { group: live.state.id, memberId, rebalanceTimeoutMs },
      'member did not give up its partitions in time: it is put out of the group',
    )
    this.#endStream(
      presence,
      new BrokerError(
        'UNKNOWN_MEMBER',
        `member ${memberId} did not give up partitions within its rebalance timeout of ${rebalanceTimeoutMs} ms`,
        { group: live.state.id, memberId, rebalanceTimeoutMs },
      ),
    )
    // #broke hears of a failure.
    void this.#write(live, live.state.decideFence(memberId))
    this.#markDirty(live, true)
  }

  #endStream(presence: Presence, error: BrokerError): void {
    const { stream } = presence
    presence.stream = undefined
    presence.cancelRevocation?.()
    presence.cancelRevocation = undefined
    stream?.listener.ended(error)
  }

  #vanish(live: LiveGroup, memberId: string): void {
    const presence = live.presences.get(memberId)
    presence?.cancelExpiry?.()
    presence?.cancelRevocation?.()
    if (presence !== undefined) live.confirms.delete(presence)
    live.presences.delete(memberId)
  }

  // ── target assignments ──

  /** A new target soon: at once when the last one is long ago, so that a lone change is quick and a flood of them is one. */
  #markDirty(live: LiveGroup, isForced: boolean): void {
    live.isDirty = true
    live.isForced ||= isForced
    if (live.cancelCompute !== undefined) return
    const { clock, options } = this.#env
    const delayMs = live.computedMs + options.rebalanceIntervalMs - clock.monotonicMs()
    live.cancelCompute = clock.schedule(Math.max(0, delayMs), () => {
      // A new topic concerns all groups at once.
      this.#gate.enter(costOfTargets(live.state), () => {
        live.cancelCompute = undefined
        // What was loaded again since is another object: this one knows nothing of what has been decided on that.
        if (this.#failure !== undefined || this.groups.get(live.state.id) !== live) return
        this.#computeTargets(live)
      })
    })
  }

  #computeTargets(live: LiveGroup): void {
    const { clock, view, logger } = this.#env
    const { state, isForced } = live
    live.isDirty = false
    live.isForced = false
    const startMs = clock.monotonicMs()
    live.computedMs = startMs
    const events = state.decideTargets(view, ASSIGNORS[state.record.assignor], isForced)
    if (events.length === 0) return
    // #broke hears of a failure.
    void this.#write(live, events)
    logger.info(
      {
        group: state.id,
        groupEpoch: state.epoch,
        members: state.members.size,
        changed: events.length - 1,
        elapsedMs: Math.round(clock.monotonicMs() - startMs),
      },
      'new target assignment',
    )
  }

  /** Topics or partitions have come or gone. */
  topicsChanged(): void {
    if (this.#failure !== undefined) return
    const { topics } = this.#env
    for (const live of this.groups.values()) {
      if (live.state.members.size > 0) this.#markDirty(live, false)
      // A damaged catalog may have lost topics that are there.
      if (topics.readOnly === undefined) this.#forgetDeletedTopics(live)
    }
  }

  #forgetDeletedTopics(live: LiveGroup): void {
    const { topics } = this.#env
    const events: OffsetEvent[] = []
    for (const [topic, records] of live.state.offsets) {
      const topicId = topics.find(topic)?.id
      for (const [partition, record] of records.entries()) {
        if (record === undefined || record.topicId === topicId) continue
        events.push({ type: 'offset-deleted', group: live.state.id, topic, partition })
      }
    }
    // #broke hears of a failure.
    if (events.length > 0) this.#writeOffsets(live, events).catch(() => undefined)
  }

  // ── offsets ──

  /** A commit by a member. Fenced: by who it is, by what it owns, and by the epochs in which it has owned that. */
  async #commitAs(
    live: LiveGroup,
    memberId: string,
    memberEpoch: number,
    offsets: readonly OffsetCommitRequest[],
  ): Promise<readonly CommitFailure[]> {
    const member = live.state.members.get(memberId)
    if (member === undefined || member.standing === 'fenced') {
      throw goneError(live.state.id, memberId, live)
    }
    return this.#commit(live, offsets, { memberId, memberEpoch, member })
  }

  async #commit(
    live: LiveGroup,
    offsets: readonly OffsetCommitRequest[],
    by: { memberId: string; memberEpoch: number; member: MemberRecord } | undefined,
  ): Promise<readonly CommitFailure[]> {
    const { topics, clock } = this.#env
    const failures: CommitFailure[] = []
    const events: OffsetEvent[] = []
    const committedMs = clock.wallMs()
    for (const asked of offsets) {
      try {
        const checked = checkCommit(topics, asked)
        if (by !== undefined) checkOwned(live.state.id, asked, checked.topicId, by)
        events.push({
          type: 'offset',
          group: live.state.id,
          topic: asked.topic,
          partition: asked.partition,
          record: { ...checked, committedMs },
        })
      } catch (error) {
        const { topic, partition } = asked
        failures.push({ topic, partition, error: toBrokerError(error) })
      }
    }
    await this.#writeOffsets(live, events)
    return failures
  }

  /** See `Groups.commit`. */
  async commit(
    id: string,
    by: { readonly memberId: string; readonly memberEpoch: number },
    offsets: readonly OffsetCommitRequest[],
  ): Promise<readonly CommitFailure[]> {
    this.checkReady()
    if (by.memberId !== '') {
      const live = this.getStreamGroup(id)
      return this.#commitAs(live, by.memberId, by.memberEpoch, offsets)
    }
    const live = this.#liveGroup(id)
    const { state } = live
    if (!state.isGone) checkType(state, 'stream')
    checkEmpty(live, 'an offset can be committed from outside')
    const committing = this.#commit(live, offsets, undefined)
    // A commit of which nothing was taken makes no group.
    if (state.isGone) this.groups.delete(id)
    else await Promise.all([committing, this.declare(id, 'stream')])
    return committing
  }

  /** Writes offsets that an administrator has decided on, if the group is (still) without members. */
  async rewrite(id: string, events: readonly OffsetEvent[]): Promise<void> {
    const live = this.getStreamGroup(id)
    checkEmpty(live, 'offsets can be reset')
    await this.#writeOffsets(live, events)
  }

  /** @throws BrokerError (as rejection) GROUP_NOT_EMPTY, UNKNOWN_GROUP */
  async delete(id: string): Promise<void> {
    this.checkReady()
    const live = this.groups.get(id)
    if (live === undefined) {
      throw new BrokerError('UNKNOWN_GROUP', `there is no group ${id}`, { group: id })
    }
    checkEmpty(live, 'it can be deleted')
    await this.#delete(live)
    this.#env.logger.info({ group: id }, 'group deleted')
  }

  async #delete(live: LiveGroup): Promise<void> {
    const { state } = live
    live.cancelCompute?.()
    live.cancelRelease?.()
    live.cancelGrant?.()
    const offsets = this.#writeOffsets(live, listOffsetDeletions(state))
    // Together: without its offsets it is nothing, and without its record what is left of it is a stream group's offsets.
    const record = this.#write(live, [{ type: 'group-deleted', group: state.id }])
    this.groups.delete(state.id)
    await Promise.all([offsets, record])
  }

  async deleteOffsets(id: string, events: readonly OffsetEvent[]): Promise<void> {
    await this.#writeOffsets(this.getStreamGroup(id), events)
  }

  /** Groups that have been empty for so long are forgotten, and their offsets with them. */
  async expireOffsets(): Promise<void> {
    if (this.#failure !== undefined) return
    const { clock, options, logger } = this.#env
    const beforeMs = clock.wallMs() - options.offsetsRetentionMs
    const all = [...this.groups.values()]
    for (const live of all) {
      const { state } = live
      if (state.members.size > 0 || state.type !== 'stream') continue
      let lastMs = state.record.emptySinceMs ?? 0
      for (const records of state.offsets.values()) {
        for (const record of records) lastMs = Math.max(lastMs, record?.committedMs ?? 0)
      }
      if (lastMs > beforeMs) continue
      logger.info({ group: state.id, lastMs }, 'group has been empty for long: forgotten')
      await this.#delete(live)
    }
  }
}

/** What a partition without a log says, too. */
const ZERO: Offset = toOffset(0)

/** What a new target assignment costs, in partitions of one that is sent. */
function costOfTargets(state: StreamGroup): number {
  let cost = MESSAGE_COST
  for (const { target } of state.members.values()) cost += 1 + countPartitions(target)
  return cost
}

/** What it costs to send, in partitions. */
function costOf(assignment: MemberAssignment): number {
  return assignment.topics.reduce((sum, { partitions }) => sum + partitions.length, MESSAGE_COST)
}
