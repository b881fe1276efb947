import { BrokerError } from '../common/errors.ts'
import { KIB } from '../common/units.ts'
import type { Scratch } from '../bytes/scratch.ts'
import { decompressBlock } from './lz4-block.ts'
import type { Lz4Blocks } from './lz4-tier.ts'
import { xxh32 } from './xxh32.ts'

/**
 * The LZ4 frame format, version 1.6; integers are little-endian.
 *
 *   frame  magic u32 │ flags │ block size │ content size u64? │ dictionary u32? │ header checksum │ blocks … │ 0 u32 │ checksum u32?
 *   block  size u32, top bit: stored plain │ data │ checksum u32?
 *   flags  bits 6-7 version 01, 5 blocks stand alone, 4 block checksums, 3 content size, 2 content checksum, 0 dictionary
 *
 * We write what Kafka's clients write: blocks of 64 KiB that stand alone, no checksum but the header's, since the batch has its own. We
 * read every valid frame but those with a dictionary, several in a row, and skippable ones between them.
 */
const MAGIC = 0x184d2204
/** 16 magic numbers, the low four bits are free. */
const SKIPPABLE_MAGIC = 0x184d2a50
const END_MARK_BYTES = 4
const BLOCK_PREFIX_BYTES = 4
const STORED_BIT = 0x8000_0000

const INDEPENDENT_FLAG = 0x20
const BLOCK_CHECKSUM_FLAG = 0x10
const CONTENT_SIZE_FLAG = 0x08
const CONTENT_CHECKSUM_FLAG = 0x04
const RESERVED_FLAG = 0x02
const DICTIONARY_FLAG = 0x01

export const FRAME_BLOCK_BYTES: number = 64 * KIB
/** Magic, flags (version 1, independent), block size code 4 (64 KiB), and the checksum of those two bytes. */
const HEADER: Uint8Array = makeHeader()

/** Block size codes 4 to 7. */
const BLOCK_BYTES: readonly number[] = [64 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB]

/** A byte of a block yields at most 255 bytes, plus what the token itself says. */
const MAX_EXPANSION = 255

/** Writes `bytes` as one frame into `scratch`; the view returned holds until the scratch buffer is used again. */
export function compressFrame(blocks: Lz4Blocks, bytes: Uint8Array, scratch: Scratch): Uint8Array {
  const blockCount = Math.ceil(bytes.length / FRAME_BLOCK_BYTES)
  const output = scratch.room(
    HEADER.length + bytes.length + blockCount * BLOCK_PREFIX_BYTES + END_MARK_BYTES,
  )
  output.set(HEADER)
  let out = HEADER.length
  for (let at = 0; at < bytes.length; at += FRAME_BLOCK_BYTES) {
    const block = bytes.subarray(at, at + FRAME_BLOCK_BYTES)
    const dataAt = out + BLOCK_PREFIX_BYTES
    // One byte less than the block: what does not get smaller is stored as it is.
    const count = blocks.compress(block, output.subarray(dataAt, dataAt + block.length - 1))
    if (count < 0) {
      output.writeUInt32LE((block.length | STORED_BIT) >>> 0, out)
      output.set(block, dataAt)
      out = dataAt + block.length
    } else {
      output.writeUInt32LE(count, out)
      out = dataAt + count
    }
  }
  output.writeUInt32LE(0, out)
  return output.subarray(0, out + END_MARK_BYTES)
}

/**
 * Decodes one or more frames into `scratch`; the view returned holds until the scratch buffer is used again. Memory stays below twice
 * what is produced plus one block (at most 4 MiB), and a block never gets more room than its bytes can fill.
 * @throws BrokerError DECOMPRESSED_TOO_LARGE past `maxBytes`; CORRUPT_BATCH when it is no valid frame; UNSUPPORTED_CODEC for a dictionary
 */
export function decompressFrames(
  blocks: Lz4Blocks,
  bytes: Uint8Array,
  maxBytes: number,
  scratch: Scratch,
): Uint8Array {
  // One layout for V8 and the bounds-checked reads of Buffer, whatever kind of view came in.
  const input = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  let at = 0
  let out = 0
  let frames = 0
  while (at < input.length) {
    if (input.length - at < 4) throw corrupt('a frame is cut off')
    const magic = input.readUInt32LE(at)
    if ((magic & 0xffff_fff0) >>> 0 === SKIPPABLE_MAGIC) {
      if (input.length - at < 8) throw corrupt('a skippable frame is cut off')
      at += 8 + input.readUInt32LE(at + 4)
      if (at > input.length) throw corrupt('a skippable frame is longer than what there is')
      continue
    }
    if (magic !== MAGIC) throw corrupt(frames === 0 ? 'no frame' : 'bytes behind the last frame')
    frames++

    if (input.length - at < HEADER.length) throw corrupt('the frame header is cut off')
    const flags = input[at + 4]!
    const blockByte = input[at + 5]!
    if (flags >>> 6 !== 1 || (flags & RESERVED_FLAG) !== 0 || (blockByte & 0x8f) !== 0) {
      throw corrupt('the frame header has a version or bits that nobody has defined')
    }
    if ((flags & DICTIONARY_FLAG) !== 0) {
      throw new BrokerError(
        'UNSUPPORTED_CODEC',
        'an lz4 frame that needs a dictionary cannot be read',
      )
    }
    const blockBytes = BLOCK_BYTES[(blockByte >>> 4) - 4]
    if (blockBytes === undefined) throw corrupt('the frame header has an unknown block size')
    const checksumAt = at + 6 + ((flags & CONTENT_SIZE_FLAG) === 0 ? 0 : 8)
    if (checksumAt >= input.length) throw corrupt('the frame header is cut off')
    if (((xxh32(input, at + 4, checksumAt) >>> 8) & 0xff) !== input[checksumAt]) {
      throw corrupt('the checksum of the frame header is wrong')
    }
    const independent = (flags & INDEPENDENT_FLAG) !== 0
    const blockTail = (flags & BLOCK_CHECKSUM_FLAG) === 0 ? 0 : 4
    const frameStart = out
    const headerAt = at
    at = checksumAt + 1

    for (;;) {
      if (input.length - at < BLOCK_PREFIX_BYTES) throw corrupt('the end mark is missing')
      const field = input.readUInt32LE(at)
      at += BLOCK_PREFIX_BYTES
      if (field === 0) break
      const stored = field >= STORED_BIT
      const size = stored ? field - STORED_BIT : field
      if (size > blockBytes || size + blockTail > input.length - at) {
        throw corrupt('a block is longer than its frame allows or than what there is')
      }
      const end = at + size
      if (blockTail !== 0 && xxh32(input, at, end) !== input.readUInt32LE(end)) {
        throw corrupt('the checksum of a block is wrong')
      }
      const room = stored ? size : Math.min(blockBytes, size * MAX_EXPANSION)
      const output = scratch.room(out + room, out)
      if (stored) {
        output.set(input.subarray(at, end), out)
        out += size
      } else if (independent) {
        const count = blocks.decompress(input.subarray(at, end), output.subarray(out, out + room))
        if (count < 0) throw corrupt('a block cannot be decoded')
        out += count
      } else {
        const next = decompressBlock(input, at, end, output, out, out + room, frameStart)
        if (next < 0) throw corrupt('a block cannot be decoded')
        out = next
      }
      if (out > maxBytes) {
        throw new BrokerError(
          'DECOMPRESSED_TOO_LARGE',
          `${bytes.length} bytes of lz4 decompress to more than ${maxBytes} bytes`,
          { compressedBytes: bytes.length, maxBytes },
        )
      }
      at = end + blockTail
    }

    if ((flags & CONTENT_SIZE_FLAG) !== 0) {
      const low = input.readUInt32LE(headerAt + 6)
      const high = input.readUInt32LE(headerAt + 10)
      if (high * 2 ** 32 + low !== out - frameStart) throw corrupt('the content size is wrong')
    }
    if ((flags & CONTENT_CHECKSUM_FLAG) !== 0) {
      if (input.length - at < 4) throw corrupt('the checksum of the content is missing')
      if (xxh32(scratch.buffer, frameStart, out) !== input.readUInt32LE(at)) {
        throw corrupt('the checksum of the content is wrong')
      }
      at += 4
    }
  }
  if (frames === 0) throw corrupt('no frame')
  return scratch.buffer.subarray(0, out)
}

function corrupt(what: string): BrokerError {
  return new BrokerError('CORRUPT_BATCH', `lz4: ${what}`, { compression: 'lz4' })
}

function makeHeader(): Uint8Array {
  const header = Buffer.alloc(7)
  header.writeUInt32LE(MAGIC)
  header[4] = 0x40 | INDEPENDENT_FLAG
  header[5] = 4 << 4
  header[6] = (xxh32(header, 4, 6) >>> 8) & 0xff
  return header
}
