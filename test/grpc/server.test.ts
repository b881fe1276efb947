import * as grpc from '@grpc/grpc-js'
import { once } from 'node:events'
import { connect, type ClientHttp2Session } from 'node:http2'
import { afterEach, describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { systemClock } from '../../src/common/clock.ts'
import type { HealthCheckResponse, MetadataResponse } from '../../src/gen/types.ts'
import { GrpcServer } from '../../src/grpc/server.ts'
import { findHttp2Servers, WINDOW_BYTES } from '../../src/grpc/windows.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { silentLogger } from '../../src/server/logger.ts'
import { Topics } from '../../src/topic/topics.ts'
import type { FetchMessage } from '../../src/wire/fetch-codec.ts'
import type { ProduceResultMessage } from '../../src/wire/produce-codec.ts'
import { aBatch } from '../support/batches.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { FakeGroups } from '../support/fake-groups.ts'
import { FaultyStore } from '../support/faulty-store.ts'
import { CallError, collect, RawClient, StreamReader } from '../support/raw-client.ts'
import { startTestBroker } from '../support/test-broker.ts'

const cleanups: (() => unknown)[] = []

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

async function aBroker(options: Parameters<typeof startTestBroker>[0] = {}): Promise<{
  broker: Awaited<ReturnType<typeof startTestBroker>>['broker']
  store: MemoryStore
  client: RawClient
}> {
  const { broker, store } = await startTestBroker(options)
  const client = new RawClient(broker.address)
  cleanups.push(
    () =>
      options.clock instanceof FakeClock ? passing(options.clock, broker.stop()) : broker.stop(),
    () => client.close(),
  )
  return { broker, store: store as MemoryStore, client }
}

function append(topic: string, batch: Uint8Array = aBatch({ records: 1 })): object {
  return { topic, partition: 0, acks: 'durable', batch, compression: 'none', correlationId: 0 }
}

async function failureOf(promise: Promise<unknown>): Promise<CallError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof CallError) return error
    throw error
  }
  throw new Error('the call did not fail')
}

/** Lets time pass until `call` is through, whichever way. */
async function passing<T>(clock: FakeClock, call: Promise<T>): Promise<T> {
  const through = new AbortController()
  const settle = (): void => through.abort()
  call.then(settle, settle)
  while (!through.signal.aborted) {
    await clock.advance(300)
    await new Promise((resolve) => setImmediate(resolve))
  }
  return call
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve))
}

describe('every status that is not OK', () => {
  it('carries its reason, also when grpc-js gives it', async () => {
    const { client } = await aBroker()
    const unknown = await failureOf(client.callRaw('/millrace.v1.LogService/Nope', Buffer.alloc(0)))
    expect([unknown.status, unknown.reason]).toEqual([
      grpc.status.UNIMPLEMENTED,
      'UNSUPPORTED_FEATURE',
    ])
    const huge = await failureOf(
      client.callRaw('/millrace.v1.LogService/Append', Buffer.alloc(18 << 20)),
    )
    expect([huge.status, huge.reason]).toEqual([grpc.status.RESOURCE_EXHAUSTED, 'BATCH_TOO_LARGE'])
  })

  it('names a message above our own limit as an argument that is wrong, not as a lack of resources', async () => {
    const { client } = await aBroker({ flags: { maxMessageBytes: '1MiB' } })
    await client.call('CreateTopic', { topic: 'orders' })
    const error = await failureOf(
      client.call('Append', append('orders', Buffer.alloc(1.5 * 2 ** 20))),
    )
    expect([error.status, error.reason]).toEqual([grpc.status.INVALID_ARGUMENT, 'BATCH_TOO_LARGE'])
    expect(error.detail?.facts).toContainEqual({ name: 'limit', value: String(2 ** 20 + 65_536) })
  })

  it('says what to do', async () => {
    const { client } = await aBroker()
    await client.call('CreateTopic', { topic: 'orders' })
    const error = await failureOf(client.call('DescribeTopic', { topic: 'order' }))
    expect(error.status).toBe(grpc.status.NOT_FOUND)
    expect(error.detail).toMatchObject({
      reason: 'UNKNOWN_TOPIC',
      action: 'refresh',
      retryable: false,
      noSideEffects: true,
    })
    expect(error.detail?.facts).toContainEqual({ name: 'nearest', value: 'orders' })
  })

  it('refuses too much metadata', async () => {
    const { client } = await aBroker()
    const many = new grpc.Metadata()
    for (let i = 0; i < 70; i++) many.set(`x-${i}`, 'y')
    expect((await failureOf(client.call('ListTopics', {}, many))).reason).toBe('INVALID_REQUEST')
    const large = new grpc.Metadata()
    large.set('x', 'y'.repeat(9000))
    expect((await failureOf(client.call('ListTopics', {}, large))).reason).toBe('INVALID_REQUEST')
  })
})

describe('a failure that nobody foresaw', () => {
  it('reaches the client as a trace id and the log as what it was', async () => {
    const lines: { facts: Readonly<Record<string, unknown>>; message: string }[] = []
    const logger = {
      ...silentLogger,
      error: (facts: Readonly<Record<string, unknown>>, message: string) => {
        lines.push({ facts, message })
      },
    }
    const { client, store, broker } = await aBroker({ logger })
    await client.call('CreateTopic', { topic: 'orders' })
    expect(broker.topics.get('orders')).toBeDefined()
    Object.defineProperty(store, 'clusterId', {
      get: () => {
        throw new TypeError('secret of /var/lib/secret/file')
      },
    })
    const error = await failureOf(client.call('Metadata', {}))
    expect(error.reason).toBe('INTERNAL_ERROR')
    expect(error.message).not.toContain('secret')
    const traceId = error.detail?.traceId ?? ''
    expect(traceId).toMatch(/^[0-9a-f]{16}$/)
    expect(lines).toHaveLength(1)
    expect(lines[0]?.facts['traceId']).toBe(traceId)
    expect(lines[0]?.message).toContain('secret')
  })
})

describe('health', () => {
  it('is NOT_SERVING, and calls are LOADING, until the topics are open', async () => {
    const clock = systemClock
    const random = new SeededRandom(1)
    const server = new GrpcServer({
      clock,
      random,
      logger: silentLogger,
      identity: { version: '0', brokerId: 1, startedMs: 0 },
      maxMessageBytes: 8 << 20,
    })
    await server.listen('127.0.0.1', 0)
    const client = new RawClient(`127.0.0.1:${server.address.port}`)
    cleanups.push(
      () => server.stop(100),
      () => client.close(),
    )
    const watch = new StreamReader<HealthCheckResponse>(client.stream('Watch', {}))
    expect((await watch.next()).status).toBe('NOT_SERVING')
    expect((await failureOf(client.call('ListTopics', {}))).reason).toBe('LOADING')
    const store = new MemoryStore({ clock, random })
    const topics = await Topics.open({ store, clock, random })
    cleanups.push(() => topics.close())
    server.serve(topics, new FakeGroups())
    expect((await watch.next()).status).toBe('SERVING')
    expect(await client.call('Check', { service: 'millrace.v1.LogService' })).toEqual({
      status: 'SERVING',
    })
    await client.call('ListTopics', {})
    const unknown = await failureOf(client.call('Check', { service: 'nobody' }))
    expect(unknown.status).toBe(grpc.status.NOT_FOUND)
    watch.stream.cancel()
  })
})

describe('Metadata', () => {
  it('tells who serves what, and what is not there', async () => {
    const { client, broker } = await aBroker()
    await client.call('CreateTopic', { topic: 'orders', partitions: 2 })
    const answer = await client.call<MetadataResponse>('Metadata', { topics: ['orders', 'ordres'] })
    const port = Number(broker.address.split(':')[1])
    expect(answer.brokers).toEqual([{ brokerId: 1, host: '127.0.0.1', port }])
    expect(answer.topics[0]?.partitions).toEqual([
      { partition: 0, leader: 1, leaderEpoch: 1 },
      { partition: 1, leader: 1, leaderEpoch: 1 },
    ])
    expect(answer.topics[1]).toMatchObject({ error: 'UNKNOWN_TOPIC', nearest: ['orders'] })
    const all = await client.call<MetadataResponse>('Metadata', { allTopics: true })
    expect(all.topics.map((topic) => topic.topic)).toEqual(['orders'])
    const none = await client.call<MetadataResponse>('Metadata', {})
    expect(none.topics).toEqual([])
  })

  it('sends clients where the configuration says', async () => {
    const { client } = await aBroker({ flags: { advertise: 'log.example:1234' } })
    const answer = await client.call<MetadataResponse>('Metadata', {})
    expect(answer.brokers).toEqual([{ brokerId: 1, host: 'log.example', port: 1234 }])
  })
})

describe('topics over the wire', () => {
  it('are made, changed, described and deleted', async () => {
    const { client } = await aBroker()
    const made = await client.call('CreateTopic', {
      topic: 'orders',
      partitions: 2,
      config: [{ name: 'retention.ms', value: '1h' }],
    })
    expect(made).toMatchObject({ created: true, partitions: 2 })
    const twice = [
      { name: 'retention.ms', value: '1h' },
      { name: 'retention.ms', value: '2h' },
    ]
    const double = await failureOf(client.call('CreateTopic', { topic: 'x', config: twice }))
    expect(double.reason).toBe('INVALID_CONFIG')
    const odd = await failureOf(
      client.call('CreateTopic', { topic: 'x', config: [{ name: '__proto__', value: '1' }] }),
    )
    expect(odd.reason).toBe('INVALID_CONFIG')
    await client.call('AddPartitions', { topic: 'orders', total: 3 })
    await client.call('AlterTopic', { topic: 'orders', clear: ['retention.ms'] })
    await client.call('Append', append('orders', aBatch({ records: 5 })))
    const tooFar = { topic: 'orders', partitions: [{ partition: 0, beforeOffset: 9 }] }
    expect((await failureOf(client.call('DeleteRecords', tooFar))).reason).toBe(
      'OFFSET_OUT_OF_RANGE',
    )
    const deleted = await client.call('DeleteRecords', {
      topic: 'orders',
      partitions: [
        { partition: 0, beforeOffset: 2 },
        { partition: 1, beforeOffset: -1 },
      ],
    })
    expect(deleted).toEqual({
      partitions: [
        { partition: 0, logStartOffset: 2 },
        { partition: 1, logStartOffset: 0 },
      ],
    })
    const described = await client.call<{ partitions: object[]; config: object[] }>(
      'DescribeTopic',
      {
        topic: 'orders',
      },
    )
    expect(described.partitions).toHaveLength(3)
    expect(described.partitions[0]).toMatchObject({
      logStartOffset: 2,
      highWatermark: 5,
      leaderEpoch: 1,
    })
    expect(described.config).toContainEqual(
      expect.objectContaining({ name: 'retention.ms', overridden: false }),
    )
    const listed = await client.call<{ topics: object[] }>('ListTopics', { sizes: true })
    expect(listed.topics).toMatchObject([{ topic: 'orders', partitions: 3, records: 3 }])
    await client.call('DeleteTopic', { topic: 'orders' })
    expect((await client.call<{ topics: object[] }>('ListTopics', {})).topics).toEqual([])
  })
})

describe('without the HTTP/2 servers of grpc-js', () => {
  it('everything works but wide windows and the guard', async () => {
    const clock = systemClock
    const random = new SeededRandom(1)
    const server = new GrpcServer({
      clock,
      random,
      logger: silentLogger,
      identity: { version: '0', brokerId: 1, startedMs: 0 },
      maxMessageBytes: 8 << 20,
      plainTransport: true,
    })
    await server.listen('127.0.0.1', 0)
    const store = new MemoryStore({ clock, random })
    const topics = await Topics.open({ store, clock, random })
    server.serve(topics, new FakeGroups())
    const client = new RawClient(`127.0.0.1:${server.address.port}`)
    cleanups.push(
      () => topics.close(),
      () => server.stop(100),
      () => client.close(),
    )
    await client.call('CreateTopic', { topic: 'orders' })
    for (let i = 0; i < 5; i++) {
      await client.call('Append', append('orders', aBatch({ records: 2, valueBytes: 100_000 })))
    }
    const request = { partitions: [{ topic: 'orders' }], maxBytes: 250_000 }
    const messages = await collect<FetchMessage>(client.stream('Fetch', request))
    expect(messages.map((message) => message.nextOffset)).toEqual([2, 4, 6, 8, 10])
  })

  it('a server says that it could not find them', () => {
    const warnings: string[] = []
    const logger = { ...silentLogger, warn: (_facts: object, text: string) => warnings.push(text) }
    expect(findHttp2Servers({} as grpc.Server, logger)).toEqual([])
    expect(warnings).toHaveLength(1)
  })
})

describe('windows', () => {
  it('of a connection and its streams are widened', async () => {
    const { broker } = await aBroker()
    const session: ClientHttp2Session = connect(`http://${broker.address}`)
    cleanups.push(() => session.destroy())
    await until(() => session.remoteSettings?.initialWindowSize === WINDOW_BYTES)
    await until(() => (session.state.remoteWindowSize ?? 0) >= WINDOW_BYTES)
  })
})

describe('a slow reader', () => {
  it('costs a bounded buffer, stops nobody and is cut off after a minute', async () => {
    const clock = new FakeClock()
    const { client, broker } = await aBroker({ clock })
    await client.call('CreateTopic', { topic: 'orders' })
    const batch = aBatch({ records: 1, valueBytes: 500_000 })
    for (let i = 0; i < 40; i++) await client.call('Append', append('orders', Buffer.from(batch)))
    // A message per batch: grpc-js takes 16 of them from the wire before a paused client stops reading.
    const request = { partitions: [{ topic: 'orders' }], follow: true, maxBytes: 1 }
    const slowClient = new RawClient(broker.address)
    cleanups.push(() => slowClient.close())
    const slow = new StreamReader<FetchMessage>(slowClient.stream('Fetch', request))
    // Only after the first message: grpc-js does not hold back a stream that was paused before.
    await slow.next()
    slow.stream.pause()
    const fast = new StreamReader<FetchMessage>(client.stream('Fetch', request))
    let next = 0
    while (next < 40) next = (await fast.next()).nextOffset
    await clock.advance(61_000)
    slow.stream.resume()
    const cutOff = (async () => {
      for (;;) await slow.next()
    })()
    await expect(cutOff).rejects.toMatchObject({ status: grpc.status.CANCELLED })
    await client.call('Append', append('orders'))
    expect((await fast.next()).nextOffset).toBe(41)
    fast.stream.cancel()
  })
})

describe('answers', () => {
  it('wait for their turn: a fault that is known at once does not overtake what is being written', async () => {
    const clock = new FakeClock()
    const { client, broker } = await aBroker({ clock, durableDelayMs: 300 })
    await passing(clock, client.call('CreateTopic', { topic: 'orders' }))
    const stream = client.duplex('Produce')
    const results: ProduceResultMessage[] = []
    stream.on('data', (message: ProduceResultMessage[]) => results.push(...message))
    const ended = once(stream, 'end')
    stream.write({ ...append('nobody'), correlationId: 1 })
    stream.write({ ...append('orders'), correlationId: 2 })
    stream.write({ ...append('nobody'), correlationId: 3 })
    const partition = broker.topics.getPartition('orders', 0)
    const told = (): number[] => results.map((result) => result.correlationId)
    // Nothing is durable: only the fault that stands first may be told.
    await until(() => partition.logEndOffset === 1 && results.length > 0)
    expect(told()).toEqual([1])
    await clock.advance(150)
    stream.write({ ...append('orders'), correlationId: 4 })
    stream.end()
    await until(() => partition.logEndOffset === 2)
    await clock.advance(150)
    // The first append is durable now, the second is not.
    await until(() => results.length > 1)
    expect(told()).toEqual([1, 2, 3])
    await passing(clock, ended)
    expect(results.map((r) => [r.correlationId, r.error?.reason ?? r.baseOffset])).toEqual([
      [1, 'UNKNOWN_TOPIC'],
      [2, 0],
      [3, 'UNKNOWN_TOPIC'],
      [4, 1],
    ])
  })
})

describe('back-pressure', () => {
  it('stops reading a stream while too much is under way, and goes on after', async () => {
    const clock = new FakeClock()
    const { client } = await aBroker({ clock, durableDelayMs: 300 })
    await passing(clock, client.call('CreateTopic', { topic: 'orders' }))
    const stream = client.duplex('Produce')
    const results: ProduceResultMessage[] = []
    stream.on('data', (message: ProduceResultMessage[]) => results.push(...message))
    const template = aBatch({ records: 1, valueBytes: 1_000_000 })
    let flushed = 0
    for (let i = 0; i < 100; i++) {
      stream.write(
        { ...append('orders', Buffer.from(template)), correlationId: i + 1 },
        () => flushed++,
      )
    }
    // 32 MiB in flight, the read-ahead of two and 4 MiB windows on the way: the client cannot get rid of much more.
    let before = -1
    while (flushed !== before) {
      before = flushed
      for (let i = 0; i < 300; i++) await new Promise((resolve) => setImmediate(resolve))
    }
    expect(flushed).toBeGreaterThan(25)
    expect(flushed).toBeLessThan(60)
    expect(results).toEqual([])
    while (results.length < 100) {
      await clock.advance(300)
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(results.map((result) => result.baseOffset)).toEqual([...Array(100).keys()])
    stream.end()
    await passing(clock, once(stream, 'end'))
  })
})

describe('a call that takes too long', () => {
  it('is answered APPEND_TIMEOUT, with the outcome unknown', async () => {
    const clock = new FakeClock()
    const { client } = await aBroker({ clock, durableDelayMs: 60_000 })
    // Done, although nobody could wait for it.
    await failureOf(passing(clock, client.call('CreateTopic', { topic: 'orders' })))
    await clock.advance(60_000)
    const error = await failureOf(passing(clock, client.call('Append', append('orders'))))
    expect(error.status).toBe(grpc.status.DEADLINE_EXCEEDED)
    expect(error.detail).toMatchObject({ reason: 'APPEND_TIMEOUT', noSideEffects: false })
  })
})

describe('stopping', () => {
  it('finishes what is under way, ends followers politely and refuses new work', async () => {
    const { client, broker } = await aBroker()
    await client.call('CreateTopic', { topic: 'orders' })
    const follower = new StreamReader<FetchMessage>(
      client.stream('Fetch', { partitions: [{ topic: 'orders' }], follow: true }),
    )
    const producer = client.duplex('Produce')
    const results: ProduceResultMessage[] = []
    const ended = new Promise<CallError>((resolve) => {
      producer.on('data', (message: ProduceResultMessage[]) => results.push(...message))
      producer.on('error', (error) => resolve(new CallError(error as grpc.ServiceError)))
    })
    producer.write(append('orders'))
    await follower.next()
    const stopped = broker.stop()
    await expect(follower.next()).rejects.toMatchObject({
      detail: { reason: 'BROKER_DRAINING', action: 'retry_after', noSideEffects: true },
    })
    expect((await ended).reason).toBe('BROKER_DRAINING')
    expect(results).toHaveLength(1)
    await stopped
    const late = await failureOf(client.call('ListTopics', {}))
    expect(late.status).toBe(grpc.status.UNAVAILABLE)
  })
})

describe('starting', () => {
  it('says that the port is taken, and gives everything up again', async () => {
    const { broker } = await aBroker()
    const second = startTestBroker({ flags: { listen: broker.address } })
    await expect(second).rejects.toMatchObject({ code: 'ADDRESS_IN_USE' })
  })

  it('passes on why the store cannot be opened', async () => {
    const failure = new BrokerError('DIRECTORY_IN_USE', 'another broker holds it')
    await expect(startTestBroker({ storeFailure: failure })).rejects.toBe(failure)
  })
})

describe('damage on the disk', () => {
  async function aDamagedTopic(onCorruption: string): Promise<FetchMessage[]> {
    const store = new FaultyStore(
      new MemoryStore({ clock: systemClock, random: new SeededRandom(1) }),
    )
    const { client } = await aBroker({ store })
    await client.call('CreateTopic', {
      topic: 'orders',
      config: [{ name: 'on.corruption', value: onCorruption }],
    })
    for (const value of ['a', 'b', 'c']) {
      await client.call('Append', append('orders', aBatch({ values: [value] })))
    }
    store.damaged.set('orders-0', { start: 1, end: 2 })
    const request = { partitions: [{ topic: 'orders' }], plainRecords: true, maxBytes: 1 }
    return collect<FetchMessage>(client.stream('Fetch', request))
  }

  it('ends the partition with DATA_LOSS and where to go on', async () => {
    const messages = await aDamagedTopic('halt')
    const { error, end, nextOffset } = messages.at(-1)!
    expect([error?.reason, end, nextOffset]).toEqual(['SEGMENT_QUARANTINED', true, 1])
    expect(error?.facts).toContainEqual({ name: 'nextOffset', value: '2' })
  })

  it('is passed over, and told, where the topic says so', async () => {
    const messages = await aDamagedTopic('skip')
    const records = messages.flatMap((message) => message.records)
    expect(records.map((record) => record.offset)).toEqual([0, 2])
    const skipped = messages.filter((message) => message.skippedTo > 0)
    expect(skipped).toMatchObject([{ skippedFrom: 1, skippedTo: 2, error: undefined }])
    expect(messages.at(-1)).toMatchObject({ end: true, nextOffset: 3 })
  })
})

describe('a full disk', () => {
  it('refuses appends with a hint when to come again, and serves reads', async () => {
    const { client, store } = await aBroker()
    await client.call('CreateTopic', { topic: 'orders' })
    // Of today: retention runs at once when space is low.
    const batch = aBatch({ records: 1, timestampMs: systemClock.wallMs() })
    await client.call('Append', append('orders', batch))
    store.storageFull = true
    const error = await failureOf(client.call('Append', append('orders')))
    expect(error.status).toBe(grpc.status.RESOURCE_EXHAUSTED)
    expect(error.detail).toMatchObject({
      reason: 'STORAGE_FULL',
      action: 'retry_after',
      retryable: true,
    })
    expect(error.detail?.retryAfterMs).toBeGreaterThan(0)
    const messages = await collect<FetchMessage>(
      client.stream('Fetch', { partitions: [{ topic: 'orders' }] }),
    )
    expect(messages.at(-1)?.nextOffset).toBe(1)
  })
})
