import type { CancelTimer, Clock } from '../common/clock.ts'
import type { Random } from '../common/random.ts'
import type { ErrorCode } from '../common/errors.ts'
import { type MillraceError, toMillraceError } from './errors.ts'
import type { SessionCommit, SessionCommitFailure } from './group-session.ts'
import type { OwnedPartition } from './owned-partition.ts'
import { Backoff } from './retry.ts'

/**
 * The least time between the beginnings of two commits in the background. A consumer that is never idle would otherwise commit without a pause, each time for
 * a few records; a lone record is still committed at once.
 */
const LEAST_PERIOD_MS = 5
/** How often a commit that the program waits for is repeated when it crossed with a new member epoch. */
const MOST_EPOCH_TRIES = 5

/** The partition is not ours any more, so that whoever has it repeats what we could not commit. No fault of anybody's. */
const MOVED: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'PARTITION_NOT_OWNED',
  'STALE_MEMBER_EPOCH',
  'UNKNOWN_MEMBER',
  'INSTANCE_FENCED',
  'UNKNOWN_TOPIC',
  'UNKNOWN_TOPIC_ID',
  'UNKNOWN_PARTITION',
  'CLOSED',
])

/** Whether a commit was refused because its partition is somebody else's, or nobody's, by now. */
export function hasMovedOn(error: MillraceError): boolean {
  return MOVED.has(error.code)
}

export type CommitMode = 'after-each' | 'interval' | 'manual'

export interface CommitterOptions {
  readonly clock: Clock
  readonly random: Random
  readonly mode: CommitMode
  readonly intervalMs: number
  /** As {@link GroupSession.commit}. */
  readonly send: (offsets: readonly SessionCommit[]) => Promise<readonly SessionCommitFailure[]>
  /** Told of commits in the background that failed, and not because their partition has moved. */
  readonly report: (error: MillraceError) => void
}

type Owned = OwnedPartition<unknown, unknown>

/** A call of the program that waits for partitions to be committed. */
interface Waiter {
  readonly partitions: ReadonlySet<Owned>
  readonly resolve: () => void
  readonly reject: (error: MillraceError) => void
  tries: number
}

/**
 * Commits what is finished, at most one commit under way, each with the newest positions only: a commit that waits is never stale, and a slow broker makes
 * commits rarer, not more.
 */
export class OffsetCommitter {
  readonly #options: CommitterOptions
  readonly #backoff: Backoff
  readonly #dirty: Set<Owned> = new Set()
  #waiters: Waiter[] = []
  /** Of the commit under way. */
  #carried: Waiter[] = []
  #isUnderWay = false
  #isStopped = false
  #startedMs = Number.NEGATIVE_INFINITY
  #cancelTimer: CancelTimer | undefined

  constructor(options: CommitterOptions) {
    this.#options = options
    this.#backoff = new Backoff(options.random)
  }

  get isManual(): boolean {
    return this.#options.mode === 'manual'
  }

  /** More of a partition is finished than before. */
  finished(owned: Owned): void {
    // Asked for each record: a flag is cheaper than the set.
    if (owned.isDirty || this.isManual) return
    this.#mark(owned)
    this.#schedule()
  }

  /** Commits where a partition begins, at once, unless commits are by hand. */
  pin(owned: Owned, offset: number): void {
    if (this.isManual) return
    owned.wanted = offset
    this.#mark(owned)
    this.#start()
  }

  /**
   * Commits `offset`, at once. Does nothing for one that is committed already, or below.
   * @throws MillraceError (as rejection) what the broker says of this partition, or of all
   */
  commitTo(owned: Owned, offset: number): Promise<void> {
    if (!isAhead(owned, offset)) return Promise.resolve()
    owned.wanted = Math.max(owned.wanted ?? 0, offset)
    this.#mark(owned)
    return this.#await([owned], offset === owned.underWay)
  }

  /** Commits what is finished of these, at once. */
  commitFinished(partitions: Iterable<Owned>): Promise<void> {
    const behind: Owned[] = []
    const underWay: Owned[] = []
    for (const owned of partitions) {
      const { finished } = owned.tracker
      if (!hasMoved(owned) || !isAhead(owned, finished)) continue
      if (finished === owned.underWay) {
        underWay.push(owned)
        continue
      }
      owned.wanted = Math.max(owned.wanted ?? 0, finished)
      this.#mark(owned)
      behind.push(owned)
    }
    const waits: Promise<void>[] = []
    if (underWay.length > 0) waits.push(this.#await(underWay, true))
    if (behind.length > 0) waits.push(this.#await(behind, false))
    return all(waits)
  }

  /** Nothing of these is committed any more; who waits for them is told `reason`. */
  forget(partitions: Iterable<Owned>, reason: MillraceError): void {
    const gone = new Set(partitions)
    for (const owned of gone) {
      this.#dirty.delete(owned)
      owned.isDirty = false
      owned.wanted = undefined
    }
    const stays = (waiter: Waiter): boolean => {
      for (const owned of waiter.partitions) {
        if (!gone.has(owned)) continue
        waiter.reject(reason)
        return false
      }
      return true
    }
    this.#waiters = this.#waiters.filter(stays)
    this.#carried = this.#carried.filter(stays)
  }

  stop(reason: MillraceError): void {
    this.#isStopped = true
    this.#cancelTimer?.()
    this.#cancelTimer = undefined
    this.#dirty.clear()
    for (const waiter of [...this.#waiters, ...this.#carried]) waiter.reject(reason)
    this.#waiters = []
    this.#carried = []
  }

  #mark(owned: Owned): void {
    owned.isDirty = true
    this.#dirty.add(owned)
  }

  #await(partitions: readonly Owned[], isUnderWay: boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiter: Waiter = { partitions: new Set(partitions), resolve, reject, tries: 0 }
      if (isUnderWay && this.#isUnderWay) {
        this.#carried.push(waiter)
        return
      }
      this.#waiters.push(waiter)
      this.#start()
    })
  }

  #schedule(): void {
    if (this.#isUnderWay || this.#isStopped || this.#cancelTimer !== undefined) return
    const { clock, mode, intervalMs } = this.#options
    const periodMs = mode === 'interval' ? intervalMs : LEAST_PERIOD_MS
    const sinceMs = mode === 'interval' ? 0 : clock.monotonicMs() - this.#startedMs
    if (sinceMs >= periodMs) this.#start()
    else this.#startIn(periodMs - sinceMs)
  }

  #startIn(delayMs: number): void {
    this.#cancelTimer ??= this.#options.clock.schedule(delayMs, () => {
      this.#cancelTimer = undefined
      this.#start()
    })
  }

  #start(): void {
    if (this.#isUnderWay || this.#isStopped) return
    this.#cancelTimer?.()
    this.#cancelTimer = undefined
    this.#isUnderWay = true
    this.#startedMs = this.#options.clock.monotonicMs()
    this.#commitOnce()
      .catch((error: unknown) => this.#options.report(toMillraceError(error)))
      .finally(() => {
        this.#isUnderWay = false
        if (this.#cancelTimer !== undefined) return // Backs off.
        if (this.#waiters.length > 0) this.#start()
        else if (this.#dirty.size > 0) this.#schedule()
      })
  }

  async #commitOnce(): Promise<void> {
    const sent = this.#takeDirty()
    this.#carried = this.#waiters
    this.#waiters = []
    let failures: ReadonlyMap<Owned, MillraceError>
    try {
      failures = sent.length === 0 ? NO_FAILURES : findFailures(sent, await this.#send(sent))
      this.#backoff.reset()
    } catch (error) {
      const whole = toMillraceError(error)
      failures = new Map(sent.map((owned) => [owned, whole]))
    }
    const again = new Set<Owned>()
    const reported = new Set<MillraceError>()
    for (const owned of sent) {
      const error = failures.get(owned)
      const offset = owned.underWay
      owned.underWay = undefined
      if (offset === undefined) continue // Sought meanwhile.
      if (error === undefined) {
        owned.committed = offset
        continue
      }
      if (this.#isRepeated(owned, error)) {
        again.add(owned)
        owned.wanted = Math.max(owned.wanted ?? 0, offset)
        // After a seek back it lies below the last one that was taken, which must not make it count as done.
        owned.mayGoBack ||= !isAhead(owned, offset)
      }
      const isHeard = this.#carried.some((waiter) => waiter.partitions.has(owned))
      if (!isHeard && !hasMovedOn(error)) reported.add(error)
    }
    for (const error of reported) this.#options.report(error)
    this.#answer(failures, again)
    if (again.size === 0) return
    for (const owned of again) this.#mark(owned)
    this.#startIn(this.#backoff.nextDelayMs())
  }

  /** What is to be committed now becomes what is under way. */
  #takeDirty(): Owned[] {
    const sent: Owned[] = []
    for (const owned of this.#dirty) {
      owned.isDirty = false
      const { finished } = owned.tracker
      const byItself = this.isManual || !hasMoved(owned) ? 0 : finished
      const offset = Math.max(owned.wanted ?? 0, byItself)
      const isWanted = owned.wanted !== undefined || byItself > 0
      owned.wanted = undefined
      if (!isWanted || !isAhead(owned, offset)) continue
      owned.underWay = offset
      owned.mayGoBack = false
      sent.push(owned)
    }
    this.#dirty.clear()
    return sent
  }

  #send(sent: readonly Owned[]): Promise<readonly SessionCommitFailure[]> {
    return this.#options.send(
      sent.map((owned) => {
        const offset = owned.underWay ?? 0
        return {
          topic: owned.topic.name,
          topicId: owned.topicId,
          partition: owned.partition,
          offset,
          leaderEpoch: owned.epochBefore(offset),
          metadata: '',
        }
      }),
    )
  }

  /** A commit may cross with an assignment that raises the epoch; and what failed for a while is repeated until it works. */
  #isRepeated(owned: Owned, error: MillraceError): boolean {
    if (owned.state === 'gone' || this.#isStopped) return false
    return error.code === 'STALE_MEMBER_EPOCH' || error.retryable
  }

  #answer(failures: ReadonlyMap<Owned, MillraceError>, again: ReadonlySet<Owned>): void {
    const carried = this.#carried
    this.#carried = []
    for (const waiter of carried) {
      let failure: MillraceError | undefined
      let isWaiting = false
      for (const owned of waiter.partitions) {
        const error = failures.get(owned)
        if (error === undefined) continue
        if (again.has(owned) && waiter.tries < MOST_EPOCH_TRIES) isWaiting = true
        else failure ??= error
      }
      if (failure !== undefined) waiter.reject(failure)
      else if (isWaiting) {
        waiter.tries++
        this.#waiters.push(waiter)
      } else waiter.resolve()
    }
  }
}

/** Rejects when all have been answered, with the first failure. */
async function all(waits: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(waits)) {
    if (result.status === 'rejected') throw result.reason
  }
}

const NO_FAILURES: ReadonlyMap<Owned, MillraceError> = new Map()

/** Nothing has been finished before the first record: what lies below where it started is not ours to commit. */
function hasMoved(owned: Owned): boolean {
  return owned.tracker.finished > owned.tracker.from
}

function isAhead(owned: Owned, offset: number): boolean {
  return owned.mayGoBack || owned.committed === undefined || offset > owned.committed
}

function findFailures(
  sent: readonly Owned[],
  failures: readonly SessionCommitFailure[],
): ReadonlyMap<Owned, MillraceError> {
  if (failures.length === 0) return NO_FAILURES
  const found = new Map<Owned, MillraceError>()
  for (const { topic, partition, error } of failures) {
    const owned = sent.find((one) => one.partition === partition && one.topic.name === topic)
    if (owned !== undefined) found.set(owned, error)
  }
  return found
}
