import { array, assert as check, asyncProperty, constantFrom, integer } from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import {
  bytes,
  type Client,
  connect,
  MillraceError,
  type Producer,
  text,
  topic,
} from '../../src/client/index.ts'
import type { Connection } from '../../src/client/connection.ts'
import { type DeferredRecord, DelayedSender } from '../../src/client/delayed-sender.ts'
import { PartitionChooser } from '../../src/client/partitioner.ts'
import { BrokerError } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import type { SendRequest, SendResponse } from '../../src/gen/types.ts'
import { partitionForKey } from '../../src/wire/murmur2.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'
import { BrokenCall, FakeQueueBroker, SendsModel } from '../support/fake-queue-broker.ts'
import { failureOf } from '../support/fake-session.ts'

const mails = topic('mails', { value: text })
const blobs = topic('mails', { value: bytes })

let broker: FakeQueueBroker
let sends: SendsModel
let mill: Client

beforeEach(async () => {
  broker = await FakeQueueBroker.start()
  broker.topics.set('mails', { partitions: 4, maxBatchBytes: 1 << 20 })
  sends = new SendsModel()
  broker.handlers.Send = (request) => take(request)
  mill = await connect(broker.url)
})

afterEach(async () => {
  await mill.close({ timeoutMs: 100 }).catch(() => undefined) // Some tests leave records behind.
  await broker[Symbol.asyncDispose]()
})

function take(
  request: SendRequest,
  refuse: (value: string) => BrokerError | undefined = () => undefined,
) {
  return sends.send(request, refuse)
}

const upTo = (count: number): string[] => Array.from({ length: count }, (_, i) => `${i}`)

function sendMany(producer: Producer, count: number, from = 0): Promise<number>[] {
  return Array.from({ length: count }, async (_, i) => {
    const receipt = await producer.send(mails, { value: `${from + i}`, dedupeId: `id-${from + i}` })
    return receipt.offset
  })
}

/** A gate that calls wait at. */
function makeGate(): { readonly wait: Promise<void>; open(): void } {
  let open = (): void => undefined
  const wait = new Promise<void>((resolve) => {
    open = resolve
  })
  return { wait, open }
}

describe('what goes by QueueService.Send', () => {
  it('tells of a record that waits its delay id and when it is due, and no offset', async () => {
    const producer = mill.producer()
    const receipt = await producer.send(mails, { value: 'later', delayMs: 5000.5 })
    expect(receipt).toMatchObject({
      topic: 'mails',
      partition: 0,
      offset: Number.NaN,
      duplicate: false,
      deliverAt: 1_005_001,
      timestamp: 1000,
    })
    expect(receipt.delayId).toMatch(/^0\.0\.[0-9a-f]{32}$/)
  })

  it('tells of a record with a dedupe id its offset, and of a second one where the first is', async () => {
    const producer = mill.producer()
    const first = await producer.send(mails, { value: 'a', dedupeId: 'order-1' })
    expect(first).toMatchObject({ offset: 0, duplicate: false, delayId: undefined })
    expect(first.deliverAt).toBeUndefined()
    const second = await producer.send(mails, { value: 'b', dedupeId: 'order-1' })
    expect(second).toMatchObject({ offset: 0, duplicate: true })
    expect(sends.values()).toEqual(['a'])
  })

  it('carries key, value, headers, timestamp, partition and the options that are headers', async () => {
    const producer = mill.producer()
    await producer.send(mails, {
      key: 'k',
      value: 'v',
      headers: { a: 'b' },
      timestamp: new Date(123),
      partition: 3,
      type: 'mail',
      attempts: 7,
      deliverAt: new Date(77),
    })
    await producer.send(mails, { value: null, delayMs: 0, dedupeId: 'd' })
    const [first, second] = sends.taken.map(({ request }) => request)
    expect(first).toMatchObject({
      partition: 3,
      deliverAtMs: 77,
      record: { key: Buffer.from('k'), value: Buffer.from('v'), timestampMs: 123 },
    })
    expect(first?.record?.headers.map(({ key, value }) => [key, value.toString()])).toEqual([
      ['a', 'b'],
      ['job.type', 'mail'],
      ['job.attempts_max', '7'],
    ])
    expect(first?.delayMs).toBeUndefined()
    expect(first?.sendId).toHaveLength(16)
    expect(second).toMatchObject({ delayMs: 0, dedupeId: 'd' })
    expect(first?.dedupeId).toBe('')
    expect(second?.record?.value).toBeUndefined()
    expect(second?.record?.key).toBeUndefined()
    expect(second?.record?.timestampMs).toBeUndefined()
    expect(second?.partition).toBeUndefined()
  })

  it('copies bytes before send returns', async () => {
    const producer = mill.producer()
    const value = Buffer.from('before')
    const sent = producer.send(blobs, { value, delayMs: 1 })
    value.write('after!')
    await sent
    expect(sends.values()).toEqual(['before'])
  })

  it('leaves the partition to the broker, but for ordering keys without a key and for partitioners of the program', async () => {
    await using ours = mill.producer()
    await ours.send(mails, { value: '0', key: 'k', dedupeId: '0' })
    await ours.send(mails, { value: '1', orderingKey: 'c-1', dedupeId: '1' })
    await ours.send(mails, { value: '2', orderingKey: 'c-1', key: 'k', dedupeId: '2' })
    await using own = mill.producer({ partitioner: (key) => (key === undefined ? 0 : key.length) })
    await own.send(mails, { value: '3', key: 'abc', delayMs: 1 })
    await own.send(mails, { value: '4', orderingKey: 'xy', delayMs: 1 })
    await own.send(mails, { value: '5', delayMs: 1 })
    expect(sends.taken.map(({ request }) => request.partition)).toEqual([
      undefined,
      partitionForKey(Buffer.from('c-1'), 4),
      undefined,
      3,
      2,
      undefined,
    ])
  })

  it('answers when durable, with a receipt, whatever acks says', async () => {
    await using producer = mill.producer({ acks: 'none' })
    expect(await producer.send(mails, { value: 'a', dedupeId: 'x' })).toMatchObject({ offset: 0 })
  })
})

describe('gathering', () => {
  it('sends what comes in one turn in one call, and what comes during a call in the next', async () => {
    const gates = [makeGate(), makeGate()]
    broker.handlers.Send = async (request) => {
      await gates.shift()?.wait
      return take(request)
    }
    const [first, second] = gates
    const producer = mill.producer()
    const early = sendMany(producer, 3)
    await expect.poll(() => broker.calls.length).toBe(1)
    const late = sendMany(producer, 500, 3)
    first?.open()
    expect(await Promise.all(early)).toEqual([0, 1, 2])
    await expect.poll(() => broker.calls.length).toBe(2)
    second?.open()
    await Promise.all(late)
    expect(broker.requests('Send').map(({ records }) => records.length)).toEqual([3, 500])
    expect(sends.values()).toEqual(upTo(503))
  })

  it('has one call under way per topic, of up to 1 000 records and a MiB, in order', async () => {
    let most = 0
    let active = 0
    broker.handlers.Send = async (request) => {
      active++
      most = Math.max(most, active)
      await new Promise((resolve) => setImmediate(resolve))
      active--
      return take(request)
    }
    const producer = mill.producer()
    await Promise.all(sendMany(producer, 2500))
    const sizes = broker.requests('Send').map(({ records }) => records.length)
    expect(sizes).toEqual([1000, 1000, 500])
    expect(most).toBe(1)
    expect(sends.values()).toEqual(upTo(2500))
    broker.calls.length = 0
    const value = new Uint8Array(300 * 1024)
    await producer.sendAll(
      blobs,
      Array.from({ length: 7 }, () => ({ value, delayMs: 1 })),
    )
    expect(broker.requests('Send').map(({ records }) => records.length)).toEqual([3, 3, 1])
  })

  it('has calls of two topics under way at the same time', async () => {
    broker.topics.set('others', { partitions: 1, maxBatchBytes: 1 << 20 })
    const gate = makeGate()
    broker.handlers.Send = async (request) => {
      if (request.topic === 'mails') await gate.wait
      return take(request)
    }
    const producer = mill.producer()
    const held = producer.send(mails, { value: 'held', delayMs: 1 })
    await producer.send(topic('others', { value: text }), { value: 'free', delayMs: 1 })
    gate.open()
    await held
    expect(sends.values()).toEqual(['free', 'held'])
  })
})

describe('failures', () => {
  it('repeats after a lost answer under the same ids, and one copy stays', async () => {
    let calls = 0
    broker.handlers.Send = (request) => {
      const answer = take(request)
      if (++calls <= 2) throw new BrokenCall('lost on purpose')
      return answer
    }
    const producer = mill.producer()
    const receipts = await producer.sendAll(mails, [
      { value: 'a', delayMs: 10 },
      { value: 'b', dedupeId: 'b' },
    ])
    expect(receipts[0]?.delayId).toBeDefined()
    expect(receipts[1]).toMatchObject({ offset: 0, duplicate: false })
    expect(sends.values()).toEqual(['a', 'b'])
    const [first, second, third] = broker.requests('Send')
    expect(second).toEqual(first)
    expect(third).toEqual(first)
  })

  it('goes on when the broker comes back, in the old order', async () => {
    const producer = mill.producer()
    await producer.send(mails, { value: 'x', dedupeId: 'x' })
    broker.stop()
    const sent = sendMany(producer, 50)
    await broker.listen()
    await Promise.all(sent)
    expect(sends.values()).toEqual(['x', ...upTo(50)])
  })

  it('fails one record that is refused, and takes the others', async () => {
    broker.handlers.Send = (request) =>
      take(request, (value) =>
        value === '1' ? new BrokerError('DELAY_TOO_LONG', 'too long', { limit: 5 }) : undefined,
      )
    const producer = mill.producer()
    const results = await Promise.allSettled(
      upTo(3).map((value) => producer.send(mails, { value, delayMs: 9 })),
    )
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
    expect((results[1] as PromiseRejectedResult).reason).toMatchObject({
      code: 'DELAY_TOO_LONG',
      details: { limit: 5 },
    })
  })

  it('sends again those that are refused for a while, before what came later', async () => {
    let refusals = 0
    broker.handlers.Send = (request) =>
      take(request, (value) =>
        Number(value) < 2 && refusals++ < 4
          ? new BrokerError('STORAGE_FULL', 'full for a while')
          : undefined,
      )
    const producer = mill.producer()
    const sent = sendMany(producer, 2)
    await expect.poll(() => broker.calls.length).toBeGreaterThan(0)
    await Promise.all([...sent, ...sendMany(producer, 3, 2)])
    expect(sends.values()).toEqual(upTo(5))
    expect(new Set(sends.taken.map(({ request }) => request.sendId.toString('hex'))).size).toBe(5)
  })

  it('fails all of a call that is refused as a whole, and goes on with the next', async () => {
    let isFirst = true
    broker.handlers.Send = (request) => {
      if (!isFirst) return take(request)
      isFirst = false
      return new BrokerError('TOPIC_INTERNAL', 'not yours')
    }
    const producer = mill.producer()
    const results = await Promise.allSettled(sendMany(producer, 1500))
    const codes = results.map((result) =>
      result.status === 'rejected' ? (result.reason as MillraceError).code : 'taken',
    )
    expect(codes.slice(0, 1000).every((code) => code === 'TOPIC_INTERNAL')).toBe(true)
    expect(codes.slice(1000).every((code) => code === 'taken')).toBe(true)
  })

  it('names the topic that is not there, and finds it when it is', async () => {
    const producer = mill.producer()
    const ghosts = topic('ghosts', { value: text })
    const failures = await Promise.all(
      upTo(3).map((value) => failureOf(producer.send(ghosts, { value, delayMs: 1 }))),
    )
    expect(failures.map(({ code }) => code)).toEqual(Array(3).fill('UNKNOWN_TOPIC'))
    broker.topics.set('ghosts', { partitions: 1, maxBatchBytes: 1 << 20 })
    await producer.send(ghosts, { value: 'here', delayMs: 1 })
    expect(sends.values()).toEqual(['here'])
  })

  it('gives up after deliveryTimeoutMs', async () => {
    broker.handlers.Send = (request) =>
      request.records.some((each) => each.record?.value?.toString() === 'a')
        ? new BrokerError('LOADING', 'still loading')
        : take(request)
    const producer = mill.producer({ deliveryTimeoutMs: 100 })
    const sent = producer.send(mails, { value: 'a', delayMs: 1 })
    expect(await failureOf(sent)).toMatchObject({
      code: 'APPEND_TIMEOUT',
      details: { topic: 'mails', timeoutMs: 100 },
    })
    // It is left out of what goes next.
    await producer.send(mails, { value: 'b', delayMs: 1 })
    expect(sends.values()).toEqual(['b'])
  })

  it('refuses what is too large and partitions that are not there, before or after it knows the topic', async () => {
    const producer = mill.producer()
    const large = { value: 'x'.repeat(1 << 20), delayMs: 1 }
    for (let round = 0; round < 2; round++) {
      expect(await failureOf(producer.send(mails, large))).toMatchObject({
        code: 'RECORD_TOO_LARGE',
        details: { limit: 1 << 20 },
      })
      expect(
        await failureOf(producer.send(mails, { value: 'a', partition: 4, delayMs: 1 })),
      ).toMatchObject({ code: 'UNKNOWN_PARTITION', details: { partition: 4 } })
      expect(
        await failureOf(producer.send(mails, { value: 'a', partition: 0.5, delayMs: 1 })),
      ).toMatchObject({ code: 'INVALID_PARTITION' })
    }
    expect(broker.calls).toEqual([])
    expect(() => producer.post(mails, large)).toThrow(/does not fit/)
  })

  it('does not wait for answers that a broker forgets to give', async () => {
    broker.handlers.Send = (request) => ({ results: take(request).results.slice(0, 1) })
    const producer = mill.producer()
    const [first, second] = await Promise.allSettled(sendMany(producer, 2))
    expect(first?.status).toBe('fulfilled')
    expect(second).toMatchObject({ status: 'rejected', reason: { code: 'INTERNAL_ERROR' } })
  })

  it('keeps order and one copy, whatever fails in whatever order', async () => {
    const fault = constantFrom('none', 'lose', 'break', 'refuse', 'some')
    await check(
      asyncProperty(
        array(fault, { maxLength: 8 }),
        array(integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 6 }),
        async (faults, bursts) => {
          sends = new SendsModel()
          const plan = [...faults]
          broker.handlers.Send = (request) => {
            const what = plan.shift() ?? 'none'
            if (what === 'break') throw new BrokenCall('before it was taken')
            if (what === 'refuse') return new BrokerError('LOADING', 'a moment')
            // All of a partition fail together, and there is only one here.
            const error = what === 'some' ? new BrokerError('READ_ONLY', 'a moment') : undefined
            const answer = take(request, () => error)
            if (what === 'lose') throw new BrokenCall('after it was taken')
            return answer
          }
          const producer = mill.producer()
          let sent = 0
          const offsets: Promise<number>[] = []
          for (const burst of bursts) {
            offsets.push(...sendMany(producer, burst, sent))
            sent += burst
            await new Promise((resolve) => setImmediate(resolve))
          }
          expect(await Promise.all(offsets)).toEqual(Array.from({ length: sent }, (_, i) => i))
          expect(sends.values()).toEqual(upTo(sent))
          await producer.close()
        },
      ),
      { numRuns: 40 },
    )
  })
})

describe('calls that come to nothing', () => {
  const failure = new MillraceError('UNREACHABLE', 'broken on purpose')
  const record = (value: string): DeferredRecord => ({
    request: { record: { value: Buffer.from(value), headers: [] }, dedupeId: '' },
    recordBytes: 100,
    placement: Buffer.from('an ordering key'),
  })

  /** A sender whose calls are answered by `answer`; a failure is not repeated below it. */
  function make(answer: (request: SendRequest, signal: AbortSignal) => Promise<SendResponse>) {
    const clock = new FakeClock()
    const random = new SeededRandom(5)
    const route = { topic: 'mails', maxBatchBytes: 0, leaders: Array<number>(1000).fill(0) }
    const calls: SendRequest[] = []
    const connection = {
      clock,
      random,
      findRoute: () => route,
      getRoute: () => Promise.resolve(route),
      forgetRoute: () => undefined,
      call: (_name: string, request: SendRequest, options: { signal: AbortSignal }) => {
        calls.push({ ...request, records: request.records.map((each) => ({ ...each })) })
        return answer(request, options.signal)
      },
    } as unknown as Connection // What the sender uses of one.
    const bytes = { now: 0 }
    const errors: MillraceError[] = []
    const sender = new DelayedSender(
      connection,
      { topic: 'mails', chooser: new PartitionChooser('murmur2', random), deliveryTimeoutMs: 5000 },
      {
        taken: (more) => {
          bytes.now += more
        },
        released: (less) => {
          bytes.now -= less
        },
        postFailed: (error) => errors.push(error),
        progressed: () => undefined,
      },
    )
    const post = (value: string): void => {
      void sender.add(record(value), false) // No receipt was asked for.
    }
    return { sender, post, clock, calls, bytes, errors }
  }

  it('are made again with the same records under the same ids, before what came later', async () => {
    let failures = 3
    const gate = makeGate()
    const { sender, post, clock, calls, bytes, errors } = make(async (request) => {
      await gate.wait
      if (failures-- > 0) throw failure
      return take(request)
    })
    post('0')
    post('1')
    await settle()
    post('2')
    gate.open()
    while (!sender.isEmpty) await clock.advance(100)
    expect(sends.values()).toEqual(upTo(3))
    expect(calls.map(({ records }) => records.length)).toEqual([2, 3, 3, 3])
    const first = calls[0]?.records
    for (const { records } of calls) expect(records.slice(0, 2)).toEqual(first)
    expect(bytes.now).toBe(0)
    expect(errors).toEqual([])
  })

  it('are made without the records that have timed out', async () => {
    const { sender, post, clock, calls } = make(() => Promise.reject(failure))
    const late = sender.add(record('0'), true)
    await clock.advance(1000)
    post('1')
    sender.expire(500, () => new MillraceError('APPEND_TIMEOUT', 'too late'))
    await expect(late).rejects.toThrow('too late')
    calls.length = 0
    while (calls.length === 0) await clock.advance(100)
    expect(calls[0]?.records).toMatchObject([{ record: { value: Buffer.from('1') } }])
    sender.failAll(failure)
  })

  it('are ended when all of their records have timed out', async () => {
    const signals: AbortSignal[] = []
    const { sender, post, bytes, errors } = make((_request, signal) => {
      signals.push(signal)
      return new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => reject(new Error('aborted')))
      })
    })
    post('0')
    await settle()
    sender.expire(-1, () => failure)
    expect(signals[0]?.aborted).toBe(false)
    sender.expire(0, () => failure)
    sender.expire(0, () => failure)
    expect(signals[0]?.aborted).toBe(true)
    await settle()
    expect(sender.isEmpty).toBe(true)
    expect(errors).toEqual([failure])
    expect(bytes.now).toBe(0)
  })

  it('are ended, and pauses between them, when all is given up', async () => {
    const signals: AbortSignal[] = []
    const { sender, post, calls, bytes, errors } = make((_request, signal) => {
      signals.push(signal)
      return new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => reject(new Error('aborted')))
      })
    })
    const sent = failureOf(sender.add(record('0'), true) ?? Promise.resolve())
    await settle()
    sender.failAll(failure)
    expect(signals.map(({ aborted }) => aborted)).toEqual([true])
    await settle()
    expect(sender.isEmpty).toBe(true)
    expect(await sent).toBe(failure)
    expect(errors).toEqual([])
    expect(bytes.now).toBe(0)
    // It can be used again.
    post('1')
    await settle()
    await settle()
    expect(calls).toHaveLength(2)
    sender.failAll(failure)
  })
})

describe('the producer around it', () => {
  it('flushes them, and tells failures of posted ones', async () => {
    const gate = makeGate()
    broker.handlers.Send = async (request) => {
      await gate.wait
      return take(request, (value) =>
        value === 'bad' ? new BrokerError('DELAY_TOO_LONG', 'too long') : undefined,
      )
    }
    const producer = mill.producer()
    const heard: string[] = []
    producer.on('error', ({ code }) => heard.push(code))
    for (const value of ['a', 'bad', 'b']) producer.post(mails, { value, delayMs: 1 })
    let isFlushed = false
    const flushed = producer.flush().finally(() => {
      isFlushed = true
    })
    await expect.poll(() => broker.calls.length).toBe(1)
    expect(isFlushed).toBe(false)
    gate.open()
    expect(await failureOf(flushed)).toMatchObject({
      code: 'DELAY_TOO_LONG',
      details: { failedRecords: 1 },
    })
    expect(heard).toEqual(['DELAY_TOO_LONG'])
    expect(sends.values()).toEqual(['a', 'b'])
    await producer.flush()
  })

  it('does not end a flush before a record that has to be sent again', async () => {
    let refusals = 3
    broker.handlers.Send = (request) =>
      take(request, (value) =>
        value === 'slow' && refusals-- > 0 ? new BrokerError('READ_ONLY', 'a moment') : undefined,
      )
    const producer = mill.producer()
    for (const value of ['slow', 'quick']) producer.post(mails, { value, delayMs: 1 })
    await producer.flush()
    expect(sends.values()).toEqual(['quick', 'slow'])
  })

  it('answers false to post when the buffer is full, and true again when ready', async () => {
    const gate = makeGate()
    broker.handlers.Send = async (request) => {
      await gate.wait
      return take(request)
    }
    // Time stands still, so that nothing but the answers makes room.
    await using still = await connect({ url: broker.url, clock: new FakeClock() })
    const producer = still.producer({ bufferBytes: 4096 })
    let posted = 1
    while (producer.post(mails, { value: 'x'.repeat(500), delayMs: 1 })) posted++
    expect(posted).toBeLessThan(8)
    let isReady = false
    const ready = producer.ready().then(() => {
      isReady = true
      return undefined
    })
    expect(() => {
      for (;;) producer.post(mails, { value: 'x'.repeat(500), delayMs: 1 })
    }).toThrow(/await ready/)
    expect(isReady).toBe(false)
    gate.open()
    await ready
    await producer.flush()
    expect(producer.post(mails, { value: 'x', delayMs: 1 })).toBe(true)
  })

  it('closes when all are answered', async () => {
    const producer = mill.producer()
    const sent = sendMany(producer, 10)
    await producer.close()
    expect(await Promise.all(sent)).toHaveLength(10)
    expect(await failureOf(producer.send(mails, { value: 'a', delayMs: 1 }))).toMatchObject({
      code: 'CLOSED',
    })
  })

  it('fails what is not answered when the client has to close without it', async () => {
    broker.handlers.Send = () => new Promise(() => undefined)
    const producer = mill.producer()
    const failures = sendMany(producer, 3).map(failureOf)
    await expect.poll(() => broker.calls.length).toBe(1)
    await mill.close({ timeoutMs: 20 })
    expect((await Promise.all(failures)).map(({ code }) => code)).toEqual(Array(3).fill('CLOSED'))
  })
})
