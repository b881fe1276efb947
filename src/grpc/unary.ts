import type { sendUnaryData, ServerUnaryCall } from '@grpc/grpc-js'
import { BrokerError, type ErrorCode } from '../common/errors.ts'
import { SECOND_MS } from '../common/units.ts'
import type { ServiceMethods } from '../wire/definitions.ts'
import { checkHeaders, ENVELOPE_BYTES, type ServiceEnvironment } from './environment.ts'

/** Longest a unary call may take, whatever deadline its caller sets or leaves out (CONTRACT §5). */
export const UNARY_TIMEOUT_MS: number = 30 * SECOND_MS

/** An answer: fields left out have their proto3 default. */
export type Reply<T> = { readonly [K in keyof T]?: T[K] | undefined }

/** One function per unary method of a service, typed by what gen/types.ts says of it. */
export type UnaryHandlers<M> = {
  readonly [K in keyof M]: M[K] extends { request: infer Request; response: infer Response }
    ? (request: Request) => Promise<Reply<Response>> | Reply<Response>
    : never
}

export type UnaryCall = ServerUnaryCall<Buffer, unknown>

export type UnaryImplementation = (call: UnaryCall, callback: sendUnaryData<unknown>) => void

/**
 * The definition that the server registers: requests arrive as bytes, and are read by {@link implementUnary}, because grpc-js answers a
 * deserializer's failure with an error that is not ours.
 */
export function takeRawRequests(methods: ServiceMethods): ServiceMethods {
  return Object.fromEntries(
    Object.entries(methods).map(([name, method]) => [
      name,
      { ...method, requestDeserialize: (bytes: Buffer) => bytes },
    ]),
  )
}

export interface UnaryOptions {
  /** REQUEST_TIMEOUT unless told otherwise. */
  readonly timeoutCode?: ErrorCode
  /** {@link UNARY_TIMEOUT_MS} unless told otherwise. */
  readonly timeoutMs?: number
  /** The call ends work that is in hand: a broker that stops takes it as long as it can. */
  readonly whileDraining?: boolean
}

/** Reads the request with `decode`, answers or fails with an error of the table, within the time of the options. */
export function implementUnary<Request>(
  environment: ServiceEnvironment,
  name: string,
  decode: (bytes: Buffer) => Request,
  handle: (request: Request, call: UnaryCall) => unknown,
  options: UnaryOptions = {},
): UnaryImplementation {
  const { clock, drain, errors } = environment
  const { timeoutCode = 'REQUEST_TIMEOUT', timeoutMs = UNARY_TIMEOUT_MS } = options
  return (call, callback) => {
    let answered = false
    drain.enter()
    const answer = (failure: unknown, value?: unknown): void => {
      if (answered) return
      answered = true
      cancelTimeout()
      drain.leave()
      if (failure === undefined) callback(null, value)
      else callback(errors.toStatus(failure, name))
    }
    const cancelTimeout = clock.schedule(timeoutMs, () => {
      const message = `${name} has taken longer than ${timeoutMs} ms; whether it was done is unknown`
      answer(new BrokerError(timeoutCode, message, { limit: timeoutMs }))
    })
    const run = async (): Promise<unknown> => {
      if (options.whileDraining !== true) drain.check()
      checkHeaders(call.metadata)
      checkSize(environment, call.request.length)
      return await handle(readRequest(decode, call.request), call)
    }
    run().then(
      (value) => answer(undefined, value),
      (error: unknown) => answer(error),
    )
  }
}

/** All methods of a control service at once. */
export function implementService<M>(
  environment: ServiceEnvironment,
  methods: ServiceMethods,
  handlers: UnaryHandlers<M>,
): Record<string, UnaryImplementation> {
  const table: Record<string, UnaryImplementation> = {}
  for (const [name, handle] of Object.entries<(request: never) => unknown>(handlers)) {
    const method = methods[name]
    if (method === undefined) throw new Error(`proto/ has no method ${name}`)
    // The request is what the method's own deserializer makes, which is the type that gen/types.ts has for it.
    const decode = (bytes: Buffer): never => method.requestDeserialize(bytes) as never
    table[name] = implementUnary(environment, name, decode, handle)
  }
  return table
}

/** @throws BrokerError INVALID_REQUEST when `decode` fails */
export function readRequest<Request>(decode: (bytes: Buffer) => Request, bytes: Buffer): Request {
  try {
    return decode(bytes)
  } catch (error) {
    if (error instanceof BrokerError) throw error
    const why = error instanceof Error ? error.message : String(error)
    throw new BrokerError('INVALID_REQUEST', `the message is not valid protobuf: ${why}`, {}, error)
  }
}

/** Our own limit lies below the transport's, so that its error has a name. */
export function checkSize(environment: ServiceEnvironment, bytes: number): void {
  const limit = environment.maxMessageBytes + ENVELOPE_BYTES
  if (bytes <= limit) return
  throw new BrokerError(
    'BATCH_TOO_LARGE',
    `a message of ${bytes} bytes is above the limit of ${limit}`,
    {
      actual: bytes,
      limit,
    },
  )
}

/** @throws BrokerError UNSUPPORTED_FEATURE when proto-loader left a number because it knows no name for it */
export function checkEnum(field: string, value: string | number): void {
  if (typeof value !== 'number') return
  throw new BrokerError('UNSUPPORTED_FEATURE', `this broker does not know ${field} ${value}`, {
    field,
    actual: value,
  })
}

/** @throws BrokerError INVALID_REQUEST, or the code that is named, for what is no whole number from `least` to `most` */
export function checkRange(
  field: string,
  value: number,
  least: number,
  most: number,
  code: ErrorCode = 'INVALID_REQUEST',
): void {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return
  throw new BrokerError(code, `${field} ${value} is outside [${least}, ${most}]`, {
    field,
    actual: value,
    limit: value < least ? least : most,
  })
}
