import type { CancelTimer, Clock } from '../../common/clock.ts'
import { MINUTE_MS } from '../../common/units.ts'
import { DueHeap } from './due-heap.ts'

/** A timer does not notice that somebody moves the wall clock, by which retries are due: it looks again that often. */
export const LONGEST_TIMER_MS: number = MINUTE_MS

/** When the parked records of one partition are due: first offsets of their runs by time, and one timer for the earliest. */
export class RetryTimer {
  readonly #clock: Clock
  readonly #wake: () => void
  readonly #parked = new DueHeap()
  #cancel: CancelTimer | undefined
  #dueAtMs = Infinity
  #isClosed = false

  /** `wake` is called when something may be due; it takes that with {@link popDue}. */
  constructor(clock: Clock, wake: () => void) {
    this.#clock = clock
    this.#wake = wake
  }

  /** `dueMs` on the wall clock. */
  park(first: number, dueMs: number): void {
    this.#parked.push(dueMs, first)
    this.#arm()
  }

  /** The first offset of a run that was parked until `nowMs` or before; it may have been cut or woken since. */
  popDue(nowMs: number): number | undefined {
    return this.#parked.popDue(nowMs)
  }

  close(): void {
    this.#isClosed = true
    this.#cancel?.()
  }

  #arm(): void {
    const dueMs = this.#parked.peekDueMs()
    if (dueMs === undefined || this.#isClosed || dueMs >= this.#dueAtMs) return
    this.#cancel?.()
    this.#dueAtMs = dueMs
    const delayMs = Math.min(LONGEST_TIMER_MS, Math.max(0, dueMs - this.#clock.wallMs()))
    this.#cancel = this.#clock.schedule(delayMs, () => {
      this.#dueAtMs = Infinity
      this.#wake()
      this.#arm()
    })
  }
}
