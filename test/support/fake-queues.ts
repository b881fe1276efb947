import type { BrokerError } from '../../src/common/errors.ts'
import { type Offset, toOffset } from '../../src/common/offset.ts'
import type {
  AckFailure,
  AckItem,
  DeadLetterInfo,
  DeadLetterPlace,
  DeadLetters,
  DelayedRecord,
  Explanation,
  PeekedRecord,
  QueueDelivery,
  QueueDescription,
  Queues,
  QueueSettingDescription,
  ReceiveRequest,
  ReceiveResult,
  RedrivePreview,
  RedriveTaskInfo,
  SendRecordRequest,
  SendResult,
  Sends,
  WorkListener,
  WorkNotice,
  WorkRequest,
  WorkSession,
} from '../../src/coordination/queue/queue-types.ts'
import type { QueueParts } from '../../src/grpc/server.ts'

export const NO_NOTICE: WorkNotice = {
  throttledUntilMs: 0,
  windowFull: false,
  paused: false,
  dlqUnavailable: false,
}

/** A token of 16 bytes that is the number's. */
export function aToken(number: number): Buffer {
  const token = Buffer.alloc(16)
  token.writeUInt32BE(number, 12)
  return token
}

/** A delivery under `aToken(number)` of the records [number, number + count). */
export function aDelivery(number: number, options: Partial<QueueDelivery> = {}): QueueDelivery {
  const count = options.count ?? 1
  return {
    token: aToken(number),
    topic: 'orders',
    partition: 0,
    first: toOffset(number),
    end: toOffset(number + count),
    count,
    deliveryCount: 1,
    failureCount: 0,
    leaseMs: 30_000,
    leaseExpiresMs: 1_767_225_630_000,
    firstDeliveredMs: 1_767_225_600_000,
    batch: Buffer.from(`batch ${number}`),
    ...options,
  }
}

/** A list of acknowledgements that waits for the test to settle it. */
export interface HeldAcks {
  readonly items: readonly AckItem[]
  settle(failures?: readonly AckFailure[]): void
  refuse(error: unknown): void
}

/** One session, as the queues have it: what was asked of it, in order, and the listener to call. */
export class FakeWorkSession implements WorkSession {
  readonly memberId: string
  readonly leaseMs: number
  readonly resumed: boolean
  /** The test says how much that is. */
  leased = 0
  readonly request: WorkRequest
  readonly listener: WorkListener
  readonly calls: string[] = []
  readonly acks: HeldAcks[] = []
  readonly #queues: FakeQueues

  constructor(queues: FakeQueues, memberId: string, request: WorkRequest, listener: WorkListener) {
    this.#queues = queues
    this.memberId = memberId
    this.leaseMs = request.leaseMs === 0 ? 30_000 : request.leaseMs
    this.resumed = request.memberId !== ''
    this.request = request
    this.listener = listener
  }

  credit(records: number, bytes: number): void {
    this.calls.push(`credit ${records} ${bytes}`)
  }

  acknowledge(items: readonly AckItem[]): Promise<readonly AckFailure[]> {
    this.calls.push(`acks ${items.length}`)
    return this.#queues.hold(this.acks, items)
  }

  async end(): Promise<void> {
    this.calls.push('end')
    await this.#queues.ending
    if (this.#queues.endFailure !== undefined) throw this.#queues.endFailure
  }

  detach(): void {
    this.calls.push('detach')
  }
}

/** Queues that a test has in its hand: every call is noted, nothing happens by itself. For what goes over the wire, not for the rules of queues. */
export class FakeQueues implements Queues {
  readonly sessions: FakeWorkSession[] = []
  /** What comes over a session before its stream hears of it. */
  onWork: (session: FakeWorkSession) => void = () => undefined
  /** Lists of acknowledgements wait for `acks[i].settle()`. */
  holdAcks = false
  /** What `work` and `end` wait for. */
  working: Promise<void> = Promise.resolve()
  ending: Promise<void> = Promise.resolve()
  /** What `work`, `end` and everything unary fail with. */
  workFailure: BrokerError | undefined
  endFailure: BrokerError | undefined
  failure: BrokerError | undefined
  /** What was asked, by unary calls. */
  readonly requests: unknown[] = []
  /** What was acknowledged by unary calls. */
  readonly acks: HeldAcks[] = []
  receiving: (request: ReceiveRequest, signal: AbortSignal) => Promise<ReceiveResult> = () =>
    Promise.resolve({ deliveries: [], notice: NO_NOTICE })

  description: QueueDescription | undefined
  explanation: Explanation | undefined
  peeked: readonly PeekedRecord[] = []

  async work(request: WorkRequest, listener: WorkListener): Promise<WorkSession> {
    await this.working
    if (this.workFailure !== undefined) throw this.workFailure
    const memberId = request.memberId === '' ? `w${this.sessions.length}` : request.memberId
    const session = new FakeWorkSession(this, memberId, request, listener)
    this.sessions.push(session)
    this.onWork(session)
    return session
  }

  get session(): FakeWorkSession {
    const session = this.sessions.at(-1)
    if (session === undefined) throw new Error('nobody works')
    return session
  }

  hold(acks: HeldAcks[], items: readonly AckItem[]): Promise<readonly AckFailure[]> {
    if (!this.holdAcks) {
      acks.push({ items, settle: () => undefined, refuse: () => undefined })
      return Promise.resolve([])
    }
    return new Promise((resolve, reject) => {
      acks.push({ items, settle: (failures = []) => resolve(failures), refuse: reject })
    })
  }

  receive(request: ReceiveRequest, signal: AbortSignal): Promise<ReceiveResult> {
    return this.#answer({ receive: request }, () => this.receiving(request, signal))
  }

  acknowledge(group: string, items: readonly AckItem[]): Promise<readonly AckFailure[]> {
    return this.#answer({ acknowledge: group }, () => this.hold(this.acks, items))
  }

  describe(group: string): Promise<QueueDescription> {
    return this.#answer({ describe: group }, () => given(this.description))
  }

  configure(group: string, change: object): Promise<readonly QueueSettingDescription[]> {
    const setting = {
      name: 'retry.max.attempts',
      value: '7',
      overridden: true,
      description: 'tries',
      allowed: '0 to 1000',
    }
    return this.#answer({ configure: group, ...change }, () => [setting])
  }

  pause(group: string, untilMs: number): Promise<void> {
    return this.#answer({ pause: group, untilMs }, () => undefined)
  }

  resume(group: string): Promise<void> {
    return this.#answer({ resume: group }, () => undefined)
  }

  peek(request: object): Promise<readonly PeekedRecord[]> {
    return this.#answer({ peek: request }, () => this.peeked)
  }

  explain(group: string, topic: string, partition: number, offset: number): Promise<Explanation> {
    return this.#answer({ explain: [group, topic, partition, offset] }, () =>
      given(this.explanation),
    )
  }

  unblock(
    group: string,
    topic: string,
    partition: number,
    offset: number,
    skip: boolean,
  ): Promise<void> {
    return this.#answer({ unblock: [group, topic, partition, offset, skip] }, () => undefined)
  }

  async #answer<T>(request: unknown, make: () => T | Promise<T>): Promise<T> {
    this.requests.push(request)
    if (this.failure !== undefined) throw this.failure
    return await make()
  }
}

export class FakeSends implements Sends {
  readonly requests: unknown[] = []
  failure: BrokerError | undefined
  sending: (records: readonly SendRecordRequest[]) => readonly SendResult[] = (records) =>
    records.map((_, i) => ({
      error: undefined,
      partition: 1,
      offset: toOffset(i),
      delayId: '',
      deliverAtMs: 0,
      duplicate: false,
      timestampMs: 5,
    }))

  waiting: readonly DelayedRecord[] = []

  send(topic: string, records: readonly SendRecordRequest[]): Promise<readonly SendResult[]> {
    return this.#answer({ send: topic, records }, () => this.sending(records))
  }

  listDelayed(
    request: object,
  ): Promise<{ readonly records: readonly DelayedRecord[]; readonly nextPageToken: string }> {
    return this.#answer({ list: request }, () => ({ records: this.waiting, nextPageToken: 'p2' }))
  }

  countDelayed(topic: string): Promise<number> {
    return this.#answer({ count: topic }, () => 12)
  }

  cancelDelayed(delayId: string): Promise<void> {
    return this.#answer({ cancel: delayId }, () => undefined)
  }

  updateDelayed(delayId: string, deliverAtMs: number): Promise<void> {
    return this.#answer({ update: delayId, deliverAtMs }, () => undefined)
  }

  fireDelayed(delayId: string): Promise<{ readonly partition: number; readonly offset: Offset }> {
    return this.#answer({ fire: delayId }, () => ({ partition: 2, offset: toOffset(9) }))
  }

  async #answer<T>(request: unknown, make: () => T): Promise<T> {
    this.requests.push(request)
    await Promise.resolve()
    if (this.failure !== undefined) throw this.failure
    return make()
  }
}

export class FakeDeadLetters implements DeadLetters {
  readonly requests: unknown[] = []
  failure: BrokerError | undefined
  letters: readonly DeadLetterInfo[] = []
  task: RedriveTaskInfo | undefined
  preview: RedrivePreview | undefined

  list(request: { readonly place: DeadLetterPlace }): Promise<{
    readonly topic: string
    readonly letters: readonly DeadLetterInfo[]
    readonly nextPageToken: string
  }> {
    return this.#answer({ list: request }, () => ({
      topic: 'dlq.workers.orders',
      letters: this.letters,
      nextPageToken: 'p2',
    }))
  }

  discard(place: DeadLetterPlace, filter: object, dryRun: boolean): Promise<number> {
    return this.#answer({ discard: place, filter, dryRun }, () => 3)
  }

  startRedrive(request: object): Promise<{
    readonly task: RedriveTaskInfo | undefined
    readonly preview: RedrivePreview | undefined
  }> {
    return this.#answer({ redrive: request }, () => ({ task: this.task, preview: this.preview }))
  }

  getRedrive(taskId: string): Promise<RedriveTaskInfo> {
    return this.#answer({ get: taskId }, () => given(this.task))
  }

  listRedrives(): Promise<readonly RedriveTaskInfo[]> {
    return this.#answer({ redrives: true }, () => [given(this.task)])
  }

  cancelRedrive(taskId: string): Promise<RedriveTaskInfo> {
    return this.#answer({ cancel: taskId }, () => given(this.task))
  }

  async #answer<T>(request: unknown, make: () => T): Promise<T> {
    this.requests.push(request)
    await Promise.resolve()
    if (this.failure !== undefined) throw this.failure
    return make()
  }
}

export interface FakeQueueParts extends QueueParts {
  readonly queues: FakeQueues
  readonly sends: FakeSends
  readonly deadLetters: FakeDeadLetters
}

export function fakeQueueParts(): FakeQueueParts {
  return {
    queues: new FakeQueues(),
    sends: new FakeSends(),
    deadLetters: new FakeDeadLetters(),
  }
}

function given<T>(value: T | undefined): T {
  if (value === undefined) throw new Error('the test has not said what to answer')
  return value
}
