import { describe, expect, it } from 'vitest'
import { Budgets, ByteBudget } from '../../src/grpc/flow-control.ts'

describe('a byte budget', () => {
  it('wakes those who wait when there is room, and not before', () => {
    const budget = new ByteBudget(10)
    budget.take(15)
    let woken = 0
    budget.onRoom(() => woken++)
    budget.onRoom(() => woken++)
    budget.give(5)
    expect([budget.hasRoom, woken]).toEqual([false, 0])
    budget.give(1)
    expect([budget.hasRoom, woken]).toEqual([true, 2])
    budget.give(9)
    expect([budget.usedBytes, woken]).toEqual([0, 2])
  })

  it('wakes at once, but not in the same breath, when there is room', async () => {
    let woken = 0
    new ByteBudget(1).onRoom(() => woken++)
    expect(woken).toBe(0)
    await Promise.resolve()
    expect(woken).toBe(1)
  })
})

describe('the budgets of connections', () => {
  it('are shared by the streams of a connection and forgotten with the last', () => {
    const budgets = new Budgets()
    const first = budgets.enter('a:1')
    expect(budgets.enter('a:1')).toBe(first)
    expect(budgets.enter('b:1')).not.toBe(first)
    budgets.leave('a:1')
    expect(budgets.connections).toBe(2)
    budgets.leave('a:1')
    budgets.leave('b:1')
    expect(budgets.connections).toBe(0)
  })
})
