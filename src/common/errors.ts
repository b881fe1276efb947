/**
 * What went wrong, what a caller may do about it, and how it crosses the wire: one table (SEMANTICS §4c).
 * A new code is worth adding when a caller would do something new. The same names are the enum
 * `millrace.v1.Reason` in proto/, so that a new one needs a review; a test keeps the two lists equal.
 */

/** The gRPC status names that we use. The numbers are gRPC's own; `grpc/status.ts` maps them. */
export type StatusName =
  | 'INVALID_ARGUMENT'
  | 'NOT_FOUND'
  | 'ALREADY_EXISTS'
  | 'PERMISSION_DENIED'
  | 'RESOURCE_EXHAUSTED'
  | 'FAILED_PRECONDITION'
  | 'ABORTED'
  | 'OUT_OF_RANGE'
  | 'UNIMPLEMENTED'
  | 'INTERNAL'
  | 'UNAVAILABLE'
  | 'DATA_LOSS'
  | 'UNAUTHENTICATED'
  | 'DEADLINE_EXCEEDED'
  | 'CANCELLED'

/** What the caller should do next. */
export type Action =
  | 'none'
  | 'retry'
  | 'retry_after'
  | 'refresh'
  | 'rejoin'
  | 'new_producer'
  | 'fix'

export interface ErrorRow {
  readonly status: StatusName
  readonly action: Action
  /** True when the same call may succeed later without a change by the caller. */
  readonly retryable: boolean
  /** True when it is certain that nothing was changed. */
  readonly noSideEffects: boolean
}

function row(
  status: StatusName,
  action: Action,
  retryable: boolean,
  noSideEffects: boolean,
): ErrorRow {
  return { status, action, retryable, noSideEffects }
}

const bad: ErrorRow = row('INVALID_ARGUMENT', 'fix', false, true)

export type ErrorCode =
  | 'INVALID_REQUEST'
  | 'INVALID_TOPIC_NAME'
  | 'INVALID_CONFIG'
  | 'IMMUTABLE_CONFIG'
  | 'INVALID_PARTITION'
  | 'INVALID_POSITION'
  | 'INVALID_RECORD'
  | 'INVALID_TIMESTAMP'
  | 'UNSUPPORTED_CODEC'
  | 'RECORD_TOO_LARGE'
  | 'BATCH_TOO_LARGE'
  | 'EMPTY_BATCH'
  | 'DECOMPRESSED_TOO_LARGE'
  | 'CORRUPT_BATCH'
  | 'OFFSET_OUT_OF_RANGE'
  | 'UNKNOWN_TOPIC'
  | 'UNKNOWN_TOPIC_ID'
  | 'UNKNOWN_PARTITION'
  | 'UNKNOWN_PRODUCER'
  | 'TOPIC_EXISTS'
  | 'TOPIC_INTERNAL'
  | 'WRONG_EXPECTED_OFFSET'
  | 'PRODUCER_FENCED'
  | 'OUT_OF_ORDER_SEQUENCE'
  | 'QUOTA_EXCEEDED'
  | 'STORAGE_FULL'
  | 'TOO_MANY_TOPICS'
  | 'TOO_MANY_OPEN_FILES'
  | 'NOT_LEADER'
  | 'LOADING'
  | 'BROKER_DRAINING'
  | 'READ_ONLY'
  | 'UNREACHABLE'
  | 'FLUSH_FAILED'
  | 'REQUEST_TIMEOUT'
  | 'APPEND_TIMEOUT'
  | 'CANCELLED_BY_CLIENT'
  | 'SEGMENT_QUARANTINED'
  | 'CORRUPT_INDEX'
  | 'STORAGE_ERROR'
  | 'INTERNAL_ERROR'
  | 'UNSUPPORTED_FEATURE'
  | 'PERMISSION_DENIED'
  | 'UNAUTHENTICATED'
  | 'DIRECTORY_IN_USE'
  | 'DIRECTORY_UNUSABLE'
  | 'UNSUPPORTED_FORMAT'
  | 'ADDRESS_IN_USE'
  | 'CLOSED'
  | 'INVALID_GROUP_ID'
  | 'INVALID_PATTERN'
  | 'UNKNOWN_GROUP'
  | 'UNKNOWN_MEMBER'
  | 'GROUP_TYPE_MISMATCH'
  | 'GROUP_NOT_EMPTY'
  | 'GROUP_SUBSCRIBED'
  | 'GROUP_FULL'
  | 'INSTANCE_ID_IN_USE'
  | 'INSTANCE_FENCED'
  | 'STALE_MEMBER_EPOCH'
  | 'PARTITION_NOT_OWNED'
  | 'NOT_COORDINATOR'
  | 'COMMIT_TIMEOUT'
  | 'INVALID_BACKOFF'
  | 'INVALID_ACK_RANGE'
  | 'INVALID_LEASE_TOKEN'
  | 'INVALID_DELAY'
  | 'DELAY_TOO_LONG'
  | 'CONFLICTING_FIELDS'
  | 'INVALID_CURSOR'
  | 'INVALID_FILTER'
  | 'LEASE_LOST'
  | 'LEASE_LIMIT_REACHED'
  | 'DLQ_CYCLE'
  | 'NOT_A_DLQ'
  | 'DLQ_UNAVAILABLE'
  | 'REDRIVE_IN_PROGRESS'
  | 'TASK_NOT_FOUND'
  | 'DELAY_NOT_FOUND'
  | 'ALREADY_FIRED'
  | 'DEDUPE_MISMATCH'

export const ERROR_TABLE: Readonly<Record<ErrorCode, ErrorRow>> = {
  INVALID_REQUEST: bad,
  INVALID_TOPIC_NAME: bad,
  INVALID_CONFIG: bad,
  IMMUTABLE_CONFIG: bad,
  INVALID_PARTITION: bad,
  INVALID_POSITION: bad,
  INVALID_RECORD: bad,
  INVALID_TIMESTAMP: bad,
  UNSUPPORTED_CODEC: bad,
  RECORD_TOO_LARGE: bad,
  BATCH_TOO_LARGE: bad,
  EMPTY_BATCH: bad,
  DECOMPRESSED_TOO_LARGE: bad,
  /** On produce: the bytes changed on their way. */
  CORRUPT_BATCH: row('INVALID_ARGUMENT', 'retry', true, true),
  OFFSET_OUT_OF_RANGE: row('OUT_OF_RANGE', 'fix', false, true),
  UNKNOWN_TOPIC: row('NOT_FOUND', 'refresh', false, true),
  UNKNOWN_TOPIC_ID: row('NOT_FOUND', 'refresh', false, true),
  UNKNOWN_PARTITION: row('NOT_FOUND', 'refresh', false, true),
  UNKNOWN_PRODUCER: row('NOT_FOUND', 'new_producer', false, true),
  TOPIC_EXISTS: row('ALREADY_EXISTS', 'fix', false, true),
  TOPIC_INTERNAL: row('FAILED_PRECONDITION', 'fix', false, true),
  WRONG_EXPECTED_OFFSET: row('FAILED_PRECONDITION', 'fix', false, true),
  PRODUCER_FENCED: row('ABORTED', 'new_producer', false, true),
  OUT_OF_ORDER_SEQUENCE: row('ABORTED', 'new_producer', false, true),
  QUOTA_EXCEEDED: row('RESOURCE_EXHAUSTED', 'retry_after', true, true),
  STORAGE_FULL: row('RESOURCE_EXHAUSTED', 'retry_after', true, true),
  TOO_MANY_TOPICS: row('RESOURCE_EXHAUSTED', 'retry_after', true, true),
  TOO_MANY_OPEN_FILES: row('RESOURCE_EXHAUSTED', 'retry_after', true, true),
  NOT_LEADER: row('UNAVAILABLE', 'refresh', true, true),
  LOADING: row('UNAVAILABLE', 'retry', true, true),
  BROKER_DRAINING: row('UNAVAILABLE', 'retry_after', true, true),
  /** The disk refuses writes; reads go on. */
  READ_ONLY: row('UNAVAILABLE', 'retry_after', true, true),
  /** The broker cannot be reached, or the connection broke: what was under way is unknown. */
  UNREACHABLE: row('UNAVAILABLE', 'retry', true, false),
  /** A flush failed, so the broker is stopping: the outcome is unknown until it is up again. */
  FLUSH_FAILED: row('UNAVAILABLE', 'retry', true, false),
  REQUEST_TIMEOUT: row('DEADLINE_EXCEEDED', 'retry', true, false),
  APPEND_TIMEOUT: row('DEADLINE_EXCEEDED', 'retry', true, false),
  CANCELLED_BY_CLIENT: row('CANCELLED', 'none', false, false),
  /** On read: damage on the disk. `details.nextOffset` is the first good offset after it. */
  SEGMENT_QUARANTINED: row('DATA_LOSS', 'fix', false, true),
  CORRUPT_INDEX: row('DATA_LOSS', 'none', false, true),
  STORAGE_ERROR: row('INTERNAL', 'retry', false, false),
  INTERNAL_ERROR: row('INTERNAL', 'none', false, false),
  UNSUPPORTED_FEATURE: row('UNIMPLEMENTED', 'fix', false, true),
  PERMISSION_DENIED: row('PERMISSION_DENIED', 'fix', false, true),
  UNAUTHENTICATED: row('UNAUTHENTICATED', 'fix', false, true),
  /** Start-up: another broker holds the data directory. Exit code 73. */
  DIRECTORY_IN_USE: row('FAILED_PRECONDITION', 'fix', false, true),
  /** Start-up: the data directory cannot be read or written. */
  DIRECTORY_UNUSABLE: row('FAILED_PRECONDITION', 'fix', false, true),
  /** Start-up: the data was written by a newer millrace. */
  UNSUPPORTED_FORMAT: row('FAILED_PRECONDITION', 'fix', false, true),
  /** Start-up: the port is taken. */
  ADDRESS_IN_USE: row('FAILED_PRECONDITION', 'fix', false, true),
  /** Client: the producer or reader has been closed. */
  CLOSED: row('FAILED_PRECONDITION', 'none', false, true),
  INVALID_GROUP_ID: bad,
  /** A subscription's pattern that is no RE2 expression. */
  INVALID_PATTERN: bad,
  UNKNOWN_GROUP: row('NOT_FOUND', 'fix', false, true),
  /** The member's session has expired, or it was removed: it owns nothing any more and has to join anew. */
  UNKNOWN_MEMBER: row('NOT_FOUND', 'rejoin', false, true),
  /** A group id is a stream group's or a queue group's for life. */
  GROUP_TYPE_MISMATCH: row('FAILED_PRECONDITION', 'fix', false, true),
  GROUP_NOT_EMPTY: row('FAILED_PRECONDITION', 'fix', false, true),
  GROUP_SUBSCRIBED: row('FAILED_PRECONDITION', 'fix', false, true),
  GROUP_FULL: row('RESOURCE_EXHAUSTED', 'retry_after', true, true),
  /** A living member has the instance id. */
  INSTANCE_ID_IN_USE: row('FAILED_PRECONDITION', 'fix', false, true),
  /** Another process has taken the instance id over: this one has to stop. */
  INSTANCE_FENCED: row('ABORTED', 'fix', false, true),
  STALE_MEMBER_EPOCH: row('ABORTED', 'rejoin', false, true),
  /** A commit for a partition that the member does not own (any more): what it did there another will repeat. */
  PARTITION_NOT_OWNED: row('ABORTED', 'rejoin', false, true),
  NOT_COORDINATOR: row('UNAVAILABLE', 'refresh', true, true),
  COMMIT_TIMEOUT: row('DEADLINE_EXCEEDED', 'retry', true, false),
  INVALID_BACKOFF: bad,
  /** Ranges of an acknowledgement that overlap, are empty, or lie outside of what the token leases. */
  INVALID_ACK_RANGE: bad,
  /** Bytes that no broker has given out as a lease token. */
  INVALID_LEASE_TOKEN: bad,
  INVALID_DELAY: bad,
  DELAY_TOO_LONG: bad,
  CONFLICTING_FIELDS: bad,
  INVALID_CURSOR: bad,
  INVALID_FILTER: bad,
  /** The lease has ended, or never was this worker's: what it did the next one repeats. */
  LEASE_LOST: row('FAILED_PRECONDITION', 'none', false, true),
  /** A lease cannot be renewed past `queue.lease.max.total.ms`. */
  LEASE_LIMIT_REACHED: row('FAILED_PRECONDITION', 'none', false, true),
  /** Dead letters would go round in a circle, or through more than two topics. */
  DLQ_CYCLE: row('FAILED_PRECONDITION', 'fix', false, true),
  /** The topic does not carry the mark `dlq=true`. */
  NOT_A_DLQ: row('FAILED_PRECONDITION', 'fix', false, true),
  /** So many dead letters wait to be written that nothing more is given out. */
  DLQ_UNAVAILABLE: row('UNAVAILABLE', 'retry_after', true, true),
  /** One redrive at a time for each topic of dead letters. */
  REDRIVE_IN_PROGRESS: row('FAILED_PRECONDITION', 'retry_after', true, true),
  TASK_NOT_FOUND: row('NOT_FOUND', 'fix', false, true),
  DELAY_NOT_FOUND: row('NOT_FOUND', 'fix', false, true),
  /** The delayed record has been appended to its topic already. */
  ALREADY_FIRED: row('FAILED_PRECONDITION', 'none', false, true),
  /** The dedupe id has been used for other bytes (`dedupe.verify`). */
  DEDUPE_MISMATCH: row('FAILED_PRECONDITION', 'fix', false, true),
}

/** Facts of an error: plain values, for people and programs. Never a stack, never a path in a client's answer. */
export type ErrorDetails = Readonly<
  Record<string, string | number | boolean | readonly string[] | undefined>
>

/** An expected failure, with a stable `code`, the facts in `details` and the original in `cause`. */
export class BrokerError extends Error {
  override readonly name: string = 'BrokerError'
  readonly code: ErrorCode
  readonly details: ErrorDetails

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.code = code
    this.details = details
  }

  get action(): Action {
    return ERROR_TABLE[this.code].action
  }

  get retryable(): boolean {
    return ERROR_TABLE[this.code].retryable
  }

  get noSideEffects(): boolean {
    return ERROR_TABLE[this.code].noSideEffects
  }
}

export function isErrorCode(value: string): value is ErrorCode {
  return Object.hasOwn(ERROR_TABLE, value)
}

/** The error itself when it is one of ours, else an INTERNAL_ERROR that carries it as cause. */
export function toBrokerError(error: unknown): BrokerError {
  if (error instanceof BrokerError) return error
  const message = error instanceof Error ? error.message : String(error)
  return new BrokerError('INTERNAL_ERROR', message, {}, error)
}

/** The `code` of a system error such as `ENOSPC`, if it has one. */
export function findSystemCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined
  return typeof error.code === 'string' ? error.code : undefined
}
