import { spawnSync } from 'node:child_process'
import { array, assert, constantFrom, integer, nat, property, tuple, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { Scratch } from '../../src/bytes/scratch.ts'
import { lz4Tier } from '../../src/record/compression.ts'
import { compressBlock, decompressBlock } from '../../src/record/lz4-block.ts'
import { compressFrame, decompressFrames } from '../../src/record/lz4-frame.ts'
import { findLz4Blocks, type Lz4Blocks, type Lz4Tier } from '../../src/record/lz4-tier.ts'
import { xxh32 } from '../../src/record/xxh32.ts'

const TIERS: readonly (readonly [Lz4Tier, Lz4Blocks])[] = (
  ['lz4', 'lz4-napi', 'typescript'] as const
).flatMap((tier) => {
  const blocks = findLz4Blocks(tier)
  return blocks === undefined ? [] : [[tier, blocks] as const]
})
const typescript: Lz4Blocks = findLz4Blocks('typescript')!

const hasTool = spawnSync('lz4', ['--version']).status === 0

function tool(options: readonly string[], input: Uint8Array): Buffer {
  const run = spawnSync('lz4', ['-q', ...options], { input, maxBuffer: 1 << 27 })
  expect(run.stderr.toString()).toBe('')
  expect(run.status).toBe(0)
  return run.stdout
}

/** Repeats and noise in turn: what makes a compressor take all its paths. `seed` chooses the noise. */
function mixedBytes(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length)
  let state = seed
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
    const back = 1 + (state >>> 20)
    bytes[at] = (at >>> 9) % 3 === 0 || at < back ? state >>> 24 : bytes[at - (at % 7) - 1]!
  }
  return bytes
}

const SAMPLES: readonly (readonly [string, Buffer])[] = [
  ['nothing', Buffer.alloc(0)],
  ['one byte', Buffer.from('x')],
  ['twelve bytes', Buffer.from('abcabcabcabc')],
  ['a block exactly', Buffer.alloc(65_536, 'order 12345 ')],
  ['a block and a byte', mixedBytes(65_537)],
  [
    'noise',
    Buffer.from(mixedBytes(300_000).map((byte, at) => byte ^ (Math.imul(at, 40_503) >>> 7))),
  ],
  [
    'lines',
    Buffer.from(Array.from({ length: 20_000 }, (_, i) => `{"id":${i},"n":${i % 7}}`).join()),
  ],
  ['zeros', Buffer.alloc(900_000)],
]

function read(bytes: Uint8Array, blocks: Lz4Blocks = typescript, maxBytes = 1 << 26): Buffer {
  return Buffer.from(decompressFrames(blocks, bytes, maxBytes, new Scratch()))
}

function codeOf(run: () => unknown): string | undefined {
  try {
    run()
    return undefined
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error
    return error.code
  }
}

describe('xxh32', () => {
  it('gives the published values', () => {
    expect(xxh32(new Uint8Array(0))).toBe(0x02cc5d05)
    expect(xxh32(Buffer.from('a'))).toBe(0x550d7456)
    expect(xxh32(Buffer.from('abc'))).toBe(0x32d153ff)
    expect(xxh32(Buffer.from('Nobody inspects the spammish repetition'))).toBe(0xe2293b2f)
  })
})

describe('lz4 tiers', () => {
  it('are those that load here, the compiled one first, our own always', () => {
    // `lz4` wants a compiler and the Node it was built for; no machine has to have it.
    const tiers = TIERS.map(([tier]) => tier)
    expect(tiers[0]).toBe(lz4Tier)
    expect(tiers.at(-1)).toBe('typescript')
    const inOrder = ['lz4', 'lz4-napi', 'typescript']
    expect(inOrder.filter((tier) => tiers.some((found) => found === tier))).toEqual(tiers)
  })

  it('read what the others write, block by block', () => {
    const plain = tuple(uint8Array({ maxLength: 400 }), uint8Array({ maxLength: 9 }), nat(900))
    assert(
      property(plain, ([head, unit, times]) => {
        const bytes = Buffer.concat([head, ...Array.from({ length: times }, () => unit), head])
        for (const [, writer] of TIERS) {
          const packed = Buffer.alloc(bytes.length + 100)
          const count = writer.compress(bytes, packed)
          if (bytes.length === 0) continue
          expect(count).toBeGreaterThan(0)
          for (const [, reader] of TIERS) {
            const again = Buffer.alloc(bytes.length)
            expect(reader.decompress(packed.subarray(0, count), again)).toBe(bytes.length)
            expect(again.equals(bytes)).toBe(true)
            const short = Buffer.alloc(bytes.length - 1)
            expect(reader.decompress(packed.subarray(0, count), short)).toBe(-1)
          }
        }
      }),
    )
  })

  it('agree on malformed blocks: all refuse, or all give the same', () => {
    // The libraries refuse a few blocks that the format's end rules forbid and a plain decoder can read; never the other way round.
    assert(
      property(uint8Array({ minLength: 1, maxLength: 60 }), (block) => {
        const strict = Buffer.alloc(2000)
        const own = Buffer.alloc(2000)
        const count = typescript.decompress(block, own)
        for (const [, blocks] of TIERS) {
          const other = blocks.decompress(block, strict)
          if (other < 0) continue
          expect(other).toBe(count)
          expect(strict.subarray(0, other).equals(own.subarray(0, count))).toBe(true)
        }
      }),
      { numRuns: 3000 },
    )
  })
})

describe('lz4 block in TypeScript', () => {
  it('never writes past the room it is given, compressing or not', () => {
    const kind = constantFrom(mixedBytes(700), Buffer.alloc(700), mixedBytes(90, 7))
    assert(
      property(kind, nat(800), integer({ min: 0, max: 20 }), (plain, room, at) => {
        const output = Buffer.alloc(1000, 0xee)
        const end = compressBlock(plain, 0, plain.length, output, at, at + room)
        expect(output.subarray(at + room).every((byte) => byte === 0xee)).toBe(true)
        expect(output.subarray(0, at).every((byte) => byte === 0xee)).toBe(true)
        if (end < 0) return
        const again = Buffer.alloc(1000, 0xee)
        expect(decompressBlock(output, at, end, again, 3, 3 + plain.length)).toBe(3 + plain.length)
        expect(again.subarray(3, 3 + plain.length).equals(plain)).toBe(true)
        expect(again.subarray(3 + plain.length).every((byte) => byte === 0xee)).toBe(true)
      }),
    )
  })

  it('never reads what lies before its history', () => {
    // One literal "a", a match of 4 bytes from 2 bytes back, five literals.
    const block = Buffer.from('10610200506262626262', 'hex')
    const output = Buffer.alloc(100, 0xee)
    expect(decompressBlock(block, 0, block.length, output, 10, 100)).toBe(-1)
    expect(decompressBlock(block, 0, block.length, output, 10, 100, 9)).toBe(20)
    block[2] = 1
    expect(decompressBlock(block, 0, block.length, output, 10, 100)).toBe(20)
    block[2] = 0
    expect(decompressBlock(block, 0, block.length, output, 10, 100)).toBe(-1)
  })

  it('keeps changed blocks within their room', () => {
    const packed = Buffer.alloc(1000)
    const plain = mixedBytes(900)
    const end = compressBlock(plain, 0, plain.length, packed, 0, packed.length)
    assert(
      property(array(tuple(nat(end - 1), nat(255)), { minLength: 1, maxLength: 5 }), (edits) => {
        const block = Buffer.from(packed.subarray(0, end))
        for (const [at, value] of edits) block[at] = value
        const output = Buffer.alloc(1100, 0xee)
        const out = decompressBlock(block, 0, end, output, 50, 950)
        expect(out).toBeLessThanOrEqual(950)
        expect(output.subarray(950).every((byte) => byte === 0xee)).toBe(true)
        expect(output.subarray(0, 50).every((byte) => byte === 0xee)).toBe(true)
      }),
      { numRuns: 2000 },
    )
  })
})

describe('lz4 frame', () => {
  it('is what Kafka writes: version 1, independent blocks of 64 KiB, header checksum, end mark', () => {
    const frame = Buffer.from(compressFrame(typescript, Buffer.from('x'), new Scratch()))
    // Magic, flags 60, block size 40, checksum 82; one stored byte; the end mark.
    expect(frame.toString('hex')).toBe('04224d18604082010000807800000000')
  })

  it.each(SAMPLES)('gives back %s, whoever wrote and whoever reads', (_, plain) => {
    for (const [, writer] of TIERS) {
      const frame = Buffer.from(compressFrame(writer, plain, new Scratch()))
      for (const [, reader] of TIERS) expect(read(frame, reader).equals(plain)).toBe(true)
    }
  })

  it.skipIf(!hasTool)('is read by the lz4 tool (skipped where it is not installed)', () => {
    for (const [, plain] of SAMPLES) {
      for (const [, writer] of TIERS) {
        const frame = compressFrame(writer, plain, new Scratch())
        expect(tool(['-d', '-c'], frame).equals(plain)).toBe(true)
      }
    }
  })

  it.skipIf(!hasTool)(
    'of the lz4 tool is read with all its flags (skipped where it is not installed)',
    () => {
      const flags = [
        ['-c'],
        ['-c', '-BD'],
        ['-c', '-BD', '-B4', '-BX'],
        ['-c', '--no-frame-crc'],
        ['-c', '-9', '-B5', '-BX'],
        ['-c', '-B7', '--content-size'],
      ]
      for (const [, plain] of SAMPLES) {
        for (const each of flags) {
          const frame = tool(each, plain)
          for (const [, reader] of TIERS) expect(read(frame, reader).equals(plain)).toBe(true)
        }
      }
    },
  )

  it.skipIf(!hasTool)('has its checksums verified (skipped where lz4 is not installed)', () => {
    const plain = mixedBytes(5000)
    const frame = tool(['-c', '-BX'], plain)
    for (let at = 0; at < frame.length; at++) {
      const changed = Buffer.from(frame)
      changed[at] = changed[at]! ^ 0x10
      // A changed magic number may turn the frame into a skippable one: then nothing is left, which is refused too.
      expect(codeOf(() => read(changed))).toBe('CORRUPT_BATCH')
    }
  })

  it('may come several in a row, with skippable ones between', () => {
    const frameOf = (text: string): Buffer =>
      Buffer.from(compressFrame(typescript, Buffer.from(text), new Scratch()))
    const skippable = Buffer.from('5e2a4d1803000000aabbcc', 'hex')
    const row = Buffer.concat([skippable, frameOf('one '), skippable, frameOf('two'), skippable])
    expect(read(row).toString()).toBe('one two')
    expect(codeOf(() => read(Buffer.concat([frameOf('a'), Buffer.from('rest')])))).toBe(
      'CORRUPT_BATCH',
    )
    expect(codeOf(() => read(skippable))).toBe('CORRUPT_BATCH')
    expect(codeOf(() => read(row.subarray(0, -1)))).toBe('CORRUPT_BATCH')
  })

  it('that needs a dictionary is named as unsupported', () => {
    const frame = Buffer.from(compressFrame(typescript, Buffer.from('x'), new Scratch()))
    frame[4] = 0x61
    expect(codeOf(() => read(frame))).toBe('UNSUPPORTED_CODEC')
  })

  it('is stopped at the limit with little more memory than that', () => {
    const bomb = compressFrame(typescript, Buffer.alloc(8 << 20), new Scratch())
    for (const [, reader] of TIERS) {
      const scratch = new Scratch()
      const limit = 1 << 20
      expect(codeOf(() => decompressFrames(reader, bomb, limit, scratch))).toBe(
        'DECOMPRESSED_TOO_LARGE',
      )
      expect(scratch.buffer.length).toBeLessThanOrEqual(2 * limit + (4 << 20))
    }
  })

  it('that claims more than its bytes can hold gets no memory for it', () => {
    // Block size 4 MiB, one block of three bytes.
    const head = Buffer.from('04224d186070', 'hex')
    const check = Buffer.of((xxh32(head, 4, 6) >>> 8) & 0xff)
    const frame = Buffer.concat([head, check, Buffer.from('0300000010780000000000', 'hex')])
    const scratch = new Scratch()
    expect(codeOf(() => decompressFrames(typescript, frame, 1 << 26, scratch))).toBe(
      'CORRUPT_BATCH',
    )
    expect(scratch.buffer.length).toBeLessThanOrEqual(4096)
  })

  it('with any changes is read, or refused with a typed error, by every tier', () => {
    const frame = Buffer.from(compressFrame(typescript, mixedBytes(3000), new Scratch()))
    const edits = array(tuple(nat(frame.length - 1), nat(255)), { minLength: 1, maxLength: 6 })
    assert(
      property(edits, nat(frame.length), (changes, length) => {
        const changed = Buffer.from(frame)
        for (const [at, value] of changes) changed[at] = value
        for (const [, reader] of TIERS) {
          codeOf(() => read(changed, reader, 1 << 20))
          codeOf(() => read(changed.subarray(0, length), reader, 1 << 20))
        }
      }),
      { numRuns: 1000 },
    )
  })
})
