import { spawn } from 'node:child_process'
import type { CliIo } from './io.ts'
import type { Output } from './output.ts'
import type { RecordFields } from './record-fields.ts'
import { viewOf } from './record-fields.ts'
import { ExitError } from './usage-error.ts'
import { EXIT_FAILED } from './io.ts'
import { findSystemCode } from '../common/errors.ts'

/**
 * `tail --exec CMD`: runs a shell command for each record, one after another. The value is its standard input; where the record is
 * from stands in its environment; what it prints is what is shown.
 */
export class CommandPipe {
  readonly #command: string
  readonly #io: CliIo
  readonly #out: Output
  readonly #signal: AbortSignal
  readonly #hint: (offset: string) => string
  /** Records of several topics take turns. */
  #last: Promise<void> = Promise.resolve()

  /** `hint`: what to do when a command has failed. */
  constructor(
    command: string,
    io: CliIo,
    out: Output,
    signal: AbortSignal,
    { hint }: { readonly hint?: (offset: string) => string } = {},
  ) {
    this.#command = command
    this.#io = io
    this.#out = out
    this.#signal = signal
    this.#hint = hint ?? ((offset) => `-o ${offset} starts again at that record`)
  }

  /**
   * Resolves to false when the signal came before the command had ended well.
   * @throws ExitError when the command ends with another code than 0
   */
  run(topic: string, partition: number, record: RecordFields): Promise<boolean> {
    const { bytes, offset, keyStart, keyEnd, valueStart, valueEnd, timestampMs } = record
    // Copies: the cursor moves on while the command reads.
    const value =
      valueStart < 0 ? Buffer.alloc(0) : Buffer.from(viewOf(bytes, valueStart, valueEnd))
    // An environment holds no NUL, and no command expects one in a key.
    const key = keyStart < 0 ? undefined : viewOf(bytes, keyStart, keyEnd).toString('utf8')
    const environment: NodeJS.ProcessEnv = {
      ...this.#io.env,
      MILLRACE_TOPIC: topic,
      MILLRACE_PARTITION: String(partition),
      MILLRACE_OFFSET: String(offset),
      MILLRACE_TIMESTAMP: String(timestampMs),
      MILLRACE_TOMBSTONE: valueStart < 0 ? '1' : '0',
      ...(key === undefined ? {} : { MILLRACE_KEY: key.replaceAll('\0', '') }),
    }
    const place = `${topic}/${partition}:${offset}`
    const run = this.#last.then(() => this.#perform(place, value, environment))
    // The failure is told to whoever asked for that record; the next in line just goes on.
    this.#last = run.then(
      () => undefined,
      () => undefined,
    )
    return run
  }

  async #perform(place: string, value: Buffer, environment: NodeJS.ProcessEnv): Promise<boolean> {
    if (this.#signal.aborted) return false
    const child = spawn('/bin/sh', ['-c', this.#command], {
      env: environment,
      stdio: ['pipe', 'pipe', 'pipe'],
    })
    const kill = (): void => {
      child.kill('SIGTERM')
    }
    this.#signal.addEventListener('abort', kill, { once: true })
    child.stdout.on('data', (chunk: Buffer) => this.#out.write(chunk, 0, chunk.length))
    child.stderr.on('data', (chunk: Buffer) => this.#io.stderr.write(chunk))
    // A command need not read its input.
    child.stdin.on('error', () => undefined)
    child.stdin.end(value)
    try {
      const code = await new Promise<number | null>((resolve, reject) => {
        child.on('error', reject)
        child.on('close', resolve)
      })
      await this.#out.settle()
      if (code !== 0 && !this.#signal.aborted) {
        throw new ExitError(
          EXIT_FAILED,
          `the command ended with ${code === null ? 'a signal' : `code ${code}`} at ${place}`,
          this.#hint(place.slice(place.lastIndexOf(':') + 1)),
        )
      }
      return code === 0
    } catch (error) {
      if (findSystemCode(error) === undefined) throw error
      throw new ExitError(EXIT_FAILED, `the command cannot be run: ${String(error)}`)
    } finally {
      this.#signal.removeEventListener('abort', kill)
    }
  }
}
