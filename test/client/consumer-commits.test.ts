import { describe, expect, it } from 'vitest'
import { OffsetCommitter } from '../../src/client/consumer-commits.ts'
import type { SessionCommit, SessionCommitFailure } from '../../src/client/group-session.ts'
import { MillraceError, text, topic } from '../../src/client/index.ts'
import { OwnedPartition } from '../../src/client/owned-partition.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'

const lines = topic('lines', { value: text })

describe('OffsetCommitter', () => {
  it('repeats a commit that failed after a seek back, until it is where the program was told', async () => {
    const clock = new FakeClock()
    const sent: number[] = []
    let failures: MillraceError[] = [new MillraceError('STORAGE_FULL', 'no room for a while')]
    const committer = new OffsetCommitter({
      clock,
      random: new SeededRandom(1),
      mode: 'manual',
      intervalMs: 5000,
      send: async (offsets: readonly SessionCommit[]) => {
        sent.push(...offsets.map(({ offset }) => offset))
        const refused: SessionCommitFailure[] = failures.map((error) => ({
          topic: 'lines',
          partition: 0,
          error,
        }))
        failures = []
        return refused
      },
      report: (error) => {
        throw error
      },
    })
    const owned = new OwnedPartition(lines, 'id', 0, 100, 100, 200)
    owned.state = 'owned'
    owned.restart(10)
    owned.tracker.begin(10, 20)
    owned.tracker.finish(10)
    const committing = committer.commitFinished([owned])
    await settle()
    expect(sent).toEqual([20])
    await clock.advance(10_000)
    await committing
    expect(sent).toEqual([20, 20])
    expect(owned.committed).toBe(20)
  })
})
