import { findSystemCode, BrokerError } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import type { Offset } from '../../common/offset.ts'
import { KIB } from '../../common/units.ts'
import type { UncachedFile } from '../../fs/file-system.ts'
import {
  BATCH_HEADER_BYTES,
  isCrcValid,
  isPlausibleHeader,
  readBaseOffset,
  readBatchBytes,
  readEndOffset,
  readLeaderEpoch,
} from '../../record/batch-header.ts'
import type { DamagedRange, DamageMap } from '../../segment/damage-map.ts'
import { ScanWindow, findResync } from '../../segment/segment-scan.ts'
import type { EpochHistory } from '../epoch-history.ts'
import type { SegmentIndexes } from './sealed-files.ts'

/** A segment as the reader sees it, active or sealed. */
export interface SegmentView {
  readonly baseOffset: Offset
  /** One past the last offset that lies in it now. */
  readonly endOffset: Offset
  readonly sizeBytes: number
  use<T>(work: (file: UncachedFile) => Promise<T>): Promise<T>
  indexes(): Promise<SegmentIndexes>
  /** The index led to a place where no such batch begins: have it rebuilt. */
  distrustIndexes(): void
}

export interface SegmentChunk {
  readonly bytes: Uint8Array
  readonly nextOffset: Offset
}

const SMALLEST_READ_BYTES: number = 4 * KIB
const SECTOR_BYTES = 4096

/**
 * Reads whole batches out of segments and believes nothing: base offsets must follow on each other, leader epochs must be those that the log
 * remembers, checksums must hold. What fails is damage: it is noted, answered as SEGMENT_QUARANTINED, and never served (CONTRACT §2.3).
 */
export class SegmentReader {
  readonly #name: string
  readonly #epochs: EpochHistory
  readonly #damage: DamageMap
  readonly #maxBatchBytes: number
  readonly #onDamage: (range: DamagedRange) => void

  constructor(options: {
    /** For messages: `orders-3`. */
    readonly name: string
    readonly epochs: EpochHistory
    readonly damage: DamageMap
    readonly maxBatchBytes: number
    readonly onDamage: (range: DamagedRange) => void
  }) {
    this.#name = options.name
    this.#epochs = options.epochs
    this.#damage = options.damage
    this.#maxBatchBytes = options.maxBatchBytes
    this.#onDamage = options.onDamage
  }

  /** @throws BrokerError SEGMENT_QUARANTINED when `offset` lies in a range that is known to be damaged */
  checkReadable(offset: Offset): void {
    const range = this.#damage.find(offset)
    if (range !== undefined) throw this.#quarantined(offset, range)
  }

  /**
   * Whole batches from the one that holds `from` on, none of them past `end`; about `maxBytes`, at least one. `from` lies in the segment.
   * Undefined when the first batch reaches past `end`.
   * @throws BrokerError SEGMENT_QUARANTINED
   */
  async read(
    view: SegmentView,
    from: Offset,
    end: Offset,
    maxBytes: number,
  ): Promise<SegmentChunk | undefined> {
    this.checkReadable(from)
    const start = await this.#findStart(view, from)
    return await view.use(async (file) => {
      const walk = new BatchWalk(salvaging(file), view, start)
      return await this.#collect(walk, view, from, end, maxBytes)
    })
  }

  async #findStart(view: SegmentView, from: Offset): Promise<{ position: number; offset: Offset }> {
    let start = { position: 0, offset: view.baseOffset }
    const { offsets } = await view.indexes()
    const entry = offsets.findAtOrBelow(from)
    if (entry >= 0) {
      start = { position: offsets.positionAt(entry), offset: offsets.offsetAt(entry) }
    }
    const damaged = this.#damage.findLastEndingAtOrBelow(view.baseOffset, from)
    if (damaged !== undefined && damaged.end > start.offset) {
      start = { position: damaged.endPosition, offset: damaged.end }
    }
    return start
  }

  async #collect(
    walk: BatchWalk,
    view: SegmentView,
    from: Offset,
    end: Offset,
    maxBytes: number,
  ): Promise<SegmentChunk | undefined> {
    let wanted = Math.max(maxBytes, SMALLEST_READ_BYTES)
    for (;;) {
      const have = await walk.load(wanted)
      if (have === 0 && walk.offset >= view.endOffset) return undefined
      const step = this.#takeFrom(walk, from, end, maxBytes)
      if (step.kind === 'chunk') return step.chunk
      if (step.kind === 'more') {
        wanted = Math.max(step.bytes, maxBytes)
        continue
      }
      if (walk.isAtStart && walk.position > 0 && this.#damage.ranges.length === 0) {
        // Nothing fits where the index sent us: look from the segment's beginning, and have the index made anew.
        view.distrustIndexes()
        walk.restart(view.baseOffset)
        continue
      }
      const range = await this.#noteDamage(walk, view)
      if (range.end > from) throw this.#quarantined(from, range)
      walk.jump(range.endPosition, range.end)
    }
  }

  /** Walks through what is loaded. Believes a batch that is to be served only with its checksum. */
  #takeFrom(
    walk: BatchWalk,
    from: Offset,
    end: Offset,
    maxBytes: number,
  ):
    | { readonly kind: 'chunk'; readonly chunk: SegmentChunk | undefined }
    | { readonly kind: 'more'; readonly bytes: number }
    | { readonly kind: 'bad' } {
    const { bytes } = walk
    let firstAt = -1
    const chunk = (): SegmentChunk => ({
      bytes: bytes.subarray(firstAt, walk.at),
      nextOffset: walk.offset,
    })
    for (;;) {
      const left = bytes.length - walk.at
      if (left < BATCH_HEADER_BYTES || left < readBatchBytes(bytes, walk.at)) {
        if (firstAt >= 0) return { kind: 'chunk', chunk: chunk() }
        const needed =
          left < BATCH_HEADER_BYTES ? BATCH_HEADER_BYTES : readBatchBytes(bytes, walk.at)
        const isThere = needed <= walk.bytesLeft && needed <= this.#maxBatchBytes
        return isThere ? { kind: 'more', bytes: needed } : { kind: 'bad' }
      }
      if (!this.#fits(bytes, walk)) {
        return firstAt >= 0 ? { kind: 'chunk', chunk: chunk() } : { kind: 'bad' }
      }
      const size = readBatchBytes(bytes, walk.at)
      const next = toOffset(readEndOffset(bytes, walk.at))
      if (next > end) return { kind: 'chunk', chunk: firstAt >= 0 ? chunk() : undefined }
      if (next > from) {
        if (firstAt >= 0 && walk.at + size - firstAt > maxBytes) {
          return { kind: 'chunk', chunk: chunk() }
        }
        if (!isCrcValid(bytes, walk.at)) {
          return firstAt >= 0 ? { kind: 'chunk', chunk: chunk() } : { kind: 'bad' }
        }
        if (firstAt < 0) firstAt = walk.at
      }
      walk.advance(size, next)
    }
  }

  #fits(bytes: Uint8Array, walk: BatchWalk): boolean {
    return (
      isPlausibleHeader(bytes, walk.at, this.#maxBatchBytes) &&
      readBaseOffset(bytes, walk.at) === walk.offset &&
      this.#epochs.allows(readLeaderEpoch(bytes, walk.at), walk.offset)
    )
  }

  async #noteDamage(walk: BatchWalk, view: SegmentView): Promise<DamagedRange> {
    const { offsets } = await view.indexes()
    const hints: number[] = []
    const first = offsets.findAfterPosition(walk.position)
    for (let i = first; i >= 0 && i < offsets.count; i++) hints.push(offsets.positionAt(i))
    const rules = {
      minEpoch: 0,
      maxEpoch: this.#epochs.latest,
      maxBatchBytes: this.#maxBatchBytes,
      checkCrc: true,
    }
    const window = new ScanWindow(walk.file, view.sizeBytes)
    const here = { position: walk.position, offset: walk.offset }
    const next = await findResync(window, here, rules, view.endOffset, hints)
    const isOwn = next !== undefined && next.offset > walk.offset
    const range: DamagedRange = {
      start: walk.offset,
      end: isOwn ? toOffset(next.offset) : view.endOffset,
      segmentBase: view.baseOffset,
      endPosition: isOwn ? next.position : view.sizeBytes,
    }
    this.#damage.add(range)
    this.#onDamage(range)
    return range
  }

  #quarantined(offset: Offset, range: DamagedRange): BrokerError {
    return new BrokerError(
      'SEGMENT_QUARANTINED',
      `offset ${offset} of ${this.#name} cannot be read: the disk has damaged [${range.start}, ${range.end}); good data goes on at ${range.end}`,
      { offset, damagedFrom: range.start, nextOffset: range.end },
    )
  }
}

/** A place in a segment's file, and the bytes that have been read from there. */
class BatchWalk {
  readonly file: UncachedFile
  /** The loaded bytes: a fresh buffer each time, since it is handed out. */
  bytes: Uint8Array = new Uint8Array(0)
  at = 0
  offset: Offset
  #loadedFrom: number
  #end: number
  isAtStart = true

  constructor(file: UncachedFile, view: SegmentView, start: { position: number; offset: Offset }) {
    this.file = file
    this.offset = start.offset
    this.#loadedFrom = start.position
    this.#end = view.sizeBytes
  }

  get position(): number {
    return this.#loadedFrom + this.at
  }

  /** Bytes of the file from here on. */
  get bytesLeft(): number {
    return this.#end - this.position
  }

  async load(wanted: number): Promise<number> {
    const position = this.position
    const size = Math.max(0, Math.min(wanted, this.#end - position))
    const buffer = Buffer.allocUnsafe(size)
    const have = size === 0 ? 0 : await this.file.read(buffer, position)
    if (have < size) this.#end = position + have // Someone has cut the file under us.
    this.bytes = buffer.subarray(0, have)
    this.#loadedFrom = position
    this.at = 0
    return have
  }

  advance(size: number, next: Offset): void {
    this.at += size
    this.offset = next
    this.isAtStart = false
  }

  restart(baseOffset: Offset): void {
    this.jump(0, baseOffset)
  }

  jump(position: number, offset: Offset): void {
    this.#loadedFrom = position
    this.at = 0
    this.offset = offset
    this.isAtStart = false
  }
}

/** Reads around what the device cannot read: those sectors come as zeros, which no checksum forgives. */
export function salvaging(file: UncachedFile): UncachedFile {
  return {
    close: () => file.close(),
    async read(into, position) {
      try {
        return await file.read(into, position)
      } catch (error) {
        if (findSystemCode(error) !== 'EIO') throw error
      }
      let done = 0
      while (done < into.length) {
        const toBoundary = SECTOR_BYTES - ((position + done) % SECTOR_BYTES)
        const piece = into.subarray(done, done + toBoundary)
        try {
          const have = await file.read(piece, position + done)
          done += have
          if (have < piece.length) return done
        } catch (error) {
          if (findSystemCode(error) !== 'EIO') throw error
          piece.fill(0)
          done += piece.length
        }
      }
      return done
    },
  }
}
