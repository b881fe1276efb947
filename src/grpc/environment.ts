import type { ServerHttp2Stream } from 'node:http2'
import type { Clock } from '../common/clock.ts'
import { BrokerError } from '../common/errors.ts'
import type { Random } from '../common/random.ts'
import { KIB } from '../common/units.ts'
import type { Groups } from '../coordination/group/group-types.ts'
import type { DeadLetters, Queues, Sends } from '../coordination/queue/queue-types.ts'
import type { Topics } from '../topic/topics.ts'
import type { Drain } from './drain.ts'
import type { Budgets } from './flow-control.ts'
import type { ErrorMapper, GrpcLogger } from './status.ts'

/** Room for what stands around a batch in its message. */
export const ENVELOPE_BYTES: number = 64 * KIB

/** What the broker says of itself. */
export interface BrokerIdentity {
  readonly version: string
  readonly brokerId: number
  readonly startedMs: number
}

/** What every service gets. */
export interface ServiceEnvironment {
  readonly clock: Clock
  readonly random: Random
  readonly logger: GrpcLogger
  readonly errors: ErrorMapper
  readonly drain: Drain
  readonly budgets: Budgets
  readonly identity: BrokerIdentity
  /** Largest message that is taken, {@link ENVELOPE_BYTES} aside. */
  readonly maxMessageBytes: number
  /** @throws BrokerError LOADING while recovery runs */
  topics(): Topics
  /** @throws BrokerError LOADING while recovery runs */
  groups(): Groups
  /** @throws BrokerError LOADING while recovery runs, as the two that follow */
  queues(): Queues
  sends(): Sends
  deadLetters(): DeadLetters
  /** Where clients should come: what the configuration says, or where we listen. */
  address(): { readonly host: string; readonly port: number }
  /** Free bytes where the data lies, as last seen; 0 when unknown. */
  freeBytes(): number
  /** The HTTP/2 stream under a call, or undefined when grpc-js hides it (see guard.ts). */
  findStream(headers: CallHeaders): ServerHttp2Stream | undefined
}

/** The request headers of a call, as grpc-js gives them. */
export interface CallHeaders {
  get(key: string): readonly (string | Buffer)[]
  toHttp2Headers(): Readonly<Record<string, string | string[] | number | undefined>>
}

const MOST_HEADER_BYTES = 8 * KIB
const MOST_HEADER_PAIRS = 64

/** @throws BrokerError INVALID_REQUEST when a caller sends more metadata than anybody needs (CONTRACT §5) */
export function checkHeaders(headers: CallHeaders): void {
  let bytes = 0
  let pairs = 0
  for (const [name, values] of Object.entries(headers.toHttp2Headers())) {
    for (const value of Array.isArray(values) ? values : [values]) {
      pairs++
      bytes += name.length + String(value ?? '').length
    }
  }
  if (pairs > MOST_HEADER_PAIRS) {
    throw tooMuch(`${pairs} pairs of metadata`, MOST_HEADER_PAIRS, pairs)
  }
  if (bytes > MOST_HEADER_BYTES) {
    throw tooMuch(`${bytes} bytes of metadata`, MOST_HEADER_BYTES, bytes)
  }
}

function tooMuch(what: string, limit: number, actual: number): BrokerError {
  return new BrokerError('INVALID_REQUEST', `${what} are more than the ${limit} that are allowed`, {
    field: 'metadata',
    limit,
    actual,
  })
}
