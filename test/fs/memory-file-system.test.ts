import type { File } from '../../src/fs/file-system.ts'
import { InvariantError } from '../../src/common/assert.ts'
import { findSystemCode } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { readWhole } from '../../src/fs/file-system.ts'
import { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import { describeFileSystem } from '../conformance/file-system.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'
import { describe, expect, it } from 'vitest'

describeFileSystem('MemoryFileSystem', async () => {
  const fs = new MemoryFileSystem()
  await fs.makeDirectory('/root')
  return { fs, root: '/root', uncached: true }
})

/** A file whose name and first content are durable. */
async function aFile(
  fs: MemoryFileSystem,
  content = 'durable',
  path = '/a',
): Promise<File & { readonly path: string }> {
  const file = await fs.open(path, 'create')
  await file.write([Buffer.from(content)], 0)
  await file.sync()
  await fs.syncDirectory('/')
  return { ...file, path }
}

async function codeOf(promise: Promise<unknown>): Promise<string | undefined> {
  try {
    await promise
  } catch (error) {
    return findSystemCode(error)
  }
  return undefined
}

async function read(fs: MemoryFileSystem, path: string): Promise<string> {
  return (await readWhole(fs, path)).toString('latin1')
}

async function readUncached(fs: MemoryFileSystem, path: string): Promise<string | undefined> {
  const file = await fs.openUncached(path)
  const into = Buffer.alloc(1000)
  const count = await file?.read(into, 0)
  await file?.close()
  return into.toString('latin1', 0, count)
}

/** What a power cut now leaves when everything pending reaches the device that can. */
function kept(fs: MemoryFileSystem, path: string): string | undefined {
  return fs.crash(new SeededRandom(1), { pending: 'keep' }).contentOf(path)?.toString('latin1')
}

describe('injected errors', () => {
  it('strikes at the Nth matching call, as often as asked, and at no other', async () => {
    const fs = new MemoryFileSystem()
    const a = await fs.open('/a', 'create')
    const b = await fs.open('/b', 'create')
    fs.failNext({ operation: 'write', path: /^\/a$/, nth: 3 }, 'EIO', { times: 2 })
    const codes: (string | undefined)[] = []
    for (let i = 0; i < 5; i++) {
      codes.push(await codeOf(a.write([Buffer.from('x')], i)))
      codes.push(await codeOf(b.write([Buffer.from('x')], i)))
    }
    expect(codes.map((code) => code ?? 'ok').join(' ')).toBe('ok ok ok ok EIO ok EIO ok ok ok')
  })

  it('hits any operation when none is named', async () => {
    const operations: ((fs: MemoryFileSystem, file: File) => Promise<unknown>)[] = [
      (fs) => fs.open('/a', 'read'),
      (fs) => fs.open('/new', 'create'),
      (fs) => fs.openUncached('/a'),
      (fs) => fs.list('/'),
      (fs) => fs.makeDirectory('/d'),
      (fs) => fs.rename('/a', '/b'),
      (fs) => fs.remove('/a'),
      (fs) => fs.removeTree('/a'),
      (fs) => fs.findStat('/a'),
      (fs) => fs.syncDirectory('/'),
      (fs) => fs.space('/'),
      (_, file) => file.read(Buffer.alloc(1), 0),
      (_, file) => file.write([Buffer.from('x')], 0),
      (_, file) => file.sync(),
      (_, file) => file.truncate(0),
      (_, file) => file.size(),
    ]
    for (const error of ['EIO', 'ENOSPC', 'EDQUOT', 'EMFILE', 'EROFS'] as const) {
      for (const operation of operations) {
        const fs = new MemoryFileSystem()
        const file = await aFile(fs)
        const before = { names: fs.files(), content: fs.contentOf('/a') }
        fs.failNext({}, error)
        expect(await codeOf(operation(fs, file))).toBe(error)
        expect({ names: fs.files(), content: fs.contentOf('/a') }).toEqual(before)
        expect(await codeOf(operation(fs, file))).toBeUndefined()
      }
    }
  })

  it('leaves the first bytes of a write that fails half way', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs, '....')
    fs.failNext({ operation: 'write' }, 'EDQUOT', { partialBytes: 3 })
    expect(await codeOf(file.write([Buffer.from('12'), Buffer.from('345')], 4))).toBe('EDQUOT')
    expect(await read(fs, '/a')).toBe('....123')
  })

  it('continues reads and writes after EINTR, and surfaces it from a sync', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs)
    fs.failNext({}, 'EINTR', { times: 3, partialBytes: 2 })
    await file.write([Buffer.from('DUR')], 0)
    expect(await file.read(Buffer.alloc(3), 0)).toBe(3)
    expect(await codeOf(file.sync())).toBe('EINTR')
    expect(await read(fs, '/a')).toBe('DURable')
  })

  it('fills up: a short write, then ENOSPC, until something is removed', async () => {
    const fs = new MemoryFileSystem({ capacityBytes: 100 })
    const file = await fs.open('/a', 'create')
    await file.write([Buffer.alloc(90)], 0)
    expect(await codeOf(file.write([Buffer.alloc(20)], 90))).toBe('ENOSPC')
    expect(await file.size()).toBe(100)
    expect(await fs.space('/')).toEqual({ freeBytes: 0, totalBytes: 100 })
    await file.write([Buffer.alloc(100, 1)], 0)
    await file.truncate(40)
    await file.write([Buffer.alloc(60)], 40)
    await file.close()
    const other = await fs.open('/b', 'create')
    expect(await codeOf(other.write([Buffer.alloc(1)], 0))).toBe('ENOSPC')
    await fs.remove('/a')
    await other.write([Buffer.alloc(100)], 0)
    fs.capacityBytes = 200
    await other.write([Buffer.alloc(100)], 100)
  })

  it('fails reads that touch a bad spot, cached or not, also after a crash', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs, '0123456789')
    fs.failReads('/a', 4, 6)
    const after = fs.crash(new SeededRandom(1))
    for (const disk of [fs, after]) {
      const handle = disk === fs ? file : await disk.open('/a', 'read')
      expect(await codeOf(handle.read(Buffer.alloc(4), 0))).toBeUndefined()
      expect(await codeOf(handle.read(Buffer.alloc(5), 0))).toBe('EIO')
      expect(await codeOf(handle.read(Buffer.alloc(4), 6))).toBeUndefined()
      expect(await codeOf(readUncached(disk, '/a'))).toBe('EIO')
    }
    fs.clearFaults()
    expect(await read(fs, '/a')).toBe('0123456789')
  })

  it('flips a bit in cache and device, or on the device alone', async () => {
    const fs = new MemoryFileSystem()
    await aFile(fs, 'aaaa')
    fs.flipBit('/a', 1, 1)
    expect(await read(fs, '/a')).toBe('acaa')
    fs.flipBit('/a', 3, 1, false)
    expect(await read(fs, '/a')).toBe('acaa')
    expect(await readUncached(fs, '/a')).toBe('acac')
    expect(kept(fs, '/a')).toBe('acac')
  })

  it('flips a bit of bytes that are not synced yet', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs, '')
    await file.write([Buffer.from('aaaa')], 0)
    fs.flipBit('/a', 2, 1)
    await file.sync()
    expect(await read(fs, '/a')).toBe('aaca')
    expect(fs.durableContentOf('/a')?.toString()).toBe('aaca')
  })

  it('loses or misdirects a write that reported success', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs, '........')
    fs.misdirectNext({}, 'lost')
    await file.write([Buffer.from('AA')], 0)
    fs.misdirectNext({}, 6)
    await file.write([Buffer.from('BB')], 2)
    await file.write([Buffer.from('CC')], 8)
    await file.sync()
    expect(await read(fs, '/a')).toBe('AABB....CC')
    expect(await readUncached(fs, '/a')).toBe('......BBCC')
    expect(kept(fs, '/a')).toBe('......BBCC')
  })
})

describe('a sync that fails', () => {
  it('leaves new bytes in the cache that the device never gets, though the next sync succeeds', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs)
    await file.write([Buffer.from(' and lost')], 7)
    fs.failNext({ operation: 'sync' }, 'EIO')
    expect(await codeOf(file.sync())).toBe('EIO')
    await file.sync()
    expect(await read(fs, '/a')).toBe('durable and lost')
    const truth = `durable${'\0'.repeat(9)}`
    expect(await readUncached(fs, '/a')).toBe(truth)
    expect(kept(fs, '/a')).toBe(truth)
    // A restart without a power cut finds the lie in its cache.
    expect(await read(fs.kill(), '/a')).toBe('durable and lost')
    expect(await readUncached(fs.kill(), '/a')).toBe(truth)
  })

  it('can show the old bytes again', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs)
    await file.write([Buffer.from('DUR')], 0)
    fs.failNext({ operation: 'sync' }, 'EIO', { sync: { cache: 'old' } })
    expect(await codeOf(file.sync())).toBe('EIO')
    expect(await read(fs, '/a')).toBe('durable')
    expect(await readUncached(fs, '/a')).toBe('durable')
  })

  it('can have let the first bytes through', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs, '')
    await file.write([Buffer.from('1234')], 0)
    await file.write([Buffer.from('5678')], 4)
    fs.failNext({ operation: 'sync' }, 'EIO', { sync: { landedBytes: 6 } })
    expect(await codeOf(file.sync())).toBe('EIO')
    expect(kept(fs, '/a')).toBe('123456\0\0')
  })

  it('is healed by writing the bytes once more, unless told otherwise', async () => {
    for (const rewriteHeals of [true, false]) {
      const fs = new MemoryFileSystem()
      const file = await aFile(fs)
      await file.write([Buffer.from('1234')], 7)
      fs.failNext({ operation: 'sync' }, 'EIO', { sync: { rewriteHeals } })
      expect(await codeOf(file.sync())).toBe('EIO')
      await file.write([Buffer.from('e1234+')], 6)
      await file.sync()
      expect(await read(fs, '/a')).toBe('durable1234+')
      expect(kept(fs, '/a')).toBe(rewriteHeals ? 'durable1234+' : 'durable\0\0\0\0+')
      // As seen on ext4: truncating to the good prefix and appending again heals in any case.
      await file.truncate(7)
      await file.write([Buffer.from('1234')], 7)
      await file.sync()
      expect(kept(fs, '/a')).toBe('durable1234')
    }
  })

  it('fails for ever when asked to', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs)
    fs.failNext({ operation: 'sync' }, 'ENOSPC', { times: Infinity })
    for (let i = 0; i < 5; i++) expect(await codeOf(file.sync())).toBe('ENOSPC')
  })

  it('leaves names undecided when it is the sync of a folder', async () => {
    const fs = new MemoryFileSystem()
    await fs.open('/a', 'create')
    fs.failNext({ operation: 'syncDirectory' }, 'EIO')
    expect(await codeOf(fs.syncDirectory('/'))).toBe('EIO')
    expect(fs.crash(new SeededRandom(1), { pending: 'lose' }).files()).toEqual([])
  })
})

describe('modes', () => {
  it('promises nothing when syncs lie', async () => {
    const fs = new MemoryFileSystem({ syncsLie: true })
    await aFile(fs)
    expect(fs.crash(new SeededRandom(1), { pending: 'lose' }).files()).toEqual([])
    expect(fs.maxUnsyncedBytes).toBe(7)
  })

  it('offers no uncached reading where the file system has none', async () => {
    const fs = new MemoryFileSystem({ uncached: false })
    await aFile(fs)
    expect(await fs.openUncached('/a')).toBeUndefined()
    expect(fs.openFiles).toBe(1)
  })

  it('breaks an invariant when two syncs of one file are in flight', async () => {
    const fs = new MemoryFileSystem({ strictSync: true })
    const a = await aFile(fs, 'x', '/a')
    const b = await aFile(fs, 'x', '/b')
    await Promise.all([a.sync(), b.sync()])
    const [first, second] = await Promise.allSettled([a.sync(), a.sync()])
    expect(first.status).toBe('fulfilled')
    expect(second.status === 'rejected' && second.reason).toBeInstanceOf(InvariantError)
    await a.sync()
  })

  it('holds an operation open until its delay ends, and lets others go on', async () => {
    const clock = new FakeClock()
    const fs = new MemoryFileSystem()
    const file = await aFile(fs)
    fs.delay = (operation) =>
      operation === 'sync' ? new Promise((resolve) => clock.schedule(50, resolve)) : undefined
    let synced = false
    await file.write([Buffer.from('DUR')], 0)
    const done = file.sync().then(() => (synced = true))
    await file.write([Buffer.from('ABLE')], 3)
    await settle()
    expect(synced).toBe(false)
    await clock.advance(49)
    expect(synced).toBe(false)
    expect(kept(fs, '/a')).toBe('DURABLE')
    await clock.advance(1)
    await done
    // The sync covers what had been written when it was called, and no more.
    expect(fs.durableContentOf('/a')?.toString()).toBe('DURable')
  })

  it('covers no write that had not resolved when the sync was called', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs)
    await Promise.all([file.write([Buffer.from('late')], 7), file.sync()])
    expect(await read(fs, '/a')).toBe('durablelate')
    expect(fs.durableContentOf('/a')?.toString()).toBe('durable')
  })

  it('resolves nothing any more once it is halted', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs)
    let release: () => void = () => undefined
    fs.delay = () => new Promise((resolve) => (release = resolve))
    let resolved = 0
    void file.write([Buffer.from('x')], 0).finally(() => resolved++)
    fs.halt()
    release()
    void file.sync().finally(() => resolved++)
    void fs.list('/').finally(() => resolved++)
    await settle()
    expect(resolved).toBe(0)
    expect(await read(fs.kill(), '/a')).toBe('durable')
  })

  it('keeps no journal when asked, and still crashes at the end', async () => {
    const fs = new MemoryFileSystem({ keepJournal: false })
    const file = await aFile(fs)
    await file.write([Buffer.from('lost')], 0)
    expect(fs.journal).toEqual([])
    const after = fs.crash(new SeededRandom(1), { pending: 'lose' })
    expect(await read(after, '/a')).toBe('durable')
    expect(() => fs.crashAt(0, new SeededRandom(1))).toThrow(InvariantError)
  })
})

describe('counters', () => {
  it('counts per path what was read, written and synced', async () => {
    const fs = new MemoryFileSystem()
    const file = await aFile(fs, '1234')
    await file.write([Buffer.from('56'), Buffer.from('78')], 4)
    await file.read(Buffer.alloc(100), 2)
    await readUncached(fs, '/a')
    expect(fs.counters('/a')).toEqual({
      reads: 1,
      bytesRead: 6,
      uncachedReads: 1,
      uncachedBytesRead: 8,
      writes: 2,
      bytesWritten: 8,
      syncs: 1,
      mostSyncsInFlight: 1,
      mostUnsyncedBytes: 4,
    })
    expect(fs.counters('/').syncs).toBe(1)
    expect(fs.counters('/never').reads).toBe(0)
    expect(fs.totals()).toMatchObject({ syncs: 2, bytesWritten: 8 })
  })

  it('knows the most bytes that any file had unsynced, and the most open files', async () => {
    const fs = new MemoryFileSystem()
    const a = await aFile(fs, '12345', '/a')
    const b = await aFile(fs, '1', '/b')
    for (let i = 0; i < 3; i++) await b.write([Buffer.alloc(3)], 0)
    await b.sync()
    await a.write([Buffer.alloc(2)], 0)
    expect(fs.maxUnsyncedBytes).toBe(9)
    await Promise.all([a.close(), b.close()])
    expect(fs.openFiles).toBe(0)
    expect(fs.mostOpenFiles).toBe(2)
  })
})
