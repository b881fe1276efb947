import { systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { GrpcServer } from '../../src/grpc/server.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { Topics } from '../../src/topic/topics.ts'

const silent = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} }

/** The real gRPC services over loopback, with logs in memory. */
export interface LoopbackBroker extends AsyncDisposable {
  readonly url: string
  readonly topics: Topics
  readonly store: MemoryStore
}

export async function startLoopbackBroker(
  options: { durableDelayMs?: number; maxMessageBytes?: number } = {},
): Promise<LoopbackBroker> {
  const clock = systemClock
  const random = new SeededRandom(7)
  const durableDelayMs = options.durableDelayMs ?? 0
  const store = new MemoryStore({ clock, random, durableDelayMs })
  const topics = await Topics.open({ store, clock, random })
  await store.ready()
  const server = new GrpcServer({
    clock,
    random,
    logger: silent,
    identity: {
      version: 'test',
      brokerId: 0,
      startedMs: clock.wallMs(),
    },
    maxMessageBytes: options.maxMessageBytes ?? 8 * 1024 * 1024,
  })
  await server.listen('127.0.0.1', 0)
  server.serve(topics)
  return {
    url: `127.0.0.1:${server.address.port}`,
    topics,
    store,
    async [Symbol.asyncDispose]() {
      await server.stop(100)
      await topics.close()
      await store.close()
    },
  }
}
