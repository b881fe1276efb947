import { unreachable } from '../../common/assert.ts'
import type { Clock } from '../../common/clock.ts'
import type { BrokerError } from '../../common/errors.ts'
import { type Offset, toOffset } from '../../common/offset.ts'
import type { Partition } from '../../topic/partition.ts'
import type { LeaseBook } from './lease.ts'
import type { QueueConfig } from './queue-config.ts'
import type { QueueState } from './queue-state.ts'
import type { Explanation, QueuePartitionDescription, RecordState } from './queue-types.ts'

/** What there is to be seen of one partition of one group, now. */
export interface QueueView {
  readonly source: Partition
  readonly state: QueueState
  readonly config: QueueConfig
  readonly book: LeaseBook
  readonly clock: Clock
  /** Why nothing is given out, if so. */
  readonly trouble: BrokerError | undefined
  readonly deadLetterTopic: string
  /** Records that could be given out, about. */
  readonly ready: number
  /** More may be looked at. */
  readonly hasRoom: boolean
  /** No record is looked at before this, on the wall clock (`queue.delay.ms`). */
  readonly nextScanMs: number
  /** The record of the same key that goes before, if keys matter. */
  findBlockingByKey(offset: number): number | undefined
}

export function describePartition(
  view: QueueView,
  oldestReadyMs: number | undefined,
): QueuePartitionDescription {
  const { state, source } = view
  return {
    topic: source.topic,
    partition: source.index,
    logStartOffset: source.logStartOffset,
    startOffset: state.start,
    scanOffset: state.scan,
    highWatermark: source.highWatermark,
    ready: view.ready,
    acquired: state.count('acquired'),
    parked: state.count('parked'),
    deadLettering: state.count('dead-lettering'),
    blocked: state.count('blocked'),
    done: state.settled,
    runs: state.runs.length,
    oldestReadyMs,
    error: view.trouble,
  }
}

/** The first record that is available, or has never been looked at. */
export function findOldestReady(view: Pick<QueueView, 'source' | 'state'>): Offset | undefined {
  const { state, source } = view
  const run =
    state.count('available') === 0 ? undefined : state.runs.find((one) => one.state === 'available')
  if (run !== undefined) return toOffset(run.first)
  return state.scan < source.highWatermark
    ? toOffset(Math.max(state.scan, source.logStartOffset))
    : undefined
}

/** Where a record is, and what it waits for. */
export function explainRecord(view: QueueView, offset: number): Explanation {
  const { state, source, clock } = view
  const base = {
    deliveryCount: 0,
    failureCount: 0,
    dueMs: undefined,
    memberId: '',
    leaseExpiresMs: undefined,
    blockedByOffset: undefined,
    failures: [],
    startOffset: state.start,
    scanOffset: state.scan,
    highWatermark: source.highWatermark,
  }
  if (offset >= source.highWatermark) {
    return {
      ...base,
      state: 'not-yet',
      reason: `there is no record at ${offset} yet: the partition ends at ${source.highWatermark}`,
    }
  }
  const dead = state.findDead(offset)
  const run = state.find(offset)
  if (run === undefined) {
    if (dead !== undefined) {
      return {
        ...base,
        state: 'dead',
        reason: `given up (${dead.reason}) at ${new Date(dead.atMs).toISOString()}`,
      }
    }
    if (offset < source.logStartOffset) {
      return {
        ...base,
        state: 'gone',
        reason: `below the log start ${source.logStartOffset}: retention or a deletion has taken it`,
      }
    }
    if (offset >= state.scan) {
      return { ...base, state: 'unscanned', reason: whyUnscanned(view, offset) }
    }
    return { ...base, state: 'done', reason: "settled: accepted, or never this group's business" }
  }
  const counts = {
    ...base,
    deliveryCount: run.deliveries,
    failureCount: run.failures,
    failures: run.history,
  }
  switch (run.state) {
    case 'available': {
      const blockedByOffset = findBlocking(view, offset)
      const reason =
        blockedByOffset === undefined
          ? 'waits for a worker with room'
          : `waits until offset ${blockedByOffset}, which goes before it, is settled`
      return { ...counts, state: 'available', reason, blockedByOffset }
    }
    case 'acquired': {
      const lease = view.book.find(run.lease)
      const leftMs = (lease?.deadlineMs ?? 0) - clock.monotonicMs()
      return {
        ...counts,
        state: 'acquired',
        reason: `leased to ${lease?.holder.memberId ?? 'nobody'} for ${Math.max(0, Math.round(leftMs))} ms more`,
        memberId: lease?.holder.memberId ?? '',
        leaseExpiresMs: Math.round(clock.wallMs() + leftMs),
      }
    }
    case 'parked':
      return {
        ...counts,
        state: 'parked',
        reason: `waits for its next attempt at ${new Date(run.dueMs).toISOString()}`,
        dueMs: run.dueMs,
      }
    case 'dead-lettering':
      return {
        ...counts,
        state: 'dead-lettering',
        reason: `given up (${run.reason}); its dead letter is being written to ${view.deadLetterTopic}`,
      }
    case 'blocked':
      return {
        ...counts,
        state: 'blocked',
        reason: `given up (${run.reason}) and held by dlq.policy=block until an operator says what next`,
      }
    default:
      return unreachable(run.state)
  }
}

function whyUnscanned(view: QueueView, offset: number): string {
  const { state, trouble, nextScanMs } = view
  if (trouble !== undefined) return `the partition cannot be read: ${trouble.message}`
  if (!view.hasRoom)
    return `not looked at yet: so much is leased or waits that the queue looks no further than ${state.scan}`
  if (nextScanMs > view.clock.wallMs())
    return `not looked at before ${new Date(nextScanMs).toISOString()} (queue.delay.ms)`
  return `not looked at yet: ${offset - state.scan} records are before it`
}

function findBlocking(view: QueueView, offset: number): Offset | undefined {
  const byKey = view.findBlockingByKey(offset)
  if (byKey !== undefined) return toOffset(byKey)
  const first = view.state.runs[0]
  if (view.config.order !== 'partition' || first === undefined || first.first >= offset)
    return undefined
  return toOffset(first.first)
}

/** The first offsets in a state; with none given, of whatever is not settled. */
export function findOffsets(
  partition: Pick<QueueView, 'source' | 'state'>,
  state: RecordState | undefined,
  most: number,
): number[] {
  const offsets: number[] = []
  // There is nothing to be seen of these.
  if (state === 'gone' || state === 'not-yet') return offsets
  if (state === 'done' || state === 'dead') {
    const { source } = partition
    for (let offset: number = source.logStartOffset; offset < partition.state.scan;) {
      if (offsets.length >= most) break
      const run = partition.state.find(offset)
      const dead = run === undefined ? partition.state.findDead(offset) : undefined
      if (run === undefined && (dead === undefined) === (state === 'done')) offsets.push(offset)
      // Of dead ones the next, of others the one behind what is not settled: logs are long.
      if (run !== undefined) offset = run.end
      else if (state === 'done' || dead !== undefined) offset++
      else offset = partition.state.findNextDead(offset) ?? partition.state.scan
    }
    return offsets
  }
  for (const run of partition.state.runs) {
    if (state !== undefined && run.state !== state) continue
    for (let offset = run.first; offset < run.end && offsets.length < most; offset++)
      offsets.push(offset)
  }
  if (state !== undefined && state !== 'unscanned') return offsets
  const from = Math.max(partition.state.scan, partition.source.logStartOffset)
  for (
    let offset = from;
    offset < partition.source.highWatermark && offsets.length < most;
    offset++
  )
    offsets.push(offset)
  return offsets
}

/** Of a partition whose state cannot be read. */
export function describeBroken(
  topic: string,
  partition: number,
  error: BrokerError,
): QueuePartitionDescription {
  const zero = toOffset(0)
  return {
    topic,
    partition,
    logStartOffset: zero,
    startOffset: zero,
    scanOffset: zero,
    highWatermark: zero,
    ready: 0,
    acquired: 0,
    parked: 0,
    deadLettering: 0,
    blocked: 0,
    done: 0,
    runs: 0,
    oldestReadyMs: undefined,
    error,
  }
}
