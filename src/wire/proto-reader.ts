import { BrokerError } from '../common/errors.ts'

/** Protobuf's wire types. Groups (3, 4) have been out of use since before proto3 and are refused. */
export const WIRE_VARINT = 0
export const WIRE_FIXED64 = 1
export const WIRE_BYTES = 2
export const WIRE_FIXED32 = 5

const TWO_28 = 2 ** 28
const TWO_56 = 2 ** 56

/** @throws BrokerError INVALID_REQUEST */
export function malformed(why: string, at: number): never {
  throw new BrokerError(
    'INVALID_REQUEST',
    `the message is not valid protobuf: ${why} at byte ${at}`,
    {
      position: at,
    },
  )
}

/**
 * Reads one protobuf message field by field, without copying: byte fields are views of the input.
 *
 *     while (reader.next()) {
 *       if (reader.field === 1) topic = reader.string()
 *       else reader.skip()
 *     }
 *
 * Every field must be read or skipped before the following next(). Each read checks its bounds and the wire type, so that no input can
 * make it run past the end or loop. @throws BrokerError INVALID_REQUEST from every method but the constructor
 */
export class ProtoReader {
  /** Number of the field that next() has found. */
  field = 0
  #wireType = 0
  #at: number
  readonly #bytes: Buffer
  readonly #end: number

  constructor(bytes: Buffer, start = 0, end: number = bytes.length) {
    this.#bytes = bytes
    this.#at = start
    this.#end = end
  }

  /** Goes to the next field; false at the end of the message. */
  next(): boolean {
    if (this.#at >= this.#end) return false
    const tag = this.#varint()
    this.field = Math.floor(tag / 8)
    this.#wireType = tag % 8
    if (this.field < 1 || this.field > 0x1fffffff) malformed(`field number ${this.field}`, this.#at)
    return true
  }

  /** An unsigned number. Exact below 2^53, rounded above. */
  uint(): number {
    this.#expect(WIRE_VARINT)
    return this.#varint()
  }

  /** A signed 64-bit number. Exact within ±2^53, rounded outside. */
  int64(): number {
    this.#expect(WIRE_VARINT)
    return this.#signedVarint()
  }

  int32(): number {
    this.#expect(WIRE_VARINT)
    return this.#signedVarint() | 0
  }

  bool(): boolean {
    this.#expect(WIRE_VARINT)
    return this.#varint() !== 0
  }

  /** A view of the input. */
  bytes(): Buffer {
    const length = this.#length()
    const start = this.#at
    this.#at += length
    return this.#bytes.subarray(start, this.#at)
  }

  string(): string {
    const length = this.#length()
    const start = this.#at
    this.#at += length
    return this.#bytes.toString('utf8', start, this.#at)
  }

  /** The message in this field. */
  message(): ProtoReader {
    const length = this.#length()
    const start = this.#at
    this.#at += length
    return new ProtoReader(this.#bytes, start, this.#at)
  }

  skip(): void {
    if (this.#wireType === WIRE_VARINT) this.#varint()
    else if (this.#wireType === WIRE_BYTES) this.#advance(this.#length())
    else if (this.#wireType === WIRE_FIXED64) this.#advance(8)
    else if (this.#wireType === WIRE_FIXED32) this.#advance(4)
    else malformed(`wire type ${this.#wireType}`, this.#at)
  }

  #expect(wireType: number): void {
    if (this.#wireType === wireType) return
    malformed(`field ${this.field} has wire type ${this.#wireType}, not ${wireType}`, this.#at)
  }

  #advance(length: number): void {
    // Not `this.#at += this.#length()`: the left side would be read before #length() moves it.
    if (length > this.#end - this.#at) malformed(`field ${this.field} runs past the end`, this.#at)
    this.#at += length
  }

  #length(): number {
    this.#expect(WIRE_BYTES)
    const length = this.#varint()
    if (length > this.#end - this.#at) malformed(`field ${this.field} runs past the end`, this.#at)
    return length
  }

  #byte(): number {
    if (this.#at >= this.#end) malformed('it ends inside a number', this.#at)
    return this.#bytes[this.#at++] ?? 0
  }

  #varint(): number {
    const first = this.#byte()
    if (first < 0x80) return first
    const [low, middle, high] = this.#parts(first)
    return low + middle * TWO_28 + high * TWO_56
  }

  #signedVarint(): number {
    const first = this.#byte()
    if (first < 0x80) return first
    const [low, middle, high] = this.#parts(first)
    if (high < 0x80) return low + middle * TWO_28 + high * TWO_56
    // Two's complement by hand: subtracting 2^64 from the rounded sum would lose the low bits of small negative numbers.
    const complement = TWO_28 - 1 - low + (TWO_28 - 1 - middle) * TWO_28 + (0xff - high) * TWO_56
    return -complement - 1
  }

  /** The bits 0 to 27, 28 to 55 and 56 to 63 of a varint of two bytes or more. */
  #parts(first: number): readonly [number, number, number] {
    let low = first & 0x7f
    let middle = 0
    let high = 0
    for (let i = 1; ; i++) {
      if (i === 10) malformed('a number has more than ten bytes', this.#at)
      const byte = this.#byte()
      if (i < 4) low += (byte & 0x7f) * 2 ** (7 * i)
      else if (i < 8) middle += (byte & 0x7f) * 2 ** (7 * (i - 4))
      else high = (high + (byte & 0x7f) * 2 ** (7 * (i - 8))) & 0xff
      if (byte < 0x80) return [low, middle, high]
    }
  }
}
