import { beforeEach, describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { toOffset } from '../../../src/common/offset.ts'
import { SeededRandom } from '../../../src/common/random.ts'
import { DEFAULT_LOG_CONFIG } from '../../../src/log/log-config.ts'
import type { MemoryLog } from '../../../src/log/memory/memory-log.ts'
import { MemoryStore } from '../../../src/log/memory/memory-store.ts'
import { describeCompaction } from '../../conformance/compaction.ts'
import { complete, describePartitionLog, ORDERS } from '../../conformance/partition-log.ts'
import type { LogHarness } from '../../conformance/partition-log.ts'
import { aBatch, recordsOf } from '../../support/batches.ts'
import type { BatchShape } from '../../support/batches.ts'
import { FakeClock } from '../../support/fake-clock.ts'

function memoryHarness(durableDelayMs: number): () => Promise<LogHarness> {
  return async () => {
    const clock = new FakeClock()
    let store = new MemoryStore({ clock, random: new SeededRandom(1), durableDelayMs })
    const harness: LogHarness = {
      clock,
      get store() {
        return store
      },
      open: (config = {}) => store.open(ORDERS, { ...DEFAULT_LOG_CONFIG, ...config }),
      async reopen(config) {
        await store.close()
        store = store.restart()
        return harness.open(config)
      },
      settle: () => clock.advance(300),
    }
    return harness
  }
}

describePartitionLog('MemoryLog', memoryHarness(0))
describeCompaction('MemoryLog', memoryHarness(0))
describePartitionLog('MemoryLog, durable after 300 ms', memoryHarness(300))

describe('MemoryLog', () => {
  const FULL = new BrokerError('STORAGE_FULL', 'the disk is full')
  let clock: FakeClock
  let store: MemoryStore
  let log: MemoryLog

  beforeEach(async () => {
    clock = new FakeClock()
    store = new MemoryStore({ clock, random: new SeededRandom(1), durableDelayMs: 300 })
    log = await store.open(ORDERS, DEFAULT_LOG_CONFIG)
  })

  const settle = (): Promise<void> => clock.advance(300)

  it('is written at once and durable after the delay', async () => {
    const appended = log.append(aBatch({ records: 2 }), 'durable')
    await clock.advance(299)
    expect([log.highWatermark, log.writtenEndOffset, log.logEndOffset]).toEqual([0, 2, 2])
    expect((await log.read(toOffset(0), 1000)).chunks).toEqual([])
    expect((await log.read(toOffset(2), 1000)).nextOffset).toBe(2)
    expect((await log.read(toOffset(0), 1000, 'written')).nextOffset).toBe(2)
    await clock.advance(1)
    expect(await appended).toMatchObject({ acks: 'durable', highWatermark: 2 })
  })

  it('overlaps the delays of appends', async () => {
    const ends: number[] = []
    for (let i = 0; i < 3; i++) {
      void log.append(aBatch(), 'durable').then((result) => ends.push(result.endOffset))
      await clock.advance(100)
    }
    expect(ends).toEqual([1])
    await clock.advance(100)
    expect(ends).toEqual([1, 2])
    await clock.advance(100)
    expect(ends).toEqual([1, 2, 3])
  })

  it('fails the append it was told to and those written with it, and gives their offsets out again', async () => {
    const first = log.append(aBatch({ records: 2, producer: { id: 1, sequence: 0 } }), 'durable')
    log.failNextAppend(FULL)
    const second = log.append(aBatch({ records: 3, producer: { id: 1, sequence: 2 } }), 'durable')
    const third = log.append(aBatch({ producer: { id: 1, sequence: 5 } }), 'written')
    const order: string[] = []
    const done = Promise.allSettled([
      first.then(() => order.push('first')),
      second.catch((error: unknown) => order.push(`second ${(error as BrokerError).code}`)),
    ])
    await expect(third).rejects.toBe(FULL)
    expect(log.logEndOffset).toBe(2)
    await complete({ settle }, done)
    expect(order).toEqual(['first', 'second STORAGE_FULL'])
    const values = ['a', 'b', 'c']
    const retried = log.append(aBatch({ values, producer: { id: 1, sequence: 2 } }), 'durable')
    expect(await complete({ settle }, retried)).toMatchObject({ baseOffset: 2, duplicate: false })
    const found = recordsOf((await log.read(toOffset(0), 10_000)).chunks)
    expect(found.map((one) => one.value)).toEqual(['value-0', 'value-1', ...values])
  })

  it('still answers a flush that a failed append is part of', async () => {
    log.failNextAppend(FULL)
    const refused = expect(log.append(aBatch(), 'durable')).rejects.toBe(FULL)
    await complete({ settle }, log.flush())
    await refused
    expect(log.logEndOffset).toBe(0)
  })

  it('fails everything that waits when a flush fails, and tells the store', async () => {
    const cause = new Error('EIO')
    const appends = [1, 2].map(() => log.append(aBatch(), 'durable'))
    const flushed = log.flush()
    log.failNextFlush(cause)
    const outcomes = Promise.allSettled([...appends, flushed])
    await settle()
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'FLUSH_FAILED', cause } })
    }
    expect(await store.failed).toBe(cause)
    expect(log.highWatermark).toBe(0)
    await expect(log.append(aBatch(), 'none')).rejects.toMatchObject({ code: 'FLUSH_FAILED' })
    expect((await log.read(toOffset(0), 1000)).chunks).toEqual([])
    await store.close()
  })

  it('takes no appends while the store is full', async () => {
    store.storageFull = true
    await expect(log.append(aBatch(), 'none')).rejects.toMatchObject({ code: 'STORAGE_FULL' })
    expect(log.logEndOffset).toBe(0)
    store.storageFull = false
    expect(await log.append(aBatch(), 'none')).toMatchObject({ baseOffset: 0 })
  })

  it('loses what was not durable when the process is killed, and nothing else', async () => {
    const kept: BatchShape = { values: ['kept'], producer: { id: 2, sequence: 0 } }
    await complete({ settle }, log.append(aBatch(kept), 'durable'))
    await log.append(aBatch({ values: ['lost'], producer: { id: 3, sequence: 0 } }), 'written')
    const restarted = store.restart()
    const reopened = await restarted.open(ORDERS, DEFAULT_LOG_CONFIG)
    expect(restarted.clusterId).toBe(store.clusterId)
    expect(reopened.leaderEpoch).toBe(2)
    expect(reopened.logEndOffset).toBe(1)
    const repeated = reopened.append(aBatch(kept), 'durable')
    expect(await complete({ settle }, repeated)).toMatchObject({ baseOffset: 0, duplicate: true })
    const again = reopened.append(
      aBatch({ values: ['again'], producer: { id: 3, sequence: 0 } }),
      'durable',
    )
    expect(await complete({ settle }, again)).toMatchObject({ baseOffset: 1, duplicate: false })
    const found = recordsOf((await reopened.read(toOffset(0), 10_000)).chunks)
    expect(found.map((one) => one.value)).toEqual(['kept', 'again'])
  })

  it('remembers the producers of records that are gone when the process is killed', async () => {
    const config = { ...DEFAULT_LOG_CONFIG, segmentBytes: 1, retentionRecords: 1, deleteDelayMs: 0 }
    log.configure(config)
    const shape: BatchShape = { producer: { id: 3, sequence: 0 } }
    await complete({ settle }, log.append(aBatch(shape), 'durable'))
    await complete({ settle }, log.append(aBatch(), 'durable'))
    expect(await log.applyRetention()).toBe(1)
    expect((await log.stats()).segments).toBe(1)
    const reopened = await store.restart().open(ORDERS, config)
    const repeated = reopened.append(aBatch(shape), 'durable')
    expect(await complete({ settle }, repeated)).toMatchObject({ baseOffset: 0, duplicate: true })
  })

  it('looks up times in what plain readers see', async () => {
    await log.append(aBatch(), 'written')
    expect(await log.findOffsetByTimestamp(0)).toBeUndefined()
    log.configure({ ...DEFAULT_LOG_CONFIG, visibility: 'written' })
    expect(await log.findOffsetByTimestamp(0)).toMatchObject({ offset: 0 })
  })

  it('keeps its records when it alone is closed and opened again', async () => {
    await complete({ settle }, log.append(aBatch({ producer: { id: 3, sequence: 0 } }), 'durable'))
    const closed = log.close()
    const reopened = await complete({ settle }, store.open(ORDERS, DEFAULT_LOG_CONFIG))
    await closed
    expect(reopened).not.toBe(log)
    expect(reopened.leaderEpoch).toBe(1)
    const repeated = reopened.append(aBatch({ producer: { id: 3, sequence: 0 } }), 'durable')
    expect(await complete({ settle }, repeated)).toMatchObject({ baseOffset: 0, duplicate: true })
  })

  it('answers the open log when it is opened again', async () => {
    expect(await store.open(ORDERS, DEFAULT_LOG_CONFIG)).toBe(log)
  })
})
