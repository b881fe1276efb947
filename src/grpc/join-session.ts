import { constants } from 'node:http2'
import type { ServerDuplexStream } from '@grpc/grpc-js'
import { Ring } from '../bytes/ring.ts'
import { unreachable } from '../common/assert.ts'
import type { CancelTimer } from '../common/clock.ts'
import { BrokerError } from '../common/errors.ts'
import { MINUTE_MS, SECOND_MS } from '../common/units.ts'
import type { MemberAssignment, MemberSession } from '../coordination/group/group-types.ts'
import type {
  AssignedPartition,
  Assignment,
  CommitRequest,
  CommitResult,
  JoinGroup,
  JoinRequest,
  JoinResponse,
  OffsetError,
} from '../gen/types.ts'
import { GROUP_SERVICE } from '../wire/definitions.ts'
import { ProtoReader } from '../wire/proto-reader.ts'
import { drainingError } from './drain.ts'
import { checkHeaders, type ServiceEnvironment } from './environment.ts'
import { type ConnectionBudgets, setReadAhead } from './flow-control.ts'
import { checkCommitCount, sortOutOffsets, toOffsetErrors } from './offset-messages.ts'
import { checkSize, readRequest, type Reply } from './unary.ts'

export type JoinCall = ServerDuplexStream<Buffer, Reply<JoinResponse>>

/** Commits of one stream that wait for their turn to be answered; more are not read. */
const MOST_UNANSWERED = 256
const READ_AHEAD_MESSAGES = 2
/** A stream that does not say by then who it is holds its place for nothing. */
const JOIN_WITHIN_MS: number = 10 * SECOND_MS
/** A member that takes nothing for so long is cut off (CONTRACT §5); it may come back. */
const STALLED_AFTER_MS: number = MINUTE_MS

const REQUESTS = ['join', 'heartbeat', 'commit', 'confirm', 'subscribe', 'leave'] as const

/** The place of a commit in the order of the answers; of a change of subscription too, which has none but takes room. */
interface Slot {
  ready: boolean
  result: CommitResult | undefined
}

/**
 * One Join stream: carries a member's session between its connection and the coordinator. Commits are given to the coordinator as they come and
 * answered in their order. A member that does not read costs little: of heartbeats and assignments only the newest is kept until it can be sent
 * (an assignment says all that is to be owned, and confirming it confirms those before), and beyond {@link MOST_UNANSWERED} commits, or the
 * bytes that a connection may have under way, nothing more is read. However the stream ends, without `leave` the member stays, and may come
 * back until its session has expired; but for a new one whose stream went before it was told its id.
 */
export class JoinSession {
  readonly #call: JoinCall
  readonly #environment: ServiceEnvironment
  readonly #budgets: ConnectionBudgets
  readonly #peer: string
  readonly #slots = new Ring<Slot>()
  /** `left`: the broker has taken the member's leave. */
  #phase: 'new' | 'joining' | 'joined' | 'leaving' | 'left' = 'new'
  #session: MemberSession | undefined
  /** Answers to be sent, the newest of each. */
  #nonce: number | undefined
  #assignment: MemberAssignment | undefined
  /** An assignment may be large: one at a time is with grpc-js. */
  #sendingAssignment = false
  #paused = false
  #flushing = false
  /** grpc-js holds all the answers it wants for now. */
  #blocked = false
  #inputEnded = false
  /** Why the stream will end once every commit has been answered. */
  #failure: unknown
  #closed = false
  #cancelJoinTimer: CancelTimer | undefined
  #cancelStallTimer: CancelTimer | undefined

  constructor(call: JoinCall, environment: ServiceEnvironment) {
    this.#call = call
    this.#environment = environment
    this.#peer = call.getPeer()
    this.#budgets = environment.budgets.enter(this.#peer)
    environment.drain.enter()
  }

  start(): void {
    const call = this.#call
    setReadAhead(call, READ_AHEAD_MESSAGES)
    call.on('cancelled', () => this.#close())
    call.on('close', () => this.#close())
    call.on('finish', () => this.#cancelStallTimer?.())
    this.#environment.drain.signal.addEventListener('abort', this.#onDrain)
    try {
      this.#environment.drain.check()
      checkHeaders(call.metadata)
    } catch (error) {
      this.#fail(error)
      return
    }
    this.#cancelJoinTimer = this.#environment.clock.schedule(JOIN_WITHIN_MS, () =>
      this.#fail(misplaced(`no join has come within ${JOIN_WITHIN_MS} ms`)),
    )
    call.on('data', (bytes: Buffer) => this.#take(bytes))
    call.on('end', () => {
      this.#inputEnded = true
      // Whoever has said its last word will not confirm or commit anything any more.
      if (this.#phase === 'joined') this.#detach()
      this.#scheduleFlush()
    })
    call.on('drain', () => {
      this.#blocked = false
      this.#cancelStallTimer?.()
      this.#cancelStallTimer = undefined
      this.#scheduleFlush()
    })
  }

  #take(bytes: Buffer): void {
    if (this.#closed || this.#failure !== undefined) return
    // What comes after a leave is nobody's any more.
    if (this.#phase === 'leaving' || this.#phase === 'left') return
    try {
      checkSize(this.#environment, bytes.length)
      this.#handle(readRequest(decode, bytes), bytes)
    } catch (error) {
      this.#fail(error)
      return
    }
    this.#readOrWait()
  }

  #handle(request: JoinRequest, bytes: Buffer): void {
    const kind = findKind(request, bytes)
    const session = this.#session
    if (session === undefined) {
      if (kind !== 'join') throw misplaced(`the first message must be join, not ${kind}`)
      this.#cancelJoinTimer?.()
      this.#phase = 'joining'
      // Ends the stream when it fails; it never rejects.
      void this.#join(request.join as JoinGroup) // findKind() has seen it.
      return
    }
    switch (kind) {
      case 'join':
        throw misplaced('the member has joined already')
      case 'heartbeat':
        session.heartbeat()
        this.#nonce = checkNumber('heartbeat.nonce', request.heartbeat?.nonce)
        this.#scheduleFlush()
        return
      case 'commit':
        this.#commit(session, request.commit as CommitRequest, bytes.length) // As above.
        return
      case 'confirm':
        session.confirm(checkNumber('confirm.number', request.confirm?.number))
        return
      case 'subscribe':
        this.#answerLater(
          session.subscribe({
            topics: request.subscribe?.topics ?? [],
            pattern: request.subscribe?.pattern ?? '',
          }),
        )
        return
      case 'leave':
        this.#phase = 'leaving'
        this.#session = undefined
        this.#answerLater(this.#leave(session))
        return
      default:
        unreachable(kind)
    }
  }

  async #join(join: JoinGroup): Promise<void> {
    try {
      const session = await this.#environment.groups().join(
        {
          group: join.group,
          memberId: join.memberId,
          memberEpoch: join.memberEpoch,
          instanceId: join.instanceId,
          clientId: join.clientId,
          host: this.#peer,
          rack: join.rack,
          subscription: {
            topics: join.subscription?.topics ?? [],
            pattern: join.subscription?.pattern ?? '',
          },
          assignor: join.assignor,
          sessionTimeoutMs: join.sessionTimeoutMs,
          rebalanceTimeoutMs: join.rebalanceTimeoutMs,
        },
        {
          assigned: (assignment) => {
            this.#assignment = assignment
            this.#scheduleFlush()
          },
          ended: (error) => {
            this.#session = undefined
            this.#fail(error)
          },
        },
      )
      if (this.#closed || this.#failure !== undefined) {
        // The stream went while the coordinator was at it. A new member has not been told its id, so it can never come back: nobody should wait for it.
        if (session.resumed) session.detach()
        else await this.#leave(session)
        return
      }
      this.#session = session
      this.#phase = 'joined'
      const { memberId, memberEpoch, heartbeatIntervalMs, sessionTimeoutMs } = session
      const { rebalanceTimeoutMs, resumed } = session
      this.#write({
        joined: {
          memberId,
          memberEpoch,
          heartbeatIntervalMs,
          sessionTimeoutMs,
          rebalanceTimeoutMs,
          resumed,
        },
      })
      this.#scheduleFlush()
      this.#readOrWait()
    } catch (error) {
      this.#fail(error)
    }
  }

  async #leave(session: MemberSession): Promise<void> {
    try {
      await session.leave()
      this.#phase = 'left'
    } catch (error) {
      // It is still a member, of which nothing more will be heard here.
      session.detach()
      throw error
    }
  }

  #commit(session: MemberSession, request: CommitRequest, bytes: number): void {
    checkNumber('commit.correlation_id', request.correlationId)
    checkCommitCount(request.offsets)
    const slot: Slot = { ready: false, result: undefined }
    this.#slots.push(slot)
    this.#budgets.inFlight.take(bytes)
    this.#environment.budgets.inFlight.take(bytes)
    // Settles the slot whatever comes, and never rejects.
    void this.#finishCommit(slot, session, request, bytes)
  }

  async #finishCommit(
    slot: Slot,
    session: MemberSession,
    request: CommitRequest,
    bytes: number,
  ): Promise<void> {
    let errors: OffsetError[]
    try {
      const { valid, refused } = sortOutOffsets(request.offsets)
      // Called before the first await: the coordinator gets commits in the order of their coming.
      const failures = await session.commit(request.memberEpoch, valid)
      errors = toOffsetErrors([...refused, ...failures], this.#environment.errors, 'Join')
    } catch (error) {
      errors = this.#refuseAll(request, error)
    }
    slot.result = { correlationId: request.correlationId, errors }
    slot.ready = true
    this.#budgets.inFlight.give(bytes)
    this.#environment.budgets.inFlight.give(bytes)
    this.#scheduleFlush()
  }

  /** A commit that was refused as a whole: every offset of it was. One that had none gets an error without a topic. */
  #refuseAll(request: CommitRequest, failure: unknown): OffsetError[] {
    const error = this.#environment.errors.toDetail(failure, 'Join')
    if (request.offsets.length === 0) return [{ topic: '', partition: 0, error }]
    return request.offsets.map(({ topic, partition }) => ({ topic, partition, error }))
  }

  /** Keeps a place in the order of the answers until `done` is through; its failure ends the stream. */
  #answerLater(done: Promise<void>): void {
    const slot: Slot = { ready: false, result: undefined }
    this.#slots.push(slot)
    const settle = (): void => {
      slot.ready = true
      this.#scheduleFlush()
    }
    done.then(settle, (error: unknown) => {
      this.#failure ??= error
      settle()
    })
  }

  /** Stops reading while a bound is reached; whoever gives room calls it again. */
  readonly #readOrWait = (): void => {
    if (this.#closed) return
    const full = [this.#budgets.inFlight, this.#environment.budgets.inFlight].find(
      (budget) => !budget.hasRoom,
    )
    const wait =
      full !== undefined || this.#phase === 'joining' || this.#slots.length >= MOST_UNANSWERED
    if (wait && !this.#paused) this.#call.pause()
    else if (!wait && this.#paused) this.#call.resume()
    this.#paused = wait
    full?.onRoom(this.#readOrWait)
  }

  #write(response: Reply<JoinResponse>, written?: () => void): void {
    const room =
      written === undefined ? this.#call.write(response) : this.#call.write(response, written)
    if (room || this.#blocked) return
    this.#blocked = true
    this.#watchForStall()
  }

  /** Runs after everything else of this turn: of what one turn brings, the newest assignment goes, once. */
  #scheduleFlush(): void {
    if (this.#flushing || this.#closed) return
    this.#flushing = true
    process.nextTick(() => {
      this.#flushing = false
      this.#flush()
    })
  }

  #flush(): void {
    if (this.#closed) return
    const slots = this.#slots
    // Nothing goes before `joined`.
    if (this.#phase !== 'new' && this.#phase !== 'joining') {
      if (!this.#blocked && this.#nonce !== undefined) {
        this.#write({ heartbeat: { nonce: this.#nonce } })
        this.#nonce = undefined
      }
      while (!this.#blocked && slots.peek()?.ready === true) {
        const result = slots.shift()?.result
        if (result !== undefined) this.#write({ commit: result })
      }
      if (!this.#blocked && !this.#sendingAssignment && this.#assignment !== undefined) {
        this.#sendAssignment(this.#assignment)
      }
    }
    if (this.#paused) this.#readOrWait()
    if (slots.length > 0) return
    if (this.#failure !== undefined) {
      this.#call.emit('error', this.#environment.errors.toStatus(this.#failure, 'Join'))
      this.#finish()
    } else if (this.#phase === 'left' || (this.#inputEnded && this.#phase !== 'leaving')) {
      this.#call.end()
      this.#finish()
    }
  }

  #sendAssignment(assignment: MemberAssignment): void {
    this.#assignment = undefined
    // After the end of a session there is nothing to own.
    if (this.#session === undefined) return
    this.#sendingAssignment = true
    this.#write({ assignment: toAssignment(assignment) }, () => {
      this.#sendingAssignment = false
      if (this.#assignment !== undefined) this.#scheduleFlush()
    })
  }

  #fail(error: unknown): void {
    this.#failure ??= error
    this.#scheduleFlush()
  }

  readonly #onDrain = (): void => this.#fail(drainingError())

  /** All has been said: the status goes when grpc-js has sent what it holds, and if the peer takes it. */
  #finish(): void {
    this.#close()
    if (this.#call.writableLength > 0) this.#watchForStall()
  }

  #close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#detach()
    this.#cancelJoinTimer?.()
    if (this.#call.cancelled || this.#call.destroyed) this.#cancelStallTimer?.()
    this.#environment.drain.signal.removeEventListener('abort', this.#onDrain)
    this.#environment.budgets.leave(this.#peer)
    this.#environment.drain.leave()
  }

  #detach(): void {
    this.#session?.detach()
    this.#session = undefined
  }

  #watchForStall(): void {
    this.#cancelStallTimer ??= this.#environment.clock.schedule(STALLED_AFTER_MS, () => {
      this.#environment.logger.warn(
        { peer: this.#peer },
        `a group's member has taken nothing for ${STALLED_AFTER_MS} ms and is cut off`,
      )
      this.#close()
      // A status would wait behind what the member does not take: the stream is reset.
      this.#environment.findStream(this.#call.metadata)?.close(constants.NGHTTP2_CANCEL)
    })
  }
}

function decode(bytes: Buffer): JoinRequest {
  // What the method's own deserializer makes, which is the type that gen/types.ts has for it.
  return GROUP_SERVICE['Join']?.requestDeserialize(bytes) as JoinRequest
}

/** @throws BrokerError INVALID_REQUEST when there is no request or more than one, UNSUPPORTED_FEATURE for one of a later version */
function findKind(request: JoinRequest, bytes: Buffer): (typeof REQUESTS)[number] {
  // proto-loader leaves out what is not there, whatever the generated type says.
  const [kind, another] = REQUESTS.filter((name) => (request[name] ?? undefined) !== undefined)
  if (kind !== undefined && another === undefined) return kind
  if (kind !== undefined)
    throw misplaced(`a message is one request, not both ${kind} and ${another}`)
  const reader = new ProtoReader(bytes)
  if (!reader.next()) throw misplaced('the message is empty')
  throw new BrokerError(
    'UNSUPPORTED_FEATURE',
    `this broker does not know request ${reader.field}`,
    {
      field: 'request',
      actual: reader.field,
    },
  )
}

function misplaced(message: string): BrokerError {
  return new BrokerError('INVALID_REQUEST', message, { field: 'request' })
}

/** @throws BrokerError INVALID_REQUEST for a number that is not exact, and would come back as another */
function checkNumber(field: string, value = 0): number {
  if (Number.isSafeInteger(value)) return value
  throw new BrokerError('INVALID_REQUEST', `${field} ${value} is outside ±2^53`, {
    field,
    actual: value,
  })
}

function toAssignment(assignment: MemberAssignment): Assignment {
  return {
    number: assignment.number,
    memberEpoch: assignment.memberEpoch,
    groupEpoch: assignment.groupEpoch,
    topics: assignment.topics.map(({ topic, topicId, partitions }) => ({
      topic,
      topicId,
      partitions: partitions.map(({ partition, committed, logStartOffset, highWatermark }) => {
        const message: AssignedPartition = {
          partition,
          committedLeaderEpoch: committed?.leaderEpoch ?? 0,
          metadata: committed?.metadata ?? '',
          logStartOffset,
          highWatermark,
        }
        if (committed !== undefined) message.committedOffset = committed.offset
        return message
      }),
    })),
  }
}
