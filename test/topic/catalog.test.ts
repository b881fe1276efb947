import { describe, expect, it } from 'vitest'
import {
  array,
  assert,
  asyncProperty,
  constantFrom,
  integer,
  jsonValue,
  nat,
  oneof,
  property,
  record,
  stringMatching,
  tuple,
  uuid,
} from 'fast-check'
import { BrokerError } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import type { PartitionLog } from '../../src/log/partition-log.ts'
import { Catalog, CATALOG_ID, CatalogState } from '../../src/topic/catalog.ts'
import {
  type CatalogEvent,
  type CatalogTopic,
  decodeCatalogEvent,
  encodeCatalogEvent,
} from '../../src/topic/catalog-events.ts'
import { parseChange } from '../../src/topic/topic-config.ts'
import { aBatch } from '../support/batches.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { FaultyStore } from '../support/faulty-store.ts'

const TOPIC_ID = '11111111-1111-4111-8111-111111111111'

function aTopic(topic: string, more: Partial<CatalogTopic> = {}): CatalogTopic {
  return { topic, topicId: TOPIC_ID, createdMs: 5, partitions: 2, config: {}, ...more }
}

function created(topic: string): CatalogEvent {
  return { type: 'topic-created', ...aTopic(topic) }
}

async function aLog(): Promise<{ store: FaultyStore; log: PartitionLog; clock: FakeClock }> {
  const clock = new FakeClock()
  const store = new FaultyStore(new MemoryStore({ clock, random: new SeededRandom(1) }))
  return { store, clock, log: await store.open(CATALOG_ID, DEFAULT_LOG_CONFIG) }
}

function codeOf(act: () => unknown): string {
  try {
    act()
    return 'OK'
  } catch (error) {
    return error instanceof BrokerError ? error.code : String(error)
  }
}

const anyTopic = record({
  topic: stringMatching(/^[A-Za-z0-9_-]{1,30}$/),
  topicId: uuid(),
  createdMs: nat(),
  partitions: integer({ min: 1, max: 10_000 }),
  config: constantFrom<Record<string, string>>({}, { 'retention.ms': '-1', 'from.later': 'x' }),
})

describe('the records of the catalog', () => {
  it('read back what was written', () => {
    const types = ['topic-created', 'topic-config-changed', 'partitions-added'] as const
    const changed = tuple(constantFrom(...types), anyTopic).map(([type, topic]): CatalogEvent => ({
      type,
      ...topic,
    }))
    const deleted = anyTopic.map(({ topic, topicId, createdMs }): CatalogEvent => ({
      type: 'topic-deleted',
      topic,
      topicId,
      deletedMs: createdMs,
    }))
    assert(
      property(oneof(changed, deleted), (event) => {
        expect(decodeCatalogEvent(event.topic, encodeCatalogEvent(event))).toEqual(event)
      }),
    )
  })

  it('keep the form that version 1 gave them', () => {
    const text =
      '{"v":1,"type":"topic-created","topic":"orders","topicId":"11111111-1111-4111-8111-111111111111","createdMs":5,"partitions":2,"config":{"retention.ms":"3600000"}}'
    const event = { type: 'topic-created', ...aTopic('orders') } as const
    const own = { ...event, config: { 'retention.ms': '3600000' } }
    expect(encodeCatalogEvent(own)).toBe(text)
    expect(decodeCatalogEvent('orders', text)).toEqual(own)
  })

  it('are INVALID_RECORD, and nothing else, whatever is changed in them', () => {
    const good: Record<string, unknown> = { v: 1, ...created('orders') }
    const wrong = oneof(
      constantFrom(undefined, null, -1, 1.5, 10_001, '', '..', [], {}, { a: 1 }, [1]),
      jsonValue(),
    )
    assert(
      property(constantFrom(...Object.keys(good)), wrong, (member, value) => {
        const text = JSON.stringify({ ...good, [member]: value })
        const outcome = codeOf(() => decodeCatalogEvent('orders', text))
        expect(['OK', 'INVALID_RECORD', 'UNSUPPORTED_FORMAT']).toContain(outcome)
      }),
    )
    expect(codeOf(() => decodeCatalogEvent('orders', '{"v":1,'))).toBe('INVALID_RECORD')
    expect(codeOf(() => decodeCatalogEvent('orders', 'null'))).toBe('INVALID_RECORD')
    const other = encodeCatalogEvent(created('other'))
    expect(codeOf(() => decodeCatalogEvent('orders', other))).toBe('INVALID_RECORD')
  })

  it.each([
    ['version', { v: 2 }],
    ['kind of event', { type: 'user-created' }],
  ])('say that a newer millrace wrote them, for an unknown %s', (_, change) => {
    const text = JSON.stringify({ v: 1, ...created('orders'), ...change })
    expect(codeOf(() => decodeCatalogEvent('orders', text))).toBe('UNSUPPORTED_FORMAT')
  })
})

describe('CatalogState', () => {
  it('decides without changing anything', () => {
    const state = new CatalogState()
    const { config: _, ...topic } = aTopic('orders')
    const event = state.decideCreate(topic, { retentionMs: Infinity })
    expect(state.topics.size).toBe(0)
    state.apply(event)
    const before = state.topics.get('orders')
    expect(before?.config).toEqual({ 'retention.ms': '-1' })
    state.decidePartitions('orders', 7)
    state.decideDelete('orders', 9)
    state.decideConfig('orders', parseChange({ visibility: 'written' }, []))
    expect(state.topics.get('orders')).toBe(before)
    expect(state.deletedIds.size).toBe(0)
  })

  it('knows when a change changes nothing', () => {
    const state = new CatalogState()
    state.apply({ ...created('orders'), config: { 'retention.ms': '3600000' } } as CatalogEvent)
    expect(state.decideConfig('orders', parseChange({ 'retention.ms': '1h' }, []))).toBe(undefined)
    expect(state.decideConfig('orders', parseChange({}, ['visibility']))).toBe(undefined)
  })

  it('keeps settings of a newer version through a change', () => {
    const state = new CatalogState()
    state.apply({ ...created('orders'), config: { 'from.later': 'x' } } as CatalogEvent)
    const event = state.decideConfig('orders', parseChange({ visibility: 'written' }, []))
    expect(event).toMatchObject({ config: { 'from.later': 'x', visibility: 'written' } })
  })

  it('needs only the newest record of each topic', () => {
    const whole = new CatalogState()
    const compacted = new CatalogState()
    const newest = new Map<string, CatalogEvent>()
    const keep = (event: CatalogEvent): void => {
      whole.apply(event)
      newest.set(event.topic, event)
    }
    keep(created('a'))
    keep(created('b'))
    keep(whole.decidePartitions('a', 4))
    keep(whole.decideConfig('a', parseChange({ visibility: 'written' }, [])) ?? created('a'))
    keep(whole.decideDelete('b', 9))
    for (const event of newest.values()) compacted.apply(event)
    expect(compacted.topics).toEqual(whole.topics)
    expect(compacted.deletedIds).toEqual(whole.deletedIds)
  })
})

describe('Catalog', () => {
  it('applies only what has become durable', async () => {
    const { store, log, clock } = await aLog()
    const catalog = await Catalog.open(log, clock)
    store.inner.storageFull = true
    await expect(catalog.commit(created('orders'))).rejects.toMatchObject({ code: 'STORAGE_FULL' })
    expect([catalog.state.topics.size, catalog.damage, catalog.end]).toEqual([0, undefined, 0])
    store.inner.storageFull = false
    await catalog.commit(created('orders'))
    expect([catalog.state.topics.size, catalog.isEmpty, catalog.end]).toEqual([1, false, 1])
  })

  it('takes no side once it cannot know whether a change was kept', async () => {
    const { store, log, clock } = await aLog()
    const catalog = await Catalog.open(log, clock)
    store.beforeAppend.set('__catalog-0', () => {
      throw new BrokerError('FLUSH_FAILED', 'the disk is gone')
    })
    await expect(catalog.commit(created('orders'))).rejects.toMatchObject({ code: 'FLUSH_FAILED' })
    expect(catalog.damage).toContain('the disk is gone')
  })

  it('is the same after replay', async () => {
    const { log, clock } = await aLog()
    const catalog = await Catalog.open(log, clock)
    await catalog.commit(created('a'))
    await catalog.commit(created('b'))
    await catalog.commit(catalog.state.decidePartitions('a', 9))
    await catalog.commit(catalog.state.decideDelete('b', 7))
    const again = await Catalog.open(log, clock)
    expect(again.state.topics).toEqual(catalog.state.topics)
    expect(again.state.deletedIds).toEqual(new Set([TOPIC_ID]))
    expect([again.end, again.damage, again.isEmpty]).toEqual([4, undefined, false])
  })

  it('notes damage and knows what lies on both sides of it', async () => {
    const { store, log, clock } = await aLog()
    const catalog = await Catalog.open(log, clock)
    for (const name of ['a', 'b', 'c', 'd']) await catalog.commit(created(name))
    store.damaged.set('__catalog-0', { start: 1, end: 3 })
    const again = await Catalog.open(log, clock)
    expect([...again.state.topics.keys()]).toEqual(['a', 'd'])
    expect(again.damage).toContain('damaged from 1 to 3')
    expect(again.end).toBe(4)
  })

  it('notes a record that is none of its own, and reads on', async () => {
    const { log, clock } = await aLog()
    const catalog = await Catalog.open(log, clock)
    await log.append(aBatch({ key: 'orders' }), 'durable')
    await log.append(aBatch(), 'durable')
    await catalog.commit(created('a'))
    const again = await Catalog.open(log, clock)
    expect(again.damage).toBe('a record of the catalog is not JSON')
    expect(again.state.topics.has('a')).toBe(true)
  })

  it('does not open what a newer millrace wrote, nor what it cannot read for another reason', async () => {
    const { log, clock } = await aLog()
    const text = JSON.stringify({ v: 2, ...created('a') })
    await log.append(aBatch({ key: 'a', values: [text] }), 'durable')
    await expect(Catalog.open(log, clock)).rejects.toMatchObject({ code: 'UNSUPPORTED_FORMAT' })
    await log.close()
    await expect(Catalog.open(log, clock)).rejects.toMatchObject({ code: 'CLOSED' })
  })
})

describe('a catalog whose log has been compacted', () => {
  const names = constantFrom('orders', 'jobs', 'mail')
  const changes = array(
    record({ act: constantFrom('create', 'alter', 'grow', 'delete', 'compact'), name: names }),
    { maxLength: 60, size: 'max' },
  )

  it('is replayed to the same topics, and knows which directories may go', async () => {
    await assert(
      asyncProperty(changes, async (steps) => {
        const clock = new FakeClock()
        const store = new MemoryStore({ clock, random: new SeededRandom(1) })
        const config = { ...DEFAULT_LOG_CONFIG, compact: true, segmentBytes: 600 }
        const log = await store.open(CATALOG_ID, config)
        const catalog = await Catalog.open(log, clock)
        const { state } = catalog
        const lastDeleted = new Map<string, string>()
        for (const [i, { act, name }] of steps.entries()) {
          const topic = state.topics.get(name)
          if (act === 'compact') await log.compact()
          else if (act === 'create' && topic === undefined) {
            const topicId = `11111111-1111-4111-8111-${String(i).padStart(12, '0')}`
            await catalog.commit({ type: 'topic-created', ...aTopic(name, { topicId }) })
            // Its directories are gone by then: a name is free only when they are.
            lastDeleted.delete(name)
          } else if (topic === undefined) continue
          else if (act === 'alter') {
            const set = { 'retention.ms': String(1000 + i) }
            const event = state.decideConfig(name, parseChange(set, []))
            if (event !== undefined) await catalog.commit(event)
          } else if (act === 'grow') {
            await catalog.commit(state.decidePartitions(name, topic.partitions + 1))
          } else if (act === 'delete') {
            await catalog.commit(state.decideDelete(name, i))
            lastDeleted.set(name, topic.topicId)
          }
        }
        const again = await Catalog.open(log, clock)
        expect(again.damage).toBeUndefined()
        expect(new Map(again.state.topics)).toEqual(new Map(state.topics))
        expect(again.end).toBe(catalog.end)
        expect(again.isEmpty).toBe(catalog.isEmpty)
        for (const topicId of lastDeleted.values()) {
          expect(again.state.deletedIds.has(topicId)).toBe(true)
        }
      }),
    )
  })
})
