import { crc32c } from '../../bytes/crc32c.ts'
import type { Offset } from '../../common/offset.ts'
import { MIB } from '../../common/units.ts'
import type { File, FileSystem } from '../../fs/file-system.ts'
import {
  crcAt,
  readBaseOffset,
  readBatchBytes,
  readCrc,
  readNewestTimestamp,
  readRecordCount,
} from '../../record/batch-header.ts'
import { combineCrc32c } from '../../segment/crc-combine.ts'
import { OffsetIndex } from '../../segment/offset-index.ts'
import { TimeIndex } from '../../segment/time-index.ts'
import type { SegmentIndexes } from './sealed-files.ts'
import type { SealedFacts } from './segment-list.ts'

const BUFFER_BYTES: number = MIB

/** A flush of little takes little time, so that those of the logs that wait behind it on the same disk do not wait long. */
const FLUSH_EVERY_BYTES: number = 8 * MIB

const CRC_COVERS_FROM: number = crcAt + 4

/** Writes a whole new segment, beside the log: its file, and the indexes and checksum that its seal will need. */
export class SegmentWriter {
  readonly baseOffset: Offset
  readonly path: string
  readonly #file: File
  readonly #intervalBytes: number
  readonly #buffer: Buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES)
  #buffered = 0
  #writtenBytes = 0
  #flushedBytes = 0
  #crc = 0
  #records = 0
  #lastIndexed = 0
  #maxTimestampMs = -1
  #maxTimestampOffset: Offset
  #isOpen = true
  readonly #offsets: OffsetIndex
  readonly #times: TimeIndex

  /** @param path must be free: something left from before is removed */
  static async create(
    fs: FileSystem,
    path: string,
    baseOffset: Offset,
    intervalBytes: number,
  ): Promise<SegmentWriter> {
    if ((await fs.findStat(path)) !== undefined) await fs.remove(path)
    return new SegmentWriter(await fs.open(path, 'create'), path, baseOffset, intervalBytes)
  }

  private constructor(file: File, path: string, baseOffset: Offset, intervalBytes: number) {
    this.#file = file
    this.path = path
    this.baseOffset = baseOffset
    this.#intervalBytes = intervalBytes
    this.#maxTimestampOffset = baseOffset
    this.#offsets = new OffsetIndex(baseOffset)
    this.#times = new TimeIndex(baseOffset)
  }

  get sizeBytes(): number {
    return this.#writtenBytes + this.#buffered
  }

  get indexBytes(): number {
    return this.#offsets.sizeBytes
  }

  get indexes(): SegmentIndexes {
    return { offsets: this.#offsets, times: this.#times }
  }

  get facts(): SealedFacts {
    return {
      sizeBytes: this.sizeBytes,
      maxTimestampMs: this.#maxTimestampMs,
      records: this.#records,
    }
  }

  get logCrc(): number {
    return this.#crc
  }

  /**
   * Adds a batch: its base offset is where the one before it ends. Copies it. A promise has to be awaited before the next call; without
   * one there was room.
   */
  add(bytes: Uint8Array, at: number): Promise<void> | undefined {
    const size = readBatchBytes(bytes, at)
    this.#note(bytes, at, size)
    const batch = bytes.subarray(at, at + size)
    if (this.#buffered + size > BUFFER_BYTES) return this.#makeRoom(batch)
    this.#buffer.set(batch, this.#buffered)
    this.#buffered += size
    return undefined
  }

  #note(bytes: Uint8Array, at: number, size: number): void {
    const baseOffset = readBaseOffset(bytes, at) as Offset // Checked when it was read, or stamped by us.
    const timestampMs = readNewestTimestamp(bytes, at)
    const position = this.sizeBytes
    if (timestampMs > this.#maxTimestampMs) {
      this.#maxTimestampMs = timestampMs
      this.#maxTimestampOffset = baseOffset
    }
    if (position - this.#lastIndexed >= this.#intervalBytes) {
      this.#offsets.append(baseOffset, position)
      if (this.#maxTimestampMs >= 0) {
        this.#times.maybeAppend(this.#maxTimestampMs, this.#maxTimestampOffset)
      }
      this.#lastIndexed = position
    }
    this.#records += readRecordCount(bytes, at)
    // As in an active segment: the batch's own checksum saves the pass over it.
    const prefix = crc32c(bytes, at, at + CRC_COVERS_FROM, this.#crc)
    this.#crc = combineCrc32c(prefix, readCrc(bytes, at), size - CRC_COVERS_FROM)
  }

  async #makeRoom(batch: Uint8Array): Promise<void> {
    await this.#write(this.#buffer.subarray(0, this.#buffered))
    this.#buffered = 0
    if (batch.length > BUFFER_BYTES) {
      await this.#write(batch)
      return
    }
    this.#buffer.set(batch)
    this.#buffered = batch.length
  }

  async #write(bytes: Uint8Array): Promise<void> {
    if (bytes.length === 0) return
    await this.#file.write([bytes], this.#writtenBytes)
    this.#writtenBytes += bytes.length
    if (this.#writtenBytes - this.#flushedBytes < FLUSH_EVERY_BYTES) return
    await this.#file.sync()
    this.#flushedBytes = this.#writtenBytes
  }

  /** Writes what is left and flushes: durable but for its name. */
  async finish(): Promise<void> {
    await this.#write(this.#buffer.subarray(0, this.#buffered))
    this.#buffered = 0
    if (this.#maxTimestampMs >= 0) {
      this.#times.maybeAppend(this.#maxTimestampMs, this.#maxTimestampOffset)
    }
    await this.#file.sync()
    await this.close()
  }

  async close(): Promise<void> {
    if (!this.#isOpen) return
    this.#isOpen = false
    await this.#file.close()
  }
}
