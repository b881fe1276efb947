import { describe, expect, it } from 'vitest'
import { InvariantError } from '../../src/common/assert.ts'
import { BrokerError, findSystemCode } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import type { SystemCode } from '../../src/fs/system-error.ts'
import type { DiskStore } from '../../src/log/disk/disk-store.ts'
import type { PartitionId, PartitionLog } from '../../src/log/partition-log.ts'
import { aBatch, recordsOf } from '../support/batches.ts'
import { aLogConfig, openDiskStore } from '../support/disk-harness.ts'
import { FakeClock } from '../support/fake-clock.ts'

/** CONTRACT §4, L0b. FAULT=EIO:123 replays one of them. */
const CODES = ['EIO', 'ENOSPC', 'EDQUOT', 'EMFILE', 'EROFS', 'EINTR'] as const
const CONFIG = aLogConfig({ segmentBytes: 400, indexIntervalBytes: 100, deleteDelayMs: 0 })
const ID: PartitionId = {
  topic: 'orders',
  partition: 0,
  topicId: '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405161',
}
/** A partition and its companion. */
const IDS: readonly PartitionId[] = [ID, { ...ID, companion: 'state' }]

/** What was answered, and so must be found again. */
interface Promised {
  /** By partition: offset to value. */
  readonly records: readonly Map<number, string>[]
  readonly logStarts: number[]
  /** Everything that was ever sent or asked for: what else may be there. */
  readonly sent: Set<string>
  readonly asked: number[]
}

function noPromises(): Promised {
  return { records: [new Map(), new Map()], logStarts: [0, 0], sent: new Set(), asked: [0, 0] }
}

function copyOf(promised: Promised): Promised {
  return {
    records: promised.records.map((one) => new Map(one)),
    logStarts: [...promised.logStarts],
    sent: new Set(promised.sent),
    asked: [...promised.asked],
  }
}

/** One broker's life. An expected error ends a step; anything else ends the test. */
class Life {
  readonly #fs: MemoryFileSystem
  readonly #clock: FakeClock
  readonly #promised: Promised
  readonly #sequences: number[]
  store: DiskStore | undefined
  logs: (PartitionLog | undefined)[] = []

  constructor(fs: MemoryFileSystem, clock: FakeClock, promised: Promised) {
    this.#fs = fs
    this.#clock = clock
    this.#promised = promised
    this.#sequences = promised.records.map((one) => one.size)
  }

  async start(): Promise<void> {
    await this.attempt(async () => {
      this.store = await openDiskStore({
        fs: this.#fs,
        clock: this.#clock,
        options: { cacheBytes: 0, checkpointBytes: 2000 },
      })
    })
    for (const [partition, id] of IDS.entries()) {
      await this.attempt(async () => {
        this.logs[partition] = await this.store?.open(id, CONFIG)
      })
    }
    await this.attempt(async () => {
      await this.store?.ready()
    })
  }

  /** Rolls, checkpoints, a log start, retention, reads, a stop. */
  async run(): Promise<void> {
    await this.start()
    for (let n = 0; n < 4; n++) await Promise.all([this.append(0), this.append(0), this.append(1)])
    await this.#clock.advance(6000)
    await this.moveLogStart(0)
    await this.append(0)
    await this.attempt(async () => {
      await this.logs[0]?.applyRetention()
    })
    await this.read()
    await this.append(1)
    await this.#clock.advance(200)
    await this.attempt(async () => {
      await this.store?.close()
    })
  }

  async append(partition: number): Promise<void> {
    const log = this.logs[partition]
    if (log === undefined) return
    await this.attempt(async () => {
      const value = `p${partition}-${this.#promised.sent.size}`
      this.#promised.sent.add(value)
      // A producer that is refused starts again under another id, as a client does.
      const sequence = this.#sequences[partition] ?? 0
      const producer = { id: 100 + partition, sequence }
      this.#sequences[partition] = sequence + 1
      const answer = await log.append(
        aBatch(sequence < 3 ? { values: [value], producer } : { values: [value] }),
        'durable',
      )
      this.#promised.records[partition]?.set(answer.baseOffset, value)
    })
  }

  async moveLogStart(partition: number): Promise<void> {
    const log = this.logs[partition]
    if (log === undefined) return
    const to = Math.floor(log.highWatermark / 2)
    this.#promised.asked[partition] = Math.max(this.#promised.asked[partition] ?? 0, to)
    await this.attempt(async () => {
      await log.advanceLogStart(toOffset(to))
      this.#promised.logStarts[partition] = Math.max(this.#promised.logStarts[partition] ?? 0, to)
    })
  }

  async read(): Promise<void> {
    for (const log of this.logs) {
      if (log === undefined) continue
      for (
        let offset = log.logStartOffset;
        offset < log.highWatermark;
        offset = toOffset(offset + 2)
      ) {
        await this.attempt(async () => {
          const got = await log.read(offset, 1)
          for (const { value } of recordsOf(got.chunks)) {
            expect(this.#promised.sent.has(value ?? '')).toBe(true)
          }
        })
      }
    }
  }

  async attempt(step: () => Promise<void>): Promise<void> {
    try {
      await step()
    } catch (error) {
      if (error instanceof InvariantError) throw error
      if (error instanceof BrokerError) expect(error.cause).not.toBeInstanceOf(InvariantError)
      else if (findSystemCode(error) === undefined) throw error
    }
  }
}

/** Everything that was promised is there, and nothing that nobody sent. */
async function check(fs: MemoryFileSystem, clock: FakeClock, promised: Promised): Promise<void> {
  const store = await openDiskStore({ fs, clock, options: { cacheBytes: 0 } })
  for (const [partition, id] of IDS.entries()) {
    const log = await store.open(id, CONFIG)
    const records = promised.records[partition] ?? new Map<number, string>()
    expect(log.logStartOffset).toBeGreaterThanOrEqual(promised.logStarts[partition] ?? 0)
    expect(log.logStartOffset).toBeLessThanOrEqual(promised.asked[partition] ?? 0)
    const found = new Map<number, string>()
    for (let offset = log.logStartOffset; offset < log.highWatermark;) {
      const got = await log.read(offset, 1000)
      for (const record of recordsOf(got.chunks)) found.set(record.offset, record.value ?? '')
      offset = got.nextOffset
    }
    for (const [offset, value] of records) {
      if (offset >= log.logStartOffset) expect(found.get(offset)).toBe(value)
    }
    for (const value of found.values()) expect(promised.sent.has(value)).toBe(true)
    expect(new Set(found.values()).size).toBe(found.size)
    await log.append(aBatch(), 'durable')
  }
  await store.ready()
  await store.close()
  expect(fs.openFiles).toBe(0)
}

/** A folder that a broker has left by kill -9, and what it had promised. */
async function makeBase(): Promise<{ fs: MemoryFileSystem; promised: Promised }> {
  const fs = new MemoryFileSystem({ strictSync: true })
  const promised = noPromises()
  const life = new Life(fs, new FakeClock(), promised)
  await life.start()
  for (let n = 0; n < 3; n++) await Promise.all([life.append(0), life.append(1)])
  return { fs: fs.kill(), promised }
}

async function runWithFault(
  base: { fs: MemoryFileSystem; promised: Promised },
  code: SystemCode,
  nth: number,
): Promise<boolean> {
  const fs = base.fs.kill()
  const clock = new FakeClock()
  const promised = copyOf(base.promised)
  const life = new Life(fs, clock, promised)
  const before = fs.operations
  fs.failNext({ nth }, code)
  await life.run()
  const wasReached = fs.operations - before >= nth
  fs.clearFaults()
  await check(fs.kill(), clock, promised)
  await check(fs.crash(new SeededRandom(nth)), clock, promised)
  return wasReached
}

/** After the fault is over, a store that has not failed takes appends again. */
async function goesOn(
  base: { fs: MemoryFileSystem; promised: Promised },
  code: SystemCode,
  nth: number,
): Promise<void> {
  const fs = base.fs.kill()
  const clock = new FakeClock()
  const promised = copyOf(base.promised)
  const life = new Life(fs, clock, promised)
  await life.start()
  fs.failNext({ nth }, code)
  for (let n = 0; n < 4; n++) await Promise.all([life.append(0), life.append(1)])
  await clock.advance(6000)
  await life.moveLogStart(0)
  fs.clearFaults()
  await clock.advance(6000)
  const failed = { isReported: false }
  const watch = life.store?.failed.then(() => (failed.isReported = true))
  await clock.advance(1000)
  for (const log of life.logs) {
    try {
      await log?.append(aBatch({ values: [`last-${nth}`] }), 'durable')
      expect(failed.isReported).toBe(false)
    } catch (error) {
      expect(error).toMatchObject({ code: 'FLUSH_FAILED' })
      await watch // It never comes to a test's end otherwise.
    }
  }
  await life.attempt(async () => {
    await life.store?.close()
  })
  expect(fs.openFiles).toBe(0)
}

describe('a single failure of any disk operation', () => {
  const replay = process.env['FAULT']?.split(':')

  it.each(CODES)('costs nothing that was promised, and breaks no invariant: %s', async (code) => {
    const base = await makeBase()
    if (replay !== undefined && replay[0] !== code) return
    let nth = Number(replay?.[1] ?? 1)
    for (; ; nth++) {
      try {
        if (!(await runWithFault(base, code, nth))) break
      } catch (error) {
        throw new Error(`replay with FAULT=${code}:${nth}: ${String(error)}`, { cause: error })
      }
      if (replay !== undefined) return
    }
    expect(nth).toBeGreaterThan(200)
  })

  it.each(CODES)('lets the store go on, or report that it cannot: %s', async (code) => {
    const base = await makeBase()
    for (let nth = 1; nth < 160; nth++) {
      try {
        await goesOn(base, code, nth)
      } catch (error) {
        throw new Error(`${code} at operation ${nth}: ${String(error)}`, { cause: error })
      }
    }
  })
})
