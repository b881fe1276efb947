import { unreachable } from '../../common/assert.ts'
import { BrokerError } from '../../common/errors.ts'
import { checkTopicName, isInternalTopic } from '../../common/names.ts'
import {
  booleanSetting,
  choiceSetting,
  countSetting,
  durationSetting,
  ratioSetting,
  type Setting,
  SettingsTable,
  type SettingsChange,
  textSetting,
} from '../../common/settings.ts'
import {
  DAY_MS,
  formatDurationMs,
  HOUR_MS,
  parseDurationMs,
  SECOND_MS,
} from '../../common/units.ts'
import type { QueueSettingDescription } from './queue-types.ts'

/** How the delay before a retry grows with the failures of a record (SEMANTICS §3.4). */
export type BackoffType = 'none' | 'fixed' | 'linear' | 'exponential' | 'list'

/** The settings of a queue group as they are set: two of them may say that the topic decides. Times in milliseconds, 0 where a limit is off. */
export interface QueueSettings {
  /** '': the topic decides. Else as {@link QueueConfig.start}. */
  readonly start: string
  readonly leaseMs: number
  /** How long a lease can be made to last by renewing it. */
  readonly leaseMaxTotalMs: number
  readonly delayMs: number
  /** Acquired records, and those available again, in one partition. Never records that wait for a retry. */
  readonly maxInflight: number
  readonly maxRuns: number
  readonly maxDeliveries: number
  readonly persistAcquire: boolean
  readonly releaseOnDisconnect: boolean
  readonly maxMembers: number
  /** The first run included. */
  readonly maxAttempts: number
  readonly backoffType: BackoffType
  readonly backoffInitialMs: number
  readonly backoffMultiplier: number
  readonly backoffMaxMs: number
  /** Share of the delay, 0 to 1. */
  readonly backoffJitter: number
  readonly backoffListMs: readonly number[]
  /** `auto`: true for job topics. */
  readonly dlqEnable: 'auto' | boolean
  /** '': `dlq.<group>.<topic>`. */
  readonly dlqTopic: string
  readonly dlqPolicy: 'topic' | 'drop' | 'block'
  readonly dlqCopyPayload: boolean
  readonly dlqMaxPending: number
  readonly order: 'none' | 'key' | 'partition'
  readonly orderOnFailure: 'block' | 'skip'
  readonly orderMaxBusyKeys: number
  readonly concurrencyMax: number
  /** Name of a header; '': the ordering key. */
  readonly concurrencyKey: string
  readonly concurrencyKeyMax: number
  readonly rateMax: number
  readonly rateDurationMs: number
  /** 0: as {@link rateMax}. */
  readonly rateBurst: number
  /** '': one bucket for the group. `key`: one for each ordering key. Else the name of a header. */
  readonly rateKey: string
}

/** Every setting of a queue group, for one of its topics: nothing is left to the topic. */
export interface QueueConfig extends Omit<QueueSettings, 'dlqEnable'> {
  /** `earliest`, `latest`, `@2026-01-01T00:00:00.000Z` or `-1h`. Take it apart with {@link parseQueueStart}. */
  readonly start: string
  readonly dlqEnable: boolean
}

/** The settings that a queue group has of its own; the others follow the defaults, also when those change. */
export type QueueOverrides = Readonly<Partial<QueueSettings>>

/** Settings to make a group's own, and settings to give back to the defaults. */
export type QueueConfigChange = SettingsChange<QueueSettings>

/** Where a group begins in a partition that it has not read before. Times are milliseconds since the epoch. */
export type QueueStart =
  | { readonly kind: 'earliest' }
  | { readonly kind: 'latest' }
  | { readonly kind: 'time'; readonly timeMs: number }
  | { readonly kind: 'ago'; readonly agoMs: number }

const MOST_BACKOFF_STEPS = 32
export const MOST_BACKOFF_MS: number = 30 * DAY_MS
const LONGEST_LEASE_MS = 12 * HOUR_MS
const LONGEST_AGO_MS = 36_500 * DAY_MS
const MOST_HEADER_LETTERS = 128

const START_ALLOWED = 'auto, earliest, latest, @2026-01-01T00:00:00Z or -1h'

/** A day, and a time of it with its zone: a time without one would mean another instant on every machine. */
const TIME = /^(\d{4}-\d{2}-\d{2})(?:T\d{2}:\d{2}(?::\d{2}(?:\.\d{1,3})?)?(?:Z|[+-]\d{2}:\d{2}))?$/i

/**
 * Takes a start apart: `earliest`, `latest`, a time (`@2026-01-01`, `@2026-01-01T12:00Z`) or a time ago (`-1h`, `@-1h`).
 * @throws BrokerError INVALID_CONFIG when it is none of these
 */
export function parseQueueStart(text: string): QueueStart {
  const compact = text.trim().toLowerCase()
  if (compact === 'earliest' || compact === 'latest') return { kind: compact }
  const ago = /^@?-(.+)$/.exec(compact)?.[1]
  // A bare number is refused: `-10` means the last ten records elsewhere, and would mean ten milliseconds here.
  if (ago !== undefined && !/^[\d.]*$/.test(ago)) {
    const agoMs = parseDurationMs(ago)
    if (agoMs <= LONGEST_AGO_MS) return { kind: 'ago', agoMs }
  }
  const timeMs = compact.startsWith('@') ? findTimeMs(text.trim().slice(1)) : undefined
  if (timeMs !== undefined) return { kind: 'time', timeMs }
  throw new BrokerError('INVALID_CONFIG', `"${text}" is not one of: ${START_ALLOWED}`)
}

function findTimeMs(text: string): number | undefined {
  const day = TIME.exec(text)?.[1]
  const timeMs = day === undefined ? Number.NaN : Date.parse(text.toUpperCase())
  if (day === undefined || !(timeMs >= 0)) return undefined
  // Date.parse takes the 31st of February for the 3rd of March: refuse what does not read back.
  return new Date(`${day}T00:00:00Z`).toISOString().startsWith(day) ? timeMs : undefined
}

function toStartText(text: string): string {
  if (text === '' || text.toLowerCase() === 'auto') return ''
  const start = parseQueueStart(text)
  switch (start.kind) {
    case 'time':
      return `@${new Date(start.timeMs).toISOString()}`
    case 'ago':
      return `-${formatDurationMs(start.agoMs)}`
    case 'earliest':
    case 'latest':
      return start.kind
    default:
      return unreachable(start)
  }
}

/** The delays of `text`, such as `1s, 5s, 1m`. @throws BrokerError INVALID_BACKOFF */
export function parseBackoffList(text: string): readonly number[] {
  const parts = text.trim() === '' ? [] : text.split(',')
  if (parts.length > MOST_BACKOFF_STEPS) {
    throw new BrokerError(
      'INVALID_BACKOFF',
      `${parts.length} delays are too many: a list has up to ${MOST_BACKOFF_STEPS}, and its last one repeats`,
      { limit: MOST_BACKOFF_STEPS, actual: parts.length },
    )
  }
  return Object.freeze(parts.map((part) => parseBackoffDelay(part)))
}

/** One delay of a backoff, 0 to 30 days. @throws BrokerError INVALID_BACKOFF */
export function parseBackoffDelay(text: string): number {
  let delayMs: number
  try {
    delayMs = parseDurationMs(text)
  } catch (error) {
    const message = `"${text.trim()}" is not a delay: write a number with ms, s, m, h or d, such as 5s`
    throw new BrokerError('INVALID_BACKOFF', message, { actual: text }, error)
  }
  if (delayMs > MOST_BACKOFF_MS) {
    const most = formatDurationMs(MOST_BACKOFF_MS)
    const message = `${formatDurationMs(delayMs)} is longer than ${most}, the longest delay`
    throw new BrokerError('INVALID_BACKOFF', message, { limit: most, actual: text })
  }
  return delayMs
}

function delayListSetting(spec: {
  readonly name: string
  readonly description: string
}): Setting<readonly number[]> {
  return {
    ...spec,
    default: Object.freeze([]),
    immutable: false,
    allowed: `up to ${MOST_BACKOFF_STEPS} durations, such as 1s,5s,1m`,
    mostLetters: 24 * MOST_BACKOFF_STEPS,
    parse: parseBackoffList,
    findFault: () => undefined,
    format: (list) => list.map(formatDurationMs).join(','),
    encode: (list) => list.join(','),
  }
}

function headerNameSetting(spec: {
  readonly name: string
  readonly description: string
}): Setting<string> {
  return textSetting({
    ...spec,
    default: '',
    allowed: `the name of a header, 1 to ${MOST_HEADER_LETTERS} letters, or nothing`,
    read(text) {
      if (Buffer.byteLength(text) > MOST_HEADER_LETTERS) {
        const message = `a header's name has at most ${MOST_HEADER_LETTERS} bytes`
        throw new BrokerError('INVALID_CONFIG', message)
      }
      return text
    },
  })
}

/** Reads the name of a topic that a user may write to, or nothing. @throws BrokerError INVALID_CONFIG */
function readTopicName(text: string): string {
  if (text === '') return text
  try {
    checkTopicName(text)
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error
    throw new BrokerError('INVALID_CONFIG', error.message, {}, error)
  }
  if (!isInternalTopic(text)) return text
  throw new BrokerError('INVALID_CONFIG', `"${text}" begins with __, which is for the broker`)
}

const TABLE: SettingsTable<QueueSettings> = new SettingsTable<QueueSettings>('a queue group', {
  start: {
    ...textSetting({
      name: 'queue.start',
      default: '',
      allowed: START_ALLOWED,
      description:
        'Where the group begins in a partition that it has not read before: auto is earliest for job topics, else latest.',
      mostLetters: 64,
      read: toStartText,
    }),
    format: (value) => (value === '' ? 'auto' : value),
  },
  leaseMs: durationSetting({
    name: 'queue.lease.ms',
    default: 30 * SECOND_MS,
    min: SECOND_MS,
    max: LONGEST_LEASE_MS,
    description: 'How long a worker holds a record before it must have acknowledged or renewed.',
  }),
  leaseMaxTotalMs: durationSetting({
    name: 'queue.lease.max.total.ms',
    default: LONGEST_LEASE_MS,
    min: SECOND_MS,
    max: LONGEST_LEASE_MS,
    description: 'How long a lease can last in all, however often it is renewed.',
  }),
  delayMs: durationSetting({
    name: 'queue.delay.ms',
    default: 0,
    min: 0,
    max: 400 * DAY_MS,
    description: 'Records are not delivered before they are this old.',
  }),
  maxInflight: countSetting({
    name: 'queue.max.inflight.per.partition',
    default: 2000,
    min: 100,
    max: 100_000,
    description:
      'How many records of a partition may be with workers, or be waiting to go to one again. Retries that wait do not count.',
  }),
  maxRuns: countSetting({
    name: 'queue.max.runs.per.partition',
    default: 50_000,
    min: 100,
    max: 1_000_000,
    description:
      'How many runs of records in different states the broker keeps for a partition before it stops to look at new records.',
  }),
  maxDeliveries: countSetting({
    name: 'queue.max.deliveries',
    default: 0,
    min: 0,
    max: 1_000_000,
    description:
      'A record that has been delivered this often is dead, failures or not. 0: no limit.',
  }),
  persistAcquire: booleanSetting({
    name: 'queue.persist.acquire',
    default: false,
    description:
      'Writes every delivery down, so that records that kill the whole process still reach their limit.',
  }),
  releaseOnDisconnect: booleanSetting({
    name: 'queue.release.on.disconnect',
    default: false,
    description:
      'Gives back what a worker holds 2 s after its connection broke, instead of at the end of the lease.',
  }),
  maxMembers: countSetting({
    name: 'queue.max.members',
    default: 10_000,
    min: 1,
    max: 100_000,
    description: 'How many workers the group may have at one time.',
  }),
  maxAttempts: countSetting({
    name: 'retry.max.attempts',
    default: 5,
    min: 0,
    max: 1000,
    description: 'A record that has failed this often is dead; the first run counts. 0: no limit.',
  }),
  backoffType: choiceSetting<BackoffType>({
    name: 'retry.backoff.type',
    default: 'exponential',
    choices: {
      none: 'none',
      fixed: 'fixed',
      linear: 'linear',
      exponential: 'exponential',
      list: 'list',
    },
    description: 'How the delay before a retry grows with the failures.',
  }),
  backoffInitialMs: durationSetting({
    name: 'retry.backoff.initial.ms',
    default: SECOND_MS,
    min: 0,
    max: DAY_MS,
    description: 'The delay after the first failure.',
  }),
  backoffMultiplier: ratioSetting({
    name: 'retry.backoff.multiplier',
    default: 2,
    min: 1,
    max: 10,
    description: 'An exponential delay grows by this factor with each failure.',
  }),
  backoffMaxMs: durationSetting({
    name: 'retry.backoff.max.ms',
    default: HOUR_MS,
    min: 0,
    max: MOST_BACKOFF_MS,
    description: 'No delay is longer than this.',
  }),
  backoffJitter: ratioSetting({
    name: 'retry.backoff.jitter',
    default: 0.2,
    min: 0,
    max: 1,
    description: 'Up to this share of a delay is left out at random, so that retries spread.',
  }),
  backoffListMs: delayListSetting({
    name: 'retry.backoff.list.ms',
    description: 'The delays of the type list, one for each failure; the last one repeats.',
  }),
  dlqEnable: choiceSetting<'auto' | boolean>({
    name: 'dlq.enable',
    default: 'auto',
    choices: { auto: 'auto', true: true, false: false },
    description:
      'Whether dead records go to a topic of dead letters; without it they are dropped and counted. auto: for job topics.',
  }),
  dlqTopic: textSetting({
    name: 'dlq.topic',
    default: '',
    allowed: 'the name of a topic with dlq=true, or nothing: dlq.<group>.<topic>',
    description: 'The topic of dead letters. It is made when it is first needed.',
    read: readTopicName,
  }),
  dlqPolicy: choiceSetting<'topic' | 'drop' | 'block'>({
    name: 'dlq.policy',
    default: 'topic',
    choices: { topic: 'topic', drop: 'drop', block: 'block' },
    description:
      'What becomes of a dead record: it goes to the topic, it is dropped, or it stays and blocks its key until somebody decides.',
  }),
  dlqCopyPayload: booleanSetting({
    name: 'dlq.copy.payload',
    default: true,
    description: 'Whether a dead letter carries the value of the record.',
  }),
  dlqMaxPending: countSetting({
    name: 'dlq.max.pending',
    default: 10_000,
    min: 1,
    max: 1_000_000,
    description:
      'Nothing more is delivered while this many dead letters of a partition wait to be written.',
  }),
  order: choiceSetting<'none' | 'key' | 'partition'>({
    name: 'order',
    default: 'none',
    choices: { none: 'none', key: 'key', partition: 'partition' },
    description: 'Of which records only one is with a worker at a time, in the order of the log.',
  }),
  orderOnFailure: choiceSetting<'block' | 'skip'>({
    name: 'order.on.failure',
    default: 'block',
    choices: { block: 'block', skip: 'skip' },
    description:
      'Whether a record that waits for its retry holds back those behind it in its order.',
  }),
  orderMaxBusyKeys: countSetting({
    name: 'order.max.busy.keys',
    default: 10_000,
    min: 1,
    max: 1_000_000,
    description:
      'How many keys of a partition may be busy before the broker stops to look further.',
  }),
  concurrencyMax: countSetting({
    name: 'concurrency.max',
    default: 0,
    min: 0,
    max: 1_000_000,
    description: 'How many records the whole group may work on at a time. 0: no limit.',
  }),
  concurrencyKey: headerNameSetting({
    name: 'concurrency.key',
    description: 'The header that concurrency.key.max goes by. Nothing: the ordering key.',
  }),
  concurrencyKeyMax: countSetting({
    name: 'concurrency.key.max',
    default: 0,
    min: 0,
    max: 1_000_000,
    description: 'How many records with the same key the group may work on at a time. 0: no limit.',
  }),
  rateMax: countSetting({
    name: 'rate.max',
    default: 0,
    min: 0,
    max: 1_000_000_000,
    description:
      'How many records are delivered in rate.duration.ms, in the long run. 0: no limit.',
  }),
  rateDurationMs: durationSetting({
    name: 'rate.duration.ms',
    default: SECOND_MS,
    min: 1,
    max: DAY_MS,
    description: 'The time that rate.max is meant for.',
  }),
  rateBurst: countSetting({
    name: 'rate.burst',
    default: 0,
    min: 0,
    max: 1_000_000_000,
    description: 'How many records may be delivered at once after a rest. 0: as rate.max.',
  }),
  rateKey: headerNameSetting({
    name: 'rate.key',
    description:
      'The header that the rate is counted by: each value has a rate of its own. key: the ordering key. Nothing: the whole group.',
  }),
})

/**
 * Checks that no two settings contradict each other. For what users ask for, not for what the disk holds already.
 * @throws BrokerError INVALID_CONFIG, INVALID_BACKOFF
 */
export function checkQueueOverrides(overrides: QueueOverrides): void {
  const settings = TABLE.resolve(overrides)
  if (settings.leaseMs > settings.leaseMaxTotalMs) {
    const lease = formatDurationMs(settings.leaseMs)
    const most = formatDurationMs(settings.leaseMaxTotalMs)
    throw new BrokerError(
      'INVALID_CONFIG',
      `queue.lease.ms (${lease}) is longer than queue.lease.max.total.ms (${most}): no lease could last so long`,
      { field: 'queue.lease.ms', actual: lease, limit: most },
    )
  }
  if (settings.backoffType !== 'list' || settings.backoffListMs.length > 0) return
  throw new BrokerError(
    'INVALID_BACKOFF',
    'retry.backoff.type is list, and retry.backoff.list.ms is empty: give the delays, such as 1s,5s,1m',
    { field: 'retry.backoff.list.ms' },
  )
}

/** A list that would not be used is a mistake while somebody is giving it; left over from another type it does no harm. */
function checkListIsUsed(given: QueueOverrides, after: QueueOverrides): void {
  const { backoffType } = TABLE.resolve(after)
  if (backoffType === 'list' || (given.backoffListMs ?? []).length === 0) return
  throw new BrokerError(
    'INVALID_BACKOFF',
    `retry.backoff.list.ms is given, and retry.backoff.type is ${backoffType}: set the type to list too`,
    { field: 'retry.backoff.type', actual: backoffType },
  )
}

/**
 * Reads the settings of a group as users write them, by their dotted names and with units.
 * @throws BrokerError INVALID_CONFIG for an unknown name (with the nearest), a value of the wrong kind or outside its range, and settings that
 *   contradict each other; INVALID_BACKOFF for a backoff that does
 */
export function parseQueueOverrides(config: Readonly<Record<string, string>>): QueueOverrides {
  const overrides = TABLE.parse(config)
  checkQueueOverrides(overrides)
  checkListIsUsed(overrides, overrides)
  return overrides
}

/**
 * Reads a change. A name may be set or cleared, not both. What the change would contradict shows only when it is applied.
 * @throws BrokerError INVALID_CONFIG, INVALID_BACKOFF
 */
export function parseQueueChange(
  set: Readonly<Record<string, string>>,
  clear: readonly string[],
): QueueConfigChange {
  return TABLE.parseChange(set, clear)
}

/**
 * The overrides after `change`.
 * @throws BrokerError INVALID_CONFIG, INVALID_BACKOFF when settings then contradict each other
 */
export function applyQueueChange(
  overrides: QueueOverrides,
  change: QueueConfigChange,
): QueueOverrides {
  const after = TABLE.apply(overrides, change)
  checkQueueOverrides(after)
  checkListIsUsed(change.set, after)
  return after
}

/** Everything set: the overrides, and for the rest the defaults, which for a job topic are to begin at the start and to keep dead letters. */
export function resolveQueueConfig(
  overrides: QueueOverrides,
  topic: { readonly jobs: boolean },
): QueueConfig {
  const settings = TABLE.resolve(overrides)
  return Object.freeze({
    ...settings,
    start: settings.start === '' ? (topic.jobs ? 'earliest' : 'latest') : settings.start,
    dlqEnable: settings.dlqEnable === 'auto' ? topic.jobs : settings.dlqEnable,
  })
}

/** Every setting with its present value, in the order of the table. What the topic decides is shown as `auto`. */
export function describeQueueConfig(overrides: QueueOverrides): readonly QueueSettingDescription[] {
  return TABLE.describe(overrides)
}

/** For the group's state record: dotted names, bare numbers. */
export function encodeQueueOverrides(overrides: QueueOverrides): Record<string, string> {
  return TABLE.encode(overrides)
}

/**
 * Reads what the state record keeps. Ranges are not checked, nor what contradicts itself; names that this version does not know (a newer one
 * wrote them) are left out and reported.
 * @throws BrokerError INVALID_CONFIG, INVALID_BACKOFF, UNSUPPORTED_FEATURE when a value of a known name cannot be read
 */
export function decodeQueueOverrides(encoded: Readonly<Record<string, string>>): {
  overrides: QueueOverrides
  unknown: readonly string[]
} {
  return TABLE.decode(encoded)
}
