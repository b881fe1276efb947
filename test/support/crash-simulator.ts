import { invariant } from '../../src/common/assert.ts'
import { BrokerError } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { toOffset } from '../../src/common/offset.ts'
import type { Acks } from '../../src/common/acks.ts'
import type { FileSystem } from '../../src/fs/file-system.ts'
import { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import type { DiskStore } from '../../src/log/disk/disk-store.ts'
import type { LogConfig } from '../../src/log/log-config.ts'
import type { PartitionId, PartitionLog } from '../../src/log/partition-log.ts'
import { aBatch, BATCH_TIME_MS, recordsOf } from './batches.ts'
import { aLogConfig, openDiskStore } from './disk-harness.ts'
import { FakeClock } from './fake-clock.ts'

/** What a history did to one partition, with the length of the disk's journal when each answer came. */
interface Sent {
  readonly partition: number
  /** Unique over the history; the values of its records are `${name}.0`, `${name}.1` … */
  readonly name: string
  readonly count: number
  readonly sequence: number | undefined
  readonly acks: Acks
  answeredAt: number
  baseOffset: number
  refused: boolean
}

/** A round of compaction was asked for: from then on records may be gone that a newer one has superseded. */
interface CompactionAsked {
  readonly partition: number
  readonly askedAt: number
}

interface LogStartMove {
  readonly partition: number
  readonly to: number
  readonly askedAt: number
  answeredAt: number
}

interface SeenEnd {
  readonly partition: number
  readonly highWatermark: number
  readonly at: number
}

export interface CrashReport {
  points: number
  doubleCrashes: number
  kills: number
}

export interface CrashOptions {
  /** Wraps the disk that the broker sees; the negative control breaks a promise here. */
  readonly wrap?: (fs: MemoryFileSystem) => FileSystem
  readonly uncached?: boolean
  /** Share of the points at which recovery is cut off too. */
  readonly doubleCrashShare?: number
  /** The topic is compacted: few keys, tombstones, small segments, many rounds of compaction. */
  readonly compact?: boolean
}

const TOPIC_ID = '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405161'
const PRODUCER_ID = 77

/** Every second log of a history is the companion of the one before it. */
function logId(index: number): PartitionId {
  const id = { topic: 'orders', partition: index >> 1, topicId: TOPIC_ID }
  return index % 2 === 0 ? id : { ...id, companion: 'state' }
}

/**
 * Runs one random history of appends (every ack level, idempotent or not, pipelined), rolls, checkpoints, log start moves, retention, clean restarts and
 * new partitions and companions on the simulated disk, then cuts the power, or kills the process, after each of its disk operations, recovers, and checks
 * what CONTRACT §2 promises. Everything follows from `seed`.
 * @throws Error naming seed and crash point at the first violation
 */
export async function simulateCrashes(
  seed: number,
  maxPoints: number,
  options: CrashOptions = {},
): Promise<CrashReport> {
  const random = new SeededRandom(seed)
  const history = new History(random, options)
  await history.run()
  const report: CrashReport = { points: 0, doubleCrashes: 0, kills: 0 }
  const total = history.fs.journalLength
  const step = Math.max(1, Math.ceil(total / maxPoints))
  for (let at = random.below(step); at <= total && report.points < maxPoints; at += step) {
    await history.checkPoint(at, report)
  }
  return report
}

class History {
  readonly fs: MemoryFileSystem
  readonly #random: SeededRandom
  readonly #options: CrashOptions
  readonly #clock = new FakeClock()
  readonly #config: LogConfig
  readonly #sent: Sent[] = []
  readonly #moves: LogStartMove[] = []
  readonly #ends: SeenEnd[] = []
  readonly #compactions: CompactionAsked[] = []
  readonly #compacting = new Map<number, Promise<void>>()
  readonly #sequences = new Map<number, number>()
  readonly #seed: number
  #store: DiskStore | undefined
  #logs: PartitionLog[] = []
  #inFlight: Promise<void>[] = []

  constructor(random: SeededRandom, options: CrashOptions) {
    this.#random = random
    this.#options = options
    this.#seed = random.uint32()
    this.fs = new MemoryFileSystem({ strictSync: true, uncached: options.uncached ?? true })
    const isCompacted = options.compact === true
    this.#config = aLogConfig({
      segmentBytes: random.pick(isCompacted ? [250, 300, 600] : [300, 600, 2000, 1_000_000]),
      indexIntervalBytes: random.pick([1, 150, 4096]),
      retentionRecords: random.pick([Infinity, Infinity, 12]),
      deleteDelayMs: random.pick([0, 1000]),
      compact: isCompacted,
      deleteRetentionMs: random.pick([0, 300, Infinity]),
    })
  }

  get #isCompacted(): boolean {
    return this.#options.compact === true
  }

  async run(): Promise<void> {
    await this.#open(this.fs, 1 + this.#random.below(2))
    const steps = 8 + this.#random.below(40)
    for (let i = 0; i < steps; i++) {
      await this.#step()
      if (this.#isCompacted && this.#random.chance(0.2)) await this.#compact()
    }
    await Promise.all(this.#inFlight)
    await this.#passTimeFor(Promise.all(this.#compacting.values()))
    if (this.#random.chance(0.5)) await this.#store?.close()
  }

  async #open(fs: MemoryFileSystem, partitions: number): Promise<void> {
    this.#store = await openDiskStore({
      fs: this.#options.wrap?.(fs) ?? fs,
      clock: this.#clock,
      options: { checkpointIntervalMs: 500, checkpointBytes: this.#random.pick([400, 5000]) },
    })
    this.#logs = []
    for (let i = 0; i < partitions; i++) {
      this.#logs.push(await this.#store.open(logId(i), this.#config))
    }
    await this.#store.ready()
  }

  async #step(): Promise<void> {
    const random = this.#random
    const kind = random.below(20)
    if (kind < 11) this.#append()
    else if (kind < 13) await Promise.all(this.#inFlight)
    else if (kind < 15) await this.#clock.advance(random.pick([0, 60, 150, 600]))
    else if (kind === 15) await this.#moveLogStart()
    else if (kind === 16) await this.#retain()
    else if (kind === 17) await this.#addPartition()
    else if (kind === 18) await this.#restart()
    else await this.#hop()
  }

  /** Begins a round of compaction; half of the time other things happen while it is under way. */
  async #compact(): Promise<void> {
    const partition = this.#random.below(this.#logs.length)
    const log = this.#logs[partition]
    if (log === undefined || this.#compacting.has(partition)) return
    this.#compactions.push({ partition, askedAt: this.fs.journalLength })
    const running = log.compact().then(
      () => undefined,
      (error: unknown) => {
        // A restart stops it.
        if (!(error instanceof BrokerError) || error.code !== 'CLOSED') throw error
      },
    )
    const round = running.finally(() => this.#compacting.delete(partition))
    this.#compacting.set(partition, round)
    if (this.#random.chance(0.5)) await this.#passTimeFor(round)
  }

  /** Waits for what rests now and then. */
  async #passTimeFor(promise: Promise<unknown>): Promise<void> {
    const state = { isDone: false }
    const mark = (): boolean => (state.isDone = true)
    promise.then(mark, mark)
    for (let i = 0; i < 30 && !state.isDone; i++) await Promise.resolve()
    while (!state.isDone) await this.#clock.advance(500)
    await promise
  }

  /** Lets some microtasks run, so that operations interleave in many ways. */
  async #hop(): Promise<void> {
    for (let i = this.#random.below(12); i > 0; i--) await Promise.resolve()
  }

  #append(): void {
    const random = this.#random
    const partition = random.below(this.#logs.length)
    const count = 1 + random.below(4)
    const isIdempotent = random.chance(0.6)
    const sequence = isIdempotent ? (this.#sequences.get(partition) ?? 0) : undefined
    if (sequence !== undefined) this.#sequences.set(partition, sequence + count)
    const sent: Sent = {
      partition,
      name: `${this.#seed}-${this.#sent.length}`,
      count,
      sequence,
      acks: random.pick(['durable', 'durable', 'durable', 'written', 'none']),
      answeredAt: Infinity,
      baseOffset: -1,
      refused: false,
    }
    this.#sent.push(sent)
    const log = this.#logs[partition]
    invariant(log !== undefined, 'a partition that was picked is there')
    this.#inFlight.push(this.#watch(sent, log))
  }

  async #watch(sent: Sent, log: PartitionLog): Promise<void> {
    const result = await log.append(batchOf(sent, this.#isCompacted), sent.acks)
    sent.answeredAt = this.fs.journalLength
    sent.baseOffset = result.baseOffset
    this.#ends.push({
      partition: sent.partition,
      highWatermark: log.highWatermark,
      at: this.fs.journalLength,
    })
  }

  async #moveLogStart(): Promise<void> {
    const partition = this.#random.below(this.#logs.length)
    const log = this.#logs[partition]
    if (log === undefined || log.highWatermark === 0) return
    const to = toOffset(this.#random.below(log.highWatermark + 1))
    const move = { partition, to, askedAt: this.fs.journalLength, answeredAt: Infinity }
    this.#moves.push(move)
    await log.advanceLogStart(to)
    move.answeredAt = this.fs.journalLength
  }

  async #retain(): Promise<void> {
    for (const [partition, log] of this.#logs.entries()) {
      // Whatever it decides lies at or below the high watermark: allowed from here on, promised once answered.
      const askedAt = this.fs.journalLength
      const move = { partition, to: log.highWatermark, askedAt, answeredAt: Infinity }
      this.#moves.push(move)
      const to = await log.applyRetention()
      this.#moves.push({ partition, to, askedAt, answeredAt: this.fs.journalLength })
    }
  }

  async #addPartition(): Promise<void> {
    if (this.#logs.length > 3 || this.#store === undefined) return
    this.#logs.push(await this.#store.open(logId(this.#logs.length), this.#config))
  }

  async #restart(): Promise<void> {
    await Promise.all(this.#inFlight)
    const partitions = this.#logs.length
    await this.#store?.close()
    await this.#open(this.fs, partitions)
  }

  // ── crash points ─────────────────────────────────────────────────────────────────────────────

  async checkPoint(at: number, report: CrashReport): Promise<void> {
    const random = new SeededRandom(this.#seed ^ Math.imul(at + 1, 0x9e3779b1))
    const isKill = random.chance(0.2)
    const where = `crash point ${at} (${isKill ? 'kill' : 'power cut'})`
    const disk = isKill ? this.fs.killAt(at, random) : this.fs.crashAt(at, random)
    report.points++
    if (isKill) report.kills++
    try {
      if (random.chance(this.#options.doubleCrashShare ?? 0.27)) {
        report.doubleCrashes++
        await this.#recover(disk)
        const again = disk.crashAt(random.below(disk.journalLength + 1), random)
        // A power cut within recovery takes what was only written, unless recovery had made it durable.
        await this.#check(again, at, false, random)
      } else {
        await this.#check(disk, at, isKill, random)
      }
    } catch (error) {
      throw new Error(`${where}: ${error instanceof Error ? error.message : String(error)}`, {
        cause: error,
      })
    }
  }

  async #recover(fs: MemoryFileSystem): Promise<{ store: DiskStore; logs: PartitionLog[] }> {
    const store = await openDiskStore({ fs, clock: this.#clock })
    const logs: PartitionLog[] = []
    for (let i = 0; i < this.#logs.length; i++) {
      logs.push(await store.open(logId(i), this.#config))
    }
    await store.ready()
    return { store, logs }
  }

  async #check(
    fs: MemoryFileSystem,
    at: number,
    isKill: boolean,
    random: SeededRandom,
  ): Promise<void> {
    const { store, logs } = await this.#recover(fs)
    for (const [partition, log] of logs.entries()) {
      await this.#checkPartition(partition, log, at, isKill)
      if (this.#isCompacted && random.chance(0.3)) {
        await this.#passTimeFor(log.compact())
        // A round more is as if one had been asked for before.
        this.#compactions.push({ partition, askedAt: at })
        await this.#checkPartition(partition, log, at, isKill)
        this.#compactions.pop()
      }
      await this.#checkGoesOn(partition, log, random)
    }
    await store.close()
  }

  async #checkPartition(
    partition: number,
    log: PartitionLog,
    at: number,
    isKill: boolean,
  ): Promise<void> {
    const sent = this.#sent.filter((entry) => entry.partition === partition)
    const moves = this.#moves.filter((move) => move.partition === partition)
    const promisedStart = Math.max(
      0,
      ...moves.filter((move) => move.answeredAt <= at).map((move) => move.to),
    )
    const allowedStart = Math.max(
      0,
      ...moves.filter((move) => move.askedAt <= at).map((move) => move.to),
    )
    const start = log.logStartOffset
    expectThat(start >= promisedStart, `log start ${start} went back from ${promisedStart}`)
    expectThat(start <= allowedStart, `log start ${start} is past ${allowedStart}: never asked for`)
    const found = await readAll(log, this.#seed)
    const isCompacted = this.#compactions.some(
      (asked) => asked.partition === partition && asked.askedAt <= at,
    )
    expectThat(
      isCompacted || log.highWatermark - start === found.size,
      `[${start}, ${log.highWatermark}) holds ${found.size} records: not dense`,
    )
    for (const seen of this.#ends) {
      if (seen.partition !== partition || seen.at > at) continue
      expectThat(
        log.highWatermark >= seen.highWatermark,
        `high watermark ${log.highWatermark} is below ${seen.highWatermark}, which readers had seen`,
      )
    }
    const names = new Map(sent.map((entry) => [entry.name, entry]))
    const newest = new Map<string, number>()
    for (const [offset, value] of found) {
      const key = keyOf(value)
      newest.set(key, Math.max(newest.get(key) ?? -1, offset))
    }
    for (const [offset, value] of found) {
      const [name = '', index = ''] = value.split('.')
      const origin = names.get(name)
      expectThat(origin !== undefined, `offset ${offset} holds ${value}, which nobody sent`)
      if (origin.baseOffset >= 0 && origin.answeredAt <= at) {
        const expected = origin.baseOffset + Number(index)
        const isKept = isDurable(origin, at, isKill)
        expectThat(!isKept || expected === offset, `${value} is at ${offset}, was at ${expected}`)
      }
    }
    for (const entry of sent) {
      if (!isDurable(entry, at, isKill)) continue
      for (let i = 0; i < entry.count; i++) {
        const offset = entry.baseOffset + i
        if (offset < start) continue
        const value = found.get(offset)
        const expected = `${entry.name}.${i}`
        if (value === undefined && isCompacted && this.#mayBeGone(sent, expected, offset, newest)) {
          continue
        }
        expectThat(
          value === expected,
          `${entry.acks} record ${expected} at ${offset} is ${value ?? 'lost'}`,
        )
      }
    }
    await this.#checkRetry(sent, log, at, isKill)
  }

  /** A record that compaction may have taken: a newer one of its key is there, or there is none at all because a tombstone took them. */
  #mayBeGone(
    sent: readonly Sent[],
    value: string,
    offset: number,
    newest: ReadonlyMap<string, number>,
  ): boolean {
    const key = keyOf(value)
    const left = newest.get(key)
    if (left !== undefined) return left > offset
    if (this.#config.deleteRetentionMs === Infinity) return false
    // The last of the key that anyone has sent there, or may have, was a tombstone, or may have been one.
    return sent.some((entry) =>
      Array.from({ length: entry.count }, (_, i) => `${entry.name}.${i}`).some(
        (other, i) =>
          isTombstone(other) &&
          keyOf(other) === key &&
          (entry.baseOffset < 0 || entry.baseOffset + i >= offset),
      ),
    )
  }

  /** The newest idempotent batch that was promised is answered with its first offset when it is sent again. */
  async #checkRetry(
    sent: readonly Sent[],
    log: PartitionLog,
    at: number,
    isKill: boolean,
  ): Promise<void> {
    const idempotent = sent.filter((entry) => entry.sequence !== undefined)
    const i = idempotent.findLastIndex((entry) => isDurable(entry, at, isKill))
    const last = idempotent[i]
    // Only the last five batches are promised an answer, and later ones may have survived unpromised.
    if (last === undefined || idempotent.length - i > 5) return
    const endBefore = log.logEndOffset
    const answer = await log.append(batchOf(last, this.#isCompacted), 'durable')
    expectThat(answer.duplicate, `the retry of ${last.name} was appended a second time`)
    expectThat(
      answer.baseOffset === last.baseOffset && log.logEndOffset === endBefore,
      `the retry of ${last.name} answered ${answer.baseOffset}, was ${last.baseOffset}`,
    )
  }

  /** The recovered log takes appends, and gives them back. */
  async #checkGoesOn(partition: number, log: PartitionLog, random: SeededRandom): Promise<void> {
    const value = `after-${random.uint32()}`
    const end = log.logEndOffset
    const answer = await log.append(aBatch({ values: [value] }), 'durable')
    expectThat(answer.baseOffset === end, `partition ${partition} gave out ${answer.baseOffset}`)
    const got = await log.read(answer.baseOffset, 1)
    expectThat(
      recordsOf(got.chunks).at(-1)?.value === value,
      `partition ${partition} did not give back what it took after recovery`,
    )
  }
}

/** Had it been promised to survive by then? */
function isDurable(entry: Sent, at: number, isKill: boolean): boolean {
  if (entry.answeredAt > at || entry.refused || entry.acks === 'none') return false
  return entry.acks === 'durable' || isKill
}

/**
 * Records are told apart by their values; tombstones have none, so in a compacted topic the time of a record says the same: eight for each
 * batch that was sent.
 */
function batchOf(sent: Sent, isCompacted: boolean): Uint8Array {
  const names = Array.from({ length: sent.count }, (_, i) => `${sent.name}.${i}`)
  const shape = isCompacted
    ? {
        keys: names.map(keyOf),
        values: names.map((name) => (isTombstone(name) ? undefined : name)),
        timestampsMs: names.map((_, i) => BATCH_TIME_MS + Number(sent.name.split('-')[1]) * 8 + i),
      }
    : { values: names }
  return sent.sequence === undefined
    ? aBatch(shape)
    : aBatch({ ...shape, producer: { id: PRODUCER_ID, sequence: sent.sequence } })
}

/** One of a few keys, by chance but always the same. */
function keyOf(value: string): string {
  return 'abcd'.charAt(hashOf(value) % 4)
}

function isTombstone(value: string): boolean {
  return hashOf(value) % 7 === 0
}

function hashOf(value: string): number {
  let hash = 7
  for (let i = 0; i < value.length; i++) hash = Math.imul(hash ^ value.charCodeAt(i), 0x01000193)
  return (hash ^ (hash >>> 15)) >>> 0
}

async function readAll(log: PartitionLog, seed: number): Promise<Map<number, string>> {
  const found = new Map<number, string>()
  let offset = log.logStartOffset
  while (offset < log.highWatermark) {
    const got = await log.read(offset, 1000)
    expectThat(got.nextOffset > offset, `reading at ${offset} does not go on`)
    for (const record of recordsOf(got.chunks)) {
      const time = record.timestampMs - BATCH_TIME_MS
      const name = record.value ?? `${seed}-${Math.floor(time / 8)}.${time % 8}`
      if (record.offset >= offset) found.set(record.offset, name)
    }
    offset = got.nextOffset
  }
  return found
}

function expectThat(holds: boolean, message: string): asserts holds {
  if (!holds) throw new Error(message)
}
