import { MIB } from '../common/units.ts'

/** A scratch buffer larger than this is let go after use: one huge batch must not hold its memory for ever. */
const KEEP_BYTES: number = 4 * MIB

/**
 * A buffer for work that ends before the next `await`: grows by doubling and stays warm, since each newly touched page of 4 KiB costs 2 µs
 * (DEPENDENCIES §0.6). One owner at a time.
 */
export class Scratch {
  #buffer: Buffer = Buffer.alloc(0)

  /** What is there now. A later `room` may replace it. */
  get buffer(): Buffer {
    return this.#buffer
  }

  /** The buffer with at least `bytes` of room, its first `used` bytes kept. */
  room(bytes: number, used = 0): Buffer {
    if (bytes > this.#buffer.length) {
      const grown = Buffer.allocUnsafeSlow(Math.max(bytes, this.#buffer.length * 2, 4096))
      grown.set(this.#buffer.subarray(0, used))
      this.#buffer = grown
    }
    return this.#buffer
  }

  /** Called after use: gives up a buffer that has grown large. What was handed out stays valid. */
  trim(): void {
    if (this.#buffer.length > KEEP_BYTES) this.#buffer = Buffer.alloc(0)
  }
}
