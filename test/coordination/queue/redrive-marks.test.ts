import { describe, expect, it } from 'vitest'
import { assert, asyncProperty, array, integer, property, uniqueArray } from 'fast-check'
import { BrokerError } from '../../../src/common/errors.ts'
import { toOffset } from '../../../src/common/offset.ts'
import { CompanionMarks, toRanges } from '../../../src/coordination/queue/redrive-marks.ts'
import type { Partition } from '../../../src/topic/partition.ts'
import { DLQ, RedriveBench } from '../../support/redrive-bench.ts'

const partitionOf = (bench: RedriveBench): Partition => bench.topics.getPartition(DLQ, 0)

async function marksOf(bench: RedriveBench): Promise<CompanionMarks> {
  const marks = new CompanionMarks(bench.companions)
  await marks.open(partitionOf(bench))
  return marks
}

function settledOf(marks: CompanionMarks, partition: Partition, count: number): number[] {
  return Array.from({ length: count }, (_, offset) => offset).filter((offset) =>
    marks.isSettled(partition, offset),
  )
}

describe('the marks of settled letters', () => {
  it('are none at first', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(5)
    const marks = await marksOf(bench)
    expect(settledOf(marks, partitionOf(bench), 7)).toEqual([])
    expect(marks.unsettledFrom(partitionOf(bench))).toBe(0)
  })

  it('are there after a restart, exactly those that were made', async () => {
    await assert(
      asyncProperty(
        array(uniqueArray(integer({ min: 0, max: 19 }), { minLength: 1, maxLength: 6 }), {
          maxLength: 4,
        }),
        async (rounds) => {
          const bench = await new RedriveBench().start()
          await bench.fill(20)
          const expected = new Set<number>()
          let marks = await marksOf(bench)
          for (const offsets of rounds) {
            for (const offset of offsets) expected.add(offset)
            const ranges = toRanges([...offsets].sort((a, b) => a - b))
            await marks.settle(partitionOf(bench), ranges)
          }
          const all = [...expected].sort((a, b) => a - b)
          expect(settledOf(marks, partitionOf(bench), 25)).toEqual(all)
          await bench.restart()
          marks = await marksOf(bench)
          expect(settledOf(marks, partitionOf(bench), 25)).toEqual(all)
          const first = Array.from({ length: 21 }, (_, i) => i).find((i) => !expected.has(i))
          expect(marks.unsettledFrom(partitionOf(bench))).toBe(first)
        },
      ),
      { numRuns: 40 },
    )
  })

  it('begin no earlier than the log', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(20)
    const marks = await marksOf(bench)
    const partition = partitionOf(bench)
    await marks.settle(partition, [{ first: 15, end: 16 }])
    await partition.advanceLogStart(toOffset(10))
    expect(marks.unsettledFrom(partition)).toBe(10)
    await marks.settle(partition, [{ first: 10, end: 11 }])
    expect(marks.unsettledFrom(partition)).toBe(11)
    await bench.restart()
    const again = await marksOf(bench)
    expect(again.unsettledFrom(partitionOf(bench))).toBe(11)
    expect(again.isSettled(partitionOf(bench), 15)).toBe(true)
    expect(again.isSettled(partitionOf(bench), 14)).toBe(false)
  })

  it('can be made again after a write has failed', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(5)
    const marks = await marksOf(bench)
    const partition = partitionOf(bench)
    bench.store.beforeAppend.set(`${DLQ}-0.state`, () => {
      throw new BrokerError('STORAGE_ERROR', 'a bad disk')
    })
    await expect(marks.settle(partition, [{ first: 0, end: 2 }])).rejects.toThrow('a bad disk')
    bench.store.beforeAppend.clear()
    await marks.open(partition)
    expect(settledOf(marks, partition, 5)).toEqual([])
    await marks.settle(partition, [{ first: 0, end: 2 }])
    expect(settledOf(marks, partition, 5)).toEqual([0, 1])
  })

  it('are none where none can be made', async () => {
    const bench = await new RedriveBench().start()
    const partition = partitionOf(bench)
    const marks = new CompanionMarks({
      open: () => Promise.reject(new BrokerError('READ_ONLY', 'the catalog is damaged')),
    })
    await marks.open(partition)
    expect(marks.isSettled(partition, 0)).toBe(false)
    expect(marks.unsettledFrom(partition)).toBe(0)
    await expect(marks.settle(partition, [{ first: 0, end: 1 }])).rejects.toThrow('damaged')
  })
})

describe('toRanges', () => {
  it('holds exactly the offsets that it was given, neighbours together', () => {
    assert(
      property(uniqueArray(integer({ min: 0, max: 50 })), (some) => {
        const offsets = [...some].sort((a, b) => a - b)
        const ranges = toRanges(offsets)
        const back = ranges.flatMap(({ first, end }) =>
          Array.from({ length: end - first }, (_, i) => first + i),
        )
        expect(back).toEqual(offsets)
        for (const [i, { first }] of ranges.entries()) {
          if (i > 0) expect(first).toBeGreaterThan(ranges[i - 1]?.end ?? Infinity)
        }
      }),
    )
  })
})
