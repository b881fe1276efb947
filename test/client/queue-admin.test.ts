import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type Client, connect, MillraceError, type RedriveInfo } from '../../src/client/index.ts'
import { BrokerError } from '../../src/common/errors.ts'
import type {
  DeadFilter,
  DeadLetter,
  ExplainResponse,
  ListDeadRequest,
  ListDeadResponse,
  Record as WireRecord,
  RedriveTask,
} from '../../src/gen/types.ts'
import { toErrorDetail } from '../../src/wire/error-detail.ts'
import { BrokenCall, FakeQueueBroker } from '../support/fake-queue-broker.ts'
import { failureOf } from '../support/fake-session.ts'

let broker: FakeQueueBroker
let mill: Client

beforeEach(async () => {
  broker = await FakeQueueBroker.start()
  mill = await connect(broker.url)
})

afterEach(async () => {
  await mill.close()
  await broker[Symbol.asyncDispose]()
})

async function listOf<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = []
  for await (const item of items) list.push(item)
  return list
}

const aRecord = (offset: number): WireRecord => ({
  offset,
  timestampMs: 5,
  key: Buffer.from('k'),
  value: Buffer.from(`v${offset}`),
  headers: [
    { key: 'text', value: Buffer.from('é') },
    { key: 'bytes', value: Buffer.from([0xff]) },
  ],
})

const aLetter = (offset: number): DeadLetter => ({
  partition: 0,
  offset,
  record: aRecord(offset),
  group: 'workers',
  sourceTopic: 'mails',
  sourcePartition: 2,
  sourceOffset: 70 + offset,
  reason: 'rejected',
  deliveries: 3,
  failures: 2,
  firstFailedMs: 10,
  lastFailedMs: 20,
  error: { type: 'TypeError', message: 'm', stack: 's' },
  memberId: 'm-1',
  redrives: 1,
  settled: false,
})

const NO_FILTER: DeadFilter = {
  reason: '',
  errorType: '',
  headers: [],
  group: '',
  topic: '',
  limit: 0,
}

const anExplanation: ExplainResponse = {
  state: 'RECORD_STATE_PARKED',
  reason: 'waits to be tried again',
  deliveryCount: 2,
  failureCount: 1,
  dueMs: 99,
  memberId: '',
  failures: [
    { error: { type: 'E', message: 'm', stack: '' }, atMs: 7, memberId: 'm-1', kind: 'retry' },
  ],
  startOffset: 1,
  scanOffset: 8,
  highWatermark: 9,
}

const aTask = (change: Partial<RedriveTask> = {}): RedriveTask => ({
  taskId: 't-1',
  topic: 'dlq.workers.mails',
  toTopic: '',
  state: 'REDRIVE_STATE_RUNNING',
  moved: 0,
  total: 10,
  startedMs: 5,
  endedMs: 0,
  maxPerSec: 100,
  error: '',
  ...change,
})

describe('looking', () => {
  it('describes a queue', async () => {
    const counts = { ready: 1, acquired: 2, parked: 3, deadLettering: 4, blocked: 5, done: 6 }
    const partition = {
      topic: 'mails',
      partition: 0,
      logStartOffset: 0,
      startOffset: 1,
      scanOffset: 2,
      highWatermark: 3,
      ...counts,
      runs: 7,
    }
    const member = {
      memberId: 'm-1',
      clientId: 'c',
      host: 'h',
      topic: 'mails',
      acquired: 2,
      credit: 5,
      connected: true,
      sinceHeardMs: 4,
    }
    const entry = { name: 'order', value: 'key', overridden: true, description: 'd', allowed: 'a' }
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
    broker.handlers.DescribeQueue = ({ group }) => ({
      group,
      topics: [
        {
          topic: 'mails',
          deadLetterTopic: 'dlq',
          partitions: [
            { ...partition, oldestReadyMs: 8, error: null },
            { ...partition, partition: 1, error: toErrorDetail('STORAGE_ERROR', 'broken', {}) },
          ],
        },
      ],
      members: [member],
      config: [entry],
      paused: true,
      pausedUntilMs: 0,
      notice: { throttledUntilMs: 12, windowFull: true, paused: true, dlqUnavailable: false },
      counters,
    })
    const found = await mill.admin.describeQueue('workers')
    expect(found).toEqual({
      group: 'workers',
      topics: [
        {
          topic: 'mails',
          deadLetterTopic: 'dlq',
          partitions: [
            { ...partition, oldestReadyMs: 8, error: undefined },
            {
              ...partition,
              partition: 1,
              oldestReadyMs: undefined,
              error: expect.objectContaining({ code: 'STORAGE_ERROR' }) as unknown,
            },
          ],
        },
      ],
      members: [member],
      config: [entry],
      paused: true,
      pausedUntil: undefined,
      throttledUntil: 12,
      windowFull: true,
      dlqUnavailable: false,
      counters,
    })
    expect(found.topics[0]?.partitions[1]?.error).toBeInstanceOf(MillraceError)
  })

  it('tells the code of what the broker refuses', async () => {
    broker.handlers.DescribeQueue = () => new BrokerError('GROUP_TYPE_MISMATCH', 'a stream group')
    const failure = await failureOf(mill.admin.describeQueue('workers'))
    expect(failure).toMatchObject({ code: 'GROUP_TYPE_MISMATCH' })
    expect(await failureOf(mill.admin.describeQueue('no/name'))).toBeInstanceOf(MillraceError)
  })

  it('peeks, and explains', async () => {
    broker.handlers.Peek = () => ({
      records: [
        { topic: 'mails', partition: 1, record: aRecord(4), state: anExplanation },
        {
          topic: 'mails',
          partition: 1,
          record: { offset: 5, timestampMs: 6, headers: [] },
          state: { ...anExplanation, state: 'RECORD_STATE_NOT_YET' },
        },
      ],
    })
    broker.handlers.Explain = () => anExplanation
    const [first, second] = await mill.admin.peekQueue('workers', 'mails', {
      partition: 1,
      state: 'dead-lettering',
      limit: 2,
    })
    await mill.admin.peekQueue('workers', 'mails')
    expect(broker.requests('Peek')).toEqual([
      {
        group: 'workers',
        topic: 'mails',
        partition: 1,
        state: 'RECORD_STATE_DEAD_LETTERING',
        limit: 2,
      },
      { group: 'workers', topic: 'mails', state: 'RECORD_STATE_UNSPECIFIED', limit: 20 },
    ])
    expect(first?.record).toMatchObject({ offset: 4, timestamp: 5, key: Buffer.from('k') })
    expect({ ...first?.record.headers }).toEqual({ text: 'é', bytes: Buffer.from([0xff]) })
    expect(second?.record).toMatchObject({ key: undefined, value: null })
    expect(second?.state.state).toBe('not-yet')
    expect(await mill.admin.explainRecord('workers', 'mails', 1, 4)).toEqual({
      state: 'parked',
      reason: 'waits to be tried again',
      deliveryCount: 2,
      failureCount: 1,
      dueAt: 99,
      memberId: undefined,
      leaseExpiresAt: undefined,
      blockedByOffset: undefined,
      failures: [{ type: 'E', message: 'm', stack: '', at: 7, memberId: 'm-1', kind: 'retry' }],
      startOffset: 1,
      scanOffset: 8,
      highWatermark: 9,
    })
  })

  it('refuses limits and states that there are not', async () => {
    const { admin } = mill
    expect(await failureOf(admin.peekQueue('g', 't', { limit: 1001 }))).toMatchObject({
      code: 'INVALID_REQUEST',
      details: { field: 'limit', limit: 1000, actual: 1001 },
    })
    expect(
      await failureOf(admin.peekQueue('g', 't', { state: 'asleep' as 'parked' })),
    ).toMatchObject({ code: 'INVALID_REQUEST', details: { field: 'state' } })
    expect(await failureOf(admin.explainRecord('g', 't', 2 ** 31, 0))).toMatchObject({
      code: 'INVALID_PARTITION',
    })
    expect(broker.calls).toEqual([])
  })
})

describe('changing', () => {
  it('configures, pauses, resumes and unblocks', async () => {
    const entry = { name: 'order', value: 'key', overridden: true, description: '', allowed: '' }
    broker.handlers.ConfigureQueue = () => ({ config: [entry] })
    broker.handlers.PauseQueue = () => ({})
    broker.handlers.ResumeQueue = () => ({})
    broker.handlers.Unblock = () => ({})
    const { admin } = mill
    const change = { set: { order: 'key' }, clear: ['rate.max'] }
    expect(await admin.configureQueue('g', change)).toEqual([entry])
    await admin.pauseQueue('g')
    await admin.pauseQueue('g', { until: new Date(500) })
    await admin.resumeQueue('g')
    await admin.unblockRecord('g', 't', 1, 7, 'skip')
    await admin.unblockRecord('g', 't', 1, 7, 'retry')
    expect(broker.calls.map(({ request }) => request)).toEqual([
      {
        group: 'g',
        set: [{ name: 'order', value: 'key' }],
        clear: ['rate.max'],
        validateOnly: false,
      },
      { group: 'g', untilMs: 0 },
      { group: 'g', untilMs: 500 },
      { group: 'g' },
      { group: 'g', topic: 't', partition: 1, offset: 7, skip: true },
      { group: 'g', topic: 't', partition: 1, offset: 7, skip: false },
    ])
    expect(await failureOf(admin.pauseQueue('g', { until: new Date('soon') }))).toMatchObject({
      code: 'INVALID_REQUEST',
      details: { field: 'until' },
    })
  })

  it('repeats what is harmless after a lost answer, and nothing else', async () => {
    let isLost = true
    broker.handlers.PauseQueue = () => {
      if (!isLost) return {}
      isLost = false
      throw new BrokenCall('lost on purpose')
    }
    await mill.admin.pauseQueue('g')
    expect(broker.calls).toHaveLength(2)
    broker.handlers.CancelDelayed = () => {
      throw new BrokenCall('lost on purpose')
    }
    expect(await failureOf(mill.admin.cancelDelayed('1.2.3'))).toMatchObject({
      code: 'UNREACHABLE',
    })
    expect(broker.requests('CancelDelayed')).toHaveLength(1)
  })
})

describe('dead letters', () => {
  /** So many letters, in pages of at most 1 000. */
  function serve(count: number): (request: ListDeadRequest) => ListDeadResponse {
    return ({ pageSize, pageToken }) => {
      const from = Number(pageToken)
      const end = Math.min(count, from + pageSize)
      return {
        topic: 'dlq.workers.mails',
        letters: Array.from({ length: end - from }, (_, i) => aLetter(from + i)),
        nextPageToken: end < count ? `${end}` : '',
      }
    }
  }

  it('are listed over pages', async () => {
    broker.handlers.ListDead = serve(2300)
    const place = { group: 'workers', topic: 'mails' }
    const letters = await listOf(mill.admin.deadLetters(place))
    expect(letters.map(({ record }) => record.offset)).toEqual(
      Array.from({ length: 2300 }, (_, i) => i),
    )
    expect(letters[3]).toMatchObject({
      topic: 'dlq.workers.mails',
      partition: 0,
      group: 'workers',
      sourceTopic: 'mails',
      sourcePartition: 2,
      sourceOffset: 73,
      reason: 'rejected',
      deliveries: 3,
      failures: 2,
      firstFailedAt: 10,
      lastFailedAt: 20,
      error: { type: 'TypeError', message: 'm', stack: 's' },
      memberId: 'm-1',
      redrives: 1,
      settled: false,
    })
    expect(broker.requests('ListDead').map(({ pageToken }) => pageToken)).toEqual([
      '',
      '1000',
      '2000',
    ])
    expect(broker.requests('ListDead')[0]).toMatchObject({
      topic: '',
      group: 'workers',
      sourceTopic: 'mails',
      filter: NO_FILTER,
      includeSettled: false,
    })
  })

  it('are listed up to a limit, without asking for more than that', async () => {
    broker.handlers.ListDead = serve(2300)
    const letters = await listOf(mill.admin.deadLetters('dlq', { limit: 1100, reason: 'rejected' }))
    expect(letters).toHaveLength(1100)
    expect(broker.requests('ListDead')).toMatchObject([
      { topic: 'dlq', pageSize: 1000, filter: { reason: 'rejected', limit: 0 } },
      { pageSize: 100 },
    ])
  })

  it('go on after a page that a filter has left empty', async () => {
    const pages = [
      { topic: 'dlq', letters: [], nextPageToken: 'a' },
      { topic: 'dlq', letters: [aLetter(1)], nextPageToken: 'b' },
      { topic: 'dlq', letters: [], nextPageToken: '' },
    ]
    broker.handlers.ListDead = () => pages.shift() ?? new BrokerError('INVALID_CURSOR', 'too far')
    expect(await listOf(mill.admin.deadLetters('dlq'))).toHaveLength(1)
  })

  it('are discarded by a filter, of which everything crosses the wire', async () => {
    broker.handlers.DiscardDead = () => ({ discarded: 12 })
    const filter = {
      reason: 'rejected',
      errorType: 'TypeError',
      firstOffset: 1,
      endOffset: 9,
      diedFrom: new Date(100),
      diedTo: new Date(200),
      headers: { tenant: 'a' },
      group: 'g',
      topic: 't',
      limit: 50,
    }
    expect(await mill.admin.discardDeadLetters('dlq', filter)).toEqual({ discarded: 12 })
    await mill.admin.discardDeadLetters('dlq', { dryRun: true })
    const { diedFrom: _from, diedTo: _to, ...rest } = filter
    expect(broker.requests('DiscardDead')).toEqual([
      {
        topic: 'dlq',
        group: '',
        sourceTopic: '',
        dryRun: false,
        filter: {
          ...rest,
          fromMs: 100,
          toMs: 200,
          headers: [{ key: 'tenant', value: Buffer.from('a') }],
        },
      },
      { topic: 'dlq', group: '', sourceTopic: '', dryRun: true, filter: NO_FILTER },
    ])
  })

  it('are never all discarded by a limit of none', async () => {
    for (const limit of [0, -1, 1.5, Number.NaN]) {
      expect(await failureOf(mill.admin.discardDeadLetters('dlq', { limit }))).toMatchObject({
        code: 'INVALID_FILTER',
        details: { field: 'limit' },
      })
      expect(await failureOf(listOf(mill.admin.deadLetters('dlq', { limit })))).toMatchObject({
        code: 'INVALID_FILTER',
      })
    }
    expect(
      await failureOf(mill.admin.discardDeadLetters('dlq', { diedTo: new Date('never') })),
    ).toMatchObject({ code: 'INVALID_FILTER', details: { field: 'diedTo' } })
    expect(broker.calls).toEqual([])
  })
})

describe('redriving', () => {
  it('waits until the task is done', async () => {
    broker.handlers.StartRedrive = () => ({ task: aTask(), preview: null })
    const tasks = [
      aTask({ moved: 3 }),
      aTask({ moved: 10, state: 'REDRIVE_STATE_DONE', endedMs: 9 }),
    ]
    broker.handlers.GetRedrive = () =>
      tasks.shift() ?? new BrokerError('TASK_NOT_FOUND', 'asked after the end')
    const result = await mill.admin.redrive('dlq', { limit: 10, resetAttempts: false })
    const task: RedriveInfo = {
      taskId: 't-1',
      topic: 'dlq.workers.mails',
      to: '',
      state: 'done',
      moved: 10,
      total: 10,
      startedAt: 5,
      endedAt: 9,
      maxPerSec: 100,
      error: undefined,
    }
    expect(result).toEqual({ moved: 10, task, preview: undefined })
    expect(broker.requests('StartRedrive')).toEqual([
      {
        topic: 'dlq',
        group: '',
        sourceTopic: '',
        filter: { ...NO_FILTER, limit: 10 },
        toTopic: '',
        maxPerSec: 100,
        dryRun: false,
        resetAttempts: false,
      },
    ])
  })

  it('only starts one in the background', async () => {
    broker.handlers.StartRedrive = () => ({ task: aTask(), preview: null })
    const { task, moved } = await mill.admin.redrive('dlq', { background: true, to: 'mails' })
    expect(task).toMatchObject({ state: 'running', endedAt: undefined })
    expect(moved).toBe(0)
    expect(broker.requests('GetRedrive')).toEqual([])
    expect(broker.requests('StartRedrive')[0]).toMatchObject({
      toTopic: 'mails',
      resetAttempts: true,
    })
  })

  it('only says in a dry run what would be moved', async () => {
    const preview = { count: 40, bytes: 5, firstMs: 1, lastMs: 2, samples: [aLetter(7)] }
    broker.handlers.StartRedrive = () => ({ task: null, preview })
    broker.handlers.ListDead = () => ({ topic: 'dlq.w.m', letters: [], nextPageToken: '' })
    const result = await mill.admin.redrive({ group: 'w', topic: 'm' }, { dryRun: true })
    expect(result).toMatchObject({
      moved: 0,
      task: undefined,
      preview: { count: 40, bytes: 5, firstAt: 1, lastAt: 2, samples: [{ topic: 'dlq.w.m' }] },
    })
  })

  it('cancels the task when the signal aborts', async () => {
    const stop = new AbortController()
    broker.handlers.StartRedrive = () => ({ task: aTask(), preview: null })
    broker.handlers.GetRedrive = () => {
      stop.abort(new Error('enough'))
      return aTask({ moved: 1 })
    }
    broker.handlers.CancelRedrive = () => aTask({ moved: 2, state: 'REDRIVE_STATE_CANCELLED' })
    await expect(mill.admin.redrive('dlq', { signal: stop.signal })).rejects.toThrow('enough')
    expect(broker.requests('CancelRedrive')).toEqual([{ taskId: 't-1' }])
    await expect(mill.admin.redrive('dlq', { signal: stop.signal })).rejects.toThrow('enough')
    expect(broker.requests('StartRedrive')).toHaveLength(1)
  })

  it('tells that somebody else has cancelled it', async () => {
    broker.handlers.StartRedrive = () => ({ task: aTask(), preview: null })
    broker.handlers.GetRedrive = () => aTask({ moved: 4, state: 'REDRIVE_STATE_CANCELLED' })
    expect(await mill.admin.redrive('dlq')).toMatchObject({
      moved: 4,
      task: { state: 'cancelled' },
    })
  })

  it('rejects when the task fails, with its words and how far it came', async () => {
    broker.handlers.StartRedrive = () => ({ task: aTask(), preview: null })
    let error = 'UNKNOWN_TOPIC: there is no topic mails'
    broker.handlers.GetRedrive = () => aTask({ moved: 4, state: 'REDRIVE_STATE_FAILED', error })
    expect(await failureOf(mill.admin.redrive('dlq'))).toMatchObject({
      code: 'UNKNOWN_TOPIC',
      message: expect.stringContaining('there is no topic mails') as unknown,
      details: { taskId: 't-1', moved: 4, total: 10 },
    })
    error = 'it is broken'
    expect(await failureOf(mill.admin.redrive('dlq'))).toMatchObject({ code: 'INTERNAL_ERROR' })
  })

  it('does not wait for one that is under way already', async () => {
    broker.handlers.StartRedrive = () => new BrokerError('REDRIVE_IN_PROGRESS', 't-0 runs')
    expect(await failureOf(mill.admin.redrive('dlq'))).toMatchObject({
      code: 'REDRIVE_IN_PROGRESS',
    })
    expect(broker.calls).toHaveLength(1)
  })

  it('lists tasks and cancels one', async () => {
    broker.handlers.ListRedrives = () => ({ tasks: [aTask()] })
    broker.handlers.CancelRedrive = () => aTask({ state: 'REDRIVE_STATE_CANCELLED' })
    expect(await mill.admin.redrives()).toMatchObject([{ taskId: 't-1', state: 'running' }])
    expect(await mill.admin.cancelRedrive('t-1')).toMatchObject({ state: 'cancelled' })
    expect(await failureOf(mill.admin.redrive('dlq', { maxPerSec: 10_001 }))).toMatchObject({
      code: 'INVALID_REQUEST',
      details: { field: 'maxPerSec', limit: 10_000 },
    })
  })
})

describe('delayed records', () => {
  it('are listed over pages in the order in which they are due', async () => {
    const found = (deliverAtMs: number) => ({
      delayId: `0.${deliverAtMs}.ab`,
      topic: 'mails',
      partition: 1,
      deliverAtMs,
      acceptedMs: 3,
      dedupeId: deliverAtMs === 1 ? 'd' : '',
      record: aRecord(0),
    })
    const pages = [
      { records: [found(1), found(2)], nextPageToken: 'next' },
      { records: [found(3)], nextPageToken: '' },
    ]
    broker.handlers.ListDelayed = () => pages.shift() ?? new BrokerError('INVALID_CURSOR', '')
    const listed = await listOf(
      mill.admin.delayed({ topic: 'mails', from: new Date(1), to: new Date(9) }),
    )
    expect(listed.map(({ deliverAt }) => deliverAt)).toEqual([1, 2, 3])
    expect(listed.map(({ dedupeId }) => dedupeId)).toEqual(['d', undefined, undefined])
    expect(listed[0]).toMatchObject({ delayId: '0.1.ab', partition: 1, acceptedAt: 3 })
    expect(broker.requests('ListDelayed')).toEqual([
      { topic: 'mails', fromMs: 1, toMs: 9, pageSize: 1000, pageToken: '' },
      { topic: 'mails', fromMs: 1, toMs: 9, pageSize: 1000, pageToken: 'next' },
    ])
  })

  it('are counted, cancelled, moved and fired', async () => {
    broker.handlers.CountDelayed = ({ topic }) => ({ count: topic === '' ? 9 : 4 })
    broker.handlers.CancelDelayed = () => new BrokerError('ALREADY_FIRED', 'too late')
    broker.handlers.UpdateDelayed = ({ deliverAtMs }) => ({ deliverAtMs })
    broker.handlers.FireDelayed = () => ({ partition: 3, offset: 17 })
    const { admin } = mill
    expect(await admin.countDelayed()).toBe(9)
    expect(await admin.countDelayed('mails')).toBe(4)
    expect(await failureOf(admin.cancelDelayed('0.1.ab'))).toMatchObject({ code: 'ALREADY_FIRED' })
    await admin.updateDelayed('0.1.ab', new Date(55))
    expect(broker.requests('UpdateDelayed')).toEqual([{ delayId: '0.1.ab', deliverAtMs: 55 }])
    expect(await admin.fireDelayed('0.1.ab')).toEqual({ partition: 3, offset: 17 })
    expect(await failureOf(admin.updateDelayed('0.1.ab', new Date('x')))).toMatchObject({
      code: 'INVALID_DELAY',
    })
  })
})
