import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { bytes, type Client, connect, topic } from '../src/client/index.ts'
import { systemClock } from '../src/common/clock.ts'
import { systemRandom } from '../src/common/random.ts'
import { MIB } from '../src/common/units.ts'
import { BatchBuilder } from '../src/record/batch-builder.ts'
import { Broker } from '../src/server/broker.ts'
import { parseConfig } from '../src/server/config.ts'
import { silentLogger } from '../src/server/logger.ts'
import { BrokerProcess, type BrokerStart } from './broker-process.ts'
import type { Cleanup } from './cleanup.ts'
import { BenchEnvironment, COMMON_OPTIONS } from './environment.ts'
import { findMachineFacts } from './machine.ts'
import { type Options, type OptionSpecs, parseOptions } from './options.ts'
import { mediansOf, type Report, type RunFigures } from './report.ts'
import { SparseFileSystem } from './sparse-file-system.ts'
import { findReadBytes, findUsage } from './usage.ts'
import { VerificationError } from './verifier.ts'

const SPECS = {
  partitions: { kind: 'count', default: '1000', least: 1, about: 'of one topic' },
  apparent: {
    kind: 'bytes',
    default: '100GiB',
    least: MIB,
    about: 'data of all partitions together, in sparse files',
  },
  segment: { kind: 'bytes', default: '32MiB', least: MIB, about: 'size of a segment' },
  batch: {
    kind: 'bytes',
    default: '1MiB',
    least: 128 * 1024,
    about: 'size of a batch: a start looks at the last one of each partition',
  },
  dirty: {
    kind: 'bytes',
    default: '96MiB',
    about: 'real data that no checkpoint knows of when the broker is killed',
  },
  cold: { kind: 'flag', about: 'drop the page cache before each start (needs root)' },
  ...COMMON_OPTIONS,
} as const satisfies OptionSpecs

export const START_OPTIONS: OptionSpecs = SPECS

type StartOptions = Options<typeof SPECS>

const TOPIC = 'archive'
const DIRTY_VALUE_BYTES = 16 * 1024
/** Partitions that are filled, or asked about, at the same time. */
const AT_ONCE = 64

/** Starts a broker on many partitions with much data: after a clean stop, and after kill -9 in the middle of work. */
export async function startBench(argv: readonly string[], cleanup: Cleanup): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const directory = join(environment.folder, 'data')
  console.error(`making ${options.partitions} partitions …`)
  const perPartition = await makeFolder(directory, options)
  const ends: number[] = Array.from({ length: options.partitions }, () => perPartition)
  const runs: RunFigures[] = []
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    // A long checkpoint interval, so that what is killed is as far from its checkpoint as it can be.
    const clean = await start(directory, options, cleanup, ['--checkpoint-interval', '1h'])
    await checkEnds(clean.broker.address, ends)
    await dirty(clean.broker.address, options, ends)
    await clean.broker.kill('SIGKILL')
    const unclean = await start(directory, options, cleanup, [])
    await checkEnds(unclean.broker.address, ends)
    if (!clean.report.clean || unclean.report.clean) {
      throw new VerificationError('a clean start was unclean, or the other way round')
    }
    await unclean.broker.stop()
    runs.push({
      ...figuresOf('clean', clean),
      ...figuresOf('unclean', unclean),
    })
  }
  return {
    command: 'start',
    options,
    machine,
    runs,
    medians: mediansOf(runs),
    verified: `After each start all ${options.partitions} partitions ended where the last acknowledgement had said. Ready: from the birth of the process until it says so; recovery and scanned: the broker's own report. Read: all that the process has read until then, its program included.`,
  }
}

interface Started {
  readonly broker: BrokerProcess
  readonly report: BrokerStart
  readonly peakRssBytes: number | undefined
  readonly readBytes: number | undefined
}

async function start(
  directory: string,
  options: StartOptions,
  cleanup: Cleanup,
  flags: readonly string[],
): Promise<Started> {
  // 3: pages, and what is known of names and folders.
  if (options.cold) writeFileSync('/proc/sys/vm/drop_caches', '3')
  const more = (options.brokerFlags ?? '').split(' ').filter((word) => word !== '')
  const broker = await BrokerProcess.start({ directory, flags: [...flags, ...more] })
  cleanup.add(() => broker.kill().then(() => undefined))
  if (broker.start === undefined)
    throw new Error(`the broker did not report its start: ${broker.log}`)
  return {
    broker,
    report: broker.start,
    peakRssBytes: findUsage(broker.pid)?.peakRssBytes,
    readBytes: findReadBytes(broker.pid),
  }
}

function figuresOf(name: string, { broker, report, peakRssBytes, readBytes }: Started): RunFigures {
  return {
    [`${name}ReadyMs`]: broker.readyMs,
    [`${name}RecoveryMs`]: report.elapsedMs,
    [`${name}ScannedBytes`]: report.scannedBytes,
    [`${name}ReadBytes`]: readBytes,
    [`${name}PeakRssBytes`]: peakRssBytes,
  }
}

/** Has a broker in this process write the folder, through a file system that leaves holes. Resolves to the records of each partition. */
async function makeFolder(directory: string, options: StartOptions): Promise<number> {
  const { config } = parseConfig({
    flags: {
      data: directory,
      listen: '127.0.0.1:0',
      cacheBytes: '0',
      checkpointBytes: '16GiB',
      checkpointIntervalMs: '1h',
    },
  })
  const broker = await Broker.start({
    config,
    fs: new SparseFileSystem(),
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  })
  try {
    await broker.topics.create({
      name: TOPIC,
      partitions: options.partitions,
      config: {
        'segment.bytes': String(options.segment),
        'max.message.bytes': String(8 * MIB),
        'retention.ms': '-1',
      },
    })
    const batchBytes = Math.min(options.batch, options.segment / 2)
    const batch = makeZeroBatch(batchBytes)
    const rounds = Math.max(1, Math.round(options.apparent / options.partitions / batch.length))
    for (let round = 0; round < rounds; round++) {
      // The same memory for all: each is stamped with the same offset and epoch, and nobody keeps it, for there is no cache.
      await forAll(options.partitions, async (index) => {
        await broker.topics.getPartition(TOPIC, index).append(batch, 'durable')
      })
    }
    return rounds
  } finally {
    await broker.stop()
  }
}

/** One record whose value is zeros, so that everything behind the headers is. */
function makeZeroBatch(batchBytes: number): Uint8Array {
  const builder = new BatchBuilder({ maxBytes: batchBytes + 1024, initialBytes: batchBytes + 1024 })
  builder.tryAppend(undefined, new Uint8Array(batchBytes), Date.now())
  return builder.finish()
}

/** Writes to every partition, acknowledged, and notes where each then ends. */
async function dirty(address: string, options: StartOptions, ends: number[]): Promise<void> {
  const client = await connect({ url: address, clientId: 'bench' })
  try {
    const producer = client.producer({ batchBytes: 64 * 1024 })
    const to = topic(TOPIC, { value: bytes })
    const value = new Uint8Array(DIRTY_VALUE_BYTES).fill(1)
    for (let written = 0, partition = 0; written < options.dirty; written += value.length) {
      if (!producer.post(to, { value, partition })) await producer.ready()
      ends[partition] = (ends[partition] ?? 0) + 1
      partition = (partition + 1) % options.partitions
    }
    await producer.flush()
  } finally {
    await client.close()
  }
}

async function checkEnds(address: string, ends: readonly number[]): Promise<void> {
  const client: Client = await connect({ url: address, clientId: 'bench' })
  try {
    const found = await client.admin.offsets(TOPIC, 'end')
    for (const [partition, end] of ends.entries()) {
      if (found.get(partition) !== end) {
        throw new VerificationError(
          `partition ${partition} ends at ${found.get(partition)}, the last acknowledgement said ${end}`,
        )
      }
    }
  } finally {
    await client.close()
  }
}

async function forAll(count: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0
  const lane = async (): Promise<void> => {
    while (next < count) await work(next++)
  }
  await Promise.all(Array.from({ length: AT_ONCE }, lane))
}
