import { array, assert, integer, nat, property, tuple } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { DamageMap } from '../../src/segment/damage-map.ts'
import type { DamagedRange } from '../../src/segment/damage-map.ts'

function aRange(
  start: number,
  end: number,
  segmentBase = 0,
  endPosition = end * 100,
): DamagedRange {
  return {
    start: toOffset(start),
    end: toOffset(end),
    segmentBase: toOffset(segmentBase),
    endPosition,
  }
}

describe('the map of damage', () => {
  it('knows exactly the offsets that were added, however they overlap', () => {
    assert(
      property(array(tuple(nat(90), integer({ min: 1, max: 20 })), { maxLength: 20 }), (pairs) => {
        const map = new DamageMap()
        const bad = new Set<number>()
        for (const [start, length] of pairs) {
          map.add(aRange(start, start + length))
          for (let offset = start; offset < start + length; offset++) bad.add(offset)
        }
        for (let offset = 0; offset < 120; offset++) {
          expect(map.find(toOffset(offset)) !== undefined).toBe(bad.has(offset))
        }
        for (const [i, range] of map.ranges.entries()) {
          expect(range.endPosition).toBe(range.end * 100)
          expect(range.start).toBeGreaterThan(map.ranges[i - 1]?.end ?? -1)
        }
      }),
    )
  })

  it('keeps ranges of different segments apart', () => {
    const map = new DamageMap()
    map.add(aRange(5, 10, 0))
    map.add(aRange(10, 12, 10))
    expect(map.ranges).toHaveLength(2)
    expect(map.findLastEndingAtOrBelow(toOffset(0), toOffset(20))?.end).toBe(10)
    expect(map.findLastEndingAtOrBelow(toOffset(10), toOffset(11))).toBeUndefined()
  })

  it('forgets what lies below the log start, and refuses an empty range', () => {
    const map = new DamageMap()
    map.add(aRange(5, 10))
    map.add(aRange(20, 30))
    map.dropBelow(toOffset(10))
    expect(map.ranges.map((range) => range.start)).toEqual([20])
    map.dropBelow(toOffset(25))
    expect(map.find(toOffset(26))).toBeDefined()
    expect(() => map.add(aRange(3, 3))).toThrow(/not empty/)
  })

  it('forgets a segment whose file has been replaced', () => {
    const map = new DamageMap()
    map.add(aRange(5, 10, 0))
    map.add(aRange(15, 18, 12))
    map.dropSegment(toOffset(0))
    expect(map.ranges.map((range) => range.start)).toEqual([15])
    expect(map.findLastEndingAtOrBelow(toOffset(0), toOffset(11))).toBeUndefined()
  })
})
