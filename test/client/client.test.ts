import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import {
  bytes,
  type Client,
  connect,
  json,
  MillraceError,
  type NewRecord,
  type Position,
  type Offset,
  text,
  topic,
} from '../../src/client/index.ts'
import { settle } from '../support/fake-clock.ts'
import { type LoopbackBroker, startLoopbackBroker } from '../support/loopback-broker.ts'

interface Order {
  readonly id: string
  readonly cents: number
}

const orders = topic('orders', { value: json<Order>() })
const lines = topic('lines', { value: text })
const raw = topic<Uint8Array, Uint8Array>('raw', { value: bytes, key: bytes })

let broker: LoopbackBroker
let mill: Client

beforeEach(async () => {
  broker = await startLoopbackBroker()
  mill = await connect(broker.url)
})

afterEach(async () => {
  await mill.close()
  await broker[Symbol.asyncDispose]()
})

async function failure(promise: Promise<unknown>): Promise<MillraceError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(MillraceError)
  return error as MillraceError
}

async function fill(count: number, partitions = 1): Promise<void> {
  await mill.admin.createTopic('lines', { partitions, ifNotExists: true })
  await using producer = mill.producer()
  for (let i = 0; i < count; i++) {
    producer.post(lines, { value: `line ${i}`, partition: i % partitions })
  }
  await producer.flush()
}

async function readValues(
  options: { from?: Position; until?: Position; partitions?: number[] } = {},
): Promise<string[]> {
  const values: string[] = []
  for await (const { value } of mill.read(lines, { until: 'end', ...options })) {
    values.push(value ?? '∅')
  }
  return values
}

describe('producing and reading', () => {
  it('gives back what was sent: keys, values, headers, timestamps, tombstones', async () => {
    await mill.admin.createTopic('orders', { partitions: 1 })
    await using producer = mill.producer()
    const timestamp = new Date('2026-03-04T05:06:07.008Z')
    const receipt = await producer.send(orders, {
      key: 'c-17',
      value: { id: 'o-1', cents: 4200 },
      headers: { source: 'test', blob: Uint8Array.of(0xff, 0) },
      timestamp,
    })
    expect(receipt).toMatchObject({
      topic: 'orders',
      partition: 0,
      offset: 0,
      timestamp: timestamp.getTime(),
      duplicate: false,
    })
    await producer.send(orders, { key: 'c-17', value: null })
    const seen = []
    for await (const record of mill.read(orders, { until: 'end' })) seen.push(record)
    expect(seen).toHaveLength(2)
    expect(seen[0]).toMatchObject({
      offset: 0,
      key: 'c-17',
      value: { id: 'o-1', cents: 4200 },
      timestamp: timestamp.getTime(),
    })
    expect(seen[0]?.headers['source']).toBe('test')
    expect(seen[0]?.headers['blob']).toEqual(Buffer.of(0xff, 0))
    expect(seen[1]?.value).toBeNull()
  })

  it('keeps the order of sends within a partition and gives out dense offsets', async () => {
    await mill.admin.createTopic('lines', { partitions: 1 })
    await using producer = mill.producer({ batchBytes: 1024 })
    const receipts = await Promise.all(
      Array.from({ length: 5000 }, (_, i) => producer.send(lines, { value: `line ${i}` })),
    )
    expect(receipts.map((receipt) => receipt.offset)).toEqual(
      Array.from({ length: 5000 }, (_, i) => i),
    )
    expect(await readValues()).toEqual(Array.from({ length: 5000 }, (_, i) => `line ${i}`))
  })

  it('sends records of one key to one partition and spreads those without', async () => {
    await mill.admin.createTopic('lines', { partitions: 6 })
    await using producer = mill.producer({ batchBytes: 1024 })
    const keyed = await Promise.all(
      Array.from({ length: 50 }, () => producer.send(lines, { key: '21', value: 'v' })),
    )
    expect(new Set(keyed.map((receipt) => receipt.partition)).size).toBe(1)
    const keyless = await Promise.all(
      Array.from({ length: 2000 }, (_, i) => producer.send(lines, { value: `value number ${i}` })),
    )
    expect(new Set(keyless.map((receipt) => receipt.partition)).size).toBeGreaterThan(3)
  })

  it.each(['none', 'gzip', 'lz4'] as const)('compresses with %s', async (compression) => {
    await mill.admin.createTopic('lines', { partitions: 1 })
    await using producer = mill.producer({ compression })
    const value = 'a line that repeats itself '.repeat(20)
    await producer.sendAll(
      lines,
      Array.from({ length: 100 }, () => ({ value })),
    )
    expect(await readValues()).toEqual(Array.from({ length: 100 }, () => value))
  })

  it('sends all of an async iterable with a receipt for each in its place', async () => {
    await mill.admin.createTopic('lines', { partitions: 3 })
    await using producer = mill.producer()
    const many = async function* (): AsyncGenerator<NewRecord<string>> {
      for (let i = 0; i < 100; i++) yield { key: `${i}`, value: `${i}` }
    }
    const receipts = await producer.sendAll(lines, many())
    expect(receipts).toHaveLength(100)
    expect((await readValues()).map(Number).sort((a, b) => a - b)).toEqual(
      Array.from({ length: 100 }, (_, i) => i),
    )
  })

  it('names in an AggregateError which records of many were not written', async () => {
    await mill.admin.createTopic('lines', { partitions: 1 })
    await using producer = mill.producer()
    const error: unknown = await producer
      .sendAll(lines, [{ value: 'a' }, { value: 'b', partition: 9 }, { value: 'c' }])
      .catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(AggregateError)
    const errors = (error as AggregateError).errors as MillraceError[]
    expect(errors.map((cause) => [cause.code, cause.details['index']])).toEqual([
      ['UNKNOWN_PARTITION', 1],
    ])
    expect(await readValues()).toEqual(['a', 'c'])
  })

  it('answers false to post when the buffer is full, and true again when ready', async () => {
    await mill.admin.createTopic('raw', { partitions: 1 })
    await using producer = mill.producer({ bufferBytes: 4096 })
    await producer.send(raw, { value: new Uint8Array(1) })
    let posted = 0
    while (producer.post(raw, { value: new Uint8Array(1000) })) posted++
    expect(posted).toBeLessThan(5)
    await producer.ready()
    expect(producer.post(raw, { value: new Uint8Array(10) })).toBe(true)
    for (let i = 0; i < 3; i++) producer.post(raw, { value: new Uint8Array(3000) })
    expect(() => producer.post(raw, { value: new Uint8Array(1) })).toThrow(/await ready/)
  })

  it('holds sends back while the buffer is full, and keeps their order', async () => {
    await mill.admin.createTopic('lines', { partitions: 1 })
    await using producer = mill.producer({ bufferBytes: 2048, batchBytes: 1024 })
    await Promise.all(
      Array.from({ length: 500 }, (_, i) => producer.send(lines, { value: `line number ${i}` })),
    )
    expect(await readValues()).toEqual(Array.from({ length: 500 }, (_, i) => `line number ${i}`))
  })

  it('flushes also the records that wait for room, in whatever partition they end up', async () => {
    await mill.admin.createTopic('lines', { partitions: 4 })
    await using producer = mill.producer({ bufferBytes: 2048, batchBytes: 1024 })
    const value = 'x'.repeat(200)
    let answered = 0
    const count = (): void => {
      answered++
    }
    for (let round = 0; round < 20; round++) {
      const sends = Array.from({ length: 40 }, () => producer.send(lines, { value }).then(count))
      await producer.flush()
      await settle() // The receipts have been resolved; what hangs on them runs now.
      expect(answered).toBe((round + 1) * 40)
      await Promise.all(sends)
    }
  })

  it('has given records without acks to the broker when close returns', async () => {
    await mill.admin.createTopic('lines', { partitions: 1 })
    const producer = mill.producer({ acks: 'none' })
    producer.post(lines, { value: 'last words' })
    await producer.close()
    await mill.close()
    mill = await connect(broker.url)
    await expect.poll(() => readValues()).toEqual(['last words'])
  })

  it('copies bytes before post returns, also while it waits for metadata', async () => {
    await mill.admin.createTopic('raw', { partitions: 1 })
    await using producer = mill.producer()
    const buffer = Uint8Array.of(1, 2, 3)
    producer.post(raw, { key: buffer, value: buffer })
    buffer.fill(9)
    await producer.flush()
    producer.post(raw, { value: buffer })
    buffer.fill(8)
    await producer.flush()
    const seen = []
    for await (const { value } of mill.read(raw, { until: 'end' })) seen.push([...(value ?? [])])
    expect(seen).toEqual([
      [1, 2, 3],
      [9, 9, 9],
    ])
  })

  it('answers acks none with an unknown offset, and the record is there', async () => {
    await mill.admin.createTopic('lines', { partitions: 1 })
    await using producer = mill.producer({ acks: 'none' })
    const receipt = await producer.send(lines, { value: 'a' })
    expect(receipt.offset).toBeNaN()
    await producer.close()
    for await (const { value } of mill.read(lines)) {
      expect(value).toBe('a')
      break
    }
  })
})

describe('errors of a producer', () => {
  it('tells the nearest names of an unknown topic', async () => {
    await mill.admin.createTopic('lines')
    await using producer = mill.producer()
    const error = await failure(producer.send(topic('linse', { value: text }), { value: 'a' }))
    expect(error).toMatchObject({ code: 'UNKNOWN_TOPIC', remedy: 'refresh', retryable: false })
    expect(error.details['nearest']).toEqual(['lines'])
  })

  it('refuses a record that is too large with its size and the limit, and sends the others', async () => {
    await mill.admin.createTopic('lines', { config: { 'max.message.bytes': '4KiB' } })
    await using producer = mill.producer()
    const large = producer.send(lines, { value: 'x'.repeat(5000) })
    const small = producer.send(lines, { value: 'y'.repeat(3000) })
    const error = await failure(large)
    expect(error).toMatchObject({ code: 'RECORD_TOO_LARGE', details: { limit: 4096 } })
    expect(error.details['actual']).toBeGreaterThan(5000)
    expect((await small).offset).toBe(0)
    await failure(producer.send(lines, { value: 'é'.repeat(2100) }))
    expect((await producer.send(lines, { value: 'é'.repeat(1900) })).offset).toBe(1)
  })

  it('refuses values that cannot be encoded and partitions that are not there', async () => {
    await mill.admin.createTopic('orders')
    await using producer = mill.producer()
    const cyclic: { id: string; cents: number; self?: unknown } = { id: 'a', cents: 1 }
    cyclic.self = cyclic
    expect((await failure(producer.send(orders, { value: cyclic }))).code).toBe('INVALID_RECORD')
    const value = { id: 'a', cents: 1 }
    expect((await failure(producer.send(orders, { value, partition: 1 }))).code).toBe(
      'UNKNOWN_PARTITION',
    )
    expect((await failure(producer.send(orders, { value, partition: -1 }))).code).toBe(
      'INVALID_PARTITION',
    )
  })

  it('tells of failed posts in flush, once, and as events', async () => {
    await using producer = mill.producer()
    const events: string[] = []
    producer.on('error', (error) => events.push(error.code))
    producer.post(lines, { value: 'a' })
    producer.post(lines, { value: 'b' })
    const error = await failure(producer.flush())
    expect(error).toMatchObject({ code: 'UNKNOWN_TOPIC', details: { failedRecords: 2 } })
    await producer.flush()
    expect(events).toEqual(['UNKNOWN_TOPIC', 'UNKNOWN_TOPIC'])
  })

  it('goes on after a batch that the broker refuses for good', async () => {
    await mill.admin.createTopic('lines')
    await using producer = mill.producer()
    const sends = [
      producer.send(lines, { value: 'a' }),
      producer.send(lines, { value: 'b' }).then(async (receipt) => {
        const timestamp = new Date(Date.now() + 86_400_000)
        const error = await failure(producer.send(lines, { value: 'from tomorrow', timestamp }))
        expect(error.code).toBe('INVALID_TIMESTAMP')
        return receipt
      }),
    ]
    await Promise.all(sends)
    expect((await producer.send(lines, { value: 'c' })).offset).toBe(2)
  })

  it('refuses sends after close, and close sends what waits', async () => {
    await mill.admin.createTopic('lines')
    const producer = mill.producer({ lingerMs: 60_000 })
    const send = producer.send(lines, { value: 'a' })
    await producer.close()
    expect((await send).offset).toBe(0)
    expect((await failure(producer.send(lines, { value: 'b' }))).code).toBe('CLOSED')
    expect(() => producer.post(lines, { value: 'b' })).toThrow(/closed/)
  })

  it('refuses settings that make no sense', () => {
    expect(() => mill.producer({ maxInFlight: 6 })).toThrow(/maxInFlight is 6/)
    expect(() => mill.producer({ acks: 'none', idempotent: true })).toThrow(/idempotent/)
    expect(() => mill.producer({ lingerMs: Number.NaN })).toThrow(/lingerMs/)
  })
})

describe('positions of a reader', () => {
  it.each<[Position, Position, number, number]>([
    ['start', 'end', 0, 20],
    ['5', 'end', 5, 20],
    ['start', '5', 0, 5],
    ['+3', '+7', 3, 7],
    ['-4', 'end', 16, 20],
    ['-100', 'end', 0, 20],
    ['3', '3', 3, 3],
    ['7', '5', 7, 7],
    ['end', 'end', 20, 20],
    [4 as Offset, '100', 4, 20],
    ['@-1h', 'end', 0, 20],
    ['@+1h', 'end', 20, 20],
    [new Date(0), 'end', 0, 20],
  ])('reads from %s until %s', async (from, until, first, last) => {
    await fill(20)
    expect(await readValues({ from, until })).toEqual(
      Array.from({ length: last - first }, (_, i) => `line ${first + i}`),
    )
  })

  it('finds the first record at or after a time', async () => {
    await mill.admin.createTopic('lines')
    await using producer = mill.producer()
    for (const at of [1000, 2000, 3000]) {
      await producer.send(lines, { value: `${at}`, timestamp: new Date(at) })
    }
    expect(await readValues({ from: new Date(1001) })).toEqual(['2000', '3000'])
    expect(await readValues({ until: new Date(3000) })).toEqual(['1000', '2000'])
  })

  it.each([true, false])(
    'starts at the log start inside a batch, with follow %s',
    async (follow) => {
      await fill(10)
      await mill.admin.deleteRecords('lines', new Map([[0, 5]]))
      const values: string[] = []
      for await (const { value } of mill.read(lines, { follow })) {
        values.push(value ?? '∅')
        if (values.length === 5) break
      }
      expect(values).toEqual(['line 5', 'line 6', 'line 7', 'line 8', 'line 9'])
    },
  )

  it('refuses counts that the wire cannot carry', async () => {
    const error = await failure(mill.admin.createTopic('wrap', { partitions: 2 ** 32 + 1 }))
    expect(error.code).toBe('INVALID_PARTITION')
  })

  it('cuts batches at both ends of the range', async () => {
    await mill.admin.createTopic('lines')
    await using producer = mill.producer()
    await producer.sendAll(
      lines,
      Array.from({ length: 100 }, (_, i) => ({ value: `line ${i}` })),
    )
    let seen = 0
    for await (const batch of mill.read(lines, { from: '40', until: '60' }).batches()) {
      expect([batch.baseOffset, batch.endOffset, batch.count]).toEqual([40, 60, 20])
      expect([...batch].map((record) => record.offset)[0]).toBe(40)
      const cursor = batch.cursor()
      while (cursor.next()) {
        expect(cursor.offset).toBe(40 + seen)
        seen++
      }
    }
    expect(seen).toBe(20)
  })

  it('reads only the partitions asked for', async () => {
    await fill(20, 4)
    expect(await readValues({ partitions: [2] })).toEqual([
      'line 2',
      'line 6',
      'line 10',
      'line 14',
      'line 18',
    ])
    expect((await readValues()).length).toBe(20)
    const error = await failure(readValues({ partitions: [4] }))
    expect(error.code).toBe('UNKNOWN_PARTITION')
  })

  it('throws OFFSET_OUT_OF_RANGE with both ends, below and above', async () => {
    await fill(20)
    await mill.admin.deleteRecords('lines', new Map([[0, 5]]))
    const below = await failure(readValues({ from: '2' }))
    expect(below.code).toBe('OFFSET_OUT_OF_RANGE')
    expect(below.message).toContain('5')
    expect((await failure(readValues({ from: '21' }))).code).toBe('OFFSET_OUT_OF_RANGE')
    expect(await readValues({ from: 'start', until: '6' })).toEqual(['line 5'])
  })

  it('refuses a position that is none, with the grammar', () => {
    expect(() => mill.read(lines, { from: 'yesterday' })).toThrow(/positions:\n {2}start/)
    expect(() => mill.read(lines, { from: 'committed' })).toThrow(/needs a group/)
  })
})

describe('following', () => {
  it('waits at the end and sees what is written later', async () => {
    await fill(3)
    await using producer = mill.producer()
    const seen: string[] = []
    for await (const { value } of mill.read(lines, { from: '-1' })) {
      seen.push(value ?? '')
      if (seen.length === 3) break
      await producer.send(lines, { value: `more ${seen.length}` })
    }
    expect(seen).toEqual(['line 2', 'more 1', 'more 2'])
  })

  it('ends quietly when its signal aborts', async () => {
    await fill(3)
    const stop = new AbortController()
    const seen: string[] = []
    for await (const { value } of mill.read(lines, { signal: stop.signal })) {
      seen.push(value ?? '')
      if (seen.length === 2) stop.abort()
    }
    expect(seen).toEqual(['line 0', 'line 1'])
    const reader = mill.read(lines, { from: 'end', signal: AbortSignal.abort() })
    for await (const record of reader) throw new Error(`unexpected ${record.offset}`)
  })

  it('starts at the end as it was when read was called', async () => {
    await fill(3)
    const reader = mill.read(lines, { from: 'end' })
    const first = reader[Symbol.asyncIterator]().next()
    await using producer = mill.producer()
    // The lookup of `end` went out before the next call of this client does.
    await mill.admin.offsets('lines', 'end')
    await producer.send(lines, { value: 'new' })
    const result = await first
    expect(result.done === true ? undefined : result.value.value).toBe('new')
    await reader.close()
  })

  it('holds a slow reader back without losing anything', async () => {
    await mill.admin.createTopic('raw')
    await using producer = mill.producer()
    for (let i = 0; i < 40; i++) {
      await producer.send(raw, { value: new Uint8Array(200_000).fill(i) })
    }
    let next = 0
    const reader = mill.read(raw, { until: 'end', prefetchBytes: 300_000 })
    for await (const { value } of reader) {
      expect(value?.[0]).toBe(next++)
      if (next % 10 === 0) await mill.admin.cluster()
    }
    expect(next).toBe(40)
  })

  it('can be iterated once', async () => {
    await fill(1)
    const reader = mill.read(lines, { until: 'end' })
    reader.batches()
    expect(() => reader.batches()).toThrow(/once/)
    await reader.close()
  })
})

describe('administration', () => {
  it('creates, lists, describes, alters and deletes topics', async () => {
    const { admin } = mill
    const made = await admin.createTopic('lines', {
      partitions: 2,
      config: { 'retention.ms': '1d' },
    })
    expect(made).toMatchObject({ created: true, partitions: 2 })
    expect(await admin.createTopic('lines', { ifNotExists: true })).toMatchObject({
      created: false,
      topicId: made.topicId,
    })
    expect((await failure(admin.createTopic('lines', { partitions: 3 }))).code).toBe('TOPIC_EXISTS')
    await admin.createTopic('alpha')
    const names = []
    for await (const { name } of admin.topics()) names.push(name)
    expect(names).toEqual(['alpha', 'lines'])
    const some = []
    for await (const { name } of admin.topics({ match: /^al/g })) some.push(name)
    expect(some).toEqual(['alpha'])
    await admin.alterTopic('lines', { partitions: 3, set: { 'retention.ms': '2d' } })
    const described = await admin.describeTopic('lines')
    expect(described.partitions).toHaveLength(3)
    expect(described.config.find(({ name }) => name === 'retention.ms')).toMatchObject({
      overridden: true,
    })
    await admin.deleteTopic('lines')
    expect((await failure(admin.describeTopic('lines'))).code).toBe('UNKNOWN_TOPIC')
  })

  it('finds offsets by position', async () => {
    await fill(20, 2)
    const ends = await mill.admin.offsets('lines', 'end')
    expect([...ends]).toEqual([
      [0, 10],
      [1, 10],
    ])
    expect((await mill.admin.offsets('lines', '-3')).get(1)).toBe(7)
    expect([...(await mill.admin.offsets('lines', 'start', { partitions: [1] }))]).toEqual([[1, 0]])
  })

  it('writes to partitions that were added after the producer began', async () => {
    await fill(2)
    await using producer = mill.producer()
    await producer.send(lines, { value: 'a' })
    await mill.admin.addPartitions('lines', 2)
    await mill.admin.offsets('lines', 'end')
    await producer.send(lines, { value: 'b' })
    expect((await producer.send(lines, { value: 'c', partition: 1 })).partition).toBe(1)
  })

  it('tells about broker and cluster', async () => {
    expect((await mill.admin.broker()).version).toBe('test')
    expect((await mill.admin.cluster()).brokers).toHaveLength(1)
  })
})

describe('connecting', () => {
  it('says what to do when nothing answers', async () => {
    const error = await failure(connect({ url: '127.0.0.1:1', timeoutMs: 200 }))
    expect(error).toMatchObject({ code: 'UNREACHABLE', retryable: true })
    expect(error.message).toContain('millrace serve')
  })

  it('tries several servers', async () => {
    await using other = await connect({ url: ['127.0.0.1:1', `millrace://${broker.url}`] })
    expect((await other.admin.cluster()).brokers).toHaveLength(1)
  })

  it.each(['', 'host:0', 'host:70000', 'http://x:1', 'a b'])(
    'refuses %j as a server',
    async (url) => {
      expect((await failure(connect({ url }))).code).toBe('INVALID_REQUEST')
    },
  )

  it('refuses everything after close, and ends readers', async () => {
    await fill(1)
    const reader = mill.read(lines)[Symbol.asyncIterator]()
    await reader.next()
    const next = reader.next()
    await mill.close()
    expect((await next).done).toBe(true)
    expect(() => mill.producer()).toThrow(/closed/)
    expect((await failure(mill.admin.cluster())).code).toBe('CLOSED')
  })
})
