import { type Action, BrokerError, type ErrorCode, type ErrorDetails } from '../common/errors.ts'

/** What the caller should do next; the same word that crosses the wire (SEMANTICS §4b). */
export type Remedy = Action

/**
 * What every call of the client throws or rejects with. `code` is stable and is the contract; the message is for people and has the
 * values in it; `remedy` says what to do next; `details` has the facts (topic, partition, offset, limit, actual, nearest …).
 * `retryable`: the same call may succeed later. `noSideEffects`: it is certain that nothing was changed.
 */
export class MillraceError extends BrokerError {
  override readonly name: string = 'MillraceError'
  readonly remedy: Remedy

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}, cause?: unknown) {
    super(code, message, details, cause)
    this.remedy = this.action
  }
}

/** The error as a MillraceError: itself, or a copy of a BrokerError, or an INTERNAL_ERROR with the original as cause. */
export function toMillraceError(error: unknown): MillraceError {
  if (error instanceof MillraceError) return error
  if (error instanceof BrokerError) {
    return new MillraceError(error.code, error.message, error.details, error.cause)
  }
  const message = error instanceof Error ? error.message : String(error)
  return new MillraceError('INTERNAL_ERROR', message, {}, error)
}
