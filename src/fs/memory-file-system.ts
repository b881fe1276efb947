import type { SeededRandom } from '../common/random.ts'
import type { File, FileStat, FileSystem, OpenMode, UncachedFile } from './file-system.ts'
import type { OperationName } from './operation.ts'
import type {
  CrashOptions,
  FailedSync,
  InFlightWrite,
  Inode,
  JournalEntry,
  SyncOutcome,
} from './simulated-disk.ts'
import type { SystemCode } from './system-error.ts'
import { invariant } from '../common/assert.ts'
import { TIB } from '../common/units.ts'
import { joinPath, SimulatedDisk } from './simulated-disk.ts'
import { systemError } from './system-error.ts'

export interface MemoryFileSystemOptions {
  /** ENOSPC above this, after a short write. Counts file sizes, holes included. Infinity by default. */
  readonly capacityBytes?: number | undefined
  /** Whether `openUncached` is offered. True by default. */
  readonly uncached?: boolean | undefined
  /** Negative control: syncs report success and do nothing. */
  readonly syncsLie?: boolean | undefined
  /** Two syncs of one file in flight at once break an invariant. */
  readonly strictSync?: boolean | undefined
  /** False for long runs: only crashes and kills at the end can be had, and memory does not grow with the history. */
  readonly keepJournal?: boolean | undefined
  readonly delay?: Delay | undefined
}

export interface CrashesOptions extends Omit<CrashOptions, 'pending'> {
  /** 12 by default. */
  readonly exhaustive?: number | undefined
  /** 64 by default. */
  readonly samples?: number | undefined
}

/** Holds an operation open until its promise resolves; undefined lets it go on at once. */
export type Delay = (operation: OperationName, path: string) => Promise<void> | undefined

export interface FaultMatch {
  /** Left out: any operation. */
  readonly operation?: OperationName | readonly OperationName[] | undefined
  /** Left out: any path. */
  readonly path?: RegExp | undefined
  /** The how many-th matching call from now on; 1, the next, by default. */
  readonly nth?: number | undefined
}

export interface FaultOptions {
  /** How many matching calls fail, one after the other. 1 by default; Infinity for all. */
  readonly times?: number | undefined
  /** Of a write that fails: how many bytes are written before. 0 by default. */
  readonly partialBytes?: number | undefined
  /** Of a sync that fails: what becomes of the pages. New in the cache, nothing landed and rewriting heals by default. */
  readonly sync?: Partial<FailedSync> | undefined
}

interface Fault {
  readonly match: FaultMatch
  readonly effect: SystemCode | Astray
  readonly options: FaultOptions
  /** Matching calls to let pass first. */
  skip: number
  times: number
}

/** A write that reports success while the device gets nothing, or gets it somewhere else in the file. */
type Astray = { readonly astray: 'lost' | number }

/** What was done to one path since this file system was made. */
export interface FileCounters {
  reads: number
  bytesRead: number
  uncachedReads: number
  uncachedBytesRead: number
  writes: number
  bytesWritten: number
  /** Syncs of the file, or of the folder. */
  syncs: number
  mostSyncsInFlight: number
  /** The most bytes that were written and not yet synced. */
  mostUnsyncedBytes: number
}

interface StartedWrite extends InFlightWrite {
  readonly startedAt: number
}

/** Bad spots of the medium. They stay bad across crashes. */
interface BadRange {
  readonly path: string
  readonly start: number
  readonly end: number
}

const NOMINAL_CAPACITY_BYTES: number = TIB

/** Between two of these, a crash point is reached by replaying. */
const SNAPSHOT_EVERY = 256

/**
 * The simulated disk: a file system in memory that forgets what was not synced. No I/O and no timers, every operation resolves
 * by microtasks unless `delay` holds it; so a whole history runs in microseconds, and the same seed gives the same history.
 *
 * Run a history once, then ask for the disk as a power cut after any of its operations would have left it (`crashAt`), as often as wished: the
 * live one is not touched, each answer is a file system of its own, all durable and with an empty journal, in which recovery can be run and
 * cut short in turn. `killAt` is the same for the process alone: the page cache lives on.
 *
 * An operation takes effect in a later microtask than the one it was called in, as with a real thread pool: a sync that is called
 * before a write has resolved does not cover it. The model itself is in `simulated-disk.ts`.
 */
export class MemoryFileSystem implements FileSystem {
  capacityBytes: number
  uncached: boolean
  syncsLie: boolean
  strictSync: boolean
  delay: Delay | undefined

  readonly #keepJournal: boolean
  readonly #disk: SimulatedDisk
  readonly #journal: JournalEntry[] = []
  #journalLength = 0
  readonly #inFlight = new Set<StartedWrite>()
  /** Over how many later journal entries a write has been in flight, at most. */
  #longestSpan = 0

  /** The disk before the first operation of the journal, and at some points since. Never changed, only cloned. */
  readonly #snapshots: { readonly index: number; readonly disk: SimulatedDisk }[]
  /** A disk that is being replayed forward; crash points are mostly asked for in order. */
  #cursor: { index: number; readonly disk: SimulatedDisk } | undefined

  #faults: Fault[] = []
  #badRanges: BadRange[] = []
  readonly #counters = new Map<string, FileCounters>()
  #operations = 0
  #openFiles = 0
  #mostOpenFiles = 0
  #halted = false

  constructor(options: MemoryFileSystemOptions = {}, disk?: SimulatedDisk) {
    this.capacityBytes = options.capacityBytes ?? Infinity
    this.uncached = options.uncached ?? true
    this.syncsLie = options.syncsLie ?? false
    this.strictSync = options.strictSync ?? false
    this.delay = options.delay
    this.#keepJournal = options.keepJournal ?? true
    const base = disk ?? new SimulatedDisk()
    this.#snapshots = this.#keepJournal ? [{ index: 0, disk: base }] : []
    this.#disk = base.clone()
  }

  // The file system.

  async open(path: string, mode: OpenMode): Promise<File> {
    const operation = mode === 'create' ? 'create' : 'open'
    await this.#begin(operation, path)
    const found = this.#find(operation, path)
    if (mode === 'create') {
      if (found !== undefined) throw systemError('EEXIST', 'open', path)
      const { directory, name } = this.#findParent('open', path)
      const inode = this.#disk.nextId
      this.#record({
        kind: 'create',
        startedAt: this.#journalLength,
        path,
        inode,
        directory: directory.id,
        name,
      })
      return this.#openHandle(this.#require('open', path), path, true)
    }
    if (found === undefined) throw systemError('ENOENT', 'open', path)
    if (found.kind === 'directory') throw systemError('EISDIR', 'open', path)
    return this.#openHandle(found, path, mode === 'write')
  }

  async openUncached(path: string): Promise<UncachedFile | undefined> {
    await this.#begin('openUncached', path)
    const inode = this.#require('open', path)
    if (inode.kind === 'directory') throw systemError('EISDIR', 'open', path)
    if (!this.uncached) return undefined
    this.#countOpen(inode)
    const handle = new Handle(path, () => this.#close(inode, path))
    return {
      read: (into, position) => handle.use(() => this.#read(inode, path, true, into, position)),
      close: () => handle.close(),
    }
  }

  async list(path: string): Promise<string[]> {
    await this.#begin('list', path)
    return [...this.#requireDirectory('scandir', path).entries.keys()]
  }

  async makeDirectory(path: string): Promise<void> {
    await this.#begin('makeDirectory', path)
    let directory = this.#disk.root
    for (const name of partsOf(path)) {
      let next = directory.entries.get(name)
      if (next === undefined) {
        const inode = this.#disk.nextId
        this.#record({
          kind: 'make-directory',
          startedAt: this.#journalLength,
          path: joinPath(directory.path, name),
          inode,
          directory: directory.id,
          name,
        })
        next = directory.entries.get(name)
      }
      invariant(next !== undefined, 'a folder is there once it is made')
      if (next.kind !== 'directory') {
        throw systemError(next.path === path ? 'EEXIST' : 'ENOTDIR', 'mkdir', path)
      }
      directory = next
    }
  }

  async rename(from: string, to: string): Promise<void> {
    await this.#begin('rename', from)
    const inode = this.#require('rename', from)
    const source = this.#findParent('rename', from)
    const target = this.#findParent('rename', to)
    const replaced = this.#find('rename', to)
    if (replaced === inode) return
    if (replaced !== undefined) {
      if (inode.kind === 'file' && replaced.kind === 'directory') {
        throw systemError('EISDIR', 'rename', from)
      }
      if (inode.kind === 'directory' && replaced.kind === 'file') {
        throw systemError('ENOTDIR', 'rename', from)
      }
      if (replaced.entries.size > 0) throw systemError('ENOTEMPTY', 'rename', from)
    }
    if (inode.kind === 'directory' && `${to}/`.startsWith(`${from}/`)) {
      throw systemError('EINVAL', 'rename', from)
    }
    this.#record({
      kind: 'rename',
      startedAt: this.#journalLength,
      path: from,
      inode: inode.id,
      directory: source.directory.id,
      name: source.name,
      toDirectory: target.directory.id,
      toName: target.name,
    })
  }

  async remove(path: string): Promise<void> {
    await this.#begin('remove', path)
    const inode = this.#require('unlink', path)
    if (inode.kind === 'directory') throw systemError('EISDIR', 'unlink', path)
    this.#unlink(inode, path)
  }

  async removeTree(path: string): Promise<void> {
    await this.#begin('removeTree', path)
    invariant(partsOf(path).length > 0, 'the root is not to be removed')
    const inode = this.#findEntry(path)
    if (inode !== undefined) this.#unlinkTree(inode, path)
  }

  async findStat(path: string): Promise<FileStat | undefined> {
    await this.#begin('findStat', path)
    const inode = this.#findEntry(path)
    return inode && { kind: inode.kind, sizeBytes: inode.cache.size }
  }

  async syncDirectory(path: string): Promise<void> {
    const startedAt = this.#journalLength
    const counters = this.counters(path)
    counters.syncs++
    await this.#begin('syncDirectory', path)
    const inode = this.#requireDirectory('fsync', path)
    const lied = this.syncsLie
    this.#record({ kind: 'sync-directory', startedAt, path, inode: inode.id, lied })
  }

  async space(path: string): Promise<{ freeBytes: number; totalBytes: number }> {
    await this.#begin('space', path)
    this.#require('statfs', path)
    const totalBytes = Math.min(this.capacityBytes, NOMINAL_CAPACITY_BYTES)
    return { freeBytes: Math.max(0, totalBytes - this.#usedBytes()), totalBytes }
  }

  // Crashes.

  /** What has been done, in order of taking effect. A crash point is a length of this list. */
  get journal(): readonly JournalEntry[] {
    return this.#journal
  }

  /** How many mutating operations have taken effect. Note it with each acknowledgement: a crash at or after it must keep what was acknowledged. */
  get journalLength(): number {
    return this.#journalLength
  }

  /**
   * The disk as it might be after a power cut when exactly `index` (0 to `journalLength`) operations of the journal had taken effect. What was
   * synced by then is there; everything else is up to `random`: kept, lost, torn, out of order. Writes in flight may be partly there.
   * Amortised O(1) in the length of the journal when the points are asked for in rising order.
   */
  crashAt(index: number, random: SeededRandom, options: CrashOptions = {}): MemoryFileSystem {
    const crashed = this.#diskAt(index).crash(random, this.#inFlightAt(index), options)
    return this.#successor(crashed)
  }

  /**
   * Every disk that a power cut at `index` can leave, when at most `exhaustive` things are pending (name operations in order, sectors on their
   * own): up to 2^exhaustive of them. Else `samples` of them by chance. For small histories, where luck is not good enough.
   */
  *crashesAt(
    index: number,
    random: SeededRandom,
    options: CrashesOptions = {},
  ): Generator<MemoryFileSystem> {
    const { exhaustive = 12, samples = 64, sectorBytes = 512, names } = options
    const disk = this.#diskAt(index)
    const inFlight = this.#inFlightAt(index)
    if (disk.countPending(inFlight, sectorBytes) > exhaustive) {
      for (let i = 0; i < samples; i++) {
        yield this.crashAt(index, random, { names, sectorBytes })
      }
      return
    }
    // Walks the tree of decisions: all made so far again, the last `false` turned, what is new decided `false`.
    let decisions: boolean[] | undefined = []
    while (decisions !== undefined) {
      const made: boolean[] = []
      const given = decisions
      const pending = (): boolean => {
        const decision = given[made.length] ?? false
        made.push(decision)
        return decision
      }
      yield this.crashAt(index, random, { names, sectorBytes, pending })
      const last = made.lastIndexOf(false)
      decisions = last < 0 ? undefined : [...made.slice(0, last), true]
    }
  }

  /** A power cut now. */
  crash(random: SeededRandom, options: CrashOptions = {}): MemoryFileSystem {
    return this.crashAt(this.#journalLength, random, options)
  }

  /**
   * The disk as a new process finds it when the old one was killed after `index` operations, with the power on: everything written is
   * there, and what was not synced is still not durable. With `random`, writes in flight are there up to any byte; else not at all.
   */
  killAt(index: number, random?: SeededRandom): MemoryFileSystem {
    const disk = this.#diskAt(index).clone()
    disk.restartJournal()
    if (random !== undefined) {
      for (const { inode, position, bytes } of this.#inFlightAt(index)) {
        const done = bytes.subarray(0, random.below(bytes.length + 1))
        const write = { kind: 'write', startedAt: 0, path: '', astray: undefined } as const
        disk.apply({ ...write, inode, position, bytes: done }, -1)
      }
    }
    return this.#successor(disk)
  }

  /** Kills the process now. */
  kill(random?: SeededRandom): MemoryFileSystem {
    return this.killAt(this.#journalLength, random)
  }

  /** The program that uses this is dead: no operation, under way or new, resolves any more. Ask for the crash before. */
  halt(): void {
    this.#halted = true
  }

  // Faults.

  /**
   * Lets matching calls fail. Several faults count independently; the first that is due is the one that strikes. Reads and writes are continued
   * after EINTR and EAGAIN, as the real file system does; all others surface.
   */
  failNext(match: FaultMatch, error: SystemCode, options: FaultOptions = {}): void {
    this.#addFault(match, error, options)
  }

  /** The next matching write reports success and shows in the cache; the device never gets it, or gets it at another position. */
  misdirectNext(match: Omit<FaultMatch, 'operation'>, to: 'lost' | number): void {
    this.#addFault({ ...match, operation: 'write' }, { astray: to }, {})
  }

  /** Reads that touch `[start, end)` of the file fail with EIO, from now on, also after crashes. */
  failReads(path: string, start: number = 0, end: number = Infinity): void {
    this.#badRanges.push({ path, start, end })
  }

  /** Ends all faults that have been ordered. What they have done stays done. */
  clearFaults(): void {
    this.#faults = []
    this.#badRanges = []
  }

  /** Flips a bit (0 the lowest) of a byte of the file on the device and, unless `inCache` is false, in the cache. */
  flipBit(path: string, byte: number, bit: number, inCache: boolean = true): void {
    const inode = this.#require('flip', path)
    invariant(byte >= 0 && byte < inode.cache.size, `${path} has no byte ${byte}`)
    const startedAt = this.#journalLength
    this.#record({ kind: 'flip', startedAt, path, inode: inode.id, byte, bit, inCache })
  }

  // What tests look at.

  /** What a program would read now, or undefined where there is no file. */
  contentOf(path: string): Buffer | undefined {
    const inode = this.#findEntry(path)
    return inode?.kind === 'file' ? inode.cache.toBuffer() : undefined
  }

  /** What the device holds for sure of a file that is there now, or undefined where there is none. */
  durableContentOf(path: string): Buffer | undefined {
    const inode = this.#findEntry(path)
    return inode?.kind === 'file' ? inode.durable.toBuffer() : undefined
  }

  /** Paths of all files, sorted. */
  files(): string[] {
    const paths: string[] = []
    const visit = (directory: Inode, path: string): void => {
      for (const [name, inode] of directory.entries) {
        const childPath = joinPath(path, name)
        if (inode.kind === 'directory') visit(inode, childPath)
        else paths.push(childPath)
      }
    }
    visit(this.#disk.root, '/')
    return paths.sort()
  }

  /** Counters of one path, by the name under which it was opened. Zeros when nothing was done. */
  counters(path: string): FileCounters {
    let counters = this.#counters.get(path)
    if (counters === undefined) {
      counters = newCounters()
      this.#counters.set(path, counters)
    }
    return counters
  }

  /** All counters added up; the `most…` ones are the greatest of any path. */
  totals(): FileCounters {
    const sum = newCounters()
    for (const one of this.#counters.values()) {
      sum.reads += one.reads
      sum.bytesRead += one.bytesRead
      sum.uncachedReads += one.uncachedReads
      sum.uncachedBytesRead += one.uncachedBytesRead
      sum.writes += one.writes
      sum.bytesWritten += one.bytesWritten
      sum.syncs += one.syncs
      sum.mostSyncsInFlight = Math.max(sum.mostSyncsInFlight, one.mostSyncsInFlight)
      sum.mostUnsyncedBytes = Math.max(sum.mostUnsyncedBytes, one.mostUnsyncedBytes)
    }
    return sum
  }

  /** The most bytes of any one file that were ever written and not yet synced. */
  get maxUnsyncedBytes(): number {
    return this.totals().mostUnsyncedBytes
  }

  /** How many operations of any kind have been called. */
  get operations(): number {
    return this.#operations
  }

  get openFiles(): number {
    return this.#openFiles
  }

  get mostOpenFiles(): number {
    return this.#mostOpenFiles
  }

  // Operations of open files.

  #openHandle(inode: Inode, path: string, writable: boolean): File {
    this.#countOpen(inode)
    const handle = new Handle(path, () => this.#close(inode, path))
    const mutable = <T>(run: () => Promise<T>): Promise<T> =>
      writable ? handle.use(run) : Promise.reject(systemError('EBADF', 'write', path))
    return {
      read: (into, position) => handle.use(() => this.#read(inode, path, false, into, position)),
      size: () => handle.use(() => this.#size(inode, path)),
      write: (chunks, position) => mutable(() => this.#write(inode, path, chunks, position)),
      truncate: (sizeBytes) => mutable(() => this.#truncate(inode, path, sizeBytes)),
      sync: () => handle.use(() => this.#sync(inode, path)),
      close: () => handle.close(),
    }
  }

  #countOpen(inode: Inode): void {
    inode.openHandles++
    this.#openFiles++
    this.#mostOpenFiles = Math.max(this.#mostOpenFiles, this.#openFiles)
  }

  async #close(inode: Inode, path: string): Promise<void> {
    try {
      await this.#begin('close', path)
    } finally {
      // Whatever close answers, the descriptor is gone.
      this.#openFiles--
      this.#disk.release(inode)
    }
  }

  async #size(inode: Inode, path: string): Promise<number> {
    await this.#begin('size', path)
    return inode.cache.size
  }

  async #read(
    inode: Inode,
    path: string,
    uncached: boolean,
    into: Uint8Array,
    position: number,
  ): Promise<number> {
    invariant(Number.isSafeInteger(position) && position >= 0, `no position ${position} in ${path}`)
    await this.#begin(uncached ? 'readUncached' : 'read', path)
    for (const bad of this.#badRanges) {
      if (bad.path === path && position < bad.end && bad.start < position + into.length) {
        throw systemError('EIO', 'read', path)
      }
    }
    const content = uncached ? inode.deviceContent() : inode.cache
    const count = content.read(into, position)
    const counters = this.counters(path)
    if (uncached) {
      counters.uncachedReads++
      counters.uncachedBytesRead += count
    } else {
      counters.reads++
      counters.bytesRead += count
    }
    return count
  }

  async #write(
    inode: Inode,
    path: string,
    chunks: readonly Uint8Array[],
    position: number,
  ): Promise<void> {
    invariant(Number.isSafeInteger(position) && position >= 0, `no position ${position} in ${path}`)
    const startedAt = this.#journalLength
    const bytes = concat(chunks)
    const started: StartedWrite = { inode: inode.id, position, bytes, startedAt }
    this.#inFlight.add(started)
    try {
      const fault = this.#call('write', path)
      await this.#turn('write', path)
      let error = fault && typeof fault.effect === 'string' ? fault.effect : undefined
      let count = error === undefined ? bytes.length : (fault?.options.partialBytes ?? 0)
      if (error === 'EINTR' || error === 'EAGAIN') {
        error = undefined
        count = bytes.length
      }
      if (this.capacityBytes !== Infinity) {
        const growth = Math.max(0, position + count - inode.cache.size)
        const missing = growth - Math.max(0, this.capacityBytes - this.#usedBytes())
        if (missing > 0) {
          error = 'ENOSPC'
          count = Math.max(0, count - missing)
        }
      }
      const written = bytes.subarray(0, Math.min(count, bytes.length))
      if (written.length > 0) {
        const astray = typeof fault?.effect === 'object' ? fault.effect.astray : undefined
        this.#longestSpan = Math.max(this.#longestSpan, this.#journalLength - startedAt)
        this.#record({
          kind: 'write',
          startedAt,
          path,
          inode: inode.id,
          position,
          bytes: written,
          astray,
        })
        inode.unsyncedBytes += written.length
      }
      const counters = this.counters(path)
      counters.writes++
      counters.bytesWritten += written.length
      counters.mostUnsyncedBytes = Math.max(counters.mostUnsyncedBytes, inode.unsyncedBytes)
      if (error !== undefined) throw systemError(error, 'write', path)
    } finally {
      this.#inFlight.delete(started)
    }
  }

  async #truncate(inode: Inode, path: string, sizeBytes: number): Promise<void> {
    const startedAt = this.#journalLength
    await this.#begin('truncate', path)
    this.#record({ kind: 'truncate', startedAt, path, inode: inode.id, sizeBytes })
  }

  async #sync(inode: Inode, path: string): Promise<void> {
    const startedAt = this.#journalLength
    const unsyncedAtStart = inode.unsyncedBytes
    inode.syncsInFlight++
    const counters = this.counters(path)
    counters.syncs++
    counters.mostSyncsInFlight = Math.max(counters.mostSyncsInFlight, inode.syncsInFlight)
    try {
      if (this.strictSync) {
        invariant(inode.syncsInFlight === 1, `two syncs of ${path} are in flight at once`)
      }
      const fault = this.#call('sync', path)
      await this.#turn('sync', path)
      const error = fault && typeof fault.effect === 'string' ? fault.effect : undefined
      const failed: SyncOutcome = {
        cache: 'new',
        landedBytes: 0,
        rewriteHeals: true,
        ...fault?.options.sync,
      }
      const outcome = error !== undefined ? failed : this.syncsLie ? 'lied' : 'done'
      this.#record({ kind: 'sync', startedAt, path, inode: inode.id, outcome })
      if (error !== undefined) throw systemError(error, 'fdatasync', path)
      inode.unsyncedBytes -= unsyncedAtStart
    } finally {
      inode.syncsInFlight--
    }
  }

  // Inside.

  /** Counts a call, waits its turn and lets it fail when a fault says so. What every operation but write and sync begins with. */
  async #begin(operation: OperationName, path: string): Promise<void> {
    const fault = this.#call(operation, path)
    await this.#turn(operation, path)
    if (fault === undefined || typeof fault.effect !== 'string') return
    const isRead = operation === 'read' || operation === 'readUncached'
    if (isRead && (fault.effect === 'EINTR' || fault.effect === 'EAGAIN')) return
    throw systemError(fault.effect, operation, path)
  }

  /** Faults are found when the call is made, so that the Nth call is the Nth whatever the delays. */
  #call(operation: OperationName, path: string): Fault | undefined {
    this.#operations++
    if (this.#faults.length === 0) return undefined
    let due: Fault | undefined
    for (const fault of this.#faults) {
      if (!matches(fault.match, operation, path)) continue
      if (fault.skip > 0) {
        fault.skip--
      } else if (due === undefined) {
        due = fault
        fault.times--
      }
    }
    if (due !== undefined && due.times <= 0) {
      this.#faults = this.#faults.filter((fault) => fault !== due)
    }
    return due
  }

  #turn(operation: OperationName, path: string): Promise<void> | undefined {
    if (this.#halted) return never()
    const delayed = this.delay?.(operation, path)
    return delayed?.then(() => (this.#halted ? never() : undefined))
  }

  #addFault(match: FaultMatch, effect: SystemCode | Astray, options: FaultOptions): void {
    const skip = (match.nth ?? 1) - 1
    this.#faults.push({ match, effect, options, skip, times: options.times ?? 1 })
  }

  #record(entry: JournalEntry): void {
    const index = this.#journalLength++
    if (this.#keepJournal) this.#journal.push(entry)
    this.#disk.apply(entry, index)
  }

  #unlink(inode: Inode, path: string): void {
    const { directory, name } = this.#findParent('unlink', path)
    this.#record({
      kind: inode.kind === 'file' ? 'remove' : 'remove-directory',
      startedAt: this.#journalLength,
      path,
      inode: inode.id,
      directory: directory.id,
      name,
    })
  }

  #unlinkTree(inode: Inode, path: string): void {
    for (const [name, child] of inode.entries) this.#unlinkTree(child, joinPath(path, name))
    this.#unlink(inode, path)
  }

  /** The inode at `path`; undefined when its folder has no such name. */
  #find(syscall: string, path: string): Inode | undefined {
    const parts = partsOf(path)
    const name = parts.at(-1)
    if (name === undefined) return this.#disk.root
    return this.#findParent(syscall, path).directory.entries.get(name)
  }

  /** The inode at `path`; undefined when there is none, for whatever reason. */
  #findEntry(path: string): Inode | undefined {
    let inode: Inode | undefined = this.#disk.root
    for (const name of partsOf(path)) inode = inode?.entries.get(name)
    return inode
  }

  #require(syscall: string, path: string): Inode {
    const inode = this.#find(syscall, path)
    if (inode === undefined) throw systemError('ENOENT', syscall, path)
    return inode
  }

  #requireDirectory(syscall: string, path: string): Inode {
    const inode = this.#require(syscall, path)
    if (inode.kind !== 'directory') throw systemError('ENOTDIR', syscall, path)
    return inode
  }

  #findParent(syscall: string, path: string): { directory: Inode; name: string } {
    const parts = partsOf(path)
    const name = parts.pop()
    invariant(name !== undefined, 'the root has no parent')
    let directory = this.#disk.root
    for (const part of parts) {
      const next = directory.entries.get(part)
      if (next === undefined) throw systemError('ENOENT', syscall, path)
      if (next.kind !== 'directory') throw systemError('ENOTDIR', syscall, path)
      directory = next
    }
    return { directory, name }
  }

  #usedBytes(): number {
    let used = 0
    for (const inode of this.#disk.inodes.values()) {
      if (inode.links > 0 || inode.openHandles > 0) used += inode.cache.size
    }
    return used
  }

  #diskAt(index: number): SimulatedDisk {
    invariant(
      Number.isInteger(index) && index >= 0 && index <= this.#journalLength,
      `crash point ${index} is outside [0, ${this.#journalLength}]`,
    )
    if (index === this.#journalLength) return this.#disk
    invariant(this.#keepJournal, 'without a journal only the end can be had')
    let cursor = this.#cursor
    const nearest = this.#snapshots.findLast((snapshot) => snapshot.index <= index)
    invariant(nearest !== undefined, 'the journal has a first snapshot')
    if (cursor === undefined || cursor.index > index || cursor.index < nearest.index) {
      cursor = { index: nearest.index, disk: nearest.disk.clone() }
      this.#cursor = cursor
    }
    while (cursor.index < index) {
      const entry = this.#journal[cursor.index]
      invariant(entry !== undefined, 'the journal has no holes')
      cursor.disk.apply(entry, cursor.index)
      cursor.index++
      const last = this.#snapshots.at(-1)
      if (last !== undefined && cursor.index >= last.index + SNAPSHOT_EVERY) {
        this.#snapshots.push({ index: cursor.index, disk: cursor.disk.clone() })
      }
    }
    return cursor.disk
  }

  #inFlightAt(index: number): InFlightWrite[] {
    const found: InFlightWrite[] = []
    const last = Math.min(index + this.#longestSpan, this.#journal.length - 1)
    for (let i = index; i <= last; i++) {
      const entry = this.#journal[i]
      if (entry?.kind === 'write' && entry.startedAt <= index) found.push(entry)
    }
    for (const write of this.#inFlight) if (write.startedAt <= index) found.push(write)
    return found
  }

  #successor(disk: SimulatedDisk): MemoryFileSystem {
    const { capacityBytes, uncached, syncsLie, strictSync } = this
    const options = { capacityBytes, uncached, syncsLie, strictSync }
    const next = new MemoryFileSystem({ ...options, keepJournal: this.#keepJournal }, disk)
    next.#badRanges = this.#badRanges.slice()
    return next
  }
}

/** Close waits for what is under way, as in `NodeFileSystem`; after it, EBADF. */
class Handle {
  readonly #path: string
  readonly #release: () => Promise<void>
  #inFlight = 0
  #closed: Promise<void> | undefined
  #whenIdle: (() => void) | undefined

  constructor(path: string, release: () => Promise<void>) {
    this.#path = path
    this.#release = release
  }

  async use<T>(run: () => Promise<T>): Promise<T> {
    if (this.#closed !== undefined) throw systemError('EBADF', 'use', this.#path)
    this.#inFlight++
    try {
      return await run()
    } finally {
      this.#inFlight--
      if (this.#inFlight === 0) this.#whenIdle?.()
    }
  }

  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    if (this.#inFlight > 0) {
      await new Promise<void>((resolve) => {
        this.#whenIdle = resolve
      })
    }
    await this.#release()
  }
}

function never(): Promise<never> {
  return new Promise(() => undefined)
}

function partsOf(path: string): string[] {
  invariant(path.startsWith('/'), `paths are absolute, not "${path}"`)
  return path.split('/').filter((part) => part !== '' && part !== '.')
}

/** The journal keeps the bytes; the caller may reuse its buffers. */
function concat(chunks: readonly Uint8Array[]): Uint8Array {
  let length = 0
  for (const chunk of chunks) length += chunk.length
  const all = new Uint8Array(length)
  let at = 0
  for (const chunk of chunks) {
    all.set(chunk, at)
    at += chunk.length
  }
  return all
}

function matches(match: FaultMatch, operation: OperationName, path: string): boolean {
  const { operation: wanted, path: pattern } = match
  if (typeof wanted === 'string' ? wanted !== operation : wanted?.includes(operation) === false) {
    return false
  }
  return pattern === undefined || pattern.test(path)
}

function newCounters(): FileCounters {
  return {
    reads: 0,
    bytesRead: 0,
    uncachedReads: 0,
    uncachedBytesRead: 0,
    writes: 0,
    bytesWritten: 0,
    syncs: 0,
    mostSyncsInFlight: 0,
    mostUnsyncedBytes: 0,
  }
}
