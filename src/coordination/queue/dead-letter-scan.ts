import { BrokerError } from '../../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../../common/offset.ts'
import { KIB } from '../../common/units.ts'
import { endOfBatch, isControl, readBaseOffset, readEndOffset } from '../../record/batch-header.ts'
import { RecordCursor } from '../../record/record-cursor.ts'
import type { Partition } from '../../topic/partition.ts'
import type { Topics } from '../../topic/topics.ts'
import type { TurnGate } from '../turn-gate.ts'
import { matchesDeadFilter } from './dead-filter.ts'
import { type DeadLetterFacts, readDeadLetter } from './dead-letter-record.ts'
import type { DeadFilter, DeadLetterInfo, LogRecord } from './queue-types.ts'
import type { SettledMarks } from './redrive-marks.ts'

/** Where to look next, in the order of a topic's letters: by partition, then by offset. */
export interface LetterPlace {
  readonly partition: number
  readonly offset: number
}

export const FIRST_PLACE: LetterPlace = { partition: 0, offset: 0 }

/** A record in a topic of dead letters. Its bytes are views into what was read: nobody may write to them. */
export class FoundLetter {
  readonly partition: Partition
  readonly record: LogRecord
  /** As it is stored, uncompressed. */
  readonly bytes: number
  #facts: DeadLetterFacts | undefined
  #isRead = false

  constructor(partition: Partition, record: LogRecord, bytes: number) {
    this.partition = partition
    this.record = record
    this.bytes = bytes
    this.#facts = undefined
  }

  get facts(): DeadLetterFacts | undefined {
    if (!this.#isRead) {
      this.#isRead = true
      this.#facts = readDeadLetter(this.record.headers)
    }
    return this.#facts
  }
}

export interface LetterScanOptions {
  readonly topics: Topics
  readonly marks: SettledMarks
  /** In bytes; shared by all scans, so that together they leave the loop free. */
  readonly gate: TurnGate
  readonly topic: string
  readonly topicId: string
  readonly filter: DeadFilter
  readonly from: LetterPlace
  /** Of each partition where to stop. Partitions that are not there are not looked at. */
  readonly ends: readonly number[]
  readonly includeSettled: boolean
  /** Told of each range or batch that cannot be read, and is passed over. */
  readonly onSkipped: (error: BrokerError) => void
}

/** What one {@link TurnGate} of scans lets through in a turn: some milliseconds of work where every header has to be decoded. */
export const SCAN_BYTES_PER_TURN: number = 256 * KIB

const READ_BYTES: number = 128 * KIB

/** Goes through the letters of a topic that match a filter, one read at a time. Holds nothing but its place between two reads. */
export class LetterScan {
  readonly #options: LetterScanOptions
  readonly #cursor = new RecordCursor()
  #place: LetterPlace
  #readBytes = 0

  constructor(options: LetterScanOptions) {
    this.#options = options
    this.#place = options.from
  }

  /** Where the next read begins. */
  get place(): LetterPlace {
    return this.#place
  }

  /** Bytes read so far. */
  get readBytes(): number {
    return this.#readBytes
  }

  get isOver(): boolean {
    return this.#place.partition >= this.#options.ends.length
  }

  /**
   * The matching letters of the next read, all of one partition; maybe none. Undefined at the end. What is settled is as of now: it has to be
   * looked at again after the caller has waited for anything else.
   * @throws BrokerError (as rejection) UNKNOWN_TOPIC, UNKNOWN_TOPIC_ID, why else a partition does not work; what reading and opening the marks throw
   */
  async next(): Promise<readonly FoundLetter[] | undefined> {
    const { topics, topic, topicId, ends, marks, filter, includeSettled, gate } = this.#options
    if (this.isOver) return undefined
    const { partition: index } = this.#place
    const partition = topics.getPartition(topic, index, topicId)
    await marks.open(partition)
    const least = includeSettled ? partition.logStartOffset : marks.unsettledFrom(partition)
    const from = Math.max(this.#place.offset, least, filter.firstOffset ?? 0)
    const end = Math.min(ends[index] ?? 0, filter.endOffset ?? Infinity)
    if (from >= end) {
      this.#place = { partition: index + 1, offset: 0 }
      return []
    }
    const letters = await this.#read(partition, toOffset(from), toOffset(end))
    if (this.#place.offset >= end) this.#place = { partition: index + 1, offset: 0 }
    // The turn goes to others before the letters are looked at: their headers are what takes time.
    let bytes = 0
    for (const letter of letters) bytes += letter.bytes
    await gate.pass(Math.max(KIB, bytes))
    return letters.filter(
      (letter) =>
        (includeSettled || !marks.isSettled(partition, letter.record.offset)) &&
        matchesDeadFilter(filter, letter),
    )
  }

  async #read(partition: Partition, from: Offset, end: Offset): Promise<FoundLetter[]> {
    const found: FoundLetter[] = []
    try {
      const { chunks, bytes, nextOffset } = await partition.read(from, READ_BYTES)
      this.#readBytes += bytes
      for (const chunk of chunks) this.#collect(partition, chunk, from, end, found)
      this.#place = { partition: partition.index, offset: nextOffset > from ? nextOffset : end }
    } catch (error) {
      this.#place = { partition: partition.index, offset: this.#pass(partition, from, end, error) }
    }
    return found
  }

  #pass(partition: Partition, from: Offset, end: Offset, error: unknown): number {
    if (partition.failure !== undefined || !(error instanceof BrokerError)) throw error
    if (error.code === 'SEGMENT_QUARANTINED') {
      this.#options.onSkipped(error)
      const next = error.details['nextOffset']
      return isOffset(next) && next > from ? next : end
    }
    const start = partition.logStartOffset
    if (error.code === 'OFFSET_OUT_OF_RANGE' && start > from) return start
    throw error
  }

  #collect(
    partition: Partition,
    chunk: Uint8Array,
    from: Offset,
    end: Offset,
    found: FoundLetter[],
  ): void {
    const cursor = this.#cursor
    for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
      if (isControl(chunk, at) || readEndOffset(chunk, at) <= from) continue
      if (readBaseOffset(chunk, at) >= end) return
      try {
        cursor.reset(chunk, at)
        while (cursor.next()) {
          if (cursor.offset < from || cursor.offset >= end) continue
          const bytes = cursor.recordEnd - cursor.recordStart
          found.push(new FoundLetter(partition, toRecord(cursor), bytes))
        }
      } catch (error) {
        // Somebody else wrote to the topic, and badly. What cannot be read cannot be moved, and should not be in the way of the rest.
        if (!(error instanceof BrokerError)) throw error
        this.#options.onSkipped(error)
      }
    }
  }
}

function toRecord(cursor: RecordCursor): LogRecord {
  const { bytes, keyStart, keyEnd, valueStart, valueEnd } = cursor
  return {
    offset: toOffset(cursor.offset),
    timestampMs: cursor.timestampMs,
    key: keyStart < 0 ? undefined : bytes.subarray(keyStart, keyEnd),
    value: valueStart < 0 ? undefined : bytes.subarray(valueStart, valueEnd),
    headers: cursor.headerCount === 0 ? [] : cursor.readHeaders(),
  }
}

/** As people are shown it. Of a record that is no dead letter nothing is known but itself. */
export function toDeadLetterInfo(letter: FoundLetter, settled: boolean): DeadLetterInfo {
  const { facts, record, partition } = letter
  return {
    partition: partition.index,
    record,
    group: facts?.group ?? '',
    sourceTopic: facts?.topic ?? '',
    sourcePartition: facts?.partition ?? 0,
    sourceOffset: facts?.offset ?? 0,
    reason: facts?.reason ?? '',
    deliveries: facts?.deliveries ?? 0,
    failures: facts?.failures ?? 0,
    firstFailedMs: facts?.firstFailedMs ?? 0,
    lastFailedMs: facts?.lastFailedMs ?? 0,
    error: facts?.error ?? { type: '', message: '', stack: '' },
    memberId: facts?.memberId ?? '',
    redrives: facts?.redrives ?? 0,
    settled,
  }
}
