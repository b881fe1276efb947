import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import {
  booleanSetting,
  choiceSetting,
  countSetting,
  durationSetting,
  SettingsTable,
  textSetting,
} from '../../src/common/settings.ts'

interface Kettle {
  readonly isOn: boolean
  readonly boilMs: number
  readonly cups: number
  readonly owner: string
  readonly plug: 'uk' | 'eu'
}

const table: SettingsTable<Kettle> = new SettingsTable<Kettle>(
  'a kettle',
  {
    isOn: booleanSetting({ name: 'kettle.on', default: false, description: 'Whether it heats.' }),
    boilMs: durationSetting({
      name: 'boil.ms',
      default: 60_000,
      min: 0,
      max: 600_000,
      unlimited: true,
      description: 'How long it boils.',
    }),
    cups: countSetting({ name: 'cups', default: 1, min: 1, max: 9, description: 'What it holds.' }),
    owner: textSetting({
      name: 'owner',
      default: '',
      allowed: 'a name, or nothing',
      description: 'Whose it is.',
      mostLetters: 100,
      read(text) {
        if (text === 'nobody') throw new BrokerError('INVALID_CONFIG', 'somebody owns it')
        return text
      },
    }),
    plug: choiceSetting<'uk' | 'eu'>({
      name: 'plug',
      default: 'uk',
      choices: { UK: 'uk', EU: 'eu' },
      synonyms: { schuko: 'eu' },
      notYet: ['us'],
      immutable: true,
      description: 'What fits its wall.',
    }),
  },
  { on: 'isOn' },
)

function failureOf(act: () => unknown): BrokerError {
  try {
    act()
  } catch (error) {
    if (error instanceof BrokerError) return error
    throw error
  }
  throw new Error('it did not fail')
}

describe('SettingsTable', () => {
  it('reads each kind, and gives the rest their defaults', () => {
    const own = table.parse({ 'kettle.on': 'True', 'boil.ms': '-1', owner: ' Ann ', plug: 'eu' })
    expect(own).toEqual({ isOn: true, boilMs: Infinity, owner: 'Ann', plug: 'eu' })
    expect(table.resolve(own)).toEqual({ ...own, cups: 1 })
    expect(Object.isFrozen(own) && Object.isFrozen(table.resolve(own))).toBe(true)
  })

  it('takes a text as long as its row allows, and a choice by its other names', () => {
    const own = { owner: 'x'.repeat(100), plug: 'eu' }
    expect(table.parse({ owner: own.owner, plug: ' Schuko ' })).toEqual(own)
  })

  it('knows a setting by another of its names, and shows the first', () => {
    const own = table.parse({ on: 'true' })
    expect(own).toEqual({ isOn: true })
    expect(table.encode(own)).toEqual({ 'kettle.on': 'true' })
    expect(table.nameOf('isOn')).toBe('kettle.on')
    const twice = failureOf(() => table.parse({ on: 'true', 'kettle.on': 'false' }))
    expect([twice.code, twice.details['field']]).toEqual(['INVALID_CONFIG', 'kettle.on'])
    const both = failureOf(() => table.parseChange({ on: 'true' }, ['kettle.on']))
    expect(both.message).toContain('is to be set and to be cleared')
  })

  it.each([
    ['kettle.on', '1', 'INVALID_CONFIG', '"1" is not one of: true or false'],
    ['cups', '10', 'INVALID_CONFIG', 'cups: 10 is outside 1 to 9'],
    ['cups', 'NaN', 'INVALID_CONFIG', 'is not a whole number'],
    ['owner', 'nobody', 'INVALID_CONFIG', 'owner: somebody owns it'],
    ['owner', 'x'.repeat(101), 'INVALID_CONFIG', 'owner: the value is 101 letters long'],
    ['plug', 'us', 'UNSUPPORTED_FEATURE', 'is not supported yet; today only UK or EU is'],
    ['plug', 'constructor', 'INVALID_CONFIG', 'is not one of'],
    ['cup', '1', 'INVALID_CONFIG', 'not a setting of a kettle; did you mean cups?'],
    ['__proto__', '1', 'INVALID_CONFIG', 'is not a setting of a kettle'],
  ])('refuses %s = %s', (name, text, code, message) => {
    const config = Object.fromEntries([[name, text]])
    const failure = failureOf(() => table.parse(config))
    expect([failure.code, failure.message]).toEqual([code, expect.stringContaining(message)])
  })

  it('refuses to change what was fixed, and names what it is', () => {
    const change = table.parseChange({ plug: 'EU' }, [])
    const failure = failureOf(() => table.apply({}, change))
    expect(failure.code).toBe('IMMUTABLE_CONFIG')
    expect(failure.message).toBe('plug was fixed at UK when the kettle was made')
    expect(table.apply({ plug: 'eu' }, change)).toEqual({ plug: 'eu' })
  })

  it('describes every setting, and marks what is set', () => {
    const described = table.describe(table.parse({ 'boil.ms': '90s', owner: 'Ann' }))
    expect(described.map(({ name, value, overridden }) => [name, value, overridden])).toEqual([
      ['kettle.on', 'false', false],
      ['boil.ms', '90s', true],
      ['cups', '1', false],
      ['owner', 'Ann', true],
      ['plug', 'UK', false],
    ])
  })

  it('says in which settings two differ', () => {
    const other = table.resolve(table.parse({ cups: '2', plug: 'uk' }))
    expect(table.findDifferences(table.resolve({}), other)).toEqual(['cups'])
  })
})
