import { describe, expect, it } from 'vitest'
import { SeededRandom } from '../../src/common/random.ts'
import { SendCoordinator } from '../../src/coordination/delayed/send-coordinator.ts'
import { LocalPeer } from '../../src/coordination/local-peer.ts'
import { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import type { DiskStore } from '../../src/log/disk/disk-store.ts'
import { Topics } from '../../src/topic/topics.ts'
import { entriesOf } from '../support/batches.ts'
import { openDiskStore } from '../support/disk-harness.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { aSend } from '../support/send-bench.ts'

const RECORDS = 12

/** A broker's part that delays, on a simulated disk. */
class Life {
  readonly clock: FakeClock
  readonly fs: MemoryFileSystem
  readonly #random: SeededRandom
  store: DiskStore | undefined
  topics: Topics | undefined
  sends: SendCoordinator | undefined

  constructor(fs: MemoryFileSystem, clock: FakeClock, seed: number) {
    this.fs = fs
    this.clock = clock
    this.#random = new SeededRandom(seed)
  }

  async start(): Promise<SendCoordinator> {
    const { clock, fs } = this
    const random = this.#random
    const store = await openDiskStore({ fs, clock, options: { cacheBytes: 0 } })
    this.store = store
    const topics = await Topics.open({ store, clock, random })
    this.topics = topics
    await store.ready()
    const peer = new LocalPeer({ topics, clock })
    const options = { partitions: 2 }
    this.sends = await SendCoordinator.open({ topics, peer, clock, random, options })
    await this.sends.loaded()
    return this.sends
  }

  async values(): Promise<string[]> {
    const values: string[] = []
    for (const partition of this.topics?.get('orders').partitions ?? []) {
      const { chunks } = await partition.read(partition.logStartOffset, 1e6)
      for (const { value } of entriesOf(chunks)) values.push(value ?? '')
    }
    return values.sort()
  }

  async end(): Promise<void> {
    await this.sends?.close()
    await this.topics?.close()
    await this.store?.close()
  }
}

describe('delayed records on a disk that loses power', () => {
  it('are each appended exactly once, wherever the power goes', async () => {
    const life = new Life(new MemoryFileSystem({ strictSync: true }), new FakeClock(), 1)
    const sends = await life.start()
    await life.topics?.create({ name: 'orders', partitions: 2 })
    const startMs = life.clock.wallMs()
    /** How long the journal was when the record's answer came. */
    const acceptedAt = new Map<string, number>()
    for (let i = 0; i < RECORDS; i++) {
      const value = `v${String(i).padStart(2, '0')}`
      const deliverAtMs = startMs + 1000 + Math.floor(i / 4) * 10
      const [result] = await sends.send('orders', [
        aSend({ value: Buffer.from(value), partition: i % 2, deliverAtMs }),
      ])
      expect(result?.error).toBeUndefined()
      acceptedAt.set(value, life.fs.journalLength)
    }
    await life.clock.advance(3000)
    expect(await life.values()).toEqual([...acceptedAt.keys()])
    const firstPoint = Math.min(...acceptedAt.values())
    let points = 0
    for (let index = firstPoint - 4; index <= life.fs.journalLength; index++) {
      for (const isPowerCut of [true, false]) {
        const random = new SeededRandom(index)
        const clock = new FakeClock(startMs + 2000)
        const fs = isPowerCut ? life.fs.crashAt(index, random) : life.fs.killAt(index, random)
        const next = new Life(fs, clock, index)
        await next.start()
        await clock.advance(20_000)
        const values = await next.values()
        expect([index, isPowerCut, values]).toEqual([index, isPowerCut, [...new Set(values)]])
        for (const [value, at] of acceptedAt) {
          if (at <= index)
            expect([index, isPowerCut, values]).toContainEqual(expect.arrayContaining([value]))
        }
        expect(await next.sends?.countDelayed('')).toBe(0)
        await next.end()
        points++
      }
    }
    expect(points).toBeGreaterThan(100)
    await life.end()
  })
})
