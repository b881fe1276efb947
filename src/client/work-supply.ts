import { MIB } from '../common/units.ts'
import type { WorkDeliveryMessage, WorkNoticeMessage } from '../wire/work-codec.ts'
import type { Topic } from './codecs.ts'
import { Ring } from '../bytes/ring.ts'
import { type MillraceError, toMillraceError } from './errors.ts'
import { type LinkConnection, type LinkOwner, WorkLink } from './work-link.ts'
import { type AckOwner, WorkerAcks } from './worker-acks.ts'
import { type AnyJob, type Job, type JobOwner, Lease, LeaseReader } from './worker-job.ts'
import { WorkerLeases } from './worker-leases.ts'
import type { WorkTarget } from './worker-options.ts'

/** What a worker holds at most, about: it gets no more while it has as much. */
const MOST_HELD_BYTES: number = 64 * MIB
/** Room is told to the broker when there is so much of it: one message for many records. */
const CREDIT_SHARE = 4

export interface SupplyOptions {
  readonly target: WorkTarget
  /** Records that handlers may have at once. */
  readonly concurrency: number
  /** Records beyond these. */
  readonly prefetch: number
  readonly isPaused: boolean
}

/** Told of what happens to a supply. None of these may throw. */
export interface SupplyOwner {
  /** The broker has taken the worker in, for the first time or again. */
  started(): void
  /** There may be something to {@link WorkSupply.take}. */
  supplied(): void
  /** Durable: see the job's verdict. `isDead`: a `retry` that had no attempts left. */
  acknowledged(job: AnyJob, isDead: boolean): void
  /** The verdict will never be. */
  refused(job: AnyJob, error: MillraceError): void
  /** The lease of a job in hand was lost, before it had a verdict. Its signal is aborted. */
  stalled(job: AnyJob, error: MillraceError): void
  /** It could not be decoded, and is rejected. */
  unreadable(job: AnyJob, error: MillraceError): void
  noticed(notice: WorkNoticeMessage): void
  /** {@link WorkSupply.isSettled} or {@link WorkSupply.isAnswered} may have become true. */
  settled(): void
  /** Over for good. */
  failed(error: MillraceError): void
}

/**
 * Everything between a worker's stream and its handlers: gives credit, keeps leases, hands out jobs, and sends their verdicts.
 *
 * Credit: what is with the broker, what waits here and what handlers have add up to `concurrency + prefetch` records, and to about 64 MiB. Room goes back when
 * a handler is through, whether its verdict is durable or not.
 */
export class WorkSupply<V, K> implements JobOwner, LinkOwner, AckOwner {
  readonly #connection: LinkConnection
  readonly #owner: SupplyOwner
  readonly #link: WorkLink
  readonly #acks: WorkerAcks
  readonly #leases: WorkerLeases
  readonly #reader: LeaseReader<V, K>
  readonly #window: number
  readonly #leastCredit: number
  /** With records that no handler has been given, but for the one that is being read. */
  readonly #waiting: Ring<Lease> = new Ring()
  /** Records in those, and in the one that is being read. */
  #unstarted = 0
  readonly #inHand: Set<AnyJob> = new Set()
  /** Of records here, started or not. */
  #heldBytes = 0
  /** Credit that the broker has not used. */
  #creditRecords = 0
  #creditBytes = 0
  #isPaused: boolean
  #isEnding = false
  /** It is being found out which leases are left after a break: none of them is begun with. */
  #isInDoubt = false
  /** How often the broker has taken the worker in. */
  #starts = 0
  #isScheduled = false
  #lastDeliveryMs = -1
  #end: MillraceError | undefined

  constructor(
    connection: LinkConnection,
    topic: Topic<V, K>,
    options: SupplyOptions,
    owner: SupplyOwner,
  ) {
    this.#connection = connection
    this.#owner = owner
    this.#link = new WorkLink(connection, options.target, this)
    this.#acks = new WorkerAcks(this.#link, this, connection.clock, connection.random)
    this.#leases = new WorkerLeases(connection.clock, {
      renew: (leases) => this.#acks.renew(leases, undefined),
      lost: (leases) => this.#lose(leases),
      limited: (lease, error) => this.#limit(lease, error),
    })
    this.#reader = new LeaseReader(topic, this)
    this.#window = options.concurrency + options.prefetch
    // Never so much that a handler waits for it.
    const share = Math.min(this.#window / CREDIT_SHARE, options.prefetch / 2)
    this.#leastCredit = Math.max(1, Math.floor(share))
    this.#isPaused = options.isPaused
  }

  start(): void {
    this.#link.start()
  }

  /** Jobs that were taken and not put back. */
  get inHand(): ReadonlySet<AnyJob> {
    return this.#inHand
  }

  /** Nothing is in hand, and every verdict has been answered. */
  get isSettled(): boolean {
    return this.#inHand.size === 0 && this.#unstarted === 0 && this.#acks.isIdle
  }

  /** Every verdict has been answered, and nothing waits for a handler. There may be handlers under way. */
  get isAnswered(): boolean {
    return this.#unstarted === 0 && this.#acks.isIdle
  }

  /** Settled, and the broker may deliver as much as it likes. */
  get isHungry(): boolean {
    const withheld = this.#window - this.#creditRecords
    return this.isSettled && this.#link.isUp && withheld < this.#leastCredit
  }

  get isUp(): boolean {
    return this.#link.isUp
  }

  /** Monotonic. -1: never. */
  get lastDeliveryMs(): number {
    return this.#lastDeliveryMs
  }

  /** The next job, if there is one. It is in hand until {@link put}. */
  take(): Job<V, K> | undefined {
    while (!this.#isInDoubt && this.#end === undefined) {
      const lease = this.#reader.lease ?? this.#openNext()
      if (lease === undefined) return undefined
      const job = this.#read(lease)
      if (job === undefined) continue
      this.#unstarted--
      this.#inHand.add(job)
      const { decodeError } = this.#reader
      if (decodeError === undefined) return job
      // What cannot be decoded now cannot be decoded the next time.
      job.settle('reject', { error: decodeError })
      this.#owner.unreadable(job, decodeError)
      this.put(job)
    }
    return undefined
  }

  /** Its handler is through. */
  put(job: AnyJob): void {
    if (!this.#inHand.delete(job)) return
    this.#heldBytes -= job.lease.recordBytes
    this.#schedule()
  }

  /** Takes no more, and gives back what no handler has been given. What the broker sends until it knows goes back too. */
  pause(): void {
    this.#isPaused = true
    // Before anything is released: or it would come straight back, again and again.
    this.#link.withdraw()
    this.#creditRecords = 0
    this.#creditBytes = 0
    this.#releaseWaiting()
    this.#schedule()
  }

  resume(): void {
    if (!this.#isPaused || this.#isEnding) return
    this.#isPaused = false
    // What has come since was no use of credit.
    this.#creditRecords = 0
    this.#creditBytes = 0
    this.#schedule()
  }

  /** As {@link pause}, for good. */
  stop(): void {
    this.#isEnding = true
    this.pause()
  }

  /** Leaves. What has no verdict is released by it. Verdicts without an answer by then have failed with `reason`. */
  async end(patienceMs: number, reason: MillraceError): Promise<void> {
    this.#isEnding = true
    this.#acks.flush()
    await this.#link.end(patienceMs)
    this.#finish(reason)
  }

  abandon(reason: MillraceError): void {
    this.#link.abandon(reason)
    this.#finish(reason)
  }

  // ── credit ──────────────────────────────────────────────────────────────────────────────────────────────────

  /** At the end of this turn: what became free in one turn is told together. */
  #schedule(): void {
    if (this.#isScheduled || this.#end !== undefined) return
    this.#isScheduled = true
    setImmediate(() => {
      this.#isScheduled = false
      this.#giveCredit()
      if (this.isSettled) this.#owner.settled()
    })
  }

  #giveCredit(): void {
    if (this.#isPaused || this.#isInDoubt || !this.#link.isUp || this.#end !== undefined) return
    const records = this.#window - this.#creditRecords - this.#unstarted - this.#inHand.size
    const held = this.#creditBytes + Math.max(0, Math.ceil(this.#heldBytes))
    const bytes = MOST_HELD_BYTES - held
    const isWorthIt = records >= this.#leastCredit || bytes >= MOST_HELD_BYTES / CREDIT_SHARE
    if (!isWorthIt || (records <= 0 && bytes <= 0)) return
    const more = { records: Math.max(0, records), bytes: Math.max(0, bytes) }
    this.#creditRecords += more.records
    this.#creditBytes += more.bytes
    this.#link.credit(more.records, more.bytes)
  }

  // ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────

  started(isResumed: boolean): void {
    this.#creditRecords = 0
    this.#creditBytes = 0
    const start = ++this.#starts
    const hasLeases = this.#leases.size > 0
    // Even a broker that knows the worker may have ended some. One that does not has, as a rule, ended all.
    this.#isInDoubt = hasLeases && (this.#isInDoubt || !isResumed)
    if (hasLeases) {
      void this.#leases.renewAll().then(() => {
        if (!this.#link.isUp || this.#starts !== start) return undefined
        this.#isInDoubt = false
        this.#schedule()
        this.#owner.supplied()
        return undefined
      })
    }
    this.#schedule()
    this.#owner.started()
  }

  delivered(deliveries: readonly WorkDeliveryMessage[]): void {
    const nowMs = this.#connection.clock.monotonicMs()
    this.#lastDeliveryMs = nowMs
    for (const delivery of deliveries) {
      // Said again after a break: it was counted when it came.
      if (this.#leases.find(delivery.token) !== undefined) continue
      const lease = new Lease(delivery, nowMs)
      this.#creditRecords -= lease.count
      // May be less than nothing: the last batch need not fit, and the broker counts it whole.
      this.#creditBytes -= lease.batch.length
      this.#leases.add(lease)
      if (lease.count === 0) this.#acks.addRange(lease, lease.next, lease.end, 0, 'accept')
      else if (this.#isPaused) this.#releaseRest(lease)
      else {
        this.#unstarted += lease.count
        this.#heldBytes += lease.batch.length
        this.#waiting.push(lease)
      }
    }
    // What was not taken into account has to be given anew.
    this.#schedule()
    if (!this.#isPaused) this.#owner.supplied()
  }

  leaseLost(token: Uint8Array, error: MillraceError): void {
    const lease = this.#leases.find(token)
    if (lease !== undefined) this.#lose(new Map([[lease, error]]))
  }

  noticed(notice: WorkNoticeMessage): void {
    this.#owner.noticed(notice)
  }

  failed(error: MillraceError): void {
    this.#finish(error)
    this.#owner.failed(error)
  }

  // ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────

  async renew(lease: Lease, leaseMs: number | undefined): Promise<void> {
    const sentMs = this.#connection.clock.monotonicMs()
    const refused = (await this.#acks.renew([lease], leaseMs)).get(lease)
    if (refused === undefined) {
      lease.renewed(sentMs, leaseMs ?? lease.leaseMs)
      return
    }
    if (refused.code === 'LEASE_LIMIT_REACHED') this.#limit(lease, refused)
    else if (!refused.retryable) this.#lose(new Map([[lease, refused]]))
    throw refused
  }

  #lose(leases: ReadonlyMap<Lease, MillraceError>): void {
    for (const [lease, error] of leases) {
      if (!this.#leases.has(lease)) continue
      lease.lost = error
      this.#leases.delete(lease)
      this.#drop(lease)
      for (const job of this.#acks.drop(lease)) this.#refuse(job, error)
    }
    for (const job of this.#inHand) {
      const error = leases.get(job.lease)
      if (error === undefined) continue
      job.abort(error)
      if (job.verdict === undefined) this.#owner.stalled(job, error)
    }
    this.#schedule()
  }

  #limit(lease: Lease, error: MillraceError): void {
    for (const job of this.#inHand) if (job.lease === lease) job.abort(error)
  }

  /** Forgets what no handler has been given. It stays among the waiting until its turn comes. */
  #drop(lease: Lease): void {
    this.#unstarted -= lease.unstarted
    this.#heldBytes -= lease.unstarted * lease.recordBytes
    lease.unstarted = 0
    lease.next = lease.end
  }

  #releaseWaiting(): void {
    const reading = this.#reader.lease
    this.#reader.close()
    if (reading !== undefined) this.#releaseHeld(reading)
    for (;;) {
      const lease = this.#waiting.shift()
      if (lease === undefined) return
      this.#releaseHeld(lease)
    }
  }

  #releaseHeld(lease: Lease): void {
    if (lease.lost !== undefined) return
    const { next, unstarted } = lease
    this.#drop(lease)
    this.#acks.addRange(lease, next, lease.end, unstarted, 'release')
  }

  /** Of one that was never counted. */
  #releaseRest(lease: Lease): void {
    const { next, unstarted } = lease
    lease.unstarted = 0
    lease.next = lease.end
    this.#acks.addRange(lease, next, lease.end, unstarted, 'release')
  }

  // ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────────

  #openNext(): Lease | undefined {
    for (;;) {
      const lease = this.#waiting.shift()
      if (lease === undefined) return undefined
      if (lease.unstarted === 0) continue
      try {
        this.#reader.open(lease)
        return lease
      } catch (error) {
        this.#rejectRest(lease, toMillraceError(error))
      }
    }
  }

  #read(lease: Lease): Job<V, K> | undefined {
    try {
      const job = this.#reader.next()
      if (job !== undefined) return job
    } catch (error) {
      this.#rejectRest(lease, toMillraceError(error))
    }
    this.#reader.close()
    // A batch that holds less than its header says.
    if (lease.unstarted > 0) this.#releaseHeld(lease)
    return undefined
  }

  /** Bytes that are no records stay so. */
  #rejectRest(lease: Lease, error: MillraceError): void {
    this.#connection.logger?.error(
      `records from offset ${lease.next} on of ${lease.label} cannot be read and are rejected: ${error.message}`,
      { topic: lease.topic, partition: lease.partition, offset: lease.next, code: error.code },
    )
    const { next, unstarted } = lease
    this.#drop(lease)
    this.#acks.addRange(lease, next, lease.end, unstarted, 'reject', error)
  }

  settled(job: AnyJob): void {
    this.#acks.add(job)
  }

  acknowledged(lease: Lease, jobs: readonly AnyJob[], count: number, isDead: boolean): void {
    lease.open -= count
    if (lease.open <= 0) this.#leases.delete(lease)
    for (const job of jobs) {
      job.succeeded()
      this.#owner.acknowledged(job, isDead)
    }
  }

  refused(lease: Lease, jobs: readonly AnyJob[], count: number, error: MillraceError): void {
    for (const job of jobs) this.#refuse(job, error)
    if (error.code === 'LEASE_LOST' || error.code === 'INVALID_LEASE_TOKEN') {
      this.#lose(new Map([[lease, error]]))
      return
    }
    // Nothing more can be done for them: the lease runs out.
    lease.open -= count
    if (lease.open <= 0) this.#leases.delete(lease)
  }

  #refuse(job: AnyJob, error: MillraceError): void {
    job.failed(error)
    this.#owner.refused(job, error)
  }

  settledAll(): void {
    this.#owner.settled()
  }

  #finish(error: MillraceError): void {
    if (this.#end !== undefined) return
    this.#end = error
    for (const lease of this.#leases.list()) {
      lease.lost ??= error
      this.#drop(lease)
    }
    this.#leases.close()
    this.#acks.close(error)
    for (const job of this.#inHand) job.abort(error)
  }
}
