import { createRequire } from 'node:module'
import {
  array,
  assert,
  asyncProperty,
  constantFrom,
  dictionary,
  integer,
  option,
  record,
  string,
  uint8Array,
} from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import {
  isCrcValid,
  readBaseOffset,
  readBatchBytes,
  readCompression,
  readLeaderEpoch,
  stampBatch,
} from '../../src/record/batch-header.ts'
import { validateRecords } from '../../src/record/batch-validator.ts'
import { BATCH_TIME_MS } from '../support/batches.ts'
import { plainRecordsOf } from '../support/records.ts'

/** The batch codec inside kafkajs, which knows nothing of ours. CommonJS, without types: these are what we use of it. */
interface KafkaEncoder {
  readonly buffer: Buffer
}
interface KafkaRecord {
  readonly timestamp: string
  readonly offset: string
  readonly key: Buffer | null
  readonly value: Buffer | null
  readonly headers: Record<string, Buffer>
}
interface KafkaBatch {
  readonly firstOffset: string
  readonly producerId: string
  readonly producerEpoch: number
  readonly firstSequence: number
  readonly maxTimestamp: string
  readonly records: readonly KafkaRecord[]
}
const load = createRequire(import.meta.url)
const kafka = load('kafkajs/src/protocol/recordBatch/v0/index.js') as {
  RecordBatch(batch: object): Promise<KafkaEncoder>
}
const encodeRecord = load('kafkajs/src/protocol/recordBatch/record/v0/index.js') as (
  record: object,
) => KafkaEncoder
const decodeBatch = load('kafkajs/src/protocol/recordBatch/v0/decoder.js') as (
  decoder: object,
) => Promise<KafkaBatch>
const Decoder = load('kafkajs/src/protocol/decoder.js') as new (buffer: Buffer) => object
const Long = load('kafkajs/src/utils/long.js') as { fromValue(value: number | string): object }

/** kafkajs keeps headers in a plain object, so names that every object has cannot pass through it unharmed. */
const headerName = string({ unit: 'binary', maxLength: 10 }).filter((name) => !(name in {}))

const someRecords = array(
  record({
    key: option(uint8Array({ maxLength: 80 })),
    value: option(uint8Array({ maxLength: 400 })),
    delta: integer({ min: -1_000_000, max: 1_000_000 }),
    headers: dictionary(headerName, uint8Array({ maxLength: 10 }), {
      maxKeys: 3,
      noNullPrototype: true,
    }),
  }),
  { minLength: 1, maxLength: 40 },
)
const codec = constantFrom('none' as const, 'gzip' as const)

/** The order in which an object lists them: kafkajs keeps headers in an object. */
function headersOf(headers: Record<string, Uint8Array>): { key: string; value: string }[] {
  return Object.entries(headers).map(([key, value]) => ({
    key: Buffer.from(key).toString(),
    value: Buffer.from(value).toString('hex'),
  }))
}

function hex(bytes: Uint8Array | null): string | undefined {
  return bytes === null ? undefined : Buffer.from(bytes).toString('hex')
}

describe('batches of the builder', () => {
  it('are read by kafkajs', async () => {
    await assert(
      asyncProperty(someRecords, codec, async (records, compression) => {
        const builder = new BatchBuilder({ maxBytes: 1 << 20, compression })
        for (const { key, value, delta, headers } of records) {
          const list = Object.entries(headers).map(([name, content]) => ({
            key: name,
            value: content,
          }))
          builder.tryAppend(key ?? undefined, value ?? undefined, BATCH_TIME_MS + delta, list)
        }
        builder.setProducer(4_294_967_299, 7, 12)
        const batch = builder.finish()
        stampBatch(batch, 0, 2 ** 40, 3)
        const seen = await decodeBatch(new Decoder(Buffer.from(batch)))
        expect(seen).toMatchObject({
          firstOffset: String(2 ** 40),
          producerId: '4294967299',
          producerEpoch: 7,
          firstSequence: 12,
          maxTimestamp: String(BATCH_TIME_MS + Math.max(...records.map((each) => each.delta))),
        })
        expect(
          seen.records.map((each) => ({
            offset: each.offset,
            timestamp: each.timestamp,
            key: hex(each.key),
            value: hex(each.value),
            headers: headersOf(each.headers),
          })),
        ).toEqual(
          records.map((each, index) => ({
            offset: String(2 ** 40 + index),
            timestamp: String(BATCH_TIME_MS + each.delta),
            key: hex(each.key),
            value: hex(each.value),
            headers: headersOf(each.headers),
          })),
        )
      }),
    )
  })
})

describe('batches of kafkajs', () => {
  it('are read by the cursor, checksum and all', async () => {
    await assert(
      asyncProperty(someRecords, codec, async (records, compression) => {
        const encoded = await kafka.RecordBatch({
          compression: compression === 'gzip' ? 1 : 0,
          firstOffset: Long.fromValue(70_000),
          firstTimestamp: BATCH_TIME_MS,
          maxTimestamp: BATCH_TIME_MS + Math.max(...records.map((each) => each.delta)),
          partitionLeaderEpoch: 5,
          lastOffsetDelta: records.length - 1,
          records: records.map((each, offsetDelta) =>
            encodeRecord({
              offsetDelta,
              timestampDelta: each.delta,
              key: each.key === null ? null : Buffer.from(each.key),
              value: each.value === null ? null : Buffer.from(each.value),
              headers: Object.fromEntries(
                Object.entries(each.headers).map(([name, value]) => [name, Buffer.from(value)]),
              ),
            }),
          ),
        })
        const batch = encoded.buffer
        expect(readBatchBytes(batch, 0)).toBe(batch.length)
        expect(isCrcValid(batch, 0)).toBe(true)
        expect([readBaseOffset(batch, 0), readLeaderEpoch(batch, 0)]).toEqual([70_000, 5])
        expect(readCompression(batch, 0)).toBe(compression)
        validateRecords(batch, { maxRecordBytes: 1 << 20 })
        expect(plainRecordsOf(batch)).toEqual(
          records.map((each) => ({
            key: hex(each.key),
            value: hex(each.value),
            timestampMs: BATCH_TIME_MS + each.delta,
            headers: headersOf(each.headers),
          })),
        )
      }),
    )
  })
})
