import { WIRE_BYTES, WIRE_VARINT } from './proto-reader.ts'

const TWO_28 = 2 ** 28
const TWO_56 = 2 ** 56
const SCRATCH_BYTES = 4096

/**
 * Writes protobuf fields into a buffer that grows. Zero numbers, empty strings and false are left out, as proto3 does; the `present` forms
 * write them, for `optional` fields. One writer serves many messages: finish() hands out what was written and starts anew.
 */
export class ProtoWriter {
  #bytes: Buffer = Buffer.allocUnsafe(SCRATCH_BYTES)
  #at = 0

  get length(): number {
    return this.#at
  }

  /** int32, int64, uint64 or an enum: any integer within ±2^53. */
  int(field: number, value: number): void {
    if (value !== 0) this.presentInt(field, value)
  }

  presentInt(field: number, value: number): void {
    this.#tag(field, WIRE_VARINT)
    this.#varint(value)
  }

  bool(field: number, value: boolean): void {
    if (value) this.presentInt(field, 1)
  }

  string(field: number, value: string): void {
    if (value === '') return
    const length = Buffer.byteLength(value)
    this.#tag(field, WIRE_BYTES)
    this.#varint(length)
    this.#ensure(length)
    this.#at += this.#bytes.write(value, this.#at, 'utf8')
  }

  bytes(field: number, value: Uint8Array): void {
    if (value.length > 0) this.presentBytes(field, value)
  }

  presentBytes(field: number, value: Uint8Array): void {
    this.bytesHead(field, value.length)
    this.#ensure(value.length)
    this.#bytes.set(value, this.#at)
    this.#at += value.length
  }

  /** Tag and length of a byte field, whose `length` bytes the caller sends behind what finish() returns. */
  bytesHead(field: number, length: number): void {
    this.#tag(field, WIRE_BYTES)
    this.#varint(length)
  }

  /**
   * A message in a field: `write` fills it. Costs one move of its bytes when it is 128 bytes or longer. Its last `trailing` bytes are not
   * written here: the caller sends them behind what is written so far (see {@link bytesHead}).
   */
  message(field: number, write: (writer: ProtoWriter) => void, trailing = 0): void {
    this.#tag(field, WIRE_BYTES)
    this.#ensure(1)
    const lengthAt = this.#at++
    write(this)
    const length = this.#at - lengthAt - 1 + trailing
    if (length < 0x80) {
      this.#bytes[lengthAt] = length
      return
    }
    const extra = varintBytes(length) - 1
    this.#ensure(extra)
    this.#bytes.copyWithin(lengthAt + 1 + extra, lengthAt + 1, this.#at)
    const end = this.#at + extra
    this.#at = lengthAt
    this.#varint(length)
    this.#at = end
  }

  /** What was written, copied into a buffer of its own. */
  finish(): Buffer {
    const out = Buffer.allocUnsafe(this.#at)
    this.#bytes.copy(out, 0, 0, this.#at)
    this.#at = 0
    // One large message must not pin its size for ever.
    if (this.#bytes.length > 16 * SCRATCH_BYTES) this.#bytes = Buffer.allocUnsafe(SCRATCH_BYTES)
    return out
  }

  /** Forgets what was written: for the start of a message after one that failed half way. */
  reset(): void {
    this.#at = 0
  }

  #tag(field: number, wireType: number): void {
    this.#varint(field * 8 + wireType)
  }

  #varint(value: number): void {
    this.#ensure(10)
    if (value >= 0 && value < 0x80) {
      this.#bytes[this.#at++] = value
      return
    }
    if (value >= 0 && value < TWO_28) {
      this.#lowVarint(value)
      return
    }
    // In three parts of 28, 28 and 8 bits. A negative number is the complement of -(value + 1), exactly, without 64-bit integers.
    const magnitude = value < 0 ? -(value + 1) : value
    let low = magnitude % TWO_28
    let middle = Math.floor(magnitude / TWO_28) % TWO_28
    let high = Math.floor(magnitude / TWO_56) & 0xff
    if (value < 0) {
      low = TWO_28 - 1 - low
      middle = TWO_28 - 1 - middle
      high = 0xff - high
    }
    for (let i = 0; i < 4; i++) {
      const rest = i === 3 && middle === 0 && high === 0
      const byte = (low >>> (7 * i)) & 0x7f
      this.#bytes[this.#at++] = rest ? byte : byte | 0x80
      if (rest) return
    }
    const middleBytes = high > 0 ? 4 : Math.max(1, Math.ceil((32 - Math.clz32(middle)) / 7))
    for (let i = 0; i < middleBytes; i++) {
      const last = high === 0 && i === middleBytes - 1
      const byte = (middle >>> (7 * i)) & 0x7f
      this.#bytes[this.#at++] = last ? byte : byte | 0x80
    }
    if (high > 0) this.#lowVarint(high)
  }

  #lowVarint(value: number): void {
    let rest = value
    while (rest >= 0x80) {
      this.#bytes[this.#at++] = (rest & 0x7f) | 0x80
      rest >>>= 7
    }
    this.#bytes[this.#at++] = rest
  }

  #ensure(more: number): void {
    if (this.#at + more <= this.#bytes.length) return
    const grown = Buffer.allocUnsafe(Math.max(this.#bytes.length * 2, this.#at + more))
    this.#bytes.copy(grown, 0, 0, this.#at)
    this.#bytes = grown
  }
}

/** Bytes that an unsigned number below 2^53 takes as a varint. */
export function varintBytes(value: number): number {
  let bytes = 1
  for (let rest = Math.floor(value / 128); rest > 0; rest = Math.floor(rest / 128)) bytes++
  return bytes
}
