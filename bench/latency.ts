import type { Cleanup } from './cleanup.ts'
import { BenchEnvironment, COMMON_OPTIONS, createTopic } from './environment.ts'
import { findMachineFacts } from './machine.ts'
import { type OptionSpecs, parseOptions } from './options.ts'
import { mediansOf, type Report, type RunFigures } from './report.ts'
import { measureTail, TAIL_TOPIC } from './tail-measurement.ts'

const SPECS = {
  rate: {
    kind: 'rate',
    default: '20MB/s',
    about: 'records or bytes a second, whatever the broker does',
  },
  payload: { kind: 'bytes', default: '1024', least: 16, about: 'size of a value' },
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
  processes: {
    kind: 'flag',
    about: 'producers and readers in processes of their own; else all in this one',
  },
  readers: { kind: 'count', default: '1', least: 1, about: 'how many, each of everything' },
  mode: {
    kind: 'choice',
    default: 'cursor',
    choices: ['cursor', 'batches', 'records'],
    about: 'how records are taken',
  },
  api: {
    kind: 'choice',
    default: 'send',
    choices: ['send', 'post', 'sendAll'],
    about: 'a promise per record, none, or one per thousand',
  },
  linger: { kind: 'duration', about: "the producer's lingerMs" },
  duration: { kind: 'duration', default: '10s', least: 1, about: 'measured time of a run' },
  warmup: { kind: 'duration', default: '2s', about: 'before it' },
  ...COMMON_OPTIONS,
} as const satisfies OptionSpecs

export const LATENCY_OPTIONS: OptionSpecs = SPECS

/** From the time that a record was meant to be sent until it was acknowledged, and until a reader had it, at a fixed rate. */
export async function latencyBench(argv: readonly string[], cleanup: Cleanup): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const runs: RunFigures[] = []
  let read = 0
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    const broker = await environment.startBroker()
    const largest = Math.max(options.batch, options.payload)
    await createTopic(broker.address, TAIL_TOPIC, options.partitions, largest)
    const result = await measureTail(environment, broker, {
      ...options,
      isStamped: true,
      connections: options.readers,
      turn: 64 * 1024,
      processes: options.processes ? 'all' : 'none',
    })
    runs.push(result.figures)
    read += result.readRecords
    await broker.stop()
    environment.remove(broker.process.directory)
  }
  return {
    command: 'latency',
    options,
    machine,
    runs,
    medians: mediansOf(runs),
    verified:
      `Open loop: times count from when a record was meant to be sent. All ${read} records that readers got, warm-up included, were compared byte by byte as they came: ` +
      'none missing, none twice, offsets without a gap, in order.',
  }
}
