import { assert, maxSafeInteger, maxSafeNat, nat, property, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  unsignedVarintBytes,
  varintBytes,
  VarintReader,
  writeUnsignedVarint,
  writeVarint,
} from '../../src/bytes/varint.ts'

function reading(bytes: Uint8Array, end: number = bytes.length): VarintReader {
  const reader = new VarintReader()
  reader.reset(bytes, 0, end)
  return reader
}

/** The same by BigInt, straight from the definition. */
function groupsOf(value: bigint): number[] {
  const groups: number[] = []
  let rest = value
  for (; rest >= 128n; rest >>= 7n) groups.push(Number(rest & 127n) | 128)
  return [...groups, Number(rest)]
}

const EDGES = [0, 1, -1, 63, 64, -64, -65, 8191, 8192, 2 ** 31 - 1, 2 ** 31, -(2 ** 31)].concat(
  [-(2 ** 31) - 1, 2 ** 32, 2 ** 52, -(2 ** 52) - 1, Number.MAX_SAFE_INTEGER],
  [Number.MIN_SAFE_INTEGER],
)

describe('varint', () => {
  it.each(EDGES)('writes %d as zigzag and reads it back', (value) => {
    expectZigzag(value)
  })

  it('writes every safe integer as zigzag and reads it back', () => {
    assert(property(maxSafeInteger(), expectZigzag))
  })

  function expectZigzag(value: number): void {
    const bytes = new Uint8Array(12)
    const end = writeVarint(bytes, 1, value)
    const big = BigInt(value)
    expect([...bytes.subarray(1, end)]).toEqual(groupsOf(big >= 0n ? big * 2n : -big * 2n - 1n))
    expect(end - 1).toBe(varintBytes(value))
    const reader = new VarintReader()
    reader.reset(bytes, 1, end)
    expect(reader.readVarint()).toBe(value)
    expect(reader.position).toBe(end)
  }

  it('writes every unsigned safe integer and reads it back', () => {
    const check = (value: number): void => {
      const bytes = new Uint8Array(12)
      const end = writeUnsignedVarint(bytes, 0, value)
      expect([...bytes.subarray(0, end)]).toEqual(groupsOf(BigInt(value)))
      expect(end).toBe(unsignedVarintBytes(value))
      const reader = reading(bytes, end)
      expect(reader.readUnsignedVarint()).toBe(value)
      expect(reader.position).toBe(end)
    }
    assert(property(maxSafeNat(), check))
    for (const power of [7, 14, 21, 28, 32, 35, 42, 49]) {
      check(2 ** power - 1)
      check(2 ** power)
    }
    check(Number.MAX_SAFE_INTEGER)
  })

  it('reads what is cut off as NaN, and nothing past the end', () => {
    assert(
      property(maxSafeInteger(), nat(9), (value, cut) => {
        const bytes = new Uint8Array(12)
        const end = writeVarint(bytes, 0, value)
        expect(reading(bytes, Math.min(cut, end - 1)).readVarint()).toBeNaN()
      }),
    )
  })

  it('reads more than ten bytes and more than 2^53 as NaN', () => {
    expect(reading(new Uint8Array(20).fill(0x80)).readVarint()).toBeNaN()
    expect(reading(Uint8Array.from(groupsOf(2n ** 53n))).readUnsignedVarint()).toBeNaN()
    expect(reading(Uint8Array.from(groupsOf(2n ** 54n))).readVarint()).toBeNaN()
    expect(reading(Uint8Array.from(groupsOf(2n ** 64n - 1n))).readVarint()).toBeNaN()
  })

  it('reads any bytes as numbers or NaN, and moves on or stops at the end', () => {
    assert(
      property(uint8Array({ maxLength: 40 }), (bytes) => {
        const reader = reading(bytes)
        while (reader.position < bytes.length) {
          const before = reader.position
          const value = reader.readVarint()
          expect(Number.isSafeInteger(value) || Number.isNaN(value)).toBe(true)
          expect(reader.position).toBeGreaterThan(before)
          expect(reader.position).toBeLessThanOrEqual(bytes.length)
        }
      }),
    )
  })
})
