import { BrokerError } from '../../src/common/errors.ts'
import { lockDirectory } from '../../src/fs/directory-lock.ts'
import { compile, type Compiled } from '../support/compile.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { afterAll, beforeAll, expect, it, onTestFinished, vi } from 'vitest'

let compiled: Compiled
beforeAll(() => {
  compiled = compile('src/fs/directory-lock.ts')
})
afterAll(() => compiled.remove())

interface ChildOptions {
  readonly path?: string
  readonly uid?: number
}

/** A process that tries for the lock, prints `held` or the error as JSON, and keeps what it has. */
async function startOther(
  directory: string,
  options: ChildOptions = {},
): Promise<{ child: ChildProcess; answer: string }> {
  const script = `
    const { lockDirectory } = await import(${JSON.stringify(compiled.url)})
    try {
      await lockDirectory(${JSON.stringify(directory)})
      console.log('held')
      setInterval(() => {}, 1 << 30)
    } catch (error) {
      console.log(JSON.stringify({ code: error.code, message: error.message }))
    }`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, PATH: options.path ?? process.env['PATH'] },
    ...(options.uid === undefined ? {} : { uid: options.uid, gid: options.uid }),
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  const [line] = (await once(child.stdout, 'data')) as [Buffer]
  return { child, answer: line.toString().trim() }
}

async function refusalOf(directory: string): Promise<BrokerError> {
  try {
    const lock = await lockDirectory(directory)
    await lock.release()
  } catch (error) {
    if (error instanceof BrokerError) return error
    throw error
  }
  throw new Error('the lock was given')
}

it('gives an unused folder, and writes down who has it', async () => {
  const directory = temporaryDirectory()
  const clock = new FakeClock(Date.UTC(2026, 1, 3))
  const lock = await lockDirectory(directory, clock)
  const text = readFileSync(`${directory}/lock`, 'utf8')
  expect(text).toMatch(
    new RegExp(`^pid ${process.pid}\nboot [0-9a-f-]{36}\nstarted 2026-02-03T00:00:00.000Z\n$`),
  )
  expect(statSync(`${directory}/lock`).mode & 0o777).toBe(0o600)
  await lock.release()
  expect(readFileSync(`${directory}/lock`, 'utf8')).toBe('')
})

it('makes a folder that is missing, for its owner only', async () => {
  const directory = `${temporaryDirectory()}/deep/down`
  const lock = await lockDirectory(directory)
  expect(statSync(directory).mode & 0o777).toBe(0o700)
  await lock.release()
})

it('refuses a second lock in the same process, naming the process', async () => {
  const directory = temporaryDirectory()
  const lock = await lockDirectory(directory)
  const error = await refusalOf(directory)
  expect(error.code).toBe('DIRECTORY_IN_USE')
  expect(error.message).toContain(`process ${process.pid}`)
  expect(error.details['pid']).toBe(process.pid)
  await lock.release()
})

it('can be taken again after it was released, however often release was called', async () => {
  const directory = temporaryDirectory()
  for (let round = 0; round < 3; round++) {
    const lock = await lockDirectory(directory)
    await Promise.all([lock.release(), lock.release()])
    await lock.release()
  }
})

it('refuses while another process holds it, and touches no file', async () => {
  const directory = temporaryDirectory()
  writeFileSync(`${directory}/broker.json`, 'as it was')
  const { child, answer } = await startOther(directory)
  expect(answer).toBe('held')
  const before = readdirSync(directory).map((name) => {
    const { mtimeNs, ctimeNs } = statSync(`${directory}/${name}`, { bigint: true })
    return [name, mtimeNs, ctimeNs, readFileSync(`${directory}/${name}`, 'utf8')]
  })
  const error = await refusalOf(directory)
  expect(error.code).toBe('DIRECTORY_IN_USE')
  expect(error.details['pid']).toBe(child.pid)
  const after = readdirSync(directory).map((name) => {
    const { mtimeNs, ctimeNs } = statSync(`${directory}/${name}`, { bigint: true })
    return [name, mtimeNs, ctimeNs, readFileSync(`${directory}/${name}`, 'utf8')]
  })
  expect(after).toEqual(before)
})

it('refuses another process while this one holds it', async () => {
  const directory = temporaryDirectory()
  const lock = await lockDirectory(directory)
  const { answer } = await startOther(directory)
  expect(JSON.parse(answer)).toMatchObject({ code: 'DIRECTORY_IN_USE' })
  expect(answer).toContain(`process ${process.pid}`)
  await lock.release()
})

it('is free again after kill -9, though the old text is still there', async () => {
  const directory = temporaryDirectory()
  const { child, answer } = await startOther(directory)
  expect(answer).toBe('held')
  child.kill('SIGKILL')
  await once(child, 'exit')
  expect(readFileSync(`${directory}/lock`, 'utf8')).toContain(`pid ${child.pid}`)
  const lock = await lockDirectory(directory)
  expect(readFileSync(`${directory}/lock`, 'utf8')).toContain(`pid ${process.pid}`)
  await lock.release()
})

it('gives the folder to exactly one of many that start at once', async () => {
  const directory = temporaryDirectory()
  const answers = await Promise.all(Array.from({ length: 4 }, () => startOther(directory)))
  expect(answers.filter(({ answer }) => answer === 'held')).toHaveLength(1)
})

it('holds by the socket alone where there is no flock, also against one that has flock', async () => {
  const directory = temporaryDirectory()
  const { child, answer } = await startOther(directory, { path: '/nonexistent' })
  expect(answer).toBe('held')
  expect((await refusalOf(directory)).code).toBe('DIRECTORY_IN_USE')
  child.kill('SIGKILL')
  await once(child, 'exit')
  const lock = await lockDirectory(directory)
  await lock.release()
})

it('holds by the socket when somebody has deleted the lock file', async () => {
  const directory = temporaryDirectory()
  await startOther(directory)
  rmSync(`${directory}/lock`)
  expect((await refusalOf(directory)).code).toBe('DIRECTORY_IN_USE')
})

it('holds by flock when the socket cannot tell, as between network namespaces', async () => {
  const directory = temporaryDirectory()
  // Another program's flock on the same file stands for a broker whose socket is out of sight.
  writeFileSync(`${directory}/lock`, 'pid 4242\n')
  const other = spawn('flock', ['-x', `${directory}/lock`, '-c', 'echo held; read line'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  onTestFinished(() => void other.kill('SIGKILL'))
  await once(other.stdout, 'data')
  const error = await refusalOf(directory)
  expect(error.code).toBe('DIRECTORY_IN_USE')
  expect(error.details['pid']).toBe(4242)
  other.stdin.end('\n')
  await once(other, 'exit')
})

it('goes by the process named in the file where there is neither flock nor socket', async () => {
  const directory = temporaryDirectory()
  vi.stubEnv('PATH', '/nonexistent')
  const platform = vi.spyOn(process, 'platform', 'get').mockReturnValue('darwin')
  onTestFinished(() => {
    vi.unstubAllEnvs()
    platform.mockRestore()
  })
  const lock = await lockDirectory(directory)
  expect((await refusalOf(directory)).code).toBe('DIRECTORY_IN_USE')
  await lock.release()

  writeFileSync(`${directory}/lock`, `pid ${process.ppid}\n`)
  expect((await refusalOf(directory)).details['pid']).toBe(process.ppid)

  // A process that has certainly ended.
  const { pid } = spawnSync(process.execPath, ['-e', ''])
  writeFileSync(`${directory}/lock`, `pid ${pid}\n`)
  await (await lockDirectory(directory)).release()
})

it('says that a folder is unusable when a file is in its place', async () => {
  const directory = temporaryDirectory()
  writeFileSync(`${directory}/file`, '')
  const error = await refusalOf(`${directory}/file`)
  expect(error.code).toBe('DIRECTORY_UNUSABLE')
  expect(error.message).toContain(`${directory}/file`)
})

it('says that a folder is unusable when its lock is a folder', async () => {
  const directory = temporaryDirectory()
  mkdirSync(`${directory}/lock`)
  expect((await refusalOf(directory)).code).toBe('DIRECTORY_UNUSABLE')
})

// Root may do everything, so another user tries.
it.skipIf(process.getuid?.() !== 0)(
  'says that a folder is unusable without the rights',
  async () => {
    const nobody = 65_534
    for (const mode of [0o555, 0o333, 0o000]) {
      const directory = `${temporaryDirectory()}/data`
      mkdirSync(directory)
      chmodSync(directory.replace(/\/data$/, ''), 0o755)
      chmodSync(directory, mode)
      const { answer } = await startOther(directory, { uid: nobody })
      expect(JSON.parse(answer)).toMatchObject({ code: 'DIRECTORY_UNUSABLE' })
      expect(readdirSync(directory)).toEqual([])
    }
  },
)
