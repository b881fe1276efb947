import { afterEach, describe, expect, it } from 'vitest'
import {
  array,
  assert,
  asyncProperty,
  constant,
  constantFrom,
  integer,
  nat,
  oneof,
  option,
  record,
  type Arbitrary,
} from 'fast-check'
import { BrokerError } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { HOUR_MS, KIB, MINUTE_MS } from '../../src/common/units.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { CATALOG_ID } from '../../src/topic/catalog.ts'
import { Topics } from '../../src/topic/topics.ts'
import { aBatch, recordsOf } from '../support/batches.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'
import {
  aBench,
  type Bench,
  closeBenches,
  codeOf,
  directoriesOf,
  failureOf,
} from '../support/topics-bench.ts'

afterEach(closeBenches)

function thrownBy(act: () => unknown): BrokerError {
  try {
    act()
  } catch (error) {
    if (error instanceof BrokerError) return error
    throw error
  }
  throw new Error('it did not fail')
}

describe('creating a topic', () => {
  it('makes its partitions, which can be written and read at once', async () => {
    const { topics, store } = await aBench()
    const made = await topics.create({ name: 'orders', partitions: 3 })
    expect(made).toEqual({ created: true, topicId: topics.get('orders').id, partitions: 3 })
    expect(await directoriesOf(store)).toEqual(['__catalog-0', 'orders-0', 'orders-1', 'orders-2'])
    const partition = topics.getPartition('orders', 2, made.topicId)
    await partition.append(aBatch({ values: ['hello'] }), 'durable')
    const { chunks } = await partition.read(toOffset(0), KIB)
    expect(recordsOf(chunks).map((record) => record.value)).toEqual(['hello'])
  })

  it('takes the broker’s default count', async () => {
    const { topics } = await aBench({ defaultPartitions: 4 })
    expect((await topics.create({ name: 'orders' })).partitions).toBe(4)
  })

  it('is durable in the catalog before any log is opened', async () => {
    const { topics, store } = await aBench()
    const end = topics.getPartition('__catalog', 0)
    let seen = -1
    store.beforeOpen = async () => {
      seen = end.highWatermark
    }
    await topics.create({ name: 'orders' })
    expect(seen).toBe(1)
  })

  it.each([
    ['', 'INVALID_TOPIC_NAME'],
    ['..', 'INVALID_TOPIC_NAME'],
    ['a/b', 'INVALID_TOPIC_NAME'],
    ['a'.repeat(300), 'INVALID_TOPIC_NAME'],
    ['__mine', 'TOPIC_INTERNAL'],
    ['__catalog', 'TOPIC_INTERNAL'],
  ])('refuses the name %j', async (name, code) => {
    const { topics } = await aBench()
    expect(await codeOf(topics.create({ name }))).toBe(code)
  })

  it.each([0, -1, 1.5, Number.NaN, 10_001])('refuses %d partitions', async (partitions) => {
    const { topics } = await aBench()
    const failure = await failureOf(topics.create({ name: 'orders', partitions }))
    expect([failure.code, failure.details['limit']]).toEqual(['INVALID_PARTITION', 10_000])
  })

  it('refuses settings that are unknown, out of range or at odds with each other', async () => {
    const { topics } = await aBench()
    for (const config of [
      { 'retention.mz': '1' },
      { 'segment.bytes': '1' },
      { 'segment.bytes': '1MiB', 'max.message.bytes': '2MiB' },
    ] as Record<string, string>[]) {
      expect(await codeOf(topics.create({ name: 'orders', config }))).toBe('INVALID_CONFIG')
    }
    expect(topics.list()).toEqual([])
  })

  it('answers created: false for the same again, and names what differs otherwise', async () => {
    const { topics } = await aBench()
    const config = { 'retention.ms': '1h' }
    const made = await topics.create({ name: 'orders', partitions: 2, config })
    const same = { name: 'orders', partitions: 2, config: { 'retention.ms': '60m' } }
    expect(await topics.create(same)).toEqual({ ...made, created: false })
    const failure = await failureOf(topics.create({ name: 'orders', partitions: 3 }))
    expect(failure.code).toBe('TOPIC_EXISTS')
    expect(failure.details['differences']).toEqual(['partitions', 'retention.ms'])
    const whatever = await topics.create({ name: 'orders', ifNotExists: true })
    expect(whatever).toEqual({ ...made, created: false })
  })

  it('checks everything and changes nothing when only validation is asked for', async () => {
    const { topics, store } = await aBench({ maxPartitions: 5 })
    const request = { name: 'orders', partitions: 5, validateOnly: true }
    expect(await topics.create(request)).toEqual({ created: false, topicId: '', partitions: 5 })
    expect(await directoriesOf(store)).toEqual(['__catalog-0'])
    expect(await codeOf(topics.create({ ...request, partitions: 6 }))).toBe('TOO_MANY_TOPICS')
    expect(topics.find('orders')).toBe(undefined)
  })

  it('counts all partitions against the broker’s limit, internal ones left out', async () => {
    const { topics } = await aBench({ maxPartitions: 5 })
    await topics.create({ name: 'a', partitions: 3 })
    const failure = await failureOf(topics.create({ name: 'b', partitions: 3 }))
    expect([failure.code, failure.details['actual'], failure.details['limit']]).toEqual([
      'TOO_MANY_TOPICS',
      6,
      5,
    ])
    await topics.create({ name: 'b', partitions: 2 })
    expect(await codeOf(topics.addPartitions('a', 4))).toBe('TOO_MANY_TOPICS')
    await topics.delete('b')
    expect(await topics.addPartitions('a', 5)).toBe(5)
  })

  it('makes one of two that are asked for at once', async () => {
    const { topics } = await aBench()
    const [first, second, third] = await Promise.allSettled([
      topics.create({ name: 'orders', partitions: 2 }),
      topics.create({ name: 'orders', partitions: 2 }),
      topics.create({ name: 'orders', partitions: 3 }),
    ])
    expect(first).toMatchObject({ value: { created: true } })
    expect(second).toMatchObject({ value: { created: false } })
    expect(third).toMatchObject({ reason: { code: 'TOPIC_EXISTS' } })
  })

  it('opens at most 16 logs at once', async () => {
    const bench = await aBench()
    bench.store.beforeOpen = () => settle()
    await bench.topics.create({ name: 'orders', partitions: 40 })
    expect(bench.store.mostOpening).toBe(16)
    bench.store.mostOpening = 0
    await bench.reopen()
    expect(bench.store.mostOpening).toBe(16)
  })

  it('leaves nothing behind when a log cannot be opened, also after a restart', async () => {
    const bench = await aBench()
    const { topics, store } = bench
    store.unopenable.set('orders-1', new BrokerError('TOO_MANY_OPEN_FILES', 'no descriptor'))
    const create = (): Promise<unknown> => topics.create({ name: 'orders', partitions: 3 })
    expect(await codeOf(create())).toBe('TOO_MANY_OPEN_FILES')
    expect(topics.find('orders')).toBe(undefined)
    expect(await directoriesOf(store)).toEqual(['__catalog-0'])
    store.unopenable.clear()
    expect((await bench.reopen()).list()).toEqual([])
    expect(await bench.topics.create({ name: 'orders', partitions: 3 })).toMatchObject({
      created: true,
    })
  })

  it('keeps the topic, and mends it later, when it can neither be opened nor taken back', async () => {
    const { topics, store, clock } = await aBench()
    store.unopenable.set('orders-1', new BrokerError('STORAGE_FULL', 'no room'))
    let commits = 0
    store.beforeAppend.set('__catalog-0', () => {
      if (++commits === 2) throw new BrokerError('STORAGE_FULL', 'still no room')
    })
    const failure = await failureOf(topics.create({ name: 'orders', partitions: 2 }))
    expect([failure.code, failure.noSideEffects]).toEqual(['STORAGE_ERROR', false])
    expect(topics.getPartition('orders', 0).failure).toBe(undefined)
    expect(thrownBy(() => topics.getPartition('orders', 1)).code).toBe('STORAGE_FULL')
    store.unopenable.clear()
    await clock.advance(5 * MINUTE_MS)
    await topics.getPartition('orders', 1).append(aBatch(), 'durable')
  })

  it('changes nothing when the catalog refuses the record', async () => {
    const { topics, store } = await aBench()
    store.inner.storageFull = true
    expect(await codeOf(topics.create({ name: 'orders' }))).toBe('STORAGE_FULL')
    expect(await directoriesOf(store)).toEqual(['__catalog-0'])
    store.inner.storageFull = false
    expect(await codeOf(topics.create({ name: 'orders' }))).toBe('OK')
  })

  it('refuses all changes once it cannot know whether one was kept, and goes on reading', async () => {
    const { topics, store } = await aBench()
    await topics.create({ name: 'orders' })
    await topics.getPartition('orders', 0).append(aBatch(), 'durable')
    store.beforeAppend.set('__catalog-0', () => {
      throw new BrokerError('FLUSH_FAILED', 'the disk is gone')
    })
    expect(await codeOf(topics.create({ name: 'b' }))).toBe('FLUSH_FAILED')
    store.beforeAppend.clear()
    expect(await codeOf(topics.create({ name: 'b' }))).toBe('READ_ONLY')
    const { bytes } = await topics.getPartition('orders', 0).read(toOffset(0), KIB)
    expect(bytes).toBeGreaterThan(0)
  })
})

describe('finding topics and partitions', () => {
  it('names the nearest for one that is not there', async () => {
    const { topics } = await aBench()
    for (const name of ['orders', 'order-items', 'invoices']) await topics.create({ name })
    const failure = thrownBy(() => topics.getPartition('ordes', 0))
    expect(failure.code).toBe('UNKNOWN_TOPIC')
    expect(failure.message).toBe('there is no topic ordes; did you mean orders?')
    expect(failure.details).toEqual({ topic: 'ordes', nearest: ['orders'] })
    const far = thrownBy(() => topics.get('zebra'))
    expect([far.message, far.details['nearest']]).toEqual(['there is no topic zebra', []])
  })

  it('suggests what has come since, and no longer what has gone', async () => {
    const { topics } = await aBench()
    const nearest = (): unknown => thrownBy(() => topics.get('ordes')).details['nearest']
    expect(nearest()).toEqual([])
    await topics.create({ name: 'orders' })
    expect(nearest()).toEqual(['orders'])
    await topics.delete('orders')
    expect(nearest()).toEqual([])
  })

  it('says what is wrong with a name that no topic can have', async () => {
    const { topics } = await aBench()
    for (const name of ['a/b', '', '..']) {
      expect(thrownBy(() => topics.get(name)).code).toBe('INVALID_TOPIC_NAME')
    }
  })

  it('says how many partitions there are', async () => {
    const { topics } = await aBench()
    await topics.create({ name: 'orders', partitions: 3 })
    const failure = thrownBy(() => topics.getPartition('orders', 3))
    expect(failure.code).toBe('UNKNOWN_PARTITION')
    expect(failure.message).toBe('topic orders has no partition 3: it has 3 partitions, 0 to 2')
    for (const index of [-1, 0.5, Number.NaN, Infinity]) {
      expect(thrownBy(() => topics.getPartition('orders', index)).code).toBe('INVALID_PARTITION')
    }
  })

  it('refuses the id of a topic that was made anew', async () => {
    const { topics } = await aBench()
    const old = await topics.create({ name: 'orders' })
    await topics.delete('orders')
    const made = await topics.create({ name: 'orders' })
    const failure = thrownBy(() => topics.getPartition('orders', 0, old.topicId))
    expect(failure.code).toBe('UNKNOWN_TOPIC_ID')
    expect(failure.details).toEqual({ topic: 'orders', topicId: made.topicId })
    expect(topics.getPartition('orders', 0, made.topicId).topicId).toBe(made.topicId)
  })

  it('lists by name, the broker’s own only when asked', async () => {
    const { topics } = await aBench()
    for (const name of ['b', 'a', 'C']) await topics.create({ name })
    expect(topics.list().map((topic) => topic.name)).toEqual(['C', 'a', 'b'])
    const all = topics.list({ internal: true })
    expect(all.map((topic) => topic.name)).toEqual(['C', '__catalog', 'a', 'b'])
    expect(all.map((topic) => topic.internal)).toEqual([false, true, false, false])
  })

  it('lets everyone read the catalog, and nobody write, change or delete it', async () => {
    const { topics } = await aBench()
    await topics.create({ name: 'orders' })
    const { chunks } = await topics.getPartition('__catalog', 0).read(toOffset(0), KIB)
    expect(recordsOf(chunks)[0]?.value).toContain('"topic":"orders"')
    expect(thrownBy(() => topics.checkWritable('__catalog')).code).toBe('TOPIC_INTERNAL')
    expect(() => topics.checkWritable('orders')).not.toThrow()
    expect(await codeOf(topics.delete('__catalog'))).toBe('TOPIC_INTERNAL')
    expect(await codeOf(topics.addPartitions('__catalog', 2))).toBe('TOPIC_INTERNAL')
    expect(await codeOf(topics.alter('__catalog', {}))).toBe('TOPIC_INTERNAL')
  })

  it('raises the version of the map with every change and every start', async () => {
    const bench = await aBench()
    const versions = [bench.topics.mapVersion]
    const note = (): number => versions.push(bench.topics.mapVersion)
    await bench.topics.create({ name: 'orders' })
    note()
    await bench.topics.addPartitions('orders', 2)
    note()
    await bench.topics.alter('orders', { set: { 'max.message.bytes': '2MiB' } })
    note()
    await bench.topics.delete('orders')
    note()
    const next = await Topics.open({
      store: bench.store.inner.restart(),
      clock: bench.clock,
      random: new SeededRandom(3),
    })
    versions.push(next.mapVersion)
    await next.close()
    expect(versions).toEqual([...new Set(versions)].sort((a, b) => a - b))
  })
})

describe('deleting a topic', () => {
  it('removes its directories and wakes who waits with UNKNOWN_TOPIC', async () => {
    const { topics, store } = await aBench()
    const { topicId } = await topics.create({ name: 'orders', partitions: 2 })
    const partition = topics.getPartition('orders', 1)
    const wait = codeOf(partition.waitForAppend(toOffset(0)))
    expect(await topics.delete('orders')).toEqual({ topicId })
    expect(await wait).toBe('UNKNOWN_TOPIC')
    expect(await codeOf(partition.append(aBatch(), 'durable'))).toBe('UNKNOWN_TOPIC')
    expect(await directoriesOf(store)).toEqual(['__catalog-0'])
    expect(await codeOf(topics.delete('orders'))).toBe('UNKNOWN_TOPIC')
  })

  it('leaves its name free at once, for a topic without its records', async () => {
    const { topics } = await aBench()
    await topics.create({ name: 'orders' })
    await topics.getPartition('orders', 0).append(aBatch(), 'durable')
    const [, made] = await Promise.all([topics.delete('orders'), topics.create({ name: 'orders' })])
    expect(made.created).toBe(true)
    expect(topics.getPartition('orders', 0).logEndOffset).toBe(0)
  })

  it('counts although a directory stays, which is tried again before the name is used anew', async () => {
    const { topics, store } = await aBench()
    await topics.create({ name: 'orders', partitions: 2 })
    store.unremovable.add('orders-1')
    await topics.delete('orders')
    expect(await directoriesOf(store)).toEqual(['__catalog-0', 'orders-1'])
    expect(await codeOf(topics.create({ name: 'orders' }))).toBe('STORAGE_ERROR')
    store.unremovable.clear()
    expect(await codeOf(topics.create({ name: 'orders' }))).toBe('OK')
    expect(await directoriesOf(store)).toEqual(['__catalog-0', 'orders-0'])
  })

  it('is finished at the next start, before the name’s next topic is opened', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders', partitions: 2 })
    bench.store.unremovable.add('orders-1')
    await bench.topics.delete('orders')
    await bench.reopen()
    expect(await codeOf(bench.topics.create({ name: 'orders' }))).toBe('STORAGE_ERROR')
    bench.store.unremovable.clear()
    const topics = await bench.reopen()
    expect(await directoriesOf(bench.store)).toEqual(['__catalog-0'])
    expect(await codeOf(topics.create({ name: 'orders', partitions: 2 }))).toBe('OK')
  })
})

describe('adding partitions', () => {
  it('keeps the old ones and opens the new', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders', partitions: 2 })
    const old = bench.topics.getPartition('orders', 0)
    expect(await bench.topics.addPartitions('orders', 5)).toBe(5)
    expect(bench.topics.getPartition('orders', 0)).toBe(old)
    await bench.topics.getPartition('orders', 4).append(aBatch(), 'durable')
    const topics = await bench.reopen()
    expect(topics.get('orders').partitions.map((one) => one.logEndOffset)).toEqual([0, 0, 0, 0, 1])
  })

  it('refuses a total that is not larger, or too large', async () => {
    const { topics } = await aBench()
    await topics.create({ name: 'orders', partitions: 2 })
    for (const total of [2, 1, 0, -1, 2.5, 10_001]) {
      expect(await codeOf(topics.addPartitions('orders', total))).toBe('INVALID_PARTITION')
    }
    expect(await codeOf(topics.addPartitions('oders', 3))).toBe('UNKNOWN_TOPIC')
  })

  it('says when one could not be opened, and opens it with the next check', async () => {
    const { topics, store, clock, log } = await aBench()
    await topics.create({ name: 'orders' })
    store.unopenable.set('orders-1', new BrokerError('TOO_MANY_OPEN_FILES', 'no descriptor'))
    const failure = await failureOf(topics.addPartitions('orders', 3))
    expect([failure.code, failure.noSideEffects]).toEqual(['STORAGE_ERROR', false])
    expect(thrownBy(() => topics.getPartition('orders', 1)).code).toBe('TOO_MANY_OPEN_FILES')
    await topics.getPartition('orders', 2).append(aBatch(), 'durable')
    store.unopenable.clear()
    await clock.advance(5 * MINUTE_MS)
    await topics.getPartition('orders', 1).append(aBatch(), 'durable')
    expect(log.lines).toContain('info: partition opened at last')
  })
})

describe('altering a topic', () => {
  it('is in force at once and after a restart, and can be taken back', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders', config: { 'retention.ms': '1h' } })
    const big = (): Uint8Array => aBatch({ valueBytes: 1.5 * 1024 * KIB })
    const append = (): Promise<string> =>
      codeOf(bench.topics.getPartition('orders', 0).append(big(), 'durable'))
    expect(await append()).toBe('BATCH_TOO_LARGE')
    const set = { 'max.message.bytes': '2MiB' }
    const described = await bench.topics.alter('orders', { set, clear: ['retention.ms'] })
    const own = described.filter((one) => one.overridden).map(({ name, value }) => [name, value])
    expect(own).toEqual([['max.message.bytes', '2MiB']])
    expect(await append()).toBe('OK')
    await bench.reopen()
    expect(bench.topics.get('orders').describeConfig()).toEqual(described)
    expect(await append()).toBe('OK')
    await bench.topics.alter('orders', { clear: ['max.message.bytes'] })
    expect(await append()).toBe('BATCH_TOO_LARGE')
  })

  it('writes nothing when nothing changes, or when only validation is asked for', async () => {
    const { topics } = await aBench()
    await topics.create({ name: 'orders' })
    const version = topics.mapVersion
    await topics.alter('orders', { clear: ['retention.ms'] })
    const set = { 'retention.ms': '1h' }
    const would = await topics.alter('orders', { set, validateOnly: true })
    expect(would.find((one) => one.name === 'retention.ms')?.value).toBe('1h')
    expect(topics.mapVersion).toBe(version)
    expect(topics.get('orders').overrides).toEqual({})
  })

  it('checks the settings as they would be together', async () => {
    const { topics } = await aBench()
    await topics.create({ name: 'orders', config: { 'segment.bytes': '2MiB' } })
    for (const validateOnly of [true, false]) {
      const set = { 'max.message.bytes': '3MiB' }
      expect(await codeOf(topics.alter('orders', { set, validateOnly }))).toBe('INVALID_CONFIG')
    }
  })
})

describe('retention', () => {
  async function withOldRecords(bench: Bench): Promise<void> {
    await bench.topics.create({ name: 'orders', config: { 'retention.ms': '1h' } })
    await bench.topics.getPartition('orders', 0).append(aBatch({ records: 3 }), 'durable')
    await bench.clock.advance(HOUR_MS / 2)
  }

  it('looks at every partition within its period, and goes on doing so', async () => {
    const bench = await aBench()
    await withOldRecords(bench)
    const partition = bench.topics.getPartition('orders', 0)
    expect(partition.logStartOffset).toBe(0)
    await bench.clock.advance(HOUR_MS / 2 + 5 * MINUTE_MS + 1)
    expect(partition.logStartOffset).toBe(3)
    expect(bench.log.lines).toContain('info: records expired')
  })

  it('does not come to all partitions at the same moment', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders', partitions: 50 })
    const dues = new Set<number>()
    const cleanerMs = 15_000
    for (let nowMs = 0; nowMs < 5 * MINUTE_MS; nowMs = bench.clock.monotonicMs()) {
      const dueInMs = bench.clock.nextDueInMs ?? Infinity
      const dueMs = nowMs + dueInMs
      if (dueMs < 5 * MINUTE_MS && dueMs % cleanerMs !== 0) dues.add(dueMs)
      await bench.clock.advance(dueInMs)
    }
    // One for each, and one for the catalog.
    expect(dues.size).toBe(51)
  })

  it('goes by a setting that is changed meanwhile', async () => {
    const bench = await aBench()
    await withOldRecords(bench)
    await bench.topics.alter('orders', { set: { 'retention.ms': '10m' } })
    await bench.clock.advance(5 * MINUTE_MS + 1)
    expect(bench.topics.getPartition('orders', 0).logStartOffset).toBe(3)
  })

  it('runs at once when space is low, but not with every refusal', async () => {
    const bench = await aBench({ retentionCheckMs: 24 * HOUR_MS })
    await withOldRecords(bench)
    bench.clock.setWall(bench.clock.wallMs() + HOUR_MS)
    const partition = bench.topics.getPartition('orders', 0)
    const refuse = async (): Promise<void> => {
      bench.store.inner.storageFull = true
      expect(await codeOf(partition.append(aBatch(), 'durable'))).toBe('STORAGE_FULL')
      await settle()
      bench.store.inner.storageFull = false
    }
    await refuse()
    expect(partition.logStartOffset).toBe(3)
    await partition.append(aBatch(), 'durable')
    await refuse()
    expect(partition.logStartOffset).toBe(3)
    await bench.clock.advance(10_000)
    await refuse()
    expect(partition.logStartOffset).toBe(4)
  })

  it('ends with the topic and with the broker', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders', partitions: 10 })
    // One for each partition, the catalog's too, and the cleaner's.
    expect(bench.clock.pendingTimers).toBe(12)
    await bench.topics.delete('orders')
    expect(bench.clock.pendingTimers).toBe(2)
    await bench.topics.close()
    expect(bench.clock.pendingTimers).toBe(0)
  })
})

describe('opening', () => {
  it('finds topics, settings and records again', async () => {
    const bench = await aBench()
    const made = await bench.topics.create({
      name: 'orders',
      partitions: 2,
      config: { visibility: 'written' },
    })
    await bench.topics.getPartition('orders', 1).append(aBatch({ records: 4 }), 'durable')
    const topics = await bench.reopen()
    const topic = topics.get('orders')
    expect(topic.id).toBe(made.topicId)
    expect(topic.config.visibility).toBe('written')
    expect(topic.partitions.map((one) => one.highWatermark)).toEqual([0, 4])
    expect(bench.log.lines.filter((line) => !line.startsWith('info'))).toEqual([])
  })

  it('makes the partitions that a crash kept from being made, and says so', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders', partitions: 2 })
    const id = bench.topics.getPartition('orders', 1).id
    await bench.topics.close()
    await bench.store.inner.remove(id)
    const topics = await bench.reopen()
    await topics.getPartition('orders', 1).append(aBatch(), 'durable')
    expect(bench.log.lines).toContain('warn: partition had no directory: made empty')
  })

  it('keeps a directory that it does not know, unserved and in nobody’s place', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'a' })
    const stranger = {
      topic: 'lost',
      partition: 0,
      topicId: '22222222-2222-4222-8222-222222222222',
    }
    await bench.store.inner.open(stranger, DEFAULT_LOG_CONFIG)
    const topics = await bench.reopen()
    expect(topics.find('lost')).toBe(undefined)
    expect(bench.log.lines).toContain('warn: directory of an unknown topic: kept, not served')
    const failure = await failureOf(topics.create({ name: 'lost' }))
    expect([failure.code, failure.details['topicId']]).toEqual(['STORAGE_ERROR', stranger.topicId])
    expect(topics.getPartition('__catalog', 0).logEndOffset).toBe(1)
    expect(await directoriesOf(bench.store)).toEqual(['__catalog-0', 'a-0', 'lost-0'])
  })

  it('goes on without a partition that cannot be opened, and opens it when it can', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders', partitions: 2 })
    bench.store.unopenable.set('orders-0', new BrokerError('STORAGE_ERROR', 'rotten'))
    const topics = await bench.reopen()
    const failure = thrownBy(() => topics.getPartition('orders', 0))
    expect([failure.code, failure.message]).toEqual(['STORAGE_ERROR', 'rotten'])
    await topics.getPartition('orders', 1).append(aBatch(), 'durable')
    bench.store.unopenable.clear()
    await bench.clock.advance(5 * MINUTE_MS)
    await topics.getPartition('orders', 0).append(aBatch(), 'durable')
  })

  it('does not make anew the directory of a topic that is deleted while it waits to be opened', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders' })
    bench.store.unopenable.set('orders-0', new BrokerError('STORAGE_ERROR', 'rotten'))
    const topics = await bench.reopen()
    bench.store.unopenable.clear()
    const deleted = topics.delete('orders')
    await bench.clock.advance(10 * MINUTE_MS)
    await deleted
    expect(await directoriesOf(bench.store)).toEqual(['__catalog-0'])
  })

  it('refuses a catalog of a newer millrace, and touches nothing', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders' })
    await bench.topics.close()
    const log = await bench.store.inner.open(CATALOG_ID, DEFAULT_LOG_CONFIG)
    const event = { v: 9, type: 'topic-deleted', topic: 'orders' }
    await log.append(aBatch({ key: 'orders', values: [JSON.stringify(event)] }), 'durable')
    expect(await codeOf(bench.reopen())).toBe('UNSUPPORTED_FORMAT')
    expect(await directoriesOf(bench.store)).toEqual(['__catalog-0', 'orders-0'])
    expect(bench.clock.pendingTimers).toBe(0)
  })
})

describe('a damaged catalog', () => {
  async function damagedBench(): Promise<Bench> {
    const bench = await aBench()
    const { topics, store } = bench
    await topics.create({ name: 'gone' })
    store.unremovable.add('gone-0')
    await topics.delete('gone')
    await topics.create({ name: 'lost', partitions: 2, config: { 'retention.ms': '1s' } })
    await topics.create({ name: 'kept', config: { 'retention.ms': '1s' } })
    for (const name of ['lost', 'kept']) {
      await topics.getPartition(name, 0).append(aBatch({ values: [name] }), 'durable')
    }
    store.unremovable.clear()
    // The record that made `lost`.
    store.damaged.set('__catalog-0', { start: 2, end: 3 })
    await bench.reopen()
    return bench
  }

  it('makes everything read-only, and still serves every record', async () => {
    const { topics, log } = await damagedBench()
    expect(topics.readOnly).toContain('damaged from 2 to 3')
    expect(log.lines).toContain('error: the catalog is damaged: everything is read-only')
    expect(topics.list().map((topic) => topic.name)).toEqual(['kept', 'lost'])
    expect(topics.get('lost').partitions).toHaveLength(2)
    for (const name of ['lost', 'kept']) {
      const { chunks } = await topics.getPartition(name, 0).read(toOffset(0), KIB)
      expect(recordsOf(chunks).map((record) => record.value)).toEqual([name])
      const append = topics.getPartition(name, 0).append(aBatch(), 'durable')
      expect(await codeOf(append)).toBe('READ_ONLY')
    }
  })

  it('refuses every change', async () => {
    const { topics } = await damagedBench()
    for (const change of [
      topics.create({ name: 'new' }),
      topics.create({ name: 'new', validateOnly: true }),
      topics.delete('kept'),
      topics.addPartitions('kept', 2),
      topics.alter('kept', { set: { visibility: 'written' } }),
      topics.alter('lost', { set: { visibility: 'written' }, validateOnly: true }),
    ]) {
      expect(await codeOf(change)).toBe('READ_ONLY')
    }
  })

  it('drops and removes nothing, however old it is', async () => {
    const { topics, store, clock } = await damagedBench()
    await clock.advance(24 * HOUR_MS)
    for (const name of ['lost', 'kept']) {
      expect(topics.getPartition(name, 0).logStartOffset).toBe(0)
    }
    expect(await directoriesOf(store)).toContain('gone-0')
  })

  it('is one that has lost its records while there are directories', async () => {
    const bench = await aBench()
    await bench.topics.create({ name: 'orders', partitions: 2 })
    await bench.topics.getPartition('orders', 1).append(aBatch(), 'durable')
    await bench.topics.close()
    await bench.store.inner.remove(CATALOG_ID)
    // Also the second time, when an empty catalog has been made.
    for (let start = 0; start < 2; start++) {
      const topics = await bench.reopen()
      expect(topics.readOnly).toBe(
        'the catalog is empty, but there are 2 partitions in the data directory',
      )
      expect(topics.getPartition('orders', 1).highWatermark).toBe(1)
    }
  })
})

describe('closing', () => {
  it('finishes the change that is under way and refuses later ones', async () => {
    const { topics, store, clock } = await aBench()
    await topics.create({ name: 'orders' })
    let letOpen: () => void = () => undefined
    const opening = new Promise<void>((resolve) => {
      letOpen = resolve
    })
    store.beforeOpen = () => opening
    const under = codeOf(topics.create({ name: 'under-way' }))
    await settle()
    const closed = topics.close()
    const late = codeOf(topics.create({ name: 'late' }))
    letOpen()
    await closed
    expect([await under, await late]).toEqual(['OK', 'CLOSED'])
    for (const name of ['orders', 'under-way']) {
      expect(thrownBy(() => topics.getPartition(name, 0)).code).toBe('CLOSED')
    }
    expect(clock.pendingTimers).toBe(0)
    await topics.close()
  })
})

// ── Any history, with restarts in between, against a model ──

const NAMES = ['a', 'b', 'c'] as const
const anyName = constantFrom(...NAMES)
const anyStep = oneof(
  {
    weight: 4,
    arbitrary: record({ create: anyName, partitions: integer({ min: 1, max: 4 }) }),
  },
  { weight: 2, arbitrary: record({ delete: anyName }) },
  { weight: 2, arbitrary: record({ grow: anyName, total: integer({ min: 1, max: 6 }) }) },
  {
    weight: 2,
    arbitrary: record({ alter: anyName, hours: option(integer({ min: 1, max: 5 })) }),
  },
  { weight: 4, arbitrary: record({ append: anyName, partition: nat(5) }) },
  { weight: 1, arbitrary: constant({ restart: 'clean' as const }) },
  { weight: 1, arbitrary: constant({ restart: 'kill' as const }) },
)

interface ModelTopic {
  retentionMs: number | undefined
  ends: number[]
  id: string
}

/** What the step does to the model, and the error code that it should give. */
function expectStep(
  model: Map<string, ModelTopic>,
  step: typeof anyStep extends Arbitrary<infer T> ? T : never,
): string {
  if ('create' in step) {
    const there = model.get(step.create)
    if (there === undefined) {
      model.set(step.create, {
        retentionMs: undefined,
        ends: Array.from({ length: step.partitions }, () => 0),
        id: '',
      })
      return 'OK'
    }
    const isSame = there.ends.length === step.partitions && there.retentionMs === undefined
    return isSame ? 'OK' : 'TOPIC_EXISTS'
  }
  if ('delete' in step) return model.delete(step.delete) ? 'OK' : 'UNKNOWN_TOPIC'
  if ('grow' in step) {
    const there = model.get(step.grow)
    if (there === undefined) return 'UNKNOWN_TOPIC'
    if (step.total <= there.ends.length) return 'INVALID_PARTITION'
    while (there.ends.length < step.total) there.ends.push(0)
    return 'OK'
  }
  if ('alter' in step) {
    const there = model.get(step.alter)
    if (there === undefined) return 'UNKNOWN_TOPIC'
    there.retentionMs = step.hours === null ? undefined : step.hours * HOUR_MS
    return 'OK'
  }
  if ('append' in step) {
    const there = model.get(step.append)
    if (there === undefined) return 'UNKNOWN_TOPIC'
    const end = there.ends[step.partition]
    if (end === undefined) return 'UNKNOWN_PARTITION'
    there.ends[step.partition] = end + 1
    return 'OK'
  }
  return 'OK'
}

describe('any history', () => {
  it('leaves what a model of it says, through restarts and kills', async () => {
    await assert(
      asyncProperty(array(anyStep, { maxLength: 25 }), async (steps) => {
        const clock = new FakeClock()
        const random = new SeededRandom(7)
        let store = new MemoryStore({ clock, random })
        let topics = await Topics.open({ store, clock, random })
        const model = new Map<string, ModelTopic>()
        const perform = async (step: (typeof steps)[number]): Promise<unknown> => {
          if ('create' in step) {
            return topics.create({ name: step.create, partitions: step.partitions })
          }
          if ('delete' in step) return topics.delete(step.delete)
          if ('grow' in step) return topics.addPartitions(step.grow, step.total)
          if ('alter' in step) {
            const set: Record<string, string> =
              step.hours === null ? {} : { 'retention.ms': `${step.hours}h` }
            const clear = step.hours === null ? ['retention.ms'] : []
            return topics.alter(step.alter, { set, clear })
          }
          if ('append' in step) {
            const partition = topics.getPartition(step.append, step.partition)
            return partition.append(aBatch(), 'durable')
          }
          if (step.restart === 'clean') await topics.close()
          else store = store.restart()
          topics = await Topics.open({ store, clock, random })
          return topics
        }
        for (const step of [...steps, { restart: 'kill' as const }]) {
          const expected = expectStep(model, step)
          expect(await codeOf(perform(step))).toBe(expected)
          for (const [name, one] of model) {
            const topic = topics.get(name)
            one.id ||= topic.id
            expect(topic.id).toBe(one.id)
            expect(topic.overrides.retentionMs).toBe(one.retentionMs)
            expect(topic.partitions.map((partition) => partition.logEndOffset)).toEqual(one.ends)
          }
          expect(topics.list().map((topic) => topic.name)).toEqual([...model.keys()].sort())
        }
        const kept = (await store.list()).map((id) => `${id.topic}-${id.topicId}-${id.partition}`)
        const wanted = [...model].flatMap(([name, one]) =>
          one.ends.map((_, partition) => `${name}-${one.id}-${partition}`),
        )
        expect(kept.filter((name) => !name.startsWith('__')).sort()).toEqual(wanted.sort())
        expect(topics.readOnly).toBe(undefined)
        await topics.close()
      }),
      { numRuns: 150 },
    )
  })

  it('gives each of many changes at once an answer that fits one order of them', async () => {
    await assert(
      asyncProperty(array(anyStep, { maxLength: 20 }), async (steps) => {
        const { topics } = await aBench()
        const model = new Map<string, ModelTopic>()
        const changes = steps.filter((step) => !('restart' in step) && !('append' in step))
        // The queue takes them in call order, so the model does too.
        const expected = changes.map((step) => expectStep(model, step))
        const answers = changes.map((step) => {
          if ('create' in step) {
            return codeOf(topics.create({ name: step.create, partitions: step.partitions }))
          }
          if ('delete' in step) return codeOf(topics.delete(step.delete))
          if ('grow' in step) return codeOf(topics.addPartitions(step.grow, step.total))
          if (!('alter' in step)) return Promise.resolve('OK')
          const set: Record<string, string> =
            step.hours === null ? {} : { 'retention.ms': `${step.hours}h` }
          const clear = step.hours === null ? ['retention.ms'] : []
          return codeOf(topics.alter(step.alter, { set, clear }))
        })
        expect(await Promise.all(answers)).toEqual(expected)
        expect(topics.list().map((topic) => topic.name)).toEqual([...model.keys()].sort())
      }),
      { numRuns: 50 },
    )
  })
})
