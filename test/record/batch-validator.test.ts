import { array, assert, nat, property, tuple, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import {
  BATCH_HEADER_BYTES,
  type Compression,
  stampAppendTime,
  stampCrc,
} from '../../src/record/batch-header.ts'
import {
  type BatchLimits,
  type RecordLimits,
  validateBatch,
  validateRecords,
} from '../../src/record/batch-validator.ts'
import { compress } from '../../src/record/compression.ts'
import { aBatch, BATCH_TIME_MS } from '../support/batches.ts'

const LIMITS: BatchLimits = {
  maxBatchBytes: 1 << 20,
  nowMs: BATCH_TIME_MS,
  maxFutureMs: 3_600_000,
  allowControl: false,
}
const RECORD_LIMITS: RecordLimits = { maxRecordBytes: 1 << 20 }

function errorOf(run: () => void): BrokerError | undefined {
  try {
    run()
    return undefined
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error
    return error
  }
}

function codeOf(batch: Uint8Array, limits: Partial<BatchLimits> = {}): string | undefined {
  return errorOf(() => validateBatch(batch, { ...LIMITS, ...limits }))?.code
}

/** A valid batch, changed, with a checksum that fits again. */
function changed(
  change: (batch: Buffer) => void,
  batch: Uint8Array = aBatch({ records: 3 }),
): Buffer {
  const copied = Buffer.from(batch)
  change(copied)
  stampCrc(copied, 0)
  return copied
}

describe('validateBatch', () => {
  it('accepts what the builder builds, by every codec, with and without producer', () => {
    for (const compression of ['none', 'lz4', 'gzip'] as const) {
      expect(codeOf(aBatch({ records: 10, valueBytes: 200, compression }))).toBeUndefined()
    }
    expect(codeOf(aBatch({ producer: { id: 0, epoch: 0, sequence: 0 } }))).toBeUndefined()
    expect(codeOf(aBatch({ timestampMs: -1 }))).toBeUndefined()
  })

  it('refuses a batch past the limit before it looks at anything else', () => {
    const batch = aBatch()
    expect(codeOf(batch, { maxBatchBytes: batch.length })).toBeUndefined()
    expect(codeOf(batch, { maxBatchBytes: batch.length - 1 })).toBe('BATCH_TOO_LARGE')
  })

  it('refuses what is cut off, what has bytes left over, and two batches in one', () => {
    const batch = aBatch()
    for (let length = 0; length < batch.length; length++) {
      expect(codeOf(batch.subarray(0, length))).toBe('CORRUPT_BATCH')
    }
    expect(codeOf(Buffer.concat([batch, Buffer.alloc(1)]))).toBe('CORRUPT_BATCH')
    expect(codeOf(Buffer.concat([batch, batch]))).toBe('CORRUPT_BATCH')
  })

  it('refuses a length that lies, whichever way', () => {
    for (const length of [-1, 0, 48, 49, 1 << 30, 2 ** 31 - 1, -(2 ** 31)]) {
      const batch = Buffer.from(aBatch())
      batch.writeInt32BE(length, 8)
      expect(codeOf(batch)).toBe('CORRUPT_BATCH')
    }
  })

  it('finds every changed bit that the checksum covers', () => {
    const batch = aBatch()
    for (let at = 17; at < batch.length; at++) {
      const copied = Buffer.from(batch)
      copied[at] = copied[at]! ^ 0x01
      expect(codeOf(copied)).toBe('CORRUPT_BATCH')
    }
  })

  it('names the older formats as unsupported', () => {
    expect(codeOf(changed((batch) => batch.writeUInt8(1, 16)))).toBe('UNSUPPORTED_FEATURE')
    expect(codeOf(changed((batch) => batch.writeUInt8(0, 16)))).toBe('UNSUPPORTED_FEATURE')
    expect(codeOf(changed((batch) => batch.writeUInt8(3, 16)))).toBe('CORRUPT_BATCH')
  })

  it('refuses no records, and counts that lie', () => {
    const counted = (count: number, delta: number): string | undefined =>
      codeOf(
        changed((batch) => {
          batch.writeInt32BE(count, 57)
          batch.writeInt32BE(delta, 23)
        }),
      )
    expect(counted(0, -1)).toBe('EMPTY_BATCH')
    expect(counted(0, 0)).toBe('EMPTY_BATCH')
    expect(counted(-1, -2)).toBe('INVALID_RECORD')
    expect(counted(3, 3)).toBe('INVALID_RECORD')
    expect(counted(3, 1)).toBe('INVALID_RECORD')
    expect(counted(2 ** 31 - 1, 2 ** 31 - 2)).toBe('INVALID_RECORD')
    expect(counted(1000, 999)).toBe('INVALID_RECORD')
    const header = changed(
      (batch) => batch.writeInt32BE(49, 8),
      aBatch().subarray(0, BATCH_HEADER_BYTES),
    )
    expect(codeOf(header)).toBe('INVALID_RECORD')
  })

  it('refuses control, transactions, append time and bits that nobody has defined', () => {
    const withBits = (bits: number): Buffer => changed((batch) => batch.writeInt16BE(bits, 21))
    expect(codeOf(withBits(0x20))).toBe('INVALID_RECORD')
    expect(codeOf(withBits(0x20), { allowControl: true })).toBeUndefined()
    expect(codeOf(withBits(0x10))).toBe('UNSUPPORTED_FEATURE')
    expect(codeOf(withBits(0x40))).toBe('INVALID_RECORD')
    expect(codeOf(withBits(-0x8000))).toBe('INVALID_RECORD')
    const stamped = aBatch()
    stampAppendTime(stamped, 0, BATCH_TIME_MS)
    expect(codeOf(stamped)).toBe('INVALID_TIMESTAMP')
  })

  it('refuses codecs that it cannot read or is told not to take', () => {
    const withCodec = (code: number): Buffer => changed((batch) => batch.writeInt16BE(code, 21))
    for (const code of [2, 5, 6, 7]) expect(codeOf(withCodec(code))).toBe('UNSUPPORTED_CODEC')
    expect(codeOf(withCodec(3))).toBeUndefined()
    const allowCompressed = (codec: Compression): boolean => codec === 'gzip'
    expect(codeOf(withCodec(3), { allowCompressed })).toBe('UNSUPPORTED_CODEC')
    expect(codeOf(withCodec(1), { allowCompressed })).toBeUndefined()
    expect(codeOf(withCodec(0), { allowCompressed })).toBeUndefined()
  })

  it('refuses timestamps in the future, before 1970 and in the wrong order', () => {
    const timed = (base: bigint, max: bigint): string | undefined =>
      codeOf(
        changed((batch) => {
          batch.writeBigInt64BE(base, 27)
          batch.writeBigInt64BE(max, 35)
        }),
      )
    const latest = BigInt(BATCH_TIME_MS + 3_600_000)
    expect(timed(0n, latest)).toBeUndefined()
    expect(timed(0n, latest + 1n)).toBe('INVALID_TIMESTAMP')
    expect(timed(-1n, -1n)).toBeUndefined()
    expect(timed(-2n, 5n)).toBe('INVALID_TIMESTAMP')
    expect(timed(6n, 5n)).toBe('INVALID_TIMESTAMP')
    expect(timed(0n, 2n ** 62n)).toBe('INVALID_TIMESTAMP')
    expect(timed(-(2n ** 62n), 5n)).toBe('INVALID_TIMESTAMP')
  })

  it('refuses a producer that is set by half', () => {
    const produced = (id: bigint, epoch: number, sequence: number): string | undefined =>
      codeOf(
        changed((batch) => {
          batch.writeBigInt64BE(id, 43)
          batch.writeInt16BE(epoch, 51)
          batch.writeInt32BE(sequence, 53)
        }),
      )
    expect(produced(5n, 0, 0)).toBeUndefined()
    expect(produced(-1n, 0, 0)).toBeUndefined()
    expect(produced(5n, -1, 0)).toBe('INVALID_RECORD')
    expect(produced(5n, 0, -1)).toBe('INVALID_RECORD')
    expect(produced(-2n, 0, 0)).toBe('INVALID_RECORD')
    expect(produced(2n ** 53n, 0, 0)).toBe('INVALID_RECORD')
  })

  it('throws nothing but typed errors, whatever the bytes', () => {
    const bytes = uint8Array({ minLength: 61, maxLength: 200 })
    const edits = array(tuple(nat(400), nat(255)), { maxLength: 6 })
    assert(
      property(bytes, edits, (noise, changes) => {
        codeOf(noise)
        const edited = aBatch({ records: 4 })
        for (const [at, value] of changes) edited[at % edited.length] = value
        codeOf(edited)
        // Noise whose length, format and checksum are right: the checks behind those have to stand it too.
        const framed = changed((batch) => {
          batch.writeInt32BE(batch.length - 12, 8)
          batch.writeUInt8(2, 16)
        }, noise)
        if (codeOf(framed) === undefined) {
          errorOf(() => validateRecords(framed, RECORD_LIMITS))
        }
      }),
      { numRuns: 1000 },
    )
  })
})

describe('validateRecords', () => {
  const codeOfRecords = (
    batch: Uint8Array,
    limits: Partial<RecordLimits> = {},
  ): string | undefined =>
    errorOf(() => validateRecords(batch, { ...RECORD_LIMITS, ...limits }))?.code

  it('accepts what the builder builds, by every codec', () => {
    const headers = [{ key: 'h', value: undefined }]
    for (const compression of ['none', 'lz4', 'gzip'] as const) {
      const batch = aBatch({ records: 20, valueBytes: 100, key: 'k', headers, compression })
      expect(codeOfRecords(batch)).toBeUndefined()
    }
  })

  it('names the record that is too large', () => {
    const batch = aBatch({ values: ['small', 'x'.repeat(300), 'small'] })
    const error = errorOf(() => validateRecords(batch, { maxRecordBytes: 300 }))
    expect(error?.code).toBe('RECORD_TOO_LARGE')
    expect(error?.details).toMatchObject({ index: 1, maxRecordBytes: 300 })
    expect(error?.message).toContain('record 1 of the batch has 309 bytes')
    expect(codeOfRecords(batch, { maxRecordBytes: 309 })).toBeUndefined()
  })

  it('refuses a bomb', () => {
    const builder = new BatchBuilder({ maxBytes: 1 << 25 })
    builder.tryAppend(undefined, new Uint8Array(16 << 20), 0)
    const plain = builder.finish()
    const packed = compress('lz4', plain.subarray(BATCH_HEADER_BYTES))
    const bomb = Buffer.concat([plain.subarray(0, BATCH_HEADER_BYTES), packed])
    bomb.writeInt32BE(bomb.length - 12, 8)
    bomb.writeInt16BE(3, 21)
    stampCrc(bomb, 0)
    expect(codeOf(bomb)).toBeUndefined()
    expect(codeOfRecords(bomb, { maxRecordBytes: 1 << 25 })).toBe('DECOMPRESSED_TOO_LARGE')
  })

  it('refuses gaps between records, timestamps past the max, and headers that lie', () => {
    const deltaAt = BATCH_HEADER_BYTES + 3
    const gap = changed(
      (batch) => {
        batch[deltaAt] = 2
        batch[deltaAt + 7] = 4
        batch.writeInt32BE(2, 23)
      },
      aBatch({ values: ['', ''] }),
    )
    expect(codeOfRecords(gap)).toBe('INVALID_RECORD')
    const late = changed((batch) => batch.writeUInt8(2, BATCH_HEADER_BYTES + 2))
    expect(codeOfRecords(late)).toBe('INVALID_TIMESTAMP')
    const headers = [{ key: 'h', value: Uint8Array.of(1) }]
    const lying = changed((batch) => batch.writeUInt8(4, batch.length - 2), aBatch({ headers }))
    expect(codeOfRecords(lying)).toBe('INVALID_RECORD')
  })

  it('refuses compressed bytes that are none', () => {
    const batch = changed((copied) => copied.writeInt16BE(3, 21))
    expect(codeOf(batch)).toBeUndefined()
    // Its checksum holds, so it was made that way: no retry will help.
    expect(codeOfRecords(batch)).toBe('INVALID_RECORD')
  })
})
