import { assert, integer, property, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { crc32c } from '../../src/bytes/crc32c.ts'
import { combineCrc32c } from '../../src/segment/crc-combine.ts'
import { CrcRanges } from '../../src/segment/crc-ranges.ts'
import { SeededRandom } from '../../src/common/random.ts'

describe('combining checksums', () => {
  it('gives the checksum of the concatenation', () => {
    assert(
      property(uint8Array({ maxLength: 500 }), uint8Array({ maxLength: 500 }), (first, second) => {
        expect(combineCrc32c(crc32c(first), crc32c(second), second.length)).toBe(
          crc32c(Buffer.concat([first, second])),
        )
      }),
    )
  })

  it('holds for runs that are longer than 2^32 bytes', () => {
    const length = integer({ min: 0, max: 2 ** 45 })
    assert(
      property(length, length, (first, second) => {
        expect(combineCrc32c(zeros(first), zeros(second), second)).toBe(zeros(first + second))
      }),
    )
  })
})

/** CRC-32C of so many zeros, by doubling. */
function zeros(length: number): number {
  let crc = 0
  let power = crc32c(new Uint8Array(1))
  for (let bytes = 1; bytes <= length; bytes *= 2) {
    if (Math.floor(length / bytes) % 2 === 1) crc = combineCrc32c(crc, power, bytes)
    power = combineCrc32c(power, power, bytes)
  }
  return crc
}

describe('checksums of ranges', () => {
  const content = Buffer.from(new SeededRandom(1).bytes(70_000))
  let readBytes = 0
  const read = (into: Uint8Array, position: number): Promise<number> => {
    const have = content.copy(into, 0, position)
    readBytes += have
    return Promise.resolve(have)
  }

  it('agree with a pass over the range', async () => {
    const random = new SeededRandom(2)
    for (let n = 0; n < 300; n++) {
      const origin = random.below(10_000)
      const ranges = new CrcRanges(read, origin)
      for (let i = 0; i < 5; i++) {
        const start = origin + random.below(content.length - origin)
        const end = start + random.below(content.length - start + 1)
        expect(await ranges.find(start, end)).toBe(crc32c(content, start, end))
      }
    }
  })

  it('answer nothing past the end of the file, and the last byte still', async () => {
    const ranges = new CrcRanges(read, 0)
    expect(await ranges.find(0, content.length + 1)).toBeUndefined()
    expect(await ranges.find(1, content.length)).toBe(crc32c(content, 1))
    expect(await ranges.find(5, 5)).toBe(0)
  })

  it('cost about one pass, however many are asked for', async () => {
    readBytes = 0
    const ranges = new CrcRanges(read, 0)
    for (let start = 0; start < 1000; start++) await ranges.find(start, 65_536 + start)
    expect(readBytes).toBeLessThan(content.length + 1000 * 2 * 4096)
  })
})
