import { array, assert, constantFrom, nat, property, tuple, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { BATCH_HEADER_BYTES, stampAppendTime } from '../../src/record/batch-header.ts'
import { batchesIn, RecordCursor } from '../../src/record/record-cursor.ts'
import { aBatch, BATCH_TIME_MS } from '../support/batches.ts'
import { plainRecordAt, plainRecordsOf } from '../support/records.ts'

/** Walks a batch, headers too. Counts the records up to its end or to a typed error, whose code it gives. */
function walk(bytes: Uint8Array, at: number): { records: number; code: string | undefined } {
  const cursor = new RecordCursor({ maxDecompressedBytes: 1 << 20, reuseMemory: true })
  let records = 0
  try {
    cursor.reset(bytes, at)
    while (cursor.next()) {
      cursor.readHeaders()
      expect(cursor.recordEnd).toBeLessThanOrEqual(cursor.bytes.length)
      expect(cursor.valueEnd).toBeLessThanOrEqual(cursor.recordEnd)
      expect(cursor.keyEnd).toBeLessThanOrEqual(cursor.recordEnd)
      expect(Number.isSafeInteger(cursor.offset)).toBe(true)
      records++
    }
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error
    expect(cursor.next()).toBe(false)
    return { records, code: error.code }
  }
  return { records, code: undefined }
}

describe('RecordCursor', () => {
  it('steps through the records of a batch in the middle of a chunk', () => {
    const batch = aBatch({
      values: ['a', undefined, ''],
      timestampsMs: [BATCH_TIME_MS, BATCH_TIME_MS - 7, BATCH_TIME_MS + 1],
      baseOffset: 100,
    })
    const chunk = Buffer.concat([aBatch(), batch, aBatch()])
    const cursor = new RecordCursor()
    cursor.reset(chunk, aBatch().length)
    const seen: unknown[] = []
    expect(cursor.remaining).toBe(3)
    while (cursor.next()) {
      const value =
        cursor.valueStart < 0 ? null : chunk.toString('utf8', cursor.valueStart, cursor.valueEnd)
      seen.push([cursor.offset, cursor.timestampMs - BATCH_TIME_MS, cursor.keyStart, value])
    }
    expect(seen).toEqual([
      [100, 0, -1, 'a'],
      [101, -7, -1, null],
      [102, 1, -1, ''],
    ])
    expect(cursor.next()).toBe(false)
  })

  it('reads an empty key as a key and headers in their order', () => {
    const headers = [
      { key: 'b', value: Uint8Array.of(1, 2) },
      { key: 'a', value: undefined },
      { key: '', value: new Uint8Array(0) },
    ]
    const batch = aBatch({ key: '', headers })
    const cursor = new RecordCursor()
    cursor.reset(batch, 0)
    expect(cursor.next()).toBe(true)
    expect([cursor.keyStart >= 0, cursor.keyEnd - cursor.keyStart, cursor.headerCount]).toEqual([
      true,
      0,
      3,
    ])
    expect(plainRecordAt(cursor).headers).toEqual([
      { key: 'b', value: '0102' },
      { key: 'a', value: undefined },
      { key: '', value: '' },
    ])
  })

  it('gives every record the append time where the broker stamped it', () => {
    const batch = aBatch({ timestampsMs: [1, 2, 3] })
    stampAppendTime(batch, 0, 5000)
    expect(plainRecordsOf(batch).map((each) => each.timestampMs)).toEqual([5000, 5000, 5000])
  })

  it('keeps what was taken from a compressed batch, unless told to reuse its memory', () => {
    const first = aBatch({ values: ['first '.repeat(50)], compression: 'lz4' })
    const second = aBatch({ values: ['other '.repeat(50)], compression: 'lz4' })
    const takeBoth = (cursor: RecordCursor): string[] =>
      [first, second]
        .map((batch) => {
          cursor.reset(batch, 0)
          cursor.next()
          return cursor.bytes.subarray(cursor.valueStart, cursor.valueStart + 5)
        })
        .map((view) => Buffer.from(view).toString())
    expect(takeBoth(new RecordCursor())).toEqual(['first', 'other'])
    expect(takeBoth(new RecordCursor({ reuseMemory: true }))).toEqual(['other', 'other'])
  })

  it('finds all whole batches of a chunk and stops at one that is cut off', () => {
    const batches = [aBatch(), aBatch({ records: 5 }), aBatch({ valueBytes: 500 })]
    const chunk = Buffer.concat(batches)
    const [a, b] = [batches[0]!.length, batches[0]!.length + batches[1]!.length]
    expect([...batchesIn(chunk)]).toEqual([0, a, b])
    expect([...batchesIn(chunk.subarray(0, -1))]).toEqual([0, a])
    expect([...batchesIn(chunk.subarray(0, b + 12))]).toEqual([0, a])
    expect([...batchesIn(new Uint8Array(0))]).toEqual([])
    expect([...batchesIn(new Uint8Array(1000))]).toEqual([])
  })

  it('refuses what is no whole batch', () => {
    const batch = aBatch()
    expect(walk(batch.subarray(0, -1), 0)).toEqual({ records: 0, code: 'CORRUPT_BATCH' })
    expect(walk(new Uint8Array(0), 0)).toEqual({ records: 0, code: 'CORRUPT_BATCH' })
    expect(walk(batch, 5)).toEqual({ records: 0, code: 'CORRUPT_BATCH' })
    batch[16] = 1
    expect(walk(batch, 0)).toEqual({ records: 0, code: 'CORRUPT_BATCH' })
  })

  it('refuses a count that is higher or lower than the records that are there', () => {
    const batch = Buffer.from(aBatch({ records: 3 }))
    batch.writeInt32BE(4, 57)
    batch.writeInt32BE(3, 23)
    expect(walk(batch, 0)).toEqual({ records: 3, code: 'INVALID_RECORD' })
    batch.writeInt32BE(2, 57)
    batch.writeInt32BE(1, 23)
    expect(walk(batch, 0)).toEqual({ records: 2, code: 'INVALID_RECORD' })
    batch.writeInt32BE(2 ** 31 - 1, 57)
    batch.writeInt32BE(2 ** 31 - 2, 23)
    expect(walk(batch, 0)).toEqual({ records: 3, code: 'INVALID_RECORD' })
    batch.writeInt32BE(-1, 57)
    expect(walk(batch, 0)).toEqual({ records: 0, code: 'CORRUPT_BATCH' })
  })

  it('refuses bytes between the last field of a record and its end', () => {
    const batch = Buffer.concat([aBatch({ values: [''] }), Buffer.alloc(1)])
    batch.writeInt32BE(batch.length - 12, 8)
    expect(walk(batch, 0)).toEqual({ records: 1, code: 'INVALID_RECORD' })
    expect(batch[BATCH_HEADER_BYTES]).toBe(12)
    batch[BATCH_HEADER_BYTES] = 14
    expect(walk(batch, 0)).toEqual({ records: 0, code: 'INVALID_RECORD' })
  })

  it('refuses offset deltas that do not rise', () => {
    const batch = aBatch({ values: ['', ''] })
    const secondDeltaAt = BATCH_HEADER_BYTES + 7 + 3
    expect(batch[secondDeltaAt]).toBe(2)
    batch[secondDeltaAt] = 0
    expect(walk(batch, 0)).toEqual({ records: 1, code: 'INVALID_RECORD' })
    batch[secondDeltaAt] = 4
    expect(walk(batch, 0)).toEqual({ records: 1, code: 'INVALID_RECORD' })
  })

  it('reads any change of any single byte of the records, or names what is wrong', () => {
    const headers = [{ key: 'h', value: Uint8Array.of(1) }]
    const batch = aBatch({ values: ['one', undefined, 'three'], key: 'k', headers })
    for (let at = BATCH_HEADER_BYTES; at < batch.length; at++) {
      const original = batch[at]!
      for (let value = 0; value < 256; value++) {
        batch[at] = value
        const { code } = walk(batch, 0)
        expect(code === undefined || code === 'INVALID_RECORD').toBe(true)
      }
      batch[at] = original
    }
  })

  it('ends in a typed error or at the end, whatever the bytes and the codec', () => {
    const bytes = uint8Array({ maxLength: 400 })
    const code = constantFrom(0, 0, 1, 3, 4, 2, 5)
    assert(
      property(bytes, code, nat(50), nat(50), (records, compression, count, delta) => {
        const batch = Buffer.concat([aBatch().subarray(0, BATCH_HEADER_BYTES), records])
        batch.writeInt32BE(batch.length - 12, 8)
        batch[22] = compression
        batch.writeInt32BE(delta, 23)
        batch.writeInt32BE(count, 57)
        expect(walk(batch, 0).records).toBeLessThanOrEqual(count)
      }),
      { numRuns: 2000 },
    )
  })

  it('ends in a typed error or at the end when valid batches are changed', () => {
    const changes = array(tuple(nat(100_000), nat(255)), { minLength: 1, maxLength: 6 })
    const codec = constantFrom('none' as const, 'lz4' as const, 'gzip' as const)
    assert(
      property(changes, codec, nat(20), (edits, compression, records) => {
        const batch = aBatch({ records: records + 1, valueBytes: 40, key: 'key', compression })
        for (const [at, value] of edits) batch[at % batch.length] = value
        expect(walk(batch, 0).records).toBeLessThanOrEqual(1 << 20)
      }),
      { numRuns: 2000 },
    )
  })
})
