import type { Acks } from '../common/acks.ts'
import type { Clock } from '../common/clock.ts'
import type { Offset } from '../common/offset.ts'
import type { Random } from '../common/random.ts'
import type { RecordCursor } from '../record/record-cursor.ts'
import type { Topic } from './codecs.ts'
import type { Consumer, ConsumerOptions } from './consumer-api.ts'
import type { GroupAdmin } from './consumer-api.ts'
import type { MillraceError } from './errors.ts'
import type { Position } from './position.ts'
import type {
  BackoffOptions,
  BatchHandler,
  BatchWorkerOptions,
  Delivery,
  Handler,
  QueueAdmin,
  ReceiveOptions,
  Worker,
  WorkerOptions,
} from './worker-api.ts'

/** How records of a batch are packed. `zstd` needs a runtime that has it (Node 22.15 or newer). */
export type Compression = 'none' | 'lz4' | 'gzip' | 'zstd'

/**
 * Record headers. To send, text is written as UTF-8. What is read is text where the bytes are valid UTF-8 and a Uint8Array where they are
 * not; of several headers with one name the last is seen (a cursor's `readHeaders` has all).
 */
export type Headers = Readonly<Record<string, string | Uint8Array>>

export interface NewRecord<V, K = string> {
  /** Null is a tombstone: it deletes its key in a compacted topic. */
  readonly value: V | null
  readonly key?: K | undefined
  readonly headers?: Headers | undefined
  /** Overrides the partitioner. */
  readonly partition?: number | undefined
  /** Now, unless said otherwise. */
  readonly timestamp?: Date | undefined
  /** What kind of work this is, for those who handle several: 1 to 128 bytes. Header `job.type`. */
  readonly type?: string | undefined
  /**
   * What queue groups with `order=key` go by instead of the key: 1 to 256 bytes. Order holds within a partition, so a record without a key goes to the
   * partition of its ordering key, and records with keys should have the same key where they have the same ordering key. Header `job.ordering_key`.
   */
  readonly orderingKey?: string | undefined
  /** How often a queue group may try it, 1 to 1 000; never more often than the group's own setting says. Header `job.attempts_max`. */
  readonly attempts?: number | undefined
  /**
   * How long a queue group waits after a failure, in place of its own setting: type and delays, of up to 30 days. Multiplier, cap and jitter are the
   * group's: naming them here is INVALID_BACKOFF. Header `job.backoff`.
   */
  readonly backoff?: BackoffOptions | undefined
  /**
   * 1 to 128 bytes. Another record with the same id within the topic's `dedupe.window.ms` is not written: its receipt says `duplicate` and where the first
   * one is. An id is looked up in one partition: that of the record's key, or without one that of the id. So the same id should come with the same key.
   */
  readonly dedupeId?: string | undefined
  /**
   * Appended so long after the broker has taken it, up to the topic's `delay.max.ms`; 0 is as if it were not there. Not together with `deliverAt`.
   *
   * Records with `delayMs`, `deliverAt` or `dedupeId` go by calls of their own, up to 1 000 in each and one call at a time for each topic. They are answered
   * when they are durable, whatever `acks` says, and keep their order among each other, but not with other records. After a lost answer they are sent again
   * until `deliveryTimeoutMs` and stay one; only a record without a dedupe id whose `deliverAt` lies in the past is there twice when the broker is killed
   * between appending it and answering. `compression` and `idempotent` do not matter to them.
   */
  readonly delayMs?: number | undefined
  /** Not appended before that time, by the broker's clock; one in the past means at once. Not together with `delayMs`. */
  readonly deliverAt?: Date | undefined
}

export interface ReceivedRecord<V, K = string> {
  readonly topic: string
  readonly partition: number
  readonly offset: Offset
  /** Milliseconds since the epoch. */
  readonly timestamp: number
  readonly key: K | undefined
  readonly value: V | null
  readonly headers: Headers
}

/**
 * Some records of one partition, as they were batched. What lies outside the range asked for, and control records, are left out, so that
 * `count` may be less than the batch holds. Iterating makes an object per record; `cursor()` makes none and is ten times as fast.
 */
export interface Batch<V, K = string> extends Iterable<ReceivedRecord<V, K>> {
  readonly topic: string
  readonly partition: number
  /** Of the first record that this batch yields. */
  readonly baseOffset: Offset
  /** One past the last record that this batch yields. */
  readonly endOffset: Offset
  /** Of the partition, when the batch was read. */
  readonly highWatermark: Offset
  /** `endOffset` less `baseOffset`: the records yielded, but for gaps that compaction left. */
  readonly count: number
  /** The whole batch as stored: Kafka's record batch v2. Its checksum has been verified. A view: do not write to it. */
  readonly bytes: Uint8Array
  /** A fresh cursor before the first record. Its fields hold until its next `next()`; views into its `bytes` stay good. */
  cursor(): RecordCursor
}

/** Where a record went. With acks `none` nothing is known: `offset` is then NaN. So it is while a record waits for its time, when there is a `delayId`. */
export interface Receipt {
  readonly topic: string
  readonly partition: number
  readonly offset: Offset
  /** The record's own, or the append time when the topic stamps it. Milliseconds since the epoch. */
  readonly timestamp: number
  /** True when a repeat after a lost answer found the record already there, or another one with its dedupe id. */
  readonly duplicate: boolean
  /** Of a record that waits for its time: names it for `admin.cancelDelayed` and its like. */
  readonly delayId?: string | undefined
  /** When a waiting record is due. Milliseconds since the epoch. */
  readonly deliverAt?: number | undefined
}

export interface ClientLogger {
  debug(message: string, details?: object): void
  info(message: string, details?: object): void
  warn(message: string, details?: object): void
  error(message: string, details?: object): void
}

export interface ConnectOptions {
  /** `host:port` or `millrace://host:port`, one or several to begin with. MILLRACE_SERVER (comma-separated), else localhost:9292. */
  readonly url?: string | readonly string[] | undefined
  /** Names this program in the broker's log. */
  readonly clientId?: string | undefined
  /** PEM texts. `true`: the system's certificate authorities. */
  readonly tls?:
    | true
    | {
        readonly ca?: string | undefined
        readonly cert?: string | undefined
        readonly key?: string | undefined
      }
    | undefined
  /** How long `connect` goes on trying. Default 10 000. */
  readonly timeoutMs?: number | undefined
  /** Told of reconnections and of damage passed over. Default: nobody. */
  readonly logger?: ClientLogger | undefined
  /** For tests. */
  readonly clock?: Clock | undefined
  /** For tests. */
  readonly random?: Random | undefined
}

/** What values of a topic, or of one of several, are. */
export type ValueOf<T> = T extends Topic<infer V, infer _K> ? V : never
export type KeyOf<T> = T extends Topic<infer _V, infer K> ? K : never

export interface Client extends AsyncDisposable {
  producer(options?: ProducerOptions): Producer
  /** No group: every reader sees everything, nothing is remembered. Ends at `until`, or never. */
  read<V, K>(from: Topic<V, K>, options?: ReadOptions): RecordStream<V, K>
  /**
   * A member of a stream group, which shares the topics' partitions with its other members. One topic, several (each read with its own codecs), or all, now and
   * later, whose name a pattern finds: an RE2 expression, without flags. It joins when records are first asked for.
   * @throws MillraceError INVALID_GROUP_ID, INVALID_TOPIC_NAME, INVALID_POSITION, INVALID_REQUEST that names the option; what the broker has to say comes when
   *   records are asked for
   */
  consumer<V, K>(from: Topic<V, K>, options: ConsumerOptions): Consumer<V, K>
  consumer<T extends Topic<unknown, unknown>>(
    from: readonly T[],
    options: ConsumerOptions,
  ): Consumer<ValueOf<T>, KeyOf<T>>
  consumer(from: RegExp, options: ConsumerOptions): Consumer<Uint8Array, Uint8Array>
  /**
   * A worker of a queue group: runs the handler for the records of a topic, each leased to one worker at a time, for as many workers as there are. It begins at
   * once. What the handler returns or throws is the record's verdict: see {@link Handler}.
   *
   * A handler may be given as the URL of a module, which is then run in `threads` threads: `export default (job, context) => …`, and
   * `export const topic = topic(…)` with the codecs of the value and the key; without it a value is bytes and a key is text. Leases are renewed outside of these
   * threads, so a handler that blocks its own holds up nothing else and loses nothing. A handler that is a function shares its thread with everything: while it
   * computes without a pause no lease is renewed, and when it does so for longer than `leaseMs` its records come again elsewhere.
   * @throws MillraceError INVALID_GROUP_ID, INVALID_TOPIC_NAME, INVALID_REQUEST that names the option; what the broker has to say comes by `ready()` and `closed`
   */
  worker<V, R = void, K = string>(
    from: Topic<V, K>,
    options: WorkerOptions,
    handler: Handler<V, R, K> | URL,
  ): Worker<V, R, K>
  /** As {@link Client.worker}, with a handler that gets up to `batchSize` records at once. `concurrency` counts batches. */
  batchWorker<V, K = string>(
    from: Topic<V, K>,
    options: BatchWorkerOptions,
    handler: BatchHandler<V, K>,
  ): Worker<V, void, K>
  /**
   * Records of a queue without a stream, for short-lived functions: up to `max` are leased with each call and yielded one by one. The program says what
   * became of each; one of which nothing was said comes again when its lease has run out, and counts as failed. Leases are not renewed by themselves. Ends
   * when there was nothing within `waitMs`, or by `signal`. Records that were fetched and not yielded when the loop is left are given back.
   * @throws MillraceError as {@link Client.worker}; while iterating, what the broker answers, and UNREACHABLE after 30 s
   */
  receive<V, K = string>(
    from: Topic<V, K>,
    options: ReceiveOptions,
  ): AsyncIterableIterator<Delivery<V, K>, void>
  readonly admin: Admin
  /** Waits for the handlers of workers, flushes producers, ends streams, closes connections. What has not been answered after `timeoutMs` (default 30 000) fails with CLOSED. */
  close(options?: { readonly timeoutMs?: number }): Promise<void>
}

export type Partitioner = (key: Uint8Array | undefined, partitions: number) => number

export interface ProducerOptions {
  /** When a send is answered. Default `durable`. */
  readonly acks?: Acks | undefined
  /** Repeats after a lost answer leave one copy, and order holds through retries. Default true; not with acks `none`. */
  readonly idempotent?: boolean | undefined
  /** Default `none`. */
  readonly compression?: Compression | undefined
  /**
   * The longest that a record waits for company while earlier batches of its partition are under way. With nothing under way it goes at once,
   * and it goes as soon as the batches before it are answered, so that a lone send never waits and a busy producer fills its batches
   * (Nagle's idea). Default 5; 0 never waits.
   */
  readonly lingerMs?: number | undefined
  /** A batch goes when it has this size. Default 262 144; never above the topic's `max.message.bytes`. */
  readonly batchBytes?: number | undefined
  /** Batches under way per partition. 1 to 5. Default 5. */
  readonly maxInFlight?: number | undefined
  /** What may wait to be answered. Above it `send` waits and `post` answers false. Default 32 MiB. */
  readonly bufferBytes?: number | undefined
  /** A record that has not been answered in this time fails with APPEND_TIMEOUT. Default 120 000. */
  readonly deliveryTimeoutMs?: number | undefined
  /**
   * `murmur2` (default): by key, as Kafka's, and sticky for records without one. `sticky`: all to one partition until its batch goes, then to
   * another. `round-robin`: each to the next. A function: its answer, an integer in [0, partitions).
   */
  readonly partitioner?: 'murmur2' | 'sticky' | 'round-robin' | Partitioner | undefined
}

export interface Producer extends AsyncDisposable {
  /**
   * Resolves when the record is as safe as `acks` says. Bytes are copied before `send` returns. Waits while the buffer is full.
   * Rejects with RECORD_TOO_LARGE, INVALID_RECORD, UNKNOWN_TOPIC, UNKNOWN_PARTITION, APPEND_TIMEOUT, CLOSED and what the broker answers;
   * INVALID_BACKOFF, INVALID_DELAY, DELAY_TOO_LONG, CONFLICTING_FIELDS, DEDUPE_MISMATCH for the options that these name.
   */
  send<V, K>(to: Topic<V, K>, record: NewRecord<V, K>): Promise<Receipt>
  /**
   * One promise for many: resolves when all are as durable as asked, with a receipt for each in its place. Else rejects with an
   * AggregateError whose errors have the place of their record in `details.index`; the others have been written.
   */
  sendAll<V, K>(
    to: Topic<V, K>,
    records: Iterable<NewRecord<V, K>> | AsyncIterable<NewRecord<V, K>>,
  ): Promise<readonly Receipt[]>
  /**
   * No promise at all. The record is taken and its bytes are copied; false asks the caller to `await ready()` before the next. Errors surface in
   * `flush()` and as 'error' events.
   * @throws MillraceError CLOSED; INVALID_RECORD and RECORD_TOO_LARGE; QUOTA_EXCEEDED when false has been ignored up to twice `bufferBytes`
   */
  post<V, K>(to: Topic<V, K>, record: NewRecord<V, K>): boolean
  /** Resolves when there is room in the buffer. */
  ready(): Promise<void>
  /**
   * Sends what waits and resolves when all that was sent or posted before has been answered. Rejects with the first failure of a posted record
   * since the last flush (`details.failedRecords` counts them); failures of `send` are told there alone.
   */
  flush(options?: { readonly signal?: AbortSignal | undefined }): Promise<void>
  /** Flushes, then lets go. Rejects like `flush`. */
  close(): Promise<void>
  /** Called for failures of posted records. Returns how to stop. */
  on(event: 'error', listener: (error: MillraceError) => void): () => void
}

export interface ReadOptions {
  /** Default `start`. */
  readonly from?: Position | undefined
  /** Exclusive. `end` means the end at the time of the call. Default: none. */
  readonly until?: Position | undefined
  /** Default: all that the topic has at the time of the call; ones added later are not picked up. */
  readonly partitions?: readonly number[] | undefined
  /** Wait for more at the end. Default: true unless there is an `until`. */
  readonly follow?: boolean | undefined
  /** Ends the iteration quietly. */
  readonly signal?: AbortSignal | undefined
  /** What may be read ahead of the consumer, about. Default 8 MiB. */
  readonly prefetchBytes?: number | undefined
}

/**
 * Records in offset order within each partition. Breaks of the connection are mended: reading goes on at the next offset, without a gap or a
 * repeat. Iterate it once, by record or by batch. Throws OFFSET_OUT_OF_RANGE when the next offset is not there (any more), SEGMENT_QUARANTINED
 * on damage, CORRUPT_BATCH, INVALID_POSITION, UNKNOWN_TOPIC, UNKNOWN_PARTITION. Positions are looked up when `read` is called.
 */
export interface RecordStream<V, K = string>
  extends AsyncIterable<ReceivedRecord<V, K>>, AsyncDisposable {
  batches(): AsyncIterable<Batch<V, K>>
  /** Ends the iteration and the connection's part in it. */
  close(): Promise<void>
}

export interface TopicInfo {
  readonly name: string
  readonly topicId: string
  readonly partitions: number
  readonly bytes: number
  readonly records: number
}

export interface PartitionInfo {
  readonly partition: number
  readonly logStartOffset: Offset
  readonly highWatermark: Offset
  readonly logEndOffset: Offset
  readonly bytes: number
  readonly segments: number
  readonly leaderEpoch: number
  /** Ranges `[start, end)` that cannot be read because of damage on the disk. */
  readonly damaged: readonly { readonly start: Offset; readonly end: Offset }[]
}

export interface ConfigInfo {
  readonly name: string
  readonly value: string
  /** True when it is the topic's own, false when it is the default. */
  readonly overridden: boolean
  readonly description: string
  readonly allowed: string
}

export interface TopicDescription {
  readonly name: string
  readonly topicId: string
  /** Milliseconds since the epoch. */
  readonly createdAt: number
  readonly partitions: readonly PartitionInfo[]
  readonly config: readonly ConfigInfo[]
}

export interface BrokerInfo {
  readonly version: string
  readonly clusterId: string
  readonly brokerId: number
  /** Rises at every start of the broker. */
  readonly incarnation: number
  /** Milliseconds since the epoch. */
  readonly startedAt: number
  readonly nodeVersion: string
  readonly lz4: string
  readonly crc32c: string
  readonly zstd: boolean
  readonly topics: number
  readonly partitions: number
  readonly storageFull: boolean
  readonly freeBytes: number
  readonly rssBytes: number
}

export interface ClusterInfo {
  readonly clusterId: string
  readonly mapVersion: number
  readonly brokers: readonly {
    readonly brokerId: number
    readonly host: string
    readonly port: number
  }[]
}

/** Administration. Reads and calls that certainly changed nothing are repeated for up to 30 s. */
export interface Admin extends GroupAdmin, QueueAdmin {
  /**
   * The same name with the same partitions and settings is no error: `created` is then false. Other ones are TOPIC_EXISTS, unless `ifNotExists`.
   * Partitions default to the broker's setting. Also throws INVALID_TOPIC_NAME, INVALID_CONFIG, TOO_MANY_TOPICS.
   */
  createTopic(
    name: string,
    options?: {
      readonly partitions?: number | undefined
      readonly ifNotExists?: boolean | undefined
      readonly config?: Readonly<Record<string, string>> | undefined
      /** Check everything, change nothing. */
      readonly validateOnly?: boolean | undefined
    },
  ): Promise<{ readonly created: boolean; readonly topicId: string; readonly partitions: number }>
  /** In the order of their names. `sizes: false` spares the broker a look at every partition; `bytes` and `records` are then 0. */
  topics(options?: {
    readonly match?: RegExp | undefined
    readonly internal?: boolean | undefined
    readonly sizes?: boolean | undefined
  }): AsyncIterable<TopicInfo>
  describeTopic(name: string): Promise<TopicDescription>
  /** Adds partitions up to a total and changes settings. Resolves to the settings as they are then. */
  alterTopic(
    name: string,
    change: {
      readonly partitions?: number | undefined
      readonly set?: Readonly<Record<string, string>> | undefined
      readonly clear?: readonly string[] | undefined
      readonly validateOnly?: boolean | undefined
    },
  ): Promise<readonly ConfigInfo[]>
  /** `total` is the new number of partitions. Resolves to it. */
  addPartitions(name: string, total: number): Promise<number>
  deleteTopic(name: string): Promise<void>
  /** Moves log starts up to (not including) the given offset, or to the end. Resolves to the new log starts. */
  deleteRecords(
    name: string,
    before: ReadonlyMap<number, Offset | number | 'end'>,
  ): Promise<ReadonlyMap<number, Offset>>
  /** The offset that a position means, for each partition (or for those named). */
  offsets(
    name: string,
    at: Position,
    options?: { readonly partitions?: readonly number[] | undefined },
  ): Promise<ReadonlyMap<number, Offset>>
  broker(): Promise<BrokerInfo>
  cluster(): Promise<ClusterInfo>
}
