import type { File, FileSystem } from '../../src/fs/file-system.ts'
import { findSystemCode } from '../../src/common/errors.ts'
import { readWhole, replaceFile } from '../../src/fs/file-system.ts'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'

export interface FileSystemHarness {
  readonly fs: FileSystem
  /** An existing, empty folder. */
  readonly root: string
  /** Whether openUncached must be offered here. */
  readonly uncached: boolean
}

/** What every file system owes the code above it. Run against each implementation. */
export function describeFileSystem(
  name: string,
  makeHarness: () => Promise<FileSystemHarness>,
): void {
  describe(`${name} as a file system`, () => {
    describe('files', () => {
      it('reads back what was written, byte for byte', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        await file.write([bytes('hello '), bytes(''), bytes('world')], 0)
        expect(await readAll(file)).toBe('hello world')
        await file.close()
        expect((await readWhole(fs, `${root}/a`)).toString()).toBe('hello world')
      })

      it('starts empty', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        expect(await file.size()).toBe(0)
        expect(await file.read(Buffer.alloc(10), 0)).toBe(0)
        await file.close()
      })

      it('reads less than asked for only at the end, and leaves the rest of the buffer alone', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        await file.write([bytes('0123456789')], 0)
        const into = Buffer.from('..........')
        expect(await file.read(into, 7)).toBe(3)
        expect(into.toString()).toBe('789.......')
        expect(await file.read(into, 10)).toBe(0)
        expect(await file.read(into, 1000)).toBe(0)
        expect(await file.read(Buffer.alloc(0), 0)).toBe(0)
        await file.close()
      })

      it('fills the gap with zeros when a write begins past the end', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        await file.write([bytes('x')], 10_000)
        expect(await file.size()).toBe(10_001)
        const whole = Buffer.alloc(10_001, 1)
        expect(await file.read(whole, 0)).toBe(10_001)
        expect(whole.equals(Buffer.concat([Buffer.alloc(10_000), bytes('x')]))).toBe(true)
        await file.close()
      })

      it('writes nothing when there is nothing to write', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        await file.write([], 5)
        await file.write([Buffer.alloc(0)], 5)
        expect(await file.size()).toBe(0)
        await file.close()
      })

      it('takes more chunks than one system call does', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        for (const count of [1023, 1024, 1025, 2048, 5000]) {
          const chunks = Array.from({ length: count }, (_, i) => bytes(`${i},`))
          await file.truncate(0)
          await file.write(chunks, 0)
          expect(await readAll(file)).toBe(Buffer.concat(chunks).toString())
        }
        await file.close()
      })

      it('truncates: cuts, extends with zeros, and shows nothing of what was cut', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        await file.write([bytes('0123456789')], 0)
        await file.truncate(4)
        expect(await readAll(file)).toBe('0123')
        await file.truncate(8)
        expect(await readAll(file)).toBe('0123\0\0\0\0')
        await file.truncate(0)
        expect(await readAll(file)).toBe('')
        await file.close()
      })

      it('shows a write through every handle that is open', async () => {
        const { fs, root } = await makeHarness()
        const writer = await fs.open(`${root}/a`, 'create')
        const reader = await fs.open(`${root}/a`, 'read')
        await writer.write([bytes('seen')], 0)
        expect(await readAll(reader)).toBe('seen')
        await writer.close()
        await reader.close()
      })

      it('syncs an empty, a changed and an unchanged file', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        await file.sync()
        await file.write([bytes('x')], 0)
        await file.sync()
        await file.sync()
        await file.close()
      })

      it('keeps parallel writes and reads of one file apart', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        await Promise.all(
          Array.from({ length: 50 }, (_, i) => file.write([Buffer.alloc(1000, i)], i * 1000)),
        )
        const all = await Promise.all(
          Array.from({ length: 50 }, async (_, i) => {
            const into = Buffer.alloc(1000)
            await file.read(into, i * 1000)
            return into
          }),
        )
        all.forEach((block, i) => expect(block.equals(Buffer.alloc(1000, i))).toBe(true))
        await file.close()
      })

      it('agrees with a plain buffer after any writes, reads and truncations', async () => {
        const { fs, root } = await makeHarness()
        let number = 0
        await fc.assert(
          fc.asyncProperty(fc.array(step, { maxLength: 20 }), async (steps) => {
            const file = await fs.open(`${root}/model-${number++}`, 'create')
            let model = Buffer.alloc(0)
            for (const { kind, position, length } of steps) {
              if (kind === 'truncate') {
                await file.truncate(position)
                const next = Buffer.alloc(position)
                model.copy(next)
                model = next
              } else if (kind === 'write') {
                const chunk = Buffer.alloc(length, (position % 255) + 1)
                const half = Math.floor(length / 2)
                await file.write([chunk.subarray(0, half), chunk.subarray(half)], position)
                if (length > 0) {
                  const next = Buffer.alloc(Math.max(model.length, position + length))
                  model.copy(next)
                  chunk.copy(next, position)
                  model = next
                }
              } else {
                const into = Buffer.alloc(length)
                const count = await file.read(into, position)
                const expected = model.subarray(position, position + length)
                expect(into.subarray(0, count).equals(expected)).toBe(true)
              }
              expect(await file.size()).toBe(model.length)
            }
            await file.close()
          }),
          { numRuns: 60 },
        )
      })
    })

    describe('opening and closing', () => {
      it('refuses what the mode does not allow', async () => {
        const { fs, root } = await makeHarness()
        await makeFile(fs, `${root}/a`, 'x')
        expect(await codeOf(fs.open(`${root}/missing`, 'read'))).toBe('ENOENT')
        expect(await codeOf(fs.open(`${root}/missing`, 'write'))).toBe('ENOENT')
        expect(await codeOf(fs.open(`${root}/a`, 'create'))).toBe('EEXIST')
        expect(await codeOf(fs.open(`${root}/none/a`, 'create'))).toBe('ENOENT')
        expect(await codeOf(fs.open(`${root}/a/b`, 'create'))).toBe('ENOTDIR')
        expect(await codeOf(fs.open(root, 'write'))).toBe('EISDIR')
        const reader = await fs.open(`${root}/a`, 'read')
        expect(await codeOf(reader.write([bytes('y')], 0))).toBe('EBADF')
        await reader.close()
        expect((await readWhole(fs, `${root}/a`)).toString()).toBe('x')
      })

      it('opens an existing file for writing without changing it', async () => {
        const { fs, root } = await makeHarness()
        await makeFile(fs, `${root}/a`, 'abc')
        const file = await fs.open(`${root}/a`, 'write')
        expect(await readAll(file)).toBe('abc')
        await file.write([bytes('B')], 1)
        expect(await readAll(file)).toBe('aBc')
        await file.close()
      })

      it('answers EBADF after close, and lets close be called again', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        await Promise.all([file.close(), file.close()])
        await file.close()
        expect(await codeOf(file.read(Buffer.alloc(1), 0))).toBe('EBADF')
        expect(await codeOf(file.write([bytes('x')], 0))).toBe('EBADF')
        expect(await codeOf(file.sync())).toBe('EBADF')
        expect(await codeOf(file.size())).toBe('EBADF')
      })

      it('lets what is under way end before it closes', async () => {
        const { fs, root } = await makeHarness()
        const file = await fs.open(`${root}/a`, 'create')
        const written = file.write([Buffer.alloc(100_000, 7)], 0)
        const closed = file.close()
        await written
        await closed
        expect(await fs.findStat(`${root}/a`)).toEqual({ kind: 'file', sizeBytes: 100_000 })
      })

      it('names the file in its errors', async () => {
        const { fs, root } = await makeHarness()
        await expect(fs.open(`${root}/missing`, 'read')).rejects.toThrow(`${root}/missing`)
      })
    })

    describe('reading past the cache', () => {
      it('reads any position and length, and the end right', async () => {
        const { fs, root, uncached } = await makeHarness()
        const content = Buffer.from(Array.from({ length: 20_001 }, (_, i) => (i * 7) % 251))
        const file = await fs.open(`${root}/a`, 'create')
        await file.write([content], 0)
        await file.sync()
        const direct = await fs.openUncached(`${root}/a`)
        expect(direct !== undefined).toBe(uncached)
        if (direct === undefined) return
        for (const [position, length] of [
          [0, 20_001],
          [0, 1],
          [1, 1],
          [511, 2],
          [4095, 2],
          [4096, 4096],
          [4097, 10_000],
          [16_384, 4096],
          [20_000, 100],
          [20_001, 100],
          [30_000, 100],
          [0, 0],
        ] as const) {
          const into = Buffer.alloc(length, 255)
          const count = await direct.read(into, position)
          const expected = content.subarray(position, position + length)
          expect(count).toBe(expected.length)
          expect(into.subarray(0, count).equals(expected)).toBe(true)
        }
        await direct.close()
        await file.close()
      })

      it('reads more than its staging memory holds, from many files at once', async () => {
        const { fs, root, uncached } = await makeHarness()
        if (!uncached) return
        const size = 2_500_000
        await Promise.all(
          Array.from({ length: 8 }, async (_, i) => {
            const file = await fs.open(`${root}/${i}`, 'create')
            await file.write([Buffer.alloc(size, i + 1)], 0)
            await file.close()
            const direct = await fs.openUncached(`${root}/${i}`)
            const into = Buffer.alloc(size + 10)
            expect(await direct?.read(into, 0)).toBe(size)
            expect(into.subarray(0, size).equals(Buffer.alloc(size, i + 1))).toBe(true)
            await direct?.close()
          }),
        )
      })

      it('reads an empty file, and refuses a missing one', async () => {
        const { fs, root, uncached } = await makeHarness()
        await makeFile(fs, `${root}/a`, '')
        const direct = await fs.openUncached(`${root}/a`)
        if (uncached) expect(await direct?.read(Buffer.alloc(10), 0)).toBe(0)
        await direct?.close()
        expect(await codeOf(fs.openUncached(`${root}/missing`))).toBe('ENOENT')
      })
    })

    describe('folders', () => {
      it('makes folders with their parents, again without complaint', async () => {
        const { fs, root } = await makeHarness()
        await fs.makeDirectory(`${root}/a/b/c`)
        await fs.makeDirectory(`${root}/a/b/c`)
        await fs.makeDirectory(`${root}/a/b/d`)
        expect((await fs.list(`${root}/a/b`)).sort()).toEqual(['c', 'd'])
        expect(await fs.findStat(`${root}/a/b/c`)).toMatchObject({ kind: 'directory' })
      })

      it('makes no folder where a file is', async () => {
        const { fs, root } = await makeHarness()
        await makeFile(fs, `${root}/a`, '')
        expect(await codeOf(fs.makeDirectory(`${root}/a`))).toBe('EEXIST')
        expect(await codeOf(fs.makeDirectory(`${root}/a/b`))).toBe('ENOTDIR')
      })

      it('lists names, and refuses what is no folder', async () => {
        const { fs, root } = await makeHarness()
        expect(await fs.list(root)).toEqual([])
        await makeFile(fs, `${root}/file`, '')
        await fs.makeDirectory(`${root}/folder`)
        expect((await fs.list(root)).sort()).toEqual(['file', 'folder'])
        expect(await codeOf(fs.list(`${root}/missing`))).toBe('ENOENT')
        expect(await codeOf(fs.list(`${root}/file`))).toBe('ENOTDIR')
      })

      it('syncs folders, and refuses what is none', async () => {
        const { fs, root } = await makeHarness()
        await makeFile(fs, `${root}/file`, '')
        await fs.syncDirectory(root)
        await fs.syncDirectory(root)
        expect(await codeOf(fs.syncDirectory(`${root}/missing`))).toBe('ENOENT')
        expect(await codeOf(fs.syncDirectory(`${root}/file`))).toBe('ENOTDIR')
      })

      it('finds size and kind, and undefined where nothing is', async () => {
        const { fs, root } = await makeHarness()
        await makeFile(fs, `${root}/a`, '12345')
        expect(await fs.findStat(`${root}/a`)).toEqual({ kind: 'file', sizeBytes: 5 })
        expect(await fs.findStat(root)).toMatchObject({ kind: 'directory' })
        expect(await fs.findStat(`${root}/b`)).toBeUndefined()
        expect(await fs.findStat(`${root}/b/c`)).toBeUndefined()
        expect(await fs.findStat(`${root}/a/c`)).toBeUndefined()
      })

      it('renames, replacing what was there, while open handles stay with their file', async () => {
        const { fs, root } = await makeHarness()
        await fs.makeDirectory(`${root}/d`)
        await makeFile(fs, `${root}/old`, 'old')
        await makeFile(fs, `${root}/d/new`, 'replaced')
        const replaced = await fs.open(`${root}/d/new`, 'read')
        await fs.rename(`${root}/old`, `${root}/d/new`)
        expect((await fs.list(root)).sort()).toEqual(['d'])
        expect((await readWhole(fs, `${root}/d/new`)).toString()).toBe('old')
        expect(await readAll(replaced)).toBe('replaced')
        await replaced.close()
      })

      it('renames folders with what is in them', async () => {
        const { fs, root } = await makeHarness()
        await fs.makeDirectory(`${root}/a/b`)
        await makeFile(fs, `${root}/a/b/file`, 'x')
        await fs.rename(`${root}/a`, `${root}/c`)
        expect((await readWhole(fs, `${root}/c/b/file`)).toString()).toBe('x')
        expect(await fs.findStat(`${root}/a`)).toBeUndefined()
      })

      it('refuses renames that make no sense', async () => {
        const { fs, root } = await makeHarness()
        await fs.makeDirectory(`${root}/folder/inner`)
        await fs.makeDirectory(`${root}/other`)
        await makeFile(fs, `${root}/file`, 'x')
        expect(await codeOf(fs.rename(`${root}/missing`, `${root}/x`))).toBe('ENOENT')
        expect(await codeOf(fs.rename(`${root}/file`, `${root}/none/x`))).toBe('ENOENT')
        expect(await codeOf(fs.rename(`${root}/file`, `${root}/folder`))).toBe('EISDIR')
        expect(await codeOf(fs.rename(`${root}/other`, `${root}/file`))).toBe('ENOTDIR')
        expect(await codeOf(fs.rename(`${root}/other`, `${root}/folder`))).toBe('ENOTEMPTY')
        expect(await codeOf(fs.rename(`${root}/folder`, `${root}/folder/inner/x`))).toBe('EINVAL')
        await fs.rename(`${root}/file`, `${root}/file`)
        expect((await readWhole(fs, `${root}/file`)).toString()).toBe('x')
      })

      it('removes files; an open one can be read and written to its end', async () => {
        const { fs, root } = await makeHarness()
        await makeFile(fs, `${root}/a`, 'still')
        const file = await fs.open(`${root}/a`, 'write')
        await fs.remove(`${root}/a`)
        expect(await fs.list(root)).toEqual([])
        await fs.syncDirectory(root)
        await file.write([bytes(' here')], 5)
        await file.sync()
        expect(await readAll(file)).toBe('still here')
        await file.close()
        expect(await codeOf(fs.remove(`${root}/a`))).toBe('ENOENT')
        expect(await codeOf(fs.remove(root))).toBe('EISDIR')
      })

      it('uses a name again at once for another file', async () => {
        const { fs, root } = await makeHarness()
        await makeFile(fs, `${root}/a`, 'first')
        const first = await fs.open(`${root}/a`, 'read')
        await fs.remove(`${root}/a`)
        await makeFile(fs, `${root}/a`, 'second')
        expect(await readAll(first)).toBe('first')
        expect((await readWhole(fs, `${root}/a`)).toString()).toBe('second')
        await first.close()
      })

      it('removes whole trees, and absent ones without complaint', async () => {
        const { fs, root } = await makeHarness()
        await fs.makeDirectory(`${root}/a/b/c`)
        await makeFile(fs, `${root}/a/1`, '')
        await makeFile(fs, `${root}/a/b/2`, '')
        await fs.removeTree(`${root}/a`)
        await fs.removeTree(`${root}/a`)
        await fs.removeTree(`${root}/never/there`)
        expect(await fs.list(root)).toEqual([])
      })

      it('tells how much room there is', async () => {
        const { fs, root } = await makeHarness()
        const { freeBytes, totalBytes } = await fs.space(root)
        expect(freeBytes).toBeGreaterThan(0)
        expect(totalBytes).toBeGreaterThanOrEqual(freeBytes)
      })
    })

    it('replaces a small file whole, also over what a crash left behind', async () => {
      const { fs, root } = await makeHarness()
      await replaceFile(fs, root, 'x.json', bytes('one'))
      await makeFile(fs, `${root}/x.json.tmp`, 'left behind')
      await replaceFile(fs, root, 'x.json', bytes('two'))
      expect((await readWhole(fs, `${root}/x.json`)).toString()).toBe('two')
      expect(await fs.list(root)).toEqual(['x.json'])
    })
  })
}

const step = fc.record({
  kind: fc.constantFrom('write', 'write', 'write', 'read', 'truncate'),
  position: fc.nat(12_000),
  length: fc.oneof(fc.nat(50), fc.nat(9000)),
})

function bytes(text: string): Buffer {
  return Buffer.from(text)
}

async function readAll(file: File): Promise<string> {
  const into = Buffer.alloc(await file.size())
  return into.toString('latin1', 0, await file.read(into, 0))
}

async function makeFile(fs: FileSystem, path: string, content: string): Promise<void> {
  const file = await fs.open(path, 'create')
  await file.write([bytes(content)], 0)
  await file.close()
}

async function codeOf(promise: Promise<unknown>): Promise<string | undefined> {
  try {
    await promise
  } catch (error) {
    return findSystemCode(error)
  }
  return undefined
}
