import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import type { CliIo } from './io.ts'
import type { Output } from './output.ts'
import type { Delivery } from '../client/index.ts'
import { findSystemCode } from '../common/errors.ts'

export type WorkDelivery = Delivery<Uint8Array, Uint8Array>

/** What a command's end means to its record. `stop`: nobody can work like this, and no record is to blame. */
export type CommandVerdict = 'accept' | 'retry' | 'reject' | 'release' | 'stop' | 'lost'

export interface CommandEnd {
  readonly verdict: CommandVerdict
  /** With `release`: how long nobody is to try it. */
  readonly delayMs: number
  /** In words, where it is not `accept`. */
  readonly why: string
  readonly exitCode: number | null
  /** What ended it, if it was a signal. */
  readonly signal: string | null
  readonly durationMs: number
  /** The end of what it wrote to stderr. */
  readonly complaint: string
  /** The beginning of what it printed, where that is kept. */
  readonly output: string
}

export interface WorkCommandOptions {
  readonly group: string
  /** Undefined: as long as it takes. */
  readonly timeoutMs?: number | undefined
  /** Several run at once: what they write to stderr begins with where the record is from. */
  readonly prefixes: boolean
  /** Keep what is printed for the report instead of printing it. */
  readonly captures: boolean
  /** From SIGTERM to SIGKILL. Default 5 s. */
  readonly patienceMs?: number | undefined
}

/** EX_TEMPFAIL of sysexits.h, which `procmail` and mail servers know: not now. */
const EXIT_TEMPORARY = 75
/** What a shell answers when a command is no program, or not there. */
const EXIT_NOT_EXECUTABLE = 126
const EXIT_NOT_FOUND = 127
const SHELL_SIGNAL = 128
const MOST_SIGNALS = 65
const PATIENCE_MS = 5_000
/** For what is left in the pipes when the command has ended: a child of its own may hold them open for ever. */
const PIPE_PATIENCE_MS = 1_000
const MOST_COMPLAINT_BYTES = 2_048
const MOST_OUTPUT_BYTES = 64 * 1024
/** An environment holds 128 KiB in one variable (Linux), and a record may have more than that. */
const MOST_VARIABLE_BYTES = 32 * 1024
/** What passes: processes, descriptors or memory are short just now. */
const SHORTAGES: ReadonlySet<string> = new Set(['EAGAIN', 'EMFILE', 'ENFILE', 'ENOMEM'])

const SHORTAGE_DELAY_MS = 1_000

type KillReason = 'timeout' | 'lost' | 'asked'

/**
 * `work --exec CMD`: runs a shell command for each record, several at once if wanted. The value is its standard input, where the record is from stands in its
 * environment. Each is the leader of a process group: a Ctrl-C at the terminal does not reach it, and when it has to go, all that it has started goes with it.
 */
export class WorkCommand {
  readonly #command: string
  readonly #io: CliIo
  readonly #out: Output
  readonly #options: WorkCommandOptions
  readonly #running: Set<RunningCommand> = new Set()

  constructor(command: string, io: CliIo, out: Output, options: WorkCommandOptions) {
    this.#command = command
    this.#io = io
    this.#out = out
    this.#options = options
  }

  /** Under way now. */
  get size(): number {
    return this.#running.size
  }

  /** Never rejects. `lease` aborts when the record is somebody else's. */
  async run(job: WorkDelivery, lease: AbortSignal): Promise<CommandEnd> {
    const startedMs = performance.now()
    const place = `${job.topic}/${job.partition}:${job.offset}`
    const running = new RunningCommand(this.#io, this.#out, this.#options, place)
    const lost = (): void => running.kill('lost')
    lease.addEventListener('abort', lost, { once: true })
    this.#running.add(running)
    try {
      if (lease.aborted) running.kill('lost')
      const { code, signal } = await running.perform(
        this.#command,
        environmentOf(this.#io, job, this.#options.group),
        job.value,
        this.#options.timeoutMs,
      )
      const [verdict, why] = judge(running.killed, code, signal, this.#options.timeoutMs)
      return {
        verdict,
        delayMs: 0,
        why,
        exitCode: code,
        signal,
        durationMs: Math.round(performance.now() - startedMs),
        complaint: running.complaint,
        output: running.output,
      }
    } catch (error) {
      const isShort = SHORTAGES.has(findSystemCode(error) ?? '')
      return {
        verdict: isShort ? 'release' : 'stop',
        delayMs: isShort ? SHORTAGE_DELAY_MS : 0,
        why: error instanceof Error ? error.message : String(error),
        exitCode: null,
        signal: null,
        durationMs: Math.round(performance.now() - startedMs),
        complaint: '',
        output: '',
      }
    } finally {
      lease.removeEventListener('abort', lost)
      this.#running.delete(running)
    }
  }

  /** Ends all that run: SIGTERM, and SIGKILL for those that do not care. Their records are to be released. */
  kill(): void {
    for (const running of this.#running) running.kill('asked')
  }

  /** The last thing that this process does. */
  killNow(): void {
    for (const running of this.#running) running.killNow()
  }
}

function judge(
  killed: KillReason | undefined,
  code: number | null,
  signal: string | null,
  timeoutMs: number | undefined,
): readonly [verdict: CommandVerdict, why: string] {
  if (killed === 'lost') return ['lost', 'its lease was lost']
  // A command that was asked to stop, and says that it has done its work, is believed.
  if (code === 0) return ['accept', '']
  if (killed === 'asked') return ['release', 'stopped before it had ended']
  if (killed === 'timeout') return ['retry', `longer than ${timeoutMs} ms`]
  if (signal !== null) return ['retry', `ended by ${signal}`]
  // How a shell says that what it ran was ended by a signal: 137 is SIGKILL, which is how a machine short of memory ends programs.
  if (code !== null && code > SHELL_SIGNAL && code < SHELL_SIGNAL + MOST_SIGNALS) {
    return ['retry', `ended by signal ${code - SHELL_SIGNAL}`]
  }
  if (code === EXIT_TEMPORARY) return ['retry', `code ${code}`]
  if (code === EXIT_NOT_FOUND) return ['stop', 'it was not found (code 127)']
  if (code === EXIT_NOT_EXECUTABLE) return ['stop', 'it is not executable (code 126)']
  return ['reject', `code ${code}`]
}

function environmentOf(io: CliIo, job: WorkDelivery, group: string): NodeJS.ProcessEnv {
  const environment: NodeJS.ProcessEnv = {
    ...io.env,
    MILLRACE_GROUP: group,
    MILLRACE_TOPIC: job.topic,
    MILLRACE_PARTITION: String(job.partition),
    MILLRACE_OFFSET: String(job.offset),
    MILLRACE_TIMESTAMP: String(job.timestamp),
    MILLRACE_TOMBSTONE: job.value === null ? '1' : '0',
    MILLRACE_DELIVERY_COUNT: String(job.deliveryCount),
    MILLRACE_FAILURE_COUNT: String(job.failureCount),
  }
  const optional: Readonly<Record<string, string | undefined>> = {
    MILLRACE_KEY: job.key === undefined ? undefined : Buffer.from(job.key).toString('utf8'),
    MILLRACE_TYPE: job.type,
    MILLRACE_HEADERS: headersText(job),
  }
  for (const [name, value] of Object.entries(optional)) {
    // Of another worker around this one, perhaps.
    delete environment[name]
    if (value === undefined || Buffer.byteLength(value) > MOST_VARIABLE_BYTES) continue
    // An environment holds no NUL, and no command expects one in a key.
    environment[name] = value.replaceAll('\0', '')
  }
  return environment
}

/** A JSON object of those that are text. */
function headersText({ headers }: WorkDelivery): string | undefined {
  const texts = Object.entries(headers).filter(([, value]) => typeof value === 'string')
  return texts.length === 0 ? undefined : JSON.stringify(Object.fromEntries(texts))
}

class RunningCommand {
  readonly #io: CliIo
  readonly #out: Output
  readonly #captures: boolean
  readonly #patienceMs: number
  readonly #prefix: string
  #child: ChildProcess | undefined
  #killTimer: NodeJS.Timeout | undefined
  #killed: KillReason | undefined
  #complaint = ''
  #output: Buffer[] = []
  #outputBytes = 0

  constructor(io: CliIo, out: Output, options: WorkCommandOptions, place: string) {
    this.#io = io
    this.#out = out
    this.#captures = options.captures
    this.#patienceMs = options.patienceMs ?? PATIENCE_MS
    this.#prefix = options.prefixes ? `${place}: ` : ''
  }

  /** Why it was ended, if we did it. */
  get killed(): KillReason | undefined {
    return this.#killed
  }

  get complaint(): string {
    return this.#complaint.trim()
  }

  get output(): string {
    return Buffer.concat(this.#output).toString('utf8')
  }

  async perform(
    command: string,
    environment: NodeJS.ProcessEnv,
    value: Uint8Array | null,
    timeoutMs: number | undefined,
  ): Promise<{ readonly code: number | null; readonly signal: string | null }> {
    // Stopped before it began.
    if (this.#killed !== undefined) return { code: null, signal: null }
    const child: ChildProcess = spawn('/bin/sh', ['-c', command], {
      env: environment,
      stdio: ['pipe', 'pipe', 'pipe'],
      detached: true,
    })
    this.#child = child
    const shown = new LinePieces((piece) => this.#show(child, piece))
    const told = new LinePieces((piece) => this.#tell(piece))
    const ended = new Promise<{ readonly code: number | null; readonly signal: string | null }>(
      (resolve, reject) => {
        child.on('error', reject)
        child.on('exit', (code, signal) => resolve({ code, signal }))
      },
    )
    const closed = new Promise<void>((resolve) => child.on('close', () => resolve()))
    // Without descriptors there are no pipes at all, whatever the types say.
    child.stdout?.on('data', (chunk: Buffer) => shown.push(chunk))
    child.stderr?.on('data', (chunk: Buffer) => told.push(chunk))
    // A command need not read its input.
    child.stdin?.on('error', () => undefined)
    child.stdin?.end(value ?? Buffer.alloc(0))
    const timer =
      timeoutMs === undefined ? undefined : setTimeout(() => this.kill('timeout'), timeoutMs)
    try {
      const end = await ended
      clearTimeout(timer)
      // The shell goes first. What it had started has been told, too, and holds the pipes until it has ended.
      await withPatience(closed, this.#killed === undefined ? PIPE_PATIENCE_MS : this.#patienceMs)
      shown.end()
      told.end()
      return end
    } finally {
      clearTimeout(timer)
      clearTimeout(this.#killTimer)
      // What it has started and left behind, when it was to go.
      if (this.#killed !== undefined) signalGroup(child.pid, 'SIGKILL')
      child.stdout?.destroy()
      child.stderr?.destroy()
    }
  }

  /** SIGTERM, and SIGKILL when that does not help. The first reason counts. */
  kill(reason: KillReason): void {
    if (this.#killed !== undefined) return
    this.#killed = reason
    if (this.#child === undefined) return
    this.#signal('SIGTERM')
    this.#killTimer = setTimeout(() => this.#signal('SIGKILL'), this.#patienceMs)
  }

  killNow(): void {
    this.#signal('SIGKILL')
  }

  /** To the command, and to all that it has started. */
  #signal(name: NodeJS.Signals): void {
    const child = this.#child
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    signalGroup(child.pid, name)
  }

  #show(child: ChildProcess, piece: Buffer): void {
    if (this.#captures) {
      const room = MOST_OUTPUT_BYTES - this.#outputBytes
      if (room <= 0) return
      this.#output.push(piece.subarray(0, room))
      this.#outputBytes += Math.min(room, piece.length)
      return
    }
    this.#out.write(piece, 0, piece.length)
    const taken = this.#out.settle()
    if (taken === undefined) return
    // Whoever reads us is slower than the command: it has to wait, or its output would pile up here.
    child.stdout?.pause()
    void taken.then(() => child.stdout?.resume())
  }

  #tell(piece: Buffer): void {
    this.#complaint = (this.#complaint + piece.toString('utf8')).slice(-MOST_COMPLAINT_BYTES)
    if (this.#prefix === '') {
      this.#io.stderr.write(piece)
      return
    }
    const lines = piece.toString('utf8').split('\n')
    const last = lines.pop() ?? ''
    for (const line of lines) this.#io.stderr.write(`${this.#prefix}${line}\n`)
    if (last !== '') this.#io.stderr.write(`${this.#prefix}${last}\n`)
  }
}

function signalGroup(pid: number | undefined, name: NodeJS.Signals): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, name)
  } catch (error) {
    // All of it has ended meanwhile.
    if (findSystemCode(error) !== 'ESRCH') throw error
  }
}

const LONGEST_LINE_BYTES = 64 * 1024

/** Passes whole lines on, so that those of commands that run at the same time do not get mixed up. Very long ones go in pieces. */
class LinePieces {
  readonly #pass: (piece: Buffer) => void
  #rest: Buffer[] = []
  #restBytes = 0

  constructor(pass: (piece: Buffer) => void) {
    this.#pass = pass
  }

  push(chunk: Buffer): void {
    const at = chunk.lastIndexOf(0x0a)
    if (at >= 0) {
      this.#keep(chunk.subarray(0, at + 1))
      this.end()
      this.#keep(chunk.subarray(at + 1))
    } else this.#keep(chunk)
    if (this.#restBytes > LONGEST_LINE_BYTES) this.end()
  }

  end(): void {
    if (this.#restBytes === 0) return
    const piece = Buffer.concat(this.#rest)
    this.#rest = []
    this.#restBytes = 0
    this.#pass(piece)
  }

  #keep(piece: Buffer): void {
    if (piece.length === 0) return
    this.#rest.push(piece)
    this.#restBytes += piece.length
  }
}

/** Resolves with the promise, or when the time is up. */
async function withPatience(promise: Promise<void>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const patience = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms)
  })
  await Promise.race([promise, patience])
  clearTimeout(timer)
}
