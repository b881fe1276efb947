import type { BrokerError } from '../../common/errors.ts'
import type { Admission, KeyedRecord } from './key-lanes.ts'
import type { Lease } from './lease.ts'
import type { QueueConfig } from './queue-config.ts'
import type { QueueCounters } from './queue-types.ts'

/** What a partition asks of the group that it belongs to. */
export interface QueueOwner {
  readonly group: string
  /** As they are now, for this topic. */
  readonly config: QueueConfig
  /** Where dead letters go; '': nowhere. */
  readonly deadLetterTopic: string
  /** Where those go that were promised to be written, also when none are wanted any more. */
  readonly deadLetterPlace: string
  /** Retention waits for this group here. */
  readonly holdsRetention: boolean
  /** So many more, or fewer, records of the group are leased. */
  held(records: number): void
  /** One more, or one less, is leased under `concurrency.key`. */
  heldKey(key: string, records: number): void
  /** Whether limits by key let the record go out now. */
  admit(record: KeyedRecord): Admission
  /** It goes out. */
  admitted(record: KeyedRecord): void
  count(what: keyof QueueCounters, records: number): void
  leaseLost(lease: Lease, error: BrokerError): void
  /** Something may be given out that could not be before. */
  changed(): void
  /** All groups of this partition: their state has to be loaded anew. */
  pauseGroup(untilMs: number): void
}
