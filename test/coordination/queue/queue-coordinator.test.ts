import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import {
  ATTEMPTS_HEADER,
  BACKOFF_HEADER,
  ORDERING_KEY_HEADER,
} from '../../../src/common/job-headers.ts'
import { toOffset } from '../../../src/common/offset.ts'
import { deadLetterTopicName } from '../../../src/coordination/queue/names.ts'
import type { ReceiveRequest, RecordState } from '../../../src/coordination/queue/queue-types.ts'
import { QUEUE_GROUP, QUEUE_TOPIC, QueueBench, type TestWorker } from '../../support/queue-bench.ts'
import {
  anItem,
  codesOf,
  describePartition,
  readAll,
  refusalOf,
  valuesOf,
} from '../../support/queue-reading.ts'

const LEASE_MS = 30_000
const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const DLQ = deadLetterTopicName(QUEUE_GROUP, QUEUE_TOPIC)
const STATE = `${QUEUE_TOPIC}-0.state`

async function aQueue(
  settings: Readonly<Record<string, string>> = {},
  partitions = 1,
): Promise<QueueBench> {
  return new QueueBench().start(partitions, settings)
}

function configure(
  bench: QueueBench,
  set: Readonly<Record<string, string>>,
  group = QUEUE_GROUP,
): Promise<unknown> {
  return bench.queues.configure(group, { set, clear: [], validateOnly: false })
}

async function settingOf(bench: QueueBench, name: string): Promise<string | undefined> {
  const { config } = await bench.queues.describe(QUEUE_GROUP)
  return config.find((one) => one.name === name)?.value
}

function toReceive(more: Partial<ReceiveRequest> = {}): ReceiveRequest {
  return {
    group: QUEUE_GROUP,
    topic: QUEUE_TOPIC,
    max: 10,
    waitMs: 0,
    maxBytes: 0,
    leaseMs: 0,
    clientId: '',
    host: 'h',
    settings: {},
    ...more,
  }
}

async function receive(
  bench: QueueBench,
  more: Partial<ReceiveRequest> = {},
  afterMs = 5,
  signal: AbortSignal = new AbortController().signal,
): Promise<number[]> {
  const receiving = bench.queues.receive(toReceive(more), signal)
  await bench.clock.advance(afterMs)
  const { deliveries } = await receiving
  return deliveries.flatMap(({ first, end }) =>
    Array.from({ length: end - first }, (_, i) => first + i),
  )
}

async function acceptAll(bench: QueueBench, worker: TestWorker): Promise<number[]> {
  const offsets: number[] = []
  for (; worker.held.length > 0; await bench.clock.advance(1)) {
    offsets.push(...worker.offsets.slice(0, worker.held[0]?.count))
    await worker.say('accept')
  }
  return offsets
}

describe('where a group begins', () => {
  it.each([
    ['earliest', [0, 1, 2, 3]],
    ['latest', []],
    ['-1h', [2, 3]],
    ['@2026-01-01T02:00:00Z', [2, 3]],
    ['-10d', [0, 1, 2, 3]],
    ['@2030-01-01T00:00:00Z', []],
  ])('is as queue.start %s says', async (start, offsets) => {
    const bench = await aQueue({ 'queue.start': start })
    await bench.produce({ records: 2 })
    await bench.clock.advance(2.5 * HOUR_MS)
    await bench.produce({ records: 2 })
    const worker = await bench.work(10)
    expect(worker.offsets).toEqual(offsets)
    await bench.produce({ records: 1 })
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([...offsets, 4])
  })

  it('is the end of a topic by default, and the beginning of a job topic', async () => {
    const bench = await aQueue()
    await bench.topics.create({ name: 'plain', partitions: 1 })
    await bench.topics.create({ name: 'work', partitions: 1, config: { 'jobs.enable': 'true' } })
    for (const topic of ['plain', 'work']) {
      const worker = await bench.work(1, { group: 'others', topic })
      expect((await bench.queues.explain('others', topic, 0, 0)).state).toBe('not-yet')
      await worker.leave()
    }
    await bench.queues.delete('others')
    await bench.produceTo('plain', { records: 1 })
    await bench.produceTo('work', { records: 1 })
    const plain = await bench.work(1, { group: 'others', topic: 'plain' })
    const jobs = await bench.work(1, { group: 'others', topic: 'work' })
    expect([plain.offsets, jobs.offsets]).toEqual([[], [0]])
  })

  it('is the first record of a partition that is added later', async () => {
    const bench = await aQueue({ 'queue.start': 'latest' })
    const worker = await bench.work(10)
    await bench.topics.addPartitions(QUEUE_TOPIC, 3)
    await bench.produce({ records: 2 }, 2)
    await bench.clock.advance(1)
    expect(worker.held).toMatchObject([{ partition: 2, first: 0, end: 2 }])
  })
})

describe('leases', () => {
  it('are told whole: once each, to whoever has asked for as many', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 10 })
    const a = await bench.work(3)
    const b = await bench.work(4)
    expect([a.offsets, b.offsets]).toEqual([
      [0, 1, 2],
      [3, 4, 5, 6],
    ])
    expect(a.held).toMatchObject([{ deliveryCount: 1, failureCount: 0, leaseMs: LEASE_MS }])
    expect(valuesOf(a.held[0] as NonNullable<(typeof a.held)[0]>)).toHaveLength(3)
  })

  it('do not come for credit that was taken back, not even what is being looked up just then', async () => {
    const bench = await aQueue()
    const a = await bench.work(5)
    a.session.credit(0, 0, true)
    await bench.produce({ records: 3 })
    await bench.clock.advance(1)
    expect(a.offsets).toEqual([])
    a.session.credit(5, 1 << 20)
    await Promise.resolve()
    a.session.credit(0, 0, true)
    await bench.clock.advance(1)
    expect(a.offsets).toEqual([])
    const b = await bench.work(5)
    expect(b.offsets).toEqual([0, 1, 2])
    a.session.credit(2, 1 << 20, true)
    await bench.produce({ records: 3 })
    await bench.clock.advance(1)
    expect(a.offsets.length + b.offsets.length).toBe(6)
  })

  it('run out, which is a failure, and the record comes again', async () => {
    const bench = await aQueue({ 'retry.backoff.type': 'none' })
    await bench.produce({ records: 1 })
    const a = await bench.work(1)
    const b = await bench.work(1)
    const [old] = a.held
    await bench.clock.advance(LEASE_MS + 200)
    expect(a.lost).toHaveLength(1)
    const next = [...a.held, ...b.held]
    expect(next).toMatchObject([{ first: 0, deliveryCount: 2, failureCount: 1 }])
    if (old === undefined) throw new Error('nothing came')
    expect(codesOf(await a.session.acknowledge([anItem(old, 'accept')]))).toEqual(['LEASE_LOST'])
    expect((await bench.queues.describe(QUEUE_GROUP)).counters).toMatchObject({ expired: 1 })
  })

  it('are renewed, up to a limit', async () => {
    const bench = await aQueue({ 'queue.lease.max.total.ms': '100s' })
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    const [delivery] = worker.held
    const codes: string[] = []
    for (let i = 0; i < 6; i++) {
      await bench.clock.advance(15_000)
      codes.push(...codesOf(await worker.say('renew')))
    }
    expect(codes).toEqual(['LEASE_LIMIT_REACHED'])
    expect(worker.held).toEqual([delivery])
    await bench.clock.advance(10_200)
    expect(worker.held).toEqual([])
  })

  it('are as long as the worker says, and no renewal makes them shorter', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1, { leaseMs: 60_000 })
    await worker.say('renew', { delayMs: 1 })
    await bench.clock.advance(59_000)
    expect(worker.held).toHaveLength(1)
    await bench.clock.advance(1200)
    expect(worker.held).toHaveLength(0)
  })

  it('live on when a connection breaks, and the same member comes back to them', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 2 })
    const worker = await bench.work(1)
    const [delivery] = worker.held
    worker.session.detach()
    await bench.clock.advance(5000)
    const back = await bench.work(1, { memberId: worker.session.memberId })
    expect(back.session).toMatchObject({ resumed: true, leased: 2 })
    if (delivery === undefined) throw new Error('nothing came')
    expect(await back.session.acknowledge([anItem(delivery, 'accept')])).toEqual([])
    // The old stream says nothing for the member any more.
    worker.session.credit(100, 1 << 20)
    worker.session.detach()
    expect(back.session.leased).toBe(1)
  })

  it('end the stream that a second one of the same member replaces', async () => {
    const bench = await aQueue()
    const worker = await bench.work(0)
    await bench.work(0, { memberId: worker.session.memberId })
    expect(worker.error?.code).toBe('UNKNOWN_MEMBER')
    expect((await bench.queues.describe(QUEUE_GROUP)).members).toHaveLength(1)
  })

  it('end soon after a connection broke with queue.release.on.disconnect, which is no failure', async () => {
    const bench = await aQueue({ 'queue.release.on.disconnect': 'true' })
    await bench.produce({ records: 1 })
    const a = await bench.work(1)
    const b = await bench.work(1)
    a.session.detach()
    await bench.clock.advance(1900)
    expect(b.held).toEqual([])
    await bench.clock.advance(200)
    expect(b.held).toMatchObject([{ deliveryCount: 2, failureCount: 0 }])
    expect((await bench.queues.describe(QUEUE_GROUP)).members).toHaveLength(1)
  })

  it('are released by a clean leave, durably', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 3 })
    const a = await bench.work(3)
    await a.leave()
    expect(await describePartition(bench)).toMatchObject({ acquired: 0, ready: 3 })
    await bench.restart()
    const b = await bench.work(3)
    expect(b.held).toMatchObject([{ first: 0, end: 3, deliveryCount: 2, failureCount: 0 }])
    expect((await bench.queues.describe(QUEUE_GROUP)).members).toHaveLength(1)
  })

  it('of before a restart are lost', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    const [delivery] = worker.held
    await bench.restart()
    const next = await bench.work(1)
    if (delivery === undefined) throw new Error('nothing came')
    expect(codesOf(await next.session.acknowledge([anItem(delivery, 'accept')]))).toEqual([
      'LEASE_LOST',
    ])
    expect(next.held).toMatchObject([{ deliveryCount: 1 }])
  })

  it('of before a restart count with queue.persist.acquire', async () => {
    const bench = await aQueue({ 'queue.persist.acquire': 'true' })
    await bench.produce({ records: 1 })
    await bench.work(1)
    await bench.restart()
    expect((await bench.work(1)).held).toMatchObject([{ deliveryCount: 2, failureCount: 0 }])
  })

  it('are over when the state of the queue could not be written, and the records come again', async () => {
    const bench = await aQueue({ 'concurrency.max': '2' })
    await bench.produce({ records: 4 })
    const worker = await bench.work(4)
    expect(worker.offsets).toEqual([0, 1])
    let failures = 0
    bench.faults.aroundAppend = async (name, append) => {
      if (name === STATE && failures++ === 0) throw new BrokerError('STORAGE_ERROR', 'once')
      return append()
    }
    expect(codesOf(await worker.say('accept'))).toEqual(['STORAGE_ERROR'])
    await bench.clock.advance(2000)
    // Room is counted from the beginning.
    expect(worker.offsets).toEqual([0, 1])
    expect(await acceptAll(bench, worker)).toEqual([0, 1, 2, 3])
    expect(await describePartition(bench)).toMatchObject({ startOffset: 4, error: undefined })
  })
})

describe('acknowledgements', () => {
  it('are answered when they are durable, and not before', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    let letGo: () => void = () => undefined
    const gate = new Promise<void>((resolve) => {
      letGo = resolve
    })
    bench.faults.aroundAppend = async (_name, append) => {
      await gate
      return append()
    }
    let isAnswered = false
    const saying = worker.say('accept').then(() => (isAnswered = true))
    await bench.clock.advance(100)
    expect(isAnswered).toBe(false)
    letGo()
    await saying
    await bench.restart()
    expect((await bench.work(1)).offsets).toEqual([])
  })

  it('may be repeated, with the same verdict', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 4 })
    const worker = await bench.work(4)
    const [delivery] = worker.held
    if (delivery === undefined) throw new Error('nothing came')
    const part = (first: number, end: number): typeof delivery => ({
      ...delivery,
      first: toOffset(first),
      end: toOffset(end),
    })
    const { session } = worker
    expect(await session.acknowledge([anItem(part(1, 2), 'accept')])).toEqual([])
    expect(await session.acknowledge([anItem(part(0, 3), 'accept')])).toEqual([])
    expect(codesOf(await session.acknowledge([anItem(part(0, 1), 'retry')]))).toEqual([
      'LEASE_LOST',
    ])
    expect(await session.acknowledge([anItem(part(3, 4), 'release', { delayMs: 9 })])).toEqual([])
    expect(await session.acknowledge([anItem(part(3, 4), 'release', { delayMs: 9 })])).toEqual([])
    expect(codesOf(await session.acknowledge([anItem(delivery, 'accept')]))).toEqual(['LEASE_LOST'])
    expect((await bench.queues.describe(QUEUE_GROUP)).counters).toMatchObject({
      accepted: 3,
      released: 1,
    })
  })

  it('are refused with their names', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 4 })
    const worker = await bench.work(4)
    const [delivery] = worker.held
    if (delivery === undefined) throw new Error('nothing came')
    const say = async (...items: Parameters<typeof anItem>[]): Promise<string[]> =>
      codesOf(await worker.session.acknowledge(items.map((item) => anItem(...item))))
    const at = (first: number, end: number): typeof delivery => ({
      ...delivery,
      first: first as typeof delivery.first,
      end: end as typeof delivery.end,
    })
    expect(await say([at(0, 5), 'accept'])).toEqual(['INVALID_ACK_RANGE'])
    expect(await say([at(2, 2), 'accept'])).toEqual(['INVALID_ACK_RANGE'])
    expect(await say([at(0.5, 2), 'accept'])).toEqual(['INVALID_ACK_RANGE'])
    expect(await say([at(0, 2), 'accept'], [at(1, 3), 'retry'])).toEqual([
      'INVALID_ACK_RANGE',
      'INVALID_ACK_RANGE',
    ])
    expect(await say([delivery, 'retry', { delayMs: 31 * DAY_MS }])).toEqual(['INVALID_DELAY'])
    expect(await say([delivery, 'retry', { delayMs: Number.NaN }])).toEqual(['INVALID_DELAY'])
    const odd = { ...delivery, token: new Uint8Array(3) }
    expect(await say([odd, 'accept'], [at(0, 1), 'accept'])).toEqual(['INVALID_LEASE_TOKEN'])
    const foreign = { ...delivery, token: new Uint8Array(16) }
    expect(await say([foreign, 'accept'])).toEqual(['LEASE_LOST'])
    expect(worker.session.leased).toBe(3)
    // A token is good in its own group only.
    await configure(bench, {}, 'others')
    const failures = await bench.queues.acknowledge('others', [anItem(at(1, 2), 'accept')])
    expect(codesOf(failures)).toEqual(['LEASE_LOST'])
    expect(await refusalOf(bench.queues.acknowledge('nobody', []))).toBe('UNKNOWN_GROUP')
  })

  it('of a release bring the record back at once, after a delay, or after a rest of the group', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    await worker.say('release')
    await bench.clock.advance(1)
    expect(worker.held).toMatchObject([{ deliveryCount: 2, failureCount: 0 }])
    await worker.say('release', { delayMs: 5000 })
    await bench.clock.advance(4999)
    expect(worker.held).toEqual([])
    await bench.clock.advance(2)
    expect(worker.held).toMatchObject([{ deliveryCount: 3 }])
    const [delivery] = worker.held.splice(0)
    if (delivery === undefined) throw new Error('nothing came')
    await worker.session.acknowledge([anItem(delivery, 'release', { pauseGroupMs: 60_000 })])
    worker.session.credit(1, 0)
    await bench.clock.advance(59_000)
    expect(worker.held).toEqual([])
    expect(worker.notice?.throttledUntilMs).toBeGreaterThan(bench.clock.wallMs())
    await bench.clock.advance(2000)
    expect(worker.held).toMatchObject([{ deliveryCount: 4, failureCount: 0 }])
  })

  it('of one stuck record stop nobody else', async () => {
    const bench = await aQueue({ 'queue.max.inflight.per.partition': '100' })
    for (let i = 0; i < 20; i++) await bench.produce({ records: 100 })
    const stuck = await bench.work(1)
    expect(stuck.offsets).toEqual([0])
    const worker = await bench.work(50)
    expect(await acceptAll(bench, worker)).toHaveLength(1999)
    expect(await stuck.say('renew')).toEqual([])
    expect(await describePartition(bench)).toMatchObject({ acquired: 1, runs: 1, done: 1999 })
  })
})

describe('retries', () => {
  it.each([
    [{ 'retry.backoff.type': 'none' }, [0, 0, 0]],
    [{ 'retry.backoff.type': 'fixed', 'retry.backoff.initial.ms': '3s' }, [3000, 3000, 3000]],
    [{ 'retry.backoff.type': 'linear', 'retry.backoff.initial.ms': '1s' }, [1000, 2000, 3000]],
    [{ 'retry.backoff.initial.ms': '1s' }, [1000, 2000, 4000]],
    [{ 'retry.backoff.initial.ms': '1s', 'retry.backoff.max.ms': '1500' }, [1000, 1500, 1500]],
    [{ 'retry.backoff.type': 'list', 'retry.backoff.list.ms': '1s,5s' }, [1000, 5000, 5000]],
  ])('wait as %j says', async (settings, delays) => {
    const bench = await aQueue({ 'retry.backoff.jitter': '0', ...settings })
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    for (const [i, delayMs] of delays.entries()) {
      expect(worker.held).toMatchObject([{ failureCount: i }])
      await worker.say('retry')
      if (delayMs > 0) {
        await bench.clock.advance(delayMs - 1)
        expect(worker.held).toEqual([])
      }
      await bench.clock.advance(1)
    }
    expect(worker.held).toMatchObject([{ failureCount: 3, deliveryCount: 4 }])
  })

  it('wait as long as the worker says', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    await worker.say('retry', { delayMs: 0 })
    await bench.clock.advance(1)
    expect(worker.held).toHaveLength(1)
    await worker.say('retry', { delayMs: 2 * DAY_MS })
    await bench.clock.advance(2 * DAY_MS - 10)
    expect(worker.held).toEqual([])
    await bench.clock.advance(20)
    expect(worker.held).toHaveLength(1)
  })

  it('go by what the record says of itself, within what the group allows', async () => {
    const bench = await aQueue({ 'dlq.enable': 'true', 'retry.max.attempts': '3' })
    const header = (key: string, value: string): { key: string; value: Uint8Array } => ({
      key,
      value: Buffer.from(value),
    })
    await bench.produce({ records: 1, headers: [header(ATTEMPTS_HEADER, '1')] })
    await bench.produce({ records: 1, headers: [header(ATTEMPTS_HEADER, '9')] })
    await bench.produce({ records: 1, headers: [header(BACKOFF_HEADER, 'fixed:7s')] })
    await bench.produce({ records: 1, headers: [header(BACKOFF_HEADER, 'nonsense')] })
    const worker = await bench.work(4)
    while (worker.held.length > 0) await worker.say('retry')
    await bench.clock.advance(1)
    expect(await bench.explain(0)).toMatchObject({ state: 'dead' })
    expect(await bench.explain(1)).toMatchObject({ state: 'parked', failureCount: 1 })
    const own = (await bench.explain(2)).dueMs ?? 0
    expect(own - bench.clock.wallMs()).toBeGreaterThan(5000)
    const usual = (await bench.explain(3)).dueMs ?? 0
    expect(usual - bench.clock.wallMs()).toBeLessThanOrEqual(1000)
  })

  it('are remembered over a restart, with their time and their errors', async () => {
    const bench = await aQueue({ 'retry.backoff.jitter': '0', 'retry.backoff.initial.ms': '10s' })
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    await worker.say('retry', { message: 'why' })
    await bench.restart()
    const next = await bench.work(1)
    expect((await bench.explain(0)).failures).toMatchObject([{ error: { message: 'why' } }])
    await bench.clock.advance(9000)
    expect(next.held).toEqual([])
    await bench.clock.advance(1001)
    expect(next.held).toMatchObject([{ failureCount: 1, deliveryCount: 2 }])
  })

  it('end with the last attempt, whatever ended it', async () => {
    const bench = await aQueue({
      'dlq.enable': 'true',
      'retry.max.attempts': '2',
      'retry.backoff.type': 'fixed',
      'retry.backoff.initial.ms': '1m',
      'retry.backoff.jitter': '0',
    })
    await bench.produce({ records: 1 })
    await bench.produce({ records: 1 })
    const worker = await bench.work(2)
    await worker.say('retry')
    await bench.clock.advance(60_001)
    expect(worker.held).toMatchObject([{ first: 0, failureCount: 1 }])
    await worker.say('retry')
    await bench.clock.advance(90_000)
    const reasons = (await readAll(bench, DLQ)).map(({ headers }) => headers['dlq.reason'])
    expect(reasons).toEqual(['attempts_exhausted', 'lease_expired'])
  })

  it('go on for ever with retry.max.attempts=0, but for queue.max.deliveries', async () => {
    const settings = { 'retry.max.attempts': '0', 'retry.backoff.type': 'none' }
    const bench = await aQueue({ ...settings, 'dlq.enable': 'true' })
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    for (let i = 0; i < 50; i++) {
      expect(worker.held).toMatchObject([{ failureCount: i }])
      await worker.say('retry')
      await bench.clock.advance(1)
    }
    await configure(bench, { 'queue.max.deliveries': '60' })
    for (let i = 0; i < 10; i++) {
      await worker.say(i % 2 === 0 ? 'release' : 'retry')
      await bench.clock.advance(10)
    }
    expect(worker.held).toEqual([])
    expect(await bench.explain(0)).toMatchObject({ state: 'dead' })
  })

  it('find the one record that kills its workers, and no other', async () => {
    const bench = await aQueue({ 'dlq.enable': 'true', 'retry.backoff.type': 'none' })
    const poison = 137
    await bench.produce({ records: 500 })
    for (let deaths = 0; ; deaths++) {
      expect(deaths).toBeLessThan(40)
      const worker = await bench.work(500)
      const kills = (): boolean =>
        worker.held.some(({ first, end }) => first <= poison && poison < end)
      while (worker.held.length > 0 && !kills()) {
        await worker.say('accept')
        await bench.clock.advance(1)
      }
      if (kills()) {
        worker.session.detach()
        await bench.clock.advance(LEASE_MS + 200)
        continue
      }
      await worker.leave()
      if ((await describePartition(bench)).startOffset === 500) break
    }
    const dead = await readAll(bench, DLQ)
    expect(dead.map(({ headers }) => headers['dlq.offset'])).toEqual([String(poison)])
    expect(dead[0]?.headers['dlq.reason']).toBe('lease_expired')
    expect((await bench.queues.describe(QUEUE_GROUP)).counters).toMatchObject({ accepted: 499 })
  })
})

describe('what becomes of the dead', () => {
  it('is a topic made for them', async () => {
    const bench = await aQueue({ 'dlq.enable': 'true', 'dlq.topic': 'graveyard' })
    await bench.produce({ records: 1 })
    await (await bench.work(1)).say('reject')
    await bench.clock.advance(10)
    expect(await readAll(bench, 'graveyard')).toHaveLength(1)
    expect(bench.topics.get('graveyard').config).toMatchObject({ dlq: true })
  })

  it('is nothing where none are kept, but they are counted', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 2 })
    const worker = await bench.work(2)
    await worker.say('reject')
    await bench.clock.advance(10)
    expect((await bench.queues.describe(QUEUE_GROUP)).counters).toMatchObject({
      rejected: 2,
      dropped: 2,
      deadLettered: 0,
    })
    expect(await bench.explain(0)).toMatchObject({ state: 'dead' })
  })

  it('is for an operator to say with dlq.policy=block', async () => {
    const bench = await aQueue({ 'dlq.policy': 'block', order: 'key' })
    await bench.produce({ records: 3, key: 'a' })
    const worker = await bench.work(3)
    await worker.say('reject')
    await bench.clock.advance(10)
    expect(worker.held).toEqual([])
    expect(await bench.explain(1)).toMatchObject({ blockedByOffset: 0 })
    const unblock = (offset: number, skip: boolean): Promise<void> =>
      bench.queues.unblock(QUEUE_GROUP, QUEUE_TOPIC, 0, offset, skip)
    expect(await refusalOf(unblock(1, true))).toBe('INVALID_REQUEST')
    await bench.restart()
    const next = await bench.work(3)
    expect(next.held).toEqual([])
    await unblock(0, false)
    await bench.clock.advance(1)
    expect(next.held).toMatchObject([{ first: 0, failureCount: 0 }])
    await next.say('reject')
    await unblock(0, true)
    await bench.clock.advance(1)
    expect(next.offsets).toEqual([1])
  })

  it('is refused where it would go round, or to a topic of another kind', async () => {
    const bench = await aQueue()
    await bench.topics.create({ name: 'd1', partitions: 1, config: { dlq: 'true' } })
    await bench.topics.create({ name: 'd2', partitions: 1, config: { dlq: 'true' } })
    await bench.topics.create({ name: 'plain', partitions: 1 })
    await bench.work(0)
    expect(await refusalOf(configure(bench, { 'dlq.topic': 'plain' }))).toBe('NOT_A_DLQ')
    expect(await refusalOf(configure(bench, { 'dlq.topic': '__offsets' }))).toBe('INVALID_CONFIG')
    await configure(bench, { 'dlq.topic': 'd1' })
    await bench.work(0, { group: 'second', topic: 'd1' })
    expect(await refusalOf(configure(bench, { 'dlq.topic': 'd1' }, 'second'))).toBe('DLQ_CYCLE')
    const check = bench.queues.configure('second', {
      set: { 'dlq.topic': 'd1' },
      clear: [],
      validateOnly: true,
    })
    expect(await refusalOf(check)).toBe('DLQ_CYCLE')
    await configure(bench, { 'dlq.topic': 'd2' }, 'second')
    const third = bench.work(0, { group: 'third', topic: 'd2', settings: { 'dlq.topic': 'd1' } })
    expect(await refusalOf(third)).toBe('DLQ_CYCLE')
    expect(await settingOf(bench, 'dlq.topic')).toBe('d1')
  })
})

describe('order, concurrency and rate', () => {
  it('keep a key with one worker at a time, also over a restart', async () => {
    const bench = await aQueue({ order: 'key', 'retry.backoff.initial.ms': '10s' })
    await bench.produce({ keys: ['a', 'a', 'b', undefined, undefined] })
    const worker = await bench.work(9)
    expect(worker.offsets).toEqual([0, 2, 3, 4])
    await worker.say('retry')
    await bench.restart()
    const next = await bench.work(9)
    expect(next.offsets).toEqual([2, 3, 4])
    await bench.clock.advance(11_000)
    expect(next.offsets).toEqual([2, 3, 4, 0])
    await next.say('accept', { delivery: next.held.at(-1) ?? fail() })
    await bench.clock.advance(1)
    expect(next.offsets).toEqual([2, 3, 4, 1])
  })

  it('let others of a key pass one that is to be tried again with order.on.failure=skip', async () => {
    const bench = await aQueue({ order: 'key', 'order.on.failure': 'skip' })
    await bench.produce({ records: 3, key: 'a' })
    const worker = await bench.work(3)
    await worker.say('retry', { delayMs: 5000 })
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([1])
    await bench.clock.advance(5000)
    await worker.say('accept')
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([0])
  })

  it('go by the ordering key where there is one', async () => {
    const bench = await aQueue({ order: 'key' })
    const headers = [{ key: ORDERING_KEY_HEADER, value: Buffer.from('x') }]
    await bench.produce({ keys: ['a', 'b'], headers })
    const worker = await bench.work(2)
    expect(worker.offsets).toEqual([0])
  })

  it('keep a whole partition in order, also over a restart', async () => {
    const bench = await aQueue({ order: 'partition' }, 2)
    await bench.produce({ records: 3 })
    await bench.produce({ records: 3 }, 1)
    const worker = await bench.work(9)
    expect(worker.held).toMatchObject([
      { partition: 0, first: 0, end: 1 },
      { partition: 1, first: 0, end: 1 },
    ])
    await worker.say('retry', { delayMs: 60_000 })
    await bench.restart()
    const next = await bench.work(9)
    expect(next.held).toMatchObject([{ partition: 1, first: 0 }])
    await bench.clock.advance(60_001)
    const first = next.held.find((one) => one.partition === 0) ?? fail()
    expect(first).toMatchObject({ first: 0, end: 1 })
    await next.say('accept', { delivery: first })
    await bench.clock.advance(1)
    expect(next.held.filter((one) => one.partition === 0)).toMatchObject([{ first: 1 }])
  })

  it('stop looking for keys when too many are busy, and say so', async () => {
    const bench = await aQueue({ order: 'key', 'order.max.busy.keys': '3' })
    await bench.produce({ keys: ['a', 'b', 'c', 'a', 'd', 'e'] })
    const worker = await bench.work(9)
    expect(worker.offsets).toEqual([0, 1, 2])
    expect(worker.notice?.windowFull).toBe(true)
    expect((await bench.explain(5)).reason).toContain('looks no further')
    expect(await acceptAll(bench, worker)).toEqual([0, 1, 2, 3, 4, 5])
    expect(worker.notice?.windowFull).toBe(false)
  })

  it('give out so many at a time, and of a key so many', async () => {
    const bench = await aQueue({ 'concurrency.max': '4', 'concurrency.key.max': '2' }, 2)
    await bench.produce({ keys: ['a', 'a', 'a', 'b'] })
    await bench.produce({ keys: ['a', 'c', 'd'] }, 1)
    const worker = await bench.work(9)
    const keyA = (): number =>
      worker.held.filter((one) => (one.partition === 0 ? one.first < 3 : one.first === 0)).length
    expect(worker.held).toHaveLength(4)
    expect(keyA()).toBe(2)
    let most = 0
    let done = 0
    for (; worker.held.length > 0; done++) {
      await worker.say('accept')
      await bench.clock.advance(1)
      most = Math.max(most, worker.held.length)
      expect(keyA()).toBeLessThanOrEqual(2)
    }
    expect([most, done]).toEqual([4, 7])
  })

  it('count concurrency by a header where one is named', async () => {
    const bench = await aQueue({ 'concurrency.key': 'tenant', 'concurrency.key.max': '1' })
    const tenant = (name: string): { key: string; value: Uint8Array }[] => [
      { key: 'tenant', value: Buffer.from(name) },
    ]
    await bench.produce({ records: 2, headers: tenant('x') })
    await bench.produce({ records: 2, headers: tenant('y') })
    await bench.produce({ records: 2 })
    const worker = await bench.work(9)
    expect(worker.offsets).toEqual([0, 2, 4, 5])
  })

  it('give out no more than the rate, and begin a restart with nothing saved', async () => {
    const bench = await aQueue({ 'rate.max': '10', 'rate.duration.ms': '1s' })
    await bench.produce({ records: 100 })
    const worker = await bench.work(100)
    await bench.clock.advance(5000)
    expect(worker.offsets.length).toBeGreaterThanOrEqual(49)
    expect(worker.offsets.length).toBeLessThanOrEqual(60)
    expect(worker.notice?.throttledUntilMs).toBeGreaterThan(0)
    await bench.clock.advance(10_000)
    await bench.restart()
    const next = await bench.work(100)
    expect(next.offsets.length).toBeLessThanOrEqual(1)
    await bench.clock.advance(1000)
    expect(next.offsets.length).toBeLessThanOrEqual(11)
    expect(next.offsets.length).toBeGreaterThanOrEqual(9)
  })

  it('give the room that one topic did not use to another', async () => {
    const bench = await aQueue({ 'concurrency.max': '1', 'queue.delay.ms': '10m' })
    await bench.topics.create({ name: 'other', partitions: 1 })
    const a = await bench.work(0)
    const b = await bench.work(0, { topic: 'other' })
    await bench.queues.pause(QUEUE_GROUP, 0)
    await bench.produceTo('other', { records: 1 })
    await bench.clock.advance(9 * 60_000)
    await bench.produce({ records: 1 })
    await bench.clock.advance(2 * 60_000)
    a.session.credit(1, 1 << 20)
    b.session.credit(1, 1 << 20)
    await bench.clock.advance(1)
    await bench.queues.resume(QUEUE_GROUP)
    await bench.clock.advance(1)
    expect([a.held.length, b.held.length]).toEqual([0, 1])
  })
})

function fail(): never {
  throw new Error('it is not there')
}

describe('a group', () => {
  it('rests while it is paused, also over a restart', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 2 })
    const worker = await bench.work(1)
    await bench.queues.pause(QUEUE_GROUP, 0)
    expect(await worker.say('accept')).toEqual([])
    await bench.clock.advance(10)
    expect(worker.held).toEqual([])
    expect(worker.notice?.paused).toBe(true)
    await bench.restart()
    const next = await bench.work(1)
    expect(next.held).toEqual([])
    expect(await bench.queues.describe(QUEUE_GROUP)).toMatchObject({
      paused: true,
      pausedUntilMs: 0,
    })
    await bench.queues.resume(QUEUE_GROUP)
    await bench.clock.advance(1)
    expect(next.offsets).toEqual([1])
    await bench.restart()
    expect(await bench.queues.describe(QUEUE_GROUP)).toMatchObject({ paused: false })
  })

  it('goes on by itself when a pause ends', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1, {})
    await worker.say('release', { delayMs: 1000 })
    const untilMs = bench.clock.wallMs() + 5 * HOUR_MS
    await bench.queues.pause(QUEUE_GROUP, untilMs)
    expect(await bench.queues.describe(QUEUE_GROUP)).toMatchObject({ pausedUntilMs: untilMs })
    await bench.clock.advance(5 * HOUR_MS - 1000)
    expect(worker.held).toEqual([])
    await bench.clock.advance(1001)
    expect(worker.held).toHaveLength(1)
    expect(await refusalOf(bench.queues.pause(QUEUE_GROUP, 1))).toBe('INVALID_REQUEST')
  })

  it('keeps its settings over a restart, also those that workers bring at the same time', async () => {
    const bench = await aQueue()
    await Promise.all([
      bench.work(0, { settings: { 'queue.lease.ms': '45s' } }),
      bench.work(0, { settings: { 'retry.max.attempts': '9' } }),
      configure(bench, { order: 'key' }),
    ])
    const expected = ['45s', '9', 'key']
    const names = ['queue.lease.ms', 'retry.max.attempts', 'order']
    const now = (): Promise<(string | undefined)[]> =>
      Promise.all(names.map((name) => settingOf(bench, name)))
    const before = await now()
    expect(before.slice(1)).toEqual(expected.slice(1))
    expect(['45s', '45000']).toContain(before[0])
    await bench.restart()
    expect(await now()).toEqual(before)
  })

  it('is of one type for life', async () => {
    const bench = await aQueue()
    await bench.groups.declare('stream', 'stream')
    expect(await refusalOf(bench.work(0, { group: 'stream' }))).toBe('GROUP_TYPE_MISMATCH')
    expect(await refusalOf(bench.groups.declare(QUEUE_GROUP, 'stream'))).toBe('GROUP_TYPE_MISMATCH')
  })

  it.each([
    [{ group: 'a/b' }, 'INVALID_GROUP_ID'],
    [{ topic: 'nothing' }, 'UNKNOWN_TOPIC'],
    [{ topic: '__queues' }, 'TOPIC_INTERNAL'],
    [{ leaseMs: 999 }, 'INVALID_REQUEST'],
    [{ settings: { 'queue.lease': '1s' } }, 'INVALID_CONFIG'],
    [{ settings: { 'retry.backoff.type': 'list' } }, 'INVALID_BACKOFF'],
  ])('is refused a worker that wants %j', async (request, code) => {
    const bench = await aQueue()
    await bench.work(0)
    expect(await refusalOf(bench.work(0, request))).toBe(code)
  })

  it('has so many members and no more', async () => {
    const bench = await aQueue({ 'queue.max.members': '2' })
    const worker = await bench.work(0)
    await bench.work(0)
    expect(await refusalOf(bench.work(0))).toBe('GROUP_FULL')
    expect((await bench.work(0, { memberId: worker.session.memberId })).session.resumed).toBe(true)
  })

  it('that is not there cannot be looked at', async () => {
    const { queues } = await aQueue()
    const signal = new AbortController().signal
    expect(await refusalOf(queues.describe('x'))).toBe('UNKNOWN_GROUP')
    expect(await refusalOf(queues.pause('x', 0))).toBe('UNKNOWN_GROUP')
    expect(await refusalOf(queues.resume('x'))).toBe('UNKNOWN_GROUP')
    expect(await refusalOf(queues.delete('x'))).toBe('UNKNOWN_GROUP')
    expect(await refusalOf(queues.receive(toReceive({ topic: 'nothing' }), signal))).toBe(
      'UNKNOWN_TOPIC',
    )
    for (const bad of [{ max: 0 }, { max: 1001 }, { waitMs: 30_001 }, { leaseMs: 1 }])
      expect(await refusalOf(queues.receive(toReceive(bad), signal))).toBe('INVALID_REQUEST')
  })

  it('is forgotten with all it knew, and begins anew under its name, at once', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 3 })
    const worker = await bench.work(3)
    expect(await refusalOf(bench.queues.delete(QUEUE_GROUP))).toBe('GROUP_NOT_EMPTY')
    await worker.say('accept')
    await worker.leave()
    const deleting = bench.queues.delete(QUEUE_GROUP)
    const next = await bench.work(3, { settings: { 'queue.start': 'earliest' } })
    await deleting
    expect(next.offsets).toEqual([0, 1, 2])
    await next.say('accept')
    await bench.restart()
    expect((await bench.work(3)).offsets).toEqual([])
  })

  it('gives out nothing more when the broker stops, and takes what is said', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 2 })
    const worker = await bench.work(1)
    bench.queues.drain()
    expect(await worker.say('accept')).toEqual([])
    await bench.clock.advance(10)
    expect(worker.held).toEqual([])
    expect(await refusalOf(bench.work(1))).toBe('BROKER_DRAINING')
    await bench.queues.close(new BrokerError('BROKER_DRAINING', 'the broker stops'))
    expect(worker.error?.code).toBe('BROKER_DRAINING')
  })

  it('is told when its topic is deleted, and knows nothing of a new one of that name', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 3 })
    const worker = await bench.work(3)
    await worker.say('accept')
    await bench.topics.delete(QUEUE_TOPIC)
    await bench.clock.advance(10)
    expect(worker.error?.code).toBe('UNKNOWN_TOPIC')
    await bench.topics.create({ name: QUEUE_TOPIC, partitions: 1 })
    await bench.produce({ records: 2 })
    const next = await bench.work(3)
    expect(next.offsets).toEqual([0, 1])
    await bench.clock.advance(6 * 60_000)
    expect(await describePartition(bench)).toMatchObject({ error: undefined })
  })

  it('does not begin a new topic where the old one of that name began, whose state could not be loaded', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 3 })
    await (await bench.work(0)).leave()
    await bench.topics.getPartition(QUEUE_TOPIC, 0).advanceLogStart(toOffset(3))
    bench.refuseToOpen(STATE)
    await bench.restart()
    bench.faults.unopenable.clear()
    await bench.topics.delete(QUEUE_TOPIC)
    await bench.topics.create({ name: QUEUE_TOPIC, partitions: 1 })
    // When the old one's state would have been looked for again.
    await bench.clock.advance(60_000)
    await bench.produce({ records: 2 })
    expect((await bench.work(3)).offsets).toEqual([0, 1])
  })

  it('is not deleted while its state cannot be loaded, and is gone whole afterwards', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 3 })
    const worker = await bench.work(3)
    await worker.say('accept')
    await worker.leave()
    bench.refuseToOpen(STATE)
    await bench.restart()
    expect(await refusalOf(bench.queues.delete(QUEUE_GROUP))).toBe('STORAGE_ERROR')
    expect((await bench.queues.describe(QUEUE_GROUP)).group).toBe(QUEUE_GROUP)
    bench.faults.unopenable.clear()
    await bench.clock.advance(40_000)
    await bench.queues.delete(QUEUE_GROUP)
    const set = { 'queue.start': 'earliest' }
    await bench.queues.configure(QUEUE_GROUP, { set, clear: [], validateOnly: false })
    expect((await bench.work(3)).offsets).toEqual([0, 1, 2])
  })

  it('goes on with its other partitions when the state of one cannot be loaded', async () => {
    const bench = await aQueue({}, 2)
    await bench.produce({ records: 1 })
    await bench.produce({ records: 1 }, 1)
    await (await bench.work(0)).leave()
    bench.refuseToOpen(STATE)
    await bench.restart()
    const worker = await bench.work(5)
    expect(worker.held).toMatchObject([{ partition: 1 }])
    expect((await describePartition(bench)).error?.code).toBe('STORAGE_ERROR')
    expect(await refusalOf(bench.explain(0))).toBe('STORAGE_ERROR')
    bench.faults.unopenable.clear()
    await bench.clock.advance(40_000)
    expect(worker.held.map((one) => one.partition)).toContain(0)
    expect((await describePartition(bench)).error).toBeUndefined()
  })

  it('leaves nothing open of a topic that could not be opened whole', async () => {
    const bench = await aQueue({}, 2)
    await bench.produce({ records: 1 })
    bench.faults.unopenable.set(
      `${QUEUE_TOPIC}-1.state`,
      new BrokerError('STORAGE_ERROR', 'not now'),
    )
    const timers = bench.clock.pendingTimers
    expect(await refusalOf(bench.work(1))).toBe('STORAGE_ERROR')
    bench.faults.unopenable.clear()
    const worker = await bench.work(1)
    await worker.say('retry', { delayMs: 1000 })
    await bench.clock.advance(1001)
    expect(worker.offsets).toEqual([0])
    expect(bench.clock.pendingTimers).toBeGreaterThan(timers)
    await bench.topics.getPartition(QUEUE_TOPIC, 0).advanceLogStart('end')
    await bench.clock.advance(1)
    expect((await bench.queues.describe(QUEUE_GROUP)).counters.lostToRetention).toBe(1)
  })
})

describe('receive', () => {
  it('answers at once with what there is, or that there is nothing', async () => {
    const bench = await aQueue({}, 3)
    expect(await receive(bench)).toEqual([])
    for (const partition of [0, 1, 2]) await bench.produce({ records: 2 }, partition)
    expect((await receive(bench)).length).toBe(6)
    expect(await receive(bench)).toEqual([])
  })

  it('waits for something to come', async () => {
    const bench = await aQueue()
    const receiving = receive(bench, { waitMs: 20_000 }, 19_000)
    await bench.clock.advance(5000)
    await bench.produce({ records: 2 })
    expect(await receiving).toEqual([0, 1])
    expect(await receive(bench, { waitMs: 1000 }, 1001)).toEqual([])
  })

  it('gives no more than was asked for', async () => {
    const bench = await aQueue({}, 4)
    for (const partition of [0, 1, 2, 3]) await bench.produce({ records: 5 }, partition)
    expect(await receive(bench, { max: 7 })).toHaveLength(7)
  })

  it('has leases that are settled by token, and members that are gone with them', async () => {
    const bench = await aQueue({ 'queue.release.on.disconnect': 'true' })
    await bench.produce({ records: 2 })
    const receiving = bench.queues.receive(toReceive(), new AbortController().signal)
    await bench.clock.advance(5)
    const { deliveries } = await receiving
    // Nobody has been disconnected: it has had its answer.
    await bench.clock.advance(10_000)
    expect(await bench.explain(0)).toMatchObject({ state: 'acquired' })
    expect((await bench.queues.describe(QUEUE_GROUP)).members).toMatchObject([{ acquired: 2 }])
    const items = deliveries.map((delivery) => anItem(delivery, 'accept'))
    expect(await bench.queues.acknowledge(QUEUE_GROUP, items)).toEqual([])
    expect((await bench.queues.describe(QUEUE_GROUP)).members).toEqual([])
  })

  it('gives back at once what nobody waits for any more', async () => {
    const bench = await aQueue({ 'queue.persist.acquire': 'true' })
    await (await bench.work(0)).leave()
    const abort = new AbortController()
    let letGo: () => void = () => undefined
    const gate = new Promise<void>((resolve) => {
      letGo = resolve
    })
    bench.faults.aroundAppend = async (name, append) => {
      if (name === STATE) await gate
      return append()
    }
    const receiving = receive(bench, { waitMs: 30_000 }, 0, abort.signal)
    await bench.produce({ records: 2 })
    await bench.clock.advance(5)
    expect(await bench.explain(0)).toMatchObject({ state: 'acquired' })
    abort.abort()
    letGo()
    expect(await receiving).toEqual([])
    await bench.clock.advance(5)
    expect(await bench.explain(0)).toMatchObject({ state: 'available' })
    expect((await bench.queues.describe(QUEUE_GROUP)).members).toEqual([])
    expect(await receive(bench, {}, 5, AbortSignal.abort())).toEqual([])
  })
})

describe('retention', () => {
  it('that passes the start takes records from the group, and says how many', async () => {
    const bench = await aQueue()
    await bench.produce({ records: 4 })
    await bench.produce({ records: 4 })
    const worker = await bench.work(2)
    await bench.topics.getPartition(QUEUE_TOPIC, 0).advanceLogStart(toOffset(4))
    await bench.clock.advance(1)
    expect((await bench.queues.describe(QUEUE_GROUP)).counters.lostToRetention).toBe(4)
    expect(worker.lost).toHaveLength(1)
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([4, 5])
    expect(worker.session.leased).toBe(2)
    await bench.restart()
    expect(await describePartition(bench)).toMatchObject({ startOffset: 4 })
  })

  it('waits for the home group of a job topic, and for no other', async () => {
    const bench = await aQueue()
    await bench.topics.create({
      name: 'work',
      partitions: 1,
      config: { 'jobs.enable': 'true', 'retention.ms': '1h', 'segment.bytes': '1MiB' },
    })
    const partition = bench.topics.getPartition('work', 0)
    for (let i = 0; i < 4; i++) await bench.produceTo('work', { records: 1, valueBytes: 900_000 })
    await bench.work(0, { group: 'others', topic: 'work' })
    await bench.clock.advance(3 * HOUR_MS)
    expect(partition.logStartOffset).toBe(0)
    const worker = await bench.work(2, { group: 'work.workers', topic: 'work' })
    expect(worker.offsets).toEqual([0, 1])
    while (worker.held.length > 2) await worker.say('accept')
    await worker.say('accept')
    await worker.say('accept')
    await bench.clock.advance(HOUR_MS)
    expect(partition.logStartOffset).toBeGreaterThan(0)
    expect(partition.logStartOffset).toBeLessThanOrEqual(4)
  })

  it('begins to wait when the topic is made one of jobs', async () => {
    const bench = await aQueue()
    await bench.topics.create({
      name: 'work',
      partitions: 1,
      config: { 'retention.ms': '1h', 'segment.bytes': '1MiB' },
    })
    const partition = bench.topics.getPartition('work', 0)
    await bench.work(0, { group: 'work.workers', topic: 'work' })
    for (let i = 0; i < 4; i++) await bench.produceTo('work', { records: 1, valueBytes: 900_000 })
    await bench.topics.alter('work', { set: { jobs: 'true' } })
    await bench.clock.advance(3 * HOUR_MS)
    expect(partition.logStartOffset).toBe(0)
    await bench.topics.alter('work', { set: { jobs: 'false' } })
    await bench.clock.advance(HOUR_MS)
    expect(partition.logStartOffset).toBeGreaterThan(0)
  })
})

describe('a look at records', () => {
  it('finds those in a state, without going through the whole log', async () => {
    const bench = await aQueue({ 'dlq.policy': 'drop' })
    for (let i = 0; i < 5; i++) await bench.produce({ records: 2 })
    const worker = await bench.work(8)
    const verdicts = ['accept', 'reject', 'retry'] as const
    for (const verdict of verdicts)
      await worker.say(verdict, { delivery: worker.held[0] ?? fail() })
    const look = async (state: RecordState | undefined, limit = 10): Promise<number[]> => {
      const request = { group: QUEUE_GROUP, topic: QUEUE_TOPIC, partition: 0, state, limit }
      return (await bench.queues.peek(request)).map(({ record }) => record.offset)
    }
    expect(await look('done')).toEqual([0, 1])
    expect(await look('dead')).toEqual([2, 3])
    expect(await look('parked')).toEqual([4, 5])
    expect(await look('acquired', 1)).toEqual([6])
    expect(await look('gone')).toEqual([])
    expect(await look('not-yet')).toEqual([])
    expect(await look(undefined)).toEqual(expect.arrayContaining([4, 5, 6, 7]))
  })
})
