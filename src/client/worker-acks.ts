import type { CancelTimer, Clock } from '../common/clock.ts'
import type { Random } from '../common/random.ts'
import type { AckItemMessage, WireVerdict, WorkErrorMessage } from '../wire/work-codec.ts'
import { retryAfterMs } from './connection.ts'
import { type MillraceError, toMillraceError } from './errors.ts'
import { Backoff } from './retry.ts'
import type { AckOutcome } from './work-link.ts'
import { type AnyJob, type Lease, type SettlingVerdict, toWorkError } from './worker-job.ts'

/** What waits for its turn goes out as one message when one of so many has been answered: the more there is to do, the larger the messages. */
const MOST_UNANSWERED = 8
/** Of one message. With an error of 10 KiB each that would be too large: see {@link MOST_ERROR_LETTERS}. */
const MOST_ITEMS = 1_000
const MOST_ERROR_LETTERS = 256 * 1024

/** Where verdicts go. */
export interface AckTransport {
  /** @throws MillraceError (as rejection) when they will not be answered any more */
  acknowledge(items: readonly AckItemMessage[], isRepeated: boolean): Promise<AckOutcome>
}

/** Told what became of verdicts. None of these may throw. */
export interface AckOwner {
  /** Durable. `isDead`: a `retry` that had no attempts left. */
  acknowledged(lease: Lease, jobs: readonly AnyJob[], count: number, isDead: boolean): void
  refused(lease: Lease, jobs: readonly AnyJob[], count: number, error: MillraceError): void
  /** Nothing waits to be sent or answered. */
  settledAll(): void
}

/** One item of a message. */
interface Entry {
  readonly lease: Lease
  readonly item: AckItemMessage
  /** Those whose verdict it is; none of what was only prefetched. */
  readonly jobs: readonly AnyJob[]
  readonly count: number
}

/**
 * Collects the verdicts of a turn of the event loop into ranges, one item for all neighbours that were accepted, and sends them as one message. What
 * the broker has no time or no room for now is said again.
 */
export class WorkerAcks {
  readonly #transport: AckTransport
  readonly #owner: AckOwner
  readonly #clock: Clock
  readonly #backoff: Backoff
  /** Leases with verdicts that have not been sent. */
  readonly #touched: Set<Lease> = new Set()
  /** What was made into items already: to be sent again, or releases. */
  #ready: Entry[] = []
  #unanswered = 0
  #isScheduled = false
  /** What is ready may not be in the order of its offsets. */
  #isMixed = false
  #cancelPause: CancelTimer | undefined
  #paused: Entry[] = []
  #end: MillraceError | undefined

  constructor(transport: AckTransport, owner: AckOwner, clock: Clock, random: Random) {
    this.#transport = transport
    this.#owner = owner
    this.#clock = clock
    this.#backoff = new Backoff(random)
  }

  /** Nothing waits to be sent or answered. */
  get isIdle(): boolean {
    return (
      this.#unanswered === 0 &&
      this.#touched.size === 0 &&
      this.#ready.length === 0 &&
      this.#paused.length === 0
    )
  }

  /** The job has its verdict. */
  add(job: AnyJob): void {
    const { lease } = job
    if (this.#end !== undefined) {
      job.failed(this.#end)
      return
    }
    if (job.verdict === 'accept') lease.accepted.push(job)
    else lease.others.push(job)
    this.#touched.add(lease)
    this.#schedule()
  }

  /** Of what no handler has been given: `count` records in [first, end). */
  addRange(
    lease: Lease,
    first: number,
    end: number,
    count: number,
    verdict: SettlingVerdict,
    error?: unknown,
  ): void {
    if (this.#end !== undefined || first >= end) return
    const item = toItem(lease, first, end, verdict, {
      error: error === undefined ? undefined : toWorkError(error),
    })
    this.#ready.push({ lease, item, jobs: NO_JOBS, count })
    this.#isMixed = true
    this.#schedule()
  }

  /** Takes back the verdicts of a lease that have not been sent. */
  drop(lease: Lease): readonly AnyJob[] {
    this.#touched.delete(lease)
    const dropped = [...lease.accepted, ...lease.others]
    lease.accepted = []
    lease.others = []
    for (const list of [this.#ready, this.#paused]) {
      for (const entry of list) if (entry.lease === lease) dropped.push(...entry.jobs)
    }
    this.#ready = this.#ready.filter((entry) => entry.lease !== lease)
    this.#paused = this.#paused.filter((entry) => entry.lease !== lease)
    return dropped
  }

  /**
   * Renews leases, for as long as they were given out, or for `leaseMs`. Resolves to those that were refused.
   * @throws MillraceError (as rejection) when there was no answer: nothing is known then
   */
  async renew(
    leases: readonly Lease[],
    leaseMs: number | undefined,
  ): Promise<ReadonlyMap<Lease, MillraceError>> {
    const refused = new Map<Lease, MillraceError>()
    const items = leases.map((lease) =>
      toItem(lease, lease.next, lease.end, 'renew', { delayMs: leaseMs }),
    )
    const outcome = await this.#transport.acknowledge(items, false)
    for (const { index, error } of outcome.refused) {
      const lease = leases[index]
      if (lease !== undefined) refused.set(lease, error)
    }
    return refused
  }

  /** Sends what there is, unless much is unanswered already. */
  flush(): void {
    this.#isScheduled = false
    if (this.#end !== undefined) return
    this.#collect()
    while (this.#ready.length > 0 && this.#unanswered < MOST_UNANSWERED) {
      const ready = this.#ready
      const cut = cutMessage(ready)
      this.#ready = cut === ready.length ? [] : ready.slice(cut)
      this.#send(cut === ready.length ? ready : ready.slice(0, cut))
    }
  }

  /** Nothing is sent any more; what has no answer has failed. */
  close(error: MillraceError): void {
    if (this.#end !== undefined) return
    this.#end = error
    this.#cancelPause?.()
    this.#collect()
    const left = [...this.#ready, ...this.#paused]
    this.#ready = []
    this.#paused = []
    for (const { lease, jobs, count } of left) this.#owner.refused(lease, jobs, count, error)
  }

  #collect(): void {
    for (const lease of this.#touched) if (collect(lease, this.#ready)) this.#isMixed = true
    this.#touched.clear()
    if (!this.#isMixed) return
    // Within a token the broker wants them in order; how tokens follow each other does not matter.
    this.#ready.sort((a, b) => a.item.first - b.item.first)
    this.#isMixed = false
  }

  /** At the end of this turn: what is settled in one turn goes together. */
  #schedule(): void {
    if (this.#isScheduled) return
    this.#isScheduled = true
    setImmediate(() => this.flush())
  }

  #send(entries: readonly Entry[]): void {
    this.#unanswered++
    this.#transport
      .acknowledge(
        entries.map(({ item }) => item),
        true,
      )
      .then(
        (outcome) => this.#answered(entries, outcome),
        (error: unknown) => this.#lost(entries, toMillraceError(error)),
      )
  }

  #answered(entries: readonly Entry[], { refused, dead }: AckOutcome): void {
    this.#unanswered--
    if (refused.length === 0) this.#backoff.reset()
    if (refused.length === 0 && dead.length === 0) {
      for (const { lease, jobs, count } of entries) {
        this.#owner.acknowledged(lease, jobs, count, false)
      }
    } else {
      this.#sortOut(entries, new Map(refused.map(({ index, error }) => [index, error])), dead)
    }
    this.flush()
    this.#checkIdle()
  }

  #sortOut(
    entries: readonly Entry[],
    errors: ReadonlyMap<number, MillraceError>,
    dead: readonly number[],
  ): void {
    const again: Entry[] = []
    let pauseMs = 0
    for (const [index, entry] of entries.entries()) {
      const { lease, jobs, count } = entry
      const error = errors.get(index)
      if (error === undefined) {
        this.#owner.acknowledged(lease, jobs, count, dead.includes(index))
      } else if (error.retryable && lease.lost === undefined) {
        again.push(entry)
        pauseMs = Math.max(pauseMs, retryAfterMs(error))
      } else {
        this.#owner.refused(lease, jobs, count, error)
      }
    }
    if (again.length > 0) this.#sendLater(again, pauseMs)
  }

  /** A disk that is full, a coordinator that loads: the verdicts stand, and are as good as the leases are. */
  #sendLater(entries: readonly Entry[], atLeastMs: number): void {
    this.#paused.push(...entries)
    if (this.#cancelPause !== undefined) return
    const pauseMs = Math.max(this.#backoff.nextDelayMs(), atLeastMs)
    this.#cancelPause = this.#clock.schedule(pauseMs, () => {
      this.#cancelPause = undefined
      this.#ready.push(...this.#paused)
      this.#paused = []
      this.#isMixed = true
      this.flush()
    })
  }

  #lost(entries: readonly Entry[], error: MillraceError): void {
    this.#unanswered--
    for (const { lease, jobs, count } of entries) this.#owner.refused(lease, jobs, count, error)
    this.#checkIdle()
  }

  #checkIdle(): void {
    if (this.isIdle) this.#owner.settledAll()
  }
}

const NO_JOBS: readonly AnyJob[] = []

/** Items of all verdicts of a lease that have not been sent. True when they may not be in the order of their offsets. */
function collect(lease: Lease, into: Entry[]): boolean {
  const { accepted, others } = lease
  if (accepted.length > 0) {
    lease.accepted = []
    if (!isSorted(accepted)) accepted.sort((a, b) => a.ackFirst - b.ackFirst)
    let from = 0
    for (let at = 1; at <= accepted.length; at++) {
      if (accepted[at]?.ackFirst === accepted[at - 1]?.ackEnd) continue
      const jobs = from === 0 && at === accepted.length ? accepted : accepted.slice(from, at)
      into.push(toAccept(lease, jobs))
      from = at
    }
  }
  if (others.length === 0) return false
  lease.others = []
  for (const job of others) {
    const { delayMs, pauseGroupMs, error } = job.verdictOptions
    const verdict = job.verdict ?? 'release'
    const isFailure = verdict === 'retry' || verdict === 'reject'
    const item = toItem(lease, job.ackFirst, job.ackEnd, verdict, {
      delayMs,
      pauseGroupMs,
      error: isFailure ? toWorkError(error) : undefined,
    })
    into.push({ lease, item, jobs: [job], count: 1 })
  }
  return true
}

function isSorted(jobs: readonly AnyJob[]): boolean {
  let last = -1
  for (const { ackFirst } of jobs) {
    if (ackFirst < last) return false
    last = ackFirst
  }
  return true
}

function toAccept(lease: Lease, jobs: readonly AnyJob[]): Entry {
  const first = jobs[0]?.ackFirst ?? 0
  const end = jobs.at(-1)?.ackEnd ?? 0
  return { lease, item: toItem(lease, first, end, 'accept', {}), jobs, count: jobs.length }
}

function toItem(
  lease: Lease,
  first: number,
  end: number,
  verdict: WireVerdict,
  options: {
    readonly delayMs?: number | undefined
    readonly pauseGroupMs?: number | undefined
    readonly error?: WorkErrorMessage | undefined
  },
): AckItemMessage {
  const { delayMs, pauseGroupMs = 0, error } = options
  return { token: lease.token, first, end, verdict, delayMs, error, pauseGroupMs }
}

/** How many of the entries go into one message. */
function cutMessage(entries: readonly Entry[]): number {
  let errorLetters = 0
  let count = 0
  for (const { item } of entries) {
    if (item.error !== undefined)
      errorLetters += item.error.message.length + item.error.stack.length
    if (count > 0 && (count >= MOST_ITEMS || errorLetters > MOST_ERROR_LETTERS)) break
    count++
  }
  return count
}
