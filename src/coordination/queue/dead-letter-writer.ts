import type { CancelTimer, Clock } from '../../common/clock.ts'
import { toBrokerError } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import { MIB, MINUTE_MS, SECOND_MS } from '../../common/units.ts'
import type { Partition } from '../../topic/partition.ts'
import type { Topics } from '../../topic/topics.ts'
import type { Peer, PeerRecord } from '../peer.ts'
import type { BatchShelf } from './batch-shelf.ts'
import type { QueueLogger } from './companion.ts'
import {
  buildDeadLetter,
  DEAD_LETTER_ID_HEADER,
  deadLetterId,
  findRedrives,
} from './dead-letter-record.ts'
import type { QueueConfig } from './queue-config.ts'
import type { QueueEvent, QueueState, Run } from './queue-state.ts'
import type { LogRecord } from './queue-types.ts'

/** What the writer needs of the queue whose dead letters it writes. */
export interface DyingQueue {
  readonly group: string
  readonly source: Partition
  readonly state: QueueState
  readonly shelf: BatchShelf
  readonly config: QueueConfig
  /** Where they go. */
  readonly deadLetterTopic: string
  /** Applies and writes down; durable when it resolves. */
  commit(events: readonly QueueEvent[]): Promise<void>
  /** Dead letters cannot be written (any more). */
  failing(error: unknown): void
}

export interface DeadLetterWriterOptions {
  readonly queue: DyingQueue
  readonly peer: Peer
  readonly topics: Topics
  readonly clock: Clock
  readonly logger: QueueLogger
}

const MOST_AT_ONCE = 100
/** Of keys and values; one letter may be larger. */
const MOST_BYTES_AT_ONCE: number = 4 * MIB
const FIRST_BACKOFF_MS: number = SECOND_MS
const LONGEST_BACKOFF_MS: number = MINUTE_MS
/** Of topics that are made for dead letters. */
const DEAD_LETTER_CONFIG: Readonly<Record<string, string>> = { dlq: 'true', 'retention.ms': '30d' }

/**
 * Carries the dying records of one queue to their topic (SEMANTICS §3.6). They are written down as dying before they come here; then, a few at a time: note where
 * the topic ends, append, note that they are dead. After a crash what has arrived since the note is found by its id, so each is there once. A topic that cannot be
 * written to is tried again for ever; meanwhile the records stay as they are.
 */
export class DeadLetterWriter {
  readonly #queue: DyingQueue
  readonly #peer: Peer
  readonly #topics: Topics
  readonly #clock: Clock
  readonly #logger: QueueLogger
  #running: Promise<void> | undefined
  #again = false
  #backoffMs = 0
  #cancelTimer: CancelTimer | undefined
  #isClosed = false
  /** The state was loaded: what its mark says has to be looked at first. */
  #isResolved: boolean

  constructor(options: DeadLetterWriterOptions) {
    this.#queue = options.queue
    this.#peer = options.peer
    this.#topics = options.topics
    this.#clock = options.clock
    this.#logger = options.logger
    this.#isResolved = options.queue.state.mark === undefined
  }

  /** There may be dying records. Never throws: what fails is tried again. */
  wake(): void {
    if (this.#isClosed) return
    if (this.#running !== undefined) {
      this.#again = true
      return
    }
    if (this.#cancelTimer !== undefined) return
    if (this.#queue.state.count('dead-lettering') === 0) return
    this.#running = this.#run().finally(() => {
      this.#running = undefined
      if (!this.#again) return
      this.#again = false
      this.wake()
    })
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#cancelTimer?.()
    await this.#running
  }

  /** Never rejects. */
  async #run(): Promise<void> {
    try {
      if (!this.#isResolved) await this.#resolve()
      while (!this.#isClosed && this.#queue.state.count('dead-lettering') > 0) await this.#write()
      if (this.#backoffMs > 0) this.#queue.failing(undefined)
      this.#backoffMs = 0
    } catch (error) {
      // Some of what was sent may be there all the same.
      this.#isResolved = this.#queue.state.mark === undefined
      if (this.#isClosed) return
      this.#backoffMs = Math.min(
        LONGEST_BACKOFF_MS,
        Math.max(FIRST_BACKOFF_MS, this.#backoffMs * 2),
      )
      const { code, message } = toBrokerError(error)
      const { group, source, deadLetterTopic, state } = this.#queue
      this.#logger.warn(
        {
          event: 'dlq_write_failing',
          group,
          partition: source.name,
          deadLetterTopic,
          pending: state.count('dead-lettering'),
          retryMs: this.#backoffMs,
          code,
          cause: message,
        },
        'dead letters could not be written',
      )
      this.#queue.failing(error)
      this.#cancelTimer = this.#clock.schedule(this.#backoffMs, () => {
        this.#cancelTimer = undefined
        this.wake()
      })
    }
  }

  /** What was appended before the crash, and not noted. */
  async #resolve(): Promise<void> {
    const { state } = this.#queue
    const { mark } = state
    if (mark !== undefined && state.count('dead-lettering') > 0) {
      const offsetOf = new Map<string, number>()
      for (const offset of dying(state, Infinity)) offsetOf.set(await this.#idOf(offset), offset)
      const found = await this.#peer.findIds(mark, DEAD_LETTER_ID_HEADER, new Set(offsetOf.keys()))
      const events: QueueEvent[] = []
      for (const id of found.keys()) {
        const offset = offsetOf.get(id)
        const run = offset === undefined ? undefined : state.find(offset)
        if (offset !== undefined && run?.state === 'dead-lettering')
          events.push(this.#deadEvent(offset, run))
      }
      await this.#queue.commit(events)
    }
    this.#isResolved = true
  }

  async #idOf(offset: number): Promise<string> {
    const { group, source } = this.#queue
    const record = await this.#read(offset)
    const redrives = findRedrives(group, source.topic, record?.headers ?? [])
    return deadLetterId(group, source.topic, source.index, offset, redrives)
  }

  /** What a damaged place held cannot be told any more; that it was given up can. */
  async #read(offset: number): Promise<LogRecord | undefined> {
    const { source, shelf } = this.#queue
    if (offset < source.logStartOffset) return undefined
    try {
      return await shelf.readRecord(offset)
    } catch (error) {
      const { code } = toBrokerError(error)
      if (code === 'OFFSET_OUT_OF_RANGE') return undefined
      if (!['SEGMENT_QUARANTINED', 'CORRUPT_BATCH', 'INVALID_RECORD'].includes(code)) throw error
      const nothing = { timestampMs: -1, key: undefined, value: undefined, headers: [] }
      return { offset: toOffset(offset), ...nothing }
    }
  }

  async #write(): Promise<void> {
    const { group, source, state, config, deadLetterTopic } = this.#queue
    const topic = await this.#topics.ensure(deadLetterTopic, 1, DEAD_LETTER_CONFIG)
    const maxBytes = topic.config.maxMessageBytes
    const offsets: number[] = []
    const letters: PeerRecord[] = []
    const gone: QueueEvent[] = []
    let bytes = 0
    for (const offset of dying(state, MOST_AT_ONCE)) {
      if (bytes >= MOST_BYTES_AT_ONCE) break
      const record = await this.#read(offset)
      const run = state.find(offset)
      if (run?.state !== 'dead-lettering') continue
      if (record === undefined) {
        gone.push({
          type: 'dead',
          first: offset,
          end: offset + 1,
          reason: 'retention',
          atMs: this.#clock.wallMs(),
        })
        continue
      }
      const last = run.history.at(-1)
      const letter = buildDeadLetter(
        record,
        {
          group,
          topic: source.topic,
          partition: source.index,
          offset: record.offset,
          reason: run.reason === '' || run.reason === 'skipped' ? 'rejected' : run.reason,
          deliveries: run.deliveries,
          failures: run.failures,
          firstFailedMs: findFirstFailed(run) ?? this.#clock.wallMs(),
          lastFailedMs: last?.atMs ?? this.#clock.wallMs(),
          errors: run.history,
          memberId: last?.memberId ?? '',
        },
        { copyPayload: config.dlqCopyPayload, maxBytes },
      )
      offsets.push(offset)
      letters.push({ ...letter, timestampMs: undefined })
      bytes += (letter.key?.length ?? 0) + (letter.value?.length ?? 0)
    }
    if (letters.length > 0) {
      const mark = this.#peer.mark(deadLetterTopic, {
        partition: source.index % topic.partitions.length,
      })
      await this.#queue.commit([{ type: 'marked', mark }])
      await this.#peer.append(mark, letters)
    }
    const events = [...gone]
    for (const offset of offsets) {
      const run = state.find(offset)
      if (run?.state === 'dead-lettering') events.push(this.#deadEvent(offset, run))
    }
    await this.#queue.commit(events)
  }

  #deadEvent(offset: number, run: Run): QueueEvent {
    return {
      type: 'dead',
      first: offset,
      end: offset + 1,
      reason: run.reason === '' ? 'rejected' : run.reason,
      atMs: this.#clock.wallMs(),
    }
  }
}

/** Of many failures only the last are kept: then the first delivery is the nearest that is known of the first. */
function findFirstFailed({ failures, history, firstDeliveredMs }: Run): number | undefined {
  const isKept = failures <= history.length || firstDeliveredMs === 0
  return isKept ? history[0]?.atMs : firstDeliveredMs
}

/** The first of the dying records. */
function dying(state: QueueState, most: number): number[] {
  const offsets: number[] = []
  for (const run of state.runs) {
    if (run.state !== 'dead-lettering') continue
    for (let offset = run.first; offset < run.end; offset++) {
      if (offsets.length >= most) return offsets
      offsets.push(offset)
    }
  }
  return offsets
}
