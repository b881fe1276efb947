import { describe, expect, it } from 'vitest'
import { LocalPeer } from '../../../src/coordination/local-peer.ts'
import { DeadLetterBox } from '../../../src/coordination/queue/dead-letter-box.ts'
import { deadLetterTopicName, retryTopicName } from '../../../src/coordination/queue/names.ts'
import type { DeadLetters } from '../../../src/coordination/queue/queue-types.ts'
import { CompanionMarks } from '../../../src/coordination/queue/redrive-marks.ts'
import { pass } from '../../support/groups-server.ts'
import { QUEUE_GROUP, QUEUE_TOPIC, QueueBench } from '../../support/queue-bench.ts'
import { describePartition, readAll, valuesOf } from '../../support/queue-reading.ts'
import { ALL } from '../../support/redrive-bench.ts'

const DLQ = deadLetterTopicName(QUEUE_GROUP, QUEUE_TOPIC)
const RETRY = retryTopicName(QUEUE_GROUP, QUEUE_TOPIC)
const PLACE = { topic: '', group: QUEUE_GROUP, sourceTopic: QUEUE_TOPIC }

/** As the broker wires it. */
function aBox(bench: QueueBench): DeadLetterBox {
  const { queues, topics, clock, random } = bench
  const box = new DeadLetterBox({
    topics,
    peer: new LocalPeer({ topics, clock }),
    marks: new CompanionMarks(queues.companions),
    tasks: { put: (taskId, text) => queues.putTask(taskId, text), all: () => queues.tasks },
    clock,
    random,
    findDeadLetterTopic: (group, topic) => queues.deadLetterTopicOf(group, topic),
  })
  box.open()
  return box
}

async function redrive(
  bench: QueueBench,
  box: DeadLetterBox,
  request: Partial<Parameters<DeadLetters['startRedrive']>[0]> = {},
): Promise<number> {
  const started = box.startRedrive({
    place: PLACE,
    filter: ALL,
    toTopic: '',
    maxPerSec: 10_000,
    dryRun: false,
    resetAttempts: true,
    ...request,
  })
  const { task } = await pass(bench.clock, started)
  for (;;) {
    const info = await box.getRedrive(task?.taskId ?? '')
    if (info.state !== 'running') return info.moved
    await bench.clock.advance(100)
  }
}

describe('a redrive of a queue', () => {
  it('brings its records back to the group, counting from nothing, until they are done', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    const box = aBox(bench)
    await bench.produce({ records: 3 })
    const worker = await bench.work(10)
    const values = worker.held.flatMap(valuesOf)
    await worker.say('reject', { message: 'no' })
    await bench.clock.advance(1000)
    expect(await readAll(bench, DLQ)).toHaveLength(3)
    expect(await redrive(bench, box)).toBe(3)
    await bench.clock.advance(100)
    expect(worker.held.map(({ topic }) => topic)).toEqual(worker.held.map(() => RETRY))
    expect(worker.held.flatMap(valuesOf)).toEqual(values)
    for (const { deliveryCount, failureCount } of worker.held) {
      expect([deliveryCount, failureCount]).toEqual([1, 0])
    }
    while (worker.held.length > 0) expect(await worker.say('accept')).toEqual([])
    expect(await describePartition(bench, 0, RETRY)).toMatchObject({ ready: 0, acquired: 0 })
    expect(await redrive(bench, box)).toBe(0)
    await bench.restart()
    expect(await redrive(bench, aBox(bench))).toBe(0)
  })

  it('of a record that dies again makes a letter with one redrive more, and no end of that', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    const box = aBox(bench)
    await bench.produce({ records: 1 })
    const worker = await bench.work(10)
    for (let redrives = 0; redrives < 3; redrives++) {
      await worker.say('reject', { message: `no ${redrives}` })
      await bench.clock.advance(1000)
      const letters = await readAll(bench, DLQ)
      expect(letters).toHaveLength(redrives + 1)
      expect(letters.at(-1)?.headers).toMatchObject({
        'dlq.topic': QUEUE_TOPIC,
        'dlq.offset': '0',
        'dlq.redrives': String(redrives),
        'dlq.failures': String(redrives + 1),
        'dlq.error.message': `no ${redrives}`,
      })
      expect(await redrive(bench, box)).toBe(1)
      await bench.clock.advance(100)
      expect(worker.held).toHaveLength(1)
    }
  })

  it('leaves nothing that is done to a group that is made anew under the name', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    const box = aBox(bench)
    await bench.produce({ records: 3 })
    const worker = await bench.work(10)
    await worker.say('reject', { message: 'no' })
    await bench.clock.advance(1000)
    await worker.leave()
    await redrive(bench, box)
    const again = await bench.work(2)
    expect(again.offsets).toEqual([0, 1])
    for (let i = 0; i < 2; i++) await again.say('accept')
    await again.leave()
    await bench.queues.delete(QUEUE_GROUP)
    const next = await bench.work(10, { settings: { 'queue.start': 'latest' } })
    // Nobody has done the third.
    expect(next.held.map(({ topic, first, end }) => [topic, first, end])).toEqual([[RETRY, 2, 3]])
  })

  it('leaves the failures when they are to be kept', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    const box = aBox(bench)
    await bench.produce({ records: 1 })
    const worker = await bench.work(10)
    await worker.say('reject', { message: 'no' })
    await bench.clock.advance(1000)
    await redrive(bench, box, { resetAttempts: false })
    await bench.clock.advance(100)
    expect(worker.held[0]?.failureCount).toBe(1)
  })

  it('waits for a group whose workers are away', async () => {
    const bench = await new QueueBench().start(1, { 'dlq.enable': 'true' })
    await bench.produce({ records: 2 })
    const worker = await bench.work(10)
    await worker.say('reject', { message: 'no' })
    await worker.leave()
    await bench.clock.advance(1000)
    await bench.restart()
    const box = aBox(bench)
    expect(await redrive(bench, box)).toBe(2)
    await bench.restart()
    const again = await bench.work(10)
    await bench.clock.advance(100)
    expect(again.held.reduce((sum, { count }) => sum + count, 0)).toBe(2)
  })
})
