import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { type Client, connect, json, text, topic } from '../../src/client/index.ts'
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

const until = <T>(check: () => T): Promise<T> => vi.waitFor(check, { timeout: 5000, interval: 2 })

describe('receive', () => {
  it('yields what there is, then ends', async () => {
    server.add(letters('abcde'))
    const seen: unknown[] = []
    for await (const job of mill.receive(orders, { group: 'g', max: 2, waitMs: 100 })) {
      seen.push(job.value)
      await job.accept()
    }
    expect(seen).toEqual(letters('abcde'))
    expect(server.countOf('done')).toBe(5)
    expect(server.receives.map(({ max, waitMs }) => [max, waitMs])).toEqual([
      [2, 100],
      [2, 100],
      [2, 100],
      [2, 100],
    ])
  })

  it('brings settings along', async () => {
    for await (const job of mill.receive(orders, { group: 'g', attempts: 3, leaseMs: 5000 })) {
      await job.accept()
    }
    expect(server.receives[0]).toMatchObject({
      group: 'g',
      topic: 'orders',
      leaseMs: 5000,
      max: 1,
      settings: [{ name: 'retry.max.attempts', value: '3' }],
    })
  })

  it('carries every verdict, and several of one turn together', async () => {
    server.add(letters('abcd'))
    const settling: Promise<void>[] = []
    for await (const job of mill.receive(orders, { group: 'g', max: 4 })) {
      if (job.value === 'a') settling.push(job.accept())
      if (job.value === 'b') settling.push(job.release({ delayMs: 10 }))
      if (job.value === 'c') settling.push(job.retry(new TypeError('later'), { delayMs: 20 }))
      if (job.value === 'd') {
        settling.push(job.reject('never'))
        break
      }
    }
    await Promise.all(settling)
    const items = server.items.map(({ verdict, delayMs, error }) => [verdict, delayMs, error?.type])
    expect(items).toEqual([
      ['accept', undefined, undefined],
      ['release', 10, undefined],
      ['retry', 20, 'TypeError'],
      ['reject', undefined, 'string'],
    ])
  })

  it('gives back what it fetched when the loop is left', async () => {
    server.runRecords = 2
    server.add(letters('abcdef'))
    for await (const job of mill.receive(orders, { group: 'g', max: 6 })) {
      await job.accept()
      break
    }
    expect(server.countOf('done')).toBe(1)
    expect(server.countOf('available')).toBe(5)
    expect(server.items.map(({ first, end, verdict }) => [first, end, verdict])).toEqual([
      [0, 1, 'accept'],
      [1, 2, 'release'],
      [2, 4, 'release'],
      [4, 6, 'release'],
    ])
  })

  it('leaves what nothing was said of to its lease', async () => {
    server.add(['a'])
    for await (const job of mill.receive(orders, { group: 'g' })) {
      expect(job.value).toBe('a')
      break
    }
    expect(server.countOf('leased')).toBe(1)
    expect(server.acks).toEqual([])
  })

  it('does not yield what has waited longer than its lease', async () => {
    server.add(letters('ab'))
    const seen: unknown[] = []
    for await (const job of mill.receive(orders, { group: 'g', max: 2 })) {
      seen.push(job.value)
      await clock.advance(30_000)
      await job.accept()
    }
    expect(seen).toEqual(['a'])
    expect(server.countOf('leased')).toBe(1)
  })

  it('rejects what cannot be decoded, and goes on', async () => {
    server.add(['1', 'nonsense', '3'])
    const numbers = topic('orders', { value: json<number>() })
    const seen: unknown[] = []
    for await (const job of mill.receive(numbers, { group: 'g', max: 3 })) {
      seen.push(job.value)
      await job.accept()
    }
    expect(seen).toEqual([1, 3])
    expect(server.countOf('dead')).toBe(1)
  })

  it('ends by its signal', async () => {
    server.add(letters('abc'))
    const stop = new AbortController()
    const seen: unknown[] = []
    for await (const job of mill.receive(orders, { group: 'g', max: 3, signal: stop.signal })) {
      seen.push(job.value)
      await job.accept()
      stop.abort()
    }
    expect(seen).toEqual(['a'])
    expect(server.countOf('available')).toBe(2)
  })

  it('renews by hand', async () => {
    server.add(['a'])
    for await (const job of mill.receive(orders, { group: 'g' })) {
      await job.renew(60_000)
      await job.accept()
    }
    expect(server.acks.flat().map(({ verdict }) => verdict)).toEqual(['renew', 'accept'])
  })

  it('says a verdict again when its answer was lost', async () => {
    server.add(['a'])
    server.onAcks = (_, arrival) => ({ kind: arrival === 0 ? 'break' : 'take' })
    for await (const job of mill.receive(orders, { group: 'g' })) {
      const accepting = job.accept()
      await until(() => expect(server.acks).toHaveLength(1))
      await until(async () => {
        await clock.advance(100)
        expect(server.acks).toHaveLength(2)
      })
      await accepting
    }
    expect(server.countOf('done')).toBe(1)
  })

  it('tells of a lease that is over', async () => {
    server.add(['a'])
    for await (const job of mill.receive(orders, { group: 'g' })) {
      server.forget()
      await expect(job.accept()).rejects.toMatchObject({ code: 'LEASE_LOST' })
      break
    }
  })

  it.each([
    ['max', { max: 0 }],
    ['max', { max: 1001 }],
    ['waitMs', { waitMs: 30_001 }],
  ])('names an option that cannot be: %s', (field, options) => {
    expect(() => mill.receive(orders, { group: 'g', ...options })).toThrow(
      expect.objectContaining({ details: expect.objectContaining({ field }) as unknown }),
    )
  })
})
