import type { File, FileStat, FileSystem, OpenMode, UncachedFile } from '../src/fs/file-system.ts'
import { NodeFileSystem } from '../src/fs/node-file-system.ts'

/** Only chunks of this size are looked at: index entries and headers are not worth it. */
const SPARSE_FROM_BYTES = 64 * 1024
/** What is written of a sparse chunk: a block, which holds every header. */
const WRITTEN_BYTES = 4096

/**
 * The real disk, but for large chunks that are zeros after their first block: of these the block is written and the rest left a hole. What is read is
 * the same. So the engine itself makes a folder of 100 GiB in a few hundred MiB, with everything that belongs to it.
 */
export class SparseFileSystem implements FileSystem {
  readonly #disk: NodeFileSystem = new NodeFileSystem()

  async open(path: string, mode: OpenMode): Promise<File> {
    return new SparseFile(await this.#disk.open(path, mode))
  }

  openUncached(path: string): Promise<UncachedFile | undefined> {
    return this.#disk.openUncached(path)
  }

  list(path: string): Promise<string[]> {
    return this.#disk.list(path)
  }

  makeDirectory(path: string): Promise<void> {
    return this.#disk.makeDirectory(path)
  }

  rename(from: string, to: string): Promise<void> {
    return this.#disk.rename(from, to)
  }

  remove(path: string): Promise<void> {
    return this.#disk.remove(path)
  }

  removeTree(path: string): Promise<void> {
    return this.#disk.removeTree(path)
  }

  findStat(path: string): Promise<FileStat | undefined> {
    return this.#disk.findStat(path)
  }

  syncDirectory(path: string): Promise<void> {
    return this.#disk.syncDirectory(path)
  }

  space(path: string): Promise<{ readonly freeBytes: number; readonly totalBytes: number }> {
    return this.#disk.space(path)
  }
}

class SparseFile implements File {
  readonly #file: File

  constructor(file: File) {
    this.#file = file
  }

  read(into: Uint8Array, position: number): Promise<number> {
    return this.#file.read(into, position)
  }

  close(): Promise<void> {
    return this.#file.close()
  }

  size(): Promise<number> {
    return this.#file.size()
  }

  async write(chunks: readonly Uint8Array[], position: number): Promise<void> {
    let at = position
    for (const chunk of chunks) {
      if (chunk.length < SPARSE_FROM_BYTES || !isZeroBehindFirstBlock(chunk)) {
        await this.#file.write([chunk], at)
      } else {
        await this.#file.write([chunk.subarray(0, WRITTEN_BYTES)], at)
        const end = at + chunk.length
        if ((await this.#file.size()) < end) await this.#file.truncate(end)
      }
      at += chunk.length
    }
  }

  sync(): Promise<void> {
    return this.#file.sync()
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#file.truncate(sizeBytes)
  }
}

/** Memory that has been looked at: whoever makes such chunks writes to their headers only. Else 100 GiB would be read over and over. */
const known: WeakMap<object, boolean> = new WeakMap()

function isZeroBehindFirstBlock(chunk: Uint8Array): boolean {
  const memory = chunk.buffer
  let isZero = known.get(memory)
  if (isZero === undefined) {
    isZero = chunk.subarray(WRITTEN_BYTES).every((byte) => byte === 0)
    known.set(memory, isZero)
  }
  return isZero
}
