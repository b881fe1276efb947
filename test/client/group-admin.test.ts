import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { type Client, connect, type Offset, type ResetOptions } from '../../src/client/index.ts'
import { Connection } from '../../src/client/connection.ts'
import { GroupSession } from '../../src/client/group-session.ts'
import { systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { aBatch, BATCH_TIME_MS } from '../support/batches.ts'
import { failureOf } from '../support/fake-session.ts'
import { type LoopbackBroker, startLoopbackBroker } from '../support/loopback-broker.ts'

let broker: LoopbackBroker
let mill: Client

beforeEach(async () => {
  broker = await startLoopbackBroker()
  mill = await connect(broker.url)
  await fill('orders', 3, 100)
})

afterEach(async () => {
  await mill.close()
  await broker[Symbol.asyncDispose]()
})

/** A record each second from 2026 on, in each partition. */
async function fill(topic: string, partitions: number, records: number): Promise<void> {
  await mill.admin.createTopic(topic, { partitions })
  const timestampsMs = Array.from({ length: records }, (_, i) => BATCH_TIME_MS + 1000 * i)
  for (const partition of broker.topics.get(topic).partitions) {
    await partition.append(aBatch({ timestampsMs }), 'durable')
  }
}

/** Commits 10, 20 and 30 for a group without members. */
async function commitAll(group = 'workers'): Promise<void> {
  await mill.admin.commitOffsets(
    group,
    [0, 1, 2].map((partition) => ({ topic: 'orders', partition, offset: 10 * (partition + 1) })),
  )
}

async function offsetsOf(group = 'workers'): Promise<Record<string, number>> {
  const offsets = await mill.admin.groupOffsets(group)
  return Object.fromEntries(
    offsets.map(({ topic, partition, offset }) => [`${topic}-${partition}`, offset]),
  )
}

/** A member that owns all of `orders`. */
async function withMember(group: string, use: () => Promise<void>): Promise<void> {
  const connection = new Connection({
    targets: [broker.url],
    tls: undefined,
    clientId: 'a-member',
    clock: systemClock,
    random: new SeededRandom(3),
    logger: undefined,
  })
  await connection.open(5000)
  let owned = 0
  const session = new GroupSession(
    connection,
    {
      group,
      subscription: { topics: ['orders'], pattern: '' },
      instanceId: 'worker-7',
      assignor: 'range',
      sessionTimeoutMs: 10_000,
      rebalanceTimeoutMs: 0,
      rack: '',
    },
    {
      assigned: ({ topics }) => {
        owned = topics.flatMap(({ partitions }) => partitions).length
      },
      lost: () => undefined,
      failed: () => undefined,
    },
  )
  session.start()
  await vi.waitUntil(() => owned === 3, { timeout: 10_000, interval: 5 })
  try {
    await use()
  } finally {
    session.close()
    connection.close()
  }
}

describe('looking', () => {
  it('lists groups in the order of their names, by name, type and state', async () => {
    await commitAll('zebra')
    await commitAll('ant')
    await withMember('bee', async () => {
      const list = async (filter?: Parameters<typeof mill.admin.groups>[0]): Promise<string[]> => {
        const names: string[] = []
        for await (const { group, state } of mill.admin.groups(filter))
          names.push(`${group} ${state}`)
        return names
      }
      expect(await list()).toEqual(['ant empty', 'bee stable', 'zebra empty'])
      expect(await list({ match: /^[ab]/ })).toEqual(['ant empty', 'bee stable'])
      expect(await list({ state: 'stable' })).toEqual(['bee stable'])
      expect(await list({ type: 'stream', state: 'empty' })).toEqual(['ant empty', 'zebra empty'])
      expect(await list({ type: 'queue' })).toEqual([])
    })
  })

  it('describes a group with its members, what they own, and its lag', async () => {
    await commitAll()
    await withMember('workers', async () => {
      const found = await mill.admin.describeGroup('workers')
      expect(found).toMatchObject({
        group: 'workers',
        type: 'stream',
        state: 'stable',
        assignor: 'range',
        lag: 240,
        emptySince: undefined,
      })
      const all = [0, 1, 2].map((partition) => ({ topic: 'orders', partition }))
      expect(found.members).toHaveLength(1)
      expect(found.members[0]).toMatchObject({
        instanceId: 'worker-7',
        clientId: 'a-member',
        subscription: { topics: ['orders'], pattern: undefined },
        owned: all,
        target: all,
        revoking: [],
        connected: true,
        sessionTimeoutMs: 10_000,
      })
      expect(found.members[0]?.host).toMatch(/127\.0\.0\.1/)
      expect(found.partitions.map(({ committed, lag, lagMs }) => [committed, lag, lagMs])).toEqual([
        [10, 90, expect.any(Number)],
        [20, 80, expect.any(Number)],
        [30, 70, expect.any(Number)],
      ])
      expect(
        found.partitions.every(({ memberId }) => memberId === found.members[0]?.memberId),
      ).toBe(true)
      const { partitions } = await mill.admin.describeGroup('workers', { timeLag: false })
      expect(partitions.map(({ lagMs }) => lagMs)).toEqual([undefined, undefined, undefined])
    })
  })

  it('says since when a group is empty, and nothing of members that are not there', async () => {
    await commitAll()
    const found = await mill.admin.describeGroup('workers')
    expect(found).toMatchObject({ state: 'empty', members: [] })
    expect(found.partitions[0]).toMatchObject({ memberId: undefined, metadata: '' })
    expect(found.partitions[0]?.committedAt).toBeGreaterThan(BATCH_TIME_MS)
  })

  it('knows no group that is not there', async () => {
    const { admin } = mill
    expect((await failureOf(admin.describeGroup('nobody'))).code).toBe('UNKNOWN_GROUP')
    expect((await failureOf(admin.groupOffsets('nobody'))).code).toBe('UNKNOWN_GROUP')
    expect((await failureOf(admin.deleteGroup('nobody'))).code).toBe('UNKNOWN_GROUP')
    const reset = admin.resetOffsets('nobody', { topic: 'orders', to: 'start' })
    expect((await failureOf(reset)).code).toBe('UNKNOWN_GROUP')
    expect((await failureOf(admin.describeGroup('no group!'))).code).toBe('INVALID_GROUP_ID')
  })
})

describe('committing from outside', () => {
  it('makes the group, and keeps metadata', async () => {
    await mill.admin.commitOffsets('workers', [
      { topic: 'orders', partition: 1, offset: 5, metadata: 'by hand' },
    ])
    expect(await mill.admin.groupOffsets('workers')).toEqual([
      {
        topic: 'orders',
        partition: 1,
        offset: 5,
        metadata: 'by hand',
        committedAt: expect.any(Number) as number,
      },
    ])
  })

  it('names the partition that was refused, and commits the others', async () => {
    const error = await failureOf(
      mill.admin.commitOffsets('workers', [
        { topic: 'orders', partition: 0, offset: 5 },
        { topic: 'orders', partition: 1, offset: 101 },
        { topic: 'nothing', partition: 0, offset: 0 },
      ]),
    )
    expect(error.code).toBe('OFFSET_OUT_OF_RANGE')
    expect(error.details).toMatchObject({ topic: 'orders', partition: 1, refused: 2, committed: 1 })
    expect(error.message).toContain('and 1 more')
    expect(await offsetsOf()).toEqual({ 'orders-0': 5 })
  })

  it('is refused while the group has members', async () => {
    await withMember('workers', async () => {
      const error = await failureOf(
        mill.admin.commitOffsets('workers', [{ topic: 'orders', partition: 0, offset: 5 }]),
      )
      expect(error.code).toBe('GROUP_NOT_EMPTY')
    })
  })

  it.each([-1, 1.5, Number.NaN])('refuses offset %s', async (offset) => {
    const error = await failureOf(
      mill.admin.commitOffsets('workers', [{ topic: 'orders', partition: 0, offset }]),
    )
    expect(['INVALID_REQUEST', 'OFFSET_OUT_OF_RANGE']).toContain(error.code)
  })
})

describe('deleting', () => {
  it('deletes the offsets of a topic, or of some of its partitions', async () => {
    await commitAll()
    expect(await mill.admin.deleteGroupOffsets('workers', 'orders', [1, 2])).toBe(2)
    expect(await offsetsOf()).toEqual({ 'orders-0': 10 })
    // None named is not the same as all.
    expect(await mill.admin.deleteGroupOffsets('workers', 'orders', [])).toBe(0)
    expect(await offsetsOf()).toEqual({ 'orders-0': 10 })
    expect(await mill.admin.deleteGroupOffsets('workers', 'orders')).toBe(1)
    expect(await offsetsOf()).toEqual({})
  })

  it('deletes a group, but none with members, and no offsets that a member subscribes to', async () => {
    await withMember('workers', async () => {
      expect((await failureOf(mill.admin.deleteGroup('workers'))).code).toBe('GROUP_NOT_EMPTY')
      const error = await failureOf(mill.admin.deleteGroupOffsets('workers', 'orders'))
      expect(error.code).toBe('GROUP_SUBSCRIBED')
    })
    await commitAll('idle')
    await mill.admin.deleteGroup('idle')
    expect((await failureOf(mill.admin.groupOffsets('idle'))).code).toBe('UNKNOWN_GROUP')
  })
})

describe('resetting', () => {
  it.each<[string, Omit<ResetOptions, 'dryRun'>, Record<string, number>]>([
    ['start', { to: 'start' }, { 'orders-0': 0, 'orders-1': 0, 'orders-2': 0 }],
    ['end', { to: 'end' }, { 'orders-0': 100, 'orders-1': 100, 'orders-2': 100 }],
    ['an offset', { to: '42' }, { 'orders-0': 42, 'orders-1': 42, 'orders-2': 42 }],
    ['so many from the end', { to: '-10' }, { 'orders-0': 90, 'orders-1': 90, 'orders-2': 90 }],
    ['so many from the start', { to: '+7' }, { 'orders-0': 7, 'orders-1': 7, 'orders-2': 7 }],
    [
      'a time',
      { to: new Date(BATCH_TIME_MS + 33_000) },
      { 'orders-0': 33, 'orders-1': 33, 'orders-2': 33 },
    ],
    ['so long ago', { to: '@-1h' }, { 'orders-0': 100, 'orders-1': 100, 'orders-2': 100 }],
    ['further back', { to: { shift: -5 } }, { 'orders-0': 5, 'orders-1': 15, 'orders-2': 25 }],
    ['further on', { to: { shift: 15 } }, { 'orders-0': 25, 'orders-1': 35, 'orders-2': 45 }],
    [
      'some partitions only',
      { to: 'start', topic: 'orders', partitions: [1] },
      { 'orders-0': 10, 'orders-1': 0, 'orders-2': 30 },
    ],
    [
      'so many from the end of some partitions',
      { to: '-1', topic: 'orders', partitions: [2, 0] },
      { 'orders-0': 99, 'orders-1': 20, 'orders-2': 99 },
    ],
    [
      'exact offsets',
      { to: { offsets: [{ topic: 'orders', partition: 2, offset: 77 }] } },
      { 'orders-0': 10, 'orders-1': 20, 'orders-2': 77 },
    ],
    [
      'exact offsets, of a topic',
      {
        topic: 'orders',
        to: {
          offsets: [
            { topic: 'orders', partition: 2, offset: 77 },
            { topic: 'other', partition: 0, offset: 1 },
          ],
        },
      },
      { 'orders-0': 10, 'orders-1': 20, 'orders-2': 77 },
    ],
    [
      'exact offsets, of some partitions',
      {
        topic: 'orders',
        partitions: [0],
        to: {
          offsets: [
            { topic: 'orders', partition: 0, offset: 76 },
            { topic: 'orders', partition: 2, offset: 77 },
          ],
        },
      },
      { 'orders-0': 76, 'orders-1': 20, 'orders-2': 30 },
    ],
    [
      'no partitions at all',
      { to: 'start', topic: 'orders', partitions: [] },
      { 'orders-0': 10, 'orders-1': 20, 'orders-2': 30 },
    ],
    [
      'no exact offsets',
      { to: { offsets: [] } },
      { 'orders-0': 10, 'orders-1': 20, 'orders-2': 30 },
    ],
  ])('to %s: a dry run says what is done then', async (_, options, expected) => {
    await commitAll()
    const before = await offsetsOf()
    const plan = await mill.admin.resetOffsets('workers', { ...options, dryRun: true })
    expect(await offsetsOf()).toEqual(before)

    const done = await mill.admin.resetOffsets('workers', options)
    expect(done).toEqual(plan)
    expect(await offsetsOf()).toEqual(expected)
    for (const { topic, partition, from, to } of plan) {
      expect(from).toBe(before[`${topic}-${partition}`])
      expect(to).toBe(expected[`${topic}-${partition}`])
    }
  })

  it.each<[string, ResetOptions['to'], number]>([
    ['before the start', { shift: -50 }, 0],
    ['past the end', { shift: 500 }, 100],
    ['an offset past the end', '1000', 100],
    ['more than there are from the end', '-500', 0],
    ['more than there are from the start', '+500', 100],
  ])('brings what lies outside to the edge, and says so: %s', async (_, to, expected) => {
    await commitAll()
    const plan = await mill.admin.resetOffsets('workers', { to })
    expect(plan.map((item) => [item.to, item.clamped])).toEqual([
      [expected, true],
      [expected, true],
      [expected, true],
    ])
    expect(plan[0]).toMatchObject({ from: 10, logStartOffset: 0, highWatermark: 100 })
  })

  it('begins where nothing was committed', async () => {
    await fill('more', 2, 50)
    await commitAll()
    const plan = await mill.admin.resetOffsets('workers', { topic: ['more', 'orders'], to: '-5' })
    expect(
      plan.map(({ topic, partition, from, to }) => [`${topic}-${partition}`, from, to]),
    ).toEqual([
      ['more-0', undefined, 45],
      ['more-1', undefined, 45],
      ['orders-0', 10, 95],
      ['orders-1', 20, 95],
      ['orders-2', 30, 95],
    ])
    expect(await offsetsOf()).toMatchObject({ 'more-1': 45, 'orders-2': 95 })
  })

  it('does nothing when the group has moved since it was planned', async () => {
    await commitAll()
    const { groups } = broker
    const reset = groups.reset.bind(groups)
    vi.spyOn(groups, 'reset').mockImplementation(async (request) => {
      // Between the plan and its execution somebody else commits.
      if (request.execute) {
        const offsets = [
          { topic: 'orders', partition: 2, offset: 31, leaderEpoch: 0, metadata: '', topicId: '' },
        ]
        await groups.commit('workers', { memberId: '', memberEpoch: 0 }, offsets)
      }
      return reset(request)
    })
    const error = await failureOf(mill.admin.resetOffsets('workers', { to: 'start' }))
    expect(error.code).toBe('WRONG_EXPECTED_OFFSET')
    expect(await offsetsOf()).toEqual({ 'orders-0': 10, 'orders-1': 20, 'orders-2': 31 })
  })

  it('is refused while the group has members, the dry run too', async () => {
    await withMember('workers', async () => {
      for (const dryRun of [true, false]) {
        const reset = mill.admin.resetOffsets('workers', { topic: 'orders', to: '-1', dryRun })
        expect((await failureOf(reset)).code).toBe('GROUP_NOT_EMPTY')
      }
    })
  })

  it.each<[string, ResetOptions, string]>([
    ['an unknown topic', { topic: 'nothing', to: 'start' }, 'UNKNOWN_TOPIC'],
    ['an unknown topic, counted', { topic: 'nothing', to: '-1' }, 'UNKNOWN_TOPIC'],
    [
      'an unknown partition',
      { topic: 'orders', partitions: [9], to: 'start' },
      'UNKNOWN_PARTITION',
    ],
    [
      'an unknown partition, counted',
      { topic: 'orders', partitions: [9], to: '-1' },
      'UNKNOWN_PARTITION',
    ],
    ['no position', { to: 'somewhere' }, 'INVALID_POSITION'],
    ['a range', { to: '1:2' }, 'INVALID_POSITION'],
    ['the group itself', { to: 'committed' }, 'INVALID_POSITION'],
    ['half a record', { to: { shift: 0.5 } }, 'INVALID_REQUEST'],
    ['partitions of no topic', { partitions: [0], to: 'start' }, 'INVALID_REQUEST'],
    [
      'partitions of two topics',
      { topic: ['a', 'b'], partitions: [0], to: 'start' },
      'INVALID_REQUEST',
    ],
  ])('refuses %s', async (_, options, code) => {
    await commitAll()
    expect((await failureOf(mill.admin.resetOffsets('workers', options))).code).toBe(code)
  })

  it('asks for a topic when the group has nothing committed', async () => {
    await commitAll()
    await mill.admin.deleteGroupOffsets('workers', 'orders')
    for (const to of ['start', '-1']) {
      const error = await failureOf(mill.admin.resetOffsets('workers', { to }))
      expect(error.code).toBe('INVALID_REQUEST')
      expect(error.message).toContain('name the topic')
    }
  })

  it('takes an exact offset as it comes from elsewhere', async () => {
    await commitAll()
    const to = (await mill.admin.offsets('orders', '-3')).get(0) as Offset
    expect((await mill.admin.resetOffsets('workers', { to }))[0]?.to).toBe(97)
  })
})
