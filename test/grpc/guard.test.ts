import { connect as connectHttp2, type ClientHttp2Session, constants } from 'node:http2'
import { once } from 'node:events'
import { connect } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import { FakeClock } from '../support/fake-clock.ts'
import { RawClient } from '../support/raw-client.ts'
import { startTestBroker } from '../support/test-broker.ts'

const cleanups: (() => unknown)[] = []

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

async function aServer(): Promise<{ address: string; clock: FakeClock }> {
  const clock = new FakeClock()
  const { broker } = await startTestBroker({ clock })
  // Stopping waits on the fake clock, for peers that do not go by themselves; by then they are gone.
  cleanups.push(() => broker.stop())
  return { address: broker.address, clock }
}

function aSession(address: string): ClientHttp2Session {
  const session = connectHttp2(`http://${address}`)
  session.on('error', () => undefined) // Being thrown out is what these tests are about.
  cleanups.push(() => session.destroy())
  return session
}

/** Unlike events.once, does not mind the error that may come before. */
function closeOf(session: ClientHttp2Session): Promise<void> {
  return new Promise((resolve) => {
    session.once('close', resolve)
  })
}

async function isAlive(address: string): Promise<boolean> {
  const client = new RawClient(address)
  try {
    await client.call('ListTopics', {})
    return true
  } finally {
    client.close()
  }
}

describe('a connection is closed', () => {
  it('when it says nothing for ten seconds', async () => {
    const { address, clock } = await aServer()
    const [host, port] = address.split(':')
    const socket = connect({ host: host ?? '', port: Number(port) })
    cleanups.push(() => socket.destroy())
    await once(socket, 'data') // The server's settings: it has seen us.
    const closed = once(socket, 'close')
    socket.resume()
    await clock.advance(10_001)
    await closed
    expect(await isAlive(address)).toBe(true)
  })

  it('when it pings and pings', async () => {
    const { address } = await aServer()
    const session = aSession(address)
    await once(session, 'remoteSettings')
    const closed = closeOf(session)
    const ping = (): void => {
      if (!session.destroyed && !session.closed) session.ping(() => setImmediate(ping))
    }
    ping()
    await closed
    expect(await isAlive(address)).toBe(true)
  })

  it('when it opens and resets call after call', async () => {
    const { address } = await aServer()
    const session = aSession(address)
    await once(session, 'remoteSettings')
    const closed = closeOf(session)
    const attack = (left: number): void => {
      if (left === 0 || session.destroyed || session.closed) return
      const stream = session.request({
        ':method': 'POST',
        // A call that does not end by itself when Node ends the stream before it resets it.
        ':path': '/grpc.health.v1.Health/Watch',
        'content-type': 'application/grpc',
      })
      stream.write(Buffer.alloc(5)) // An empty message.
      stream.on('error', () => undefined)
      const reset = (): void => {
        stream.close(constants.NGHTTP2_CANCEL)
        setImmediate(() => attack(left - 1))
      }
      // Not before the request is on its way, or it would never be.
      if (stream.pending) stream.on('ready', () => setImmediate(reset))
      else setImmediate(reset)
    }
    attack(400)
    await closed
    expect(await isAlive(address)).toBe(true)
  })
})

describe('bytes that are no gRPC', () => {
  it.each([
    ['plain text', 'GET / HTTP/1.1\r\nHost: x\r\n\r\n'],
    ['noise', '\u0000\u0001\u0002'.repeat(200)],
  ])('(%s) harm nobody', async (_name, bytes) => {
    const { address } = await aServer()
    const [host, port] = address.split(':')
    const socket = connect({ host: host ?? '', port: Number(port) })
    socket.on('error', () => undefined)
    const closed = once(socket, 'close')
    socket.resume()
    socket.write(bytes)
    await closed
    expect(await isAlive(address)).toBe(true)
  })

  it('(a length that lies) is refused without taking the memory', async () => {
    const { address } = await aServer()
    const session = aSession(address)
    const stream = session.request({
      ':method': 'POST',
      ':path': '/millrace.v1.LogService/Append',
      'content-type': 'application/grpc',
      te: 'trailers',
    })
    const [headers] = (await Promise.all([
      once(stream, 'response'),
      new Promise((resolve) => stream.write(Buffer.from([0, 0xff, 0xff, 0xff, 0xff, 1]), resolve)),
    ])) as unknown as [[Record<string, string>]]
    expect(headers[0]['grpc-status']).toBe('8')
    expect(headers[0]['millrace-error-bin']).toBeDefined()
    session.destroy()
  })
})
