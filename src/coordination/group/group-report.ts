import type { Clock } from '../../common/clock.ts'
import { toOffset } from '../../common/offset.ts'
import { readBatchBytes, readEndOffset } from '../../record/batch-header.ts'
import { RecordCursor } from '../../record/record-cursor.ts'
import { forEachLimited } from '../../topic/concurrency.ts'
import type { Partition } from '../../topic/partition.ts'
import type { Topics } from '../../topic/topics.ts'
import type { LiveGroup } from './live-group.ts'
import type {
  CommittedOffset,
  GroupDescription,
  GroupPartitionDescription,
  GroupStateName,
  GroupSummary,
  MemberDescription,
  TopicPartitionList,
} from './group-types.ts'
import { keepOnly, toPartitions, without } from './partition-set.ts'
import type { TopicPartitions } from './assignor.ts'
import type { TopicView } from './topic-view.ts'

const READS_AT_ONCE = 16

export function stateOf(live: LiveGroup): GroupStateName {
  const { state } = live.state
  return live.isDirty && state !== 'empty' ? 'assigning' : state
}

export function summarize(live: LiveGroup): GroupSummary {
  const { state } = live
  return {
    group: state.id,
    type: state.type,
    state: stateOf(live),
    members: state.members.size,
    groupEpoch: state.epoch,
  }
}

/** By topic, then partition; of the topics named, or of all. Of topics that are there: what was committed for deleted ones is gone. */
export function listCommitted(
  live: LiveGroup,
  topics: Topics,
  wanted: readonly string[],
): CommittedOffset[] {
  const chosen = new Set(wanted)
  const result: CommittedOffset[] = []
  for (const [topic, records] of live.state.offsets) {
    if (chosen.size > 0 && !chosen.has(topic)) continue
    const topicId = topics.find(topic)?.id
    for (const [partition, record] of records.entries()) {
      if (record?.topicId !== topicId || record === undefined) continue
      result.push({ topic, partition, ...record })
    }
  }
  return result.sort((a, b) =>
    a.topic === b.topic ? a.partition - b.partition : a.topic < b.topic ? -1 : 1,
  )
}

/** All of a group as it is now; then, with `timeLag`, a record of each partition that lags is read. */
export async function describe(
  live: LiveGroup,
  topics: Topics,
  view: TopicView,
  clock: Clock,
  timeLag: boolean,
): Promise<GroupDescription> {
  const { state } = live
  const nowMs = clock.monotonicMs()
  const members = [...state.members.keys()]
    .sort()
    .map((id) => describeMember(live, view, id, nowMs))
  const rows = describePartitions(live, topics, view)
  const { members: _, ...summary } = summarize(live)
  const description = {
    ...summary,
    assignor: state.record.assignor,
    members,
    emptySinceMs: state.record.emptySinceMs,
    lag: rows.reduce((sum, { row }) => sum + row.lag, 0),
  }
  const partitions = rows.map(({ row }) => row)
  if (timeLag) {
    const wallMs = clock.wallMs()
    const lagging = [...rows.entries()].filter(([, { row }]) => row.lag > 0)
    await forEachLimited(lagging, READS_AT_ONCE, async ([i, { row, partition }]) => {
      const lagMs = await findLagMs(partition, row, wallMs)
      partitions[i] = { ...row, lagMs }
    })
  }
  return { ...description, partitions }
}

function describeMember(
  live: LiveGroup,
  view: TopicView,
  memberId: string,
  nowMs: number,
): MemberDescription {
  const member = live.state.members.get(memberId)
  if (member === undefined) throw new Error('only members are described')
  const presence = live.presences.get(memberId)
  const kept = keepOnly(member.owned, member.target)
  const revoking = without(member.owned, (topicId, p) => kept.get(topicId)?.has(p) === true)
  return {
    memberId,
    instanceId: member.instanceId,
    clientId: member.clientId,
    host: presence?.host ?? member.host,
    rack: member.rack,
    memberEpoch: member.epoch,
    subscription: member.subscription,
    owned: toNamed(view, toPartitions(member.owned)),
    target: toNamed(view, member.target),
    revoking: toNamed(view, toPartitions(revoking)),
    connected: presence?.stream !== undefined,
    sessionTimeoutMs: member.sessionTimeoutMs,
    sinceHeartbeatMs: Math.round(nowMs - (presence?.lastSeenMs ?? nowMs)),
  }
}

function toNamed(view: TopicView, partitions: TopicPartitions): TopicPartitionList[] {
  return [...partitions]
    .map(([topicId, some]) => ({ topic: view.nameOf(topicId), partitions: some }))
    .sort((a, b) => (a.topic < b.topic ? -1 : 1))
}

/** Partitions with something committed, and those that members want. */
function describePartitions(
  live: LiveGroup,
  topics: Topics,
  view: TopicView,
): { readonly row: GroupPartitionDescription; readonly partition: Partition }[] {
  const { state } = live
  const ids = new Set<string>()
  for (const member of state.members.values()) {
    for (const topicId of view.resolve(member.subscription)) ids.add(topicId)
  }
  const names = new Set(state.offsets.keys())
  for (const topicId of ids) names.add(view.nameOf(topicId))
  const rows: { row: GroupPartitionDescription; partition: Partition }[] = []
  for (const name of [...names].sort()) {
    const topic = topics.find(name)
    if (topic === undefined) continue
    for (const partition of topic.partitions) {
      const record = state.findCommitted(name, topic.id, partition.index)
      if (record === undefined && !ids.has(topic.id)) continue
      const { logStartOffset, index } = partition
      const highWatermark = partition.visibleEnd
      const done = Math.max(record?.offset ?? 0, logStartOffset)
      const row: GroupPartitionDescription = {
        topic: name,
        partition: index,
        memberId: state.findOwner(topic.id, index) ?? '',
        committed: record === undefined ? undefined : { topic: name, partition: index, ...record },
        logStartOffset,
        highWatermark,
        lag: Math.max(0, highWatermark - done),
        lagMs: undefined,
      }
      rows.push({ row, partition })
    }
  }
  return rows
}

/** How long the first record that is not committed has been there. Undefined when it cannot be read: describing a group never fails for that. */
async function findLagMs(
  partition: Partition,
  row: GroupPartitionDescription,
  nowMs: number,
): Promise<number | undefined> {
  const from = Math.max(row.committed?.offset ?? 0, row.logStartOffset)
  try {
    const { chunks } = await partition.read(toOffset(from), 1)
    for (const chunk of chunks) {
      for (let at = 0; at < chunk.length; at += readBatchBytes(chunk, at)) {
        if (readEndOffset(chunk, at) <= from) continue
        const cursor = new RecordCursor()
        cursor.reset(chunk, at)
        while (cursor.next()) {
          if (cursor.offset >= from) return Math.max(0, nowMs - cursor.timestampMs)
        }
      }
    }
  } catch {
    return undefined // Damaged, or deleted this moment: there is no age to tell.
  }
  return undefined
}
