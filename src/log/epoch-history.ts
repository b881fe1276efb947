import type { Offset } from '../common/offset.ts'

export interface EpochStart {
  readonly epoch: number
  readonly startOffset: Offset
}

/** More entries than this are not kept. Batches below the first that is known are only checked against its epoch as an upper bound. */
const MOST_ENTRIES = 1024

/**
 * Which leader epoch wrote which offsets. It lets a read check the one header field of a batch that no checksum covers and that no
 * arithmetic fixes.
 */
export class EpochHistory {
  #starts: EpochStart[] = []
  /** True while entry 0 is where the log itself begins, so that nothing older is missing. */
  #complete = true

  static from(starts: readonly EpochStart[], complete: boolean): EpochHistory {
    const history = new EpochHistory()
    history.#starts = [...starts]
    history.#complete = complete
    return history
  }

  get starts(): readonly EpochStart[] {
    return this.#starts
  }

  get complete(): boolean {
    return this.#complete
  }

  get latest(): number {
    return this.#starts.at(-1)?.epoch ?? 0
  }

  /** Notes that the batch at `offset` has `epoch`. Called in order; cheap when nothing changes. */
  note(epoch: number, offset: Offset): void {
    const last = this.#starts.at(-1)
    if (last !== undefined && last.epoch >= epoch) return
    this.#starts.push({ epoch, startOffset: offset })
    if (this.#starts.length > MOST_ENTRIES) {
      this.#starts.shift()
      this.#complete = false
    }
  }

  /** True when a batch at `offset` may carry `epoch`. */
  allows(epoch: number, offset: Offset): boolean {
    for (let i = this.#starts.length - 1; i >= 0; i--) {
      const start = this.#starts[i]
      if (start !== undefined && start.startOffset <= offset) return start.epoch === epoch
    }
    return !this.#complete && epoch <= (this.#starts[0]?.epoch ?? Infinity)
  }

  /** Forgets what lies at or above `end`: it never reached the disk. */
  rollBackTo(end: Offset): void {
    while ((this.#starts.at(-1)?.startOffset ?? -1) >= end) this.#starts.pop()
  }

  /** Drops entries that only speak of offsets below the log start. A reader may still have to pass over those to reach it. */
  dropBelow(offset: Offset): void {
    while (this.#starts.length > 1 && (this.#starts[1]?.startOffset ?? Infinity) <= offset) {
      this.#starts.shift()
      this.#complete = false
    }
  }
}
