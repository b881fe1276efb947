/** Thrown when our own code broke its word. Never the user's fault: the partition closes, the broker lives. */
export class InvariantError extends Error {
  override readonly name: string = 'InvariantError'
}

/**
 * Checks what must hold, in production too.
 * @throws InvariantError when `condition` is false
 */
export function invariant(condition: boolean, message: string): asserts condition {
  if (!condition) throw new InvariantError(`broken invariant: ${message}`)
}

/** Ends a `switch` over a union: compiles only when every case has been handled. */
export function unreachable(value: never): never {
  throw new InvariantError(`broken invariant: unexpected value ${String(value)}`)
}

/** Checks dearer than the work they check run only when this is set. CI sets it. */
export const DEBUG: boolean = process.env['MILLRACE_DEBUG'] === '1'
