import { array, assert, constantFrom, property, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { OFFSET_MAP_ENTRY_BYTES, OffsetMap } from '../../src/log/offset-map.ts'

const SECRET = new Uint8Array(16).fill(7)

function aMap(expectedKeys: number, maxBytes = 1e6, origin = 0): OffsetMap {
  return new OffsetMap({ maxBytes, expectedKeys, origin: toOffset(origin), secret: SECRET })
}

function keyOf(text: string): Uint8Array {
  return new TextEncoder().encode(text)
}

describe('the map of newest offsets', () => {
  it('agrees with a plain map, for keys of any bytes', () => {
    const keys = uint8Array({ maxLength: 3 })
    assert(
      property(array(keys, { maxLength: 200, size: 'max' }), keys, (sequence, other) => {
        const map = aMap(sequence.length)
        const plain = new Map<string, number>()
        for (const [i, key] of sequence.entries()) {
          expect(map.put(key, 0, key.length, toOffset(i))).toBe(true)
          plain.set(Buffer.from(key).toString('hex'), i)
        }
        expect(map.size).toBe(plain.size)
        for (const key of [...sequence, other]) {
          const expected = plain.get(Buffer.from(key).toString('hex')) ?? -1
          expect(map.find(key, 0, key.length)).toBe(expected)
        }
      }),
    )
  })

  it('takes no key beyond its memory, and still renews those that it has', () => {
    const map = aMap(1_000_000, OFFSET_MAP_ENTRY_BYTES * 8)
    expect(map.sizeBytes).toBe(OFFSET_MAP_ENTRY_BYTES * 8)
    let count = 0
    while (map.put(keyOf(`${count}`), 0, `${count}`.length, toOffset(count))) count++
    expect(count).toBe(6)
    expect(map.put(keyOf('3'), 0, 1, toOffset(99))).toBe(true)
    expect(map.find(keyOf('3'), 0, 1)).toBe(99)
    expect(map.find(keyOf('6'), 0, 1)).toBe(-1)
  })

  it('takes one key at least, however little memory it has', () => {
    const map = aMap(10, 0)
    expect(map.put(keyOf('a'), 0, 1, toOffset(3))).toBe(true)
    expect(map.put(keyOf('b'), 0, 1, toOffset(4))).toBe(false)
    expect(map.find(keyOf('a'), 0, 1)).toBe(3)
  })

  it('is small for a small log', () => {
    expect(aMap(3, 64 * 2 ** 20).sizeBytes).toBeLessThan(200)
  })

  it('counts from its origin, and is full where 32 bits end', () => {
    const origin = 2 ** 40
    const map = aMap(4, 1e6, origin)
    expect(map.put(keyOf('a'), 0, 1, toOffset(origin))).toBe(true)
    expect(map.put(keyOf('b'), 0, 1, toOffset(origin + 2 ** 32 - 3))).toBe(true)
    expect(map.put(keyOf('c'), 0, 1, toOffset(origin + 2 ** 32 - 2))).toBe(false)
    expect(map.find(keyOf('a'), 0, 1)).toBe(origin)
    expect(map.find(keyOf('b'), 0, 1)).toBe(origin + 2 ** 32 - 3)
  })

  it('tells keys apart that are parts of each other', () => {
    assert(
      property(constantFrom('', 'a', 'aa', 'aaaaaaaa', 'aaaaaaaaa', 'aaaaaaa'), (text) => {
        const map = aMap(10)
        map.put(keyOf(text), 0, text.length, toOffset(1))
        expect(map.find(keyOf(`${text}\0`), 0, text.length + 1)).toBe(-1)
        expect(map.find(keyOf(text), 0, text.length)).toBe(1)
      }),
    )
  })
})
