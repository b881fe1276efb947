import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { DAY_MS, MINUTE_MS } from '../../src/common/units.ts'
import { aCommit, codeOf, GroupBench, type TestMember } from '../support/group-bench.ts'
import { settle } from '../support/fake-clock.ts'

const SESSION_MS = 45_000

function everything(topic: string, partitions: number): string[] {
  return Array.from({ length: partitions }, (_, i) => `${topic}-${i}`).sort()
}

function union(...members: TestMember[]): string[] {
  return members.flatMap((member) => member.partitions).sort()
}

/** Lets time pass with heartbeats of `members`, as living ones send them. */
async function pass(bench: GroupBench, ms: number, ...members: TestMember[]): Promise<void> {
  for (let left = ms; left > 0; left -= 1000) {
    for (const member of members) member.session.heartbeat()
    await bench.clock.advance(Math.min(1000, left))
  }
}

describe('membership', () => {
  it('gives the first member everything at once', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join()
    expect(a.partitions).toEqual(everything('orders', 4))
    expect((await bench.groups.describe('billing')).state).toBe('stable')
  })

  it('gives a partition to its next owner only after the former has confirmed', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join()
    a.confirms = false
    const b = await bench.join()
    await bench.clock.advance(1000)
    expect(a.partitions).toHaveLength(2)
    expect(b.partitions).toEqual([])
    const described = await bench.groups.describe('billing')
    expect(described.state).toBe('reconciling')
    expect(
      described.members.find(({ memberId }) => memberId === a.id)?.revoking[0]?.partitions,
    ).toHaveLength(2)
    a.confirmLast()
    await settle()
    expect(union(a, b)).toEqual(everything('orders', 4))
    expect(b.partitions).toHaveLength(2)
  })

  it('moves nine of ninety partitions to a tenth member and leaves the others alone', async () => {
    const bench = await new GroupBench().start({ orders: 90 })
    const members: TestMember[] = []
    for (let i = 0; i < 9; i++) members.push(await bench.join())
    await bench.clock.advance(2000)
    expect(members.map((member) => member.partitions.length)).toEqual(Array(9).fill(10))
    const before = members.map((member) => new Set(member.partitions))
    const told = members.map((member) => member.assignments.length)
    const tenth = await bench.join()
    await bench.clock.advance(2000)
    expect(tenth.partitions).toHaveLength(9)
    for (const [i, member] of members.entries()) {
      expect(member.partitions).toHaveLength(9)
      expect(member.partitions.every((name) => before[i]?.has(name))).toBe(true)
      expect(member.assignments.length - (told[i] ?? 0)).toBe(1)
    }
    expect(union(...members, tenth)).toEqual(everything('orders', 90))
  })

  it('hands the partitions of a silent member over when its session has expired, not before', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join()
    const b = await bench.join()
    await bench.clock.advance(1000)
    expect(union(a, b)).toEqual(everything('orders', 4))
    a.session.detach()
    await pass(bench, SESSION_MS - 1500, b)
    expect(b.partitions).toHaveLength(2)
    await pass(bench, 3000, b)
    expect(b.partitions).toHaveLength(4)
    expect((await bench.groups.describe('billing')).members).toHaveLength(1)
  })

  it('hands the partitions of a leaving member over at once', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join()
    const b = await bench.join()
    await bench.clock.advance(2000)
    const leaving = a.session.leave()
    await bench.clock.advance(1000)
    await leaving
    expect(b.partitions).toHaveLength(4)
  })

  it('takes a member back that returns on another stream, and moves nothing', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join()
    const { groupEpoch } = await bench.groups.describe('billing')
    a.session.detach()
    await bench.clock.advance(30_000)
    await a.resume(bench)
    expect(a.session.resumed).toBe(true)
    expect(a.partitions).toEqual(everything('orders', 4))
    await pass(bench, 2 * SESSION_MS, a)
    expect((await bench.groups.describe('billing')).groupEpoch).toBe(groupEpoch)
  })

  it('takes members back after a restart of the broker, and moves nothing', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join()
    const b = await bench.join()
    await bench.clock.advance(2000)
    await bench.produce('orders', 0, 5)
    const owner = a.partitions.includes('orders-0') ? a : b
    expect(await owner.commit('orders', 0, 3)).toBeUndefined()
    const had = [a.partitions, b.partitions]
    const { groupEpoch } = await bench.groups.describe('billing')
    await bench.restart()
    await a.resume(bench)
    await b.resume(bench)
    await pass(bench, SESSION_MS + 5000, a, b)
    expect([a.partitions, b.partitions]).toEqual(had)
    expect(owner.committedOf('orders', 0)).toBe(3)
    expect((await bench.groups.describe('billing')).groupEpoch).toBe(groupEpoch)
  })

  it('puts a member out that does not give up in time, and waits for its session before others begin', async () => {
    const bench = await new GroupBench().start({ orders: 2 })
    const a = await bench.join({ rebalanceTimeoutMs: 10_000 })
    a.confirms = false
    const b = await bench.join()
    await pass(bench, 9000, a, b)
    expect(a.error).toBeUndefined()
    await pass(bench, 3000, a, b)
    expect(a.error?.code).toBe('UNKNOWN_MEMBER')
    expect(b.partitions).toEqual([])
    expect(await codeOf(a.session.commit(a.epoch, [aCommit('orders', 0, 0)]))).toBe(
      'UNKNOWN_MEMBER',
    )
    await pass(bench, SESSION_MS + 1000, b)
    expect(b.partitions).toHaveLength(2)
  })

  it('picks up new topics of a pattern and new partitions at once', async () => {
    const bench = await new GroupBench().start({ 'orders.eu': 1 })
    const a = await bench.join({ subscription: { topics: [], pattern: '^orders\\.' } })
    expect(a.partitions).toEqual(['orders.eu-0'])
    await bench.topics.create({ name: 'orders.us', partitions: 1 })
    await bench.topics.create({ name: 'users', partitions: 1 })
    await bench.topics.addPartitions('orders.eu', 2)
    await pass(bench, 2000, a)
    expect(a.partitions).toEqual(['orders.eu-0', 'orders.eu-1', 'orders.us-0'])
  })

  it('waits for a topic that does not exist yet', async () => {
    const bench = await new GroupBench().start()
    const a = await bench.join()
    expect(a.partitions).toEqual([])
    await bench.topics.create({ name: 'orders', partitions: 1 })
    await pass(bench, 2000, a)
    expect(a.partitions).toEqual(['orders-0'])
  })

  it('drops a deleted topic, and what was committed for it does not come back with its name', async () => {
    const bench = await new GroupBench().start({ orders: 1 })
    const a = await bench.join()
    await bench.produce('orders', 0, 5)
    await a.commit('orders', 0, 5)
    await bench.topics.delete('orders')
    await pass(bench, 2000, a)
    expect(a.partitions).toEqual([])
    await bench.topics.create({ name: 'orders', partitions: 1 })
    await pass(bench, 2000, a)
    expect(a.partitions).toEqual(['orders-0'])
    expect(a.committedOf('orders', 0)).toBeUndefined()
    expect(await bench.groups.committed('billing')).toEqual([])
  })

  it('gives a static member that left and came back what it had, and disturbs nobody', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join({ instanceId: 'a' })
    const b = await bench.join({ instanceId: 'b' })
    await bench.clock.advance(2000)
    const had = a.partitions
    const told = b.assignments.length
    await a.session.leave()
    await pass(bench, 20_000, b)
    const again = await bench.join({ instanceId: 'a' })
    await pass(bench, 5000, again, b)
    expect(again.partitions).toEqual(had)
    expect(b.assignments.length).toBe(told)
  })

  it('gives a static member that was killed its place at once, and its partitions when the old session is over', async () => {
    const bench = await new GroupBench().start({ orders: 4 })
    const a = await bench.join({ instanceId: 'a' })
    const b = await bench.join({ instanceId: 'b' })
    await bench.clock.advance(2000)
    const had = a.partitions
    const told = b.assignments.length
    a.session.detach()
    const again = await bench.join({ instanceId: 'a' })
    await pass(bench, 20_000, again, b)
    expect(again.partitions).toEqual([])
    expect(await codeOf(a.resume(bench))).toBe('INSTANCE_FENCED')
    await pass(bench, SESSION_MS, again, b)
    expect(again.partitions).toEqual(had)
    expect(b.assignments.length).toBe(told)
  })

  it('keeps co-partitioned topics together with the range assignor', async () => {
    const bench = await new GroupBench().start({ orders: 4, bills: 4 })
    const subscription = { topics: ['orders', 'bills'], pattern: '' }
    const a = await bench.join({ subscription, assignor: 'range' })
    const b = await bench.join({ subscription })
    await bench.clock.advance(2000)
    for (const member of [a, b]) {
      const numbers = (topic: string): string[] =>
        member.partitions.filter((name) => name.startsWith(topic)).map((name) => name.slice(-1))
      expect(numbers('orders')).toEqual(numbers('bills'))
      expect(numbers('orders')).toHaveLength(2)
    }
  })
})

describe('offsets', () => {
  it('remembers what was committed, through a restart, for whoever owns the partition next', async () => {
    const bench = await new GroupBench().start({ orders: 1 })
    await bench.produce('orders', 0, 10)
    const a = await bench.join()
    expect(await a.commit('orders', 0, 7, { metadata: 'note' })).toBeUndefined()
    await bench.restart()
    const [offset] = await bench.groups.committed('billing')
    expect(offset).toMatchObject({ topic: 'orders', partition: 0, offset: 7, metadata: 'note' })
    await bench.clock.advance(SESSION_MS)
    const b = await bench.join()
    await bench.clock.advance(1000)
    expect(b.committedOf('orders', 0)).toBe(7)
  })

  it('fences a commit by what is owned and since when', async () => {
    const bench = await new GroupBench().start({ orders: 2 })
    await bench.produce('orders', 0, 10)
    await bench.produce('orders', 1, 10)
    const a = await bench.join()
    const first = a.epoch
    const b = await bench.join()
    await bench.clock.advance(1000)
    const mine = Number(a.partitions[0]?.slice(-1))
    const other = 1 - mine
    expect((await a.commit('orders', other, 5))?.code).toBe('PARTITION_NOT_OWNED')
    // It kept this one all the while: a commit with the epoch of before the rebalance is as good as one after.
    expect(await a.commit('orders', mine, 5, { epoch: first })).toBeUndefined()
    expect((await a.commit('orders', mine, 5, { epoch: first - 1 }))?.code).toBe(
      'STALE_MEMBER_EPOCH',
    )
    expect((await a.commit('orders', mine, 5, { epoch: a.epoch + 9 }))?.code).toBe(
      'STALE_MEMBER_EPOCH',
    )
    expect((await b.commit('orders', other, 5, { epoch: first }))?.code).toBe('STALE_MEMBER_EPOCH')
    expect(await b.commit('orders', other, 5)).toBeUndefined()
  })

  it('refuses offsets beyond the end, negative ones, long notes and strange partitions, each alone', async () => {
    const bench = await new GroupBench().start({ orders: 1 })
    await bench.produce('orders', 0, 10)
    const a = await bench.join()
    const commit = a.session.commit(a.epoch, [
      aCommit('orders', 0, 11),
      aCommit('orders', 0, -1),
      aCommit('orders', 1, 0),
      aCommit('nothing', 0, 0),
      aCommit('__offsets', 0, 0),
      aCommit('orders', 0, 9, 'é'.repeat(2049)),
      aCommit('orders', 0, 10, 'x'.repeat(4096)),
    ])
    await settle()
    expect((await commit).map(({ error }) => error.code)).toEqual([
      'OFFSET_OUT_OF_RANGE',
      'OFFSET_OUT_OF_RANGE',
      'UNKNOWN_PARTITION',
      'UNKNOWN_TOPIC',
      'TOPIC_INTERNAL',
      'INVALID_REQUEST',
    ])
    expect((await bench.groups.committed('billing'))[0]?.offset).toBe(10)
  })

  it('lets an administrator commit for a group without members only', async () => {
    const bench = await new GroupBench().start({ orders: 1 })
    await bench.produce('orders', 0, 10)
    const nobody = { memberId: '', memberEpoch: 0 }
    const made = bench.groups.commit('fresh', nobody, [aCommit('orders', 0, 4)])
    await settle()
    expect(await made).toEqual([])
    expect(await bench.groups.list()).toMatchObject([{ group: 'fresh', state: 'empty' }])
    await bench.join({ group: 'fresh' })
    expect(await codeOf(bench.groups.commit('fresh', nobody, [aCommit('orders', 0, 5)]))).toBe(
      'GROUP_NOT_EMPTY',
    )
  })

  it('forgets a group that has been empty for a week', async () => {
    const bench = await new GroupBench().start({ orders: 1 })
    await bench.produce('orders', 0, 10)
    const a = await bench.join()
    await a.commit('orders', 0, 4)
    await a.session.leave()
    await bench.clock.advance(7 * DAY_MS - 20 * MINUTE_MS)
    expect(await bench.groups.list()).toHaveLength(1)
    await bench.clock.advance(30 * MINUTE_MS)
    expect(await bench.groups.list()).toEqual([])
    await bench.restart()
    expect(await bench.groups.list()).toEqual([])
  })

  it('ends sessions and loads again when the log refuses a write', async () => {
    const bench = await new GroupBench({ partitions: 1 }).start({ orders: 1 })
    await bench.produce('orders', 0, 10)
    const a = await bench.join()
    await a.commit('orders', 0, 4)
    bench.faults.beforeAppend.set('__offsets-0', () => {
      throw new BrokerError('STORAGE_FULL', 'no room for this one')
    })
    const code = await codeOf(a.session.commit(a.epoch, [aCommit('orders', 0, 9)]))
    bench.faults.beforeAppend.clear()
    expect(code).toBe('STORAGE_FULL')
    expect(a.error?.code).toBe('LOADING')
    await bench.clock.advance(2000)
    expect((await bench.groups.committed('billing'))[0]?.offset).toBe(4)
    await a.resume(bench)
    expect(a.partitions).toEqual(['orders-0'])
    expect(await a.commit('orders', 0, 9)).toBeUndefined()
  })
})

describe('administration', () => {
  it('describes members, partitions and lag in records and in time', async () => {
    const bench = await new GroupBench().start({ orders: 2 })
    await bench.produce('orders', 0, 10)
    const a = await bench.join({ clientId: 'shop' })
    await a.commit('orders', 0, 4)
    const group = await bench.groups.describe('billing', { timeLag: true })
    expect(group).toMatchObject({ group: 'billing', type: 'stream', state: 'stable', lag: 6 })
    expect(group.members[0]).toMatchObject({ memberId: a.id, clientId: 'shop', connected: true })
    expect(group.partitions).toMatchObject([
      { topic: 'orders', partition: 0, lag: 6, memberId: a.id, committed: { offset: 4 } },
      { topic: 'orders', partition: 1, lag: 0, committed: undefined, lagMs: undefined },
    ])
    expect(group.partitions[0]?.lagMs).toBeGreaterThanOrEqual(0)
  })

  it('refuses to delete or reset a group that lives, and to delete offsets that are subscribed', async () => {
    const bench = await new GroupBench().start({ orders: 1 })
    await bench.produce('orders', 0, 10)
    const a = await bench.join()
    await a.commit('orders', 0, 4)
    const reset = {
      group: 'billing',
      topics: [],
      target: { to: 'earliest' },
      execute: false,
    } as const
    expect(await codeOf(bench.groups.delete('billing'))).toBe('GROUP_NOT_EMPTY')
    expect(await codeOf(bench.groups.reset(reset))).toBe('GROUP_NOT_EMPTY')
    expect(
      await codeOf(bench.groups.deleteOffsets('billing', [{ topic: 'orders', partitions: [] }])),
    ).toBe('GROUP_SUBSCRIBED')
    await a.session.leave()
    await bench.groups.reset({ ...reset, execute: true })
    expect((await bench.groups.committed('billing'))[0]?.offset).toBe(0)
    expect(await bench.groups.deleteOffsets('billing', [{ topic: 'orders', partitions: [] }])).toBe(
      1,
    )
    await bench.groups.delete('billing')
    expect(await codeOf(bench.groups.describe('billing'))).toBe('UNKNOWN_GROUP')
    await bench.restart()
    expect(await bench.groups.list()).toEqual([])
  })

  it('plans a reset before it does it, and not what has moved since', async () => {
    const bench = await new GroupBench().start({ orders: 2 })
    await bench.produce('orders', 0, 10)
    await bench.produce('orders', 1, 20)
    const nobody = { memberId: '', memberEpoch: 0 }
    const commits = [aCommit('orders', 0, 5), aCommit('orders', 1, 15)]
    await bench.groups.commit('billing', nobody, commits)
    const shift = {
      group: 'billing',
      topics: [],
      target: { to: 'shift', by: -10 },
      execute: false,
    } as const
    expect((await bench.groups.reset(shift)).offsets).toMatchObject([
      { partition: 0, from: 5, to: 0, clamped: true },
      { partition: 1, from: 15, to: 5, clamped: false },
    ])
    expect((await bench.groups.committed('billing')).map(({ offset }) => offset)).toEqual([5, 15])
    const exact = (expectedOffset: number): Promise<unknown> =>
      bench.groups.reset({
        ...shift,
        target: {
          to: 'offsets',
          offsets: [{ topic: 'orders', partition: 0, offset: 7, expectedOffset }],
        },
        execute: true,
      })
    expect(await codeOf(exact(4))).toBe('WRONG_EXPECTED_OFFSET')
    await exact(5)
    expect((await bench.groups.committed('billing')).map(({ offset }) => offset)).toEqual([7, 15])
  })

  it('keeps a group id to one type for life', async () => {
    const bench = await new GroupBench().start({ orders: 1 })
    await bench.groups.declare('work', 'queue')
    expect(await codeOf(bench.join({ group: 'work' }))).toBe('GROUP_TYPE_MISMATCH')
    await bench.restart()
    expect(await codeOf(bench.groups.describe('work'))).toBe('GROUP_TYPE_MISMATCH')
    expect(await bench.groups.list()).toMatchObject([{ group: 'work', type: 'queue' }])
  })

  it('refuses bad requests by name', async () => {
    const bench = await new GroupBench({ maxMembers: 1 }).start({ orders: 1 })
    const codes = await Promise.all(
      [
        { group: 'a/b' },
        { subscription: { topics: [], pattern: '' } },
        { subscription: { topics: [], pattern: '(' } },
        { subscription: { topics: ['a b'], pattern: '' } },
        { subscription: { topics: ['__offsets'], pattern: '' } },
        { assignor: 'magic' },
        { sessionTimeoutMs: 5 },
        { memberId: 'nobody-1' },
      ].map((request) => codeOf(bench.join(request))),
    )
    expect(codes).toEqual([
      'INVALID_GROUP_ID',
      'INVALID_REQUEST',
      'INVALID_PATTERN',
      'INVALID_TOPIC_NAME',
      'TOPIC_INTERNAL',
      'INVALID_REQUEST',
      'INVALID_REQUEST',
      'UNKNOWN_MEMBER',
    ])
    const a = await bench.join({ instanceId: 'a' })
    expect(a.error).toBeUndefined()
    expect(await codeOf(bench.join({ instanceId: 'a' }))).toBe('GROUP_FULL')
    const roomy = await new GroupBench().start({ orders: 1 })
    await roomy.join({ instanceId: 'a' })
    expect(await codeOf(roomy.join({ instanceId: 'a' }))).toBe('INSTANCE_ID_IN_USE')
  })

  it('ends every session when it closes', async () => {
    const bench = await new GroupBench().start({ orders: 1 })
    const a = await bench.join()
    await bench.groups.close(new BrokerError('BROKER_DRAINING', 'the broker is stopping'))
    expect(a.error?.code).toBe('BROKER_DRAINING')
    expect(await codeOf(bench.join())).toBe('CLOSED')
  })
})
