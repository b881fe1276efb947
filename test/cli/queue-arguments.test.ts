import { describe, expect, it } from 'vitest'
import {
  toBackoff,
  toFilter,
  toPastTime,
  toRecordPlace,
  toTime,
} from '../../src/cli/queue-arguments.ts'

describe('places of records', () => {
  it.each([
    [['orders', '2:17'], { topic: 'orders', partition: 2, offset: 17 }],
    [['orders/2:17'], { topic: 'orders', partition: 2, offset: 17 }],
    [['orders', '17'], { topic: 'orders', partition: 0, offset: 17 }],
  ])('reads %j', (words, place) => {
    expect(toRecordPlace(words)).toEqual(place)
  })

  it.each([[[]], [['orders']], [['orders', 'x']], [['orders', '0:1', '2']], [['orders', '-1']]])(
    'refuses %j and says how it is written',
    (words) => {
      expect(() => toRecordPlace(words)).toThrow('is no place of a record')
    },
  )
})

describe('backoff', () => {
  it.each([
    ['none', { type: 'none' }],
    ['fixed:5s', { type: 'fixed', delayMs: 5_000 }],
    ['linear:500ms', { type: 'linear', delayMs: 500 }],
    ['exponential:1s', { type: 'exponential', delayMs: 1_000 }],
    ['list:1s,5s,1m', { type: 'list', delaysMs: [1_000, 5_000, 60_000] }],
  ])('reads %s', (text, options) => {
    expect(toBackoff('--backoff')(text)).toEqual(options)
  })

  it.each(['', 'fixed', 'fixed:', 'fixed:soon', 'fixed:1s,2s', 'none:1s', 'geometric:1s'])(
    'refuses %j',
    (text) => {
      expect(() => toBackoff('--backoff')(text)).toThrow('--backoff')
    },
  )
})

describe('times', () => {
  it('reads dates, times and Unix times as positions do', () => {
    const at = (text: string): string => toTime('--at')(text).toISOString()
    expect(at('2026-01-31')).toBe('2026-01-31T00:00:00.000Z')
    expect(at('2026-01-31T12:00+01:00')).toBe('2026-01-31T11:00:00.000Z')
    expect(at('@1767225600')).toBe('2026-01-01T00:00:00.000Z')
  })

  it('reads how long from now, and for what is past also how long ago', () => {
    expect(toTime('--at')('+5m').getTime()).toBeCloseTo(Date.now() + 300_000, -4)
    expect(toPastTime('--since')('1h').getTime()).toBeCloseTo(Date.now() - 3_600_000, -4)
    expect(toPastTime('--since')('2026-01-31').toISOString()).toBe('2026-01-31T00:00:00.000Z')
  })

  it('refuses what is none', () => {
    expect(() => toTime('--at')('tomorrow')).toThrow('--at tomorrow is no time')
    expect(() => toTime('--at')('2026-02-31')).toThrow('is no time')
  })
})

describe('filters of dead letters', () => {
  const none = { header: [] }

  it.each([
    ['100:200', [100, 200]],
    ['100:', [100, undefined]],
    [':200', [undefined, 200]],
    ['100', [100, 101]],
  ])('reads the range %s', (offsets, expected) => {
    const { firstOffset, endOffset } = toFilter({ ...none, offsets })
    expect([firstOffset, endOffset]).toEqual(expected)
  })

  it.each([':', '', 'a:b', '200:100'])('refuses the range %j', (offsets) => {
    expect(() => toFilter({ ...none, offsets })).toThrow('--offsets')
  })

  it('passes the rest on', () => {
    const since = new Date(0)
    expect(
      toFilter({ header: ['a=1', 'b=2=3'], reason: 'rejected', ofTopic: 't', since, limit: 5 }),
    ).toMatchObject({
      headers: { a: '1', b: '2=3' },
      reason: 'rejected',
      topic: 't',
      diedFrom: since,
      limit: 5,
    })
    expect(() => toFilter({ header: ['a'] })).toThrow('--header a is no pair')
  })
})
