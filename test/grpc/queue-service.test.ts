import * as grpc from '@grpc/grpc-js'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Clock } from '../../src/common/clock.ts'
import { BrokerError, type ErrorCode, ERROR_TABLE } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import type {
  Explanation,
  LogRecord,
  QueueDescription,
  ReceiveResult,
  RecordState,
  RedriveTaskInfo,
} from '../../src/coordination/queue/queue-types.ts'
import type { GrpcServer } from '../../src/grpc/server.ts'
import { STATUS_NUMBERS } from '../../src/grpc/status.ts'
import { QUEUE_SERVICE } from '../../src/wire/definitions.ts'
import type { ReceiveResponseMessage } from '../../src/wire/work-codec.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { FakeGroups } from '../support/fake-groups.ts'
import {
  aDelivery,
  aToken,
  type FakeQueueParts,
  fakeQueueParts,
  NO_NOTICE,
} from '../support/fake-queues.ts'
import { pass, startGroupsServer, until } from '../support/groups-server.ts'
import { CallError, RawClient } from '../support/raw-client.ts'

interface Stage extends FakeQueueParts {
  readonly client: RawClient
  readonly server: GrpcServer
  readonly address: string
}

async function aStage(options: { clock?: Clock } = {}): Promise<Stage> {
  const queueParts = fakeQueueParts()
  const { client, server, address } = await startGroupsServer(new FakeGroups(), {
    ...options,
    queueParts,
  })
  return { ...queueParts, client, server, address }
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

/** Status and reason, and the field that is named. */
function told(error: CallError): [number, string, string | undefined] {
  const field = error.detail?.facts.find(({ name }) => name === 'field')?.value
  return [error.status, error.reason, field]
}

const PLACE = { topic: 'dlq.workers.orders' }
const EVERYTHING = {
  reason: '',
  errorType: '',
  firstOffset: undefined,
  endOffset: undefined,
  fromMs: undefined,
  toMs: undefined,
  headers: [],
  group: '',
  topic: '',
  limit: 0,
}

const RECORD: LogRecord = {
  offset: toOffset(41),
  timestampMs: 7,
  key: Buffer.from('k'),
  value: undefined,
  headers: [
    { key: 'h', value: Buffer.from('v') },
    { key: 'none', value: undefined },
  ],
}

const EXPLANATION: Explanation = {
  state: 'parked',
  reason: 'it waits for its third try',
  deliveryCount: 2,
  failureCount: 2,
  dueMs: 99,
  memberId: '',
  leaseExpiresMs: undefined,
  blockedByOffset: undefined,
  failures: [
    {
      error: { type: 'E', message: 'm', stack: 's' },
      atMs: 3,
      memberId: 'w1',
      kind: 'lease_expired',
    },
  ],
  startOffset: toOffset(1),
  scanOffset: toOffset(50),
  highWatermark: toOffset(60),
}

const TASK: RedriveTaskInfo = {
  taskId: 't1',
  topic: 'dlq.workers.orders',
  toTopic: '',
  state: 'running',
  moved: 3,
  total: 10,
  startedMs: 5,
  endedMs: 0,
  maxPerSec: 100,
  error: '',
}

/** A request of each unary call that is fine, and which fake it goes to. */
const CALLS: readonly [string, object, 'queues' | 'sends' | 'deadLetters'][] = [
  ['Receive', { group: 'g', topic: 'orders' }, 'queues'],
  [
    'Acknowledge',
    { group: 'g', items: [{ token: aToken(1), verdict: 'VERDICT_ACCEPT' }] },
    'queues',
  ],
  ['Send', { topic: 'orders', records: [{ record: {} }] }, 'sends'],
  ['DescribeQueue', { group: 'g' }, 'queues'],
  ['ConfigureQueue', { group: 'g' }, 'queues'],
  ['PauseQueue', { group: 'g' }, 'queues'],
  ['ResumeQueue', { group: 'g' }, 'queues'],
  ['Peek', { group: 'g', topic: 'orders' }, 'queues'],
  ['Explain', { group: 'g', topic: 'orders' }, 'queues'],
  ['Unblock', { group: 'g', topic: 'orders' }, 'queues'],
  ['ListDead', PLACE, 'deadLetters'],
  ['DiscardDead', PLACE, 'deadLetters'],
  ['StartRedrive', PLACE, 'deadLetters'],
  ['GetRedrive', { taskId: 't' }, 'deadLetters'],
  ['ListRedrives', {}, 'deadLetters'],
  ['CancelRedrive', { taskId: 't' }, 'deadLetters'],
  ['ListDelayed', {}, 'sends'],
  ['CountDelayed', {}, 'sends'],
  ['CancelDelayed', { delayId: 'd' }, 'sends'],
  ['UpdateDelayed', { delayId: 'd' }, 'sends'],
  ['FireDelayed', { delayId: 'd' }, 'sends'],
]

const CODES: Readonly<Record<'queues' | 'sends' | 'deadLetters', readonly ErrorCode[]>> = {
  queues: [
    'INVALID_GROUP_ID',
    'INVALID_TOPIC_NAME',
    'UNKNOWN_TOPIC',
    'UNKNOWN_GROUP',
    'UNKNOWN_PARTITION',
    'GROUP_TYPE_MISMATCH',
    'INVALID_CONFIG',
    'INVALID_BACKOFF',
    'INVALID_REQUEST',
    'DLQ_CYCLE',
    'DLQ_UNAVAILABLE',
    'GROUP_FULL',
    'TOPIC_INTERNAL',
    'LOADING',
  ],
  sends: [
    'UNKNOWN_TOPIC',
    'TOPIC_INTERNAL',
    'EMPTY_BATCH',
    'BATCH_TOO_LARGE',
    'INVALID_CURSOR',
    'DELAY_NOT_FOUND',
    'ALREADY_FIRED',
    'INVALID_DELAY',
    'DELAY_TOO_LONG',
  ],
  deadLetters: [
    'NOT_A_DLQ',
    'UNKNOWN_TOPIC',
    'INVALID_FILTER',
    'INVALID_CURSOR',
    'REDRIVE_IN_PROGRESS',
    'TASK_NOT_FOUND',
  ],
}

describe('every call of the queue service', () => {
  it('is looked at here', () => {
    const unary = Object.keys(QUEUE_SERVICE).filter((name) => name !== 'Work')
    expect(CALLS.map(([name]) => name)).toEqual(unary)
  })

  it.each(CALLS)(
    '%s fails with the codes of what stands behind it',
    async (name, request, part) => {
      const stage = await aStage()
      for (const code of CODES[part]) {
        stage[part].failure = new BrokerError(code, 'because')
        const error = await failureOf(stage.client.call(name, request))
        expect([error.status, error.reason]).toEqual([
          STATUS_NUMBERS[ERROR_TABLE[code].status],
          code,
        ])
        expect(error.detail).toMatchObject({ action: ERROR_TABLE[code].action, message: 'because' })
      }
      expect(stage[part].requests).toHaveLength(CODES[part].length)
    },
  )

  it.each(CALLS)('%s is refused by a broker that loads', async (name, request) => {
    const { client } = await startGroupsServer(new FakeGroups())
    const error = await failureOf(client.call(name, request))
    expect([error.status, error.reason]).toEqual([grpc.status.UNAVAILABLE, 'LOADING'])
  })

  it.each(CALLS)('%s takes any bytes and leaves the broker alive', async (name, request) => {
    const stage = await aStage()
    const method = QUEUE_SERVICE[name]!
    const sane = method.requestSerialize(request)
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(
          fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes)),
          fc.tuple(fc.nat(), fc.nat(255)).map(([at, byte]) => {
            const bent = Buffer.from(sane)
            if (bent.length > 0) bent[at % bent.length] = byte
            return bent
          }),
          fc.nat().map((at) => sane.subarray(0, at % (sane.length + 1))),
        ),
        async (bytes) => {
          try {
            await stage.client.callRaw(method.path, bytes)
          } catch (error) {
            expect(error).toBeInstanceOf(CallError)
            expect((error as CallError).detail).toBeDefined()
          }
        },
      ),
      { numRuns: 40 },
    )
    await stage.client.call('ListGroups', {})
  })

  it('refuses a message above the limit by its name', async () => {
    const { client } = await aStage()
    const error = await failureOf(client.call('DescribeQueue', { group: 'g'.repeat(1_200_000) }))
    expect([error.status, error.reason]).toEqual([grpc.status.INVALID_ARGUMENT, 'BATCH_TOO_LARGE'])
  })
})

describe('Receive', () => {
  it('asks for one record at once unless told otherwise, and gives batches as they are', async () => {
    const { client, queues } = await aStage()
    const delivery = aDelivery(4, { batch: Buffer.alloc(300_000, 5), count: 3 })
    const notice = { ...NO_NOTICE, throttledUntilMs: 17 }
    queues.receiving = () => Promise.resolve({ deliveries: [delivery], notice })
    const answer = await client.call<ReceiveResponseMessage>('Receive', {
      group: 'g',
      topic: 'orders',
    })
    const { count: _, ...sent } = delivery
    expect(answer.notice).toEqual(notice)
    expect(
      answer.deliveries.map(({ batch, ...rest }) => ({ ...rest, batch: batch.length })),
    ).toEqual([{ ...sent, batch: 300_000 }])
    expect(Buffer.compare(answer.deliveries[0]?.batch ?? Buffer.alloc(0), delivery.batch)).toBe(0)
    expect(queues.requests).toEqual([
      {
        receive: {
          group: 'g',
          topic: 'orders',
          max: 1,
          waitMs: 0,
          maxBytes: 0,
          leaseMs: 0,
          clientId: '',
          host: expect.stringMatching(/^127\.0\.0\.1:\d+$/) as unknown,
          settings: {},
        },
      },
    ])
  })

  it('passes everything on', async () => {
    const { client, queues } = await aStage()
    const asked = { max: 1000, waitMs: 30_000, maxBytes: 16 << 20, leaseMs: 1000, clientId: 'c' }
    const settings = [{ name: 'order', value: 'key' }]
    const answer = await client.call('Receive', { group: 'g', topic: 't', settings, ...asked })
    expect(answer).toEqual({ deliveries: [], notice: NO_NOTICE })
    expect(queues.requests).toMatchObject([{ receive: { ...asked, settings: { order: 'key' } } }])
  })

  it.each([
    ['max', { max: 1001 }],
    ['max', { max: -1 }],
    ['wait_ms', { waitMs: 30_001 }],
    ['wait_ms', { waitMs: -1 }],
    ['max_bytes', { maxBytes: (16 << 20) + 1 }],
    ['max_bytes', { maxBytes: -1 }],
    ['lease_ms', { leaseMs: 999 }],
    ['lease_ms', { leaseMs: 43_200_001 }],
    ['client_id', { clientId: 'c'.repeat(257) }],
  ])('refuses %s outside of its range (%j)', async (field, wrong) => {
    const { client, queues } = await aStage()
    const error = await failureOf(client.call('Receive', { group: 'g', topic: 't', ...wrong }))
    expect(told(error)).toEqual([grpc.status.INVALID_ARGUMENT, 'INVALID_REQUEST', field])
    expect(queues.requests).toEqual([])
  })

  it('stops waiting when nobody waits for it, and gives back what it got all the same', async () => {
    const { address, queues, server } = await aStage()
    let asked: AbortSignal | undefined
    let give: (result: ReceiveResult) => void = () => undefined
    queues.receiving = (_, signal) => {
      asked = signal
      return new Promise((resolve) => (give = resolve))
    }
    const client = new RawClient(address)
    const failure = failureOf(
      client.call('Receive', { group: 'g', topic: 't', waitMs: 30_000 }, undefined, {
        deadline: Date.now() + 50,
      }),
    )
    await until(() => asked?.aborted === true)
    expect((await failure).status).toBe(grpc.status.DEADLINE_EXCEEDED)
    give({ deliveries: [aDelivery(3, { count: 2 })], notice: NO_NOTICE })
    await until(() => queues.acks.length === 1)
    expect(queues.acks[0]?.items).toMatchObject([{ first: 3, end: 5, verdict: 'release' }])
    await until(() => server.activeCalls === 0)
    client.close()
  })

  it.each([
    ['comes back empty', () => Promise.resolve({ deliveries: [], notice: NO_NOTICE })],
    ['fails', () => Promise.reject(new BrokerError('CANCELLED_BY_CLIENT', 'aborted'))],
  ])('ends with BROKER_DRAINING when the broker stops and the wait %s', async (_, end) => {
    const { client, queues, server } = await aStage()
    let waits = false
    queues.receiving = (__, signal) => {
      waits = true
      return new Promise((resolve, reject) => {
        signal.addEventListener('abort', () => void end().then(resolve, reject))
      })
    }
    const failure = failureOf(client.call('Receive', { group: 'g', topic: 't', waitMs: 30_000 }))
    await until(() => waits)
    const stopped = server.stop(60_000)
    const error = await failure
    expect([error.status, error.reason]).toEqual([grpc.status.UNAVAILABLE, 'BROKER_DRAINING'])
    expect(await stopped).toBe(true)
  })

  it('gives what it has got when the broker stops', async () => {
    const { client, queues, server } = await aStage()
    let waits = false
    queues.receiving = (_, signal) => {
      waits = true
      return new Promise((resolve) => {
        signal.addEventListener('abort', () =>
          resolve({ deliveries: [aDelivery(1)], notice: NO_NOTICE }),
        )
      })
    }
    const answer = client.call<ReceiveResponseMessage>('Receive', { group: 'g', topic: 't' })
    await until(() => waits)
    const stopped = server.stop(60_000)
    expect((await answer).deliveries).toHaveLength(1)
    expect(await stopped).toBe(true)
  })

  it('has a minute, whatever stands behind it', async () => {
    const clock = new FakeClock()
    const { client, queues } = await aStage({ clock })
    queues.receiving = () => new Promise(() => undefined)
    const failure = failureOf(client.call('Receive', { group: 'g', topic: 't' }))
    const error = await pass(clock, failure)
    expect([error.status, error.reason]).toEqual([grpc.status.DEADLINE_EXCEEDED, 'REQUEST_TIMEOUT'])
    expect(error.detail?.facts).toContainEqual({ name: 'limit', value: '60000' })
  })
})

describe('Acknowledge', () => {
  const ACK = { token: aToken(1), first: 1, end: 3, verdict: 'VERDICT_ACCEPT' }

  it('answers with what was refused, by its place', async () => {
    const { client, queues } = await aStage()
    queues.holdAcks = true
    const answer = client.call<{ failures: { index: number; error: { reason: string } }[] }>(
      'Acknowledge',
      { group: 'g', items: [{ ...ACK, token: Buffer.alloc(3) }, ACK, { ...ACK, verdict: 9 }, ACK] },
    )
    await until(() => queues.acks.length === 1)
    expect(queues.acks[0]?.items).toHaveLength(2)
    queues.acks[0]?.settle([{ index: 1, error: new BrokerError('LEASE_LOST', 'late') }])
    const { failures } = await answer
    expect(failures.map(({ index, error }) => [index, error.reason])).toEqual([
      [0, 'INVALID_LEASE_TOKEN'],
      [2, 'UNSUPPORTED_FEATURE'],
      [3, 'LEASE_LOST'],
    ])
  })

  it('is bounded', async () => {
    const { client } = await aStage()
    const items = Array.from({ length: 10_001 }, () => ACK)
    const error = await failureOf(client.call('Acknowledge', { group: 'g', items }))
    expect(told(error)).toEqual([grpc.status.INVALID_ARGUMENT, 'INVALID_REQUEST', 'items'])
    expect(await client.call('Acknowledge', { group: 'g', items: [] })).toEqual({ failures: [] })
  })

  it('is taken while the broker stops, for it ends what is in hand', async () => {
    const { client, queues, server } = await aStage()
    queues.holdAcks = true
    // Keeps the server waiting.
    const first = client.call('Acknowledge', { group: 'g', items: [ACK] })
    await until(() => queues.acks.length === 1)
    const stopped = server.stop(60_000)
    const second = client.call('Acknowledge', { group: 'g', items: [ACK] })
    const other = await failureOf(client.call('ResumeQueue', { group: 'g' }))
    expect(other.reason).toBe('BROKER_DRAINING')
    await until(() => queues.acks.length === 2)
    for (const held of queues.acks) held.settle()
    expect(await Promise.all([first, second])).toEqual([{ failures: [] }, { failures: [] }])
    expect(await stopped).toBe(true)
  })
})

describe('Send', () => {
  it('passes every record on with its options', async () => {
    const { client, sends } = await aStage()
    sends.sending = () => [
      {
        error: undefined,
        partition: 3,
        offset: toOffset(8),
        delayId: '',
        deliverAtMs: 0,
        duplicate: true,
        timestampMs: 6,
      },
      {
        error: undefined,
        partition: 4,
        offset: undefined,
        delayId: 'd1',
        deliverAtMs: 900,
        duplicate: false,
        timestampMs: 7,
      },
    ]
    const answer = await client.call('Send', {
      topic: 'orders',
      records: [
        {
          record: {
            key: Buffer.from('k'),
            value: Buffer.from('v'),
            headers: [{ key: 'h', value: Buffer.from('x') }],
            timestampMs: 5,
          },
          partition: 2,
          dedupeId: 'id',
          deliverAtMs: 900,
          sendId: Buffer.alloc(16, 1),
        },
        { record: {}, delayMs: 0 },
      ],
    })
    expect(sends.requests).toEqual([
      {
        send: 'orders',
        records: [
          {
            key: Buffer.from('k'),
            value: Buffer.from('v'),
            headers: [{ key: 'h', value: Buffer.from('x') }],
            timestampMs: 5,
            partition: 2,
            dedupeId: 'id',
            deliverAtMs: 900,
            delayMs: undefined,
            sendId: Buffer.alloc(16, 1),
          },
          {
            key: undefined,
            value: undefined,
            headers: [],
            timestampMs: undefined,
            partition: undefined,
            dedupeId: '',
            deliverAtMs: undefined,
            delayMs: 0,
            sendId: Buffer.alloc(0),
          },
        ],
      },
    ])
    const common = { error: null, deliverAtMs: 0, delayId: '', duplicate: false }
    expect(answer).toEqual({
      results: [
        { ...common, partition: 3, offset: 8, duplicate: true, timestampMs: 6 },
        { ...common, partition: 4, delayId: 'd1', deliverAtMs: 900, timestampMs: 7 },
      ],
    })
  })

  it('refuses what is malformed by itself and sends the rest, each answer in its place', async () => {
    const { client, sends } = await aStage()
    sends.sending = (records) =>
      records.map(() => ({ error: new BrokerError('DELAY_TOO_LONG', 'no', { limit: 5 }) }))
    const fine = { record: { value: Buffer.from('v') } }
    const { results } = await client.call<{ results: { error: { reason: string } }[] }>('Send', {
      topic: 'orders',
      records: [
        {},
        fine,
        { ...fine, sendId: Buffer.alloc(15) },
        { record: { timestampMs: -1 } },
        { record: { timestampMs: 2 ** 60 } },
        fine,
      ],
    })
    expect(results.map(({ error }) => error.reason)).toEqual([
      'INVALID_RECORD',
      'DELAY_TOO_LONG',
      'INVALID_REQUEST',
      'INVALID_TIMESTAMP',
      'INVALID_TIMESTAMP',
      'DELAY_TOO_LONG',
    ])
    expect(sends.requests).toMatchObject([{ records: [{}, {}] }])
  })

  it('asks also with nothing, for the error that it gives', async () => {
    const { client, sends } = await aStage()
    await client.call('Send', { topic: 'orders', records: [] })
    await client.call('Send', { topic: 'orders', records: [{}] })
    expect(sends.requests).toEqual([{ send: 'orders', records: [] }])
  })
})

describe('looking at a queue', () => {
  it('describes it', async () => {
    const { client, queues } = await aStage()
    const counters = {
      delivered: 1,
      accepted: 2,
      released: 3,
      retried: 4,
      rejected: 5,
      expired: 6,
      deadLettered: 7,
      dropped: 8,
      lostToRetention: 9,
    }
    const partition = {
      topic: 'orders',
      partition: 1,
      logStartOffset: toOffset(1),
      startOffset: toOffset(2),
      scanOffset: toOffset(3),
      highWatermark: toOffset(4),
      ready: 5,
      acquired: 6,
      parked: 7,
      deadLettering: 8,
      blocked: 9,
      done: 10,
      runs: 11,
      oldestReadyMs: 12.4,
      error: undefined,
    }
    const broken = {
      ...partition,
      oldestReadyMs: undefined,
      error: new BrokerError('STORAGE_ERROR', '/data/orders-1/x.log: EIO'),
    }
    const member = {
      memberId: 'w1',
      clientId: 'c',
      host: 'h',
      topic: 'orders',
      acquired: 1,
      credit: 2,
      connected: true,
      sinceHeardMs: 3.7,
    }
    const setting = { name: 'a', value: 'b', overridden: true, description: 'd', allowed: 'e' }
    const description: QueueDescription = {
      group: 'g',
      topics: [
        { topic: 'orders', deadLetterTopic: 'dlq.g.orders', partitions: [partition, broken] },
      ],
      members: [member],
      config: [setting],
      paused: true,
      pausedUntilMs: 17,
      notice: { ...NO_NOTICE, paused: true },
      counters,
    }
    queues.description = description
    const { oldestReadyMs: _, ...rest } = partition
    expect(await client.call('DescribeQueue', { group: 'g' })).toEqual({
      ...description,
      topics: [
        {
          topic: 'orders',
          deadLetterTopic: 'dlq.g.orders',
          partitions: [
            { ...partition, oldestReadyMs: 12, error: null },
            {
              ...rest,
              error: expect.objectContaining({
                reason: 'STORAGE_ERROR',
                message: 'x.log: EIO',
              }) as unknown,
            },
          ],
        },
      ],
      members: [{ ...member, sinceHeardMs: 4 }],
    })
    expect(queues.requests).toEqual([{ describe: 'g' }])
  })

  it('peeks', async () => {
    const { client, queues } = await aStage()
    queues.peeked = [{ topic: 'orders', partition: 2, record: RECORD, state: EXPLANATION }]
    const answer = await client.call<{ records: { record: object; state: object }[] }>('Peek', {
      group: 'g',
      topic: 'orders',
      partition: 0,
      state: 'RECORD_STATE_DEAD_LETTERING',
      limit: 1000,
    })
    expect(answer.records).toHaveLength(1)
    expect(answer.records[0]).toMatchObject({
      topic: 'orders',
      partition: 2,
      record: {
        offset: 41,
        timestampMs: 7,
        key: Buffer.from('k'),
        headers: [
          { key: 'h', value: Buffer.from('v') },
          { key: 'none', value: Buffer.alloc(0) },
        ],
      },
      state: { state: 'RECORD_STATE_PARKED', dueMs: 99 },
    })
    expect(answer.records[0]?.record).not.toHaveProperty('value')
    await client.call('Peek', { group: 'g', topic: 'orders' })
    const all = { group: 'g', topic: 'orders', partition: undefined, state: undefined, limit: 20 }
    expect(queues.requests).toEqual([
      { peek: { ...all, partition: 0, state: 'dead-lettering', limit: 1000 } },
      { peek: all },
    ])
  })

  it('explains every state, leaving out what there is not', async () => {
    const { client, queues } = await aStage()
    const states: Readonly<Record<RecordState, string>> = {
      unscanned: 'UNSCANNED',
      available: 'AVAILABLE',
      acquired: 'ACQUIRED',
      parked: 'PARKED',
      'dead-lettering': 'DEAD_LETTERING',
      blocked: 'BLOCKED',
      done: 'DONE',
      dead: 'DEAD',
      gone: 'GONE',
      'not-yet': 'NOT_YET',
    }
    const request = { group: 'g', topic: 'orders', partition: 3, offset: 4 }
    for (const [state, name] of Object.entries(states)) {
      queues.explanation = { ...EXPLANATION, state: state as RecordState }
      const answer = await client.call('Explain', request)
      expect(answer['state']).toBe(`RECORD_STATE_${name}`)
    }
    const { leaseExpiresMs: _, blockedByOffset: __, ...parked } = EXPLANATION
    queues.explanation = EXPLANATION
    expect(await client.call('Explain', request)).toEqual({
      ...parked,
      state: 'RECORD_STATE_PARKED',
    })
    queues.explanation = {
      ...EXPLANATION,
      dueMs: undefined,
      leaseExpiresMs: 5,
      blockedByOffset: toOffset(0),
    }
    const other = await client.call('Explain', request)
    expect(other).toMatchObject({ leaseExpiresMs: 5, blockedByOffset: 0 })
    expect(other).not.toHaveProperty('dueMs')
    expect(queues.requests[0]).toEqual({ explain: ['g', 'orders', 3, 4] })
  })
})

describe('changing a queue', () => {
  it('passes settings, pauses and unblocking on', async () => {
    const clock = new FakeClock()
    const { client, queues } = await aStage({ clock })
    const untilMs = clock.wallMs() + 1
    const { config } = await client.call('ConfigureQueue', {
      group: 'g',
      set: [{ name: 'retry.max.attempts', value: '7' }],
      clear: ['order'],
      validateOnly: true,
    })
    expect(config).toMatchObject([{ name: 'retry.max.attempts', value: '7', overridden: true }])
    await client.call('PauseQueue', { group: 'g', untilMs })
    await client.call('PauseQueue', { group: 'g' })
    await client.call('ResumeQueue', { group: 'g' })
    const record = { group: 'g', topic: 'orders', partition: 1, offset: 5 }
    await client.call('Unblock', { ...record, skip: true })
    expect(queues.requests).toEqual([
      { configure: 'g', set: { 'retry.max.attempts': '7' }, clear: ['order'], validateOnly: true },
      { pause: 'g', untilMs },
      { pause: 'g', untilMs: 0 },
      { resume: 'g' },
      { unblock: ['g', 'orders', 1, 5, true] },
    ])
  })
})

describe('dead letters', () => {
  it('are listed, page by page', async () => {
    const { client, deadLetters } = await aStage()
    const letter = {
      partition: 1,
      group: 'workers',
      sourceTopic: 'orders',
      sourcePartition: 2,
      sourceOffset: 9,
      reason: 'rejected',
      deliveries: 5,
      failures: 4,
      firstFailedMs: 3,
      lastFailedMs: 2,
      error: { type: 'E', message: 'm', stack: 's' },
      memberId: 'w1',
      redrives: 1,
      settled: true,
    }
    deadLetters.letters = [{ ...letter, record: RECORD }]
    const filter = {
      reason: 'rejected',
      errorType: 'E',
      firstOffset: 0,
      endOffset: 8,
      fromMs: 1,
      toMs: 2,
      headers: [{ key: 'h', value: Buffer.from('v') }],
      group: 'g',
      topic: 't',
      limit: 6,
    }
    const answer = await client.call<{ letters: object[] }>('ListDead', {
      group: 'workers',
      sourceTopic: 'orders',
      filter,
      pageSize: 1000,
      pageToken: 'p1',
      includeSettled: true,
    })
    expect(answer).toMatchObject({ topic: 'dlq.workers.orders', nextPageToken: 'p2' })
    expect(answer.letters).toMatchObject([{ ...letter, offset: 41, record: { offset: 41 } }])
    await client.call('ListDead', PLACE)
    expect(deadLetters.requests).toEqual([
      {
        list: {
          place: { topic: '', group: 'workers', sourceTopic: 'orders' },
          filter,
          pageSize: 1000,
          pageToken: 'p1',
          includeSettled: true,
        },
      },
      {
        list: {
          place: { topic: 'dlq.workers.orders', group: '', sourceTopic: '' },
          filter: EVERYTHING,
          pageSize: 100,
          pageToken: '',
          includeSettled: false,
        },
      },
    ])
  })

  it.each(['ListDead', 'DiscardDead', 'StartRedrive'])(
    '%s wants to know where, once',
    async (call) => {
      const { client, deadLetters } = await aStage()
      const of = async (place: object): Promise<unknown> =>
        told(await failureOf(client.call(call, place)))
      const invalid = grpc.status.INVALID_ARGUMENT
      expect(await of({})).toEqual([invalid, 'INVALID_REQUEST', 'topic'])
      expect(await of({ group: 'g' })).toEqual([invalid, 'INVALID_REQUEST', 'source_topic'])
      expect(await of({ sourceTopic: 't' })).toEqual([invalid, 'INVALID_REQUEST', 'group'])
      expect(await of({ ...PLACE, group: 'g' })).toEqual([invalid, 'CONFLICTING_FIELDS', 'topic'])
      expect(deadLetters.requests).toEqual([])
    },
  )

  it('are discarded', async () => {
    const { client, deadLetters } = await aStage()
    const answer = await client.call('DiscardDead', {
      ...PLACE,
      dryRun: true,
      filter: { limit: 2 },
    })
    expect(answer).toEqual({ discarded: 3 })
    expect(deadLetters.requests).toEqual([
      {
        discard: { ...PLACE, group: '', sourceTopic: '' },
        filter: { ...EVERYTHING, limit: 2 },
        dryRun: true,
      },
    ])
  })

  it('are redriven, or looked at before', async () => {
    const { client, deadLetters } = await aStage()
    deadLetters.task = TASK
    const task = { ...TASK, state: 'REDRIVE_STATE_RUNNING' }
    expect(await client.call('StartRedrive', PLACE)).toEqual({ task, preview: null })
    deadLetters.task = undefined
    deadLetters.preview = { count: 4, bytes: 5, firstMs: 6, lastMs: 7, samples: [] }
    const dry = { ...PLACE, toTopic: 't', maxPerSec: 10_000, dryRun: true, resetAttempts: false }
    expect(await client.call('StartRedrive', dry)).toEqual({
      task: null,
      preview: deadLetters.preview,
    })
    const common = { place: { ...PLACE, group: '', sourceTopic: '' }, filter: EVERYTHING }
    expect(deadLetters.requests).toEqual([
      { redrive: { ...common, toTopic: '', maxPerSec: 100, dryRun: false, resetAttempts: true } },
      {
        redrive: { ...common, toTopic: 't', maxPerSec: 10_000, dryRun: true, resetAttempts: false },
      },
    ])
  })

  it('have tasks in every state', async () => {
    const { client, deadLetters } = await aStage()
    for (const state of ['running', 'done', 'cancelled', 'failed'] as const) {
      deadLetters.task = { ...TASK, state }
      const message = { ...TASK, state: `REDRIVE_STATE_${state.toUpperCase()}` }
      expect(await client.call('GetRedrive', { taskId: 't1' })).toEqual(message)
      expect(await client.call('CancelRedrive', { taskId: 't1' })).toEqual(message)
      expect(await client.call('ListRedrives', {})).toEqual({ tasks: [message] })
    }
    expect(deadLetters.requests.slice(0, 2)).toEqual([{ get: 't1' }, { cancel: 't1' }])
  })
})

describe('delayed records', () => {
  it('are listed, counted, cancelled, moved and fired', async () => {
    const { client, sends } = await aStage()
    const waiting = {
      delayId: 'd1',
      topic: 'orders',
      partition: 2,
      deliverAtMs: 90,
      acceptedMs: 80,
      dedupeId: 'x',
    }
    sends.waiting = [{ ...waiting, record: RECORD }]
    const asked = { topic: 'orders', fromMs: 0, toMs: 100, pageSize: 7, pageToken: 'p1' }
    expect(await client.call('ListDelayed', asked)).toMatchObject({
      records: [{ ...waiting, record: { offset: 41 } }],
      nextPageToken: 'p2',
    })
    await client.call('ListDelayed', {})
    expect(await client.call('CountDelayed', { topic: 'orders' })).toEqual({ count: 12 })
    expect(await client.call('CancelDelayed', { delayId: 'd1' })).toEqual({})
    const moved = { delayId: 'd1', deliverAtMs: 500 }
    expect(await client.call('UpdateDelayed', moved)).toEqual({ deliverAtMs: 500 })
    expect(await client.call('FireDelayed', { delayId: 'd1' })).toEqual({ partition: 2, offset: 9 })
    const all = { topic: '', fromMs: undefined, toMs: undefined, pageSize: 100, pageToken: '' }
    expect(sends.requests).toEqual([
      { list: asked },
      { list: all },
      { count: 'orders' },
      { cancel: 'd1' },
      { update: 'd1', deliverAtMs: 500 },
      { fire: 'd1' },
    ])
  })
})

describe('a number outside of its range', () => {
  const record = { group: 'g', topic: 'orders', partition: 1 }
  it.each<[string, object, string, ErrorCode?]>([
    ['Peek', { group: 'g', topic: 't', limit: 1001 }, 'limit'],
    ['Peek', { group: 'g', topic: 't', limit: -1 }, 'limit'],
    ['Peek', { group: 'g', topic: 't', state: 99 }, 'state', 'UNSUPPORTED_FEATURE'],
    ['Explain', { ...record, offset: -1 }, 'offset'],
    ['Explain', { ...record, offset: 2 ** 60 }, 'offset'],
    ['Unblock', { ...record, offset: -1 }, 'offset'],
    ['PauseQueue', { group: 'g', untilMs: -1 }, 'until_ms'],
    ['PauseQueue', { group: 'g', untilMs: 1 }, 'until_ms'],
    [
      'ConfigureQueue',
      { group: 'g', set: [{ name: 'a' }, { name: 'a' }] },
      'key',
      'INVALID_CONFIG',
    ],
    ['ListDead', { ...PLACE, pageSize: 1001 }, 'page_size'],
    ['ListDead', { ...PLACE, pageSize: -1 }, 'page_size'],
    ['StartRedrive', { ...PLACE, maxPerSec: 10_001 }, 'max_per_sec'],
    ['StartRedrive', { ...PLACE, maxPerSec: -1 }, 'max_per_sec'],
    ['ListDelayed', { pageSize: 1001 }, 'page_size'],
    ['ListDelayed', { fromMs: -1 }, 'from_ms'],
    ['ListDelayed', { toMs: 2 ** 60 }, 'to_ms'],
    ['UpdateDelayed', { delayId: 'd', deliverAtMs: -1 }, 'deliver_at_ms', 'INVALID_DELAY'],
  ])('is refused by %s (%j)', async (call, request, field, code = 'INVALID_REQUEST') => {
    const stage = await aStage()
    const error = await failureOf(stage.client.call(call, request))
    expect([error.status, error.reason]).toEqual([STATUS_NUMBERS[ERROR_TABLE[code].status], code])
    const facts = error.detail?.facts ?? []
    expect(facts.some(({ name, value }) => value === field || name === field)).toBe(true)
    const asked = [stage.queues, stage.sends, stage.deadLetters].map(({ requests }) => requests)
    expect(asked.flat()).toEqual([])
  })
})
