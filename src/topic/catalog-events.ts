import { unreachable } from '../common/assert.ts'
import { BrokerError } from '../common/errors.ts'
import { checkTopicName } from '../common/names.ts'
import { decodeOverrides } from './topic-config.ts'

export const LARGEST_PARTITION_COUNT = 10_000

/** All that the catalog knows of one topic. */
export interface CatalogTopic {
  readonly topic: string
  /** A lower-case UUID. */
  readonly topicId: string
  readonly createdMs: number
  readonly partitions: number
  /** The topic's own settings, as `encodeOverrides` writes them. Names that this version does not know stay in. */
  readonly config: Readonly<Record<string, string>>
}

/**
 * What the catalog is made of. Each event but the last carries the whole topic as it is afterwards: the catalog is a compacted topic
 * keyed by topic name, so any record but the newest of a key may be gone. For the same reason a deletion is a record and not a null
 * value: the topic id in it says which directories may go.
 */
export type CatalogEvent =
  | ({ readonly type: 'topic-created' } & CatalogTopic)
  | ({ readonly type: 'topic-config-changed' } & CatalogTopic)
  | ({ readonly type: 'partitions-added' } & CatalogTopic)
  | {
      readonly type: 'topic-deleted'
      readonly topic: string
      readonly topicId: string
      readonly deletedMs: number
    }

/**
 * Format of a record of `__catalog`: key the topic's name, value JSON with the members of the event and `v`, this number. A new member
 * that an older broker may overlook needs no new number.
 */
const VERSION = 1

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

export function encodeCatalogEvent(event: CatalogEvent): string {
  return JSON.stringify({ v: VERSION, ...event })
}

function damaged(why: string, cause?: unknown): BrokerError {
  return new BrokerError('INVALID_RECORD', `a record of the catalog ${why}`, {}, cause)
}

function readCount(value: unknown, least: number, most: number, name: string): number {
  const valid = typeof value === 'number' && Number.isSafeInteger(value)
  if (!valid || value < least || value > most) throw damaged(`has no valid ${name}`)
  return value
}

function readText(value: unknown, name: string): string {
  if (typeof value !== 'string') throw damaged(`has no valid ${name}`)
  return value
}

function readConfig(value: unknown): Record<string, string> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw damaged('has no valid config')
  }
  const entries = Object.entries(value).map(
    ([name, text]) => [name, readText(text, `config ${name}`)] as const,
  )
  const config = Object.fromEntries(entries)
  try {
    decodeOverrides(config)
  } catch (error) {
    throw damaged('has a setting that cannot be read', error)
  }
  return config
}

function parseJson(text: string): Readonly<Record<string, unknown>> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw damaged('is not JSON', error)
  }
  if (typeof value !== 'object' || value === null) throw damaged('is not an object')
  return value as Readonly<Record<string, unknown>> // An object of JSON; each member is checked when it is read.
}

/**
 * Reads one record.
 * @throws BrokerError INVALID_RECORD when it is damaged, UNSUPPORTED_FORMAT when a newer millrace wrote it
 */
export function decodeCatalogEvent(key: string, text: string): CatalogEvent {
  const json = parseJson(text)
  if (readCount(json['v'], 1, Number.MAX_SAFE_INTEGER, 'version') > VERSION) {
    throw newer(`has version ${String(json['v'])}`)
  }
  const type = readText(json['type'], 'type')
  const topic = readText(json['topic'], 'topic')
  const topicId = readText(json['topicId'], 'topicId')
  if (topic !== key) throw damaged(`has the key ${JSON.stringify(key)}, but is about another topic`)
  if (!UUID.test(topicId)) throw damaged('has no valid topicId')
  try {
    checkTopicName(topic)
  } catch (error) {
    throw damaged('has no valid topic', error)
  }
  if (!isEventType(type)) throw newer(`is of the type ${JSON.stringify(type.slice(0, 60))}`)
  switch (type) {
    case 'topic-created':
    case 'topic-config-changed':
    case 'partitions-added':
      return {
        type,
        topic,
        topicId,
        createdMs: readCount(json['createdMs'], 0, Number.MAX_SAFE_INTEGER, 'createdMs'),
        partitions: readCount(json['partitions'], 1, LARGEST_PARTITION_COUNT, 'partitions'),
        config: readConfig(json['config']),
      }
    case 'topic-deleted':
      return {
        type,
        topic,
        topicId,
        deletedMs: readCount(json['deletedMs'], 0, Number.MAX_SAFE_INTEGER, 'deletedMs'),
      }
    default:
      return unreachable(type)
  }
}

function newer(what: string): BrokerError {
  return new BrokerError(
    'UNSUPPORTED_FORMAT',
    `a record of the catalog ${what}, which a newer millrace wrote: start that one`,
  )
}

const EVENT_TYPES: readonly string[] = [
  'topic-created',
  'topic-config-changed',
  'partitions-added',
  'topic-deleted',
] satisfies readonly CatalogEvent['type'][]

function isEventType(type: string): type is CatalogEvent['type'] {
  return EVENT_TYPES.includes(type)
}
