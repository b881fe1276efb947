import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { KIB, MIB } from '../../../src/common/units.ts'
import { deadLetterTopicName } from '../../../src/coordination/queue/names.ts'
import { batchesOf } from '../../support/batches.ts'
import { settle } from '../../support/fake-clock.ts'
import { QUEUE_GROUP, QUEUE_TOPIC, QueueBench } from '../../support/queue-bench.ts'
import { describePartition, produceGap, readAll } from '../../support/queue-reading.ts'

const DLQ = deadLetterTopicName(QUEUE_GROUP, QUEUE_TOPIC)
const STATE = `${QUEUE_TOPIC}-0.state`
const SETTINGS = { 'dlq.enable': 'true' }

/** A queue with some records on their way to the dead letters. */
async function aDyingQueue(records = 5): Promise<QueueBench> {
  const bench = await new QueueBench().start(1, SETTINGS)
  await bench.produce({ records })
  return bench
}

async function values(bench: QueueBench): Promise<(string | undefined)[]> {
  return bench.topics.find(DLQ) === undefined
    ? []
    : (await readAll(bench, DLQ)).map(({ value }) => value)
}

const ALL = ['value-0', 'value-1', 'value-2', 'value-3', 'value-4']

describe('dead letters', () => {
  // Of each append that is made on the way: the state, the topic's catalog, the mark, the letters, that they are dead.
  for (const when of ['before', 'after'] as const) {
    for (const many of [1, 2]) {
      it(`are there once each when the broker dies ${when} any of the appends on the way (${many} times)`, async () => {
        let crashes = 0
        for (let at = 0; ; at++) {
          const bench = await aDyingQueue()
          const worker = await bench.work(5)
          let left = at
          let isDown = false
          const arm = (): void => {
            let count = left
            bench.faults.aroundAppend = async (_name, append) => {
              if (isDown) throw new BrokerError('STORAGE_ERROR', 'the broker is dead')
              const isNow = count-- === 0
              if (isNow) isDown = true
              if (isNow && when === 'before') throw new BrokerError('STORAGE_ERROR', 'died before')
              const result = await append()
              if (isNow) throw new BrokerError('STORAGE_ERROR', 'died after')
              return result
            }
          }
          arm()
          await worker.say('reject', { message: 'never' })
          await bench.clock.advance(10)
          let hasCrashed = isDown
          if (hasCrashed) crashes++
          for (let i = 1; i < many && isDown; i++) {
            isDown = false
            await bench.restart()
            left = 1
            arm()
            await bench.clock.advance(10)
          }
          hasCrashed ||= isDown
          isDown = false
          await bench.restart()
          await bench.clock.advance(100)
          // What was not known to be rejected is so again.
          const next = await bench.work(5)
          while (next.held.length > 0) await next.say('reject')
          await bench.clock.advance(120_000)
          const found = await values(bench)
          expect([at, found.length, new Set(found)]).toEqual([at, ALL.length, new Set(ALL)])
          expect(await describePartition(bench)).toMatchObject({ startOffset: 5, runs: 0 })
          if (!hasCrashed) break
        }
        expect(crashes).toBeGreaterThan(3)
      })
    }
  }

  it('are written in the background, a few at a time, while others are worked on', async () => {
    const bench = await aDyingQueue(500)
    const worker = await bench.work(300)
    await worker.say('reject')
    await bench.clock.advance(10)
    expect(await values(bench)).toHaveLength(300)
    expect((await bench.queues.describe(QUEUE_GROUP)).counters).toMatchObject({
      rejected: 300,
      deadLettered: 300,
      dropped: 0,
    })
    expect(worker.offsets).toHaveLength(200)
  })

  it('are not all in memory at once where they are large', async () => {
    const bench = await new QueueBench().start(1, SETTINGS)
    const config = { dlq: 'true', 'max.message.bytes': '8MiB' }
    await bench.topics.create({ name: DLQ, partitions: 1, config })
    for (let i = 0; i < 60; i++) await bench.produce({ records: 1, valueBytes: 256 * KIB })
    const worker = await bench.work(60)
    await Promise.all([...worker.held].map((delivery) => worker.say('reject', { delivery })))
    await bench.clock.advance(10)
    const dlq = bench.topics.getPartition(DLQ, 0)
    expect(dlq.highWatermark).toBe(60)
    const { chunks } = await dlq.read(dlq.logStartOffset, 64 * MIB)
    const sizes = batchesOf(chunks).map(({ bytes }) => bytes.length)
    expect(Math.max(...sizes)).toBeLessThan(4.5 * MIB)
    expect(Math.max(...sizes)).toBeGreaterThan(2 * MIB)
  })

  it('wait for a topic that cannot be written to, and are tried again by and by', async () => {
    const bench = await aDyingQueue()
    let tries = 0
    bench.faults.beforeAppend.set(`${DLQ}-0`, () => {
      tries++
      throw new BrokerError('STORAGE_FULL', 'no room')
    })
    const worker = await bench.work(5)
    await worker.say('reject')
    await bench.clock.advance(10 * 60_000)
    expect(tries).toBeGreaterThan(8)
    expect(tries).toBeLessThan(20)
    expect(await describePartition(bench)).toMatchObject({ deadLettering: 5, done: 0 })
    bench.faults.beforeAppend.clear()
    await bench.clock.advance(61_000)
    expect(await values(bench)).toEqual(ALL)
  })

  it('stop deliveries when too many wait', async () => {
    const bench = await new QueueBench().start(1, { ...SETTINGS, 'dlq.max.pending': '2' })
    await bench.produce({ records: 6 })
    bench.faults.beforeAppend.set(`${DLQ}-0`, () => {
      throw new BrokerError('STORAGE_FULL', 'no room')
    })
    const worker = await bench.work(2)
    await worker.say('reject')
    await bench.clock.advance(10)
    expect(worker.offsets).toEqual([])
    expect(worker.notice?.dlqUnavailable).toBe(true)
    bench.faults.beforeAppend.clear()
    await bench.clock.advance(5000)
    expect(worker.offsets).toEqual([2, 3])
    expect(worker.notice?.dlqUnavailable).toBe(false)
  })

  it('say where they are from, why, how often they failed, and with what errors', async () => {
    const bench = await new QueueBench().start(1, {
      ...SETTINGS,
      'retry.max.attempts': '2',
      'retry.backoff.type': 'none',
    })
    await bench.produce({ records: 1, key: 'k' })
    const worker = await bench.work(1)
    await worker.say('retry', { message: 'first' })
    await bench.clock.advance(10)
    await worker.say('retry', { message: 'second' })
    await bench.clock.advance(10)
    expect(await readAll(bench, DLQ)).toMatchObject([
      {
        value: 'value-0',
        headers: {
          'dlq.group': QUEUE_GROUP,
          'dlq.topic': QUEUE_TOPIC,
          'dlq.partition': '0',
          'dlq.offset': '0',
          'dlq.reason': 'attempts_exhausted',
          'dlq.deliveries': '2',
          'dlq.failures': '2',
          'dlq.error.message': 'second',
          'dlq.member': worker.session.memberId,
        },
      },
    ])
  })

  it('say when it all began, also after more failures than are kept', async () => {
    const bench = await new QueueBench().start(1, {
      ...SETTINGS,
      'retry.max.attempts': '6',
      'retry.backoff.type': 'none',
    })
    await bench.produce({ records: 1 })
    const beganMs = bench.clock.wallMs()
    const worker = await bench.work(1)
    for (let i = 0; i < 6; i++) {
      await worker.say('retry')
      await bench.clock.advance(10_000)
    }
    const [letter] = await readAll(bench, DLQ)
    const { headers } = letter ?? {}
    expect(headers).toMatchObject({ 'dlq.failures': '6' })
    expect(Number(headers?.['dlq.first_failed_at'])).toBeLessThan(beganMs + 10_000)
    expect(Number(headers?.['dlq.last_failed_at'])).toBeGreaterThanOrEqual(beganMs + 50_000)
  })

  it('of records that retention takes first are lost, and counted', async () => {
    const bench = await aDyingQueue()
    bench.faults.beforeAppend.set(`${DLQ}-0`, () => {
      throw new BrokerError('STORAGE_FULL', 'no room')
    })
    const worker = await bench.work(5)
    await worker.say('reject')
    await bench.topics.getPartition(QUEUE_TOPIC, 0).advanceLogStart('end')
    bench.faults.beforeAppend.clear()
    await bench.clock.advance(120_000)
    expect(await values(bench)).toEqual([])
    expect((await bench.queues.describe(QUEUE_GROUP)).counters.lostToRetention).toBe(5)
    expect(await bench.explain(0)).toMatchObject({ state: 'dead' })
  })

  it('go on where they were when the state of the queue could not be written for a moment', async () => {
    const bench = await aDyingQueue()
    await produceGap(bench)
    const worker = await bench.work(5)
    let writes = 0
    bench.faults.aroundAppend = async (name, append) => {
      // The mark, and that they are dead.
      if (name === STATE && [1, 3].includes(writes++))
        throw new BrokerError('STORAGE_ERROR', 'for a moment')
      return append()
    }
    await worker.say('reject')
    await settle()
    await bench.clock.advance(120_000)
    expect(await values(bench)).toEqual(ALL)
    expect(await describePartition(bench)).toMatchObject({ deadLettering: 0, acquired: 0 })
  })
})
