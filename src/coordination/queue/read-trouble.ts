import type { CancelTimer, Clock } from '../../common/clock.ts'
import type { BrokerError } from '../../common/errors.ts'
import { SECOND_MS } from '../../common/units.ts'

/** A log that cannot be read is tried again after this. */
const TROUBLE_MS: number = 5 * SECOND_MS

/** Why a partition cannot be read, and whether it is time to try again. */
export class ReadTrouble {
  readonly #clock: Clock
  readonly #wake: () => void
  #error: BrokerError | undefined
  #untilMs = 0
  #cancel: CancelTimer | undefined

  /** `wake` is called when it is time to try again. */
  constructor(clock: Clock, wake: () => void) {
    this.#clock = clock
    this.#wake = wake
  }

  get error(): BrokerError | undefined {
    return this.#error
  }

  /** It is too early to try again. */
  get isFresh(): boolean {
    return this.#error !== undefined && this.#clock.monotonicMs() < this.#untilMs
  }

  note(error: BrokerError): void {
    this.#error = error
    this.#untilMs = this.#clock.monotonicMs() + TROUBLE_MS
    this.#cancel?.()
    this.#cancel = this.#clock.schedule(TROUBLE_MS, this.#wake)
  }

  /** It could be read. */
  clear(): void {
    this.#error = undefined
  }

  close(): void {
    this.#cancel?.()
  }
}
