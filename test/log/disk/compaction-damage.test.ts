import { describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import { KIB, MIB } from '../../../src/common/units.ts'
import { decodeSeal, encodeSeal } from '../../../src/segment/segment-seal.ts'
import { aBatch } from '../../support/batches.ts'
import { aBroker, compact, fill, over } from '../../support/compacted-log.ts'
import { DiskBroker, overwrite, readOver, segment } from '../../support/disk-broker.ts'
import { settle } from '../../support/fake-clock.ts'

describe('what a reader cannot read while a compaction is under way', () => {
  it('can be read from the segment that takes its place, once that has been made of all of it', async () => {
    const base = await aBroker({ segmentBytes: 500 })
    await fill(base.log, 60)
    // Many small ones become one: between the first one's last read and the swap there is time.
    const config = { ...base.config, segmentBytes: 100_000 }
    let met = 0
    for (let hops = 300; hops < 420; hops += 3) {
      const broker = new DiskBroker({ fs: base.fs.kill(), config })
      await broker.start()
      await broker.checkpoint()
      await broker.checkpoint()
      const before = broker.size(segment(0))
      const round = broker.log.compact()
      for (let i = 0; i < hops; i++) await Promise.resolve()
      broker.fs.failReads(broker.file(segment(0)), 100, 200)
      const seen = await broker.log.read(toOffset(1), 500).then(
        () => 'read',
        (error: unknown) => (error as { code: string }).code,
      )
      broker.fs.clearFaults()
      const wasOld =
        broker.size(segment(0)) === before &&
        !broker.fs.files().some((path) => path.endsWith('.swap'))
      const { segmentsSkipped } = await over(broker, round)
      if (seen === 'SEGMENT_QUARANTINED' && wasOld && segmentsSkipped === 0) {
        met++
        expect((await broker.log.stats()).damaged).toEqual([])
        expect((await readOver(broker.log)).holes).toEqual([])
      }
      await broker.store.close()
    }
    expect(met).toBeGreaterThan(0)
  })
})

describe('a scrubber that is in the middle of a segment', () => {
  it('takes what compaction has put in its place for what it is', async () => {
    const options = { scrubBytesPerSecond: 1000 }
    const broker = await aBroker({ segmentBytes: 600 * KIB }, options)
    for (let i = 0; i < 36; i++) {
      await broker.log.append(aBatch({ keys: [`k${i % 12}`], valueBytes: 50 * KIB }), 'durable')
    }
    await settle()
    // One that says otherwise than the segment: so that this is read batch by batch.
    const path = broker.file(segment(0, 'seal'))
    const seal = decodeSeal(broker.fs.contentOf(path) ?? Buffer.alloc(0))
    broker.config = { ...broker.config, segmentBytes: 100 * MIB }
    await broker.restartClean(async (fs) => {
      await overwrite(fs, path, 0, encodeSeal({ ...seal, sizeBytes: seal.sizeBytes + 1 }))
    })
    await broker.checkpoint()
    await broker.checkpoint()
    await broker.clock.advance(61_000)
    expect(await compact(broker)).toMatchObject({ segmentsAfter: 1, segmentsSkipped: 0 })
    for (let i = 0; i < 10; i++) await broker.clock.advance(600_000)
    expect((await broker.log.stats()).damaged).toEqual([])
    expect((await readOver(broker.log)).holes).toEqual([])
    expect(broker.warned(/damaged|scrubbed/)).toBe(false)
    await broker.store.close()
  })
})
