import { setTimeout as delay } from 'node:timers/promises'
import { type Client, connect } from '../src/client/index.ts'
import { takeLoopDelay } from './broker-process.ts'
import type { BenchBroker, BenchEnvironment } from './environment.ts'
import type { Interval } from './member-load.ts'
import type { MemberProcess } from './member-processes.ts'
import { checkSingleOwners, toPartitionKey } from './ownership.ts'
import type { RunFigures } from './report.ts'
import { findUsage } from './usage.ts'
import { monotonicMs } from './values.ts'
import { VerificationError } from './verifier.ts'

export interface SettlingOptions {
  readonly members: number
  readonly partitions: number
  readonly topics: number
  readonly processes: number
  /** That go at once. */
  readonly leavers: number
}

const GROUP = 'bench'
const SESSION_TIMEOUT_MS = 45_000
/** Nothing may have moved for so long before the broker is asked whether all is done: asking costs it time that is being measured. */
const QUIET_MS = 100
const POLL_MS = 20
const PATIENCE_MS = 60_000

/**
 * A large group through what can happen to it: one member has everything and all others come at once, one more comes, many go at once, and at last
 * one comes that wishes for another assignor, so that nearly everything moves.
 */
export async function measureSettling(
  environment: BenchEnvironment,
  options: SettlingOptions,
): Promise<{ readonly figures: RunFigures; readonly moves: number }> {
  const broker = await environment.startBroker()
  const topics = Array.from({ length: options.topics }, (_, i) => `bench-${i}`)
  const client = await connect({ url: broker.address, clientId: 'bench' })
  const processes = Array.from({ length: options.processes }, () =>
    environment.startMemberProcess(),
  )
  try {
    const madeMs = await makeTopics(client, topics, options.partitions)
    const peakBefore = findUsage(broker.process.pid)?.peakRssBytes
    const group = new MeasuredGroup(broker, client, processes, topics, options.partitions)
    await group.open()
    await group.measure('alone', 1, (share) => share(1, 'join', 'uniform'))
    const { members, leavers } = options
    await group.measure('together', members, (share) => share(members - 1, 'join', 'uniform'))
    await group.measure('oneMore', members + 1, (share) => share(1, 'join', 'uniform'))
    const left = members + 1 - leavers
    await group.measure('leave', left, (share) => share(leavers, 'leave', ''))
    await group.measure('reshuffle', left + 1, (share) => share(1, 'join', 'range'))
    const usage = findUsage(broker.process.pid)
    for (const process of processes) await process.close()
    return {
      moves: group.moves,
      figures: {
        ...group.figures,
        topicsMadeMs: madeMs,
        brokerPeakRssBeforeBytes: peakBefore,
        brokerPeakRssBytes: usage?.peakRssBytes,
        brokerCpuSeconds: usage?.cpuSeconds,
      },
    }
  } finally {
    for (const process of processes) process.end()
    await client.close()
    await broker.stop()
    environment.remove(broker.process.directory)
  }
}

/** Partitions in equal parts, the first topics one more. */
async function makeTopics(
  client: Client,
  topics: readonly string[],
  partitions: number,
): Promise<number> {
  const startMs = monotonicMs()
  for (const [i, name] of topics.entries()) {
    await client.admin.createTopic(name, { partitions: partOf(partitions, topics.length, i) })
  }
  return monotonicMs() - startMs
}

/** The `index`-th of `parts` parts of a whole number, which differ by one at most. */
export function partOf(whole: number, parts: number, index: number): number {
  return Math.floor(whole / parts) + (index < whole % parts ? 1 : 0)
}

/** Has so many members join or leave, spread over the processes. */
type Share = (count: number, what: 'join' | 'leave', assignor: string) => Promise<Interval>

class MeasuredGroup {
  readonly figures: Record<string, number | undefined> = {}
  /** How often a partition has come to an owner. */
  moves = 0
  readonly #broker: BenchBroker
  readonly #client: Client
  readonly #processes: readonly MemberProcess[]
  readonly #topics: readonly string[]
  readonly #partitions: number
  #turn = 0

  constructor(
    broker: BenchBroker,
    client: Client,
    processes: readonly MemberProcess[],
    topics: readonly string[],
    partitions: number,
  ) {
    this.#broker = broker
    this.#client = client
    this.#processes = processes
    this.#topics = topics
    this.#partitions = partitions
  }

  async open(): Promise<void> {
    const { address } = this.#broker
    const options = { address, group: GROUP, topics: this.#topics }
    for (const process of this.#processes) {
      await process.open({ ...options, sessionTimeoutMs: SESSION_TIMEOUT_MS })
    }
  }

  /** Times of one event: until the broker has taken it, from then until everyone owns what it is to own, and both. */
  async measure(
    name: string,
    members: number,
    act: (share: Share) => Promise<Interval>,
  ): Promise<void> {
    console.error(`  ${name} …`)
    await takeLoopDelay(this.#broker.process) // Forgets what was before.
    const { fromMs, untilMs } = await act((...what) => this.#share(...what))
    const settledMs = await this.#settled(members)
    const { maxMs } = await takeLoopDelay(this.#broker.process)
    const moved = await this.#check(members)
    this.figures[`${name}TakenMs`] = untilMs - fromMs
    this.figures[`${name}SettleMs`] = Math.max(0, settledMs - untilMs)
    this.figures[`${name}TotalMs`] = settledMs - fromMs
    this.figures[`${name}LongestStallMs`] = maxMs
    this.figures[`${name}Moved`] = moved
  }

  async #share(count: number, what: 'join' | 'leave', assignor: string): Promise<Interval> {
    const processes = this.#processes
    // A lone one goes to another process each time.
    const first = this.#turn++
    const asked = processes.flatMap((_, i) => {
      const process = processes[(first + i) % processes.length]
      const part = partOf(count, processes.length, i)
      if (process === undefined || part === 0) return []
      return [what === 'join' ? process.join(part, assignor) : process.leave(part)]
    })
    const took = await Promise.all(asked)
    return {
      fromMs: Math.min(...took.map(({ fromMs }) => fromMs)),
      untilMs: Math.max(...took.map(({ untilMs }) => untilMs)),
    }
  }

  /**
   * Waits until every partition has one owner and the broker calls the group stable.
   * @returns when the last partition came to its owner
   */
  async #settled(members: number): Promise<number> {
    const untilMs = monotonicMs() + PATIENCE_MS
    let stableMs: number | undefined
    for (;;) {
      const { owned, present, changedMs } = await this.#progress()
      // Nothing may have moved since before the broker was asked, or its answer is about another time than ours.
      if (stableMs === changedMs) return changedMs
      stableMs = undefined
      const isQuiet = monotonicMs() - changedMs > QUIET_MS
      if (owned === this.#partitions && present === members && isQuiet) {
        if ((await this.#findState()) === 'stable') stableMs = changedMs
      }
      if (monotonicMs() > untilMs) {
        throw new VerificationError(
          `${members} members own ${owned} of ${this.#partitions} partitions after ${PATIENCE_MS} ms`,
        )
      }
      if (stableMs === undefined) await delay(POLL_MS)
    }
  }

  async #progress(): Promise<{ owned: number; present: number; changedMs: number }> {
    const all = await Promise.all(this.#processes.map((process) => process.progress()))
    const failures = all.flatMap((progress) => progress.failures)
    if (failures.length > 0) throw new VerificationError(failures.join('; '))
    return {
      owned: all.reduce((total, progress) => total + progress.owned, 0),
      present: all.reduce((total, progress) => total + progress.members, 0),
      changedMs: Math.max(...all.map((progress) => progress.changedMs)),
    }
  }

  async #findState(): Promise<string | undefined> {
    for await (const { group, state } of this.#client.admin.groups()) {
      if (group === GROUP) return state
    }
    return undefined
  }

  /** Members and broker agree on who has what, each partition once, and nothing ever had two owners. @returns partitions that have moved since the last call */
  async #check(members: number): Promise<number> {
    const all = await Promise.all(this.#processes.map((process) => process.ownership()))
    const moves = checkSingleOwners(all.map(({ spans }) => spans))
    const moved = moves - this.moves
    this.moves = moves
    const details = await this.#client.admin.describeGroup(GROUP, { timeLag: false })
    const ownerOf = new Map<number, string>()
    for (const member of details.members) {
      for (const { topic, partition } of member.owned) {
        ownerOf.set(toPartitionKey(this.#topics.indexOf(topic), partition), member.memberId)
      }
    }
    const seen = all.flatMap(({ owned }) => owned)
    if (details.members.length !== members || seen.length !== members) {
      throw new VerificationError(
        `${members} members are there, the broker knows ${details.members.length}`,
      )
    }
    let count = 0
    for (const [memberId, keys] of seen) {
      for (const key of keys) {
        count++
        if (ownerOf.get(key) === memberId) continue
        throw new VerificationError(
          `partition ${key} is owned by ${memberId}, and by ${ownerOf.get(key)} as the broker sees it`,
        )
      }
    }
    if (count !== this.#partitions || ownerOf.size !== this.#partitions) {
      throw new VerificationError(`${count} of ${this.#partitions} partitions have an owner`)
    }
    return moved
  }
}
