import { findSystemCode } from '../common/errors.ts'

/**
 * A flush of a file or a folder did not succeed: nothing is known about what it should have made durable, and trying again proves nothing
 * (CONTRACT §1, fact 2). Carries the system `code` of its cause.
 */
export class FlushError extends Error {
  override readonly name: string = 'FlushError'
  readonly code: string

  constructor(what: string, cause: unknown) {
    super(`${what} could not be flushed`, { cause })
    this.code = findSystemCode(cause) ?? 'EIO'
  }
}

/** Passes on what `flush` answers. @throws FlushError when it fails */
export async function flushing<T>(what: string, flush: Promise<T>): Promise<T> {
  try {
    return await flush
  } catch (error) {
    throw new FlushError(what, error)
  }
}
