import { setTimeout as delay } from 'node:timers/promises'
import { bytes, type Client, connect, topic } from '../src/client/index.ts'
import type { Cleanup } from './cleanup.ts'
import type { CommitBounds, CommitLoadResult } from './commit-load.ts'
import { BenchEnvironment, type BenchBroker, COMMON_OPTIONS } from './environment.ts'
import { partOf } from './group-settling.ts'
import { Histogram } from './histogram.ts'
import { findMachineFacts } from './machine.ts'
import { UsageWatch } from './measurement.ts'
import type { MemberProcess } from './member-processes.ts'
import { type Options, type OptionSpecs, parseOptions, UsageError } from './options.ts'
import { latencyFigures, mediansOf, type Report, type RunFigures } from './report.ts'
import { monotonicMs } from './values.ts'
import { VerificationError } from './verifier.ts'

const SPECS = {
  members: { kind: 'count', default: '100', least: 1, about: 'that commit, each in a loop' },
  partitions: {
    kind: 'count',
    default: '100',
    least: 1,
    about: 'of the topic; each commit names all that its member has',
  },
  processes: { kind: 'count', default: '1', least: 1, about: 'that members run in' },
  inFlight: {
    kind: 'count',
    default: '4',
    least: 1,
    about: 'commits of a member that wait for their answers',
  },
  records: {
    kind: 'count',
    default: '20000',
    least: 1,
    about: 'in each partition: each commit is one further',
  },
  duration: { kind: 'duration', default: '10s', least: 1, about: 'measured time of the load' },
  warmup: { kind: 'duration', default: '2s', about: 'before it' },
  idle: { kind: 'duration', default: '5s', least: 1, about: 'measured time of the idle part' },
  interval: {
    kind: 'duration',
    default: '20ms',
    least: 1,
    about: 'idle: from one commit to the next, of one member',
  },
  ...COMMON_OPTIONS,
} as const satisfies OptionSpecs

export const COMMITS_OPTIONS: OptionSpecs = SPECS

type CommitsOptions = Options<typeof SPECS>

const TOPIC = 'bench'
const GROUP = 'bench'
const IDLE_GROUP = 'bench-idle'
const SESSION_TIMEOUT_MS = 45_000
/** How long the load goes on after the measured time, to be cut off by the broker's death. */
const KILL_AFTER_MS = 200
const LEAD_MS = 200
const POLL_MS = 20
const PATIENCE_MS = 30_000

/** Durable commits a second of many members, and the latency of a lone one. The broker is killed at the height of it, and must know all that it has answered. */
export async function commitsBench(argv: readonly string[], cleanup: Cleanup): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  if (options.partitions < options.members) {
    throw new UsageError('--partitions: one for each of the --members at least')
  }
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const runs: RunFigures[] = []
  let checked = 0
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    const measured = await measure(environment, options)
    runs.push(measured.figures)
    checked += measured.answered
  }
  return {
    command: 'commits',
    options,
    machine,
    runs,
    medians: mediansOf(runs),
    verified:
      `Every commit is durable when it is answered. The broker was killed (SIGKILL) with ${options.members * options.inFlight} commits under way and again after the idle part; after each restart ` +
      `every partition had an offset that was answered last or sent after it (${checked} answered commits in all). ` +
      'Under load a commit waits behind the others of its member: a closed loop measures its own depth.',
  }
}

async function measure(
  environment: BenchEnvironment,
  options: CommitsOptions,
): Promise<{ readonly figures: RunFigures; readonly answered: number }> {
  let broker = await environment.startBroker()
  await fill(broker.address, options)
  const load = await commitUntilKilled(environment, broker, options)
  broker = await restart(environment, broker)
  await check(broker.address, GROUP, load.bounds)
  const idle = await commitAlone(environment, broker, options)
  await broker.process.kill()
  broker = await restart(environment, broker)
  await check(broker.address, IDLE_GROUP, idle.bounds)
  await check(broker.address, GROUP, load.bounds)
  await broker.stop()
  environment.remove(broker.process.directory)
  return {
    answered: [...load.bounds, ...idle.bounds].reduce((sum, { answered }) => sum + answered, 0),
    figures: {
      commitsPerSecond: (load.measured / options.duration) * 1000,
      ...latencyFigures('busy', load.latency),
      ...load.usage,
      brokerCpuUsPerCommit: perCommit(load.usage['brokerCpuSeconds'], load.measured),
      clientCpuUsPerCommit: perCommit(load.usage['clientCpuSeconds'], load.measured),
      ...latencyFigures('idle', idle.latency),
      loadedAfterKillMs: broker.process.readyMs,
    },
  }
}

/** In microseconds: less at the mercy of what else the machine does than a rate is. */
function perCommit(cpuSeconds: number | undefined, commits: number): number | undefined {
  return cpuSeconds === undefined ? undefined : (cpuSeconds / commits) * 1e6
}

/** The same number of empty records in each partition. */
async function fill(address: string, options: CommitsOptions): Promise<void> {
  const client = await connect({ url: address, clientId: 'bench' })
  try {
    await client.admin.createTopic(TOPIC, { partitions: options.partitions })
    const producer = client.producer({ acks: 'written' })
    const to = topic(TOPIC, { value: bytes })
    const value = new Uint8Array(0)
    for (let partition = 0; partition < options.partitions; partition++) {
      for (let i = 0; i < options.records; i++) {
        if (!producer.post(to, { partition, value })) await producer.ready()
      }
    }
    await producer.close()
    // Offsets may be committed up to what readers can see.
    await reached(async () => {
      const ends = await client.admin.offsets(TOPIC, 'end')
      return [...ends.values()].every((end) => end === options.records)
    }, 'what was written to be readable')
  } finally {
    await client.close()
  }
}

async function commitUntilKilled(
  environment: BenchEnvironment,
  broker: BenchBroker,
  options: CommitsOptions,
): Promise<CommitLoadResult & { readonly usage: RunFigures }> {
  const { members, inFlight, records, duration, warmup } = options
  const processes = Array.from({ length: options.processes }, () =>
    environment.startMemberProcess(),
  )
  try {
    await Promise.all(
      processes.map((process, i) =>
        joinAll(process, broker, GROUP, partOf(members, processes.length, i)),
      ),
    )
    await settled(processes, options.partitions)
    const measureFromMs = monotonicMs() + LEAD_MS + warmup
    const measureUntilMs = measureFromMs + duration
    const pids = processes.map((process) => process.pid)
    const watch = new UsageWatch(broker.process, pids, measureFromMs, measureUntilMs)
    const load = { inFlight, intervalMs: 0, records, measureFromMs, measureUntilMs }
    for (const process of processes) {
      await process.beginCommits({ ...load, stopAtMs: Infinity })
    }
    await delay(measureUntilMs + KILL_AFTER_MS - monotonicMs())
    const usage = await watch.figures()
    await broker.process.kill()
    const results = await Promise.all(processes.map((process) => process.endCommits(true)))
    const latency = new Histogram()
    for (const result of results) latency.add(result.latency)
    return {
      measured: results.reduce((sum, result) => sum + result.measured, 0),
      latency: latency.toCounts(),
      bounds: results.flatMap((result) => result.bounds),
      usage,
    }
  } finally {
    for (const process of processes) process.end()
  }
}

/** One member, one commit at a time, with nothing else going on. */
async function commitAlone(
  environment: BenchEnvironment,
  broker: BenchBroker,
  options: CommitsOptions,
): Promise<CommitLoadResult> {
  const process = environment.startMemberProcess()
  try {
    await joinAll(process, broker, IDLE_GROUP, 1)
    await settled([process], options.partitions)
    const measureFromMs = monotonicMs() + LEAD_MS
    const measureUntilMs = measureFromMs + options.idle
    await process.beginCommits({
      inFlight: 1,
      intervalMs: options.interval,
      records: options.records,
      measureFromMs,
      measureUntilMs,
      stopAtMs: measureUntilMs,
    })
    return await process.endCommits(false)
  } finally {
    process.end()
  }
}

async function joinAll(
  process: MemberProcess,
  broker: BenchBroker,
  group: string,
  count: number,
): Promise<void> {
  await process.open({
    address: broker.address,
    group,
    topics: [TOPIC],
    sessionTimeoutMs: SESSION_TIMEOUT_MS,
  })
  if (count > 0) await process.join(count, 'uniform')
}

/** Every partition has its owner, and nobody has more than others. */
async function settled(processes: readonly MemberProcess[], partitions: number): Promise<void> {
  await reached(async () => {
    const all = (await Promise.all(processes.map((process) => process.progress()))).filter(
      (progress) => progress.members > 0,
    )
    const owned = all.reduce((sum, progress) => sum + progress.owned, 0)
    const most = Math.max(...all.map((progress) => progress.most))
    const fewest = Math.min(...all.map((progress) => progress.fewest))
    return owned === partitions && most - fewest <= 1
  }, 'the group to settle')
}

async function restart(environment: BenchEnvironment, former: BenchBroker): Promise<BenchBroker> {
  await former.stop() // It has ended: only lets go of what belongs to it.
  return environment.startBroker(former.process.directory)
}

/** @throws VerificationError when the group's offsets are not what was answered, or sent after it */
async function check(
  address: string,
  group: string,
  bounds: readonly CommitBounds[],
): Promise<void> {
  const client = await connect({ url: address, clientId: 'bench' })
  try {
    const offsets = await readOffsets(client, group)
    for (const { topic, partition, answered, sent } of bounds) {
      const found = offsets.get(partition) ?? 0
      if (found >= answered && found <= sent) continue
      throw new VerificationError(
        `${topic}-${partition} of group ${group} is at ${found} after the restart: ${answered} was answered, ${sent} sent`,
      )
    }
  } finally {
    await client.close()
  }
}

async function readOffsets(client: Client, group: string): Promise<ReadonlyMap<number, number>> {
  const offsets = await client.admin.groupOffsets(group)
  return new Map(offsets.map(({ partition, offset }) => [partition, offset]))
}

async function reached(isTrue: () => Promise<boolean>, what: string): Promise<void> {
  const untilMs = monotonicMs() + PATIENCE_MS
  while (!(await isTrue())) {
    if (monotonicMs() > untilMs) {
      throw new VerificationError(`waited ${PATIENCE_MS} ms in vain for ${what}`)
    }
    await delay(POLL_MS)
  }
}
