import { unreachable } from '../../common/assert.ts'
import { BrokerError } from '../../common/errors.ts'
import { isOffset, type Offset } from '../../common/offset.ts'
import type { StateRecord } from '../state-log.ts'
import type { TopicPartitions } from './assignor.ts'
import type { AssignorName, GroupType, SubscriptionRequest } from './group-types.ts'
import { decodeRanges, encodeRanges, type OwnedPartitions } from './partition-set.ts'

/** What is remembered of a group as such. */
export interface GroupRecord {
  readonly type: GroupType
  /** Rises with each change of members or of the target assignment. */
  readonly epoch: number
  readonly assignor: AssignorName
  /** When its last member went, on the wall clock; undefined while it has some and when it never had one. */
  readonly emptySinceMs: number | undefined
}

/** What is remembered of a member: all that it takes to go on where a stopped broker was. */
export interface MemberRecord {
  /** Empty: a dynamic member. */
  readonly instanceId: string
  readonly clientId: string
  readonly host: string
  readonly rack: string
  readonly subscription: SubscriptionRequest
  readonly sessionTimeoutMs: number
  readonly rebalanceTimeoutMs: number
  /** The group epoch at which its partitions last changed. */
  readonly epoch: number
  /**
   * `active`. `left`: a static member that went in good order and whose place is kept for a while. `fenced`: it may own its partitions until its session has
   * expired, and nothing else: it did not give them up in time, or its instance id has been taken over.
   */
  readonly standing: 'active' | 'left' | 'fenced'
  readonly owned: OwnedPartitions
  readonly target: TopicPartitions
}

/** Records of `__groups`. Each carries all of its key, since all but the newest record of a key may be gone. */
export type GroupEvent =
  | { readonly type: 'group'; readonly group: string; readonly record: GroupRecord }
  | { readonly type: 'group-deleted'; readonly group: string }
  | {
      readonly type: 'member'
      readonly group: string
      readonly memberId: string
      readonly record: MemberRecord
    }
  | { readonly type: 'member-left'; readonly group: string; readonly memberId: string }

export interface OffsetRecord {
  readonly topicId: string
  readonly offset: Offset
  readonly leaderEpoch: number
  readonly metadata: string
  readonly committedMs: number
}

/** Records of `__offsets`. */
export type OffsetEvent =
  | {
      readonly type: 'offset'
      readonly group: string
      readonly topic: string
      readonly partition: number
      readonly record: OffsetRecord
    }
  | {
      readonly type: 'offset-deleted'
      readonly group: string
      readonly topic: string
      readonly partition: number
    }

/** In every value as `v`. A new member that an older broker may overlook needs no new number. */
const VERSION = 1

/**
 * Format of `__groups`. Group ids and member ids have no slash.
 *   key `group/<group>`            value {"v":1,"type":"stream","epoch":7,"assignor":"uniform","emptySinceMs":…}
 *   key `member/<group>/<member>`  value {"v":1, …, "epoch":7,"owned":{"<topic id>":{"<epoch>":"0-3,9"}},"target":{"<topic id>":"0-3"}}
 */
export function encodeGroupEvent(event: GroupEvent): StateRecord {
  switch (event.type) {
    case 'group':
      return {
        key: `group/${event.group}`,
        value: JSON.stringify({ v: VERSION, ...event.record }),
      }
    case 'group-deleted':
      return { key: `group/${event.group}`, value: null }
    case 'member': {
      const { owned, target, ...rest } = event.record
      return {
        key: `member/${event.group}/${event.memberId}`,
        value: JSON.stringify({
          v: VERSION,
          ...rest,
          owned: encodeOwned(owned),
          target: encodeTarget(target),
        }),
      }
    }
    case 'member-left':
      return { key: `member/${event.group}/${event.memberId}`, value: null }
    default:
      return unreachable(event)
  }
}

/** @throws BrokerError INVALID_RECORD when it is damaged, UNSUPPORTED_FORMAT when a newer millrace wrote it */
export function decodeGroupEvent(key: string, value: string | null): GroupEvent {
  const [kind, group, memberId, ...rest] = key.split('/')
  if (group === undefined || rest.length > 0) throw damaged(key, 'has no such key')
  if (kind === 'group' && memberId === undefined) {
    if (value === null) return { type: 'group-deleted', group }
    const json = parse(key, value)
    const { type, assignor, emptySinceMs } = json
    if (type !== 'stream' && type !== 'queue') throw newer(key, `has the type ${String(type)}`)
    if (assignor !== 'uniform' && assignor !== 'range') {
      throw newer(key, `has the assignor ${String(assignor)}`)
    }
    const record = {
      type,
      assignor,
      epoch: count(key, json, 'epoch'),
      emptySinceMs: isOffset(emptySinceMs) ? emptySinceMs : undefined,
    } as const
    return { type: 'group', group, record }
  }
  if (kind !== 'member' || memberId === undefined) throw newer(key, 'is of another kind')
  if (value === null) return { type: 'member-left', group, memberId }
  const json = parse(key, value)
  const standing = text(key, json, 'standing')
  if (standing !== 'active' && standing !== 'left' && standing !== 'fenced') {
    throw newer(key, `has the standing ${standing}`)
  }
  const subscription = object(key, json, 'subscription')
  const topics = subscription['topics']
  if (!Array.isArray(topics)) throw damaged(key, 'has no valid topics')
  const record: MemberRecord = {
    instanceId: text(key, json, 'instanceId'),
    clientId: text(key, json, 'clientId'),
    host: text(key, json, 'host'),
    rack: text(key, json, 'rack'),
    subscription: { topics: topics.map(String), pattern: text(key, subscription, 'pattern') },
    sessionTimeoutMs: count(key, json, 'sessionTimeoutMs'),
    rebalanceTimeoutMs: count(key, json, 'rebalanceTimeoutMs'),
    epoch: count(key, json, 'epoch'),
    standing,
    owned: decodeOwned(key, object(key, json, 'owned')),
    target: decodeTarget(key, object(key, json, 'target')),
  }
  return { type: 'member', group, memberId, record }
}

/** Format of `__offsets`: key `<group>/<topic>/<partition>`, value {"v":1,"i":topic id,"o":offset,"e":leader epoch,"m":metadata,"t":ms}. */
export function encodeOffsetEvent(event: OffsetEvent): StateRecord {
  const key = `${event.group}/${event.topic}/${event.partition}`
  if (event.type === 'offset-deleted') return { key, value: null }
  const { topicId, offset, leaderEpoch, metadata, committedMs } = event.record
  // By hand: at 20 000 commits/s this is half the time of JSON.stringify; only metadata can hold what needs escaping.
  const note = metadata === '' ? '""' : JSON.stringify(metadata)
  return {
    key,
    value: `{"v":${VERSION},"i":"${topicId}","o":${offset},"e":${leaderEpoch},"m":${note},"t":${committedMs}}`,
  }
}

/** @throws BrokerError as {@link decodeGroupEvent} */
export function decodeOffsetEvent(key: string, value: string | null): OffsetEvent {
  const [group, topic, index, ...rest] = key.split('/')
  const partition = Number(index)
  if (group === undefined || topic === undefined || !isOffset(partition) || rest.length > 0) {
    throw damaged(key, 'has no such key')
  }
  if (value === null) return { type: 'offset-deleted', group, topic, partition }
  const json = parse(key, value)
  const record: OffsetRecord = {
    topicId: text(key, json, 'i'),
    offset: count(key, json, 'o'),
    leaderEpoch: count(key, json, 'e'),
    metadata: text(key, json, 'm'),
    committedMs: count(key, json, 't'),
  }
  return { type: 'offset', group, topic, partition, record }
}

// ── parts ──

type Json = Readonly<Record<string, unknown>>

function encodeTarget(target: TopicPartitions): Record<string, string> {
  const result: Record<string, string> = {}
  for (const [topicId, partitions] of target) result[topicId] = encodeRanges(partitions)
  return result
}

function decodeTarget(key: string, json: Json): TopicPartitions {
  const target = new Map<string, readonly number[]>()
  for (const [topicId, ranges] of Object.entries(json)) {
    target.set(topicId, readRanges(key, ranges))
  }
  return target
}

function encodeOwned(owned: OwnedPartitions): Record<string, Record<string, string>> {
  const result: Record<string, Record<string, string>> = {}
  for (const [topicId, partitions] of owned) {
    const byEpoch = new Map<number, number[]>()
    for (const [partition, epoch] of partitions) {
      const some = byEpoch.get(epoch)
      if (some === undefined) byEpoch.set(epoch, [partition])
      else some.push(partition)
    }
    const epochs: Record<string, string> = {}
    for (const [epoch, some] of byEpoch) {
      epochs[String(epoch)] = encodeRanges(some.sort((a, b) => a - b))
    }
    result[topicId] = epochs
  }
  return result
}

function decodeOwned(key: string, json: Json): OwnedPartitions {
  const owned = new Map<string, ReadonlyMap<number, number>>()
  for (const topicId of Object.keys(json)) {
    const partitions = new Map<number, number>()
    for (const [epoch, ranges] of Object.entries(object(key, json, topicId))) {
      for (const partition of readRanges(key, ranges)) partitions.set(partition, Number(epoch))
    }
    owned.set(topicId, partitions)
  }
  return owned
}

function readRanges(key: string, value: unknown): number[] {
  const partitions = typeof value === 'string' ? decodeRanges(value) : undefined
  if (partitions === undefined) throw damaged(key, 'has no valid partitions')
  return partitions
}

function parse(key: string, value: string): Json {
  let json: unknown
  try {
    json = JSON.parse(value)
  } catch (error) {
    throw damaged(key, 'is not JSON', error)
  }
  if (typeof json !== 'object' || json === null) throw damaged(key, 'is not an object')
  const fields = json as Json // An object of JSON; each member is checked when it is read.
  if (count(key, fields, 'v') > VERSION) throw newer(key, `has version ${String(fields['v'])}`)
  return fields
}

function count(key: string, json: Json, name: string): Offset {
  const value = json[name]
  if (!isOffset(value)) throw damaged(key, `has no valid ${name}`)
  return value
}

function text(key: string, json: Json, name: string): string {
  const value = json[name]
  if (typeof value !== 'string') throw damaged(key, `has no valid ${name}`)
  return value
}

function object(key: string, json: Json, name: string): Json {
  const value = json[name]
  if (typeof value !== 'object' || value === null) throw damaged(key, `has no valid ${name}`)
  return value as Json // As in parse.
}

function damaged(key: string, why: string, cause?: unknown): BrokerError {
  const shown = key.slice(0, 120)
  return new BrokerError('INVALID_RECORD', `the record ${shown} of group state ${why}`, {}, cause)
}

function newer(key: string, what: string): BrokerError {
  return new BrokerError(
    'UNSUPPORTED_FORMAT',
    `the record ${key.slice(0, 120)} of group state ${what}, which a newer millrace wrote: start that one`,
  )
}
