import { setTimeout as delay } from 'node:timers/promises'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { bytes, connect, topic } from '../src/client/index.ts'
import type { Batch, Client, RecordStream, Topic } from '../src/client/index.ts'
import { Histogram, type HistogramCounts } from './histogram.ts'
import { monotonicMs, Values, type ValueOptions } from './values.ts'
import { VerificationError, Verifier } from './verifier.ts'

/** `cursor` and `batches` take whole batches, the latter with an object per record; `records` awaits each record. */
export type ReadMode = 'cursor' | 'batches' | 'records'

/** What one process is to read while it is being written. Plain data: it may be sent to another process. */
export interface ReadLoadOptions {
  readonly address: string
  readonly topic: string
  readonly values: ValueOptions
  readonly readers: number
  readonly connections: number
  readonly mode: ReadMode
  readonly checksBytes: boolean
  readonly prefetchBytes: number | undefined
}

export interface ReadWindow {
  /** Of all readers together. */
  readonly records: number
  readonly ms: number
  /** From the time that a record was meant to be sent until a reader had it. Empty unless values are stamped. */
  readonly latency: HistogramCounts
}

export interface ReadLoadResult {
  readonly windows: readonly ReadWindow[]
  readonly records: number
  readonly eventLoopP99Ms: number
}

/** How long a reader may get nothing, once everything has been produced. */
const PATIENCE_MS = 90_000

/** Readers of one process that follow a topic from its start until they have all that was produced. */
export class ReadLoad {
  readonly #options: ReadLoadOptions
  readonly #clients: Client[] = []
  readonly #readers: TailReader[] = []
  readonly #counts: Counts = { edges: [], windows: [] }
  readonly #loop = monitorEventLoopDelay({ resolution: 10 })

  constructor(options: ReadLoadOptions) {
    this.#options = options
  }

  /** Connects and begins to read. */
  async start(): Promise<void> {
    const { address, connections, readers } = this.#options
    for (let i = 0; i < Math.min(connections, readers); i++) {
      this.#clients.push(await connect({ url: address, clientId: 'bench-read' }))
    }
    for (let i = 0; i < readers; i++) {
      const client = this.#clients[i % this.#clients.length]!
      this.#readers.push(new TailReader(client, this.#options, this.#counts, `reader ${i}`))
    }
    this.#loop.enable()
  }

  /**
   * Records are counted in [edges[i], edges[i + 1]), one result for each. Times of {@link monotonicMs}. Told after the start, for nobody knows
   * beforehand how long a thousand readers take to begin.
   */
  measure(edges: readonly number[]): void {
    this.#counts.edges = edges
    this.#counts.windows = edges.slice(1).map(() => ({ records: 0, latency: new Histogram() }))
  }

  /** Resolves when every reader has read at least one record, or has failed. */
  async begun(): Promise<void> {
    await Promise.all(this.#readers.map((reader) => reader.begun))
  }

  /**
   * Ends when every reader has all the records that producers have sent.
   * @throws VerificationError when one has another record, or none for a long time
   */
  async finish(sent: readonly number[]): Promise<ReadLoadResult> {
    try {
      await Promise.all(this.#readers.map((reader) => reader.finish(sent)))
    } finally {
      this.#loop.disable()
      await this.close()
    }
    const { edges, windows } = this.#counts
    return {
      windows: windows.map((window, i) => ({
        records: window.records,
        ms: (edges[i + 1] ?? 0) - (edges[i] ?? 0),
        latency: window.latency.toCounts(),
      })),
      records: this.#readers.reduce((sum, reader) => sum + reader.records, 0),
      eventLoopP99Ms: this.#loop.percentile(99) / 1e6,
    }
  }

  async close(): Promise<void> {
    for (const reader of this.#readers) await reader.close()
    for (const client of this.#clients) await client.close()
  }
}

interface CountedWindow {
  records: number
  readonly latency: Histogram
}

/** Shared by the readers of a process. */
interface Counts {
  edges: readonly number[]
  windows: readonly CountedWindow[]
}

class TailReader {
  readonly begun: Promise<void>
  readonly #verifier: Verifier
  readonly #values: Values
  readonly #options: ReadLoadOptions
  readonly #counts: Counts
  readonly #name: string
  readonly #stream: RecordStream<Uint8Array>
  readonly #ended: Promise<void>
  #begin: () => void = () => {}
  #expected = Infinity
  #lastNewsMs = 0

  constructor(client: Client, options: ReadLoadOptions, counts: Counts, name: string) {
    this.#options = options
    this.#counts = counts
    this.#name = name
    this.#values = valuesOf(options.values)
    this.#verifier = new Verifier(this.#values, { checksBytes: options.checksBytes })
    const from: Topic<Uint8Array> = topic(options.topic, { value: bytes })
    this.#stream = client.read(from, { from: 'start', prefetchBytes: options.prefetchBytes })
    this.begun = new Promise((resolve) => {
      this.#begin = resolve
    })
    this.#ended = this.#read().finally(() => this.#begin())
    // Looked at by `finish`; until then its failure must not end the process.
    this.#ended.catch(() => undefined)
  }

  get records(): number {
    return this.#verifier.records
  }

  async finish(sent: readonly number[]): Promise<void> {
    this.#expected = sent.reduce((sum, count) => sum + count, 0)
    this.#lastNewsMs = monotonicMs()
    if (this.#verifier.records >= this.#expected) await this.#stream.close()
    const stop = new AbortController()
    await Promise.race([this.#ended, this.#watch(stop.signal)]).finally(() => stop.abort())
    this.#verifier.finish(sent)
  }

  close(): Promise<void> {
    return this.#stream.close()
  }

  async #watch(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await delay(500, undefined, { signal }).catch(() => undefined) // Aborted: the loop ends.
      if (monotonicMs() - this.#lastNewsMs < PATIENCE_MS) continue
      throw new VerificationError(
        `${this.#name} has ${this.#verifier.records} of ${this.#expected} records, and none for ${PATIENCE_MS} ms`,
      )
    }
  }

  async #read(): Promise<void> {
    const { mode, values } = this.#options
    if (mode === 'records') {
      for await (const { partition, offset, value } of this.#stream) {
        this.#verifier.takeValue(partition, offset, value)
        const nowMs = monotonicMs()
        const window = this.#windowAt(nowMs)
        if (window !== undefined) {
          window.records++
          if (values.isStamped && value !== null) {
            const view = new DataView(value.buffer, value.byteOffset, value.length)
            window.latency.record((nowMs - this.#values.stampAt(view, 0)) * 1000)
          }
        }
        if (this.#isDone(nowMs)) return
      }
      return
    }
    for await (const batch of this.#stream.batches()) {
      const nowMs = monotonicMs()
      takeBatch(this.#verifier, batch, mode)
      const window = this.#windowAt(nowMs)
      if (window !== undefined) {
        window.records += batch.count
        if (values.isStamped) this.#recordLatency(batch, nowMs, window.latency)
      }
      if (this.#isDone(nowMs)) return
    }
  }

  #recordLatency(batch: Batch<Uint8Array>, nowMs: number, latency: Histogram): void {
    const cursor = batch.cursor()
    const { bytes } = cursor
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    while (cursor.next()) {
      latency.record((nowMs - this.#values.stampAt(view, cursor.valueStart)) * 1000)
    }
  }

  #windowAt(nowMs: number): CountedWindow | undefined {
    const { edges, windows } = this.#counts
    for (const [i, window] of windows.entries()) {
      if (nowMs >= (edges[i] ?? 0) && nowMs < (edges[i + 1] ?? 0)) return window
    }
    return undefined
  }

  #isDone(nowMs: number): boolean {
    this.#lastNewsMs = nowMs
    this.#begin()
    return this.#verifier.records >= this.#expected
  }
}

/** Gives a batch to the verifier, by its cursor or with an object for each record. */
export function takeBatch(verifier: Verifier, batch: Batch<Uint8Array>, mode: ReadMode): void {
  if (mode === 'cursor') verifier.take(batch)
  else {
    for (const { partition, offset, value } of batch) verifier.takeValue(partition, offset, value)
  }
}

/** A thousand readers of one process share what values look like. */
const shared: Map<string, Values> = new Map()

function valuesOf(options: ValueOptions): Values {
  const key = JSON.stringify(options)
  const values = shared.get(key) ?? new Values(options)
  shared.set(key, values)
  return values
}
