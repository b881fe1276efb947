import { array, assert, integer, nat, property, tuple } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import { TailCache, TailCacheBudget } from '../../../src/log/disk/tail-cache.ts'

describe('the cache of tails', () => {
  it('answers what a plain list of the last batches would', () => {
    assert(
      property(
        array(tuple(integer({ min: 1, max: 5 }), integer({ min: 1, max: 100 })), {
          minLength: 1,
          maxLength: 20,
        }),
        nat(110),
        nat(110),
        nat(400),
        (sizes, from, end, maxBytes) => {
          const cache = new TailCache(new TailCacheBudget(1_000_000))
          let offset = 10
          const all = sizes.map(([records, bytes]) => {
            const batch = { bytes: new Uint8Array(bytes), base: offset, end: offset + records }
            offset += records
            cache.add(batch.bytes, toOffset(batch.base), toOffset(batch.end))
            return batch
          })
          const got = cache.read(toOffset(from), toOffset(end), maxBytes)
          if (from < 10) {
            expect(got).toBeUndefined()
            return
          }
          const visible = all.filter((batch) => batch.end > from && batch.end <= end)
          const first = visible[0]
          expect(got?.chunks[0]).toBe(first?.bytes)
          expect(got?.chunks).toEqual(visible.slice(0, got?.chunks.length).map((b) => b.bytes))
          expect(got?.nextOffset).toBe(visible[(got?.chunks.length ?? 0) - 1]?.end ?? from)
          expect(got?.bytes).toBe(got?.chunks.reduce((sum, chunk) => sum + chunk.length, 0))
          if ((got?.chunks.length ?? 0) > 1) expect(got?.bytes).toBeLessThanOrEqual(maxBytes)
        },
      ),
    )
  })

  it('keeps all logs together within one budget, and drops what was written longest ago', () => {
    assert(
      property(array(tuple(nat(2), integer({ min: 1, max: 300 })), { maxLength: 60 }), (writes) => {
        const budget = new TailCacheBudget(2000)
        const caches = [0, 1, 2].map(() => new TailCache(budget))
        const ends = [0, 0, 0]
        const order: { log: number; offset: number; cost: number }[] = []
        for (const [log, bytes] of writes) {
          const offset = ends[log] ?? 0
          caches[log]?.add(new Uint8Array(bytes), toOffset(offset), toOffset(offset + 1))
          ends[log] = offset + 1
          order.push({ log, offset, cost: bytes + 160 })
          expect(budget.usedBytes).toBeLessThanOrEqual(2000)
        }
        let left = 2000
        const kept = order.findLastIndex(({ cost }) => (left -= cost) < 0) + 1
        for (const [log, cache] of caches.entries()) {
          const first = order.slice(kept).find((one) => one.log === log)
          expect(cache.startOffset).toBe(first?.offset)
        }
      }),
    )
  })

  it('does not keep a large message alive for a small batch in it', () => {
    const cache = new TailCache(new TailCacheBudget(1_000_000))
    const message = new Uint8Array(100_000)
    cache.add(message.subarray(10, 20), toOffset(0), toOffset(1))
    const chunk = cache.read(toOffset(0), toOffset(1), 10)?.chunks[0]
    expect(chunk?.length).toBe(10)
    expect(chunk?.buffer).not.toBe(message.buffer)
  })
})
