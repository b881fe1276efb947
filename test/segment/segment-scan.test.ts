import { assert, asyncProperty, integer, nat, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { SeededRandom } from '../../src/common/random.ts'
import { MIB } from '../../src/common/units.ts'
import type { UncachedFile } from '../../src/fs/file-system.ts'
import { stampBatch, stampCrc } from '../../src/record/batch-header.ts'
import { ScanWindow, findResync, scanBatches } from '../../src/segment/segment-scan.ts'
import type { ScanRules } from '../../src/segment/segment-scan.ts'
import { aBatch } from '../support/batches.ts'

const RULES: ScanRules = { minEpoch: 0, maxEpoch: 9, maxBatchBytes: 8 * MIB, checkCrc: true }

/** A file in memory that counts what is read of it. */
class Bytes implements UncachedFile {
  readBytes = 0
  readonly #content: Uint8Array

  constructor(content: Uint8Array) {
    this.#content = content
  }

  read(into: Uint8Array, position: number): Promise<number> {
    const piece = this.#content.subarray(position, position + into.length)
    into.set(piece)
    this.readBytes += piece.length
    return Promise.resolve(piece.length)
  }

  close(): Promise<void> {
    return Promise.resolve()
  }
}

interface Log {
  readonly bytes: Buffer
  readonly batches: readonly {
    readonly position: number
    readonly size: number
    readonly offset: number
    readonly end: number
  }[]
}

/** A log of batches with so many records each. */
function aLog(
  counts: readonly number[],
  options: { valueBytes?: number; epoch?: (i: number) => number } = {},
): Log {
  const parts: Uint8Array[] = []
  const batches: Log['batches'][number][] = []
  let [position, offset] = [0, 0]
  for (const [i, records] of counts.entries()) {
    const batch = aBatch({
      records,
      baseOffset: offset,
      leaderEpoch: options.epoch?.(i) ?? 1,
      valueBytes: options.valueBytes ?? 20,
    })
    batches.push({ position, size: batch.length, offset, end: offset + records })
    parts.push(batch)
    position += batch.length
    offset += records
  }
  return { bytes: Buffer.concat(parts), batches }
}

function windowOf(bytes: Uint8Array): ScanWindow {
  return new ScanWindow(new Bytes(bytes), bytes.length)
}

function scan(bytes: Uint8Array, rules: Partial<ScanRules> = {}): ReturnType<typeof scanBatches> {
  return scanBatches(windowOf(bytes), { position: 0, offset: 0 }, { ...RULES, ...rules }, () => {})
}

function resync(
  bytes: Uint8Array,
  from: { position: number; offset: number },
  options: {
    rules?: Partial<ScanRules>
    before?: number
    hints?: readonly { position: number; offset: number }[]
  } = {},
): ReturnType<typeof findResync> {
  const { rules, before = Infinity, hints = [] } = options
  return findResync(windowOf(bytes), from, { ...RULES, ...rules }, before, hints)
}

describe('walking through the batches of a file', () => {
  it('meets each batch once, in order, and ends where the file does', async () => {
    const log = aLog([3, 1, 5, 2])
    const seen: number[] = []
    const end = await scanBatches(
      windowOf(log.bytes),
      { position: 0, offset: 0 },
      RULES,
      (_, __, position) => seen.push(position),
    )
    expect(seen).toEqual(log.batches.map(({ position }) => position))
    expect(end).toEqual({
      position: log.bytes.length,
      offset: 11,
      epoch: 1,
      batches: 4,
      reason: 'end',
    })
  })

  it('stops at the offset from which a newer segment goes on', async () => {
    const log = aLog([3, 1, 5])
    const end = await scan(log.bytes, { stopAtOffset: 4 })
    expect(end).toMatchObject({ reason: 'stopped', offset: 4, position: log.batches[2]?.position })
  })

  it('stops at a torn batch, wherever it is torn', async () => {
    const log = aLog([3, 2])
    const second = log.batches[1]?.position ?? 0
    for (let length = second + 1; length < log.bytes.length; length++) {
      const end = await scan(log.bytes.subarray(0, length))
      expect(end).toMatchObject({ reason: 'bad', position: second, offset: 3 })
    }
    expect(await scan(log.bytes.subarray(0, second))).toMatchObject({ reason: 'end' })
  })

  it.each([
    ['an epoch that is lower than the one before', (i: number) => 3 - i, {}],
    ['an epoch that no start has had yet', (i: number) => 1 + i * 9, {}],
    ['a batch that is larger than any may be', () => 1, { maxBatchBytes: 150 }],
  ])('stops at %s', async (_, epoch, rules) => {
    const log = aLog([1, 8], { epoch })
    expect(await scan(log.bytes, rules)).toMatchObject({ reason: 'bad', offset: 1, batches: 1 })
  })

  it('stops at any flipped bit but believes headers alone when told to', async () => {
    const log = aLog([2, 2, 2])
    const middle = log.batches[1]
    if (middle === undefined) throw new Error('it is there')
    for (let byte = 0; byte < middle.size; byte++) {
      const bytes = Buffer.from(log.bytes)
      bytes[middle.position + byte] = (bytes[middle.position + byte] ?? 0) ^ 0x40
      const end = await scan(bytes)
      expect(end).toMatchObject({ reason: 'bad', offset: 2 })
    }
    const bytes = Buffer.from(log.bytes)
    bytes[middle.position + 70] = 0
    expect(await scan(bytes, { checkCrc: false })).toMatchObject({ reason: 'end', offset: 6 })
  })

  it('ends on any bytes, and reads each of them about once', async () => {
    await assert(
      asyncProperty(uint8Array({ maxLength: 3000 }), async (bytes) => {
        const file = new Bytes(bytes)
        const end = await scanBatches(
          new ScanWindow(file, bytes.length),
          { position: 0, offset: 0 },
          RULES,
          () => {},
        )
        expect(end.position).toBeLessThanOrEqual(bytes.length)
        expect(file.readBytes).toBeLessThanOrEqual(bytes.length * 2)
      }),
    )
  })
})

describe('finding where good data goes on', () => {
  it('finds the next batch after any single flipped bit', async () => {
    await assert(
      asyncProperty(
        nat(),
        integer({ min: 0, max: 7 }),
        integer({ min: 1, max: 4 }),
        async (place, bit, records) => {
          const log = aLog([2, records, 3, 1])
          const hit = log.batches[1]
          if (hit === undefined) throw new Error('it is there')
          const byte = hit.position + (place % hit.size)
          log.bytes[byte] = (log.bytes[byte] ?? 0) ^ (1 << bit)
          expect(await resync(log.bytes, hit)).toMatchObject({
            position: hit.position + hit.size,
            offset: hit.end,
          })
        },
      ),
    )
  })

  it('is not led past a good batch by a length that a flipped bit makes fit', async () => {
    // 128 bytes each: with one bit more the first seems to hold the second too.
    const value = 'v'.repeat(59)
    const batches = [0, 1, 2].map((baseOffset) =>
      aBatch({ values: [value], baseOffset, leaderEpoch: 1 }),
    )
    expect(batches[0]).toHaveLength(128)
    for (const rest of [batches.slice(1), batches.slice(1, 2)]) {
      const bytes = Buffer.concat([...batches.slice(0, 1), ...rest])
      bytes[11] = (bytes[11] ?? 0) ^ 0x80
      expect(bytes.readInt32BE(8)).toBe(256 - 12)
      expect(await resync(bytes, { position: 0, offset: 0 })).toMatchObject({ offset: 1 })
    }
  })

  it('finds it although the header is wiped out', async () => {
    const log = aLog([2, 4, 3, 1])
    const [, hit, next] = log.batches
    if (hit === undefined || next === undefined) throw new Error('they are there')
    log.bytes.fill(0, hit.position, hit.position + 61)
    expect(await resync(log.bytes, hit)).toMatchObject({ position: next.position, offset: 6 })
  })

  it('finds nothing after the last batch, nor in nothing', async () => {
    const log = aLog([2, 2])
    const last = log.batches[1]
    if (last === undefined) throw new Error('it is there')
    log.bytes[last.position + 80] = 0xff
    expect(await resync(log.bytes, last)).toBeUndefined()
    expect(await resync(new Uint8Array(0), { position: 0, offset: 0 })).toBeUndefined()
  })

  it('goes by the index when the batch does not know its own length any more', async () => {
    const log = aLog([2, 2, 2, 2])
    const [, hit, next, last] = log.batches
    if (hit === undefined || next === undefined || last === undefined) throw new Error('there')
    log.bytes.fill(0, hit.position, hit.position + 61)
    // Not even followed by a good one, but the index knows its offset.
    log.bytes.fill(0, last.position, last.position + 61)
    expect(await resync(log.bytes, hit)).toBeUndefined()
    expect(await resync(log.bytes, hit, { hints: [next] })).toMatchObject({ offset: 4 })
    expect(
      await resync(log.bytes, hit, { hints: [{ position: next.position, offset: 5 }] }),
    ).toBeUndefined()
  })

  it('does not believe a base offset that nothing confirms', async () => {
    const log = aLog([2, 2, 2, 2])
    const [, hit, next, after] = log.batches
    if (hit === undefined || next === undefined || after === undefined) throw new Error('there')
    log.bytes.fill(0, hit.position, hit.position + 61)
    log.bytes[next.position + 7] = 5 // Was 4; no checksum covers it.
    expect(await resync(log.bytes, hit)).toMatchObject({
      position: after.position,
      offset: after.offset,
    })
  })

  it.each([
    ['an offset that the damaged batch itself had', { before: Infinity }, 2, 1],
    ['an offset past what can be there', { before: 4 }, 4, 1],
    ['an epoch that is too high', { before: Infinity }, 4, 12],
    ['an epoch that is too low', { before: Infinity, rules: { minEpoch: 1 } }, 4, 0],
  ])('passes over a batch with %s', async (_, options, baseOffset, leaderEpoch) => {
    const bytes = Buffer.concat([
      Buffer.alloc(100),
      aBatch({ records: 1, baseOffset, leaderEpoch }),
    ])
    expect(await resync(bytes, { position: 0, offset: 2 }, options)).toBeUndefined()
  })

  describe('with batches forged inside a payload', () => {
    const forged = Buffer.concat([
      aBatch({ values: ['forged'], baseOffset: 3, leaderEpoch: 1 }),
      aBatch({ values: ['forged too'], baseOffset: 4, leaderEpoch: 1 }),
    ])
    const outer = aBatch({
      values: ['x', forged, 'y', 'z'],
      baseOffset: 2,
      leaderEpoch: 1,
    })
    const first = aBatch({ records: 2, leaderEpoch: 1 })
    const next = aBatch({ records: 2, baseOffset: 6, leaderEpoch: 1 })
    const after = aBatch({ records: 1, baseOffset: 8, leaderEpoch: 1 })
    const hit = { position: first.length, offset: 2 }

    it('never takes them after any flipped bit, whether more follows or not', async () => {
      for (const rest of [[next, after], [next], []]) {
        const good = Buffer.concat([first, outer, ...rest])
        for (let byte = 0; byte < outer.length; byte++) {
          const bytes = Buffer.from(good)
          bytes[hit.position + byte] = (bytes[hit.position + byte] ?? 0) ^ (1 << (byte % 8))
          const found = await resync(bytes, hit)
          expect(found?.offset).toBe(rest.length === 0 ? undefined : 6)
        }
      }
    })

    it('does not take them after a header that is wiped out: nothing fits behind them', async () => {
      const bytes = Buffer.concat([first, outer, next, after])
      bytes.fill(0, hit.position, hit.position + 61)
      const last = await resync(bytes, hit, { hints: [] })
      // The first of the two is followed by the second, as far as anyone can tell; the index knows better.
      const position = first.length + outer.length
      expect(await resync(bytes, hit, { hints: [{ position, offset: 6 }] })).toMatchObject({
        position,
        offset: 6,
      })
      expect(last).toBeDefined()
      const single = aBatch({
        values: ['x', forged.subarray(0, forged.indexOf('forged') + 7), 'y', 'z'],
        baseOffset: 2,
        leaderEpoch: 1,
      })
      const one = Buffer.concat([first, single, next, after])
      one.fill(0, hit.position, hit.position + 61)
      expect(await resync(one, hit)).toMatchObject({ offset: 6 })
    })
  })

  it('finds the next good batch behind garbage of any kind', async () => {
    await assert(
      asyncProperty(uint8Array({ minLength: 1, maxLength: 400 }), async (garbage) => {
        const good = Buffer.concat([
          aBatch({ records: 2, baseOffset: 50, leaderEpoch: 1 }),
          aBatch({ records: 1, baseOffset: 52, leaderEpoch: 1 }),
        ])
        const found = await resync(Buffer.concat([garbage, good]), { position: 0, offset: 7 })
        expect(found).toMatchObject({ position: garbage.length, offset: 50 })
      }),
    )
  })

  it('is not slowed down by a payload full of headers that claim megabytes', async () => {
    // Each would cost a checksum over 4 MiB of its own, 80 GB in all.
    const lie = aBatch({ records: 1, baseOffset: 5, leaderEpoch: 1, valueBytes: 4 * MIB })
    const header = Buffer.from(lie.subarray(0, 61))
    header.writeUInt32BE(1, 17)
    const lies = Buffer.concat(Array.from({ length: 2000 }, () => header))
    const rest = Buffer.from(new SeededRandom(1).bytes(5 * MIB)).fill(0, 0, 100)
    const good = [
      aBatch({ baseOffset: 50, leaderEpoch: 1 }),
      aBatch({ baseOffset: 51, leaderEpoch: 1 }),
    ]
    const bytes = Buffer.concat([Buffer.alloc(61), lies, rest, ...good])
    const file = new Bytes(bytes)
    const window = new ScanWindow(file, bytes.length)
    const found = await findResync(window, { position: 0, offset: 2 }, RULES, Infinity, [])
    expect(found?.offset).toBe(50)
    expect(file.readBytes).toBeLessThan(6 * bytes.length)
  })

  it('wants the whole batch in the file', async () => {
    const batch = aBatch({ records: 1, baseOffset: 5, leaderEpoch: 1 })
    const long = Buffer.from(batch)
    long.writeInt32BE(long.readInt32BE(8) + 1, 8)
    stampBatch(long, 0, 5, 1)
    stampCrc(long, 0)
    const bytes = Buffer.concat([Buffer.alloc(100), long])
    expect(await resync(bytes, { position: 0, offset: 2 })).toBeUndefined()
  })
})
