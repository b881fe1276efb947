import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { type Client, connect, RejectError, text, topic } from '../../src/client/index.ts'
import type { Broker } from '../../src/server/broker.ts'
import { startTestBroker } from '../support/test-broker.ts'

/** The client's side of work queues against the broker as it is. */
const jobs = topic('jobs', { value: text })

let broker: Broker
let mill: Client

beforeEach(async () => {
  broker = (await startTestBroker()).broker
  mill = await connect(broker.address)
  await mill.admin.createTopic('jobs', { partitions: 2 })
})

afterEach(async () => {
  await mill.close({ timeoutMs: 2000 })
  await broker.stop()
})

const until = <T>(check: () => Promise<T> | T): Promise<T> =>
  vi.waitFor(check, { timeout: 10_000, interval: 5 })

async function send(values: readonly string[]): Promise<void> {
  const producer = mill.producer()
  await producer.sendAll(
    jobs,
    values.map((value) => ({ value, key: value })),
  )
  await producer.close()
}

function numbered(count: number): string[] {
  return Array.from({ length: count }, (_, i) => String(i))
}

describe('workers and a broker', () => {
  it('share the records of a topic, each handled once', async () => {
    await send(numbered(5000))
    const seen: string[] = []
    const workers = [1, 2, 3].map(() =>
      mill.worker(jobs, { group: 'g', concurrency: 20, start: 'earliest' }, async (job) => {
        await Promise.resolve()
        seen.push(job.value ?? '')
      }),
    )
    await until(() => expect(seen.length).toBe(5000))
    await Promise.all(workers.map((worker) => worker.drain()))
    expect(new Set(seen).size).toBe(5000)
    const { topics } = await mill.admin.describeQueue('g')
    const left = topics.flatMap(({ partitions }) =>
      partitions.map(({ ready, acquired }) => ready + acquired),
    )
    expect(left).toEqual([0, 0])
  })

  it('that are paused, or on their way out, are not given again and again what they gave back', async () => {
    const worker = mill.worker(
      jobs,
      { group: 'g', concurrency: 500, start: 'earliest' },
      (_, { signal }) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => reject(signal.reason as Error))
        }),
    )
    await worker.ready()
    await worker.pause()
    await send(['a'])
    const other = mill.worker(jobs, { group: 'g', paused: true }, () => undefined)
    await other.ready()
    worker.resume()
    await until(() => expect(worker.active).toBe(1))
    await worker.close({ timeoutMs: 0 })
    const { counters } = await mill.admin.describeQueue('g')
    expect(counters).toMatchObject({ delivered: 1, released: 1 })
  })

  it('leave no member behind when they are closed before they have been taken in', async () => {
    const last = mill.worker(jobs, { group: 'g' }, () => undefined)
    await last.ready()
    for (let i = 0; i < 20; i++) await mill.worker(jobs, { group: 'g' }, () => undefined).close()
    // What the broker has been sent before is there by then.
    const another = mill.worker(jobs, { group: 'g' }, () => undefined)
    await another.ready()
    await another.close()
    await until(async () => {
      expect((await mill.admin.describeQueue('g')).members).toHaveLength(1)
    })
  })

  it('try again what failed, and lay aside what fails for good', async () => {
    await send(['fine', 'flaky', 'poison', 'bad'])
    const tries: string[] = []
    const dead: string[] = []
    const worker = mill.worker(
      jobs,
      {
        group: 'g',
        concurrency: 4,
        start: 'earliest',
        attempts: 2,
        backoff: { type: 'fixed', delayMs: 20 },
        deadLetters: true,
      },
      (job) => {
        tries.push(`${job.value}-${job.deliveryCount}`)
        if (job.value === 'flaky' && job.failureCount === 0) throw new Error('once')
        if (job.value === 'poison') throw new TypeError('always')
        if (job.value === 'bad') throw new RejectError('never')
      },
    )
    worker.on('dead', ({ job }) => dead.push(job.value ?? ''))
    await until(() => expect(dead.toSorted()).toEqual(['bad', 'poison']))
    await until(() => expect(tries).toHaveLength(6))
    expect(tries.toSorted()).toEqual([
      'bad-1',
      'fine-1',
      'flaky-1',
      'flaky-2',
      'poison-1',
      'poison-2',
    ])
    const letters: string[] = []
    await until(async () => {
      letters.length = 0
      for await (const letter of mill.admin.deadLetters({ group: 'g', topic: 'jobs' })) {
        letters.push(`${letter.reason}: ${letter.error.type}: ${letter.error.message}`)
      }
      expect(letters).toHaveLength(2)
    })
    expect(letters.toSorted()).toEqual([
      'attempts_exhausted: TypeError: always',
      'rejected: RejectError: never',
    ])
  })

  it('keep records of one key in order, however many work', async () => {
    const producer = mill.producer()
    for (let i = 0; i < 300; i++) {
      producer.post(jobs, { key: `k${i % 7}`, value: String(i) })
    }
    await producer.close()
    const running = new Set<string>()
    const seen = new Map<string, number[]>()
    let overlaps = 0
    const options = { group: 'g', concurrency: 10, start: 'earliest', order: 'key' } as const
    const workers = [1, 2].map(() =>
      mill.worker(jobs, options, async (job) => {
        const key = job.key ?? ''
        if (running.has(key)) overlaps++
        running.add(key)
        await new Promise((resolve) => {
          setImmediate(resolve)
        })
        running.delete(key)
        seen.set(key, [...(seen.get(key) ?? []), Number(job.value)])
      }),
    )
    await until(() => expect([...seen.values()].flat()).toHaveLength(300))
    await Promise.all(workers.map((worker) => worker.close()))
    expect(overlaps).toBe(0)
    for (const values of seen.values()) expect(values).toEqual(values.toSorted((a, b) => a - b))
  })

  it('hand over what a worker leaves when it is closed', async () => {
    await send(numbered(100))
    const options = { group: 'g', concurrency: 5, prefetch: 50, start: 'earliest' } as const
    const stuck = mill.worker(jobs, options, (_job, { signal }) => {
      return new Promise((_, reject) => {
        signal.addEventListener('abort', () => reject(new Error('closed')))
      })
    })
    await until(() => expect(stuck.active).toBe(5))
    const seen = new Set<string>()
    mill.worker(jobs, { ...options, concurrency: 20 }, (job) => {
      expect(job.failureCount).toBe(0)
      seen.add(job.value ?? '')
    })
    await stuck.close({ timeoutMs: 0 })
    await until(() => expect(seen.size).toBe(100))
  })

  it('come to records without a stream, too', async () => {
    await send(numbered(25))
    const seen: string[] = []
    const options = { group: 'g', max: 10, waitMs: 200, start: 'earliest' } as const
    for await (const job of mill.receive(jobs, options)) {
      seen.push(job.value ?? '')
      await job.accept()
    }
    expect(new Set(seen).size).toBe(25)
    expect(seen).toHaveLength(25)
  })

  it('finish what they have in hand when the broker stops', async () => {
    await send(['a'])
    const accepted: Promise<void>[] = []
    let stopping: Promise<void> | undefined
    mill.worker(jobs, { group: 'g', start: 'earliest' }, async (job) => {
      stopping = broker.stop()
      await new Promise((resolve) => {
        setImmediate(resolve)
      })
      accepted.push(job.accept())
    })
    await until(() => expect(accepted).toHaveLength(1))
    await accepted[0]
    await stopping
  })

  it('are told what cannot be', async () => {
    const nowhere = mill.worker(topic('nowhere', { value: text }), { group: 'g' }, () => undefined)
    await expect(nowhere.ready()).rejects.toMatchObject({ code: 'UNKNOWN_TOPIC' })
    const settings = { 'retry.max.attemps': '3' }
    const wrong = mill.worker(jobs, { group: 'g', settings }, () => undefined)
    await expect(wrong.closed).rejects.toMatchObject({ code: 'INVALID_CONFIG' })
  })
})
