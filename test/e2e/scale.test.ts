import { expect, it, onTestFinished } from 'vitest'
import { LoadProcess } from '../../bench/load-processes.ts'
import type { ProduceLoadOptions } from '../../bench/produce-load.ts'
import type { ReadLoadOptions } from '../../bench/read-load.ts'
import { findUsage } from '../../bench/usage.ts'
import { monotonicMs } from '../../bench/values.ts'
import { bytes, connect, topic } from '../../src/client/index.ts'
import { MIB } from '../../src/common/units.ts'
import { ServerProcess } from '../support/server-process.ts'

const READERS = process.env['BIG'] === '1' ? 1_000 : 200
/** Written before and after some readers are stopped. */
const PART_BYTES: number = 3 * MIB
const PAYLOAD_BYTES = 1024
const LARGEST_RSS: number = 600 * MIB
const TOPIC = 'feed'

function startLoad(): LoadProcess {
  const load = new LoadProcess()
  onTestFinished(() => load.end())
  return load
}

it(`gives every record to each of ${READERS} readers that tail one partition, also when others have stopped reading`, async () => {
  const server = await ServerProcess.start()
  const client = await connect({ url: server.address, clientId: 'test' })
  onTestFinished(() => client.close())
  await client.admin.createTopic(TOPIC, { partitions: 1 })
  const values = {
    seed: 7,
    payloadBytes: PAYLOAD_BYTES,
    isStamped: false,
    content: 'random',
  } as const
  const reading = (readers: number, connections: number): ReadLoadOptions => ({
    address: server.address,
    topic: TOPIC,
    values,
    readers,
    connections,
    mode: 'cursor',
    checksBytes: true,
    prefetchBytes: undefined,
  })
  const writing = (firstProducer: number): ProduceLoadOptions => ({
    address: server.address,
    topic: TOPIC,
    values,
    firstProducer,
    producers: 1,
    api: 'send',
    acks: 'durable',
    codec: 'none',
    batchBytes: 16 * 1024,
    lingerMs: undefined,
    bufferBytes: undefined,
    recordsPerSecond: undefined,
    turnBytes: 64 * 1024,
    maxRecords: PART_BYTES / PAYLOAD_BYTES,
    startAtMs: monotonicMs(),
    measureFromMs: 0,
    measureUntilMs: Infinity,
  })
  const [first, second, stopped, producer] = [startLoad(), startLoad(), startLoad(), startLoad()]
  await first.read(reading(READERS / 2, 5))
  await second.read(reading(READERS / 2, 5))
  // Several on one connection, so that what is written is more than their window takes.
  await stopped.read(reading(5, 1))

  // A reader of another kind: its process lives, but it never asks for more than its first batch.
  const idle = client.read(topic(TOPIC, { value: bytes }), { prefetchBytes: 1024 })
  const idleBatches = idle.batches()[Symbol.asyncIterator]()
  const firstBatch = idleBatches.next()

  const sent = [...(await producer.produce(writing(0))).sent]
  expect((await firstBatch).done).toBe(false)
  stopped.signal('SIGSTOP')
  sent.push(...(await producer.produce(writing(1))).sent)
  expect(sent).toEqual([PART_BYTES / PAYLOAD_BYTES, PART_BYTES / PAYLOAD_BYTES])

  // `finish` checks every record of every reader; while the stopped ones stand still, the others come to the end.
  const total = (sent[0] ?? 0) + (sent[1] ?? 0)
  for (const result of await Promise.all([first.finish(sent), second.finish(sent)])) {
    expect(result.records).toBe((total * READERS) / 2)
  }
  // Undefined where there is no /proc.
  expect(findUsage(server.pid)?.peakRssBytes ?? 0).toBeLessThan(LARGEST_RSS)

  // Nor have those who stopped lost anything.
  stopped.signal('SIGCONT')
  expect((await stopped.finish(sent)).records).toBe(5 * total)
  let idleEnd = 0
  let next = await firstBatch
  while (next.done !== true) {
    expect(next.value.baseOffset).toBe(idleEnd)
    idleEnd = next.value.endOffset
    if (idleEnd >= total) break
    next = await idleBatches.next()
  }
  expect(idleEnd).toBe(total)
  await idle.close()
}, 180_000)
