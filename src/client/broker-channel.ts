import type { EventEmitter } from 'node:events'
import {
  type ChannelOptions,
  Client,
  type ClientDuplexStream,
  type ClientReadableStream,
  credentials,
  type ChannelCredentials,
  Metadata,
  type MethodDefinition,
  type ServiceError,
  status,
} from '@grpc/grpc-js'
import { MIB } from '../common/units.ts'
import { MINUTE_MS, SECOND_MS } from '../common/units.ts'
import type {
  ClusterServiceMethods,
  FetchRequest,
  GroupServiceMethods,
  JoinRequest,
  JoinResponse,
  LogServiceMethods,
  QueueServiceMethods,
  ReceiveRequest,
  TopicServiceMethods,
} from '../gen/types.ts'
import {
  CLUSTER_SERVICE,
  GROUP_SERVICE,
  LOG_SERVICE,
  QUEUE_SERVICE,
  TOPIC_SERVICE,
} from '../wire/definitions.ts'
import { decodeErrorDetail, ERROR_TRAILER, toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { FetchMessage } from '../wire/fetch-codec.ts'
import type { ProduceEnvelope, ProduceResultMessage } from '../wire/produce-codec.ts'
import type {
  ReceiveResponseMessage,
  WorkRequestMessage,
  WorkResponseMessage,
} from '../wire/work-codec.ts'
import type { ConnectOptions } from './api.ts'
import { MillraceError, toMillraceError } from './errors.ts'

/** The calls that take one message and answer one. */
export type UnaryMethods = ClusterServiceMethods &
  TopicServiceMethods &
  Omit<GroupServiceMethods, 'Join'> &
  Omit<QueueServiceMethods, 'Work' | 'Receive'> & {
    Receive: { request: ReceiveRequest; response: ReceiveResponseMessage }
  } & Pick<LogServiceMethods, 'ListOffsets' | 'InitProducer'>

export type ProduceCall = ClientDuplexStream<ProduceEnvelope, readonly ProduceResultMessage[]>
export type FetchCall = ClientReadableStream<FetchMessage>
/** Exactly one field of a request is set. */
export type JoinCall = ClientDuplexStream<Partial<JoinRequest>, JoinResponse>

export type WorkCall = ClientDuplexStream<WorkRequestMessage, WorkResponseMessage>

/** A stream that has to come back when it breaks: a member's, or a worker's. */
export interface CallStream<Call> {
  readonly call: Call
  /** `host:port` of the other end. */
  readonly address: string
  /** It has gone silent, so its connection is not to be trusted: later streams open another. Other sessions on it are not touched. */
  discard(): void
  /** Whether anything comes back over its connection, to tell a slow broker from a dead wire. Never rejects. */
  isAnswering(): Promise<boolean>
}

/** A member's stream. */
export type SessionStream = CallStream<JoinCall>
/** A worker's stream. */
export type WorkStream = CallStream<WorkCall>

/**
 * The server takes 1 000 streams per connection, and grpc-js queues what is above without a word: so a program with more readers or members
 * opens another connection in time. Half are left to unary calls, which all go over the first.
 */
const MOST_CALLS_PER_CONNECTION = 500
/**
 * Sessions have connections of their own: a heartbeat must not wait behind megabytes of records. Fewer on each, because all that share one have
 * to come back when it breaks.
 */
const MOST_SESSIONS_PER_CONNECTION = 250
/** Workers too have connections of their own: records that a reader does not take may not hold up theirs, nor the answers to what they have done. */
const MOST_WORKERS_PER_CONNECTION = 250

/** With less, reading crawls as soon as there is a network in between: 4 MB/s at 5 ms each way (DEPENDENCIES §3.2). */
const WINDOW_BYTES: number = 4 * MIB
const MAX_MESSAGE_BYTES: number = 16 * MIB

const OPTIONS: ChannelOptions = {
  'grpc-node.flow_control_window': WINDOW_BYTES,
  'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
  'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
  'grpc.keepalive_time_ms': 30 * SECOND_MS,
  'grpc.keepalive_timeout_ms': 10 * SECOND_MS,
  'grpc.initial_reconnect_backoff_ms': 50,
  'grpc.max_reconnect_backoff_ms': SECOND_MS,
  'grpc.client_idle_timeout_ms': 30 * MINUTE_MS,
  // Two clients of one process are two: closing one, or a slow reader of one, does not touch the other.
  'grpc.use_local_subchannel_pool': 1,
  // Repeating is our business: only we know what is harmless.
  'grpc.enable_retries': 0,
}

const UNARY: Readonly<Record<string, MethodDefinition<unknown, unknown> | undefined>> = {
  ...CLUSTER_SERVICE,
  ...TOPIC_SERVICE,
  ...GROUP_SERVICE,
  ...QUEUE_SERVICE,
  ListOffsets: LOG_SERVICE['ListOffsets'],
  InitProducer: LOG_SERVICE['InitProducer'],
}

function method(
  methods: Readonly<Record<string, MethodDefinition<unknown, unknown> | undefined>>,
  name: string,
): MethodDefinition<unknown, unknown> {
  const found = methods[name]
  if (found === undefined) throw new MillraceError('INTERNAL_ERROR', `proto/ has no call ${name}`)
  return found
}

/** How long a call may take that asks whether a connection still works. */
const PROBE_TIMEOUT_MS: number = 2 * SECOND_MS

/** What all calls of grpc-js are. */
type AnyCall = EventEmitter & { cancel(): void }

interface PooledClient {
  readonly client: Client
  /** Calls that have not ended. */
  readonly calls: Set<AnyCall>
}

/** Connections to one address, a further one for each so many streams. The first stays, the others go with their last call. */
class StreamPool {
  readonly #connect: () => Client
  readonly #mostStreams: number
  readonly #clients: PooledClient[] = []
  readonly #discarded: Set<PooledClient> = new Set()

  constructor(connect: () => Client, mostStreams: number) {
    this.#connect = connect
    this.#mostStreams = mostStreams
  }

  /** The connection for calls that take one message and answer one. */
  first(): PooledClient {
    return this.#clients[0] ?? this.#add()
  }

  /** A connection with room for one stream more. */
  take(): PooledClient {
    return this.#clients.find(({ calls }) => calls.size < this.#mostStreams) ?? this.#add()
  }

  /** Notes that `call` goes over `pooled` until it ends. */
  note(pooled: PooledClient, call: AnyCall): void {
    pooled.calls.add(call)
    // grpc-js tells the status of every call once, after its error or its end.
    call.once('status', () => {
      pooled.calls.delete(call)
      if (pooled.calls.size > 0 || pooled === this.#clients[0]) return
      const at = this.#clients.indexOf(pooled)
      if (at >= 0) this.#clients.splice(at, 1)
      this.#discarded.delete(pooled)
      pooled.client.close()
    })
  }

  /** Nothing new goes over it. */
  discard(pooled: PooledClient): void {
    const at = this.#clients.indexOf(pooled)
    if (at < 0) return
    this.#clients.splice(at, 1)
    if (pooled.calls.size === 0) pooled.client.close()
    else this.#discarded.add(pooled)
  }

  /** Gives up all connections, and what goes over them: to its users that is a break. */
  renew(): void {
    for (const pooled of this.#clients.splice(0)) {
      if (pooled.calls.size === 0) pooled.client.close()
      else this.#discarded.add(pooled)
      for (const call of pooled.calls) call.cancel()
    }
  }

  close(): void {
    for (const { client } of this.#clients) client.close()
    for (const { client } of this.#discarded) client.close()
  }

  #add(): PooledClient {
    const pooled: PooledClient = { client: this.#connect(), calls: new Set() }
    this.#clients.push(pooled)
    return pooled
  }
}

/** What is open to one broker: one connection, or more when there are many streams. */
export class BrokerChannel {
  /** `host:port`. */
  readonly address: string
  readonly #calls: StreamPool
  readonly #sessions: StreamPool
  readonly #workers: StreamPool
  #isProbing = false

  constructor(address: string, tls: ConnectOptions['tls'], clientId: string | undefined) {
    this.address = address
    const connect = (): Client =>
      new Client(address, toCredentials(tls), {
        ...OPTIONS,
        ...(clientId === undefined ? {} : { 'grpc.primary_user_agent': clientId }),
      })
    this.#calls = new StreamPool(connect, MOST_CALLS_PER_CONNECTION)
    this.#sessions = new StreamPool(connect, MOST_SESSIONS_PER_CONNECTION)
    this.#workers = new StreamPool(connect, MOST_WORKERS_PER_CONNECTION)
  }

  /**
   * @throws MillraceError (as rejection): what the broker answered; REQUEST_TIMEOUT after `timeoutMs`; UNREACHABLE
   */
  call<Name extends keyof UnaryMethods>(
    name: Name,
    request: UnaryMethods[Name]['request'],
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<UnaryMethods[Name]['response']> {
    return this.#callOver(this.#calls, this.#calls.first(), name, request, timeoutMs, signal)
  }

  #callOver<Name extends keyof UnaryMethods>(
    pool: StreamPool,
    pooled: PooledClient,
    name: Name,
    request: UnaryMethods[Name]['request'],
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<UnaryMethods[Name]['response']> {
    const { path, requestSerialize, responseDeserialize } = method(UNARY, name)
    return new Promise((resolve, reject) => {
      const abort = (): void => call.cancel()
      const call = pooled.client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        new Metadata(),
        { deadline: deadlineIn(timeoutMs) },
        (error, response) => {
          signal?.removeEventListener('abort', abort)
          if (error !== null) {
            const failure = toCallError(error, this.address)
            if (failure.code === 'REQUEST_TIMEOUT') this.#probe()
            reject(failure)
          } else resolve(response as UnaryMethods[Name]['response']) // The method's own deserializer made it.
        },
      )
      pool.note(pooled, call)
      if (signal?.aborted === true) abort()
      else signal?.addEventListener('abort', abort, { once: true })
    })
  }

  produce(): ProduceCall {
    const { path, requestSerialize, responseDeserialize } = method(LOG_SERVICE, 'Produce')
    const pooled = this.#calls.take()
    const call = pooled.client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize)
    this.#calls.note(pooled, call)
    return call as ProduceCall // The method's own codecs make and take these.
  }

  fetch(request: FetchRequest): FetchCall {
    const { path, requestSerialize, responseDeserialize } = method(LOG_SERVICE, 'Fetch')
    const pooled = this.#calls.take()
    const call = pooled.client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
    )
    this.#calls.note(pooled, call)
    return call as FetchCall // The method's own codecs make and take these.
  }

  /** A group member's session. Its first message has to be `join`. */
  join(): SessionStream {
    const stream = this.#openStream(this.#sessions, method(GROUP_SERVICE, 'Join'))
    return stream as CallStream<unknown> as SessionStream // The method's own codecs make and take its messages.
  }

  /** A worker's session. Its first message has to be `start`. */
  work(): WorkStream {
    const stream = this.#openStream(this.#workers, method(QUEUE_SERVICE, 'Work'))
    return stream as CallStream<unknown> as WorkStream // The method's own codecs make and take its messages.
  }

  #openStream(
    pool: StreamPool,
    { path, requestSerialize, responseDeserialize }: MethodDefinition<unknown, unknown>,
  ): CallStream<ClientDuplexStream<unknown, unknown>> {
    const pooled = pool.take()
    const call = pooled.client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize)
    pool.note(pooled, call)
    call.once('error', () => this.#probe())
    return {
      call,
      address: this.address,
      discard: () => {
        pool.discard(pooled)
        this.#probe()
      },
      isAnswering: () => this.#isAnswering(pool, pooled),
    }
  }

  /**
   * A session's connection has broken or gone silent, or a call has not been answered. If that of everything else is silent, it is given up: a reader that waits at the end of its
   * log cannot know silence from peace, and HTTP/2's pings take 40 s to find it out.
   */
  #probe(): void {
    if (this.#isProbing) return
    this.#isProbing = true
    const probe = async (): Promise<void> => {
      const isAnswering = await this.#isAnswering(this.#calls, this.#calls.first())
      this.#isProbing = false
      if (!isAnswering) this.#calls.renew()
    }
    void probe() // It never rejects.
  }

  /** Any answer at all will do, an error too. */
  async #isAnswering(pool: StreamPool, pooled: PooledClient): Promise<boolean> {
    try {
      const request = { topics: [], allTopics: false, groups: [] }
      await this.#callOver(pool, pooled, 'Metadata', request, PROBE_TIMEOUT_MS)
      return true
    } catch (error) {
      return toMillraceError(error).code !== 'REQUEST_TIMEOUT'
    }
  }

  close(): void {
    this.#calls.close()
    this.#sessions.close()
    this.#workers.close()
  }
}

function toCredentials(tls: ConnectOptions['tls']): ChannelCredentials {
  if (tls === undefined) return credentials.createInsecure()
  if (tls === true) return credentials.createSsl()
  const pem = (text: string | undefined): Buffer | null =>
    text === undefined ? null : Buffer.from(text)
  return credentials.createSsl(pem(tls.ca), pem(tls.key), pem(tls.cert))
}

/** grpc-js takes deadlines as wall-clock times, which it compares with Date: so no Clock of ours here. */
function deadlineIn(timeoutMs: number): Date {
  return new Date(new Date().getTime() + timeoutMs)
}

/**
 * The error of a call as ours: from the trailer when the broker has written one, else from the status. A status without our trailer comes
 * from the transport, and then what was under way is unknown.
 */
export function toCallError(error: Error, address: string): MillraceError {
  const service = error as Partial<ServiceError> // grpc-js makes these; anything else has no metadata and no number.
  const trailer = service.metadata?.get(ERROR_TRAILER)[0]
  if (Buffer.isBuffer(trailer)) {
    try {
      return toMillraceError(toBrokerErrorFromDetail(decodeErrorDetail(trailer)))
    } catch {
      // A trailer that cannot be read says less than the status: fall through to it.
    }
  }
  const why = service.details ?? error.message
  const details = { address }
  if (service.code === status.DEADLINE_EXCEEDED) {
    return new MillraceError('REQUEST_TIMEOUT', `${address} did not answer in time`, details, error)
  }
  if (service.code === status.UNIMPLEMENTED) {
    return new MillraceError(
      'UNSUPPORTED_FEATURE',
      `${address} does not know this call: ${why}`,
      details,
      error,
    )
  }
  if (service.code === status.RESOURCE_EXHAUSTED) {
    return new MillraceError('QUOTA_EXCEEDED', `${address}: ${why}`, details, error)
  }
  if (service.code === status.UNAUTHENTICATED || service.code === status.PERMISSION_DENIED) {
    const code = service.code === status.UNAUTHENTICATED ? 'UNAUTHENTICATED' : 'PERMISSION_DENIED'
    return new MillraceError(code, `${address}: ${why}`, details, error)
  }
  return new MillraceError(
    'UNREACHABLE',
    `the connection to ${address} broke: ${why}`,
    details,
    error,
  )
}
