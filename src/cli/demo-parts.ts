import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { extname } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { CliIo } from './io.ts'
import { EXIT_DONE, EXIT_FAILED } from './io.ts'
import { ExitError } from './usage-error.ts'

const START_PATIENCE_MS = 20_000

/** This program, as `node` takes it: compiled, or as it is written. */
export const MAIN: string = fileURLToPath(
  new URL(`./main${extname(import.meta.url)}`, import.meta.url),
)

/** The demo's own environment: settings of a real broker must not leak in. */
export function demoEnvironment(): NodeJS.ProcessEnv {
  return { PATH: process.env['PATH'] ?? '' }
}

/** A broker as a process of its own, so that it can be killed like one. */
export class DemoBroker {
  readonly #directory: string
  #child: ChildProcess | undefined
  #ended: Promise<unknown> = Promise.resolve()

  constructor(directory: string) {
    this.#directory = directory
  }

  /** Resolves to the address when the broker says that it is ready. */
  async start(listen: string): Promise<string> {
    const child = spawn(
      process.execPath,
      [MAIN, 'serve', '--data', this.#directory, '--listen', listen, '--log-level', 'warn'],
      { stdio: ['ignore', 'pipe', 'pipe'], env: demoEnvironment() },
    )
    this.#child = child
    this.#ended = once(child, 'close')
    let log = ''
    child.stderr.on('data', (chunk: Buffer) => {
      log = (log + chunk.toString()).slice(-4_000)
    })
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new ExitError(EXIT_FAILED, `the broker was not ready in time: ${log}`))
      }, START_PATIENCE_MS)
      child.on('close', (code) => {
        clearTimeout(timer)
        reject(new ExitError(EXIT_FAILED, `the broker ended with code ${code ?? 'none'}: ${log}`))
      })
      createInterface({ input: child.stdout }).on('line', (line) => {
        const address = /^millrace listening on (\S+)$/.exec(line)?.[1]
        if (address === undefined) return
        clearTimeout(timer)
        resolve(address)
      })
    })
  }

  kill(): void {
    this.#child?.kill('SIGKILL')
  }

  async ended(): Promise<void> {
    await this.#ended
  }
}

export interface ShownCommand {
  readonly code: number | null
  readonly out: string
}

/** Runs a command to its end and shows what it prints, or the last lines of it. */
export async function showCommand(
  show: Narrator,
  address: string,
  argv: readonly string[],
  options: { readonly lines?: number | undefined; readonly as?: string } = {},
): Promise<ShownCommand> {
  show.line(`$ millrace ${options.as ?? argv.join(' ')}`)
  const child = spawn(process.execPath, [MAIN, ...argv, '--server', address], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: demoEnvironment(),
  })
  const pieces: Buffer[] = []
  const out: Buffer[] = []
  child.stdout.on('data', (piece: Buffer) => {
    pieces.push(piece)
    out.push(piece)
  })
  child.stderr.on('data', (piece: Buffer) => pieces.push(piece))
  const code = await codeOf(child)
  const { lines = Infinity } = options
  const printed = Buffer.concat(pieces).toString().trimEnd().split('\n')
  for (const line of lines === 0 ? [] : printed.slice(-lines)) show.line(`  ${line}`)
  return { code, out: Buffer.concat(out).toString() }
}

export async function codeOf(child: ChildProcess): Promise<number | null> {
  const [code] = (await once(child, 'close')) as unknown[]
  return typeof code === 'number' ? code : null
}

export function wait(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}

/** Long enough to read a line or two; a scene comes to about twenty seconds. */
const PAUSE_MS = 2_200

/** Tells what happens, at the pace of somebody who reads along. */
export class Narrator {
  readonly #io: CliIo
  readonly #fast: boolean
  readonly #signal: AbortSignal
  readonly #startedMs = performance.now()
  #number = 0

  constructor(io: CliIo, fast: boolean, signal: AbortSignal) {
    this.#io = io
    this.#fast = fast
    this.#signal = signal
  }

  async step(what: string, pauseMs: number = PAUSE_MS): Promise<void> {
    if (this.#number > 0) await this.pause(pauseMs)
    if (this.#signal.aborted) throw new ExitError(EXIT_FAILED, 'interrupted')
    this.#number++
    this.#io.stdout.write(`\n${this.#number}. ${what}\n`)
  }

  line(what: string): void {
    this.#io.stdout.write(`   ${what}\n`)
  }

  /** Shorter where a step takes its own time. */
  async pause(ms: number = PAUSE_MS): Promise<void> {
    if (this.#fast || this.#signal.aborted) return
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms)
      this.#signal.addEventListener(
        'abort',
        () => {
          clearTimeout(timer)
          resolve()
        },
        { once: true },
      )
    })
  }

  title(what: string): void {
    this.#io.stdout.write(`\n${what}\n`)
  }

  success(): number {
    const seconds = ((performance.now() - this.#startedMs) / 1000).toFixed(0)
    this.#io.stdout.write(
      `\nThat was millrace, in ${seconds} seconds. \`millrace help examples\` goes on from here.\n`,
    )
    return EXIT_DONE
  }

  failure(why: string): number {
    this.#io.stdout.write(`\nThis must not happen: ${why}\n`)
    return EXIT_FAILED
  }
}
