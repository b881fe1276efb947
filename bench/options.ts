import { unreachable } from '../src/common/assert.ts'
import { parseBytes, parseDurationMs } from '../src/common/units.ts'

/** An open loop's rate: so many records or bytes of values a second. */
export interface Rate {
  readonly perSecond: number
  readonly unit: 'records' | 'bytes'
}

export interface OptionSpec {
  readonly kind: 'bytes' | 'duration' | 'count' | 'choice' | 'flag' | 'text' | 'rate'
  /** As one would write it; absent: the option has no value unless it is given. */
  readonly default?: string
  readonly choices?: readonly string[]
  /** Of counts and durations. Default 0. */
  readonly least?: number
  readonly about: string
}

export type OptionSpecs = Readonly<Record<string, OptionSpec>>

type Given<S extends OptionSpec> = S['kind'] extends 'flag'
  ? boolean
  : S['kind'] extends 'rate'
    ? Rate
    : S['kind'] extends 'choice'
      ? S extends { readonly choices: readonly (infer C)[] }
        ? C
        : string
      : S['kind'] extends 'text'
        ? string
        : number

/** Values by name. One without a default may be undefined. */
export type Options<T extends OptionSpecs> = {
  readonly [K in keyof T]: T[K]['kind'] extends 'flag'
    ? boolean
    : T[K] extends { readonly default: string }
      ? Given<T[K]>
      : Given<T[K]> | undefined
}

/** What was typed makes no sense. Exit code 2. */
export class UsageError extends Error {}

/** Reads `--name value`, `--name=value` and flags. `batchBytes` is written `--batch-bytes`. @throws UsageError */
export function parseOptions<T extends OptionSpecs>(specs: T, argv: readonly string[]): Options<T> {
  const texts = new Map<string, string>()
  for (let i = 0; i < argv.length; i++) {
    const [word = '', ...rest] = (argv[i] ?? '').split('=')
    const name = Object.keys(specs).find((key) => toFlag(key) === word)
    if (name === undefined) {
      throw new UsageError(
        `there is no option ${word}; there are ${Object.keys(specs).map(toFlag).join(', ')}`,
      )
    }
    if (rest.length > 0) texts.set(name, rest.join('='))
    else if (specs[name]?.kind === 'flag') texts.set(name, 'true')
    else {
      const value = argv[++i]
      if (value === undefined) throw new UsageError(`${word} wants a value`)
      texts.set(name, value)
    }
  }
  const parsed: Record<string, unknown> = {}
  for (const [name, spec] of Object.entries(specs)) {
    const text = texts.get(name) ?? spec.default
    parsed[name] =
      text === undefined ? (spec.kind === 'flag' ? false : undefined) : parse(name, spec, text)
  }
  return parsed as Options<T> // Filled from the same table that the type is made from.
}

function parse(name: string, spec: OptionSpec, text: string): unknown {
  const fail = (why: string): never => {
    throw new UsageError(`${toFlag(name)}: "${text}" ${why}`)
  }
  switch (spec.kind) {
    case 'flag':
      return text !== 'false'
    case 'text':
      return text
    case 'choice':
      return spec.choices?.includes(text) === true
        ? text
        : fail(`is not one of ${spec.choices?.join(', ')}`)
    case 'rate':
      return (
        parseRate(text) ?? fail('is no rate: write 20MB/s, 512KiB/s or 100000 (records a second)')
      )
    case 'bytes':
      return atLeast(
        parseBytesOr(text, () => fail('is no size: write 64KiB or 1000')),
        spec,
        fail,
      )
    case 'duration':
      return atLeast(
        parseDurationOr(text, () => fail('is no duration: write 10s or 500ms')),
        spec,
        fail,
      )
    case 'count':
      return /^\d{1,15}$/.test(text)
        ? atLeast(Number(text), spec, fail)
        : fail('is no whole number')
    default:
      return unreachable(spec.kind)
  }
}

function atLeast(value: number, spec: OptionSpec, fail: (why: string) => never): number {
  const least = spec.least ?? 0
  return value >= least ? value : fail(`is less than ${least}`)
}

function parseBytesOr(text: string, fail: () => never): number {
  try {
    return parseBytes(text)
  } catch {
    return fail() // Its only reason to throw is that the text is no size.
  }
}

function parseDurationOr(text: string, fail: () => never): number {
  try {
    return parseDurationMs(text)
  } catch {
    return fail() // Its only reason to throw is that the text is no duration.
  }
}

/** `20MB/s` and `1MiB` are bytes; `5000`, `5000/s`, `50k` and `2M` are records. */
function parseRate(text: string): Rate | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([kmg]?i?b)?([km])?(?:\/s)?$/i.exec(text.trim())
  if (match === null) return undefined
  const [, number = '', bytes, thousands] = match
  const perSecond =
    bytes === undefined
      ? Number(number) * (thousands === undefined ? 1 : thousands.toLowerCase() === 'k' ? 1e3 : 1e6)
      : parseBytes(`${number}${bytes}`)
  return perSecond > 0 ? { perSecond, unit: bytes === undefined ? 'records' : 'bytes' } : undefined
}

/** Records a second for values of that size. */
export function toRecordsPerSecond(rate: Rate, payloadBytes: number): number {
  return rate.unit === 'records' ? rate.perSecond : rate.perSecond / payloadBytes
}

/** The help of one command. */
export function describeOptions(specs: OptionSpecs): string {
  const rows = Object.entries(specs).map(([name, spec]) => {
    const value =
      spec.kind === 'flag' ? '' : ` ${spec.choices?.join('|') ?? spec.kind.toUpperCase()}`
    return [`${toFlag(name)}${value}`, spec] as const
  })
  const width = Math.max(...rows.map(([left]) => left.length))
  return rows
    .map(([left, spec]) => {
      const defaults = spec.default === undefined ? '' : ` (default ${spec.default})`
      return `  ${left.padEnd(width)}  ${spec.about}${defaults}\n`
    })
    .join('')
}

function toFlag(name: string): string {
  return `--${name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
}
