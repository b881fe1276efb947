import type { EventEmitter } from 'node:events'
import type { Readable, Writable } from 'node:stream'

/** An output of the process. A terminal gets colours, progress and tables that fit. */
export type TerminalStream = Writable & { readonly isTTY?: boolean; readonly columns?: number }

/** The world as a command sees it, so that a test can run one in its own process. `main.ts` makes the real one. */
export interface CliIo {
  readonly stdin: Readable & { readonly isTTY?: boolean }
  /** Records, and what an admin command was asked for. Nothing else. */
  readonly stdout: TerminalStream
  /** All talk. */
  readonly stderr: TerminalStream
  readonly env: Readonly<Record<string, string | undefined>>
  /** Emits SIGINT and SIGTERM. */
  readonly signals: Pick<EventEmitter, 'on' | 'off'>
  /** Ends the process without waiting for anything: the second signal. */
  exitNow(code: number): void
}

export const EXIT_DONE = 0
export const EXIT_FAILED = 1
export const EXIT_USAGE = 2
export const EXIT_UNHEALTHY = 10
/** EX_CANTCREAT of sysexits.h: another broker holds the data directory. */
export const EXIT_DIRECTORY_IN_USE = 73
/** EX_IOERR of sysexits.h: the disk broke its word, so the broker has stopped. */
export const EXIT_STORAGE_FAILED = 74
export const EXIT_INTERRUPTED = 130
export const EXIT_TERMINATED = 143

export type SignalName = 'SIGINT' | 'SIGTERM'

/**
 * Turns the first SIGINT or SIGTERM into an abort and the second into an exit at once, for as long as it is
 * not disposed. Commands that must end politely hold one. `onAgain` is told of each signal after the first, and answers whether
 * the process may live on.
 */
export class Interrupt implements Disposable {
  readonly #controller = new AbortController()
  readonly #io: CliIo
  readonly #onAgain: (times: number) => boolean
  #received: SignalName | undefined
  #times = 0
  readonly #onInterrupt = (): void => this.#receive('SIGINT')
  readonly #onTerminate = (): void => this.#receive('SIGTERM')

  constructor(io: CliIo, onAgain: (times: number) => boolean = () => false) {
    this.#io = io
    this.#onAgain = onAgain
    io.signals.on('SIGINT', this.#onInterrupt)
    io.signals.on('SIGTERM', this.#onTerminate)
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  get received(): SignalName | undefined {
    return this.#received
  }

  /** 130 or 143 once a signal has come, else 0. */
  get exitCode(): number {
    return this.#received === undefined ? EXIT_DONE : exitCodeOf(this.#received)
  }

  /** Ends what listens to {@link signal} without a signal having come, for instance when the reader of a pipe has left. */
  stop(): void {
    this.#controller.abort()
  }

  [Symbol.dispose](): void {
    this.#io.signals.off('SIGINT', this.#onInterrupt)
    this.#io.signals.off('SIGTERM', this.#onTerminate)
  }

  #receive(name: SignalName): void {
    this.#times++
    if (this.#received !== undefined) {
      if (!this.#onAgain(this.#times)) this.#io.exitNow(exitCodeOf(name))
      return
    }
    this.#received = name
    this.#controller.abort()
  }
}

function exitCodeOf(name: SignalName): number {
  return name === 'SIGINT' ? EXIT_INTERRUPTED : EXIT_TERMINATED
}

/** A line of talk. */
export function say(io: CliIo, line: string): void {
  io.stderr.write(`${line}\n`)
}
