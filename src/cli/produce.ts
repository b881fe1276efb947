import { createReadStream } from 'node:fs'
import type { Readable } from 'node:stream'
import { toPairs } from './arguments.ts'
import { decodeEnvelope } from './envelope.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, Interrupt, say } from './io.ts'
import { LineReader } from './line-reader.ts'
import { Output } from './output.ts'
import { ProgressLine, summarize } from './progress-line.ts'
import type { ServerOptions } from './session.ts'
import { withClient } from './session.ts'
import { UsageError } from './usage-error.ts'
import { bytes as bytesCodec, topic as topicHandle } from '../client/index.ts'
import type { Client, Compression, Headers, NewRecord, Producer } from '../client/index.ts'
import type { Acks } from '../common/acks.ts'
import { BrokerError } from '../common/errors.ts'
import { KIB, MIB, parseBytes } from '../common/units.ts'

export interface ProduceOptions extends ServerOptions {
  readonly keySeparator?: string | undefined
  readonly key?: string | undefined
  readonly header: readonly string[]
  readonly partition?: number | undefined
  readonly acks: Acks
  readonly compression: Compression
  readonly json: boolean
  /** With `json`: to the partition that the envelope names. */
  readonly keepPartition: boolean
  readonly emptyIsNull: boolean
  readonly tee: boolean
  readonly null: boolean
  readonly quiet: boolean
}

/** Which of them say how a line becomes a record. */
export type RecordArguments = Pick<
  ProduceOptions,
  'keySeparator' | 'key' | 'header' | 'partition' | 'json' | 'keepPartition' | 'emptyIsNull'
>

export type BytesRecord = NewRecord<Uint8Array, Uint8Array>

/** What base64 and escapes may add to a record in its envelope, and room for its other fields. */
const ENVELOPE_FACTOR = 6
const ENVELOPE_BYTES = MIB
const DEFAULT_RECORD_BYTES = MIB

/** Sends lines as records. Resolves when all that was read is as safe as `--acks` asks. */
export function produce(
  io: CliIo,
  topicName: string,
  files: readonly string[],
  options: ProduceOptions,
): Promise<number> {
  const makeRecord = recordMaker(options)
  return withClient(io, options, async (client) => {
    using interrupt = new Interrupt(io)
    const lineBytes = await findLineLimit(client, topicName, options.json)
    if (files.length === 0 && io.stdin.isTTY === true && !options.quiet) {
      say(io, 'reading lines from the terminal; Ctrl-D ends')
    }
    const producer = client.producer({ acks: options.acks, compression: options.compression })
    try {
      const run = new ProduceRun(io, producer, topicName, makeRecord, options, interrupt)
      return await run.perform(files, lineBytes)
    } catch (error) {
      // What was read before the failure is still sent; if that fails too, the first reason is the one to tell.
      await producer.close().catch(() => undefined)
      throw error
    }
  })
}

/** How long a line may be. Also finds out that the topic is there before a single one is read. */
export async function findLineLimit(
  client: Client,
  topicName: string,
  isJson: boolean,
): Promise<number> {
  const { config } = await client.admin.describeTopic(topicName)
  const limit = config.find((entry) => entry.name === 'max.message.bytes')?.value
  const recordBytes = limit === undefined ? DEFAULT_RECORD_BYTES : parseBytes(limit)
  return isJson ? recordBytes * ENVELOPE_FACTOR + ENVELOPE_BYTES : recordBytes
}

class ProduceRun {
  readonly #io: CliIo
  readonly #producer: Producer
  readonly #topic: ReturnType<typeof topicHandle<Uint8Array, Uint8Array>>
  readonly #makeRecord: RecordMaker
  readonly #options: ProduceOptions
  readonly #interrupt: Interrupt
  #records = 0
  #bytes = 0

  constructor(
    io: CliIo,
    producer: Producer,
    topicName: string,
    makeRecord: RecordMaker,
    options: ProduceOptions,
    interrupt: Interrupt,
  ) {
    this.#io = io
    this.#producer = producer
    this.#topic = topicHandle(topicName, { value: bytesCodec, key: bytesCodec })
    this.#makeRecord = makeRecord
    this.#options = options
    this.#interrupt = interrupt
  }

  async perform(files: readonly string[], lineBytes: number): Promise<number> {
    const startedMs = performance.now()
    const describe = (): string =>
      summarize(this.#records, this.#bytes, performance.now() - startedMs)
    const showsRecords = this.#options.tee && this.#io.stdout.isTTY === true
    const progress = new ProgressLine(this.#io, describe, !this.#options.quiet && !showsRecords)
    const tee = this.#options.tee
      ? new Output(this.#io.stdout, () => this.#interrupt.stop())
      : undefined
    try {
      const sources = files.length === 0 ? [this.#io.stdin] : files.map(toSource)
      for (const source of sources) {
        if (this.#interrupt.signal.aborted) break
        await this.#send(source, tee, lineBytes)
      }
      await this.#producer.close()
    } finally {
      progress.end()
      await tee?.finish()
    }
    if (!this.#options.quiet || this.#interrupt.received !== undefined) say(this.#io, describe())
    return this.#interrupt.received === undefined ? EXIT_DONE : this.#interrupt.exitCode
  }

  /** Ends early when a signal comes or a record has failed; what has been read by then is still sent, and `flush` tells why. */
  async #send(source: Readable, tee: Output | undefined, lineBytes: number): Promise<void> {
    const delimiter = this.#options.null ? 0 : 0x0a
    const reader = new LineReader(source, delimiter, lineBytes)
    const stopper = new Stopper()
    const stop = (): void => stopper.stop()
    this.#interrupt.signal.addEventListener('abort', stop, { once: true })
    const unlisten = this.#producer.on('error', stop)
    try {
      while (await stopper.wait(reader.more())) {
        // Once per line: no promise, no text, one small view.
        while (reader.next()) {
          if (!this.#post(reader)) await this.#producer.ready()
          this.#records++
          this.#bytes += reader.end - reader.start
          if (tee !== undefined) {
            tee.write(reader.bytes, reader.start, reader.end)
            tee.writeByte(delimiter)
          }
        }
        await tee?.settle()
      }
    } finally {
      this.#interrupt.signal.removeEventListener('abort', stop)
      unlisten()
      // Not the iterator's `return`: that would wait for a read that is under way.
      source.destroy()
    }
  }

  #post(reader: LineReader): boolean {
    try {
      return this.#producer.post(
        this.#topic,
        this.#makeRecord(reader.bytes, reader.start, reader.end),
      )
    } catch (error) {
      throw atLine(error, reader.lines)
    }
  }
}

/** The error of a record, with the line that it was in. */
export function atLine(error: unknown, line: number): unknown {
  if (!(error instanceof BrokerError)) return error
  return new BrokerError(
    error.code,
    `line ${line}: ${error.message}`,
    { ...error.details, line },
    error,
  )
}

function toSource(path: string): Readable {
  return createReadStream(path, { highWaterMark: 256 * KIB })
}

/** Waits for a promise or for the word to stop, whichever is first. (Promise.race would keep a reaction for every piece read.) */
export class Stopper {
  #stopped = false
  #resolve: ((value: boolean) => void) | undefined

  stop(): void {
    this.#stopped = true
    this.#resolve?.(false)
  }

  /** What `more` resolves to, or false. */
  wait(more: Promise<boolean>): Promise<boolean> {
    return new Promise((resolve, reject) => {
      this.#resolve = resolve
      more.then(resolve, reject)
      if (this.#stopped) resolve(false)
    })
  }
}

export type RecordMaker = (bytes: Buffer, start: number, end: number) => BytesRecord

/**
 * How a line becomes a record.
 * @throws UsageError when options contradict each other
 */
export function recordMaker(options: RecordArguments): RecordMaker {
  if (options.json) return jsonRecordMaker(options)
  if (options.keepPartition) {
    throw new UsageError('--keep-partition goes with --json', 'use -p for one partition for all')
  }
  if (options.keySeparator !== undefined && options.key !== undefined) {
    throw new UsageError('--key and --key-separator contradict each other')
  }
  if (options.keySeparator === '') throw new UsageError('--key-separator is empty')
  const { partition, emptyIsNull } = options
  const headers = toHeaders(options.header)
  const key = options.key === undefined ? undefined : Buffer.from(options.key)
  const separator =
    options.keySeparator === undefined ? undefined : Buffer.from(unescape(options.keySeparator))
  if (separator === undefined) {
    return (bytes, start, end) => ({
      value: emptyIsNull && start === end ? null : bytes.subarray(start, end),
      key,
      headers,
      partition,
    })
  }
  return (bytes, start, end) => {
    const line = bytes.subarray(start, end)
    const at = line.indexOf(separator)
    const value = at < 0 ? line : line.subarray(at + separator.length)
    return {
      value: emptyIsNull && value.length === 0 ? null : value,
      key: at < 0 ? undefined : line.subarray(0, at),
      headers,
      partition,
    }
  }
}

/** `-k '\t'` means a tab, as in every such tool. */
function unescape(text: string): string {
  return text.replaceAll('\\t', '\t').replaceAll('\\0', '\0')
}

function jsonRecordMaker(options: RecordArguments): RecordMaker {
  for (const [name, isSet] of [
    ['--key-separator', options.keySeparator !== undefined],
    ['--key', options.key !== undefined],
    ['-Z', options.emptyIsNull],
  ] as const) {
    if (isSet) throw new UsageError(`--json and ${name} contradict each other`)
  }
  const common = toHeaders(options.header)
  return (bytes, start, end) => {
    const envelope = decodeEnvelope(bytes.subarray(start, end))
    const headers: Record<string, string | Uint8Array> = { ...common }
    for (const header of envelope.headers) {
      if (header.value === undefined || Object.hasOwn(headers, header.key)) {
        throw new BrokerError(
          'INVALID_RECORD',
          `header ${JSON.stringify(header.key)} has no value or is there twice, which a producer cannot send`,
        )
      }
      headers[header.key] = header.value
    }
    return {
      value: envelope.value ?? null,
      key: envelope.key,
      headers: Object.keys(headers).length === 0 ? undefined : headers,
      partition: options.partition ?? (options.keepPartition ? envelope.partition : undefined),
      timestamp: envelope.timestampMs === undefined ? undefined : new Date(envelope.timestampMs),
    }
  }
}

function toHeaders(texts: readonly string[]): Headers | undefined {
  return texts.length === 0 ? undefined : Object.fromEntries(toPairs('--header', texts))
}
