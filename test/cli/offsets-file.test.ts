import { fc, it as property } from '@fast-check/vitest'
import { describe, expect, it } from 'vitest'
import {
  formatOffsetsAsCsv,
  formatOffsetsAsJson,
  parseOffsets,
} from '../../src/cli/offsets-file.ts'
import { UsageError } from '../../src/cli/usage-error.ts'
import { toOffset } from '../../src/common/offset.ts'

const entries = fc
  .uniqueArray(
    fc.record({
      topic: fc.stringMatching(/^[A-Za-z0-9._-]{1,20}$/),
      partition: fc.nat(5),
      offset: fc.maxSafeNat(),
    }),
    { selector: ({ topic, partition }) => `${topic}/${partition}`, minLength: 1, maxLength: 20 },
  )
  .map((list) =>
    list.sort((a, b) =>
      a.topic === b.topic ? a.partition - b.partition : a.topic < b.topic ? -1 : 1,
    ),
  )

describe('a file of offsets', () => {
  property.prop([entries])('comes back from JSON lines and from CSV as it went in', (list) => {
    const offsets = list.map((entry) => ({
      ...entry,
      offset: toOffset(entry.offset),
      metadata: '',
      committedAt: 0,
    }))
    expect(parseOffsets(formatOffsetsAsJson(offsets), 'f')).toEqual(list)
    expect(parseOffsets(formatOffsetsAsCsv(list), 'f')).toEqual(list)
  })

  it('may have no heading, quotes, comments, empty lines and DOS line ends', () => {
    const text = '\uFEFF# saved on Monday\r\n"orders",1,5\r\n\r\norders , 0 , 7\r\n'
    expect(parseOffsets(text, 'f')).toEqual([
      { topic: 'orders', partition: 0, offset: 7 },
      { topic: 'orders', partition: 1, offset: 5 },
    ])
  })

  it('keeps metadata for readers, and takes what group describe or others add', () => {
    const row = { topic: 't', partition: 0, offset: toOffset(3), metadata: 'm', committedAt: 9 }
    expect(formatOffsetsAsJson([row])).toBe(
      '{"topic":"t","partition":0,"offset":3,"metadata":"m"}\n',
    )
    expect(parseOffsets('{"offset":3,"topic":"t","more":1,"partition":0}', 'f')).toEqual([
      { topic: 't', partition: 0, offset: 3 },
    ])
  })

  it.each([
    ['orders,0', 'f, line 1 has 2 columns where 3 belong'],
    ['\norders,x,3', 'f, line 2: the partition "x" is no number from 0'],
    ['orders,0,-1', 'f, line 1: the offset "-1" is no number from 0'],
    [',0,1', 'f, line 1 names no topic'],
    ['{"topic":"t","partition":0}', 'f, line 1: the offset is missing'],
    ['{"topic":"t","partition":0.5,"offset":1}', 'f, line 1: the partition 0.5 is no number'],
    ['{"topic":"t","partition":0,"offset":1e300}', 'f, line 1: the offset 1e+300 is no number'],
    ['{"topic":', 'f, line 1 is no JSON'],
    ['t,0,1\nt,0,2', 'f, line 2: t/0 comes a second time'],
    ['topic,partition,offset\n', 'f has no offsets in it'],
    ['', 'f has no offsets in it'],
  ])('%j is refused with the line that is wrong', (text, message) => {
    expect(() => parseOffsets(text, 'f')).toThrow(UsageError)
    expect(() => parseOffsets(text, 'f')).toThrow(message)
  })
})
