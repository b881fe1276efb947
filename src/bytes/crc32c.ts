import { createRequire } from 'node:module'

type NativeCrc32c = (bytes: Uint8Array, initial?: number) => number

/**
 * Below this many bytes the call into native code, and the view that it needs, cost more than the loop: 207 ns against 178 for 256 bytes,
 * 266 against 348 for 512 (bench/micro).
 */
const NATIVE_FROM_BYTES = 384

const native = loadNative()

/** Which code does the larger blocks. Chosen once at start, shown by `millrace version`. */
export const crc32cTier: 'native' | 'typescript' = native === undefined ? 'typescript' : 'native'

/**
 * CRC-32C (Castagnoli) of `bytes[start, end)`, unsigned. `initial` is the checksum of what came before, so that
 * `crc32c(b, 0, b.length, crc32c(a))` is the checksum of `a` followed by `b`.
 */
export function crc32c(
  bytes: Uint8Array,
  start = 0,
  end: number = bytes.length,
  initial = 0,
): number {
  if (native === undefined || end - start < NATIVE_FROM_BYTES) {
    return crc32cByTables(bytes, start, end, initial)
  }
  const whole = start === 0 && end === bytes.length
  return native(
    whole ? bytes : new Uint8Array(bytes.buffer, bytes.byteOffset + start, end - start),
    initial,
  )
}

/** 16 tables of 256: table `t` holds the effect of a byte that `t` more bytes follow. */
const TABLES: Int32Array = makeTables()

/** The same, always in TypeScript: 2.2 GB/s, 16 bytes a round. Exported for the test that compares the two. */
export function crc32cByTables(
  bytes: Uint8Array,
  start = 0,
  end: number = bytes.length,
  initial = 0,
): number {
  const t = TABLES
  let crc = ~initial
  let at = start
  for (const rounds = end - 15; at < rounds; at += 16) {
    crc ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)
    crc =
      t[0xf00 | (crc & 0xff)]! ^
      t[0xe00 | ((crc >>> 8) & 0xff)]! ^
      t[0xd00 | ((crc >>> 16) & 0xff)]! ^
      t[0xc00 | (crc >>> 24)]! ^
      t[0xb00 | bytes[at + 4]!]! ^
      t[0xa00 | bytes[at + 5]!]! ^
      t[0x900 | bytes[at + 6]!]! ^
      t[0x800 | bytes[at + 7]!]! ^
      t[0x700 | bytes[at + 8]!]! ^
      t[0x600 | bytes[at + 9]!]! ^
      t[0x500 | bytes[at + 10]!]! ^
      t[0x400 | bytes[at + 11]!]! ^
      t[0x300 | bytes[at + 12]!]! ^
      t[0x200 | bytes[at + 13]!]! ^
      t[0x100 | bytes[at + 14]!]! ^
      t[bytes[at + 15]!]!
  }
  for (; at < end; at++) crc = (crc >>> 8) ^ t[(crc ^ bytes[at]!) & 0xff]!
  return ~crc >>> 0
}

function makeTables(): Int32Array {
  const tables = new Int32Array(16 * 256)
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte
    // 0x82f63b78 is the Castagnoli polynomial with its bits reversed.
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0)
    tables[byte] = crc
  }
  for (let at = 256; at < tables.length; at++) {
    const previous = tables[at - 256]!
    tables[at] = (previous >>> 8) ^ tables[previous & 0xff]!
  }
  return tables
}

/**
 * An optional addon. Undefined after any error at all, not only "not found": a binary made for another Node fails with
 * ERR_DLOPEN_FAILED or a bare message, and one that computes something else must not be used.
 */
function loadNative(): NativeCrc32c | undefined {
  try {
    const addon: unknown = createRequire(import.meta.url)('@node-rs/crc32')
    const found = (addon as { readonly crc32c?: NativeCrc32c }).crc32c
    // The check value of CRC-32C: the nine digits give 0xe3069283. Split, to see that the addon chains.
    const digits = new TextEncoder().encode('123456789')
    const seen = found?.(digits.subarray(4), found(digits.subarray(0, 4)))
    return seen === 0xe3069283 ? found : undefined
  } catch {
    return undefined
  }
}
