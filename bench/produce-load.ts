import { setImmediate as nextTurn, setTimeout as delay } from 'node:timers/promises'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import type { Acks, Client, Compression, Producer, Receipt, Topic } from '../src/client/index.ts'
import { bytes, connect, topic } from '../src/client/index.ts'
import { Histogram, type HistogramCounts } from './histogram.ts'
import { monotonicMs, Values, type ValueOptions } from './values.ts'
import type { ReceiptSamples } from './verifier.ts'

/** `send`: a promise per record. `post`: none. `sendAll`: one for a thousand. */
export type ProduceApi = 'send' | 'post' | 'sendAll'

/** What one process is to produce. Plain data: it may be sent to another process. */
export interface ProduceLoadOptions {
  readonly address: string
  readonly topic: string
  readonly values: ValueOptions
  /** Numbers of this process's producers: they go into the values. */
  readonly firstProducer: number
  readonly producers: number
  readonly api: ProduceApi
  readonly acks: Acks
  readonly codec: Compression
  readonly batchBytes: number
  readonly lingerMs: number | undefined
  readonly bufferBytes: number | undefined
  /** Of this whole process; undefined: as fast as possible. */
  readonly recordsPerSecond: number | undefined
  /** Bytes of values between two turns of the event loop. Answers are read in between, so a program that never lets go gets none. */
  readonly turnBytes: number
  /** Ends after so many records of each producer, if it comes before the time. */
  readonly maxRecords: number | undefined
  /** Times of {@link monotonicMs}, which all processes share. What happens in [measureFrom, measureUntil) counts. */
  readonly startAtMs: number
  readonly measureFromMs: number
  readonly measureUntilMs: number
}

export interface ProduceLoadResult {
  /** Records made, and acknowledged, from first to last, by producer of this process. */
  readonly sent: readonly number[]
  /** Records acknowledged in the measured time. */
  readonly measuredRecords: number
  readonly measuredMs: number
  /** From the time that a record was meant to be sent until its acknowledgement. */
  readonly latency: HistogramCounts
  readonly samples: ReceiptSamples
  readonly eventLoopP99Ms: number
}

/** Of a closed loop, the latency of every so manieth record is taken: a closure and two looks at the clock are too dear for each. */
const SAMPLE_EVERY = 64
/** Up to this rate, of every record. */
const SAMPLE_ALL_UP_TO = 50_000
const SEND_ALL_RECORDS = 1_000
const SEND_ALL_CALLS = 8

/** Runs the producers of this process side by side and resolves when everything has been acknowledged. */
export async function produceLoad(options: ProduceLoadOptions): Promise<ProduceLoadResult> {
  const client = await connect({ url: options.address, clientId: 'bench-produce' })
  try {
    const loads = Array.from(
      { length: options.producers },
      (_, i) => new ProducerLoad(client, options, options.firstProducer + i),
    )
    await delay(Math.max(0, options.startAtMs - monotonicMs()))
    const loop = monitorEventLoopDelay({ resolution: 10 })
    loop.enable()
    await Promise.all(loads.map((load) => load.run()))
    loop.disable()
    const latency = new Histogram()
    for (const load of loads) latency.add(load.latency.toCounts())
    const byProducer = <T>(pick: (load: ProducerLoad) => T): T[] => {
      const list: T[] = []
      for (const load of loads) list[load.producer] = pick(load)
      return list
    }
    return {
      sent: loads.map((load) => load.sent),
      measuredRecords: loads.reduce((sum, load) => sum + load.measuredRecords, 0),
      measuredMs: Math.max(...loads.map((load) => load.measuredMs)),
      latency: latency.toCounts(),
      samples: {
        every: loads[0]?.sampleEvery ?? SAMPLE_EVERY,
        partitions: byProducer((load) => load.samplePartitions),
        offsets: byProducer((load) => load.sampleOffsets),
      },
      eventLoopP99Ms: loop.percentile(99) / 1e6,
    }
  } finally {
    await client.close()
  }
}

class ProducerLoad {
  readonly producer: number
  readonly latency: Histogram = new Histogram()
  readonly sampleEvery: number
  samplePartitions: Int32Array = new Int32Array(1024).fill(-1)
  sampleOffsets: Float64Array = new Float64Array(1024).fill(-1)
  sent = 0
  measuredRecords = 0
  measuredMs = 0
  readonly #options: ProduceLoadOptions
  readonly #topic: Topic<Uint8Array>
  readonly #values: Values
  readonly #client: Client
  readonly #perMs: number | undefined
  /** Records that `#produce` has been asked for: with `sendAll`, ahead of those made. */
  #planned = 0
  #acked = 0
  #failure: unknown
  #ackedAtStart = -1
  #measuredFromMs = 0
  #calls = 0
  #wakeCaller: (() => void) | undefined

  constructor(client: Client, options: ProduceLoadOptions, producer: number) {
    this.#client = client
    this.#options = options
    this.producer = producer
    this.#topic = topic(options.topic, { value: bytes })
    this.#values = new Values(options.values)
    const { recordsPerSecond } = options
    this.#perMs =
      recordsPerSecond === undefined ? undefined : recordsPerSecond / options.producers / 1000
    this.sampleEvery =
      recordsPerSecond !== undefined && recordsPerSecond <= SAMPLE_ALL_UP_TO ? 1 : SAMPLE_EVERY
  }

  async run(): Promise<void> {
    const { acks, codec, batchBytes, lingerMs, bufferBytes } = this.#options
    const producer = this.#client.producer({
      acks,
      compression: codec,
      batchBytes,
      lingerMs,
      bufferBytes,
    })
    producer.on('error', (error) => this.#fail(error))
    try {
      if (this.#perMs === undefined) await this.#closedLoop(producer)
      else await this.#openLoop(producer, this.#perMs)
      await this.#finish(producer)
    } finally {
      await producer.close()
    }
    if (this.#failure !== undefined) throw this.#failure
  }

  /** As fast as the producer takes them. */
  async #closedLoop(producer: Producer): Promise<void> {
    const perTurn = Math.max(
      1,
      Math.floor(this.#options.turnBytes / this.#options.values.payloadBytes),
    )
    for (let nowMs = monotonicMs(); !this.#isOver(nowMs); nowMs = monotonicMs()) {
      await this.#lookAtClock(producer, nowMs)
      await this.#produce(producer, this.#bounded(perTurn), nowMs, 0)
      await producer.ready()
      await nextTurn()
    }
  }

  /**
   * At a fixed rate, whatever the broker does: a record that could not be sent when it was meant to be counts its waiting as latency (no
   * coordinated omission).
   */
  async #openLoop(producer: Producer, perMs: number): Promise<void> {
    const { startAtMs } = this.#options
    for (let nowMs = monotonicMs(); !this.#isOver(nowMs); nowMs = monotonicMs()) {
      await this.#lookAtClock(producer, nowMs)
      const due = Math.floor((nowMs - startAtMs) * perMs) - this.#planned
      if (due > 0) {
        await this.#produce(
          producer,
          this.#bounded(due),
          startAtMs + this.#planned / perMs,
          1 / perMs,
        )
        await producer.ready()
      }
      await delay(1)
    }
  }

  #isOver(nowMs: number): boolean {
    const { measureUntilMs, maxRecords } = this.#options
    if (this.#failure !== undefined || nowMs >= measureUntilMs) return true
    return maxRecords !== undefined && this.#planned >= maxRecords
  }

  #bounded(count: number): number {
    const { maxRecords } = this.#options
    return maxRecords === undefined ? count : Math.min(count, maxRecords - this.#planned)
  }

  async #lookAtClock(producer: Producer, nowMs: number): Promise<void> {
    if (this.#ackedAtStart >= 0 || nowMs < this.#options.measureFromMs) return
    // Without receipts, what is under way must be waited for, here and at the end, to know what was acknowledged in between.
    if (this.#options.api === 'post') {
      await producer.flush()
      this.#acked = this.sent
    }
    this.#measuredFromMs = monotonicMs()
    this.#ackedAtStart = this.#acked
  }

  async #finish(producer: Producer): Promise<void> {
    if (this.#options.api !== 'post') {
      this.measuredRecords = this.#acked - Math.max(0, this.#ackedAtStart)
      this.measuredMs = monotonicMs() - this.#measuredFromMs
    }
    await producer.flush()
    while (this.#calls > 0) await this.#callEnded()
    if (this.#options.api === 'post') {
      this.#acked = this.sent
      this.measuredRecords = this.sent - Math.max(0, this.#ackedAtStart)
      this.measuredMs = monotonicMs() - this.#measuredFromMs
    } else {
      // A flush answers in the same turn as the last receipt, whose callbacks may come after it.
      await nextTurn()
      if (this.#acked !== this.sent && this.#failure === undefined) {
        throw new Error(`${this.sent} records were sent, ${this.#acked} receipts came`)
      }
    }
  }

  /** `count` records, meant to be sent at `fromMs` and every `stepMs` from then on. */
  async #produce(producer: Producer, count: number, fromMs: number, stepMs: number): Promise<void> {
    const { api } = this.#options
    this.#planned += count
    if (api === 'sendAll') {
      await this.#sendAll(producer, count, fromMs, stepMs)
      return
    }
    for (let i = 0; i < count; i++) {
      const sequence = this.sent++
      const meantMs = fromMs + i * stepMs
      const record = { value: this.#values.make(this.producer, sequence, meantMs) }
      if (api === 'post') {
        if (!producer.post(this.#topic, record)) await producer.ready()
      } else if (sequence % this.sampleEvery === 0) {
        this.#watch(
          producer.send(this.#topic, record),
          sequence,
          stepMs > 0 ? meantMs : monotonicMs(),
        )
      } else {
        // Shared functions: a closure per record would be the benchmark's cost, not the client's.
        void producer.send(this.#topic, record).then(this.#onReceipt, this.#onFailure)
      }
    }
  }

  readonly #onReceipt = (_receipt: Receipt): void => {
    this.#acked++
  }

  readonly #onFailure = (error: unknown): void => this.#fail(error)

  #watch(receipt: Promise<Receipt>, sequence: number, meantMs: number): void {
    receipt.then(({ partition, offset }) => {
      this.#acked++
      const nowMs = monotonicMs()
      const { measureFromMs, measureUntilMs } = this.#options
      if (meantMs >= measureFromMs && meantMs < measureUntilMs) {
        this.latency.record((nowMs - meantMs) * 1000)
      }
      this.#keep(sequence / this.sampleEvery, partition, offset)
      return undefined
    }, this.#onFailure)
  }

  #keep(at: number, partition: number, offset: number): void {
    if (at >= this.samplePartitions.length) {
      const length = Math.max(at + 1, this.samplePartitions.length * 2)
      const partitions = new Int32Array(length).fill(-1)
      const offsets = new Float64Array(length).fill(-1)
      partitions.set(this.samplePartitions)
      offsets.set(this.sampleOffsets)
      this.samplePartitions = partitions
      this.sampleOffsets = offsets
    }
    // With acks none nothing is known.
    this.samplePartitions[at] = Number.isNaN(offset) ? -1 : partition
    this.sampleOffsets[at] = Number.isNaN(offset) ? -1 : offset
  }

  async #sendAll(producer: Producer, count: number, fromMs: number, stepMs: number): Promise<void> {
    for (let done = 0; done < count;) {
      while (this.#calls >= SEND_ALL_CALLS) await this.#callEnded()
      const size = Math.min(SEND_ALL_RECORDS, count - done)
      const meantMs = stepMs > 0 ? fromMs + done * stepMs : monotonicMs()
      const call = producer.sendAll(this.#topic, this.#records(size, meantMs, stepMs))
      this.#calls++
      call
        .then((receipts) => {
          this.#acked += receipts.length
          const { measureFromMs, measureUntilMs } = this.#options
          if (meantMs >= measureFromMs && meantMs < measureUntilMs) {
            this.latency.record((monotonicMs() - meantMs) * 1000)
          }
          return undefined
        }, this.#onFailure)
        .finally(() => {
          this.#calls--
          this.#wakeCaller?.()
        })
      done += size
    }
  }

  /** Consumed record by record, so that the memory of each value may be used again. */
  *#records(count: number, fromMs: number, stepMs: number): Generator<{ value: Uint8Array }> {
    for (let i = 0; i < count; i++) {
      yield { value: this.#values.make(this.producer, this.sent++, fromMs + i * stepMs) }
    }
  }

  #callEnded(): Promise<void> {
    return new Promise((resolve) => {
      this.#wakeCaller = resolve
    })
  }

  #fail(error: unknown): void {
    this.#failure ??= error
  }
}
