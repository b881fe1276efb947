import { NodeFileSystem } from '../../src/fs/node-file-system.ts'
import { describeFileSystem } from '../conformance/file-system.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'
import { expect, it, vi } from 'vitest'

/**
 * A kernel at its worst behaviour that is still correct: reads and writes take a part of what they are given, are interrupted
 * now and then, and begin late. The real disk has to behave the same on it.
 */
vi.mock(import('node:fs'), async (importOriginal) => {
  const original = await importOriginal()
  let calls = 0
  const interrupted = (done: (error: NodeJS.ErrnoException | null) => void): boolean => {
    calls++
    if (calls % 7 !== 3) return false
    setImmediate(() => done(Object.assign(new Error('interrupted'), { code: 'EINTR' })))
    return true
  }
  const part = (length: number): number => (length <= 1 ? length : 1 + ((calls * 977) % length))
  return {
    ...original,
    read(
      descriptor: number,
      into: Uint8Array,
      offset: number,
      length: number,
      position: number,
      done: (error: NodeJS.ErrnoException | null, count: number, into: Uint8Array) => void,
    ): void {
      if (interrupted((error) => done(error, 0, into))) return
      // O_DIRECT reads in whole blocks only, and is cut short in whole blocks.
      const aligned = length % 4096 === 0 && position % 4096 === 0
      const count = aligned ? Math.ceil(part(length) / 4096) * 4096 : part(length)
      setImmediate(() => original.read(descriptor, into, offset, count, position, done))
    },
    write(
      descriptor: number,
      from: Uint8Array,
      offset: number,
      length: number,
      position: number,
      done: (error: NodeJS.ErrnoException | null, count: number, from: Uint8Array) => void,
    ): void {
      if (interrupted((error) => done(error, 0, from))) return
      const count = part(length)
      setImmediate(() => original.write(descriptor, from, offset, count, position, done))
    },
    writev(
      descriptor: number,
      chunks: Uint8Array[],
      position: number,
      done: (error: NodeJS.ErrnoException | null, count: number, chunks: Uint8Array[]) => void,
    ): void {
      if (interrupted((error) => done(error, 0, chunks))) return
      const all = Buffer.concat(chunks)
      // Not too short, or five thousand chunks would take for ever.
      const count = Math.max(part(all.length), Math.min(all.length, 500))
      setImmediate(() =>
        original.write(descriptor, all, 0, count, position, (error, written) =>
          done(error, written, chunks),
        ),
      )
    },
    // The types of node:fs list overloads that nobody calls here.
  } as unknown as typeof original
})

describeFileSystem('NodeFileSystem on an interrupted kernel', async () => {
  const root = temporaryDirectory()
  const fs = new NodeFileSystem()
  const probe = await fs.open(`${root}/probe`, 'create')
  await probe.close()
  const direct = await fs.openUncached(`${root}/probe`)
  await direct?.close()
  await fs.remove(`${root}/probe`)
  return { fs, root, uncached: direct !== undefined }
})

it('really is interrupted', async () => {
  const { write } = await import('node:fs')
  expect(write.toString()).toContain('interrupted')
})
