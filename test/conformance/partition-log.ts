import { array, assert, asyncProperty, constantFrom, nat, oneof, record } from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { TestContext } from 'vitest'
import type { Acks } from '../../src/common/acks.ts'
import { BrokerError } from '../../src/common/errors.ts'
import type { ErrorCode } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import { DAY_MS, HOUR_MS } from '../../src/common/units.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import type { LogConfig } from '../../src/log/log-config.ts'
import type {
  AppendOptions,
  AppendResult,
  LogStore,
  PartitionId,
  PartitionLog,
  RetentionHold,
} from '../../src/log/partition-log.ts'
import { attributesAt, isCrcValid, readLeaderEpoch } from '../../src/record/batch-header.ts'
import { aBatch, batchesOf, recordsOf } from '../support/batches.ts'
import type { BatchShape, FoundBatch, FoundRecord } from '../support/batches.ts'
import type { FakeClock } from '../support/fake-clock.ts'

/** One engine, fresh for one test. */
export interface LogHarness {
  readonly clock: FakeClock
  /** The store as it is now: another one after `reopen`. */
  readonly store: LogStore
  /** Opens `orders-0`, with the defaults where `config` says nothing. */
  open(config?: Partial<LogConfig>): Promise<PartitionLog>
  /** Closes the store, starts it again, and opens `orders-0`. Undefined for engines that do not persist. */
  readonly reopen?: ((config?: Partial<LogConfig>) => Promise<PartitionLog>) | undefined
  /** Lets durability happen: some 300 ms on the fake clock. */
  settle(): Promise<void>
}

export const ORDERS: PartitionId = {
  topic: 'orders',
  partition: 0,
  topicId: '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405161',
}

/** More rounds of `settle` than any engine needs. */
const MOST_ROUNDS = 1000

/** Waits for `promise`, letting durability happen meanwhile. */
export async function complete<T>(
  harness: { settle(): Promise<void> },
  promise: Promise<T>,
): Promise<T> {
  const state = { isDone: false }
  const mark = (): void => {
    state.isDone = true
  }
  promise.then(mark, mark)
  for (let round = 0; !state.isDone && round < MOST_ROUNDS; round++) await harness.settle()
  if (!state.isDone) throw new Error(`still waiting after ${MOST_ROUNDS} rounds of settling`)
  return promise
}

/** The contract of the seam (DESIGN §5), in full. An engine is finished when it passes. */
export function describePartitionLog(name: string, makeHarness: () => Promise<LogHarness>): void {
  describe(`${name}: the contract of a partition log`, () => {
    let harness: LogHarness
    let log: PartitionLog

    beforeEach(async () => {
      harness = await makeHarness()
      log = await harness.open()
    })

    afterEach(async () => {
      await finish(harness.store.close())
    })

    const finish = <T>(promise: Promise<T>): Promise<T> => complete(harness, promise)

    /** Starts over with other settings. */
    async function use(config: Partial<LogConfig>): Promise<void> {
      await finish(harness.store.close())
      harness = await makeHarness()
      log = await finish(harness.open(config))
    }

    /** Closes the store and starts it again; skips the test for engines that do not persist. */
    async function reopen(context: TestContext, config?: Partial<LogConfig>): Promise<void> {
      context.skip(harness.reopen === undefined, 'this engine does not persist')
      if (harness.reopen !== undefined) log = await finish(harness.reopen(config))
    }

    function append(
      shape: BatchShape = {},
      acks: Acks = 'durable',
      options?: AppendOptions,
    ): Promise<AppendResult> {
      return finish(log.append(aBatch(shape), acks, options))
    }

    async function refuse(promise: Promise<unknown>, code: ErrorCode): Promise<BrokerError> {
      const outcome = await finish(
        promise.then(
          () => undefined,
          (error: unknown) => error,
        ),
      )
      expect(outcome).toBeInstanceOf(BrokerError)
      const error = outcome as BrokerError // The line above is the check.
      expect(error).toMatchObject({ code })
      return error
    }

    function checkEnds(): void {
      expect(log.logStartOffset).toBeLessThanOrEqual(log.highWatermark)
      expect(log.highWatermark).toBeLessThanOrEqual(log.writtenEndOffset)
      expect(log.writtenEndOffset).toBeLessThanOrEqual(log.logEndOffset)
    }

    /** Everything from `from` on, by as many reads as it takes. */
    async function readAll(from: number = log.logStartOffset): Promise<FoundBatch[]> {
      const found: FoundBatch[] = []
      let next = toOffset(from)
      while (next < log.highWatermark) {
        const result = await finish(log.read(next, 1000))
        expect(result.nextOffset).toBeGreaterThan(next)
        found.push(...batchesOf(result.chunks))
        next = result.nextOffset
      }
      return found
    }

    async function readRecords(): Promise<FoundRecord[]> {
      const batches = await readAll()
      const records = recordsOf(batches.map((batch) => batch.bytes))
      return records.filter((found) => found.offset >= log.logStartOffset)
    }

    async function readValues(): Promise<(string | undefined)[]> {
      return (await readRecords()).map((found) => found.value)
    }

    /** `count` durable batches of ten records each, all of one size. */
    async function appendTens(count: number, shape: BatchShape = {}): Promise<number> {
      const batch = aBatch({ records: 10, ...shape })
      await finish(
        Promise.all(
          Array.from({ length: count }, () => log.append(Uint8Array.from(batch), 'durable')),
        ),
      )
      return batch.length
    }

    describe('appending', () => {
      it('starts empty at offset 0', async () => {
        expect(log.logStartOffset).toBe(0)
        expect(log.highWatermark).toBe(0)
        expect(log.writtenEndOffset).toBe(0)
        expect(log.logEndOffset).toBe(0)
        expect((await finish(log.stats())).damaged).toEqual([])
      })

      it('gives out dense offsets', async () => {
        expect(await append({ records: 3 })).toMatchObject({ baseOffset: 0, endOffset: 3 })
        expect(await append({ records: 1 })).toMatchObject({ baseOffset: 3, endOffset: 4 })
        expect(await append({ records: 5 })).toMatchObject({ baseOffset: 4, endOffset: 9 })
        expect(log.logEndOffset).toBe(9)
      })

      it('gives the offset before the call returns', async () => {
        const first = log.append(aBatch({ records: 3 }), 'durable')
        expect(log.logEndOffset).toBe(3)
        const second = log.append(aBatch({ records: 2 }), 'written')
        expect(log.logEndOffset).toBe(5)
        await finish(Promise.all([first, second]))
      })

      it('takes ten appends before the first resolves, with offsets and answers in call order', async () => {
        const answered: number[] = []
        const appends = Array.from({ length: 10 }, async (_, i) => {
          const result = await log.append(aBatch({ records: i + 1 }), 'durable')
          answered.push(i)
          return result
        })
        expect(log.logEndOffset).toBe(55)
        expect(answered).toEqual([])
        checkEnds()
        const results = await finish(Promise.all(appends))
        expect(answered).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
        expect(results.map((result) => result.baseOffset)).toEqual([
          0, 1, 3, 6, 10, 15, 21, 28, 36, 45,
        ])
      })

      it('answers appends that come while others are on their way in call order', async () => {
        const answered: number[] = []
        const appends: Promise<unknown>[] = []
        for (let i = 0; i < 10; i++) {
          appends.push(log.append(aBatch(), 'durable').then(() => answered.push(i)))
          // Enough for a write to start, perhaps for it to end: the next one meets it half way.
          await Promise.resolve()
        }
        await finish(Promise.all(appends))
        expect(answered).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
      })

      it('answers acks none at once', async () => {
        const result = await log.append(aBatch({ records: 2 }), 'none')
        expect(result).toMatchObject({ baseOffset: 0, endOffset: 2, duplicate: false })
        await finish(log.flush())
        expect(log.highWatermark).toBe(2)
      })

      it('answers acks written once the batch has been written', async () => {
        let isWritten = false
        const appended = log.append(aBatch({ records: 2 }), 'written').then((result) => {
          isWritten = log.writtenEndOffset >= 2
          return result
        })
        expect(['written', 'durable']).toContain((await finish(appended)).acks)
        expect(isWritten).toBe(true)
      })

      it('answers acks durable once the high watermark is past the batch', async () => {
        let watermark = 0
        const appended = log.append(aBatch({ records: 2 }), 'durable').then((result) => {
          watermark = log.highWatermark
          return result
        })
        const result = await finish(appended)
        expect(result).toMatchObject({ acks: 'durable', highWatermark: 2, logStartOffset: 0 })
        expect(watermark).toBe(2)
      })

      it('stamps base offset and leader epoch and leaves the rest of the batch alone', async () => {
        await append({ records: 3 })
        const sent = aBatch({ records: 2, key: 'k', valueBytes: 300 })
        const copy = Uint8Array.from(sent)
        const result = await finish(log.append(sent, 'durable'))
        const [stored] = await readAll(3)
        expect(stored).toMatchObject({ baseOffset: 3, endOffset: 5 })
        expect(log.leaderEpoch).toBe(harness.store.incarnation)
        expect(result.leaderEpoch).toBe(log.leaderEpoch)
        const bytes = stored?.bytes ?? new Uint8Array()
        expect(readLeaderEpoch(bytes, 0)).toBe(log.leaderEpoch)
        expect(Buffer.from(bytes.subarray(16)).equals(copy.subarray(16))).toBe(true)
        expect(isCrcValid(bytes, 0)).toBe(true)
      })

      it('keeps batches of every size', async () => {
        const sizes = [0, 1, 100, 5000, 70_000, 300_000]
        for (const valueBytes of sizes) await append({ valueBytes })
        const found = await readRecords()
        expect(found.map((one) => one.value?.length)).toEqual(sizes)
      })

      it('refuses a caller whose leader epoch is over', async () => {
        const stale = log.append(aBatch(), 'durable', { leaderEpoch: log.leaderEpoch - 1 })
        await refuse(stale, 'NOT_LEADER')
        expect(log.logEndOffset).toBe(0)
        await append({}, 'durable', { leaderEpoch: log.leaderEpoch })
        expect(log.logEndOffset).toBe(1)
      })
    })

    describe('the ends', () => {
      it('only rise, in their order, and are told of', async () => {
        const seen: number[][] = []
        const stop = log.onAdvance(() => {
          checkEnds()
          seen.push([log.writtenEndOffset, log.highWatermark])
        })
        for (let i = 0; i < 5; i++) {
          await append({ records: 2 }, i % 2 === 0 ? 'durable' : 'written')
          checkEnds()
        }
        await finish(log.flush())
        expect(seen.at(-1)).toEqual([10, 10])
        for (const end of [0, 1]) {
          const values = seen.map((pair) => pair[end] ?? 0)
          expect(values).toEqual([...values].sort((a, b) => a - b))
        }
        const calls = seen.length
        stop()
        stop()
        await append()
        expect(seen).toHaveLength(calls)
      })

      it('tells every listener, also after another has stopped', async () => {
        const calls = [0, 0]
        const stop = log.onAdvance(() => (calls[0] = (calls[0] ?? 0) + 1))
        log.onAdvance(() => (calls[1] = (calls[1] ?? 0) + 1))
        await append()
        stop()
        const before = [...calls]
        await append()
        expect(before[0]).toBeGreaterThan(0)
        expect(calls[0]).toBe(before[0])
        expect(calls[1]).toBeGreaterThan(before[1] ?? 0)
      })

      it('flush waits until everything is durable', async () => {
        await log.append(aBatch({ records: 4 }), 'none')
        await append({ records: 3 }, 'written')
        await finish(log.flush())
        expect(log.highWatermark).toBe(7)
        expect(log.logEndOffset).toBe(7)
        await finish(log.flush())
      })
    })

    describe('reading', () => {
      it('answers from the batch that holds the offset, at every offset', async () => {
        const sizes = [1, 2, 3, 4, 5, 1, 7]
        for (const records of sizes) await append({ records })
        const all = await readAll()
        expect(all.map((batch) => batch.endOffset - batch.baseOffset)).toEqual(sizes)
        for (let from = 0; from < log.highWatermark; from++) {
          const result = await finish(log.read(toOffset(from), 1_000_000))
          const found = batchesOf(result.chunks)
          const expected = all.filter((batch) => batch.endOffset > from)
          expect(found.map((batch) => batch.baseOffset)).toEqual(
            expected.map((batch) => batch.baseOffset),
          )
          expect(result.bytes).toBe(result.chunks.reduce((sum, chunk) => sum + chunk.length, 0))
          expect(result.nextOffset).toBe(log.highWatermark)
          expect(result.highWatermark).toBe(log.highWatermark)
          expect(result.logStartOffset).toBe(0)
        }
      })

      it('answers at least one batch, however small maxBytes is', async () => {
        await append({ records: 3, valueBytes: 2000 })
        await append({ records: 2 })
        const result = await finish(log.read(toOffset(1), 1))
        expect(batchesOf(result.chunks)).toHaveLength(1)
        expect(result.nextOffset).toBe(3)
      })

      it('answers about maxBytes', async () => {
        const size = await appendTens(20)
        const result = await finish(log.read(toOffset(0), 5 * size))
        // "About": one batch more or less is still right.
        expect(batchesOf(result.chunks).length).toBeGreaterThanOrEqual(4)
        expect(batchesOf(result.chunks).length).toBeLessThanOrEqual(6)
      })

      it('reads across segments', async () => {
        await use({ segmentBytes: 500 })
        await appendTens(20)
        expect((await finish(log.stats())).segments).toBeGreaterThan(5)
        const found = await readAll()
        expect(found.map((batch) => batch.baseOffset)).toEqual(
          Array.from({ length: 20 }, (_, i) => i * 10),
        )
      })

      it('is empty at the visible end', async () => {
        const atStart = await finish(log.read(toOffset(0), 1000))
        expect(atStart).toMatchObject({ chunks: [], bytes: 0, nextOffset: 0 })
        await append({ records: 4 })
        const atEnd = await finish(log.read(toOffset(4), 1000))
        expect(atEnd).toMatchObject({ chunks: [], bytes: 0, nextOffset: 4, highWatermark: 4 })
      })

      it('never answers what is not durable, unless asked', async () => {
        await append({ records: 2 })
        const appended = log.append(aBatch({ records: 3 }), 'durable')
        for (const isolation of ['durable', 'written'] as const) {
          const result = await finish(
            log.read(toOffset(0), 1_000_000, isolation).then((result) => {
              // Looked at in the same breath: later the end may have risen.
              const end = isolation === 'durable' ? log.highWatermark : log.writtenEndOffset
              expect(result.nextOffset).toBeLessThanOrEqual(end)
              return result
            }),
          )
          expect(recordsOf(result.chunks)).toHaveLength(result.nextOffset)
        }
        await finish(appended)
      })

      it('answers what is written with isolation written', async () => {
        await append({ records: 2 }, 'written')
        const result = await finish(log.read(toOffset(0), 1000, 'written'))
        expect(result.nextOffset).toBe(2)
        expect(recordsOf(result.chunks)).toHaveLength(2)
      })

      it('has nothing yet, and no error, for an offset that is given out but not visible', async () => {
        const appended = log.append(aBatch({ records: 3 }), 'durable')
        const result = await finish(log.read(toOffset(2), 1000))
        expect(result.chunks.length === 0 ? 2 : 3).toBe(result.nextOffset)
        await finish(appended)
      })

      it('refuses an offset past the log end with the range', async () => {
        await append({ records: 4 })
        const error = await refuse(log.read(toOffset(5), 1000), 'OFFSET_OUT_OF_RANGE')
        expect(error.details).toMatchObject({ logStartOffset: 0, endOffset: 4 })
      })

      it('refuses an offset below the log start with the range', async () => {
        await append({ records: 4 })
        await append({ records: 4 })
        await finish(log.advanceLogStart(toOffset(4)))
        const error = await refuse(log.read(toOffset(3), 1000), 'OFFSET_OUT_OF_RANGE')
        expect(error.details).toMatchObject({ logStartOffset: 4, endOffset: 8 })
      })

      it('keeps what it has answered as it was while the log goes on', async () => {
        await appendTens(3)
        const result = await finish(log.read(toOffset(0), 1_000_000))
        const copy = result.chunks.map((chunk) => Buffer.from(chunk))
        await appendTens(3)
        expect(result.chunks.map((chunk) => Buffer.from(chunk))).toEqual(copy)
      })
    })

    describe('looking up a time', () => {
      const at = (timestampMs: number): Promise<unknown> =>
        finish(log.findOffsetByTimestamp(timestampMs))

      it('finds nothing in an empty log', async () => {
        expect(await at(0)).toBeUndefined()
      })

      it('finds the first record at or after it, also in the middle of a batch', async () => {
        await append({ timestampsMs: [1000, 2000, 3000] })
        await append({ timestampsMs: [4000] })
        await append({ timestampsMs: [6000, 7000] })
        expect(await at(0)).toEqual({ offset: 0, timestampMs: 1000 })
        expect(await at(1000)).toEqual({ offset: 0, timestampMs: 1000 })
        expect(await at(1001)).toEqual({ offset: 1, timestampMs: 2000 })
        expect(await at(3000)).toEqual({ offset: 2, timestampMs: 3000 })
        expect(await at(4000)).toEqual({ offset: 3, timestampMs: 4000 })
        expect(await at(4001)).toEqual({ offset: 4, timestampMs: 6000 })
        expect(await at(7000)).toEqual({ offset: 5, timestampMs: 7000 })
        expect(await at(7001)).toBeUndefined()
      })

      it('finds the first of several when times go back', async () => {
        await append({ timestampsMs: [5000, 1000] })
        await append({ timestampsMs: [2000] })
        await append({ timestampsMs: [9000] })
        expect(await at(4000)).toEqual({ offset: 0, timestampMs: 5000 })
        expect(await at(6000)).toEqual({ offset: 3, timestampMs: 9000 })
      })

      it('finds it in any segment', async () => {
        await use({ segmentBytes: 500, indexIntervalBytes: 100 })
        for (let i = 0; i < 30; i++) await append({ timestampMs: 1000 * i, valueBytes: 100 })
        for (let i = 0; i < 30; i++) {
          expect(await at(1000 * i - 1)).toEqual({ offset: i, timestampMs: 1000 * i })
        }
      })

      it('finds nothing below the log start', async () => {
        await append({ timestampsMs: [1000, 2000, 3000] })
        await append({ timestampsMs: [4000] })
        await finish(log.advanceLogStart(toOffset(1)))
        expect(await at(0)).toEqual({ offset: 1, timestampMs: 2000 })
        await finish(log.advanceLogStart(toOffset(3)))
        expect(await at(0)).toEqual({ offset: 3, timestampMs: 4000 })
        await finish(log.advanceLogStart(toOffset(4)))
        expect(await at(0)).toBeUndefined()
      })

      it('finds only what is durable', async () => {
        const appended = log.append(aBatch(), 'durable')
        await finish(
          log.findOffsetByTimestamp(0).then((found) => {
            expect(found?.offset ?? -1).toBeLessThan(log.highWatermark)
            return found
          }),
        )
        await finish(appended)
        expect(await at(0)).toMatchObject({ offset: 0 })
      })

      it('answers a compressed batch with a place from which nothing is missed', async () => {
        await append({ timestampsMs: [1000] })
        await append({ timestampsMs: [2000, 3000, 4000], valueBytes: 500, compression: 'gzip' })
        const found = await finish(log.findOffsetByTimestamp(3000))
        expect(found?.offset).toBeGreaterThanOrEqual(1)
        expect(found?.offset).toBeLessThanOrEqual(2)
      })
    })

    describe('appending at an expected offset', () => {
      it('appends when the log is there, and else says where it is and changes nothing', async () => {
        expect(
          await append({ records: 2 }, 'durable', { expectedOffset: toOffset(0) }),
        ).toMatchObject({ baseOffset: 0 })
        for (const expectedOffset of [0, 1, 3, 1000].map(toOffset)) {
          const error = await refuse(
            log.append(aBatch(), 'durable', { expectedOffset }),
            'WRONG_EXPECTED_OFFSET',
          )
          expect(error.details).toMatchObject({ expectedOffset, logEndOffset: 2 })
        }
        expect(log.logEndOffset).toBe(2)
        await append({}, 'durable', { expectedOffset: toOffset(2) })
        expect(log.logEndOffset).toBe(3)
      })

      it('lets one of two win that race', async () => {
        const options = { expectedOffset: toOffset(0) }
        const first = log.append(aBatch(), 'durable', options)
        const second = log.append(aBatch(), 'durable', options)
        const refused = refuse(second, 'WRONG_EXPECTED_OFFSET')
        expect(await finish(first)).toMatchObject({ baseOffset: 0 })
        await refused
        expect(await readValues()).toEqual(['value-0'])
      })

      it('counts what is on its way', async () => {
        const first = log.append(aBatch({ records: 3 }), 'durable')
        const second = log.append(aBatch(), 'durable', { expectedOffset: toOffset(3) })
        await finish(first)
        expect(await finish(second)).toMatchObject({ baseOffset: 3 })
      })

      it('answers the retry of a conditional append with its first offset', async () => {
        const shape = { producer: { id: 7, sequence: 0 } }
        const options = { expectedOffset: toOffset(0) }
        await append(shape, 'durable', options)
        expect(await append(shape, 'durable', options)).toMatchObject({
          baseOffset: 0,
          endOffset: 1,
          duplicate: true,
        })
        expect(log.logEndOffset).toBe(1)
      })
    })

    describe('a producer with an id', () => {
      const from = (sequence: number, records = 1, epoch = 0): BatchShape => ({
        records,
        producer: { id: 42, epoch, sequence },
      })

      it('gets the original offsets for a retry, and nothing is written', async () => {
        await append({ records: 5 })
        const first = await append(from(0, 3))
        const retry = await append(from(0, 3))
        expect(first).toMatchObject({ baseOffset: 5, endOffset: 8, duplicate: false })
        expect(retry).toMatchObject({ baseOffset: 5, endOffset: 8, duplicate: true })
        expect(retry.acks).toBe('durable')
        expect(log.logEndOffset).toBe(8)
        expect(await readRecords()).toHaveLength(8)
      })

      it('gets the answer to a retry only when the original is durable', async () => {
        const first = log.append(aBatch(from(0)), 'none')
        let watermark = -1
        const retry = log.append(aBatch(from(0)), 'durable').then((result) => {
          watermark = log.highWatermark
          return result
        })
        await first
        expect(await finish(retry)).toMatchObject({ baseOffset: 0, duplicate: true })
        expect(watermark).toBe(1)
      })

      it('may have five batches in flight and repeat them all', async () => {
        const sequences = [0, 2, 4, 6, 8]
        const send = (): Promise<AppendResult>[] =>
          sequences.map((sequence) => log.append(aBatch(from(sequence, 2)), 'durable'))
        const results = await finish(Promise.all([...send(), ...send()]))
        expect(results.map((result) => result.baseOffset)).toEqual([...sequences, ...sequences])
        expect(results.map((result) => result.duplicate)).toEqual(
          results.map((_, i) => i >= sequences.length),
        )
        const again = await finish(Promise.all(send()))
        expect(again.map((result) => result.baseOffset)).toEqual(sequences)
        expect(log.logEndOffset).toBe(10)
      })

      it('is refused when a batch is missing, with what was expected', async () => {
        await append(from(0, 3))
        const error = await refuse(log.append(aBatch(from(4)), 'durable'), 'OUT_OF_ORDER_SEQUENCE')
        expect(error.details).toMatchObject({ expected: 3, actual: 4 })
        expect(log.logEndOffset).toBe(3)
        expect(await append(from(3))).toMatchObject({ baseOffset: 3 })
      })

      it('is told when a repeat is too old to be answered', async () => {
        for (let sequence = 0; sequence < 6; sequence++) await append(from(sequence))
        expect(await append(from(1))).toMatchObject({ baseOffset: 1, duplicate: true })
        const error = await refuse(log.append(aBatch(from(0)), 'durable'), 'OUT_OF_ORDER_SEQUENCE')
        expect(error.message).toContain('duplicate too old')
      })

      it('is fenced when its epoch is over', async () => {
        await append(from(0))
        await append(from(0, 1, 1))
        const error = await refuse(log.append(aBatch(from(1)), 'durable'), 'PRODUCER_FENCED')
        expect(error.details).toMatchObject({ producerEpoch: 0, currentEpoch: 1 })
        expect(await append(from(1, 1, 1))).toMatchObject({ baseOffset: 2 })
      })

      it('starts a new epoch at 0', async () => {
        await append(from(0))
        await refuse(log.append(aBatch(from(1, 1, 1)), 'durable'), 'OUT_OF_ORDER_SEQUENCE')
        expect(await append(from(1))).toMatchObject({ baseOffset: 1 })
      })

      it('is not known when it starts elsewhere than at 0', async () => {
        await refuse(log.append(aBatch(from(3)), 'durable'), 'UNKNOWN_PRODUCER')
        expect(log.logEndOffset).toBe(0)
      })

      it('does not meet the sequences of others', async () => {
        await append(from(0))
        expect(await append({ producer: { id: 43, sequence: 0 } })).toMatchObject({
          baseOffset: 1,
          duplicate: false,
        })
        expect(await append()).toMatchObject({ baseOffset: 2, duplicate: false })
        expect(await append()).toMatchObject({ baseOffset: 3, duplicate: false })
      })

      it('is remembered after retention has removed its records', async () => {
        await use({ segmentBytes: 500, deleteDelayMs: 0, retentionRecords: 10 })
        await append(from(0, 2))
        await appendTens(10)
        await finish(log.applyRetention())
        await harness.clock.advance(1)
        await finish(log.applyRetention())
        expect(log.logStartOffset).toBeGreaterThan(2)
        expect(await append(from(0, 2))).toMatchObject({ baseOffset: 0, duplicate: true })
        expect(await append(from(2))).toMatchObject({ duplicate: false })
      })

      it('is forgotten when it has been idle for long enough', async () => {
        await use({ producerExpiryMs: HOUR_MS })
        await append(from(0))
        harness.clock.setWall(harness.clock.wallMs() + HOUR_MS - 10_000)
        await finish(log.applyRetention())
        expect(await append(from(0))).toMatchObject({ duplicate: true })
        harness.clock.setWall(harness.clock.wallMs() + HOUR_MS + 1)
        await finish(log.applyRetention())
        await refuse(log.append(aBatch(from(1)), 'durable'), 'UNKNOWN_PRODUCER')
      })
    })

    describe('append time', () => {
      it('is stamped when the topic asks for it, and never goes back', async () => {
        await use({ timestampType: 'append' })
        const { clock } = harness
        const first = await append({ timestampMs: 5000, records: 2 })
        clock.setWall(clock.wallMs() - HOUR_MS)
        const second = await append({ timestampMs: 5000 })
        clock.setWall(clock.wallMs() + 2 * HOUR_MS)
        const third = await append({ timestampMs: 5000 })
        expect(first.appendTimeMs).toBeGreaterThan(5000)
        expect(second.appendTimeMs).toBe(first.appendTimeMs)
        expect(third.appendTimeMs).toBeGreaterThan(first.appendTimeMs ?? Infinity)
        for (const batch of await readAll()) {
          expect(isCrcValid(batch.bytes, 0)).toBe(true)
          expect((batch.bytes[attributesAt + 1] ?? 0) & 8).toBe(8)
        }
        const found = await readRecords()
        expect(found.map((one) => one.timestampMs)).toEqual([
          first.appendTimeMs,
          first.appendTimeMs,
          second.appendTimeMs,
          third.appendTimeMs,
        ])
        expect(await finish(log.findOffsetByTimestamp(6000))).toEqual({
          offset: 0,
          timestampMs: first.appendTimeMs,
        })
      })

      it('is the original one for a repeat', async () => {
        await use({ timestampType: 'append' })
        const shape = { producer: { id: 1, sequence: 0 } }
        const first = await append(shape)
        await harness.clock.advance(5000)
        expect((await append(shape)).appendTimeMs).toBe(first.appendTimeMs)
      })

      it('is not given when producers stamp', async () => {
        expect((await append({ timestampMs: 5000 })).appendTimeMs).toBeUndefined()
        expect((await readRecords())[0]?.timestampMs).toBe(5000)
      })

      it('follows a change of the setting from the next append on', async () => {
        await append({ timestampMs: 5000 })
        log.configure({ ...DEFAULT_LOG_CONFIG, timestampType: 'append' })
        expect((await append({ timestampMs: 5000 })).appendTimeMs).toBeGreaterThan(5000)
      })
    })

    describe('moving the log start', () => {
      it('hides what is below, and keeps what is above', async () => {
        for (let i = 0; i < 4; i++) await append({ values: [`a${i}`, `b${i}`] })
        await finish(log.advanceLogStart(toOffset(4)))
        expect(log.logStartOffset).toBe(4)
        expect(await readValues()).toEqual(['a2', 'b2', 'a3', 'b3'])
        expect((await append()).logStartOffset).toBe(4)
      })

      it('may end inside a batch, which is still answered whole', async () => {
        await append({ records: 5 })
        await finish(log.advanceLogStart(toOffset(2)))
        const result = await finish(log.read(toOffset(2), 1000))
        expect(batchesOf(result.chunks)).toMatchObject([{ baseOffset: 0, endOffset: 5 }])
        await refuse(log.read(toOffset(1), 1000), 'OFFSET_OUT_OF_RANGE')
      })

      it('never goes back', async () => {
        await append({ records: 5 })
        await finish(log.advanceLogStart(toOffset(3)))
        await finish(log.advanceLogStart(toOffset(1)))
        expect(log.logStartOffset).toBe(3)
      })

      it('is refused above the high watermark', async () => {
        await append({ records: 5 })
        const error = await refuse(log.advanceLogStart(toOffset(6)), 'OFFSET_OUT_OF_RANGE')
        expect(error.details).toMatchObject({ logStartOffset: 0, endOffset: 5 })
        expect(log.logStartOffset).toBe(0)
      })

      it('may empty the log, which goes on from there', async () => {
        await append({ records: 5 })
        await finish(log.advanceLogStart(toOffset(5)))
        expect(await finish(log.read(toOffset(5), 1000))).toMatchObject({
          chunks: [],
          nextOffset: 5,
        })
        expect(await append({ values: ['next'] })).toMatchObject({ baseOffset: 5 })
        expect(await readValues()).toEqual(['next'])
      })
    })

    describe('retention', () => {
      const daysAgo = (days: number): number => harness.clock.wallMs() - days * DAY_MS

      /** Two batches of ten records to a segment. */
      async function useSmallSegments(config: Partial<LogConfig>): Promise<number> {
        const size = aBatch({ records: 10 }).length
        await use({ segmentBytes: 2 * size, ...config })
        return size
      }

      it('keeps everything within the limits', async () => {
        await useSmallSegments({})
        await appendTens(10)
        expect(await finish(log.applyRetention())).toBe(0)
      })

      it('removes segments whose newest record is too old', async () => {
        await useSmallSegments({ retentionMs: 7 * DAY_MS })
        await appendTens(4, { timestampMs: daysAgo(8) })
        await appendTens(4, { timestampMs: daysAgo(6) })
        expect(await finish(log.applyRetention())).toBe(40)
        expect(log.logStartOffset).toBe(40)
        expect((await readAll())[0]?.baseOffset).toBe(40)
      })

      it('removes also the active segment when all of it is too old', async () => {
        await useSmallSegments({ retentionMs: 7 * DAY_MS })
        await appendTens(3, { timestampMs: daysAgo(8) })
        expect(await finish(log.applyRetention())).toBe(30)
        expect(await append()).toMatchObject({ baseOffset: 30 })
        expect(await readValues()).toEqual(['value-0'])
      })

      it('keeps records from the future', async () => {
        await useSmallSegments({ retentionMs: 7 * DAY_MS })
        await appendTens(4, { timestampMs: daysAgo(-1) })
        await appendTens(4, { timestampMs: daysAgo(8) })
        expect(await finish(log.applyRetention())).toBe(0)
      })

      it('removes the oldest segments as long as retentionBytes remain', async () => {
        const size = await useSmallSegments({})
        log.configure({
          ...DEFAULT_LOG_CONFIG,
          segmentBytes: 2 * size,
          retentionBytes: 5 * size,
        })
        await appendTens(10)
        expect(await finish(log.applyRetention())).toBe(40)
      })

      it('removes the oldest segments as long as retentionRecords remain', async () => {
        await useSmallSegments({ retentionRecords: 50 })
        await appendTens(10)
        expect(await finish(log.applyRetention())).toBe(40)
      })

      it('gives the bytes back after the grace', async () => {
        await useSmallSegments({ retentionRecords: 50, deleteDelayMs: 60_000 })
        await appendTens(10)
        const before = await finish(log.stats())
        await finish(log.applyRetention())
        await harness.clock.advance(60_001)
        // An engine may put off a segment that it is still busy with.
        for (let round = 0; round < 3; round++) {
          await finish(log.applyRetention())
          await harness.settle()
        }
        const after = await finish(log.stats())
        expect(after.bytes).toBeLessThan(before.bytes)
        expect(after.segments).toBe(before.segments - 2)
        expect(await readRecords()).toHaveLength(60)
      })

      it('leaves a reader that is at the log start something to read', async () => {
        await useSmallSegments({ retentionRecords: 10, deleteDelayMs: 0 })
        await appendTens(10)
        const start = await finish(log.applyRetention())
        const result = await finish(log.read(start, 1))
        expect(batchesOf(result.chunks)[0]?.baseOffset).toBe(start)
      })
    })

    describe('retention that is held', () => {
      const daysAgo = (days: number): number => harness.clock.wallMs() - days * DAY_MS
      const hold = (keepFrom: number, days = Infinity): RetentionHold => ({
        keepFrom: toOffset(keepFrom),
        maxMs: days * DAY_MS,
      })

      /** Two batches of ten records to a segment; 40 records are due by time, of them 20 for two days and 20 for one. */
      async function useDue(config: Partial<LogConfig> = {}): Promise<void> {
        const size = aBatch({ records: 10 }).length
        await use({ segmentBytes: 2 * size, retentionMs: 7 * DAY_MS, ...config })
        await appendTens(2, { timestampMs: daysAgo(9) })
        await appendTens(2, { timestampMs: daysAgo(8) })
        await appendTens(4, { timestampMs: daysAgo(0) })
      }

      it('keeps the segment that is held and all behind it', async () => {
        await useDue()
        expect(await finish(log.applyRetention(hold(25)))).toBe(20)
        expect(await finish(log.applyRetention(hold(39)))).toBe(20)
        expect(await finish(log.applyRetention(hold(40)))).toBe(40)
      })

      it('keeps nothing that is not due, wherever it is held', async () => {
        await useDue()
        expect(await finish(log.applyRetention(hold(80)))).toBe(40)
      })

      it('keeps everything for one who has to begin at the log start', async () => {
        await useDue()
        expect(await finish(log.applyRetention(hold(0)))).toBe(0)
        expect(await readRecords()).toHaveLength(80)
      })

      it('keeps nothing for longer than it may be held', async () => {
        await useDue()
        expect(await finish(log.applyRetention(hold(0, 2.1)))).toBe(0)
        expect(await finish(log.applyRetention(hold(0, 1.9)))).toBe(20)
        expect(await finish(log.applyRetention(hold(0, 0)))).toBe(40)
      })

      it('counts from when the newer records came, where a limit is by count', async () => {
        await useDue({ retentionMs: Infinity, retentionRecords: 20 })
        expect(await finish(log.applyRetention(hold(0, 8.1)))).toBe(0)
        // Eight days ago 40 records were there: 20 too many.
        expect(await finish(log.applyRetention(hold(0, 7.9)))).toBe(20)
        expect(await finish(log.applyRetention())).toBe(60)
      })

      it('does not keep what is deleted by name', async () => {
        await useDue()
        await finish(log.applyRetention(hold(0)))
        await finish(log.advanceLogStart(toOffset(30)))
        expect(log.logStartOffset).toBe(30)
        expect(await finish(log.applyRetention(hold(30)))).toBe(30)
      })
    })

    describe('a companion', () => {
      const COMPANION: PartitionId = { ...ORDERS, companion: 'state' }
      const OTHER: PartitionId = {
        topic: 'orders-0.state',
        partition: 0,
        topicId: '7c5a0c1e-3c1d-4f7a-9a64-1d2e3f405161',
      }

      async function openBeside(id: PartitionId): Promise<PartitionLog> {
        return finish(harness.store.open(id, DEFAULT_LOG_CONFIG))
      }

      async function valuesOf(one: PartitionLog): Promise<(string | undefined)[]> {
        const { chunks } = await finish(one.read(one.logStartOffset, 10_000))
        return recordsOf(chunks).map(({ value }) => value)
      }

      it('is a log of its own, listed with its mark', async () => {
        const companion = await openBeside(COMPANION)
        await append({ values: ['data'] })
        await finish(companion.append(aBatch({ values: ['state', 'more'] }), 'durable'))
        expect(await valuesOf(companion)).toEqual(['state', 'more'])
        expect(await readValues()).toEqual(['data'])
        const listed = await finish(harness.store.list())
        expect(listed).toHaveLength(2)
        expect(listed).toEqual(expect.arrayContaining([ORDERS, COMPANION]))
        expect(await openBeside(COMPANION)).toBe(companion)
      })

      it('is not a topic with a name like its folder', async () => {
        const logs = [log, await openBeside(COMPANION), await openBeside(OTHER)]
        logs.push(await openBeside({ ...OTHER, companion: 'state' }))
        for (const [i, one] of logs.entries()) {
          await finish(one.append(aBatch({ values: [`log ${i}`] }), 'durable'))
        }
        for (const [i, one] of logs.entries()) expect(await valuesOf(one)).toEqual([`log ${i}`])
        expect(await finish(harness.store.list())).toHaveLength(4)
      })

      it('is there again after a start, with its own log start', async (context) => {
        const companion = await openBeside(COMPANION)
        await append({ values: ['data'] })
        for (const value of ['a', 'b', 'c']) {
          await finish(companion.append(aBatch({ values: [value] }), 'durable'))
        }
        await finish(companion.advanceLogStart(toOffset(2)))
        await reopen(context)
        expect(await valuesOf(await openBeside(COMPANION))).toEqual(['c'])
        expect(log.logStartOffset).toBe(0)
        expect(await readValues()).toEqual(['data'])
      })

      it('keeps what it has through starts at which nobody opens it', async (context) => {
        const companion = await openBeside(COMPANION)
        for (const value of ['a', 'b', 'c']) {
          await finish(companion.append(aBatch({ values: [value] }), 'durable'))
        }
        await finish(companion.advanceLogStart(toOffset(1)))
        await reopen(context)
        await append()
        await reopen(context)
        expect(await finish(harness.store.list())).toContainEqual(COMPANION)
        expect(await valuesOf(await openBeside(COMPANION))).toEqual(['b', 'c'])
      })

      it('goes without its partition, and stays without it', async () => {
        const companion = await openBeside(COMPANION)
        await append({ values: ['data'] })
        await finish(companion.append(aBatch(), 'durable'))
        await finish(harness.store.remove({ ...COMPANION, topicId: OTHER.topicId }))
        expect(await finish(harness.store.list())).toHaveLength(2)
        await finish(harness.store.remove(COMPANION))
        expect(await finish(harness.store.list())).toEqual([ORDERS])
        expect(await readValues()).toEqual(['data'])
        expect((await openBeside(COMPANION)).highWatermark).toBe(0)
        await finish(harness.store.remove(ORDERS))
        expect(await finish(harness.store.list())).toEqual([COMPANION])
      })
    })

    describe('closing', () => {
      it('finishes the appends that are on their way and refuses later ones', async () => {
        const appends = [1, 2, 3].map((records) => log.append(aBatch({ records }), 'durable'))
        const closed = log.close()
        const late = refuse(log.append(aBatch(), 'durable'), 'CLOSED')
        const results = await finish(Promise.all(appends))
        expect(results.map((result) => result.endOffset)).toEqual([1, 3, 6])
        expect(results.map((result) => result.acks)).toEqual(['durable', 'durable', 'durable'])
        await finish(closed)
        await late
        await finish(log.close())
        await refuse(log.append(aBatch(), 'none'), 'CLOSED')
        await refuse(log.read(toOffset(0), 1000), 'CLOSED')
      })

      it('makes durable what was only written', async (context) => {
        await log.append(aBatch({ records: 2 }), 'none')
        await finish(log.close())
        await reopen(context)
        expect(log.highWatermark).toBe(2)
        expect(await readRecords()).toHaveLength(2)
      })

      it('keeps records, ends and producers for the next opening', async (context) => {
        await append({ values: ['a', 'b', 'c'], producer: { id: 5, sequence: 0 } })
        await append({ values: ['d'] })
        await finish(log.advanceLogStart(toOffset(1)))
        await reopen(context)
        expect(log.logStartOffset).toBe(1)
        expect(log.highWatermark).toBe(4)
        expect(log.logEndOffset).toBe(4)
        expect(await readValues()).toEqual(['b', 'c', 'd'])
        expect(
          await append({ values: ['a', 'b', 'c'], producer: { id: 5, sequence: 0 } }),
        ).toMatchObject({ baseOffset: 0, duplicate: true })
        expect(await append({ producer: { id: 5, sequence: 3 } })).toMatchObject({ baseOffset: 4 })
      })
    })

    describe('the store', () => {
      const REMADE: PartitionId = { ...ORDERS, topicId: '9f1c2b3a-0000-4000-8000-000000000001' }

      it('lists what is there', async () => {
        const other = { ...ORDERS, partition: 1 }
        const open = await finish(harness.store.open(other, DEFAULT_LOG_CONFIG))
        await finish(open.close())
        const listed = await finish(harness.store.list())
        expect([...listed].sort((a, b) => a.partition - b.partition)).toEqual([ORDERS, other])
      })

      it('refuses to open a log under another topic id', async () => {
        await append()
        await refuse(harness.store.open(REMADE, DEFAULT_LOG_CONFIG), 'STORAGE_ERROR')
        expect(await append()).toMatchObject({ baseOffset: 1 })
      })

      it('removes a log, so that its name may be used anew', async () => {
        await append({ records: 3, producer: { id: 1, sequence: 0 } })
        await finish(harness.store.remove(ORDERS))
        await refuse(log.append(aBatch(), 'durable'), 'CLOSED')
        expect(await finish(harness.store.list())).toEqual([])
        await finish(harness.store.remove(ORDERS))
        log = await finish(harness.store.open(REMADE, DEFAULT_LOG_CONFIG))
        expect(log.logEndOffset).toBe(0)
        expect(await finish(log.read(toOffset(0), 1000))).toMatchObject({ chunks: [] })
        await refuse(
          log.append(aBatch({ producer: { id: 1, sequence: 3 } }), 'durable'),
          'UNKNOWN_PRODUCER',
        )
        expect(await append({ values: ['new'] })).toMatchObject({ baseOffset: 0 })
        expect(await readValues()).toEqual(['new'])
      })

      it('keeps partitions apart', async () => {
        const other = await finish(
          harness.store.open({ ...ORDERS, partition: 1 }, DEFAULT_LOG_CONFIG),
        )
        await append({ records: 3 })
        const appended = await finish(other.append(aBatch(), 'durable'))
        expect(appended.baseOffset).toBe(0)
        expect(log.logEndOffset).toBe(3)
      })

      it('reports once everything has been opened', async () => {
        const report = await finish(harness.store.ready())
        expect(report.incarnation).toBe(harness.store.incarnation)
        expect(report.partitions).toBe(1)
      })

      it('comes back with all its records under a higher incarnation', async (context) => {
        await append({ values: ['a', 'b'], producer: { id: 5, sequence: 0 } })
        await append({ values: ['c'] })
        await finish(log.advanceLogStart(toOffset(1)))
        const { incarnation } = harness.store
        await reopen(context)
        expect(harness.store.incarnation).toBeGreaterThan(incarnation)
        expect(log.leaderEpoch).toBe(harness.store.incarnation)
        expect(await readValues()).toEqual(['b', 'c'])
        expect(
          await append({ values: ['a', 'b'], producer: { id: 5, sequence: 0 } }),
        ).toMatchObject({ baseOffset: 0, duplicate: true })
        await append({ values: ['d'] })
        const epochs = (await readAll()).map((batch) => readLeaderEpoch(batch.bytes, 0))
        expect(epochs).toEqual([incarnation, incarnation, harness.store.incarnation])
      })

      it('never lets append time go back over a restart', async (context) => {
        await use({ timestampType: 'append' })
        const before = await append()
        harness.clock.setWall(harness.clock.wallMs() - HOUR_MS)
        await reopen(context, { timestampType: 'append' })
        expect((await append()).appendTimeMs).toBe(before.appendTimeMs)
      })
    })

    describe('any history', () => {
      const acks = constantFrom<Acks>('none', 'written', 'durable')
      const steps = array(
        oneof(
          { weight: 6, arbitrary: record({ kind: constantFrom('append'), acks, size: nat(6) }) },
          { weight: 1, arbitrary: record({ kind: constantFrom('repeat'), acks, size: nat(6) }) },
          { weight: 1, arbitrary: record({ kind: constantFrom('trim'), acks, size: nat(100) }) },
          { weight: 2, arbitrary: record({ kind: constantFrom('settle'), acks, size: nat(1) }) },
          { weight: 1, arbitrary: record({ kind: constantFrom('close'), acks, size: nat(1) }) },
        ),
        { maxLength: 40 },
      )

      it('reads back as a plain list would', async () => {
        const config: Partial<LogConfig> = { segmentBytes: 600, indexIntervalBytes: 150 }
        await assert(
          asyncProperty(steps, async (steps) => {
            await use(config)
            const expected: string[] = []
            const pending: Promise<unknown>[] = []
            const sent: { shape: BatchShape; baseOffset: number }[] = []
            const answers = { written: [] as number[], durable: [] as number[] }
            let sequence = 0
            const expectOffset = (shape: BatchShape, baseOffset: number, acks: Acks): void => {
              const turn = pending.length
              const check = async (): Promise<void> => {
                const result = await log.append(aBatch(shape), acks)
                expect(result.baseOffset).toBe(baseOffset)
                if (acks !== 'none') answers[acks].push(turn)
                checkEnds()
              }
              pending.push(check())
            }
            for (const { kind, acks, size } of steps) {
              if (kind === 'append') {
                const values = Array.from({ length: size + 1 }, (_, i) => `${expected.length + i}`)
                const shape = { values, producer: { id: 9, sequence } }
                sequence += values.length
                sent.push({ shape, baseOffset: expected.length })
                expectOffset(shape, expected.length, acks)
                expected.push(...values)
              } else if (kind === 'repeat') {
                const again = sent.slice(-5)[size % 5]
                if (again !== undefined) expectOffset(again.shape, again.baseOffset, acks)
              } else if (kind === 'trim') {
                const to = Math.floor((log.highWatermark * size) / 100)
                pending.push(log.advanceLogStart(toOffset(to)))
              } else if (kind === 'settle') {
                await harness.settle()
              } else if (harness.reopen !== undefined) {
                log = await finish(harness.reopen(config))
              }
              checkEnds()
              expect(log.logEndOffset).toBe(expected.length)
            }
            await finish(Promise.all(pending))
            await finish(log.flush())
            expect(await readValues()).toEqual(expected.slice(log.logStartOffset))
            for (const order of [answers.written, answers.durable]) {
              expect(order).toEqual([...order].sort((a, b) => a - b))
            }
          }),
          { numRuns: 30 },
        )
      })
    })
  })
}
