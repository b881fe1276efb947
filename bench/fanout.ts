import { setTimeout as delay } from 'node:timers/promises'
import type { Cleanup } from './cleanup.ts'
import { BenchEnvironment, COMMON_OPTIONS, createTopic } from './environment.ts'
import { Histogram } from './histogram.ts'
import type { LoadProcess } from './load-processes.ts'
import { findMachineFacts } from './machine.ts'
import { UsageWatch } from './measurement.ts'
import { type Options, type OptionSpecs, parseOptions, toRecordsPerSecond } from './options.ts'
import { produceLoad } from './produce-load.ts'
import type { ReadLoadOptions, ReadLoadResult } from './read-load.ts'
import { latencyFigures, mediansOf, type Report, type RunFigures } from './report.ts'
import { planTimes, produceOne } from './tail-measurement.ts'
import { monotonicMs } from './values.ts'

const SPECS = {
  readers: { kind: 'count', default: '1000', least: 1, about: 'that follow the one partition' },
  connections: { kind: 'count', default: '20', least: 1, about: 'that they share' },
  processes: { kind: 'count', default: '2', least: 1, about: 'that they run in' },
  stopped: {
    kind: 'count',
    default: '1',
    about: 'more readers, in a process that is stopped (SIGSTOP) halfway',
  },
  rate: { kind: 'rate', default: '1MB/s', about: 'at which the partition is written' },
  payload: { kind: 'bytes', default: '1024', least: 16, about: 'size of a value' },
  batch: { kind: 'bytes', default: '256KiB', least: 1024, about: "the producer's batchBytes" },
  linger: { kind: 'duration', about: "the producer's lingerMs" },
  duration: { kind: 'duration', default: '20s', least: 2, about: 'measured time of a run' },
  warmup: { kind: 'duration', default: '5s', about: 'before it' },
  ...COMMON_OPTIONS,
  runs: { ...COMMON_OPTIONS.runs, default: '1' },
} as const satisfies OptionSpecs

export const FANOUT_OPTIONS: OptionSpecs = SPECS

const TOPIC = 'bench'

/** A partition that is written at a steady rate and followed by many. Halfway some of them are stopped, and the others must not notice. */
export async function fanoutBench(argv: readonly string[], cleanup: Cleanup): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const runs: RunFigures[] = []
  let read = 0
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    const result = await measure(environment, options)
    runs.push(result.figures)
    read += result.readRecords
  }
  return {
    command: 'fanout',
    options,
    machine,
    runs,
    medians: mediansOf(runs),
    verified:
      `Each of the ${options.readers + options.stopped} readers, the stopped ones included once they went on, got every record, ${read} all together, ` +
      'compared byte by byte: none missing, none twice, in order.',
  }
}

async function measure(
  environment: BenchEnvironment,
  options: Options<typeof SPECS>,
): Promise<{ figures: RunFigures; readRecords: number }> {
  const broker = await environment.startBroker()
  await createTopic(broker.address, TOPIC, 1, options.batch)
  const readers = Array.from({ length: options.processes }, () => environment.startLoadProcess())
  const stopped = options.stopped === 0 ? undefined : environment.startLoadProcess()
  const values = {
    seed: options.seed,
    payloadBytes: options.payload,
    isStamped: true,
    content: 'random',
  } as const
  const makeRead = (count: number, connections: number): ReadLoadOptions => ({
    address: broker.address,
    topic: TOPIC,
    values,
    readers: count,
    connections: Math.max(1, connections),
    mode: 'cursor',
    checksBytes: true,
    prefetchBytes: undefined,
  })
  await Promise.all(
    readers.map((load, i) => {
      const share = (whole: number): number =>
        Math.floor((whole * (i + 1)) / readers.length) - Math.floor((whole * i) / readers.length)
      return load.read(makeRead(share(options.readers), share(options.connections)))
    }),
  )
  await stopped?.read(makeRead(options.stopped, 1))
  const load = {
    address: broker.address,
    topic: TOPIC,
    values,
    firstProducer: 1,
    producers: 1,
    api: 'send',
    acks: 'durable',
    codec: 'none',
    batchBytes: options.batch,
    lingerMs: options.linger,
    bufferBytes: undefined,
    recordsPerSecond: toRecordsPerSecond(options.rate, options.payload),
    turnBytes: 64 * 1024,
    maxRecords: undefined,
  } as const
  const first = await produceOne(load)
  // Nobody knows beforehand how long a thousand readers take to begin, so the clock starts when they have.
  for (const reader of [...readers, stopped]) await reader?.begun()
  const times = planTimes(options.warmup, options.duration)
  const { measureFromMs, measureUntilMs } = times
  const stopAtMs = measureFromMs + options.duration / 2
  for (const reader of readers) await reader.measure([measureFromMs, stopAtMs, measureUntilMs])
  const pids = [...readers.map((reader) => reader.pid), process.pid]
  const watch = new UsageWatch(broker.process, pids, measureFromMs, measureUntilMs)
  const stop = stopAt(stopped, stopAtMs)
  const produced = await produceLoad({ ...load, ...times })
  const sent = [...first.sent, ...produced.sent]
  await stop
  const results = await Promise.all(readers.map((load) => load.finish(sent)))
  stopped?.signal('SIGCONT')
  const late = await stopped?.finish(sent)
  const usage = await watch.figures()
  for (const load of readers) load.end()
  stopped?.end()
  await broker.stop()
  environment.remove(broker.process.directory)
  const all = late === undefined ? results : [...results, late]
  const records = results.reduce((sum, { windows }) => sum + sumOf(windows), 0)
  return {
    readRecords: all.reduce((sum, result) => sum + result.records, 0),
    figures: {
      readers: options.readers,
      recordsPerSecond: (records / options.duration) * 1000,
      mbPerSecond: (records / options.duration / 1000) * options.payload,
      producedRecordsPerSecond: (produced.measuredRecords / produced.measuredMs) * 1000,
      ...latencyFigures('ack', produced.latency),
      ...latencyFigures('before', merge(results, 0)),
      ...latencyFigures('whileOneIsStopped', merge(results, 1)),
      ...usage,
      readersLoopP99Ms: Math.max(...results.map((result) => result.eventLoopP99Ms)),
      producerLoopP99Ms: produced.eventLoopP99Ms,
    },
  }
}

async function stopAt(load: LoadProcess | undefined, atMs: number): Promise<void> {
  await delay(Math.max(0, atMs - monotonicMs()))
  load?.signal('SIGSTOP')
}

function sumOf(windows: ReadLoadResult['windows']): number {
  return windows.reduce((sum, { records }) => sum + records, 0)
}

function merge(
  results: readonly ReadLoadResult[],
  window: number,
): ReturnType<Histogram['toCounts']> {
  const merged = new Histogram()
  for (const { windows } of results) {
    const counts = windows[window]?.latency
    if (counts !== undefined) merged.add(counts)
  }
  return merged.toCounts()
}
