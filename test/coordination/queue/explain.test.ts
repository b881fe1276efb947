import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { toOffset } from '../../../src/common/offset.ts'
import { deadLetterTopicName } from '../../../src/coordination/queue/names.ts'
import { QUEUE_GROUP, QUEUE_TOPIC, QueueBench } from '../../support/queue-bench.ts'

const LEASE_MS = 30_000

describe('explain', () => {
  it('tells of a record that is not there yet', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 2 })
    await bench.work(0)
    expect(await bench.explain(2)).toMatchObject({
      state: 'not-yet',
      highWatermark: 2,
      deliveryCount: 0,
    })
  })

  it('tells of a record that nobody has looked at', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 3 })
    const worker = await bench.work(1)
    expect(worker.offsets).toEqual([0])
    expect(await bench.explain(2)).toMatchObject({
      state: 'unscanned',
      deliveryCount: 0,
      memberId: '',
      startOffset: 0,
      scanOffset: 1,
    })
  })

  it('tells of a record who has it, and for how long', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    await bench.clock.advance(999)
    const found = await bench.explain(0)
    expect(found).toMatchObject({
      state: 'acquired',
      deliveryCount: 1,
      failureCount: 0,
      memberId: worker.session.memberId,
    })
    expect(found.leaseExpiresMs).toBe(bench.clock.wallMs() - 1000 + LEASE_MS)
  })

  it('tells of a record that was given back', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    await worker.leave()
    expect(await bench.explain(0)).toMatchObject({
      state: 'available',
      deliveryCount: 1,
      failureCount: 0,
      memberId: '',
    })
  })

  it('tells of a record when it is tried again, and what went wrong', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    await worker.say('retry', { delayMs: 5000, message: 'not today' })
    const found = await bench.explain(0)
    expect(found).toMatchObject({
      state: 'parked',
      deliveryCount: 1,
      failureCount: 1,
      dueMs: bench.clock.wallMs() + 5000,
    })
    expect(found.failures).toMatchObject([
      { kind: 'retry', error: { message: 'not today' }, memberId: worker.session.memberId },
    ])
  })

  it('tells of a lease that has run out', async () => {
    const bench = await new QueueBench().start(1, { 'retry.backoff.initial.ms': '1h' })
    await bench.produce({ records: 1 })
    await bench.work(1)
    await bench.clock.advance(LEASE_MS + 200)
    const found = await bench.explain(0)
    expect(found).toMatchObject({ state: 'parked', failureCount: 1 })
    expect(found.failures).toMatchObject([{ kind: 'lease_expired' }])
  })

  it('tells of a record whose dead letter cannot be written', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    bench.faults.beforeAppend.set(`${deadLetterTopicName(QUEUE_GROUP, QUEUE_TOPIC)}-0`, () => {
      throw new BrokerError('STORAGE_FULL', 'no room')
    })
    await worker.say('reject', { message: 'never' })
    await bench.clock.advance(10)
    expect(await bench.explain(0)).toMatchObject({ state: 'dead-lettering', failureCount: 1 })
    bench.faults.beforeAppend.clear()
    await bench.clock.advance(120_000)
    expect(await bench.explain(0)).toMatchObject({ state: 'dead' })
  })

  it('tells of a record that waits for an operator', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true', 'dlq.policy': 'block' })
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    await worker.say('reject')
    expect(await bench.explain(0)).toMatchObject({ state: 'blocked', failureCount: 1 })
    await bench.queues.unblock(QUEUE_GROUP, QUEUE_TOPIC, 0, 0, true)
    expect(await bench.explain(0)).toMatchObject({ state: 'dead' })
  })

  it('tells of a record that is done', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 2 })
    const worker = await bench.work(1)
    await worker.say('accept')
    expect(await bench.explain(0)).toMatchObject({ state: 'done', startOffset: 1 })
  })

  it('tells of a record that was given up', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    await bench.produce({ records: 1 })
    const worker = await bench.work(1)
    await worker.say('reject')
    await bench.clock.advance(100)
    expect(await bench.explain(0)).toMatchObject({ state: 'dead', startOffset: 1 })
  })

  it('tells of a record that was deleted', async () => {
    const bench = await new QueueBench().start()
    await bench.produce({ records: 2 })
    await bench.produce({ records: 2 })
    const worker = await bench.work(2)
    await worker.say('accept')
    await bench.topics.getPartition(QUEUE_TOPIC, 0).advanceLogStart(toOffset(2))
    await bench.clock.advance(10)
    expect(await bench.explain(0)).toMatchObject({ state: 'gone' })
  })

  it('tells of a record what it waits for', async () => {
    const bench = await new QueueBench().start(1, { order: 'key' })
    await bench.produce({ keys: ['a', 'a'] })
    const worker = await bench.work(2)
    expect(worker.offsets).toEqual([0])
    expect(await bench.explain(1)).toMatchObject({ blockedByOffset: 0 })
  })

  it('says the same after a restart, but for leases', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    await bench.produce({ records: 5 })
    const worker = await bench.work(1)
    for (const verdict of ['accept', 'retry', 'reject', 'release'] as const) {
      await worker.say(verdict, { delayMs: verdict === 'accept' ? 0 : 3_600_000 })
      await bench.clock.advance(1)
    }
    await bench.clock.advance(100)
    const states = async (): Promise<readonly string[]> =>
      Promise.all([0, 1, 2, 3, 4].map(async (offset) => (await bench.explain(offset)).state))
    expect(await states()).toEqual(['done', 'parked', 'dead', 'parked', 'acquired'])
    await bench.restart()
    await bench.work(0)
    const [done, retried, dead, released, leased] = await states()
    expect([done, retried, dead, released]).toEqual(['done', 'parked', 'dead', 'parked'])
    expect(['available', 'unscanned']).toContain(leased)
    expect(await bench.explain(1)).toMatchObject({ failureCount: 1, deliveryCount: 1 })
  })

  it('refuses what is not there at all', async () => {
    const bench = await new QueueBench().start()
    await bench.work(0)
    const ask = (group: string, topic: string, partition: number): Promise<unknown> =>
      bench.queues.explain(group, topic, partition, 0)
    await expect(ask('nobody', QUEUE_TOPIC, 0)).rejects.toMatchObject({ code: 'UNKNOWN_GROUP' })
    await expect(ask(QUEUE_GROUP, 'nothing', 0)).rejects.toMatchObject({ code: 'UNKNOWN_TOPIC' })
    await expect(ask(QUEUE_GROUP, QUEUE_TOPIC, 7)).rejects.toMatchObject({
      code: 'UNKNOWN_PARTITION',
    })
    await expect(bench.queues.explain(QUEUE_GROUP, QUEUE_TOPIC, 0, -1)).rejects.toMatchObject({
      code: 'INVALID_REQUEST',
    })
  })
})
