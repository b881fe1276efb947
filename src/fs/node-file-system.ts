import type { File, FileStat, FileSystem, OpenMode, UncachedFile } from './file-system.ts'
import type { OperationName } from './operation.ts'
import { invariant } from '../common/assert.ts'
import { findSystemCode } from '../common/errors.ts'
import { MIB } from '../common/units.ts'
import { makePath } from './make-path.ts'
import { systemError } from './system-error.ts'
import * as nodeFs from 'node:fs'

const FILE_MODE = 0o600
const DIRECTORY_MODE = 0o700

/** IOV_MAX on Linux: what one `writev` takes. */
const MOST_CHUNKS_PER_CALL = 1024

/** EINTR and EAGAIN are no failures of a file, but a file that answers nothing else is one. */
const MOST_RETRIES = 100

/** O_DIRECT wants memory, position and length in multiples of the device's block: 512 or 4096 bytes. */
const BLOCK_BYTES = 4096
const STAGING_BYTES: number = 1 * MIB
const STAGING_SLOTS = 4
const WASM_PAGE_BYTES = 65_536

export interface NodeFileSystemOptions {
  /** Called before each operation; may end the process or throw. For failpoints: the command line reads FAILPOINT, nothing else does. */
  readonly beforeOperation?: ((name: OperationName, path: string) => void) | undefined
  /** Called after each operation that has succeeded, before its promise resolves. */
  readonly afterOperation?: ((name: OperationName, path: string) => void) | undefined
}

type Hook = ((name: OperationName, path: string) => void) | undefined

/**
 * The real disk. Wraps node:fs's callbacks by hand: a fs/promises FileHandle costs more per call, and closes files when it is collected.
 * Reads and writes that were cut short or interrupted are continued. Syncs are never retried, not even after EINTR: nothing is known about the
 * bytes after a sync that did not succeed (CONTRACT §1).
 */
export class NodeFileSystem implements FileSystem {
  readonly #before: Hook
  readonly #after: Hook

  constructor(options: NodeFileSystemOptions = {}) {
    this.#before = options.beforeOperation
    this.#after = options.afterOperation
  }

  async open(path: string, mode: OpenMode): Promise<File> {
    const name = mode === 'create' ? 'create' : 'open'
    this.#before?.(name, path)
    const { O_RDONLY, O_RDWR, O_CREAT, O_EXCL } = nodeFs.constants
    const flags = mode === 'read' ? O_RDONLY : mode === 'write' ? O_RDWR : O_RDWR | O_CREAT | O_EXCL
    const descriptor = await openDescriptor(path, flags)
    this.#after?.(name, path)
    return new NodeFile(path, descriptor, this.#before, this.#after)
  }

  async openUncached(path: string): Promise<UncachedFile | undefined> {
    this.#before?.('openUncached', path)
    const direct = nodeFs.constants.O_DIRECT as number | undefined // Absent where the platform has none.
    if (direct === undefined) return undefined
    let descriptor: number
    try {
      descriptor = await openDescriptor(path, nodeFs.constants.O_RDONLY | direct)
    } catch (error) {
      if (isUnsupported(error)) return undefined
      throw error
    }
    const file = new NodeUncachedFile(path, descriptor, this.#before, this.#after)
    try {
      // Some file systems take the flag and refuse the read.
      await file.probe()
    } catch (error) {
      await file.close()
      if (isUnsupported(error)) return undefined
      throw error
    }
    this.#after?.('openUncached', path)
    return file
  }

  list(path: string): Promise<string[]> {
    return this.#run('list', path, (done) => nodeFs.readdir(path, done))
  }

  async makeDirectory(path: string): Promise<void> {
    this.#before?.('makeDirectory', path)
    await makePath(path, DIRECTORY_MODE)
    this.#after?.('makeDirectory', path)
  }

  rename(from: string, to: string): Promise<void> {
    return this.#run<void>('rename', from, (done) => nodeFs.rename(from, to, done))
  }

  remove(path: string): Promise<void> {
    return this.#run<void>('remove', path, (done) => nodeFs.unlink(path, done))
  }

  removeTree(path: string): Promise<void> {
    return this.#run<void>('removeTree', path, (done) =>
      nodeFs.rm(path, { recursive: true, force: true }, done),
    )
  }

  async findStat(path: string): Promise<FileStat | undefined> {
    try {
      const stats = await this.#run<nodeFs.Stats>('findStat', path, (done) =>
        nodeFs.stat(path, done),
      )
      const kind = stats.isFile() ? 'file' : stats.isDirectory() ? 'directory' : 'other'
      return { kind, sizeBytes: stats.size }
    } catch (error) {
      const code = findSystemCode(error)
      if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
      throw error
    }
  }

  async syncDirectory(path: string): Promise<void> {
    this.#before?.('syncDirectory', path)
    const { O_RDONLY, O_DIRECTORY } = nodeFs.constants
    const descriptor = await openDescriptor(path, O_RDONLY | O_DIRECTORY)
    try {
      await call<void>(path, (done) => nodeFs.fsync(descriptor, done))
    } finally {
      await closeDescriptor(path, descriptor)
    }
    this.#after?.('syncDirectory', path)
  }

  async space(path: string): Promise<{ freeBytes: number; totalBytes: number }> {
    const stats = await this.#run<nodeFs.StatsFs>('space', path, (done) =>
      nodeFs.statfs(path, done),
    )
    // bavail, not bfree: what is kept back for root is not ours.
    return { freeBytes: stats.bavail * stats.bsize, totalBytes: stats.blocks * stats.bsize }
  }

  async #run<T>(name: OperationName, path: string, start: (done: Callback<T>) => void): Promise<T> {
    this.#before?.(name, path)
    const result = await call(path, start)
    this.#after?.(name, path)
    return result
  }
}

/**
 * What a cached and an uncached file share. `close` waits for operations under way: the kernel gives a freed descriptor number to the
 * next open, and a read that still sat in the thread pool's queue would then go to another file.
 */
abstract class OpenDescriptor {
  readonly path: string
  readonly #descriptor: number
  readonly #before: Hook
  readonly #after: Hook
  #inFlight = 0
  #closed: Promise<void> | undefined
  #whenIdle: (() => void) | undefined

  constructor(path: string, descriptor: number, before: Hook, after: Hook) {
    this.path = path
    this.#descriptor = descriptor
    this.#before = before
    this.#after = after
  }

  /** Closes once the operations under way have ended. Calling it again waits for the same end. */
  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    this.#before?.('close', this.path)
    if (this.#inFlight > 0) {
      await new Promise<void>((resolve) => {
        this.#whenIdle = resolve
      })
    }
    await closeDescriptor(this.path, this.#descriptor)
    this.#after?.('close', this.path)
  }

  protected async use<T>(name: OperationName, run: (descriptor: number) => Promise<T>): Promise<T> {
    if (this.#closed !== undefined) throw systemError('EBADF', name, this.path)
    this.#before?.(name, this.path)
    this.#inFlight++
    try {
      const result = await run(this.#descriptor)
      this.#after?.(name, this.path)
      return result
    } finally {
      this.#inFlight--
      if (this.#inFlight === 0) this.#whenIdle?.()
    }
  }
}

class NodeFile extends OpenDescriptor implements File {
  size(): Promise<number> {
    return this.use('size', async (descriptor) => {
      const stats = await call<nodeFs.Stats>(this.path, (done) => nodeFs.fstat(descriptor, done))
      return stats.size
    })
  }

  read(into: Uint8Array, position: number): Promise<number> {
    return this.use('read', async (descriptor) => {
      let got = 0
      while (got < into.length) {
        const start = got
        const n = await call<number>(this.path, (done) =>
          nodeFs.read(descriptor, into, start, into.length - start, position + start, done),
        )
        if (n === 0) break
        got += n
      }
      return got
    })
  }

  write(chunks: readonly Uint8Array[], position: number): Promise<void> {
    return this.use('write', (descriptor) => this.#writeAll(descriptor, chunks, position))
  }

  async #writeAll(
    descriptor: number,
    chunks: readonly Uint8Array[],
    position: number,
  ): Promise<void> {
    let at = position
    for (let first = 0; first < chunks.length; first += MOST_CHUNKS_PER_CALL) {
      let left: readonly Uint8Array[] =
        chunks.length <= MOST_CHUNKS_PER_CALL
          ? chunks
          : chunks.slice(first, first + MOST_CHUNKS_PER_CALL)
      let leftBytes = 0
      for (const chunk of left) leftBytes += chunk.length
      while (leftBytes > 0) {
        const n = await this.#writeSome(descriptor, left, at)
        // A write that takes nothing and names no error would be asked again for ever.
        if (n === 0) throw systemError('EIO', 'write', this.path)
        at += n
        leftBytes -= n
        if (leftBytes > 0) left = dropBytes(left, n)
      }
    }
  }

  #writeSome(descriptor: number, chunks: readonly Uint8Array[], position: number): Promise<number> {
    const only = chunks[0]
    return call<number>(this.path, (done) => {
      if (chunks.length === 1 && only !== undefined) {
        nodeFs.write(descriptor, only, 0, only.length, position, done)
      } else {
        // node:fs does not change the array, though its types do not say so.
        nodeFs.writev(descriptor, chunks as Uint8Array[], position, done)
      }
    })
  }

  sync(): Promise<void> {
    return this.use('sync', (descriptor) =>
      callOnce<void>(this.path, (done) => nodeFs.fdatasync(descriptor, done)),
    )
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.use('truncate', (descriptor) =>
      call<void>(this.path, (done) => nodeFs.ftruncate(descriptor, sizeBytes, done)),
    )
  }
}

class NodeUncachedFile extends OpenDescriptor implements UncachedFile {
  /** Reads one block, to learn whether this file system really reads past its cache. */
  async probe(): Promise<void> {
    await this.use('readUncached', (descriptor) =>
      stagingPool.use((staging) => this.#readBlocks(descriptor, staging, 0, BLOCK_BYTES)),
    )
  }

  read(into: Uint8Array, position: number): Promise<number> {
    return this.use('readUncached', (descriptor) =>
      stagingPool.use((staging) => this.#readInto(descriptor, staging, into, position)),
    )
  }

  async #readInto(
    descriptor: number,
    staging: Uint8Array,
    into: Uint8Array,
    position: number,
  ): Promise<number> {
    let got = 0
    while (got < into.length) {
      const from = position + got
      const skip = from % BLOCK_BYTES
      const wanted = Math.ceil((skip + into.length - got) / BLOCK_BYTES) * BLOCK_BYTES
      const length = Math.min(wanted, staging.length)
      const n = await this.#readBlocks(descriptor, staging, from - skip, length)
      // Only a read that brings nothing new is the end: a short one may have been cut short.
      const usable = Math.min(n - skip, into.length - got)
      if (usable <= 0) break
      into.set(staging.subarray(skip, skip + usable), got)
      got += usable
    }
    return got
  }

  #readBlocks(
    descriptor: number,
    staging: Uint8Array,
    position: number,
    length: number,
  ): Promise<number> {
    return call<number>(this.path, (done) =>
      nodeFs.read(descriptor, staging, 0, length, position, done),
    )
  }
}

/**
 * A few page-aligned buffers for all O_DIRECT reads. Only a WebAssembly.Memory is page-aligned in plain Node, and each one reserves
 * gigabytes of address space for its guard pages: so there is one for the process, cut into slots, made at the first use.
 */
class StagingPool {
  readonly #free: Uint8Array[] = []
  readonly #waiting: ((slot: Uint8Array) => void)[] = []
  #made = false

  async use<T>(run: (staging: Uint8Array) => Promise<T>): Promise<T> {
    const slot = await this.#take()
    try {
      return await run(slot)
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#free.push(slot)
      else next(slot)
    }
  }

  #take(): Uint8Array | Promise<Uint8Array> {
    if (!this.#made) {
      const pages = (STAGING_BYTES * STAGING_SLOTS) / WASM_PAGE_BYTES
      const memory = new WasmMemory({ initial: pages, maximum: pages })
      for (let slot = 0; slot < STAGING_SLOTS; slot++) {
        this.#free.push(new Uint8Array(memory.buffer, slot * STAGING_BYTES, STAGING_BYTES))
      }
      this.#made = true
    }
    const slot = this.#free.pop()
    if (slot !== undefined) return slot
    return new Promise((resolve) => {
      this.#waiting.push(resolve)
    })
  }
}

/** @types/node does not declare WebAssembly, and the DOM's types would bring much else with it. */
const WasmMemory = (
  globalThis as unknown as {
    WebAssembly: {
      Memory: new (size: { initial: number; maximum: number }) => { readonly buffer: ArrayBuffer }
    }
  }
).WebAssembly.Memory

const stagingPool = new StagingPool()

type Callback<T> = (error: NodeJS.ErrnoException | null, result: T) => void

/** Runs one call of node:fs; interrupted ones again. */
async function call<T>(path: string, start: (done: Callback<T>) => void): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await callOnce(path, start)
    } catch (error) {
      const code = findSystemCode(error)
      if ((code !== 'EINTR' && code !== 'EAGAIN') || tries >= MOST_RETRIES) throw error
    }
  }
}

function callOnce<T>(path: string, start: (done: Callback<T>) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    start((error, result) => {
      if (error === null || error === undefined) {
        resolve(result)
      } else {
        // Calls on a descriptor do not say which file it was.
        error.path ??= path
        reject(error)
      }
    })
  })
}

function openDescriptor(path: string, flags: number): Promise<number> {
  invariant(path.startsWith('/'), `paths are absolute, not "${path}"`)
  return call<number>(path, (done) => nodeFs.open(path, flags, FILE_MODE, done))
}

async function closeDescriptor(path: string, descriptor: number): Promise<void> {
  try {
    await callOnce<void>(path, (done) => nodeFs.close(descriptor, done))
  } catch (error) {
    // Linux has freed the number already; closing again could hit another file.
    if (findSystemCode(error) !== 'EINTR') throw error
  }
}

function isUnsupported(error: unknown): boolean {
  const code = findSystemCode(error)
  return code === 'EINVAL' || code === 'ENOTSUP' || code === 'EOPNOTSUPP'
}

/** What is left of `chunks` without their first `count` bytes. */
function dropBytes(chunks: readonly Uint8Array[], count: number): Uint8Array[] {
  let index = 0
  let skip = count
  let chunk = chunks[0]
  while (chunk !== undefined && skip >= chunk.length) {
    skip -= chunk.length
    chunk = chunks[++index]
  }
  const rest = chunks.slice(index)
  if (chunk !== undefined && skip > 0) rest[0] = chunk.subarray(skip)
  return rest
}
