import { invariant } from '../common/assert.ts'
import { type CancelTimer, type Clock, holdProcess } from '../common/clock.ts'
import type { Random } from '../common/random.ts'
import { SECOND_MS } from '../common/units.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type {
  AckItemMessage,
  WorkDeliveryMessage,
  WorkNoticeMessage,
  WorkRequestMessage,
  WorkResponseMessage,
} from '../wire/work-codec.ts'
import type { ClientLogger } from './api.ts'
import { toCallError, type WorkStream } from './broker-channel.ts'
import { retryAfterMs } from './connection.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { checkNumbers } from './request-check.ts'
import { Backoff } from './retry.ts'
import type { WorkTarget } from './worker-options.ts'

/** How long `start` may stay unanswered. */
const START_TIMEOUT_MS: number = 30 * SECOND_MS
/** After so long without an answer it is found out whether the connection brings any. */
const DOUBT_MS: number = 3 * SECOND_MS
/** How long a full group is asked again. */
const GROUP_FULL_PATIENCE_MS: number = 30 * SECOND_MS
/** The broker may ask to wait longer than this. A worker had better look: its leases run. */
const LONGEST_PAUSE_MS: number = 5 * SECOND_MS

export interface AckRefusal {
  /** Which of the items. */
  readonly index: number
  readonly error: MillraceError
}

export interface AckOutcome {
  readonly refused: readonly AckRefusal[]
  /** Of the items with the verdict `retry`: which had no attempts left. */
  readonly dead: readonly number[]
}

/** Told of what happens on a link. None of these may throw. */
export interface LinkOwner {
  /**
   * The broker has taken the worker in. `isResumed`: as the member that it was, with its leases. Credit begins at nothing; verdicts without an answer
   * have been sent again.
   */
  started(isResumed: boolean): void
  delivered(deliveries: readonly WorkDeliveryMessage[]): void
  leaseLost(token: Uint8Array, error: MillraceError): void
  noticed(notice: WorkNoticeMessage): void
  /** The link is over for good: UNKNOWN_TOPIC, GROUP_TYPE_MISMATCH, INVALID_CONFIG … What was not answered is rejected with this error next. */
  failed(error: MillraceError): void
}

/** What a link needs of a Connection. */
export interface LinkConnection {
  readonly clock: Clock
  readonly random: Random
  readonly logger: ClientLogger | undefined
  readonly clientId: string
  /** Nothing comes through any more. */
  readonly isClosed: boolean
  getCoordinator(group: string): Promise<number>
  forgetCoordinator(group: string): void
  openWork(brokerId: number): WorkStream
}

interface PendingAcks {
  readonly items: readonly AckItemMessage[]
  /** Sent again after a break. Harmless: the broker knows what it has done under a token. */
  readonly isRepeated: boolean
  sentMs: number
  readonly resolve: (outcome: AckOutcome) => void
  readonly reject: (error: MillraceError) => void
}

type State = 'new' | 'opening' | 'up' | 'waiting' | 'over'

/**
 * A worker's stream to the coordinator of its group: opens it, comes back after breaks as the same member, keeps what has not been answered and says it again.
 * It knows nothing of leases and credit.
 */
export class WorkLink {
  readonly #connection: LinkConnection
  readonly #target: WorkTarget
  readonly #owner: LinkOwner
  readonly #clock: Clock
  readonly #backoff: Backoff
  #state: State = 'new'
  #stream: WorkStream | undefined
  /** Rises with each try to open a stream, so that a late answer to an old one is known as such. */
  #tries = 0
  #memberId = ''
  #startSentMs = 0
  #upSinceMs = 0
  /** Unanswered, oldest first. */
  readonly #sent: Map<number, PendingAcks> = new Map()
  #lastCorrelationId = 0
  /** What no stream has taken yet. */
  #unsent: PendingAcks[] = []
  #cancelPause: CancelTimer | undefined
  #cancelDoubt: CancelTimer | undefined
  #cancelEnd: CancelTimer | undefined
  #letProcessEnd: CancelTimer | undefined
  #fullSinceMs: number | undefined
  #ending: Promise<void> | undefined
  #resolveEnding: (() => void) | undefined
  #end: MillraceError | undefined

  constructor(connection: LinkConnection, target: WorkTarget, owner: LinkOwner) {
    this.#connection = connection
    this.#target = target
    this.#owner = owner
    this.#clock = connection.clock
    this.#backoff = new Backoff(connection.random)
  }

  /** Empty before the broker has taken the worker in. */
  get memberId(): string {
    return this.#memberId
  }

  /** The broker has taken the worker in, and the stream has not broken since. */
  get isUp(): boolean {
    return this.#state === 'up'
  }

  start(): void {
    if (this.#state === 'over') return
    invariant(this.#state === 'new', 'a link starts once')
    this.#letProcessEnd = holdProcess()
    this.#open()
  }

  /** Adds to what may be delivered. Only while the link is up. */
  credit(records: number, bytes: number): void {
    invariant(this.#state === 'up', 'credit is given to a broker that is there')
    this.#write({ kind: 'credit', records, bytes })
  }

  /** Takes back the credit that has not been used. What is on its way may still come. */
  withdraw(): void {
    if (this.#state === 'up') this.#write({ kind: 'credit', records: 0, bytes: 0, replaces: true })
  }

  /**
   * Resolves when everything that was not refused is durable. With `isRepeated` it survives breaks; without, a break rejects it. Many may be under way.
   * @throws MillraceError (as rejection) what `failed` was told, CLOSED; UNREACHABLE and its like when it is not repeated
   */
  acknowledge(items: readonly AckItemMessage[], isRepeated: boolean): Promise<AckOutcome> {
    if (this.#end !== undefined) return Promise.reject(this.#end)
    if (!isRepeated && this.#state !== 'up') {
      const message = `no contact with the broker of group ${this.#target.group} now`
      return Promise.reject(new MillraceError('UNREACHABLE', message, this.#facts()))
    }
    return new Promise((resolve, reject) => {
      const pending = { items, isRepeated, sentMs: 0, resolve, reject }
      if (this.#state === 'up') this.#send(pending)
      else this.#unsent.push(pending)
    })
  }

  /**
   * Leaves: the broker releases what is still leased. Resolves when it has, after `patienceMs`, or at once when there is no contact. The owner hears nothing
   * any more; what is not answered by then is rejected with CLOSED.
   */
  end(patienceMs: number): Promise<void> {
    if (this.#state === 'over') return this.#ending ?? Promise.resolve()
    if (this.#ending !== undefined) return this.#ending
    // Set before anything is done: whoever ends hears nothing more.
    this.#ending = new Promise((resolve) => {
      this.#resolveEnding = resolve
    })
    if (this.#state === 'up') {
      this.#write({ kind: 'end' })
      this.#cancelEnd = this.#clock.schedule(patienceMs, () => this.#finish(this.#closed()))
    } else this.#finish(this.#closed())
    return this.#ending
  }

  /** Ends it at once, without leaving: leases stay until they expire. */
  abandon(reason: MillraceError): void {
    this.#finish(reason)
  }

  // ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────

  #open(): void {
    this.#state = 'opening'
    const attempt = ++this.#tries
    this.#connection.getCoordinator(this.#target.group).then(
      (brokerId) => {
        if (this.#tries === attempt) this.#openStream(brokerId)
        return undefined
      },
      (error: unknown) => {
        if (this.#tries === attempt) this.#broke(toMillraceError(error))
        return undefined
      },
    )
  }

  #openStream(brokerId: number): void {
    const { group, topic, leaseMs, settings } = this.#target
    const memberId = this.#memberId
    const { clientId } = this.#connection
    const start = { group, topic, memberId, clientId, leaseMs, settings }
    let stream: WorkStream
    try {
      checkNumbers(start)
      stream = this.#connection.openWork(brokerId)
    } catch (error) {
      this.#broke(toMillraceError(error))
      return
    }
    const { call, address } = stream
    this.#stream = stream
    // Events of a stream that has been given up must not touch its successor.
    call.on('data', (message: WorkResponseMessage) => {
      if (this.#stream === stream) this.#take(message)
    })
    call.on('error', (error: Error) => {
      if (this.#stream === stream) this.#broke(toCallError(error, address))
    })
    call.on('end', () => {
      if (this.#stream !== stream) return
      this.#broke(new MillraceError('UNREACHABLE', `${address} ended the stream`, { address }))
    })
    this.#startSentMs = this.#clock.monotonicMs()
    this.#write({ kind: 'start', start })
    this.#watch()
  }

  // ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────

  #take(message: WorkResponseMessage): void {
    const { started, results, leasesLost, deliveries, notice } = message
    if (started !== undefined) this.#started(started.memberId, started.resumed)
    for (const { correlationId, failures, dead } of results) {
      const pending = this.#sent.get(correlationId)
      if (pending === undefined) continue
      this.#sent.delete(correlationId)
      const refused = failures.map(({ index, error }) => ({
        index,
        error: toMillraceError(toBrokerErrorFromDetail(error)),
      }))
      pending.resolve({ refused, dead: dead ?? NONE })
    }
    for (const { token, error } of leasesLost) {
      this.#owner.leaseLost(token, toMillraceError(toBrokerErrorFromDetail(error)))
    }
    if (deliveries.length > 0) this.#owner.delivered(deliveries)
    if (notice !== undefined) this.#owner.noticed(notice)
  }

  #started(memberId: string, resumed: boolean): void {
    if (this.#state !== 'opening') return
    const isResumed = resumed && memberId === this.#memberId
    if (this.#backoff.tries > 0) {
      this.#connection.logger?.info(
        `${isResumed ? 'back at' : 'joined'} queue group ${this.#target.group} as ${memberId}`,
      )
    }
    this.#state = 'up'
    this.#upSinceMs = this.#clock.monotonicMs()
    this.#memberId = memberId
    this.#fullSinceMs = undefined
    const unsent = this.#unsent
    this.#unsent = []
    for (const pending of unsent) this.#send(pending)
    if (this.#ending === undefined) this.#owner.started(isResumed)
  }

  // ── what goes out ───────────────────────────────────────────────────────────────────────────────────────────

  #write(message: Exclude<WorkRequestMessage, { readonly kind: 'unknown' }>): void {
    // The answer of write() is not looked at: verdicts are bounded by who waits for their answers, credit and renewals are few.
    this.#stream?.call.write(message)
  }

  #send(pending: PendingAcks): void {
    const correlationId = ++this.#lastCorrelationId
    pending.sentMs = this.#clock.monotonicMs()
    this.#sent.set(correlationId, pending)
    this.#write({ kind: 'acks', correlationId, items: pending.items })
    this.#watch()
  }

  /** Looks now and then, while something is unanswered, whether the broker is still there: HTTP/2's pings take 40 s to find it out. */
  #watch(): void {
    if (this.#cancelDoubt !== undefined) return
    const stream = this.#stream
    if (stream === undefined) return
    this.#cancelDoubt = this.#clock.schedule(DOUBT_MS, () => {
      this.#cancelDoubt = undefined
      if (this.#stream !== stream) return
      const sinceMs = this.#unansweredSinceMs()
      if (sinceMs === undefined) return
      if (this.#clock.monotonicMs() - sinceMs < DOUBT_MS) this.#watch()
      else void this.#check(stream) // It never rejects.
    })
  }

  #unansweredSinceMs(): number | undefined {
    if (this.#state === 'opening') return this.#startSentMs
    for (const { sentMs } of this.#sent.values()) return sentMs
    return undefined
  }

  async #check(stream: WorkStream): Promise<void> {
    const isAnswering = await stream.isAnswering()
    if (this.#stream !== stream) return
    const sinceMs = this.#unansweredSinceMs()
    if (sinceMs === undefined) return
    const silentMs = this.#clock.monotonicMs() - sinceMs
    const isLate = this.#state === 'opening' && silentMs >= START_TIMEOUT_MS
    if (isAnswering && !isLate) {
      // Slow, but there. What waits for a disk may take its time.
      this.#watch()
      return
    }
    const { address } = stream
    stream.discard()
    const message = `${address} has not answered a worker for ${Math.round(silentMs)} ms`
    this.#broke(new MillraceError('REQUEST_TIMEOUT', message, { address }))
  }

  // ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────

  /** The stream broke, or could not be opened. */
  #broke(error: MillraceError): void {
    const wasUp = this.#state === 'up'
    this.#dropStream()
    if (this.#ending !== undefined) {
      this.#finish(this.#closed())
      return
    }
    if (!this.#mayTryAgain(error)) {
      this.#finish(error)
      return
    }
    if (wasUp && this.#clock.monotonicMs() - this.#upSinceMs >= SECOND_MS) this.#backoff.reset()
    const isFirst = this.#backoff.tries === 0
    // A break is no reason yet to believe that another broker has the group.
    if (!isFirst || error.code === 'NOT_COORDINATOR') {
      this.#connection.forgetCoordinator(this.#target.group)
    }
    if (error.action === 'rejoin') this.#memberId = ''
    this.#pause(Math.min(retryAfterMs(error), LONGEST_PAUSE_MS))
    const text = `the work for group ${this.#target.group} was interrupted: ${error.message}`
    const details = { ...this.#facts(), code: error.code }
    if (isFirst) this.#connection.logger?.warn(text, details)
    else this.#connection.logger?.debug(text, details)
    this.#takeBack(error)
  }

  #mayTryAgain(error: MillraceError): boolean {
    if (error.code === 'GROUP_FULL') {
      const nowMs = this.#clock.monotonicMs()
      this.#fullSinceMs ??= nowMs
      return nowMs - this.#fullSinceMs < GROUP_FULL_PATIENCE_MS
    }
    // By a broker that stops: only our own end is final.
    if (error.code === 'CLOSED') return !this.#connection.isClosed
    return error.retryable || error.action === 'rejoin'
  }

  #pause(atLeastMs: number): void {
    this.#state = 'waiting'
    const delayMs = Math.max(this.#backoff.nextDelayMs(), atLeastMs)
    this.#cancelPause?.()
    this.#cancelPause = this.#clock.schedule(delayMs, () => {
      this.#cancelPause = undefined
      this.#open()
    })
  }

  /** What was sent and has no answer goes again, before what came after it; or is rejected. */
  #takeBack(error: MillraceError): void {
    if (this.#sent.size === 0) return
    const lost = [...this.#sent.values()]
    this.#sent.clear()
    this.#unsent = [...lost.filter(({ isRepeated }) => isRepeated), ...this.#unsent]
    for (const pending of lost) if (!pending.isRepeated) pending.reject(error)
  }

  #dropStream(): void {
    const stream = this.#stream
    this.#stream = undefined
    this.#tries++
    this.#cancelDoubt?.()
    this.#cancelDoubt = undefined
    if (stream === undefined) return
    const { call } = stream
    call.on('error', () => undefined) // A second error of a dead call says nothing new, but unheard it would end the process.
    // grpc-js still makes a call that was cancelled before it had a connection, and the broker would have a member for good that nobody speaks for.
    call.on('metadata', () => call.cancel())
    call.cancel()
  }

  #finish(error: MillraceError): void {
    if (this.#state === 'over') return
    const isEnding = this.#ending !== undefined
    this.#state = 'over'
    this.#end = error
    this.#cancelPause?.()
    this.#cancelEnd?.()
    this.#dropStream()
    this.#letProcessEnd?.()
    if (!isEnding) this.#owner.failed(error)
    const pending = [...this.#sent.values(), ...this.#unsent]
    this.#sent.clear()
    this.#unsent = []
    for (const { reject } of pending) reject(error)
    this.#resolveEnding?.()
  }

  #facts(): { readonly group: string; readonly topic: string } {
    const { group, topic } = this.#target
    return { group, topic }
  }

  #closed(): MillraceError {
    const { group } = this.#target
    return new MillraceError('CLOSED', `the work for group ${group} has ended`, this.#facts())
  }
}

const NONE: readonly number[] = []
