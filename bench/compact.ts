import { readFileSync } from 'node:fs'
import { setImmediate as nextTurn, setTimeout as delay } from 'node:timers/promises'
import { type Client, bytes, connect, type Producer, text, topic } from '../src/client/index.ts'
import type { BrokerProcess } from './broker-process.ts'
import type { Cleanup } from './cleanup.ts'
import { BenchEnvironment, COMMON_OPTIONS, createTopic } from './environment.ts'
import { findMachineFacts } from './machine.ts'
import { UsageWatch } from './measurement.ts'
import { type Options, type OptionSpecs, parseOptions } from './options.ts'
import { mediansOf, type Report, type RunFigures } from './report.ts'
import { monotonicMs, Values } from './values.ts'

const SPECS = {
  size: { kind: 'bytes', default: '1GiB', least: 1, about: 'values in each topic to compact' },
  live: { kind: 'count', default: '10', least: 1, about: 'percent of the records that stay' },
  payload: { kind: 'bytes', default: '1024', least: 16, about: 'size of a value' },
  batch: { kind: 'bytes', default: '256KiB', least: 1024, about: "the producers' batchBytes" },
  rounds: {
    kind: 'count',
    default: '3',
    least: 1,
    about: 'topics compacted one after the other, with a time of producing alone before each',
  },
  window: { kind: 'duration', default: '15s', least: 1, about: 'producing alone before a round' },
  patience: { kind: 'duration', default: '10m', about: 'the longest that a round may take' },
  ...COMMON_OPTIONS,
  runs: { ...COMMON_OPTIONS.runs, default: '1' },
} as const satisfies OptionSpecs

export const COMPACT_OPTIONS: OptionSpecs = SPECS

type CompactOptions = Options<typeof SPECS>

const OTHER = 'bench'
const TICK_MS = 50
/** Records between two looks at the answers. */
const TURN_BYTES = 64 * 1024

/** What is produced to one topic while others are compacted, and what that takes of the broker's memory. */
export async function compactBench(argv: readonly string[], cleanup: Cleanup): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const runs: RunFigures[] = []
  let checked = 0
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    const result = await measure(environment, options)
    runs.push(result.figures)
    checked += result.checkedKeys
  }
  return {
    command: 'compact',
    options,
    machine,
    runs,
    medians: mediansOf(runs),
    verified:
      `After compaction ${checked} keys were read back: of each the newest record is there, byte by byte, and no other, at the offset of its append, in order. ` +
      'Everything that was produced meanwhile has been acknowledged as durable.',
  }
}

async function measure(
  environment: BenchEnvironment,
  options: CompactOptions,
): Promise<{ figures: RunFigures; checkedKeys: number }> {
  const broker = await environment.startBroker()
  const client = await connect({ url: broker.address, clientId: 'bench-compact' })
  const names = Array.from({ length: options.rounds }, (_, i) => `compacted-${i}`)
  try {
    await createTopic(broker.address, OTHER, 1, options.batch)
    for (const name of names) {
      console.error(`  filling ${name} …`)
      await createTopic(broker.address, name, 1, options.batch)
      await fillTopic(client, name, options)
    }
    const load = new OtherLoad(client, options)
    const memory = new MemoryWatch(broker.process.pid)
    const rounds: Round[] = []
    load.start()
    memory.start()
    const watch = new UsageWatch(broker.process, [process.pid], monotonicMs())
    await delay(options.window) // Warm-up.
    for (const name of names) {
      console.error(`  compacting ${name} …`)
      rounds.push(await runRound(client, broker.process, name, load, memory, options))
    }
    watch.end()
    memory.stop()
    const usage = await watch.figures()
    await load.finish()
    let checkedKeys = 0
    for (const name of names) checkedKeys += await checkTopic(client, name, options)
    return { figures: { ...figuresOf(rounds, options), ...usage }, checkedKeys }
  } finally {
    await client.close()
    await broker.stop()
    environment.remove(broker.process.directory)
  }
}

interface Round {
  readonly before: number
  readonly during: number
  readonly after: number
  readonly compactionMs: number
  readonly rssBytes: number
  readonly bytesBefore: number
  readonly bytesAfter: number
}

async function runRound(
  client: Client,
  broker: BrokerProcess,
  name: string,
  load: OtherLoad,
  memory: MemoryWatch,
  options: CompactOptions,
): Promise<Round> {
  const bytesBefore = await sizeOf(client, name)
  const fromMs = Date.now()
  await delay(options.window)
  const untilMs = Date.now()
  const rssBefore = memory.peakBetween(fromMs, untilMs)
  // The active segment is rolled by the cleaner, since all of it is new.
  await client.admin.alterTopic(name, { set: { 'cleanup.policy': 'compact' } })
  const { endMs, elapsedMs } = await waitForRound(broker, name, options.patience)
  await client.admin.alterTopic(name, { set: { 'min.cleanable.dirty.ratio': '1' } })
  await delay(options.window)
  const startMs = endMs - elapsedMs
  return {
    before: load.rate(fromMs, untilMs),
    during: load.rate(startMs, endMs),
    after: load.rate(endMs, endMs + options.window),
    compactionMs: elapsedMs,
    rssBytes: memory.peakBetween(startMs, endMs) - rssBefore,
    bytesBefore,
    bytesAfter: await sizeOf(client, name),
  }
}

function figuresOf(rounds: readonly Round[], options: CompactOptions): RunFigures {
  const mean = (pick: (round: Round) => number): number =>
    rounds.reduce((sum, round) => sum + pick(round), 0) / rounds.length
  const alone = mean(({ before, after }) => (before + after) / 2)
  const during = mean((round) => round.during)
  const worst = Math.min(
    ...rounds.map((round) => (2 * round.during) / (round.before + round.after)),
  )
  return {
    mbPerSecondAlone: (alone * options.payload) / 1e6,
    mbPerSecondWhileCompacting: (during * options.payload) / 1e6,
    percentKept: (during / alone) * 100,
    percentKeptInWorstRound: worst * 100,
    compactionSeconds: mean(({ compactionMs }) => compactionMs) / 1000,
    extraRssBytes: Math.max(...rounds.map(({ rssBytes }) => rssBytes)),
    topicBeforeBytes: mean(({ bytesBefore }) => bytesBefore),
    topicAfterBytes: mean(({ bytesAfter }) => bytesAfter),
  }
}

async function sizeOf(client: Client, name: string): Promise<number> {
  const { partitions } = await client.admin.describeTopic(name)
  return partitions.reduce((sum, { bytes: size }) => sum + (size ?? 0), 0)
}

// ── the topic that is compacted ────────────────────────────────────────────────────────────────

function countRecords(options: CompactOptions): { records: number; keys: number } {
  const records = Math.max(1, Math.floor(options.size / options.payload))
  return { records, keys: Math.max(1, Math.floor((records * options.live) / 100)) }
}

/** Keys in an order that has nothing to do with their numbers, each about as often as the others. */
function keyOf(sequence: number, keys: number): number {
  return (Math.imul(sequence + 1, 0x9e3779b1) >>> 0) % keys
}

async function fillTopic(client: Client, name: string, options: CompactOptions): Promise<void> {
  const { records, keys } = countRecords(options)
  const values = valuesOf(options)
  const to = topic(name, { key: text, value: bytes })
  const producer = client.producer({ batchBytes: options.batch })
  for (let sequence = 0; sequence < records; sequence++) {
    const key = `key-${keyOf(sequence, keys)}`
    if (!producer.post(to, { key, value: values.make(0, sequence) })) await producer.ready()
    if (sequence % 256 === 255) await nextTurn()
  }
  await producer.close()
}

function valuesOf(options: CompactOptions): Values {
  const { seed, payload } = options
  return new Values({ seed, payloadBytes: payload, isStamped: false, content: 'random' })
}

/** How many keys were found, each with its newest record. @throws Error at the first that is wrong */
async function checkTopic(client: Client, name: string, options: CompactOptions): Promise<number> {
  const { records, keys } = countRecords(options)
  const newest = new Map<string, number>()
  for (let sequence = 0; sequence < records; sequence++) {
    newest.set(`key-${keyOf(sequence, keys)}`, sequence)
  }
  const values = valuesOf(options)
  let last = -1
  let found = 0
  const from = topic(name, { key: text, value: bytes })
  for await (const record of client.read(from, { from: 'earliest', until: 'end' })) {
    const { key = '', value, offset } = record
    const fail = (what: string): never => {
      throw new Error(`${name}: the record at offset ${offset} with ${key} ${what}`)
    }
    if (offset <= last) fail(`comes after offset ${last}`)
    // One producer, one partition: the offset is the sequence.
    if (newest.get(key) !== offset) fail(`is not its key's newest, ${newest.get(key)}`)
    if (value === null || !values.make(0, offset).equals(value)) fail('is not what was written')
    last = offset
    found++
  }
  if (found !== newest.size) throw new Error(`${name}: ${found} keys of ${newest.size} were found`)
  return found
}

/** Waits until the broker says that it has compacted the topic. */
async function waitForRound(
  broker: BrokerProcess,
  name: string,
  patienceMs: number,
): Promise<{ endMs: number; elapsedMs: number }> {
  for (let waitedMs = 0; waitedMs < patienceMs; waitedMs += TICK_MS) {
    for (const line of broker.log.split('\n')) {
      if (!line.includes('"partition compacted"') || !line.includes(`"${name}"`)) continue
      const { time, elapsedMs } = JSON.parse(line) as { time: string; elapsedMs: number } // The broker's own line.
      return { endMs: Date.parse(time), elapsedMs }
    }
    if (broker.hasEnded) throw new Error(`the broker has ended: ${broker.log}`)
    await delay(TICK_MS)
  }
  throw new Error(`${name} was not compacted within ${patienceMs} ms: ${broker.log}`)
}

// ── what goes on meanwhile ─────────────────────────────────────────────────────────────────────

/** Produces to another topic as fast as it goes, durably, and remembers how many records were acknowledged when. */
class OtherLoad {
  readonly #producer: Producer
  readonly #options: CompactOptions
  readonly #acked: { readonly atMs: number; readonly count: number }[] = []
  #count = 0
  #isStopped = false
  #running: Promise<void> | undefined
  #failure: unknown

  constructor(client: Client, options: CompactOptions) {
    this.#options = options
    this.#producer = client.producer({ batchBytes: options.batch })
  }

  start(): void {
    this.#running = this.#run()
    this.#running.catch((error: unknown) => {
      this.#failure = error
    })
  }

  async #run(): Promise<void> {
    const values = valuesOf(this.#options)
    const to = topic(OTHER, { value: bytes })
    const perTurn = Math.max(1, Math.floor(TURN_BYTES / this.#options.payload))
    const onAck = (): void => {
      this.#count++
    }
    const onFailure = (error: unknown): void => {
      this.#failure ??= error
    }
    let notedMs = 0
    for (let sequence = 0; !this.#isStopped;) {
      if (this.#failure !== undefined) throw this.#failure
      for (let i = 0; i < perTurn; i++) {
        const value = values.make(1, sequence++)
        this.#producer.send(to, { value }).then(onAck, onFailure)
      }
      await this.#producer.ready()
      await nextTurn()
      const nowMs = Date.now()
      if (nowMs - notedMs < TICK_MS) continue
      notedMs = nowMs
      this.#acked.push({ atMs: nowMs, count: this.#count })
    }
  }

  async finish(): Promise<void> {
    this.#isStopped = true
    await this.#running
    await this.#producer.close()
    if (this.#failure !== undefined) throw this.#failure
  }

  /** Records acknowledged a second. */
  rate(fromMs: number, untilMs: number): number {
    const inside = this.#acked.filter(({ atMs }) => atMs >= fromMs && atMs <= untilMs)
    const [first, last] = [inside[0], inside.at(-1)]
    if (first === undefined || last === undefined || last.atMs === first.atMs) return Number.NaN
    return ((last.count - first.count) / (last.atMs - first.atMs)) * 1000
  }
}

/** The broker's resident memory over time. */
class MemoryWatch {
  readonly #pid: number
  readonly #seen: { readonly atMs: number; readonly bytes: number }[] = []
  #timer: NodeJS.Timeout | undefined

  constructor(pid: number) {
    this.#pid = pid
  }

  start(): void {
    this.#timer = setInterval(() => {
      const text = readFileSync(`/proc/${this.#pid}/status`, 'utf8')
      const kib = Number(/^VmRSS:\s+(\d+) kB$/m.exec(text)?.[1])
      this.#seen.push({ atMs: Date.now(), bytes: kib * 1024 })
    }, TICK_MS)
  }

  stop(): void {
    clearInterval(this.#timer)
  }

  peakBetween(fromMs: number, untilMs: number): number {
    const inside = this.#seen.filter(({ atMs }) => atMs >= fromMs && atMs <= untilMs)
    return Math.max(...inside.map(({ bytes: size }) => size))
  }
}
