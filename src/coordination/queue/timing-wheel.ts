import type { CancelTimer, Clock } from '../../common/clock.ts'
import { invariant } from '../../common/assert.ts'
import { HOUR_MS } from '../../common/units.ts'

/**
 * What waits in a {@link TimingWheel}: a field set of an object that its owner keeps anyway, so that a lease costs the wheel no object.
 * Begin with both places -1; only the wheel writes them.
 */
export interface WheelEntry {
  /**
   * When it is due, on the monotonic clock. May be moved later at any time by writing it: the wheel notices when it comes by. To move it
   * earlier, remove the entry and add it again.
   */
  deadlineMs: number
  wheelSlot: number
  wheelIndex: number
}

export interface TimingWheelOptions {
  /** How late an entry may be at most. 100 by default. */
  readonly tickMs?: number | undefined
  /** Ticks until the wheel has gone round. 512 by default; an entry further off is met, and left, once a round. */
  readonly slots?: number | undefined
}

/** No timer is longer, so that no platform's idea of a long one matters. */
const LONGEST_TIMER_MS = HOUR_MS

/**
 * Deadlines by the hundred thousand under one timer (hashed wheel, Varghese and Lauck 1987): adding, removing and moving later are O(1), and
 * nothing ticks while nothing waits. Never early; at most one tick late while the process is not busy.
 */
export class TimingWheel<T extends WheelEntry> {
  readonly #clock: Clock
  readonly #tickMs: number
  readonly #slots: T[][]
  readonly #onExpired: (entries: readonly T[]) => void
  #size = 0
  /** The last tick that has been looked at. */
  #doneTick = 0
  /** The tick that the timer waits for; Infinity without one. */
  #armedTick = Infinity
  #cancelTimer: CancelTimer | undefined = undefined
  #isClosed = false

  /** `onExpired` gets all that is due, out of the wheel already, at most once a tick; what it adds is due a tick later at the earliest. */
  constructor(
    clock: Clock,
    onExpired: (entries: readonly T[]) => void,
    options: TimingWheelOptions = {},
  ) {
    this.#clock = clock
    this.#onExpired = onExpired
    this.#tickMs = options.tickMs ?? 100
    this.#slots = Array.from({ length: options.slots ?? 512 }, () => [])
    invariant(this.#tickMs > 0, 'a tick of the wheel takes time')
    invariant(this.#slots.length > 1, 'a wheel has two slots or more')
  }

  get size(): number {
    return this.#size
  }

  /** A deadline that has passed is due at the next tick. Nothing in a closed wheel is ever due. */
  add(entry: T): void {
    invariant(entry.wheelSlot < 0, 'the entry is in no wheel')
    invariant(Number.isFinite(entry.deadlineMs), 'a deadline is a time')
    if (this.#size === 0) this.#doneTick = this.#tickNow()
    this.#put(entry)
    this.#size++
    const tick = this.#tickOf(entry)
    if (tick < this.#armedTick) this.#arm(tick)
  }

  /** Nothing happens when it is not in the wheel: it may just have expired. */
  remove(entry: T): void {
    if (entry.wheelSlot < 0) return
    this.#take(entry)
    this.#size--
    if (this.#size === 0) this.#disarm()
  }

  /** Drops every entry and the timer. */
  close(): void {
    this.#isClosed = true
    this.#disarm()
    for (const slot of this.#slots) {
      for (const entry of slot) entry.wheelSlot = entry.wheelIndex = -1
      slot.length = 0
    }
    this.#size = 0
  }

  #tickNow(): number {
    return Math.floor(this.#clock.monotonicMs() / this.#tickMs)
  }

  /** The first tick at which the entry is due, and that is still to come. */
  #tickOf(entry: T): number {
    return Math.max(Math.ceil(entry.deadlineMs / this.#tickMs), this.#doneTick + 1)
  }

  #put(entry: T): void {
    const slotAt = this.#tickOf(entry) % this.#slots.length
    const slot = this.#slots[slotAt]! // The remainder is in range.
    entry.wheelSlot = slotAt
    entry.wheelIndex = slot.length
    slot.push(entry)
  }

  #take(entry: T): void {
    const slot = this.#slots[entry.wheelSlot]! // Only the wheel writes the places.
    const last = slot.pop()!
    if (last !== entry) {
      slot[entry.wheelIndex] = last
      last.wheelIndex = entry.wheelIndex
    }
    entry.wheelSlot = entry.wheelIndex = -1
  }

  #arm(tick: number): void {
    this.#cancelTimer?.()
    this.#cancelTimer = undefined
    this.#armedTick = Infinity
    if (this.#isClosed) return
    this.#armedTick = tick
    const delayMs = tick * this.#tickMs - this.#clock.monotonicMs()
    this.#cancelTimer = this.#clock.schedule(Math.min(Math.max(0, delayMs), LONGEST_TIMER_MS), () =>
      this.#turn(),
    )
  }

  #disarm(): void {
    this.#cancelTimer?.()
    this.#cancelTimer = undefined
    this.#armedTick = Infinity
  }

  /** Looks at every slot that has come by since the last time. */
  #turn(): void {
    const nowMs = this.#clock.monotonicMs()
    const nowTick = this.#tickNow()
    const due: T[] = []
    // After a long sleep one round is enough: it meets every entry.
    const firstTick = Math.max(this.#doneTick + 1, nowTick - this.#slots.length + 1)
    this.#doneTick = Math.max(this.#doneTick, nowTick)
    for (let tick = firstTick; tick <= nowTick; tick++) this.#sweep(tick, nowMs, due)
    this.#size -= due.length
    if (this.#size === 0) this.#disarm()
    else this.#arm(this.#findNextTick())
    if (due.length > 0) this.#onExpired(due)
  }

  /** Moves what is due from one slot to `due`, and what has been given more time to where that ends. */
  #sweep(tick: number, nowMs: number, due: T[]): void {
    const slotAt = tick % this.#slots.length
    const slot = this.#slots[slotAt]! // The remainder is in range.
    // Backwards, because taking one out moves the last into its place.
    for (let at = slot.length - 1; at >= 0; at--) {
      const entry = slot[at]! // Within the length.
      if (entry.deadlineMs <= nowMs) {
        this.#take(entry)
        due.push(entry)
      } else if (this.#tickOf(entry) % this.#slots.length !== slotAt) {
        this.#take(entry)
        this.#put(entry)
      }
    }
  }

  /** The next tick whose slot holds something, be it for a later round. */
  #findNextTick(): number {
    for (let ahead = 1; ahead < this.#slots.length; ahead++) {
      const tick = this.#doneTick + ahead
      if (this.#slots[tick % this.#slots.length]!.length > 0) return tick
    }
    return this.#doneTick + this.#slots.length
  }
}
