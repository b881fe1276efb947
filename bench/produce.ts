import { bytes, connect, topic } from '../src/client/index.ts'
import type { Cleanup } from './cleanup.ts'
import { BenchEnvironment, type BenchBroker, COMMON_OPTIONS, createTopic } from './environment.ts'
import { Histogram } from './histogram.ts'
import { findMachineFacts } from './machine.ts'
import { UsageWatch } from './measurement.ts'
import { type Options, type OptionSpecs, parseOptions, toRecordsPerSecond } from './options.ts'
import { produceLoad, type ProduceLoadOptions, type ProduceLoadResult } from './produce-load.ts'
import {
  latencyFigures,
  mediansOf,
  type Report,
  type RunFigures,
  throughputFigures,
} from './report.ts'
import { monotonicMs, Values } from './values.ts'
import { type ReceiptSamples, Verifier } from './verifier.ts'

const SPECS = {
  payload: { kind: 'bytes', default: '100', least: 8, about: 'size of a value' },
  partitions: { kind: 'count', default: '6', least: 1, about: 'of the topic' },
  batch: { kind: 'bytes', default: '256KiB', least: 1024, about: "the producer's batchBytes" },
  acks: {
    kind: 'choice',
    default: 'durable',
    choices: ['durable', 'written', 'none'],
    about: 'when a record is answered',
  },
  codec: {
    kind: 'choice',
    default: 'none',
    choices: ['none', 'lz4', 'gzip', 'zstd'],
    about: 'compression',
  },
  content: {
    kind: 'choice',
    default: 'random',
    choices: ['random', 'text'],
    about: 'of values; text can be compressed',
  },
  producers: { kind: 'count', default: '1', least: 1, about: 'how many' },
  processes: { kind: 'flag', about: 'each producer in a process of its own; else all in this one' },
  api: {
    kind: 'choice',
    default: 'send',
    choices: ['send', 'post', 'sendAll'],
    about: 'a promise per record, none, or one per thousand',
  },
  rate: {
    kind: 'rate',
    about: 'open loop: 20MB/s, or records a second; default: as fast as possible',
  },
  linger: { kind: 'duration', about: "the producer's lingerMs" },
  buffer: { kind: 'bytes', about: "the producer's bufferBytes" },
  turn: {
    kind: 'bytes',
    default: '64KiB',
    least: 1,
    about: 'bytes sent between two turns of the event loop',
  },
  duration: { kind: 'duration', default: '10s', least: 1, about: 'measured time of a run' },
  warmup: { kind: 'duration', default: '2s', about: 'before it' },
  ...COMMON_OPTIONS,
} as const satisfies OptionSpecs

export const PRODUCE_OPTIONS: OptionSpecs = SPECS

const TOPIC = 'bench'
/** From here until all producers begin: connecting takes its time. */
const LEAD_MS = 500

/** Produces as fast as it goes, or at a rate, and reads everything back afterwards. */
export async function produceBench(argv: readonly string[], cleanup: Cleanup): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const runs: RunFigures[] = []
  let checked = 0
  let receipts = 0
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    const broker = await environment.startBroker()
    await createTopic(
      broker.address,
      TOPIC,
      options.partitions,
      Math.max(options.batch, options.payload),
    )
    const { figures, results } = await measure(environment, broker, options)
    const verifier = await verify(broker.address, options, results)
    checked += verifier.records
    receipts += verifier.checkedReceipts
    runs.push(figures)
    await broker.stop()
    environment.remove(broker.process.directory)
  }
  return {
    command: 'produce',
    options,
    machine,
    runs,
    medians: mediansOf(runs),
    verified:
      `All ${checked} records that were sent, warm-up included, were read back after each run and compared byte by byte: none missing, none twice, ` +
      `offsets without a gap, in order${receipts === 0 ? '' : `; ${receipts} receipts, taken as samples, named the right place`}.`,
  }
}

async function measure(
  environment: BenchEnvironment,
  broker: BenchBroker,
  options: Options<typeof SPECS>,
): Promise<{ figures: RunFigures; results: readonly ProduceLoadResult[] }> {
  const loads = options.processes
    ? Array.from({ length: options.producers }, () => environment.startLoadProcess())
    : []
  const startAtMs = monotonicMs() + LEAD_MS
  const measureFromMs = startAtMs + options.warmup
  const measureUntilMs = measureFromMs + options.duration
  const processes = Math.max(1, loads.length)
  const make = (firstProducer: number): ProduceLoadOptions => ({
    address: broker.address,
    topic: TOPIC,
    values: toValueOptions(options),
    firstProducer,
    producers: options.processes ? 1 : options.producers,
    api: options.api,
    acks: options.acks,
    codec: options.codec,
    batchBytes: options.batch,
    lingerMs: options.linger,
    bufferBytes: options.buffer,
    recordsPerSecond:
      options.rate === undefined
        ? undefined
        : toRecordsPerSecond(options.rate, options.payload) / processes,
    turnBytes: options.turn,
    maxRecords: undefined,
    startAtMs,
    measureFromMs,
    measureUntilMs,
  })
  const pids = options.processes ? loads.map((load) => load.pid) : [process.pid]
  const watch = new UsageWatch(broker.process, pids, measureFromMs, measureUntilMs)
  const results = options.processes
    ? await Promise.all(loads.map((load, i) => load.produce(make(i))))
    : [await produceLoad(make(0))]
  const usage = await watch.figures()
  for (const load of loads) load.end()
  const latency = new Histogram()
  for (const result of results) latency.add(result.latency)
  const records = results.reduce((sum, result) => sum + result.measuredRecords, 0)
  const ms = Math.max(...results.map((result) => result.measuredMs))
  return {
    results,
    figures: {
      ...throughputFigures(records, ms, options.payload),
      ...latencyFigures('ack', latency.toCounts()),
      ...usage,
      clientLoopP99Ms: Math.max(...results.map((result) => result.eventLoopP99Ms)),
    },
  }
}

function toValueOptions(options: Options<typeof SPECS>): ProduceLoadOptions['values'] {
  const { seed, payload, content } = options
  return { seed, payloadBytes: payload, isStamped: false, content }
}

async function verify(
  address: string,
  options: Options<typeof SPECS>,
  results: readonly ProduceLoadResult[],
): Promise<Verifier> {
  const samples: ReceiptSamples = {
    every: results[0]?.samples.every ?? 1,
    partitions: merge(results.map((result) => result.samples.partitions)),
    offsets: merge(results.map((result) => result.samples.offsets)),
  }
  const verifier = new Verifier(new Values(toValueOptions(options)), { samples })
  const client = await connect({ url: address, clientId: 'bench-verify' })
  try {
    const stream = client.read(topic(TOPIC, { value: bytes }), { from: 'start', until: 'end' })
    for await (const batch of stream.batches()) verifier.take(batch)
  } finally {
    await client.close()
  }
  verifier.finish(results.flatMap((result) => result.sent))
  return verifier
}

/** Each list has holes where other processes' producers stand. */
function merge<T>(lists: readonly (readonly T[])[]): T[] {
  const merged: T[] = []
  for (const list of lists) {
    for (const [i, item] of list.entries()) {
      if (item !== undefined) merged[i] = item
    }
  }
  return merged
}
