import { resolve } from 'node:path'
import type { Clock } from '../common/clock.ts'
import { BrokerError } from '../common/errors.ts'
import type { Random } from '../common/random.ts'
import { SECOND_MS } from '../common/units.ts'
import { GroupCoordinator } from '../coordination/group/group-coordinator.ts'
import { type DirectoryLock, lockDirectory } from '../fs/directory-lock.ts'
import type { FileSystem } from '../fs/file-system.ts'
import { drainingError } from '../grpc/drain.ts'
import { GrpcServer } from '../grpc/server.ts'
import type { LogStore, StartReport } from '../log/partition-log.ts'
import { Topics } from '../topic/topics.ts'
import { type BrokerConfig, formatAddress, parseAddress } from './config.ts'
import type { Logger } from './logger.ts'
import { BrokerQueues } from './queue-parts.ts'
import { findVersion } from './version.ts'

export interface BrokerOptions {
  readonly config: BrokerConfig
  readonly fs: FileSystem
  readonly clock: Clock
  readonly random: Random
  readonly logger: Logger
  /** The engine. By default the disk engine over `fs` and `config.data`, whose lock is then taken. */
  readonly storeFactory?: ((options: BrokerOptions) => Promise<LogStore>) | undefined
}

/** The only broker there is so far. */
const BROKER_ID = 1
const SPACE_CHECK_MS: number = 5 * SECOND_MS

/**
 * A whole broker: lock, port, store, topics, groups. Until these are open, calls are answered with LOADING and health says
 * NOT_SERVING. This is the one place that wires the parts together.
 */
export class Broker {
  /** Resolves with the cause when the storage broke its word: the process must end with exit code 74, without a clean stop. */
  readonly failed: Promise<Error>
  /** What recovery found. */
  readonly report: StartReport
  readonly #config: BrokerConfig
  readonly #logger: Logger
  readonly #clock: Clock
  readonly #store: LogStore
  readonly #topics: Topics
  readonly #groups: GroupCoordinator
  readonly #queues: BrokerQueues
  readonly #server: GrpcServer
  readonly #space: SpaceWatch
  readonly #lock: DirectoryLock | undefined
  #stopping: Promise<void> | undefined

  private constructor(
    options: BrokerOptions,
    parts: {
      readonly store: LogStore
      readonly topics: Topics
      readonly groups: GroupCoordinator
      readonly queues: BrokerQueues
      readonly server: GrpcServer
      readonly space: SpaceWatch
      readonly report: StartReport
      readonly lock: DirectoryLock | undefined
    },
  ) {
    this.#config = options.config
    this.#logger = options.logger
    this.#clock = options.clock
    this.#store = parts.store
    this.#topics = parts.topics
    this.#groups = parts.groups
    this.#queues = parts.queues
    this.#server = parts.server
    this.#space = parts.space
    this.#lock = parts.lock
    this.report = parts.report
    this.failed = parts.store.failed
  }

  /**
   * @throws BrokerError DIRECTORY_IN_USE, DIRECTORY_UNUSABLE, UNSUPPORTED_FORMAT, ADDRESS_IN_USE, INVALID_CONFIG. Whatever was opened has
   *   been given up again
   */
  static async start(options: BrokerOptions): Promise<Broker> {
    const { config, clock, random, logger } = options
    const listen = parseAddress('listen', config.listen)
    const space = new SpaceWatch(options)
    const server = new GrpcServer({
      clock,
      random,
      logger,
      identity: { version: findVersion(), brokerId: BROKER_ID, startedMs: clock.wallMs() },
      maxMessageBytes: config.maxMessageBytes,
      advertise: config.advertise === '' ? undefined : parseAddress('advertise', config.advertise),
      freeBytes: () => space.freeBytes,
    })
    // The lock first, before anything is touched. Then the port: a start that fails there has changed nothing. Then what may take its time.
    const lock =
      options.storeFactory === undefined ? await lockDirectory(config.data, clock) : undefined
    let store: LogStore | undefined
    let topics: Topics | undefined
    let groups: GroupCoordinator | undefined
    let queues: BrokerQueues | undefined
    try {
      await server.listen(listen.host, listen.port)
      store = await (options.storeFactory ?? openDiskStore)(options)
      topics = await Topics.open({
        store,
        clock,
        random,
        logger,
        defaultPartitions: config.defaultPartitions,
        maxPartitions: config.maxPartitions,
        retentionCheckMs: config.retentionCheckMs,
      })
      const report = await store.ready()
      groups = await GroupCoordinator.open({
        topics,
        clock,
        random,
        logger,
        options: {
          sessionTimeoutMs: config.groupSessionTimeoutMs,
          minSessionTimeoutMs: config.groupMinSessionTimeoutMs,
          maxSessionTimeoutMs: config.groupMaxSessionTimeoutMs,
          rebalanceIntervalMs: config.groupRebalanceIntervalMs,
          maxMembers: config.groupMaxSize,
          offsetsRetentionMs: config.groupOffsetsRetentionMs,
          onCorruption: config.groupOnCorruption,
        },
      })
      queues = await BrokerQueues.open({
        topics,
        groups,
        clock,
        random,
        logger,
        stateLingerMs: config.queueStateLingerMs,
      })
      await space.start()
      server.serve(topics, groups, queues)
      const address = formatAddress(server.address)
      logger.info({ ...report, address, clusterId: store.clusterId }, `listening on ${address}`)
      return new Broker(options, { store, topics, groups, queues, server, space, report, lock })
    } catch (error) {
      space.stop()
      await server.stop(0)
      await queues?.close(drainingError())
      await groups?.close(drainingError())
      await topics?.close()
      await store?.close()
      await lock?.release()
      throw error
    }
  }

  /** `host:port` where the broker listens, with the port that was picked for 0. */
  get address(): string {
    return formatAddress(this.#server.address)
  }

  get topics(): Topics {
    return this.#topics
  }

  /**
   * Refuses new work, ends streams that follow, waits for what is under way (`drainTimeoutMs` at most), flushes everything and marks the
   * store clean. Calling it again waits for the same end.
   */
  stop(): Promise<void> {
    this.#stopping ??= this.#shutDown()
    return this.#stopping
  }

  async #shutDown(): Promise<void> {
    const startMs = this.#clock.monotonicMs()
    this.#logger.info({ activeCalls: this.#server.activeCalls }, 'stopping: no new work is taken')
    this.#space.stop()
    // Workers get nothing more; what they have in hand they may still settle.
    this.#queues.drain()
    const finished = await this.#server.stop(this.#config.drainTimeoutMs)
    if (!finished) {
      this.#logger.warn(
        { drainTimeoutMs: this.#config.drainTimeoutMs },
        'some calls were still under way and have been cut off',
      )
    }
    try {
      await this.#queues.close(drainingError())
    } catch (error) {
      this.#logger.error({ error }, 'the queues could not be closed')
    }
    try {
      await this.#groups.close(drainingError())
    } catch (error) {
      this.#logger.error({ error }, 'the groups could not be closed')
    }
    try {
      await this.#topics.close()
    } catch (error) {
      // What could be flushed is; the store says for itself how clean the end was.
      this.#logger.error({ error }, 'not every topic could be closed')
    }
    try {
      await this.#store.close()
    } finally {
      await this.#lock?.release()
    }
    const elapsedMs = Math.round(this.#clock.monotonicMs() - startMs)
    this.#logger.info({ elapsedMs }, 'stopped')
  }
}

async function openDiskStore(options: BrokerOptions): Promise<LogStore> {
  const { config, fs, clock, random, logger } = options
  // Brings the whole engine with it, which a broker on another one does not need.
  const { DiskStore } = await import('../log/disk/disk-store.ts')
  return DiskStore.open({
    fs,
    directory: resolve(config.data),
    clock,
    random,
    logger,
    options: {
      cacheBytes: config.cacheBytes,
      maxSealedFiles: config.openSegments,
      checkpointIntervalMs: config.checkpointIntervalMs,
      checkpointBytes: config.checkpointBytes,
      diskFloorBytes: config.minFreeBytes,
    },
  })
}

/** Looks at the free space now and then, for DescribeBroker. The engine watches it too, and more closely, for its own purposes. */
class SpaceWatch {
  freeBytes = 0
  readonly #options: BrokerOptions
  #cancel: (() => void) | undefined
  #stopped = false

  constructor(options: BrokerOptions) {
    this.#options = options
  }

  async start(): Promise<void> {
    const { fs, config, clock, logger } = this.#options
    try {
      this.freeBytes = (await fs.space(resolve(config.data))).freeBytes
    } catch (error) {
      // An engine without a directory has none to look at.
      logger.debug({ error }, 'the free space cannot be seen')
      this.freeBytes = 0
    }
    if (this.#stopped) return
    // start() handles its failures itself and never rejects.
    this.#cancel = clock.schedule(SPACE_CHECK_MS, () => void this.start())
  }

  stop(): void {
    this.#stopped = true
    this.#cancel?.()
  }
}

/** The exit code of a start that failed, by sysexits.h: 73 (cannot create) for a directory in use, 1 for everything else. */
export function exitCodeOf(error: unknown): number {
  return error instanceof BrokerError && error.code === 'DIRECTORY_IN_USE' ? 73 : 1
}
