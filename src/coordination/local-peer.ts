import type { Clock } from '../common/clock.ts'
import { BrokerError, toBrokerError } from '../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../common/offset.ts'
import { KIB, MIB } from '../common/units.ts'
import { varintBytes } from '../bytes/varint.ts'
import { BATCH_HEADER_BYTES, endOfBatch, readCompression } from '../record/batch-header.ts'
import { BatchBuilder } from '../record/batch-builder.ts'
import { RecordCursor } from '../record/record-cursor.ts'
import type { AppendResult } from '../log/partition-log.ts'
import type { Partition } from '../topic/partition.ts'
import type { Topic } from '../topic/topic.ts'
import type { Topics } from '../topic/topics.ts'
import { partitionForKey } from '../wire/murmur2.ts'
import type { Peer, PeerMark, PeerRecord } from './peer.ts'

const SCAN_BYTES: number = MIB

/** {@link Peer} where every partition is served by this broker. */
export class LocalPeer implements Peer {
  readonly #topics: Topics
  readonly #clock: Clock

  constructor(options: { readonly topics: Topics; readonly clock: Clock }) {
    this.#topics = options.topics
    this.#clock = options.clock
  }

  mark(
    topic: string,
    where: { readonly partition?: number | undefined; readonly key?: Uint8Array | undefined },
  ): PeerMark {
    const found = this.#topics.get(topic)
    const index =
      where.partition ?? (where.key === undefined ? 0 : choosePartition(found, where.key))
    const partition = this.#topics.getPartition(topic, index)
    return {
      topic,
      topicId: found.id,
      partition: index,
      end: partition.highWatermark,
    }
  }

  async append(to: PeerMark, records: readonly PeerRecord[]): Promise<readonly Offset[]> {
    const partition = this.#topics.getPartition(to.topic, to.partition, to.topicId)
    const outcomes = await appendRecords(partition, records, this.#clock.wallMs())
    return outcomes.map((outcome) => {
      if (outcome.error !== undefined) throw outcome.error
      return outcome.offset
    })
  }

  async findIds(
    since: PeerMark,
    header: string,
    ids: ReadonlySet<string>,
  ): Promise<ReadonlyMap<string, Offset>> {
    const found = new Map<string, Offset>()
    const topic = this.#topics.find(since.topic)
    if (topic?.id !== since.topicId || ids.size === 0) return found
    const partition = this.#topics.getPartition(since.topic, since.partition, since.topicId)
    await partition.flush() // What was on its way when the caller lost sight of it counts too.
    const end = partition.highWatermark
    const cursor = new RecordCursor({ reuseMemory: true })
    let from = toOffset(Math.max(since.end, partition.logStartOffset))
    while (from < end && found.size < ids.size) {
      from = await this.#findIn(partition, from, end, cursor, header, ids, found)
    }
    return found
  }

  /** Looks through one read; resolves to where the next one begins. */
  async #findIn(
    partition: Partition,
    from: Offset,
    end: Offset,
    cursor: RecordCursor,
    header: string,
    ids: ReadonlySet<string>,
    found: Map<string, Offset>,
  ): Promise<Offset> {
    try {
      const { chunks, nextOffset } = await partition.read(from, SCAN_BYTES)
      for (const chunk of chunks) findInChunk(chunk, { from, end }, cursor, header, ids, found)
      return nextOffset > from ? nextOffset : end
    } catch (error) {
      if (partition.failure !== undefined || !(error instanceof BrokerError)) throw error
      // What lay in a damaged range, or below a log start that has moved on, nobody can read any more: a copy there does not count.
      if (error.code === 'SEGMENT_QUARANTINED') {
        const next = error.details['nextOffset']
        return isOffset(next) && next > from ? next : end
      }
      const start = partition.logStartOffset
      if (error.code === 'OFFSET_OUT_OF_RANGE' && start > from) return start
      throw error
    }
  }
}

function findInChunk(
  chunk: Uint8Array,
  range: { readonly from: Offset; readonly end: Offset },
  cursor: RecordCursor,
  header: string,
  ids: ReadonlySet<string>,
  found: Map<string, Offset>,
): void {
  for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
    // Ours are never compressed. What users send may be anything, also something that cannot be decompressed.
    if (readCompression(chunk, at) !== 'none') continue
    try {
      cursor.reset(chunk, at)
      while (cursor.next()) {
        // The first batch may begin below the range; with `visibility=written` the last one may lie past it.
        if (cursor.headerCount === 0 || cursor.offset < range.from || cursor.offset >= range.end)
          continue
        const id = findText(cursor, header)
        if (id !== undefined && ids.has(id) && !found.has(id))
          found.set(id, toOffset(cursor.offset))
      }
    } catch (error) {
      // Written by a user, badly: nothing of ours is in that batch.
      if (!(error instanceof BrokerError)) throw error
    }
  }
}

function findText(cursor: RecordCursor, header: string): string | undefined {
  for (const { key, value } of cursor.readHeaders()) {
    if (key === header && value !== undefined) return Buffer.from(value).toString('utf8')
  }
  return undefined
}

/** The partition of a key, as producers choose it. */
export function choosePartition(topic: Topic, key: Uint8Array): number {
  return partitionForKey(key, topic.partitions.length)
}

export type AppendOutcome =
  | {
      readonly error: undefined
      readonly offset: Offset
      readonly timestampMs: number
    }
  | { readonly error: BrokerError }

export interface AppendRecordsOptions {
  /** Begin a new batch where this one would grow past it; a record that is larger has a batch of its own. As large as the topic allows by default. */
  readonly batchBytes?: number | undefined
  /** Refuse with NOT_LEADER under a newer one. */
  readonly leaderEpoch?: number | undefined
}

/**
 * Appends records in order, in as few batches as `max.message.bytes` allows, and resolves when it is known of each how it went: the batches are on
 * their way together, so one may fail and another not. A record that is too large by itself is RECORD_TOO_LARGE with its `index`, and then
 * nothing is appended. Never rejects.
 */
export async function appendRecords(
  partition: Partition,
  records: readonly PeerRecord[],
  nowMs: number,
  options: AppendRecordsOptions = {},
): Promise<readonly AppendOutcome[]> {
  const { maxMessageBytes } = partition.config
  const maxBytes = Math.min(maxMessageBytes, options.batchBytes ?? maxMessageBytes)
  const tooLarge = findTooLarge(records, maxMessageBytes)
  if (tooLarge !== undefined) return records.map(() => ({ error: tooLarge }))
  const outcomes: AppendOutcome[] = []
  const builder = new BatchBuilder({ maxBytes, initialBytes: guessBytes(records, maxBytes) })
  const appends: Promise<void>[] = []
  let first = 0
  const send = (end: number): void => {
    const { leaderEpoch } = options
    const append = partition.append(builder.finish(), 'durable', { leaderEpoch })
    appends.push(note(append, records, first, end, nowMs, outcomes))
    first = end
  }
  try {
    for (const [index, record] of records.entries()) {
      const { key, value, headers } = record
      const timestampMs = record.timestampMs ?? nowMs
      if (builder.tryAppend(key, value, timestampMs, headers)) continue
      send(index)
      builder.tryAppend(key, value, timestampMs, headers)
    }
    if (records.length > first) send(records.length)
  } catch (error) {
    // A record that no batch can hold, such as one with a timestamp below -1. What has been sent before it is under way.
    const failure = toBrokerError(error)
    for (let index = first; index < records.length; index++) outcomes[index] = { error: failure }
  }
  await Promise.all(appends)
  return outcomes
}

async function note(
  append: Promise<AppendResult>,
  records: readonly PeerRecord[],
  first: number,
  end: number,
  nowMs: number,
  outcomes: AppendOutcome[],
): Promise<void> {
  try {
    const { baseOffset, appendTimeMs } = await append
    for (let index = first; index < end; index++) {
      outcomes[index] = {
        error: undefined,
        offset: toOffset(baseOffset + index - first),
        timestampMs: appendTimeMs ?? records[index]?.timestampMs ?? nowMs,
      }
    }
  } catch (error) {
    const failure = toBrokerError(error)
    for (let index = first; index < end; index++) outcomes[index] = { error: failure }
  }
}

function findTooLarge(records: readonly PeerRecord[], maxBytes: number): BrokerError | undefined {
  for (const [index, record] of records.entries()) {
    const bytes = batchBytesOf(record)
    if (bytes > maxBytes) return recordTooLarge(bytes, maxBytes, index)
  }
  return undefined
}

export function recordTooLarge(bytes: number, maxBytes: number, index: number): BrokerError {
  return new BrokerError(
    'RECORD_TOO_LARGE',
    `record ${index} takes ${bytes} bytes in a batch of its own, and the topic's max.message.bytes is ${maxBytes}`,
    { index, recordBytes: bytes, maxRecordBytes: maxBytes },
  )
}

/** What a batch with this record alone takes. */
export function batchBytesOf(record: Omit<PeerRecord, 'timestampMs'>): number {
  const { key, value, headers } = record
  let body = 3 // Attributes, timestamp delta, offset delta.
  body += varintBytes(key?.length ?? -1) + (key?.length ?? 0)
  body += varintBytes(value?.length ?? -1) + (value?.length ?? 0)
  body += varintBytes(headers.length)
  for (const header of headers) {
    const keyBytes = Buffer.byteLength(header.key)
    body += varintBytes(keyBytes) + keyBytes
    body += varintBytes(header.value?.length ?? -1) + (header.value?.length ?? 0)
  }
  return BATCH_HEADER_BYTES + varintBytes(body) + body
}

function guessBytes(records: readonly PeerRecord[], maxBytes: number): number {
  let bytes = BATCH_HEADER_BYTES
  for (const record of records) {
    bytes += 16 + (record.key?.length ?? 0) + (record.value?.length ?? 0)
    for (const { key, value } of record.headers) bytes += 4 + key.length + (value?.length ?? 0)
    if (bytes > maxBytes) return maxBytes
  }
  return Math.max(KIB, bytes)
}
