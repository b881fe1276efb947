import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { toOffset } from '../../../src/common/offset.ts'
import { SeededRandom } from '../../../src/common/random.ts'
import { MemoryFileSystem } from '../../../src/fs/memory-file-system.ts'
import { decodeCheckpoint } from '../../../src/log/disk/checkpoint.ts'
import type { Checkpoint } from '../../../src/log/disk/checkpoint.ts'
import type { DiskStore } from '../../../src/log/disk/disk-store.ts'
import type { LogConfig } from '../../../src/log/log-config.ts'
import type { PartitionId, PartitionLog } from '../../../src/log/partition-log.ts'
import { BATCH_TIME_MS, aBatch, batchesOf, recordsOf } from '../../support/batches.ts'
import { DATA, aLogConfig, openDiskStore } from '../../support/disk-harness.ts'
import { FakeClock } from '../../support/fake-clock.ts'

/** Issue 2, "It must show" 6. FLIP_SEED replays one folder with all its flips. */
const FLIPS = Number(process.env['FLIPS'] ?? 10_000)
const FLIPS_PER_FOLDER = 40
const TOPIC_ID = '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405161'

/** A batch as it was sent, and where it lies. */
interface Batch {
  readonly base: number
  readonly end: number
  readonly values: readonly string[]
  readonly timestampsMs: readonly number[]
  file: string
  position: number
  bytes: number
}

interface Partition {
  readonly batches: Batch[]
  logStart: number
}

/** A data folder, and what is in it. */
interface Folder {
  readonly fs: MemoryFileSystem
  readonly clock: FakeClock
  readonly config: LogConfig
  readonly partitions: readonly Partition[]
  readonly isClean: boolean
}

interface Flip {
  readonly path: string
  readonly byte: number
  readonly bit: number
}

function partitionId(partition: number): PartitionId {
  return { topic: 'orders', partition, topicId: TOPIC_ID }
}

/** Several partitions, segments and incarnations; stops of both kinds. Everything in it is durable. */
async function makeFolder(random: SeededRandom): Promise<Folder> {
  let fs = new MemoryFileSystem({ strictSync: true })
  const clock = new FakeClock()
  const config = aLogConfig({
    segmentBytes: random.pick([500, 900, 3000, 1_000_000]),
    indexIntervalBytes: random.pick([1, 200, 600]),
    deleteDelayMs: 0,
  })
  const partitions: Partition[] = []
  for (let i = 1 + random.below(3); i > 0; i--) partitions.push({ batches: [], logStart: 0 })
  const starts = 1 + random.below(3)
  let isClean = true
  for (let start = 1; start <= starts; start++) {
    const { store, logs } = await openFolder({ fs, clock, config, partitions, isClean })
    for (let i = 6 + random.below(14); i > 0; i--) {
      await appendTo(partitions, logs, random)
      if (random.chance(0.15)) await clock.advance(6000)
    }
    if (random.chance(0.2)) await moveLogStart(partitions, logs, random)
    isClean = random.chance(0.5)
    if (isClean) await store.close()
    else fs = fs.kill()
  }
  for (const partition of partitions) placeBatches(fs, partition, partitions.indexOf(partition))
  return { fs, clock, config, partitions, isClean }
}

async function appendTo(
  partitions: readonly Partition[],
  logs: readonly PartitionLog[],
  random: SeededRandom,
): Promise<void> {
  const i = random.below(logs.length)
  const partition = partitions[i]
  const log = logs[i]
  if (partition === undefined || log === undefined) throw new Error('it is there')
  const count = 1 + random.below(4)
  const base = log.logEndOffset
  const values = Array.from(
    { length: count },
    (_, n) => `${i}:${base + n}:${'x'.repeat(random.below(150))}`,
  )
  const timestampsMs = values.map((_, n) => BATCH_TIME_MS + (base + n) * 10 + random.below(30))
  const result = await log.append(aBatch({ values, timestampsMs }), 'durable')
  partition.batches.push({
    base: result.baseOffset,
    end: result.endOffset,
    values,
    timestampsMs,
    file: '',
    position: 0,
    bytes: 0,
  })
}

async function moveLogStart(
  partitions: readonly Partition[],
  logs: readonly PartitionLog[],
  random: SeededRandom,
): Promise<void> {
  const i = random.below(logs.length)
  const log = logs[i]
  const partition = partitions[i]
  if (log === undefined || partition === undefined || log.highWatermark === 0) return
  const to = random.below(log.highWatermark)
  partition.logStart = Math.max(partition.logStart, to)
  await log.advanceLogStart(toOffset(to))
  await log.applyRetention()
}

/** Finds out in which file, and where in it, each batch lies. */
function placeBatches(fs: MemoryFileSystem, partition: Partition, i: number): void {
  for (const path of fs.files()) {
    if (!path.startsWith(`${DATA}/orders-${i}/`) || !path.endsWith('.log')) continue
    let position = 0
    for (const found of batchesOf([fs.contentOf(path) ?? new Uint8Array(0)])) {
      const batch = partition.batches.find((one) => one.base === found.baseOffset)
      if (batch === undefined) throw new Error(`nobody sent what lies at ${found.baseOffset}`)
      batch.file = path
      batch.position = position
      batch.bytes = found.bytes.length
      position += found.bytes.length
    }
  }
}

async function openFolder(
  folder: Folder,
): Promise<{ store: DiskStore; logs: readonly PartitionLog[] }> {
  const store = await openDiskStore({
    fs: folder.fs,
    clock: folder.clock,
    // Everything is read from the disk.
    options: { cacheBytes: 0 },
  })
  const logs: PartitionLog[] = []
  for (const i of folder.partitions.keys()) {
    logs.push(await store.open(partitionId(i), folder.config))
  }
  await store.ready()
  return { store, logs }
}

const KINDS = [
  /\.log$/,
  /\.log$/,
  /\.log$/,
  /\.index$/,
  /\.timeindex$/,
  /\.seal$/,
  /checkpoint\.[ab]$/,
  /\/(incarnation|crash|[0-9]+\.snapshot)$/,
]

function pickFlip(folder: Folder, random: SeededRandom): Flip {
  for (;;) {
    const kind = random.pick(KINDS)
    const paths = folder.fs.files().filter((path) => kind.test(path) && sizeOf(folder.fs, path) > 0)
    if (paths.length === 0) continue
    const path = random.pick(paths)
    const size = sizeOf(folder.fs, path)
    // Headers are few among the bytes, and matter most.
    const start = random.chance(0.3) ? findHeader(folder, path, random) : undefined
    const byte = start === undefined ? random.below(size) : start + random.below(27)
    return { path, byte, bit: random.below(8) }
  }
}

function findHeader(folder: Folder, path: string, random: SeededRandom): number | undefined {
  const all = folder.partitions.flatMap(({ batches }) => batches).filter((b) => b.file === path)
  return all.length === 0 ? undefined : random.pick(all).position
}

function sizeOf(fs: MemoryFileSystem, path: string): number {
  return fs.contentOf(path)?.length ?? 0
}

/** What the newest checkpoint that is whole says of each partition. */
function durableEnds(fs: MemoryFileSystem, partitions: number): number[] {
  let newest: Checkpoint | undefined
  for (const slot of ['a', 'b']) {
    const bytes = fs.contentOf(`${DATA}/checkpoint.${slot}`)
    if (bytes === undefined) continue
    try {
      const found = decodeCheckpoint(bytes)
      if (newest === undefined || found.sequence > newest.sequence) newest = found
    } catch (error) {
      if (!(error instanceof BrokerError)) throw error // That slot does not count.
    }
  }
  const ends: number[] = Array.from({ length: partitions }, () => 0)
  for (const entry of newest?.entries ?? []) ends[entry.partition] = entry.durableEnd
  return ends
}

/** Flips a bit, starts (or goes on, if the broker runs already), reads all, appends, and checks that nothing untrue is said. */
async function checkFlip(folder: Folder, flip: Flip, random: SeededRandom): Promise<void> {
  const fs = folder.fs.kill()
  const isRunning = random.chance(0.3)
  const mine: Folder = { ...folder, fs }
  if (!isRunning) fs.flipBit(flip.path, flip.byte, flip.bit)
  // What runs has seen it all reach the disk.
  const known = isRunning
    ? folder.partitions.map((partition) => partition.batches.at(-1)?.end ?? 0)
    : durableEnds(fs, folder.partitions.length)
  const sizes = new Map(fs.files().map((path) => [path, sizeOf(fs, path)]))
  const opened = await openFolder(mine)
  if (isRunning) {
    // Indexes are in memory now, sealed files open.
    for (const log of opened.logs) await readSome(log, random)
    if (flip.byte < sizeOf(fs, flip.path)) fs.flipBit(flip.path, flip.byte, flip.bit)
  }
  for (const [i, log] of opened.logs.entries()) {
    const partition = folder.partitions[i]
    if (partition === undefined) throw new Error('it is there')
    const durableEnd = known[i] ?? 0
    await checkPartition(partition, log, flip, durableEnd, random)
    await checkGoesOn(log, durableEnd)
  }
  for (const [path, size] of sizes) {
    if (!path.endsWith('.log') || (!folder.isClean && !isRunning && path === flip.path)) continue
    const now = fs.contentOf(path)
    // Retention has taken the whole file, or nothing of it is gone.
    if (now !== undefined) expectThat(now.length >= size, `${path} became shorter`)
  }
  await opened.store.close()
}

async function readSome(log: PartitionLog, random: SeededRandom): Promise<void> {
  for (let n = 0; n < 3 && log.logStartOffset < log.highWatermark; n++) {
    const span = log.highWatermark - log.logStartOffset
    await log.read(toOffset(log.logStartOffset + random.below(span)), 1)
  }
}

async function checkPartition(
  partition: Partition,
  log: PartitionLog,
  flip: Flip,
  durableEnd: number,
  random: SeededRandom,
): Promise<void> {
  const hit = partition.batches.find(
    (batch) =>
      batch.file === flip.path &&
      flip.byte >= batch.position &&
      flip.byte < batch.position + batch.bytes,
  )
  const end = partition.batches.at(-1)?.end ?? 0
  // Only a flip in what no checkpoint covers may look like a torn tail.
  const mayBeTorn = hit !== undefined && hit.end > durableEnd
  const least = mayBeTorn ? hit.base : end
  expectThat(log.highWatermark >= least, `high watermark ${log.highWatermark} is below ${least}`)
  expectThat(
    log.logStartOffset <= partition.logStart,
    `log start ${log.logStartOffset} passed ${partition.logStart}`,
  )
  const places = [log.logStartOffset as number]
  for (let n = 0; n < 6; n++) places.push(random.below(Math.max(1, log.highWatermark)))
  for (const [n, from] of places.entries()) {
    if (from < partition.logStart || from >= log.highWatermark) continue
    const maxBytes = n === 0 ? random.pick([1, 300, 100_000]) : 1
    await readFrom(partition, log, from, maxBytes, hit, n === 0 ? Infinity : 2)
  }
  // A log start that went back with a damaged checkpoint points at what is deleted.
  if (hit === undefined && log.logStartOffset === partition.logStart) {
    await checkTimestamps(partition, log, random)
  }
}

/** Reads `most` times from `from` on, over damage, and checks each record. */
async function readFrom(
  partition: Partition,
  log: PartitionLog,
  from: number,
  maxBytes: number,
  hit: Batch | undefined,
  most: number,
): Promise<void> {
  let offset = from
  for (let n = 0; n < most && offset < log.highWatermark; n++) {
    if (offset < partition.logStart) offset = partition.logStart
    try {
      const got = await log.read(toOffset(offset), maxBytes)
      expectThat(got.nextOffset > offset, `reading at ${offset} does not go on`)
      let expected = offset
      for (const record of recordsOf(got.chunks)) {
        if (record.offset < offset) continue
        const sent = valueAt(partition, record.offset)
        expectThat(record.offset === expected, `${record.offset} came after ${expected - 1}`)
        expectThat(record.value === sent, `offset ${record.offset} is ${record.value}, was ${sent}`)
        expected++
      }
      expectThat(expected === got.nextOffset, `[${expected}, ${got.nextOffset}) was left out`)
      offset = got.nextOffset
    } catch (error) {
      if (!(error instanceof BrokerError) || error.code !== 'SEGMENT_QUARANTINED') throw error
      const next = Number(error.details['nextOffset'])
      expectThat(hit !== undefined, `offset ${offset} is quarantined for no reason`)
      expectThat(
        offset >= hit.base && next <= hit.end && next > offset,
        `[${offset}, ${next}) is quarantined, damaged is [${hit.base}, ${hit.end})`,
      )
      offset = next
    }
  }
}

function valueAt(partition: Partition, offset: number): string | undefined {
  const batch = partition.batches.find((one) => one.base <= offset && offset < one.end)
  return batch?.values[offset - batch.base]
}

async function checkTimestamps(
  partition: Partition,
  log: PartitionLog,
  random: SeededRandom,
): Promise<void> {
  const all = partition.batches.flatMap((batch) =>
    batch.timestampsMs.map((timestampMs, n) => ({ offset: batch.base + n, timestampMs })),
  )
  for (let n = 0; n < 3 && all.length > 0; n++) {
    const wanted = random.pick(all).timestampMs - random.below(3)
    const found = await log.findOffsetByTimestamp(wanted)
    const expected = all.find(
      (one) => one.timestampMs >= wanted && one.offset >= log.logStartOffset,
    )
    expectThat(
      found?.offset === expected?.offset,
      `the first record at ${wanted} is ${expected?.offset}, not ${found?.offset}`,
    )
  }
}

/** What is appended gets an offset that was never given out, and can be read. */
async function checkGoesOn(log: PartitionLog, durableEnd: number): Promise<void> {
  const answer = await log.append(aBatch({ values: ['after'] }), 'durable')
  expectThat(answer.baseOffset >= durableEnd, `offset ${answer.baseOffset} was given out again`)
  const got = await log.read(answer.baseOffset, 1)
  expectThat(recordsOf(got.chunks).at(-1)?.value === 'after', 'what was appended cannot be read')
}

function expectThat(holds: boolean, message: string): asserts holds {
  if (!holds) throw new Error(message)
}

async function flipBits(firstSeed: number, flips: number): Promise<number> {
  const replay = process.env['FLIP_SEED']
  let done = 0
  for (let seed = firstSeed; done < flips; seed++) {
    const used = replay === undefined ? seed : Number(replay)
    const random = new SeededRandom(used)
    const folder = await makeFolder(random)
    for (let n = 0; n < FLIPS_PER_FOLDER; n++) {
      const flip = pickFlip(folder, random)
      try {
        await checkFlip(folder, flip, random)
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error)
        throw new Error(
          `seed ${used}, flip ${n} of bit ${flip.bit} of byte ${flip.byte} of ${flip.path} (${folder.isClean ? 'clean' : 'unclean'}): ${why}`,
          { cause: error },
        )
      }
      done++
    }
    if (replay !== undefined) return flips
  }
  return done
}

describe('a single bit that flips on the disk', () => {
  it(`costs at most the batch that it is in, and is never served: ${FLIPS} flips`, async () => {
    expect(await flipBits(1, FLIPS)).toBeGreaterThanOrEqual(FLIPS)
  }, 300_000)
})
