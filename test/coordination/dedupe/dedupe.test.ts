import { afterEach, describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { toOffset } from '../../../src/common/offset.ts'
import { DAY_MS, HOUR_MS, MINUTE_MS } from '../../../src/common/units.ts'
import { partitionForKey } from '../../../src/wire/murmur2.ts'
import { BatchBuilder } from '../../../src/record/batch-builder.ts'
import { aSend, SendBench } from '../../support/send-bench.ts'

let bench: SendBench

afterEach(async () => {
  await bench.close()
})

describe('a dedupe id', () => {
  it('is good for one record within its window, and the repeat is told where that is', async () => {
    bench = await SendBench.started({}, 1)
    await bench.send()
    const first = await bench.send({ dedupeId: 'a', value: Buffer.from('1') })
    expect(first).toMatchObject({ offset: 1, duplicate: false })
    await bench.clock.advance(5 * MINUTE_MS - 1)
    const again = await bench.send({ dedupeId: 'a', value: Buffer.from('2') })
    expect(again).toMatchObject({ partition: 0, offset: 1, duplicate: true })
    await bench.clock.advance(1)
    expect(await bench.send({ dedupeId: 'a' })).toMatchObject({ offset: 2, duplicate: false })
    expect((await bench.delivered())[1]?.headers).toMatchObject({ 'job.dedupe_id': 'a' })
  })

  it('is known for its window although the clock goes back a little, now and then', async () => {
    bench = await SendBench.started({}, 1)
    await bench.send({ dedupeId: 'first' })
    await bench.clock.advance(5 * MINUTE_MS - 1000)
    await bench.send({ dedupeId: 'a' })
    await bench.clock.advance(2000)
    for (let i = 0; i < 3; i++) {
      await bench.send({ dedupeId: `other ${i}` })
      bench.clock.setWall(bench.clock.wallMs() - 10)
    }
    expect(await bench.send({ dedupeId: 'a' })).toMatchObject({ offset: 1, duplicate: true })
  })

  it('chooses the partition of a record without a key; a key goes first', async () => {
    bench = await SendBench.started({}, 7)
    for (const id of ['a', 'b', 'order-17', 'é']) {
      const { partition } = await bench.send({ dedupeId: id })
      expect(partition).toBe(partitionForKey(Buffer.from(id), 7))
      expect(await bench.send({ dedupeId: id })).toMatchObject({ partition, duplicate: true })
    }
    const key = Buffer.from('customer')
    const keyed = await bench.send({ dedupeId: 'c', key })
    expect(keyed.partition).toBe(partitionForKey(key, 7))
  })

  it('is known after a restart, for what is left of its window, whatever the records’ timestamps say', async () => {
    for (const timestampMs of [undefined, 1, 1_700_000_000_000]) {
      bench = await SendBench.started({ 'retention.ms': 'unlimited' }, 1)
      await bench.send({ dedupeId: 'old', timestampMs })
      await bench.send({ dedupeId: 'waits', timestampMs, delayMs: 5 * MINUTE_MS })
      await bench.clock.advance(4 * MINUTE_MS)
      for (let i = 0; i < 2500; i += 100) {
        const records = Array.from({ length: 100 }, (_, j) =>
          aSend({ dedupeId: `id${i + j}`, timestampMs }),
        )
        await bench.finish(bench.sends.send('orders', records))
      }
      // The one that has waited is the newest in the log now, and its acceptance the oldest.
      await bench.clock.advance(2 * MINUTE_MS)
      expect((await bench.delivered()).at(-1)?.headers['job.dedupe_id']).toBe('waits')
      await bench.restart()
      expect(await bench.send({ dedupeId: 'id0' })).toMatchObject({ offset: 1, duplicate: true })
      expect(await bench.send({ dedupeId: 'id2499' })).toMatchObject({ offset: 2500 })
      expect((await bench.send({ dedupeId: 'old' })).duplicate).toBe(false)
      await bench.close()
    }
    bench = await SendBench.started()
  })

  it('does not mind what else is in the log after a restart', async () => {
    bench = await SendBench.started({}, 1)
    await bench.send({ dedupeId: 'a' })
    const builder = new BatchBuilder({ maxBytes: 1e6, compression: 'gzip' })
    builder.tryAppend('k', 'v'.repeat(1000), bench.clock.wallMs())
    await bench.topics.getPartition('orders', 0).append(builder.finish(), 'durable')
    await bench.send({ dedupeId: 'b' })
    await bench.restart()
    bench.store.damaged.set('orders-0', { start: 0, end: 1 })
    expect((await bench.send({ dedupeId: 'b' })).duplicate).toBe(true)
    expect((await bench.send({ dedupeId: 'a' })).duplicate).toBe(false)
  })

  it('of a waiting record stays in use until that fires, and then for what is left of its window', async () => {
    bench = await SendBench.started({}, 1)
    const first = await bench.send({ dedupeId: 'a', delayMs: HOUR_MS })
    expect(await bench.send({ dedupeId: 'b', delayMs: MINUTE_MS })).toMatchObject({
      duplicate: false,
    })
    await bench.clock.advance(2 * MINUTE_MS)
    expect(await bench.send({ dedupeId: 'b' })).toMatchObject({ duplicate: true, offset: 0 })
    await bench.clock.advance(HOUR_MS - 3 * MINUTE_MS)
    await bench.restart()
    expect(await bench.send({ dedupeId: 'a' })).toEqual({ ...first, duplicate: true })
    await bench.sends.updateDelayed(first.delayId, bench.clock.wallMs() + 10 * MINUTE_MS)
    expect(await bench.send({ dedupeId: 'a' })).toMatchObject({
      delayId: first.delayId,
      duplicate: true,
      deliverAtMs: bench.clock.wallMs() + 10 * MINUTE_MS,
    })
    await bench.clock.advance(11 * MINUTE_MS)
    expect(await bench.delivered()).toHaveLength(2)
    expect((await bench.send({ dedupeId: 'a' })).duplicate).toBe(false)
  })

  it('of one that fired within its window is known after a restart', async () => {
    bench = await SendBench.started({}, 1)
    await bench.send({ dedupeId: 'a', delayMs: MINUTE_MS })
    await bench.clock.advance(2 * MINUTE_MS)
    await bench.restart()
    expect(await bench.send({ dedupeId: 'a' })).toMatchObject({ duplicate: true, offset: 0 })
    await bench.clock.advance(3 * MINUTE_MS)
    expect(await bench.send({ dedupeId: 'a' })).toMatchObject({ duplicate: false })
  })

  it('is free again when its waiting record has been cancelled', async () => {
    bench = await SendBench.started({}, 1)
    const { delayId } = await bench.send({ dedupeId: 'a', delayMs: HOUR_MS })
    await bench.sends.cancelDelayed(delayId)
    expect((await bench.send({ dedupeId: 'a', delayMs: HOUR_MS })).duplicate).toBe(false)
    await bench.restart()
    expect((await bench.send({ dedupeId: 'a' })).duplicate).toBe(true)
    expect(await bench.sends.countDelayed('')).toBe(1)
  })

  it('makes the second of two at once wait, also within one call', async () => {
    bench = await SendBench.started({}, 1, { durableDelayMs: 10 })
    const sends = [
      bench.sends.send('orders', [aSend({ dedupeId: 'a' }), aSend({ dedupeId: 'a' })]),
      bench.sends.send('orders', [aSend({ dedupeId: 'a' }), aSend()]),
    ]
    const results = (await bench.finish(Promise.all(sends))).flat()
    expect(
      results.map((result) => (result.error === undefined ? result.duplicate : 'error')),
    ).toEqual([false, true, true, false])
    expect(results.slice(0, 3).map((result) => result.error ?? result.offset)).toEqual([0, 0, 0])
  })

  it('lets the second be tried when the first has failed', async () => {
    bench = await SendBench.started({}, 1, { durableDelayMs: 10 })
    await bench.send()
    let appends = 0
    bench.store.beforeAppend.set('orders-0', () => {
      if (appends++ === 0) throw new BrokerError('STORAGE_FULL', 'full')
    })
    const sends = [
      bench.sends.send('orders', [aSend({ dedupeId: 'a' })]),
      bench.sends.send('orders', [aSend({ dedupeId: 'a' })]),
    ]
    const results = (await bench.finish(Promise.all(sends))).flat()
    expect(results[0]?.error?.code).toBe('STORAGE_FULL')
    expect(results[1]).toMatchObject({ error: undefined, offset: 1, duplicate: false })
  })

  it('is compared with the payload where the topic wants that', async () => {
    bench = await SendBench.started({ 'dedupe.verify': 'true' }, 1)
    const key = Buffer.from('k')
    await bench.send({ dedupeId: 'a', key, value: Buffer.from('1') })
    await bench.send({ dedupeId: 'w', key, value: Buffer.from('1'), delayMs: HOUR_MS })
    for (let start = 0; start < 2; start++) {
      expect((await bench.send({ dedupeId: 'a', key, value: Buffer.from('1') })).duplicate).toBe(
        true,
      )
      expect(await bench.refusal({ dedupeId: 'a', key, value: Buffer.from('2') })).toBe(
        'DEDUPE_MISMATCH',
      )
      expect(await bench.refusal({ dedupeId: 'w', key, value: Buffer.from('2') })).toBe(
        'DEDUPE_MISMATCH',
      )
      await bench.restart()
    }
  })

  it('means nothing where the window is 0', async () => {
    bench = await SendBench.started({ 'dedupe.window.ms': '0' }, 1)
    expect(await bench.send({ dedupeId: 'a' })).toMatchObject({ offset: 0, duplicate: false })
    expect(await bench.send({ dedupeId: 'a' })).toMatchObject({ offset: 1, duplicate: false })
  })

  it('is forgotten early when there are too many, the oldest first, and that is said once', async () => {
    bench = await SendBench.started({ 'dedupe.window.ms': '1d' }, 1, {
      options: { mostIdsPerTopic: 1000 },
    })
    for (let i = 0; i < 3000; i += 100) {
      const records = Array.from({ length: 100 }, (_, j) => aSend({ dedupeId: `id${i + j}` }))
      await bench.finish(bench.sends.send('orders', records))
      await bench.clock.advance(1)
    }
    const recent = await bench.finish(
      bench.sends.send(
        'orders',
        Array.from({ length: 400 }, (_, j) => aSend({ dedupeId: `id${2600 + j}` })),
      ),
    )
    expect(recent.every((result) => result.error === undefined && result.duplicate)).toBe(true)
    expect((await bench.send({ dedupeId: 'id0' })).duplicate).toBe(false)
    const shrunk = bench.lines.filter(
      ({ details }) => 'event' in details && details.event === 'dedupe_window_shrunk',
    )
    expect(shrunk).toHaveLength(1)
  })

  it('is not shrunk by ids whose window is over', async () => {
    bench = await SendBench.started({ 'dedupe.window.ms': '10s' }, 1, {
      options: { mostIdsPerTopic: 1000 },
    })
    for (let i = 0; i < 4000; i += 100) {
      const records = Array.from({ length: 100 }, (_, j) => aSend({ dedupeId: `id${i + j}` }))
      await bench.finish(bench.sends.send('orders', records))
      await bench.clock.advance(1500)
    }
    expect(bench.lines.filter(({ level }) => level === 'warn')).toEqual([])
    const first = 4000 - 6 * 100
    const records = Array.from({ length: 600 }, (_, j) => aSend({ dedupeId: `id${first + j}` }))
    const results = await bench.finish(bench.sends.send('orders', records))
    expect(results.every((result) => result.error === undefined && result.duplicate)).toBe(true)
  })

  it('of a topic made anew is another', async () => {
    bench = await SendBench.started({}, 1)
    await bench.send({ dedupeId: 'a' })
    await bench.send({ dedupeId: 'w', delayMs: DAY_MS })
    await bench.topics.delete('orders')
    await bench.topics.create({ name: 'orders', partitions: 1 })
    expect((await bench.send({ dedupeId: 'a' })).duplicate).toBe(false)
    expect((await bench.send({ dedupeId: 'w' })).duplicate).toBe(false)
  })

  it('is taken from the record’s field, never from headers that a user sets', async () => {
    bench = await SendBench.started({}, 1)
    const headers = [
      { key: 'job.dedupe_id', value: Buffer.from('x') },
      { key: 'job.delay_id', value: Buffer.from('y') },
      { key: 'mine', value: Buffer.from('z') },
    ]
    await bench.send({ headers, dedupeId: 'a' })
    expect((await bench.delivered())[0]?.headers).toMatchObject({ 'job.dedupe_id': 'a', mine: 'z' })
    expect((await bench.delivered())[0]?.headers).not.toHaveProperty('job.delay_id')
    expect(bench.topics.getPartition('orders', 0).highWatermark).toBe(toOffset(1))
  })
})
