import { array, assert, constantFrom, integer, oneof, property, record, constant } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { SeededRandom } from '../../../src/common/random.ts'
import { HOUR_MS } from '../../../src/common/units.ts'
import { DelayIndex } from '../../../src/coordination/delayed/delay-index.ts'

const START_MS = 1_767_225_600_000

interface Entry {
  readonly dueMs: number
  readonly offset: number
  readonly target: number
}

function popDue(index: DelayIndex, nowMs: number): Entry[] {
  while (!index.advance(nowMs, 5));
  const popped: Entry[] = []
  while (index.firstMs <= nowMs) {
    const { dueMs, offset, target } = index.pop()
    popped.push({ dueMs, offset, target })
  }
  return popped
}

function inOrder(entries: Iterable<Entry>): Entry[] {
  return [...entries].sort((a, b) => a.dueMs - b.dueMs || a.offset - b.offset)
}

describe('DelayIndex', () => {
  it('gives what is due, in the order of due time and then of offset, and nothing before', () => {
    const index = new DelayIndex()
    index.add(START_MS + 2000, 1, 7)
    index.add(START_MS + 1000, 2, 8)
    index.add(START_MS + 2000, 3, 9)
    index.add(START_MS + 5 * HOUR_MS, 4, 1)
    expect(popDue(index, START_MS + 999)).toEqual([])
    expect(popDue(index, START_MS + 2000).map(({ offset, target }) => [offset, target])).toEqual([
      [2, 8],
      [1, 7],
      [3, 9],
    ])
    expect(index.size).toBe(1)
    expect(index.nextMs).toBeLessThanOrEqual(START_MS + 5 * HOUR_MS)
    expect(popDue(index, START_MS + 5 * HOUR_MS)).toHaveLength(1)
    expect(index.nextMs).toBe(Infinity)
  })

  it('agrees with a sorted list, whatever is added, taken out and put back while time jumps about', () => {
    const delay = oneof(
      integer({ min: -2000, max: 5000 }),
      integer({ min: 0, max: 3 * HOUR_MS }),
      constantFrom(0, 1000, 60_000, HOUR_MS, 400 * 24 * HOUR_MS),
    )
    const step = oneof(
      record({ kind: constant('add' as const), delay }),
      record({ kind: constant('add' as const), delay }),
      record({ kind: constant('remove' as const), which: integer({ min: 0, max: 1000 }) }),
      record({ kind: constant('again' as const), which: integer({ min: 0, max: 1000 }), delay }),
      record({ kind: constant('move' as const), by: integer({ min: 0, max: 90_000 }) }),
      record({
        kind: constant('move' as const),
        by: integer({ min: -2 * HOUR_MS, max: 5 * HOUR_MS }),
      }),
    )
    assert(
      property(array(step, { maxLength: 120, size: 'max' }), (steps) => {
        const index = new DelayIndex()
        /** By offset. `dueMs` is what the record says, which may differ from when it is due here. */
        const model = new Map<number, Entry & { readonly saidMs: number }>()
        let nowMs = START_MS
        let offset = 0
        for (const now of steps) {
          if (now.kind === 'add') {
            const entry = { dueMs: nowMs + now.delay, offset: offset++, target: offset % 5 }
            model.set(entry.offset, { ...entry, saidMs: entry.dueMs })
            index.add(entry.dueMs, entry.offset, entry.target)
          } else if (now.kind === 'move') {
            nowMs += now.by
            const due = inOrder([...model.values()].filter(({ dueMs }) => dueMs <= nowMs))
            expect(popDue(index, nowMs)).toEqual(
              due.map(({ dueMs, offset, target }) => ({ dueMs, offset, target })),
            )
            for (const { offset } of due) model.delete(offset)
          } else {
            const entry = [...model.values()][now.which % Math.max(1, model.size)]
            if (entry === undefined) continue
            expect(index.remove(entry.dueMs, entry.offset)).toBe(entry.target)
            expect(index.remove(entry.dueMs, entry.offset)).toBe(-1)
            model.delete(entry.offset)
            if (now.kind === 'remove') continue
            // Back in, out of its turn.
            const dueMs = nowMs + now.delay
            index.add(dueMs, entry.offset, entry.target)
            model.set(entry.offset, { ...entry, dueMs })
          }
          expect(index.size).toBe(model.size)
          const firstMs = Math.min(Infinity, ...[...model.values()].map(({ dueMs }) => dueMs))
          expect(index.nextMs).toBeLessThanOrEqual(firstMs)
        }
        const seen: Entry[] = []
        index.visit(
          -Infinity,
          Infinity,
          () => Infinity,
          (dueMs, offset, target) => {
            seen.push({ dueMs, offset, target })
          },
        )
        expect(inOrder(seen)).toEqual(
          inOrder(
            [...model.values()].map(({ dueMs, offset, target }) => ({ dueMs, offset, target })),
          ),
        )
      }),
      { numRuns: 150 },
    )
  })

  it('pours a full hour bit by bit, and knows what waits meanwhile', () => {
    const index = new DelayIndex()
    const startMs = 100 * HOUR_MS
    index.advance(startMs - 2 * HOUR_MS)
    const dues = Array.from({ length: 1000 }, (_, i) => startMs + ((i * 7919) % 1000) * 10)
    for (const [offset, dueMs] of dues.entries()) index.add(dueMs, offset, 7)
    const left = new Set(dues.keys())
    let steps = 0
    for (; !index.advance(startMs + 5000, 64); steps++) {
      // One that has been poured, or not; and one that comes meanwhile.
      const offset = (steps * 37) % 1000
      if (left.delete(offset)) expect(index.remove(dues[offset] ?? 0, offset)).toBe(7)
      dues.push(startMs + 2000)
      index.add(startMs + 2000, dues.length - 1, 7)
      left.add(dues.length - 1)
      const seen = new Set<number>()
      index.visit(
        0,
        Infinity,
        () => Infinity,
        (_dueMs, found) => seen.add(found),
      )
      expect(seen).toEqual(left)
      expect(index.size).toBe(left.size)
    }
    expect(steps).toBeGreaterThan(10)
    const wanted = [...left]
      .filter((offset) => (dues[offset] ?? 0) <= startMs + 5000)
      .toSorted((a, b) => (dues[a] ?? 0) - (dues[b] ?? 0) || a - b)
    const popped: number[] = []
    while (index.firstMs <= startMs + 5000) popped.push(index.pop().offset)
    expect(popped).toEqual(wanted)
  })

  it('finds one that was put back with another due time', () => {
    const index = new DelayIndex()
    index.add(START_MS, 1, 4)
    index.add(START_MS, 2, 4)
    popDue(index, START_MS)
    index.add(START_MS + 500, 1, 4)
    expect(index.remove(START_MS, 1)).toBe(4)
    expect(index.size).toBe(0)
  })

  it('loses nothing when it has given memory back', () => {
    for (let count = 8; count < 80; count++) {
      const index = new DelayIndex()
      for (let i = 0; i < count; i++) index.add(START_MS + i, i, i)
      const removed = Math.floor(count / 2) + 1
      for (let i = 0; i < removed; i++) index.remove(START_MS + i, i)
      for (let i = count; i < count + 200; i++) index.add(START_MS + i, i, i)
      const due = popDue(index, START_MS + HOUR_MS)
      const expected = Array.from({ length: count + 200 - removed }, (_, i) => i + removed)
      expect(due.map(({ offset }) => offset)).toEqual(expected)
      expect(due.map(({ target }) => target)).toEqual(expected)
    }
  })

  it('takes a million out one by one, in any order, without looking at all of them each time', () => {
    const index = new DelayIndex()
    const random = new SeededRandom(3)
    const dues = Float64Array.from(
      { length: 1_000_000 },
      () => START_MS + random.below(24 * HOUR_MS),
    )
    index.advance(START_MS)
    for (const [offset, dueMs] of dues.entries()) index.add(dueMs, offset, 0)
    const startedMs = performance.now()
    for (let i = 0; i < dues.length; i++) {
      const offset = (i * 7_919) % dues.length
      if (index.remove(dues[offset]!, offset) !== 0) throw new Error(`${offset} is not there`)
    }
    expect(index.size).toBe(0)
    expect(performance.now() - startedMs).toBeLessThan(20_000)
  })
})
