import { setTimeout as delay } from 'node:timers/promises'
import type { MillraceError } from '../src/client/index.ts'
import { Connection, parseTarget } from '../src/client/connection.ts'
import {
  GroupSession,
  type SessionAssignment,
  type SessionOwner,
} from '../src/client/group-session.ts'
import { systemClock } from '../src/common/clock.ts'
import { systemRandom } from '../src/common/random.ts'
import { commitLoad, type CommitLoadOptions, type CommitLoadResult } from './commit-load.ts'
import { OwnershipLedger, toPartitionKey } from './ownership.ts'
import { monotonicMs } from './values.ts'

/** Members of one group in one process. Plain data: it is sent to another process. */
export interface MemberLoadOptions {
  readonly address: string
  readonly group: string
  readonly topics: readonly string[]
  readonly sessionTimeoutMs: number
}

/** From the first call until the last answer. Times of {@link monotonicMs}. */
export interface Interval {
  readonly fromMs: number
  readonly untilMs: number
}

export interface MemberProgress {
  readonly members: number
  /** By all members together. */
  readonly owned: number
  readonly fewest: number
  readonly most: number
  /** When a member got or gave up a partition last. */
  readonly changedMs: number
  /** Sessions that were lost or have failed. */
  readonly failures: readonly string[]
}

export interface MemberOwnership {
  /** Rows of key, from, until; see `OwnershipLedger.toSpans`. */
  readonly spans: Float64Array
  /** Keys by member id. */
  readonly owned: readonly (readonly [memberId: string, keys: readonly number[]])[]
}

/**
 * A thousand programs do not start in the same millisecond, and one program with so many members is not what is to be measured: 500 members come within
 * a tenth of a second.
 */
const JOINS_PER_BURST = 25
const BURST_MS = 5
const POLL_MS = 2
const JOIN_PATIENCE_MS = 60_000

/** Sessions without consumers: they take what they are given and give up what they are asked for, at once. */
export class MemberLoad {
  readonly #options: MemberLoadOptions
  readonly #connection: Connection
  readonly #ledger: OwnershipLedger = new OwnershipLedger()
  readonly #failures: string[] = []
  #members: Member[] = []
  #made = 0

  constructor(options: MemberLoadOptions) {
    this.#options = options
    this.#connection = new Connection({
      targets: [parseTarget(options.address)],
      tls: undefined,
      clientId: 'bench-member',
      clock: systemClock,
      random: systemRandom,
      logger: undefined,
    })
  }

  open(): Promise<void> {
    return this.#connection.open(10_000)
  }

  /**
   * So many a second that they come nearly at once. Resolves when the broker has taken each.
   * @throws Error when one is not taken within a minute
   */
  async join(count: number, assignor: string): Promise<Interval> {
    const fromMs = monotonicMs()
    const joined: Member[] = []
    for (let i = 0; i < count; i++) {
      const member = new Member(
        this.#connection,
        this.#options,
        assignor,
        this.#ledger,
        this.#made++,
        this.#failures,
      )
      member.session.start()
      joined.push(member)
      if ((i + 1) % JOINS_PER_BURST === 0) await delay(BURST_MS)
    }
    this.#members.push(...joined)
    for (const member of joined) {
      while (member.session.memberId === '') {
        if (monotonicMs() - fromMs > JOIN_PATIENCE_MS) throw new Error('a join was not answered')
        if (this.#failures.length > 0) throw new Error(this.#failures[0])
        await delay(POLL_MS)
      }
    }
    return { fromMs, untilMs: monotonicMs() }
  }

  /** The last `count` that came, all at once. Resolves when the broker has let each go. */
  async leave(count: number): Promise<Interval> {
    const fromMs = monotonicMs()
    const leaving = this.#members.splice(Math.max(0, this.#members.length - count))
    await Promise.all(leaving.map((member) => member.leave()))
    return { fromMs, untilMs: monotonicMs() }
  }

  progress(): MemberProgress {
    const counts = this.#members.map((member) => this.#ledger.countOf(member.number))
    return {
      members: counts.length,
      owned: this.#ledger.owned,
      fewest: counts.reduce((least, count) => Math.min(least, count), Infinity),
      most: counts.reduce((most, count) => Math.max(most, count), 0),
      changedMs: this.#ledger.changedMs,
      failures: this.#failures,
    }
  }

  ownership(): MemberOwnership {
    return {
      spans: this.#ledger.toSpans(),
      owned: this.#members.map((member) => [
        member.session.memberId,
        [...this.#ledger.keysOf(member.number)],
      ]),
    }
  }

  /** Commits by all members at once, each in a loop of its own. Ends when `stop` is called. */
  commit(options: CommitLoadOptions): Promise<CommitLoadResult> {
    const committers = this.#members.map(({ session, assignment }) => ({ session, assignment }))
    return commitLoad(committers, options)
  }

  /** Ends all sessions without leaving; their last commits are then settled. */
  close(): void {
    for (const member of this.#members) member.session.close()
    this.#connection.close()
  }
}

class Member implements SessionOwner {
  readonly session: GroupSession
  readonly number: number
  assignment: SessionAssignment | undefined
  readonly #topics: readonly string[]
  readonly #ledger: OwnershipLedger
  readonly #failures: string[]

  constructor(
    connection: Connection,
    options: MemberLoadOptions,
    assignor: string,
    ledger: OwnershipLedger,
    number: number,
    failures: string[],
  ) {
    this.number = number
    this.#topics = options.topics
    this.#ledger = ledger
    this.#failures = failures
    const { group, topics, sessionTimeoutMs } = options
    this.session = new GroupSession(
      connection,
      {
        group,
        subscription: { topics, pattern: '' },
        instanceId: '',
        assignor,
        sessionTimeoutMs,
        rebalanceTimeoutMs: 0,
        rack: '',
      },
      this,
    )
  }

  assigned(assignment: SessionAssignment): void {
    this.assignment = assignment
    const keys = new Set<number>()
    for (const { topic, partitions } of assignment.topics) {
      const index = this.#topics.indexOf(topic)
      for (const { partition } of partitions) keys.add(toPartitionKey(index, partition))
    }
    // What goes has gone before the broker hears of it.
    this.#ledger.set(this.number, keys, monotonicMs())
    this.session.confirm(assignment.number)
  }

  lost(reason: MillraceError): void {
    this.#gone(`lost: ${reason.message}`)
  }

  failed(error: MillraceError): void {
    this.#gone(`failed: ${error.message}`)
  }

  leave(): Promise<void> {
    this.#ledger.set(this.number, new Set(), monotonicMs())
    return this.session.leave()
  }

  #gone(why: string): void {
    this.#ledger.set(this.number, new Set(), monotonicMs())
    this.#failures.push(`member ${this.number} ${why}`)
  }
}
