import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { SendCoordinator } from '../../src/coordination/delayed/send-coordinator.ts'
import type { SendOptions } from '../../src/coordination/delayed/send-coordinator.ts'
import { LocalPeer } from '../../src/coordination/local-peer.ts'
import type { SendRecordRequest, SendResult } from '../../src/coordination/queue/queue-types.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import { Topics } from '../../src/topic/topics.ts'
import { batchesOf } from './batches.ts'
import { FakeClock, settle } from './fake-clock.ts'
import { FaultyStore } from './faulty-store.ts'

/** A record as it lies in its topic. */
export interface Delivered {
  readonly offset: number
  readonly key: string | undefined
  readonly value: string | undefined
  readonly timestampMs: number
  readonly headers: Readonly<Record<string, string>>
}

export interface SendBenchOptions {
  readonly clock?: FakeClock
  readonly seed?: number
  readonly durableDelayMs?: number
  readonly options?: Partial<SendOptions>
}

/** Topics in memory with what sends to them, on a fake clock. */
export class SendBench {
  readonly clock: FakeClock
  readonly lines: { readonly level: string; readonly message: string; readonly details: object }[] =
    []
  /** Ranges that the next start finds damaged. */
  readonly damagedAtStart: Map<string, { start: number; end: number }> = new Map()
  store: FaultyStore
  readonly #random: SeededRandom
  readonly #options: Partial<SendOptions>
  #topics: Topics | undefined
  #sends: SendCoordinator | undefined

  constructor(setup: SendBenchOptions = {}) {
    this.clock = setup.clock ?? new FakeClock()
    this.#random = new SeededRandom(setup.seed ?? 1)
    this.#options = setup.options ?? {}
    const durableDelayMs = setup.durableDelayMs ?? 0
    this.store = new FaultyStore(
      new MemoryStore({ clock: this.clock, random: this.#random, durableDelayMs }),
    )
  }

  static async started(
    config: Readonly<Record<string, string>> = {},
    partitions = 2,
    setup: SendBenchOptions = {},
  ): Promise<SendBench> {
    const bench = new SendBench(setup)
    await bench.start()
    await bench.finish(bench.topics.create({ name: 'orders', partitions, config }))
    return bench
  }

  get topics(): Topics {
    if (this.#topics === undefined) throw new Error('the bench has not been started')
    return this.#topics
  }

  get sends(): SendCoordinator {
    if (this.#sends === undefined) throw new Error('the bench has not been started')
    return this.#sends
  }

  async start(): Promise<void> {
    const { clock, store } = this
    const random = this.#random
    const note =
      (level: string) =>
      (details: object, message: string): void => {
        this.lines.push({ level, message, details })
      }
    const logger = { info: note('info'), warn: note('warn'), error: note('error') }
    const topics = await this.finish(Topics.open({ store, clock, random, logger }))
    this.#topics = topics
    const peer = new LocalPeer({ topics, clock })
    const options = this.#options
    this.#sends = await SendCoordinator.open({ topics, peer, clock, random, logger, options })
    await settle()
  }

  /** kill -9, and a start on what was durable. What the old process had under way is lost to it. */
  async restart(): Promise<void> {
    const old = this.#sends
    const store = new FaultyStore(this.store.inner.restart())
    // The dead process must not go on. What it still waits for may never come.
    for (const closing of [this.store.close(), old?.close()]) closing?.catch(() => undefined)
    this.store = store
    for (const [name, range] of this.damagedAtStart) store.damaged.set(name, range)
    this.damagedAtStart.clear()
    await this.start()
  }

  /** Waits for `promise`, letting time pass in small steps where it is time that it waits for. */
  async finish<T>(promise: Promise<T>): Promise<T> {
    const state = { isDone: false }
    const done = promise.finally(() => {
      state.isDone = true
    })
    done.catch(() => undefined)
    await settle()
    for (let steps = 0; !state.isDone && steps < 10_000; steps++) await this.clock.advance(1)
    return done
  }

  /** One record; fails when it was refused. */
  async send(record: Partial<SendRecordRequest> = {}, topic = 'orders'): Promise<Accepted> {
    const [result] = await this.finish(this.sends.send(topic, [aSend(record)]))
    if (result === undefined) throw new Error('no answer')
    if (result.error !== undefined) throw result.error
    return result
  }

  /** The code of the error that one record is refused with. */
  async refusal(record: Partial<SendRecordRequest>, topic = 'orders'): Promise<string> {
    const [result] = await this.finish(this.sends.send(topic, [aSend(record)]))
    return result?.error?.code ?? 'none'
  }

  async delivered(partition = 0, topic = 'orders'): Promise<readonly Delivered[]> {
    const found: Delivered[] = []
    const log = this.topics.getPartition(topic, partition)
    const cursor = new RecordCursor()
    for (let from = log.logStartOffset; from < log.highWatermark;) {
      const { chunks, nextOffset } = await log.read(from, 1e6)
      for (const { bytes } of batchesOf(chunks)) {
        cursor.reset(bytes, 0)
        while (cursor.next()) found.push(readDelivered(cursor))
      }
      from = toOffset(nextOffset)
    }
    return found
  }

  async close(): Promise<void> {
    await this.finish(this.sends.close())
    await this.finish(this.topics.close())
  }
}

export type Accepted = Extract<SendResult, { error: undefined }>

export function aSend(record: Partial<SendRecordRequest> = {}): SendRecordRequest {
  return {
    key: undefined,
    value: Buffer.from('v'),
    headers: [],
    timestampMs: undefined,
    partition: undefined,
    dedupeId: '',
    deliverAtMs: undefined,
    delayMs: undefined,
    sendId: new Uint8Array(0),
    ...record,
  }
}

function readDelivered(cursor: RecordCursor): Delivered {
  const { bytes, keyStart, keyEnd, valueStart, valueEnd } = cursor
  const textOf = (start: number, end: number): string | undefined =>
    start < 0 ? undefined : Buffer.from(bytes.subarray(start, end)).toString()
  const headers: Record<string, string> = {}
  for (const { key, value } of cursor.readHeaders()) {
    headers[key] = Buffer.from(value ?? []).toString()
  }
  return {
    offset: cursor.offset,
    key: textOf(keyStart, keyEnd),
    value: textOf(valueStart, valueEnd),
    timestampMs: cursor.timestampMs,
    headers,
  }
}
