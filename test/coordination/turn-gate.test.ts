import { describe, expect, it } from 'vitest'
import { TurnGate } from '../../src/coordination/turn-gate.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'

function aGate(costPerTurn: number): { clock: FakeClock; gate: TurnGate; done: string[] } {
  const clock = new FakeClock()
  return { clock, gate: new TurnGate(clock, costPerTurn), done: [] }
}

const noTime = { wallMs: () => 0, monotonicMs: () => 0 }

function addTurn(turns: (() => void)[], fire: () => void): () => void {
  turns.push(fire)
  return () => undefined
}

describe('TurnGate', () => {
  it('lets through at once what fits in a turn, and the rest in later ones, in order', async () => {
    const { clock, gate, done } = aGate(2)
    for (const name of ['a', 'b', 'c', 'd', 'e']) gate.enter(1, () => done.push(name))
    expect(done).toEqual(['a', 'b'])
    await clock.advance(0)
    expect(done).toEqual(['a', 'b', 'c', 'd', 'e'])
  })

  it('lets no more through in a later turn than in the first', () => {
    const turns: (() => void)[] = []
    const clock = { ...noTime, schedule: (_: number, fire: () => void) => addTurn(turns, fire) }
    const gate = new TurnGate(clock, 2)
    let passed = 0
    for (let i = 0; i < 5; i++) gate.enter(1, () => passed++)
    const seen = [passed]
    for (let turn = turns.shift(); turn !== undefined; turn = turns.shift()) {
      turn()
      seen.push(passed)
    }
    expect(seen).toEqual([2, 4, 5, 5])
  })

  it('gives what costs more than a turn a turn, not none', async () => {
    const { clock, gate, done } = aGate(2)
    gate.enter(100, () => done.push('large'))
    gate.enter(1, () => done.push('next'))
    expect(done).toEqual(['large'])
    await clock.advance(0)
    expect(done).toEqual(['large', 'next'])
  })

  it('has a whole turn again after an idle time', async () => {
    const { clock, gate, done } = aGate(2)
    gate.enter(1, () => done.push('a'))
    await clock.advance(1000)
    for (const name of ['b', 'c', 'd']) gate.enter(1, () => done.push(name))
    expect(done).toEqual(['a', 'b', 'c'])
  })

  it('keeps those that wait and those that act in one order', async () => {
    const { clock, gate, done } = aGate(1)
    const waiter = async (name: string): Promise<void> => {
      await gate.pass(1)
      done.push(name)
    }
    const all = [waiter('a'), waiter('b')]
    gate.enter(1, () => done.push('c'))
    await settle()
    expect(done).toEqual(['a'])
    await clock.advance(0)
    await clock.advance(0)
    await Promise.all(all)
    expect(done).toEqual(['a', 'b', 'c'])
  })
})
