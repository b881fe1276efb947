import type { Clock } from '../../common/clock.ts'
import type { Random } from '../../common/random.ts'
import { KeyHash } from '../../log/key-hash.ts'
import type { Partition } from '../../topic/partition.ts'
import type { Topics } from '../../topic/topics.ts'
import type { DelayTarget } from '../delayed/delay-record.ts'
import { readWindow } from './dedupe-window.ts'
import { IdTable } from './id-table.ts'

export interface DedupeLogger {
  warn(details: object, message: string): void
}

/** Where the record is that has the id. */
export interface IdPlace {
  /** True: it waits, and `offset` is one in `__delayed`. */
  readonly waiting: boolean
  readonly offset: number
  readonly acceptedMs: number
  readonly checksum: number
}

/** Ids of one target partition. */
interface PartitionIds {
  readonly topic: string
  readonly topicId: string
  /** Of records that wait: these never expire. */
  readonly waiting: IdTable
  /** Of records in the log, accepted since the last turn of generations, and in the one before. */
  current: IdTable
  previous: IdTable
  turnedMs: number
  /** Set when the window has been read from the log. */
  isRead: boolean
  reading: Promise<void> | undefined
}

/** Ids that a topic remembers beside those that wait; beyond, the oldest generation goes early (SEMANTICS §3.15). */
export const MOST_IDS_PER_TOPIC = 1_000_000

/**
 * Dedupe ids that are in use, by target partition: in typed arrays, under a 128-bit hash of the id with a secret of this process. An id is in use for
 * `dedupe.window.ms` from the acceptance of its record, and for as long as that waits. The window of a partition is read from its log when it is
 * first asked for; ids that wait are told by who reads `__delayed`.
 */
export class DedupeRegistry {
  readonly #topics: Topics
  readonly #clock: Clock
  readonly #logger: DedupeLogger
  readonly #hash: KeyHash
  readonly #mostIds: number
  readonly #partitions = new Map<string, PartitionIds>()
  readonly #shrunk = new Set<string>()
  readonly #stopListening: () => void

  constructor(options: {
    readonly topics: Topics
    readonly clock: Clock
    readonly random: Random
    readonly logger: DedupeLogger
    readonly mostIdsPerTopic?: number | undefined
  }) {
    this.#topics = options.topics
    this.#clock = options.clock
    this.#logger = options.logger
    this.#hash = new KeyHash(options.random.bytes(16))
    this.#mostIds = options.mostIdsPerTopic ?? MOST_IDS_PER_TOPIC
    this.#stopListening = options.topics.onChange(() => this.#forgetDeleted())
  }

  close(): void {
    this.#stopListening()
  }

  /**
   * Resolves when the ids of the partition are known. At once but the first time.
   * @throws BrokerError (as rejection) what reading the log throws
   */
  async ready(partition: Partition): Promise<void> {
    const ids = this.#idsOf(partition.topic, partition.topicId, partition.index)
    if (ids.isRead) return
    ids.reading ??= this.#read(partition, ids).finally(() => {
      ids.reading = undefined
    })
    await ids.reading
  }

  async #read(partition: Partition, ids: PartitionIds): Promise<void> {
    const nowMs = this.#clock.wallMs()
    const sinceMs = nowMs - partition.config.dedupeWindowMs
    await readWindow(partition, sinceMs, ({ dedupeId, offset, acceptedMs, checksum }) => {
      const hash = this.#hashOf(dedupeId)
      // Several records may have one id: the window was over in between. What was said meanwhile is newer than all of them.
      if (ids.current.find(hash) && ids.current.acceptedMs >= acceptedMs) return
      this.#insert(ids, hash, offset, acceptedMs, checksum)
    })
    ids.isRead = true
  }

  /** Where the record with this id is, if the id is in use. After {@link ready}. */
  find(partition: Partition, dedupeId: string): IdPlace | undefined {
    const ids = this.#idsOf(partition.topic, partition.topicId, partition.index)
    const hash = this.#hashOf(dedupeId)
    if (ids.waiting.find(hash)) return toPlace(ids.waiting, true)
    const nowMs = this.#clock.wallMs()
    for (const table of [ids.current, ids.previous]) {
      if (!table.find(hash)) continue
      // The newest counts: older ones are over too.
      const isOver = table.acceptedMs + partition.config.dedupeWindowMs <= nowMs
      return isOver ? undefined : toPlace(table, false)
    }
    return undefined
  }

  /** A record with this id has been appended to its topic. */
  appended(
    partition: Partition,
    dedupeId: string,
    record: { readonly offset: number; readonly acceptedMs: number; readonly checksum: number },
  ): void {
    const ids = this.#idsOf(partition.topic, partition.topicId, partition.index)
    const windowMs = partition.config.dedupeWindowMs
    this.#turn(ids, windowMs)
    const { offset, acceptedMs, checksum } = record
    this.#insert(ids, this.#hashOf(dedupeId), offset, acceptedMs, checksum)
  }

  /** A record with this id waits at `offset` of its partition of `__delayed`. */
  waits(
    target: DelayTarget,
    dedupeId: string,
    record: { readonly offset: number; readonly acceptedMs: number; readonly checksum: number },
  ): void {
    const ids = this.#idsOf(target.topic, target.topicId, target.partition)
    ids.waiting.set(this.#hashOf(dedupeId), record.offset, record.acceptedMs, record.checksum)
  }

  /** It does not wait any more: its id is free, unless {@link fired} is told. */
  ended(target: DelayTarget, dedupeId: string, offset: number): void {
    const ids = this.#partitions.get(keyOf(target.topicId, target.partition))
    if (ids === undefined) return
    const hash = this.#hashOf(dedupeId)
    // It may have been moved, or the id used again.
    if (ids.waiting.find(hash) && ids.waiting.place === offset) ids.waiting.delete(hash)
  }

  /** It has been appended at `newOffset`: the id stays in use for what is left of its window, counted from its acceptance. */
  fired(
    target: DelayTarget,
    dedupeId: string,
    offset: number,
    record: { readonly offset: number; readonly acceptedMs: number; readonly checksum: number },
  ): void {
    this.ended(target, dedupeId, offset)
    const partition = this.#topics.find(target.topic)?.partitions[target.partition]
    if (partition?.topicId !== target.topicId) return
    if (record.acceptedMs + partition.config.dedupeWindowMs <= this.#clock.wallMs()) return
    this.appended(partition, dedupeId, record)
  }

  /** Ids that are remembered of a topic, beside those that wait. */
  countOf(topicId: string): number {
    let count = 0
    for (const ids of this.#partitions.values()) {
      if (ids.topicId === topicId) count += ids.current.size + ids.previous.size
    }
    return count
  }

  #insert(
    ids: PartitionIds,
    hash: Uint32Array,
    offset: number,
    acceptedMs: number,
    checksum: number,
  ): void {
    ids.current.set(hash, offset, acceptedMs, checksum)
    // So that there are two generations when there are too many, and half of them can stay.
    if (ids.current.size * 2 > this.#mostIds && ids.previous.size === 0) this.#startGeneration(ids)
    // Summing up is cheap, but not for every record.
    if ((ids.current.size & 0xff) === 0 || ids.current.size * 2 > this.#mostIds) this.#limit(ids)
  }

  #limit(ids: PartitionIds): void {
    while (this.countOf(ids.topicId) > this.#mostIds) {
      const largest = this.#findLargest(ids.topicId, ids)
      const windowMs = this.#topics.find(ids.topic)?.config.dedupeWindowMs ?? 0
      const before = sizeOf(largest)
      largest.previous = largest.previous.keepSince(this.#clock.wallMs() - windowMs)
      if (sizeOf(largest) < before * 0.9) continue
      this.#startGeneration(largest)
      if (this.#shrunk.has(ids.topicId)) continue
      this.#shrunk.add(ids.topicId)
      this.#logger.warn(
        { event: 'dedupe_window_shrunk', topic: ids.topic, limit: this.#mostIds },
        'too many dedupe ids within the window: the oldest are forgotten before it is over',
      )
    }
  }

  /** Of those with an old generation, if there is one. */
  #findLargest(topicId: string, first: PartitionIds): PartitionIds {
    let largest = first
    for (const other of this.#partitions.values()) {
      if (other.topicId !== topicId) continue
      const hasOld = other.previous.size > 0
      if (hasOld !== largest.previous.size > 0) {
        if (hasOld) largest = other
      } else if (sizeOf(other) > sizeOf(largest)) largest = other
    }
    return largest
  }

  #startGeneration(ids: PartitionIds): void {
    ids.previous = ids.current
    ids.current = new IdTable()
    ids.turnedMs = this.#clock.wallMs()
  }

  /** After a window's time the ids of the one before it have all expired. */
  #turn(ids: PartitionIds, windowMs: number): void {
    const nowMs = this.#clock.wallMs()
    // A clock that has gone back has made nothing older: the generation only lasts longer.
    if (nowMs < ids.turnedMs) ids.turnedMs = nowMs
    if (nowMs - ids.turnedMs >= windowMs) this.#startGeneration(ids)
  }

  #idsOf(topic: string, topicId: string, partition: number): PartitionIds {
    const key = keyOf(topicId, partition)
    let ids = this.#partitions.get(key)
    if (ids === undefined) {
      ids = {
        topic,
        topicId,
        waiting: new IdTable(),
        current: new IdTable(),
        previous: new IdTable(),
        turnedMs: this.#clock.wallMs(),
        isRead: false,
        reading: undefined,
      }
      this.#partitions.set(key, ids)
    }
    return ids
  }

  #hashOf(dedupeId: string): Uint32Array {
    const bytes = Buffer.from(dedupeId)
    this.#hash.update(bytes, 0, bytes.length)
    return this.#hash.words
  }

  #forgetDeleted(): void {
    for (const [key, ids] of this.#partitions) {
      // Until those that wait for it have been dropped, somebody may still say that one has ended.
      if (this.#topics.find(ids.topic)?.id === ids.topicId || ids.waiting.size > 0) continue
      this.#partitions.delete(key)
      this.#shrunk.delete(ids.topicId)
    }
  }
}

function sizeOf(ids: PartitionIds): number {
  return ids.current.size + ids.previous.size
}

function toPlace(table: IdTable, waiting: boolean): IdPlace {
  const { place, acceptedMs, checksum } = table
  return { waiting, offset: place, acceptedMs, checksum }
}

function keyOf(topicId: string, partition: number): string {
  return `${topicId}/${partition}`
}
