import { writeFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'

/**
 * Preloaded into the broker (`--import`): watches its event loop, and on SIGUSR2 writes what it saw since the last time to the file that
 * BENCH_LOOP_FILE names. A timer every 10 ms is all that it costs.
 */
const file = process.env['BENCH_LOOP_FILE']
if (file !== undefined) {
  const delay = monitorEventLoopDelay({ resolution: 10 })
  delay.enable()
  process.on('SIGUSR2', () => {
    const report = { p99Ms: delay.percentile(99) / 1e6, maxMs: delay.max / 1e6 }
    delay.reset()
    writeFileSync(file, `${JSON.stringify(report)}\n`)
  })
}
