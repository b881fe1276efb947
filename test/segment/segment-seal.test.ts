import { assert, integer, maxSafeInteger, maxSafeNat, nat, property, record } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { decodeSeal, encodeSeal } from '../../src/segment/segment-seal.ts'
import type { SegmentSeal } from '../../src/segment/segment-seal.ts'

const crc = integer({ min: 0, max: 2 ** 32 - 1 })
const seals = record({
  baseOffset: maxSafeNat(),
  endOffset: maxSafeNat(),
  sizeBytes: maxSafeNat(),
  maxTimestampMs: maxSafeInteger(),
  logCrc: crc,
  indexCrc: crc,
  timeindexCrc: crc,
})

describe('the seal of a segment', () => {
  it('reads back as it was written', () => {
    assert(
      property(seals, (fields) => {
        const seal: SegmentSeal = { format: 1, ...fields }
        expect(decodeSeal(encodeSeal(seal))).toEqual(seal)
      }),
    )
  })

  it('is refused when any bit of it is turned, or when it is cut short', () => {
    assert(
      property(seals, nat(), nat(7), (fields, place, bit) => {
        const bytes = encodeSeal({ format: 1, ...fields })
        const cut = bytes.subarray(0, place % bytes.length)
        expect(() => decodeSeal(cut)).toThrow(BrokerError)
        const at = place % bytes.length
        bytes[at] = (bytes[at] ?? 0) ^ (1 << bit)
        expect(() => decodeSeal(bytes)).toThrow(BrokerError)
      }),
    )
  })

  it('is refused when it is of a later format', () => {
    const later = { format: 2, baseOffset: 0 } as unknown as SegmentSeal // What a later millrace may write.
    expect(() => decodeSeal(encodeSeal(later))).toThrow(/later format/)
  })
})
