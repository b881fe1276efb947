import { describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import type { DeadLetters } from '../../../src/coordination/queue/queue-types.ts'
import { BatchBuilder } from '../../../src/record/batch-builder.ts'
import { stampCrc } from '../../../src/record/batch-header.ts'
import { settle } from '../../support/fake-clock.ts'
import {
  ALL,
  aLetter,
  DLQ,
  failureOf,
  GROUP,
  PLACE,
  RedriveBench,
  RETRY,
  SOURCE,
} from '../../support/redrive-bench.ts'

type ListRequest = Parameters<DeadLetters['list']>[0]
type Page = Awaited<ReturnType<DeadLetters['list']>>

const REQUEST: ListRequest = {
  place: PLACE,
  filter: ALL,
  pageSize: 100,
  pageToken: '',
  includeSettled: false,
}

const list = (bench: RedriveBench, request: Partial<ListRequest> = {}): Promise<Page> =>
  bench.over(bench.box.list({ ...REQUEST, ...request }))

/** All pages together, and how many there were. */
async function listAll(
  bench: RedriveBench,
  request: Partial<ListRequest> = {},
): Promise<{ places: readonly string[]; pages: number }> {
  const places: string[] = []
  let pageToken = ''
  let pages = 0
  do {
    const page = await list(bench, { ...request, pageToken })
    places.push(...page.letters.map(({ partition, record }) => `${partition}/${record.offset}`))
    pageToken = page.nextPageToken
    pages++
  } while (pageToken !== '')
  return { places, pages }
}

const numbers = (count: number, from = 0): number[] =>
  Array.from({ length: count }, (_, i) => from + i)

describe('listing dead letters', () => {
  it('tells what is known of each', async () => {
    const bench = await new RedriveBench().start()
    await bench.put([aLetter(7, { partition: 2, deliveries: 3, failures: 2 })])
    const page = await list(bench)
    expect(page.topic).toBe(DLQ)
    expect(page.nextPageToken).toBe('')
    expect(page.letters).toHaveLength(1)
    expect(page.letters[0]).toMatchObject({
      partition: 0,
      group: GROUP,
      sourceTopic: SOURCE,
      sourcePartition: 2,
      sourceOffset: 7,
      reason: 'attempts_exhausted',
      deliveries: 3,
      failures: 2,
      firstFailedMs: 1007,
      lastFailedMs: 2007,
      error: { type: 'TypeError', message: 'failed 7', stack: 'at work' },
      memberId: 'm-1',
      redrives: 0,
      settled: false,
    })
    expect(Buffer.from(page.letters[0]?.record.value ?? '').toString()).toBe('v7')
  })

  it('shows a record that is none as nobody’s', async () => {
    const bench = await new RedriveBench().start()
    await bench.put([{ key: undefined, value: undefined, headers: [], timestampMs: 5 }])
    const [letter] = (await list(bench)).letters
    expect(letter).toMatchObject({ group: '', reason: '', sourceTopic: '', settled: false })
    expect(letter?.record).toMatchObject({ timestampMs: 5, key: undefined, value: undefined })
  })

  it('goes by partition and offset, in pages that together are everything once', async () => {
    const bench = await new RedriveBench().start(3)
    await bench.put(
      numbers(5).map((id) => aLetter(id)),
      0,
    )
    await bench.put(
      numbers(4).map((id) => aLetter(id)),
      2,
    )
    const all = [...numbers(5).map((i) => `0/${i}`), ...numbers(4).map((i) => `2/${i}`)]
    expect(await listAll(bench)).toEqual({ places: all, pages: 1 })
    expect(await listAll(bench, { pageSize: 1 })).toEqual({ places: all, pages: 9 })
    expect(await listAll(bench, { pageSize: 5 })).toEqual({ places: all, pages: 2 })
    expect(await listAll(bench, { pageSize: 4 })).toEqual({ places: all, pages: 3 })
    expect(await listAll(bench, { pageSize: 9 })).toEqual({ places: all, pages: 1 })
  })

  it('keeps to the filter and its limit over all pages', async () => {
    const bench = await new RedriveBench().start(2)
    const letters = numbers(10).map((id) =>
      aLetter(id, { reason: id % 2 === 0 ? 'rejected' : 'expired' }),
    )
    await bench.put(letters, 0)
    await bench.put(letters, 1)
    const filter = { ...ALL, reason: 'rejected', firstOffset: 3, endOffset: 9, limit: 5 }
    const places = ['0/4', '0/6', '0/8', '1/4', '1/6']
    expect(await listAll(bench, { filter, pageSize: 2 })).toEqual({ places, pages: 3 })
    expect(await listAll(bench, { filter, pageSize: 5 })).toEqual({ places, pages: 1 })
    expect(await listAll(bench, { filter: { ...filter, endOffset: 3 } })).toEqual({
      places: [],
      pages: 1,
    })
  })

  it('leaves out what is settled, unless that is asked for', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(5)
    await bench.over(bench.box.discard(PLACE, { ...ALL, firstOffset: 1, endOffset: 3 }, false))
    expect((await listAll(bench)).places).toEqual(['0/0', '0/3', '0/4'])
    const page = await list(bench, { includeSettled: true })
    expect(page.letters.map(({ settled }) => settled)).toEqual([false, true, true, false, false])
  })

  it('finds the topic of a group and a source, and only its letters there', async () => {
    const bench = await new RedriveBench().start()
    await bench.put([aLetter(0), aLetter(1, { group: 'others' }), aLetter(2, { topic: 'mails' })])
    const place = { topic: '', group: GROUP, sourceTopic: SOURCE }
    const page = await list(bench, { place })
    expect(page.topic).toBe(DLQ)
    expect(page.letters.map(({ record }) => record.offset)).toEqual([0])
    const filter = { ...ALL, group: 'others' }
    expect((await failureOf(list(bench, { place, filter }))).code).toBe('INVALID_FILTER')
  })

  it('refuses places that hold no dead letters', async () => {
    const bench = await new RedriveBench().start()
    const codeOf = async (topic: string): Promise<string> =>
      (await failureOf(list(bench, { place: { topic, group: '', sourceTopic: '' } }))).code
    expect(await codeOf(SOURCE)).toBe('NOT_A_DLQ')
    expect(await codeOf('nothing')).toBe('UNKNOWN_TOPIC')
    const place = { topic: '', group: 'idle', sourceTopic: SOURCE }
    const failure = await failureOf(list(bench, { place }))
    expect(failure.code).toBe('UNKNOWN_TOPIC')
    expect(failure.message).toContain('group idle has no dead letters from orders')
  })

  it('refuses filters and sizes that mean nothing', async () => {
    const bench = await new RedriveBench().start()
    const filter = { ...ALL, firstOffset: 2, endOffset: 1 }
    expect((await failureOf(list(bench, { filter }))).code).toBe('INVALID_FILTER')
    expect((await failureOf(bench.over(bench.box.discard(PLACE, filter, true)))).code).toBe(
      'INVALID_FILTER',
    )
    expect((await failureOf(bench.redrive({ filter }))).code).toBe('INVALID_FILTER')
    for (const pageSize of [0, 1001, 1.5]) {
      expect((await failureOf(list(bench, { pageSize }))).code).toBe('INVALID_REQUEST')
    }
  })

  it('refuses page tokens of its own making only', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(3)
    const { nextPageToken } = await list(bench, { pageSize: 1 })
    const codeOf = async (request: Partial<ListRequest>): Promise<string> =>
      (await failureOf(list(bench, { pageToken: nextPageToken, ...request }))).code
    expect(await codeOf({ filter: { ...ALL, limit: 9 } })).toBe('INVALID_CURSOR')
    expect(await codeOf({ includeSettled: true })).toBe('INVALID_CURSOR')
    const bad = ['x', '!', 'W10', 'e30', nextPageToken.slice(1), 'x'.repeat(10_000)]
    for (const pageToken of bad) expect(await codeOf({ pageToken })).toBe('INVALID_CURSOR')
    await bench.over(bench.topics.delete(DLQ))
    await bench.topics.create({ name: DLQ, partitions: 1, config: { dlq: 'true' } })
    expect(await codeOf({})).toBe('INVALID_CURSOR')
  })

  it('ends a page when it has become large', async () => {
    const bench = await new RedriveBench().start()
    const value = Buffer.alloc(500_000, 'x')
    await bench.put(numbers(20).map((id) => aLetter(id, { value })))
    const { places, pages } = await listAll(bench)
    expect(places).toHaveLength(20)
    expect(pages).toBe(7)
  })

  it('ends a page after some reading when nothing matches, and leaves the loop free meanwhile', async () => {
    const bench = await new RedriveBench().start()
    const value = Buffer.alloc(10_000, 'x')
    for (let i = 0; i < 200; i++) {
      await bench.put(numbers(10, 10 * i).map((id) => aLetter(id, { value })))
    }
    let turns = 0
    const over = new AbortController()
    const counting = (async () => {
      for (; !over.signal.aborted; turns++) await settle()
    })()
    const filter = { ...ALL, errorType: 'Nothing' }
    const page = await list(bench, { filter })
    over.abort()
    await counting
    expect(page.letters).toEqual([])
    expect(page.nextPageToken).not.toBe('')
    // 16 MiB, some 128 KiB at a time.
    expect(turns).toBeGreaterThan(50)
    expect(await listAll(bench, { filter })).toEqual({ places: [], pages: 2 })
  })

  it('passes over what cannot be read', async () => {
    const bench = await new RedriveBench().start()
    await bench.put([aLetter(0)])
    const builder = new BatchBuilder({ maxBytes: 1e6 })
    builder.tryAppend('k', 'v'.repeat(100), bench.clock.wallMs())
    const batch = builder.finish()
    batch[61] = 1 // A length of -1.
    stampCrc(batch, 0)
    await bench.topics.getPartition(DLQ, 0).append(batch, 'durable')
    await bench.put([aLetter(2)])
    await bench.put([aLetter(3)])
    await bench.put([aLetter(4)])
    expect((await listAll(bench)).places).toEqual(['0/0', '0/2', '0/3', '0/4'])
    bench.store.damaged.set(`${DLQ}-0`, { start: 2, end: 4 })
    expect((await listAll(bench)).places).toEqual(['0/0', '0/4'])
    expect(bench.log.lines.some((line) => line.includes('passed over'))).toBe(true)
    await bench.redrive()
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(['v0', 'v4'])
  })

  it('begins where the log begins', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(5)
    await bench.topics.getPartition(DLQ, 0).advanceLogStart(toOffset(3))
    expect((await listAll(bench)).places).toEqual(['0/3', '0/4'])
    expect((await listAll(bench, { includeSettled: true })).places).toEqual(['0/3', '0/4'])
  })
})

describe('discarding dead letters', () => {
  it('marks them for good, and copies nothing', async () => {
    const bench = await new RedriveBench().start(2)
    await bench.fill(5)
    await bench.put([aLetter(5)], 1)
    expect(await bench.over(bench.box.discard(PLACE, ALL, true))).toBe(6)
    expect(await bench.unsettled()).toHaveLength(6)
    expect(await bench.over(bench.box.discard(PLACE, ALL, false))).toBe(6)
    expect(await bench.over(bench.box.discard(PLACE, ALL, false))).toBe(0)
    await bench.restart()
    expect(await bench.unsettled()).toEqual([])
    const { task } = await bench.redrive()
    await bench.untilEnded()
    expect(task?.total).toBe(0)
    expect(await bench.values(RETRY)).toEqual([])
    expect(await bench.records(DLQ)).toHaveLength(5)
  })

  it('goes by the filter and its limit', async () => {
    const bench = await new RedriveBench().start()
    await bench.put(
      numbers(10).map((id) => aLetter(id, { reason: id % 2 === 0 ? 'rejected' : 'expired' })),
    )
    const filter = { ...ALL, reason: 'rejected', limit: 3 }
    expect(await bench.over(bench.box.discard(PLACE, filter, true))).toBe(3)
    expect(await bench.over(bench.box.discard(PLACE, filter, false))).toBe(3)
    expect(await bench.unsettled()).toEqual([1, 3, 5, 6, 7, 8, 9])
    expect(await bench.over(bench.box.discard(PLACE, filter, false))).toBe(2)
  })

  it('counts each letter for one only when two discard at once', async () => {
    const bench = await new RedriveBench({}, 5).start()
    await bench.fill(50)
    const counts = await bench.over(
      Promise.all([1, 2, 3].map(() => bench.box.discard(PLACE, ALL, false))),
    )
    expect(counts.reduce((sum, count) => sum + count, 0)).toBe(50)
    expect(await bench.unsettled()).toEqual([])
  })
})

describe('the preview of a redrive', () => {
  it('counts, measures and shows some, and changes nothing', async () => {
    const bench = await new RedriveBench().start(2)
    await bench.fill(30)
    await bench.put([aLetter(99)], 1)
    const { task, preview } = await bench.redrive({ dryRun: true })
    expect(task).toBeUndefined()
    expect(preview).toMatchObject({ count: 31, firstMs: 2000, lastMs: 2099 })
    expect(preview?.bytes).toBeGreaterThan(31 * 100)
    expect(preview?.samples.map(({ record }) => record.offset)).toEqual(numbers(10))
    expect(await bench.box.listRedrives()).toEqual([])
    expect(await bench.unsettled()).toHaveLength(31)
    const limited = await bench.redrive({ dryRun: true, filter: { ...ALL, limit: 3 } })
    expect(limited.preview?.count).toBe(3)
    expect(limited.preview?.samples).toHaveLength(3)
  })

  it('of nothing is empty', async () => {
    const bench = await new RedriveBench().start()
    const { preview } = await bench.redrive({ dryRun: true })
    expect(preview).toEqual({ count: 0, bytes: 0, firstMs: 0, lastMs: 0, samples: [] })
  })

  it('shows no more than people can be sent', async () => {
    const bench = await new RedriveBench().start()
    const value = Buffer.alloc(300_000, 'x')
    await bench.put(numbers(10).map((id) => aLetter(id, { value })))
    const { preview } = await bench.redrive({ dryRun: true })
    expect(preview?.count).toBe(10)
    expect(preview?.samples).toHaveLength(3)
  })

  it('says what is wrong with the target', async () => {
    const bench = await new RedriveBench().start()
    const failure = await failureOf(bench.redrive({ dryRun: true, toTopic: 'nothing' }))
    expect(failure.code).toBe('UNKNOWN_TOPIC')
  })
})

describe('a box of dead letters', () => {
  it('reports tasks that it cannot read, and leaves them alone', async () => {
    const put: string[] = []
    const bench = await new RedriveBench({
      tasks: {
        put: async (taskId) => {
          put.push(taskId)
        },
        all: () =>
          new Map([
            ['redrive-1', 'nonsense'],
            ['redrive-2', '{"v":99}'],
          ]),
      },
    }).start()
    expect(await bench.box.listRedrives()).toEqual([])
    expect(bench.log.lines.filter((line) => line.startsWith('error'))).toHaveLength(2)
    expect(put).toEqual([])
  })

  it('takes nothing on once it is closed', async () => {
    const bench = await new RedriveBench().start()
    await bench.over(bench.box.close())
    expect((await failureOf(list(bench))).code).toBe('CLOSED')
    expect((await failureOf(bench.redrive())).code).toBe('CLOSED')
  })
})
