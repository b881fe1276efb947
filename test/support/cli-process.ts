import { spawn } from 'node:child_process'
import type { ChildProcessWithoutNullStreams } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, vi } from 'vitest'

// MILLRACE_E2E_MAIN: another build than the one of `npm run build`.
const MAIN =
  process.env['MILLRACE_E2E_MAIN'] ??
  fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url))

beforeAll(() => {
  if (!existsSync(MAIN)) throw new Error('there is no dist/: `npm run build` comes first')
})

/** Whatever a failed test leaves behind ends with the file. */
const running = new Set<Command>()

afterAll(() => {
  for (const command of running) command.child.kill('SIGKILL')
})

/** The real command in a process of its own. */
export class Command {
  readonly child: ChildProcessWithoutNullStreams
  readonly #out: Buffer[] = []
  readonly #err: Buffer[] = []
  readonly ended: Promise<{ readonly code: number | null; readonly signal: string | null }>

  constructor(argv: readonly string[], environment: Readonly<Record<string, string>> = {}) {
    this.child = spawn(process.execPath, [MAIN, ...argv], {
      env: { PATH: process.env['PATH'] ?? '', ...environment },
    })
    this.child.stdout.on('data', (piece: Buffer) => this.#out.push(piece))
    this.child.stderr.on('data', (piece: Buffer) => this.#err.push(piece))
    running.add(this)
    this.child.on('close', () => running.delete(this))
    this.child.stdin.on('error', () => undefined) // It may end without having read all.
    this.ended = once(this.child, 'close').then(([code, signal]: unknown[]) => ({
      code: typeof code === 'number' ? code : null,
      signal: typeof signal === 'string' ? signal : null,
    }))
  }

  /** Lines of stdout that have come in full. */
  get lines(): readonly string[] {
    return this.out.toString().split('\n').slice(0, -1)
  }

  get out(): Buffer {
    return Buffer.concat(this.#out)
  }

  get err(): string {
    return Buffer.concat(this.#err).toString('utf8')
  }

  async code(): Promise<number | null> {
    return (await this.ended).code
  }
}

export class Server extends Command {
  static async start(
    data: string,
    listen = '127.0.0.1:0',
    environment: Readonly<Record<string, string>> = {},
  ): Promise<Server> {
    const server = new Server(['serve', '--data', data, '--listen', listen], environment)
    await Promise.race([
      vi.waitFor(() => expect(server.out.toString()).toMatch(/\n$/), { timeout: 20_000 }),
      server.ended.then(({ code }) => {
        throw new Error(`serve ended with ${code}: ${server.err}`)
      }),
    ])
    return server
  }

  get address(): string {
    return /^millrace listening on (\S+)\n$/.exec(this.out.toString())?.[1] ?? ''
  }

  async kill(signal: NodeJS.Signals): Promise<number | null> {
    this.child.kill(signal)
    return this.code()
  }
}

/** Runs a command against the server, with its stdin closed after `input`, to its end. */
export async function runTo(
  server: Server,
  argv: readonly string[],
  input: string | Buffer = '',
): Promise<Command> {
  const command = new Command(argv, { MILLRACE_SERVER: server.address })
  command.child.stdin.end(input)
  await command.ended
  return command
}
