import { invariant } from '../common/assert.ts'

const PAGE_BYTES = 4096

/**
 * The content of a simulated file: sparse, growing, and cheap to copy. A copy shares all pages with its original; whichever of the two
 * changes a page first takes its own. So a crash image costs one reference per page, not one byte per byte.
 */
export class PagedBytes {
  /** A page that was never written is absent and reads as zeros. Bytes past the size are always zero. */
  #pages: (Uint8Array | undefined)[] = []
  /** Pages that nobody else refers to. */
  #owned = new Set<number>()
  #size = 0

  get size(): number {
    return this.#size
  }

  /** Bytes copied into `into` from `position` on; less than its length only at the end. */
  read(into: Uint8Array, position: number): number {
    const end = Math.min(position + into.length, this.#size)
    let at = position
    while (at < end) {
      const index = Math.floor(at / PAGE_BYTES)
      const start = at - index * PAGE_BYTES
      const count = Math.min(PAGE_BYTES - start, end - at)
      const page = this.#pages[index]
      const target = at - position
      if (page === undefined) into.fill(0, target, target + count)
      else into.set(count === PAGE_BYTES ? page : page.subarray(start, start + count), target)
      at += count
    }
    return Math.max(0, end - position)
  }

  /** Overwrites from `position` on; grows, with zeros in a gap, when that is past the end. */
  write(bytes: Uint8Array, position: number): void {
    let done = 0
    while (done < bytes.length) {
      const at = position + done
      const index = Math.floor(at / PAGE_BYTES)
      const start = at - index * PAGE_BYTES
      const count = Math.min(PAGE_BYTES - start, bytes.length - done)
      this.#ownPage(index).set(
        count === bytes.length ? bytes : bytes.subarray(done, done + count),
        start,
      )
      done += count
    }
    if (bytes.length > 0) this.#size = Math.max(this.#size, position + bytes.length)
  }

  /** Cuts, or extends with zeros. */
  truncate(size: number): void {
    invariant(Number.isSafeInteger(size) && size >= 0, `a file cannot have ${size} bytes`)
    if (size < this.#size) {
      const keep = Math.ceil(size / PAGE_BYTES)
      if (this.#pages.length > keep) this.#pages.length = keep
      for (const index of this.#owned) if (index >= keep) this.#owned.delete(index)
      const tail = size % PAGE_BYTES
      if (tail > 0 && this.#pages[keep - 1] !== undefined) this.#ownPage(keep - 1).fill(0, tail)
    }
    this.#size = size
  }

  /** An independent copy. O(pages), without copying any. */
  clone(): PagedBytes {
    const copy = new PagedBytes()
    copy.#pages = this.#pages.slice()
    copy.#size = this.#size
    // From here on both have to copy a page before changing it.
    this.#owned.clear()
    return copy
  }

  toBuffer(): Buffer {
    const all = Buffer.alloc(this.#size)
    this.read(all, 0)
    return all
  }

  #ownPage(index: number): Uint8Array {
    const page = this.#pages[index]
    if (page !== undefined && this.#owned.has(index)) return page
    const own = page === undefined ? new Uint8Array(PAGE_BYTES) : page.slice()
    this.#pages[index] = own
    this.#owned.add(index)
    return own
  }
}
