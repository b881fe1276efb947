import type { Acks } from '../../common/acks.ts'
import { invariant } from '../../common/assert.ts'
import type { CancelTimer, Clock } from '../../common/clock.ts'
import { BrokerError, findSystemCode } from '../../common/errors.ts'
import type { ErrorCode } from '../../common/errors.ts'
import type { Offset } from '../../common/offset.ts'
import { MIB } from '../../common/units.ts'
import { Ring } from '../../bytes/ring.ts'
import { FlushError } from '../../fs/flush-error.ts'
import type { ActiveSegment, ActiveState } from './active-segment.ts'

/** A batch on its way to the disk, or a repeat that waits for the original. */
export interface QueuedBatch {
  /** Undefined for a repeat: there is nothing to write. */
  readonly batch: Uint8Array | undefined
  readonly baseOffset: Offset
  readonly endOffset: Offset
  readonly acks: Acks
  readonly appendTimeMs: number | undefined
  readonly resolve: (entry: QueuedBatch) => void
  readonly reject: (error: BrokerError) => void
}

/** What the queue asks of the log that it writes for. */
export interface FlushHost {
  /** Must the active segment be closed before this batch? */
  needsRoll(active: ActiveSegment, bytes: number, endOffset: Offset): boolean
  /** Makes the next active segment, durable in its folder. The one before is durable to its end. */
  openSegment(baseOffset: Offset): Promise<ActiveSegment>
  /** The segment before is sealed from here on. */
  rolled(sealed: ActiveSegment, active: ActiveSegment): void
  /** Batches have been written: in order, each once. */
  written(entries: readonly QueuedBatch[], active: ActiveSegment): void
  /** Batches from `end` on have been refused after they had their offsets: take those back. */
  rolledBack(end: Offset): void
  /** Ends have risen, promises have been settled. */
  advanced(): void
  /** When it returns a promise, nothing is written before that resolves: too much is not in a checkpoint yet. */
  hold(): Promise<void> | undefined
  /** A flush has failed: the broker must stop. */
  flushFailed(error: unknown): void
}

/**
 * No file ever has more than this that is not flushed, so that recovery can tell a torn tail from damage: good batches further than this
 * behind a bad one prove that the bad one had been flushed (CONTRACT §2.4).
 */
export const MAX_UNFLUSHED_BYTES: number = 8 * MIB

/** Without anyone waiting for durability, a flush starts after this much time or this many bytes (CONTRACT §2.1, acks `written`). */
const BACKGROUND_FLUSH_MS = 100
const BACKGROUND_FLUSH_BYTES: number = MIB

/** One writev takes at most this: beyond it the next flush should start first. Measured: from 1 MiB up a larger write gains nothing. */
const GROUP_BYTES: number = 2 * MIB
const GROUP_BATCHES = 1024

/** Batches of at least this size are slower to gather than to write; it only bounds the loop that looks ahead. */
const SMALLEST_BATCH_BYTES: number = 61

/**
 * The one writer of a partition (group commit): takes all that wait, writes them with one `writev`, and flushes with at most one
 * `fdatasync` in flight; what is written during a flush rides the next one. Answers come in the order of the calls, and none is released
 * by a flush that began before its bytes were written.
 */
export class FlushQueue {
  readonly #clock: Clock
  readonly #host: FlushHost
  /** To be written. */
  readonly #queued = new Ring<QueuedBatch>()
  /** To be answered. Holds what is in `#queued` too, unless nobody waits for it. */
  readonly #waiting = new Ring<QueuedBatch>()
  #active: ActiveSegment
  #writtenEnd: Offset
  #durableEnd: Offset
  #durable: ActiveState
  /** Some caller waits for this offset to be durable. */
  #wantedDurableEnd: Offset
  #writing: Promise<void> | undefined
  #syncing: Promise<void> | undefined
  #cancelBackground: CancelTimer | undefined
  /** Someone waits for a roll. */
  #rollAsked: { readonly done: Promise<void>; readonly settle: () => void } | undefined
  /** One past the last batch that was enqueued and has not been refused. */
  #assignedEnd: Offset
  /** Set while what was enqueued is still being written, but nothing new is taken. */
  #refusing: BrokerError | undefined
  #stopped: BrokerError | undefined

  constructor(options: {
    readonly clock: Clock
    readonly host: FlushHost
    readonly active: ActiveSegment
    readonly end: Offset
  }) {
    this.#clock = options.clock
    this.#host = options.host
    this.#active = options.active
    this.#writtenEnd = options.end
    this.#durableEnd = options.end
    this.#wantedDurableEnd = options.end
    this.#assignedEnd = options.end
    this.#durable = options.active.state
  }

  get active(): ActiveSegment {
    return this.#active
  }

  get writtenEnd(): Offset {
    return this.#writtenEnd
  }

  get durableEnd(): Offset {
    return this.#durableEnd
  }

  /** The active segment as it stands at the durable end. */
  get durableState(): ActiveState {
    return this.#durable
  }

  /** Why nothing can be appended any more; undefined while it can. */
  get stopped(): BrokerError | undefined {
    return this.#stopped ?? this.#refusing
  }

  /** Takes a batch that has its offset, or a repeat. Calls come in offset order. */
  enqueue(entry: QueuedBatch): void {
    const refusal = this.stopped
    if (refusal !== undefined) {
      entry.reject(refusal)
      return
    }
    if (entry.batch !== undefined) this.#assignedEnd = entry.endOffset
    this.#take(entry)
  }

  #take(entry: QueuedBatch): void {
    if (entry.acks === 'durable' && entry.endOffset > this.#wantedDurableEnd) {
      this.#wantedDurableEnd = entry.endOffset
    }
    if (entry.acks !== 'none') this.#waiting.push(entry)
    if (entry.batch === undefined) {
      this.#release()
      this.#maybeSync()
      return
    }
    this.#queued.push(entry)
    this.#startWriting()
  }

  /** Resolves when everything that has been enqueued by now, and is not refused, is durable; what comes later does not hold it up. */
  async flush(): Promise<void> {
    if (this.#stopped !== undefined) throw this.#stopped
    const end = this.#assignedEnd
    if (end <= this.#durableEnd) return
    await new Promise<void>((resolve, reject) => {
      this.#take({
        batch: undefined,
        baseOffset: end,
        endOffset: end,
        acks: 'durable',
        appendTimeMs: undefined,
        resolve: () => resolve(),
        // Refused with what was before it: then nothing of that is left to flush.
        reject: (error) => (this.#stopped === undefined ? resolve() : reject(error)),
      })
    })
  }

  /** Closes the active segment and starts the next, unless it is empty. */
  async roll(): Promise<void> {
    if (this.#stopped !== undefined) throw this.#stopped
    if (this.#rollAsked === undefined) {
      let settle = (): void => {}
      const done = new Promise<void>((resolve) => {
        settle = resolve
      })
      this.#rollAsked = { done, settle }
    }
    const { done } = this.#rollAsked
    this.#startWriting()
    await done
    if (this.#stopped !== undefined) throw this.#stopped
  }

  /** Flushes what was enqueued and refuses everything later with `error`. */
  async close(error: BrokerError): Promise<void> {
    this.#refusing ??= error
    try {
      if (this.#stopped === undefined) await this.flush()
      while (this.#writing !== undefined) await this.#writing
      while (this.#syncing !== undefined) await this.#syncing
    } finally {
      this.#stop(error)
    }
  }

  /** Refuses everything, now: another log's flush has failed, or an invariant broke. What was under way stays unknown. */
  abort(error: BrokerError): void {
    this.#stop(error)
  }

  #stop(error: BrokerError): void {
    this.#stopped ??= error
    this.#cancelBackground?.()
    this.#rollAsked?.settle()
    this.#queued.clear()
    let entry = this.#waiting.shift()
    while (entry !== undefined) {
      entry.reject(this.#stopped)
      entry = this.#waiting.shift()
    }
  }

  #startWriting(): void {
    if (this.#writing !== undefined || this.#stopped !== undefined) return
    this.#writing = this.#writeAll().then(
      () => this.#writingEnded(),
      (error: unknown) => {
        this.#writingEnded()
        this.#stop(toAppendError(error))
        this.#host.flushFailed(error) // Nothing below lets a write error through: this is a bug of ours.
      },
    )
  }

  #writingEnded(): void {
    this.#writing = undefined
    // What came in between the loop's last look and now must not be left lying.
    if (this.#queued.length > 0 || this.#rollAsked !== undefined) this.#startWriting()
  }

  async #writeAll(): Promise<void> {
    while (this.#stopped === undefined) {
      const head = this.#queued.peek()
      if (this.#rollAsked !== undefined) {
        await this.#rollAsAsked()
        continue
      }
      if (head === undefined) return
      // A checkpoint that failed, or indexes that cannot be read for want of a descriptor: it may pass, nothing has been written.
      try {
        const held = this.#host.hold()
        if (held !== undefined) {
          await held
          continue
        }
        if (!this.#active.indexesLoaded) await this.#active.indexes()
      } catch (error) {
        this.#refuseQueued(toAppendError(error))
        continue
      }
      if (this.#stopped !== undefined) return
      if (this.#mustRollFor(head)) {
        await this.#roll()
        continue
      }
      const unflushed = this.#active.position - this.#durable.position
      if (unflushed > 0 && unflushed + bytesOf(head) > MAX_UNFLUSHED_BYTES) {
        await this.#sync()
        continue
      }
      await this.#writeGroup(MAX_UNFLUSHED_BYTES - unflushed)
    }
  }

  async #rollAsAsked(): Promise<void> {
    const asked = this.#rollAsked
    this.#rollAsked = undefined
    try {
      if (this.#active.position > 0) await this.#roll()
    } finally {
      asked?.settle()
    }
  }

  #mustRollFor(head: QueuedBatch): boolean {
    return (
      this.#active.position > 0 && this.#host.needsRoll(this.#active, bytesOf(head), head.endOffset)
    )
  }

  async #writeGroup(room: number): Promise<void> {
    const active = this.#active
    const entries: QueuedBatch[] = []
    const chunks: Uint8Array[] = []
    let bytes = 0
    for (;;) {
      const next = this.#queued.peek()
      if (next?.batch === undefined || entries.length === GROUP_BATCHES) break
      const size = next.batch.length
      invariant(size >= SMALLEST_BATCH_BYTES, 'a queued batch has at least a header')
      if (entries.length > 0) {
        if (bytes + size > Math.min(room, GROUP_BYTES)) break
        if (this.#host.needsRoll(active, bytes + size, next.endOffset)) break
      }
      entries.push(next)
      chunks.push(next.batch)
      bytes += size
      this.#queued.shift()
    }
    try {
      await active.file.write(chunks, active.position)
    } catch (error) {
      await this.#writeFailed(error)
      return
    }
    if (this.#stopped !== undefined) return
    const last = entries.at(-1)
    invariant(last !== undefined, 'a group has a batch')
    invariant(entries[0]?.baseOffset === this.#writtenEnd, 'batches are written without a gap')
    this.#host.written(entries, active)
    this.#writtenEnd = last.endOffset
    this.#maybeSync()
    this.#release()
    this.#host.advanced()
  }

  /**
   * Nothing of the group counts, nor of what was queued behind it, since those batches have offsets above. The file is cut back to the last
   * good end, so that what part of it was written can never be taken for data.
   */
  async #writeFailed(error: unknown): Promise<void> {
    const refusal = toAppendError(error)
    while (this.#syncing !== undefined) await this.#syncing
    if (this.#stopped !== undefined) return
    try {
      const { file, position } = this.#active
      // On a disk that takes no writes (EROFS) nothing is there to be cut, nor could it be.
      if (refusal.code !== 'READ_ONLY' || (await file.size()) !== position) {
        await file.truncate(position)
        await this.#sync()
      }
    } catch (cutError) {
      this.#stop(
        new BrokerError(
          refusal.code === 'READ_ONLY' ? 'READ_ONLY' : 'STORAGE_ERROR',
          'a write failed and its remains could not be cut off: the partition takes no more appends',
          {},
          cutError,
        ),
      )
      return
    }
    if (this.#stopped !== undefined) return
    this.#refuseQueued(refusal)
  }

  /** Turns away all that has an offset but is not written. One step, without an await: nothing can slip in between. */
  #refuseQueued(error: BrokerError): void {
    this.#queued.clear()
    this.#assignedEnd = this.#writtenEnd
    this.#host.rolledBack(this.#writtenEnd)
    if (this.#wantedDurableEnd > this.#writtenEnd) this.#wantedDurableEnd = this.#writtenEnd
    this.#release()
    let entry = this.#waiting.shift()
    while (entry !== undefined) {
      entry.reject(error)
      entry = this.#waiting.shift()
    }
    this.#host.advanced()
  }

  async #roll(): Promise<void> {
    while (this.#stopped === undefined && this.#durableEnd < this.#writtenEnd) await this.#sync()
    if (this.#stopped !== undefined) return
    const sealed = this.#active
    try {
      this.#active = await this.#host.openSegment(this.#writtenEnd)
    } catch (error) {
      if (error instanceof FlushError) throw error
      this.#refuseQueued(toAppendError(error))
      return
    }
    this.#durable = this.#active.state
    this.#host.rolled(sealed, this.#active)
  }

  /** Starts a flush when someone waits for one; else sees to it that one comes soon. */
  #maybeSync(): void {
    if (this.#syncing !== undefined || this.#stopped !== undefined) return
    if (this.#durableEnd === this.#writtenEnd) return
    const unflushed = this.#active.position - this.#durable.position
    if (this.#wantedDurableEnd > this.#durableEnd || unflushed >= BACKGROUND_FLUSH_BYTES) {
      void this.#startSync() // Its failure goes to the host; see below.
      return
    }
    this.#cancelBackground ??= this.#clock.schedule(BACKGROUND_FLUSH_MS, () => {
      this.#cancelBackground = undefined
      if (this.#syncing === undefined && this.#stopped === undefined) void this.#startSync()
    })
  }

  /** One whole flush of what has been written by now. */
  async #sync(): Promise<void> {
    while (this.#syncing !== undefined) await this.#syncing
    if (this.#stopped !== undefined) return
    await this.#startSync()
  }

  #startSync(): Promise<void> {
    invariant(this.#syncing === undefined, 'at most one flush is in flight per file')
    this.#cancelBackground?.()
    this.#cancelBackground = undefined
    const end = this.#writtenEnd
    const state = this.#active.state
    const syncing = this.#flushFile(end, state)
    this.#syncing = syncing
    return syncing
  }

  /** Never rejects: a failure stops the queue and goes to the host. */
  async #flushFile(end: Offset, state: ActiveState): Promise<void> {
    try {
      await this.#active.file.sync()
    } catch (error) {
      this.#syncing = undefined
      this.#stop(toFlushFailed(error))
      this.#host.flushFailed(error)
      return
    }
    this.#syncing = undefined
    if (this.#stopped !== undefined) return
    this.#durableEnd = end
    this.#durable = state
    // The next flush first: it takes the disk's time, while answering takes ours.
    this.#maybeSync()
    this.#release()
    this.#host.advanced()
  }

  /** Answers, in order, whoever has what they waited for. */
  #release(): void {
    for (;;) {
      const head = this.#waiting.peek()
      if (head === undefined) return
      if (head.endOffset > (head.acks === 'durable' ? this.#durableEnd : this.#writtenEnd)) return
      this.#waiting.shift()
      head.resolve(head)
    }
  }
}

/** Faults of what is written beside the log (a checkpoint, a seal) that leave the one before it in force, and may pass. */
export const PASSING_FAULTS: ReadonlySet<string> = new Set([
  'ENOSPC',
  'EDQUOT',
  'EMFILE',
  'ENFILE',
  'EROFS',
])

function bytesOf(entry: QueuedBatch): number {
  return entry.batch?.length ?? 0
}

const CODE_OF: Readonly<Record<string, ErrorCode>> = {
  ENOSPC: 'STORAGE_FULL',
  EDQUOT: 'STORAGE_FULL',
  EFBIG: 'STORAGE_FULL',
  EROFS: 'READ_ONLY',
  EMFILE: 'TOO_MANY_OPEN_FILES',
  ENFILE: 'TOO_MANY_OPEN_FILES',
}

/** What everyone who waits is told when a flush has failed. */
export function toFlushFailed(error: unknown): BrokerError {
  return new BrokerError(
    'FLUSH_FAILED',
    'a flush to disk failed: whether the records are kept is unknown until the broker is up again',
    {},
    error,
  )
}

/** What a producer is told about a failed write. */
export function toAppendError(error: unknown): BrokerError {
  if (error instanceof BrokerError) return error
  if (error instanceof FlushError) return toFlushFailed(error)
  const systemCode = findSystemCode(error)
  const code = CODE_OF[systemCode ?? ''] ?? 'STORAGE_ERROR'
  const why = systemCode === undefined ? '' : ` (${systemCode})`
  return new BrokerError(
    code,
    `the records could not be written${why}; none of them is kept`,
    {},
    error,
  )
}
