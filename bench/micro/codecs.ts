import { Scratch } from '../../src/bytes/scratch.ts'
import type { Compression } from '../../src/record/batch-header.ts'
import {
  compress,
  decompress,
  isCompressionAvailable,
  lz4Tier,
} from '../../src/record/compression.ts'
import { compressFrame, decompressFrames } from '../../src/record/lz4-frame.ts'
import { findLz4Blocks } from '../../src/record/lz4-tier.ts'
import { measure, type Measurement } from './measure.ts'

/** DEPENDENCIES §2: 256 KiB of order events, the usual size of a batch. */
export function measureCodecs(): Measurement[] {
  const plain = Buffer.from(orders(256 * 1024))
  const measured: Measurement[] = []
  const group = `256 KiB of JSON (lz4 in this process: ${lz4Tier})`
  for (const tier of ['lz4', 'lz4-napi', 'typescript'] as const) {
    const blocks = findLz4Blocks(tier)
    if (blocks === undefined) continue
    const scratch = new Scratch()
    const frame = Buffer.from(compressFrame(blocks, plain, scratch))
    const ratio = (plain.length / frame.length).toFixed(2)
    measured.push(
      measure(
        group,
        `lz4 frame by ${tier}, compress (${ratio}:1)`,
        (times) => {
          let sum = 0
          for (let done = 0; done < times; done++)
            sum += compressFrame(blocks, plain, scratch).length
          return sum
        },
        plain.length,
      ),
      measure(
        group,
        `lz4 frame by ${tier}, decompress`,
        (times) => {
          let sum = 0
          for (let done = 0; done < times; done++) {
            sum += decompressFrames(blocks, frame, 1 << 26, scratch).length
          }
          return sum
        },
        plain.length,
      ),
    )
  }
  const others: readonly Exclude<Compression, 'none'>[] = ['gzip', 'zstd']
  for (const codec of others.filter(isCompressionAvailable)) {
    const packed = compress(codec, plain)
    const ratio = (plain.length / packed.length).toFixed(2)
    measured.push(
      measure(
        group,
        `${codec}, compress (${ratio}:1)`,
        (times) => {
          let sum = 0
          for (let done = 0; done < times; done++) sum += compress(codec, plain).length
          return sum
        },
        plain.length,
      ),
      measure(
        group,
        `${codec}, decompress`,
        (times) => {
          let sum = 0
          for (let done = 0; done < times; done++) sum += decompress(codec, packed).length
          return sum
        },
        plain.length,
      ),
    )
  }
  return measured
}

function orders(bytes: number): string {
  const lines: string[] = []
  let length = 0
  for (let index = 0; length < bytes; index++) {
    const state = (Math.imul(index + 1, 2_654_435_761) >>> 0) % 100_000
    const line = JSON.stringify({
      orderId: `o-${state}-${index}`,
      customer: `customer-${state % 977}`,
      total: state / 100,
      currency: 'EUR',
      status: state % 3 === 0 ? 'paid' : 'open',
      items: state % 9,
    })
    lines.push(line)
    length += line.length + 1
  }
  return lines.join('\n').slice(0, bytes)
}
