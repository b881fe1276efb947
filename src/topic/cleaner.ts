import type { CancelTimer, Clock } from '../common/clock.ts'
import { toBrokerError } from '../common/errors.ts'
import { formatBytes, SECOND_MS } from '../common/units.ts'
import type { CompactionNeed } from '../log/partition-log.ts'
import type { Partition } from './partition.ts'

/** Kafka's log.cleaner.backoff.ms: between two looks when there was nothing to do. */
const LOOK_MS: number = 15 * SECOND_MS

export interface CleanerOptions {
  readonly clock: Clock
  readonly logger: {
    info(details: object, message: string): void
    warn(details: object, message: string): void
  }
  /** The partitions as they are now. */
  readonly list: () => Iterable<Partition>
}

/**
 * Compacts the partitions that ask for it, one at a time in the whole broker, so that one bound on memory and one on the event loop's time holds
 * for all; the one with the largest share of new bytes first. A look at partitions that have nothing to do costs no I/O.
 */
export class Cleaner {
  readonly #clock: Clock
  readonly #logger: CleanerOptions['logger']
  readonly #list: () => Iterable<Partition>
  readonly #stop = new AbortController()
  #cancel: CancelTimer | undefined
  #running: Promise<void> | undefined

  constructor(options: CleanerOptions) {
    this.#clock = options.clock
    this.#logger = options.logger
    this.#list = options.list
  }

  start(): void {
    if (this.#stop.signal.aborted) return
    this.#cancel = this.#clock.schedule(LOOK_MS, () => {
      this.#running = this.#clean().finally(() => {
        this.#running = undefined
        this.start()
      })
    })
  }

  /** Stops the round that is under way, and waits for that. */
  async close(): Promise<void> {
    this.#stop.abort()
    this.#cancel?.()
    await this.#running
  }

  /** Rounds, until no partition needs one. Never rejects. */
  async #clean(): Promise<void> {
    // One that has failed waits for the next look; what it says of itself may not have changed.
    const done = new Set<Partition>()
    while (!this.#stop.signal.aborted) {
      const next = await this.#findDirtiest(done)
      if (next === undefined) return
      if (!(await this.#compact(next.partition, next.need))) done.add(next.partition)
    }
  }

  async #findDirtiest(
    done: ReadonlySet<Partition>,
  ): Promise<{ readonly partition: Partition; readonly need: CompactionNeed } | undefined> {
    let found: { readonly partition: Partition; readonly need: CompactionNeed } | undefined
    for (const partition of this.#list()) {
      if (partition.config.cleanupPolicy === 'delete' || done.has(partition)) continue
      const need = await this.#findNeed(partition)
      if (need === undefined) continue
      if (found === undefined || need.dirtyRatio > found.need.dirtyRatio)
        found = { partition, need }
    }
    return found
  }

  async #findNeed(partition: Partition): Promise<CompactionNeed | undefined> {
    try {
      return await partition.findCompactionNeed()
    } catch (error) {
      this.#report(partition, error)
      return undefined
    }
  }

  /** True when it has got anywhere. */
  async #compact(partition: Partition, need: CompactionNeed): Promise<boolean> {
    try {
      const report = await partition.compact(this.#stop.signal)
      this.#logger.info(
        {
          topic: partition.topic,
          partition: partition.index,
          dirty: formatBytes(need.dirtyBytes),
          before: formatBytes(report.bytesBefore),
          after: formatBytes(report.bytesAfter),
          segments: [report.segmentsBefore, report.segmentsAfter],
          recordsRemoved: report.recordsRemoved,
          tombstonesRemoved: report.tombstonesRemoved,
          cleanedTo: report.cleanedTo,
          segmentsSkipped: report.segmentsSkipped,
          elapsedMs: Math.round(report.elapsedMs),
        },
        'partition compacted',
      )
      return report.segmentsBefore > 0 && report.segmentsSkipped === 0
    } catch (error) {
      this.#report(partition, error)
      return false
    }
  }

  #report(partition: Partition, error: unknown): void {
    // A topic that has been deleted or closed meanwhile has nothing to compact.
    if (partition.failure !== undefined || this.#stop.signal.aborted) return
    const { code, message } = toBrokerError(error)
    this.#logger.warn(
      { topic: partition.topic, partition: partition.index, code, cause: message },
      'partition could not be compacted',
    )
  }
}
