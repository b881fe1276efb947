import type { Acks } from '../../common/acks.ts'
import { invariant } from '../../common/assert.ts'
import { BrokerError, findSystemCode } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import type { Offset } from '../../common/offset.ts'
import { replaceFile } from '../../fs/file-system.ts'
import { FlushError, flushing } from '../../fs/flush-error.ts'
import type { DamagedRange, DamageMap } from '../../segment/damage-map.ts'
import { segmentFileName } from '../../segment/segment-names.ts'
import { readBatchBytes, readBaseOffset, readMaxTimestamp } from '../../record/batch-header.ts'
import { AppendGate } from '../append-gate.ts'
import type { EpochHistory } from '../epoch-history.ts'
import type { LogConfig } from '../log-config.ts'
import type {
  AppendOptions,
  AppendResult,
  CompactionNeed,
  CompactionReport,
  FetchResult,
  Isolation,
  LogStats,
  PartitionId,
  PartitionLog,
  RetentionHold,
  TimestampedOffset,
} from '../partition-log.ts'
import { isBrokersOwn, partitionName } from '../partition-name.ts'
import type { ProducerState } from '../producer-state.ts'
import { findRetentionStart } from '../retention.ts'
import type { SegmentFacts } from '../retention.ts'
import { findRecordByTimestamp } from '../timestamp-lookup.ts'
import { ActiveSegment, EMPTY_ACTIVE_STATE } from './active-segment.ts'
import type { CheckpointEntry } from './checkpoint.ts'
import type { DiskEnvironment } from './disk-environment.ts'
import { FlushQueue, PASSING_FAULTS, toAppendError } from './flush-queue.ts'
import type { FlushHost, QueuedBatch } from './flush-queue.ts'
import { DiskCompaction } from './compaction.ts'
import type { CompactionHost } from './compaction.ts'
import { SealedSegment } from './segment-list.ts'
import type { SealedFacts, SegmentList } from './segment-list.ts'
import { SegmentReader, SegmentReplacedError } from './segment-reader.ts'
import type { SegmentChunk, SegmentView } from './segment-reader.ts'
import { SegmentSealer } from './segment-sealer.ts'
import { TailCache } from './tail-cache.ts'

/** Offsets of a segment, relative to its base, fit in 31 bits as Kafka's do. */
const MOST_OFFSETS_PER_SEGMENT = 2 ** 31 - 1

/** Producer state of up to this size goes into the checkpoint itself; a larger one into a file of its own. */
const INLINE_PRODUCER_BYTES = 16 * 1024

/** Bytes looked at in one step of a search by timestamp. */
const TIMESTAMP_SCAN_BYTES = 256 * 1024

/** What recovery hands over: a log whose files are in order and durable. */
export interface RecoveredLog {
  readonly id: PartitionId
  readonly directory: string
  readonly logStartOffset: Offset
  readonly endOffset: Offset
  readonly active: ActiveSegment
  readonly segments: SegmentList
  /** Sealed segments without a seal: to be given one in the background. */
  readonly unsealed: readonly SealedSegment[]
  readonly producers: ProducerState
  readonly epochs: EpochHistory
  readonly damage: DamageMap
  readonly lastAppendTimeMs: number
  /** Offsets of the snapshots of producer state that lie in the folder, rising. */
  readonly snapshots: readonly Offset[]
}

/** The disk engine: one partition as segments in a folder. */
export class DiskLog implements PartitionLog {
  readonly id: PartitionId
  readonly directory: string
  readonly leaderEpoch: number
  readonly #env: DiskEnvironment
  readonly #segments: SegmentList
  readonly #epochs: EpochHistory
  readonly #damage: DamageMap
  readonly #gate: AppendGate
  readonly #queue: FlushQueue
  readonly #cache: TailCache
  /** For as long as the log is open: what is cached has no gaps. */
  readonly #isCached: boolean
  readonly #reader: SegmentReader
  readonly #sealer: SegmentSealer
  readonly #listeners = new Set<() => void>()
  readonly #isInternal: boolean
  #config: LogConfig
  #logStart: Offset
  #lastAppendTimeMs: number
  #closing: Promise<void> | undefined
  /** Work on this log's files that nobody waits for: its folder must not go before it has ended. */
  readonly #background = new Set<Promise<void>>()
  /** The log start that a checkpoint knows. */
  #durableLogStart: Offset
  /** Snapshots of producer state in the folder, rising; and the end that the checkpoint before the last one knows. */
  #snapshots: readonly Offset[]
  #checkpointedEnd: Offset = toOffset(0)
  #entry: CheckpointEntry | undefined
  #rebuilding = false
  #writtenBytes = 0
  /** Rises when another file takes the place of one that readers may be on their way to. */
  #generation = 0
  /** A file is getting another name. */
  #moving: Promise<void> | undefined
  readonly #compaction: DiskCompaction
  #compacting: Promise<CompactionReport> | undefined
  /** Ends the round of compaction that is under way, and lets none begin. */
  readonly #stopCompaction = new AbortController()
  /** Bases of the active segment in the two slots of the checkpoint, the older one first; 0 until both are known. */
  #checkpointedBases: readonly [Offset, Offset] = [toOffset(0), toOffset(0)]

  constructor(env: DiskEnvironment, recovered: RecoveredLog, config: LogConfig) {
    this.#env = env
    this.id = recovered.id
    this.directory = recovered.directory
    this.leaderEpoch = env.incarnation
    this.#segments = recovered.segments
    this.#epochs = recovered.epochs
    this.#damage = recovered.damage
    this.#logStart = recovered.logStartOffset
    this.#durableLogStart = recovered.logStartOffset
    this.#snapshots = recovered.snapshots
    this.#lastAppendTimeMs = recovered.lastAppendTimeMs
    this.#isInternal = isBrokersOwn(recovered.id)
    this.#config = config
    this.#cache = new TailCache(env.tailBudget)
    this.#isCached = config.tailCache
    recovered.producers.setStableEnd(recovered.endOffset)
    this.#gate = new AppendGate({
      nextOffset: recovered.endOffset,
      leaderEpoch: env.incarnation,
      producers: recovered.producers,
      clock: env.clock,
      config,
      lastAppendTimeMs: recovered.lastAppendTimeMs,
    })
    this.#queue = new FlushQueue({
      clock: env.clock,
      host: this.#flushHost(),
      active: recovered.active,
      end: recovered.endOffset,
    })
    this.#reader = new SegmentReader({
      name: this.name,
      epochs: this.#epochs,
      damage: this.#damage,
      maxBatchBytes: env.options.maxBatchBytes,
      onDamage: (range) => this.#reportDamage(range),
    })
    this.#sealer = new SegmentSealer(env, recovered.directory, (what, work) =>
      this.#inBackground(what, work),
    )
    this.#compaction = new DiskCompaction(this.#compactionHost(recovered))
    for (const segment of recovered.unsealed) this.#sealLater(segment)
    this.#scheduleDeletes()
  }

  get name(): string {
    return partitionName(this.id)
  }

  get logStartOffset(): Offset {
    return this.#logStart
  }

  get highWatermark(): Offset {
    return this.#queue.durableEnd
  }

  get writtenEndOffset(): Offset {
    return this.#queue.writtenEnd
  }

  get logEndOffset(): Offset {
    return this.#gate.nextOffset
  }

  // ── appending ────────────────────────────────────────────────────────────────────────────────

  append(batch: Uint8Array, acks: Acks, options?: AppendOptions): Promise<AppendResult> {
    const refusal = this.#findRefusal()
    if (refusal !== undefined) return Promise.reject(refusal)
    return new Promise((resolve, reject) => {
      const admission = this.#gate.admit(batch, options) // Throwing in here is a rejection.
      const entry: QueuedBatch = {
        batch: admission.duplicate ? undefined : batch,
        baseOffset: admission.baseOffset,
        endOffset: admission.endOffset,
        acks,
        appendTimeMs: admission.appendTimeMs,
        resolve: (done) => resolve(this.#toResult(done)),
        reject,
      }
      if (acks === 'none') resolve(this.#toResult(entry))
      this.#queue.enqueue(entry)
    })
  }

  #findRefusal(): BrokerError | undefined {
    if (this.#closing !== undefined) {
      return new BrokerError('CLOSED', `${this.name} is closed`, { resource: this.name })
    }
    if (this.#queue.stopped !== undefined) return this.#queue.stopped
    if (this.#env.storageFull && !this.#isInternal) {
      return new BrokerError(
        'STORAGE_FULL',
        'the disk has too little space left: appends are refused until some is freed; reads and deletes go on',
      )
    }
    return undefined
  }

  #toResult(entry: QueuedBatch): AppendResult {
    const { baseOffset, endOffset } = entry
    const isDurable = endOffset <= this.#queue.durableEnd
    return {
      baseOffset,
      endOffset,
      appendTimeMs: entry.appendTimeMs,
      duplicate: entry.batch === undefined,
      acks: isDurable ? 'durable' : endOffset <= this.#queue.writtenEnd ? 'written' : 'none',
      leaderEpoch: this.leaderEpoch,
      highWatermark: this.#queue.durableEnd,
      logStartOffset: this.#logStart,
    }
  }

  #flushHost(): FlushHost {
    return {
      needsRoll: (active, bytes, endOffset) => this.#needsRoll(active, bytes, endOffset),
      openSegment: (baseOffset) => this.#openSegment(baseOffset),
      rolled: (sealed) => this.#rolled(sealed),
      written: (entries, active) => this.#written(entries, active),
      rolledBack: (end) => {
        this.#gate.rollBackTo(end)
        this.#epochs.rollBackTo(end)
      },
      advanced: () => this.#advanced(),
      hold: () => this.#env.hold(),
      flushFailed: (error) => this.#env.fail(error),
    }
  }

  #needsRoll(active: ActiveSegment, bytes: number, endOffset: Offset): boolean {
    return (
      active.position + bytes > this.#config.segmentBytes ||
      active.indexBytes >= this.#config.indexBytes ||
      endOffset - active.baseOffset > MOST_OFFSETS_PER_SEGMENT ||
      this.#isAged(active)
    )
  }

  #isAged(active: ActiveSegment): boolean {
    return (
      active.position > 0 && this.#env.clock.wallMs() - active.sinceMs >= this.#config.segmentMs
    )
  }

  async #openSegment(baseOffset: Offset): Promise<ActiveSegment> {
    const { fs } = this.#env
    const path = `${this.directory}/${segmentFileName(baseOffset, 'log')}`
    // A try that failed half way may have left an empty file of this name.
    if ((await fs.findStat(path)) !== undefined) await fs.remove(path)
    const file = await fs.open(path, 'create')
    try {
      await flushing('the folder of a new segment', fs.syncDirectory(this.directory))
    } catch (error) {
      await file.close()
      throw error
    }
    return new ActiveSegment({
      fs,
      directory: this.directory,
      baseOffset,
      file,
      state: EMPTY_ACTIVE_STATE,
      endOffset: baseOffset,
    })
  }

  /** Nothing is in flight: what was written is durable, and the queue has not gone on yet. */
  #rolled(active: ActiveSegment): void {
    const endOffset = this.#queue.durableEnd
    const segment = new SealedSegment(active.baseOffset, active.shared)
    segment.facts = {
      sizeBytes: active.position,
      maxTimestampMs: active.maxTimestampMs,
      records: endOffset - active.baseOffset,
    }
    this.#segments.add(segment)
    this.#gate.producers.setStableEnd(endOffset)
    const snapshot = this.#gate.producers.encode()
    this.#entry = undefined
    this.#env.requestCheckpoint()
    this.#inBackground(`seal ${this.name} at ${active.baseOffset}`, async () => {
      await this.#sealer.sealActive(active, endOffset)
      await this.#writeSnapshot(endOffset, snapshot)
    })
  }

  #written(entries: readonly QueuedBatch[], active: ActiveSegment): void {
    const nowMs = this.#env.clock.wallMs()
    let bytes = 0
    for (const entry of entries) {
      const { batch } = entry
      invariant(batch !== undefined, 'only batches are written')
      active.add(batch, 0, this.#config.indexIntervalBytes, nowMs)
      this.#epochs.note(this.leaderEpoch, entry.baseOffset)
      if (entry.appendTimeMs !== undefined) this.#lastAppendTimeMs = entry.appendTimeMs
      if (this.#isCached) this.#cache.add(batch, entry.baseOffset, entry.endOffset)
      bytes += batch.length
    }
    this.#writtenBytes += bytes
    this.#env.activity.count++
    this.#env.noteWritten(bytes)
  }

  #advanced(): void {
    this.#gate.producers.setStableEnd(this.#queue.durableEnd)
    invariant(
      this.#logStart <= this.highWatermark &&
        this.highWatermark <= this.writtenEndOffset &&
        this.writtenEndOffset <= this.logEndOffset,
      'log start ≤ high watermark ≤ written end ≤ log end',
    )
    for (const listener of this.#listeners) listener()
  }

  onAdvance(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  flush(): Promise<void> {
    return this.#queue.flush()
  }

  // ── reading ──────────────────────────────────────────────────────────────────────────────────

  async read(
    from: Offset,
    maxBytes: number,
    isolation: Isolation = 'durable',
  ): Promise<FetchResult> {
    this.#checkOpen()
    const end = isolation === 'durable' ? this.highWatermark : this.writtenEndOffset
    this.#checkInRange(from)
    if (from >= end) return this.#toFetchResult([], 0, from)
    this.#env.activity.count++
    let offset = from
    // Compaction may have taken all that a segment holds from here on: then what follows answers.
    while (offset < end) {
      const cached = this.#cache.read(offset, end, maxBytes)
      if (cached !== undefined) {
        return this.#toFetchResult(cached.chunks, cached.bytes, cached.nextOffset)
      }
      const view = this.#viewOf(offset)
      const chunk = await this.#readView(view, offset, end, maxBytes)
      if (chunk !== undefined && chunk.chunks.length > 0) {
        return this.#toFetchResult(chunk.chunks, chunk.bytes, chunk.nextOffset)
      }
      if (chunk === undefined && view.endOffset >= end) break
      offset = chunk?.nextOffset ?? view.endOffset
    }
    return this.#toFetchResult([], 0, offset)
  }

  async #readView(
    view: SegmentView,
    from: Offset,
    end: Offset,
    maxBytes: number,
  ): Promise<SegmentChunk | undefined> {
    try {
      return await this.#reader.read(view, from, end, maxBytes)
    } catch (error) {
      if (error instanceof BrokerError) throw error
      if (await this.#isReplaced(view, error)) {
        this.#checkOpen()
        this.#checkInRange(from) // Deleted meanwhile: no segment answers for it.
        return await this.#readView(this.#viewOf(from), from, end, maxBytes)
      }
      this.#checkOpen() // Closed, or deleted, under the reader.
      this.#checkInRange(from)
      throw new BrokerError(
        'STORAGE_ERROR',
        `offset ${from} of ${this.name} could not be read (${findSystemCode(error) ?? 'unknown'})`,
        { offset: from },
        error,
      )
    }
  }

  /** Whether compaction has put another file where the reader was looking: what failed then says nothing. */
  async #isReplaced(view: SegmentView, error: unknown): Promise<boolean> {
    if (error instanceof SegmentReplacedError) return true
    if (findSystemCode(error) !== 'ENOENT') return false
    await this.#moving
    return !view.isCurrent()
  }

  #checkOpen(): void {
    if (this.#closing === undefined) return
    throw new BrokerError('CLOSED', `${this.name} is closed`, { resource: this.name })
  }

  /** An offset that has been given out is in range before it can be seen: its reader waits. */
  #checkInRange(offset: Offset): void {
    const end = this.logEndOffset
    if (offset >= this.#logStart && offset <= end) return
    throw new BrokerError(
      'OFFSET_OUT_OF_RANGE',
      `offset ${offset} is outside [${this.#logStart}, ${end}] of ${this.name}`,
      { offset, logStartOffset: this.#logStart, endOffset: end },
    )
  }

  #toFetchResult(chunks: readonly Uint8Array[], bytes: number, nextOffset: Offset): FetchResult {
    return {
      chunks,
      bytes,
      nextOffset,
      highWatermark: this.highWatermark,
      logStartOffset: this.#logStart,
    }
  }

  #viewOf(offset: Offset): SegmentView {
    const { active, writtenEnd } = this.#queue
    const found = this.#segments.find(offset, active.baseOffset)
    return found === undefined
      ? this.#activeView(active, writtenEnd)
      : this.#sealedView(found.segment, found.endOffset)
  }

  #activeView(active: ActiveSegment, endOffset: Offset): SegmentView {
    const generation = this.#generation
    return {
      baseOffset: active.baseOffset,
      endOffset,
      sizeBytes: active.position,
      // By the path, not by the writer's descriptor: a roll may close that one at any time.
      use: (work) => this.#env.sealedFiles.use(active.shared, work),
      indexes: () => active.indexes(),
      isCurrent: () => generation === this.#generation,
      distrustIndexes: () => this.#rebuildActiveIndexes(active),
    }
  }

  #sealedView(segment: SealedSegment, endOffset: Offset): SegmentView {
    const { sealedFiles } = this.#env
    const generation = this.#generation
    return {
      baseOffset: segment.baseOffset,
      endOffset,
      get sizeBytes() {
        return segment.facts?.sizeBytes ?? Number.MAX_SAFE_INTEGER // Known as soon as `use` has opened it.
      },
      use: (work) =>
        sealedFiles.use(segment.file, async (file) => {
          await this.#sealer.loadFacts(segment, file)
          return await work(file)
        }),
      indexes: () =>
        sealedFiles.indexes(segment.file, () =>
          this.#sealer.loadIndexes(segment, endOffset, this.#config.indexIntervalBytes),
        ),
      // Whoever goes through segments one by one may come with one that was replaced before it had this view.
      isCurrent: () => generation === this.#generation && !segment.file.isDropped,
      distrustIndexes: () => this.#sealLater(segment),
    }
  }

  /** Makes the files beside a sealed segment anew from its batches, in the background. */
  #sealLater(segment: SealedSegment): void {
    if (this.#sealer.isBusyWith(segment) || segment.file.isDropped) return
    const endOffset = this.#endOf(segment)
    this.#inBackground(`rebuild ${this.name} at ${segment.baseOffset}`, () =>
      this.#sealer.rebuild(segment, endOffset, this.#config.indexIntervalBytes),
    )
  }

  #endOf(segment: SealedSegment): Offset {
    const i = this.#segments.sealed.indexOf(segment)
    return this.#segments.endOf(i, this.#queue.active.baseOffset)
  }

  #rebuildActiveIndexes(active: ActiveSegment): void {
    if (this.#rebuilding) return
    this.#rebuilding = true
    this.#inBackground(`rebuild the indexes of ${this.name}`, async () => {
      try {
        const { writtenEnd } = this.#queue
        const view = this.#activeView(active, writtenEnd)
        const made = await this.#env.sealedFiles.use(active.shared, (file) =>
          this.#sealer.scanIndexes(
            file,
            active.baseOffset,
            view.sizeBytes,
            this.#config.indexIntervalBytes,
            false,
          ),
        )
        active.replaceIndexes(made.offsets, made.times)
      } finally {
        this.#rebuilding = false
      }
    })
  }

  #reportDamage(range: DamagedRange): void {
    this.#env.logger.error(
      { partition: this.name, start: range.start, end: range.end, segment: range.segmentBase },
      'records are damaged on the disk: this range cannot be read any more',
    )
  }

  async findOffsetByTimestamp(timestampMs: number): Promise<TimestampedOffset | undefined> {
    this.#checkOpen()
    const isWritten = this.#config.visibility === 'written'
    const end = isWritten ? this.writtenEndOffset : this.highWatermark
    // By offsets, not over the list: while this waits, segments are rolled and deleted.
    let offset = this.#logStart
    for (;;) {
      const place = this.#segments.find(offset, this.#queue.active.baseOffset)
      if (place === undefined) break
      const { segment, endOffset } = place
      offset = endOffset
      const view = this.#sealedView(segment, endOffset)
      if (segment.facts === undefined) await view.use(() => Promise.resolve())
      if ((segment.facts?.maxTimestampMs ?? 0) < timestampMs) continue
      const found = await this.#scanForTimestamp(view, timestampMs, endOffset)
      if (found !== undefined) return found
    }
    const { active, writtenEnd } = this.#queue
    if (active.maxTimestampMs < timestampMs) return undefined
    return await this.#scanForTimestamp(this.#activeView(active, writtenEnd), timestampMs, end)
  }

  async #scanForTimestamp(
    view: SegmentView,
    timestampMs: number,
    end: Offset,
  ): Promise<TimestampedOffset | undefined> {
    let offset = await this.#findTimeStart(view, timestampMs, end)
    while (offset < end) {
      try {
        const chunk = await this.#readView(view, offset, end, TIMESTAMP_SCAN_BYTES)
        if (chunk === undefined) return undefined
        for (const bytes of chunk.chunks) {
          for (let at = 0; at < bytes.length; at += readBatchBytes(bytes, at)) {
            const from = toOffset(Math.max(readBaseOffset(bytes, at), offset))
            const found = findRecordByTimestamp(bytes, at, timestampMs, from)
            if (found !== undefined) return found
          }
        }
        offset = chunk.nextOffset
      } catch (error) {
        const next = error instanceof BrokerError ? error.details['nextOffset'] : undefined
        if (typeof next !== 'number' || next <= offset) throw error
        offset = toOffset(next) // Damage: what is behind it can still be found.
      }
    }
    return undefined
  }

  /** Where to start looking for a timestamp. An entry of the time index is believed when the batch that it names says the same. */
  async #findTimeStart(view: SegmentView, timestampMs: number, end: Offset): Promise<Offset> {
    const { times } = await view.indexes()
    const first = toOffset(Math.max(view.baseOffset, this.#logStart))
    const entry = times.findBelow(timestampMs)
    const offset = entry < 0 ? view.baseOffset : times.offsetAt(entry)
    if (offset <= first) return first
    try {
      const chunk = await this.#readView(view, offset, end, 1)
      const bytes = chunk?.chunks[0]
      const isRight =
        bytes !== undefined &&
        readBaseOffset(bytes, 0) === offset &&
        readMaxTimestamp(bytes, 0) === times.timestampAt(entry)
      if (isRight) return offset
      if (view.isCurrent()) view.distrustIndexes()
    } catch (error) {
      if (!(error instanceof BrokerError) || error.code !== 'SEGMENT_QUARANTINED') throw error
    }
    return first
  }

  // ── the log start, retention ─────────────────────────────────────────────────────────────────

  async advanceLogStart(to: Offset): Promise<void> {
    this.#checkOpen()
    this.#checkBelowEnd(to)
    if (to > this.#logStart) {
      this.#logStart = to
      this.#epochs.dropBelow(to)
      this.#damage.dropBelow(to)
      this.#entry = undefined
      // Below an active segment with nothing to keep, a new one: its bytes can go too.
      if (to === this.#queue.durableEnd && to === this.#gate.nextOffset) await this.#queue.roll()
    }
    // Another call may have moved it, and still be waiting, or have failed.
    if (to <= this.#durableLogStart) return
    await this.#env.checkpoint() // Durable before it is answered, and before any byte goes.
    this.#scheduleDeletes()
    this.#advanced()
  }

  #checkBelowEnd(to: Offset): void {
    if (to <= this.highWatermark) return
    throw new BrokerError(
      'OFFSET_OUT_OF_RANGE',
      `the log start of ${this.name} cannot move to ${to}, past the high watermark ${this.highWatermark}`,
      { offset: to, logStartOffset: this.#logStart, endOffset: this.highWatermark },
    )
  }

  #scheduleDeletes(): void {
    const dueMs = this.#env.clock.monotonicMs() + this.#config.deleteDelayMs
    for (const segment of this.#segments.below(
      this.#durableLogStart,
      this.#queue.active.baseOffset,
    )) {
      segment.deleteAtMs ??= dueMs
    }
  }

  async applyRetention(hold?: RetentionHold): Promise<Offset> {
    this.#checkOpen()
    const nowMs = this.#env.clock.wallMs()
    const { active } = this.#queue
    this.#gate.producers.expire(nowMs, this.#config.producerExpiryMs)
    const isOld =
      active.maxTimestampMs >= 0 && nowMs - active.maxTimestampMs > this.#config.retentionMs
    if (active.position > 0 && (isOld || this.#isAged(active))) await this.#queue.roll()
    const facts = await this.#facts()
    const start = findRetentionStart(facts, this.#logStart, this.#config, nowMs, hold)
    const allowed = toOffset(Math.min(start, this.highWatermark))
    if (allowed > this.#logStart) await this.advanceLogStart(allowed)
    await this.#deleteDue()
    return this.#logStart
  }

  async #facts(): Promise<SegmentFacts[]> {
    const facts: SegmentFacts[] = []
    for (const segment of this.#segments.sealed) {
      const endOffset = this.#endOf(segment)
      const known = segment.facts ?? (await this.#loadFacts(segment, endOffset))
      facts.push({ ...known, baseOffset: segment.baseOffset, endOffset, active: false })
    }
    const { active } = this.#queue
    facts.push({
      baseOffset: active.baseOffset,
      endOffset: this.#queue.writtenEnd,
      sizeBytes: active.position,
      maxTimestampMs: active.maxTimestampMs,
      active: true,
    })
    return facts
  }

  async #loadFacts(segment: SealedSegment, endOffset: Offset): Promise<SealedFacts> {
    try {
      await this.#sealedView(segment, endOffset).use(() => Promise.resolve())
    } catch (error) {
      // Compaction has replaced it meanwhile: what it was does not matter to anyone any more.
      if (!segment.file.isDropped) throw error
    }
    return segment.facts ?? { sizeBytes: 0, maxTimestampMs: -1, records: 0 }
  }

  /** The second step of trimming: the bytes, oldest first, so that a crash leaves no hole. */
  async #deleteDue(): Promise<void> {
    const nowMs = this.#env.clock.monotonicMs()
    let removed = 0
    for (const segment of this.#segments.sealed) {
      if (segment.deleteAtMs === undefined || segment.deleteAtMs > nowMs) break
      if (this.#sealer.isBusyWith(segment)) break
      await this.#env.sealedFiles.drop(segment.file)
      this.#segments.remove(segment)
      // A swap that could not be finished left it under a name of its own.
      await this.#removeIfThere(segment.file.path.slice(this.directory.length + 1))
      for (const kind of ['log', 'index', 'timeindex', 'seal'] as const) {
        await this.#removeIfThere(segmentFileName(segment.baseOffset, kind))
      }
      removed++
    }
    if (removed > 0) {
      this.#entry = undefined
      await this.#flushFolder()
    }
  }

  async #flushFolder(): Promise<void> {
    try {
      await flushing(`the folder of ${this.name}`, this.#env.fs.syncDirectory(this.directory))
    } catch (error) {
      this.#env.fail(error)
      throw error
    }
  }

  async #removeIfThere(name: string): Promise<void> {
    try {
      await this.#env.fs.remove(`${this.directory}/${name}`)
    } catch (error) {
      if (findSystemCode(error) !== 'ENOENT') throw error
    }
  }

  // ── compaction ───────────────────────────────────────────────────────────────────────────────

  async findCompactionNeed(): Promise<CompactionNeed | undefined> {
    this.#checkOpen()
    return this.#compacting === undefined ? await this.#compaction.findNeed() : undefined
  }

  async compact(signal?: AbortSignal): Promise<CompactionReport> {
    this.#checkOpen()
    if (this.#queue.stopped !== undefined) throw this.#queue.stopped
    if (this.#compacting !== undefined) {
      throw new BrokerError('INVALID_REQUEST', `${this.name} is being compacted already`)
    }
    this.#compacting = this.#compact(signal)
    try {
      return await this.#compacting
    } finally {
      this.#compacting = undefined
    }
  }

  async #compact(signal: AbortSignal | undefined): Promise<CompactionReport> {
    const stop = (): void => this.#compaction.stop()
    const signals = [this.#stopCompaction.signal, ...(signal === undefined ? [] : [signal])]
    for (const one of signals) one.addEventListener('abort', stop)
    try {
      return await this.#compaction.run(signals.some((one) => one.aborted))
    } catch (error) {
      if (error instanceof BrokerError) throw error
      // As with everything that is flushed: only what nothing refers to yet may fail without an end to all.
      if (error instanceof FlushError && !PASSING_FAULTS.has(error.code)) this.#env.fail(error)
      throw new BrokerError(
        toAppendError(error).code,
        `${this.name} could not be compacted (${findSystemCode(error) ?? 'unknown'}): it stays as it was, and is tried again`,
        { resource: this.name },
        error,
      )
    } finally {
      for (const one of signals) one.removeEventListener('abort', stop)
    }
  }

  /** Waits for the round that is under way to stop; whoever has asked for it hears of that. */
  async #endCompaction(): Promise<void> {
    this.#stopCompaction.abort()
    await Promise.allSettled([this.#compacting])
  }

  #compactionHost(recovered: RecoveredLog): CompactionHost {
    const log = (): this => this
    return {
      env: this.#env,
      name: this.name,
      directory: this.directory,
      segments: this.#segments,
      sealer: this.#sealer,
      epochs: this.#epochs,
      damage: this.#damage,
      producers: recovered.producers,
      get config() {
        return log().#config
      },
      get active() {
        return log().#queue.active
      },
      get logStartOffset() {
        return log().#logStart
      },
      get settledBase() {
        const [older, newer] = log().#checkpointedBases
        return older < newer ? older : newer
      },
      roll: () => this.#queue.roll(),
      loadFacts: (segment, endOffset) => this.#loadFacts(segment, endOffset),
      replaced: (old, next) => this.#replaceSegments(old, next),
      moving: (work) => this.#moveFile(work),
      flushFolder: () => this.#flushFolder(),
      sealLater: (segment) => this.#sealLater(segment),
    }
  }

  async #replaceSegments(old: readonly SealedSegment[], next: SealedSegment): Promise<void> {
    this.#segments.replace(old, next)
    this.#generation++
    this.#entry = undefined
    this.#cache.hideBelow(this.#endOf(next))
    this.#scheduleDeletes()
    // Every batch of theirs has been read whole. What a reader could not read meanwhile was so for a moment, and its positions are of the old file.
    for (const segment of old) this.#damage.dropSegment(segment.baseOffset)
    for (const segment of old) await this.#env.sealedFiles.drop(segment.file)
  }

  async #moveFile(work: () => Promise<void>): Promise<void> {
    const moving = work().finally(() => {
      this.#generation++
      this.#moving = undefined
    })
    // Readers wait for its end, however it ends; who moves the file hears of a failure.
    this.#moving = moving.catch(() => undefined)
    await moving
  }

  configure(config: LogConfig): void {
    this.#config = config
    this.#gate.configure(config)
  }

  async stats(): Promise<LogStats> {
    this.#checkOpen()
    let bytes = 0
    const facts = await this.#facts()
    for (const segment of facts) bytes += segment.sizeBytes
    return { bytes, segments: facts.length, damaged: this.#damage.ranges }
  }

  /**
   * Compares each sealed segment with its seal, going on while `proceed` says so. One that differs is read batch by batch, so that the damage is
   * known by its offsets.
   */
  async scrub(proceed: (bytes: number) => Promise<boolean>): Promise<void> {
    for (const segment of this.#segments.sealed) {
      if (this.#closing !== undefined || this.#sealer.isBusyWith(segment)) return
      if (segment.deleteAtMs !== undefined) continue
      if (await this.#sealer.matchesSeal(segment, proceed)) continue
      const endOffset = this.#endOf(segment)
      let offset = toOffset(Math.max(segment.baseOffset, this.#logStart))
      while (offset < endOffset) {
        try {
          const view = this.#sealedView(segment, endOffset)
          const chunk = await this.#readView(view, offset, endOffset, TIMESTAMP_SCAN_BYTES)
          offset = chunk?.nextOffset ?? endOffset
          if (!(await proceed(chunk?.bytes ?? 0))) return
        } catch (error) {
          const next = error instanceof BrokerError ? error.details['nextOffset'] : undefined
          if (typeof next !== 'number' || next <= offset) throw error
          offset = toOffset(next) // Noted and logged by the reader.
        }
      }
    }
  }

  // ── checkpoints, the end ─────────────────────────────────────────────────────────────────────

  /** Bytes written since the log was opened, and those of them that are durable: what a checkpoint taken now would cover. */
  get writtenBytes(): number {
    return this.#writtenBytes
  }

  get durableBytes(): number {
    return this.#writtenBytes - (this.#queue.active.position - this.#queue.durableState.position)
  }

  /** What a checkpoint should know; the same object while nothing has changed. */
  async checkpointEntry(): Promise<CheckpointEntry> {
    const { durableEnd } = this.#queue
    if (this.#entry !== undefined && this.#entry.durableEnd === durableEnd) return this.#entry
    const state = this.#queue.durableState
    const { active } = this.#queue
    this.#gate.producers.setStableEnd(durableEnd)
    const snapshot = this.#gate.producers.encode()
    const isInline = snapshot.length <= INLINE_PRODUCER_BYTES
    const entry: CheckpointEntry = {
      topic: this.id.topic,
      partition: this.id.partition,
      topicId: this.id.topicId,
      companion: this.id.companion,
      logStartOffset: this.#logStart,
      durableEnd,
      position: state.position,
      lastBatchPosition: state.lastBatchPosition,
      activeBase: active.baseOffset,
      activeSinceMs: state.sinceMs,
      activeMaxTimestampMs: state.maxTimestampMs,
      activeCrc: state.crc,
      sealedCount: this.#segments.count,
      lastAppendTimeMs: this.#lastAppendTimeMs,
      epochs: this.#epochs.starts.filter((start) => start.startOffset < durableEnd),
      epochsComplete: this.#epochs.complete,
      producers: isInline ? snapshot : undefined,
    }
    if (this.#closing !== undefined) return { ...entry, producers: snapshot } // Nobody may touch the folder any more.
    this.#entry = entry
    const writing = this.#writeIndexes(active).then(() =>
      isInline ? undefined : this.#writeSnapshot(durableEnd, snapshot),
    )
    this.#track(writing)
    try {
      await writing
      return entry
    } catch (error) {
      if (this.#entry === entry) this.#entry = undefined
      if (error instanceof FlushError) throw error
      this.#env.logger.warn(
        { partition: this.name, err: error },
        'a snapshot of producer state could not be written: it goes into the checkpoint',
      )
      return { ...entry, producers: snapshot }
    }
  }

  /** A checkpoint with this entry is durable. Snapshots that neither slot needs any more go. */
  noteCheckpoint(entry: CheckpointEntry): void {
    this.#checkpointedBases = [this.#checkpointedBases[1], entry.activeBase]
    if (entry.logStartOffset > this.#durableLogStart) this.#durableLogStart = entry.logStartOffset
    const previous = this.#checkpointedEnd
    if (entry.durableEnd === previous) return
    this.#checkpointedEnd = entry.durableEnd
    const kept = this.#snapshots.findLastIndex((offset) => offset <= previous)
    if (kept <= 0) return
    const gone = this.#snapshots.slice(0, kept)
    this.#snapshots = this.#snapshots.slice(kept)
    this.#inBackground(`remove old snapshots of ${this.name}`, async () => {
      for (const offset of gone) await this.#removeIfThere(segmentFileName(offset, 'snapshot'))
    })
  }

  #inBackground(what: string, work: () => Promise<void>): void {
    if (this.#closing !== undefined) return
    this.#env.inBackground(what, () => {
      const running = work()
      this.#track(running)
      return running
    })
  }

  /** Whoever started it hears of its failure. */
  #track(running: Promise<void>): void {
    const ended = (): boolean => this.#background.delete(running)
    this.#background.add(running)
    running.then(ended, ended)
  }

  /** Indexes are caches: a checkpoint does not fail for them. */
  async #writeIndexes(active: ActiveSegment): Promise<void> {
    try {
      await active.writeIndexes()
    } catch (error) {
      this.#env.logger.warn({ partition: this.name, err: error }, 'an index could not be written')
    }
  }

  async #writeSnapshot(offset: Offset, snapshot: Uint8Array): Promise<void> {
    await replaceFile(this.#env.fs, this.directory, segmentFileName(offset, 'snapshot'), snapshot)
    if (this.#snapshots.includes(offset)) return
    this.#snapshots = [...this.#snapshots, offset].sort((a, b) => a - b)
  }

  get damagedRanges(): number {
    return this.#damage.ranges.length
  }

  /** Takes no more appends and waits until nothing is on its way: what a clean checkpoint says stays true. */
  async settle(): Promise<void> {
    await this.#endCompaction()
    await this.#queue.close(new BrokerError('CLOSED', `${this.name} is closed`))
  }

  /** Refuses everything from now on: a flush somewhere has failed. */
  abort(error: BrokerError): void {
    this.#stopCompaction.abort()
    this.#queue.abort(error)
    this.#advanced()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    const closed = new BrokerError('CLOSED', `${this.name} is closed`, { resource: this.name })
    try {
      await this.#endCompaction()
      await this.#queue.close(closed)
    } catch (error) {
      // After a failed flush there is nothing left to save; the store has been told.
      if (!(error instanceof BrokerError)) throw error
    } finally {
      while (this.#background.size > 0) await Promise.allSettled(this.#background)
      const { active } = this.#queue
      await this.#env.sealedFiles.drop(active.shared)
      for (const segment of this.#segments.sealed) await this.#env.sealedFiles.drop(segment.file)
      await active.file.close()
      for (const listener of this.#listeners) listener()
    }
  }
}
