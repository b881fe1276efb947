import { Ring } from '../bytes/ring.ts'
import type { Clock } from '../common/clock.ts'

interface Waiting {
  readonly cost: number
  readonly action: () => void
}

/**
 * Spreads work over turns of the event loop: as much in one turn as `costPerTurn` allows, the rest in later ones, in order. For floods, such as a
 * thousand members that join at once, which must not hold up everyone else. A clock cannot tell when to stop, since much of what an action costs
 * comes after it, when gRPC encodes and writes; so actions say what they cost.
 */
export class TurnGate {
  readonly #clock: Clock
  readonly #costPerTurn: number
  readonly #waiting = new Ring<Waiting>()
  #left: number
  #isTurnEnding = false

  /** `costPerTurn` is in the unit of the costs, whatever that is. An action that costs more than all of it has a turn of its own. */
  constructor(clock: Clock, costPerTurn: number) {
    this.#clock = clock
    this.#costPerTurn = costPerTurn
    this.#left = costPerTurn
  }

  /** Calls `action` now, or in a later turn when this one is used up. `action` must not throw. */
  enter(cost: number, action: () => void): void {
    this.#waiting.push({ cost, action })
    this.#letThrough()
  }

  /** Resolves when it is this caller's turn. */
  async pass(cost: number): Promise<void> {
    if (this.#left > 0 && this.#waiting.length === 0) {
      this.enter(cost, () => undefined)
      return
    }
    await new Promise<void>((resolve) => this.enter(cost, resolve))
  }

  #letThrough(): void {
    while (this.#left > 0) {
      const next = this.#waiting.shift()
      if (next === undefined) break
      this.#left -= next.cost
      next.action()
    }
    if (this.#left === this.#costPerTurn || this.#isTurnEnding) return
    this.#isTurnEnding = true
    this.#clock.schedule(0, () => {
      this.#isTurnEnding = false
      this.#left = this.#costPerTurn
      this.#letThrough()
    })
  }
}
