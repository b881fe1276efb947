import type { Clock } from '../common/clock.ts'

/** Longer than this a program that never really waits does not keep the event loop: heartbeats, commits and what comes in have to have their turn. */
const LONGEST_STRETCH_MS = 20
/** Looking at the clock costs 40 ns: for fast work it is done once in so many steps, for slow work at each. */
const MOST_STEPS = 256
const SLOW_STEP_MS = 5

/** Lets the event loop go round now and then, in loops that would go on without end as long as there is work. */
export class Breather {
  readonly #clock: Clock
  #left = 1
  #steps = 1
  #lastLookMs = 0
  #lastBreathMs = 0

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Asked once for each step. True: {@link look} now. */
  isDue(): boolean {
    this.#left--
    return this.#left <= 0
  }

  /** True when the loop has to go round before the next step: {@link breathe}. */
  look(): boolean {
    const nowMs = this.#clock.monotonicMs()
    const isSlow = nowMs - this.#lastLookMs > SLOW_STEP_MS
    this.#steps = isSlow ? Math.max(1, this.#steps >> 2) : Math.min(MOST_STEPS, this.#steps * 2)
    this.#left = this.#steps
    this.#lastLookMs = nowMs
    return nowMs - this.#lastBreathMs > LONGEST_STRETCH_MS
  }

  breathe(): Promise<void> {
    return new Promise((resolve) => {
      setImmediate(() => {
        this.#lastBreathMs = this.#lastLookMs = this.#clock.monotonicMs()
        resolve()
      })
    })
  }
}
