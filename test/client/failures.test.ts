import { assert, asyncProperty, constantFrom, integer, array } from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import {
  type Client,
  connect,
  type MillraceError,
  type Producer,
  type Receipt,
  text,
  topic,
} from '../../src/client/index.ts'
import { readBaseSequence, readProducerId } from '../../src/record/batch-header.ts'
import { RecordCursor, batchesIn } from '../../src/record/record-cursor.ts'
import { toOffset } from '../../src/common/offset.ts'
import { FakeBroker, type ProduceAction } from '../support/fake-broker.ts'

const lines = topic('lines', { value: text })

let broker: FakeBroker
let mill: Client

beforeEach(async () => {
  broker = await FakeBroker.start()
  mill = await connect(broker.url)
})

afterEach(async () => {
  await mill.close({ timeoutMs: 1000 })
  await broker[Symbol.asyncDispose]()
})

/** What the log of partition 0 holds, in order. */
async function written(from: FakeBroker = broker): Promise<string[]> {
  const log = from.logs[0]
  if (log === undefined) throw new Error('no log')
  const values: string[] = []
  const cursor = new RecordCursor()
  let offset = toOffset(0)
  while (offset < log.highWatermark) {
    const read = await log.read(offset, 1 << 20)
    for (const chunk of read.chunks) {
      for (const at of batchesIn(chunk)) {
        cursor.reset(chunk, at)
        while (cursor.next()) {
          values.push(
            Buffer.from(cursor.bytes.subarray(cursor.valueStart, cursor.valueEnd)).toString(),
          )
        }
      }
    }
    offset = read.nextOffset
  }
  return values
}

/** Sends one batch per record: each fills a batch of its own, so that many are under way together. */
function sendMany(producer: Producer, count: number): Promise<Receipt>[] {
  return Array.from({ length: count }, (_, i) =>
    producer.send(lines, { value: `${i} ${'x'.repeat(900)}` }),
  )
}

const numbers = (values: readonly string[]): number[] =>
  values.map((value) => Number(value.split(' ')[0]))
const upTo = (count: number): number[] => Array.from({ length: count }, (_, i) => i)

describe('an idempotent producer', () => {
  it('sends the same sequence again after a lost reply, and one copy stays', async () => {
    const seen: [number, number][] = []
    broker.onProduce = (envelope, arrival) => {
      const batch = envelope.batch ?? new Uint8Array(0)
      seen.push([readProducerId(batch, 0), readBaseSequence(batch, 0)])
      return arrival === 0 ? { kind: 'break', append: true } : { kind: 'append' }
    }
    const producer = mill.producer()
    const receipt = await producer.send(lines, { value: '0' })
    expect(receipt).toMatchObject({ offset: 0, duplicate: true })
    expect(seen).toEqual([
      [1, 0],
      [1, 0],
    ])
    expect(await written()).toEqual(['0'])
  })

  it.each([true, false])(
    'keeps the order when the stream breaks with five in flight (appended: %s)',
    async (append) => {
      broker.onProduce = (_envelope, arrival) => {
        if (arrival < 3) return { kind: 'hold' }
        return arrival === 3 ? { kind: 'break', append } : { kind: 'append' }
      }
      const producer = mill.producer({ batchBytes: 1024 })
      const sends = sendMany(producer, 20)
      await expect.poll(() => broker.arrivals).toBeGreaterThan(3)
      broker.release()
      const receipts = await Promise.all(sends)
      expect(receipts.map((receipt) => receipt.offset)).toEqual(upTo(20))
      expect(numbers(await written())).toEqual(upTo(20))
    },
  )

  it.each(['STORAGE_FULL', 'NOT_LEADER', 'LOADING', 'FLUSH_FAILED', 'CORRUPT_BATCH'] as const)(
    'keeps the order when one of many is answered %s',
    async (code) => {
      broker.onProduce = (_envelope, arrival) =>
        arrival === 2 ? { kind: 'refuse', code } : { kind: 'append' }
      const metadataCalls = broker.metadataCalls
      const producer = mill.producer({ batchBytes: 1024 })
      const receipts = await Promise.all(sendMany(producer, 12))
      expect(receipts.map((receipt) => receipt.offset)).toEqual(upTo(12))
      expect(numbers(await written())).toEqual(upTo(12))
      if (code === 'NOT_LEADER') expect(broker.metadataCalls).toBeGreaterThan(metadataCalls + 1)
    },
  )

  it('fails one batch that is refused for good, and the ones behind it go on without a gap', async () => {
    broker.onProduce = (_envelope, arrival) =>
      arrival === 2 ? { kind: 'refuse', code: 'INVALID_RECORD' } : { kind: 'append' }
    const producer = mill.producer({ batchBytes: 1024 })
    const results = await Promise.allSettled(sendMany(producer, 12))
    const failed = results.flatMap((result, i) => (result.status === 'rejected' ? [i] : []))
    expect(failed).toEqual([2])
    expect(numbers(await written())).toEqual(upTo(12).filter((i) => i !== 2))
    expect(broker.producersMade).toBe(1)
  })

  it('takes a new identity when the broker has lost track of it', async () => {
    broker.onProduce = (_envelope, arrival) =>
      arrival === 3 ? { kind: 'refuse', code: 'UNKNOWN_PRODUCER' } : { kind: 'append' }
    const producer = mill.producer({ batchBytes: 1024 })
    const receipts = await Promise.all(sendMany(producer, 12))
    expect(receipts.map((receipt) => receipt.offset)).toEqual(upTo(12))
    expect(numbers(await written())).toEqual(upTo(12))
    expect(broker.producersMade).toBe(2)
  })

  it('tells the user rather than write twice, when the fate of a batch cannot be known', async () => {
    broker.onProduce = (_envelope, arrival) => {
      if (arrival === 0) return { kind: 'break', append: true }
      return arrival === 1 ? { kind: 'refuse', code: 'UNKNOWN_PRODUCER' } : { kind: 'append' }
    }
    const producer = mill.producer()
    const error = (await producer
      .send(lines, { value: '0' })
      .catch((reason: unknown) => reason)) as MillraceError
    expect(error.code).toBe('UNKNOWN_PRODUCER')
    await producer.send(lines, { value: '1' })
    expect(await written()).toEqual(['0', '1'])
  })

  it('gives up a batch after the delivery timeout, and goes on under a new identity', async () => {
    broker.onProduce = (_envelope, arrival) => {
      if (arrival === 0) return { kind: 'hold' }
      return { kind: 'append' }
    }
    const producer = mill.producer({ deliveryTimeoutMs: 50 })
    const error = (await producer
      .send(lines, { value: '0' })
      .catch((reason: unknown) => reason)) as MillraceError
    expect(error).toMatchObject({ code: 'APPEND_TIMEOUT', noSideEffects: false })
    broker.release()
    await producer.send(lines, { value: '1' })
    expect(await written()).toEqual(['0', '1'])
  })

  it('goes on by itself after the broker was away', async () => {
    const producer = mill.producer()
    await producer.send(lines, { value: '0' })
    broker.stop()
    const send = producer.send(lines, { value: '1' })
    await broker.listen()
    expect((await send).offset).toBe(1)
  })

  it('neither loses, doubles nor reorders, whatever fails in whatever order', async () => {
    const action = constantFrom<ProduceAction>(
      { kind: 'append' },
      { kind: 'append' },
      { kind: 'append' },
      { kind: 'break', append: true },
      { kind: 'break', append: false },
      { kind: 'refuse', code: 'STORAGE_FULL' },
      { kind: 'refuse', code: 'NOT_LEADER' },
      { kind: 'refuse', code: 'READ_ONLY' },
    )
    await assert(
      asyncProperty(
        array(action, { maxLength: 8 }),
        integer({ min: 1, max: 15 }),
        async (actions, count) => {
          await using fake = await FakeBroker.start()
          await using client = await connect(fake.url)
          fake.onProduce = (_envelope, arrival) => actions[arrival] ?? { kind: 'append' }
          const producer = client.producer({ batchBytes: 1024 })
          const receipts = await Promise.all(sendMany(producer, count))
          expect(receipts.map((receipt) => receipt.offset)).toEqual(upTo(count))
          expect(numbers(await written(fake))).toEqual(upTo(count))
        },
      ),
      {
        numRuns: 40,
        examples: [
          // The first had arrived, was then refused, and the ones behind it got in: the next must not take their numbers.
          [
            [
              { kind: 'break', append: true },
              { kind: 'refuse', code: 'STORAGE_FULL' },
            ],
            6,
          ],
          [
            [
              { kind: 'break', append: true },
              { kind: 'refuse', code: 'READ_ONLY' },
              { kind: 'append' },
              { kind: 'break', append: false },
              { kind: 'refuse', code: 'READ_ONLY' },
            ],
            3,
          ],
        ],
      },
    )
  })
})

describe('a producer whose batches may fail for good', () => {
  it('never doubles or reorders, and every receipt tells where its record is', async () => {
    const action = constantFrom<ProduceAction>(
      { kind: 'append' },
      { kind: 'append' },
      { kind: 'break', append: true },
      { kind: 'break', append: false },
      { kind: 'refuse', code: 'STORAGE_FULL' },
      { kind: 'refuse', code: 'INVALID_RECORD' },
      { kind: 'refuse', code: 'INTERNAL_ERROR' },
      { kind: 'refuse', code: 'UNKNOWN_PRODUCER' },
    )
    await assert(
      asyncProperty(
        array(action, { maxLength: 8 }),
        integer({ min: 1, max: 15 }),
        async (actions, count) => {
          await using fake = await FakeBroker.start()
          await using client = await connect(fake.url)
          fake.onProduce = (_envelope, arrival) => actions[arrival] ?? { kind: 'append' }
          const producer = client.producer({ batchBytes: 1024 })
          const results = await Promise.allSettled(sendMany(producer, count))
          const log = numbers(await written(fake))
          expect(log).toEqual([...new Set(log)].sort((a, b) => a - b))
          for (const [i, result] of results.entries()) {
            if (result.status === 'fulfilled') expect(log[result.value.offset]).toBe(i)
          }
        },
      ),
      { numRuns: 40 },
    )
  })
})

describe('a producer that is not idempotent', () => {
  it('does not send again what may be there', async () => {
    broker.onProduce = () => ({ kind: 'break', append: true })
    const producer = mill.producer({ idempotent: false })
    const error = (await producer
      .send(lines, { value: '0' })
      .catch((reason: unknown) => reason)) as MillraceError
    expect(error).toMatchObject({ code: 'UNREACHABLE', noSideEffects: false })
    expect(await written()).toEqual(['0'])
  })

  it('sends again what is certainly not there', async () => {
    broker.onProduce = (_envelope, arrival) =>
      arrival === 0 ? { kind: 'refuse', code: 'STORAGE_FULL' } : { kind: 'append' }
    const producer = mill.producer({ idempotent: false })
    expect((await producer.send(lines, { value: '0' })).offset).toBe(0)
    expect(broker.producersMade).toBe(0)
  })

  it('tells of a refusal of acks none by event and in flush', async () => {
    broker.onProduce = () => ({ kind: 'refuse', code: 'STORAGE_FULL' })
    const producer = mill.producer({ acks: 'none' })
    const told = new Promise<MillraceError>((resolve) => producer.on('error', resolve))
    await producer.send(lines, { value: '0' })
    expect((await told).code).toBe('STORAGE_FULL')
    await expect(producer.flush()).rejects.toMatchObject({ code: 'STORAGE_FULL' })
  })
})

describe('a reader', () => {
  it('goes on at the next offset when the stream breaks, without a gap or a repeat', async () => {
    const producer = mill.producer({ batchBytes: 1024 })
    await Promise.all(sendMany(producer, 20))
    broker.fetchMessagesPerCall = 3
    const seen: number[] = []
    for await (const { value } of mill.read(lines, { until: 'end' })) {
      seen.push(Number(value?.split(' ')[0]))
    }
    expect(seen).toEqual(upTo(20))
    expect(broker.fetchCalls).toBeGreaterThan(5)
  })

  it('goes on by itself after the broker was away', async () => {
    const producer = mill.producer({ batchBytes: 1024 })
    await Promise.all(sendMany(producer, 3))
    const reader = mill.read(lines)[Symbol.asyncIterator]()
    const seen: number[] = []
    const next = async (): Promise<void> => {
      const result = await reader.next()
      if (result.done !== true) seen.push(result.value.offset)
    }
    for (let i = 0; i < 3; i++) await next()
    const waiting = next()
    broker.stop()
    await broker.listen()
    // This fake does not wait for records: they are there when the reader comes back, or it asks again.
    await producer.send(lines, { value: '3' })
    broker.stop()
    await broker.listen()
    await waiting
    expect(seen).toEqual([0, 1, 2, 3])
    await reader.return?.()
  })
})
