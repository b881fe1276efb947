import { Ring } from '../bytes/ring.ts'
import type { Clock } from '../common/clock.ts'
import type { RecordHeader } from '../record/batch-builder.ts'
import type { Receipt } from './api.ts'
import {
  type AccumulatorOwner,
  type FlushWaiter,
  PartitionAccumulator,
} from './batch-accumulator.ts'
import type { Connection, TopicRoute } from './connection.ts'
import { DelayedSender, type DelayedSenderOwner } from './delayed-sender.ts'
import type { Encoded, Placement } from './encoded-record.ts'
import type { MillraceError } from './errors.ts'
import { PartitionChooser } from './partitioner.ts'
import type { ProduceLink } from './produce-link.ts'
import type { ProducerSettings } from './producer-settings.ts'
import { Backoff } from './retry.ts'

/** A record that waits for its topic's metadata or for room in the buffer: encoded, its bytes our own. */
export interface Parked {
  readonly key: Encoded
  readonly value: Encoded
  readonly timestampMs: number
  readonly headers: readonly RecordHeader[] | undefined
  readonly placement: Placement
  /** Of a send: takes its receipt, to come. */
  readonly resolve: ((receipt: Promise<Receipt>) => void) | undefined
  readonly bytes: number
  readonly createdMs: number
  waiters: FlushWaiter[] | undefined
}

/** What goes to one partition, with the state of its sending. */
export class LaneAccumulator extends PartitionAccumulator {
  readonly lane: Lane
  readonly backoff: Backoff
  /** Where batches under way have gone. */
  link: ProduceLink<LaneAccumulator> | undefined
  /** Waits for the end of its turn, to be sealed with what has come by then. */
  isScheduled = false
  /** Waits before trying again. */
  isPaused = false
  isAskingIdentity = false
  hadIdentity = false

  constructor(lane: Lane, partition: number, batchBytes: number, settings: ProducerSettings) {
    super(
      {
        topic: lane.topic,
        partition,
        batchBytes,
        compression: settings.compression,
        maxInFlight: settings.maxInFlight,
        idempotent: settings.idempotent,
        answered: settings.acks !== 'none',
        pool: settings.pool,
        clock: lane.clock,
      },
      lane,
    )
    this.lane = lane
    this.backoff = lane.newBackoff()
  }
}

/** One topic of one producer. */
export class Lane implements AccumulatorOwner {
  readonly topic: string
  readonly clock: Clock
  readonly chooser: PartitionChooser
  readonly parked: Ring<Parked> = new Ring()
  readonly newBackoff: () => Backoff
  /** For records that no batch can carry. */
  readonly delayed: DelayedSender
  readonly #owner: AccumulatorOwner
  accumulators: LaneAccumulator[] = []
  route: TopicRoute | undefined
  surelyFitsBytes = 0
  isLoading = false

  constructor(
    topic: string,
    connection: Connection,
    settings: ProducerSettings,
    owner: DelayedSenderOwner,
  ) {
    this.topic = topic
    this.clock = connection.clock
    this.chooser = new PartitionChooser(settings.partitioner, connection.random)
    this.newBackoff = () => new Backoff(connection.random)
    const { chooser } = this
    const { deliveryTimeoutMs } = settings
    this.delayed = new DelayedSender(connection, { topic, chooser, deliveryTimeoutMs }, owner)
    this.#owner = owner
  }

  released(bufferedBytes: number): void {
    this.#owner.released(bufferedBytes)
  }

  postFailed(error: MillraceError, records: number): void {
    this.#owner.postFailed(error, records)
  }

  sealed(partition: number): void {
    this.chooser.batchSealed(partition, this.accumulators.length)
  }
}
