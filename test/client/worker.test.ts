import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import {
  type Client,
  connect,
  type Delivery,
  json,
  RejectError,
  ReleaseError,
  RetryError,
  text,
  topic,
  type Worker,
  type WorkerEvent,
} from '../../src/client/index.ts'
import {
  BATCH_HEADER_BYTES,
  BATCH_PREFIX_BYTES,
  lengthAt,
  recordCountAt,
  stampCrc,
} from '../../src/record/batch-header.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import { aBatch } from '../support/batches.ts'
import { FakeWorkServer } from '../support/fake-work-server.ts'

const orders = topic('orders', { value: text })

let server: FakeWorkServer
let mill: Client

beforeEach(async () => {
  server = await FakeWorkServer.start()
  mill = await connect(server.url)
})

afterEach(async () => {
  server.release()
  await mill.close({ timeoutMs: 1000 })
  await server[Symbol.asyncDispose]()
})

/** Values `0` to `count - 1`. */
function numbered(count: number): string[] {
  return Array.from({ length: count }, (_, i) => String(i))
}

/** The batch without the records that have other deltas, as compaction leaves it. */
function withGaps(batch: Uint8Array, deltas: readonly number[]): Uint8Array {
  const cursor = new RecordCursor()
  cursor.reset(batch, 0)
  const parts = [batch.subarray(0, BATCH_HEADER_BYTES)]
  while (cursor.next()) {
    if (!deltas.includes(cursor.offsetDelta)) continue
    parts.push(batch.subarray(cursor.recordStart, cursor.recordEnd))
  }
  const bytes = Buffer.concat(parts)
  bytes.writeInt32BE(bytes.length - BATCH_PREFIX_BYTES, lengthAt)
  bytes.writeInt32BE(deltas.length, recordCountAt)
  stampCrc(bytes, 0)
  return bytes
}

/** A handler that waits until it is told to go on, for each of its jobs. */
class Gates {
  readonly open: Map<string, (error?: Error) => void> = new Map()
  readonly signals: Map<string, AbortSignal> = new Map()

  readonly handler = (
    job: Delivery<string>,
    { signal }: { readonly signal: AbortSignal },
  ): Promise<void> => {
    const name = job.value ?? ''
    this.signals.set(name, signal)
    return new Promise((resolve, reject) => {
      this.open.set(name, (error) => (error === undefined ? resolve() : reject(error)))
    })
  }

  pass(name: string, error?: Error): void {
    const open = this.open.get(name)
    if (open === undefined) throw new Error(`${name} is not being handled`)
    this.open.delete(name)
    open(error)
  }
}

function collect<V, R>(worker: Worker<V, R>): WorkerEvent<V, R>[] {
  const events: WorkerEvent<V, R>[] = []
  const types = [
    'completed',
    'failed',
    'retrying',
    'released',
    'stalled',
    'dead',
    'throttled',
    'drained',
  ] as const
  for (const type of types) worker.on(type, (event) => events.push(event))
  return events
}

const until = <T>(check: () => T): Promise<T> => vi.waitFor(check, { timeout: 5000, interval: 2 })

describe('a worker', () => {
  it('handles every record once and accepts what its handler returns from', async () => {
    server.add(numbered(1000))
    const seen: string[] = []
    const worker = mill.worker(orders, { group: 'billing', concurrency: 50 }, async (job) => {
      await Promise.resolve()
      seen.push(job.value ?? '')
    })
    await until(() => expect(server.countOf('done')).toBe(1000))
    expect(seen.toSorted()).toEqual(numbered(1000).toSorted())
    await worker.close()
    expect(server.stream.hasEnded).toBe(true)
  })

  it('shows what it knows of a record', async () => {
    const header = { key: 'job.type', value: Buffer.from('invoice') }
    server.add(['a'], { key: 'customer-1', headers: [header] })
    const jobs: Delivery<string>[] = []
    mill.worker(orders, { group: 'billing' }, (job) => {
      jobs.push(job)
      if (job.deliveryCount === 1) throw new Error('not yet')
    })
    await until(() => expect(jobs).toHaveLength(2))
    expect(jobs[0]).toMatchObject({
      topic: 'orders',
      partition: 0,
      offset: 0,
      key: 'customer-1',
      value: 'a',
      timestamp: 1_767_225_600_000,
      deliveryCount: 1,
      failureCount: 0,
      redelivered: false,
      type: 'invoice',
      leaseExpiresAt: 1_800_000_030_000,
    })
    expect(jobs[0]?.headers['job.type']).toBe('invoice')
    expect(jobs[1]).toMatchObject({ deliveryCount: 2, failureCount: 1, redelivered: true })
  })

  it('never runs more handlers than its concurrency says, nor asks for more than it holds', async () => {
    server.add(numbered(100))
    const gates = new Gates()
    const worker = mill.worker(orders, { group: 'g', concurrency: 3, prefetch: 4 }, gates.handler)
    await until(() => expect(gates.open.size).toBe(3))
    await until(() => expect(server.countOf('leased')).toBe(7))
    expect(worker.active).toBe(3)
    gates.pass('1')
    await until(() => expect([...gates.open.keys()]).toEqual(['0', '2', '3']))
    gates.pass('0')
    gates.pass('2')
    gates.pass('3')
    await until(() => expect(server.countOf('done')).toBe(4))
    await until(() => expect(server.countOf('leased')).toBe(7))
    expect(worker.active).toBe(3)
  })

  it('makes one item of neighbours that are accepted together', async () => {
    server.isHeld = true
    server.add(numbered(100))
    mill.worker(orders, { group: 'g', concurrency: 100 }, () => undefined)
    await until(() => expect(server.credits).toEqual([200]))
    server.isHeld = false
    server.pump()
    await until(() => expect(server.countOf('done')).toBe(100))
    expect(server.items).toMatchObject([{ first: 0, end: 100, verdict: 'accept' }])
  })

  it('makes one item of neighbours that are accepted in one turn, in whatever order', async () => {
    server.add(numbered(4))
    const gates = new Gates()
    mill.worker(orders, { group: 'g', concurrency: 4 }, gates.handler)
    await until(() => expect(gates.open.size).toBe(4))
    for (const name of ['3', '0', '1']) gates.pass(name)
    await until(() => expect(server.countOf('done')).toBe(3))
    expect(server.acks).toMatchObject([
      [
        { first: 0, end: 2 },
        { first: 3, end: 4 },
      ],
    ])
  })

  it('tells the broker of room once for many records', async () => {
    server.add(numbered(1000))
    const gates = new Gates()
    mill.worker(orders, { group: 'g', concurrency: 100, prefetch: 100 }, gates.handler)
    await until(() => expect(gates.open.size).toBe(100))
    for (let i = 0; i < 49; i++) {
      gates.pass(String(i))
      await until(() => expect(server.countOf('done')).toBe(i + 1))
    }
    expect(server.credits).toEqual([200])
    gates.pass('49')
    await until(() => expect(server.credits).toEqual([200, 50]))
  })

  it('acknowledges what compaction has left, with the gaps between', async () => {
    server.isHeld = true
    const seen: unknown[] = []
    const worker = mill.worker(orders, { group: 'g' }, (job) => {
      seen.push([job.offset, job.value])
    })
    await until(() => expect(server.credits).toEqual([2]))
    const batch = withGaps(aBatch({ records: 10, baseOffset: 100 }), [2, 6, 8])
    const delivery = server.deliveryOf(batch, 101, 108)
    server.stream.say({ deliveries: [delivery] })
    await until(() => expect(server.items).not.toHaveLength(0))
    expect(seen).toEqual([
      [102, 'value-2'],
      [106, 'value-6'],
    ])
    expect(server.items).toMatchObject([{ first: 101, end: 108, verdict: 'accept' }])
    // The two were what it had asked for: it asks for two more, not for seven.
    await until(() => expect(server.credits).toEqual([2, 2]))
    await worker.close()
  })

  it('rejects what cannot be read at all, and goes on', async () => {
    const seen: unknown[] = []
    mill.worker(orders, { group: 'g', concurrency: 10 }, (job) => {
      seen.push(job.value)
    })
    await until(() => expect(server.credits).toHaveLength(1))
    const batch = aBatch({ records: 3, baseOffset: 100 })
    batch.fill(0xff, batch.length - 8)
    const broken = server.deliveryOf(batch, 100, 103)
    const short = server.deliveryOf(aBatch({ baseOffset: 200 }).subarray(0, 30), 200, 201)
    server.stream.say({ deliveries: [broken, short] })
    server.add(['fine'])
    await until(() => expect(server.countOf('done')).toBe(1))
    await until(() => expect(server.items).toHaveLength(4))
    expect(seen).toEqual(['value-0', 'value-1', 'fine'])
    const items = server.items.map(({ first, end, verdict, error }) => [
      first,
      end,
      verdict,
      error?.type,
    ])
    expect(items).toEqual(
      expect.arrayContaining([
        [100, 102, 'accept', undefined],
        [102, 103, 'reject', 'INVALID_RECORD'],
        [200, 201, 'reject', 'CORRUPT_BATCH'],
      ]),
    )
  })

  it('leaves few messages of verdicts unanswered, however long the broker takes', async () => {
    server.onAcks = () => ({ kind: 'hold' })
    server.add(numbered(200))
    mill.worker(orders, { group: 'g', concurrency: 1 }, () => Promise.resolve())
    await until(() => expect(server.records.every(({ deliveries }) => deliveries > 0)).toBe(true))
    expect(server.acks.length).toBeLessThanOrEqual(8)
    server.onAcks = () => ({ kind: 'take' })
    server.release()
    await until(() => expect(server.countOf('done')).toBe(200))
  })

  it('shows a redriven record where it was first, and acknowledges it where it came from', async () => {
    server.topic = '__retry.billing.orders'
    const headers = Object.entries({
      'dlq.topic': 'orders',
      'dlq.partition': '4',
      'dlq.offset': '91',
    }).map(([key, value]) => ({ key, value: Buffer.from(value) }))
    server.add(['again'], { headers })
    const jobs: Delivery<string>[] = []
    mill.worker(orders, { group: 'billing' }, (job) => {
      jobs.push(job)
    })
    await until(() => expect(server.countOf('done')).toBe(1))
    expect(jobs).toMatchObject([{ topic: 'orders', partition: 4, offset: 91 }])
    expect(server.items).toMatchObject([{ first: 0, end: 1 }])
  })
})

describe('what a handler throws', () => {
  async function verdictOf(thrown: unknown, options: object = {}): Promise<object | undefined> {
    server.add(['a'])
    const worker = mill.worker(orders, { group: 'g', ...options }, () => Promise.reject(thrown))
    await until(() => expect(server.items.length).toBeGreaterThan(0))
    server.isHeld = true
    await worker.close()
    return server.items[0]
  }

  it('is a retry, with its name, its message and its stack', async () => {
    const error = new TypeError('no such customer')
    expect(await verdictOf(error)).toMatchObject({
      verdict: 'retry',
      delayMs: undefined,
      error: { type: 'TypeError', message: 'no such customer', stack: error.stack },
    })
  })

  it('is named by its code, if it has one', async () => {
    const error = Object.assign(new Error('connection refused'), { code: 'ECONNREFUSED' })
    expect(await verdictOf(error)).toMatchObject({ error: { type: 'ECONNREFUSED' } })
  })

  it('need not be an Error', async () => {
    expect(await verdictOf({ reason: 'full' })).toMatchObject({
      verdict: 'retry',
      error: { type: 'object', message: '{"reason":"full"}', stack: '' },
    })
  })

  it('is cut to what a broker keeps', async () => {
    const error = new Error('m'.repeat(10_000))
    error.stack = 's'.repeat(100_000)
    const item = await verdictOf(error)
    expect(item).toMatchObject({
      error: { message: 'm'.repeat(2048), stack: 's'.repeat(8192) },
    })
  })

  it('is a retry after a time of its own when it is a RetryError', async () => {
    const error = new RetryError('busy', { delayMs: 1500 })
    expect(await verdictOf(error)).toMatchObject({ verdict: 'retry', delayMs: 1500 })
  })

  it('is a release, without an error, when it is a ReleaseError', async () => {
    const error = new ReleaseError({ delayMs: 10_000, pauseGroupMs: 500 })
    expect(await verdictOf(error)).toMatchObject({
      verdict: 'release',
      delayMs: 10_000,
      pauseGroupMs: 500,
      error: undefined,
    })
  })

  it('is a rejection when it is a RejectError, of a subclass, or of another copy of the package', async () => {
    class BadAddress extends RejectError {
      override readonly name = 'BadAddress'
    }
    expect(await verdictOf(new BadAddress('no such street'))).toMatchObject({ verdict: 'reject' })
    const foreign = Object.assign(new Error('no'), { name: 'RejectError' })
    server.acks.length = 0
    server.isHeld = false
    expect(await verdictOf(foreign)).toMatchObject({ verdict: 'reject' })
  })

  it('is a rejection when isRetryable says that it will not pass', async () => {
    const isRetryable = (error: unknown): boolean => !(error instanceof RangeError)
    expect(await verdictOf(new RangeError('never'), { isRetryable })).toMatchObject({
      verdict: 'reject',
      error: { type: 'RangeError' },
    })
  })

  it('is bounded to the delays that a broker takes', async () => {
    const error = new RetryError('much later', { delayMs: Infinity })
    expect(await verdictOf(error)).toMatchObject({ delayMs: 30 * 86_400_000 })
  })
})

describe('a value that cannot be decoded', () => {
  it('is rejected, and the worker goes on', async () => {
    server.add(['{"n":1}', 'nonsense', '{"n":3}'])
    const seen: (number | undefined)[] = []
    const numbers = topic('orders', { value: json<{ n: number }>() })
    mill.worker(numbers, { group: 'g' }, (job) => {
      seen.push(job.value?.n)
    })
    await until(() => expect(server.countOf('done')).toBe(2))
    expect(seen).toEqual([1, 3])
    expect(server.records[1]).toMatchObject({
      state: 'dead',
      item: { verdict: 'reject', error: { type: 'INVALID_RECORD' } },
    })
  })
})

describe('a verdict by hand', () => {
  async function first(): Promise<{ job: Delivery<string>; gates: Gates }> {
    server.add(['a'])
    const gates = new Gates()
    const jobs: Delivery<string>[] = []
    mill.worker(orders, { group: 'g' }, (job, context) => {
      jobs.push(job)
      return gates.handler(job, context)
    })
    await until(() => expect(jobs).toHaveLength(1))
    return { job: jobs[0] as Delivery<string>, gates }
  }

  it('is durable when it resolves, and stays whatever the handler does then', async () => {
    server.onAcks = () => ({ kind: 'hold' })
    const { job, gates } = await first()
    let isDone = false
    const accepting = job.accept().then(() => (isDone = true))
    await until(() => expect(server.acks).toHaveLength(1))
    expect(isDone).toBe(false)
    server.release()
    await accepting
    gates.pass('a', new Error('too late'))
    await until(() => expect(server.countOf('done')).toBe(1))
    expect(server.items).toHaveLength(1)
  })

  it('may be given once: the same again is the same promise, another is refused', async () => {
    const { job } = await first()
    const accepting = job.accept()
    expect(job.accept()).toBe(accepting)
    await expect(job.reject(new Error('no'))).rejects.toMatchObject({
      code: 'INVALID_REQUEST',
      details: { verdict: 'accept', actual: 'reject' },
    })
    await accepting
    await expect(job.renew()).rejects.toMatchObject({ code: 'INVALID_REQUEST' })
  })

  it('says when, and why', async () => {
    const { job } = await first()
    await job.retry(new Error('busy'), { delayMs: 700 })
    expect(server.items[0]).toMatchObject({
      verdict: 'retry',
      delayMs: 700,
      error: { message: 'busy' },
    })
  })

  it('refuses delays that no broker takes', async () => {
    const { job } = await first()
    for (const delayMs of [-1, 1.5, Number.NaN, 31 * 86_400_000]) {
      await expect(job.release({ delayMs })).rejects.toMatchObject({
        code: 'INVALID_DELAY',
        details: { field: 'delayMs' },
      })
    }
    await expect(job.release({ pauseGroupMs: 3_600_001 })).rejects.toMatchObject({
      code: 'INVALID_DELAY',
      details: { field: 'pauseGroupMs' },
    })
    await expect(job.renew(10)).rejects.toMatchObject({ code: 'INVALID_DELAY' })
    await job.release()
  })

  it('after the handler has returned is that of the return', async () => {
    const { job, gates } = await first()
    gates.pass('a')
    await until(() => expect(server.countOf('done')).toBe(1))
    await job.accept()
    await expect(job.release()).rejects.toMatchObject({ code: 'INVALID_REQUEST' })
  })

  it('is told when it was refused, and need not be awaited', async () => {
    const { job } = await first()
    server.expire(0, { tell: false })
    server.isHeld = true
    const accepting = job.accept()
    await expect(accepting).rejects.toMatchObject({ code: 'LEASE_LOST' })
    await expect(job.retry()).rejects.toMatchObject({ code: 'INVALID_REQUEST' })
  })

  it('renews its lease, for a time of its own', async () => {
    const { job } = await first()
    await job.renew(60_000)
    expect(server.acks.flat()).toMatchObject([{ verdict: 'renew', delayMs: 60_000 }])
    expect(job.leaseExpiresAt).toBeGreaterThan(1_800_000_030_000)
    await job.accept()
  })
})

describe('events', () => {
  it('tell what became of each record, once that is durable', async () => {
    server.attempts = 2
    server.add(['fine', 'bad', 'slow', 'poor'])
    server.onAcks = () => ({ kind: 'hold' })
    const worker = mill.worker<string, string>(orders, { group: 'g', concurrency: 4 }, (job) => {
      if (job.value === 'bad') throw new RejectError('bad')
      if (job.value === 'slow' && job.deliveryCount === 1) throw new ReleaseError()
      if (job.value === 'poor') throw new Error('poor')
      return `did ${job.value}`
    })
    const events = collect(worker)
    await until(() => expect(server.acks.length).toBeGreaterThan(0))
    expect(new Set(events.map(({ type }) => type))).toEqual(new Set(['failed']))
    server.onAcks = () => ({ kind: 'take' })
    server.release()
    await until(() => expect(events.some(({ type }) => type === 'drained')).toBe(true))
    const told = events.flatMap((event) =>
      'job' in event ? [`${event.job.value}-${event.job.deliveryCount} ${event.type}`] : [],
    )
    expect(told.toSorted()).toEqual([
      'bad-1 dead',
      'bad-1 failed',
      'fine-1 completed',
      'poor-1 failed',
      'poor-1 retrying',
      'poor-2 dead',
      'poor-2 failed',
      'slow-1 released',
      'slow-2 completed',
    ])
    expect(events.find(({ type }) => type === 'completed')).toMatchObject({ result: 'did fine' })
  })

  it('come to several iterators, which end with the worker', async () => {
    const worker = mill.worker(orders, { group: 'g' }, () => undefined)
    const read = async (): Promise<string[]> => {
      const types: string[] = []
      for await (const { type } of worker.events()) types.push(type)
      return types
    }
    const reading = [read(), read()]
    server.add(['a', 'b'])
    await until(() => expect(server.countOf('done')).toBe(2))
    await worker.close()
    expect(await Promise.all(reading)).toEqual([
      ['completed', 'completed'],
      ['completed', 'completed'],
    ])
  })

  it('that are not taken are lost beyond 10 000, and counted', async () => {
    server.add(numbered(10_010))
    const worker = mill.worker(orders, { group: 'g', concurrency: 1000 }, () => undefined)
    const events = worker.events()
    const first = events.next()
    await until(() => expect(server.countOf('done')).toBe(10_010))
    await until(() => expect(events.dropped).toBe(9))
    await first
    const next = await events.next()
    expect(next.value).toMatchObject({ type: 'completed', job: { offset: 10 } })
    await events.return?.()
    expect(await events.next()).toEqual({ done: true, value: undefined })
  })

  it('say that the group is throttled', async () => {
    const worker = mill.worker(orders, { group: 'g' }, () => undefined)
    const events = collect(worker)
    await worker.ready()
    const notice = { windowFull: false, paused: false, dlqUnavailable: false }
    server.stream.say({ notice: { ...notice, throttledUntilMs: 1_800_000_000_000 } })
    await until(() => expect(events).toEqual([{ type: 'throttled', untilMs: 1_800_000_000_000 }]))
  })

  it('go on when a listener throws', async () => {
    server.add(['a', 'b'])
    const worker = mill.worker(orders, { group: 'g' }, () => undefined)
    worker.on('completed', () => {
      throw new Error('listener')
    })
    const seen: unknown[] = []
    const stop = worker.on('completed', ({ job }) => seen.push(job.value))
    await until(() => expect(seen).toEqual(['a', 'b']))
    stop()
    server.add(['c'])
    await until(() => expect(server.countOf('done')).toBe(3))
    expect(seen).toEqual(['a', 'b'])
  })
})

describe('pause, drain and close', () => {
  it('pause gives back what was only prefetched, and resolves when the rest is settled', async () => {
    server.add(numbered(20))
    const gates = new Gates()
    const worker = mill.worker(orders, { group: 'g', concurrency: 2, prefetch: 8 }, gates.handler)
    await until(() => expect(server.countOf('leased')).toBe(10))
    // Before they have come to the worker, none of them has been begun, and all would go back.
    await until(() => expect(worker.active).toBe(2))
    let isPaused = false
    const pausing = worker.pause().then(() => (isPaused = true))
    await until(() => expect(server.countOf('leased')).toBe(2))
    expect(isPaused).toBe(false)
    gates.pass('0')
    gates.pass('1')
    await pausing
    expect(server.countOf('done')).toBe(2)
    expect(server.countOf('available')).toBe(18)
    worker.resume()
    await until(() => expect(worker.active).toBe(2))
  })

  it('what is on its way when the worker pauses goes back', async () => {
    const seen: unknown[] = []
    const worker = mill.worker(orders, { group: 'g', concurrency: 5, prefetch: 0 }, (job) => {
      seen.push(job.value)
    })
    await until(() => expect(server.credits).toEqual([5]))
    server.add(numbered(3))
    expect(server.countOf('leased')).toBe(3)
    await worker.pause()
    await until(() => expect(server.countOf('available')).toBe(3))
    expect(seen).toEqual([])
    worker.resume()
    await until(() => expect(server.countOf('done')).toBe(3))
    await until(() => expect(server.stream.records).toBe(5))
  })

  it('a pause takes back the credit that was not used, so that nothing more comes', async () => {
    const worker = mill.worker(orders, { group: 'g', concurrency: 5, prefetch: 3 }, () => undefined)
    await until(() => expect(server.stream.records).toBe(8))
    await worker.pause()
    await until(() => expect(server.stream.records).toBe(0))
    worker.resume()
    await until(() => expect(server.stream.records).toBe(8))
  })

  it('a worker that begins paused takes nothing until it is resumed', async () => {
    server.add(['a'])
    const worker = mill.worker(orders, { group: 'g', paused: true }, () => undefined)
    await worker.ready()
    expect(server.credits).toEqual([])
    worker.resume()
    await until(() => expect(server.countOf('done')).toBe(1))
  })

  it('drain resolves when nothing is in hand and nothing comes', async () => {
    server.add(numbered(30))
    const worker = mill.worker(orders, { group: 'g', concurrency: 4 }, async () => {
      await new Promise((resolve) => {
        setImmediate(resolve)
      })
    })
    await worker.drain()
    expect(server.countOf('done')).toBe(30)
    server.add(['one more'])
    await worker.drain()
    expect(server.countOf('done')).toBe(31)
  })

  it('close waits for handlers, then says what they came to, then leaves', async () => {
    server.add(['a', 'b', 'c'])
    const gates = new Gates()
    const worker = mill.worker(orders, { group: 'g', concurrency: 1, prefetch: 1 }, gates.handler)
    await until(() => expect(gates.open.size).toBe(1))
    const closing = worker.close()
    await until(() => expect(server.countOf('leased')).toBe(1))
    expect(server.stream.hasEnded).toBe(false)
    gates.pass('a')
    await closing
    await worker.closed
    expect(server.records.map(({ state }) => state)).toEqual(['done', 'available', 'available'])
    expect(server.stream.hasEnded).toBe(true)
    expect(gates.open.size).toBe(0)
  })

  it('close aborts handlers that take too long, and releases what they had', async () => {
    server.add(['a'])
    let signal: AbortSignal | undefined
    const worker = mill.worker(orders, { group: 'g' }, (_job, context) => {
      signal = context.signal
      return new Promise((_, reject) => {
        context.signal.addEventListener('abort', () => reject(new Error('given up')))
      })
    })
    const events = collect(worker)
    await until(() => expect(signal).toBeDefined())
    await worker.close({ timeoutMs: 10 })
    expect(signal?.aborted).toBe(true)
    expect(signal?.reason).toMatchObject({ code: 'CLOSED' })
    expect(server.items).toMatchObject([{ verdict: 'release' }])
    expect(events.map(({ type }) => type)).toEqual(['released'])
  })

  it('closes when its signal aborts, and when the client is closed', async () => {
    const stop = new AbortController()
    const worker = mill.worker(orders, { group: 'g', signal: stop.signal }, () => undefined)
    await worker.ready()
    stop.abort()
    await worker.closed
    expect(server.stream.hasEnded).toBe(true)
    const other = mill.worker(orders, { group: 'g' }, () => undefined)
    await other.ready()
    await mill.close()
    await other.closed
    expect(server.stream.hasEnded).toBe(true)
  })

  it('a client that is closed lets handlers finish', async () => {
    server.add(['a'])
    const gates = new Gates()
    mill.worker(orders, { group: 'g' }, gates.handler)
    await until(() => expect(gates.open.size).toBe(1))
    const closing = mill.close()
    await until(() => expect(() => mill.producer()).toThrow())
    gates.pass('a')
    await closing
    expect(server.countOf('done')).toBe(1)
    expect(server.stream.hasEnded).toBe(true)
  })

  it('can be closed before the broker has answered, and when there is none', async () => {
    server.onStart = () => 'silent'
    const worker = mill.worker(orders, { group: 'g' }, () => undefined)
    await worker.close()
    await expect(worker.ready()).rejects.toMatchObject({ code: 'CLOSED' })
    server.stop()
    const other = mill.worker(orders, { group: 'g' }, () => undefined)
    await other.close()
  })
})

describe('options', () => {
  it('become settings of the group by their dotted names', async () => {
    const worker = mill.worker(
      orders,
      {
        group: 'mailer',
        leaseMs: 45_000,
        attempts: 7,
        backoff: { type: 'exponential', delayMs: 500, multiplier: 3, maxMs: 60_000, jitter: 0.5 },
        order: 'key',
        concurrencyMax: 200,
        rateLimit: { max: 100, perMs: 60_000, burst: 10, key: 'tenant' },
        deadLetters: { topic: 'mail.failed' },
        start: 'earliest',
        settings: { 'order.on.failure': 'skip' },
      },
      () => undefined,
    )
    await worker.ready()
    expect(server.starts[0]).toMatchObject({
      group: 'mailer',
      topic: 'orders',
      memberId: '',
      leaseMs: 45_000,
    })
    const settings = server.starts[0]?.settings.map(({ name, value }) => [name, value]) ?? []
    expect(Object.fromEntries(settings)).toEqual({
      'retry.max.attempts': '7',
      'retry.backoff.type': 'exponential',
      'retry.backoff.initial.ms': '500',
      'retry.backoff.multiplier': '3',
      'retry.backoff.max.ms': '60000',
      'retry.backoff.jitter': '0.5',
      order: 'key',
      'concurrency.max': '200',
      'rate.max': '100',
      'rate.duration.ms': '60000',
      'rate.burst': '10',
      'rate.key': 'tenant',
      'dlq.enable': 'true',
      'dlq.topic': 'mail.failed',
      'queue.start': 'earliest',
      'order.on.failure': 'skip',
    })
  })

  it.each([
    ['concurrency', { concurrency: 0 }],
    ['concurrency', { concurrency: 1.5 }],
    ['prefetch', { prefetch: -1 }],
    ['leaseMs', { leaseMs: 999 }],
    ['threads', { threads: 0 }],
    ['attempts', { attempts: 1001 }],
    ['backoff.delaysMs', { backoff: { type: 'list', delaysMs: [] } }],
    ['backoff.type', { backoff: { type: 'quadratic', delayMs: 1 } }],
    ['backoff.multiplier', { backoff: { type: 'exponential', delayMs: 1, multiplier: 0 } }],
    ['order', { order: 'random' }],
    ['rateLimit.max', { rateLimit: { max: 0, perMs: 1 } }],
    ['start', { start: 'yesterday' }],
    ['settings.retry.max.attempts', { attempts: 3, settings: { 'retry.max.attempts': '4' } }],
  ])('name the one that cannot be: %s', (field, options) => {
    const start = (): unknown =>
      mill.worker(orders, { group: 'g', ...(options as object) }, () => undefined)
    expect(start).toThrow(expect.objectContaining({ code: 'INVALID_REQUEST' }))
    expect(start).toThrow(
      expect.objectContaining({ details: expect.objectContaining({ field }) as unknown }),
    )
  })

  it('refuse groups and topics that cannot be', () => {
    expect(() => mill.worker(orders, { group: '__own' }, () => undefined)).toThrow(
      expect.objectContaining({ code: 'INVALID_GROUP_ID' }),
    )
    const nowhere = topic('no/where', { value: text })
    expect(() => mill.worker(nowhere, { group: 'g' }, () => undefined)).toThrow(
      expect.objectContaining({ code: 'INVALID_TOPIC_NAME' }),
    )
  })
})
