import { DueHeap } from './due-heap.ts'
import type { LeaseHolder } from './lease.ts'
import { isolate, type Offer } from './offer.ts'
import type { QueueConfig } from './queue-config.ts'
import type { QueueState } from './queue-state.ts'

/** Available runs that are looked at for one that a member may have. */
const MOST_PASSED_OVER = 32

/** Which records come again next where keys do not matter: the oldest. Runs are known by their first offsets; what is out of date is found out when it comes up. */
export class AvailableRuns {
  readonly #queue: { readonly state: QueueState; readonly config: QueueConfig }
  readonly #firsts = new DueHeap()

  constructor(queue: { readonly state: QueueState; readonly config: QueueConfig }) {
    this.#queue = queue
  }

  /** Those that are out of date among them. */
  get length(): number {
    return this.#firsts.length
  }

  add(first: number): void {
    this.#firsts.push(first, first)
  }

  /** The oldest that this member may have. It stays where it is until it is {@link take}n. */
  offer(holder: LeaseHolder): Offer | undefined {
    const { state, config } = this.#queue
    const passedOver: number[] = []
    let offer: Offer | undefined
    while (passedOver.length < MOST_PASSED_OVER) {
      const first = this.#firsts.peekOffset()
      if (first === undefined) break
      const run = state.find(first)
      if (run?.state !== 'available') {
        this.#firsts.pop()
        continue
      }
      const isolated = isolate(run, config.maxAttempts)
      if (isolated.isLastChance && holder.lastChances > 0) {
        this.#firsts.pop()
        passedOver.push(first)
        continue
      }
      offer = {
        first,
        end: run.end,
        run,
        most: config.order === 'partition' ? 1 : isolated.most,
        isLastChance: isolated.isLastChance,
        keyed: undefined,
      }
      break
    }
    for (const first of passedOver) this.add(first)
    return offer
  }

  /** The first of what was offered goes out: `first` as it was offered, up to `end` of a run that ends at `runEnd`. */
  take(first: number, end: number, runEnd: number): void {
    // What was passed over may come before it: then its own entry is found out of date later.
    if (this.#firsts.peekOffset() === first) this.#firsts.pop()
    if (end < runEnd) this.add(end)
  }
}
