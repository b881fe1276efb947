import * as zlib from 'node:zlib'
import { unreachable } from '../common/assert.ts'
import { BrokerError, findSystemCode } from '../common/errors.ts'
import { MIB } from '../common/units.ts'
import { Scratch } from '../bytes/scratch.ts'
import type { Compression } from './batch-header.ts'
import { compressFrame, decompressFrames } from './lz4-frame.ts'
import { findLz4Blocks, type Lz4Blocks, type Lz4Tier } from './lz4-tier.ts'
import { isWholeZstd } from './zstd-frame.ts'

/** What one batch may decompress to (SEMANTICS §3.17). */
export const DEFAULT_MAX_DECOMPRESSED_BYTES: number = 64 * MIB
/** How many times its size a batch may decompress to, beyond {@link RATIO_FREE_BYTES}. */
export const DEFAULT_MAX_RATIO = 100
/**
 * Up to here any ratio is fine: a megabyte of log lines that say the same thing over and over does get a thousand times smaller, and a
 * megabyte is not a bomb.
 */
export const RATIO_FREE_BYTES: number = MIB

/** In node:zlib from 22.15 on; the types are those of Node 20, which has none. */
interface Zstd {
  readonly zstdCompressSync?: (bytes: Uint8Array) => Buffer
  readonly zstdDecompressSync?: (
    bytes: Uint8Array,
    options: { readonly maxOutputLength: number },
  ) => Buffer
}
const { zstdCompressSync, zstdDecompressSync }: Zstd = zlib as Zstd

const [chosenTier, lz4Blocks] = chooseLz4()

/** Which code does LZ4 blocks. Chosen once at start, shown by `millrace version`. */
export const lz4Tier: Lz4Tier = chosenTier

/** Compressing and decompressing end before anything else can run, so one scratch buffer serves all. */
const sharedScratch = new Scratch()

/** True when this process can write and read it. `none` always, snappy never, zstd from Node 22.15 on. */
export function isCompressionAvailable(compression: Compression): boolean {
  switch (compression) {
    case 'none':
    case 'gzip':
    case 'lz4':
      return true
    case 'zstd':
      return zstdCompressSync !== undefined && zstdDecompressSync !== undefined
    case 'snappy':
      return false
    default:
      return unreachable(compression)
  }
}

/**
 * Compresses; the result has memory of its own and may be larger than `bytes`.
 * @throws BrokerError UNSUPPORTED_CODEC unless {@link isCompressionAvailable}
 */
export function compress(compression: Exclude<Compression, 'none'>, bytes: Uint8Array): Uint8Array {
  switch (compression) {
    case 'gzip':
      return zlib.gzipSync(bytes)
    case 'lz4': {
      const frame = copyOf(compressFrame(lz4Blocks, bytes, sharedScratch))
      sharedScratch.trim()
      return frame
    }
    case 'zstd':
      if (zstdCompressSync === undefined) throw unsupported(compression)
      return zstdCompressSync(bytes)
    case 'snappy':
      throw unsupported(compression)
    default:
      return unreachable(compression)
  }
}

/**
 * Decompresses, to at most `maxBytes` and at most `maxRatio` times the size of `bytes`; the ratio counts only above 1 MiB of output. The
 * bound holds while it works: no more than about twice that is ever allocated. With a `scratch` of the caller's the result may be
 * a view into it that holds until its next use; without, the result has memory of its own. `none` gives back `bytes` themselves.
 * @throws BrokerError DECOMPRESSED_TOO_LARGE, CORRUPT_BATCH, or UNSUPPORTED_CODEC unless {@link isCompressionAvailable}
 */
export function decompress(
  compression: Compression,
  bytes: Uint8Array,
  maxBytes: number = DEFAULT_MAX_DECOMPRESSED_BYTES,
  maxRatio: number = DEFAULT_MAX_RATIO,
  scratch?: Scratch,
): Uint8Array {
  const limit = decompressedLimit(bytes.length, maxBytes, maxRatio)
  switch (compression) {
    case 'none':
      return bytes
    case 'gzip':
      return inflate(compression, bytes, limit, zlib.gunzipSync)
    case 'lz4': {
      if (scratch !== undefined) return decompressFrames(lz4Blocks, bytes, limit, scratch)
      try {
        return copyOf(decompressFrames(lz4Blocks, bytes, limit, sharedScratch))
      } finally {
        sharedScratch.trim()
      }
    }
    case 'zstd':
      if (zstdDecompressSync === undefined) throw unsupported(compression)
      if (!isWholeZstd(bytes)) {
        throw new BrokerError('CORRUPT_BATCH', 'zstd: no whole frame', { codec: 'zstd' })
      }
      return inflate(compression, bytes, limit, zstdDecompressSync)
    case 'snappy':
      throw unsupported(compression)
    default:
      return unreachable(compression)
  }
}

/** What so many compressed bytes may decompress to. */
export function decompressedLimit(
  compressedBytes: number,
  maxBytes: number = DEFAULT_MAX_DECOMPRESSED_BYTES,
  maxRatio: number = DEFAULT_MAX_RATIO,
): number {
  return Math.min(maxBytes, Math.max(RATIO_FREE_BYTES, compressedBytes * maxRatio))
}

function inflate(
  compression: Compression,
  bytes: Uint8Array,
  limit: number,
  run: (bytes: Uint8Array, options: { readonly maxOutputLength: number }) => Buffer,
): Uint8Array {
  try {
    return run(bytes, { maxOutputLength: Math.max(1, limit) })
  } catch (error) {
    if (findSystemCode(error) === 'ERR_BUFFER_TOO_LARGE') {
      throw new BrokerError(
        'DECOMPRESSED_TOO_LARGE',
        `${bytes.length} bytes of ${compression} decompress to more than ${limit} bytes`,
        { compressedBytes: bytes.length, maxBytes: limit },
        error,
      )
    }
    throw new BrokerError(
      'CORRUPT_BATCH',
      `${compression}: ${error instanceof Error ? error.message : String(error)}`,
      { compression },
      error,
    )
  }
}

function unsupported(compression: Compression): BrokerError {
  return new BrokerError(
    'UNSUPPORTED_CODEC',
    compression === 'zstd'
      ? 'zstd compression needs Node 22.15 or later'
      : `${compression} compression is not supported: use lz4, gzip or none`,
    { compression },
  )
}

function copyOf(bytes: Uint8Array): Uint8Array {
  const copied = Buffer.allocUnsafeSlow(bytes.length)
  copied.set(bytes)
  return copied
}

function chooseLz4(): [Lz4Tier, Lz4Blocks] {
  for (const tier of ['lz4', 'lz4-napi', 'typescript'] as const) {
    const blocks = findLz4Blocks(tier)
    if (blocks !== undefined) return [tier, blocks]
  }
  throw new BrokerError('INTERNAL_ERROR', 'the lz4 codec in TypeScript does not work here')
}
