import { sleep } from '../../common/clock.ts'
import type { Clock } from '../../common/clock.ts'
import type { DiskLog } from './disk-log.ts'
import type { DiskLogger } from './disk-environment.ts'

const PAUSE_BETWEEN_ROUNDS_MS = 60_000

/** Re-reads sealed segments in the background, slowly, and compares them with their seals (CONTRACT §3, step 12). */
export class Scrubber {
  readonly #clock: Clock
  readonly #logger: DiskLogger
  readonly #bytesPerSecond: number
  readonly #stop = new AbortController()
  #running: Promise<void> | undefined

  constructor(clock: Clock, logger: DiskLogger, bytesPerSecond: number) {
    this.#clock = clock
    this.#logger = logger
    this.#bytesPerSecond = bytesPerSecond
  }

  /** Goes over the logs that `list` gives, again and again. */
  start(list: () => readonly DiskLog[]): void {
    if (this.#bytesPerSecond > 0) this.#running = this.#run(list)
  }

  async #run(list: () => readonly DiskLog[]): Promise<void> {
    const { signal } = this.#stop
    const pause = (bytes: number): Promise<void> =>
      sleep(this.#clock, (bytes / this.#bytesPerSecond) * 1000, signal)
    for (;;) {
      await sleep(this.#clock, PAUSE_BETWEEN_ROUNDS_MS, signal)
      for (const log of list()) {
        if (signal.aborted) return
        try {
          await log.scrub(async (bytes) => {
            await pause(bytes)
            return !signal.aborted
          })
        } catch (error) {
          this.#logger.warn({ partition: log.name, err: error }, 'a segment could not be scrubbed')
        }
      }
      if (signal.aborted) return
    }
  }

  async close(): Promise<void> {
    this.#stop.abort()
    await this.#running
  }
}
