import { UsageError } from './usage-error.ts'

const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday']
const MONTHS = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
]

type TimeVerb = (time: Date) => string

function two(value: number): string {
  return String(value).padStart(2, '0')
}

function dayOfYear(time: Date): number {
  const start = Date.UTC(time.getUTCFullYear(), 0, 1)
  return Math.floor((time.getTime() - start) / 86_400_000) + 1
}

/** The verbs of strftime(3) that have one meaning everywhere. All in UTC. */
const TIME_VERBS: Readonly<Record<string, TimeVerb>> = {
  Y: (time) => String(time.getUTCFullYear()),
  y: (time) => two(time.getUTCFullYear() % 100),
  m: (time) => two(time.getUTCMonth() + 1),
  d: (time) => two(time.getUTCDate()),
  e: (time) => String(time.getUTCDate()).padStart(2, ' '),
  H: (time) => two(time.getUTCHours()),
  I: (time) => two(time.getUTCHours() % 12 || 12),
  p: (time) => (time.getUTCHours() < 12 ? 'AM' : 'PM'),
  M: (time) => two(time.getUTCMinutes()),
  S: (time) => two(time.getUTCSeconds()),
  L: (time) => String(time.getUTCMilliseconds()).padStart(3, '0'),
  j: (time) => String(dayOfYear(time)).padStart(3, '0'),
  a: (time) => (DAYS[time.getUTCDay()] ?? '').slice(0, 3),
  A: (time) => DAYS[time.getUTCDay()] ?? '',
  b: (time) => (MONTHS[time.getUTCMonth()] ?? '').slice(0, 3),
  B: (time) => MONTHS[time.getUTCMonth()] ?? '',
  s: (time) => String(Math.floor(time.getTime() / 1000)),
  z: () => '+0000',
  Z: () => 'UTC',
  F: (time) => time.toISOString().slice(0, -14),
  T: (time) => time.toISOString().slice(-13, -5),
  '%': () => '%',
}

/**
 * Compiles a strftime pattern.
 * @throws UsageError at a verb that is not there
 */
export function compileTimePattern(pattern: string): (timeMs: number) => string {
  const pieces: (string | TimeVerb)[] = []
  for (const match of pattern.matchAll(/%(.?)|[^%]+/gs)) {
    if (match[1] === undefined) pieces.push(match[0])
    else {
      const verb = TIME_VERBS[match[1]]
      if (verb === undefined) {
        throw new UsageError(
          `strftime:${pattern} has no %${match[1]}`,
          `it knows ${Object.keys(TIME_VERBS)
            .map((name) => `%${name}`)
            .join(' ')}`,
        )
      }
      pieces.push(verb)
    }
  }
  return (timeMs) => {
    const time = toDate(timeMs)
    if (time === undefined) return String(timeMs)
    return pieces.map((piece) => (typeof piece === 'string' ? piece : piece(time))).join('')
  }
}

/** ISO 8601 with milliseconds, in UTC; the bare number when it is no time that a calendar has. */
export function formatIso(timeMs: number): string {
  return toDate(timeMs)?.toISOString() ?? String(timeMs)
}

/** How long something has been, in two units at most: `340ms`, `3.2s`, `45s`, `5m10s`, `2h03m`, `4d2h`. */
export function formatAge(ms: number): string {
  if (Math.round(ms) < 1000) return `${Math.max(0, Math.round(ms))}ms`
  // Rounded first, or 9.96 s would be shown as 10.0s.
  const tenths = Math.round(ms / 100)
  if (tenths < 100) return `${(tenths / 10).toFixed(1)}s`
  const seconds = Math.round(ms / 1000)
  if (seconds < 60) return `${seconds}s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${two(seconds % 60)}s`
  const minutes = Math.floor(seconds / 60)
  if (minutes < 1440) return `${Math.floor(minutes / 60)}h${two(minutes % 60)}m`
  const hours = Math.floor(minutes / 60)
  return `${Math.floor(hours / 24)}d${hours % 24}h`
}

function toDate(timeMs: number): Date | undefined {
  const time = new Date(timeMs)
  return Number.isNaN(time.getTime()) ? undefined : time
}
