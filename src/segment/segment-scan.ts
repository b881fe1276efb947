import type { UncachedFile } from '../fs/file-system.ts'
import {
  BATCH_HEADER_BYTES,
  isCrcValid,
  isPlausibleHeader,
  readBaseOffset,
  readBatchBytes,
  readEndOffset,
  readLeaderEpoch,
} from '../record/batch-header.ts'
import { MIB } from '../common/units.ts'

/** What a batch must be to be believed, beyond its own checksum (CONTRACT §2.4). Epochs are inclusive bounds. */
export interface ScanRules {
  readonly minEpoch: number
  readonly maxEpoch: number
  readonly maxBatchBytes: number
  /** False: headers only, as a scan of everything must do when both checkpoints are gone. */
  readonly checkCrc: boolean
  /** Stop, well, as soon as the next batch would begin here or later: a newer segment takes over. */
  readonly stopAtOffset?: number | undefined
}

export interface ScanEnd {
  /** One past the last good byte. */
  readonly position: number
  /** One past the last good offset. */
  readonly offset: number
  readonly epoch: number
  /** `end`: no bytes left. `stopped`: at `stopAtOffset`. `bad`: what lies at `position` is no batch that may stand there. */
  readonly reason: 'end' | 'stopped' | 'bad'
  readonly batches: number
}

/** Called for each good batch: `at` is where it lies in `bytes`, which is reused after the call. */
export type OnBatch = (bytes: Uint8Array, at: number, position: number) => void

const BLOCK_BYTES: number = MIB

/** A window of a file that follows a scan forwards. Reuses one buffer; grows it for a batch that is larger. */
export class ScanWindow {
  bytes: Uint8Array = new Uint8Array(0)
  start = 0
  length = 0
  readBytes = 0
  readonly #file: UncachedFile
  readonly #end: number

  /** @param end where the file ends, or where the caller wants it to */
  constructor(file: UncachedFile, end: number) {
    this.#file = file
    this.#end = end
  }

  /** Makes [position, position + wanted) available, as far as the file goes. Returns how many bytes are there. */
  async ensure(position: number, wanted: number): Promise<number> {
    const have = this.start + this.length - position
    if (position >= this.start && (have >= wanted || this.start + this.length >= this.#end))
      return have
    const size = Math.min(Math.max(wanted, BLOCK_BYTES), Math.max(0, this.#end - position))
    if (this.bytes.length < size) this.bytes = Buffer.allocUnsafe(size)
    this.start = position
    this.length = await this.#file.read(this.bytes.subarray(0, size), position)
    this.readBytes += this.length
    return this.length
  }

  /** Where `position` lies in `bytes`. */
  at(position: number): number {
    return position - this.start
  }
}

/**
 * Walks the batches of a log file from `position`, where the batch at `offset` should begin, to the first that may not stand there.
 * Reads each byte once.
 */
export async function scanBatches(
  window: ScanWindow,
  from: { readonly position: number; readonly offset: number },
  rules: ScanRules,
  onBatch: OnBatch,
): Promise<ScanEnd> {
  let { position, offset } = from
  let epoch = rules.minEpoch
  let batches = 0
  for (;;) {
    const end = { position, offset, epoch, batches }
    if (rules.stopAtOffset !== undefined && offset >= rules.stopAtOffset) {
      return { ...end, reason: 'stopped' }
    }
    const size = await loadBatch(window, position, rules.maxBatchBytes)
    if (size === 0) return { ...end, reason: 'end' }
    if (size < 0) return { ...end, reason: 'bad' }
    const at = window.at(position)
    const batchEpoch = readLeaderEpoch(window.bytes, at)
    if (
      readBaseOffset(window.bytes, at) !== offset ||
      batchEpoch < epoch ||
      batchEpoch > rules.maxEpoch ||
      (rules.checkCrc && !isCrcValid(window.bytes, at))
    ) {
      return { ...end, reason: 'bad' }
    }
    onBatch(window.bytes, at, position)
    epoch = batchEpoch
    offset = readEndOffset(window.bytes, at)
    position += size
    batches++
  }
}

/** Bytes of the whole batch at `position`, now in the window; 0 at the end of the file; -1 when none can begin there. */
async function loadBatch(
  window: ScanWindow,
  position: number,
  maxBatchBytes: number,
): Promise<number> {
  let have = await window.ensure(position, BATCH_HEADER_BYTES)
  if (have <= 0) return 0
  if (have < BATCH_HEADER_BYTES) return -1
  if (!isPlausibleHeader(window.bytes, window.at(position), maxBatchBytes)) return -1
  const size = readBatchBytes(window.bytes, window.at(position))
  if (have < size) have = await window.ensure(position, size)
  return have < size ? -1 : size
}

/** A good batch after a damaged place. */
export interface Resync {
  readonly position: number
  readonly offset: number
  readonly epoch: number
}

/**
 * Finds where good data goes on after the damage at `from`. Tried in this order, so that a batch forged inside a payload is the last to be
 * believed: the length that the damaged batch itself states; the positions in `hints` (the index); then every byte.
 * Offsets from `from.offset` up to `beforeOffset` are plausible. Undefined when nothing good follows.
 */
export async function findResync(
  window: ScanWindow,
  from: { readonly position: number; readonly offset: number },
  rules: ScanRules,
  beforeOffset: number,
  hints: Iterable<number>,
): Promise<Resync | undefined> {
  const isGood = async (position: number, minOffset: number): Promise<Resync | undefined> => {
    const size = await loadBatch(window, position, rules.maxBatchBytes)
    if (size <= 0) return undefined
    const at = window.at(position)
    const offset = readBaseOffset(window.bytes, at)
    const epoch = readLeaderEpoch(window.bytes, at)
    if (offset < minOffset || offset >= beforeOffset) return undefined
    if (epoch < rules.minEpoch || epoch > rules.maxEpoch) return undefined
    return isCrcValid(window.bytes, at) ? { position, offset, epoch } : undefined
  }
  const own = await loadBatch(window, from.position, rules.maxBatchBytes)
  if (own > 0) {
    const next = await isGood(from.position + own, from.offset + 1)
    if (next !== undefined) return next
  }
  for (const position of hints) {
    if (position <= from.position) continue
    const next = await isGood(position, from.offset)
    if (next !== undefined) return next
  }
  let position = from.position
  for (;;) {
    const have = await window.ensure(position, BATCH_HEADER_BYTES)
    if (have < BATCH_HEADER_BYTES) return undefined
    // Only the magic byte is looked at for most positions: about 1 ns each.
    const last = position + have - BATCH_HEADER_BYTES
    let candidate = position
    while (candidate <= last) {
      const at = window.at(candidate)
      if (window.bytes[at + 16] === 2 && isPlausibleHeader(window.bytes, at, rules.maxBatchBytes)) {
        const next = await isGood(candidate, from.offset)
        if (next !== undefined) return next
        if (window.start > candidate || window.start + window.length < last + BATCH_HEADER_BYTES)
          break // It moved.
      }
      candidate++
    }
    position = candidate > last ? last + 1 : candidate + 1
  }
}
