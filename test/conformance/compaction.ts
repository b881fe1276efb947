import { array, assert, asyncProperty, constantFrom, nat, oneof, record } from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { TestContext } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { DAY_MS, HOUR_MS } from '../../src/common/units.ts'
import type { LogConfig } from '../../src/log/log-config.ts'
import type { AppendResult, CompactionReport, PartitionLog } from '../../src/log/partition-log.ts'
import {
  readBaseOffset,
  readCompression,
  readEndOffset,
  readLeaderEpoch,
  readProducerId,
  stampCrc,
} from '../../src/record/batch-header.ts'
import type { Compression } from '../../src/record/batch-header.ts'
import { attributesAt, CONTROL_BIT } from '../../src/record/batch-header.ts'
import { writeI16 } from '../../src/bytes/big-endian.ts'
import { aBatch, batchesOf, BATCH_TIME_MS, entriesOf } from '../support/batches.ts'
import type { BatchShape, FoundEntry } from '../support/batches.ts'
import { complete } from './partition-log.ts'
import type { LogHarness } from './partition-log.ts'

/** Two batches of one short record fill a segment. */
const SMALL: Partial<LogConfig> = {
  compact: true,
  segmentBytes: 160,
  indexIntervalBytes: 100,
  deleteDelayMs: 0,
}

/** What compaction owes whoever reads a log, for every engine. */
export function describeCompaction(name: string, makeHarness: () => Promise<LogHarness>): void {
  describe(`${name}: the contract of compaction`, () => {
    let harness: LogHarness
    let log: PartitionLog

    beforeEach(async () => {
      harness = await makeHarness()
      log = await finish(harness.open(SMALL))
    })

    afterEach(async () => {
      await finish(harness.store.close())
    })

    const finish = <T>(promise: Promise<T>): Promise<T> => complete(harness, promise)

    async function use(config: Partial<LogConfig>): Promise<void> {
      await finish(harness.store.close())
      harness = await makeHarness()
      log = await finish(harness.open({ ...SMALL, ...config }))
      await finish(harness.store.ready())
    }

    async function reopen(context?: TestContext, config: Partial<LogConfig> = {}): Promise<void> {
      context?.skip(harness.reopen === undefined, 'this engine does not persist')
      if (harness.reopen === undefined) return
      log = await finish(harness.reopen({ ...SMALL, ...config }))
      await finish(harness.store.ready())
    }

    /** Time goes by, on the wall clock, which is what graces and lags go by. */
    function pass(ms: number): void {
      harness.clock.setWall(harness.clock.wallMs() + ms)
    }

    function append(shape: BatchShape): Promise<AppendResult> {
      return finish(log.append(aBatch(shape), 'durable'))
    }

    /** One record a batch: `a1` is value 1 of key a, `a` its tombstone. */
    async function put(...entries: readonly string[]): Promise<void> {
      for (const entry of entries) {
        const value = entry.length > 1 ? entry : undefined
        await append({ keys: [entry.slice(0, 1)], values: [value] })
      }
    }

    /** Rolls: what has been appended by now can be compacted, what follows stands in the active segment. */
    async function fill(): Promise<void> {
      await append({ keys: ['fill'], valueBytes: 80 })
      await append({ keys: ['fill'], valueBytes: 80 })
    }

    function compact(): Promise<CompactionReport> {
      return finish(log.compact())
    }

    async function readAll(from: number = log.logStartOffset): Promise<FoundEntry[]> {
      const found: FoundEntry[] = []
      let next = toOffset(from)
      while (next < log.highWatermark) {
        const result = await finish(log.read(next, 200))
        expect(result.nextOffset).toBeGreaterThan(next)
        if (result.chunks.length === 0) expect(result.nextOffset).toBe(log.highWatermark)
        expect(result.bytes).toBe(result.chunks.reduce((sum, { length }) => sum + length, 0))
        found.push(...entriesOf(result.chunks))
        next = result.nextOffset
      }
      return found.filter(({ offset }) => offset >= from)
    }

    /** Key and value as `put` takes them, fillers left out. */
    async function readEntries(): Promise<string[]> {
      const all = await readAll()
      return all
        .filter(({ key }) => key !== 'fill')
        .map(({ key, value, offset }) => `${offset}:${value ?? key ?? '?'}`)
    }

    it('keeps the newest record of each key, where it was', async () => {
      await put('a1', 'b1', 'a2', 'c1', 'b2', 'a3')
      await fill()
      const report = await compact()
      expect(await readEntries()).toEqual(['3:c1', '4:b2', '5:a3'])
      expect(report.recordsRemoved).toBe(3)
      expect(report.bytesAfter).toBeLessThan(report.bytesBefore)
      await reopen()
      expect(await readEntries()).toEqual(['3:c1', '4:b2', '5:a3'])
    })

    it('leaves the active segment alone, and the ends of the log', async () => {
      await put('a1', 'a2')
      await fill()
      await put('b1', 'b2')
      const { logStartOffset, highWatermark, logEndOffset } = log
      await compact()
      expect(log).toMatchObject({ logStartOffset, highWatermark, logEndOffset })
      expect((await readEntries()).slice(-2)).toEqual(['4:b1', '5:b2'])
    })

    it('takes records out of a batch without touching the others, whatever its codec', async () => {
      for (const compression of ['none', 'lz4', 'gzip'] as const satisfies Compression[]) {
        await use({})
        const shape: BatchShape = {
          keys: ['a', 'b', 'c', undefined, 'a'],
          values: ['a1', 'b1', 'c1', 'no key', 'a2'.repeat(30)],
          timestampsMs: [5, 4, 9, 2, 3].map((ms) => BATCH_TIME_MS + ms),
          headers: [{ key: 'h', value: Buffer.from('v') }],
          producer: { id: 7, sequence: 0 },
          compression,
        }
        await append(shape)
        const before = (await readAll()).filter(({ offset }) => offset === 1 || offset >= 3)
        await append({ keys: ['c'], values: ['c2'] })
        await fill()
        await compact()
        const result = await finish(log.read(toOffset(0), 1))
        const [batch] = batchesOf(result.chunks)
        expect(entriesOf([batch?.bytes ?? new Uint8Array(0)])).toEqual(before)
        expect(batch).toMatchObject({ baseOffset: 0, endOffset: 5 })
        expect(readCompression(batch?.bytes ?? new Uint8Array(61), 0)).toBe(compression)
        expect(readProducerId(batch?.bytes ?? new Uint8Array(61), 0)).toBe(7)
        expect(readLeaderEpoch(batch?.bytes ?? new Uint8Array(61), 0)).toBe(log.leaderEpoch)
      }
    })

    it('can be read from every offset, in a gap or out of it', async () => {
      await put('a1', 'b1', 'a2', 'b2', 'a3', 'b3', 'a4', 'b4')
      await fill()
      await compact()
      const all = await readAll()
      for (let from = 0; from <= log.highWatermark; from++) {
        expect(await readAll(from)).toEqual(all.filter(({ offset }) => offset >= from))
        const first = await finish(log.read(toOffset(from), 1))
        if (from < log.highWatermark) expect(first.nextOffset).toBeGreaterThan(from)
      }
    })

    it('ends a read at the visible end when there is nothing but a gap before it', async () => {
      await put('a1', 'a2', 'a3')
      await put('a')
      await fill()
      await compact()
      pass(2 * DAY_MS)
      await compact()
      const result = await finish(log.read(toOffset(0), 1000))
      expect(entriesOf(result.chunks).every(({ key }) => key === 'fill')).toBe(true)
      for (const { bytes } of batchesOf(result.chunks)) {
        expect(readEndOffset(bytes, 0)).toBeGreaterThan(readBaseOffset(bytes, 0))
        expect(entriesOf([bytes])).not.toEqual([])
      }
    })

    it('keeps records without a key, and control batches', async () => {
      await append({ values: ['first'] })
      const control = aBatch({ keys: ['a'], values: ['marker'] })
      writeI16(control, attributesAt, CONTROL_BIT)
      stampCrc(control, 0)
      await finish(log.append(control, 'durable'))
      await append({ values: ['second'] })
      await put('a1', 'a2')
      await fill()
      await compact()
      expect(await readEntries()).toEqual(['0:first', '1:marker', '2:second', '4:a2'])
    })

    it('answers the retry of a batch whose records have gone, over restarts too', async () => {
      const batch = (sequence: number): BatchShape => ({
        keys: ['a', 'b'],
        values: [`a${sequence}`, `b${sequence}`],
        producer: { id: 5, sequence },
      })
      for (const sequence of [0, 2, 4, 6, 8, 10]) await append(batch(sequence))
      await fill()
      await compact()
      expect(await readEntries()).toEqual(['10:a10', '11:b10'])
      for (let round = 0; round < 3; round++) {
        for (const sequence of [2, 4, 6, 8, 10]) {
          const answer = await append(batch(sequence))
          expect(answer).toMatchObject({ duplicate: true, baseOffset: sequence })
        }
        await reopen()
        await compact()
      }
      expect(await append(batch(12))).toMatchObject({ duplicate: false })
    })

    it('finds records by their time behind gaps', async () => {
      for (const [i, key] of ['a', 'b', 'a', 'c', 'b', 'd'].entries()) {
        const timestampMs = BATCH_TIME_MS + i * 10
        await append({ keys: [key], values: [`${key}${i}`], timestampMs })
      }
      await append({ keys: ['fill'], valueBytes: 80, timestampMs: BATCH_TIME_MS + 100 })
      await append({ keys: ['fill'], valueBytes: 80, timestampMs: BATCH_TIME_MS + 100 })
      await compact()
      const find = async (ms: number): Promise<number | undefined> =>
        (await finish(log.findOffsetByTimestamp(BATCH_TIME_MS + ms)))?.offset
      for (const [ms, offset] of [
        [0, 2],
        [20, 2],
        [21, 3],
        [31, 4],
        [50, 5],
      ] as const) {
        expect(await find(ms)).toBe(offset)
      }
      await reopen()
      expect(await find(21)).toBe(3)
      expect(await find(101)).toBeUndefined()
    })

    describe('a tombstone', () => {
      it('takes what came before it, and goes when its grace is over', async () => {
        await put('a1', 'b1', 'a')
        await fill()
        await compact()
        expect(await readEntries()).toEqual(['1:b1', '2:a'])
        pass(DAY_MS - HOUR_MS)
        await compact()
        expect(await readEntries()).toEqual(['1:b1', '2:a'])
        expect(await finish(log.findCompactionNeed())).toBeUndefined()
        pass(HOUR_MS)
        expect(await finish(log.findCompactionNeed())).toBeDefined()
        const report = await compact()
        expect(report.tombstonesRemoved).toBe(1)
        expect(await readEntries()).toEqual(['1:b1'])
        expect(await finish(log.findCompactionNeed())).toBeUndefined()
      })

      it('has its grace from the first round on, not from its append, and over a restart', async () => {
        await put('a1', 'b1', 'a')
        await fill()
        pass(10 * DAY_MS)
        await compact()
        expect(await readEntries()).toEqual(['1:b1', '2:a'])
        pass(DAY_MS / 2)
        await reopen()
        await compact()
        expect(await readEntries()).toEqual(['1:b1', '2:a'])
        pass(DAY_MS / 2)
        await reopen()
        expect(await finish(log.findCompactionNeed())).toBeDefined()
        await compact()
        expect(await readEntries()).toEqual(['1:b1'])
      })

      it('keeps its time, and that of its neighbours, in every codec', async () => {
        for (const compression of ['none', 'lz4', 'gzip'] as const satisfies Compression[]) {
          await use({})
          await append({
            keys: ['a', 'b', 'a', 'c'],
            values: ['a1', 'b1', undefined, 'c1'],
            timestampsMs: [50, 40, 90, 20].map((ms) => BATCH_TIME_MS + ms),
            compression,
          })
          const before = (await readAll()).slice(1)
          await fill()
          await compact()
          expect((await readAll()).slice(0, 3)).toEqual(before)
          const found = await finish(log.findOffsetByTimestamp(BATCH_TIME_MS + 41))
          expect(found).toEqual({ offset: 2, timestampMs: BATCH_TIME_MS + 90 })
        }
      })

      it('with a newer record of its key goes at once', async () => {
        await put('a1', 'a', 'a2')
        await fill()
        await compact()
        expect(await readEntries()).toEqual(['2:a2'])
      })
    })

    describe('when', () => {
      it('is not asked for where the log is not compacted', async () => {
        await use({ compact: false })
        await put('a1', 'a2', 'a3')
        await fill()
        expect(await finish(log.findCompactionNeed())).toBeUndefined()
        log.configure({ ...(await defaults()), compact: true })
        expect(await finish(log.findCompactionNeed())).toMatchObject({ dirtyRatio: 1 })
      })

      it('goes by the share of what is new', async () => {
        await put('a1', 'b1', 'c1', 'd1', 'e1', 'f1', 'g1', 'h1')
        await fill()
        expect(await finish(log.findCompactionNeed())).toMatchObject({ dirtyRatio: 1 })
        await compact()
        expect(await finish(log.findCompactionNeed())).toBeUndefined()
        await fill()
        expect(await finish(log.findCompactionNeed())).toBeUndefined()
        log.configure({ ...(await defaults()), minCleanableRatio: 0.05 })
        const need = await finish(log.findCompactionNeed())
        expect(need?.dirtyRatio).toBeLessThan(0.5)
        await compact()
        expect(await finish(log.findCompactionNeed())).toBeUndefined()
      })

      it('leaves young records alone', async () => {
        await use({ minCompactionLagMs: HOUR_MS })
        const timestampMs = harness.clock.wallMs()
        await append({ keys: ['a'], values: ['a1'], timestampMs })
        await append({ keys: ['a'], values: ['a2'], timestampMs })
        await append({ keys: ['fill'], valueBytes: 80, timestampMs })
        await append({ keys: ['fill'], valueBytes: 80, timestampMs })
        expect(await finish(log.findCompactionNeed())).toBeUndefined()
        await compact()
        expect(await readEntries()).toEqual(['0:a1', '1:a2'])
        pass(HOUR_MS + 1)
        expect(await finish(log.findCompactionNeed())).toBeDefined()
        await compact()
        expect(await readEntries()).toEqual(['1:a2'])
      })

      it('does not leave old ones alone for ever', async () => {
        await use({ minCleanableRatio: 1, maxCompactionLagMs: DAY_MS })
        await put('a1', 'b1')
        await fill()
        await compact()
        await put('a2', 'b2')
        await fill()
        expect(await finish(log.findCompactionNeed())).toBeUndefined()
        pass(DAY_MS + 1)
        expect(await finish(log.findCompactionNeed())).toBeDefined()
      })

      it('refuses a second round at the same time, and a round on a closed log', async () => {
        await put('a1', 'a2')
        await fill()
        await finish(log.close())
        await expect(log.compact()).rejects.toMatchObject({ code: 'CLOSED' })
        await expect(log.findCompactionNeed()).rejects.toMatchObject({ code: 'CLOSED' })
        await reopen()
      })
    })

    async function defaults(): Promise<LogConfig> {
      const { DEFAULT_LOG_CONFIG } = await import('../../src/log/log-config.ts')
      return { ...DEFAULT_LOG_CONFIG, ...SMALL }
    }

    it('goes together with retention, by the records that are left', async () => {
      await use({ retentionRecords: 4 })
      for (let i = 0; i < 6; i++) await put('a1', 'b1', 'c1', 'd1')
      await fill()
      await compact()
      await finish(log.applyRetention())
      const entries = await readEntries()
      // At least four are certainly kept, though they are far apart; two of them are not ours.
      expect(entries.length).toBeGreaterThanOrEqual(2)
      expect((await readAll()).length).toBeGreaterThanOrEqual(4)
      expect((await readAll()).length).toBeLessThanOrEqual(6)
    })

    describe('any history', () => {
      const keys = constantFrom('a', 'b', 'c', 'd', 'e')
      const kinds = constantFrom('put', 'put', 'put', 'put', 'batch', 'tombstone', 'tombstone')
      const acts = constantFrom('compact', 'compact', 'day', 'trim', 'reopen', 'retain', 'keyless')
      const steps = array(
        oneof(
          { weight: 4, arbitrary: record({ kind: kinds, key: keys, size: nat(60) }) },
          { weight: 1, arbitrary: record({ kind: acts, key: keys, size: nat(100) }) },
        ),
        { maxLength: 60, size: 'max' },
      )

      interface Put {
        readonly key: string | undefined
        readonly value: string | undefined
        readonly timestampMs: number
        readonly atMs: number
      }

      it('reads back as a map would, in order', async () => {
        const check = async (puts: readonly Put[], cleanedTo: number): Promise<void> => {
          const found = await readAll()
          const start = log.logStartOffset
          const last = new Map<string, number>()
          for (const [offset, { key }] of puts.entries())
            if (key !== undefined) last.set(key, offset)
          const seen = new Map(found.map((entry) => [entry.offset, entry]))
          expect([...seen.keys()]).toEqual([...seen.keys()].sort((a, b) => a - b))
          expect(seen.size).toBe(found.length)
          for (const { offset, key, value, timestampMs } of found) {
            expect({ key, value, timestampMs }).toEqual({
              key: puts[offset]?.key,
              value: puts[offset]?.value,
              timestampMs: puts[offset]?.timestampMs,
            })
          }
          for (const [offset, { key, value, atMs }] of puts.entries()) {
            if (offset < start) continue
            const isLast = key === undefined || last.get(key) === offset
            if (!isLast) {
              // What a newer one below the line has superseded is not there.
              const newer = puts.findIndex((put, i) => i > offset && put.key === key)
              if (newer < cleanedTo) expect(seen.has(offset)).toBe(false)
            } else if (value !== undefined || key === undefined) {
              expect(seen.has(offset)).toBe(true)
            } else if (!seen.has(offset)) {
              expect(harness.clock.wallMs() - atMs).toBeGreaterThanOrEqual(DAY_MS)
              expect(found.some((entry) => entry.key === key)).toBe(false)
            }
          }
        }
        await assert(
          asyncProperty(steps, async (steps) => {
            await use({})
            const puts: Put[] = []
            let cleanedTo = 0
            let sequence = 0
            const add = async (shape: BatchShape): Promise<void> => {
              const count = shape.keys?.length ?? 0
              for (let i = 0; i < count; i++) {
                const timestampMs = shape.timestampsMs?.[i] ?? BATCH_TIME_MS
                const [key, value] = [shape.keys?.[i], shape.values?.[i]]
                const atMs = harness.clock.wallMs()
                puts.push({
                  key,
                  value: value === undefined ? undefined : String(value),
                  timestampMs,
                  atMs,
                })
              }
              await append({ ...shape, producer: { id: 3, sequence } })
              sequence += count
            }
            for (const { kind, key, size } of steps) {
              const timestampsMs = [0, 1, 2].map((i) => BATCH_TIME_MS + ((size * 7 + i * 13) % 50))
              const value = `${puts.length}-`.padEnd(size, '.')
              if (kind === 'put') await add({ keys: [key], values: [value], timestampsMs })
              else if (kind === 'keyless') await add({ keys: [undefined], values: [value] })
              else if (kind === 'tombstone') await add({ keys: [key], values: [undefined] })
              else if (kind === 'batch') {
                await add({
                  keys: [key, 'c', key],
                  values: [value, size % 3 === 0 ? undefined : value, `${value}+`],
                  timestampsMs,
                  compression: size % 2 === 0 ? 'lz4' : 'none',
                })
              } else if (kind === 'compact') {
                cleanedTo = Math.max(cleanedTo, (await compact()).cleanedTo)
                await check(puts, cleanedTo)
              } else if (kind === 'day') pass(DAY_MS)
              else if (kind === 'reopen') await reopen()
              else if (kind === 'retain') await finish(log.applyRetention())
              else {
                const to = Math.floor((log.highWatermark * size) / 100)
                await finish(log.advanceLogStart(toOffset(to)))
              }
            }
            await check(puts, cleanedTo)
          }),
          { numRuns: 60 },
        )
      })
    })
  })
}
