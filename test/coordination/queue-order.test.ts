import { array, asyncProperty, assert, constant, integer, oneof, record } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { QueueBench, type TestWorker } from '../support/queue-bench.ts'
import { checkQueueHistory } from '../support/queue-checker.ts'

const ATTEMPTS = 3
const LEASE_MS = 2000
const RUNS = Number(process.env['ORDER_RUNS'] ?? 150)

type Step =
  | { readonly what: 'produce'; readonly keys: readonly number[] }
  | { readonly what: 'join'; readonly credit: number }
  | { readonly what: 'leave' | 'detach' | 'accept' | 'retry' | 'reject'; readonly who: number }
  | { readonly what: 'release'; readonly who: number; readonly delayMs: number }
  | { readonly what: 'wait'; readonly ms: number }
  | { readonly what: 'restart' }

const who = integer({ min: 0, max: 7 })
const aStep = oneof(
  { weight: 3, arbitrary: record({ what: constant('produce' as const), keys: keys() }) },
  {
    weight: 2,
    arbitrary: record({ what: constant('join' as const), credit: integer({ min: 1, max: 9 }) }),
  },
  { weight: 1, arbitrary: record({ what: constant('leave' as const), who }) },
  { weight: 1, arbitrary: record({ what: constant('detach' as const), who }) },
  { weight: 8, arbitrary: record({ what: constant('accept' as const), who }) },
  { weight: 3, arbitrary: record({ what: constant('retry' as const), who }) },
  { weight: 1, arbitrary: record({ what: constant('reject' as const), who }) },
  {
    weight: 2,
    arbitrary: record({
      what: constant('release' as const),
      who,
      delayMs: integer({ min: 0, max: 500 }),
    }),
  },
  {
    weight: 4,
    arbitrary: record({
      what: constant('wait' as const),
      ms: integer({ min: 1, max: LEASE_MS + 500 }),
    }),
  },
  { weight: 1, arbitrary: record({ what: constant('restart' as const) }) },
)

/** Few keys, so that they meet; 0 stands for none. */
function keys(): ReturnType<typeof array<number>> {
  return array(integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 12 })
}

class Scene {
  readonly bench: QueueBench = new QueueBench()
  readonly keys: (string | undefined)[] = []
  readonly #order: 'key' | 'partition'
  readonly #onFailure: 'block' | 'skip'
  #workers: TestWorker[] = []

  constructor(order: 'key' | 'partition', onFailure: 'block' | 'skip') {
    this.#order = order
    this.#onFailure = onFailure
  }

  async start(): Promise<void> {
    await this.bench.start(1, {
      order: this.#order,
      'order.on.failure': this.#onFailure,
      'queue.lease.ms': `${LEASE_MS}ms`,
      'retry.max.attempts': String(ATTEMPTS),
      'retry.backoff.initial.ms': '100ms',
      'dlq.enable': 'false',
    })
  }

  async perform(step: Step): Promise<void> {
    const { bench } = this
    switch (step.what) {
      case 'produce': {
        const named = step.keys.map((key) => (key === 0 ? undefined : `k${key}`))
        this.keys.push(...named)
        await bench.produce({ keys: named })
        break
      }
      case 'join':
        this.#workers.push(await bench.work(step.credit))
        break
      case 'wait':
        await bench.clock.advance(step.ms)
        break
      case 'restart':
        await bench.restart()
        this.#workers = []
        break
      default: {
        const worker = this.#workers[step.who % Math.max(1, this.#workers.length)]
        if (worker !== undefined) await this.#act(worker, step)
      }
    }
    await bench.clock.advance(1)
  }

  async #act(worker: TestWorker, step: Extract<Step, { who: number }>): Promise<void> {
    if (step.what === 'leave' || step.what === 'detach') {
      this.#workers = this.#workers.filter((other) => other !== worker)
      if (step.what === 'leave') await worker.leave()
      else worker.session.detach()
      return
    }
    if (worker.held.length === 0) return
    await worker.say(step.what, step.what === 'release' ? { delayMs: step.delayMs } : {})
  }

  /** Somebody well takes all that is left. */
  async finish(): Promise<void> {
    const { bench } = this
    for (const worker of this.#workers) worker.session.detach()
    const last = await bench.work(5)
    const isDone = async (): Promise<boolean> => {
      const { topics } = await bench.queues.describe('workers')
      const partitions = topics.flatMap((topic) => topic.partitions)
      return partitions.every((one) => one.startOffset === one.highWatermark)
    }
    for (let i = 0; i < 300; i++) {
      while (last.held.length > 0) {
        await last.say('accept')
        await bench.clock.advance(1)
      }
      if (await isDone()) break
      await bench.clock.advance(100)
    }
    expect(await isDone()).toBe(true)
    bench.noteEnds()
  }

  violations(): readonly unknown[] {
    return checkQueueHistory(this.bench.history, {
      maxAttempts: ATTEMPTS,
      order: this.#order,
      orderOnFailure: this.#onFailure,
      keyOf: (_, offset) => this.keys[offset],
      policy: 'drop',
    })
  }
}

describe('order', () => {
  it.each([
    ['key', 'block'],
    ['key', 'skip'],
    ['partition', 'block'],
  ] as const)(
    'by %s is kept through failures, retries, joins, leaves and restarts (on failure: %s)',
    async (order, onFailure) => {
      await assert(
        asyncProperty(array(aStep, { minLength: 5, maxLength: 50 }), async (steps) => {
          const scene = new Scene(order, onFailure)
          await scene.start()
          for (const step of steps) await scene.perform(step)
          await scene.finish()
          expect(scene.violations()).toEqual([])
          await scene.bench.queues.close(new BrokerError('CLOSED', 'over'))
        }),
        { numRuns: RUNS },
      )
    },
    120_000,
  )

  it('lets another key go on while a retry holds its own', async () => {
    const bench = await new QueueBench().start(1, {
      order: 'key',
      'retry.backoff.initial.ms': '1h',
    })
    await bench.produce({ keys: ['a', 'b', 'a', 'b', undefined, undefined] })
    const worker = await bench.work(10)
    expect(worker.offsets).toEqual([0, 1, 4, 5])
    const a = worker.held.find(({ first }) => first === 0)
    const b = worker.held.find(({ first }) => first === 1)
    if (a === undefined || b === undefined) throw new Error('both were delivered')
    await worker.say('retry', { delivery: a })
    await worker.say('accept', { delivery: b })
    await bench.clock.advance(1)
    expect(worker.offsets).toEqual([4, 5, 3])
    expect(await bench.explain(2)).toMatchObject({ blockedByOffset: 0 })
  })
})

/** SEMANTICS §3.2: the cap counts what is leased or available again, never a span of offsets. */
describe('one stuck record', () => {
  const RECORDS = Number(process.env['STUCK_RECORDS'] ?? 1_000_000)

  it('does not keep the others of its partition from being finished, however long it is held', async () => {
    const bench = await new QueueBench().start(1, { 'queue.lease.ms': '30s' })
    await bench.produce({ records: 1 })
    const holder = await bench.work(1)
    expect(holder.offsets).toEqual([0])
    const worker = await bench.work(0)
    let accepted = 0
    worker.onDelivery = (delivery) => {
      accepted += delivery.count
      worker.held.length = 0
      const { token, first, end } = delivery
      const item = { token, first, end, verdict: 'accept' as const, delayMs: undefined }
      const settled = worker.session.acknowledge([{ ...item, error: undefined, pauseGroupMs: 0 }])
      void settled.then((failures) => {
        expect(failures).toEqual([])
        worker.session.credit(delivery.count, delivery.batch.length)
        return undefined
      })
    }
    worker.session.credit(2000, 1 << 24)
    bench.history.length = 0
    const hourMs = 3_600_000
    const startMs = bench.clock.monotonicMs()
    for (let sent = 1; sent < RECORDS;) {
      const records = Math.min(1000, RECORDS - sent)
      await bench.produce({ records, valueBytes: 20 })
      sent += records
      await bench.clock.advance(1)
      bench.history.length = 0
    }
    while (bench.clock.monotonicMs() - startMs < hourMs) {
      await bench.clock.advance(15_000)
      const [lease] = holder.held
      if (lease === undefined) throw new Error('the lease was lost')
      expect(await holder.say('renew', { delivery: lease, delayMs: 30_000 })).toEqual([])
    }
    expect(accepted).toBe(RECORDS - 1)
    const [partition] = (await bench.queues.describe('workers')).topics[0]?.partitions ?? []
    expect(partition).toMatchObject({
      startOffset: 0,
      scanOffset: RECORDS,
      acquired: 1,
      ready: 0,
      done: RECORDS - 1,
      runs: 1,
    })
    expect(await bench.explain(0)).toMatchObject({ state: 'acquired', deliveryCount: 1 })
    expect(await holder.say('accept')).toEqual([])
    expect((await bench.queues.describe('workers')).topics[0]?.partitions[0]).toMatchObject({
      startOffset: RECORDS,
    })
  }, 120_000)
})
