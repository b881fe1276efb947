import { setTimeout as delay } from 'node:timers/promises'
import { type Acks, bytes, connect, topic } from '../src/client/index.ts'
import { monotonicMs, Values, type ValueOptions } from './values.ts'

/** Plain data: it is sent to another process. */
export interface SteadyLoadOptions {
  readonly address: string
  readonly topic: string
  readonly partitions: number
  readonly values: ValueOptions
  readonly acks: Acks
  /** From one record of a partition to its next. */
  readonly intervalMs: number
}

/** Writes one record to each partition at every tick, so that a pause in the delivery of any of them shows. Producer number: the partition. */
export class SteadyLoad {
  readonly #options: SteadyLoadOptions
  readonly #stop: AbortController = new AbortController()
  #running: Promise<number> | undefined

  constructor(options: SteadyLoadOptions) {
    this.#options = options
  }

  start(): void {
    this.#running = this.#run()
    this.#running.catch(() => undefined) // `finish` tells of it.
  }

  /** Ends it. @returns how many records each partition has got, all of them acknowledged */
  finish(): Promise<number> {
    this.#stop.abort()
    if (this.#running === undefined) throw new Error('nothing is being written')
    return this.#running
  }

  async #run(): Promise<number> {
    const { address, partitions, acks, intervalMs } = this.#options
    const to = topic(this.#options.topic, { value: bytes })
    const values = new Values(this.#options.values)
    const client = await connect({ url: address, clientId: 'bench-produce' })
    try {
      const producer = client.producer({ acks, lingerMs: 0 })
      const startMs = monotonicMs()
      let sequence = 0
      for (; !this.#stop.signal.aborted; sequence++) {
        await delay(Math.max(0, startMs + sequence * intervalMs - monotonicMs()))
        for (let partition = 0; partition < partitions; partition++) {
          const value = values.make(partition, sequence, monotonicMs())
          if (!producer.post(to, { partition, value })) await producer.ready()
        }
      }
      await producer.close()
      return sequence
    } finally {
      await client.close()
    }
  }
}
