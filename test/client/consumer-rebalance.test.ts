import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Clock } from '../../src/common/clock.ts'
import { systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import type { ErrorCode } from '../../src/common/errors.ts'
import { Connection } from '../../src/client/connection.ts'
import { GroupConsumer } from '../../src/client/consumer.ts'
import type { ConsumerSession } from '../../src/client/consumer-membership.ts'
import type {
  SessionCommit,
  SessionCommitFailure,
  SessionOwner,
} from '../../src/client/group-session.ts'
import {
  type Client,
  connect,
  type ConsumerOptions,
  MillraceError,
  text,
  topic,
  type TopicPartition,
} from '../../src/client/index.ts'
import { LogProducer } from '../../src/client/producer.ts'
import { CONTROL_BIT, stampCrc } from '../../src/record/batch-header.ts'
import { aBatch } from '../support/batches.ts'
import { FakeBroker } from '../support/fake-broker.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'
import { type LoopbackBroker, startLoopbackBroker } from '../support/loopback-broker.ts'

const lines = topic('lines', { value: text })

let broker: LoopbackBroker
let mill: Client
let connection: Connection
let topicId = ''
/** Everything that happens, in order. */
let events: string[]
let session: FakeSession

/** Asks until it holds: longer than a busy machine takes, and no longer than needed. */
function eventually<T>(look: () => T): ReturnType<typeof expect.poll<Awaited<T>>> {
  return expect.poll(look, { timeout: 20_000 })
}

beforeEach(async () => {
  broker = await startLoopbackBroker()
  mill = await connect(broker.url)
  events = []
  connection = await open(systemClock)
})

afterEach(async () => {
  connection.close()
  await mill.close()
  await broker[Symbol.asyncDispose]()
})

async function open(clock: Clock, url: string = broker.url): Promise<Connection> {
  const opened = new Connection({
    targets: [url],
    tls: undefined,
    clientId: undefined,
    clock,
    random: new SeededRandom(5),
    logger: undefined,
  })
  await opened.open(5000)
  return opened
}

/** The broker's side of the session, as a test wants it. */
class FakeSession implements ConsumerSession {
  readonly memberId = 'm-1'
  readonly owner: SessionOwner
  isAlive = true
  /** Answers held back. */
  readonly held: (() => void)[] = []
  holdsCommits = false
  /** What the next commits are answered, by partition. */
  refusals: ReadonlyMap<number, ErrorCode> = new Map()
  readonly committed: Map<number, number> = new Map()
  commits = 0
  underWay = 0
  mostUnderWay = 0
  #number = 0

  constructor(owner: SessionOwner) {
    this.owner = owner
  }

  start(): void {
    events.push('join')
  }

  /** Partitions, some with what is said to be committed in them. */
  assign(...partitions: (number | readonly [partition: number, committed: number])[]): void {
    this.#number++
    this.owner.assigned({
      number: this.#number,
      memberEpoch: this.#number,
      topics: [
        {
          topic: 'lines',
          topicId,
          partitions: partitions.map((entry) => {
            const [partition, said] = typeof entry === 'number' ? [entry] : entry
            return {
              partition,
              committed: said ?? this.committed.get(partition),
              committedLeaderEpoch: 0,
              metadata: '',
              logStartOffset: 0,
              highWatermark: 100,
            }
          }),
        },
      ],
    })
  }

  lose(): void {
    this.owner.lost(new MillraceError('UNKNOWN_MEMBER', 'lost on purpose'))
  }

  async commit(offsets: readonly SessionCommit[]): Promise<readonly SessionCommitFailure[]> {
    this.commits++
    this.underWay++
    this.mostUnderWay = Math.max(this.mostUnderWay, this.underWay)
    const texts = offsets.map(({ partition, offset }) => `${partition}:${offset}`)
    events.push(`commit ${texts.toSorted().join()}`)
    if (this.holdsCommits) await new Promise<void>((resolve) => this.held.push(resolve))
    this.underWay--
    const failures: SessionCommitFailure[] = []
    for (const { topic: name, partition, offset } of offsets) {
      const code = this.refusals.get(partition)
      if (code === undefined) this.committed.set(partition, offset)
      else {
        const error = new MillraceError(code, `${code} on purpose`)
        failures.push({ topic: name, partition, error })
      }
    }
    return failures
  }

  answer(): void {
    for (const resolve of this.held.splice(0)) resolve()
  }

  confirm(number: number): void {
    events.push(`confirm ${number}`)
  }

  leave(): Promise<void> {
    events.push('leave')
    return Promise.resolve()
  }

  close(): void {
    events.push('close')
  }
}

async function fill(count: number, partitions = 2): Promise<void> {
  await mill.admin.createTopic('lines', { partitions, ifNotExists: true })
  await using producer = mill.producer()
  for (let i = 0; i < count; i++) {
    producer.post(lines, { value: `${i}`, partition: i % partitions })
  }
  await producer.flush()
  topicId = (await mill.admin.describeTopic('lines')).topicId
}

function create(options: Partial<ConsumerOptions> = {}): GroupConsumer<string, string> {
  const consumer = new GroupConsumer(
    connection,
    lines,
    { group: 'g', commit: 'interval', commitIntervalMs: 3_600_000, ...options },
    {
      createProducer: () => new LogProducer(connection, {}, () => undefined),
      onClosed: () => events.push('gone'),
      createSession: (_options, owner) => {
        session = new FakeSession(owner)
        return session
      },
    },
  )
  for (const event of ['assigned', 'revoked', 'lost'] as const) {
    consumer.on(event, (partitions) => void events.push(`${event} ${names(partitions)}`))
  }
  return consumer
}

function names(partitions: readonly TopicPartition[]): string {
  return partitions.map(({ partition }) => partition).join()
}

interface Gate {
  readonly opened: Promise<void>
  readonly open: () => void
}

function gate(): Gate {
  let open = (): void => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { opened, open }
}

/** A run of which the first record of partition 0 takes as long as the test wants. */
function runSlowly(consumer: GroupConsumer<string, string>): {
  readonly slow: Gate
  readonly seen: string[]
  readonly aborted: string[]
  readonly ended: Promise<void>
} {
  const slow = gate()
  const seen: string[] = []
  const aborted: string[] = []
  const ended = consumer.run(
    async ({ partition, offset }, { signal }) => {
      const name = `${partition}:${offset}`
      signal.addEventListener('abort', () => aborted.push(name))
      if (name === '0:0') await slow.opened
      seen.push(name)
    },
    { concurrency: 4 },
  )
  ended.catch(() => undefined) // Looked at by those tests that expect a failure.
  return { slow, seen, aborted, ended }
}

async function failure(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
}

/** Lets everything happen that was going to, short of what waits for the network. */
async function rest(): Promise<void> {
  for (let i = 0; i < 5; i++) await settle()
}

describe('a rebalance', () => {
  it('waits for what is in hand, then tells, commits, confirms, in this order', async () => {
    await fill(20)
    const consumer = create()
    const { slow, seen, ended } = runSlowly(consumer)
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(10)
    events.length = 0
    session.assign(1)
    await rest()
    expect(events).toEqual([])
    expect(names(consumer.assignment())).toBe('0,1')
    slow.open()
    await eventually(() => events).toEqual(['revoked 0', 'commit 0:1,1:10', 'confirm 2'])
    expect(names(consumer.assignment())).toBe('1')
    // Nothing more of it has been delivered.
    expect(seen.filter((name) => name.startsWith('0:'))).toEqual(['0:0'])
    await consumer.close()
    await ended
    expect(events.slice(3)).toEqual(['revoked 1', 'leave', 'close', 'gone'])
  })

  it('waits for a loop that is slow to ask for the next record', async () => {
    await fill(20)
    const consumer = create()
    const records = consumer[Symbol.asyncIterator]()
    const first = records.next()
    session.assign(0)
    expect((await first).value?.offset).toBe(0)
    events.length = 0
    session.assign(1)
    await rest()
    expect(events).toEqual([])
    expect((await records.next()).value).toMatchObject({ partition: 1, offset: 0 })
    expect(events).toEqual(['revoked 0', 'commit 0:1', 'confirm 2', 'assigned 1'])
    await records.return?.()
  })

  it('waits for listeners before it commits, and lets them commit themselves', async () => {
    await fill(20)
    const consumer = create({ commit: 'manual' })
    const { slow, seen, ended } = runSlowly(consumer)
    const asked = gate()
    consumer.on('revoked', async () => {
      await asked.opened
      await consumer.commit()
    })
    session.assign(0, 1)
    slow.open()
    await eventually(() => seen).toHaveLength(20)
    events.length = 0
    session.assign(1)
    await rest()
    expect(events).toEqual(['revoked 0'])
    asked.open()
    await eventually(() => events).toEqual(['revoked 0', 'commit 0:10,1:10', 'confirm 2'])
    await consumer.close()
    await ended
  })

  it('commits nothing by itself when told to leave that to the program', async () => {
    await fill(20)
    const consumer = create({ commit: 'manual' })
    const { slow, seen, ended } = runSlowly(consumer)
    session.assign(0, 1)
    slow.open()
    await eventually(() => seen).toHaveLength(20)
    session.assign(1)
    await eventually(() => events).toContain('confirm 2')
    await consumer.close()
    await ended
    expect(session.commits).toBe(0)
  })

  it('keeps to the newest of several assignments that come while one is carried out', async () => {
    await fill(40, 4)
    const consumer = create()
    const { slow, seen, ended } = runSlowly(consumer)
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(10)
    events.length = 0
    session.assign(1)
    session.assign(1, 2)
    session.assign(2, 3)
    await rest()
    slow.open()
    await eventually(() => seen).toHaveLength(10 + 1 + 20)
    expect(events).toEqual([
      'revoked 0',
      'commit 0:1,1:10',
      'revoked 1',
      'confirm 4',
      'assigned 2,3',
    ])
    await consumer.close()
    await ended
  })

  it('goes on behind what it has committed itself when a partition comes back at once', async () => {
    await fill(20)
    const consumer = create()
    const { slow, seen, ended } = runSlowly(consumer)
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(10)
    session.assign(1)
    // The broker has changed its mind before it knew of the last commit.
    session.assign([0, 0], 1)
    slow.open()
    await eventually(() => seen).toHaveLength(20)
    expect(seen.filter((name) => name === '0:0')).toHaveLength(1)
    expect(events.slice(-4)).toEqual(['revoked 0', 'commit 0:1,1:10', 'confirm 3', 'assigned 0'])
    await consumer.close()
    await ended
  })

  it('believes the broker when a partition comes back that was given up', async () => {
    await fill(20)
    const consumer = create()
    const { slow, seen, ended } = runSlowly(consumer)
    slow.open()
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(20)
    session.assign(1)
    await eventually(() => events).toContain('confirm 2')
    session.assign([0, 7], 1)
    await eventually(() => seen).toHaveLength(23)
    expect(seen.slice(20)).toEqual(['0:7', '0:8', '0:9'])
    await consumer.close()
    await ended
  })

  it('delivers what stays while new partitions wait for their listeners', async () => {
    await fill(20)
    const consumer = create()
    const ready = gate()
    consumer.on('assigned', (partitions) => (names(partitions) === '0' ? ready.opened : undefined))
    const seen: string[] = []
    const ended = consumer.run(({ partition, offset }) => void seen.push(`${partition}:${offset}`))
    session.assign(1)
    await eventually(() => seen).toHaveLength(10)
    session.assign(0, 1)
    await eventually(() => events).toContain('assigned 0')
    await fill(2)
    await eventually(() => seen).toHaveLength(11)
    expect(seen.at(-1)).toBe('1:10')
    ready.open()
    await eventually(() => seen).toHaveLength(22)
    await consumer.close()
    await ended
  })

  it('ends the consumer with the error of a listener, but gives up what goes', async () => {
    await fill(20)
    const boom = new Error('boom')
    const consumer = create()
    consumer.on('revoked', () => {
      throw boom
    })
    const { slow, seen, ended } = runSlowly(consumer)
    slow.open()
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(20)
    session.assign(1)
    expect(await failure(ended)).toBe(boom)
    expect(events).toContain('commit 0:10,1:10')
    expect(events.slice(-3)).toEqual(['leave', 'close', 'gone'])
  })

  it('closes in the middle of one, after what is in hand', async () => {
    await fill(20)
    const consumer = create()
    const { slow, seen, ended } = runSlowly(consumer)
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(10)
    events.length = 0
    session.assign(1)
    const closed = consumer.close()
    await rest()
    expect(events).toEqual([])
    slow.open()
    await closed
    await ended
    expect(events).toEqual([
      'revoked 0',
      'commit 0:1,1:10',
      'confirm 2',
      'revoked 1',
      'leave',
      'close',
      'gone',
    ])
  })
})

describe('a session that is lost', () => {
  it('aborts handlers, forgets without a commit, tells, and goes on with what it gets next', async () => {
    await fill(20)
    const consumer = create()
    const { slow, seen, aborted, ended } = runSlowly(consumer)
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(10)
    events.length = 0
    session.lose()
    expect(consumer.assignment()).toEqual([])
    expect(aborted).toContain('0:0')
    slow.open()
    await rest()
    expect(events).toEqual(['lost 0,1'])
    session.assign(1)
    await eventually(() => seen.filter((name) => name === '1:0')).toHaveLength(2)
    await consumer.close()
    await ended
    expect(events).not.toContain('commit 0:1')
  })

  it('drops a revocation that waits for a handler', async () => {
    await fill(20)
    const consumer = create()
    const { slow, seen, ended } = runSlowly(consumer)
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(10)
    session.assign(1)
    await rest()
    events.length = 0
    // The broker has waited for the rebalance timeout.
    session.lose()
    await rest()
    expect(events).toEqual(['lost 0,1'])
    session.assign(1)
    await eventually(() => events).toEqual(['lost 0,1', 'confirm 3', 'assigned 1'])
    slow.open()
    await consumer.close()
    await ended
    expect(events.some((event) => event.startsWith('commit 0'))).toBe(false)
  })

  it('ends with the reason when it is over for good', async () => {
    await fill(20)
    const consumer = create()
    const { slow, seen, aborted, ended } = runSlowly(consumer)
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(10)
    events.length = 0
    session.owner.failed(new MillraceError('INSTANCE_FENCED', 'fenced on purpose'))
    expect(aborted).toContain('0:0')
    slow.open()
    expect(await failure(ended)).toMatchObject({ code: 'INSTANCE_FENCED' })
    expect(events).toEqual(['lost 0,1', 'leave', 'close', 'gone'])
  })

  it('looks whether it is still there after the program has kept everything waiting', async () => {
    await fill(20)
    const clock = new FakeClock()
    connection.close()
    connection = await open(clock)
    const consumer = create()
    const records = consumer[Symbol.asyncIterator]()
    const first = records.next()
    session.assign(0)
    await first
    let looks = 0
    Object.defineProperty(session, 'isAlive', {
      get: () => {
        looks++
        session.lose()
        return false
      },
    })
    // As if it had been stopped in the middle of the loop's body, for longer than the session.
    await clock.advance(60_000)
    const next = records.next()
    await eventually(() => events).toContain('lost 0')
    expect(looks).toBe(1)
    await consumer.close()
    expect((await next).done).toBe(true)
  })
})

describe('commits in the background', () => {
  it('are one at a time, each with the newest only', async () => {
    await fill(200, 1)
    const consumer = create({ commit: 'after-each' })
    const records = consumer[Symbol.asyncIterator]()
    const first = records.next()
    session.holdsCommits = true
    session.assign(0)
    await first
    for (let i = 0; i < 50; i++) await records.next()
    await eventually(() => session.held).toHaveLength(1)
    for (let i = 0; i < 50; i++) await records.next()
    // Also those that the program asks for.
    const asked = consumer.commit()
    await rest()
    expect(session.held).toHaveLength(1)
    session.answer()
    await eventually(() => session.held).toHaveLength(1)
    session.answer()
    await asked
    const commits = events.filter((event) => event.startsWith('commit'))
    expect(commits.length).toBeLessThanOrEqual(3)
    expect(commits.at(-1)).toBe('commit 0:100')
    expect(session.mostUnderWay).toBe(1)
    session.holdsCommits = false
    await records.return?.()
  })

  it.each(['PARTITION_NOT_OWNED', 'UNKNOWN_TOPIC'] as const)(
    'say nothing when they are refused with %s, for the partition has moved',
    async (code) => {
      await fill(20)
      const consumer = create({ commit: 'after-each' })
      const errors: MillraceError[] = []
      consumer.on('error', (error) => errors.push(error))
      const { slow, seen, ended } = runSlowly(consumer)
      slow.open()
      session.refusals = new Map([[0, code]])
      session.assign(0, 1)
      await eventually(() => seen).toHaveLength(20)
      await eventually(() => session.committed.get(1)).toBe(10)
      await consumer.close()
      await ended
      expect(errors).toEqual([])
    },
  )

  it('tell of failures that are real, and go on', async () => {
    await fill(20)
    const consumer = create({ commit: 'after-each' })
    const errors: string[] = []
    consumer.on('error', (error) => void errors.push(error.code))
    const { slow, seen, ended } = runSlowly(consumer)
    slow.open()
    session.refusals = new Map([[0, 'OFFSET_OUT_OF_RANGE']])
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(20)
    await eventually(() => errors).toContain('OFFSET_OUT_OF_RANGE')
    session.refusals = new Map()
    await fill(2)
    await eventually(() => session.committed.get(0)).toBe(11)
    await consumer.close()
    await ended
  })

  it.each(['STALE_MEMBER_EPOCH', 'COMMIT_TIMEOUT'] as const)(
    'are repeated after %s',
    async (code) => {
      await fill(20)
      const consumer = create({ commit: 'after-each' })
      const { slow, seen, ended } = runSlowly(consumer)
      slow.open()
      session.refusals = new Map([[0, code]])
      session.assign(0, 1)
      await eventually(() => seen).toHaveLength(20)
      await eventually(() => session.commits).toBeGreaterThan(2)
      session.refusals = new Map()
      await eventually(() => session.committed.get(0)).toBe(10)
      await consumer.close()
      await ended
    },
  )

  it('tell who asked for one why it failed', async () => {
    await fill(20)
    const consumer = create({ commit: 'manual' })
    const { slow, seen, ended } = runSlowly(consumer)
    slow.open()
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(20)
    session.refusals = new Map([[1, 'PARTITION_NOT_OWNED']])
    expect(await failure(consumer.commit())).toMatchObject({ code: 'PARTITION_NOT_OWNED' })
    expect(session.committed.get(0)).toBe(10)
    session.holdsCommits = true
    session.refusals = new Map()
    const asked = failure(consumer.commit())
    await rest()
    session.lose()
    expect(await asked).toMatchObject({ code: 'UNKNOWN_MEMBER' })
    session.answer()
    await consumer.close()
    await ended
  })

  it('pass over what holds no records, at the end too', async () => {
    // No client may write a control batch, so it is put into the log behind the broker's back.
    await using fake = await FakeBroker.start()
    const marker = aBatch({ records: 1 })
    marker[22] = (marker[22] ?? 0) | CONTROL_BIT
    stampCrc(marker, 0)
    await fake.logs[0]?.append(aBatch({ records: 3 }), 'durable')
    await fake.logs[0]?.append(marker, 'durable')
    connection.close()
    connection = await open(systemClock, fake.url)
    const consumer = create({ commit: 'after-each' })
    const seen: number[] = []
    const ended = consumer.run(({ offset }) => void seen.push(offset))
    session.assign(0)
    await eventually(() => session.committed.get(0)).toBe(4)
    expect(seen).toEqual([0, 1, 2])
    expect(await consumer.lag()).toMatchObject([{ committed: 4, position: 4, lag: 96 }])
    await consumer.close()
    await ended
  })

  it('do not count what was in hand before a seek', async () => {
    await fill(20, 1)
    const consumer = create()
    const { slow, seen, ended } = runSlowly(consumer)
    session.assign(0)
    await eventually(() => events).toContain('assigned 0')
    await eventually(() => consumer.assignment()).toHaveLength(1)
    await rest()
    await consumer.seek('15')
    slow.open()
    await eventually(() => seen).toHaveLength(6)
    expect(seen).toEqual(['0:0', '0:15', '0:16', '0:17', '0:18', '0:19'])
    await consumer.close()
    await ended
    expect(session.committed.get(0)).toBe(20)
  })
})

describe('closing', () => {
  it('waits for handlers as long as the rebalance timeout, and not longer', async () => {
    await fill(20)
    const clock = new FakeClock()
    connection.close()
    connection = await open(clock)
    const consumer = create({ rebalanceTimeoutMs: 30_000 })
    const { slow, seen, aborted, ended } = runSlowly(consumer)
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(10)
    events.length = 0
    const closed = consumer.close()
    await clock.advance(29_999)
    expect(events).toEqual([])
    await clock.advance(1)
    await closed
    await ended
    expect(aborted).toContain('0:0')
    expect(events).toEqual(['revoked 0,1', 'commit 1:10', 'leave', 'close', 'gone'])
    slow.open()
  })

  it('can be asked for inside the loop, which then costs a while', async () => {
    await fill(20)
    const clock = new FakeClock()
    connection.close()
    connection = await open(clock)
    const consumer = create()
    const records = consumer[Symbol.asyncIterator]()
    const first = records.next()
    session.assign(0)
    await first
    const closed = consumer.close()
    await clock.advance(10_000)
    await closed
    expect((await records.next()).done).toBe(true)
    expect(session.committed.size).toBe(0)
  })

  it('can be asked for inside the loop while the very partition is to be given up', async () => {
    await fill(20)
    const clock = new FakeClock()
    connection.close()
    connection = await open(clock)
    const consumer = create()
    const records = consumer[Symbol.asyncIterator]()
    const first = records.next()
    session.assign(0)
    await first
    events.length = 0
    session.assign()
    await settle()
    const closed = consumer.close()
    await clock.advance(10_000)
    await eventually(() => events).toEqual(['revoked 0', 'confirm 2', 'leave', 'close', 'gone'])
    await closed
    expect((await records.next()).done).toBe(true)
    expect(session.committed.size).toBe(0)
  })

  it('ends everything at once when it is given up', async () => {
    await fill(20)
    const consumer = create()
    const { slow, seen, aborted, ended } = runSlowly(consumer)
    session.assign(0, 1)
    await eventually(() => seen).toHaveLength(10)
    events.length = 0
    const closed = consumer.close()
    consumer.abandon(new MillraceError('CLOSED', 'enough'))
    await closed
    expect(await failure(ended)).toMatchObject({ code: 'CLOSED' })
    expect(aborted).toContain('0:0')
    expect(session.commits).toBe(0)
    slow.open()
  })
})
