import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import {
  type Client,
  connect,
  type NewRecord,
  type Producer,
  text,
  topic,
} from '../../src/client/index.ts'
import { formatBackoff, hasSendOptions } from '../../src/client/send-options.ts'
import type { BackoffOptions } from '../../src/client/worker-api.ts'
import { toOffset } from '../../src/common/offset.ts'
import { parseBackoff } from '../../src/coordination/queue/backoff.ts'
import { batchesIn, RecordCursor } from '../../src/record/record-cursor.ts'
import { partitionForKey } from '../../src/wire/murmur2.ts'
import { FakeBroker } from '../support/fake-broker.ts'
import { failureOf } from '../support/fake-session.ts'

const lines = topic('lines', { value: text })
const DAY_MS = 86_400_000

let broker: FakeBroker
let mill: Client
let producer: Producer

beforeEach(async () => {
  broker = await FakeBroker.start(4)
  mill = await connect(broker.url)
  producer = mill.producer()
})

afterEach(async () => {
  await mill.close({ timeoutMs: 1000 })
  await broker[Symbol.asyncDispose]()
})

/** Headers of all records of a partition, in order. */
async function headersOf(partition: number): Promise<[string, string][][]> {
  const log = broker.logs[partition]
  if (log === undefined) throw new Error('no such partition')
  const { chunks } = await log.read(toOffset(0), 1 << 20)
  const headers: [string, string][][] = []
  const cursor = new RecordCursor()
  for (const chunk of chunks) {
    for (const at of batchesIn(chunk)) {
      cursor.reset(chunk, at)
      while (cursor.next()) {
        headers.push(
          cursor.readHeaders().map(({ key, value }) => [key, Buffer.from(value ?? '').toString()]),
        )
      }
    }
  }
  return headers
}

async function refused(options: Omit<NewRecord<string>, 'value'>): Promise<object> {
  expect(() => producer.post(lines, { value: 'v', ...options })).toThrow()
  const { code, details } = await failureOf(producer.send(lines, { value: 'v', ...options }))
  return { code, ...details }
}

describe('options that are headers', () => {
  it('go with the record in its batch', async () => {
    const receipt = await producer.send(lines, {
      value: 'v',
      partition: 2,
      headers: { mine: 'x' },
      type: 'welcome',
      orderingKey: 'c-1',
      attempts: 3,
      backoff: { type: 'fixed', delayMs: 5000 },
    })
    expect(receipt).toMatchObject({ partition: 2, offset: 0 })
    expect(receipt.delayId).toBeUndefined()
    expect(await headersOf(2)).toEqual([
      [
        ['mine', 'x'],
        ['job.type', 'welcome'],
        ['job.ordering_key', 'c-1'],
        ['job.attempts_max', '3'],
        ['job.backoff', 'fixed:5s'],
      ],
    ])
  })

  it('take the place of headers of their names, which a record that is sent on brings along', async () => {
    const headers = { 'job.type': 'old', 'job.attempts_max': '9', mine: 'x' }
    await producer.send(lines, { value: 'v', partition: 0, headers, type: 'new' })
    await producer.send(lines, { value: 'v', partition: 0, headers })
    expect(await headersOf(0)).toEqual([
      [
        ['job.attempts_max', '9'],
        ['mine', 'x'],
        ['job.type', 'new'],
      ],
      Object.entries(headers),
    ])
  })

  it('let an ordering key choose the partition where there is no key', async () => {
    const chosen = partitionForKey(Buffer.from('c-1'), 4)
    const first = await producer.send(lines, { value: 'v', orderingKey: 'c-1' })
    const second = await producer.send(lines, { value: 'v', orderingKey: 'c-1' })
    expect([first.partition, second.partition]).toEqual([chosen, chosen])
    const keyed = await producer.send(lines, { value: 'v', orderingKey: 'c-1', key: 'other' })
    expect(keyed.partition).toBe(partitionForKey(Buffer.from('other'), 4))
    const placed = await producer.send(lines, { value: 'v', orderingKey: 'c-1', partition: 3 })
    expect(placed.partition).toBe(3)
  })

  it('let a record without a delay go as if nothing had been said of one', async () => {
    const receipt = await producer.send(lines, { value: 'v', partition: 0, delayMs: 0 })
    expect(receipt).toMatchObject({ partition: 0, offset: 0 })
    expect(await headersOf(0)).toEqual([[]])
  })

  it('take letters of several bytes by their bytes', async () => {
    await producer.send(lines, { value: 'v', partition: 0, type: 'é'.repeat(64) })
    expect(await refused({ type: 'é'.repeat(65) })).toMatchObject({ limit: 128, actual: 130 })
  })

  it.each<[Omit<NewRecord<string>, 'value'>, object]>([
    [{ type: '' }, { code: 'INVALID_RECORD', field: 'type', limit: 128, actual: 0 }],
    [{ type: 'x'.repeat(129) }, { code: 'INVALID_RECORD', field: 'type', actual: 129 }],
    [{ orderingKey: '' }, { code: 'INVALID_RECORD', field: 'orderingKey', limit: 256 }],
    [{ orderingKey: 'x'.repeat(257) }, { code: 'INVALID_RECORD', field: 'orderingKey' }],
    [{ dedupeId: '' }, { code: 'INVALID_RECORD', field: 'dedupeId', limit: 128, actual: 0 }],
    [{ dedupeId: 'x'.repeat(129) }, { code: 'INVALID_RECORD', field: 'dedupeId', actual: 129 }],
    [{ attempts: 0 }, { code: 'INVALID_RECORD', field: 'attempts', limit: 1000, actual: 0 }],
    [{ attempts: 1001 }, { code: 'INVALID_RECORD', field: 'attempts', actual: 1001 }],
    [{ attempts: 1.5 }, { code: 'INVALID_RECORD', field: 'attempts', actual: 1.5 }],
    [{ delayMs: -1 }, { code: 'INVALID_DELAY', field: 'delayMs', actual: -1 }],
    [{ delayMs: Number.NaN }, { code: 'INVALID_DELAY', field: 'delayMs' }],
    [{ delayMs: Number.POSITIVE_INFINITY }, { code: 'INVALID_DELAY', field: 'delayMs' }],
    [{ deliverAt: new Date('never') }, { code: 'INVALID_DELAY', field: 'deliverAt' }],
    [
      { delayMs: 5, deliverAt: new Date(5) },
      { code: 'CONFLICTING_FIELDS', field: 'deliverAt', actual: 5 },
    ],
    [
      { delayMs: 5, timestamp: new Date('never') },
      { code: 'INVALID_TIMESTAMP', field: 'timestamp' },
    ],
    [
      { backoff: { type: 'fixed', delayMs: -1 } },
      { code: 'INVALID_BACKOFF', field: 'backoff.delayMs', limit: 30 * DAY_MS, actual: -1 },
    ],
  ])('are refused when they are out of range: %o', async (options, expected) => {
    expect(await refused(options)).toMatchObject(expected)
    expect(broker.arrivals).toBe(0)
  })
})

describe("a record's own backoff", () => {
  it.each<[BackoffOptions, string]>([
    [{ type: 'none' }, 'none'],
    [{ type: 'fixed', delayMs: 0 }, 'fixed:0ms'],
    [{ type: 'linear', delayMs: 1500 }, 'linear:1500ms'],
    [{ type: 'exponential', delayMs: 60_000 }, 'exponential:1m'],
    [{ type: 'fixed', delayMs: 30 * DAY_MS }, 'fixed:30d'],
    [{ type: 'list', delaysMs: [1000, 250, 7_200_000] }, 'list:1s,250ms,2h'],
  ])('is written as the broker reads it: %o', (backoff, header) => {
    expect(formatBackoff(backoff)).toBe(header)
    const read = parseBackoff(header)
    expect(read.type).toBe(backoff.type)
    if ('delayMs' in backoff) expect(read.initialMs).toBe(backoff.delayMs)
    if ('delaysMs' in backoff) expect(read.listMs).toEqual(backoff.delaysMs)
  })

  it.each<[object, object]>([
    [{ type: 'exponential', delayMs: 1, multiplier: 3 }, { field: 'backoff.multiplier' }],
    [
      { type: 'exponential', delayMs: 1, maxMs: 3 },
      { field: 'backoff.maxMs', actual: 3 },
    ],
    [
      { type: 'exponential', delayMs: 1, jitter: 0 },
      { field: 'backoff.jitter', actual: 0 },
    ],
    [
      { type: 'linear', delayMs: 0.5 },
      { field: 'backoff.delayMs', actual: 0.5 },
    ],
    [{ type: 'fixed', delayMs: 30 * DAY_MS + 1 }, { limit: 30 * DAY_MS }],
    [{ type: 'fixed' }, { field: 'backoff.delayMs' }],
    [
      { type: 'list', delaysMs: [] },
      { field: 'backoff.delaysMs', limit: 32, actual: 0 },
    ],
    [
      { type: 'list', delaysMs: Array(33).fill(1) },
      { limit: 32, actual: 33 },
    ],
    [
      { type: 'list', delaysMs: [1, -1] },
      { field: 'backoff.delaysMs', actual: -1 },
    ],
    [{ type: 'often' }, { field: 'backoff.type', actual: 'often' }],
  ])('is refused where it says what only the group can: %o', (backoff, details) => {
    const format = (): string => formatBackoff(backoff as BackoffOptions) // Also what the compiler would not let by.
    expect(format).toThrow(expect.objectContaining({ code: 'INVALID_BACKOFF' }))
    expect(format).toThrow(
      expect.objectContaining({ details: expect.objectContaining(details) as unknown }),
    )
  })
})

it('is found by each option alone, and not by what is undefined', () => {
  const options: Omit<NewRecord<string>, 'value'>[] = [
    { type: 'a' },
    { orderingKey: 'a' },
    { attempts: 1 },
    { backoff: { type: 'none' } },
    { dedupeId: 'a' },
    { delayMs: 0 },
    { deliverAt: new Date(0) },
  ]
  for (const option of options) expect(hasSendOptions(option)).toBe(true)
  const names = options.flatMap((option) => Object.keys(option))
  expect(hasSendOptions(Object.fromEntries(names.map((name) => [name, undefined])))).toBe(false)
})
