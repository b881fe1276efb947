import { BrokerError } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { partitionName } from '../../src/log/partition-name.ts'
import { type TopicLogger, Topics, type TopicsOptions } from '../../src/topic/topics.ts'
import { FakeClock } from './fake-clock.ts'
import { FaultyStore } from './faulty-store.ts'

/** Keeps what was logged: `warn: a sentence`. */
export class Lines implements TopicLogger {
  readonly lines: string[] = []
  readonly details: object[] = []

  #add(level: string, details: object, message: string): void {
    this.lines.push(`${level}: ${message}`)
    this.details.push(details)
  }

  info(details: object, message: string): void {
    this.#add('info', details, message)
  }

  warn(details: object, message: string): void {
    this.#add('warn', details, message)
  }

  error(details: object, message: string): void {
    this.#add('error', details, message)
  }
}

export interface Bench {
  topics: Topics
  readonly store: FaultyStore
  readonly clock: FakeClock
  readonly log: Lines
  /** Closes the topics and opens them again over the same store. */
  reopen(): Promise<Topics>
}

const benches: Bench[] = []

/** For `afterEach`. */
export async function closeBenches(): Promise<void> {
  for (const bench of benches.splice(0)) await bench.topics.close()
}

/** Topics over a memory store that goes wrong where a test says so. */
export async function aBench(options: Partial<TopicsOptions> = {}): Promise<Bench> {
  const clock = new FakeClock()
  const store = new FaultyStore(new MemoryStore({ clock, random: new SeededRandom(1) }))
  const log = new Lines()
  const random = new SeededRandom(2)
  const open = (): Promise<Topics> => Topics.open({ store, clock, random, logger: log, ...options })
  const bench: Bench = {
    topics: await open(),
    store,
    clock,
    log,
    async reopen() {
      await bench.topics.close()
      bench.topics = await open()
      return bench.topics
    },
  }
  benches.push(bench)
  return bench
}

export async function failureOf(promise: Promise<unknown>): Promise<BrokerError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BrokerError) return error
    throw error
  }
  throw new Error('it did not fail')
}

export async function codeOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'OK',
    (error: unknown) => (error instanceof BrokerError ? error.code : String(error)),
  )
}

/** Names of all that is in the store, sorted. */
export function directoriesOf(store: FaultyStore): Promise<string[]> {
  return store.list().then((ids) => ids.map(partitionName).sort())
}
