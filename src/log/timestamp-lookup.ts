import { BrokerError } from '../common/errors.ts'
import { toOffset } from '../common/offset.ts'
import type { Offset } from '../common/offset.ts'
import {
  isAppendTime,
  isDense,
  readBaseOffset,
  readBaseTimestamp,
  readCompression,
  readDeleteHorizon,
  readEndOffset,
  readNewestTimestamp,
} from '../record/batch-header.ts'
import { RecordCursor } from '../record/record-cursor.ts'
import type { TimestampedOffset } from './partition-log.ts'

/**
 * The first record of the batch at `at`, from offset `from` on, whose timestamp is at or after `timestampMs`; undefined when there is none.
 * A compressed batch answers its first record instead, so that a lookup never decompresses (but one that compaction has changed): reading
 * from there misses nothing.
 */
export function findRecordByTimestamp(
  bytes: Uint8Array,
  at: number,
  timestampMs: number,
  from: Offset,
): TimestampedOffset | undefined {
  const maxTimestampMs = readNewestTimestamp(bytes, at)
  if (maxTimestampMs < timestampMs || readEndOffset(bytes, at) <= from) return undefined
  const first = toOffset(Math.max(readBaseOffset(bytes, at), from))
  // Where compaction has been, records are missing, and a base timestamp may have given way to a delete horizon: only the records can tell.
  if (isDense(bytes, at) && readDeleteHorizon(bytes, at) === undefined) {
    // The append time is that of every record in the batch.
    if (isAppendTime(bytes, at)) return { offset: first, timestampMs: maxTimestampMs }
    if (readCompression(bytes, at) !== 'none') {
      return { offset: first, timestampMs: readBaseTimestamp(bytes, at) }
    }
  }
  const cursor = new RecordCursor()
  cursor.reset(bytes, at)
  try {
    while (cursor.next()) {
      if (cursor.offset >= from && cursor.timestampMs >= timestampMs) {
        return { offset: toOffset(cursor.offset), timestampMs: cursor.timestampMs }
      }
    }
  } catch (error) {
    // Records that cannot be read: the header says that one of them qualifies, so whoever asks starts here, and is told there.
    if (!(error instanceof BrokerError)) throw error
    return { offset: first, timestampMs: maxTimestampMs }
  }
  return undefined
}
