import { describe, expect, it } from 'vitest'
import {
  assert,
  boolean,
  constant,
  constantFrom,
  integer,
  oneof,
  property,
  record,
} from 'fast-check'
import { BrokerError, type ErrorCode } from '../../src/common/errors.ts'
import { DAY_MS, GIB, HOUR_MS, MIB } from '../../src/common/units.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import {
  applyChange,
  checkConfig,
  decodeOverrides,
  describeConfig,
  encodeOverrides,
  findDifferences,
  parseChange,
  parseOverrides,
  resolveConfig,
  respectsQueueGroups,
  toLogConfig,
} from '../../src/topic/topic-config.ts'

function failureOf(act: () => unknown): BrokerError {
  try {
    act()
  } catch (error) {
    if (error instanceof BrokerError) return error
    throw error
  }
  throw new Error('it did not fail')
}

describe('parseOverrides', () => {
  it('reads units, unlimited and names of choices', () => {
    const parsed = parseOverrides({
      'segment.bytes': '64MiB',
      'retention.ms': '1d12h',
      'retention.bytes': '-1',
      'retention.records': '1000',
      'message.timestamp.type': 'logappendtime',
      visibility: 'written',
      'on.corruption': 'skip',
    })
    expect(parsed).toEqual({
      segmentBytes: 64 * MIB,
      retentionMs: 1.5 * DAY_MS,
      retentionBytes: Infinity,
      retentionRecords: 1000,
      timestampType: 'append',
      visibility: 'written',
      onCorruption: 'skip',
    })
  })

  it('names the nearest setting for an unknown one', () => {
    const failure = failureOf(() => parseOverrides({ 'retention.mss': '7d' }))
    expect(failure.code).toBe('INVALID_CONFIG')
    expect(failure.details).toEqual({
      field: 'retention.mss',
      nearest: ['retention.ms', 'retention.bytes'],
    })
    expect(failure.message).toContain('did you mean retention.ms or')
  })

  it.each<[string, string, ErrorCode, string]>([
    [
      'segment.bytes',
      '1KiB',
      'INVALID_CONFIG',
      'segment.bytes: 1KiB is outside 1MiB to 2147483647B',
    ],
    ['segment.bytes', '2GiB', 'INVALID_CONFIG', 'outside'],
    ['segment.bytes', '-1', 'INVALID_CONFIG', 'segment.bytes: "-1" is not a size'],
    [
      'max.message.bytes',
      '1023',
      'INVALID_CONFIG',
      'max.message.bytes: 1023B is outside 1KiB to 8MiB',
    ],
    ['max.message.bytes', '8388609', 'INVALID_CONFIG', '8388609B is outside'],
    ['retention.ms', '0', 'INVALID_CONFIG', 'retention.ms: 0ms is outside 1ms to 36500d, or -1'],
    ['retention.ms', 'soon', 'INVALID_CONFIG', 'retention.ms: "soon" is not a duration'],
    ['retention.records', '1.5', 'INVALID_CONFIG', '"1.5" is not a whole number'],
    ['retention.records', '99999999999999999999', 'INVALID_CONFIG', 'is not a whole number'],
    ['visibility', 'all', 'INVALID_CONFIG', 'visibility: "all" is not one of: durable or written'],
    ['cleanup.policy', 'compactor', 'INVALID_CONFIG', 'delete or compact or compact,delete'],
    ['min.cleanable.dirty.ratio', '1.5', 'INVALID_CONFIG', '0 to 1'],
    ['min.cleanable.dirty.ratio', 'half', 'INVALID_CONFIG', 'not a share'],
    ['compression.type', 'lz4', 'UNSUPPORTED_FEATURE', 'today only producer is'],
    ['storage', 'shared', 'UNSUPPORTED_FEATURE', 'storage'],
    ['storage', '9'.repeat(65), 'INVALID_CONFIG', 'storage: the value is 65 letters long'],
    ['__proto__x', '1', 'INVALID_CONFIG', 'is not a setting of a topic'],
    ['constructor', '1', 'INVALID_CONFIG', 'is not a setting of a topic'],
  ])('refuses %s = %s', (name, text, code, message) => {
    const failure = failureOf(() => parseOverrides({ [name]: text }))
    expect(failure.code).toBe(code)
    expect(failure.message).toContain(message)
    expect(failure.message.length).toBeLessThan(300)
  })

  it('does not repeat an endless name or value', () => {
    const long = 'x'.repeat(100_000)
    for (const config of [{ [long]: '1' }, { visibility: long }]) {
      expect(failureOf(() => parseOverrides(config)).message.length).toBeLessThan(200)
    }
  })

  it('takes both ends of every range, as its description writes them', () => {
    for (const { name, allowed } of describeConfig({})) {
      if (name === 'jobs.group') continue // A text: its rule is told in words.
      const range = /^(\S+) to ([^\s,]+)/.exec(allowed)
      for (const text of range === null ? allowed.split(' or ') : range.slice(1)) {
        expect(() => parseOverrides({ [name]: text })).not.toThrow()
      }
    }
  })
})

describe('describeConfig', () => {
  it('lists every setting with its default', () => {
    const described = describeConfig({})
    expect(described.map(({ name, value }) => [name, value])).toEqual([
      ['cleanup.policy', 'delete'],
      ['min.cleanable.dirty.ratio', '0.5'],
      ['delete.retention.ms', '1d'],
      ['min.compaction.lag.ms', '0ms'],
      ['max.compaction.lag.ms', 'unlimited'],
      ['retention.ms', '7d'],
      ['retention.bytes', 'unlimited'],
      ['retention.records', 'unlimited'],
      ['file.delete.delay.ms', '1m'],
      ['segment.bytes', '1GiB'],
      ['segment.ms', '7d'],
      ['segment.index.bytes', '10MiB'],
      ['index.interval.bytes', '4KiB'],
      ['max.message.bytes', '1MiB'],
      ['message.timestamp.type', 'CreateTime'],
      ['message.timestamp.after.max.ms', '1h'],
      ['compression.type', 'producer'],
      ['visibility', 'durable'],
      ['tail.cache', 'true'],
      ['on.corruption', 'halt'],
      ['storage', 'local'],
      ['jobs.enable', 'false'],
      ['jobs.group', ''],
      ['retention.respect.queue.groups', 'auto'],
      ['retention.hold.max.ms', '7d'],
      ['dedupe.window.ms', '5m'],
      ['dedupe.verify', 'false'],
      ['delay.max.ms', '400d'],
      ['dlq', 'false'],
    ])
    expect(described.every((one) => !one.overridden && one.description.endsWith('.'))).toBe(true)
  })

  it('marks what is the topic’s own, also where it equals the default', () => {
    const own = describeConfig(parseOverrides({ 'retention.ms': '7d' })).filter(
      (one) => one.overridden,
    )
    expect(own.map(({ name, value }) => [name, value])).toEqual([['retention.ms', '7d']])
  })
})

/** Any valid overrides. */
const anyOverrides = record(
  {
    retentionMs: oneof(integer({ min: 1, max: 36_500 * DAY_MS }), constant(Infinity)),
    retentionBytes: oneof(integer({ min: 1, max: 2 ** 50 }), constant(Infinity)),
    retentionRecords: integer({ min: 1, max: 2 ** 53 - 1 }),
    segmentBytes: integer({ min: 8 * MIB, max: 2 ** 31 - 1 }),
    maxMessageBytes: integer({ min: 1024, max: 8 * MIB }),
    deleteDelayMs: integer({ min: 0, max: 7 * DAY_MS }),
    timestampType: constantFrom('create' as const, 'append' as const),
    visibility: constantFrom('durable' as const, 'written' as const),
    onCorruption: constantFrom('halt' as const, 'skip' as const),
    jobsEnable: boolean(),
    jobsGroup: constantFrom('', 'painters', 'g'.repeat(249)),
    retentionRespectQueueGroups: constantFrom('auto' as const, true, false),
    dedupeWindowMs: integer({ min: 0, max: 7 * DAY_MS }),
  },
  { requiredKeys: [] },
).map((overrides) => ({ ...overrides }))

describe('the written forms', () => {
  it('read back exactly, from the description and from the catalog', () => {
    assert(
      property(anyOverrides, (overrides) => {
        const own = describeConfig(overrides).filter((one) => one.overridden)
        const described = Object.fromEntries(own.map(({ name, value }) => [name, value]))
        expect(parseOverrides(described)).toEqual(overrides)
        const encoded = encodeOverrides(overrides)
        expect(decodeOverrides(encoded)).toEqual({ overrides, unknown: [] })
        expect(parseOverrides(encoded)).toEqual(overrides)
      }),
    )
  })

  it('keeps values outside today’s range, and reports names it does not know', () => {
    const decoded = decodeOverrides({ 'segment.bytes': '4096', 'retention.moons': '3' })
    expect(decoded).toEqual({ overrides: { segmentBytes: 4096 }, unknown: ['retention.moons'] })
  })
})

describe('changes', () => {
  it('sets and clears, and leaves the rest', () => {
    const before = parseOverrides({ 'retention.ms': '1h', 'segment.bytes': '2MiB' })
    const change = parseChange({ visibility: 'written' }, ['retention.ms', 'segment.ms'])
    expect(applyChange(before, change)).toEqual({ segmentBytes: 2 * MIB, visibility: 'written' })
  })

  it('refuses to set and clear one setting, and to clear an unknown one', () => {
    const both = failureOf(() => parseChange({ visibility: 'written' }, ['visibility']))
    expect([both.code, both.details['field']]).toEqual(['INVALID_CONFIG', 'visibility'])
    const unknown = failureOf(() => parseChange({}, ['visibilty']))
    expect([unknown.code, unknown.details['nearest']]).toEqual(['INVALID_CONFIG', ['visibility']])
  })

  it('lets an immutable setting be set to what it is, and cleared when that changes nothing', () => {
    const own = applyChange({}, parseChange({ storage: 'local' }, []))
    expect(own).toEqual({ storage: 'local' })
    expect(applyChange(own, parseChange({}, ['storage']))).toEqual({})
  })

  it('refuses to change an immutable setting', () => {
    // No value but local can be written today: a later version made this topic.
    const failure = failureOf(() =>
      applyChange({ storage: 'shared' as 'local' }, parseChange({}, ['storage'])),
    )
    expect([failure.code, failure.details['field']]).toEqual(['IMMUTABLE_CONFIG', 'storage'])
  })

  it('refuses a largest batch that does not fit into a segment', () => {
    const config = resolveConfig({ maxMessageBytes: 2 * MIB, segmentBytes: MIB })
    const failure = failureOf(() => checkConfig(config))
    expect(failure.code).toBe('INVALID_CONFIG')
    expect(failure.message).toContain(
      'max.message.bytes (2MiB) is larger than segment.bytes (1MiB)',
    )
    expect(() => checkConfig(resolveConfig({ segmentBytes: MIB }))).not.toThrow()
  })
})

describe('resolveConfig', () => {
  it('fills in the defaults, which are the log’s where the log has them', () => {
    expect(toLogConfig(resolveConfig({}))).toEqual(DEFAULT_LOG_CONFIG)
    const config = resolveConfig({ segmentBytes: GIB / 2 })
    expect([config.segmentBytes, config.maxFutureMs]).toEqual([GIB / 2, HOUR_MS])
    expect(Object.isFrozen(config)).toBe(true)
  })

  it('says in which settings two topics differ', () => {
    const a = resolveConfig(parseOverrides({ 'retention.ms': '7d', visibility: 'written' }))
    expect(findDifferences(a, resolveConfig({}))).toEqual(['visibility'])
  })
})

describe('settings of job topics', () => {
  it('has jobs under two names, and shows one', () => {
    const parsed = parseOverrides({ jobs: 'true' })
    expect(parsed).toEqual({ jobsEnable: true })
    expect(parseOverrides({ 'jobs.enable': 'TRUE' })).toEqual(parsed)
    expect(encodeOverrides(parsed)).toEqual({ 'jobs.enable': 'true' })
    expect(applyChange(parsed, parseChange({}, ['jobs']))).toEqual({})
  })

  it('refuses both names at once', () => {
    for (const act of [
      () => parseOverrides({ jobs: 'true', 'jobs.enable': 'false' }),
      () => parseChange({ jobs: 'true' }, ['jobs.enable']),
    ]) {
      expect(failureOf(act).code).toBe('INVALID_CONFIG')
    }
  })

  it.each(['__workers', 'a b', '..', 'g'.repeat(250)])('refuses the home group %s', (group) => {
    const failure = failureOf(() => parseOverrides({ 'jobs.group': group }))
    expect(failure.details['field']).toBe('jobs.group')
  })

  it('takes a home group as long as a name can be, and none', () => {
    for (const group of ['g'.repeat(249), '']) {
      const parsed = parseOverrides({ 'jobs.group': group })
      expect(parsed).toEqual({ jobsGroup: group })
      expect(decodeOverrides(encodeOverrides(parsed)).overrides).toEqual(parsed)
    }
  })

  it('lets retention wait for queue groups where jobs are on, unless told otherwise', () => {
    const respects = (config: Record<string, string>): boolean =>
      respectsQueueGroups(resolveConfig(parseOverrides(config)))
    const setting = 'retention.respect.queue.groups'
    expect(respects({})).toBe(false)
    expect(respects({ jobs: 'true' })).toBe(true)
    expect(respects({ jobs: 'true', [setting]: 'false' })).toBe(false)
    expect(respects({ [setting]: 'true' })).toBe(true)
    expect(respects({ jobs: 'true', [setting]: 'auto' })).toBe(true)
  })

  it.each([
    ['jobs.enable', 'maybe'],
    ['retention.respect.queue.groups', 'sometimes'],
    ['dedupe.window.ms', '8d'],
    ['delay.max.ms', '401d'],
    ['retention.hold.max.ms', '-1'],
    ['dlq', ''],
  ])('refuses %s = %j', (name, text) => {
    expect(failureOf(() => parseOverrides({ [name]: text })).code).toBe('INVALID_CONFIG')
  })
})
