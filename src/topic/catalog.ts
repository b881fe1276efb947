import { invariant } from '../common/assert.ts'
import type { Clock } from '../common/clock.ts'
import { BrokerError, toBrokerError } from '../common/errors.ts'
import { isOffset, type Offset } from '../common/offset.ts'
import { MIB } from '../common/units.ts'
import type { PartitionId, PartitionLog } from '../log/partition-log.ts'
import { BatchBuilder } from '../record/batch-builder.ts'
import { batchesIn, RecordCursor } from '../record/record-cursor.ts'
import {
  type CatalogEvent,
  type CatalogTopic,
  decodeCatalogEvent,
  encodeCatalogEvent,
} from './catalog-events.ts'
import {
  applyChange,
  checkConfig,
  decodeOverrides,
  encodeOverrides,
  resolveConfig,
  type TopicConfigChange,
  type TopicOverrides,
} from './topic-config.ts'

/** The id is fixed: it has to be known before the catalog can be read. */
export const CATALOG_ID: PartitionId = {
  topic: '__catalog',
  partition: 0,
  topicId: '00000000-0000-4000-8000-00000000ca7a',
}

const READ_BYTES = MIB

/**
 * The topics of a broker as a state machine (STYLE §6): `decide…` checks and says what would happen, `apply` makes it so. Both are
 * synchronous and know nothing of logs; {@link Catalog} stands between them.
 */
export class CatalogState {
  readonly #topics = new Map<string, CatalogTopic>()
  readonly #deletedIds = new Set<string>()

  get topics(): ReadonlyMap<string, CatalogTopic> {
    return this.#topics
  }

  /** Ids of deleted topics, as far back as the catalog goes: their directories may go. */
  get deletedIds(): ReadonlySet<string> {
    return this.#deletedIds
  }

  /** @throws BrokerError INVALID_CONFIG when two settings contradict each other */
  decideCreate(topic: Omit<CatalogTopic, 'config'>, overrides: TopicOverrides): CatalogEvent {
    invariant(!this.#topics.has(topic.topic), `topic ${topic.topic} is not there yet`)
    checkConfig(resolveConfig(overrides))
    return { type: 'topic-created', ...topic, config: encodeOverrides(overrides) }
  }

  /** Undefined when the change changes nothing. @throws BrokerError INVALID_CONFIG, IMMUTABLE_CONFIG */
  decideConfig(name: string, change: TopicConfigChange): CatalogEvent | undefined {
    const topic = this.#getTopic(name)
    const { overrides, unknown } = decodeOverrides(topic.config)
    const after = applyChange(overrides, change)
    checkConfig(resolveConfig(after))
    // What a newer version set is not ours to lose.
    const kept = Object.fromEntries(unknown.map((key) => [key, topic.config[key] ?? '']))
    const config = { ...kept, ...encodeOverrides(after) }
    if (isSame(config, topic.config)) return undefined
    return { type: 'topic-config-changed', ...topic, config }
  }

  decidePartitions(name: string, total: number): CatalogEvent {
    const topic = this.#getTopic(name)
    invariant(total > topic.partitions, `${name} only gains partitions`)
    return { type: 'partitions-added', ...topic, partitions: total }
  }

  decideDelete(name: string, deletedMs: number): CatalogEvent {
    const { topic, topicId } = this.#getTopic(name)
    return { type: 'topic-deleted', topic, topicId, deletedMs }
  }

  /** The same in live traffic and in recovery. Any event may be the first of its topic: earlier ones may have been compacted away. */
  apply(event: CatalogEvent): void {
    if (event.type === 'topic-deleted') {
      this.#topics.delete(event.topic)
      this.#deletedIds.add(event.topicId)
      return
    }
    const { topic, topicId, createdMs, partitions, config } = event
    this.#topics.set(topic, { topic, topicId, createdMs, partitions, config })
  }

  #getTopic(name: string): CatalogTopic {
    const topic = this.#topics.get(name)
    invariant(topic !== undefined, `topic ${name} is in the catalog`)
    return topic
  }
}

function isSame(a: Readonly<Record<string, string>>, b: Readonly<Record<string, string>>): boolean {
  const names = Object.keys(a)
  return names.length === Object.keys(b).length && names.every((name) => a[name] === b[name])
}

/**
 * The catalog's log. {@link commit} appends durably, then applies; {@link Catalog.open} applies what is there. One caller at a time:
 * `Topics` queues them.
 */
export class Catalog {
  readonly state: CatalogState = new CatalogState()
  readonly #log: PartitionLog
  readonly #clock: Clock
  readonly #builder = new BatchBuilder({ maxBytes: READ_BYTES, initialBytes: 1024 })
  #damage: string | undefined
  #records = 0
  #end: Offset

  private constructor(log: PartitionLog, clock: Clock) {
    this.#log = log
    this.#clock = clock
    this.#end = log.logStartOffset
  }

  /**
   * Replays `log`. What cannot be read is passed over and noted in {@link damage}: topics whose newest record is whole are known
   * nevertheless.
   * @throws BrokerError UNSUPPORTED_FORMAT when a newer millrace wrote to it; what a failed read throws
   */
  static async open(log: PartitionLog, clock: Clock): Promise<Catalog> {
    const catalog = new Catalog(log, clock)
    await catalog.#replay()
    return catalog
  }

  /** What is wrong with the catalog, or undefined: with a damaged one nothing may be decided. */
  get damage(): string | undefined {
    return this.#damage
  }

  /** True when it holds no record at all. */
  get isEmpty(): boolean {
    return this.#records === 0
  }

  /** One past the last record applied. */
  get end(): Offset {
    return this.#end
  }

  /**
   * Makes `event` durable, then applies it.
   * @throws BrokerError what `PartitionLog.append` throws; nothing has changed then, unless the code leaves the outcome open
   *   (FLUSH_FAILED, STORAGE_ERROR): from there on the catalog is damaged, until the next start finds the truth
   */
  async commit(event: CatalogEvent): Promise<void> {
    this.#builder.tryAppend(event.topic, encodeCatalogEvent(event), this.#clock.wallMs())
    const batch = this.#builder.finish()
    let end: Offset
    try {
      // The epoch goes with every decision, so that one made under an older one is refused (DESIGN §5).
      const options = { leaderEpoch: this.#log.leaderEpoch }
      end = (await this.#log.append(batch, 'durable', options)).endOffset
    } catch (error) {
      const failure = toBrokerError(error)
      if (!failure.noSideEffects) {
        this.#damage = `whether a change of ${event.topic} was kept is unknown: ${failure.message}`
      }
      throw failure
    }
    this.#apply(event, end)
  }

  #apply(event: CatalogEvent, end: Offset): void {
    this.state.apply(event)
    this.#records++
    this.#end = end
  }

  async #replay(): Promise<void> {
    const cursor = new RecordCursor()
    let from = this.#log.logStartOffset
    while (from < this.#log.highWatermark) {
      try {
        const { chunks, nextOffset } = await this.#log.read(from, READ_BYTES)
        for (const chunk of chunks) this.#replayChunk(chunk, cursor)
        invariant(nextOffset > from, 'a read below the high watermark brings records')
        from = nextOffset
      } catch (error) {
        from = this.#skipDamage(from, error)
      }
    }
    this.#end = this.#log.highWatermark
  }

  #replayChunk(chunk: Uint8Array, cursor: RecordCursor): void {
    for (const at of batchesIn(chunk)) {
      try {
        cursor.reset(chunk, at)
        while (cursor.next()) this.#replayRecord(cursor)
      } catch (error) {
        this.#noteDamage(error)
      }
    }
  }

  #replayRecord(cursor: RecordCursor): void {
    const bytes = Buffer.from(cursor.bytes.buffer, cursor.bytes.byteOffset, cursor.bytes.length)
    const { offset, keyStart, keyEnd, valueStart, valueEnd } = cursor
    if (keyStart < 0 || valueStart < 0) {
      throw new BrokerError('INVALID_RECORD', `record ${offset} has no key or no value`)
    }
    const key = bytes.toString('utf8', keyStart, keyEnd)
    this.state.apply(decodeCatalogEvent(key, bytes.toString('utf8', valueStart, valueEnd)))
    this.#records++
  }

  /** Where to read on behind a damaged range. Any other failure of a read is not ours to pass over. */
  #skipDamage(from: Offset, error: unknown): Offset {
    this.#noteDamage(error)
    const next = error instanceof BrokerError ? error.details['nextOffset'] : undefined
    return isOffset(next) && next > from ? next : this.#log.highWatermark
  }

  #noteDamage(error: unknown): void {
    const isDamage =
      error instanceof BrokerError &&
      (error.code === 'SEGMENT_QUARANTINED' ||
        error.code === 'CORRUPT_BATCH' ||
        error.code === 'INVALID_RECORD' ||
        error.code === 'DECOMPRESSED_TOO_LARGE' ||
        error.code === 'UNSUPPORTED_CODEC')
    if (!isDamage) throw error
    this.#damage ??= error.message
  }
}
