import { Worker as Thread } from 'node:worker_threads'
import { unreachable } from '../common/assert.ts'
import type { CancelTimer } from '../common/clock.ts'
import { SECOND_MS } from '../common/units.ts'
import { MillraceError } from './errors.ts'
import { Backoff } from './retry.ts'
import {
  type FromThread,
  fromThreadError,
  type ThreadRecord,
  type ThreadVerb,
  toThreadError,
  type ToThread,
} from './thread-messages.ts'
import type { LinkConnection } from './work-link.ts'
import type { Delivery, JobContext } from './worker-api.ts'
import type { CheckedWorkerOptions } from './worker-options.ts'

/** A thread that has run for so long had begun well: the next one is started without waiting. */
const STEADY_MS: number = 10 * SECOND_MS
/** Beside this file, in whichever form the package is. */
const MAIN = `./worker-thread.${import.meta.url.endsWith('.ts') ? 'ts' : 'js'}`

type Bytes = Delivery<Uint8Array, Uint8Array>

/** A job that a thread has. */
interface Running {
  readonly job: Bytes
  readonly resolve: (result: unknown) => void
  readonly reject: (error: Error) => void
  readonly forget: () => void
}

interface Place {
  thread: Thread | undefined
  isReady: boolean
  startedMs: number
  readonly backoff: Backoff
  cancelPause: CancelTimer | undefined
  readonly jobs: Map<number, Running>
}

/**
 * Threads that run the handler of a module. They get the bytes of a record, and the module's own codecs (its export `topic`) make values of them. Streams,
 * leases and verdicts stay on this side, so that a handler that blocks its thread holds up nothing else and loses nothing.
 */
export class WorkerThreads {
  /** The module cannot be used. */
  onFailed: (error: MillraceError) => void = () => undefined
  readonly #module: URL
  readonly #main: URL
  readonly #connection: LinkConnection
  readonly #places: Place[]
  /** Of one thread. */
  readonly #mostJobs: number
  #wasReady = false
  #lastId = 0
  readonly #waiting: (() => void)[] = []
  #closing: Promise<void> | undefined

  /** `main`: what the threads run, if it is not beside this file. */
  constructor(
    module: URL,
    { threads, concurrency }: CheckedWorkerOptions,
    connection: LinkConnection,
    main: URL = new URL(MAIN, import.meta.url),
  ) {
    this.#module = module
    this.#main = main
    this.#connection = connection
    // More threads than jobs would have nothing to do.
    const length = Math.min(threads, concurrency)
    this.#mostJobs = Math.ceil(concurrency / length)
    this.#places = Array.from({ length }, () => ({
      thread: undefined,
      isReady: false,
      startedMs: 0,
      backoff: new Backoff(connection.random),
      cancelPause: undefined,
      jobs: new Map(),
    }))
    for (const place of this.#places) this.#start(place)
  }

  /**
   * Runs the handler in the thread that has least to do. Rejects with what it threw; with an error with the code `thread_crashed` when the thread did not
   * survive it.
   */
  async run(job: Bytes, context: JobContext): Promise<unknown> {
    let place = this.#findPlace()
    while (place === undefined) {
      if (this.#closing !== undefined) throw crashed('it was ended')
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
      place = this.#findPlace()
    }
    return this.#runAt(place, job, context)
  }

  #runAt(place: Place, job: Bytes, context: JobContext): Promise<unknown> {
    const { signal } = context
    const id = ++this.#lastId
    return new Promise((resolve, reject) => {
      const abort = (): void => {
        this.#post(place, { kind: 'abort', id, error: toThreadError(signal.reason) })
      }
      const forget = (): void => {
        place.jobs.delete(id)
        signal.removeEventListener('abort', abort)
      }
      place.jobs.set(id, { job, resolve, reject, forget })
      const { record, buffers } = toRecord(job)
      place.thread?.postMessage({ kind: 'job', id, record } satisfies ToThread, buffers)
      if (signal.aborted) abort()
      else signal.addEventListener('abort', abort, { once: true })
    })
  }

  /** Ends the threads, whatever they do. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    this.#wake()
    await Promise.all(
      this.#places.map(async (place) => {
        place.cancelPause?.()
        const { thread } = place
        place.thread = undefined
        place.isReady = false
        await thread?.terminate()
        this.#failJobs(place, 'it was ended')
      }),
    )
  }

  /** The thread that has least to do. Not one where it would wait behind others, as long as there may come to be a free one. */
  #findPlace(): Place | undefined {
    let best: Place | undefined
    for (const place of this.#places) {
      if (!place.isReady || place.jobs.size >= this.#mostJobs) continue
      if (best === undefined || place.jobs.size < best.jobs.size) best = place
    }
    return best
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }

  #start(place: Place): void {
    const thread = new Thread(this.#main, { workerData: { module: this.#module.href } })
    place.thread = thread
    place.startedMs = this.#connection.clock.monotonicMs()
    // The stream keeps the process alive, as long as there is one.
    thread.unref()
    let why = 'it ended by itself'
    thread.on('message', (message: FromThread) => this.#take(place, message))
    thread.on('messageerror', (error) => {
      why = error.message
      void thread.terminate()
    })
    thread.on('error', (error: unknown) => {
      why = error instanceof Error ? error.message : String(error)
    })
    thread.on('exit', () => {
      if (place.thread === thread) this.#ended(place, why)
    })
  }

  #take(place: Place, message: FromThread): void {
    switch (message.kind) {
      case 'ready':
        place.isReady = true
        this.#wasReady = true
        this.#wake()
        return
      case 'unusable':
        this.#unusable(fromThreadError(message.error).message)
        return
      case 'returned':
      case 'threw': {
        const running = place.jobs.get(message.id)
        running?.forget()
        if (message.kind === 'returned') running?.resolve(message.result)
        else running?.reject(fromThreadError(message.error))
        this.#wake()
        return
      }
      case 'call': {
        const job = place.jobs.get(message.id)?.job
        if (job !== undefined) void this.#answer(place, job, message.call, message.verb) // It never rejects.
      }
    }
  }

  async #answer(place: Place, job: Bytes, call: number, verb: ThreadVerb): Promise<void> {
    let error: unknown
    try {
      await act(job, verb)
    } catch (failure) {
      error = failure
    }
    this.#post(place, {
      kind: 'answer',
      call,
      error: error === undefined ? undefined : toThreadError(error),
      leaseExpiresAt: job.leaseExpiresAt,
    })
  }

  #post(place: Place, message: ToThread): void {
    place.thread?.postMessage(message)
  }

  /** The module has never begun well, so it never will: that is for a person to mend. */
  #unusable(why: string): void {
    if (this.#wasReady || this.#closing !== undefined) return
    const message = `the handler ${this.#module.href} cannot be used: ${why}`
    this.onFailed(new MillraceError('INVALID_REQUEST', message, { field: 'handler' }))
  }

  #ended(place: Place, why: string): void {
    place.thread = undefined
    place.isReady = false
    this.#failJobs(place, why)
    if (this.#closing !== undefined) return
    if (!this.#wasReady) {
      this.#unusable(why)
      return
    }
    const { clock, logger } = this.#connection
    logger?.error(`a thread of the handler ${this.#module.href} crashed: ${why}`)
    const isSteady = clock.monotonicMs() - place.startedMs >= STEADY_MS
    if (isSteady) place.backoff.reset()
    place.cancelPause = clock.schedule(place.backoff.nextDelayMs(), () => {
      place.cancelPause = undefined
      this.#start(place)
    })
  }

  #failJobs(place: Place, why: string): void {
    for (const { forget, reject } of place.jobs.values()) {
      forget()
      reject(crashed(why))
    }
  }
}

function crashed(why: string): Error {
  return Object.assign(new Error(`the thread of the handler crashed: ${why}`), {
    code: 'thread_crashed',
  })
}

function act(job: Bytes, verb: ThreadVerb): Promise<void> {
  switch (verb.kind) {
    case 'accept':
      return job.accept()
    case 'release':
      return job.release({ delayMs: verb.delayMs, pauseGroupMs: verb.pauseGroupMs })
    case 'retry': {
      const error = verb.error === undefined ? undefined : fromThreadError(verb.error)
      return job.retry(error, { delayMs: verb.delayMs })
    }
    case 'reject':
      return job.reject(verb.error === undefined ? undefined : fromThreadError(verb.error))
    case 'renew':
      return job.renew(verb.leaseMs)
    default:
      return unreachable(verb)
  }
}

/** With bytes of its own, which change hands: those of the job are views of a batch that others have a part in. */
function toRecord(job: Bytes): { readonly record: ThreadRecord; readonly buffers: ArrayBuffer[] } {
  const key = job.key === undefined ? undefined : Uint8Array.from(job.key)
  const value = job.value === null ? null : Uint8Array.from(job.value)
  const buffers: ArrayBuffer[] = []
  if (key !== undefined) buffers.push(key.buffer)
  if (value !== null) buffers.push(value.buffer)
  const { topic, partition, offset, timestamp, deliveryCount, failureCount, leaseExpiresAt } = job
  const record: ThreadRecord = {
    topic,
    partition,
    offset,
    timestamp,
    key,
    value,
    headers: Object.entries(job.headers),
    deliveryCount,
    failureCount,
    leaseExpiresAt,
  }
  return { record, buffers }
}
