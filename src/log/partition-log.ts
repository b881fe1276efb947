import type { Acks } from '../common/acks.ts'
import type { Offset } from '../common/offset.ts'
import type { LogConfig } from './log-config.ts'

/**
 * The seam (DESIGN §5): everything from topic/ up knows this and nothing behind it. The records of one partition. The log gives out
 * offsets, at append time; callers never choose them. Always: `logStartOffset ≤ highWatermark ≤ logEndOffset`.
 */
export interface PartitionLog {
  readonly logStartOffset: Offset
  /** The durable end: one past the last offset that has reached the disk. Rises only. */
  readonly highWatermark: Offset
  /** The end of what the write call has taken in full; between the two others. What `visibility=written` shows. */
  readonly writtenEndOffset: Offset
  /** The assigned end: the offset that the next record will get. */
  readonly logEndOffset: Offset
  /** Stamped into new batches as partitionLeaderEpoch: the broker's incarnation (CONTRACT §3). */
  readonly leaderEpoch: number

  /**
   * Appends one whole batch (Kafka v2), which the caller has validated. The engine stamps base offset and leader epoch (and append
   * time when the topic asks for it) into `batch` in place and keeps the buffer: it belongs to the log from here on, error or not.
   *
   * Order: checks and the giving out of the offset happen before `append` returns its promise, so calls get offsets in call order,
   * and may be made again before earlier ones have resolved. Resolutions come in order too. A check that fails changes nothing.
   * Resolves when the batch is as durable as `acks` asks (`none`: as soon as it has its offset).
   *
   * @throws BrokerError (as rejection) WRONG_EXPECTED_OFFSET, OUT_OF_ORDER_SEQUENCE, PRODUCER_FENCED, UNKNOWN_PRODUCER, NOT_LEADER,
   *   STORAGE_FULL, READ_ONLY, STORAGE_ERROR, FLUSH_FAILED (outcome unknown), CLOSED
   */
  append(batch: Uint8Array, acks: Acks, options?: AppendOptions): Promise<AppendResult>

  /**
   * Whole batches as stored, from the one that holds `from` on, about `maxBytes` of them; at least one, if any exists. Empty when `from`
   * is the visible end, or an offset above it that has been given out; and when compaction has left no record from `from` to the visible
   * end, with `nextOffset` at that end. `isolation` `durable` (the default) sees up to the high watermark, `written` up to what has been written.
   * Bytes that come from the disk have had their checksum verified. The chunks are shared: nobody may write to them.
   * @throws BrokerError OFFSET_OUT_OF_RANGE with `logStartOffset` and `endOffset` in its details; SEGMENT_QUARANTINED with `nextOffset`, the
   *   first good offset after the damage
   */
  read(from: Offset, maxBytes: number, isolation?: Isolation): Promise<FetchResult>

  /**
   * The first visible record whose timestamp is at or after `timestampMs`: the offset of that very record where the batch is plain, else of
   * the first record of its batch that qualifies. Undefined when all are older.
   */
  findOffsetByTimestamp(timestampMs: number): Promise<TimestampedOffset | undefined>

  /**
   * Moves the log start up to `to` (durably, when it resolves); a lower `to` changes nothing. Bytes go later, after a grace.
   * @throws BrokerError OFFSET_OUT_OF_RANGE when `to` is above the high watermark
   */
  advanceLogStart(to: Offset): Promise<void>

  /**
   * Applies retention by time, bytes and records as the config says, and deletes what has been below the log start for longer than the
   * grace. Called from time to time by the owner. Resolves to the new log start. What `hold` keeps stays; {@link advanceLogStart} is not held.
   */
  applyRetention(hold?: RetentionHold): Promise<Offset>

  /**
   * What compaction could do now; undefined when there is nothing worth doing, or the log is not compacted. Costs next to nothing, and no
   * I/O while nothing has changed since it was last asked.
   */
  findCompactionNeed(): Promise<CompactionNeed | undefined>

  /**
   * Runs one round of compaction: of each key only the newest record stays, in what is durable, sealed and old enough. Offsets, timestamps
   * and the order of records stay; what producers may retry is not forgotten. A tombstone goes in a later round, after its grace. Slow, in
   * small steps. Readers and appends go on. A round that is cut short, by `signal`, a full disk or the end of the log, leaves every record
   * that it should keep. At most one at a time: a second call is refused.
   * @throws BrokerError CLOSED; STORAGE_ERROR or STORAGE_FULL with its cause when the disk refused something, and nothing is lost by it;
   *   INVALID_REQUEST when a round is under way
   */
  compact(signal?: AbortSignal): Promise<CompactionReport>

  /** Changes settings of a running log: from the next append on. */
  configure(config: LogConfig): void

  /** Called each time the high watermark or the written end has risen, after promises have been resolved. Returns how to stop. */
  onAdvance(listener: () => void): () => void

  /** Waits until everything appended so far is durable. */
  flush(): Promise<void>

  stats(): Promise<LogStats>

  /** Flushes and closes. Appends and reads that come later are CLOSED. Calling it again waits for the same end. */
  close(): Promise<void>
}

/** What retention leaves alone although it is due: somebody has still to work through it. */
export interface RetentionHold {
  /** The segment with this offset stays, and all behind it. */
  readonly keepFrom: Offset
  /** But none for longer than this after it was due. Infinity: for as long as it is held. */
  readonly maxMs: number
}

export type Isolation = 'durable' | 'written'

export interface CompactionNeed {
  /** Share of the bytes that has not been compacted yet: the log with the largest goes first. */
  readonly dirtyRatio: number
  readonly dirtyBytes: number
  readonly totalBytes: number
}

/** What a round of compaction has done. */
export interface CompactionReport {
  /** Of the segments that were looked at. */
  readonly bytesBefore: number
  readonly bytesAfter: number
  readonly segmentsBefore: number
  readonly segmentsAfter: number
  readonly recordsRemoved: number
  /** Of those, tombstones whose grace was over. */
  readonly tombstonesRemoved: number
  /** Everything below has been compacted. */
  readonly cleanedTo: Offset
  /** Segments that were left alone because part of them cannot be read. */
  readonly segmentsSkipped: number
  readonly elapsedMs: number
}

export interface AppendOptions {
  /** Refuse with WRONG_EXPECTED_OFFSET unless the batch would start at exactly this offset. */
  readonly expectedOffset?: Offset | undefined
  /** Refuse with NOT_LEADER when the log has moved on to a newer epoch than the caller's. */
  readonly leaderEpoch?: number | undefined
}

export interface AppendResult {
  readonly baseOffset: Offset
  /** One past the last record of the batch. */
  readonly endOffset: Offset
  /** The append time when the topic stamps it, else undefined. */
  readonly appendTimeMs: number | undefined
  /** True when an earlier batch with the same producer id, epoch and sequence is what is there: its offsets are answered. */
  readonly duplicate: boolean
  /** What was reached, which may be more than was asked for. */
  readonly acks: Acks
  readonly leaderEpoch: number
  readonly highWatermark: Offset
  readonly logStartOffset: Offset
}

export interface FetchResult {
  /** Each holds one or more whole batches; together they are contiguous but for gaps that compaction left. None is without a record. */
  readonly chunks: readonly Uint8Array[]
  readonly bytes: number
  /** Where to read on: at or past the end of the last batch in `chunks`, over gaps that follow; `from` when there is nothing. */
  readonly nextOffset: Offset
  readonly highWatermark: Offset
  readonly logStartOffset: Offset
}

export interface TimestampedOffset {
  readonly offset: Offset
  readonly timestampMs: number
}

export interface LogStats {
  readonly bytes: number
  readonly segments: number
  /** Ranges that cannot be read any more because of damage on the disk. */
  readonly damaged: readonly { readonly start: Offset; readonly end: Offset }[]
}

/** Names a partition on its broker. */
export interface PartitionId {
  readonly topic: string
  readonly partition: number
  /** A topic made anew under an old name has a new id. A lower-case UUID. */
  readonly topicId: string
  /**
   * Set for a log that is kept beside the partition and goes with it: `state` is what its queue groups have decided (DESIGN §5). It is a log
   * like any other; the store only keeps the two apart.
   */
  readonly companion?: Companion | undefined
}

export type Companion = 'state'

/** Opens and removes the logs of one broker. Engines: disk, memory. */
export interface LogStore {
  /** Rises at every start of the broker; every log's `leaderEpoch`. At least 1. */
  readonly incarnation: number
  readonly clusterId: string
  /** Opens a log; makes it, durably, when it is not there. @throws BrokerError STORAGE_ERROR when the directory belongs to another topic id */
  open(id: PartitionId, config: LogConfig): Promise<PartitionLog>
  /** Closes the log if it is open and removes it, in two steps. An absent one is no error. */
  remove(id: PartitionId): Promise<void>
  /** Partitions that exist on the store, open or not. */
  list(): Promise<readonly PartitionId[]>
  /** Resolves with the cause when the store must not go on (a failed flush, a lost directory). The process then stops with 74. */
  readonly failed: Promise<Error>
  /** True while the store takes no appends because space is low; reads, log start moves and removals go on. */
  readonly storageFull: boolean
  /** Writes down that recovery has ended. Called once, after all partitions have been opened. */
  ready(): Promise<StartReport>
  /** Flushes everything, marks the store clean and gives it up. */
  close(): Promise<void>
}

export interface StartReport {
  readonly clean: boolean
  readonly incarnation: number
  /** Companions are not counted. */
  readonly partitions: number
  readonly elapsedMs: number
  readonly scannedBytes: number
  readonly scannedBatches: number
  readonly tornBytes: number
  readonly damagedRanges: number
}
