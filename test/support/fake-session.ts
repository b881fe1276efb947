import { EventEmitter } from 'node:events'
import type { Clock } from '../../src/common/clock.ts'
import { type ErrorCode, ERROR_TABLE } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import type { ClientLogger } from '../../src/client/api.ts'
import type { JoinCall, SessionStream } from '../../src/client/broker-channel.ts'
import { type MillraceError, toMillraceError } from '../../src/client/errors.ts'
import {
  GroupSession,
  type SessionAssignment,
  type SessionCommit,
  type SessionConnection,
  type SessionOptions,
} from '../../src/client/group-session.ts'
import type { Assignment, JoinRequest, JoinResponse, OffsetError } from '../../src/gen/types.ts'
import { encodeErrorDetail, ERROR_TRAILER, toErrorDetail } from '../../src/wire/error-detail.ts'
import { FakeClock, settle } from './fake-clock.ts'

/** What a test says in the broker's place over one stream. Nothing happens by itself. */
export class FakeStream {
  readonly written: Partial<JoinRequest>[] = []
  readonly brokerId: number
  cancelled = false
  discarded = false
  /** Whether its connection brings answers to anything. */
  isAnswering = true
  readonly #call = new EventEmitter()

  constructor(brokerId: number) {
    this.brokerId = brokerId
  }

  get stream(): SessionStream {
    const call = Object.assign(this.#call, {
      write: (message: Partial<JoinRequest>) => {
        this.written.push(message)
        return true
      },
      cancel: () => {
        this.cancelled = true
      },
    })
    return {
      call: call as unknown as JoinCall, // The session uses no more of it than this.
      address: `broker-${this.brokerId}`,
      discard: () => {
        this.discarded = true
      },
      isAnswering: () => Promise.resolve(this.isAnswering),
    }
  }

  /** Messages of one kind, in the order in which they were written. */
  sent<Kind extends keyof JoinRequest>(kind: Kind): NonNullable<JoinRequest[Kind]>[] {
    const found: NonNullable<JoinRequest[Kind]>[] = []
    for (const message of this.written) {
      const value = message[kind]
      if (value !== undefined && value !== null) found.push(value)
    }
    return found
  }

  /** As proto-loader decodes it: with the one field that is set. */
  say(message: Partial<JoinResponse>): void {
    this.#call.emit('data', message)
  }

  joined(
    memberId: string,
    options: { epoch?: number; resumed?: boolean; sessionTimeoutMs?: number } = {},
  ): void {
    const { epoch = 1, resumed = false, sessionTimeoutMs = 45_000 } = options
    this.say({
      joined: {
        memberId,
        memberEpoch: epoch,
        heartbeatIntervalMs: sessionTimeoutMs / 9,
        sessionTimeoutMs,
        rebalanceTimeoutMs: 300_000,
        resumed,
      },
    })
  }

  /** Sends back the newest heartbeat. */
  echo(): void {
    const nonce = this.sent('heartbeat').at(-1)?.nonce
    if (nonce !== undefined) this.say({ heartbeat: { nonce } })
  }

  assign(number: number, partitions: readonly number[], memberEpoch: number = number + 1): void {
    const assignment: Assignment = {
      number,
      memberEpoch,
      groupEpoch: memberEpoch,
      topics: [
        {
          topic: 'orders',
          topicId: 'orders-id',
          partitions: partitions.map((partition) => ({
            partition,
            committedLeaderEpoch: 0,
            metadata: '',
            logStartOffset: 0,
            highWatermark: 100,
          })),
        },
      ],
    }
    this.say({ assignment })
  }

  /** Answers the commit that was written as the `index`-th of this stream. */
  answerCommit(
    index: number,
    refused: readonly { partition: number; code: ErrorCode }[] = [],
  ): void {
    const commit = this.sent('commit')[index]
    const errors: OffsetError[] = refused.map(({ partition, code }) => ({
      topic: 'orders',
      partition,
      error: toErrorDetail(code, `${code} on purpose`, {}),
    }))
    this.say({ commit: { correlationId: commit?.correlationId ?? -1, errors } })
  }

  /** Ends the stream as the broker does it, with its error in the trailer. */
  refuse(code: ErrorCode, details: { retryAfterMs?: number } = {}): void {
    const trailer = encodeErrorDetail(toErrorDetail(code, `${code} on purpose`, details))
    const metadata = { get: (name: string) => (name === ERROR_TRAILER ? [trailer] : []) }
    this.#call.emit('error', Object.assign(new Error(code), { metadata, code: statusOf(code) }))
  }

  /** Breaks the stream as a network does it. */
  break(): void {
    this.#call.emit('error', Object.assign(new Error('read ECONNRESET'), { code: 14 }))
  }

  end(): void {
    this.#call.emit('end')
  }
}

function statusOf(code: ErrorCode): number {
  return ERROR_TABLE[code].status === 'UNAVAILABLE' ? 14 : 9
}

/** A clock that can stand still for a program while time goes on, as when its event loop is blocked or the process is stopped. */
export class StoppableClock implements Clock {
  readonly fake: FakeClock = new FakeClock()
  #skippedMs = 0

  wallMs(): number {
    return this.fake.wallMs() + this.#skippedMs
  }

  monotonicMs(): number {
    return this.fake.monotonicMs() + this.#skippedMs
  }

  schedule(delayMs: number, fire: () => void): () => void {
    return this.fake.schedule(delayMs, fire)
  }

  advance(byMs: number): Promise<void> {
    return this.fake.advance(byMs)
  }

  /** Time goes on by so much, and no timer fires until `advance`. */
  block(forMs: number): void {
    this.#skippedMs += forMs
  }
}

/** A session under test with everything around it: connection, owner, log. */
export class SessionHarness {
  readonly clock: StoppableClock = new StoppableClock()
  readonly streams: FakeStream[] = []
  readonly events: string[] = []
  readonly assignments: SessionAssignment[] = []
  readonly warnings: string[] = []
  readonly session: GroupSession
  lookups = 0
  coordinator = 0
  lookupError: MillraceError | undefined
  /** Called in `lost`, as a program that ends its session there would. */
  onLost: () => void = () => undefined

  constructor(options: Partial<SessionOptions> = {}) {
    const logger: ClientLogger = {
      debug: () => undefined,
      info: () => undefined,
      warn: (message) => {
        this.warnings.push(message)
      },
      error: () => undefined,
    }
    const connection: SessionConnection = {
      clock: this.clock,
      random: new SeededRandom(1),
      logger,
      clientId: 'test',
      isClosed: false,
      getCoordinator: () => {
        this.lookups++
        return this.lookupError === undefined
          ? Promise.resolve(this.coordinator)
          : Promise.reject(this.lookupError)
      },
      forgetCoordinator: () => {
        this.events.push('forgot')
      },
      openSession: (brokerId) => {
        const stream = new FakeStream(brokerId)
        this.streams.push(stream)
        return stream.stream
      },
    }
    this.session = new GroupSession(
      connection,
      {
        group: 'workers',
        subscription: { topics: ['orders'], pattern: '' },
        instanceId: '',
        assignor: '',
        sessionTimeoutMs: 0,
        rebalanceTimeoutMs: 0,
        rack: '',
        ...options,
      },
      {
        assigned: (assignment) => {
          const partitions = assignment.topics.flatMap((topic) => topic.partitions)
          this.assignments.push(assignment)
          this.events.push(`assigned ${partitions.map(({ partition }) => partition).join(',')}`)
        },
        lost: (reason) => {
          this.events.push(`lost ${reason.code}`)
          this.onLost()
        },
        failed: (error) => {
          this.events.push(`failed ${error.code}`)
        },
      },
    )
  }

  /** The stream in use. */
  get stream(): FakeStream {
    const stream = this.streams.at(-1)
    if (stream === undefined) throw new Error('no stream has been opened')
    return stream
  }

  /** What the owner was told; not what the session did with its connection. */
  get told(): string[] {
    return this.events.filter((event) => event !== 'forgot')
  }

  /** Starts and joins as `m-1` with everything assigned that is named. */
  async join(partitions: readonly number[] = [], sessionTimeoutMs = 45_000): Promise<void> {
    this.session.start()
    await settle()
    this.stream.joined('m-1', { sessionTimeoutMs })
    this.stream.assign(1, partitions)
  }

  /** Lets the pause after a break pass, which is at most 1 s. */
  async reopened(): Promise<FakeStream> {
    const before = this.streams.length
    for (let waitedMs = 0; this.streams.length === before && waitedMs < 6000; waitedMs += 10) {
      await this.clock.advance(10)
    }
    if (this.streams.length === before) throw new Error('no stream was opened anew')
    return this.stream
  }

  /** Moves time on in steps of one heartbeat, each answered. */
  async live(forMs: number, sessionTimeoutMs = 45_000): Promise<void> {
    const stepMs = sessionTimeoutMs / 9
    for (let leftMs = forMs; leftMs > 0; leftMs -= stepMs) {
      await this.clock.advance(Math.min(stepMs, leftMs))
      this.stream.echo()
    }
  }
}

export function aCommit(partition: number, offset: number): SessionCommit {
  return { topic: 'orders', topicId: 'orders-id', partition, offset, leaderEpoch: 1, metadata: '' }
}

/** The error that a promise rejects with. */
export async function failureOf(promise: Promise<unknown>): Promise<MillraceError> {
  try {
    await promise
  } catch (error) {
    return toMillraceError(error)
  }
  throw new Error('it did not fail')
}
