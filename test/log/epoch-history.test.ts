import { array, assert, integer, property, tuple } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { EpochHistory } from '../../src/log/epoch-history.ts'

/** Batches of rising offset and epoch, as a log writes them: [offset, epoch]. */
const batches = array(tuple(integer({ min: 1, max: 5 }), integer({ min: 0, max: 2 })), {
  maxLength: 30,
}).map((steps) => {
  let [offset, epoch] = [0, 1]
  return steps.map(([size, rise]): [number, number] => {
    epoch += rise
    offset += size
    return [offset - size, epoch]
  })
})

function historyOf(all: readonly (readonly [number, number])[]): EpochHistory {
  const history = new EpochHistory()
  for (const [offset, epoch] of all) history.note(epoch, toOffset(offset))
  return history
}

describe('the history of leader epochs', () => {
  it('allows each batch its own epoch and no other', () => {
    assert(
      property(batches, integer({ min: 0, max: 60 }), (all, other) => {
        const history = historyOf(all)
        for (const [offset, epoch] of all) {
          expect(history.allows(epoch, toOffset(offset))).toBe(true)
          expect(history.allows(other, toOffset(offset))).toBe(other === epoch)
        }
      }),
    )
  })

  it('is the same after it was written down and read back', () => {
    assert(
      property(batches, (all) => {
        const history = historyOf(all)
        const read = EpochHistory.from(history.starts, history.complete)
        for (const [offset, epoch] of all) expect(read.allows(epoch, toOffset(offset))).toBe(true)
        expect(read.latest).toBe(history.latest)
      }),
    )
  })

  it('forgets what never reached the disk', () => {
    const history = historyOf([
      [0, 1],
      [10, 2],
      [20, 3],
    ])
    history.rollBackTo(toOffset(20))
    expect(history.latest).toBe(2)
    expect(history.allows(2, toOffset(25))).toBe(true)
    history.rollBackTo(toOffset(0))
    expect(history.latest).toBe(0)
  })

  it('still lets a reader pass over what lies below the log start', () => {
    assert(
      property(batches, integer({ min: 0, max: 100 }), (all, start) => {
        const history = historyOf(all)
        history.dropBelow(toOffset(start))
        for (const [offset, epoch] of all) {
          expect(history.allows(epoch, toOffset(offset))).toBe(true)
          if (offset >= start) expect(history.allows(epoch + 1, toOffset(offset))).toBe(false)
        }
      }),
    )
  })

  it('is bounded: of the oldest epochs only the upper end is known', () => {
    const history = new EpochHistory()
    for (let epoch = 1; epoch <= 3000; epoch++) history.note(epoch, toOffset(epoch * 10))
    expect(history.starts.length).toBeLessThanOrEqual(1024)
    expect(history.allows(5, toOffset(50))).toBe(true)
    expect(history.allows(2999, toOffset(50))).toBe(false)
    expect(history.allows(3000, toOffset(30_000))).toBe(true)
  })
})
