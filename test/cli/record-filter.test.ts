import { describe, expect, it } from 'vitest'
import { aRecordWith } from './support.ts'
import { compileFilter } from '../../src/cli/record-filter.ts'
import type { FilterOptions } from '../../src/cli/record-filter.ts'

function passes(
  options: Partial<FilterOptions>,
  shape: Parameters<typeof aRecordWith>[0],
): boolean {
  const filter = compileFilter({ ignoreCase: false, headers: [], ...options })
  return filter === undefined || filter(aRecordWith(shape))
}

describe('a filter', () => {
  it('is none when nothing is asked for', () => {
    expect(compileFilter({ ignoreCase: false, headers: [] })).toBeUndefined()
  })

  it('--grep takes plain text and regular expressions', () => {
    expect(passes({ grep: 'lo w' }, { value: 'hello world' })).toBe(true)
    expect(passes({ grep: 'LO W' }, { value: 'hello world' })).toBe(false)
    expect(passes({ grep: 'LO W', ignoreCase: true }, { value: 'hello world' })).toBe(true)
    expect(passes({ grep: '^h.*d$' }, { value: 'hello world' })).toBe(true)
    expect(passes({ grep: 'status=5..' }, { value: 'status=404' })).toBe(false)
    expect(passes({ grep: '.' }, { value: null })).toBe(false)
  })

  it('--grep says what is wrong with an expression', () => {
    expect(() => compileFilter({ grep: '(', ignoreCase: false, headers: [] })).toThrow(
      '--grep ( is no regular expression',
    )
  })

  it('--key wants the whole key', () => {
    expect(passes({ key: 'a' }, { key: 'a' })).toBe(true)
    expect(passes({ key: 'a' }, { key: 'ab' })).toBe(false)
    expect(passes({ key: '' }, {})).toBe(false)
    expect(passes({ key: '' }, { key: '' })).toBe(true)
  })

  it('--header wants each of those named, with its value where one is given', () => {
    const headers = [
      { key: 'a', value: Buffer.from('1') },
      { key: 'b', value: undefined },
    ]
    expect(passes({ headers: ['a'] }, { headers })).toBe(true)
    expect(passes({ headers: ['a=1', 'b'] }, { headers })).toBe(true)
    expect(passes({ headers: ['a=2'] }, { headers })).toBe(false)
    expect(passes({ headers: ['b='] }, { headers })).toBe(false)
    expect(passes({ headers: ['c'] }, {})).toBe(false)
  })
})
