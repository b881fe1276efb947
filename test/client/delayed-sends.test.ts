import { afterEach, beforeEach, expect, it } from 'vitest'
import {
  bytes,
  type Client,
  connect,
  type DelayedInfo,
  type ReceivedRecord,
  text,
  topic,
} from '../../src/client/index.ts'
import { systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { SendCoordinator } from '../../src/coordination/delayed/send-coordinator.ts'
import { GroupCoordinator } from '../../src/coordination/group/group-coordinator.ts'
import { LocalPeer } from '../../src/coordination/local-peer.ts'
import { drainingError } from '../../src/grpc/drain.ts'
import { GrpcServer } from '../../src/grpc/server.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { silentLogger } from '../../src/server/logger.ts'
import { Topics } from '../../src/topic/topics.ts'
import { FakeDeadLetters, FakeQueues } from '../support/fake-queues.ts'
import { failureOf } from '../support/fake-session.ts'

/** The client's sends and the broker's delayed delivery together. */

const mails = topic('mails', { value: text })

let mill: Client
let stop: () => Promise<void>

beforeEach(async () => {
  const clock = systemClock
  const random = new SeededRandom(7)
  const store = new MemoryStore({ clock, random })
  const topics = await Topics.open({ store, clock, random })
  await store.ready()
  const groups = await GroupCoordinator.open({ topics, clock, random })
  const peer = new LocalPeer({ topics, clock })
  const sends = await SendCoordinator.open({ topics, peer, clock, random })
  const server = new GrpcServer({
    clock,
    random,
    logger: silentLogger,
    identity: { version: 'test', brokerId: 0, startedMs: clock.wallMs() },
    maxMessageBytes: 8 << 20,
  })
  await server.listen('127.0.0.1', 0)
  server.serve(topics, groups, {
    queues: new FakeQueues(),
    sends,
    deadLetters: new FakeDeadLetters(),
  })
  mill = await connect(`127.0.0.1:${server.address.port}`)
  await mill.admin.createTopic('mails', { partitions: 4 })
  stop = async () => {
    await mill.close()
    await server.stop(100)
    await sends.close()
    await groups.close(drainingError())
    await topics.close()
    await store.close()
  }
})

afterEach(() => stop())

async function listOf<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = []
  for await (const item of items) list.push(item)
  return list
}

/** The first records of the topic, as soon as they are there. */
async function take(count: number): Promise<ReceivedRecord<string>[]> {
  const records: ReceivedRecord<string>[] = []
  for await (const record of mill.read(mails)) if (records.push(record) === count) break
  return records
}

it('delivers a record when it is due, with its headers, and not before', async () => {
  await using producer = mill.producer()
  const sentMs = systemClock.wallMs()
  const receipt = await producer.send(mails, {
    key: 'k',
    value: 'later',
    headers: { mine: 'x' },
    type: 'reminder',
    delayMs: 150,
  })
  expect(receipt.offset).toBeNaN()
  expect(receipt.deliverAt).toBeGreaterThanOrEqual(sentMs + 150)
  const [record] = await take(1)
  expect(systemClock.wallMs()).toBeGreaterThanOrEqual(receipt.deliverAt ?? Number.NaN)
  expect(record).toMatchObject({ key: 'k', value: 'later', partition: receipt.partition })
  expect(record?.headers).toMatchObject({
    mine: 'x',
    'job.type': 'reminder',
    'job.delay_id': receipt.delayId,
    'job.deliver_at_ms': `${receipt.deliverAt}`,
  })
  expect(await failureOf(mill.admin.cancelDelayed(receipt.delayId ?? ''))).toMatchObject({
    code: 'ALREADY_FIRED',
  })
})

it('puts a record and a delayed one of the same key into one partition', async () => {
  await using producer = mill.producer()
  for (let i = 0; i < 20; i++) {
    const key = `key-${i}`
    const [now, later, ordered, orderedLater] = await producer.sendAll(mails, [
      { key, value: 'now' },
      { key, value: 'later', delayMs: 60_000 },
      { orderingKey: key, value: 'now' },
      { orderingKey: key, value: 'later', delayMs: 60_000 },
    ])
    expect(later?.partition).toBe(now?.partition)
    expect(orderedLater?.partition).toBe(ordered?.partition)
  }
})

it('writes one of several records with a dedupe id, and says where it is', async () => {
  await using producer = mill.producer()
  const [first, ...others] = await producer.sendAll(
    mails,
    Array.from({ length: 5 }, () => ({ value: 'once', dedupeId: 'order-1' })),
  )
  expect(first?.duplicate).toBe(false)
  for (const other of others) expect(other).toEqual({ ...first, duplicate: true })
  const waiting = await producer.send(mails, { value: 'a', dedupeId: 'b', delayMs: 60_000 })
  expect(await producer.send(mails, { value: 'a', dedupeId: 'b' })).toMatchObject({
    duplicate: true,
    delayId: waiting.delayId,
  })
  expect(await mill.admin.countDelayed('mails')).toBe(1)
})

it('lists, counts, moves, fires and cancels what waits', async () => {
  await using producer = mill.producer()
  const dueMs = systemClock.wallMs() + 3_600_000
  const receipts = await producer.sendAll(
    mails,
    Array.from({ length: 2500 }, (_, i) => ({ value: `${i}`, deliverAt: new Date(dueMs + i) })),
  )
  const { admin } = mill
  expect(await admin.countDelayed()).toBe(2500)
  const listed = await listOf<DelayedInfo>(admin.delayed({ topic: 'mails' }))
  expect(listed.map(({ delayId }) => delayId)).toEqual(receipts.map(({ delayId }) => delayId))
  expect(listed.map(({ deliverAt }) => deliverAt)).toEqual(
    receipts.map(({ deliverAt }) => deliverAt),
  )
  expect(Buffer.from(listed[7]?.record.value ?? []).toString()).toBe('7')
  const [first = '', second = '', third = ''] = receipts.map(({ delayId }) => delayId)
  await admin.cancelDelayed(first)
  await admin.updateDelayed(second, new Date(dueMs + 86_400_000))
  const fired = await admin.fireDelayed(third)
  expect(await take(1)).toMatchObject([{ value: '2', ...fired }])
  const left = await listOf(admin.delayed({ from: new Date(dueMs + 1_000_000) }))
  expect(left).toMatchObject([{ deliverAt: dueMs + 86_400_000 }])
  expect(await admin.countDelayed('mails')).toBe(2498)
})

it('tells by name what the broker refuses', async () => {
  await using producer = mill.producer()
  const tooLong = producer.send(mails, { value: 'a', delayMs: 401 * 86_400_000 })
  expect(await failureOf(tooLong)).toMatchObject({ code: 'DELAY_TOO_LONG' })
  await producer.send(mails, { value: 'waits', delayMs: 60_000 }) // Makes the topic that follows.
  const internal = topic('__delayed', { value: bytes })
  const sent = producer.send(internal, { value: new Uint8Array(1), delayMs: 1 })
  expect(await failureOf(sent)).toMatchObject({ code: 'TOPIC_INTERNAL' })
  expect(await failureOf(mill.admin.cancelDelayed('nonsense'))).toMatchObject({
    code: 'DELAY_NOT_FOUND',
  })
})
