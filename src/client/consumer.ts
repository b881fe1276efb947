import { checkGroupId, checkTopicName } from '../common/names.ts'
import { MINUTE_MS, SECOND_MS } from '../common/units.ts'
import type { Batch, Producer, ReceivedRecord } from './api.ts'
import type { LogBatch, RecordIterator } from './batch.ts'
import { bytes, type Topic } from './codecs.ts'
import type { Connection } from './connection.ts'
import type {
  BatchContext,
  Consumer,
  ConsumerOptions,
  HandlerContext,
  OffsetResetEvent,
  PartitionLag,
  PartitionsListener,
  RunOptions,
  TopicPartition,
} from './consumer-api.ts'
import {
  type Delivery,
  Membership,
  type MembershipOptions,
  type SessionFactory,
} from './consumer-membership.ts'
import { BatchRun, checkRunOptions, RecordRun } from './consumer-run.ts'
import { Breather } from './breather.ts'
import { DeadLetters } from './dead-letters.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { GroupSession } from './group-session.ts'
import type { OffsetTracker } from './offset-tracker.ts'
import type { OwnedPartition } from './owned-partition.ts'
import { type ParsedPosition, parsePosition, type Position } from './position.ts'
import { checkPrefetchBytes } from './reader.ts'

const DEFAULT_COMMIT_INTERVAL_MS: number = 5 * SECOND_MS
const DEFAULT_REBALANCE_TIMEOUT_MS: number = 5 * MINUTE_MS
/** How long `close()` waits for the loop of an iteration to ask for the next record. It may have been called inside that loop. */
const LOOP_PATIENCE_MS: number = 5 * SECOND_MS
const COMMITTED_WORDS = /^(?:committed|stored)$/i

/** What a consumer reads: topics by their handles, or all whose name a pattern finds. */
export type ConsumerSource<V, K> = Topic<V, K> | readonly Topic<V, K>[] | RegExp

export interface ConsumerParts<V, K> {
  /** Makes the producer of dead letters. */
  readonly createProducer: () => Producer
  readonly onClosed: (consumer: GroupConsumer<V, K>) => void
  /** For tests. */
  readonly createSession?: SessionFactory | undefined
}

/** The batch that an iteration by record is in. */
interface Current<V, K> {
  readonly owned: OwnedPartition<V, K>
  readonly tracker: OffsetTracker
  readonly batch: LogBatch<V, K>
  readonly records: RecordIterator<V, K>
}

/** See {@link Consumer}. It joins its group when records are first asked for. */
export class GroupConsumer<V, K> implements Consumer<V, K> {
  readonly #connection: Connection
  readonly #membership: Membership<V, K>
  readonly #parts: ConsumerParts<V, K>
  readonly #rebalanceTimeoutMs: number
  readonly #breather: Breather
  readonly #signal: AbortSignal | undefined
  // A graceful end may take its time: nobody waits for it in here.
  readonly #abort = (): void => void this.#end(undefined)
  #isTaken = false
  #isIterating = false
  #current: Current<V, K> | undefined
  /** What the program has, until it asks for the next: three fields rather than an object for each record. */
  #handOwned: OwnedPartition<V, K> | undefined
  #handTracker: OffsetTracker | undefined
  #handOffset = 0
  #wake: (() => void) | undefined
  #ending: Promise<void> | undefined

  /** @throws MillraceError INVALID_GROUP_ID, INVALID_TOPIC_NAME, INVALID_POSITION, INVALID_REQUEST that names the option */
  constructor(
    connection: Connection,
    source: ConsumerSource<V, K>,
    options: ConsumerOptions,
    parts: ConsumerParts<V, K>,
  ) {
    this.#connection = connection
    this.#parts = parts
    const membership = toMembershipOptions(connection, source, options)
    const createSession: SessionFactory =
      parts.createSession ?? ((session, owner) => new GroupSession(connection, session, owner))
    this.#membership = new Membership(connection, membership, createSession)
    this.#rebalanceTimeoutMs = options.rebalanceTimeoutMs ?? DEFAULT_REBALANCE_TIMEOUT_MS
    this.#breather = new Breather(connection.clock)
    this.#signal = options.signal
    if (options.signal?.aborted === true) this.#abort()
    else options.signal?.addEventListener('abort', this.#abort, { once: true })
  }

  // ── iteration ───────────────────────────────────────────────────────────────────────────────────────────────

  [Symbol.asyncIterator](): AsyncIterator<ReceivedRecord<V, K>, undefined> {
    this.#takeOnce()
    this.#isIterating = true
    return {
      // Written out here, as in the reader: a call less for each record.
      next: async (): Promise<IteratorResult<ReceivedRecord<V, K>, undefined>> => {
        this.#finishInHand()
        try {
          for (;;) {
            if (this.#breather.isDue()) await this.#breathe()
            const step = this.#stepOfCurrent()
            if (step !== undefined) return step
            const delivery = this.#membership.shift() ?? (await this.#wait())
            if (delivery === undefined) return { done: true, value: undefined }
            const { owned, batch } = delivery
            owned.hasOpenBatch = true
            this.#current = {
              owned,
              tracker: owned.tracker,
              batch,
              records: batch[Symbol.iterator](),
            }
          }
        } catch (error) {
          throw await this.#endWith(error)
        }
      },
      return: () => this.#leaveLoop(),
    }
  }

  batches(): AsyncIterable<Batch<V, K>> {
    this.#takeOnce()
    this.#isIterating = true
    return {
      [Symbol.asyncIterator]: () => ({
        next: () => this.#nextBatch(),
        return: () => this.#leaveLoop(),
      }),
    }
  }

  async #nextBatch(): Promise<IteratorResult<Batch<V, K>, undefined>> {
    this.#finishInHand()
    try {
      if (this.#breather.isDue()) await this.#breathe()
      const delivery = this.#membership.shift() ?? (await this.#wait())
      if (delivery === undefined) return { done: true, value: undefined }
      const { owned, batch } = delivery
      owned.tracker.begin(batch.baseOffset, batch.endOffset)
      this.#take(owned, batch.baseOffset)
      return { done: false, value: batch }
    } catch (error) {
      throw await this.#endWith(error)
    }
  }

  /** The next record of the batch that the iteration is in, if it may be delivered (still). */
  #stepOfCurrent(): IteratorResult<ReceivedRecord<V, K>, undefined> | undefined {
    const current = this.#current
    if (current === undefined) return undefined
    const { owned, tracker, batch, records } = current
    const isCurrent = owned.state === 'owned' && owned.tracker === tracker
    if (!isCurrent || this.#membership.isStopping) {
      this.#current = undefined
      return undefined
    }
    if (owned.isPaused) {
      this.#current = undefined
      this.#membership.rewind(owned)
      return undefined
    }
    const step = records.next()
    if (step.done !== true) {
      const { offset } = step.value
      tracker.begin(offset, offset + 1)
      this.#take(owned, offset)
      return step
    }
    this.#current = undefined
    owned.hasOpenBatch = false
    if (batch.endOffset > tracker.position) {
      tracker.passTo(batch.endOffset)
      this.#membership.finished(owned)
    }
    return undefined
  }

  #take(owned: OwnedPartition<V, K>, offset: number): void {
    owned.take()
    this.#handOwned = owned
    this.#handTracker = owned.tracker
    this.#handOffset = offset
  }

  /** Asking for the next says that the last is finished. */
  #finishInHand(): void {
    const owned = this.#handOwned
    if (owned === undefined) return
    this.#handOwned = undefined
    // Whoever waits for it to be finished goes on after this turn, and finds it finished.
    if (this.#handTracker?.finish(this.#handOffset) === true) this.#membership.finished(owned)
    owned.put()
  }

  async #breathe(): Promise<void> {
    const isLong = this.#breather.look()
    this.#membership.checkAlive()
    if (isLong) await this.#breather.breathe()
  }

  async #wait(): Promise<Delivery<V, K> | undefined> {
    const membership = this.#membership
    membership.start(() => {
      const wake = this.#wake
      this.#wake = undefined
      wake?.()
    })
    for (;;) {
      const delivery = membership.shift()
      if (delivery !== undefined) return delivery
      if (membership.isOver) {
        await this.#end(undefined)
        if (membership.failure !== undefined) throw membership.failure.error
        return undefined
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  /** By `break`, or by a throw in the loop: the record in hand is not finished. */
  async #leaveLoop(): Promise<IteratorReturnResult<undefined>> {
    this.#handOwned?.put()
    this.#handOwned = undefined
    await this.#end(undefined)
    return { done: true, value: undefined }
  }

  async #endWith(error: unknown): Promise<unknown> {
    await this.#end(undefined)
    return this.#membership.failure?.error ?? toMillraceError(error)
  }

  // ── handlers ────────────────────────────────────────────────────────────────────────────────────────────────

  async run(
    handler: (record: ReceivedRecord<V, K>, context: HandlerContext) => Promise<void> | void,
    options: RunOptions = {},
  ): Promise<void> {
    const settings = checkRunOptions(options)
    this.#takeOnce()
    const { onError } = settings
    const deadLetters =
      typeof onError === 'string'
        ? undefined
        : new DeadLetters(onError.deadLetter, this.#membership, this.#parts.createProducer)
    try {
      await this.#runToEnd(
        new RecordRun(this.#connection, this.#membership, this.#breather, handler, {
          ...settings,
          deadLetters,
        }),
      )
    } finally {
      await deadLetters?.close()
    }
  }

  async runBatches(
    handler: (batch: Batch<V, K>, context: BatchContext) => Promise<void> | void,
    options: { readonly concurrency?: number | undefined } = {},
  ): Promise<void> {
    const { concurrency } = checkRunOptions(options)
    this.#takeOnce()
    await this.#runToEnd(new BatchRun(this.#membership, this.#breather, handler, concurrency))
  }

  async #runToEnd(run: RecordRun<V, K> | BatchRun<V, K>): Promise<void> {
    const membership = this.#membership
    membership.start(() => run.pump())
    run.pump()
    await run.over
    await this.#end(undefined)
    // Handlers of partitions that were lost may go on behind that. They see their signal aborted.
    if (!membership.hasGivenUp) await run.idle()
    if (membership.failure !== undefined) throw membership.failure.error
  }

  // ── what else programs ask for ──────────────────────────────────────────────────────────────────────────────

  async commit(at?: ReceivedRecord<V, K>): Promise<void> {
    await this.#membership.commit(at)
  }

  assignment(): readonly TopicPartition[] {
    return this.#membership.assignment()
  }

  async seek(to: Position, partition?: TopicPartition): Promise<void> {
    if (typeof to === 'string' && COMMITTED_WORDS.test(to.trim())) {
      this.#membership.seekToCommitted(partition)
      return
    }
    await this.#membership.seek(parsePosition(to, this.#connection.clock.wallMs()), partition)
  }

  pause(partitions?: readonly TopicPartition[]): void {
    this.#membership.setPaused(partitions, true)
  }

  resume(partitions?: readonly TopicPartition[]): void {
    this.#membership.setPaused(partitions, false)
  }

  async lag(): Promise<readonly PartitionLag[]> {
    return this.#membership.lag()
  }

  on(event: 'assigned' | 'revoked' | 'lost', listener: PartitionsListener): () => void
  on(event: 'reset', listener: (reset: OffsetResetEvent) => void): () => void
  on(event: 'error', listener: (error: MillraceError) => void): () => void
  on(
    event: 'assigned' | 'revoked' | 'lost' | 'reset' | 'error',
    listener: (argument: never) => Promise<void> | void,
  ): () => void {
    return this.#membership.on(event, listener)
  }

  close(): Promise<void> {
    const patienceMs = this.#rebalanceTimeoutMs
    return this.#end(this.#isIterating ? Math.min(LOOP_PATIENCE_MS, patienceMs) : patienceMs)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** Gives up at once what has not been finished or answered. */
  abandon(reason: MillraceError): void {
    this.#membership.abandon(reason)
  }

  #end(handWaitMs: number | undefined): Promise<void> {
    this.#ending ??= this.#close(handWaitMs)
    return this.#ending
  }

  async #close(handWaitMs: number | undefined): Promise<void> {
    this.#signal?.removeEventListener('abort', this.#abort)
    await this.#membership.close(handWaitMs)
    this.#parts.onClosed(this)
  }

  #takeOnce(): void {
    if (this.#isTaken) {
      throw new MillraceError(
        'INVALID_REQUEST',
        'a consumer can be used once: iterate it, by record or by batch, or run a handler',
      )
    }
    this.#isTaken = true
  }
}

// ── options ───────────────────────────────────────────────────────────────────────────────────────────────────

function toMembershipOptions<V, K>(
  connection: Connection,
  source: ConsumerSource<V, K>,
  options: ConsumerOptions,
): MembershipOptions<V, K> {
  const nowMs = connection.clock.wallMs()
  const parse = (position: Position): ParsedPosition | 'none' =>
    position === 'none' ? 'none' : parsePosition(position, nowMs)
  const { subscription, findTopic } = toSubscription(source)
  check(() => checkGroupId(options.group))
  checkCount('sessionTimeoutMs', options.sessionTimeoutMs)
  checkCount('rebalanceTimeoutMs', options.rebalanceTimeoutMs)
  checkCount('commitIntervalMs', options.commitIntervalMs)
  return {
    session: {
      group: options.group,
      subscription,
      instanceId: options.instanceId ?? '',
      assignor: oneOf('assignor', options.assignor ?? '', ['', 'uniform', 'range']),
      sessionTimeoutMs: options.sessionTimeoutMs ?? 0,
      rebalanceTimeoutMs: options.rebalanceTimeoutMs ?? 0,
      rack: options.rack ?? '',
    },
    findTopic,
    from: parse(options.from ?? 'start'),
    onLostOffset: parse(options.onLostOffset ?? 'none'),
    commit: oneOf('commit', options.commit ?? 'after-each', ['after-each', 'interval', 'manual']),
    commitIntervalMs: options.commitIntervalMs ?? DEFAULT_COMMIT_INTERVAL_MS,
    follow: options.follow ?? true,
    prefetchBytes: checkPrefetchBytes(options.prefetchBytes),
  }
}

interface Source<V, K> {
  readonly subscription: { readonly topics: readonly string[]; readonly pattern: string }
  readonly findTopic: (name: string) => Topic<V, K>
}

function toSubscription<V, K>(source: ConsumerSource<V, K>): Source<V, K> {
  if (source instanceof RegExp) {
    if (source.flags !== '') {
      throw new MillraceError(
        'INVALID_REQUEST',
        `the pattern ${String(source)} has flags, which do not go to the broker: write them into the pattern, as in /(?i)${source.source}/`,
        { field: 'from', actual: source.flags },
      )
    }
    // The overload for patterns says that values and keys are bytes.
    const findTopic = (name: string): Topic<V, K> =>
      ({ name, value: bytes, key: bytes }) as unknown as Topic<V, K>
    return { subscription: { topics: [], pattern: source.source }, findTopic }
  }
  const topics: readonly Topic<V, K>[] = isList(source) ? source : [source]
  const byName = new Map(topics.map((topic) => [topic.name, topic]))
  for (const name of byName.keys()) check(() => checkTopicName(name))
  if (byName.size === 0 || byName.size < topics.length) {
    const why = byName.size === 0 ? 'names no topic' : 'names a topic twice'
    throw new MillraceError('INVALID_REQUEST', `the list of topics to consume ${why}`, {
      field: 'from',
    })
  }
  return {
    subscription: { topics: [...byName.keys()], pattern: '' },
    findTopic: (name) => {
      const topic = byName.get(name)
      if (topic !== undefined) return topic
      throw new MillraceError('INTERNAL_ERROR', `${name} was assigned, which was not asked for`)
    },
  }
}

function isList<V, K>(
  source: Topic<V, K> | readonly Topic<V, K>[],
): source is readonly Topic<V, K>[] {
  return Array.isArray(source)
}

function check(checked: () => void): void {
  try {
    checked()
  } catch (error) {
    throw toMillraceError(error)
  }
}

function checkCount(field: string, value: number | undefined): void {
  if (value === undefined || (Number.isInteger(value) && value >= 1)) return
  throw new MillraceError('INVALID_REQUEST', `${field} is ${value}: it must be 1 or more, in ms`, {
    field,
    actual: value,
  })
}

function oneOf<T extends string>(field: string, value: T, allowed: readonly T[]): T {
  if (allowed.includes(value)) return value
  throw new MillraceError(
    'INVALID_REQUEST',
    `${field} is ${JSON.stringify(value)}: it may be ${allowed.filter((word) => word !== '').join(', ')}`,
    { field, actual: value },
  )
}
