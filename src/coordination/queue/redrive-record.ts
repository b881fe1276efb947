import { BrokerError } from '../../common/errors.ts'
import { isOffset, toOffset } from '../../common/offset.ts'
import type { PeerMark } from '../peer.ts'
import { decodeDeadFilter, encodeDeadFilter } from './dead-filter.ts'
import type { LetterPlace } from './dead-letter-scan.ts'
import type { DeadFilter, RedriveTaskInfo } from './queue-types.ts'

/** What was asked for. Fixed when the task begins. */
export interface RedrivePlan {
  readonly taskId: string
  readonly topic: string
  readonly topicId: string
  /** Empty: to the group that each letter comes from. */
  readonly toTopic: string
  /** A topic made anew under the name is another one. Empty with {@link toTopic}. */
  readonly toTopicId: string
  readonly filter: DeadFilter
  readonly maxPerSec: number
  readonly resetAttempts: boolean
  readonly startedMs: number
  /** Letters that matched then. */
  readonly total: number
  /** Of each partition the end as it was then: what dies again meanwhile is not moved in a circle. */
  readonly ends: readonly number[]
}

/** Letters whose copies may lie at or past the mark: written down before they are appended. */
export interface PendingMove {
  readonly mark: PeerMark
  readonly letters: readonly LetterPlace[]
}

/** How far it has come. */
export interface RedriveProgress {
  readonly state: RedriveTaskInfo['state']
  /** Without those that are pending. */
  readonly moved: number
  /** Letters that were left where they are, since they cannot be moved. */
  readonly left: number
  /** Why the first of those was left; empty when there is none. */
  readonly leftWhy: string
  /** All matching letters before it have been looked at, the pending ones not counted. */
  readonly at: LetterPlace
  readonly pending: readonly PendingMove[]
  /** 0: not yet. */
  readonly endedMs: number
  readonly error: string
}

export type RedriveRecord = RedrivePlan & RedriveProgress

/** As people are shown it. */
export function toTaskInfo(record: RedriveRecord): RedriveTaskInfo {
  const { taskId, topic, toTopic, state, moved, total, startedMs, endedMs, maxPerSec } = record
  const error = [record.error, describeLeft(record)].filter((text) => text !== '').join('; ')
  return { taskId, topic, toTopic, state, moved, total, startedMs, endedMs, maxPerSec, error }
}

function describeLeft({ left, leftWhy }: RedriveRecord): string {
  if (left === 0) return ''
  return `${left} ${left === 1 ? 'letter stays where it is' : 'letters stay where they are'}; the first: ${leftWhy}`
}

const VERSION = 1

/** The text of a task, kept in `__queues`: JSON, fields as above; places and pending letters as pairs [partition, offset]. */
export function encodeRedrive(record: RedriveRecord): string {
  return JSON.stringify({
    v: VERSION,
    ...record,
    filter: encodeDeadFilter(record.filter),
    at: encodePlace(record.at),
    pending: record.pending.map(({ mark, letters }) => ({
      mark,
      letters: letters.map(encodePlace),
    })),
  })
}

/** @throws BrokerError INVALID_RECORD when it is damaged, UNSUPPORTED_FORMAT when a newer millrace wrote it */
export function decodeRedrive(json: string): RedriveRecord {
  let parsed: unknown
  try {
    parsed = JSON.parse(json)
  } catch (error) {
    throw damaged('is not JSON', error)
  }
  const fields = object(parsed)
  const version = count(fields['v'])
  if (version > VERSION) {
    throw new BrokerError(
      'UNSUPPORTED_FORMAT',
      `a redrive task has version ${version}, which a newer millrace wrote: start that one`,
    )
  }
  const { state } = fields
  if (state !== 'running' && state !== 'done' && state !== 'cancelled' && state !== 'failed') {
    throw damaged(`has the state ${String(state)}`)
  }
  return {
    taskId: text(fields['taskId']),
    topic: text(fields['topic']),
    topicId: text(fields['topicId']),
    toTopic: text(fields['toTopic']),
    toTopicId: text(fields['toTopicId']),
    filter: decodeDeadFilter(fields['filter']),
    maxPerSec: count(fields['maxPerSec']),
    resetAttempts: fields['resetAttempts'] !== false,
    startedMs: count(fields['startedMs']),
    total: count(fields['total']),
    ends: array(fields['ends']).map(count),
    state,
    moved: count(fields['moved']),
    left: count(fields['left']),
    leftWhy: text(fields['leftWhy']),
    at: decodePlace(fields['at']),
    pending: array(fields['pending']).map((value) => {
      const { mark, letters } = object(value)
      return { mark: decodeMark(object(mark)), letters: array(letters).map(decodePlace) }
    }),
    endedMs: count(fields['endedMs']),
    error: text(fields['error']),
  }
}

function encodePlace({ partition, offset }: LetterPlace): readonly [number, number] {
  return [partition, offset]
}

function decodePlace(value: unknown): LetterPlace {
  const [partition, offset] = array(value)
  return { partition: count(partition), offset: count(offset) }
}

function decodeMark(mark: Readonly<Record<string, unknown>>): PeerMark {
  return {
    topic: text(mark['topic']),
    topicId: text(mark['topicId']),
    partition: count(mark['partition']),
    end: toOffset(count(mark['end'])),
  }
}

function object(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null)
    throw damaged('has no object where one should be')
  return value as Readonly<Record<string, unknown>> // Each member is checked as it is read.
}

function array(value: unknown): readonly unknown[] {
  if (!Array.isArray(value)) throw damaged(`has ${String(value)} where a list should be`)
  return value as readonly unknown[]
}

function count(value: unknown): number {
  if (!isOffset(value)) throw damaged(`has ${String(value)} where a number should be`)
  return value
}

function text(value: unknown): string {
  if (typeof value !== 'string') throw damaged(`has ${String(value)} where a text should be`)
  return value
}

function damaged(why: string, cause?: unknown): BrokerError {
  return new BrokerError('INVALID_RECORD', `a redrive task ${why}`, {}, cause)
}
