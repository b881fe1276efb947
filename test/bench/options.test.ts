import { describe, expect, it } from 'vitest'
import { parseOptions, toRecordsPerSecond, UsageError } from '../../bench/options.ts'

const SPECS = {
  payload: { kind: 'bytes', default: '100', about: '' },
  batchSize: { kind: 'bytes', least: 10, about: '' },
  duration: { kind: 'duration', default: '10s', about: '' },
  runs: { kind: 'count', default: '5', least: 1, about: '' },
  acks: { kind: 'choice', default: 'durable', choices: ['durable', 'none'], about: '' },
  keep: { kind: 'flag', about: '' },
  rate: { kind: 'rate', about: '' },
} as const

describe('parseOptions', () => {
  it('fills in defaults, and leaves out what has none', () => {
    expect(parseOptions(SPECS, [])).toEqual({
      payload: 100,
      batchSize: undefined,
      duration: 10_000,
      runs: 5,
      acks: 'durable',
      keep: false,
      rate: undefined,
    })
  })

  it('reads both ways of writing a value, and flags', () => {
    const argv = ['--payload=1KiB', '--batch-size', '64KiB', '--keep', '--duration', '500ms']
    expect(parseOptions(SPECS, argv)).toMatchObject({
      payload: 1024,
      batchSize: 65_536,
      keep: true,
      duration: 500,
    })
  })

  it.each([
    ['20MB/s', 20e6, 'bytes'],
    ['1MiB', 2 ** 20, 'bytes'],
    ['512b/s', 512, 'bytes'],
    ['5000', 5_000, 'records'],
    ['50k/s', 50_000, 'records'],
    ['1.5M', 1_500_000, 'records'],
  ] as const)('reads the rate %s', (text, perSecond, unit) => {
    expect(parseOptions(SPECS, ['--rate', text]).rate).toEqual({ perSecond, unit })
  })

  it('turns bytes a second into records a second', () => {
    expect(toRecordsPerSecond({ perSecond: 1_000_000, unit: 'bytes' }, 100)).toBe(10_000)
    expect(toRecordsPerSecond({ perSecond: 7, unit: 'records' }, 100)).toBe(7)
  })

  it.each([
    [['--runs', '0'], '--runs: "0" is less than 1'],
    [['--runs', 'many'], 'is no whole number'],
    [['--acks', 'all'], 'is not one of durable, none'],
    [['--payload', 'big'], 'is no size'],
    [['--duration', 'soon'], 'is no duration'],
    [['--rate', '0'], 'is no rate'],
    [['--rate', 'fast'], 'is no rate'],
    [['--payload'], 'wants a value'],
    [['--nothing'], 'there is no option --nothing'],
    [['stray'], 'there is no option stray'],
  ])('refuses %j', (argv, message) => {
    expect(() => parseOptions(SPECS, argv)).toThrow(UsageError)
    expect(() => parseOptions(SPECS, argv)).toThrow(message)
  })
})
