import type { Lease } from './lease.ts'
import type { FailureInfo, WorkError } from './queue-types.ts'

const MOST_TYPE = 128
const MOST_MESSAGE = 2048
const MOST_STACK = 8192
const NO_ERROR: WorkError = { type: '', message: '', stack: '' }

/** What is remembered of an attempt that failed: its texts cut to what is kept. `atMs` on the wall clock. */
export function toFailure(
  kind: FailureInfo['kind'],
  error: WorkError | undefined,
  lease: Lease,
  atMs: number,
): FailureInfo {
  return {
    error: shorten(error ?? (kind === 'lease_expired' ? expiredError(lease) : NO_ERROR)),
    atMs,
    memberId: lease.holder.memberId,
    kind,
  }
}

function expiredError(lease: Lease): WorkError {
  return {
    type: 'LeaseExpired',
    message: `the lease of ${lease.leaseMs} ms was not renewed`,
    stack: '',
  }
}

function shorten(error: WorkError): WorkError {
  return {
    type: error.type.slice(0, MOST_TYPE),
    message: error.message.slice(0, MOST_MESSAGE),
    stack: error.stack.slice(0, MOST_STACK),
  }
}
