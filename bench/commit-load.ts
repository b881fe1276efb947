import { setTimeout as delay } from 'node:timers/promises'
import { MillraceError } from '../src/client/index.ts'
import type { GroupSession, SessionAssignment, SessionCommit } from '../src/client/group-session.ts'
import { Histogram, type HistogramCounts } from './histogram.ts'
import { monotonicMs } from './values.ts'

/** Plain data: it is sent to another process. */
export interface CommitLoadOptions {
  /** Commits of a member that may wait for their answers. */
  readonly inFlight: number
  /** From one commit of a member to its next; 0: as soon as there is room. */
  readonly intervalMs: number
  /** What the partitions hold: nothing beyond can be committed. */
  readonly records: number
  /** Answers within `[fromMs, untilMs)` of {@link monotonicMs} count. It goes on until the sessions end, or until `stopAtMs`. */
  readonly measureFromMs: number
  readonly measureUntilMs: number
  readonly stopAtMs: number
}

/** What is known of one partition's committed offset. */
export interface CommitBounds {
  readonly topic: string
  readonly partition: number
  /** The highest that was answered, and the highest that was sent. 0 for none. */
  readonly answered: number
  readonly sent: number
}

export interface CommitLoadResult {
  /** Commits that were answered within the measured time; each names all partitions of its member. */
  readonly measured: number
  /** Of those, from the call until the answer. */
  readonly latency: HistogramCounts
  readonly bounds: readonly CommitBounds[]
}

export interface Committer {
  readonly session: GroupSession
  readonly assignment: SessionAssignment | undefined
}

/**
 * Each member commits the offsets 1, 2, 3 … in all of its partitions. Rising without a gap, so that what is found after a crash tells which
 * commits have got through.
 */
export async function commitLoad(
  committers: readonly Committer[],
  options: CommitLoadOptions,
): Promise<CommitLoadResult> {
  const loads = committers.map((committer) => new MemberCommits(committer, options))
  await Promise.all(loads.map((load) => load.run()))
  const latency = new Histogram()
  for (const load of loads) latency.add(load.latency.toCounts())
  return {
    measured: loads.reduce((sum, load) => sum + load.measured, 0),
    latency: latency.toCounts(),
    bounds: loads.flatMap((load) => load.bounds()),
  }
}

class MemberCommits {
  readonly latency: Histogram = new Histogram()
  measured = 0
  readonly #session: GroupSession
  readonly #options: CommitLoadOptions
  readonly #partitions: readonly Omit<SessionCommit, 'offset'>[]
  #sent = 0
  #answered = 0
  #failure: unknown
  #isOver = false

  constructor(committer: Committer, options: CommitLoadOptions) {
    this.#session = committer.session
    this.#options = options
    this.#partitions = (committer.assignment?.topics ?? []).flatMap(
      ({ topic, topicId, partitions }) =>
        partitions.map(({ partition }) => ({
          topic,
          topicId,
          partition,
          leaderEpoch: 0,
          metadata: '',
        })),
    )
  }

  async run(): Promise<void> {
    if (this.#partitions.length === 0) throw new Error('a member has no partition to commit')
    const lanes = Array.from({ length: this.#options.inFlight }, () => this.#commitInTurn())
    await Promise.all(lanes)
    if (this.#failure !== undefined) throw this.#failure
  }

  bounds(): CommitBounds[] {
    return this.#partitions.map(({ topic, partition }) => ({
      topic,
      partition,
      answered: this.#answered,
      sent: this.#sent,
    }))
  }

  /** One of the commits that are under way at the same time. */
  async #commitInTurn(): Promise<void> {
    const { intervalMs, records, stopAtMs } = this.#options
    let dueMs = monotonicMs()
    while (!this.#isOver) {
      if (intervalMs > 0) {
        dueMs += intervalMs
        await delay(Math.max(0, dueMs - monotonicMs()))
      }
      if (monotonicMs() >= stopAtMs || this.#isOver) return
      if (this.#sent >= records) {
        this.#fail(new Error(`all ${records} records are committed: ask for more --records`))
        return
      }
      await this.#commit(++this.#sent)
    }
  }

  async #commit(offset: number): Promise<void> {
    const sentMs = monotonicMs()
    const offsets = this.#partitions.map((partition) => ({ ...partition, offset }))
    try {
      const [failure] = await this.#session.commit(offsets)
      if (failure !== undefined) throw failure.error
    } catch (error) {
      // The end of the session is the end of the load: the broker was killed, say.
      this.#isOver = true
      if (!(error instanceof MillraceError) || error.code !== 'CLOSED') this.#fail(error)
      return
    }
    this.#answered = Math.max(this.#answered, offset)
    const nowMs = monotonicMs()
    const { measureFromMs, measureUntilMs } = this.#options
    if (nowMs < measureFromMs || nowMs >= measureUntilMs) return
    this.measured++
    this.latency.record((nowMs - sentMs) * 1000)
  }

  #fail(error: unknown): void {
    this.#isOver = true
    this.#failure ??= error
  }
}
