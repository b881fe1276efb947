import * as grpc from '@grpc/grpc-js'
import { describe, expect, it, onTestFinished } from 'vitest'
import type {
  CommitOffsetsResponse,
  DescribeGroupResponse,
  FetchOffsetsResponse,
  ListGroupsResponse,
  MetadataResponse,
  OffsetError,
  ResetOffsetsResponse,
} from '../../src/gen/types.ts'
import { aBatch } from '../support/batches.ts'
import { FakeGroups } from '../support/fake-groups.ts'
import { startGroupsServer, until } from '../support/groups-server.ts'
import { aCommit, JoinStream, partitionsOf } from '../support/join-stream.ts'
import { type LoopbackBroker, startLoopbackBroker } from '../support/loopback-broker.ts'
import { CallError, RawClient } from '../support/raw-client.ts'

const ORDERS = { group: 'billing', subscription: { topics: ['orders'] } }

/** A broker with a topic of some partitions and ten records in its first one. Call it inside a test. */
async function aBroker(
  options: Parameters<typeof startLoopbackBroker>[0] & { partitions?: number } = {},
): Promise<{ broker: LoopbackBroker; client: RawClient }> {
  const broker = await startLoopbackBroker(options)
  const client = new RawClient(broker.url)
  onTestFinished(async () => {
    client.close()
    await broker[Symbol.asyncDispose]()
  })
  await client.call('CreateTopic', { topic: 'orders', partitions: options.partitions ?? 2 })
  await append(client, 10)
  return { broker, client }
}

async function append(client: RawClient, records: number, partition = 0): Promise<void> {
  await client.call('Append', {
    topic: 'orders',
    partition,
    acks: 'durable',
    batch: aBatch({ records }),
    compression: 'none',
    correlationId: 0,
  })
}

async function failureOf(promise: Promise<unknown>): Promise<CallError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof CallError) return error
    throw error
  }
  throw new Error('the call did not fail')
}

/** Status, reason, and facts of a failure, as a record. */
function told(error: CallError | undefined): [string, string, Record<string, string>] {
  return [
    grpc.status[error?.status ?? 0] ?? '',
    error?.reason ?? '',
    Object.fromEntries((error?.detail?.facts ?? []).map(({ name, value }) => [name, value])),
  ]
}

function toldOf(error: OffsetError | undefined): [number | undefined, string, string] {
  return [error?.partition, error?.error?.reason ?? '', error?.error?.action ?? '']
}

describe('a member', () => {
  it('gets what it is to own, with what is committed, and commits it', async () => {
    const { client } = await aBroker()
    await client.call('CommitOffsets', {
      group: 'billing',
      offsets: [{ topic: 'orders', partition: 0, offset: 3, metadata: 'so far' }],
    })
    const member = new JoinStream(client)
    const joined = await member.join({ ...ORDERS, clientId: 'biller' })
    expect(joined).toMatchObject({ sessionTimeoutMs: 45_000, resumed: false })
    expect(joined.memberId).toMatch(/^biller-/)
    const assignment = await member.assigned(2)
    expect(assignment.topics).toMatchObject([
      {
        topic: 'orders',
        partitions: [
          { partition: 0, committedOffset: 3, metadata: 'so far', highWatermark: 10 },
          { partition: 1, highWatermark: 0 },
        ],
      },
    ])
    expect(assignment.topics[0]?.partitions[1]).not.toHaveProperty('committedOffset')
    member.say(aCommit(7, assignment.memberEpoch, { topic: 'orders', offset: 9, leaderEpoch: 1 }))
    expect(await member.nextOf('commit')).toEqual({ correlationId: 7, errors: [] })
    const { offsets } = await client.call<FetchOffsetsResponse>('FetchOffsets', {
      group: 'billing',
    })
    expect(offsets).toEqual([
      {
        topic: 'orders',
        partition: 0,
        offset: 9,
        leaderEpoch: 1,
        metadata: '',
        committedMs: expect.any(Number) as unknown,
      },
    ])
  })

  it('shares with another, which waits until it has given up', async () => {
    const { client } = await aBroker()
    const first = new JoinStream(client)
    await first.join(ORDERS)
    await first.assigned(2)
    const second = new JoinStream(client)
    await second.join(ORDERS)
    const less = await first.nextOf('assignment')
    expect(partitionsOf(less)).toHaveLength(1)
    // Unconfirmed: the other one has nothing yet.
    second.say({ heartbeat: { nonce: 1 } })
    await second.nextOf('heartbeat')
    const { members, state } = await client.call<DescribeGroupResponse>('DescribeGroup', {
      group: 'billing',
    })
    expect(state).toBe('GROUP_STATE_RECONCILING')
    expect(members.flatMap((member) => member.owned.flatMap((o) => o.partitions))).toHaveLength(2)
    first.say({ confirm: { number: less.number } })
    const rest = await second.assigned(1)
    expect([...partitionsOf(less), ...partitionsOf(rest)].sort()).toEqual(['orders-0', 'orders-1'])
  })

  it('comes back after its stream broke to what it had, and nobody notices', async () => {
    const { client, broker } = await aBroker()
    const first = new JoinStream(client)
    const second = new JoinStream(client)
    const { memberId } = await first.join(ORDERS)
    await first.assigned(2)
    await second.join(ORDERS)
    const [had, others] = await Promise.all([first.assigned(1), second.assigned(1)])
    const elsewhere = new RawClient(broker.url)
    onTestFinished(() => elsewhere.close())
    first.duplex.cancel()
    await first.end()
    const again = new JoinStream(elsewhere)
    const back = await again.join({ ...ORDERS, memberId, memberEpoch: had.memberEpoch })
    expect(back).toMatchObject({ memberId, resumed: true })
    const has = await again.assigned(1)
    expect(partitionsOf(has)).toEqual(partitionsOf(had))
    const [mine] = has.topics
    again.say(
      aCommit(1, has.memberEpoch, {
        topic: 'orders',
        partition: mine?.partitions[0]?.partition ?? -1,
        offset: 0,
      }),
    )
    expect((await again.nextOf('commit')).errors).toEqual([])
    second.say({ heartbeat: { nonce: 2 } })
    // Between its assignment and this answer nothing has come.
    expect((await second.next()).heartbeat).toEqual({ nonce: 2 })
    expect(others.number).toBeGreaterThan(0)
  })

  it('that comes back while its old stream still stands ends that one', async () => {
    const { client } = await aBroker()
    const first = new JoinStream(client)
    const { memberId, memberEpoch } = await first.join(ORDERS)
    const again = new JoinStream(client)
    await again.join({ ...ORDERS, memberId, memberEpoch })
    expect(await first.reason()).toBe('CANCELLED_BY_CLIENT')
    await again.assigned(2)
  })

  it('leaves, and the others get what it had', async () => {
    const { client } = await aBroker()
    const first = new JoinStream(client)
    await first.join(ORDERS)
    await first.assigned(2)
    const second = new JoinStream(client)
    await second.join(ORDERS)
    await Promise.all([first.assigned(1), second.assigned(1)])
    first.say({ leave: {} })
    expect(await first.reason()).toBe('OK')
    await second.assigned(2)
  })

  it('changes what it subscribes to', async () => {
    const { client } = await aBroker()
    await client.call('CreateTopic', { topic: 'lines-a', partitions: 3 })
    const member = new JoinStream(client)
    await member.join(ORDERS)
    await member.assigned(2)
    member.say({ subscribe: { pattern: '^lines-' } })
    expect(partitionsOf(await member.assigned(3))).toEqual(['lines-a-0', 'lines-a-1', 'lines-a-2'])
    await client.call('CreateTopic', { topic: 'lines-b', partitions: 1 })
    await member.assigned(4)
    await client.call('AddPartitions', { topic: 'lines-b', total: 5 })
    await member.assigned(8)
  })

  it('that is not heard of any more is gone when its session has expired', async () => {
    const { client } = await aBroker()
    const member = new JoinStream(client)
    await member.join({ ...ORDERS, sessionTimeoutMs: 150 })
    const error = await member.end()
    expect(told(error)).toEqual([
      'NOT_FOUND',
      'UNKNOWN_MEMBER',
      expect.objectContaining({ group: 'billing', sessionTimeoutMs: '150' }),
    ])
    expect(error?.detail?.action).toBe('rejoin')
  })
})

describe('bad input is named:', () => {
  it('an unknown member', async () => {
    const { client } = await aBroker()
    const stranger = new JoinStream(client)
    stranger.say({ join: { ...ORDERS, memberId: 'nobody', memberEpoch: 3 } })
    const error = await stranger.end()
    expect(told(error)).toMatchObject(['NOT_FOUND', 'UNKNOWN_MEMBER', { memberId: 'nobody' }])
    expect(error?.detail).toMatchObject({ action: 'rejoin', retryable: false, noSideEffects: true })
    const member = new JoinStream(client)
    await member.join(ORDERS)
    const commit = { group: 'billing', memberId: 'nobody', memberEpoch: 1, offsets: [] }
    expect(told(await failureOf(client.call('CommitOffsets', commit)))).toMatchObject([
      'NOT_FOUND',
      'UNKNOWN_MEMBER',
      { group: 'billing', memberId: 'nobody' },
    ])
  })

  it('a stale epoch', async () => {
    const { client } = await aBroker()
    const member = new JoinStream(client)
    const { memberId } = await member.join(ORDERS)
    const { memberEpoch } = await member.assigned(2)
    member.say(aCommit(1, memberEpoch - 1, { topic: 'orders', offset: 1 }))
    const { errors } = await member.nextOf('commit')
    expect(errors.map(toldOf)).toEqual([[0, 'STALE_MEMBER_EPOCH', 'rejoin']])
    expect(errors[0]?.error?.facts).toContainEqual({
      name: 'memberEpoch',
      value: String(memberEpoch - 1),
    })
    // Outside of the session too, and of an epoch that is still to come.
    const outside = await client.call<CommitOffsetsResponse>('CommitOffsets', {
      group: 'billing',
      memberId,
      memberEpoch: memberEpoch + 1,
      offsets: [{ topic: 'orders', offset: 1 }],
    })
    expect(outside.errors.map(toldOf)).toEqual([[0, 'STALE_MEMBER_EPOCH', 'rejoin']])
    const { offsets } = await client.call<FetchOffsetsResponse>('FetchOffsets', {
      group: 'billing',
    })
    expect(offsets).toEqual([])
  })

  it('an instance id that a living member has', async () => {
    const { client } = await aBroker()
    const member = new JoinStream(client)
    await member.join({ ...ORDERS, instanceId: 'rack-7' })
    const second = new JoinStream(client)
    second.say({ join: { ...ORDERS, instanceId: 'rack-7' } })
    expect(told(await second.end())).toMatchObject([
      'FAILED_PRECONDITION',
      'INSTANCE_ID_IN_USE',
      { group: 'billing', instanceId: 'rack-7' },
    ])
    // The one that has it is not disturbed.
    await member.assigned(2)
  })

  it('an instance id that somebody else has taken over', async () => {
    const { client } = await aBroker()
    const member = new JoinStream(client)
    const { memberId, memberEpoch } = await member.join({ ...ORDERS, instanceId: 'rack-7' })
    member.duplex.cancel()
    await member.end()
    // The broker has seen the stream go.
    let isConnected = true
    while (isConnected) {
      const { members } = await client.call<DescribeGroupResponse>('DescribeGroup', {
        group: 'billing',
      })
      isConnected = members[0]?.connected === true
    }
    const second = new JoinStream(client)
    await second.join({ ...ORDERS, instanceId: 'rack-7' })
    const first = new JoinStream(client)
    first.say({ join: { ...ORDERS, instanceId: 'rack-7', memberId, memberEpoch } })
    expect(told(await first.end())).toMatchObject(['ABORTED', 'INSTANCE_FENCED', { memberId }])
  })

  it('a commit for a partition that is not owned, which stops no other of the commit', async () => {
    const { client } = await aBroker()
    const first = new JoinStream(client)
    await first.join(ORDERS)
    await first.assigned(2)
    const second = new JoinStream(client)
    await second.join(ORDERS)
    const [mine] = await Promise.all([first.assigned(1), second.assigned(1)])
    const own = mine.topics[0]?.partitions[0]?.partition ?? -1
    first.say(
      aCommit(
        1,
        mine.memberEpoch,
        { topic: 'orders', partition: 1 - own, offset: 0 },
        { topic: 'orders', partition: own, offset: 0 },
      ),
    )
    const { errors } = await first.nextOf('commit')
    expect(errors.map(toldOf)).toEqual([[1 - own, 'PARTITION_NOT_OWNED', 'rejoin']])
    const { offsets } = await client.call<FetchOffsetsResponse>('FetchOffsets', {
      group: 'billing',
    })
    expect(offsets.map((committed) => committed.partition)).toEqual([own])
  })

  it('a commit beyond the end, for what is not there, and with too much beside it', async () => {
    const { client } = await aBroker()
    const member = new JoinStream(client)
    await member.join(ORDERS)
    const { memberEpoch } = await member.assigned(2)
    member.say(
      aCommit(
        1,
        memberEpoch,
        { topic: 'orders', partition: 0, offset: 11 },
        { topic: 'orders', partition: 1, offset: 0, metadata: 'x'.repeat(4097) },
        { topic: 'orders', partition: 2, offset: 0 },
        { topic: 'ordres', partition: 0, offset: 0 },
      ),
    )
    const { errors } = await member.nextOf('commit')
    expect(errors.map(({ topic, error }) => [topic, error?.reason])).toEqual([
      ['orders', 'OFFSET_OUT_OF_RANGE'],
      ['orders', 'INVALID_REQUEST'],
      ['orders', 'UNKNOWN_PARTITION'],
      ['ordres', 'UNKNOWN_TOPIC'],
    ])
    expect(errors[0]?.error?.facts).toContainEqual({ name: 'offset', value: '11' })
  })

  it('a group of the wrong type', async () => {
    const { client, broker } = await aBroker()
    await broker.groups.declare('jobs', 'queue')
    const member = new JoinStream(client)
    member.say({ join: { ...ORDERS, group: 'jobs' } })
    expect(told(await member.end())).toMatchObject([
      'FAILED_PRECONDITION',
      'GROUP_TYPE_MISMATCH',
      { group: 'jobs' },
    ])
    const offsets = [{ topic: 'orders', offset: 1 }]
    const commit = client.call('CommitOffsets', { group: 'jobs', offsets })
    expect(told(await failureOf(commit))).toMatchObject([
      'FAILED_PRECONDITION',
      'GROUP_TYPE_MISMATCH',
      {},
    ])
    const described = await failureOf(client.call('DescribeGroup', { group: 'jobs' }))
    expect(told(described)).toMatchObject([
      'FAILED_PRECONDITION',
      'GROUP_TYPE_MISMATCH',
      { group: 'jobs' },
    ])
    expect(described.message).toContain('DescribeQueue')
    const { groups } = await client.call<ListGroupsResponse>('ListGroups', {})
    expect(groups).toMatchObject([{ group: 'jobs', type: 'GROUP_TYPE_QUEUE' }])
  })

  it.each(['(', '(?=x)', '(a)\\1'])('a pattern such as %s', async (pattern) => {
    const { client } = await aBroker()
    const member = new JoinStream(client)
    member.say({ join: { group: 'billing', subscription: { pattern } } })
    expect(told(await member.end()).slice(0, 2)).toEqual(['INVALID_ARGUMENT', 'INVALID_PATTERN'])
  })

  it('the deletion of a group that lives', async () => {
    const { client } = await aBroker()
    const member = new JoinStream(client)
    await member.join(ORDERS)
    expect(told(await failureOf(client.call('DeleteGroup', { group: 'billing' })))).toMatchObject([
      'FAILED_PRECONDITION',
      'GROUP_NOT_EMPTY',
      { group: 'billing', members: '1' },
    ])
    const topics = [{ topic: 'orders' }]
    const offsets = client.call('DeleteOffsets', { group: 'billing', topics })
    expect(told(await failureOf(offsets))).toMatchObject([
      'FAILED_PRECONDITION',
      'GROUP_SUBSCRIBED',
      { topic: 'orders' },
    ])
  })

  it('a reset and an outside commit with living members', async () => {
    const { client } = await aBroker()
    const member = new JoinStream(client)
    await member.join(ORDERS)
    for (const execute of [false, true]) {
      const reset = client.call('ResetOffsets', {
        group: 'billing',
        to: 'RESET_TO_EARLIEST',
        topics: [{ topic: 'orders' }],
        execute,
      })
      expect(told(await failureOf(reset))).toMatchObject([
        'FAILED_PRECONDITION',
        'GROUP_NOT_EMPTY',
        { group: 'billing' },
      ])
    }
    const commit = { group: 'billing', offsets: [{ topic: 'orders', offset: 1 }] }
    expect((await failureOf(client.call('CommitOffsets', commit))).reason).toBe('GROUP_NOT_EMPTY')
  })

  it('names, timeouts, assignors and subscriptions against the rules', async () => {
    const { client } = await aBroker()
    const cases: [object, string, string][] = [
      [{ ...ORDERS, group: 'a/b' }, 'INVALID_GROUP_ID', 'group'],
      [{ ...ORDERS, group: '' }, 'INVALID_GROUP_ID', 'group'],
      [{ ...ORDERS, sessionTimeoutMs: 5 }, 'INVALID_REQUEST', 'session_timeout_ms'],
      [{ ...ORDERS, rebalanceTimeoutMs: -1 }, 'INVALID_REQUEST', 'rebalance_timeout_ms'],
      [{ ...ORDERS, assignor: 'sticky' }, 'INVALID_REQUEST', 'assignor'],
      [{ group: 'billing' }, 'INVALID_REQUEST', 'subscription'],
      [{ group: 'billing', subscription: { topics: ['__offsets'] } }, 'TOPIC_INTERNAL', ''],
      [{ group: 'billing', subscription: { topics: ['a b'] } }, 'INVALID_TOPIC_NAME', ''],
    ]
    for (const [join, reason, field] of cases) {
      const member = new JoinStream(client)
      member.say({ join })
      const [, told1, facts] = told(await member.end())
      expect([told1, field === '' ? '' : facts['field']]).toEqual([reason, field])
    }
  })

  it('a group that is full', async () => {
    const { client } = await aBroker({ groups: { maxMembers: 1 } })
    await new JoinStream(client).join(ORDERS)
    const second = new JoinStream(client)
    second.say({ join: ORDERS })
    const error = await second.end()
    expect(told(error)).toMatchObject(['RESOURCE_EXHAUSTED', 'GROUP_FULL', { limit: '1' }])
    expect(error?.detail?.retryAfterMs).toBeGreaterThan(0)
  })

  it('a group that is not there', async () => {
    const { client } = await aBroker()
    const requests: [string, object][] = [
      ['DescribeGroup', {}],
      ['FetchOffsets', {}],
      ['DeleteGroup', {}],
      ['DeleteOffsets', { topics: [{ topic: 'orders' }] }],
      ['ResetOffsets', { to: 'RESET_TO_LATEST' }],
    ]
    for (const [call, request] of requests) {
      const failure = await failureOf(client.call(call, { group: 'nobody', ...request }))
      expect([call, ...told(failure)]).toMatchObject([call, 'NOT_FOUND', 'UNKNOWN_GROUP', {}])
    }
  })

  it('enums of a later version and resets that say nothing', async () => {
    const { client } = await aBroker()
    await client.call('CommitOffsets', {
      group: 'billing',
      offsets: [{ topic: 'orders', offset: 1 }],
    })
    const cases: [string, object, string, string][] = [
      ['ListGroups', { type: 9 }, 'UNSUPPORTED_FEATURE', 'type'],
      ['ListGroups', { state: 9 }, 'UNSUPPORTED_FEATURE', 'state'],
      ['ResetOffsets', { to: 99 }, 'UNSUPPORTED_FEATURE', 'to'],
      ['ResetOffsets', {}, 'INVALID_REQUEST', 'to'],
      ['ResetOffsets', { to: 'RESET_TO_OFFSET', value: -1 }, 'INVALID_REQUEST', 'value'],
      ['ResetOffsets', { to: 'RESET_TO_DURATION', value: -1 }, 'INVALID_REQUEST', 'value'],
      ['ResetOffsets', { to: 'RESET_TO_SHIFT', value: 2 ** 60 }, 'INVALID_REQUEST', 'value'],
      [
        'ResetOffsets',
        { to: 'RESET_TO_TIMESTAMP', value: 2 ** 60 },
        'INVALID_POSITION',
        'timestamp_ms',
      ],
      [
        'ResetOffsets',
        { to: 'RESET_TO_LATEST', offsets: [{ topic: 'orders' }] },
        'INVALID_REQUEST',
        'offsets',
      ],
      [
        'ResetOffsets',
        { to: 'RESET_TO_OFFSETS', offsets: [{ topic: 'orders', offset: -1 }] },
        'INVALID_REQUEST',
        'offset',
      ],
      [
        'ResetOffsets',
        { to: 'RESET_TO_OFFSETS', offsets: [{ topic: 'orders', expectedOffset: -2 }] },
        'INVALID_REQUEST',
        'expected_offset',
      ],
    ]
    for (const [call, request, reason, field] of cases) {
      const [, told1, facts] = told(
        await failureOf(client.call(call, { group: 'billing', ...request })),
      )
      expect([call, request, told1, facts['field']]).toEqual([call, request, reason, field])
    }
  })
})

describe('groups over the wire', () => {
  it('are listed, described, reset and deleted', async () => {
    const { client } = await aBroker()
    const member = new JoinStream(client)
    const { memberId } = await member.join({
      ...ORDERS,
      clientId: 'biller',
      instanceId: 'i',
      rack: 'r',
    })
    const { memberEpoch } = await member.assigned(2)
    member.say(aCommit(1, memberEpoch, { topic: 'orders', offset: 4, metadata: 'm' }))
    await member.nextOf('commit')
    const listed = await client.call<ListGroupsResponse>('ListGroups', {
      type: 'GROUP_TYPE_STREAM',
    })
    expect(listed.groups).toEqual([
      {
        group: 'billing',
        type: 'GROUP_TYPE_STREAM',
        state: 'GROUP_STATE_STABLE',
        members: 1,
        groupEpoch: expect.any(Number) as unknown,
      },
    ])
    const empty = { state: 'GROUP_STATE_EMPTY' }
    expect((await client.call<ListGroupsResponse>('ListGroups', empty)).groups).toEqual([])
    const described = await client.call<DescribeGroupResponse>('DescribeGroup', {
      group: 'billing',
      timeLag: true,
    })
    expect(described).toMatchObject({
      group: 'billing',
      type: 'GROUP_TYPE_STREAM',
      state: 'GROUP_STATE_STABLE',
      assignor: 'uniform',
      lag: 6,
      emptySinceMs: 0,
      members: [
        {
          memberId,
          instanceId: 'i',
          clientId: 'biller',
          rack: 'r',
          host: expect.stringMatching(/^127\.0\.0\.1:\d+$/) as unknown,
          memberEpoch,
          subscription: { topics: ['orders'], pattern: '' },
          owned: [{ topic: 'orders', partitions: [0, 1] }],
          target: [{ topic: 'orders', partitions: [0, 1] }],
          revoking: [],
          connected: true,
          sessionTimeoutMs: 45_000,
        },
      ],
      partitions: [
        {
          topic: 'orders',
          partition: 0,
          memberId,
          committedOffset: 4,
          logStartOffset: 0,
          highWatermark: 10,
          lag: 6,
          metadata: 'm',
        },
        { topic: 'orders', partition: 1, lag: 0 },
      ],
    })
    expect(described.partitions[0]?.lagMs).toBeGreaterThanOrEqual(0)
    expect(described.partitions[1]).not.toHaveProperty('committedOffset')
    expect(described.partitions[1]).not.toHaveProperty('lagMs')
    // Dynamic members go at once, static ones when their session is over.
    member.say({ leave: {} })
    await member.end()
    const { members } = await client.call<DescribeGroupResponse>('DescribeGroup', {
      group: 'billing',
    })
    expect(members).toMatchObject([{ connected: false }])
  })

  it('are reset in a dry run first, and only from what was planned', async () => {
    const { client } = await aBroker()
    await client.call('CommitOffsets', {
      group: 'billing',
      offsets: [{ topic: 'orders', offset: 4 }],
    })
    const request = { group: 'billing', to: 'RESET_TO_SHIFT', value: 100 }
    const plan = await client.call<ResetOffsetsResponse>('ResetOffsets', request)
    const expected = {
      topic: 'orders',
      partition: 0,
      from: 4,
      to: 10,
      logStartOffset: 0,
      highWatermark: 10,
      clamped: true,
    }
    expect(plan).toEqual({ offsets: [expected], executed: false })
    const reset = (expectedOffset: number): Promise<ResetOffsetsResponse> =>
      client.call<ResetOffsetsResponse>('ResetOffsets', {
        group: 'billing',
        to: 'RESET_TO_OFFSETS',
        offsets: [{ topic: 'orders', partition: 0, offset: 10, expectedOffset }],
        execute: true,
      })
    expect(told(await failureOf(reset(-1)))).toMatchObject([
      'FAILED_PRECONDITION',
      'WRONG_EXPECTED_OFFSET',
      { expected: '-1', actual: '4' },
    ])
    expect(await reset(4)).toMatchObject({ executed: true, offsets: [{ from: 4, to: 10 }] })
    const { offsets } = await client.call<FetchOffsetsResponse>('FetchOffsets', {
      group: 'billing',
      topics: ['orders'],
    })
    expect(offsets).toMatchObject([{ partition: 0, offset: 10 }])
    const topics = [{ topic: 'orders', partitions: [0] }]
    expect(await client.call('DeleteOffsets', { group: 'billing', topics })).toEqual({ deleted: 1 })
    await client.call('CommitOffsets', {
      group: 'billing',
      offsets: [{ topic: 'orders', offset: 4 }],
    })
    expect(await client.call('DeleteGroup', { group: 'billing' })).toEqual({})
    expect((await client.call<ListGroupsResponse>('ListGroups', {})).groups).toEqual([])
  })

  it('hand resets on as they were asked for', async () => {
    const { client, groups } = await startGroupsServer(new FakeGroups())
    const asked: [object, object][] = [
      [{ to: 'RESET_TO_EARLIEST' }, { to: 'earliest' }],
      [{ to: 'RESET_TO_LATEST' }, { to: 'latest' }],
      [
        { to: 'RESET_TO_OFFSET', value: 5 },
        { to: 'offset', offset: 5 },
      ],
      [
        { to: 'RESET_TO_TIMESTAMP', value: 5 },
        { to: 'timestamp', timestampMs: 5 },
      ],
      [
        { to: 'RESET_TO_DURATION', value: 5 },
        { to: 'duration', durationMs: 5 },
      ],
      [
        { to: 'RESET_TO_SHIFT', value: -5 },
        { to: 'shift', by: -5 },
      ],
      [
        { to: 'RESET_TO_OFFSETS', offsets: [{ topic: 't', partition: 1, offset: 5 }] },
        {
          to: 'offsets',
          offsets: [{ topic: 't', partition: 1, offset: 5, expectedOffset: undefined }],
        },
      ],
    ]
    for (const [request] of asked) await client.call('ResetOffsets', { group: 'g', ...request })
    expect(groups.requests).toEqual(asked.map(([, target]) => target))
  })

  it('have their coordinator in the metadata, whether they are there or not', async () => {
    const { client } = await aBroker()
    const { groups, brokers } = await client.call<MetadataResponse>('Metadata', {
      groups: ['billing', 'a b'],
    })
    expect(groups).toEqual([
      { group: 'billing', coordinator: brokers[0]?.brokerId, error: '', errorMessage: '' },
      {
        group: 'a b',
        coordinator: 0,
        error: 'INVALID_GROUP_ID',
        errorMessage: expect.stringContaining('position 1') as unknown,
      },
    ])
  })

  it('never break by bytes that are no request', async () => {
    const { client } = await aBroker()
    for (const call of [
      'CommitOffsets',
      'FetchOffsets',
      'ListGroups',
      'DescribeGroup',
      'DeleteGroup',
      'DeleteOffsets',
      'ResetOffsets',
    ]) {
      for (const bytes of [Buffer.from([0x0a, 0xff]), Buffer.alloc(40, 0xff)]) {
        const failure = await failureOf(client.callRaw(`/millrace.v1.GroupService/${call}`, bytes))
        expect([call, failure.reason]).toEqual([call, 'INVALID_REQUEST'])
      }
    }
  })
})

describe('a thousand members of one program', () => {
  it('need more than one connection, and then all work', async () => {
    const groups = { rebalanceIntervalMs: 200 }
    const { broker, client } = await aBroker({ partitions: 1000, groups })
    // A connection takes 1 000 streams, and grpc-js queues further ones without a word.
    const clients = Array.from({ length: 4 }, () => new RawClient(broker.url))
    onTestFinished(() => {
      for (const each of clients) each.close()
    })
    const members = Array.from(
      { length: 1000 },
      (_, i) => new JoinStream(clients[i % 4] as RawClient), // One of the four.
    )
    await Promise.all(members.map((member) => member.join(ORDERS)))
    const settled = await Promise.all(members.map((member) => member.assigned(1)))
    expect(new Set(settled.flatMap(partitionsOf)).size).toBe(1000)
    members.forEach((member, i) => {
      const { topics, memberEpoch } = settled[i]! // As many as members.
      const partition = topics[0]?.partitions[0]?.partition ?? -1
      member.say(aCommit(i, memberEpoch, { topic: 'orders', partition, offset: 0 }))
    })
    const results = await Promise.all(members.map((member) => member.nextOf('commit')))
    expect(results.every(({ errors }) => errors.length === 0)).toBe(true)
    const described = await client.call<DescribeGroupResponse>('DescribeGroup', {
      group: 'billing',
    })
    expect(described.members).toHaveLength(1000)
    await until(() => members.every((member) => member.buffered === 0))
  })
})
