import type { Clock } from '../../common/clock.ts'
import type { BrokerError } from '../../common/errors.ts'
import type { Topics } from '../../topic/topics.ts'
import { CompanionLog, type QueueLogger } from './companion.ts'

export interface CompanionsOptions {
  readonly topics: Topics
  readonly clock: Clock
  readonly logger: QueueLogger
  /** See `CompanionOptions.lingerMs`. */
  readonly lingerMs?: number | undefined
}

/** The companion logs that are open, one for each data partition that queue groups work through. */
export class Companions {
  readonly #topics: Topics
  readonly #clock: Clock
  readonly #logger: QueueLogger
  readonly #lingerMs: number | undefined
  readonly #open = new Map<
    string,
    { readonly topicId: string; readonly log: Promise<CompanionLog> }
  >()
  readonly #listeners = new Set<(failed: CompanionLog, error: BrokerError) => void>()

  constructor(options: CompanionsOptions) {
    this.#topics = options.topics
    this.#clock = options.clock
    this.#logger = options.logger
    this.#lingerMs = options.lingerMs
  }

  /** Calls `listener` when a companion cannot be written any more: {@link open} then loads it anew. */
  onFailed(listener: (failed: CompanionLog, error: BrokerError) => void): void {
    this.#listeners.add(listener)
  }

  /** The same one for everybody who asks. @throws BrokerError (as rejection) UNKNOWN_TOPIC, UNKNOWN_PARTITION, READ_ONLY; what loading it throws */
  async open(topic: string, partition: number): Promise<CompanionLog> {
    const { topicId } = this.#topics.getPartition(topic, partition)
    const key = `${topic}/${partition}`
    const known = this.#open.get(key)
    if (known !== undefined && known.topicId === topicId) return known.log
    const log = this.#load(key, topic, partition, topicId)
    this.#open.set(key, { topicId, log })
    try {
      return await log
    } catch (error) {
      if (this.#open.get(key)?.log === log) this.#open.delete(key)
      throw error
    }
  }

  async #load(key: string, topic: string, index: number, topicId: string): Promise<CompanionLog> {
    const partition = await this.#topics.openCompanion(topic, index)
    const log: CompanionLog = await CompanionLog.open({
      partition,
      clock: this.#clock,
      logger: this.#logger,
      lingerMs: this.#lingerMs,
      onFailed: (error) => {
        // The topic may have been made anew since: another one is open under its name then.
        if (this.#open.get(key)?.topicId === topicId) this.#open.delete(key)
        for (const listener of this.#listeners) listener(log, error)
      },
    })
    return log
  }

  /** Lets go of those whose topic is gone. */
  forgetDeleted(): void {
    for (const [key, { topicId, log }] of this.#open) {
      if (this.#topics.find(key.slice(0, key.lastIndexOf('/')))?.id === topicId) continue
      this.#open.delete(key)
      // What did not load has been told to whoever opened it; closing throws nothing.
      log.then(
        (one) => one.close(),
        () => undefined,
      )
    }
  }

  /** Waits for what has been written. */
  async close(): Promise<void> {
    const open = await Promise.allSettled([...this.#open.values()].map(({ log }) => log))
    this.#open.clear()
    for (const one of open) if (one.status === 'fulfilled') await one.value.close()
  }
}
