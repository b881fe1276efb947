import { assert, date, integer, maxSafeNat, property, string } from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  MillraceError,
  type Offset,
  type ParsedPosition,
  parsePosition,
  parseRange,
  POSITION_GRAMMAR,
} from '../../src/client/index.ts'

const NOW = Date.parse('2026-06-15T12:00:00Z')
const HOUR = 3_600_000
const time = (iso: string): ParsedPosition => ({ kind: 'time', timeMs: Date.parse(iso) })
const offset = (value: number): ParsedPosition => ({ kind: 'offset', offset: value as Offset })

function refusal(parse: () => unknown): MillraceError {
  try {
    parse()
  } catch (error) {
    expect(error).toBeInstanceOf(MillraceError)
    return error as MillraceError
  }
  throw new Error('was not refused')
}

describe('a position', () => {
  it.each<[string, ParsedPosition]>([
    ['start', { kind: 'start' }],
    ['beginning', { kind: 'start' }],
    ['END', { kind: 'end' }],
    [' 120 ', offset(120)],
    ['0', offset(0)],
    ['+5', { kind: 'after-start', count: 5 }],
    ['-10', { kind: 'before-end', count: 10 }],
    ['-0', { kind: 'before-end', count: 0 }],
    ['@2026-01-01', time('2026-01-01T00:00:00Z')],
    ['@2026-01-01T00:00Z', time('2026-01-01T00:00:00Z')],
    ['@2026-01-01 10:20:30.5', time('2026-01-01T10:20:30.500Z')],
    ['@2026-01-01T10:20+02:00', time('2026-01-01T08:20:00Z')],
    ['@2026-01-01T10:20-0130', time('2026-01-01T11:50:00Z')],
    ['@1767225600', time('2026-01-01T00:00:00Z')],
    ['@1767225600000', time('2026-01-01T00:00:00Z')],
    ['s@1767225600000', time('2026-01-01T00:00:00Z')],
    ['@-1h', { kind: 'time', timeMs: NOW - HOUR }],
    ['@-1h30m', { kind: 'time', timeMs: NOW - 1.5 * HOUR }],
    ['@+1h', { kind: 'time', timeMs: NOW + HOUR }],
    ['@now', { kind: 'time', timeMs: NOW }],
  ])('may be written %j', (text, expected) => {
    expect(parsePosition(text, NOW)).toEqual(expected)
  })

  it.each([
    '',
    'yesterday',
    '1.5',
    '--5',
    '+-5',
    '9007199254740992',
    '@',
    '@1h',
    '@-1',
    '@-1x',
    '@2026-02-31',
    '@2026-13-01',
    '@2026-01-01T25:00',
    '@99999999999999999',
    '5:10',
  ])('is not %j, which is answered with the whole grammar', (text) => {
    const error = refusal(() => parsePosition(text, NOW))
    expect(error.code).toBe('INVALID_POSITION')
    expect(error.message).toContain(POSITION_GRAMMAR)
  })

  it('may be a Date or an exact offset', () => {
    assert(
      property(maxSafeNat(), (value) => {
        expect(parsePosition(value as Offset, NOW)).toEqual(offset(value))
        expect(parsePosition(`${value}`, NOW)).toEqual(offset(value))
      }),
    )
    assert(
      property(date({ noInvalidDate: true }), (value) => {
        expect(parsePosition(value, NOW)).toEqual({ kind: 'time', timeMs: value.getTime() })
      }),
    )
    refusal(() => parsePosition(new Date(Number.NaN), NOW))
    refusal(() => parsePosition(-1 as Offset, NOW))
    refusal(() => parsePosition(1.5 as Offset, NOW))
  })

  it('reads back every ISO time between the years 0 and 9999', () => {
    assert(
      property(
        date({
          min: new Date('0000-01-01T00:00:00Z'),
          max: new Date('9999-12-31T23:59:59Z'),
          noInvalidDate: true,
        }),
        (value) => {
          expect(parsePosition(`@${value.toISOString()}`, NOW)).toEqual(time(value.toISOString()))
        },
      ),
    )
  })

  it('says of positions that need a group that they do', () => {
    for (const text of ['committed', 'stored', 'group:billing']) {
      expect(refusal(() => parsePosition(text, NOW)).message).toContain('needs a group')
    }
  })
})

describe('a range', () => {
  it.each<[string, ParsedPosition, ParsedPosition | undefined]>([
    ['100', offset(100), undefined],
    ['@2026-01-01T00:00', time('2026-01-01T00:00:00Z'), undefined],
    ['100:200', offset(100), offset(200)],
    ['100:', offset(100), undefined],
    [':200', { kind: 'start' }, offset(200)],
    ['start:end', { kind: 'start' }, { kind: 'end' }],
    [':end', { kind: 'start' }, { kind: 'end' }],
    ['-100:end', { kind: 'before-end', count: 100 }, { kind: 'end' }],
    ['-100:-10', { kind: 'before-end', count: 100 }, { kind: 'before-end', count: 10 }],
    ['+5:+10', { kind: 'after-start', count: 5 }, { kind: 'after-start', count: 10 }],
    ['@-2h:-1h', { kind: 'time', timeMs: NOW - 2 * HOUR }, { kind: 'time', timeMs: NOW - HOUR }],
    ['@-1h:end', { kind: 'time', timeMs: NOW - HOUR }, { kind: 'end' }],
    ['@2026-01-01:2026-01-02', time('2026-01-01T00:00:00Z'), time('2026-01-02T00:00:00Z')],
    ['@2026-01-01T10:00:@2026-01-01T11:30Z', time('2026-01-01T10:00Z'), time('2026-01-01T11:30Z')],
    ['@1767225600:1767225601', time('2026-01-01T00:00:00Z'), time('2026-01-01T00:00:01Z')],
  ])('may be written %j', (text, from, until) => {
    expect(parseRange(text, NOW)).toEqual({ from, until })
  })

  it.each([':', '', '200:100', '5:x', '@-1h:-2h', '-10:-100', '1:2:3'])('is not %j', (text) => {
    expect(refusal(() => parseRange(text, NOW)).code).toBe('INVALID_POSITION')
  })

  it('reads back any two offsets', () => {
    assert(
      property(integer({ min: 0 }), integer({ min: 0 }), (from, length) => {
        expect(parseRange(`${from}:${from + length}`, NOW)).toEqual({
          from: offset(from),
          until: offset(from + length),
        })
      }),
    )
  })

  it('never fails otherwise than with INVALID_POSITION', () => {
    assert(
      property(string(), (text) => {
        try {
          parseRange(text, NOW)
          parseRange(`@${text}`, NOW)
        } catch (error) {
          expect((error as MillraceError).code).toBe('INVALID_POSITION')
        }
      }),
    )
  })
})
