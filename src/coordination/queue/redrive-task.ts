import { type Clock, sleep } from '../../common/clock.ts'
import { BrokerError, type ErrorCode, toBrokerError } from '../../common/errors.ts'
import { MIB, MINUTE_MS, SECOND_MS } from '../../common/units.ts'
import type { Topics } from '../../topic/topics.ts'
import type { QueueLogger } from './companion.ts'
import type { FoundLetter, LetterPlace, LetterScan } from './dead-letter-scan.ts'
import type { RedriveTaskInfo } from './queue-types.ts'
import type { LetterClaims } from './redrive-claims.ts'
import type { SettledMarks } from './redrive-marks.ts'
import { placeOf, type RedriveMover } from './redrive-move.ts'
import {
  encodeRedrive,
  type PendingMove,
  type RedrivePlan,
  type RedriveProgress,
  type RedriveRecord,
  toTaskInfo,
} from './redrive-record.ts'
import { TokenBucket } from './token-bucket.ts'

/** Where tasks are kept. */
export interface TaskStore {
  /** Durable when it resolves; null forgets the task. @throws BrokerError (as rejection) when it cannot be written */
  put(taskId: string, text: string | null): Promise<void>
  /** As of the start. */
  all(): ReadonlyMap<string, string>
}

export interface RedriveTaskOptions {
  readonly record: RedriveRecord
  readonly mover: RedriveMover
  readonly marks: SettledMarks
  readonly claims: LetterClaims
  readonly topics: Topics
  readonly tasks: TaskStore
  readonly clock: Clock
  readonly logger: QueueLogger
  /** The plan's unsettled letters from a place on. */
  readonly scan: (plan: RedrivePlan, from: LetterPlace) => LetterScan
  /** The task is over, and that is written down. */
  readonly onEnded: (record: RedriveRecord) => void
}

/** Letters that are written down together. Each such step waits for the disk three times. */
const MOST_AT_ONCE = 100
const MOST_BYTES_AT_ONCE: number = 4 * MIB
/** With nothing left to spend: how long to wait at least, so that slow redrives do not write each letter by itself. */
const TICK_MS = 100
/** Share of a second's rate that may come at once: two ticks. */
const BURSTS_PER_SECOND = 5
const FIRST_BACKOFF_MS: number = SECOND_MS
const LONGEST_BACKOFF_MS: number = MINUTE_MS

/** Beside what is retryable by itself: the broker is stopping, or a log of state could not be written and is loaded anew. */
const PASSING: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'CLOSED',
  'STORAGE_ERROR',
  'WRONG_EXPECTED_OFFSET',
])

/**
 * Moves the letters of one plan, step by step (SEMANTICS §3.7). A step: claim some letters; write down which, and where their targets end; append; mark them
 * as settled. The next step's record replaces the last one's. After a crash anywhere the letters of the last record are looked for in their
 * targets, so that none is there twice, and none is missing.
 */
export class RedriveTask {
  readonly plan: RedrivePlan
  readonly #options: RedriveTaskOptions
  readonly #bucket: TokenBucket
  /** Aborted when the task is to do nothing more: cancelled, or the broker stops. */
  readonly #stop = new AbortController()
  readonly #close = new AbortController()
  readonly #waiting: { resolve: () => void; reject: (error: BrokerError) => void }[] = []
  #progress: RedriveProgress
  #scan: LetterScan | undefined
  /** Read, and not looked at yet. */
  #letters: readonly FoundLetter[] = []
  #next = 0
  #backoffMs = 0
  #running: Promise<void> | undefined

  constructor(options: RedriveTaskOptions) {
    const { record, clock, mover } = options
    this.plan = record
    this.#options = options
    this.#progress = record
    const { maxPerSec } = record
    const burst = Math.max(1, Math.ceil(maxPerSec / BURSTS_PER_SECOND))
    const limits = { max: maxPerSec, durationMs: SECOND_MS, burst }
    this.#bucket = new TokenBucket(limits, 'empty', clock.monotonicMs())
    // Before anybody else can look at them.
    for (const { letters } of record.pending) mover.claim(record, letters)
  }

  get record(): RedriveRecord {
    return { ...this.plan, ...this.#progress }
  }

  get info(): RedriveTaskInfo {
    return toTaskInfo(this.record)
  }

  get isRunning(): boolean {
    return this.#progress.state === 'running'
  }

  /** Its first record is durable. */
  start(): void {
    this.#running = this.#run()
  }

  /** Resolves when it is written down that nothing more will be moved. @throws BrokerError (as rejection) when that cannot be written for now; it is tried on */
  async cancel(): Promise<void> {
    if (!this.isRunning) return
    const ended = new Promise<void>((resolve, reject) => this.#waiting.push({ resolve, reject }))
    this.#stop.abort()
    await ended
  }

  /** Stops without an end: it goes on after the next start. */
  async close(): Promise<void> {
    this.#close.abort()
    this.#stop.abort()
    await this.#running
    const closed = new BrokerError('CLOSED', 'the broker is stopping')
    for (const { reject } of this.#waiting.splice(0)) reject(closed)
  }

  /** Never rejects. */
  async #run(): Promise<void> {
    const { signal } = this.#stop
    for (;;) {
      try {
        if (this.#progress.pending.length > 0) await this.#resolve()
        if (signal.aborted) break
        if (!(await this.#step())) {
          if (!signal.aborted) return await this.#end('done')
          break
        }
        this.#backoffMs = 0
      } catch (error) {
        if (signal.aborted) break
        const failure = toBrokerError(error)
        if (!isPassing(failure)) return await this.#end('failed', failure)
        await this.#backOff(failure, 'a redrive cannot go on for now', signal)
      }
    }
    await this.#end('cancelled')
  }

  /** What was on its way when the last step was cut short: by an error, or by the end of the process. */
  async #resolve(): Promise<void> {
    const { mover } = this.#options
    const { pending, moved } = this.#progress
    const arrived = await mover.resolve(this.plan, pending)
    await mover.settle(this.plan, arrived)
    for (const { letters } of pending) mover.release(this.plan, letters)
    this.#progress = { ...this.#progress, moved: moved + arrived.length, pending: [] }
    this.#lookAgain()
  }

  async #tryResolve(): Promise<void> {
    try {
      await this.#resolve()
    } catch (error) {
      // What is pending stays written down, and nobody else touches it until it can be told what became of it.
      const { code, message } = toBrokerError(error)
      this.#warn({ code, cause: message }, 'nobody knows for now what a redrive has moved last')
    }
  }

  /** Back to where the last step began: what it has settled is passed over. */
  #lookAgain(): void {
    this.#scan = undefined
    this.#letters = []
    this.#next = 0
  }

  /** False when there is nothing left to move. */
  async #step(): Promise<boolean> {
    const { clock } = this.#options
    const { moved, left } = this.#progress
    const { limit } = this.plan.filter
    const wanted = limit === 0 ? MOST_AT_ONCE : Math.min(MOST_AT_ONCE, limit - moved - left)
    if (wanted <= 0) return false
    const nowMs = clock.monotonicMs()
    const granted = this.#bucket.take(nowMs, wanted)
    if (granted === 0) {
      const waitMs = Math.max(TICK_MS, this.#bucket.nextAtMs(nowMs) - nowMs)
      await sleep(clock, waitMs, this.#stop.signal)
      return true
    }
    const { letters, at } = await this.#claim(granted)
    this.#bucket.give(granted - letters.length)
    if (letters.length === 0) return false
    await this.#move(letters, at)
    return true
  }

  /** The next letters that nobody has settled or is about to, and where to go on behind them. Fewer than `most` at the end, and when it is to stop. */
  async #claim(
    most: number,
  ): Promise<{ readonly letters: readonly FoundLetter[]; readonly at: LetterPlace }> {
    const { mover, marks, claims, scan } = this.#options
    const letters: FoundLetter[] = []
    this.#scan ??= scan(this.plan, this.#progress.at)
    let at: LetterPlace = this.#progress.at
    let bytes = 0
    try {
      while (letters.length < most && bytes < MOST_BYTES_AT_ONCE) {
        const letter = this.#letters[this.#next]
        if (letter === undefined) {
          at = this.#scan.place
          if (this.#stop.signal.aborted) break
          const found = await this.#scan.next()
          if (found === undefined) break
          this.#letters = found
          this.#next = 0
          continue
        }
        this.#next++
        const { partition, record } = letter
        const place = placeOf(letter)
        at = { partition: place.partition, offset: place.offset + 1 }
        // Looked at in the turn in which it is claimed: whatever has become of it since it was read counts.
        if (marks.isSettled(partition, record.offset) || claims.has(partition, record.offset))
          continue
        mover.claim(this.plan, [place])
        letters.push(letter)
        bytes += letter.bytes
      }
    } catch (error) {
      mover.release(this.plan, letters.map(placeOf))
      this.#lookAgain()
      throw error
    }
    return { letters, at }
  }

  async #move(claimed: readonly FoundLetter[], at: LetterPlace): Promise<void> {
    const { mover } = this.#options
    let pending: readonly PendingMove[]
    let prepared: Awaited<ReturnType<RedriveMover['prepare']>>
    try {
      prepared = await mover.prepare(this.plan, claimed)
      pending = prepared.moves.map(({ mark, letters }) => ({ mark, letters }))
      // Without anything on its way there is nothing to write down.
      if (pending.length > 0) await this.#save({ ...this.#progress, pending })
    } catch (error) {
      // Nothing has been appended. Should the record have been written all the same, nothing will be found.
      mover.release(this.plan, claimed.map(placeOf))
      this.#lookAgain()
      throw error
    }
    const refused = [...prepared.refused]
    mover.release(
      this.plan,
      refused.map(({ letter }) => letter),
    )
    const outcomes = await Promise.allSettled(prepared.moves.map((move) => mover.append(move)))
    const moved: LetterPlace[] = []
    for (const outcome of outcomes) {
      // What is pending is resolved before anything else happens.
      if (outcome.status === 'rejected') throw outcome.reason
      moved.push(...outcome.value.moved)
      refused.push(...outcome.value.refused)
    }
    await mover.settle(this.plan, moved)
    for (const { letters } of pending) mover.release(this.plan, letters)
    const { left, leftWhy } = this.#progress
    this.#progress = {
      ...this.#progress,
      moved: this.#progress.moved + moved.length,
      left: left + refused.length,
      leftWhy: leftWhy === '' ? (refused[0]?.why ?? '') : leftWhy,
      at,
      pending: [],
    }
  }

  async #save(progress: RedriveProgress): Promise<void> {
    const record = { ...this.plan, ...progress }
    await this.#options.tasks.put(this.plan.taskId, encodeRedrive(record))
    this.#progress = progress
  }

  async #end(state: 'done' | 'cancelled' | 'failed', failure?: BrokerError): Promise<void> {
    const { clock, logger, onEnded } = this.#options
    const error = failure === undefined ? '' : `${failure.code}: ${failure.message}`
    const { signal } = this.#close
    if (signal.aborted) return
    if (this.#progress.pending.length > 0) await this.#tryResolve()
    for (;;) {
      try {
        await this.#save({ ...this.#progress, state, endedMs: clock.wallMs(), error })
        break
      } catch (error) {
        const failure = toBrokerError(error)
        for (const { reject } of this.#waiting.splice(0)) reject(failure)
        if (signal.aborted) return
        await this.#backOff(failure, 'the end of a redrive could not be written down', signal)
        if (signal.aborted) return
      }
    }
    const { taskId, topic, total } = this.plan
    const { moved, left } = this.#progress
    logger.info(
      { event: 'redrive_ended', taskId, topic, state, moved, left, total, error },
      'redrive ended',
    )
    onEnded(this.record)
    for (const { resolve } of this.#waiting.splice(0)) resolve()
  }

  async #backOff(failure: BrokerError, message: string, signal: AbortSignal): Promise<void> {
    this.#backoffMs = Math.min(LONGEST_BACKOFF_MS, Math.max(FIRST_BACKOFF_MS, 2 * this.#backoffMs))
    this.#warn({ code: failure.code, cause: failure.message, retryMs: this.#backoffMs }, message)
    await sleep(this.#options.clock, this.#backoffMs, signal)
  }

  #warn(facts: object, message: string): void {
    const { taskId, topic } = this.plan
    this.#options.logger.warn({ event: 'redrive_failing', taskId, topic, ...facts }, message)
  }
}

function isPassing(failure: BrokerError): boolean {
  return failure.retryable || PASSING.has(failure.code)
}
