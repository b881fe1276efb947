import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { HOUR_MS, KIB } from '../../src/common/units.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import type { PartitionId } from '../../src/log/partition-log.ts'
import { stampProducer } from '../../src/record/batch-header.ts'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import { Partition, type PartitionOptions } from '../../src/topic/partition.ts'
import { resolveConfig, toLogConfig, type TopicOverrides } from '../../src/topic/topic-config.ts'
import { aBatch, BATCH_TIME_MS, batchesOf } from '../support/batches.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'

const ID: PartitionId = {
  topic: 'orders',
  partition: 3,
  topicId: '11111111-1111-4111-8111-111111111111',
}

async function aPartition(
  overrides: TopicOverrides = {},
  options: Partial<PartitionOptions> & { durableDelayMs?: number } = {},
): Promise<{ partition: Partition; clock: FakeClock; store: MemoryStore }> {
  const { durableDelayMs = 0, ...others } = options
  const clock = new FakeClock()
  const store = new MemoryStore({ clock, random: new SeededRandom(1), durableDelayMs })
  const config = resolveConfig(overrides)
  const partition = new Partition({ id: ID, config, clock, ...others })
  partition.attach(await store.open(ID, toLogConfig(config)))
  return { partition, clock, store }
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'OK',
    (error: unknown) => (error instanceof BrokerError ? error.code : String(error)),
  )
}

function aControlBatch(): Uint8Array {
  const builder = new BatchBuilder({ maxBytes: KIB })
  builder.tryAppend('k', 'v', BATCH_TIME_MS)
  builder.setControl()
  return builder.finish()
}

describe('a compacted partition', () => {
  it('wants a key of every record that a client brings, compressed or not', async () => {
    const { partition } = await aPartition({ cleanupPolicy: 'compact' })
    for (const compression of ['none', 'lz4'] as const) {
      const batch = aBatch({ keys: ['a', 'b', undefined], compression, valueBytes: 50 })
      const refused = partition.append(batch, 'durable')
      await expect(refused).rejects.toMatchObject({
        code: 'INVALID_RECORD',
        details: { index: 2, topic: 'orders' },
        message: expect.stringContaining('compacted') as string,
      })
      expect(partition.logEndOffset).toBe(0)
    }
    const control = { allowControl: true }
    expect(await codeOf(partition.append(aBatch({ keys: ['a'] }), 'durable'))).toBe('OK')
    expect(await codeOf(partition.append(aControlBatch(), 'durable', control))).toBe('OK')
  })

  it('begins to want them, and ends, with the setting', async () => {
    const { partition } = await aPartition()
    const keyless = (): Promise<string> => codeOf(partition.append(aBatch(), 'durable'))
    expect(await keyless()).toBe('OK')
    partition.configure(resolveConfig({ cleanupPolicy: 'compact,delete' }))
    expect(await keyless()).toBe('INVALID_RECORD')
    partition.configure(resolveConfig({}))
    expect(await keyless()).toBe('OK')
  })

  it('is not compacted where it can only be read, or is gone', async () => {
    const { partition } = await aPartition({ cleanupPolicy: 'compact' }, { readOnly: 'damaged' })
    expect(await partition.findCompactionNeed()).toBeUndefined()
    expect(await codeOf(partition.compact())).toBe('READ_ONLY')
    partition.end()
    expect(await partition.findCompactionNeed()).toBeUndefined()
    expect(await codeOf(partition.compact())).toBe('UNKNOWN_TOPIC')
  })
})

describe('Partition.append', () => {
  it('gives out dense offsets in the order of the calls, without waiting', async () => {
    const { partition, clock } = await aPartition({}, { durableDelayMs: 300 })
    const results = [2, 3, 1].map((records) => partition.append(aBatch({ records }), 'durable'))
    expect(partition.logEndOffset).toBe(6)
    expect(partition.highWatermark).toBe(0)
    await clock.advance(300)
    const done = await Promise.all(results)
    expect(done.map((one) => [one.baseOffset, one.endOffset])).toEqual([
      [0, 2],
      [2, 5],
      [5, 6],
    ])
  })

  it('takes a batch of exactly the limit and refuses one byte more, with both numbers', async () => {
    const batch = aBatch({ valueBytes: 2000 })
    const fits = await aPartition({ maxMessageBytes: batch.length })
    expect(await codeOf(fits.partition.append(batch, 'durable'))).toBe('OK')
    const { partition } = await aPartition({ maxMessageBytes: batch.length - 1 })
    const failure = partition.append(aBatch({ valueBytes: 2000 }), 'durable')
    await expect(failure).rejects.toMatchObject({ code: 'BATCH_TOO_LARGE' })
    await expect(failure).rejects.toThrow(`${batch.length}`)
    await expect(failure).rejects.toThrow(`${batch.length - 1}`)
    expect(partition.logEndOffset).toBe(0)
  })

  it('rejects, and does not throw, for bytes that are no batch', async () => {
    const { partition } = await aPartition()
    expect(await codeOf(partition.append(new Uint8Array(5), 'durable'))).toBe('CORRUPT_BATCH')
    expect(await codeOf(partition.append(aBatch().fill(7, 30), 'durable'))).toBe('CORRUPT_BATCH')
    expect(partition.logEndOffset).toBe(0)
  })

  it('refuses timestamps too far ahead, but not where the broker stamps its own', async () => {
    const ahead = (): Uint8Array => aBatch({ timestampMs: BATCH_TIME_MS + HOUR_MS + 1 })
    const create = await aPartition()
    expect(await codeOf(create.partition.append(ahead(), 'durable'))).toBe('INVALID_TIMESTAMP')
    await create.clock.advance(1)
    expect(await codeOf(create.partition.append(ahead(), 'durable'))).toBe('OK')
    const { partition } = await aPartition({ timestampType: 'append' })
    const { appendTimeMs } = await partition.append(ahead(), 'durable')
    expect(appendTimeMs).toBe(BATCH_TIME_MS)
  })

  it('keeps control batches to the broker', async () => {
    const { partition } = await aPartition()
    expect(await codeOf(partition.append(aControlBatch(), 'durable'))).not.toBe('OK')
    const own = partition.append(aControlBatch(), 'durable', { allowControl: true })
    expect(await codeOf(own)).toBe('OK')
    expect(await codeOf(partition.append(aControlBatch(), 'durable'))).not.toBe('OK')
  })

  it('passes on the expected offset and the epoch', async () => {
    const { partition } = await aPartition()
    const expected = { expectedOffset: toOffset(4) }
    expect(await codeOf(partition.append(aBatch(), 'durable', expected))).toBe(
      'WRONG_EXPECTED_OFFSET',
    )
    expect(await codeOf(partition.append(aBatch(), 'durable', { leaderEpoch: 0 }))).toBe(
      'NOT_LEADER',
    )
  })

  it('answers a repeat with the original offset', async () => {
    const { partition } = await aPartition()
    const send = (): Promise<unknown> => {
      const batch = aBatch({ records: 2 })
      stampProducer(batch, 0, 77, 0, 0)
      return partition.append(batch, 'durable')
    }
    await send()
    expect(await send()).toMatchObject({ baseOffset: 0, endOffset: 2, duplicate: true })
  })

  it('tells its owner when space is low', async () => {
    let told = 0
    const { partition, store } = await aPartition({}, { onStorageFull: () => told++ })
    store.storageFull = true
    expect(await codeOf(partition.append(aBatch(), 'durable'))).toBe('STORAGE_FULL')
    expect(told).toBe(1)
  })

  it('is refused with its reason where the partition is read-only, as is moving the log start', async () => {
    const { partition } = await aPartition({}, { readOnly: 'the catalog is damaged' })
    const append = partition.append(aBatch(), 'durable')
    await expect(append).rejects.toMatchObject({ code: 'READ_ONLY' })
    await expect(append).rejects.toThrow('orders-3 can only be read: the catalog is damaged')
    expect(await codeOf(partition.advanceLogStart('end'))).toBe('READ_ONLY')
    expect((await partition.read(toOffset(0), KIB)).chunks).toEqual([])
  })
})

describe('Partition.read', () => {
  it('shows what is durable, and with visibility=written what is written', async () => {
    const durable = await aPartition({}, { durableDelayMs: 300 })
    const written = await aPartition({ visibility: 'written' }, { durableDelayMs: 300 })
    for (const [{ partition, clock }, visible] of [
      [durable, 0],
      [written, 2],
    ] as const) {
      const appended = partition.append(aBatch({ records: 2 }), 'durable')
      await settle()
      expect(partition.visibleEnd).toBe(visible)
      const { chunks } = await partition.read(toOffset(0), KIB)
      expect(batchesOf(chunks).at(-1)?.endOffset ?? 0).toBe(visible)
      await clock.advance(300)
      await appended
      expect(partition.visibleEnd).toBe(2)
    }
  })

  it('passes on what lies outside the log', async () => {
    const { partition } = await aPartition()
    expect(await codeOf(partition.read(toOffset(1), KIB))).toBe('OFFSET_OUT_OF_RANGE')
  })
})

describe('Partition.waitForAppend', () => {
  it('resolves at once when there is something, and else with the append', async () => {
    const { partition, clock } = await aPartition({}, { durableDelayMs: 300 })
    let woken = false
    const wait = partition.waitForAppend(toOffset(0)).then(() => (woken = true))
    const append = partition.append(aBatch(), 'durable')
    await clock.advance(299)
    expect([woken, partition.waiting]).toEqual([false, 1])
    await clock.advance(1)
    await Promise.all([wait, append])
    await partition.waitForAppend(toOffset(0))
    expect(partition.waiting).toBe(0)
  })

  it('resolves with the write where visibility=written, and when that is set meanwhile', async () => {
    const { partition, clock } = await aPartition({}, { durableDelayMs: 300 })
    const append = partition.append(aBatch(), 'durable')
    await settle()
    const wait = partition.waitForAppend(toOffset(0))
    expect(partition.waiting).toBe(1)
    partition.configure(resolveConfig({ visibility: 'written' }))
    await wait
    const next = partition.waitForAppend(toOffset(1))
    const second = partition.append(aBatch(), 'durable')
    await next
    expect(partition.highWatermark).toBe(0)
    await clock.advance(600)
    await Promise.all([append, second])
  })

  it('resolves when the signal aborts', async () => {
    const { partition } = await aPartition()
    const controller = new AbortController()
    const wait = partition.waitForAppend(toOffset(0), controller.signal)
    controller.abort()
    await wait
    expect(partition.waiting).toBe(0)
  })

  it('wakes thousands at once', async () => {
    const { partition } = await aPartition()
    const waits = Array.from({ length: 5000 }, () => partition.waitForAppend(toOffset(0)))
    expect(partition.waiting).toBe(5000)
    await partition.append(aBatch(), 'durable')
    await Promise.all(waits)
  })
})

describe('the end of a partition', () => {
  it('answers UNKNOWN_TOPIC once deleted: to waiters, to calls under way, to later ones', async () => {
    const { partition, store } = await aPartition({}, { durableDelayMs: 300 })
    const wait = codeOf(partition.waitForAppend(toOffset(0)))
    partition.end()
    await store.remove(ID)
    expect(await wait).toBe('UNKNOWN_TOPIC')
    expect(await codeOf(partition.append(aBatch(), 'durable'))).toBe('UNKNOWN_TOPIC')
    expect(await codeOf(partition.read(toOffset(0), KIB))).toBe('UNKNOWN_TOPIC')
    expect(await codeOf(partition.waitForAppend(toOffset(0)))).toBe('UNKNOWN_TOPIC')
    expect(await codeOf(partition.stats())).toBe('UNKNOWN_TOPIC')
    expect(await codeOf(partition.advanceLogStart('end'))).toBe('UNKNOWN_TOPIC')
    expect(await codeOf(partition.findOffsetByTimestamp(0))).toBe('UNKNOWN_TOPIC')
  })

  it('turns the CLOSED of a call under way into UNKNOWN_TOPIC', async () => {
    const { partition, store } = await aPartition()
    const log = await store.open(ID, toLogConfig(resolveConfig({})))
    log.failNextAppend(new BrokerError('CLOSED', 'closed under its feet'))
    const append = codeOf(partition.append(aBatch(), 'durable'))
    partition.end()
    expect(await append).toBe('UNKNOWN_TOPIC')
  })

  it('finishes appends that are under way when it closes, wakes waiters, and is CLOSED then', async () => {
    const { partition, clock } = await aPartition({}, { durableDelayMs: 300 })
    const append = codeOf(partition.append(aBatch(), 'durable'))
    const wait = partition.waitForAppend(toOffset(9))
    const closed = partition.close()
    await wait
    await clock.advance(300)
    await closed
    expect(await append).toBe('OK')
    expect(await codeOf(partition.append(aBatch(), 'durable'))).toBe('CLOSED')
    expect(await codeOf(partition.waitForAppend(toOffset(0)))).toBe('CLOSED')
    await partition.close()
  })

  it('is LOADING without a log, and whatever it is told after that', async () => {
    const config = resolveConfig({})
    const partition = new Partition({ id: ID, config, clock: new FakeClock() })
    expect(partition.failure?.code).toBe('LOADING')
    expect(await codeOf(partition.read(toOffset(0), KIB))).toBe('LOADING')
    partition.fail(new BrokerError('STORAGE_ERROR', 'no such luck'))
    expect(await codeOf(partition.append(aBatch(), 'durable'))).toBe('STORAGE_ERROR')
    expect(await partition.applyRetention()).toBe(0)
    await partition.close()
    expect(partition.needsLog).toBe(false)
  })
})

describe('Partition.advanceLogStart', () => {
  it('moves up to an offset or the high watermark, never down', async () => {
    const { partition } = await aPartition()
    for (let i = 0; i < 5; i++) await partition.append(aBatch(), 'durable')
    expect(await partition.advanceLogStart(toOffset(2))).toBe(2)
    expect(await partition.advanceLogStart(toOffset(1))).toBe(2)
    expect(await codeOf(partition.advanceLogStart(toOffset(6)))).toBe('OFFSET_OUT_OF_RANGE')
    expect(await partition.advanceLogStart('end')).toBe(5)
    expect(await codeOf(partition.read(toOffset(4), KIB))).toBe('OFFSET_OUT_OF_RANGE')
  })
})

describe('Partition.holdRetention', () => {
  const old = { timestampMs: BATCH_TIME_MS - HOUR_MS }

  /** Four segments of one record, all due. */
  async function aDuePartition(
    overrides: TopicOverrides = {},
    options: Partial<PartitionOptions> = {},
  ): Promise<Partition> {
    const { partition } = await aPartition(
      { retentionMs: 1000, segmentBytes: 1, ...overrides },
      options,
    )
    for (let i = 0; i < 4; i++) await partition.append(aBatch(old), 'durable')
    return partition
  }

  it('lets retention go up to the lowest of all that hold', async () => {
    const partition = await aDuePartition()
    partition.holdRetention('a', toOffset(3))
    partition.holdRetention('b', toOffset(1))
    expect(await partition.applyRetention()).toBe(1)
    partition.holdRetention('b', toOffset(2))
    expect(await partition.applyRetention()).toBe(2)
    partition.holdRetention('b', undefined)
    expect(await partition.applyRetention()).toBe(3)
    partition.holdRetention('a', undefined)
    expect(await partition.applyRetention()).toBe(4)
  })

  it('ends when the setting says so, from the next check on', async () => {
    const partition = await aDuePartition()
    partition.holdRetention('a', toOffset(1))
    expect(await partition.applyRetention()).toBe(1)
    partition.configure(
      resolveConfig({ retentionMs: 1000, segmentBytes: 1, retentionHoldMaxMs: HOUR_MS / 2 }),
    )
    expect(await partition.applyRetention()).toBe(4)
  })

  it('does not stop what is asked for by name', async () => {
    const partition = await aDuePartition()
    partition.holdRetention('a', toOffset(0))
    expect(await partition.advanceLogStart(toOffset(3))).toBe(3)
  })

  it.each<[string, TopicOverrides, boolean, number]>([
    ['in a topic of jobs', { jobsEnable: true }, false, 0],
    [
      'where it waits for queue groups and there is a companion',
      { retentionRespectQueueGroups: true },
      true,
      0,
    ],
    ['but not without one', { retentionRespectQueueGroups: true }, false, 4],
    [
      'nor where retention does not wait',
      { jobsEnable: true, retentionRespectQueueGroups: false },
      true,
      4,
    ],
    ['nor in any other topic', {}, true, 4],
  ])('holds everything until somebody has spoken, %s', async (_, config, hasCompanion, start) => {
    const partition = await aDuePartition(config, { hasCompanion })
    expect(await partition.applyRetention()).toBe(start)
    partition.holdRetention('a', undefined)
    expect(await partition.applyRetention()).toBe(4)
  })
})

describe('Partition.onLogStart', () => {
  it('tells where the log start is, once for each move, whatever moved it', async () => {
    const { partition } = await aPartition({ retentionRecords: 1, segmentBytes: 1 })
    const starts: number[] = []
    const stop = partition.onLogStart((start) => starts.push(start))
    for (let i = 0; i < 5; i++) await partition.append(aBatch(), 'durable')
    await partition.advanceLogStart(toOffset(2))
    await partition.advanceLogStart(toOffset(1))
    await partition.applyRetention()
    await partition.applyRetention()
    expect(starts).toEqual([2, 4])
    stop()
    await partition.advanceLogStart('end')
    expect(starts).toEqual([2, 4])
  })

  it('says nothing of where the log start was when the partition was opened', async () => {
    const { partition, clock, store } = await aPartition()
    await partition.append(aBatch({ records: 3 }), 'durable')
    await partition.advanceLogStart(toOffset(2))
    const starts: number[] = []
    const again = new Partition({ id: ID, config: resolveConfig({}), clock })
    again.onLogStart((start) => starts.push(start))
    again.attach(await store.open(ID, toLogConfig(again.config)))
    await again.applyRetention()
    expect(starts).toEqual([])
    await again.advanceLogStart('end')
    expect(starts).toEqual([3])
  })
})

describe('Partition.onAdvance', () => {
  it('is told before there is a log, and then with every rise of the visible end', async () => {
    const clock = new FakeClock()
    const store = new MemoryStore({ clock, random: new SeededRandom(1), durableDelayMs: 300 })
    const config = resolveConfig({})
    const log = await store.open(ID, toLogConfig(config))
    const first = log.append(aBatch(), 'durable')
    await clock.advance(300)
    await first
    const partition = new Partition({ id: ID, config, clock })
    const ends: number[] = []
    partition.onAdvance(() => ends.push(partition.visibleEnd))
    expect(ends).toEqual([])
    partition.attach(log)
    expect(ends).toEqual([1])
    const second = partition.append(aBatch({ records: 2 }), 'durable')
    await settle()
    expect(ends).toEqual([1])
    await clock.advance(300)
    await second
    expect(ends).toEqual([1, 3])
  })

  it('follows the visibility of the topic, also when that changes', async () => {
    const { partition, clock } = await aPartition({}, { durableDelayMs: 300 })
    const ends: number[] = []
    const stop = partition.onAdvance(() => ends.push(partition.visibleEnd))
    const append = partition.append(aBatch(), 'durable')
    await settle()
    expect(ends).toEqual([])
    partition.configure(resolveConfig({ visibility: 'written' }))
    expect(ends).toEqual([1])
    // What has been shown is hidden again, and comes once more.
    partition.configure(resolveConfig({}))
    await clock.advance(300)
    await append
    expect(ends).toEqual([1, 1])
    stop()
    const last = partition.append(aBatch(), 'durable')
    await clock.advance(300)
    await last
    expect(ends).toEqual([1, 1])
  })

  it('calls each of many listeners, also when they come and go meanwhile', async () => {
    const { partition } = await aPartition()
    const calls = { first: 0, once: 0 }
    partition.onAdvance(() => calls.first++)
    const stop = partition.onAdvance(() => {
      calls.once++
      stop()
    })
    const same = (): number => calls.first++
    partition.onAdvance(same)
    partition.onAdvance(same)
    for (let i = 0; i < 2; i++) await partition.append(aBatch(), 'durable')
    expect(calls).toEqual({ first: 6, once: 1 })
  })
})
