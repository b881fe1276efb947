import { Ring } from '../bytes/ring.ts'
import { type CancelTimer, type Clock, holdProcess } from '../common/clock.ts'
import type { ErrorCode } from '../common/errors.ts'
import { invariant } from '../common/assert.ts'
import type { Random } from '../common/random.ts'
import { SECOND_MS } from '../common/units.ts'
import type { Assignment, CommitResult, JoinRequest, JoinResponse, Joined } from '../gen/types.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { ClientLogger } from './api.ts'
import { type SessionStream, toCallError } from './broker-channel.ts'
import { retryAfterMs } from './connection.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { checkNumbers } from './request-check.ts'
import { Backoff } from './retry.ts'

/**
 * How long a join may stay unanswered. Long, because a broker that was only slow has made a member by then, which holds its share of the
 * partitions until its session times out.
 */
const JOIN_TIMEOUT_MS: number = 30 * SECOND_MS
/** After so long without an answer it is found out whether the connection brings any. */
const JOIN_DOUBT_MS: number = 3 * SECOND_MS
/** How long `leave` waits for the broker. After that the session just times out there. */
const LEAVE_PATIENCE_MS: number = 5 * SECOND_MS
/** How long a full group is asked again. */
const GROUP_FULL_PATIENCE_MS: number = 30 * SECOND_MS
/** The broker may ask to wait longer than this. A member cannot: its session runs. */
const LONGEST_PAUSE_MS: number = 5 * SECOND_MS
/** What the broker takes when asked for 0. Only to judge how long a join whose answer was lost may hold an instance id. */
const DEFAULT_SESSION_TIMEOUT_MS: number = 45 * SECOND_MS

/** The coordinator is going, or is not there yet: what is told so has not been done, and will be when it is back. */
const PASSING: ReadonlySet<ErrorCode> = new Set(['LOADING', 'BROKER_DRAINING', 'NOT_COORDINATOR'])

export interface SessionOptions {
  readonly group: string
  readonly subscription: { readonly topics: readonly string[]; readonly pattern: string }
  /** Empty: a dynamic member. */
  readonly instanceId: string
  /** Empty: the group's present one. */
  readonly assignor: string
  /** 0: the broker's default. */
  readonly sessionTimeoutMs: number
  /** 0: the broker's default. */
  readonly rebalanceTimeoutMs: number
  readonly rack: string
}

export interface SessionPartition {
  readonly partition: number
  /** Undefined: nothing has been committed. */
  readonly committed: number | undefined
  readonly committedLeaderEpoch: number
  readonly metadata: string
  readonly logStartOffset: number
  readonly highWatermark: number
}

export interface SessionTopic {
  readonly topic: string
  readonly topicId: string
  readonly partitions: readonly SessionPartition[]
}

export interface SessionAssignment {
  /** Rises for as long as the session object lives, through reconnections and losses. */
  readonly number: number
  readonly memberEpoch: number
  readonly topics: readonly SessionTopic[]
}

/** Told of what happens to a session. None of these may throw. None is called from within a call of the session's own, but for `lost`. */
export interface SessionOwner {
  /** The whole of what is to be owned from now on; the owner gives up the rest, then calls confirm(number). Newer ones may come meanwhile. */
  assigned(assignment: SessionAssignment): void
  /**
   * Nothing is owned any more: no contact for the session timeout, or the broker says that the member is gone. The session joins anew by
   * itself. What was not yet committed has been rejected with this reason. May be called from within `commit` and `confirm`.
   */
  lost(reason: MillraceError): void
  /**
   * The session is over for good: INVALID_*, GROUP_TYPE_MISMATCH, INSTANCE_ID_IN_USE, INSTANCE_FENCED, GROUP_FULL (after retries) … What was owned
   * is lost with it; `lost` is not called.
   */
  failed(error: MillraceError): void
}

/** One offset to commit: the next record to be processed. */
export interface SessionCommit {
  readonly topic: string
  readonly topicId: string
  readonly partition: number
  readonly offset: number
  readonly leaderEpoch: number
  readonly metadata: string
}

export interface SessionCommitFailure {
  readonly topic: string
  readonly partition: number
  readonly error: MillraceError
}

/** What a session needs of a Connection. */
export interface SessionConnection {
  readonly clock: Clock
  readonly random: Random
  readonly logger: ClientLogger | undefined
  readonly clientId: string
  /** Nothing comes through any more. */
  readonly isClosed: boolean
  getCoordinator(group: string): Promise<number>
  forgetCoordinator(group: string): void
  openSession(brokerId: number): SessionStream
}

interface PendingCommit {
  readonly offsets: readonly SessionCommit[]
  /**
   * Of the moment when it was made. Repeated with a newer one it might be taken for a partition that has been somebody else's meanwhile, and turn back what
   * that one has committed.
   */
  readonly memberEpoch: number
  readonly resolve: (failures: readonly SessionCommitFailure[]) => void
  readonly reject: (error: MillraceError) => void
}

type State = 'new' | 'opening' | 'joined' | 'waiting' | 'over'

/**
 * A member's session with its group: joins, keeps alive, commits, comes back after breaks (DESIGN §8).
 *
 * The member counts on its partitions until `aliveUntil`: the SENDING time of the last heartbeat or join that was answered, plus the session
 * timeout. The broker counts from when it came in, which is later, so that it never gives a partition away while this side still counts on it.
 * Both clocks are monotonic. The deadline is looked at by a timer, and again before anything that comes in or goes out is acted on: after the
 * event loop was blocked, or the process stopped, timers are late.
 */
export class GroupSession {
  readonly #connection: SessionConnection
  readonly #options: SessionOptions
  readonly #owner: SessionOwner
  readonly #clock: Clock
  readonly #backoff: Backoff
  #state: State = 'new'
  #stream: SessionStream | undefined
  /** Rises with each try to open a stream, so that a late answer to an old one is known as such. */
  #tries = 0
  #memberId = ''
  #memberEpoch = 0
  #heartbeatIntervalMs = 0
  #sessionTimeoutMs = 0
  /** Monotonic. Undefined: owns nothing, is no member or was one. */
  #aliveUntilMs: number | undefined
  #joinSentMs = 0
  #lastNonce = 0
  readonly #heartbeats: Ring<{ readonly nonce: number; readonly sentMs: number }> = new Ring()
  /** Unanswered, oldest first. */
  readonly #sent: Map<number, PendingCommit> = new Map()
  #lastCorrelationId = 0
  /** Commits that no stream has taken yet. */
  #unsent: PendingCommit[] = []
  /** Number of the newest assignment as the owner knows it. */
  #lastNumber = 0
  /** What the broker's numbers of the present stream are added to, to be the owner's. */
  #numberBase = 0
  #cancelHeartbeat: CancelTimer | undefined
  #cancelDeadline: CancelTimer | undefined
  #cancelPause: CancelTimer | undefined
  #cancelJoin: CancelTimer | undefined
  #cancelLeave: CancelTimer | undefined
  #letProcessEnd: CancelTimer | undefined
  #fullSinceMs: number | undefined
  /** A join without an answer may have made a member that has our instance id until then. */
  #inDoubtUntilMs = 0
  #leaving: Promise<void> | undefined
  #resolveLeaving: (() => void) | undefined
  #end: MillraceError | undefined

  constructor(connection: SessionConnection, options: SessionOptions, owner: SessionOwner) {
    this.#connection = connection
    this.#options = options
    this.#owner = owner
    this.#clock = connection.clock
    this.#backoff = new Backoff(connection.random)
  }

  /** Empty before the first join has been answered. */
  get memberId(): string {
    return this.#memberId
  }

  get memberEpoch(): number {
    return this.#memberEpoch
  }

  /** What the broker has set; 0 before the first join has been answered. */
  get sessionTimeoutMs(): number {
    return this.#sessionTimeoutMs
  }

  /** True while the session may count on what it owns. False before it joined, after `lost`, at the end. */
  get isAlive(): boolean {
    return this.#state !== 'over' && this.#checkAlive() && this.#aliveUntilMs !== undefined
  }

  /** Joins. What comes of it is told to the owner. */
  start(): void {
    if (this.#state === 'over') return
    invariant(this.#state === 'new', 'a session starts once')
    this.#letProcessEnd = holdProcess()
    this.#open()
  }

  /**
   * Durable when it resolves, but for the offsets in the failures that it resolves to. Survives reconnection (repeated) while the session lives.
   * Many may be under way; they are answered in order.
   * @throws MillraceError (as rejection) UNKNOWN_MEMBER when the session is lost before the answer, CLOSED, what `failed` was told
   */
  commit(offsets: readonly SessionCommit[]): Promise<readonly SessionCommitFailure[]> {
    if (this.#state !== 'over') this.#checkAlive()
    if (this.#end !== undefined) return Promise.reject(this.#end)
    if (this.#leaving !== undefined) return Promise.reject(this.#closed())
    if (this.#aliveUntilMs === undefined) {
      const message = `not a member of ${this.#options.group} now: nothing is owned that could be committed`
      return Promise.reject(this.#unknownMember(message))
    }
    if (offsets.length === 0) return Promise.resolve([])
    return new Promise((resolve, reject) => {
      this.#unsent.push({ offsets, memberEpoch: this.#memberEpoch, resolve, reject })
      if (this.#state === 'joined') this.#sendCommits()
    })
  }

  /** The owner has given up everything that assignment `number` does not name. Does nothing for one of an earlier stream. */
  confirm(number: number): void {
    if (this.#state === 'over' || !this.#checkAlive() || this.#state !== 'joined') return
    // After a break the broker names its assignment anew, and the answer to that one counts.
    const wireNumber = number - this.#numberBase
    if (wireNumber > 0 && number <= this.#lastNumber) {
      this.#write({ confirm: { number: wireNumber } })
    }
  }

  /**
   * Graceful: after the commits sent before it. Resolves when the broker has taken it, or at once if there is no contact (then the session
   * just times out). The owner hears nothing any more.
   */
  leave(): Promise<void> {
    if (this.#state === 'over') return this.#leaving ?? Promise.resolve()
    this.#leaving ??= new Promise((resolve) => {
      this.#resolveLeaving = resolve
      this.#beginLeaving()
    })
    return this.#leaving
  }

  /** Ends it without leaving: the broker keeps the member's place until the session times out. */
  close(): void {
    this.#finish(this.#closed())
  }

  // ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────

  #open(): void {
    this.#state = 'opening'
    const attempt = ++this.#tries
    this.#connection.getCoordinator(this.#options.group).then(
      (brokerId) => {
        if (this.#tries === attempt) this.#openStream(brokerId)
        return undefined
      },
      (error: unknown) => {
        if (this.#tries === attempt) this.#broke(toMillraceError(error))
        return undefined
      },
    )
  }

  #openStream(brokerId: number): void {
    const own = this.#options
    const join = {
      group: own.group,
      memberId: this.#memberId,
      memberEpoch: this.#memberEpoch,
      instanceId: own.instanceId,
      clientId: this.#connection.clientId,
      subscription: {
        topics: [...own.subscription.topics],
        pattern: own.subscription.pattern,
      },
      assignor: own.assignor,
      sessionTimeoutMs: own.sessionTimeoutMs,
      rebalanceTimeoutMs: own.rebalanceTimeoutMs,
      rack: own.rack,
    }
    let stream: SessionStream
    try {
      checkNumbers(join)
      stream = this.#connection.openSession(brokerId)
    } catch (error) {
      this.#broke(toMillraceError(error))
      return
    }
    const { call, address } = stream
    this.#stream = stream
    this.#numberBase = this.#lastNumber
    // Events of a stream that has been given up must not touch its successor.
    call.on('data', (message: JoinResponse) => {
      if (this.#stream === stream) this.#take(message)
    })
    call.on('error', (error: Error) => {
      if (this.#stream === stream) this.#broke(toCallError(error, address))
    })
    call.on('end', () => {
      if (this.#stream !== stream) return
      this.#broke(new MillraceError('UNREACHABLE', `${address} ended the session`, { address }))
    })
    this.#joinSentMs = this.#clock.monotonicMs()
    this.#write({ join })
    this.#watchJoin(stream)
  }

  #watchJoin(stream: SessionStream): void {
    const giveUp = (afterMs: number): void => {
      stream.discard()
      const { address } = stream
      const message = `${address} did not answer a join within ${Math.round(afterMs)} ms`
      this.#broke(new MillraceError('REQUEST_TIMEOUT', message, { address }))
    }
    const check = async (): Promise<void> => {
      const isAnswering = await stream.isAnswering()
      if (this.#stream !== stream || this.#state !== 'opening') return
      const afterMs = this.#clock.monotonicMs() - this.#joinSentMs
      if (!isAnswering || afterMs >= JOIN_TIMEOUT_MS) giveUp(afterMs)
      else watch()
    }
    const watch = (): void => {
      this.#cancelJoin = this.#clock.schedule(JOIN_DOUBT_MS, () => {
        this.#cancelJoin = undefined
        void check() // It never rejects.
      })
    }
    watch()
  }

  #joined(joined: Joined): void {
    if (this.#state !== 'opening') return
    this.#cancelJoin?.()
    this.#cancelJoin = undefined
    const hasCome = joined.resumed && joined.memberId === this.#memberId
    if (this.#aliveUntilMs !== undefined && !hasCome) {
      const message = `the broker does not know member ${this.#memberId} of ${this.#options.group} any more`
      this.#lose(this.#unknownMember(message))
      if (this.#stream === undefined) return
    }
    if (this.#backoff.tries > 0) {
      this.#connection.logger?.info(
        `${hasCome ? 'back in' : 'joined'} group ${this.#options.group} as ${joined.memberId}`,
      )
    }
    this.#state = 'joined'
    this.#memberId = joined.memberId
    this.#memberEpoch = joined.memberEpoch
    this.#sessionTimeoutMs = joined.sessionTimeoutMs
    this.#heartbeatIntervalMs = Math.max(1, joined.heartbeatIntervalMs)
    this.#fullSinceMs = undefined
    this.#inDoubtUntilMs = 0
    this.#aliveUntilMs = this.#joinSentMs + joined.sessionTimeoutMs
    if (!this.#checkAlive()) return
    this.#watchDeadline()
    this.#scheduleHeartbeat()
    this.#sendCommits()
    if (this.#leaving !== undefined) this.#sendLeave()
  }

  // ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────

  #take(message: JoinResponse): void {
    // Of a oneof proto-loader leaves out what is not set, whatever the generated type says.
    const heartbeat = message.heartbeat ?? undefined
    const joined = message.joined ?? undefined
    const commit = message.commit ?? undefined
    const assignment = message.assignment ?? undefined
    // Before the look at the deadline: an echo that waited in the socket tells that there was contact.
    if (heartbeat !== undefined) this.#takeHeartbeat(heartbeat.nonce)
    if (!this.#checkAlive()) return
    if (joined !== undefined) this.#joined(joined)
    else if (commit !== undefined) this.#takeCommitResult(commit)
    else if (assignment !== undefined) this.#takeAssignment(assignment)
  }

  #takeHeartbeat(nonce: number): void {
    let sentMs: number | undefined
    for (
      let first = this.#heartbeats.peek();
      first !== undefined;
      first = this.#heartbeats.peek()
    ) {
      if (first.nonce > nonce) break
      sentMs = first.sentMs
      this.#heartbeats.shift()
    }
    if (sentMs === undefined || this.#aliveUntilMs === undefined) return
    this.#aliveUntilMs = Math.max(this.#aliveUntilMs, sentMs + this.#sessionTimeoutMs)
    this.#backoff.reset()
  }

  #takeAssignment(assignment: Assignment): void {
    if (this.#state !== 'joined') return
    this.#memberEpoch = assignment.memberEpoch
    if (this.#leaving !== undefined) return
    this.#lastNumber = this.#numberBase + assignment.number
    this.#owner.assigned({
      number: this.#lastNumber,
      memberEpoch: assignment.memberEpoch,
      topics: assignment.topics.map(({ topic, topicId, partitions }) => ({
        topic,
        topicId,
        partitions: partitions.map((entry) => ({
          partition: entry.partition,
          committed: entry.committedOffset,
          committedLeaderEpoch: entry.committedLeaderEpoch,
          metadata: entry.metadata,
          logStartOffset: entry.logStartOffset,
          highWatermark: entry.highWatermark,
        })),
      })),
    })
  }

  #takeCommitResult(result: CommitResult): void {
    const pending = this.#sent.get(result.correlationId)
    if (pending === undefined) return
    const failures = result.errors.map(({ topic, partition, error }) => ({
      topic,
      partition,
      error:
        error === null
          ? new MillraceError('INTERNAL_ERROR', `the commit of ${topic}-${partition} was refused`)
          : toMillraceError(toBrokerErrorFromDetail(error)),
    }))
    // The broker ends the stream next, for the same reason. When the member is back this is still to be done.
    if (failures.some(({ error }) => PASSING.has(error.code))) return
    this.#sent.delete(result.correlationId)
    pending.resolve(failures)
  }

  // ── what goes out ───────────────────────────────────────────────────────────────────────────────────────────

  #write(message: Partial<JoinRequest>): void {
    // The answer of write() is not looked at: heartbeats and confirmations are few, and commits are bounded by who waits for their answers.
    this.#stream?.call.write(message)
  }

  #sendCommits(): void {
    const unsent = this.#unsent
    this.#unsent = []
    // Only after a break there are several. Repeated one by one, an older one that had been taken already would turn a newer one back for a moment.
    for (const pending of unsent.length > 1 ? [mergeCommits(unsent)] : unsent) {
      const correlationId = ++this.#lastCorrelationId
      this.#sent.set(correlationId, pending)
      const offsets = pending.offsets.map((item) => ({ ...item }))
      this.#write({ commit: { correlationId, memberEpoch: pending.memberEpoch, offsets } })
    }
  }

  #scheduleHeartbeat(): void {
    const intervalMs = this.#heartbeatIntervalMs
    const dueMs = this.#clock.monotonicMs() + intervalMs
    this.#cancelHeartbeat = this.#clock.schedule(intervalMs, () => {
      this.#cancelHeartbeat = undefined
      this.#beat(this.#clock.monotonicMs() - dueMs)
    })
  }

  #beat(lateMs: number): void {
    const { group } = this.#options
    if (lateMs > this.#sessionTimeoutMs / 2) {
      this.#connection.logger?.warn(
        `this process did nothing for about ${Math.round(lateMs)} ms (a long computation, or it was stopped), of the ` +
          `${this.#sessionTimeoutMs} ms after which group ${group} gives its partitions to others; move long work to a worker thread`,
        { group, memberId: this.#memberId, blockedMs: Math.round(lateMs) },
      )
    }
    if (!this.#checkAlive() || this.#aliveUntilMs === undefined) return
    const nowMs = this.#clock.monotonicMs()
    const silentMs = nowMs - (this.#aliveUntilMs - this.#sessionTimeoutMs)
    // Half of the time is left to come back over another connection: this one may be dead without a word. When we were the ones who did
    // nothing, the answers may be waiting in the socket.
    const patienceMs = Math.max(this.#sessionTimeoutMs / 2, 1.5 * this.#heartbeatIntervalMs)
    if (silentMs > patienceMs && lateMs < this.#heartbeatIntervalMs) {
      const address = this.#stream?.address ?? ''
      this.#stream?.discard()
      const message = `${address} has not answered a heartbeat for ${Math.round(silentMs)} ms`
      this.#broke(new MillraceError('UNREACHABLE', message, { address }))
      return
    }
    const nonce = ++this.#lastNonce
    this.#heartbeats.push({ nonce, sentMs: nowMs })
    this.#write({ heartbeat: { nonce } })
    this.#scheduleHeartbeat()
  }

  // ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────

  #watchDeadline(): void {
    if (this.#aliveUntilMs === undefined || this.#cancelDeadline !== undefined) return
    const leftMs = Math.max(0, this.#aliveUntilMs - this.#clock.monotonicMs())
    this.#cancelDeadline = this.#clock.schedule(Math.ceil(leftMs), () => {
      this.#cancelDeadline = undefined
      // Heartbeats have moved it on since.
      if (this.#checkAlive()) this.#watchDeadline()
    })
  }

  /** False when the deadline has passed: the session has been lost then, just now. */
  #checkAlive(): boolean {
    if (this.#aliveUntilMs === undefined || this.#clock.monotonicMs() < this.#aliveUntilMs) {
      return true
    }
    const { group } = this.#options
    const timeoutMs = this.#sessionTimeoutMs
    const error = this.#unknownMember(
      `no contact with the broker for ${timeoutMs} ms: others get the partitions of member ${this.#memberId} of ${group}`,
    )
    if (this.#leaving !== undefined) {
      this.#endLeaving(error)
      return false
    }
    // Over another connection, and under the old name: if the broker still knows it, its partitions need not wait for its time to run out.
    const stream = this.#stream
    stream?.discard()
    if (stream !== undefined) {
      this.#dropStream()
      this.#pause(0)
    }
    this.#lose(error)
    return false
  }

  /** The owner may end the session in it. */
  #lose(reason: MillraceError): void {
    this.#aliveUntilMs = undefined
    this.#cancelDeadline?.()
    this.#cancelDeadline = undefined
    this.#rejectCommits(reason)
    this.#connection.logger?.warn(
      `the session with group ${this.#options.group} was lost: ${reason.message}`,
    )
    this.#owner.lost(reason)
  }

  /** The stream broke, or could not be opened. */
  #broke(error: MillraceError): void {
    const isUnanswered = this.#stream !== undefined && this.#state === 'opening'
    this.#dropStream()
    if (this.#leaving !== undefined) {
      this.#endLeaving(error)
      return
    }
    const nowMs = this.#clock.monotonicMs()
    if (isUnanswered && this.#memberId === '' && !error.noSideEffects) {
      const timeoutMs = this.#options.sessionTimeoutMs || DEFAULT_SESSION_TIMEOUT_MS
      this.#inDoubtUntilMs = Math.max(this.#inDoubtUntilMs, nowMs + timeoutMs + SECOND_MS)
    }
    if (!this.#mayTryAgain(error, nowMs)) {
      this.#fail(error)
      return
    }
    const isFirst = this.#backoff.tries === 0
    // A break is no reason yet to believe that another broker has the group, and the question might take longer than the session has.
    if (!isFirst || error.code === 'NOT_COORDINATOR') {
      this.#connection.forgetCoordinator(this.#options.group)
    }
    this.#pause(Math.min(retryAfterMs(error), LONGEST_PAUSE_MS))
    const details = { group: this.#options.group, code: error.code }
    const text = `the session with group ${this.#options.group} was interrupted: ${error.message}`
    if (isFirst) this.#connection.logger?.warn(text, details)
    else this.#connection.logger?.debug(text, details)
    if (error.action === 'rejoin') {
      this.#memberId = ''
      this.#memberEpoch = 0
      if (this.#aliveUntilMs !== undefined) this.#lose(error)
    } else {
      this.#checkAlive()
    }
  }

  #mayTryAgain(error: MillraceError, nowMs: number): boolean {
    if (error.code === 'GROUP_FULL') {
      this.#fullSinceMs ??= nowMs
      return nowMs - this.#fullSinceMs < GROUP_FULL_PATIENCE_MS
    }
    // The member that has it may be the one that our own join made, whose answer was lost. It goes when its time is out.
    if (error.code === 'INSTANCE_ID_IN_USE') return nowMs < this.#inDoubtUntilMs
    // By a broker that stops: only our own end is final.
    if (error.code === 'CLOSED') return !this.#connection.isClosed
    return error.retryable || error.action === 'rejoin'
  }

  #pause(atLeastMs: number): void {
    this.#state = 'waiting'
    const delayMs = Math.max(this.#backoff.nextDelayMs(), atLeastMs)
    this.#cancelPause?.()
    this.#cancelPause = this.#clock.schedule(delayMs, () => {
      this.#cancelPause = undefined
      this.#open()
    })
  }

  #dropStream(): void {
    const stream = this.#stream
    this.#stream = undefined
    this.#tries++
    this.#cancelHeartbeat?.()
    this.#cancelHeartbeat = undefined
    this.#cancelJoin?.()
    this.#cancelJoin = undefined
    this.#heartbeats.clear()
    this.#takeBackCommits()
    if (stream === undefined) return
    stream.call.on('error', () => undefined) // A second error of a dead call says nothing new, but unheard it would end the process.
    stream.call.cancel()
  }

  #beginLeaving(): void {
    this.#checkAlive()
    if (this.#stream === undefined) {
      this.#finish(this.#closed())
      return
    }
    // Not answered yet: #joined sends it.
    if (this.#state === 'joined') this.#sendLeave()
    this.#cancelLeave = this.#clock.schedule(LEAVE_PATIENCE_MS, () => {
      this.#cancelLeave = undefined
      this.#finish(this.#closed())
    })
  }

  /** The broker answers it by ending the stream, after the answers of all commits. */
  #sendLeave(): void {
    this.#write({ leave: {} })
  }

  /** Commits that had no answer before the end have `error` to say why. */
  #endLeaving(error: MillraceError): void {
    this.#rejectCommits(error)
    this.#finish(this.#closed())
  }

  #fail(error: MillraceError): void {
    this.#finish(error)
    this.#owner.failed(error)
  }

  #finish(error: MillraceError): void {
    if (this.#state === 'over') return
    this.#state = 'over'
    this.#end = error
    this.#aliveUntilMs = undefined
    this.#cancelDeadline?.()
    this.#cancelPause?.()
    this.#cancelLeave?.()
    this.#dropStream()
    this.#rejectCommits(error)
    this.#letProcessEnd?.()
    this.#resolveLeaving?.()
  }

  #rejectCommits(error: MillraceError): void {
    this.#takeBackCommits()
    const unsent = this.#unsent
    this.#unsent = []
    for (const pending of unsent) pending.reject(error)
  }

  /** What was sent and has no answer has to be sent again, before what came after it. */
  #takeBackCommits(): void {
    if (this.#sent.size === 0) return
    this.#unsent = [...this.#sent.values(), ...this.#unsent]
    this.#sent.clear()
  }

  #unknownMember(message: string): MillraceError {
    const { group } = this.#options
    return new MillraceError('UNKNOWN_MEMBER', message, { group, memberId: this.#memberId })
  }

  #closed(): MillraceError {
    const { group } = this.#options
    return new MillraceError('CLOSED', `the session with group ${group} has been closed`, { group })
  }
}

/**
 * One commit for several: the newest offset of each partition; each of them learns what concerns it. Under the oldest of their epochs: what came to the member
 * after that is refused with STALE_MEMBER_EPOCH, and may be committed anew.
 */
function mergeCommits(waiting: readonly PendingCommit[]): PendingCommit {
  const newest = new Map<string, SessionCommit>()
  for (const { offsets } of waiting) {
    for (const item of offsets) newest.set(`${item.topic}/${item.topicId}/${item.partition}`, item)
  }
  return {
    offsets: [...newest.values()],
    memberEpoch: Math.min(...waiting.map(({ memberEpoch }) => memberEpoch)),
    resolve(failures) {
      for (const { offsets, resolve } of waiting) {
        const concerns = ({ topic, partition }: SessionCommitFailure): boolean =>
          offsets.some((item) => item.topic === topic && item.partition === partition)
        resolve(failures.length === 0 ? failures : failures.filter(concerns))
      }
    },
    reject(error) {
      for (const pending of waiting) pending.reject(error)
    },
  }
}
