import { array, assert, constantFrom, integer, property } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import {
  BATCH_HEADER_BYTES,
  isControl,
  isCrcValid,
  readBaseSequence,
  readCompression,
  readMaxTimestamp,
  readProducerEpoch,
  readProducerId,
  readRecordCount,
} from '../../src/record/batch-header.ts'
import { BATCH_TIME_MS } from '../support/batches.ts'
import { aRecord, plainRecordsOf, toPlain } from '../support/records.ts'

function aBuilder(maxBytes = 1 << 20, initialBytes?: number): BatchBuilder {
  return new BatchBuilder({ maxBytes, initialBytes })
}

describe('BatchBuilder', () => {
  it('writes the bytes that the format asks for', () => {
    const builder = aBuilder()
    builder.tryAppend('k', 'hello', 1000)
    builder.tryAppend(undefined, undefined, 1003, [{ key: 'h', value: Uint8Array.of(9) }])
    const batch = Buffer.from(builder.finish())
    expect(batch.subarray(BATCH_HEADER_BYTES).toString('hex')).toBe(
      [
        // length 12, attributes, time +0, offset +0, key 1 "k", value 5 "hello", no headers
        '18000000026b0a68656c6c6f00',
        // length 10, attributes, time +3, offset +1, no key, null value, 1 header: 1 "h", 1 byte 09
        '1400060201010202680209',
      ].join(''),
    )
    expect(batch.readInt32BE(8)).toBe(batch.length - 12)
    expect(isCrcValid(batch, 0)).toBe(true)
  })

  it('gives back what was put in, by any codec', () => {
    const codec = constantFrom('none' as const, 'gzip' as const, 'lz4' as const)
    assert(
      property(array(aRecord(), { minLength: 1, maxLength: 30 }), codec, (records, compression) => {
        const builder = new BatchBuilder({ maxBytes: 1 << 20, compression, initialBytes: 1 })
        for (const each of records) {
          expect(builder.tryAppend(each.key, each.value, each.timestampMs, each.headers)).toBe(true)
        }
        expect(builder.count).toBe(records.length)
        expect(builder.baseTimestampMs).toBe(records[0]?.timestampMs)
        const plainBytes = builder.sizeBytes
        const batch = builder.finish()
        expect(batch.length).toBeLessThanOrEqual(plainBytes)
        expect(isCrcValid(batch, 0)).toBe(true)
        expect(readRecordCount(batch, 0)).toBe(records.length)
        expect(readMaxTimestamp(batch, 0)).toBe(
          Math.max(...records.map((each) => each.timestampMs)),
        )
        expect(plainRecordsOf(batch)).toEqual(records.map(toPlain))
      }),
    )
  })

  it('counts texts right wherever in the buffer they end', () => {
    // Text that is not ASCII, against the end of the buffer byte by byte: what is cut off there must not pass for what was guessed.
    const texts = ['é', 'é'.repeat(17), 'x'.repeat(20).concat('é'), 'x'.repeat(20).concat('éé')]
    for (const text of [...texts, 'x'.repeat(40).concat('😀'), 'x'.repeat(20).concat('€€€')]) {
      for (let initialBytes = 100; initialBytes < 260; initialBytes++) {
        const builder = aBuilder(1 << 20, initialBytes)
        builder.tryAppend(text, 'x', 0)
        builder.tryAppend('key', text, 0)
        builder.tryAppend(text, text, 0)
        const hex = Buffer.from(text).toString('hex')
        const records = plainRecordsOf(builder.finish())
        expect(records.map((each) => [each.key, each.value])).toEqual([
          [hex, '78'],
          ['6b6579', hex],
          [hex, hex],
        ])
      }
    }
  })

  it('refuses the record that would take the batch past its limit, and is as before', () => {
    assert(
      property(integer({ min: 62, max: 400 }), integer({ min: 0, max: 60 }), (maxBytes, size) => {
        const builder = aBuilder(maxBytes)
        let taken = 0
        while (builder.tryAppend(undefined, new Uint8Array(size), BATCH_TIME_MS)) taken++
        expect(taken).toBeGreaterThanOrEqual(1)
        const sizeBytes = builder.sizeBytes
        if (taken > 1) expect(sizeBytes).toBeLessThanOrEqual(maxBytes)
        expect(builder.count).toBe(taken)
        const batch = builder.finish()
        expect(batch.length).toBe(sizeBytes)
        expect(plainRecordsOf(batch)).toHaveLength(taken)
      }),
    )
  })

  it('takes a first record of any size', () => {
    const builder = aBuilder(100)
    expect(builder.tryAppend(undefined, new Uint8Array(10_000), 0)).toBe(true)
    expect(builder.tryAppend(undefined, undefined, 0)).toBe(false)
    expect(builder.finish().length).toBeGreaterThan(10_000)
  })

  it('is empty after finish, and gives the next batch memory of its own', () => {
    for (const size of [10, 15_000, 16_200, 60_000]) {
      const builder = aBuilder()
      builder.setProducer(5, 1, 70)
      builder.setControl()
      builder.tryAppend(undefined, new Uint8Array(size).fill(1), 7)
      const first = builder.finish()
      expect([builder.count, builder.sizeBytes, builder.baseTimestampMs]).toEqual([0, 61, -1])
      expect([readProducerId(first, 0), readProducerEpoch(first, 0)]).toEqual([5, 1])
      expect([readBaseSequence(first, 0), isControl(first, 0)]).toEqual([70, true])
      const copied = Buffer.from(first)
      builder.tryAppend(undefined, new Uint8Array(size).fill(2), 9)
      const second = builder.finish()
      expect(copied.equals(first)).toBe(true)
      expect(readProducerId(second, 0)).toBe(-1)
      expect(isControl(second, 0)).toBe(false)
    }
  })

  it('does not keep a large buffer alive with a small batch', () => {
    const builder = aBuilder(1 << 20, 1 << 20)
    builder.tryAppend('key', 'value', 0)
    const batch = builder.finish()
    expect(batch.buffer.byteLength).toBe(batch.length)
  })

  it('leaves a batch plain that compression would not make smaller', () => {
    const builder = new BatchBuilder({ maxBytes: 1 << 20, compression: 'lz4' })
    builder.tryAppend(undefined, 'short', 0)
    expect(readCompression(builder.finish(), 0)).toBe('none')
    builder.tryAppend(undefined, 'long '.repeat(100), 0)
    expect(readCompression(builder.finish(), 0)).toBe('lz4')
  })

  it('never builds a batch that readers would take for a bomb', () => {
    for (const compression of ['lz4', 'gzip'] as const) {
      const builder = new BatchBuilder({ maxBytes: 1 << 24, compression })
      builder.tryAppend(undefined, new Uint8Array(4 << 20), 0)
      const batch = builder.finish()
      expect(plainRecordsOf(batch)).toHaveLength(1)
    }
  })

  it('refuses timestamps that are no milliseconds, and takes -1', () => {
    const builder = aBuilder()
    for (const timestampMs of [1.5, NaN, Infinity, -2, 2 ** 53]) {
      expect(() => builder.tryAppend('k', 'v', timestampMs)).toThrow(
        expect.objectContaining({ code: 'INVALID_TIMESTAMP' }),
      )
    }
    expect(builder.count).toBe(0)
    expect(builder.tryAppend('k', 'v', -1)).toBe(true)
    expect(builder.tryAppend('k', 'v', Number.MAX_SAFE_INTEGER)).toBe(true)
  })

  it('names a codec that it does not have', () => {
    expect(() => new BatchBuilder({ maxBytes: 1024, compression: 'snappy' })).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED_CODEC' }),
    )
  })

  it('finishes only what holds a record', () => {
    expect(() => aBuilder().finish()).toThrow('holds a record')
  })
})
