import { assert, integer, property, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { PartitionChooser } from '../../src/client/partitioner.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { murmur2 } from '../../src/wire/murmur2.ts'

const chooser = (kind: ConstructorParameters<typeof PartitionChooser>[0]): PartitionChooser =>
  new PartitionChooser(kind, new SeededRandom(1))

describe('murmur2', () => {
  // From Kafka's UtilsTest.testMurmur2.
  it.each([
    ['21', -973_932_308],
    ['foobar', -790_332_482],
    ['a-little-bit-long-string', -985_981_536],
    ['a-little-bit-longer-string', -1_486_304_829],
    ['lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8', -58_897_971],
    ['abc', 479_470_107],
  ])('of %j is what Kafka publishes', (key, expected) => {
    expect(murmur2(Buffer.from(key))).toBe(expected)
  })
})

describe('choosing a partition', () => {
  it('masks the sign bit of the hash, as Kafka does', () => {
    expect(chooser('murmur2').choose(Buffer.from('21'), 10)).toBe((-973_932_308 & 0x7fffffff) % 10)
  })

  it('is in range and the same for the same key', () => {
    assert(
      property(uint8Array(), integer({ min: 1, max: 10_000 }), (key, partitions) => {
        const partition = chooser(undefined).choose(key, partitions)
        expect(partition).toBeGreaterThanOrEqual(0)
        expect(partition).toBeLessThan(partitions)
        expect(chooser(undefined).choose(key, partitions)).toBe(partition)
      }),
    )
  })

  it('sticks to one partition without a key, until its batch has gone', () => {
    const sticky = chooser(undefined)
    const first = sticky.choose(undefined, 6)
    expect([1, 2, 3].map(() => sticky.choose(undefined, 6))).toEqual([first, first, first])
    sticky.batchSealed((first + 1) % 6, 6)
    expect(sticky.choose(undefined, 6)).toBe(first)
    sticky.batchSealed(first, 6)
    expect(sticky.choose(undefined, 6)).not.toBe(first)
  })

  it('visits all partitions about equally when it moves on', () => {
    const sticky = chooser('sticky')
    const visits = [0, 0, 0, 0]
    for (let i = 0; i < 4000; i++) {
      const partition = sticky.choose(Buffer.from('ignored'), 4)
      visits[partition] = (visits[partition] ?? 0) + 1
      sticky.batchSealed(partition, 4)
    }
    for (const count of visits) expect(count).toBeGreaterThan(800)
  })

  it('goes round when asked to, and round again when partitions are added', () => {
    const round = chooser('round-robin')
    expect([1, 2, 3, 4].map(() => round.choose(undefined, 3))).toEqual([0, 1, 2, 0])
    expect(round.choose(undefined, 1)).toBe(0)
  })

  it("takes a function's answer, and refuses one out of range", () => {
    expect(chooser((key) => key?.length ?? 0).choose(Buffer.from('abc'), 6)).toBe(3)
    for (const wrong of [6, -1, 0.5, Number.NaN]) {
      expect(() => chooser(() => wrong).choose(undefined, 6)).toThrow(/partitioner answered/)
    }
  })
})
