import { Ring } from '../bytes/ring.ts'
import { type CancelTimer, holdProcess } from '../common/clock.ts'
import { toOffset } from '../common/offset.ts'
import { KIB, MIB } from '../common/units.ts'
import type { FetchPartition } from '../gen/types.ts'
import {
  endOfBatch,
  isControl,
  isCrcValid,
  readBaseOffset,
  readEndOffset,
} from '../record/batch-header.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { FetchMessage } from '../wire/fetch-codec.ts'
import type { Batch, ReadOptions, ReceivedRecord, RecordStream } from './api.ts'
import { LogBatch } from './batch.ts'
import { type FetchCall, toCallError } from './broker-channel.ts'
import type { Topic } from './codecs.ts'
import type { Connection } from './connection.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { choosePartitions, findOffsets } from './offset-lookup.ts'
import { type ParsedPosition, parsePosition } from './position.ts'
import { Backoff } from './retry.ts'

const DEFAULT_PREFETCH_BYTES: number = 8 * MIB
const LARGEST_FETCH_BYTES: number = 512 * KIB
const SMALLEST_FETCH_BYTES: number = 64 * KIB
/** A read that must end gives up when nothing has come for so long. One that follows goes on for ever. */
const PATIENCE_MS = 120_000

/** How far the reading of one partition has come. */
interface Progress {
  readonly partition: number
  state: 'idle' | 'fetching' | 'ended'
  /** Where to go on; undefined: at the log start, wherever that is by then. */
  nextOffset: number | undefined
  /** True until the first answer, when the start was said relative to something that may move meanwhile. */
  mayClamp: boolean
  endOffset: number | undefined
  leaderEpoch: number
}

/** A message that waits to be consumed. */
interface Fetched {
  readonly progress: Progress
  readonly bytes: Uint8Array
  /** Where in `bytes` the next batch begins. */
  at: number
  /** Records below have been delivered before, or were not asked for. */
  readonly from: number
  readonly highWatermark: number
}

/** One Fetch call: all idle partitions of one leader. */
interface OpenCall {
  readonly call: FetchCall
  readonly members: readonly Progress[]
}

type Positions = { readonly from: ParsedPosition; readonly until: ParsedPosition | undefined }

export class LogReader<V, K> implements RecordStream<V, K> {
  readonly #connection: Connection
  readonly #topic: Topic<V, K>
  readonly #follow: boolean
  readonly #prefetchBytes: number
  readonly #signal: AbortSignal | undefined
  readonly #onClosed: (reader: LogReader<V, K>) => void
  readonly #started: Promise<void>
  readonly #calls: Set<OpenCall> = new Set()
  readonly #queue: Ring<Fetched> = new Ring()
  readonly #backoff: Backoff
  readonly #abort = (): void => this.#stop()
  #progresses: readonly Progress[] = []
  #topicId = ''
  #queuedBytes = 0
  #isPaused = false
  #isOpened = false
  #isStopped = false
  #isOpening = false
  #isTaken = false
  #failure: MillraceError | undefined
  #wake: (() => void) | undefined
  #cancelRetry: CancelTimer | undefined
  #lastNewsMs = 0

  constructor(
    connection: Connection,
    topic: Topic<V, K>,
    options: ReadOptions,
    onClosed: (reader: LogReader<V, K>) => void,
  ) {
    this.#connection = connection
    this.#topic = topic
    this.#follow = options.follow ?? options.until === undefined
    this.#prefetchBytes = options.prefetchBytes ?? DEFAULT_PREFETCH_BYTES
    this.#signal = options.signal
    this.#onClosed = onClosed
    this.#backoff = new Backoff(connection.random)
    if (!(this.#prefetchBytes >= 1)) {
      throw new MillraceError(
        'INVALID_REQUEST',
        `prefetchBytes is ${this.#prefetchBytes}: it must be at least 1`,
        { field: 'prefetchBytes', actual: this.#prefetchBytes },
      )
    }
    const nowMs = connection.clock.wallMs()
    const from = parsePosition(options.from ?? 'start', nowMs)
    const until = options.until === undefined ? undefined : parsePosition(options.until, nowMs)
    if (options.signal?.aborted === true) this.#isStopped = true
    else options.signal?.addEventListener('abort', this.#abort, { once: true })
    this.#started = this.#isStopped
      ? Promise.resolve()
      : this.#start({ from, until }, options.partitions)
    this.#started.catch((error: unknown) => this.#fail(toMillraceError(error)))
  }

  batches(): AsyncIterable<Batch<V, K>> {
    this.#takeOnce()
    return {
      [Symbol.asyncIterator]: () => ({
        next: async (): Promise<IteratorResult<Batch<V, K>, undefined>> => {
          const batch = this.#shiftBatch() ?? (await this.#waitBatch())
          return batch === undefined
            ? { done: true, value: undefined }
            : { done: false, value: batch }
        },
        return: async (): Promise<IteratorResult<Batch<V, K>, undefined>> => {
          await this.close()
          return { done: true, value: undefined }
        },
      }),
    }
  }

  [Symbol.asyncIterator](): AsyncIterator<ReceivedRecord<V, K>, undefined> {
    this.#takeOnce()
    let records: Iterator<ReceivedRecord<V, K>, undefined> | undefined
    return {
      next: async (): Promise<IteratorResult<ReceivedRecord<V, K>, undefined>> => {
        try {
          for (;;) {
            // Stops at once when asked to, also in the middle of a batch.
            const record = this.#isStopped ? undefined : records?.next()
            if (record !== undefined && record.done !== true) return record
            const batch = this.#shiftBatch() ?? (await this.#waitBatch())
            if (batch === undefined) return { done: true, value: undefined }
            records = batch[Symbol.iterator]()
          }
        } catch (error) {
          this.#stop()
          throw toMillraceError(error)
        }
      },
      return: async (): Promise<IteratorResult<ReceivedRecord<V, K>, undefined>> => {
        await this.close()
        return { done: true, value: undefined }
      },
    }
  }

  close(): Promise<void> {
    this.#stop()
    return Promise.resolve()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  // ── the consumer's side ─────────────────────────────────────────────────────────────────────────────────────

  #takeOnce(): void {
    if (this.#isTaken) {
      throw new MillraceError('INVALID_REQUEST', 'a stream of records can be iterated once')
    }
    this.#isTaken = true
  }

  /** The next batch that holds anything asked for, if it is here already. */
  #shiftBatch(): LogBatch<V, K> | undefined {
    if (this.#isStopped) return undefined
    for (let first = this.#queue.peek(); first !== undefined; first = this.#queue.peek()) {
      while (first.at < first.bytes.length) {
        const batch = this.#cutBatch(first)
        if (batch !== undefined) return batch
      }
      this.#queue.shift()
      this.#queuedBytes -= first.bytes.length
      if (this.#isPaused && this.#queuedBytes <= this.#prefetchBytes / 2) {
        this.#isPaused = false
        for (const { call } of this.#calls) call.resume()
      }
    }
    return undefined
  }

  #cutBatch(fetched: Fetched): LogBatch<V, K> | undefined {
    const { bytes, at, progress } = fetched
    const end = endOfBatch(bytes, at)
    if (end < 0 || !isCrcValid(bytes, at)) {
      const error = new MillraceError(
        'CORRUPT_BATCH',
        `a batch of ${this.#topic.name}-${progress.partition} near offset ${fetched.from} did not arrive as it was written`,
        { topic: this.#topic.name, partition: progress.partition, offset: fetched.from },
      )
      this.#failure = error
      this.#stop()
      throw error
    }
    fetched.at = end
    const from = Math.max(readBaseOffset(bytes, at), fetched.from)
    const until = Math.min(readEndOffset(bytes, at), progress.endOffset ?? Number.MAX_SAFE_INTEGER)
    if (from >= until || isControl(bytes, at)) return undefined
    return new LogBatch(
      this.#topic,
      progress.partition,
      toOffset(from),
      toOffset(until),
      toOffset(fetched.highWatermark),
      bytes.subarray(at, end),
    )
  }

  async #waitBatch(): Promise<LogBatch<V, K> | undefined> {
    const letProcessEnd = holdProcess()
    try {
      if (!this.#isOpened) {
        this.#isOpened = true
        // A failure to start is kept in #failure, where the loop below finds it.
        await Promise.allSettled([this.#started])
        this.#lastNewsMs = this.#connection.clock.monotonicMs()
        this.#openIdle()
      }
      for (;;) {
        const batch = this.#shiftBatch()
        if (batch !== undefined) return batch
        if (this.#failure !== undefined) {
          this.#stop()
          throw this.#failure
        }
        if (this.#isStopped) return undefined
        if (this.#progresses.every((progress) => progress.state === 'ended')) {
          this.#stop()
          return undefined
        }
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
      }
    } finally {
      letProcessEnd()
    }
  }

  // ── the broker's side ───────────────────────────────────────────────────────────────────────────────────────

  async #start(positions: Positions, wanted: readonly number[] | undefined): Promise<void> {
    const { from, until } = positions
    const connection = this.#connection
    const topic = this.#topic.name
    const route = await connection.getRoute(topic)
    const partitions = choosePartitions(route, wanted)
    const mustEnd = until !== undefined || !this.#follow
    const find = (position: ParsedPosition): Promise<Map<number, number>> =>
      findOffsets(connection, topic, partitions, position)
    const [starts, ends, presentEnds] = await Promise.all([
      // A read that goes on for ever starts at the log start that there is when it gets there.
      from.kind === 'start' && !mustEnd ? undefined : find(from),
      until === undefined ? undefined : find(until),
      this.#follow ? undefined : find({ kind: 'end' }),
    ])
    this.#topicId = route.topicId
    this.#progresses = partitions.map((partition) => {
      const nextOffset = starts?.get(partition)
      const asked = ends?.get(partition)
      const present = presentEnds?.get(partition)
      const endOffset =
        asked === undefined || present === undefined ? (asked ?? present) : Math.min(asked, present)
      const isEmpty = nextOffset !== undefined && endOffset !== undefined && nextOffset >= endOffset
      // An exact offset past the end is a mistake to be told of, not an empty read.
      const isMistake = from.kind === 'offset' && present !== undefined && from.offset > present
      return {
        partition,
        state: isEmpty && !isMistake ? 'ended' : 'idle',
        nextOffset,
        mayClamp: from.kind !== 'offset',
        endOffset: isMistake ? undefined : endOffset,
        leaderEpoch: route.leaderEpochs[partition] ?? 0,
      }
    })
  }

  /** Opens calls for the partitions that have none. */
  #openIdle(): void {
    if (this.#isStopped || this.#failure !== undefined || this.#isOpening) return
    if (!this.#progresses.some((progress) => progress.state === 'idle')) return
    this.#isOpening = true
    this.#openByLeader()
      .finally(() => {
        this.#isOpening = false
      })
      .catch((error: unknown) => this.#retry(toMillraceError(error)))
  }

  async #openByLeader(): Promise<void> {
    const route = await this.#connection.getRoute(this.#topic.name)
    if (this.#isStopped) return
    const byLeader = new Map<number, Progress[]>()
    for (const progress of this.#progresses) {
      if (progress.state !== 'idle') continue
      const leader = route.leaders[progress.partition] ?? -1
      const group = byLeader.get(leader)
      if (group === undefined) byLeader.set(leader, [progress])
      else group.push(progress)
    }
    for (const [leader, members] of byLeader) this.#openCall(leader, members)
  }

  #openCall(leader: number, members: readonly Progress[]): void {
    const channel = this.#connection.leader(leader)
    const call = channel.fetch({
      partitions: members.map((progress) => this.#toRequest(progress)),
      follow: this.#follow,
      maxBytes: Math.min(LARGEST_FETCH_BYTES, Math.max(SMALLEST_FETCH_BYTES, this.#prefetchBytes)),
      plainRecords: false,
      maxWaitMs: 0,
      minBytes: 0,
    })
    const open: OpenCall = { call, members }
    this.#calls.add(open)
    for (const progress of members) progress.state = 'fetching'
    // Events of a call that has been given up must not touch its successor.
    call.on('data', (message: FetchMessage) => {
      if (this.#calls.has(open)) this.#take(open, message)
    })
    call.on('error', (error: Error) => {
      if (this.#calls.has(open)) this.#broke(open, toCallError(error, channel.address))
    })
    call.on('end', () => {
      if (!this.#calls.has(open)) return
      const address = channel.address
      this.#broke(
        open,
        new MillraceError('UNREACHABLE', `${address} ended the stream`, { address }),
      )
    })
    if (this.#isPaused) call.pause()
  }

  #toRequest(progress: Progress): FetchPartition {
    const { partition, nextOffset, endOffset, mayClamp, leaderEpoch } = progress
    return {
      topic: this.#topic.name,
      partition,
      startAt: nextOffset === undefined ? 'START_AT_EARLIEST' : 'START_AT_OFFSET',
      offset: nextOffset ?? 0,
      timestampMs: 0,
      ...(endOffset === undefined ? {} : { endOffset }),
      clamp: mayClamp && nextOffset !== undefined,
      topicId: this.#topicId,
      leaderEpoch,
    }
  }

  #take(open: OpenCall, message: FetchMessage): void {
    const progress = open.members[message.index]
    if (progress === undefined || progress.state !== 'fetching') return
    this.#lastNewsMs = this.#connection.clock.monotonicMs()
    if (message.error !== undefined) {
      const error = toMillraceError(toBrokerErrorFromDetail(message.error))
      progress.state = 'idle'
      if (error.retryable) this.#retry(error)
      else this.#fail(error)
      return
    }
    this.#backoff.reset()
    if (message.skippedTo > message.skippedFrom) {
      this.#connection.logger?.warn(
        `offsets [${message.skippedFrom}, ${message.skippedTo}) of ${this.#topic.name}-${progress.partition} are damaged and were passed over`,
        { topic: this.#topic.name, partition: progress.partition },
      )
    }
    if (message.batches !== undefined) {
      this.#queue.push({
        progress,
        bytes: message.batches,
        at: 0,
        // From the log start on, wherever that is: it may lie inside the first batch.
        from: progress.nextOffset ?? message.logStartOffset,
        highWatermark: message.highWatermark,
      })
      this.#queuedBytes += message.batches.length
      if (this.#queuedBytes >= this.#prefetchBytes && !this.#isPaused) {
        this.#isPaused = true
        for (const { call } of this.#calls) call.pause()
      }
    }
    progress.nextOffset = message.nextOffset
    progress.mayClamp = false
    if (message.leaderEpoch > 0) progress.leaderEpoch = message.leaderEpoch
    if (message.end) progress.state = 'ended'
    this.#notify()
  }

  #broke(open: OpenCall, error: MillraceError): void {
    this.#drop(open)
    const left = open.members.filter((progress) => progress.state === 'fetching')
    for (const progress of left) progress.state = 'idle'
    if (left.length === 0) this.#notify()
    else if (error.retryable) this.#retry(error)
    else this.#fail(error)
  }

  #drop(open: OpenCall): void {
    this.#calls.delete(open)
    open.call.on('error', () => undefined) // A second error of a dead call says nothing new, but unheard it would end the process.
    open.call.cancel()
  }

  #retry(error: MillraceError): void {
    if (this.#isStopped) return
    const clock = this.#connection.clock
    if (!error.retryable) {
      this.#fail(error)
      return
    }
    if (!this.#follow && clock.monotonicMs() - this.#lastNewsMs > PATIENCE_MS) {
      this.#fail(error)
      return
    }
    if (error.code === 'NOT_LEADER') this.#connection.forgetRoute(this.#topic.name)
    this.#connection.logger?.warn(`reading ${this.#topic.name} was interrupted: ${error.message}`)
    this.#cancelRetry ??= clock.schedule(this.#backoff.nextDelayMs(), () => {
      this.#cancelRetry = undefined
      this.#openIdle()
    })
  }

  /** The consumer sees the error after all that came before it. */
  #fail(error: MillraceError): void {
    this.#failure ??= error
    for (const open of this.#calls) this.#drop(open)
    this.#notify()
  }

  #stop(): void {
    if (this.#isStopped) return
    this.#isStopped = true
    this.#signal?.removeEventListener('abort', this.#abort)
    this.#cancelRetry?.()
    this.#cancelRetry = undefined
    for (const open of this.#calls) this.#drop(open)
    this.#queue.clear()
    this.#onClosed(this)
    this.#notify()
  }

  #notify(): void {
    const wake = this.#wake
    this.#wake = undefined
    wake?.()
  }
}
