import { connect, createServer, type Server, type Socket } from 'node:net'

export interface DelayProxy {
  /** `host:port` to connect to. */
  readonly address: string
  close(): Promise<void>
}

/**
 * A TCP proxy that passes every byte on `delayMs` after it came, in both directions, at any rate: a long wire, not a thin one. Order is
 * kept, because timers of equal delay fire in the order in which they were set.
 */
export async function startDelayProxy(target: string, delayMs: number): Promise<DelayProxy> {
  const at = target.lastIndexOf(':')
  const host = target.slice(0, at)
  const port = Number(target.slice(at + 1))
  const sockets = new Set<Socket>()
  const server: Server = createServer((near) => {
    const far = connect({ host, port, noDelay: true })
    near.setNoDelay(true)
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from)
      from.on('data', (bytes) => setTimeout(() => to.writable && to.write(bytes), delayMs))
      from.on('end', () => setTimeout(() => to.end(), delayMs))
      from.on('error', () => to.destroy())
      from.on('close', () => {
        sockets.delete(from)
        setTimeout(() => to.destroy(), delayMs)
      })
    }
  })
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  const bound = server.address()
  if (bound === null || typeof bound === 'string') throw new Error('the proxy has no port')
  return {
    address: `127.0.0.1:${bound.port}`,
    close: () =>
      new Promise((resolve) => {
        for (const socket of sockets) socket.destroy()
        server.close(() => resolve())
      }),
  }
}
