import { UsageError } from './usage-error.ts'
import type { Position } from '../client/position.ts'
import { unreachable } from '../common/assert.ts'
import { BrokerError } from '../common/errors.ts'
import { findNearest } from '../common/names.ts'
import { toOffset } from '../common/offset.ts'
import type { ParsedPosition } from '../client/position.ts'
import { parseDurationMs } from '../common/units.ts'

/** Readers of what stands after options. Each throws a UsageError that says what would be right. */

export function toCount(name: string): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
      throw new UsageError(`${name} ${text} is no count`, 'write a whole number, 0 or more')
    }
    return value
  }
}

export function toPositiveCount(name: string): (text: string) => number {
  return (text) => {
    const value = toCount(name)(text)
    if (value === 0) throw new UsageError(`${name} 0 is too small`, 'write 1 or more')
    return value
  }
}

/** With a sign or without. */
export function toInteger(name: string): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (!/^[+-]?\d+$/.test(text) || !Number.isSafeInteger(value)) {
      throw new UsageError(`${name} ${text} is no whole number`, 'write it as 100, +100 or -100')
    }
    return value + 0 // -0 becomes 0.
  }
}

/** `0,1,4-6` */
export function toPartitions(text: string): readonly number[] {
  const partitions = new Set<number>()
  for (const part of text.split(',')) {
    const match = /^\s*(\d{1,7})(?:-(\d{1,7}))?\s*$/.exec(part)
    const first = Number(match?.[1])
    const last = match?.[2] === undefined ? first : Number(match[2])
    if (match === null || last < first || last - first > 100_000) {
      throw new UsageError(`${text} is no list of partitions`, 'write it as 0 or 0,1 or 0-5')
    }
    for (let partition = first; partition <= last; partition++) partitions.add(partition)
  }
  return [...partitions].sort((a, b) => a - b)
}

export function toDurationMs(name: string): (text: string) => number {
  return (text) => {
    try {
      return parseDurationMs(text)
    } catch (error) {
      if (!(error instanceof BrokerError)) throw error
      throw new UsageError(`${name} ${error.message}`)
    }
  }
}

/** One of a few words. */
export function toChoice<T extends string>(
  name: string,
  choices: readonly T[],
): (text: string) => T {
  return (text) => {
    const found = choices.find((choice) => choice === text)
    if (found !== undefined) return found
    const nearest = findNearest(text, choices, 1)[0]
    throw new UsageError(
      `${name} ${text} is none of ${choices.join(', ')}`,
      nearest === undefined ? undefined : `did you mean ${nearest}?`,
    )
  }
}

/** Gathers the values of an option that may be given several times. */
export function collect(value: string, before: readonly string[] = []): readonly string[] {
  return [...before, value]
}

/** The same for lists of names with commas between them. */
export function collectNames(value: string, before: readonly string[] = []): readonly string[] {
  const names = value.split(',').map((name) => name.trim())
  return [...before, ...names.filter((name) => name !== '')]
}

/** `name=value` pairs. The value may hold further equal signs, and may be empty. */
export function toPairs(name: string, texts: readonly string[]): [name: string, value: string][] {
  return texts.map((text) => {
    const at = text.indexOf('=')
    if (at <= 0) throw new UsageError(`${name} ${text} is no pair`, 'write it as name=value')
    return [text.slice(0, at), text.slice(at + 1)]
  })
}

/** What has been parsed, as the client takes it. */
export function toPosition(parsed: ParsedPosition): Position {
  switch (parsed.kind) {
    case 'start':
      return 'start'
    case 'end':
      return 'end'
    case 'offset':
      return toOffset(parsed.offset)
    case 'after-start':
      return `+${parsed.count}`
    case 'before-end':
      return `-${parsed.count}`
    case 'time':
      return new Date(parsed.timeMs)
    default:
      return unreachable(parsed)
  }
}
