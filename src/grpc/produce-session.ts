import type { ServerDuplexStream } from '@grpc/grpc-js'
import { Ring } from '../bytes/ring.ts'
import {
  decodeProduceRequest,
  encodeProduceResponse,
  type ProduceEnvelope,
  type ProduceResultMessage,
} from '../wire/produce-codec.ts'
import { type StartedAppend, startAppend, toErrorResult, toResultMessage } from './append.ts'
import { drainingError } from './drain.ts'
import { checkHeaders, type ServiceEnvironment } from './environment.ts'
import { type ConnectionBudgets, setReadAhead } from './flow-control.ts'

export type ProduceCall = ServerDuplexStream<Buffer, Buffer>

/** Requests of one stream that wait for their turn to be answered; more are not read. A client that does not read answers stops here. */
const MOST_UNANSWERED = 4096
/** Results in one message at most: about 100 KiB. */
const MOST_RESULTS = 2048
const READ_AHEAD_MESSAGES = 2

/** The place of one request in the order of the answers. */
interface Slot {
  ready: boolean
  /** Undefined when it needs no answer: acks `none`, and done. */
  result: ProduceResultMessage | undefined
}

/**
 * One Produce stream. Requests are given to the log as they come and answered in their order; all that is ready in one turn of the event
 * loop goes in one message. Reading stops while the bytes under way are above the budget of the connection or of the broker, so that
 * HTTP/2 windows fill up and the client's writes wait.
 */
export class ProduceSession {
  readonly #call: ProduceCall
  readonly #environment: ServiceEnvironment
  readonly #budgets: ConnectionBudgets
  readonly #peer: string
  readonly #slots = new Ring<Slot>()
  #paused = false
  #flushing = false
  /** grpc-js holds all the answers it wants for now. */
  #blocked = false
  #inputEnded = false
  /** Why the stream will end once everything before has been answered. */
  #failure: unknown
  #closed = false

  constructor(call: ProduceCall, environment: ServiceEnvironment) {
    this.#call = call
    this.#environment = environment
    this.#peer = call.getPeer()
    this.#budgets = environment.budgets.enter(this.#peer)
    environment.drain.enter()
  }

  start(): void {
    const call = this.#call
    setReadAhead(call, READ_AHEAD_MESSAGES)
    call.on('cancelled', () => this.#close())
    call.on('close', () => this.#close())
    this.#environment.drain.signal.addEventListener('abort', this.#onDrain)
    try {
      this.#environment.drain.check()
      checkHeaders(call.metadata)
    } catch (error) {
      this.#fail(error)
      return
    }
    call.on('data', (bytes: Buffer) => this.#take(bytes))
    call.on('end', () => {
      this.#inputEnded = true
      this.#scheduleFlush()
    })
    call.on('drain', () => {
      this.#blocked = false
      this.#scheduleFlush()
    })
  }

  #take(bytes: Buffer): void {
    if (this.#closed || this.#failure !== undefined) return
    let envelope: ProduceEnvelope
    try {
      envelope = decodeProduceRequest(bytes)
    } catch (error) {
      // What cannot be read cannot be answered in its place either.
      this.#fail(error)
      return
    }
    const slot: Slot = { ready: false, result: undefined }
    this.#slots.push(slot)
    try {
      const started = startAppend(this.#environment, envelope, bytes.length)
      this.#hold(bytes.length)
      // Settles the slot whatever comes, and never rejects.
      void this.#finish(slot, envelope, started, bytes.length)
    } catch (error) {
      this.#settle(slot, this.#toErrorResult(envelope, error), 0)
    }
    this.#readOrWait()
  }

  async #finish(
    slot: Slot,
    envelope: ProduceEnvelope,
    started: StartedAppend,
    bytes: number,
  ): Promise<void> {
    let result: ProduceResultMessage | undefined
    try {
      const done = await started.result
      if (envelope.acks !== 'none') {
        result = toResultMessage(envelope.correlationId, started.partition, done)
      }
    } catch (error) {
      result = this.#toErrorResult(envelope, error)
    }
    this.#settle(slot, result, bytes)
  }

  #toErrorResult(envelope: ProduceEnvelope, error: unknown): ProduceResultMessage {
    const detail = this.#environment.errors.toDetail(error, 'Produce')
    return toErrorResult(envelope.correlationId, envelope.partition ?? 0, detail)
  }

  #hold(bytes: number): void {
    this.#budgets.inFlight.take(bytes)
    this.#environment.budgets.inFlight.take(bytes)
  }

  #settle(slot: Slot, result: ProduceResultMessage | undefined, bytes: number): void {
    slot.result = result
    slot.ready = true
    if (bytes > 0) {
      this.#budgets.inFlight.give(bytes)
      this.#environment.budgets.inFlight.give(bytes)
    }
    this.#scheduleFlush()
  }

  /** Stops reading while a bound is reached; whoever gives room calls it again. */
  readonly #readOrWait = (): void => {
    if (this.#closed) return
    const full = [this.#budgets.inFlight, this.#environment.budgets.inFlight].find(
      (budget) => !budget.hasRoom,
    )
    const wait = full !== undefined || this.#slots.length >= MOST_UNANSWERED
    if (wait && !this.#paused) this.#call.pause()
    else if (!wait && this.#paused) this.#call.resume()
    this.#paused = wait
    full?.onRoom(this.#readOrWait)
  }

  /** Runs after everything else of this turn, so that answers which became ready together go together. */
  #scheduleFlush(): void {
    if (this.#flushing || this.#closed) return
    this.#flushing = true
    process.nextTick(() => {
      this.#flushing = false
      this.#flush()
    })
  }

  #flush(): void {
    const slots = this.#slots
    while (!this.#closed && !this.#blocked && slots.peek()?.ready === true) {
      const results: ProduceResultMessage[] = []
      while (results.length < MOST_RESULTS && slots.peek()?.ready === true) {
        const result = slots.shift()?.result
        if (result !== undefined) results.push(result)
      }
      if (results.length > 0) this.#blocked = !this.#call.write(encodeProduceResponse(results))
    }
    if (this.#closed) return
    if (this.#paused) this.#readOrWait()
    if (slots.length > 0) return
    if (this.#failure !== undefined) {
      const status = this.#environment.errors.toStatus(this.#failure, 'Produce')
      this.#call.emit('error', status)
      this.#close()
    } else if (this.#inputEnded) {
      this.#call.end()
      this.#close()
    }
  }

  #fail(error: unknown): void {
    this.#failure ??= error
    this.#scheduleFlush()
  }

  readonly #onDrain = (): void => this.#fail(drainingError())

  #close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#environment.drain.signal.removeEventListener('abort', this.#onDrain)
    this.#environment.budgets.leave(this.#peer)
    this.#environment.drain.leave()
  }
}
