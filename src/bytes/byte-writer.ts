import { invariant } from '../common/assert.ts'
import { writeI16, writeI32, writeI64 } from './big-endian.ts'
import { MAX_VARINT_BYTES, writeUnsignedVarint, writeVarint } from './varint.ts'

/**
 * Writes values one after the other into a buffer that grows by doubling and is kept for the next use, because fresh memory is dear
 * (DEPENDENCIES §0.6). Integers are big-endian.
 */
export class ByteWriter {
  #buffer: Buffer
  #length = 0

  constructor(initialBytes = 256) {
    this.#buffer = Buffer.allocUnsafeSlow(Math.max(16, initialBytes))
  }

  /** Bytes written so far. */
  get length(): number {
    return this.#length
  }

  /** Forgets what was written and keeps the memory. Views handed out before will be overwritten. */
  reset(): void {
    this.#length = 0
  }

  /** What was written, without a copy: holds until the next write or reset. */
  view(): Buffer {
    return this.#buffer.subarray(0, this.#length)
  }

  /** A copy of what was written, in memory of its own. */
  copy(): Buffer {
    const copied = Buffer.allocUnsafeSlow(this.#length)
    copied.set(this.view())
    return copied
  }

  /** Makes room for `count` more bytes. */
  ensure(count: number): void {
    const needed = this.#length + count
    if (needed <= this.#buffer.length) return
    const grown = Buffer.allocUnsafeSlow(Math.max(needed, this.#buffer.length * 2))
    grown.set(this.view())
    this.#buffer = grown
  }

  u8(value: number): void {
    this.ensure(1)
    this.#buffer[this.#length++] = value
  }

  /** The low 16 bits, signed or not. */
  u16(value: number): void {
    this.ensure(2)
    writeI16(this.#buffer, this.#length, value)
    this.#length += 2
  }

  i16(value: number): void {
    this.u16(value)
  }

  /** The low 32 bits, signed or not. */
  u32(value: number): void {
    this.ensure(4)
    writeI32(this.#buffer, this.#length, value)
    this.#length += 4
  }

  i32(value: number): void {
    this.u32(value)
  }

  /** `value` must be a safe integer. */
  i64(value: number): void {
    invariant(Number.isSafeInteger(value), 'a 64-bit value is written from a safe integer')
    this.ensure(8)
    writeI64(this.#buffer, this.#length, value)
    this.#length += 8
  }

  /** Zigzag. `value` must be a safe integer. */
  varint(value: number): void {
    invariant(Number.isSafeInteger(value), 'a varint is written from a safe integer')
    this.ensure(MAX_VARINT_BYTES)
    this.#length = writeVarint(this.#buffer, this.#length, value)
  }

  /** `value` must be a safe integer of at least 0. */
  unsignedVarint(value: number): void {
    invariant(Number.isSafeInteger(value) && value >= 0, 'an unsigned varint is at least 0')
    this.ensure(MAX_VARINT_BYTES)
    this.#length = writeUnsignedVarint(this.#buffer, this.#length, value)
  }

  bytes(value: Uint8Array): void {
    this.ensure(value.length)
    this.#buffer.set(value, this.#length)
    this.#length += value.length
  }

  /** UTF-8, without a length before it. Lone surrogates become U+FFFD. Returns how many bytes it took. */
  utf8(text: string): number {
    const count = Buffer.byteLength(text)
    this.ensure(count)
    this.#buffer.write(text, this.#length, count, 'utf8')
    this.#length += count
    return count
  }

  /** Writes a 32-bit value over what was written at `at`: for lengths known only afterwards. */
  patchU32(at: number, value: number): void {
    invariant(at >= 0 && at + 4 <= this.#length, 'a patch lies within what was written')
    writeI32(this.#buffer, at, value)
  }
}
