import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

export interface BrokerProcessOptions {
  /** The data directory. */
  readonly directory: string
  /** Default: a free port of 127.0.0.1. */
  readonly listen?: string | undefined
  /** More flags of `serve`. */
  readonly flags?: readonly string[] | undefined
  /** Flags of node itself. */
  readonly nodeFlags?: readonly string[] | undefined
  readonly environment?: Readonly<Record<string, string>> | undefined
  /** The built command. Default: the one in dist/. */
  readonly main?: string | undefined
  /** How long a start may take. Default 60 000. */
  readonly timeoutMs?: number | undefined
}

/** What the broker said of its start, in its log. */
export interface BrokerStart {
  readonly clean: boolean
  readonly incarnation: number
  readonly partitions: number
  /** From opening the data directory until every partition was ready. */
  readonly elapsedMs: number
  readonly scannedBytes: number
  readonly tornBytes: number
}

export interface BrokerEnd {
  readonly code: number | null
  readonly signal: string | null
}

/** As much of the log as is kept for error messages. */
const KEPT_LOG = 64 * 1024

const LOOP_FILE = 'event-loop.json'

/** This file runs as dist/bench/broker-process.js, and from its source in tests. */
const dist = import.meta.url.endsWith('.ts') ? '../dist/' : '../'

const DEFAULT_MAIN: string = fileURLToPath(new URL(`${dist}src/cli/main.js`, import.meta.url))
const LOOP_MONITOR: string = new URL(`${dist}bench/loop-monitor.js`, import.meta.url).href

/**
 * A broker in a process of its own, on a data directory that outlives it: killed, it can be started again with the same options and the address that it had.
 */
export class BrokerProcess {
  /** `host:port`. */
  readonly address: string
  readonly start: BrokerStart | undefined
  /** From spawning the process until it said that it is ready. */
  readonly readyMs: number
  readonly ended: Promise<BrokerEnd>
  readonly #child: ChildProcess
  readonly #options: BrokerProcessOptions
  readonly #log: { text: string }

  static async start(options: BrokerProcessOptions): Promise<BrokerProcess> {
    const startedMs = performance.now()
    const child = spawn(
      process.execPath,
      [
        ...(options.nodeFlags ?? []),
        options.main ?? DEFAULT_MAIN,
        'serve',
        '--data',
        options.directory,
        '--listen',
        options.listen ?? '127.0.0.1:0',
        '--log-format',
        'json',
        ...(options.flags ?? []),
      ],
      {
        stdio: ['ignore', 'pipe', 'pipe'],
        // Settings of a real broker must not leak in.
        env: { PATH: process.env['PATH'] ?? '', ...options.environment },
      },
    )
    // Nothing outlives us, not even when we end without a word.
    const onExit = (): void => {
      child.kill('SIGKILL')
    }
    process.once('exit', onExit)
    const ended = once(child, 'close').then(([code, signal]: unknown[]) => {
      process.off('exit', onExit)
      return {
        code: typeof code === 'number' ? code : null,
        signal: typeof signal === 'string' ? signal : null,
      }
    })
    const log = { text: '' }
    child.stderr.setEncoding('utf8').on('data', (piece: string) => {
      log.text = (log.text + piece).slice(-KEPT_LOG)
    })
    const timeoutMs = options.timeoutMs ?? 60_000
    const address = await new Promise<string>((resolve, reject) => {
      const timer = setTimeout(() => {
        child.kill('SIGKILL')
        reject(new Error(`the broker was not ready within ${timeoutMs} ms: ${log.text}`))
      }, timeoutMs)
      ended.then(({ code }) => {
        clearTimeout(timer)
        reject(new Error(`the broker ended with code ${code} before it was ready: ${log.text}`))
        return undefined
      }, reject)
      createInterface({ input: child.stdout }).on('line', (line) => {
        const found = /^millrace listening on (\S+)$/.exec(line)?.[1]
        if (found === undefined) return
        clearTimeout(timer)
        resolve(found)
      })
    })
    const readyMs = performance.now() - startedMs
    return new BrokerProcess(child, options, address, ended, log, readyMs)
  }

  private constructor(
    child: ChildProcess,
    options: BrokerProcessOptions,
    address: string,
    ended: Promise<BrokerEnd>,
    log: { text: string },
    readyMs: number,
  ) {
    this.#child = child
    this.#options = options
    this.#log = log
    this.address = address
    this.ended = ended
    this.readyMs = readyMs
    this.start = findStart(log.text)
  }

  get pid(): number {
    return this.#child.pid ?? 0 // It has started, so it has one.
  }

  get directory(): string {
    return this.#options.directory
  }

  /** The last of its log, as JSON lines. */
  get log(): string {
    return this.#log.text
  }

  get hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null
  }

  /** Sends the signal without waiting: SIGSTOP and SIGCONT, say. */
  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  /** Sends the signal and waits for the end. */
  kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<BrokerEnd> {
    this.#child.kill(signal)
    return this.ended
  }

  /** SIGTERM, and an error unless the broker then ends as it should. */
  async stop(): Promise<void> {
    const { code } = await this.kill('SIGTERM')
    if (code !== 0) throw new Error(`the broker ended with code ${code}: ${this.log}`)
  }

  /** A new process on the same data and the same address. The former one must have ended. */
  restart(options: Partial<BrokerProcessOptions> = {}): Promise<BrokerProcess> {
    return BrokerProcess.start({ ...this.#options, listen: this.address, ...options })
  }
}

/** Options that have the broker watch its own event loop; {@link readLoopDelay} gets the answer. */
export function withLoopMonitor(options: BrokerProcessOptions): BrokerProcessOptions {
  return {
    ...options,
    nodeFlags: [...(options.nodeFlags ?? []), '--import', LOOP_MONITOR],
    environment: { ...options.environment, BENCH_LOOP_FILE: join(options.directory, LOOP_FILE) },
  }
}

export interface LoopDelay {
  readonly p99Ms: number
  readonly maxMs: number
}

/** Has the broker write down its event loop's delay since the last call. Call it a moment before {@link readLoopDelay}. */
export function askLoopDelay(broker: BrokerProcess): void {
  broker.signal('SIGUSR2')
}

/** What the broker has written down last. */
export function readLoopDelay(broker: BrokerProcess): LoopDelay | undefined {
  try {
    // Written by loop-monitor.ts in this form.
    return JSON.parse(readFileSync(join(broker.directory, LOOP_FILE), 'utf8')) as LoopDelay
  } catch {
    return undefined // It has not been asked, or not had the time yet.
  }
}

/** How long the broker may take to write down its event loop's delay: it does so when its event loop lets it. */
const LOOP_PATIENCE_MS = 10_000
const LOOP_POLL_MS = 5

/** The delay since the broker was asked the last time, with what is going on now. @throws Error when it does not answer */
export async function takeLoopDelay(broker: BrokerProcess): Promise<LoopDelay> {
  rmSync(join(broker.directory, LOOP_FILE), { force: true })
  askLoopDelay(broker)
  const untilMs = performance.now() + LOOP_PATIENCE_MS
  for (;;) {
    const found = readLoopDelay(broker)
    if (found !== undefined) return found
    if (performance.now() >= untilMs) throw new Error('the broker does not tell of its event loop')
    await delay(LOOP_POLL_MS)
  }
}

function findStart(log: string): BrokerStart | undefined {
  for (const line of log.split('\n')) {
    if (!line.includes('scannedBytes')) continue
    return JSON.parse(line) as BrokerStart // The broker's own log line; its fields are StartReport's.
  }
  return undefined
}
