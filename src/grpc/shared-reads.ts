import type { Offset } from '../common/offset.ts'
import type { FetchResult } from '../log/partition-log.ts'
import type { Partition } from '../topic/partition.ts'

interface LastRead {
  readonly from: Offset
  readonly maxBytes: number
  readonly visibleEnd: Offset
  readonly result: Promise<FetchResult>
}

/** Partitions whose last read is kept: each may pin a message's worth of bytes. */
const MOST_KEPT = 64

/**
 * The last read of each partition, for those who ask the same right after: when a thousand readers tail one partition they all wake at
 * one append and want the same bytes, and one look into the log serves them.
 */
export class SharedReads {
  /** In order of use, the oldest first. */
  readonly #last = new Map<Partition, LastRead>()

  read(partition: Partition, from: Offset, maxBytes: number): Promise<FetchResult> {
    const { visibleEnd } = partition
    const last = this.#last.get(partition)
    if (
      last !== undefined &&
      last.from === from &&
      last.visibleEnd === visibleEnd &&
      last.maxBytes === maxBytes &&
      partition.failure === undefined &&
      partition.logStartOffset <= from
    ) {
      return last.result
    }
    const result = partition.read(from, maxBytes)
    this.#last.delete(partition)
    this.#last.set(partition, { from, maxBytes, visibleEnd, result })
    if (this.#last.size > MOST_KEPT) {
      for (const oldest of this.#last.keys()) {
        this.#last.delete(oldest)
        break
      }
    }
    // A failure is for those who asked, who handle it; the next to come looks again.
    result.catch(() => {
      if (this.#last.get(partition)?.result === result) this.#last.delete(partition)
    })
    return result
  }
}
