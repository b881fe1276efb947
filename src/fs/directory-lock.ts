import type { Clock } from '../common/clock.ts'
import type { FileHandle } from 'node:fs/promises'
import type { Server } from 'node:net'
import { systemClock } from '../common/clock.ts'
import { BrokerError, findSystemCode } from '../common/errors.ts'
import { spawn } from 'node:child_process'
import { constants } from 'node:fs'
import { access, open, readFile, stat } from 'node:fs/promises'
import { createServer } from 'node:net'
import { makePath } from './make-path.ts'

export interface DirectoryLock {
  /** Gives the folder up. Calling it again waits for the same end. The lock file stays: removing it would let two in. */
  release(): Promise<void>
}

const LOCK_FILE = 'lock'

/** What `flock -n` exits with when somebody else holds the lock, in util-linux and in busybox. */
const FLOCK_CONFLICT = 1

/** Folders that this process holds, by device and inode: for the last resort, where neither kind of lock exists. */
const heldHere = new Set<string>()

/**
 * Makes this process the only one that works in `path`, a folder that is made when missing, until `release` or the end of the process, however
 * that comes: the kernel frees both locks at kill -9 (CONTRACT §2.5). They are
 *   - flock on the file `lock`, taken by util-linux `flock`, run once with our descriptor: the lock belongs to the open file
 *     description, so it stays ours when the child has ended, and no addon is needed;
 *   - an abstract Unix socket named by the folder's device and inode, which also holds where there is no `flock`, and when
 *     somebody has deleted the lock file.
 * Where neither exists (no Linux, no `flock`), the process named in the file is looked for instead.
 *
 * Touches no other file, and the lock file's text only once the lock is held: pid, boot id and start time, for people.
 * @throws BrokerError DIRECTORY_IN_USE with `pid`, when it can be told, DIRECTORY_UNUSABLE when it cannot be read or written
 */
export async function lockDirectory(
  path: string,
  clock: Clock = systemClock,
): Promise<DirectoryLock> {
  let file: FileHandle | undefined
  let socket: Server | undefined
  let identity: string | undefined
  try {
    await makePath(path, 0o700)
    await access(path, constants.R_OK | constants.W_OK | constants.X_OK)
    const stats = await stat(path, { bigint: true })
    const name = `${stats.dev}-${stats.ino}`
    file = await open(`${path}/${LOCK_FILE}`, constants.O_RDWR | constants.O_CREAT, 0o600)

    const flock = await takeFlock(file)
    if (flock === 'held') throw await inUse(path, file)
    const bound = await bindSocket(name)
    if (bound === 'held') throw await inUse(path, file)
    socket = bound === 'missing' ? undefined : bound
    if (flock === 'missing' && socket === undefined) {
      const pid = await findPid(file)
      if (heldHere.has(name) || (pid !== undefined && pid !== process.pid && isAlive(pid))) {
        throw await inUse(path, file)
      }
    }
    identity = name
    heldHere.add(name)
    await describeHolder(file, clock)
  } catch (error) {
    if (identity !== undefined) heldHere.delete(identity)
    await closeSocket(socket)
    await file?.close()
    if (error instanceof BrokerError) throw error
    const code = findSystemCode(error) ?? 'unknown'
    throw new BrokerError(
      'DIRECTORY_UNUSABLE',
      `data directory ${path} cannot be used: ${error instanceof Error ? error.message : code}`,
      { directory: path, systemCode: code },
      error,
    )
  }

  let released: Promise<void> | undefined
  const [heldFile, heldSocket, heldName] = [file, socket, identity]
  const release = async (): Promise<void> => {
    try {
      // A pid that is left behind would be read as the holder's.
      await heldFile.truncate(0)
    } finally {
      await closeSocket(heldSocket)
      await heldFile.close()
      heldHere.delete(heldName)
    }
  }
  return {
    release() {
      released ??= release()
      return released
    },
  }
}

/** `missing` where there is no `flock`, or the file system has no locks (it exits with another code then). */
function takeFlock(file: FileHandle): Promise<'taken' | 'held' | 'missing'> {
  return new Promise((resolve, reject) => {
    const child = spawn('flock', ['-n', '-x', '3'], {
      stdio: ['ignore', 'ignore', 'ignore', file.fd],
    })
    child.once('error', (error) => {
      const code = findSystemCode(error)
      if (code === 'ENOENT' || code === 'EACCES') resolve('missing')
      else reject(error)
    })
    child.once('exit', (status, signal) => {
      if (status === 0) resolve('taken')
      else if (status === FLOCK_CONFLICT) resolve('held')
      else if (signal === null) resolve('missing')
      else reject(new Error(`flock was ended by ${signal}`))
    })
  })
}

/** The leading zero byte makes it abstract: no file, and gone with the process. Linux only. */
function bindSocket(name: string): Promise<Server | 'held' | 'missing'> {
  if (process.platform !== 'linux') return Promise.resolve('missing')
  return new Promise((resolve, reject) => {
    const server = createServer((connection) => connection.destroy())
    server.once('error', (error) => {
      if (findSystemCode(error) === 'EADDRINUSE') resolve('held')
      else reject(error)
    })
    server.listen({ path: `\0millrace-${name}`, exclusive: true }, () => {
      server.unref()
      resolve(server)
    })
  })
}

function closeSocket(socket: Server | undefined): Promise<void> {
  if (socket === undefined) return Promise.resolve()
  return new Promise((resolve, reject) => {
    socket.close((error) => (error === undefined ? resolve() : reject(error)))
  })
}

async function inUse(path: string, file: FileHandle): Promise<BrokerError> {
  const pid = await findPid(file)
  return new BrokerError(
    'DIRECTORY_IN_USE',
    `data directory ${path} is in use by ${pid === undefined ? 'another process' : `process ${pid}`}; ` +
      'stop it, or give this one a directory of its own',
    { directory: path, pid },
  )
}

async function readText(file: FileHandle): Promise<string> {
  const buffer = Buffer.alloc(4096)
  const { bytesRead } = await file.read(buffer, 0, buffer.length, 0)
  return buffer.toString('utf8', 0, bytesRead)
}

async function findPid(file: FileHandle): Promise<number | undefined> {
  const found = /^pid (\d+)$/m.exec(await readText(file))?.[1]
  return found === undefined ? undefined : Number(found)
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return findSystemCode(error) !== 'ESRCH'
  }
}

async function describeHolder(file: FileHandle, clock: Clock): Promise<void> {
  const started = new Date(clock.wallMs()).toISOString()
  const text = `pid ${process.pid}\nboot ${await readBootId()}\nstarted ${started}\n`
  await file.truncate(0)
  try {
    await file.write(text, 0)
  } catch (error) {
    // A full disk must not keep a broker from starting: it can still serve reads, and the lock does not need its text.
    const code = findSystemCode(error)
    if (code !== 'ENOSPC' && code !== 'EDQUOT') throw error
  }
}

async function readBootId(): Promise<string> {
  try {
    return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
  } catch (error) {
    if (findSystemCode(error) === 'ENOENT') return 'unknown'
    throw error
  }
}
