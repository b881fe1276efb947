import { BrokerError } from '../common/errors.ts'
import type { RecordHeader } from '../record/batch-builder.ts'
import { BATCH_HEADER_BYTES } from '../record/batch-header.ts'
import type { Headers } from './api.ts'
import { MillraceError, toMillraceError } from './errors.ts'

/** A key or a value as its codec has made it; a text is written as UTF-8 later on. */
export type Encoded = Uint8Array | string | undefined

/** The partition that a record is to go to, or bytes that choose it as a key would. Undefined: by the key, if it has one. */
export type Placement = number | Uint8Array | undefined

/** What a record may take beside its key, value and headers: lengths, deltas, attributes. */
export const RECORD_OVERHEAD_BYTES = 36
/** What a header may take beside its key and value. */
const HEADER_OVERHEAD_BYTES = 10

const NO_BYTES: Uint8Array = new Uint8Array(0)

export function encodeHeaders(headers: Headers): RecordHeader[] | undefined {
  const encoded: RecordHeader[] = []
  for (const key of Object.keys(headers)) {
    const value = headers[key]
    const bytes = typeof value === 'string' ? Buffer.from(value, 'utf8') : (value ?? NO_BYTES)
    encoded.push({ key, value: bytes })
  }
  return encoded.length === 0 ? undefined : encoded
}

/** At most what the record takes in a batch. */
export function measureRecord(
  key: Encoded,
  value: Encoded,
  headers: readonly RecordHeader[] | undefined,
): number {
  let bytes = RECORD_OVERHEAD_BYTES + byteLength(key) + byteLength(value)
  for (const header of headers ?? []) {
    bytes += Buffer.byteLength(header.key) + (header.value?.length ?? 0) + HEADER_OVERHEAD_BYTES
  }
  return bytes
}

/**
 * Checks a record of `recordBytes` against the limit of a batch of the topic; 0: not known.
 * @throws MillraceError RECORD_TOO_LARGE
 */
export function checkSize(topic: string, limit: number, recordBytes: number): void {
  const actual = BATCH_HEADER_BYTES + recordBytes
  if (limit === 0 || actual <= limit) return
  throw new MillraceError(
    'RECORD_TOO_LARGE',
    `a record of ${actual} bytes, its batch's header included, does not fit into ${topic}, whose limit is ${limit} (max.message.bytes)`,
    { topic, actual, limit },
  )
}

export function noPartition(topic: string, partition: number, partitions: number): MillraceError {
  const isIndex = Number.isInteger(partition) && partition >= 0
  return new MillraceError(
    isIndex ? 'UNKNOWN_PARTITION' : 'INVALID_PARTITION',
    `${topic} has no partition ${partition}: it has ${partitions}, counted from 0`,
    { topic, partition, partitions },
  )
}

/** Why a record was not taken: whatever is none of our errors came from its codecs. */
export function toSendError(error: unknown, topic: string): MillraceError {
  if (error instanceof BrokerError) return toMillraceError(error)
  const message = error instanceof Error ? error.message : String(error)
  return new MillraceError(
    'INVALID_RECORD',
    `a record for ${topic} could not be encoded: ${message}`,
    { topic },
    error,
  )
}

export function copyOf(value: Encoded): Encoded {
  return typeof value === 'string' ? value : copyBytes(value)
}

export function copyBytes(value: Uint8Array | undefined): Uint8Array | undefined {
  return value === undefined ? undefined : Uint8Array.from(value)
}

function byteLength(value: Encoded): number {
  if (value === undefined) return 0
  return typeof value === 'string' ? Buffer.byteLength(value) : value.length
}
