import { unreachable } from '../../common/assert.ts'
import type { Clock } from '../../common/clock.ts'
import { BrokerError } from '../../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../../common/offset.ts'
import { forEachLimited } from '../../topic/concurrency.ts'
import type { Partition } from '../../topic/partition.ts'
import type { Topics } from '../../topic/topics.ts'
import type { ResetOffset, ResetRequest, TopicPartitionList } from './group-types.ts'
import type { StreamGroup } from './stream-group.ts'

const LOOKUPS_AT_ONCE = 16

/** One line of a plan, with what it takes to carry it out. */
export interface PlannedReset extends ResetOffset {
  readonly topicId: string
  readonly leaderEpoch: number
}

/**
 * What a reset would do, as things are now.
 * @throws BrokerError UNKNOWN_TOPIC, UNKNOWN_PARTITION, INVALID_PARTITION, INVALID_REQUEST, WRONG_EXPECTED_OFFSET
 */
export async function planReset(
  topics: Topics,
  clock: Clock,
  state: StreamGroup,
  request: ResetRequest,
): Promise<PlannedReset[]> {
  const { target } = request
  const chosen =
    target.to === 'offsets'
      ? chooseListed(topics, state, request, target.offsets)
      : choosePartitions(topics, state, request.topics).map((partition) => ({
          partition,
          wanted: undefined,
        }))
  const nowMs = clock.wallMs()
  const plan: PlannedReset[] = []
  await forEachLimited(chosen, LOOKUPS_AT_ONCE, async ({ partition, wanted }) => {
    const from = state.findCommitted(partition.topic, partition.topicId, partition.index)?.offset
    const asked = wanted ?? (await findTarget(partition, from, request, nowMs))
    const start = partition.logStartOffset
    const end = partition.visibleEnd
    const to = toOffset(Math.min(Math.max(asked, start), end))
    plan.push({
      topic: partition.topic,
      topicId: partition.topicId,
      partition: partition.index,
      from,
      to,
      logStartOffset: start,
      highWatermark: end,
      clamped: to !== asked,
      leaderEpoch: partition.leaderEpoch,
    })
  })
  return plan.sort((a, b) =>
    a.topic === b.topic ? a.partition - b.partition : a.topic < b.topic ? -1 : 1,
  )
}

/** @throws BrokerError WRONG_EXPECTED_OFFSET when what is committed is not what the plan started from */
export function checkUnchanged(state: StreamGroup, plan: readonly PlannedReset[]): void {
  for (const line of plan) {
    const now = state.findCommitted(line.topic, line.topicId, line.partition)?.offset
    if (now !== line.from) throw changedError(state.id, line, line.from ?? -1, now)
  }
}

function changedError(
  group: string,
  at: { readonly topic: string; readonly partition: number },
  expected: number,
  actual: number | undefined,
): BrokerError {
  return new BrokerError(
    'WRONG_EXPECTED_OFFSET',
    `group ${group} has ${actual === undefined ? 'nothing' : `offset ${actual}`} committed for ${at.topic}-${at.partition}, not ${expected < 0 ? 'nothing' : expected}: it has moved since, plan anew`,
    { group, topic: at.topic, partition: at.partition, expected, actual: actual ?? -1 },
  )
}

function chooseListed(
  topics: Topics,
  state: StreamGroup,
  request: ResetRequest,
  offsets: (ResetRequest['target'] & { to: 'offsets' })['offsets'],
): { readonly partition: Partition; readonly wanted: number | undefined }[] {
  if (request.topics.length > 0) {
    throw new BrokerError('INVALID_REQUEST', 'exact offsets name their topics themselves', {
      field: 'topics',
    })
  }
  if (offsets.length === 0) {
    throw new BrokerError('INVALID_REQUEST', 'there is no offset to reset to', { field: 'offsets' })
  }
  const seen = new Set<string>()
  return offsets.map(({ topic, partition: index, offset, expectedOffset }) => {
    topics.checkWritable(topic)
    const partition = topics.getPartition(topic, index)
    if (seen.has(partition.name)) {
      throw new BrokerError('INVALID_REQUEST', `${partition.name} is there twice`, {
        field: 'offsets',
        topic,
        partition: index,
      })
    }
    seen.add(partition.name)
    if (!isOffset(offset)) {
      throw new BrokerError('INVALID_REQUEST', `${offset} is no offset`, {
        field: 'offset',
        actual: offset,
      })
    }
    if (expectedOffset !== undefined) {
      const now = state.findCommitted(topic, partition.topicId, index)?.offset
      if ((now ?? -1) !== expectedOffset) {
        throw changedError(state.id, { topic, partition: index }, expectedOffset, now)
      }
    }
    return { partition, wanted: offset }
  })
}

function choosePartitions(
  topics: Topics,
  state: StreamGroup,
  asked: readonly TopicPartitionList[],
): Partition[] {
  if (asked.length === 0) {
    const all: Partition[] = []
    for (const [topic, records] of state.offsets) {
      for (const index of records.keys()) {
        const found = topics.find(topic)
        if (found === undefined || records[index]?.topicId !== found.id) continue
        all.push(topics.getPartition(topic, index))
      }
    }
    if (all.length > 0) return all
    throw new BrokerError(
      'INVALID_REQUEST',
      `group ${state.id} has nothing committed: name the topic to reset`,
      { field: 'topics', group: state.id },
    )
  }
  return asked.flatMap(({ topic, partitions }) => {
    topics.checkWritable(topic)
    const found = topics.get(topic)
    const indexes =
      partitions.length > 0 ? [...new Set(partitions)] : found.partitions.map((p) => p.index)
    return indexes.map((index) => topics.getPartition(topic, index))
  })
}

async function findTarget(
  partition: Partition,
  from: Offset | undefined,
  request: ResetRequest,
  nowMs: number,
): Promise<number> {
  const { target } = request
  switch (target.to) {
    case 'earliest':
      return partition.logStartOffset
    case 'latest':
      return partition.visibleEnd
    case 'offset':
      return checkNumber('value', target.offset)
    case 'timestamp':
      return findByTime(partition, checkNumber('value', target.timestampMs))
    case 'duration':
      return findByTime(partition, Math.max(0, nowMs - checkNumber('value', target.durationMs)))
    case 'shift':
      if (!Number.isSafeInteger(target.by)) checkNumber('value', target.by)
      if (from === undefined) {
        throw new BrokerError(
          'INVALID_REQUEST',
          `nothing is committed for ${partition.name}: there is nothing to shift; reset it to earliest, latest or an offset`,
          { field: 'to', topic: partition.topic, partition: partition.index },
        )
      }
      return from + target.by
    case 'offsets':
      throw new BrokerError('INTERNAL_ERROR', 'exact offsets are not looked up')
    default:
      return unreachable(target)
  }
}

async function findByTime(partition: Partition, timestampMs: number): Promise<number> {
  const end = partition.visibleEnd
  const found = await partition.findOffsetByTimestamp(timestampMs)
  return found?.offset ?? end
}

function checkNumber(field: string, value: number): number {
  if (Number.isSafeInteger(value) && value >= 0) return value
  throw new BrokerError(
    'INVALID_REQUEST',
    `${field} ${value} is not a whole number of at least 0`,
    {
      field,
      actual: value,
    },
  )
}
