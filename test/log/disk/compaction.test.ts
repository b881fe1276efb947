import { describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import { SeededRandom } from '../../../src/common/random.ts'
import { DAY_MS, KIB, MINUTE_MS } from '../../../src/common/units.ts'
import { MemoryFileSystem } from '../../../src/fs/memory-file-system.ts'
import { readBatchBytes, readRecordCount } from '../../../src/record/batch-header.ts'
import { decodeSeal } from '../../../src/segment/segment-seal.ts'
import {
  aBroker,
  compact,
  expectLatest,
  fill,
  logNames,
  over,
  SMALL,
} from '../../support/compacted-log.ts'
import { describeCompaction } from '../../conformance/compaction.ts'
import { aBatch, batchesOf, entriesOf } from '../../support/batches.ts'
import { DiskBroker, overwrite, readOver, segment } from '../../support/disk-broker.ts'
import type { Hole } from '../../support/disk-broker.ts'
import { DATA } from '../../support/disk-harness.ts'
import { makeDiskHarness } from '../../support/disk-log-harness.ts'
import { settle } from '../../support/fake-clock.ts'

describeCompaction('disk engine', () => makeDiskHarness(0))
describeCompaction('disk engine, flushes of 300 ms', () => makeDiskHarness(300))

describe('compaction on the disk', () => {
  it('makes one segment of small neighbours, up to the size of a segment', async () => {
    const broker = await aBroker()
    await fill(broker.log, 60)
    const before = await logNames(broker)
    const report = await compact(broker)
    expect(report.segmentsBefore).toBe(before.length - 1)
    expect(report.segmentsAfter).toBe(1)
    expect(await logNames(broker)).toEqual([segment(0), before.at(-1)])
    expect(broker.size(segment(0))).toBe(report.bytesAfter)
    await expectLatest(broker.log)
    await broker.restartKilled()
    await expectLatest(broker.log)
    expect((await broker.log.stats()).segments).toBe(2)
  })

  it('leaves a chain of batches without a hole, and a seal that counts the records', async () => {
    const broker = await aBroker()
    await fill(broker.log, 60)
    const { cleanedTo } = await compact(broker)
    const bytes = broker.fs.contentOf(broker.file(segment(0))) ?? Buffer.alloc(0)
    const batches = batchesOf([bytes])
    let next = 0
    for (const { baseOffset, endOffset } of batches) {
      expect(baseOffset).toBe(next)
      next = endOffset
    }
    expect(next).toBe(cleanedTo)
    const seal = decodeSeal(broker.fs.contentOf(broker.file(segment(0, 'seal'))) ?? Buffer.alloc(0))
    const records = batches.reduce((sum, batch) => sum + readRecordCount(batch.bytes, 0), 0)
    expect(seal).toMatchObject({ endOffset: cleanedTo, sizeBytes: bytes.length, records })
    // Never two gaps side by side: one batch stands for both.
    const empty = batches.map((batch) => readRecordCount(batch.bytes, 0) === 0)
    expect(empty.some((isEmpty, i) => isEmpty && empty[i + 1] === true)).toBe(false)
  })

  it('does not write what it would not change', async () => {
    const broker = await aBroker({ segmentBytes: 2000 })
    for (let i = 0; i < 60; i++) {
      await broker.log.append(aBatch({ keys: [`unique${i}`], valueBytes: 40 }), 'durable')
    }
    const report = await compact(broker)
    expect(report).toMatchObject({ recordsRemoved: 0, bytesAfter: report.bytesBefore })
    expect(report.segmentsAfter).toBeGreaterThan(1)
    for (const name of await logNames(broker)) {
      expect(broker.fs.counters(broker.file(`${name}.tmp`)).writes).toBe(0)
    }
  })

  it('takes as many rounds as its memory for keys asks for', async () => {
    const broker = await aBroker({}, { compactionMapBytes: 20 * 4 })
    await fill(broker.log, 100, 10)
    let rounds = 0
    while ((await over(broker, broker.log.findCompactionNeed())) !== undefined) {
      const { cleanedTo } = await compact(broker)
      expect(cleanedTo).toBeGreaterThan(rounds)
      await expectLatest(broker.log, 10)
      rounds++
    }
    expect(rounds).toBeGreaterThan(3)
    broker.config = { ...broker.config, minCleanableRatio: 0 }
    broker.log.configure(broker.config)
    for (let i = 0; i < 60; i++) await compact(broker)
    const { values } = await readOver(broker.log)
    const sealed = [...values.keys()].filter((offset) => offset < 85)
    expect(sealed.length).toBeLessThanOrEqual(10)
  })

  it('asks for no I/O while nothing has changed', async () => {
    const broker = await aBroker()
    await fill(broker.log, 60)
    await compact(broker)
    expect(await broker.log.findCompactionNeed()).toBeUndefined()
    const before = broker.fs.operations
    expect(await broker.log.findCompactionNeed()).toBeUndefined()
    expect(broker.fs.operations).toBe(before)
    await broker.restartClean()
    expect(await broker.log.findCompactionNeed()).toBeUndefined()
  })

  it('rolls an active segment that is worth it, by its size or by its age', async () => {
    const broker = await aBroker({ segmentBytes: 100_000_000 })
    const put = async (bytes: number): Promise<void> => {
      await broker.log.append(aBatch({ keys: ['k'], valueBytes: bytes }), 'durable')
    }
    for (let i = 0; i < 3; i++) await put(400 * KIB)
    expect(await broker.log.findCompactionNeed()).toMatchObject({ dirtyRatio: 1 })
    expect(await compact(broker)).toMatchObject({ recordsRemoved: 2 })
    expect(await broker.log.findCompactionNeed()).toBeUndefined()
    // What is left is 400 KiB: as much again, and old, is worth it; less is not.
    await put(300 * KIB)
    broker.clock.setWall(broker.clock.wallMs() + 11 * MINUTE_MS)
    expect(await broker.log.findCompactionNeed()).toBeUndefined()
    await put(110 * KIB)
    expect(await broker.log.findCompactionNeed()).toBeDefined()
    await compact(broker)
    expect((await readOver(broker.log)).values.size).toBe(1)
  })

  it('serves what is compacted, not what the cache remembers', async () => {
    const broker = await aBroker({}, { cacheBytes: 1_000_000 })
    await fill(broker.log, 60)
    const before = (await readOver(broker.log)).values.size
    await compact(broker)
    expect((await readOver(broker.log)).values.size).toBeLessThan(before - 30)
  })

  it('keeps producers retries harmless when checkpoints and snapshots are gone', async () => {
    const broker = await aBroker()
    const batch = (sequence: number): Uint8Array =>
      aBatch({ keys: ['k'], values: [`v${sequence}`], producer: { id: 5, sequence } })
    for (let sequence = 0; sequence < 9; sequence++) {
      await broker.log.append(batch(sequence), 'durable')
    }
    await fill(broker.log, 20)
    await compact(broker)
    await broker.restartKilled(async (fs) => {
      for (const name of await fs.list(DATA)) {
        if (name.startsWith('checkpoint')) await fs.remove(`${DATA}/${name}`)
      }
      for (const name of await fs.list(`${DATA}/orders-0`)) {
        if (name.endsWith('.snapshot')) await fs.remove(`${DATA}/orders-0/${name}`)
      }
    })
    await expectLatest(broker.log)
    for (let sequence = 4; sequence < 9; sequence++) {
      const answer = await broker.log.append(batch(sequence), 'durable')
      expect(answer).toMatchObject({ duplicate: true, baseOffset: sequence })
    }
  })

  it('stops when the log is closed, and leaves nothing behind that a start would not understand', async () => {
    const broker = await aBroker()
    await fill(broker.log, 200)
    for (let hops = 0; hops < 400; hops += 7) {
      const fs = broker.fs.kill()
      const other = new DiskBroker({ fs, config: broker.config })
      await other.start()
      const round = other.log.compact().then(
        () => 'done',
        (error: unknown) => (error as { code: string }).code,
      )
      for (let i = 0; i < hops; i++) await Promise.resolve()
      await other.store.close()
      expect(['done', 'CLOSED']).toContain(await round)
      expect(fs.openFiles).toBe(0)
      await other.start()
      await expectLatest(other.log)
      expect((await logNames(other)).filter((name) => !name.endsWith('.log'))).toEqual([])
      await other.store.close()
    }
  })
})

describe('readers', () => {
  it('go on while segments are replaced under them, and see no damage', async () => {
    for (let seed = 1; seed <= 12; seed++) {
      const random = new SeededRandom(seed)
      const broker = await aBroker({}, { maxSealedFiles: 2, maxIndexBytes: 100 })
      await fill(broker.log, 120, 6)
      const state = { isDone: false }
      const reader = async (): Promise<void> => {
        while (!state.isDone) {
          const from = toOffset(random.below(broker.log.highWatermark))
          for (let i = random.below(20); i > 0; i--) await Promise.resolve()
          const got = await broker.log.read(from, 1 + random.below(500))
          expect(got.nextOffset).toBeGreaterThan(from)
          for (const { offset, value } of entriesOf(got.chunks)) expect(value).toBe(`v${offset}`)
          // Nothing is passed over but what compaction may take.
          const found = new Set(entriesOf(got.chunks).map(({ offset }) => offset))
          for (let offset = broker.log.highWatermark - 6; offset < got.nextOffset; offset++) {
            if (offset >= from) expect(found.has(offset)).toBe(true)
          }
          if (random.chance(0.2)) await broker.log.findOffsetByTimestamp(0)
          if (random.chance(0.05)) await settle() // Timers have to get a turn, too.
        }
      }
      const readers = Promise.all(Array.from({ length: 5 }, reader))
      for (let round = 0; round < 3; round++) {
        await compact(broker)
        await fill(broker.log, 30, 6)
      }
      state.isDone = true
      await readers
      expect((await broker.log.stats()).damaged).toEqual([])
      expect(broker.warned(/damaged|missing/)).toBe(false)
      await expectLatest(broker.log, 6)
      await broker.store.close()
      expect(broker.fs.openFiles).toBe(0)
    }
  })
})

describe('damage', () => {
  /** A log with a compacted segment, and what is in it. */
  async function compacted(): Promise<{
    broker: DiskBroker
    values: Map<number, string | undefined>
  }> {
    const broker = await aBroker()
    await fill(broker.log, 60, 8)
    await compact(broker)
    const { values } = await readOver(broker.log)
    return { broker, values }
  }

  function expectNoLie(
    found: { values: Map<number, string | undefined>; holes: readonly Hole[] },
    expected: Map<number, string | undefined>,
  ): void {
    for (const [offset, value] of found.values) expect(value).toBe(expected.get(offset))
    for (const offset of expected.keys()) {
      const isInHole = found.holes.some(([start, end]) => start <= offset && offset < end)
      expect([offset, found.values.has(offset) || isInHole]).toEqual([offset, true])
    }
  }

  it('of any bit of a compacted segment is damage, never a gap', async () => {
    const { broker, values } = await compacted()
    const size = broker.size(segment(0)) ?? 0
    for (let bit = 0; bit < size * 8; bit += 13) {
      const other = new DiskBroker({ fs: broker.fs.kill(), config: broker.config })
      other.fs.flipBit(other.file(segment(0)), bit >> 3, bit & 7)
      if (bit % 2 === 0) await other.fs.remove(other.file(segment(0, 'seal')))
      await other.start()
      expectNoLie(await readOver(other.log), values)
    }
  })

  it('by a batch that is missing is seen, with and without the seal', async () => {
    const { broker, values } = await compacted()
    const bytes = broker.fs.contentOf(broker.file(segment(0))) ?? Buffer.alloc(0)
    for (let at = 0; at < bytes.length;) {
      const size = readBatchBytes(bytes, at)
      const lost = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + size)])
      for (const hasSeal of [true, false]) {
        const other = new DiskBroker({ fs: broker.fs.kill(), config: broker.config })
        const file = await other.fs.open(other.file(segment(0)), 'write')
        await file.truncate(0)
        await file.close()
        await overwrite(other.fs, other.file(segment(0)), 0, lost)
        if (!hasSeal) await other.fs.remove(other.file(segment(0, 'seal')))
        await other.start()
        const found = await readOver(other.log)
        expectNoLie(found, values)
        expect(found.holes.length).toBeGreaterThan(0)
        await settle()
        // A seal is not made for what is not whole.
        if (!hasSeal) expect(other.size(segment(0, 'seal'))).toBeUndefined()
      }
      at += size
    }
  })

  it('of a seal is mended, without calling gaps damage', async () => {
    const { broker, values } = await compacted()
    const seal = broker.fs.contentOf(broker.file(segment(0, 'seal')))
    await broker.restartKilled(async (fs) => {
      for (const kind of ['seal', 'index', 'timeindex']) {
        await fs.remove(broker.file(segment(0, kind)))
      }
    })
    await settle()
    expect((await readOver(broker.log)).values).toEqual(values)
    expect(broker.fs.contentOf(broker.file(segment(0, 'seal')))).toEqual(seal)
    expect((await broker.log.stats()).damaged).toEqual([])
  })

  it('keeps a segment as it is, and the tombstones behind it, whose older records may be in it', async () => {
    const broker = await aBroker({ segmentBytes: 250 })
    const put = (key: string, value: string | undefined): Promise<unknown> =>
      broker.log.append(aBatch({ keys: [key], values: [value] }), 'durable')
    await put('a', 'old a')
    await put('b', 'broken')
    await fill(broker.log, 9)
    const bytes = broker.fs.contentOf(broker.file(segment(0)))
    await put('a', undefined)
    await fill(broker.log, 9)
    // The second batch rots; the first can still be read.
    const second = readBatchBytes(bytes ?? Buffer.alloc(61), 0)
    broker.fs.flipBit(broker.file(segment(0)), second + 70, 1)
    const first = broker.fs.contentOf(broker.file(segment(0)))
    for (let round = 0; round < 4; round++) {
      await compact(broker)
      expect(broker.fs.contentOf(broker.file(segment(0)))).toEqual(first)
      const { values, holes } = await readOver(broker.log)
      expect(holes).toEqual([[1, 2]])
      expect(values.get(0)).toBe('old a')
      expect(values.has(11)).toBe(true)
      broker.clock.setWall(broker.clock.wallMs() + 2 * DAY_MS)
      if (round === 1) await broker.restartKilled()
      await fill(broker.log, 9)
    }
    expect(broker.warned(/cannot be compacted/)).toBe(true)
    // With the damaged segment the reason goes.
    await broker.log.advanceLogStart(toOffset(6))
    await compact(broker)
    broker.clock.setWall(broker.clock.wallMs() + 2 * DAY_MS)
    await compact(broker)
    expect((await readOver(broker.log)).values.has(11)).toBe(false)
  })
})

describe('a flush that fails in a compaction', () => {
  it('does not stop the broker when it is the flush of a file that nothing refers to yet', async () => {
    const broker = await aBroker()
    await fill(broker.log, 60)
    broker.fs.failNext({ operation: 'sync', path: /\.log\.tmp$/ }, 'EIO')
    await expect(compact(broker)).rejects.toMatchObject({ code: 'STORAGE_ERROR' })
    await expectLatest(broker.log)
    expect(await compact(broker)).toMatchObject({ segmentsAfter: 1 })
    await expectLatest(broker.log)
  })

  it('stops it when it is the flush of the folder', async () => {
    const broker = await aBroker()
    await fill(broker.log, 60)
    await broker.checkpoint()
    await broker.checkpoint()
    broker.fs.failNext({ operation: 'syncDirectory', path: /orders-0$/ }, 'EIO')
    await expect(compact(broker)).rejects.toBeDefined()
    await expect(broker.store.failed).resolves.toBeInstanceOf(Error)
    await broker.restartKilled()
    await expectLatest(broker.log)
  })
})

describe('a disk without space for a second copy', () => {
  it('stays as it is until there is some', async () => {
    const fs = new MemoryFileSystem({ strictSync: true })
    const broker = await DiskBroker.started({ fs, config: SMALL })
    await fill(broker.log, 60)
    await broker.checkpoint()
    fs.failNext({ operation: 'write', path: /\.log\.tmp$/ }, 'ENOSPC', { times: Infinity })
    await expect(compact(broker)).rejects.toMatchObject({ code: 'STORAGE_FULL' })
    await expectLatest(broker.log)
    expect(await broker.log.findCompactionNeed()).toBeUndefined() // Not at once again.
    fs.clearFaults()
    await broker.clock.advance(6 * MINUTE_MS)
    expect(await broker.log.findCompactionNeed()).toBeDefined()
    await compact(broker)
    await expectLatest(broker.log)
  })
})
