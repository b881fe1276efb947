import { BrokerError, ERROR_TABLE, isErrorCode } from '../common/errors.ts'
import type { ErrorCode, ErrorDetails } from '../common/errors.ts'
import { REASON_NUMBERS } from '../gen/types.ts'
import type { ErrorDetail, Reason } from '../gen/types.ts'
import { ProtoReader } from './proto-reader.ts'
import { ProtoWriter } from './proto-writer.ts'

/** The binary trailer that carries an encoded ErrorDetail with every status that is not OK. */
export const ERROR_TRAILER = 'millrace-error-bin'

/** Facts whose text stays text on the way back, even when it looks like a number. */
const TEXT_FACTS: ReadonlySet<string> = new Set([
  'topic',
  'topicId',
  'field',
  'key',
  'name',
  'value',
  'reason',
])
/** Facts that are lists, also when there is one of them. */
const LIST_FACTS: ReadonlySet<string> = new Set(['nearest'])

const REASONS: ReadonlyMap<number, Reason> = new Map(
  Object.entries(REASON_NUMBERS).map(([name, number]) => [number, name as Reason]), // The table's own keys.
)

export type ErrorDetailMessage = ErrorDetail

/** The wire form of an error, from the one table. Which facts and which message may leave is the caller's to decide (`grpc/status.ts`). */
export function toErrorDetail(
  code: ErrorCode,
  message: string,
  details: ErrorDetails,
  traceId = '',
): ErrorDetailMessage {
  const row = ERROR_TABLE[code]
  const facts: { name: string; value: string }[] = []
  let retryAfterMs = 0
  for (const [name, value] of Object.entries(details)) {
    if (value === undefined) continue
    if (name === 'retryAfterMs' && typeof value === 'number') retryAfterMs = value
    else if (typeof value === 'object') for (const item of value) facts.push({ name, value: item })
    else facts.push({ name, value: String(value) })
  }
  return {
    reason: code,
    message,
    action: row.action,
    retryable: row.retryable,
    noSideEffects: row.noSideEffects,
    retryAfterMs,
    facts,
    traceId,
  }
}

/** Back from the wire. A reason that this version does not know becomes an INTERNAL_ERROR that keeps the message. */
export function toBrokerErrorFromDetail(detail: ErrorDetailMessage): BrokerError {
  const details: Record<string, string | number | boolean | readonly string[] | undefined> = {}
  for (const { name, value } of detail.facts) {
    const present = details[name]
    if (LIST_FACTS.has(name) || present !== undefined) {
      const list =
        typeof present === 'object' ? present : present === undefined ? [] : [String(present)]
      details[name] = [...list, value]
    } else {
      details[name] = TEXT_FACTS.has(name) ? value : toPlainValue(value)
    }
  }
  if (detail.retryAfterMs > 0) details['retryAfterMs'] = detail.retryAfterMs
  if (detail.traceId !== '') details['traceId'] = detail.traceId
  const code = isErrorCode(detail.reason) ? detail.reason : 'INTERNAL_ERROR'
  return new BrokerError(code, detail.message, details)
}

function toPlainValue(text: string): string | number | boolean {
  if (text === 'true' || text === 'false') return text === 'true'
  if (!/^-?(?:0|[1-9]\d{0,15})$/.test(text)) return text
  const value = Number(text)
  return Number.isSafeInteger(value) ? value : text
}

export function writeErrorDetail(writer: ProtoWriter, detail: ErrorDetailMessage): void {
  writer.int(1, REASON_NUMBERS[detail.reason])
  writer.string(2, detail.message)
  writer.string(3, detail.action)
  writer.bool(4, detail.retryable)
  writer.bool(5, detail.noSideEffects)
  writer.int(6, detail.retryAfterMs)
  for (const fact of detail.facts) {
    writer.message(7, (inner) => {
      inner.string(1, fact.name)
      inner.string(2, fact.value)
    })
  }
  writer.string(8, detail.traceId)
}

export function readErrorDetail(reader: ProtoReader): ErrorDetailMessage {
  const detail: ErrorDetailMessage = {
    reason: 'REASON_UNSPECIFIED',
    message: '',
    action: '',
    retryable: false,
    noSideEffects: false,
    retryAfterMs: 0,
    facts: [],
    traceId: '',
  }
  while (reader.next()) {
    if (reader.field === 1) detail.reason = REASONS.get(reader.int32()) ?? 'REASON_UNSPECIFIED'
    else if (reader.field === 2) detail.message = reader.string()
    else if (reader.field === 3) detail.action = reader.string()
    else if (reader.field === 4) detail.retryable = reader.bool()
    else if (reader.field === 5) detail.noSideEffects = reader.bool()
    else if (reader.field === 6) detail.retryAfterMs = reader.int64()
    else if (reader.field === 7) detail.facts.push(readFact(reader.message()))
    else if (reader.field === 8) detail.traceId = reader.string()
    else reader.skip()
  }
  return detail
}

function readFact(reader: ProtoReader): { name: string; value: string } {
  const fact = { name: '', value: '' }
  while (reader.next()) {
    if (reader.field === 1) fact.name = reader.string()
    else if (reader.field === 2) fact.value = reader.string()
    else reader.skip()
  }
  return fact
}

export function encodeErrorDetail(detail: ErrorDetailMessage): Buffer {
  const writer = new ProtoWriter()
  writeErrorDetail(writer, detail)
  return writer.finish()
}

/** @throws BrokerError INVALID_REQUEST when the bytes are no ErrorDetail */
export function decodeErrorDetail(bytes: Buffer): ErrorDetailMessage {
  return readErrorDetail(new ProtoReader(bytes))
}
