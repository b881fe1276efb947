import { Ring } from '../bytes/ring.ts'
import type { CancelTimer } from '../common/clock.ts'
import { toOffset } from '../common/offset.ts'
import { KIB, MIB } from '../common/units.ts'
import type { FetchPartition } from '../gen/types.ts'
import {
  endOfBatch,
  isControl,
  isCrcValid,
  readBaseOffset,
  readEndOffset,
  readRecordCount,
} from '../record/batch-header.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { FetchMessage } from '../wire/fetch-codec.ts'
import { LogBatch } from './batch.ts'
import { type FetchCall, toCallError } from './broker-channel.ts'
import type { Topic } from './codecs.ts'
import type { Connection, TopicRoute } from './connection.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { Backoff } from './retry.ts'

export const DEFAULT_PREFETCH_BYTES: number = 8 * MIB
const LARGEST_FETCH_BYTES: number = 512 * KIB
const SMALLEST_FETCH_BYTES: number = 64 * KIB
/** A call is opened anew without the partitions that nobody wants any more once it has brought so much of them. */
const MOST_WASTED_BYTES: number = MIB
/** With more calls than this to one broker, they are opened anew as one. */
const MOST_CALLS = 8
/** The broker takes up to 10 000. */
const MOST_PARTITIONS_PER_CALL = 5_000

/** A message that waits to be consumed. */
interface Fetched {
  readonly bytes: Uint8Array
  /** Where in `bytes` the next batch begins. */
  at: number
  /** Records below have been delivered before, or were not asked for. */
  readonly from: number
  /** Where reading goes on behind it. */
  readonly nextOffset: number
  readonly highWatermark: number
}

/** One Fetch call: partitions of one leader. */
interface OpenCall {
  readonly call: FetchCall
  readonly leader: number
  /** By their index in the request. Those whose `call` is another one by now are not wanted from this one. */
  readonly members: readonly PartitionFetch<unknown, unknown>[]
  /** Members that still want it. */
  wanted: number
  wastedBytes: number
}

/** Where to read a partition. */
export interface FetchRange {
  /** Undefined: at the log start, wherever that is by then. */
  readonly from: number | undefined
  /** True when `from` was said relative to something that may move meanwhile: brought into range rather than refused. */
  readonly mayClamp: boolean
  /** Where it ends; undefined: never. */
  readonly until: number | undefined
}

/**
 * `idle`: wants a call. `waiting`: wants one after a while. `fetching`: has one. `detached`: wants none for now, since what it has brought is not
 * being taken. `ended`: at its end. `stopped`: after an error, until it is sought or removed. `removed`: for good.
 */
type FetchState = 'idle' | 'waiting' | 'fetching' | 'detached' | 'ended' | 'stopped' | 'removed'

/** How far the reading of one partition has come. Its fields belong to the {@link PartitionFetcher}; others read them. */
export class PartitionFetch<V, K> {
  readonly topic: Topic<V, K>
  readonly topicId: string
  readonly partition: number
  state: FetchState = 'idle'
  /** Where to go on fetching; undefined: at the log start. */
  nextOffset: number | undefined
  mayClamp: boolean
  endOffset: number | undefined
  leaderEpoch = 0
  /** What lies below has been handed over, or is not there. */
  position: number
  highWatermark = 0
  logStartOffset = 0
  /** Held partitions are fetched, but not handed over. */
  isHeld = false
  readonly queue: Ring<Fetched> = new Ring()
  queuedBytes = 0
  /** Whether it stands in the fetcher's row of partitions that have something. */
  isInRow = false
  call: OpenCall | undefined
  backoff: Backoff | undefined
  cancelRetry: CancelTimer | undefined

  constructor(topic: Topic<V, K>, topicId: string, partition: number, range: FetchRange) {
    this.topic = topic
    this.topicId = topicId
    this.partition = partition
    this.nextOffset = range.from
    this.mayClamp = range.mayClamp
    this.endOffset = range.until
    this.position = range.from ?? 0
  }
}

/** A batch and where it comes from. */
export interface FetchedBatch<V, K> {
  readonly fetch: PartitionFetch<V, K>
  readonly batch: LogBatch<V, K>
}

/** Who reads. None of these may throw. */
export interface FetchOwner<V, K> {
  /** Something has come, or ended: {@link PartitionFetcher.shift} may have more to give. */
  changed(): void
  /**
   * One partition cannot be gone on with, and trying again would not help; it is `stopped`. The owner seeks, removes, retries it, or gives up. What came
   * before is still to be handed over.
   */
  refused(fetch: PartitionFetch<V, K>, error: MillraceError): void
  /** Nothing can be gone on with. What came before is still to be handed over. */
  failed(error: MillraceError): void
}

export interface FetcherOptions {
  /** False: partitions end at the end that they had when they were asked for, at the latest. */
  readonly follow: boolean
  readonly prefetchBytes: number
  /** Gives up when nothing has come for so long although something was to come. Undefined: never. */
  readonly patienceMs: number | undefined
  /** For messages: what is being read. */
  readonly what: string
}

/**
 * Keeps Fetch calls open for partitions of any topics, mends what breaks, and hands over batches: partitions take turns, a message each. Partitions may come
 * and go, be sought, held and released, each without disturbing the others: a call brings many, one that goes is filtered out of it, and one that comes
 * gets another call, together with all that come in the same turn. About `prefetchBytes` wait to be taken; then HTTP/2 holds the brokers back. Partitions
 * that are held cannot use that up: what they have brought is let go when others have nothing, and fetched again later.
 */
export class PartitionFetcher<V, K> {
  readonly #connection: Connection
  readonly #options: FetcherOptions
  readonly #owner: FetchOwner<V, K>
  readonly #fetches: Set<PartitionFetch<V, K>> = new Set()
  readonly #idle: Set<PartitionFetch<V, K>> = new Set()
  readonly #calls: Set<OpenCall> = new Set()
  /** Partitions that have something to hand over. */
  readonly #row: Ring<PartitionFetch<V, K>> = new Ring()
  readonly #backoff: Backoff
  #queuedBytes = 0
  /** Partitions that will bring more some time. */
  #live = 0
  #isPaused = false
  #isOpened = false
  #isOpening = false
  #isStopped = false
  #hasPassedGap = false
  #cancelRetry: CancelTimer | undefined
  #lastNewsMs = 0

  constructor(connection: Connection, options: FetcherOptions, owner: FetchOwner<V, K>) {
    this.#connection = connection
    this.#options = options
    this.#owner = owner
    this.#backoff = new Backoff(connection.random)
  }

  /** True when nothing will come any more, unless partitions are added or sought. Held ones are not finished while they have something. */
  get isFinished(): boolean {
    return this.#live === 0 && this.#queuedBytes === 0
  }

  /** True once, after offsets have been passed over that hold no record to hand over: control batches, or what compaction left. */
  takePassedGap(): boolean {
    const has = this.#hasPassedGap
    this.#hasPassedGap = false
    return has
  }

  /** Adds a partition; nothing is asked for before {@link open}. */
  add(
    topic: Topic<V, K>,
    topicId: string,
    partition: number,
    range: FetchRange,
    leaderEpoch = 0,
  ): PartitionFetch<V, K> {
    const fetch = new PartitionFetch(topic, topicId, partition, range)
    fetch.leaderEpoch = leaderEpoch
    this.#fetches.add(fetch)
    this.#idle.add(fetch)
    this.#live++
    if (this.#isOpened) this.#openIdle()
    return fetch
  }

  /** Adds a partition that is at its end already. */
  addEnded(
    topic: Topic<V, K>,
    topicId: string,
    partition: number,
    range: FetchRange,
  ): PartitionFetch<V, K> {
    const fetch = new PartitionFetch(topic, topicId, partition, range)
    fetch.state = 'ended'
    this.#fetches.add(fetch)
    return fetch
  }

  /** Begins to fetch. */
  open(): void {
    this.#isOpened = true
    this.#lastNewsMs = this.#connection.clock.monotonicMs()
    this.#openIdle()
  }

  /** Nothing of it is handed over any more. */
  remove(fetch: PartitionFetch<V, K>): void {
    if (!this.#fetches.delete(fetch)) return
    this.#letGo(fetch)
    this.#setState(fetch, 'removed')
  }

  /** Goes on at `from`; what has been fetched and not handed over is dropped. */
  seek(fetch: PartitionFetch<V, K>, from: number, mayClamp: boolean): void {
    if (!this.#fetches.has(fetch)) return
    this.#letGo(fetch)
    fetch.nextOffset = from
    fetch.position = from
    fetch.mayClamp = mayClamp
    const isEmpty = fetch.endOffset !== undefined && from >= fetch.endOffset
    this.#setState(fetch, isEmpty ? 'ended' : 'idle')
    this.#openIdle()
    this.#owner.changed()
  }

  /** Tries a stopped partition again after a while, longer each time. */
  retry(fetch: PartitionFetch<V, K>): void {
    if (!this.#fetches.has(fetch) || this.#isStopped) return
    fetch.backoff ??= new Backoff(this.#connection.random)
    this.#setState(fetch, 'waiting')
    fetch.cancelRetry?.()
    fetch.cancelRetry = this.#connection.clock.schedule(fetch.backoff.nextDelayMs(), () => {
      fetch.cancelRetry = undefined
      if (fetch.state !== 'waiting') return
      this.#setState(fetch, 'idle')
      this.#openIdle()
    })
  }

  /** Hands nothing over of it until {@link release}. */
  hold(fetch: PartitionFetch<V, K>): void {
    fetch.isHeld = true
  }

  release(fetch: PartitionFetch<V, K>): void {
    if (!fetch.isHeld) return
    fetch.isHeld = false
    if (fetch.state === 'removed') return
    if (fetch.queue.length > 0) this.#putInRow(fetch)
    else this.#reattach(fetch)
  }

  /**
   * The next batch that holds anything asked for, if it is here already.
   * @throws MillraceError CORRUPT_BATCH
   */
  shift(): FetchedBatch<V, K> | undefined {
    for (let fetch = this.#row.peek(); fetch !== undefined; fetch = this.#row.peek()) {
      const first = fetch.isHeld ? undefined : fetch.queue.peek()
      if (first !== undefined) {
        while (first.at < first.bytes.length) {
          const batch = this.#cutBatch(fetch, first)
          if (batch !== undefined) return { fetch, batch }
        }
        this.#dropFirst(fetch, first)
      }
      this.#row.shift()
      fetch.isInRow = false
      if (first === undefined) continue // Held or emptied meanwhile.
      if (fetch.queue.length > 0) this.#putInRow(fetch)
      else this.#reattach(fetch)
    }
    this.#makeRoom()
    return undefined
  }

  /** Ends all calls; nothing is handed over any more. */
  stop(): void {
    if (this.#isStopped) return
    this.close()
    for (const fetch of this.#fetches) fetch.queue.clear()
    this.#fetches.clear()
    this.#row.clear()
    this.#queuedBytes = 0
  }

  /** Ends all calls. What has come may still be taken. */
  close(): void {
    this.#isStopped = true
    this.#cancelRetry?.()
    this.#cancelRetry = undefined
    for (const fetch of this.#fetches) fetch.cancelRetry?.()
    for (const open of this.#calls) this.#drop(open)
    this.#idle.clear()
  }

  // ── what has come ───────────────────────────────────────────────────────────────────────────────────────────

  #cutBatch(fetch: PartitionFetch<V, K>, fetched: Fetched): LogBatch<V, K> | undefined {
    const { bytes, at } = fetched
    const { topic, partition } = fetch
    const end = endOfBatch(bytes, at)
    if (end < 0 || !isCrcValid(bytes, at)) {
      throw new MillraceError(
        'CORRUPT_BATCH',
        `a batch of ${topic.name}-${partition} near offset ${fetched.from} did not arrive as it was written`,
        { topic: topic.name, partition, offset: fetched.from },
      )
    }
    fetched.at = end
    const from = Math.max(readBaseOffset(bytes, at), fetched.from)
    const until = Math.min(readEndOffset(bytes, at), fetch.endOffset ?? Number.MAX_SAFE_INTEGER)
    if (from >= until) return undefined
    fetch.position = until
    if (isControl(bytes, at) || readRecordCount(bytes, at) === 0) {
      this.#hasPassedGap = true
      return undefined
    }
    return new LogBatch(
      topic,
      partition,
      toOffset(from),
      toOffset(until),
      toOffset(fetched.highWatermark),
      bytes.subarray(at, end),
    )
  }

  #dropFirst(fetch: PartitionFetch<V, K>, first: Fetched): void {
    fetch.queue.shift()
    this.#giveBack(fetch, first.bytes.length)
    if (first.nextOffset > fetch.position) {
      fetch.position = first.nextOffset
      this.#hasPassedGap = true
    }
  }

  #giveBack(fetch: PartitionFetch<V, K>, bytes: number): void {
    fetch.queuedBytes -= bytes
    this.#queuedBytes -= bytes
    if (!this.#isPaused || this.#queuedBytes > this.#options.prefetchBytes / 2) return
    this.#isPaused = false
    for (const { call } of this.#calls) call.resume()
  }

  #putInRow(fetch: PartitionFetch<V, K>): void {
    if (fetch.isInRow) return
    fetch.isInRow = true
    this.#row.push(fetch)
  }

  /** Nothing can be handed over, and nothing comes because held partitions have filled the room: theirs has to go, to be fetched again. */
  #makeRoom(): void {
    if (!this.#isPaused) return
    // First what stands behind the first message of each, which would be the next to be wanted; if that is not enough, all.
    for (let keep = 1; keep >= 0 && this.#isPaused; keep--) {
      for (const fetch of this.#fetches) {
        if (fetch.queue.length <= keep) continue
        this.#trim(fetch, keep)
        if (!this.#isPaused) return
      }
    }
  }

  #trim(fetch: PartitionFetch<V, K>, keep: number): void {
    const kept = keep === 0 ? undefined : fetch.queue.peek()
    let bytes = 0
    for (const fetched of fetch.queue) if (fetched !== kept) bytes += fetched.bytes.length
    fetch.queue.clear()
    if (kept !== undefined) fetch.queue.push(kept)
    this.#detach(fetch)
    fetch.nextOffset = kept === undefined ? fetch.position : kept.nextOffset
    fetch.mayClamp = false
    if (fetch.state !== 'stopped') this.#setState(fetch, 'detached')
    this.#giveBack(fetch, bytes)
  }

  /** Fetches on for a partition that had to let go what it had brought. */
  #reattach(fetch: PartitionFetch<V, K>): void {
    if (fetch.state !== 'detached' || fetch.isHeld) return
    this.#setState(fetch, 'idle')
    this.#openIdle()
  }

  #letGo(fetch: PartitionFetch<V, K>): void {
    fetch.cancelRetry?.()
    fetch.cancelRetry = undefined
    this.#detach(fetch)
    fetch.queue.clear()
    this.#giveBack(fetch, fetch.queuedBytes)
  }

  #detach(fetch: PartitionFetch<V, K>): void {
    const open = fetch.call
    if (open === undefined) return
    fetch.call = undefined
    open.wanted--
    if (open.wanted === 0) this.#drop(open)
  }

  #setState(fetch: PartitionFetch<V, K>, state: FetchState): void {
    const wasLive = isLive(fetch.state)
    fetch.state = state
    if (state === 'idle') this.#idle.add(fetch)
    else this.#idle.delete(fetch)
    if (wasLive !== isLive(state)) this.#live += wasLive ? -1 : 1
  }

  // ── the brokers' side ───────────────────────────────────────────────────────────────────────────────────────

  /** Opens calls for the partitions that want one. */
  #openIdle(): void {
    if (!this.#isOpened || this.#isStopped || this.#isOpening || this.#idle.size === 0) return
    this.#isOpening = true
    this.#openAll().catch((error: unknown) => this.#owner.failed(toMillraceError(error)))
  }

  async #openAll(): Promise<void> {
    try {
      await this.#openByLeader()
    } finally {
      this.#isOpening = false
    }
    // What became idle between the last look and here found us still opening.
    this.#openIdle()
  }

  async #openByLeader(): Promise<void> {
    while (this.#idle.size > 0) {
      const routes = await this.#findRoutes()
      if (this.#isStopped) return
      const byLeader = new Map<number, PartitionFetch<V, K>[]>()
      for (const fetch of this.#idle) {
        const route = routes.get(fetch.topic.name)
        if (route === undefined) continue // Came while routes were asked for: next round.
        if (route instanceof MillraceError) {
          this.#refuse(fetch, route)
          continue
        }
        const leader = route.leaders[fetch.partition] ?? -1
        fetch.leaderEpoch = Math.max(fetch.leaderEpoch, route.leaderEpochs[fetch.partition] ?? 0)
        const group = byLeader.get(leader)
        if (group === undefined) byLeader.set(leader, [fetch])
        else group.push(fetch)
      }
      for (const [leader, members] of byLeader) this.#openCalls(leader, members)
    }
  }

  /** Who serves the idle partitions, or why that is not known, by topic. */
  async #findRoutes(): Promise<Map<string, TopicRoute | MillraceError>> {
    const highest = new Map<string, number>()
    for (const { topic, partition } of this.#idle) {
      highest.set(topic.name, Math.max(partition, highest.get(topic.name) ?? 0))
    }
    const routes = new Map<string, TopicRoute | MillraceError>()
    await Promise.all(
      [...highest].map(async ([topic, partition]) => {
        try {
          const known = await this.#connection.getRoute(topic)
          // A partition that is not known here has been added since.
          const isKnown = known.leaders[partition] !== undefined
          routes.set(topic, isKnown ? known : await this.#connection.refreshRoute(topic))
        } catch (error) {
          routes.set(topic, toMillraceError(error))
        }
      }),
    )
    return routes
  }

  #openCalls(leader: number, idle: readonly PartitionFetch<V, K>[]): void {
    const members = [...idle]
    const others = [...this.#calls].filter((open) => open.leader === leader)
    if (others.length >= MOST_CALLS) {
      for (const open of others) members.push(...this.#takeBack(open))
    }
    for (let at = 0; at < members.length; at += MOST_PARTITIONS_PER_CALL) {
      this.#openCall(leader, members.slice(at, at + MOST_PARTITIONS_PER_CALL))
    }
  }

  #openCall(leader: number, members: readonly PartitionFetch<V, K>[]): void {
    const channel = this.#connection.leader(leader)
    const { follow, prefetchBytes } = this.#options
    const call = channel.fetch({
      partitions: members.map((fetch) => toRequest(fetch)),
      follow,
      maxBytes: Math.min(LARGEST_FETCH_BYTES, Math.max(SMALLEST_FETCH_BYTES, prefetchBytes)),
      plainRecords: false,
      maxWaitMs: 0,
      minBytes: 0,
    })
    const open: OpenCall = { call, leader, members, wanted: members.length, wastedBytes: 0 }
    this.#calls.add(open)
    for (const fetch of members) {
      this.#setState(fetch, 'fetching')
      fetch.call = open
    }
    // Events of a call that has been given up must not touch its successor.
    call.on('data', (message: FetchMessage) => {
      if (this.#calls.has(open)) this.#take(open, members, message)
    })
    call.on('error', (error: Error) => {
      if (this.#calls.has(open)) this.#broke(open, toCallError(error, channel.address))
    })
    call.on('end', () => {
      if (!this.#calls.has(open)) return
      const { address } = channel
      this.#broke(
        open,
        new MillraceError('UNREACHABLE', `${address} ended the stream`, { address }),
      )
    })
    if (this.#isPaused) call.pause()
  }

  #take(open: OpenCall, members: readonly PartitionFetch<V, K>[], message: FetchMessage): void {
    const fetch = members[message.index]
    if (fetch === undefined || fetch.call !== open) {
      this.#waste(open, message.batches?.length ?? 0)
      return
    }
    this.#lastNewsMs = this.#connection.clock.monotonicMs()
    if (message.error !== undefined) {
      this.#detach(fetch)
      this.#refuse(fetch, toMillraceError(toBrokerErrorFromDetail(message.error)))
      return
    }
    this.#backoff.reset()
    fetch.backoff = undefined
    if (message.skippedTo > message.skippedFrom) {
      this.#connection.logger?.warn(
        `offsets [${message.skippedFrom}, ${message.skippedTo}) of ${fetch.topic.name}-${fetch.partition} are damaged and were passed over`,
        { topic: fetch.topic.name, partition: fetch.partition },
      )
    }
    // From the log start on, wherever that is: it may lie inside the first batch.
    const from = fetch.nextOffset ?? message.logStartOffset
    if (fetch.nextOffset === undefined) fetch.position = from
    fetch.nextOffset = message.nextOffset
    fetch.mayClamp = false
    fetch.highWatermark = message.highWatermark
    fetch.logStartOffset = message.logStartOffset
    if (message.leaderEpoch > 0) fetch.leaderEpoch = message.leaderEpoch
    this.#keep(fetch, from, message)
    if (message.end) {
      fetch.call = undefined
      open.wanted-- // The broker ends the call when all are at their end.
      this.#setState(fetch, 'ended')
    }
    this.#owner.changed()
  }

  #keep(fetch: PartitionFetch<V, K>, from: number, message: FetchMessage): void {
    const { batches } = message
    if (batches === undefined && message.nextOffset <= from) return
    fetch.queue.push({
      bytes: batches ?? NO_BYTES,
      at: 0,
      from,
      nextOffset: message.nextOffset,
      highWatermark: message.highWatermark,
    })
    if (!fetch.isHeld) this.#putInRow(fetch)
    const size = batches?.length ?? 0
    fetch.queuedBytes += size
    this.#queuedBytes += size
    if (this.#queuedBytes >= this.#options.prefetchBytes && !this.#isPaused) {
      this.#isPaused = true
      for (const { call } of this.#calls) call.pause()
    }
  }

  /** What was wanted when the call was opened still comes, until it has come to too much. */
  #waste(open: OpenCall, bytes: number): void {
    open.wastedBytes += bytes
    if (open.wastedBytes < MOST_WASTED_BYTES) return
    for (const fetch of this.#takeBack(open)) this.#setState(fetch, 'idle')
    this.#openIdle()
  }

  /** Ends a call. The partitions that it was still to bring want another one. */
  #takeBack(open: OpenCall): PartitionFetch<V, K>[] {
    this.#drop(open)
    // Only this class opens calls, and only for its own partitions.
    const members = open.members as readonly PartitionFetch<V, K>[]
    const left = members.filter((fetch) => fetch.call === open)
    for (const fetch of left) fetch.call = undefined
    return left
  }

  #broke(open: OpenCall, error: MillraceError): void {
    const left = this.#takeBack(open)
    if (left.length === 0) {
      this.#owner.changed()
      return
    }
    for (const fetch of left) this.#setState(fetch, 'waiting')
    if (!error.retryable) {
      this.#owner.failed(error)
      return
    }
    if (!this.#mayGoOn(error)) return
    for (const name of new Set(left.map((fetch) => fetch.topic.name))) {
      if (error.code === 'NOT_LEADER') this.#connection.forgetRoute(name)
    }
    const text = `reading ${this.#options.what} was interrupted: ${error.message}`
    if (this.#backoff.tries === 0) this.#connection.logger?.warn(text)
    else this.#connection.logger?.debug(text)
    this.#cancelRetry ??= this.#connection.clock.schedule(this.#backoff.nextDelayMs(), () => {
      this.#cancelRetry = undefined
      for (const fetch of this.#fetches) {
        if (fetch.state === 'waiting' && fetch.cancelRetry === undefined) {
          this.#setState(fetch, 'idle')
        }
      }
      this.#openIdle()
    })
  }

  /** One partition was refused, or nobody knows where it is. */
  #refuse(fetch: PartitionFetch<V, K>, error: MillraceError): void {
    this.#setState(fetch, 'stopped')
    if (!error.retryable) {
      this.#owner.refused(fetch, error)
      return
    }
    if (!this.#mayGoOn(error)) return
    if (error.code === 'NOT_LEADER') this.#connection.forgetRoute(fetch.topic.name)
    const text = `reading ${fetch.topic.name}-${fetch.partition} was interrupted: ${error.message}`
    if (fetch.backoff === undefined) this.#connection.logger?.warn(text)
    else this.#connection.logger?.debug(text)
    this.retry(fetch)
  }

  #mayGoOn(error: MillraceError): boolean {
    const { patienceMs } = this.#options
    if (patienceMs === undefined) return true
    if (this.#connection.clock.monotonicMs() - this.#lastNewsMs <= patienceMs) return true
    this.#owner.failed(error)
    return false
  }

  #drop(open: OpenCall): void {
    this.#calls.delete(open)
    open.call.on('error', () => undefined) // A second error of a dead call says nothing new, but unheard it would end the process.
    open.call.cancel()
  }
}

const NO_BYTES: Uint8Array = new Uint8Array(0)

function isLive(state: FetchState): boolean {
  return state !== 'ended' && state !== 'removed'
}

function toRequest(fetch: PartitionFetch<unknown, unknown>): FetchPartition {
  const { topic, topicId, partition, nextOffset, endOffset, mayClamp, leaderEpoch } = fetch
  return {
    topic: topic.name,
    partition,
    startAt: nextOffset === undefined ? 'START_AT_EARLIEST' : 'START_AT_OFFSET',
    offset: nextOffset ?? 0,
    timestampMs: 0,
    ...(endOffset === undefined ? {} : { endOffset }),
    clamp: mayClamp && nextOffset !== undefined,
    topicId,
    leaderEpoch,
  }
}
