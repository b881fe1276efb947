import { isErrorCode } from '../common/errors.ts'
import { MillraceError } from './errors.ts'
import { textOf } from './worker-job.ts'

/** What crosses between a worker and the threads that run its handlers: plain values, and bytes that change hands. */

export interface ThreadRecord {
  readonly topic: string
  readonly partition: number
  readonly offset: number
  readonly timestamp: number
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | null
  readonly headers: readonly (readonly [string, string | Uint8Array])[]
  readonly deliveryCount: number
  readonly failureCount: number
  readonly leaseExpiresAt: number
}

/** An error as it crosses: a class does not survive that, its name does. */
export interface ThreadError {
  readonly name: string
  readonly message: string
  readonly stack: string | undefined
  readonly code: string | undefined
  readonly delayMs: number | undefined
  readonly pauseGroupMs: number | undefined
}

/** A verdict by hand, or a renewal. */
export type ThreadVerb =
  | { readonly kind: 'accept' }
  | {
      readonly kind: 'release'
      readonly delayMs: number | undefined
      readonly pauseGroupMs: number | undefined
    }
  | {
      readonly kind: 'retry'
      readonly error: ThreadError | undefined
      readonly delayMs: number | undefined
    }
  | { readonly kind: 'reject'; readonly error: ThreadError | undefined }
  | { readonly kind: 'renew'; readonly leaseMs: number | undefined }

export type ToThread =
  | { readonly kind: 'job'; readonly id: number; readonly record: ThreadRecord }
  | { readonly kind: 'abort'; readonly id: number; readonly error: ThreadError }
  | {
      readonly kind: 'answer'
      readonly call: number
      readonly error: ThreadError | undefined
      readonly leaseExpiresAt: number
    }

export type FromThread =
  | { readonly kind: 'ready' }
  | { readonly kind: 'unusable'; readonly error: ThreadError }
  | { readonly kind: 'returned'; readonly id: number; readonly result: unknown }
  | { readonly kind: 'threw'; readonly id: number; readonly error: ThreadError }
  | { readonly kind: 'call'; readonly id: number; readonly call: number; readonly verb: ThreadVerb }

/** Never throws, whatever was thrown, and what it returns can always cross. */
export function toThreadError(error: unknown): ThreadError {
  try {
    return readError(error)
  } catch {
    return { ...NOTHING_MORE, name: typeof error, message: 'what was thrown cannot be read' }
  }
}

const NOTHING_MORE = {
  stack: undefined,
  code: undefined,
  delayMs: undefined,
  pauseGroupMs: undefined,
} as const

function readError(error: unknown): ThreadError {
  if (!(error instanceof Error)) {
    return { ...NOTHING_MORE, name: typeof error, message: textOf(error) }
  }
  const { message, stack, code, delayMs, pauseGroupMs } = error as {
    readonly [field in 'message' | 'stack' | 'code' | 'delayMs' | 'pauseGroupMs']?: unknown
  } // Any error may have these, of any type.
  return {
    name: kindOf(error),
    message: textOf(message ?? ''),
    stack: typeof stack === 'string' ? stack : undefined,
    code: typeof code === 'string' ? code : undefined,
    delayMs: typeof delayMs === 'number' ? delayMs : undefined,
    pauseGroupMs: typeof pauseGroupMs === 'number' ? pauseGroupMs : undefined,
  }
}

const OWN_KINDS: readonly string[] = ['RejectError', 'ReleaseError', 'RetryError']

/** Of a subclass of ours the name that says what to do with it. */
function kindOf(error: Error): string {
  for (
    let prototype: unknown = Object.getPrototypeOf(error);
    typeof prototype === 'object' && prototype !== null;
    prototype = Object.getPrototypeOf(prototype)
  ) {
    const name: unknown = (prototype as { constructor?: { name?: unknown } }).constructor?.name
    if (typeof name === 'string' && OWN_KINDS.includes(name)) return name
  }
  const { name } = error as { name?: unknown }
  return typeof name === 'string' ? name : 'Error'
}

/** The error on the other side: a MillraceError when it has a code of ours, else an Error with the name that it had. */
export function fromThreadError(error: ThreadError): Error {
  const { name, message, stack, code, delayMs, pauseGroupMs } = error
  if (code !== undefined && isErrorCode(code) && name === 'MillraceError') {
    return new MillraceError(code, message)
  }
  const made = Object.assign(
    new Error(message),
    code === undefined ? {} : { code },
    delayMs === undefined ? {} : { delayMs },
    pauseGroupMs === undefined ? {} : { pauseGroupMs },
  )
  Object.defineProperty(made, 'name', { value: name, configurable: true })
  if (stack !== undefined) {
    Object.defineProperty(made, 'stack', { value: stack, configurable: true })
  }
  return made
}
