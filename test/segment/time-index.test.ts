import { array, assert, integer, nat, property, tuple, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { TimeIndex } from '../../src/segment/time-index.ts'

const BASE = toOffset(1000)

function entriesOf(index: TimeIndex): [number, number][] {
  return Array.from({ length: index.count }, (_, i) => [
    index.timestampAt(i),
    index.offsetAt(i) - BASE,
  ])
}

const batches = array(tuple(integer({ min: 0, max: 500 }), integer({ min: 1, max: 20 })), {
  maxLength: 50,
})

describe('the time index', () => {
  it('never sends a search past the first record that is young enough', () => {
    assert(
      property(batches, nat(600), integer({ min: 1, max: 5 }), (pairs, wanted, every) => {
        // Batches with one timestamp each, in any order of time; every so many the greatest so far is noted.
        const index = new TimeIndex(BASE)
        const stamps: [number, number][] = []
        let offset: number = BASE
        let [max, maxAt] = [-1, BASE as number]
        for (const [i, [timestampMs, step]] of pairs.entries()) {
          stamps.push([offset, timestampMs])
          if (timestampMs > max) [max, maxAt] = [timestampMs, offset]
          if (i % every === 0) index.maybeAppend(max, toOffset(maxAt))
          offset += step
        }
        const entry = index.findBelow(wanted)
        const start = entry < 0 ? BASE : index.offsetAt(entry)
        const first = stamps.find(([, timestampMs]) => timestampMs >= wanted)
        expect(first === undefined || start <= first[0]).toBe(true)
      }),
    )
  })

  it('agrees with a sorted array', () => {
    assert(
      property(batches, nat(12_000), (pairs, wanted) => {
        const index = new TimeIndex(BASE)
        let [time, offset] = [0, 0]
        const times = pairs.map(([a, b]) => {
          time += a + 1
          index.maybeAppend(time, toOffset(BASE + (offset += b)))
          return time
        })
        expect(index.findBelow(wanted)).toBe(times.findLastIndex((one) => one < wanted))
        expect(index.maxTimestampMs).toBe(times.at(-1) ?? -Infinity)
      }),
    )
  })

  it('reads back what it has written', () => {
    assert(
      property(batches, (pairs) => {
        const index = new TimeIndex(BASE)
        for (const [timestampMs, step] of pairs) {
          index.maybeAppend(timestampMs * 1_000_000, toOffset(BASE + timestampMs + step))
        }
        const end = toOffset(BASE + 10_000)
        const read = TimeIndex.decode(BASE, index.encode(), end)
        expect(read.sound).toBe(true)
        expect(entriesOf(read.index)).toEqual(entriesOf(index))
      }),
    )
  })

  it('keeps the longest good start of any bytes, and says when it dropped something', () => {
    assert(
      property(uint8Array({ maxLength: 200 }), nat(), (bytes, offsets) => {
        const { index, sound } = TimeIndex.decode(BASE, bytes, toOffset(BASE + offsets))
        const entries = entriesOf(index)
        for (const [i, [timestampMs, relative]] of entries.entries()) {
          const [before, beforeRelative] = entries[i - 1] ?? [-Infinity, -1]
          expect(timestampMs > before && relative > beforeRelative).toBe(true)
          expect(relative).toBeLessThan(offsets)
        }
        expect(index.encode()).toEqual(Buffer.from(bytes.subarray(0, index.sizeBytes)))
        expect(sound).toBe(index.sizeBytes === bytes.length)
      }),
    )
  })

  it('notes only what rises in both columns', () => {
    const index = new TimeIndex(BASE)
    index.maybeAppend(100, toOffset(BASE + 5))
    index.maybeAppend(100, toOffset(BASE + 6))
    index.maybeAppend(200, toOffset(BASE + 5))
    index.maybeAppend(50, toOffset(BASE + 9))
    expect(entriesOf(index)).toEqual([[100, 5]])
    index.truncateTo(toOffset(BASE + 5))
    expect(index.count).toBe(0)
  })

  it('lays an entry out as Kafka does: timestamp in eight bytes, relative offset in four', () => {
    const index = new TimeIndex(BASE)
    index.maybeAppend(0x01_02_03_04_05, toOffset(BASE + 0x0a0b0c0d))
    expect(index.encode()).toEqual(Buffer.from('00000001020304050a0b0c0d', 'hex'))
  })
})
