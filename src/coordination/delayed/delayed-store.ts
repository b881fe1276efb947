import type { CancelTimer, Clock } from '../../common/clock.ts'
import { BrokerError, toBrokerError } from '../../common/errors.ts'
import type { Offset } from '../../common/offset.ts'
import type { Random } from '../../common/random.ts'
import { DAY_MS, MIB, MINUTE_MS, SECOND_MS } from '../../common/units.ts'
import type { RecordHeader } from '../../record/batch-builder.ts'
import type { Partition } from '../../topic/partition.ts'
import type { Topics } from '../../topic/topics.ts'
import { murmur2 } from '../../wire/murmur2.ts'
import type { Peer, PeerRecord } from '../peer.ts'
import type { DelayedRecord } from '../queue/queue-types.ts'
import { DelayDelivery, type DelayLogger, endOfIntent, type WaitingIds } from './delay-delivery.ts'
import { DelayFiring, type FiringCounters } from './delay-firing.ts'
import { DelayPage, type PagePlace } from './delay-page.ts'
import {
  DELAY_KEY_BYTES,
  type DelayedEnvelope,
  type DelayTarget,
  encodeEnvelope,
  type Intent,
  parseDelayId,
} from './delay-record.ts'
import { DelayShard, type Moved, type StoredDelay, tombstoneOf } from './delay-shard.ts'

export const DELAYED_TOPIC = '__delayed'

/**
 * Small segments: only what has been rolled can be compacted, and what has been fired goes with that. As large a batch as there can be: a record takes a
 * little more here than in its topic. Nothing of it is kept in memory: most of it is read once, a long time after it was written. And what has only just come is not compacted, or a
 * flood of records that wait would be looked through while it comes, for nothing.
 */
const DELAYED_TOPIC_CONFIG: Readonly<Record<string, string>> = {
  'cleanup.policy': 'compact',
  'segment.bytes': String(16 * MIB),
  'max.message.bytes': String(8 * MIB),
  'tail.cache': 'false',
  'min.compaction.lag.ms': String(10 * MINUTE_MS),
}

/** What is asked to wait. */
export interface DelayRequest extends Omit<DelayedEnvelope, 'moved'> {
  readonly headers: readonly RecordHeader[]
}

export type AcceptOutcome =
  | { readonly error: undefined; readonly delayId: string; readonly offset: Offset }
  | { readonly error: BrokerError }

/** Told of each record that waits with a send id when the log is read, so that a repeat is known after a restart too. */
export type SendIdListener = (record: DelayedEnvelope, delayId: string) => void

export interface DelayedStoreOptions {
  readonly topics: Topics
  readonly peer: Peer
  readonly clock: Clock
  readonly random: Random
  readonly logger: DelayLogger
  readonly ids: WaitingIds
  readonly onSendId: SendIdListener
  /** How many it is told of, about. */
  readonly rememberedSends: number
  /** Of `__delayed`, when it is made. */
  readonly partitions: number
  readonly fireMaxPerSec: number
  readonly onCorruption: 'halt' | 'skip'
}

const RETRY_LOAD_MS: number = SECOND_MS
const MOST_PAGE_BYTES: number = 4 * MIB

/** A partition of `__delayed`, loaded or not. */
interface Slot {
  readonly index: number
  readonly partition: Partition
  shard: DelayShard | undefined
  loading: Promise<void> | undefined
  hasFailed: boolean
  cancelRetry: CancelTimer | undefined
}

/** A waiting record that has been taken out to do something with it. */
interface Claim {
  readonly shard: DelayShard
  readonly number: number
  readonly stored: StoredDelay
  /** Lets others at it again. */
  readonly release: () => void
}

/**
 * Delayed records (SEMANTICS §3.5): they wait in `__delayed`, a compacted topic, and in memory only for when each is due. A record is in one partition's
 * {@link DelayShard}, by its target. Whoever takes it out of the index, the firing, a cancellation or a change, in one turn, has it alone.
 */
export class DelayedStore {
  readonly #topics: Topics
  readonly #clock: Clock
  readonly #random: Random
  readonly #logger: DelayLogger
  readonly #ids: WaitingIds
  readonly #onSendId: SendIdListener
  readonly #rememberedSends: number
  readonly #partitions: number
  readonly #onCorruption: 'halt' | 'skip'
  readonly #delivery: DelayDelivery
  readonly #firing: DelayFiring
  #slots: readonly Slot[] = []
  #loaded: readonly DelayShard[] = []
  #making: Promise<void> | undefined
  #closing: Promise<void> | undefined

  constructor(options: DelayedStoreOptions) {
    const { topics, peer, clock, random, logger, ids } = options
    this.#topics = topics
    this.#clock = clock
    this.#random = random
    this.#logger = logger
    this.#ids = ids
    this.#onSendId = options.onSendId
    this.#rememberedSends = options.rememberedSends
    this.#partitions = options.partitions
    this.#onCorruption = options.onCorruption
    this.#delivery = new DelayDelivery({ topics, peer, clock, random, logger, ids })
    this.#firing = new DelayFiring({
      topics,
      clock,
      logger,
      delivery: this.#delivery,
      shards: () => this.#loaded,
      maxPerSec: options.fireMaxPerSec,
    })
    const topic = topics.find(DELAYED_TOPIC)
    if (topic !== undefined) this.#install(topic.partitions)
  }

  get counters(): Readonly<FiringCounters> {
    return this.#firing.counters
  }

  /** Resolves when everything that waits is known. @throws BrokerError (as rejection) why some of it is not */
  async loaded(): Promise<void> {
    await Promise.all(this.#slots.map((slot) => this.#load(slot)))
  }

  /** Resolves when it is known what waits for a target. @throws BrokerError (as rejection) CLOSED; why it cannot be known */
  async ready(target: DelayTarget): Promise<void> {
    if (this.#slots.length > 0) await this.#load(this.#slotOf(target))
  }

  #install(partitions: readonly Partition[]): void {
    this.#slots = partitions.map((partition, index) => ({
      index,
      partition,
      shard: undefined,
      loading: undefined,
      hasFailed: false,
      cancelRetry: undefined,
    }))
    for (const slot of this.#slots) void this.#loadAhead(slot)
  }

  /** Loads without anybody having asked. Never rejects: it comes again. */
  async #loadAhead(slot: Slot): Promise<void> {
    try {
      await this.#load(slot)
    } catch (error) {
      if (this.#closing !== undefined) return
      const { code, message } = toBrokerError(error)
      const facts = { partition: slot.partition.name, code, cause: message }
      if (!slot.hasFailed) {
        this.#logger.error(facts, 'delayed records could not be read: it will be tried again')
      }
      slot.hasFailed = true
      slot.cancelRetry?.()
      slot.cancelRetry = this.#clock.schedule(RETRY_LOAD_MS, () => void this.#loadAhead(slot))
    }
  }

  async #load(slot: Slot): Promise<DelayShard> {
    if (slot.shard !== undefined) return slot.shard
    if (this.#closing !== undefined) throw new BrokerError('CLOSED', 'the broker is stopping')
    slot.loading ??= this.#replay(slot).finally(() => {
      slot.loading = undefined
    })
    await slot.loading
    return this.#load(slot)
  }

  async #replay(slot: Slot): Promise<void> {
    const { partition, index } = slot
    const startedMs = this.#clock.monotonicMs()
    const shard = new DelayShard({ index, partition, clock: this.#clock })
    const intents = new Map<string, Intent>()
    const replaced = new Map<Offset, Moved>()
    await shard.replay(
      {
        waiting: (envelope, offset, key) => {
          this.#replayWaiting(shard, envelope, offset, key, replaced)
        },
        ended: ({ offset, dueMs, dedupeId }) => {
          const { number, at } = removeReplaced(shard, { offset, dueMs }, replaced)
          if (number < 0) return // Compaction has taken the record, and not yet its tombstone.
          if (dedupeId !== '') this.#ids.ended(shard.targets.get(number), dedupeId, at)
          shard.forgetLost(number)
        },
        intended: (key, intent) => {
          if (intent === undefined) intents.delete(key)
          else intents.set(key, intent)
        },
      },
      this.#onCorruption === 'skip' ? (error) => this.#logSkipped(partition, error) : undefined,
    )
    for (const [offset, { offset: now, dueMs }] of shard.moved) {
      // Those that have been fired since need no name any more.
      if (!shard.due.has(dueMs, now)) shard.moved.delete(offset)
    }
    for (const [key, intent] of intents) this.#resume(shard, Buffer.from(key, 'hex'), intent)
    slot.shard = shard
    this.#loaded = this.#slots.flatMap(({ shard: other }) => other ?? [])
    this.#firing.wake(-Infinity)
    const elapsedMs = Math.round(this.#clock.monotonicMs() - startedMs)
    const facts = { partition: partition.name, records: shard.targets.total, elapsedMs }
    if (shard.targets.total > 0) this.#logger.info(facts, 'delayed records read')
  }

  #replayWaiting(
    shard: DelayShard,
    envelope: DelayedEnvelope,
    offset: Offset,
    key: Uint8Array,
    replaced: Map<Offset, Moved>,
  ): void {
    const { moved, target, deliverAtMs, dedupeId, acceptedMs, checksum, sendId } = envelope
    if (moved !== undefined) {
      const before = removeReplaced(shard, moved, replaced)
      if (before.number >= 0) shard.forgetLost(before.number)
      shard.moved.set(moved.origin, { offset, dueMs: deliverAtMs })
      replaced.set(moved.offset, { offset, dueMs: deliverAtMs })
    }
    shard.due.add(deliverAtMs, offset, shard.targets.added(target))
    if (dedupeId !== '') this.#ids.waits(target, dedupeId, { offset, acceptedMs, checksum })
    const isRecent = offset >= shard.partition.highWatermark - this.#rememberedSends
    if (isRecent && sendId.length > 0)
      this.#onSendId(envelope, shard.nameOf(moved?.origin ?? offset, key))
  }

  /** The broker went down between an intent and its end: whether the records have been appended is for the target to say. */
  #resume(shard: DelayShard, key: Uint8Array, intent: Intent): void {
    const byNumber = new Map<number, { offset: Offset; dueMs: number }[]>()
    for (const { offset, dueMs } of intent.records) {
      const number = shard.due.remove(dueMs, offset)
      if (number < 0) continue
      const records = byNumber.get(number) ?? []
      records.push({ offset, dueMs })
      byNumber.set(number, records)
    }
    for (const [number, records] of byNumber) {
      this.#delivery.noteUnsettled(shard, number, { key, end: intent.end, records })
    }
    if (byNumber.size === 0) shard.owed.push([endOfIntent(key)])
  }

  #logSkipped(partition: Partition, error: BrokerError): void {
    this.#logger.error(
      { partition: partition.name, code: error.code, cause: error.message },
      'delayed records in a damaged place are passed over',
    )
  }

  async #ensure(): Promise<void> {
    if (this.#slots.length > 0) return
    this.#making ??= this.#make().finally(() => {
      this.#making = undefined
    })
    await this.#making
  }

  async #make(): Promise<void> {
    const topic = await this.#topics.ensureInternal(
      DELAYED_TOPIC,
      this.#partitions,
      DELAYED_TOPIC_CONFIG,
    )
    if (this.#closing !== undefined) throw new BrokerError('CLOSED', 'the broker is stopping')
    this.#install(topic.partitions)
  }

  #slotOf(target: DelayTarget): Slot {
    const hash = (murmur2(Buffer.from(target.topicId)) >>> 0) + target.partition
    const slot = this.#slots[hash % this.#slots.length]
    if (slot !== undefined) return slot
    throw new BrokerError('LOADING', `${DELAYED_TOPIC} is not there yet`)
  }

  // ── Taking in ──

  /** One outcome for each, in order, when all are known. Never rejects. */
  async accept(requests: readonly DelayRequest[]): Promise<readonly AcceptOutcome[]> {
    const outcomes: AcceptOutcome[] = []
    try {
      await this.#ensure()
    } catch (error) {
      const failure = toBrokerError(error)
      return requests.map(() => ({ error: failure }))
    }
    const bySlot = new Map<Slot, number[]>()
    for (const [index, { target }] of requests.entries()) {
      const slot = this.#slotOf(target)
      const indexes = bySlot.get(slot)
      if (indexes === undefined) bySlot.set(slot, [index])
      else indexes.push(index)
    }
    await Promise.all(
      [...bySlot].map(([slot, indexes]) => this.#acceptInto(slot, requests, indexes, outcomes)),
    )
    return outcomes
  }

  async #acceptInto(
    slot: Slot,
    requests: readonly DelayRequest[],
    indexes: readonly number[],
    outcomes: AcceptOutcome[],
  ): Promise<void> {
    let shard: DelayShard
    try {
      shard = await this.#load(slot)
    } catch (error) {
      const failure = toBrokerError(error)
      for (const index of indexes) outcomes[index] = { error: failure }
      return
    }
    const keys = this.#random.bytes(DELAY_KEY_BYTES * indexes.length)
    const keyAt = (at: number): Uint8Array =>
      keys.subarray(at * DELAY_KEY_BYTES, (at + 1) * DELAY_KEY_BYTES)
    const records = indexes.map((index, at): PeerRecord => {
      const request = requests[index]!
      const value = Buffer.from(encodeEnvelope({ ...request, moved: undefined }))
      return { key: keyAt(at), value, headers: request.headers, timestampMs: undefined }
    })
    const appended = await shard.append(records)
    for (const [at, index] of indexes.entries()) {
      const outcome = appended[at]!
      const request = requests[index]!
      if (outcome.error !== undefined) {
        outcomes[index] = { error: outcome.error }
        continue
      }
      const { offset } = outcome
      const { target, dedupeId, acceptedMs, checksum, deliverAtMs } = request
      shard.due.add(deliverAtMs, offset, shard.targets.added(target))
      if (dedupeId !== '') this.#ids.waits(target, dedupeId, { offset, acceptedMs, checksum })
      this.#firing.wake(deliverAtMs)
      outcomes[index] = { error: undefined, offset, delayId: shard.nameOf(offset, keyAt(at)) }
    }
  }

  // ── One of them ──

  /** @throws BrokerError (as rejection) DELAY_NOT_FOUND, ALREADY_FIRED; LOADING while nobody can tell which; what appending throws: it waits on then */
  async cancel(delayId: string): Promise<void> {
    const { shard, number, stored, release } = await this.#claim(delayId)
    try {
      await shard.write([tombstoneOf(stored)])
      const { target, dedupeId } = stored.envelope
      if (dedupeId !== '') this.#ids.ended(target, dedupeId, stored.offset)
      shard.forget(number, stored)
    } catch (error) {
      this.#putBack(shard, number, stored)
      throw error
    } finally {
      release()
    }
  }

  /** The delay id stays good. @throws BrokerError (as rejection) as {@link cancel}; DELAY_TOO_LONG */
  async update(delayId: string, deliverAtMs: number): Promise<void> {
    const { shard, number, stored, release } = await this.#claim(delayId)
    const { envelope, key, headers, offset } = stored
    try {
      this.#checkDelay(envelope.target, deliverAtMs)
      const origin = envelope.moved?.origin ?? offset
      const moved = { origin, offset, dueMs: envelope.deliverAtMs }
      const value = Buffer.from(encodeEnvelope({ ...envelope, deliverAtMs, moved }))
      const [newOffset] = await shard.write([{ key, value, headers, timestampMs: undefined }])
      if (newOffset === undefined) throw new BrokerError('INTERNAL_ERROR', 'no offset for a record')
      shard.due.add(deliverAtMs, newOffset, number)
      shard.moved.set(origin, { offset: newOffset, dueMs: deliverAtMs })
      const { target, dedupeId, acceptedMs, checksum } = envelope
      if (dedupeId !== '') {
        this.#ids.waits(target, dedupeId, { offset: newOffset, acceptedMs, checksum })
      }
      this.#firing.wake(deliverAtMs)
    } catch (error) {
      this.#putBack(shard, number, stored)
      throw error
    } finally {
      release()
    }
  }

  /** Appends it now. @throws BrokerError (as rejection) as {@link cancel}; why it cannot be appended: it waits on then */
  async fire(delayId: string): Promise<{ readonly partition: number; readonly offset: Offset }> {
    const { shard, number, stored, release } = await this.#claim(delayId)
    try {
      const { appended, left, error } = await this.#delivery.deliver(shard, number, [stored])
      const offset = appended.get(stored.offset)
      if (left.length > 0) this.#putBack(shard, number, stored)
      if (offset === undefined) throw error ?? new BrokerError('LOADING', unsettledText(delayId))
      this.#firing.counters.fired++
      return { partition: stored.envelope.target.partition, offset }
    } finally {
      release()
      this.#firing.wake(-Infinity) // What is unsettled now has to be looked for.
    }
  }

  #checkDelay(target: DelayTarget, deliverAtMs: number): void {
    const topic = this.#topics.find(target.topic)
    const limit = topic?.id === target.topicId ? topic.config.delayMaxMs : 400 * DAY_MS
    if (deliverAtMs - this.#clock.wallMs() > limit) throw delayTooLong(deliverAtMs, limit)
  }

  #putBack(shard: DelayShard, number: number, stored: StoredDelay): void {
    const dueMs = stored.envelope.deliverAtMs
    shard.due.add(dueMs, stored.offset, number)
    this.#firing.wake(dueMs)
  }

  /** Takes a waiting record out: from here on it is the caller's. */
  async #claim(delayId: string): Promise<Claim> {
    const id = parseDelayId(delayId)
    const slot = id === undefined ? undefined : this.#slots[id.shard]
    if (id === undefined || slot === undefined) throw notFound(delayId)
    const shard = await this.#load(slot)
    for (;;) {
      const offset = shard.moved.get(id.offset)?.offset ?? id.offset
      const busy = shard.busy.get(offset)
      if (busy !== undefined) {
        await busy
        continue
      }
      const stored = await findStored(shard, offset, delayId)
      const isStill = (shard.moved.get(id.offset)?.offset ?? id.offset) === offset
      if (!isStill || shard.busy.has(offset)) continue
      if (stored === undefined) throw alreadyFired(delayId)
      const origin = stored.envelope.moved?.origin ?? stored.offset
      if (origin !== id.offset || Buffer.compare(stored.key, id.key) !== 0) throw notFound(delayId)
      if (shard.unsettled.has(offset)) throw new BrokerError('LOADING', unsettledText(delayId))
      const number = shard.takeOut(stored)
      if (number < 0) throw alreadyFired(delayId)
      let finish: () => void = () => undefined
      shard.busy.set(
        offset,
        new Promise((resolve) => {
          finish = resolve
        }),
      )
      const release = (): void => {
        shard.busy.delete(offset)
        finish()
      }
      return { shard, number, stored, release }
    }
  }

  // ── Looking ──

  count(topic: string): number {
    let count = 0
    for (const { targets } of this.#loaded) {
      count += topic === '' ? targets.total : targets.countOf(topic)
    }
    return count
  }

  /** Up to `limit`, in the order in which they are due; `next` when there are more. Those that are being fired just now are left out. */
  async list(request: {
    readonly topic: string
    readonly fromMs: number
    readonly toMs: number
    readonly after: PagePlace | undefined
    readonly limit: number
  }): Promise<{
    readonly records: readonly DelayedRecord[]
    readonly next: PagePlace | undefined
  }> {
    await this.loaded()
    const page = new DelayPage(request.limit, request.after)
    for (const shard of this.#loaded) page.add(shard, request)
    const records: DelayedRecord[] = []
    const readers = new Map(this.#loaded.map((shard) => [shard.index, shard.reader()]))
    let bytes = 0
    let last: PagePlace | undefined
    for (const place of page.places) {
      if (bytes >= MOST_PAGE_BYTES) return { records, next: last }
      const shard = this.#loaded.find(({ index }) => index === place.shard)
      const stored = await readers.get(place.shard)?.read(place.offset, 1)
      last = place
      if (stored === undefined || shard === undefined) continue
      records.push(describe(shard, stored))
      bytes += stored.envelope.value?.length ?? 0
    }
    return { records, next: page.hasMore ? last : undefined }
  }

  /** What waits, or has waited, at that offset of the target's partition of `__delayed`. Undefined when the log has it no more. */
  async find(target: DelayTarget, offset: Offset): Promise<DelayedRecord | undefined> {
    const shard = await this.#load(this.#slotOf(target))
    const stored = await findStored(shard, offset, '')
    return stored === undefined ? undefined : describe(shard, stored)
  }

  // ── The end ──

  /** Resolves when what is being fired has been. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    for (const slot of this.#slots) slot.cancelRetry?.()
    await this.#firing.stop()
    await Promise.allSettled([this.#making, ...this.#slots.map(({ loading }) => loading)])
  }
}

/**
 * Takes a record out that has been ended or moved: or what it had been moved to before, where that was written and its writer did not hear of it,
 * and went on as if it had not been. The number of its target, or -1, and where it lay.
 */
function removeReplaced(
  shard: DelayShard,
  record: Moved,
  replaced: ReadonlyMap<Offset, Moved>,
): { readonly number: number; readonly at: Offset } {
  const number = shard.due.remove(record.dueMs, record.offset)
  const unheard = number < 0 ? replaced.get(record.offset) : undefined
  if (unheard === undefined) return { number, at: record.offset }
  return { number: shard.due.remove(unheard.dueMs, unheard.offset), at: unheard.offset }
}

async function findStored(
  shard: DelayShard,
  offset: Offset,
  delayId: string,
): Promise<StoredDelay | undefined> {
  if (offset >= shard.partition.highWatermark) throw notFound(delayId)
  if (offset < shard.partition.logStartOffset) return undefined
  const [stored] = await shard.read([offset], 1)
  return stored
}

function describe(shard: DelayShard, stored: StoredDelay): DelayedRecord {
  const { envelope, offset, headers } = stored
  return {
    delayId: shard.idOf(stored),
    topic: envelope.target.topic,
    partition: envelope.target.partition,
    deliverAtMs: envelope.deliverAtMs,
    acceptedMs: envelope.acceptedMs,
    dedupeId: envelope.dedupeId,
    record: {
      offset,
      timestampMs: envelope.timestampMs ?? envelope.acceptedMs,
      key: envelope.key,
      value: envelope.value,
      headers,
    },
  }
}

export function delayTooLong(deliverAtMs: number, limit: number): BrokerError {
  return new BrokerError(
    'DELAY_TOO_LONG',
    `a record can be delayed by ${limit} ms (delay.max.ms of its topic), not until ${deliverAtMs}`,
    { deliverAtMs, limit },
  )
}

function notFound(delayId: string): BrokerError {
  const shown = delayId.slice(0, 60)
  return new BrokerError('DELAY_NOT_FOUND', `there is no delayed record ${shown}`, {
    delayId: shown,
  })
}

function alreadyFired(delayId: string): BrokerError {
  const message = `the delayed record ${delayId} does not wait any more: it has been appended, or cancelled`
  return new BrokerError('ALREADY_FIRED', message, { delayId })
}

function unsettledText(delayId: string): string {
  return `whether the delayed record ${delayId} has been appended is not known until its topic can be read again`
}
