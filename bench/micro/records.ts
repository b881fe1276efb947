import { BatchBuilder } from '../../src/record/batch-builder.ts'
import {
  isCrcValid,
  readBaseOffset,
  readEndOffset,
  readRecordCount,
  stampBatch,
} from '../../src/record/batch-header.ts'
import { validateBatch, type BatchLimits } from '../../src/record/batch-validator.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import { measure, type Measurement } from './measure.ts'

const TIME_MS = 1_767_225_600_000
const RECORDS = 1000

interface PlainRecord {
  readonly offset: number
  readonly timestampMs: number
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | undefined
}

/** STYLE §7: decoding by cursor against objects, building a batch, reading its header. */
export function measureRecords(): Measurement[] {
  const values = Array.from({ length: 64 }, (_, index) => Buffer.alloc(100, `value ${index} `))
  const texts = values.map((value) => value.toString())
  const wide = texts.map((text) => `${text.slice(0, 90)}é`)
  const keys = values.map((_, index) => `key-${index}`)
  const batch = batchOf(values)
  const packed = batchOf(values, 'lz4')

  const cursor = new RecordCursor()
  const reusing = new RecordCursor({ reuseMemory: true })
  const walk = (by: RecordCursor, bytes: Uint8Array, times: number): number => {
    let sum = 0
    for (let done = 0; done < times; done += RECORDS) {
      by.reset(bytes, 0)
      while (by.next()) sum += by.valueEnd - by.valueStart + by.offset
    }
    return sum
  }
  const objects = (times: number, take: (at: RecordCursor) => PlainRecord): number => {
    let sum = 0
    for (let done = 0; done < times; done += RECORDS) {
      const records: PlainRecord[] = []
      cursor.reset(batch, 0)
      while (cursor.next()) records.push(take(cursor))
      sum += records.length
    }
    return sum
  }
  const ranges = (at: RecordCursor): PlainRecord => ({
    offset: at.offset,
    timestampMs: at.timestampMs,
    key: undefined,
    value: at.bytes,
  })
  const views = (at: RecordCursor): PlainRecord => ({
    offset: at.offset,
    timestampMs: at.timestampMs,
    key: undefined,
    value: at.bytes.subarray(at.valueStart, at.valueEnd),
  })
  const decode = 'decode a record of 100 bytes'
  const build = 'build a record of 100 bytes (batches of 256 KiB, checksum included)'
  const header = 'header of a batch'
  const stamped = batchOf(values)
  const limits: BatchLimits = {
    maxBatchBytes: 1 << 20,
    nowMs: TIME_MS,
    maxFutureMs: 3_600_000,
    allowControl: false,
  }
  return [
    measure(decode, 'cursor', (times) => walk(cursor, batch, times)),
    measure(decode, 'cursor, lz4', (times) => walk(reusing, packed, times)),
    measure(decode, 'an object each', (times) => objects(times, ranges)),
    measure(decode, 'an object and a subarray each', (times) => objects(times, views)),
    measure(build, 'from a Uint8Array', (times) => buildAll(times, undefined, values)),
    measure(build, 'from an ASCII string', (times) => buildAll(times, undefined, texts)),
    measure(build, 'from an ASCII string, with a key', (times) => buildAll(times, keys, texts)),
    measure(build, 'from a string that is not ASCII', (times) => buildAll(times, undefined, wide)),
    measure(build, 'from a Uint8Array, lz4', (times) => buildAll(times, undefined, values, 'lz4')),
    measure(header, 'base offset, end offset, count', (times) => {
      let sum = 0
      for (let done = 0; done < times; done++) {
        sum += readBaseOffset(batch, 0) + readEndOffset(batch, 0) + readRecordCount(batch, 0)
      }
      return sum
    }),
    measure(header, 'stamp base offset and leader epoch', (times) => {
      for (let done = 0; done < times; done++) stampBatch(stamped, 0, done, 3)
      return stamped[7] ?? 0
    }),
    measure(
      header,
      `checksum of ${batch.length} bytes`,
      (times) => {
        let valid = 0
        for (let done = 0; done < times; done++) valid += isCrcValid(batch, 0) ? 1 : 0
        return valid
      },
      batch.length,
    ),
    measure(
      header,
      `all that a broker checks, ${batch.length} bytes`,
      (times) => {
        for (let done = 0; done < times; done++) validateBatch(batch, limits)
        return times
      },
      batch.length,
    ),
  ]
}

function batchOf(values: readonly Uint8Array[], compression: 'none' | 'lz4' = 'none'): Uint8Array {
  const builder = new BatchBuilder({ maxBytes: 1 << 20, compression })
  for (let index = 0; index < RECORDS; index++) {
    builder.tryAppend(undefined, values[index & 63], TIME_MS + index)
  }
  return builder.finish()
}

function buildAll(
  times: number,
  keys: readonly string[] | undefined,
  values: readonly (Uint8Array | string)[],
  compression: 'none' | 'lz4' = 'none',
): number {
  const builder = new BatchBuilder({ maxBytes: 256 * 1024, compression })
  let bytes = 0
  for (let done = 0; done < times; done++) {
    const slot = done & 63
    if (!builder.tryAppend(keys?.[slot], values[slot], TIME_MS)) {
      bytes += builder.finish().length
      builder.tryAppend(keys?.[slot], values[slot], TIME_MS)
    }
  }
  return bytes
}
