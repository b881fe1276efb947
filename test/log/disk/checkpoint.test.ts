import {
  array,
  assert,
  asyncProperty,
  boolean,
  constantFrom,
  integer,
  maxSafeNat,
  nat,
  option,
  property,
  record,
  sample,
  stringMatching,
  uint8Array,
  uuid,
} from 'fast-check'
import { describe, expect, it } from 'vitest'
import { crc32c } from '../../../src/bytes/crc32c.ts'
import { toOffset } from '../../../src/common/offset.ts'
import { MemoryFileSystem } from '../../../src/fs/memory-file-system.ts'
import {
  CheckpointSlots,
  decodeCheckpoint,
  encodeCheckpoint,
} from '../../../src/log/disk/checkpoint.ts'
import type { Checkpoint, CheckpointEntry } from '../../../src/log/disk/checkpoint.ts'
import { DATA } from '../../support/disk-harness.ts'

const u32 = integer({ min: 0, max: 2 ** 32 - 1 })
const offset = maxSafeNat().map(toOffset)

const entries = record({
  topic: stringMatching(/^[A-Za-z0-9._-]{1,249}$/),
  partition: u32,
  topicId: uuid(),
  companion: constantFrom(undefined, 'state' as const),
  logStartOffset: offset,
  durableEnd: offset,
  position: maxSafeNat(),
  lastBatchPosition: integer({ min: -1, max: 2 ** 40 }),
  activeBase: offset,
  activeSinceMs: maxSafeNat(),
  activeMaxTimestampMs: integer({ min: -1, max: 2 ** 45 }),
  activeCrc: u32,
  sealedCount: u32,
  lastAppendTimeMs: maxSafeNat(),
  epochs: array(record({ epoch: u32, startOffset: offset }), { maxLength: 5 }),
  epochsComplete: boolean(),
  producers: option(uint8Array({ maxLength: 50 }), { nil: undefined }),
})

const checkpoints = record({
  sequence: maxSafeNat(),
  incarnation: u32,
  clean: boolean(),
  entries: array(entries, { maxLength: 4 }),
})

function plain(checkpoint: Checkpoint): unknown {
  const toPlain = (entry: CheckpointEntry): unknown => ({
    ...entry,
    producers: entry.producers && [...entry.producers],
  })
  return { ...checkpoint, entries: checkpoint.entries.map(toPlain) }
}

describe('a checkpoint', () => {
  it('reads back as it was written', () => {
    assert(
      property(checkpoints, (checkpoint) => {
        expect(plain(decodeCheckpoint(encodeCheckpoint(checkpoint)))).toEqual(plain(checkpoint))
      }),
    )
  })

  it('names what is no companion as it always has, and tells a companion apart', () => {
    const [entry] = sample(entries, { numRuns: 1, seed: 1 })
    const fieldOf = (companion: 'state' | undefined): string => {
      const one = { ...entry, topic: 'orders', companion } as CheckpointEntry // A sample of one has one.
      const bytes = encodeCheckpoint({ sequence: 1, incarnation: 1, clean: true, entries: [one] })
      return bytes.toString('latin1', 26, 26 + bytes.readUInt16BE(24))
    }
    expect([fieldOf(undefined), fieldOf('state')]).toEqual(['orders', 'orders/state'])
  })

  it('is refused when any bit is turned, when it is cut short, and when bytes follow', () => {
    assert(
      property(checkpoints, nat(), nat(7), (checkpoint, place, bit) => {
        const bytes = encodeCheckpoint(checkpoint)
        const at = place % bytes.length
        const damaged = /checkpoint slot is damaged/
        expect(() => decodeCheckpoint(bytes.subarray(0, at))).toThrow(damaged)
        expect(() => decodeCheckpoint(Buffer.concat([bytes, Buffer.alloc(1)]))).toThrow(damaged)
        bytes[at] = (bytes[at] ?? 0) ^ (1 << bit)
        expect(() => decodeCheckpoint(bytes)).toThrow(damaged)
      }),
    )
  })

  it('never lets any bytes through', () => {
    assert(
      property(uint8Array({ maxLength: 300 }), (bytes) => {
        expect(() => decodeCheckpoint(Buffer.from(bytes))).toThrow(/damaged/)
      }),
    )
  })
})

describe('the two slots of the checkpoint', () => {
  async function written(count: number): Promise<{ fs: MemoryFileSystem; slots: CheckpointSlots }> {
    const fs = new MemoryFileSystem()
    await fs.makeDirectory(DATA)
    const slots = new CheckpointSlots(fs, DATA)
    for (let i = 1; i <= count; i++) {
      await slots.write({ incarnation: i, clean: i % 2 === 0, entries: [] })
    }
    return { fs, slots }
  }

  it('are written in turn, and the newest is read', async () => {
    await assert(
      asyncProperty(integer({ min: 1, max: 9 }), async (count) => {
        const { fs } = await written(count)
        const { checkpoint, damaged } = await new CheckpointSlots(fs, DATA).read()
        expect(checkpoint).toMatchObject({ sequence: count, incarnation: count })
        expect(damaged).toBe(0)
        expect(fs.files()).toHaveLength(Math.min(count, 2))
      }),
    )
  })

  it('stand in for each other: with either damaged the other one counts, and is not written next', async () => {
    for (const [name, survivor] of [
      ['checkpoint.a', 4],
      ['checkpoint.b', 5],
    ] as const) {
      const { fs } = await written(5)
      fs.flipBit(`${DATA}/${name}`, 9, 3)
      const slots = new CheckpointSlots(fs, DATA)
      expect(await slots.read()).toMatchObject({ damaged: 1, checkpoint: { sequence: survivor } })
      await slots.write({ incarnation: 77, clean: false, entries: [] })
      // The new one went over the damaged one: flip it too, and the survivor is still there.
      fs.flipBit(`${DATA}/${name}`, 9, 3)
      const again = await new CheckpointSlots(fs, DATA).read()
      expect(again.checkpoint?.sequence).toBe(survivor)
    }
  })

  it('are reported when both are damaged, and absent on a new folder', async () => {
    const { fs } = await written(3)
    fs.flipBit(`${DATA}/checkpoint.a`, 0, 0)
    fs.flipBit(`${DATA}/checkpoint.b`, 27, 7)
    expect(await new CheckpointSlots(fs, DATA).read()).toEqual({
      checkpoint: undefined,
      damaged: 2,
    })
    expect(await (await written(0)).slots.read()).toEqual({ checkpoint: undefined, damaged: 0 })
  })

  it('of a later format are refused by name, so that an older broker does not start over them', async () => {
    const { fs, slots } = await written(1)
    const later = encodeCheckpoint({ sequence: 9, incarnation: 1, clean: true, entries: [] })
    later.writeUInt16BE(2, 4)
    later.writeUInt32BE(crc32c(later, 0, later.length - 4), later.length - 4)
    const file = await fs.open(`${DATA}/checkpoint.b`, 'create')
    await file.write([later], 0)
    await expect(slots.read()).rejects.toMatchObject({ code: 'UNSUPPORTED_FORMAT' })
  })

  it('keep the old content when a write is cut short anywhere', async () => {
    const { fs, slots } = await written(2)
    fs.failNext({ operation: 'rename' }, 'EIO')
    await expect(slots.write({ incarnation: 3, clean: true, entries: [] })).rejects.toThrow(/EIO/)
    expect((await slots.read()).checkpoint?.sequence).toBe(2)
    await slots.write({ incarnation: 3, clean: true, entries: [] })
    expect((await slots.read()).checkpoint?.sequence).toBe(3)
  })
})
