import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { array, assert, asyncProperty, constantFrom, integer, record as fcRecord } from 'fast-check'
import {
  type Client,
  connect,
  type Delivery,
  type MillraceError,
  text,
  topic,
  type Worker,
  type WorkerEvent,
} from '../../src/client/index.ts'
import type { ErrorCode } from '../../src/common/errors.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { type AckAction, FakeWorkServer } from '../support/fake-work-server.ts'

const orders = topic('orders', { value: text })

let server: FakeWorkServer
let clock: FakeClock
let mill: Client
let told: string[]

beforeEach(async () => {
  server = await FakeWorkServer.start()
  server.leaseMs = 10_000
  clock = new FakeClock()
  told = []
  const tell = (message: string): void => {
    told.push(message)
  }
  const logger = { debug: () => undefined, info: tell, warn: tell, error: tell }
  mill = await connect({ url: server.url, clock, logger })
})

afterEach(async () => {
  server.release()
  // Its patience is the fake clock's.
  const closing = mill.close({ timeoutMs: 1000 })
  let isClosed = false
  void closing.finally(() => (isClosed = true))
  await until(async () => {
    await clock.advance(1000)
    expect(isClosed).toBe(true)
  })
  await server[Symbol.asyncDispose]()
})

const until = <T>(check: () => Promise<T> | T): Promise<T> =>
  vi.waitFor(check, { timeout: 10_000, interval: 2 })

/** Lets time go on until `check` holds: backoffs are the fake clock's, the network's time is real. */
function passUntil(check: () => void, stepMs = 50): Promise<void> {
  return until(async () => {
    await clock.advance(stepMs)
    check()
  })
}

interface InHand {
  readonly job: Delivery<string>
  readonly signal: AbortSignal
  readonly pass: (error?: Error) => void
}

/** A worker whose handlers wait until they are told to go on. */
function startHolding(options: { concurrency?: number; prefetch?: number } = {}): {
  worker: Worker<string>
  hands: InHand[]
  events: WorkerEvent<string>[]
} {
  const hands: InHand[] = []
  const worker = mill.worker(orders, { group: 'g', prefetch: 0, ...options }, (job, { signal }) => {
    return new Promise<void>((resolve, reject) => {
      const pass = (error?: Error): void => (error === undefined ? resolve() : reject(error))
      hands.push({ job, signal, pass })
    })
  })
  const events: WorkerEvent<string>[] = []
  for (const type of ['completed', 'failed', 'stalled', 'retrying', 'released'] as const) {
    worker.on(type, (event) => events.push(event))
  }
  return { worker, hands, events }
}

function hand(hands: readonly InHand[], index = 0): InHand {
  const found = hands[index]
  if (found === undefined) throw new Error(`handler ${index} is not under way`)
  return found
}

function codeOf(signal: AbortSignal): ErrorCode {
  return (signal.reason as MillraceError).code
}

function renewalsOf(offset: number): number {
  return server.leaseOf(offset).renewals
}

describe('a lease', () => {
  it('is renewed at half its time, for as long as its handler takes', async () => {
    server.add(['a'])
    const { hands } = startHolding()
    await until(() => expect(hands).toHaveLength(1))
    const { job, signal, pass } = hand(hands)
    await clock.advance(4_900)
    expect(renewalsOf(0)).toBe(0)
    for (let round = 1; round <= 10; round++) {
      const expiresAt = job.leaseExpiresAt
      await clock.advance(round === 1 ? 100 : 5_000)
      await until(() => expect(renewalsOf(0)).toBe(round))
      await until(() => expect(job.leaseExpiresAt).toBe(expiresAt + 5_000))
    }
    expect(signal.aborted).toBe(false)
    pass()
    await until(() => expect(server.countOf('done')).toBe(1))
  })

  it('is renewed together with those that were given out about the same time, prefetched ones too', async () => {
    server.runRecords = 1
    server.add(['a', 'b', 'c'])
    const { hands } = startHolding({ concurrency: 1, prefetch: 2 })
    await until(() => expect(server.countOf('leased')).toBe(3))
    await until(() => expect(hands).toHaveLength(1))
    await clock.advance(5_000)
    await until(() => expect(server.acks).toHaveLength(1))
    expect(server.acks[0]).toMatchObject([
      { verdict: 'renew' },
      { verdict: 'renew' },
      { verdict: 'renew' },
    ])
  })

  it('is renewed early when another one is due', async () => {
    const { hands } = startHolding({ concurrency: 2 })
    server.add(['a'])
    await until(() => expect(hands).toHaveLength(1))
    await clock.advance(900)
    server.add(['b'])
    await until(() => expect(hands).toHaveLength(2))
    await clock.advance(4_100)
    await until(() => expect(server.acks).toHaveLength(1))
    expect(server.acks[0]).toHaveLength(2)
  })

  it('is not renewed once its records are settled', async () => {
    server.add(['a'])
    const { hands } = startHolding()
    await until(() => expect(hands).toHaveLength(1))
    hand(hands).pass()
    await until(() => expect(server.countOf('done')).toBe(1))
    await clock.advance(60_000)
    expect(server.acks).toHaveLength(1)
  })

  it('that is lost aborts the signal, and what the handler returns then is ignored', async () => {
    server.add(['a'])
    const { hands, events } = startHolding()
    await until(() => expect(hands).toHaveLength(1))
    const { signal, job, pass } = hand(hands)
    server.isHeld = true
    server.expire(0)
    await until(() => expect(signal.aborted).toBe(true))
    expect(codeOf(signal)).toBe('LEASE_LOST')
    expect(events).toMatchObject([{ type: 'stalled', job: { value: 'a' } }])
    await expect(job.accept()).rejects.toMatchObject({ code: 'LEASE_LOST' })
    await expect(job.renew()).rejects.toMatchObject({ code: 'LEASE_LOST' })
    pass()
    server.isHeld = false
    server.pump()
    await until(() => expect(hands).toHaveLength(2))
    expect(server.acks).toEqual([])
    hand(hands, 1).pass()
    await until(() => expect(server.countOf('done')).toBe(1))
    await until(() => expect(events.at(-1)).toMatchObject({ type: 'completed' }))
    expect(events).toHaveLength(2)
  })

  it('that is lost before its record was begun with is not begun with', async () => {
    server.runRecords = 1
    server.add(['a', 'b', 'c'])
    const { worker, hands } = startHolding({ concurrency: 1, prefetch: 2 })
    await until(() => expect(server.countOf('leased')).toBe(3))
    await until(() => expect(hands).toHaveLength(1))
    server.isHeld = true
    let hasCome = false
    worker.on('throttled', () => (hasCome = true))
    server.expire(1)
    const notice = { windowFull: false, paused: false, dlqUnavailable: false }
    server.stream.say({ notice: { ...notice, throttledUntilMs: 1 } })
    await until(() => expect(hasCome).toBe(true))
    hand(hands).pass()
    await until(() => expect(hands).toHaveLength(2))
    expect(hand(hands, 1).job.value).toBe('c')
  })

  it('that the broker refuses to renew is lost; others of that renewal are not', async () => {
    server.runRecords = 1
    server.add(['a', 'b', 'c'])
    const { hands } = startHolding({ concurrency: 3 })
    await until(() => expect(hands).toHaveLength(3))
    server.isHeld = true
    server.expire(1, { tell: false })
    await clock.advance(5_000)
    await until(() => expect(hand(hands, 1).signal.aborted).toBe(true))
    await until(() => expect(renewalsOf(0)).toBe(1))
    await until(() => expect(renewalsOf(2)).toBe(1))
    expect(hand(hands, 0).signal.aborted).toBe(false)
    expect(hand(hands, 2).signal.aborted).toBe(false)
  })

  it('at its limit aborts the signal, but a handler that ends in time has done its work', async () => {
    server.onRenew = () => 'LEASE_LIMIT_REACHED'
    server.add(['a'])
    const { hands } = startHolding()
    await until(() => expect(hands).toHaveLength(1))
    await clock.advance(5_000)
    const { signal, pass } = hand(hands)
    await until(() => expect(signal.aborted).toBe(true))
    expect(codeOf(signal)).toBe('LEASE_LIMIT_REACHED')
    pass()
    await until(() => expect(server.countOf('done')).toBe(1))
  })

  it('is given up when the broker was not heard of for its whole time', async () => {
    server.add(['a'])
    const { hands, events } = startHolding()
    await until(() => expect(hands).toHaveLength(1))
    const { signal } = hand(hands)
    await clock.advance(5_000)
    await until(() => expect(renewalsOf(0)).toBe(1))
    await until(() => expect(hand(hands).job.leaseExpiresAt).toBe(1_800_000_015_000))
    server.stop()
    await clock.advance(9_900)
    expect(signal.aborted).toBe(false)
    await clock.advance(100)
    expect(codeOf(signal)).toBe('LEASE_LOST')
    expect(events).toMatchObject([{ type: 'stalled' }])
  })
})

describe('a break', () => {
  it('is mended as the same member, and verdicts that never came are said again', async () => {
    server.add(['a', 'b'])
    server.onAcks = (_, arrival) => ({ kind: arrival === 0 ? 'lose' : 'take' })
    const { hands } = startHolding({ concurrency: 2 })
    await until(() => expect(hands).toHaveLength(2))
    hand(hands).pass()
    await passUntil(() => expect(server.countOf('done')).toBe(1))
    expect(server.starts.map(({ memberId }) => memberId)).toEqual(['', 'member-1'])
    expect(hand(hands, 1).signal.aborted).toBe(false)
    hand(hands, 1).pass()
    await passUntil(() => expect(server.countOf('done')).toBe(2))
  })

  it('that loses an answer is no harm: the verdict is said again', async () => {
    server.add(['a'])
    server.onAcks = (_, arrival) => ({ kind: arrival === 0 ? 'break' : 'take' })
    const { hands, events } = startHolding()
    await until(() => expect(hands).toHaveLength(1))
    const { job } = hand(hands)
    const accepting = job.accept()
    hand(hands).pass()
    await passUntil(() => expect(events).toMatchObject([{ type: 'completed' }]))
    await accepting
    expect(server.records[0]?.deliveries).toBe(1)
  })

  it('takes nothing from handlers, and what was prefetched is begun with meanwhile', async () => {
    server.add(['a', 'b'])
    const { hands } = startHolding({ concurrency: 1, prefetch: 1 })
    await until(() => expect(server.countOf('leased')).toBe(2))
    await until(() => expect(hands).toHaveLength(1))
    server.stop()
    hand(hands).pass()
    await until(() => expect(hands).toHaveLength(2))
    hand(hands, 1).pass()
    await server.listen()
    await passUntil(() => expect(server.countOf('done')).toBe(2))
  })

  it('asks which leases are left, and gives up those that are not', async () => {
    server.runRecords = 1
    server.add(['a', 'b'])
    const { hands } = startHolding({ concurrency: 2 })
    await until(() => expect(hands).toHaveLength(2))
    server.isHeld = true
    server.expire(0, { tell: false })
    server.stream.break()
    await passUntil(() => expect(hand(hands, 0).signal.aborted).toBe(true))
    expect(hand(hands, 1).signal.aborted).toBe(false)
    expect(renewalsOf(1)).toBe(1)
    // At once, not when they are due.
    expect(clock.monotonicMs()).toBeLessThan(1_000)
  })

  it('by a restart begins with nothing before it is known which leases are left', async () => {
    server.runRecords = 1
    server.add(['a', 'b'])
    const { hands } = startHolding({ concurrency: 1, prefetch: 1 })
    await until(() => expect(server.countOf('leased')).toBe(2))
    await until(() => expect(hands).toHaveLength(1))
    server.onAcks = () => ({ kind: 'hold' })
    server.stop()
    server.forget()
    await server.listen()
    await passUntil(() => expect(server.acks).toHaveLength(1))
    hand(hands).pass()
    await until(() => expect(server.acks).toHaveLength(2))
    expect(hands).toHaveLength(1)
    server.onAcks = () => ({ kind: 'take' })
    server.release()
    await passUntil(() => expect(hands).toHaveLength(2))
    expect(hand(hands, 1).job.deliveryCount).toBe(2)
  })

  it('by a restart loses all leases: signals abort, and the records come again', async () => {
    server.add(['a', 'b', 'c'])
    const { hands, events } = startHolding({ concurrency: 2, prefetch: 1 })
    await until(() => expect(server.countOf('leased')).toBe(3))
    await until(() => expect(hands).toHaveLength(2))
    server.stop()
    server.forget()
    await server.listen()
    await passUntil(() => expect(hand(hands, 0).signal.aborted).toBe(true))
    expect(codeOf(hand(hands, 1).signal)).toBe('LEASE_LOST')
    expect(events.map(({ type }) => type)).toEqual(['stalled', 'stalled'])
    for (const { pass } of hands.slice(0, 2)) pass()
    for (let index = 2; index < 5; index++) {
      await passUntil(() => expect(hands.length).toBeGreaterThan(index))
      expect(hand(hands, index).job.deliveryCount).toBe(2)
      hand(hands, index).pass()
    }
    await passUntil(() => expect(server.countOf('done')).toBe(3))
    expect(hands).toHaveLength(5)
  })

  it.each(['LOADING', 'BROKER_DRAINING', 'NOT_COORDINATOR', 'STORAGE_FULL'] as const)(
    'with %s passes',
    async (code) => {
      server.onStart = (_, arrival) => (arrival < 3 ? code : undefined)
      server.add(['a'])
      const worker = mill.worker(orders, { group: 'g' }, () => undefined)
      await passUntil(() => expect(server.countOf('done')).toBe(1))
      await worker.ready()
      expect(server.starts).toHaveLength(4)
    },
  )

  it('because another stream has the member makes a new member', async () => {
    const worker = mill.worker(orders, { group: 'g' }, () => undefined)
    await worker.ready()
    server.stream.refuse('UNKNOWN_MEMBER')
    await passUntil(() => expect(server.streams.at(-1)?.memberId).toBe('member-2'))
    expect(server.starts.map(({ memberId }) => memberId)).toEqual(['', ''])
  })

  it('is made when a start is not answered for 30 s', async () => {
    server.onStart = (_, arrival) => (arrival === 0 ? 'silent' : undefined)
    const worker = mill.worker(orders, { group: 'g' }, () => undefined)
    await until(() => expect(server.starts).toHaveLength(1))
    let isReady = false
    void worker.ready().then(() => (isReady = true))
    await passUntil(() => expect(isReady).toBe(true), 1_000)
    expect(clock.monotonicMs()).toBeGreaterThanOrEqual(30_000)
  })
})

describe('an error that does not pass', () => {
  it.each([
    'UNKNOWN_TOPIC',
    'GROUP_TYPE_MISMATCH',
    'INVALID_CONFIG',
    'INVALID_BACKOFF',
    'PERMISSION_DENIED',
  ] as const)('%s ends the worker, and is told', async (code) => {
    server.onStart = () => code
    const worker = mill.worker(orders, { group: 'g' }, () => undefined)
    await expect(worker.ready()).rejects.toMatchObject({ code })
    await expect(worker.closed).rejects.toMatchObject({ code })
    expect(told.at(-1)).toContain('the worker of group g has ended')
    await worker.close()
    await worker.drain()
    worker.resume()
  })

  it('after a while, too: handlers are told, and no verdict is waited for', async () => {
    server.add(['a'])
    const { worker, hands } = startHolding()
    await until(() => expect(hands).toHaveLength(1))
    server.stream.refuse('UNKNOWN_TOPIC')
    await expect(worker.closed).rejects.toMatchObject({ code: 'UNKNOWN_TOPIC' })
    expect(codeOf(hand(hands).signal)).toBe('UNKNOWN_TOPIC')
    await expect(hand(hands).job.accept()).rejects.toMatchObject({ code: 'UNKNOWN_TOPIC' })
  })

  it('GROUP_FULL does when it has not passed for 30 s', async () => {
    server.onStart = () => 'GROUP_FULL'
    const worker = mill.worker(orders, { group: 'g' }, () => undefined)
    let error: unknown
    void worker.closed.catch((failure: unknown) => {
      error = failure
    })
    await passUntil(() => expect(error).toMatchObject({ code: 'GROUP_FULL' }), 1_000)
    expect(clock.monotonicMs()).toBeGreaterThanOrEqual(30_000)
  })
})

describe('a verdict that is refused', () => {
  it('is nothing to those that were said along with it', async () => {
    server.runRecords = 1
    server.add(['a', 'b', 'c'])
    const { hands, events } = startHolding({ concurrency: 3 })
    await until(() => expect(hands).toHaveLength(3))
    server.isHeld = true
    server.expire(1, { tell: false })
    for (const { pass } of hands) pass()
    await until(() => expect(server.countOf('done')).toBe(2))
    expect(server.records.map(({ state }) => state)).toEqual(['done', 'available', 'done'])
    await until(() => expect(events).toHaveLength(3))
    expect(events.map((event) => `${'job' in event ? event.job.value : ''} ${event.type}`)).toEqual(
      expect.arrayContaining(['a completed', 'b stalled', 'c completed']),
    )
  })

  it('for a reason that passes is said again until it is taken', async () => {
    const actions: AckAction[] = [
      { kind: 'refuse', code: 'STORAGE_FULL' },
      { kind: 'refuse', code: 'LOADING' },
    ]
    server.onAcks = () => actions.shift() ?? { kind: 'take' }
    server.add(['a'])
    const { hands } = startHolding()
    await until(() => expect(hands).toHaveLength(1))
    const accepting = hand(hands).job.accept()
    hand(hands).pass()
    await passUntil(() => expect(server.countOf('done')).toBe(1))
    await accepting
    expect(server.acks).toHaveLength(3)
  })

  it('for a reason that does not pass is told to whoever waits for it, and to the logger', async () => {
    server.onAcks = () => ({ kind: 'refuse', code: 'INTERNAL_ERROR' })
    server.add(['a'])
    const { hands } = startHolding()
    await until(() => expect(hands).toHaveLength(1))
    server.isHeld = true
    await expect(hand(hands).job.accept()).rejects.toMatchObject({ code: 'INTERNAL_ERROR' })
    expect(told.at(-1)).toContain('the verdict on offset 0 of orders-0 was not taken')
    // Nothing can be done for it any more: its lease runs out.
    const acks = server.acks.length
    await clock.advance(60_000)
    expect(server.acks).toHaveLength(acks)
  })
})

describe('whatever goes wrong', () => {
  it('no record is lost, and none is handled again after its verdict was taken', async () => {
    const step = fcRecord({
      kind: constantFrom('lose', 'break', 'expire', 'restart', 'cut', 'hold', 'none'),
      at: integer({ min: 1, max: 40 }),
    })
    await assert(
      asyncProperty(
        array(step, { maxLength: 6 }),
        integer({ min: 1, max: 7 }),
        async (steps, run) => {
          const fake = await FakeWorkServer.start()
          fake.runRecords = run
          const own = new FakeClock()
          const client = await connect({ url: fake.url, clock: own })
          const due = steps.toSorted((a, b) => a.at - b.at)
          fake.onAcks = (_, arrival) => {
            const next = due[0]
            if (next === undefined || arrival < next.at) return { kind: 'take' }
            due.shift()
            if (next.kind === 'lose' || next.kind === 'break' || next.kind === 'hold') {
              if (next.kind === 'hold') setImmediate(() => fake.release())
              return { kind: next.kind }
            }
            setImmediate(() => mishap(fake, next.kind))
            return { kind: 'take' }
          }
          fake.add(Array.from({ length: 60 }, (_, i) => String(i)))
          const handledAfter: string[] = []
          const worker = client.worker(orders, { group: 'g', concurrency: 4 }, async (job) => {
            if (fake.records[job.offset]?.state === 'done') handledAfter.push(String(job.value))
            await Promise.resolve()
            if (job.failureCount === 0 && job.offset % 7 === 0) throw new Error('the first time')
          })
          await until(async () => {
            await own.advance(100)
            expect(fake.countOf('done')).toBe(60)
          })
          // A lease that the broker has ended may be begun with before the worker hears of it; a settled one is never given out.
          for (const value of handledAfter)
            expect(fake.records[Number(value)]?.deliveries).toBeGreaterThan(1)
          let isClosed = false
          void worker.close().then(() => (isClosed = true))
          await until(async () => {
            await own.advance(1000)
            expect(isClosed).toBe(true)
          })
          await client.close()
          await fake[Symbol.asyncDispose]()
        },
      ),
      { numRuns: Number(process.env['WORKER_RUNS'] ?? 25) },
    )
  }, 60_000)
})

function mishap(fake: FakeWorkServer, kind: string): void {
  if (kind === 'expire') {
    const leased = fake.records.find(({ state }) => state === 'leased')
    if (leased !== undefined) fake.expire(leased.offset)
    fake.pump()
  } else if (kind === 'restart') {
    fake.forget()
    fake.stream.break()
  } else if (kind === 'cut') {
    fake.stream.break()
  }
}
