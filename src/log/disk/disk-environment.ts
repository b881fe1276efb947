import type { Clock } from '../../common/clock.ts'
import type { Random } from '../../common/random.ts'
import { GIB, KIB, MIB, SECOND_MS } from '../../common/units.ts'
import type { FileSystem } from '../../fs/file-system.ts'
import type { SealedFiles } from './sealed-files.ts'
import type { TailCacheBudget } from './tail-cache.ts'

/** Where the engine says what it found. Details are plain values. */
export interface DiskLogger {
  info(details: Readonly<Record<string, unknown>>, message: string): void
  warn(details: Readonly<Record<string, unknown>>, message: string): void
  error(details: Readonly<Record<string, unknown>>, message: string): void
}

/** Settings of the engine that are the broker's, not a topic's. */
export interface DiskOptions {
  /** Tails of all logs that are kept in memory. */
  readonly cacheBytes: number
  /** Sealed segments whose files may be open at once. */
  readonly maxSealedFiles: number
  readonly maxIndexBytes: number
  /** A checkpoint is due after this much time, when anything has changed … */
  readonly checkpointIntervalMs: number
  /** … or after this many bytes; producers are held back at twice as many, so that recovery never reads more. */
  readonly checkpointBytes: number
  /** Appends are refused while less is free; Infinity stands for the larger of 1 GiB and 5 % of the disk. */
  readonly diskFloorBytes: number
  /** Real bytes set aside, given up when the disk is all but full. 0: none. */
  readonly ballastBytes: number
  readonly diskCheckMs: number
  /** How fast sealed segments are re-read in the background. 0: not at all. */
  readonly scrubBytesPerSecond: number
  /** No batch is larger; bounds what a scan believes. */
  readonly maxBatchBytes: number
  /** What a round of compaction may take to remember keys, 27 bytes each; more keys take more rounds. */
  readonly compactionMapBytes: number
  /**
   * Share of the event loop that compaction takes while the broker has other work. 0 to 1. What others lose is more, since a producer's pipeline runs
   * empty while a slice of it is done: at 0.1 a saturated one on two cores kept 71 to 79 % of its throughput, at 0.05 88 to 95 % (`bench -- compact`).
   */
  readonly compactionShare: number
}

export const DEFAULT_DISK_OPTIONS: DiskOptions = {
  cacheBytes: 256 * MIB,
  maxSealedFiles: 512,
  maxIndexBytes: 128 * MIB,
  checkpointIntervalMs: 5 * SECOND_MS,
  checkpointBytes: 64 * MIB,
  diskFloorBytes: Infinity,
  ballastBytes: 64 * MIB,
  diskCheckMs: SECOND_MS,
  scrubBytesPerSecond: 20 * MIB,
  maxBatchBytes: 8 * MIB + 64 * KIB,
  compactionMapBytes: 64 * MIB,
  compactionShare: 0.05,
}

/** The soft floor when none is set: at least 1 GiB, or 5 % of a larger disk (CONTRACT §2.3). */
export function defaultDiskFloor(totalBytes: number): number {
  return Math.max(GIB, totalBytes * 0.05)
}

/** What all logs of a store share. */
export interface DiskEnvironment {
  readonly fs: FileSystem
  readonly clock: Clock
  readonly logger: DiskLogger
  readonly options: DiskOptions
  readonly incarnation: number
  readonly sealedFiles: SealedFiles
  readonly tailBudget: TailCacheBudget
  readonly random: Random
  /** Counts appends and reads: whoever can wait sees whether somebody else is at work. */
  readonly activity: { count: number }
  readonly storageFull: boolean
  /** Bytes have been written that no checkpoint knows of. */
  noteWritten(bytes: number): void
  /** While too many have: resolves when a checkpoint has caught up. */
  hold(): Promise<void> | undefined
  /** Has a checkpoint written that begins after this call, and waits for it. */
  checkpoint(): Promise<void>
  /** The same, without waiting. */
  requestCheckpoint(): void
  /** The store must not go on. */
  fail(error: unknown): void
  /** Takes care of work that nobody waits for: its failure is logged, and closing waits for it. */
  inBackground(what: string, work: () => Promise<void>): void
}
