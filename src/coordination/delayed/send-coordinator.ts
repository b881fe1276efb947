import type { Clock } from '../../common/clock.ts'
import { BrokerError, toBrokerError } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import type { Random } from '../../common/random.ts'
import type { Partition } from '../../topic/partition.ts'
import type { Topic } from '../../topic/topic.ts'
import type { Topics } from '../../topic/topics.ts'
import { partitionForKey } from '../../wire/murmur2.ts'
import { DedupeRegistry, type IdPlace, MOST_IDS_PER_TOPIC } from '../dedupe/dedupe-registry.ts'
import { checksumOf } from '../dedupe/payload-checksum.ts'
import { appendRecords } from '../local-peer.ts'
import type { Peer, PeerRecord } from '../peer.ts'
import type { DelayedRecord, SendRecordRequest, SendResult, Sends } from '../queue/queue-types.ts'
import { addDedupeHeaders, type DelayLogger } from './delay-delivery.ts'
import type { FiringCounters } from './delay-firing.ts'
import { formatPageToken, parsePageToken } from './delay-page.ts'
import { DelayedStore } from './delayed-store.ts'
import { checkRecord, checkSend, findDeliverAt, withoutOurs } from './send-check.ts'
import { SendMemory, sendKey, type Sent } from './send-memory.ts'

export interface SendOptions {
  /** Of `__delayed`, when it is made. */
  readonly partitions: number
  /** How many delayed records are appended a second, at most. */
  readonly fireMaxPerSec: number
  /** Sends whose answer is remembered, for repeats. */
  readonly rememberedSends: number
  /** Dedupe ids remembered of one topic, at most. */
  readonly mostIdsPerTopic: number
  /** What damage in `__delayed` means: what waits in that partition is refused (SEGMENT_QUARANTINED), or goes on without what cannot be read. */
  readonly onCorruption: 'halt' | 'skip'
}

export const DEFAULT_SEND_OPTIONS: SendOptions = {
  partitions: 4,
  fireMaxPerSec: 10_000,
  rememberedSends: 20_000,
  mostIdsPerTopic: MOST_IDS_PER_TOPIC,
  onCorruption: 'halt',
}

export interface SendCoordinatorOptions {
  readonly topics: Topics
  readonly peer: Peer
  readonly clock: Clock
  readonly random: Random
  /** Silent by default. */
  readonly logger?: DelayLogger | undefined
  readonly options?: { readonly [K in keyof SendOptions]?: SendOptions[K] | undefined } | undefined
}

const SILENT: DelayLogger = {
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
}

const DEFAULT_PAGE = 100
const LARGEST_PAGE = 1000

/** A record on its way through a call. */
interface Plan {
  readonly index: number
  readonly request: SendRecordRequest
  readonly partition: Partition
  /** Undefined: at once. */
  readonly deliverAtMs: number | undefined
  readonly checksum: number
  /** Under these nobody else may send at the same time: send id and dedupe id. */
  readonly claims: readonly string[]
}

/** One pass over what has no answer yet. */
interface Pass {
  readonly results: (SendResult | undefined)[]
  readonly nowMs: number
  readonly now: Plan[]
  readonly later: Plan[]
  readonly duplicates: { readonly plan: Plan; readonly place: IdPlace }[]
  readonly deferred: Plan[]
  /** What the deferred ones wait for. */
  readonly waits: Promise<void>[]
  readonly claimed: string[]
  /** What others wait for who come with the same ids meanwhile. */
  readonly done: Promise<void>
  readonly end: () => void
}

/**
 * Sends with a delay or a dedupe id (SEMANTICS §3.5, §3.15). A dedupe id is looked up in the partition that its record goes to; while one with the id is on its
 * way, others wait for how it ends. What is to wait goes to {@link DelayedStore}, the rest to its partition.
 */
export class SendCoordinator implements Sends {
  readonly #topics: Topics
  readonly #clock: Clock
  readonly #registry: DedupeRegistry
  readonly #store: DelayedStore
  readonly #memory: SendMemory
  /** By send or dedupe id, with its place. */
  readonly #pending = new Map<string, Promise<void>>()
  #nextPartition: number
  #isClosed = false

  private constructor(options: SendCoordinatorOptions) {
    const { topics, peer, clock, random } = options
    const logger = options.logger ?? SILENT
    const settings = mergeOptions(options.options ?? {})
    this.#topics = topics
    this.#clock = clock
    this.#memory = new SendMemory(settings.rememberedSends, random.bytes(16))
    this.#nextPartition = random.uint32()
    this.#registry = new DedupeRegistry({
      topics,
      clock,
      random,
      logger,
      mostIdsPerTopic: settings.mostIdsPerTopic,
    })
    this.#store = new DelayedStore({
      topics,
      peer,
      clock,
      random,
      logger,
      ids: this.#registry,
      onSendId: (envelope, delayId) => {
        const { target, sendId, deliverAtMs, acceptedMs } = envelope
        this.#memory.remember(target.topicId, sendId, {
          error: undefined,
          partition: target.partition,
          offset: undefined,
          delayId,
          deliverAtMs,
          duplicate: false,
          timestampMs: acceptedMs,
        })
      },
      rememberedSends: settings.rememberedSends,
      partitions: settings.partitions,
      fireMaxPerSec: settings.fireMaxPerSec,
      onCorruption: settings.onCorruption,
    })
  }

  /** What waits is read from `__delayed` in the background; calls that need it wait for it. See {@link loaded}. */
  static async open(options: SendCoordinatorOptions): Promise<SendCoordinator> {
    return new SendCoordinator(options)
  }

  /** Resolves when all that waits is known. @throws BrokerError (as rejection) why some of it is not: it is tried again */
  loaded(): Promise<void> {
    return this.#store.loaded()
  }

  get counters(): Readonly<FiringCounters> {
    return this.#store.counters
  }

  async send(
    topicName: string,
    records: readonly SendRecordRequest[],
  ): Promise<readonly SendResult[]> {
    if (this.#isClosed) throw closed()
    this.#topics.checkWritable(topicName)
    const topic = this.#topics.get(topicName)
    checkSend(records)
    const results: (SendResult | undefined)[] = Array.from({ length: records.length })
    let plans = this.#plan(topic, records, results)
    plans = await this.#readIds(plans, results)
    while (plans.length > 0) {
      const pass = this.#sort(plans, results)
      try {
        await Promise.all([
          this.#appendAll(pass),
          this.#accept(pass),
          ...pass.duplicates.map(({ plan, place }) => this.#answerDuplicate(plan, place, results)),
        ])
      } finally {
        for (const claim of pass.claimed) this.#pending.delete(claim)
        pass.end()
      }
      await Promise.all(pass.waits)
      plans = pass.deferred
    }
    return results.map((result) => result ?? { error: internal() })
  }

  /** Checks each record and says where it goes. Those that are wrong have their result. */
  #plan(
    topic: Topic,
    records: readonly SendRecordRequest[],
    results: (SendResult | undefined)[],
  ): Plan[] {
    const plans: Plan[] = []
    const nowMs = this.#clock.wallMs()
    // Records without key and id go to one partition together, those of the next call to the next.
    const keyless = this.#nextPartition++
    for (const [index, given] of records.entries()) {
      try {
        const headers = withoutOurs(given.headers)
        const request = headers === given.headers ? given : { ...given, headers }
        const deliverAtMs = findDeliverAt(topic, request, nowMs)
        checkRecord(topic, request, index, deliverAtMs, nowMs)
        const partition = this.#choosePartition(topic, request, keyless)
        const hasWindow = request.dedupeId !== '' && topic.config.dedupeWindowMs > 0
        const claims: string[] = []
        if (request.sendId.length > 0) claims.push(`${sendKey(request.sendId)}${topic.id}`)
        if (hasWindow) claims.push(`${request.dedupeId}\n${topic.id}/${partition.index}`)
        const checksum =
          hasWindow && topic.config.dedupeVerify ? checksumOf(request.key, request.value) : 0
        plans.push({ index, request, partition, deliverAtMs, checksum, claims })
      } catch (error) {
        results[index] = { error: toBrokerError(error) }
      }
    }
    return plans
  }

  #choosePartition(topic: Topic, request: SendRecordRequest, keyless: number): Partition {
    const { key, partition, dedupeId } = request
    const count = topic.partitions.length
    if (partition !== undefined) return this.#topics.getPartition(topic.name, partition, topic.id)
    // By the id, so that every use of it comes to the same partition.
    const by = key ?? (dedupeId === '' ? undefined : Buffer.from(dedupeId))
    if (by !== undefined) {
      return this.#topics.getPartition(topic.name, partitionForKey(by, count), topic.id)
    }
    for (let i = 0; i < count; i++) {
      const found = topic.partitions[(keyless + i) % count]
      if (found !== undefined && found.failure === undefined) return found
    }
    return this.#topics.getPartition(topic.name, keyless % count, topic.id)
  }

  /** Resolves to those whose partition's ids are known. */
  async #readIds(plans: Plan[], results: (SendResult | undefined)[]): Promise<Plan[]> {
    const failures = new Map<Partition, BrokerError | undefined>()
    for (const { partition, request } of plans) {
      if (!hasWindow(partition, request) || failures.has(partition)) continue
      try {
        await this.#store.ready(targetOf(partition))
        await this.#registry.ready(partition)
        failures.set(partition, undefined)
      } catch (error) {
        failures.set(partition, toBrokerError(error))
      }
    }
    return plans.filter(({ index, partition, request }) => {
      const error = hasWindow(partition, request) ? failures.get(partition) : undefined
      if (error !== undefined) results[index] = { error }
      return error === undefined
    })
  }

  /** Decides for each, in order and without a door in between, and claims the ids of those that are to be written. */
  #sort(plans: readonly Plan[], results: (SendResult | undefined)[]): Pass {
    const { promise, resolve } = newGate()
    const pass: Pass = {
      results,
      nowMs: this.#clock.wallMs(),
      now: [],
      later: [],
      duplicates: [],
      deferred: [],
      waits: [],
      claimed: [],
      done: promise,
      end: resolve,
    }
    for (const plan of plans) {
      const { index, request, partition, claims } = plan
      const under = claims.map((claim) => this.#pending.get(claim)).find((one) => one !== undefined)
      if (under !== undefined) {
        pass.deferred.push(plan)
        pass.waits.push(under)
        continue
      }
      const sent =
        request.sendId.length === 0
          ? undefined
          : this.#memory.find(partition.topicId, request.sendId)
      if (sent !== undefined) {
        results[index] = sent
        continue
      }
      const place = hasWindow(partition, request)
        ? this.#registry.find(partition, request.dedupeId)
        : undefined
      if (place !== undefined) {
        pass.duplicates.push({ plan, place })
        continue
      }
      for (const claim of claims) {
        this.#pending.set(claim, pass.done)
        pass.claimed.push(claim)
      }
      const waits = plan.deliverAtMs !== undefined && plan.deliverAtMs > pass.nowMs
      if (waits) pass.later.push(plan)
      else pass.now.push(plan)
    }
    return pass
  }

  async #appendAll(pass: Pass): Promise<void> {
    const byPartition = new Map<Partition, Plan[]>()
    for (const plan of pass.now) {
      const plans = byPartition.get(plan.partition)
      if (plans === undefined) byPartition.set(plan.partition, [plan])
      else plans.push(plan)
    }
    await Promise.all(
      [...byPartition].map(([partition, plans]) => this.#append(partition, plans, pass)),
    )
  }

  async #append(partition: Partition, plans: readonly Plan[], pass: Pass): Promise<void> {
    const acceptedMs = pass.nowMs
    const records = plans.map(({ request }): PeerRecord => {
      const { key, value, timestampMs, dedupeId } = request
      const headers = [...request.headers]
      addDedupeHeaders(headers, { dedupeId, acceptedMs })
      return { key, value, headers, timestampMs }
    })
    const outcomes = await appendRecords(partition, records, acceptedMs)
    for (const [at, plan] of plans.entries()) {
      const outcome = outcomes[at]!
      if (outcome.error !== undefined) {
        pass.results[plan.index] = { error: outcome.error }
        continue
      }
      const { offset, timestampMs } = outcome
      const { request, checksum } = plan
      if (hasWindow(partition, request)) {
        this.#registry.appended(partition, request.dedupeId, { offset, acceptedMs, checksum })
      }
      this.#answer(plan, pass, { offset, delayId: '', deliverAtMs: 0, timestampMs })
    }
  }

  async #accept(pass: Pass): Promise<void> {
    if (pass.later.length === 0) return
    const acceptedMs = pass.nowMs
    const outcomes = await this.#store.accept(
      pass.later.map(({ request, partition, deliverAtMs = 0, checksum }) => ({
        target: targetOf(partition),
        acceptedMs,
        deliverAtMs,
        dedupeId: request.dedupeId,
        checksum,
        sendId: request.sendId,
        key: request.key,
        value: request.value,
        timestampMs: request.timestampMs,
        headers: request.headers,
      })),
    )
    for (const [at, plan] of pass.later.entries()) {
      const outcome = outcomes[at]!
      if (outcome.error !== undefined) pass.results[plan.index] = { error: outcome.error }
      else {
        const { delayId } = outcome
        const deliverAtMs = plan.deliverAtMs ?? 0
        this.#answer(plan, pass, {
          offset: undefined,
          delayId,
          deliverAtMs,
          timestampMs: acceptedMs,
        })
      }
    }
  }

  #answer(
    plan: Plan,
    pass: Pass,
    facts: Pick<Sent, 'offset' | 'delayId' | 'deliverAtMs' | 'timestampMs'>,
  ): void {
    const { partition, request, index } = plan
    const { offset, delayId, deliverAtMs, timestampMs } = facts
    const sent: Sent = {
      error: undefined,
      partition: partition.index,
      offset,
      delayId,
      deliverAtMs,
      duplicate: false,
      timestampMs,
    }
    pass.results[index] = sent
    if (request.sendId.length > 0) {
      this.#memory.remember(partition.topicId, request.sendId, sent)
    }
  }

  async #answerDuplicate(
    plan: Plan,
    place: IdPlace,
    results: (SendResult | undefined)[],
  ): Promise<void> {
    const { index, partition, request } = plan
    try {
      if (partition.config.dedupeVerify) checkSame(request, place)
      const offset = toOffset(place.offset)
      const waiting = place.waiting
        ? await this.#store.find(targetOf(partition), offset)
        : undefined
      results[index] = {
        error: undefined,
        partition: partition.index,
        offset: place.waiting ? undefined : offset,
        delayId: waiting?.delayId ?? '',
        deliverAtMs: waiting?.deliverAtMs ?? 0,
        duplicate: true,
        timestampMs: place.acceptedMs,
      }
    } catch (error) {
      results[index] = { error: toBrokerError(error) }
    }
  }

  // ── Records that wait ──

  async listDelayed(request: Parameters<Sends['listDelayed']>[0]): Promise<{
    readonly records: readonly DelayedRecord[]
    readonly nextPageToken: string
  }> {
    if (this.#isClosed) throw closed()
    const fromMs = request.fromMs ?? 0
    const toMs = request.toMs ?? Infinity
    if (!(fromMs <= toMs)) {
      throw new BrokerError('INVALID_REQUEST', `the range from ${fromMs} to ${toMs} is none`, {
        field: 'to_ms',
      })
    }
    const after = parsePageToken(request.pageToken)
    const limit = Math.min(LARGEST_PAGE, request.pageSize > 0 ? request.pageSize : DEFAULT_PAGE)
    const { topic } = request
    const { records, next } = await this.#store.list({ topic, fromMs, toMs, after, limit })
    return { records, nextPageToken: formatPageToken(next) }
  }

  async countDelayed(topic: string): Promise<number> {
    await this.#store.loaded()
    return this.#store.count(topic)
  }

  async cancelDelayed(delayId: string): Promise<void> {
    if (this.#isClosed) throw closed()
    await this.#store.cancel(delayId)
  }

  async updateDelayed(delayId: string, deliverAtMs: number): Promise<void> {
    if (this.#isClosed) throw closed()
    if (!Number.isSafeInteger(deliverAtMs) || deliverAtMs < 0) {
      throw new BrokerError(
        'INVALID_DELAY',
        `${deliverAtMs} is not a whole number of milliseconds since 1970`,
        { field: 'deliver_at_ms', actual: deliverAtMs },
      )
    }
    await this.#store.update(delayId, deliverAtMs)
  }

  async fireDelayed(delayId: string): ReturnType<Sends['fireDelayed']> {
    if (this.#isClosed) throw closed()
    return this.#store.fire(delayId)
  }

  /** Ends the firing; what is being fired is finished. Later calls are CLOSED. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#registry.close()
    await this.#store.close()
  }
}

function newGate(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve: () => void = () => undefined
  const promise = new Promise<void>((done) => {
    resolve = done
  })
  return { promise, resolve }
}

function hasWindow(partition: Partition, request: SendRecordRequest): boolean {
  return request.dedupeId !== '' && partition.config.dedupeWindowMs > 0
}

function targetOf(partition: Partition): { topic: string; topicId: string; partition: number } {
  return { topic: partition.topic, topicId: partition.topicId, partition: partition.index }
}

/** @throws BrokerError DEDUPE_MISMATCH */
function checkSame(request: SendRecordRequest, place: IdPlace): void {
  if (place.checksum === 0 || place.checksum === checksumOf(request.key, request.value)) return
  throw new BrokerError(
    'DEDUPE_MISMATCH',
    `the dedupe id ${JSON.stringify(request.dedupeId)} has been used for another payload`,
    { dedupeId: request.dedupeId },
  )
}

function closed(): BrokerError {
  return new BrokerError('CLOSED', 'the broker is stopping')
}

function internal(): BrokerError {
  return new BrokerError('INTERNAL_ERROR', 'a record was left without an answer')
}

function mergeOptions(given: NonNullable<SendCoordinatorOptions['options']>): SendOptions {
  const defaults = DEFAULT_SEND_OPTIONS
  return {
    partitions: given.partitions ?? defaults.partitions,
    fireMaxPerSec: given.fireMaxPerSec ?? defaults.fireMaxPerSec,
    rememberedSends: given.rememberedSends ?? defaults.rememberedSends,
    mostIdsPerTopic: given.mostIdsPerTopic ?? defaults.mostIdsPerTopic,
    onCorruption: given.onCorruption ?? defaults.onCorruption,
  }
}
