import { flushing } from './flush-error.ts'

/**
 * All that the broker asks of a disk. Two implementations: `NodeFileSystem` and `MemoryFileSystem`, which forgets
 * what was not synced. Paths are absolute, `/` separated. Failures are system errors with a `code` (ENOENT, ENOSPC, EIO …)
 * in both, so that the code above handles one kind.
 */
export interface FileSystem {
  /**
   * Opens a file. `read`: must exist, reading only. `write`: must exist, reading and writing. `create`: must not exist
   * (EEXIST), reading and writing; its name is durable only after `syncDirectory` of its folder. Files are made with mode 0600.
   */
  open(path: string, mode: OpenMode): Promise<File>
  /**
   * Opens a file for reading past the page cache (O_DIRECT): what a read returns is what the device holds. Any position and length
   * may be asked for; alignment is handled inside. Undefined where the file system does not offer it.
   */
  openUncached(path: string): Promise<UncachedFile | undefined>
  /** Names of the entries of a folder, without `.` and `..`, in no particular order. */
  list(path: string): Promise<string[]>
  /** Makes a folder (mode 0700) and those above it that are missing. Durable only after `syncDirectory` of each parent. */
  makeDirectory(path: string): Promise<void>
  /** Replaces the target if there is one. Atomic; durable only after `syncDirectory`. */
  rename(from: string, to: string): Promise<void>
  /** Removes a file. Durable only after `syncDirectory`. */
  remove(path: string): Promise<void>
  /** Removes a folder with everything in it. An absent one is no error. */
  removeTree(path: string): Promise<void>
  /** Size in bytes and kind of an entry, or undefined when there is none. */
  findStat(path: string): Promise<FileStat | undefined>
  /** Makes creations, renames and removals in this folder durable. */
  syncDirectory(path: string): Promise<void>
  /** Free and total bytes of the file system that holds `path`. */
  space(path: string): Promise<{ readonly freeBytes: number; readonly totalBytes: number }>
}

export type OpenMode = 'read' | 'write' | 'create'

export interface FileStat {
  readonly kind: 'file' | 'directory' | 'other'
  readonly sizeBytes: number
}

export interface UncachedFile {
  /** Bytes read into `into` from `position` on; less than asked for only at the end of the file. */
  read(into: Uint8Array, position: number): Promise<number>
  close(): Promise<void>
}

export interface File extends UncachedFile {
  /** Current size in bytes. */
  size(): Promise<number>
  /**
   * Writes the chunks one after the other from `position` on, with as few system calls as possible (at most 1024 chunks a call,
   * split inside). Either everything is written, or it fails: a short write that cannot be completed surfaces as the system error
   * that stopped it, and part of the bytes may then be in the file. The chunks must not change until it resolves.
   */
  write(chunks: readonly Uint8Array[], position: number): Promise<void>
  /** fdatasync: data and size are durable when it resolves. After a failure the bytes may be lost for good (CONTRACT §1). */
  sync(): Promise<void>
  /** Cuts (or extends with zeros) to `sizeBytes`. Durable only after `sync`. */
  truncate(sizeBytes: number): Promise<void>
}

/** Reads a small file whole. @throws the system error, ENOENT when there is none */
export async function readWhole(fs: FileSystem, path: string): Promise<Buffer> {
  const file = await fs.open(path, 'read')
  try {
    const buffer = Buffer.alloc(await file.size())
    return buffer.subarray(0, await file.read(buffer, 0))
  } finally {
    await file.close()
  }
}

/**
 * Replaces a small file so that after any crash either the old or the new content is there: written beside it, synced, renamed over it,
 * directory synced. `directory` must exist.
 * @throws FlushError when a sync fails, else the system error
 */
export async function replaceFile(
  fs: FileSystem,
  directory: string,
  name: string,
  content: Uint8Array,
): Promise<void> {
  const temporary = `${directory}/${name}.tmp`
  if ((await fs.findStat(temporary)) !== undefined) await fs.remove(temporary)
  const file = await fs.open(temporary, 'create')
  try {
    await file.write([content], 0)
    await flushing(`${name}.tmp`, file.sync())
  } finally {
    await file.close()
  }
  await fs.rename(temporary, `${directory}/${name}`)
  await flushing(`the folder of ${name}`, fs.syncDirectory(directory))
}
