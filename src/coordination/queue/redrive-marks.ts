import { BrokerError } from '../../common/errors.ts'
import { type Offset, toOffset } from '../../common/offset.ts'
import type { Partition } from '../../topic/partition.ts'
import type { CompanionLog } from './companion.ts'
import type { Companions } from './companions.ts'
import type { QueueEvent } from './queue-state.ts'

/** The queue group that every topic of dead letters has built in: what is done there has been redriven or discarded. No group of a user can have the name. */
export const REDRIVE_GROUP = '__redrive'

export interface OffsetRange {
  readonly first: number
  readonly end: number
}

/** Which dead letters have been redriven or discarded. */
export interface SettledMarks {
  /** To be called before the others, and again after something has failed. @throws BrokerError (as rejection) what loading it throws */
  open(partition: Partition): Promise<void>
  isSettled(partition: Partition, offset: number): boolean
  /** All letters below are settled. */
  unsettledFrom(partition: Partition): Offset
  /** Durable when it resolves. Once more does no harm. @throws BrokerError (as rejection) when it cannot be written */
  settle(partition: Partition, ranges: readonly OffsetRange[]): Promise<void>
}

/** {@link SettledMarks} in the companion logs of the partitions, as the group {@link REDRIVE_GROUP}. */
export class CompanionMarks implements SettledMarks {
  readonly #companions: Pick<Companions, 'open'>
  readonly #opened = new WeakMap<Partition, CompanionLog>()

  constructor(companions: Pick<Companions, 'open'>) {
    this.#companions = companions
  }

  async open(partition: Partition): Promise<void> {
    try {
      this.#opened.set(partition, await this.#openCompanion(partition))
    } catch (error) {
      // Nothing can be made where the catalog is damaged: so there has been no companion, and nothing is settled.
      if (!(error instanceof BrokerError && error.code === 'READ_ONLY')) throw error
    }
  }

  isSettled(partition: Partition, offset: number): boolean {
    const state = this.#opened.get(partition)?.find(REDRIVE_GROUP)
    return state !== undefined && offset < state.scan && state.find(offset) === undefined
  }

  unsettledFrom(partition: Partition): Offset {
    const start = this.#opened.get(partition)?.find(REDRIVE_GROUP)?.start ?? 0
    return toOffset(Math.max(start, partition.logStartOffset))
  }

  async settle(partition: Partition, ranges: readonly OffsetRange[]): Promise<void> {
    if (ranges.length === 0) return
    const companion = await this.#openCompanion(partition)
    this.#opened.set(partition, companion)
    const state = companion.create(REDRIVE_GROUP)
    const events: QueueEvent[] = []
    const { logStartOffset } = partition
    // What retention has taken needs no marks any more.
    if (state.start < logStartOffset) events.push({ type: 'started', offset: logStartOffset })
    for (const { first, end } of ranges) events.push({ type: 'accepted', first, end })
    for (const event of events) state.apply(event)
    await companion.write(REDRIVE_GROUP, events)
  }

  #openCompanion(partition: Partition): Promise<CompanionLog> {
    return this.#companions.open(partition.topic, partition.index)
  }
}

/** Offsets as ranges, neighbours joined. They must rise. */
export function toRanges(offsets: readonly number[]): OffsetRange[] {
  const ranges: { first: number; end: number }[] = []
  for (const offset of offsets) {
    const last = ranges.at(-1)
    if (last?.end === offset) last.end = offset + 1
    else ranges.push({ first: offset, end: offset + 1 })
  }
  return ranges
}
