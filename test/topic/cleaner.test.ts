import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import type { CompactionNeed, CompactionReport } from '../../src/log/partition-log.ts'
import { Cleaner } from '../../src/topic/cleaner.ts'
import type { Partition } from '../../src/topic/partition.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'

const LOOK_MS = 15_000

interface FakePartition {
  readonly name: string
  need: number | undefined
  policy: string
  failure?: Error | undefined
  fails?: BrokerError | undefined
  release?: (() => void) | undefined
}

/** Partitions that say what they need, and what was done to them. */
function aBench(partitions: FakePartition[]): {
  readonly clock: FakeClock
  readonly cleaner: Cleaner
  readonly done: string[]
  readonly asked: string[]
  readonly lines: string[]
} {
  const clock = new FakeClock()
  const [done, asked, lines]: string[][] = [[], [], []]
  const report: CompactionReport = {
    bytesBefore: 10,
    bytesAfter: 5,
    segmentsBefore: 2,
    segmentsAfter: 1,
    recordsRemoved: 3,
    tombstonesRemoved: 0,
    cleanedTo: toOffset(9),
    segmentsSkipped: 0,
    elapsedMs: 1,
  }
  const list = partitions.map((fake) => ({
    topic: fake.name,
    index: 0,
    get config() {
      return { cleanupPolicy: fake.policy }
    },
    get failure() {
      return fake.failure
    },
    async findCompactionNeed(): Promise<CompactionNeed | undefined> {
      asked?.push(fake.name)
      const { need } = fake
      return need === undefined ? undefined : { dirtyRatio: need, dirtyBytes: 1, totalBytes: 2 }
    },
    async compact(signal: AbortSignal): Promise<CompactionReport> {
      done?.push(`${fake.name} begins`)
      if (fake.fails !== undefined) throw fake.fails
      if (fake.release !== undefined) {
        await new Promise<void>((resolve) => {
          fake.release = resolve
          signal.addEventListener('abort', () => resolve())
        })
      }
      if (signal.aborted) throw new BrokerError('CLOSED', 'stopped')
      done?.push(`${fake.name} ends`)
      fake.need = undefined
      return report
    },
  }))
  const log = (_: object, message: string): void => {
    lines?.push(message)
  }
  const cleaner = new Cleaner({
    clock,
    logger: { info: log, warn: log },
    list: () => list as unknown as Partition[], // Only these members are used.
  })
  cleaner.start()
  return { clock, cleaner, done: done ?? [], asked: asked ?? [], lines: lines ?? [] }
}

describe('the cleaner', () => {
  it('compacts one partition at a time, the dirtiest first', async () => {
    const { clock, done, lines } = aBench([
      { name: 'a', need: 0.6, policy: 'compact' },
      { name: 'b', need: 0.9, policy: 'compact,delete' },
      { name: 'c', need: undefined, policy: 'compact' },
      { name: 'd', need: 0.7, policy: 'compact' },
    ])
    await clock.advance(LOOK_MS - 1)
    expect(done).toEqual([])
    await clock.advance(1)
    expect(done).toEqual(['b begins', 'b ends', 'd begins', 'd ends', 'a begins', 'a ends'])
    expect(lines).toEqual(['partition compacted', 'partition compacted', 'partition compacted'])
  })

  it('does not even ask those that are not compacted', async () => {
    const { clock, asked } = aBench([
      { name: 'a', need: 0.6, policy: 'delete' },
      { name: 'b', need: undefined, policy: 'compact' },
    ])
    await clock.advance(2 * LOOK_MS)
    expect(asked).toEqual(['b', 'b'])
  })

  it('goes on with the others when one fails, and comes back to it at the next look', async () => {
    const full = new BrokerError('STORAGE_FULL', 'no space')
    const a: FakePartition = { name: 'a', need: 0.9, policy: 'compact', fails: full }
    const { clock, done, lines } = aBench([a, { name: 'b', need: 0.5, policy: 'compact' }])
    await clock.advance(LOOK_MS)
    expect(done).toEqual(['a begins', 'b begins', 'b ends'])
    expect(lines).toEqual(['partition could not be compacted', 'partition compacted'])
    a.fails = undefined
    await clock.advance(LOOK_MS)
    expect(done.slice(3)).toEqual(['a begins', 'a ends'])
  })

  it('says nothing of a topic that has been deleted under it', async () => {
    const closed = new BrokerError('CLOSED', 'closed')
    const fake: FakePartition = { name: 'a', need: 0.9, policy: 'compact', fails: closed }
    fake.failure = new Error('deleted')
    const { clock, lines } = aBench([fake])
    await clock.advance(LOOK_MS)
    expect(lines).toEqual([])
  })

  it('stops what is under way when it is closed, and does not come back', async () => {
    const { clock, cleaner, done, lines } = aBench([
      { name: 'a', need: 0.9, policy: 'compact', release: () => {} },
      { name: 'b', need: 0.5, policy: 'compact' },
    ])
    await clock.advance(LOOK_MS)
    expect(done).toEqual(['a begins'])
    await cleaner.close()
    await settle()
    expect(done).toEqual(['a begins'])
    expect(lines).toEqual([])
    expect(clock.pendingTimers).toBe(0)
  })
})
