import { holdProcess, sleep } from '../common/clock.ts'
import { type ErrorCode, isErrorCode } from '../common/errors.ts'
import { SECOND_MS } from '../common/units.ts'
import type {
  DeadFilter,
  DeadLetter,
  ExplainResponse,
  ListDeadRequest,
  QueuePartition,
  Record as WireRecord,
  RecordState as WireState,
  RedrivePreview,
  RedriveState as WireRedriveState,
  RedriveTask,
} from '../gen/types.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import { toHeaders } from './batch.ts'
import type { Connection } from './connection.ts'
import { encodeHeaders } from './encoded-record.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { checkDueTime } from './send-options.ts'
import type {
  DeadLetterFilter,
  DeadLetterInfo,
  DeadLetterPlace,
  DelayedInfo,
  QueueAdmin,
  QueueInfo,
  QueuePartitionInfo,
  QueueRecordState,
  RawRecord,
  RecordExplanation,
  RedriveInfo,
  RedriveOptions,
  RedriveResult,
} from './worker-api.ts'

const MOST_PER_PAGE = 1000
const FIRST_POLL_MS = 50
const LONGEST_POLL_MS: number = SECOND_MS

const STATES: Readonly<Record<QueueRecordState, WireState>> = {
  unscanned: 'RECORD_STATE_UNSCANNED',
  available: 'RECORD_STATE_AVAILABLE',
  acquired: 'RECORD_STATE_ACQUIRED',
  parked: 'RECORD_STATE_PARKED',
  'dead-lettering': 'RECORD_STATE_DEAD_LETTERING',
  blocked: 'RECORD_STATE_BLOCKED',
  done: 'RECORD_STATE_DONE',
  dead: 'RECORD_STATE_DEAD',
  gone: 'RECORD_STATE_GONE',
  'not-yet': 'RECORD_STATE_NOT_YET',
}
const STATE_OF: ReadonlyMap<WireState, QueueRecordState> = new Map(
  Object.entries(STATES).map(([state, wire]) => [wire, state as QueueRecordState]), // The table's own keys.
)

const TASK_STATE_OF: ReadonlyMap<WireRedriveState, RedriveInfo['state']> = new Map([
  ['REDRIVE_STATE_RUNNING', 'running'],
  ['REDRIVE_STATE_DONE', 'done'],
  ['REDRIVE_STATE_CANCELLED', 'cancelled'],
  ['REDRIVE_STATE_FAILED', 'failed'],
])

/** The administration of queue groups, dead letters and delayed records over a connection. */
export class LogQueueAdmin implements QueueAdmin {
  readonly #connection: Connection

  constructor(connection: Connection) {
    this.#connection = connection
  }

  async describeQueue(group: string): Promise<QueueInfo> {
    const found = await this.#connection.call('DescribeQueue', { group }, { isRead: true, group })
    const { notice, counters } = found
    return {
      group: found.group,
      topics: found.topics.map(({ topic, deadLetterTopic, partitions }) => ({
        topic,
        deadLetterTopic,
        partitions: partitions.map(toPartitionInfo),
      })),
      members: found.members.map((member) => ({ ...member })),
      config: found.config.map((entry) => ({ ...entry })),
      paused: found.paused,
      pausedUntil: unlessZero(found.pausedUntilMs),
      throttledUntil: unlessZero(notice?.throttledUntilMs ?? 0),
      windowFull: notice?.windowFull ?? false,
      dlqUnavailable: notice?.dlqUnavailable ?? false,
      counters: { ...counters },
    }
  }

  async configureQueue(
    group: string,
    change: Parameters<QueueAdmin['configureQueue']>[1],
  ): Promise<QueueInfo['config']> {
    const { config } = await this.#connection.call(
      'ConfigureQueue',
      {
        group,
        set: Object.entries(change.set ?? {}).map(([name, value]) => ({ name, value })),
        clear: [...(change.clear ?? [])],
        validateOnly: change.validateOnly ?? false,
      },
      { isRead: false, group },
    )
    return config.map((entry) => ({ ...entry }))
  }

  async pauseQueue(
    group: string,
    options: { readonly until?: Date | undefined } = {},
  ): Promise<void> {
    const untilMs = options.until === undefined ? 0 : checkTime('until', options.until)
    // Said twice it means the same.
    await this.#connection.call('PauseQueue', { group, untilMs }, { isRead: true, group })
  }

  async resumeQueue(group: string): Promise<void> {
    await this.#connection.call('ResumeQueue', { group }, { isRead: true, group })
  }

  async peekQueue(
    group: string,
    topic: string,
    options: Parameters<QueueAdmin['peekQueue']>[2] = {},
  ): ReturnType<QueueAdmin['peekQueue']> {
    const { partition, state, limit = 20 } = options
    const { records } = await this.#connection.call(
      'Peek',
      {
        group,
        topic,
        ...(partition !== undefined && { partition }),
        state: state === undefined ? 'RECORD_STATE_UNSPECIFIED' : toWireState(state),
        limit: checkCount('limit', limit, MOST_PER_PAGE, 'INVALID_REQUEST'),
      },
      { isRead: true, group },
    )
    return records.map((found) => ({
      topic: found.topic,
      partition: found.partition,
      record: toRawRecord(found.record),
      state: toExplanation(given(found.state, 'state')),
    }))
  }

  async explainRecord(
    group: string,
    topic: string,
    partition: number,
    offset: number,
  ): Promise<RecordExplanation> {
    const request = { group, topic, partition, offset }
    return toExplanation(await this.#connection.call('Explain', request, { isRead: true, group }))
  }

  async unblockRecord(
    group: string,
    topic: string,
    partition: number,
    offset: number,
    what: 'skip' | 'retry',
  ): Promise<void> {
    const request = { group, topic, partition, offset, skip: what === 'skip' }
    await this.#connection.call('Unblock', request, { isRead: false, group })
  }

  async *deadLetters(
    place: DeadLetterPlace,
    options: DeadLetterFilter & { readonly includeSettled?: boolean | undefined } = {},
  ): AsyncGenerator<DeadLetterInfo> {
    const { limit, ...filter } = options
    let left = limit === undefined ? Number.POSITIVE_INFINITY : checkLimit(limit)
    const request: ListDeadRequest = {
      ...toPlace(place),
      filter: toFilter(filter),
      pageSize: 0,
      pageToken: '',
      includeSettled: options.includeSettled ?? false,
    }
    do {
      request.pageSize = Math.min(MOST_PER_PAGE, left)
      const page = await this.#connection.call('ListDead', request, { isRead: true })
      for (const letter of page.letters) {
        yield toDeadLetter(letter, page.topic)
        if (--left === 0) return
      }
      request.pageToken = page.nextPageToken
    } while (request.pageToken !== '')
  }

  async discardDeadLetters(
    place: DeadLetterPlace,
    options: DeadLetterFilter & { readonly dryRun?: boolean | undefined } = {},
  ): Promise<{ readonly discarded: number }> {
    const dryRun = options.dryRun ?? false
    const { discarded } = await this.#connection.call(
      'DiscardDead',
      { ...toPlace(place), filter: toFilter(options), dryRun },
      { isRead: dryRun },
    )
    return { discarded }
  }

  async redrive(place: DeadLetterPlace, options: RedriveOptions = {}): Promise<RedriveResult> {
    const { to = '', maxPerSec = 100, dryRun = false, signal } = options
    throwIfAborted(signal)
    const started = await this.#connection.call(
      'StartRedrive',
      {
        ...toPlace(place),
        filter: toFilter(options),
        toTopic: to,
        maxPerSec: checkCount('maxPerSec', maxPerSec, 10_000, 'INVALID_REQUEST'),
        dryRun,
        resetAttempts: options.resetAttempts ?? true,
      },
      // The one that is under way may take hours.
      { isRead: dryRun, notAgain: 'REDRIVE_IN_PROGRESS' },
    )
    if (dryRun) {
      const preview = given(started.preview, 'preview')
      const topic = typeof place === 'string' ? place : await this.#deadLetterTopic(place)
      return { moved: 0, task: undefined, preview: toPreview(preview, topic) }
    }
    let task = toRedriveInfo(given(started.task, 'task'))
    if (options.background !== true) task = await this.#untilDone(task, signal)
    return { moved: task.moved, task, preview: undefined }
  }

  async redrives(): Promise<readonly RedriveInfo[]> {
    const { tasks } = await this.#connection.call('ListRedrives', {}, { isRead: true })
    return tasks.map(toRedriveInfo)
  }

  async cancelRedrive(taskId: string): Promise<RedriveInfo> {
    // Cancelled twice it is cancelled.
    return toRedriveInfo(await this.#connection.call('CancelRedrive', { taskId }, { isRead: true }))
  }

  async *delayed(options: Parameters<QueueAdmin['delayed']>[0] = {}): AsyncGenerator<DelayedInfo> {
    const { topic = '', from, to } = options
    const range = {
      ...(from !== undefined && { fromMs: checkTime('from', from) }),
      ...(to !== undefined && { toMs: checkTime('to', to) }),
    }
    let pageToken = ''
    do {
      const page = await this.#connection.call(
        'ListDelayed',
        { topic, ...range, pageSize: MOST_PER_PAGE, pageToken },
        { isRead: true },
      )
      for (const found of page.records) {
        yield {
          delayId: found.delayId,
          topic: found.topic,
          partition: found.partition,
          deliverAt: found.deliverAtMs,
          acceptedAt: found.acceptedMs,
          dedupeId: found.dedupeId === '' ? undefined : found.dedupeId,
          record: toRawRecord(found.record),
        }
      }
      pageToken = page.nextPageToken
    } while (pageToken !== '')
  }

  async countDelayed(topic = ''): Promise<number> {
    const { count } = await this.#connection.call('CountDelayed', { topic }, { isRead: true })
    return count
  }

  async cancelDelayed(delayId: string): Promise<void> {
    await this.#connection.call('CancelDelayed', { delayId }, { isRead: false })
  }

  async updateDelayed(delayId: string, deliverAt: Date): Promise<void> {
    const deliverAtMs = checkDueTime(deliverAt)
    await this.#connection.call('UpdateDelayed', { delayId, deliverAtMs }, { isRead: false })
  }

  async fireDelayed(
    delayId: string,
  ): Promise<{ readonly partition: number; readonly offset: number }> {
    const { partition, offset } = await this.#connection.call(
      'FireDelayed',
      { delayId },
      { isRead: false },
    )
    return { partition, offset }
  }

  async #deadLetterTopic(place: DeadLetterPlace): Promise<string> {
    const filter = toFilter({})
    const { topic } = await this.#connection.call(
      'ListDead',
      { ...toPlace(place), filter, pageSize: 1, pageToken: '', includeSettled: true },
      { isRead: true },
    )
    return topic
  }

  /** Looks at the task until it is over. An abort cancels it. */
  async #untilDone(started: RedriveInfo, signal: AbortSignal | undefined): Promise<RedriveInfo> {
    const { clock } = this.#connection
    const { taskId } = started
    const release = holdProcess()
    let task = started
    let pollMs = FIRST_POLL_MS
    try {
      while (task.state === 'running') {
        await sleep(clock, pollMs, signal)
        if (signal?.aborted === true) {
          await this.cancelRedrive(taskId)
          throwIfAborted(signal)
        }
        pollMs = Math.min(LONGEST_POLL_MS, 2 * pollMs)
        task = toRedriveInfo(
          await this.#connection.call('GetRedrive', { taskId }, { isRead: true }),
        )
      }
    } finally {
      release()
    }
    if (task.state === 'failed') throw toTaskError(task)
    return task
  }
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted !== true) return
  if (signal.reason instanceof Error) throw signal.reason
  throw new MillraceError('CANCELLED_BY_CLIENT', 'aborted', {}, signal.reason)
}

/** The broker's words, which begin with a code when they are one of ours. */
function toTaskError(task: RedriveInfo): MillraceError {
  const why = task.error ?? 'for an unknown reason'
  const word = /^[A-Z_]+/.exec(why)?.[0] ?? ''
  return new MillraceError(
    isErrorCode(word) ? word : 'INTERNAL_ERROR',
    `the redrive ${task.taskId} of ${task.topic} failed after ${task.moved} of ${task.total} records: ${why}`,
    { taskId: task.taskId, topic: task.topic, moved: task.moved, total: task.total },
  )
}

function toPlace(place: DeadLetterPlace): Pick<ListDeadRequest, 'topic' | 'group' | 'sourceTopic'> {
  if (typeof place === 'string') return { topic: place, group: '', sourceTopic: '' }
  return { topic: '', group: place.group, sourceTopic: place.topic }
}

function toFilter(filter: DeadLetterFilter): DeadFilter {
  const { firstOffset, endOffset, diedFrom, diedTo, limit } = filter
  return {
    reason: filter.reason ?? '',
    errorType: filter.errorType ?? '',
    ...(firstOffset !== undefined && { firstOffset }),
    ...(endOffset !== undefined && { endOffset }),
    ...(diedFrom !== undefined && { fromMs: checkTime('diedFrom', diedFrom, 'INVALID_FILTER') }),
    ...(diedTo !== undefined && { toMs: checkTime('diedTo', diedTo, 'INVALID_FILTER') }),
    headers: (encodeHeaders(filter.headers ?? {}) ?? []).map(({ key, value }) => ({
      key,
      value: Buffer.from(value ?? ''),
    })),
    group: filter.group ?? '',
    topic: filter.topic ?? '',
    // On the wire none means all, which nobody asks for by 0.
    limit: limit === undefined ? 0 : checkLimit(limit),
  }
}

function checkLimit(limit: number): number {
  return checkCount('limit', limit, Number.MAX_SAFE_INTEGER, 'INVALID_FILTER')
}

function checkCount(field: string, actual: number, limit: number, code: ErrorCode): number {
  if (Number.isInteger(actual) && actual >= 1 && actual <= limit) return actual
  throw new MillraceError(
    code,
    `${field} is ${actual}: it must be a whole number from 1 to ${limit}`,
    { field, limit, actual },
  )
}

function checkTime(field: string, time: Date, code: ErrorCode = 'INVALID_REQUEST'): number {
  const ms = time.getTime()
  if (!Number.isNaN(ms)) return ms
  throw new MillraceError(code, `${field} is no valid Date`, { field })
}

function toWireState(state: QueueRecordState): WireState {
  const found = Object.hasOwn(STATES, state) ? STATES[state] : undefined
  if (found !== undefined) return found
  throw new MillraceError(
    'INVALID_REQUEST',
    `state ${state} is not one of: ${Object.keys(STATES).join(', ')}`,
    { field: 'state', actual: state },
  )
}

function toPartitionInfo(found: QueuePartition): QueuePartitionInfo {
  const { oldestReadyMs, error, ...rest } = found
  return {
    ...rest,
    oldestReadyMs,
    error: error === null ? undefined : toMillraceError(toBrokerErrorFromDetail(error)),
  }
}

function toExplanation(found: ExplainResponse): RecordExplanation {
  const state = STATE_OF.get(found.state)
  if (state === undefined) throw unheardOf('state of a record', found.state)
  return {
    state,
    reason: found.reason,
    deliveryCount: found.deliveryCount,
    failureCount: found.failureCount,
    dueAt: found.dueMs,
    memberId: found.memberId === '' ? undefined : found.memberId,
    leaseExpiresAt: found.leaseExpiresMs,
    blockedByOffset: found.blockedByOffset,
    failures: found.failures.map(({ error, atMs, memberId, kind }) => ({
      type: error?.type ?? '',
      message: error?.message ?? '',
      stack: error?.stack ?? '',
      at: atMs,
      memberId,
      kind,
    })),
    startOffset: found.startOffset,
    scanOffset: found.scanOffset,
    highWatermark: found.highWatermark,
  }
}

function toRawRecord(record: WireRecord | null): RawRecord {
  const { offset, timestampMs, key, value, headers } = given(record, 'record')
  return { offset, timestamp: timestampMs, key, value: value ?? null, headers: toHeaders(headers) }
}

function toDeadLetter(letter: DeadLetter, topic: string): DeadLetterInfo {
  const { type = '', message = '', stack = '' } = letter.error ?? {}
  return {
    topic,
    partition: letter.partition,
    record: toRawRecord(letter.record),
    group: letter.group,
    sourceTopic: letter.sourceTopic,
    sourcePartition: letter.sourcePartition,
    sourceOffset: letter.sourceOffset,
    reason: letter.reason,
    deliveries: letter.deliveries,
    failures: letter.failures,
    firstFailedAt: letter.firstFailedMs,
    lastFailedAt: letter.lastFailedMs,
    error: { type, message, stack },
    memberId: letter.memberId,
    redrives: letter.redrives,
    settled: letter.settled,
  }
}

function toPreview(found: RedrivePreview, topic: string): RedriveResult['preview'] {
  const { count, bytes, firstMs, lastMs, samples } = found
  return {
    count,
    bytes,
    firstAt: firstMs,
    lastAt: lastMs,
    samples: samples.map((letter) => toDeadLetter(letter, topic)),
  }
}

function toRedriveInfo(task: RedriveTask): RedriveInfo {
  const state = TASK_STATE_OF.get(task.state)
  if (state === undefined) throw unheardOf('state of a redrive', task.state)
  return {
    taskId: task.taskId,
    topic: task.topic,
    to: task.toTopic,
    state,
    moved: task.moved,
    total: task.total,
    startedAt: task.startedMs,
    endedAt: unlessZero(task.endedMs),
    maxPerSec: task.maxPerSec,
    error: task.error === '' ? undefined : task.error,
  }
}

function unlessZero(ms: number): number | undefined {
  return ms === 0 ? undefined : ms
}

/** A message that the broker always sends. */
function given<T>(message: T | null, field: string): T {
  if (message !== null) return message
  throw new MillraceError('INTERNAL_ERROR', `the broker's answer has no ${field}`, { field })
}

function unheardOf(what: string, value: string): MillraceError {
  return new MillraceError(
    'UNSUPPORTED_FEATURE',
    `the broker names a ${what} that this client does not know: ${value}`,
    { value },
  )
}
