import { once } from 'node:events'
import * as grpc from '@grpc/grpc-js'
import * as fc from 'fast-check'
import { describe, expect, it, onTestFinished } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import type { OffsetCommit } from '../../src/gen/types.ts'
import { GROUP_SERVICE } from '../../src/wire/definitions.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { FakeGroups } from '../support/fake-groups.ts'
import { startGroupsServer, until } from '../support/groups-server.ts'
import { aCommit, JoinStream } from '../support/join-stream.ts'
import { RawClient } from '../support/raw-client.ts'

const JOIN = { join: { group: 'g', subscription: { topics: ['orders'] } } }

async function joined(client: RawClient, groups: FakeGroups): Promise<JoinStream> {
  const session = new JoinStream(client)
  session.say(JOIN)
  expect((await session.next()).joined).toMatchObject({ memberId: groups.session.memberId })
  return session
}

function commit(correlationId: number, ...offsets: Partial<OffsetCommit>[]): object {
  return aCommit(correlationId, 1, ...offsets)
}

const encode = (message: object): Buffer => GROUP_SERVICE['Join']!.requestSerialize(message)

describe('the first message of a session', () => {
  it('tells the coordinator who joins, from where', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const session = new JoinStream(client)
    session.say({
      join: {
        group: 'g',
        memberId: 'me',
        memberEpoch: 4,
        instanceId: 'i',
        clientId: 'c',
        subscription: { pattern: '^o' },
        assignor: 'range',
        sessionTimeoutMs: 7000,
        rebalanceTimeoutMs: 8000,
        rack: 'r',
      },
    })
    expect((await session.next()).joined).toEqual({
      memberId: 'me',
      memberEpoch: 1,
      heartbeatIntervalMs: 1000,
      sessionTimeoutMs: 6000,
      rebalanceTimeoutMs: 300_000,
      resumed: true,
    })
    expect(groups.session.request).toEqual({
      group: 'g',
      memberId: 'me',
      memberEpoch: 4,
      instanceId: 'i',
      clientId: 'c',
      host: expect.stringMatching(/^127\.0\.0\.1:\d+$/) as unknown,
      rack: 'r',
      subscription: { topics: [], pattern: '^o' },
      assignor: 'range',
      sessionTimeoutMs: 7000,
      rebalanceTimeoutMs: 8000,
    })
  })

  it.each([
    ['heartbeat', { heartbeat: { nonce: 1 } }],
    ['commit', commit(1)],
    ['confirm', { confirm: { number: 1 } }],
    ['subscribe', { subscribe: { topics: ['orders'] } }],
    ['leave', { leave: {} }],
  ])('must not be %s', async (kind, message) => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const session = new JoinStream(client)
    session.say(message)
    const error = await session.end()
    expect([error?.status, error?.reason]).toEqual([
      grpc.status.INVALID_ARGUMENT,
      'INVALID_REQUEST',
    ])
    expect(error?.message).toContain(kind)
    expect(groups.sessions).toEqual([])
  })

  it('must come within ten seconds', async () => {
    const clock = new FakeClock()
    const { client } = await startGroupsServer(new FakeGroups(), { clock })
    const session = new JoinStream(client)
    session.duplex.write(JOIN)
    await session.next()
    const silent = new JoinStream(client)
    const metadata = once(silent.duplex, 'metadata').catch(() => undefined)
    const reason = silent.reason()
    // The first stream has joined; the other is there when its timer is.
    await until(() => clock.pendingTimers > 0)
    await clock.advance(10_000)
    expect(await reason).toBe('INVALID_REQUEST')
    await metadata
    session.say({ heartbeat: { nonce: 3 } })
    expect((await session.next()).heartbeat).toEqual({ nonce: 3 })
  })

  it('is waited for: what comes behind it is handled when the coordinator has answered', async () => {
    const groups = new FakeGroups()
    let admit = (): void => undefined
    groups.joining = new Promise((resolve) => (admit = resolve))
    const { client } = await startGroupsServer(groups)
    const session = new JoinStream(client)
    session.say(JOIN, { heartbeat: { nonce: 5 } }, commit(6), { confirm: { number: 1 } })
    // Once around through the server, on the same connection.
    await client.call('ListGroups', {})
    admit()
    const kinds = [await session.next(), await session.next(), await session.next()]
    expect(kinds.map((message) => Object.keys(message)[0])).toEqual([
      'joined',
      'heartbeat',
      'commit',
    ])
    await until(() => groups.session.calls.length === 3)
    expect(groups.session.calls).toEqual(['heartbeat', 'commit', 'confirm 1'])
  })

  it('cannot be repeated', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const session = await joined(client, groups)
    session.say(JOIN)
    const error = await session.end()
    expect([error?.reason, error?.message]).toEqual([
      'INVALID_REQUEST',
      expect.stringContaining('joined already'),
    ])
    expect(groups.sessions).toHaveLength(1)
    expect(groups.session.calls).toEqual(['detach'])
  })

  it('can be refused', async () => {
    const groups = new FakeGroups()
    groups.joinFailure = new BrokerError('GROUP_FULL', 'g has 10 members')
    const { client } = await startGroupsServer(groups)
    const session = new JoinStream(client)
    session.say(JOIN)
    const error = await session.end()
    expect([error?.status, error?.reason]).toEqual([grpc.status.RESOURCE_EXHAUSTED, 'GROUP_FULL'])
  })

  it('is refused by a broker that loads', async () => {
    const groups = new FakeGroups()
    groups.joinFailure = new BrokerError('LOADING', 'soon')
    const { client } = await startGroupsServer(groups)
    const session = new JoinStream(client)
    session.say(JOIN)
    expect((await session.end())?.detail).toMatchObject({ reason: 'LOADING', retryable: true })
  })
})

describe('a message that is not one', () => {
  it('ends the session with its fault', async () => {
    const { client } = await startGroupsServer(new FakeGroups())
    const faults: [string, Buffer, string][] = [
      ['empty', Buffer.alloc(0), 'INVALID_REQUEST'],
      ['no protobuf', Buffer.from([0x0f, 0xff]), 'INVALID_REQUEST'],
      ['cut off', encode(JOIN).subarray(0, 5), 'INVALID_REQUEST'],
      ['two at once', Buffer.concat([encode(JOIN), encode({ leave: {} })]), 'INVALID_REQUEST'],
      ['of a later version', Buffer.from([0x4a, 0x00]), 'UNSUPPORTED_FEATURE'],
      ['too large', encode({ join: { group: 'g'.repeat(1_200_000) } }), 'BATCH_TOO_LARGE'],
    ]
    for (const [what, bytes, reason] of faults) {
      const session = new JoinStream(client, true)
      session.duplex.write(bytes)
      expect([what, await session.reason()]).toEqual([what, reason])
    }
    const later = new JoinStream(client, true)
    later.duplex.write(Buffer.from([0x4a, 0x00]))
    expect((await later.end())?.detail?.facts).toEqual(
      expect.arrayContaining([
        { name: 'field', value: 'request' },
        { name: 'actual', value: '9' },
      ]),
    )
  })

  it('names a number that would come back as another', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    for (const message of [
      { heartbeat: { nonce: 2 ** 60 } },
      { confirm: { number: 2 ** 60 } },
      commit(2 ** 60),
    ]) {
      const session = await joined(client, groups)
      session.say(message)
      expect((await session.end())?.reason).toBe('INVALID_REQUEST')
    }
  })

  it('never hurts the broker, whatever bytes and whatever order', async () => {
    const { client, groups, server } = await startGroupsServer(new FakeGroups())
    const sane = [
      encode(JOIN),
      encode({ heartbeat: { nonce: 1 } }),
      encode(commit(1, { topic: 'orders', offset: 4 })),
      encode({ confirm: { number: 1 } }),
      encode({ subscribe: { topics: ['lines'] } }),
      encode({ subscribe: { pattern: '(' } }),
      encode({ leave: {} }),
    ]
    const message = fc.oneof(
      { weight: 4, arbitrary: fc.constantFrom(...sane) },
      fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
      fc.tuple(fc.constantFrom(...sane), fc.nat(), fc.nat(255)).map(([bytes, at, byte]) => {
        const bent = Buffer.from(bytes)
        bent[at % bent.length] = byte
        return bent
      }),
    )
    const known = new Set([
      'OK',
      'INVALID_REQUEST',
      'UNSUPPORTED_FEATURE',
      'INVALID_PATTERN',
      'CANCELLED_BY_CLIENT',
    ])
    await fc.assert(
      fc.asyncProperty(fc.array(message, { maxLength: 12 }), fc.boolean(), async (all, cancel) => {
        const session = new JoinStream(client, true)
        for (const bytes of all) session.duplex.write(bytes)
        if (cancel) session.duplex.cancel()
        else session.duplex.end()
        const error = await session.end()
        const reason = error === undefined ? 'OK' : error.reason
        if (!cancel) expect(known).toContain(reason)
      }),
      { numRuns: 100 },
    )
    // The port still works.
    await client.call('ListGroups', {})
    // A cancel right behind messages sometimes never arrives: the server's HTTP/2 stream stays open (Node 20). Those end with the server.
    await server.stop(100)
    await until(() => groups.sessions.every(({ calls }) => hasEnded(calls)))
  })
})

/** The coordinator has been told of the end of the stream, once. */
function hasEnded(calls: readonly string[]): boolean {
  return calls.filter((call) => call === 'detach' || call === 'leave').length === 1
}

describe('commits', () => {
  it('reach the coordinator as they come and are answered in their order', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    groups.holdCommits = true
    const session = await joined(client, groups)
    for (let i = 1; i <= 3; i++) session.say(commit(i, { topic: 'orders', offset: i }))
    await until(() => groups.session.commits.length === 3)
    const [first, second, third] = groups.session.commits
    expect(second).toMatchObject({ memberEpoch: 1, offsets: [{ topic: 'orders', offset: 2 }] })
    third?.settle()
    second?.settle([
      {
        topic: 'orders',
        partition: 7,
        error: new BrokerError('PARTITION_NOT_OWNED', 'orders-7 is not yours', { partition: 7 }),
      },
    ])
    // A heartbeat overtakes what is not ready, a commit does not.
    session.say({ heartbeat: { nonce: 9 } })
    expect(await session.next()).toMatchObject({ heartbeat: { nonce: 9 } })
    first?.settle()
    expect(await session.next()).toEqual({ commit: { correlationId: 1, errors: [] } })
    expect(await session.next()).toMatchObject({
      commit: {
        correlationId: 2,
        errors: [
          {
            topic: 'orders',
            partition: 7,
            error: { reason: 'PARTITION_NOT_OWNED', action: 'rejoin', noSideEffects: true },
          },
        ],
      },
    })
    expect(await session.next()).toEqual({ commit: { correlationId: 3, errors: [] } })
  })

  it('that are refused as a whole are refused for each of their offsets, and the session goes on', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    groups.holdCommits = true
    const session = await joined(client, groups)
    session.say(commit(1, { topic: 'orders' }, { topic: 'orders', partition: 1 }), commit(2))
    await until(() => groups.session.commits.length === 2)
    const failure = new BrokerError('STALE_MEMBER_EPOCH', 'epoch 1 is over')
    for (const held of groups.session.commits) held.refuse(failure)
    const { commit: whole } = await session.next()
    expect(whole?.errors.map((e) => [e.topic, e.partition, e.error?.reason])).toEqual([
      ['orders', 0, 'STALE_MEMBER_EPOCH'],
      ['orders', 1, 'STALE_MEMBER_EPOCH'],
    ])
    const { commit: empty } = await session.next()
    expect(empty?.errors.map((e) => [e.topic, e.error?.reason])).toEqual([
      ['', 'STALE_MEMBER_EPOCH'],
    ])
    session.say({ heartbeat: { nonce: 1 } })
    expect((await session.next()).heartbeat).toEqual({ nonce: 1 })
  })

  it('lose only what is no offset', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    groups.holdCommits = true
    const session = await joined(client, groups)
    session.say(
      commit(
        1,
        { topic: 'orders', partition: 0, offset: -1 },
        { topic: 'orders', partition: 1, offset: 5 },
        { topic: 'orders', partition: 2, offset: 2 ** 60 },
      ),
    )
    await until(() => groups.session.commits.length === 1)
    const [held] = groups.session.commits
    expect(held?.offsets).toMatchObject([{ partition: 1, offset: 5 }])
    held?.settle()
    const { commit: result } = await session.next()
    expect(result?.errors.map((e) => [e.partition, e.error?.reason])).toEqual([
      [0, 'INVALID_REQUEST'],
      [2, 'INVALID_REQUEST'],
    ])
  })

  it('are not read beyond a bound while none is answered', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    groups.holdCommits = true
    const session = await joined(client, groups)
    for (let i = 0; i < 1000; i++) session.say(commit(i))
    await until(() => groups.session.commits.length === 256)
    for (let i = 0; i < 200; i++) await new Promise((resolve) => setImmediate(resolve))
    expect(groups.session.commits).toHaveLength(256)
    for (let i = 0; i < 1000; i++) {
      await until(() => groups.session.commits.length > i)
      groups.session.commits[i]?.settle()
      expect((await session.next()).commit?.correlationId).toBe(i)
    }
  })
})

describe('the end of a session', () => {
  it('by the coordinator ends the stream with its reason, after the commits under way', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    groups.holdCommits = true
    const session = await joined(client, groups)
    session.say(commit(1))
    await until(() => groups.session.commits.length === 1)
    groups.session.listener.ended(new BrokerError('INSTANCE_FENCED', 'another one has i'))
    groups.session.commits[0]?.settle()
    expect((await session.next()).commit?.correlationId).toBe(1)
    const error = await session.end()
    expect([error?.status, error?.reason]).toEqual([grpc.status.ABORTED, 'INSTANCE_FENCED'])
    // Whoever has ended it needs no word of the stream.
    expect(groups.session.calls).toEqual(['commit'])
  })

  it('by leave comes after the commits before it, and is OK', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    groups.holdCommits = true
    let left = (): void => undefined
    groups.leaving = new Promise((resolve) => (left = resolve))
    const session = await joined(client, groups)
    session.say(commit(1), { leave: {} }, commit(2))
    session.duplex.end()
    await until(() => groups.session.calls.includes('leave'))
    left()
    groups.session.commits[0]?.settle()
    expect((await session.next()).commit?.correlationId).toBe(1)
    expect(await session.reason()).toBe('OK')
    expect(groups.session.calls).toEqual(['commit', 'leave'])
  })

  it('by a leave that cannot be written down tells why, and the member stays', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const session = await joined(client, groups)
    groups.leaveFailure = new BrokerError('STORAGE_FULL', 'no room')
    session.say({ leave: {} })
    expect(await session.reason()).toBe('STORAGE_FULL')
    await until(() => groups.session.calls.includes('detach'))
  })

  it.each(['cancel', 'end'] as const)('by %s of the stream keeps the member', async (how) => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const session = await joined(client, groups)
    session.duplex[how]()
    await until(() => groups.session.calls.length > 0)
    expect(groups.session.calls).toEqual(['detach'])
    if (how === 'end') expect(await session.reason()).toBe('OK')
  })

  it('by a half-close answers the commits before it', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    groups.holdCommits = true
    const session = await joined(client, groups)
    session.say(commit(8))
    session.duplex.end()
    await until(() => groups.session.calls.includes('detach'))
    groups.session.commits[0]?.settle()
    expect((await session.next()).commit?.correlationId).toBe(8)
    expect(await session.reason()).toBe('OK')
  })

  it.each([
    ['puts out a new member, which cannot come back without its id', '', 'leave'],
    ['keeps one that has come back', 'm7', 'detach'],
  ])(
    'of a stream that broke while the coordinator was at the join %s',
    async (_, memberId, call) => {
      const groups = new FakeGroups()
      let admit = (): void => undefined
      groups.joining = new Promise((resolve) => (admit = resolve))
      const { client, server } = await startGroupsServer(groups)
      const session = new JoinStream(client)
      session.say({ join: { ...JOIN.join, memberId } })
      await until(() => server.activeCalls === 1)
      await client.call('ListGroups', {})
      session.duplex.cancel()
      await until(() => server.activeCalls === 0)
      admit()
      await until(() => groups.sessions.length === 1)
      await until(() => groups.session.calls.length > 0)
      expect(groups.session.calls).toEqual([call])
    },
  )

  it('by a subscription that cannot be understood names it', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const session = await joined(client, groups)
    session.say({ subscribe: { topics: ['lines'] } }, { subscribe: { pattern: '(' } })
    expect(await session.reason()).toBe('INVALID_PATTERN')
    expect(groups.session.calls).toEqual(['subscribe lines,', 'subscribe (', 'detach'])
  })

  it('of a broker that stops says so, after the commits under way, and keeps the member', async () => {
    const { client, groups, server } = await startGroupsServer(new FakeGroups())
    groups.holdCommits = true
    const session = await joined(client, groups)
    session.say(commit(1))
    await until(() => groups.session.commits.length === 1)
    const stopped = server.stop(5000)
    groups.session.commits[0]?.settle()
    expect((await session.next()).commit?.correlationId).toBe(1)
    expect((await session.end())?.detail).toMatchObject({
      reason: 'BROKER_DRAINING',
      retryable: true,
    })
    expect(groups.session.calls).toEqual(['commit', 'detach'])
    expect(await stopped).toBe(true)
  })
})

describe('assignments', () => {
  it('are pushed, with what was committed', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const session = await joined(client, groups)
    groups.session.assign(1, 2)
    expect((await session.next()).assignment).toEqual({
      number: 1,
      memberEpoch: 1,
      groupEpoch: 1,
      topics: [
        {
          topic: 'orders',
          topicId: 'id',
          partitions: [0, 1].map((partition) => ({
            partition,
            committedLeaderEpoch: 0,
            metadata: '',
            logStartOffset: 0,
            highWatermark: 0,
          })),
        },
      ],
    })
  })

  it('of one turn go once, the newest', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const session = await joined(client, groups)
    for (let number = 1; number <= 5; number++) groups.session.assign(number, number)
    expect((await session.next()).assignment?.number).toBe(5)
    session.say({ heartbeat: { nonce: 1 } })
    expect((await session.next()).heartbeat).toEqual({ nonce: 1 })
  })

  it('that a slow member does not take cost no memory, and it gets the newest at last', async () => {
    const { client, groups, address } = await startGroupsServer(new FakeGroups())
    // Its own connection, with a window of the smallest size: what it does not read stays with the broker.
    const slowClient = new RawClient(address, { 'grpc-node.flow_control_window': 65_535 })
    onTestFinished(() => slowClient.close())
    const slow = await joined(slowClient, groups)
    const { session: slowSession } = groups
    slow.stream.pause()
    // 5000 partitions are 50 KB and more: these would be 25 MB.
    for (let number = 1; number <= 500; number++) {
      slowSession.assign(number, 5000)
      slow.say({ heartbeat: { nonce: number } })
      await new Promise((resolve) => setImmediate(resolve))
    }
    const other = await joined(client, groups)
    other.say({ heartbeat: { nonce: 1 } })
    expect((await other.next()).heartbeat).toEqual({ nonce: 1 })
    slow.stream.resume()
    const numbers: number[] = []
    while (numbers.at(-1) !== 500) {
      const { assignment } = await slow.next()
      if (assignment !== undefined && assignment !== null) numbers.push(assignment.number)
    }
    expect(numbers).toEqual([...numbers].sort((a, b) => a - b))
    // What the connection and its client hold, and at most one that the broker does: the others were never encoded.
    expect(numbers.length).toBeLessThan(20)
  })

  it('that a member has not taken for a minute end its stream, not its membership', async () => {
    const clock = new FakeClock()
    const { groups, address, server } = await startGroupsServer(new FakeGroups(), { clock })
    const slowClient = new RawClient(address, { 'grpc-node.flow_control_window': 65_535 })
    onTestFinished(() => slowClient.close())
    const slow = await joined(slowClient, groups)
    slow.stream.pause()
    groups.session.assign(1, 60_000)
    // The timer for the join is gone: the next timer is the stall's.
    expect(clock.pendingTimers).toBe(0)
    for (let nonce = 1; clock.pendingTimers === 0; nonce++) {
      slow.say({ heartbeat: { nonce } })
      await new Promise((resolve) => setImmediate(resolve))
    }
    await clock.advance(60_000)
    await until(() => server.activeCalls === 0)
    expect(groups.session.calls.at(-1)).toBe('detach')
  })
})

describe('many sessions', () => {
  it('live on one connection, each with its own commits', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const sessions: JoinStream[] = []
    for (let i = 0; i < 200; i++) sessions.push(await joined(client, groups))
    for (const session of sessions) {
      for (let i = 0; i < 10; i++) session.say(commit(i, { topic: 'orders', offset: i }))
    }
    for (const session of sessions) {
      for (let i = 0; i < 10; i++) {
        expect(await session.next()).toEqual({ commit: { correlationId: i, errors: [] } })
      }
    }
    expect(groups.sessions).toHaveLength(200)
  })
})
