import { invariant } from '../../common/assert.ts'
import { BrokerError, findSystemCode } from '../../common/errors.ts'
import { toOffset } from '../../common/offset.ts'
import type { Offset } from '../../common/offset.ts'
import { readWhole } from '../../fs/file-system.ts'
import type { File, UncachedFile } from '../../fs/file-system.ts'
import {
  BATCH_HEADER_BYTES,
  isPlausibleHeader,
  readEndOffset,
  readBaseOffset,
  readBatchBytes,
  readLeaderEpoch,
  readMaxTimestamp,
  isAppendTime,
  isCrcValid,
} from '../../record/batch-header.ts'
import { DamageMap } from '../../segment/damage-map.ts'
import { parseSegmentFileName, segmentFileName } from '../../segment/segment-names.ts'
import { ScanWindow, findResync, scanBatches } from '../../segment/segment-scan.ts'
import type { ScanEnd, ScanRules } from '../../segment/segment-scan.ts'
import { EpochHistory } from '../epoch-history.ts'
import type { LogConfig } from '../log-config.ts'
import type { PartitionId } from '../partition-log.ts'
import { partitionName } from '../partition-name.ts'
import { ProducerState } from '../producer-state.ts'
import { ActiveSegment, EMPTY_ACTIVE_STATE } from './active-segment.ts'
import type { ActiveState } from './active-segment.ts'
import type { CheckpointEntry } from './checkpoint.ts'
import { finishSwaps } from './segment-swap.ts'
import type { DiskEnvironment } from './disk-environment.ts'
import type { RecoveredLog } from './disk-log.ts'
import { MAX_UNFLUSHED_BYTES } from './flush-queue.ts'
import { SegmentFile } from './sealed-files.ts'
import { SealedSegment, SegmentList } from './segment-list.ts'
import { salvaging } from './segment-reader.ts'
import type { TornFolder } from './torn-folder.ts'

/** After a clean stop the last batch of a log is checked in full up to this size: 64 MiB for a thousand partitions. */
const LARGEST_CHECKED_BATCH = 64 * 1024

const COPY_BLOCK_BYTES = 1024 * 1024

/** What recovery did, for the start report. */
export interface RecoveryCount {
  scannedBytes: number
  scannedBatches: number
  tornBytes: number
}

export interface RecoveryOptions {
  readonly env: DiskEnvironment
  readonly id: PartitionId
  readonly directory: string
  readonly config: LogConfig
  /** What the checkpoint says of this partition; undefined when it does not know it. */
  readonly entry: CheckpointEntry | undefined
  /** `clean`: the last stop was a clean one. `unclean`: scan from the checkpoint on. `lost`: no checkpoint is left, scan everything. */
  readonly mode: 'clean' | 'unclean' | 'lost'
  readonly torn: TornFolder
  readonly count: RecoveryCount
}

/**
 * Brings the files of one partition in order after any stop (CONTRACT §3, steps 4 to 9). It may be killed at any instruction and run
 * again: each step either changes nothing or leaves a state that the same steps read the same way. Known-durable bytes are never cut.
 */
export async function recoverPartition(options: RecoveryOptions): Promise<RecoveredLog> {
  return await new PartitionRecovery(options).run()
}

class PartitionRecovery {
  readonly #options: RecoveryOptions
  readonly #damage = new DamageMap()
  readonly #segments = new SegmentList()
  readonly #unsealed: SealedSegment[] = []
  #snapshots: readonly Offset[] = []
  #epochs: EpochHistory
  #producers = new ProducerState()
  #lastAppendTimeMs: number

  constructor(options: RecoveryOptions) {
    this.#options = options
    const { entry } = options
    this.#epochs =
      entry === undefined
        ? new EpochHistory()
        : EpochHistory.from(entry.epochs, entry.epochsComplete)
    this.#lastAppendTimeMs = entry?.lastAppendTimeMs ?? 0
  }

  get #durableEnd(): number {
    return this.#options.entry?.durableEnd ?? 0
  }

  async run(): Promise<RecoveredLog> {
    const names = await this.#listNames()
    this.#snapshots = names.snapshots
    const { entry, mode } = this.#options
    const bases = names.logs
    if (bases.length === 0) return await this.#startEmpty()
    if (mode === 'clean' && entry !== undefined && bases.at(-1) === entry.activeBase) {
      const active = await this.#openClean(entry)
      if (active !== undefined) {
        this.#listSealed(names)
        await this.#loadProducers(names.snapshots, entry.durableEnd)
        return this.#result(active, entry.durableEnd)
      }
    }
    const isKnown = mode !== 'lost' && entry !== undefined && bases.includes(entry.activeBase)
    return await this.#scan(names, isKnown ? entry : undefined)
  }

  /** Names of the partition's folder by kind; what an unfinished write left behind goes. */
  async #listNames(): Promise<FolderNames> {
    const { env, directory } = this.#options
    const logs: Offset[] = []
    const seals = new Set<Offset>()
    const snapshots: Offset[] = []
    for (const name of await finishSwaps(env.fs, directory)) {
      if (name.endsWith('.tmp')) await env.fs.remove(`${directory}/${name}`)
      const parsed = parseSegmentFileName(name)
      if (parsed?.kind === 'log') logs.push(parsed.baseOffset)
      else if (parsed?.kind === 'seal') seals.add(parsed.baseOffset)
      else if (parsed?.kind === 'snapshot') snapshots.push(parsed.baseOffset)
    }
    logs.sort((a, b) => a - b)
    snapshots.sort((a, b) => a - b)
    return { logs, seals, snapshots }
  }

  #path(base: Offset): string {
    return `${this.#options.directory}/${segmentFileName(base, 'log')}`
  }

  /** No log file at all: a new partition, or one whose files are gone. What was there is then a hole, never given out again. */
  async #startEmpty(): Promise<RecoveredLog> {
    const { entry } = this.#options
    const end = toOffset(this.#durableEnd)
    const start = entry?.logStartOffset ?? toOffset(0)
    if (start < end) {
      this.#damage.add({ start, end, segmentBase: start, endPosition: 0 })
      this.#options.env.logger.error(
        { partition: this.#options.directory.split('/').at(-1), start, end },
        'the segment files of a partition are missing: their records cannot be read any more',
      )
    }
    const active = await this.#createSegment(end)
    return this.#result(active, end)
  }

  async #createSegment(base: Offset): Promise<ActiveSegment> {
    const { fs } = this.#options.env
    const file = await fs.open(this.#path(base), 'create')
    await fs.syncDirectory(this.#options.directory)
    return this.#toActive(base, file, EMPTY_ACTIVE_STATE, base)
  }

  #toActive(baseOffset: Offset, file: File, state: ActiveState, endOffset: Offset): ActiveSegment {
    const { env, directory } = this.#options
    return new ActiveSegment({ fs: env.fs, directory, baseOffset, file, state, endOffset })
  }

  /** After a clean stop: the file must end where the checkpoint says, with a good batch. Undefined when it does not: then it is scanned. */
  async #openClean(entry: CheckpointEntry): Promise<ActiveSegment | undefined> {
    const file = await this.#options.env.fs.open(this.#path(entry.activeBase), 'write')
    let isGood = false
    try {
      isGood = await this.#isAsStopped(file, entry)
    } finally {
      if (!isGood) await file.close()
    }
    return isGood
      ? this.#toActive(entry.activeBase, file, stateOf(entry), entry.durableEnd)
      : undefined
  }

  async #isAsStopped(file: File, entry: CheckpointEntry): Promise<boolean> {
    if ((await file.size()) !== entry.position) return false
    if (entry.lastBatchPosition < 0) return entry.position === 0
    // A large one is believed by its header: with a thousand partitions, reading them all would take longer than a scan after a crash may.
    if (entry.position - entry.lastBatchPosition > LARGEST_CHECKED_BATCH) {
      const header = Buffer.allocUnsafe(BATCH_HEADER_BYTES)
      await salvaging(file).read(header, entry.lastBatchPosition)
      return (
        isPlausibleHeader(header, 0, this.#options.env.options.maxBatchBytes) &&
        readEndOffset(header, 0) === entry.durableEnd &&
        entry.lastBatchPosition + readBatchBytes(header, 0) === entry.position
      )
    }
    const last = Buffer.allocUnsafe(entry.position - entry.lastBatchPosition)
    const have = await salvaging(file).read(last, entry.lastBatchPosition)
    return have === last.length && readBatchBytes(last, 0) === last.length && isCrcValid(last, 0)
  }

  /** All but the last segment. */
  #listSealed({ logs: bases, seals }: FolderNames): void {
    const { entry, env, directory } = this.#options
    for (const base of bases.slice(0, -1)) {
      const segment = new SealedSegment(base, new SegmentFile(this.#path(base)))
      this.#segments.add(segment)
      if (!seals.has(base)) this.#unsealed.push(segment)
    }
    const known = bases.filter((base) => base < (entry?.activeBase ?? Infinity)).length
    if (entry !== undefined && known < entry.sealedCount && bases[0] !== undefined) {
      // Deletes go from the oldest on, so after a crash fewer may be left without loss: then the first begins at or below the log start.
      if (bases[0] <= entry.logStartOffset) return
      env.logger.warn(
        { partition: directory.split('/').at(-1), expected: entry.sealedCount, found: known },
        'sealed segments are missing: where records lack, reads will say so',
      )
    }
  }

  // ── after a crash ────────────────────────────────────────────────────────────────────────────

  async #scan(names: FolderNames, scanFrom: CheckpointEntry | undefined): Promise<RecoveredLog> {
    const first = names.logs[0] ?? toOffset(0)
    const start: ScanStart =
      scanFrom === undefined
        ? { base: first, state: EMPTY_ACTIVE_STATE, offset: first }
        : { base: scanFrom.activeBase, state: stateOf(scanFrom), offset: scanFrom.durableEnd }
    if (scanFrom === undefined) this.#epochs = new EpochHistory()
    await this.#loadProducers(names.snapshots, start.offset)
    const bases = names.logs.filter((base) => base >= start.base)
    let end: Offset = start.offset
    for (const [i, base] of bases.slice(0, -1).entries()) {
      const from = base === start.base ? start : { base, state: EMPTY_ACTIVE_STATE, offset: base }
      const next = bases[i + 1]
      invariant(next !== undefined, 'all but the last segment have one after them')
      end = await this.#scanSealed(from, next)
    }
    this.#listSealed(names)
    const last = bases.at(-1)
    invariant(last !== undefined, 'a partition that is scanned has a segment')
    const from =
      last === start.base ? start : { base: last, state: EMPTY_ACTIVE_STATE, offset: last }
    const scanned = await this.#scanActive(from)
    end = scanned.end
    if (!scanned.mustRoll && end >= this.#durableEnd) return this.#result(scanned.active, end)
    // Damage in the segment: it is sealed as it is. Lost offsets are never given out again: the log goes on behind them.
    const lostEnd = toOffset(Math.max(end, this.#durableEnd))
    const { active } = scanned
    if (lostEnd > end) {
      const endPosition = await active.file.size()
      this.#damage.add({ start: end, end: lostEnd, segmentBase: last, endPosition })
    }
    await active.file.close()
    const sealed = new SealedSegment(active.baseOffset, active.shared)
    this.#segments.add(sealed)
    this.#unsealed.push(sealed)
    return this.#result(await this.#createSegment(lostEnd), lostEnd)
  }

  /**
   * Scans a segment that another follows: all below that one's base was durable before it was made. What reaches past the base was
   * copied there by a recovery that was cut short, and goes here.
   */
  async #scanSealed(from: ScanStart, next: Offset): Promise<Offset> {
    const { env, mode } = this.#options
    const path = this.#path(from.base)
    const file = await env.fs.open(path, 'write')
    try {
      const size = await file.size()
      const start = size < from.state.position ? fromBase(from.base) : from
      const window = new ScanWindow(salvaging(file), size)
      // When everything must be scanned, headers are enough for what is sealed.
      const rules = this.#rules(mode !== 'lost', next)
      const walk = await this.#walk(window, start, rules, () => 'damage', undefined)
      if (walk.offset < next) {
        this.#damage.add({
          start: walk.offset,
          end: next,
          segmentBase: from.base,
          endPosition: size,
        })
      } else if (walk.position < size) {
        await file.truncate(walk.position)
        await file.sync()
      }
      return next
    } finally {
      await file.close()
    }
  }

  /** Scans the last segment: cuts a torn tail, notes damage, and makes durable what is kept. */
  async #scanActive(
    from: ScanStart,
  ): Promise<{ active: ActiveSegment; end: Offset; mustRoll: boolean }> {
    const { env } = this.#options
    const path = this.#path(from.base)
    const file = await env.fs.open(path, 'write')
    let uncached: UncachedFile | undefined
    try {
      uncached = await env.fs.openUncached(path)
      const size = await file.size()
      const start = size < from.state.position ? fromBase(from.base) : from
      const active = this.#toActive(from.base, file, start.state, start.offset)
      const truth = new AgreeingFile(file, uncached)
      const window = new ScanWindow(salvaging(truth), size)
      const judge = (place: ScanEnd): Promise<'torn' | 'damage'> => this.#judge(window, place)
      const walk = await this.#walk(window, start, this.#rules(true, undefined), judge, active)
      if (walk.isDamaged || walk.offset < this.#durableEnd) {
        // Nothing is cut or copied: what is good stays where it is, and is durable by now.
        await this.#cutTorn(file, window, walk, size)
        await file.sync()
        return { active, end: walk.offset, mustRoll: true }
      }
      const agreed = uncached !== undefined && truth.differsFrom >= walk.position
      if (agreed || walk.position === start.state.position) {
        await this.#cutTorn(file, window, walk, size)
        if (size > start.state.position) await file.sync()
        return { active, end: walk.offset, mustRoll: false }
      }
      return await this.#moveWindow(file, truth, start, walk, size)
    } catch (error) {
      await file.close()
      throw error
    } finally {
      await uncached?.close()
    }
  }

  #rules(checkCrc: boolean, stopAtOffset: Offset | undefined): ScanRules {
    const { env } = this.#options
    return {
      minEpoch: 0,
      maxEpoch: env.incarnation - 1,
      maxBatchBytes: env.options.maxBatchBytes,
      checkCrc,
      stopAtOffset,
    }
  }

  /**
   * Walks from `start` to where nothing good follows, passing over what `judge` calls damage. Batches go into producer state, epochs and,
   * up to the first damage, the active segment.
   */
  async #walk(
    window: ScanWindow,
    start: ScanStart,
    rules: ScanRules,
    judge: (place: ScanEnd) => Promise<'torn' | 'damage'> | 'damage',
    active: ActiveSegment | undefined,
  ): Promise<WalkEnd> {
    const { config, count, env } = this.#options
    const nowMs = env.clock.wallMs()
    let position = start.state.position
    let offset: number = start.offset
    let minEpoch = this.#epochs.latest
    let isDamaged = false
    for (;;) {
      const isWhole = !isDamaged
      const place = await scanBatches(
        window,
        { position, offset },
        { ...rules, minEpoch },
        (bytes, at) => {
          if (isWhole) active?.add(bytes, at, config.indexIntervalBytes, nowMs)
          this.#take(bytes, at)
        },
      )
      count.scannedBatches += place.batches
      const end = { position: place.position, offset: toOffset(place.offset), isDamaged }
      const isTorn = place.reason === 'bad' && (await judge(place)) === 'torn'
      if (place.reason !== 'bad' || isTorn) {
        count.scannedBytes += window.readBytes
        return { ...end, isTorn }
      }
      const before = rules.stopAtOffset ?? Infinity
      const next = await findResync(window, place, { ...rules, minEpoch: place.epoch }, before, [])
      isDamaged = true
      if (next === undefined) {
        count.scannedBytes += window.readBytes
        return { ...end, isDamaged, isTorn: false }
      }
      if (next.offset > place.offset) {
        this.#damage.add({
          start: toOffset(place.offset),
          end: toOffset(next.offset),
          segmentBase: start.base,
          endPosition: next.position,
        })
      }
      position = next.position
      offset = next.offset
      minEpoch = next.epoch
    }
  }

  #take(bytes: Uint8Array, at: number): void {
    this.#producers.replay(bytes, at)
    this.#epochs.note(readLeaderEpoch(bytes, at), toOffset(readBaseOffset(bytes, at)))
    if (isAppendTime(bytes, at)) {
      this.#lastAppendTimeMs = Math.max(this.#lastAppendTimeMs, readMaxTimestamp(bytes, at))
    }
  }

  /**
   * Torn tail or damage? No file ever had more than 8 MiB unflushed: good batches further behind prove that the place had been durable, and so
   * does the checkpoint (CONTRACT §3, step 7).
   */
  async #judge(window: ScanWindow, place: ScanEnd): Promise<'torn' | 'damage'> {
    if (place.offset < this.#durableEnd) return 'damage'
    const limit = place.position + MAX_UNFLUSHED_BYTES
    let from = { position: place.position, offset: place.offset }
    for (;;) {
      const rules = { ...this.#rules(true, undefined), minEpoch: place.epoch }
      const next = await findResync(window, from, rules, Infinity, [])
      if (next === undefined) return 'torn'
      const reach = await scanBatches(window, next, { ...rules, minEpoch: next.epoch }, () => {})
      if (reach.position > limit) return 'damage'
      if (reach.reason === 'end') return 'torn'
      from = reach
    }
  }

  /** Keeps what is cut in `torn/`, durably, before it goes. */
  async #cutTorn(file: File, window: ScanWindow, walk: WalkEnd, size: number): Promise<void> {
    if (!walk.isTorn || walk.position >= size) return
    await this.#keepTorn(window, walk, size)
    await file.truncate(walk.position)
  }

  async #keepTorn(window: ScanWindow, walk: WalkEnd, size: number): Promise<void> {
    const { torn, id, count } = this.#options
    // Not by the topic's name: that may be as long as a file name can be.
    const name = `${partitionName({ ...id, topic: id.topicId })}-${walk.offset}`
    await torn.keep(name, window, walk.position, size)
    count.tornBytes += size - walk.position
  }

  /**
   * The cache and the device disagree, or the device cannot be asked: what was scanned is copied to new blocks, since writing the old ones
   * again may leave zeros on the device (CONTRACT §1, fact 2). A crash in between leaves two copies; the segment with the higher base wins.
   */
  async #moveWindow(
    file: File,
    truth: UncachedFile,
    start: ScanStart,
    walk: WalkEnd,
    size: number,
  ): Promise<{ active: ActiveSegment; end: Offset; mustRoll: boolean }> {
    const { env, directory, config } = this.#options
    const { fs } = env
    const window = new ScanWindow(truth, size)
    if (walk.isTorn && walk.position < size) await this.#keepTorn(window, walk, size)
    const base = start.state.position === 0 ? start.base : start.offset
    const path = this.#path(base)
    const temporary = `${path}.tmp`
    const copy = await fs.open(temporary, 'create')
    await copyRange(truth, copy, start.state.position, walk.position)
    await copy.sync()
    await fs.rename(temporary, path)
    await fs.syncDirectory(directory)
    if (base !== start.base) {
      await file.truncate(start.state.position)
      await file.sync()
      const sealed = new SealedSegment(start.base, new SegmentFile(this.#path(start.base)))
      this.#segments.add(sealed)
      this.#unsealed.push(sealed)
    }
    await file.close()
    const active = this.#toActive(base, copy, EMPTY_ACTIVE_STATE, base)
    const nowMs = env.clock.wallMs()
    const moved = await scanBatches(
      new ScanWindow(copy, walk.position - start.state.position),
      { position: 0, offset: start.offset },
      this.#rules(true, undefined),
      (bytes, at) => active.add(bytes, at, config.indexIntervalBytes, nowMs),
    )
    invariant(moved.offset === walk.offset, 'a copy holds what was copied')
    return { active, end: walk.offset, mustRoll: false }
  }

  // ── the rest ─────────────────────────────────────────────────────────────────────────────────

  async #loadProducers(snapshots: readonly Offset[], at: Offset): Promise<void> {
    const { entry, mode, env, directory } = this.#options
    if (entry !== undefined && entry.durableEnd === at && entry.producers !== undefined) {
      this.#producers = ProducerState.decode(entry.producers)
      return
    }
    // Without a checkpoint everything is scanned, so a later snapshot only adds producers whose records are gone. Else only the one at this very
    // place will do: an older one would take the retry of a batch in the gap for a new one. Without any, that retry is refused.
    const usable = snapshots.filter((offset) => mode === 'lost' || offset === at)
    if (usable.length === 0 && snapshots.length > 0) {
      env.logger.error(
        { partition: directory.split('/').at(-1), offset: at },
        'there is no snapshot of producer state where the scan begins: a producer that retries over this start may be refused',
      )
    }
    for (const offset of usable.toReversed()) {
      try {
        const bytes = await readWhole(env.fs, `${directory}/${segmentFileName(offset, 'snapshot')}`)
        this.#producers = ProducerState.decode(bytes)
        return
      } catch (error) {
        if (findSystemCode(error) === undefined && !(error instanceof BrokerError)) throw error
        if (error instanceof BrokerError && error.code === 'UNSUPPORTED_FORMAT') throw error
        env.logger.error(
          { partition: directory.split('/').at(-1), snapshot: offset },
          'a snapshot of producer state cannot be read: a producer that retries over this start may be refused',
        )
      }
    }
  }

  #result(active: ActiveSegment, end: Offset): RecoveredLog {
    const { entry, id, directory } = this.#options
    const first = this.#segments.sealed[0]?.baseOffset ?? active.baseOffset
    const logStartOffset = toOffset(Math.min(entry?.logStartOffset ?? first, end))
    if (logStartOffset < first && this.#damage.find(logStartOffset) === undefined) {
      this.#damage.add({
        start: logStartOffset,
        end: first,
        segmentBase: logStartOffset,
        endPosition: 0,
      })
    }
    return {
      id,
      directory,
      logStartOffset,
      endOffset: end,
      active,
      segments: this.#segments,
      unsealed: this.#unsealed,
      producers: this.#producers,
      epochs: this.#epochs,
      damage: this.#damage,
      lastAppendTimeMs: this.#lastAppendTimeMs,
      snapshots: this.#snapshots,
    }
  }
}

interface FolderNames {
  readonly logs: readonly Offset[]
  readonly seals: ReadonlySet<Offset>
  readonly snapshots: readonly Offset[]
}

/** Where in a segment a scan begins. */
interface ScanStart {
  readonly base: Offset
  readonly state: ActiveState
  readonly offset: Offset
}

interface WalkEnd {
  readonly position: number
  readonly offset: Offset
  readonly isDamaged: boolean
  /** What follows is the unflushed rest of a write. */
  readonly isTorn: boolean
}

/** A file that is shorter than the checkpoint says is looked at from its beginning: what is left of it may be good. */
function fromBase(base: Offset): ScanStart {
  return { base, state: EMPTY_ACTIVE_STATE, offset: base }
}

function stateOf(entry: CheckpointEntry): ActiveState {
  return {
    position: entry.position,
    lastBatchPosition: entry.lastBatchPosition,
    crc: entry.activeCrc,
    sinceMs: entry.activeSinceMs,
    maxTimestampMs: entry.activeMaxTimestampMs,
  }
}

/** Reads what the device holds, if it can be asked, and watches whether the page cache says the same. */
class AgreeingFile implements UncachedFile {
  readonly #cached: UncachedFile
  readonly #uncached: UncachedFile | undefined
  #scratch: Buffer = Buffer.alloc(0)
  /** The first position at which the two differed. */
  differsFrom = Infinity

  constructor(cached: UncachedFile, uncached: UncachedFile | undefined) {
    this.#cached = cached
    this.#uncached = uncached
  }

  async read(into: Uint8Array, position: number): Promise<number> {
    if (this.#uncached === undefined) return await this.#cached.read(into, position)
    const have = await this.#uncached.read(into, position)
    if (this.#scratch.length < into.length) this.#scratch = Buffer.allocUnsafe(into.length)
    const other = this.#scratch.subarray(0, into.length)
    const otherHave = await this.#cached.read(other, position)
    if (otherHave !== have || other.compare(into, 0, have, 0, have) !== 0) {
      this.differsFrom = Math.min(this.differsFrom, position)
    }
    return have
  }

  close(): Promise<void> {
    return Promise.resolve() // The one that opened the two closes them.
  }
}

async function copyRange(from: UncachedFile, to: File, start: number, end: number): Promise<void> {
  const block = Buffer.allocUnsafe(Math.min(COPY_BLOCK_BYTES, Math.max(1, end - start)))
  let position = start
  while (position < end) {
    const piece = block.subarray(0, Math.min(block.length, end - position))
    const have = await from.read(piece, position)
    if (have === 0)
      throw new BrokerError('STORAGE_ERROR', 'a segment became shorter while it was copied')
    await to.write([block.subarray(0, have)], position - start)
    position += have
  }
}
