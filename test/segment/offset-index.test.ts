import { array, assert, integer, nat, property, tuple, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { OFFSET_INDEX_ENTRY_BYTES, OffsetIndex } from '../../src/segment/offset-index.ts'

const BASE = toOffset(1000)
const NO_BOUND = toOffset(Number.MAX_SAFE_INTEGER)

function anIndex(entries: readonly (readonly [number, number])[]): OffsetIndex {
  const index = new OffsetIndex(BASE)
  for (const [relative, position] of entries) index.append(toOffset(BASE + relative), position)
  return index
}

function entriesOf(index: OffsetIndex): [number, number][] {
  return Array.from({ length: index.count }, (_, i) => [
    index.offsetAt(i) - BASE,
    index.positionAt(i),
  ])
}

/** Steps in both columns, as a log that grows makes them. */
const steps = array(tuple(integer({ min: 1, max: 50 }), integer({ min: 1, max: 9000 })), {
  maxLength: 60,
})

function rising(pairs: readonly (readonly [number, number])[]): [number, number][] {
  let offset = 0
  let position = 0
  return pairs.map(([a, b]) => [(offset += a), (position += b)])
}

describe('the offset index', () => {
  it('answers no entry while it is empty', () => {
    const index = new OffsetIndex(BASE)
    expect(index.findAtOrBelow(toOffset(5000))).toBe(-1)
    expect(index.findAfterPosition(0)).toBe(-1)
    expect(index.encode()).toHaveLength(0)
  })

  it('agrees with a sorted array', () => {
    assert(
      property(steps, nat(3000), nat(300_000), (pairs, target, position) => {
        const entries = rising(pairs)
        const index = anIndex(entries)
        expect(index.findAtOrBelow(toOffset(BASE + target))).toBe(
          entries.findLastIndex(([relative]) => relative <= target),
        )
        expect(index.findAfterPosition(position)).toBe(
          entries.findIndex(([, other]) => other > position),
        )
      }),
    )
  })

  it('reads back what it has written, whole or from any entry on', () => {
    assert(
      property(steps, nat(60), (pairs, cut) => {
        const entries = rising(pairs)
        const from = Math.min(cut, entries.length)
        const index = anIndex(entries)
        const bytes = Buffer.concat([index.encode().subarray(0, from * 8), index.encode(from)])
        const read = OffsetIndex.decode(BASE, bytes, 2 ** 32, NO_BOUND)
        expect(read.sound).toBe(true)
        expect(entriesOf(read.index)).toEqual(entries)
      }),
    )
  })

  it('keeps the longest good start of any bytes, and says when it dropped something', () => {
    assert(
      property(uint8Array({ maxLength: 200 }), nat(), nat(), (bytes, logBytes, offsets) => {
        const end = toOffset(BASE + offsets)
        const { index, sound } = OffsetIndex.decode(BASE, bytes, logBytes, end)
        const entries = entriesOf(index)
        for (const [i, [relative, position]] of entries.entries()) {
          const [before, beforePosition] = entries[i - 1] ?? [-1, -1]
          expect(relative > before && position > beforePosition).toBe(true)
          expect(position < logBytes && relative < offsets).toBe(true)
        }
        expect(index.encode()).toEqual(Buffer.from(bytes.subarray(0, index.sizeBytes)))
        expect(sound).toBe(index.sizeBytes === bytes.length)
      }),
    )
  })

  it.each([
    ['a piece of an entry at the end', [[1, 10]], 9, 100, 50],
    [
      'an entry past the end of the log file',
      [
        [1, 10],
        [2, 100],
      ],
      16,
      100,
      50,
    ],
    [
      'an entry at the end offset',
      [
        [1, 10],
        [50, 20],
      ],
      16,
      100,
      50,
    ],
  ] as const)('drops %s', (_, entries, bytes, logBytes, offsets) => {
    const file = Buffer.concat([anIndex(entries).encode(), Buffer.alloc(8)]).subarray(0, bytes)
    const read = OffsetIndex.decode(BASE, file, logBytes, toOffset(BASE + offsets))
    expect(read.sound).toBe(false)
    expect(entriesOf(read.index)).toEqual([[1, 10]])
  })

  it('refuses an entry that does not increase in both columns', () => {
    const index = anIndex([[5, 100]])
    for (const [relative, position] of [
      [5, 200],
      [6, 100],
      [4, 200],
      [6, 2 ** 32],
      [2 ** 32, 200],
    ] as const) {
      const offset = toOffset(BASE + relative)
      expect(() => index.append(offset, position)).toThrow(/does not increase/)
      index.maybeAppend(offset, position)
    }
    expect(index.count).toBe(1)
  })

  it('forgets what lies at or above the position at which the log was cut', () => {
    const index = anIndex([
      [1, 10],
      [2, 20],
      [3, 30],
    ])
    index.truncateTo(20)
    expect(entriesOf(index)).toEqual([[1, 10]])
    index.truncateTo(0)
    expect(index.count).toBe(0)
  })

  it('lays an entry out as Kafka does: relative offset, then position, four bytes each', () => {
    expect(anIndex([[0x01020304, 0x0a0b0c0d]]).encode()).toEqual(
      Buffer.from('010203040a0b0c0d', 'hex'),
    )
    expect(OFFSET_INDEX_ENTRY_BYTES).toBe(8)
  })
})
