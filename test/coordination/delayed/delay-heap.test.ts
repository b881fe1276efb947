import { array, assert, constant, integer, oneof, property, record } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DelayHeap } from '../../../src/coordination/delayed/delay-heap.ts'

describe('DelayHeap', () => {
  it('agrees with a sorted list, also where records are taken out of the middle', () => {
    const step = oneof(
      {
        weight: 3,
        arbitrary: record({ kind: constant('push' as const), dueMs: integer({ min: 0, max: 50 }) }),
      },
      {
        weight: 2,
        arbitrary: record({
          kind: constant('remove' as const),
          which: integer({ min: 0, max: 200 }),
        }),
      },
      { weight: 1, arbitrary: record({ kind: constant('pop' as const) }) },
    )
    assert(
      property(array(step, { maxLength: 200, size: 'max' }), (steps) => {
        const heap = new DelayHeap()
        let model: { dueMs: number; offset: number }[] = []
        for (const [offset, now] of steps.entries()) {
          if (now.kind === 'push') {
            heap.push(now.dueMs, offset, offset % 7)
            model.push({ dueMs: now.dueMs, offset })
          } else if (now.kind === 'remove') {
            const entry = model[now.which % Math.max(1, model.length)]
            expect(heap.remove(entry?.offset ?? 999)).toBe(entry !== undefined)
            if (entry !== undefined) expect(heap.dueMs).toBe(entry.dueMs)
            model = model.filter((one) => one !== entry)
          } else {
            model.sort((a, b) => a.dueMs - b.dueMs || a.offset - b.offset)
            const first = model.shift()
            expect(heap.pop()).toBe(first !== undefined)
            if (first === undefined) continue
            expect([heap.dueMs, heap.offset, heap.target]).toEqual([
              first.dueMs,
              first.offset,
              first.offset % 7,
            ])
          }
          expect(heap.size).toBe(model.length)
        }
        const rest: number[] = []
        while (heap.pop()) rest.push(heap.offset)
        model.sort((a, b) => a.dueMs - b.dueMs || a.offset - b.offset)
        expect(rest).toEqual(model.map(({ offset }) => offset))
      }),
      { numRuns: 200 },
    )
  })
})
