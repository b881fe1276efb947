import { toPosition } from './arguments.ts'
import { CommandPipe } from './command-pipe.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, Interrupt, say } from './io.ts'
import { Output } from './output.ts'
import { formatCount } from './progress-line.ts'
import { compileFilter } from './record-filter.ts'
import type { RecordFilter } from './record-filter.ts'
import { compileFormat } from './record-format.ts'
import type { RecordFields, RecordWriter } from './record-fields.ts'
import type { ServerOptions } from './session.ts'
import { withClient } from './session.ts'
import { formatTable } from './text-table.ts'
import { toExpression } from './topics.ts'
import { UsageError } from './usage-error.ts'
import { bytes as bytesCodec, parsePosition, parseRange, topic } from '../client/index.ts'
import type { Client, Position, ReadOptions } from '../client/index.ts'
import { parseDurationMs } from '../common/units.ts'

export interface TailOptions extends ServerOptions {
  readonly offset?: string | undefined
  readonly since?: string | undefined
  readonly until?: string | undefined
  readonly num?: number | undefined
  readonly partitions?: readonly number[] | undefined
  /** Undefined: pretty on a terminal, JSON lines elsewhere. */
  readonly format?: string | undefined
  /** Undefined: as long as nothing says where to stop. */
  readonly follow?: boolean | undefined
  readonly idleMs?: number | undefined
  readonly grep?: string | undefined
  readonly ignoreCase: boolean
  readonly key?: string | undefined
  readonly header: readonly string[]
  readonly exec?: string | undefined
  readonly null: boolean
  readonly metaOnly: boolean
  readonly offsets: boolean
  readonly regex: boolean
}

interface ReadRange {
  readonly from: Position
  readonly until: Position | undefined
}

/** Prints records of topics, from a position on, until told to stop. */
export function tail(io: CliIo, names: readonly string[], options: TailOptions): Promise<number> {
  // All that can be wrong with the arguments is found before anything is asked of a broker.
  const range = toRange(options)
  const filter = compileFilter({ ...options, headers: options.header })
  if (options.exec !== undefined && options.format !== undefined) {
    throw new UsageError(
      '--exec and --format contradict each other',
      'what the command prints is what is shown; it finds the rest in MILLRACE_TOPIC, MILLRACE_OFFSET …',
    )
  }
  const expressions = options.regex ? names.map((name) => toExpression('--regex', name)) : []
  const delimiter = options.null ? 0 : 0x0a
  const isTerminal = io.stdout.isTTY === true
  if (options.offsets) {
    const asked = options.format ?? (isTerminal ? 'table' : 'json')
    if (asked !== 'json' && asked !== 'table') {
      throw new UsageError(`--offsets has no format ${asked}`, 'use -f table or -f json')
    }
    return withClient(io, options, async (client) => {
      const topics = await listTopics(client, names, expressions)
      return showOffsets(io, client, topics, range, options.partitions, asked)
    })
  }
  const format = compileFormat(options.format ?? (isTerminal ? 'pretty' : 'json'), {
    delimiter,
    metaOnly: options.metaOnly,
    colour: isTerminal && io.env['NO_COLOR'] === undefined,
    columns: isTerminal ? io.stdout.columns : undefined,
  })
  return withClient(io, options, async (client) => {
    using interrupt = new Interrupt(io)
    const topics = await listTopics(client, names, expressions)
    const out = new Output(io.stdout, () => interrupt.stop())
    const pipe =
      options.exec === undefined
        ? undefined
        : new CommandPipe(options.exec, io, out, interrupt.signal)
    const run = new TailRun(out, format.write, filter, options, interrupt, pipe)
    try {
      if (format.heading !== undefined && pipe === undefined) out.writeText(`${format.heading}\n`)
      if (options.num !== 0) {
        await run.perform(client, topics, range)
      }
    } finally {
      run.end()
      await out.finish()
    }
    if (interrupt.received !== undefined) {
      say(io, `${formatCount(run.count)} ${run.count === 1 ? 'record' : 'records'}`)
      return interrupt.exitCode
    }
    return EXIT_DONE
  })
}

/** @throws MillraceError INVALID_POSITION; UsageError when options contradict each other */
function toRange(options: TailOptions): ReadRange {
  const nowMs = Date.now()
  if (options.since !== undefined && options.offset !== undefined) {
    throw new UsageError('--since and --offset contradict each other', '--since 1h is -o @-1h')
  }
  const parsed = parseRange(
    options.since === undefined ? (options.offset ?? 'start') : sincePosition(options.since),
    nowMs,
  )
  if (parsed.until !== undefined && options.until !== undefined) {
    throw new UsageError(`--until contradicts the end in ${options.offset ?? options.since ?? ''}`)
  }
  const until =
    options.until === undefined ? parsed.until : parsePosition(untilPosition(options.until), nowMs)
  return {
    from: toPosition(parsed.from),
    until: until === undefined ? undefined : toPosition(until),
  }
}

/** `1h` is an hour ago; a time may have its @ or not. */
function sincePosition(text: string): string {
  if (text.startsWith('@')) return text
  return isDuration(text) ? `@-${text}` : `@${text}`
}

/** A bare duration is so long ago; offsets, `end` and times are what they are elsewhere. */
function untilPosition(text: string): string {
  return isDuration(text) && !/^\d+$/.test(text) ? `@-${text}` : text
}

function isDuration(text: string): boolean {
  if (!/^\d+[a-z]/i.test(text)) return false
  try {
    parseDurationMs(text)
    return true
  } catch {
    return false // Then it is taken for a time, whose reader has the better message.
  }
}

/** The topics named, or those that an expression finds. @throws UsageError when it finds none */
async function listTopics(
  client: Client,
  names: readonly string[],
  expressions: readonly RegExp[],
): Promise<readonly string[]> {
  if (expressions.length === 0) return [...new Set(names)]
  const found: string[] = []
  for await (const { name } of client.admin.topics({ sizes: false })) {
    if (expressions.some((expression) => expression.test(name))) found.push(name)
  }
  if (found.length === 0) {
    throw new UsageError(
      `no topic matches ${names.join(' or ')}`,
      '`millrace topic list` shows what there is',
    )
  }
  return found
}

class TailRun {
  readonly #out: Output
  readonly #write: RecordWriter
  readonly #filter: RecordFilter | undefined
  readonly #options: TailOptions
  readonly #interrupt: Interrupt
  readonly #pipe: CommandPipe | undefined
  readonly #limit: number
  /** Aborts the streams: a signal, enough records, nobody reading, or nothing coming. */
  readonly #stop = new AbortController()
  readonly #onInterrupt = (): void => this.#stop.abort()
  #idleTimer: NodeJS.Timeout | undefined
  count = 0

  constructor(
    out: Output,
    write: RecordWriter,
    filter: RecordFilter | undefined,
    options: TailOptions,
    interrupt: Interrupt,
    pipe: CommandPipe | undefined,
  ) {
    this.#out = out
    this.#write = write
    this.#filter = filter
    this.#options = options
    this.#interrupt = interrupt
    this.#pipe = pipe
    this.#limit = options.num ?? Infinity
    interrupt.signal.addEventListener('abort', this.#onInterrupt, { once: true })
    if (interrupt.signal.aborted) this.#stop.abort()
  }

  /** Several topics are read at the same time; each batch is printed whole. The first failure ends all. */
  async perform(client: Client, topics: readonly string[], range: ReadRange): Promise<void> {
    const reads = topics.map((name) =>
      this.#read(client, name, range).catch((error: unknown) => {
        this.#stop.abort()
        throw error
      }),
    )
    this.#touch()
    const failed = (await Promise.allSettled(reads)).find((read) => read.status === 'rejected')
    if (failed !== undefined) throw failed.reason
  }

  end(): void {
    clearTimeout(this.#idleTimer)
    this.#interrupt.signal.removeEventListener('abort', this.#onInterrupt)
  }

  async #read(client: Client, name: string, range: ReadRange): Promise<void> {
    const { partitions, follow } = this.#options
    const options: ReadOptions = {
      from: range.from,
      until: range.until,
      partitions,
      signal: this.#stop.signal,
      ...(follow === undefined ? {} : { follow }),
    }
    const handle = topic(name, { value: bytesCodec, key: bytesCodec })
    await using stream = client.read(handle, options)
    for await (const batch of stream.batches()) {
      this.#touch()
      if (this.#pipe === undefined) this.#print(name, batch.partition, batch.cursor())
      else await this.#feed(this.#pipe, name, batch.partition, batch.cursor())
      if (this.#stop.signal.aborted) break
      await this.#out.settle()
    }
  }

  /** Once per record. */
  #print(name: string, partition: number, cursor: RecordFields & { next(): boolean }): void {
    const filter = this.#filter
    const write = this.#write
    const out = this.#out
    let left = this.#limit - this.count
    while (left > 0 && cursor.next()) {
      if (filter !== undefined && !filter(cursor)) continue
      write(name, partition, cursor, out)
      this.count++
      left--
    }
    if (left <= 0) this.#stop.abort()
  }

  async #feed(
    pipe: CommandPipe,
    name: string,
    partition: number,
    cursor: RecordFields & { next(): boolean },
  ): Promise<void> {
    while (!this.#stop.signal.aborted && cursor.next()) {
      if (this.#filter !== undefined && !this.#filter(cursor)) continue
      await pipe.run(name, partition, cursor)
      this.#touch()
      this.count++
      if (this.count >= this.#limit) this.#stop.abort()
    }
  }

  /** Something has come: the wait for `--idle` begins anew. */
  #touch(): void {
    const { idleMs } = this.#options
    if (idleMs === undefined) return
    if (this.#idleTimer === undefined) {
      this.#idleTimer = setTimeout(() => this.#stop.abort(), idleMs)
    } else this.#idleTimer.refresh()
  }
}

/** What a partition has, and where the range would begin and end in it. */
async function showOffsets(
  io: CliIo,
  client: Client,
  topics: readonly string[],
  range: ReadRange,
  partitions: readonly number[] | undefined,
  format: 'json' | 'table',
): Promise<number> {
  const rows: {
    topic: string
    partition: number
    start: number
    end: number
    from: number
    until: number
  }[] = []
  const wanted = partitions === undefined ? {} : { partitions }
  for (const name of topics) {
    const starts = await client.admin.offsets(name, 'start', wanted)
    const ends = await client.admin.offsets(name, 'end', wanted)
    const froms = await client.admin.offsets(name, range.from, wanted)
    const untils =
      range.until === undefined ? ends : await client.admin.offsets(name, range.until, wanted)
    for (const [partition, start] of [...starts].sort(([a], [b]) => a - b)) {
      const end = ends.get(partition) ?? start
      rows.push({
        topic: name,
        partition,
        start,
        end,
        from: froms.get(partition) ?? start,
        until: untils.get(partition) ?? end,
      })
    }
  }
  if (format === 'json') {
    for (const row of rows) io.stdout.write(`${JSON.stringify(row)}\n`)
    return EXIT_DONE
  }
  io.stdout.write(
    formatTable(
      [
        { name: 'TOPIC' },
        { name: 'PARTITION', align: 'right' },
        { name: 'START', align: 'right' },
        { name: 'END', align: 'right' },
        { name: 'FROM', align: 'right' },
        { name: 'UNTIL', align: 'right' },
        { name: 'RECORDS', align: 'right' },
      ],
      rows.map((row) => [
        row.topic,
        String(row.partition),
        String(row.start),
        String(row.end),
        String(row.from),
        String(row.until),
        String(Math.max(0, row.until - row.from)),
      ]),
    ),
  )
  return EXIT_DONE
}
