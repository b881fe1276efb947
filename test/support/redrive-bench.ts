import type { Clock } from '../../src/common/clock.ts'
import { BrokerError } from '../../src/common/errors.ts'
import { type Offset, toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { LocalPeer } from '../../src/coordination/local-peer.ts'
import type { PeerRecord } from '../../src/coordination/peer.ts'
import { Companions } from '../../src/coordination/queue/companions.ts'
import {
  DeadLetterBox,
  type DeadLetterBoxOptions,
} from '../../src/coordination/queue/dead-letter-box.ts'
import {
  buildDeadLetter,
  type DeathFacts,
  type StoredRecord,
} from '../../src/coordination/queue/dead-letter-record.ts'
import { deadLetterTopicName, retryTopicName } from '../../src/coordination/queue/names.ts'
import type {
  DeadFilter,
  DeadLetterPlace,
  DeadLetters,
} from '../../src/coordination/queue/queue-types.ts'
import { CompanionMarks } from '../../src/coordination/queue/redrive-marks.ts'
import type { TaskStore } from '../../src/coordination/queue/redrive-task.ts'
import { StateLog } from '../../src/coordination/state-log.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import { Topics } from '../../src/topic/topics.ts'
import { batchesOf } from './batches.ts'
import { FakeClock } from './fake-clock.ts'
import { FaultyStore } from './faulty-store.ts'
import { pass } from './groups-server.ts'
import { Lines } from './topics-bench.ts'

export const GROUP = 'workers'
export const SOURCE = 'orders'
export const DLQ: string = deadLetterTopicName(GROUP, SOURCE)
export const RETRY: string = retryTopicName(GROUP, SOURCE)
export const ALL: DeadFilter = {
  reason: '',
  errorType: '',
  firstOffset: undefined,
  endOffset: undefined,
  fromMs: undefined,
  toMs: undefined,
  headers: [],
  group: '',
  topic: '',
  limit: 0,
}
export const PLACE: DeadLetterPlace = { topic: DLQ, group: '', sourceTopic: '' }

/** What a test says of a letter; the rest is made up. */
export interface LetterShape extends Partial<StoredRecord>, Partial<DeathFacts> {
  readonly copyPayload?: boolean
}

export function aLetter(id: number, shape: LetterShape = {}): PeerRecord {
  const { copyPayload = true, key, value, headers, ...death } = shape
  const record: StoredRecord = {
    key: key ?? Buffer.from(`k${id}`),
    value: value ?? Buffer.from(`v${id}`),
    headers: headers ?? [{ key: 'trace', value: Buffer.from(String(id)) }],
  }
  const error = { type: 'TypeError', message: `failed ${id}`, stack: 'at work' }
  const letter = buildDeadLetter(
    record,
    {
      group: GROUP,
      topic: SOURCE,
      partition: 0,
      offset: toOffset(id),
      reason: 'attempts_exhausted',
      deliveries: 6,
      failures: 5,
      firstFailedMs: 1000 + id,
      lastFailedMs: 2000 + id,
      errors: [{ error, atMs: 2000 + id, memberId: 'm-1', kind: 'retry' }],
      memberId: 'm-1',
      ...death,
    },
    { copyPayload, maxBytes: 1_000_000 },
  )
  return { ...letter, timestampMs: undefined }
}

/** Tasks in a log of their own, as the coordinator of queues keeps them. */
export class LoggedTasks implements TaskStore {
  readonly #topics: Topics
  readonly #clock: Clock
  readonly #texts = new Map<string, string>()
  #log: StateLog | undefined

  constructor(topics: Topics, clock: Clock) {
    this.#topics = topics
    this.#clock = clock
  }

  all(): ReadonlyMap<string, string> {
    return this.#texts
  }

  async open(): Promise<StateLog> {
    const topic = await this.#topics.ensureInternal('__queues', 1, { 'cleanup.policy': 'compact' })
    const [partition] = topic.partitions
    if (partition === undefined) throw new Error('no partition')
    const log = new StateLog({
      partition,
      clock: this.#clock,
      onCorruption: 'halt',
      onSkipped: () => undefined,
    })
    await log.replay((key, value) => {
      if (value === null) this.#texts.delete(key)
      else this.#texts.set(key, value)
    })
    return log
  }

  async put(taskId: string, text: string | null): Promise<void> {
    if (this.#log === undefined || this.#log.failure !== undefined) this.#log = await this.open()
    if (text === null) this.#texts.delete(taskId)
    else this.#texts.set(taskId, text)
    await this.#log.write([{ key: taskId, value: text }])
  }
}

interface Parts {
  readonly store: FaultyStore
  readonly topics: Topics
  readonly peer: LocalPeer
  readonly companions: Companions
  readonly box: DeadLetterBox
}

/** A box of dead letters over topics in memory, on a fake clock; can be killed and started again. */
export class RedriveBench {
  readonly clock: FakeClock = new FakeClock()
  readonly random: SeededRandom = new SeededRandom(1)
  readonly log: Lines = new Lines()
  readonly #options: Partial<DeadLetterBoxOptions>
  memory: MemoryStore
  #parts: Parts | undefined

  constructor(options: Partial<DeadLetterBoxOptions> = {}, durableDelayMs = 0) {
    this.#options = options
    const { clock, random } = this
    this.memory = new MemoryStore({ clock, random, durableDelayMs })
  }

  /** With a source topic, and a topic of dead letters with so many partitions. */
  async start(partitions = 1): Promise<this> {
    await this.#open()
    await this.over(this.topics.create({ name: SOURCE, partitions: 1 }))
    const dlq = { name: DLQ, partitions, config: { dlq: 'true', 'retention.ms': '30d' } }
    await this.over(this.topics.create(dlq))
    return this
  }

  get #started(): Parts {
    if (this.#parts === undefined) throw new Error('the bench has not been started')
    return this.#parts
  }

  get store(): FaultyStore {
    return this.#started.store
  }

  get topics(): Topics {
    return this.#started.topics
  }

  get peer(): LocalPeer {
    return this.#started.peer
  }

  get companions(): Companions {
    return this.#started.companions
  }

  get box(): DeadLetterBox {
    return this.#started.box
  }

  async #open(prepare: (store: FaultyStore) => void = () => undefined): Promise<void> {
    const { clock, random, log } = this
    const store = new FaultyStore(this.memory)
    prepare(store)
    const topics = await this.over(Topics.open({ store, clock, random }))
    const peer = new LocalPeer({ topics, clock })
    const companions = new Companions({ topics, clock, logger: log })
    const tasks = new LoggedTasks(topics, clock)
    await this.over(tasks.open())
    const box = new DeadLetterBox({
      topics,
      peer,
      marks: new CompanionMarks(companions),
      tasks,
      clock,
      random,
      logger: log,
      findDeadLetterTopic: deadLetterTopicName,
      ...this.#options,
    })
    this.#parts = { store, topics, peer, companions, box }
    box.open()
  }

  /** kill -9 and a start: what was not durable is gone. What the old broker still does nobody sees. */
  async restart(prepare?: (store: FaultyStore) => void): Promise<void> {
    this.memory = this.memory.restart()
    await this.#open(prepare)
  }

  /** Lets time pass until `work` is through. */
  over<T>(work: Promise<T>): Promise<T> {
    return pass(this.clock, work)
  }

  async put(letters: readonly PeerRecord[], partition = 0): Promise<void> {
    const mark = this.peer.mark(DLQ, { partition })
    await this.over(this.peer.append(mark, letters))
  }

  /** Letters 0 to `count`, in the first partition. */
  async fill(count: number, shape: LetterShape = {}): Promise<void> {
    await this.put(Array.from({ length: count }, (_, id) => aLetter(id, shape)))
  }

  async redrive(
    request: Partial<Parameters<DeadLetters['startRedrive']>[0]> = {},
  ): Promise<Awaited<ReturnType<DeadLetters['startRedrive']>>> {
    return this.over(
      this.box.startRedrive({
        place: PLACE,
        filter: ALL,
        toTopic: '',
        maxPerSec: 10_000,
        dryRun: false,
        resetAttempts: true,
        ...request,
      }),
    )
  }

  /** Lets time pass until no task is running. */
  async untilEnded(): Promise<void> {
    for (let turns = 0; turns < 5000; turns++) {
      const tasks = await this.box.listRedrives()
      if (tasks.every(({ state }) => state !== 'running')) return
      await this.over(Promise.resolve())
    }
    throw new Error('a redrive does not end')
  }

  async records(topic: string, partition = 0): Promise<readonly FoundCopy[]> {
    if (this.topics.find(topic) === undefined) return []
    const found: FoundCopy[] = []
    const log = this.topics.getPartition(topic, partition)
    const cursor = new RecordCursor()
    for (let at: Offset = log.logStartOffset; at < log.highWatermark;) {
      const { chunks, nextOffset } = await log.read(at, 1_000_000)
      for (const { bytes } of batchesOf(chunks)) {
        cursor.reset(bytes, 0)
        while (cursor.next()) found.push(copyOf(cursor))
      }
      at = nextOffset
    }
    return found
  }

  async values(topic: string, partition = 0): Promise<readonly (string | undefined)[]> {
    return (await this.records(topic, partition)).map(({ value }) => value)
  }

  /** Offsets of what is neither redriven nor discarded. */
  async unsettled(): Promise<readonly number[]> {
    const offsets: number[] = []
    let pageToken = ''
    do {
      const page = await this.over(
        this.box.list({
          place: PLACE,
          filter: ALL,
          pageSize: 1000,
          pageToken,
          includeSettled: false,
        }),
      )
      offsets.push(...page.letters.map(({ record }) => record.offset))
      pageToken = page.nextPageToken
    } while (pageToken !== '')
    return offsets
  }
}

/** A record as text. */
export interface FoundCopy {
  readonly offset: number
  readonly timestampMs: number
  readonly key: string | undefined
  readonly value: string | undefined
  readonly headers: Readonly<Record<string, string>>
}

function copyOf(cursor: RecordCursor): FoundCopy {
  const { offset, timestampMs, keyStart, keyEnd, valueStart, valueEnd } = cursor
  const text = (start: number, end: number): string | undefined =>
    start < 0 ? undefined : Buffer.from(cursor.bytes.subarray(start, end)).toString()
  const headers = cursor
    .readHeaders()
    .map(({ key, value }) => [key, Buffer.from(value ?? '').toString()] as const)
  return {
    offset,
    timestampMs,
    key: text(keyStart, keyEnd),
    value: text(valueStart, valueEnd),
    headers: Object.fromEntries(headers),
  }
}

export async function failureOf(promise: Promise<unknown>): Promise<BrokerError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BrokerError) return error
    throw error
  }
  throw new Error('it has worked')
}
