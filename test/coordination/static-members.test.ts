import { describe, expect, it } from 'vitest'
import { settle } from '../support/fake-clock.ts'
import { GroupBench } from '../support/group-bench.ts'

describe('a static member that left in good order', () => {
  it('hands over at once what it was about to give up anyway', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join({ instanceId: 'a' })
    a.confirms = false
    const b = await bench.join()
    await bench.clock.advance(1000)
    expect(a.partitions).toHaveLength(2)
    expect(b.partitions).toEqual([])
    const left = a.session.leave()
    await settle()
    await left
    expect(b.partitions).toHaveLength(2)
  })

  it('holds nobody up when partitions are to move from it while it is away', async () => {
    const bench = await new GroupBench().start({ orders: 6 })
    const a = await bench.join({ instanceId: 'a' })
    const b = await bench.join()
    await bench.clock.advance(2000)
    expect([a, b].map(({ partitions }) => partitions.length)).toEqual([3, 3])
    const had = new Set(a.partitions)
    await a.session.leave()
    const c = await bench.join()
    await bench.clock.advance(2000)
    expect(c.partitions).toHaveLength(2)
    const again = await bench.join({ instanceId: 'a' })
    await bench.clock.advance(2000)
    expect(again.partitions).toHaveLength(2)
    expect(again.partitions.every((name) => had.has(name))).toBe(true)
    expect([again, b, c].flatMap(({ partitions }) => partitions).sort()).toEqual(
      Array.from({ length: 6 }, (_, i) => `orders-${i}`),
    )
  })
})
