import { bytes, type Client, connect, topic } from '../src/client/index.ts'
import type { Cleanup } from './cleanup.ts'
import {
  BenchEnvironment,
  type BenchBroker,
  COMMON_OPTIONS,
  createTopic,
  dropPageCache,
} from './environment.ts'
import { findMachineFacts } from './machine.ts'
import { UsageWatch } from './measurement.ts'
import { type Options, type OptionSpecs, parseOptions, UsageError } from './options.ts'
import { produceLoad } from './produce-load.ts'
import { takeBatch } from './read-load.ts'
import { mediansOf, type Report, type RunFigures, throughputFigures } from './report.ts'
import { measureTail, TAIL_TOPIC } from './tail-measurement.ts'
import { monotonicMs, Values } from './values.ts'
import { VerificationError, Verifier } from './verifier.ts'

const SPECS = {
  payload: { kind: 'bytes', default: '100', least: 8, about: 'size of a value' },
  partitions: { kind: 'count', default: '6', least: 1, about: 'of the topic' },
  batch: {
    kind: 'bytes',
    default: '256KiB',
    least: 1024,
    about: 'size of the batches that are there',
  },
  size: {
    kind: 'bytes',
    default: '512MiB',
    least: 1,
    about: 'values that are there, all together',
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
  readers: {
    kind: 'count',
    default: '1',
    least: 1,
    about: 'how many, each of everything, in this process',
  },
  mode: {
    kind: 'choice',
    default: 'cursor',
    choices: ['cursor', 'batches', 'records'],
    about: "a batch's cursor, its records, or record by record",
  },
  verify: {
    kind: 'choice',
    default: 'inline',
    choices: ['inline', 'after'],
    about: 'compare every byte in the measured pass, or in one after it (34 ns for 100 bytes)',
  },
  tail: {
    kind: 'flag',
    about: 'follow what a producer in its own process is writing, instead of what is there',
  },
  rate: { kind: 'rate', about: 'of that producer; default: as fast as possible' },
  cold: { kind: 'flag', about: 'a fresh broker and no page cache for each run: from the disk' },
  prefetch: { kind: 'bytes', default: '8MiB', least: 1024, about: "the reader's prefetchBytes" },
  duration: {
    kind: 'duration',
    default: '10s',
    least: 1,
    about: 'a run reads everything again until so much time has gone',
  },
  warmup: { kind: 'duration', default: '2s', about: 'the same before it; with cold: none' },
  ...COMMON_OPTIONS,
} as const satisfies OptionSpecs

export const CONSUME_OPTIONS: OptionSpecs = SPECS

type ConsumeOptions = Options<typeof SPECS>

const TOPIC = TAIL_TOPIC

/** Reads what is there, again and again, or follows what is being written. */
export async function consumeBench(argv: readonly string[], cleanup: Cleanup): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  if (options.tail && options.cold) throw new UsageError('--tail and --cold exclude each other')
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const result = options.tail
    ? await followRuns(environment, options)
    : await readRuns(environment, options)
  return {
    command: 'consume',
    options,
    machine,
    runs: result.runs,
    medians: mediansOf(result.runs),
    verified: result.verified,
  }
}

interface Result {
  readonly runs: readonly RunFigures[]
  readonly verified: string
}

async function followRuns(environment: BenchEnvironment, options: ConsumeOptions): Promise<Result> {
  const runs: RunFigures[] = []
  let read = 0
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    const broker = await environment.startBroker()
    await createTopic(broker.address, TOPIC, options.partitions, options.batch)
    const result = await measureTail(environment, broker, {
      ...options,
      acks: 'durable',
      producers: 1,
      connections: options.readers,
      api: 'post',
      linger: undefined,
      turn: 64 * 1024,
      isStamped: false,
      processes: 'producers',
    })
    runs.push(result.figures)
    read += result.readRecords
    await broker.stop()
    environment.remove(broker.process.directory)
  }
  return {
    runs,
    verified:
      `Rates are per reader. All ${read} records that readers got, warm-up included, were compared byte by byte as they came: ` +
      'none missing, none twice, offsets without a gap, in order.',
  }
}

async function readRuns(environment: BenchEnvironment, options: ConsumeOptions): Promise<Result> {
  let broker = await environment.startBroker()
  await createTopic(broker.address, TOPIC, options.partitions, options.batch)
  console.error('writing what is to be read …')
  const sent = await fill(broker.address, options)
  const runs: RunFigures[] = []
  let passes = 0
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    if (options.cold) {
      await broker.stop()
      dropPageCache(broker.process.directory)
      broker = await environment.startBroker(broker.process.directory)
    }
    const measured = await measure(broker, options, sent)
    passes += measured.passes
    runs.push(measured.figures)
  }
  if (options.verify === 'after') {
    // Not timed: the passes that were have looked at checksums, offsets, sizes and sequences.
    await readAll(broker.address, { ...options, verify: 'inline', readers: 1 }, sent)
  }
  await broker.stop()
  const total = sent.reduce((sum, count) => sum + count, 0)
  return {
    runs,
    verified:
      options.verify === 'inline'
        ? `Each of the ${passes} passes over ${total} records, warm-up included, compared every byte as it came: none missing, none twice, offsets without a gap, in order.`
        : `Each of the ${passes} passes over ${total} records checked checksums, sizes, sequences and offsets; every byte was compared in one more pass that was not timed.`,
  }
}

/** @returns how many records each producer has written */
async function fill(address: string, options: ConsumeOptions): Promise<readonly number[]> {
  const nowMs = monotonicMs()
  const { sent } = await produceLoad({
    address,
    topic: TOPIC,
    values: toValueOptions(options),
    firstProducer: 0,
    producers: 1,
    api: 'post',
    acks: 'durable',
    codec: options.codec,
    batchBytes: options.batch,
    lingerMs: undefined,
    bufferBytes: undefined,
    recordsPerSecond: undefined,
    turnBytes: 64 * 1024,
    maxRecords: Math.ceil(options.size / options.payload),
    startAtMs: nowMs,
    measureFromMs: nowMs,
    measureUntilMs: Infinity,
  })
  return sent
}

async function measure(
  broker: BenchBroker,
  options: ConsumeOptions,
  sent: readonly number[],
): Promise<{ figures: RunFigures; passes: number }> {
  let passes = 0
  const warmUntilMs = monotonicMs() + options.warmup
  while (!options.cold && monotonicMs() < warmUntilMs) {
    passes += await readAll(broker.address, options, sent)
  }
  const startMs = monotonicMs()
  // How long the passes take is known at their end, and so is when to look for the second time.
  const watch = new UsageWatch(broker.process, [process.pid], startMs)
  let timedPasses = 0
  do timedPasses += await readAll(broker.address, options, sent)
  while (monotonicMs() < startMs + options.duration && !options.cold)
  const ms = monotonicMs() - startMs
  watch.end()
  const records = sent.reduce((sum, count) => sum + count, 0) * timedPasses
  return {
    passes: passes + timedPasses,
    figures: {
      ...throughputFigures(records, ms, options.payload),
      passes: timedPasses,
      ...(await watch.figures()),
    },
  }
}

/** All readers read everything, each on a connection of its own. @returns how many did */
async function readAll(
  address: string,
  options: ConsumeOptions,
  sent: readonly number[],
): Promise<number> {
  const values = new Values(toValueOptions(options))
  const total = sent.reduce((sum, count) => sum + count, 0)
  await Promise.all(
    Array.from({ length: options.readers }, async () => {
      const client = await connect({ url: address, clientId: 'bench-read' })
      try {
        const verifier = new Verifier(values, { checksBytes: options.verify === 'inline' })
        await readOnce(client, options, verifier)
        if (verifier.records !== total) {
          throw new VerificationError(`${total} records are there, ${verifier.records} were read`)
        }
        verifier.finish(sent)
      } finally {
        await client.close()
      }
    }),
  )
  return options.readers
}

async function readOnce(
  client: Client,
  options: ConsumeOptions,
  verifier: Verifier,
): Promise<void> {
  const stream = client.read(topic(TOPIC, { value: bytes }), {
    from: 'start',
    until: 'end',
    prefetchBytes: options.prefetch,
  })
  if (options.mode === 'records') {
    for await (const { partition, offset, value } of stream) {
      verifier.takeValue(partition, offset, value)
    }
  } else {
    for await (const batch of stream.batches()) takeBatch(verifier, batch, options.mode)
  }
}

function toValueOptions(options: ConsumeOptions): ConstructorParameters<typeof Values>[0] {
  const { seed, payload, content } = options
  return { seed, payloadBytes: payload, isStamped: false, content }
}
