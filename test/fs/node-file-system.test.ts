import { existsSync } from 'node:fs'
import { NodeFileSystem } from '../../src/fs/node-file-system.ts'
import { describeFileSystem } from '../conformance/file-system.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'
import { closeSync, constants, openSync, statSync, writeFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'

/** Whether the kernel lets us read this folder's files with O_DIRECT; container overlays and old tmpfs do not. */
function offersDirect(directory: string): boolean {
  const path = `${directory}/.probe`
  writeFileSync(path, 'x')
  try {
    const descriptor = openSync(path, constants.O_RDONLY | constants.O_DIRECT)
    closeSync(descriptor)
    return true
  } catch {
    return false
  }
}

describeFileSystem('NodeFileSystem', () => {
  const folder = temporaryDirectory()
  const uncached = offersDirect(folder)
  const fs = new NodeFileSystem()
  const root = `${folder}/root`
  return fs.makeDirectory(root).then(() => ({ fs, root, uncached }))
})

it('makes files and folders for their owner only', async () => {
  const root = temporaryDirectory()
  const fs = new NodeFileSystem()
  await fs.makeDirectory(`${root}/a/b`)
  await (await fs.open(`${root}/a/b/file`, 'create')).close()
  expect(statSync(`${root}/a`).mode & 0o777).toBe(0o700)
  expect(statSync(`${root}/a/b`).mode & 0o777).toBe(0o700)
  expect(statSync(`${root}/a/b/file`).mode & 0o777).toBe(0o600)
})

it('calls the hooks before and after each operation, and not after one that failed', async () => {
  const root = temporaryDirectory()
  const calls: string[] = []
  const fs = new NodeFileSystem({
    beforeOperation: (name) => calls.push(`before-${name}`),
    afterOperation: (name) => calls.push(`after-${name}`),
  })
  const file = await fs.open(`${root}/a`, 'create')
  await file.write([Buffer.from('x')], 0)
  await file.sync()
  await file.close()
  await fs.syncDirectory(root)
  await expect(fs.remove(`${root}/b`)).rejects.toThrow('ENOENT')
  expect(calls.join(' ')).toBe(
    'before-create after-create before-write after-write before-sync after-sync ' +
      'before-close after-close before-syncDirectory after-syncDirectory before-remove',
  )
})

it('stops an operation whose hook throws before it touches the disk', async () => {
  const root = temporaryDirectory()
  let armed = false
  const fs = new NodeFileSystem({
    beforeOperation(name) {
      if (armed && name === 'write') throw new Error('failpoint')
    },
  })
  const file = await fs.open(`${root}/a`, 'create')
  armed = true
  await expect(file.write([Buffer.from('x')], 0)).rejects.toThrow('failpoint')
  expect(await file.size()).toBe(0)
  await file.close()
})

it('surfaces the system error of a write that the disk does not take', async () => {
  const fs = new NodeFileSystem()
  const full = await fs.open('/dev/full', 'write')
  await expect(full.write([Buffer.from('x')], 0)).rejects.toMatchObject({
    code: 'ENOSPC',
    path: '/dev/full',
  })
  await full.close()
})

describe('making a folder', () => {
  it('comes back with an error where nothing can be made, whatever the file system says', async (context) => {
    // Node's recursive mkdir tries for ever in there.
    context.skip(!existsSync('/proc/self'), 'there is no /proc here')
    await expect(new NodeFileSystem().makeDirectory('/proc/x/y')).rejects.toMatchObject({
      code: 'ENOENT',
    })
  })
})
