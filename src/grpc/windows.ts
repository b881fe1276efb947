import type { Server } from '@grpc/grpc-js'
import type { Http2Server, ServerHttp2Session } from 'node:http2'
import { MIB } from '../common/units.ts'
import type { GrpcLogger } from './status.ts'

/**
 * Bytes that a peer may send before we have taken them, per stream and per connection. HTTP/2 starts with 64 KiB: with 5 ms of network each
 * way that is 4 MB/s. 4 MiB is enough for 150 MB/s there, and is also what a peer that we do not read from can make us hold.
 */
export const WINDOW_BYTES: number = 4 * MIB

/**
 * The HTTP/2 servers behind a grpc-js server, which it keeps in a private map; filled by bindAsync. Empty, with a warning, when a later
 * version keeps them elsewhere: everything still works, with narrow windows and without the guard.
 */
export function findHttp2Servers(server: Server, logger: GrpcLogger): readonly Http2Server[] {
  // A private field, read as unknown and checked. The version of grpc-js is pinned to the minor because of this line.
  const { http2Servers } = server as unknown as { http2Servers?: unknown }
  if (http2Servers instanceof Map && http2Servers.size > 0) {
    return [...http2Servers.keys()] as Http2Server[] // The map's keys, seen in grpc-js 1.14; a test opens one.
  }
  logger.warn(
    {},
    'this version of grpc-js hides its HTTP/2 servers: windows stay at 64 KiB, which is slow over a network, and connections are not guarded',
  )
  return []
}

/** The option that looks right (`grpc-node.flow_control_window`) is ignored by grpc-js servers, so each session is widened as it starts. */
export function widenWindows(http2Server: Http2Server, windowBytes: number = WINDOW_BYTES): void {
  http2Server.on('session', (session: ServerHttp2Session) => {
    session.settings({ initialWindowSize: windowBytes })
    session.setLocalWindowSize(windowBytes)
  })
}
