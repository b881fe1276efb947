import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { DAY_MS, HOUR_MS } from '../../../src/common/units.ts'
import { encodeGroupEvent } from '../../../src/coordination/group/group-events.ts'
import { MOST_GAINS } from '../../../src/coordination/group/group-shard.ts'
import { StateLog } from '../../../src/coordination/state-log.ts'
import { settle } from '../../support/fake-clock.ts'
import { aCommit, codeOf, GroupBench, type TestMember } from '../../support/group-bench.ts'

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

describe('a shard that is loaded again because a write failed', () => {
  it('decides nothing on what it knew before', async () => {
    const options = { partitions: 1, rebalanceIntervalMs: 5000 }
    const bench = await new GroupBench(options).start({ orders: 2 })
    await bench.produce('orders', 0, 10)
    const a = await bench.join()
    // The subscription reaches its log; the commit does not reach the other one.
    bench.faults.beforeAppend.set('__offsets-0', () => {
      throw new BrokerError('STORAGE_FULL', 'no room for this one')
    })
    const committing = codeOf(a.session.commit(a.epoch, [aCommit('orders', 0, 1)]))
    const subscribing = a.session.subscribe({ topics: ['orders', 'payments'], pattern: '' })
    await Promise.all([committing, subscribing])
    bench.faults.beforeAppend.clear()
    expect(a.error?.code).toBe('LOADING')
    await bench.clock.advance(1500)
    await a.resume(bench)
    expect(a.partitions).toEqual(['orders-0', 'orders-1'])
    // When the next target assignment was due for the group as it was known before.
    await bench.clock.advance(4000)
    const { groupEpoch } = await bench.groups.describe('billing')
    await bench.restart()
    expect((await bench.groups.describe('billing')).groupEpoch).toBe(groupEpoch)
  })
})

describe('a group whose record does not say since when it has been empty', () => {
  it('keeps its offsets for their whole time from the start on', async () => {
    const bench = await new GroupBench({ partitions: 1 }).start({ orders: 1 })
    await bench.produce('orders', 0, 10)
    expect(
      await bench.groups.commit('billing', { memberId: '', memberEpoch: 0 }, [
        aCommit('orders', 0, 4),
      ]),
    ).toEqual([])
    await bench.clock.advance(6 * DAY_MS)
    // As a crash leaves it between the batch in which the last member went and the next.
    const log = new StateLog({
      partition: bench.topics.getPartition('__groups', 0),
      clock: bench.clock,
      onCorruption: 'halt',
      onSkipped: () => undefined,
    })
    await log.replay(() => undefined)
    await log.write([
      encodeGroupEvent({
        type: 'group',
        group: 'billing',
        record: { type: 'stream', epoch: 7, assignor: 'uniform', emptySinceMs: undefined },
      }),
    ])
    await bench.restart()
    await bench.clock.advance(2 * DAY_MS)
    expect(await bench.groups.committed('billing')).toHaveLength(1)
    await bench.clock.advance(5 * DAY_MS + HOUR_MS)
    expect(await bench.groups.list()).toEqual([])
  })
})

describe('a member that gives up more partitions than can be given on in one turn', () => {
  it('leaves none of them without an owner', async () => {
    const count = MOST_GAINS * 2 + 50
    const bench = await new GroupBench({ partitions: 1 }).start({ orders: count })
    const first = await bench.join()
    const others: TestMember[] = []
    for (let i = 1; i < count; i++) others.push(await bench.join())
    await bench.clock.advance(3000)
    const owned = [first, ...others].flatMap(({ partitions }) => partitions)
    expect(owned).toHaveLength(count)
    expect(new Set(owned).size).toBe(count)
    expect((await bench.groups.describe('billing')).state).toBe('stable')
  })
})
