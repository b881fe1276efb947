import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { StateLog } from '../../src/coordination/state-log.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import type { Partition } from '../../src/topic/partition.ts'
import { Topics } from '../../src/topic/topics.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { FaultyStore } from '../support/faulty-store.ts'
import { codeOf } from '../support/group-bench.ts'

interface Bench {
  readonly store: FaultyStore
  readonly partition: Partition
  readonly skipped: BrokerError[]
  open(onCorruption?: 'halt' | 'skip'): StateLog
}

async function aBench(durableDelayMs = 0): Promise<Bench & { readonly clock: FakeClock }> {
  const clock = new FakeClock()
  const random = new SeededRandom(1)
  const store = new FaultyStore(new MemoryStore({ clock, random, durableDelayMs }))
  const opening = Topics.open({ store, clock, random })
  await clock.advance(durableDelayMs)
  const topics = await opening
  const making = topics.ensureInternal('__state', 1, { 'cleanup.policy': 'compact' })
  await clock.advance(durableDelayMs)
  await making
  const partition = topics.getPartition('__state', 0)
  const skipped: BrokerError[] = []
  const open = (onCorruption: 'halt' | 'skip' = 'halt'): StateLog =>
    new StateLog({ partition, clock, onCorruption, onSkipped: (error) => skipped.push(error) })
  return { clock, store, partition, skipped, open }
}

async function replayed(log: StateLog): Promise<[string, string | null][]> {
  const records: [string, string | null][] = []
  await log.replay((key, value) => records.push([key, value]))
  return records
}

describe('StateLog', () => {
  it('replays what was written, in order, deletions too', async () => {
    const bench = await aBench()
    const log = bench.open()
    await replayed(log)
    await log.write([
      { key: 'a', value: '1' },
      { key: 'b', value: 'zwei' },
    ])
    await log.write([{ key: 'a', value: null }])
    expect(await replayed(bench.open())).toEqual([
      ['a', '1'],
      ['b', 'zwei'],
      ['a', null],
    ])
  })

  it('puts what is written in one turn into one batch, and splits what is too much for one', async () => {
    const bench = await aBench()
    const log = bench.open()
    await replayed(log)
    let appends = 0
    bench.store.beforeAppend.set('__state-0', () => appends++)
    await Promise.all(
      Array.from({ length: 100 }, (_, i) => log.write([{ key: `k${i}`, value: 'v' }])),
    )
    expect(appends).toBe(1)
    const value = 'x'.repeat(100_000)
    await log.write(Array.from({ length: 12 }, (_, i) => ({ key: `large${i}`, value })))
    expect(appends).toBe(4)
    expect(await replayed(bench.open())).toHaveLength(112)
  })

  it('keeps nothing behind a batch that was lost', async () => {
    const bench = await aBench(10)
    const log = bench.open()
    await replayed(log)
    let appends = 0
    bench.store.beforeAppend.set('__state-0', () => {
      appends++
      if (appends === 2) throw new BrokerError('STORAGE_FULL', 'no room for this one')
    })
    const results: string[] = []
    for (const key of ['a', 'b', 'c', 'd']) {
      const writing = codeOf(log.write([{ key, value: '1' }]))
      void writing.then((code) => results.push(`${key}: ${code}`))
      await bench.clock.advance(1)
    }
    await bench.clock.advance(100)
    expect(results.sort()).toEqual([
      'a: none',
      'b: STORAGE_FULL',
      'c: STORAGE_FULL',
      'd: STORAGE_FULL',
    ])
    expect(log.failure?.code).toBe('STORAGE_FULL')
    expect(await codeOf(log.settled())).toBe('STORAGE_FULL')
    const reading = replayed(bench.open())
    await bench.clock.advance(100)
    expect(await reading).toEqual([['a', '1']])
  })

  it('settles when what was written before is durable, and not before', async () => {
    const bench = await aBench(10)
    const log = bench.open()
    await replayed(log)
    const order: string[] = []
    const writing = log.write([{ key: 'a', value: '1' }])
    void writing.then(() => order.push('written'))
    void log.settled().then(() => order.push('settled'))
    await bench.clock.advance(9)
    expect(order).toEqual([])
    await bench.clock.advance(2)
    expect(order).toEqual(['written', 'settled'])
  })

  it('refuses to replay a damaged log, or passes the damage over and tells', async () => {
    const bench = await aBench()
    const log = bench.open()
    await replayed(log)
    for (const key of ['a', 'b', 'c', 'd']) await log.write([{ key, value: '1' }])
    bench.store.damaged.set('__state-0', { start: 1, end: 3 })
    expect(await codeOf(replayed(bench.open()))).toBe('SEGMENT_QUARANTINED')
    expect((await replayed(bench.open('skip'))).map(([key]) => key)).toEqual(['a', 'd'])
    expect(bench.skipped.map(({ code }) => code)).toEqual(['SEGMENT_QUARANTINED'])
  })
})
