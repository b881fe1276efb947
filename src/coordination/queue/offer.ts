import type { KeyedRecord } from './key-lanes.ts'
import type { Run } from './queue-state.ts'

/** Records that could be given out. */
export interface Offer {
  readonly first: number
  readonly end: number
  /** Undefined: never looked at. */
  readonly run: Run | undefined
  readonly most: number
  readonly isLastChance: boolean
  readonly keyed: KeyedRecord | undefined
}

/**
 * One of these records may be what kills whoever has it: such runs are handed out in halves, and on their last attempt one by one, one at a time to a member
 * (Kafka's idea), so that it does not take its neighbours with it. `limit`: `queue.max.attempts`; 0: none.
 */
export function isolate(
  run: Run,
  limit: number,
): { readonly most: number; readonly isLastChance: boolean } {
  if (!run.stalled || limit === 0) return { most: Infinity, isLastChance: false }
  if (run.failures >= limit - 1) return { most: 1, isLastChance: true }
  if (run.deliveries >= Math.max(2, Math.ceil(limit / 2))) {
    return { most: Math.ceil((run.end - run.first) / 2), isLastChance: false }
  }
  return { most: Infinity, isLastChance: false }
}
