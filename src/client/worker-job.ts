import type { Offset } from '../common/offset.ts'
import { toOffset } from '../common/offset.ts'
import { JOB_TYPE_HEADER } from '../common/job-headers.ts'
import { DAY_MS, HOUR_MS } from '../common/units.ts'
import { endOfBatch, isDense, readBaseOffset, readEndOffset } from '../record/batch-header.ts'
import { RecordCursor } from '../record/record-cursor.ts'
import type { WireVerdict, WorkDeliveryMessage, WorkErrorMessage } from '../wire/work-codec.ts'
import type { Headers } from './api.ts'
import { NO_HEADERS, toHeaders } from './batch.ts'
import type { Codec, Topic } from './codecs.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import type { Delivery } from './worker-api.ts'
import { LONGEST_LEASE_MS, SHORTEST_LEASE_MS } from './worker-options.ts'

/** The broker's own bounds (SEMANTICS §3.4, §3.9). */
const LONGEST_DELAY_MS: number = 30 * DAY_MS
const LONGEST_GROUP_PAUSE_MS: number = HOUR_MS

/** Topics of records that go to one group once more begin so (coordination/queue/names.ts). */
const RETRY_PREFIX = '__retry.'

/** What the broker takes (proto/). Cut here too, so that no stack makes a message too large. */
const MOST_TYPE_LETTERS = 128
const MOST_MESSAGE_LETTERS = 2048
const MOST_STACK_LETTERS = 8192

/** A verdict that settles a record: all but `renew`. */
export type SettlingVerdict = Exclude<WireVerdict, 'renew'>

/** Any job: what it was decoded to does not matter. */
export type AnyJob = Job<unknown, unknown>

/** Whoever got a job. */
export interface JobOwner {
  /** The job has got its verdict. Called once for each. */
  settled(job: AnyJob): void
  /** @throws MillraceError (as rejection) LEASE_LOST, LEASE_LIMIT_REACHED, CLOSED */
  renew(lease: Lease, leaseMs: number | undefined): Promise<void>
}

/** Some records of one partition that were given out under one token. Times but `expiresAt` are on the monotonic clock. */
export class Lease {
  readonly token: Uint8Array
  /** The token as a text, to find it by. */
  readonly name: string
  readonly topic: string
  readonly partition: number
  readonly end: number
  readonly deliveryCount: number
  readonly failureCount: number
  readonly batch: Uint8Array
  readonly count: number
  /** Of a record, on average. */
  readonly recordBytes: number
  readonly receivedMs: number
  readonly #expiresAtFirst: number
  readonly #leaseMs: number
  /** From there to `end` nothing has been given to a handler. */
  next: number
  /** Records in [next, end). */
  unstarted: number
  /** Records without a verdict that is durable. */
  open: number
  /** Set when it is over before its records are settled. */
  lost: MillraceError | undefined
  /** When the broker may have given the records to somebody else, if it was not heard of since. */
  validUntilMs: number
  renewAtMs: number
  isRenewing = false
  /** Verdicts that have not been sent, `accept` and others. */
  accepted: AnyJob[] = []
  others: AnyJob[] = []

  constructor(delivery: WorkDeliveryMessage, receivedMs: number) {
    this.token = delivery.token
    this.name = tokenName(delivery.token)
    this.topic = delivery.topic
    this.partition = delivery.partition
    this.end = delivery.end
    this.deliveryCount = delivery.deliveryCount
    this.failureCount = delivery.failureCount
    this.batch = delivery.batch
    this.receivedMs = receivedMs
    this.#expiresAtFirst = delivery.leaseExpiresMs
    this.#leaseMs = delivery.leaseMs
    this.next = delivery.first
    this.count = countRecords(delivery.batch, delivery.first, delivery.end)
    this.recordBytes = delivery.batch.length / Math.max(1, this.count)
    this.unstarted = this.count
    this.open = this.count
    this.lost = undefined
    this.validUntilMs = receivedMs + delivery.leaseMs
    this.renewAtMs = receivedMs + delivery.leaseMs / 2
  }

  get leaseMs(): number {
    return this.#leaseMs
  }

  /** On the broker's wall clock, which may not be ours: so what it said, moved on by what has passed here. */
  get expiresAt(): number {
    return Math.round(this.#expiresAtFirst + this.validUntilMs - this.receivedMs - this.#leaseMs)
  }

  get label(): string {
    return `${this.topic}-${this.partition}`
  }

  /** It was renewed by a request sent at `sentMs`. Counted from then, which is before the broker's count begins. Never shorter. */
  renewed(sentMs: number, leaseMs: number): void {
    this.validUntilMs = Math.max(this.validUntilMs, sentMs + leaseMs)
    this.renewAtMs = Math.max(this.renewAtMs, sentMs + leaseMs / 2)
  }
}

/** Tokens are 16 bytes: a letter for each is quicker to make and to look up than hex. */
export function tokenName(token: Uint8Array): string {
  return Buffer.from(token.buffer, token.byteOffset, token.byteLength).toString('latin1')
}

function countRecords(batch: Uint8Array, first: number, end: number): number {
  // What cannot be read is found out, and rejected, when it is to be.
  if (endOfBatch(batch, 0) < 0) return end - first
  const start = Math.max(first, readBaseOffset(batch, 0))
  if (isDense(batch, 0)) return Math.max(0, Math.min(end, readEndOffset(batch, 0)) - start)
  // Compaction has left gaps.
  let count = 0
  try {
    const cursor = new RecordCursor()
    cursor.reset(batch, 0)
    while (cursor.next() && cursor.offset < end) if (cursor.offset >= first) count++
  } catch {
    return end - first // As above.
  }
  return count
}

/** What is said of a job when its verdict goes out. */
export interface VerdictOptions {
  readonly delayMs?: number | undefined
  readonly pauseGroupMs?: number | undefined
  readonly error?: unknown
}

const NO_OPTIONS: VerdictOptions = {}

/** One record of a lease, as a handler gets it. Own class, so that every one has the same hidden class. */
export class Job<V, K> implements Delivery<V, K> {
  readonly topic: string
  readonly partition: number
  readonly offset: Offset
  readonly timestamp: number
  readonly key: K | undefined
  readonly value: V | null
  readonly headers: Headers
  readonly #lease: Lease
  readonly #owner: JobOwner
  /** Acknowledged by this range, which covers the gap before it. */
  readonly #ackFirst: number
  readonly #ackEnd: number
  #verdict: SettlingVerdict | undefined = undefined
  #options: VerdictOptions = NO_OPTIONS
  /** True: durable. An error: refused. */
  #outcome: true | MillraceError | undefined = undefined
  #settling: Settling | undefined = undefined
  #controller: AbortController | undefined = undefined
  #aborted: MillraceError | undefined = undefined
  /** What its handler returned. */
  result: unknown = undefined

  constructor(lease: Lease, owner: JobOwner, record: DecodedRecord<V, K>, ackEnd: number) {
    this.topic = record.topic
    this.partition = record.partition
    this.offset = toOffset(record.offset)
    this.timestamp = record.timestamp
    this.key = record.key
    this.value = record.value
    this.headers = record.headers
    this.#lease = lease
    this.#owner = owner
    this.#ackFirst = lease.next
    this.#ackEnd = ackEnd
  }

  get deliveryCount(): number {
    return this.#lease.deliveryCount
  }

  get failureCount(): number {
    return this.#lease.failureCount
  }

  get leaseExpiresAt(): number {
    return this.#lease.expiresAt
  }

  get redelivered(): boolean {
    return this.#lease.deliveryCount > 1
  }

  get type(): string | undefined {
    const type = this.headers[JOB_TYPE_HEADER]
    return typeof type === 'string' ? type : undefined
  }

  accept(): Promise<void> {
    return this.#settleByHand('accept', NO_OPTIONS)
  }

  release(
    options: {
      readonly delayMs?: number | undefined
      readonly pauseGroupMs?: number | undefined
    } = {},
  ): Promise<void> {
    const { delayMs, pauseGroupMs } = options
    return this.#settleByHand('release', { delayMs, pauseGroupMs })
  }

  retry(error?: unknown, options: { readonly delayMs?: number | undefined } = {}): Promise<void> {
    return this.#settleByHand('retry', { error, delayMs: options.delayMs })
  }

  reject(error?: unknown): Promise<void> {
    return this.#settleByHand('reject', { error })
  }

  async renew(leaseMs?: number): Promise<void> {
    if (leaseMs !== undefined) checkDelay('leaseMs', leaseMs, SHORTEST_LEASE_MS, LONGEST_LEASE_MS)
    if (this.#lease.lost !== undefined) throw this.#lease.lost
    if (this.#outcome === true) throw this.#over('renewed')
    await this.#owner.renew(this.#lease, leaseMs)
  }

  // What follows is for those who gave it out. Delivery, which is what handlers see, does not have it.

  get lease(): Lease {
    return this.#lease
  }

  get ackFirst(): number {
    return this.#ackFirst
  }

  get ackEnd(): number {
    return this.#ackEnd
  }

  get verdict(): SettlingVerdict | undefined {
    return this.#verdict
  }

  get verdictOptions(): VerdictOptions {
    return this.#options
  }

  /** Settles it, if it has not been. Bounds of the options are the caller's to keep. */
  settle(verdict: SettlingVerdict, options: VerdictOptions = NO_OPTIONS): void {
    if (this.#verdict !== undefined || this.#lease.lost !== undefined) return
    this.#verdict = verdict
    this.#options = options
    this.#owner.settled(this)
  }

  /** The verdict is durable. */
  succeeded(): void {
    this.#outcome = true
    this.#settling?.resolve()
  }

  /** The verdict will never be. */
  failed(error: MillraceError): void {
    if (this.#outcome !== undefined) return
    this.#outcome = error
    this.#settling?.reject(error)
  }

  /** Made when it is first asked for: it costs about as much as everything else that is done for a record, and most handlers never ask. */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      if (this.#aborted !== undefined) this.#controller.abort(this.#aborted)
    }
    return this.#controller.signal
  }

  get isAborted(): boolean {
    return this.#aborted !== undefined
  }

  abort(reason: MillraceError): void {
    if (this.#aborted !== undefined) return
    this.#aborted = reason
    this.#controller?.abort(reason)
  }

  get label(): string {
    return `offset ${this.offset} of ${this.topic}-${this.partition}`
  }

  #settleByHand(verdict: SettlingVerdict, options: VerdictOptions): Promise<void> {
    try {
      const { delayMs, pauseGroupMs } = options
      if (delayMs !== undefined) checkDelay('delayMs', delayMs, 0, LONGEST_DELAY_MS)
      if (pauseGroupMs !== undefined) {
        checkDelay('pauseGroupMs', pauseGroupMs, 0, LONGEST_GROUP_PAUSE_MS)
      }
      if (this.#verdict !== undefined && this.#verdict !== verdict) throw this.#over(verdict)
      if (this.#verdict === undefined && this.#lease.lost !== undefined) throw this.#lease.lost
    } catch (error) {
      return handled(Promise.reject(toMillraceError(error)))
    }
    this.#settling ??= newSettling(this.#outcome)
    this.settle(verdict, options)
    return this.#settling.promise
  }

  #over(what: string): MillraceError {
    const { topic, partition, offset } = this
    const verdict = this.#verdict ?? 'none'
    return new MillraceError(
      'INVALID_REQUEST',
      `${this.label} has its verdict, ${verdict}: it cannot be ${what}`,
      { field: 'verdict', actual: what, verdict, topic, partition, offset },
    )
  }
}

interface Settling {
  readonly promise: Promise<void>
  readonly resolve: () => void
  readonly reject: (error: MillraceError) => void
}

function newSettling(outcome: true | MillraceError | undefined): Settling {
  let resolve = (): void => undefined
  let reject = (_error: MillraceError): void => undefined
  const promise = new Promise<void>((onDone, onFailed) => {
    resolve = onDone
    reject = onFailed
  })
  if (outcome === true) resolve()
  else if (outcome !== undefined) reject(outcome)
  return { promise: handled(promise), resolve, reject }
}

/** Whoever awaits it is told; whoever does not is not ended by it: that a lease was lost is told by events, too. */
function handled(promise: Promise<void>): Promise<void> {
  promise.catch(() => undefined)
  return promise
}

function checkDelay(field: string, value: number, min: number, max: number): void {
  if (Number.isInteger(value) && value >= min && value <= max) return
  throw new MillraceError(
    'INVALID_DELAY',
    `${field} is ${value}: it has to be a whole number of milliseconds from ${min} to ${max}`,
    { field, actual: value, limit: max },
  )
}

/** A delay that a handler threw, made one that the broker takes: what is thrown has nobody to tell. */
export function toDelayMs(value: number): number {
  return clamp(value, LONGEST_DELAY_MS)
}

/** As {@link toDelayMs}, of a pause of the group. */
export function toPauseMs(value: number): number {
  return clamp(value, LONGEST_GROUP_PAUSE_MS)
}

function clamp(value: number, max: number): number {
  return Number.isNaN(value) ? 0 : Math.ceil(Math.min(Math.max(0, value), max))
}

/** What the broker keeps of an error. Never throws, whatever was thrown: errors may have anything for a message, and getters that throw. */
export function toWorkError(error: unknown): WorkErrorMessage {
  if (error === undefined) return { type: '', message: '', stack: '' }
  try {
    if (!(error instanceof Error)) {
      return { type: typeof error, message: cut(textOf(error), MOST_MESSAGE_LETTERS), stack: '' }
    }
    const { name, message, stack, code } = error as {
      readonly [field in 'name' | 'message' | 'stack' | 'code']?: unknown
    }
    const type = typeof code === 'string' && code !== '' ? code : name
    return {
      type: cut(typeof type === 'string' ? type : 'Error', MOST_TYPE_LETTERS),
      message: cut(textOf(message ?? ''), MOST_MESSAGE_LETTERS),
      stack: cut(typeof stack === 'string' ? stack : '', MOST_STACK_LETTERS),
    }
  } catch {
    return { type: typeof error, message: UNREADABLE, stack: '' } // What it says nobody can know; that it was thrown is told.
  }
}

const UNREADABLE = 'what was thrown cannot be read'

/** @throws whatever the value's own code throws */
export function textOf(value: unknown): string {
  if (typeof value !== 'object' || value === null) return String(value)
  try {
    // Of a toJSON that returns nothing there is no text.
    const text: unknown = JSON.stringify(value)
    if (typeof text === 'string') return text
  } catch {
    // A cycle, or a getter that throws: its kind is all that can be said.
  }
  return Object.prototype.toString.call(value)
}

function cut(text: string, most: number): string {
  return text.length <= most ? text : text.slice(0, most)
}

export interface DecodedRecord<V, K> {
  readonly topic: string
  readonly partition: number
  readonly offset: number
  readonly timestamp: number
  readonly key: K | undefined
  readonly value: V | null
  readonly headers: Headers
}

/** Steps through the records of leases, one lease after the other, and makes a job of each. */
export class LeaseReader<V, K> {
  readonly #topic: Topic<V, K>
  readonly #owner: JobOwner
  readonly #cursor: RecordCursor = new RecordCursor()
  #lease: Lease | undefined
  /** Why the job that `next` has just returned could not be decoded, if so. */
  decodeError: MillraceError | undefined

  constructor(topic: Topic<V, K>, owner: JobOwner) {
    this.#topic = topic
    this.#owner = owner
  }

  get lease(): Lease | undefined {
    return this.#lease
  }

  /** @throws MillraceError when its batch cannot be read */
  open(lease: Lease): void {
    try {
      this.#cursor.reset(lease.batch, 0)
    } catch (error) {
      throw toMillraceError(error)
    }
    this.#lease = lease
  }

  close(): void {
    this.#lease = undefined
  }

  /**
   * The next record of the open lease; undefined: there is none.
   * @throws MillraceError when the bytes of the batch are no records
   */
  next(): Job<V, K> | undefined {
    const lease = this.#lease
    if (lease === undefined || lease.unstarted === 0) return undefined
    const cursor = this.#cursor
    try {
      do {
        if (!cursor.next()) return undefined
      } while (cursor.offset < lease.next)
      const job = this.#decode(lease)
      lease.next = job.ackEnd
      lease.unstarted--
      return job
    } catch (error) {
      throw toMillraceError(error)
    }
  }

  #decode(lease: Lease): Job<V, K> {
    const cursor = this.#cursor
    const { bytes, offset, timestampMs: timestamp } = cursor
    const headers = cursor.headerCount === 0 ? NO_HEADERS : toHeaders(cursor.readHeaders())
    this.decodeError = undefined
    const key =
      cursor.keyStart < 0
        ? undefined
        : this.#read(this.#topic.key, bytes.subarray(cursor.keyStart, cursor.keyEnd), 'key')
    const value =
      cursor.valueStart < 0
        ? undefined
        : this.#read(this.#topic.value, bytes.subarray(cursor.valueStart, cursor.valueEnd), 'value')
    // The last one takes what compaction has left behind it.
    const ackEnd = lease.unstarted === 1 ? lease.end : offset + 1
    const { topic, partition } = lease
    const read = { topic, partition, offset, timestamp, key, value: value ?? null, headers }
    const record = topic.startsWith(RETRY_PREFIX) ? atOrigin(read) : read
    return new Job(lease, this.#owner, record, ackEnd)
  }

  #read<T>(codec: Codec<T>, bytes: Uint8Array, field: string): T | undefined {
    try {
      return codec.decode(bytes)
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error)
      const { offset } = this.#cursor
      const { topic = '', partition = 0 } = this.#lease ?? {}
      this.decodeError ??= new MillraceError(
        'INVALID_RECORD',
        `the ${field} at offset ${offset} of ${topic}-${partition} could not be decoded: ${message}`,
        { topic, partition, offset, field },
        error,
      )
      return undefined
    }
  }
}

/** A redriven record is shown where it was first: that it has come another way is the broker's affair. */
function atOrigin<V, K>(record: DecodedRecord<V, K>): DecodedRecord<V, K> {
  const { headers } = record
  const topic = headers['dlq.topic']
  const partition = toCount(headers['dlq.partition'])
  const offset = toCount(headers['dlq.offset'])
  if (typeof topic !== 'string' || partition === undefined || offset === undefined) return record
  return { ...record, topic, partition, offset }
}

function toCount(text: string | Uint8Array | undefined): number | undefined {
  if (typeof text !== 'string' || !/^\d{1,16}$/.test(text)) return undefined
  const value = Number(text)
  return Number.isSafeInteger(value) ? value : undefined
}
