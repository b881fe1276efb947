import type { Cleanup } from './cleanup.ts'
import { BenchEnvironment, COMMON_OPTIONS } from './environment.ts'
import { findMachineFacts } from './machine.ts'
import { type OptionSpecs, parseOptions } from './options.ts'
import { measureCycles, measureQueueLatency, measureSends } from './queue-cycles.ts'
import { measureDelayed } from './queue-delayed.ts'
import { measureRedrive } from './queue-redrive.ts'
import { mediansOf, type Report, type RunFigures } from './report.ts'

const SPECS = {
  part: {
    kind: 'choice',
    default: 'cycles',
    choices: ['cycles', 'send', 'latency', 'delayed', 'redrive'],
    about:
      'leases and acks of one worker; sends with a promise each; send to handler at a rate; records far ahead; a redrive',
  },
  payload: { kind: 'bytes', default: '100', least: 20, about: 'size of a value' },
  partitions: { kind: 'count', default: '6', least: 1, about: 'of the topic' },
  concurrency: { kind: 'count', default: '100', least: 1, about: 'handlers at once' },
  prefetch: { kind: 'count', about: 'records held beyond those; absent: as the client does' },
  records: {
    kind: 'count',
    about: 'cycles: that are there (2000000); delayed: far ahead (1000000); redrive: 10000',
  },
  rate: {
    kind: 'rate',
    default: '5000',
    about: 'latency: records or bytes a second, whatever the broker does',
  },
  linger: { kind: 'duration', about: "latency, send: the producer's lingerMs" },
  ahead: { kind: 'duration', default: '24h', least: 1000, about: 'delayed: how far' },
  idle: {
    kind: 'duration',
    default: '10s',
    least: 1,
    about: 'delayed: pause before memory is looked at',
  },
  burst: { kind: 'count', default: '10000', least: 1, about: 'delayed: due within one second' },
  perSecond: { kind: 'count', default: '10000', least: 1, about: 'redrive: its rate' },
  duration: { kind: 'duration', default: '10s', least: 1, about: 'measured time of a run' },
  warmup: { kind: 'duration', default: '2s', about: 'before it' },
  ...COMMON_OPTIONS,
} as const satisfies OptionSpecs

export const QUEUE_OPTIONS: OptionSpecs = SPECS

/** What a part needs to know. */
export interface QueueBenchOptions {
  readonly payload: number
  readonly partitions: number
  readonly concurrency: number
  readonly prefetch: number | undefined
  readonly records: number | undefined
  readonly recordsPerSecond: number
  readonly linger: number | undefined
  readonly ahead: number
  readonly idle: number
  readonly burst: number
  readonly perSecond: number
  readonly duration: number
  readonly warmup: number
  readonly seed: number
}

export interface PartResult {
  readonly figures: RunFigures
  /** What was checked, in words; the last run's counts. */
  readonly verified: string
}

type Part = (environment: BenchEnvironment, options: QueueBenchOptions) => Promise<PartResult>

const PARTS: Readonly<Record<string, Part>> = {
  cycles: measureCycles,
  send: measureSends,
  latency: measureQueueLatency,
  delayed: measureDelayed,
  redrive: measureRedrive,
}

/** Work queues: one part of it a command. */
export async function queueBench(argv: readonly string[], cleanup: Cleanup): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const runs: RunFigures[] = []
  const { rate, payload } = options
  const recordsPerSecond = rate.unit === 'records' ? rate.perSecond : rate.perSecond / payload
  let verified = ''
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    const part = PARTS[options.part] ?? measureCycles
    const result = await part(environment, { ...options, recordsPerSecond })
    runs.push(result.figures)
    verified = result.verified
  }
  return { command: 'queue', options, machine, runs, medians: mediansOf(runs), verified }
}
