import { invariant } from '../../src/common/assert.ts'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import type { RecordHeader } from '../../src/record/batch-builder.ts'
import {
  readBaseOffset,
  readBatchBytes,
  readEndOffset,
  stampBatch,
} from '../../src/record/batch-header.ts'
import type { Compression } from '../../src/record/batch-header.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'

export interface BatchShape {
  /** How many; 1 unless `values` or `timestampsMs` say otherwise. */
  readonly records?: number
  /** `value-0`, `value-1` … unless given. */
  readonly values?: readonly (string | Uint8Array | undefined)[]
  /** Fills every value up to this size. */
  readonly valueBytes?: number
  /** The key of every record; none unless given. */
  readonly key?: string
  /** One per record; undefined for none. */
  readonly keys?: readonly (string | undefined)[]
  readonly headers?: readonly RecordHeader[]
  /** Of every record: 2026-01-01T00:00:00Z, where the fake clock starts, unless given. */
  readonly timestampMs?: number
  /** One per record. */
  readonly timestampsMs?: readonly number[]
  readonly producer?: { readonly id: number; readonly epoch?: number; readonly sequence: number }
  readonly compression?: Compression
  /** As the log would have stamped it; 0 and 0 unless given. */
  readonly baseOffset?: number
  readonly leaderEpoch?: number
}

export const BATCH_TIME_MS = 1_767_225_600_000

/** A valid batch. Every call makes bytes of its own, because a log keeps what it is given. */
export function aBatch(shape: BatchShape = {}): Uint8Array {
  const { values, timestampsMs } = shape
  const count = shape.records ?? values?.length ?? shape.keys?.length ?? timestampsMs?.length ?? 1
  const builder = new BatchBuilder({
    maxBytes: 64 * 1024 * 1024,
    initialBytes: 1024,
    compression: shape.compression ?? 'none',
  })
  for (let i = 0; i < count; i++) {
    const value = values === undefined ? `value-${i}` : values[i]
    const filled = shape.valueBytes === undefined ? value : fill(value ?? '', shape.valueBytes)
    const timestampMs = timestampsMs?.[i] ?? shape.timestampMs ?? BATCH_TIME_MS
    const isIn = builder.tryAppend(shape.keys?.[i] ?? shape.key, filled, timestampMs, shape.headers)
    invariant(isIn, 'the builder takes every record of a test')
  }
  if (shape.producer !== undefined) {
    const { id, epoch = 0, sequence } = shape.producer
    builder.setProducer(id, epoch, sequence)
  }
  const batch = builder.finish()
  stampBatch(batch, 0, shape.baseOffset ?? 0, shape.leaderEpoch ?? 0)
  return batch
}

function fill(value: string | Uint8Array, bytes: number): Uint8Array {
  const filled = new Uint8Array(bytes).fill(0x2e)
  filled.set(
    (typeof value === 'string' ? new TextEncoder().encode(value) : value).subarray(0, bytes),
  )
  return filled
}

/** A batch as it lies in a chunk. */
export interface FoundBatch {
  readonly bytes: Uint8Array
  readonly baseOffset: number
  readonly endOffset: number
}

/** The batches in chunks that a read has answered. Fails when one is not whole. */
export function batchesOf(chunks: readonly Uint8Array[]): FoundBatch[] {
  const found: FoundBatch[] = []
  for (const chunk of chunks) {
    for (let at = 0; at < chunk.length;) {
      const end = at + readBatchBytes(chunk, at)
      invariant(end <= chunk.length, 'a chunk holds whole batches')
      const bytes = chunk.subarray(at, end)
      found.push({
        bytes,
        baseOffset: readBaseOffset(bytes, 0),
        endOffset: readEndOffset(bytes, 0),
      })
      at = end
    }
  }
  return found
}

/** What a consumer sees of a record. Values are shown as text. */
export interface FoundRecord {
  readonly offset: number
  readonly timestampMs: number
  readonly value: string | undefined
}

export function recordsOf(chunks: readonly Uint8Array[]): FoundRecord[] {
  const cursor = new RecordCursor()
  const found: FoundRecord[] = []
  for (const { bytes } of batchesOf(chunks)) {
    cursor.reset(bytes, 0)
    while (cursor.next()) {
      const value = cursor.bytes.subarray(Math.max(0, cursor.valueStart), cursor.valueEnd)
      found.push({
        offset: cursor.offset,
        timestampMs: cursor.timestampMs,
        value: cursor.valueStart < 0 ? undefined : Buffer.from(value).toString(),
      })
    }
  }
  return found
}

/** A record with its key, for compaction. */
export interface FoundEntry extends FoundRecord {
  readonly key: string | undefined
}

export function entriesOf(chunks: readonly Uint8Array[]): FoundEntry[] {
  const records = recordsOf(chunks)
  const cursor = new RecordCursor()
  const keys: (string | undefined)[] = []
  for (const { bytes } of batchesOf(chunks)) {
    cursor.reset(bytes, 0)
    while (cursor.next()) {
      const { keyStart, keyEnd } = cursor
      const key = keyStart < 0 ? undefined : cursor.bytes.subarray(keyStart, keyEnd)
      keys.push(key === undefined ? undefined : Buffer.from(key).toString())
    }
  }
  return records.map((found, i) => ({ ...found, key: keys[i] }))
}
