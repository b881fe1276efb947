import { invariant } from '../common/assert.ts'
import type { Clock } from '../common/clock.ts'
import { BrokerError } from '../common/errors.ts'
import { toOffset } from '../common/offset.ts'
import type { Offset } from '../common/offset.ts'
import {
  readBaseSequence,
  readLastOffsetDelta,
  readMaxTimestamp,
  readProducerEpoch,
  readProducerId,
  stampAppendTime,
  stampBatch,
} from '../record/batch-header.ts'
import type { LogConfig } from './log-config.ts'
import type { AppendOptions } from './partition-log.ts'
import type { ProducerState } from './producer-state.ts'

/** What the gate answers about a batch: the offsets that are its own, or those of the original when it is a repeat. */
export interface Admission {
  /** True when the batch is in the log already, and must not be written again. It may not be durable yet. */
  readonly duplicate: boolean
  readonly baseOffset: Offset
  readonly endOffset: Offset
  readonly appendTimeMs: number | undefined
}

/**
 * The rules of appending that every engine shares: who may append, in which order, and what a batch is stamped with. No I/O,
 * no await: an engine calls `admit` before its `append` returns, so offsets are given out in call order.
 */
export class AppendGate {
  readonly producers: ProducerState
  readonly #clock: Clock
  readonly #leaderEpoch: number
  #config: LogConfig
  #nextOffset: Offset
  #lastAppendTimeMs: number

  constructor(options: {
    readonly nextOffset: Offset
    readonly leaderEpoch: number
    readonly producers: ProducerState
    readonly clock: Clock
    readonly config: LogConfig
    /** The append time of the last batch in the log, if it has one. */
    readonly lastAppendTimeMs?: number | undefined
  }) {
    this.producers = options.producers
    this.#clock = options.clock
    this.#leaderEpoch = options.leaderEpoch
    this.#config = options.config
    this.#nextOffset = options.nextOffset
    this.#lastAppendTimeMs = options.lastAppendTimeMs ?? 0
  }

  /** The assigned end: the offset that the next record will get. */
  get nextOffset(): Offset {
    return this.#nextOffset
  }

  /**
   * Checks, gives the offset, stamps base offset and leader epoch (and, if the topic says so, an append time that never decreases)
   * into `batch` in place, and remembers its producer. When it throws, nothing has changed. A repeat is recognised before the
   * expected offset is looked at: the retry of a conditional append answers where the first try went.
   * @throws BrokerError NOT_LEADER, OUT_OF_ORDER_SEQUENCE, PRODUCER_FENCED, UNKNOWN_PRODUCER, WRONG_EXPECTED_OFFSET
   */
  admit(batch: Uint8Array, options?: AppendOptions): Admission {
    const epoch = options?.leaderEpoch
    if (epoch !== undefined && epoch < this.#leaderEpoch) {
      throw new BrokerError(
        'NOT_LEADER',
        `leader epoch ${epoch} is over: the log is at epoch ${this.#leaderEpoch}`,
        { leaderEpoch: epoch, currentLeaderEpoch: this.#leaderEpoch },
      )
    }
    const count = readLastOffsetDelta(batch, 0) + 1
    const producerId = readProducerId(batch, 0)
    const baseSequence = readBaseSequence(batch, 0)
    // Control batches carry a producer id without a sequence, as in Kafka.
    const isIdempotent = producerId >= 0 && baseSequence >= 0
    if (isIdempotent) {
      const producerEpoch = readProducerEpoch(batch, 0)
      const verdict = this.producers.check(producerId, producerEpoch, baseSequence, count)
      if (verdict.kind === 'duplicate') {
        return {
          duplicate: true,
          baseOffset: verdict.baseOffset,
          endOffset: verdict.endOffset,
          appendTimeMs: this.#config.timestampType === 'append' ? verdict.timeMs : undefined,
        }
      }
    }
    const baseOffset = this.#nextOffset
    const expectedOffset = options?.expectedOffset
    if (expectedOffset !== undefined && expectedOffset !== baseOffset) {
      throw new BrokerError(
        'WRONG_EXPECTED_OFFSET',
        `the batch expects offset ${expectedOffset}, but the next one is ${baseOffset}`,
        { expectedOffset, logEndOffset: baseOffset },
      )
    }
    invariant(count >= 1, 'a batch that is appended has a record')
    const endOffset = toOffset(baseOffset + count)
    const nowMs = Math.floor(this.#clock.wallMs())
    stampBatch(batch, 0, baseOffset, this.#leaderEpoch)
    let appendTimeMs: number | undefined
    if (this.#config.timestampType === 'append') {
      appendTimeMs = Math.max(nowMs, this.#lastAppendTimeMs)
      this.#lastAppendTimeMs = appendTimeMs
      stampAppendTime(batch, 0, appendTimeMs)
    }
    if (isIdempotent) {
      const timeMs = appendTimeMs ?? readMaxTimestamp(batch, 0)
      const producerEpoch = readProducerEpoch(batch, 0)
      this.producers.record(
        producerId,
        producerEpoch,
        baseSequence,
        count,
        baseOffset,
        timeMs,
        nowMs,
      )
    }
    this.#nextOffset = endOffset
    return { duplicate: false, baseOffset, endOffset, appendTimeMs }
  }

  /** Takes back every offset from `end` on, and what producers appended there: the write has failed. */
  rollBackTo(end: Offset): void {
    invariant(end <= this.#nextOffset, 'a roll back goes back')
    this.producers.rollBackTo(end)
    this.#nextOffset = end
  }

  /** Changes settings from the next batch on. */
  configure(config: LogConfig): void {
    this.#config = config
  }
}
