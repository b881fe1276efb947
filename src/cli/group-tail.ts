import { toPosition } from './arguments.ts'
import { CommandPipe } from './command-pipe.ts'
import { IdleTimer } from './idle-timer.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, Interrupt, say } from './io.ts'
import { Output } from './output.ts'
import { formatTopicPartitions } from './partition-names.ts'
import { formatCount } from './progress-line.ts'
import { fieldsOf } from './record-fields.ts'
import type { RecordFields } from './record-fields.ts'
import { withClient } from './session.ts'
import { compileOutput } from './tail-output.ts'
import type { TailOutput } from './tail-output.ts'
import type { TailOptions } from './tail.ts'
import { sincePosition } from './tail-range.ts'
import { UsageError } from './usage-error.ts'
import type { BatchContext, Consumer, ConsumerOptions } from '../client/index.ts'
import { MillraceError, bytes as bytesCodec, parseRange, topic } from '../client/index.ts'
import type { Client, Position, ReceivedRecord } from '../client/index.ts'

export interface GroupTailOptions extends TailOptions {
  readonly group: string
}

/** Joining takes a second or two; `--idle 1s` is about records. */
const JOIN_PATIENCE_MS = 10_000

/** After so long without a partition a person is told why nothing happens. */
const EMPTY_HANDED_MS = 4_000

/** What the command reads with. Bytes, so that nothing has to be decoded that is only copied. */
export type TailConsumer = Pick<Consumer<Uint8Array, Uint8Array>, 'run' | 'runBatches' | 'on'>

/** A batch as this command looks at it. */
export interface TailBatch {
  readonly topic: string
  readonly partition: number
  cursor(): RecordFields & { next(): boolean }
}

/**
 * Prints records as a member of a group. What has been printed is committed once stdout has taken it, so that nothing is skipped whatever happens: at least once.
 */
export function tailGroup(
  io: CliIo,
  names: readonly string[],
  options: GroupTailOptions,
): Promise<number> {
  checkOptions(options)
  const output = compileOutput(io, options)
  const pattern = toPattern(names, options)
  const settings: ConsumerOptions = {
    group: options.group,
    instanceId: options.instanceId,
    from: toFrom(options),
    onLostOffset: toPolicy('--on-lost', options.onLost),
    commit: options.commit,
    sessionTimeoutMs: options.sessionTimeoutMs,
    follow: options.follow ?? true,
  }
  return withClient(io, { ...options, clientId: 'millrace-tail' }, async (client) => {
    using interrupt = new Interrupt(io)
    if (pattern === undefined) await checkTopics(client, names)
    await warnOfCommitted(io, client, options, pattern === undefined ? names : undefined)
    if (output.limit === 0) return EXIT_DONE
    const out = new Output(io.stdout, () => interrupt.stop())
    const run = new GroupRun(io, out, output, options, interrupt)
    try {
      const all = { ...settings, signal: run.signal }
      const handles = names.map((name) => topic(name, { value: bytesCodec, key: bytesCodec }))
      await run.perform(
        pattern === undefined ? client.consumer(handles, all) : client.consumer(pattern, all),
      )
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

function checkOptions(options: GroupTailOptions): void {
  const { group } = options
  if (options.partitions !== undefined) {
    throw new UsageError(
      '--partitions and --group contradict each other',
      'the group says who reads what; without --group a read of some partitions disturbs nobody',
    )
  }
  if (options.until !== undefined) {
    throw new UsageError(
      '--until and --group contradict each other',
      '--no-follow stops at the end, -n after so many records',
    )
  }
  if (options.offsets) {
    throw new UsageError(
      '--offsets and --group contradict each other',
      `\`millrace group describe ${group}\` shows where the group is; so does --offsets -o group:${group}`,
    )
  }
  const given = [options.offset, options.since, options.from].filter((text) => text !== undefined)
  if (given.length > 1) {
    throw new UsageError('--offset, --since and --from contradict each other', 'one is enough')
  }
}

const COMMITTED_WORDS: ReadonlySet<string> = new Set(['committed', 'stored'])

/** Where to begin where nothing is committed; `none`: nowhere. `committed` is what a group does anyway. */
function toFrom(options: GroupTailOptions): Position | undefined {
  const { offset, since, from } = options
  if (since !== undefined) return toPolicy('--since', sincePosition(since))
  if (offset === undefined) return toPolicy('--from', from)
  const word = offset.trim().toLowerCase()
  if (COMMITTED_WORDS.has(word) || word === `group:${options.group}`.toLowerCase()) return undefined
  if (word.startsWith('group:')) {
    throw new UsageError(
      `-o ${offset} and --group contradict each other`,
      `\`millrace group reset ${options.group} --to ${offset}\` moves this group to where the other one is`,
    )
  }
  return toPolicy('-o', offset)
}

/** @throws MillraceError INVALID_POSITION */
function toPolicy(option: string, text: string | undefined): Position | undefined {
  if (text === undefined) return undefined
  if (text.trim().toLowerCase() === 'none') return 'none'
  const { from, until } = parseRange(text, Date.now())
  if (until === undefined) return toPosition(from)
  throw new UsageError(
    `${option} ${text} is a range, and a group reads on and on`,
    '--no-follow stops at the end, -n after so many records; without --group any range can be read',
  )
}

/** Topics that match, now and later, in place of names. */
function toPattern(names: readonly string[], options: GroupTailOptions): RegExp | undefined {
  if (options.pattern === undefined && !options.regex) return undefined
  const sources = options.pattern === undefined ? names : [...names, options.pattern]
  if (options.pattern !== undefined && names.length > 0 && !options.regex) {
    throw new UsageError('--pattern stands in place of names', 'leave one of them out')
  }
  const text = sources.length === 1 ? (sources[0] ?? '') : sources.map((s) => `(?:${s})`).join('|')
  try {
    // Without flags: the broker matches, by rules of its own (RE2, linear in time).
    return new RegExp(text)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new UsageError(`--pattern ${text} is no regular expression: ${why}`)
  }
}

/**
 * A group may wait for a topic that is still to come; whoever types a name means one that is there.
 * @throws MillraceError UNKNOWN_TOPIC
 */
async function checkTopics(client: Client, names: readonly string[]): Promise<void> {
  for (const name of new Set(names)) {
    await client.admin.offsets(name, 'start', { partitions: [0] })
  }
}

/** Says so when `-o` will not do what its user may expect. */
async function warnOfCommitted(
  io: CliIo,
  client: Client,
  options: GroupTailOptions,
  names: readonly string[] | undefined,
): Promise<void> {
  const asked = options.offset ?? options.since ?? options.from
  if (asked === undefined || toFrom(options) === undefined) return
  let committed
  try {
    committed = await client.admin.groupOffsets(options.group)
  } catch (error) {
    // A new group, for which `asked` counts everywhere. Anything else will be told by joining.
    if (error instanceof MillraceError) return
    throw error
  }
  if (!committed.some((row) => names === undefined || names.includes(row.topic))) return
  say(
    io,
    `note: ${options.group} has committed offsets and goes on there; ${asked} counts only where there are none. ` +
      `\`millrace group reset ${options.group} --to …\` moves it`,
  )
}

/** Thrown out of a batch that is not to count as finished. */
class Stopped extends Error {
  override readonly name: string = 'Stopped'
}

export class GroupRun {
  readonly #io: CliIo
  readonly #out: Output
  readonly #output: TailOutput
  readonly #group: string
  readonly #interrupt: Interrupt
  readonly #pipe: CommandPipe | undefined
  readonly #idle: IdleTimer
  readonly #talks: boolean
  #emptyHanded: NodeJS.Timeout | undefined
  /** Aborts the consumer, gracefully: a signal, enough records, nobody reading, or nothing coming. */
  readonly #stop = new AbortController()
  readonly #onInterrupt = (): void => this.#stop.abort()
  count = 0

  constructor(
    io: CliIo,
    out: Output,
    output: TailOutput,
    options: Pick<GroupTailOptions, 'group' | 'exec' | 'idleMs'>,
    interrupt: Interrupt,
  ) {
    this.#io = io
    this.#out = out
    this.#output = output
    this.#group = options.group
    this.#interrupt = interrupt
    this.#pipe =
      options.exec === undefined
        ? undefined
        : new CommandPipe(options.exec, io, out, interrupt.signal, {
            hint: () => 'the same command line starts again at that record',
          })
    this.#idle = new IdleTimer(options.idleMs, () => this.#stop.abort())
    this.#talks = io.stderr.isTTY === true
    interrupt.signal.addEventListener('abort', this.#onInterrupt, { once: true })
    if (interrupt.signal.aborted) this.#stop.abort()
  }

  /** To be given to the consumer. */
  get signal(): AbortSignal {
    return this.#stop.signal
  }

  /** Resolves when the group has been left, with everything committed that was shown. */
  async perform(consumer: TailConsumer): Promise<void> {
    this.#listen(consumer)
    const { heading } = this.#output.format
    if (heading !== undefined && this.#pipe === undefined) this.#out.writeText(`${heading}\n`)
    this.#idle.touch(JOIN_PATIENCE_MS)
    this.#emptyHanded = setTimeout(() => {
      this.#talk(
        `waits for partitions; \`millrace group describe ${this.#group}\` shows who has them`,
      )
    }, EMPTY_HANDED_MS)
    try {
      const pipe = this.#pipe
      if (pipe === undefined) {
        await consumer.runBatches((batch, context) => {
          this.#idle.touch()
          return this.#print(batch, context)
        })
      } else {
        await consumer.run((record) => {
          this.#idle.touch()
          return this.#feed(pipe, record)
        })
      }
    } catch (error) {
      if (!isStopped(error)) throw withLostHint(error)
    }
  }

  end(): void {
    clearTimeout(this.#emptyHanded)
    this.#idle.end()
    this.#interrupt.signal.removeEventListener('abort', this.#onInterrupt)
  }

  #listen(consumer: TailConsumer): void {
    consumer.on('assigned', (partitions) => {
      this.#idle.touch()
      if (partitions.length === 0) return
      clearTimeout(this.#emptyHanded)
      this.#talk(`reads ${formatTopicPartitions(partitions)}`)
    })
    consumer.on('revoked', (partitions) => {
      // In the end it gives up everything, which is no news.
      if (partitions.length === 0 || this.#stop.signal.aborted) return
      this.#talk(`gives up ${formatTopicPartitions(partitions)}`)
    })
    // The rest is said to scripts too: records will come twice, or have been left out.
    consumer.on('lost', (partitions) => {
      if (partitions.length === 0 || this.#stop.signal.aborted) return
      this.#say(
        `lost ${formatTopicPartitions(partitions)}: the broker has not heard of this member in time; it joins anew`,
      )
    })
    consumer.on('reset', ({ topic: name, partition, from, to, logStartOffset, highWatermark }) => {
      this.#say(
        `${name}/${partition} goes on at ${to}: offset ${from} is outside [${logStartOffset}, ${highWatermark}]`,
      )
    })
    consumer.on('error', (error) => {
      this.#say(`a commit failed, the next one makes up for it: ${error.message} (${error.code})`)
    })
  }

  /** For people only. */
  #talk(line: string): void {
    if (this.#talks) this.#say(line)
  }

  #say(line: string): void {
    say(this.#io, `${this.#group}: ${line}`)
  }

  async #print(batch: TailBatch, context: BatchContext): Promise<void> {
    const { filter, limit } = this.#output
    const { write } = this.#output.format
    const out = this.#out
    const cursor = batch.cursor()
    let left = limit - this.count
    let next = 0
    while (left > 0 && cursor.next()) {
      if (filter !== undefined && !filter(cursor)) continue
      write(batch.topic, batch.partition, cursor, out)
      next = cursor.offset + 1
      this.count++
      left--
    }
    await out.flush()
    // Nobody knows how much of it was read: the group gets it again.
    if (out.closed) throw new Stopped('nobody reads any more')
    if (left > 0) return
    context.done(next)
    this.#stop.abort()
    throw new Stopped('that was enough')
  }

  /**
   * A record counts as finished when its command has ended well. Records, and not batches: a partition that is to move waits for what is in hand, which had
   * better be one command than thousands.
   */
  async #feed(pipe: CommandPipe, record: ReceivedRecord<Uint8Array, Uint8Array>): Promise<void> {
    const { filter, limit } = this.#output
    const fields = fieldsOf(record)
    if (filter?.(fields) === false) return
    if (this.#stop.signal.aborted) throw new Stopped('interrupted')
    const isDone = await pipe.run(record.topic, record.partition, fields)
    await this.#out.flush()
    if (!isDone || this.#out.closed) throw new Stopped('interrupted')
    this.#idle.touch()
    this.count++
    if (this.count >= limit) this.#stop.abort()
  }
}

function isStopped(error: unknown): boolean {
  return error instanceof Stopped || (error instanceof Error && error.cause instanceof Stopped)
}

/** What a person can do about an offset that is gone, which is another thing here than for a plain read. */
function withLostHint(error: unknown): unknown {
  if (!(error instanceof MillraceError) || error.code !== 'OFFSET_OUT_OF_RANGE') return error
  const hint =
    '--on-lost start goes on at the oldest record that is left, --on-lost end at the newest; `millrace group describe NAME` shows the offsets'
  return new MillraceError(error.code, error.message, { ...error.details, hint }, error)
}
