import { afterEach, describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { CompanionLog } from '../../../src/coordination/queue/companion.ts'
import { Companions } from '../../../src/coordination/queue/companions.ts'
import type { QueueEvent } from '../../../src/coordination/queue/queue-state.ts'
import { StateLog } from '../../../src/coordination/state-log.ts'
import { settle } from '../../support/fake-clock.ts'
import { aBench, type Bench, closeBenches, Lines } from '../../support/topics-bench.ts'

const STATE = 'orders-0.state'
const IDLE_MS = 5 * 60_000
const COUNTS = { deliveries: 1, failures: 1, stalled: false, firstDeliveredMs: 1 }

afterEach(closeBenches)

async function aTopic(): Promise<Bench> {
  const bench = await aBench()
  await bench.topics.create({ name: 'orders', partitions: 2 })
  return bench
}

interface Opened {
  readonly log: CompanionLog
  readonly failures: BrokerError[]
}

async function open(bench: Bench, lingerMs = 0): Promise<Opened> {
  const failures: BrokerError[] = []
  const log = await CompanionLog.open({
    partition: await bench.topics.openCompanion('orders', 0),
    clock: bench.clock,
    logger: new Lines(),
    lingerMs,
    onFailed: (error) => failures.push(error),
  })
  return { log, failures }
}

/** As the owner does it: applied, and written in the same turn. */
function put(log: CompanionLog, group: string, events: readonly QueueEvent[]): Promise<void> {
  const state = log.create(group)
  for (const event of events) state.apply(event)
  return log.write(group, events)
}

function accepted(first: number, end: number = first + 1): QueueEvent {
  return { type: 'accepted', first, end }
}

function parked(first: number, stack = ''): QueueEvent {
  return {
    type: 'parked',
    first,
    end: first + 1,
    ...COUNTS,
    dueMs: 9,
    failure: { error: { type: 'E', message: 'm', stack }, atMs: 1, memberId: 'w', kind: 'retry' },
  }
}

function snapshots(log: CompanionLog): Record<string, string | undefined> {
  return Object.fromEntries(log.groups().map((group) => [group, log.find(group)?.snapshot()]))
}

async function expectReadBack(bench: Bench, log: CompanionLog): Promise<void> {
  const expected = snapshots(log)
  await log.close()
  await bench.reopen()
  expect(snapshots((await open(bench)).log)).toEqual(expected)
}

describe('a companion log', () => {
  it('knows after a restart what its groups knew', async () => {
    const bench = await aTopic()
    const { log } = await open(bench)
    await put(log, 'a', [accepted(3), parked(5)])
    await put(log, 'b', [accepted(0, 9)])
    await expectReadBack(bench, log)
  })

  it('writes together what is written in one turn', async () => {
    const bench = await aTopic()
    const { log } = await open(bench)
    const writes = [0, 1, 2, 3].map((offset) => put(log, 'a', [accepted(offset)]))
    await Promise.all([...writes, put(log, 'b', [accepted(1)])])
    expect(log.partition.highWatermark).toBe(2)
  })

  it('gathers what comes close behind a write, and never longer than it lingers', async () => {
    const bench = await aTopic()
    const { log } = await open(bench, 2)
    await put(log, 'a', [accepted(0)])
    expect(log.partition.highWatermark).toBe(1)
    const second = put(log, 'a', [accepted(1)])
    await bench.clock.advance(1)
    const third = put(log, 'a', [accepted(2)])
    expect(log.partition.logEndOffset).toBe(1)
    await bench.clock.advance(1)
    await Promise.all([second, third])
    expect(log.partition.highWatermark).toBe(2)
  })

  it('waits for nothing when it is closed', async () => {
    const bench = await aTopic()
    const { log } = await open(bench, 100)
    await put(log, 'a', [accepted(0)])
    const last = put(log, 'a', [accepted(1)])
    await log.close()
    await last
    expect(log.partition.highWatermark).toBe(2)
  })

  it('is cut off after a snapshot, when much was written', async () => {
    const bench = await aTopic()
    const { log } = await open(bench)
    for (let i = 0; i < 2000; i++) await put(log, `g${i % 3}`, [parked(i, 'x'.repeat(100))])
    await settle()
    expect(log.partition.logStartOffset).toBeGreaterThan(400)
    await expectReadBack(bench, log)
  })

  it('is cut off after a snapshot, when nothing has been written for a while', async () => {
    const bench = await aTopic()
    const { log } = await open(bench)
    await put(log, 'a', [accepted(3), parked(5)])
    await put(log, 'b', [accepted(4)])
    await bench.clock.advance(IDLE_MS + 1)
    expect(log.partition.logStartOffset).toBe(2)
    await bench.clock.advance(2 * IDLE_MS)
    expect(log.partition.highWatermark).toBe(4)
    await put(log, 'a', [accepted(5)])
    await expectReadBack(bench, log)
  })

  it('reads a snapshot of several parts, with letters of several bytes', async () => {
    const bench = await aTopic()
    const { log } = await open(bench)
    for (let i = 0; i < 60; i++) await put(log, 'a', [parked(2 * i, '\u{1f41b}'.repeat(4001))])
    await bench.clock.advance(IDLE_MS + 1)
    expect(log.partition.logStartOffset).toBe(60)
    expect(log.partition.highWatermark).toBeGreaterThan(62)
    await expectReadBack(bench, log)
  })

  it('goes on from what was before a snapshot that a crash cut short', async () => {
    const bench = await aTopic()
    const { log } = await open(bench)
    await put(log, 'a', [accepted(3)])
    await put(log, 'b', [accepted(4)])
    const a = log.find('a')?.snapshot() ?? ''
    const { partition } = log
    const raw = new StateLog({
      partition,
      clock: bench.clock,
      onCorruption: 'halt',
      onSkipped: () => undefined,
    })
    await raw.replay(() => undefined)
    // The first group's is whole, the second's is not.
    await raw.write([{ key: 'a', value: `S0/1 ${a}` }])
    await raw.write([{ key: 'b', value: 'S0/2 {"v":1,' }])
    await bench.reopen()
    const next = await open(bench)
    expect(snapshots(next.log)).toEqual(snapshots(log))
    await put(next.log, 'b', [accepted(6)])
    expect(next.log.find('b')?.runs).toMatchObject([
      { first: 0, end: 4 },
      { first: 5, end: 6 },
    ])
    await expectReadBack(bench, next.log)
  })

  it('takes 200 failures of a turn whose errors are as long as they may be', async () => {
    const bench = await aTopic()
    const { log, failures } = await open(bench)
    const stack = '\u0001'.repeat(8192)
    const events = Array.from({ length: 200 }, (_, i) => parked(i, stack))
    await put(log, 'a', events)
    expect(failures).toEqual([])
    await expectReadBack(bench, log)
  })

  it('tells everybody who wrote, and its owner once, when it cannot be written', async () => {
    const bench = await aTopic()
    const { log, failures } = await open(bench)
    await put(log, 'a', [accepted(1)])
    bench.store.beforeAppend.set(STATE, () => {
      throw new BrokerError('STORAGE_ERROR', 'broken')
    })
    const writes = [put(log, 'a', [accepted(2)]), put(log, 'b', [accepted(2)])]
    for (const write of writes) await expect(write).rejects.toMatchObject({ code: 'STORAGE_ERROR' })
    bench.store.beforeAppend.clear()
    await expect(put(log, 'a', [accepted(3)])).rejects.toMatchObject({ code: 'STORAGE_ERROR' })
    expect(failures).toHaveLength(1)
    expect(log.failure?.code).toBe('STORAGE_ERROR')
    // Loaded anew it knows what was durable.
    const next = await open(bench)
    expect(next.log.groups()).toEqual(['a'])
    expect(next.log.find('a')?.scan).toBe(2)
    await put(next.log, 'a', [accepted(2)])
    await expectReadBack(bench, next.log)
  })

  it('does not tell anybody that something is durable before it is, while a group is forgotten', async () => {
    const bench = await aTopic()
    const { log } = await open(bench)
    await put(log, 'gone', [accepted(1)])
    let letGo: () => void = () => undefined
    const gate = new Promise<void>((resolve) => {
      letGo = resolve
    })
    bench.store.aroundAppend = async (_name, append) => {
      await gate
      return append()
    }
    let isDurable = false
    const write = put(log, 'a', [accepted(2)]).then(() => (isDurable = true))
    const drop = log.drop('gone')
    await settle()
    expect(isDurable).toBe(false)
    letGo()
    await Promise.all([write, drop])
    expect(log.groups()).toEqual(['a'])
    await expectReadBack(bench, log)
  })

  it.each([
    ['X', 'UNSUPPORTED_FORMAT'],
    ['S1/2 x', 'INVALID_RECORD'],
    ['S0/1 x', 'INVALID_RECORD'],
    ['D[["?"]]', 'UNSUPPORTED_FORMAT'],
  ])('refuses to load the record %s', async (value, code) => {
    const bench = await aTopic()
    const { log } = await open(bench)
    const raw = new StateLog({
      partition: log.partition,
      clock: bench.clock,
      onCorruption: 'halt',
      onSkipped: () => undefined,
    })
    await raw.replay(() => undefined)
    await raw.write([{ key: 'a', value }])
    await expect(open(bench)).rejects.toMatchObject({ code })
  })
})

describe('companion logs', () => {
  async function some(): Promise<{ bench: Bench; companions: Companions; failed: string[] }> {
    const bench = await aTopic()
    const { topics, clock } = bench
    const companions = new Companions({ topics, clock, logger: new Lines() })
    const failed: string[] = []
    companions.onFailed((log) => failed.push(log.partition.name))
    return { bench, companions, failed }
  }

  it('are opened once', async () => {
    const { companions } = await some()
    const [a, b] = await Promise.all([companions.open('orders', 0), companions.open('orders', 0)])
    expect(a).toBe(b)
    expect(await companions.open('orders', 1)).not.toBe(a)
    await expect(companions.open('orders', 2)).rejects.toMatchObject({ code: 'UNKNOWN_PARTITION' })
    await companions.close()
  })

  it('are loaded anew after one failed', async () => {
    const { bench, companions, failed } = await some()
    const log = await companions.open('orders', 0)
    bench.store.beforeAppend.set(STATE, () => {
      throw new BrokerError('STORAGE_ERROR', 'broken')
    })
    await expect(put(log, 'a', [accepted(2)])).rejects.toThrow()
    expect(failed).toEqual([STATE])
    bench.store.beforeAppend.clear()
    const next = await companions.open('orders', 0)
    expect(next).not.toBe(log)
    expect(next.groups()).toEqual([])
    await companions.close()
  })

  it('of a topic that was made anew are not mixed up with those of the old one', async () => {
    const { bench, companions } = await some()
    const old = await companions.open('orders', 0)
    await put(old, 'a', [accepted(2)])
    await bench.topics.delete('orders')
    await bench.topics.create({ name: 'orders', partitions: 1 })
    const fresh = await companions.open('orders', 0)
    expect(fresh.groups()).toEqual([])
    // The old one hears only now that it is gone.
    await expect(put(old, 'a', [accepted(3)])).rejects.toMatchObject({ code: 'UNKNOWN_TOPIC' })
    expect(await companions.open('orders', 0)).toBe(fresh)
    await companions.close()
  })

  it('of a deleted topic are let go of', async () => {
    const { bench, companions, failed } = await some()
    const old = await companions.open('orders', 0)
    await put(old, 'a', [accepted(2)])
    await bench.topics.delete('orders')
    companions.forgetDeleted()
    await bench.clock.advance(IDLE_MS + 1)
    expect(failed).toEqual([])
  })
})
