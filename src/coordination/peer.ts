import type { Offset } from '../common/offset.ts'
import type { RecordHeader } from '../record/batch-builder.ts'

/** One partition of a topic, wherever it is served. Plain data: written down before an append, and read again after a crash. */
export interface PeerMark {
  readonly topic: string
  readonly topicId: string
  readonly partition: number
  /**
   * The durable end when the mark was taken. An append that follows lands at or past it, also after a crash or a failed write, which may take
   * back what lay above it.
   */
  readonly end: Offset
}

export interface PeerRecord {
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | undefined
  readonly headers: readonly RecordHeader[]
  /** Milliseconds since the epoch. Undefined: now. */
  readonly timestampMs: number | undefined
}

/**
 * How whoever decides for one partition writes to another (DESIGN §5): dead letters, delayed records, redrives. Nothing assumes that the other one is local.
 * A repeat is made harmless in three steps: take a {@link mark} and write it down durably; {@link append} a record that carries its identity in a header; write down
 * that it is done. After a crash between the last two {@link findIds} tells what has arrived since the mark.
 */
export interface Peer {
  /**
   * Where a record would go: `partition` when given, else by `key` (murmur2, as producers do), else partition 0.
   * @throws BrokerError UNKNOWN_TOPIC, UNKNOWN_PARTITION, LOADING and why else the partition does not work
   */
  mark(
    topic: string,
    where: { readonly partition?: number | undefined; readonly key?: Uint8Array | undefined },
  ): PeerMark
  /**
   * Appends records in order, in as few batches as the topic's `max.message.bytes` allows; durable when it resolves, to the offset of each.
   * @throws BrokerError UNKNOWN_TOPIC_ID when the topic has been made anew since the mark; RECORD_TOO_LARGE with `details.index`; what `Partition.append` throws.
   *   Several batches are on their way together: after an error some of the records may be there, which {@link findIds} tells
   */
  append(to: PeerMark, records: readonly PeerRecord[]): Promise<readonly Offset[]>
  /**
   * Which of `ids` are the value of header `header` in a record at or past the mark. Reads all that was appended since. A topic that is gone or was made anew has none.
   */
  findIds(
    since: PeerMark,
    header: string,
    ids: ReadonlySet<string>,
  ): Promise<ReadonlyMap<string, Offset>>
}
