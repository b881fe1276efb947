import type { CancelTimer, Clock } from '../../src/common/clock.ts'
import { invariant } from '../../src/common/assert.ts'

/** 2026-01-01T00:00:00Z, so that stamps in failing tests are easy to read. */
const DEFAULT_WALL_MS = 1_767_225_600_000

interface Timer {
  readonly dueMs: number
  readonly fire: () => void
  cancelled: boolean
}

/** Lets everything that can run without time passing run: microtasks, and what they start in turn. */
export function settle(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve)
  })
}

/** A clock that moves only when told. Timers fire in order of due time, those of one instant in order of scheduling. */
export class FakeClock implements Clock {
  #monotonicMs = 0
  #wallAheadMs: number
  /** Sorted by due time; equal ones in order of scheduling. */
  readonly #timers: Timer[] = []

  constructor(wallMs: number = DEFAULT_WALL_MS) {
    this.#wallAheadMs = wallMs
  }

  wallMs(): number {
    return this.#monotonicMs + this.#wallAheadMs
  }

  monotonicMs(): number {
    return this.#monotonicMs
  }

  schedule(delayMs: number, fire: () => void): CancelTimer {
    invariant(delayMs >= 0, `a delay is 0 or more, not ${delayMs}`)
    const timer: Timer = { dueMs: this.#monotonicMs + delayMs, fire, cancelled: false }
    let low = 0
    let high = this.#timers.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#timers[middle]?.dueMs ?? Infinity) <= timer.dueMs) low = middle + 1
      else high = middle
    }
    this.#timers.splice(low, 0, timer)
    return () => {
      if (timer.cancelled) return
      timer.cancelled = true
      const at = this.#timers.indexOf(timer)
      if (at >= 0) this.#timers.splice(at, 1)
    }
  }

  /**
   * Moves both times on by `byMs`, stopping at each timer that falls due on the way to fire it; whatever a timer sets going without
   * waiting for time (promises, other timers that are due by then) runs before the next one fires.
   */
  async advance(byMs: number): Promise<void> {
    invariant(byMs >= 0, `time goes forward, not by ${byMs}`)
    const untilMs = this.#monotonicMs + byMs
    await settle()
    for (;;) {
      const next = this.#timers[0]
      if (next === undefined || next.dueMs > untilMs) break
      this.#timers.shift()
      next.cancelled = true
      this.#monotonicMs = Math.max(this.#monotonicMs, next.dueMs)
      next.fire()
      await settle()
    }
    this.#monotonicMs = Math.max(this.#monotonicMs, untilMs)
  }

  /** Steps the wall clock, either way, as an administrator or NTP does. Monotonic time and timers do not notice. */
  setWall(wallMs: number): void {
    this.#wallAheadMs = wallMs - this.#monotonicMs
  }

  /** Timers that are set and have neither fired nor been cancelled. */
  get pendingTimers(): number {
    return this.#timers.length
  }

  /** Milliseconds until the next timer is due, or undefined when none is set. */
  get nextDueInMs(): number | undefined {
    const next = this.#timers[0]
    return next === undefined ? undefined : next.dueMs - this.#monotonicMs
  }
}
