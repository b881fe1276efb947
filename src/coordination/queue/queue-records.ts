import { BrokerError } from '../../common/errors.ts'
import { isOffset } from '../../common/offset.ts'
import type { StateRecord } from '../state-log.ts'
import { decodeQueueOverrides, encodeQueueOverrides, type QueueOverrides } from './queue-config.ts'

/** What is remembered of a queue group as such; what it knows of partitions is in their companions. */
export interface GroupRecord {
  readonly overrides: QueueOverrides
  /** On the wall clock; Infinity: until resumed; 0: not paused. */
  readonly pausedUntilMs: number
  /** Names of the topics that it works through. */
  readonly topics: readonly string[]
}

const VERSION = 1
const GROUP = 'group/'
const TASK = 'task/'

/**
 * Format of `__queues`. Neither groups nor tasks have a slash in their names.
 *   key `group/<group>`  value {"v":1,"settings":{"order":"key"},"pausedUntilMs":…,"topics":["orders"]}    pausedUntilMs -1: until resumed
 *   key `task/<id>`      value: JSON of its own, see redrive-record.ts
 */
export function encodeGroupRecord(group: string, record: GroupRecord | undefined): StateRecord {
  if (record === undefined) return { key: `${GROUP}${group}`, value: null }
  const pausedUntilMs = record.pausedUntilMs === Infinity ? -1 : record.pausedUntilMs
  const settings = encodeQueueOverrides(record.overrides)
  const value = JSON.stringify({ v: VERSION, settings, pausedUntilMs, topics: record.topics })
  return { key: `${GROUP}${group}`, value }
}

export function encodeTaskRecord(task: string, text: string | null): StateRecord {
  return { key: `${TASK}${task}`, value: text }
}

export type QueuesRecord =
  | {
      readonly kind: 'group'
      readonly group: string
      readonly record: GroupRecord | undefined
      /** Settings that a newer millrace knows. */
      readonly unknown: readonly string[]
    }
  | { readonly kind: 'task'; readonly task: string; readonly text: string | null }

/** @throws BrokerError INVALID_RECORD when it is damaged, UNSUPPORTED_FORMAT when a newer millrace wrote it */
export function decodeQueuesRecord(key: string, value: string | null): QueuesRecord {
  if (key.startsWith(TASK)) return { kind: 'task', task: key.slice(TASK.length), text: value }
  if (!key.startsWith(GROUP)) throw newer(key, 'is of another kind')
  const group = key.slice(GROUP.length)
  if (value === null) return { kind: 'group', group, record: undefined, unknown: [] }
  let json: unknown
  try {
    json = JSON.parse(value)
  } catch (error) {
    throw damaged(key, 'is not JSON', error)
  }
  if (typeof json !== 'object' || json === null) throw damaged(key, 'is no object')
  const fields = json as Readonly<Record<string, unknown>> // Each member is checked below.
  const { v, settings, pausedUntilMs, topics } = fields
  if (typeof v !== 'number') throw damaged(key, 'has no version')
  if (v > VERSION) throw newer(key, `has version ${v}`)
  if (typeof settings !== 'object' || settings === null) throw damaged(key, 'has no settings')
  if (!isOffset(pausedUntilMs) && pausedUntilMs !== -1) throw damaged(key, 'has no pause')
  if (!Array.isArray(topics)) throw damaged(key, 'has no topics')
  const texts: Record<string, string> = {}
  for (const [name, text] of Object.entries(settings)) texts[name] = String(text)
  const { overrides, unknown } = decodeQueueOverrides(texts)
  const record: GroupRecord = {
    overrides,
    pausedUntilMs: pausedUntilMs === -1 ? Infinity : pausedUntilMs,
    topics: topics.map(String),
  }
  return { kind: 'group', group, record, unknown }
}

function damaged(key: string, why: string, cause?: unknown): BrokerError {
  return new BrokerError(
    'INVALID_RECORD',
    `the record ${key.slice(0, 120)} of __queues ${why}`,
    {},
    cause,
  )
}

function newer(key: string, what: string): BrokerError {
  return new BrokerError(
    'UNSUPPORTED_FORMAT',
    `the record ${key.slice(0, 120)} of __queues ${what}, which a newer millrace wrote: start that one`,
  )
}
