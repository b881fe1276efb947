import { array, assert, constantFrom, nat, property, record } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { OffsetTracker } from '../../src/client/offset-tracker.ts'

/** What the tracker promises, without any cleverness: a set of finished offsets and a list of units. */
class NaiveTracker {
  /** `start` rises with what is finished of it; `key` is where it began. */
  readonly units: { readonly key: number; start: number; readonly end: number }[] = []
  readonly done: Set<number> = new Set()
  position: number

  constructor(from: number) {
    this.position = from
  }

  get finished(): number {
    const first = this.units.find((unit) => !this.done.has(unit.end))
    return first === undefined ? this.position : first.start
  }

  get unfinished(): number {
    return this.units.filter((unit) => !this.done.has(unit.end)).length
  }
}

const step = record({
  kind: constantFrom('begin', 'begin', 'finish', 'finish', 'advance', 'passTo', 'finishTo'),
  gap: nat(3),
  length: nat(4),
  pick: nat(),
})

describe('an offset tracker', () => {
  it('has nothing finished above where it starts, and everything below', () => {
    const tracker = new OffsetTracker(40)
    expect([tracker.finished, tracker.position, tracker.unfinished]).toEqual([40, 40, 0])
    tracker.begin(40, 41)
    expect([tracker.finished, tracker.position, tracker.unfinished]).toEqual([40, 41, 1])
  })

  it('rises over what finished out of order once the first has finished', () => {
    const tracker = new OffsetTracker(0)
    for (let offset = 0; offset < 5; offset++) tracker.begin(offset, offset + 1)
    expect(tracker.finish(1)).toBe(false)
    expect(tracker.finish(3)).toBe(false)
    expect(tracker.finished).toBe(0)
    expect(tracker.finish(0)).toBe(true)
    expect(tracker.finished).toBe(2)
    tracker.finish(2)
    expect(tracker.finished).toBe(4)
    expect(tracker.finish(4)).toBe(true)
    expect([tracker.finished, tracker.units]).toEqual([5, 0])
  })

  it('counts gaps as finished, between units and at the end', () => {
    const tracker = new OffsetTracker(0)
    tracker.begin(7, 8)
    expect(tracker.finished).toBe(7)
    tracker.passTo(20)
    expect(tracker.finished).toBe(7)
    tracker.finish(7)
    expect(tracker.finished).toBe(20)
  })

  it('finishes a part of a unit, and the rest of it by its old start', () => {
    const tracker = new OffsetTracker(0)
    tracker.begin(0, 10)
    tracker.begin(10, 20)
    expect(tracker.advance(0, 4)).toBe(true)
    expect(tracker.finished).toBe(4)
    expect(tracker.advance(0, 2)).toBe(false)
    expect(tracker.advance(10, 15)).toBe(false)
    expect(tracker.finished).toBe(4)
    expect(tracker.finish(0)).toBe(true)
    expect(tracker.finished).toBe(15)
    tracker.finish(10)
    expect(tracker.finished).toBe(20)
  })

  it('finishes a unit to which it has advanced to the end before', () => {
    const tracker = new OffsetTracker(0)
    tracker.begin(0, 1)
    tracker.advance(0, 1)
    expect([tracker.finished, tracker.unfinished]).toEqual([1, 1])
    tracker.finishTo(1)
    expect([tracker.finished, tracker.unfinished]).toEqual([1, 0])
  })

  it('does not take the finish of a unit that it has let go for that of the next', () => {
    const tracker = new OffsetTracker(0)
    tracker.begin(0, 1)
    tracker.finish(0)
    tracker.begin(1, 2)
    expect(tracker.finish(0)).toBe(false)
    expect([tracker.finished, tracker.unfinished]).toEqual([1, 1])
  })

  it('ignores what it does not know, and what is finished already', () => {
    const tracker = new OffsetTracker(0)
    tracker.begin(0, 1)
    expect(tracker.finish(5)).toBe(false)
    tracker.finish(0)
    expect(tracker.finish(0)).toBe(false)
    expect([tracker.finished, tracker.unfinished]).toEqual([1, 0])
  })

  it('needs memory only from the first unfinished unit on', () => {
    const tracker = new OffsetTracker(0)
    for (let offset = 0; offset < 100_000; offset++) {
      tracker.begin(offset, offset + 1)
      if (offset >= 10) tracker.finish(offset - 10)
      expect(tracker.units).toBeLessThanOrEqual(11)
    }
  })

  it('agrees with a naive model after any history', () => {
    assert(
      property(nat(50), array(step, { maxLength: 200 }), (from, steps) => {
        const tracker = new OffsetTracker(from)
        const model = new NaiveTracker(from)
        for (const { kind, gap, length, pick } of steps) {
          if (kind === 'begin') {
            const start = model.position + gap
            const end = start + length + 1
            tracker.begin(start, end)
            model.units.push({ key: start, start, end })
            model.position = end
          } else if (kind === 'passTo') {
            tracker.passTo(model.position + gap)
            model.position += gap
          } else if (kind === 'finishTo') {
            const offset = from + (pick % (model.position - from + 1))
            tracker.finishTo(offset)
            for (const unit of model.units) {
              if (unit.end <= offset) model.done.add(unit.end)
              else if (unit.start < offset) unit.start = offset
            }
          } else if (model.units.length > 0) {
            const unit = model.units[pick % model.units.length]!
            if (kind === 'finish') {
              tracker.finish(unit.key)
              model.done.add(unit.end)
            } else {
              const offset = unit.start + (pick % (length + 1))
              tracker.advance(unit.key, offset)
              if (!model.done.has(unit.end)) {
                unit.start = Math.max(unit.start, Math.min(offset, unit.end))
              }
            }
          }
          expect(tracker.finished).toBe(model.finished)
          expect(tracker.position).toBe(model.position)
          expect(tracker.unfinished).toBe(model.unfinished)
        }
      }),
      { numRuns: 2000 },
    )
  })
})
