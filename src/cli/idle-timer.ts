/** `--idle`: calls `onIdle` when nothing has come for so long. Without a time it never does. */
export class IdleTimer {
  readonly #idleMs: number | undefined
  readonly #onIdle: () => void
  #timer: NodeJS.Timeout | undefined
  #timerMs = 0

  constructor(idleMs: number | undefined, onIdle: () => void) {
    this.#idleMs = idleMs
    this.#onIdle = onIdle
  }

  /** Something has come: the wait begins anew. This time it lasts `atLeastMs` at least. */
  touch(atLeastMs = 0): void {
    if (this.#idleMs === undefined) return
    const waitMs = Math.max(this.#idleMs, atLeastMs)
    // Once per batch: the usual wait is wound up again instead of being made anew.
    if (this.#timer !== undefined && waitMs === this.#timerMs) {
      this.#timer.refresh()
      return
    }
    clearTimeout(this.#timer)
    this.#timer = setTimeout(this.#onIdle, waitMs)
    this.#timerMs = waitMs
  }

  end(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
  }
}
