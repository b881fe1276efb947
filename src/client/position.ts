import { type Offset, toOffset } from '../common/offset.ts'
import { parseDurationMs } from '../common/units.ts'
import { MillraceError } from './errors.ts'

/**
 * A place in every partition: `start`, `end`, `120` (exact offset), `+5` (after the start), `-10` (before the end),
 * `@2026-01-01T00:00Z` or `@-1h` (time), a Date, or an exact offset. The whole grammar is {@link POSITION_GRAMMAR}.
 */
export type Position = string | Date | Offset

/** What a {@link Position} means. Counts are records, times are milliseconds since the epoch. */
export type ParsedPosition =
  | { readonly kind: 'start' }
  | { readonly kind: 'end' }
  | { readonly kind: 'offset'; readonly offset: Offset }
  | { readonly kind: 'after-start'; readonly count: number }
  | { readonly kind: 'before-end'; readonly count: number }
  | { readonly kind: 'time'; readonly timeMs: number }

/** `[from, until)`. Without `until` the range is open: it follows, or ends at the end, as its user decides. */
export interface ParsedRange {
  readonly from: ParsedPosition
  readonly until: ParsedPosition | undefined
}

/** The grammar as people see it, in help and in every parse error. */
export const POSITION_GRAMMAR = `positions:
  start               the oldest record (also: beginning, oldest)
  end                 past the newest record (also: newest, latest)
  120                 exactly this offset
  +5                  5 records after the start of each partition
  -10                 10 records before the end of each partition
  @2026-01-01T00:00Z  the first record at or after a time: a date, a date and time (UTC unless it
                      names a zone), or Unix seconds or milliseconds (also: s@TIME)
  @-1h                the same, so long before now: ms, s, m, h, d, w, as in 1h30m
ranges, the end not included:
  100:200   start:end   :end   -100:end   100:   @-2h:-1h   @2026-01-01:2026-01-02   @-1h:end`

const LARGEST_TIME_MS = 8.64e15
const START_WORDS: ReadonlySet<string> = new Set(['start', 'beginning', 'oldest', 'earliest'])
const END_WORDS: ReadonlySet<string> = new Set(['end', 'newest', 'latest'])
const GROUP_WORDS = /^(?:committed|stored|group:.*)$/i
const DATE = /^\d{4}-\d{2}-\d{2}$/
const DATE_TIME =
  /^(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?)(Z|[+-]\d{2}:?\d{2})?$/i
/** Bare numbers of up to this many digits are Unix seconds (until the year 5138), longer ones milliseconds. */
const LONGEST_SECONDS = 11

/**
 * Reads one position. Times relative to now are made absolute with `nowMs`.
 * @throws MillraceError INVALID_POSITION with the whole grammar in its message
 */
export function parsePosition(position: Position, nowMs: number): ParsedPosition {
  const parsed = findPosition(position, nowMs)
  if (parsed === undefined) throw invalid(position, 'is not a position')
  return parsed
}

/**
 * Reads a position or a range `[from, until)`: `100:200`, `start:end`, `:end`, `@-2h:-1h`. A lone position is where the range starts.
 * @throws MillraceError INVALID_POSITION with the whole grammar in its message
 */
export function parseRange(range: Position, nowMs: number): ParsedRange {
  const alone = findPosition(range, nowMs)
  if (alone !== undefined) return { from: alone, until: undefined }
  if (typeof range !== 'string') throw invalid(range, 'is not a position')
  // Times hold colons too, so every colon is tried: the one counts that has a position on both sides.
  const text = range.trim()
  for (let at = text.indexOf(':'); at >= 0; at = text.indexOf(':', at + 1)) {
    const left = text.slice(0, at)
    const right = text.slice(at + 1)
    if (left === '' && right === '') break
    const from = left === '' ? { kind: 'start' as const } : findPosition(left, nowMs)
    if (from === undefined) continue
    if (right === '') return { from, until: undefined }
    // After `@` on the left, the right side is a time too unless it is `end`: `@-2h:-1h`.
    const until =
      from.kind === 'time' && !END_WORDS.has(right.toLowerCase())
        ? findTime(right.replace(/^@/, ''), nowMs)
        : findPosition(right, nowMs)
    if (until === undefined) continue
    checkOrder(range, from, until)
    return { from, until }
  }
  throw invalid(range, 'is not a position or a range')
}

function checkOrder(range: string, from: ParsedPosition, until: ParsedPosition): void {
  const backwards =
    (from.kind === 'offset' && until.kind === 'offset' && from.offset > until.offset) ||
    (from.kind === 'time' && until.kind === 'time' && from.timeMs > until.timeMs) ||
    (from.kind === 'after-start' && until.kind === 'after-start' && from.count > until.count) ||
    (from.kind === 'before-end' && until.kind === 'before-end' && from.count < until.count)
  if (backwards) throw invalid(range, 'ends before it starts')
}

function findPosition(position: Position, nowMs: number): ParsedPosition | undefined {
  if (position instanceof Date) {
    const timeMs = position.getTime()
    return Number.isFinite(timeMs) ? { kind: 'time', timeMs } : undefined
  }
  if (typeof position === 'number') return exact(position)
  const text = position.trim()
  const word = text.toLowerCase()
  if (START_WORDS.has(word)) return { kind: 'start' }
  if (END_WORDS.has(word)) return { kind: 'end' }
  if (GROUP_WORDS.test(word)) throw invalid(position, 'needs a group, and a plain reader has none')
  if (/^\d+$/.test(text)) return exact(Number(text))
  if (/^\+\d+$/.test(text)) return counted('after-start', Number(text))
  if (/^-\d+$/.test(text)) return counted('before-end', -Number(text))
  const time = /^(?:s|e)?@(.+)$/is.exec(text)?.[1]
  return time === undefined ? undefined : findTime(time, nowMs)
}

function exact(value: number): ParsedPosition | undefined {
  return Number.isSafeInteger(value) && value >= 0
    ? { kind: 'offset', offset: toOffset(value) }
    : undefined
}

function counted(kind: 'after-start' | 'before-end', count: number): ParsedPosition | undefined {
  return Number.isSafeInteger(count) ? { kind, count: count + 0 } : undefined // -0 becomes 0.
}

function findTime(text: string, nowMs: number): ParsedPosition | undefined {
  const timeMs = findTimeMs(text.trim(), nowMs)
  if (timeMs === undefined || !(Math.abs(timeMs) <= LARGEST_TIME_MS)) return undefined
  return { kind: 'time', timeMs }
}

function findTimeMs(text: string, nowMs: number): number | undefined {
  if (text.toLowerCase() === 'now') return nowMs
  if (/^\d+$/.test(text)) return text.length <= LONGEST_SECONDS ? Number(text) * 1000 : Number(text)
  if (DATE.test(text)) return toTimeMs(`${text}T00:00:00Z`)
  const parts = DATE_TIME.exec(text)
  if (parts !== null) {
    // A zone may be written +0100; Date wants +01:00.
    const zone = (parts[3] ?? 'Z').toUpperCase().replace(/^([+-]\d{2})(\d{2})$/, '$1:$2')
    return toTimeMs(`${parts[1]}T${parts[2]}${zone}`)
  }
  // The sign may be left out in no place: "@1h" would be read as an hour from now by some and ago by others.
  const relative = /^([+-])(\d.*)$/s.exec(text)
  if (relative?.[2] === undefined || /^\d+$/.test(relative[2])) return undefined
  try {
    const durationMs = parseDurationMs(relative[2])
    return relative[1] === '-' ? nowMs - durationMs : nowMs + durationMs
  } catch {
    return undefined // Not a duration: the caller's message names the whole grammar, which says more.
  }
}

function toTimeMs(iso: string): number | undefined {
  const timeMs = Date.parse(iso)
  if (!Number.isFinite(timeMs)) return undefined
  // Date.parse takes the 31st of February for the 3rd of March: refuse what does not read back.
  const day = iso.slice(0, 10)
  return new Date(`${day}T00:00:00Z`).toISOString().startsWith(day) ? timeMs : undefined
}

function invalid(position: Position, why: string): MillraceError {
  const shown =
    position instanceof Date ? 'an invalid Date' : JSON.stringify(String(position).slice(0, 80))
  return new MillraceError('INVALID_POSITION', `${shown} ${why}\n${POSITION_GRAMMAR}`, {
    field: 'position',
    actual: String(position).slice(0, 80),
  })
}
