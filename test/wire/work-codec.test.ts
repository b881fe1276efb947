import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { unreachable } from '../../src/common/assert.ts'
import { BrokerError, ERROR_TABLE } from '../../src/common/errors.ts'
import type { ErrorCode } from '../../src/common/errors.ts'
import type {
  AcknowledgeRequest,
  ReceiveResponse,
  WorkRequest,
  WorkResponse,
} from '../../src/gen/types.ts'
import { PLAIN_QUEUE_SERVICE } from '../../src/wire/definitions.ts'
import { toErrorDetail } from '../../src/wire/error-detail.ts'
import type { ErrorDetailMessage } from '../../src/wire/error-detail.ts'
import {
  decodeAcknowledgeRequest,
  decodeReceiveResponse,
  decodeWorkRequest,
  decodeWorkResponse,
  encodeWorkRequest,
  encodeWorkResponse,
  receiveResponseParts,
  workResponseParts,
} from '../../src/wire/work-codec.ts'
import type {
  AckItemMessage,
  WorkDeliveryMessage,
  WorkRequestMessage,
  WorkResponseMessage,
} from '../../src/wire/work-codec.ts'

const work = PLAIN_QUEUE_SERVICE['Work']!
const receive = PLAIN_QUEUE_SERVICE['Receive']!
const acknowledge = PLAIN_QUEUE_SERVICE['Acknowledge']!

const bytes = fc.uint8Array({ maxLength: 300 }).map((array) => Buffer.from(array))
const token = fc.uint8Array({ maxLength: 17 }).map((array) => Buffer.from(array))
const int64 = fc.oneof(fc.maxSafeInteger(), fc.integer({ min: -300, max: 300 }), fc.integer())
const uint53 = fc.oneof(fc.maxSafeNat(), fc.nat(300), fc.nat())
const int32 = fc.oneof(fc.integer(), fc.integer({ min: -3, max: 300 }))
const text = fc.string({ unit: 'binary', maxLength: 200 })
const maybe = <T>(some: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.option(some, { nil: undefined })
const detail: fc.Arbitrary<ErrorDetailMessage> = fc
  .record({
    code: fc.constantFrom(...(Object.keys(ERROR_TABLE) as ErrorCode[])),
    message: text,
    field: text,
  })
  .map(({ code, message, field }) => toErrorDetail(code, message, { field }))

const item: fc.Arbitrary<AckItemMessage> = fc.record({
  token,
  first: int64,
  end: int64,
  verdict: fc.constantFrom('accept', 'release', 'retry', 'reject', 'renew'),
  delayMs: maybe(int64),
  error: maybe(fc.record({ type: text, message: text, stack: text })),
  pauseGroupMs: int64,
})
const items = fc.array(item, { maxLength: 4 })

type Outgoing = Exclude<WorkRequestMessage, { kind: 'unknown' }>
const request: fc.Arbitrary<Outgoing> = fc.oneof(
  fc.record({
    kind: fc.constant('start' as const),
    start: fc.record({
      group: text,
      topic: text,
      memberId: text,
      clientId: text,
      leaseMs: int32,
      settings: fc.array(fc.record({ name: text, value: text }), { maxLength: 3 }),
    }),
  }),
  fc.record(
    {
      kind: fc.constant('credit' as const),
      records: int32,
      bytes: int64,
      replaces: fc.constant(true),
    },
    { requiredKeys: ['kind', 'records', 'bytes'] },
  ),
  fc.record({ kind: fc.constant('acks' as const), correlationId: uint53, items }),
  fc.record({ kind: fc.constant('end' as const) }),
)

const delivery: fc.Arbitrary<WorkDeliveryMessage> = fc.record({
  token,
  topic: text,
  partition: int32,
  first: int64,
  end: int64,
  deliveryCount: int32,
  failureCount: int32,
  leaseMs: int32,
  leaseExpiresMs: int64,
  firstDeliveredMs: int64,
  batch: bytes,
})
const deliveries = fc.array(delivery, { maxLength: 4 })
const notice = fc.record({
  throttledUntilMs: int64,
  windowFull: fc.boolean(),
  paused: fc.boolean(),
  dlqUnavailable: fc.boolean(),
})
const response: fc.Arbitrary<WorkResponseMessage> = fc.record({
  started: maybe(fc.record({ memberId: text, leaseMs: int32, group: text, resumed: fc.boolean() })),
  deliveries,
  results: fc.array(
    fc.record({
      correlationId: uint53,
      failures: fc.array(fc.record({ index: int32, error: detail }), { maxLength: 3 }),
      dead: fc.array(int32, { maxLength: 3 }),
    }),
    { maxLength: 3 },
  ),
  leasesLost: fc.array(fc.record({ token, error: detail }), { maxLength: 3 }),
  notice: maybe(notice),
})

/** As proto-loader has it: no undefined fields. */
function plainItem({ verdict, delayMs, error, ...rest }: AckItemMessage): object {
  return {
    ...rest,
    verdict: `VERDICT_${verdict.toUpperCase()}`,
    error: error ?? null,
    ...(delayMs === undefined ? {} : { delayMs }),
  }
}

function plainRequest(message: Outgoing): object {
  const none = { start: null, credit: null, acks: null, end: null }
  switch (message.kind) {
    case 'start':
      return { ...none, start: message.start }
    case 'credit':
      return {
        ...none,
        credit: {
          records: message.records,
          bytes: message.bytes,
          replaces: message.replaces ?? false,
        },
      }
    case 'acks': {
      const { correlationId } = message
      return { ...none, acks: { correlationId, items: message.items.map(plainItem) } }
    }
    case 'end':
      return { ...none, end: {} }
    default:
      return unreachable(message)
  }
}

function plainResponse(message: WorkResponseMessage): object {
  return { ...message, started: message.started ?? null, notice: message.notice ?? null }
}

const bare: WorkResponseMessage = {
  started: undefined,
  deliveries: [],
  results: [],
  leasesLost: [],
  notice: undefined,
}

describe('the codecs of work', () => {
  it('read a WorkRequest that proto-loader wrote, and the other way round', () => {
    fc.assert(
      fc.property(request, (r) => {
        expect(decodeWorkRequest(work.requestSerialize(plainRequest(r)))).toEqual(r)
        expect(decodeWorkRequest(encodeWorkRequest(r))).toEqual(r)
        const plain = work.requestDeserialize(encodeWorkRequest(r)) as WorkRequest
        expect(plain).toEqual(plainRequest(r))
      }),
    )
  })

  it('read a WorkResponse that proto-loader wrote, and the other way round', () => {
    fc.assert(
      fc.property(response, (r) => {
        expect(decodeWorkResponse(work.responseSerialize(plainResponse(r)))).toEqual(r)
        expect(decodeWorkResponse(encodeWorkResponse(r))).toEqual(r)
        const plain = work.responseDeserialize(encodeWorkResponse(r)) as WorkResponse
        expect(plain).toEqual(plainResponse(r))
      }),
    )
  })

  it('read a ReceiveResponse that proto-loader wrote, and the other way round', () => {
    fc.assert(
      fc.property(deliveries, maybe(notice), (given, said) => {
        const r = { deliveries: given, notice: said }
        const plain = { deliveries: given, notice: said ?? null }
        const ours = receiveResponseParts(r).toBuffer()
        expect(decodeReceiveResponse(receive.responseSerialize(plain))).toEqual(r)
        expect(decodeReceiveResponse(ours)).toEqual(r)
        expect(receive.responseDeserialize(ours) as ReceiveResponse).toEqual(plain)
      }),
    )
  })

  it('read an AcknowledgeRequest that proto-loader wrote', () => {
    fc.assert(
      fc.property(text, items, (group, given) => {
        const plain = { group, items: given.map(plainItem) }
        const written = acknowledge.requestSerialize(plain)
        expect(decodeAcknowledgeRequest(written)).toEqual({ group, items: given })
        expect(acknowledge.requestDeserialize(written) as AcknowledgeRequest).toEqual(plain)
      }),
    )
  })

  it('neither copy the batches that are written nor those that are read', () => {
    const batch = Buffer.alloc(100_000, 9)
    const one = fc.sample(delivery, 1)[0]!
    const parts = workResponseParts({ ...bare, deliveries: [{ ...one, batch }] })
    expect(parts.framed().some((part) => part === batch)).toBe(true)
    const message = parts.toBuffer()
    const read = decodeWorkResponse(message).deliveries[0]!
    expect(read.batch).toEqual(batch)
    expect(read.batch.buffer).toBe(message.buffer)
  })

  it('skip fields of a later version at every level', () => {
    const later = Buffer.concat([
      Buffer.from([0x98, 0x06, 0x07]), // field 99, varint
      Buffer.from([0xa2, 0x06, 0x02, 0x01, 0x02]), // field 100, bytes
      Buffer.from([0xad, 0x06, 1, 2, 3, 4]), // field 101, fixed32
      Buffer.from([0xb1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8]), // field 102, fixed64
    ])
    const end = encodeWorkRequest({ kind: 'end' })
    expect(decodeWorkRequest(Buffer.concat([later, end, later]))).toEqual({ kind: 'end' })
    for (const field of [1, 2, 3, 4]) {
      const inner = Buffer.concat([Buffer.from([field * 8 + 2, later.length]), later])
      expect(decodeWorkRequest(inner).kind).not.toBe('unknown')
    }
    for (const field of [1, 2, 3, 4, 5]) {
      const inner = Buffer.concat([Buffer.from([field * 8 + 2, later.length]), later])
      decodeWorkResponse(Buffer.concat([inner, later]))
    }
  })

  it('report an empty message, several requests in one, and one of a later version', () => {
    const problem = (input: Buffer): unknown => {
      const read = decodeWorkRequest(input)
      return read.kind === 'unknown' ? read.problem.code : read
    }
    const end = encodeWorkRequest({ kind: 'end' })
    const credit = encodeWorkRequest({ kind: 'credit', records: 1, bytes: 1 })
    expect(problem(Buffer.alloc(0))).toBe('INVALID_REQUEST')
    expect(problem(Buffer.concat([end, credit]))).toBe('INVALID_REQUEST')
    expect(problem(Buffer.concat([credit, credit]))).toBe('INVALID_REQUEST')
    expect(problem(Buffer.from([0x2a, 0x00]))).toBe('UNSUPPORTED_FEATURE')
    expect(problem(credit)).toEqual({ kind: 'credit', records: 1, bytes: 1 })
    const instead = encodeWorkRequest({ kind: 'credit', records: 0, bytes: 0, replaces: true })
    expect(problem(instead)).toEqual({ kind: 'credit', records: 0, bytes: 0, replaces: true })
  })

  it('report a verdict that is missing or of a later version with its item alone', () => {
    const written = work.requestSerialize({
      acks: {
        correlationId: 7,
        items: [
          { token: Buffer.alloc(16), verdict: 9 },
          { token: Buffer.alloc(16) },
          { token: Buffer.alloc(16), verdict: 'VERDICT_ACCEPT', first: 3, end: 4 },
        ],
      },
    })
    expect(decodeWorkRequest(written)).toMatchObject({
      kind: 'acks',
      correlationId: 7,
      items: [
        { problem: { code: 'UNSUPPORTED_FEATURE', details: { field: 'verdict', actual: 9 } } },
        { problem: { code: 'INVALID_REQUEST', details: { field: 'verdict' } } },
        { problem: undefined, verdict: 'accept', first: 3, end: 4 },
      ],
    })
  })

  it('answer any bytes with a message or INVALID_REQUEST, never another error', () => {
    const whole = fc.oneof(
      request.map((r) => encodeWorkRequest(r)),
      response.map((r) => encodeWorkResponse(r)),
    )
    fc.assert(
      fc.property(
        fc.oneof(
          fc.uint8Array({ maxLength: 60 }).map((array) => Buffer.from(array)),
          fc.tuple(whole, fc.nat(), fc.nat(255)).map(([w, at, byte]) => {
            const changed = Buffer.from(w)
            if (changed.length > 0) changed[at % changed.length] = byte
            return changed
          }),
          fc.tuple(whole, fc.nat()).map(([w, at]) => w.subarray(0, at % (w.length + 1))),
        ),
        (input) => {
          for (const decode of [
            decodeWorkRequest,
            decodeWorkResponse,
            decodeReceiveResponse,
            decodeAcknowledgeRequest,
          ]) {
            try {
              decode(input)
            } catch (error) {
              expect(error).toBeInstanceOf(BrokerError)
              expect((error as BrokerError).code).toBe('INVALID_REQUEST')
            }
          }
        },
      ),
    )
  })
})
