import { parentPort, workerData } from 'node:worker_threads'
import { JOB_TYPE_HEADER } from '../common/job-headers.ts'
import { toOffset } from '../common/offset.ts'
import type { Headers } from './api.ts'
import { bytes, text, type Topic } from './codecs.ts'
import {
  type FromThread,
  fromThreadError,
  type ThreadError,
  type ThreadRecord,
  type ThreadVerb,
  toThreadError,
  type ToThread,
} from './thread-messages.ts'
import { type Delivery, type Handler, type JobContext, RejectError } from './worker-api.ts'

/** What runs in a thread of {@link WorkerThreads}: loads the module, and runs its handler for what comes. */

const port = parentPort

interface Call {
  readonly resolve: () => void
  readonly reject: (error: Error) => void
}

const controllers: Map<number, AbortController> = new Map()
const calls: Map<number, { readonly call: Call; readonly job: ThreadJob }> = new Map()
let lastCall = 0

function post(message: FromThread): void {
  port?.postMessage(message)
}

/** As on the other side, but that its verdicts go there. */
class ThreadJob implements Delivery<unknown, unknown> {
  readonly topic: string
  readonly partition: number
  readonly offset: Delivery<unknown>['offset']
  readonly timestamp: number
  readonly key: unknown
  readonly value: unknown
  readonly headers: Headers
  readonly deliveryCount: number
  readonly failureCount: number
  leaseExpiresAt: number
  readonly #id: number
  /** What has been said of it, and its promise. */
  #said: { readonly kind: string; readonly promise: Promise<void> } | undefined

  constructor(id: number, record: ThreadRecord, key: unknown, value: unknown) {
    this.#id = id
    this.topic = record.topic
    this.partition = record.partition
    this.offset = toOffset(record.offset)
    this.timestamp = record.timestamp
    this.key = key
    this.value = value
    this.headers = toHeaders(record.headers)
    this.deliveryCount = record.deliveryCount
    this.failureCount = record.failureCount
    this.leaseExpiresAt = record.leaseExpiresAt
  }

  get redelivered(): boolean {
    return this.deliveryCount > 1
  }

  get type(): string | undefined {
    const type = this.headers[JOB_TYPE_HEADER]
    return typeof type === 'string' ? type : undefined
  }

  accept(): Promise<void> {
    return this.#say({ kind: 'accept' })
  }

  release(
    options: {
      readonly delayMs?: number | undefined
      readonly pauseGroupMs?: number | undefined
    } = {},
  ): Promise<void> {
    const { delayMs, pauseGroupMs } = options
    return this.#say({ kind: 'release', delayMs, pauseGroupMs })
  }

  retry(error?: unknown, options: { readonly delayMs?: number | undefined } = {}): Promise<void> {
    return this.#say({ kind: 'retry', error: toError(error), delayMs: options.delayMs })
  }

  reject(error?: unknown): Promise<void> {
    return this.#say({ kind: 'reject', error: toError(error) })
  }

  renew(leaseMs?: number): Promise<void> {
    return this.#ask({ kind: 'renew', leaseMs })
  }

  /** The same once more is the same promise; another one is for the other side to refuse. */
  #say(verb: ThreadVerb): Promise<void> {
    if (this.#said?.kind === verb.kind) return this.#said.promise
    const promise = this.#ask(verb)
    // As on the other side: whoever does not await it is not ended by it.
    promise.catch(() => undefined)
    this.#said ??= { kind: verb.kind, promise }
    return promise
  }

  #ask(verb: ThreadVerb): Promise<void> {
    return new Promise((resolve, reject) => {
      const call = ++lastCall
      calls.set(call, { call: { resolve, reject }, job: this })
      post({ kind: 'call', id: this.#id, call, verb })
    })
  }
}

function toError(error: unknown): ThreadError | undefined {
  return error === undefined ? undefined : toThreadError(error)
}

function toHeaders(entries: ThreadRecord['headers']): Headers {
  // Without a prototype, or a header named __proto__ would set one.
  const headers = Object.create(null) as Record<string, string | Uint8Array>
  for (const [name, value] of entries) headers[name] = value
  return headers
}

/** Its signal is made when it is first asked for, aborted or not. */
class ThreadContext implements JobContext {
  readonly #id: number

  constructor(id: number) {
    this.#id = id
  }

  get signal(): AbortSignal {
    let controller = controllers.get(this.#id)
    if (controller === undefined) {
      controller = new AbortController()
      controllers.set(this.#id, controller)
    }
    return controller.signal
  }
}

interface HandlerModule {
  readonly handler: Handler<unknown, unknown, unknown>
  readonly topic: Topic<unknown, unknown>
}

async function load(href: string): Promise<HandlerModule> {
  const loaded = (await import(href)) as { default?: unknown; topic?: unknown } // What a module exports is anything.
  if (typeof loaded.default !== 'function') {
    throw new TypeError('its default export is no function (job, context)')
  }
  return {
    handler: loaded.default as HandlerModule['handler'], // What it takes is the author's word.
    topic: isTopic(loaded.topic) ? loaded.topic : { name: '', value: bytes, key: text },
  }
}

function isTopic(value: unknown): value is Topic<unknown, unknown> {
  return typeof value === 'object' && value !== null && 'value' in value && 'key' in value
}

async function run(
  { handler, topic }: HandlerModule,
  id: number,
  record: ThreadRecord,
): Promise<void> {
  const context = new ThreadContext(id)
  // Made before it is asked for: an abort that comes first must not be lost.
  controllers.set(id, new AbortController())
  try {
    const result = await handler(decode(topic, id, record), context)
    postResult(id, result)
  } catch (error) {
    post({ kind: 'threw', id, error: toThreadError(error) })
  } finally {
    controllers.delete(id)
  }
}

/** What cannot be decoded now cannot be decoded the next time. */
function decode(topic: Topic<unknown, unknown>, id: number, record: ThreadRecord): ThreadJob {
  try {
    const key = record.key === undefined ? undefined : topic.key.decode(record.key)
    const value = record.value === null ? null : topic.value.decode(record.value)
    return new ThreadJob(id, record, key, value)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    const place = `offset ${record.offset} of ${record.topic}-${record.partition}`
    throw new RejectError(`the record at ${place} could not be decoded: ${why}`)
  }
}

/** A result that cannot cross is left out: what was done is done. */
function postResult(id: number, result: unknown): void {
  try {
    post({ kind: 'returned', id, result })
  } catch {
    post({ kind: 'returned', id, result: undefined })
  }
}

function take(loaded: HandlerModule, message: ToThread): void {
  switch (message.kind) {
    case 'job':
      void run(loaded, message.id, message.record) // It never rejects.
      return
    case 'abort':
      controllers.get(message.id)?.abort(fromThreadError(message.error))
      return
    case 'answer': {
      const found = calls.get(message.call)
      calls.delete(message.call)
      if (found === undefined) return
      found.job.leaseExpiresAt = message.leaseExpiresAt
      if (message.error === undefined) found.call.resolve()
      else found.call.reject(fromThreadError(message.error))
    }
  }
}

async function main(): Promise<void> {
  const { module } = workerData as { module: string } // WorkerThreads starts it so.
  try {
    const loaded = await load(module)
    port?.on('message', (message: ToThread) => take(loaded, message))
    post({ kind: 'ready' })
  } catch (error) {
    post({ kind: 'unusable', error: toThreadError(error) })
  }
}

void main() // It never rejects.
