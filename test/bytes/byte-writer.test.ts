import { assert, maxSafeInteger, property, string, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { readI16, readI32, readI64, readU32, writeI64 } from '../../src/bytes/big-endian.ts'
import { ByteWriter } from '../../src/bytes/byte-writer.ts'

describe('ByteWriter', () => {
  it('writes big-endian integers as Buffer does, growing as it goes', () => {
    const writer = new ByteWriter(16)
    writer.u8(255)
    writer.u16(65_535)
    writer.i16(-2)
    writer.u32(4_294_967_295)
    writer.i32(-3)
    writer.i64(-4)
    writer.i64(Number.MAX_SAFE_INTEGER)
    const view = writer.view()
    expect(view.length).toBe(29)
    expect([view.readUInt8(0), view.readUInt16BE(1), view.readInt16BE(3)]).toEqual([
      255, 65_535, -2,
    ])
    expect([view.readUInt32BE(5), view.readInt32BE(9)]).toEqual([4_294_967_295, -3])
    expect([view.readBigInt64BE(13), view.readBigInt64BE(21)]).toEqual([-4n, 2n ** 53n - 1n])
  })

  it('writes varints, bytes and texts one behind the other', () => {
    assert(
      property(uint8Array(), string({ unit: 'binary' }), (bytes, text) => {
        const writer = new ByteWriter()
        writer.varint(bytes.length)
        writer.bytes(bytes)
        const at = writer.length
        const count = writer.utf8(text)
        writer.unsignedVarint(300)
        expect(
          writer
            .view()
            .subarray(at, at + count)
            .equals(Buffer.from(text)),
        ).toBe(true)
        expect([...writer.view().subarray(at + count)]).toEqual([0xac, 0x02])
      }),
    )
  })

  it('keeps a copy apart from what is written later, and a patch in its place', () => {
    const writer = new ByteWriter()
    writer.u32(0)
    writer.u8(7)
    writer.patchU32(0, 0xdeadbeef)
    const copied = writer.copy()
    writer.reset()
    writer.u32(1)
    expect(copied.toString('hex')).toBe('deadbeef07')
    expect(writer.length).toBe(4)
    expect(() => writer.patchU32(1, 0)).toThrow('a patch lies within')
  })

  it('refuses numbers that a 64-bit field would not keep', () => {
    expect(() => new ByteWriter().i64(2 ** 53)).toThrow('safe integer')
    expect(() => new ByteWriter().varint(1.5)).toThrow('safe integer')
    expect(() => new ByteWriter().unsignedVarint(-1)).toThrow('at least 0')
  })
})

describe('big-endian integers', () => {
  it('read as Buffer reads them', () => {
    assert(
      property(uint8Array({ minLength: 8, maxLength: 8 }), (bytes) => {
        const buffer = Buffer.from(bytes)
        expect(readI16(bytes, 3)).toBe(buffer.readInt16BE(3))
        expect(readI32(bytes, 2)).toBe(buffer.readInt32BE(2))
        expect(readU32(bytes, 2)).toBe(buffer.readUInt32BE(2))
        expect(readI64(bytes, 0)).toBe(Number(buffer.readBigInt64BE(0)))
      }),
    )
  })

  it('keep every safe integer through 64 bits', () => {
    assert(
      property(maxSafeInteger(), (value) => {
        const buffer = Buffer.alloc(8)
        writeI64(buffer, 0, value)
        expect(buffer.readBigInt64BE(0)).toBe(BigInt(value))
        expect(readI64(buffer, 0)).toBe(value)
      }),
    )
  })
})
