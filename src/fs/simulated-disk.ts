import type { SeededRandom } from '../common/random.ts'
import { invariant } from '../common/assert.ts'
import { PagedBytes } from './paged-bytes.ts'

/**
 * What a disk and the kernel's cache before it hold, as a plain state machine over a journal of operations: `apply` one after the other, at any
 * point ask what a power cut would leave. No promises, no clock. `MemoryFileSystem` is the file system made of it.
 *
 * Two worlds side by side. The cache is what running programs see: every operation shows in it at once. The device is what is there after a
 * power cut: it gets file content by a sync of the file and names by a sync of their directory, neither by the other's. What has been done
 * since is pending: each piece of it may or may not have reached the device.
 */

/** Number of a file or directory. Names point at inodes; an inode without a name lives on while it is open. */
export type InodeId = number

/**
 * One operation that has taken effect. `startedAt` is the length of the journal when it was called, so that what was in flight at any
 * point can be told: a sync covers the writes that had taken effect when it was called, not those that did so before it returned.
 */
export type JournalEntry = { readonly startedAt: number; readonly path: string } & (
  | {
      readonly kind: 'write'
      readonly inode: InodeId
      readonly position: number
      readonly bytes: Uint8Array
      /** Where it really went, if elsewhere: nowhere, or to another position of the same file. */
      readonly astray: 'lost' | number | undefined
    }
  | { readonly kind: 'truncate'; readonly inode: InodeId; readonly sizeBytes: number }
  | { readonly kind: 'sync'; readonly inode: InodeId; readonly outcome: SyncOutcome }
  | {
      readonly kind: 'flip'
      readonly inode: InodeId
      readonly byte: number
      readonly bit: number
      readonly inCache: boolean
    }
  | {
      readonly kind: 'create' | 'make-directory' | 'remove' | 'remove-directory'
      readonly inode: InodeId
      readonly directory: InodeId
      readonly name: string
    }
  | {
      readonly kind: 'rename'
      readonly inode: InodeId
      readonly directory: InodeId
      readonly name: string
      readonly toDirectory: InodeId
      readonly toName: string
    }
  | { readonly kind: 'sync-directory'; readonly inode: InodeId; readonly lied: boolean }
)

/** `done`: durable. `lied`: success was reported and nothing done. An object: it failed, and what was pending is gone. */
export type SyncOutcome = 'done' | 'lied' | FailedSync

export interface FailedSync {
  /** The cache shows the new bytes, marked clean (ext4, XFS), or the old ones again (btrfs). */
  readonly cache: 'new' | 'old'
  /** How many of the pending bytes, in order of writing, had reached the device before the error. */
  readonly landedBytes: number
  /** False: writing the same range once more does not reach the device either, as seen on ext4 (CONTRACT §1). */
  readonly rewriteHeals: boolean
}

export type NameEntry = Extract<JournalEntry, { readonly name: string }>

export interface CrashOptions {
  /**
   * `prefix` (the default): of each directory's pending operations the first few happened, as on a journalling file system.
   * `independent`: each may or may not have.
   */
  readonly names?: 'prefix' | 'independent' | undefined
  /** The unit that is written whole or not at all. Left open: either, at random. */
  readonly sectorBytes?: 512 | 4096 | undefined
  /**
   * Ends the guessing: everything pending is there, or nothing of it, or what the function says, which is asked once for each name
   * operation and each sector, truncation and size change of a file that has a name.
   */
  readonly pending?: 'keep' | 'lose' | (() => boolean) | undefined
}

/** A write that had been called and had not returned. */
export interface InFlightWrite {
  readonly inode: InodeId
  readonly position: number
  readonly bytes: Uint8Array
}

type PendingChange =
  | {
      readonly kind: 'write'
      readonly index: number
      readonly position: number
      readonly bytes: Uint8Array
    }
  | { readonly kind: 'truncate'; readonly index: number; readonly sizeBytes: number }
  /** The size without the bytes: what a failed sync or a lost write leaves. */
  | { readonly kind: 'extend'; readonly index: number; readonly sizeBytes: number }

export class Inode {
  readonly id: InodeId
  readonly kind: 'file' | 'directory'
  /** Where it was last reached, for messages. */
  path: string
  cache: PagedBytes = new PagedBytes()
  durable: PagedBytes = new PagedBytes()
  pending: PendingChange[] = []
  /** The cache shows bytes that the device does not have and will not get. */
  diverged = false
  /** Ranges that do not take rewriting. */
  unhealing: { readonly start: number; readonly end: number }[] = []
  entries: Map<string, Inode> = new Map()
  durableEntries: Map<string, InodeId> = new Map()
  /** Names in the cache that point here: 0 or 1. */
  links = 0
  openHandles = 0
  syncsInFlight = 0
  /** Written and, as far as the program knows, not synced. */
  unsyncedBytes = 0

  constructor(id: InodeId, kind: 'file' | 'directory', path: string) {
    this.id = id
    this.kind = kind
    this.path = path
  }

  /** What the device holds when all that is pending and not lost has been written back. */
  deviceContent(): PagedBytes {
    if (!this.diverged) return this.cache
    const content = this.durable.clone()
    for (const change of this.pending) applyChange(content, change)
    return content
  }
}

const ROOT_ID: InodeId = 0

export class SimulatedDisk {
  readonly root: Inode
  readonly inodes: Map<InodeId, Inode> = new Map()
  #pendingNames: { readonly index: number; readonly entry: NameEntry }[] = []
  #nextId: InodeId = 1

  constructor() {
    this.root = new Inode(ROOT_ID, 'directory', '/')
    this.root.links = 1
    this.inodes.set(ROOT_ID, this.root)
  }

  /** The number that the next `create` or `make-directory` has to use. */
  get nextId(): InodeId {
    return this.#nextId
  }

  /** Lets `entry`, the operation number `index` of the journal, take effect. */
  apply(entry: JournalEntry, index: number): void {
    const inode = this.inodes.get(entry.inode)
    switch (entry.kind) {
      case 'write':
        // An inode that is missing in a replay had lost its last name for good: its content can never be seen again.
        if (inode !== undefined) applyWrite(inode, entry, index)
        return
      case 'truncate':
        if (inode !== undefined) {
          inode.cache.truncate(entry.sizeBytes)
          inode.pending.push({ kind: 'truncate', index, sizeBytes: entry.sizeBytes })
          inode.unhealing = cutRanges(inode.unhealing, entry.sizeBytes)
        }
        return
      case 'sync':
        if (inode !== undefined) applySync(inode, entry.startedAt, entry.outcome)
        return
      case 'flip':
        if (inode !== undefined) applyFlip(inode, entry, index)
        return
      case 'sync-directory':
        if (!entry.lied) this.#syncNames(entry.inode, entry.startedAt)
        return
      case 'create':
      case 'make-directory':
      case 'remove':
      case 'remove-directory':
      case 'rename':
        this.#applyName(entry, index)
        return
      default:
        throw new Error(`unknown journal entry ${String(entry satisfies never)}`)
    }
  }

  /** A handle was closed: an inode without any name is gone with its last one. */
  release(inode: Inode): void {
    inode.openHandles--
    if (inode.links === 0 && inode.openHandles === 0) this.#forgetGone([inode.id])
  }

  /** Starts a new journal here: all that is pending counts as done before its first operation. */
  restartJournal(): void {
    this.#pendingNames = this.#pendingNames.map(({ entry }) => ({ index: -1, entry }))
    for (const inode of this.inodes.values()) {
      inode.pending = inode.pending.map((change) => ({ ...change, index: -1 }))
    }
  }

  /** A copy that goes its own way; nothing is open in it. Content is shared until it changes. */
  clone(): SimulatedDisk {
    const copy = new SimulatedDisk()
    copy.#nextId = this.#nextId
    copy.#pendingNames = this.#pendingNames.slice()
    for (const inode of this.inodes.values()) {
      const twin = inode.id === ROOT_ID ? copy.root : new Inode(inode.id, inode.kind, inode.path)
      if (inode.kind === 'file') {
        twin.cache = inode.cache.clone()
        twin.durable = inode.durable.clone()
        twin.pending = inode.pending.slice()
        twin.diverged = inode.diverged
        twin.unhealing = inode.unhealing.slice()
      } else {
        twin.durableEntries = new Map(inode.durableEntries)
      }
      twin.links = inode.links
      twin.unsyncedBytes = inode.unsyncedBytes
      copy.inodes.set(twin.id, twin)
    }
    for (const inode of this.inodes.values()) {
      if (inode.kind !== 'directory') continue
      const twin = copy.#get(inode.id)
      for (const [name, child] of inode.entries) twin.entries.set(name, copy.#get(child.id))
    }
    return copy
  }

  /** How many name operations, sectors and changes of size are pending: what chance decides about in a crash. */
  countPending(inFlight: readonly InFlightWrite[], sectorBytes: number): number {
    let count = this.#pendingNames.length
    for (const inode of this.inodes.values()) {
      for (const change of pendingChanges(inode, inFlight)) {
        count += change.kind === 'write' ? pieces(change, sectorBytes).length : 1
      }
    }
    return count
  }

  /** What a power cut leaves, as a disk on which everything is durable. This one is not changed. */
  crash(
    random: SeededRandom,
    inFlight: readonly InFlightWrite[] = [],
    options: CrashOptions = {},
  ): SimulatedDisk {
    const names = this.#namesAfterCrash(random, options)
    const result = new SimulatedDisk()
    result.#nextId = this.#nextId
    const entriesOf = (id: InodeId): Map<string, InodeId> =>
      names.get(id) ?? this.#get(id).durableEntries
    const visit = (directory: Inode): void => {
      for (const [name, id] of entriesOf(directory.id)) {
        invariant(!result.inodes.has(id), `inode ${id} has two names, the second is ${name}`)
        const source = this.inodes.get(id)
        invariant(source !== undefined, `name ${name} points at the missing inode ${id}`)
        const inode = new Inode(id, source.kind, joinPath(directory.path, name))
        inode.links = 1
        result.inodes.set(id, inode)
        directory.entries.set(name, inode)
        directory.durableEntries.set(name, id)
        if (source.kind === 'directory') {
          visit(inode)
        } else {
          inode.cache = contentAfterCrash(source, inFlight, random, options)
          inode.durable = inode.cache.clone()
        }
      }
    }
    visit(result.root)
    return result
  }

  #get(id: InodeId): Inode {
    const inode = this.inodes.get(id)
    invariant(inode !== undefined, `inode ${id} is missing`)
    return inode
  }

  #applyName(entry: NameEntry, index: number): void {
    const directory = this.#get(entry.directory)
    this.#pendingNames.push({ index, entry })
    switch (entry.kind) {
      case 'create':
      case 'make-directory': {
        const kind = entry.kind === 'create' ? 'file' : 'directory'
        const inode = new Inode(entry.inode, kind, entry.path)
        inode.links = 1
        this.inodes.set(inode.id, inode)
        this.#nextId = Math.max(this.#nextId, inode.id + 1)
        directory.entries.set(entry.name, inode)
        return
      }
      case 'remove':
      case 'remove-directory': {
        const inode = directory.entries.get(entry.name)
        directory.entries.delete(entry.name)
        if (inode !== undefined) inode.links--
        return
      }
      case 'rename': {
        const target = this.#get(entry.toDirectory)
        const inode = this.#get(entry.inode)
        const replaced = target.entries.get(entry.toName)
        if (replaced !== undefined) replaced.links--
        directory.entries.delete(entry.name)
        target.entries.set(entry.toName, inode)
        inode.path = joinPath(target.path, entry.toName)
        return
      }
      default:
        throw new Error(`unknown name operation ${String(entry satisfies never)}`)
    }
  }

  /**
   * Makes durable what was pending in `directory` before `startedAt`. A rename between two directories is one change: with it goes all that
   * came before it in the other one.
   */
  #syncNames(directory: InodeId, startedAt: number): void {
    const due = new Set<InodeId>([directory])
    const absorbed: NameEntry[] = []
    const left: { readonly index: number; readonly entry: NameEntry }[] = []
    for (let i = this.#pendingNames.length - 1; i >= 0; i--) {
      const pending = this.#pendingNames[i]
      if (pending === undefined) continue
      const { entry, index } = pending
      if (index < startedAt && directoriesOf(entry).some((id) => due.has(id))) {
        for (const id of directoriesOf(entry)) due.add(id)
        absorbed.push(entry)
      } else {
        left.push(pending)
      }
    }
    this.#pendingNames = left.reverse()
    const candidates: InodeId[] = []
    for (const entry of absorbed.reverse()) {
      const gone = changeNames((id) => this.inodes.get(id)?.durableEntries, entry)
      if (gone !== undefined) candidates.push(gone)
    }
    if (candidates.length > 0) this.#forgetGone(candidates)
  }

  /** Forgets those of `candidates` that no name, durable, pending or cached, and no handle leads to any more. */
  #forgetGone(candidates: readonly InodeId[]): void {
    const named = new Set<InodeId>()
    for (const { entry } of this.#pendingNames) named.add(entry.inode)
    for (const inode of this.inodes.values()) {
      for (const id of inode.durableEntries.values()) named.add(id)
    }
    const orphans: InodeId[] = []
    for (const id of candidates) {
      const inode = this.inodes.get(id)
      if (inode === undefined || named.has(id)) continue
      if (inode.links > 0 || inode.openHandles > 0) continue
      this.inodes.delete(id)
      if (inode.kind === 'file') continue
      // What was pending in a folder that is gone for good can never matter again.
      orphans.push(...inode.durableEntries.values())
      this.#pendingNames = this.#pendingNames.filter(({ entry }) => {
        const alive = directoriesOf(entry).some((directory) => this.inodes.has(directory))
        if (!alive) orphans.push(entry.inode)
        return alive
      })
    }
    if (orphans.length > 0) this.#forgetGone(orphans)
  }

  /** The names of those directories that have something pending. */
  #namesAfterCrash(
    random: SeededRandom,
    options: CrashOptions,
  ): Map<InodeId, Map<string, InodeId>> {
    const names = new Map<InodeId, Map<string, InodeId>>()
    const counts = new Map<InodeId, number>()
    for (const { entry } of this.#pendingNames) {
      for (const id of directoriesOf(entry)) {
        counts.set(id, (counts.get(id) ?? 0) + 1)
        const directory = this.inodes.get(id)
        if (directory !== undefined && !names.has(id)) {
          names.set(id, new Map(directory.durableEntries))
        }
      }
    }
    if (this.#pendingNames.length === 0 || options.pending === 'lose') return names
    const find = (id: InodeId): Map<string, InodeId> | undefined => names.get(id)
    if (options.pending === 'keep') {
      for (const { entry } of this.#pendingNames) changeNames(find, entry)
    } else if (options.names === 'independent') {
      const choose = options.pending ?? (() => random.chance(0.5))
      for (const { entry } of this.#pendingNames) {
        if (choose()) changeNamesIfPossible(names, entry)
      }
    } else if (options.pending !== undefined) {
      const stopped = new Set<InodeId>()
      for (const { entry } of this.#pendingNames) {
        const involved = directoriesOf(entry)
        if (!involved.some((id) => stopped.has(id)) && options.pending()) {
          changeNames(find, entry)
        } else {
          for (const id of involved) stopped.add(id)
        }
      }
    } else {
      // How many operations of each directory happened; all and none are likelier than chance would have it.
      const quota = new Map<InodeId, number>()
      for (const [id, count] of counts) {
        const luck = random.below(4)
        quota.set(id, luck === 0 ? 0 : luck === 1 ? count : random.below(count + 1))
      }
      for (const { entry } of this.#pendingNames) {
        const involved = directoriesOf(entry)
        if (involved.every((id) => (quota.get(id) ?? 0) > 0)) {
          for (const id of involved) quota.set(id, (quota.get(id) ?? 0) - 1)
          changeNames(find, entry)
        } else {
          // What did not happen in one directory stops the others it touches: order within each is kept.
          for (const id of involved) quota.set(id, 0)
        }
      }
    }
    return names
  }
}

export function joinPath(directory: string, name: string): string {
  return directory === '/' ? `/${name}` : `${directory}/${name}`
}

function directoriesOf(entry: NameEntry): InodeId[] {
  return entry.kind === 'rename' && entry.toDirectory !== entry.directory
    ? [entry.directory, entry.toDirectory]
    : [entry.directory]
}

/** Does to plain name maps what `entry` did. Returns the inode whose name it took away, if any. */
function changeNames(
  find: (id: InodeId) => Map<string, InodeId> | undefined,
  entry: NameEntry,
): InodeId | undefined {
  const directory = find(entry.directory)
  switch (entry.kind) {
    case 'create':
    case 'make-directory':
      directory?.set(entry.name, entry.inode)
      return undefined
    case 'remove':
    case 'remove-directory':
      directory?.delete(entry.name)
      return entry.inode
    case 'rename': {
      const target = find(entry.toDirectory)
      const replaced = target?.get(entry.toName)
      directory?.delete(entry.name)
      target?.set(entry.toName, entry.inode)
      return replaced
    }
    default:
      throw new Error(`unknown name operation ${String(entry satisfies never)}`)
  }
}

/**
 * The same where earlier operations may be missing. A file is never made over another's name, a name is only taken from the file that the
 * operation meant, and a renamed file has one name, whatever became of the renames before.
 */
function changeNamesIfPossible(
  names: ReadonlyMap<InodeId, Map<string, InodeId>>,
  entry: NameEntry,
): void {
  const directory = names.get(entry.directory)
  switch (entry.kind) {
    case 'create':
    case 'make-directory':
      if (directory?.has(entry.name) === false) directory.set(entry.name, entry.inode)
      return
    case 'remove':
    case 'remove-directory':
      if (directory?.get(entry.name) === entry.inode) directory.delete(entry.name)
      return
    case 'rename':
      for (const entries of names.values()) {
        for (const [name, id] of entries) if (id === entry.inode) entries.delete(name)
      }
      names.get(entry.toDirectory)?.set(entry.toName, entry.inode)
      return
    default:
      throw new Error(`unknown name operation ${String(entry satisfies never)}`)
  }
}

function applyChange(content: PagedBytes, change: PendingChange): void {
  switch (change.kind) {
    case 'write':
      content.write(change.bytes, change.position)
      return
    case 'truncate':
      content.truncate(change.sizeBytes)
      return
    case 'extend':
      if (content.size < change.sizeBytes) content.truncate(change.sizeBytes)
      return
    default:
      throw new Error(`unknown change ${String(change satisfies never)}`)
  }
}

function applyWrite(
  inode: Inode,
  entry: Extract<JournalEntry, { readonly kind: 'write' }>,
  index: number,
): void {
  const { bytes, position, astray } = entry
  if (bytes.length === 0) return
  inode.cache.write(bytes, position)
  if (astray !== undefined) {
    inode.diverged = true
    inode.pending.push({ kind: 'extend', index, sizeBytes: position + bytes.length })
    if (astray !== 'lost') inode.pending.push({ kind: 'write', index, position: astray, bytes })
    return
  }
  if (inode.unhealing.length === 0) {
    inode.pending.push({ kind: 'write', index, position, bytes })
    return
  }
  inode.pending.push({ kind: 'extend', index, sizeBytes: position + bytes.length })
  for (const { start, end } of outside(inode.unhealing, position, position + bytes.length)) {
    const piece = bytes.subarray(start - position, end - position)
    inode.pending.push({ kind: 'write', index, position: start, bytes: piece })
  }
}

function applySync(inode: Inode, startedAt: number, outcome: SyncOutcome): void {
  if (outcome === 'lied') return
  const covered = inode.pending.filter((change) => change.index < startedAt)
  if (covered.length === 0) return
  const left = inode.pending.slice(covered.length)
  if (outcome === 'done') {
    // Sharing the cache's pages is cheaper than writing the bytes a second time.
    if (left.length === 0 && !inode.diverged) inode.durable = inode.cache.clone()
    else for (const change of covered) applyChange(inode.durable, change)
    inode.pending = left
    return
  }
  const doubtful: PendingChange[] = []
  let landed = outcome.landedBytes
  for (const change of covered) {
    if (change.kind !== 'write') {
      doubtful.push(change)
      continue
    }
    const { index, position, bytes } = change
    const count = Math.min(landed, bytes.length)
    landed -= count
    if (count > 0) {
      doubtful.push({ kind: 'write', index, position, bytes: bytes.subarray(0, count) })
    }
    if (count < bytes.length) {
      // The size may well land, with zeros where the bytes should be: that is what was seen on ext4 and XFS.
      doubtful.push({ kind: 'extend', index, sizeBytes: position + bytes.length })
      inode.diverged = true
      if (!outcome.rewriteHeals) {
        inode.unhealing.push({ start: position + count, end: position + bytes.length })
      }
    }
  }
  inode.pending = [...doubtful, ...left]
  if (outcome.cache === 'old') {
    inode.cache = inode.deviceContent().clone()
    inode.diverged = false
  }
}

function applyFlip(
  inode: Inode,
  entry: Extract<JournalEntry, { readonly kind: 'flip' }>,
  index: number,
): void {
  const { byte, bit } = entry
  const onDevice = flipped(inode.deviceContent(), byte, bit)
  if (inode.durable.size > byte) inode.durable.write(flipped(inode.durable, byte, bit), byte)
  const isPending = inode.pending.some(
    (change) =>
      change.kind === 'write' &&
      change.position <= byte &&
      byte < change.position + change.bytes.length,
  )
  if (isPending) inode.pending.push({ kind: 'write', index, position: byte, bytes: onDevice })
  if (entry.inCache) inode.cache.write(flipped(inode.cache, byte, bit), byte)
  else inode.diverged = true
}

function flipped(content: PagedBytes, byte: number, bit: number): Uint8Array {
  const one = new Uint8Array(1)
  content.read(one, byte)
  one[0] = (one[0] ?? 0) ^ (1 << bit)
  return one
}

/** What is pending of a file, with its writes in flight last. */
function pendingChanges(inode: Inode, inFlight: readonly InFlightWrite[]): PendingChange[] {
  const changes = inode.pending.slice()
  for (const { inode: id, position, bytes } of inFlight) {
    if (id === inode.id) changes.push({ kind: 'write', index: Infinity, position, bytes })
  }
  return changes
}

/** The content of a file after a power cut: what was synced, and of the rest whatever chance lets through. */
function contentAfterCrash(
  inode: Inode,
  inFlight: readonly InFlightWrite[],
  random: SeededRandom,
  options: CrashOptions,
): PagedBytes {
  const changes = pendingChanges(inode, inFlight)
  const content = inode.durable.clone()
  if (changes.length === 0 || options.pending === 'lose') return content
  if (options.pending === 'keep') {
    for (const change of changes) applyChange(content, change)
    return content
  }
  if (options.pending !== undefined) {
    for (const change of changes) {
      const parts = change.kind === 'write' ? pieces(change, options.sectorBytes ?? 512) : [change]
      for (const part of parts) if (options.pending()) applyChange(content, part)
    }
    return content
  }

  let fullSize = content.size
  for (const change of changes) {
    if (change.kind === 'truncate') fullSize = change.sizeBytes
    else if (change.kind === 'extend') fullSize = Math.max(fullSize, change.sizeBytes)
    else fullSize = Math.max(fullSize, change.position + change.bytes.length)
  }

  // Size before data: what lies past the durable end is zeros, or whatever was in those blocks before.
  const sizeLandsFirst = random.chance(0.25)
  if (sizeLandsFirst && random.chance(0.4) && fullSize > content.size) {
    const block = random.bytes(512)
    const durableSize = content.size
    for (let at = durableSize; at < fullSize; at += block.length) {
      content.write(block.subarray(0, Math.min(block.length, fullSize - at)), at)
    }
  }

  const sectorBytes = options.sectorBytes ?? (random.chance(0.5) ? 512 : 4096)
  const luck = random.below(8)
  const lastWhole = luck === 0 ? Infinity : luck === 1 ? -1 : random.below(changes.length + 1)
  // Where the data lies; in the garbage case the content is already larger than that.
  let exactSize = inode.durable.size
  changes.forEach((change, i) => {
    if (luck <= 4) {
      // In order: all, none, or so many whole ones and the sectors of one more, torn in order.
      if (i > lastWhole) return
      if (i < lastWhole || change.kind !== 'write') {
        exactSize = applyTracked(content, change, exactSize)
      } else {
        const torn = pieces(change, sectorBytes)
        const keep = random.below(torn.length + 1)
        for (const piece of torn.slice(0, keep)) exactSize = applyTracked(content, piece, exactSize)
      }
    } else if (change.kind !== 'write' || luck === 5) {
      // Out of order, each change whole or not at all.
      if (random.chance(0.5)) exactSize = applyTracked(content, change, exactSize)
    } else {
      // Out of order, each sector on its own.
      for (const piece of pieces(change, sectorBytes)) {
        if (random.chance(0.5)) exactSize = applyTracked(content, piece, exactSize)
      }
    }
  })

  if (sizeLandsFirst) content.truncate(Math.max(exactSize, fullSize))
  return content
}

function applyTracked(content: PagedBytes, change: PendingChange, size: number): number {
  if (change.kind === 'truncate') {
    content.truncate(change.sizeBytes)
    return change.sizeBytes
  }
  applyChange(content, change)
  const end = change.kind === 'extend' ? change.sizeBytes : change.position + change.bytes.length
  return Math.max(size, end)
}

type PendingWrite = Extract<PendingChange, { readonly kind: 'write' }>

/** A write cut at the sector borders of the file. */
function pieces(write: PendingWrite, sectorBytes: number): PendingWrite[] {
  const { index, position, bytes } = write
  const cut: PendingWrite[] = []
  let at = position
  const end = position + bytes.length
  while (at < end) {
    const next = Math.min(end, (Math.floor(at / sectorBytes) + 1) * sectorBytes)
    const piece = bytes.subarray(at - position, next - position)
    cut.push({ kind: 'write', index, position: at, bytes: piece })
    at = next
  }
  return cut
}

interface Range {
  readonly start: number
  readonly end: number
}

function cutRanges(ranges: readonly Range[], size: number): Range[] {
  return ranges
    .filter(({ start }) => start < size)
    .map(({ start, end }) => ({ start, end: Math.min(end, size) }))
}

/** The parts of `[start, end)` that lie in none of `holes`. */
function outside(holes: readonly Range[], start: number, end: number): Range[] {
  let left: Range[] = [{ start, end }]
  for (const hole of holes) {
    left = left.flatMap((range) => {
      const before = { start: range.start, end: Math.min(range.end, hole.start) }
      const after = { start: Math.max(range.start, hole.end), end: range.end }
      return [before, after].filter((part) => part.start < part.end)
    })
  }
  return left
}
