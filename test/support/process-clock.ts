import type { CancelTimer, Clock } from '../../src/common/clock.ts'

/** Time as one broker process knows it: when the process is killed, nothing that it had planned happens any more. */
export class ProcessClock implements Clock {
  readonly #clock: Clock
  readonly #timers = new Set<CancelTimer>()
  #isKilled = false

  constructor(clock: Clock) {
    this.#clock = clock
  }

  wallMs(): number {
    return this.#clock.wallMs()
  }

  monotonicMs(): number {
    return this.#clock.monotonicMs()
  }

  schedule(delayMs: number, fire: () => void): CancelTimer {
    if (this.#isKilled) return () => undefined
    const cancel = this.#clock.schedule(delayMs, () => {
      this.#timers.delete(cancel)
      fire()
    })
    this.#timers.add(cancel)
    return () => {
      this.#timers.delete(cancel)
      cancel()
    }
  }

  kill(): void {
    this.#isKilled = true
    for (const cancel of this.#timers) cancel()
    this.#timers.clear()
  }
}
