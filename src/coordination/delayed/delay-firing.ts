import { type CancelTimer, type Clock, sleep } from '../../common/clock.ts'
import { BrokerError, toBrokerError } from '../../common/errors.ts'
import type { Offset } from '../../common/offset.ts'
import { MIB, MINUTE_MS, SECOND_MS } from '../../common/units.ts'
import type { Topic } from '../../topic/topic.ts'
import type { Topics } from '../../topic/topics.ts'
import { batchBytesOf, recordTooLarge } from '../local-peer.ts'
import type { DelayDelivery, DelayLogger } from './delay-delivery.ts'
import type { DelayShard, StoredDelay } from './delay-shard.ts'
import type { LiveTarget } from './delay-targets.ts'

export interface DelayFiringOptions {
  readonly topics: Topics
  readonly clock: Clock
  readonly logger: DelayLogger
  readonly delivery: DelayDelivery
  /** Those that have been loaded. */
  readonly shards: () => readonly DelayShard[]
  /** Records a second, at most. */
  readonly maxPerSec: number
}

/** Since the broker's start. */
export interface FiringCounters {
  fired: number
  /** Dropped, because their topic was deleted. */
  targetMissing: number
}

/** Of one target in one round: one intent, one append. With more, one that waits behind them waits longer. */
const MOST_PER_ROUND = 1000
/** What one target's records of one round may take in memory. */
const MOST_ROUND_BYTES: number = 4 * MIB
/** Records that are brought nearer to their time in one round, of each partition: some milliseconds. */
const MOST_POURED = 10_000
/** Due records that are looked at in one round, those of targets that do not work included. */
const MOST_LOOKED_AT = 20_000

/** Timers count monotonic time; that the wall clock has jumped is seen by looking. */
const CLOCK_CHECK_MS: number = 5 * SECOND_MS
const FIRST_BACKOFF_MS = 100
const LONGEST_BACKOFF_MS: number = 30 * SECOND_MS
const OWED_RETRY_MS: number = SECOND_MS
/** A record that its topic does not take, by its settings of today, or that cannot be read, is tried again after this. */
const POSTPONE_MS: number = MINUTE_MS
/** Room in a batch for the headers that are added to a record with a dedupe id, and to one that is fired. */
export const DEDUPE_HEADER_BYTES = 192
export const FIRED_HEADER_BYTES: number = DEDUPE_HEADER_BYTES + 128

interface Taken {
  readonly offset: Offset
  readonly dueMs: number
}

interface Round {
  readonly shard: DelayShard
  readonly number: number
  readonly taken: Taken[]
}

/**
 * Fires what is due: in rounds, one after the other, each of which takes what has become due, oldest first, and brings it to its targets, those at once.
 * A target that does not work is tried again after a while, longer each time, and holds up no other.
 */
export class DelayFiring {
  readonly counters: FiringCounters = { fired: 0, targetMissing: 0 }
  readonly #topics: Topics
  readonly #clock: Clock
  readonly #logger: DelayLogger
  readonly #delivery: DelayDelivery
  readonly #shards: () => readonly DelayShard[]
  readonly #maxPerSec: number
  readonly #burst: number
  #tokens: number
  #refilledMs: number
  #owedRetryMs = 0
  /** On the monotonic clock: nothing before, since something went wrong that nobody expected. */
  #pausedUntilMs = 0
  #cancelTimer: CancelTimer | undefined
  /** On the wall clock: when the timer fires, as far as it is for something that is due. */
  #armedMs = Infinity
  #running: Promise<void> | undefined
  #isStopped = false
  readonly #stop = new AbortController()

  constructor(options: DelayFiringOptions) {
    this.#topics = options.topics
    this.#clock = options.clock
    this.#logger = options.logger
    this.#delivery = options.delivery
    this.#shards = options.shards
    this.#maxPerSec = options.maxPerSec
    this.#burst = Math.max(1, Math.min(MOST_PER_ROUND, options.maxPerSec / 10))
    this.#tokens = this.#burst
    this.#refilledMs = options.clock.monotonicMs()
  }

  /** Something is due at `dueMs`, or may be. */
  wake(dueMs: number): void {
    if (this.#isStopped || this.#running !== undefined || dueMs >= this.#armedMs) return
    this.#cancelTimer?.()
    this.#armedMs = dueMs
    const pauseMs = this.#pausedUntilMs - this.#clock.monotonicMs()
    const delayMs = Math.min(Math.max(dueMs - this.#clock.wallMs(), pauseMs, 0), CLOCK_CHECK_MS)
    this.#cancelTimer = this.#clock.schedule(delayMs, () => this.#start())
  }

  /** Resolves when the round that is under way has ended. There is none after it. */
  async stop(): Promise<void> {
    this.#isStopped = true
    this.#stop.abort()
    this.#cancelTimer?.()
    await this.#running
  }

  #start(): void {
    this.#cancelTimer = undefined
    this.#armedMs = -Infinity // Nobody needs to wake us until we sleep again.
    this.#running = this.#run().finally(() => {
      this.#running = undefined
      this.#sleep()
    })
  }

  /** Never rejects. */
  async #run(): Promise<void> {
    try {
      while (!this.#isStopped && (await this.#round()))
        await sleep(this.#clock, 0, this.#stop.signal)
    } catch (error) {
      const { code, message } = toBrokerError(error)
      this.#logger.error({ code, cause: message }, 'delayed records could not be fired')
      this.#pausedUntilMs = this.#clock.monotonicMs() + LONGEST_BACKOFF_MS
    }
  }

  /** Arms the timer for what comes next. */
  #sleep(): void {
    this.#armedMs = Infinity
    if (this.#isStopped) return
    const delayMs = this.#findDelay()
    if (delayMs === Infinity) return
    this.#armedMs = this.#clock.wallMs() + delayMs
    this.#cancelTimer = this.#clock.schedule(Math.min(delayMs, CLOCK_CHECK_MS), () => this.#start())
  }

  #findDelay(): number {
    const wallMs = this.#clock.wallMs()
    const nowMs = this.#clock.monotonicMs()
    let delayMs = Infinity
    for (const shard of this.#shards()) {
      delayMs = Math.min(delayMs, shard.due.nextMs - wallMs)
      if (shard.owed.length > 0) delayMs = Math.min(delayMs, this.#owedRetryMs - nowMs)
      for (const number of shard.troubled) {
        const target = shard.targets.get(number)
        const dueMs = target.unsettled.length > 0 ? -Infinity : (target.stuck?.firstMs ?? Infinity)
        delayMs = Math.min(delayMs, Math.max(target.retryAtMs - nowMs, dueMs - wallMs))
      }
    }
    if (this.#tokens < 1) delayMs = Math.max(delayMs, ((1 - this.#tokens) / this.#maxPerSec) * 1000)
    delayMs = Math.max(delayMs, this.#pausedUntilMs - nowMs)
    // At least 1: a timer may come a little early, and must not then spin.
    return Math.max(1, Math.ceil(delayMs))
  }

  /** True when there is more to do at once. */
  async #round(): Promise<boolean> {
    await this.#writeOwed()
    const rounds = new Map<LiveTarget, Round>()
    this.#refill()
    this.#takeAside(rounds)
    const isCutShort = this.#takeDue(rounds)
    if (rounds.size === 0) return isCutShort
    let finish: () => void = () => undefined
    const done = new Promise<void>((resolve) => {
      finish = resolve
    })
    for (const { shard, taken } of rounds.values()) {
      for (const { offset } of taken) shard.busy.set(offset, done)
    }
    try {
      await Promise.all([...rounds.values()].map((round) => this.#fire(round)))
    } finally {
      for (const { shard, taken } of rounds.values()) {
        for (const { offset } of taken) shard.busy.delete(offset)
      }
      finish()
    }
    return this.#findDelay() <= 1
  }

  async #writeOwed(): Promise<void> {
    if (this.#clock.monotonicMs() < this.#owedRetryMs) return
    for (const shard of this.#shards()) {
      if (shard.owed.length === 0) continue
      this.#owedRetryMs = this.#clock.monotonicMs() + OWED_RETRY_MS
      try {
        await this.#delivery.writeOwed(shard)
      } catch (error) {
        const { code, message } = toBrokerError(error)
        const facts = { partition: shard.partition.name, code, cause: message }
        this.#logger.warn(facts, 'ends of delayed records still cannot be written down')
      }
    }
  }

  #refill(): void {
    const nowMs = this.#clock.monotonicMs()
    const gained = ((nowMs - this.#refilledMs) / 1000) * this.#maxPerSec
    this.#tokens = Math.min(this.#burst, this.#tokens + gained)
    this.#refilledMs = nowMs
  }

  /** What has been put aside for targets whose time to be tried again has come. */
  #takeAside(rounds: Map<LiveTarget, Round>): void {
    const nowMs = this.#clock.monotonicMs()
    const wallMs = this.#clock.wallMs()
    for (const shard of this.#shards()) {
      for (const number of shard.troubled) {
        const target = shard.targets.get(number)
        if (target.retryAtMs > nowMs) continue
        const taken: Taken[] = []
        const { stuck } = target
        if (stuck !== undefined && target.unsettled.length === 0) {
          while (stuck.firstMs <= wallMs && taken.length < MOST_PER_ROUND && this.#tokens >= 1) {
            stuck.pop()
            this.#tokens--
            taken.push({ offset: stuck.offset as Offset, dueMs: stuck.dueMs }) // It came from a Taken.
          }
          if (stuck.size === 0) target.stuck = undefined
        }
        if (target.unsettled.length > 0 || taken.length > 0) {
          rounds.set(target, { shard, number, taken })
        } else if (target.stuck === undefined) shard.troubled.delete(number)
      }
    }
  }

  /** True when it stopped before there was nothing due any more. */
  #takeDue(rounds: Map<LiveTarget, Round>): boolean {
    const wallMs = this.#clock.wallMs()
    const nowMs = this.#clock.monotonicMs()
    const shards = this.#shards()
    let isPouring = false
    for (const shard of shards) if (!shard.due.advance(wallMs, MOST_POURED)) isPouring = true
    if (isPouring) return true
    for (let lookedAt = 0; lookedAt < MOST_LOOKED_AT; lookedAt++) {
      const shard = findFirst(shards)
      if (shard === undefined || shard.due.firstMs > wallMs) return false
      if (this.#tokens < 1) return false // The delay until there is one is waited for.
      const { dueMs, offset, target: number } = shard.due.pop()
      const target = shard.targets.get(number)
      const isTroubled = target.stuck !== undefined || target.unsettled.length > 0
      if (isTroubled || target.retryAtMs > nowMs) {
        shard.putAside(number, offset as Offset, dueMs) // It was an Offset when it was added.
        continue
      }
      this.#tokens--
      const round = rounds.get(target)
      if (round === undefined) {
        rounds.set(target, { shard, number, taken: [{ offset: offset as Offset, dueMs }] })
      } else {
        round.taken.push({ offset: offset as Offset, dueMs })
        if (round.taken.length >= MOST_PER_ROUND) return true
      }
    }
    return true
  }

  /** Never rejects: what has not been fired is put aside, or will be found to be unsettled. */
  async #fire({ shard, number, taken }: Round): Promise<void> {
    const target = shard.targets.get(number)
    let left: readonly Taken[] = taken
    try {
      if (target.unsettled.length > 0) {
        await this.#delivery.settle(shard, number)
        return
      }
      const { readOnly } = this.#topics
      if (readOnly !== undefined) {
        throw new BrokerError('READ_ONLY', `topics cannot be changed: ${readOnly}`)
      }
      const topic = this.#topics.find(target.topic)
      const stored = await this.#read(shard, number, taken)
      left = taken.slice(stored.length)
      const present = stored.filter((one) => one !== undefined)
      if (topic?.id !== target.topicId) {
        this.counters.targetMissing += present.length
        if (present.length > 0) await this.#delivery.drop(shard, number, present)
        return
      }
      const { fitting, misfits } = sortOut(topic, present)
      this.#postpone(shard, number, misfits.map(toTaken), misfits[0]?.error)
      if (fitting.length === 0) return
      const delivery = await this.#delivery.deliver(shard, number, fitting)
      this.counters.fired += delivery.appended.size
      left = [...delivery.left.map(toTaken), ...left]
      if (delivery.error !== undefined) throw delivery.error
      if (target.failures > 0) {
        const facts = { topic: target.topic, partition: target.partition }
        this.#logger.info(facts, 'delayed records can be appended again')
      }
      target.failures = 0
    } catch (error) {
      this.#backOff(target, toBrokerError(error))
    } finally {
      for (const { offset, dueMs } of left) shard.putAside(number, offset, dueMs)
    }
  }

  async #read(
    shard: DelayShard,
    number: number,
    taken: readonly Taken[],
  ): Promise<readonly (StoredDelay | undefined)[]> {
    try {
      const offsets = taken.map(({ offset }) => offset)
      const stored = await shard.read(offsets, MOST_ROUND_BYTES)
      for (const [index, one] of stored.entries()) {
        if (one !== undefined) continue
        const facts = { partition: shard.partition.name, offset: taken[index]?.offset }
        this.#logger.error(facts, 'a delayed record has gone from the log before it was fired')
        shard.forgetLost(number)
      }
      return stored
    } catch (error) {
      if (shard.partition.failure !== undefined) throw error
      // It can come back only with the disk; the others need not wait for it.
      this.#postpone(shard, number, taken.slice(0, 1), toBrokerError(error))
      return [undefined]
    }
  }

  #postpone(
    shard: DelayShard,
    number: number,
    records: readonly Taken[],
    error: BrokerError | undefined,
  ): void {
    if (records.length === 0 || error === undefined) return
    const dueMs = this.#clock.wallMs() + POSTPONE_MS
    for (const { offset } of records) shard.due.postpone(dueMs, offset, number)
    const { topic, partition } = shard.targets.get(number)
    this.#logger.error(
      { topic, partition, records: records.length, code: error.code, cause: error.message },
      'delayed records cannot be fired: they are tried again in a minute',
    )
  }

  #backOff(target: LiveTarget, error: BrokerError): void {
    const backoffMs = Math.min(LONGEST_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** target.failures)
    target.retryAtMs = this.#clock.monotonicMs() + backoffMs
    const { topic, partition, failures } = target
    target.failures++
    if (failures > 0) return
    this.#logger.warn(
      { topic, partition, code: error.code, cause: error.message },
      'delayed records could not be appended: they are tried again',
    )
  }
}

interface Misfit extends StoredDelay {
  readonly error: BrokerError
}

/** A topic's settings may have changed since it took the records. */
function sortOut(
  topic: Topic,
  records: readonly StoredDelay[],
): { readonly fitting: StoredDelay[]; readonly misfits: Misfit[] } {
  const fitting: StoredDelay[] = []
  const misfits: Misfit[] = []
  for (const stored of records) {
    const error = findMisfit(topic, stored.envelope, stored.headers, FIRED_HEADER_BYTES)
    if (error === undefined) fitting.push(stored)
    else misfits.push({ ...stored, error })
  }
  return { fitting, misfits }
}

/** Why the topic would not take a record with `addedBytes` of headers that are still to come, or undefined. */
export function findMisfit(
  topic: Topic,
  record: Pick<StoredDelay['envelope'], 'key' | 'value'>,
  headers: StoredDelay['headers'],
  addedBytes: number,
): BrokerError | undefined {
  const { maxMessageBytes, cleanupPolicy } = topic.config
  const bytes = batchBytesOf({ key: record.key, value: record.value, headers }) + addedBytes
  if (bytes > maxMessageBytes) return recordTooLarge(bytes, maxMessageBytes, 0)
  if (record.key !== undefined || cleanupPolicy === 'delete') return undefined
  return new BrokerError(
    'INVALID_RECORD',
    `topic ${topic.name} is compacted, which keeps the newest record of each key, so every record needs one`,
    { topic: topic.name },
  )
}

function toTaken(stored: StoredDelay): Taken {
  return { offset: stored.offset, dueMs: stored.envelope.deliverAtMs }
}

function findFirst(shards: readonly DelayShard[]): DelayShard | undefined {
  let first = shards[0]
  for (const shard of shards) {
    if (first === undefined || shard.due.firstMs < first.due.firstMs) first = shard
  }
  return first
}
