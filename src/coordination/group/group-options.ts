import { DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS } from '../../common/units.ts'

/** Settings of the coordinator. All optional to its user; all set inside. */
export interface GroupOptions {
  /** Of members that do not say. Default 45 s. */
  readonly sessionTimeoutMs: number
  /** Default 6 s. */
  readonly minSessionTimeoutMs: number
  /** Default 30 min. */
  readonly maxSessionTimeoutMs: number
  /** Of members that do not say. Default 5 min; members may ask for up to an hour. */
  readonly rebalanceTimeoutMs: number
  readonly maxRebalanceTimeoutMs: number
  /** The least time between two target assignments of one group. Default 1 s. */
  readonly rebalanceIntervalMs: number
  /** Of one group. Default 10 000. */
  readonly maxMembers: number
  /** How long a group without members keeps its offsets. Default 7 d. */
  readonly offsetsRetentionMs: number
  /** How often that is looked at. Default 10 min. */
  readonly expiryCheckMs: number
  /** What damage in the state's log means: refuse the groups in it, or go on without what is lost. Default `halt`. */
  readonly onCorruption: 'halt' | 'skip'
  /** Of `__groups` and `__offsets` when they are made. Default 8. */
  readonly partitions: number
  /** How often a member shows that it is alive. Default: a third of its session timeout, at most 5 s. */
  heartbeatIntervalMs(sessionTimeoutMs: number): number
}

export const DEFAULT_GROUP_OPTIONS: GroupOptions = {
  sessionTimeoutMs: 45 * SECOND_MS,
  minSessionTimeoutMs: 6 * SECOND_MS,
  maxSessionTimeoutMs: 30 * MINUTE_MS,
  rebalanceTimeoutMs: 5 * MINUTE_MS,
  maxRebalanceTimeoutMs: HOUR_MS,
  rebalanceIntervalMs: SECOND_MS,
  maxMembers: 10_000,
  offsetsRetentionMs: 7 * DAY_MS,
  expiryCheckMs: 10 * MINUTE_MS,
  onCorruption: 'halt',
  partitions: 8,
  heartbeatIntervalMs: (sessionTimeoutMs) =>
    Math.min(5 * SECOND_MS, Math.floor(sessionTimeoutMs / 3)),
}
