import { onTestFinished } from 'vitest'
import { type Clock, systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import type { Groups } from '../../src/coordination/group/group-types.ts'
import { GrpcServer, type QueueParts } from '../../src/grpc/server.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { silentLogger } from '../../src/server/logger.ts'
import { Topics } from '../../src/topic/topics.ts'
import { FakeClock } from './fake-clock.ts'
import { RawClient } from './raw-client.ts'

/** The gRPC port over groups that a test has in its hand. Call it inside a test. */
export async function startGroupsServer<G extends Groups>(
  groups: G,
  options: {
    clock?: Clock
    maxMessageBytes?: number
    queueParts?: QueueParts
    plainTransport?: boolean
  } = {},
): Promise<{ server: GrpcServer; client: RawClient; groups: G; address: string }> {
  const random = new SeededRandom(1)
  const store = new MemoryStore({ clock: systemClock, random })
  const topics = await Topics.open({ store, clock: systemClock, random })
  const server = new GrpcServer({
    clock: options.clock ?? systemClock,
    random,
    logger: silentLogger,
    identity: { version: '0', brokerId: 1, startedMs: 0 },
    maxMessageBytes: options.maxMessageBytes ?? 1 << 20,
    plainTransport: options.plainTransport,
  })
  await server.listen('127.0.0.1', 0)
  server.serve(topics, groups, options.queueParts)
  const address = `127.0.0.1:${server.address.port}`
  const client = new RawClient(address)
  onTestFinished(async () => {
    client.close()
    await (options.clock instanceof FakeClock
      ? pass(options.clock, server.stop(100))
      : server.stop(100))
    await topics.close()
  })
  return { server, client, groups, address }
}

/** Lets time pass until `work` is through, whichever way. */
export async function pass<T>(clock: FakeClock, work: Promise<T>): Promise<T> {
  const through = new AbortController()
  const settle = (): void => through.abort()
  work.then(settle, settle)
  while (!through.signal.aborted) {
    await clock.advance(100)
    await new Promise((resolve) => setImmediate(resolve))
  }
  return work
}

/** Waits until `condition` holds, in real turns of the event loop. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve))
}
