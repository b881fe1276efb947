import type { TerminalStream } from './io.ts'
import { findSystemCode } from '../common/errors.ts'

/** What takes bytes and text, in order. */
export interface ByteSink {
  /** Appends `source[start, end)`. */
  write(source: Uint8Array, start: number, end: number): void
  writeByte(byte: number): void
  /** Appends `text` as UTF-8. */
  writeText(text: string): void
}

const FIRST_BYTES = 256 * 1024
/** What is gathered before it goes out in one write: a `write` per record costs more than all the rest of `tail`. */
const FLUSH_BYTES = 256 * 1024
/** Below this a loop beats the call into native code that copies. */
const SHORT_BYTES = 24

/**
 * Gathers bytes and writes them in large pieces. Whoever appends calls {@link settle} between batches, which waits when
 * enough has come together; the rest goes out in the same turn of the event loop, so that a slow trickle is seen at once.
 * One buffer, reused when its write has been taken: fresh memory costs 0.5 ms per MiB.
 */
export class Output implements ByteSink {
  readonly #stream: TerminalStream
  readonly #onClosed: () => void
  #buffer: Buffer = Buffer.allocUnsafeSlow(FIRST_BYTES)
  #spare: Buffer | undefined
  #length = 0
  #source: Uint8Array | undefined
  #sourceView: Buffer = Buffer.alloc(0)
  #flushing: Promise<void> | undefined
  #scheduled: NodeJS.Immediate | undefined
  #closed = false
  #failure: Error | undefined
  readonly #onError = (error: Error): void => {
    this.#closed = true
    // A reader that has seen enough (`tail … | head`) is no failure.
    if (findSystemCode(error) !== 'EPIPE') this.#failure = error
    this.#onClosed()
  }

  /** `onClosed` is called once the other side takes no more. */
  constructor(stream: TerminalStream, onClosed: () => void) {
    this.#stream = stream
    this.#onClosed = onClosed
    stream.on('error', this.#onError)
  }

  /** True when nobody reads any more: what is appended goes nowhere. */
  get closed(): boolean {
    return this.#closed
  }

  /** Appends `source[start, end)`. */
  write(source: Uint8Array, start: number, end: number): void {
    const size = end - start
    const at = this.#reserve(size)
    if (size < SHORT_BYTES) {
      const buffer = this.#buffer
      for (let i = 0; i < size; i++) buffer[at + i] = source[start + i] as number // In range: the caller's slice.
      return
    }
    if (source !== this.#source) {
      this.#source = source
      this.#sourceView = Buffer.from(source.buffer, source.byteOffset, source.byteLength)
    }
    this.#sourceView.copy(this.#buffer, at, start, end)
  }

  writeByte(byte: number): void {
    const at = this.#reserve(1)
    this.#buffer[at] = byte
  }

  /** Appends `text` as UTF-8. */
  writeText(text: string): void {
    if (text.length < SHORT_BYTES) {
      const at = this.#reserve(text.length)
      const buffer = this.#buffer
      let i = 0
      for (; i < text.length; i++) {
        const code = text.charCodeAt(i)
        if (code > 0x7f) break
        buffer[at + i] = code
      }
      if (i === text.length) return
      this.#length = at
    }
    const at = this.#reserve(text.length * 3)
    this.#length = at + this.#buffer.write(text, at, 'utf8')
  }

  /** Between batches: waits while too much is gathered, else sees to it that the rest goes out soon. */
  settle(): Promise<void> | undefined {
    if (this.#length >= FLUSH_BYTES) return this.flush()
    if (this.#length > 0) {
      this.#scheduled ??= setImmediate(() => {
        this.#scheduled = undefined
        // `flush` records a failure in the stream's error event; it never rejects.
        void this.flush()
      })
    }
    return undefined
  }

  /** Writes out all there is and waits until it has been taken. Never rejects: see {@link finish}. */
  async flush(): Promise<void> {
    while (this.#flushing !== undefined) await this.#flushing
    if (this.#length === 0) return
    if (this.#closed) {
      this.#length = 0
      return
    }
    const full = this.#buffer
    const bytes = full.subarray(0, this.#length)
    this.#buffer = this.#spare ?? Buffer.allocUnsafeSlow(FIRST_BYTES)
    this.#spare = undefined
    this.#length = 0
    this.#flushing = new Promise((resolve) => {
      this.#stream.write(bytes, () => resolve())
    })
    await this.#flushing
    this.#flushing = undefined
    // A buffer that one large record made is not kept.
    if (full.length <= 8 * FIRST_BYTES) this.#spare = full
  }

  /**
   * Writes the rest and lets go of the stream.
   * @throws Error what the stream failed with, unless it was closed by its reader
   */
  async finish(): Promise<void> {
    if (this.#scheduled !== undefined) clearImmediate(this.#scheduled)
    await this.flush()
    while (this.#flushing !== undefined) await this.#flushing
    // A stream that was closed reports its error once more for a write under way: keep listening then.
    if (!this.#closed) this.#stream.off('error', this.#onError)
    if (this.#failure !== undefined) throw this.#failure
  }

  #reserve(size: number): number {
    const at = this.#length
    const needed = at + size
    if (needed > this.#buffer.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(needed, this.#buffer.length * 2))
      this.#buffer.copy(larger, 0, 0, at)
      this.#buffer = larger
    }
    this.#length = needed
    return at
  }
}
