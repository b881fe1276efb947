import { assert, nat, property, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { crc32c, crc32cByTables, crc32cTier } from '../../src/bytes/crc32c.ts'

describe('crc32c', () => {
  it('gives the published check values', () => {
    // RFC 3720, appendix B.4, and the nine digits of every CRC catalogue.
    const increasing = Uint8Array.from({ length: 32 }, (_, index) => index)
    for (const checksum of [crc32c, crc32cByTables]) {
      expect(checksum(Buffer.from('123456789'))).toBe(0xe3069283)
      expect(checksum(new Uint8Array(32))).toBe(0x8a9136aa)
      expect(checksum(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43)
      expect(checksum(increasing)).toBe(0x46dd794e)
      expect(checksum(new Uint8Array(0))).toBe(0)
    }
  })

  it('uses the addon here, where it is installed', () => {
    expect(crc32cTier).toBe('native')
  })

  it('agrees between addon and tables, on any part of any array', () => {
    assert(
      property(
        uint8Array({ maxLength: 2000 }),
        nat(2000),
        nat(2000),
        nat(),
        (bytes, a, b, initial) => {
          const start = Math.min(a, b, bytes.length)
          const end = Math.min(Math.max(a, b), bytes.length)
          expect(crc32c(bytes, start, end, initial)).toBe(
            crc32cByTables(bytes, start, end, initial),
          )
          expect(crc32c(bytes, start, end)).toBe(crc32cByTables(bytes.slice(start, end)))
        },
      ),
    )
  })

  it('chains: the checksum of two parts is that of the whole', () => {
    assert(
      property(uint8Array({ maxLength: 2000 }), nat(2000), (bytes, at) => {
        const middle = Math.min(at, bytes.length)
        const chained = crc32c(bytes, middle, bytes.length, crc32c(bytes, 0, middle))
        expect(chained).toBe(crc32c(bytes))
      }),
    )
  })
})
