import { describe, expect, it } from 'vitest'
import {
  array,
  assert,
  boolean,
  constantFrom,
  integer,
  property,
  record,
  stringMatching,
} from 'fast-check'
import { BrokerError, type ErrorCode } from '../../../src/common/errors.ts'
import { DAY_MS, HOUR_MS } from '../../../src/common/units.ts'
import {
  applyQueueChange,
  decodeQueueOverrides,
  describeQueueConfig,
  encodeQueueOverrides,
  parseQueueChange,
  parseQueueOverrides,
  parseQueueStart,
  type QueueOverrides,
  resolveQueueConfig,
} from '../../../src/coordination/queue/queue-config.ts'

function failureOf(act: () => unknown): BrokerError {
  try {
    act()
  } catch (error) {
    if (error instanceof BrokerError) return error
    throw error
  }
  throw new Error('it did not fail')
}

describe('parseQueueOverrides', () => {
  it('reads units, lists, booleans and choices', () => {
    expect(
      parseQueueOverrides({
        'queue.start': '@2026-01-01T12:00:00+01:00',
        'queue.lease.ms': '1m',
        'queue.persist.acquire': 'TRUE',
        'retry.max.attempts': '0',
        'retry.backoff.type': 'list',
        'retry.backoff.list.ms': '1s, 5s,1m',
        'retry.backoff.multiplier': '1.5',
        'dlq.enable': 'true',
        'dlq.topic': 'graveyard',
        'dlq.policy': 'block',
        order: 'key',
        'rate.key': 'tenant',
      }),
    ).toEqual({
      start: '@2026-01-01T11:00:00.000Z',
      leaseMs: 60_000,
      persistAcquire: true,
      maxAttempts: 0,
      backoffType: 'list',
      backoffListMs: [1000, 5000, 60_000],
      backoffMultiplier: 1.5,
      dlqEnable: true,
      dlqTopic: 'graveyard',
      dlqPolicy: 'block',
      order: 'key',
      rateKey: 'tenant',
    })
  })

  it.each<[string, string, ErrorCode, string]>([
    ['queue.lease.ms', '999ms', 'INVALID_CONFIG', 'queue.lease.ms: 999ms is outside 1s to 12h'],
    ['queue.lease.ms', '13h', 'INVALID_CONFIG', 'is outside 1s to 12h'],
    ['queue.max.inflight.per.partition', '99', 'INVALID_CONFIG', '99 is outside 100 to 100000'],
    ['queue.persist.acquire', 'maybe', 'INVALID_CONFIG', 'is not one of: true or false'],
    ['queue.delay.ms', '401d', 'INVALID_CONFIG', 'is outside 0ms to 400d'],
    ['queue.start', 'first', 'INVALID_CONFIG', '"first" is not one of: auto, earliest, latest'],
    ['queue.start', '-10', 'INVALID_CONFIG', 'is not one of'],
    ['queue.start', '@2026-02-31', 'INVALID_CONFIG', 'is not one of'],
    ['queue.start', '@2026-01-01T00:00', 'INVALID_CONFIG', 'is not one of'],
    ['queue.start', '-1y', 'INVALID_CONFIG', 'is not a duration'],
    ['retry.max.attempts', '1001', 'INVALID_CONFIG', '1001 is outside 0 to 1000'],
    ['retry.backoff.multiplier', '0.5', 'INVALID_CONFIG', '0.5 is outside 1 to 10'],
    ['retry.backoff.jitter', '1.1', 'INVALID_CONFIG', '1.1 is outside 0 to 1'],
    ['retry.backoff.max.ms', '31d', 'INVALID_CONFIG', 'is outside 0ms to 30d'],
    ['retry.backoff.type', 'cubic', 'INVALID_CONFIG', 'none or fixed or linear'],
    ['retry.backoff.type', 'list', 'INVALID_BACKOFF', 'retry.backoff.list.ms is empty'],
    ['retry.backoff.list.ms', '1s,5s', 'INVALID_BACKOFF', 'set the type to list too'],
    ['retry.backoff.list.ms', '1s,soon', 'INVALID_BACKOFF', '"soon" is not a delay'],
    ['retry.backoff.list.ms', '1s,,5s', 'INVALID_BACKOFF', '"" is not a delay'],
    ['retry.backoff.list.ms', '1s,31d', 'INVALID_BACKOFF', '31d is longer than 30d'],
    ['retry.backoff.list.ms', '1s,'.repeat(33), 'INVALID_BACKOFF', '34 delays are too many'],
    ['dlq.enable', 'yes', 'INVALID_CONFIG', 'auto or true or false'],
    ['dlq.topic', 'a/b', 'INVALID_CONFIG', 'topic name "a/b" has "/" at position 1'],
    ['dlq.topic', '__offsets', 'INVALID_CONFIG', 'begins with __, which is for the broker'],
    ['order', 'fifo', 'INVALID_CONFIG', 'none or key or partition'],
    ['order.max.busy.keys', '0', 'INVALID_CONFIG', '0 is outside'],
    ['rate.key', 'x'.repeat(129), 'INVALID_CONFIG', 'at most 128 bytes'],
    ['queue.lease', '1s', 'INVALID_CONFIG', '"queue.lease" is not a setting of a queue group'],
  ])('refuses %s = %s', (name, text, code, message) => {
    const failure = failureOf(() => parseQueueOverrides({ [name]: text }))
    expect([failure.code, failure.message]).toEqual([code, expect.stringContaining(message)])
    expect(failure.message.length).toBeLessThan(300)
  })

  it('names the nearest setting for an unknown one', () => {
    const failure = failureOf(() => parseQueueOverrides({ 'queue.leese.ms': '1s' }))
    expect(failure.details['nearest']).toContain('queue.lease.ms')
  })

  it('refuses a lease that is longer than leases can last', () => {
    const config = { 'queue.lease.ms': '2m', 'queue.lease.max.total.ms': '1m' }
    const failure = failureOf(() => parseQueueOverrides(config))
    expect(failure.code).toBe('INVALID_CONFIG')
    expect(failure.message).toContain('queue.lease.ms (2m) is longer than')
  })

  it('takes a longest delay below the initial one: it caps', () => {
    const config = { 'retry.backoff.initial.ms': '10s', 'retry.backoff.max.ms': '5s' }
    expect(parseQueueOverrides(config)).toEqual({ backoffInitialMs: 10_000, backoffMaxMs: 5000 })
  })

  it('takes both ends of every range, as its description writes them', () => {
    for (const { name, allowed } of describeQueueConfig({})) {
      const range = /^(\S+) to ([^\s,]+)$/.exec(allowed)
      const leaseTotal = name === 'queue.lease.ms' || name === 'queue.lease.max.total.ms'
      for (const text of range?.slice(1) ?? []) {
        const config = leaseTotal
          ? { 'queue.lease.ms': '1s', 'queue.lease.max.total.ms': '12h', [name]: text }
          : { [name]: text }
        expect(() => parseQueueOverrides(config)).not.toThrow()
      }
    }
  })
})

describe('resolveQueueConfig', () => {
  it('has the defaults that the specification gives', () => {
    expect(resolveQueueConfig({}, { jobs: false })).toEqual({
      start: 'latest',
      leaseMs: 30_000,
      leaseMaxTotalMs: 12 * HOUR_MS,
      delayMs: 0,
      maxInflight: 2000,
      maxRuns: 50_000,
      maxDeliveries: 0,
      persistAcquire: false,
      releaseOnDisconnect: false,
      maxMembers: 10_000,
      maxAttempts: 5,
      backoffType: 'exponential',
      backoffInitialMs: 1000,
      backoffMultiplier: 2,
      backoffMaxMs: HOUR_MS,
      backoffJitter: 0.2,
      backoffListMs: [],
      dlqEnable: false,
      dlqTopic: '',
      dlqPolicy: 'topic',
      dlqCopyPayload: true,
      dlqMaxPending: 10_000,
      order: 'none',
      orderOnFailure: 'block',
      orderMaxBusyKeys: 10_000,
      concurrencyMax: 0,
      concurrencyKey: '',
      concurrencyKeyMax: 0,
      rateMax: 0,
      rateDurationMs: 1000,
      rateBurst: 0,
      rateKey: '',
    })
  })

  it('begins a job topic at its start and keeps its dead letters, unless the group says otherwise', () => {
    const job = resolveQueueConfig({}, { jobs: true })
    expect([job.start, job.dlqEnable]).toEqual(['earliest', true])
    const own = parseQueueOverrides({ 'queue.start': 'latest', 'dlq.enable': 'false' })
    const told = resolveQueueConfig(own, { jobs: true })
    expect([told.start, told.dlqEnable]).toEqual(['latest', false])
    const auto = parseQueueOverrides({ 'queue.start': 'auto', 'dlq.enable': 'auto' })
    expect(resolveQueueConfig(auto, { jobs: true })).toEqual(job)
  })
})

describe('parseQueueStart', () => {
  it.each([
    ['earliest', { kind: 'earliest' }],
    [' Latest ', { kind: 'latest' }],
    ['-1h30m', { kind: 'ago', agoMs: 5_400_000 }],
    ['@-1d', { kind: 'ago', agoMs: DAY_MS }],
    ['@2026-01-01', { kind: 'time', timeMs: 1_767_225_600_000 }],
    ['@2026-01-01T00:00:00.250Z', { kind: 'time', timeMs: 1_767_225_600_250 }],
    ['@2026-01-01t01:00z', { kind: 'time', timeMs: 1_767_229_200_000 }],
  ])('reads %s', (text, expected) => {
    expect(parseQueueStart(text)).toEqual(expected)
  })
})

const anyOverrides = record(
  {
    start: constantFrom('', 'earliest', 'latest', '-90m', '@2026-01-01T00:00:00.000Z'),
    leaseMs: integer({ min: 1000, max: 12 * HOUR_MS }),
    maxInflight: integer({ min: 100, max: 100_000 }),
    persistAcquire: boolean(),
    maxAttempts: integer({ min: 0, max: 1000 }),
    backoffMultiplier: integer({ min: 100, max: 1000 }).map((hundredths) => hundredths / 100),
    backoffJitter: integer({ min: 0, max: 1000 }).map((thousandths) => thousandths / 1000),
    backoffListMs: array(integer({ min: 0, max: 30 * DAY_MS }), { minLength: 1, maxLength: 32 }),
    dlqEnable: constantFrom('auto' as const, true, false),
    dlqTopic: stringMatching(/^[a-z][A-Za-z0-9._-]{0,200}$/),
    order: constantFrom('none' as const, 'key' as const, 'partition' as const),
    rateBurst: integer({ min: 0, max: 1_000_000 }),
  },
  { requiredKeys: [] },
).map((overrides): QueueOverrides => {
  return overrides.backoffListMs === undefined
    ? { ...overrides }
    : { ...overrides, backoffType: 'list' }
})

describe('the written forms', () => {
  it('read back exactly, from the description and from the state record', () => {
    assert(
      property(anyOverrides, (overrides) => {
        const own = describeQueueConfig(overrides).filter((one) => one.overridden)
        const described = Object.fromEntries(own.map(({ name, value }) => [name, value]))
        expect(parseQueueOverrides(described)).toEqual(overrides)
        const encoded = encodeQueueOverrides(overrides)
        expect(decodeQueueOverrides(encoded)).toEqual({ overrides, unknown: [] })
      }),
    )
  })

  it('keep values outside today’s range, and report names that are not known', () => {
    const decoded = decodeQueueOverrides({ 'queue.lease.ms': '1', 'queue.moon.phase': 'full' })
    expect(decoded).toEqual({ overrides: { leaseMs: 1 }, unknown: ['queue.moon.phase'] })
  })

  it('describe every setting with a sentence and what is allowed', () => {
    const described = describeQueueConfig({})
    expect(described).toHaveLength(32)
    expect(described.every((one) => !one.overridden && one.allowed !== '')).toBe(true)
    expect(described.every((one) => one.description.endsWith('.'))).toBe(true)
    expect(described[0]?.value).toBe('auto')
  })
})

describe('applyQueueChange', () => {
  it('sets and clears, and leaves the rest', () => {
    const before = parseQueueOverrides({ order: 'key', 'queue.lease.ms': '1m' })
    const change = parseQueueChange({ 'retry.max.attempts': '7' }, ['queue.lease.ms'])
    expect(applyQueueChange(before, change)).toEqual({ order: 'key', maxAttempts: 7 })
  })

  it('refuses what contradicts a setting that is there already', () => {
    const before = parseQueueOverrides({ 'queue.lease.max.total.ms': '1m' })
    const change = parseQueueChange({ 'queue.lease.ms': '2m' }, [])
    expect(failureOf(() => applyQueueChange(before, change)).code).toBe('INVALID_CONFIG')
  })

  it('lets the type of a backoff change while a list is set, and refuses to take the list from under it', () => {
    const list = { 'retry.backoff.type': 'list', 'retry.backoff.list.ms': '1s,2s' }
    const before = parseQueueOverrides(list)
    const other = applyQueueChange(before, parseQueueChange({ 'retry.backoff.type': 'fixed' }, []))
    expect(other).toEqual({ backoffType: 'fixed', backoffListMs: [1000, 2000] })
    const without = parseQueueChange({}, ['retry.backoff.list.ms'])
    expect(failureOf(() => applyQueueChange(before, without)).code).toBe('INVALID_BACKOFF')
  })

  it('refuses to set and clear one setting', () => {
    const failure = failureOf(() => parseQueueChange({ order: 'key' }, ['order']))
    expect([failure.code, failure.details['field']]).toEqual(['INVALID_CONFIG', 'order'])
  })
})
