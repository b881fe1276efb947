import { describe, expect, it } from 'vitest'
import { GroupBench } from '../../support/group-bench.ts'
import { settle } from '../../support/fake-clock.ts'

describe('a large member', () => {
  it('may subscribe to the longest list there is, and disturbs nobody', async () => {
    const bench = await new GroupBench({ partitions: 1 }).start({ orders: 2 })
    const other = await bench.join()
    const topics = Array.from({ length: 10_000 }, (_, i) => `topic-${i}`.padEnd(249, 'x'))
    const large = await bench.join({ group: 'large', subscription: { topics, pattern: '' } })
    await bench.clock.advance(2000)
    expect(large.error).toBeUndefined()
    expect(other.error).toBeUndefined()
    expect(await other.commit('orders', 0, 0)).toBeUndefined()
    await bench.restart()
    const described = await bench.groups.describe('large')
    expect(described.members[0]?.subscription.topics).toHaveLength(10_000)
  })
})

describe('a static member that leaves while it is giving up partitions', () => {
  it('keeps its place for its session timeout, whatever its rebalance timeout is', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join({ instanceId: 'a', rebalanceTimeoutMs: 5000 })
    a.confirms = false
    const b = await bench.join()
    await bench.clock.advance(1000)
    expect(a.partitions).toHaveLength(2)
    const kept = a.partitions
    await a.session.leave()
    for (let i = 0; i < 10; i++) {
      b.session.heartbeat()
      await bench.clock.advance(1000)
    }
    expect(b.partitions).toHaveLength(2)
    const again = await bench.join({ instanceId: 'a' })
    await settle()
    expect(again.partitions).toEqual(kept)
  })
})
