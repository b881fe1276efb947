import { SECOND_MS } from '../common/units.ts'
import { sleep } from '../common/clock.ts'
import type { AckFailure, AckItem, Verdict } from '../gen/types.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { AckItemMessage, WireVerdict, WorkDeliveryMessage } from '../wire/work-codec.ts'
import type { Topic } from './codecs.ts'
import type { Connection } from './connection.ts'
import { retryAfterMs } from './connection.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { Backoff } from './retry.ts'
import type { AckOutcome } from './work-link.ts'
import type { Delivery, ReceiveOptions } from './worker-api.ts'
import { type AckOwner, WorkerAcks } from './worker-acks.ts'
import { type AnyJob, type Job, type JobOwner, Lease, LeaseReader } from './worker-job.ts'
import { checkReceiveOptions, type CheckedReceiveOptions } from './worker-options.ts'

/** Over the wait that was asked for, until a call is taken for lost. */
const CALL_PATIENCE_MS: number = 10 * SECOND_MS
/** How long a broker that cannot be reached, or has no time, is asked again. */
const TRY_FOR_MS: number = 30 * SECOND_MS

const VERDICTS: Readonly<Record<WireVerdict, Verdict>> = {
  accept: 'VERDICT_ACCEPT',
  release: 'VERDICT_RELEASE',
  retry: 'VERDICT_RETRY',
  reject: 'VERDICT_REJECT',
  renew: 'VERDICT_RENEW',
}

/** Records of a queue without a stream, for short-lived programs: some with each call, settled by hand. */
export class Receiver<V, K> implements JobOwner, AckOwner {
  readonly #connection: Connection
  readonly #options: CheckedReceiveOptions
  readonly #signal: AbortSignal | undefined
  readonly #acks: WorkerAcks
  readonly #reader: LeaseReader<V, K>
  #whenIdle: (() => void) | undefined

  /** @throws MillraceError INVALID_GROUP_ID, INVALID_TOPIC_NAME, INVALID_REQUEST that names the option */
  constructor(connection: Connection, topic: Topic<V, K>, options: ReceiveOptions) {
    this.#connection = connection
    this.#options = checkReceiveOptions(topic.name, options)
    this.#signal = options.signal
    const transport = { acknowledge: (items: readonly AckItemMessage[]) => this.#send(items) }
    this.#acks = new WorkerAcks(transport, this, connection.clock, connection.random)
    this.#reader = new LeaseReader(topic, this)
  }

  /** Ends when there was nothing in time, or by the signal. What was fetched and not yielded is released however it ends. */
  async *iterate(): AsyncGenerator<Delivery<V, K>, void, undefined> {
    let leases: Lease[] = []
    try {
      while (this.#signal?.aborted !== true) {
        leases = await this.#fetch()
        if (leases.length === 0) return
        for (let lease = leases.shift(); lease !== undefined; lease = leases.shift()) {
          yield* this.#yieldFrom(lease)
        }
      }
    } finally {
      this.#reader.close()
      for (const lease of leases) this.#releaseRest(lease)
      await this.#answered()
    }
  }

  *#yieldFrom(lease: Lease): Generator<Delivery<V, K>, void, undefined> {
    try {
      this.#reader.open(lease)
      for (;;) {
        // Whoever took long over the others has nothing left of these: they are for somebody else by now.
        if (!this.#isAlive(lease)) return
        const job = this.#reader.next()
        if (job === undefined) return
        const { decodeError } = this.#reader
        if (decodeError === undefined) {
          yield job
        } else this.#refuseUnreadable(job, decodeError)
        if (this.#signal?.aborted === true) return
      }
    } catch (error) {
      const failure = toMillraceError(error)
      if (failure.code !== 'INVALID_RECORD' && failure.code !== 'CORRUPT_BATCH') throw error
      this.#rejectRest(lease, failure)
    } finally {
      this.#releaseRest(lease)
    }
  }

  #isAlive(lease: Lease): boolean {
    return lease.lost === undefined && this.#connection.clock.monotonicMs() < lease.validUntilMs
  }

  // ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────

  settled(job: AnyJob): void {
    this.#acks.add(job)
  }

  async renew(lease: Lease, leaseMs: number | undefined): Promise<void> {
    const sentMs = this.#connection.clock.monotonicMs()
    const refused = (await this.#acks.renew([lease], leaseMs)).get(lease)
    if (refused !== undefined) throw refused
    lease.renewed(sentMs, leaseMs ?? lease.leaseMs)
  }

  acknowledged(_lease: Lease, jobs: readonly AnyJob[]): void {
    for (const job of jobs) job.succeeded()
  }

  refused(lease: Lease, jobs: readonly AnyJob[], _count: number, error: MillraceError): void {
    if (error.code === 'LEASE_LOST') lease.lost ??= error
    for (const job of jobs) job.failed(error)
  }

  settledAll(): void {
    this.#whenIdle?.()
    this.#whenIdle = undefined
  }

  #refuseUnreadable(job: Job<V, K>, error: MillraceError): void {
    this.#connection.logger?.error(`${error.message}; it is rejected`, error.details)
    job.settle('reject', { error })
  }

  #rejectRest(lease: Lease, error: MillraceError): void {
    const { next, unstarted } = lease
    lease.next = lease.end
    lease.unstarted = 0
    this.#acks.addRange(lease, next, lease.end, unstarted, 'reject', error)
  }

  #releaseRest(lease: Lease): void {
    if (!this.#isAlive(lease)) return
    const { next, unstarted } = lease
    lease.next = lease.end
    lease.unstarted = 0
    this.#acks.addRange(lease, next, lease.end, unstarted, 'release')
  }

  /** Resolves when all that was said has been answered. */
  async #answered(): Promise<void> {
    if (this.#acks.isIdle) return
    await new Promise<void>((resolve) => {
      this.#whenIdle = resolve
    })
  }

  // ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────

  async #fetch(): Promise<Lease[]> {
    const { clock, random } = this.#connection
    const backoff = new Backoff(random)
    let failedMs: number | undefined
    for (;;) {
      try {
        const deliveries = await this.#receive()
        const nowMs = clock.monotonicMs()
        return deliveries.map((delivery) => new Lease(delivery, nowMs))
      } catch (error) {
        if (this.#signal?.aborted === true) return []
        const failure = toMillraceError(error)
        const nowMs = clock.monotonicMs()
        failedMs ??= nowMs
        // An answer that was lost has leased records to nobody: they come again when their leases run out.
        if (!failure.retryable || nowMs - failedMs >= TRY_FOR_MS) throw failure
        await sleep(clock, Math.max(backoff.nextDelayMs(), retryAfterMs(failure)), this.#signal)
      }
    }
  }

  async #receive(): Promise<readonly WorkDeliveryMessage[]> {
    const { target, max, waitMs } = this.#options
    const { group, topic, leaseMs, settings } = target
    const { clientId } = this.#connection
    const request = {
      group,
      topic,
      max,
      waitMs,
      maxBytes: 0,
      leaseMs,
      clientId,
      settings: settings.map((setting) => ({ ...setting })),
    }
    const answer = await this.#connection.call('Receive', request, {
      isRead: false,
      group,
      signal: this.#signal,
      timeoutMs: waitMs + CALL_PATIENCE_MS,
    })
    return answer.deliveries
  }

  /** A repeat is harmless, as it is on a stream. */
  async #send(items: readonly AckItemMessage[]): Promise<AckOutcome> {
    const { group } = this.#options.target
    const request = { group, items: items.map(toAckItem) }
    const { failures } = await this.#connection.call('Acknowledge', request, {
      isRead: true,
      group,
    })
    return { refused: failures.map(toRefusal), dead: [] }
  }
}

function toAckItem(item: AckItemMessage): AckItem {
  const { token, first, end, verdict, delayMs, error, pauseGroupMs } = item
  return {
    token: Buffer.from(token.buffer, token.byteOffset, token.byteLength),
    first,
    end,
    verdict: VERDICTS[verdict],
    ...(delayMs === undefined ? {} : { delayMs }),
    error: error === undefined ? null : { ...error },
    pauseGroupMs,
  }
}

function toRefusal({ index, error }: AckFailure): { index: number; error: MillraceError } {
  if (error !== null) return { index, error: toMillraceError(toBrokerErrorFromDetail(error)) }
  return { index, error: new MillraceError('INTERNAL_ERROR', 'a verdict was refused') }
}
