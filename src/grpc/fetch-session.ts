import { setMaxListeners } from 'node:events'
import { constants } from 'node:http2'
import type { ServerWritableStream } from '@grpc/grpc-js'
import { Ring } from '../bytes/ring.ts'
import type { CancelTimer } from '../common/clock.ts'
import { invariant, unreachable } from '../common/assert.ts'
import { BrokerError } from '../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../common/offset.ts'
import { KIB, MIB, MINUTE_MS } from '../common/units.ts'
import type { FetchPartition, FetchRequest } from '../gen/types.ts'
import type { FetchResult } from '../log/partition-log.ts'
import { isControl, readBatchBytes } from '../record/batch-header.ts'
import { RecordCursor } from '../record/record-cursor.ts'
import type { Partition } from '../topic/partition.ts'
import { type FetchHead, fetchResponseParts, type RecordMessage } from '../wire/fetch-codec.ts'
import type { WireParts } from '../wire/wire-parts.ts'
import { checkHeaders, type ServiceEnvironment } from './environment.ts'
import { ByteBudget, type ConnectionBudgets, STREAM_UNSENT_BYTES } from './flow-control.ts'
import { MessageWriter } from './message-writer.ts'
import type { SharedReads } from './shared-reads.ts'
import { checkEnum } from './unary.ts'

export type FetchCall = ServerWritableStream<Buffer, Buffer | WireParts>

/** Measured over loopback, two cores, warm: 1.4 GiB/s with 1 MiB, 2.2 with 256 KiB, which the client can take into memory it has had before. */
const DEFAULT_MESSAGE_BYTES: number = 256 * KIB
const MOST_MESSAGE_BYTES: number = 8 * MIB
const LONGEST_WAIT_MS: number = MINUTE_MS
const MOST_PARTITIONS = 10_000
/** A reader that takes nothing for so long is cut off (CONTRACT §5). */
const STALLED_AFTER_MS: number = MINUTE_MS
/** A message counts for more than its bytes: grpc-js and Node keep some for each. */
const MESSAGE_OVERHEAD_BYTES: number = KIB

/** One partition of the request and how far it has come. */
interface Position {
  readonly index: number
  readonly partition: Partition
  next: Offset
  /** Done when `next` gets here; undefined: never. */
  readonly end: Offset | undefined
}

/**
 * One Fetch stream. Partitions that have something to send stand in a queue and take turns, a message each; the others wait for appends.
 * Nothing is read ahead of what the caller takes: with a message on its way that grpc-js has not written, at most STREAM_UNSENT_BYTES and one
 * message more are held for a slow reader.
 */
export class FetchSession {
  readonly #call: FetchCall
  readonly #environment: ServiceEnvironment
  readonly #reads: SharedReads
  readonly #budgets: ConnectionBudgets
  readonly #peer: string
  readonly #unsent = new ByteBudget(STREAM_UNSENT_BYTES)
  readonly #ready = new Ring<Position>()
  readonly #controller = new AbortController()
  #request: FetchRequest
  #maxBytes = DEFAULT_MESSAGE_BYTES
  /** Positions that are not done: ready, being served or waiting. */
  #open = 0
  #wakeUp: (() => void) | undefined
  #cancelStallTimer: CancelTimer | undefined
  #cursor: RecordCursor | undefined
  #finished = false
  readonly #writer: MessageWriter

  constructor(
    call: FetchCall,
    environment: ServiceEnvironment,
    reads: SharedReads,
    request: FetchRequest,
  ) {
    this.#call = call
    this.#environment = environment
    this.#reads = reads
    this.#request = request
    this.#peer = call.getPeer()
    this.#budgets = environment.budgets.enter(this.#peer)
    this.#writer = new MessageWriter(call, environment)
    // One listener for each partition that waits is no leak.
    setMaxListeners(0, this.#controller.signal)
    environment.drain.enter()
  }

  /** Serves the call until its end, whatever it is. Never rejects. */
  async run(): Promise<void> {
    const { drain, errors } = this.#environment
    const stop = this.#stop
    this.#call.on('cancelled', stop)
    this.#call.on('close', () => {
      stop()
      this.#cancelStallTimer?.()
    })
    if (this.#request.follow) drain.signal.addEventListener('abort', stop)
    try {
      drain.check()
      checkHeaders(this.#call.metadata)
      this.#checkRequest()
      await this.#openPositions()
      await this.#serve()
      if (!this.#call.cancelled && this.#open > 0) drain.check()
      this.#call.end()
    } catch (error) {
      if (!this.#call.cancelled) this.#call.emit('error', errors.toStatus(error, 'Fetch'))
    } finally {
      this.#finished = true
      this.#controller.abort()
      drain.signal.removeEventListener('abort', stop)
      // grpc-js forgets the callbacks of what it has not sent when a call is cancelled.
      this.#budgets.unsent.give(this.#unsent.usedBytes)
      if (this.#unsent.usedBytes > 0 && !this.#call.cancelled) this.#watchForStall()
      this.#environment.budgets.leave(this.#peer)
      drain.leave()
    }
  }

  readonly #stop = (): void => {
    this.#controller.abort()
    this.#wakeUp?.()
  }

  get #stopped(): boolean {
    return this.#controller.signal.aborted
  }

  #checkRequest(): void {
    const { partitions, maxBytes, maxWaitMs, minBytes } = this.#request
    const check = (field: string, value: number, least: number, most: number): void => {
      if (value >= least && value <= most) return
      throw new BrokerError('INVALID_REQUEST', `${field} ${value} is outside [${least}, ${most}]`, {
        field,
        actual: value,
      })
    }
    check('partitions', partitions.length, 1, MOST_PARTITIONS)
    check('max_bytes', maxBytes, 0, MOST_MESSAGE_BYTES)
    check('max_wait_ms', maxWaitMs, 0, LONGEST_WAIT_MS)
    check('min_bytes', minBytes, 0, MOST_MESSAGE_BYTES)
    if (maxBytes > 0) this.#maxBytes = maxBytes
    for (const asked of partitions) checkEnum('start_at', asked.startAt)
  }

  async #openPositions(): Promise<void> {
    this.#environment.topics() // While recovery runs, the call as a whole is refused.
    for (const [index, asked] of this.#request.partitions.entries()) {
      try {
        const position = await this.#openPosition(index, asked)
        this.#open++
        this.#ready.push(position)
      } catch (error) {
        await this.#sendError(index, asked.topic, error)
      }
    }
  }

  async #openPosition(index: number, asked: FetchPartition): Promise<Position> {
    const topics = this.#environment.topics()
    const topicId = asked.topicId === '' ? undefined : asked.topicId
    const partition = topics.getPartition(asked.topic, asked.partition, topicId)
    if (partition.failure !== undefined) throw partition.failure
    if (asked.leaderEpoch > partition.leaderEpoch) {
      throw new BrokerError(
        'NOT_LEADER',
        `${asked.topic}-${asked.partition} has leader epoch ${partition.leaderEpoch} here; you know ${asked.leaderEpoch}`,
        { topic: asked.topic, partition: asked.partition, leaderEpoch: partition.leaderEpoch },
      )
    }
    // The ends are taken before the first await, so that they are those of the moment when the call arrived.
    const endNow = partition.visibleEnd
    const wantedEnd = asked.endOffset
    if (wantedEnd !== undefined) checkOffset('end_offset', wantedEnd)
    const next = await this.#findStart(partition, asked)
    const end = this.#request.follow
      ? wantedEnd
      : Math.max(next, Math.min(endNow, wantedEnd ?? Infinity))
    return { index, partition, next, end: end === undefined ? undefined : toOffset(end) }
  }

  async #findStart(partition: Partition, asked: FetchPartition): Promise<Offset> {
    switch (asked.startAt) {
      case 'START_AT_EARLIEST':
        return partition.logStartOffset
      case 'START_AT_LATEST':
        return partition.visibleEnd
      case 'START_AT_TIMESTAMP': {
        checkTimestamp(asked.timestampMs)
        const end = partition.visibleEnd
        const found = await partition.findOffsetByTimestamp(asked.timestampMs)
        return found?.offset ?? end
      }
      case 'START_AT_OFFSET':
        return this.#checkStart(partition, asked)
      default:
        return unreachable(asked.startAt)
    }
  }

  #checkStart(partition: Partition, asked: FetchPartition): Offset {
    const { offset } = asked
    const start = partition.logStartOffset
    // Up to the assigned end, not the visible one: who has just appended may wait there for the records to become durable.
    const end = partition.logEndOffset
    if (isOffset(offset) && offset >= start && offset <= end) return offset
    if (asked.clamp) return offset < start ? start : partition.visibleEnd
    throw new BrokerError(
      'OFFSET_OUT_OF_RANGE',
      `offset ${offset} is outside [${start}, ${end}] of ${partition.topic}-${partition.index}`,
      {
        topic: partition.topic,
        partition: partition.index,
        offset,
        logStartOffset: start,
        endOffset: end,
        leaderEpoch: partition.leaderEpoch,
      },
    )
  }

  async #serve(): Promise<void> {
    while (!this.#stopped && this.#open > 0) {
      const position = this.#ready.shift()
      if (position === undefined) {
        await this.#sleep()
        continue
      }
      try {
        await this.#serveOne(position)
      } catch (error) {
        await this.#passOrFail(position, error)
      }
    }
  }

  /** Until something wakes this stream: an append, room to send, or its end. */
  #sleep(): Promise<void> {
    return new Promise((resolve) => {
      this.#wakeUp = resolve
    })
  }

  /** Sends what one position has next, at most one message's worth, and puts it back where it belongs. */
  async #serveOne(position: Position): Promise<void> {
    const { partition } = position
    if (partition.failure !== undefined) throw partition.failure
    if (isDone(position)) {
      this.#open--
      await this.#send(this.#headOf(position, true), [])
      return
    }
    if (partition.visibleEnd <= position.next) {
      this.#waitForAppend(position)
      return
    }
    const result = await this.#readEnough(position)
    if (this.#stopped) return
    invariant(result.nextOffset > position.next, 'a read below the visible end goes on')
    if (this.#request.plainRecords) {
      await this.#sendRecords(position, result)
    } else {
      position.next = result.nextOffset
      if (isDone(position)) this.#open--
      await this.#send(this.#headOf(position, isDone(position), result), result.chunks)
    }
    if (!isDone(position)) this.#ready.push(position)
  }

  /** Reads; when following and less than `min_bytes` is there, waits up to `max_wait_ms` for more. */
  async #readEnough(position: Position): Promise<FetchResult> {
    const { partition } = position
    const { follow, maxWaitMs, minBytes } = this.#request
    let result = await this.#reads.read(partition, position.next, this.#maxBytes)
    if (!follow || maxWaitMs === 0) return result
    const { clock } = this.#environment
    const deadlineMs = clock.monotonicMs() + maxWaitMs
    const expired = new AbortController()
    const expire = (): void => expired.abort()
    const cancel = clock.schedule(maxWaitMs, expire)
    this.#controller.signal.addEventListener('abort', expire)
    try {
      while (
        result.bytes < Math.min(minBytes, this.#maxBytes) &&
        !expired.signal.aborted &&
        clock.monotonicMs() < deadlineMs
      ) {
        await partition.waitForAppend(result.nextOffset, expired.signal)
        result = await this.#reads.read(partition, position.next, this.#maxBytes)
      }
      return result
    } finally {
      cancel()
      this.#controller.signal.removeEventListener('abort', expire)
    }
  }

  #waitForAppend(position: Position): void {
    position.partition.waitForAppend(position.next, this.#controller.signal).then(
      () => this.#makeReady(position),
      // The failure (a deleted topic, a closed log) is met again, and answered, when the position takes its turn.
      () => this.#makeReady(position),
    )
  }

  #makeReady(position: Position): void {
    this.#ready.push(position)
    this.#wakeUp?.()
  }

  /** What may happen to one partition alone: it is told in band, or, where the topic says so, damage is passed over. */
  async #passOrFail(position: Position, error: unknown): Promise<void> {
    if (this.#stopped) return
    const { partition } = position
    if (
      error instanceof BrokerError &&
      (error.code === 'SEGMENT_QUARANTINED' || error.code === 'INVALID_RECORD') &&
      partition.onCorruption === 'skip'
    ) {
      const from = position.next
      const to = error.details['nextOffset']
      if (isOffset(to) && to > from) {
        this.#environment.errors.toDetail(error, 'Fetch') // For the log.
        position.next = to
        await this.#send({ ...this.#headOf(position, false), skippedFrom: from, skippedTo: to }, [])
        this.#ready.push(position)
        return
      }
    }
    this.#open--
    await this.#sendError(position.index, partition.topic, error, position)
  }

  #headOf(position: Position, end: boolean, result?: FetchResult): FetchHead {
    const { partition } = position
    return {
      index: position.index,
      records: NO_RECORDS,
      nextOffset: position.next,
      highWatermark: result?.highWatermark ?? partition.highWatermark,
      logStartOffset: result?.logStartOffset ?? partition.logStartOffset,
      leaderEpoch: partition.leaderEpoch,
      end,
      error: undefined,
      skippedFrom: 0,
      skippedTo: 0,
    }
  }

  async #sendError(
    index: number,
    topic: string,
    error: unknown,
    position?: Position,
  ): Promise<void> {
    const facts =
      error instanceof BrokerError && error.details['topic'] === undefined
        ? new BrokerError(error.code, error.message, { topic, ...error.details }, error.cause)
        : error
    const detail = this.#environment.errors.toDetail(facts, 'Fetch')
    const partition = position?.partition
    await this.#send(
      {
        index,
        records: NO_RECORDS,
        nextOffset: position?.next ?? 0,
        highWatermark: partition?.highWatermark ?? 0,
        logStartOffset: partition?.logStartOffset ?? 0,
        leaderEpoch: partition?.leaderEpoch ?? 0,
        end: true,
        error: detail,
        skippedFrom: 0,
        skippedTo: 0,
      },
      [],
    )
  }

  /** Decodes for programs that do not want to know batches. A message holds whole records, about `max_bytes` of them. */
  async #sendRecords(position: Position, result: FetchResult): Promise<void> {
    const cursor = (this.#cursor ??= new RecordCursor())
    const end = position.end ?? Infinity
    let records: RecordMessage[] = []
    let bytes = 0
    const flush = async (next: number): Promise<void> => {
      position.next = toOffset(next)
      if (isDone(position)) this.#open--
      const head = { ...this.#headOf(position, isDone(position), result), records }
      records = []
      bytes = 0
      await this.#send(head, [])
    }
    for (const chunk of result.chunks) {
      for (let at = 0; at < chunk.length; at += readBatchBytes(chunk, at)) {
        if (isControl(chunk, at)) continue
        cursor.reset(chunk, at)
        while (cursor.next()) {
          if (cursor.offset < position.next) continue
          if (cursor.offset >= end) {
            await flush(end)
            return
          }
          const record = copyRecord(cursor)
          records.push(record)
          bytes += 32 + (record.key?.length ?? 0) + (record.value?.length ?? 0)
          if (bytes >= this.#maxBytes) {
            await flush(cursor.offset + 1)
            if (this.#stopped || isDone(position)) return
          }
        }
      }
    }
    if (records.length > 0 || result.nextOffset > position.next) await flush(result.nextOffset)
  }

  /** Hands a message to grpc-js, and waits until the caller has taken enough of what went before. */
  async #send(head: FetchHead, chunks: readonly Uint8Array[]): Promise<void> {
    if (this.#call.cancelled || this.#call.destroyed) return
    const message = fetchResponseParts(head, chunks)
    const bytes = message.length + MESSAGE_OVERHEAD_BYTES
    this.#unsent.take(bytes)
    this.#budgets.unsent.take(bytes)
    this.#writer.write(message, () => {
      const watched = this.#cancelStallTimer !== undefined
      this.#cancelStallTimer?.()
      this.#cancelStallTimer = undefined
      this.#unsent.give(bytes)
      if (!this.#finished) this.#budgets.unsent.give(bytes)
      // That was progress: the minute starts anew for what is left.
      if (watched && this.#unsent.usedBytes > 0) this.#watchForStall()
    })
    while (!this.#stopped && !(this.#unsent.hasRoom && this.#budgets.unsent.hasRoom)) {
      // A stream that only waits because its neighbours on the connection do not read is not the one to cut off.
      if (this.#unsent.usedBytes > 0) this.#watchForStall()
      const full = this.#unsent.hasRoom ? this.#budgets.unsent : this.#unsent
      full.onRoom(() => this.#wakeUp?.())
      await this.#sleep()
    }
  }

  #watchForStall(): void {
    this.#cancelStallTimer ??= this.#environment.clock.schedule(STALLED_AFTER_MS, () => {
      this.#environment.logger.warn(
        { peer: this.#peer, unsentBytes: this.#unsent.usedBytes },
        `a reader has taken nothing for ${STALLED_AFTER_MS} ms and is cut off`,
      )
      // A status would wait behind what the reader does not take, and keep it in memory: the stream is reset.
      this.#stop()
      this.#environment.findStream(this.#call.metadata)?.close(constants.NGHTTP2_CANCEL)
    })
  }
}

function isDone(position: Position): boolean {
  return position.end !== undefined && position.next >= position.end
}

const NO_RECORDS: readonly RecordMessage[] = []

/** The cursor's bytes may be a buffer that the next batch is decompressed into, so what is kept is copied. */
function copyRecord(cursor: RecordCursor): RecordMessage {
  const { bytes } = cursor
  return {
    offset: cursor.offset,
    timestampMs: cursor.timestampMs,
    key: cursor.keyStart < 0 ? undefined : bytes.slice(cursor.keyStart, cursor.keyEnd),
    value: cursor.valueStart < 0 ? undefined : bytes.slice(cursor.valueStart, cursor.valueEnd),
    headers:
      cursor.headerCount === 0
        ? []
        : cursor.readHeaders().map((header) => ({
            key: header.key,
            value: header.value ?? new Uint8Array(0),
          })),
  }
}

export function checkOffset(field: string, value: number): void {
  if (isOffset(value)) return
  throw new BrokerError('INVALID_REQUEST', `${field} ${value} is no offset`, {
    field,
    actual: value,
  })
}

export function checkTimestamp(value: number): void {
  if (Number.isSafeInteger(value)) return
  throw new BrokerError('INVALID_POSITION', `timestamp_ms ${value} is no time`, {
    field: 'timestamp_ms',
    actual: value,
  })
}
