import { beforeEach, describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import { MemoryFileSystem } from '../../../src/fs/memory-file-system.ts'
import { SealedFiles, SegmentFile } from '../../../src/log/disk/sealed-files.ts'
import type { SegmentIndexes } from '../../../src/log/disk/sealed-files.ts'
import { OffsetIndex } from '../../../src/segment/offset-index.ts'
import { TimeIndex } from '../../../src/segment/time-index.ts'

let fs: MemoryFileSystem
let segments: SegmentFile[]

beforeEach(async () => {
  fs = new MemoryFileSystem()
  segments = Array.from({ length: 6 }, (_, i) => new SegmentFile(`/${i}.log`))
  for (let i = 0; i < 6; i++) {
    const file = await fs.open(`/${i}.log`, 'create')
    await file.write([Buffer.from(`segment ${i}`)], 0)
    await file.close()
  }
})

function segment(i: number): SegmentFile {
  return segments[i] ?? new SegmentFile('/absent.log')
}

async function readFirst(files: SealedFiles, i: number): Promise<string> {
  return await files.use(segment(i), async (file) => {
    const bytes = Buffer.alloc(9)
    await file.read(bytes, 0)
    return bytes.toString()
  })
}

function someIndexes(entries: number): SegmentIndexes {
  const offsets = new OffsetIndex(toOffset(0))
  for (let i = 1; i <= entries; i++) offsets.append(toOffset(i), i)
  return { offsets, times: new TimeIndex(toOffset(0)) }
}

describe('files of sealed segments', () => {
  it('are opened once and kept, the least recently used closed first', async () => {
    const files = new SealedFiles(fs, 2, 1000)
    for (const i of [0, 1, 0, 2, 0, 1]) expect(await readFirst(files, i)).toBe(`segment ${i}`)
    expect(files.openFiles).toBe(2)
    const before = fs.operations
    await readFirst(files, 0) // Still open: 1 and 0 were used last.
    expect(fs.operations - before).toBe(1)
    await files.close()
    expect(fs.openFiles).toBe(0)
  })

  it('stay open while they are in use, however many, and go when that ends', async () => {
    const files = new SealedFiles(fs, 1, 1000)
    let release = (): void => {}
    const gate = new Promise<void>((resolve) => {
      release = resolve
    })
    const uses = [0, 1, 2, 3].map((i) => files.use(segment(i), () => gate))
    while (files.openFiles < 4) await Promise.resolve()
    release()
    await Promise.all(uses)
    expect(files.openFiles).toBe(1)
  })

  it('make room for each other when the process has no descriptor left', async () => {
    const files = new SealedFiles(fs, 100, 1000)
    for (const i of [0, 1, 2]) await readFirst(files, i)
    fs.failNext({ operation: 'open' }, 'EMFILE')
    expect(await readFirst(files, 3)).toBe('segment 3')
    expect(files.openFiles).toBeLessThan(4)
    fs.failNext({ operation: 'open' }, 'ENFILE', { times: 2 })
    await expect(readFirst(files, 4)).rejects.toMatchObject({ code: 'TOO_MANY_OPEN_FILES' })
    expect(await readFirst(files, 4)).toBe('segment 4')
    await files.close()
    expect(fs.openFiles).toBe(0)
  })

  it('that could not be opened are tried again, by all who waited', async () => {
    const files = new SealedFiles(fs, 2, 1000)
    fs.failNext({ operation: 'open' }, 'EIO')
    const results = await Promise.allSettled([readFirst(files, 0), readFirst(files, 0)])
    expect(results.map(({ status }) => status)).toEqual(['rejected', 'rejected'])
    expect(await readFirst(files, 0)).toBe('segment 0')
    expect(files.openFiles).toBe(1)
  })

  it('that are dropped under a reader close when it has finished', async () => {
    const files = new SealedFiles(fs, 2, 1000)
    const use = files.use(segment(0), async (file) => {
      await files.drop(segment(0))
      return await file.size()
    })
    expect(await use).toBe(9)
    expect(fs.openFiles).toBe(0)
  })

  it('that were dropped before a reader came to open them are closed right after it', async () => {
    const files = new SealedFiles(fs, 2, 1000)
    await files.drop(segment(0))
    expect(await readFirst(files, 0)).toBe('segment 0')
    expect([files.openFiles, fs.openFiles]).toEqual([0, 0])
  })

  it('of one name but two segments are not taken for each other', async () => {
    const files = new SealedFiles(fs, 2, 1000)
    await readFirst(files, 0)
    await fs.rename('/1.log', '/0.log')
    segments[1] = new SegmentFile('/0.log')
    expect(await readFirst(files, 0)).toBe('segment 0')
    expect(await readFirst(files, 1)).toBe('segment 1')
  })

  it('share one bound on the bytes of their indexes', async () => {
    const files = new SealedFiles(fs, 2, 8 * 10)
    let loads = 0
    const load = (entries: number) => (): Promise<SegmentIndexes> => {
      loads++
      return Promise.resolve(someIndexes(entries))
    }
    await files.indexes(segment(0), load(6))
    await files.indexes(segment(1), load(4))
    await files.indexes(segment(0), load(6))
    expect(loads).toBe(2)
    await files.indexes(segment(2), load(6)) // 0 was used after 1, but neither has room beside 2.
    await files.indexes(segment(0), load(6))
    expect(loads).toBe(4)
  })

  it('keep indexes that were made anew while old ones were being read', async () => {
    const files = new SealedFiles(fs, 2, 1000)
    const made = someIndexes(3)
    const got = await files.indexes(segment(0), () => {
      files.setIndexes(segment(0), made)
      return Promise.resolve(someIndexes(1))
    })
    expect(got).toBe(made)
  })
})
