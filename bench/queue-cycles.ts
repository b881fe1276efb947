import { setTimeout as delay } from 'node:timers/promises'
import { type Client, connect } from '../src/client/index.ts'
import { type BenchBroker, type BenchEnvironment, createTopic } from './environment.ts'
import { UsageWatch } from './measurement.ts'
import { produceLoad, type ProduceLoadOptions } from './produce-load.ts'
import type { QueueProcess } from './queue-processes.ts'
import type { PartResult, QueueBenchOptions } from './queue.ts'
import { latencyFigures } from './report.ts'
import { planTimes } from './tail-measurement.ts'
import { monotonicMs } from './values.ts'
import { VerificationError } from './verifier.ts'

export const QUEUE_TOPIC = 'bench'
export const QUEUE_GROUP = 'bench-workers'
const BATCH_BYTES = 256 * 1024
const DEFAULT_RECORDS = 2_000_000
const POLL_MS = 20
const PATIENCE_MS = 60_000

/**
 * A topic full of records and one worker that does nothing with them: what counts is what the broker says was accepted, which it says when that is durable. Then it
 * is killed, and must know all of it.
 */
export async function measureCycles(
  environment: BenchEnvironment,
  options: QueueBenchOptions,
): Promise<PartResult> {
  const { duration, warmup } = options
  const broker = await environment.startBroker()
  await createTopic(broker.address, QUEUE_TOPIC, options.partitions, BATCH_BYTES)
  await produceLoad({
    ...producing(broker, options, false),
    api: 'post',
    maxRecords: options.records ?? DEFAULT_RECORDS,
    startAtMs: 0,
    measureFromMs: 0,
    measureUntilMs: Infinity,
  })
  const process = environment.startQueueProcess()
  const client = await connect({ url: broker.address, clientId: 'bench' })
  try {
    await process.work(working(broker, options, false))
    await delay(warmup)
    const fromMs = monotonicMs()
    const watch = new UsageWatch(broker.process, [process.pid], fromMs)
    const before = await countAccepted(client)
    const beforeMs = monotonicMs()
    await delay(duration)
    const after = await countAccepted(client)
    const afterMs = monotonicMs()
    watch.end()
    const usage = await watch.figures()
    const { handled, repeated } = await process.finish()
    const accepted = await countAccepted(client)
    if (after - before < (duration / 1000) * 2) {
      throw new VerificationError(`only ${after - before} records: ask for more --records`)
    }
    if (accepted !== handled || repeated > 0) {
      const facts = `${handled} were handled, ${repeated} of them again, ${accepted} accepted`
      throw new VerificationError(facts)
    }
    await client.close()
    await broker.process.kill()
    await broker.stop()
    const again = await environment.startBroker(broker.process.directory)
    const done = await countDone(again)
    if (done !== accepted) {
      throw new VerificationError(`${accepted} were accepted, ${done} are after the restart`)
    }
    const readyMs = again.process.readyMs
    await again.stop()
    environment.remove(broker.process.directory)
    const cycles = after - before
    return {
      figures: {
        cyclesPerSecond: (cycles / (afterMs - beforeMs)) * 1000,
        ...usage,
        brokerCpuNsPerCycle: perRecord(usage['brokerCpuSeconds'], cycles),
        clientCpuNsPerCycle: perRecord(usage['clientCpuSeconds'], cycles),
        readyAfterKillMs: readyMs,
      },
      verified:
        `A cycle is a record leased, handled by the one worker (${options.concurrency} handlers at once) and accepted durably; the broker's own count of accepted records, taken twice, is the figure. ` +
        `All ${handled} records that came were compared byte by byte, none came twice. The broker was then killed (SIGKILL): after the restart it knew ${done} to be done, as many as it had accepted.`,
    }
  } finally {
    process.end()
    await client.close()
  }
}

function perRecord(cpuSeconds: number | undefined, records: number): number | undefined {
  return cpuSeconds === undefined ? undefined : (cpuSeconds / records) * 1e9
}

/** Sends to a job topic, a promise each, durable, and a worker's group that waits for them: nobody works meanwhile. */
export async function measureSends(
  environment: BenchEnvironment,
  options: QueueBenchOptions,
): Promise<PartResult> {
  const broker = await environment.startBroker()
  await createJobTopic(broker.address, options.partitions)
  const process = environment.startLoadProcess()
  try {
    const times = planTimes(options.warmup, options.duration)
    const watch = new UsageWatch(
      broker.process,
      [process.pid],
      times.measureFromMs,
      times.measureUntilMs,
    )
    const load = { ...producing(broker, options, false), ...times, api: 'send' as const }
    const result = await process.produce(load)
    const sent = result.sent.reduce((sum, count) => sum + count, 0)
    const found = await countRecords(broker)
    if (found !== sent) throw new VerificationError(`${sent} were sent, ${found} are there`)
    const figures = {
      sendsPerSecond: (result.measuredRecords / result.measuredMs) * 1000,
      ...latencyFigures('ack', result.latency),
      ...(await watch.figures()),
    }
    await broker.stop()
    environment.remove(broker.process.directory)
    return {
      figures,
      verified: `Each of ${sent} sends to a job topic had a promise of its own, kept when the record was durable; as many records are there.`,
    }
  } finally {
    process.end()
  }
}

/** From when a record was meant to be sent until its handler began, at a fixed rate. */
export async function measureQueueLatency(
  environment: BenchEnvironment,
  options: QueueBenchOptions,
): Promise<PartResult> {
  const broker = await environment.startBroker()
  await createJobTopic(broker.address, options.partitions)
  const sender = environment.startLoadProcess()
  const worker = environment.startQueueProcess()
  try {
    await worker.work(working(broker, options, true))
    const times = planTimes(options.warmup, options.duration)
    const { measureFromMs, measureUntilMs } = times
    await worker.measure(measureFromMs, measureUntilMs)
    const pids = [sender.pid, worker.pid]
    const watch = new UsageWatch(broker.process, pids, measureFromMs, measureUntilMs)
    const { recordsPerSecond } = options
    const load = { ...producing(broker, options, true), ...times, api: 'send' as const }
    const produced = await sender.produce({ ...load, recordsPerSecond })
    const sent = produced.sent.reduce((sum, count) => sum + count, 0)
    await reached(async () => (await worker.progress()).handled >= sent, 'all to be handled')
    const result = await worker.finish()
    if (result.repeated > 0 || result.handled !== sent) {
      const facts = `${sent} were sent, ${result.handled} handled, ${result.repeated} of them again`
      throw new VerificationError(facts)
    }
    const figures = {
      sendsPerSecond: (produced.measuredRecords / produced.measuredMs) * 1000,
      ...latencyFigures('toHandler', result.latency),
      ...latencyFigures('ack', produced.latency),
      ...(await watch.figures()),
    }
    await broker.stop()
    environment.remove(broker.process.directory)
    return {
      figures,
      verified:
        `Open loop: times count from when a record was meant to be sent, in one process, until its handler began in another. All ${sent} records were handled once, ` +
        'every byte compared, and accepted durably.',
    }
  } finally {
    sender.end()
    worker.end()
  }
}

export async function createJobTopic(address: string, partitions: number): Promise<void> {
  const client = await connect({ url: address, clientId: 'bench' })
  try {
    await client.admin.createTopic(QUEUE_TOPIC, { partitions, config: { jobs: 'true' } })
  } finally {
    await client.close()
  }
}

export function working(
  broker: BenchBroker,
  options: QueueBenchOptions,
  isStamped: boolean,
): Parameters<QueueProcess['work']>[0] {
  const { seed, payload, concurrency, prefetch } = options
  return {
    address: broker.address,
    topic: QUEUE_TOPIC,
    group: QUEUE_GROUP,
    concurrency,
    prefetch,
    values: { seed, payloadBytes: payload, isStamped, content: 'random' },
    verdict: 'accept',
    settings: { 'queue.start': 'earliest' },
  }
}

export function producing(
  broker: BenchBroker,
  options: QueueBenchOptions,
  isStamped: boolean,
): Omit<ProduceLoadOptions, 'api' | 'startAtMs' | 'measureFromMs' | 'measureUntilMs'> {
  const { seed, payload } = options
  return {
    address: broker.address,
    topic: QUEUE_TOPIC,
    values: { seed, payloadBytes: payload, isStamped, content: 'random' },
    firstProducer: 0,
    producers: 1,
    acks: 'durable',
    codec: 'none',
    batchBytes: BATCH_BYTES,
    lingerMs: options.linger,
    bufferBytes: undefined,
    recordsPerSecond: undefined,
    turnBytes: 64 * 1024,
    maxRecords: undefined,
  }
}

async function countAccepted(client: Client): Promise<number> {
  const { counters } = await client.admin.describeQueue(QUEUE_GROUP)
  return counters['accepted'] ?? 0
}

async function countDone(broker: BenchBroker): Promise<number> {
  const client = await connect({ url: broker.address, clientId: 'bench' })
  try {
    const { topics } = await client.admin.describeQueue(QUEUE_GROUP)
    return topics
      .flatMap(({ partitions }) => partitions)
      .reduce((sum, { startOffset, done }) => sum + startOffset + done, 0)
  } finally {
    await client.close()
  }
}

export async function countRecords(broker: BenchBroker): Promise<number> {
  const client = await connect({ url: broker.address, clientId: 'bench' })
  try {
    const ends = await client.admin.offsets(QUEUE_TOPIC, 'end')
    return [...ends.values()].reduce((sum, end) => sum + end, 0)
  } finally {
    await client.close()
  }
}

export async function reached(
  isTrue: () => Promise<boolean>,
  what: string,
  patienceMs: number = PATIENCE_MS,
): Promise<void> {
  const untilMs = monotonicMs() + patienceMs
  while (!(await isTrue())) {
    if (monotonicMs() > untilMs) {
      throw new VerificationError(`waited ${patienceMs} ms in vain for ${what}`)
    }
    await delay(POLL_MS)
  }
}
