import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BrokerError, ERROR_TABLE } from '../../src/common/errors.ts'
import type { ErrorCode } from '../../src/common/errors.ts'
import { REASON_NUMBERS } from '../../src/gen/types.ts'
import type { FetchResponse, ProduceRequest, ProduceResponse } from '../../src/gen/types.ts'
import { PLAIN_LOG_SERVICE } from '../../src/wire/definitions.ts'
import { toBrokerErrorFromDetail, toErrorDetail } from '../../src/wire/error-detail.ts'
import { decodeFetchResponse, encodeFetchResponse } from '../../src/wire/fetch-codec.ts'
import type { FetchHead } from '../../src/wire/fetch-codec.ts'
import {
  decodeProduceRequest,
  decodeProduceResponse,
  encodeProduceRequest,
  encodeProduceResponse,
} from '../../src/wire/produce-codec.ts'
import type { ProduceEnvelope, ProduceResultMessage } from '../../src/wire/produce-codec.ts'
import { WireParts } from '../../src/wire/wire-parts.ts'

const produce = PLAIN_LOG_SERVICE['Produce']!
const fetch = PLAIN_LOG_SERVICE['Fetch']!

const bytes = fc.uint8Array({ maxLength: 300 }).map((array) => Buffer.from(array))
const int64 = fc.oneof(fc.maxSafeInteger(), fc.integer({ min: -300, max: 300 }), fc.integer())
const uint53 = fc.oneof(fc.maxSafeNat(), fc.nat(300), fc.nat())
const int32 = fc.oneof(fc.integer(), fc.integer({ min: -3, max: 300 }))
const text = fc.string({ unit: 'binary', maxLength: 200 })
const maybe = <T>(some: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.option(some, { nil: undefined })
const headers = fc.array(fc.record({ key: text, value: bytes }), { maxLength: 3 })
const detail = fc
  .record({
    code: fc.constantFrom(...(Object.keys(ERROR_TABLE) as ErrorCode[])),
    message: text,
    field: text,
    limit: uint53,
    retryAfterMs: fc.nat(),
    traceId: text,
  })
  .map(({ code, message, traceId, ...details }) => toErrorDetail(code, message, details, traceId))

const newRecord = fc.record({
  key: maybe(bytes),
  value: maybe(bytes),
  headers,
  timestampMs: maybe(int64),
})
const envelope: fc.Arbitrary<ProduceEnvelope> = fc
  .record({
    topic: text,
    partition: maybe(int32),
    acks: fc.constantFrom('none', 'written', 'durable'),
    body: fc.oneof(
      fc.record({ batch: bytes.filter((b) => b.length > 0), records: fc.constant(undefined) }),
      fc.record({
        batch: fc.constant(undefined),
        records: fc.array(newRecord, { minLength: 1, maxLength: 4 }),
      }),
    ),
    compression: fc.constantFrom('none', 'gzip', 'lz4', 'zstd'),
    expectedOffset: maybe(uint53),
    topicId: maybe(text.filter((t) => t !== '')),
    correlationId: uint53,
  })
  .map(({ body, ...rest }) => ({ ...rest, ...body, problem: undefined }))

const result: fc.Arbitrary<ProduceResultMessage> = fc.record({
  correlationId: uint53,
  partition: int32,
  baseOffset: int64,
  endOffset: int64,
  appendTimeMs: maybe(int64),
  duplicate: fc.boolean(),
  acks: fc.constantFrom('none', 'written', 'durable'),
  leaderEpoch: int32,
  highWatermark: int64,
  error: maybe(detail),
})

const head: fc.Arbitrary<FetchHead> = fc.record({
  index: int32,
  records: fc.array(
    fc.record({
      offset: int64,
      timestampMs: int64,
      key: maybe(bytes),
      value: maybe(bytes),
      headers,
    }),
    { maxLength: 3 },
  ),
  nextOffset: int64,
  highWatermark: int64,
  logStartOffset: int64,
  leaderEpoch: int32,
  end: fc.boolean(),
  error: maybe(detail),
  skippedFrom: int64,
  skippedTo: int64,
})

/** Without the undefined fields, which proto-loader leaves out and we set. */
function dense(value: object): object {
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, field]) => field !== undefined)
      .map(([name, field]: [string, unknown]) => [
        name,
        field instanceof Uint8Array ? Buffer.from(field) : field,
      ]),
  )
}

const ACKS_NAME = { none: 'ACKS_NONE', written: 'ACKS_WRITTEN', durable: 'ACKS_DURABLE' } as const

function plainRequest(e: ProduceEnvelope): object {
  return {
    ...dense(e),
    batch: e.batch ?? Buffer.alloc(0),
    records: (e.records ?? []).map(dense),
    acks: ACKS_NAME[e.acks],
    compression: `COMPRESSION_${e.compression.toUpperCase()}`,
    topicId: e.topicId ?? '',
  }
}

function plainResult(r: ProduceResultMessage): object {
  return { ...dense(r), acks: ACKS_NAME[r.acks], error: r.error ?? null }
}

describe('the hand-written codecs', () => {
  it('read a ProduceRequest that proto-loader wrote, and the other way round', () => {
    fc.assert(
      fc.property(envelope, (e) => {
        expect(decodeProduceRequest(produce.requestSerialize(plainRequest(e)))).toEqual(e)
        expect(decodeProduceRequest(encodeProduceRequest(e))).toEqual(e)
        const plain = produce.requestDeserialize(encodeProduceRequest(e)) as ProduceRequest
        expect(plain).toEqual(plainRequest(e))
      }),
    )
  })

  it('read a ProduceResponse that proto-loader wrote, and the other way round', () => {
    fc.assert(
      fc.property(fc.array(result, { maxLength: 3 }), (results) => {
        const plain = { results: results.map(plainResult) }
        expect(decodeProduceResponse(produce.responseSerialize(plain))).toEqual(results)
        expect(decodeProduceResponse(encodeProduceResponse(results))).toEqual(results)
        const read = produce.responseDeserialize(encodeProduceResponse(results)) as ProduceResponse
        expect(read).toEqual(plain)
      }),
    )
  })

  it('read a FetchResponse that proto-loader wrote, and the other way round', () => {
    fc.assert(
      fc.property(head, fc.array(bytes, { maxLength: 3 }), (h, chunks) => {
        const batches = Buffer.concat(chunks)
        const ours = { ...h, batches: batches.length > 0 ? batches : undefined }
        const plain = {
          ...dense(h),
          batches,
          records: h.records.map(dense),
          error: h.error ?? null,
        }
        expect(decodeFetchResponse(fetch.responseSerialize(plain))).toEqual(ours)
        expect(decodeFetchResponse(encodeFetchResponse(h, chunks))).toEqual(ours)
        const read = fetch.responseDeserialize(encodeFetchResponse(h, chunks)) as FetchResponse
        expect(read).toEqual(plain)
      }),
    )
  })

  it('hand out the batch as a view of the message', () => {
    const message = encodeFetchResponse(emptyHead, [Buffer.from('one'), Buffer.from('two')])
    expect(decodeFetchResponse(message).batches?.buffer).toBe(message.buffer)
    const request = encodeProduceRequest({ ...emptyEnvelope, batch: Buffer.from('batch') })
    expect(decodeProduceRequest(request).batch?.buffer).toBe(request.buffer)
  })

  it('skip fields of a later version', () => {
    const later = Buffer.concat([
      Buffer.from([0x98, 0x06, 0x07]), // field 99, varint
      Buffer.from([0xa2, 0x06, 0x02, 0x01, 0x02]), // field 100, bytes
      Buffer.from([0xad, 0x06, 1, 2, 3, 4]), // field 101, fixed32
      Buffer.from([0xb1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8]), // field 102, fixed64
      encodeProduceRequest({ ...emptyEnvelope, topic: 'orders' }),
    ])
    expect(decodeProduceRequest(later).topic).toBe('orders')
  })

  it('answer any bytes with a message or INVALID_REQUEST, never another error', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.uint8Array({ maxLength: 60 }).map((array) => Buffer.from(array)),
          fc.tuple(envelope, fc.nat(), fc.nat(255)).map(([e, at, byte]) => {
            const whole = encodeProduceRequest(e)
            whole[at % whole.length] = byte
            return whole
          }),
          fc.tuple(envelope, fc.nat()).map(([e, at]) => {
            const whole = encodeProduceRequest(e)
            return whole.subarray(0, at % whole.length)
          }),
        ),
        (input) => {
          for (const decode of [decodeProduceRequest, decodeProduceResponse, decodeFetchResponse]) {
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

  it('report acks and codecs of a later version without giving the request up', () => {
    const acks = produce.requestSerialize({ topic: 'orders', acks: 9, correlationId: 7 })
    expect(decodeProduceRequest(acks)).toMatchObject({
      correlationId: 7,
      problem: { code: 'UNSUPPORTED_FEATURE', details: { field: 'acks', actual: 9 } },
    })
    const codec = produce.requestSerialize({ topic: 'orders', compression: 9 })
    expect(decodeProduceRequest(codec).problem?.code).toBe('UNSUPPORTED_FEATURE')
  })

  it('report a batch beside records, and an expected offset that is none', () => {
    const both = produce.requestSerialize({ batch: Buffer.from('x'), records: [{}] })
    expect(decodeProduceRequest(both).problem?.code).toBe('INVALID_REQUEST')
    const negative = produce.requestSerialize({ expectedOffset: -1 })
    expect(decodeProduceRequest(negative).problem?.code).toBe('INVALID_REQUEST')
    const large = produce.requestSerialize({ expectedOffset: 2 ** 60 })
    expect(decodeProduceRequest(large).problem?.code).toBe('INVALID_REQUEST')
  })
})

describe('a message in pieces', () => {
  it('is framed as gRPC has it, joined or not', () => {
    const piece = fc
      .oneof(fc.constant(0), fc.nat(10), fc.nat(20_000))
      .map((n) => Buffer.alloc(n, n))
    fc.assert(
      fc.property(fc.array(piece, { minLength: 1, maxLength: 5 }), (pieces) => {
        const parts = new WireParts(pieces)
        const whole = Buffer.concat(pieces)
        expect(parts.toBuffer().equals(whole)).toBe(true)
        const framed = Buffer.concat(parts.framed())
        expect([framed[0], framed.readUInt32BE(1)]).toEqual([0, whole.length])
        expect(framed.subarray(5).equals(whole)).toBe(true)
      }),
    )
  })
})

describe('an error on the wire', () => {
  it('has a reason in proto/ for every code, and no other', () => {
    const reasons = Object.keys(REASON_NUMBERS).filter((name) => name !== 'REASON_UNSPECIFIED')
    expect(reasons.sort()).toEqual(Object.keys(ERROR_TABLE).sort())
  })

  it('comes back with its code, message and facts', () => {
    const details = {
      topic: '42',
      limit: 1024,
      actual: -7,
      clamp: true,
      nearest: ['orders'],
      retryAfterMs: 250,
      big: '12345678901234567890',
    }
    const error = toBrokerErrorFromDetail(toErrorDetail('UNKNOWN_TOPIC', 'no topic 42', details))
    expect(error).toMatchObject({ code: 'UNKNOWN_TOPIC', message: 'no topic 42', details })
    expect(error.action).toBe('refresh')
  })
})

const emptyEnvelope: ProduceEnvelope = {
  topic: '',
  partition: undefined,
  acks: 'durable',
  batch: undefined,
  records: undefined,
  compression: 'none',
  expectedOffset: undefined,
  topicId: undefined,
  correlationId: 0,
}

const emptyHead: FetchHead = {
  index: 0,
  records: [],
  nextOffset: 0,
  highWatermark: 0,
  logStartOffset: 0,
  leaderEpoch: 0,
  end: false,
  error: undefined,
  skippedFrom: 0,
  skippedTo: 0,
}
