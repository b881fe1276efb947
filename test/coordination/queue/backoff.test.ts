import { describe, expect, it } from 'vitest'
import { assert, constantFrom, double, integer, property, record } from 'fast-check'
import { BrokerError } from '../../../src/common/errors.ts'
import { type Random, SeededRandom } from '../../../src/common/random.ts'
import { DAY_MS, HOUR_MS } from '../../../src/common/units.ts'
import {
  type BackoffConfig,
  backoffDelayMs,
  parseBackoff,
} from '../../../src/coordination/queue/backoff.ts'
import { resolveQueueConfig } from '../../../src/coordination/queue/queue-config.ts'

/** Draws nothing off a delay. */
const lowest: Random = { uint32: () => 0, bytes: (length) => new Uint8Array(length) }
/** Draws off all that the jitter allows, but a 2^-32nd of it. */
const highest: Random = { uint32: () => 2 ** 32 - 1, bytes: (length) => new Uint8Array(length) }

function config(some: Partial<BackoffConfig> = {}): BackoffConfig {
  return { ...resolveQueueConfig({}, { jobs: true }), ...some }
}

function delays(some: Partial<BackoffConfig>, count: number): number[] {
  return Array.from({ length: count }, (_, at) => backoffDelayMs(config(some), at + 1, lowest))
}

describe('backoffDelayMs', () => {
  it('grows as its type says', () => {
    expect(delays({}, 5)).toEqual([1000, 2000, 4000, 8000, 16_000])
    expect(delays({ backoffMultiplier: 1.5, backoffInitialMs: 5 }, 4)).toEqual([5, 8, 11, 17])
    expect(delays({ backoffType: 'linear' }, 3)).toEqual([1000, 2000, 3000])
    expect(delays({ backoffType: 'fixed' }, 3)).toEqual([1000, 1000, 1000])
    expect(delays({ backoffType: 'none' }, 3)).toEqual([0, 0, 0])
    const list = { backoffType: 'list' as const, backoffListMs: [10, 500, 20] }
    expect(delays(list, 5)).toEqual([10, 500, 20, 20, 20])
  })

  it('is never above the cap, of whatever type', () => {
    expect(delays({ backoffMaxMs: 3000 }, 4)).toEqual([1000, 2000, 3000, 3000])
    const list = { backoffType: 'list' as const, backoffListMs: [10, 5000], backoffMaxMs: 3000 }
    expect(delays(list, 2)).toEqual([10, 3000])
    expect(delays({ backoffType: 'fixed', backoffMaxMs: 300 }, 1)).toEqual([300])
  })

  it('takes up to the jitter off', () => {
    expect(backoffDelayMs(config(), 1, highest)).toBe(801)
    expect(backoffDelayMs(config({ backoffJitter: 1 }), 1, highest)).toBe(1)
    expect(backoffDelayMs(config({ backoffJitter: 0 }), 1, highest)).toBe(1000)
  })

  it('follows the record’s own backoff, under the group’s cap', () => {
    const of = (text: string, failures: number): number =>
      backoffDelayMs(config({ backoffMaxMs: 60_000 }), failures, lowest, parseBackoff(text))
    expect([of('fixed:5s', 1), of('fixed:5s', 9)]).toEqual([5000, 5000])
    expect([of('linear:500ms', 1), of('linear:500ms', 3)]).toEqual([500, 1500])
    expect([of('exponential:3s', 1), of('exponential:3s', 3)]).toEqual([3000, 12_000])
    expect([of('list:1s,5s,2h', 2), of('list:1s,5s,2h', 8)]).toEqual([5000, 60_000])
    expect(of('none', 4)).toBe(0)
  })

  it('is a whole number in [d × (1 - jitter), d] at any failure', () => {
    const anyConfig = record({
      backoffType: constantFrom(...(['none', 'fixed', 'linear', 'exponential', 'list'] as const)),
      backoffInitialMs: integer({ min: 0, max: DAY_MS }),
      backoffMultiplier: double({ min: 1, max: 10, noNaN: true }),
      backoffMaxMs: integer({ min: 0, max: 30 * DAY_MS }),
      backoffJitter: double({ min: 0, max: 1, noNaN: true }),
      backoffListMs: constantFrom([], [0], [HOUR_MS, 1]),
    })
    assert(
      property(anyConfig, integer({ min: 0, max: 100_000 }), integer(), (some, failures, seed) => {
        const full = backoffDelayMs(some, failures, lowest)
        const delay = backoffDelayMs(some, failures, new SeededRandom(seed))
        expect(Number.isSafeInteger(delay)).toBe(true)
        expect(full).toBeLessThanOrEqual(some.backoffMaxMs)
        expect(delay).toBeLessThanOrEqual(full)
        expect(delay).toBeGreaterThanOrEqual(full * (1 - some.backoffJitter) - 1e-6)
      }),
      { examples: [[config({ backoffInitialMs: 0, backoffMultiplier: 10 }), 1000, 0]] },
    )
  })
})

describe('parseBackoff', () => {
  it('reads each type', () => {
    expect(parseBackoff('none')).toEqual({ type: 'none', initialMs: 0, listMs: [] })
    expect(parseBackoff(' Fixed: 5s ')).toEqual({ type: 'fixed', initialMs: 5000, listMs: [] })
    expect(parseBackoff('list:1s,5s')).toEqual({ type: 'list', initialMs: 0, listMs: [1000, 5000] })
  })

  it.each([
    ['', 'is of no known type'],
    ['5s', 'is of no known type'],
    ['constructor:5s', 'is of no known type'],
    ['none:5s', 'none has no delay'],
    ['fixed', 'fixed has no delay'],
    ['linear:', 'linear has no delay'],
    ['exponential:fast', '"fast" is not a delay'],
    ['exponential:-1s', 'is not a delay'],
    ['fixed:31d', 'longer than 30d'],
    ['list:', 'list has no delays'],
    ['list:1s,x', '"x" is not a delay'],
    [`list:${'1s,'.repeat(40)}1s`, '41 delays are too many'],
    [`fixed:${'9'.repeat(600)}`, 'is 606 letters long'],
  ])('refuses %s, and names what is allowed', (text, message) => {
    let failure: unknown
    try {
      parseBackoff(text)
    } catch (error) {
      failure = error
    }
    expect(failure).toBeInstanceOf(BrokerError)
    expect(failure).toMatchObject({ code: 'INVALID_BACKOFF', details: { field: 'backoff' } })
    expect((failure as BrokerError).message).toContain(message)
    expect((failure as BrokerError).message).toContain('list:1s,5s,1m')
  })
})
