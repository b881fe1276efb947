import { createRequire } from 'node:module'
import { Scratch } from '../bytes/scratch.ts'
import { compressBlock, decompressBlock } from './lz4-block.ts'

export type Lz4Tier = 'lz4' | 'lz4-napi' | 'typescript'

/** The two block functions; every tier does the same, at its own speed. Neither throws, whatever the bytes. */
export interface Lz4Blocks {
  /** Compresses at most 64 KiB. Returns how many bytes of `output` it took, or -1 when it does not fit. */
  compress(input: Uint8Array, output: Uint8Array): number
  /** Decodes a block that stands alone. Returns how many bytes of `output` it took, or -1 when it is malformed or does not fit. */
  decompress(input: Uint8Array, output: Uint8Array): number
}

/** Bindings of liblz4. Fastest, but needs a compiler at installation and a binary made for this very Node. */
interface Lz4Package {
  /** 0 when `output` is too small. */
  encodeBlock(input: Uint8Array, output: Uint8Array): number
  /** Negative when malformed or too large. */
  decodeBlock(input: Uint8Array, output: Uint8Array): number
}

/** Prebuilt, in Rust. Its blocks have their plain size before them, four bytes, little-endian. */
interface Lz4NapiPackage {
  compressSync(input: Uint8Array): Uint8Array
  uncompressSync(input: Uint8Array): Uint8Array
}

const NAPI_PREFIX_BYTES = 4

const loadPackage = createRequire(import.meta.url)

/** The tier by that name, or undefined where it cannot be loaded or does not work. */
export function findLz4Blocks(tier: Lz4Tier): Lz4Blocks | undefined {
  if (tier === 'typescript') return typescriptBlocks
  try {
    const blocks =
      tier === 'lz4'
        ? lz4Blocks(loadPackage('lz4') as Lz4Package)
        : napiBlocks(loadPackage('lz4-napi') as Lz4NapiPackage)
    return works(blocks) ? blocks : undefined
  } catch {
    // Whatever the import throws means the same: ERR_DLOPEN_FAILED and "Module did not self-register" were seen beside "not found".
    return undefined
  }
}

const typescriptBlocks: Lz4Blocks = {
  compress: (input, output) => compressBlock(input, 0, input.length, output, 0, output.length),
  decompress: (input, output) => decompressBlock(input, 0, input.length, output, 0, output.length),
}

function lz4Blocks(addon: Lz4Package): Lz4Blocks {
  return {
    compress: (input, output) => {
      const count = addon.encodeBlock(input, output)
      return count > 0 ? count : -1
    },
    decompress: (input, output) => {
      const count = addon.decodeBlock(input, output)
      return count >= 0 ? count : -1
    },
  }
}

function napiBlocks(addon: Lz4NapiPackage): Lz4Blocks {
  const scratch = new Scratch()
  return {
    compress: (input, output) => {
      const packed = addon.compressSync(input)
      const count = packed.length - NAPI_PREFIX_BYTES
      if (count > output.length) return -1
      output.set(packed.subarray(NAPI_PREFIX_BYTES))
      return count
    },
    decompress: (input, output) => {
      const prefixed = scratch.room(NAPI_PREFIX_BYTES + input.length)
      prefixed.writeUInt32LE(output.length)
      prefixed.set(input, NAPI_PREFIX_BYTES)
      try {
        const plain = addon.uncompressSync(prefixed.subarray(0, NAPI_PREFIX_BYTES + input.length))
        if (plain.length > output.length) return -1
        output.set(plain)
        return plain.length
      } catch {
        return -1 // Its only reason to throw here is a block that is malformed or too long.
      } finally {
        scratch.trim()
      }
    },
  }
}

/** An addon that loads and then computes something else must not come near anyone's data. */
function works(blocks: Lz4Blocks): boolean {
  const plain = Buffer.from('millrace '.repeat(64))
  const packed = Buffer.alloc(plain.length)
  const count = blocks.compress(plain, packed)
  if (count <= 0 || count >= plain.length) return false
  const again = Buffer.alloc(plain.length)
  const block = packed.subarray(0, count)
  return (
    blocks.decompress(block, again) === plain.length &&
    again.equals(plain) &&
    typescriptBlocks.decompress(block, again) === plain.length &&
    again.equals(plain)
  )
}
