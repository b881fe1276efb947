import { type CancelTimer, sleep } from '../common/clock.ts'
import type { Offset } from '../common/offset.ts'
import { toOffset } from '../common/offset.ts'
import { SECOND_MS } from '../common/units.ts'
import type { LogBatch } from './batch.ts'
import type { Topic } from './codecs.ts'
import type { Connection } from './connection.ts'
import { type CommitMode, hasMovedOn, OffsetCommitter } from './consumer-commits.ts'
import type {
  OffsetResetEvent,
  PartitionLag,
  PartitionsListener,
  TopicPartition,
} from './consumer-api.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import type {
  GroupSession,
  SessionAssignment,
  SessionOptions,
  SessionOwner,
  SessionPartition,
} from './group-session.ts'
import { findOffsets } from './offset-lookup.ts'
import { OwnedPartition } from './owned-partition.ts'
import { type FetchOwner, type PartitionFetch, PartitionFetcher } from './partition-fetcher.ts'
import type { ParsedPosition } from './position.ts'
import { Backoff } from './retry.ts'

/** How long a consumer that is to end waits for a share of the partitions: others may be giving them up for it. */
const EMPTY_PATIENCE_MS: number = 3 * SECOND_MS

/** What a consumer needs of a {@link GroupSession}. */
export type ConsumerSession = Pick<
  GroupSession,
  'memberId' | 'isAlive' | 'start' | 'commit' | 'confirm' | 'leave' | 'close'
>

export type SessionFactory = (options: SessionOptions, owner: SessionOwner) => ConsumerSession

export interface MembershipOptions<V, K> {
  readonly session: SessionOptions
  /** The handle to read a topic with. */
  readonly findTopic: (name: string) => Topic<V, K>
  readonly from: ParsedPosition | 'none'
  readonly onLostOffset: ParsedPosition | 'none'
  readonly commit: CommitMode
  readonly commitIntervalMs: number
  readonly follow: boolean
  readonly prefetchBytes: number
}

/** A batch to be worked on. */
export interface Delivery<V, K> {
  readonly owned: OwnedPartition<V, K>
  readonly batch: LogBatch<V, K>
}

interface Listeners {
  readonly assigned: Set<PartitionsListener>
  readonly revoked: Set<PartitionsListener>
  readonly lost: Set<PartitionsListener>
  readonly reset: Set<(reset: OffsetResetEvent) => void>
  readonly error: Set<(error: MillraceError) => void>
}

export type PartitionsEvent = 'assigned' | 'revoked' | 'lost'

/**
 * What a consumer owns, and the order of things when that changes. The session says what is to be owned; the fetcher brings the records of it; who delivers
 * them (an iterator, a run) takes batches by {@link shift} and says what is finished.
 *
 * Assignments are carried out one after the other, of those that came meanwhile only the newest: stop delivering what goes, wait for what is in hand, 'revoked',
 * commit, drop, confirm; then 'assigned' for what comes, and fetch. What stays is not touched. When the session is lost all of it is dropped at once, and
 * whatever was waiting finds itself in an earlier life (`#life`).
 */
export class Membership<V, K> implements SessionOwner, FetchOwner<V, K> {
  readonly #connection: Connection
  readonly #options: MembershipOptions<V, K>
  readonly #session: ConsumerSession
  readonly #fetcher: PartitionFetcher<V, K>
  readonly #commits: OffsetCommitter
  readonly #listeners: Listeners = {
    assigned: new Set(),
    revoked: new Set(),
    lost: new Set(),
    reset: new Set(),
    error: new Set(),
  }
  readonly #owned: Map<string, Map<number, OwnedPartition<V, K>>> = new Map()
  readonly #byFetch: Map<PartitionFetch<V, K>, OwnedPartition<V, K>> = new Map()
  /** Committed offsets of what has been given up and not confirmed: nobody else can have had it, so these are newer than what an assignment says. */
  readonly #givenUp: Map<string, number | undefined> = new Map()
  #target: SessionAssignment | undefined
  #life = 0
  #isStarted = false
  #isStopping = false
  #isSettled = false
  #isPatient = true
  #hasGivenUp = false
  /** Set when partitions were lost that the program has not heard of: its next commit of all that is finished cannot keep its word. */
  #lostReason: MillraceError | undefined
  #carrying: Promise<void> | undefined
  #closing: Promise<void> | undefined
  readonly #abandoned: Gate = createGate()
  #failure: { readonly error: unknown } | undefined
  #cancelPatience: CancelTimer | undefined
  #onChange: () => void = () => undefined

  constructor(
    connection: Connection,
    options: MembershipOptions<V, K>,
    createSession: SessionFactory,
  ) {
    this.#connection = connection
    this.#options = options
    this.#session = createSession(options.session, this)
    const { follow, prefetchBytes } = options
    const what = `for group ${options.session.group}`
    this.#fetcher = new PartitionFetcher<V, K>(
      connection,
      { follow, prefetchBytes, patienceMs: undefined, what },
      this,
    )
    this.#commits = new OffsetCommitter({
      clock: connection.clock,
      random: connection.random,
      mode: options.commit,
      intervalMs: options.commitIntervalMs,
      send: (offsets) => this.#session.commit(offsets),
      report: (error) => this.#report(error),
    })
  }

  get group(): string {
    return this.#options.session.group
  }

  get memberId(): string {
    return this.#session.memberId
  }

  get prefetchBytes(): number {
    return this.#options.prefetchBytes
  }

  /** What has ended the consumer, if it was not its program. */
  get failure(): { readonly error: unknown } | undefined {
    return this.#failure
  }

  /** Closing or failed: nothing is delivered any more. */
  get isStopping(): boolean {
    return this.#isStopping
  }

  /** True when closing did not wait for what is in hand to the end. */
  get hasGivenUp(): boolean {
    return this.#hasGivenUp
  }

  /** Nothing is delivered any more: closing, failed, or read to the end. Who delivers has to {@link close} then. */
  get isOver(): boolean {
    return this.#isStopping || this.#isAtEnd()
  }

  /** Joins the group. `onChange` is called when {@link shift} may have more, and when it is over. */
  start(onChange: () => void): void {
    this.#onChange = onChange
    if (this.#isStarted || this.#isStopping) return
    this.#isStarted = true
    this.#fetcher.open()
    this.#session.start()
  }

  on(
    event: PartitionsEvent | 'reset' | 'error',
    listener: (argument: never) => Promise<void> | void,
  ): () => void {
    // The overloads of Consumer.on say which listener goes with which event.
    const listeners = this.#listeners[event] as Set<typeof listener>
    listeners.add(listener)
    return () => listeners.delete(listener)
  }

  /** Of a topic and partition, if it is owned. */
  find(topic: string, partition: number): OwnedPartition<V, K> | undefined {
    return this.#owned.get(topic)?.get(partition)
  }

  *all(): IterableIterator<OwnedPartition<V, K>> {
    for (const partitions of this.#owned.values()) yield* partitions.values()
  }

  // ── delivery ────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * The next batch to be worked on, if one is here.
   * @throws MillraceError CORRUPT_BATCH
   */
  shift(): Delivery<V, K> | undefined {
    if (this.#isStopping) return undefined
    // A process that had been stopped reads what waited in its sockets before any timer runs: what came is somebody else's by now.
    this.checkAlive()
    for (;;) {
      const fetched = this.#fetcher.shift()
      if (fetched === undefined) break
      const owned = this.#byFetch.get(fetched.fetch)
      if (owned?.state !== 'owned') continue
      owned.noteEpoch(fetched.batch)
      return { owned, batch: fetched.batch }
    }
    if (this.#fetcher.takePassedGap()) this.#passGaps()
    return undefined
  }

  /** More of it is finished. */
  finished(owned: OwnedPartition<V, K>): void {
    if (owned.state !== 'gone') this.#commits.finished(owned)
  }

  /** No more batches of it until {@link release}; those of others come. */
  hold(owned: OwnedPartition<V, K>): void {
    owned.isBusy = true
    this.#updateHold(owned)
  }

  release(owned: OwnedPartition<V, K>): void {
    owned.isBusy = false
    this.#updateHold(owned)
  }

  /** What has been taken and not handed out is fetched again when it is its turn. */
  rewind(owned: OwnedPartition<V, K>): void {
    owned.hasOpenBatch = false
    if (owned.fetch !== undefined) {
      this.#fetcher.seek(owned.fetch, owned.tracker.position, false)
    }
  }

  /** After a time in which nothing else could run: whether the session is still ours is looked at before more is handed out. */
  checkAlive(): void {
    // Asking it is enough: it calls `lost` when its time has passed.
    if (this.#isStarted && !this.#isStopping) void this.#session.isAlive
  }

  /** Only the first counts. What is in hand may finish; then the consumer has to be closed. */
  fail(error: unknown): void {
    this.#failure ??= { error }
    this.#stopDelivery()
  }

  /** Handlers of all partitions see their signal aborted. */
  abortAll(reason: MillraceError): void {
    for (const owned of this.all()) owned.abort(reason)
  }

  // ── what programs ask for ───────────────────────────────────────────────────────────────────────────────────

  setPaused(partitions: readonly TopicPartition[] | undefined, isPaused: boolean): void {
    const chosen = partitions === undefined ? this.all() : partitions.map((name) => this.#get(name))
    for (const owned of chosen) {
      owned.isPaused = isPaused
      this.#updateHold(owned)
    }
    this.#onChange()
  }

  async seek(position: ParsedPosition, name: TopicPartition | undefined): Promise<void> {
    const chosen = name === undefined ? [...this.all()] : [this.#get(name)]
    const byTopic = groupByTopic(chosen)
    const found = await Promise.all(
      byTopic.map(async ([topic, partitions]) => {
        const offsets = await this.#lookUp(topic, partitions, position)
        if (position.kind === 'offset') await this.#checkRange(topic, partitions, position.offset)
        return offsets
      }),
    )
    for (const [index, [, partitions]] of byTopic.entries()) {
      for (const owned of partitions) {
        const offset = found[index]?.get(owned.partition)
        if (offset !== undefined && owned.state !== 'gone') this.#goTo(owned, offset, position)
      }
    }
  }

  /** To what is committed; partitions with nothing committed stay where they are. */
  seekToCommitted(name: TopicPartition | undefined): void {
    const chosen = name === undefined ? [...this.all()] : [this.#get(name)]
    for (const owned of chosen) {
      if (owned.committed !== undefined) {
        this.#goTo(owned, owned.committed, { kind: 'offset', offset: toOffset(owned.committed) })
      }
    }
  }

  async commit(
    at: (TopicPartition & { readonly offset: Offset | number }) | undefined,
  ): Promise<void> {
    if (this.#isStarted && !this.#closedCommits()) void this.#session.isAlive
    if (this.#closedCommits()) throw this.#closedError()
    if (at === undefined) {
      const lostReason = this.#lostReason
      this.#lostReason = undefined
      if (lostReason !== undefined) throw lostReason
      await this.#commits.commitFinished(this.all())
      return
    }
    const owned = this.#get(at)
    owned.tracker.finishTo(at.offset + 1)
    await this.#commits.commitTo(owned, at.offset + 1)
  }

  async lag(): Promise<readonly PartitionLag[]> {
    const byTopic = groupByTopic([...this.all()])
    await Promise.all(
      byTopic.map(async ([topic, partitions]) => {
        const ends = await this.#lookUp(topic, partitions, { kind: 'end' })
        for (const owned of partitions) {
          const end = ends.get(owned.partition)
          if (end !== undefined) owned.highWatermark = Math.max(owned.highWatermark, end)
        }
      }),
    )
    return byTopic.flatMap(([, partitions]) => partitions.map((owned) => toLag(owned)))
  }

  assignment(): readonly TopicPartition[] {
    return [...this.all()].map((owned) => owned.name)
  }

  /**
   * Stops delivery, waits for what is in hand (for `handWaitMs` at most), calls 'revoked', commits, leaves. Never rejects: what ends the consumer is its
   * `failure`, and failures of the last commit are told as those of any other.
   */
  close(handWaitMs?: number): Promise<void> {
    this.#closing ??= Promise.race([this.#close(handWaitMs), this.#abandoned.opened])
    return this.#closing
  }

  /** Ends everything at once: nothing is committed or waited for any more. */
  abandon(reason: MillraceError): void {
    this.#failure ??= { error: reason }
    this.#hasGivenUp = true
    this.#stopDelivery()
    this.#dropAll(reason)
    this.#commits.stop(reason)
    this.#session.close()
    this.#fetcher.stop()
    this.#abandoned.open()
  }

  // ── what the session says ───────────────────────────────────────────────────────────────────────────────────

  assigned(assignment: SessionAssignment): void {
    this.#target = assignment
    this.#isSettled = false
    this.#carryOn()
  }

  lost(reason: MillraceError): void {
    this.#target = undefined
    this.#givenUp.clear()
    this.#isSettled = false
    const names = this.assignment()
    if (names.length > 0) this.#lostReason = reason
    this.#dropAll(reason)
    if (names.length > 0) void this.#tell('lost', names) // Not waited for: they belong to others already.
    this.#onChange()
  }

  failed(error: MillraceError): void {
    const names = this.assignment()
    this.fail(error)
    this.#dropAll(error)
    this.#commits.stop(error)
    if (names.length > 0) void this.#tell('lost', names) // Not waited for: they belong to others already.
    this.#onChange()
  }

  // ── what the fetcher says ───────────────────────────────────────────────────────────────────────────────────

  changed(): void {
    this.#onChange()
  }

  refused(fetch: PartitionFetch<V, K>, error: MillraceError): void {
    const owned = this.#byFetch.get(fetch)
    if (owned === undefined || this.#isStopping) return
    switch (error.code) {
      case 'OFFSET_OUT_OF_RANGE':
        this.#reset(owned, error)
        return
      case 'UNKNOWN_TOPIC':
      case 'UNKNOWN_TOPIC_ID':
      case 'UNKNOWN_PARTITION':
        // Deleted: the coordinator is about to take it away. Or not known yet to the one that we asked.
        this.#connection.forgetRoute(owned.topic.name)
        this.#fetcher.retry(fetch)
        return
      default:
        this.fail(error)
    }
  }

  // ── rebalances ──────────────────────────────────────────────────────────────────────────────────────────────

  #carryOn(): void {
    if (this.#carrying !== undefined || this.#isStopping) return
    this.#carrying = this.#carryOut()
      .catch((error: unknown) => this.fail(error))
      .finally(() => {
        this.#carrying = undefined
        if (this.#target !== undefined) this.#carryOn()
        this.#onChange()
      })
  }

  async #carryOut(): Promise<void> {
    for (;;) {
      const target = this.#target
      if (target === undefined || this.#isStopping) return
      this.#target = undefined
      const life = this.#life
      const kept = keysOf(target)
      const going = [...this.all()].filter((owned) => !kept.has(keyOf(owned)))
      if (going.length > 0) {
        await this.#giveUp(going)
        if (life !== this.#life) continue
        // A newer one has the say now; its confirmation covers this one.
        if (this.#target !== undefined) continue
      }
      this.#session.confirm(target.number)
      if (life !== this.#life) continue // Confirming may find that the session's time has passed.
      await this.#takeOver(target)
      if (life === this.#life && this.#target === undefined) this.#settle()
    }
  }

  /** The order is the promise: nothing of it is delivered, then nothing is in hand, then listeners, then the commit, then it is gone. */
  async #giveUp(going: readonly OwnedPartition<V, K>[]): Promise<void> {
    const life = this.#life
    for (const owned of going) {
      owned.state = 'revoking'
      this.#stopFetching(owned)
    }
    this.#onChange()
    await Promise.all(going.map((owned) => owned.whenIdle()))
    if (life !== this.#life) return
    await this.#tell(
      'revoked',
      going.map((owned) => owned.name),
    )
    if (life !== this.#life) return
    await this.#commitLast(going)
    if (life !== this.#life) return
    this.#commits.forget(going, this.#notOwned(going[0]?.name))
    for (const owned of going) {
      this.#givenUp.set(keyOf(owned), owned.committed)
      this.#drop(owned)
    }
  }

  /** A failure has been told to 'error' listeners; it does not stop a partition from moving. */
  async #commitLast(going: readonly OwnedPartition<V, K>[]): Promise<void> {
    if (this.#commits.isManual) return
    try {
      await this.#commits.commitFinished(going)
    } catch (error) {
      const failure = toMillraceError(error)
      if (!hasMovedOn(failure)) this.#report(failure)
    }
  }

  async #takeOver(target: SessionAssignment): Promise<void> {
    const life = this.#life
    const coming: { readonly owned: OwnedPartition<V, K>; readonly start: Start }[] = []
    for (const { topic: name, topicId, partitions } of target.topics) {
      const fresh = partitions.filter(({ partition }) => this.find(name, partition) === undefined)
      if (fresh.length === 0) continue
      const topic = this.#options.findTopic(name)
      const starts = await this.#findStarts(topic, topicId, fresh)
      if (life !== this.#life || this.#isStopping) return
      for (const entry of fresh) {
        const start = starts.get(entry.partition)
        if (start === undefined) continue
        const { partition, highWatermark } = entry
        const { committed } = start
        const at = start.offset ?? entry.logStartOffset
        const owned = new OwnedPartition(topic, topicId, partition, at, committed, highWatermark)
        coming.push({ owned, start })
      }
    }
    // Only now, all at once: a loss or an end in between must not tell of partitions as gone that nobody was told of as come.
    for (const { owned } of coming) this.#put(owned)
    this.#givenUp.clear()
    if (coming.length === 0) return
    await this.#tell(
      'assigned',
      coming.map(({ owned }) => owned.name),
    )
    if (life !== this.#life || this.#isStopping) return
    for (const { owned, start } of coming) this.#startFetching(owned, start)
  }

  #startFetching(owned: OwnedPartition<V, K>, start: Start): void {
    const { topic, topicId, partition, tracker } = owned
    // A listener of 'assigned' may have sought it.
    const isSought = owned.mayGoBack
    const from = isSought ? tracker.from : start.offset
    const until = this.#options.follow ? undefined : owned.highWatermark
    owned.state = 'owned'
    // Behind its end there is nothing to read; past it the broker is asked, so that a log that has lost its end is told of.
    const isEmpty = until !== undefined && from === until
    const isPast = until !== undefined && from !== undefined && from > until
    const range = {
      from,
      mayClamp: start.mayClamp && !isSought,
      until: isPast ? undefined : until,
    }
    const fetch = isEmpty
      ? this.#fetcher.addEnded(topic, topicId, partition, range)
      : this.#fetcher.add(topic, topicId, partition, range)
    owned.fetch = fetch
    this.#byFetch.set(fetch, owned)
    this.#updateHold(owned)
    if (start.isPinned && !isSought) this.#commits.pin(owned, tracker.from)
  }

  /** Where to begin in partitions of one topic: at what is committed, else where the policy says. Those that cannot be found are left out. */
  async #findStarts(
    topic: Topic<V, K>,
    topicId: string,
    fresh: readonly SessionPartition[],
  ): Promise<Map<number, Start>> {
    const starts = new Map<number, Start>()
    const without: SessionPartition[] = []
    for (const entry of fresh) {
      const key = `${topicId}/${entry.partition}`
      const committed = this.#givenUp.has(key) ? this.#givenUp.get(key) : entry.committed
      if (committed === undefined) without.push(entry)
      else starts.set(entry.partition, { ...AT_COMMITTED, offset: committed, committed })
    }
    if (without.length === 0) return starts
    const { from } = this.#options
    if (from === 'none') throw this.#nothingCommitted(topic.name, without)
    if (from.kind === 'start') {
      for (const { partition } of without) starts.set(partition, AT_LOG_START)
      return starts
    }
    const offsets =
      from.kind === 'end'
        ? new Map(without.map((entry) => [entry.partition, entry.highWatermark]))
        : await this.#lookUpPatiently(topic.name, without, from)
    for (const { partition } of without) {
      const offset = offsets.get(partition)
      if (offset === undefined) continue
      const mayClamp = from.kind !== 'offset'
      // Committed at once, or what comes until something is finished would be passed over by whoever has it next.
      starts.set(partition, { offset, committed: undefined, mayClamp, isPinned: true })
    }
    return starts
  }

  /** Until it is found, or the partitions are ours no more. Empty when the topic is gone: the coordinator is about to take it away. */
  async #lookUpPatiently(
    topic: string,
    partitions: readonly SessionPartition[],
    from: ParsedPosition,
  ): Promise<ReadonlyMap<number, number>> {
    const life = this.#life
    const backoff = new Backoff(this.#connection.random)
    while (life === this.#life && !this.#isStopping) {
      try {
        const numbers = partitions.map(({ partition }) => partition)
        return await findOffsets(this.#connection, topic, numbers, from)
      } catch (error) {
        const failure = toMillraceError(error)
        if (failure.action === 'refresh' && !failure.retryable) return new Map()
        if (!failure.retryable) throw failure
        await sleep(this.#connection.clock, backoff.nextDelayMs())
      }
    }
    return new Map()
  }

  #nothingCommitted(topic: string, partitions: readonly SessionPartition[]): MillraceError {
    const partition = partitions[0]?.partition ?? 0
    return new MillraceError(
      'OFFSET_OUT_OF_RANGE',
      `group ${this.group} has committed nothing in ${topic}-${partition}, and \`from\` is none: ` +
        'say where to begin (start, end, a time …), or commit an offset first',
      { group: this.group, topic, partition },
    )
  }

  /** The offset to go on at is not in the log. */
  #reset(owned: OwnedPartition<V, K>, error: MillraceError): void {
    const { onLostOffset } = this.#options
    if (onLostOffset === 'none') {
      this.fail(
        new MillraceError(
          'OFFSET_OUT_OF_RANGE',
          `group ${this.group} cannot go on in ${owned.label}: ${error.message}; retention may have been faster, or the log has lost its end. ` +
            'Say by `onLostOffset` where to go on, or reset the group',
          { group: this.group, ...error.details },
          error,
        ),
      )
      return
    }
    const life = this.#life
    this.#findReset(owned, onLostOffset, error, life).catch((failure: unknown) => {
      if (life === this.#life) this.fail(failure)
    })
  }

  async #findReset(
    owned: OwnedPartition<V, K>,
    to: ParsedPosition,
    error: MillraceError,
    life: number,
  ): Promise<void> {
    const { topic, partition, tracker, fetch } = owned
    const [starts, ends, found] = await Promise.all([
      findOffsets(this.#connection, topic.name, [partition], { kind: 'start' }),
      findOffsets(this.#connection, topic.name, [partition], { kind: 'end' }),
      findOffsets(this.#connection, topic.name, [partition], to),
    ])
    const start = starts.get(partition)
    const end = ends.get(partition)
    const wanted = found.get(partition)
    if (life !== this.#life || owned.state !== 'owned' || tracker !== owned.tracker) return
    if (start === undefined || end === undefined || wanted === undefined || !fetch) return
    const from = toOffset(fetch.nextOffset ?? tracker.position)
    const offset = toOffset(Math.min(Math.max(wanted, start), end))
    this.#connection.logger?.warn(
      `group ${this.group} goes on at ${offset} in ${owned.label}: offset ${from} is outside [${start}, ${end}] (${error.message})`,
      { group: this.group, topic: topic.name, partition, from, to: offset },
    )
    const reset: OffsetResetEvent = {
      topic: topic.name,
      partition,
      from,
      to: offset,
      logStartOffset: start,
      highWatermark: end,
    }
    this.#tellAll(this.#listeners.reset, reset)
    owned.restart(offset)
    this.#fetcher.seek(fetch, offset, true)
    this.#commits.pin(owned, offset)
  }

  #settle(): void {
    this.#isSettled = true
    if (this.#options.follow) return
    const isEmpty = this.#owned.size === 0
    this.#isPatient = isEmpty
    this.#cancelPatience?.()
    this.#cancelPatience = undefined
    if (!isEmpty) return
    this.#cancelPatience = this.#connection.clock.schedule(EMPTY_PATIENCE_MS, () => {
      this.#isPatient = false
      this.#onChange()
    })
  }

  #isAtEnd(): boolean {
    return !this.#options.follow && this.#isSettled && !this.#isPatient && this.#fetcher.isFinished
  }

  // ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────

  #stopDelivery(): void {
    if (this.#isStopping) return
    this.#isStopping = true
    this.#cancelPatience?.()
    this.#fetcher.close()
    this.#onChange()
  }

  async #close(handWaitMs: number | undefined): Promise<void> {
    this.#stopDelivery()
    await this.#handsEmpty(handWaitMs)
    // Whatever of a rebalance is under way comes to its end first.
    if (this.#carrying !== undefined) await this.#carrying
    const life = this.#life
    const owned = [...this.all()]
    if (owned.length > 0) {
      for (const one of owned) one.state = 'revoking'
      await this.#tell('revoked', this.assignment())
      if (life === this.#life) await this.#commitLast(owned)
    }
    if (this.#isStarted) await this.#session.leave()
    this.#session.close()
    const closed = this.#closedError()
    this.#dropAll(closed)
    this.#commits.stop(closed)
    this.#fetcher.stop()
  }

  async #handsEmpty(handWaitMs: number | undefined): Promise<void> {
    const idle = Promise.all([...this.all()].map((owned) => owned.whenIdle()))
    if (handWaitMs === undefined) {
      await idle
      return
    }
    const patience = new AbortController()
    const isLate = await Promise.race([
      idle.then(() => false),
      sleep(this.#connection.clock, handWaitMs, patience.signal).then(() => true),
    ])
    patience.abort()
    if (!isLate) return
    this.#hasGivenUp = true
    // A rebalance that waits for the same would not come to its end either.
    for (const owned of this.all()) owned.letGo()
    this.#connection.logger?.warn(
      `group ${this.group} is left although a record is still being worked on after ${handWaitMs} ms: it is not committed, and will be delivered again. ` +
        'Inside a loop over a consumer use `break` rather than `await close()`',
      { group: this.group },
    )
  }

  #dropAll(reason: MillraceError): void {
    this.#life++
    const all = [...this.all()]
    this.#commits.forget(all, reason)
    for (const owned of all) {
      this.#stopFetching(owned)
      owned.abort(reason)
      this.#drop(owned)
    }
  }

  #drop(owned: OwnedPartition<V, K>): void {
    owned.drop()
    const partitions = this.#owned.get(owned.topic.name)
    partitions?.delete(owned.partition)
    if (partitions?.size === 0) this.#owned.delete(owned.topic.name)
  }

  #put(owned: OwnedPartition<V, K>): void {
    const partitions = this.#owned.get(owned.topic.name)
    if (partitions === undefined) {
      this.#owned.set(owned.topic.name, new Map([[owned.partition, owned]]))
    } else partitions.set(owned.partition, owned)
  }

  #stopFetching(owned: OwnedPartition<V, K>): void {
    const { fetch } = owned
    if (fetch === undefined) return
    this.#byFetch.delete(fetch)
    this.#fetcher.remove(fetch)
  }

  // ── small things ────────────────────────────────────────────────────────────────────────────────────────────

  #updateHold(owned: OwnedPartition<V, K>): void {
    const { fetch } = owned
    if (fetch === undefined) return
    if (owned.isPaused || owned.isBusy) this.#fetcher.hold(fetch)
    else this.#fetcher.release(fetch)
  }

  /** Offsets that hold nothing to hand out are finished as soon as all before them is handed out. */
  #passGaps(): void {
    for (const owned of this.#byFetch.values()) {
      const { fetch, tracker } = owned
      if (fetch === undefined || owned.hasOpenBatch || fetch.position <= tracker.position) continue
      const before = tracker.finished
      tracker.passTo(fetch.position)
      if (tracker.finished > before) this.finished(owned)
    }
  }

  #goTo(owned: OwnedPartition<V, K>, offset: number, position: ParsedPosition): void {
    owned.restart(offset)
    if (owned.fetch !== undefined) {
      this.#fetcher.seek(owned.fetch, offset, position.kind !== 'offset')
    }
  }

  #get(name: TopicPartition): OwnedPartition<V, K> {
    const owned = this.find(name.topic, name.partition)
    if (owned !== undefined) return owned
    throw this.#notOwned(name)
  }

  #notOwned(name: TopicPartition | undefined): MillraceError {
    return new MillraceError(
      'PARTITION_NOT_OWNED',
      `this consumer of group ${this.group} does not own ${name?.topic}-${name?.partition} (now)`,
      { group: this.group, topic: name?.topic, partition: name?.partition },
    )
  }

  #lookUp(
    topic: string,
    partitions: readonly OwnedPartition<V, K>[],
    position: ParsedPosition,
  ): Promise<Map<number, Offset>> {
    const numbers = partitions.map((owned) => owned.partition)
    return findOffsets(this.#connection, topic, numbers, position)
  }

  async #checkRange(
    topic: string,
    partitions: readonly OwnedPartition<V, K>[],
    offset: number,
  ): Promise<void> {
    const [starts, ends] = await Promise.all([
      this.#lookUp(topic, partitions, { kind: 'start' }),
      this.#lookUp(topic, partitions, { kind: 'end' }),
    ])
    for (const { partition, label } of partitions) {
      const start = starts.get(partition) ?? 0
      const end = ends.get(partition) ?? 0
      if (offset >= start && offset <= end) continue
      throw new MillraceError(
        'OFFSET_OUT_OF_RANGE',
        `offset ${offset} is outside [${start}, ${end}] of ${label}`,
        { topic, partition, offset, logStartOffset: start, endOffset: end },
      )
    }
  }

  /** Never rejects: a listener that throws ends the consumer, but not the rebalance. */
  async #tell(event: PartitionsEvent, partitions: readonly TopicPartition[]): Promise<void> {
    for (const listener of this.#listeners[event]) {
      try {
        await listener(partitions)
      } catch (error) {
        this.fail(error)
      }
    }
  }

  #tellAll<T>(listeners: ReadonlySet<(argument: T) => void>, argument: T): void {
    for (const listener of listeners) {
      try {
        listener(argument)
      } catch (error) {
        this.fail(error)
      }
    }
  }

  #report(error: MillraceError): void {
    this.#connection.logger?.warn(`a commit of group ${this.group} failed: ${error.message}`, {
      group: this.group,
      code: error.code,
    })
    this.#tellAll(this.#listeners.error, error)
  }

  #closedCommits(): boolean {
    return this.#closing !== undefined && this.#owned.size === 0
  }

  #closedError(): MillraceError {
    return new MillraceError('CLOSED', `this consumer of group ${this.group} has been closed`, {
      group: this.group,
    })
  }
}

interface Gate {
  readonly opened: Promise<void>
  readonly open: () => void
}

function createGate(): Gate {
  let open = (): void => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { opened, open }
}

interface Start {
  /** Undefined: the log start, wherever that is by then. */
  readonly offset: number | undefined
  readonly committed: number | undefined
  readonly mayClamp: boolean
  readonly isPinned: boolean
}

const AT_COMMITTED = { mayClamp: false, isPinned: false } as const
const AT_LOG_START: Start = {
  offset: undefined,
  committed: undefined,
  mayClamp: true,
  isPinned: false,
}

function keyOf(owned: OwnedPartition<unknown, unknown>): string {
  return `${owned.topicId}/${owned.partition}`
}

function keysOf(target: SessionAssignment): ReadonlySet<string> {
  const keys = new Set<string>()
  for (const { topicId, partitions } of target.topics) {
    for (const { partition } of partitions) keys.add(`${topicId}/${partition}`)
  }
  return keys
}

function groupByTopic<V, K>(
  partitions: readonly OwnedPartition<V, K>[],
): [string, OwnedPartition<V, K>[]][] {
  const groups = new Map<string, OwnedPartition<V, K>[]>()
  for (const owned of partitions) {
    const group = groups.get(owned.topic.name)
    if (group === undefined) groups.set(owned.topic.name, [owned])
    else group.push(owned)
  }
  return [...groups]
}

function toLag(owned: OwnedPartition<unknown, unknown>): PartitionLag {
  const { committed, tracker } = owned
  const highWatermark = Math.max(owned.highWatermark, owned.fetch?.highWatermark ?? 0)
  return {
    ...owned.name,
    committed: committed === undefined ? undefined : toOffset(committed),
    position: toOffset(tracker.position),
    highWatermark: toOffset(highWatermark),
    lag: Math.max(0, highWatermark - tracker.finished),
  }
}
