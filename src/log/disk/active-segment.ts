import type { Offset } from '../../common/offset.ts'
import { findSystemCode } from '../../common/errors.ts'
import { MIB } from '../../common/units.ts'
import type { File, FileSystem } from '../../fs/file-system.ts'
import { SegmentFile } from './sealed-files.ts'
import { readWhole } from '../../fs/file-system.ts'
import {
  crcAt,
  readBaseOffset,
  readBatchBytes,
  readCrc,
  readNewestTimestamp,
} from '../../record/batch-header.ts'
import { crc32c } from '../../bytes/crc32c.ts'
import { combineCrc32c } from '../../segment/crc-combine.ts'
import { OFFSET_INDEX_ENTRY_BYTES, OffsetIndex } from '../../segment/offset-index.ts'
import { segmentFileName } from '../../segment/segment-names.ts'
import { TIME_INDEX_ENTRY_BYTES, TimeIndex } from '../../segment/time-index.ts'

const CRC_COVERS_FROM: number = crcAt + 4

/** A hole in the offset index that is larger than this is worth a rebuild. */
const LONGEST_GAP_BYTES: number = 16 * MIB

/** Where an active segment stands: what a checkpoint or a recovery knows of it. */
export interface ActiveState {
  readonly position: number
  readonly lastBatchPosition: number
  /** CRC-32C of the file up to `position`. */
  readonly crc: number
  /** Wall clock at its first append; 0 while it is empty. */
  readonly sinceMs: number
  readonly maxTimestampMs: number
}

export const EMPTY_ACTIVE_STATE: ActiveState = {
  position: 0,
  lastBatchPosition: -1,
  crc: 0,
  sinceMs: 0,
  maxTimestampMs: -1,
}

/**
 * The one segment of a log that is being written: its file, its indexes in memory, and the running checksum of the file. The part of the
 * indexes that lies on the disk is read when it is first needed, which is seldom: appends only add, and the tail is served from memory.
 */
export class ActiveSegment {
  readonly baseOffset: Offset
  readonly file: File
  /** By which readers open it, now and when it is sealed: a descriptor of their own. */
  readonly shared: SegmentFile
  /** Set when the files beside the log are being written for good. */
  isSealed = false
  readonly #fs: FileSystem
  readonly #directory: string
  #position: number
  #lastBatchPosition: number
  #crc: number
  #sinceMs: number
  #maxTimestampMs: number
  #maxTimestampOffset: Offset
  #lastIndexedPosition: number
  /** What the index files on the disk may speak of: a crash can have left entries for a tail that is gone. */
  readonly #openedAt: { readonly position: number; readonly endOffset: Offset }
  #index: OffsetIndex
  #timeIndex: TimeIndex
  /** Entries that the files hold already. Until the files have been read, what is in memory begins where they end. */
  #indexOnDisk = 0
  #timeIndexOnDisk = 0
  /** The files hold those entries and nothing behind them. Not known of what an earlier run has left. */
  #areFilesExact = false
  #loaded: Promise<void> | undefined
  #isLoaded: boolean
  /** False when the files on the disk were damaged or short, so that a rebuild pays. */
  #sound = true

  constructor(options: {
    readonly fs: FileSystem
    readonly directory: string
    readonly baseOffset: Offset
    readonly file: File
    readonly state: ActiveState
    /** One past the last offset that lies below `state.position`. */
    readonly endOffset: Offset
  }) {
    this.#fs = options.fs
    this.#directory = options.directory
    this.baseOffset = options.baseOffset
    this.file = options.file
    const path = `${options.directory}/${segmentFileName(options.baseOffset, 'log')}`
    this.shared = new SegmentFile(path)
    const { state } = options
    this.#position = state.position
    this.#lastBatchPosition = state.lastBatchPosition
    this.#crc = state.crc
    this.#sinceMs = state.sinceMs
    this.#maxTimestampMs = state.maxTimestampMs
    this.#maxTimestampOffset = options.baseOffset
    this.#lastIndexedPosition = state.position
    this.#openedAt = { position: state.position, endOffset: options.endOffset }
    this.#index = new OffsetIndex(options.baseOffset)
    this.#timeIndex = new TimeIndex(options.baseOffset)
    this.#isLoaded = state.position === 0
  }

  /** Bytes of the file that have been written in full. */
  get position(): number {
    return this.#position
  }

  get maxTimestampMs(): number {
    return this.#maxTimestampMs
  }

  get sinceMs(): number {
    return this.#sinceMs
  }

  /** What the offset index's file will hold once everything is in it, at least: for rolling. */
  get indexBytes(): number {
    return this.#index.sizeBytes
  }

  get state(): ActiveState {
    return {
      position: this.#position,
      lastBatchPosition: this.#lastBatchPosition,
      crc: this.#crc,
      sinceMs: this.#sinceMs,
      maxTimestampMs: this.#maxTimestampMs,
    }
  }

  /** Takes note of a batch that now lies at the end of the file. */
  add(bytes: Uint8Array, at: number, indexIntervalBytes: number, nowMs: number): void {
    const size = readBatchBytes(bytes, at)
    const baseOffset = readBaseOffset(bytes, at) as Offset // Stamped by the gate, or checked by the scan.
    const maxTimestampMs = readNewestTimestamp(bytes, at)
    const position = this.#position
    if (position === 0) this.#sinceMs = nowMs
    if (maxTimestampMs > this.#maxTimestampMs) {
      this.#maxTimestampMs = maxTimestampMs
      this.#maxTimestampOffset = baseOffset
    }
    if (position - this.#lastIndexedPosition >= indexIntervalBytes) {
      this.#index.append(baseOffset, position)
      if (this.#maxTimestampMs >= 0) {
        this.#timeIndex.maybeAppend(this.#maxTimestampMs, this.#maxTimestampOffset)
      }
      this.#lastIndexedPosition = position
    }
    // The stored checksum covers all but the first 21 bytes, so the file's own costs no second pass over the batch.
    const prefix = crc32c(bytes, at, at + CRC_COVERS_FROM, this.#crc)
    this.#crc = combineCrc32c(prefix, readCrc(bytes, at), size - CRC_COVERS_FROM)
    this.#lastBatchPosition = position
    this.#position = position + size
  }

  /** The indexes, whole. Reads the files the first time. */
  async indexes(): Promise<{ readonly offsets: OffsetIndex; readonly times: TimeIndex }> {
    if (!this.#isLoaded) {
      // A failure, for want of a descriptor say, is not for ever.
      this.#loaded ??= this.#load().finally(() => {
        this.#loaded = undefined
      })
      await this.#loaded
    }
    return { offsets: this.#index, times: this.#timeIndex }
  }

  /** False when what lay on the disk was damaged: lookups work, but may have far to scan. Known after `indexes()`. */
  get indexesSound(): boolean {
    return this.#sound
  }

  async #load(): Promise<void> {
    const offsetBytes = await this.#readIfThere('index')
    const timeBytes = await this.#readIfThere('timeindex')
    // What was added in the meantime, and so begins where the files end, goes on top of what they hold.
    const [addedOffsets, addedTimes] = [this.#index, this.#timeIndex]
    const { position, endOffset } = this.#openedAt
    const offsets = OffsetIndex.decode(this.baseOffset, offsetBytes, position, endOffset)
    const times = TimeIndex.decode(this.baseOffset, timeBytes, endOffset)
    this.#indexOnDisk = offsets.index.count
    this.#timeIndexOnDisk = times.index.count
    for (let i = 0; i < addedOffsets.count; i++) {
      offsets.index.append(addedOffsets.offsetAt(i), addedOffsets.positionAt(i))
    }
    for (let i = 0; i < addedTimes.count; i++) {
      times.index.maybeAppend(addedTimes.timestampAt(i), addedTimes.offsetAt(i))
    }
    const lastOnDisk = this.#indexOnDisk > 0 ? offsets.index.positionAt(this.#indexOnDisk - 1) : 0
    this.#sound = position - lastOnDisk < LONGEST_GAP_BYTES
    this.#index = offsets.index
    this.#timeIndex = times.index
    this.#isLoaded = true
  }

  async #readIfThere(kind: 'index' | 'timeindex'): Promise<Uint8Array> {
    try {
      const path = `${this.#directory}/${segmentFileName(this.baseOffset, kind)}`
      return await readWhole(this.#fs, path)
    } catch (error) {
      // An index is a cache: absent or unreadable, it is as good as empty, and gets rebuilt.
      if (findSystemCode(error) === 'ENOENT' || findSystemCode(error) === 'EIO') {
        return new Uint8Array(0)
      }
      throw error
    }
  }

  /** True once `indexes()` would not read. */
  get indexesLoaded(): boolean {
    return this.#isLoaded
  }

  /** Notes the greatest timestamp of all, which a sealed segment's time index ends with. */
  finishTimeIndex(): void {
    if (this.#maxTimestampMs >= 0) {
      this.#timeIndex.maybeAppend(this.#maxTimestampMs, this.#maxTimestampOffset)
    }
  }

  /** Puts rebuilt indexes in place of damaged ones. They must reach at least as far as the file did when the rebuild began. */
  replaceIndexes(offsets: OffsetIndex, times: TimeIndex): void {
    const last = offsets.count > 0 ? offsets.positionAt(offsets.count - 1) : -1
    for (let i = this.#index.findAfterPosition(last); i >= 0 && i < this.#index.count; i++) {
      // One that was damaged on the disk may not fit between the new ones.
      offsets.maybeAppend(this.#index.offsetAt(i), this.#index.positionAt(i))
    }
    for (let i = 0; i < this.#timeIndex.count; i++) {
      times.maybeAppend(this.#timeIndex.timestampAt(i), this.#timeIndex.offsetAt(i))
    }
    this.#index = offsets
    this.#timeIndex = times
    this.#indexOnDisk = 0
    this.#timeIndexOnDisk = 0
    this.#areFilesExact = false
    this.#sound = true
    this.#isLoaded = true
  }

  /** Adds to the files what they lack of what lies below `position`. Not synced: indexes are caches. */
  async writeIndexes(): Promise<void> {
    if (this.isSealed) return
    if (!this.#isLoaded && this.#index.count === 0) return
    await this.indexes()
    const isNothingNew =
      this.#index.count === this.#indexOnDisk && this.#timeIndex.count === this.#timeIndexOnDisk
    if (isNothingNew && this.#areFilesExact) return
    await this.#extend('index', this.#indexOnDisk * OFFSET_INDEX_ENTRY_BYTES, () => {
      const from = this.#indexOnDisk
      this.#indexOnDisk = this.#index.count
      return this.#index.encode(from)
    })
    await this.#extend('timeindex', this.#timeIndexOnDisk * TIME_INDEX_ENTRY_BYTES, () => {
      const from = this.#timeIndexOnDisk
      this.#timeIndexOnDisk = this.#timeIndex.count
      return this.#timeIndex.encode(from)
    })
    this.#areFilesExact = true
  }

  async #extend(
    kind: 'index' | 'timeindex',
    validBytes: number,
    takeNew: () => Buffer,
  ): Promise<void> {
    const path = `${this.#directory}/${segmentFileName(this.baseOffset, kind)}`
    const exists = (await this.#fs.findStat(path)) !== undefined
    if (!exists && (kind === 'index' ? this.#index : this.#timeIndex).count === 0) return
    const file = await this.#fs.open(path, exists ? 'write' : 'create')
    try {
      if ((await file.size()) > validBytes) await file.truncate(validBytes)
      const bytes = takeNew()
      if (bytes.length > 0) await file.write([bytes], validBytes)
    } finally {
      await file.close()
    }
  }
}
