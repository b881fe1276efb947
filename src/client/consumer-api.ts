import type { Offset } from '../common/offset.ts'
import type { Batch, ReceivedRecord, RecordStream } from './api.ts'
import type { MillraceError } from './errors.ts'
import type { Position } from './position.ts'

export interface TopicPartition {
  readonly topic: string
  readonly partition: number
}

export interface ConsumerOptions {
  /** 1 to 249 of A-Z a-z 0-9 . _ -. All consumers with the same group share its topics, each partition one consumer's at a time. */
  readonly group: string
  /**
   * Makes a static member: after a restart within the session timeout it comes back to the partitions that it had, and nobody else is disturbed.
   * Two living consumers with one id: the second one gets INSTANCE_ID_IN_USE.
   */
  readonly instanceId?: string | undefined
  /** Where to begin in a partition for which nothing has been committed. Default `start`. `none`: the consumer fails with OFFSET_OUT_OF_RANGE. */
  readonly from?: Position | undefined
  /**
   * What to do when the offset to go on at is not in the log any more (retention was faster), or not yet (a log that lost its tail). `none`, the
   * default: the consumer fails with OFFSET_OUT_OF_RANGE that names both offsets. Else go on at that position, and tell by 'reset' and the
   * logger. Never silent.
   */
  readonly onLostOffset?: Position | undefined
  /**
   * `after-each` (default): what has been finished is committed at once, in the background, one commit under way at a time. `interval`: every
   * `commitIntervalMs`. `manual`: only by `commit()`. The first two also commit when a partition moves and at the end. With `manual`, where a partition
   * was begun is not remembered either: until the first commit a next owner begins by `from` again, at what is the end by then if it says `end`.
   */
  readonly commit?: 'after-each' | 'interval' | 'manual' | undefined
  /** Default 5 000. */
  readonly commitIntervalMs?: number | undefined
  /** When the broker has not heard of this consumer for so long, others get its partitions. 6 s to 30 min. Default 45 s. */
  readonly sessionTimeoutMs?: number | undefined
  /** How long 'revoked' listeners and handlers in hand may take when a partition moves. Default 5 min. */
  readonly rebalanceTimeoutMs?: number | undefined
  /** `uniform` (default): balanced, moves as little as possible. `range`: the same numbers of several topics go to one consumer. */
  readonly assignor?: 'uniform' | 'range' | undefined
  readonly rack?: string | undefined
  /** False: ends once everything owned has been read up to the end that it had when it was assigned. Default true. */
  readonly follow?: boolean | undefined
  /** Aborting it is a graceful close: finishes what is in hand, commits, leaves. */
  readonly signal?: AbortSignal | undefined
  /** What may be read ahead, about. Default 8 MiB. */
  readonly prefetchBytes?: number | undefined
}

export interface HandlerContext {
  /** Aborts when the partition is lost (its work is then somebody else's), and when `run` stops because of another handler's failure. */
  readonly signal: AbortSignal
}

export interface RunOptions {
  /** Handlers under way at once. Default 1. */
  readonly concurrency?: number | undefined
  /** What is handled one after the other, in the order of offsets. Default `partition`. False: no order. Records without a key have no order under `key`. */
  readonly ordered?: 'partition' | 'key' | false | undefined
  /**
   * When a handler throws. `stop` (default): `run` finishes what is in hand, commits the prefix, leaves the group and rejects with the error. `skip`: counts
   * as finished, with a warning. `{ deadLetter, attempts }`: again, up to `attempts` times in all, then the record goes to that topic with headers that tell why, and
   * counts as finished once it is durable there.
   */
  readonly onError?:
    | 'stop'
    | 'skip'
    | { readonly deadLetter: string; readonly attempts: number }
    | undefined
}

export interface BatchContext extends HandlerContext {
  /** Everything of the batch below `offset` is finished: may be committed before the handler returns. */
  readonly done: (offset: Offset | number) => void
}

/** How far a consumer is in one partition that it owns. */
export interface PartitionLag extends TopicPartition {
  /** Undefined: nothing committed yet. */
  readonly committed: Offset | undefined
  /** The next record that the program gets. */
  readonly position: Offset
  readonly highWatermark: Offset
  /** `highWatermark` less what is finished. */
  readonly lag: number
}

/** What happened to an offset that could not be gone on at. */
export interface OffsetResetEvent extends TopicPartition {
  readonly from: Offset
  readonly to: Offset
  readonly logStartOffset: Offset
  readonly highWatermark: Offset
}

export type PartitionsListener = (partitions: readonly TopicPartition[]) => Promise<void> | void

/**
 * A member of a stream group. At least once: a record counts as finished when the next one is asked for (iterator), when its handler has returned
 * (`run`, `runBatches`), or when it is committed by hand; what was not committed when a consumer died is delivered again, to whoever owns the
 * partition then. Use one of: iteration by record, `batches()`, `run`, `runBatches`; once. It joins its group when that begins.
 *
 * | what fails | what happens |
 * | --- | --- |
 * | `break` out of a `for await` | what was finished is committed (the record in hand is not), then the group is left |
 * | a throw inside it | the same: nothing of the current record is committed |
 * | a handler throws | `onError` says |
 * | the process dies | after the session timeout others get its partitions and start at what was committed |
 * | the connection breaks | reading and the session are resumed; nothing moves if that takes less than the session timeout |
 * | no contact for the session timeout | the partitions are lost: handlers see `signal` aborted, 'lost' tells, nothing of them is committed any more; the consumer joins anew by itself |
 * | a slow handler | nothing: heartbeats go on. Only when its partition is to move does the rebalance timeout count |
 * | a blocked event loop | heartbeats stop; longer than the session timeout, it is as if the connection had been broken for that long. A warning tells |
 * | the broker restarts | as a broken connection; commits that were under way are repeated |
 * | a commit is refused | PARTITION_NOT_OWNED and STALE_MEMBER_EPOCH mean that the partition has moved on: another consumer repeats the records |
 */
export interface Consumer<V, K = string> extends RecordStream<V, K> {
  /**
   * Handles records many at once; commits only the contiguous prefix that has finished, so a crash repeats but never skips. Resolves after `close()` or an
   * abort of the signal, when everything in hand has finished. @throws MillraceError what ends the consumer; the handler's error with `onError: 'stop'`
   */
  run(
    handler: (record: ReceivedRecord<V, K>, context: HandlerContext) => Promise<void> | void,
    options?: RunOptions,
  ): Promise<void>
  /** One batch of a partition at a time, `concurrency` (default 1) partitions at once. */
  runBatches(
    handler: (batch: Batch<V, K>, context: BatchContext) => Promise<void> | void,
    options?: { readonly concurrency?: number | undefined },
  ): Promise<void>
  /**
   * Commits up to and including `at`, or all that is finished; durable when it resolves.
   * @throws MillraceError PARTITION_NOT_OWNED, STALE_MEMBER_EPOCH (it moved), UNKNOWN_MEMBER (the session is over), CLOSED
   */
  commit(at?: ReceivedRecord<V, K>): Promise<void>
  /** What is owned now. */
  assignment(): readonly TopicPartition[]
  /** Goes on at `to` in the partitions owned (or in one). What is in hand is not called back. */
  seek(to: Position, partition?: TopicPartition): Promise<void>
  /** Stops the delivery of partitions, all that are owned by default, until `resume`; the group is not left. */
  pause(partitions?: readonly TopicPartition[]): void
  resume(partitions?: readonly TopicPartition[]): void
  lag(): Promise<readonly PartitionLag[]>
  /**
   * 'assigned' before the first record of new partitions; 'revoked' before partitions move, after their records in hand have finished, with commits still allowed:
   * both are awaited, so neither may await `close()` of this consumer, which waits for them. 'lost' when the session is over and they belong to others already. Returns how to stop.
   */
  on(event: 'assigned' | 'revoked' | 'lost', listener: PartitionsListener): () => void
  on(event: 'reset', listener: (reset: OffsetResetEvent) => void): () => void
  /** Failures of background commits. */
  on(event: 'error', listener: (error: MillraceError) => void): () => void
  /**
   * Finishes what is in hand, commits (unless `manual`), leaves the group. Handlers are waited for up to the rebalance timeout, the loop of an iteration up to
   * 5 s: inside it use `break`, for the record in hand is finished only when the next is asked for. To have it finished however long it takes, abort `signal`.
   */
  close(): Promise<void>
}

// ── administration ──

export type GroupType = 'stream' | 'queue'
export type GroupState = 'empty' | 'assigning' | 'reconciling' | 'stable'

export interface GroupInfo {
  readonly group: string
  readonly type: GroupType
  readonly state: GroupState
  readonly members: number
  readonly epoch: number
}

export interface GroupMemberInfo {
  readonly memberId: string
  readonly instanceId: string | undefined
  readonly clientId: string
  readonly host: string
  readonly epoch: number
  readonly subscription: {
    readonly topics: readonly string[]
    readonly pattern: string | undefined
  }
  readonly owned: readonly TopicPartition[]
  readonly target: readonly TopicPartition[]
  readonly revoking: readonly TopicPartition[]
  readonly connected: boolean
  readonly sessionTimeoutMs: number
  readonly sinceHeartbeatMs: number
}

export interface GroupPartitionInfo extends TopicPartition {
  readonly memberId: string | undefined
  readonly committed: Offset | undefined
  readonly metadata: string
  /** Milliseconds since the epoch. */
  readonly committedAt: number | undefined
  readonly logStartOffset: Offset
  readonly highWatermark: Offset
  readonly lag: number
  /** How long the next record to be processed has been waiting. */
  readonly lagMs: number | undefined
}

export interface GroupDetails extends Omit<GroupInfo, 'members'> {
  readonly assignor: 'uniform' | 'range'
  readonly members: readonly GroupMemberInfo[]
  readonly partitions: readonly GroupPartitionInfo[]
  readonly lag: number
  /** When its last member went. */
  readonly emptySince: number | undefined
}

export interface GroupOffset extends TopicPartition {
  readonly offset: Offset
  readonly metadata: string
  readonly committedAt: number
}

/** A position, as for `read`; a number of records forward or back from what is committed; or exact offsets, as from a file. */
export type ResetTo =
  | Position
  | { readonly shift: number }
  | {
      readonly offsets: readonly (TopicPartition & { readonly offset: Offset | number })[]
    }

export interface ResetOptions {
  /** Default: every topic that the group has committed offsets for. */
  readonly topic?: string | readonly string[] | undefined
  /** Only these, of the one `topic`. */
  readonly partitions?: readonly number[] | undefined
  readonly to: ResetTo
  /** True: only say what would be done. Default false: plan first, then do just that, and fail with WRONG_EXPECTED_OFFSET if the group has moved in between. */
  readonly dryRun?: boolean | undefined
}

export interface OffsetResetPlan extends TopicPartition {
  readonly from: Offset | undefined
  readonly to: Offset
  readonly logStartOffset: Offset
  readonly highWatermark: Offset
  /** What was asked for lies outside the log and has been brought to its edge. */
  readonly clamped: boolean
}

/** The part of the administration that is about groups. */
export interface GroupAdmin {
  /** In the order of their names. */
  groups(filter?: {
    readonly match?: RegExp | undefined
    readonly type?: GroupType | undefined
    readonly state?: GroupState | undefined
  }): AsyncIterable<GroupInfo>
  /** @throws MillraceError UNKNOWN_GROUP. `timeLag` reads a record per partition that lags. Default true */
  describeGroup(
    group: string,
    options?: { readonly timeLag?: boolean | undefined },
  ): Promise<GroupDetails>
  /** @throws MillraceError UNKNOWN_GROUP, GROUP_NOT_EMPTY */
  deleteGroup(group: string): Promise<void>
  groupOffsets(group: string): Promise<readonly GroupOffset[]>
  /** Commits as an administrator; makes the group if there is none. @throws MillraceError GROUP_NOT_EMPTY, OFFSET_OUT_OF_RANGE, UNKNOWN_TOPIC, UNKNOWN_PARTITION */
  commitOffsets(
    group: string,
    offsets: readonly (TopicPartition & {
      readonly offset: Offset | number
      readonly metadata?: string | undefined
    })[],
  ): Promise<void>
  /** Resolves to how many are gone. @throws MillraceError UNKNOWN_GROUP, GROUP_SUBSCRIBED */
  deleteGroupOffsets(group: string, topic: string, partitions?: readonly number[]): Promise<number>
  /** @throws MillraceError UNKNOWN_GROUP, GROUP_NOT_EMPTY, WRONG_EXPECTED_OFFSET, UNKNOWN_TOPIC, INVALID_POSITION */
  resetOffsets(group: string, options: ResetOptions): Promise<readonly OffsetResetPlan[]>
}
