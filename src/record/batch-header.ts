import { invariant } from '../common/assert.ts'
import {
  readI16,
  readI32,
  readI64,
  readU32,
  writeI16,
  writeI32,
  writeI64,
} from '../bytes/big-endian.ts'
import { crc32c } from '../bytes/crc32c.ts'

/**
 * Header of a record batch: Kafka's message format v2 (KIP-98), byte for byte. Integers are big-endian.
 *
 *   byte  0           8        12       16     17      21
 *        ┌───────────┬────────┬────────┬──────┬───────┬ ─ ─ ─
 *        │base offset│ length │ leader │magic │  crc  │ crc covers from here to the end
 *        │    i64    │  i32   │ epoch  │i8 = 2│  u32  │
 *        └───────────┴────────┴─ i32 ──┴──────┴───────┴ ─ ─ ─
 *         21         23           27         35         43        51       53        57      61
 *        ┌──────────┬────────────┬──────────┬──────────┬─────────┬────────┬─────────┬───────┬─────────
 *        │attributes│last offset │base time │max time  │producer │producer│base     │record │ records,
 *        │   i16    │ delta i32  │ ms i64   │ ms i64   │ id i64  │epoch   │sequence │count  │ maybe
 *        └──────────┴────────────┴──────────┴──────────┴─────────┴─ i16 ──┴── i32 ──┴─ i32 ─┴─ compressed
 *
 *   length      bytes after the length field itself, so the whole batch is 12 + length
 *   attributes  bits 0-2 compression, 3 timestamp type (1 = append time), 4 transactional, 5 control, 6 delete horizon
 *
 * Base offset, length and leader epoch stand outside the crc, so the log stamps them without a pass over the bytes.
 * These functions trust that the header lies in `bytes`; a byte past the end reads as 0.
 */
export const BATCH_HEADER_BYTES = 61
/** Base offset and length: what is needed to step to the next batch. */
export const BATCH_PREFIX_BYTES = 12
export const MAGIC = 2
/** The least value of the length field: a header with no records behind it. */
export const MIN_BATCH_LENGTH: number = BATCH_HEADER_BYTES - BATCH_PREFIX_BYTES

export const baseOffsetAt = 0
export const lengthAt = 8
export const leaderEpochAt = 12
export const magicAt = 16
export const crcAt = 17
export const attributesAt = 21
export const lastOffsetDeltaAt = 23
export const baseTimestampAt = 27
export const maxTimestampAt = 35
export const producerIdAt = 43
export const producerEpochAt = 51
export const baseSequenceAt = 53
export const recordCountAt = 57

export const COMPRESSION_MASK = 0x07
export const APPEND_TIME_BIT = 0x08
export const TRANSACTIONAL_BIT = 0x10
export const CONTROL_BIT = 0x20
/** Set by Kafka's compaction; nothing else uses the bits above it. */
export const DELETE_HORIZON_BIT = 0x40

/** Kafka's codecs. Snappy is known by name only: nothing here decodes it (DEPENDENCIES §2.2). */
export type Compression = 'none' | 'gzip' | 'snappy' | 'lz4' | 'zstd'

/** In the order of their codes on the wire. */
export const COMPRESSIONS: readonly Compression[] = ['none', 'gzip', 'snappy', 'lz4', 'zstd']

/** The offset of the first record, or -1 when the field is negative or above 2^53, so that no caller meets an inexact one. */
export function readBaseOffset(bytes: Uint8Array, at: number): number {
  const offset = readI64(bytes, at + baseOffsetAt)
  return offset >= 0 && offset <= Number.MAX_SAFE_INTEGER ? offset : -1
}

/** The whole size of the batch, prefix included. The field is read as unsigned: a negative length is a huge one, which no limit lets pass. */
export function readBatchBytes(bytes: Uint8Array, at: number): number {
  return BATCH_PREFIX_BYTES + readU32(bytes, at + lengthAt)
}

/** The incarnation of the broker that took the batch (CONTRACT §3). */
export function readLeaderEpoch(bytes: Uint8Array, at: number): number {
  return readI32(bytes, at + leaderEpochAt)
}

export function readMagic(bytes: Uint8Array, at: number): number {
  return bytes[at + magicAt] ?? 0
}

export function readCrc(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at + crcAt)
}

export function readAttributes(bytes: Uint8Array, at: number): number {
  return readI16(bytes, at + attributesAt)
}

export function readLastOffsetDelta(bytes: Uint8Array, at: number): number {
  return readI32(bytes, at + lastOffsetDeltaAt)
}

/** Milliseconds since 1970; -1 for none. Inexact outside ±2^53, which {@link isPlausibleHeader} and the validator refuse. */
export function readBaseTimestamp(bytes: Uint8Array, at: number): number {
  return readI64(bytes, at + baseTimestampAt)
}

/** Milliseconds since 1970; -1 for none. The append time when {@link isAppendTime}. */
export function readMaxTimestamp(bytes: Uint8Array, at: number): number {
  return readI64(bytes, at + maxTimestampAt)
}

/** -1 for none. */
export function readProducerId(bytes: Uint8Array, at: number): number {
  return readI64(bytes, at + producerIdAt)
}

export function readProducerEpoch(bytes: Uint8Array, at: number): number {
  return readI16(bytes, at + producerEpochAt)
}

export function readBaseSequence(bytes: Uint8Array, at: number): number {
  return readI32(bytes, at + baseSequenceAt)
}

export function readRecordCount(bytes: Uint8Array, at: number): number {
  return readI32(bytes, at + recordCountAt)
}

/** One past the offset of the last record. */
export function readEndOffset(bytes: Uint8Array, at: number): number {
  return readBaseOffset(bytes, at) + readLastOffsetDelta(bytes, at) + 1
}

/** Where the batch at `at` ends, or -1 when no whole batch lies there: how one steps through a chunk. Looks at sizes only. */
export function endOfBatch(bytes: Uint8Array, at: number): number {
  if (bytes.length - at < BATCH_HEADER_BYTES) return -1
  const size = readBatchBytes(bytes, at)
  return size < BATCH_HEADER_BYTES || size > bytes.length - at ? -1 : at + size
}

/** Undefined for the codes 5 to 7, which nobody has defined. */
export function readCompression(bytes: Uint8Array, at: number): Compression | undefined {
  return COMPRESSIONS[readAttributes(bytes, at) & COMPRESSION_MASK]
}

/** True when all records carry the broker's time, which is then the max timestamp. */
export function isAppendTime(bytes: Uint8Array, at: number): boolean {
  return (readAttributes(bytes, at) & APPEND_TIME_BIT) !== 0
}

/** True when the batch holds markers of the log itself, which no consumer is shown. */
export function isControl(bytes: Uint8Array, at: number): boolean {
  return (readAttributes(bytes, at) & CONTROL_BIT) !== 0
}

/** True when every offset of the batch has its record: compaction has taken none. */
export function isDense(bytes: Uint8Array, at: number): boolean {
  return readRecordCount(bytes, at) === readLastOffsetDelta(bytes, at) + 1
}

/** The largest timestamp of its records; -1 when it has none left, whatever its header remembers of those it had. */
export function readNewestTimestamp(bytes: Uint8Array, at: number): number {
  return readRecordCount(bytes, at) === 0 ? -1 : readMaxTimestamp(bytes, at)
}

/** When the tombstones of the batch may go, or undefined when compaction has not set that yet. Kafka keeps it where the base timestamp was. */
export function readDeleteHorizon(bytes: Uint8Array, at: number): number | undefined {
  const isSet = (readAttributes(bytes, at) & DELETE_HORIZON_BIT) !== 0
  return isSet ? readBaseTimestamp(bytes, at) : undefined
}

/**
 * A batch without records that stands for the offsets [`baseOffset`, `endOffset`), at most 2^31 - 1 of them, whose records compaction has
 * taken: so the batches of a log follow on each other as before, and a place where one is missing is damage and nothing else. Kafka's
 * readers pass over such a batch; Kafka itself leaves them where a producer's last batch was.
 */
export function emptyBatch(baseOffset: number, endOffset: number, leaderEpoch: number): Uint8Array {
  invariant(endOffset > baseOffset, 'a gap is not empty')
  const batch = new Uint8Array(BATCH_HEADER_BYTES)
  writeI32(batch, lengthAt, MIN_BATCH_LENGTH)
  batch[magicAt] = MAGIC
  writeI32(batch, lastOffsetDeltaAt, endOffset - baseOffset - 1)
  writeI64(batch, baseTimestampAt, -1)
  writeI64(batch, maxTimestampAt, -1)
  writeI64(batch, producerIdAt, -1)
  writeI16(batch, producerEpochAt, -1)
  writeI32(batch, baseSequenceAt, -1)
  stampBatch(batch, 0, baseOffset, leaderEpoch)
  stampCrc(batch, 0)
  return batch
}

/** Gives the batch its place. Outside the crc: no pass over the bytes. */
export function stampBatch(
  bytes: Uint8Array,
  at: number,
  baseOffset: number,
  leaderEpoch: number,
): void {
  invariant(Number.isSafeInteger(baseOffset) && baseOffset >= 0, 'a base offset is in [0, 2^53)')
  writeI64(bytes, at + baseOffsetAt, baseOffset)
  writeI32(bytes, at + leaderEpochAt, leaderEpoch)
}

/** Marks the batch as stamped by the broker at `timeMs`. Costs a crc pass over the whole batch. */
export function stampAppendTime(bytes: Uint8Array, at: number, timeMs: number): void {
  invariant(Number.isSafeInteger(timeMs), 'a timestamp is a safe integer')
  writeI16(bytes, at + attributesAt, readAttributes(bytes, at) | APPEND_TIME_BIT)
  writeI64(bytes, at + maxTimestampAt, timeMs)
  stampCrc(bytes, at)
}

/** Makes retries of the batch harmless (KIP-98). `producerId` -1 with epoch -1 and sequence -1 clears it. Costs a crc pass. */
export function stampProducer(
  bytes: Uint8Array,
  at: number,
  producerId: number,
  epoch: number,
  baseSequence: number,
): void {
  invariant(Number.isSafeInteger(producerId), 'a producer id is a safe integer')
  writeI64(bytes, at + producerIdAt, producerId)
  writeI16(bytes, at + producerEpochAt, epoch)
  writeI32(bytes, at + baseSequenceAt, baseSequence)
  stampCrc(bytes, at)
}

/** Computes the checksum anew. The batch must lie whole in `bytes`. */
export function stampCrc(bytes: Uint8Array, at: number): void {
  writeI32(bytes, at + crcAt, crc32c(bytes, at + attributesAt, at + readBatchBytes(bytes, at)))
}

/** The batch must lie whole in `bytes`; one that does not is not valid. */
export function isCrcValid(bytes: Uint8Array, at: number): boolean {
  const end = at + readBatchBytes(bytes, at)
  if (end > bytes.length || end < at + BATCH_HEADER_BYTES) return false
  return readCrc(bytes, at) === crc32c(bytes, at + attributesAt, end)
}

/**
 * Whether a batch could start here: what a scan asks before it pays for a checksum. The header must lie in `bytes`, its records need not.
 * Wants magic 2, a size within `maxBatchBytes`, a known codec, a base offset, and a count and a last delta that can go together (compaction
 * removes records and leaves the delta, so the count may be smaller).
 */
export function isPlausibleHeader(bytes: Uint8Array, at: number, maxBatchBytes: number): boolean {
  if (bytes.length - at < BATCH_HEADER_BYTES || readMagic(bytes, at) !== MAGIC) return false
  const size = readBatchBytes(bytes, at)
  if (size < BATCH_HEADER_BYTES || size > maxBatchBytes) return false
  const lastOffsetDelta = readLastOffsetDelta(bytes, at)
  const count = readRecordCount(bytes, at)
  return (
    lastOffsetDelta >= 0 &&
    count >= 0 &&
    count <= lastOffsetDelta + 1 &&
    readBaseOffset(bytes, at) >= 0 &&
    Number.isSafeInteger(readEndOffset(bytes, at)) &&
    readCompression(bytes, at) !== undefined
  )
}
