import { systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { GroupCoordinator } from '../../src/coordination/group/group-coordinator.ts'
import type { GroupOptions } from '../../src/coordination/group/group-options.ts'
import { drainingError } from '../../src/grpc/drain.ts'
import { GrpcServer } from '../../src/grpc/server.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { Topics } from '../../src/topic/topics.ts'

const silent = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} }

/** The real gRPC services over loopback, with logs in memory. */
export interface LoopbackBroker extends AsyncDisposable {
  readonly url: string
  readonly topics: Topics
  readonly store: MemoryStore
  readonly groups: GroupCoordinator
}

export async function startLoopbackBroker(
  options: {
    durableDelayMs?: number
    maxMessageBytes?: number
    /** Short by default: rebalances at once, sessions from 100 ms on. */
    groups?: Partial<GroupOptions>
  } = {},
): Promise<LoopbackBroker> {
  const clock = systemClock
  const random = new SeededRandom(7)
  const durableDelayMs = options.durableDelayMs ?? 0
  const store = new MemoryStore({ clock, random, durableDelayMs })
  const topics = await Topics.open({ store, clock, random })
  await store.ready()
  const groups = await GroupCoordinator.open({
    topics,
    clock,
    random,
    options: { minSessionTimeoutMs: 100, rebalanceIntervalMs: 0, ...options.groups },
  })
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
  server.serve(topics, groups)
  return {
    url: `127.0.0.1:${server.address.port}`,
    topics,
    store,
    groups,
    async [Symbol.asyncDispose]() {
      await server.stop(100)
      await groups.close(drainingError())
      await topics.close()
      await store.close()
    },
  }
}
