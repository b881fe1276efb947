import { invariant } from '../../common/assert.ts'
import { BrokerError } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import type { Offset } from '../../common/offset.ts'
import { KIB, MIB, MINUTE_MS } from '../../common/units.ts'
import { OFFSET_INDEX_ENTRY_BYTES } from '../../segment/offset-index.ts'
import { swapFileName, segmentFileName } from '../../segment/segment-names.ts'
import type { DamageMap } from '../../segment/damage-map.ts'
import {
  emptyBatch,
  isControl,
  readBaseTimestamp,
  readRecordCount,
} from '../../record/batch-header.ts'
import { RecordCursor } from '../../record/record-cursor.ts'
import { BatchFilter } from '../batch-filter.ts'
import type { FilterVerdict } from '../batch-filter.ts'
import type { EpochHistory } from '../epoch-history.ts'
import type { LogConfig } from '../log-config.ts'
import { OffsetMap } from '../offset-map.ts'
import type { CompactionNeed, CompactionReport } from '../partition-log.ts'
import type { ProducerState } from '../producer-state.ts'
import type { ActiveSegment } from './active-segment.ts'
import { readCompactionState, writeCompactionState } from './compaction-state.ts'
import type { CompactionState } from './compaction-state.ts'
import type { DiskEnvironment } from './disk-environment.ts'
import { Pacer } from './pacer.ts'
import { SegmentFile } from './sealed-files.ts'
import { SealedSegment } from './segment-list.ts'
import type { SealedFacts, SegmentList } from './segment-list.ts'
import type { SegmentSealer } from './segment-sealer.ts'
import { removeIfThere, removeReplaced } from './segment-swap.ts'
import { SegmentWalk } from './segment-walk.ts'
import { SegmentWriter } from './segment-writer.ts'

/**
 * Only sealed segments are compacted. So that a log with little traffic gets there before it has filled a segment, the cleaner rolls an active one
 * that has this much, or that is this old and has a little; always only when compacting would be worth it.
 */
const ROLL_BYTES: number = MIB
const ROLL_AGE_MS: number = 10 * MINUTE_MS
const ROLL_AGED_BYTES: number = 16 * KIB

/** After a round that failed, or that found what it cannot read, the next look is this much later. */
const RETRY_MS: number = 5 * MINUTE_MS

/** Records between two looks at the time: about 0.4 ms, since a lookup in a full map takes 0.7 µs on two busy cores. */
const RECORDS_PER_STEP = 512

/** Offsets of a segment, relative to its base, fit in 31 bits. */
const MOST_OFFSETS_PER_SEGMENT: number = 2 ** 31 - 1

/** Where old segments are dropped, too, only those are merged that are of the same stretch of that time: nothing stays longer by more than this. */
const RETENTION_STRETCHES = 8

/** What compaction leaves free on the disk, whatever it could gain: commits and the catalog must have room while it writes (CONTRACT §2.3). */
const RESERVED_BYTES: number = 64 * MIB

/** What compaction asks of the log whose segments it works on. */
export interface CompactionHost {
  readonly env: DiskEnvironment
  readonly name: string
  readonly directory: string
  readonly segments: SegmentList
  readonly sealer: SegmentSealer
  readonly epochs: EpochHistory
  readonly damage: DamageMap
  readonly producers: ProducerState
  readonly config: LogConfig
  readonly active: ActiveSegment
  readonly logStartOffset: Offset
  /** No checkpoint that a start could go by says anything of the files of segments below this. */
  readonly settledBase: Offset
  roll(): Promise<void>
  loadFacts(segment: SealedSegment, endOffset: Offset): Promise<SealedFacts>
  /** Makes the log consist of `next` where `old` were, at once; then lets go of their files. */
  replaced(old: readonly SealedSegment[], next: SealedSegment): Promise<void>
  /** Runs `work`, which gives a segment's file another name: readers that do not find a file meanwhile look again when it is over. */
  moving(work: () => Promise<void>): Promise<void>
  /** Flushes the folder. When that fails the store stops. */
  flushFolder(): Promise<void>
  sealLater(segment: SealedSegment): void
}

interface Candidate {
  readonly segment: SealedSegment
  readonly endOffset: Offset
  readonly sizeBytes: number
  isUnreadable: boolean
  /** Kept from others, until its place has been taken. */
  isClaimed: boolean
}

/** A swap that is past its point of no return, and has not been finished. */
interface UnfinishedSwap {
  readonly bases: readonly Offset[]
  readonly endOffset: Offset
  /** Undefined when the swap file is to be given up: nothing has been done by it. */
  readonly next: SealedSegment | undefined
}

/** Compacts one log, a round at a time, when it is told to. */
export class DiskCompaction {
  readonly #host: CompactionHost
  #state: CompactionState | undefined
  #unfinished: UnfinishedSwap | undefined
  #retryAtMs = -Infinity
  #stop: AbortController | undefined
  /** Of the first segment that has not been compacted: when its first record was written. */
  #firstDirty: { readonly segment: SealedSegment; readonly timestampMs: number } | undefined

  constructor(host: CompactionHost) {
    this.#host = host
  }

  // ── when ─────────────────────────────────────────────────────────────────────────────────────

  async findNeed(): Promise<CompactionNeed | undefined> {
    const { config, env, segments } = this.#host
    if (!config.compact || env.clock.monotonicMs() < this.#retryAtMs) return undefined
    const { cleanedTo, tombstonesDueMs } = await this.#loadState()
    const nowMs = env.clock.wallMs()
    let totalBytes = 0
    let dirtyBytes = 0
    let firstDirty: SealedSegment | undefined
    const { sealed } = segments
    for (const [i, segment] of sealed.entries()) {
      if (segment.deleteAtMs !== undefined) continue
      const endOffset = sealed[i + 1]?.baseOffset ?? this.#host.active.baseOffset
      const facts = segment.facts ?? (await this.#host.loadFacts(segment, endOffset))
      if (this.#isYoung(facts.maxTimestampMs, nowMs)) break
      totalBytes += facts.sizeBytes
      if (endOffset <= cleanedTo) continue
      firstDirty ??= segment
      dirtyBytes += facts.sizeBytes
    }
    const { active } = this.#host
    const isRollDue = this.#isRollDue(active, nowMs, totalBytes, dirtyBytes)
    if (isRollDue) {
      dirtyBytes += active.position
      totalBytes += active.position
    }
    const dirtyRatio = totalBytes === 0 ? 0 : dirtyBytes / totalBytes
    const isDue =
      isRollDue ||
      (dirtyBytes > 0 && dirtyRatio >= config.minCleanableRatio) ||
      (totalBytes > 0 && tombstonesDueMs >= 0 && tombstonesDueMs <= nowMs) ||
      (firstDirty !== undefined && (await this.#isOverdue(firstDirty, nowMs)))
    return isDue ? { dirtyRatio, dirtyBytes, totalBytes } : undefined
  }

  #isYoung(maxTimestampMs: number, nowMs: number): boolean {
    const { minCompactionLagMs } = this.#host.config
    return minCompactionLagMs > 0 && maxTimestampMs > nowMs - minCompactionLagMs
  }

  #isRollDue(
    active: ActiveSegment,
    nowMs: number,
    totalBytes: number,
    dirtyBytes: number,
  ): boolean {
    const { minCleanableRatio, maxCompactionLagMs } = this.#host.config
    const { position } = active
    if (position === 0 || this.#isYoung(active.maxTimestampMs, nowMs)) return false
    const ageMs = nowMs - active.sinceMs
    if (ageMs >= maxCompactionLagMs) return true
    const isWorth = (dirtyBytes + position) / (totalBytes + position) >= minCleanableRatio
    return (
      isWorth && (position >= ROLL_BYTES || (position >= ROLL_AGED_BYTES && ageMs >= ROLL_AGE_MS))
    )
  }

  /** Whether a record that has not been compacted is older than it may become. */
  async #isOverdue(segment: SealedSegment, nowMs: number): Promise<boolean> {
    const { maxCompactionLagMs } = this.#host.config
    if (maxCompactionLagMs === Infinity) return false
    if (this.#firstDirty?.segment !== segment) {
      const walk = await this.#readFirst(segment)
      this.#firstDirty = { segment, timestampMs: walk }
    }
    return nowMs - this.#firstDirty.timestampMs >= maxCompactionLagMs
  }

  /** The time of a segment's first record; that of its newest where the first batch does not tell. */
  async #readFirst(segment: SealedSegment): Promise<number> {
    const newest = segment.facts?.maxTimestampMs ?? -1
    return await this.#withWalk(segment, segment.facts?.sizeBytes ?? 0, async (walk) => {
      while (walk.step() === 'load') if (!(await walk.load())) return newest
      if (walk.step() !== 'batch' || readRecordCount(walk.bytes, walk.at) === 0) return newest
      const timestampMs = readBaseTimestamp(walk.bytes, walk.at)
      return timestampMs >= 0 && timestampMs < newest ? timestampMs : newest
    })
  }

  async #loadState(): Promise<CompactionState> {
    if (this.#state === undefined) {
      const { env, directory } = this.#host
      const state = await readCompactionState(env.fs, directory)
      this.#state ??= state
    }
    return this.#state
  }

  // ── a round ──────────────────────────────────────────────────────────────────────────────────

  /** One round at a time. @param isStopped it has been asked to stop before it began */
  async run(isStopped: boolean): Promise<CompactionReport> {
    const { env } = this.#host
    const startedMs = env.clock.monotonicMs()
    this.#stop = new AbortController()
    if (isStopped) this.stop()
    try {
      const report = await this.#run(this.#stop.signal)
      return { ...report, elapsedMs: env.clock.monotonicMs() - startedMs }
    } catch (error) {
      this.#retryAtMs = env.clock.monotonicMs() + RETRY_MS
      throw error
    }
  }

  /** Lets the round that is under way end soon, with CLOSED. */
  stop(): void {
    this.#stop?.abort()
  }

  async #run(signal: AbortSignal): Promise<CompactionReport> {
    const { env, config } = this.#host
    await this.#finishUnfinished()
    const state = await this.#loadState()
    await this.#rollIfDue(state)
    await this.#settle()
    const pacer = new Pacer(env.clock, env.activity, env.options.compactionShare, signal)
    const candidates = await this.#claim(pacer)
    try {
      const round = new CompactionRound(this.#host, state, candidates, pacer, (swap) => {
        this.#unfinished = swap
      })
      const done = await round.run()
      this.#state = done.state
      if (done.report.segmentsSkipped > 0) this.#retryAtMs = env.clock.monotonicMs() + RETRY_MS
      if (config.compact && candidates.length > 0) {
        await writeCompactionState(env.fs, this.#host.directory, done.state)
      }
      return done.report
    } finally {
      for (const candidate of candidates) release(this.#host, candidate)
    }
  }

  async #rollIfDue(state: CompactionState): Promise<void> {
    const { segments, active, env } = this.#host
    let [totalBytes, dirtyBytes] = [0, 0]
    for (const [i, segment] of segments.sealed.entries()) {
      if (segment.deleteAtMs !== undefined) continue
      const endOffset = segments.endOf(i, active.baseOffset)
      totalBytes += segment.facts?.sizeBytes ?? 0
      if (endOffset > state.cleanedTo) dirtyBytes += segment.facts?.sizeBytes ?? 0
    }
    if (this.#isRollDue(active, env.clock.wallMs(), totalBytes, dirtyBytes)) {
      await this.#host.roll()
    }
  }

  /** Until neither slot of the checkpoint speaks of the inside of a segment that is to be compacted: a start from there would not find its place. */
  async #settle(): Promise<void> {
    for (let i = 0; i < 2 && this.#host.settledBase < this.#host.active.baseOffset; i++) {
      await this.#host.env.checkpoint()
    }
  }

  /** The segments of this round, from the first on, kept from everybody else who would change them. */
  async #claim(pacer: Pacer): Promise<Candidate[]> {
    const { segments, sealer, env } = this.#host
    for (;;) {
      const limit = toOffset(Math.min(this.#host.settledBase, this.#host.active.baseOffset))
      const nowMs = env.clock.wallMs()
      const candidates: Candidate[] = []
      let waitFor: Promise<unknown> | undefined
      for (const [i, segment] of segments.sealed.entries()) {
        const endOffset = segments.endOf(i, this.#host.active.baseOffset)
        if (segment.deleteAtMs !== undefined) continue
        if (endOffset > limit) break
        if (sealer.isBusyWith(segment)) {
          waitFor = sealer.whenFree(segment.baseOffset)
          break
        }
        if (segment.facts === undefined) {
          waitFor = this.#host.loadFacts(segment, endOffset)
          break
        }
        if (this.#isYoung(segment.facts.maxTimestampMs, nowMs)) break
        const { sizeBytes } = segment.facts
        candidates.push({ segment, endOffset, sizeBytes, isUnreadable: false, isClaimed: false })
      }
      if (waitFor === undefined) {
        for (const candidate of candidates) {
          sealer.claim(candidate.segment.baseOffset)
          candidate.isClaimed = true
        }
        return candidates
      }
      await pacer.waiting(waitFor)
    }
  }

  // ── swaps that could not be finished ─────────────────────────────────────────────────────────

  async #finishUnfinished(): Promise<void> {
    const swap = this.#unfinished
    if (swap === undefined) return
    const { env, directory } = this.#host
    if (swap.next === undefined) {
      await removeSwap(this.#host, swap)
    } else if (this.#host.segments.sealed.includes(swap.next)) {
      await finishSwap(this.#host, swap.next, swap.bases, swap.endOffset)
      this.#host.sealLater(swap.next)
    } else {
      // It has been deleted meanwhile.
      await removeIfThere(env.fs, `${directory}/${nameOfSwap(swap)}`)
      await this.#host.flushFolder()
    }
    this.#unfinished = undefined
  }

  async #withWalk<T>(
    segment: SealedSegment,
    sizeBytes: number,
    work: (walk: SegmentWalk) => Promise<T>,
  ): Promise<T> {
    const { segments, active } = this.#host
    const endOffset = segments.endOf(segments.sealed.indexOf(segment), active.baseOffset)
    return await withWalk(this.#host, { segment, endOffset, sizeBytes }, work)
  }
}

/** Once: by the end of a round somebody else may have claimed what has been released early. */
function release(host: CompactionHost, candidate: Candidate): void {
  if (!candidate.isClaimed) return
  candidate.isClaimed = false
  host.sealer.release(candidate.segment.baseOffset)
}

async function withWalk<T>(
  host: CompactionHost,
  { segment, sizeBytes, endOffset }: Pick<Candidate, 'segment' | 'sizeBytes' | 'endOffset'>,
  work: (walk: SegmentWalk) => Promise<T>,
): Promise<T> {
  const { env, epochs } = host
  const { baseOffset } = segment
  const { maxBatchBytes } = env.options
  return await env.sealedFiles.use(segment.file, (file) =>
    work(new SegmentWalk({ file, sizeBytes, baseOffset, endOffset, epochs, maxBatchBytes })),
  )
}

function nameOfSwap(swap: Pick<UnfinishedSwap, 'bases' | 'endOffset'>): string {
  const [base] = swap.bases
  invariant(base !== undefined, 'a swap replaces a segment')
  return swapFileName(base, swap.endOffset)
}

/** Steps 3 and 4 of a swap (segment-swap.ts). */
async function finishSwap(
  host: CompactionHost,
  next: SealedSegment,
  bases: readonly Offset[],
  endOffset: Offset,
): Promise<void> {
  const { fs } = host.env
  await removeReplaced(fs, host.directory, bases)
  await host.flushFolder()
  const path = `${host.directory}/${segmentFileName(next.baseOffset, 'log')}`
  await host.moving(async () => {
    await fs.rename(`${host.directory}/${nameOfSwap({ bases, endOffset })}`, path)
    next.file.path = path
  })
  await host.flushFolder()
}

/** Takes back a swap before anything has been done by it. */
async function removeSwap(host: CompactionHost, swap: UnfinishedSwap): Promise<void> {
  await removeIfThere(host.env.fs, `${host.directory}/${nameOfSwap(swap)}`)
  await host.flushFolder()
}

/** A segment that is being put together, of several that lie side by side or of one. */
interface Group {
  /** Made when the first batch is to change: until then the segment is as it should be. */
  writer: SegmentWriter | undefined
  readonly parts: Candidate[]
  isChanged: boolean
  /** Offsets that have gone since the last batch that was written. */
  gap: { readonly start: Offset; readonly end: Offset; readonly epoch: number } | undefined
}

/** One round over the segments of one log. */
class CompactionRound {
  readonly #host: CompactionHost
  readonly #before: CompactionState
  readonly #candidates: readonly Candidate[]
  readonly #pacer: Pacer
  readonly #noteUnfinished: (swap: UnfinishedSwap | undefined) => void
  readonly #cursor = new RecordCursor({ reuseMemory: true })
  #bytesAfter = 0
  #segmentsAfter = 0
  #uncleanTo: Offset

  constructor(
    host: CompactionHost,
    before: CompactionState,
    candidates: readonly Candidate[],
    pacer: Pacer,
    noteUnfinished: (swap: UnfinishedSwap | undefined) => void,
  ) {
    this.#host = host
    this.#before = before
    this.#candidates = candidates
    this.#pacer = pacer
    this.#noteUnfinished = noteUnfinished
    this.#uncleanTo = before.uncleanTo
  }

  async run(): Promise<{ readonly report: CompactionReport; readonly state: CompactionState }> {
    const { env, config, logStartOffset, producers } = this.#host
    for (const candidate of this.#candidates) {
      candidate.isUnreadable = this.#isKnownDamaged(candidate)
    }
    const { map, mapEnd } = await this.#makeMap()
    const filter = new BatchFilter({
      map,
      mapEnd,
      mayDropTombstones: this.#before.uncleanTo <= logStartOffset,
      nowMs: Math.floor(env.clock.wallMs()),
      deleteRetentionMs: config.deleteRetentionMs,
      maxBatchBytes: env.options.maxBatchBytes,
      remembers: (producerId, baseOffset) => producers.remembers(producerId, baseOffset),
    })
    const covered = this.#candidates.filter(({ segment }) => segment.baseOffset < mapEnd)
    await this.#clean(covered, filter)
    return {
      report: {
        bytesBefore: covered.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
        bytesAfter: this.#bytesAfter,
        segmentsBefore: covered.length,
        segmentsAfter: this.#segmentsAfter,
        recordsRemoved: filter.recordsRemoved,
        tombstonesRemoved: filter.tombstonesRemoved,
        cleanedTo: mapEnd,
        segmentsSkipped: covered.filter(({ isUnreadable }) => isUnreadable).length,
        elapsedMs: 0,
      },
      state: {
        cleanedTo: mapEnd,
        uncleanTo: this.#uncleanTo,
        tombstonesDueMs: filter.tombstonesDueMs,
      },
    }
  }

  #isKnownDamaged({ segment, endOffset }: Candidate): boolean {
    return this.#host.damage.ranges.some(
      (range) => range.start < endOffset && range.end > segment.baseOffset,
    )
  }

  // ── the keys of what is new ──────────────────────────────────────────────────────────────────

  async #makeMap(): Promise<{ readonly map: OffsetMap; readonly mapEnd: Offset }> {
    const { options, random } = this.#host.env
    const first = this.#candidates[0]?.segment.baseOffset ?? this.#before.cleanedTo
    const last = this.#candidates.at(-1)?.endOffset ?? first
    const from = toOffset(Math.min(Math.max(this.#before.cleanedTo, first), last))
    const map = new OffsetMap({
      maxBytes: options.compactionMapBytes,
      expectedKeys: last - from,
      origin: from,
      secret: random.bytes(16),
    })
    for (const candidate of this.#candidates) {
      if (candidate.endOffset <= from || candidate.isUnreadable) continue
      const fullAt = await this.#addKeys(candidate, from, map)
      if (fullAt !== undefined) return { map, mapEnd: fullAt }
    }
    return { map, mapEnd: last }
  }

  /** The first offset for which the map has no room; undefined when there was room for all. */
  async #addKeys(candidate: Candidate, from: Offset, map: OffsetMap): Promise<Offset | undefined> {
    let fullAt: Offset | undefined
    await this.#eachBatch(candidate, async (walk) => {
      if (walk.batchEnd <= from) return true
      fullAt = await this.#addBatch(walk, from, map)
      // Between batches, if it gets anywhere that way: all tombstones of a batch share the time at which they may go.
      if (fullAt !== undefined && walk.offset > from) fullAt = walk.offset
      return fullAt === undefined
    })
    return fullAt
  }

  async #addBatch(walk: SegmentWalk, from: Offset, map: OffsetMap): Promise<Offset | undefined> {
    const { bytes, at } = walk
    if (isControl(bytes, at) || readRecordCount(bytes, at) === 0) return undefined
    const cursor = this.#cursor
    try {
      cursor.reset(bytes, at)
      for (let i = 1; cursor.next(); i++) {
        const offset = cursor.offset as Offset // Of a batch whose offsets have been checked.
        if (offset >= from && cursor.keyStart >= 0) {
          if (!map.put(cursor.bytes, cursor.keyStart, cursor.keyEnd, offset)) return offset
        }
        if (i % RECORDS_PER_STEP === 0) await this.#pacer.turn()
      }
    } catch (error) {
      this.#pacer.check()
      // Written in a way that nobody can read: the filter meets it again, and lets it be.
      if (!(error instanceof BrokerError)) throw error
    }
    return undefined
  }

  /** Goes through the batches while `visit` says so; false when the segment cannot be read whole, which is noted. */
  async #eachBatch(
    candidate: Candidate,
    visit: (walk: SegmentWalk) => Promise<boolean> | boolean,
  ): Promise<boolean> {
    return await withWalk(this.#host, candidate, async (walk) => {
      for (;;) {
        const found = walk.step()
        if (found === 'end') return true
        if (found === 'load' && (await this.#pacer.waiting(walk.load()))) continue
        if (found !== 'batch') {
          this.#noteUnreadable(candidate, walk)
          return false
        }
        if (!(await visit(walk))) return true
        walk.advance()
        await this.#pacer.turn()
      }
    })
  }

  #noteUnreadable(candidate: Candidate, walk: SegmentWalk): void {
    candidate.isUnreadable = true
    const { baseOffset } = candidate.segment
    this.#host.env.logger.warn(
      { partition: this.#host.name, segment: baseOffset, offset: walk.offset },
      'a segment cannot be compacted, for part of it is damaged: it stays as it is',
    )
  }

  // ── the segments ─────────────────────────────────────────────────────────────────────────────

  async #clean(covered: readonly Candidate[], filter: BatchFilter): Promise<void> {
    let i = 0
    for (let candidate = covered[i]; candidate !== undefined; candidate = covered[i]) {
      if (candidate.isUnreadable) {
        // Older records of any key may be in it: no tombstone behind it may go, now or later.
        filter.hasLeftRecords = true
        this.#uncleanTo = toOffset(Math.max(this.#uncleanTo, candidate.endOffset))
        this.#countUntouched(candidate)
        i++
        continue
      }
      const counts = filter.counts
      const hadLeft = filter.hasLeftRecords
      const next = await this.#cleanFrom(covered, i, filter)
      if (next === undefined) {
        // One of them turned out to be damaged: once more, without it.
        filter.counts = counts
        filter.hasLeftRecords = hadLeft
        continue
      }
      if (filter.hasLeftRecords && !hadLeft) {
        const end = covered[next - 1]?.endOffset ?? candidate.endOffset
        this.#uncleanTo = toOffset(Math.max(this.#uncleanTo, end))
      }
      i = next
    }
  }

  #countUntouched({ sizeBytes }: Candidate): void {
    this.#bytesAfter += sizeBytes
    this.#segmentsAfter++
  }

  /** Cleans the segment at `first`, and as many behind it as fit into one. The index behind them; undefined when one cannot be read. */
  async #cleanFrom(
    covered: readonly Candidate[],
    first: number,
    filter: BatchFilter,
  ): Promise<number | undefined> {
    const group: Group = { writer: undefined, parts: [], isChanged: false, gap: undefined }
    try {
      let i = first
      for (let part = covered[i]; part !== undefined; part = covered[i]) {
        if (i === first && this.#mayGrow(part.sizeBytes, part, covered[i + 1])) {
          await this.#openWriter(group, part)
        }
        group.parts.push(part)
        if (!(await this.#cleanSegment(part, group, filter))) {
          await this.#abandon(group)
          return undefined
        }
        i++
        if (group.writer === undefined) break
        const { sizeBytes } = group.writer
        if (!this.#mayGrow(sizeBytes, covered[first] ?? part, covered[i])) break
        if (!(await this.#hasRoom(covered[i]?.sizeBytes ?? 0))) break
      }
      if (group.parts.length > 1 || group.isChanged) {
        await this.#commit(group)
      } else {
        await this.#abandon(group)
        for (const part of group.parts) this.#countUntouched(part)
      }
      return i
    } catch (error) {
      await this.#abandon(group)
      throw error
    }
  }

  /** Whether `next` fits behind `sizeBytes` of what began with `first`, however little it loses. */
  #mayGrow(sizeBytes: number, first: Candidate, next: Candidate | undefined): boolean {
    const { segmentBytes, indexBytes, indexIntervalBytes } = this.#host.config
    if (next === undefined || next.isUnreadable || !this.#areOfOneAge(first, next)) return false
    const total = sizeBytes + next.sizeBytes
    return (
      total <= segmentBytes &&
      (total / indexIntervalBytes) * OFFSET_INDEX_ENTRY_BYTES <= indexBytes &&
      next.endOffset - first.segment.baseOffset <= MOST_OFFSETS_PER_SEGMENT
    )
  }

  /**
   * Whether retention by time may treat the two as one. A segment goes when its newest record is too old, so one that is merged with each
   * newer one would never go. By fixed stretches of time, not by the distance, which would let a segment grow from neighbour to neighbour.
   */
  #areOfOneAge(first: Candidate, next: Candidate): boolean {
    const { retentionMs } = this.#host.config
    if (retentionMs === Infinity) return true
    const stretchMs = Math.max(1, retentionMs / RETENTION_STRETCHES)
    const [a, b] = [first, next].map(({ segment }) =>
      Math.floor((segment.facts?.maxTimestampMs ?? -1) / stretchMs),
    )
    return a === b
  }

  async #hasRoom(bytes: number): Promise<boolean> {
    const { env, directory } = this.#host
    const { freeBytes } = await env.fs.space(directory)
    return freeBytes >= bytes + RESERVED_BYTES
  }

  async #openWriter(group: Group, part: Candidate): Promise<SegmentWriter> {
    const { env, directory, config } = this.#host
    if (!(await this.#hasRoom(part.sizeBytes))) {
      throw new BrokerError(
        'STORAGE_FULL',
        `a segment of ${part.sizeBytes} bytes cannot be compacted: it needs as much free space, and ${RESERVED_BYTES} bytes beside it`,
        { actual: part.sizeBytes },
      )
    }
    const { baseOffset } = part.segment
    const path = `${directory}/${segmentFileName(baseOffset, 'log')}.tmp`
    const opening = SegmentWriter.create(env.fs, path, baseOffset, config.indexIntervalBytes)
    const writer = await opening
    group.writer = writer
    return writer
  }

  /** False when the segment cannot be read whole. */
  async #cleanSegment(part: Candidate, group: Group, filter: BatchFilter): Promise<boolean> {
    const isWhole = await this.#eachBatch(part, async (walk) => {
      filter.begin(walk.bytes, walk.at)
      while (!filter.step(RECORDS_PER_STEP)) await this.#pacer.turn()
      const verdict = filter.finish()
      const isEmpty = readRecordCount(walk.bytes, walk.at) === 0
      if (verdict !== 'keep' && !isEmpty) group.isChanged = true
      if (group.writer === undefined) {
        // An empty batch that could go is no reason to write a segment anew.
        if (!group.isChanged) return true
        await this.#copyBefore(part, walk.position, await this.#openWriter(group, part))
        // What could be read a moment ago cannot be any more: nothing may be missing in what takes its place.
        if (part.isUnreadable) return false
      }
      await this.#put(group, walk, verdict, filter)
      return true
    })
    return isWhole && !part.isUnreadable
  }

  /** What lies before the first batch that changes. */
  async #copyBefore(part: Candidate, position: number, writer: SegmentWriter): Promise<void> {
    await this.#eachBatch(part, async (walk) => {
      if (walk.position >= position) return false
      const writing = writer.add(walk.bytes, walk.at)
      if (writing !== undefined) await this.#pacer.waiting(writing)
      return true
    })
  }

  async #put(
    group: Group,
    walk: SegmentWalk,
    verdict: FilterVerdict,
    filter: BatchFilter,
  ): Promise<void> {
    if (verdict === 'drop') {
      await this.#widenGap(group, walk)
      return
    }
    await this.#closeGap(group)
    const writing =
      verdict === 'keep'
        ? group.writer?.add(walk.bytes, walk.at)
        : group.writer?.add(filter.result, 0)
    if (writing !== undefined) await this.#pacer.waiting(writing)
  }

  /** One empty batch stands for all offsets of an epoch that have gone side by side. */
  async #widenGap(group: Group, walk: SegmentWalk): Promise<void> {
    const { offset, batchEnd, epoch } = walk
    if (group.gap !== undefined && group.gap.epoch !== epoch) await this.#closeGap(group)
    group.gap = { start: group.gap?.start ?? offset, end: batchEnd, epoch }
  }

  async #closeGap(group: Group): Promise<void> {
    const { gap } = group
    if (gap === undefined) return
    group.gap = undefined
    const writing = group.writer?.add(emptyBatch(gap.start, gap.end, gap.epoch), 0)
    if (writing !== undefined) await this.#pacer.waiting(writing)
  }

  async #abandon(group: Group): Promise<void> {
    const { writer } = group
    if (writer === undefined) return
    group.writer = undefined
    const { env, name } = this.#host
    try {
      await writer.close()
      await removeIfThere(env.fs, writer.path)
    } catch (error) {
      // A start removes it, and so does the next round.
      env.logger.warn({ partition: name, err: error }, 'an unfinished segment could not be removed')
    }
  }

  /** Puts the new segment in the place of the old ones (segment-swap.ts). */
  async #commit(group: Group): Promise<void> {
    const { env, directory, sealer } = this.#host
    const { writer, parts } = group
    const endOffset = parts.at(-1)?.endOffset
    invariant(writer !== undefined && endOffset !== undefined, 'a group has a segment')
    await this.#closeGap(group)
    await this.#pacer.waiting(writer.finish())
    const bases = parts.map(({ segment }) => segment.baseOffset)
    const path = `${directory}/${nameOfSwap({ bases, endOffset })}`
    await env.fs.rename(writer.path, path)
    group.writer = undefined
    this.#noteUnfinished({ bases, endOffset, next: undefined })
    await this.#host.flushFolder()
    const next = new SealedSegment(writer.baseOffset, new SegmentFile(path))
    next.facts = writer.facts
    env.sealedFiles.setIndexes(next.file, writer.indexes)
    this.#noteUnfinished({ bases, endOffset, next })
    const old = parts.map(({ segment }) => segment)
    await this.#host.replaced(old, next)
    await finishSwap(this.#host, next, bases, endOffset)
    this.#noteUnfinished(undefined)
    this.#bytesAfter += writer.sizeBytes
    this.#segmentsAfter++
    await sealer.write(next.baseOffset, endOffset, writer.indexes, {
      ...writer.facts,
      logCrc: writer.logCrc,
    })
    for (const part of parts) release(this.#host, part)
  }
}
