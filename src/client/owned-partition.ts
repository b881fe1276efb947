import type { Offset } from '../common/offset.ts'
import { readLeaderEpoch } from '../record/batch-header.ts'
import type { LogBatch } from './batch.ts'
import type { Topic } from './codecs.ts'
import type { TopicPartition } from './consumer-api.ts'
import type { MillraceError } from './errors.ts'
import { OffsetTracker } from './offset-tracker.ts'
import type { PartitionFetch } from './partition-fetcher.ts'

/**
 * `starting`: 'assigned' listeners have not returned. `owned`: its records are delivered. `revoking`: no more are; what is in hand is finished and
 * committed. `gone`: somebody else's, or nobody's.
 */
export type OwnedState = 'starting' | 'owned' | 'revoking' | 'gone'

interface EpochStart {
  readonly offset: number
  readonly epoch: number
}

/** A partition for as long as a consumer owns it. One that comes back later is another object. */
export class OwnedPartition<V, K> {
  readonly topic: Topic<V, K>
  readonly topicId: string
  readonly partition: number
  state: OwnedState = 'starting'
  /** A seek begins a new one; what was handed out before finishes in the old one, where it counts for nothing. */
  tracker: OffsetTracker
  /** Undefined while it is starting. */
  fetch: PartitionFetch<V, K> | undefined
  /** Undefined: nothing is. */
  committed: number | undefined
  /** On its way to the broker. */
  underWay: number | undefined
  /** What the program or a policy has asked to be committed, whatever is finished. */
  wanted: number | undefined
  /** More may be finished than is committed. */
  isDirty = false
  /** True after a seek: the next commit may be below the last one. */
  mayGoBack = false
  /** By the program. */
  isPaused = false
  /** By a run that wants no more of it for now. */
  isBusy = false
  /** True while a batch has been taken of which not all records have been handed out. */
  hasOpenBatch = false
  highWatermark: number
  #inHand = 0
  #isLetGo = false
  #waiters: (() => void)[] = []
  readonly #controllers: Set<AbortController> = new Set()
  #abortReason: MillraceError | undefined
  #epochs: EpochStart[] = []

  constructor(
    topic: Topic<V, K>,
    topicId: string,
    partition: number,
    start: number,
    committed: number | undefined,
    highWatermark: number,
  ) {
    this.topic = topic
    this.topicId = topicId
    this.partition = partition
    this.tracker = new OffsetTracker(start)
    this.committed = committed
    this.highWatermark = highWatermark
  }

  get name(): TopicPartition {
    return { topic: this.topic.name, partition: this.partition }
  }

  /** For messages. */
  get label(): string {
    return `${this.topic.name}-${this.partition}`
  }

  /** True once handlers have been told that their work is for nothing. */
  get isAborted(): boolean {
    return this.#abortReason !== undefined
  }

  /** For one handler: aborts with the others of the partition. To be closed when the handler has returned. */
  openController(): AbortController {
    const controller = new AbortController()
    if (this.#abortReason === undefined) this.#controllers.add(controller)
    else controller.abort(this.#abortReason)
    return controller
  }

  closeController(controller: AbortController): void {
    this.#controllers.delete(controller)
  }

  /** Tells handlers that their work is for nothing. */
  abort(reason: MillraceError): void {
    this.#abortReason ??= reason
    for (const controller of this.#controllers) controller.abort(reason)
    this.#controllers.clear()
  }

  /** Something of it is being worked on. */
  take(): void {
    this.#inHand++
  }

  put(): void {
    this.#inHand--
    if (this.#inHand === 0) this.#wake()
  }

  /** Resolves when nothing of it is being worked on, or when it is lost or {@link letGo}. */
  async whenIdle(): Promise<void> {
    while (this.#inHand > 0 && this.state !== 'gone' && !this.#isLetGo) {
      await new Promise<void>((resolve) => {
        this.#waiters.push(resolve)
      })
    }
  }

  /** What is in hand takes too long: nobody waits for it any more. It is not finished, and so not committed. */
  letGo(): void {
    this.#isLetGo = true
    this.#wake()
  }

  /** Nobody waits for what is in hand any more. */
  drop(): void {
    this.state = 'gone'
    this.#wake()
  }

  /** Where the offsets of a leader epoch begin, for commits. */
  noteEpoch(batch: LogBatch<V, K>): void {
    const epoch = readLeaderEpoch(batch.bytes, 0)
    const last = this.#epochs.at(-1)
    if (last?.epoch === epoch) return
    // Of those that nothing will be committed in any more, the last still says what is below the next.
    const { finished } = this.tracker
    while ((this.#epochs[1]?.offset ?? Infinity) < finished) this.#epochs.shift()
    this.#epochs.push({ offset: batch.baseOffset, epoch })
  }

  /** The leader epoch of the record before `offset`; 0 when it is not known. */
  epochBefore(offset: Offset | number): number {
    let epoch = 0
    for (const start of this.#epochs) if (start.offset < offset) epoch = start.epoch
    return epoch
  }

  /** After a seek the epochs of what comes stand in no order with those before. */
  restart(at: number): void {
    this.tracker = new OffsetTracker(at)
    this.#epochs = []
    this.hasOpenBatch = false
    this.mayGoBack = true
    this.wanted = undefined
    this.underWay = undefined
  }

  #wake(): void {
    const waiters = this.#waiters
    this.#waiters = []
    for (const wake of waiters) wake()
  }
}
