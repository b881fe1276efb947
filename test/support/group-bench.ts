import { BrokerError } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { GroupCoordinator } from '../../src/coordination/group/group-coordinator.ts'
import type { GroupOptions } from '../../src/coordination/group/group-options.ts'
import type {
  JoinGroupRequest,
  MemberAssignment,
  MemberListener,
  MemberSession,
  OffsetCommitRequest,
} from '../../src/coordination/group/group-types.ts'
import { Topics } from '../../src/topic/topics.ts'
import { aBatch } from './batches.ts'
import { FakeClock } from './fake-clock.ts'
import { FaultyStore } from './faulty-store.ts'

/** A coordinator over memory, on a fake clock. */
export class GroupBench {
  readonly clock: FakeClock = new FakeClock()
  readonly random: SeededRandom
  readonly #options: Partial<GroupOptions>
  store: MemoryStore
  #faults: FaultyStore | undefined
  /** What these say is not heard any more. */
  readonly dead: Set<GroupCoordinator> = new Set()
  #topics: Topics | undefined
  #groups: GroupCoordinator | undefined

  constructor(options: Partial<GroupOptions> = {}, seed = 1) {
    this.random = new SeededRandom(seed)
    this.#options = { partitions: 2, ...options }
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

  get groups(): GroupCoordinator {
    if (this.#groups === undefined) throw new Error('the bench has not been started')
    return this.#groups
  }

  async start(topics: Readonly<Record<string, number>> = {}): Promise<this> {
    await this.#open()
    for (const [name, partitions] of Object.entries(topics)) {
      await this.topics.create({ name, partitions })
    }
    return this
  }

  async #open(): Promise<void> {
    const { clock, random } = this
    this.#faults = new FaultyStore(this.store)
    this.#topics = await Topics.open({ store: this.#faults, clock, random })
    this.#groups = await GroupCoordinator.open({
      topics: this.#topics,
      clock,
      random,
      options: this.#options,
    })
  }

  /** A broker that was killed and started again: what was not durable is gone, sessions hear nothing. */
  async restart(): Promise<void> {
    const killed = this.#groups
    this.store = this.store.restart()
    this.dead.add(this.groups)
    await killed?.close(new BrokerError('CLOSED', 'killed'))
    await this.#open()
  }

  async produce(topic: string, partition: number, records: number): Promise<void> {
    const batch = aBatch({ records })
    await this.topics.getPartition(topic, partition).append(batch, 'durable')
  }

  /** Joins, lets a millisecond pass so that the first assignment is there, and confirms whatever comes unless told not to. */
  async join(request: Partial<JoinGroupRequest> = {}, confirms = true): Promise<TestMember> {
    const member = new TestMember(request, confirms)
    await member.join(this)
    return member
  }
}

export const JOIN: JoinGroupRequest = {
  group: 'billing',
  memberId: '',
  memberEpoch: 0,
  instanceId: '',
  clientId: 'test',
  host: '127.0.0.1:1',
  rack: '',
  subscription: { topics: ['orders'], pattern: '' },
  assignor: '',
  sessionTimeoutMs: 0,
  rebalanceTimeoutMs: 0,
}

/** A member that keeps what it was told. */
export class TestMember {
  readonly request: Partial<JoinGroupRequest>
  readonly assignments: MemberAssignment[] = []
  confirms: boolean
  error: BrokerError | undefined
  #session: MemberSession | undefined

  constructor(request: Partial<JoinGroupRequest>, confirms: boolean) {
    this.request = request
    this.confirms = confirms
  }

  get session(): MemberSession {
    if (this.#session === undefined) throw new Error('the member has not joined')
    return this.#session
  }

  get id(): string {
    return this.session.memberId
  }

  get epoch(): number {
    return this.assignments.at(-1)?.memberEpoch ?? this.session.memberEpoch
  }

  async join(bench: GroupBench): Promise<void> {
    this.#session = await bench.groups.join({ ...JOIN, ...this.request }, this.#listener(bench))
    await bench.clock.advance(1)
  }

  /** On a new stream, as after a broken connection. */
  async resume(bench: GroupBench): Promise<void> {
    const request = { ...this.request, memberId: this.id, memberEpoch: this.epoch }
    this.#session = await bench.groups.join({ ...JOIN, ...request }, this.#listener(bench))
    await bench.clock.advance(1)
  }

  /** A stream's end: deaf to a broker that has been killed. */
  #listener(bench: GroupBench): MemberListener {
    const { groups } = bench
    return {
      assigned: (assignment) => {
        if (bench.dead.has(groups)) return
        this.assignments.push(assignment)
        if (this.confirms) this.session.confirm(assignment.number)
      },
      ended: (error) => {
        if (!bench.dead.has(groups)) this.error = error
      },
    }
  }

  confirmLast(): void {
    this.session.confirm(this.assignments.at(-1)?.number ?? 0)
  }

  /** What it was told last: `orders-0`. */
  get partitions(): string[] {
    const topics = this.assignments.at(-1)?.topics ?? []
    return topics
      .flatMap(({ topic, partitions }) =>
        partitions.map(({ partition }) => `${topic}-${partition}`),
      )
      .sort()
  }

  committedOf(topic: string, partition: number): number | undefined {
    const found = this.assignments.at(-1)?.topics.find((some) => some.topic === topic)
    return found?.partitions.find((some) => some.partition === partition)?.committed?.offset
  }

  async commit(
    topic: string,
    partition: number,
    offset: number,
    more: { epoch?: number; metadata?: string } = {},
  ): Promise<BrokerError | undefined> {
    const commit = aCommit(topic, partition, offset, more.metadata)
    return (await this.session.commit(more.epoch ?? this.epoch, [commit]))[0]?.error
  }
}

export function aCommit(
  topic: string,
  partition: number,
  offset: number,
  metadata = '',
): OffsetCommitRequest {
  return { topic, partition, offset, leaderEpoch: 1, metadata, topicId: '' }
}

/** The code of the error that `promise` rejects with. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
  } catch (error) {
    return (error as BrokerError).code
  }
  return 'none'
}
