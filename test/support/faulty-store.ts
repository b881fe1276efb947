import { BrokerError } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import type { LogConfig } from '../../src/log/log-config.ts'
import type { MemoryStore } from '../../src/log/memory/memory-store.ts'
import type { MemoryLog } from '../../src/log/memory/memory-log.ts'
import type {
  AppendOptions,
  AppendResult,
  FetchResult,
  LogStore,
  PartitionId,
  PartitionLog,
  StartReport,
} from '../../src/log/partition-log.ts'
import { partitionName } from '../../src/log/partition-name.ts'
import type { Acks } from '../../src/common/acks.ts'

/** A memory store that goes wrong where a test says so. Partitions are named as directories are: `orders-0`. */
export class FaultyStore implements LogStore {
  readonly inner: MemoryStore
  /** Opening these fails. */
  readonly unopenable: Map<string, BrokerError> = new Map()
  /** Removing these fails. */
  readonly unremovable: Set<string> = new Set()
  /** Reads inside `[start, end)` of these are SEGMENT_QUARANTINED. */
  readonly damaged: Map<string, { start: number; end: number }> = new Map()
  /** Called before each append to these; what it throws is the answer. */
  readonly beforeAppend: Map<string, () => void> = new Map()
  /** Has each append in its hand: it may fail it, before or after, or see its broker killed meanwhile. */
  aroundAppend: (
    name: string,
    append: () => Promise<AppendResult>,
    batch: Uint8Array,
  ) => Promise<AppendResult> = (_name, append) => append()
  /** Has each read in its hand. */
  aroundRead: (name: string, read: () => Promise<FetchResult>) => Promise<FetchResult> = (
    _name,
    read,
  ) => read()
  /** Called before each opening. */
  beforeOpen: (name: string) => Promise<void> = async () => undefined
  /** The most openings that were under way together. */
  mostOpening = 0
  readonly opened: string[] = []
  readonly removed: string[] = []
  #opening = 0

  constructor(inner: MemoryStore) {
    this.inner = inner
  }

  get incarnation(): number {
    return this.inner.incarnation
  }

  get clusterId(): string {
    return this.inner.clusterId
  }

  get failed(): Promise<Error> {
    return this.inner.failed
  }

  get storageFull(): boolean {
    return this.inner.storageFull
  }

  async open(id: PartitionId, config: LogConfig): Promise<PartitionLog> {
    const name = partitionName(id)
    this.#opening++
    this.mostOpening = Math.max(this.mostOpening, this.#opening)
    try {
      await this.beforeOpen(name)
      const failure = this.unopenable.get(name)
      if (failure !== undefined) throw failure
      this.opened.push(name)
      return new FaultyLog(this, name, await this.inner.open(id, config))
    } finally {
      this.#opening--
    }
  }

  async remove(id: PartitionId): Promise<void> {
    const name = partitionName(id)
    if (this.unremovable.has(name)) throw new BrokerError('STORAGE_ERROR', `${name} stays`)
    this.removed.push(name)
    await this.inner.remove(id)
  }

  async list(): Promise<readonly PartitionId[]> {
    return this.inner.list()
  }

  async ready(): Promise<StartReport> {
    return this.inner.ready()
  }

  async close(): Promise<void> {
    await this.inner.close()
  }
}

class FaultyLog implements PartitionLog {
  readonly #store: FaultyStore
  readonly #name: string
  readonly #log: MemoryLog
  readonly findOffsetByTimestamp: PartitionLog['findOffsetByTimestamp']
  readonly advanceLogStart: PartitionLog['advanceLogStart']
  readonly applyRetention: PartitionLog['applyRetention']
  readonly findCompactionNeed: PartitionLog['findCompactionNeed']
  readonly compact: PartitionLog['compact']
  readonly configure: PartitionLog['configure']
  readonly onAdvance: PartitionLog['onAdvance']
  readonly flush: PartitionLog['flush']
  readonly stats: PartitionLog['stats']
  readonly close: PartitionLog['close']

  constructor(store: FaultyStore, name: string, log: MemoryLog) {
    this.#store = store
    this.#name = name
    this.#log = log
    this.findOffsetByTimestamp = (timestampMs) => log.findOffsetByTimestamp(timestampMs)
    this.advanceLogStart = (to) => log.advanceLogStart(to)
    this.applyRetention = (hold) => log.applyRetention(hold)
    this.findCompactionNeed = () => log.findCompactionNeed()
    this.compact = (signal) => log.compact(signal)
    this.configure = (config) => log.configure(config)
    this.onAdvance = (listener) => log.onAdvance(listener)
    this.flush = () => log.flush()
    this.stats = () => log.stats()
    this.close = () => log.close()
  }

  get logStartOffset(): PartitionLog['logStartOffset'] {
    return this.#log.logStartOffset
  }

  get highWatermark(): PartitionLog['highWatermark'] {
    return this.#log.highWatermark
  }

  get writtenEndOffset(): PartitionLog['writtenEndOffset'] {
    return this.#log.writtenEndOffset
  }

  get logEndOffset(): PartitionLog['logEndOffset'] {
    return this.#log.logEndOffset
  }

  get leaderEpoch(): number {
    return this.#log.leaderEpoch
  }

  append(batch: Uint8Array, acks: Acks, options?: AppendOptions): Promise<AppendResult> {
    try {
      this.#store.beforeAppend.get(this.#name)?.()
    } catch (error) {
      return Promise.reject(error instanceof Error ? error : new Error(String(error)))
    }
    const write = (): Promise<AppendResult> => this.#log.append(batch, acks, options)
    return this.#store.aroundAppend(this.#name, write, batch)
  }

  read(...place: Parameters<PartitionLog['read']>): Promise<FetchResult> {
    return this.#store.aroundRead(this.#name, () => this.#read(...place))
  }

  async #read(
    ...[from, maxBytes, isolation]: Parameters<PartitionLog['read']>
  ): Promise<FetchResult> {
    const damage = this.#store.damaged.get(this.#name)
    if (damage === undefined || from >= damage.end) {
      return this.#log.read(from, maxBytes, isolation)
    }
    if (from >= damage.start) {
      const message = `${this.#name} is damaged from ${damage.start} to ${damage.end}`
      throw new BrokerError('SEGMENT_QUARANTINED', message, { nextOffset: damage.end })
    }
    // One batch at a time, so that a read stops short of the damage.
    const found = await this.#log.read(from, 1, isolation)
    return { ...found, nextOffset: toOffset(Math.min(found.nextOffset, damage.start)) }
  }
}
