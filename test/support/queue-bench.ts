import { BrokerError } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import type { GroupCoordinator } from '../../src/coordination/group/group-coordinator.ts'
import type { QueueCoordinator } from '../../src/coordination/queue/queue-coordinator.ts'
import { tokenKey } from '../../src/coordination/queue/lease-token.ts'
import type {
  AckFailure,
  AckItem,
  Explanation,
  QueueDelivery,
  Verdict,
  WorkListener,
  WorkNotice,
  WorkRequest,
  WorkSession,
} from '../../src/coordination/queue/queue-types.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { Topics } from '../../src/topic/topics.ts'
import { aBatch, type BatchShape } from './batches.ts'
import { FakeClock } from './fake-clock.ts'
import { FaultyStore } from './faulty-store.ts'
import { openGroups, openQueues } from './open-queues.ts'
import type { QueueEvent } from './queue-checker.ts'

export const QUEUE_GROUP = 'workers'
export const QUEUE_TOPIC = 'jobs'

/** A queue coordinator over memory, on a fake clock, and a history of what its workers saw. */
export class QueueBench {
  readonly clock: FakeClock = new FakeClock()
  readonly random: SeededRandom
  readonly history: QueueEvent[] = []
  store: MemoryStore
  calls = 0
  #faults: FaultyStore | undefined
  #topics: Topics | undefined
  #queues: QueueCoordinator | undefined
  #groups: GroupCoordinator | undefined
  readonly #unopenable = new Set<string>()
  readonly #dead = new Set<QueueCoordinator>()

  constructor(seed = 1) {
    this.random = new SeededRandom(seed)
    this.store = new MemoryStore({ clock: this.clock, random: this.random })
  }

  /** Where a test says what goes wrong; since the last start. */
  get faults(): FaultyStore {
    if (this.#faults === undefined) throw new Error('the bench has not been started')
    return this.#faults
  }

  get topics(): Topics {
    if (this.#topics === undefined) throw new Error('the bench has not been started')
    return this.#topics
  }

  get queues(): QueueCoordinator {
    if (this.#queues === undefined) throw new Error('the bench has not been started')
    return this.#queues
  }

  get groups(): GroupCoordinator {
    if (this.#groups === undefined) throw new Error('the bench has not been started')
    return this.#groups
  }

  /** From the next start on, until that start's faults are cleared. */
  refuseToOpen(name: string): void {
    this.#unopenable.add(name)
  }

  /** With one topic, and the group's settings, from the earliest record on. */
  async start(partitions = 1, settings: Readonly<Record<string, string>> = {}): Promise<this> {
    await this.#open()
    await this.topics.create({ name: QUEUE_TOPIC, partitions })
    const set = { 'queue.start': 'earliest', ...settings }
    await this.queues.configure(QUEUE_GROUP, { set, clear: [], validateOnly: false })
    return this
  }

  async #open(): Promise<void> {
    const { clock, random } = this
    this.#faults = new FaultyStore(this.store)
    for (const name of this.#unopenable)
      this.#faults.unopenable.set(name, new BrokerError('STORAGE_ERROR', `${name} is broken`))
    const topics = await Topics.open({ store: this.#faults, clock, random })
    this.#topics = topics
    this.#groups = await openGroups({ topics, clock, random })
    this.#queues = await openQueues({ topics, clock, random, groups: this.#groups })
  }

  /** A broker that was killed and started again: what was not durable is gone, sessions hear nothing. */
  async restart(): Promise<void> {
    const killed = this.queues
    this.#dead.add(killed)
    this.store = this.store.restart()
    this.history.push({ type: 'restarted', atMs: this.clock.monotonicMs() })
    await killed.close(new BrokerError('CLOSED', 'killed'))
    await this.#open()
  }

  isDead(queues: QueueCoordinator): boolean {
    return this.#dead.has(queues)
  }

  async produce(shape: BatchShape, partition = 0): Promise<void> {
    await this.produceTo(QUEUE_TOPIC, shape, partition)
  }

  async produceTo(topic: string, shape: BatchShape, partition = 0): Promise<void> {
    const batch = aBatch({ timestampMs: Math.floor(this.clock.wallMs()), ...shape })
    await this.topics.getPartition(topic, partition).append(batch, 'durable')
  }

  /** A worker that may be given `credit` records, and a moment for them to come. */
  async work(credit: number, request: Partial<WorkRequest> = {}): Promise<TestWorker> {
    const worker = new TestWorker(this, request)
    await worker.open()
    if (credit > 0) worker.session.credit(credit, 1 << 24)
    await this.clock.advance(1)
    return worker
  }

  explain(offset: number, partition = 0): Promise<Explanation> {
    return this.queues.explain(QUEUE_GROUP, QUEUE_TOPIC, partition, offset)
  }

  /** For the checker: what the partitions hold in the end. */
  noteEnds(): void {
    for (const { name, highWatermark } of this.topics.get(QUEUE_TOPIC).partitions) {
      this.history.push({ type: 'ended', partition: name, endOffset: toOffset(highWatermark) })
    }
  }
}

/** A worker that keeps what it is given until it is told to say something. */
export class TestWorker {
  readonly held: QueueDelivery[] = []
  readonly lost: string[] = []
  notice: WorkNotice | undefined
  error: BrokerError | undefined
  /** Whether it asks for as many records as it is rid of. */
  asksAgain = true
  /** Called with each delivery. */
  onDelivery: (delivery: QueueDelivery) => void = () => undefined
  /** Called in the moment a lease is lost. */
  onLost: () => void = () => undefined
  readonly #bench: QueueBench
  readonly #request: Partial<WorkRequest>
  #queues: QueueCoordinator | undefined
  #session: WorkSession | undefined

  constructor(bench: QueueBench, request: Partial<WorkRequest>) {
    this.#bench = bench
    this.#request = request
  }

  get session(): WorkSession {
    if (this.#session === undefined) throw new Error('the worker has no session')
    return this.#session
  }

  /** Of everything that it holds, in order. */
  get offsets(): number[] {
    return this.held.flatMap(({ first, end }) =>
      Array.from({ length: end - first }, (_, i) => first + i),
    )
  }

  async open(): Promise<void> {
    const bench = this.#bench
    const { queues } = bench
    this.#queues = queues
    const listener: WorkListener = {
      delivered: (delivery) => {
        if (!bench.isDead(queues)) this.#take(delivery)
      },
      leaseLost: (token) => {
        this.onLost()
        if (!bench.isDead(queues)) this.#lose(tokenKey(token))
      },
      notice: (notice) => {
        this.notice = notice
      },
      ended: (error) => {
        if (!bench.isDead(queues)) this.error = error
      },
    }
    this.#session = await queues.work(
      {
        group: QUEUE_GROUP,
        topic: QUEUE_TOPIC,
        memberId: '',
        clientId: 'test',
        host: '127.0.0.1:1',
        leaseMs: 0,
        settings: {},
        ...this.#request,
      },
      listener,
    )
  }

  #take(delivery: QueueDelivery): void {
    const { topic, partition, token, first, end, deliveryCount, failureCount } = delivery
    const atMs = this.#bench.clock.monotonicMs()
    this.#bench.history.push({
      type: 'delivered',
      atMs,
      member: this.session.memberId,
      token: tokenKey(token),
      partition: `${topic}-${partition}`,
      first,
      end,
      deliveryCount,
      failureCount,
      expiresMs: atMs + delivery.leaseMs,
    })
    this.held.push(delivery)
    this.onDelivery(delivery)
  }

  #lose(token: string): void {
    this.lost.push(token)
    const at = this.held.findIndex((one) => tokenKey(one.token) === token)
    const [delivery] = at < 0 ? [] : this.held.splice(at, 1)
    const atMs = this.#bench.clock.monotonicMs()
    const reason = 'lease_expired'
    this.#bench.history.push({ type: 'lease-lost', atMs, token, reason })
    if (delivery !== undefined && this.asksAgain)
      this.session.credit(delivery.end - delivery.first, 0)
  }

  /** Whether the broker that it talks to is still there. */
  get isConnected(): boolean {
    return this.#queues !== undefined && !this.#bench.isDead(this.#queues)
  }

  /** Says the same of all records of a delivery, by default the oldest, and asks for as many again. */
  async say(
    verdict: Verdict,
    more: { delivery?: QueueDelivery; delayMs?: number; message?: string } = {},
  ): Promise<readonly AckFailure[]> {
    const delivery = more.delivery ?? this.held[0]
    if (delivery === undefined) throw new Error('the worker holds nothing')
    const { token, first, end, topic, partition } = delivery
    const { message } = more
    const item: AckItem = {
      token,
      first,
      end,
      verdict,
      delayMs: more.delayMs,
      error: message === undefined ? undefined : { type: 'Error', message, stack: '' },
      pauseGroupMs: 0,
    }
    const bench = this.#bench
    const call = bench.calls++
    bench.history.push({
      type: 'called',
      atMs: bench.clock.monotonicMs(),
      call,
      items: [
        {
          token: tokenKey(token),
          partition: `${topic}-${partition}`,
          first,
          end,
          verdict,
          delayMs: more.delayMs,
        },
      ],
    })
    if (verdict !== 'renew') {
      const at = this.held.indexOf(delivery)
      if (at >= 0) this.held.splice(at, 1)
    }
    const failures = await this.session.acknowledge([item])
    if (!this.isConnected) return failures
    bench.history.push({
      type: 'answered',
      atMs: bench.clock.monotonicMs(),
      call,
      failures: failures.map(({ index, error }) => ({ index, code: error.code })),
    })
    if (verdict !== 'renew' && this.asksAgain) this.session.credit(end - first, 0)
    return failures
  }

  /** A clean leave. */
  async leave(): Promise<void> {
    const { memberId: member } = this.session
    this.#bench.history.push({ type: 'left', atMs: this.#bench.clock.monotonicMs(), member })
    await this.session.end()
  }
}
