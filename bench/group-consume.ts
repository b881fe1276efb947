import { type Batch, bytes, type Client, connect, topic } from '../src/client/index.ts'
import type { Cleanup } from './cleanup.ts'
import { BenchEnvironment, type BenchBroker, COMMON_OPTIONS, createTopic } from './environment.ts'
import { findMachineFacts } from './machine.ts'
import { UsageWatch } from './measurement.ts'
import { type Options, type OptionSpecs, parseOptions } from './options.ts'
import { produceLoad } from './produce-load.ts'
import { mediansOf, type Report, type RunFigures } from './report.ts'
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
  verify: {
    kind: 'choice',
    default: 'inline',
    choices: ['inline', 'after'],
    about: 'compare every byte in the measured passes, or in one after them',
  },
  commit: {
    kind: 'choice',
    default: 'after-each',
    choices: ['after-each', 'interval'],
    about: "the consumer's commits",
  },
  concurrency: {
    kind: 'count',
    default: '100',
    about: 'handlers at once of a pass by `run`, record by record; 0: no such pass',
  },
  prefetch: { kind: 'bytes', default: '8MiB', least: 1024, about: 'prefetchBytes of both' },
  duration: {
    kind: 'duration',
    default: '10s',
    least: 1,
    about: 'a run goes on until plain reader and group have both read for so long',
  },
  ...COMMON_OPTIONS,
} as const satisfies OptionSpecs

export const GROUP_CONSUME_OPTIONS: OptionSpecs = SPECS

type GroupConsumeOptions = Options<typeof SPECS>

const TOPIC = 'bench'

/** Whoever reads all that is there. */
type Way = 'reader' | 'group' | 'run'

/** Reads what is there as a plain reader and as the one member of a group, in turns, and compares. */
export async function groupConsumeBench(
  argv: readonly string[],
  cleanup: Cleanup,
): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const broker = await environment.startBroker()
  await createTopic(broker.address, TOPIC, options.partitions, options.batch)
  console.error('writing what is to be read …')
  const reading = new Reading(broker, options, await fill(broker.address, options))
  const runs: RunFigures[] = []
  // Nothing is compiled and no page is cached before the first pass.
  await reading.pass('reader')
  await reading.pass('group')
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    runs.push(await measure(broker, reading, options))
  }
  if (options.verify === 'after') {
    reading.checksBytes = true
    await reading.pass('reader')
    await reading.pass('group')
  }
  await broker.stop()
  return {
    command: 'group-consume',
    options,
    machine,
    runs,
    medians: mediansOf(runs),
    verified:
      `Each of the ${reading.passes} passes over ${reading.total} records got all of them, none twice, offsets without a gap, in order, ` +
      `${options.verify === 'inline' ? 'every byte compared as it came' : 'checksums and sequences compared, every byte in passes that were not timed'}. After each pass of a group the ` +
      'committed offsets were the ends. Rates are from the first batch to the last; to begin: from the call to the first batch.',
  }
}

async function measure(
  broker: BenchBroker,
  reading: Reading,
  options: GroupConsumeOptions,
): Promise<RunFigures> {
  const watch = new UsageWatch(broker.process, [process.pid], monotonicMs())
  const reader = new Sum()
  const group = new Sum()
  // In turns, and each first as often as second: what comes later finds a warmer machine, or a larger heap.
  for (let turn = 0; Math.min(reader.ms, group.ms) < options.duration; turn++) {
    const first: Way = turn % 2 === 0 ? 'reader' : 'group'
    for (const way of [first, first === 'reader' ? 'group' : 'reader'] as const) {
      const pass = await reading.pass(way)
      if (way === 'reader') reader.add(pass)
      else group.add(pass)
    }
  }
  watch.end()
  const usage = await watch.figures()
  const run = new Sum()
  if (options.concurrency > 0) run.add(await reading.pass('run'))
  return {
    readerRecordsPerSecond: reader.recordsPerSecond,
    groupRecordsPerSecond: group.recordsPerSecond,
    mbPerSecond: (group.recordsPerSecond * options.payload) / 1e6,
    groupShareOfReaderPercent: (group.recordsPerSecond / reader.recordsPerSecond) * 100,
    readerCpuNsPerRecord: reader.cpuNsPerRecord,
    groupCpuNsPerRecord: group.cpuNsPerRecord,
    readerToBeginMs: reader.meanBeginMs,
    groupToBeginMs: group.meanBeginMs,
    runRecordsPerSecond: options.concurrency > 0 ? run.recordsPerSecond : undefined,
    passesOfEach: reader.passes,
    ...usage,
  }
}

interface Pass {
  readonly records: number
  /** From the call until the first batch. */
  readonly beginMs: number
  /** From the first batch until the last. */
  readonly ms: number
  /** Of this process in that time, user and system, all threads. */
  readonly cpuMs: number
}

/** Passes of one way, added up. */
class Sum {
  records = 0
  ms = 0
  passes = 0
  #beginMs = 0
  #cpuMs = 0

  add(pass: Pass): void {
    this.records += pass.records
    this.ms += pass.ms
    this.#beginMs += pass.beginMs
    this.#cpuMs += pass.cpuMs
    this.passes++
  }

  get recordsPerSecond(): number {
    return (this.records / this.ms) * 1000
  }

  get meanBeginMs(): number {
    return this.#beginMs / this.passes
  }

  get cpuNsPerRecord(): number {
    return (this.#cpuMs / this.records) * 1e6
  }
}

/** Passes over the whole topic, each checked. */
class Reading {
  readonly total: number
  checksBytes: boolean
  passes = 0
  readonly #address: string
  readonly #options: GroupConsumeOptions
  readonly #sent: readonly number[]
  readonly #values: Values

  constructor(broker: BenchBroker, options: GroupConsumeOptions, sent: readonly number[]) {
    this.#address = broker.address
    this.#options = options
    this.#sent = sent
    this.total = sent.reduce((sum, count) => sum + count, 0)
    this.checksBytes = options.verify === 'inline'
    this.#values = new Values(toValueOptions(options))
  }

  /** @throws VerificationError unless everything came, as it was written */
  async pass(way: Way): Promise<Pass> {
    const client = await connect({ url: this.#address, clientId: `bench-${way}` })
    try {
      const verifier = new Verifier(this.#values, { checksBytes: this.checksBytes })
      const stop = new StopWatch()
      const group = `bench-${this.passes}`
      if (way === 'reader') await this.#read(client, verifier, stop)
      else if (way === 'group') await this.#consume(client, group, verifier, stop)
      else await this.#run(client, group, verifier, stop)
      const pass = stop.toPass(this.total)
      verifier.finish(this.#sent)
      if (way !== 'reader') await this.#checkCommitted(client, group)
      this.passes++
      return pass
    } finally {
      await client.close()
    }
  }

  async #read(client: Client, verifier: Verifier, stop: StopWatch): Promise<void> {
    const stream = client.read(topic(TOPIC, { value: bytes }), {
      from: 'start',
      until: 'end',
      prefetchBytes: this.#options.prefetch,
    })
    await takeAll(stream.batches(), verifier, stop)
  }

  async #consume(
    client: Client,
    group: string,
    verifier: Verifier,
    stop: StopWatch,
  ): Promise<void> {
    const { prefetch, commit } = this.#options
    const consumer = client.consumer(topic(TOPIC, { value: bytes }), {
      group,
      follow: false,
      prefetchBytes: prefetch,
      commit,
    })
    await takeAll(consumer.batches(), verifier, stop)
    await consumer.close()
  }

  async #run(client: Client, group: string, verifier: Verifier, stop: StopWatch): Promise<void> {
    const { prefetch, commit, concurrency } = this.#options
    const consumer = client.consumer(topic(TOPIC, { value: bytes }), {
      group,
      follow: false,
      prefetchBytes: prefetch,
      commit,
    })
    await consumer.run(
      ({ partition, offset, value }) => {
        if (verifier.records === 0) stop.first(1)
        verifier.takeValue(partition, offset, value)
        if (verifier.records === this.total) stop.last()
      },
      { concurrency },
    )
    await consumer.close()
  }

  async #checkCommitted(client: Client, group: string): Promise<void> {
    const ends = await client.admin.offsets(TOPIC, 'end')
    const committed = new Map<number, number>()
    for (const { partition, offset } of await client.admin.groupOffsets(group)) {
      committed.set(partition, offset)
    }
    for (const [partition, end] of ends) {
      if (end === 0 || committed.get(partition) === end) continue
      throw new VerificationError(
        `group ${group} has committed ${committed.get(partition)} in partition ${partition}, which ends at ${end}`,
      )
    }
  }
}

async function takeAll(
  batches: AsyncIterable<Batch<Uint8Array>>,
  verifier: Verifier,
  stop: StopWatch,
): Promise<void> {
  for await (const batch of batches) {
    if (verifier.records === 0) stop.first(batch.count)
    verifier.take(batch)
    stop.last()
  }
}

/** The first batch has come before the clock starts, so its records do not count. */
class StopWatch {
  readonly #calledMs: number = monotonicMs()
  #firstMs = 0
  #lastMs = 0
  #firstRecords = 0
  #firstCpuMs = 0

  first(records: number): void {
    this.#firstMs = monotonicMs()
    this.#firstCpuMs = cpuMs()
    this.#firstRecords = records
  }

  last(): void {
    this.#lastMs = monotonicMs()
  }

  toPass(total: number): Pass {
    return {
      records: total - this.#firstRecords,
      beginMs: this.#firstMs - this.#calledMs,
      ms: this.#lastMs - this.#firstMs,
      cpuMs: cpuMs() - this.#firstCpuMs,
    }
  }
}

function cpuMs(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

/** @returns how many records each producer has written */
async function fill(address: string, options: GroupConsumeOptions): Promise<readonly number[]> {
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

function toValueOptions(options: GroupConsumeOptions): ConstructorParameters<typeof Values>[0] {
  const { seed, payload, content } = options
  return { seed, payloadBytes: payload, isStamped: false, content }
}
