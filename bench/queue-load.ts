import { setTimeout as delay } from 'node:timers/promises'
import {
  bytes,
  type Client,
  connect,
  type Delivery,
  RejectError,
  topic,
  type Worker,
} from '../src/client/index.ts'
import { Histogram, type HistogramCounts } from './histogram.ts'
import { monotonicMs, Values, type ValueOptions } from './values.ts'
import { NumberSet, VerificationError } from './verifier.ts'

/** Plain data: it is sent to another process. */
export interface QueueLoadOptions {
  readonly address: string
  readonly topic: string
  readonly group: string
  readonly concurrency: number
  readonly prefetch: number | undefined
  readonly values: ValueOptions
  /** What the handler does: nothing, which accepts; or rejects everything. */
  readonly verdict: 'accept' | 'reject'
  /** Of the group. */
  readonly settings: Readonly<Record<string, string>>
}

export interface QueueProgress {
  /** Handlers that have run. */
  readonly handled: number
  /** Records that were handled a second time. */
  readonly repeated: number
}

export interface QueueLoadResult extends QueueProgress {
  /** From when a record was meant to be sent until its handler began, of those meant to be sent in the measured time. */
  readonly latency: HistogramCounts
}

/** One worker in this process. Every byte that it is given is looked at, and every record is to come once. */
export class QueueLoad {
  readonly #options: QueueLoadOptions
  readonly #values: Values
  readonly #latency: Histogram = new Histogram()
  readonly #seen: NumberSet[] = []
  #client: Client | undefined
  #worker: Worker<Uint8Array> | undefined
  #measureFromMs = Infinity
  #measureUntilMs = Infinity
  #handled = 0
  #repeated = 0
  #failure: Error | undefined

  constructor(options: QueueLoadOptions) {
    this.#options = options
    this.#values = new Values(options.values)
  }

  /** Resolves when the broker has taken the worker in. */
  async start(): Promise<void> {
    const { address, group, concurrency, prefetch, settings, verdict } = this.#options
    this.#client = await connect({ url: address, clientId: 'bench-worker' })
    const { isStamped } = this.#options.values
    const handle = isStamped
      ? (job: Delivery<Uint8Array>) => this.#takeStamped(job)
      : (job: Delivery<Uint8Array>) => this.#take(job)
    this.#worker = this.#client.worker(
      topic(this.#options.topic, { value: bytes }),
      { group, concurrency, prefetch, settings },
      verdict === 'accept'
        ? handle
        : (job) => {
            handle(job)
            throw new RejectError('as the benchmark wants it')
          },
    )
    this.#worker.closed.catch((error: unknown) => this.#fail(error))
    await this.#worker.ready()
  }

  /** Latencies of records that were meant to be sent in `[fromMs, untilMs)` count. */
  measure(fromMs: number, untilMs: number): void {
    this.#measureFromMs = fromMs
    this.#measureUntilMs = untilMs
  }

  progress(): QueueProgress {
    if (this.#failure !== undefined) throw this.#failure
    return { handled: this.#handled, repeated: this.#repeated }
  }

  /** Closes the worker: everything that was handled is settled then. */
  async finish(): Promise<QueueLoadResult> {
    await this.#worker?.close()
    await this.#client?.close()
    return { ...this.progress(), latency: this.#latency.toCounts() }
  }

  readonly #take = ({ value, partition, offset }: Delivery<Uint8Array>): void => {
    this.#handled++
    if (value === null) {
      this.#fail(new VerificationError(`${partition}:${offset} has no value`))
      return
    }
    const view = new DataView(value.buffer, value.byteOffset, value.byteLength)
    if (!this.#values.isIntact(value, view, 0, value.length)) {
      this.#fail(new VerificationError(`${partition}:${offset} is not what was sent`))
    }
    const seen = (this.#seen[partition] ??= new NumberSet())
    if (!seen.add(offset)) this.#repeated++
  }

  readonly #takeStamped = (job: Delivery<Uint8Array>): void => {
    const nowMs = monotonicMs()
    this.#take(job)
    const { value } = job
    if (value === null) return
    const view = new DataView(value.buffer, value.byteOffset, value.byteLength)
    const meantMs = this.#values.stampAt(view, 0)
    if (meantMs < this.#measureFromMs || meantMs >= this.#measureUntilMs) return
    this.#latency.record((nowMs - meantMs) * 1000)
  }

  #fail(error: unknown): void {
    this.#failure ??= error instanceof Error ? error : new Error(String(error))
  }
}

export interface DelayedLoadOptions {
  readonly address: string
  readonly topic: string
  readonly payloadBytes: number
  readonly records: number
  /** On the wall clock: the first is due then, the last so much later, the others evenly between them. */
  readonly firstDueMs: number
  readonly spreadMs: number
}

export interface DelayedLoadResult {
  readonly ms: number
  readonly records: number
}

const WINDOW = 20_000

/** Sends under way. Shared functions: a closure per record would be the benchmark's cost, not the client's. */
class Progress {
  open = 0
  failure: unknown

  watch(sending: Promise<unknown>): void {
    this.open++
    void sending.then(this.#onReceipt, this.#onFailure)
  }

  readonly #onReceipt = (): void => {
    this.open--
  }

  readonly #onFailure = (error: unknown): void => {
    this.open--
    this.failure ??= error
  }
}

/** Sends records with a time of delivery, a promise each, as fast as they are taken. The value begins with when it is due, as text. */
export async function sendDelayed(options: DelayedLoadOptions): Promise<DelayedLoadResult> {
  const { records, firstDueMs, spreadMs, payloadBytes } = options
  const client = await connect({ url: options.address, clientId: 'bench-delayed' })
  try {
    const to = topic(options.topic, { value: bytes })
    const producer = client.producer()
    const startMs = monotonicMs()
    const progress = new Progress()
    for (let i = 0; i < records; i++) {
      const dueMs = Math.floor(firstDueMs + (records === 1 ? 0 : (i / (records - 1)) * spreadMs))
      const value = Buffer.alloc(payloadBytes, 0x2e)
      value.write(String(dueMs), 'latin1')
      progress.watch(producer.send(to, { value, deliverAt: new Date(dueMs) }))
      while (progress.open >= WINDOW) await delay(1)
      if (progress.failure !== undefined) break
    }
    await producer.close()
    if (progress.failure !== undefined) throw progress.failure
    return { ms: monotonicMs() - startMs, records }
  } finally {
    await client.close()
  }
}
