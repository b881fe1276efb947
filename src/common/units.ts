import { BrokerError } from './errors.ts'

export const KIB = 1024
export const MIB: number = 1024 * KIB
export const GIB: number = 1024 * MIB
export const TIB: number = 1024 * GIB
export const SECOND_MS = 1000
export const MINUTE_MS: number = 60 * SECOND_MS
export const HOUR_MS: number = 60 * MINUTE_MS
export const DAY_MS: number = 24 * HOUR_MS

const BYTE_UNITS: Readonly<Record<string, number>> = {
  '': 1,
  b: 1,
  kib: KIB,
  mib: MIB,
  gib: GIB,
  tib: TIB,
  k: KIB,
  m: MIB,
  g: GIB,
  t: TIB,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
}

const DURATION_UNITS: Readonly<Record<string, number>> = {
  '': 1,
  ms: 1,
  s: SECOND_MS,
  m: MINUTE_MS,
  min: MINUTE_MS,
  h: HOUR_MS,
  d: DAY_MS,
  w: 7 * DAY_MS,
}

/**
 * Reads a size such as `1GiB`, `64 MiB`, `500kB` or a bare count of bytes. `K`, `M`, `G` mean KiB, MiB, GiB.
 * @throws BrokerError INVALID_CONFIG when the text is no size
 */
export function parseBytes(text: string): number {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$/i.exec(text)
  const unit = match === null ? undefined : BYTE_UNITS[(match[2] ?? '').toLowerCase()]
  const value = unit === undefined ? Number.NaN : Math.round(Number(match?.[1]) * unit)
  if (!Number.isSafeInteger(value)) {
    throw new BrokerError(
      'INVALID_CONFIG',
      `"${text}" is not a size: write a number with B, KiB, MiB, GiB or TiB, such as 64MiB`,
    )
  }
  return value
}

/**
 * Reads a duration such as `500ms`, `7d`, `1h30m` or a bare count of milliseconds.
 * @throws BrokerError INVALID_CONFIG when the text is no duration
 */
export function parseDurationMs(text: string): number {
  const compact = text.replaceAll(/\s+/g, '').toLowerCase()
  const parts = [...compact.matchAll(/(\d+(?:\.\d+)?)([a-z]*)/g)]
  let totalMs = parts.length > 0 && parts.map((part) => part[0]).join('') === compact ? 0 : NaN
  for (const part of parts) totalMs += Number(part[1]) * (DURATION_UNITS[part[2] ?? ''] ?? NaN)
  const rounded = Math.round(totalMs)
  if (!Number.isSafeInteger(rounded)) {
    throw new BrokerError(
      'INVALID_CONFIG',
      `"${text}" is not a duration: write a number with ms, s, m, h, d or w, such as 7d or 500ms`,
    )
  }
  return rounded
}

/** A size as people write it: exact multiples as `64MiB`, everything else with one decimal. */
export function formatBytes(bytes: number): string {
  const units: readonly (readonly [string, number])[] = [
    ['TiB', TIB],
    ['GiB', GIB],
    ['MiB', MIB],
    ['KiB', KIB],
  ]
  for (const [name, size] of units) {
    if (bytes >= size) {
      const value = bytes / size
      return `${Number.isInteger(value) ? value : value.toFixed(1)}${name}`
    }
  }
  return `${bytes}B`
}

/** A duration as people write it, in the largest unit that divides it: `7d`, `90m`, `1500ms`. */
export function formatDurationMs(ms: number): string {
  const units: readonly (readonly [string, number])[] = [
    ['d', DAY_MS],
    ['h', HOUR_MS],
    ['m', MINUTE_MS],
    ['s', SECOND_MS],
  ]
  for (const [name, size] of units) {
    if (ms >= size && ms % size === 0) return `${ms / size}${name}`
  }
  return `${ms}ms`
}
