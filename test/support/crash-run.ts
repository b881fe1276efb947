import { simulateCrashes } from './crash-simulator.ts'
import type { CrashOptions, CrashReport } from './crash-simulator.ts'

/** From one history at most this many crash points are taken, so that many different histories are seen. */
const POINTS_PER_HISTORY = 60

/**
 * Simulates histories from `firstSeed` on until `points` crash points have been checked. The environment variable CRASH_SEED replays one
 * history with all its points.
 * @throws Error with the seed at the first violation
 */
export async function runCrashes(
  firstSeed: number,
  points: number,
  options: CrashOptions = {},
): Promise<CrashReport> {
  const total: CrashReport = { points: 0, doubleCrashes: 0, kills: 0 }
  const replay = process.env['CRASH_SEED']
  for (let seed = firstSeed; total.points < points; seed++) {
    const used = replay === undefined ? seed : Number(replay)
    try {
      const report = await simulateCrashes(used, POINTS_PER_HISTORY, options)
      total.points += report.points
      total.doubleCrashes += report.doubleCrashes
      total.kills += report.kills
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      throw new Error(`seed ${used}, ${why}; replay with CRASH_SEED=${used}`, { cause: error })
    }
    if (replay !== undefined) break
  }
  return total
}
