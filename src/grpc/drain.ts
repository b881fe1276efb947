import { setMaxListeners } from 'node:events'
import type { Clock } from '../common/clock.ts'
import { BrokerError } from '../common/errors.ts'

/** The end of a broker's life as the calls see it: new ones are refused, those under way are counted until none is left. */
export class Drain {
  #draining = false
  #active = 0
  #waiters: (() => void)[] = []
  readonly #controller = new AbortController()

  constructor() {
    // Every stream that follows listens.
    setMaxListeners(0, this.#controller.signal)
  }

  /** Aborts when draining begins: for streams that would go on for ever. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  get draining(): boolean {
    return this.#draining
  }

  get active(): number {
    return this.#active
  }

  /** @throws BrokerError BROKER_DRAINING */
  check(): void {
    if (this.#draining) throw drainingError()
  }

  enter(): void {
    this.#active++
  }

  leave(): void {
    this.#active--
    if (this.#active > 0) return
    const waiters = this.#waiters
    this.#waiters = []
    for (const wake of waiters) wake()
  }

  begin(): void {
    if (this.#draining) return
    this.#draining = true
    this.#controller.abort()
  }

  /** Resolves when no call is left, true, or after `timeoutMs`, false. */
  idle(clock: Clock, timeoutMs: number): Promise<boolean> {
    if (this.#active === 0) return Promise.resolve(true)
    return new Promise((resolve) => {
      const cancel = clock.schedule(timeoutMs, () => resolve(this.#active === 0))
      this.#waiters.push(() => {
        cancel()
        resolve(true)
      })
    })
  }
}

export function drainingError(): BrokerError {
  return new BrokerError('BROKER_DRAINING', 'the broker is stopping and takes no new work')
}
