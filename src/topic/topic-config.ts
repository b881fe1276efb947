import { BrokerError } from '../common/errors.ts'
import { findNearest } from '../common/names.ts'
import {
  DAY_MS,
  formatDurationMs,
  GIB,
  HOUR_MS,
  KIB,
  MIB,
  parseBytes,
  parseDurationMs,
  SECOND_MS,
  TIB,
} from '../common/units.ts'
import { DEFAULT_LOG_CONFIG, type LogConfig } from '../log/log-config.ts'
import type { Isolation } from '../log/partition-log.ts'

/** Every setting of a topic, all set. Sizes in bytes, times in milliseconds; Infinity where a limit is off. */
export interface TopicConfig {
  readonly cleanupPolicy: 'delete' | 'compact' | 'compact,delete'
  /** Share of bytes, 0 to 1. */
  readonly minCleanableRatio: number
  readonly deleteRetentionMs: number
  readonly minCompactionLagMs: number
  readonly maxCompactionLagMs: number
  readonly retentionMs: number
  readonly retentionBytes: number
  readonly retentionRecords: number
  readonly deleteDelayMs: number
  readonly segmentBytes: number
  readonly segmentMs: number
  readonly indexBytes: number
  readonly indexIntervalBytes: number
  /** The largest batch that an append may bring. */
  readonly maxMessageBytes: number
  readonly timestampType: 'create' | 'append'
  /** How far ahead of the broker's clock a producer's timestamp may lie. */
  readonly maxFutureMs: number
  readonly compression: 'producer'
  readonly visibility: Isolation
  /** What a reader gets that comes to a damaged place: an error, or what lies behind it. */
  readonly onCorruption: 'halt' | 'skip'
  readonly storage: 'local'
}

/** The settings that a topic has of its own; the others follow the defaults, also when those change. */
export type TopicOverrides = Readonly<Partial<TopicConfig>>

/** Settings to make a topic's own, and settings to give back to the defaults. */
export interface TopicConfigChange {
  readonly set: TopicOverrides
  readonly clear: readonly (keyof TopicConfig)[]
}

export interface ConfigDescription {
  readonly name: string
  /** As people write it; setting it again changes nothing. */
  readonly value: string
  readonly overridden: boolean
  readonly description: string
  readonly allowed: string
}

/** One row of the table. */
interface Setting<T> {
  /** Kafka's spelling where Kafka has the setting. */
  readonly name: string
  readonly default: T
  readonly immutable: boolean
  readonly description: string
  readonly allowed: string
  /** Reads what a user wrote. @throws BrokerError INVALID_CONFIG, UNSUPPORTED_FEATURE */
  parse(text: string): T
  /** Undefined when the value lies in the range, else what is wrong with it. */
  findFault(value: T): string | undefined
  /** For people, and {@link parse} reads it back exactly. */
  format(value: T): string
  /** For the catalog: no units, as Kafka keeps it. */
  encode(value: T): string
}

interface NumberSpec {
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
function formatBytesExactly(bytes: number): string {
  for (const [name, size] of BYTE_UNITS) {
    if (bytes >= size && bytes % size === 0) return `${bytes / size}${name}`
  }
  return `${bytes}B`
}

function bytesSetting(spec: NumberSpec): Setting<number> {
  return numberSetting(spec, parseBytes, formatBytesExactly)
}

function durationSetting(spec: NumberSpec): Setting<number> {
  return numberSetting(spec, parseDurationMs, formatDurationMs)
}

function countSetting(spec: NumberSpec): Setting<number> {
  const read = (text: string): number => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
    if (!Number.isSafeInteger(value)) {
      throw new BrokerError('INVALID_CONFIG', `"${text}" is not a whole number`)
    }
    return value
  }
  return numberSetting(spec, read, String)
}

/** A share, written as Kafka writes it: `0.5`. */
function ratioSetting(spec: NumberSpec): Setting<number> {
  const read = (text: string): number => {
    const value = /^(\d+(\.\d*)?|\.\d+)$/.test(text) ? Number(text) : Number.NaN
    if (Number.isNaN(value)) {
      throw new BrokerError('INVALID_CONFIG', `"${text}" is not a share such as 0.5`)
    }
    return value
  }
  return numberSetting(spec, read, String)
}

interface ChoiceSpec<T extends string> {
  readonly name: string
  readonly default: T
  /** What users write (and what the catalog keeps), and what it stands for here. */
  readonly choices: Readonly<Record<string, T>>
  /** Other spellings that are understood, and never shown. */
  readonly synonyms?: Readonly<Record<string, T>>
  /** Known to Kafka or promised for later: refused as such, not as a typing error. */
  readonly notYet?: readonly string[]
  readonly immutable?: boolean
  readonly description: string
}

function choiceSetting<T extends string>(spec: ChoiceSpec<T>): Setting<T> {
  const choices = Object.entries(spec.choices)
  const allowed = choices.map(([text]) => text).join(' or ')
  const write = (value: T): string => choices.find(([, meant]) => meant === value)?.[0] ?? value
  return {
    name: spec.name,
    default: spec.default,
    immutable: spec.immutable === true,
    description: spec.description,
    allowed,
    parse(text) {
      const compact = text.replaceAll(/\s+/g, '').toLowerCase()
      const found = choices.find(([written]) => written.toLowerCase() === compact)
      if (found !== undefined) return found[1]
      const synonym = spec.synonyms?.[compact]
      if (synonym !== undefined) return synonym
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

const CENTURY_MS = 36_500 * DAY_MS

/**
 * The table. Ranges are as wide as what the engine keeps its promises in: a segment's positions are u32 and its relative offsets
 * below 2^31, and no batch is larger than a message of the transport can be (8 MiB).
 */
const SETTINGS: { readonly [K in keyof TopicConfig]: Setting<TopicConfig[K]> } = {
  cleanupPolicy: choiceSetting<'delete' | 'compact' | 'compact,delete'>({
    name: 'cleanup.policy',
    default: 'delete',
    choices: { delete: 'delete', compact: 'compact', 'compact,delete': 'compact,delete' },
    synonyms: { 'delete,compact': 'compact,delete' },
    description:
      'How old records go: delete drops whole segments, as retention says; compact keeps the newest record of each key.',
  }),
  minCleanableRatio: ratioSetting({
    name: 'min.cleanable.dirty.ratio',
    default: DEFAULT_LOG_CONFIG.minCleanableRatio,
    min: 0,
    max: 1,
    description:
      'A compacted partition is compacted again when this share of its bytes has not been yet.',
  }),
  deleteRetentionMs: durationSetting({
    name: 'delete.retention.ms',
    default: DEFAULT_LOG_CONFIG.deleteRetentionMs,
    min: 0,
    max: CENTURY_MS,
    description:
      'How long a tombstone (a record without a value) can still be read after it has first been compacted.',
  }),
  minCompactionLagMs: durationSetting({
    name: 'min.compaction.lag.ms',
    default: DEFAULT_LOG_CONFIG.minCompactionLagMs,
    min: 0,
    max: CENTURY_MS,
    description: 'Records younger than this are not compacted.',
  }),
  maxCompactionLagMs: durationSetting({
    name: 'max.compaction.lag.ms',
    default: DEFAULT_LOG_CONFIG.maxCompactionLagMs,
    min: 1,
    max: CENTURY_MS,
    unlimited: true,
    description: 'Records older than this are compacted whatever the dirty ratio is.',
  }),
  retentionMs: durationSetting({
    name: 'retention.ms',
    default: DEFAULT_LOG_CONFIG.retentionMs,
    min: 1,
    max: CENTURY_MS,
    unlimited: true,
    description: 'Segments whose newest record is older than this are dropped.',
  }),
  retentionBytes: bytesSetting({
    name: 'retention.bytes',
    default: DEFAULT_LOG_CONFIG.retentionBytes,
    min: 1,
    max: 1024 * TIB,
    unlimited: true,
    description: 'The oldest segments of a partition are dropped while it is larger than this.',
  }),
  retentionRecords: countSetting({
    name: 'retention.records',
    default: DEFAULT_LOG_CONFIG.retentionRecords,
    min: 1,
    max: Number.MAX_SAFE_INTEGER,
    unlimited: true,
    description:
      'The oldest segments of a partition are dropped while at least this many records remain without them.',
  }),
  deleteDelayMs: durationSetting({
    name: 'file.delete.delay.ms',
    default: DEFAULT_LOG_CONFIG.deleteDelayMs,
    min: 0,
    max: 7 * DAY_MS,
    description: 'How long dropped bytes stay on the disk, for readers that are in them.',
  }),
  segmentBytes: bytesSetting({
    name: 'segment.bytes',
    default: DEFAULT_LOG_CONFIG.segmentBytes,
    min: MIB,
    max: 2 ** 31 - 1,
    description: 'A new segment begins when the present one would grow past this.',
  }),
  segmentMs: durationSetting({
    name: 'segment.ms',
    default: DEFAULT_LOG_CONFIG.segmentMs,
    min: SECOND_MS,
    max: CENTURY_MS,
    description: 'A new segment begins when the first batch of the present one is older than this.',
  }),
  indexBytes: bytesSetting({
    name: 'segment.index.bytes',
    default: DEFAULT_LOG_CONFIG.indexBytes,
    min: 4 * KIB,
    max: 128 * MIB,
    description: 'A new segment begins when the offset index would grow past this.',
  }),
  indexIntervalBytes: bytesSetting({
    name: 'index.interval.bytes',
    default: DEFAULT_LOG_CONFIG.indexIntervalBytes,
    min: 512,
    max: MIB,
    description: 'Bytes of log between two index entries.',
  }),
  maxMessageBytes: bytesSetting({
    name: 'max.message.bytes',
    default: MIB,
    min: KIB,
    max: 8 * MIB,
    description: 'The largest record batch that is taken, as it is sent (compressed).',
  }),
  timestampType: choiceSetting<'create' | 'append'>({
    name: 'message.timestamp.type',
    default: DEFAULT_LOG_CONFIG.timestampType,
    choices: { CreateTime: 'create', LogAppendTime: 'append' },
    description:
      "Whose time a record carries: the producer's, or the broker's at the append, which never decreases.",
  }),
  maxFutureMs: durationSetting({
    name: 'message.timestamp.after.max.ms',
    default: HOUR_MS,
    min: 0,
    max: CENTURY_MS,
    unlimited: true,
    description: "How far ahead of the broker's clock a producer's timestamp may be.",
  }),
  compression: choiceSetting({
    name: 'compression.type',
    default: 'producer',
    choices: { producer: 'producer' },
    notYet: ['uncompressed', 'none', 'gzip', 'snappy', 'lz4', 'zstd'],
    description: 'How batches are stored: producer keeps them as they came.',
  }),
  visibility: choiceSetting<Isolation>({
    name: 'visibility',
    default: DEFAULT_LOG_CONFIG.visibility,
    choices: { durable: 'durable', written: 'written' },
    description:
      'What readers see: only what is on the disk for good, or also what a power cut may still take.',
  }),
  onCorruption: choiceSetting<'halt' | 'skip'>({
    name: 'on.corruption',
    default: 'halt',
    choices: { halt: 'halt', skip: 'skip' },
    description:
      'What a reader meets at a damaged place: SEGMENT_QUARANTINED, or the next good record.',
  }),
  storage: choiceSetting({
    name: 'storage',
    default: 'local',
    choices: { local: 'local' },
    notYet: ['shared'],
    immutable: true,
    description: 'Where the records live. Fixed when the topic is made.',
  }),
}

/** In the order of the table, which is the order of every description. */
const KEYS = Object.keys(SETTINGS) as (keyof TopicConfig)[] // The table's type lists exactly these.

const KEY_OF: ReadonlyMap<string, keyof TopicConfig> = new Map(
  KEYS.map((key) => [SETTINGS[key].name, key]),
)

/** Far above any value that means something. Keeps errors, which repeat the text, short. */
const LONGEST_VALUE = 64

/** The row of a key that only a loop knows: its value type is the union of all. */
function settingOf(key: keyof TopicConfig): Setting<TopicConfig[keyof TopicConfig]> {
  // The compiler takes methods' parameters either way, so this is sound only because every caller gives a row its own values.
  return SETTINGS[key]
}

function getKey(name: string): keyof TopicConfig {
  const key = KEY_OF.get(name)
  if (key !== undefined) return key
  const shown = name.length > LONGEST_VALUE ? `${name.slice(0, LONGEST_VALUE)}…` : name
  const nearest = name.length > LONGEST_VALUE ? [] : findNearest(name, KEY_OF.keys())
  const hint = nearest.length === 0 ? '' : `; did you mean ${nearest.join(' or ')}?`
  throw new BrokerError(
    'INVALID_CONFIG',
    `${JSON.stringify(shown)} is not a setting of a topic${hint}`,
    { field: shown, nearest },
  )
}

function parseValue(key: keyof TopicConfig, text: string): TopicConfig[keyof TopicConfig] {
  const setting = settingOf(key)
  const details = { field: setting.name, allowed: setting.allowed }
  if (text.length > LONGEST_VALUE) {
    const message = `${setting.name}: the value is ${text.length} letters long`
    throw new BrokerError('INVALID_CONFIG', message, details)
  }
  try {
    return setting.parse(text)
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error
    const facts = { ...details, actual: text }
    throw new BrokerError(error.code, `${setting.name}: ${error.message}`, facts, error)
  }
}

/**
 * Reads settings as users write them, by their dotted names and with units (`1GiB`, `7d`).
 * @throws BrokerError INVALID_CONFIG for an unknown name (with the nearest), a value of the wrong kind or outside its range;
 *   UNSUPPORTED_FEATURE for a value that is promised for later
 */
export function parseOverrides(config: Readonly<Record<string, string>>): TopicOverrides {
  const overrides: Partial<Record<keyof TopicConfig, unknown>> = {}
  for (const [name, text] of Object.entries(config)) {
    const key = getKey(name)
    const value = parseValue(key, text)
    const setting = settingOf(key)
    const fault = setting.findFault(value)
    if (fault !== undefined) {
      throw new BrokerError('INVALID_CONFIG', `${name}: ${fault}`, {
        field: name,
        actual: text,
        allowed: setting.allowed,
      })
    }
    overrides[key] = value
  }
  return Object.freeze(overrides as TopicOverrides) // Each value came from the row of its key.
}

/**
 * Reads a change. A name may be set or cleared, not both.
 * @throws BrokerError INVALID_CONFIG, UNSUPPORTED_FEATURE, as {@link parseOverrides}
 */
export function parseChange(
  set: Readonly<Record<string, string>>,
  clear: readonly string[],
): TopicConfigChange {
  const keys = [...new Set(clear.map(getKey))]
  for (const name of clear) {
    if (Object.hasOwn(set, name)) {
      const message = `${name} is to be set and to be cleared: ask for one of them`
      throw new BrokerError('INVALID_CONFIG', message, { field: name })
    }
  }
  return { set: parseOverrides(set), clear: keys }
}

/**
 * The overrides after `change`. Setting an immutable one to what it is changes nothing, and is allowed.
 * @throws BrokerError IMMUTABLE_CONFIG
 */
export function applyChange(overrides: TopicOverrides, change: TopicConfigChange): TopicOverrides {
  const after: Partial<Record<keyof TopicConfig, unknown>> = { ...overrides, ...change.set }
  for (const key of change.clear) delete after[key]
  for (const key of KEYS) {
    const setting = settingOf(key)
    if (!setting.immutable) continue
    const present = overrides[key] ?? setting.default
    if ((after[key] ?? setting.default) === present) continue
    throw new BrokerError(
      'IMMUTABLE_CONFIG',
      `${setting.name} was fixed at ${setting.format(present)} when the topic was made`,
      { field: setting.name, actual: setting.format(present) },
    )
  }
  return Object.freeze(after as TopicOverrides) // Values of two valid sets, each under its own key.
}

/** Everything set: the overrides, and the defaults for the rest. */
export function resolveConfig(overrides: TopicOverrides): TopicConfig {
  const config: Partial<Record<keyof TopicConfig, unknown>> = {}
  for (const key of KEYS) config[key] = overrides[key] ?? SETTINGS[key].default
  return Object.freeze(config as unknown as TopicConfig) // One value per row, from that row.
}

/**
 * Checks that no two settings contradict each other. For what users ask for, not for what the catalog holds already.
 * @throws BrokerError INVALID_CONFIG
 */
export function checkConfig(config: TopicConfig): void {
  if (config.minCompactionLagMs > config.maxCompactionLagMs) {
    const least = formatDurationMs(config.minCompactionLagMs)
    const most = formatDurationMs(config.maxCompactionLagMs)
    throw new BrokerError(
      'INVALID_CONFIG',
      `min.compaction.lag.ms (${least}) is larger than max.compaction.lag.ms (${most}): no record could be compacted in time`,
      {
        field: 'min.compaction.lag.ms',
        actual: config.minCompactionLagMs,
        limit: config.maxCompactionLagMs,
      },
    )
  }
  if (config.maxMessageBytes <= config.segmentBytes) return
  // A batch never spans segments, so one that is larger than a segment would break the bound on a file's size.
  const size = formatBytesExactly(config.maxMessageBytes)
  const limit = formatBytesExactly(config.segmentBytes)
  throw new BrokerError(
    'INVALID_CONFIG',
    `max.message.bytes (${size}) is larger than segment.bytes (${limit}): a batch has to fit into a segment`,
    { field: 'max.message.bytes', actual: config.maxMessageBytes, limit: config.segmentBytes },
  )
}

/** The names of the settings in which the two differ. */
export function findDifferences(a: TopicConfig, b: TopicConfig): string[] {
  return KEYS.filter((key) => a[key] !== b[key]).map((key) => SETTINGS[key].name)
}

/** For the catalog: dotted names, bare numbers. */
export function encodeOverrides(overrides: TopicOverrides): Record<string, string> {
  const encoded: Record<string, string> = {}
  for (const key of KEYS) {
    const value = overrides[key]
    if (value !== undefined) encoded[SETTINGS[key].name] = settingOf(key).encode(value)
  }
  return encoded
}

/**
 * Reads what the catalog keeps. Ranges are not checked: a topic made under a wider range keeps its value. Names that this version
 * does not know (a newer one wrote them) are left out and reported.
 * @throws BrokerError INVALID_CONFIG, UNSUPPORTED_FEATURE when a value of a known name cannot be read
 */
export function decodeOverrides(encoded: Readonly<Record<string, string>>): {
  overrides: TopicOverrides
  unknown: readonly string[]
} {
  const overrides: Partial<Record<keyof TopicConfig, unknown>> = {}
  const unknown: string[] = []
  for (const [name, text] of Object.entries(encoded)) {
    const key = KEY_OF.get(name)
    if (key === undefined) unknown.push(name)
    else overrides[key] = parseValue(key, text)
  }
  return { overrides: Object.freeze(overrides as TopicOverrides), unknown } // As in parseOverrides.
}

/** The part of a topic's settings that its logs need. */
export function toLogConfig(config: TopicConfig): LogConfig {
  // Compacted alone, a log keeps its keys' newest records for ever, as in Kafka.
  const isKept = config.cleanupPolicy === 'compact'
  return {
    segmentBytes: config.segmentBytes,
    segmentMs: config.segmentMs,
    indexBytes: config.indexBytes,
    indexIntervalBytes: config.indexIntervalBytes,
    retentionMs: isKept ? Infinity : config.retentionMs,
    retentionBytes: isKept ? Infinity : config.retentionBytes,
    retentionRecords: isKept ? Infinity : config.retentionRecords,
    deleteDelayMs: config.deleteDelayMs,
    timestampType: config.timestampType,
    visibility: config.visibility,
    producerExpiryMs: DEFAULT_LOG_CONFIG.producerExpiryMs,
    compact: config.cleanupPolicy !== 'delete',
    minCleanableRatio: config.minCleanableRatio,
    deleteRetentionMs: config.deleteRetentionMs,
    minCompactionLagMs: config.minCompactionLagMs,
    maxCompactionLagMs: config.maxCompactionLagMs,
  }
}

/** Every setting with its present value, in the order of the table. */
export function describeConfig(overrides: TopicOverrides): readonly ConfigDescription[] {
  return KEYS.map((key) => {
    const setting = settingOf(key)
    const value = overrides[key]
    return {
      name: setting.name,
      value: setting.format(value ?? setting.default),
      overridden: value !== undefined,
      description: setting.description,
      allowed: setting.allowed,
    }
  })
}
