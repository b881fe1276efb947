import { type Arbitrary, array, assert, constantFrom, nat, property, tuple } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { KeyLanes } from '../../../src/coordination/queue/key-lanes.ts'

const NO_KEYS = { concurrencyKey: undefined, rateKey: undefined }
const yes = (): 'yes' => 'yes'

function lanesOf(keys: readonly string[], limit = 1): KeyLanes {
  const lanes = new KeyLanes()
  for (const [offset, key] of keys.entries()) lanes.add(offset, key, limit, NO_KEYS)
  return lanes
}

/** Gives out all that may be given out. */
function drain(lanes: KeyLanes): number[] {
  const offsets: number[] = []
  for (let record = lanes.peek(yes); record !== undefined; record = lanes.peek(yes)) {
    lanes.hold(record)
    offsets.push(record.offset)
  }
  return offsets
}

describe('lanes of keys', () => {
  it('give out of each key the oldest, and go on when it is done', () => {
    const lanes = lanesOf(['a', 'a', 'b', 'a', 'c'])
    expect(drain(lanes)).toEqual([0, 2, 4])
    lanes.remove(0)
    expect(drain(lanes)).toEqual([1])
    expect(lanes.findBlocking(3)).toBe(1)
    lanes.giveBack(1)
    expect(lanes.findBlocking(3)).toBe(1)
    expect(drain(lanes)).toEqual([1])
  })

  it('let others pass one that is set aside, and take it in front of them when it is back', () => {
    const lanes = lanesOf(['a', 'a', 'a'])
    expect(drain(lanes)).toEqual([0])
    lanes.setAside(0)
    expect(drain(lanes)).toEqual([1])
    lanes.giveBack(0)
    lanes.remove(1)
    expect(drain(lanes)).toEqual([0])
  })

  it('hold up one key only when other limits say later', () => {
    const lanes = new KeyLanes()
    for (const [offset, key] of ['a', 'b', 'a'].entries())
      lanes.add(offset, key, Infinity, { concurrencyKey: key, rateKey: undefined })
    const admit = (record: { readonly concurrencyKey: string | undefined }): 'yes' | 'later' =>
      record.concurrencyKey === 'a' ? 'later' : 'yes'
    const record = lanes.peek(admit)
    expect(record?.offset).toBe(1)
    if (record !== undefined) lanes.hold(record)
    expect(lanes.peek(admit)).toBeUndefined()
    expect(lanes.hasReady).toBe(false)
    lanes.retryStuck()
    expect(drain(lanes)).toEqual([0, 2])
  })

  it('forget keys that have no records', () => {
    const lanes = lanesOf(['a', 'b', 'b'])
    expect([lanes.keys, lanes.size, lanes.waiting]).toEqual([2, 3, 3])
    for (const offset of [0, 1, 2]) lanes.remove(offset)
    expect([lanes.keys, lanes.size, lanes.waiting]).toEqual([0, 0, 0])
    expect(drain(lanes)).toEqual([])
  })

  type Step = readonly ['add' | 'take' | 'give back' | 'aside' | 'remove' | 'refuse', number]
  const aStep: Arbitrary<Step> = tuple(
    constantFrom('add', 'take', 'take', 'give back', 'aside', 'remove', 'refuse'),
    nat(100),
  )

  it.each([1, 2, Infinity])(
    'give out whatever may be given out and nothing else, %s of a key at a time',
    (limit) => {
      assert(
        property(array(aStep, { maxLength: 100 }), (steps) => {
          const lanes = new KeyLanes()
          const model = new Map<number, { key: string; place: 'waiting' | 'held' | 'aside' }>()
          const pick = (place: string | undefined, n: number): number | undefined => {
            const found = [...model].filter(([, one]) => place === undefined || one.place === place)
            return found[n % Math.max(1, found.length)]?.[0]
          }
          const heldOf = (key: string): number =>
            [...model.values()].filter((one) => one.key === key && one.place === 'held').length
          const isFree = (offset: number, key: string): boolean =>
            heldOf(key) < limit &&
            ![...model].some(
              ([at, one]) => at < offset && one.key === key && one.place === 'waiting',
            )
          let next = 0
          for (const [what, n] of steps) {
            if (what === 'add') {
              const key = 'abc'[n % 3] ?? ''
              lanes.add(next, key, limit, NO_KEYS)
              model.set(next++, { key, place: 'waiting' })
            } else if (what === 'take') {
              const record = lanes.peek(yes)
              const free = [...model].filter(
                ([offset, one]) => one.place === 'waiting' && isFree(offset, one.key),
              )
              if (record === undefined) expect(free).toEqual([])
              else {
                expect(free.map(([offset]) => offset)).toContain(record.offset)
                lanes.hold(record)
                const { key } = model.get(record.offset) ?? { key: '' }
                model.set(record.offset, { key, place: 'held' })
              }
            } else if (what === 'refuse') {
              // Whatever was refused is offered again, when told that it may be.
              lanes.peek(() => 'later')
              expect(lanes.peek(yes)).toBeUndefined()
              lanes.retryStuck()
            } else {
              const place = what === 'aside' ? 'held' : undefined
              const offset = pick(place, n)
              if (offset === undefined) continue
              const { key } = model.get(offset) ?? { key: '' }
              if (what === 'remove') {
                lanes.remove(offset)
                model.delete(offset)
              } else if (what === 'aside') {
                lanes.setAside(offset)
                model.set(offset, { key, place: 'aside' })
              } else {
                lanes.giveBack(offset)
                model.set(offset, { key, place: 'waiting' })
              }
            }
            expect(lanes.size).toBe(model.size)
            expect(lanes.keys).toBe(new Set([...model.values()].map((one) => one.key)).size)
            expect(lanes.waiting).toBe(
              [...model.values()].filter((one) => one.place === 'waiting').length,
            )
          }
        }),
        { numRuns: 300 },
      )
    },
  )
})
