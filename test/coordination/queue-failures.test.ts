import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import { HOUR_MS, MINUTE_MS, SECOND_MS } from '../../src/common/units.ts'
import { readDeadLetter } from '../../src/coordination/queue/dead-letter-record.ts'
import { deadLetterTopicName } from '../../src/coordination/queue/names.ts'
import type { QueueDelivery } from '../../src/coordination/queue/queue-types.ts'
import { endOfBatch } from '../../src/record/batch-header.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import { QUEUE_GROUP, QUEUE_TOPIC, QueueBench, type TestWorker } from '../support/queue-bench.ts'

const LEASE_MS: number = 30 * SECOND_MS
const COMPANION = `${QUEUE_TOPIC}-0.state`

/** Source offsets of the dead letters, as they lie there. */
async function deadOffsets(bench: QueueBench): Promise<number[]> {
  const topic = bench.topics.find(deadLetterTopicName(QUEUE_GROUP, QUEUE_TOPIC))
  const offsets: number[] = []
  const cursor = new RecordCursor()
  for (const partition of topic?.partitions ?? []) {
    const { chunks } = await partition.read(toOffset(0), 1 << 24)
    for (const chunk of chunks) {
      for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
        cursor.reset(chunk, at)
        while (cursor.next()) offsets.push(readDeadLetter(cursor.readHeaders())?.offset ?? -1)
      }
    }
  }
  return offsets
}

function oldest(worker: TestWorker): QueueDelivery {
  const [delivery] = worker.held
  if (delivery === undefined) throw new Error('the worker holds nothing')
  return delivery
}

/** SEMANTICS §4d, as far as one group and its workers are concerned. */
describe('a queue group, when things go wrong', () => {
  it('refuses the verdict of a worker that slept through its lease, and takes that of the next', async () => {
    const bench = await new QueueBench().start(1, { 'retry.backoff.type': 'none' })
    await bench.produce({ records: 1 })
    const sleeper = await bench.work(1)
    sleeper.asksAgain = false
    const late = oldest(sleeper)
    const other = await bench.work(0)
    await bench.clock.advance(LEASE_MS + SECOND_MS)
    other.session.credit(1, 1 << 20)
    await bench.clock.advance(LEASE_MS - 2 * SECOND_MS)
    expect(other.offsets).toEqual([0])
    expect(oldest(other)).toMatchObject({ deliveryCount: 2, failureCount: 1 })
    const [failure] = await sleeper.say('accept', { delivery: late })
    expect(failure?.error.code).toBe('LEASE_LOST')
    expect(await other.say('accept')).toEqual([])
    expect(await bench.explain(0)).toMatchObject({ state: 'done' })
  })

  it('lays aside the one record of 500 that kills its workers, and no other', async () => {
    const bench = await new QueueBench().start(1, {
      'dlq.enable': 'true',
      'queue.lease.ms': '1s',
      'retry.backoff.type': 'none',
    })
    await bench.produce({ records: 500 })
    const POISON = 137
    let deaths = 0
    for (;;) {
      const worker = await bench.work(1000)
      for (let next = worker.held[0]; next !== undefined; next = worker.held[0]) {
        if (next.first <= POISON && POISON < next.end) break
        await worker.say('accept', { delivery: next })
        await bench.clock.advance(1)
      }
      const { topics } = await bench.queues.describe(QUEUE_GROUP)
      if (worker.held.length === 0 && topics[0]?.partitions[0]?.startOffset === 500) break
      // With all that it has in hand, the poison and what it has not come to.
      worker.session.detach()
      deaths++
      await bench.clock.advance(1200)
    }
    expect(deaths).toBeLessThan(20)
    expect(await deadOffsets(bench)).toEqual([POISON])
    expect(await bench.explain(POISON)).toMatchObject({ state: 'dead' })
  })

  it('tells the worker when its verdict could not be written, and forgets nothing', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 3 })
    const worker = await bench.work(3)
    bench.faults.beforeAppend.set(COMPANION, () => {
      bench.faults.beforeAppend.clear()
      throw new BrokerError('STORAGE_ERROR', 'injected')
    })
    const [failure] = await worker.say('accept')
    expect(failure?.error.code).toBe('STORAGE_ERROR')
    await bench.clock.advance(SECOND_MS)
    expect(worker.offsets).toEqual([0, 1, 2])
    // Nobody has failed.
    expect(oldest(worker)).toMatchObject({ failureCount: 0 })
    expect(await worker.say('accept')).toEqual([])
    await bench.restart()
    await bench.work(0)
    expect(await bench.explain(0)).toMatchObject({ state: 'done', startOffset: 3 })
  })

  it('does not wear itself out when its state cannot be written for long', async () => {
    const bench = await new QueueBench().start(1, { 'queue.persist.acquire': 'true' })
    await bench.produce({ records: 10 })
    let refused = 0
    const refuse = (): void => {
      refused++
      throw new BrokerError('STORAGE_ERROR', 'injected')
    }
    const worker = await bench.work(0)
    bench.faults.beforeAppend.set(COMPANION, refuse)
    worker.session.credit(10, 1 << 20)
    await bench.clock.advance(MINUTE_MS)
    expect(worker.offsets).toEqual([])
    expect(refused).toBeGreaterThan(3)
    expect(refused).toBeLessThan(30)
    bench.faults.beforeAppend.clear()
    await bench.clock.advance(MINUTE_MS)
    expect(worker.offsets).toHaveLength(10)
  })

  it('tries nothing early when the wall clock is set back, and little late when it is set forward', async () => {
    const bench = await new QueueBench().start(1, { 'queue.lease.ms': '12h' })
    await bench.produce({ records: 2 })
    const worker = await bench.work(2)
    await worker.say('retry', { delayMs: 10 * MINUTE_MS })
    bench.clock.setWall(bench.clock.wallMs() - HOUR_MS)
    await bench.clock.advance(30 * MINUTE_MS)
    expect(worker.offsets).toEqual([])
    bench.clock.setWall(bench.clock.wallMs() + HOUR_MS)
    await bench.clock.advance(MINUTE_MS)
    expect(worker.offsets).toEqual([0, 1])
  })

  it('lets leases run by a clock that nobody sets', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    bench.clock.setWall(bench.clock.wallMs() + HOUR_MS)
    await bench.clock.advance(LEASE_MS - SECOND_MS)
    bench.clock.setWall(bench.clock.wallMs() - 2 * HOUR_MS)
    expect(worker.lost).toEqual([])
    expect(await bench.explain(0)).toMatchObject({ state: 'acquired' })
    await bench.clock.advance(2 * SECOND_MS)
    expect(worker.lost).toHaveLength(1)
  })

  it('gives out a record that was passed over because its worker had a last chance in hand', async () => {
    const bench = await new QueueBench().start(1, {
      'retry.max.attempts': '2',
      'retry.backoff.type': 'none',
      'queue.lease.ms': '2s',
    })
    await bench.produce({ records: 2 })
    const first = await bench.work(2)
    first.session.detach()
    await bench.clock.advance(2 * SECOND_MS + 200)
    // Both have stalled once: one at a time to a worker from now on.
    await bench.produce({ records: 1 })
    const giver = await bench.work(0)
    giver.asksAgain = false
    const holder = await bench.work(1)
    expect(holder.offsets).toEqual([0])
    giver.session.credit(2, 1 << 20)
    await bench.clock.advance(1)
    expect(giver.offsets).toEqual([1, 2])
    // Released, so that it is available again behind what has to be passed over.
    for (const delivery of [...giver.held].reverse()) {
      await giver.say('release', { delivery, delayMs: 0 })
    }
    giver.session.detach()
    holder.session.credit(5, 1 << 20)
    await bench.clock.advance(1)
    const other = await bench.work(5)
    expect([...holder.offsets, ...other.offsets].sort((a, b) => a - b)).toEqual([0, 1, 2])
  })

  it('lets what was received expire or be acknowledged, and nothing else', async () => {
    const bench = await new QueueBench().start(1, { 'queue.release.on.disconnect': 'true' })
    await bench.produce({ records: 1 })
    const { deliveries } = await bench.queues.receive(
      {
        group: QUEUE_GROUP,
        topic: QUEUE_TOPIC,
        max: 1,
        waitMs: 0,
        maxBytes: 0,
        leaseMs: 10_000,
        clientId: 'function',
        host: 'here',
        settings: {},
      },
      new AbortController().signal,
    )
    expect(deliveries).toMatchObject([{ first: 0, end: 1 }])
    await bench.clock.advance(9_900)
    expect(await bench.explain(0)).toMatchObject({ state: 'acquired', failureCount: 0 })
    await bench.clock.advance(300)
    expect(await bench.explain(0)).toMatchObject({ failureCount: 1 })
  })
})
