import * as grpc from '@grpc/grpc-js'
import type { ErrorDetail } from '../../src/gen/types.ts'
import {
  CLUSTER_SERVICE,
  GROUP_SERVICE,
  HEALTH_SERVICE,
  LOG_SERVICE,
  QUEUE_SERVICE,
  type ServiceMethods,
  TOPIC_SERVICE,
} from '../../src/wire/definitions.ts'
import { decodeErrorDetail, ERROR_TRAILER } from '../../src/wire/error-detail.ts'

/** A failed call as a test wants to look at it: the status and the detail of the trailer. */
export class CallError extends Error {
  readonly status: grpc.status
  readonly detail: ErrorDetail | undefined

  constructor(error: grpc.ServiceError) {
    super(error.message)
    this.status = error.code
    // grpc-js brings a cancelled stream's late message as an error of Node's streams, without metadata.
    const metadata: grpc.Metadata | undefined = error.metadata
    const [trailer] = metadata?.get(ERROR_TRAILER) ?? []
    this.detail = Buffer.isBuffer(trailer) ? decodeErrorDetail(trailer) : undefined
  }

  get reason(): string {
    return this.detail?.reason ?? ''
  }
}

/** Speaks gRPC and nothing more: what a test needs to see what goes over the wire, without the client library's help. */
export class RawClient {
  readonly #client: grpc.Client
  readonly #methods: Readonly<Record<string, ServiceMethods[string]>>

  constructor(address: string, options: grpc.ChannelOptions = {}) {
    this.#client = new grpc.Client(address, grpc.credentials.createInsecure(), {
      'grpc.max_receive_message_length': -1,
      // Not the channel that another test of the same process may have open to the same port.
      'grpc.use_local_subchannel_pool': 1,
      ...options,
    })
    this.#methods = {
      ...HEALTH_SERVICE,
      ...TOPIC_SERVICE,
      ...CLUSTER_SERVICE,
      ...LOG_SERVICE,
      ...GROUP_SERVICE,
      ...QUEUE_SERVICE,
    }
  }

  #method(name: string): ServiceMethods[string] {
    const method = this.#methods[name]
    if (method === undefined) throw new Error(`no method ${name}`)
    return method
  }

  /** @throws CallError */
  call<T = Record<string, unknown>>(
    name: string,
    request: object,
    metadata: grpc.Metadata = new grpc.Metadata(),
    options: grpc.CallOptions = {},
  ): Promise<T> {
    const { path, requestSerialize, responseDeserialize } = this.#method(name)
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        metadata,
        options,
        (error, value) => (error === null ? resolve(value as T) : reject(new CallError(error))),
      )
    })
  }

  /** Sends the bytes as they are, whatever the method. @throws CallError */
  callRaw(path: string, bytes: Buffer): Promise<Buffer> {
    const same = (value: Buffer): Buffer => value
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(path, same, same, bytes, (error, value) =>
        error === null ? resolve(value ?? Buffer.alloc(0)) : reject(new CallError(error)),
      )
    })
  }

  stream(name: string, request: object): grpc.ClientReadableStream<unknown> {
    const { path, requestSerialize, responseDeserialize } = this.#method(name)
    return this.#client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
    )
  }

  duplex(name: string, raw = false): grpc.ClientDuplexStream<unknown, unknown> {
    const { path, requestSerialize, responseDeserialize } = this.#method(name)
    const serialize = raw ? (value: unknown) => value as Buffer : requestSerialize
    return this.#client.makeBidiStreamRequest(path, serialize, responseDeserialize)
  }

  close(): void {
    this.#client.close()
  }
}

/** Everything that a stream brings until it ends. @throws CallError */
export function collect<T>(stream: grpc.ClientReadableStream<unknown>): Promise<T[]> {
  return new Promise((resolve, reject) => {
    const items: T[] = []
    stream.on('data', (item: T) => items.push(item))
    stream.on('end', () => resolve(items))
    stream.on('error', (error: grpc.ServiceError) => reject(new CallError(error)))
  })
}

/** Reads a stream item by item, so that a test decides when to take the next. */
export class StreamReader<T> {
  readonly stream: grpc.ClientReadableStream<unknown> | grpc.ClientDuplexStream<unknown, unknown>
  readonly #items: T[] = []
  #waiting: (() => void) | undefined
  #end: CallError | 'end' | undefined

  constructor(
    stream: grpc.ClientReadableStream<unknown> | grpc.ClientDuplexStream<unknown, unknown>,
  ) {
    this.stream = stream
    stream.on('data', (item: T) => {
      this.#items.push(item)
      this.#waiting?.()
    })
    stream.on('end', () => this.#finish('end'))
    stream.on('error', (error: grpc.ServiceError) => this.#finish(new CallError(error)))
  }

  #finish(how: CallError | 'end'): void {
    // An error comes with an end beside it.
    if (this.#end === undefined || how !== 'end') this.#end = how
    this.#waiting?.()
  }

  /** Items that have come and were not taken. */
  get buffered(): number {
    return this.#items.length
  }

  /** @throws CallError when the stream has failed, Error when it has ended */
  async next(): Promise<T> {
    for (;;) {
      const item = this.#items.shift()
      if (item !== undefined) return item
      if (this.#end === 'end') throw new Error('the stream has ended')
      if (this.#end !== undefined) throw this.#end
      await new Promise<void>((resolve) => {
        this.#waiting = resolve
      })
      this.#waiting = undefined
    }
  }
}
