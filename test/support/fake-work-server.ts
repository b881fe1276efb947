import {
  type sendUnaryData,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  status,
} from '@grpc/grpc-js'
import { invariant } from '../../src/common/assert.ts'
import { type ErrorCode, ERROR_TABLE } from '../../src/common/errors.ts'
import type {
  AcknowledgeRequest,
  AckItem,
  MetadataRequest,
  ReceiveRequest,
} from '../../src/gen/types.ts'
import type { RecordHeader } from '../../src/record/batch-builder.ts'
import { CLUSTER_SERVICE, QUEUE_SERVICE } from '../../src/wire/definitions.ts'
import {
  encodeErrorDetail,
  ERROR_TRAILER,
  type ErrorDetailMessage,
  toErrorDetail,
} from '../../src/wire/error-detail.ts'
import {
  type AckItemMessage,
  decodeWorkRequest,
  encodeWorkResponse,
  receiveResponseParts,
  type WireVerdict,
  type WorkDeliveryMessage,
  type WorkResponseMessage,
  type WorkStartMessage,
} from '../../src/wire/work-codec.ts'
import { Metadata } from '@grpc/grpc-js'
import { aBatch } from './batches.ts'

export interface FakeRecord {
  readonly offset: number
  readonly value: string
  readonly key: string | undefined
  readonly headers: readonly RecordHeader[]
  state: 'available' | 'leased' | 'done' | 'dead'
  deliveries: number
  failures: number
  /** The last verdict that was taken. */
  item: AckItemMessage | undefined
}

interface FakeLease {
  readonly token: Buffer
  readonly first: number
  readonly end: number
  /** Offsets with a verdict, so that a repeat is known as such. */
  readonly settled: Map<number, WireVerdict>
  isOver: boolean
  renewals: number
}

/** What the server does with one message of verdicts. */
export type AckAction =
  | { readonly kind: 'take' }
  /** Takes them and answers when {@link FakeWorkServer.release} is called. */
  | { readonly kind: 'hold' }
  /** Takes them and breaks the stream before answering. */
  | { readonly kind: 'break' }
  /** Breaks the stream without having taken them. */
  | { readonly kind: 'lose' }
  /** Answers all of them so. */
  | { readonly kind: 'refuse'; readonly code: ErrorCode }

const NO_HEADERS: readonly RecordHeader[] = []
/** When leases begin, on a broker's clock that is nobody's else. */
const EXPIRES_AT = 1_800_000_000_000
const TAKE: AckAction = { kind: 'take' }

const NO_RESPONSE: WorkResponseMessage = {
  started: undefined,
  deliveries: [],
  results: [],
  leasesLost: [],
  notice: undefined,
}

type Call = ServerDuplexStream<Buffer, Buffer>

/** One worker's stream. */
export class FakeWorkStream {
  readonly call: Call
  memberId = ''
  records = 0
  bytes = 0
  isStarted = false
  isOver = false
  hasEnded = false

  constructor(call: Call) {
    this.call = call
  }

  say(response: Partial<WorkResponseMessage>): void {
    if (!this.isOver) this.call.write(encodeWorkResponse({ ...NO_RESPONSE, ...response }))
  }

  /** Ends it as a broker does. */
  refuse(code: ErrorCode): void {
    if (this.isOver) return
    this.isOver = true
    this.call.emit('error', toServiceError(code))
  }

  /** Ends it as a network does. */
  break(): void {
    if (this.isOver) return
    this.isOver = true
    this.call.emit('error', { code: status.UNAVAILABLE, details: 'broken on purpose' })
  }
}

function toServiceError(code: ErrorCode): object {
  const metadata = new Metadata()
  const detail = toErrorDetail(code, `${code} on purpose`, {})
  metadata.set(ERROR_TRAILER, encodeErrorDetail(detail))
  return { code: status[ERROR_TABLE[code].status], details: code, metadata }
}

function refusal(code: ErrorCode): ErrorDetailMessage {
  return toErrorDetail(code, `${code} on purpose`, {})
}

/**
 * A broker with one queue group on partition 0 of one topic, over real gRPC. It leases records as credit asks, takes verdicts, and misbehaves on demand; nothing
 * expires by itself. Items of one lease are all taken or all refused, as a broker does it.
 */
export class FakeWorkServer implements AsyncDisposable {
  url = ''
  readonly records: FakeRecord[] = []
  readonly starts: WorkStartMessage[] = []
  readonly streams: FakeWorkStream[] = []
  readonly leases: Map<string, FakeLease> = new Map()
  /** Each message of verdicts, in the order of their coming. */
  readonly acks: (readonly AckItemMessage[])[] = []
  /** Credit as it was given, records only. */
  readonly credits: number[] = []
  /** Asked for each message of verdicts. */
  onAcks: (items: readonly AckItemMessage[], arrival: number) => AckAction = () => TAKE
  /** Asked for each start. A code refuses it; `silent` never answers. */
  onStart: (start: WorkStartMessage, arrival: number) => ErrorCode | 'silent' | undefined = () =>
    undefined
  /** A `renew` of these fails so. */
  onRenew: (lease: FakeLease) => ErrorCode | undefined = () => undefined
  leaseMs = 30_000
  topic = 'orders'
  /** Records of one delivery, at most. */
  runRecords = 100
  /** Offsets with a retry and no attempts left die. 0: never. */
  attempts = 0
  /** What is not delivered for now. */
  isHeld = false
  receives: ReceiveRequest[] = []
  #members = 0
  #tokens = 0
  #known: Set<string> = new Set()
  readonly #held: (() => void)[] = []
  #server: Server | undefined
  #port = 0

  static async start(): Promise<FakeWorkServer> {
    const server = new FakeWorkServer()
    await server.listen()
    return server
  }

  get stream(): FakeWorkStream {
    const last = this.streams.at(-1)
    invariant(last !== undefined, 'a stream has been opened')
    return last
  }

  /** Every item of every message, but for renewals. */
  get items(): readonly AckItemMessage[] {
    return this.acks.flat().filter(({ verdict }) => verdict !== 'renew')
  }

  add(
    values: readonly string[],
    options: { readonly key?: string; readonly headers?: readonly RecordHeader[] } = {},
  ): void {
    for (const value of values) {
      this.records.push({
        offset: this.records.length,
        value,
        key: options.key,
        headers: options.headers ?? NO_HEADERS,
        state: 'available',
        deliveries: 0,
        failures: 0,
        item: undefined,
      })
    }
    this.pump()
  }

  /** A delivery of a batch of the test's own. What is said of it is taken, and noted. */
  deliveryOf(batch: Uint8Array, first: number, end: number): WorkDeliveryMessage {
    const { token } = this.#makeLease(first, end)
    return {
      token,
      topic: this.topic,
      partition: 0,
      first,
      end,
      deliveryCount: 1,
      failureCount: 0,
      leaseMs: this.leaseMs,
      leaseExpiresMs: EXPIRES_AT + this.leaseMs,
      firstDeliveredMs: EXPIRES_AT,
      batch,
    }
  }

  countOf(state: FakeRecord['state']): number {
    return this.records.filter((record) => record.state === state).length
  }

  leaseOf(offset: number): FakeLease {
    for (const lease of this.leases.values()) {
      if (!lease.isOver && lease.first <= offset && offset < lease.end) return lease
    }
    throw new Error(`offset ${offset} is not leased`)
  }

  /** Ends the lease of a record, as when its time is out. What it held is available again; by itself that tells nobody. */
  expire(offset: number, options: { readonly tell?: boolean } = {}): void {
    const lease = this.leaseOf(offset)
    this.#endLease(lease)
    if (options.tell !== false) {
      this.stream.say({ leasesLost: [{ token: lease.token, error: refusal('LEASE_LOST') }] })
    }
  }

  /** Answers what was held. */
  release(): void {
    for (const answer of this.#held.splice(0)) answer()
  }

  /** Forgets members and leases, as a broker that was started anew. */
  forget(): void {
    for (const lease of this.leases.values()) this.#endLease(lease)
    this.leases.clear()
    this.#known = new Set()
  }

  pump(): void {
    for (const stream of this.streams) {
      while (this.#deliver(stream));
    }
  }

  /** Cuts every connection and closes the port. */
  stop(): void {
    this.#server?.forceShutdown()
    this.#server = undefined
    for (const stream of this.streams) stream.isOver = true
  }

  /** Opens the port, the same as before if there was one. */
  async listen(): Promise<void> {
    const server = new Server()
    server.addService(QUEUE_SERVICE, {
      Work: (call: Call) => this.#work(call),
      Receive: (call: ServerUnaryCall<ReceiveRequest, unknown>, done: sendUnaryData<unknown>) =>
        this.#receive(call.request, done),
      Acknowledge: (
        call: ServerUnaryCall<AcknowledgeRequest, unknown>,
        done: sendUnaryData<unknown>,
      ) => this.#acknowledge(call.request.items.map(fromAckItem), done),
    })
    server.addService(CLUSTER_SERVICE, {
      Metadata: (call: ServerUnaryCall<MetadataRequest, unknown>, done: sendUnaryData<unknown>) =>
        done(null, this.#metadata(call.request)),
      DescribeBroker: () => undefined,
    })
    this.#port = await new Promise<number>((resolve, reject) => {
      server.bindAsync(
        `127.0.0.1:${this.#port}`,
        ServerCredentials.createInsecure(),
        (error, port) => (error === null ? resolve(port) : reject(error)),
      )
    })
    this.#server = server
    this.url = `127.0.0.1:${this.#port}`
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.stop()
    return Promise.resolve()
  }

  // ── streams ─────────────────────────────────────────────────────────────────────────────────────────────────

  #work(call: Call): void {
    const stream = new FakeWorkStream(call)
    this.streams.push(stream)
    call.on('error', () => undefined)
    call.on('cancelled', () => {
      stream.isOver = true
    })
    call.on('data', (bytes: Buffer) => {
      if (!stream.isOver) this.#take(stream, Buffer.from(bytes))
    })
  }

  #take(stream: FakeWorkStream, bytes: Buffer): void {
    const request = decodeWorkRequest(bytes)
    switch (request.kind) {
      case 'start':
        this.#start(stream, request.start)
        return
      case 'credit':
        if (request.replaces === true) {
          stream.records = 0
          stream.bytes = 0
        } else this.credits.push(request.records)
        stream.records += request.records
        stream.bytes += request.bytes
        this.pump()
        return
      case 'acks':
        this.#takeAcks(stream, request.correlationId, request.items)
        return
      case 'end':
        stream.hasEnded = true
        stream.isOver = true
        for (const lease of this.leases.values()) this.#endLease(lease)
        setImmediate(() => stream.call.end())
        return
      default:
        throw request.problem
    }
  }

  #start(stream: FakeWorkStream, start: WorkStartMessage): void {
    const refused = this.onStart(start, this.starts.length)
    this.starts.push(start)
    if (refused === 'silent') return
    if (refused !== undefined) {
      stream.refuse(refused)
      return
    }
    const resumed = this.#known.has(start.memberId)
    stream.memberId = resumed ? start.memberId : `member-${++this.#members}`
    this.#known.add(stream.memberId)
    stream.isStarted = true
    const { memberId } = stream
    stream.say({ started: { memberId, leaseMs: this.leaseMs, group: start.group, resumed } })
  }

  #takeAcks(stream: FakeWorkStream, correlationId: number, items: readonly AckItemMessage[]): void {
    const action = this.onAcks(items, this.acks.length)
    this.acks.push(items)
    if (action.kind === 'lose') {
      stream.break()
      return
    }
    const answer = this.#judge(items, action)
    if (action.kind === 'break') {
      stream.break()
      return
    }
    const say = (): void => stream.say({ results: [{ correlationId, ...answer }] })
    if (action.kind === 'hold') this.#held.push(say)
    else say()
    this.pump()
  }

  #judge(
    items: readonly AckItemMessage[],
    action: AckAction,
  ): Pick<WorkResponseMessage['results'][number], 'failures' | 'dead'> {
    const faults = new Map<string, ErrorCode>()
    for (const [name, own] of byToken(items)) {
      const code = action.kind === 'refuse' ? action.code : this.#findFault(own)
      if (code !== undefined) faults.set(name, code)
    }
    const failures: { index: number; error: ErrorDetailMessage }[] = []
    const dead: number[] = []
    for (const [index, item] of items.entries()) {
      const code = faults.get(Buffer.from(item.token).toString('hex'))
      if (code !== undefined) failures.push({ index, error: refusal(code) })
      else if (this.#apply(item)) dead.push(index)
    }
    return { failures, dead }
  }

  #findFault(items: readonly AckItemMessage[]): ErrorCode | undefined {
    const ends = new Map<string, number>()
    for (const { token, first, end, verdict } of items) {
      const name = Buffer.from(token).toString('hex')
      const lease = this.leases.get(name)
      if (lease === undefined) return 'LEASE_LOST'
      if (verdict === 'renew') {
        const fault = lease.isOver ? 'LEASE_LOST' : this.onRenew(lease)
        if (fault !== undefined) return fault
        continue
      }
      if (first >= end || first < lease.first || end > lease.end) return 'INVALID_ACK_RANGE'
      if (first < (ends.get(name) ?? 0)) return 'INVALID_ACK_RANGE'
      ends.set(name, end)
      for (let offset = first; offset < end; offset++) {
        const before = lease.settled.get(offset)
        if (before !== undefined && before !== verdict) return 'LEASE_LOST'
        if (before === undefined && lease.isOver) return 'LEASE_LOST'
      }
    }
    return undefined
  }

  /** True when its record had no attempts left. */
  #apply(item: AckItemMessage): boolean {
    const lease = this.leases.get(Buffer.from(item.token).toString('hex'))
    invariant(lease !== undefined, 'the items have been looked at')
    if (item.verdict === 'renew') {
      lease.renewals++
      return false
    }
    let isDead = false
    for (let offset = item.first; offset < item.end; offset++) {
      if (lease.settled.has(offset)) continue
      lease.settled.set(offset, item.verdict)
      const record = this.records[offset]
      if (record === undefined) continue // Of a delivery of the test's own.
      record.item = item
      if (item.verdict === 'accept') record.state = 'done'
      else if (item.verdict === 'reject') record.state = 'dead'
      else if (item.verdict === 'release') record.state = 'available'
      else {
        record.failures++
        isDead = this.attempts > 0 && record.failures >= this.attempts
        record.state = isDead ? 'dead' : 'available'
      }
    }
    return isDead
  }

  #endLease(lease: FakeLease): void {
    lease.isOver = true
    for (let offset = lease.first; offset < lease.end; offset++) {
      const record = this.records[offset]
      if (record?.state === 'leased' && !lease.settled.has(offset)) record.state = 'available'
    }
  }

  #deliver(stream: FakeWorkStream): boolean {
    if (this.isHeld || stream.isOver || !stream.isStarted) return false
    if (stream.records <= 0 || stream.bytes <= 0) return false
    const delivery = this.#lease(Math.min(stream.records, this.runRecords))
    if (delivery === undefined) return false
    stream.records -= delivery.end - delivery.first
    stream.bytes -= delivery.batch.length
    stream.say({ deliveries: [delivery] })
    return true
  }

  /** The first records that are alike, and available. */
  #lease(most: number): WorkDeliveryMessage | undefined {
    const first = this.records.findIndex(({ state }) => state === 'available')
    const head = this.records[first]
    if (head === undefined) return undefined
    const { deliveries, failures, headers } = head
    let end = first
    for (const record of this.records.slice(first, first + most)) {
      const isAlike =
        record.deliveries === deliveries &&
        record.failures === failures &&
        record.headers === headers
      if (record.state !== 'available' || !isAlike) break
      record.state = 'leased'
      record.deliveries++
      end++
    }
    const { token } = this.#makeLease(first, end)
    const records = this.records.slice(first, end)
    return {
      token,
      topic: this.topic,
      partition: 0,
      first,
      end,
      deliveryCount: head.deliveries,
      failureCount: head.failures,
      leaseMs: this.leaseMs,
      leaseExpiresMs: EXPIRES_AT + this.leaseMs,
      firstDeliveredMs: EXPIRES_AT,
      batch: aBatch({
        values: records.map(({ value }) => value),
        keys: records.map(({ key }) => key),
        headers: head.headers,
        baseOffset: first,
      }),
    }
  }

  #makeLease(first: number, end: number): FakeLease {
    const token = Buffer.alloc(16)
    token.writeUInt32BE(++this.#tokens, 12)
    const lease = { token, first, end, settled: new Map(), isOver: false, renewals: 0 }
    this.leases.set(token.toString('hex'), lease)
    return lease
  }

  // ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────

  #receive(request: ReceiveRequest, done: sendUnaryData<unknown>): void {
    this.receives.push(request)
    const deliveries: WorkDeliveryMessage[] = []
    for (let left = request.max; left > 0;) {
      const delivery = this.#lease(Math.min(left, this.runRecords))
      if (delivery === undefined) break
      deliveries.push(delivery)
      left -= delivery.end - delivery.first
    }
    done(null, receiveResponseParts({ deliveries, notice: undefined }))
  }

  #acknowledge(items: readonly AckItemMessage[], done: sendUnaryData<unknown>): void {
    const action = this.onAcks(items, this.acks.length)
    this.acks.push(items)
    const { failures } = this.#judge(items, action)
    if (action.kind === 'break') done({ code: status.UNAVAILABLE, details: 'broken on purpose' })
    else done(null, { failures })
  }

  #metadata(request: MetadataRequest): object {
    return {
      clusterId: 'fake',
      mapVersion: 1,
      brokers: [{ brokerId: 0, host: '127.0.0.1', port: this.#port }],
      topics: [],
      groups: request.groups.map((group) => ({
        group,
        coordinator: 0,
        error: '',
        errorMessage: '',
      })),
    }
  }
}

function byToken(items: readonly AckItemMessage[]): Map<string, AckItemMessage[]> {
  const groups = new Map<string, AckItemMessage[]>()
  for (const item of items) {
    const name = Buffer.from(item.token).toString('hex')
    const group = groups.get(name) ?? []
    groups.set(name, group)
    group.push(item)
  }
  return groups
}

const VERDICTS: Readonly<Record<string, WireVerdict>> = {
  VERDICT_ACCEPT: 'accept',
  VERDICT_RELEASE: 'release',
  VERDICT_RETRY: 'retry',
  VERDICT_REJECT: 'reject',
  VERDICT_RENEW: 'renew',
}

function fromAckItem(item: AckItem): AckItemMessage {
  const verdict = VERDICTS[item.verdict]
  invariant(verdict !== undefined, `${item.verdict} is a verdict`)
  return {
    token: item.token,
    first: item.first,
    end: item.end,
    verdict,
    delayMs: item.delayMs,
    error: item.error ?? undefined,
    pauseGroupMs: item.pauseGroupMs,
  }
}
