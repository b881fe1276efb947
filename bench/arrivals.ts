/** When records of each partition came, whoever got them. */
export class Arrivals {
  readonly #times: number[][]

  constructor(partitions: number) {
    this.#times = Array.from({ length: partitions }, () => [])
  }

  note(partition: number, nowMs: number): void {
    this.#times[partition]?.push(nowMs)
  }

  /**
   * The longest time within `[fromMs, untilMs)` in which nothing of the partition came: between two arrivals of which the second lies within, or from
   * the last one until the end. The whole time when nothing came at all.
   */
  longestPauseMs(partition: number, fromMs: number, untilMs: number): number {
    let longest = 0
    let last: number | undefined
    for (const time of this.#times[partition] ?? []) {
      if (time >= untilMs) break
      if (time >= fromMs) longest = Math.max(longest, time - (last ?? fromMs))
      last = time
    }
    return Math.max(longest, untilMs - Math.max(last ?? fromMs, fromMs))
  }
}

/** The value in the middle; of an even number, the mean of the two. NaN when there is none. */
export function medianOf(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const upper = sorted[sorted.length >> 1] ?? NaN
  const lower = sorted[(sorted.length - 1) >> 1] ?? NaN
  return (lower + upper) / 2
}
