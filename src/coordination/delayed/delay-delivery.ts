import { invariant } from '../../common/assert.ts'
import type { Clock } from '../../common/clock.ts'
import { BrokerError, toBrokerError } from '../../common/errors.ts'
import {
  ACCEPTED_HEADER,
  DEDUPE_ID_HEADER,
  DELAY_ID_HEADER,
  DELIVER_AT_HEADER,
} from '../../common/job-headers.ts'
import type { Offset } from '../../common/offset.ts'
import type { Random } from '../../common/random.ts'
import type { RecordHeader } from '../../record/batch-builder.ts'
import type { Topics } from '../../topic/topics.ts'
import type { Peer, PeerMark, PeerRecord } from '../peer.ts'
import { DELAY_KEY_BYTES, encodeIntent, intentKey } from './delay-record.ts'
import { type DelayShard, type StoredDelay, tombstoneOf } from './delay-shard.ts'
import type { DelayTarget, DelayedEnvelope } from './delay-record.ts'
import type { Unsettled } from './delay-targets.ts'

export interface DelayLogger {
  info(details: object, message: string): void
  warn(details: object, message: string): void
  error(details: object, message: string): void
}

/** Who has to know which dedupe ids are in use (`DedupeRegistry`). */
export interface WaitingIds {
  waits(
    target: DelayTarget,
    dedupeId: string,
    record: { readonly offset: number; readonly acceptedMs: number; readonly checksum: number },
  ): void
  ended(target: DelayTarget, dedupeId: string, offset: number): void
  fired(
    target: DelayTarget,
    dedupeId: string,
    offset: number,
    record: { readonly offset: number; readonly acceptedMs: number; readonly checksum: number },
  ): void
}

/** How a delivery went. What is in neither is unsettled: see `LiveTarget.unsettled`. */
export interface Delivery {
  /** Where each was appended, by its offset in `__delayed`. */
  readonly appended: ReadonlyMap<Offset, Offset>
  /** Not appended, for certain. */
  readonly left: readonly StoredDelay[]
  readonly error: BrokerError | undefined
}

const NOWHERE: ReadonlyMap<Offset, Offset> = new Map()

/**
 * Brings waiting records to their topic, each as exactly one copy whatever happens in between (SEMANTICS §3.5): an intent with the target's end is written
 * down, the records are appended with their delay ids as headers, their tombstones and that of the intent are written. After a crash, or when an append
 * fails, the target is searched from that end on for the delay ids. Who calls has taken the records out of the index.
 */
export class DelayDelivery {
  readonly #topics: Topics
  readonly #peer: Peer
  readonly #clock: Clock
  readonly #random: Random
  readonly #logger: DelayLogger
  readonly #ids: WaitingIds

  constructor(options: {
    readonly topics: Topics
    readonly peer: Peer
    readonly clock: Clock
    readonly random: Random
    readonly logger: DelayLogger
    readonly ids: WaitingIds
  }) {
    this.#topics = options.topics
    this.#peer = options.peer
    this.#clock = options.clock
    this.#random = options.random
    this.#logger = options.logger
    this.#ids = options.ids
  }

  /** Records of one target, to be appended in this order. At least one. Never rejects. */
  async deliver(
    shard: DelayShard,
    number: number,
    records: readonly StoredDelay[],
  ): Promise<Delivery> {
    const target = shard.targets.get(number)
    const key = intentKey(this.#random.bytes(DELAY_KEY_BYTES))
    let mark: PeerMark
    try {
      mark = this.#mark(target)
      const places = records.map(({ offset, envelope }) => ({
        offset,
        dueMs: envelope.deliverAtMs,
      }))
      const value = encodeIntent({ target, end: mark.end, records: places })
      await shard.write([{ key, value, headers: [], timestampMs: undefined }])
    } catch (error) {
      return { appended: NOWHERE, left: records, error: toBrokerError(error) }
    }
    const appended = new Map<Offset, Offset>()
    try {
      const given = records.map((stored) => this.#toRecord(shard, stored))
      const offsets = await this.#peer.append(mark, given)
      for (const [index, { offset }] of records.entries()) {
        const at = offsets[index]
        invariant(at !== undefined, 'each record that was appended has an offset')
        appended.set(offset, at)
      }
    } catch (error) {
      return await this.#settleFailed(shard, number, records, { mark, key }, toBrokerError(error))
    }
    await this.#finish(shard, number, records, appended, key)
    return { appended, left: [], error: undefined }
  }

  async #settleFailed(
    shard: DelayShard,
    number: number,
    records: readonly StoredDelay[],
    { mark, key }: { readonly mark: PeerMark; readonly key: Uint8Array },
    error: BrokerError,
  ): Promise<Delivery> {
    try {
      const appended = await this.#find(shard, mark, records)
      const left = records.filter(({ offset }) => !appended.has(offset))
      await this.#finish(shard, number, records, appended, key)
      return { appended, left, error }
    } catch {
      // The target can neither be written nor read: `error` says why, and is told. It will be asked again.
      this.noteUnsettled(shard, number, {
        key,
        end: mark.end,
        records: records.map(({ offset, envelope }) => ({ offset, dueMs: envelope.deliverAtMs })),
      })
      return { appended: NOWHERE, left: [], error }
    }
  }

  noteUnsettled(shard: DelayShard, number: number, unsettled: Unsettled): void {
    shard.targets.get(number).unsettled.push(unsettled)
    shard.troubled.add(number)
    for (const { offset } of unsettled.records) shard.unsettled.add(offset)
  }

  /**
   * Finds out which of the unsettled records of a target have been appended, and ends those. The others are put aside.
   * @throws BrokerError (as rejection) when the target cannot be read: what nobody knows of yet stays unsettled
   */
  async settle(shard: DelayShard, number: number): Promise<void> {
    const target = shard.targets.get(number)
    const { topic, topicId, partition } = target
    for (;;) {
      const unsettled = target.unsettled[0]
      if (unsettled === undefined) return
      const offsets = unsettled.records.map(({ offset }) => offset)
      const records: StoredDelay[] = []
      while (records.length < offsets.length) {
        const read = await shard.read(offsets.slice(records.length), Infinity)
        for (const stored of read) {
          if (stored === undefined) throw lostError(shard)
          records.push(stored)
        }
      }
      const mark = { topic, topicId, partition, end: unsettled.end }
      const appended = await this.#find(shard, mark, records)
      target.unsettled.shift()
      for (const offset of offsets) shard.unsettled.delete(offset)
      // At once: what comes after this one may fail, and others may ask for them meanwhile.
      for (const { offset, envelope } of records) {
        if (!appended.has(offset)) shard.putAside(number, offset, envelope.deliverAtMs)
      }
      await this.#finish(shard, number, records, appended, unsettled.key)
    }
  }

  /** Gives records up whose topic has been deleted. Never rejects. */
  async drop(shard: DelayShard, number: number, records: readonly StoredDelay[]): Promise<void> {
    const { topic, topicId } = shard.targets.get(number)
    this.#logger.warn(
      { event: 'delayed_target_missing', topic, topicId, records: records.length },
      'delayed records dropped: the topic that they were for has been deleted',
    )
    for (const stored of records) {
      const { target, dedupeId } = stored.envelope
      if (dedupeId !== '') this.#ids.ended(target, dedupeId, stored.offset)
      shard.forget(number, stored)
    }
    await this.#end(shard, records.map(tombstoneOf))
  }

  /** Writes what could not be written before. @throws BrokerError (as rejection) when it still cannot */
  async writeOwed(shard: DelayShard): Promise<void> {
    for (let records = shard.owed[0]; records !== undefined; records = shard.owed[0]) {
      await shard.write(records)
      shard.owed.shift()
    }
  }

  #mark(target: DelayTarget): PeerMark {
    const { topic, topicId, partition } = target
    const mark = this.#peer.mark(topic, { partition })
    if (mark.topicId === topicId) return mark
    throw new BrokerError('UNKNOWN_TOPIC_ID', `topic ${topic} has been made anew`, {
      topic,
      topicId: mark.topicId,
    })
  }

  async #find(
    shard: DelayShard,
    mark: PeerMark,
    records: readonly StoredDelay[],
  ): Promise<ReadonlyMap<Offset, Offset>> {
    const byId = new Map(records.map((stored) => [shard.idOf(stored), stored.offset]))
    const found = await this.#peer.findIds(mark, DELAY_ID_HEADER, new Set(byId.keys()))
    const appended = new Map<Offset, Offset>()
    for (const [id, at] of found) {
      const offset = byId.get(id)
      if (offset !== undefined) appended.set(offset, at)
    }
    return appended
  }

  /** What has been appended waits no longer, also where that cannot be written down at once. Never rejects. */
  async #finish(
    shard: DelayShard,
    number: number,
    records: readonly StoredDelay[],
    appended: ReadonlyMap<Offset, Offset>,
    key: Uint8Array,
  ): Promise<void> {
    const tombstones: PeerRecord[] = []
    for (const stored of records) {
      const at = appended.get(stored.offset)
      if (at === undefined) continue
      const { target, dedupeId, acceptedMs, checksum } = stored.envelope
      if (dedupeId !== '') {
        this.#ids.fired(target, dedupeId, stored.offset, { offset: at, acceptedMs, checksum })
      }
      shard.forget(number, stored)
      tombstones.push(tombstoneOf(stored))
    }
    // Last: as long as the intent stands, what it names is looked for.
    await this.#end(shard, [...tombstones, endOfIntent(key)])
  }

  async #end(shard: DelayShard, tombstones: PeerRecord[]): Promise<void> {
    try {
      if (shard.owed.length > 0) await this.writeOwed(shard)
      await shard.write(tombstones)
    } catch (error) {
      shard.owed.push(tombstones)
      const { code, message } = toBrokerError(error)
      this.#logger.error(
        { partition: shard.partition.name, records: tombstones.length, code, cause: message },
        'what has become of delayed records could not be written down: it will be tried again',
      )
    }
  }

  #toRecord(shard: DelayShard, stored: StoredDelay): PeerRecord {
    const { envelope } = stored
    const headers = [...stored.headers]
    add(headers, DELAY_ID_HEADER, shard.idOf(stored))
    add(headers, DELIVER_AT_HEADER, String(envelope.deliverAtMs))
    addDedupeHeaders(headers, envelope)
    return {
      key: envelope.key,
      value: envelope.value,
      headers,
      timestampMs: this.#stampOf(envelope),
    }
  }

  /** The producer's where it gave one: but a clock that has gone back, or a setting, must not make it one that the topic refuses. */
  #stampOf({ timestampMs, target }: DelayedEnvelope): number | undefined {
    if (timestampMs === undefined) return undefined
    const maxFutureMs = this.#topics.find(target.topic)?.config.maxFutureMs ?? 0
    return Math.min(timestampMs, this.#clock.wallMs() + maxFutureMs)
  }
}

/** Where a record has a dedupe id, it says so, and when it was accepted: that is what the window is read from. */
export function addDedupeHeaders(
  headers: RecordHeader[],
  record: { readonly dedupeId: string; readonly acceptedMs: number },
): void {
  if (record.dedupeId === '') return
  add(headers, DEDUPE_ID_HEADER, record.dedupeId)
  add(headers, ACCEPTED_HEADER, String(record.acceptedMs))
}

export function endOfIntent(key: Uint8Array): PeerRecord {
  return { key, value: undefined, headers: [], timestampMs: undefined }
}

function add(headers: RecordHeader[], key: string, text: string): void {
  headers.push({ key, value: Buffer.from(text) })
}

function lostError(shard: DelayShard): BrokerError {
  return new BrokerError(
    'STORAGE_ERROR',
    `${shard.partition.name} has lost a record that it should still have`,
  )
}
