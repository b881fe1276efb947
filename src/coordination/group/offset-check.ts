import { BrokerError } from '../../common/errors.ts'
import { isOffset } from '../../common/offset.ts'
import type { Topics } from '../../topic/topics.ts'
import type { OffsetRecord } from './group-events.ts'
import type { OffsetCommitRequest } from './group-types.ts'

/** Of the note that may go with a commit, as UTF-8. */
export const LONGEST_METADATA = 4096

/**
 * What is to be remembered of a commit, but for the time.
 * @throws BrokerError UNKNOWN_TOPIC, UNKNOWN_TOPIC_ID, UNKNOWN_PARTITION, INVALID_PARTITION, TOPIC_INTERNAL, INVALID_REQUEST (metadata), OFFSET_OUT_OF_RANGE
 *   for what no record can have, and what lies beyond the end
 */
export function checkCommit(
  topics: Topics,
  asked: OffsetCommitRequest,
): Omit<OffsetRecord, 'committedMs'> {
  const { topic, offset, metadata } = asked
  topics.checkWritable(topic)
  const topicId = asked.topicId === '' ? undefined : asked.topicId
  const partition = topics.getPartition(topic, asked.partition, topicId)
  const end = partition.visibleEnd
  if (!isOffset(offset) || offset > end) {
    throw new BrokerError(
      'OFFSET_OUT_OF_RANGE',
      `offset ${offset} cannot be committed for ${partition.name}: it ends at ${end}`,
      {
        topic,
        partition: asked.partition,
        offset,
        logStartOffset: partition.logStartOffset,
        endOffset: end,
      },
    )
  }
  if (metadata.length > LONGEST_METADATA / 4 && Buffer.byteLength(metadata) > LONGEST_METADATA) {
    const actual = Buffer.byteLength(metadata)
    throw new BrokerError(
      'INVALID_REQUEST',
      `metadata of ${actual} bytes is above the limit of ${LONGEST_METADATA}`,
      { field: 'metadata', actual, limit: LONGEST_METADATA },
    )
  }
  const leaderEpoch = isOffset(asked.leaderEpoch) ? asked.leaderEpoch : 0
  return { topicId: partition.topicId, offset, leaderEpoch, metadata }
}
