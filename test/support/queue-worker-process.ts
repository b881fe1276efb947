import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'
import type { QueueEvent } from './queue-checker.ts'

export interface QueueWorkerOptions {
  readonly name: string
  /** Distinct for each process: its calls get numbers of their own by it. */
  readonly number: number
  readonly server: string
  readonly group: string
  readonly kind: string
  /** URL of the compiled program. */
  readonly program: string
  /** Where what it writes is kept. */
  readonly folder: string
}

const CALLS_OF_ONE = 1e8

/** `queue-worker.ts` as a process. Call `start` inside a test: it is killed when that ends. */
export class QueueWorkerProcess {
  readonly name: string
  /** Resolves to the exit code; null after a SIGKILL. */
  readonly ended: Promise<number | null>
  readonly #child: ChildProcess
  readonly #options: QueueWorkerOptions
  readonly #path: string
  isKilled = false
  stderr = ''

  static start(options: QueueWorkerOptions): QueueWorkerProcess {
    const { server, group, name, kind, program, folder } = options
    const path = join(folder, `${name}.jsonl`)
    const argv = [fileURLToPath(program), server, group, name, kind, path]
    const child = spawn(process.execPath, argv, {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { PATH: process.env['PATH'] ?? '' },
    })
    onTestFinished(() => {
      child.kill('SIGKILL')
    })
    return new QueueWorkerProcess(options, child, path)
  }

  private constructor(options: QueueWorkerOptions, child: ChildProcess, path: string) {
    this.name = options.name
    this.#options = options
    this.#child = child
    this.#path = path
    child.stderr?.setEncoding('utf8').on('data', (piece: string) => {
      this.stderr += piece
    })
    this.ended = once(child, 'close').then(([code]: unknown[]) =>
      typeof code === 'number' ? code : null,
    )
  }

  kill(): void {
    this.isKilled = true
    this.#child.kill('SIGKILL')
  }

  leave(): void {
    this.#child.kill('SIGTERM')
  }

  /** It has been given something: a kill means something then. */
  get hasWorked(): boolean {
    return existsSync(this.#path) && readFileSync(this.#path).length > 0
  }

  history(): QueueEvent[] {
    if (!existsSync(this.#path)) return []
    const first = this.#options.number * CALLS_OF_ONE
    return readFileSync(this.#path, 'latin1')
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line) as QueueEvent) // Our own program wrote it.
      .map((event) =>
        event.type === 'called' || event.type === 'answered'
          ? { ...event, call: first + event.call }
          : event,
      )
  }
}
