import { crc32c } from '../bytes/crc32c.ts'
import { invariant } from '../common/assert.ts'
import { BrokerError } from '../common/errors.ts'
import { isOffset, toOffset } from '../common/offset.ts'
import type { Offset } from '../common/offset.ts'
import { HOUR_MS } from '../common/units.ts'
import {
  readBaseOffset,
  readBaseSequence,
  readLastOffsetDelta,
  readMaxTimestamp,
  readProducerEpoch,
  readProducerId,
} from '../record/batch-header.ts'

/** Batches that are remembered per producer id, as many as a client may have in flight (KIP-98). */
export const REMEMBERED_BATCHES = 5

/** Sequences run from 0 to 2^31 - 1 and start again at 0. */
const SEQUENCES = 2 ** 31

/** How long a producer that is known from the log alone is kept after a start, however old its records say it is. */
const START_GRACE_MS = HOUR_MS

export type ProducerVerdict =
  | { readonly kind: 'new' }
  | {
      readonly kind: 'duplicate'
      readonly baseOffset: Offset
      readonly endOffset: Offset
      /** The largest timestamp of the original: its append time, where the topic stamps that. */
      readonly timeMs: number
    }

/** A batch that a producer has appended. */
interface Remembered {
  readonly epoch: number
  readonly baseSequence: number
  readonly count: number
  readonly baseOffset: Offset
  readonly timeMs: number
}

interface Producer {
  /** In the order of the log. Never empty: a producer without batches is forgotten. */
  batches: Remembered[]
  /** The wall time of the last use that we have seen ourselves; undefined when the log alone tells of it. */
  usedMs: number | undefined
}

const NEW: ProducerVerdict = { kind: 'new' }

/**
 * What makes a retry harmless (KIP-98), for one partition: which batches each producer id has appended last. A pure function of the log,
 * plus a snapshot of it. Per producer id the last five batches below `stableEnd` and all above are remembered, so that `rollBackTo`
 * can undo what never reached the disk and still leave five.
 */
export class ProducerState {
  readonly #producers = new Map<number, Producer>()
  /** Those with more than five batches: the only ones that a rise of the stable end can shorten. */
  readonly #overfull = new Set<Producer>()
  #stableEnd: Offset = toOffset(0)

  get size(): number {
    return this.#producers.size
  }

  /** Everything below has reached the disk and will not be rolled back. */
  get stableEnd(): Offset {
    return this.#stableEnd
  }

  /**
   * Decides about a batch; changes nothing. A repeat of a remembered batch answers its offsets. `count` is 1 or more.
   * @throws BrokerError OUT_OF_ORDER_SEQUENCE with `expected` and `actual` in its details: a gap, a repeat too old to be answered, or
   *   a batch cut differently from the one that was appended; PRODUCER_FENCED for an older epoch; UNKNOWN_PRODUCER for an id that
   *   is not known and does not start at 0
   */
  check(
    producerId: number,
    producerEpoch: number,
    baseSequence: number,
    count: number,
  ): ProducerVerdict {
    const producer = this.#producers.get(producerId)
    const last = producer?.batches.at(-1)
    if (producer === undefined || last === undefined) {
      if (baseSequence === 0) return NEW
      throw new BrokerError(
        'UNKNOWN_PRODUCER',
        `producer ${producerId} is not known here, and its batch starts at sequence ${baseSequence}, not 0`,
        { producerId, producerEpoch, expected: 0, actual: baseSequence },
      )
    }
    if (producerEpoch < last.epoch) {
      throw new BrokerError(
        'PRODUCER_FENCED',
        `producer ${producerId} with epoch ${producerEpoch} was replaced by epoch ${last.epoch}`,
        { producerId, producerEpoch, currentEpoch: last.epoch },
      )
    }
    const expected = producerEpoch > last.epoch ? 0 : (last.baseSequence + last.count) % SEQUENCES
    if (baseSequence === expected) return NEW
    if (producerEpoch > last.epoch) {
      throw outOfOrder(
        `a new epoch starts at sequence 0, not ${baseSequence}`,
        producerId,
        producerEpoch,
        expected,
        baseSequence,
      )
    }
    return this.#findDuplicate(producer, producerId, producerEpoch, baseSequence, count, expected)
  }

  #findDuplicate(
    producer: Producer,
    producerId: number,
    producerEpoch: number,
    baseSequence: number,
    count: number,
    expected: number,
  ): ProducerVerdict {
    for (let i = producer.batches.length - 1; i >= 0; i--) {
      const batch = producer.batches[i]
      if (batch === undefined || batch.epoch !== producerEpoch) break
      if (batch.baseSequence === baseSequence && batch.count === count) {
        return {
          kind: 'duplicate',
          baseOffset: batch.baseOffset,
          endOffset: toOffset(batch.baseOffset + batch.count),
          timeMs: batch.timeMs,
        }
      }
      if ((baseSequence - batch.baseSequence + SEQUENCES) % SEQUENCES < batch.count) {
        throw outOfOrder(
          `sequence ${baseSequence} lies in a batch that was appended with other bounds: ${batch.count} records from ${batch.baseSequence}`,
          producerId,
          producerEpoch,
          expected,
          baseSequence,
        )
      }
    }
    const behind = (expected - baseSequence + SEQUENCES) % SEQUENCES
    throw outOfOrder(
      // Sequences wrap, so "before" means: less than half the circle back.
      behind < SEQUENCES / 2
        ? `sequence ${baseSequence} is a duplicate too old to be answered: only the last ${REMEMBERED_BATCHES} batches are remembered`
        : `sequence ${baseSequence} leaves a gap after ${expected}, which is expected next`,
      producerId,
      producerEpoch,
      expected,
      baseSequence,
    )
  }

  /**
   * Remembers a batch that `check` has found new.
   * @param timeMs the largest timestamp in the batch, as its header says: with it, the state stays a pure function of the log
   * @param usedMs the wall time now. Expiry goes by it, because a producer that copies old records is not idle.
   */
  record(
    producerId: number,
    producerEpoch: number,
    baseSequence: number,
    count: number,
    baseOffset: Offset,
    timeMs: number,
    usedMs?: number,
  ): void {
    const batch: Remembered = { epoch: producerEpoch, baseSequence, count, baseOffset, timeMs }
    const producer = this.#producers.get(producerId)
    if (producer === undefined) {
      this.#producers.set(producerId, { batches: [batch], usedMs })
      return
    }
    producer.batches.push(batch)
    producer.usedMs = usedMs
    if (producer.batches.length > REMEMBERED_BATCHES) this.#trim(producer)
  }

  /**
   * Remembers a stored batch by its header: recovery. A batch without a producer id is ignored, and so is one that is known already, so
   * that a scan may start below the end of the snapshot. The log is the truth: sequences are not checked.
   */
  replay(bytes: Uint8Array, at: number): void {
    const producerId = readProducerId(bytes, at)
    const baseSequence = readBaseSequence(bytes, at)
    if (producerId < 0 || baseSequence < 0) return
    const baseOffset = toOffset(readBaseOffset(bytes, at))
    const last = this.#producers.get(producerId)?.batches.at(-1)
    if (last !== undefined && last.baseOffset >= baseOffset) return
    this.record(
      producerId,
      readProducerEpoch(bytes, at),
      baseSequence,
      readLastOffsetDelta(bytes, at) + 1,
      baseOffset,
      readMaxTimestamp(bytes, at),
    )
  }

  /** Whether the batch at `baseOffset` is one of those that are remembered. */
  remembers(producerId: number, baseOffset: number): boolean {
    const batches = this.#producers.get(producerId)?.batches
    return batches !== undefined && batches.some((batch) => batch.baseOffset === baseOffset)
  }

  /** Everything below `end` has reached the disk. Rises only. O(producers with more than five batches remembered). */
  setStableEnd(end: Offset): void {
    if (end <= this.#stableEnd) return
    this.#stableEnd = end
    for (const producer of this.#overfull) this.#trim(producer)
  }

  #trim(producer: Producer): void {
    const { batches } = producer
    let drop = 0
    // The sixth from the front below the stable end means that the first is one too many.
    while ((batches[drop + REMEMBERED_BATCHES]?.baseOffset ?? Infinity) < this.#stableEnd) drop++
    if (drop > 0) batches.splice(0, drop)
    if (batches.length > REMEMBERED_BATCHES) this.#overfull.add(producer)
    else this.#overfull.delete(producer)
  }

  /** Forgets every batch at or above `end`, which is not below the stable end: their write failed. O(producers). */
  rollBackTo(end: Offset): void {
    invariant(end >= this.#stableEnd, 'what is stable is never rolled back')
    for (const [producerId, producer] of this.#producers) {
      const { batches } = producer
      while ((batches.at(-1)?.baseOffset ?? -1) >= end) batches.pop()
      if (batches.length <= REMEMBERED_BATCHES) this.#overfull.delete(producer)
      if (batches.length === 0) this.#producers.delete(producerId)
    }
  }

  /**
   * Forgets the producers that have been idle for longer than `idleMs`, by the wall clock. What a restart knows of last uses is only what
   * the records say, and those may carry old timestamps; so a producer known from the log alone stays for an hour from the first call on, lest
   * the retry of a batch that was in flight at the crash is taken for a new one.
   */
  expire(nowMs: number, idleMs: number): void {
    for (const [producerId, producer] of this.#producers) {
      const last = producer.batches.at(-1)
      if (last === undefined || last.baseOffset >= this.#stableEnd) continue
      // The wall clock may have gone back since: a use in the future would never grow old.
      producer.usedMs = Math.min(
        producer.usedMs ?? Math.max(last.timeMs, nowMs - idleMs + START_GRACE_MS),
        nowMs,
      )
      if (nowMs - producer.usedMs > idleMs) this.#producers.delete(producerId)
    }
  }

  /**
   * A snapshot of what lies below the stable end. Integers are big-endian; producers in the order of their ids.
   *   byte  0        4         6            14           18
   *        ┌────────┬─────────┬────────────┬────────────┬─────────────────────────────────────────────────
   *        │ crc    │ version │ stable end │ producers  │ per producer: id i64, batches u8, then per batch
   *        │ u32    │ u16     │ i64        │ u32        │ epoch i16, base sequence i32, count i32,
   *        └────────┴─────────┴────────────┴────────────┴ base offset i64, largest timestamp i64 ─────────
   * The CRC-32C covers all that follows it.
   */
  encode(): Uint8Array {
    const stable: { producerId: number; batches: readonly Remembered[] }[] = []
    let bytes = SNAPSHOT_HEADER_BYTES
    for (const [producerId, producer] of this.#producers) {
      let end = producer.batches.length
      while (end > 0 && (producer.batches[end - 1]?.baseOffset ?? 0) >= this.#stableEnd) end--
      if (end === 0) continue
      const batches = producer.batches.slice(Math.max(0, end - REMEMBERED_BATCHES), end)
      stable.push({ producerId, batches })
      bytes += SNAPSHOT_PRODUCER_BYTES + batches.length * SNAPSHOT_BATCH_BYTES
    }
    stable.sort((a, b) => a.producerId - b.producerId)
    const snapshot = new Uint8Array(bytes)
    const view = new DataView(snapshot.buffer)
    view.setUint16(4, SNAPSHOT_VERSION)
    setI64(view, 6, this.#stableEnd)
    view.setUint32(14, stable.length)
    let at = SNAPSHOT_HEADER_BYTES
    for (const { producerId, batches } of stable) {
      setI64(view, at, producerId)
      view.setUint8(at + 8, batches.length)
      at += SNAPSHOT_PRODUCER_BYTES
      for (const batch of batches) {
        view.setInt16(at, batch.epoch)
        view.setInt32(at + 2, batch.baseSequence)
        view.setInt32(at + 6, batch.count)
        setI64(view, at + 10, batch.baseOffset)
        setI64(view, at + 18, batch.timeMs)
        at += SNAPSHOT_BATCH_BYTES
      }
    }
    view.setUint32(0, crc32c(snapshot, 4))
    return snapshot
  }

  /**
   * Reads a snapshot back; its stable end with it.
   * @throws BrokerError STORAGE_ERROR when it is damaged, UNSUPPORTED_FORMAT when a newer version wrote it
   */
  static decode(bytes: Uint8Array): ProducerState {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    if (bytes.length < SNAPSHOT_HEADER_BYTES) throw damaged(`${bytes.length} bytes are too few`)
    if (view.getUint32(0) !== crc32c(bytes, 4)) throw damaged('its checksum does not match')
    const version = view.getUint16(4)
    if (version !== SNAPSHOT_VERSION) {
      throw new BrokerError(
        'UNSUPPORTED_FORMAT',
        `the producer snapshot has version ${version}; this millrace reads version ${SNAPSHOT_VERSION}`,
        { version, supported: SNAPSHOT_VERSION },
      )
    }
    const state = new ProducerState()
    state.#stableEnd = checkedOffset(getI64(view, 6))
    const count = view.getUint32(14)
    let at = SNAPSHOT_HEADER_BYTES
    for (let i = 0; i < count; i++) {
      if (at + SNAPSHOT_PRODUCER_BYTES > bytes.length) throw damaged('it ends in a producer')
      const producerId = getI64(view, at)
      const length = view.getUint8(at + 8)
      at += SNAPSHOT_PRODUCER_BYTES
      if (length === 0 || length > REMEMBERED_BATCHES) throw damaged(`${length} batches`)
      if (at + length * SNAPSHOT_BATCH_BYTES > bytes.length) throw damaged('it ends in a batch')
      const batches: Remembered[] = []
      for (let j = 0; j < length; j++, at += SNAPSHOT_BATCH_BYTES) {
        batches.push({
          epoch: view.getInt16(at),
          baseSequence: view.getInt32(at + 2),
          count: view.getInt32(at + 6),
          baseOffset: checkedOffset(getI64(view, at + 10)),
          timeMs: getI64(view, at + 18),
        })
      }
      state.#producers.set(producerId, { batches, usedMs: undefined })
    }
    if (at !== bytes.length) throw damaged(`${bytes.length - at} bytes are left over`)
    return state
  }
}

const SNAPSHOT_VERSION = 1
const SNAPSHOT_HEADER_BYTES = 18
const SNAPSHOT_PRODUCER_BYTES = 9
const SNAPSHOT_BATCH_BYTES = 26

function setI64(view: DataView, at: number, value: number): void {
  view.setInt32(at, Math.floor(value / 2 ** 32))
  view.setUint32(at + 4, value >>> 0)
}

function getI64(view: DataView, at: number): number {
  return view.getInt32(at) * 2 ** 32 + view.getUint32(at + 4)
}

function checkedOffset(value: number): Offset {
  if (!isOffset(value)) throw damaged(`${value} is no offset`)
  return value
}

function damaged(why: string): BrokerError {
  return new BrokerError('STORAGE_ERROR', `the producer snapshot is damaged: ${why}`)
}

function outOfOrder(
  why: string,
  producerId: number,
  producerEpoch: number,
  expected: number,
  actual: number,
): BrokerError {
  return new BrokerError('OUT_OF_ORDER_SEQUENCE', `producer ${producerId}: ${why}`, {
    producerId,
    producerEpoch,
    expected,
    actual,
  })
}
