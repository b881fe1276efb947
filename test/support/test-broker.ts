import { systemClock } from '../../src/common/clock.ts'
import type { Clock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import type { FileSystem } from '../../src/fs/file-system.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import type { LogStore } from '../../src/log/partition-log.ts'
import { Broker } from '../../src/server/broker.ts'
import { parseConfig } from '../../src/server/config.ts'
import { type Logger, silentLogger } from '../../src/server/logger.ts'

export interface TestBrokerOptions {
  readonly clock?: Clock
  readonly durableDelayMs?: number
  readonly store?: LogStore
  /** The store cannot be opened. */
  readonly storeFailure?: Error
  readonly logger?: Logger
  readonly flags?: Readonly<Record<string, string | boolean>>
}

/** A whole broker on the memory engine, listening on a free port of the loopback. */
export async function startTestBroker(
  options: TestBrokerOptions = {},
): Promise<{ broker: Broker; store: LogStore }> {
  const clock = options.clock ?? systemClock
  const random = new SeededRandom(7)
  const store =
    options.store ?? new MemoryStore({ clock, random, durableDelayMs: options.durableDelayMs ?? 0 })
  const { config } = parseConfig({
    flags: { listen: '127.0.0.1:0', drainTimeoutMs: '2s', ...options.flags },
  })
  const broker = await Broker.start({
    config,
    // The memory engine has no directory; the broker only asks for its free space, and copes without an answer.
    fs: { space: () => Promise.reject(new Error('no directory')) } as unknown as FileSystem,
    clock,
    random,
    logger: options.logger ?? silentLogger,
    storeFactory: () =>
      options.storeFailure === undefined
        ? Promise.resolve(store)
        : Promise.reject(options.storeFailure),
  })
  return { broker, store }
}
