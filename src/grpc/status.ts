import { Metadata, status as GrpcStatus } from '@grpc/grpc-js'
import type { StatusObject } from '@grpc/grpc-js'
import { type BrokerError, ERROR_TABLE, type StatusName, toBrokerError } from '../common/errors.ts'
import type { ErrorCode, ErrorDetails } from '../common/errors.ts'
import { type Random } from '../common/random.ts'
import { encodeErrorDetail, ERROR_TRAILER, toErrorDetail } from '../wire/error-detail.ts'
import type { ErrorDetailMessage } from '../wire/error-detail.ts'

/** The log that the services write to: facts first, then one sentence. `server/logger.ts` makes one. */
export interface GrpcLogger {
  debug(facts: Readonly<Record<string, unknown>>, message: string): void
  info(facts: Readonly<Record<string, unknown>>, message: string): void
  warn(facts: Readonly<Record<string, unknown>>, message: string): void
  error(facts: Readonly<Record<string, unknown>>, message: string): void
}

export const STATUS_NUMBERS: Readonly<Record<StatusName, GrpcStatus>> = {
  INVALID_ARGUMENT: GrpcStatus.INVALID_ARGUMENT,
  NOT_FOUND: GrpcStatus.NOT_FOUND,
  ALREADY_EXISTS: GrpcStatus.ALREADY_EXISTS,
  PERMISSION_DENIED: GrpcStatus.PERMISSION_DENIED,
  RESOURCE_EXHAUSTED: GrpcStatus.RESOURCE_EXHAUSTED,
  FAILED_PRECONDITION: GrpcStatus.FAILED_PRECONDITION,
  ABORTED: GrpcStatus.ABORTED,
  OUT_OF_RANGE: GrpcStatus.OUT_OF_RANGE,
  UNIMPLEMENTED: GrpcStatus.UNIMPLEMENTED,
  INTERNAL: GrpcStatus.INTERNAL,
  UNAVAILABLE: GrpcStatus.UNAVAILABLE,
  DATA_LOSS: GrpcStatus.DATA_LOSS,
  UNAUTHENTICATED: GrpcStatus.UNAUTHENTICATED,
  DEADLINE_EXCEEDED: GrpcStatus.DEADLINE_EXCEEDED,
  CANCELLED: GrpcStatus.CANCELLED,
}

/** What a caller without a hint of its own waits before it tries again, by code; others with `retry_after` wait a second. */
const RETRY_AFTER_MS: Readonly<Partial<Record<ErrorCode, number>>> = {
  STORAGE_FULL: 5000,
  READ_ONLY: 10_000,
}

/** Faults of the disk: their messages name files, and what they say is for the operator. */
const DISK_CODES: ReadonlySet<ErrorCode> = new Set([
  'STORAGE_ERROR',
  'FLUSH_FAILED',
  'CORRUPT_INDEX',
  'SEGMENT_QUARANTINED',
  'TOO_MANY_OPEN_FILES',
  'READ_ONLY',
  'STORAGE_FULL',
])

/** Facts that say where things lie on this machine. */
const PRIVATE_FACTS: ReadonlySet<string> = new Set([
  'file',
  'path',
  'directory',
  'syscall',
  'stack',
])

/** A trailer larger than this would meet the header limits of other peers. */
const LONGEST_TEXT = 600
const MOST_FACTS = 24

/**
 * Turns any failure into what the client gets, from the one table in common/errors.ts, and logs it: a client's fault at debug, what may
 * pass by itself at info, the disk's and our own as errors. A failure that nobody foresaw becomes INTERNAL_ERROR with a trace id; what
 * it was stands in the log under that id and nowhere else.
 */
export class ErrorMapper {
  readonly #logger: GrpcLogger
  readonly #random: Random

  constructor(logger: GrpcLogger, random: Random) {
    this.#logger = logger
    this.#random = random
  }

  /** The wire form of `failure`, for answers in band. `where` names the call, for the log. */
  toDetail(failure: unknown, where: string): ErrorDetailMessage {
    const error = toBrokerError(failure)
    const { code } = error
    const internal = code === 'INTERNAL_ERROR'
    const traced = internal || DISK_CODES.has(code)
    const traceId = traced ? Buffer.from(this.#random.bytes(8)).toString('hex') : ''
    this.#log(error, where, traceId)
    const message = internal
      ? `internal error; the broker's log has it under trace id ${traceId}`
      : DISK_CODES.has(code)
        ? withoutPaths(error.message)
        : error.message
    const details = internal ? {} : publicFacts(error)
    return toErrorDetail(code, shorten(message), details, traceId)
  }

  toStatus(failure: unknown, where: string): StatusObject {
    return detailToStatus(this.toDetail(failure, where))
  }

  #log(error: BrokerError, where: string, traceId: string): void {
    const facts = { call: where, code: error.code, ...error.details }
    if (traceId !== '') {
      this.#logger.error({ ...facts, traceId, error: error.cause ?? error }, error.message)
    } else if (error.retryable) {
      this.#logger.info(facts, error.message)
    } else {
      this.#logger.debug(facts, error.message)
    }
  }
}

function publicFacts(error: BrokerError): ErrorDetails {
  const facts: Record<string, ErrorDetails[string]> = {}
  let left = MOST_FACTS
  for (const [name, value] of Object.entries(error.details)) {
    if (value === undefined || PRIVATE_FACTS.has(name) || left-- <= 0) continue
    facts[name] = typeof value === 'string' ? shorten(value) : value
  }
  if (error.action === 'retry_after') facts['retryAfterMs'] ??= RETRY_AFTER_MS[error.code] ?? 1000
  return facts
}

/** Absolute paths become their last part. */
function withoutPaths(text: string): string {
  return text.replaceAll(/(^|[\s'"(=])(?:\/[^\s/'"():,]+)+\/([^\s/'"():,]+)/g, '$1$2')
}

function shorten(text: string): string {
  const short = text.length > LONGEST_TEXT ? `${text.slice(0, LONGEST_TEXT)}…` : text
  // A lone surrogate would make the encoding of the status line fail.
  return Buffer.from(short).toString()
}

/** The gRPC status of a detail: code and text for everyone, the detail itself in the trailer. */
export function detailToStatus(detail: ErrorDetailMessage): StatusObject {
  const metadata = new Metadata()
  metadata.set(ERROR_TRAILER, encodeErrorDetail(detail))
  const code = detail.reason === 'REASON_UNSPECIFIED' ? 'INTERNAL_ERROR' : detail.reason
  return {
    code: STATUS_NUMBERS[ERROR_TABLE[code].status],
    details: detail.message,
    metadata,
  }
}
