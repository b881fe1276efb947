import { sleep } from '../../common/clock.ts'
import type { Clock } from '../../common/clock.ts'
import { BrokerError } from '../../common/errors.ts'

/** Work goes on for this long before others get a turn: far below what a producer's latency would show. */
const SLICE_MS = 4

/** Somebody who was at work this recently still is. */
const BUSY_MS = 100

/**
 * Makes room for others: after each slice of work it rests, for no longer than a turn of the event loop while nobody else is at work, and for so
 * long that the work takes no more than its `share` of the time while somebody is.
 */
export class Pacer {
  readonly #clock: Clock
  readonly #activity: { readonly count: number }
  readonly #share: number
  readonly #signal: AbortSignal
  #workMs = 0
  #sinceMs: number
  #seenCount: number
  #busyUntilMs = -Infinity

  constructor(
    clock: Clock,
    activity: { readonly count: number },
    share: number,
    signal: AbortSignal,
  ) {
    this.#clock = clock
    this.#activity = activity
    this.#share = share
    this.#signal = signal
    this.#sinceMs = clock.monotonicMs()
    this.#seenCount = activity.count
  }

  /** Waits for `io`, which is no work of ours. @throws BrokerError CLOSED when the signal has been given */
  async waiting<T>(io: Promise<T>): Promise<T> {
    this.#workMs += this.#clock.monotonicMs() - this.#sinceMs
    const result = await io
    this.#sinceMs = this.#clock.monotonicMs()
    this.check()
    return result
  }

  /** To be called between small pieces of work, and awaited when it answers a promise. @throws BrokerError CLOSED */
  turn(): Promise<void> | undefined {
    const workMs = this.#workMs + this.#clock.monotonicMs() - this.#sinceMs
    return workMs < SLICE_MS ? undefined : this.#rest(workMs)
  }

  async #rest(workMs: number): Promise<void> {
    const nowMs = this.#clock.monotonicMs()
    if (this.#activity.count !== this.#seenCount) this.#busyUntilMs = nowMs + BUSY_MS
    this.#seenCount = this.#activity.count
    const isBusy = nowMs < this.#busyUntilMs
    await sleep(this.#clock, isBusy ? workMs * (1 / this.#share - 1) : 0, this.#signal)
    this.#workMs = 0
    this.#sinceMs = this.#clock.monotonicMs()
    this.check()
  }

  /** @throws BrokerError CLOSED when the signal has been given */
  check(): void {
    if (this.#signal.aborted) throw new BrokerError('CLOSED', 'the compaction has been stopped')
  }
}
