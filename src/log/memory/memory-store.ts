import type { Clock } from '../../common/clock.ts'
import { BrokerError } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import { newUuid } from '../../common/random.ts'
import type { Random } from '../../common/random.ts'
import type { LogConfig } from '../log-config.ts'
import type { LogStore, PartitionId, StartReport } from '../partition-log.ts'
import { partitionName } from '../partition-name.ts'
import { BatchList } from './batch-list.ts'
import { MemoryLog } from './memory-log.ts'
import type { MemoryLogData } from './memory-log.ts'

export interface MemoryStoreOptions {
  readonly clock: Clock
  readonly random: Random
  /** How long after an append it is durable, on `clock`. 0, the default: in the next microtask. */
  readonly durableDelayMs?: number
  /** 1 by default. */
  readonly incarnation?: number
}

/** Logs in memory. Closing a log keeps its records, so that it can be opened again; `restart` is a new process on what was durable. */
export class MemoryStore implements LogStore {
  readonly incarnation: number
  readonly clock: Clock
  readonly durableDelayMs: number
  readonly failed: Promise<Error>
  /** Set by tests: appends are STORAGE_FULL while it is true, but those of companions. */
  storageFull = false
  readonly #random: Random
  readonly #data = new Map<string, MemoryLogData>()
  readonly #logs = new Map<string, MemoryLog>()
  #clusterId: string
  #startedAtMs: number
  #isClosed = false
  #reportFailure: (cause: Error) => void = () => undefined

  constructor(options: MemoryStoreOptions) {
    this.clock = options.clock
    this.durableDelayMs = options.durableDelayMs ?? 0
    this.incarnation = options.incarnation ?? 1
    this.#random = options.random
    this.#clusterId = newUuid(options.random)
    this.#startedAtMs = options.clock.monotonicMs()
    this.failed = new Promise((resolve) => {
      this.#reportFailure = resolve
    })
  }

  get clusterId(): string {
    return this.#clusterId
  }

  /** A flush has failed: `failed` resolves. For the store's own logs. */
  fail(cause: Error): void {
    this.#reportFailure(cause)
  }

  async open(id: PartitionId, config: LogConfig): Promise<MemoryLog> {
    const key = partitionName(id)
    // A log that is being closed or removed comes first; then everything happens without a door in between.
    for (let log = this.#logs.get(key); log?.isClosing === true; log = this.#logs.get(key)) {
      await log.close()
      if (this.#logs.get(key) === log) this.#logs.delete(key)
    }
    this.#checkOpen()
    const data = this.#data.get(key) ?? this.#make(key, id)
    if (data.id.topicId !== id.topicId) {
      throw new BrokerError(
        'STORAGE_ERROR',
        `${key} belongs to topic id ${data.id.topicId}, not ${id.topicId}`,
        { topic: id.topic, partition: id.partition, topicId: data.id.topicId },
      )
    }
    const open = this.#logs.get(key)
    if (open !== undefined) return open
    const log = new MemoryLog(this, data, config)
    this.#logs.set(key, log)
    return log
  }

  #make(key: string, id: PartitionId): MemoryLogData {
    const start = toOffset(0)
    const data: MemoryLogData = {
      id: { ...id },
      batches: new BatchList(start),
      logStartOffset: start,
      durableEnd: start,
      producers: undefined,
      cleanedTo: start,
      tombstonesDueMs: -1,
    }
    this.#data.set(key, data)
    return data
  }

  async remove(id: PartitionId): Promise<void> {
    this.#checkOpen()
    const key = partitionName(id)
    const data = this.#data.get(key)
    if (data === undefined || data.id.topicId !== id.topicId) return
    await this.#logs.get(key)?.close()
    // Somebody may have removed it and made it anew while this waited.
    if (this.#data.get(key) !== data) return
    this.#logs.delete(key)
    this.#data.delete(key)
  }

  async list(): Promise<readonly PartitionId[]> {
    return [...this.#data.values()].map((data) => data.id)
  }

  async ready(): Promise<StartReport> {
    return {
      clean: true,
      incarnation: this.incarnation,
      partitions: [...this.#data.values()].filter(({ id }) => id.companion === undefined).length,
      elapsedMs: this.clock.monotonicMs() - this.#startedAtMs,
      scannedBytes: 0,
      scannedBatches: 0,
      tornBytes: 0,
      damagedRanges: 0,
    }
  }

  async close(): Promise<void> {
    this.#isClosed = true
    await Promise.all([...this.#logs.values()].map((log) => log.close()))
  }

  /** The store as a process finds it that starts after this one was killed: one incarnation up, everything that was not durable gone. */
  restart(): MemoryStore {
    const next = new MemoryStore({
      clock: this.clock,
      random: this.#random,
      durableDelayMs: this.durableDelayMs,
      incarnation: this.incarnation + 1,
    })
    next.#clusterId = this.#clusterId
    for (const [key, data] of this.#data) {
      next.#data.set(key, { ...data, batches: data.batches.clone(data.durableEnd) })
    }
    return next
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new BrokerError('CLOSED', 'the store is closed')
  }
}
