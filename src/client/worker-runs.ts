import type { CancelTimer, Clock } from '../common/clock.ts'
import type { ClientLogger } from './api.ts'
import type { Breather } from './breather.ts'
import {
  type BatchHandler,
  type Handler,
  type JobContext,
  RejectError,
  ReleaseError,
  RetryError,
} from './worker-api.ts'
import { type Job, toDelayMs, toPauseMs } from './worker-job.ts'

/** Where a run has its jobs from, and whom it tells. */
export interface RunHost<V, K> {
  /** False: begin with nothing new. */
  readonly mayTake: boolean
  take(): Job<V, K> | undefined
  /** Its handler is through, and it has a verdict. */
  put(job: Job<V, K>): void
  /** Its handler threw. */
  threw(job: Job<V, K>, error: unknown): void
}

/** Hands jobs to handlers. */
export interface Run {
  /** Handlers under way. */
  readonly active: number
  /** Starts handlers as long as there are jobs and room. To be called whenever either may have come. */
  pump(): void
  /** Gives back what no handler has been given. */
  giveBack(): void
}

/** A handler for each job, many at once. */
export class JobRun<V, R, K> implements Run {
  readonly #host: RunHost<V, K>
  readonly #handler: Handler<V, R, K>
  readonly #concurrency: number
  readonly #breather: Breather
  #active = 0
  #isPumping = false
  #isBreathing = false

  constructor(
    host: RunHost<V, K>,
    handler: Handler<V, R, K>,
    concurrency: number,
    breather: Breather,
  ) {
    this.#host = host
    this.#handler = handler
    this.#concurrency = concurrency
    this.#breather = breather
  }

  get active(): number {
    return this.#active
  }

  pump(): void {
    if (this.#isPumping || this.#isBreathing) return
    this.#isPumping = true
    try {
      while (this.#active < this.#concurrency && this.#host.mayTake) {
        if (this.#breather.isDue() && this.#breather.look()) {
          this.#breathe()
          return
        }
        const job = this.#host.take()
        if (job === undefined) return
        this.#start(job)
      }
    } finally {
      this.#isPumping = false
    }
  }

  giveBack(): void {
    // Every job that it takes goes to a handler at once.
  }

  /** Handlers that never really wait must not keep renewals and answers from their turn. */
  #breathe(): void {
    this.#isBreathing = true
    void this.#breather.breathe().then(() => {
      this.#isBreathing = false
      this.pump()
      return undefined
    })
  }

  #start(job: Job<V, K>): void {
    this.#active++
    try {
      const result = this.#handler(job, new OwnContext(job))
      if (isThenable(result)) {
        // Anything with a `then` may come from a program in plain JavaScript.
        Promise.resolve(result).then(
          (value) => this.#finishAndPump(job, value),
          (error: unknown) => this.#failAndPump(job, error),
        )
      } else this.#finish(job, result)
    } catch (error) {
      this.#fail(job, error)
    }
  }

  #finishAndPump(job: Job<V, K>, result: unknown): void {
    this.#finish(job, result)
    this.pump()
  }

  #failAndPump(job: Job<V, K>, error: unknown): void {
    this.#fail(job, error)
    this.pump()
  }

  #finish(job: Job<V, K>, result: unknown): void {
    job.result = result
    job.settle('accept')
    this.#putDown(job)
  }

  #fail(job: Job<V, K>, error: unknown): void {
    this.#host.threw(job, error)
    this.#putDown(job)
  }

  #putDown(job: Job<V, K>): void {
    this.#active--
    this.#host.put(job)
  }
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && 'then' in value
}

/** Its signal is the job's own, so that what a handler hangs on it goes with it. */
class OwnContext implements JobContext {
  readonly #job: Job<unknown, unknown>

  constructor(job: Job<unknown, unknown>) {
    this.#job = job
  }

  get signal(): AbortSignal {
    return this.#job.signal
  }
}

/** A handler for several jobs together. */
export class JobBatchRun<V, K> implements Run {
  readonly #host: RunHost<V, K>
  readonly #handler: BatchHandler<V, K>
  readonly #options: {
    readonly concurrency: number
    readonly batchRecords: number
    readonly batchWaitMs: number
  }
  readonly #clock: Clock
  #active = 0
  #isPumping = false
  /** The batch that is being filled. */
  #filling: Job<V, K>[] = []
  #cancelWait: CancelTimer | undefined

  constructor(
    host: RunHost<V, K>,
    handler: BatchHandler<V, K>,
    options: {
      readonly concurrency: number
      readonly batchRecords: number
      readonly batchWaitMs: number
    },
    clock: Clock,
  ) {
    this.#host = host
    this.#handler = handler
    this.#options = options
    this.#clock = clock
  }

  get active(): number {
    return this.#active
  }

  pump(): void {
    if (this.#isPumping) return
    this.#isPumping = true
    try {
      while (this.#active < this.#options.concurrency && this.#host.mayTake) {
        if (!this.#fill()) return
      }
    } finally {
      this.#isPumping = false
    }
  }

  giveBack(): void {
    this.#cancelWait?.()
    this.#cancelWait = undefined
    const waiting = this.#filling
    this.#filling = []
    for (const job of waiting) {
      job.settle('release')
      this.#host.put(job)
    }
  }

  /** False when there is nothing to begin with now. */
  #fill(): boolean {
    const { batchRecords, batchWaitMs } = this.#options
    while (this.#filling.length < batchRecords) {
      const job = this.#host.take()
      if (job === undefined) break
      this.#filling.push(job)
    }
    if (this.#filling.length === 0) return false
    if (this.#filling.length < batchRecords && batchWaitMs > 0) {
      this.#cancelWait ??= this.#clock.schedule(batchWaitMs, () => this.#waited())
      return false
    }
    this.#begin()
    return true
  }

  #waited(): void {
    this.#cancelWait = undefined
    // Without room for a handler it may go on filling, and begins as soon as there is some.
    if (this.#active >= this.#options.concurrency) return
    this.#begin()
    this.pump()
  }

  #begin(): void {
    this.#cancelWait?.()
    this.#cancelWait = undefined
    const jobs = this.#filling
    this.#filling = []
    // Of those that were lost while they waited there is nothing left to do.
    const alive = jobs.filter((job) => job.lease.lost === undefined)
    for (const job of jobs) if (job.lease.lost !== undefined) this.#host.put(job)
    if (alive.length === 0) return
    this.#active++
    const context = new BatchContext(alive)
    this.#handle(alive, context).then(
      () => {
        for (const job of alive) job.settle('accept')
        this.#putDown(alive, context)
        return undefined
      },
      (error: unknown) => {
        for (const job of alive) if (job.verdict === undefined) this.#host.threw(job, error)
        this.#putDown(alive, context)
      },
    )
  }

  async #handle(jobs: readonly Job<V, K>[], context: JobContext): Promise<void> {
    await this.#handler(jobs, context)
  }

  #putDown(jobs: readonly Job<V, K>[], context: BatchContext): void {
    this.#active--
    context.close()
    for (const job of jobs) this.#host.put(job)
    this.pump()
  }
}

/** Its signal aborts when those of all its jobs have: as long as one is left, there is something to do. */
class BatchContext implements JobContext {
  readonly #jobs: readonly Job<unknown, unknown>[]
  #controller: AbortController | undefined
  #isClosed = false

  constructor(jobs: readonly Job<unknown, unknown>[]) {
    this.#jobs = jobs
  }

  get signal(): AbortSignal {
    if (this.#controller !== undefined) return this.#controller.signal
    const controller = new AbortController()
    this.#controller = controller
    for (const { signal } of this.#jobs) {
      const look = (): void => {
        if (this.#isClosed || this.#jobs.some((job) => !job.signal.aborted)) return
        controller.abort(signal.reason)
      }
      if (signal.aborted) look()
      else signal.addEventListener('abort', look, { once: true })
    }
    return controller.signal
  }

  close(): void {
    this.#isClosed = true
  }
}

/** Gives a job the verdict that what its handler threw asks for. What was settled by hand stays so. */
export function settleByError(
  job: Job<unknown, unknown>,
  error: unknown,
  isRetryable: ((error: unknown) => boolean) | undefined,
  logger: ClientLogger | undefined,
): void {
  const name = nameOf(error)
  if (name === 'ReleaseError') {
    const { delayMs, pauseGroupMs } = error as { delayMs?: unknown; pauseGroupMs?: unknown } // Named so, it may have these.
    job.settle('release', {
      delayMs: typeof delayMs === 'number' && delayMs > 0 ? toDelayMs(delayMs) : undefined,
      pauseGroupMs: typeof pauseGroupMs === 'number' ? toPauseMs(pauseGroupMs) : undefined,
    })
    return
  }
  if (name === 'RejectError') {
    job.settle('reject', { error })
    return
  }
  if (name === 'RetryError') {
    const { delayMs } = error as { delayMs?: unknown } // As above.
    job.settle('retry', {
      error,
      delayMs: typeof delayMs === 'number' ? toDelayMs(delayMs) : undefined,
    })
    return
  }
  job.settle(mayRetry(error, isRetryable, logger) ? 'retry' : 'reject', { error })
}

function mayRetry(
  error: unknown,
  isRetryable: ((error: unknown) => boolean) | undefined,
  logger: ClientLogger | undefined,
): boolean {
  try {
    return isRetryable === undefined || isRetryable(error)
  } catch (failure) {
    logger?.error(
      'isRetryable of a worker failed, so the error counts as one that may be retried',
      {
        error: failure,
      },
    )
    return true
  }
}

/** By name, so that an error may come from another thread, or from another copy of this package. */
function nameOf(error: unknown): string {
  try {
    if (error instanceof RejectError) return 'RejectError'
    if (error instanceof ReleaseError) return 'ReleaseError'
    if (error instanceof RetryError) return 'RetryError'
    return error instanceof Error ? error.name : ''
  } catch {
    return '' // A getter that throws: an error like any other.
  }
}
