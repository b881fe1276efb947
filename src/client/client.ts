import { systemClock } from '../common/clock.ts'
import { systemRandom } from '../common/random.ts'
import type {
  Admin,
  Client,
  ConnectOptions,
  KeyOf,
  Producer,
  ProducerOptions,
  ReadOptions,
  RecordStream,
  ValueOf,
} from './api.ts'
import { LogAdmin } from './admin.ts'
import type { Topic } from './codecs.ts'
import { Connection, parseTarget } from './connection.ts'
import { type ConsumerSource, GroupConsumer } from './consumer.ts'
import type { Consumer, ConsumerOptions } from './consumer-api.ts'
import { MillraceError } from './errors.ts'
import { LogProducer } from './producer.ts'
import { LogReader } from './reader.ts'
import { Receiver } from './receive.ts'
import { type ClosableWorker, createBatchWorker, createWorker } from './worker.ts'
import type {
  BatchHandler,
  BatchWorkerOptions,
  Delivery,
  Handler,
  ReceiveOptions,
  Worker,
  WorkerOptions,
} from './worker-api.ts'

const DEFAULT_TARGET = 'localhost:9292'
const CONNECT_TIMEOUT_MS = 10_000
const CLOSE_TIMEOUT_MS = 30_000
/** Of the time that closing may take, how much handlers of workers have to finish. The rest is for giving back what they have not. */
const WORKERS_SHARE = 0.75

interface Closable {
  close(): Promise<void>
  abandon(reason: MillraceError): void
}

class LogClient implements Client {
  readonly admin: Admin
  readonly #connection: Connection
  readonly #producers: Set<LogProducer> = new Set()
  readonly #readers: Set<{ close(): Promise<void> }> = new Set()
  readonly #consumers: Set<Closable> = new Set()
  readonly #workers: Set<ClosableWorker> = new Set()
  #closing: Promise<void> | undefined

  constructor(connection: Connection) {
    this.#connection = connection
    this.admin = new LogAdmin(connection)
  }

  producer(options: ProducerOptions = {}): Producer {
    this.#checkOpen()
    const producer = new LogProducer(this.#connection, options, (closed) => {
      this.#producers.delete(closed)
    })
    this.#producers.add(producer)
    return producer
  }

  read<V, K>(from: Topic<V, K>, options: ReadOptions = {}): RecordStream<V, K> {
    this.#checkOpen()
    const reader = new LogReader(this.#connection, from, options, (closed) => {
      this.#readers.delete(closed)
    })
    this.#readers.add(reader)
    return reader
  }

  consumer<V, K>(from: Topic<V, K>, options: ConsumerOptions): Consumer<V, K>
  consumer<T extends Topic<unknown, unknown>>(
    from: readonly T[],
    options: ConsumerOptions,
  ): Consumer<ValueOf<T>, KeyOf<T>>
  consumer(from: RegExp, options: ConsumerOptions): Consumer<Uint8Array, Uint8Array>
  consumer<V, K>(from: ConsumerSource<V, K>, options: ConsumerOptions): Consumer<V, K> {
    this.#checkOpen()
    const consumer = new GroupConsumer<V, K>(this.#connection, from, options, {
      // Not one of the client's own, which are closed first: a consumer that ends may have dead letters to write.
      createProducer: () => new LogProducer(this.#connection, {}, () => undefined),
      onClosed: (closed) => {
        this.#consumers.delete(closed)
      },
    })
    this.#consumers.add(consumer)
    return consumer
  }

  worker<V, R = void, K = string>(
    from: Topic<V, K>,
    options: WorkerOptions,
    handler: Handler<V, R, K> | URL,
  ): Worker<V, R, K> {
    this.#checkOpen()
    const worker = createWorker(this.#connection, from, options, handler, (closed) => {
      this.#workers.delete(closed)
    })
    this.#workers.add(worker)
    return worker
  }

  batchWorker<V, K = string>(
    from: Topic<V, K>,
    options: BatchWorkerOptions,
    handler: BatchHandler<V, K>,
  ): Worker<V, void, K> {
    this.#checkOpen()
    const worker = createBatchWorker(this.#connection, from, options, handler, (closed) => {
      this.#workers.delete(closed)
    })
    this.#workers.add(worker)
    return worker
  }

  receive<V, K = string>(
    from: Topic<V, K>,
    options: ReceiveOptions,
  ): AsyncIterableIterator<Delivery<V, K>, void> {
    this.#checkOpen()
    return new Receiver(this.#connection, from, options).iterate()
  }

  close(options: { readonly timeoutMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(options.timeoutMs ?? CLOSE_TIMEOUT_MS)
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(timeoutMs: number): Promise<void> {
    const cancel = this.#connection.clock.schedule(timeoutMs, () => {
      const error = new MillraceError(
        'CLOSED',
        `the client was closed, and the broker did not answer within ${timeoutMs} ms`,
        { timeoutMs },
      )
      for (const consumer of this.#consumers) consumer.abandon(error)
      for (const worker of this.#workers) worker.abandon(error)
      for (const producer of this.#producers) producer.abandon(error)
    })
    try {
      const closing = [...this.#readers].map((reader) => reader.close())
      // Their handlers may still be sending by one of the producers.
      const results = await Promise.allSettled([
        ...[...this.#consumers].map((one) => one.close()),
        ...[...this.#workers].map((one) => one.close({ timeoutMs: timeoutMs * WORKERS_SHARE })),
      ])
      const producers = [...this.#producers].map((producer) => producer.close())
      results.push(...(await Promise.allSettled([...closing, ...producers])))
      for (const result of results) if (result.status === 'rejected') throw result.reason
    } finally {
      cancel()
      this.#connection.close()
    }
  }

  #checkOpen(): void {
    if (this.#closing !== undefined) {
      throw new MillraceError('CLOSED', 'the client has been closed')
    }
  }
}

/**
 * Connects to a broker: `host:port` or `millrace://host:port`; by default what MILLRACE_SERVER says, else localhost:9292. Goes on trying for
 * `timeoutMs`, so that a program may be started together with its broker.
 * @throws MillraceError UNREACHABLE when nothing answers by then, INVALID_REQUEST when the target is none
 */
export async function connect(target: string | ConnectOptions = {}): Promise<Client> {
  const options: ConnectOptions = typeof target === 'string' ? { url: target } : target
  const url = options.url ?? (process.env['MILLRACE_SERVER'] || DEFAULT_TARGET)
  const targets = typeof url === 'string' ? url.split(',') : url
  const connection = new Connection({
    targets: targets.map((text) => parseTarget(text)),
    tls: options.tls,
    clientId: options.clientId,
    clock: options.clock ?? systemClock,
    random: options.random ?? systemRandom,
    logger: options.logger,
  })
  try {
    await connection.open(options.timeoutMs ?? CONNECT_TIMEOUT_MS)
  } catch (error) {
    connection.close()
    throw error
  }
  return new LogClient(connection)
}
