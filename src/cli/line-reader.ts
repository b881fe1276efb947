import { BrokerError } from '../common/errors.ts'

/**
 * Cuts a byte stream into lines without looking at them as text: `while (reader.next())` walks the lines at hand, and
 * `more()` waits for the next piece. `bytes[start, end)` is the line, without its delimiter, until the following call.
 * A last line without a delimiter counts as a line.
 */
export class LineReader {
  readonly #source: AsyncIterator<Uint8Array>
  readonly #delimiter: number
  readonly #maxLineBytes: number
  bytes: Buffer = Buffer.alloc(0)
  start = 0
  end = 0
  /** Lines given so far. */
  lines = 0
  #chunk: Buffer = Buffer.alloc(0)
  #next = 0
  #carry: Buffer[] = []
  #carried = 0
  #ended = false

  constructor(source: AsyncIterable<Uint8Array>, delimiter: number, maxLineBytes: number) {
    this.#source = source[Symbol.asyncIterator]()
    this.#delimiter = delimiter
    this.#maxLineBytes = maxLineBytes
  }

  /** @throws BrokerError RECORD_TOO_LARGE when a line is longer than the limit */
  next(): boolean {
    const chunk = this.#chunk
    const at = this.#next < chunk.length ? chunk.indexOf(this.#delimiter, this.#next) : -1
    if (at >= 0) {
      if (this.#carried > 0) this.#joinCarry(chunk.subarray(this.#next, at))
      else this.#give(chunk, this.#next, at)
      this.#next = at + 1
      return true
    }
    if (this.#next < chunk.length) {
      // The stream may reuse nothing: a piece from a Readable is ours to keep.
      this.#carry.push(chunk.subarray(this.#next))
      this.#carried += chunk.length - this.#next
      this.#next = chunk.length
      this.#checkLength(this.#carried)
    }
    if (this.#ended && this.#carried > 0) {
      this.#joinCarry(undefined)
      return true
    }
    return false
  }

  /** Waits for the next piece of the stream. False at its end. */
  async more(): Promise<boolean> {
    if (this.#ended) return false
    const piece = await this.#source.next()
    if (piece.done === true) {
      this.#ended = true
      this.#chunk = Buffer.alloc(0)
      this.#next = 0
      return this.#carried > 0
    }
    const bytes: unknown = piece.value
    if (!(bytes instanceof Uint8Array)) throw new TypeError('the input gives text, not bytes')
    this.#chunk = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#next = 0
    return true
  }

  #joinCarry(last: Buffer | undefined): void {
    if (last !== undefined) this.#carry.push(last)
    const line = this.#carry.length === 1 ? this.#carry[0] : Buffer.concat(this.#carry)
    this.#carry = []
    this.#carried = 0
    this.#give(line ?? Buffer.alloc(0), 0, line?.length ?? 0)
  }

  #give(bytes: Buffer, start: number, end: number): void {
    this.#checkLength(end - start)
    this.bytes = bytes
    this.start = start
    this.end = end
    this.lines++
  }

  #checkLength(length: number): void {
    if (length <= this.#maxLineBytes) return
    throw new BrokerError(
      'RECORD_TOO_LARGE',
      `line ${this.lines + 1} of the input is longer than ${this.#maxLineBytes} bytes`,
      { line: this.lines + 1, limit: this.#maxLineBytes },
    )
  }
}
