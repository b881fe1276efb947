import { BrokerError } from '../../common/errors.ts'
import {
  ACCEPTED_HEADER,
  DEDUPE_ID_HEADER,
  DELAY_ID_HEADER,
  DELIVER_AT_HEADER,
  MOST_DEDUPE_ID_BYTES,
} from '../../common/job-headers.ts'
import { MIB } from '../../common/units.ts'
import type { RecordHeader } from '../../record/batch-builder.ts'
import type { Topic } from '../../topic/topic.ts'
import { batchBytesOf, recordTooLarge } from '../local-peer.ts'
import type { SendRecordRequest } from '../queue/queue-types.ts'
import { DEDUPE_HEADER_BYTES, findMisfit, FIRED_HEADER_BYTES } from './delay-firing.ts'
import { SEND_ID_BYTES } from './delay-record.ts'
import { delayTooLong } from './delayed-store.ts'

export const MOST_SEND_RECORDS = 10_000
export const MOST_SEND_BYTES: number = 8 * MIB

/** Headers that only the broker sets. */
const OURS: ReadonlySet<string> = new Set([
  DEDUPE_ID_HEADER,
  ACCEPTED_HEADER,
  DELAY_ID_HEADER,
  DELIVER_AT_HEADER,
])

/** @throws BrokerError EMPTY_BATCH, BATCH_TOO_LARGE */
export function checkSend(records: readonly SendRecordRequest[]): void {
  if (records.length === 0) throw new BrokerError('EMPTY_BATCH', 'there is no record to send')
  if (records.length > MOST_SEND_RECORDS) {
    throw new BrokerError(
      'BATCH_TOO_LARGE',
      `${records.length} records are more than the ${MOST_SEND_RECORDS} that one call may bring`,
      { actual: records.length, limit: MOST_SEND_RECORDS },
    )
  }
  let bytes = 0
  for (const { key, value, headers } of records) {
    bytes += (key?.length ?? 0) + (value?.length ?? 0)
    for (const header of headers) bytes += header.key.length + (header.value?.length ?? 0)
  }
  if (bytes <= MOST_SEND_BYTES) return
  throw new BrokerError(
    'BATCH_TOO_LARGE',
    `${bytes} bytes are more than the ${MOST_SEND_BYTES} that one call may bring`,
    { actual: bytes, limit: MOST_SEND_BYTES },
  )
}

/** A record without the headers that only the broker sets. */
export function withoutOurs(headers: readonly RecordHeader[]): readonly RecordHeader[] {
  return headers.some(({ key }) => OURS.has(key))
    ? headers.filter(({ key }) => !OURS.has(key))
    : headers
}

/**
 * When a record is to be delivered; undefined: at once.
 * @throws BrokerError CONFLICTING_FIELDS, INVALID_DELAY, DELAY_TOO_LONG
 */
export function findDeliverAt(
  topic: Topic,
  record: SendRecordRequest,
  nowMs: number,
): number | undefined {
  const { deliverAtMs, delayMs } = record
  if (deliverAtMs !== undefined && delayMs !== undefined) {
    throw new BrokerError(
      'CONFLICTING_FIELDS',
      'a record has a delay, or a time at which it is delivered, not both',
      { field: 'deliver_at_ms' },
    )
  }
  if (delayMs !== undefined) checkTime('delay_ms', delayMs)
  if (deliverAtMs !== undefined) checkTime('deliver_at_ms', deliverAtMs)
  const dueMs = Math.ceil(deliverAtMs ?? nowMs + (delayMs ?? 0))
  if (dueMs <= nowMs) return undefined
  const limit = topic.config.delayMaxMs
  if (dueMs - nowMs > limit) throw delayTooLong(dueMs, limit)
  return dueMs
}

function checkTime(field: string, value: number): void {
  if (value >= 0 && value <= Number.MAX_SAFE_INTEGER) return
  throw new BrokerError(
    'INVALID_DELAY',
    `${field} is ${value}: it is a number of milliseconds, 0 or more`,
    {
      field,
      actual: value,
    },
  )
}

/**
 * What else may be wrong with a record; the topic must take it now, or when it is due.
 * @throws BrokerError INVALID_RECORD, INVALID_REQUEST, INVALID_TIMESTAMP, RECORD_TOO_LARGE with its `index`
 */
export function checkRecord(
  topic: Topic,
  record: SendRecordRequest,
  index: number,
  deliverAtMs: number | undefined,
  nowMs: number,
): void {
  const { dedupeId, sendId, timestampMs } = record
  const idBytes = Buffer.byteLength(dedupeId)
  if (idBytes > MOST_DEDUPE_ID_BYTES) {
    throw new BrokerError(
      'INVALID_RECORD',
      `a dedupe id has at most ${MOST_DEDUPE_ID_BYTES} bytes, not ${idBytes}`,
      { field: 'dedupe_id', actual: idBytes, limit: MOST_DEDUPE_ID_BYTES },
    )
  }
  if (sendId.length !== 0 && sendId.length !== SEND_ID_BYTES) {
    throw new BrokerError(
      'INVALID_REQUEST',
      `a send id has ${SEND_ID_BYTES} bytes, not ${sendId.length}`,
      { field: 'send_id', actual: sendId.length },
    )
  }
  if (timestampMs !== undefined) checkTimestamp(topic, timestampMs, deliverAtMs ?? nowMs)
  const atOnceBytes = dedupeId === '' ? 0 : DEDUPE_HEADER_BYTES
  const addedBytes = deliverAtMs === undefined ? atOnceBytes : FIRED_HEADER_BYTES
  const error = findMisfit(topic, record, record.headers, addedBytes)
  if (error === undefined) return
  if (error.code !== 'RECORD_TOO_LARGE') throw error
  const { maxMessageBytes } = topic.config
  throw recordTooLarge(batchBytesOf(record) + addedBytes, maxMessageBytes, index)
}

function checkTimestamp(topic: Topic, timestampMs: number, deliveredMs: number): void {
  const { maxFutureMs, timestampType } = topic.config
  const isWhole = Number.isSafeInteger(timestampMs) && timestampMs >= -1
  if (isWhole && (timestampType === 'append' || timestampMs <= deliveredMs + maxFutureMs)) return
  throw new BrokerError(
    'INVALID_TIMESTAMP',
    isWhole
      ? `timestamp ${timestampMs} is more than ${maxFutureMs} ms ahead of the record's delivery (${deliveredMs})`
      : `timestamp ${timestampMs} is not a whole number of milliseconds since 1970`,
    { timestampMs, maxFutureMs },
  )
}
