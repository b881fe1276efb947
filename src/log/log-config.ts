import type { Isolation } from './partition-log.ts'
import { DAY_MS, GIB, KIB, MIB, MINUTE_MS } from '../common/units.ts'

/** Settings of one log that an engine needs. All set; `topic/topic-config.ts` makes them from a topic's settings. */
export interface LogConfig {
  /** Roll when the active segment would grow past this. From 1 MiB (tests: less) to 2^31 - 1 bytes. */
  readonly segmentBytes: number
  /** Roll when the first batch of the active segment is older than this. */
  readonly segmentMs: number
  /** Roll when the offset index would grow past this. */
  readonly indexBytes: number
  /** Bytes of log between two index entries. */
  readonly indexIntervalBytes: number
  /** Drop segments whose newest record is older. Infinity: keep. */
  readonly retentionMs: number
  /** Drop the oldest segments while at least this much remains without them, as Kafka does. Infinity: keep. */
  readonly retentionBytes: number
  /** Drop the oldest segments while more records than this would remain without them. Infinity: keep. */
  readonly retentionRecords: number
  /** How long bytes below the log start stay on the disk, for readers that are in them. */
  readonly deleteDelayMs: number
  /** `create`: the producer's timestamps stay. `append`: the broker stamps its own, never decreasing. */
  readonly timestampType: 'create' | 'append'
  /** What plain readers see: only what is durable, or also what is merely written. */
  readonly visibility: Isolation
  /** Keep the newest batches in memory for readers. As it is when the log is opened: a later change comes with the next opening. */
  readonly tailCache: boolean
  /** How long an idle producer id is remembered. */
  readonly producerExpiryMs: number
  /** Keep only the newest record of each key, below the active segment. Retention is set apart from this. */
  readonly compact: boolean
  /** Compact when at least this share of the bytes has not been compacted yet. 0 to 1. */
  readonly minCleanableRatio: number
  /** How long a tombstone stays after it has been compacted for the first time, for readers to see it. */
  readonly deleteRetentionMs: number
  /** Records younger than this are not compacted. */
  readonly minCompactionLagMs: number
  /** Records older than this are compacted whatever the ratio says. Infinity: as the ratio says. */
  readonly maxCompactionLagMs: number
}

export const DEFAULT_LOG_CONFIG: LogConfig = {
  segmentBytes: GIB,
  segmentMs: 7 * DAY_MS,
  indexBytes: 10 * MIB,
  indexIntervalBytes: 4 * KIB,
  retentionMs: 7 * DAY_MS,
  retentionBytes: Infinity,
  retentionRecords: Infinity,
  deleteDelayMs: MINUTE_MS,
  timestampType: 'create',
  visibility: 'durable',
  tailCache: true,
  producerExpiryMs: 7 * DAY_MS,
  compact: false,
  minCleanableRatio: 0.5,
  deleteRetentionMs: DAY_MS,
  minCompactionLagMs: 0,
  maxCompactionLagMs: Infinity,
}
