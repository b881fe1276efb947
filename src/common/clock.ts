/** Ends a timer. Calling it again, or after it has fired, does nothing. */
export type CancelTimer = () => void

/**
 * Time as the core sees it. Everything under src/ but this file and cli/ asks a Clock, so that a whole broker
 * can run in a test on a fake one; lint bans Date.now, performance.now and setTimeout elsewhere.
 */
export interface Clock {
  /** Milliseconds since the epoch, UTC. May jump either way. For stamps that people see. */
  wallMs(): number
  /** Milliseconds since some fixed start, never going back. For timeouts, leases and sessions. */
  monotonicMs(): number
  /** Calls `fire` once, `delayMs` (0 or more) from now. Does not keep the process alive. */
  schedule(delayMs: number, fire: () => void): CancelTimer
}

/** setTimeout wraps round above this. A longer delay waits in steps. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1

export const systemClock: Clock = {
  wallMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  schedule(delayMs, fire) {
    let timer: NodeJS.Timeout
    const wait = (leftMs: number): void => {
      const stepMs = Math.min(leftMs, LONGEST_TIMEOUT_MS)
      timer = setTimeout(() => (leftMs > stepMs ? wait(leftMs - stepMs) : fire()), stepMs)
      timer.unref()
    }
    wait(delayMs)
    return () => clearTimeout(timer)
  },
}

/** Resolves after `delayMs` on `clock`, or as soon as `signal` aborts: the caller looks at the signal. */
export function sleep(clock: Clock, delayMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted === true) {
      resolve()
      return
    }
    const done = (): void => {
      cancel()
      signal?.removeEventListener('abort', done)
      resolve()
    }
    const cancel = clock.schedule(delayMs, done)
    signal?.addEventListener('abort', done, { once: true })
  })
}

/**
 * Keeps the process alive until cancelled. Timers of {@link systemClock} do not, so a client that waits for a broker to come back would
 * otherwise let a program end in the middle of an `await`.
 */
export function holdProcess(): CancelTimer {
  const timer = setInterval(() => undefined, LONGEST_TIMEOUT_MS)
  return () => clearInterval(timer)
}
