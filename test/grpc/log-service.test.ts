import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { FetchRequest, ListOffsetsResponse } from '../../src/gen/types.ts'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import { readBaseOffset } from '../../src/record/batch-header.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import type { Broker } from '../../src/server/broker.ts'
import type { FetchMessage } from '../../src/wire/fetch-codec.ts'
import { partitionForKey } from '../../src/wire/murmur2.ts'
import type { ProduceEnvelope, ProduceResultMessage } from '../../src/wire/produce-codec.ts'
import { CallError, collect, RawClient, StreamReader } from '../support/raw-client.ts'
import { startTestBroker } from '../support/test-broker.ts'

let broker: Broker
let client: RawClient

beforeEach(async () => {
  broker = (await startTestBroker()).broker
  client = new RawClient(broker.address)
  await client.call('CreateTopic', { topic: 'orders', partitions: 3 })
})

afterEach(async () => {
  client.close()
  await broker.stop()
})

function aBatch(values: readonly string[], producer?: [number, number, number]): Uint8Array {
  const builder = new BatchBuilder({ maxBytes: 8 << 20 })
  for (const value of values) builder.tryAppend(undefined, value, 1000)
  if (producer !== undefined) builder.setProducer(...producer)
  return builder.finish()
}

function envelope(change: Partial<ProduceEnvelope>): ProduceEnvelope {
  return {
    topic: 'orders',
    partition: 0,
    acks: 'durable',
    batch: undefined,
    records: undefined,
    compression: 'none',
    expectedOffset: undefined,
    topicId: undefined,
    correlationId: 0,
    ...change,
  }
}

function aRecord(value: string, key?: string): NonNullable<ProduceEnvelope['records']>[number] {
  return {
    key: key === undefined ? undefined : Buffer.from(key),
    value: Buffer.from(value),
    headers: [],
    timestampMs: undefined,
  }
}

function fetchRequest(
  partitions: readonly Partial<FetchRequest['partitions'][number]>[],
  change: Partial<FetchRequest> = {},
): object {
  return { ...change, partitions: partitions.map((p) => ({ topic: 'orders', ...p })) }
}

function valuesOf(messages: readonly FetchMessage[]): string[] {
  const values: string[] = []
  const cursor = new RecordCursor()
  for (const { batches } of messages) {
    if (batches === undefined) continue
    for (let at = 0; at < batches.length;) {
      cursor.reset(batches, at)
      while (cursor.next()) {
        values.push(
          Buffer.from(cursor.bytes.subarray(cursor.valueStart, cursor.valueEnd)).toString(),
        )
      }
      at += 12 + Buffer.from(batches.buffer, batches.byteOffset + at, 12).readUInt32BE(8)
    }
  }
  return values
}

async function reasonOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
    return 'OK'
  } catch (error) {
    if (error instanceof CallError) return error.reason
    throw error
  }
}

describe('Append and Fetch', () => {
  it('bring back what was appended', async () => {
    const first = await client.call(
      'Append',
      envelope({ batch: aBatch(['a', 'b']), correlationId: 9 }),
    )
    expect(first).toMatchObject({
      correlationId: 9,
      partition: 0,
      baseOffset: 0,
      endOffset: 2,
      duplicate: false,
      acks: 'durable',
      highWatermark: 2,
    })
    await client.call('Append', envelope({ records: [aRecord('c')] }))
    const messages = await collect<FetchMessage>(
      client.stream('Fetch', fetchRequest([{ partition: 0 }])),
    )
    expect(valuesOf(messages)).toEqual(['a', 'b', 'c'])
    expect(messages.at(-1)).toMatchObject({ end: true, nextOffset: 3, highWatermark: 3 })
  })

  it('end at once on an empty partition', async () => {
    const messages = await collect<FetchMessage>(
      client.stream('Fetch', fetchRequest([{ partition: 1, startAt: 'START_AT_EARLIEST' }])),
    )
    expect(messages).toMatchObject([{ end: true, nextOffset: 0, batches: undefined }])
  })

  it('choose the partition by the key of plain records, as Kafka does', async () => {
    for (const key of ['21', 'foobar', 'abc']) {
      const result = await client.call<ProduceResultMessage>(
        'Append',
        envelope({ partition: undefined, records: [aRecord('x', key)] }),
      )
      expect(result.partition).toBe(partitionForKey(Buffer.from(key), 3))
    }
  })

  it('answer plain records when asked, from inside a batch and up to an end', async () => {
    await client.call('Append', envelope({ batch: aBatch(['a', 'b', 'c', 'd']) }))
    const messages = await collect<FetchMessage>(
      client.stream(
        'Fetch',
        fetchRequest([{ partition: 0, offset: 1, endOffset: 3 }], { plainRecords: true }),
      ),
    )
    const records = messages.flatMap((message) => message.records)
    expect(records.map((r) => [r.offset, Buffer.from(r.value ?? []).toString()])).toEqual([
      [1, 'b'],
      [2, 'c'],
    ])
    expect(messages.at(-1)).toMatchObject({ end: true, nextOffset: 3 })
  })

  it('send a large log in messages of about max_bytes', async () => {
    for (let i = 0; i < 20; i++) {
      await client.call('Append', envelope({ batch: aBatch([`${i}-${'x'.repeat(10_000)}`]) }))
    }
    const messages = await collect<FetchMessage>(
      client.stream('Fetch', fetchRequest([{ partition: 0 }], { maxBytes: 30_000 })),
    )
    expect(valuesOf(messages)).toHaveLength(20)
    expect(messages.length).toBeGreaterThanOrEqual(6)
    for (const message of messages) expect(message.batches?.length ?? 0).toBeLessThanOrEqual(41_000)
  })

  it('follow: what is appended later arrives, on every partition of the call', async () => {
    const reader = new StreamReader<FetchMessage>(
      client.stream('Fetch', fetchRequest([{ partition: 0 }, { partition: 2 }], { follow: true })),
    )
    for (const [i, partition] of [0, 2, 2, 0].entries()) {
      await client.call('Append', envelope({ partition, batch: aBatch([`v${i}`]) }))
      const message = await reader.next()
      expect(message.index).toBe(partition === 0 ? 0 : 1)
      expect(valuesOf([message])).toEqual([`v${i}`])
    }
    reader.stream.cancel()
  })

  it('follow up to an end offset, then stop by themselves', async () => {
    const all = collect<FetchMessage>(
      client.stream('Fetch', fetchRequest([{ partition: 0, endOffset: 2 }], { follow: true })),
    )
    await client.call('Append', envelope({ batch: aBatch(['a']) }))
    await client.call('Append', envelope({ batch: aBatch(['b']) }))
    expect(valuesOf(await all)).toEqual(['a', 'b'])
  })

  it('start at a timestamp, the latest offset or the nearest one', async () => {
    const builder = new BatchBuilder({ maxBytes: 1 << 20 })
    for (const timestampMs of [1000, 2000, 3000]) builder.tryAppend(undefined, 'x', timestampMs)
    await client.call('Append', envelope({ batch: builder.finish() }))
    const nextOf = async (partition: object): Promise<number> => {
      const messages = await collect<FetchMessage>(
        client.stream(
          'Fetch',
          fetchRequest([{ partition: 0, ...partition }], { plainRecords: true }),
        ),
      )
      return (
        messages.flatMap((message) => message.records)[0]?.offset ?? messages[0]?.nextOffset ?? NaN
      )
    }
    expect(await nextOf({ startAt: 'START_AT_TIMESTAMP', timestampMs: 1500 })).toBe(1)
    expect(await nextOf({ startAt: 'START_AT_TIMESTAMP', timestampMs: 9000 })).toBe(3)
    expect(await nextOf({ startAt: 'START_AT_LATEST' })).toBe(3)
    expect(await nextOf({ offset: 77, clamp: true })).toBe(3)
    expect(await nextOf({ offset: 2, clamp: true })).toBe(2)
  })

  it('tell of one partition that fails and serve the others', async () => {
    await client.call('Append', envelope({ batch: aBatch(['a']) }))
    const messages = await collect<FetchMessage>(
      client.stream(
        'Fetch',
        fetchRequest([
          { partition: 7 },
          { partition: 0 },
          { topic: 'ordres', partition: 0 },
          { partition: 1, offset: 5 },
          { partition: 0, topicId: '00000000-0000-4000-8000-000000000000' },
          { partition: -1 },
        ]),
      ),
    )
    const reasons = new Map(messages.map((m) => [m.index, m.error?.reason]))
    expect(reasons.get(0)).toBe('UNKNOWN_PARTITION')
    expect(reasons.get(2)).toBe('UNKNOWN_TOPIC')
    expect(reasons.get(3)).toBe('OFFSET_OUT_OF_RANGE')
    expect(reasons.get(4)).toBe('UNKNOWN_TOPIC_ID')
    expect(reasons.get(5)).toBe('INVALID_PARTITION')
    expect(valuesOf(messages)).toEqual(['a'])
    const unknown = messages.find((m) => m.index === 2)?.error
    expect(unknown?.facts).toContainEqual({ name: 'nearest', value: 'orders' })
  })

  it('refuse a reader that knows a newer leader epoch than ours', async () => {
    const [message] = await collect<FetchMessage>(
      client.stream('Fetch', fetchRequest([{ partition: 0, leaderEpoch: 99 }])),
    )
    expect(message?.error?.reason).toBe('NOT_LEADER')
  })

  it('wait for min_bytes, but not longer than max_wait_ms', async () => {
    const reader = new StreamReader<FetchMessage>(
      client.stream(
        'Fetch',
        fetchRequest([{ partition: 0 }], { follow: true, minBytes: 150, maxWaitMs: 20_000 }),
      ),
    )
    await client.call('Append', envelope({ batch: aBatch(['a']) }))
    await client.call('Append', envelope({ batch: aBatch(['b'.repeat(60)]) }))
    expect(valuesOf([await reader.next()])).toEqual(['a', 'b'.repeat(60)])
    reader.stream.cancel()
    const hasty = new StreamReader<FetchMessage>(
      client.stream(
        'Fetch',
        fetchRequest([{ partition: 0 }], { follow: true, minBytes: 1 << 20, maxWaitMs: 30 }),
      ),
    )
    expect(valuesOf([await hasty.next()])).toEqual(['a', 'b'.repeat(60)])
    hasty.stream.cancel()
  })

  it('tell a reader when its topic is deleted', async () => {
    const reader = new StreamReader<FetchMessage>(
      client.stream('Fetch', fetchRequest([{ partition: 0 }], { follow: true })),
    )
    await client.call('Append', envelope({ batch: aBatch(['a']) }))
    await reader.next()
    await client.call('DeleteTopic', { topic: 'orders' })
    expect((await reader.next()).error?.reason).toBe('UNKNOWN_TOPIC')
    await expect(reader.next()).rejects.toThrow('the stream has ended')
  })

  it('refuse requests that make no sense, with the reason', async () => {
    const fetchReason = (request: object): Promise<string> =>
      reasonOf(collect(client.stream('Fetch', request)))
    expect(await fetchReason({ partitions: [] })).toBe('INVALID_REQUEST')
    expect(await fetchReason(fetchRequest([{ partition: 0 }], { maxBytes: -1 }))).toBe(
      'INVALID_REQUEST',
    )
    expect(await fetchReason(fetchRequest([{ partition: 0 }], { maxBytes: 9 << 20 }))).toBe(
      'INVALID_REQUEST',
    )
    expect(await fetchReason(fetchRequest([{ partition: 0 }], { maxWaitMs: 60_001 }))).toBe(
      'INVALID_REQUEST',
    )
    const later = fetchRequest([{ partition: 0, startAt: 9 as never }])
    expect(await fetchReason(later)).toBe('UNSUPPORTED_FEATURE')
    const append = (change: Partial<ProduceEnvelope>): Promise<string> =>
      reasonOf(client.call('Append', envelope(change)))
    expect(await append({})).toBe('EMPTY_BATCH')
    expect(await append({ records: [] })).toBe('EMPTY_BATCH')
    expect(await append({ partition: undefined, batch: aBatch(['x']) })).toBe('INVALID_PARTITION')
    expect(await append({ partition: -1, batch: aBatch(['x']) })).toBe('INVALID_PARTITION')
    expect(await append({ partition: 3, batch: aBatch(['x']) })).toBe('UNKNOWN_PARTITION')
    expect(await append({ topic: '..', batch: aBatch(['x']) })).toBe('INVALID_TOPIC_NAME')
    expect(await append({ topic: 'a/b', batch: aBatch(['x']) })).toBe('INVALID_TOPIC_NAME')
    expect(await append({ topic: '', batch: aBatch(['x']) })).toBe('INVALID_TOPIC_NAME')
    expect(await append({ topic: 'x'.repeat(300), batch: aBatch(['x']) })).toBe(
      'INVALID_TOPIC_NAME',
    )
    expect(await append({ topic: 'nobody', batch: aBatch(['x']) })).toBe('UNKNOWN_TOPIC')
    expect(await append({ topic: '__catalog', batch: aBatch(['x']) })).toBe('TOPIC_INTERNAL')
    expect(await append({ topicId: 'x', batch: aBatch(['x']) })).toBe('UNKNOWN_TOPIC_ID')
    expect(await append({ batch: aBatch(['x']), expectedOffset: 5 })).toBe('WRONG_EXPECTED_OFFSET')
    expect(await append({ batch: Buffer.from('no batch at all') })).toBe('CORRUPT_BATCH')
    expect(await append({ batch: aBatch(['x'.repeat(2 << 20)]) })).toBe('BATCH_TOO_LARGE')
    expect(await append({ records: [aRecord('x'.repeat(2 << 20))] })).toBe('RECORD_TOO_LARGE')
    expect(await append({ records: [{ ...aRecord('x'), timestampMs: -5 }] })).toBe(
      'INVALID_TIMESTAMP',
    )
    const damaged = aBatch(['hello'])
    damaged[70] = (damaged[70] ?? 0) ^ 1
    expect(await append({ batch: damaged })).toBe('CORRUPT_BATCH')
    expect(await append({ batch: aBatch(['x']), expectedOffset: 0 })).toBe('OK')
  })

  it('answer bytes that are no message with INVALID_REQUEST', async () => {
    for (const path of [
      '/millrace.v1.LogService/Append',
      '/millrace.v1.LogService/ListOffsets',
      '/millrace.v1.TopicService/CreateTopic',
      '/millrace.v1.ClusterService/Metadata',
    ]) {
      const reason = await reasonOf(client.callRaw(path, Buffer.from([0x0a, 0xff, 0xff, 0xff])))
      expect(reason).toBe('INVALID_REQUEST')
    }
  })
})

describe('Produce', () => {
  it('answers in the order of the requests, faults in their places', async () => {
    const stream = client.duplex('Produce')
    const done = collectResults(stream)
    stream.write(envelope({ batch: aBatch(['a']), correlationId: 1 }))
    stream.write(envelope({ topic: 'nobody', batch: aBatch(['x']), correlationId: 2 }))
    stream.write(envelope({ batch: aBatch(['b', 'c']), correlationId: 3 }))
    stream.write(envelope({ correlationId: 4 }))
    stream.write(envelope({ partition: 1, batch: aBatch(['d']), correlationId: 5 }))
    stream.end()
    expect((await done).map((r) => [r.correlationId, r.error?.reason ?? r.baseOffset])).toEqual([
      [1, 0],
      [2, 'UNKNOWN_TOPIC'],
      [3, 1],
      [4, 'EMPTY_BATCH'],
      [5, 0],
    ])
  })

  it('does not answer acks none, except when it fails', async () => {
    const stream = client.duplex('Produce')
    const done = collectResults(stream)
    stream.write(envelope({ acks: 'none', batch: aBatch(['a']), correlationId: 1 }))
    stream.write(
      envelope({ acks: 'none', topic: 'nobody', batch: aBatch(['x']), correlationId: 2 }),
    )
    stream.write(envelope({ acks: 'written', batch: aBatch(['b']), correlationId: 3 }))
    stream.end()
    expect((await done).map((r) => [r.correlationId, r.error?.reason ?? r.baseOffset])).toEqual([
      [2, 'UNKNOWN_TOPIC'],
      [3, 1],
    ])
  })

  it('answers a repeat of an idempotent batch with the original offset', async () => {
    const { producerId, producerEpoch } = await client.call<{
      producerId: number
      producerEpoch: number
    }>('InitProducer', {})
    const stream = client.duplex('Produce')
    const done = collectResults(stream)
    for (const sequence of [0, 1, 0, 1, 3]) {
      stream.write(envelope({ batch: aBatch(['x'], [producerId, producerEpoch, sequence]) }))
    }
    stream.end()
    expect((await done).map((r) => r.error?.reason ?? [r.baseOffset, r.duplicate])).toEqual([
      [0, false],
      [1, false],
      [0, true],
      [1, true],
      'OUT_OF_ORDER_SEQUENCE',
    ])
  })

  it('keeps a thousand requests in flight and their order', async () => {
    const stream = client.duplex('Produce')
    const done = collectResults(stream)
    for (let i = 0; i < 1000; i++) {
      stream.write(envelope({ batch: aBatch([`v${i}`]), correlationId: i }))
    }
    stream.end()
    const results = await done
    expect(results.map((r) => r.correlationId)).toEqual([...Array(1000).keys()])
    expect(results.map((r) => r.baseOffset)).toEqual([...Array(1000).keys()])
    const messages = await collect<FetchMessage>(
      client.stream('Fetch', fetchRequest([{ partition: 0 }])),
    )
    expect(valuesOf(messages)).toEqual([...Array(1000).keys()].map((i) => `v${i}`))
  })

  it('ends the stream on bytes that are no request, after answering what came before', async () => {
    const stream = client.duplex('Produce', true)
    const { produceRequestParts } = await import('../../src/wire/produce-codec.ts')
    const results: ProduceResultMessage[] = []
    const failed = new Promise<string>((resolve) => {
      stream.on('data', (message: ProduceResultMessage[]) => results.push(...message))
      stream.on('error', (error) => resolve(new CallError(error as never).reason))
    })
    stream.write(
      produceRequestParts(envelope({ batch: aBatch(['a']), correlationId: 1 })).toBuffer(),
    )
    stream.write(Buffer.from([0x0a, 0xff]))
    expect(await failed).toBe('INVALID_REQUEST')
    expect(results).toMatchObject([{ correlationId: 1, baseOffset: 0 }])
  })

  it('stamps the base offset into what it serves', async () => {
    await client.call('Append', envelope({ batch: aBatch(['a', 'b']) }))
    await client.call('Append', envelope({ batch: aBatch(['c']) }))
    const messages = await collect<FetchMessage>(
      client.stream('Fetch', fetchRequest([{ partition: 0, offset: 2 }])),
    )
    expect(readBaseOffset(messages[0]?.batches ?? new Uint8Array(), 0)).toBe(2)
  })
})

describe('InitProducer', () => {
  it('never gives the same id twice, also by epochs', async () => {
    const one = await client.call('InitProducer', {})
    const two = await client.call('InitProducer', {})
    expect(one).toEqual({ producerId: 2 ** 31, producerEpoch: 0 })
    expect(two).toEqual({ producerId: 2 ** 31 + 1, producerEpoch: 0 })
    expect(await client.call('InitProducer', { producerId: 2 ** 31, producerEpoch: 4 })).toEqual({
      producerId: 2 ** 31,
      producerEpoch: 5,
    })
    const after = await client.call('InitProducer', { producerId: 2 ** 31, producerEpoch: 32_767 })
    expect(after).toEqual({ producerId: 2 ** 31 + 2, producerEpoch: 0 })
    const unknown = client.call('InitProducer', { producerId: 2 ** 31 + 9, producerEpoch: 0 })
    expect(await reasonOf(unknown)).toBe('UNKNOWN_PRODUCER')
  })
})

describe('ListOffsets', () => {
  it('answers for each partition by itself', async () => {
    await client.call('Append', envelope({ batch: aBatch(['a', 'b']) }))
    const latest = await client.call<ListOffsetsResponse>('ListOffsets', {
      topic: 'orders',
      at: 'START_AT_LATEST',
      partitions: [0, 1, 9],
    })
    expect(latest.offsets.map((o) => o.error?.reason ?? o.offset)).toEqual([
      2,
      0,
      'UNKNOWN_PARTITION',
    ])
    const byTime = await client.call<ListOffsetsResponse>('ListOffsets', {
      topic: 'orders',
      at: 'START_AT_TIMESTAMP',
      timestampMs: 500,
    })
    expect(byTime.offsets[0]).toMatchObject({ offset: 0, timestampMs: 1000 })
    expect(byTime.offsets[1]).toMatchObject({ offset: 0 })
    expect(byTime.offsets[1]?.timestampMs).toBeUndefined()
    expect(await reasonOf(client.call('ListOffsets', { topic: 'nobody' }))).toBe('UNKNOWN_TOPIC')
  })
})

function collectResults(stream: ReturnType<RawClient['duplex']>): Promise<ProduceResultMessage[]> {
  return new Promise((resolve, reject) => {
    const results: ProduceResultMessage[] = []
    stream.on('data', (message: ProduceResultMessage[]) => results.push(...message))
    stream.on('end', () => resolve(results))
    stream.on('error', (error) => reject(new CallError(error as never)))
  })
}
