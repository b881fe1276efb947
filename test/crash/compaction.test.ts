import { describe, expect, it } from 'vitest'
import { SeededRandom } from '../../src/common/random.ts'
import type { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import type { SystemCode } from '../../src/fs/system-error.ts'
import { aBroker, compact, expectLatest, fill, logNames, over } from '../support/compacted-log.ts'
import { runCrashes } from '../support/crash-run.ts'
import { DiskBroker } from '../support/disk-broker.ts'
import { settle } from '../support/fake-clock.ts'

/** Beside the crash points of the other files: a topic that is compacted all the time. */
const POINTS = Math.ceil(Number(process.env['CRASH_POINTS'] ?? 50_000) / 6)

describe('a power cut or a kill at any disk operation, of compaction and of all else', () => {
  it('loses no record that compaction should keep, and brings none back', async () => {
    const report = await runCrashes(2_000_000, POINTS, { compact: true })
    expect(report.points).toBeGreaterThanOrEqual(POINTS)
    expect(report.doubleCrashes).toBeGreaterThan(report.points * 0.25)
    console.log(`crash points: ${JSON.stringify(report)}`)
  })
})

describe('every disk that a power cut in a compaction can leave', () => {
  /** Starts on it, and looks at all that there is. */
  async function check(fs: MemoryFileSystem, base: DiskBroker, where: string): Promise<void> {
    try {
      const after = new DiskBroker({ fs, config: base.config })
      await after.start()
      await expectLatest(after.log)
      expect((await after.log.stats()).damaged).toEqual([])
      expect((await logNames(after)).filter((name) => !name.endsWith('.log'))).toEqual([])
      await after.store.close()
    } catch (error) {
      throw new Error(`${where}: ${String(error)}`, { cause: error })
    }
  }

  it.each([
    ['right after the appends', false],
    ['with checkpoints of long before', true],
  ])('is a whole log: %s', async (_, isLate) => {
    const broker = await aBroker({ segmentBytes: 250 })
    if (isLate) {
      await fill(broker.log, 3)
      await broker.checkpoint()
      // Both slots go on to speak of the middle of the first segment.
      const slots = { operation: 'rename', path: /checkpoint/ } as const
      broker.fs.failNext(slots, 'ENOSPC', { times: Infinity })
    }
    await fill(broker.log, 40)
    await settle()
    broker.fs.clearFaults()
    const from = broker.fs.journalLength
    await compact(broker)
    const random = new SeededRandom(1)
    // Not all file systems keep the order of renames and removals.
    const options = { exhaustive: 7, samples: 32, names: 'independent' } as const
    let disks = 0
    for (let at = from; at <= broker.fs.journalLength; at++) {
      for (const fs of broker.fs.crashesAt(at, random, options)) {
        await check(fs, broker, `crash point ${at}`)
        disks++
      }
      await check(broker.fs.killAt(at, random), broker, `kill at ${at}`)
    }
    expect(disks).toBeGreaterThan(1000)
  })
})

describe('a fault at any operation of a compaction', () => {
  const replay = process.env['FAULT']?.split(':')

  it.each(['EIO', 'ENOSPC', 'EDQUOT', 'EMFILE', 'EROFS'] as const)(
    'costs nothing: %s',
    async (code) => {
      if (replay !== undefined && replay[0] !== code) return
      const base = await aBroker({ segmentBytes: 250 })
      await fill(base.log, 40)
      await base.checkpoint()
      let stops = 0
      let nth = Number(replay?.[1] ?? 1)
      for (; ; nth++) {
        try {
          const outcome = await runWithFault(base, code, nth)
          if (outcome === 'not reached') break
          if (outcome === 'stopped') stops++
        } catch (error) {
          throw new Error(`replay with FAULT=${code}:${nth}: ${String(error)}`, { cause: error })
        }
      }
      expect(nth).toBeGreaterThan(60)
      // Only a flush that others rely on stops the broker.
      expect(stops).toBeLessThan(nth / 2)
    },
  )

  async function runWithFault(
    base: DiskBroker,
    code: SystemCode,
    nth: number,
  ): Promise<'not reached' | 'stopped' | 'went on'> {
    const broker = new DiskBroker({ fs: base.fs.kill(), config: base.config })
    await broker.start()
    const before = broker.fs.operations
    broker.fs.failNext({ nth }, code)
    const outcome = await over(
      broker,
      broker.log.compact().then(
        () => 'done',
        (error: unknown) => (error as { code: string }).code,
      ),
    )
    const wasReached = broker.fs.operations - before >= nth
    broker.fs.clearFaults()
    if (outcome !== 'done') expect(outcome).toMatch(/STORAGE|READ_ONLY|TOO_MANY|FLUSH_FAILED/)
    await settle()
    // What is on the disk now is good for a start, however it ends.
    for (const fs of [broker.fs.kill(), broker.fs.crash(new SeededRandom(nth))]) {
      const after = new DiskBroker({ fs, config: base.config })
      await after.start()
      await expectLatest(after.log)
      await compact(after)
      await expectLatest(after.log)
      await after.store.close()
      expect(fs.openFiles).toBe(0)
    }
    const failed = { is: false }
    const watch = broker.store.failed.then(() => (failed.is = true))
    await broker.clock.advance(1000)
    if (failed.is) {
      await watch
      await broker.store.close()
      expect(broker.fs.openFiles).toBe(0)
      return 'stopped'
    }
    // It goes on, and the next round does what this one could not.
    await expectLatest(broker.log)
    await compact(broker)
    await expectLatest(broker.log)
    expect((await logNames(broker)).filter((name) => !name.endsWith('.log'))).toEqual([])
    expect((await broker.log.stats()).damaged).toEqual([])
    await fill(broker.log, 5)
    await broker.store.close()
    expect(broker.fs.openFiles).toBe(0)
    return wasReached ? 'went on' : 'not reached'
  }
})
