import type { CancelTimer, Clock } from '../common/clock.ts'
import { SECOND_MS } from '../common/units.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { type Lease, tokenName } from './worker-job.ts'

/** After a renewal that was not answered. */
const RENEW_AGAIN_MS: number = SECOND_MS
/** Those that are due this much of their lease later are renewed along with the first, so that leases given out about the same time are one message. */
const EARLY_SHARE = 0.1
/** Of one message. */
const MOST_RENEWALS = 1_000

/** Told of what happens to leases. None of these may throw. */
export interface LeasesOwner {
  /** Resolves to those that were refused. @throws MillraceError (as rejection) when there was no answer */
  renew(leases: readonly Lease[]): Promise<ReadonlyMap<Lease, MillraceError>>
  /** They are over: refused by the broker, or not heard of for so long that they must be. */
  lost(leases: ReadonlyMap<Lease, MillraceError>): void
  /** It goes on as long as it has been given, and no longer. */
  limited(lease: Lease, error: MillraceError): void
}

/**
 * The leases of a worker that have something unsettled. Renews each when half of its time is over, and gives up those whose time is certainly over. One
 * timer for all. The count starts when a renewal is sent, which is before the broker's, so that this side stops first.
 */
export class WorkerLeases {
  readonly #clock: Clock
  readonly #owner: LeasesOwner
  readonly #leases: Map<string, Lease> = new Map()
  #cancelTimer: CancelTimer | undefined
  #timerMs = Infinity
  #isClosed = false

  constructor(clock: Clock, owner: LeasesOwner) {
    this.#clock = clock
    this.#owner = owner
  }

  get size(): number {
    return this.#leases.size
  }

  /** All of them, as they are now. */
  list(): readonly Lease[] {
    return [...this.#leases.values()]
  }

  find(token: Uint8Array): Lease | undefined {
    return this.#leases.get(tokenName(token))
  }

  has(lease: Lease): boolean {
    return this.#leases.get(lease.name) === lease
  }

  add(lease: Lease): void {
    this.#leases.set(lease.name, lease)
    if (lease.renewAtMs < this.#timerMs) this.#arm(lease.renewAtMs)
  }

  delete(lease: Lease): void {
    // The timer stays: most leases end before it fires, and setting it anew for each would cost more than one look too many.
    this.#leases.delete(lease.name)
  }

  /**
   * Renews all, whenever they are due: after a break, when it is to be found out which are left. Resolves when that is known, or cannot be for now.
   */
  renewAll(): Promise<void> {
    return this.#renew(this.list())
  }

  close(): void {
    this.#isClosed = true
    this.#cancelTimer?.()
    this.#leases.clear()
  }

  #arm(atMs: number): void {
    if (this.#isClosed) return
    this.#cancelTimer?.()
    this.#timerMs = atMs
    const delayMs = Math.max(0, Math.ceil(atMs - this.#clock.monotonicMs()))
    this.#cancelTimer = this.#clock.schedule(delayMs, () => this.#look())
  }

  #look(): void {
    this.#cancelTimer = undefined
    this.#timerMs = Infinity
    const nowMs = this.#clock.monotonicMs()
    const due: Lease[] = []
    const expired = new Map<Lease, MillraceError>()
    for (const lease of this.#leases.values()) {
      if (nowMs >= lease.validUntilMs) expired.set(lease, expiryOf(lease, nowMs))
      else if (!lease.isRenewing && nowMs >= lease.renewAtMs - lease.leaseMs * EARLY_SHARE) {
        due.push(lease)
      }
    }
    if (expired.size > 0) this.#owner.lost(expired)
    if (due.length > 0) void this.#renew(due) // It never rejects.
    this.#armNext()
  }

  #armNext(): void {
    let nextMs = Infinity
    for (const lease of this.#leases.values()) {
      const dueMs = lease.isRenewing ? lease.validUntilMs : lease.renewAtMs
      nextMs = Math.min(nextMs, dueMs, lease.validUntilMs)
    }
    if (nextMs < this.#timerMs) this.#arm(nextMs)
  }

  async #renew(leases: readonly Lease[]): Promise<void> {
    for (const lease of leases) lease.isRenewing = true
    const messages: Promise<void>[] = []
    for (let at = 0; at < leases.length; at += MOST_RENEWALS) {
      messages.push(this.#renewSome(leases.slice(at, at + MOST_RENEWALS)))
    }
    await Promise.all(messages)
    for (const lease of leases) lease.isRenewing = false
    this.#armNext()
  }

  async #renewSome(leases: readonly Lease[]): Promise<void> {
    const sentMs = this.#clock.monotonicMs()
    let refused: ReadonlyMap<Lease, MillraceError>
    try {
      refused = await this.#owner.renew(leases)
    } catch (error) {
      const failure = toMillraceError(error)
      refused = new Map(leases.map((lease) => [lease, failure]))
    }
    const lost = new Map<Lease, MillraceError>()
    for (const lease of leases) {
      const error = refused.get(lease)
      if (error === undefined) lease.renewed(sentMs, lease.leaseMs)
      else if (!this.has(lease)) continue
      else if (error.code === 'LEASE_LIMIT_REACHED') {
        lease.renewAtMs = Infinity
        this.#owner.limited(lease, error)
      } else if (error.retryable || error.code === 'CLOSED') {
        lease.renewAtMs = this.#clock.monotonicMs() + RENEW_AGAIN_MS
      } else lost.set(lease, error)
    }
    if (lost.size > 0) this.#owner.lost(lost)
  }
}

function expiryOf(lease: Lease, nowMs: number): MillraceError {
  const { topic, partition, leaseMs } = lease
  const lateMs = Math.round(nowMs - lease.validUntilMs)
  return new MillraceError(
    'LEASE_LOST',
    `the lease of records of ${lease.label} could not be renewed in its ${leaseMs} ms: others get them` +
      (lateMs > leaseMs / 4 ? ` (found out ${lateMs} ms late: the event loop was blocked)` : ''),
    { reason: 'lease_expired', topic, partition, leaseMs },
  )
}
