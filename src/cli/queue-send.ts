import type { CliIo } from './io.ts'
import { EXIT_DONE, Interrupt, say } from './io.ts'
import { LineReader } from './line-reader.ts'
import { Output } from './output.ts'
import { Stopper, atLine, findLineLimit, recordMaker } from './produce.ts'
import type { BytesRecord, RecordArguments } from './produce.ts'
import { ProgressLine, summarize } from './progress-line.ts'
import type { ServerOptions } from './session.ts'
import { withClient } from './session.ts'
import { formatIso } from './time-format.ts'
import { UsageError } from './usage-error.ts'
import { bytes as bytesCodec, topic as topicHandle } from '../client/index.ts'
import type { BackoffOptions, Producer, Receipt } from '../client/index.ts'

export interface SendOptions extends ServerOptions, RecordArguments {
  /** One record with this value, and nothing is read. */
  readonly value?: string | undefined
  readonly type?: string | undefined
  readonly orderingKey?: string | undefined
  readonly delayMs?: number | undefined
  readonly at?: Date | undefined
  readonly dedupeId?: string | undefined
  readonly attempts?: number | undefined
  readonly backoff?: BackoffOptions | undefined
  readonly format: 'text' | 'json'
  readonly null: boolean
  readonly quiet: boolean
}

/** Receipts are printed in the order of the lines; so many may be under way before the next line is read. */
const MOST_UNDER_WAY = 10_000

/** Sends lines, or one value, as work for queue groups, and prints where each is, or which delay id it has. */
export function queueSend(io: CliIo, topicName: string, options: SendOptions): Promise<number> {
  if (options.delayMs !== undefined && options.at !== undefined) {
    throw new UsageError('--delay and --at contradict each other', 'one is enough')
  }
  if (options.json && options.value !== undefined) {
    throw new UsageError('--json and --value contradict each other', 'envelopes come by stdin')
  }
  const makeRecord = recordMaker(options)
  return withClient(io, options, async (client) => {
    using interrupt = new Interrupt(io)
    const lineBytes = await findLineLimit(client, topicName, options.json)
    const producer = client.producer()
    const send = new SendRun(io, producer, topicName, makeRecord, options, interrupt)
    try {
      return await send.perform(lineBytes)
    } catch (error) {
      // What was read before the failure is still sent; if that fails too, the first reason is the one to tell.
      await producer.close().catch(() => undefined)
      throw error
    }
  })
}

interface Sent {
  readonly line: number
  readonly receipt: Promise<Receipt>
}

class SendRun {
  readonly #io: CliIo
  readonly #producer: Producer
  readonly #topic: ReturnType<typeof topicHandle<Uint8Array, Uint8Array>>
  readonly #makeRecord: (bytes: Buffer, start: number, end: number) => BytesRecord
  readonly #options: SendOptions
  readonly #interrupt: Interrupt
  readonly #out: Output
  #underWay: Sent[] = []
  #records = 0
  #bytes = 0

  constructor(
    io: CliIo,
    producer: Producer,
    topicName: string,
    makeRecord: (bytes: Buffer, start: number, end: number) => BytesRecord,
    options: SendOptions,
    interrupt: Interrupt,
  ) {
    this.#io = io
    this.#producer = producer
    this.#topic = topicHandle(topicName, { value: bytesCodec, key: bytesCodec })
    this.#makeRecord = makeRecord
    this.#options = options
    this.#interrupt = interrupt
    this.#out = new Output(io.stdout, () => interrupt.stop())
  }

  async perform(lineBytes: number): Promise<number> {
    const { value, quiet } = this.#options
    const startedMs = performance.now()
    const describe = (): string =>
      summarize(this.#records, this.#bytes, performance.now() - startedMs)
    const showsReceipts = !quiet && this.#io.stdout.isTTY === true
    const progress = new ProgressLine(this.#io, describe, !quiet && !showsReceipts)
    try {
      if (value === undefined) await this.#sendLines(lineBytes)
      else this.#send(Buffer.from(value), 0, Buffer.byteLength(value), 1)
      await this.#settle(0)
      await this.#producer.close()
    } finally {
      progress.end()
      await this.#out.finish()
    }
    if (this.#interrupt.received !== undefined) say(this.#io, describe())
    return this.#interrupt.received === undefined ? EXIT_DONE : this.#interrupt.exitCode
  }

  async #sendLines(lineBytes: number): Promise<void> {
    const { stdin } = this.#io
    if (stdin.isTTY === true && !this.#options.quiet) {
      say(this.#io, 'reading lines from the terminal; Ctrl-D ends')
    }
    const reader = new LineReader(stdin, this.#options.null ? 0 : 0x0a, lineBytes)
    const stopper = new Stopper()
    const stop = (): void => stopper.stop()
    this.#interrupt.signal.addEventListener('abort', stop, { once: true })
    try {
      while (await stopper.wait(reader.more())) {
        while (reader.next()) {
          await this.#sendLine(reader)
          if (this.#underWay.length >= MOST_UNDER_WAY) await this.#settle(MOST_UNDER_WAY / 2)
        }
        // Somebody who types wants to see that it went out.
        if (stdin.isTTY === true) await this.#settle(0)
      }
    } finally {
      this.#interrupt.signal.removeEventListener('abort', stop)
      stdin.destroy()
    }
  }

  async #sendLine({ bytes, start, end, lines }: LineReader): Promise<void> {
    try {
      this.#send(bytes, start, end, lines)
    } catch (error) {
      // Those before it are on their way, and are told first. If one of them fails, too, that is the first failure.
      await this.#settle(0)
      throw atLine(error, lines)
    }
  }

  #send(bytes: Buffer, start: number, end: number, line: number): void {
    const { type, orderingKey, delayMs, at, dedupeId, attempts, backoff } = this.#options
    if (dedupeId !== undefined && line > 1) {
      throw new UsageError(
        '--dedupe-id names one record, and there is a second line',
        'the first one has been sent; with the same id every other one would be taken for a repeat',
      )
    }
    const receipt = this.#producer.send(this.#topic, {
      ...this.#makeRecord(bytes, start, end),
      type,
      orderingKey,
      delayMs,
      deliverAt: at,
      dedupeId,
      attempts,
      backoff,
    })
    // Looked at by #settle, which may come to it later.
    receipt.catch(() => undefined)
    this.#underWay.push({ line, receipt })
    this.#records++
    this.#bytes += end - start
  }

  /** Prints receipts until so few are left under way. @throws the first failure, when all before it have been printed */
  async #settle(left: number): Promise<void> {
    const first = this.#underWay.splice(0, Math.max(0, this.#underWay.length - left))
    for (const { line, receipt } of first) {
      let placed: Receipt
      try {
        placed = await receipt
      } catch (error) {
        const isLine = this.#options.value === undefined
        throw isLine ? atLine(error, line) : error
      }
      if (!this.#options.quiet) this.#print(placed)
    }
    await this.#out.settle()
  }

  #print(receipt: Receipt): void {
    const { topic, partition, offset, timestamp, duplicate, delayId, deliverAt } = receipt
    const isWaiting = delayId !== undefined && delayId !== ''
    if (this.#options.format === 'json') {
      const facts = isWaiting
        ? { topic, delayId, deliverAt: deliverAt ?? null, duplicate }
        : { topic, partition, offset, timestamp, duplicate }
      this.#out.writeText(`${JSON.stringify(facts)}\n`)
      return
    }
    const again = duplicate ? '  duplicate: sent before' : ''
    const until = deliverAt === undefined ? '' : ` until ${formatIso(deliverAt)}`
    const place = isWaiting ? `${delayId}  waits${until}` : `${topic}/${partition}:${offset}`
    this.#out.writeText(`${place}${again}\n`)
  }
}
