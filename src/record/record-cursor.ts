import { BrokerError } from '../common/errors.ts'
import { Scratch } from '../bytes/scratch.ts'
import { VarintReader } from '../bytes/varint.ts'
import {
  BATCH_HEADER_BYTES,
  endOfBatch,
  isAppendTime,
  MAGIC,
  readBaseOffset,
  readBaseTimestamp,
  readCompression,
  readLastOffsetDelta,
  readMagic,
  readMaxTimestamp,
  readRecordCount,
} from './batch-header.ts'
import type { Compression } from './batch-header.ts'
import type { RecordHeader } from './batch-builder.ts'
import { decompress, DEFAULT_MAX_DECOMPRESSED_BYTES, DEFAULT_MAX_RATIO } from './compression.ts'

/** A record without its length field: attributes and five varints. */
const MIN_RECORD_BODY = 6

export interface RecordCursorOptions {
  /** What one batch may decompress to. 64 MiB by default. */
  readonly maxDecompressedBytes?: number | undefined
  /** How many times its size a batch may decompress to, beyond 1 MiB. 100 by default. */
  readonly maxRatio?: number | undefined
  /**
   * Decompress every batch into the same memory: saves fresh pages, but what was taken from `bytes` holds only until the next
   * `reset`. False by default: views into `bytes` then stay good for as long as somebody keeps them.
   */
  readonly reuseMemory?: boolean | undefined
}

/**
 * Steps through the records of a batch without an object per record: its fields describe the current record and hold until the following
 * `next`. About 24 ns a record of 100 bytes on two busy cores (bench/micro). Checks every bound, so bytes that lie end in an error,
 * never out of range.
 *
 *   record  length │ attributes i8 │ timestamp delta │ offset delta │ key length, key │ value length, value │ header count, headers
 *   header  key length, key │ value length, value          All numbers but the attributes are zigzag varints; length -1: none.
 */
export class RecordCursor {
  offset = -1
  /** Place of the record in its batch: offset minus base offset. */
  offsetDelta = -1
  /** Milliseconds since 1970, the append time where the topic stamps it; -1 for none. */
  timestampMs = -1
  /** Where the whole record lies, its length included. */
  recordStart = 0
  recordEnd = 0
  /** `[keyStart, keyEnd)` in `bytes`; both -1 when the record has no key. */
  keyStart = -1
  keyEnd = -1
  /** `[valueStart, valueEnd)` in `bytes`; both -1 for a tombstone. */
  valueStart = -1
  valueEnd = -1
  headerCount = 0
  headersStart = 0

  readonly #maxDecompressedBytes: number
  readonly #maxRatio: number
  readonly #scratch: Scratch | undefined
  readonly #reader = new VarintReader()
  #bytes: Uint8Array = new Uint8Array(0)
  #position = 0
  #end = 0
  #left = 0
  /** One past the batch: where to go on when a record cannot be read. */
  #nextOffset = 0
  #baseOffset = 0
  #lastOffsetDelta = 0
  #baseTimestampMs = 0
  /** The time of all records where the broker stamped it, else undefined. */
  #appendTimeMs: number | undefined = undefined

  constructor(options: RecordCursorOptions = {}) {
    this.#maxDecompressedBytes = options.maxDecompressedBytes ?? DEFAULT_MAX_DECOMPRESSED_BYTES
    this.#maxRatio = options.maxRatio ?? DEFAULT_MAX_RATIO
    this.#scratch = options.reuseMemory === true ? new Scratch() : undefined
  }

  /** What the positions refer to: the bytes given to `reset`, or what they were decompressed to. */
  get bytes(): Uint8Array {
    return this.#bytes
  }

  /** Records of the batch that `next` has not come to yet. */
  get remaining(): number {
    return this.#left
  }

  /**
   * Points before the first record of the batch at `at`, decompressing it if need be. The checksum is not looked at: who took the bytes
   * from outside has done that.
   * @throws BrokerError CORRUPT_BATCH when no whole batch lies there, DECOMPRESSED_TOO_LARGE, UNSUPPORTED_CODEC
   */
  reset(bytes: Uint8Array, at: number): void {
    this.#left = 0 // Should this throw, `next` says false.
    const end = endOfBatch(bytes, at)
    if (end < 0 || readMagic(bytes, at) !== MAGIC) {
      throw new BrokerError('CORRUPT_BATCH', `no whole record batch at byte ${at}`, {
        position: at,
      })
    }
    const compression = readCompression(bytes, at)
    const baseOffset = readBaseOffset(bytes, at)
    const lastOffsetDelta = readLastOffsetDelta(bytes, at)
    const count = readRecordCount(bytes, at)
    if (baseOffset < 0 || count < 0 || lastOffsetDelta < 0 || count - 1 > lastOffsetDelta) {
      throw new BrokerError(
        'CORRUPT_BATCH',
        `the batch at byte ${at} has base offset ${baseOffset}, count ${count}, last delta ${lastOffsetDelta}`,
        { position: at, baseOffset, count, lastOffsetDelta },
      )
    }
    if (compression === undefined) {
      throw new BrokerError('UNSUPPORTED_CODEC', `the batch at byte ${at} has an unknown codec`, {
        position: at,
      })
    }
    this.#scratch?.trim()
    if (compression === 'none') {
      this.#bytes = bytes
      this.#position = at + BATCH_HEADER_BYTES
      this.#end = end
    } else {
      this.#bytes = this.#decompress(compression, bytes.subarray(at + BATCH_HEADER_BYTES, end), {
        baseOffset,
        nextOffset: baseOffset + lastOffsetDelta + 1,
      })
      this.#position = 0
      this.#end = this.#bytes.length
    }
    this.#baseOffset = baseOffset
    this.#nextOffset = baseOffset + lastOffsetDelta + 1
    this.#lastOffsetDelta = lastOffsetDelta
    this.#baseTimestampMs = readBaseTimestamp(bytes, at)
    this.#appendTimeMs = isAppendTime(bytes, at) ? readMaxTimestamp(bytes, at) : undefined
    this.offset = -1
    this.offsetDelta = -1
    this.recordStart = this.#position
    this.recordEnd = this.#position
    this.keyStart = this.keyEnd = this.valueStart = this.valueEnd = -1
    this.headerCount = 0
    this.#left = count
  }

  /**
   * Moves to the next record; false behind the last one. Its headers are checked when they are read.
   * @throws BrokerError INVALID_RECORD when the bytes are no record or do not fit the header of the batch
   */
  next(): boolean {
    if (this.#left === 0) {
      if (this.#position === this.#end) return false
      throw this.#invalid('bytes are left behind the last record')
    }
    const recordStart = this.#position
    const length = this.#readVarint(this.#end)
    const start = this.#position
    // Written so that NaN, which is what a malformed number reads as, fails too; and so in every comparison below.
    if (!(length >= MIN_RECORD_BODY && length <= this.#end - start)) {
      throw this.#invalid('its length is wrong')
    }
    const end = start + length
    this.#position = start + 1 // Attributes of a record: none are defined.
    const timestampDelta = this.#readVarint(end)
    const offsetDelta = this.#readVarint(end)
    if (!(offsetDelta > this.offsetDelta && offsetDelta <= this.#lastOffsetDelta)) {
      throw this.#invalid('its offset delta is out of order or past the last')
    }
    const keyBytes = this.#readVarint(end)
    const keyStart = this.#position
    if (!(keyBytes >= -1 && keyBytes <= end - keyStart)) throw this.#invalid('its key is too long')
    if (keyBytes > 0) this.#position = keyStart + keyBytes
    const valueBytes = this.#readVarint(end)
    const valueStart = this.#position
    if (!(valueBytes >= -1 && valueBytes <= end - valueStart)) {
      throw this.#invalid('its value is too long')
    }
    if (valueBytes > 0) this.#position = valueStart + valueBytes
    const headerCount = this.#bytes[this.#position] === 0 ? this.#skipZero() : this.#readVarint(end)
    const headersStart = this.#position
    // A header takes two bytes at least; without headers the record ends here.
    if (
      !(headerCount >= 0 && headerCount * 2 <= end - headersStart) ||
      (headerCount === 0 && headersStart !== end)
    ) {
      throw this.#invalid('its header count or its length is wrong')
    }
    const timestampMs = this.#appendTimeMs ?? this.#baseTimestampMs + timestampDelta
    if (!Number.isSafeInteger(timestampMs)) throw this.#invalid('its timestamp is out of range')
    this.recordStart = recordStart
    this.offset = this.#baseOffset + offsetDelta
    this.offsetDelta = offsetDelta
    this.timestampMs = timestampMs
    this.keyStart = keyBytes < 0 ? -1 : keyStart
    this.keyEnd = keyBytes < 0 ? -1 : keyStart + keyBytes
    this.valueStart = valueBytes < 0 ? -1 : valueStart
    this.valueEnd = valueBytes < 0 ? -1 : valueStart + valueBytes
    this.headerCount = headerCount
    this.headersStart = headersStart
    this.recordEnd = end
    this.#position = end
    this.#left--
    return true
  }

  /**
   * The headers of the current record, made anew at each call; values are views into `bytes`.
   * @throws BrokerError INVALID_RECORD when they do not fill the record exactly
   */
  readHeaders(): RecordHeader[] {
    const headers: RecordHeader[] = []
    const bytes = this.#bytes
    this.#walkHeaders((keyStart, keyEnd, valueStart, valueEnd) => {
      headers.push({
        key: textOf(bytes, keyStart, keyEnd),
        value: valueStart < 0 ? undefined : bytes.subarray(valueStart, valueEnd),
      })
    })
    return headers
  }

  /** The same check as {@link readHeaders}, without making anything. */
  checkHeaders(): void {
    if (this.headerCount > 0) this.#walkHeaders(() => {})
  }

  #walkHeaders(
    visit: (keyStart: number, keyEnd: number, valueStart: number, valueEnd: number) => void,
  ): void {
    const reader = this.#reader
    const end = this.recordEnd
    reader.reset(this.#bytes, this.headersStart, end)
    for (let left = this.headerCount; left > 0; left--) {
      const keyBytes = reader.readVarint()
      const keyStart = reader.position
      if (!(keyBytes >= 0 && keyBytes <= end - keyStart))
        throw this.#invalid('a header key is wrong')
      reader.position = keyStart + keyBytes
      const valueBytes = reader.readVarint()
      const valueStart = reader.position
      if (!(valueBytes >= -1 && valueBytes <= end - valueStart)) {
        throw this.#invalid('a header value is wrong')
      }
      if (valueBytes > 0) reader.position = valueStart + valueBytes
      const valueEnd = valueBytes < 0 ? -1 : valueStart + valueBytes
      visit(keyStart, keyStart + keyBytes, valueBytes < 0 ? -1 : valueStart, valueEnd)
    }
    if (this.headerCount > 0 && reader.position !== end) {
      throw this.#invalid('bytes are left behind its headers')
    }
  }

  /**
   * What the batch's own checksum vouches for but does not decompress was written that way: reading it again will not help, and the batch behind
   * it is where to go on.
   */
  #decompress(
    compression: Exclude<Compression, 'none'>,
    packed: Uint8Array,
    place: { readonly baseOffset: number; readonly nextOffset: number },
  ): Uint8Array {
    try {
      return decompress(
        compression,
        packed,
        this.#maxDecompressedBytes,
        this.#maxRatio,
        this.#scratch,
      )
    } catch (error) {
      if (!(error instanceof BrokerError) || error.code !== 'CORRUPT_BATCH') throw error
      throw new BrokerError(
        'INVALID_RECORD',
        `the batch at offset ${place.baseOffset} was written with records that cannot be decompressed (${error.message}): go on at ${place.nextOffset}`,
        place,
        error,
      )
    }
  }

  /** A header count of 0, the last byte of nearly every record: the only one that `#readVarint` would leave to the reader. */
  #skipZero(): number {
    this.#position++
    return 0
  }

  /**
   * One and two bytes here, which is nearly all; the rest, and what is malformed (NaN), by the reader. Looking at both bytes under one bound
   * makes a record 4 ns cheaper than a bound for each; the same written out five times over, in local variables, would save 5 more.
   */
  #readVarint(end: number): number {
    const bytes = this.#bytes
    const at = this.#position
    if (at + 1 < end) {
      const first = bytes[at]!
      if (first < 0x80) {
        this.#position = at + 1
        return (first >>> 1) ^ -(first & 1)
      }
      const second = bytes[at + 1]!
      if (second < 0x80) {
        this.#position = at + 2
        const both = (first & 0x7f) | (second << 7)
        return (both >>> 1) ^ -(both & 1)
      }
    }
    this.#reader.reset(bytes, at, end)
    const value = this.#reader.readVarint()
    this.#position = this.#reader.position
    return value
  }

  #invalid(what: string): BrokerError {
    this.#left = 0
    this.#position = this.#end // Nothing sensible can follow: `next` says false from now on.
    const after = this.offsetDelta
    return new BrokerError(
      'INVALID_RECORD',
      `a record of the batch at offset ${this.#baseOffset} cannot be read (after delta ${after}): ${what}`,
      { baseOffset: this.#baseOffset, afterDelta: after, nextOffset: this.#nextOffset },
    )
  }
}

/** The start of every whole batch in a chunk, one after the other; stops at the first that is not whole. */
export function* batchesIn(bytes: Uint8Array): Generator<number, void, undefined> {
  let at = 0
  for (;;) {
    const end = endOfBatch(bytes, at)
    if (end < 0) return
    yield at
    at = end
  }
}

function textOf(bytes: Uint8Array, start: number, end: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString('utf8')
}
