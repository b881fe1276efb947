import type { Offset } from '../../common/offset.ts'
import { toOffset } from '../../common/offset.ts'
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
import { ScanWindow } from '../../segment/segment-scan.ts'
import type { EpochHistory } from '../epoch-history.ts'
import { salvaging } from './segment-reader.ts'

/**
 * Steps through all batches of a sealed segment, each with its checksum, and stops at the first that cannot be believed: what is written anew must
 * not vouch for rot. The caller waits for the reads, so that it can do so in its own time.
 */
export class SegmentWalk {
  readonly #window: ScanWindow
  readonly #epochs: EpochHistory
  readonly #maxBatchBytes: number
  readonly #endOffset: Offset
  #size = 0
  /** Where the batch that `step` has found begins, in the file. */
  position = 0
  /** Its base offset; behind the last batch, the end of the segment. */
  offset: Offset
  at = 0

  constructor(options: {
    readonly file: UncachedFile
    readonly sizeBytes: number
    readonly baseOffset: Offset
    readonly endOffset: Offset
    readonly epochs: EpochHistory
    readonly maxBatchBytes: number
  }) {
    this.#window = new ScanWindow(salvaging(options.file), options.sizeBytes)
    this.#epochs = options.epochs
    this.#maxBatchBytes = options.maxBatchBytes
    this.#endOffset = options.endOffset
    this.offset = options.baseOffset
  }

  /** The batch that `step` has found lies here, at `at`. Until the next `load`. */
  get bytes(): Uint8Array {
    return this.#window.bytes
  }

  get epoch(): number {
    return readLeaderEpoch(this.bytes, this.at)
  }

  get batchEnd(): Offset {
    return toOffset(readEndOffset(this.bytes, this.at))
  }

  /** Finds the batch at the present place. `load`: not all of it is in memory. `bad`: nothing that can be believed lies there. */
  step(): 'batch' | 'load' | 'bad' | 'end' {
    if (this.offset >= this.#endOffset) return 'end'
    const window = this.#window
    const have = window.start + window.length - this.position
    const isAtEnd = window.length > 0 && window.start + window.length >= window.end
    const at = window.at(this.position)
    if (this.position < window.start || have < BATCH_HEADER_BYTES) return isAtEnd ? 'bad' : 'load'
    if (!isPlausibleHeader(window.bytes, at, this.#maxBatchBytes)) return 'bad'
    const size = readBatchBytes(window.bytes, at)
    if (have < size) return isAtEnd ? 'bad' : 'load'
    const isOwn =
      readBaseOffset(window.bytes, at) === this.offset &&
      readEndOffset(window.bytes, at) <= this.#endOffset &&
      this.#epochs.allows(readLeaderEpoch(window.bytes, at), this.offset) &&
      isCrcValid(window.bytes, at)
    if (!isOwn) return 'bad'
    this.at = at
    this.#size = size
    return 'batch'
  }

  /** Reads on. Answers false when no more is to be had: then the file ends too early. */
  async load(): Promise<boolean> {
    const window = this.#window
    const have = Math.max(0, window.start + window.length - this.position)
    let wanted = BATCH_HEADER_BYTES
    if (have >= BATCH_HEADER_BYTES && this.position >= window.start) {
      wanted = Math.min(readBatchBytes(window.bytes, window.at(this.position)), this.#maxBatchBytes)
    }
    return (await window.ensure(this.position, wanted)) >= wanted
  }

  /** Goes on behind the batch that `step` has found. */
  advance(): void {
    this.offset = this.batchEnd
    this.position += this.#size
  }
}
