import { connect, createServer, type Server, type Socket } from 'node:net'

/** A TCP proxy that breaks on demand. */
export interface FlakyProxy extends AsyncDisposable {
  /** `host:port` to connect to. */
  readonly address: string
  /** Connections that are open. */
  readonly open: number
  /** Resets every connection. New ones are taken. */
  cut(): void
  /** What is open stays open and passes nothing on any more, either way, without a word. New ones work. */
  mute(): void
  /** Refuses new connections too, until told otherwise. */
  refuse(isRefusing: boolean): void
}

export async function startFlakyProxy(target: string): Promise<FlakyProxy> {
  const at = target.lastIndexOf(':')
  const host = target.slice(0, at)
  const port = Number(target.slice(at + 1))
  const pairs = new Set<{ near: Socket; far: Socket; isMute: boolean }>()
  let isRefusing = false
  const server: Server = createServer((near) => {
    if (isRefusing) {
      near.resetAndDestroy()
      return
    }
    const far = connect({ host, port, noDelay: true })
    const pair = { near, far, isMute: false }
    pairs.add(pair)
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      from.on('data', (bytes) => {
        if (!pair.isMute && to.writable) to.write(bytes)
      })
      from.on('error', () => to.destroy())
      from.on('close', () => {
        pairs.delete(pair)
        to.destroy()
      })
    }
  })
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  const bound = server.address()
  if (bound === null || typeof bound === 'string') throw new Error('the proxy has no port')
  const cut = (): void => {
    for (const { near, far } of pairs) {
      near.resetAndDestroy()
      far.resetAndDestroy()
    }
  }
  return {
    address: `127.0.0.1:${bound.port}`,
    get open() {
      return pairs.size
    },
    cut,
    mute: () => {
      for (const pair of pairs) pair.isMute = true
    },
    refuse: (isNow) => {
      isRefusing = isNow
    },
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        cut()
        server.close(() => resolve())
      }),
  }
}
