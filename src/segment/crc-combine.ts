/**
 * The CRC-32C of two runs of bytes from the CRCs of each, without reading them again: crc(A‖B) = crc(A)·x^(8·|B|) + crc(B) in
 * GF(2)[x] modulo the Castagnoli polynomial. About 0.5 µs, against 35 µs for the pass over a batch of 256 KiB; it gives each
 * sealed segment a checksum of its whole file for next to nothing. The method is zlib's crc32_combine.
 */
const POLYNOMIAL = 0x82f63b78 // Castagnoli, bits reversed, as all CRC code here.

/** a·b modulo the polynomial, bits reversed. */
function multiply(a: number, b: number): number {
  let product = 0
  for (let bit = 0x80000000; bit !== 0; bit >>>= 1) {
    if ((a & bit) !== 0) product ^= b
    b = (b & 1) !== 0 ? (b >>> 1) ^ POLYNOMIAL : b >>> 1
  }
  return product >>> 0
}

/** POWERS[k] is x^(2^k). 53 + 3 of them: lengths go up to 2^53 bytes. */
const POWERS: readonly number[] = (() => {
  const powers = [0x40000000] // x^1
  for (let k = 1; k < 56; k++) powers.push(multiply(powers[k - 1] ?? 0, powers[k - 1] ?? 0))
  return powers
})()

/** x^(8·length) modulo the polynomial. */
function shiftBytes(length: number): number {
  let result = 0x80000000 // x^0
  let k = 3
  for (let left = length; left > 0; left = Math.floor(left / 2)) {
    if (left % 2 === 1) result = multiply(POWERS[k] ?? 0, result)
    k++
  }
  return result
}

/** CRC-32C of the bytes of `first` followed by the `secondBytes` bytes of `second`. */
export function combineCrc32c(first: number, second: number, secondBytes: number): number {
  return (multiply(shiftBytes(secondBytes), first) ^ second) >>> 0
}
