import { BrokerError } from './errors.ts'
import { findNearest } from './names.ts'
import { formatDurationMs, GIB, KIB, MIB, parseBytes, parseDurationMs, TIB } from './units.ts'

/** One row of a table of settings. */
export interface Setting<T> {
  /** Kafka's spelling where Kafka has the setting. */
  readonly name: string
  readonly default: T
  readonly immutable: boolean
  readonly description: string
  readonly allowed: string
  /** A longer text is refused unread. */
  readonly mostLetters: number
  /** Reads what a user wrote. @throws BrokerError INVALID_CONFIG, UNSUPPORTED_FEATURE, INVALID_BACKOFF */
  parse(text: string): T
  /** Undefined when the value lies in the range, else what is wrong with it. */
  findFault(value: T): string | undefined
  /** For people, and {@link parse} reads it back exactly. */
  format(value: T): string
  /** For the disk: no units, as Kafka keeps it. */
  encode(value: T): string
}

/** Far above any number that means something. Keeps errors, which repeat the text, short. */
const MOST_LETTERS = 64

export interface NumberSpec {
  readonly name: string
  readonly default: number
  readonly min: number
  readonly max: number
  readonly description: string
  /** -1 switches the limit off. */
  readonly unlimited?: boolean
}

const UNLIMITED = 'unlimited'

function numberSetting(
  spec: NumberSpec,
  read: (text: string) => number,
  write: (value: number) => string,
): Setting<number> {
  const unlimited = spec.unlimited === true
  const range = `${write(spec.min)} to ${write(spec.max)}`
  const allowed = unlimited ? `${range}, or -1 (${UNLIMITED})` : range
  const shown = (value: number): string => (value === Infinity ? UNLIMITED : write(value))
  return {
    name: spec.name,
    default: spec.default,
    immutable: false,
    description: spec.description,
    allowed,
    mostLetters: MOST_LETTERS,
    parse(text) {
      const compact = text.trim().toLowerCase()
      return unlimited && (compact === '-1' || compact === UNLIMITED) ? Infinity : read(compact)
    },
    findFault(value) {
      if (value === Infinity && unlimited) return undefined
      return value >= spec.min && value <= spec.max
        ? undefined
        : `${shown(value)} is outside ${allowed}`
    },
    format: shown,
    encode: (value) => (value === Infinity ? '-1' : String(value)),
  }
}

const BYTE_UNITS: readonly (readonly [string, number])[] = [
  ['TiB', TIB],
  ['GiB', GIB],
  ['MiB', MIB],
  ['KiB', KIB],
]

/** In the largest unit that leaves a whole number (`1536KiB`), so that it reads back exactly. */
export function formatBytesExactly(bytes: number): string {
  for (const [name, size] of BYTE_UNITS) {
    if (bytes >= size && bytes % size === 0) return `${bytes / size}${name}`
  }
  return `${bytes}B`
}

/** A size: `64MiB`. */
export function bytesSetting(spec: NumberSpec): Setting<number> {
  return numberSetting(spec, parseBytes, formatBytesExactly)
}

/** A duration: `7d`, `1h30m`. */
export function durationSetting(spec: NumberSpec): Setting<number> {
  return numberSetting(spec, parseDurationMs, formatDurationMs)
}

/** A whole number, 0 or more. */
export function countSetting(spec: NumberSpec): Setting<number> {
  const read = (text: string): number => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
    if (!Number.isSafeInteger(value)) {
      throw new BrokerError('INVALID_CONFIG', `"${text}" is not a whole number`)
    }
    return value
  }
  return numberSetting(spec, read, String)
}

/** A share or a factor, written as Kafka writes it: `0.5`. */
export function ratioSetting(spec: NumberSpec): Setting<number> {
  const read = (text: string): number => {
    const value = /^(\d+(\.\d*)?|\.\d+)$/.test(text) ? Number(text) : Number.NaN
    if (Number.isNaN(value)) {
      throw new BrokerError('INVALID_CONFIG', `"${text}" is not a share such as 0.5`)
    }
    return value
  }
  return numberSetting(spec, read, String)
}

export interface ChoiceSpec<T> {
  readonly name: string
  readonly default: T
  /** What users write (and what the disk keeps), and what it stands for here. */
  readonly choices: Readonly<Record<string, T>>
  /** Other spellings that are understood, and never shown. */
  readonly synonyms?: Readonly<Record<string, T>>
  /** Known to Kafka or promised for later: refused as such, not as a typing error. */
  readonly notYet?: readonly string[]
  readonly immutable?: boolean
  readonly description: string
}

export function choiceSetting<T>(spec: ChoiceSpec<T>): Setting<T> {
  const choices = Object.entries(spec.choices)
  const allowed = choices.map(([text]) => text).join(' or ')
  const write = (value: T): string =>
    choices.find(([, meant]) => meant === value)?.[0] ?? String(value)
  return {
    name: spec.name,
    default: spec.default,
    immutable: spec.immutable === true,
    description: spec.description,
    allowed,
    mostLetters: MOST_LETTERS,
    parse(text) {
      const compact = text.replaceAll(/\s+/g, '').toLowerCase()
      const found = choices.find(([written]) => written.toLowerCase() === compact)
      if (found !== undefined) return found[1]
      if (spec.synonyms !== undefined && Object.hasOwn(spec.synonyms, compact)) {
        return spec.synonyms[compact] as T // It has this key of its own.
      }
      if (spec.notYet?.includes(compact) === true) {
        throw new BrokerError(
          'UNSUPPORTED_FEATURE',
          `"${text}" is not supported yet; today only ${allowed} is`,
        )
      }
      throw new BrokerError('INVALID_CONFIG', `"${text}" is not one of: ${allowed}`)
    },
    findFault: () => undefined,
    format: write,
    encode: write,
  }
}

export interface BooleanSpec {
  readonly name: string
  readonly default: boolean
  readonly description: string
}

export function booleanSetting(spec: BooleanSpec): Setting<boolean> {
  return choiceSetting<boolean>({ ...spec, choices: { true: true, false: false } })
}

export interface TextSpec {
  readonly name: string
  readonly default: string
  readonly description: string
  readonly allowed: string
  /** 256 by default. */
  readonly mostLetters?: number
  /** The text as it will be kept. @throws BrokerError INVALID_CONFIG */
  read(text: string): string
}

/** A text with rules of its own. The empty text is for `read` to judge too. */
export function textSetting(spec: TextSpec): Setting<string> {
  return {
    name: spec.name,
    default: spec.default,
    immutable: false,
    description: spec.description,
    allowed: spec.allowed,
    mostLetters: spec.mostLetters ?? 256,
    parse: (text) => spec.read(text.trim()),
    findFault: () => undefined,
    format: (value) => value,
    encode: (value) => value,
  }
}

/** Settings to give a value, and settings to give back to the defaults. */
export interface SettingsChange<C> {
  readonly set: Readonly<Partial<C>>
  readonly clear: readonly (keyof C)[]
}

/** A setting with its present value, for people. */
export interface SettingDescription {
  readonly name: string
  /** As people write it; setting it again changes nothing. */
  readonly value: string
  readonly overridden: boolean
  readonly description: string
  readonly allowed: string
}

/**
 * The settings of one kind of thing: a row for each field of `C`, and all that is done to rows. Values are kept apart from the table, as plain
 * frozen objects: `C` with all set, `Partial<C>` with those that are a thing's own.
 */
export class SettingsTable<C extends object> {
  /** In the order of the rows, which is the order of every description. */
  readonly #keys: readonly (keyof C)[]
  readonly #rows: { readonly [K in keyof C]: Setting<C[K]> }
  readonly #keyOf: ReadonlyMap<string, keyof C>
  readonly #subject: string

  /** `subject` is for messages: `a topic`. `synonyms` are other names of rows: understood, never shown. */
  constructor(
    subject: string,
    rows: { readonly [K in keyof C]: Setting<C[K]> },
    synonyms: Readonly<Record<string, keyof C>> = {},
  ) {
    this.#subject = subject
    this.#rows = rows
    this.#keys = Object.keys(rows) as (keyof C)[] // The type of `rows` lists exactly these.
    this.#keyOf = new Map([
      ...Object.entries<keyof C>(synonyms),
      ...this.#keys.map((key): [string, keyof C] => [rows[key].name, key]),
    ])
  }

  nameOf(key: keyof C): string {
    return this.#rows[key].name
  }

  /**
   * Reads settings as users write them, by their dotted names and with units (`1GiB`, `7d`).
   * @throws BrokerError INVALID_CONFIG for an unknown name (with the nearest), a value of the wrong kind or outside its range, a setting
   *   given under two names; UNSUPPORTED_FEATURE for a value that is promised for later; others as the rows say
   */
  parse(config: Readonly<Record<string, string>>): Readonly<Partial<C>> {
    const overrides: Partial<Record<keyof C, unknown>> = {}
    for (const [name, text] of Object.entries(config)) {
      const key = this.#getKey(name)
      const row = this.#row(key)
      const value = this.#parseValue(row, text)
      const fault = row.findFault(value)
      if (fault !== undefined) {
        throw new BrokerError('INVALID_CONFIG', `${name}: ${fault}`, {
          field: name,
          actual: text,
          allowed: row.allowed,
        })
      }
      if (Object.hasOwn(overrides, key)) {
        const message = `${row.name} is given twice, once by another of its names`
        throw new BrokerError('INVALID_CONFIG', message, { field: name })
      }
      overrides[key] = value
    }
    return Object.freeze(overrides as Partial<C>) // Each value came from the row of its key.
  }

  /**
   * Reads a change. A name may be set or cleared, not both.
   * @throws BrokerError as {@link parse}
   */
  parseChange(set: Readonly<Record<string, string>>, clear: readonly string[]): SettingsChange<C> {
    const keys = new Set(clear.map((name) => this.#getKey(name)))
    for (const name of Object.keys(set)) {
      if (!keys.has(this.#getKey(name))) continue
      const message = `${name} is to be set and to be cleared: ask for one of them`
      throw new BrokerError('INVALID_CONFIG', message, { field: name })
    }
    return { set: this.parse(set), clear: [...keys] }
  }

  /**
   * The overrides after `change`. Setting an immutable one to what it is changes nothing, and is allowed.
   * @throws BrokerError IMMUTABLE_CONFIG
   */
  apply(overrides: Readonly<Partial<C>>, change: SettingsChange<C>): Readonly<Partial<C>> {
    const after: Partial<C> = { ...overrides, ...change.set }
    for (const key of change.clear) delete after[key]
    for (const key of this.#keys) {
      const row = this.#row(key)
      if (!row.immutable) continue
      const present = overrides[key] ?? row.default
      if ((after[key] ?? row.default) === present) continue
      throw new BrokerError(
        'IMMUTABLE_CONFIG',
        `${row.name} was fixed at ${row.format(present)} when ${this.#subject.replace(/^an? /, 'the ')} was made`,
        { field: row.name, actual: row.format(present) },
      )
    }
    return Object.freeze(after)
  }

  /** Everything set: the overrides, and the defaults for the rest. */
  resolve(overrides: Readonly<Partial<C>>): Readonly<C> {
    const config: Partial<Record<keyof C, unknown>> = {}
    for (const key of this.#keys) config[key] = overrides[key] ?? this.#rows[key].default
    return Object.freeze(config as C) // One value per row, from that row.
  }

  /** The names of the settings in which the two differ. */
  findDifferences(a: C, b: C): string[] {
    return this.#keys
      .filter((key) => this.#row(key).encode(a[key]) !== this.#row(key).encode(b[key]))
      .map((key) => this.#rows[key].name)
  }

  /** For the disk: dotted names, bare numbers. */
  encode(overrides: Readonly<Partial<C>>): Record<string, string> {
    const encoded: Record<string, string> = {}
    for (const key of this.#keys) {
      const value = overrides[key]
      if (value !== undefined) encoded[this.#rows[key].name] = this.#row(key).encode(value)
    }
    return encoded
  }

  /**
   * Reads what the disk keeps. Ranges are not checked: a thing made under a wider range keeps its value. Names that this version does not
   * know (a newer one wrote them) are left out and reported.
   * @throws BrokerError as {@link parse}, when a value of a known name cannot be read
   */
  decode(encoded: Readonly<Record<string, string>>): {
    overrides: Readonly<Partial<C>>
    unknown: readonly string[]
  } {
    const overrides: Partial<Record<keyof C, unknown>> = {}
    const unknown: string[] = []
    for (const [name, text] of Object.entries(encoded)) {
      const key = this.#keyOf.get(name)
      if (key === undefined) unknown.push(name)
      else overrides[key] = this.#parseValue(this.#row(key), text)
    }
    return { overrides: Object.freeze(overrides as Partial<C>), unknown } // As in parse.
  }

  /** Every setting with its present value, in the order of the table. */
  describe(overrides: Readonly<Partial<C>>): readonly SettingDescription[] {
    return this.#keys.map((key) => {
      const row = this.#row(key)
      const value = overrides[key]
      return {
        name: row.name,
        value: row.format(value ?? row.default),
        overridden: value !== undefined,
        description: row.description,
        allowed: row.allowed,
      }
    })
  }

  /** The row of a key that only a loop knows: its value type is the union of all. */
  #row(key: keyof C): Setting<C[keyof C]> {
    // The compiler takes methods' parameters either way, so this is sound only because every caller gives a row its own values.
    return this.#rows[key]
  }

  #getKey(name: string): keyof C {
    const key = this.#keyOf.get(name)
    if (key !== undefined) return key
    const isLong = name.length > MOST_LETTERS
    const shown = isLong ? `${name.slice(0, MOST_LETTERS)}…` : name
    const nearest = isLong ? [] : findNearest(name, this.#keyOf.keys())
    const hint = nearest.length === 0 ? '' : `; did you mean ${nearest.join(' or ')}?`
    throw new BrokerError(
      'INVALID_CONFIG',
      `${JSON.stringify(shown)} is not a setting of ${this.#subject}${hint}`,
      { field: shown, nearest },
    )
  }

  #parseValue(row: Setting<C[keyof C]>, text: string): C[keyof C] {
    const details = { field: row.name, allowed: row.allowed }
    if (text.length > row.mostLetters) {
      const message = `${row.name}: the value is ${text.length} letters long`
      throw new BrokerError('INVALID_CONFIG', message, details)
    }
    try {
      return row.parse(text)
    } catch (error) {
      if (!(error instanceof BrokerError)) throw error
      const facts = { ...details, actual: text }
      throw new BrokerError(error.code, `${row.name}: ${error.message}`, facts, error)
    }
  }
}
