import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import {
  text,
  topic,
  type Worker,
  type WorkerEvent,
  type WorkerOptions,
} from '../../src/client/index.ts'
import { Connection } from '../../src/client/connection.ts'
import { createWorker } from '../../src/client/worker.ts'
import { systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { type Compiled, compile } from '../support/compile.ts'
import { FakeWorkServer } from '../support/fake-work-server.ts'

const orders = topic('orders', { value: text })

let compiled: Compiled
let folder: string
let server: FakeWorkServer
let connection: Connection
let workers: Worker<string, unknown>[]

beforeAll(() => {
  compiled = compile('src/client/worker-thread.ts')
  folder = mkdtempSync(join(tmpdir(), 'millrace-handlers-'))
}, 60_000)

afterAll(() => {
  compiled.remove()
  rmSync(folder, { recursive: true, force: true })
})

beforeEach(async () => {
  server = await FakeWorkServer.start()
  workers = []
  connection = new Connection({
    targets: [server.url],
    tls: undefined,
    clientId: undefined,
    clock: systemClock,
    random: new SeededRandom(7),
    logger: undefined,
  })
})

afterEach(async () => {
  await Promise.all(workers.map((worker) => worker.close({ timeoutMs: 100 })))
  connection.close()
  await server[Symbol.asyncDispose]()
})

const until = <T>(check: () => T): Promise<T> => vi.waitFor(check, { timeout: 10_000, interval: 5 })

let modules = 0

function aModule(source: string): URL {
  const path = join(folder, `handler-${++modules}.mjs`)
  writeFileSync(path, source)
  return pathToFileURL(path)
}

/** The URL of a source file's compiled form, for a handler to import. */
function urlOf(file: string): string {
  return new URL(`./${file}`, compiled.url).href
}

function start(
  source: string | URL,
  options: Partial<WorkerOptions> = {},
): Worker<string, unknown> {
  const module = typeof source === 'string' ? aModule(source) : source
  const worker = createWorker<string, unknown, string>(
    connection,
    orders,
    { group: 'g', ...options },
    module,
    () => undefined,
    new URL(compiled.url),
  )
  workers.push(worker)
  return worker
}

function collect(worker: Worker<string, unknown>): WorkerEvent<string, unknown>[] {
  const events: WorkerEvent<string, unknown>[] = []
  for (const type of ['completed', 'failed', 'retrying', 'released', 'stalled', 'dead'] as const) {
    worker.on(type, (event) => events.push(event))
  }
  return events
}

describe('a handler in a thread', () => {
  it('gets the record, with its bytes, and its result comes back', async () => {
    const headers = [{ key: 'job.type', value: Buffer.from('invoice') }]
    const worker = start(`
      export default ({ topic, partition, offset, key, value, type, deliveryCount }) =>
        ({ topic, partition, offset, key, type, deliveryCount, bytes: value instanceof Uint8Array, text: Buffer.from(value).toString() })
    `)
    const events = collect(worker)
    server.add(['hello'], { key: 'k', headers })
    await until(() => expect(server.countOf('done')).toBe(1))
    await until(() =>
      expect(events).toMatchObject([
        {
          type: 'completed',
          result: {
            topic: 'orders',
            partition: 0,
            offset: 0,
            key: 'k',
            type: 'invoice',
            deliveryCount: 1,
            bytes: true,
            text: 'hello',
          },
        },
      ]),
    )
  })

  it('decodes with the codecs that its module exports', async () => {
    const worker = start(`
      import { json, topic as named } from ${JSON.stringify(urlOf('codecs.js'))}
      export const topic = named('orders', { value: json() })
      export default (job) => job.value.n + 1
    `)
    const events = collect(worker)
    server.add(['{"n":41}', 'nonsense'])
    await until(() => expect(events).toHaveLength(3))
    expect(events.find(({ type }) => type === 'completed')).toMatchObject({ result: 42 })
    expect(server.records[1]).toMatchObject({ state: 'dead', item: { verdict: 'reject' } })
  })

  it('may throw, and what it throws is what it is', async () => {
    server.attempts = 1
    start(
      `
      import { RejectError, ReleaseError, RetryError } from ${JSON.stringify(urlOf('worker-api.js'))}
      class Own extends RejectError { name = 'Own' }
      export default (job) => {
        const value = Buffer.from(job.value).toString()
        if (job.deliveryCount > 1) return
        if (value === 'reject') throw new RejectError('no')
        if (value === 'own') throw new Own('own')
        if (value === 'release') throw new ReleaseError({ delayMs: 5, pauseGroupMs: 6 })
        if (value === 'retry') throw new RetryError('busy', { delayMs: 7 })
        if (value === 'code') throw Object.assign(new Error('gone'), { code: 'ENOENT' })
        throw 'text'
      }
    `,
      { concurrency: 6 },
    )
    server.add(['reject', 'own', 'release', 'retry', 'code', 'other'])
    await until(() => expect(server.items.length).toBeGreaterThanOrEqual(6))
    const of = (value: string): object | undefined => {
      const at = server.records.findIndex((record) => record.value === value)
      return server.items.find(({ first }) => first === at)
    }
    expect(of('reject')).toMatchObject({ verdict: 'reject', error: { message: 'no' } })
    expect(of('own')).toMatchObject({ verdict: 'reject', error: { message: 'own' } })
    expect(of('release')).toMatchObject({ verdict: 'release', delayMs: 5, pauseGroupMs: 6 })
    expect(of('retry')).toMatchObject({ verdict: 'retry', delayMs: 7 })
    expect(of('code')).toMatchObject({ verdict: 'retry', error: { type: 'ENOENT' } })
    expect(of('other')).toMatchObject({ verdict: 'retry', error: { message: 'text' } })
  })

  it('may give its verdict by hand', async () => {
    const worker = start(`
      export default async (job) => {
        const before = job.leaseExpiresAt
        await job.renew(60_000)
        const isLater = job.leaseExpiresAt > before
        const accepting = job.accept()
        if (job.accept() !== accepting) throw new Error('two promises')
        await accepting
        const refused = await job.reject('no').then(() => 'taken', (error) => error.code)
        return { isLater, refused }
      }
    `)
    const events = collect(worker)
    server.add(['a'])
    await until(() => expect(events).toMatchObject([{ type: 'completed' }]))
    expect(server.acks.flat().map(({ verdict }) => verdict)).toEqual(['renew', 'accept'])
  })

  it('sees its signal abort when the lease is lost', async () => {
    const worker = start(`
      export default (job, { signal }) => new Promise((resolve, reject) => {
        if (job.deliveryCount > 1) resolve('again')
        signal.addEventListener('abort', () => reject(signal.reason))
      })
    `)
    const events = collect(worker)
    server.add(['a'])
    await until(() => expect(worker.active).toBe(1))
    server.expire(0)
    server.pump()
    await until(() => expect(server.countOf('done')).toBe(1))
    await until(() => expect(events.map(({ type }) => type)).toEqual(['stalled', 'completed']))
  })

  it('may block its thread: the others work on, and no lease is lost', async () => {
    server.leaseMs = 1000
    const worker = start(
      `
      export default (job) => {
        if (Buffer.from(job.value).toString() !== 'slow') return
        const until = Date.now() + 2500
        while (Date.now() < until);
      }
    `,
      { threads: 2, concurrency: 2, leaseMs: 1000 },
    )
    const events = collect(worker)
    server.add(['slow', ...Array.from({ length: 20 }, (_, i) => String(i))])
    await until(() => expect(server.countOf('done')).toBeGreaterThanOrEqual(19))
    expect(server.records[0]?.state).toBe('leased')
    await until(() => expect(server.countOf('done')).toBe(21))
    expect(events.every(({ type }) => type === 'completed')).toBe(true)
    expect(server.records[0]?.deliveries).toBe(1)
  })

  it('that crashes its thread has failed, and the thread is started anew', async () => {
    const worker = start(
      `
      export default (job) => {
        if (Buffer.from(job.value).toString() === 'poison' && job.deliveryCount === 1) {
          setImmediate(() => { throw new Error('out of the blue') })
          return new Promise(() => undefined)
        }
      }
    `,
    )
    const events = collect(worker)
    server.add(['fine', 'poison', 'after'])
    await until(() => expect(server.countOf('done')).toBe(3))
    const failure = server.items.find(({ verdict }) => verdict === 'retry')
    expect(failure).toMatchObject({
      error: {
        type: 'thread_crashed',
        message: 'the thread of the handler crashed: out of the blue',
      },
    })
    expect(events.some(({ type }) => type === 'failed')).toBe(true)
  })

  it('whose result cannot cross has completed all the same', async () => {
    const worker = start('export default () => () => undefined')
    const events = collect(worker)
    server.add(['a'])
    await until(() => expect(events).toMatchObject([{ type: 'completed', result: undefined }]))
  })

  it.each([
    ['is not there', new URL('file:///nowhere/handler.mjs')],
    ['has no default export', 'export const handler = () => undefined'],
    ['does not load', 'throw new Error("at load")'],
  ])('whose module %s ends the worker', async (_, source) => {
    const worker = start(source)
    await expect(worker.closed).rejects.toMatchObject({
      code: 'INVALID_REQUEST',
      details: { field: 'handler' },
    })
  })
})
