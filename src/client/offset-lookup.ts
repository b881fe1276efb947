import { type Offset, toOffset } from '../common/offset.ts'
import type { PartitionOffset, StartAt } from '../gen/types.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { Connection, TopicRoute } from './connection.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import type { ParsedPosition } from './position.ts'
import { Backoff } from './retry.ts'
import { sleep } from '../common/clock.ts'

const MOST_TRIES = 12

/** Checks that the topic has these partitions; all of them when none are named. */
export function choosePartitions(
  route: TopicRoute,
  wanted: readonly number[] | undefined,
): readonly number[] {
  if (wanted === undefined) return route.leaders.map((_, partition) => partition)
  for (const partition of wanted) {
    if (route.leaders[partition] !== undefined) continue
    const isIndex = Number.isInteger(partition) && partition >= 0
    throw new MillraceError(
      isIndex ? 'UNKNOWN_PARTITION' : 'INVALID_PARTITION',
      `${route.topic} has no partition ${partition}: it has ${route.leaders.length}, counted from 0`,
      { topic: route.topic, partition, partitions: route.leaders.length },
    )
  }
  return [...new Set(wanted)]
}

/** The offset that `position` means now in each of `partitions`. One call per leader, none when the position says it all. */
export async function findOffsets(
  connection: Connection,
  topic: string,
  partitions: readonly number[],
  position: ParsedPosition,
): Promise<Map<number, Offset>> {
  if (position.kind === 'offset') {
    return new Map(partitions.map((partition) => [partition, position.offset]))
  }
  const isFromStart = position.kind === 'start' || position.kind === 'after-start'
  const at: StartAt =
    position.kind === 'time'
      ? 'START_AT_TIMESTAMP'
      : isFromStart
        ? 'START_AT_EARLIEST'
        : 'START_AT_LATEST'
  const timeMs = position.kind === 'time' ? Math.round(position.timeMs) : 0
  const found = await listOffsets(connection, topic, partitions, at, timeMs)
  const offsets = new Map<number, Offset>()
  for (const entry of found) offsets.set(entry.partition, toOffset(placeOf(position, entry)))
  return offsets
}

function placeOf(position: ParsedPosition, found: PartitionOffset): number {
  const { offset, logStartOffset, highWatermark } = found
  if (position.kind === 'after-start') {
    return Math.max(offset, Math.min(offset + position.count, highWatermark))
  }
  if (position.kind === 'before-end') return Math.max(logStartOffset, offset - position.count)
  return offset
}

async function listOffsets(
  connection: Connection,
  topic: string,
  partitions: readonly number[],
  at: StartAt,
  timestampMs: number,
): Promise<PartitionOffset[]> {
  const backoff = new Backoff(connection.random)
  let left = partitions
  const found: PartitionOffset[] = []
  for (;;) {
    const route = await connection.getRoute(topic)
    const byLeader = new Map<number, number[]>()
    for (const partition of left) {
      const leader = route.leaders[partition] ?? -1
      const group = byLeader.get(leader)
      if (group === undefined) byLeader.set(leader, [partition])
      else group.push(partition)
    }
    const answers = await Promise.all(
      [...byLeader].map(([leader, group]) =>
        connection.call(
          'ListOffsets',
          { topic, partitions: group, at, timestampMs },
          { isRead: true, channel: () => connection.leader(leader) },
        ),
      ),
    )
    let failure: MillraceError | undefined
    const again: number[] = []
    for (const entry of answers.flatMap((answer) => answer.offsets)) {
      if (entry.error === null) found.push(entry)
      else {
        failure = toMillraceError(toBrokerErrorFromDetail(entry.error))
        if (!failure.retryable) throw failure
        again.push(entry.partition)
      }
    }
    if (failure === undefined) return found
    if (backoff.tries >= MOST_TRIES) throw failure
    left = again
    connection.forgetRoute(topic)
    await sleep(connection.clock, backoff.nextDelayMs())
  }
}
