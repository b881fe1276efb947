import { array, assert, constant, nat, oneof, property } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Ring } from '../../src/bytes/ring.ts'

describe('Ring', () => {
  it('is empty at first and says so', () => {
    const ring = new Ring<number>()
    expect([ring.length, ring.peek(), ring.shift(), ring.at(0), ring.last()]).toEqual([
      0,
      undefined,
      undefined,
      undefined,
      undefined,
    ])
  })

  it('does what an array does, through growth and wrap-around', () => {
    const step = oneof(
      nat().map((value) => ({ push: value })),
      constant('shift'),
      constant('shift'),
    )
    assert(
      property(array(step, { maxLength: 200 }), array(nat(), { maxLength: 30 }), (steps, first) => {
        const ring = new Ring<number>(4)
        const model: number[] = []
        for (const value of first) {
          ring.push(value)
          model.push(value)
        }
        for (const each of steps) {
          if (typeof each === 'string') {
            expect(ring.shift()).toBe(model.shift())
          } else {
            ring.push(each.push)
            model.push(each.push)
          }
          expect([...ring]).toEqual(model)
          expect(ring.length).toBe(model.length)
          expect(ring.peek()).toBe(model[0])
          expect(ring.last()).toBe(model.at(-1))
          expect(ring.at(1)).toBe(model[1])
          expect(ring.at(model.length)).toBeUndefined()
          expect(ring.at(-1)).toBeUndefined()
        }
      }),
    )
  })

  it('is empty after clear, and of use again', () => {
    const ring = new Ring<string>()
    for (let index = 0; index < 100; index++) ring.push(`item ${index}`)
    ring.clear()
    expect(ring.length).toBe(0)
    ring.push('again')
    expect([...ring]).toEqual(['again'])
  })
})
