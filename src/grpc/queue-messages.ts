import { BrokerError } from '../common/errors.ts'
import type {
  DeadFilter as WantedDead,
  DeadLetterInfo,
  DeadLetterPlace,
  DelayedRecord as WaitingRecord,
  Explanation,
  LogRecord,
  PeekedRecord as FoundRecord,
  QueueDescription,
  QueuePartitionDescription,
  RecordState as RecordStateName,
  RedrivePreview as Preview,
  RedriveTaskInfo,
} from '../coordination/queue/queue-types.ts'
import type {
  DeadFilter,
  DeadLetter,
  DelayedRecord,
  DescribeQueueResponse,
  ExplainResponse,
  PeekedRecord,
  QueuePartition,
  Record as RecordMessage,
  RecordState,
  RedrivePreview,
  RedriveState,
  RedriveTask,
} from '../gen/types.ts'
import type { ErrorMapper } from './status.ts'

const RECORD_STATES: Readonly<Record<RecordStateName, RecordState>> = {
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

export const RECORD_STATE_NAMES: Readonly<Record<RecordState, RecordStateName | undefined>> = {
  RECORD_STATE_UNSPECIFIED: undefined,
  RECORD_STATE_UNSCANNED: 'unscanned',
  RECORD_STATE_AVAILABLE: 'available',
  RECORD_STATE_ACQUIRED: 'acquired',
  RECORD_STATE_PARKED: 'parked',
  RECORD_STATE_DEAD_LETTERING: 'dead-lettering',
  RECORD_STATE_BLOCKED: 'blocked',
  RECORD_STATE_DONE: 'done',
  RECORD_STATE_DEAD: 'dead',
  RECORD_STATE_GONE: 'gone',
  RECORD_STATE_NOT_YET: 'not-yet',
}

const REDRIVE_STATES: Readonly<Record<RedriveTaskInfo['state'], RedriveState>> = {
  running: 'REDRIVE_STATE_RUNNING',
  done: 'REDRIVE_STATE_DONE',
  cancelled: 'REDRIVE_STATE_CANCELLED',
  failed: 'REDRIVE_STATE_FAILED',
}

export function toDescription(
  description: QueueDescription,
  errors: ErrorMapper,
): DescribeQueueResponse {
  const { group, paused, pausedUntilMs, notice, counters } = description
  return {
    group,
    topics: description.topics.map(({ topic, deadLetterTopic, partitions }) => ({
      topic,
      deadLetterTopic,
      partitions: partitions.map((partition) => toPartition(partition, errors)),
    })),
    members: description.members.map((member) => ({
      ...member,
      sinceHeardMs: Math.round(member.sinceHeardMs),
    })),
    config: [...description.config],
    paused,
    pausedUntilMs,
    notice,
    counters,
  }
}

function toPartition(partition: QueuePartitionDescription, errors: ErrorMapper): QueuePartition {
  const { oldestReadyMs, error, ...rest } = partition
  const message: QueuePartition = {
    ...rest,
    error: error === undefined ? null : errors.toDetail(error, 'DescribeQueue'),
  }
  if (oldestReadyMs !== undefined) message.oldestReadyMs = Math.round(oldestReadyMs)
  return message
}

export function toExplanation(explanation: Explanation): ExplainResponse {
  const { dueMs, leaseExpiresMs, blockedByOffset, state, failures, ...rest } = explanation
  const message: ExplainResponse = {
    ...rest,
    state: RECORD_STATES[state],
    failures: [...failures],
  }
  if (dueMs !== undefined) message.dueMs = Math.round(dueMs)
  if (leaseExpiresMs !== undefined) message.leaseExpiresMs = Math.round(leaseExpiresMs)
  if (blockedByOffset !== undefined) message.blockedByOffset = blockedByOffset
  return message
}

export function toPeeked({ topic, partition, record, state }: FoundRecord): PeekedRecord {
  return { topic, partition, record: toRecord(record), state: toExplanation(state) }
}

function toRecord(record: LogRecord): RecordMessage {
  const message: RecordMessage = {
    offset: record.offset,
    timestampMs: record.timestampMs,
    headers: record.headers.map(({ key, value }) => ({ key, value: toBuffer(value ?? NO_BYTES) })),
  }
  if (record.key !== undefined) message.key = toBuffer(record.key)
  if (record.value !== undefined) message.value = toBuffer(record.value)
  return message
}

function toBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

const NO_BYTES = new Uint8Array(0)

export function toDeadLetter(letter: DeadLetterInfo): DeadLetter {
  const { record, ...rest } = letter
  return { ...rest, offset: record.offset, record: toRecord(record) }
}

export function toTask(task: RedriveTaskInfo): RedriveTask {
  return { ...task, state: REDRIVE_STATES[task.state] }
}

export function toPreview({ count, bytes, firstMs, lastMs, samples }: Preview): RedrivePreview {
  return { count, bytes, firstMs, lastMs, samples: samples.map(toDeadLetter) }
}

export function toDelayedRecord(waiting: WaitingRecord): DelayedRecord {
  return { ...waiting, record: toRecord(waiting.record) }
}

/** @throws BrokerError INVALID_REQUEST when nothing is named, CONFLICTING_FIELDS when it is named twice */
export function toPlace(request: DeadLetterPlace): DeadLetterPlace {
  const { topic, group, sourceTopic } = request
  const bySource = group !== '' || sourceTopic !== ''
  if (topic !== '' && bySource) {
    throw new BrokerError(
      'CONFLICTING_FIELDS',
      'name a topic of dead letters, or a group and its source topic, not both',
      { field: 'topic' },
    )
  }
  if (topic === '' && (group === '' || sourceTopic === '')) {
    throw new BrokerError(
      'INVALID_REQUEST',
      'say where: name a topic of dead letters, or a group and its source topic',
      { field: group === '' ? (bySource ? 'group' : 'topic') : 'source_topic' },
    )
  }
  return { topic, group, sourceTopic }
}

/** Absent: everything. */
export function toDeadFilter(filter: DeadFilter | null | undefined): WantedDead {
  return {
    reason: filter?.reason ?? '',
    errorType: filter?.errorType ?? '',
    firstOffset: filter?.firstOffset,
    endOffset: filter?.endOffset,
    fromMs: filter?.fromMs,
    toMs: filter?.toMs,
    headers: filter?.headers ?? [],
    group: filter?.group ?? '',
    topic: filter?.topic ?? '',
    limit: filter?.limit ?? 0,
  }
}
