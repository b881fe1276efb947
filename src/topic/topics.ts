import { invariant } from '../common/assert.ts'
import { Catalog, CATALOG_ID } from './catalog.ts'
import { type CatalogTopic, LARGEST_PARTITION_COUNT } from './catalog-events.ts'
import { Cleaner } from './cleaner.ts'
import type { CancelTimer, Clock } from '../common/clock.ts'
import { forEachLimited, SerialQueue } from './concurrency.ts'
import { BrokerError, toBrokerError } from '../common/errors.ts'
import { checkTopicName, findNearest, isInternalTopic } from '../common/names.ts'
import { newUuid, type Random } from '../common/random.ts'
import { MIB, MINUTE_MS } from '../common/units.ts'
import type { LogStore, PartitionId } from '../log/partition-log.ts'
import { partitionName } from '../log/partition-name.ts'
import { Partition } from './partition.ts'
import { Topic } from './topic.ts'
import {
  applyChange,
  checkConfig,
  type ConfigDescription,
  decodeOverrides,
  describeConfig,
  encodeOverrides,
  findDifferences,
  parseChange,
  parseOverrides,
  resolveConfig,
  type TopicConfig,
  toLogConfig,
} from './topic-config.ts'

/** Where `Topics` says what happens. Facts first, then a sentence, as pino has it. */
export interface TopicLogger {
  info(details: object, message: string): void
  warn(details: object, message: string): void
  error(details: object, message: string): void
}

export interface TopicsOptions {
  readonly store: LogStore
  readonly clock: Clock
  readonly random: Random
  /** Silent by default. */
  readonly logger?: TopicLogger | undefined
  /** Of a topic that is made without a count. 1 by default. */
  readonly defaultPartitions?: number | undefined
  /** All topics together. 20 000 by default: each costs descriptors, memory and start-up time. */
  readonly maxPartitions?: number | undefined
  /** How often each partition's retention is looked at. 5 minutes by default. */
  readonly retentionCheckMs?: number | undefined
}

export interface CreateTopicRequest {
  readonly name: string
  /** 1 to 10 000. The broker's default when it is not given. */
  readonly partitions?: number | undefined
  /** By dotted names, with units. */
  readonly config?: Readonly<Record<string, string>> | undefined
  /** Content with whatever topic has the name. */
  readonly ifNotExists?: boolean | undefined
  /** Check everything, change nothing. */
  readonly validateOnly?: boolean | undefined
}

export interface CreatedTopic {
  /** False when it was there, and when only validation was asked for. */
  readonly created: boolean
  /** Empty when only validation was asked for and there is no such topic. */
  readonly topicId: string
  readonly partitions: number
}

export interface AlterTopicRequest {
  readonly set?: Readonly<Record<string, string>> | undefined
  /** Names of settings to give back to the defaults. */
  readonly clear?: readonly string[] | undefined
  readonly validateOnly?: boolean | undefined
}

const DEFAULT_MAX_PARTITIONS = 20_000
const DEFAULT_RETENTION_CHECK_MS = 5 * MINUTE_MS

/** Opening a log costs a few file operations that wait for the disk; more at once than this gain nothing. */
const OPEN_AT_ONCE = 16

/** When space is low, all partitions' retention runs at once; not again before this, however many appends are refused meanwhile. */
const FULL_SWEEP_PAUSE_MS = 10_000

/** Asking for one missing topic again and again is cheap by this many remembered answers. */
const REMEMBERED_MISSES = 64

/** The epoch is above this bit in {@link Topics.mapVersion}; below is room for that many changes of the catalog. */
const MAP_VERSIONS_PER_EPOCH = 2 ** 32

/**
 * Nothing of a companion goes by age or size: its owner moves the log start when newer records say all. Small segments, so that the bytes go
 * soon after; the owner alone reads it, so that nobody is in them.
 */
const COMPANION_CONFIG: TopicConfig = resolveConfig({
  cleanupPolicy: 'delete',
  retentionMs: Infinity,
  retentionBytes: Infinity,
  retentionRecords: Infinity,
  deleteDelayMs: 0,
  segmentBytes: 16 * MIB,
  maxMessageBytes: 8 * MIB,
  maxFutureMs: Infinity,
  visibility: 'durable',
})

const SILENT: TopicLogger = {
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
}

/**
 * The topics of a broker. Lookups are plain map accesses; changes go one after the other through the catalog, which is durable before
 * anything else happens.
 */
export class Topics {
  readonly store: LogStore
  readonly #clock: Clock
  readonly #random: Random
  readonly #logger: TopicLogger
  readonly #defaultPartitions: number
  readonly #maxPartitions: number
  readonly #retentionCheckMs: number
  readonly #catalog: Catalog
  readonly #cleaner: Cleaner
  readonly #topics = new Map<string, Topic>()
  readonly #changes = new SerialQueue()
  /** Directories that belong to no topic we know. They are kept, and no topic can be made over them. */
  readonly #strangers = new Map<string, PartitionId>()
  /** Directories of deleted topics whose removal failed. */
  readonly #leftovers = new Map<string, readonly PartitionId[]>()
  /** Companions that are open or being opened, each by the partition that it is beside. */
  readonly #companions = new Map<Partition, Promise<Partition>>()
  /** Companions that are in the data directory, or may be. By the name of the partition's directory. */
  readonly #presentCompanions = new Map<string, PartitionId>()
  readonly #timers = new Map<Partition, CancelTimer>()
  readonly #maintained = new Set<Partition>()
  readonly #running = new Set<Promise<void>>()
  readonly #misses = new Map<string, readonly string[]>()
  readonly #listeners = new Set<() => void>()
  #salvageReason: string | undefined
  #lastFullSweepMs = -Infinity
  #closing: Promise<void> | undefined

  private constructor(options: TopicsOptions, catalog: Catalog) {
    this.store = options.store
    this.#clock = options.clock
    this.#random = options.random
    this.#logger = options.logger ?? SILENT
    this.#defaultPartitions = options.defaultPartitions ?? 1
    this.#maxPartitions = options.maxPartitions ?? DEFAULT_MAX_PARTITIONS
    this.#retentionCheckMs = options.retentionCheckMs ?? DEFAULT_RETENTION_CHECK_MS
    this.#catalog = catalog
    this.#cleaner = new Cleaner({
      clock: this.#clock,
      logger: this.#logger,
      list: () =>
        // Where the catalog is damaged, everything stays as it is found.
        this.readOnly === undefined
          ? [...this.#topics.values()].flatMap((topic) => topic.partitions)
          : [],
    })
  }

  /**
   * Reads the catalog, opens all partitions and removes what deleted topics left. A partition that cannot be opened answers with the
   * reason, is tried again with each retention check, and stops nobody else. A damaged catalog makes everything read-only: what is
   * known of it, and what the directories tell of the rest.
   * @throws BrokerError UNSUPPORTED_FORMAT when a newer millrace wrote the catalog; what opening or reading the catalog's log throws
   */
  static async open(options: TopicsOptions): Promise<Topics> {
    const { store, clock } = options
    const listed = await store.list()
    const entry: CatalogTopic = {
      topic: CATALOG_ID.topic,
      topicId: CATALOG_ID.topicId,
      createdMs: 0,
      partitions: 1,
      // Each record carries its whole topic, so the newest of a name is all that counts.
      config: encodeOverrides({ cleanupPolicy: 'compact', retentionMs: Infinity }),
    }
    const topic = new Topic(entry)
    const log = await store.open(CATALOG_ID, toLogConfig(topic.config))
    try {
      const topics = new Topics(options, await Catalog.open(log, clock))
      const partition = new Partition({ id: CATALOG_ID, config: topic.config, clock })
      partition.attach(log)
      topic.addPartitions([partition])
      topics.#topics.set(topic.name, topic)
      await topics.#recover(listed.filter((id) => id.topic !== CATALOG_ID.topic))
      topics.#watch(topic.partitions)
      topics.#cleaner.start()
      return topics
    } catch (error) {
      await log.close()
      throw error
    }
  }

  /** Why nothing can be changed or appended, or undefined when it can. */
  get readOnly(): string | undefined {
    return this.#salvageReason ?? this.#catalog.damage
  }

  /** Rises whenever topics or partitions come or go or settings change, and at every start. */
  get mapVersion(): number {
    return this.store.incarnation * MAP_VERSIONS_PER_EPOCH + this.#catalog.end
  }

  /** Partitions of all topics together, internal ones left out. */
  get partitionCount(): number {
    let count = 0
    for (const topic of this.#topics.values()) if (!topic.internal) count += topic.entry.partitions
    return count
  }

  /** Calls `listener` after topics or partitions have come or gone, or settings have changed. Returns how to stop. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Sorted by name. Those of the broker itself only when asked for. */
  list(options?: { readonly internal?: boolean | undefined }): readonly Topic[] {
    const all = [...this.#topics.values()]
    const shown = options?.internal === true ? all : all.filter((topic) => !topic.internal)
    return shown.sort((a, b) => (a.name < b.name ? -1 : 1))
  }

  find(name: string): Topic | undefined {
    return this.#topics.get(name)
  }

  /** @throws BrokerError UNKNOWN_TOPIC with the nearest names in `details.nearest`; INVALID_TOPIC_NAME when there can be none */
  get(name: string): Topic {
    const topic = this.#topics.get(name)
    if (topic !== undefined) return topic
    checkTopicName(name)
    const nearest = this.#findNearest(name)
    const hint = nearest.length === 0 ? '' : `; did you mean ${nearest.join(' or ')}?`
    throw new BrokerError('UNKNOWN_TOPIC', `there is no topic ${name}${hint}`, {
      topic: name,
      nearest,
    })
  }

  /**
   * One partition, ready to use. A map lookup and an index.
   * @throws BrokerError as {@link get}; UNKNOWN_TOPIC_ID when `topicId` is given and the topic has been made anew since; INVALID_PARTITION
   *   for what is no index; UNKNOWN_PARTITION; and {@link Partition.failure}, if it has one
   */
  getPartition(name: string, index: number, topicId?: string): Partition {
    const topic = this.#topics.get(name) ?? this.get(name)
    if (topicId !== undefined && topicId !== topic.id) {
      throw new BrokerError(
        'UNKNOWN_TOPIC_ID',
        `topic ${name} has the id ${topic.id}, not ${topicId.slice(0, 60)}: it was made anew`,
        { topic: name, topicId: topic.id },
      )
    }
    const partition = topic.partitions[index]
    if (partition === undefined) throw noPartition(topic, index)
    if (partition.failure !== undefined) throw partition.failure
    return partition
  }

  /**
   * The companion log of one partition: what the broker keeps beside it, and with it, deleted when it is (DESIGN §5). Made, durably, when it is
   * not there. The same object each time, until the topic is deleted. Neither clients nor anything that lists partitions comes to it.
   * @throws BrokerError (as rejection) as {@link getPartition}; READ_ONLY when it would have to be made where the catalog is damaged; CLOSED;
   *   what opening a log throws: another call tries again
   */
  async openCompanion(name: string, index: number): Promise<Partition> {
    const beside = this.getPartition(name, index)
    if (this.#closing !== undefined) {
      throw new BrokerError('CLOSED', 'the broker is closing its topics')
    }
    const known = this.#companions.get(beside)
    if (known !== undefined) return known
    const opening = this.#openCompanion(beside)
    this.#companions.set(beside, opening)
    try {
      return await opening
    } catch (error) {
      if (this.#companions.get(beside) === opening) this.#companions.delete(beside)
      throw error
    }
  }

  /** The partitions that have a companion in the data directory, opened or not: what is kept there can be read after a start. */
  findCompanions(): readonly { readonly topic: string; readonly partition: number }[] {
    return [...this.#presentCompanions.values()].map(({ topic, partition }) => ({
      topic,
      partition,
    }))
  }

  /** @throws BrokerError TOPIC_INTERNAL for topics that only the broker itself writes to */
  checkWritable(name: string): void {
    if (!isInternalTopic(name)) return
    throw new BrokerError(
      'TOPIC_INTERNAL',
      `${name.slice(0, 60)} belongs to the broker: names that begin with __ can be read, not written, made or changed`,
      { topic: name.slice(0, 249) },
    )
  }

  /**
   * Makes a topic. The same name with the same partitions and settings is fine and answers `created: false`.
   * @throws BrokerError INVALID_TOPIC_NAME, TOPIC_INTERNAL, INVALID_PARTITION, INVALID_CONFIG, UNSUPPORTED_FEATURE, TOPIC_EXISTS,
   *   TOO_MANY_TOPICS, READ_ONLY; what the catalog's append or opening the logs throws: the topic is gone again then
   */
  async create(request: CreateTopicRequest): Promise<CreatedTopic> {
    checkTopicName(request.name)
    this.checkWritable(request.name)
    return this.#create(request)
  }

  /**
   * Makes one of the broker's own topics unless it is there, and answers with it as it is: settings and partitions of one that exists stay.
   * @throws BrokerError as {@link create}
   */
  async ensureInternal(
    name: string,
    partitions: number,
    config: Readonly<Record<string, string>>,
  ): Promise<Topic> {
    invariant(isInternalTopic(name), `${name} is an internal topic`)
    if (!this.#topics.has(name)) {
      await this.#create({ name, partitions, config, ifNotExists: true })
    }
    return this.get(name)
  }

  /**
   * Makes an ordinary topic on the broker's own behalf (for dead letters) unless it is there, and answers with it as it is: settings and
   * partitions of one that exists stay.
   * @throws BrokerError as {@link create}
   */
  async ensure(
    name: string,
    partitions: number,
    config: Readonly<Record<string, string>>,
  ): Promise<Topic> {
    if (!this.#topics.has(name)) {
      await this.create({ name, partitions, config, ifNotExists: true })
    }
    return this.get(name)
  }

  async #create(request: CreateTopicRequest): Promise<CreatedTopic> {
    const { name } = request
    const partitions = request.partitions ?? this.#defaultPartitions
    checkPartitionCount(partitions)
    const overrides = parseOverrides(request.config ?? {})
    const config = resolveConfig(overrides)
    checkConfig(config)
    return this.#change(async () => {
      const existing = this.#topics.get(name)
      if (existing !== undefined) {
        if (request.ifNotExists !== true) checkSame(existing, partitions, config)
        const count = existing.entry.partitions
        return { created: false, topicId: existing.id, partitions: count }
      }
      if (!isInternalTopic(name)) this.#checkRoom(partitions)
      this.#checkNotInTheWay(name)
      if (request.validateOnly === true) return { created: false, topicId: '', partitions }
      await this.#removeLeftovers(name)
      const topicId = newUuid(this.#random)
      const createdMs = this.#clock.wallMs()
      const event = this.#catalog.state.decideCreate(
        { topic: name, topicId, createdMs, partitions },
        overrides,
      )
      await this.#catalog.commit(event)
      const topic = new Topic(this.#getEntry(name))
      topic.addPartitions(this.#makePartitions(topic, 0))
      await this.#openAllOrDelete(topic)
      this.#install(topic)
      this.#logger.info({ topic: name, topicId, partitions }, 'topic created')
      this.#changed()
      return { created: true, topicId, partitions }
    })
  }

  /**
   * Deletes a topic. Once this resolves it stays deleted; who waits for its records gets UNKNOWN_TOPIC.
   * @throws BrokerError UNKNOWN_TOPIC, INVALID_TOPIC_NAME, TOPIC_INTERNAL, READ_ONLY; what the catalog's append throws
   */
  async delete(name: string): Promise<{ topicId: string }> {
    this.checkWritable(name)
    return this.#change(async () => {
      const topic = this.get(name)
      await this.#catalog.commit(this.#catalog.state.decideDelete(name, this.#clock.wallMs()))
      this.#topics.delete(name)
      this.#misses.clear()
      this.#changed()
      for (const partition of topic.partitions) {
        this.#unwatch(partition)
        partition.end()
      }
      const companions = await this.#endCompanions(topic)
      const ids = topic.partitions.map((partition) => partition.id)
      await this.#remove(name, [...ids, ...companions])
      this.#logger.info({ topic: name, topicId: topic.id }, 'topic deleted')
      return { topicId: topic.id }
    })
  }

  /**
   * Gives a topic more partitions, up to `total`; resolves to that. Records already there stay where they are: a key may go to another
   * partition from now on.
   * @throws BrokerError UNKNOWN_TOPIC, INVALID_TOPIC_NAME, TOPIC_INTERNAL, INVALID_PARTITION, TOO_MANY_TOPICS, READ_ONLY; STORAGE_ERROR
   *   when they were added but not all could be opened (they are tried again)
   */
  async addPartitions(name: string, total: number): Promise<number> {
    this.checkWritable(name)
    checkPartitionCount(total)
    return this.#change(async () => {
      const topic = this.get(name)
      const present = topic.entry.partitions
      if (total <= present) {
        throw new BrokerError(
          'INVALID_PARTITION',
          `${name} has ${present} partitions: the new total has to be larger than that, not ${total}`,
          { topic: name, actual: total, partitions: present, field: 'total' },
        )
      }
      this.#checkRoom(total - present)
      this.#checkNotInTheWay(name)
      await this.#catalog.commit(this.#catalog.state.decidePartitions(name, total))
      topic.update(this.#getEntry(name))
      const added = this.#makePartitions(topic, present)
      await this.#openPartitions(added)
      topic.addPartitions(added)
      this.#watch(added)
      this.#logger.info({ topic: name, from: present, partitions: total }, 'partitions added')
      this.#changed()
      const failed = added.filter((partition) => partition.failure !== undefined)
      if (failed.length > 0) {
        throw new BrokerError(
          'STORAGE_ERROR',
          `${name} has ${total} partitions now, but ${failed.length} of them could not be opened; the broker will try again`,
          { topic: name, partitions: total },
          failed[0]?.failure,
        )
      }
      return total
    })
  }

  /**
   * Changes settings; they are in force when this resolves. Resolves to all settings as they are then (or, with `validateOnly`, as they
   * would be).
   * @throws BrokerError UNKNOWN_TOPIC, INVALID_TOPIC_NAME, TOPIC_INTERNAL, INVALID_CONFIG, IMMUTABLE_CONFIG, UNSUPPORTED_FEATURE,
   *   READ_ONLY; what the catalog's append throws
   */
  async alter(name: string, request: AlterTopicRequest): Promise<readonly ConfigDescription[]> {
    this.checkWritable(name)
    return this.#change(async () => {
      const topic = this.get(name)
      const change = parseChange(request.set ?? {}, request.clear ?? [])
      const event = this.#catalog.state.decideConfig(name, change)
      if (request.validateOnly === true) {
        return describeConfig(applyChange(topic.overrides, change))
      }
      if (event !== undefined) {
        await this.#catalog.commit(event)
        topic.update(this.#getEntry(name))
        this.#logger.info({ topic: name, set: request.set, clear: request.clear }, 'topic altered')
        this.#changed()
      }
      return topic.describeConfig()
    })
  }

  /** Ends retention, finishes the change that is under way and closes all logs. Later changes are CLOSED. */
  close(): Promise<void> {
    this.#closing ??= this.#shutDown()
    return this.#closing
  }

  async #shutDown(): Promise<void> {
    await this.#changes.drain()
    await this.#cleaner.close()
    for (const partition of this.#timers.keys()) this.#unwatch(partition)
    const companions = await settledOf(this.#companions.values())
    for (const companion of companions) this.#unwatch(companion)
    await Promise.all(this.#running)
    const open = [...this.#topics.values()].flatMap((topic) => topic.partitions)
    await forEachLimited([...open, ...companions], OPEN_AT_ONCE, (partition) => partition.close())
  }

  /** Queues a change behind those before it. What it looks at, it looks at when its turn has come. */
  #change<T>(task: () => Promise<T>): Promise<T> {
    return this.#changes.run(async () => {
      if (this.#closing !== undefined) {
        throw new BrokerError('CLOSED', 'the broker is closing its topics')
      }
      const { readOnly } = this
      if (readOnly !== undefined) {
        throw new BrokerError('READ_ONLY', `topics cannot be changed: ${readOnly}`)
      }
      return task()
    })
  }

  #changed(): void {
    for (const listener of this.#listeners) listener()
  }

  #getEntry(name: string): CatalogTopic {
    const entry = this.#catalog.state.topics.get(name)
    if (entry === undefined) throw new BrokerError('INTERNAL_ERROR', `${name} left the catalog`)
    return entry
  }

  #checkRoom(wanted: number): void {
    const present = this.partitionCount
    if (present + wanted <= this.#maxPartitions) return
    throw new BrokerError(
      'TOO_MANY_TOPICS',
      `${wanted} more partitions would make ${present + wanted}: this broker takes ${this.#maxPartitions}`,
      { actual: present + wanted, limit: this.#maxPartitions },
    )
  }

  #checkNotInTheWay(name: string): void {
    for (const stranger of this.#strangers.values()) {
      if (stranger.topic !== name) continue
      throw new BrokerError(
        'STORAGE_ERROR',
        `the data directory has records of a topic ${name} (id ${stranger.topicId}) that the catalog does not know: move them away first`,
        { topic: name, partition: stranger.partition, topicId: stranger.topicId },
      )
    }
  }

  #findNearest(name: string): readonly string[] {
    const known = this.#misses.get(name)
    if (known !== undefined) return known
    const names = [...this.#topics.values()].filter((topic) => !topic.internal)
    const nearest = findNearest(
      name,
      names.map((topic) => topic.name),
    )
    if (this.#misses.size >= REMEMBERED_MISSES) this.#misses.clear()
    this.#misses.set(name, nearest)
    return nearest
  }

  // ── Opening and removing logs ──

  #makePartitions(topic: Topic, from: number): Partition[] {
    const { readOnly } = this
    const partitions: Partition[] = []
    for (let index = from; index < topic.entry.partitions; index++) {
      const id: PartitionId = { topic: topic.name, partition: index, topicId: topic.id }
      const partition = new Partition({
        id,
        config: topic.config,
        clock: this.#clock,
        readOnly,
        hasCompanion: this.#presentCompanions.has(keyOf(id)),
        onStorageFull: () => this.#sweepWhenFull(),
      })
      partitions.push(partition)
    }
    return partitions
  }

  /** Opens what it can. The others have a failure afterwards. */
  async #openPartitions(partitions: readonly Partition[], present?: Set<string>): Promise<void> {
    await forEachLimited(partitions, OPEN_AT_ONCE, async (partition) => {
      const isThere = present === undefined || present.has(keyOf(partition.id))
      await this.#openPartition(partition, isThere)
    })
  }

  async #openPartition(partition: Partition, isThere: boolean): Promise<void> {
    const facts = { topic: partition.topic, partition: partition.index }
    try {
      if (!isThere) {
        if (this.readOnly !== undefined) {
          throw new BrokerError('STORAGE_ERROR', `${partition.name} has no directory`, facts)
        }
        // Either a crash came between the catalog and the directory, or someone has taken the directory away: only people can tell.
        this.#logger.warn(facts, 'partition had no directory: made empty')
      }
      const config = toLogConfig(partition.config)
      partition.attach(await this.store.open(partition.id, config))
    } catch (error) {
      const failure = toBrokerError(error)
      partition.fail(failure)
      this.#logger.error(
        { ...facts, topicId: partition.topicId, code: failure.code, cause: failure.message },
        'partition could not be opened',
      )
    }
  }

  /** A topic that cannot be opened whole is deleted again: whoever asked for it is told, and may ask again. */
  async #openAllOrDelete(topic: Topic): Promise<void> {
    const { name, partitions } = topic
    await this.#openPartitions(partitions)
    const failure = partitions.find((partition) => partition.failure !== undefined)?.failure
    if (failure === undefined) return
    try {
      await this.#catalog.commit(this.#catalog.state.decideDelete(name, this.#clock.wallMs()))
    } catch (error) {
      // It stays in the catalog, so it stays here too, with what could be opened.
      this.#install(topic)
      throw new BrokerError(
        'STORAGE_ERROR',
        `topic ${name} was made, but not all of it could be opened (${failure.message}); the broker will try again`,
        { topic: name, topicId: topic.id },
        error,
      )
    }
    for (const partition of partitions) partition.end()
    await this.#remove(
      name,
      partitions.map((partition) => partition.id),
    )
    throw failure
  }

  #install(topic: Topic): void {
    this.#topics.set(topic.name, topic)
    this.#misses.clear()
    this.#watch(topic.partitions)
  }

  /** Removes directories of a deleted topic. What fails is tried again before the name is used anew, and at the next start. */
  async #remove(name: string, ids: readonly PartitionId[]): Promise<void> {
    const left: PartitionId[] = []
    await forEachLimited(ids, OPEN_AT_ONCE, async (id) => {
      try {
        await this.store.remove(id)
      } catch (error) {
        left.push(id)
        const cause = toBrokerError(error)
        this.#logger.error(
          { ...id, code: cause.code, cause: cause.message },
          'directory of a deleted topic could not be removed',
        )
      }
    })
    if (left.length > 0) this.#leftovers.set(name, left)
    else this.#leftovers.delete(name)
  }

  async #removeLeftovers(name: string): Promise<void> {
    const left = this.#leftovers.get(name)
    if (left === undefined) return
    await this.#remove(name, left)
    if (!this.#leftovers.has(name)) return
    throw new BrokerError(
      'STORAGE_ERROR',
      `directories of the deleted topic ${name} could not be removed: its name is not free yet`,
      { topic: name },
    )
  }

  // ── Companions ──

  async #openCompanion(beside: Partition): Promise<Partition> {
    const id: PartitionId = { ...beside.id, companion: 'state' }
    const { readOnly } = this
    const companion = new Partition({
      id,
      config: COMPANION_CONFIG,
      clock: this.#clock,
      readOnly,
      onStorageFull: () => this.#sweepWhenFull(),
    })
    if (readOnly !== undefined && !this.#presentCompanions.has(keyOf(beside.id))) {
      throw new BrokerError('READ_ONLY', `${companion.name} cannot be made: ${readOnly}`, {
        topic: id.topic,
        partition: id.partition,
      })
    }
    // From here on it may be there, whatever comes of it: a deletion looks for it.
    this.#presentCompanions.set(keyOf(beside.id), id)
    companion.attach(await this.store.open(id, toLogConfig(COMPANION_CONFIG)))
    // The topic may have been deleted meanwhile: whoever does that waits for us, and ends it.
    this.#watch([companion])
    return companion
  }

  /** Ends the companions of a deleted topic. Resolves to what is to be removed of them. */
  async #endCompanions(topic: Topic): Promise<readonly PartitionId[]> {
    const ids: PartitionId[] = []
    for (const partition of topic.partitions) {
      const id = this.#presentCompanions.get(keyOf(partition.id))
      if (id === undefined) continue
      ids.push(id)
      const opening = this.#companions.get(partition)
      this.#companions.delete(partition)
      this.#presentCompanions.delete(keyOf(partition.id))
      for (const companion of await settledOf(opening === undefined ? [] : [opening])) {
        this.#unwatch(companion)
        companion.end()
      }
    }
    return ids
  }

  // ── Start-up ──

  async #recover(listed: readonly PartitionId[]): Promise<void> {
    const { state } = this.#catalog
    this.#salvageReason = this.#findSalvageReason(listed)
    const unknown: PartitionId[] = []
    const deleted = new Map<string, PartitionId[]>()
    for (const id of listed) {
      const entry = state.topics.get(id.topic)
      if (entry?.topicId === id.topicId && id.partition < entry.partitions) {
        if (id.companion !== undefined) this.#presentCompanions.set(besideOf(id), id)
        continue
      }
      if (state.deletedIds.has(id.topicId)) {
        deleted.set(id.topic, [...(deleted.get(id.topic) ?? []), id])
      } else unknown.push(id)
    }
    const entries = new Map(state.topics)
    if (this.#salvageReason === undefined) {
      // Before the opening: a new topic may have the name of a deleted one.
      for (const [name, ids] of deleted) await this.#remove(name, ids)
      for (const id of unknown) this.#keepStranger(id)
    } else {
      const facts = { reason: this.#salvageReason, topics: state.topics.size }
      this.#logger.error(facts, 'the catalog is damaged: everything is read-only')
      // Directories of deleted topics wait for a start with a whole catalog: nothing is removed on this one's word.
      // What a companion is beside of comes first.
      unknown.sort((a, b) => Number(a.companion !== undefined) - Number(b.companion !== undefined))
      for (const id of unknown) this.#salvage(id, entries)
    }
    await this.#openTopics(entries, new Set(listed.map(keyOf)))
  }

  async #openTopics(
    entries: ReadonlyMap<string, CatalogTopic>,
    present: Set<string>,
  ): Promise<void> {
    const topics = [...entries.values()].map((entry) => {
      const topic = new Topic(entry)
      const { unknown } = decodeOverrides(entry.config)
      if (unknown.length > 0) {
        this.#logger.warn({ topic: topic.name, settings: unknown }, 'unknown settings ignored')
      }
      topic.addPartitions(this.#makePartitions(topic, 0))
      this.#topics.set(topic.name, topic)
      return topic
    })
    const inner = topics.filter((topic) => topic.internal)
    const outer = topics.filter((topic) => !topic.internal)
    for (const group of [inner, outer]) {
      const partitions = group.flatMap((topic) => topic.partitions)
      await this.#openPartitions(partitions, present)
      this.#watch(partitions)
    }
  }

  #findSalvageReason(listed: readonly PartitionId[]): string | undefined {
    if (this.#catalog.damage !== undefined) return this.#catalog.damage
    if (!this.#catalog.isEmpty || listed.length === 0) return undefined
    // A directory is only ever made after its topic's record was durable, so this catalog has lost its records, or itself.
    return `the catalog is empty, but there are ${listed.length} partitions in the data directory`
  }

  #keepStranger(id: PartitionId): void {
    this.#strangers.set(keyOf(id), id)
    this.#logger.warn({ ...id }, 'directory of an unknown topic: kept, not served')
  }

  /** Serves what the catalog has forgotten, by its directory: default settings, and nothing is ever dropped while it is read-only. */
  #salvage(id: PartitionId, entries: Map<string, CatalogTopic>): void {
    const entry = entries.get(id.topic)
    if (entry !== undefined && entry.topicId !== id.topicId) {
      this.#keepStranger(id)
      return
    }
    if (id.companion !== undefined) {
      if (entry !== undefined && id.partition < entry.partitions) {
        this.#presentCompanions.set(besideOf(id), id)
      } else this.#keepStranger(id)
      return
    }
    const partitions = Math.max(entry?.partitions ?? 0, id.partition + 1)
    const known = entry ?? { topic: id.topic, topicId: id.topicId, createdMs: 0, config: {} }
    entries.set(id.topic, { ...known, partitions })
    this.#logger.warn({ ...id }, 'partition that the damaged catalog does not name: served')
  }

  // ── Retention ──

  /** Looks at each partition every `retentionCheckMs`, the first time somewhere inside the first period, so that they do not all come at once. */
  #watch(partitions: readonly Partition[]): void {
    for (const partition of partitions) {
      this.#schedule(partition, (this.#random.uint32() / 2 ** 32) * this.#retentionCheckMs)
    }
  }

  #unwatch(partition: Partition): void {
    this.#timers.get(partition)?.()
    this.#timers.delete(partition)
  }

  #schedule(partition: Partition, delayMs: number): void {
    const fire = (): void => {
      const run = this.#maintain(partition).finally(() => {
        this.#running.delete(run)
        if (this.#timers.has(partition)) this.#schedule(partition, this.#retentionCheckMs)
      })
      this.#running.add(run)
    }
    this.#timers.set(partition, this.#clock.schedule(delayMs, fire))
  }

  /** One check of one partition. Never rejects: what fails is logged, and comes again. */
  async #maintain(partition: Partition): Promise<void> {
    if (this.#maintained.has(partition)) return
    this.#maintained.add(partition)
    const facts = { topic: partition.topic, partition: partition.index }
    try {
      if (partition.needsLog && this.readOnly === undefined) await this.#reopen(partition)
      const before = partition.logStartOffset
      const after = await partition.applyRetention()
      if (after > before)
        this.#logger.info({ ...facts, from: before, to: after }, 'records expired')
    } catch (error) {
      // A topic that has been deleted meanwhile has nothing to maintain.
      if (partition.failure !== undefined) return
      const cause = toBrokerError(error)
      this.#logger.error({ ...facts, code: cause.code, cause: cause.message }, 'retention failed')
    } finally {
      this.#maintained.delete(partition)
    }
  }

  /** In the queue of changes: a deletion in between would remove the directory, and this make it anew. */
  #reopen(partition: Partition): Promise<void> {
    return this.#changes.run(async () => {
      if (!partition.needsLog) return
      await this.#openPartition(partition, true)
      if (partition.needsLog) return
      const facts = { topic: partition.topic, partition: partition.index }
      this.#logger.info(facts, 'partition opened at last')
    })
  }

  /** Space is low: what retention would drop soon it drops now (CONTRACT §2.3). */
  #sweepWhenFull(): void {
    const nowMs = this.#clock.monotonicMs()
    if (nowMs - this.#lastFullSweepMs < FULL_SWEEP_PAUSE_MS || this.#closing !== undefined) return
    this.#lastFullSweepMs = nowMs
    const run = forEachLimited([...this.#timers.keys()], OPEN_AT_ONCE, (partition) =>
      this.#maintain(partition),
    ).finally(() => this.#running.delete(run))
    this.#running.add(run)
  }
}

function keyOf(id: PartitionId): string {
  return partitionName(id)
}

/** {@link keyOf} of the partition that a companion is beside. */
function besideOf({ topic, partition, topicId }: PartitionId): string {
  return keyOf({ topic, partition, topicId })
}

/** Those that have come to something. Who asked for the others has been told why not. */
async function settledOf<T>(promises: Iterable<Promise<T>>): Promise<readonly T[]> {
  const results = await Promise.allSettled(promises)
  return results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
}

function checkPartitionCount(count: number): void {
  if (Number.isInteger(count) && count >= 1 && count <= LARGEST_PARTITION_COUNT) return
  throw new BrokerError(
    'INVALID_PARTITION',
    `a topic has 1 to ${LARGEST_PARTITION_COUNT} partitions, not ${count}`,
    { actual: count, limit: LARGEST_PARTITION_COUNT, field: 'partitions' },
  )
}

function checkSame(
  existing: Topic,
  partitions: number,
  config: ReturnType<typeof resolveConfig>,
): void {
  const differences = findDifferences(existing.config, config)
  const present = existing.entry.partitions
  if (present !== partitions) differences.unshift('partitions')
  if (differences.length === 0) return
  throw new BrokerError(
    'TOPIC_EXISTS',
    `topic ${existing.name} is there already, with other ${differences.join(', ')}`,
    { topic: existing.name, topicId: existing.id, partitions: present, differences },
  )
}

function noPartition(topic: Topic, index: number): BrokerError {
  const count = topic.entry.partitions
  const details = { topic: topic.name, partition: index, partitions: count }
  if (!Number.isSafeInteger(index) || index < 0) {
    const message = `${index} is no partition: they are numbered from 0`
    return new BrokerError('INVALID_PARTITION', message, { ...details, field: 'partition' })
  }
  const range = count === 1 ? 'only partition 0' : `${count} partitions, 0 to ${count - 1}`
  return new BrokerError(
    'UNKNOWN_PARTITION',
    `topic ${topic.name} has no partition ${index}: it has ${range}`,
    details,
  )
}
