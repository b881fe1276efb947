import { BrokerError, findSystemCode } from '../../common/errors.ts'
import type { File, FileSystem } from '../../fs/file-system.ts'
import type { OffsetIndex } from '../../segment/offset-index.ts'
import type { TimeIndex } from '../../segment/time-index.ts'

export interface SegmentIndexes {
  readonly offsets: OffsetIndex
  readonly times: TimeIndex
}

/**
 * A segment's log file, by identity and not by name: compaction puts another file in its place, under the same name, while readers are still
 * in the old one.
 */
export class SegmentFile {
  path: string
  /** No longer part of a log: whoever still opens it closes it right after. */
  isDropped = false

  constructor(path: string) {
    this.path = path
  }
}

interface Entry {
  file: Promise<File> | undefined
  indexes: SegmentIndexes | undefined
  users: number
  /** Closed as soon as nobody uses it. */
  dropped: boolean
}

/**
 * Descriptors and indexes of sealed segments, opened on demand, least recently used first out: one bound on descriptors and one on the
 * bytes of indexes for the whole broker.
 */
export class SealedFiles {
  readonly #fs: FileSystem
  readonly #maxFiles: number
  readonly #maxIndexBytes: number
  /** In order of last use. */
  readonly #entries = new Map<SegmentFile, Entry>()
  #openFiles = 0
  #indexBytes = 0

  constructor(fs: FileSystem, maxFiles: number, maxIndexBytes: number) {
    this.#fs = fs
    this.#maxFiles = maxFiles
    this.#maxIndexBytes = maxIndexBytes
  }

  get openFiles(): number {
    return this.#openFiles
  }

  /**
   * Runs `work` with the file open.
   * @throws BrokerError TOO_MANY_OPEN_FILES when no descriptor is to be had, even after closing idle ones; else the system error
   */
  async use<T>(segment: SegmentFile, work: (file: File) => Promise<T>): Promise<T> {
    const entry = this.#touch(segment)
    entry.users++
    try {
      entry.file ??= this.#open(segment.path)
      return await work(await entry.file)
    } catch (error) {
      if (entry.file !== undefined && (await isRejected(entry.file))) entry.file = undefined
      throw error
    } finally {
      entry.users--
      if (entry.dropped && entry.users === 0) await this.#close(entry)
      else if (this.#openFiles > this.#maxFiles) {
        await this.#closeIdle(this.#maxFiles)
      }
    }
  }

  /** The indexes of the segment, read by `load` unless they are in memory. */
  async indexes(
    segment: SegmentFile,
    load: () => Promise<SegmentIndexes>,
  ): Promise<SegmentIndexes> {
    const entry = this.#touch(segment)
    if (entry.indexes !== undefined) return entry.indexes
    const indexes = await load()
    // What someone has put there meanwhile was made from the segment itself.
    if (entry.indexes !== undefined) return entry.indexes
    if (!entry.dropped) this.setIndexes(segment, indexes)
    return indexes
  }

  setIndexes(segment: SegmentFile, indexes: SegmentIndexes): void {
    const entry = this.#touch(segment)
    if (entry.dropped) return
    this.#indexBytes += bytesOf(indexes) - bytesOf(entry.indexes)
    entry.indexes = indexes
    for (const other of this.#entries.values()) {
      if (this.#indexBytes <= this.#maxIndexBytes) break
      if (other === entry) continue
      this.#indexBytes -= bytesOf(other.indexes)
      other.indexes = undefined
    }
  }

  /** Lets go of a segment that is being deleted or replaced. Readers that are in it finish first. */
  async drop(segment: SegmentFile): Promise<void> {
    segment.isDropped = true
    const entry = this.#entries.get(segment)
    if (entry === undefined) return
    this.#indexBytes -= bytesOf(entry.indexes)
    entry.indexes = undefined
    entry.dropped = true
    this.#entries.delete(segment)
    if (entry.users === 0) await this.#close(entry)
  }

  async close(): Promise<void> {
    const entries = [...this.#entries.values()]
    this.#entries.clear()
    for (const entry of entries) {
      entry.dropped = true
      if (entry.users === 0) await this.#close(entry)
    }
  }

  #touch(segment: SegmentFile): Entry {
    const entry = this.#entries.get(segment) ?? {
      file: undefined,
      indexes: undefined,
      users: 0,
      dropped: segment.isDropped,
    }
    this.#entries.delete(segment)
    if (!entry.dropped) this.#entries.set(segment, entry)
    return entry
  }

  async #open(path: string): Promise<File> {
    for (let isRetry = false; ; isRetry = true) {
      try {
        const file = await this.#fs.open(path, 'read')
        this.#openFiles++
        return file
      } catch (error) {
        const code = findSystemCode(error)
        if (code !== 'EMFILE' && code !== 'ENFILE') throw error
        if (isRetry) {
          throw new BrokerError(
            'TOO_MANY_OPEN_FILES',
            'the process has no file descriptor left: raise its limit (ulimit -n), or read fewer old segments at once',
            {},
            error,
          )
        }
        await this.#closeIdle(Math.floor(this.#openFiles / 2))
      }
    }
  }

  /** Closes files that nobody uses until no more than `most` are open. */
  async #closeIdle(most: number): Promise<void> {
    for (const entry of this.#entries.values()) {
      if (this.#openFiles <= most) return
      if (entry.users === 0 && entry.file !== undefined) await this.#close(entry)
    }
  }

  async #close(entry: Entry): Promise<void> {
    const opening = entry.file
    if (opening === undefined) return
    entry.file = undefined
    this.#openFiles-- // Before the await: whoever looks meanwhile must not close another one in its place.
    const file = await opening
    await file.close()
  }
}

function bytesOf(indexes: SegmentIndexes | undefined): number {
  return indexes === undefined ? 0 : indexes.offsets.sizeBytes + indexes.times.sizeBytes
}

async function isRejected(promise: Promise<unknown>): Promise<boolean> {
  try {
    await promise
    return false
  } catch {
    return true // The caller has this very error already.
  }
}
