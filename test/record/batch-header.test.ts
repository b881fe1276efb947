import { assert, nat, property, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  BATCH_HEADER_BYTES,
  BATCH_PREFIX_BYTES,
  endOfBatch,
  isAppendTime,
  isControl,
  isCrcValid,
  isPlausibleHeader,
  magicAt,
  readBaseOffset,
  readBaseSequence,
  readBaseTimestamp,
  readBatchBytes,
  readCompression,
  readCrc,
  readEndOffset,
  readLastOffsetDelta,
  readLeaderEpoch,
  readMagic,
  readMaxTimestamp,
  readProducerEpoch,
  readProducerId,
  readRecordCount,
  stampAppendTime,
  stampBatch,
  stampProducer,
} from '../../src/record/batch-header.ts'
import { aBatch, BATCH_TIME_MS } from '../support/batches.ts'

describe('batch header', () => {
  it('lies where Kafka puts it', () => {
    const batch = Buffer.from(
      aBatch({
        timestampsMs: [BATCH_TIME_MS, BATCH_TIME_MS + 5, BATCH_TIME_MS + 2],
        producer: { id: 77, epoch: 3, sequence: 9 },
        baseOffset: 40,
        leaderEpoch: 12,
      }),
    )
    expect(batch.readBigInt64BE(0)).toBe(40n)
    expect(batch.readInt32BE(8)).toBe(batch.length - BATCH_PREFIX_BYTES)
    expect(batch.readInt32BE(12)).toBe(12)
    expect(batch.readInt8(16)).toBe(2)
    expect(batch.readInt16BE(21)).toBe(0)
    expect(batch.readInt32BE(23)).toBe(2)
    expect(batch.readBigInt64BE(27)).toBe(BigInt(BATCH_TIME_MS))
    expect(batch.readBigInt64BE(35)).toBe(BigInt(BATCH_TIME_MS + 5))
    expect(batch.readBigInt64BE(43)).toBe(77n)
    expect(batch.readInt16BE(51)).toBe(3)
    expect(batch.readInt32BE(53)).toBe(9)
    expect(batch.readInt32BE(57)).toBe(3)
  })

  it('reads the same in the middle of a chunk', () => {
    const batch = aBatch({
      records: 3,
      producer: { id: 77, epoch: 3, sequence: 9 },
      baseOffset: 40,
      leaderEpoch: 12,
    })
    const chunk = Buffer.concat([Buffer.alloc(7, 0xff), batch])
    expect(readBaseOffset(chunk, 7)).toBe(40)
    expect(readBatchBytes(chunk, 7)).toBe(batch.length)
    expect(readLeaderEpoch(chunk, 7)).toBe(12)
    expect(readMagic(chunk, 7)).toBe(2)
    expect(readLastOffsetDelta(chunk, 7)).toBe(2)
    expect(readEndOffset(chunk, 7)).toBe(43)
    expect(readBaseTimestamp(chunk, 7)).toBe(BATCH_TIME_MS)
    expect(readMaxTimestamp(chunk, 7)).toBe(BATCH_TIME_MS)
    expect(readProducerId(chunk, 7)).toBe(77)
    expect(readProducerEpoch(chunk, 7)).toBe(3)
    expect(readBaseSequence(chunk, 7)).toBe(9)
    expect(readRecordCount(chunk, 7)).toBe(3)
    expect(readCompression(chunk, 7)).toBe('none')
    expect(isCrcValid(chunk, 7)).toBe(true)
    expect(isPlausibleHeader(chunk, 7, 1024)).toBe(true)
    expect(endOfBatch(chunk, 7)).toBe(chunk.length)
  })

  it('stamps place and epoch without touching the checksum', () => {
    const batch = aBatch({ records: 2 })
    const before = readCrc(batch, 0)
    stampBatch(batch, 0, 2 ** 40 + 5, 2 ** 31 - 1)
    expect(readBaseOffset(batch, 0)).toBe(2 ** 40 + 5)
    expect(readLeaderEpoch(batch, 0)).toBe(2 ** 31 - 1)
    expect(readCrc(batch, 0)).toBe(before)
    expect(isCrcValid(batch, 0)).toBe(true)
    expect(() => stampBatch(batch, 0, -1, 0)).toThrow('base offset')
    expect(() => stampBatch(batch, 0, 2 ** 53, 0)).toThrow('base offset')
  })

  it('stamps append time and producer with a new checksum', () => {
    const batch = aBatch({ records: 2 })
    const before = readCrc(batch, 0)
    expect(isAppendTime(batch, 0)).toBe(false)
    stampAppendTime(batch, 0, BATCH_TIME_MS + 99)
    expect(isAppendTime(batch, 0)).toBe(true)
    expect(readMaxTimestamp(batch, 0)).toBe(BATCH_TIME_MS + 99)
    expect(isCrcValid(batch, 0)).toBe(true)
    stampProducer(batch, 0, 2 ** 52, 32_767, 2 ** 31 - 1)
    expect(readProducerId(batch, 0)).toBe(2 ** 52)
    expect(readProducerEpoch(batch, 0)).toBe(32_767)
    expect(readBaseSequence(batch, 0)).toBe(2 ** 31 - 1)
    expect(isCrcValid(batch, 0)).toBe(true)
    expect(readCrc(batch, 0)).not.toBe(before)
    expect(isControl(batch, 0)).toBe(false)
  })

  it('reads no producer as -1', () => {
    const batch = aBatch()
    expect([
      readProducerId(batch, 0),
      readProducerEpoch(batch, 0),
      readBaseSequence(batch, 0),
    ]).toEqual([-1, -1, -1])
  })

  it('reads a base offset that is negative or past 2^53 as -1', () => {
    const batch = Buffer.from(aBatch())
    for (const value of [-1n, 2n ** 53n, 2n ** 62n, -(2n ** 62n)]) {
      batch.writeBigInt64BE(value)
      expect(readBaseOffset(batch, 0)).toBe(-1)
      expect(isPlausibleHeader(batch, 0, 1 << 20)).toBe(false)
    }
    batch.writeBigInt64BE(2n ** 53n - 1n)
    expect(readBaseOffset(batch, 0)).toBe(2 ** 53 - 1)
  })

  it('takes a negative length for a huge one, and a batch that is not whole for none', () => {
    const batch = Buffer.from(aBatch())
    expect(endOfBatch(batch.subarray(0, -1), 0)).toBe(-1)
    expect(isCrcValid(batch.subarray(0, -1), 0)).toBe(false)
    expect(endOfBatch(batch, 1)).toBe(-1)
    batch.writeInt32BE(-1, 8)
    expect(readBatchBytes(batch, 0)).toBe(2 ** 32 - 1 + 12)
    expect(endOfBatch(batch, 0)).toBe(-1)
    expect(isPlausibleHeader(batch, 0, 1 << 30)).toBe(false)
    batch.writeInt32BE(48, 8)
    expect(endOfBatch(batch, 0)).toBe(-1)
    expect(isCrcValid(batch, 0)).toBe(false)
    expect(isPlausibleHeader(batch, 0, 1 << 30)).toBe(false)
  })

  it('finds every single changed bit behind the checksum', () => {
    const batch = aBatch({ records: 4 })
    for (let at = magicAt + 1; at < batch.length; at++) {
      for (let bit = 0; bit < 8; bit++) {
        batch[at] = batch[at]! ^ (1 << bit)
        expect(isCrcValid(batch, 0)).toBe(false)
        batch[at] = batch[at]! ^ (1 << bit)
      }
    }
    expect(isCrcValid(batch, 0)).toBe(true)
  })

  it('names no codec for the codes 5 to 7', () => {
    const batch = aBatch()
    const names = [0, 1, 2, 3, 4, 5, 6, 7].map((code) => {
      batch[22] = code
      return readCompression(batch, 0)
    })
    const unknown = [undefined, undefined, undefined]
    expect(names).toEqual(['none', 'gzip', 'snappy', 'lz4', 'zstd', ...unknown])
  })

  it('accepts what compaction leaves: fewer records than the last delta says', () => {
    const batch = Buffer.from(aBatch({ records: 3 }))
    batch.writeInt32BE(10, 23)
    expect(isPlausibleHeader(batch, 0, 1024)).toBe(true)
    batch.writeInt32BE(1, 23)
    expect(isPlausibleHeader(batch, 0, 1024)).toBe(false)
    batch.writeInt32BE(-1, 23)
    expect(isPlausibleHeader(batch, 0, 1024)).toBe(false)
  })

  it('never finds any bytes plausible that a batch could not start with, and never throws', () => {
    assert(
      property(uint8Array({ maxLength: 120 }), nat(120), (bytes, at) => {
        const found = isPlausibleHeader(bytes, at, 1 << 20)
        if (bytes.length - at < BATCH_HEADER_BYTES) expect(found).toBe(false)
        if (found) expect(Number.isSafeInteger(readEndOffset(bytes, at))).toBe(true)
        expect(typeof isCrcValid(bytes, at)).toBe('boolean')
        const end = endOfBatch(bytes, at)
        expect(end === -1 || (end >= at + BATCH_HEADER_BYTES && end <= bytes.length)).toBe(true)
      }),
    )
  })
})
