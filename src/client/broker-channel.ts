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
  LogServiceMethods,
  TopicServiceMethods,
} from '../gen/types.ts'
import { CLUSTER_SERVICE, LOG_SERVICE, TOPIC_SERVICE } from '../wire/definitions.ts'
import { decodeErrorDetail, ERROR_TRAILER, toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { FetchMessage } from '../wire/fetch-codec.ts'
import type { ProduceEnvelope, ProduceResultMessage } from '../wire/produce-codec.ts'
import type { ConnectOptions } from './api.ts'
import { MillraceError, toMillraceError } from './errors.ts'

/** The calls that take one message and answer one. */
export type UnaryMethods = ClusterServiceMethods &
  TopicServiceMethods &
  Pick<LogServiceMethods, 'ListOffsets' | 'InitProducer'>

export type ProduceCall = ClientDuplexStream<ProduceEnvelope, readonly ProduceResultMessage[]>
export type FetchCall = ClientReadableStream<FetchMessage>

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

/** One connection to one broker. */
export class BrokerChannel {
  /** `host:port`. */
  readonly address: string
  readonly #client: Client

  constructor(address: string, tls: ConnectOptions['tls'], clientId: string | undefined) {
    this.address = address
    this.#client = new Client(address, toCredentials(tls), {
      ...OPTIONS,
      ...(clientId === undefined ? {} : { 'grpc.primary_user_agent': clientId }),
    })
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
    const { path, requestSerialize, responseDeserialize } = method(UNARY, name)
    return new Promise((resolve, reject) => {
      const abort = (): void => call.cancel()
      const call = this.#client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        new Metadata(),
        { deadline: deadlineIn(timeoutMs) },
        (error, response) => {
          signal?.removeEventListener('abort', abort)
          if (error !== null) reject(toCallError(error, this.address))
          else resolve(response as UnaryMethods[Name]['response']) // The method's own deserializer made it.
        },
      )
      if (signal?.aborted === true) abort()
      else signal?.addEventListener('abort', abort, { once: true })
    })
  }

  produce(): ProduceCall {
    const { path, requestSerialize, responseDeserialize } = method(LOG_SERVICE, 'Produce')
    return this.#client.makeBidiStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
    ) as ProduceCall // The method's own codecs make and take these.
  }

  fetch(request: FetchRequest): FetchCall {
    const { path, requestSerialize, responseDeserialize } = method(LOG_SERVICE, 'Fetch')
    return this.#client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
    ) as FetchCall // The method's own codecs make and take these.
  }

  close(): void {
    this.#client.close()
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
