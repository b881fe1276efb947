import type {
  Http2Server,
  IncomingHttpHeaders,
  OutgoingHttpHeaders,
  ServerHttp2Session,
  ServerHttp2Stream,
} from 'node:http2'
import { constants } from 'node:http2'
import type { Socket } from 'node:net'
import type { ChannelOptions } from '@grpc/grpc-js'
import type { Clock } from '../common/clock.ts'
import type { ErrorCode } from '../common/errors.ts'
import { HOUR_MS, MIB, MINUTE_MS, SECOND_MS } from '../common/units.ts'
import { encodeErrorDetail, ERROR_TRAILER, toErrorDetail } from '../wire/error-detail.ts'
import type { CallHeaders } from './environment.ts'
import type { GrpcLogger } from './status.ts'

/** The values of CONTRACT §5, but for the streams of one connection, which see {@link MOST_STREAMS}. */
const MOST_CONNECTIONS = 10_000
const MOST_CONNECTIONS_PER_ADDRESS = 500
const MOST_NEW_CONNECTIONS_PER_SECOND = 50
const PREFACE_TIMEOUT_MS: number = 10 * SECOND_MS
const MOST_RAPID_RESETS = 200
const RESET_WINDOW_MS: number = 10 * SECOND_MS
/** A stream that was reset later than this after it began was a call that somebody no longer wanted, not an attack. */
const RAPID_RESET_MS: number = SECOND_MS
const MIN_PING_INTERVAL_MS: number = 10 * SECOND_MS
const PING_STRIKES = 3
/**
 * Not the 100 of CONTRACT §5: a Node client that reaches the cap queues further calls without a word, so a program with 101 readers on one
 * connection would seem to hang. What many streams can cost is bounded by the budgets of flow-control.ts, which count per connection.
 */
export const MOST_STREAMS = 1000

/** The header by which a call's HTTP/2 stream is found again. Set here on every request, whatever the client has sent. */
const STREAM_HEADER = 'millrace-stream'

/** Codes for the statuses that grpc-js gives by itself, so that they too have a name in the trailer. */
const CODE_OF_STATUS: Readonly<Record<number, ErrorCode>> = {
  1: 'CANCELLED_BY_CLIENT',
  3: 'INVALID_REQUEST',
  4: 'REQUEST_TIMEOUT',
  8: 'BATCH_TOO_LARGE',
  12: 'UNSUPPORTED_FEATURE',
  13: 'INTERNAL_ERROR',
  14: 'UNREACHABLE',
}

/** Largest message that the transport takes; ours is below it, so that its error has a name. A lying length is refused without allocating. */
export const TRANSPORT_MESSAGE_BYTES: number = 17 * MIB

/** Options for the grpc-js server: limits and the ends of connections. */
export const SERVER_OPTIONS: ChannelOptions = {
  'grpc.max_receive_message_length': TRANSPORT_MESSAGE_BYTES,
  'grpc.max_send_message_length': -1,
  'grpc.max_concurrent_streams': MOST_STREAMS,
  'grpc.max_connection_idle_ms': 5 * MINUTE_MS,
  'grpc.max_connection_age_ms': HOUR_MS,
  'grpc.max_connection_age_grace_ms': 30 * SECOND_MS,
  'grpc.keepalive_time_ms': MINUTE_MS,
  'grpc.keepalive_timeout_ms': 20 * SECOND_MS,
  // Its counters cost a little on every message and nobody reads them.
  'grpc.enable_channelz': 0,
}

/** Watches the connections of one HTTP/2 server for peers that mean no good, and names the errors that grpc-js gives by itself. */
export class ConnectionGuard {
  readonly #clock: Clock
  readonly #logger: GrpcLogger
  readonly #streams = new Map<string, ServerHttp2Stream>()
  readonly #sessions = new Set<ServerHttp2Session>()
  readonly #perAddress = new Map<string, { open: number; newInSecond: number; secondMs: number }>()
  #connections = 0
  #nextStream = 0

  constructor(clock: Clock, logger: GrpcLogger) {
    this.#clock = clock
    this.#logger = logger
  }

  attach(http2Server: Http2Server): void {
    http2Server.on('connection', (socket: Socket) => this.#onConnection(socket))
    http2Server.on('session', (session: ServerHttp2Session) => this.#onSession(session))
    // Before grpc-js's own, which reads the headers.
    http2Server.prependListener(
      'stream',
      (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => this.#onStream(stream, headers),
    )
  }

  /** The HTTP/2 stream under a call, by the header that was set when it began. */
  findStream(headers: CallHeaders): ServerHttp2Stream | undefined {
    const id = headers.get(STREAM_HEADER)[0]
    return typeof id === 'string' ? this.#streams.get(id) : undefined
  }

  /** Ends every connection, whatever it is at. grpc-js's forceShutdown() knows none of them while channelz is off. */
  cutOff(): void {
    for (const session of this.#sessions) session.destroy()
  }

  #onConnection(socket: Socket): void {
    const address = socket.remoteAddress ?? 'unknown'
    // This machine's own programs are trusted, and a test or a bench may well open a thousand at once.
    const local =
      address === '::1' || address.startsWith('127.') || address.startsWith('::ffff:127.')
    const nowMs = this.#clock.monotonicMs()
    const entry = this.#perAddress.get(address) ?? { open: 0, newInSecond: 0, secondMs: nowMs }
    if (nowMs - entry.secondMs >= SECOND_MS) {
      entry.newInSecond = 0
      entry.secondMs = nowMs
    }
    entry.newInSecond++
    entry.open++
    this.#connections++
    this.#perAddress.set(address, entry)
    socket.once('close', () => {
      this.#connections--
      entry.open--
      if (entry.open === 0) this.#perAddress.delete(address)
    })
    if (
      this.#connections > MOST_CONNECTIONS ||
      (!local &&
        (entry.open > MOST_CONNECTIONS_PER_ADDRESS ||
          entry.newInSecond > MOST_NEW_CONNECTIONS_PER_SECOND))
    ) {
      this.#logger.warn({ peer: address, open: entry.open }, 'too many connections: one is refused')
      socket.destroy()
    }
  }

  #onSession(session: ServerHttp2Session): void {
    const socket = session.socket
    const cancel = this.#clock.schedule(PREFACE_TIMEOUT_MS, () => {
      this.#logger.info({ peer: socket.remoteAddress }, 'a connection that says nothing is closed')
      session.destroy()
    })
    session.once('remoteSettings', cancel)
    session.once('close', cancel)
    this.#sessions.add(session)
    session.once('close', () => this.#sessions.delete(session))
    this.#watchPings(session)
  }

  #watchPings(session: ServerHttp2Session): void {
    let lastMs = -Infinity
    let lastTraffic = 0
    let strikes = 0
    session.on('ping', () => {
      const nowMs = this.#clock.monotonicMs()
      const { bytesRead, bytesWritten } = session.socket
      // Pings beside data are somebody's measurement of the bandwidth; a ping and its answer are 34 bytes.
      const idle = bytesRead + bytesWritten - lastTraffic < 100
      strikes = idle && nowMs - lastMs < MIN_PING_INTERVAL_MS ? strikes + 1 : 0
      lastMs = nowMs
      lastTraffic = bytesRead + bytesWritten
      if (strikes >= PING_STRIKES) this.#expel(session, 'pings too often')
    })
  }

  #onStream(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
    const id = String(this.#nextStream++)
    headers[STREAM_HEADER] = id
    this.#streams.set(id, stream)
    const startMs = this.#clock.monotonicMs()
    const { session } = stream
    stream.once('close', () => {
      this.#streams.delete(id)
      const rapid = this.#clock.monotonicMs() - startMs < RAPID_RESET_MS
      if (stream.rstCode !== constants.NGHTTP2_NO_ERROR && rapid && session !== undefined) {
        this.#countReset(session as ServerHttp2Session) // A server's stream has a server's session.
      }
    })
    // A write that comes after the peer has gone is nobody's fault; grpc-js listens for the first error only.
    stream.on('error', () => undefined)
    nameErrors(stream)
  }

  readonly #resets = new WeakMap<ServerHttp2Session, { count: number; sinceMs: number }>()

  #countReset(session: ServerHttp2Session): void {
    const nowMs = this.#clock.monotonicMs()
    const resets = this.#resets.get(session) ?? { count: 0, sinceMs: nowMs }
    if (nowMs - resets.sinceMs > RESET_WINDOW_MS) {
      resets.count = 0
      resets.sinceMs = nowMs
    }
    resets.count++
    this.#resets.set(session, resets)
    if (resets.count === MOST_RAPID_RESETS + 1) this.#expel(session, 'resets its calls too often')
  }

  #expel(session: ServerHttp2Session, why: string): void {
    if (session.destroyed) return
    this.#logger.warn({ peer: session.socket.remoteAddress }, `a connection is closed: it ${why}`)
    session.goaway(constants.NGHTTP2_ENHANCE_YOUR_CALM)
    session.destroy()
  }
}

/**
 * Adds our trailer to statuses that grpc-js gives by itself (a message above the transport's limit, an unknown method, a deadline): every
 * status that is not OK names its reason.
 */
function nameErrors(stream: ServerHttp2Stream): void {
  const respond = stream.respond.bind(stream)
  const sendTrailers = stream.sendTrailers.bind(stream)
  stream.respond = (headers, options) => {
    respond(headers === undefined ? headers : named(headers), options)
  }
  stream.sendTrailers = (trailers) => sendTrailers(named(trailers))
}

function named(headers: OutgoingHttpHeaders): OutgoingHttpHeaders {
  const status = Number(headers['grpc-status'] ?? 0)
  if (status === 0 || headers[ERROR_TRAILER] !== undefined) return headers
  const code = CODE_OF_STATUS[status]
  if (code === undefined) return headers
  const message = String(headers['grpc-message'] ?? '')
  const detail = toErrorDetail(code, decodeMessage(message), {})
  return { ...headers, [ERROR_TRAILER]: encodeErrorDetail(detail).toString('base64') }
}

function decodeMessage(message: string): string {
  try {
    return decodeURI(message)
  } catch {
    return message
  }
}
