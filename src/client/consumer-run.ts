import { Ring } from '../bytes/ring.ts'
import { sleep } from '../common/clock.ts'
import type { Offset } from '../common/offset.ts'
import type { Batch, ReceivedRecord } from './api.ts'
import type { LogBatch, RecordIterator } from './batch.ts'
import type { Breather } from './breather.ts'
import type { Connection } from './connection.ts'
import type { BatchContext, HandlerContext, RunOptions } from './consumer-api.ts'
import type { Delivery, Membership } from './consumer-membership.ts'
import type { DeadLetters } from './dead-letters.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import type { OffsetTracker } from './offset-tracker.ts'
import type { OwnedPartition } from './owned-partition.ts'
import { Backoff } from './retry.ts'

/**
 * Records of one partition from the first unfinished one on, finished ones included. With that many, or with {@link MembershipOptions.prefetchBytes} of unfinished
 * ones, it gets no more until half of them are done: one slow record stops its own partition after a while, and no other.
 */
const WINDOW_RECORDS = 10_000

export type RecordHandler<V, K> = (
  record: ReceivedRecord<V, K>,
  context: HandlerContext,
) => Promise<void> | void

export type BatchHandler<V, K> = (batch: Batch<V, K>, context: BatchContext) => Promise<void> | void

export interface CheckedRunOptions {
  readonly concurrency: number
  readonly ordered: 'partition' | 'key' | false
  readonly onError: 'stop' | 'skip' | { readonly deadLetter: string; readonly attempts: number }
}

/** @throws MillraceError INVALID_REQUEST that names the option */
export function checkRunOptions(options: RunOptions): CheckedRunOptions {
  const { concurrency = 1, ordered = 'partition', onError = 'stop' } = options
  checkAtLeastOne('concurrency', concurrency)
  if (ordered !== false && ordered !== 'partition' && ordered !== 'key') {
    throw invalid('ordered', String(ordered), "may be 'partition', 'key' or false")
  }
  if (typeof onError === 'object') {
    checkAtLeastOne('onError.attempts', onError.attempts)
    if (onError.deadLetter === '') throw invalid('onError.deadLetter', '', 'has to name a topic')
  } else if (onError !== 'stop' && onError !== 'skip') {
    throw invalid('onError', String(onError), "may be 'stop', 'skip' or { deadLetter, attempts }")
  }
  return { concurrency, ordered, onError }
}

function checkAtLeastOne(field: string, value: number): void {
  if (!Number.isInteger(value) || value < 1) {
    throw invalid(field, value, 'has to be a whole number, 1 or more')
  }
}

function invalid(field: string, actual: string | number, rule: string): MillraceError {
  return new MillraceError('INVALID_REQUEST', `${field} is ${JSON.stringify(actual)}: it ${rule}`, {
    field,
    actual,
  })
}

export interface RecordRunOptions extends CheckedRunOptions {
  readonly deadLetters: DeadLetters | undefined
}

/** A batch of which records are being handed out. */
interface Source<V, K> {
  readonly state: PartitionState<V, K>
  readonly tracker: OffsetTracker
  readonly batch: LogBatch<V, K>
  readonly records: RecordIterator<V, K>
  /** Of a record, on average. */
  readonly recordBytes: number
}

/** What this run knows of a partition that it has had batches of. */
interface PartitionState<V, K> {
  readonly owned: OwnedPartition<V, K>
  /** Keys that are being handled, and what waits behind them. */
  readonly lanes: Map<string, Ring<Task<V, K>>>
  /** Of records handed out and not finished. */
  bytes: number
}

/** A record to be handled. */
interface Task<V, K> {
  readonly source: Source<V, K>
  readonly offset: number
  /** Undefined when it could not be decoded. */
  readonly record: ReceivedRecord<V, K> | undefined
  readonly decodeError: MillraceError | undefined
  /** Its key, where records of one key wait for each other. */
  readonly lane: string | undefined
  readonly context: OwnContext
}

/**
 * What a handler is given. Its signal is its own, so that what it hangs on it goes with it, and made when it is first asked for: most handlers never do, and
 * it costs about as much as everything else that is done for a record.
 */
class OwnContext implements HandlerContext {
  readonly #owned: OwnedPartition<unknown, unknown>
  #controller: AbortController | undefined

  constructor(owned: OwnedPartition<unknown, unknown>) {
    this.#owned = owned
  }

  get signal(): AbortSignal {
    this.#controller ??= this.#owned.openController()
    return this.#controller.signal
  }

  /** The handler has returned. */
  close(): void {
    if (this.#controller !== undefined) this.#owned.closeController(this.#controller)
  }
}

class OwnBatchContext extends OwnContext implements BatchContext {
  readonly done: (offset: Offset | number) => void

  constructor(owned: OwnedPartition<unknown, unknown>, done: (offset: Offset | number) => void) {
    super(owned)
    this.done = done
  }
}

interface Gate {
  readonly opened: Promise<void>
  readonly open: () => void
}

function createGate(): Gate {
  let open = (): void => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { opened, open }
}

/**
 * Handles records many at once. Each partition has at most one batch from which records are taken; the partition gets no other until that is used up. Under
 * `partition` order the batch rests while one of its records is handled; under `key` order a record whose key is being handled waits behind it.
 */
export class RecordRun<V, K> {
  /** Resolves when nothing more will be handed out. What is in hand may go on. */
  readonly over: Promise<void>
  readonly #connection: Connection
  readonly #membership: Membership<V, K>
  readonly #breather: Breather
  readonly #handler: RecordHandler<V, K>
  readonly #options: RecordRunOptions
  readonly #states: Map<OwnedPartition<V, K>, PartitionState<V, K>> = new Map()
  /** Batches that may be gone on with. */
  readonly #sources: Ring<Source<V, K>> = new Ring()
  /** Batches of partitions whose window is full. */
  readonly #full: Set<Source<V, K>> = new Set()
  /** Records whose turn has come after one of the same key. */
  readonly #next: Ring<Task<V, K>> = new Ring()
  readonly #over: Gate = createGate()
  #running = 0
  #isPumping = false
  #isBreathing = false
  #isOver = false
  #idle: Gate | undefined

  constructor(
    connection: Connection,
    membership: Membership<V, K>,
    breather: Breather,
    handler: RecordHandler<V, K>,
    options: RecordRunOptions,
  ) {
    this.#connection = connection
    this.#membership = membership
    this.#breather = breather
    this.#handler = handler
    this.#options = options
    this.over = this.#over.opened
  }

  /** Resolves when no handler is under way. */
  idle(): Promise<void> {
    if (this.#running === 0) return Promise.resolve()
    this.#idle ??= createGate()
    return this.#idle.opened
  }

  /** Starts handlers as long as there are records and room. To be called whenever either may have come. */
  pump(): void {
    if (this.#isPumping || this.#isBreathing || this.#isOver) return
    this.#isPumping = true
    try {
      this.#reviveFull()
      while (this.#running < this.#options.concurrency && !this.#membership.isStopping) {
        if (this.#breather.isDue() && this.#mustBreathe()) return
        const task = this.#takeTask()
        if (task === undefined) break
        this.#start(task)
      }
      this.#checkOver()
    } catch (error) {
      this.#membership.fail(toMillraceError(error))
      this.#checkOver()
    } finally {
      this.#isPumping = false
    }
  }

  #mustBreathe(): boolean {
    const isLong = this.#breather.look()
    this.#membership.checkAlive()
    if (!isLong) return false
    this.#isBreathing = true
    void this.#breather.breathe().then(() => {
      this.#isBreathing = false
      this.pump()
      return undefined
    })
    return true
  }

  #checkOver(): void {
    const membership = this.#membership
    if (this.#isOver || !membership.isOver) return
    // Read to the end: what is left to be handled is still to be handled.
    if (!membership.isStopping && (this.#running > 0 || this.#hasWork())) return
    this.#isOver = true
    this.#over.open()
  }

  #hasWork(): boolean {
    return this.#sources.length > 0 || this.#full.size > 0 || this.#next.length > 0
  }

  // ── what to handle next ─────────────────────────────────────────────────────────────────────────────────────

  #takeTask(): Task<V, K> | undefined {
    for (let task = this.#next.shift(); task !== undefined; task = this.#next.shift()) {
      if (isLive(task.source)) return task
      this.#leaveLane(task) // The ones behind it are for nothing too, but each lane has to be emptied.
    }
    for (;;) {
      const source = this.#sources.shift() ?? this.#openSource(this.#membership.shift())
      if (source === undefined) return undefined
      const task = this.#taskOf(source)
      if (task !== undefined) return task
    }
  }

  #openSource(delivery: Delivery<V, K> | undefined): Source<V, K> | undefined {
    if (delivery === undefined) return undefined
    const { owned, batch } = delivery
    let state = this.#states.get(owned)
    if (state === undefined) {
      this.#forgetGone()
      state = { owned, lanes: new Map(), bytes: 0 }
      this.#states.set(owned, state)
    }
    owned.hasOpenBatch = true
    this.#membership.hold(owned)
    return {
      state,
      tracker: owned.tracker,
      batch,
      records: batch[Symbol.iterator](),
      recordBytes: batch.bytes.length / Math.max(1, batch.count),
    }
  }

  #forgetGone(): void {
    for (const owned of this.#states.keys()) if (owned.state === 'gone') this.#states.delete(owned)
  }

  /** The next record of a batch that can be handled now. Undefined: none can; then the batch is where it belongs. */
  #taskOf(source: Source<V, K>): Task<V, K> | undefined {
    const { state, tracker } = source
    const { owned, lanes } = state
    const { ordered } = this.#options
    for (;;) {
      if (!isLive(source)) {
        this.#membership.release(owned) // Sought: what comes is in another place.
        return undefined
      }
      if (owned.isPaused) {
        this.#membership.rewind(owned)
        this.#membership.release(owned)
        return undefined
      }
      if (this.#isFull(source, 1)) {
        this.#full.add(source)
        return undefined
      }
      const task = this.#readTask(source)
      if (task === undefined) {
        this.#closeSource(source)
        return undefined
      }
      tracker.begin(task.offset, task.offset + 1)
      state.bytes += source.recordBytes
      if (task.lane !== undefined) {
        const waiting = lanes.get(task.lane)
        if (waiting !== undefined) {
          waiting.push(task)
          continue
        }
        lanes.set(task.lane, new Ring())
      }
      // Under partition order it comes back when this record is finished.
      if (ordered !== 'partition') this.#sources.push(source)
      return task
    }
  }

  #readTask(source: Source<V, K>): Task<V, K> | undefined {
    const { records } = source
    const { owned } = source.state
    const isKeyed = this.#options.ordered === 'key'
    try {
      const step = records.next()
      if (step.done === true) return undefined
      return {
        source,
        offset: step.value.offset,
        record: step.value,
        decodeError: undefined,
        lane: isKeyed ? records.keyText : undefined,
        context: new OwnContext(owned),
      }
    } catch (error) {
      const decodeError = toMillraceError(error)
      // One record that its codec refuses is that record's failure; bytes that are no records are the batch's.
      if (decodeError.details['field'] === undefined) throw decodeError
      const lane = isKeyed ? records.keyText : undefined
      const context = new OwnContext(owned)
      return { source, offset: records.offset, record: undefined, decodeError, lane, context }
    }
  }

  #closeSource(source: Source<V, K>): void {
    const { state, tracker, batch } = source
    const { owned } = state
    owned.hasOpenBatch = false
    const before = tracker.finished
    tracker.passTo(batch.endOffset)
    if (tracker.finished > before) this.#membership.finished(owned)
    this.#membership.release(owned)
  }

  #isFull(source: Source<V, K>, share: number): boolean {
    return (
      source.tracker.units >= WINDOW_RECORDS * share ||
      source.state.bytes >= this.#membership.prefetchBytes * share
    )
  }

  #reviveFull(): void {
    for (const source of this.#full) {
      if (isLive(source) && this.#isFull(source, 0.5)) continue
      this.#full.delete(source)
      this.#sources.push(source)
    }
  }

  // ── handling ────────────────────────────────────────────────────────────────────────────────────────────────

  #start(task: Task<V, K>): void {
    const { owned } = task.source.state
    owned.take()
    this.#running++
    if (task.record === undefined) {
      this.#failed(task, task.decodeError)
      return
    }
    try {
      const result = this.#handler(task.record, task.context)
      if (result === undefined) this.#finish(task)
      else {
        // Anything with a `then` may come from a program in plain JavaScript.
        Promise.resolve(result).then(
          () => this.#finishAndPump(task),
          (error: unknown) => this.#failedAndPump(task, error),
        )
      }
    } catch (error) {
      this.#failed(task, error)
    }
  }

  #finishAndPump(task: Task<V, K>): void {
    this.#finish(task)
    this.pump()
  }

  #failedAndPump(task: Task<V, K>, error: unknown): void {
    this.#failed(task, error)
    this.pump()
  }

  #finish(task: Task<V, K>): void {
    const { tracker, state } = task.source
    if (tracker.finish(task.offset)) this.#membership.finished(state.owned)
    this.#putDown(task)
  }

  /** Finished or not, nobody works on it any more. */
  #putDown(task: Task<V, K>): void {
    const { source } = task
    const { state } = source
    this.#running--
    task.context.close()
    state.owned.put()
    this.#leaveLane(task)
    if (this.#options.ordered === 'partition') this.#sources.push(source)
    if (this.#running > 0) return
    this.#idle?.open()
    this.#idle = undefined
  }

  #leaveLane(task: Task<V, K>): void {
    const { state, recordBytes } = task.source
    state.bytes -= recordBytes
    if (task.lane === undefined) return
    const waiting = state.lanes.get(task.lane)
    const next = waiting?.shift()
    if (next === undefined) state.lanes.delete(task.lane)
    else this.#next.push(next)
  }

  #failed(task: Task<V, K>, error: unknown): void {
    const { onError } = this.#options
    const { owned } = task.source.state
    if (owned.isAborted) {
      this.#putDown(task) // It was told that its work is for nothing, and stopped.
      return
    }
    if (onError === 'stop') {
      this.#stop(task, error)
      return
    }
    if (onError === 'skip') {
      this.#connection.logger?.warn(
        `offset ${task.offset} of ${owned.label} is skipped by group ${this.#membership.group}: ${messageOf(error)}`,
        { ...owned.name, offset: task.offset, error },
      )
      this.#finish(task)
      return
    }
    this.#tryAgain(task, error, onError.attempts)
      .then((isFinished) => {
        if (isFinished) this.#finishAndPump(task)
        else {
          this.#putDown(task)
          this.pump()
        }
        return undefined
      })
      .catch((failure: unknown) => {
        this.#stop(task, failure)
        this.pump()
      })
  }

  #stop(task: Task<V, K>, error: unknown): void {
    const membership = this.#membership
    membership.fail(error)
    membership.abortAll(
      new MillraceError(
        'CLOSED',
        `the run stops, because a handler failed: ${messageOf(error)}`,
        { ...task.source.state.owned.name, offset: task.offset },
        error,
      ),
    )
    this.#putDown(task)
  }

  /** Resolves to true when the record is finished: handled at last, or durable in the dead letter topic. False: it is not ours any more. */
  async #tryAgain(task: Task<V, K>, firstError: unknown, attempts: number): Promise<boolean> {
    const { clock, random } = this.#connection
    const { record, context } = task
    const { signal } = context
    // What cannot be decoded now cannot be decoded the next time.
    const mostFailures = record === undefined ? 1 : attempts
    const backoff = new Backoff(random)
    const firstFailedMs = clock.wallMs()
    let lastFailedMs = firstFailedMs
    let error = firstError
    let failures = 1
    while (failures < mostFailures) {
      await sleep(clock, backoff.nextDelayMs(), signal)
      if (signal.aborted) return false
      try {
        if (record !== undefined) await this.#handler(record, context)
        return true
      } catch (again) {
        error = again
        failures++
        lastFailedMs = clock.wallMs()
      }
      if (signal.aborted) return false
    }
    await this.#bury(task, { failures, firstFailedMs, lastFailedMs, error })
    return !signal.aborted
  }

  async #bury(
    task: Task<V, K>,
    death: {
      readonly failures: number
      readonly firstFailedMs: number
      readonly lastFailedMs: number
      readonly error: unknown
    },
  ): Promise<void> {
    const { deadLetters } = this.#options
    const { state, batch } = task.source
    const { label } = state.owned
    const { signal } = task.context
    const { clock, random, logger } = this.#connection
    const backoff = new Backoff(random)
    const reason = task.record === undefined ? 'rejected' : 'attempts_exhausted'
    if (deadLetters === undefined) return
    while (!signal.aborted) {
      try {
        await deadLetters.send({ ...death, batch, offset: task.offset, reason })
        logger?.warn(
          `offset ${task.offset} of ${label} went to ${deadLetters.name} after ${death.failures} failures: ${messageOf(death.error)}`,
          { ...state.owned.name, offset: task.offset, error: death.error },
        )
        return
      } catch (error) {
        const failure = toMillraceError(error)
        // Two copies of a dead letter are better than none.
        if (!failure.retryable || this.#membership.isStopping) throw failure
        logger?.warn(`dead letters cannot be written to ${deadLetters.name}: ${failure.message}`)
        await sleep(clock, backoff.nextDelayMs(), signal)
      }
    }
  }
}

/** Handles batches, one of a partition at a time. */
export class BatchRun<V, K> {
  /** Resolves when nothing more will be handed out. What is in hand may go on. */
  readonly over: Promise<void>
  readonly #membership: Membership<V, K>
  readonly #breather: Breather
  readonly #handler: BatchHandler<V, K>
  readonly #concurrency: number
  readonly #over: Gate = createGate()
  #running = 0
  #isPumping = false
  #isBreathing = false
  #isOver = false
  #idle: Gate | undefined

  constructor(
    membership: Membership<V, K>,
    breather: Breather,
    handler: BatchHandler<V, K>,
    concurrency: number,
  ) {
    this.#membership = membership
    this.#breather = breather
    this.#handler = handler
    this.#concurrency = concurrency
    this.over = this.#over.opened
  }

  /** Resolves when no handler is under way. */
  idle(): Promise<void> {
    if (this.#running === 0) return Promise.resolve()
    this.#idle ??= createGate()
    return this.#idle.opened
  }

  /** Starts handlers as long as there are batches and room. To be called whenever either may have come. */
  pump(): void {
    if (this.#isPumping || this.#isBreathing || this.#isOver) return
    this.#isPumping = true
    try {
      while (this.#running < this.#concurrency && !this.#membership.isStopping) {
        if (this.#breather.isDue() && this.#mustBreathe()) return
        const delivery = this.#membership.shift()
        if (delivery === undefined) break
        this.#start(delivery)
      }
    } catch (error) {
      this.#membership.fail(toMillraceError(error))
    } finally {
      this.#isPumping = false
    }
    const membership = this.#membership
    if (!membership.isOver || (!membership.isStopping && this.#running > 0)) return
    this.#isOver = true
    this.#over.open()
  }

  #mustBreathe(): boolean {
    const isLong = this.#breather.look()
    this.#membership.checkAlive()
    if (!isLong) return false
    this.#isBreathing = true
    void this.#breather.breathe().then(() => {
      this.#isBreathing = false
      this.pump()
      return undefined
    })
    return true
  }

  #start({ owned, batch }: Delivery<V, K>): void {
    const { tracker } = owned
    tracker.begin(batch.baseOffset, batch.endOffset)
    owned.take()
    this.#running++
    this.#membership.hold(owned)
    const context = new OwnBatchContext(owned, (offset) => {
      if (tracker.advance(batch.baseOffset, offset)) this.#membership.finished(owned)
    })
    this.#handle(batch, context).then(
      () => {
        if (tracker.finish(batch.baseOffset)) this.#membership.finished(owned)
        context.close()
        this.#putDown(owned)
        return undefined
      },
      (error: unknown) => {
        if (!owned.isAborted) this.#stop(error)
        context.close()
        this.#putDown(owned)
      },
    )
  }

  async #handle(batch: LogBatch<V, K>, context: BatchContext): Promise<void> {
    await this.#handler(batch, context)
  }

  #stop(error: unknown): void {
    this.#membership.fail(error)
    const message = `the run stops, because a handler failed: ${messageOf(error)}`
    this.#membership.abortAll(new MillraceError('CLOSED', message, {}, error))
  }

  #putDown(owned: OwnedPartition<V, K>): void {
    this.#running--
    owned.put()
    this.#membership.release(owned)
    if (this.#running === 0) {
      this.#idle?.open()
      this.#idle = undefined
    }
    this.pump()
  }
}

function isLive(source: Source<unknown, unknown>): boolean {
  const { owned } = source.state
  return owned.state === 'owned' && owned.tracker === source.tracker
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
