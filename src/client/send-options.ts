import {
  ATTEMPTS_HEADER,
  BACKOFF_HEADER,
  JOB_TYPE_HEADER,
  MOST_DEDUPE_ID_BYTES,
  MOST_JOB_TYPE_BYTES,
  MOST_ORDERING_KEY_BYTES,
  ORDERING_KEY_HEADER,
} from '../common/job-headers.ts'
import { DAY_MS, formatDurationMs } from '../common/units.ts'
import type { RecordHeader } from '../record/batch-builder.ts'
import type { NewRecord } from './api.ts'
import type { DeferredRecord } from './delayed-sender.ts'
import { type Encoded, encodeHeaders, measureRecord, type Placement } from './encoded-record.ts'
import { MillraceError } from './errors.ts'
import type { BackoffOptions } from './worker-api.ts'

const MOST_ATTEMPTS = 1000
/** What the broker takes of a record's own backoff (SEMANTICS §3.4). */
const MOST_BACKOFF_MS: number = 30 * DAY_MS
const MOST_BACKOFF_STEPS = 32

const NO_BYTES: Buffer = Buffer.alloc(0)

/** What a record may ask for beyond being appended. */
export type SendOptions = Pick<
  NewRecord<unknown, unknown>,
  'type' | 'orderingKey' | 'attempts' | 'backoff' | 'dedupeId' | 'delayMs' | 'deliverAt'
>

/** What a record asks for that no batch can say. Checked. */
export interface Deferral {
  /** Empty: none. */
  readonly dedupeId: string
  readonly delayMs: number | undefined
  readonly deliverAtMs: number | undefined
}

/** Asked of every record: seven looks at fields that are mostly not there. */
export function hasSendOptions(record: SendOptions): boolean {
  return (
    record.type !== undefined ||
    record.dedupeId !== undefined ||
    record.delayMs !== undefined ||
    record.deliverAt !== undefined ||
    record.orderingKey !== undefined ||
    record.attempts !== undefined ||
    record.backoff !== undefined
  )
}

/**
 * The record's headers with those that its options stand for. An option takes the place of a header of that name: a record that is sent on may bring
 * the old one along.
 * @throws MillraceError INVALID_RECORD, INVALID_BACKOFF
 */
export function encodeJobHeaders(
  record: Pick<NewRecord<unknown, unknown>, 'headers'> & SendOptions,
): RecordHeader[] | undefined {
  const { type, orderingKey, attempts, backoff } = record
  const own: RecordHeader[] = []
  const add = (key: string, value: string): void => {
    own.push({ key, value: Buffer.from(value, 'utf8') })
  }
  if (type !== undefined) add(JOB_TYPE_HEADER, checkText('type', type, MOST_JOB_TYPE_BYTES))
  if (orderingKey !== undefined) {
    add(ORDERING_KEY_HEADER, checkText('orderingKey', orderingKey, MOST_ORDERING_KEY_BYTES))
  }
  if (attempts !== undefined) add(ATTEMPTS_HEADER, checkAttempts(attempts))
  if (backoff !== undefined) add(BACKOFF_HEADER, formatBackoff(backoff))
  const given = record.headers === undefined ? undefined : encodeHeaders(record.headers)
  if (given === undefined) return own.length === 0 ? undefined : own
  return [...given.filter(({ key }) => own.every((header) => header.key !== key)), ...own]
}

/**
 * What the record asks of QueueService.Send; undefined when it can go in a batch.
 * @throws MillraceError INVALID_RECORD, INVALID_DELAY, CONFLICTING_FIELDS
 */
export function findDeferral(options: SendOptions): Deferral | undefined {
  const { dedupeId, delayMs, deliverAt } = options
  if (dedupeId === undefined && deliverAt === undefined) {
    // A record that is due at once goes like any other: an idempotent producer's repeats are recognized over restarts of the broker, too.
    if (delayMs === undefined || delayMs === 0) return undefined
  }
  if (delayMs !== undefined && deliverAt !== undefined) {
    throw new MillraceError(
      'CONFLICTING_FIELDS',
      'a record has delayMs and deliverAt: say when it is due in one way',
      { field: 'deliverAt', actual: delayMs },
    )
  }
  return {
    dedupeId: dedupeId === undefined ? '' : checkText('dedupeId', dedupeId, MOST_DEDUPE_ID_BYTES),
    delayMs: delayMs === undefined ? undefined : checkDelay(delayMs),
    deliverAtMs: deliverAt === undefined ? undefined : checkDueTime(deliverAt),
  }
}

/**
 * The record as QueueService.Send takes it, with bytes of its own.
 * @throws MillraceError INVALID_TIMESTAMP
 */
export function toDeferredRecord(
  record: Pick<NewRecord<unknown, unknown>, 'timestamp'>,
  deferral: Deferral,
  key: Encoded,
  value: Encoded,
  headers: readonly RecordHeader[] | undefined,
  placement: Placement,
): DeferredRecord {
  const { dedupeId, delayMs, deliverAtMs } = deferral
  const partition = typeof placement === 'number' ? placement : undefined
  const keyBytes = toBuffer(key)
  const valueBytes = toBuffer(value)
  return {
    request: {
      record: {
        headers: (headers ?? []).map((header) => ({
          key: header.key,
          value: toBuffer(header.value) ?? NO_BYTES,
        })),
        ...(keyBytes !== undefined && { key: keyBytes }),
        ...(valueBytes !== undefined && { value: valueBytes }),
        ...(record.timestamp !== undefined && { timestampMs: checkTimestamp(record.timestamp) }),
      },
      dedupeId,
      ...(partition !== undefined && { partition }),
      ...(delayMs !== undefined && { delayMs }),
      ...(deliverAtMs !== undefined && { deliverAtMs }),
    },
    recordBytes: measureRecord(keyBytes, valueBytes, headers),
    placement: typeof placement === 'number' ? undefined : (placement ?? keyBytes),
  }
}

/**
 * The time in milliseconds since the epoch; what lies before it is long ago, too.
 * @throws MillraceError INVALID_DELAY
 */
export function checkDueTime(deliverAt: Date): number {
  const ms = deliverAt instanceof Date ? deliverAt.getTime() : Number.NaN
  if (Number.isNaN(ms)) {
    throw new MillraceError('INVALID_DELAY', 'deliverAt is no valid Date', {
      field: 'deliverAt',
      actual: String(deliverAt),
    })
  }
  return Math.max(0, ms)
}

/** The header's text of a record's own backoff. @throws MillraceError INVALID_BACKOFF */
export function formatBackoff(backoff: BackoffOptions): string {
  switch (backoff.type) {
    case 'none':
      return 'none'
    case 'exponential': {
      for (const field of ['multiplier', 'maxMs', 'jitter'] as const) {
        const actual = backoff[field]
        if (actual === undefined) continue
        throw new MillraceError(
          'INVALID_BACKOFF',
          `backoff.${field} is a setting of the queue group, not of a record`,
          { field: `backoff.${field}`, actual },
        )
      }
      return `exponential:${formatDelay('backoff.delayMs', backoff.delayMs)}`
    }
    case 'fixed':
    case 'linear':
      return `${backoff.type}:${formatDelay('backoff.delayMs', backoff.delayMs)}`
    case 'list': {
      const steps = backoff.delaysMs
      if (steps.length === 0 || steps.length > MOST_BACKOFF_STEPS) {
        throw new MillraceError(
          'INVALID_BACKOFF',
          `backoff.delaysMs has ${steps.length} delays: it may have 1 to ${MOST_BACKOFF_STEPS}, and its last one repeats`,
          { field: 'backoff.delaysMs', limit: MOST_BACKOFF_STEPS, actual: steps.length },
        )
      }
      return `list:${steps.map((ms) => formatDelay('backoff.delaysMs', ms)).join(',')}`
    }
    default:
      throw new MillraceError(
        'INVALID_BACKOFF',
        `backoff.type ${String((backoff as { type: unknown }).type)} is not one of: none, fixed, linear, exponential or list`,
        { field: 'backoff.type', actual: String((backoff as { type: unknown }).type) },
      )
  }
}

function formatDelay(field: string, ms: number): string {
  if (Number.isInteger(ms) && ms >= 0 && ms <= MOST_BACKOFF_MS) return formatDurationMs(ms)
  throw new MillraceError(
    'INVALID_BACKOFF',
    `${field} is ${ms}: it must be a whole number of milliseconds in [0, ${MOST_BACKOFF_MS}] (${formatDurationMs(MOST_BACKOFF_MS)})`,
    { field, limit: MOST_BACKOFF_MS, actual: ms },
  )
}

function checkText(field: string, value: string, limit: number): string {
  const actual = typeof value === 'string' ? Buffer.byteLength(value) : Number.NaN
  if (actual >= 1 && actual <= limit) return value
  throw new MillraceError(
    'INVALID_RECORD',
    Number.isNaN(actual)
      ? `${field} is no text`
      : `${field} has ${actual} bytes: it must have 1 to ${limit}`,
    { field, limit, actual },
  )
}

function checkTimestamp(timestamp: Date): number {
  const ms = timestamp.getTime()
  if (ms >= 0) return ms // False for NaN.
  throw new MillraceError('INVALID_TIMESTAMP', `timestamp is ${ms}: it must be a time since 1970`, {
    field: 'timestamp',
    actual: ms,
  })
}

function toBuffer(value: Encoded): Buffer | undefined {
  if (value === undefined) return undefined
  return typeof value === 'string' ? Buffer.from(value, 'utf8') : Buffer.from(value)
}

function checkAttempts(attempts: number): string {
  if (Number.isInteger(attempts) && attempts >= 1 && attempts <= MOST_ATTEMPTS) {
    return String(attempts)
  }
  throw new MillraceError(
    'INVALID_RECORD',
    `attempts is ${attempts}: it must be a whole number from 1 to ${MOST_ATTEMPTS}`,
    { field: 'attempts', limit: MOST_ATTEMPTS, actual: attempts },
  )
}

/** A part of a millisecond counts as a whole one, so that nothing comes early. How long is too long the topic says. */
function checkDelay(delayMs: number): number {
  const wholeMs = Math.ceil(delayMs)
  if (wholeMs >= 0 && Number.isSafeInteger(wholeMs)) return wholeMs
  throw new MillraceError(
    'INVALID_DELAY',
    `delayMs is ${delayMs}: it must be a number of milliseconds from 0 on`,
    { field: 'delayMs', limit: Number.MAX_SAFE_INTEGER, actual: delayMs },
  )
}
