import { describe, expect, it } from 'vitest'
import type { File, FileSystem, OpenMode } from '../../src/fs/file-system.ts'
import type { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import { runCrashes } from '../support/crash-run.ts'

/** What the simulation must notice: a broken promise in each of these disks. */
function answeringBeforeTheSync(fs: MemoryFileSystem): FileSystem {
  const open = async (path: string, mode: OpenMode): Promise<File> => {
    const file = await fs.open(path, mode)
    if (!path.endsWith('.log')) return file
    let syncing: Promise<void> = Promise.resolve()
    return {
      size: () => file.size(),
      read: (into, position) => file.read(into, position),
      write: (chunks, position) => file.write(chunks, position),
      truncate: (sizeBytes) => file.truncate(sizeBytes),
      sync: () => {
        syncing = syncing.then(() => file.sync())
        return Promise.resolve()
      },
      close: async () => {
        await syncing
        await file.close()
      },
    }
  }
  return delegate(fs, { open })
}

function skippingDirectorySyncs(fs: MemoryFileSystem): FileSystem {
  return delegate(fs, { syncDirectory: () => Promise.resolve() })
}

function delegate(fs: MemoryFileSystem, changed: Partial<FileSystem>): FileSystem {
  return {
    open: (path, mode) => fs.open(path, mode),
    openUncached: (path) => fs.openUncached(path),
    list: (path) => fs.list(path),
    makeDirectory: (path) => fs.makeDirectory(path),
    rename: (from, to) => fs.rename(from, to),
    remove: (path) => fs.remove(path),
    removeTree: (path) => fs.removeTree(path),
    findStat: (path) => fs.findStat(path),
    syncDirectory: (path) => fs.syncDirectory(path),
    space: (path) => fs.space(path),
    ...changed,
  }
}

describe('the crash simulation', () => {
  it('notices acks before the sync', async () => {
    await expect(runCrashes(1, 20_000, { wrap: answeringBeforeTheSync })).rejects.toThrow(
      /is lost|readers had seen|appended a second time/,
    )
  })

  it('notices directories that are not synced', async () => {
    await expect(runCrashes(1, 20_000, { wrap: skippingDirectorySyncs })).rejects.toThrow(/seed/)
  })
})
