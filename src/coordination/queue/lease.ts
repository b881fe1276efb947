import type { Verdict } from './queue-types.ts'
import { encodeToken } from './lease-token.ts'
import type { WheelEntry } from './timing-wheel.ts'

/** Who holds leases. The numbers are kept by the partitions that gave them. */
export interface LeaseHolder {
  readonly memberId: string
  /** Records leased and not settled. */
  acquired: number
  /** Leases among them of records that may be what kills workers, on their last attempt: never two at once. */
  lastChances: number
}

interface SettledRange {
  readonly first: number
  end: number
  readonly verdict: Verdict | 'none'
}

/** Told of leases whose time is up. */
export interface LeaseOwner {
  expired(lease: Lease): void
}

/** Some records of one partition, given to one member for a while. */
export interface Lease extends WheelEntry {
  readonly number: number
  readonly owner: LeaseOwner
  readonly token: Uint8Array
  readonly holder: LeaseHolder
  readonly first: number
  readonly end: number
  readonly leaseMs: number
  /** On the monotonic clock. */
  readonly grantedMs: number
  readonly isLastChance: boolean
  /** Records not settled yet. */
  open: number
  /** Expired, released or settled whole: what comes under its token now changes nothing. */
  isOver: boolean
  readonly settled: SettledRange[]
}

/** Leases that are over are remembered so long, so that a repeat of an acknowledgement whose answer was lost is recognized. */
const MOST_OVER = 4096

/** The leases of one partition of one group. */
export class LeaseBook {
  readonly #owner: LeaseOwner
  readonly #epoch: number
  readonly #queue: number
  readonly #leases = new Map<number, Lease>()
  readonly #over: number[] = []
  #overAt = 0
  #last = 0

  constructor(owner: LeaseOwner, epoch: number, queue: number) {
    this.#owner = owner
    this.#epoch = epoch
    this.#queue = queue
  }

  grant(
    holder: LeaseHolder,
    range: { readonly first: number; readonly end: number; readonly count: number },
    leaseMs: number,
    nowMs: number,
    isLastChance: boolean,
  ): Lease {
    const number = ++this.#last
    const lease: Lease = {
      number,
      owner: this.#owner,
      token: encodeToken({ epoch: this.#epoch, queue: this.#queue, number }),
      holder,
      first: range.first,
      end: range.end,
      leaseMs,
      grantedMs: nowMs,
      isLastChance,
      open: range.count,
      isOver: false,
      settled: [],
      deadlineMs: nowMs + leaseMs,
      wheelSlot: -1,
      wheelIndex: -1,
    }
    this.#leases.set(number, lease)
    holder.acquired += range.count
    if (isLastChance) holder.lastChances++
    return lease
  }

  find(number: number): Lease | undefined {
    return this.#leases.get(number)
  }

  /** Those that are not over. */
  *living(): Generator<Lease, void, undefined> {
    for (const lease of this.#leases.values()) if (!lease.isOver) yield lease
  }

  /** Notes what became of some of its records; the lease is over with the last of them. */
  settle(lease: Lease, first: number, end: number, count: number, verdict: Verdict | 'none'): void {
    const last = lease.settled.at(-1)
    if (last?.end === first && last.verdict === verdict) last.end = end
    else lease.settled.push({ first, end, verdict })
    lease.open -= count
    lease.holder.acquired -= count
    if (lease.open === 0) this.finish(lease)
  }

  finish(lease: Lease): void {
    if (lease.isOver) return
    lease.isOver = true
    lease.holder.acquired -= lease.open
    lease.open = 0
    if (lease.isLastChance) lease.holder.lastChances--
    if (this.#over.length < MOST_OVER) {
      this.#over.push(lease.number)
      return
    }
    const oldest = this.#over[this.#overAt]
    if (oldest !== undefined) this.#leases.delete(oldest)
    this.#over[this.#overAt] = lease.number
    this.#overAt = (this.#overAt + 1) % MOST_OVER
  }
}

/** Whether all of [first, end) was settled under this lease with `verdict`. */
export function wasSettledAs(lease: Lease, first: number, end: number, verdict: Verdict): boolean {
  let at = first
  // Ranges come in the order of their settling, not of their offsets.
  for (let progress = true; at < end && progress;) {
    progress = false
    for (const range of lease.settled) {
      if (range.verdict !== verdict && range.verdict !== 'none') continue
      if (range.first <= at && at < range.end) {
        at = range.end
        progress = true
      }
    }
  }
  return at >= end
}
