import { expect, it } from 'vitest'
import { array, assert, integer, oneof, constant, property, tuple } from 'fast-check'
import { DueHeap } from '../../../src/coordination/queue/due-heap.ts'

it('gives the earliest first, and the smaller offset among equal times', () => {
  const heap = new DueHeap()
  heap.push(30, 1)
  heap.push(10, 7)
  heap.push(10, 2)
  expect([heap.peekDueMs(), heap.peekOffset(), heap.length]).toEqual([10, 2, 3])
  expect([heap.pop(), heap.pop(), heap.pop(), heap.pop()]).toEqual([
    { dueMs: 10, offset: 2 },
    { dueMs: 10, offset: 7 },
    { dueMs: 30, offset: 1 },
    undefined,
  ])
  expect([heap.peekDueMs(), heap.peekOffset()]).toEqual([undefined, undefined])
})

it('gives nothing before it is due', () => {
  const heap = new DueHeap()
  heap.push(10, 1)
  expect(heap.popDue(9)).toBeUndefined()
  expect(heap.popDue(10)).toBe(1)
  expect(heap.popDue(10)).toBeUndefined()
})

it('agrees with a sorted list through any pushes and pops, growing and shrinking', () => {
  const push = tuple(integer({ min: 0, max: 50 }), integer({ min: 0, max: 1000 }))
  const steps = array(
    oneof({ weight: 3, arbitrary: push }, { weight: 2, arbitrary: constant('pop') }),
    {
      maxLength: 2000,
      size: 'max',
    },
  )
  assert(
    property(steps, (steps) => {
      const heap = new DueHeap()
      const model: [number, number][] = []
      const popBoth = (): void => {
        model.sort(([due, offset], [otherDue, other]) => due - otherDue || offset - other)
        const expected = model.shift()
        const popped = heap.pop()
        expect(popped && [popped.dueMs, popped.offset]).toEqual(expected)
      }
      for (const step of steps) {
        if (typeof step === 'string') popBoth()
        else {
          heap.push(...step)
          model.push(step)
        }
      }
      while (model.length > 0) popBoth()
      expect(heap.length).toBe(0)
    }),
    { numRuns: 30 },
  )
})

it('is empty after clear, and usable', () => {
  const heap = new DueHeap()
  for (let i = 0; i < 1000; i++) heap.push(i, i)
  heap.clear()
  expect([heap.length, heap.pop()]).toEqual([0, undefined])
  heap.push(5, 6)
  expect(heap.pop()).toEqual({ dueMs: 5, offset: 6 })
})
