import { describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import { KIB, MIB } from '../../../src/common/units.ts'
import { SeededRandom } from '../../../src/common/random.ts'
import { MemoryFileSystem } from '../../../src/fs/memory-file-system.ts'
import type { PartitionLog } from '../../../src/log/partition-log.ts'
import { aBatch, batchesOf } from '../../support/batches.ts'
import {
  DiskBroker,
  ORDERS,
  cutTo,
  overwrite,
  readOver,
  segment,
} from '../../support/disk-broker.ts'
import { DATA } from '../../support/disk-harness.ts'

const FIRST = segment(0)

/** Appends one record a batch: `r0`, `r1` … by offset. */
async function append(log: PartitionLog, count: number, valueBytes?: number): Promise<void> {
  for (let i = 0; i < count; i++) {
    const values = [`r${log.logEndOffset}`]
    await log.append(
      aBatch(valueBytes === undefined ? { values } : { values, valueBytes }),
      'durable',
    )
  }
}

async function expectAll(log: PartitionLog, count: number): Promise<void> {
  const { values, holes } = await readOver(log)
  expect(holes).toEqual([])
  expect(log.highWatermark).toBe(count)
  for (let offset = log.logStartOffset as number; offset < count; offset++) {
    expect(values.get(offset)).toBe(`r${offset}`)
  }
}

describe('the tail of a log after a crash', () => {
  it('is cut where a write was cut short, and what was cut is kept in torn/', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 3)
    const good = broker.size(FIRST) ?? 0
    const torn = aBatch({ values: ['torn'], baseOffset: 3, leaderEpoch: 1 }).subarray(0, 40)
    await broker.restartKilled((fs) => overwrite(fs, broker.file(FIRST), good, torn))
    await expectAll(broker.log, 3)
    expect(broker.size(FIRST)).toBe(good)
    expect(broker.report).toMatchObject({ clean: false, tornBytes: 40, damagedRanges: 0 })
    const kept = broker.fs.files().filter((path) => path.startsWith(`${DATA}/torn/`))
    expect(kept).toEqual([`${DATA}/torn/0000000002-${ORDERS.topicId}-0-3`])
    expect(broker.fs.durableContentOf(kept[0] ?? '')).toEqual(Buffer.from(torn))
    await append(broker.log, 2)
    await broker.restartClean()
    await expectAll(broker.log, 5)
  })

  it('is cut also when later blocks have survived out of order, within 8 MiB', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 4, MIB)
    const size = (broker.size(FIRST) ?? 0) / 4
    await broker.restartKilled((fs) =>
      overwrite(fs, broker.file(FIRST), size, Buffer.alloc(4 * KIB)),
    )
    expect(broker.log.highWatermark).toBe(1)
    expect(broker.report).toMatchObject({ tornBytes: 3 * size, damagedRanges: 0 })
    const kept = broker.fs.files().find((path) => path.startsWith(`${DATA}/torn/`))
    expect(broker.fs.contentOf(kept ?? '')?.length).toBe(3 * size)
  })

  it('is not a tail when more than 8 MiB of good batches follow: nothing is cut, the hole has a name', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 12, MIB)
    const whole = broker.size(FIRST) ?? 0
    await broker.restartKilled((fs) =>
      overwrite(fs, broker.file(FIRST), whole / 12, Buffer.alloc(4 * KIB)),
    )
    expect(broker.size(FIRST)).toBe(whole)
    expect(broker.report).toMatchObject({ tornBytes: 0, damagedRanges: 1 })
    expect(broker.log.highWatermark).toBe(12)
    const { values, holes } = await readOver(broker.log)
    expect(holes).toEqual([[1, 2]])
    expect(values.size).toBe(11)
    await append(broker.log, 1)
    await broker.restartKilled()
    expect((await readOver(broker.log)).holes).toEqual([[1, 2]])
    expect(broker.log.highWatermark).toBe(13)
  })

  it('keeps at most 64 MiB of cut tails', async () => {
    const broker = await DiskBroker.started({ fs: new MemoryFileSystem({ keepJournal: false }) })
    for (let n = 0; n < 6; n++) {
      const path = broker.file(
        broker.fs
          .files()
          .filter((file) => file.endsWith('.log'))
          .at(-1)
          ?.split('/')
          .at(-1) ?? FIRST,
      )
      const garbage = new Uint8Array(16 * MIB).fill(n + 1)
      await broker.restartKilled(async (fs) => {
        const end = fs.contentOf(path)?.length ?? 0
        await overwrite(fs, path, end, garbage)
      })
      expect(broker.report?.tornBytes).toBe(16 * MIB)
    }
    const kept = broker.fs.files().filter((path) => path.startsWith(`${DATA}/torn/`))
    expect(kept.length).toBe(4)
    expect(kept.at(-1)).toContain('0000000007')
  })
})

describe('what a checkpoint covers', () => {
  it.each(['clean', 'killed'] as const)(
    'is never given out again, though its end is lost (%s stop)',
    async (stop) => {
      const broker = await DiskBroker.started()
      await append(broker.log, 6)
      await broker.checkpoint()
      const size = broker.size(FIRST) ?? 0
      const change = (fs: MemoryFileSystem): Promise<void> =>
        cutTo(fs, broker.file(FIRST), (size / 6) * 4 + 10)
      await (stop === 'clean' ? broker.restartClean(change) : broker.restartKilled(change))
      expect(broker.log.highWatermark).toBe(6)
      expect(broker.size(FIRST)).toBe((size / 6) * 4 + 10) // Not even the rest of a batch is cut.
      const { values, holes } = await readOver(broker.log)
      expect(holes).toEqual([[4, 6]])
      expect([...values.keys()]).toEqual([0, 1, 2, 3])
      await append(broker.log, 2)
      await broker.restartKilled()
      expect(broker.log.highWatermark).toBe(8)
      expect((await readOver(broker.log)).holes).toEqual([[4, 6]])
    },
  )

  it('is not scanned again: an unclean start reads what no checkpoint knows', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 20, 100 * KIB)
    await broker.checkpoint()
    await append(broker.log, 3, 100 * KIB)
    await broker.restartKilled()
    const read = { ...broker.fs.counters(broker.file(FIRST)) }
    await expectEnd(broker.log, 23)
    const window = 3 * 101 * KIB
    expect(read.uncachedBytesRead).toBeLessThanOrEqual(window)
    expect(read.bytesRead).toBeLessThanOrEqual(window)
    expect(broker.report?.scannedBatches).toBe(3)
  })

  it('costs a clean start one batch', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 20, 100 * KIB)
    await broker.store.close()
    broker.fs = broker.fs.kill()
    await broker.start()
    expect(broker.fs.counters(broker.file(FIRST)).bytesRead).toBeLessThan(101 * KIB)
    expect(broker.report).toMatchObject({ clean: true, scannedBatches: 0 })
  })

  async function expectEnd(log: PartitionLog, end: number): Promise<void> {
    expect(log.highWatermark).toBe(end)
    const { holes } = await readOver(log)
    expect(holes).toEqual([])
  }

  it('does not keep an incarnation from rising when the slot that noted it is damaged', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 1)
    await broker.restartClean()
    // Started once more, appended, but killed before the start was complete: only one slot knows this incarnation.
    await broker.store.close()
    const store = await broker.openStore()
    const log = await store.open(ORDERS, broker.config)
    await append(log, 1)
    expect(log.leaderEpoch).toBe(3)
    await broker.restartKilled((fs) => {
      const newest = ['a', 'b']
        .map((slot) => `${DATA}/checkpoint.${slot}`)
        .sort((x, y) => sequenceOf(fs, y) - sequenceOf(fs, x))[0]
      fs.flipBit(newest ?? '', 10, 1)
    })
    expect(broker.log.leaderEpoch).toBe(4)
    await expectAll(broker.log, 2)
  })

  function sequenceOf(fs: MemoryFileSystem, path: string): number {
    return Number(fs.contentOf(path)?.readBigInt64BE(8))
  }
})

describe('without any checkpoint', () => {
  it.each(['clean', 'killed'] as const)('everything is found again (%s stop)', async (stop) => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 400 } })
    await append(broker.log, 12)
    const lose = async (fs: MemoryFileSystem): Promise<void> => {
      fs.flipBit(`${DATA}/checkpoint.a`, 20, 0)
      await fs.remove(`${DATA}/checkpoint.b`)
    }
    await (stop === 'clean' ? broker.restartClean(lose) : broker.restartKilled(lose))
    expect(broker.warned(/checkpoint slot is missing or damaged/)).toBe(true)
    expect(broker.log.leaderEpoch).toBe(2)
    await expectAll(broker.log, 12)
    await append(broker.log, 3)
    await broker.restartClean()
    await expectAll(broker.log, 15)
  })

  it('the incarnation rises even if its file is gone too', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 1)
    await broker.restartKilled(async (fs) => {
      for (const name of ['checkpoint.a', 'checkpoint.b', 'incarnation']) {
        await fs.remove(`${DATA}/${name}`)
      }
    })
    expect(broker.log.leaderEpoch).toBeGreaterThan(1000)
    await expectAll(broker.log, 1)
  })

  it('a retried batch is still known', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 300 } })
    for (let sequence = 0; sequence < 9; sequence++) {
      await broker.log.append(aBatch({ producer: { id: 7, sequence } }), 'durable')
    }
    await broker.restartKilled(async (fs) => {
      for (const slot of ['a', 'b']) await fs.remove(`${DATA}/checkpoint.${slot}`)
    })
    const answer = await broker.log.append(aBatch({ producer: { id: 7, sequence: 6 } }), 'durable')
    expect(answer).toMatchObject({ duplicate: true, baseOffset: 6 })
  })
})

describe('files beside the log', () => {
  it.each(['index', 'timeindex', 'seal'])('a missing .%s is made again', async (kind) => {
    const broker = await DiskBroker.started({
      config: { segmentBytes: 400, indexIntervalBytes: 1 },
    })
    await append(broker.log, 12)
    await broker.restartClean(async (fs) => {
      await fs.remove(broker.file(segment(0, kind)))
    })
    await expectAll(broker.log, 12)
    await broker.clock.advance(1)
    expect(broker.size(segment(0, kind))).toBeGreaterThan(0)
    await broker.restartClean()
    broker.lines.length = 0
    await expectAll(broker.log, 12)
    expect(broker.lines).toEqual([])
  })

  it.each([
    ['sealed', 1],
    ['active', 2],
  ])(
    'a wrong index of the %s segment never leads to wrong data, also next to known damage, and is made again',
    async (kind, which) => {
      const broker = await DiskBroker.started({
        config: { segmentBytes: 2000, indexIntervalBytes: 1 },
      })
      await append(broker.log, 70)
      await broker.store.close()
      const bases = broker.fs
        .files()
        .filter((path) => path.endsWith('.log'))
        .map((path) => Number(path.split('/').at(-1)?.slice(0, 20)))
      expect(bases).toHaveLength(3)
      const [from = 0, to = 70] = bases.slice(which)
      // Damage in the first segment; in the other one, an index that is one entry off all along.
      broker.fs.flipBit(broker.file(FIRST), 100, 2)
      const path = broker.file(segment(from, 'index'))
      const index = Buffer.from(broker.fs.contentOf(path) ?? '')
      for (let at = 0; at + 8 < index.length; at += 8) index.copyWithin(at + 4, at + 12, at + 16)
      await overwrite(broker.fs, path, 0, index.subarray(0, -8))
      await cutTo(broker.fs, path, index.length - 8)
      await broker.start()
      await expect(broker.log.read(toOffset(1), 1)).rejects.toThrow(/damaged/)
      for (let offset = to - 1; offset >= from; offset--) {
        const { values, holes } = await readOver(broker.log, offset)
        expect(holes).toEqual([])
        expect(values.get(offset)).toBe(`r${offset}`)
      }
      await append(broker.log, 1)
      await broker.checkpoint()
      expect(broker.fs.contentOf(path)?.length).toBeGreaterThanOrEqual(index.length)
      expect(kind === 'active' || broker.warned(/an index is missing or damaged/)).toBe(true)
    },
  )

  it('damage is pinned on the batch that has it, though a reader passes over that batch', async () => {
    // One entry in the index at most: a reader steps from header to header.
    const broker = await DiskBroker.started({ config: { segmentBytes: 600 } })
    for (let i = 0; i < 12; i++) {
      await broker.log.append(aBatch({ values: [`r${2 * i}`, `r${2 * i + 1}`] }), 'durable')
    }
    const size =
      (broker.size(FIRST) ?? 0) /
      batchesOf([broker.fs.contentOf(broker.file(FIRST)) ?? Buffer.alloc(0)]).length
    // The second batch claims four offsets instead of two, so that the third seems to be out of place.
    await broker.restartClean((fs) => fs.flipBit(broker.file(FIRST), size + 26, 1))
    for (const from of [5, 4, 6, 7, 2, 3]) {
      const { values, holes } = await readOver(broker.log, from)
      expect(holes).toEqual(from < 4 ? [[from, 4]] : [])
      for (const [offset, value] of values) expect(value).toBe(`r${offset}`)
      expect(values.size).toBe(24 - Math.max(4, from))
    }
  })

  it('an index that speaks of a tail that was lost does not stand in the way of the next appends', async () => {
    // The index file is not synced: it may have got further than the log.
    const broker = await DiskBroker.started({ config: { indexIntervalBytes: 1 } })
    await append(broker.log, 2)
    await broker.checkpoint()
    const size = broker.size(FIRST) ?? 0
    const stale = Buffer.alloc(16)
    stale.writeUInt32BE(900, 0)
    stale.writeUInt32BE(size + 10, 4)
    stale.writeUInt32BE(901, 8)
    stale.writeUInt32BE(size + 20, 12)
    const path = broker.file(segment(0, 'index'))
    await broker.restartKilled((fs) => overwrite(fs, path, fs.contentOf(path)?.length ?? 0, stale))
    await append(broker.log, 5)
    await expectAll(broker.log, 7)
    await broker.checkpoint()
    await broker.restartClean()
    await append(broker.log, 3)
    await expectAll(broker.log, 10)
  })

  it('a seal never vouches for rot that was there when it was made', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 2000 } })
    await append(broker.log, 40)
    await broker.restartClean(async (fs) => {
      await fs.remove(broker.file(segment(0, 'seal')))
      fs.flipBit(broker.file(FIRST), 600, 1)
    })
    const { holes } = await readOver(broker.log)
    expect(holes).toHaveLength(1)
    await broker.clock.advance(1)
    expect(broker.size(segment(0, 'seal'))).toBeUndefined()
    // What is good behind the damage counts for age all the same.
    expect((await broker.log.stats()).damaged).toHaveLength(1)
  })

  it('a missing sealed segment is a hole with a name', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 400 } })
    await append(broker.log, 12)
    const bases = broker.fs.files().filter((path) => path.endsWith('.log'))
    const [gone = '', next = ''] = bases.slice(1)
    const [start, end] = [gone, next].map((path) => Number(path.split('/').at(-1)?.slice(0, 20)))
    await broker.restartClean((fs) => fs.remove(gone))
    const { values, holes } = await readOver(broker.log)
    expect(holes).toEqual([[start, end]])
    expect(values.size).toBe(12 - ((end ?? 0) - (start ?? 0)))
    await append(broker.log, 1)
    expect(broker.log.highWatermark).toBe(13)
  })

  it('a partition without any file left answers for what is gone, and goes on behind it', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 5)
    await broker.restartClean((fs) => fs.remove(broker.file(FIRST)))
    expect((await readOver(broker.log)).holes).toEqual([[0, 5]])
    await append(broker.log, 1)
    await broker.restartKilled()
    expect((await readOver(broker.log)).holes).toEqual([[0, 5]])
    expect(broker.log.highWatermark).toBe(6)
  })

  it('a folder of another topic is refused', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 1)
    await broker.store.close()
    const store = await broker.openStore()
    const foreign = { ...ORDERS, topicId: '00000000-3c1d-4f7a-9a64-1d2e3f405161' }
    await expect(store.open(foreign, broker.config)).rejects.toMatchObject({
      code: 'STORAGE_ERROR',
      message: expect.stringContaining('belongs to topic id') as string,
    })
    await store.remove(foreign) // Takes nothing away either.
    expect(broker.size(FIRST)).toBeGreaterThan(0)
  })

  it.each(['broker.json', 'orders-0/partition.json'])(
    'a later format of %s is refused',
    async (name) => {
      const broker = await DiskBroker.started()
      await broker.store.close()
      const path = `${DATA}/${name}`
      const text = String(broker.fs.contentOf(path)).replace('"format":1', '"format":2')
      await overwrite(broker.fs, path, 0, Buffer.from(text))
      await expect(broker.start()).rejects.toMatchObject({ code: 'UNSUPPORTED_FORMAT' })
    },
  )
})

describe('after a flush that failed', () => {
  const styles = [
    ['the cache shows what the device never got', { cache: 'new', landedBytes: 0 }],
    [
      'the cache shows it, and rewriting does not heal',
      { cache: 'new', landedBytes: 0, rewriteHeals: false },
    ],
    ['part of it has landed', { cache: 'new', landedBytes: 100, rewriteHeals: false }],
    ['the cache shows the old bytes again', { cache: 'old', landedBytes: 0 }],
  ] as const

  it.each(styles)('what the device holds is the truth: %s', async (_, sync) => {
    const broker = await DiskBroker.started()
    await append(broker.log, 3)
    broker.fs.failNext({ operation: 'sync', path: /\.log$/ }, 'EIO', { sync })
    await expect(append(broker.log, 1)).rejects.toMatchObject({ code: 'FLUSH_FAILED' })
    await broker.restartKilled()
    const { values } = await readOver(broker.log)
    for (const offset of [0, 1, 2]) expect(values.get(offset)).toBe(`r${offset}`)
    const seen = new Map(values)
    await append(broker.log, 2)
    // What was read, and what was appended after, outlives the power.
    broker.fs = broker.fs.crash(new SeededRandom(1), { pending: 'lose' })
    await broker.start()
    const again = (await readOver(broker.log)).values
    for (const [offset, value] of seen) expect(again.get(offset)).toBe(value)
    expect(again.size).toBe(seen.size + 2)
  })

  it('a window is copied to new blocks when the device cannot be asked', async () => {
    const fs = new MemoryFileSystem({ strictSync: true, uncached: false })
    const broker = await DiskBroker.started({ fs })
    await append(broker.log, 3)
    await broker.checkpoint()
    await append(broker.log, 2)
    const covered = ((broker.size(FIRST) ?? 0) / 5) * 3
    broker.fs.failNext({ operation: 'sync', path: /\.log$/ }, 'EIO', {
      sync: { rewriteHeals: false },
    })
    await expect(append(broker.log, 1)).rejects.toMatchObject({ code: 'FLUSH_FAILED' })
    await broker.restartKilled()
    expect(broker.size(FIRST)).toBe(covered)
    expect(broker.size(segment(3))).toBeGreaterThan(0)
    const end = broker.log.highWatermark
    expect(end).toBeGreaterThanOrEqual(5)
    await expectAll(broker.log, end)
    broker.fs = broker.fs.crash(new SeededRandom(1), { pending: 'lose' })
    await broker.start()
    await expectAll(broker.log, end)
  })

  it('a crash at any point of that copy leaves one whole log: the higher base wins', async () => {
    const fs = new MemoryFileSystem({ strictSync: true, uncached: false })
    const broker = await DiskBroker.started({ fs })
    await append(broker.log, 3)
    await broker.checkpoint()
    await append(broker.log, 4)
    broker.fs = broker.fs.kill()
    await broker.start()
    const recovery = broker.fs
    let overlaps = 0
    for (let at = 0; at <= recovery.journalLength; at++) {
      // A kill, since only that keeps what was written, and a cut in which everything has landed.
      for (const disk of [
        recovery.killAt(at),
        recovery.crashAt(at, new SeededRandom(at), { pending: 'keep' }),
      ]) {
        broker.fs = disk
        if ((broker.size(segment(3)) ?? 0) > 0 && (broker.size(FIRST) ?? 0) > 3 * 70) {
          if ((broker.size(FIRST) ?? 0) > (broker.size(segment(3)) ?? 0)) overlaps++
        }
        await broker.start()
        await expectAll(broker.log, 7)
      }
    }
    expect(overlaps).toBeGreaterThan(0)
  })
})

describe('producer state over a restart', () => {
  async function appendAs(log: PartitionLog, id: number, sequence: number): Promise<boolean> {
    const answer = await log.append(aBatch({ producer: { id, sequence } }), 'durable')
    return answer.duplicate
  }

  it.each([
    ['in the checkpoint', 3],
    ['in a file of its own', 300],
  ])('is %s', async (_, producers) => {
    const broker = await DiskBroker.started()
    for (let id = 0; id < producers; id++) {
      await appendAs(broker.log, id, 0)
      if (producers > 100) for (let n = 1; n < 5; n++) await appendAs(broker.log, id, n)
    }
    const last = producers > 100 ? 4 : 0
    for (const restart of ['clean', 'killed', 'clean'] as const) {
      if (restart === 'clean') await broker.restartClean()
      else await broker.restartKilled()
      for (const id of [0, producers - 1]) expect(await appendAs(broker.log, id, last)).toBe(true)
    }
    const snapshots = broker.fs.files().filter((path) => path.endsWith('.snapshot'))
    expect(snapshots.length > 0).toBe(producers > 100)
  })

  it('does not lose the snapshot that the last checkpoint names, however often the log rolls after it', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 400, deleteDelayMs: 0 } })
    for (let id = 0; id < 150; id++) {
      for (let n = 0; n < 5; n++) await appendAs(broker.log, id, n)
    }
    await broker.checkpoint()
    // No more checkpoints, but rolls, each with a snapshot of its own; then what came after is cut by a power loss.
    broker.fs.failNext({ operation: 'create', path: /checkpoint/ }, 'ENOSPC', { times: Infinity })
    for (let n = 0; n < 30; n++) await broker.log.append(aBatch({ records: 2 }), 'durable')
    await broker.clock.advance(10)
    broker.fs.clearFaults()
    await broker.restartKilled()
    expect(broker.warned(/snapshot/)).toBe(false)
    for (const id of [0, 149]) expect(await appendAs(broker.log, id, 4)).toBe(true)
  })

  it('goes into the checkpoint when its file cannot be written', async () => {
    const broker = await DiskBroker.started()
    for (let id = 0; id < 200; id++) {
      for (let n = 0; n < 5; n++) await appendAs(broker.log, id, n)
    }
    broker.fs.failNext({ operation: 'create', path: /snapshot/ }, 'ENOSPC', { times: Infinity })
    await broker.checkpoint()
    expect(broker.warned(/snapshot of producer state could not be written/)).toBe(true)
    await broker.restartKilled()
    expect(await appendAs(broker.log, 0, 4)).toBe(true)
  })

  it('does not grow without bound on the disk', async () => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 400 } })
    for (let id = 0; id < 150; id++) {
      for (let n = 0; n < 5; n++) await appendAs(broker.log, id, n)
    }
    await broker.checkpoint()
    for (let n = 0; n < 8; n++) {
      await broker.log.append(aBatch({ records: 2 }), 'durable')
      await broker.checkpoint()
    }
    const snapshots = broker.fs.files().filter((path) => path.endsWith('.snapshot'))
    expect(snapshots.length).toBeLessThanOrEqual(4)
  })

  it('is not guessed at when its snapshot is damaged: a retry is refused, not appended twice', async () => {
    const broker = await DiskBroker.started()
    for (let id = 0; id < 200; id++) {
      for (let n = 0; n < 5; n++) await appendAs(broker.log, id, n)
    }
    await broker.checkpoint()
    await broker.log.append(aBatch(), 'durable')
    await broker.checkpoint()
    const snapshots = broker.fs.files().filter((path) => path.endsWith('.snapshot'))
    expect(snapshots).toHaveLength(2)
    await broker.restartKilled((fs) => fs.flipBit(snapshots[1] ?? '', 40, 1))
    expect(broker.warned(/snapshot of producer state cannot be read/)).toBe(true)
    // The snapshot before it would do for this one, but not for a producer that has appended since.
    await expect(appendAs(broker.log, 0, 4)).rejects.toMatchObject({ code: 'UNKNOWN_PRODUCER' })
  })
})

describe('removals that were cut short', () => {
  it('are finished at the next start, and leave no trace in the checkpoint', async () => {
    const broker = await DiskBroker.started()
    await append(broker.log, 3)
    const before = broker.fs.journalLength
    await broker.store.remove(ORDERS)
    const removal = broker.fs
    for (let at = before; at <= removal.journalLength; at++) {
      broker.fs = removal.killAt(at)
      const store = await broker.openStore()
      await store.ready()
      await broker.clock.advance(1)
      const left = broker.fs.files().filter((path) => path.includes('deleted'))
      expect(left).toEqual([])
      const isThere = (await store.list()).length === 1
      await store.close()
      const named = ['a', 'b'].filter((slot) =>
        broker.fs.contentOf(`${DATA}/checkpoint.${slot}`)?.includes('orders'),
      )
      expect(named.length > 0).toBe(isThere)
    }
  })
})
