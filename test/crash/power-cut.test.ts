import { describe, expect, it } from 'vitest'
import { runCrashes } from '../support/crash-run.ts'

/** All crash points of a run: half of them here, half in the file for file systems without O_DIRECT. */
const POINTS = Number(process.env['CRASH_POINTS'] ?? 50_000)

describe('a power cut or a kill at any disk operation, with O_DIRECT at hand', () => {
  it('loses nothing that was promised', async () => {
    const report = await runCrashes(1, POINTS / 2)
    expect(report.points).toBeGreaterThanOrEqual(POINTS / 2)
    expect(report.doubleCrashes).toBeGreaterThan(report.points * 0.25)
    console.log(`crash points: ${JSON.stringify(report)}`)
  })
})
