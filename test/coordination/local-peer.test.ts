import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { batchBytesOf, LocalPeer } from '../../src/coordination/local-peer.ts'
import type { PeerRecord } from '../../src/coordination/peer.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import { stampCrc } from '../../src/record/batch-header.ts'
import { toLogConfig } from '../../src/topic/topic-config.ts'
import { Topics } from '../../src/topic/topics.ts'
import { partitionForKey } from '../../src/wire/murmur2.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { FaultyStore } from '../support/faulty-store.ts'
import { codeOf } from '../support/group-bench.ts'
import { entriesOf } from '../support/batches.ts'

interface Bench {
  readonly clock: FakeClock
  readonly store: FaultyStore
  readonly topics: Topics
  readonly peer: LocalPeer
}

async function aBench(
  partitions = 3,
  config: Readonly<Record<string, string>> = {},
): Promise<Bench> {
  const clock = new FakeClock()
  const random = new SeededRandom(1)
  const store = new FaultyStore(new MemoryStore({ clock, random }))
  const topics = await Topics.open({ store, clock, random })
  await topics.create({ name: 'orders', partitions, config })
  return { clock, store, topics, peer: new LocalPeer({ topics, clock }) }
}

function aRecord(id: string, value = 'v'): PeerRecord {
  return {
    key: Buffer.from('k'),
    value: Buffer.from(value),
    headers: [
      { key: 'other', value: Buffer.from('x') },
      { key: 'job.delay_id', value: Buffer.from(id) },
    ],
    timestampMs: undefined,
  }
}

describe('LocalPeer', () => {
  it('chooses the partition that producers choose for a key', async () => {
    const { peer } = await aBench(7)
    for (const text of ['a', 'customer-17', 'ü', '']) {
      const key = Buffer.from(text)
      expect(peer.mark('orders', { key }).partition).toBe(partitionForKey(key, 7))
    }
    expect(peer.mark('orders', { partition: 5, key: Buffer.from('a') }).partition).toBe(5)
    expect(peer.mark('orders', {}).partition).toBe(0)
  })

  it('says what is wrong with a place', async () => {
    const { peer, topics } = await aBench()
    expect(await codeOf((async () => peer.mark('nothing', {}))())).toBe('UNKNOWN_TOPIC')
    expect(await codeOf((async () => peer.mark('orders', { partition: 3 }))())).toBe(
      'UNKNOWN_PARTITION',
    )
    const mark = peer.mark('orders', {})
    await topics.delete('orders')
    await topics.create({ name: 'orders', partitions: 3 })
    expect(await codeOf(peer.append(mark, [aRecord('1')]))).toBe('UNKNOWN_TOPIC_ID')
    expect(await peer.findIds(mark, 'job.delay_id', new Set(['1']))).toEqual(new Map())
  })

  it('appends in order, in batches within the limit, and keeps keys, headers and timestamps', async () => {
    const { clock, peer, topics, store } = await aBench(1, { 'max.message.bytes': '4KiB' })
    let appends = 0
    store.beforeAppend.set('orders-0', () => appends++)
    const mark = peer.mark('orders', {})
    const records = Array.from({ length: 10 }, (_, i) => aRecord(`id${i}`, String(i).repeat(1000)))
    const offsets = await peer.append(mark, [
      ...records,
      { key: undefined, value: undefined, headers: [], timestampMs: clock.wallMs() - 5 },
    ])
    expect(offsets).toEqual(Array.from({ length: 11 }, (_, i) => i))
    expect(appends).toBe(4)
    const { chunks } = await topics.getPartition('orders', 0).read(toOffset(0), 1e6)
    const stored = entriesOf(chunks)
    expect(stored.map(({ value }) => value?.length)).toEqual([
      ...records.map(() => 1000),
      undefined,
    ])
    expect(stored[3]).toMatchObject({ key: 'k', timestampMs: clock.wallMs() })
    expect(stored[10]).toMatchObject({ key: undefined, timestampMs: clock.wallMs() - 5 })
  })

  it('takes a record of exactly the limit, and names the one that is larger', async () => {
    const { peer, topics } = await aBench(1, { 'max.message.bytes': '1KiB' })
    const mark = peer.mark('orders', {})
    const fits = (bytes: number): PeerRecord => {
      const empty = aRecord('1', '')
      for (let length = bytes - batchBytesOf(empty); ; length--) {
        const record = aRecord('1', 'x'.repeat(length))
        if (batchBytesOf(record) <= bytes) return record
      }
    }
    const largest = fits(1024)
    expect(batchBytesOf(largest)).toBe(1024)
    await peer.append(mark, [largest])
    const failure = await peer
      .append(mark, [aRecord('1'), fits(1025), aRecord('3')])
      .catch((error: unknown) => error)
    expect(failure).toBeInstanceOf(BrokerError)
    expect(failure).toMatchObject({ code: 'RECORD_TOO_LARGE', details: { index: 1 } })
    expect(topics.getPartition('orders', 0).logEndOffset).toBe(1)
  })

  it('finds ids at or past the mark, and not before it', async () => {
    const { peer } = await aBench(1)
    await peer.append(peer.mark('orders', {}), [aRecord('old')])
    const mark = peer.mark('orders', {})
    await peer.append(mark, [aRecord('a'), aRecord('b'), aRecord('a')])
    const found = await peer.findIds(mark, 'job.delay_id', new Set(['old', 'a', 'b', 'c']))
    expect([...found]).toEqual([
      ['a', 1],
      ['b', 2],
    ])
    expect(await peer.findIds(mark, 'other.header', new Set(['a']))).toEqual(new Map())
  })

  it('does not mind what others have written badly, nor a log start that has moved on', async () => {
    const { clock, peer, topics } = await aBench(1)
    const mark = peer.mark('orders', {})
    const partition = topics.getPartition('orders', 0)
    const builder = new BatchBuilder({ maxBytes: 1e6 })
    builder.tryAppend('k', 'v'.repeat(100), clock.wallMs())
    const batch = builder.finish()
    batch[70] = 0xff
    stampCrc(batch, 0)
    await partition.append(batch, 'durable')
    await peer.append(mark, [aRecord('a'), aRecord('b')])
    const wanted = new Set(['a', 'b'])
    expect(await peer.findIds(mark, 'job.delay_id', wanted)).toEqual(
      new Map([
        ['a', 1],
        ['b', 2],
      ]),
    )
    await partition.advanceLogStart(toOffset(2))
    expect(await peer.findIds(mark, 'job.delay_id', wanted)).toEqual(new Map([['b', 2]]))
  })

  it('passes over damage: a copy that nobody can read is none', async () => {
    const { peer, store } = await aBench(1)
    const mark = peer.mark('orders', {})
    for (const id of ['a', 'b', 'c']) await peer.append(mark, [aRecord(id)])
    store.damaged.set('orders-0', { start: 0, end: 2 })
    expect(await peer.findIds(mark, 'job.delay_id', new Set(['a', 'b', 'c']))).toEqual(
      new Map([['c', 2]]),
    )
  })

  it('marks what cannot be taken back: what follows is found, also where others’ writes failed in between', async () => {
    const { peer, store, topics } = await aBench(1)
    const { id, config } = topics.getPartition('orders', 0)
    const log = await store.inner.open(id, toLogConfig(config))
    log.failNextAppend(new BrokerError('STORAGE_ERROR', 'no'))
    const lost = peer.append(peer.mark('orders', {}), [aRecord('lost')])
    const mark = peer.mark('orders', {})
    expect(await codeOf(lost)).toBe('STORAGE_ERROR')
    expect(await peer.append(mark, [aRecord('a')])).toEqual([0])
    expect(await peer.findIds(mark, 'job.delay_id', new Set(['a', 'lost']))).toEqual(
      new Map([['a', 0]]),
    )
  })
})
