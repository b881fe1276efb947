/**
 * The LZ4 block format in TypeScript: the tier that is always there, and the one that decodes blocks which refer to earlier ones.
 *
 *   sequence  token │ literal length 255… │ literals │ offset u16 LE │ match length 255…
 *   token     high four bits: literals, 15 means more follow; low four: match length - 4, the same way
 *
 * A block ends with literals: at least its last five bytes, and no match starts in its last twelve.
 */

/** The compressor's positions are 16 bits wide. */
export const MAX_BLOCK_BYTES = 65_536

const MIN_MATCH = 4
const LAST_LITERALS = 5
const MATCH_START_LIMIT = 12
const HASH_BITS = 13
/** After every 2^6 steps without a match the step grows by one, so that random data costs little. */
const SKIP_BITS = 6
/** From here on one call of `copyWithin` or `set` is cheaper than a loop over the bytes. */
const BULK_COPY_BYTES = 32

/** Shared: compressing ends before anything else can run. */
const table = new Uint16Array(1 << HASH_BITS)

/**
 * Compresses `input[start, end)`, at most 64 KiB, into `output` from `outStart` on. Returns where it ends, or -1 when that would be past
 * `outEnd`.
 */
export function compressBlock(
  input: Uint8Array,
  start: number,
  end: number,
  output: Uint8Array,
  outStart: number,
  outEnd: number,
): number {
  let out = outStart
  let anchor = start
  const matchLimit = end - LAST_LITERALS
  const startLimit = end - MATCH_START_LIMIT
  // A slot that was never written says position 0, which is a candidate like any other: its bytes are compared before use.
  table.fill(0)
  let at = start + 1
  let misses = 1 << SKIP_BITS
  while (at <= startLimit) {
    const word = readWord(input, at)
    const slot = Math.imul(word, 0x9e3779b1) >>> (32 - HASH_BITS)
    let candidate = start + table[slot]!
    table[slot] = at - start
    if (candidate >= at || readWord(input, candidate) !== word) {
      at += misses++ >>> SKIP_BITS
      continue
    }
    misses = 1 << SKIP_BITS
    while (at > anchor && candidate > start && input[at - 1] === input[candidate - 1]) {
      at--
      candidate--
    }
    const offset = at - candidate
    let matchEnd = at + MIN_MATCH
    while (matchEnd < matchLimit && input[matchEnd] === input[matchEnd - offset]) matchEnd++
    const literals = at - anchor
    const matchRest = matchEnd - at - MIN_MATCH
    // Token, both lengths with their extra bytes, the literals, the offset.
    const sequenceBytes = literals + 5 + ((literals / 255) | 0) + ((matchRest / 255) | 0)
    if (out + sequenceBytes > outEnd) return -1
    output[out] = (Math.min(literals, 15) << 4) | Math.min(matchRest, 15)
    out = writeLength(output, out + 1, literals)
    out = copyLiterals(input, anchor, output, out, literals)
    output[out++] = offset
    output[out++] = offset >>> 8
    out = writeLength(output, out, matchRest)
    at = matchEnd
    anchor = at
    if (at <= startLimit) {
      // One more entry inside the match finds what repeats at once.
      table[Math.imul(readWord(input, at - 2), 0x9e3779b1) >>> (32 - HASH_BITS)] = at - 2 - start
    }
  }
  const literals = end - anchor
  if (out + literals + 2 + ((literals / 255) | 0) > outEnd) return -1
  output[out] = Math.min(literals, 15) << 4
  out = writeLength(output, out + 1, literals)
  return copyLiterals(input, anchor, output, out, literals)
}

/**
 * Decodes the block `input[start, end)` into `output` from `outStart` on, and no byte at or past `outEnd`. Matches may reach back to
 * `historyStart`: to `outStart` for a block that stands alone, further for linked ones. Returns where it ends, or -1 when the block is
 * malformed or too long; `output` from `outStart` on is then undefined.
 */
export function decompressBlock(
  input: Uint8Array,
  start: number,
  end: number,
  output: Uint8Array,
  outStart: number,
  outEnd: number,
  historyStart: number = outStart,
): number {
  let at = start
  let out = outStart
  while (at < end) {
    const token = input[at++]!
    let literals = token >>> 4
    if (literals === 15) {
      let more: number
      do {
        if (at >= end) return -1
        more = input[at++]!
        literals += more
      } while (more === 255)
    }
    if (literals > end - at || literals > outEnd - out) return -1
    out = copyLiterals(input, at, output, out, literals)
    at += literals
    if (at === end) return out // Only the last sequence has no match.
    if (end - at < 2) return -1
    const offset = input[at]! | (input[at + 1]! << 8)
    at += 2
    if (offset === 0 || offset > out - historyStart) return -1
    let length = (token & 15) + MIN_MATCH
    if ((token & 15) === 15) {
      let more: number
      do {
        if (at >= end) return -1
        more = input[at++]!
        length += more
      } while (more === 255)
    }
    if (length > outEnd - out) return -1
    const matchEnd = out + length
    if (length >= BULK_COPY_BYTES && offset >= length) {
      output.copyWithin(out, out - offset, out - offset + length)
      out = matchEnd
    } else if (length >= BULK_COPY_BYTES && offset === 1) {
      output.fill(output[out - 1]!, out, matchEnd)
      out = matchEnd
    } else {
      // A match may overlap itself: that is how runs are written.
      for (; out < matchEnd; out++) output[out] = output[out - offset]!
    }
  }
  return -1 // It has to end with literals, an empty block included.
}

function copyLiterals(
  input: Uint8Array,
  at: number,
  output: Uint8Array,
  out: number,
  count: number,
): number {
  if (count >= BULK_COPY_BYTES) {
    output.set(new Uint8Array(input.buffer, input.byteOffset + at, count), out)
  } else {
    for (let index = 0; index < count; index++) output[out + index] = input[at + index]!
  }
  return out + count
}

/** The part of a length that did not fit into its four bits. */
function writeLength(output: Uint8Array, at: number, length: number): number {
  if (length < 15) return at
  let next = at
  let rest = length - 15
  for (; rest >= 255; rest -= 255) output[next++] = 255
  output[next++] = rest
  return next
}

function readWord(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)
}
