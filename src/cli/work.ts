import { toPairs } from './arguments.ts'
import { IdleTimer } from './idle-timer.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, EXIT_FAILED, Interrupt, say } from './io.ts'
import { Output } from './output.ts'
import { formatCount } from './progress-line.ts'
import { fieldsOf } from './record-fields.ts'
import { escapeControls } from './record-format.ts'
import type { ServerOptions } from './session.ts'
import { withClient } from './session.ts'
import { compileOutput } from './tail-output.ts'
import type { TailOutput } from './tail-output.ts'
import { ExitError, UsageError } from './usage-error.ts'
import { WorkCommand } from './work-command.ts'
import type { CommandEnd, WorkDelivery } from './work-command.ts'
import { MillraceError, bytes as bytesCodec, topic } from '../client/index.ts'
import type { BackoffOptions, Client, WorkerOptions } from '../client/index.ts'
import { unreachable } from '../common/assert.ts'
import { DAY_MS } from '../common/units.ts'

export interface WorkOptions extends ServerOptions {
  readonly group: string
  readonly num?: number | undefined
  /** Undefined: pretty on a terminal, JSON lines elsewhere. With a command: what it prints; or `json`, a line about each record. */
  readonly format?: string | undefined
  readonly null: boolean
  readonly metaOnly: boolean
  readonly exec?: string | undefined
  readonly concurrency: number
  readonly timeoutMs?: number | undefined
  readonly leaseMs?: number | undefined
  readonly idleMs?: number | undefined
  /** Until there is nothing more to do now. */
  readonly drain: boolean
  readonly quiet: boolean
  // Settings of the group, which it keeps.
  readonly attempts?: number | undefined
  readonly backoff?: BackoffOptions | undefined
  readonly order?: 'none' | 'key' | 'partition' | undefined
  readonly start?: string | undefined
  readonly deadLetters?: string | boolean | undefined
  readonly set: readonly string[]
}

/** What the command works with. */
export type WorkClient = Pick<Client, 'worker' | 'batchWorker'>

/** Printed and accepted at once. */
const PRINT_RECORDS = 500
/** Commands in hand may take as long as they take: a second Ctrl-C ends them. */
const CLOSE_PATIENCE_MS = DAY_MS
/** Joining takes a moment; `--idle 1s` is about records. */
const JOIN_PATIENCE_MS = 5_000

/**
 * Takes records as a worker of a queue group. Without a command they are printed, and accepted when stdout has taken them; with one its exit code is the
 * verdict.
 */
export function work(io: CliIo, topicName: string, options: WorkOptions): Promise<number> {
  checkOptions(options)
  const output = compileWorkOutput(io, options)
  const settings = workerOptions(options)
  return withClient(io, { ...options, clientId: 'millrace-work' }, async (client) => {
    // A group may wait for a topic that is still to come; whoever types a name means one that is there.
    await client.admin.offsets(topicName, 'start', { partitions: [0] })
    return performWork(io, client, topicName, settings, output, options)
  })
}

/** @throws UsageError */
function checkOptions(options: WorkOptions): void {
  if (options.exec === undefined) {
    if (options.timeoutMs !== undefined) {
      throw new UsageError('--timeout goes with --exec', '--lease is how long a record may be held')
    }
    if (options.concurrency > 1) {
      throw new UsageError(
        '--concurrency goes with --exec',
        'what is printed goes to one stdout; start the command several times instead',
      )
    }
  } else if (options.format !== undefined && options.format !== 'json') {
    throw new UsageError(
      `--exec and --format ${options.format} contradict each other`,
      'what the command prints is what is shown; --format json is a line about each record in its place',
    )
  }
}

export function compileWorkOutput(io: CliIo, options: WorkOptions): TailOutput {
  const { num, format, metaOnly } = options
  return compileOutput(io, {
    num,
    // A report about commands is JSON of another kind.
    format: options.exec === undefined ? format : undefined,
    ignoreCase: false,
    header: [],
    null: options.null,
    metaOnly,
  })
}

export function workerOptions(options: WorkOptions): WorkerOptions {
  const { group, leaseMs, attempts, backoff, order, deadLetters, start } = options
  const settings = Object.fromEntries(toPairs('--set', options.set))
  const limit = options.num ?? Infinity
  const concurrency = Math.max(1, Math.min(options.concurrency, limit))
  return {
    group,
    leaseMs,
    attempts,
    backoff,
    order,
    deadLetters: typeof deadLetters === 'string' ? { topic: deadLetters } : deadLetters,
    settings: start === undefined ? settings : { 'queue.start': start, ...settings },
    concurrency,
    // Commands take far longer than a record takes to come; and what is held here others cannot do.
    prefetch: options.exec === undefined && limit > PRINT_RECORDS ? undefined : 0,
  }
}

export async function performWork(
  io: CliIo,
  client: WorkClient,
  topicName: string,
  settings: WorkerOptions,
  output: TailOutput,
  options: WorkOptions,
): Promise<number> {
  if (output.limit === 0) return EXIT_DONE
  const run = new WorkRun(io, topicName, output, options)
  try {
    await run.perform(client, settings)
  } finally {
    await run.end()
  }
  return run.report()
}

type WorkCounts = Record<'done' | 'retried' | 'rejected' | 'released' | 'lost', number>

class WorkRun {
  readonly #io: CliIo
  readonly #topicName: string
  readonly #output: TailOutput
  readonly #options: WorkOptions
  readonly #out: Output
  readonly #interrupt: Interrupt
  readonly #command: WorkCommand | undefined
  readonly #idle: IdleTimer
  /** A signal, enough records, nobody reading, nothing coming, or a failure. */
  readonly #stop = new AbortController()
  readonly #counts: WorkCounts = { done: 0, retried: 0, rejected: 0, released: 0, lost: 0 }
  #started = 0
  #active = 0
  #failure: unknown

  constructor(io: CliIo, topicName: string, output: TailOutput, options: WorkOptions) {
    this.#io = io
    this.#topicName = topicName
    this.#output = output
    this.#options = options
    this.#interrupt = new Interrupt(io, (times) => this.#onAgain(times))
    this.#interrupt.signal.addEventListener('abort', () => this.#stop.abort(), { once: true })
    this.#out = new Output(io.stdout, () => this.#stop.abort())
    this.#idle = new IdleTimer(options.idleMs, () => this.#onIdle())
    this.#command =
      options.exec === undefined
        ? undefined
        : new WorkCommand(options.exec, io, this.#out, {
            group: options.group,
            timeoutMs: options.timeoutMs,
            prefixes: options.concurrency > 1,
            captures: options.format === 'json',
          })
  }

  /** Resolves when the worker has left, and what it had in hand is settled. */
  async perform(client: WorkClient, settings: WorkerOptions): Promise<void> {
    const { heading } = this.#output.format
    const command = this.#command
    if (heading !== undefined && command === undefined) this.#out.writeText(`${heading}\n`)
    const handle = topic(this.#topicName, { value: bytesCodec, key: bytesCodec })
    const worker =
      command === undefined
        ? client.batchWorker(
            handle,
            { ...settings, batchSize: Math.min(PRINT_RECORDS, this.#output.limit) },
            (jobs) => this.#print(jobs),
          )
        : client.worker(handle, settings, (job, { signal }) => this.#feed(command, job, signal))
    let closing: Promise<void> | undefined
    const close = (): Promise<void> => (closing ??= worker.close({ timeoutMs: CLOSE_PATIENCE_MS }))
    const stopped = new Promise<void>((resolve) => {
      const stop = (): void => {
        // At once, or it would take more while we are on our way there.
        close().catch(() => undefined)
        resolve()
      }
      this.#stop.signal.addEventListener('abort', stop, { once: true })
      if (this.#stop.signal.aborted) stop()
    })
    // What ends the worker by itself is met by whatever waits just then.
    worker.closed.catch(() => undefined)
    try {
      await Promise.race([worker.ready(), stopped, worker.closed])
      if (!this.#stop.signal.aborted) {
        this.#talk(`works on ${this.#topicName}`)
        this.#idle.touch(JOIN_PATIENCE_MS)
        const waits = [stopped, worker.closed]
        if (this.#options.drain) waits.push(worker.drain())
        await Promise.race(waits)
      }
    } finally {
      this.#idle.end()
      const left = this.#command?.size ?? 0
      if (left > 0 && this.#interrupt.received !== undefined) {
        this.#say(
          `waits for ${left === 1 ? 'the command' : `${left} commands`} in hand; a second Ctrl-C ends ${left === 1 ? 'it' : 'them'}`,
        )
      }
      await close()
    }
  }

  async end(): Promise<void> {
    this.#interrupt[Symbol.dispose]()
    await this.#out.finish()
  }

  /** The exit code, after a word about what has happened. */
  report(): number {
    if (this.#failure !== undefined) throw this.#failure
    const { exec, quiet } = this.#options
    const { received, exitCode } = this.#interrupt
    if (received !== undefined || (exec !== undefined && !quiet)) say(this.#io, this.#summary())
    return exitCode
  }

  #summary(): string {
    const { done, retried, rejected, released, lost } = this.#counts
    const all = done + retried + rejected + released + lost
    const parts = [
      [done, 'done'],
      [retried, 'to be tried again'],
      [rejected, 'rejected'],
      [released, 'given back'],
      [lost, 'lost to others'],
    ] as const
    const rest = parts.filter(([count]) => count > 0)
    const noun = `${formatCount(all)} ${all === 1 ? 'record' : 'records'}`
    if (rest.every(([, what]) => what === 'done')) return noun
    return `${noun}: ${rest.map(([count, what]) => `${formatCount(count)} ${what}`).join(', ')}`
  }

  // ── printing ──

  async #print(jobs: readonly WorkDelivery[]): Promise<void> {
    this.#idle.touch()
    const { write } = this.#output.format
    const room = this.#stop.signal.aborted ? 0 : this.#output.limit - this.#started
    const shown = jobs.slice(0, room)
    this.#started += shown.length
    for (const job of shown) write(job.topic, job.partition, fieldsOf(job), this.#out)
    await this.#out.flush()
    // Nobody knows how much of it was read: the group gets it again.
    const isRead = !this.#out.closed
    const back = isRead ? jobs.slice(shown.length) : jobs
    await Promise.all(back.map((job) => this.#giveBack(job)))
    if (isRead) this.#counts.done += shown.length
    if (!isRead || this.#started >= this.#output.limit) this.#stop.abort()
  }

  async #giveBack(job: WorkDelivery): Promise<void> {
    try {
      await job.release()
    } catch (error) {
      // It is somebody else's already, which is what was wanted.
      if (!isLost(error)) throw error
    }
  }

  // ── commands ──

  async #feed(command: WorkCommand, job: WorkDelivery, lease: AbortSignal): Promise<void> {
    if (this.#stop.signal.aborted || this.#started >= this.#output.limit) {
      await this.#giveBack(job)
      return
    }
    this.#started++
    this.#active++
    this.#idle.touch()
    // Nothing more is taken while the last ones run.
    if (this.#started >= this.#output.limit) this.#stop.abort()
    const end = await command.run(job, lease)
    const verdict = await this.#settle(job, end)
    this.#active--
    this.#idle.touch()
    if (this.#options.format === 'json') this.#reportRecord(job, end, verdict)
    await this.#out.settle()
  }

  /** What has become of it, which is `lost` when somebody else has it by now. */
  async #settle(job: WorkDelivery, end: CommandEnd): Promise<CommandEnd['verdict']> {
    const { verdict } = end
    const place = `${job.topic}/${job.partition}:${job.offset}`
    const error = new CommandError(end)
    try {
      switch (verdict) {
        case 'accept':
          await job.accept()
          this.#counts.done++
          break
        case 'retry':
          await job.retry(error)
          this.#counts.retried++
          this.#tell(`${place}: ${end.why}, to be tried again`)
          break
        case 'reject':
          await job.reject(error)
          this.#counts.rejected++
          this.#tell(`${place}: ${end.why}, rejected`)
          break
        case 'release':
          await job.release({ delayMs: end.delayMs })
          this.#counts.released++
          this.#tell(`${place}: ${end.why}, given back`)
          break
        case 'stop':
          // A command that cannot be run says nothing about any record: nobody's failures grow.
          this.#failure ??= new ExitError(
            EXIT_FAILED,
            `the command cannot be run: ${end.why}`,
            `the record ${place} has been given back; nothing was rejected`,
          )
          this.#stop.abort()
          await job.release()
          this.#counts.released++
          break
        case 'lost':
          this.#counts.lost++
          this.#say(
            `${place}: its lease was lost, so the command was stopped; others go on with it`,
          )
          break
        default:
          unreachable(verdict)
      }
      return verdict
    } catch (failure) {
      if (!isLost(failure)) throw failure
      this.#counts.lost++
      this.#say(`${place}: its lease was lost before it was settled; others do it again`)
      return 'lost'
    }
  }

  #reportRecord(job: WorkDelivery, end: CommandEnd, verdict: CommandEnd['verdict']): void {
    const facts = {
      topic: job.topic,
      partition: job.partition,
      offset: job.offset,
      deliveryCount: job.deliveryCount,
      failureCount: job.failureCount,
      verdict: verdict === 'stop' ? 'release' : verdict,
      exitCode: end.exitCode,
      signal: end.signal,
      durationMs: end.durationMs,
      output: end.output,
      stderr: end.complaint,
    }
    this.#out.writeText(`${JSON.stringify(facts)}\n`)
  }

  // ── the rest ──

  #onIdle(): void {
    if (this.#active > 0) this.#idle.touch()
    else this.#stop.abort()
  }

  /** The second signal ends commands, politely and then not; the third ends this process. */
  #onAgain(times: number): boolean {
    if (times > 2 || this.#command === undefined) {
      this.#command?.killNow()
      return false
    }
    this.#command.kill()
    return true
  }

  /** For people only. */
  #talk(line: string): void {
    if (this.#io.stderr.isTTY === true && !this.#options.quiet) this.#say(line)
  }

  /** About one record. */
  #tell(line: string): void {
    if (!this.#options.quiet) this.#say(line)
  }

  #say(line: string): void {
    say(this.#io, `${this.#options.group}: ${escapeControls(line)}`)
  }
}

/** What a command has failed with, as retries and dead letters keep it: the end of its stderr tells most. */
class CommandError extends Error {
  override readonly name: string

  constructor({ why, complaint, exitCode }: CommandEnd) {
    // The name says which code it was.
    super(complaint === '' ? why : exitCode === null ? `${why}: ${complaint}` : complaint)
    this.name = exitCode === null ? 'CommandEnded' : `ExitCode${exitCode}`
    // Where this process was says nothing about the command.
    this.stack = ''
  }
}

const LOST: ReadonlySet<string> = new Set(['LEASE_LOST', 'LEASE_LIMIT_REACHED', 'CLOSED'])

function isLost(error: unknown): boolean {
  return error instanceof MillraceError && LOST.has(error.code)
}
