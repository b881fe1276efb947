import { BrokerError } from '../common/errors.ts'
import { readErrorDetail, writeErrorDetail } from './error-detail.ts'
import type { ErrorDetailMessage } from './error-detail.ts'
import { ProtoReader } from './proto-reader.ts'
import { ProtoWriter } from './proto-writer.ts'
import { WireParts } from './wire-parts.ts'

export type WireVerdict = 'accept' | 'release' | 'retry' | 'reject' | 'renew'

/** millrace.v1.WorkStart. */
export interface WorkStartMessage {
  readonly group: string
  readonly topic: string
  readonly memberId: string
  readonly clientId: string
  readonly leaseMs: number
  readonly settings: readonly { readonly name: string; readonly value: string }[]
}

export interface WorkErrorMessage {
  readonly type: string
  readonly message: string
  readonly stack: string
}

/** millrace.v1.AckItem. */
export interface AckItemMessage {
  readonly token: Uint8Array
  readonly first: number
  readonly end: number
  readonly verdict: WireVerdict
  readonly delayMs: number | undefined
  readonly error: WorkErrorMessage | undefined
  readonly pauseGroupMs: number
  /** Only from decoding: the item could be read but not understood, such as a verdict of a later version. Its other fields mean nothing then. */
  readonly problem?: BrokerError | undefined
}

/** millrace.v1.WorkRequest: one of them. `unknown`, only from decoding: none, several at once, or one of a later version. */
export type WorkRequestMessage =
  | { readonly kind: 'start'; readonly start: WorkStartMessage }
  | {
      readonly kind: 'credit'
      readonly records: number
      readonly bytes: number
      /** Takes the place of what was granted before. */
      readonly replaces?: boolean
    }
  | {
      readonly kind: 'acks'
      readonly correlationId: number
      readonly items: readonly AckItemMessage[]
    }
  | { readonly kind: 'end' }
  | { readonly kind: 'unknown'; readonly problem: BrokerError }

/** millrace.v1.WorkDelivery. */
export interface WorkDeliveryMessage {
  readonly token: Uint8Array
  readonly topic: string
  readonly partition: number
  readonly first: number
  readonly end: number
  readonly deliveryCount: number
  readonly failureCount: number
  readonly leaseMs: number
  readonly leaseExpiresMs: number
  readonly firstDeliveredMs: number
  readonly batch: Uint8Array
}

export interface WorkNoticeMessage {
  readonly throttledUntilMs: number
  readonly windowFull: boolean
  readonly paused: boolean
  readonly dlqUnavailable: boolean
}

/** millrace.v1.WorkResponse. */
export interface WorkResponseMessage {
  readonly started:
    | {
        readonly memberId: string
        readonly leaseMs: number
        readonly group: string
        readonly resumed: boolean
      }
    | undefined
  readonly deliveries: readonly WorkDeliveryMessage[]
  readonly results: readonly {
    readonly correlationId: number
    readonly failures: readonly { readonly index: number; readonly error: ErrorDetailMessage }[]
    /** Items with `retry` whose records had no attempts left. Absent: none. */
    readonly dead?: readonly number[] | undefined
  }[]
  readonly leasesLost: readonly { readonly token: Uint8Array; readonly error: ErrorDetailMessage }[]
  readonly notice: WorkNoticeMessage | undefined
}

/** millrace.v1.ReceiveResponse. */
export interface ReceiveResponseMessage {
  readonly deliveries: readonly WorkDeliveryMessage[]
  readonly notice: WorkNoticeMessage | undefined
}

/** millrace.v1.AcknowledgeRequest. */
export interface AcknowledgeMessage {
  readonly group: string
  readonly items: readonly AckItemMessage[]
}

const VERDICTS: readonly (WireVerdict | undefined)[] = [
  undefined,
  'accept',
  'release',
  'retry',
  'reject',
  'renew',
]

// Encoding never awaits, so one writer serves everybody.
const shared = new ProtoWriter()

export function encodeWorkRequest(
  request: Exclude<WorkRequestMessage, { readonly kind: 'unknown' }>,
): Buffer {
  shared.reset()
  if (request.kind === 'start') shared.message(1, (writer) => writeStart(writer, request.start))
  else if (request.kind === 'credit') {
    shared.message(2, (writer) => {
      writer.int(1, request.records)
      writer.int(2, request.bytes)
      writer.bool(3, request.replaces === true)
    })
  } else if (request.kind === 'acks') {
    shared.message(3, (writer) => {
      writer.int(1, request.correlationId)
      for (const item of request.items) writer.message(2, (inner) => writeAckItem(inner, item))
    })
  } else shared.message(4, () => undefined)
  return shared.finish()
}

/**
 * Tokens are views of `bytes`. Unknown fields are skipped; a message that holds nothing else is of kind `unknown`.
 * @throws BrokerError INVALID_REQUEST when the bytes are no WorkRequest
 */
export function decodeWorkRequest(bytes: Buffer): WorkRequestMessage {
  let found: WorkRequestMessage | undefined
  let several = false
  let later: number | undefined
  const reader = new ProtoReader(bytes)
  while (reader.next()) {
    const field = reader.field
    const before: WorkRequestMessage | undefined = found
    if (field === 1) found = { kind: 'start', start: readStart(reader.message()) }
    else if (field === 2) found = readCredit(reader.message())
    else if (field === 3) found = readAcks(reader.message())
    else if (field === 4) found = readEnd(reader.message())
    else {
      later = field
      reader.skip()
    }
    // Also two of one kind: protobuf would merge them, which nobody means by two acknowledgements.
    if (before !== undefined && found !== before) several = true
  }
  if (several) return { kind: 'unknown', problem: invalid('a message is one request, not several') }
  if (found !== undefined) return found
  if (later === undefined) return { kind: 'unknown', problem: invalid('the message is empty') }
  return { kind: 'unknown', problem: unknownValue('request', later) }
}

/** Everything but the batches comes first; these are not copied. */
export function workResponseParts(response: WorkResponseMessage): WireParts {
  const { started, notice } = response
  shared.reset()
  if (started !== undefined) {
    shared.message(1, (writer) => {
      writer.string(1, started.memberId)
      writer.int(2, started.leaseMs)
      writer.string(3, started.group)
      writer.bool(4, started.resumed)
    })
  }
  for (const result of response.results) {
    shared.message(3, (writer) => {
      writer.int(1, result.correlationId)
      for (const { index, error } of result.failures) {
        writer.message(2, (inner) => {
          inner.int(1, index)
          inner.message(2, (innermost) => writeErrorDetail(innermost, error))
        })
      }
      for (const index of result.dead ?? []) writer.presentInt(3, index)
    })
  }
  for (const { token, error } of response.leasesLost) {
    shared.message(4, (writer) => {
      writer.bytes(1, token)
      writer.message(2, (inner) => writeErrorDetail(inner, error))
    })
  }
  if (notice !== undefined) shared.message(5, (writer) => writeNotice(writer, notice))
  return finishWithDeliveries(2, response.deliveries)
}

/** The same in one buffer. Copies the batches once. */
export function encodeWorkResponse(response: WorkResponseMessage): Buffer {
  return workResponseParts(response).toBuffer()
}

/**
 * Tokens and batches are views of `bytes`. Unknown fields are skipped.
 * @throws BrokerError INVALID_REQUEST when the bytes are no WorkResponse
 */
export function decodeWorkResponse(bytes: Buffer): WorkResponseMessage {
  let started: WorkResponseMessage['started']
  const deliveries: WorkDeliveryMessage[] = []
  const results: WorkResponseMessage['results'][number][] = []
  const leasesLost: WorkResponseMessage['leasesLost'][number][] = []
  let notice: WorkNoticeMessage | undefined
  const reader = new ProtoReader(bytes)
  while (reader.next()) {
    const field = reader.field
    if (field === 2) deliveries.push(readDelivery(reader.message()))
    else if (field === 3) results.push(readAckResult(reader.message()))
    else if (field === 4) leasesLost.push(readLeaseEnd(reader.message()))
    else if (field === 5) notice = readNotice(reader.message())
    else if (field === 1) started = readStarted(reader.message())
    else reader.skip()
  }
  return { started, deliveries, results, leasesLost, notice }
}

/** The batches are not copied. */
export function receiveResponseParts(response: ReceiveResponseMessage): WireParts {
  const { notice } = response
  shared.reset()
  if (notice !== undefined) shared.message(2, (writer) => writeNotice(writer, notice))
  return finishWithDeliveries(1, response.deliveries)
}

/**
 * Tokens and batches are views of `bytes`. Unknown fields are skipped.
 * @throws BrokerError INVALID_REQUEST when the bytes are no ReceiveResponse
 */
export function decodeReceiveResponse(bytes: Buffer): ReceiveResponseMessage {
  const deliveries: WorkDeliveryMessage[] = []
  let notice: WorkNoticeMessage | undefined
  const reader = new ProtoReader(bytes)
  while (reader.next()) {
    if (reader.field === 1) deliveries.push(readDelivery(reader.message()))
    else if (reader.field === 2) notice = readNotice(reader.message())
    else reader.skip()
  }
  return { deliveries, notice }
}

/**
 * Tokens are views of `bytes`. Unknown fields are skipped.
 * @throws BrokerError INVALID_REQUEST when the bytes are no AcknowledgeRequest
 */
export function decodeAcknowledgeRequest(bytes: Buffer): AcknowledgeMessage {
  let group = ''
  const items: AckItemMessage[] = []
  const reader = new ProtoReader(bytes)
  while (reader.next()) {
    if (reader.field === 1) group = reader.string()
    else if (reader.field === 2) items.push(readAckItem(reader.message()))
    else reader.skip()
  }
  return { group, items }
}

function writeStart(writer: ProtoWriter, start: WorkStartMessage): void {
  writer.string(1, start.group)
  writer.string(2, start.topic)
  writer.string(3, start.memberId)
  writer.string(4, start.clientId)
  writer.int(5, start.leaseMs)
  for (const { name, value } of start.settings) {
    writer.message(6, (inner) => {
      inner.string(1, name)
      inner.string(2, value)
    })
  }
}

function readStart(reader: ProtoReader): WorkStartMessage {
  let group = ''
  let topic = ''
  let memberId = ''
  let clientId = ''
  let leaseMs = 0
  const settings: { name: string; value: string }[] = []
  while (reader.next()) {
    const field = reader.field
    if (field === 1) group = reader.string()
    else if (field === 2) topic = reader.string()
    else if (field === 3) memberId = reader.string()
    else if (field === 4) clientId = reader.string()
    else if (field === 5) leaseMs = reader.int32()
    else if (field === 6) settings.push(readSetting(reader.message()))
    else reader.skip()
  }
  return { group, topic, memberId, clientId, leaseMs, settings }
}

function readSetting(reader: ProtoReader): { name: string; value: string } {
  let name = ''
  let value = ''
  while (reader.next()) {
    if (reader.field === 1) name = reader.string()
    else if (reader.field === 2) value = reader.string()
    else reader.skip()
  }
  return { name, value }
}

function readCredit(reader: ProtoReader): WorkRequestMessage {
  let records = 0
  let bytes = 0
  let replaces = false
  while (reader.next()) {
    if (reader.field === 1) records = reader.int32()
    else if (reader.field === 2) bytes = reader.int64()
    else if (reader.field === 3) replaces = reader.bool()
    else reader.skip()
  }
  return { kind: 'credit', records, bytes, ...(replaces && { replaces }) }
}

function readAcks(reader: ProtoReader): WorkRequestMessage {
  let correlationId = 0
  const items: AckItemMessage[] = []
  while (reader.next()) {
    if (reader.field === 2) items.push(readAckItem(reader.message()))
    else if (reader.field === 1) correlationId = reader.uint()
    else reader.skip()
  }
  return { kind: 'acks', correlationId, items }
}

function readEnd(reader: ProtoReader): WorkRequestMessage {
  while (reader.next()) reader.skip()
  return { kind: 'end' }
}

function writeAckItem(writer: ProtoWriter, item: AckItemMessage): void {
  writer.bytes(1, item.token)
  writer.int(2, item.first)
  writer.int(3, item.end)
  writer.int(4, VERDICTS.indexOf(item.verdict))
  if (item.delayMs !== undefined) writer.presentInt(5, item.delayMs)
  const { error } = item
  if (error !== undefined) {
    writer.message(6, (inner) => {
      inner.string(1, error.type)
      inner.string(2, error.message)
      inner.string(3, error.stack)
    })
  }
  writer.int(7, item.pauseGroupMs)
}

function readAckItem(reader: ProtoReader): AckItemMessage {
  let token: Uint8Array = NO_BYTES
  let first = 0
  let end = 0
  let verdictNumber = 0
  let delayMs: number | undefined
  let error: WorkErrorMessage | undefined
  let pauseGroupMs = 0
  while (reader.next()) {
    const field = reader.field
    if (field === 1) token = reader.bytes()
    else if (field === 2) first = reader.int64()
    else if (field === 3) end = reader.int64()
    else if (field === 4) verdictNumber = reader.int32()
    else if (field === 5) delayMs = reader.int64()
    else if (field === 6) error = readWorkError(reader.message())
    else if (field === 7) pauseGroupMs = reader.int64()
    else reader.skip()
  }
  const verdict = VERDICTS[verdictNumber]
  const problem = verdict === undefined ? verdictProblem(verdictNumber) : undefined
  return {
    token,
    first,
    end,
    // In place of one that is not known, the only one that settles nothing.
    verdict: verdict ?? 'renew',
    delayMs,
    error,
    pauseGroupMs,
    problem,
  }
}

function readWorkError(reader: ProtoReader): WorkErrorMessage {
  let type = ''
  let message = ''
  let stack = ''
  while (reader.next()) {
    if (reader.field === 1) type = reader.string()
    else if (reader.field === 2) message = reader.string()
    else if (reader.field === 3) stack = reader.string()
    else reader.skip()
  }
  return { type, message, stack }
}

/**
 * Writes `deliveries` behind what the shared writer holds, as fields `field`, and finishes the message. All heads are written into one
 * buffer, which is cut where the batches belong.
 */
function finishWithDeliveries(
  field: number,
  deliveries: readonly WorkDeliveryMessage[],
): WireParts {
  const cuts: number[] = []
  for (const delivery of deliveries) {
    const { batch } = delivery
    shared.message(field, (writer) => writeDeliveryHead(writer, delivery), batch.length)
    cuts.push(shared.length)
  }
  const written = shared.finish()
  if (deliveries.length === 0) return new WireParts([written])
  const parts: Uint8Array[] = []
  let from = 0
  for (const [i, { batch }] of deliveries.entries()) {
    const to = cuts[i] ?? written.length
    parts.push(written.subarray(from, to))
    if (batch.length > 0) parts.push(batch)
    from = to
  }
  return new WireParts(parts)
}

function writeDeliveryHead(writer: ProtoWriter, delivery: WorkDeliveryMessage): void {
  writer.bytes(1, delivery.token)
  writer.string(2, delivery.topic)
  writer.int(3, delivery.partition)
  writer.int(4, delivery.first)
  writer.int(5, delivery.end)
  writer.int(6, delivery.deliveryCount)
  writer.int(7, delivery.failureCount)
  writer.int(8, delivery.leaseMs)
  writer.int(9, delivery.leaseExpiresMs)
  writer.int(10, delivery.firstDeliveredMs)
  if (delivery.batch.length > 0) writer.bytesHead(11, delivery.batch.length)
}

function readDelivery(reader: ProtoReader): WorkDeliveryMessage {
  let token: Uint8Array = NO_BYTES
  let topic = ''
  let partition = 0
  let first = 0
  let end = 0
  let deliveryCount = 0
  let failureCount = 0
  let leaseMs = 0
  let leaseExpiresMs = 0
  let firstDeliveredMs = 0
  let batch: Uint8Array = NO_BYTES
  while (reader.next()) {
    const field = reader.field
    if (field === 11) batch = reader.bytes()
    else if (field === 1) token = reader.bytes()
    else if (field === 2) topic = reader.string()
    else if (field === 3) partition = reader.int32()
    else if (field === 4) first = reader.int64()
    else if (field === 5) end = reader.int64()
    else if (field === 6) deliveryCount = reader.int32()
    else if (field === 7) failureCount = reader.int32()
    else if (field === 8) leaseMs = reader.int32()
    else if (field === 9) leaseExpiresMs = reader.int64()
    else if (field === 10) firstDeliveredMs = reader.int64()
    else reader.skip()
  }
  return {
    token,
    topic,
    partition,
    first,
    end,
    deliveryCount,
    failureCount,
    leaseMs,
    leaseExpiresMs,
    firstDeliveredMs,
    batch,
  }
}

function readStarted(reader: ProtoReader): WorkResponseMessage['started'] {
  let memberId = ''
  let leaseMs = 0
  let group = ''
  let resumed = false
  while (reader.next()) {
    if (reader.field === 1) memberId = reader.string()
    else if (reader.field === 2) leaseMs = reader.int32()
    else if (reader.field === 3) group = reader.string()
    else if (reader.field === 4) resumed = reader.bool()
    else reader.skip()
  }
  return { memberId, leaseMs, group, resumed }
}

function readAckResult(reader: ProtoReader): WorkResponseMessage['results'][number] {
  let correlationId = 0
  const failures: { index: number; error: ErrorDetailMessage }[] = []
  const dead: number[] = []
  while (reader.next()) {
    if (reader.field === 1) correlationId = reader.uint()
    else if (reader.field === 2) failures.push(readAckFailure(reader.message()))
    else if (reader.field === 3) dead.push(reader.int32())
    else reader.skip()
  }
  return { correlationId, failures, dead }
}

function readAckFailure(reader: ProtoReader): { index: number; error: ErrorDetailMessage } {
  let index = 0
  let error: ErrorDetailMessage | undefined
  while (reader.next()) {
    if (reader.field === 1) index = reader.int32()
    else if (reader.field === 2) error = readErrorDetail(reader.message())
    else reader.skip()
  }
  return { index, error: error ?? NO_DETAIL }
}

function readLeaseEnd(reader: ProtoReader): WorkResponseMessage['leasesLost'][number] {
  let token: Uint8Array = NO_BYTES
  let error: ErrorDetailMessage | undefined
  while (reader.next()) {
    if (reader.field === 1) token = reader.bytes()
    else if (reader.field === 2) error = readErrorDetail(reader.message())
    else reader.skip()
  }
  return { token, error: error ?? NO_DETAIL }
}

function writeNotice(writer: ProtoWriter, notice: WorkNoticeMessage): void {
  writer.int(1, notice.throttledUntilMs)
  writer.bool(2, notice.windowFull)
  writer.bool(3, notice.paused)
  writer.bool(4, notice.dlqUnavailable)
}

function readNotice(reader: ProtoReader): WorkNoticeMessage {
  let throttledUntilMs = 0
  let windowFull = false
  let paused = false
  let dlqUnavailable = false
  while (reader.next()) {
    if (reader.field === 1) throttledUntilMs = reader.int64()
    else if (reader.field === 2) windowFull = reader.bool()
    else if (reader.field === 3) paused = reader.bool()
    else if (reader.field === 4) dlqUnavailable = reader.bool()
    else reader.skip()
  }
  return { throttledUntilMs, windowFull, paused, dlqUnavailable }
}

function verdictProblem(actual: number): BrokerError {
  if (actual !== 0) return unknownValue('verdict', actual)
  return new BrokerError('INVALID_REQUEST', 'an acknowledgement without a verdict', {
    field: 'verdict',
  })
}

function invalid(message: string): BrokerError {
  return new BrokerError('INVALID_REQUEST', message, { field: 'request' })
}

function unknownValue(field: string, actual: number): BrokerError {
  return new BrokerError('UNSUPPORTED_FEATURE', `this broker does not know ${field} ${actual}`, {
    field,
    actual,
  })
}

const NO_BYTES: Uint8Array = Buffer.alloc(0)
const NO_DETAIL: ErrorDetailMessage = {
  reason: 'REASON_UNSPECIFIED',
  message: '',
  action: '',
  retryable: false,
  noSideEffects: false,
  retryAfterMs: 0,
  facts: [],
  traceId: '',
}
