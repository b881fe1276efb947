import type { BrokerError } from '../../common/errors.ts'
import type { Offset } from '../../common/offset.ts'
import type { RecordHeader } from '../../record/batch-builder.ts'

/** What a worker says of records that it was given (SEMANTICS §3.2). */
export type Verdict = 'accept' | 'release' | 'retry' | 'reject' | 'renew'

/** Where a record of a queue is. `gone`: below the log start or compacted away; `not-yet`: at or past the end. */
export type RecordState =
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

/** What went wrong, as a worker tells it: cut at 128 B, 2 KiB and 8 KiB. */
export interface WorkError {
  readonly type: string
  readonly message: string
  readonly stack: string
}

/** Dotted names, values with units, as people write them. */
export type SettingTexts = Readonly<Record<string, string>>

export interface WorkRequest {
  readonly group: string
  readonly topic: string
  /** Empty: a new member. Else one that comes back within its grace. */
  readonly memberId: string
  readonly clientId: string
  /** Address of the other end, for people. */
  readonly host: string
  /** 0: the group's `queue.lease.ms`. */
  readonly leaseMs: number
  /** Made the group's own, durably, before anything is delivered. */
  readonly settings: SettingTexts
}

/** Records of one partition under one lease: those in `batch` whose offsets lie in [first, end). */
export interface QueueDelivery {
  /** 16 bytes. */
  readonly token: Uint8Array
  /** Where it is acknowledged: of a redriven record a retry topic. */
  readonly topic: string
  readonly partition: number
  readonly first: Offset
  readonly end: Offset
  /** Records in the batch within [first, end). */
  readonly count: number
  /** This delivery included. */
  readonly deliveryCount: number
  readonly failureCount: number
  readonly leaseMs: number
  /** On the wall clock. */
  readonly leaseExpiresMs: number
  readonly firstDeliveredMs: number
  /** One whole record batch, offsets as in the log. Shared: nobody may write to it. */
  readonly batch: Uint8Array
}

/** Why nothing comes, when there is a reason but an empty queue. */
export interface WorkNotice {
  /** On the wall clock; 0: not throttled. */
  readonly throttledUntilMs: number
  readonly windowFull: boolean
  readonly paused: boolean
  readonly dlqUnavailable: boolean
}

/** The worker's side of a session, as its connection shows it to the queues. No call may throw; all come in a turn of their own. */
export interface WorkListener {
  delivered(delivery: QueueDelivery): void
  /** LEASE_LOST: whatever the worker does with these records is its own affair now. `details.reason`: lease_expired, renew_limit, deleted. */
  leaseLost(token: Uint8Array, error: BrokerError): void
  notice(notice: WorkNotice): void
  /** The session is over, and not by the worker's doing: UNKNOWN_TOPIC, UNKNOWN_MEMBER (another stream took the member over), LOADING, BROKER_DRAINING. Last call. */
  ended(error: BrokerError): void
}

export interface AckItem {
  readonly token: Uint8Array
  /** [first, end) of the offsets delivered under the token. Not looked at for `renew`. */
  readonly first: number
  readonly end: number
  readonly verdict: Verdict
  /** Of `release` and `retry`: when it is delivered again; of `renew`: how long the lease goes on from now. Undefined: the group's rule. */
  readonly delayMs: number | undefined
  readonly error: WorkError | undefined
  /** With `release`: the whole group rests for so long. 0: no. At most 1 h. */
  readonly pauseGroupMs: number
}

/** Why one item was refused. */
export interface AckFailure {
  readonly index: number
  readonly error: BrokerError
}

export interface WorkSession {
  readonly memberId: string
  readonly leaseMs: number
  readonly resumed: boolean
  /** Records that the member has leased and not settled: a broker that stops ends the stream once there are none. */
  readonly leased: number
  /** Adds to what may be delivered, or replaces it. Settled records give nothing back by themselves. */
  credit(records: number, bytes: number, replaces?: boolean): void
  /**
   * Resolves, when everything that was not refused is durable, to what was refused. Items of one lease are all taken or, with the error of the first that is wrong
   * (LEASE_LOST, INVALID_ACK_RANGE, INVALID_DELAY, LEASE_LIMIT_REACHED), all refused; a repeat with the same verdict is fine. INVALID_LEASE_TOKEN refuses its own
   * item alone. Places of items by which records were given up are added to `dead`.
   */
  acknowledge(items: readonly AckItem[], dead?: number[]): Promise<readonly AckFailure[]>
  /** Clean leave: releases what is leased. Resolves when durable. */
  end(): Promise<void>
  /** The connection broke: leases stay until they expire (or, with `queue.release.on.disconnect`, for 2 s), and the member may come back. */
  detach(): void
}

export interface ReceiveRequest {
  readonly group: string
  readonly topic: string
  /** 1 to 1000. */
  readonly max: number
  /** 0 to 30 000. */
  readonly waitMs: number
  /** 0: 4 MiB. */
  readonly maxBytes: number
  readonly leaseMs: number
  readonly clientId: string
  readonly host: string
  readonly settings: SettingTexts
}

export interface ReceiveResult {
  readonly deliveries: readonly QueueDelivery[]
  readonly notice: WorkNotice
}

export interface QueueSettingDescription {
  readonly name: string
  readonly value: string
  readonly overridden: boolean
  readonly description: string
  readonly allowed: string
}

export interface QueueCounters {
  readonly delivered: number
  readonly accepted: number
  readonly released: number
  readonly retried: number
  readonly rejected: number
  readonly expired: number
  readonly deadLettered: number
  readonly dropped: number
  readonly lostToRetention: number
}

export interface QueuePartitionDescription {
  readonly topic: string
  readonly partition: number
  readonly logStartOffset: Offset
  readonly startOffset: Offset
  readonly scanOffset: Offset
  readonly highWatermark: Offset
  /** Not looked at yet, plus available. */
  readonly ready: number
  readonly acquired: number
  readonly parked: number
  readonly deadLettering: number
  readonly blocked: number
  readonly done: number
  readonly runs: number
  readonly oldestReadyMs: number | undefined
  readonly error: BrokerError | undefined
}

export interface QueueMemberDescription {
  readonly memberId: string
  readonly clientId: string
  readonly host: string
  readonly topic: string
  readonly acquired: number
  readonly credit: number
  readonly connected: boolean
  readonly sinceHeardMs: number
}

export interface QueueDescription {
  readonly group: string
  readonly topics: readonly {
    readonly topic: string
    readonly deadLetterTopic: string
    readonly partitions: readonly QueuePartitionDescription[]
  }[]
  readonly members: readonly QueueMemberDescription[]
  readonly config: readonly QueueSettingDescription[]
  readonly paused: boolean
  /** On the wall clock; 0: until resumed. */
  readonly pausedUntilMs: number
  readonly notice: WorkNotice
  readonly counters: QueueCounters
}

export interface FailureInfo {
  readonly error: WorkError
  /** On the wall clock. */
  readonly atMs: number
  readonly memberId: string
  readonly kind: 'retry' | 'lease_expired' | 'rejected'
}

export interface Explanation {
  readonly state: RecordState
  /** One sentence for people. */
  readonly reason: string
  readonly deliveryCount: number
  readonly failureCount: number
  /** On the wall clock, of a parked one. */
  readonly dueMs: number | undefined
  /** Empty: nobody's. */
  readonly memberId: string
  readonly leaseExpiresMs: number | undefined
  readonly blockedByOffset: Offset | undefined
  /** Newest last, at most three. */
  readonly failures: readonly FailureInfo[]
  readonly startOffset: Offset
  readonly scanOffset: Offset
  readonly highWatermark: Offset
}

export interface LogRecord {
  readonly offset: Offset
  readonly timestampMs: number
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | undefined
  readonly headers: readonly RecordHeader[]
}

export interface PeekedRecord {
  readonly topic: string
  readonly partition: number
  readonly record: LogRecord
  readonly state: Explanation
}

/**
 * Queue groups of this broker (DESIGN §9, SEMANTICS §3.2). What the gRPC service stands on.
 * Everything may be refused with INVALID_GROUP_ID, INVALID_TOPIC_NAME, UNKNOWN_TOPIC, GROUP_TYPE_MISMATCH and LOADING.
 */
export interface Queues {
  /**
   * Opens a worker's session; the group is made by the first one. The listener is called from the next turn on.
   * @throws BrokerError (as rejection) INVALID_CONFIG, INVALID_BACKOFF, DLQ_CYCLE, NOT_A_DLQ, GROUP_FULL, UNKNOWN_MEMBER, TOPIC_INTERNAL
   */
  work(request: WorkRequest, listener: WorkListener): Promise<WorkSession>
  /** @throws BrokerError (as rejection) as {@link work}; INVALID_REQUEST */
  receive(request: ReceiveRequest, signal: AbortSignal): Promise<ReceiveResult>
  /** As {@link WorkSession.acknowledge}, for what was received. @throws BrokerError (as rejection) UNKNOWN_GROUP */
  acknowledge(group: string, items: readonly AckItem[]): Promise<readonly AckFailure[]>
  /** @throws BrokerError (as rejection) UNKNOWN_GROUP, as all that follow */
  describe(group: string): Promise<QueueDescription>
  /** Makes the group if there is none. Resolves to all settings as they are then. @throws BrokerError (as rejection) INVALID_CONFIG, INVALID_BACKOFF, DLQ_CYCLE, NOT_A_DLQ */
  configure(
    group: string,
    change: {
      readonly set: SettingTexts
      readonly clear: readonly string[]
      readonly validateOnly: boolean
    },
  ): Promise<readonly QueueSettingDescription[]>
  /** `untilMs` on the wall clock; 0: until resumed. Durable when it resolves. */
  pause(group: string, untilMs: number): Promise<void>
  resume(group: string): Promise<void>
  peek(request: {
    readonly group: string
    readonly topic: string
    readonly partition: number | undefined
    readonly state: RecordState | undefined
    readonly limit: number
  }): Promise<readonly PeekedRecord[]>
  /** @throws BrokerError (as rejection) UNKNOWN_PARTITION, INVALID_REQUEST */
  explain(group: string, topic: string, partition: number, offset: number): Promise<Explanation>
  /** For a record that `dlq.policy=block` holds. @throws BrokerError (as rejection) INVALID_REQUEST when it is not blocked */
  unblock(
    group: string,
    topic: string,
    partition: number,
    offset: number,
    skip: boolean,
  ): Promise<void>
}

// ── Sending with a delay or a dedupe id ──

export interface SendRecordRequest {
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | undefined
  readonly headers: readonly RecordHeader[]
  readonly timestampMs: number | undefined
  readonly partition: number | undefined
  /** Empty: none. At most 128 bytes. */
  readonly dedupeId: string
  readonly deliverAtMs: number | undefined
  readonly delayMs: number | undefined
  /** 16 bytes, or empty. */
  readonly sendId: Uint8Array
}

export type SendResult =
  | {
      readonly error: undefined
      readonly partition: number
      /** Undefined for one that waits. */
      readonly offset: Offset | undefined
      /** Empty unless it waits, or waited. */
      readonly delayId: string
      readonly deliverAtMs: number
      readonly duplicate: boolean
      readonly timestampMs: number
    }
  | { readonly error: BrokerError }

export interface DelayedRecord {
  readonly delayId: string
  readonly topic: string
  readonly partition: number
  readonly deliverAtMs: number
  readonly acceptedMs: number
  readonly dedupeId: string
  readonly record: LogRecord
}

/** Delayed delivery and the dedupe window (SEMANTICS §3.5, §3.15). */
export interface Sends {
  /** One result for each record, in order; all durable when it resolves. @throws BrokerError (as rejection) UNKNOWN_TOPIC, TOPIC_INTERNAL, EMPTY_BATCH, BATCH_TOO_LARGE: nothing was done then */
  send(topic: string, records: readonly SendRecordRequest[]): Promise<readonly SendResult[]>
  /** @throws BrokerError (as rejection) INVALID_CURSOR, INVALID_REQUEST */
  listDelayed(request: {
    readonly topic: string
    readonly fromMs: number | undefined
    readonly toMs: number | undefined
    readonly pageSize: number
    readonly pageToken: string
  }): Promise<{ readonly records: readonly DelayedRecord[]; readonly nextPageToken: string }>
  /** Exact, and cheap. Empty topic: all. */
  countDelayed(topic: string): Promise<number>
  /** @throws BrokerError (as rejection) DELAY_NOT_FOUND, ALREADY_FIRED, as the two that follow */
  cancelDelayed(delayId: string): Promise<void>
  /** @throws BrokerError (as rejection) also INVALID_DELAY, DELAY_TOO_LONG */
  updateDelayed(delayId: string, deliverAtMs: number): Promise<void>
  fireDelayed(delayId: string): Promise<{ readonly partition: number; readonly offset: Offset }>
}

// ── Dead letters ──

export interface DeadFilter {
  readonly reason: string
  readonly errorType: string
  readonly firstOffset: number | undefined
  readonly endOffset: number | undefined
  readonly fromMs: number | undefined
  readonly toMs: number | undefined
  readonly headers: readonly { readonly key: string; readonly value: Uint8Array }[]
  readonly group: string
  readonly topic: string
  /** 0: all. */
  readonly limit: number
}

/** A topic of dead letters; or, when it is empty, the one of this group and source topic. */
export interface DeadLetterPlace {
  readonly topic: string
  readonly group: string
  readonly sourceTopic: string
}

export interface DeadLetterInfo {
  readonly partition: number
  readonly record: LogRecord
  readonly group: string
  readonly sourceTopic: string
  readonly sourcePartition: number
  readonly sourceOffset: number
  readonly reason: string
  readonly deliveries: number
  readonly failures: number
  readonly firstFailedMs: number
  readonly lastFailedMs: number
  readonly error: WorkError
  readonly memberId: string
  readonly redrives: number
  /** Redriven or discarded. */
  readonly settled: boolean
}

export interface RedriveTaskInfo {
  readonly taskId: string
  readonly topic: string
  readonly toTopic: string
  readonly state: 'running' | 'done' | 'cancelled' | 'failed'
  readonly moved: number
  readonly total: number
  readonly startedMs: number
  /** 0: not yet. */
  readonly endedMs: number
  readonly maxPerSec: number
  readonly error: string
}

export interface RedrivePreview {
  readonly count: number
  readonly bytes: number
  readonly firstMs: number
  readonly lastMs: number
  readonly samples: readonly DeadLetterInfo[]
}

/** Looking at dead letters, discarding them, giving them back (SEMANTICS §3.6, §3.7). All: NOT_A_DLQ, UNKNOWN_TOPIC, INVALID_FILTER. */
export interface DeadLetters {
  /** @throws BrokerError (as rejection) INVALID_CURSOR */
  list(request: {
    readonly place: DeadLetterPlace
    readonly filter: DeadFilter
    readonly pageSize: number
    readonly pageToken: string
    readonly includeSettled: boolean
  }): Promise<{
    readonly topic: string
    readonly letters: readonly DeadLetterInfo[]
    readonly nextPageToken: string
  }>
  /** Marks without copying. Resolves to how many. */
  discard(place: DeadLetterPlace, filter: DeadFilter, dryRun: boolean): Promise<number>
  /** @throws BrokerError (as rejection) REDRIVE_IN_PROGRESS, INVALID_REQUEST */
  startRedrive(request: {
    readonly place: DeadLetterPlace
    readonly filter: DeadFilter
    readonly toTopic: string
    readonly maxPerSec: number
    readonly dryRun: boolean
    readonly resetAttempts: boolean
  }): Promise<{
    readonly task: RedriveTaskInfo | undefined
    readonly preview: RedrivePreview | undefined
  }>
  /** @throws BrokerError (as rejection) TASK_NOT_FOUND */
  getRedrive(taskId: string): Promise<RedriveTaskInfo>
  listRedrives(): Promise<readonly RedriveTaskInfo[]>
  cancelRedrive(taskId: string): Promise<RedriveTaskInfo>
}
