import { UsageError } from './usage-error.ts'
import { toDurationMs } from './arguments.ts'
import { parsePosition } from '../client/index.ts'
import type { BackoffOptions, DeadLetterFilter, Headers } from '../client/index.ts'
import { BrokerError } from '../common/errors.ts'
import { parseDurationMs } from '../common/units.ts'

/** Readers of what stands in commands about queues. Each throws a UsageError that says what would be right. */

/** One record of a topic. */
export interface RecordPlace {
  readonly topic: string
  readonly partition: number
  readonly offset: number
}

/**
 * `TOPIC PARTITION:OFFSET`, or in one as `tail` prints it: `TOPIC/PARTITION:OFFSET`. A bare offset is in partition 0.
 * @throws UsageError
 */
export function toRecordPlace(words: readonly string[]): RecordPlace {
  const [first = '', second] = words
  const both = second === undefined ? first : `${first}/${second}`
  const match = /^([^/]+)\/(?:(\d{1,7}):)?(\d{1,16})$/.exec(both)
  const offset = Number(match?.[3])
  if (match === null || words.length > 2 || !Number.isSafeInteger(offset)) {
    throw new UsageError(
      `${words.join(' ') || 'nothing'} is no place of a record`,
      'write TOPIC PARTITION:OFFSET, such as orders 0:17, or orders/0:17 as `tail` prints it',
    )
  }
  return { topic: match[1] ?? '', partition: Number(match[2] ?? 0), offset }
}

/** True for what can only be a place within a topic: `0:17`, `17`. */
export function isOffsetText(text: string): boolean {
  return /^(?:\d{1,7}:)?\d{1,16}$/.test(text)
}

/** A point in time as after `@` in positions: a date, a date and time, Unix seconds or milliseconds, `+5m`, `-1h`. */
export function toTime(name: string): (text: string) => Date {
  return (text) => {
    try {
      const parsed = parsePosition(`@${text.replace(/^@/, '')}`, Date.now())
      if (parsed.kind === 'time') return new Date(parsed.timeMs)
    } catch (error) {
      if (!(error instanceof BrokerError)) throw error
    }
    throw new UsageError(
      `${name} ${text} is no time`,
      'write a date, a date and time (2026-01-31T12:00Z; UTC unless it names a zone), Unix seconds or milliseconds, or +5m',
    )
  }
}

/** A time, or how long ago: `1h`. */
export function toPastTime(name: string): (text: string) => Date {
  return (text) => {
    if (/^\d+(\.\d+)?[a-z]/i.test(text)) return new Date(Date.now() - toDurationMs(name)(text))
    return toTime(name)(text)
  }
}

const BACKOFF_HINT =
  'write none, fixed:5s, linear:500ms, exponential:1s or list:1s,5s,1m (the last one repeats)'

/** `fixed:5s`, `linear:500ms`, `exponential:1s`, `list:1s,5s,1m`, `none`. */
export function toBackoff(name: string): (text: string) => BackoffOptions {
  return (text) => {
    const fail = (why: string): never => {
      throw new UsageError(`${name} ${text} ${why}`, BACKOFF_HINT)
    }
    const [type = '', rest] = text.trim().split(/:(.*)/s)
    if (type === 'none') return rest === undefined ? { type } : fail('has a time, and none waits')
    if (type !== 'fixed' && type !== 'linear' && type !== 'exponential' && type !== 'list') {
      return fail('is no backoff')
    }
    if (rest === undefined || rest.trim() === '') return fail('has no time')
    const times = rest.split(',').map((part) => {
      try {
        return parseDurationMs(part)
      } catch (error) {
        if (!(error instanceof BrokerError)) throw error
        return fail(`has a time that is none: ${part}`)
      }
    })
    if (type === 'list') return { type, delaysMs: times }
    if (times.length !== 1) return fail('has several times, and only a list has those')
    return { type, delayMs: times[0] ?? 0 }
  }
}

/** What narrows down dead letters, as typed. */
export interface FilterArguments {
  readonly reason?: string | undefined
  readonly errorType?: string | undefined
  /** Of the topic of dead letters: `100:200`, `100:`, `:200`, `17`. */
  readonly offsets?: string | undefined
  readonly since?: Date | undefined
  readonly until?: Date | undefined
  readonly header: readonly string[]
  readonly ofGroup?: string | undefined
  readonly ofTopic?: string | undefined
  readonly limit?: number | undefined
}

/** @throws UsageError */
export function toFilter(options: FilterArguments): DeadLetterFilter {
  const headers: Record<string, string> = {}
  for (const text of options.header) {
    const at = text.indexOf('=')
    if (at <= 0) throw new UsageError(`--header ${text} is no pair`, 'write it as name=value')
    headers[text.slice(0, at)] = text.slice(at + 1)
  }
  const [firstOffset, endOffset] = toOffsets(options.offsets)
  return {
    reason: options.reason,
    errorType: options.errorType,
    firstOffset,
    endOffset,
    diedFrom: options.since,
    diedTo: options.until,
    headers: Object.keys(headers).length === 0 ? undefined : (headers satisfies Headers),
    group: options.ofGroup,
    topic: options.ofTopic,
    limit: options.limit,
  }
}

function toOffsets(
  text: string | undefined,
): readonly [first: number | undefined, end: number | undefined] {
  if (text === undefined) return [undefined, undefined]
  const match = /^(\d{1,15})?(:)?(\d{1,15})?$/.exec(text)
  if (match === null || (match[1] === undefined && match[3] === undefined)) {
    throw new UsageError(
      `--offsets ${text} is no range of offsets`,
      'write it as 100:200 (the end not included), 100:, :200, or 100 for one',
    )
  }
  const first = match[1] === undefined ? undefined : Number(match[1])
  const end = match[3] === undefined ? undefined : Number(match[3])
  if (match[2] === undefined) return [first, (first ?? 0) + 1]
  if (first !== undefined && end !== undefined && end < first) {
    throw new UsageError(`--offsets ${text} ends before it starts`)
  }
  return [first, end]
}
