import { writeI16, writeI32 } from '../../bytes/big-endian.ts'
import { invariant } from '../../common/assert.ts'
import { type Offset, toOffset } from '../../common/offset.ts'
import { KIB } from '../../common/units.ts'
import {
  attributesAt,
  BATCH_HEADER_BYTES,
  BATCH_PREFIX_BYTES,
  COMPRESSION_MASK,
  endOfBatch,
  isControl,
  lastOffsetDeltaAt,
  lengthAt,
  readAttributes,
  readBaseOffset,
  readCompression,
  readEndOffset,
  readMaxTimestamp,
  readRecordCount,
  recordCountAt,
  stampCrc,
} from '../../record/batch-header.ts'
import { RecordCursor } from '../../record/record-cursor.ts'
import type { Partition } from '../../topic/partition.ts'
import type { LogRecord } from './queue-types.ts'

/** Some records of one batch, as a batch of their own. */
export interface Slice {
  readonly batch: Uint8Array
  readonly first: number
  /** One past the last record in it. */
  readonly end: number
  readonly count: number
}

/** What is read at once where records follow each other. Large enough that a worker's share is one read, small enough for a thousand partitions. */
const READ_AHEAD_BYTES: number = 256 * KIB
/** What is kept beside the stretch being read: batches that records are taken from again, one by one. */
const MOST_LOOSE = 8

/**
 * Part of a log in memory, from which records are cut without decoding them: a batch that is wanted whole is handed on as it is, of others the records' bytes
 * are copied behind a header of their own. Compressed batches are unpacked once.
 */
export class BatchShelf {
  readonly #partition: Partition
  /** The stretch being read, in order, without holes. */
  #stretch: readonly Shelved[] = []
  /** Others, the last used last. */
  #loose: Shelved[] = []

  constructor(partition: Partition) {
    this.#partition = partition
  }

  /** The batch, or the gap between batches, that `offset` lies in; undefined when it has to be {@link load}ed. */
  find(offset: number): Shelved | undefined {
    const stretch = this.#stretch
    let low = 0
    let high = stretch.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((stretch[middle]?.end ?? 0) <= offset) low = middle + 1
      else high = middle
    }
    const found = stretch[low]
    if (found !== undefined && found.base <= offset) return found
    return this.#loose.find((one) => one.base <= offset && offset < one.end)
  }

  /**
   * Reads what lies at `offset`, and resolves to it; `ahead` says that what follows will be wanted next.
   * @throws BrokerError (as rejection) what `Partition.read` throws
   */
  async load(offset: number, ahead: boolean): Promise<Shelved> {
    const { chunks, nextOffset } = await this.#partition.read(
      toOffset(offset),
      ahead ? READ_AHEAD_BYTES : 1,
    )
    const found: Shelved[] = []
    let at = offset
    for (const chunk of chunks) {
      for (let position = 0; position < chunk.length;) {
        const end = endOfBatch(chunk, position)
        const base = readBaseOffset(chunk, position)
        if (base > at) found.push(new Shelved(at, base, undefined))
        const batch = new Shelved(
          base,
          readEndOffset(chunk, position),
          chunk.subarray(position, end),
        )
        found.push(batch)
        at = batch.end
        position = end
      }
    }
    if (nextOffset > at) found.push(new Shelved(at, nextOffset, undefined))
    if (ahead) this.#stretch = found
    else this.#loose = [...this.#loose, ...found.slice(0, 2)].slice(-MOST_LOOSE)
    // Not looked up on the shelf: others may load at the same time.
    const wanted = found.find((one) => one.base <= offset && offset < one.end)
    invariant(wanted !== undefined, 'what was read is there')
    return wanted
  }

  /** Forgets everything: nobody is about to take anything. */
  clear(): void {
    this.#stretch = []
    this.#loose = []
  }

  /** One record with its bytes copied, or undefined when there is none at `offset`. @throws BrokerError (as rejection) as {@link load}; INVALID_RECORD */
  async readRecord(offset: number): Promise<LogRecord | undefined> {
    const shelved = this.find(offset) ?? (await this.load(offset, false))
    return shelved.readRecord(offset)
  }
}

/** One batch on the shelf, or, without bytes, offsets that have no records. */
export class Shelved {
  readonly base: number
  readonly end: number
  readonly isGap: boolean
  #bytes: Uint8Array | undefined
  #cursor: RecordCursor | undefined
  /** The cursor stands on a record. */
  #hasRecord = false
  #isPlain = false

  constructor(base: number, end: number, bytes: Uint8Array | undefined) {
    this.base = base
    this.end = end
    this.#bytes = bytes
    this.isGap = bytes === undefined || isControl(bytes, 0) || readRecordCount(bytes, 0) === 0
  }

  /** The largest timestamp of its records. */
  get maxTimestampMs(): number {
    return this.#bytes === undefined ? -1 : readMaxTimestamp(this.#bytes, 0)
  }

  /** Stands on the first record at or past `offset`, or says that there is none in this batch. What has been passed is cheap to go on from. */
  seek(offset: number): RecordCursor | undefined {
    if (this.isGap || offset >= this.end) return undefined
    const bytes = this.#plain()
    let cursor = this.#cursor
    if (cursor === undefined) this.#cursor = cursor = new RecordCursor()
    if (!this.#hasRecord || cursor.offset > offset || cursor.offset < this.base) {
      cursor.reset(bytes, 0)
      this.#hasRecord = cursor.next()
    }
    while (this.#hasRecord && cursor.offset < offset) this.#hasRecord = cursor.next()
    return this.#hasRecord ? cursor : undefined
  }

  /**
   * The records of this batch in [first, end), at most `most` and about `mostBytes` of them (one at least); undefined when there is none.
   * @throws BrokerError INVALID_RECORD, DECOMPRESSED_TOO_LARGE
   */
  slice(first: number, end: number, most: number, mostBytes: number): Slice | undefined {
    if (this.isGap) return undefined
    const whole = this.#bytes as Uint8Array // A batch that is no gap has bytes.
    const records = readRecordCount(whole, 0)
    if (first <= this.base && end >= this.end && records <= most && whole.length <= mostBytes) {
      return { batch: whole, first: this.base, end: this.end, count: records }
    }
    const cursor = this.seek(first)
    if (cursor === undefined || cursor.offset >= end) return undefined
    const bytes = this.#plain()
    const start = cursor.recordStart
    const begin = cursor.offset
    let stop = cursor.recordEnd
    let last = cursor.offset
    let count = 1
    for (;;) {
      this.#hasRecord = cursor.next()
      if (!this.#hasRecord || cursor.offset >= end || count === most) break
      if (cursor.recordEnd - start > mostBytes) break
      stop = cursor.recordEnd
      last = cursor.offset
      count++
    }
    const size = BATCH_HEADER_BYTES + stop - start
    const batch = Buffer.allocUnsafe(size)
    batch.set(bytes.subarray(0, BATCH_HEADER_BYTES))
    batch.set(bytes.subarray(start, stop), BATCH_HEADER_BYTES)
    writeI32(batch, lengthAt, size - BATCH_PREFIX_BYTES)
    writeI32(batch, lastOffsetDeltaAt, last - this.base)
    writeI32(batch, recordCountAt, count)
    stampCrc(batch, 0)
    return { batch, first: begin, end: last + 1, count }
  }

  readRecord(offset: number): LogRecord | undefined {
    const cursor = this.seek(offset)
    if (cursor === undefined || cursor.offset !== offset) return undefined
    const { bytes } = cursor
    return {
      offset: offset as Offset, // A cursor's offsets are checked.
      timestampMs: cursor.timestampMs,
      key: cursor.keyStart < 0 ? undefined : bytes.slice(cursor.keyStart, cursor.keyEnd),
      value: cursor.valueStart < 0 ? undefined : bytes.slice(cursor.valueStart, cursor.valueEnd),
      headers: cursor.headerCount === 0 ? [] : cursor.readHeaders(),
    }
  }

  /** The batch, uncompressed. */
  #plain(): Uint8Array {
    const bytes = this.#bytes as Uint8Array // Only of a batch that is no gap.
    if (this.#isPlain) return bytes
    this.#isPlain = true
    if (readCompression(bytes, 0) === 'none') return bytes
    const cursor = new RecordCursor()
    cursor.reset(bytes, 0)
    const records = cursor.bytes
    const plain = Buffer.allocUnsafe(BATCH_HEADER_BYTES + records.length)
    plain.set(bytes.subarray(0, BATCH_HEADER_BYTES))
    plain.set(records, BATCH_HEADER_BYTES)
    writeI32(plain, lengthAt, plain.length - BATCH_PREFIX_BYTES)
    writeI16(plain, attributesAt, readAttributes(plain, 0) & ~COMPRESSION_MASK)
    stampCrc(plain, 0)
    this.#bytes = plain
    return plain
  }
}
