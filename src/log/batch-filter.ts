import { varintBytes, VarintReader, writeVarint } from '../bytes/varint.ts'
import { writeI16, writeI32, writeI64 } from '../bytes/big-endian.ts'
import { BrokerError } from '../common/errors.ts'
import type { Offset } from '../common/offset.ts'
import {
  attributesAt,
  BATCH_HEADER_BYTES,
  BATCH_PREFIX_BYTES,
  baseTimestampAt,
  COMPRESSION_MASK,
  DELETE_HORIZON_BIT,
  isAppendTime,
  isControl,
  lengthAt,
  maxTimestampAt,
  readAttributes,
  readBaseOffset,
  readBaseTimestamp,
  readCompression,
  readDeleteHorizon,
  readProducerId,
  readRecordCount,
  recordCountAt,
  stampCrc,
} from '../record/batch-header.ts'
import { compress, decompressedLimit } from '../record/compression.ts'
import { RecordCursor } from '../record/record-cursor.ts'
import type { OffsetMap } from './offset-map.ts'

export interface FilterOptions {
  readonly map: OffsetMap
  /** Where the map ends: records from here on stay as they are, whatever it says. */
  readonly mapEnd: Offset
  /** False where an older record of a tombstone's key may still lie below it, in a place that could not be compacted. */
  readonly mayDropTombstones: boolean
  readonly nowMs: number
  readonly deleteRetentionMs: number
  readonly maxBatchBytes: number
  /** Whether producer state still tells of the batch: then its header has to stay, so that a scan of the log finds the same. */
  remembers(producerId: number, baseOffset: Offset): boolean
}

export interface FilterCounts {
  readonly recordsRemoved: number
  readonly tombstonesRemoved: number
  readonly tombstonesDueMs: number
}

/**
 * What is to become of a batch. `keep`: as it is. `drop`: its offsets become part of a gap. `replace`: by {@link BatchFilter.result}.
 */
export type FilterVerdict = 'keep' | 'drop' | 'replace'

/**
 * Decides, batch by batch, what compaction leaves, and builds the batch that is left: of each key the newest record that the map knows of, records
 * without a key, and tombstones until their grace is over. A batch that loses records keeps base offset, last offset delta, leader epoch, codec
 * and all of its producer's fields; a batch that loses all of them goes, unless its header still matters to its producer.
 *
 * The grace of tombstones is Kafka's delete horizon (KIP-534): the first round that keeps a tombstone writes the time at which it may go into its
 * batch's base timestamp, marks that in the attributes, and shifts the timestamp deltas of the records so that their times stay. It survives
 * restarts without any state, and starts only when no older record of the key is left below.
 */
export class BatchFilter {
  /** The batch to put in place of the last one, after `replace`. Valid until the next `begin`. */
  result: Uint8Array = new Uint8Array(0)
  recordsRemoved = 0
  tombstonesRemoved = 0
  /** The latest time at which a tombstone that has been kept may go; -1 when there is none. */
  tombstonesDueMs = -1
  /** Records that should have gone are still there: their batch could not be read or written anew. */
  hasLeftRecords = false

  readonly #options: FilterOptions
  readonly #cursor = new RecordCursor({ reuseMemory: true })
  readonly #reader = new VarintReader()
  #bytes: Uint8Array = new Uint8Array(0)
  #at = 0
  #isTrivial: FilterVerdict | undefined
  /** What is kept, as pairs of start and end in the cursor's bytes; neighbours are one. */
  #runs: number[] = []
  #runBytes = 0
  #kept = 0
  #dropped = 0
  #droppedTombstones = 0
  #maxTimestampMs = -1
  #horizonMs: number | undefined
  #hasNewTombstone = false

  constructor(options: FilterOptions) {
    this.#options = options
  }

  /** What has been counted; setting it back takes back what a piece of work that was given up has counted. */
  get counts(): FilterCounts {
    const { recordsRemoved, tombstonesRemoved, tombstonesDueMs } = this
    return { recordsRemoved, tombstonesRemoved, tombstonesDueMs }
  }

  set counts(counts: FilterCounts) {
    this.recordsRemoved = counts.recordsRemoved
    this.tombstonesRemoved = counts.tombstonesRemoved
    this.tombstonesDueMs = counts.tombstonesDueMs
  }

  /** Starts on the batch at `at`, which must have its checksum. Then {@link step} until it says true, then {@link finish}. */
  begin(bytes: Uint8Array, at: number): void {
    this.#bytes = bytes
    this.#at = at
    this.#runs.length = 0
    this.#runBytes = 0
    this.#kept = 0
    this.#dropped = 0
    this.#droppedTombstones = 0
    this.#maxTimestampMs = -1
    this.#hasNewTombstone = false
    this.#horizonMs = readDeleteHorizon(bytes, at)
    this.#isTrivial = this.#findTrivial()
    if (this.#isTrivial === undefined) this.#reading(() => this.#cursor.reset(bytes, at))
  }

  /** What is clear without a look at the records. */
  #findTrivial(): FilterVerdict | undefined {
    const [bytes, at] = [this.#bytes, this.#at]
    if (isControl(bytes, at)) return 'keep'
    const baseOffset = readBaseOffset(bytes, at) as Offset // The caller has checked the header.
    if (readRecordCount(bytes, at) === 0) return this.#isRemembered(baseOffset) ? 'keep' : 'drop'
    return baseOffset >= this.#options.mapEnd ? 'keep' : undefined
  }

  #isRemembered(baseOffset: Offset): boolean {
    const producerId = readProducerId(this.#bytes, this.#at)
    return producerId >= 0 && this.#options.remembers(producerId, baseOffset)
  }

  /** Looks at up to `most` more records. True when all have been. */
  step(most: number): boolean {
    if (this.#isTrivial !== undefined) return true
    let isDone = false
    this.#reading(() => {
      isDone = this.#walk(most)
    })
    return isDone || this.#isTrivial !== undefined
  }

  /** A batch that cannot be decoded stays as it is, and counts as one that may hold anything. */
  #reading(work: () => void): void {
    try {
      work()
    } catch (error) {
      if (!(error instanceof BrokerError)) throw error
      this.#isTrivial = 'keep'
      this.hasLeftRecords = true
    }
  }

  #walk(most: number): boolean {
    const cursor = this.#cursor
    for (let left = most; left > 0; left--) {
      if (!cursor.next()) return true
      if (this.#isKept(cursor)) this.#keep(cursor)
      else this.#dropped++
    }
    return false
  }

  #isKept(cursor: RecordCursor): boolean {
    const { map, mapEnd, mayDropTombstones, nowMs, deleteRetentionMs } = this.#options
    const { keyStart, keyEnd, offset } = cursor
    if (keyStart < 0 || offset >= mapEnd) return true
    if (map.find(cursor.bytes, keyStart, keyEnd) > offset) return false
    if (cursor.valueStart >= 0 || !mayDropTombstones || this.hasLeftRecords) return true
    if (this.#horizonMs === undefined) {
      this.#hasNewTombstone = deleteRetentionMs < Infinity
      return true
    }
    if (nowMs < this.#horizonMs) {
      this.tombstonesDueMs = Math.max(this.tombstonesDueMs, this.#horizonMs)
      return true
    }
    this.#droppedTombstones++
    return false
  }

  #keep(cursor: RecordCursor): void {
    const runs = this.#runs
    const { recordStart, recordEnd } = cursor
    if (runs.at(-1) === recordStart) runs[runs.length - 1] = recordEnd
    else runs.push(recordStart, recordEnd)
    this.#runBytes += recordEnd - recordStart
    this.#kept++
    if (cursor.timestampMs > this.#maxTimestampMs) this.#maxTimestampMs = cursor.timestampMs
  }

  finish(): FilterVerdict {
    if (this.#isTrivial !== undefined) return this.#isTrivial
    const { nowMs, deleteRetentionMs } = this.#options
    const newHorizonMs = this.#hasNewTombstone ? nowMs + deleteRetentionMs : undefined
    if (this.#dropped === 0 && newHorizonMs === undefined) return 'keep'
    const baseOffset = readBaseOffset(this.#bytes, this.#at) as Offset // As in findTrivial.
    if (this.#kept === 0 && !this.#isRemembered(baseOffset)) {
      this.#count()
      return 'drop'
    }
    const built =
      (newHorizonMs === undefined ? undefined : this.#build(newHorizonMs)) ??
      (this.#dropped === 0 ? undefined : this.#build(undefined))
    if (built === undefined) {
      if (this.#dropped > 0) this.hasLeftRecords = true
      return 'keep'
    }
    this.result = built
    this.#count()
    return 'replace'
  }

  #count(): void {
    this.recordsRemoved += this.#dropped
    this.tombstonesRemoved += this.#droppedTombstones
  }

  /** The batch with the records that are kept; undefined when it would be larger than a batch may be. */
  #build(newHorizonMs: number | undefined): Uint8Array | undefined {
    const [old, at] = [this.#bytes, this.#at]
    const records = newHorizonMs === undefined ? this.#joined() : this.#shifted(newHorizonMs)
    const compression = readCompression(old, at) ?? 'none'
    let attributes = readAttributes(old, at)
    let body = records
    if (compression !== 'none' && this.#kept > 0) {
      body = compress(compression, records)
      // Smaller than a reader would believe: then plain.
      if (records.length > decompressedLimit(body.length)) {
        body = records
        attributes &= ~COMPRESSION_MASK
      }
    } else if (this.#kept === 0) {
      attributes &= ~COMPRESSION_MASK
    }
    const size = BATCH_HEADER_BYTES + body.length
    if (size > this.#options.maxBatchBytes) return undefined
    const batch = Buffer.allocUnsafe(size)
    batch.set(old.subarray(at, at + BATCH_HEADER_BYTES))
    batch.set(body, BATCH_HEADER_BYTES)
    writeI32(batch, lengthAt, size - BATCH_PREFIX_BYTES)
    writeI32(batch, recordCountAt, this.#kept)
    if (newHorizonMs !== undefined) {
      attributes |= DELETE_HORIZON_BIT
      writeI64(batch, baseTimestampAt, newHorizonMs)
      this.tombstonesDueMs = Math.max(this.tombstonesDueMs, newHorizonMs)
    }
    writeI16(batch, attributesAt, attributes)
    // Without records it stays, for the producer's sake, and so does the time that producer state has of it.
    if (this.#kept > 0 && !isAppendTime(old, at)) {
      writeI64(batch, maxTimestampAt, this.#maxTimestampMs)
    }
    stampCrc(batch, 0)
    return batch
  }

  #joined(): Uint8Array {
    const { bytes } = this.#cursor
    const runs = this.#runs
    if (runs.length === 2) return bytes.subarray(runs[0], runs[1])
    const joined = Buffer.allocUnsafe(this.#runBytes)
    let end = 0
    for (let i = 0; i < runs.length; i += 2) {
      const run = bytes.subarray(runs[i], runs[i + 1])
      joined.set(run, end)
      end += run.length
    }
    return joined
  }

  /** The kept records, with their timestamps relative to `baseTimestampMs`. */
  #shifted(baseTimestampMs: number): Uint8Array {
    const { bytes } = this.#cursor
    const reader = this.#reader
    const shiftMs = readBaseTimestamp(this.#bytes, this.#at) - baseTimestampMs
    // A delta grows by less than 9 bytes, and the length in front of it by less than 2.
    const shifted = Buffer.allocUnsafe(this.#runBytes + this.#kept * 12)
    let end = 0
    for (let i = 0; i < this.#runs.length; i += 2) {
      const runEnd = this.#runs[i + 1] ?? 0
      let position = this.#runs[i] ?? 0
      while (position < runEnd) {
        reader.reset(bytes, position, runEnd)
        const length = reader.readVarint()
        const start = reader.position
        reader.position = start + 1 // The attributes of the record.
        const deltaMs = reader.readVarint()
        const rest = bytes.subarray(reader.position, start + length)
        const newDeltaMs = deltaMs + shiftMs
        end = writeVarint(shifted, end, 1 + varintBytes(newDeltaMs) + rest.length)
        shifted[end++] = bytes[start] ?? 0
        end = writeVarint(shifted, end, newDeltaMs)
        shifted.set(rest, end)
        end += rest.length
        position = start + length
      }
    }
    return shifted.subarray(0, end)
  }
}
