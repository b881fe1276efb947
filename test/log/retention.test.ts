import { array, assert, boolean, constantFrom, integer, property, record } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import type { LogConfig } from '../../src/log/log-config.ts'
import { findRetentionStart } from '../../src/log/retention.ts'
import type { SegmentFacts } from '../../src/log/retention.ts'

const NOW_MS = 1_000_000

interface SegmentShape {
  records?: number
  bytes?: number
  ageMs?: number
  active?: boolean
}

/** Contiguous segments from 0 on; the last is active unless it says otherwise. */
function segmentsOf(...shapes: SegmentShape[]): SegmentFacts[] {
  let next = 0
  return shapes.map(({ records = 10, bytes = 100, ageMs = 0, active }, i) => {
    const baseOffset = toOffset(next)
    next += records
    return {
      baseOffset,
      endOffset: toOffset(next),
      sizeBytes: bytes,
      maxTimestampMs: NOW_MS - ageMs,
      active: active ?? i === shapes.length - 1,
    }
  })
}

function find(
  segments: readonly SegmentFacts[],
  config: Partial<LogConfig>,
  start = 0,
  hold?: { keepFrom: number; maxMs: number },
): number {
  const limits = { ...DEFAULT_LOG_CONFIG, retentionMs: Infinity, ...config }
  const held = hold && { ...hold, keepFrom: toOffset(hold.keepFrom) }
  return findRetentionStart(segments, toOffset(start), limits, NOW_MS, held)
}

describe('findRetentionStart', () => {
  it('keeps everything without limits', () => {
    expect(find(segmentsOf({ ageMs: 900_000 }, {}, {}), {})).toBe(0)
  })

  it('keeps the log start when there are no segments', () => {
    expect(find([], { retentionMs: 0, retentionBytes: 0, retentionRecords: 0 }, 7)).toBe(7)
  })

  it('never gives up the active segment', () => {
    const limits = { retentionMs: 0, retentionBytes: 0, retentionRecords: 0 }
    expect(find(segmentsOf({ ageMs: 5 }), limits)).toBe(0)
    expect(find(segmentsOf({ ageMs: 5 }, { ageMs: 5 }), limits)).toBe(10)
  })

  describe('by time', () => {
    const limits = { retentionMs: 1000 }

    it('gives up what is older, and keeps what is exactly as old', () => {
      expect(find(segmentsOf({ ageMs: 1001 }, { ageMs: 1000 }, {}), limits)).toBe(10)
    })

    it('stops at the first segment that is young enough, whatever comes after', () => {
      expect(find(segmentsOf({ ageMs: 2000 }, { ageMs: 5 }, { ageMs: 2000 }, {}), limits)).toBe(10)
    })

    it('takes a time in the future for now', () => {
      expect(find(segmentsOf({ ageMs: -5000 }, { ageMs: 2000 }, {}), limits)).toBe(0)
    })

    it('gives up a segment without times along with the next one that has them', () => {
      const [first, ...others] = segmentsOf({}, { ageMs: 2000 }, {})
      const unstamped = { ...first, maxTimestampMs: -1 } as SegmentFacts
      expect(find([unstamped, ...others], limits)).toBe(20)
      expect(find([unstamped, ...segmentsOf({}, {}, {}).slice(1)], limits)).toBe(0)
    })
  })

  describe('by bytes', () => {
    it('gives up segments as long as the limit remains', () => {
      const segments = segmentsOf({}, {}, {}, { bytes: 50 })
      expect(find(segments, { retentionBytes: 350 })).toBe(0)
      expect(find(segments, { retentionBytes: 251 })).toBe(0)
      expect(find(segments, { retentionBytes: 250 })).toBe(10)
      expect(find(segments, { retentionBytes: 51 })).toBe(20)
      expect(find(segments, { retentionBytes: 50 })).toBe(30)
    })

    it('does not count segments that are below the log start already', () => {
      const segments = segmentsOf({}, {}, {}, {})
      expect(find(segments, { retentionBytes: 300 }, 10)).toBe(10)
      expect(find(segments, { retentionBytes: 200 }, 10)).toBe(20)
    })
  })

  it('by records, gives up segments as long as the limit remains', () => {
    const segments = segmentsOf({}, {}, {}, { records: 5 })
    expect(find(segments, { retentionRecords: 26 })).toBe(0)
    expect(find(segments, { retentionRecords: 25 })).toBe(10)
    expect(find(segments, { retentionRecords: 6 })).toBe(20)
    expect(find(segments, { retentionRecords: 5 })).toBe(30)
    expect(find(segments, { retentionRecords: 0 })).toBe(30)
  })

  it('goes as far as the strictest limit', () => {
    const segments = segmentsOf({ ageMs: 2000 }, {}, {}, {})
    expect(find(segments, { retentionMs: 1000, retentionRecords: 20 })).toBe(20)
    expect(find(segments, { retentionMs: 1000, retentionRecords: 100 })).toBe(10)
  })

  describe('held', () => {
    const limits = { retentionMs: 1000 }
    const segments = segmentsOf({ ageMs: 3000 }, { ageMs: 2000 }, { ageMs: 1500 }, {})

    it('keeps the segment with the held offset, and all behind it', () => {
      const forEver = (keepFrom: number): number =>
        find(segments, limits, 0, { keepFrom, maxMs: Infinity })
      expect([0, 9, 10, 19, 20, 29, 30, 99].map(forEver)).toEqual([0, 0, 10, 10, 20, 20, 30, 30])
    })

    it('gives up what has been due for longer than it may be held', () => {
      const fromStart = (maxMs: number): number => find(segments, limits, 0, { keepFrom: 0, maxMs })
      expect([0, 499, 500, 999, 1000, 1999, 2000].map(fromStart)).toEqual([
        30, 30, 20, 20, 10, 10, 0,
      ])
    })

    it('tells from the newer segments when one was due by size', () => {
      const aged = segmentsOf({ ageMs: 900 }, { ageMs: 600 }, { ageMs: 300 }, { ageMs: 100 })
      // The first was too much from 600 ms ago on at the latest, the second from 300, the third from 100.
      const fromStart = (maxMs: number): number =>
        find(aged, { retentionBytes: 100 }, 0, { keepFrom: 0, maxMs })
      expect([0, 100, 101, 300, 301, 600, 601].map(fromStart)).toEqual([30, 30, 20, 20, 10, 10, 0])
    })

    it('takes a time in the future for now', () => {
      const ahead = segmentsOf({ ageMs: -5000 }, { ageMs: -5000 }, { ageMs: -5000 })
      const limit = { retentionRecords: 10 }
      expect(find(ahead, limit, 0, { keepFrom: 0, maxMs: 1 })).toBe(0)
      expect(find(ahead, limit, 0, { keepFrom: 0, maxMs: 0 })).toBe(20)
    })

    it('keeps what is held, and no more, for no longer than allowed', () => {
      const shape = record({
        records: integer({ min: 1, max: 50 }),
        bytes: integer({ min: 1, max: 300 }),
        ageMs: integer({ min: -100, max: 100 }),
      })
      const limit = constantFrom(0, 1, 50, 500, Infinity)
      const limitsOf = record({
        retentionMs: limit,
        retentionBytes: limit,
        retentionRecords: limit,
      })
      const maxMs = constantFrom(0, 1, 20, 80, 1000, Infinity)
      assert(
        property(
          array(shape, { maxLength: 12 }),
          limitsOf,
          integer({ min: 0, max: 300 }),
          maxMs,
          maxMs,
          (shapes, config, keepFrom, a, b) => {
            const all = segmentsOf(...shapes)
            const due = find(all, config)
            const held = (from: number, most: number): number =>
              find(all, config, 0, { keepFrom: from, maxMs: most })
            expect(held(keepFrom, 0)).toBe(due)
            const least = held(keepFrom, Infinity)
            const isKept = all.some(
              (one) => !one.active && one.endOffset > keepFrom && one.baseOffset < due,
            )
            expect(least).toBe(
              isKept
                ? Math.max(0, ...all.map((one) => one.endOffset).filter((end) => end <= keepFrom))
                : due,
            )
            // The longer it may be held, and the lower the hold, the more stays.
            expect(held(keepFrom, Math.max(a, b))).toBeLessThanOrEqual(
              held(keepFrom, Math.min(a, b)),
            )
            expect(held(keepFrom, a)).toBeLessThanOrEqual(held(keepFrom + 10, a))
            expect(held(keepFrom, a)).toBeGreaterThanOrEqual(least)
            expect(held(keepFrom, a)).toBeLessThanOrEqual(due)
          },
        ),
      )
    })
  })

  it('never moves the log start back', () => {
    expect(find(segmentsOf({ ageMs: 2000 }, {}, {}), { retentionMs: 1000 }, 15)).toBe(15)
  })

  it('answers a boundary within bounds, the furthest that each limit allows', () => {
    const limit = constantFrom(0, 1, 50, 500, Infinity)
    const shape = record({
      records: integer({ min: 1, max: 50 }),
      bytes: integer({ min: 1, max: 300 }),
      ageMs: integer({ min: -100, max: 100 }),
    })
    const limits = record({
      retentionMs: limit,
      retentionBytes: limit,
      retentionRecords: limit,
    })
    assert(
      property(array(shape, { maxLength: 12 }), limits, boolean(), (shapes, limits, isMid) => {
        const segments = segmentsOf(...shapes)
        const logStart = isMid ? Math.floor((segments[0]?.endOffset ?? 0) / 2) : 0
        const start = find(segments, limits, logStart)
        const sealed = segments.filter((segment) => !segment.active)
        // The obvious way: try every boundary.
        const mayGo = (end: number): boolean => {
          const rest = segments.filter((segment) => segment.baseOffset >= end)
          const gone = segments.filter((segment) => segment.endOffset <= end)
          const records = (segments.at(-1)?.endOffset ?? 0) - end
          const bytes = rest.reduce((sum, segment) => sum + segment.sizeBytes, 0)
          return (
            records >= limits.retentionRecords ||
            bytes >= limits.retentionBytes ||
            gone.every((one) => NOW_MS - one.maxTimestampMs > Math.max(-1, limits.retentionMs))
          )
        }
        const ends = sealed.map((segment) => segment.endOffset).filter(mayGo)
        expect(start).toBe(Math.max(logStart, ...ends))
      }),
    )
  })
})
