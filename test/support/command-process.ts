import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createReadStream, createWriteStream } from 'node:fs'
import { pipeline } from 'node:stream/promises'
import { onTestFinished } from 'vitest'
import { MILLRACE_MAIN } from './server-process.ts'

export interface CommandResult {
  readonly code: number | null
  readonly err: string
}

export interface CommandOptions {
  readonly server: string
  /** File that becomes its stdin. */
  readonly input?: string | undefined
  /** Where its stdout goes. */
  readonly output?: string | undefined
}

/** Runs `millrace …` in a process of its own, with files as its pipes, however large they are. */
export async function runCommand(
  argv: readonly string[],
  options: CommandOptions,
): Promise<CommandResult> {
  const child: ChildProcess = spawn(process.execPath, [MILLRACE_MAIN, ...argv], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { PATH: process.env['PATH'] ?? '', MILLRACE_SERVER: options.server },
  })
  onTestFinished(() => {
    child.kill('SIGKILL')
  })
  const { stdin, stdout, stderr } = child
  if (stdin === null || stdout === null || stderr === null) throw new Error('it has no pipes')
  const errors: string[] = []
  stderr.setEncoding('utf8').on('data', (piece: string) => errors.push(piece))
  const ended = once(child, 'close')
  const piping: Promise<unknown>[] = []
  if (options.input === undefined) stdin.end()
  else piping.push(pipeline(createReadStream(options.input), stdin))
  if (options.output === undefined) stdout.resume()
  else piping.push(pipeline(stdout, createWriteStream(options.output)))
  await Promise.all(piping)
  const [code] = (await ended) as unknown[]
  return { code: typeof code === 'number' ? code : null, err: errors.join('') }
}

/** SHA-256 of a file, in hex, read in pieces. */
export async function digestOf(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 })) {
    hash.update(piece as Buffer) // Without an encoding a stream gives buffers.
  }
  return hash.digest('hex')
}
