import type { Random } from '../common/random.ts'

const FIRST_DELAY_MS = 20
const LONGEST_DELAY_MS = 1_000

/**
 * Delays between tries: 20 ms doubling up to 1 s, each drawn from its upper half, so that clients that lost the same broker do not come
 * back in step.
 */
export class Backoff {
  readonly #random: Random
  #tries = 0

  constructor(random: Random) {
    this.#random = random
  }

  /** Tries since the last success. */
  get tries(): number {
    return this.#tries
  }

  nextDelayMs(): number {
    const fullMs = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(this.#tries, 16))
    this.#tries++
    return Math.ceil(fullMs / 2 + (fullMs / 2) * (this.#random.uint32() / 2 ** 32))
  }

  reset(): void {
    this.#tries = 0
  }
}
