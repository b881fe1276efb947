import { describe, expect, it } from 'vitest'
import { Arrivals, medianOf } from '../../bench/arrivals.ts'

function arrivalsAt(...times: readonly number[]): Arrivals {
  const arrivals = new Arrivals(1)
  for (const time of times) arrivals.note(0, time)
  return arrivals
}

describe('longestPauseMs', () => {
  it('is the longest time between two arrivals', () => {
    expect(arrivalsAt(0, 10, 45, 55, 60).longestPauseMs(0, 0, 60)).toBe(35)
  })

  it('counts a pause that began before the window and ends within it', () => {
    expect(arrivalsAt(0, 130, 140, 150).longestPauseMs(0, 100, 150)).toBe(130)
  })

  it('leaves out a pause that ended before the window', () => {
    expect(arrivalsAt(0, 90, 100, 110, 120).longestPauseMs(0, 100, 121)).toBe(10)
  })

  it('counts what is still open at the end, but not what comes after it', () => {
    expect(arrivalsAt(0, 10, 100).longestPauseMs(0, 0, 40)).toBe(30)
  })

  it('is the whole window when nothing comes at all', () => {
    expect(arrivalsAt().longestPauseMs(0, 100, 160)).toBe(60)
    expect(arrivalsAt(10).longestPauseMs(0, 100, 160)).toBe(60)
  })

  it('keeps partitions apart', () => {
    const arrivals = new Arrivals(2)
    for (let time = 0; time <= 100; time += 10) arrivals.note(0, time)
    expect([0, 1].map((partition) => arrivals.longestPauseMs(partition, 0, 100))).toEqual([10, 100])
  })
})

describe('medianOf', () => {
  it('is the middle of an odd number, the mean of the middle two of an even one', () => {
    expect(medianOf([9, 1, 5])).toBe(5)
    expect(medianOf([1, 9, 5, 7])).toBe(6)
    expect(medianOf([])).toBeNaN()
  })
})
