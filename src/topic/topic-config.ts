import { BrokerError } from '../common/errors.ts'
import { checkGroupId } from '../common/names.ts'
import {
  booleanSetting,
  bytesSetting,
  choiceSetting,
  countSetting,
  durationSetting,
  formatBytesExactly,
  ratioSetting,
  type Setting,
  type SettingDescription,
  type SettingsChange,
  SettingsTable,
  textSetting,
} from '../common/settings.ts'
import {
  DAY_MS,
  formatDurationMs,
  HOUR_MS,
  KIB,
  MIB,
  MINUTE_MS,
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
  /** Newest batches are kept in memory for readers. */
  readonly tailCache: boolean
  /** What a reader gets that comes to a damaged place: an error, or what lies behind it. */
  readonly onCorruption: 'halt' | 'skip'
  readonly storage: 'local'
  /** A job topic: what is sent to it is work for its home group (SEMANTICS §3.11). */
  readonly jobsEnable: boolean
  /** The home group. Empty: as the topic's name says, see `homeGroupOf`. */
  readonly jobsGroup: string
  /** Retention waits for queue groups. `auto`: where the topic is a job topic; see {@link respectsQueueGroups}. */
  readonly retentionRespectQueueGroups: 'auto' | boolean
  readonly retentionHoldMaxMs: number
  /** 0: off. */
  readonly dedupeWindowMs: number
  readonly dedupeVerify: boolean
  /** 0: nothing can be delayed. */
  readonly delayMaxMs: number
  /** A place for dead letters. */
  readonly dlq: boolean
}

/** The settings that a topic has of its own; the others follow the defaults, also when those change. */
export type TopicOverrides = Readonly<Partial<TopicConfig>>

/** Settings to make a topic's own, and settings to give back to the defaults. */
export type TopicConfigChange = SettingsChange<TopicConfig>

export type ConfigDescription = SettingDescription

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
  tailCache: booleanSetting({
    name: 'tail.cache',
    default: DEFAULT_LOG_CONFIG.tailCache,
    description:
      'Keep the newest batches in memory for readers that follow. A change counts from the next start of the broker.',
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
  jobsEnable: booleanSetting({
    name: 'jobs.enable',
    default: false,
    description:
      'A topic of jobs: queue groups start at its first record, retry, keep dead letters, and retention waits for them.',
  }),
  jobsGroup: textSetting({
    name: 'jobs.group',
    default: '',
    allowed: 'a group id, or empty (<topic>.workers)',
    description: 'The queue group that works through a topic of jobs.',
    read(text) {
      if (text !== '') checkGroupId(text)
      return text
    },
  }),
  retentionRespectQueueGroups: choiceSetting<'auto' | boolean>({
    name: 'retention.respect.queue.groups',
    default: 'auto',
    choices: { auto: 'auto', true: true, false: false },
    description:
      'Whether retention waits for what queue groups have not finished; auto does where jobs are enabled.',
  }),
  retentionHoldMaxMs: durationSetting({
    name: 'retention.hold.max.ms',
    default: 7 * DAY_MS,
    min: 0,
    max: 3650 * DAY_MS,
    description: 'How long after they were due retention waits for records, at most.',
  }),
  dedupeWindowMs: durationSetting({
    name: 'dedupe.window.ms',
    default: 5 * MINUTE_MS,
    min: 0,
    max: 7 * DAY_MS,
    description: 'How long a dedupe id is remembered; 0 switches that off.',
  }),
  dedupeVerify: booleanSetting({
    name: 'dedupe.verify',
    default: false,
    description: 'Refuse a dedupe id that comes again with another payload.',
  }),
  delayMaxMs: durationSetting({
    name: 'delay.max.ms',
    default: 400 * DAY_MS,
    min: 0,
    max: 400 * DAY_MS,
    description: 'How far ahead a record may be sent for later.',
  }),
  dlq: booleanSetting({
    name: 'dlq',
    default: false,
    description: 'A place for dead letters: queue groups may be told to put theirs here.',
  }),
}

const TABLE: SettingsTable<TopicConfig> = new SettingsTable('a topic', SETTINGS, {
  jobs: 'jobsEnable',
})

/**
 * Reads settings as users write them, by their dotted names and with units (`1GiB`, `7d`).
 * @throws BrokerError INVALID_CONFIG for an unknown name (with the nearest), a value of the wrong kind or outside its range;
 *   UNSUPPORTED_FEATURE for a value that is promised for later
 */
export function parseOverrides(config: Readonly<Record<string, string>>): TopicOverrides {
  return TABLE.parse(config)
}

/**
 * Reads a change. A name may be set or cleared, not both.
 * @throws BrokerError INVALID_CONFIG, UNSUPPORTED_FEATURE, as {@link parseOverrides}
 */
export function parseChange(
  set: Readonly<Record<string, string>>,
  clear: readonly string[],
): TopicConfigChange {
  return TABLE.parseChange(set, clear)
}

/**
 * The overrides after `change`. Setting an immutable one to what it is changes nothing, and is allowed.
 * @throws BrokerError IMMUTABLE_CONFIG
 */
export function applyChange(overrides: TopicOverrides, change: TopicConfigChange): TopicOverrides {
  return TABLE.apply(overrides, change)
}

/** Everything set: the overrides, and the defaults for the rest. */
export function resolveConfig(overrides: TopicOverrides): TopicConfig {
  return TABLE.resolve(overrides)
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
  return TABLE.findDifferences(a, b)
}

/** For the catalog: dotted names, bare numbers. */
export function encodeOverrides(overrides: TopicOverrides): Record<string, string> {
  return TABLE.encode(overrides)
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
  return TABLE.decode(encoded)
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
    tailCache: config.tailCache,
    producerExpiryMs: DEFAULT_LOG_CONFIG.producerExpiryMs,
    compact: config.cleanupPolicy !== 'delete',
    minCleanableRatio: config.minCleanableRatio,
    deleteRetentionMs: config.deleteRetentionMs,
    minCompactionLagMs: config.minCompactionLagMs,
    maxCompactionLagMs: config.maxCompactionLagMs,
  }
}

/** True when retention waits for the queue groups of the topic. */
export function respectsQueueGroups(config: TopicConfig): boolean {
  const { retentionRespectQueueGroups: chosen, jobsEnable } = config
  return chosen === 'auto' ? jobsEnable : chosen
}

/** Every setting with its present value, in the order of the table. */
export function describeConfig(overrides: TopicOverrides): readonly ConfigDescription[] {
  return TABLE.describe(overrides)
}
