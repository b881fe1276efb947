import { array, assert, boolean, integer, property, record } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { IdTable } from '../../../src/coordination/dedupe/id-table.ts'

/** Hashes that crowd at both ends of the table, so that runs go round its end. */
function hashOf(id: number): Uint32Array {
  const word = id % 2 === 0 ? 0xffff_ff00 + (id % 7) : id % 5
  return Uint32Array.of(word >>> 0, id, id >>> 3, 7)
}

describe('IdTable', () => {
  it('agrees with a map, whatever is set and taken out', () => {
    const step = record({ isSet: boolean(), id: integer({ min: 0, max: 60 }) })
    assert(
      property(array(step, { maxLength: 300, size: 'max' }), (steps) => {
        const table = new IdTable()
        const model = new Map<number, number>()
        for (const [at, { isSet, id }] of steps.entries()) {
          if (isSet) {
            table.set(hashOf(id), at, at * 10, at + 1)
            model.set(id, at)
          } else expect(table.delete(hashOf(id))).toBe(model.delete(id))
        }
        expect(table.size).toBe(model.size)
        for (let id = 0; id <= 60; id++) {
          const at = model.get(id)
          expect([id, table.find(hashOf(id))]).toEqual([id, at !== undefined])
          if (at === undefined) continue
          expect([table.place, table.acceptedMs, table.checksum]).toEqual([at, at * 10, at + 1])
        }
        const kept = table.keepSince(1000)
        expect(kept.size).toBe([...model.values()].filter((at) => at > 100).length)
      }),
      { numRuns: 100 },
    )
  })
})
