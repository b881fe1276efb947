import { fc, it as property } from '@fast-check/vitest'
import { describe, expect, it } from 'vitest'
import { toPartitions } from '../../src/cli/arguments.ts'
import { formatPartitions, formatTopicPartitions } from '../../src/cli/partition-names.ts'
import { formatAge } from '../../src/cli/time-format.ts'

describe('names of partitions', () => {
  it.each([
    [[], ''],
    [[3], '3'],
    [[1, 0], '0-1'],
    [[4, 0, 2, 1, 9, 8], '0-2,4,8-9'],
  ])('%j is written as %j', (partitions, text) => {
    expect(formatPartitions(partitions)).toBe(text)
  })

  property.prop([fc.uniqueArray(fc.nat(60), { minLength: 1 })])(
    'are read back by --partitions',
    (partitions) => {
      expect(toPartitions(formatPartitions(partitions))).toEqual(partitions.sort((a, b) => a - b))
    },
  )

  it('are gathered by topic', () => {
    const list = [
      { topic: 'b', partition: 1 },
      { topic: 'a', partition: 2 },
      { topic: 'b', partition: 0 },
    ]
    expect(formatTopicPartitions(list)).toBe('a/2 b/0-1')
  })
})

describe('an age', () => {
  it.each([
    [-5, '0ms'],
    [0, '0ms'],
    [999, '999ms'],
    [999.6, '1.0s'],
    [1_000, '1.0s'],
    [9_940, '9.9s'],
    [9_960, '10s'],
    [59_400, '59s'],
    [59_600, '1m00s'],
    [61_000, '1m01s'],
    [3_599_400, '59m59s'],
    [3_600_000, '1h00m'],
    [86_400_000, '1d0h'],
    [180_000_000, '2d2h'],
  ])('of %d ms is %s', (ms, text) => {
    expect(formatAge(ms)).toBe(text)
  })
})
