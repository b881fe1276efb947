import type { Clock } from '../../common/clock.ts'
import { BrokerError } from '../../common/errors.ts'
import { isOffset } from '../../common/offset.ts'
import { DAY_MS } from '../../common/units.ts'
import type { Partition } from '../../topic/partition.ts'
import { type Lease, type LeaseBook, wasSettledAs } from './lease.ts'
import type { QueueConfig } from './queue-config.ts'
import type { QueueState, Run } from './queue-state.ts'
import type { AckItem } from './queue-types.ts'

/** An item of a request that is about this partition. */
export interface PartitionAck {
  /** Its place in the request. */
  readonly index: number
  /** Of the lease. */
  readonly number: number
  readonly item: AckItem
}

/** Part of an acknowledgement that has been checked. */
export interface Verified {
  readonly lease: Lease
  readonly item: AckItem
  /** Still leased. */
  readonly runs: readonly Run[]
}

/** Where the leases that are spoken of were given out. */
export interface LeasingQueue {
  readonly source: Partition
  readonly state: QueueState
  readonly config: QueueConfig
  /** For the details of errors. */
  readonly facts: Readonly<Record<string, unknown>>
}

const MOST_DELAY_MS: number = 30 * DAY_MS

/** What is to be said against acknowledgements of one partition, before anything of them is done. */
export class AckCheck {
  readonly #queue: LeasingQueue
  readonly #book: LeaseBook
  readonly #clock: Clock

  constructor(queue: LeasingQueue, book: LeaseBook, clock: Clock) {
    this.#queue = queue
    this.#book = book
    this.#clock = clock
  }

  /** Checks everything, changes nothing. @throws BrokerError LEASE_LOST, INVALID_ACK_RANGE, INVALID_DELAY, LEASE_LIMIT_REACHED */
  verify(items: readonly PartitionAck[]): Verified[] {
    const { source, state, facts } = this.#queue
    const verified: Verified[] = []
    const byLease = new Map<Lease, { readonly items: AckItem[]; end: number }>()
    for (const { number, item } of items) {
      checkDelay(item)
      const lease = this.#book.find(number)
      if (lease === undefined) throw this.#lost(item.first)
      if (item.verdict === 'renew') {
        if (lease.isOver) throw this.#lost(lease.first)
        this.#checkRenewal(lease)
        verified.push({ lease, item, runs: [] })
        continue
      }
      const { first, end } = item
      if (
        !isOffset(first) ||
        !isOffset(end) ||
        first >= end ||
        first < lease.first ||
        end > lease.end
      ) {
        throw new BrokerError(
          'INVALID_ACK_RANGE',
          `[${first}, ${end}) is no part of what the token leases: [${lease.first}, ${lease.end}) of ${source.name}`,
          { ...facts, first, end, leaseFirst: lease.first, leaseEnd: lease.end },
        )
      }
      const others = byLease.get(lease)
      if (others === undefined) byLease.set(lease, { items: [item], end })
      else {
        // In order they come nearly always; then nothing has to be looked through.
        const clash =
          others.end <= first
            ? undefined
            : others.items.find((one) => one.first < end && first < one.end)
        if (clash !== undefined) {
          throw new BrokerError(
            'INVALID_ACK_RANGE',
            `[${first}, ${end}) and [${clash.first}, ${clash.end}) of ${source.name} overlap in one request: say one thing of each record`,
            { ...facts, first, end },
          )
        }
        others.items.push(item)
        others.end = Math.max(others.end, end)
      }
      // Of a lease that has run out nothing is left, also while it is being decided what becomes of its records.
      const runs = lease.isOver
        ? []
        : state.within(first, end).filter((run) => run.lease === lease.number)
      let open = 0
      for (const run of runs) open += run.end - run.first
      if (open < end - first && !isSettled(lease, first, end, runs, item)) throw this.#lost(first)
      verified.push({ lease, item, runs })
    }
    return verified
  }

  #checkRenewal(lease: Lease): void {
    const { source, config, facts } = this.#queue
    const limitMs = lease.grantedMs + config.leaseMaxTotalMs
    if (this.#clock.monotonicMs() < limitMs && lease.deadlineMs < limitMs) return
    throw new BrokerError(
      'LEASE_LIMIT_REACHED',
      `a lease of ${source.name} has been renewed up to queue.lease.max.total.ms (${config.leaseMaxTotalMs} ms): it runs out`,
      { ...facts, first: lease.first, limit: config.leaseMaxTotalMs },
    )
  }

  #lost(offset: number): BrokerError {
    const { source, state, facts } = this.#queue
    const run = state.find(offset)
    const now = run === undefined ? (offset < state.scan ? 'done' : 'unscanned') : run.state
    const holder =
      run?.state === 'acquired' ? this.#book.find(run.lease)?.holder.memberId : undefined
    return new BrokerError(
      'LEASE_LOST',
      `the lease of ${source.name}:${offset} has ended${holder === undefined ? '' : `, and ${holder} has it now`}: what was done will be done again unless it is done (${now})`,
      { ...facts, offset, state: now, ...(holder === undefined ? {} : { holder }) },
    )
  }
}

/** In the order of their first items. */
export function groupByLease(items: readonly PartitionAck[]): Iterable<readonly PartitionAck[]> {
  if (items.length === 1) return [items]
  const groups = new Map<number, PartitionAck[]>()
  for (const item of items) {
    const group = groups.get(item.number)
    if (group === undefined) groups.set(item.number, [item])
    else group.push(item)
  }
  return groups.values()
}

/** Whether all of the range that is not leased any more was settled just so, under this very lease. */
function isSettled(
  lease: Lease,
  first: number,
  end: number,
  runs: readonly Run[],
  item: AckItem,
): boolean {
  let at = first
  for (const run of [...runs, { first: end, end }]) {
    if (at < run.first && !wasSettledAs(lease, at, run.first, item.verdict)) return false
    at = run.end
  }
  return true
}

function checkDelay(item: AckItem): void {
  const { delayMs } = item
  if (delayMs === undefined || (delayMs >= 0 && delayMs <= MOST_DELAY_MS)) return
  throw new BrokerError(
    'INVALID_DELAY',
    `a delay of ${delayMs} ms is outside [0, ${MOST_DELAY_MS}]`,
    { field: 'delay_ms', actual: delayMs, limit: MOST_DELAY_MS },
  )
}
