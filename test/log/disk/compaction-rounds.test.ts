import { describe, expect, it } from 'vitest'
import { DAY_MS, HOUR_MS, KIB, MIB, MINUTE_MS } from '../../../src/common/units.ts'
import { aBatch } from '../../support/batches.ts'
import { aBroker, compact, over } from '../../support/compacted-log.ts'
import { DiskBroker, readOver } from '../../support/disk-broker.ts'
import { settle } from '../../support/fake-clock.ts'

describe('a round of compaction', () => {
  it('leaves a segment as it is that can be read once and not again', async () => {
    const base = await aBroker({ segmentBytes: 9000, indexIntervalBytes: 4096 })
    const put = (key: string, bytes: number): Promise<unknown> =>
      base.log.append(aBatch({ keys: [key], valueBytes: bytes }), 'durable')
    // What stays as it is comes first, so that it is copied when something behind it goes.
    for (let i = 0; i < 4; i++) await put(`unique${i}`, 1800)
    await put('k', 10)
    await put('k', 5000)
    await put('k', 5000)
    await settle()
    const before = (await readOver(base.log)).values
    for (let nth = 1; nth < 12; nth++) {
      const broker = new DiskBroker({ fs: base.fs.kill(), config: base.config })
      await broker.start()
      const match = { operation: 'read', path: /0{20}\.log$/, nth } as const
      broker.fs.failNext(match, 'EIO', { times: Infinity })
      await compact(broker)
      broker.fs.clearFaults()
      await broker.restartKilled()
      const { values, holes } = await readOver(broker.log)
      expect([nth, holes]).toEqual([nth, []])
      for (let offset = 0; offset < 4; offset++) {
        expect(values.get(offset)).toBe(before.get(offset))
      }
      await broker.store.close()
    }
  })

  it('lets retention by time drop what is old, in a log that is compacted again and again', async () => {
    const broker = await aBroker({ segmentBytes: 100 * MIB, retentionMs: HOUR_MS })
    const put = async (key: string): Promise<void> => {
      const timestampMs = broker.clock.wallMs()
      await broker.log.append(
        aBatch({ keys: [key], valueBytes: 1100 * KIB, timestampMs }),
        'durable',
      )
    }
    await put('written once')
    for (let i = 0; i < 12; i++) {
      await put('written again')
      broker.clock.setWall(broker.clock.wallMs() + 10 * MINUTE_MS)
      if ((await broker.log.findCompactionNeed()) !== undefined) await compact(broker)
      await over(broker, broker.log.applyRetention())
    }
    expect(broker.log.logStartOffset).toBeGreaterThan(0)
  })

  it('that runs out of memory within a batch gives no tombstone of it the grace of another', async () => {
    const broker = await aBroker({ segmentBytes: 1000 }, { compactionMapBytes: 20 * 8 })
    const put = (keys: string[], values: (string | undefined)[]): Promise<unknown> =>
      broker.log.append(aBatch({ keys, values }), 'durable')
    for (const key of ['y', 'p', 'q', 'r', 's']) await put([key], ['old'])
    await put(['a', 'b', 'y'], [undefined, 'b', undefined])
    for (let i = 0; i < 4; i++) await put(['fill'], ['.'.repeat(400)])
    expect((await compact(broker)).cleanedTo).toBeLessThan(8)
    broker.clock.setWall(broker.clock.wallMs() + 2 * DAY_MS)
    // Only now what the tombstone of y is for goes, so its grace begins.
    await compact(broker)
    const { values } = await readOver(broker.log)
    expect([values.has(0), values.has(7)]).toEqual([false, true])
  })
})
