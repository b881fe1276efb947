import { crc32c } from '../../bytes/crc32c.ts'
import { BrokerError } from '../../common/errors.ts'
import { checkGroupId, checkTopicName, findNearest } from '../../common/names.ts'
import { isOffset } from '../../common/offset.ts'
import type { DeadLetterFacts, DeadReason } from './dead-letter-record.ts'
import type { DeadFilter, LogRecord } from './queue-types.ts'

/** A record in a topic of dead letters. */
export interface FilteredLetter {
  readonly record: LogRecord
  /** Undefined: it has no headers that tell of a death. Dear: every header is decoded when this is first asked for. */
  readonly facts: DeadLetterFacts | undefined
}

const REASONS: Readonly<Record<DeadReason, true>> = {
  rejected: true,
  attempts_exhausted: true,
  lease_expired: true,
  expired: true,
  retention: true,
  unroutable: true,
  too_old: true,
}

/** @throws BrokerError INVALID_FILTER for what can match nothing, ever: a reason that there is none of, a range that ends before it begins */
export function checkDeadFilter(filter: DeadFilter): void {
  const { reason, firstOffset, endOffset, fromMs, toMs, limit } = filter
  if (reason !== '' && !Object.hasOwn(REASONS, reason)) {
    const known = Object.keys(REASONS)
    const [nearest] = findNearest(reason.slice(0, 60), known, 1)
    const hint = nearest === undefined ? '' : `; did you mean ${nearest}?`
    throw invalid(
      'reason',
      `nothing dies of ${JSON.stringify(reason.slice(0, 60))}: the reasons are ${known.join(', ')}${hint}`,
    )
  }
  checkPoint('first_offset', firstOffset)
  checkPoint('end_offset', endOffset)
  checkPoint('from_ms', fromMs)
  checkPoint('to_ms', toMs)
  checkRange('end_offset', firstOffset, endOffset)
  checkRange('to_ms', fromMs, toMs)
  if (!isOffset(limit)) throw invalid('limit', `a limit is 0 (all) or more, not ${limit}`)
  for (const { key } of filter.headers) {
    if (key === '') throw invalid('headers', 'a header has a name')
  }
  checkName('group', filter.group, checkGroupId)
  checkName('topic', filter.topic, checkTopicName)
}

function checkPoint(field: string, value: number | undefined): void {
  if (value === undefined || isOffset(value)) return
  throw invalid(field, `${value} is not a whole number from 0 on`)
}

function checkRange(field: string, from: number | undefined, to: number | undefined): void {
  if (from === undefined || to === undefined || to >= from) return
  throw invalid(field, `[${from}, ${to}) ends before it begins`)
}

function checkName(field: string, name: string, check: (name: string) => void): void {
  if (name === '') return
  try {
    check(name)
  } catch (error) {
    throw invalid(field, error instanceof Error ? error.message : String(error), error)
  }
}

function invalid(field: string, why: string, cause?: unknown): BrokerError {
  return new BrokerError('INVALID_FILTER', `${field} of the filter: ${why}`, { field }, cause)
}

/** All but the offsets and the limit, which are whoever reads the letters to keep to. The cheap conditions come first. */
export function matchesDeadFilter(filter: DeadFilter, letter: FilteredLetter): boolean {
  for (const { key, value } of filter.headers) {
    const isThere = letter.record.headers.some(
      (header) => header.key === key && isSame(header.value, value),
    )
    if (!isThere) return false
  }
  if (isUnbound(filter)) return true
  const { facts } = letter
  if (filter.reason !== '' && facts?.reason !== filter.reason) return false
  if (filter.errorType !== '' && facts?.error.type !== filter.errorType) return false
  if (filter.group !== '' && facts?.group !== filter.group) return false
  if (filter.topic !== '' && facts?.topic !== filter.topic) return false
  const diedMs = diedAtMs(letter)
  return diedMs >= (filter.fromMs ?? -Infinity) && diedMs < (filter.toMs ?? Infinity)
}

/** When it failed for the last time; of what is no dead letter its timestamp. */
export function diedAtMs({ facts, record }: FilteredLetter): number {
  return facts === undefined || facts.lastFailedMs === 0 ? record.timestampMs : facts.lastFailedMs
}

/** Nothing of it needs the facts. */
function isUnbound(filter: DeadFilter): boolean {
  const { reason, errorType, group, topic, fromMs, toMs } = filter
  const isNamed = reason !== '' || errorType !== '' || group !== '' || topic !== ''
  return !isNamed && fromMs === undefined && toMs === undefined
}

function isSame(a: Uint8Array | undefined, b: Uint8Array): boolean {
  return a !== undefined && a.length === b.length && Buffer.compare(a, b) === 0
}

/** The filter as plain JSON, always in one order: to be kept with a task, and to tell it from others. */
export function encodeDeadFilter(filter: DeadFilter): Readonly<Record<string, unknown>> {
  const { reason, errorType, firstOffset, endOffset, fromMs, toMs, group, topic, limit } = filter
  const headers = filter.headers.map(({ key, value }) => [
    key,
    Buffer.from(value.buffer, value.byteOffset, value.length).toString('base64'),
  ])
  return {
    reason,
    errorType,
    firstOffset,
    endOffset,
    fromMs,
    toMs,
    headers,
    group,
    topic,
    limit,
  }
}

/** @throws BrokerError INVALID_FILTER when it is not what {@link encodeDeadFilter} writes */
export function decodeDeadFilter(json: unknown): DeadFilter {
  if (typeof json !== 'object' || json === null) throw invalid('record', 'it is no object')
  const fields = json as Readonly<Record<string, unknown>> // Each member is checked as it is read.
  const text = (name: string): string => {
    const value = fields[name]
    if (typeof value !== 'string') throw invalid(name, 'it is no text')
    return value
  }
  const point = (name: string): number | undefined => {
    const value = fields[name]
    if (value !== undefined && typeof value !== 'number') throw invalid(name, 'it is no number')
    return value
  }
  const { headers } = fields
  if (!Array.isArray(headers)) throw invalid('headers', 'they are no list')
  const filter: DeadFilter = {
    reason: text('reason'),
    errorType: text('errorType'),
    firstOffset: point('firstOffset'),
    endOffset: point('endOffset'),
    fromMs: point('fromMs'),
    toMs: point('toMs'),
    headers: headers.map((pair: unknown) => {
      const [key, value] = Array.isArray(pair) ? (pair as readonly unknown[]) : []
      if (typeof key !== 'string' || typeof value !== 'string') {
        throw invalid('headers', 'one of them is no pair of texts')
      }
      return { key, value: Buffer.from(value, 'base64') }
    }),
    group: text('group'),
    topic: text('topic'),
    limit: point('limit') ?? 0,
  }
  checkDeadFilter(filter)
  return filter
}

/** Tells a filter from others: a page token goes with one. */
export function fingerprintOf(filter: DeadFilter): number {
  return crc32c(Buffer.from(JSON.stringify(encodeDeadFilter(filter))))
}
