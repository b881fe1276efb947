import {
  type Arbitrary,
  array,
  assert,
  asyncProperty,
  boolean,
  constantFrom,
  integer,
  nat,
  record,
} from 'fast-check'
import { afterEach, describe, expect, it } from 'vitest'
import { BatchShelf } from '../../../src/coordination/queue/batch-shelf.ts'
import { BatchBuilder } from '../../../src/record/batch-builder.ts'
import {
  isCrcValid,
  readBatchBytes,
  readEndOffset,
  readRecordCount,
} from '../../../src/record/batch-header.ts'
import { RecordCursor } from '../../../src/record/record-cursor.ts'
import type { Partition } from '../../../src/topic/partition.ts'
import { aBatch } from '../../support/batches.ts'
import { aBench, closeBenches } from '../../support/topics-bench.ts'

afterEach(closeBenches)

type Piece = { readonly records: number; readonly how: 'none' | 'gzip' | 'lz4' | 'control' }

/** A partition with these batches, and the offsets that have records. Their values are their offsets. */
async function aPartition(
  pieces: readonly Piece[],
): Promise<{ partition: Partition; offsets: Set<number> }> {
  const { topics } = await aBench()
  await topics.create({ name: 'orders', partitions: 1 })
  const partition = topics.getPartition('orders', 0)
  const offsets = new Set<number>()
  for (const { records, how } of pieces) {
    const first = partition.logEndOffset
    if (how === 'control') {
      const builder = new BatchBuilder({ maxBytes: 1024 })
      builder.tryAppend('k', undefined, 1)
      builder.setControl()
      await partition.append(builder.finish(), 'durable', { allowControl: true })
      continue
    }
    const own = Array.from({ length: records }, (_, i) => first + i)
    for (const offset of own) offsets.add(offset)
    await partition.append(
      aBatch({
        values: own.map((offset) => `value-${offset}`),
        keys: own.map((offset) => (offset % 2 === 0 ? `key-${offset}` : undefined)),
        headers: [{ key: 'h', value: new Uint8Array([1, 2]) }],
        timestampsMs: own.map((offset) => 1_767_225_600_000 + offset),
        compression: how,
      }),
      'durable',
    )
  }
  return { partition, offsets }
}

function recordsIn(batch: Uint8Array): { offset: number; value: string; timestampMs: number }[] {
  // As a compacted one it does not begin at its base, which a log would take from no client; a reader checks this.
  expect(readBatchBytes(batch, 0)).toBe(batch.length)
  expect(isCrcValid(batch, 0)).toBe(true)
  const cursor = new RecordCursor()
  cursor.reset(batch, 0)
  const found: { offset: number; value: string; timestampMs: number }[] = []
  while (cursor.next()) {
    const { offset, bytes, valueStart, valueEnd, timestampMs } = cursor
    const value = Buffer.from(bytes.subarray(valueStart, valueEnd)).toString()
    found.push({ offset, value, timestampMs })
  }
  expect([found.length, (found.at(-1)?.offset ?? 0) + 1]).toEqual([
    readRecordCount(batch, 0),
    readEndOffset(batch, 0),
  ])
  return found
}

const aPiece: Arbitrary<Piece> = record({
  records: integer({ min: 1, max: 12 }),
  how: constantFrom('none', 'none', 'gzip', 'control'),
})

describe('a shelf of batches', () => {
  it('cuts valid batches that hold the records asked for and hardly any others', async () => {
    await assert(
      asyncProperty(
        array(aPiece, { minLength: 1, maxLength: 6 }),
        array(
          record({
            first: nat(60),
            length: integer({ min: 1, max: 20 }),
            most: integer({ min: 1, max: 15 }),
            mostBytes: constantFrom(1, 100, 1 << 20),
            ahead: boolean(),
          }),
          { maxLength: 12 },
        ),
        async (pieces, cuts) => {
          const { partition, offsets } = await aPartition(pieces)
          const shelf = new BatchShelf(partition)
          for (const { first, length, most, mostBytes, ahead } of cuts) {
            if (first >= partition.highWatermark) continue
            const shelved = shelf.find(first) ?? (await shelf.load(first, ahead))
            expect(shelved.base).toBeLessThanOrEqual(first)
            expect(shelved.end).toBeGreaterThan(first)
            const end = Math.min(first + length, shelved.end)
            const wanted = [...offsets].filter((offset) => offset >= first && offset < end)
            const slice = shelved.slice(first, end, most, mostBytes)
            expect(slice === undefined).toBe(wanted.length === 0)
            if (slice === undefined) continue
            const records = recordsIn(slice.batch)
            const got = records.map(({ offset }) => offset)
            expect(got).toEqual(wanted.slice(0, slice.count))
            expect([slice.first, slice.end]).toEqual([got[0], (got.at(-1) ?? 0) + 1])
            expect(slice.count).toBeLessThanOrEqual(most)
            if (mostBytes > 1000) expect(slice.count).toBe(Math.min(most, wanted.length))
            else if (mostBytes === 1) expect(slice.count).toBe(1)
            for (const { offset, value, timestampMs } of records) {
              expect(value).toBe(`value-${offset}`)
              expect(timestampMs).toBe(1_767_225_600_000 + offset)
            }
          }
        },
      ),
      { numRuns: 150 },
    )
  })

  it('hands on as it is a batch that is wanted whole', async () => {
    const { partition } = await aPartition([{ records: 5, how: 'gzip' }])
    const shelved = await new BatchShelf(partition).load(0, true)
    const { chunks } = await partition.read(partition.logStartOffset, 1)
    const slice = shelved.slice(0, 5, 5, 1 << 20)
    expect(slice).toMatchObject({ first: 0, end: 5, count: 5 })
    expect(Buffer.compare(slice?.batch ?? new Uint8Array(), chunks[0] ?? new Uint8Array())).toBe(0)
  })

  it('reads single records, and says where there is none', async () => {
    const { partition } = await aPartition([
      { records: 3, how: 'none' },
      { records: 1, how: 'control' },
      { records: 2, how: 'gzip' },
    ])
    const shelf = new BatchShelf(partition)
    const record = await shelf.readRecord(4)
    expect(record).toMatchObject({ offset: 4, timestampMs: 1_767_225_600_004 })
    expect(Buffer.from(record?.value ?? []).toString()).toBe('value-4')
    expect(Buffer.from(record?.key ?? []).toString()).toBe('key-4')
    expect(record?.headers.map(({ key }) => key)).toEqual(['h'])
    expect(await shelf.readRecord(3)).toBeUndefined()
    expect((await shelf.readRecord(1))?.key).toBeUndefined()
  })

  it('gives each of many who load at once what they asked for', async () => {
    const { partition } = await aPartition(
      Array.from({ length: 40 }, () => ({ records: 2, how: 'none' as const })),
    )
    const shelf = new BatchShelf(partition)
    const found = await Promise.all(
      Array.from({ length: 80 }, async (_, offset) => shelf.readRecord(offset)),
    )
    expect(found.map((record) => record?.offset)).toEqual(Array.from({ length: 80 }, (_, i) => i))
  })

  it('forgets everything when told', async () => {
    const { partition } = await aPartition([{ records: 3, how: 'none' }])
    const shelf = new BatchShelf(partition)
    await shelf.load(0, true)
    expect(shelf.find(1)?.end).toBe(3)
    shelf.clear()
    expect(shelf.find(1)).toBeUndefined()
  })

  it('tells of a read that fails', async () => {
    const { partition } = await aPartition([{ records: 3, how: 'none' }])
    await expect(new BatchShelf(partition).load(9, true)).rejects.toMatchObject({
      code: 'OFFSET_OUT_OF_RANGE',
    })
  })
})
