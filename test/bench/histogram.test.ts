import { fc, it as prop } from '@fast-check/vitest'
import { describe, expect, it } from 'vitest'
import { Histogram } from '../../bench/histogram.ts'

const value = fc.integer({ min: 0, max: 2 ** 31 - 1 })

function sortedPercentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? NaN
}

describe('Histogram', () => {
  it('says nothing while it is empty', () => {
    expect(new Histogram().percentile(50)).toBeNaN()
    expect(new Histogram().count).toBe(0)
  })

  prop.prop([fc.array(value, { minLength: 1 }), fc.constantFrom(1, 50, 90, 99, 99.9, 100)])(
    'agrees with a sorted list to 1 part in 128',
    (values, percent) => {
      const histogram = new Histogram()
      for (const each of values) histogram.record(each)
      const exact = sortedPercentile(values, percent)
      const found = histogram.percentile(percent)
      expect(found).toBeGreaterThanOrEqual(exact)
      expect(found).toBeLessThanOrEqual(exact * (1 + 1 / 128))
      expect(histogram.max).toBe(Math.max(...values))
    },
  )

  prop.prop([fc.array(value), fc.array(value)])(
    'adds up to what one histogram of both would be, also from another process',
    (left, right) => {
      const both = new Histogram()
      for (const each of [...left, ...right]) both.record(each)
      const first = new Histogram()
      for (const each of left) first.record(each)
      const second = new Histogram()
      for (const each of right) second.record(each)
      const sum = new Histogram(structuredClone(first.toCounts()))
      sum.add(structuredClone(second.toCounts()))
      expect(sum.toCounts()).toEqual(both.toCounts())
      expect(sum.count).toBe(both.count)
    },
  )

  it('counts what is too long as the longest, and what is negative as nothing', () => {
    const histogram = new Histogram()
    histogram.record(2 ** 40)
    histogram.record(-5)
    expect(histogram.max).toBe(2 ** 31 - 1)
    expect(histogram.percentile(50)).toBe(0)
  })
})
