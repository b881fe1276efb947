import { describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import type { DiskStore } from '../../src/log/disk/disk-store.ts'
import type { Partition } from '../../src/topic/partition.ts'
import { Topics } from '../../src/topic/topics.ts'
import { aBatch, recordsOf } from '../support/batches.ts'
import { openDiskStore } from '../support/disk-harness.ts'
import { FakeClock } from '../support/fake-clock.ts'

/** Histories: each is cut at {@link POINTS} places. COMPANION_SEED=7 replays one, with all of its places. */
const HISTORIES = Number(process.env['COMPANION_HISTORIES'] ?? 40)
const POINTS = 40
const NAME = 'orders'
const PARTITIONS = 2

/** One topic of the name, from its making to its end; with the length of the disk's journal when each thing was asked for and answered. */
interface Life {
  topicId: string
  readonly madeAt: number
  endAskedAt: number
  endedAt: number
  /** By partition. */
  readonly companions: readonly Kept[]
}

interface Kept {
  readonly appended: { readonly value: string; readonly offset: number; readonly at: number }[]
  readonly moves: { readonly to: number; readonly askedAt: number; answeredAt: number }[]
}

interface Broker {
  readonly store: DiskStore
  readonly topics: Topics
}

async function start(fs: MemoryFileSystem, clock: FakeClock): Promise<Broker> {
  const options = { checkpointIntervalMs: 500, checkpointBytes: 1000 }
  const store = await openDiskStore({ fs, clock, options })
  const topics = await Topics.open({ store, clock, random: new SeededRandom(fs.journalLength + 3) })
  await store.ready()
  return { store, topics }
}

async function stop({ topics, store }: Broker): Promise<void> {
  await topics.close()
  await store.close()
}

async function readAll(log: Partition): Promise<Map<number, string>> {
  const found = new Map<number, string>()
  for (let offset = log.logStartOffset; offset < log.highWatermark;) {
    const { chunks, nextOffset } = await log.read(offset, 10_000)
    for (const record of recordsOf(chunks)) {
      if (record.offset >= offset) found.set(record.offset, record.value ?? '')
    }
    offset = nextOffset
  }
  return found
}

/** Topics made, deleted and made anew, whose companions are made, written and trimmed, with checkpoints and clean restarts in between. */
class History {
  readonly fs = new MemoryFileSystem({ strictSync: true, uncached: true })
  readonly #clock = new FakeClock()
  readonly #random: SeededRandom
  readonly #lives: Life[] = []
  #broker: Broker | undefined
  #count = 0

  constructor(seed: number) {
    this.#random = new SeededRandom(seed)
  }

  get #live(): Life | undefined {
    return this.#lives.find((life) => life.endAskedAt === Infinity)
  }

  async run(): Promise<void> {
    this.#broker = await start(this.fs, this.#clock)
    for (let i = 0; i < 25; i++) await this.#step(this.#broker)
    if (this.#random.chance(0.5)) await stop(this.#broker)
  }

  async #step({ topics }: Broker): Promise<void> {
    const life = this.#live
    if (life === undefined) return this.#make(topics)
    const kind = this.#random.below(10)
    if (kind === 0) {
      life.endAskedAt = this.fs.journalLength
      await topics.delete(NAME)
      life.endedAt = this.fs.journalLength
    } else if (kind === 1) {
      await this.#clock.advance(600)
    } else if (kind === 2) {
      if (this.#broker !== undefined) await stop(this.#broker)
      this.#broker = await start(this.fs, this.#clock)
    } else if (kind === 3) {
      await topics.getPartition(NAME, 0).append(aBatch({ values: ['data'] }), 'durable')
    } else {
      await this.#use(topics, life, this.#random.below(PARTITIONS), kind === 4)
    }
  }

  async #make(topics: Topics): Promise<void> {
    const life: Life = {
      topicId: '',
      madeAt: Infinity,
      endAskedAt: Infinity,
      endedAt: Infinity,
      companions: Array.from({ length: PARTITIONS }, () => ({ appended: [], moves: [] })),
    }
    const { topicId } = await topics.create({ name: NAME, partitions: PARTITIONS })
    this.#lives.push({ ...life, topicId, madeAt: this.fs.journalLength })
  }

  async #use(topics: Topics, life: Life, index: number, isMove: boolean): Promise<void> {
    const kept = life.companions[index]
    const log = await topics.openCompanion(NAME, index)
    if (kept === undefined) return
    if (isMove) {
      const askedAt = this.fs.journalLength
      const move = { to: log.highWatermark, askedAt, answeredAt: Infinity }
      kept.moves.push(move)
      await log.advanceLogStart('end')
      move.answeredAt = this.fs.journalLength
      return
    }
    const value = `${life.topicId}-${index}-${this.#count++}`
    const { baseOffset } = await log.append(aBatch({ values: [value] }), 'durable')
    kept.appended.push({ value, offset: baseOffset, at: this.fs.journalLength })
  }

  async check(at: number): Promise<void> {
    const random = new SeededRandom(at + 1)
    let disk = random.chance(0.25) ? this.fs.killAt(at, random) : this.fs.crashAt(at, random)
    if (random.chance(0.3)) {
      await start(disk, this.#clock)
      disk = disk.crashAt(random.below(disk.journalLength + 1), random)
    }
    const broker = await start(disk, this.#clock)
    const { topics, store } = broker
    expect(topics.readOnly).toBeUndefined()
    const topic = topics.find(NAME)
    const life = this.#lives.find((one) => one.topicId === topic?.id)
    for (const one of this.#lives) {
      if (one.madeAt <= at && one.endAskedAt > at) expect(one).toBe(life)
      if (one.endedAt <= at) expect(one).not.toBe(life)
    }
    // What is there belongs to the topic of the name, and to no other.
    for (const id of await store.list()) {
      if (id.topic === NAME) expect(id.topicId).toBe(topic?.id)
    }
    // One whose making was under way at the end of the history is nobody's; nothing was ever kept beside it.
    if (life !== undefined) await this.#checkCompanions(topics, life, at)
    if (topic !== undefined) await topics.delete(NAME)
    await topics.create({ name: NAME, partitions: PARTITIONS })
    const anew = await topics.openCompanion(NAME, 0)
    expect([anew.logStartOffset, anew.highWatermark]).toEqual([0, 0])
    await anew.append(aBatch(), 'durable')
    await stop(broker)
    expect(disk.openFiles).toBe(0)
  }

  async #checkCompanions(topics: Topics, life: Life, at: number): Promise<void> {
    const present = topics.findCompanions().map(({ partition }) => partition)
    for (const [index, { appended, moves }] of life.companions.entries()) {
      const promised = appended.filter((one) => one.at <= at)
      if (promised.length > 0) expect(present).toContain(index)
      if (!present.includes(index)) continue
      const log = await topics.openCompanion(NAME, index)
      const answered = moves.filter((move) => move.answeredAt <= at).map((move) => move.to)
      const asked = moves.filter((move) => move.askedAt <= at).map((move) => move.to)
      expect(log.logStartOffset).toBeGreaterThanOrEqual(Math.max(0, ...answered))
      expect(log.logStartOffset).toBeLessThanOrEqual(Math.max(0, ...asked))
      const found = await readAll(log)
      for (const { value, offset } of promised) {
        if (toOffset(offset) >= log.logStartOffset) expect(found.get(offset)).toBe(value)
      }
      for (const value of found.values()) {
        expect(value.startsWith(`${life.topicId}-${index}-`)).toBe(true)
      }
    }
  }
}

describe('a power cut or a kill at any disk operation, with companions', () => {
  const replay = process.env['COMPANION_SEED']

  it('leaves each topic what was kept beside it, and none of another’s', async () => {
    const first = replay === undefined ? 1 : Number(replay)
    for (let seed = first; seed < first + (replay === undefined ? HISTORIES : 1); seed++) {
      const history = new History(seed)
      await history.run()
      const total = history.fs.journalLength
      const step = replay === undefined ? Math.max(1, Math.floor(total / POINTS)) : 1
      for (let at = seed % step; at <= total; at += step) {
        try {
          await history.check(at)
        } catch (error) {
          const why = error instanceof Error ? error.message : String(error)
          throw new Error(`COMPANION_SEED=${seed}, crash point ${at}: ${why}`, { cause: error })
        }
      }
    }
  })
})
