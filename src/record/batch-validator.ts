import { BrokerError, type ErrorCode, type ErrorDetails } from '../common/errors.ts'
import { HOUR_MS } from '../common/units.ts'
import {
  APPEND_TIME_BIT,
  BATCH_HEADER_BYTES,
  type Compression,
  COMPRESSION_MASK,
  CONTROL_BIT,
  isCrcValid,
  MAGIC,
  readAttributes,
  readBaseSequence,
  readBaseTimestamp,
  readBatchBytes,
  readCompression,
  readLastOffsetDelta,
  readMagic,
  readMaxTimestamp,
  readProducerEpoch,
  readProducerId,
  readRecordCount,
  TRANSACTIONAL_BIT,
} from './batch-header.ts'
import { DEFAULT_MAX_DECOMPRESSED_BYTES, isCompressionAvailable } from './compression.ts'
import { RecordCursor } from './record-cursor.ts'

/** How far in the future a timestamp may lie unless the topic says otherwise. */
export const DEFAULT_MAX_FUTURE_MS: number = HOUR_MS

/** The shortest record: a length, attributes, and five numbers of one byte. */
const MIN_RECORD_BYTES = 7

export interface BatchLimits {
  readonly maxBatchBytes: number
  readonly nowMs: number
  /** One hour by default in a topic; Infinity: any. */
  readonly maxFutureMs: number
  /** Markers of the log itself: refused from clients. */
  readonly allowControl: boolean
  /** Which codecs may come in. All that this process can read, by default. */
  readonly allowCompressed?: ((compression: Compression) => boolean) | undefined
}

export interface RecordLimits {
  /** Largest encoded record, its length field included. */
  readonly maxRecordBytes: number
  /** 64 MiB by default. */
  readonly maxDecompressedBytes?: number | undefined
  /** 100 by default, counted above 1 MiB. */
  readonly maxRatio?: number | undefined
}

/**
 * Checks what a client sent: exactly one batch, header and checksum, without decoding a record. Base offset and leader epoch are not
 * looked at, since the log stamps them. Costs one pass for the checksum.
 *
 * @throws BrokerError BATCH_TOO_LARGE; CORRUPT_BATCH when length or checksum do not fit the bytes; UNSUPPORTED_FEATURE for the formats before
 *   v2 and for transactions; UNSUPPORTED_CODEC; EMPTY_BATCH; INVALID_RECORD when the header contradicts itself; INVALID_TIMESTAMP
 */
export function validateBatch(batch: Uint8Array, limits: BatchLimits): void {
  if (batch.length > limits.maxBatchBytes) {
    throw failure(
      'BATCH_TOO_LARGE',
      `the batch has ${batch.length} bytes, more than the limit of ${limits.maxBatchBytes}`,
      { batchBytes: batch.length, maxBatchBytes: limits.maxBatchBytes },
    )
  }
  if (batch.length < BATCH_HEADER_BYTES) {
    throw failure(
      'CORRUPT_BATCH',
      `${batch.length} bytes are no batch: its header alone has ${BATCH_HEADER_BYTES}`,
      { batchBytes: batch.length },
    )
  }
  const magic = readMagic(batch, 0)
  if (magic !== MAGIC) {
    throw failure(
      magic < MAGIC ? 'UNSUPPORTED_FEATURE' : 'CORRUPT_BATCH',
      `the batch has format version ${magic}, only ${MAGIC} is understood`,
      { magic },
    )
  }
  const size = readBatchBytes(batch, 0)
  if (size !== batch.length) {
    throw failure(
      'CORRUPT_BATCH',
      `the batch says that it has ${size} bytes, and ${batch.length} came: send exactly one batch`,
      { batchBytes: batch.length, statedBytes: size },
    )
  }
  if (!isCrcValid(batch, 0)) {
    throw failure('CORRUPT_BATCH', 'the checksum of the batch does not fit its bytes')
  }
  // The bytes are what the producer wrote. Whatever is wrong from here on, it wrote wrong.
  validateAttributes(batch, limits)
  validateCount(batch)
  validateTimestamps(batch, limits)
  validateProducer(batch)
}

/**
 * The deep check: decompresses, within bounds, and walks every record and its headers. For batches that a queue group, compaction or
 * a plain-record API will have to read. The batch must have passed {@link validateBatch}.
 *
 * @throws BrokerError RECORD_TOO_LARGE with its `index`; INVALID_RECORD; INVALID_TIMESTAMP; DECOMPRESSED_TOO_LARGE; UNSUPPORTED_CODEC; CORRUPT_BATCH
 */
export function validateRecords(batch: Uint8Array, limits: RecordLimits): void {
  const cursor = new RecordCursor({
    maxDecompressedBytes: limits.maxDecompressedBytes,
    maxRatio: limits.maxRatio,
    reuseMemory: true, // Nothing of it outlives this call.
  })
  cursor.reset(batch, 0)
  const maxTimestampMs = readMaxTimestamp(batch, 0)
  for (let index = 0; cursor.next(); index++) {
    const recordBytes = cursor.recordEnd - cursor.recordStart
    if (recordBytes > limits.maxRecordBytes) {
      throw failure(
        'RECORD_TOO_LARGE',
        `record ${index} of the batch has ${recordBytes} bytes, more than the limit of ${limits.maxRecordBytes}`,
        { index, recordBytes, maxRecordBytes: limits.maxRecordBytes },
      )
    }
    if (cursor.offsetDelta !== index) {
      throw failure(
        'INVALID_RECORD',
        `record ${index} of the batch has offset delta ${cursor.offsetDelta}`,
        { index, offsetDelta: cursor.offsetDelta },
      )
    }
    if (cursor.timestampMs < -1 || cursor.timestampMs > maxTimestampMs) {
      throw failure(
        'INVALID_TIMESTAMP',
        `record ${index} of the batch has timestamp ${cursor.timestampMs}, outside [-1, ${maxTimestampMs}]`,
        { index, timestampMs: cursor.timestampMs, maxTimestampMs },
      )
    }
    cursor.checkHeaders()
  }
}

/** Memory for looking into batches; what is in it is done with before anything else can run. */
let keyCursor: RecordCursor | undefined

/**
 * Refuses a batch in which a record has no key: in a compacted topic it could never be superseded, nor deleted. Decompresses; control batches
 * pass. The batch must have passed {@link validateBatch}.
 *
 * @throws BrokerError INVALID_RECORD with the `index` of the first such record; what reading the records throws
 */
export function checkKeys(batch: Uint8Array, topic: string): void {
  if ((readAttributes(batch, 0) & CONTROL_BIT) !== 0) return
  const cursor = (keyCursor ??= new RecordCursor({ reuseMemory: true }))
  cursor.reset(batch, 0)
  for (let index = 0; cursor.next(); index++) {
    if (cursor.keyStart >= 0) continue
    throw failure(
      'INVALID_RECORD',
      `record ${index} of the batch has no key: topic ${topic} is compacted, which keeps the newest record of each key, so every record needs one`,
      { index, topic },
    )
  }
}

function validateAttributes(batch: Uint8Array, limits: BatchLimits): void {
  const attributes = readAttributes(batch, 0)
  if ((attributes & TRANSACTIONAL_BIT) !== 0) {
    throw failure('UNSUPPORTED_FEATURE', 'transactions are not supported')
  }
  if ((attributes & CONTROL_BIT) !== 0 && !limits.allowControl) {
    throw failure('INVALID_RECORD', 'the batch is marked as control, which clients may not send')
  }
  if ((attributes & APPEND_TIME_BIT) !== 0) {
    throw failure(
      'INVALID_TIMESTAMP',
      'the batch is marked as stamped with append time, which only the broker does',
    )
  }
  if ((attributes & ~(COMPRESSION_MASK | CONTROL_BIT)) !== 0) {
    throw failure(
      'INVALID_RECORD',
      `the batch has attributes that are not defined: ${attributes}`,
      {
        attributes,
      },
    )
  }
  const compression = readCompression(batch, 0)
  const allowed = limits.allowCompressed ?? isCompressionAvailable
  if (compression === undefined || (compression !== 'none' && !allowed(compression))) {
    const name = compression ?? `with code ${attributes & COMPRESSION_MASK}`
    throw failure('UNSUPPORTED_CODEC', `compression ${name} is not accepted here`, {
      compression: name,
    })
  }
}

function validateCount(batch: Uint8Array): void {
  const count = readRecordCount(batch, 0)
  const lastOffsetDelta = readLastOffsetDelta(batch, 0)
  if (count === 0) throw failure('EMPTY_BATCH', 'the batch holds no record')
  const recordBytes = batch.length - BATCH_HEADER_BYTES
  // What compressed bytes hold is seen only by decoding; that they cannot hold more than the decoder's limit is known.
  const plainBytes =
    readCompression(batch, 0) === 'none' ? recordBytes : DEFAULT_MAX_DECOMPRESSED_BYTES
  if (
    count < 0 ||
    lastOffsetDelta !== count - 1 ||
    recordBytes === 0 ||
    count * MIN_RECORD_BYTES > plainBytes
  ) {
    throw failure(
      'INVALID_RECORD',
      `the batch states ${count} records and last offset delta ${lastOffsetDelta} in ${recordBytes} bytes, which cannot be`,
      { count, lastOffsetDelta, recordBytes },
    )
  }
}

function validateTimestamps(batch: Uint8Array, limits: BatchLimits): void {
  const base = readBaseTimestamp(batch, 0)
  const max = readMaxTimestamp(batch, 0)
  if (!Number.isSafeInteger(base) || !Number.isSafeInteger(max) || base < -1 || max < base) {
    throw failure(
      'INVALID_TIMESTAMP',
      `the batch has base timestamp ${base} and max timestamp ${max}`,
      { baseTimestampMs: base, maxTimestampMs: max },
    )
  }
  if (max > limits.nowMs + limits.maxFutureMs) {
    throw failure(
      'INVALID_TIMESTAMP',
      `timestamp ${max} is more than ${limits.maxFutureMs} ms ahead of the broker's clock (${limits.nowMs})`,
      { maxTimestampMs: max, nowMs: limits.nowMs, maxFutureMs: limits.maxFutureMs },
    )
  }
}

function validateProducer(batch: Uint8Array): void {
  const producerId = readProducerId(batch, 0)
  if (producerId === -1) return // Epoch and sequence then mean nothing; some clients leave zeros there.
  const epoch = readProducerEpoch(batch, 0)
  const sequence = readBaseSequence(batch, 0)
  if (!Number.isSafeInteger(producerId) || producerId < 0 || epoch < 0 || sequence < 0) {
    throw failure(
      'INVALID_RECORD',
      `the batch has producer id ${producerId}, epoch ${epoch} and sequence ${sequence}: all or none must be set`,
      { producerId, epoch, sequence },
    )
  }
}

function failure(code: ErrorCode, message: string, details?: ErrorDetails): BrokerError {
  return new BrokerError(code, message, details)
}
