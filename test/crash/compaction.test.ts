import { describe, expect, it } from 'vitest'
import { runCrashes } from '../support/crash-run.ts'

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
