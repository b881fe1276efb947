import { mkdir, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { findSystemCode } from '../common/errors.ts'

/**
 * Makes a folder and those above it that are missing. Node's own `recursive` never comes back where a file system answers ENOENT whatever
 * is there, as /proc does: it tries for ever, on a thread of its own.
 * @throws the system error; EEXIST when something else stands there
 */
export async function makePath(path: string, mode: number): Promise<void> {
  if (await isMade(path, mode)) return
  const parent = dirname(path)
  // Nothing is above the root.
  if (parent !== path) await makePath(parent, mode)
  await mkdir(path, { mode })
}

/** True when the folder is there now; false when one above it is missing. */
async function isMade(path: string, mode: number): Promise<boolean> {
  try {
    await mkdir(path, { mode })
    return true
  } catch (error) {
    const code = findSystemCode(error)
    if (code === 'ENOENT') return false
    // Also EROFS or EACCES for a folder that is there already, on the way up.
    if (await isDirectory(path)) return true
    throw error
  }
}

async function isDirectory(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory()
  } catch (error) {
    if (findSystemCode(error) === undefined) throw error
    return false
  }
}
