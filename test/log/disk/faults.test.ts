import { describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import { GIB, KIB, MIB } from '../../../src/common/units.ts'
import { MemoryFileSystem } from '../../../src/fs/memory-file-system.ts'
import type { AppendResult, PartitionLog } from '../../../src/log/partition-log.ts'
import { aBatch, recordsOf } from '../../support/batches.ts'
import { DiskBroker, ORDERS, ORDERS_FOLDER, readOver, segment } from '../../support/disk-broker.ts'
import { DATA } from '../../support/disk-harness.ts'
import { settle } from '../../support/fake-clock.ts'

const FIRST = segment(0)
const LOG = /\.log$/

function append(
  log: PartitionLog,
  acks: 'durable' | 'written' = 'durable',
  valueBytes?: number,
): Promise<AppendResult> {
  const values = [`r${log.logEndOffset}`]
  return log.append(aBatch(valueBytes === undefined ? { values } : { values, valueBytes }), acks)
}

async function appendMany(log: PartitionLog, count: number, valueBytes?: number): Promise<void> {
  for (let i = 0; i < count; i++) await append(log, 'durable', valueBytes)
}

async function expectDense(log: PartitionLog, end: number): Promise<void> {
  const { values, holes } = await readOver(log)
  expect(holes).toEqual([])
  expect([...values.keys()]).toEqual(
    Array.from({ length: end - log.logStartOffset }, (_, i) => log.logStartOffset + i),
  )
}

describe('a flush that fails', () => {
  it.each(['EIO', 'ENOSPC', 'EDQUOT', 'EINTR'] as const)(
    'stops the store and refuses all who wait, of every partition (%s)',
    async (code) => {
      const broker = await DiskBroker.started()
      const other = await broker.store.open({ ...ORDERS, partition: 1 }, broker.config)
      await appendMany(broker.log, 2)
      broker.fs.failNext({ operation: 'sync', path: /orders-0\/.*\.log$/ }, code)
      const waiting = [
        append(broker.log),
        append(broker.log),
        append(other),
        append(broker.log, 'written').then(() => append(broker.log)),
      ]
      const results = await Promise.allSettled(waiting)
      expect(results[0]).toMatchObject({ status: 'rejected', reason: { code: 'FLUSH_FAILED' } })
      const codes = results.flatMap((one) =>
        one.status === 'rejected' ? [(one.reason as { code: string }).code] : [],
      )
      expect(new Set(codes)).toEqual(new Set(['FLUSH_FAILED']))
      expect((await broker.store.failed).message).toContain(code)
      await expect(append(other)).rejects.toMatchObject({ code: 'FLUSH_FAILED' })
      await expect(
        broker.store.open({ ...ORDERS, partition: 2 }, broker.config),
      ).rejects.toMatchObject({ code: 'FLUSH_FAILED' })
      // Never tried again, and what is durable can still be read.
      const syncs = broker.fs.counters(broker.file(FIRST)).syncs
      await broker.clock.advance(10_000)
      expect(broker.fs.counters(broker.file(FIRST)).syncs).toBe(syncs)
      await expectDense(broker.log, broker.log.highWatermark)
      expect(String(broker.fs.contentOf(`${DATA}/crash`))).toContain(`a flush failed (${code})`)
      await broker.store.close()
      expect(broker.fs.openFiles).toBe(0)
    },
  )

  it('of the folder of a new segment does the same', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 200 } })
    await appendMany(broker.log, 2)
    broker.fs.failNext(
      { operation: 'syncDirectory', path: new RegExp(`^${ORDERS_FOLDER}$`) },
      'EIO',
    )
    await expect(appendMany(broker.log, 3)).rejects.toMatchObject({ code: 'FLUSH_FAILED' })
    expect((await broker.store.failed).message).toContain('could not be flushed')
    await broker.store.close()
    expect(broker.fs.openFiles).toBe(0)
  })

  it.each([
    ['a checkpoint', /checkpoint/],
    ['a seal', /seal/],
    ['an index that is being sealed', /index/],
  ])('of %s does the same', async (_, path) => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 200 } })
    broker.fs.failNext({ operation: 'sync', path }, 'EIO')
    // Some of these may still be taken.
    await Promise.allSettled(Array.from({ length: 9 }, () => append(broker.log)))
    await broker.clock.advance(6000)
    await expect(broker.store.failed).resolves.toBeInstanceOf(Error)
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'FLUSH_FAILED' })
  })

  it('is reported within a second even when the disk does not take the note', async () => {
    const broker = await DiskBroker.started()
    broker.fs.failNext({ operation: 'sync', path: LOG }, 'EIO')
    broker.fs.delay = (_, path) =>
      path.endsWith('/crash') ? new Promise(() => undefined) : undefined
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'FLUSH_FAILED' })
    // Still waiting when the second is over would mean that the test times out.
    await broker.clock.advance(999)
    expect((await broker.store.failed).message).toContain('EIO')
  })
})

describe('a write that fails', () => {
  it.each(['ENOSPC', 'EDQUOT'] as const)(
    'for want of space (%s) leaves no trace, and the retry works once there is space',
    async (code) => {
      const broker = await DiskBroker.started()
      await appendMany(broker.log, 2)
      const size = broker.size(FIRST)
      const batch = (): Uint8Array => aBatch({ records: 3, producer: { id: 5, sequence: 0 } })
      broker.fs.failNext({ operation: 'write', path: LOG }, code, { partialBytes: 50 })
      const results = await Promise.allSettled([
        broker.log.append(batch(), 'durable'),
        append(broker.log), // Has an offset behind it: goes with it.
      ])
      for (const one of results) {
        expect(one).toMatchObject({ status: 'rejected', reason: { code: 'STORAGE_FULL' } })
      }
      expect(broker.size(FIRST)).toBe(size)
      expect(broker.fs.durableContentOf(broker.file(FIRST))?.length).toBe(size)
      expect(broker.log.logEndOffset).toBe(2)
      const answer = await broker.log.append(batch(), 'durable')
      expect(answer).toMatchObject({ baseOffset: 2, duplicate: false })
      expect(await broker.log.append(batch(), 'durable')).toMatchObject({
        baseOffset: 2,
        duplicate: true,
      })
      await expectDense(broker.log, 5)
      await broker.restartKilled()
      await expectDense(broker.log, 5)
    },
  )

  it('when the disk is really full, is short: refused until there is space', async () => {
    const broker = await DiskBroker.started()
    await appendMany(broker.log, 2)
    broker.fs.capacityBytes = usedBytes(broker.fs) + 40
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'STORAGE_FULL' })
    await expectDense(broker.log, 2)
    broker.fs.capacityBytes = Infinity
    await append(broker.log)
    await expectDense(broker.log, 3)
  })

  it('on a disk that has become read-only says so, and reading goes on', async () => {
    const broker = await DiskBroker.started()
    await appendMany(broker.log, 2)
    broker.fs.failNext({ operation: ['write', 'truncate', 'create', 'rename'] }, 'EROFS', {
      times: Infinity,
    })
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'READ_ONLY' })
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'READ_ONLY' })
    await expectDense(broker.log, 2)
    await broker.clock.advance(20_000)
    broker.fs.clearFaults()
    await append(broker.log)
    await expectDense(broker.log, 3)
  })

  it('closes the partition to appends when its remains cannot be cut off; others go on, reading too', async () => {
    const broker = await DiskBroker.started()
    const other = await broker.store.open({ ...ORDERS, partition: 1 }, broker.config)
    await appendMany(broker.log, 2)
    broker.fs.failNext({ operation: 'write', path: /orders-0\/.*log$/ }, 'EIO', {
      partialBytes: 50,
    })
    broker.fs.failNext({ operation: 'truncate', path: LOG }, 'EIO')
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'STORAGE_ERROR' })
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'STORAGE_ERROR' })
    await append(other)
    await expectDense(broker.log, 2)
    await broker.restartClean()
    expect(broker.report?.tornBytes).toBe(50)
    await append(broker.log)
    await expectDense(broker.log, 3)
  })

  function usedBytes(fs: MemoryFileSystem): number {
    return fs.files().reduce((sum, path) => sum + (fs.contentOf(path)?.length ?? 0), 0)
  }
})

describe('a read that fails', () => {
  it('costs the batches on the bad spot and nothing else', async () => {
    const broker = await DiskBroker.started({
      config: { segmentBytes: 200 * KIB, indexIntervalBytes: 1 },
    })
    await appendMany(broker.log, 30, 16 * KIB)
    await broker.restartClean()
    broker.fs.failReads(broker.file(FIRST), 40_000, 40_010)
    const { values, holes } = await readOver(broker.log)
    expect(holes).toEqual([[2, 3]])
    expect(values.size).toBe(29)
    await append(broker.log)
    broker.fs.clearFaults()
    await broker.restartClean()
    expect((await readOver(broker.log)).holes).toEqual([])
  })

  it('does not keep the broker from starting, in the tail or in an index', async () => {
    const broker = await DiskBroker.started({ config: { indexIntervalBytes: 1 } })
    await appendMany(broker.log, 5, 16 * KIB)
    await broker.checkpoint()
    await append(broker.log)
    await broker.restartKilled((fs) => {
      fs.failReads(broker.file(FIRST), 40_000, 40_010)
      fs.failReads(broker.file(segment(0, 'index')))
    })
    expect(broker.log.highWatermark).toBe(6)
    expect((await readOver(broker.log)).holes).toEqual([[2, 3]])
  })
})

describe('without a descriptor left', () => {
  it('a roll fails the append and nothing else, and is tried again', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 200 } })
    await appendMany(broker.log, 2)
    broker.fs.failNext({ operation: 'create', path: LOG }, 'EMFILE', { times: 2 })
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'TOO_MANY_OPEN_FILES' })
    await expectDense(broker.log, 2)
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'TOO_MANY_OPEN_FILES' })
    await appendMany(broker.log, 3)
    await expectDense(broker.log, 5)
  })

  it('the first append after a start does not bring the broker down', async () => {
    const broker = await DiskBroker.started({ config: { indexIntervalBytes: 1 } })
    await appendMany(broker.log, 5)
    await broker.restartClean()
    broker.fs.failNext({ operation: 'open', path: /index$/ }, 'EMFILE')
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'TOO_MANY_OPEN_FILES' })
    await append(broker.log)
    await expectDense(broker.log, 6)
  })
})

describe('a checkpoint that cannot be written for want of space', () => {
  it('does not stop the broker, and is made up for later', async () => {
    const broker = await DiskBroker.started()
    broker.fs.failNext({ operation: 'write', path: /checkpoint/ }, 'ENOSPC', { times: Infinity })
    await appendMany(broker.log, 3)
    await broker.clock.advance(20_000)
    await appendMany(broker.log, 3)
    expect(broker.warned(/could not write a checkpoint/)).toBe(true)
    broker.fs.clearFaults()
    await broker.clock.advance(6000)
    await broker.restartKilled()
    expect(broker.report?.scannedBatches).toBe(0)
    await expectDense(broker.log, 6)
  })

  it('refuses producers once too much is un-checkpointed, rolls all the same, and goes on by itself', async () => {
    const broker = await DiskBroker.started({ options: { checkpointBytes: 1000 } })
    broker.fs.failNext({ operation: 'write', path: /checkpoint/ }, 'ENOSPC', { times: Infinity })
    const refused = appendMany(broker.log, 200)
    await expect(refused).rejects.toMatchObject({ code: 'STORAGE_FULL' })
    const end = broker.log.highWatermark
    expect(broker.size(FIRST)).toBeLessThan(2200)
    // A log start at the very end rolls: that must not wait for the checkpoint that cannot be had.
    await expect(broker.log.advanceLogStart(end)).rejects.toThrow(/ENOSPC/)
    broker.fs.clearFaults()
    await append(broker.log)
    await expectDense(broker.log, end + 1)
  })
})

describe('the flush queue', () => {
  it('never has more than 8 MiB of a file unflushed, nor two flushes of it in flight', async () => {
    const fs = new MemoryFileSystem({ strictSync: true, keepJournal: false })
    const broker = await DiskBroker.started({ fs })
    // A slow disk, and forty batches of 1 MiB that do not wait for each other.
    fs.delay = (operation) =>
      operation === 'sync'
        ? new Promise((resolve) => {
            broker.clock.schedule(50, () => resolve(undefined))
          })
        : undefined
    const all = Promise.all(
      Array.from({ length: 40 }, (_, i) =>
        append(broker.log, i % 3 === 0 ? 'durable' : 'written', MIB),
      ),
    )
    while (broker.log.highWatermark < 40) await broker.clock.advance(50)
    await all
    expect(broker.log.highWatermark).toBe(40)
    const counters = fs.counters(broker.file(FIRST))
    expect(counters.mostUnsyncedBytes).toBeLessThanOrEqual(8 * MIB)
    expect(counters.mostUnsyncedBytes).toBeGreaterThan(4 * MIB)
    expect(counters.mostSyncsInFlight).toBe(1)
    expect(counters.syncs).toBeLessThan(25)
  })

  it('flushes, rolls and closes under an unending load', async () => {
    const broker = await DiskBroker.started()
    const state = { isStopped: false, refused: 0 }
    const load = async (): Promise<void> => {
      while (!state.isStopped) {
        try {
          await append(broker.log)
        } catch {
          state.refused++
          return
        }
      }
    }
    const loads = [load(), load(), load()]
    await broker.log.flush()
    await broker.log.applyRetention()
    broker.log.configure({ ...broker.config, segmentMs: 0 })
    await broker.log.applyRetention()
    expect((await broker.log.stats()).segments).toBeGreaterThan(1)
    await broker.store.close()
    state.isStopped = true
    await Promise.all(loads)
    expect(state.refused).toBe(3)
    await broker.start()
    expect(broker.report).toMatchObject({ clean: true, scannedBatches: 0 })
  })

  it('holds producers back at twice the checkpoint bytes, so that recovery never reads more', async () => {
    const broker = await DiskBroker.started({ options: { checkpointBytes: 20_000 } })
    // Checkpoints hang.
    const gate = { open: (): void => {} }
    const opened = new Promise<void>((resolve) => {
      gate.open = resolve
    })
    broker.fs.delay = (operation, path) =>
      operation === 'rename' && path.includes('checkpoint') ? opened : undefined
    const all = Promise.all(Array.from({ length: 100 }, () => append(broker.log, 'durable', 1000)))
    for (let i = 0; i < 20; i++) await broker.clock.advance(10)
    const written = broker.size(FIRST) ?? 0
    expect(written).toBeGreaterThanOrEqual(20_000)
    expect(written).toBeLessThan(2 * 20_000 + 2 * MIB)
    const held = broker.log.highWatermark
    await broker.clock.advance(1000)
    expect(broker.log.highWatermark).toBe(held)
    gate.open()
    await all
    await expectDense(broker.log, 100)
  })
})

describe('a disk that runs low', () => {
  const options = { diskFloorBytes: 100 * MIB, ballastBytes: 2 * MIB, diskCheckMs: 1000 }

  async function lowBroker(): Promise<{
    broker: DiskBroker
    setFree: (bytes: number) => Promise<void>
  }> {
    const fs = new MemoryFileSystem({ strictSync: true, capacityBytes: GIB })
    const broker = await DiskBroker.started({ fs, options })
    await appendMany(broker.log, 3)
    const setFree = async (bytes: number): Promise<void> => {
      const { freeBytes } = await broker.fs.space(DATA)
      broker.fs.capacityBytes += bytes - freeBytes
      await broker.clock.advance(1000)
    }
    return { broker, setFree }
  }

  it('refuses appends below the floor, goes on with reading and internal topics, and resumes 20 % above', async () => {
    const { broker, setFree } = await lowBroker()
    const catalog = await broker.store.open({ ...ORDERS, topic: '__catalog' }, broker.config)
    await setFree(99 * MIB)
    expect(broker.store.storageFull).toBe(true)
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'STORAGE_FULL' })
    await append(catalog)
    await broker.log.advanceLogStart(toOffset(1))
    await expectDense(broker.log, 3)
    await setFree(119 * MIB)
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'STORAGE_FULL' })
    await setFree(121 * MIB)
    await append(broker.log)
    await expectDense(broker.log, 4)
  })

  it('gives up the ballast when all but full, and sets it aside again later', async () => {
    const { broker, setFree } = await lowBroker()
    const ballast = `${DATA}/ballast`
    expect(broker.fs.contentOf(ballast)?.length).toBe(2 * MIB)
    await setFree(50 * MIB)
    expect(broker.fs.contentOf(ballast)).toBeDefined()
    await setFree(MIB)
    expect(broker.fs.contentOf(ballast)).toBeUndefined()
    await broker.store.close()
    await setFree(500 * MIB)
    await broker.start()
    expect(broker.fs.contentOf(ballast)?.length).toBe(2 * MIB)
  })

  it('gives up the ballast of an earlier run, too', async () => {
    const { broker, setFree } = await lowBroker()
    await broker.store.close()
    await setFree(MIB)
    await broker.start()
    expect(broker.fs.contentOf(`${DATA}/ballast`)).toBeUndefined()
    await expect(append(broker.log)).rejects.toMatchObject({ code: 'STORAGE_FULL' })
  })

  it('starts although no ballast can be written', async () => {
    const fs = new MemoryFileSystem()
    fs.failNext({ operation: 'write', path: /ballast/ }, 'EDQUOT', { times: Infinity })
    const broker = await DiskBroker.started({ fs, options })
    await append(broker.log)
    expect(broker.warned(/no ballast/)).toBe(true)
  })
})

describe('the log start', () => {
  it('that could not be made durable is not taken for durable by a second try', async () => {
    const broker = await DiskBroker.started()
    await appendMany(broker.log, 5)
    broker.fs.failNext({ operation: 'write', path: /checkpoint/ }, 'ENOSPC', { times: 2 })
    await expect(broker.log.advanceLogStart(toOffset(3))).rejects.toThrow(/ENOSPC/)
    await expect(broker.log.advanceLogStart(toOffset(3))).rejects.toThrow(/ENOSPC/)
    await broker.log.advanceLogStart(toOffset(3))
    await broker.restartKilled()
    expect(broker.log.logStartOffset).toBe(3)
  })

  it('is durable for everyone who asked, however their calls overlap', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 200, deleteDelayMs: 0 } })
    await appendMany(broker.log, 9)
    await broker.clock.advance(10)
    const answered: (readonly [number, number])[] = []
    const before = broker.fs.journalLength
    await Promise.all(
      [3, 3, 5, 2, 8].map(async (to) => {
        await broker.log.advanceLogStart(toOffset(to))
        answered.push([to, broker.fs.journalLength])
        await broker.log.applyRetention()
      }),
    )
    const disk = broker.fs
    for (let at = before; at <= disk.journalLength; at++) {
      broker.fs = disk.killAt(at)
      await broker.start()
      const least = Math.max(0, ...answered.filter(([, when]) => when <= at).map(([to]) => to))
      expect(broker.log.logStartOffset).toBeGreaterThanOrEqual(least)
      await expectDense(broker.log, 9)
    }
  })

  it('lets bytes go after their grace, and not under a reader', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 200, deleteDelayMs: 5000 } })
    await appendMany(broker.log, 9)
    await broker.clock.advance(10)
    await broker.log.advanceLogStart(toOffset(8))
    await broker.log.applyRetention()
    expect(broker.size(FIRST)).toBeGreaterThan(0)
    await broker.clock.advance(5001)
    await broker.log.applyRetention()
    expect(broker.size(FIRST)).toBeUndefined()
    expect(broker.fs.files().filter((path) => path.includes(segment(0, '')))).toEqual([])
    await expectDense(broker.log, 9)
    await broker.restartClean()
    await expectDense(broker.log, 9)
    expect(broker.report?.damagedRanges).toBe(0)
  })

  it('by retention passes nothing that is too young to go, though the segment is damaged and its seal gone', async () => {
    const broker = await DiskBroker.started({
      config: { segmentBytes: 600, retentionMs: 3_600_000, deleteDelayMs: 0 },
    })
    const nowMs = broker.clock.wallMs()
    const old = nowMs - 7_200_000
    for (const timestampMs of [old, old, nowMs, nowMs, nowMs, nowMs, nowMs, nowMs]) {
      await broker.log.append(aBatch({ timestampMs, valueBytes: 50 }), 'durable')
    }
    await broker.restartClean(async (fs) => {
      await fs.remove(broker.file(segment(0, 'seal')))
      fs.flipBit(broker.file(FIRST), 130, 0) // In the header of the second batch.
    })
    expect(await broker.log.applyRetention()).toBe(0)
    expect(broker.size(FIRST)).toBeGreaterThan(0)
  })
})

describe('opening and removing', () => {
  it('the same partition twice at once gives one log', async () => {
    const broker = new DiskBroker()
    const store = await broker.openStore()
    const [first, second] = await Promise.all([
      store.open(ORDERS, broker.config),
      store.open(ORDERS, broker.config),
    ])
    expect(first).toBe(second)
    expect(await store.open(ORDERS, broker.config)).toBe(first)
  })

  it('a topic that is removed and made again at once gets nothing of the old one', async () => {
    const broker = await DiskBroker.started({
      config: { segmentBytes: 200, indexIntervalBytes: 1 },
    })
    const producer = { id: 9, sequence: 0 }
    await broker.log.append(aBatch({ producer }), 'durable')
    const all = Array.from({ length: 12 }, () => append(broker.log))
    await Promise.all(all)
    // Sealing, snapshots and a checkpoint are under way.
    const checkpoint = broker.clock.advance(6000)
    await broker.store.remove(ORDERS)
    const again = { ...ORDERS, topicId: '11111111-3c1d-4f7a-9a64-1d2e3f405161' }
    const log = await broker.store.open(again, broker.config)
    await checkpoint
    await broker.clock.advance(6000)
    expect(
      broker.fs
        .files()
        .filter((path) => path.startsWith(ORDERS_FOLDER))
        .sort(),
    ).toEqual([`${ORDERS_FOLDER}/${FIRST}`, `${ORDERS_FOLDER}/partition.json`])
    expect(await log.append(aBatch({ producer }), 'durable')).toMatchObject({ duplicate: false })
    expect(broker.warned(/./)).toBe(false)
    await broker.store.close()
    expect(broker.fs.openFiles).toBe(0)
  })

  it('leaves no descriptor open, whatever was read, rolled and removed', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 300 } })
    await appendMany(broker.log, 30)
    await expectDense(broker.log, 30)
    await broker.clock.advance(6000)
    expect(broker.fs.openFiles).toBeLessThan(20)
    await broker.restartKilled()
    await expectDense(broker.log, 30)
    await broker.store.remove(ORDERS)
    await broker.clock.advance(1)
    expect(broker.fs.openFiles).toBe(1) // The crash file.
    await broker.store.close()
    expect(broker.fs.openFiles).toBe(0)
  })

  it('a reader right behind a roll does not go without an index', async () => {
    const broker = await DiskBroker.started({
      config: { segmentBytes: 40 * KIB, indexIntervalBytes: 1 },
    })
    await appendMany(broker.log, 35, KIB)
    // Sealing hangs.
    broker.fs.delay = (operation, path) =>
      operation === 'rename' && path.includes(ORDERS_FOLDER)
        ? new Promise(() => undefined)
        : undefined
    await appendMany(broker.log, 10, KIB)
    await settle()
    const before = broker.fs.counters(broker.file(FIRST)).bytesRead
    const got = await broker.log.read(toOffset(34), 1)
    expect(recordsOf(got.chunks)[0]?.offset).toBe(34)
    expect(broker.fs.counters(broker.file(FIRST)).bytesRead - before).toBeLessThan(10 * KIB)
  })
})
