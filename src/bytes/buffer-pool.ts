/**
 * Large buffers that are used again. Each newly touched page costs about 0.5 µs a KiB, and V8 runs a full collection for every 64 MiB of
 * buffers that are made, whatever the heap holds: a producer of 1 KiB records spent a fifth of its time on that.
 * A buffer has one owner: whoever gives it back must hold the last reference to its bytes.
 */
export class BufferPool {
  readonly #maxBuffers: number
  readonly #free: Buffer[] = []

  constructor(maxBuffers: number) {
    this.#maxBuffers = maxBuffers
  }

  /** A buffer of `size` bytes, whatever they hold: a used one where there is one of that size. */
  take(size: number): Buffer {
    const last = this.#free.at(-1)
    if (last === undefined || last.length !== size) return Buffer.allocUnsafeSlow(size)
    this.#free.pop()
    return last
  }

  /** Takes back the whole buffer that `view` begins. A view from elsewhere is let go. */
  give(view: Uint8Array): void {
    if (view.byteOffset !== 0 || this.#free.length >= this.#maxBuffers) return
    const whole = Buffer.from(view.buffer, 0, view.buffer.byteLength)
    const size = this.#free.at(-1)?.length
    if (size === undefined || size === whole.length) this.#free.push(whole)
  }
}
