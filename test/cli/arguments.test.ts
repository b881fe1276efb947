import { describe, expect, it } from 'vitest'
import { toPairs, toPartitions, toPosition } from '../../src/cli/arguments.ts'
import { parsePosition } from '../../src/client/position.ts'

describe('arguments', () => {
  it('read lists of partitions in any order, each once', () => {
    expect(toPartitions('3,0-1,1')).toEqual([0, 1, 3])
    for (const bad of ['', 'a', '1-', '2-1', '-1', '0,,1', '0-9999999']) {
      expect(() => toPartitions(bad), bad).toThrow('is no list of partitions')
    }
  })

  it('read pairs whose value may be empty or hold equal signs', () => {
    expect(toPairs('-c', ['a=1=2', 'b='])).toEqual([
      ['a', '1=2'],
      ['b', ''],
    ])
    expect(() => toPairs('-c', ['=x'])).toThrow('is no pair')
  })

  it.each(['start', 'end', '120', '+5', '-10', '@2026-01-01T00:00Z', '@-1h'])(
    'give the position %s on unchanged',
    (text) => {
      const parsed = parsePosition(text, 1_767_225_600_000)
      expect(parsePosition(toPosition(parsed), 0)).toEqual(parsed)
    },
  )
})
