/**
 * Variable-length integers, seven bits a byte, lowest first, the top bit says that more follow. Two flavours: zigzag as in
 * Kafka's records (-1 is 1, 1 is 2, -2 is 3 …) and unsigned as in protobuf. Values are numbers within ±2^53; a varint and a
 * varlong of the same small value are the same bytes, so one function serves both.
 */

const TWO_32 = 2 ** 32
/** The longest any of these gets: 64 bits in groups of seven. */
export const MAX_VARINT_BYTES = 10

/** Writes `value` as zigzag at `at`. `value` must be a safe integer. Returns where it ends. */
export function writeVarint(bytes: Uint8Array, at: number, value: number): number {
  if (value === (value | 0)) return writeUnsigned32(bytes, at, ((value << 1) ^ (value >> 31)) >>> 0)
  // Doubling may leave the safe range, so the two halves are shifted separately.
  const magnitude = value >= 0 ? value : -value - 1
  const sign = value >= 0 ? 0 : 1
  const low = magnitude >>> 0
  const high = Math.floor(magnitude / TWO_32)
  return writeHalves(bytes, at, ((low << 1) | sign) >>> 0, high * 2 + (low >>> 31))
}

/** Writes `value`, a safe integer of at least 0, at `at`. Returns where it ends. */
export function writeUnsignedVarint(bytes: Uint8Array, at: number, value: number): number {
  if (value < TWO_32) return writeUnsigned32(bytes, at, value)
  return writeHalves(bytes, at, value >>> 0, Math.floor(value / TWO_32))
}

/** How many bytes {@link writeVarint} would write. */
export function varintBytes(value: number): number {
  return unsignedVarintBytes(value >= 0 ? value * 2 : -value * 2 - 1)
}

/** How many bytes {@link writeUnsignedVarint} would write. */
export function unsignedVarintBytes(value: number): number {
  if (value < 0x80) return 1
  if (value < 0x4000) return 2
  if (value < 0x20_0000) return 3
  let count = 4
  for (let rest = value / 0x1000_0000; rest >= 1; rest /= 128) count++
  return count
}

/**
 * Reads varints one after the other out of `[position, end)`. Never reads past `end` and never throws: what is cut off, longer than ten
 * bytes or outside ±2^53 reads as NaN, and the position then is of no more use. Made once and reused.
 */
export class VarintReader {
  position = 0
  #bytes: Uint8Array = new Uint8Array(0)
  #end = 0

  /** `end` must not lie past the end of `bytes`. */
  reset(bytes: Uint8Array, start: number, end: number): void {
    this.#bytes = bytes
    this.position = start
    this.#end = end
  }

  /** Zigzag; NaN when malformed. */
  readVarint(): number {
    const byte = this.#bytes[this.position]!
    if (byte < 0x80 && this.position < this.#end) {
      this.position++
      return (byte >>> 1) ^ -(byte & 1)
    }
    return this.#readLong(true)
  }

  /** Unsigned; NaN when malformed. */
  readUnsignedVarint(): number {
    const byte = this.#bytes[this.position]!
    if (byte < 0x80 && this.position < this.#end) {
      this.position++
      return byte
    }
    return this.#readLong(false)
  }

  #readLong(zigzag: boolean): number {
    const bytes = this.#bytes
    const end = Math.min(this.#end, this.position + MAX_VARINT_BYTES)
    let low = 0 // 28 bits
    let high = 0 // The 36 above them, exact: two groups of numbers below 2^53.
    let scale = 1
    let shift = 0
    for (let at = this.position; at < end; at++) {
      const byte = bytes[at]!
      if (shift < 28) {
        low |= (byte & 0x7f) << shift
        shift += 7
      } else {
        high += (byte & 0x7f) * scale
        scale *= 128
      }
      if (byte < 0x80) {
        this.position = at + 1
        return combine(low, high, zigzag)
      }
    }
    this.position = this.#end
    return NaN
  }
}

function combine(low: number, high: number, zigzag: boolean): number {
  if (!zigzag) {
    const value = high * 0x1000_0000 + low
    return value <= Number.MAX_SAFE_INTEGER ? value : NaN
  }
  const magnitude = high * 0x800_0000 + (low >>> 1)
  if ((low & 1) === 0) return magnitude <= Number.MAX_SAFE_INTEGER ? magnitude : NaN
  return magnitude < Number.MAX_SAFE_INTEGER ? -magnitude - 1 : NaN
}

function writeUnsigned32(bytes: Uint8Array, at: number, value: number): number {
  let rest = value
  let next = at
  for (; rest >= 0x80; rest >>>= 7) bytes[next++] = (rest & 0x7f) | 0x80
  bytes[next++] = rest
  return next
}

/** `low` has 32 bits, `high` at most 22. */
function writeHalves(bytes: Uint8Array, at: number, low: number, high: number): number {
  if (high === 0) return writeUnsigned32(bytes, at, low)
  for (let group = 0; group < 4; group++) bytes[at + group] = ((low >>> (group * 7)) & 0x7f) | 0x80
  // Four groups took 28 bits; four of the low half are left.
  return writeRest(bytes, at + 4, high * 16 + (low >>> 28))
}

function writeRest(bytes: Uint8Array, at: number, value: number): number {
  let rest = value
  let next = at
  for (; rest >= 0x80; rest = Math.floor(rest / 128)) bytes[next++] = (rest % 128) | 0x80
  bytes[next++] = rest
  return next
}
