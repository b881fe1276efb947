import type { CancelTimer, Clock } from '../../common/clock.ts'
import { BrokerError, findSystemCode } from '../../common/errors.ts'
import { newUuid } from '../../common/random.ts'
import type { Random } from '../../common/random.ts'
import { readWhole, replaceFile } from '../../fs/file-system.ts'
import { FlushError, flushing } from '../../fs/flush-error.ts'
import type { File, FileSystem } from '../../fs/file-system.ts'
import type { LogConfig } from '../log-config.ts'
import type { LogStore, PartitionId, PartitionLog, StartReport } from '../partition-log.ts'
import { partitionName } from '../partition-name.ts'
import { CheckpointSlots } from './checkpoint.ts'
import type { CheckpointEntry } from './checkpoint.ts'
import { DEFAULT_DISK_OPTIONS } from './disk-environment.ts'
import type { DiskEnvironment, DiskLogger, DiskOptions } from './disk-environment.ts'
import { DiskLog } from './disk-log.ts'
import { DiskSpace } from './disk-space.ts'
import { PASSING_FAULTS, toAppendError } from './flush-queue.ts'
import { recoverPartition } from './partition-recovery.ts'
import type { RecoveryCount } from './partition-recovery.ts'
import { Scrubber } from './scrubber.ts'
import { SealedFiles } from './sealed-files.ts'
import { TailCacheBudget } from './tail-cache.ts'
import { TornFolder } from './torn-folder.ts'

export interface DiskStoreOptions {
  readonly fs: FileSystem
  /** The data directory, absolute. Made when it is not there. The caller holds its lock. */
  readonly directory: string
  readonly clock: Clock
  readonly random: Random
  readonly logger: DiskLogger
  readonly options?: Partial<DiskOptions> | undefined
}

const BROKER_FILE = 'broker.json'
const CRASH_FILE = 'crash'
const INCARNATION_FILE = 'incarnation'
const PARTITION_FILE = 'partition.json'
const FORMAT = 1
/** Not a letter of topic names, so that no partition's folder can be taken for one that is being removed. */
const DELETED_PREFIX = '~deleted.'

/** How long the note in the crash file may take: the process has to stop within a second (CONTRACT §2.3), even if the disk hangs. */
const CRASH_NOTE_MS = 500

type Mode = 'clean' | 'unclean' | 'lost'

/** The disk engine's store: one data directory. */
export class DiskStore implements LogStore {
  readonly incarnation: number
  readonly clusterId: string
  readonly failed: Promise<Error>
  readonly #fs: FileSystem
  readonly #directory: string
  readonly #clock: Clock
  readonly #logger: DiskLogger
  readonly #random: Random
  readonly #options: DiskOptions
  readonly #slots: CheckpointSlots
  readonly #mode: Mode
  readonly #env: DiskEnvironment
  readonly #space: DiskSpace
  readonly #scrubber: Scrubber
  readonly #torn: TornFolder
  readonly #crashFile: File
  readonly #startedMs: number
  readonly #logs = new Map<string, DiskLog>()
  readonly #opening = new Map<string, Promise<DiskLog>>()
  /** What the checkpoint says of partitions that have not been opened. */
  readonly #entries: Map<string, CheckpointEntry>
  /** Durable bytes of each log at the last checkpoint. */
  readonly #checkpointed = new Map<DiskLog, number>()
  readonly #background = new Set<Promise<void>>()
  readonly #count: RecoveryCount = { scannedBytes: 0, scannedBatches: 0, tornBytes: 0 }
  #uncheckpointedBytes = 0
  #isDirty = false
  /** All partitions have been opened, so that all have been recovered. */
  #isReady = false
  #running: Promise<void> | undefined
  #next: Promise<void> | undefined
  #heldBack: { promise: Promise<void>; release: (error?: BrokerError) => void } | undefined
  #parentSync: Promise<void> | undefined
  #nextParentSync: Promise<void> | undefined
  #cancelTimer: CancelTimer | undefined
  #failure: Error | undefined
  #reportFailure: (error: Error) => void = () => {}
  #closing: Promise<void> | undefined

  /**
   * Opens the data directory: reads the checkpoint and writes the next one, marked unclean, before anything else (CONTRACT §3, steps 1 to 3).
   * @throws BrokerError UNSUPPORTED_FORMAT, DIRECTORY_UNUSABLE
   */
  static async open(options: DiskStoreOptions): Promise<DiskStore> {
    const { fs, directory, clock } = options
    const startedMs = clock.monotonicMs()
    try {
      await fs.makeDirectory(directory)
      const clusterId = await readBrokerFile(fs, directory, options.random)
      const slots = new CheckpointSlots(fs, directory)
      const { checkpoint, damaged } = await slots.read()
      const names = await fs.list(directory)
      const isNew = checkpoint === undefined && damaged === 0 && !names.some(isPartitionFolder)
      const mode: Mode =
        checkpoint === undefined
          ? isNew
            ? 'clean'
            : 'lost'
          : checkpoint.clean
            ? 'clean'
            : 'unclean'
      if (damaged > 0 || mode === 'lost') {
        options.logger.error({ damaged, mode }, 'a checkpoint slot is missing or damaged')
      }
      // The newest slot may be the damaged one: an incarnation must not be used twice.
      const noted = await findNotedIncarnation(fs, directory)
      const least = mode === 'lost' && noted === undefined ? minutesSince2020(clock) : 0
      const incarnation = Math.max(checkpoint?.incarnation ?? 0, noted ?? 0, least) + 1
      const entries = checkpoint?.entries ?? []
      await slots.write({ incarnation, clean: false, entries })
      await replaceFile(fs, directory, INCARNATION_FILE, Buffer.from(`${incarnation}\n`))
      const crashFile = await openCrashFile(fs, directory)
      const parts = { slots, mode, incarnation, entries, clusterId, crashFile, startedMs }
      const store = new DiskStore(options, parts)
      try {
        await store.#space.start()
      } catch (error) {
        await crashFile.close()
        throw error
      }
      store.#removeDeleted(names)
      return store
    } catch (error) {
      const code = findSystemCode(error)
      if (code === undefined || error instanceof BrokerError) throw error
      throw new BrokerError(
        'DIRECTORY_UNUSABLE',
        `the data directory ${directory} cannot be used (${code}): it must be a folder that this user can read and write`,
        { directory, systemCode: code },
        error,
      )
    }
  }

  private constructor(
    options: DiskStoreOptions,
    parts: {
      readonly slots: CheckpointSlots
      readonly mode: Mode
      readonly incarnation: number
      readonly entries: readonly CheckpointEntry[]
      readonly clusterId: string
      readonly crashFile: File
      readonly startedMs: number
    },
  ) {
    this.#fs = options.fs
    this.#directory = options.directory
    this.#clock = options.clock
    this.#logger = options.logger
    this.#random = options.random
    this.#options = { ...DEFAULT_DISK_OPTIONS, ...options.options }
    this.#slots = parts.slots
    this.#mode = parts.mode
    this.incarnation = parts.incarnation
    this.clusterId = parts.clusterId
    this.#crashFile = parts.crashFile
    this.#startedMs = parts.startedMs
    this.#entries = new Map(parts.entries.map((entry) => [keyOf(entry), entry]))
    this.failed = new Promise((resolve) => {
      this.#reportFailure = resolve
    })
    this.#torn = new TornFolder(this.#fs, this.#directory, this.incarnation)
    this.#space = new DiskSpace({
      fs: this.#fs,
      directory: this.#directory,
      clock: this.#clock,
      logger: this.#logger,
      floorBytes: this.#options.diskFloorBytes,
      ballastBytes: this.#options.ballastBytes,
      checkMs: this.#options.diskCheckMs,
    })
    this.#scrubber = new Scrubber(this.#clock, this.#logger, this.#options.scrubBytesPerSecond)
    this.#env = this.#makeEnvironment()
  }

  #makeEnvironment(): DiskEnvironment {
    const isFull = (): boolean => this.#space.isFull
    return {
      fs: this.#fs,
      clock: this.#clock,
      logger: this.#logger,
      options: this.#options,
      incarnation: this.incarnation,
      sealedFiles: new SealedFiles(
        this.#fs,
        this.#options.maxSealedFiles,
        this.#options.maxIndexBytes,
      ),
      tailBudget: new TailCacheBudget(this.#options.cacheBytes),
      random: this.#random,
      activity: { count: 0 },
      get storageFull() {
        return isFull()
      },
      noteWritten: (bytes) => this.#noteWritten(bytes),
      hold: () => this.#hold(),
      checkpoint: () => this.#checkpoint(),
      requestCheckpoint: () => this.#requestCheckpoint(),
      fail: (error) => this.#fail(error),
      inBackground: (what, work) => this.#inBackground(what, work),
    }
  }

  get storageFull(): boolean {
    return this.#space.isFull
  }

  get freeBytes(): number {
    return this.#space.freeBytes
  }

  // ── partitions ───────────────────────────────────────────────────────────────────────────────

  async list(): Promise<readonly PartitionId[]> {
    const ids: PartitionId[] = []
    for (const name of await this.#fs.list(this.#directory)) {
      if (!isPartitionFolder(name)) continue
      const id = await readPartitionFile(this.#fs, `${this.#directory}/${name}`)
      if (id !== undefined) ids.push(id)
    }
    return ids
  }

  async open(id: PartitionId, config: LogConfig): Promise<PartitionLog> {
    this.#checkUsable()
    const name = folderName(id)
    const key = keyOf(id)
    const open = this.#logs.get(key) ?? this.#opening.get(key)
    if (open !== undefined) return await open
    const opening = this.#open(id, name, config)
    this.#opening.set(key, opening)
    try {
      return await opening
    } finally {
      this.#opening.delete(key)
    }
  }

  async #open(id: PartitionId, name: string, config: LogConfig): Promise<DiskLog> {
    const directory = `${this.#directory}/${name}`
    await this.#makePartitionFolder(id, name, directory)
    const entry = this.#entries.get(keyOf(id))
    const recovered = await recoverPartition({
      env: this.#env,
      id,
      directory,
      config,
      entry,
      // A partition that the checkpoint does not know was made after it, whatever the stop was like.
      mode: this.#mode === 'clean' && entry === undefined ? 'unclean' : this.#mode,
      torn: this.#torn,
      count: this.#count,
    })
    if (this.#failure !== undefined) {
      await recovered.active.file.close()
      this.#checkUsable()
    }
    const log = new DiskLog(this.#env, recovered, config)
    this.#logs.set(keyOf(id), log)
    this.#entries.delete(keyOf(id))
    this.#isDirty = true
    return log
  }

  async #makePartitionFolder(id: PartitionId, name: string, directory: string): Promise<void> {
    const found = await readPartitionFile(this.#fs, directory)
    if (found !== undefined) {
      if (keyOf(found) === keyOf(id)) return
      throw new BrokerError(
        'STORAGE_ERROR',
        `folder ${name} belongs to topic id ${found.topicId} (${partitionName(found)}), not to ${id.topicId} (${partitionName(id)}): it was put there by hand, or a restore mixed two up`,
        { topic: id.topic, expected: id.topicId, found: found.topicId },
      )
    }
    await this.#fs.makeDirectory(directory)
    if ((await this.#fs.list(directory)).some((file) => file.endsWith('.log'))) {
      throw new BrokerError(
        'STORAGE_ERROR',
        `folder ${name} has segments but no ${PARTITION_FILE} that says whose they are`,
        { topic: id.topic, partition: id.partition },
      )
    }
    const { topic, partition, topicId, companion } = id
    const text = `${JSON.stringify({ format: FORMAT, topic, partition, topicId, companion })}\n`
    await replaceFile(this.#fs, directory, PARTITION_FILE, Buffer.from(text))
    await this.#syncParent()
  }

  /** One directory flush for all that make folders at the same time. */
  #syncParent(): Promise<void> {
    if (this.#parentSync === undefined) {
      this.#parentSync = this.#flushParent().finally(() => {
        this.#parentSync = undefined
      })
      return this.#parentSync
    }
    // The running one may have begun before our folder was made.
    this.#nextParentSync ??= this.#parentSync
      .catch(() => undefined) // Whoever waits for that one hears of it.
      .then(() => {
        this.#nextParentSync = undefined
        return this.#syncParent()
      })
    return this.#nextParentSync
  }

  async #flushParent(): Promise<void> {
    try {
      await flushing('the data directory', this.#fs.syncDirectory(this.#directory))
    } catch (error) {
      this.#fail(error)
      throw error
    }
  }

  async remove(id: PartitionId): Promise<void> {
    const key = keyOf(id)
    const log = this.#logs.get(key) ?? (await this.#opening.get(key)?.catch(() => undefined)) // Its opener hears of it.
    if (log !== undefined) {
      await log.close()
      this.#logs.delete(key)
      this.#forget(log)
    }
    this.#entries.delete(key)
    this.#isDirty = true
    const directory = `${this.#directory}/${folderName(id)}`
    const found = await readPartitionFile(this.#fs, directory)
    if (found === undefined || keyOf(found) !== key) return
    const suffix = id.companion === undefined ? '' : `.${id.companion}`
    const away = `${this.#directory}/${DELETED_PREFIX}${id.topicId}.${id.partition}${suffix}`
    await this.#fs.rename(directory, away)
    await this.#syncParent()
    this.#inBackground(`remove ${folderName(id)}`, () => this.#fs.removeTree(away))
  }

  #forget(log: DiskLog): void {
    this.#uncheckpointedBytes -= log.writtenBytes - (this.#checkpointed.get(log) ?? 0)
    this.#checkpointed.delete(log)
    this.#releaseHeld()
  }

  /** Finishes the removals that a stop has cut short: in the background, since there may be much to remove. */
  #removeDeleted(names: readonly string[]): void {
    for (const name of names.filter((one) => one.startsWith(DELETED_PREFIX))) {
      this.#inBackground(`remove ${name}`, () => this.#fs.removeTree(`${this.#directory}/${name}`))
    }
  }

  // ── checkpoints ──────────────────────────────────────────────────────────────────────────────

  #noteWritten(bytes: number): void {
    this.#isDirty = true
    this.#uncheckpointedBytes += bytes
    if (this.#uncheckpointedBytes >= this.#options.checkpointBytes) this.#requestCheckpoint()
  }

  #hold(): Promise<void> | undefined {
    if (this.#uncheckpointedBytes < this.#options.checkpointBytes * 2) return undefined
    this.#requestCheckpoint()
    if (this.#heldBack === undefined) {
      let release = (_error?: BrokerError): void => {}
      const promise = new Promise<void>((resolve, reject) => {
        release = (error) => (error === undefined ? resolve() : reject(error))
      })
      this.#heldBack = { promise, release }
    }
    return this.#heldBack.promise
  }

  /** Lets writers look again, or, with an error, refuse what they hold. */
  #releaseHeld(error?: BrokerError): void {
    const held = this.#heldBack
    this.#heldBack = undefined
    held?.release(error)
  }

  #requestCheckpoint(): void {
    if (this.#running !== undefined || this.#failure !== undefined) return
    this.#inBackground('write a checkpoint', () => this.#checkpoint())
  }

  /** At most one is being written; whoever asks meanwhile gets the next one, which sees all that they have done. */
  #checkpoint(): Promise<void> {
    if (this.#running === undefined) {
      this.#running = this.#runCheckpoint()
      return this.#running
    }
    this.#next ??= this.#running
      .catch(() => undefined) // Whoever waits for that one hears of it.
      .then(() => {
        this.#next = undefined
        return this.#checkpoint()
      })
    return this.#next
  }

  async #runCheckpoint(): Promise<void> {
    try {
      await this.#writeCheckpoint(false)
      this.#running = undefined
      this.#releaseHeld()
    } catch (error) {
      this.#running = undefined
      this.#isDirty = true
      this.#releaseHeld(toAppendError(error))
      throw error
    }
  }

  async #writeCheckpoint(clean: boolean): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure
    this.#isDirty = false
    const covered: { readonly log: DiskLog; readonly bytes: number; entry: CheckpointEntry }[] = []
    try {
      for (const log of this.#logs.values()) {
        const bytes = log.durableBytes
        covered.push({ log, bytes, entry: await log.checkpointEntry() })
      }
      const entries = [
        ...this.#entries.values(),
        // One that has been removed meanwhile is gone.
        ...covered.filter(({ log }) => this.#logs.has(keyOf(log.id))).map(({ entry }) => entry),
      ]
      await this.#slots.write({ incarnation: this.incarnation, clean, entries })
    } catch (error) {
      // For want of space, descriptors or a writable disk it is tried again; anything else may be a flush that failed.
      const code = findSystemCode(error) ?? ''
      if (!PASSING_FAULTS.has(code)) this.#fail(error)
      else if (code === 'ENOSPC' || code === 'EDQUOT') await this.#space.noteShortage()
      throw error
    }
    for (const { log, bytes, entry } of covered) {
      if (!this.#logs.has(keyOf(log.id))) continue
      log.noteCheckpoint(entry)
      this.#uncheckpointedBytes -= bytes - (this.#checkpointed.get(log) ?? 0)
      this.#checkpointed.set(log, bytes)
    }
  }

  #scheduleCheckpoints(): void {
    this.#cancelTimer = this.#clock.schedule(this.#options.checkpointIntervalMs, () => {
      if (this.#isDirty) this.#requestCheckpoint()
      this.#scheduleCheckpoints()
    })
  }

  async ready(): Promise<StartReport> {
    this.#checkUsable()
    this.#isReady = true
    await this.#forgetRemoved()
    await this.#checkpoint()
    this.#scheduleCheckpoints()
    this.#scrubber.start(() => [...this.#logs.values()])
    let damagedRanges = 0
    let partitions = 0
    for (const log of this.#logs.values()) {
      damagedRanges += log.damagedRanges
      if (log.id.companion === undefined) partitions++
    }
    return {
      clean: this.#mode === 'clean',
      incarnation: this.incarnation,
      partitions,
      elapsedMs: Math.round(this.#clock.monotonicMs() - this.#startedMs),
      ...this.#count,
      damagedRanges,
    }
  }

  /** A stop between the removal of a partition and the next checkpoint leaves it in the last one. */
  async #forgetRemoved(): Promise<void> {
    const names = new Set(await this.#fs.list(this.#directory))
    for (const [key, entry] of this.#entries) {
      if (!names.has(folderName(entry))) this.#entries.delete(key)
    }
  }

  // ── failure, the end ─────────────────────────────────────────────────────────────────────────

  #checkUsable(): void {
    if (this.#failure !== undefined) {
      throw new BrokerError(
        'FLUSH_FAILED',
        'the store has failed and is stopping',
        {},
        this.#failure,
      )
    }
    if (this.#closing !== undefined) throw new BrokerError('CLOSED', 'the store is closed')
  }

  #inBackground(what: string, work: () => Promise<void>): void {
    const running: Promise<void> = work()
      .catch((error: unknown) => {
        // A closed log, or a store that has failed already, is no news.
        if (this.#failure !== undefined) return
        if (error instanceof FlushError && !PASSING_FAULTS.has(error.code)) this.#fail(error)
        else if (this.#closing === undefined)
          this.#logger.error({ err: error }, `could not ${what}`)
      })
      .finally(() => this.#background.delete(running))
    this.#background.add(running)
  }

  /** A flush has failed: nothing that is not known to be durable can be trusted any more, so everything stops (CONTRACT §2.3). */
  #fail(error: unknown): void {
    if (this.#failure !== undefined) return
    const failure = error instanceof Error ? error : new Error(String(error))
    this.#failure = failure
    this.#cancelTimer?.()
    this.#logger.error({ err: failure }, 'a flush to disk failed: the broker stops')
    const refusal = new BrokerError(
      'FLUSH_FAILED',
      'a flush to disk failed, so the broker is stopping: the outcome is unknown until it is up again',
      {},
      failure,
    )
    for (const log of this.#logs.values()) log.abort(refusal)
    this.#releaseHeld()
    const note = Buffer.from(
      `${new Date(this.#clock.wallMs()).toISOString()} incarnation ${this.incarnation}: a flush failed (${findSystemCode(failure) ?? failure.message})\n`,
    )
    this.#clock.schedule(CRASH_NOTE_MS, () => this.#reportFailure(failure))
    void this.#leaveNote(note, failure) // Its own failure is logged.
  }

  /** Best effort: the disk has just failed us. Then the owner is told, who stops the process. */
  async #leaveNote(note: Uint8Array, failure: Error): Promise<void> {
    try {
      await this.#crashFile.write([note], await this.#crashFile.size())
    } catch (error) {
      this.#logger.warn({ err: error }, 'no note could be left in the crash file')
    } finally {
      this.#reportFailure(failure)
    }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    this.#cancelTimer?.()
    await this.#scrubber.close()
    await this.#space.close()
    await Promise.allSettled(this.#opening.values())
    const logs = [...this.#logs.values()]
    if (this.#failure === undefined) await Promise.all(logs.map((log) => this.#flushForClose(log)))
    while (this.#background.size > 0) await Promise.all(this.#background)
    // Each is reported to whoever asked for it.
    while (this.#running !== undefined || this.#next !== undefined) {
      await Promise.allSettled([this.#running, this.#next])
    }
    if (this.#failure === undefined) {
      // Every log is at rest now: what the clean mark says is true, unless the start was given up before all partitions had been recovered.
      await this.#writeCheckpoint(this.#isReady)
    }
    for (const log of logs) await log.close()
    await this.#env.sealedFiles.close()
    await this.#crashFile.close()
  }

  /** A log that has been poisoned does not keep the others from a clean end: its file is scanned at the next start. */
  async #flushForClose(log: DiskLog): Promise<void> {
    try {
      await log.settle()
    } catch (error) {
      this.#logger.warn({ partition: log.name, err: error }, 'a partition could not be flushed')
    }
  }
}

/** The last incarnation stands in a file of its own too, in case checkpoint slots are damaged. */
async function findNotedIncarnation(
  fs: FileSystem,
  directory: string,
): Promise<number | undefined> {
  try {
    const text = (await readWhole(fs, `${directory}/${INCARNATION_FILE}`)).toString('latin1')
    return /^\d{1,9}\n$/.test(text) ? Number(text) : undefined
  } catch (error) {
    const code = findSystemCode(error)
    if (code === 'ENOENT' || code === 'EIO') return undefined
    throw error
  }
}

/** Should that be gone as well: more than any broker's starts. */
function minutesSince2020(clock: Clock): number {
  return Math.max(0, Math.floor((clock.wallMs() - Date.UTC(2020)) / 60_000))
}

/** Longer names no file system takes. That of a topic's partition never is; with what a companion adds it may be. */
const LONGEST_FOLDER_NAME = 255

type Named = Pick<PartitionId, 'topic' | 'partition' | 'topicId' | 'companion'>

function folderName(id: Named): string {
  const name = partitionName(id)
  if (name.length <= LONGEST_FOLDER_NAME) return name
  // By the topic's id then. Topics' names have no ~, so it is nobody else's.
  return `~${partitionName({ ...id, topic: id.topicId })}`
}

function keyOf(id: Named): string {
  return `${partitionName(id)}/${id.topicId}`
}

function isPartitionFolder(name: string): boolean {
  return /^(?:[A-Za-z0-9._-]+-\d+(?:\.state)?|~[0-9a-f-]+-\d+\.state)$/.test(name)
}

async function readPartitionFile(
  fs: FileSystem,
  directory: string,
): Promise<PartitionId | undefined> {
  let text: string
  try {
    text = (await readWhole(fs, `${directory}/${PARTITION_FILE}`)).toString('utf8')
  } catch (error) {
    const code = findSystemCode(error)
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    throw error
  }
  const value = parseObject(text, PARTITION_FILE)
  const { topic, partition, topicId, companion } = value
  checkFormat(value, PARTITION_FILE)
  if (typeof topic === 'string' && typeof partition === 'number' && typeof topicId === 'string') {
    if (companion === undefined) return { topic, partition, topicId }
    if (companion === 'state') return { topic, partition, topicId, companion }
  }
  throw new BrokerError(
    'STORAGE_ERROR',
    `${PARTITION_FILE} lacks topic, partition or topic id, or says what this millrace does not know`,
  )
}

interface SmallFile {
  readonly format?: unknown
  readonly topic?: unknown
  readonly partition?: unknown
  readonly topicId?: unknown
  readonly companion?: unknown
  readonly clusterId?: unknown
}

function parseObject(text: string, name: string): SmallFile {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null) return value
  } catch (error) {
    throw new BrokerError('STORAGE_ERROR', `${name} is damaged: it is not JSON`, {}, error)
  }
  throw new BrokerError('STORAGE_ERROR', `${name} is damaged: it is no object`)
}

function checkFormat(value: SmallFile, name: string): void {
  if (value.format === FORMAT) return
  throw new BrokerError(
    'UNSUPPORTED_FORMAT',
    `${name} is of format ${String(value.format)}; this millrace reads format ${FORMAT}: use a newer one`,
    { format: String(value.format) },
  )
}

function parentOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/')) || '/'
}

/**
 * Makes the data directory durable, and those above it: which of them are new cannot be told, for the lock has been taken in it before, and the
 * try that made them may have been cut short. Only before anything is in it; those above that may not be opened were not made by us.
 */
async function syncAncestors(fs: FileSystem, directory: string): Promise<void> {
  for (let path = directory; path !== '/'; path = parentOf(path)) {
    try {
      await fs.syncDirectory(parentOf(path))
    } catch (error) {
      const code = findSystemCode(error)
      if (code !== 'EACCES' && code !== 'EPERM' && code !== 'EINVAL') throw error
      return
    }
  }
}

/** The cluster id; made, durably, in a new directory. */
async function readBrokerFile(fs: FileSystem, directory: string, random: Random): Promise<string> {
  const path = `${directory}/${BROKER_FILE}`
  if ((await fs.findStat(path)) === undefined) {
    const clusterId = newUuid(random)
    const text = `${JSON.stringify({ format: FORMAT, clusterId, brokerId: 0 })}\n`
    await syncAncestors(fs, directory)
    await replaceFile(fs, directory, BROKER_FILE, Buffer.from(text))
    return clusterId
  }
  const value = parseObject((await readWhole(fs, path)).toString('utf8'), BROKER_FILE)
  checkFormat(value, BROKER_FILE)
  if (typeof value.clusterId === 'string') return value.clusterId
  throw new BrokerError('STORAGE_ERROR', `${BROKER_FILE} is damaged: it has no cluster id`)
}

/** Opened before it is needed: when a flush has failed it may be too late. */
async function openCrashFile(fs: FileSystem, directory: string): Promise<File> {
  const path = `${directory}/${CRASH_FILE}`
  return await fs.open(path, (await fs.findStat(path)) === undefined ? 'create' : 'write')
}
