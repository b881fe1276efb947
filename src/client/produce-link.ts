import { Ring } from '../bytes/ring.ts'
import type { CancelTimer, Clock } from '../common/clock.ts'
import type { Random } from '../common/random.ts'
import { toBrokerErrorFromDetail } from '../wire/error-detail.ts'
import type { ProduceEnvelope, ProduceResultMessage } from '../wire/produce-codec.ts'
import type { PartitionAccumulator, PendingBatch } from './batch-accumulator.ts'
import { type ProduceCall, toCallError } from './broker-channel.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { Backoff } from './retry.ts'

interface Sent<A extends PartitionAccumulator> {
  readonly correlationId: number
  readonly accumulator: A
  readonly batch: PendingBatch
}

/** Told of what happens on a link. */
export interface LinkOwner<A extends PartitionAccumulator> {
  /** The accumulator may send: the link has room again, or is about to be opened anew. */
  mayWrite(accumulator: A): void
  /** A batch of the accumulator has been answered, or lost with `error`. */
  progressed(accumulator: A, error: MillraceError | undefined): void
  /** A batch sent with acks `none` was refused. */
  refusedUnasked(error: MillraceError): void
}

/**
 * The produce stream to one broker, shared by all partitions that it leads. Opens when first written to; when it breaks, everything unanswered
 * goes back to its accumulator, and after a pause the stream opens again.
 */
export class ProduceLink<A extends PartitionAccumulator> {
  readonly #open: () => { readonly call: ProduceCall; readonly address: string }
  readonly #owner: LinkOwner<A>
  readonly #clock: Clock
  readonly #backoff: Backoff
  readonly #sent: Ring<Sent<A>> = new Ring()
  readonly #waiting: Set<A> = new Set()
  #call: ProduceCall | undefined
  #lastCorrelationId = 0
  #isFull = false
  #cancelPause: CancelTimer | undefined
  #isClosed = false

  constructor(
    open: () => { readonly call: ProduceCall; readonly address: string },
    owner: LinkOwner<A>,
    clock: Clock,
    random: Random,
  ) {
    this.#open = open
    this.#owner = owner
    this.#clock = clock
    this.#backoff = new Backoff(random)
  }

  /** False while the transport pushes back or a broken stream waits to be opened again. */
  get isWritable(): boolean {
    return !this.#isFull && this.#cancelPause === undefined && !this.#isClosed
  }

  /** Calls `mayWrite` with this accumulator when the link is writable again. */
  waitFor(accumulator: A): void {
    this.#waiting.add(accumulator)
  }

  /** Writes one batch. Answers come in this order. */
  send(
    accumulator: A,
    batch: PendingBatch,
    envelope: Omit<ProduceEnvelope, 'correlationId'>,
  ): void {
    const call = this.#call ?? this.#openCall()
    const correlationId = ++this.#lastCorrelationId
    const isUnanswered = envelope.acks === 'none'
    if (!isUnanswered) this.#sent.push({ correlationId, accumulator, batch })
    this.#isFull = !call.write({ ...envelope, correlationId })
    if (isUnanswered) {
      // Nobody will say more: the buffers of the transport are as far as acks none can see.
      accumulator.succeeded(batch, {
        baseOffset: Number.NaN,
        appendTimeMs: undefined,
        duplicate: false,
      })
    }
  }

  /**
   * Ends the stream and waits until the broker has taken all that was written, which nothing else tells for acks `none`; at most `patienceMs`.
   */
  finish(patienceMs: number): Promise<void> {
    const call = this.#call
    if (call === undefined) return Promise.resolve()
    return new Promise((resolve) => {
      const cancel = this.#clock.schedule(patienceMs, resolve)
      const done = (): void => {
        cancel()
        resolve()
      }
      // Whatever ends it: after `end()` an error says no more than that the stream is over.
      call.on('end', done)
      call.on('error', done)
      this.#call = undefined
      call.end()
    })
  }

  /** Ends the stream. What is unanswered is left to its owner. */
  close(): void {
    this.#isClosed = true
    this.#cancelPause?.()
    this.#cancelPause = undefined
    this.#sent.clear()
    this.#waiting.clear()
    const call = this.#call
    this.#call = undefined
    call?.end()
  }

  #openCall(): ProduceCall {
    const { call, address } = this.#open()
    this.#call = call
    // Events of a call that has been given up must not touch its successor.
    call.on('data', (results: readonly ProduceResultMessage[]) => {
      if (this.#call === call) this.#take(results)
    })
    call.on('drain', () => {
      if (this.#call !== call) return
      this.#isFull = false
      this.#wakeWaiting()
    })
    call.on('error', (error: Error) => {
      if (this.#call === call) this.#broke(toCallError(error, address))
    })
    call.on('end', () => {
      if (this.#call !== call) return
      this.#broke(new MillraceError('UNREACHABLE', `${address} ended the stream`, { address }))
    })
    return call
  }

  #take(results: readonly ProduceResultMessage[]): void {
    this.#backoff.reset()
    for (const result of results) {
      const error =
        result.error === undefined
          ? undefined
          : toMillraceError(toBrokerErrorFromDetail(result.error))
      const sent = this.#sent.peek()
      if (sent?.correlationId !== result.correlationId) {
        // Unasked answers are refusals of acks none; anything else would be a broker that has lost count.
        if (error !== undefined) this.#owner.refusedUnasked(error)
        continue
      }
      this.#sent.shift()
      if (error === undefined) sent.accumulator.succeeded(sent.batch, result)
      else sent.accumulator.failed(sent.batch, error)
      this.#owner.progressed(sent.accumulator, error)
    }
  }

  #broke(error: MillraceError): void {
    const call = this.#call
    this.#call = undefined
    this.#isFull = false
    call?.on('error', () => undefined) // A second error of a dead call says nothing new, but unheard it would end the process.
    call?.cancel()
    const lost = new Set<A>()
    for (let sent = this.#sent.shift(); sent !== undefined; sent = this.#sent.shift()) {
      sent.accumulator.lost(sent.batch, error)
      lost.add(sent.accumulator)
    }
    this.#cancelPause = this.#clock.schedule(this.#backoff.nextDelayMs(), () => {
      this.#cancelPause = undefined
      this.#wakeWaiting()
    })
    for (const accumulator of lost) this.#owner.progressed(accumulator, error)
  }

  #wakeWaiting(): void {
    const waiting = [...this.#waiting]
    this.#waiting.clear()
    for (const accumulator of waiting) this.#owner.mayWrite(accumulator)
  }
}
