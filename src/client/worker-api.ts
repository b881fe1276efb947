import type { Headers, ReceivedRecord } from './api.ts'
import type { MillraceError } from './errors.ts'

/** How long to wait before a failed record is tried again. Jitter is the group's. */
export type BackoffOptions =
  | { readonly type: 'none' }
  | { readonly type: 'fixed' | 'linear'; readonly delayMs: number }
  | {
      readonly type: 'exponential'
      readonly delayMs: number
      readonly multiplier?: number | undefined
      readonly maxMs?: number | undefined
      /** 0 to 1: the delay is taken from [d × (1 − jitter), d]. Default 0.2. */
      readonly jitter?: number | undefined
    }
  | { readonly type: 'list'; readonly delaysMs: readonly number[] }

/**
 * Settings of a queue group that a worker may bring along: they become the group's own, for all its workers, before it gets its first record. What is not
 * named stays as it is.
 */
export interface QueueOptions {
  /** Runs of a handler in all. Default 5; 0: without end. */
  readonly attempts?: number | undefined
  readonly backoff?: BackoffOptions | undefined
  /** `none` (default), `key`: one record of an ordering key at a time, in order, whoever works; `partition`: one at a time of each partition. */
  readonly order?: 'none' | 'key' | 'partition' | undefined
  /** Of the whole group. 0: no limit. */
  readonly concurrencyMax?: number | undefined
  /** At most `max` deliveries per `perMs`, of the whole group, or per value of the header `key`. */
  readonly rateLimit?:
    | {
        readonly max: number
        readonly perMs: number
        readonly burst?: number | undefined
        readonly key?: string | undefined
      }
    | undefined
  /** Where records go that are given up. `true`: `dlq.<group>.<topic>`. Default: true for job topics, else they are dropped and counted. */
  readonly deadLetters?: boolean | { readonly topic: string } | undefined
  /** Where a new group begins. Default: `earliest` for job topics, else `latest`. */
  readonly start?: 'earliest' | 'latest' | undefined
  /** Any setting by its dotted name, with units: `{ 'order.on.failure': 'skip' }`. */
  readonly settings?: Readonly<Record<string, string>> | undefined
}

export interface WorkerOptions extends QueueOptions {
  /** 1 to 249 of A-Z a-z 0-9 . _ -. All workers with the same group share the records. */
  readonly group: string
  /** Handlers under way at once. Default 1. */
  readonly concurrency?: number | undefined
  /** How long a record may go without a sign of life. Renewed by itself at half time. 1 s to 12 h. Default: the group's, 30 s. */
  readonly leaseMs?: number | undefined
  /** Records held beyond those in handlers, so that none waits for the network. Default: as many as `concurrency`, at most 1 000. 0: none. All in all about 64 MiB are held, or one batch. */
  readonly prefetch?: number | undefined
  /** Aborting it is a graceful close. */
  readonly signal?: AbortSignal | undefined
  /** Begin without taking records, until `resume()`. */
  readonly paused?: boolean | undefined
  /** With a handler given by URL: threads that run it. Default 1. */
  readonly threads?: number | undefined
  /** Handle only errors for which this is true as failures that may be retried; the others are rejected. Default: every error is retried but RejectError. */
  readonly isRetryable?: ((error: unknown) => boolean) | undefined
}

/** A batch worker's handler gets several records at once. */
export interface BatchWorkerOptions extends WorkerOptions {
  /** Handlers under way at once, each with a batch of its own. Default 1. */
  readonly concurrency?: number | undefined
  /** Records for a handler, at most. 1 to 10 000. Default 100. */
  readonly batchSize?: number | undefined
  /** How long the first record of a batch may wait until it is full. Default 0: the handler gets what is there. */
  readonly batchWaitMs?: number | undefined
}

/** One record that a worker has been given. Times are milliseconds since the epoch. */
export interface Delivery<V, K = string> extends ReceivedRecord<V, K> {
  /** This one included: 1 the first time. */
  readonly deliveryCount: number
  /** How often it has failed before. */
  readonly failureCount: number
  /** As last known: renewals move it. */
  readonly leaseExpiresAt: number
  readonly redelivered: boolean
  /** The header `job.type`, if it has one. */
  readonly type: string | undefined
  /**
   * Done. Durable when it resolves. Each of these may be called once; a second, other verdict is refused with INVALID_REQUEST, the same one again is the same promise.
   * @throws MillraceError (as rejection, as all of these) LEASE_LOST: the record is, or will be, somebody else's
   */
  accept(): Promise<void>
  /** Not a failure: again at once, or after `delayMs`. `pauseGroupMs`: the whole group rests for so long. */
  release(options?: {
    readonly delayMs?: number | undefined
    readonly pauseGroupMs?: number | undefined
  }): Promise<void>
  /** A failure: again after the backoff, or `delayMs`. */
  retry(error?: unknown, options?: { readonly delayMs?: number | undefined }): Promise<void>
  /** A failure for good: to the dead letters. */
  reject(error?: unknown): Promise<void>
  /** @throws MillraceError LEASE_LOST, LEASE_LIMIT_REACHED */
  renew(leaseMs?: number): Promise<void>
}

export interface JobContext {
  /**
   * Aborts when the lease is lost (reason: a MillraceError LEASE_LOST): the record is, or will be, somebody else's, and what the handler returns or throws is
   * ignored. When the lease cannot be renewed any more (LEASE_LIMIT_REACHED): a handler that returns before it runs out has done its work. When the worker is
   * closed and its time is up (CLOSED): the record has been released. Of a batch it aborts when that has happened to every one of its records.
   */
  readonly signal: AbortSignal
}

/** Returning accepts, throwing retries; RejectError and ReleaseError say what else. What was settled by hand stays so. */
export type Handler<V, R = void, K = string> = (
  job: Delivery<V, K>,
  context: JobContext,
) => Promise<R> | R

/** Handles some records at once. Returning accepts those that have not been settled by hand, throwing retries those (or what the error says). */
export type BatchHandler<V, K = string> = (
  jobs: readonly Delivery<V, K>[],
  context: JobContext,
) => Promise<void> | void

export interface ReceiveOptions extends QueueOptions {
  readonly group: string
  /** Records for each call to the broker, 1 to 1000. Default 1. */
  readonly max?: number | undefined
  /** How long to wait for one: 0 to 30 000. When there is none by then the iteration ends. Default 0. */
  readonly waitMs?: number | undefined
  readonly leaseMs?: number | undefined
  readonly signal?: AbortSignal | undefined
}

export type WorkerEvent<V, R = void, K = string> =
  | { readonly type: 'completed'; readonly job: Delivery<V, K>; readonly result: R }
  /** The handler threw. Followed by `retrying` or `dead` where the broker said which. */
  | { readonly type: 'failed'; readonly job: Delivery<V, K>; readonly error: unknown }
  | { readonly type: 'retrying'; readonly job: Delivery<V, K>; readonly error: unknown }
  | { readonly type: 'released'; readonly job: Delivery<V, K> }
  /** The lease was lost while the handler ran. */
  | { readonly type: 'stalled'; readonly job: Delivery<V, K>; readonly error: MillraceError }
  /** Rejected, or the attempts are used up. */
  | { readonly type: 'dead'; readonly job: Delivery<V, K>; readonly error: unknown }
  | { readonly type: 'throttled'; readonly untilMs: number }
  | { readonly type: 'drained' }

/** Ends when the worker has. Breaking off stops listening. */
export interface WorkerEventStream<V, R = void, K = string> extends AsyncIterableIterator<
  WorkerEvent<V, R, K>,
  undefined
> {
  /** Events that were lost because they were not taken in time. */
  readonly dropped: number
}

/**
 * Takes records from a queue and runs a handler for each. At least once: a record is settled when its verdict is durable; until then it comes again, here or elsewhere.
 */
export interface Worker<V, R = void, K = string> extends AsyncDisposable {
  /** Handlers under way. */
  readonly active: number
  /** Resolves once the broker has taken the worker in. Rejects with what keeps it from that. */
  ready(): Promise<void>
  /**
   * Takes no more, and gives back what was only prefetched. Resolves when what is in hand is settled. What is on its way
   * may still come, and goes back too.
   */
  pause(): Promise<void>
  resume(): void
  /**
   * Resolves when the worker has nothing in hand, every verdict is durable, the broker may give it as much as it can hold, and for 250 ms nothing has come: when
   * there is, by all appearances, nothing to do now. Records that wait for a retry, for their time, for a rate limit, or that others have in hand do not
   * count. Of a paused worker: when it has nothing in hand.
   */
  drain(): Promise<void>
  /**
   * Takes no more, gives back what was only prefetched, waits for handlers up to `timeoutMs` (default 30 000), then releases what they have and aborts their
   * signals; leaves. Resolves when the broker has taken all that, or cannot be reached. A handler that awaits the end of its own worker waits for itself.
   */
  close(options?: { readonly timeoutMs?: number | undefined }): Promise<void>
  /** From the call on, until the worker has ended. Several may listen; one that does not keep up loses the oldest beyond 10 000. */
  events(): WorkerEventStream<V, R, K>
  on<T extends WorkerEvent<V, R, K>['type']>(
    type: T,
    listener: (event: Extract<WorkerEvent<V, R, K>, { type: T }>) => void,
  ): () => void
  /** Resolves when the worker has ended; rejects with what ended it, unless it was closed. */
  readonly closed: Promise<void>
}

/** Thrown by a handler: no more attempts. As the two that follow, it is known by its class or by its name. */
export class RejectError extends Error {
  override readonly name: string = 'RejectError'
}

/** Thrown by a handler: try again, then, and do not count it. */
export class ReleaseError extends Error {
  override readonly name: string = 'ReleaseError'
  readonly delayMs: number
  readonly pauseGroupMs: number

  constructor(
    options: {
      readonly delayMs?: number
      readonly pauseGroupMs?: number
      readonly message?: string
    } = {},
  ) {
    super(options.message ?? 'released by its handler')
    this.delayMs = options.delayMs ?? 0
    this.pauseGroupMs = options.pauseGroupMs ?? 0
  }
}

/** Thrown by a handler: a failure like any other, but tried again after `delayMs`. */
export class RetryError extends Error {
  override readonly name: string = 'RetryError'
  readonly delayMs: number

  constructor(message: string, options: { readonly delayMs: number; readonly cause?: unknown }) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.delayMs = options.delayMs
  }
}

// ── Administration ──

export interface QueuePartitionInfo {
  readonly topic: string
  readonly partition: number
  readonly logStartOffset: number
  readonly startOffset: number
  readonly scanOffset: number
  readonly highWatermark: number
  readonly ready: number
  readonly acquired: number
  readonly parked: number
  readonly deadLettering: number
  readonly blocked: number
  readonly done: number
  readonly runs: number
  readonly oldestReadyMs: number | undefined
  readonly error: MillraceError | undefined
}

export interface QueueInfo {
  readonly group: string
  readonly topics: readonly {
    readonly topic: string
    readonly deadLetterTopic: string
    readonly partitions: readonly QueuePartitionInfo[]
  }[]
  readonly members: readonly {
    readonly memberId: string
    readonly clientId: string
    readonly host: string
    readonly topic: string
    readonly acquired: number
    readonly credit: number
    readonly connected: boolean
    readonly sinceHeardMs: number
  }[]
  readonly config: readonly {
    readonly name: string
    readonly value: string
    readonly overridden: boolean
    readonly description: string
    readonly allowed: string
  }[]
  readonly paused: boolean
  readonly pausedUntil: number | undefined
  readonly throttledUntil: number | undefined
  readonly windowFull: boolean
  readonly dlqUnavailable: boolean
  readonly counters: Readonly<Record<string, number>>
}

export type QueueRecordState =
  | 'unscanned'
  | 'available'
  | 'acquired'
  | 'parked'
  | 'dead-lettering'
  | 'blocked'
  | 'done'
  | 'dead'
  | 'gone'
  | 'not-yet'

export interface QueueFailure {
  readonly type: string
  readonly message: string
  readonly stack: string
  readonly at: number
  readonly memberId: string
  readonly kind: string
}

export interface RecordExplanation {
  readonly state: QueueRecordState
  readonly reason: string
  readonly deliveryCount: number
  readonly failureCount: number
  readonly dueAt: number | undefined
  readonly memberId: string | undefined
  readonly leaseExpiresAt: number | undefined
  readonly blockedByOffset: number | undefined
  readonly failures: readonly QueueFailure[]
  readonly startOffset: number
  readonly scanOffset: number
  readonly highWatermark: number
}

/** A record with its bytes as stored. */
export interface RawRecord {
  readonly offset: number
  readonly timestamp: number
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | null
  readonly headers: Headers
}

export interface DeadLetterInfo {
  readonly topic: string
  readonly partition: number
  readonly record: RawRecord
  readonly group: string
  readonly sourceTopic: string
  readonly sourcePartition: number
  readonly sourceOffset: number
  readonly reason: string
  readonly deliveries: number
  readonly failures: number
  readonly firstFailedAt: number
  readonly lastFailedAt: number
  readonly error: { readonly type: string; readonly message: string; readonly stack: string }
  readonly memberId: string
  readonly redrives: number
  readonly settled: boolean
}

/** Which dead letters. All that is given must hold. */
export interface DeadLetterFilter {
  readonly reason?: string | undefined
  readonly errorType?: string | undefined
  readonly firstOffset?: number | undefined
  readonly endOffset?: number | undefined
  readonly diedFrom?: Date | undefined
  readonly diedTo?: Date | undefined
  readonly headers?: Headers | undefined
  readonly group?: string | undefined
  readonly topic?: string | undefined
  readonly limit?: number | undefined
}

/** A topic of dead letters by its name, or that of a group and one of its topics. */
export type DeadLetterPlace = string | { readonly group: string; readonly topic: string }

export interface RedriveOptions extends DeadLetterFilter {
  /** Default: back to the group that they come from. Else a topic, for all its readers. */
  readonly to?: string | undefined
  /** 1 to 10 000. Default 100. */
  readonly maxPerSec?: number | undefined
  /** Default true: failures count from the beginning again. */
  readonly resetAttempts?: boolean | undefined
  /** Only say what would be moved. */
  readonly dryRun?: boolean | undefined
  /** Resolve when it has been started, not when it is done. Default false. */
  readonly background?: boolean | undefined
  readonly signal?: AbortSignal | undefined
}

export interface RedriveInfo {
  readonly taskId: string
  readonly topic: string
  readonly to: string
  readonly state: 'running' | 'done' | 'cancelled' | 'failed'
  readonly moved: number
  readonly total: number
  readonly startedAt: number
  readonly endedAt: number | undefined
  readonly maxPerSec: number
  readonly error: string | undefined
}

export interface RedriveResult {
  readonly moved: number
  readonly task: RedriveInfo | undefined
  readonly preview:
    | {
        readonly count: number
        readonly bytes: number
        readonly firstAt: number
        readonly lastAt: number
        readonly samples: readonly DeadLetterInfo[]
      }
    | undefined
}

export interface DelayedInfo {
  readonly delayId: string
  readonly topic: string
  readonly partition: number
  readonly deliverAt: number
  readonly acceptedAt: number
  readonly dedupeId: string | undefined
  readonly record: RawRecord
}

/** Queue groups, as an administrator sees them. Part of `client.admin`. */
export interface QueueAdmin {
  /** @throws MillraceError UNKNOWN_GROUP, GROUP_TYPE_MISMATCH, as all of these */
  describeQueue(group: string): Promise<QueueInfo>
  /** Makes the group if there is none. Names are dotted, values have units. @throws MillraceError INVALID_CONFIG, INVALID_BACKOFF, DLQ_CYCLE, NOT_A_DLQ */
  configureQueue(
    group: string,
    change: {
      readonly set?: Readonly<Record<string, string>> | undefined
      readonly clear?: readonly string[] | undefined
      readonly validateOnly?: boolean | undefined
    },
  ): Promise<QueueInfo['config']>
  /** Until a time, or until resumed. What is in hand may finish. */
  pauseQueue(group: string, options?: { readonly until?: Date | undefined }): Promise<void>
  resumeQueue(group: string): Promise<void>
  peekQueue(
    group: string,
    topic: string,
    options?: {
      readonly partition?: number | undefined
      readonly state?: QueueRecordState | undefined
      readonly limit?: number | undefined
    },
  ): Promise<
    readonly {
      readonly topic: string
      readonly partition: number
      readonly record: RawRecord
      readonly state: RecordExplanation
    }[]
  >
  explainRecord(
    group: string,
    topic: string,
    partition: number,
    offset: number,
  ): Promise<RecordExplanation>
  unblockRecord(
    group: string,
    topic: string,
    partition: number,
    offset: number,
    what: 'skip' | 'retry',
  ): Promise<void>
  /** Pages through them. @throws MillraceError NOT_A_DLQ, INVALID_FILTER */
  deadLetters(
    place: DeadLetterPlace,
    options?: DeadLetterFilter & { readonly includeSettled?: boolean | undefined },
  ): AsyncIterable<DeadLetterInfo>
  discardDeadLetters(
    place: DeadLetterPlace,
    options?: DeadLetterFilter & { readonly dryRun?: boolean | undefined },
  ): Promise<{ readonly discarded: number }>
  /** @throws MillraceError REDRIVE_IN_PROGRESS, NOT_A_DLQ */
  redrive(place: DeadLetterPlace, options?: RedriveOptions): Promise<RedriveResult>
  redrives(): Promise<readonly RedriveInfo[]>
  cancelRedrive(taskId: string): Promise<RedriveInfo>
  /** In the order in which they are due. */
  delayed(options?: {
    readonly topic?: string | undefined
    readonly from?: Date | undefined
    readonly to?: Date | undefined
  }): AsyncIterable<DelayedInfo>
  countDelayed(topic?: string): Promise<number>
  /** @throws MillraceError DELAY_NOT_FOUND, ALREADY_FIRED, as the two that follow */
  cancelDelayed(delayId: string): Promise<void>
  updateDelayed(delayId: string, deliverAt: Date): Promise<void>
  fireDelayed(delayId: string): Promise<{ readonly partition: number; readonly offset: number }>
}
