import { invariant } from '../../common/assert.ts'
import type { Clock } from '../../common/clock.ts'
import { BrokerError } from '../../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../../common/offset.ts'
import { KIB, MIB } from '../../common/units.ts'
import type { RecordHeader } from '../../record/batch-builder.ts'
import { endOfBatch, readBaseOffset, readEndOffset } from '../../record/batch-header.ts'
import { RecordCursor } from '../../record/record-cursor.ts'
import type { Partition } from '../../topic/partition.ts'
import { type AppendOutcome, appendRecords } from '../local-peer.ts'
import type { PeerRecord } from '../peer.ts'
import { DelayHeap } from './delay-heap.ts'
import { DelayIndex } from './delay-index.ts'
import {
  decodeEnd,
  decodeEnvelope,
  decodeIntent,
  DELAY_KEY_BYTES,
  type DelayedEnvelope,
  type DelayEnd,
  encodeEnd,
  formatDelayId,
  type Intent,
  INTENT_KEY_BYTES,
} from './delay-record.ts'
import { DelayTargets } from './delay-targets.ts'

/** A waiting record, read. Its bytes are views into what was read. */
export interface StoredDelay {
  readonly offset: Offset
  readonly key: Uint8Array
  readonly envelope: DelayedEnvelope
  readonly headers: readonly RecordHeader[]
  readonly timestampMs: number
}

/** What a replay meets, oldest first. */
export interface ReplayVisitor {
  waiting(envelope: DelayedEnvelope, offset: Offset, key: Uint8Array): void
  ended(end: DelayEnd): void
  intended(key: string, intent: Intent | undefined): void
}

/** Where a moved record lies now. */
export interface Moved {
  readonly offset: Offset
  readonly dueMs: number
}

/**
 * Records are stored in small batches: when they fall due in another order than they came, a whole batch is read for each. At this size that is
 * one read of a few pages; smaller ones cost more on the way in.
 */
const BATCH_BYTES: number = 16 * KIB
const REPLAY_BYTES: number = MIB
/** Read at once where offsets follow on each other. */
const RUN_BYTES: number = 64 * KIB
const RUN_OFFSETS = 64

/** One partition of `__delayed`: what waits there and when it is due, and what is on its way. Deciding is whoever uses it. */
export class DelayShard {
  readonly index: number
  readonly partition: Partition
  readonly due: DelayIndex = new DelayIndex()
  /** By the offset that the delay id names: only of those that have been given another due time. */
  readonly moved: Map<Offset, Moved> = new Map()
  /** By the offset that the record has now: somebody is at it, until the promise resolves. */
  readonly busy: Map<Offset, Promise<void>> = new Map()
  /** What it all is for. */
  readonly targets: DelayTargets = new DelayTargets()
  /** Numbers of targets where something has failed. */
  readonly troubled: Set<number> = new Set()
  /** Appended or not: nobody knows until the target can be read. */
  readonly unsettled: Set<Offset> = new Set()
  /** Tombstones that could not be written: what they end has ended all the same. */
  readonly owed: PeerRecord[][] = []
  readonly #clock: Clock
  readonly #leaderEpoch: number

  constructor(options: {
    readonly index: number
    readonly partition: Partition
    readonly clock: Clock
  }) {
    this.index = options.index
    this.partition = options.partition
    this.#clock = options.clock
    this.#leaderEpoch = options.partition.leaderEpoch
  }

  /**
   * Shows all that the log holds. To be called once, before anything else.
   * @throws BrokerError SEGMENT_QUARANTINED and CORRUPT_BATCH for damage, unless `onSkipped` is given; UNSUPPORTED_FORMAT; what reading throws
   */
  async replay(
    visitor: ReplayVisitor,
    onSkipped: ((error: BrokerError) => void) | undefined,
  ): Promise<void> {
    const { partition } = this
    await partition.flush() // What an earlier use has left on its way is part of the truth.
    const cursor = new RecordCursor({ reuseMemory: true })
    const end = partition.highWatermark
    let from = partition.logStartOffset
    while (from < end) {
      try {
        const { chunks, nextOffset } = await partition.read(from, REPLAY_BYTES)
        for (const chunk of chunks) replayChunk(chunk, cursor, visitor)
        invariant(nextOffset > from, 'a read below the high watermark moves on')
        from = nextOffset
      } catch (error) {
        if (!isDamage(error) || onSkipped === undefined) throw error
        onSkipped(error)
        const next = error.details['nextOffset']
        from = isOffset(next) && next > from ? next : end
      }
    }
  }

  /** Appends records in small batches, pipelined; resolves to how it went, when that is known of all. Never rejects. */
  append(records: readonly PeerRecord[]): Promise<readonly AppendOutcome[]> {
    return appendRecords(this.partition, records, this.#clock.wallMs(), {
      batchBytes: BATCH_BYTES,
      leaderEpoch: this.#leaderEpoch,
    })
  }

  /** Appends records. @throws BrokerError (as rejection) the first failure: some of them may be there */
  async write(records: readonly PeerRecord[]): Promise<readonly Offset[]> {
    const outcomes = await this.append(records)
    return outcomes.map((outcome) => {
      if (outcome.error !== undefined) throw outcome.error
      return outcome.offset
    })
  }

  /**
   * Reads records in the order of `offsets`, until they are `maxBytes` together, but at least one. Undefined for one that is not in the log any more.
   * @throws BrokerError (as rejection) why the first of them cannot be read
   */
  async read(offsets: readonly Offset[], maxBytes: number): Promise<(StoredDelay | undefined)[]> {
    const found: (StoredDelay | undefined)[] = []
    const reader = this.reader()
    let bytes = 0
    for (const [index, offset] of offsets.entries()) {
      if (bytes >= maxBytes) break
      const following = offsets[index + 1] ?? Infinity
      try {
        const isRun = following > offset && following - offset <= RUN_OFFSETS
        const stored = await reader.read(offset, isRun ? RUN_BYTES : 1)
        found.push(stored)
        bytes += stored?.envelope.value?.length ?? 0
      } catch (error) {
        if (found.length === 0) throw error
        break // What has been read can be used; the next call begins with this one.
      }
    }
    return found
  }

  /** Takes a waiting record out, so that nobody else has it; the number of its target, or -1 when it does not wait. */
  takeOut(stored: StoredDelay): number {
    const { envelope, offset } = stored
    const number = this.due.remove(envelope.deliverAtMs, offset)
    if (number >= 0) return number
    const { topicId, partition } = envelope.target
    const other = this.targets.numberOf(topicId, partition)
    if (other === undefined) return -1
    return this.targets.get(other).stuck?.remove(offset) === true ? other : -1
  }

  /** Puts one aside until its target works again. */
  putAside(number: number, offset: Offset, dueMs: number): void {
    const target = this.targets.get(number)
    target.stuck ??= new DelayHeap()
    target.stuck.push(dueMs, offset, number)
    this.troubled.add(number)
  }

  /** The record waits no longer. What the log says of it is the caller's matter. */
  forget(number: number, stored: StoredDelay): void {
    this.moved.delete(stored.envelope.moved?.origin ?? stored.offset)
    this.forgetLost(number)
  }

  /** As {@link forget}, where the record itself is gone. */
  forgetLost(number: number): void {
    const target = this.targets.get(number)
    this.targets.removed(number)
    if (target.count === 0) this.troubled.delete(number)
  }

  /** What the sender was given to name it by. */
  idOf(stored: StoredDelay): string {
    return this.nameOf(stored.envelope.moved?.origin ?? stored.offset, stored.key)
  }

  nameOf(origin: Offset, key: Uint8Array): string {
    return formatDelayId(this.index, origin, key)
  }

  reader(): DelayReader {
    return new DelayReader(this.partition)
  }
}

/** What ends a waiting record in the log. */
export function tombstoneOf(stored: StoredDelay): PeerRecord {
  const { offset, key, envelope } = stored
  const end = { offset, dueMs: envelope.deliverAtMs, dedupeId: envelope.dedupeId }
  return { key, value: undefined, headers: [encodeEnd(end)], timestampMs: undefined }
}

/** Remembers the chunk that it has read last: records that are due together mostly lie together. */
export class DelayReader {
  readonly #partition: Partition
  readonly #cursor: RecordCursor = new RecordCursor()
  #chunks: readonly Uint8Array[] = []
  #chunk: Uint8Array = new Uint8Array(0)
  #at = -1

  constructor(partition: Partition) {
    this.#partition = partition
  }

  async read(offset: Offset, maxBytes: number): Promise<StoredDelay | undefined> {
    if (!this.#isInBatch(offset) && !this.#findBatch(offset)) {
      this.#at = -1
      this.#chunks = (await this.#partition.read(offset, maxBytes)).chunks
      if (!this.#findBatch(offset)) return undefined
    }
    const cursor = this.#cursor
    if (cursor.offset > offset) cursor.reset(this.#chunk, this.#at)
    while (cursor.offset < offset && cursor.next());
    return cursor.offset === offset ? readStored(cursor) : undefined
  }

  #isInBatch(offset: Offset): boolean {
    if (this.#at < 0) return false
    return (
      offset >= readBaseOffset(this.#chunk, this.#at) &&
      offset < readEndOffset(this.#chunk, this.#at)
    )
  }

  #findBatch(offset: Offset): boolean {
    for (const chunk of this.#chunks) {
      for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
        if (offset < readBaseOffset(chunk, at) || offset >= readEndOffset(chunk, at)) continue
        this.#chunk = chunk
        this.#at = at
        this.#cursor.reset(chunk, at)
        return true
      }
    }
    return false
  }
}

function readStored(cursor: RecordCursor): StoredDelay | undefined {
  const { bytes, keyStart, keyEnd, valueStart, valueEnd } = cursor
  if (keyEnd - keyStart !== DELAY_KEY_BYTES || valueStart < 0) return undefined
  return {
    offset: toOffset(cursor.offset),
    key: bytes.subarray(keyStart, keyEnd),
    envelope: decodeEnvelope(bytes, valueStart, valueEnd),
    headers: cursor.readHeaders(),
    timestampMs: cursor.timestampMs,
  }
}

function replayChunk(chunk: Uint8Array, cursor: RecordCursor, visitor: ReplayVisitor): void {
  for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
    cursor.reset(chunk, at)
    while (cursor.next()) {
      const { bytes, keyStart, keyEnd, valueStart, valueEnd } = cursor
      if (keyEnd - keyStart === DELAY_KEY_BYTES) {
        if (valueStart < 0) visitor.ended(decodeEnd(cursor.readHeaders()))
        else {
          const envelope = decodeEnvelope(bytes, valueStart, valueEnd)
          visitor.waiting(envelope, toOffset(cursor.offset), bytes.subarray(keyStart, keyEnd))
        }
      } else if (keyEnd - keyStart === INTENT_KEY_BYTES) {
        const key = Buffer.from(bytes.subarray(keyStart, keyEnd)).toString('hex')
        visitor.intended(
          key,
          valueStart < 0 ? undefined : decodeIntent(bytes, valueStart, valueEnd),
        )
      }
    }
  }
}

function isDamage(error: unknown): error is BrokerError {
  return (
    error instanceof BrokerError &&
    ['SEGMENT_QUARANTINED', 'CORRUPT_BATCH', 'INVALID_RECORD'].includes(error.code)
  )
}
