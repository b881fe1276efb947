import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import {
  type Client,
  connect,
  type Delivery,
  RejectError,
  text,
  topic,
} from '../../src/client/index.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { FakeWorkServer } from '../support/fake-work-server.ts'

const orders = topic('orders', { value: text })

let server: FakeWorkServer
let clock: FakeClock
let mill: Client

beforeEach(async () => {
  server = await FakeWorkServer.start()
  clock = new FakeClock()
  mill = await connect({ url: server.url, clock })
})

afterEach(async () => {
  await mill.close()
  await server[Symbol.asyncDispose]()
})

function letters(text: string): string[] {
  return text.split('')
}

const until = <T>(check: () => Promise<T> | T): Promise<T> =>
  vi.waitFor(check, { timeout: 5000, interval: 2 })

function valuesOf(jobs: readonly Delivery<string>[]): string {
  return jobs.map(({ value }) => value).join('')
}

describe('a batch worker', () => {
  it('gives its handler as many records as it says, and what is there', async () => {
    server.add(letters('abcdefg'))
    const batches: string[] = []
    mill.batchWorker(orders, { group: 'g', batchSize: 3 }, (jobs) => {
      batches.push(valuesOf(jobs))
    })
    await until(() => expect(server.countOf('done')).toBe(7))
    expect(batches.every((batch) => batch.length <= 3)).toBe(true)
    expect(batches.join('')).toBe('abcdefg')
    expect(server.items.every(({ verdict }) => verdict === 'accept')).toBe(true)
  })

  it('waits for company as long as it says, and no longer', async () => {
    const batches: string[] = []
    mill.batchWorker(orders, { group: 'g', batchSize: 4, batchWaitMs: 200 }, (jobs) => {
      batches.push(valuesOf(jobs))
    })
    server.add(letters('abcd'))
    await until(() => expect(batches).toEqual(['abcd']))
    server.add(letters('ef'))
    await until(() => expect(server.countOf('leased')).toBe(2))
    await clock.advance(199)
    expect(batches).toHaveLength(1)
    await until(async () => {
      await clock.advance(1)
      expect(batches).toEqual(['abcd', 'ef'])
    })
  })

  it('retries all that its handler threw for, but what was settled by hand', async () => {
    server.add(letters('abc'))
    let isFirst = true
    mill.batchWorker(orders, { group: 'g', batchSize: 3 }, async (jobs) => {
      if (!isFirst) return
      isFirst = false
      await jobs[0]?.accept()
      void jobs[1]?.reject(new RejectError('never'))
      throw new Error('half way')
    })
    await until(() => expect(server.countOf('done')).toBe(2))
    expect(server.records).toMatchObject([
      { state: 'done', deliveries: 1 },
      { state: 'dead', deliveries: 1 },
      { state: 'done', deliveries: 2, failures: 1 },
    ])
  })

  it('runs as many handlers at once as it says, each with a batch', async () => {
    server.add(letters('abcdefgh'))
    const passes: (() => void)[] = []
    const options = { group: 'g', batchSize: 2, concurrency: 2, prefetch: 1 }
    const worker = mill.batchWorker(orders, options, () => {
      return new Promise((resolve) => passes.push(resolve))
    })
    await until(() => expect(passes).toHaveLength(2))
    await until(() => expect(server.countOf('leased')).toBe(5))
    expect(worker.active).toBe(2)
    await until(() => {
      expect(worker.active).toBeLessThanOrEqual(2)
      passes.shift()?.()
      expect(server.countOf('done')).toBe(8)
    })
  })

  it('aborts its signal when the last of its leases is lost, not before', async () => {
    server.runRecords = 1
    server.isHeld = true
    server.add(letters('ab'))
    let signal: AbortSignal | undefined
    let pass = (): void => undefined
    const options = { group: 'g', batchSize: 2, batchWaitMs: 1000 }
    const worker = mill.batchWorker(orders, options, (_jobs, context) => {
      signal = context.signal
      return new Promise((resolve) => {
        pass = resolve
      })
    })
    const lost: unknown[] = []
    worker.on('stalled', ({ job }) => lost.push(job.value))
    server.isHeld = false
    server.pump()
    await until(() => expect(signal).toBeDefined())
    server.isHeld = true
    server.expire(0)
    await until(() => expect(lost).toEqual(['a']))
    expect(signal?.aborted).toBe(false)
    server.expire(1)
    await until(() => expect(signal?.aborted).toBe(true))
    pass()
  })

  it('gives back what waits for company when it is paused or closed', async () => {
    server.add(letters('ab'))
    const options = { group: 'g', batchSize: 3, batchWaitMs: 60_000, prefetch: 0 }
    const worker = mill.batchWorker(orders, options, () => undefined)
    await until(() => expect(server.countOf('leased')).toBe(2))
    await worker.pause()
    await until(() => expect(server.countOf('available')).toBe(2))
    worker.resume()
    await until(() => expect(server.countOf('leased')).toBe(2))
    await worker.close()
    expect(server.countOf('available')).toBe(2)
  })

  it.each([
    ['batchSize', { batchSize: 0 }],
    ['batchWaitMs', { batchWaitMs: -1 }],
    ['batchSize', { batchSize: 10_000, concurrency: 11 }],
  ])('names an option that cannot be: %s', (field, options) => {
    expect(() => mill.batchWorker(orders, { group: 'g', ...options }, () => undefined)).toThrow(
      expect.objectContaining({ details: expect.objectContaining({ field }) as unknown }),
    )
  })
})
