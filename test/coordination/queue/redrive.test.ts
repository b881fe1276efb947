import { describe, expect, it } from 'vitest'
import {
  ALL,
  DLQ,
  GROUP,
  PLACE,
  RedriveBench,
  RETRY,
  SOURCE,
  aLetter,
  failureOf,
} from '../../support/redrive-bench.ts'
import { BrokerError } from '../../../src/common/errors.ts'
import { readDeadLetter } from '../../../src/coordination/queue/dead-letter-record.ts'
import { retryTopicName } from '../../../src/coordination/queue/names.ts'
import { toOffset } from '../../../src/common/offset.ts'
import type { Peer } from '../../../src/coordination/peer.ts'

const numbers = (count: number, from = 0): number[] =>
  Array.from({ length: count }, (_, i) => from + i)
const texts = (count: number, from = 0): string[] => numbers(count, from).map((i) => `v${i}`)

describe('a redrive to the group', () => {
  it('copies each letter, once, to the retry topic of its group, and marks it', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(3)
    const { task } = await bench.redrive()
    expect(task).toMatchObject({ state: 'running', total: 3, moved: 0, topic: DLQ, toTopic: '' })
    await bench.untilEnded()
    const copies = await bench.records(RETRY)
    expect(copies.map(({ key, value }) => [key, value])).toEqual([
      ['k0', 'v0'],
      ['k1', 'v1'],
      ['k2', 'v2'],
    ])
    const topicId = bench.topics.get(DLQ).id
    expect(copies[1]?.headers).toMatchObject({
      trace: '1',
      'dlq.topic': SOURCE,
      'dlq.partition': '0',
      'dlq.offset': '1',
      'dlq.group': GROUP,
      'dlq.redrives': '1',
      'redrive.id': `${topicId}/0/1`,
    })
    expect(copies[1]?.headers['job.failures']).toBeUndefined()
    expect(copies[1]?.headers['dlq.id']).toBeUndefined()
    expect(copies[1]?.timestampMs).toBeGreaterThan(bench.clock.wallMs() - 10_000)
    expect(await bench.unsettled()).toEqual([])
    expect(await bench.records(DLQ)).toHaveLength(3)
    const [ended] = await bench.box.listRedrives()
    expect(ended).toMatchObject({ state: 'done', moved: 3, total: 3, error: '' })
    expect(ended?.endedMs).toBeGreaterThanOrEqual(ended?.startedMs ?? Infinity)
  })

  it('brings each letter of a shared topic to its own group and source', async () => {
    const bench = await new RedriveBench().start()
    await bench.topics.create({ name: 'mails', partitions: 1 })
    await bench.put([
      aLetter(0),
      aLetter(1, { group: 'others' }),
      aLetter(2, { topic: 'mails' }),
      aLetter(3),
    ])
    await bench.redrive()
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(['v0', 'v3'])
    expect(await bench.values(retryTopicName('others', SOURCE))).toEqual(['v1'])
    expect(await bench.values(retryTopicName(GROUP, 'mails'))).toEqual(['v2'])
  })

  it('moves only the letters of the group and source that were named', async () => {
    const bench = await new RedriveBench().start()
    await bench.put([aLetter(0), aLetter(1, { group: 'others' }), aLetter(2)])
    const place = { topic: '', group: GROUP, sourceTopic: SOURCE }
    const { task } = await bench.redrive({ place })
    expect(task?.total).toBe(2)
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(['v0', 'v2'])
    expect(await bench.unsettled()).toEqual([1])
  })

  it('leaves a record its failures when they are not to be reset', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(1)
    await bench.redrive({ resetAttempts: false })
    await bench.untilEnded()
    expect((await bench.records(RETRY))[0]?.headers['job.failures']).toBe('5')
  })

  it('moves what the filter says, as many as it says, and the rest with the next one', async () => {
    const bench = await new RedriveBench().start()
    await bench.put(
      numbers(10).map((id) => aLetter(id, { reason: id % 2 === 0 ? 'rejected' : 'lease_expired' })),
    )
    const { task } = await bench.redrive({ filter: { ...ALL, reason: 'rejected', limit: 3 } })
    expect(task?.total).toBe(3)
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(['v0', 'v2', 'v4'])
    expect(await bench.unsettled()).toEqual([1, 3, 5, 6, 7, 8, 9])
    await bench.redrive()
    await bench.untilEnded()
    const values = await bench.values(RETRY)
    expect(values).toEqual(['v0', 'v2', 'v4', 'v1', 'v3', 'v5', 'v6', 'v7', 'v8', 'v9'])
  })

  it('does not move what dies again while it runs', async () => {
    const bench = await new RedriveBench().start()
    // More than is read at once.
    const value = Buffer.alloc(20_000, 'x')
    for (const id of numbers(20)) await bench.put([aLetter(id, { value })])
    const { task } = await bench.redrive({ maxPerSec: 10 })
    await bench.put([aLetter(77)])
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toHaveLength(20)
    expect((await bench.box.getRedrive(task?.taskId ?? '')).moved).toBe(20)
    expect(await bench.unsettled()).toEqual([20])
  })

  it('takes the letters of all partitions in turn', async () => {
    const bench = await new RedriveBench().start(3)
    await bench.put([aLetter(0), aLetter(1)], 0)
    await bench.put([aLetter(2)], 2)
    await bench.redrive()
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(['v0', 'v1', 'v2'])
  })

  it('moves thousands of letters in order', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(1200)
    await bench.redrive()
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(texts(1200))
    expect(await bench.unsettled()).toEqual([])
  })

  it('leaves letters that say of no group, or of none that could work on them, and tells', async () => {
    const findObstacle = (group: string): string | undefined =>
      group === 'streams' ? 'comes from streams, which is a stream group' : undefined
    const bench = await new RedriveBench({ findObstacle }).start()
    await bench.put([
      { key: undefined, value: Buffer.from('x'), headers: [], timestampMs: undefined },
      aLetter(1, { topic: 'deleted' }),
      aLetter(2, { group: 'streams' }),
      aLetter(3, { topic: '__groups' }),
      aLetter(4),
    ])
    const { task } = await bench.redrive()
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(['v4'])
    expect(await bench.unsettled()).toEqual([0, 1, 2, 3])
    const ended = await bench.box.getRedrive(task?.taskId ?? '')
    expect(ended).toMatchObject({ state: 'done', moved: 1, total: 5 })
    expect(ended.error).toMatch(/4 letters stay where they are; the first: 0\/0 is no dead letter/)
    expect(await bench.over(bench.box.discard(PLACE, ALL, false))).toBe(4)
  })

  it('takes a payload that was left out from the original', async () => {
    const bench = await new RedriveBench().start()
    const original = {
      key: Buffer.from('k0'),
      value: Buffer.from('payload'),
      headers: [{ key: 'trace', value: Buffer.from('0') }],
      timestampMs: undefined,
    }
    await bench.over(
      bench.peer.append(bench.peer.mark(SOURCE, { partition: 0 }), [
        original,
        { ...original, key: Buffer.from('other') },
      ]),
    )
    const nowMs = bench.clock.wallMs()
    const shape = { copyPayload: false, firstFailedMs: nowMs, lastFailedMs: nowMs }
    await bench.put([
      aLetter(0, shape),
      aLetter(1, { ...shape, key: Buffer.from('not that one') }),
      aLetter(2, shape),
      aLetter(0, { ...shape, firstFailedMs: 1 }),
    ])
    const { task } = await bench.redrive()
    await bench.untilEnded()
    const copies = await bench.records(RETRY)
    expect(copies.map(({ key, value }) => [key, value])).toEqual([['k0', 'payload']])
    expect(copies[0]?.headers).toMatchObject({ trace: '0', 'dlq.offset': '0', 'dlq.redrives': '1' })
    expect(copies[0]?.headers['dlq.payload']).toBeUndefined()
    expect(await bench.unsettled()).toEqual([1, 2, 3])
    expect((await bench.box.getRedrive(task?.taskId ?? '')).error).toMatch(
      /3 letters stay .* 0\/1 has no payload, and the original at orders-0 offset 1 is gone/,
    )
  })
})

describe('a redrive to a topic', () => {
  it('copies to the partition of the key, for whoever reads there', async () => {
    const bench = await new RedriveBench().start()
    await bench.topics.create({ name: 'again', partitions: 3 })
    await bench.fill(30)
    await bench.redrive({ toTopic: 'again', resetAttempts: false })
    await bench.untilEnded()
    const found = new Set<string>()
    for (const partition of numbers(3)) {
      for (const { key, value, headers } of await bench.records('again', partition)) {
        found.add(value ?? '')
        expect(bench.peer.mark('again', { key: Buffer.from(key ?? '') }).partition).toBe(partition)
        expect(headers).toMatchObject({ 'dlq.redrives': '1', 'dlq.topic': SOURCE })
        expect(headers['job.failures']).toBeUndefined()
      }
    }
    expect(found).toEqual(new Set(texts(30)))
    expect(await bench.values(RETRY)).toEqual([])
  })

  it('refuses topics that are not there, are the broker’s own, or hold dead letters', async () => {
    const bench = await new RedriveBench().start()
    const codeOf = async (toTopic: string): Promise<string> =>
      (await failureOf(bench.redrive({ toTopic }))).code
    expect(await codeOf('nothing')).toBe('UNKNOWN_TOPIC')
    expect(await codeOf('__groups')).toBe('TOPIC_INTERNAL')
    expect(await codeOf(DLQ)).toBe('INVALID_REQUEST')
    expect(await bench.box.listRedrives()).toEqual([])
  })

  it('leaves a letter that the topic does not take, and moves the others', async () => {
    const bench = await new RedriveBench().start()
    await bench.topics.create({
      name: 'small',
      partitions: 1,
      config: { 'max.message.bytes': '2KiB' },
    })
    await bench.put([aLetter(0), aLetter(1, { value: Buffer.alloc(3000, 'x') }), aLetter(2)])
    const { task } = await bench.redrive({ toTopic: 'small' })
    await bench.untilEnded()
    expect(await bench.values('small')).toEqual(['v0', 'v2'])
    expect(await bench.unsettled()).toEqual([1])
    const ended = await bench.box.getRedrive(task?.taskId ?? '')
    expect(ended).toMatchObject({ state: 'done', moved: 2 })
    expect(ended.error).toMatch(/1 letter stays where it is; the first: 0\/1 is not taken by small/)
    expect(await bench.over(bench.box.discard(PLACE, ALL, false))).toBe(1)
  })

  it('leaves letters without a key where the topic wants keys', async () => {
    const bench = await new RedriveBench().start()
    const config = { 'cleanup.policy': 'compact' }
    await bench.topics.create({ name: 'table', partitions: 1, config })
    const { value, headers } = aLetter(1)
    await bench.put([aLetter(0), { key: undefined, value, headers, timestampMs: undefined }])
    await bench.redrive({ toTopic: 'table' })
    await bench.untilEnded()
    expect(await bench.values('table')).toEqual(['v0'])
    expect(await bench.unsettled()).toEqual([1])
  })

  it('spreads letters without a key over all partitions', async () => {
    const bench = await new RedriveBench().start()
    await bench.topics.create({ name: 'again', partitions: 3 })
    const letters = numbers(9).map((id) => ({ ...aLetter(id), key: undefined }))
    await bench.put(letters)
    await bench.redrive({ toTopic: 'again' })
    await bench.untilEnded()
    for (const partition of numbers(3)) {
      expect(await bench.records('again', partition)).toHaveLength(3)
    }
  })

  it('fails when the topic is made anew meanwhile, and says so', async () => {
    const bench = await new RedriveBench().start()
    await bench.topics.create({ name: 'again', partitions: 1 })
    await bench.fill(50)
    const { task } = await bench.redrive({ toTopic: 'again', maxPerSec: 10 })
    await bench.clock.advance(1000)
    await bench.topics.delete('again')
    await bench.topics.create({ name: 'again', partitions: 1 })
    await bench.untilEnded()
    const ended = await bench.box.getRedrive(task?.taskId ?? '')
    expect(ended.state).toBe('failed')
    expect(ended.error).toMatch(/^UNKNOWN_TOPIC_ID: /)
    expect(ended.moved).toBeGreaterThan(0)
    expect(await bench.values('again')).toEqual([])
    expect(await bench.unsettled()).toHaveLength(50 - ended.moved)
  })
})

describe('the rate of a redrive', () => {
  it('is never above what was asked for by more than a fifth of a second', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(200)
    const startMs = bench.clock.monotonicMs()
    await bench.redrive({ maxPerSec: 50 })
    let most = 0
    for (;;) {
      const [task] = await bench.box.listRedrives()
      const seconds = (bench.clock.monotonicMs() - startMs) / 1000
      most = Math.max(most, (task?.moved ?? 0) - 50 * seconds)
      if (task?.state !== 'running') {
        expect(seconds).toBeGreaterThan(3.5)
        expect(seconds).toBeLessThan(5)
        break
      }
      await bench.clock.advance(10)
    }
    expect(most).toBeLessThanOrEqual(10)
    expect(await bench.values(RETRY)).toEqual(texts(200))
  })

  it('can be one a second', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(3)
    await bench.redrive({ maxPerSec: 1 })
    await bench.clock.advance(2500)
    expect(await bench.values(RETRY)).toEqual(['v0', 'v1'])
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(['v0', 'v1', 'v2'])
  })

  it('is at least 1 and at most 10 000', async () => {
    const bench = await new RedriveBench().start()
    for (const maxPerSec of [0, 10_001, 1.5, Number.NaN]) {
      expect((await failureOf(bench.redrive({ maxPerSec }))).code).toBe('INVALID_REQUEST')
    }
  })
})

describe('a running redrive', () => {
  it('keeps others from beginning on the same topic, and names itself', async () => {
    const bench = await new RedriveBench().start()
    await bench.topics.create({ name: 'dlq.other', partitions: 1, config: { dlq: 'true' } })
    await bench.fill(20)
    const { task } = await bench.redrive({ maxPerSec: 1 })
    const failure = await failureOf(bench.redrive())
    expect(failure.code).toBe('REDRIVE_IN_PROGRESS')
    expect(failure.message).toContain(task?.taskId)
    expect(failure.details['taskId']).toBe(task?.taskId)
    await bench.redrive({ place: { topic: 'dlq.other', group: '', sourceTopic: '' } })
    const { preview } = await bench.redrive({ dryRun: true })
    expect(preview?.count).toBeGreaterThan(0)
    await bench.over(bench.box.cancelRedrive(task?.taskId ?? ''))
    await bench.redrive()
    await bench.untilEnded()
    expect(new Set(await bench.values(RETRY))).toEqual(new Set(texts(20)))
    expect(await bench.values(RETRY)).toHaveLength(20)
  })

  it('keeps others out while it is being started', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(20)
    const both = await bench.over(
      Promise.allSettled([bench.redrive(), bench.redrive(), bench.redrive()]),
    )
    expect(both.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(texts(20))
  })

  it('ends at once when it is cancelled, also while it waits, and keeps what it has done', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(20)
    const { task } = await bench.redrive({ maxPerSec: 1 })
    await bench.clock.advance(3500)
    // The clock stands still: nothing is waited for.
    const cancelled = await bench.box.cancelRedrive(task?.taskId ?? '')
    expect(cancelled).toMatchObject({ state: 'cancelled', moved: 3, total: 20, error: '' })
    await bench.clock.advance(60_000)
    expect(await bench.values(RETRY)).toEqual(texts(3))
    expect(await bench.unsettled()).toEqual(numbers(17, 3))
    expect(await bench.box.cancelRedrive(task?.taskId ?? '')).toEqual(cancelled)
    await bench.restart()
    await bench.clock.advance(60_000)
    expect(await bench.box.getRedrive(task?.taskId ?? '')).toEqual(cancelled)
    expect(await bench.values(RETRY)).toEqual(texts(3))
  })

  it('ends at once when it is cancelled in the middle of a search that finds nothing', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(5000)
    const started = bench.redrive({ filter: { ...ALL, firstOffset: 4999 } })
    const { task } = await started
    await bench.over(bench.box.cancelRedrive(task?.taskId ?? ''))
    const { state } = await bench.box.getRedrive(task?.taskId ?? '')
    expect(['cancelled', 'done']).toContain(state)
  })

  it('does not move what is discarded meanwhile, and nobody discards what it moves', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(40)
    const { task } = await bench.redrive({ maxPerSec: 10 })
    await bench.clock.advance(1000)
    const filter = { ...ALL, firstOffset: 5, endOffset: 35 }
    const discarded = await bench.over(bench.box.discard(PLACE, filter, false))
    await bench.untilEnded()
    const { moved, state } = await bench.box.getRedrive(task?.taskId ?? '')
    expect(state).toBe('done')
    expect(moved + discarded).toBe(40)
    expect(await bench.values(RETRY)).toHaveLength(moved)
    expect(new Set(await bench.values(RETRY)).size).toBe(moved)
    expect(await bench.unsettled()).toEqual([])
  })

  it('never shares a letter with a discard, at whichever append that comes in', async () => {
    for (let at = 1; at < 20; at++) {
      for (const how of ['before', 'after'] as const) {
        const bench = await new RedriveBench({}, 3).start()
        await bench.fill(4)
        let appends = 0
        let discarding: Promise<number> | undefined
        const discard = (): void => {
          discarding ??= bench.box.discard(PLACE, { ...ALL, limit: 3 }, false)
        }
        bench.store.aroundAppend = async (_name, append) => {
          const isNow = ++appends === at
          if (isNow && how === 'before') discard()
          const result = await append()
          if (isNow && how === 'after') discard()
          return result
        }
        const { task } = await bench.redrive({ maxPerSec: 10 })
        await bench.untilEnded()
        const discarded = discarding === undefined ? 0 : await bench.over(discarding)
        const { moved } = await bench.box.getRedrive(task?.taskId ?? '')
        expect(await bench.values(RETRY)).toHaveLength(moved)
        expect([at, how, moved + discarded]).toEqual([at, how, 4])
      }
    }
  })

  it('goes on where it was after a clean stop', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(20)
    const { task } = await bench.redrive({ maxPerSec: 10 })
    await bench.clock.advance(1000)
    await bench.over(bench.box.close())
    const before = await bench.values(RETRY)
    expect(before.length).toBeGreaterThan(0)
    await bench.restart()
    expect((await bench.box.getRedrive(task?.taskId ?? '')).state).toBe('running')
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(texts(20))
    expect(await bench.box.getRedrive(task?.taskId ?? '')).toMatchObject({
      state: 'done',
      moved: 20,
      total: 20,
    })
  })

  it('waits while its target does not take anything, and goes on', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(10)
    bench.store.beforeAppend.set(`${RETRY}-0`, () => {
      throw new BrokerError('STORAGE_FULL', 'no room')
    })
    const { task } = await bench.redrive()
    await bench.clock.advance(10_000)
    expect(await bench.box.getRedrive(task?.taskId ?? '')).toMatchObject({
      state: 'running',
      moved: 0,
    })
    expect(bench.log.lines.some((line) => line.startsWith('warn: a redrive cannot go on'))).toBe(
      true,
    )
    bench.store.beforeAppend.clear()
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(texts(10))
    expect((await bench.box.getRedrive(task?.taskId ?? '')).moved).toBe(10)
  })

  it('moves nothing twice when an append says that it failed and did not', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(250)
    let failures = 0
    bench.store.aroundAppend = async (name, append) => {
      const result = await append()
      if (name === `${RETRY}-0` && failures++ < 3) {
        throw new BrokerError('APPEND_TIMEOUT', 'nobody knows')
      }
      return result
    }
    await bench.redrive()
    await bench.untilEnded()
    expect(failures).toBeGreaterThan(2)
    expect(await bench.values(RETRY)).toEqual(texts(250))
    expect((await bench.box.listRedrives())[0]).toMatchObject({ state: 'done', moved: 250 })
  })

  it('fails when its letters are deleted, and the next topic of the name has nothing to do with it', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(20)
    const { task } = await bench.redrive({ maxPerSec: 1 })
    await bench.clock.advance(2000)
    await bench.over(bench.topics.delete(DLQ))
    await bench.topics.create({ name: DLQ, partitions: 1, config: { dlq: 'true' } })
    await bench.fill(5)
    await bench.untilEnded()
    const ended = await bench.box.getRedrive(task?.taskId ?? '')
    expect(ended.state).toBe('failed')
    expect(ended.error).toMatch(/^UNKNOWN_TOPIC/)
    expect(await bench.unsettled()).toEqual(numbers(5))
    await bench.redrive()
    await bench.untilEnded()
    expect(await bench.unsettled()).toEqual([])
  })

  it('passes over what retention has taken meanwhile', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(20)
    const { task } = await bench.redrive({ maxPerSec: 10 })
    await bench.clock.advance(500)
    await bench.topics.getPartition(DLQ, 0).advanceLogStart(toOffset(15))
    await bench.untilEnded()
    const values = await bench.values(RETRY)
    const { moved, state } = await bench.box.getRedrive(task?.taskId ?? '')
    expect(state).toBe('done')
    expect(values).toHaveLength(moved)
    expect(values.slice(-5)).toEqual(texts(5, 15))
    expect(await bench.unsettled()).toEqual([])
  })
})

describe('redrives that are over', () => {
  it('are listed, newest first, a hundred of them', async () => {
    const bench = await new RedriveBench().start()
    const ids: string[] = []
    for (let i = 0; i < 103; i++) {
      const { task } = await bench.redrive()
      ids.push(task?.taskId ?? '')
      await bench.untilEnded()
    }
    await bench.over(Promise.resolve())
    const listed = await bench.box.listRedrives()
    expect(listed.map(({ taskId }) => taskId)).toEqual(ids.slice(-100).reverse())
    expect((await failureOf(bench.box.getRedrive(ids[0] ?? ''))).code).toBe('TASK_NOT_FOUND')
    await bench.restart()
    expect(await bench.box.listRedrives()).toEqual(listed)
  })

  it('are unknown under any other id', async () => {
    const bench = await new RedriveBench().start()
    expect((await failureOf(bench.box.getRedrive('x'))).code).toBe('TASK_NOT_FOUND')
    expect((await failureOf(bench.box.cancelRedrive('x'))).code).toBe('TASK_NOT_FOUND')
  })
})

describe('a redrive through crashes', () => {
  const COUNT = 12

  /** Kills the broker at the n-th append after the redrive was asked for: before it has happened, or when it is durable and nobody has heard of it. */
  async function crashAt(
    bench: RedriveBench,
    at: number,
    how: 'before' | 'after',
  ): Promise<boolean> {
    let appends = 0
    let isDead = false
    bench.store.aroundAppend = async (_name, append) => {
      if (isDead || (++appends === at && how === 'before')) isDead = true
      else {
        const result = await append()
        if (appends < at && !isDead) return result
        isDead = true
      }
      return await new Promise(() => undefined)
    }
    // Nobody may hear of it.
    const started = bench.box.startRedrive({
      place: PLACE,
      filter: ALL,
      toTopic: '',
      maxPerSec: 20,
      dryRun: false,
      resetAttempts: true,
    })
    started.catch(() => undefined)
    await bench.clock.advance(3000)
    return isDead
  }

  for (const how of ['before', 'after'] as const) {
    it(`leaves exactly one copy of each letter: killed ${how} any append`, async () => {
      let crashes = 0
      for (let at = 1; ; at++) {
        const bench = await new RedriveBench().start()
        await bench.fill(COUNT)
        const hasCrashed = await crashAt(bench, at, how)
        if (!hasCrashed) break
        crashes++
        await bench.restart()
        await bench.untilEnded()
        // Killed before it was written down there is no redrive.
        const [task] = await bench.box.listRedrives()
        const moved = task === undefined ? 0 : COUNT
        expect([at, await bench.values(RETRY)]).toEqual([at, texts(moved)])
        expect([at, await bench.unsettled()]).toEqual([at, numbers(COUNT - moved, moved)])
        expect(task?.moved ?? 0).toBe(moved)
        // Nor does the next one move anything again.
        await bench.redrive()
        await bench.untilEnded()
        expect([at, await bench.values(RETRY)]).toEqual([at, texts(COUNT)])
      }
      expect(crashes).toBeGreaterThan(10)
    })
  }

  it('lets nobody discard what may have been moved, however long it takes to find out', async () => {
    let letGo: () => void = () => undefined
    const gate = new Promise<void>((resolve) => {
      letGo = resolve
    })
    const peer: Peer = {
      mark: (...args) => bench.peer.mark(...args),
      append: (...args) => bench.peer.append(...args),
      async findIds(...args) {
        await gate
        return bench.peer.findIds(...args)
      },
    }
    const bench = await new RedriveBench({ peer }).start()
    await bench.fill(COUNT)
    bench.store.aroundAppend = async (name, append) => {
      const result = await append()
      return name === `${RETRY}-0` ? new Promise(() => undefined) : result
    }
    await bench.redrive({ maxPerSec: 20 })
    await bench.clock.advance(1000)
    const arrived = (await bench.values(RETRY)).length
    expect(arrived).toBeGreaterThan(0)
    await bench.restart()
    expect(await bench.over(bench.box.discard(PLACE, ALL, false))).toBe(COUNT - arrived)
    letGo()
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(texts(arrived))
    expect((await bench.box.listRedrives())[0]).toMatchObject({ state: 'done', moved: arrived })
    expect(await bench.unsettled()).toEqual([])
  })

  it('counts what it has moved also where the copies are gone since', async () => {
    let crashes = 0
    for (let at = 1; ; at++) {
      const bench = await new RedriveBench().start()
      await bench.fill(COUNT)
      if (!(await crashAt(bench, at, 'after'))) break
      if ((await bench.records(RETRY)).length < COUNT) continue
      await bench.restart((store) => store.damaged.set(`${RETRY}-0`, { start: 0, end: COUNT }))
      const left = (await bench.unsettled()).length
      await bench.untilEnded()
      if (left > 0) continue
      crashes++
      expect((await bench.box.listRedrives())[0]?.moved).toBe(COUNT)
      expect(bench.topics.getPartition(RETRY, 0).highWatermark).toBe(COUNT)
    }
    expect(crashes).toBeGreaterThan(0)
  })

  it('leaves exactly one copy of each when it is killed again and again', async () => {
    for (const every of [2, 3, 4, 5, 7]) {
      const bench = await new RedriveBench().start()
      await bench.fill(COUNT)
      const { task } = await bench.redrive({ maxPerSec: 20 })
      for (let restarts = 0; ; restarts++) {
        let appends = 0
        await bench.restart((store) => {
          store.aroundAppend = async (name, append) => {
            const mine = name.startsWith('__') || name.startsWith(DLQ)
            if (mine && ++appends > every) return await new Promise(() => undefined)
            return await append()
          }
        })
        await bench.clock.advance(2000)
        const { state } = await bench.box.getRedrive(task?.taskId ?? '')
        if (state === 'done') break
        expect(restarts).toBeLessThan(100)
      }
      expect([every, await bench.values(RETRY)]).toEqual([every, texts(COUNT)])
      expect((await bench.box.getRedrive(task?.taskId ?? '')).moved).toBe(COUNT)
      await bench.restart()
      expect(await bench.unsettled()).toEqual([])
    }
  })

  it('leaves exactly one copy of each when it is killed at any moment on a slow disk', async () => {
    for (let ms = 0; ms < 600; ms += 13) {
      const bench = await new RedriveBench({}, 20).start()
      await bench.fill(COUNT)
      const { task } = await bench.redrive({ maxPerSec: 20 })
      await bench.clock.advance(ms)
      await bench.restart()
      await bench.untilEnded()
      expect([ms, await bench.values(RETRY)]).toEqual([ms, texts(COUNT)])
      expect((await bench.box.getRedrive(task?.taskId ?? '')).moved).toBe(COUNT)
    }
  })

  it('leaves alone what a cancelled task had on its way until it is known what became of it', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(10)
    // Appended, but nobody hears of it, and the topic cannot be read either.
    bench.store.aroundAppend = async (name, append) => {
      const result = await append()
      if (name === `${RETRY}-0`) throw new BrokerError('APPEND_TIMEOUT', 'lost')
      return result
    }
    bench.peer.findIds = () => Promise.reject(new BrokerError('LOADING', 'not now'))
    const { task } = await bench.redrive()
    await bench.clock.advance(2000)
    await bench.over(bench.box.cancelRedrive(task?.taskId ?? ''))
    expect(await bench.values(RETRY)).toEqual(texts(10))
    expect(await bench.unsettled()).toEqual(numbers(10))
    // Neither discarded nor moved.
    expect(await bench.over(bench.box.discard(PLACE, ALL, false))).toBe(0)
    await bench.redrive()
    await bench.untilEnded()
    expect(await bench.values(RETRY)).toEqual(texts(10))
    // Nor after a start that leaves as much in the dark.
    await bench.restart((store) => {
      store.unopenable.set(`${RETRY}-0`, new BrokerError('STORAGE_ERROR', 'a bad disk'))
    })
    await bench.topics.create({ name: 'again', partitions: 1 })
    expect(await bench.over(bench.box.discard(PLACE, ALL, false))).toBe(0)
    await bench.redrive({ toTopic: 'again' })
    await bench.untilEnded()
    expect(await bench.values('again')).toEqual([])
    await bench.restart()
    const { task: third } = await bench.redrive()
    await bench.untilEnded()
    expect(third?.total).toBe(0)
    expect(await bench.unsettled()).toEqual([])
    expect(await bench.box.getRedrive(task?.taskId ?? '')).toMatchObject({
      state: 'cancelled',
      moved: 10,
    })
    expect(await bench.values(RETRY)).toEqual(texts(10))
  })
})

describe('what has been redriven', () => {
  it('dies again as a letter with one redrive more, which can be redriven', async () => {
    const bench = await new RedriveBench().start()
    await bench.fill(1)
    await bench.redrive()
    await bench.untilEnded()
    const [copy] = await bench.records(RETRY)
    const headers = Object.entries(copy?.headers ?? {}).map(([key, value]) => ({
      key,
      value: Buffer.from(value),
    }))
    expect(readDeadLetter(headers)?.redrives).toBe(1)
    await bench.put([
      aLetter(0, { headers, topic: RETRY, offset: toOffset(0), failures: 2, deliveries: 2 }),
    ])
    await bench.redrive()
    await bench.untilEnded()
    const copies = await bench.records(RETRY)
    expect(copies).toHaveLength(2)
    expect(copies[1]?.headers).toMatchObject({
      'dlq.topic': SOURCE,
      'dlq.offset': '0',
      'dlq.redrives': '2',
      'dlq.failures': '7',
      'redrive.id': `${bench.topics.get(DLQ).id}/0/1`,
    })
  })
})
