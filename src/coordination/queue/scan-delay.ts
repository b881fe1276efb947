import type { CancelTimer, Clock } from '../../common/clock.ts'
import { LONGEST_TIMER_MS } from './retry-timer.ts'

/** Until when the records of one partition are not looked at (`queue.delay.ms`), by the wall clock. */
export class ScanDelay {
  readonly #clock: Clock
  readonly #wake: () => void
  #untilMs = 0
  #cancel: CancelTimer | undefined

  /** `wake` is called when it is over. */
  constructor(clock: Clock, wake: () => void) {
    this.#clock = clock
    this.#wake = wake
  }

  /** On the wall clock; 0: nothing waits. */
  get untilMs(): number {
    return this.#untilMs
  }

  get isOver(): boolean {
    return this.#untilMs === 0 || this.#untilMs <= this.#clock.wallMs()
  }

  waitUntil(dueMs: number): void {
    this.#untilMs = dueMs
    this.#cancel?.()
    const delayMs = Math.min(LONGEST_TIMER_MS, Math.max(1, dueMs - this.#clock.wallMs()))
    this.#cancel = this.#clock.schedule(delayMs, () => {
      // It may have been further off than a timer goes, or the clock was set back.
      if (this.#untilMs > this.#clock.wallMs()) this.waitUntil(this.#untilMs)
      else this.#wake()
    })
  }

  /** The setting is another one: whoever looks next finds out anew. */
  forget(): void {
    this.#untilMs = 0
  }

  close(): void {
    this.#cancel?.()
  }
}
