import {
  type sendUnaryData,
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js'
import { BrokerError } from '../../src/common/errors.ts'
import type {
  MetadataRequest,
  QueueServiceMethods,
  SendRequest,
  SendResponse,
  SendResult,
} from '../../src/gen/types.ts'
import { detailToStatus } from '../../src/grpc/status.ts'
import { CLUSTER_SERVICE, QUEUE_SERVICE } from '../../src/wire/definitions.ts'
import { toErrorDetail } from '../../src/wire/error-detail.ts'

type Unary = Exclude<keyof QueueServiceMethods, 'Work' | 'Receive'>
type Handlers = {
  [Name in Unary]?: (
    request: QueueServiceMethods[Name]['request'],
  ) =>
    | QueueServiceMethods[Name]['response']
    | BrokerError
    | Promise<QueueServiceMethods[Name]['response'] | BrokerError>
}

/** The broker has gone away in the midst of the call: no trailer of ours. */
export class BrokenCall extends Error {}

/** A broker that knows topics by name and answers calls of QueueService as the test says. Over real gRPC, without a log. */
export class FakeQueueBroker implements AsyncDisposable {
  readonly topics: Map<string, { partitions: number; maxBatchBytes: number }> = new Map()
  /** What a call is answered; a BrokerError is its failure. A {@link BrokenCall} that is thrown breaks it off. */
  handlers: Handlers = {}
  readonly calls: { readonly name: Unary; readonly request: object }[] = []
  url = ''
  #server: Server | undefined
  #port = 0

  static async start(): Promise<FakeQueueBroker> {
    const broker = new FakeQueueBroker()
    await broker.listen()
    return broker
  }

  /** The requests of calls to one method, in the order of their arrival. */
  requests<Name extends Unary>(name: Name): QueueServiceMethods[Name]['request'][] {
    return this.calls
      .filter((call) => call.name === name)
      .map((call) => call.request as QueueServiceMethods[Name]['request']) // Noted with its name.
  }

  /** Cuts every connection and closes the port. */
  stop(): void {
    this.#server?.forceShutdown()
    this.#server = undefined
  }

  /** Opens the port, the same as before if there was one. */
  async listen(): Promise<void> {
    const server = new Server()
    const queues: UntypedServiceImplementation = {}
    for (const name of Object.keys(QUEUE_SERVICE)) {
      queues[name] = (call: ServerUnaryCall<object, object>, done: sendUnaryData<object>) => {
        void this.#answer(name as Unary, call.request, done) // Work and Receive are not called.
      }
    }
    server.addService(QUEUE_SERVICE, queues)
    server.addService(CLUSTER_SERVICE, {
      Metadata: (call: ServerUnaryCall<MetadataRequest, object>, done: sendUnaryData<object>) =>
        done(null, this.#metadata(call.request)),
      DescribeBroker: () => undefined,
    })
    this.#port = await new Promise<number>((resolve, reject) => {
      server.bindAsync(
        `127.0.0.1:${this.#port}`,
        ServerCredentials.createInsecure(),
        (error, port) => (error === null ? resolve(port) : reject(error)),
      )
    })
    this.#server = server
    this.url = `127.0.0.1:${this.#port}`
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.stop()
    return Promise.resolve()
  }

  async #answer(name: Unary, request: object, done: sendUnaryData<object>): Promise<void> {
    this.calls.push({ name, request })
    try {
      // Each handler takes the requests of its name.
      const handle = this.handlers[name] as ((request: object) => object) | undefined
      const missing = new BrokerError('UNSUPPORTED_FEATURE', `${name} is not part of this test`)
      const answer = await Promise.resolve(handle?.(request) ?? missing)
      if (answer instanceof BrokerError) {
        const { code, message, details } = answer
        done(detailToStatus(toErrorDetail(code, message, details)))
      } else done(null, answer)
    } catch (error) {
      const isBroken = error instanceof BrokenCall
      done({ code: isBroken ? status.UNAVAILABLE : status.INTERNAL, details: String(error) })
    }
  }

  #metadata(request: MetadataRequest): object {
    return {
      clusterId: 'fake',
      mapVersion: 1,
      brokers: [{ brokerId: 0, host: '127.0.0.1', port: this.#port }],
      groups: request.groups.map((group) => ({ group, coordinator: 0, error: '' })),
      topics: request.topics.map((topic) => {
        const { partitions = 0, maxBatchBytes = 0 } = this.topics.get(topic) ?? {}
        return {
          topic,
          topicId: topic,
          partitions: Array.from({ length: partitions }, (_, partition) => ({
            partition,
            leader: 0,
            leaderEpoch: 1,
          })),
          error: this.topics.has(topic) ? '' : 'UNKNOWN_TOPIC',
          errorMessage: this.topics.has(topic) ? '' : `there is no topic ${topic}`,
          nearest: [],
          maxBatchBytes,
        }
      }),
    }
  }
}

/** A record as the model has taken it. */
export interface TakenRecord {
  readonly value: string
  readonly result: SendResult
  readonly request: SendRequest['records'][number]
}

/** What a broker makes of Send: one copy for each send id and dedupe id. Partition 0 unless the record names one. */
export class SendsModel {
  readonly taken: TakenRecord[] = []
  readonly #bySendId: Map<string, SendResult> = new Map()
  readonly #byDedupeId: Map<string, SendResult> = new Map()
  readonly #ends: Map<number, number> = new Map()

  send(request: SendRequest, refuse: (value: string) => BrokerError | undefined): SendResponse {
    return { results: request.records.map((record) => this.#take(record, refuse)) }
  }

  values(): string[] {
    return this.taken.map(({ value }) => value)
  }

  #take(
    record: SendRequest['records'][number],
    refuse: (value: string) => BrokerError | undefined,
  ): SendResult {
    const value = record.record?.value?.toString() ?? ''
    const sendId = record.sendId.toString('hex')
    const known = this.#bySendId.get(sendId)
    if (known !== undefined) return known
    const first = record.dedupeId === '' ? undefined : this.#byDedupeId.get(record.dedupeId)
    if (first !== undefined) return { ...first, duplicate: true }
    const error = refuse(value)
    const partition = record.partition ?? 0
    const result: SendResult = {
      partition,
      delayId: '',
      deliverAtMs: 0,
      duplicate: false,
      timestampMs: 1000 + this.taken.length,
      error: null,
    }
    if (error !== undefined) {
      return { ...result, error: toErrorDetail(error.code, error.message, error.details) }
    }
    const { delayMs, deliverAtMs } = record
    if (delayMs === undefined && deliverAtMs === undefined) {
      const offset = this.#ends.get(partition) ?? 0
      this.#ends.set(partition, offset + 1)
      result.offset = offset
    } else {
      result.delayId = `0.${this.taken.length}.${sendId}`
      result.deliverAtMs = deliverAtMs ?? 1_000_000 + (delayMs ?? 0)
    }
    this.taken.push({ value, result, request: record })
    this.#bySendId.set(sendId, result)
    if (record.dedupeId !== '') this.#byDedupeId.set(record.dedupeId, result)
    return result
  }
}
