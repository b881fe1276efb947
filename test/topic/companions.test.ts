import { afterEach, describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import { HOUR_MS, KIB, MIB, MINUTE_MS } from '../../src/common/units.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import { CATALOG_ID } from '../../src/topic/catalog.ts'
import type { Partition } from '../../src/topic/partition.ts'
import { aBatch, recordsOf } from '../support/batches.ts'
import { settle } from '../support/fake-clock.ts'
import {
  aBench,
  type Bench,
  closeBenches,
  codeOf,
  directoriesOf,
  failureOf,
} from '../support/topics-bench.ts'

afterEach(closeBenches)

async function append(partition: Partition, ...values: string[]): Promise<void> {
  for (const value of values) await partition.append(aBatch({ values: [value] }), 'durable')
}

async function valuesOf(partition: Partition): Promise<(string | undefined)[]> {
  const { chunks } = await partition.read(partition.logStartOffset, KIB)
  return recordsOf(chunks).map((record) => record.value)
}

async function withOrders(): Promise<Bench> {
  const bench = await aBench()
  await bench.topics.create({ name: 'orders', partitions: 2 })
  return bench
}

/** Lets openings begin, and wait until it is called. */
function holdOpenings(bench: Bench): () => void {
  let release: () => void = () => undefined
  const held = new Promise<void>((resolve) => {
    release = resolve
  })
  bench.store.beforeOpen = () => held
  return release
}

describe('opening a companion', () => {
  it('makes it beside its partition, and answers with the same one each time', async () => {
    const { topics, store } = await withOrders()
    expect(topics.findCompanions()).toEqual([])
    const companion = await topics.openCompanion('orders', 1)
    expect(companion.name).toBe('orders-1.state')
    expect(companion.id).toEqual({
      ...topics.getPartition('orders', 1).id,
      companion: 'state',
    })
    await append(companion, 'a')
    expect(await valuesOf(companion)).toEqual(['a'])
    expect(topics.getPartition('orders', 1).highWatermark).toBe(0)
    expect(await topics.openCompanion('orders', 1)).toBe(companion)
    expect(topics.findCompanions()).toEqual([{ topic: 'orders', partition: 1 }])
    expect(await directoriesOf(store)).toContain('orders-1.state')
  })

  it('is done once for all that ask at the same time', async () => {
    const { topics, store } = await withOrders()
    const asked = [0, 0, 1, 0].map((index) => topics.openCompanion('orders', index))
    const [first, second, other, third] = await Promise.all(asked)
    expect([second, third]).toEqual([first, first])
    expect(other).not.toBe(first)
    expect(store.opened.filter((name) => name === 'orders-0.state')).toHaveLength(1)
  })

  it('is tried again when it has failed', async () => {
    const { topics, store } = await withOrders()
    store.unopenable.set('orders-0.state', new BrokerError('STORAGE_ERROR', 'rotten'))
    expect(await codeOf(topics.openCompanion('orders', 0))).toBe('STORAGE_ERROR')
    store.unopenable.clear()
    expect(await codeOf(topics.openCompanion('orders', 0))).toBe('OK')
  })

  it('takes large records of any time, and keeps them whatever their age', async () => {
    const { topics, clock } = await withOrders()
    const companion = await topics.openCompanion('orders', 0)
    const batch = aBatch({ valueBytes: 7 * MIB, timestampMs: clock.wallMs() + 48 * HOUR_MS })
    await companion.append(batch, 'durable')
    await clock.advance(24 * 365 * HOUR_MS)
    expect(companion.logStartOffset).toBe(0)
  })

  it.each([
    ['nothing', 0, 'UNKNOWN_TOPIC'],
    ['orders', 2, 'UNKNOWN_PARTITION'],
    ['orders', -1, 'INVALID_PARTITION'],
  ])('refuses %s-%i', async (name, index, code) => {
    const { topics } = await withOrders()
    expect(await codeOf(topics.openCompanion(name, index))).toBe(code)
    expect(topics.findCompanions()).toEqual([])
  })

  it('does so also for topics of the broker itself', async () => {
    const { topics } = await aBench()
    await topics.ensureInternal('__retry.mail.orders', 1, {})
    expect((await topics.openCompanion('__retry.mail.orders', 0)).name).toBe(
      '__retry.mail.orders-0.state',
    )
  })
})

describe('a companion', () => {
  it('is not among the partitions, and counts for none', async () => {
    const { topics } = await withOrders()
    const companion = await topics.openCompanion('orders', 0)
    expect(topics.partitionCount).toBe(2)
    expect(topics.list({ internal: true }).map((topic) => topic.name)).toEqual([
      '__catalog',
      'orders',
    ])
    for (const topic of topics.list({ internal: true })) {
      expect(topic.partitions).not.toContain(companion)
    }
    expect(await codeOf(topics.create({ name: 'orders-0.state' }))).toBe('OK')
    await append(topics.getPartition('orders-0.state', 0), 'x')
    expect(companion.highWatermark).toBe(0)
  })

  it('has its own settings, whatever becomes of the topic’s', async () => {
    const { topics } = await withOrders()
    const companion = await topics.openCompanion('orders', 0)
    await topics.alter('orders', { set: { 'cleanup.policy': 'compact', visibility: 'written' } })
    expect(companion.config).toMatchObject({ cleanupPolicy: 'delete', visibility: 'durable' })
    await append(companion, 'no key')
  })

  it('gives back what is below its log start', async () => {
    const { topics, clock } = await withOrders()
    const companion = await topics.openCompanion('orders', 0)
    for (let i = 0; i < 8; i++) {
      await companion.append(aBatch({ valueBytes: 6 * MIB }), 'durable')
    }
    const before = await companion.stats()
    await companion.advanceLogStart(toOffset(7))
    await clock.advance(11 * MINUTE_MS)
    const after = await companion.stats()
    expect(before.bytes).toBeGreaterThan(48 * MIB)
    expect(after.bytes).toBeLessThan(16 * MIB)
  })

  it('is found after a start, and opened only when somebody asks', async () => {
    const bench = await withOrders()
    await append(await bench.topics.openCompanion('orders', 1), 'a', 'b')
    bench.store.opened.length = 0
    const topics = await bench.reopen()
    expect(topics.findCompanions()).toEqual([{ topic: 'orders', partition: 1 }])
    expect(bench.store.opened).not.toContain('orders-1.state')
    expect(await valuesOf(await topics.openCompanion('orders', 1))).toEqual(['a', 'b'])
    expect(topics.findCompanions()).toHaveLength(1)
    expect(topics.partitionCount).toBe(2)
  })

  it('holds retention of a topic that waits for queue groups until somebody has spoken', async () => {
    const bench = await withOrders()
    const set = { 'retention.ms': '1h', 'retention.respect.queue.groups': 'true' }
    await bench.topics.alter('orders', { set })
    await bench.topics.openCompanion('orders', 1)
    for (const index of [0, 1]) await append(bench.topics.getPartition('orders', index), 'x')
    const topics = await bench.reopen()
    await bench.clock.advance(2 * HOUR_MS)
    const starts = (): number[] => topics.get('orders').partitions.map((one) => one.logStartOffset)
    expect(starts()).toEqual([1, 0])
    topics.getPartition('orders', 1).holdRetention('workers', undefined)
    await bench.clock.advance(5 * MINUTE_MS)
    expect(starts()).toEqual([1, 1])
  })

  it('is closed with the topics, also when it is just being opened', async () => {
    const bench = await withOrders()
    const { topics, clock } = bench
    const open = await topics.openCompanion('orders', 0)
    const release = holdOpenings(bench)
    const late = topics.openCompanion('orders', 1)
    const closed = topics.close()
    expect(await codeOf(topics.openCompanion('orders', 0))).toBe('CLOSED')
    release()
    await closed
    for (const companion of [open, await late]) {
      expect(await codeOf(companion.append(aBatch(), 'durable'))).toBe('CLOSED')
    }
    expect(clock.pendingTimers).toBe(0)
  })
})

describe('deleting a topic with companions', () => {
  it('takes them along', async () => {
    const { topics, store } = await withOrders()
    const companion = await topics.openCompanion('orders', 1)
    const waiting = failureOf(companion.waitForAppend(toOffset(0)))
    await topics.delete('orders')
    expect(await directoriesOf(store)).toEqual(['__catalog-0'])
    expect((await waiting).code).toBe('UNKNOWN_TOPIC')
    expect(await codeOf(companion.append(aBatch(), 'durable'))).toBe('UNKNOWN_TOPIC')
    expect(topics.findCompanions()).toEqual([])
  })

  it('takes those that nobody has opened', async () => {
    const bench = await withOrders()
    await append(await bench.topics.openCompanion('orders', 1), 'old')
    const topics = await bench.reopen()
    await topics.delete('orders')
    expect(await directoriesOf(bench.store)).toEqual(['__catalog-0'])
  })

  it('takes one that is just being opened', async () => {
    const bench = await withOrders()
    const release = holdOpenings(bench)
    const opening = bench.topics.openCompanion('orders', 0)
    await settle()
    const deleted = bench.topics.delete('orders')
    await settle()
    expect(await codeOf(bench.topics.openCompanion('orders', 0))).toBe('UNKNOWN_TOPIC')
    release()
    await deleted
    expect((await opening).failure?.code).toBe('UNKNOWN_TOPIC')
    expect(await directoriesOf(bench.store)).toEqual(['__catalog-0'])
  })

  it('leaves none for a topic that is made anew under the name', async () => {
    const { topics } = await withOrders()
    await append(await topics.openCompanion('orders', 0), 'old')
    await topics.delete('orders')
    await topics.create({ name: 'orders' })
    expect(topics.findCompanions()).toEqual([])
    expect((await topics.openCompanion('orders', 0)).highWatermark).toBe(0)
  })

  it('keeps the name until they are gone', async () => {
    const bench = await withOrders()
    const { topics, store } = bench
    await topics.openCompanion('orders', 0)
    store.unremovable.add('orders-0.state')
    await topics.delete('orders')
    expect(await directoriesOf(store)).toEqual(['__catalog-0', 'orders-0.state'])
    expect(await codeOf(topics.create({ name: 'orders' }))).toBe('STORAGE_ERROR')
    store.unremovable.clear()
    expect(await codeOf(topics.create({ name: 'orders' }))).toBe('OK')
    expect(await directoriesOf(store)).toEqual(['__catalog-0', 'orders-0'])
  })

  it('is finished by the next start', async () => {
    const bench = await withOrders()
    await bench.topics.openCompanion('orders', 0)
    bench.store.unremovable.add('orders-0.state')
    await bench.topics.delete('orders')
    bench.store.unremovable.clear()
    const topics = await bench.reopen()
    expect(topics.findCompanions()).toEqual([])
    expect(await directoriesOf(bench.store)).toEqual(['__catalog-0'])
  })
})

describe('companions and what the catalog does not know', () => {
  it('keeps one of an unknown topic, and lets no topic be made over it', async () => {
    const bench = await aBench()
    const id = {
      topic: 'lost',
      partition: 0,
      topicId: '11111111-1111-4111-8111-111111111111',
      companion: 'state',
    } as const
    await bench.topics.create({ name: 'orders' })
    await bench.store.open(id, DEFAULT_LOG_CONFIG)
    const topics = await bench.reopen()
    expect(topics.findCompanions()).toEqual([])
    expect(topics.find('lost')).toBeUndefined()
    expect(await codeOf(topics.create({ name: 'lost' }))).toBe('STORAGE_ERROR')
    expect(await directoriesOf(bench.store)).toContain('lost-0.state')
  })

  it('makes none where the catalog is damaged, and lets those that are there be read', async () => {
    const bench = await withOrders()
    await append(await bench.topics.openCompanion('orders', 1), 'a')
    await bench.topics.close()
    await bench.store.inner.remove(CATALOG_ID)
    const topics = await bench.reopen()
    expect(topics.readOnly).toContain('the catalog is empty')
    expect(topics.get('orders').partitions).toHaveLength(2)
    expect(topics.findCompanions()).toEqual([{ topic: 'orders', partition: 1 }])
    expect(await codeOf(topics.openCompanion('orders', 0))).toBe('READ_ONLY')
    expect(await directoriesOf(bench.store)).not.toContain('orders-0.state')
    const companion = await topics.openCompanion('orders', 1)
    expect(await valuesOf(companion)).toEqual(['a'])
    expect(await codeOf(companion.append(aBatch(), 'durable'))).toBe('READ_ONLY')
  })

  it('makes no partition of a companion that has lost its own', async () => {
    const bench = await withOrders()
    await bench.topics.openCompanion('orders', 1)
    const { id } = bench.topics.getPartition('orders', 1)
    await bench.topics.close()
    await bench.store.inner.remove(CATALOG_ID)
    await bench.store.inner.remove(id)
    const topics = await bench.reopen()
    expect(topics.get('orders').partitions).toHaveLength(1)
    expect(topics.findCompanions()).toEqual([])
    expect(await directoriesOf(bench.store)).toContain('orders-1.state')
  })
})

describe('Topics.ensure', () => {
  it('makes an ordinary topic, and answers with one that is there as it is', async () => {
    const { topics } = await aBench()
    const made = await topics.ensure('dlq.mail.orders', 2, { dlq: 'true' })
    expect([made.internal, made.config.dlq, made.partitions.length]).toEqual([false, true, 2])
    expect(await topics.ensure('dlq.mail.orders', 5, {})).toBe(made)
    expect(await codeOf(topics.delete('dlq.mail.orders'))).toBe('OK')
  })

  it('makes one for all that ask at the same time', async () => {
    const { topics } = await aBench()
    const made = await Promise.all([1, 2, 3].map((count) => topics.ensure('dead', count, {})))
    expect(new Set(made).size).toBe(1)
    expect(made[0]?.partitions).toHaveLength(1)
  })

  it('is no way to a topic of the broker, or to a bad name', async () => {
    const { topics } = await aBench()
    expect(await codeOf(topics.ensure('__queues', 1, {}))).toBe('TOPIC_INTERNAL')
    expect(await codeOf(topics.ensure('a b', 1, {}))).toBe('INVALID_TOPIC_NAME')
    expect(await codeOf(topics.ensure('x', 0, {}))).toBe('INVALID_PARTITION')
  })
})
