import { describe, expect, it } from 'vitest'
import { array, assert, boolean, double, integer, property, record, tuple } from 'fast-check'
import { KeyedBuckets, TokenBucket } from '../../../src/coordination/queue/token-bucket.ts'

const anyLimits = record({
  max: integer({ min: 1, max: 1000 }),
  durationMs: integer({ min: 1, max: 100_000 }),
  burst: integer({ min: 1, max: 500 }),
})

/** Takes at rising times, and what each got. */
interface Taken {
  readonly atMs: number
  readonly count: number
}

/** In every window between two takes at most the burst and what flows in. */
function checkRate(
  takes: readonly Taken[],
  limits: { max: number; durationMs: number; burst: number },
): void {
  for (const [i, from] of takes.entries()) {
    let sum = 0
    for (const to of takes.slice(i)) {
      sum += to.count
      const flown = (limits.max * (to.atMs - from.atMs)) / limits.durationMs
      expect(sum).toBeLessThanOrEqual(limits.burst + flown + 1e-6)
    }
  }
}

describe('TokenBucket', () => {
  it('is full for a new group and empty after a restart', () => {
    const limits = { max: 10, durationMs: 1000, burst: 20 }
    expect(new TokenBucket(limits, 'full', 0).take(0, 100)).toBe(20)
    const empty = new TokenBucket(limits, 'empty', 500)
    expect(empty.take(500, 100)).toBe(0)
    expect(empty.take(1000, 100)).toBe(5)
  })

  it('gives whole tokens only, and says when the next one comes', () => {
    const bucket = new TokenBucket({ max: 3, durationMs: 1000, burst: 3 }, 'empty', 0)
    expect(bucket.take(333, 1)).toBe(0)
    const nextMs = bucket.nextAtMs(333)
    expect(nextMs).toBeCloseTo(1000 / 3)
    expect(bucket.take(nextMs, 1)).toBe(1)
    expect(bucket.nextAtMs(nextMs)).toBeCloseTo(2000 / 3)
    expect(bucket.nextAtMs(900)).toBe(900)
  })

  it('takes no more than is wanted, and keeps no more than the burst', () => {
    const bucket = new TokenBucket({ max: 10, durationMs: 100, burst: 5 }, 'full', 0)
    expect(bucket.take(10_000, 2)).toBe(2)
    expect(bucket.take(10_000, 0)).toBe(0)
    expect(bucket.take(10_000, -3)).toBe(0)
    expect(bucket.take(10_000, 9)).toBe(3)
  })

  it('has again what was given back, up to the burst', () => {
    const bucket = new TokenBucket({ max: 1, durationMs: 1000, burst: 4 }, 'full', 0)
    expect(bucket.take(0, 3)).toBe(3)
    bucket.give(2)
    expect(bucket.take(0, 9)).toBe(3)
    bucket.give(9)
    expect(bucket.take(0, 9)).toBe(4)
  })

  it('stands still when time goes back', () => {
    const bucket = new TokenBucket({ max: 1, durationMs: 1, burst: 10 }, 'empty', 100)
    expect(bucket.take(50, 9)).toBe(0)
    expect(bucket.take(101, 9)).toBe(1)
  })

  it('takes other limits without a gift', () => {
    const bucket = new TokenBucket({ max: 100, durationMs: 1000, burst: 100 }, 'full', 0)
    bucket.setLimits({ max: 1, durationMs: 1000, burst: 2 }, 0)
    expect(bucket.take(0, 100)).toBe(2)
    expect(bucket.take(1000, 100)).toBe(1)
    bucket.setLimits({ max: 1, durationMs: 1000, burst: 50 }, 1000)
    expect(bucket.take(1000, 100)).toBe(0)
  })

  it('never gives more than the burst and what flows in, in any window', () => {
    const takes = array(
      tuple(double({ min: 0, max: 5000, noNaN: true }), integer({ min: 0, max: 600 })),
      {
        maxLength: 40,
      },
    )
    assert(
      property(anyLimits, takes, boolean(), (limits, takes, isFull) => {
        const bucket = new TokenBucket(limits, isFull ? 'full' : 'empty', 0)
        let nowMs = 0
        const taken: Taken[] = [{ atMs: 0, count: 0 }]
        for (const [byMs, wanted] of takes) {
          nowMs += byMs
          taken.push({ atMs: nowMs, count: bucket.take(nowMs, wanted) })
        }
        checkRate(taken, limits)
      }),
    )
  })

  it('has a token when it said that it would, and not before', () => {
    assert(
      property(anyLimits, integer({ min: 0, max: 600 }), (limits, first) => {
        const bucket = new TokenBucket(limits, 'full', 0)
        bucket.take(0, first)
        const nextMs = bucket.nextAtMs(0)
        if (nextMs > 0) expect(bucket.take(nextMs * 0.999, 1)).toBe(0)
        expect(bucket.take(nextMs, 1)).toBe(1)
      }),
    )
  })
})

describe('KeyedBuckets', () => {
  const limits = { max: 1, durationMs: 1000, burst: 3 }

  it('keeps a rate for each key', () => {
    const buckets = new KeyedBuckets(limits, 'full', 0)
    expect(buckets.bucketOf('a', 0).take(0, 9)).toBe(3)
    expect(buckets.bucketOf('a', 0).take(0, 9)).toBe(0)
    expect(buckets.bucketOf('b', 0).take(0, 9)).toBe(3)
    expect(buckets.size).toBe(2)
  })

  it('lets a key that comes late begin with what has flowed in since the start', () => {
    const buckets = new KeyedBuckets(limits, 'empty', 0)
    expect(buckets.bucketOf('a', 0).take(0, 9)).toBe(0)
    expect(buckets.bucketOf('b', 2000).take(2000, 9)).toBe(2)
    expect(buckets.bucketOf('c', 60_000).take(60_000, 9)).toBe(3)
  })

  it('forgets the key that was not used for longest', () => {
    const buckets = new KeyedBuckets(limits, 'full', 0, 2)
    buckets.bucketOf('a', 0).take(0, 1)
    buckets.bucketOf('b', 0).take(0, 1)
    buckets.bucketOf('a', 1)
    buckets.bucketOf('c', 1)
    expect(buckets.size).toBe(2)
    expect(buckets.bucketOf('a', 1).take(1, 9)).toBe(2)
  })

  it('changes the limits of keys that are there and of those that come', () => {
    const buckets = new KeyedBuckets(limits, 'full', 0)
    buckets.bucketOf('a', 0)
    buckets.setLimits({ max: 1, durationMs: 1000, burst: 1 }, 0)
    expect([buckets.bucketOf('a', 0).take(0, 9), buckets.bucketOf('b', 0).take(0, 9)]).toEqual([
      1, 1,
    ])
  })

  it('never gives a key more than its rate, however often it is forgotten', () => {
    const steps = array(
      record({ key: integer({ min: 0, max: 5 }), byMs: integer({ min: 0, max: 900 }) }),
      { maxLength: 80, size: 'max' },
    )
    assert(
      property(steps, boolean(), (steps, isFull) => {
        const buckets = new KeyedBuckets(limits, isFull ? 'full' : 'empty', 0, 2)
        const taken = new Map<number, Taken[]>()
        let nowMs = 0
        for (const { key, byMs } of steps) {
          nowMs += byMs
          const count = buckets.bucketOf(String(key), nowMs).take(nowMs, 9)
          const ofKey = taken.get(key) ?? [{ atMs: 0, count: 0 }]
          ofKey.push({ atMs: nowMs, count })
          taken.set(key, ofKey)
        }
        for (const takes of taken.values()) checkRate(takes, limits)
      }),
    )
  })
})
