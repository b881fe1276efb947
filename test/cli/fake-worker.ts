import type { WorkClient } from '../../src/cli/work.ts'
import { MillraceError } from '../../src/client/index.ts'
import type {
  BatchHandler,
  BatchWorkerOptions,
  Delivery,
  Handler,
  Topic,
  Worker,
  WorkerOptions,
} from '../../src/client/index.ts'
import { toOffset } from '../../src/common/offset.ts'

export interface FakeJobShape {
  readonly value?: string | null
  readonly key?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly type?: string
}

type Bytes = Uint8Array

/** What became of a record. */
export interface Settled {
  readonly offset: number
  readonly verdict: 'accept' | 'release' | 'retry' | 'reject'
  readonly error?: Error | undefined
  readonly delayMs?: number | undefined
}

/** A queue in memory, for one worker: gives out records in order, and keeps what was said about each. */
export class FakeWorkQueue implements WorkClient {
  readonly settled: Settled[] = []
  readonly options: (WorkerOptions | BatchWorkerOptions)[] = []
  closedWith: { timeoutMs?: number | undefined } | undefined
  /** By offset; abort one to take its lease away. */
  readonly leases: Map<number, AbortController> = new Map()
  /** Settling any of these fails. */
  readonly lost: Set<number> = new Set()
  readonly #jobs: FakeJobShape[]
  #next = 0
  #active = 0
  #give: () => void = () => undefined
  #waiting: (() => void)[] = []
  /** Ends the worker as a broker would. */
  fail: (error: MillraceError) => void = () => undefined
  joinFailure: MillraceError | undefined

  constructor(jobs: readonly (FakeJobShape | string)[]) {
    this.#jobs = jobs.map((job) => (typeof job === 'string' ? { value: job } : job))
  }

  get verdicts(): readonly string[] {
    return [...this.settled]
      .sort((a, b) => a.offset - b.offset)
      .map(({ offset, verdict }) => `${offset} ${verdict}`)
  }

  add(...jobs: readonly string[]): void {
    this.#jobs.push(...jobs.map((value) => ({ value })))
    this.#give()
  }

  worker<V, R = void, K = string>(
    from: Topic<V, K>,
    options: WorkerOptions,
    handler: Handler<V, R, K> | URL,
  ): Worker<V, R, K> {
    if (handler instanceof URL) throw new Error('no threads here')
    const { concurrency = 1 } = options
    return this.#open<V, R, K>(options, async () => {
      while (this.#active < concurrency && this.#next < this.#jobs.length) {
        const offset = this.#next++
        const job = this.#delivery<V, K>(from, offset)
        void this.#handle([offset], (signal) => handler(job, { signal }))
      }
    })
  }

  batchWorker<V, K = string>(
    from: Topic<V, K>,
    options: BatchWorkerOptions,
    handler: BatchHandler<V, K>,
  ): Worker<V, void, K> {
    const { batchSize = 100 } = options
    return this.#open<V, void, K>(options, async () => {
      if (this.#active > 0 || this.#next >= this.#jobs.length) return
      const end = Math.min(this.#jobs.length, this.#next + batchSize)
      const offsets = Array.from({ length: end - this.#next }, (_, i) => this.#next + i)
      this.#next = end
      const jobs = offsets.map((offset) => this.#delivery<V, K>(from, offset))
      void this.#handle(offsets, (signal) => handler(jobs, { signal }))
    })
  }

  async #handle(offsets: readonly number[], run: (signal: AbortSignal) => unknown): Promise<void> {
    this.#active++
    const lease = new AbortController()
    for (const offset of offsets) this.leases.set(offset, lease)
    let error: unknown
    try {
      await run(lease.signal)
    } catch (thrown) {
      error = thrown
    }
    this.#active--
    for (const offset of offsets) {
      if (this.settled.some((entry) => entry.offset === offset) || this.lost.has(offset)) continue
      if (lease.signal.aborted) continue
      this.settled.push({ offset, verdict: error === undefined ? 'accept' : 'retry' })
    }
    this.#give()
    if (this.#active === 0) for (const resolve of this.#waiting.splice(0)) resolve()
  }

  #delivery<V, K>(from: Topic<V, K>, offset: number): Delivery<V, K> {
    const { value = '', key, headers = {}, type } = this.#jobs[offset] ?? {}
    const settle = async (entry: Settled): Promise<void> => {
      if (this.lost.has(offset)) throw new MillraceError('LEASE_LOST', 'too late')
      this.settled.push(entry)
      return Promise.resolve()
    }
    const toBytes = (text: string): Bytes => Buffer.from(text)
    return {
      topic: from.name,
      partition: 0,
      offset: toOffset(offset),
      timestamp: 1_767_225_600_000,
      key: key === undefined ? undefined : from.key.decode(toBytes(key)),
      value: value === null ? null : from.value.decode(toBytes(value)),
      headers,
      deliveryCount: 2,
      failureCount: 1,
      leaseExpiresAt: 0,
      redelivered: true,
      type,
      accept: () => settle({ offset, verdict: 'accept' }),
      release: (options) => settle({ offset, verdict: 'release', delayMs: options?.delayMs }),
      retry: (error) => settle({ offset, verdict: 'retry', error: toError(error) }),
      reject: (error) => settle({ offset, verdict: 'reject', error: toError(error) }),
      renew: () => Promise.resolve(),
    }
  }

  #open<V, R, K>(
    options: WorkerOptions | BatchWorkerOptions,
    give: () => Promise<void>,
  ): Worker<V, R, K> {
    this.options.push(options)
    let isClosed = false
    this.#give = () => {
      if (!isClosed) void give()
    }
    const closed = withResolvers()
    this.fail = (error) => {
      isClosed = true
      closed.reject(error)
    }
    const idle = (): Promise<void> =>
      this.#active === 0
        ? Promise.resolve()
        : new Promise((resolve) => {
            this.#waiting.push(resolve)
          })
    const close = async (how: { readonly timeoutMs?: number | undefined } = {}): Promise<void> => {
      isClosed = true
      this.closedWith = how
      await idle()
      closed.resolve()
    }
    return {
      active: this.#active,
      ready: () => {
        if (this.joinFailure !== undefined) return Promise.reject(this.joinFailure)
        setImmediate(() => this.#give())
        return Promise.resolve()
      },
      pause: idle,
      resume: () => this.#give(),
      drain: async () => {
        await new Promise((resolve) => setImmediate(resolve))
        await idle()
        if (this.#next < this.#jobs.length) throw new Error('it was not drained')
      },
      close,
      closed: closed.promise,
      events: () => {
        throw new Error('nobody listens')
      },
      on: () => () => undefined,
      [Symbol.asyncDispose]: close,
    }
  }
}

function toError(error: unknown): Error {
  if (error instanceof Error) return error
  throw new Error('a verdict without an error')
}

function withResolvers(): {
  promise: Promise<void>
  resolve: () => void
  reject: (error: unknown) => void
} {
  let resolve: () => void = () => undefined
  let reject: (error: unknown) => void = () => undefined
  const promise = new Promise<void>((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise, resolve, reject }
}
