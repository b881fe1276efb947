import { invariant } from '../../common/assert.ts'

/** `max` tokens come in `durationMs`, evenly, and up to `burst` of them are kept. All above 0. */
export interface BucketLimits {
  readonly max: number
  readonly durationMs: number
  readonly burst: number
}

/** The level is a sum of fractions: a token that is short by less than this is there. */
const EPSILON = 1e-9

/**
 * A rate limit: in any span of time at most `burst` and what flows in during it are taken. Times are on the monotonic clock; one that goes
 * back counts as standing still.
 */
export class TokenBucket {
  #limits: BucketLimits
  #level: number
  #atMs: number

  /**
   * `empty` is for a group that has run before: a broker that fills its buckets at every start would double the rate of one that restarts
   * (SEMANTICS §3.9).
   */
  constructor(limits: BucketLimits, initial: 'full' | 'empty', nowMs: number) {
    checkLimits(limits)
    this.#limits = limits
    this.#level = initial === 'full' ? limits.burst : 0
    this.#atMs = nowMs
  }

  /** Takes up to `wanted` whole tokens and returns how many it got. */
  take(nowMs: number, wanted: number): number {
    this.#flow(nowMs)
    const taken = Math.max(0, Math.min(Math.floor(wanted), Math.floor(this.#level + EPSILON)))
    this.#level = Math.max(0, this.#level - taken)
    return taken
  }

  /** Gives back tokens that were taken and not used. */
  give(count: number): void {
    invariant(count >= 0, 'tokens are given back, not taken')
    this.#level = Math.min(this.#limits.burst, this.#level + count)
  }

  /** When there will be a token, if none is taken before; `nowMs` when there is one already. */
  nextAtMs(nowMs: number): number {
    this.#flow(nowMs)
    const missing = 1 - this.#level
    if (missing <= EPSILON) return nowMs
    return this.#atMs + (missing * this.#limits.durationMs) / this.#limits.max
  }

  /** Other limits from now on. What has been saved stays, as far as the new burst goes. */
  setLimits(limits: BucketLimits, nowMs: number): void {
    checkLimits(limits)
    this.#flow(nowMs)
    this.#limits = limits
    this.#level = Math.min(this.#level, limits.burst)
  }

  #flow(nowMs: number): void {
    if (nowMs <= this.#atMs) return
    const { max, durationMs, burst } = this.#limits
    this.#level = Math.min(burst, this.#level + ((nowMs - this.#atMs) * max) / durationMs)
    this.#atMs = nowMs
  }
}

function checkLimits(limits: BucketLimits): void {
  invariant(limits.max > 0 && limits.durationMs > 0, 'a rate lets something through')
  invariant(limits.burst >= 1, 'a bucket holds a token')
}

/** How many keys are remembered (SEMANTICS §3.9). */
const MOST_KEYS = 100_000

interface KeyedBucket {
  readonly bucket: TokenBucket
  usedAtMs: number
}

/**
 * A bucket for each key, the most recently used kept. One that is not there is made as if it had been filling, untouched, since the buckets began; and,
 * once any has been dropped, since the last use of the one dropped last, so that being forgotten never gives a key more than its rate.
 */
export class KeyedBuckets {
  /** In order of last use: a map keeps the order of insertion. */
  readonly #buckets = new Map<string, KeyedBucket>()
  readonly #mostKeys: number
  #initial: 'full' | 'empty'
  #limits: BucketLimits
  #sinceMs: number

  constructor(
    limits: BucketLimits,
    initial: 'full' | 'empty',
    nowMs: number,
    mostKeys: number = MOST_KEYS,
  ) {
    checkLimits(limits)
    this.#limits = limits
    this.#initial = initial
    this.#sinceMs = nowMs
    this.#mostKeys = mostKeys
  }

  get size(): number {
    return this.#buckets.size
  }

  /** The bucket of a key, for now: do not keep it. */
  bucketOf(key: string, nowMs: number): TokenBucket {
    let entry = this.#buckets.get(key)
    if (entry === undefined) {
      if (this.#buckets.size >= this.#mostKeys) this.#dropOldest()
      const bucket = new TokenBucket(this.#limits, this.#initial, this.#sinceMs)
      entry = { bucket, usedAtMs: nowMs }
    } else {
      entry.usedAtMs = nowMs
      this.#buckets.delete(key)
    }
    this.#buckets.set(key, entry)
    return entry.bucket
  }

  /** Other limits from now on, for every key. */
  setLimits(limits: BucketLimits, nowMs: number): void {
    checkLimits(limits)
    for (const { bucket } of this.#buckets.values()) bucket.setLimits(limits, nowMs)
    this.#limits = limits
  }

  #dropOldest(): void {
    for (const [key, entry] of this.#buckets) {
      this.#buckets.delete(key)
      this.#sinceMs = Math.max(this.#sinceMs, entry.usedAtMs)
      this.#initial = 'empty'
      return
    }
  }
}
