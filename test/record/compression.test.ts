import { constants, deflateRawSync, gzipSync } from 'node:zlib'
import { assert, property, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { Scratch } from '../../src/bytes/scratch.ts'
import {
  compress,
  decompress,
  decompressedLimit,
  isCompressionAvailable,
} from '../../src/record/compression.ts'

const CODECS = (['gzip', 'lz4', 'zstd'] as const).filter(isCompressionAvailable)

function codeOf(run: () => unknown): string | undefined {
  try {
    run()
    return undefined
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error
    return error.code
  }
}

describe('compression', () => {
  it('has gzip and lz4 everywhere, zstd where node:zlib has it, snappy nowhere', async () => {
    expect(isCompressionAvailable('none')).toBe(true)
    expect(isCompressionAvailable('gzip')).toBe(true)
    expect(isCompressionAvailable('lz4')).toBe(true)
    expect(isCompressionAvailable('snappy')).toBe(false)
    expect(isCompressionAvailable('zstd')).toBe('zstdCompressSync' in (await import('node:zlib')))
  })

  it('refuses by name what it does not have', () => {
    const missing = (['snappy', 'zstd'] as const).filter((each) => !isCompressionAvailable(each))
    for (const codec of missing) {
      expect(codeOf(() => compress(codec, new Uint8Array(10)))).toBe('UNSUPPORTED_CODEC')
      expect(codeOf(() => decompress(codec, new Uint8Array(10)))).toBe('UNSUPPORTED_CODEC')
    }
  })

  it.each(CODECS)('%s gives back what was put in', (codec) => {
    const scratch = new Scratch()
    assert(
      property(uint8Array({ maxLength: 3000 }), (bytes) => {
        const plain = Buffer.concat([bytes, bytes])
        const packed = compress(codec, plain)
        expect(plain.equals(decompress(codec, packed))).toBe(true)
        expect(plain.equals(decompress(codec, packed, undefined, undefined, scratch))).toBe(true)
      }),
    )
  })

  it.each(CODECS)('%s keeps results of earlier calls apart from later ones', (codec) => {
    const [a, b] = [Buffer.alloc(5000, 'a'), Buffer.alloc(5000, 'b')]
    const packed = [compress(codec, a), compress(codec, b)]
    const plain = packed.map((each) => decompress(codec, each))
    expect(a.equals(plain[0]!)).toBe(true)
    expect(b.equals(plain[1]!)).toBe(true)
  })

  it.each(CODECS)('%s stops at the limit of bytes', (codec) => {
    const packed = compress(codec, Buffer.alloc(200_000, 'line of a log '))
    expect(decompress(codec, packed, 200_000).length).toBe(200_000)
    expect(codeOf(() => decompress(codec, packed, 199_999))).toBe('DECOMPRESSED_TOO_LARGE')
    expect(codeOf(() => decompress(codec, packed, 0))).toBe('DECOMPRESSED_TOO_LARGE')
  })

  it.each(CODECS)('%s stops at the ratio, which counts only above a megabyte', (codec) => {
    const million = compress(codec, Buffer.alloc(1 << 20))
    expect((1 << 20) / million.length).toBeGreaterThan(200)
    expect(decompress(codec, million).length).toBe(1 << 20)
    const bomb = compress(codec, Buffer.alloc(32 << 20))
    expect(codeOf(() => decompress(codec, bomb))).toBe('DECOMPRESSED_TOO_LARGE')
    expect(decompress(codec, bomb, 64 << 20, 1e6).length).toBe(32 << 20)
  })

  it('counts the limit from what is compressed', () => {
    expect(decompressedLimit(10)).toBe(1 << 20)
    expect(decompressedLimit(100_000)).toBe(10_000_000)
    expect(decompressedLimit(1 << 30)).toBe(64 << 20)
    expect(decompressedLimit(10, 500)).toBe(500)
  })

  it.each(CODECS)('%s refuses what is cut off, and anything else, with a typed error', (codec) => {
    const packed = compress(codec, Buffer.from('some text, some text, some text, some more'))
    for (let length = 0; length < packed.length; length++) {
      expect(codeOf(() => decompress(codec, packed.subarray(0, length)))).toBe('CORRUPT_BATCH')
    }
    assert(
      property(uint8Array({ maxLength: 200 }), (bytes) => {
        expect(codeOf(() => decompress(codec, bytes))).toBe('CORRUPT_BATCH')
      }),
    )
  })

  it('reads several gzip members in a row, and no raw deflate', () => {
    const twice = Buffer.concat([
      gzipSync('one '),
      gzipSync('two', { level: constants.Z_BEST_SPEED }),
    ])
    expect(Buffer.from(decompress('gzip', twice)).toString()).toBe('one two')
    expect(codeOf(() => decompress('gzip', deflateRawSync('one')))).toBe('CORRUPT_BATCH')
  })
})
