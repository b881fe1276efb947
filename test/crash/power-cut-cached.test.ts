import { describe, expect, it } from 'vitest'
import { runCrashes } from '../support/crash-run.ts'

const POINTS = Number(process.env['CRASH_POINTS'] ?? 50_000)

describe('a power cut or a kill at any disk operation, on a file system without O_DIRECT', () => {
  it('loses nothing that was promised', async () => {
    const report = await runCrashes(1_000_000, POINTS / 2, { uncached: false })
    expect(report.points).toBeGreaterThanOrEqual(POINTS / 2)
    expect(report.doubleCrashes).toBeGreaterThan(report.points * 0.25)
    console.log(`crash points: ${JSON.stringify(report)}`)
  })
})
