import { holdProcess } from '../common/clock.ts'
import type { Batch, ReadOptions, ReceivedRecord, RecordStream } from './api.ts'
import type { LogBatch } from './batch.ts'
import type { Topic } from './codecs.ts'
import type { Connection } from './connection.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { choosePartitions, findOffsets } from './offset-lookup.ts'
import {
  DEFAULT_PREFETCH_BYTES,
  type FetchOwner,
  type PartitionFetch,
  PartitionFetcher,
} from './partition-fetcher.ts'
import { type ParsedPosition, parsePosition } from './position.ts'

/** A read that must end gives up when nothing has come for so long. One that follows goes on for ever. */
const PATIENCE_MS = 120_000

type Positions = { readonly from: ParsedPosition; readonly until: ParsedPosition | undefined }

export class LogReader<V, K> implements RecordStream<V, K>, FetchOwner<V, K> {
  readonly #connection: Connection
  readonly #topic: Topic<V, K>
  readonly #follow: boolean
  readonly #fetcher: PartitionFetcher<V, K>
  readonly #signal: AbortSignal | undefined
  readonly #onClosed: (reader: LogReader<V, K>) => void
  readonly #started: Promise<void>
  readonly #abort = (): void => this.#stop()
  #isOpened = false
  #isStopped = false
  #isTaken = false
  #failure: MillraceError | undefined
  #wake: (() => void) | undefined

  constructor(
    connection: Connection,
    topic: Topic<V, K>,
    options: ReadOptions,
    onClosed: (reader: LogReader<V, K>) => void,
  ) {
    this.#connection = connection
    this.#topic = topic
    this.#follow = options.follow ?? options.until === undefined
    const prefetchBytes = checkPrefetchBytes(options.prefetchBytes)
    this.#signal = options.signal
    this.#onClosed = onClosed
    this.#fetcher = new PartitionFetcher<V, K>(
      connection,
      {
        follow: this.#follow,
        prefetchBytes,
        patienceMs: this.#follow ? undefined : PATIENCE_MS,
        what: topic.name,
      },
      this,
    )
    const nowMs = connection.clock.wallMs()
    const from = parsePosition(options.from ?? 'start', nowMs)
    const until = options.until === undefined ? undefined : parsePosition(options.until, nowMs)
    if (options.signal?.aborted === true) this.#isStopped = true
    else options.signal?.addEventListener('abort', this.#abort, { once: true })
    this.#started = this.#isStopped
      ? Promise.resolve()
      : this.#start({ from, until }, options.partitions)
    this.#started.catch((error: unknown) => this.failed(toMillraceError(error)))
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

  #shiftBatch(): LogBatch<V, K> | undefined {
    if (this.#isStopped) return undefined
    try {
      return this.#fetcher.shift()?.batch
    } catch (error) {
      this.#failure = toMillraceError(error)
      this.#stop()
      throw this.#failure
    }
  }

  async #waitBatch(): Promise<LogBatch<V, K> | undefined> {
    const letProcessEnd = holdProcess()
    try {
      if (!this.#isOpened) {
        this.#isOpened = true
        // A failure to start is kept in #failure, where the loop below finds it.
        await Promise.allSettled([this.#started])
        if (this.#failure === undefined && !this.#isStopped) this.#fetcher.open()
      }
      for (;;) {
        const batch = this.#shiftBatch()
        if (batch !== undefined) return batch
        if (this.#failure !== undefined) {
          this.#stop()
          throw this.#failure
        }
        if (this.#isStopped) return undefined
        if (this.#fetcher.isFinished) {
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
    for (const partition of partitions) {
      const nextOffset = starts?.get(partition)
      const asked = ends?.get(partition)
      const present = presentEnds?.get(partition)
      const endOffset =
        asked === undefined || present === undefined ? (asked ?? present) : Math.min(asked, present)
      const isEmpty = nextOffset !== undefined && endOffset !== undefined && nextOffset >= endOffset
      // An exact offset past the end is a mistake to be told of, not an empty read.
      const isMistake = from.kind === 'offset' && present !== undefined && from.offset > present
      if (isEmpty && !isMistake) continue
      this.#fetcher.add(this.#topic, route.topicId, partition, {
        from: nextOffset,
        mayClamp: from.kind !== 'offset',
        until: isMistake ? undefined : endOffset,
      })
    }
  }

  // ── what the fetcher tells ──────────────────────────────────────────────────────────────────────────────────

  changed(): void {
    const wake = this.#wake
    this.#wake = undefined
    wake?.()
  }

  refused(_fetch: PartitionFetch<V, K>, error: MillraceError): void {
    this.failed(error)
  }

  /** The consumer sees the error after all that came before it. */
  failed(error: MillraceError): void {
    this.#failure ??= error
    this.#fetcher.close()
    this.changed()
  }

  #stop(): void {
    if (this.#isStopped) return
    this.#isStopped = true
    this.#signal?.removeEventListener('abort', this.#abort)
    this.#fetcher.stop()
    this.#onClosed(this)
    this.changed()
  }
}

/** @throws MillraceError INVALID_REQUEST */
export function checkPrefetchBytes(prefetchBytes: number = DEFAULT_PREFETCH_BYTES): number {
  if (prefetchBytes >= 1) return prefetchBytes
  throw new MillraceError(
    'INVALID_REQUEST',
    `prefetchBytes is ${prefetchBytes}: it must be at least 1`,
    { field: 'prefetchBytes', actual: prefetchBytes },
  )
}
