import { CommandPipe } from './command-pipe.ts'
import { IdleTimer } from './idle-timer.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, Interrupt, say } from './io.ts'
import { Output } from './output.ts'
import { formatCount } from './progress-line.ts'
import type { RecordFields, RecordWriter } from './record-fields.ts'
import type { RecordFilter } from './record-filter.ts'
import type { ServerOptions } from './session.ts'
import { withClient } from './session.ts'
import { compileOutput } from './tail-output.ts'
import type { TailOutput, TailOutputOptions } from './tail-output.ts'
import { findParts, toRange } from './tail-range.ts'
import type { RangeOptions, ReadFrom, ReadPart, ReadRange } from './tail-range.ts'
import { formatTable } from './text-table.ts'
import { toExpression } from './topics.ts'
import { UsageError } from './usage-error.ts'
import { bytes as bytesCodec, topic } from '../client/index.ts'
import type { Client, Position, ReadOptions } from '../client/index.ts'

export interface TailOptions extends ServerOptions, TailOutputOptions, RangeOptions {
  readonly partitions?: readonly number[] | undefined
  /** Undefined: as long as nothing says where to stop. */
  readonly follow?: boolean | undefined
  readonly idleMs?: number | undefined
  readonly offsets: boolean
  readonly regex: boolean
  /** Topics whose names match, in place of names. With a group also those still to come. */
  readonly pattern?: string | undefined
  /** Read as a member of this group. The rest goes with it. */
  readonly group?: string | undefined
  readonly instanceId?: string | undefined
  /** Where to begin where nothing is committed. */
  readonly from?: string | undefined
  readonly onLost?: string | undefined
  readonly commit?: 'after-each' | 'interval' | 'manual' | undefined
  readonly sessionTimeoutMs?: number | undefined
}

/** Prints records of topics, from a position on, until told to stop. */
export async function tail(
  io: CliIo,
  names: readonly string[],
  options: TailOptions,
): Promise<number> {
  if (names.length === 0 && options.pattern === undefined) {
    throw new UsageError("missing required argument 'topic'", 'name topics, or use --pattern REGEX')
  }
  const { group } = options
  if (group !== undefined) {
    const { tailGroup } = await import('./group-tail.ts')
    return tailGroup(io, names, { ...options, group })
  }
  return tailTopics(io, names, options)
}

function tailTopics(io: CliIo, names: readonly string[], options: TailOptions): Promise<number> {
  // All that can be wrong with the arguments is found before anything is asked of a broker.
  checkGroupless(options)
  const range = toRange(options)
  const output = compileOutput(io, options.offsets ? { ...options, format: undefined } : options)
  const expressions = toExpressions(names, options)
  if (options.offsets) {
    const asked = options.format ?? (io.stdout.isTTY === true ? 'table' : 'json')
    if (asked !== 'json' && asked !== 'table') {
      throw new UsageError(`--offsets has no format ${asked}`, 'use -f table or -f json')
    }
    return withClient(io, options, async (client) => {
      const topics = await listTopics(client, names, expressions)
      return showOffsets(io, client, topics, range, options.partitions, asked)
    })
  }
  return withClient(io, options, async (client) => {
    using interrupt = new Interrupt(io)
    const topics = await listTopics(client, names, expressions)
    const parts = await findParts(client.admin, topics, range.from, options.partitions)
    const out = new Output(io.stdout, () => interrupt.stop())
    const pipe =
      options.exec === undefined
        ? undefined
        : new CommandPipe(options.exec, io, out, interrupt.signal)
    const run = new TailRun(out, output, options, interrupt, pipe)
    try {
      const { heading } = output.format
      if (heading !== undefined && pipe === undefined) out.writeText(`${heading}\n`)
      if (output.limit > 0) await run.perform(client, parts, range.until)
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

const GROUP_OPTIONS = {
  '--instance-id': 'instanceId',
  '--from': 'from',
  '--on-lost': 'onLost',
  '--commit': 'commit',
  '--session-timeout': 'sessionTimeoutMs',
} as const

function checkGroupless(options: TailOptions): void {
  for (const [flag, name] of Object.entries(GROUP_OPTIONS)) {
    if (options[name] === undefined) continue
    throw new UsageError(`${flag} goes with --group`, flag === '--from' ? 'try -o' : undefined)
  }
}

function toExpressions(names: readonly string[], options: TailOptions): readonly RegExp[] {
  const { pattern, regex } = options
  if (pattern === undefined) return regex ? names.map((name) => toExpression('--regex', name)) : []
  if (names.length > 0) {
    throw new UsageError('--pattern stands in place of names', 'leave one of them out')
  }
  return [toExpression('--pattern', pattern)]
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
      `no topic matches ${expressions.map(({ source }) => source).join(' or ')}`,
      '`millrace topic list` shows what there is',
    )
  }
  return found
}

class TailRun {
  readonly #out: Output
  readonly #write: RecordWriter
  readonly #filter: RecordFilter | undefined
  readonly #idle: IdleTimer
  readonly #options: TailOptions
  readonly #interrupt: Interrupt
  readonly #pipe: CommandPipe | undefined
  readonly #limit: number
  /** Aborts the streams: a signal, enough records, nobody reading, or nothing coming. */
  readonly #stop = new AbortController()
  readonly #onInterrupt = (): void => this.#stop.abort()
  count = 0

  constructor(
    out: Output,
    output: TailOutput,
    options: TailOptions,
    interrupt: Interrupt,
    pipe: CommandPipe | undefined,
  ) {
    this.#out = out
    this.#write = output.format.write
    this.#filter = output.filter
    this.#limit = output.limit
    this.#options = options
    this.#idle = new IdleTimer(options.idleMs, () => this.#stop.abort())
    this.#interrupt = interrupt
    this.#pipe = pipe
    interrupt.signal.addEventListener('abort', this.#onInterrupt, { once: true })
    if (interrupt.signal.aborted) this.#stop.abort()
  }

  /** Several topics are read at the same time; each batch is printed whole. The first failure ends all. */
  async perform(
    client: Client,
    parts: readonly ReadPart[],
    until: Position | undefined,
  ): Promise<void> {
    const reads = parts.map((part) =>
      this.#read(client, part, until).catch((error: unknown) => {
        this.#stop.abort()
        throw error
      }),
    )
    this.#idle.touch()
    const failed = (await Promise.allSettled(reads)).find((read) => read.status === 'rejected')
    if (failed !== undefined) throw failed.reason
  }

  end(): void {
    this.#idle.end()
    this.#interrupt.signal.removeEventListener('abort', this.#onInterrupt)
  }

  async #read(client: Client, part: ReadPart, until: Position | undefined): Promise<void> {
    const { follow } = this.#options
    const options: ReadOptions = {
      from: part.from,
      until,
      partitions: part.partitions,
      signal: this.#stop.signal,
      ...(follow === undefined ? {} : { follow }),
    }
    const handle = topic(part.topic, { value: bytesCodec, key: bytesCodec })
    await using stream = client.read(handle, options)
    for await (const batch of stream.batches()) {
      this.#idle.touch()
      if (this.#pipe === undefined) this.#print(part.topic, batch.partition, batch.cursor())
      else await this.#feed(this.#pipe, part.topic, batch.partition, batch.cursor())
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
      this.#idle.touch()
      this.count++
      if (this.count >= this.#limit) this.#stop.abort()
    }
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
    const froms = await findFroms(client, name, range.from, partitions)
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

async function findFroms(
  client: Client,
  name: string,
  from: ReadFrom,
  partitions: readonly number[] | undefined,
): Promise<ReadonlyMap<number, number>> {
  if (from.kind === 'position') {
    return client.admin.offsets(name, from.position, { partitions })
  }
  const found = new Map<number, number>()
  for (const part of await findParts(client.admin, [name], from, partitions)) {
    for (const partition of part.partitions ?? []) found.set(partition, Number(part.from))
  }
  return found
}
