import type { CliIo } from './io.ts'
import { formatBytes } from '../common/units.ts'

const INTERVAL_MS = 200

/** One line on stderr that is written over while long work goes on, on a terminal only. */
export class ProgressLine {
  readonly #io: CliIo
  readonly #timer: NodeJS.Timeout | undefined
  #shown = false

  /** `describe` is asked a few times a second. `enabled` is for commands whose records go to the same terminal. */
  constructor(io: CliIo, describe: () => string, enabled = true) {
    this.#io = io
    if (!enabled || io.stderr.isTTY !== true) return
    this.#timer = setInterval(() => {
      this.#shown = true
      io.stderr.write(`\r\u001b[2K${describe()}`)
    }, INTERVAL_MS)
    this.#timer.unref()
  }

  /** Takes the line away. */
  end(): void {
    clearInterval(this.#timer)
    if (this.#shown) this.#io.stderr.write('\r\u001b[2K')
    this.#shown = false
  }
}

export function formatCount(count: number): string {
  return count.toLocaleString('en-US')
}

/** `1,200 records, 117.2KiB in 0.4 s (292.9KiB/s)` */
export function summarize(records: number, bytes: number, elapsedMs: number): string {
  const seconds = elapsedMs / 1000
  const noun = records === 1 ? 'record' : 'records'
  const rate = seconds > 0.05 ? ` (${formatBytes(Math.round(bytes / seconds))}/s)` : ''
  return `${formatCount(records)} ${noun}, ${formatBytes(bytes)} in ${seconds.toFixed(1)} s${rate}`
}
