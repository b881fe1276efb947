/** Buckets per power of two: a value is known to 1 part in 128, better than 0.8 %. */
const SUB_BITS = 7
const SUB_BUCKETS: number = 2 ** SUB_BITS
/** Values up to 2^31 µs, 35 minutes; larger ones are counted as that. */
const LARGEST: number = 2 ** 31 - 1
const BUCKETS: number = (31 - SUB_BITS + 1) * SUB_BUCKETS

/**
 * Counts of latencies in microseconds, in log-linear buckets as HdrHistogram has them. Recording costs about 5 ns and never allocates, so that
 * measuring does not become what is measured.
 */
export class Histogram {
  readonly #counts: Float64Array
  #total = 0
  #max = 0
  #sum = 0

  /** With counts: what {@link toCounts} of another one has given, perhaps in another process. */
  constructor(counts?: HistogramCounts) {
    this.#counts =
      counts === undefined ? new Float64Array(BUCKETS) : Float64Array.from(counts.counts)
    if (counts === undefined) return
    this.#total = this.#counts.reduce((sum, count) => sum + count, 0)
    this.#max = counts.max
    this.#sum = counts.sum
  }

  get count(): number {
    return this.#total
  }

  /** Microseconds, exact. 0 while empty. */
  get max(): number {
    return this.#max
  }

  /** Microseconds. NaN while empty. */
  get mean(): number {
    return this.#sum / this.#total
  }

  record(microseconds: number): void {
    const value = microseconds < 0 ? 0 : microseconds > LARGEST ? LARGEST : Math.round(microseconds)
    const index = indexOf(value)
    this.#counts[index] = this.#counts[index]! + 1
    this.#total++
    this.#sum += value
    if (value > this.#max) this.#max = value
  }

  add(other: HistogramCounts): void {
    for (const [index, count] of other.counts.entries()) {
      this.#counts[index] = (this.#counts[index] ?? 0) + count
      this.#total += count
    }
    this.#sum += other.sum
    if (other.max > this.#max) this.#max = other.max
  }

  /** The least value that at least `percent` of all values do not exceed, in microseconds. NaN while empty. */
  percentile(percent: number): number {
    if (this.#total === 0) return NaN
    const wanted = Math.max(1, Math.ceil((percent / 100) * this.#total))
    let seen = 0
    for (const [index, count] of this.#counts.entries()) {
      seen += count
      if (seen >= wanted) return Math.min(topOf(index), this.#max)
    }
    return this.#max
  }

  toCounts(): HistogramCounts {
    return { counts: this.#counts, max: this.#max, sum: this.#sum }
  }
}

/** A histogram as plain data, for another process. */
export interface HistogramCounts {
  readonly counts: Float64Array
  readonly max: number
  readonly sum: number
}

function indexOf(value: number): number {
  const shift = 31 - SUB_BITS - Math.clz32(value | SUB_BUCKETS)
  // Below 2 * SUB_BUCKETS every value has its own bucket; above, each power of two has SUB_BUCKETS of them.
  return (shift << SUB_BITS) + (value >>> shift)
}

/** The largest value of a bucket. */
function topOf(index: number): number {
  const shift = index < 2 * SUB_BUCKETS ? 0 : (index >>> SUB_BITS) - 1
  const base = index - (shift << SUB_BITS)
  return (base + 1) * 2 ** shift - 1
}
