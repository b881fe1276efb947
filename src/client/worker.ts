import type { CancelTimer } from '../common/clock.ts'
import { SECOND_MS } from '../common/units.ts'
import type { WorkNoticeMessage } from '../wire/work-codec.ts'
import { Breather } from './breather.ts'
import { bytes, type Topic } from './codecs.ts'
import { MillraceError } from './errors.ts'
import type { LinkConnection } from './work-link.ts'
import { type SupplyOwner, WorkSupply } from './work-supply.ts'
import type {
  BatchHandler,
  BatchWorkerOptions,
  Handler,
  Worker,
  WorkerEvent,
  WorkerEventStream,
  WorkerOptions,
} from './worker-api.ts'
import { WorkerEvents } from './worker-events.ts'
import type { AnyJob, Job } from './worker-job.ts'
import {
  checkBatchWorkerOptions,
  checkWorkerOptions,
  type CheckedWorkerOptions,
} from './worker-options.ts'
import { JobBatchRun, JobRun, type Run, type RunHost, settleByError } from './worker-runs.ts'
import { WorkerThreads } from './worker-threads.ts'

const CLOSE_TIMEOUT_MS: number = 30 * SECOND_MS
/** How long the last verdicts, and then the end of the stream, may take once all handlers are through. After that leases just run out. */
const END_PATIENCE_MS: number = 5 * SECOND_MS
/** How long nothing may have come, with all credit at the broker, to say that it has nothing to give. */
const QUIET_MS = 250

/** A worker as whoever made it has to know it. */
export interface ClosableWorker {
  close(options?: { readonly timeoutMs?: number | undefined }): Promise<void>
  abandon(reason: MillraceError): void
}

/** What a worker is made of besides its supply. */
export interface WorkerParts<V, R, K> {
  readonly checked: CheckedWorkerOptions
  readonly options: WorkerOptions
  createRun(host: RunHost<V, K>, worker: QueueWorker<V, R, K>): Run
  /** Handlers in threads of their own. */
  readonly threads?: WorkerThreads | undefined
  onClosed(worker: ClosableWorker): void
}

interface Waiter {
  isMet(): boolean
  resolve(): void
}

/** A worker: runs handlers for what its supply brings, and turns what they return or throw into verdicts. */
export class QueueWorker<V, R, K>
  implements Worker<V, R, K>, ClosableWorker, SupplyOwner, RunHost<V, K>
{
  readonly closed: Promise<void>
  readonly #connection: LinkConnection
  readonly #parts: WorkerParts<V, R, K>
  readonly #supply: WorkSupply<V, K>
  readonly #run: Run
  readonly #events: WorkerEvents<V, R, K>
  readonly #ready: Promise<void>
  #resolveReady = (): void => undefined
  #rejectReady = (_error: MillraceError): void => undefined
  #resolveClosed = (): void => undefined
  #rejectClosed = (_error: MillraceError): void => undefined
  readonly #waiters: Set<Waiter> = new Set()
  readonly #drains: Set<() => void> = new Set()
  #cancelQuiet: CancelTimer | undefined
  /** The delivery after which it was told last that there is nothing more. */
  #drainedMs = -1
  #isPaused: boolean
  #closing: Promise<void> | undefined
  #isOver = false
  readonly #abort = (): void => {
    void this.close() // It never rejects.
  }

  constructor(connection: LinkConnection, topic: Topic<V, K>, parts: WorkerParts<V, R, K>) {
    this.#connection = connection
    this.#parts = parts
    const { checked, options } = parts
    this.#isPaused = options.paused === true
    this.#events = new WorkerEvents(connection.logger)
    this.#ready = new Promise((resolve, reject) => {
      this.#resolveReady = resolve
      this.#rejectReady = reject
    })
    this.closed = new Promise((resolve, reject) => {
      this.#resolveClosed = resolve
      this.#rejectClosed = reject
    })
    // Whoever asks is told. A program that does not ask is told by its logger, not ended.
    this.#ready.catch(() => undefined)
    this.closed.catch(() => undefined)
    const { target, concurrency, prefetch } = checked
    const supply = { target, concurrency, prefetch, isPaused: this.#isPaused }
    this.#supply = new WorkSupply(connection, topic, supply, this)
    this.#run = parts.createRun(this, this)
    this.#supply.start()
    if (options.signal?.aborted === true) this.#abort()
    else options.signal?.addEventListener('abort', this.#abort, { once: true })
  }

  // ── what programs ask for ───────────────────────────────────────────────────────────────────────────────────

  get active(): number {
    return this.#run.active
  }

  ready(): Promise<void> {
    return this.#ready
  }

  async pause(): Promise<void> {
    this.#isPaused = true
    this.#run.giveBack()
    this.#supply.pause()
    await this.#until(() => this.#supply.isSettled)
  }

  resume(): void {
    if (this.#closing !== undefined || this.#isOver) return
    this.#isPaused = false
    this.#supply.resume()
    this.#run.pump()
  }

  async drain(): Promise<void> {
    if (this.#isOver) return
    if (this.#isPaused) {
      await this.#until(() => this.#supply.isSettled)
      return
    }
    await new Promise<void>((resolve) => {
      this.#drains.add(resolve)
      this.#watchQuiet()
    })
  }

  events(): WorkerEventStream<V, R, K> {
    return this.#events.open()
  }

  on<T extends WorkerEvent<V, R, K>['type']>(
    type: T,
    listener: (event: Extract<WorkerEvent<V, R, K>, { type: T }>) => void,
  ): () => void {
    const stop = this.#events.on(type, (event) => {
      listener(event as Extract<WorkerEvent<V, R, K>, { type: T }>) // It is called for those alone.
    })
    if (type === 'drained') this.#watchQuiet()
    return stop
  }

  close(options: { readonly timeoutMs?: number | undefined } = {}): Promise<void> {
    this.#closing ??= this.#close(options.timeoutMs ?? CLOSE_TIMEOUT_MS)
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** Gives up at once what has not been finished or answered. */
  abandon(reason: MillraceError): void {
    this.#supply.abandon(reason)
    this.#finish(undefined)
  }

  // ── handlers ────────────────────────────────────────────────────────────────────────────────────────────────

  get mayTake(): boolean {
    return !this.#isPaused && this.#closing === undefined && !this.#isOver
  }

  take(): Job<V, K> | undefined {
    return this.#supply.take()
  }

  put(job: Job<V, K>): void {
    this.#supply.put(job)
  }

  threw(job: Job<V, K>, error: unknown): void {
    // What it throws then, it throws because it was told that its work is for nothing.
    if (job.lease.lost !== undefined || (job.isAborted && job.verdict !== undefined)) return
    const { isRetryable } = this.#parts.options
    settleByError(job, error, isRetryable, this.#connection.logger)
    if (this.#events.isHeard && job.verdict !== 'release') {
      this.#events.emit({ type: 'failed', job, error })
    }
  }

  // ── what the supply tells ───────────────────────────────────────────────────────────────────────────────────

  started(): void {
    this.#resolveReady()
    this.#look()
  }

  supplied(): void {
    this.#run.pump()
  }

  acknowledged(job: AnyJob, isDead: boolean): void {
    if (this.#events.isHeard) this.#events.emit(this.#eventOf(job as Job<V, K>, isDead)) // Its own supply decoded it.
  }

  refused(job: AnyJob, error: MillraceError): void {
    if (error.code === 'LEASE_LOST' || error.code === 'INVALID_LEASE_TOKEN') {
      this.stalled(job, error)
      return
    }
    if (this.#isOver || this.#closing !== undefined) return
    this.#connection.logger?.error(
      `the verdict on ${job.label} was not taken, so it comes again: ${error.message}`,
      { topic: job.topic, partition: job.partition, offset: job.offset, code: error.code },
    )
  }

  stalled(job: AnyJob, error: MillraceError): void {
    const { topic, partition, offset } = job
    this.#connection.logger?.warn(`${job.label} is lost to its handler: ${error.message}`, {
      topic,
      partition,
      offset,
      code: error.code,
    })
    if (!this.#events.isHeard) return
    this.#events.emit({ type: 'stalled', job: job as Job<V, K>, error }) // Its own supply decoded it.
  }

  unreadable(_job: AnyJob, error: MillraceError): void {
    this.#connection.logger?.error(`${error.message}; it is rejected`, error.details)
  }

  noticed(notice: WorkNoticeMessage): void {
    if (!this.#events.isHeard || notice.throttledUntilMs === 0) return
    this.#events.emit({ type: 'throttled', untilMs: notice.throttledUntilMs })
  }

  settled(): void {
    this.#look()
  }

  failed(error: MillraceError): void {
    if (this.#isOver) return
    const { group, topic } = this.#parts.checked.target
    if (this.#closing === undefined) {
      this.#connection.logger?.error(`the worker of group ${group} has ended: ${error.message}`, {
        group,
        topic,
        code: error.code,
      })
    }
    this.#finish(this.#closing === undefined ? error : undefined)
    void this.#parts.threads?.close() // It never rejects.
  }

  // ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────

  async #close(timeoutMs: number): Promise<void> {
    if (this.#isOver) return
    const { clock } = this.#connection
    const endMs = clock.monotonicMs() + timeoutMs
    this.#run.giveBack()
    this.#supply.stop()
    await this.#until(() => this.#supply.isSettled, timeoutMs)
    const reason = this.#closedError(timeoutMs)
    for (const job of this.#supply.inHand) {
      // First the verdict: what its handler does when it is told is no failure of the record.
      job.settle('release')
      job.abort(reason)
    }
    if (this.#supply.isUp) await this.#until(() => this.#supply.isAnswered, END_PATIENCE_MS)
    else await this.#until(() => this.#supply.isAnswered, Math.max(0, endMs - clock.monotonicMs()))
    await this.#supply.end(END_PATIENCE_MS, reason)
    await this.#parts.threads?.close()
    this.#finish(undefined)
  }

  #closedError(timeoutMs: number): MillraceError {
    const { group, topic } = this.#parts.checked.target
    return new MillraceError('CLOSED', `the worker of group ${group} was closed`, {
      group,
      topic,
      timeoutMs,
    })
  }

  #finish(error: MillraceError | undefined): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#parts.options.signal?.removeEventListener('abort', this.#abort)
    this.#cancelQuiet?.()
    const { group, topic } = this.#parts.checked.target
    const reason = new MillraceError('CLOSED', `the worker of group ${group} was closed`, {
      group,
      topic,
    })
    this.#rejectReady(error ?? reason)
    if (error === undefined) this.#resolveClosed()
    else this.#rejectClosed(error)
    for (const waiter of this.#waiters) waiter.resolve()
    this.#waiters.clear()
    for (const resolve of this.#drains) resolve()
    this.#drains.clear()
    this.#events.close()
    this.#parts.onClosed(this)
  }

  /** Ends the worker for a reason of its own side. What it has in hand is released. */
  fail(error: MillraceError): void {
    if (this.#isOver) return
    this.#supply.stop()
    void this.#supply.end(END_PATIENCE_MS, error) // It never rejects.
    this.failed(error)
  }

  // ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────

  /** Resolves when it is met, when the worker is over, or after a time. */
  #until(isMet: () => boolean, timeoutMs?: number): Promise<void> {
    if (isMet() || this.#isOver) return Promise.resolve()
    return new Promise((resolve) => {
      const { clock } = this.#connection
      const cancel =
        timeoutMs === undefined ? undefined : clock.schedule(timeoutMs, () => waiter.resolve())
      const waiter: Waiter = {
        isMet,
        resolve: () => {
          cancel?.()
          this.#waiters.delete(waiter)
          resolve()
        },
      }
      this.#waiters.add(waiter)
    })
  }

  #look(): void {
    for (const waiter of this.#waiters) if (waiter.isMet()) waiter.resolve()
    if (this.#drains.size > 0 || this.#events.isHeard) this.#watchQuiet()
  }

  #watchQuiet(): void {
    const supply = this.#supply
    if (this.#cancelQuiet !== undefined || !supply.isHungry || this.#isOver) return
    const sinceMs = supply.lastDeliveryMs
    if (this.#drains.size === 0 && sinceMs === this.#drainedMs) return
    this.#cancelQuiet = this.#connection.clock.schedule(QUIET_MS, () => {
      this.#cancelQuiet = undefined
      if (!supply.isHungry || supply.lastDeliveryMs !== sinceMs) {
        this.#watchQuiet()
        return
      }
      for (const resolve of this.#drains) resolve()
      this.#drains.clear()
      if (sinceMs === this.#drainedMs) return
      this.#drainedMs = sinceMs
      this.#events.emit({ type: 'drained' })
    })
  }

  #eventOf(job: Job<V, K>, isDead: boolean): WorkerEvent<V, R, K> {
    const { error } = job.verdictOptions
    switch (job.verdict) {
      case 'accept':
        return { type: 'completed', job, result: job.result as R } // What its handler returned.
      case 'reject':
        return { type: 'dead', job, error }
      case 'retry':
        return { type: isDead ? 'dead' : 'retrying', job, error }
      default:
        return { type: 'released', job }
    }
  }
}

/**
 * `threadMain` is for tests, which have no compiled file beside these.
 * @throws MillraceError INVALID_GROUP_ID, INVALID_TOPIC_NAME, INVALID_REQUEST that names the option
 */
export function createWorker<V, R, K>(
  connection: LinkConnection,
  topic: Topic<V, K>,
  options: WorkerOptions,
  handler: Handler<V, R, K> | URL,
  onClosed: (worker: ClosableWorker) => void,
  threadMain?: URL,
): QueueWorker<V, R, K> {
  const checked = checkWorkerOptions(topic.name, options)
  const { concurrency } = checked
  const breather = new Breather(connection.clock)
  if (typeof handler === 'function') {
    return new QueueWorker(connection, topic, {
      checked,
      options,
      createRun: (host) => new JobRun(host, handler, concurrency, breather),
      onClosed,
    })
  }
  if (!(handler instanceof URL)) {
    throw new MillraceError('INVALID_REQUEST', 'the handler is neither a function nor a URL', {
      field: 'handler',
    })
  }
  const threads = new WorkerThreads(handler, checked, connection, threadMain)
  // Bytes go to the thread, which decodes them: the worker's own events show them as they are.
  const raw = { name: topic.name, value: bytes, key: bytes }
  const worker = new QueueWorker<Uint8Array, unknown, Uint8Array>(connection, raw, {
    checked,
    options,
    createRun: (host, self) => {
      threads.onFailed = (error) => self.fail(error)
      return new JobRun(host, (job, context) => threads.run(job, context), concurrency, breather)
    },
    threads,
    onClosed,
  })
  return worker as unknown as QueueWorker<V, R, K>
}

/** @throws MillraceError as {@link createWorker} */
export function createBatchWorker<V, K>(
  connection: LinkConnection,
  topic: Topic<V, K>,
  options: BatchWorkerOptions,
  handler: BatchHandler<V, K>,
  onClosed: (worker: ClosableWorker) => void,
): QueueWorker<V, void, K> {
  const checked = checkBatchWorkerOptions(topic.name, options)
  const { concurrency, batchRecords, batchWaitMs } = checked
  return new QueueWorker<V, void, K>(connection, topic, {
    // Records, here.
    checked: { ...checked, concurrency: concurrency * batchRecords },
    options,
    createRun: (host) =>
      new JobBatchRun(host, handler, { concurrency, batchRecords, batchWaitMs }, connection.clock),
    onClosed,
  })
}
