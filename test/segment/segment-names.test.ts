import { assert, constantFrom, maxSafeNat, property, string } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { parseSegmentFileName, segmentFileName } from '../../src/segment/segment-names.ts'

describe('names of segment files', () => {
  it('are twenty digits and a kind, as Kafka writes them', () => {
    expect(segmentFileName(toOffset(184_032), 'log')).toBe('00000000000000184032.log')
  })

  it('read back as they were written, and sort as their offsets do', () => {
    assert(
      property(
        maxSafeNat(),
        maxSafeNat(),
        constantFrom('log', 'index', 'timeindex', 'seal', 'snapshot'),
        (a, b, kind) => {
          const [first, second] = [
            segmentFileName(toOffset(a), kind),
            segmentFileName(toOffset(b), kind),
          ]
          expect(parseSegmentFileName(first)).toEqual({ baseOffset: a, kind })
          expect(first < second).toBe(a < b)
        },
      ),
    )
  })

  it('are not taken for anything else', () => {
    for (const name of [
      '0.log',
      '00000000000000000000.log.tmp',
      '00000000000000000000.txt',
      'x00000000000000000000.log',
      '99999999999999999999.log',
      '-0000000000000000001.log',
      'partition.json',
    ]) {
      expect(parseSegmentFileName(name)).toBeUndefined()
    }
    assert(property(string(), (name) => parseSegmentFileName(name) === undefined))
  })
})
