import { BrokerError } from '../common/errors.ts'
import { checkGroupId, checkTopicName } from '../common/names.ts'
import { DAY_MS, HOUR_MS, SECOND_MS } from '../common/units.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import type {
  BackoffOptions,
  BatchWorkerOptions,
  QueueOptions,
  ReceiveOptions,
  WorkerOptions,
} from './worker-api.ts'

/** With prefetching, which is as much again at most, far below the credit that a broker takes. */
const MOST_CONCURRENCY = 100_000
const MOST_PREFETCH = 100_000
const MOST_DEFAULT_PREFETCH = 1_000
const MOST_BATCH_RECORDS = 10_000
const DEFAULT_BATCH_RECORDS = 100
const MOST_THREADS = 256
export const SHORTEST_LEASE_MS: number = SECOND_MS
export const LONGEST_LEASE_MS: number = 12 * HOUR_MS
const LONGEST_BACKOFF_MS: number = 30 * DAY_MS
const LONGEST_RECEIVE_WAIT_MS: number = 30 * SECOND_MS
const MOST_RECEIVED_RECORDS = 1_000
const MOST_BACKOFF_DELAYS = 32
const MOST_RATE = 1_000_000_000

export interface Setting {
  readonly name: string
  readonly value: string
}

/** What a worker asks a broker for. */
export interface WorkTarget {
  readonly group: string
  readonly topic: string
  /** 0: the group's. */
  readonly leaseMs: number
  readonly settings: readonly Setting[]
}

export interface CheckedWorkerOptions {
  readonly target: WorkTarget
  readonly concurrency: number
  readonly prefetch: number
  readonly threads: number
}

/** @throws MillraceError INVALID_GROUP_ID, INVALID_TOPIC_NAME, INVALID_REQUEST that names the option */
export function checkWorkerOptions(topic: string, options: WorkerOptions): CheckedWorkerOptions {
  const { concurrency = 1, threads = 1 } = options
  checkWhole('concurrency', concurrency, 1, MOST_CONCURRENCY)
  checkWhole('threads', threads, 1, MOST_THREADS)
  const prefetch = options.prefetch ?? Math.min(concurrency, MOST_DEFAULT_PREFETCH)
  checkWhole('prefetch', prefetch, 0, MOST_PREFETCH)
  return { target: toTarget(topic, options), concurrency, prefetch, threads }
}

export interface CheckedBatchOptions extends CheckedWorkerOptions {
  readonly batchRecords: number
  readonly batchWaitMs: number
}

/** @throws MillraceError as {@link checkWorkerOptions} */
export function checkBatchWorkerOptions(
  topic: string,
  options: BatchWorkerOptions,
): CheckedBatchOptions {
  const { batchSize = DEFAULT_BATCH_RECORDS, batchWaitMs = 0, concurrency = 1 } = options
  checkWhole('batchSize', batchSize, 1, MOST_BATCH_RECORDS)
  checkWhole('batchWaitMs', batchWaitMs, 0, HOUR_MS)
  const records = batchSize * concurrency
  const prefetch = options.prefetch ?? Math.min(Math.max(1, records), MOST_DEFAULT_PREFETCH)
  const checked = checkWorkerOptions(topic, { ...options, prefetch })
  if (records > MOST_CONCURRENCY) {
    throw invalid('batchSize', batchSize, `has to keep batchSize × concurrency within 100 000`)
  }
  return { ...checked, batchRecords: batchSize, batchWaitMs }
}

export interface CheckedReceiveOptions {
  readonly target: WorkTarget
  readonly max: number
  readonly waitMs: number
}

/** @throws MillraceError as {@link checkWorkerOptions} */
export function checkReceiveOptions(topic: string, options: ReceiveOptions): CheckedReceiveOptions {
  const { max = 1, waitMs = 0 } = options
  checkWhole('max', max, 1, MOST_RECEIVED_RECORDS)
  checkWhole('waitMs', waitMs, 0, LONGEST_RECEIVE_WAIT_MS)
  return { target: toTarget(topic, options), max, waitMs }
}

function toTarget(
  topic: string,
  options: QueueOptions & { readonly group: string; readonly leaseMs?: number | undefined },
): WorkTarget {
  const { group, leaseMs } = options
  try {
    checkTopicName(topic)
    checkGroupId(group)
  } catch (error) {
    if (error instanceof BrokerError) throw toMillraceError(error)
    throw invalid('group', group, 'has to be a text')
  }
  if (leaseMs !== undefined) checkWhole('leaseMs', leaseMs, SHORTEST_LEASE_MS, LONGEST_LEASE_MS)
  return { group, topic, leaseMs: leaseMs ?? 0, settings: toSettings(options) }
}

/**
 * Options as a group's settings, by their dotted names.
 * @throws MillraceError INVALID_REQUEST that names the option; what a text in `settings` means is for the broker to judge
 */
export function toSettings(options: QueueOptions): Setting[] {
  const settings = new Map<string, string>()
  const { attempts, backoff, order, concurrencyMax, rateLimit, deadLetters, start } = options
  if (attempts !== undefined) {
    settings.set('retry.max.attempts', whole('attempts', attempts, 0, 1000))
  }
  if (backoff !== undefined) addBackoff(settings, backoff)
  if (order !== undefined) {
    settings.set('order', oneOf('order', order, ['none', 'key', 'partition']))
  }
  if (concurrencyMax !== undefined) {
    settings.set('concurrency.max', whole('concurrencyMax', concurrencyMax, 0, 1_000_000))
  }
  if (rateLimit !== undefined) addRateLimit(settings, rateLimit)
  if (deadLetters !== undefined) addDeadLetters(settings, deadLetters)
  if (start !== undefined) {
    settings.set('queue.start', oneOf('start', start, ['earliest', 'latest']))
  }
  for (const [name, value] of Object.entries(options.settings ?? {})) {
    if (typeof value !== 'string') throw invalid(`settings.${name}`, value, 'has to be a text')
    const other = settings.get(name)
    if (other !== undefined && other !== value) {
      const rule = `says otherwise than the option that sets it too, to ${other}`
      throw invalid(`settings.${name}`, value, rule)
    }
    settings.set(name, value)
  }
  return [...settings].map(([name, value]) => ({ name, value }))
}

function addBackoff(settings: Map<string, string>, backoff: BackoffOptions): void {
  const { type } = backoff
  oneOf('backoff.type', type, ['none', 'fixed', 'linear', 'exponential', 'list'])
  settings.set('retry.backoff.type', type)
  if (type === 'none') return
  if (type === 'list') {
    const { delaysMs } = backoff
    if (!Array.isArray(delaysMs) || delaysMs.length < 1 || delaysMs.length > MOST_BACKOFF_DELAYS) {
      const rule = `has to be a list of 1 to ${MOST_BACKOFF_DELAYS} delays`
      throw invalid('backoff.delaysMs', String(delaysMs), rule)
    }
    const delays = backoff.delaysMs.map((delayMs) =>
      whole('backoff.delaysMs', delayMs, 0, LONGEST_BACKOFF_MS),
    )
    settings.set('retry.backoff.list.ms', delays.join(','))
    return
  }
  settings.set('retry.backoff.initial.ms', whole('backoff.delayMs', backoff.delayMs, 0, DAY_MS))
  if (type !== 'exponential') return
  const { multiplier, maxMs, jitter } = backoff
  if (multiplier !== undefined) {
    settings.set('retry.backoff.multiplier', within('backoff.multiplier', multiplier, 1, 10))
  }
  if (maxMs !== undefined) {
    settings.set('retry.backoff.max.ms', whole('backoff.maxMs', maxMs, 0, LONGEST_BACKOFF_MS))
  }
  if (jitter !== undefined) {
    settings.set('retry.backoff.jitter', within('backoff.jitter', jitter, 0, 1))
  }
}

function addRateLimit(
  settings: Map<string, string>,
  limit: NonNullable<QueueOptions['rateLimit']>,
): void {
  settings.set('rate.max', whole('rateLimit.max', limit.max, 1, MOST_RATE))
  settings.set('rate.duration.ms', whole('rateLimit.perMs', limit.perMs, 1, DAY_MS))
  const { burst, key } = limit
  if (burst !== undefined) {
    settings.set('rate.burst', whole('rateLimit.burst', burst, 1, MOST_RATE))
  }
  if (key === undefined) return
  if (typeof key !== 'string' || key === '') {
    throw invalid('rateLimit.key', key, 'has to name a header')
  }
  settings.set('rate.key', key)
}

function addDeadLetters(
  settings: Map<string, string>,
  deadLetters: NonNullable<QueueOptions['deadLetters']>,
): void {
  if (typeof deadLetters === 'boolean') {
    settings.set('dlq.enable', String(deadLetters))
    return
  }
  const { topic } = deadLetters
  if (typeof topic !== 'string' || topic === '') {
    throw invalid('deadLetters.topic', topic, 'has to name a topic')
  }
  settings.set('dlq.enable', 'true')
  settings.set('dlq.topic', topic)
}

function whole(field: string, value: number, min: number, max: number): string {
  checkWhole(field, value, min, max)
  return String(value)
}

/** @throws MillraceError INVALID_REQUEST that names the field */
export function checkWhole(field: string, value: number, min: number, max: number): void {
  if (Number.isSafeInteger(value) && value >= min && value <= max) return
  throw invalid(field, value, `has to be a whole number from ${min} to ${max}`)
}

function within(field: string, value: number, min: number, max: number): string {
  if (typeof value === 'number' && value >= min && value <= max) return String(value)
  throw invalid(field, value, `has to be a number from ${min} to ${max}`)
}

function oneOf(field: string, value: string, allowed: readonly string[]): string {
  if (allowed.includes(value)) return value
  throw invalid(field, value, `may be ${allowed.join(', ')}`)
}

function invalid(field: string, actual: string | number, rule: string): MillraceError {
  return new MillraceError('INVALID_REQUEST', `${field} is ${JSON.stringify(actual)}: it ${rule}`, {
    field,
    actual,
  })
}
