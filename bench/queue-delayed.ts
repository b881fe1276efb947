import { setTimeout as delay } from 'node:timers/promises'
import { bytes, connect, type ReceivedRecord, topic } from '../src/client/index.ts'
import type { BenchBroker, BenchEnvironment } from './environment.ts'
import { Histogram } from './histogram.ts'
import { createJobTopic, QUEUE_TOPIC, reached } from './queue-cycles.ts'
import type { QueueProcess } from './queue-processes.ts'
import type { PartResult, QueueBenchOptions } from './queue.ts'
import { latencyFigures, type RunFigures } from './report.ts'
import { findRss } from './usage.ts'
import { monotonicMs } from './values.ts'
import { VerificationError } from './verifier.ts'

const DEFAULT_RECORDS = 1_000_000
/** Of the idle part: so many, spread over so long. */
const IDLE_RECORDS = 500
const IDLE_MS = 20_000
/** From here until the first is due: connecting and sending take their time. */
const LEAD_MS = 5_000
const BURST_MS = 1000

/**
 * A million records that are due tomorrow, and what they cost the broker's memory; then how late a record comes when there is little to do, and how long it takes
 * when many are due in the same second, with that million waiting.
 */
export async function measureDelayed(
  environment: BenchEnvironment,
  options: QueueBenchOptions,
): Promise<PartResult> {
  const records = options.records ?? DEFAULT_RECORDS
  let broker = await environment.startBroker()
  await createJobTopic(broker.address, options.partitions)
  const process = environment.startQueueProcess()
  try {
    const { figures, waiting } = await fill(broker, process, options, records)
    const idle = await measureIdle(broker, process, options)
    const burst = await measureBurst(broker, process, options)
    await broker.process.kill()
    await broker.stop()
    broker = await environment.startBroker(broker.process.directory)
    await expectWaiting(broker, records)
    const restarted = {
      readyAfterKillMs: broker.process.readyMs,
      rssAfterRestartBytes: findRss(broker.process.pid),
    }
    await broker.stop()
    environment.remove(broker.process.directory)
    return {
      figures: { ...figures, ...idle, ...burst, ...restarted },
      verified:
        `${waiting} records waited, by the broker's own count, and none of them came; the same after SIGKILL and a restart. Growth: resident memory ${options.idle} ms after the last of them was ` +
        `taken, less that before the first, sends and all. Late: from when a record was due until a plain reader had it, on one wall clock, of ${IDLE_RECORDS} within ${IDLE_MS / 1000} s; ` +
        `none came early. Burst: ${options.burst} due within one second, until the reader had the last of them, from the end of that second. Each came once.`,
    }
  } finally {
    process.end()
  }
}

async function fill(
  broker: BenchBroker,
  process: QueueProcess,
  options: QueueBenchOptions,
  records: number,
): Promise<{ readonly figures: RunFigures; readonly waiting: number }> {
  // What the first of them needs for itself is not what a million cost.
  await process.sendDelayed(sending(broker, options, 1, Date.now(), 0))
  await delay(options.idle)
  const before = findRss(broker.process.pid)
  const sent = await process.sendDelayed(
    sending(broker, options, records, Date.now() + options.ahead, options.ahead / 24),
  )
  const busy = findRss(broker.process.pid)
  await delay(options.idle)
  const after = findRss(broker.process.pid)
  const waiting = await expectWaiting(broker, records)
  return {
    waiting,
    figures: {
      delayedSendsPerSecond: (sent.records / sent.ms) * 1000,
      rssBeforeBytes: before,
      rssGrowthBytes: minus(after, before),
      rssGrowthWhileSendingBytes: minus(busy, before),
    },
  }
}

function minus(after: number | undefined, before: number | undefined): number | undefined {
  return after === undefined || before === undefined ? undefined : after - before
}

async function measureIdle(
  broker: BenchBroker,
  process: QueueProcess,
  options: QueueBenchOptions,
): Promise<RunFigures> {
  const firstDueMs = Date.now() + LEAD_MS
  const late = new Histogram()
  await readDue(
    broker,
    IDLE_RECORDS,
    (dueMs, nowMs) => late.record((nowMs - dueMs) * 1000),
    () => process.sendDelayed(sending(broker, options, IDLE_RECORDS, firstDueMs, IDLE_MS)),
  )
  return latencyFigures('late', late.toCounts())
}

async function measureBurst(
  broker: BenchBroker,
  process: QueueProcess,
  options: QueueBenchOptions,
): Promise<RunFigures> {
  const firstDueMs = Date.now() + LEAD_MS
  let lastMs = 0
  await readDue(
    broker,
    options.burst,
    (_, nowMs) => (lastMs = nowMs),
    () => process.sendDelayed(sending(broker, options, options.burst, firstDueMs, BURST_MS - 1)),
  )
  return { burstDoneAfterMs: lastMs - (firstDueMs + BURST_MS) }
}

/** Reads so many records that come from now on, each of which says when it was due. */
async function readDue(
  broker: BenchBroker,
  records: number,
  take: (dueMs: number, nowMs: number) => void,
  send: () => Promise<unknown>,
): Promise<void> {
  const client = await connect({ url: broker.address, clientId: 'bench' })
  try {
    const stream = client.read(topic(QUEUE_TOPIC, { value: bytes }), { from: 'end' })
    const reading = readAll(stream, records, take)
    await Promise.all([reading, delay(LEAD_MS / 10).then(send)])
  } finally {
    await client.close()
  }
}

async function readAll(
  stream: AsyncIterable<ReceivedRecord<Uint8Array>>,
  records: number,
  take: (dueMs: number, nowMs: number) => void,
): Promise<void> {
  const seen = new Set<string>()
  for await (const { partition, offset, value } of stream) {
    const nowMs = Date.now()
    const dueMs = Number(Buffer.from(value ?? []).toString('latin1', 0, 13))
    if (nowMs < dueMs) throw new VerificationError(`a record came ${dueMs - nowMs} ms early`)
    seen.add(`${partition}:${offset}`)
    take(dueMs, nowMs)
    if (seen.size >= records) break
  }
}

function sending(
  broker: BenchBroker,
  options: QueueBenchOptions,
  records: number,
  firstDueMs: number,
  spreadMs: number,
): Parameters<QueueProcess['sendDelayed']>[0] {
  const { payload: payloadBytes } = options
  const { address } = broker
  return { address, topic: QUEUE_TOPIC, payloadBytes, records, firstDueMs, spreadMs }
}

/** @throws VerificationError unless so many wait */
async function expectWaiting(broker: BenchBroker, records: number): Promise<number> {
  const client = await connect({ url: broker.address, clientId: 'bench' })
  try {
    let count = -1
    const startMs = monotonicMs()
    await reached(async () => {
      count = await client.admin.countDelayed(QUEUE_TOPIC)
      return count === records || monotonicMs() - startMs > LEAD_MS
    }, 'the delayed records to be counted')
    if (count !== records) throw new VerificationError(`${records} were sent, ${count} wait`)
    return count
  } finally {
    await client.close()
  }
}
