import type { Offset } from '../common/offset.ts'
import type { LogConfig } from './log-config.ts'
import type { RetentionHold } from './partition-log.ts'

/** What retention must know of a segment. Segments are contiguous but for gaps that compaction left. */
export interface SegmentFacts {
  readonly baseOffset: Offset
  /** One past its last record; `baseOffset` when it is empty. */
  readonly endOffset: Offset
  readonly sizeBytes: number
  /** Records in it, where compaction has been; else there are as many as offsets. */
  readonly records?: number | undefined
  /** The largest record timestamp in it; negative when no record has one. */
  readonly maxTimestampMs: number
  /** The segment that appends go to. It is never given up. */
  readonly active: boolean
}

/**
 * The new log start that time, bytes and records call for: whichever goes furthest. Always the start of a segment, or
 * `logStartOffset` when nothing is to go; never past the start of the active segment (an engine rolls an active segment
 * that is itself past `retentionMs` before it asks). `segments` are in order of their offsets. O(segments).
 *
 * By time, a segment goes when its newest record is older than `retentionMs` and every segment before it goes too. A timestamp
 * in the future counts as now (CONTRACT §2.3). A segment without any timestamps goes with the next one that has them.
 * By bytes and records, a segment goes while what remains without it still reaches the limit, as in Kafka: the limit says how
 * much is certainly kept, so that a limit of one segment's size never empties the log at a roll.
 *
 * A `hold` keeps what is due from the segment with `keepFrom` on, but not what was due `maxMs` ago already. That is told by the records'
 * timestamps alone, so that restarts do not lengthen it: what lies in segments that were whole by then is all that was there.
 */
export function findRetentionStart(
  segments: readonly SegmentFacts[],
  logStartOffset: Offset,
  config: LogConfig,
  nowMs: number,
  hold?: RetentionHold,
): Offset {
  const due = findDueStart(segments, logStartOffset, config, nowMs)
  if (hold === undefined || due <= hold.keepFrom) return due
  let start = logStartOffset
  for (const { endOffset, active } of segments) {
    if (active || endOffset > hold.keepFrom || endOffset > due) break
    if (endOffset > start) start = endOffset
  }
  const overdueMs = nowMs - hold.maxMs
  const newer = segments.findIndex((one) => Math.min(one.maxTimestampMs, nowMs) > overdueMs)
  const known = newer < 0 ? segments : segments.slice(0, newer)
  const overdue = findDueStart(known, logStartOffset, config, overdueMs)
  return overdue > start ? overdue : start
}

/** {@link findRetentionStart}, with nothing held. */
function findDueStart(
  segments: readonly SegmentFacts[],
  logStartOffset: Offset,
  config: LogConfig,
  nowMs: number,
): Offset {
  let bytes = 0
  let records = 0
  for (const segment of segments) {
    // What lies below the log start is gone already, though its bytes may wait for their grace to end.
    if (!segment.active && segment.endOffset <= logStartOffset) continue
    bytes += segment.sizeBytes
    records += recordsOf(segment)
  }
  let start = logStartOffset
  let expiring = true
  for (const segment of segments) {
    if (segment.active) break
    if (segment.endOffset <= logStartOffset) continue
    bytes -= segment.sizeBytes
    records -= recordsOf(segment)
    const isStamped = segment.maxTimestampMs >= 0
    const isOld = nowMs - Math.min(segment.maxTimestampMs, nowMs) > config.retentionMs
    if (isStamped && !isOld) expiring = false
    const isTooMuch = bytes >= config.retentionBytes || records >= config.retentionRecords
    if (isTooMuch || (expiring && isStamped)) start = segment.endOffset
    else if (!expiring) break
  }
  return start
}

function recordsOf(segment: SegmentFacts): number {
  return segment.records ?? segment.endOffset - segment.baseOffset
}
