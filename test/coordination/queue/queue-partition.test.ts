import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { toOffset } from '../../../src/common/offset.ts'
import { deadLetterTopicName } from '../../../src/coordination/queue/names.ts'
import type { QueueDelivery } from '../../../src/coordination/queue/queue-types.ts'
import { QUEUE_GROUP, QUEUE_TOPIC, QueueBench, type TestWorker } from '../../support/queue-bench.ts'
import {
  anItem,
  codesOf,
  describePartition,
  produceGap,
  readAll,
  valuesOf,
} from '../../support/queue-reading.ts'

const LEASE_MS = 30_000
const HOUR_MS = 3_600_000
const DLQ = deadLetterTopicName(QUEUE_GROUP, QUEUE_TOPIC)
const STATE = `${QUEUE_TOPIC}-0.state`

function heldBy(worker: TestWorker): QueueDelivery {
  const [delivery] = worker.held
  if (delivery === undefined) throw new Error('nothing was delivered')
  return delivery
}

async function configure(bench: QueueBench, set: Record<string, string>): Promise<void> {
  await bench.queues.configure(QUEUE_GROUP, { set, clear: [], validateOnly: false })
  await bench.clock.advance(1)
}

describe('leases', () => {
  it('refuses what is said under a lease in the moment it has run out, and counts it once', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    const delivery = heldBy(worker)
    const [lease] = worker.held
    let codes: Promise<string[]> | undefined
    worker.onLost = () => {
      codes = worker.session.acknowledge([anItem(delivery, 'accept')]).then(codesOf)
    }
    expect(lease).toBeDefined()
    await bench.clock.advance(LEASE_MS + 100)
    expect(await codes).toEqual(['LEASE_LOST'])
    expect(worker.session.leased).toBe(0)
    expect(await bench.explain(0)).toMatchObject({ failureCount: 1 })
  })

  it('refuses two verdicts on one record in one request, in whatever order they come', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 10 })
    const worker = await bench.work(10)
    const { token } = heldBy(worker)
    const items = [
      [5, 6],
      [0, 1],
      [5, 6],
    ].map(([first = 0, end = 0]) =>
      anItem({ token, first: toOffset(first), end: toOffset(end) }, 'accept'),
    )
    const failures = await worker.session.acknowledge(items)
    expect(codesOf(failures)).toEqual(Array(3).fill('INVALID_ACK_RANGE'))
    expect(worker.session.leased).toBe(10)
  })

  it('keeps what a worker holds when its connection breaks while more is on its way', async () => {
    const bench = await new QueueBench().start(1, { 'queue.persist.acquire': 'true' })
    await bench.produce({ records: 1 })
    const worker = await bench.work(2)
    expect(worker.offsets).toEqual([0])
    let letGo: () => void = () => undefined
    const gate = new Promise<void>((resolve) => {
      letGo = resolve
    })
    bench.faults.aroundAppend = async (name, append) => {
      if (name === STATE) await gate
      return append()
    }
    await bench.produce({ records: 1 })
    await bench.clock.advance(1)
    worker.session.detach()
    letGo()
    await bench.clock.advance(1)
    expect(await bench.explain(0)).toMatchObject({ state: 'acquired' })
    expect(await bench.explain(1)).toMatchObject({ state: 'available' })
  })

  it('does not give a worker that came back what its former stream had asked for', async () => {
    const bench = await new QueueBench().start(1, { 'queue.persist.acquire': 'true' })
    await bench.produce({ records: 1 })
    const worker = await bench.work(2)
    let letGo: () => void = () => undefined
    const gate = new Promise<void>((resolve) => {
      letGo = resolve
    })
    bench.faults.aroundAppend = async (name, append) => {
      if (name === STATE) await gate
      return append()
    }
    await bench.produce({ records: 1 })
    await bench.clock.advance(1)
    const back = await bench.work(0, { memberId: worker.session.memberId })
    letGo()
    await bench.clock.advance(1)
    expect(back.session.resumed).toBe(true)
    expect(back.offsets).toEqual([])
    await bench.produce({ records: 5 })
    await bench.clock.advance(1)
    expect(back.offsets).toEqual([])
    back.session.credit(10, 1 << 20)
    await bench.clock.advance(1)
    expect(new Set(back.offsets)).toEqual(new Set([1, 2, 3, 4, 5, 6]))
    expect(await bench.explain(0)).toMatchObject({ state: 'acquired' })
  })
})

describe('what waits', () => {
  it('looks at new records after a delay that is longer than any timer', async () => {
    const bench = await new QueueBench().start(1, { 'queue.delay.ms': '5h' })
    await bench.produce({ records: 2 })
    const worker = await bench.work(2)
    await bench.clock.advance(5 * HOUR_MS - 10)
    expect(worker.offsets).toEqual([])
    await bench.clock.advance(20)
    expect(worker.offsets).toEqual([0, 1])
  })

  it('tries parked records again whose front was taken by retention', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 4 })
    const worker = await bench.work(4)
    await worker.say('retry', { delayMs: 5000 })
    await bench.topics.getPartition(QUEUE_TOPIC, 0).advanceLogStart(toOffset(2))
    await bench.clock.advance(6000)
    expect(worker.offsets).toEqual([2, 3])
    expect((await bench.queues.describe(QUEUE_GROUP)).counters.lostToRetention).toBe(2)
  })

  it('passes over damaged records, and over nothing else, where the topic skips them', async () => {
    const bench = await new QueueBench().start()
    await bench.topics.alter(QUEUE_TOPIC, { set: { 'on.corruption': 'skip' }, clear: [] })
    for (let i = 0; i < 4; i++) await bench.produce({ records: 5 })
    bench.faults.damaged.set(`${QUEUE_TOPIC}-0`, { start: 10, end: 15 })
    const worker = await bench.work(5)
    // Parked, and so not what could not be read.
    await worker.say('retry', { delayMs: HOUR_MS })
    worker.session.credit(20, 1 << 20)
    await bench.clock.advance(20_000)
    expect(worker.offsets).toEqual([5, 6, 7, 8, 9, 15, 16, 17, 18, 19])
    expect(await bench.explain(0)).toMatchObject({ state: 'parked' })
    expect((await bench.queues.describe(QUEUE_GROUP)).counters.lostToRetention).toBe(5)
  })

  it('goes on by itself when the log can be read again', async () => {
    const bench = await new QueueBench().start(1, { order: 'key' })
    bench.faults.damaged.set(`${QUEUE_TOPIC}-0`, { start: 0, end: 5 })
    await bench.produce({ records: 5, key: 'a' })
    const worker = await bench.work(5)
    await bench.clock.advance(100)
    expect((await describePartition(bench)).error?.code).toBe('SEGMENT_QUARANTINED')
    bench.faults.damaged.clear()
    await bench.clock.advance(6000)
    expect(worker.offsets).toEqual([0])
    expect((await describePartition(bench)).error).toBeUndefined()
  })
})

describe('keys', () => {
  it('settles offsets without records when they are met after a restart', async () => {
    const bench = await new QueueBench().start(1, { order: 'key' })
    await bench.produce({ records: 1, key: 'a' })
    await produceGap(bench)
    await bench.produce({ records: 1, key: 'b' })
    const worker = await bench.work(5)
    expect(worker.offsets).toEqual([0, 2])
    worker.held.reverse()
    await worker.say('accept')
    await bench.restart()
    const next = await bench.work(5)
    expect(next.offsets).toEqual([0])
    await next.say('accept')
    expect(await describePartition(bench)).toMatchObject({ startOffset: 3, runs: 0 })
  })

  it('never has two records of a key out when order=key begins with some of them leased', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 3, key: 'a' })
    const worker = await bench.work(1)
    expect(worker.offsets).toEqual([0])
    await configure(bench, { order: 'key' })
    worker.session.credit(5, 1 << 20)
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([0])
    await worker.say('accept')
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([1])
  })

  it('forgets which keys were busy when limits by key are turned off and on again', async () => {
    const bench = await new QueueBench().start(1, { 'concurrency.key.max': '1' })
    await bench.produce({ records: 3, key: 'a' })
    const worker = await bench.work(3)
    expect(worker.offsets).toEqual([0])
    await configure(bench, { 'concurrency.key.max': '0' })
    while (worker.held.length > 0) await worker.say('accept')
    await bench.clock.advance(1)
    await configure(bench, { 'concurrency.key.max': '1' })
    await bench.produce({ records: 2, key: 'a' })
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([3])
  })

  it('counts what was leased before limits by key came', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 3, key: 'a' })
    const worker = await bench.work(1)
    await configure(bench, { 'concurrency.key.max': '1' })
    worker.session.credit(5, 1 << 20)
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([0])
  })

  it('has no more in flight than it may, however far it looks ahead', async () => {
    const bench = await new QueueBench().start(1, {
      order: 'key',
      'queue.max.inflight.per.partition': '100',
    })
    const keys = Array.from({ length: 300 }, (_, i) => `k${i}`)
    await bench.produce({ keys })
    const worker = await bench.work(300)
    expect(worker.offsets).toHaveLength(100)
    await worker.say('accept')
    await bench.clock.advance(1)
    expect(worker.offsets).toHaveLength(100)
  })

  it('keeps order=partition where keys are limited too', async () => {
    const bench = await new QueueBench().start(1, {
      order: 'partition',
      'rate.max': '1000',
      'rate.key': 'key',
    })
    await bench.produce({ keys: ['a', 'b', 'c'] })
    const worker = await bench.work(3)
    expect(worker.offsets).toEqual([0])
    await worker.say('retry', { delayMs: 1000 })
    await bench.clock.advance(500)
    expect(worker.offsets).toEqual([])
    await bench.clock.advance(600)
    expect(worker.offsets).toEqual([0])
    await worker.say('accept')
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([1])
  })

  it('waits for the earliest of several rates by key', async () => {
    const bench = await new QueueBench().start(1, {
      'rate.max': '1',
      'rate.duration.ms': '1h',
      'rate.key': 'key',
      'queue.lease.ms': '12h',
    })
    await bench.work(0) // The buckets fill from the first worker on.
    await bench.clock.advance(HOUR_MS)
    await bench.produce({ keys: ['a'] })
    const worker = await bench.work(9)
    expect(worker.offsets).toEqual([0])
    await bench.clock.advance(HOUR_MS / 2)
    await bench.produce({ keys: ['b', 'b'] })
    await bench.clock.advance(1)
    expect(worker.offsets).toContain(1)
    // The next of b is an hour off, that of a half of it.
    await bench.produce({ keys: ['a'] })
    await bench.clock.advance(HOUR_MS / 2 - 1000)
    expect(worker.offsets).not.toContain(3)
    await bench.clock.advance(2000)
    expect(worker.offsets).toContain(3)
    expect(worker.offsets).not.toContain(2)
  })

  it('gives a worker no second record that may be what kills workers, also by keys', async () => {
    const bench = await new QueueBench().start(1, {
      order: 'key',
      'retry.max.attempts': '2',
      'retry.backoff.type': 'none',
    })
    await bench.produce({ keys: ['a', 'b', 'c'] })
    const worker = await bench.work(3)
    expect(worker.offsets).toEqual([0, 1, 2])
    await bench.clock.advance(LEASE_MS + 200)
    // The worker has its credit back, and room for all three.
    expect(worker.offsets).toEqual([0])
    const other = await bench.work(3)
    expect(other.offsets).toEqual([1])
    await worker.say('accept')
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([2])
  })
})

describe('dead letters', () => {
  it('are there once, also when writing one failed after it was written', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    await bench.produce({ records: 2 })
    const worker = await bench.work(2)
    let failures = 0
    bench.faults.aroundAppend = async (name, append) => {
      const result = await append()
      if (name === `${DLQ}-0` && failures++ === 0)
        throw new BrokerError('STORAGE_ERROR', 'it may be there')
      return result
    }
    await worker.say('reject')
    await bench.clock.advance(120_000)
    expect(await bench.explain(0)).toMatchObject({ state: 'dead' })
    expect((await readAll(bench, DLQ)).map(({ value }) => value)).toEqual(['value-0', 'value-1'])
  })

  it('that were promised are written, also when none are wanted any more', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    bench.faults.beforeAppend.set(`${DLQ}-0`, () => {
      throw new BrokerError('STORAGE_FULL', 'no room')
    })
    await worker.say('reject')
    await configure(bench, { 'dlq.enable': 'false' })
    bench.faults.beforeAppend.clear()
    await bench.clock.advance(120_000)
    expect(await bench.explain(0)).toMatchObject({ state: 'dead' })
    expect(await readAll(bench, DLQ)).toHaveLength(1)
  })

  it('get a record that was given out too often, also by a broker that it killed', async () => {
    const bench = await new QueueBench().start(1, {
      'dlq.enable': 'true',
      'queue.persist.acquire': 'true',
      'queue.max.deliveries': '3',
    })
    await bench.produce({ records: 1 })
    for (let i = 1; i <= 3; i++) {
      const worker = await bench.work(1)
      expect(worker.held.map((one) => one.deliveryCount)).toEqual([i])
      await bench.restart()
    }
    const worker = await bench.work(1)
    await bench.clock.advance(100)
    expect(worker.offsets).toEqual([])
    expect(await readAll(bench, DLQ)).toMatchObject([
      { headers: { 'dlq.reason': 'attempts_exhausted', 'dlq.deliveries': '3' } },
    ])
  })
})

describe('slices', () => {
  it('hold what they should of plain and compressed batches', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 5 })
    await bench.produce({ records: 5, compression: 'gzip', valueBytes: 100 })
    const worker = await bench.work(3)
    for (let i = 0; i < 4; i++) {
      const delivery = heldBy(worker)
      const values = valuesOf(delivery).map((value) => value.replaceAll('.', ''))
      expect(values).toEqual(
        Array.from({ length: delivery.count }, (_, at) => `value-${(delivery.first + at) % 5}`),
      )
      await worker.say('accept')
      await bench.clock.advance(1)
    }
  })
})
