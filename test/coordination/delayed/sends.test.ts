import { afterEach, describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { DAY_MS, HOUR_MS } from '../../../src/common/units.ts'
import { codeOf } from '../../support/group-bench.ts'
import { aSend, SendBench } from '../../support/send-bench.ts'

let bench: SendBench

afterEach(async () => {
  await bench.close()
})

describe('a delayed record', () => {
  it('waits, and is appended when it is due, once, with its id and all that it came with', async () => {
    bench = await SendBench.started({}, 1)
    const dueMs = bench.clock.wallMs() + 90_000
    const sent = await bench.send({
      key: Buffer.from('k'),
      value: Buffer.from('later'),
      headers: [{ key: 'h', value: Buffer.from('1') }],
      delayMs: 90_000,
    })
    expect(sent).toMatchObject({ partition: 0, offset: undefined, duplicate: false })
    expect(sent.deliverAtMs).toBe(dueMs)
    expect(await bench.sends.countDelayed('orders')).toBe(1)
    await bench.clock.advance(89_999)
    expect(await bench.delivered()).toEqual([])
    await bench.clock.advance(1)
    expect(await bench.delivered()).toEqual([
      {
        offset: 0,
        key: 'k',
        value: 'later',
        timestampMs: dueMs,
        headers: { h: '1', 'job.delay_id': sent.delayId, 'job.deliver_at_ms': String(dueMs) },
      },
    ])
    expect(await bench.sends.countDelayed('')).toBe(0)
    await bench.restart()
    await bench.clock.advance(HOUR_MS)
    expect(await bench.delivered()).toHaveLength(1)
  })

  it('is there after a restart, and fires late rather than never', async () => {
    bench = await SendBench.started({}, 1)
    await bench.send({ value: Buffer.from('b'), delayMs: 2000 })
    await bench.send({ value: Buffer.from('a'), delayMs: 1000 })
    await bench.send({ value: Buffer.from('c'), delayMs: 2000 })
    await bench.restart()
    await bench.clock.advance(DAY_MS)
    expect((await bench.delivered()).map(({ value }) => value)).toEqual(['a', 'b', 'c'])
  })

  it('of the past is appended at once, and has an offset', async () => {
    bench = await SendBench.started({}, 1)
    const sent = await bench.send({ deliverAtMs: bench.clock.wallMs() - 5 })
    expect(sent).toMatchObject({ offset: 0, delayId: '', deliverAtMs: 0 })
    expect(await bench.send({ delayMs: 0 })).toMatchObject({ offset: 1 })
    expect((await bench.delivered()).map(({ headers }) => headers)).toEqual([{}, {}])
  })

  it('does not fire early when the wall clock goes back, and fires when it jumps ahead', async () => {
    bench = await SendBench.started({}, 1)
    const startMs = bench.clock.wallMs()
    await bench.send({ delayMs: 10_000 })
    bench.clock.setWall(startMs - HOUR_MS)
    await bench.clock.advance(HOUR_MS)
    expect(await bench.delivered()).toEqual([])
    await bench.clock.advance(10_000)
    expect(await bench.delivered()).toHaveLength(1)
    await bench.send({ delayMs: 20 * DAY_MS })
    bench.clock.setWall(bench.clock.wallMs() + 21 * DAY_MS)
    await bench.clock.advance(5000)
    expect(await bench.delivered()).toHaveLength(2)
  })

  it('can wait for 400 days, and no longer', async () => {
    bench = await SendBench.started({ 'retention.ms': 'unlimited' }, 1)
    await bench.send({ delayMs: 400 * DAY_MS })
    await bench.send({ delayMs: 2 ** 31 })
    expect(await bench.refusal({ delayMs: 400 * DAY_MS + 1 })).toBe('DELAY_TOO_LONG')
    bench.clock.setWall(bench.clock.wallMs() + 2 ** 31 - 1)
    await bench.clock.advance(0)
    expect(await bench.delivered()).toHaveLength(0)
    await bench.clock.advance(5000)
    expect(await bench.delivered()).toHaveLength(1)
    bench.clock.setWall(bench.clock.wallMs() + 400 * DAY_MS - 2 ** 31 - 10_000)
    await bench.clock.advance(0)
    expect(await bench.delivered()).toHaveLength(1)
    await bench.clock.advance(20_000)
    expect(await bench.delivered()).toHaveLength(2)
  })

  it('of the same millisecond comes in the order of acceptance, and all within 3 s where 10 000 are due at once', async () => {
    bench = await SendBench.started({}, 1)
    const deliverAtMs = bench.clock.wallMs() + HOUR_MS
    for (let i = 0; i < 10; i++) {
      const records = Array.from({ length: 1000 }, (_, j) =>
        aSend({ value: Buffer.from(String(i * 1000 + j)), deliverAtMs }),
      )
      const results = await bench.sends.send('orders', records)
      expect(results.every(({ error }) => error === undefined)).toBe(true)
    }
    expect(await bench.sends.countDelayed('orders')).toBe(10_000)
    await bench.clock.advance(HOUR_MS - 1)
    expect(await bench.delivered()).toHaveLength(0)
    await bench.clock.advance(3000)
    const values = (await bench.delivered()).map(({ value }) => Number(value))
    expect(values).toEqual(Array.from({ length: 10_000 }, (_, i) => i))
  })

  it('fires no more a second than it may, oldest first, after the broker was down', async () => {
    bench = await SendBench.started({}, 1, { options: { fireMaxPerSec: 100 } })
    const records = Array.from({ length: 500 }, (_, i) =>
      aSend({ value: Buffer.from(String(i)), delayMs: 60_000 - i * 100 }),
    )
    await bench.finish(bench.sends.send('orders', records))
    await bench.sends.close()
    await bench.clock.advance(HOUR_MS)
    await bench.restart()
    await bench.clock.advance(2000)
    const early = (await bench.delivered()).length
    expect(early).toBeGreaterThan(150)
    expect(early).toBeLessThan(250)
    await bench.clock.advance(4000)
    const values = (await bench.delivered()).map(({ value }) => Number(value))
    expect(values).toEqual(Array.from({ length: 500 }, (_, i) => 499 - i))
  })
})

describe('the rate', () => {
  it('is kept after a long rest too', async () => {
    bench = await SendBench.started({}, 1, { options: { fireMaxPerSec: 100 } })
    const deliverAtMs = bench.clock.wallMs() + HOUR_MS
    const records = Array.from({ length: 500 }, () => aSend({ deliverAtMs }))
    await bench.finish(bench.sends.send('orders', records))
    await bench.clock.advance(HOUR_MS + 1000)
    const count = (await bench.delivered()).length
    expect(count).toBeGreaterThan(80)
    expect(count).toBeLessThan(125)
  })
})

describe('cancelling, changing, firing now', () => {
  it('cancels once, and says what became of it afterwards', async () => {
    bench = await SendBench.started({}, 1)
    const { delayId } = await bench.send({ delayMs: 60_000 })
    await bench.sends.cancelDelayed(delayId)
    expect(await bench.sends.countDelayed('orders')).toBe(0)
    expect(await codeOf(bench.sends.cancelDelayed(delayId))).toBe('ALREADY_FIRED')
    await bench.clock.advance(HOUR_MS)
    await bench.restart()
    await bench.clock.advance(HOUR_MS)
    expect(await bench.delivered()).toEqual([])
    expect(await codeOf(bench.sends.cancelDelayed(delayId))).toBe('ALREADY_FIRED')
  })

  it('says ALREADY_FIRED of what has been appended, DELAY_NOT_FOUND of what never was', async () => {
    bench = await SendBench.started({}, 1)
    expect(await codeOf(bench.sends.cancelDelayed('0.0.AAAAAAAAAAAAAAAA'))).toBe('DELAY_NOT_FOUND')
    const { delayId } = await bench.send({ delayMs: 10 })
    await bench.clock.advance(10)
    expect(await codeOf(bench.sends.cancelDelayed(delayId))).toBe('ALREADY_FIRED')
    expect(await codeOf(bench.sends.updateDelayed(delayId, bench.clock.wallMs()))).toBe(
      'ALREADY_FIRED',
    )
    expect(await codeOf(bench.sends.fireDelayed(delayId))).toBe('ALREADY_FIRED')
    const [shard, offset, key = ''] = delayId.split('.')
    const other = key.startsWith('A') ? `B${key.slice(1)}` : `A${key.slice(1)}`
    for (const wrong of [
      '',
      'x',
      `${shard}.${offset}.${other}`,
      `${shard}.99.${key}`,
      `9.${offset}.${key}`,
      `${shard}.${offset}.${key}x`,
      `-1.${offset}.${key}`,
    ]) {
      expect([wrong, await codeOf(bench.sends.cancelDelayed(wrong))]).toEqual([
        wrong,
        'DELAY_NOT_FOUND',
      ])
    }
  })

  it('gives another due time, as often as wanted, under the same id, and knows it after a restart', async () => {
    bench = await SendBench.started({}, 1)
    const nowMs = bench.clock.wallMs()
    const { delayId } = await bench.send({ value: Buffer.from('x'), delayMs: 60_000 })
    await bench.sends.updateDelayed(delayId, nowMs + HOUR_MS)
    await bench.sends.updateDelayed(delayId, nowMs + 2 * HOUR_MS)
    expect(await bench.sends.countDelayed('orders')).toBe(1)
    expect(await codeOf(bench.sends.updateDelayed(delayId, nowMs + 401 * DAY_MS))).toBe(
      'DELAY_TOO_LONG',
    )
    expect(await codeOf(bench.sends.updateDelayed(delayId, -1))).toBe('INVALID_DELAY')
    await bench.restart()
    expect(await bench.sends.countDelayed('orders')).toBe(1)
    await bench.sends.updateDelayed(delayId, nowMs + 30_000)
    await bench.clock.advance(29_999)
    expect(await bench.delivered()).toHaveLength(0)
    await bench.clock.advance(1)
    expect((await bench.delivered())[0]?.headers['job.delay_id']).toBe(delayId)
    await bench.clock.advance(3 * HOUR_MS)
    expect(await bench.delivered()).toHaveLength(1)
    expect(await codeOf(bench.sends.cancelDelayed(delayId))).toBe('ALREADY_FIRED')
  })

  for (const isAskedAgain of [false, true]) {
    it(`leaves one copy where the answer of a change was lost${isAskedAgain ? ', and it is asked for again' : ''}`, async () => {
      bench = await SendBench.started({}, 1)
      const { delayId } = await bench.send({ value: Buffer.from('x'), delayMs: 1000 })
      let isLost = false
      bench.store.aroundAppend = async (name, append) => {
        const result = await append()
        if (isLost || !name.startsWith('__delayed')) return result
        isLost = true
        throw new BrokerError('STORAGE_ERROR', `the answer of ${name} was lost`)
      }
      const dueMs = bench.clock.wallMs() + HOUR_MS
      expect(await codeOf(bench.sends.updateDelayed(delayId, dueMs))).toBe('STORAGE_ERROR')
      if (isAskedAgain) await bench.sends.updateDelayed(delayId, dueMs)
      await bench.clock.advance(10_000)
      expect(await bench.delivered()).toHaveLength(isAskedAgain ? 0 : 1)
      await bench.restart()
      expect(await bench.finish(bench.sends.countDelayed(''))).toBe(isAskedAgain ? 1 : 0)
      await bench.clock.advance(2 * HOUR_MS)
      expect(await bench.delivered()).toHaveLength(1)
    })
  }

  it('fires one now, and says where it is', async () => {
    bench = await SendBench.started({}, 2)
    const { delayId } = await bench.send({ partition: 1, delayMs: DAY_MS })
    expect(await bench.sends.fireDelayed(delayId)).toEqual({ partition: 1, offset: 0 })
    expect(await bench.delivered(1)).toHaveLength(1)
    await bench.clock.advance(HOUR_MS)
    expect(await bench.sends.countDelayed('')).toBe(0)
  })

  it('lets exactly one of a cancellation and the firing win', async () => {
    bench = await SendBench.started({}, 1, { durableDelayMs: 3 })
    const outcomes = new Set<string>()
    for (let early = 0; early < 24; early++) {
      const before = (await bench.delivered()).length
      const { delayId } = await bench.send({ delayMs: 50 })
      await bench.clock.advance(38 + early)
      const code = await bench.finish(codeOf(bench.sends.cancelDelayed(delayId)))
      await bench.clock.advance(200)
      const fired = (await bench.delivered()).length - before
      expect([early, code, fired]).toEqual([early, code, code === 'none' ? 0 : 1])
      expect(await bench.sends.countDelayed('')).toBe(0)
      outcomes.add(code)
    }
    expect(outcomes).toEqual(new Set(['none', 'ALREADY_FIRED']))
  })
})

describe('listing', () => {
  it('lists in the order of due time, by topic and range, page by page', async () => {
    bench = await SendBench.started({}, 3)
    await bench.topics.create({ name: 'others' })
    const startMs = bench.clock.wallMs()
    for (let i = 0; i < 30; i++) {
      await bench.send({
        key: Buffer.from(`k${i}`),
        value: Buffer.from(String(i)),
        delayMs: 1000 + ((i * 7) % 30) * 400_000,
      })
    }
    await bench.send({ delayMs: 500_000 }, 'others')
    await bench.clock.advance(500)
    const seen: [string, number][] = []
    let pageToken = ''
    do {
      const page = await bench.sends.listDelayed({
        topic: 'orders',
        fromMs: startMs + 400_000,
        toMs: undefined,
        pageSize: 7,
        pageToken,
      })
      for (const { record, deliverAtMs } of page.records) {
        seen.push([Buffer.from(record.value ?? []).toString(), deliverAtMs - startMs])
      }
      pageToken = page.nextPageToken
    } while (pageToken !== '')
    const dues = seen.map(([, dueMs]) => dueMs)
    expect(dues).toEqual(dues.toSorted((a, b) => a - b))
    expect(seen).toHaveLength(29)
    expect(await bench.sends.countDelayed('others')).toBe(1)
    expect(await bench.sends.countDelayed('')).toBe(31)
    const wrong = { topic: '', fromMs: 5, toMs: 4, pageSize: 0, pageToken: '' }
    expect(await codeOf(bench.sends.listDelayed(wrong))).toBe('INVALID_REQUEST')
    expect(await codeOf(bench.sends.listDelayed({ ...wrong, toMs: 9, pageToken: 'none' }))).toBe(
      'INVALID_CURSOR',
    )
  })
})

describe('what is wrong with a record', () => {
  it('is said of that record alone', async () => {
    bench = await SendBench.started({ 'max.message.bytes': '4KiB', 'delay.max.ms': '1h' }, 1)
    const cases: [Parameters<typeof aSend>[0], string][] = [
      [{ delayMs: 5, deliverAtMs: 5 }, 'CONFLICTING_FIELDS'],
      [{ delayMs: -1 }, 'INVALID_DELAY'],
      [{ delayMs: NaN }, 'INVALID_DELAY'],
      [{ deliverAtMs: Infinity }, 'INVALID_DELAY'],
      [{ delayMs: HOUR_MS + 1 }, 'DELAY_TOO_LONG'],
      [{ dedupeId: 'x'.repeat(129) }, 'INVALID_RECORD'],
      [{ sendId: new Uint8Array(15) }, 'INVALID_REQUEST'],
      [{ value: Buffer.alloc(4096) }, 'RECORD_TOO_LARGE'],
      [{ partition: 1 }, 'UNKNOWN_PARTITION'],
      [{ timestampMs: 1.5 }, 'INVALID_TIMESTAMP'],
      [{ timestampMs: bench.clock.wallMs() + DAY_MS }, 'INVALID_TIMESTAMP'],
    ]
    const records = cases.flatMap(([record]) => [aSend(record), aSend()])
    const results = await bench.sends.send('orders', records)
    expect(results.map(({ error }) => error?.code ?? 'none')).toEqual(
      cases.flatMap(([, code]) => [code, 'none']),
    )
    expect(results[8]?.error?.details).toMatchObject({ limit: HOUR_MS })
    expect(results[14]?.error?.details).toMatchObject({ index: 14 })
    expect(await bench.delivered()).toHaveLength(cases.length)
  })

  it('of the call is thrown, and nothing is done', async () => {
    bench = await SendBench.started({}, 1)
    const { sends } = bench
    expect(await codeOf(sends.send('nothing', [aSend()]))).toBe('UNKNOWN_TOPIC')
    expect(await codeOf(sends.send('__offsets', [aSend()]))).toBe('TOPIC_INTERNAL')
    expect(await codeOf(sends.send('orders', []))).toBe('EMPTY_BATCH')
    const many = Array.from({ length: 10_001 }, () => aSend())
    expect(await codeOf(sends.send('orders', many))).toBe('BATCH_TOO_LARGE')
    const large = Array.from({ length: 9 }, () => aSend({ value: Buffer.alloc(1_000_000) }))
    expect(await codeOf(sends.send('orders', large))).toBe('BATCH_TOO_LARGE')
    expect(await bench.delivered()).toEqual([])
  })

  it('needs a key in a compacted topic, also later', async () => {
    bench = await SendBench.started({ 'cleanup.policy': 'compact' }, 1)
    expect(await bench.refusal({ delayMs: 1000 })).toBe('INVALID_RECORD')
    expect(await bench.refusal({})).toBe('INVALID_RECORD')
  })
})

describe('a repeat with the same send id', () => {
  it('gets the answer of the first, while that is under way and after a restart too', async () => {
    bench = await SendBench.started({}, 1, { durableDelayMs: 5 })
    const sendId = Buffer.alloc(16, 7)
    const both = await bench.finish(
      Promise.all([
        bench.sends.send('orders', [aSend({ sendId, delayMs: 60_000 })]),
        bench.sends.send('orders', [aSend({ sendId, delayMs: 60_000 })]),
      ]),
    )
    expect(both[0]).toEqual(both[1])
    await bench.restart()
    await bench.finish(bench.sends.loaded())
    const again = await bench.send({ sendId, delayMs: 60_000 })
    expect([again]).toEqual(both[0])
    expect(await bench.sends.countDelayed('')).toBe(1)
    const now = Buffer.alloc(16, 8)
    expect(await bench.send({ sendId: now })).toEqual(await bench.send({ sendId: now }))
    expect(await bench.delivered()).toHaveLength(1)
  })
})

describe('a target', () => {
  it('that was deleted, or made anew, does not get what was meant for the old one', async () => {
    bench = await SendBench.started({}, 1)
    const { delayId } = await bench.send({ delayMs: 1000 })
    await bench.topics.delete('orders')
    await bench.topics.create({ name: 'orders', partitions: 1 })
    expect(await codeOf(bench.sends.fireDelayed(delayId))).toBe('UNKNOWN_TOPIC_ID')
    await bench.clock.advance(2000)
    expect(await bench.delivered()).toEqual([])
    expect(await bench.sends.countDelayed('')).toBe(0)
    expect(bench.sends.counters).toEqual({ fired: 0, targetMissing: 1 })
    expect(bench.lines.some(({ details }) => 'event' in details)).toBe(true)
    await bench.restart()
    await bench.clock.advance(HOUR_MS)
    expect(await bench.sends.countDelayed('')).toBe(0)
  })

  it('that fails is tried again, in order, and holds up no other', async () => {
    bench = await SendBench.started({}, 2)
    let failing = true
    bench.store.beforeAppend.set('orders-0', () => {
      if (failing) throw new Error('no')
    })
    for (let i = 0; i < 5; i++) {
      await bench.send({ partition: 0, value: Buffer.from(String(i)), delayMs: 1000 + i })
      await bench.send({ partition: 1, value: Buffer.from(String(i)), delayMs: 1000 + i })
    }
    await bench.clock.advance(60_000)
    expect(await bench.delivered(0)).toHaveLength(0)
    expect(await bench.delivered(1)).toHaveLength(5)
    expect(await bench.sends.countDelayed('orders')).toBe(5)
    const listed = await bench.sends.listDelayed({
      topic: 'orders',
      fromMs: undefined,
      toMs: undefined,
      pageSize: 0,
      pageToken: '',
    })
    expect(listed.records).toHaveLength(5)
    await bench.sends.cancelDelayed(listed.records[2]?.delayId ?? '')
    failing = false
    await bench.clock.advance(31_000)
    expect((await bench.delivered(0)).map(({ value }) => value)).toEqual(['0', '1', '3', '4'])
    expect(await bench.sends.countDelayed('')).toBe(0)
  })
})

describe('a target that works again', () => {
  it('gets what has become due meanwhile first', async () => {
    bench = await SendBench.started({}, 1)
    let failing = true
    bench.store.beforeAppend.set('orders-0', () => {
      if (failing) throw new Error('no')
    })
    for (let i = 0; i < 4; i++) {
      await bench.send({ value: Buffer.from(String(i)), delayMs: 1000 + i * 100 })
    }
    // After three failures it is left alone for a while.
    await bench.clock.advance(1250)
    failing = false
    await bench.clock.advance(5000)
    expect((await bench.delivered()).map(({ value }) => value)).toEqual(['0', '1', '2', '3'])
  })
})

describe('a target that can neither be written nor read', () => {
  it('gets each record once when it works again, also where it fails once more in between', async () => {
    bench = await SendBench.started({}, 1)
    const ids = [await bench.send({ value: Buffer.from('a'), delayMs: HOUR_MS })]
    ids.push(await bench.send({ value: Buffer.from('b'), delayMs: HOUR_MS }))
    bench.store.beforeAppend.set('orders-0', () => {
      throw new BrokerError('STORAGE_ERROR', 'it takes nothing')
    })
    const orders = bench.topics.getPartition('orders', 0)
    const flush = orders.flush.bind(orders)
    let searches = 0
    orders.flush = async () => {
      // Each search begins with one. Of both records it is unknown what has become of them; then of the second once more.
      if ([0, 1, 3].includes(searches++)) throw new BrokerError('STORAGE_ERROR', 'it says nothing')
      return flush()
    }
    const codes = ids.map(({ delayId }) => codeOf(bench.sends.fireDelayed(delayId)))
    expect(await bench.finish(Promise.all(codes))).toEqual(['STORAGE_ERROR', 'STORAGE_ERROR'])
    bench.store.beforeAppend.clear()
    await bench.clock.advance(60_000)
    expect(searches).toBe(5)
    await bench.clock.advance(HOUR_MS)
    const values = (await bench.delivered()).map(({ value }) => value)
    expect(new Set(values)).toEqual(new Set(['a', 'b']))
    expect(values).toHaveLength(2)
    expect(await bench.sends.countDelayed('')).toBe(0)
  })
})

describe('two who cancel the same record', () => {
  it('both get an answer that is true, also when the first fails', async () => {
    bench = await SendBench.started({}, 1, { durableDelayMs: 5 })
    const { delayId } = await bench.send({ delayMs: HOUR_MS })
    const [shard] = delayId.split('.')
    let appends = 0
    bench.store.beforeAppend.set(`__delayed-${shard}`, () => {
      if (appends++ === 0) throw new Error('no')
    })
    const codes = await bench.finish(
      Promise.all([
        codeOf(bench.sends.cancelDelayed(delayId)),
        codeOf(bench.sends.cancelDelayed(delayId)),
        codeOf(bench.sends.cancelDelayed(delayId)),
      ]),
    )
    expect(codes.toSorted()).toEqual(['ALREADY_FIRED', 'INTERNAL_ERROR', 'none'])
    expect(await bench.sends.countDelayed('')).toBe(0)
  })
})

describe('a partition of delayed records that is damaged', () => {
  it('refuses what it is asked, while the others go on', async () => {
    bench = await SendBench.started({}, 4)
    const ids: string[] = []
    for (let partition = 0; partition < 4; partition++) {
      ids.push((await bench.send({ partition, delayMs: HOUR_MS })).delayId)
    }
    const shards = ids.map((id) => id.split('.')[0])
    expect(new Set(shards).size).toBe(4)
    bench.damagedAtStart.set(`__delayed-${shards[2]}`, { start: 0, end: 1 })
    await bench.restart()
    expect(await bench.refusal({ partition: 2, delayMs: 5 })).toBe('SEGMENT_QUARANTINED')
    expect(await bench.refusal({ partition: 2, dedupeId: 'a' })).toBe('SEGMENT_QUARANTINED')
    expect(await bench.refusal({ partition: 2 })).toBe('none')
    expect(await bench.refusal({ partition: 1, delayMs: 5 })).toBe('none')
    expect(await codeOf(bench.sends.countDelayed(''))).toBe('SEGMENT_QUARANTINED')
    await bench.clock.advance(2 * HOUR_MS)
    expect(await bench.delivered(1)).toHaveLength(2)
    bench.store.damaged.clear()
    await bench.clock.advance(2000)
    expect(await bench.sends.countDelayed('')).toBe(0)
    expect(await bench.delivered(2)).toHaveLength(2)
  })

  it('goes on without what cannot be read where that is wanted', async () => {
    bench = await SendBench.started({}, 1, { options: { onCorruption: 'skip' } })
    const { delayId } = await bench.send({ delayMs: HOUR_MS, value: Buffer.from('lost') })
    await bench.send({ delayMs: HOUR_MS, value: Buffer.from('there') })
    const [shard] = delayId.split('.')
    bench.damagedAtStart.set(`__delayed-${shard}`, { start: 0, end: 1 })
    await bench.restart()
    await bench.clock.advance(HOUR_MS)
    expect((await bench.delivered()).map(({ value }) => value)).toEqual(['there'])
  })
})

describe('a record that its topic does not take any more', () => {
  it('waits for the setting to be changed back, and holds up no other', async () => {
    bench = await SendBench.started({}, 1)
    await bench.send({ value: Buffer.alloc(10_000), delayMs: 1000 })
    await bench.send({ value: Buffer.from('small'), delayMs: 2000 })
    await bench.finish(bench.topics.alter('orders', { set: { 'max.message.bytes': '4KiB' } }))
    await bench.clock.advance(70_000)
    expect((await bench.delivered()).map(({ value }) => value)).toEqual(['small'])
    expect(await bench.sends.countDelayed('')).toBe(1)
    await bench.finish(bench.topics.alter('orders', { clear: ['max.message.bytes'] }))
    await bench.clock.advance(60_000)
    expect(await bench.delivered()).toHaveLength(2)
    expect(await bench.sends.countDelayed('')).toBe(0)
  })

  it('can be cancelled, changed and fired meanwhile', async () => {
    bench = await SendBench.started({}, 1)
    const large = { value: Buffer.alloc(10_000), delayMs: 1000 }
    const sent = [await bench.send(large), await bench.send(large), await bench.send(large)]
    const [first = '', second = '', third = ''] = sent.map(({ delayId }) => delayId)
    await bench.finish(bench.topics.alter('orders', { set: { 'max.message.bytes': '4KiB' } }))
    await bench.clock.advance(2000)
    await bench.sends.cancelDelayed(first)
    await bench.sends.updateDelayed(second, bench.clock.wallMs() + HOUR_MS)
    expect(await codeOf(bench.sends.fireDelayed(third))).toBe('RECORD_TOO_LARGE')
    expect(await bench.sends.countDelayed('')).toBe(2)
    await bench.finish(bench.topics.alter('orders', { clear: ['max.message.bytes'] }))
    await bench.clock.advance(2 * 60_000)
    expect(await bench.delivered()).toHaveLength(1)
    await bench.clock.advance(HOUR_MS)
    expect(await bench.delivered()).toHaveLength(2)
  })
})
