import type { Acks, Compression } from '../src/client/index.ts'
import type { BenchBroker, BenchEnvironment } from './environment.ts'
import { Histogram } from './histogram.ts'
import { UsageWatch } from './measurement.ts'
import { type Rate, toRecordsPerSecond } from './options.ts'
import {
  type ProduceApi,
  produceLoad,
  type ProduceLoadOptions,
  type ProduceLoadResult,
} from './produce-load.ts'
import { ReadLoad, type ReadLoadOptions, type ReadMode } from './read-load.ts'
import { latencyFigures, type RunFigures, throughputFigures } from './report.ts'
import { monotonicMs } from './values.ts'

export interface TailOptions {
  readonly rate: Rate | undefined
  readonly payload: number
  readonly batch: number
  readonly acks: Acks
  readonly codec: Compression
  readonly content: 'random' | 'text'
  readonly seed: number
  readonly producers: number
  readonly readers: number
  readonly connections: number
  readonly mode: ReadMode
  readonly api: ProduceApi
  readonly linger: number | undefined
  readonly turn: number
  readonly duration: number
  readonly warmup: number
  /** Values carry when they were meant to be sent. */
  readonly isStamped: boolean
  /** What runs in processes of its own. */
  readonly processes: 'none' | 'producers' | 'all'
}

export const TAIL_TOPIC = 'bench'

/** From here until producers begin: connecting takes its time. */
const LEAD_MS = 1_000

/** Readers that follow while producers write, until each has everything. */
export async function measureTail(
  environment: BenchEnvironment,
  broker: BenchBroker,
  options: TailOptions,
): Promise<{ readonly figures: RunFigures; readonly readRecords: number }> {
  const { payload, seed, content, isStamped } = options
  const values = { seed, payloadBytes: payload, isStamped, content }
  const readOptions: ReadLoadOptions = {
    address: broker.address,
    topic: TAIL_TOPIC,
    values,
    readers: options.readers,
    connections: options.connections,
    mode: options.mode,
    checksBytes: true,
    prefetchBytes: undefined,
  }
  const produceOptions: Omit<ProduceLoadOptions, keyof ProduceTimes> = {
    address: broker.address,
    topic: TAIL_TOPIC,
    values,
    firstProducer: 1,
    producers: options.producers,
    api: options.api,
    acks: options.acks,
    codec: options.codec,
    batchBytes: options.batch,
    lingerMs: options.linger,
    bufferBytes: undefined,
    recordsPerSecond:
      options.rate === undefined ? undefined : toRecordsPerSecond(options.rate, payload),
    turnBytes: options.turn,
    maxRecords: undefined,
  }
  const readProcess = options.processes === 'all' ? environment.startLoadProcess() : undefined
  const produceProcess = options.processes === 'none' ? undefined : environment.startLoadProcess()
  const reading = new ReadLoad(readOptions)
  try {
    await (readProcess === undefined ? reading.start() : readProcess.read(readOptions))
    const first = await produceOne(produceOptions)
    await (readProcess?.begun() ?? reading.begun())
    const times = planTimes(options.warmup, options.duration)
    const { measureFromMs, measureUntilMs } = times
    const edges = [measureFromMs, measureUntilMs]
    if (readProcess === undefined) reading.measure(edges)
    else await readProcess.measure(edges)
    const pids = [readProcess?.pid, produceProcess?.pid].filter((pid) => pid !== undefined)
    if (pids.length < 2) pids.push(process.pid)
    const watch = new UsageWatch(broker.process, pids, measureFromMs, measureUntilMs)
    const load: ProduceLoadOptions = { ...produceOptions, ...times }
    const produced = await (produceProcess?.produce(load) ?? produceLoad(load))
    const sent = [...first.sent, ...produced.sent]
    const read = await (readProcess?.finish(sent) ?? reading.finish(sent))
    const window = read.windows[0]
    return {
      readRecords: read.records,
      figures: {
        ...throughputFigures(
          (window?.records ?? 0) / options.readers,
          options.duration,
          options.payload,
        ),
        producedRecordsPerSecond: (produced.measuredRecords / produced.measuredMs) * 1000,
        ...latencyFigures('ack', produced.latency),
        ...latencyFigures('endToEnd', window?.latency ?? new Histogram().toCounts()),
        ...(await watch.figures()),
        clientLoopP99Ms: Math.max(produced.eventLoopP99Ms, read.eventLoopP99Ms),
      },
    }
  } finally {
    await reading.close()
    readProcess?.end()
    produceProcess?.end()
  }
}

export type ProduceTimes = Pick<
  ProduceLoadOptions,
  'startAtMs' | 'measureFromMs' | 'measureUntilMs'
>

export function planTimes(warmupMs: number, durationMs: number): ProduceTimes {
  const startAtMs = monotonicMs() + LEAD_MS
  const measureFromMs = startAtMs + warmupMs
  return { startAtMs, measureFromMs, measureUntilMs: measureFromMs + durationMs }
}

/** One record of producer 0: a reader that has it has begun. The others have numbers from 1 on. */
export function produceOne(
  options: Omit<ProduceLoadOptions, keyof ProduceTimes>,
): Promise<ProduceLoadResult> {
  return produceLoad({
    ...options,
    firstProducer: 0,
    producers: 1,
    recordsPerSecond: undefined,
    maxRecords: 1,
    startAtMs: 0,
    measureFromMs: 0,
    measureUntilMs: Infinity,
  })
}
