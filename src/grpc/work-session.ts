import { constants } from 'node:http2'
import type { ServerDuplexStream } from '@grpc/grpc-js'
import { Ring } from '../bytes/ring.ts'
import { unreachable } from '../common/assert.ts'
import type { CancelTimer } from '../common/clock.ts'
import { BrokerError, toBrokerError } from '../common/errors.ts'
import { GIB, HOUR_MS, KIB, MINUTE_MS, SECOND_MS } from '../common/units.ts'
import type {
  AckFailure,
  QueueDelivery,
  WorkListener,
  WorkNotice,
  WorkSession as QueueSession,
} from '../coordination/queue/queue-types.ts'
import type { ErrorDetailMessage } from '../wire/error-detail.ts'
import type { WireParts } from '../wire/wire-parts.ts'
import {
  type AckItemMessage,
  decodeWorkRequest,
  type WorkDeliveryMessage,
  type WorkRequestMessage,
  type WorkResponseMessage,
  workResponseParts,
  type WorkStartMessage,
} from '../wire/work-codec.ts'
import { acknowledge, checkAckCount, toAckFailures } from './ack-messages.ts'
import { drainingError } from './drain.ts'
import { checkHeaders, type ServiceEnvironment } from './environment.ts'
import {
  ByteBudget,
  type ConnectionBudgets,
  setReadAhead,
  STREAM_UNSENT_BYTES,
} from './flow-control.ts'
import { MessageWriter } from './message-writer.ts'
import { toSettingTexts } from './setting-messages.ts'
import { checkRange, checkSize } from './unary.ts'

export type WorkCall = ServerDuplexStream<Buffer, Buffer | WireParts>

/** Lists of acknowledgements of one stream whose answers have not been sent; more are not read. */
const MOST_UNANSWERED = 256
const READ_AHEAD_MESSAGES = 2
/** A stream that does not say by then whose it is holds its place for nothing. */
const START_WITHIN_MS: number = 10 * SECOND_MS
/** A worker that takes nothing for so long is cut off (CONTRACT §5); it may come back. */
const STALLED_AFTER_MS: number = MINUTE_MS
/** What one message carries, but for a batch that is larger alone. */
const MESSAGE_BYTES: number = 256 * KIB
/** What stands around a batch in its delivery, and around a message in Node's memory. */
const DELIVERY_OVERHEAD_BYTES = 128
const MESSAGE_OVERHEAD_BYTES: number = KIB
const FAILURE_BYTES = 256
const MOST_CREDIT_RECORDS = 1_000_000
const MOST_CREDIT_BYTES: number = GIB
const SHORTEST_LEASE_MS: number = SECOND_MS
const LONGEST_LEASE_MS: number = 12 * HOUR_MS
const LONGEST_CLIENT_ID = 256

interface LostLease {
  readonly token: Uint8Array
  readonly error: ErrorDetailMessage
}

type AckResult = WorkResponseMessage['results'][number]

/**
 * One Work stream: carries a worker's session between its connection and the queues. Acknowledgements are given to the queues as they come and
 * answered as they become durable, known by their correlation ids. What one turn brings goes out in one message.
 *
 * A worker that does not read costs what it has granted itself: deliveries and lost leases wait in their order, so that none is told of a lease
 * that it has not seen, and beyond {@link MOST_UNANSWERED} lists of acknowledgements, or the bytes that a connection may have under way,
 * nothing more is read. One that takes nothing for a minute is cut off. However the stream ends, without `end` the member is detached: its
 * leases stay until they expire, and it may come back; but for a new one whose stream went before it was told its id.
 *
 * A broker that stops (SEMANTICS §3.3) gives out nothing more: that is the queues' own drain, which comes before the server's. Here credit is
 * not passed on any more, while acknowledgements are taken as long as the server waits. A stream whose worker has nothing in hand ends with
 * BROKER_DRAINING, and the worker comes back to whoever serves then; so the server has stopped as soon as the last worker is done. Whoever is
 * not done by then is cut off, and its records are given out again.
 */
export class WorkSession {
  readonly #call: WorkCall
  readonly #environment: ServiceEnvironment
  readonly #budgets: ConnectionBudgets
  readonly #peer: string
  readonly #writer: MessageWriter
  /** Handed to the transport and not yet on the socket. */
  readonly #unsent = new ByteBudget(STREAM_UNSENT_BYTES)
  /** Deliveries and ends of leases that wait to be sent. */
  readonly #events = new Ring<QueueDelivery | LostLease>()
  /** Answers that wait to be sent. */
  readonly #results = new Ring<AckResult>()
  /** The newest that waits to be sent. */
  #notice: WorkNotice | undefined
  #phase: 'new' | 'opening' | 'open' | 'ending' | 'ended' = 'new'
  #session: QueueSession | undefined
  /** The queues have ended the session by themselves. */
  #over = false
  /** Lists that the queues have not settled, and those whose answers have not been sent, the former among them. */
  #unsettled = 0
  #unanswered = 0
  /** Called when no list is unsettled. */
  #onSettled: (() => void) | undefined
  /** Records that have been granted and not delivered. */
  #creditRecords = 0
  #paused = false
  #flushing = false
  #waitsForRoom = false
  #waitsToRead = false
  #draining = false
  #inputEnded = false
  /** Why the stream will end once every list has been answered. */
  #failure: unknown
  #closed = false
  #cancelStartTimer: CancelTimer | undefined
  #cancelStallTimer: CancelTimer | undefined

  constructor(call: WorkCall, environment: ServiceEnvironment) {
    this.#call = call
    this.#environment = environment
    this.#peer = call.getPeer()
    this.#budgets = environment.budgets.enter(this.#peer)
    this.#writer = new MessageWriter(call, environment)
    environment.drain.enter()
  }

  start(): void {
    const call = this.#call
    const { clock, drain } = this.#environment
    setReadAhead(call, READ_AHEAD_MESSAGES)
    const gone = (): void => {
      this.#close()
      this.#cancelStallTimer?.()
    }
    call.on('cancelled', gone)
    call.on('close', gone)
    this.#environment.findStream(call.metadata)?.once('close', gone)
    drain.signal.addEventListener('abort', this.#onDrain)
    try {
      drain.check()
      checkHeaders(call.metadata)
    } catch (error) {
      this.#fail(error)
      return
    }
    this.#cancelStartTimer = clock.schedule(START_WITHIN_MS, () =>
      this.#fail(misplaced(`no start has come within ${START_WITHIN_MS} ms`)),
    )
    call.on('data', (bytes: Buffer) => this.#take(bytes))
    call.on('end', () => {
      this.#inputEnded = true
      // Whoever has said its last word will not acknowledge anything any more.
      if (this.#phase === 'open') this.#detach()
      this.#scheduleFlush()
    })
  }

  // ── from the worker ──

  #take(bytes: Buffer): void {
    if (this.#closed || this.#failure !== undefined) return
    // What comes after an end is nobody's any more.
    if (this.#phase === 'ending' || this.#phase === 'ended') return
    try {
      checkSize(this.#environment, bytes.length)
      this.#handle(decodeWorkRequest(bytes), bytes.length)
    } catch (error) {
      this.#fail(error)
      return
    }
    this.#readOrWait()
  }

  #handle(request: WorkRequestMessage, bytes: number): void {
    const { kind } = request
    if (kind === 'unknown') throw request.problem
    const session = this.#session
    if (session === undefined) {
      if (kind !== 'start') throw misplaced(`the first message must be start, not ${kind}`)
      checkStart(request.start)
      this.#cancelStartTimer?.()
      this.#phase = 'opening'
      // Ends the stream when it fails; it never rejects.
      void this.#open(request.start)
      return
    }
    switch (kind) {
      case 'start':
        throw misplaced('the session has started already')
      case 'credit':
        this.#credit(session, request.records, request.bytes, request.replaces === true)
        return
      case 'acks':
        this.#acknowledge(session, request.correlationId, request.items, bytes)
        return
      case 'end':
        this.#endSession(session, undefined)
        return
      default:
        unreachable(kind)
    }
  }

  async #open(start: WorkStartMessage): Promise<void> {
    try {
      const session = await this.#environment.queues().work(
        {
          group: start.group,
          topic: start.topic,
          memberId: start.memberId,
          clientId: start.clientId,
          host: this.#peer,
          leaseMs: start.leaseMs,
          settings: toSettingTexts(start.settings),
        },
        this.#listener,
      )
      if (this.#over) return
      if (this.#closed || this.#failure !== undefined) {
        // The stream went while the queues were at it. A new member has not been told its id, so it can never come back: nobody should wait for it.
        if (session.resumed) session.detach()
        else await this.#leave(session)
        return
      }
      this.#session = session
      this.#phase = 'open'
      const { memberId, leaseMs, resumed } = session
      this.#write({
        started: { memberId, leaseMs, group: start.group, resumed },
        deliveries: [],
        results: [],
        leasesLost: [],
        notice: undefined,
      })
      this.#scheduleFlush()
      this.#readOrWait()
    } catch (error) {
      this.#fail(error)
    }
  }

  /** The worker counts a delivery's records; how its bytes are counted is the queue's affair, so only the sum of records can be checked here. */
  #credit(session: QueueSession, records: number, bytes: number, replaces: boolean): void {
    checkRange('credit.records', records, 0, MOST_CREDIT_RECORDS)
    checkRange('credit.bytes', bytes, 0, MOST_CREDIT_BYTES)
    this.#creditRecords = (replaces ? 0 : this.#creditRecords) + records
    if (this.#creditRecords > MOST_CREDIT_RECORDS) {
      throw new BrokerError(
        'INVALID_REQUEST',
        `${this.#creditRecords} records have been granted and not delivered, more than ${MOST_CREDIT_RECORDS}`,
        { field: 'credit.records', actual: this.#creditRecords, limit: MOST_CREDIT_RECORDS },
      )
    }
    if (!this.#draining) session.credit(records, bytes, replaces)
  }

  #acknowledge(
    session: QueueSession,
    correlationId: number,
    items: readonly AckItemMessage[],
    bytes: number,
  ): void {
    checkRange('acks.correlation_id', correlationId, 0, Number.MAX_SAFE_INTEGER)
    checkAckCount(items)
    this.#unsettled++
    this.#unanswered++
    this.#budgets.inFlight.take(bytes)
    this.#environment.budgets.inFlight.take(bytes)
    // Settles the list whatever comes, and never rejects.
    void this.#settle(session, correlationId, items, bytes)
  }

  async #settle(
    session: QueueSession,
    correlationId: number,
    items: readonly AckItemMessage[],
    bytes: number,
  ): Promise<void> {
    // Called before the first await: the queues get lists in the order of their coming.
    const dead: number[] = []
    const refused = await acknowledge(
      items,
      async (valid, given) => {
        try {
          return await session.acknowledge(valid, given)
        } catch (failure) {
          // Of the disk's, perhaps. It says the same of every item.
          const error = toBrokerError(failure)
          return valid.map((_, index): AckFailure => ({ index, error }))
        }
      },
      dead,
    )
    const failures = toAckFailures(refused, this.#environment.errors, 'Work')
    this.#results.push({ correlationId, failures, dead })
    this.#budgets.inFlight.give(bytes)
    this.#environment.budgets.inFlight.give(bytes)
    this.#unsettled--
    if (this.#unsettled === 0) this.#onSettled?.()
    this.#scheduleFlush()
  }

  /** Ends the session in good order, and then the stream: with OK, or for `reason`. */
  #endSession(session: QueueSession, reason: BrokerError | undefined): void {
    this.#phase = 'ending'
    this.#session = undefined
    // Ends the stream when it fails; it never rejects.
    void this.#finishSession(session, reason)
  }

  async #finishSession(session: QueueSession, reason: BrokerError | undefined): Promise<void> {
    try {
      if (this.#unsettled > 0) {
        await new Promise<void>((resolve) => {
          this.#onSettled = resolve
        })
      }
      if (!this.#over) await this.#leave(session)
      this.#phase = 'ended'
      this.#failure ??= reason
    } catch (error) {
      this.#failure ??= error
    }
    this.#scheduleFlush()
  }

  async #leave(session: QueueSession): Promise<void> {
    try {
      await session.end()
    } catch (error) {
      // It is still a member, of which nothing more will be heard here.
      session.detach()
      throw error
    }
  }

  /** Stops reading while a bound is reached; whoever gives room calls it again. */
  readonly #readOrWait = (): void => {
    if (this.#closed) return
    const full = [this.#budgets.inFlight, this.#environment.budgets.inFlight].find(
      (budget) => !budget.hasRoom,
    )
    const wait =
      full !== undefined || this.#phase === 'opening' || this.#unanswered >= MOST_UNANSWERED
    if (wait && !this.#paused) this.#call.pause()
    else if (!wait && this.#paused) this.#call.resume()
    this.#paused = wait
    if (full === undefined || this.#waitsToRead) return
    this.#waitsToRead = true
    full.onRoom(() => {
      this.#waitsToRead = false
      this.#readOrWait()
    })
  }

  // ── from the queues ──

  readonly #listener: WorkListener = {
    delivered: (delivery) => {
      this.#creditRecords = Math.max(0, this.#creditRecords - delivery.count)
      this.#push(delivery)
    },
    leaseLost: (token, error) => {
      this.#push({ token, error: this.#environment.errors.toDetail(error, 'Work') })
    },
    notice: (notice) => {
      this.#notice = notice
      this.#scheduleFlush()
    },
    ended: (error) => {
      this.#session = undefined
      this.#over = true
      this.#fail(error)
    },
  }

  #push(event: QueueDelivery | LostLease): void {
    if (this.#closed) return
    this.#events.push(event)
    this.#scheduleFlush()
  }

  // ── to the worker ──

  /** Runs after everything else of this turn, so that what one turn brings goes together. */
  readonly #scheduleFlush = (): void => {
    if (this.#flushing || this.#closed) return
    this.#flushing = true
    process.nextTick(() => {
      this.#flushing = false
      this.#flush()
    })
  }

  #flush(): void {
    if (this.#closed) return
    // Before `started` nothing goes, and at the end nothing but the answers that are due.
    if (this.#phase !== 'opening') {
      if (this.#session === undefined || this.#failure !== undefined) {
        this.#events.clear()
        this.#notice = undefined
      }
      while (this.#hasWord && this.#hasRoom()) this.#write(this.#nextResponse())
    }
    if (this.#paused) this.#readOrWait()
    this.#endIfDone()
  }

  get #hasWord(): boolean {
    return this.#results.length > 0 || this.#events.length > 0 || this.#notice !== undefined
  }

  /** Room on the way to the worker; without, the flush is repeated when there is some. */
  #hasRoom(): boolean {
    if (!this.#unsent.hasRoom) {
      this.#watchForStall()
      return false
    }
    const { unsent } = this.#budgets
    if (unsent.hasRoom) return true
    // A stream that only waits because its neighbours on the connection do not read is not the one to cut off.
    if (this.#unsent.usedBytes > 0) this.#watchForStall()
    if (!this.#waitsForRoom) {
      this.#waitsForRoom = true
      unsent.onRoom(() => {
        this.#waitsForRoom = false
        this.#scheduleFlush()
      })
    }
    return false
  }

  /** What comes next, up to about {@link MESSAGE_BYTES}. */
  #nextResponse(): WorkResponseMessage {
    const results: AckResult[] = []
    const leasesLost: LostLease[] = []
    const deliveries: WorkDeliveryMessage[] = []
    let bytes = 0
    while (this.#results.length > 0 && bytes < MESSAGE_BYTES) {
      const result = this.#results.shift()
      if (result === undefined) break
      results.push(result)
      bytes += 16 + result.failures.length * FAILURE_BYTES
    }
    this.#unanswered -= results.length
    while (bytes < MESSAGE_BYTES) {
      const event = this.#events.peek()
      if (event === undefined) break
      if ('batch' in event) {
        const size = event.batch.length + DELIVERY_OVERHEAD_BYTES
        if (deliveries.length > 0 && bytes + size > MESSAGE_BYTES) break
        deliveries.push(event)
        bytes += size
      } else {
        // It may be the end of a lease in this very message, where the two have no order.
        if (deliveries.length > 0) break
        leasesLost.push(event)
        bytes += FAILURE_BYTES
      }
      this.#events.shift()
    }
    const notice = this.#notice
    this.#notice = undefined
    return { started: undefined, deliveries, results, leasesLost, notice }
  }

  #write(response: WorkResponseMessage): void {
    const message = workResponseParts(response)
    const bytes = message.length + MESSAGE_OVERHEAD_BYTES
    this.#unsent.take(bytes)
    this.#budgets.unsent.take(bytes)
    this.#writer.write(message, () => {
      const watched = this.#cancelStallTimer !== undefined
      this.#cancelStallTimer?.()
      this.#cancelStallTimer = undefined
      this.#unsent.give(bytes)
      // That was progress: the minute starts anew for what is left.
      if (watched && this.#unsent.usedBytes > 0) this.#watchForStall()
      if (this.#closed) return
      this.#budgets.unsent.give(bytes)
      if (this.#hasWord) this.#scheduleFlush()
    })
  }

  #endIfDone(): void {
    if (this.#unanswered > 0) return
    const session = this.#session
    if (this.#failure !== undefined) {
      this.#call.emit('error', this.#environment.errors.toStatus(this.#failure, 'Work'))
      this.#finish()
    } else if (this.#phase === 'ended' || (this.#inputEnded && this.#phase !== 'ending')) {
      this.#call.end()
      this.#finish()
    } else if (this.#draining && session !== undefined && session.leased === 0) {
      this.#endSession(session, drainingError())
    }
  }

  #fail(error: unknown): void {
    this.#failure ??= error
    this.#scheduleFlush()
  }

  readonly #onDrain = (): void => {
    this.#draining = true
    if (this.#phase === 'new') this.#fail(drainingError())
    this.#scheduleFlush()
  }

  /** All has been said: the status goes when the transport has sent what it holds, and if the peer takes it. */
  #finish(): void {
    this.#close()
    if (this.#unsent.usedBytes > 0) this.#watchForStall()
  }

  #close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#detach()
    this.#events.clear()
    this.#cancelStartTimer?.()
    this.#environment.drain.signal.removeEventListener('abort', this.#onDrain)
    // The transport forgets the callbacks of what it has not sent when a call is cancelled.
    this.#budgets.unsent.give(this.#unsent.usedBytes)
    this.#environment.budgets.leave(this.#peer)
    this.#environment.drain.leave()
  }

  #detach(): void {
    this.#session?.detach()
    this.#session = undefined
  }

  #watchForStall(): void {
    this.#cancelStallTimer ??= this.#environment.clock.schedule(STALLED_AFTER_MS, () => {
      this.#environment.logger.warn(
        { peer: this.#peer, unsentBytes: this.#unsent.usedBytes },
        `a worker has taken nothing for ${STALLED_AFTER_MS} ms and is cut off`,
      )
      this.#close()
      // A status would wait behind what the worker does not take: the stream is reset.
      this.#environment.findStream(this.#call.metadata)?.close(constants.NGHTTP2_CANCEL)
    })
  }
}

/** @throws BrokerError INVALID_REQUEST */
function checkStart(start: WorkStartMessage): void {
  checkLease(start.leaseMs)
  checkClientId(start.clientId)
}

/** @throws BrokerError INVALID_REQUEST */
export function checkLease(leaseMs: number): void {
  if (leaseMs !== 0) checkRange('lease_ms', leaseMs, SHORTEST_LEASE_MS, LONGEST_LEASE_MS)
}

/** @throws BrokerError INVALID_REQUEST */
export function checkClientId(clientId: string): void {
  if (clientId.length <= LONGEST_CLIENT_ID) return
  throw new BrokerError(
    'INVALID_REQUEST',
    `client_id has ${clientId.length} letters, more than ${LONGEST_CLIENT_ID}`,
    { field: 'client_id', actual: clientId.length, limit: LONGEST_CLIENT_ID },
  )
}

function misplaced(message: string): BrokerError {
  return new BrokerError('INVALID_REQUEST', message, { field: 'request' })
}
