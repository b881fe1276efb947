import { beforeEach, describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { BatchFilter } from '../../src/log/batch-filter.ts'
import type { FilterOptions, FilterVerdict } from '../../src/log/batch-filter.ts'
import { OffsetMap } from '../../src/log/offset-map.ts'
import {
  isCrcValid,
  readBaseSequence,
  readBaseTimestamp,
  readCompression,
  readDeleteHorizon,
  readLastOffsetDelta,
  readMaxTimestamp,
  readProducerId,
  readRecordCount,
  stampCrc,
} from '../../src/record/batch-header.ts'
import { aBatch, BATCH_TIME_MS, entriesOf } from '../support/batches.ts'
import type { BatchShape } from '../support/batches.ts'

const NOW_MS = BATCH_TIME_MS + 1_000_000

let newest: Record<string, number>

beforeEach(() => {
  newest = {}
})

function aFilter(options: Partial<FilterOptions> = {}): BatchFilter {
  const map = new OffsetMap({
    maxBytes: 10_000,
    expectedKeys: 100,
    origin: toOffset(0),
    secret: new Uint8Array(16),
  })
  for (const [key, offset] of Object.entries(newest)) {
    map.put(new TextEncoder().encode(key), 0, key.length, toOffset(offset))
  }
  return new BatchFilter({
    map,
    mapEnd: toOffset(1000),
    mayDropTombstones: true,
    nowMs: NOW_MS,
    deleteRetentionMs: 500,
    maxBatchBytes: 1_000_000,
    remembers: () => false,
    ...options,
  })
}

function run(filter: BatchFilter, batch: Uint8Array, step = 1): FilterVerdict {
  filter.begin(batch, 0)
  while (!filter.step(step)) continue
  return filter.finish()
}

function filtered(shape: BatchShape, filter = aFilter()): string {
  const batch = aBatch(shape)
  const verdict = run(filter, batch)
  if (verdict === 'drop') return 'gone'
  const left = verdict === 'keep' ? batch : filter.result
  expect(isCrcValid(left, 0)).toBe(true)
  return entriesOf([left])
    .map(({ offset, key, value }) => `${offset}${key ?? ''}${value === undefined ? '-' : ''}`)
    .join(' ')
}

describe('what compaction leaves of a batch', () => {
  it('is all of it when nothing is newer, and none when everything is', () => {
    const shape = { keys: ['a', 'b'], baseOffset: 10 }
    expect(filtered(shape)).toBe('10a 11b')
    newest = { a: 10, b: 11 }
    expect(filtered(shape)).toBe('10a 11b')
    newest = { a: 12, b: 13 }
    expect(filtered(shape)).toBe('gone')
  })

  it('is the newest of its own keys', () => {
    newest = { a: 12, b: 11 }
    expect(filtered({ keys: ['a', 'b', 'a'], baseOffset: 10 })).toBe('11b 12a')
  })

  it('is what lies behind the end of the map, whatever that says', () => {
    newest = { a: 20, b: 20 }
    const filter = aFilter({ mapEnd: toOffset(11) })
    expect(filtered({ keys: ['a', 'b', 'a'], baseOffset: 10 }, filter)).toBe('11b 12a')
  })

  it('keeps the fields that place it and its producer, and takes a new count and time', () => {
    newest = { b: 20 }
    const filter = aFilter()
    const times = [5, 90, 7]
    const batch = aBatch({
      keys: ['a', 'b', 'c'],
      timestampsMs: times.map((ms) => BATCH_TIME_MS + ms),
      producer: { id: 9, epoch: 2, sequence: 40 },
      compression: 'lz4',
      valueBytes: 50,
      baseOffset: 10,
    })
    expect(run(filter, batch)).toBe('replace')
    const { result } = filter
    expect(readRecordCount(result, 0)).toBe(2)
    expect(readLastOffsetDelta(result, 0)).toBe(2)
    expect(readProducerId(result, 0)).toBe(9)
    expect(readBaseSequence(result, 0)).toBe(40)
    expect(readBaseTimestamp(result, 0)).toBe(BATCH_TIME_MS + 5)
    expect(readMaxTimestamp(result, 0)).toBe(BATCH_TIME_MS + 7)
    expect(readCompression(result, 0)).toBe('lz4')
    expect(filter.recordsRemoved).toBe(1)
  })

  it('is its header alone when its producer is remembered by it', () => {
    newest = { a: 20 }
    const filter = aFilter({ remembers: (id, base) => id === 9 && base === 10 })
    const shape = { keys: ['a'], producer: { id: 9, sequence: 4 }, baseOffset: 10 }
    expect(run(filter, aBatch(shape))).toBe('replace')
    expect(filter.result).toHaveLength(61)
    const emptied = Uint8Array.from(filter.result)
    expect(readRecordCount(emptied, 0)).toBe(0)
    expect(run(filter, emptied)).toBe('keep')
    expect(run(aFilter(), emptied)).toBe('drop')
  })

  it('is all of it when nobody can read it, and no tombstone goes from then on', () => {
    newest = { a: 20 }
    const filter = aFilter()
    const broken = aBatch({ keys: ['a', 'b'], baseOffset: 10, compression: 'gzip', valueBytes: 99 })
    broken.fill(0xff, 70, 90)
    stampCrc(broken, 0)
    expect(run(filter, broken)).toBe('keep')
    expect(filter.hasLeftRecords).toBe(true)
    expect(run(filter, aBatch({ keys: ['c'], values: [undefined], baseOffset: 12 }))).toBe('keep')
  })

  it('does not grow past the limit of a batch for the sake of a horizon', () => {
    const batch = aBatch({ keys: ['a', 'b'], values: [undefined, 'x'], baseOffset: 10 })
    expect(run(aFilter({ maxBatchBytes: batch.length }), batch)).toBe('keep')
    newest = { b: 20 }
    const filter = aFilter({ maxBatchBytes: batch.length - 8 })
    expect(run(filter, batch)).toBe('replace')
    expect(readDeleteHorizon(filter.result, 0)).toBeUndefined()
  })
})

describe('a tombstone', () => {
  const shape: BatchShape = {
    keys: ['a', 'b', 'c'],
    values: [undefined, 'b', undefined],
    timestampsMs: [3, 1, 2].map((ms) => BATCH_TIME_MS + ms),
    baseOffset: 10,
  }

  it.each(['none', 'gzip'] as const)('gets a horizon and goes after it (%s)', (compression) => {
    const filter = aFilter()
    const batch = aBatch({ ...shape, compression })
    expect(run(filter, batch)).toBe('replace')
    const marked = Uint8Array.from(filter.result)
    expect(readDeleteHorizon(marked, 0)).toBe(NOW_MS + 500)
    expect(entriesOf([marked])).toEqual(entriesOf([batch]))
    expect(filter.tombstonesDueMs).toBe(NOW_MS + 500)
    const early = aFilter({ nowMs: NOW_MS + 499 })
    expect(run(early, marked)).toBe('keep')
    expect(early.tombstonesDueMs).toBe(NOW_MS + 500)
    const due = aFilter({ nowMs: NOW_MS + 500 })
    expect(run(due, marked)).toBe('replace')
    expect(entriesOf([due.result])).toEqual(entriesOf([batch]).slice(1, 2))
    expect(due).toMatchObject({ tombstonesRemoved: 2, tombstonesDueMs: -1 })
  })

  it('stays where an older record may lie below it', () => {
    const filter = aFilter({ mayDropTombstones: false })
    const batch = aBatch(shape)
    expect(run(filter, batch)).toBe('keep')
    expect(run(aFilter(), batch)).toBe('replace')
  })

  it('stays where its grace has no end', () => {
    expect(run(aFilter({ deleteRetentionMs: Infinity }), aBatch(shape))).toBe('keep')
  })
})
