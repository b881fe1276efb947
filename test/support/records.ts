import {
  array,
  constant,
  type Arbitrary,
  integer,
  oneof,
  option,
  record,
  string,
  uint8Array,
} from 'fast-check'
import type { RecordHeader } from '../../src/record/batch-builder.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'

/** A record as plain data, for comparisons. */
export interface PlainRecord {
  readonly key: string | undefined
  readonly value: string | undefined
  readonly timestampMs: number
  readonly headers: readonly { readonly key: string; readonly value: string | undefined }[]
}

/** What a builder is given. */
export interface RecordInput {
  readonly key: Uint8Array | string | undefined
  readonly value: Uint8Array | string | undefined
  readonly timestampMs: number
  readonly headers: readonly RecordHeader[]
}

/** Bytes and texts of all kinds: short, long enough for the other paths, not ASCII, lone surrogates. */
export function aPayload(): Arbitrary<Uint8Array | string> {
  return oneof(
    uint8Array({ maxLength: 300 }),
    string({ unit: 'binary', maxLength: 60 }),
    string({ unit: 'grapheme-ascii', maxLength: 60 }),
    string({ maxLength: 5 }).map((text) => text.repeat(20)),
    constant('\ud800 alone'),
  )
}

export function aRecord(): Arbitrary<RecordInput> {
  const nothing = { nil: undefined }
  return record({
    key: option(aPayload(), nothing),
    value: option(aPayload(), nothing),
    timestampMs: oneof(
      integer({ min: -1, max: 4_102_444_800_000 }),
      integer({ min: 1_767_225_600_000, max: 1_767_225_601_000 }),
    ),
    headers: array(
      record({
        key: string({ unit: 'binary', maxLength: 20 }),
        value: option(uint8Array({ maxLength: 30 }), nothing),
      }),
      { maxLength: 3 },
    ),
  })
}

export function toPlain(input: RecordInput): PlainRecord {
  return {
    key: toHex(input.key),
    value: toHex(input.value),
    timestampMs: input.timestampMs,
    headers: input.headers.map(({ key, value }) => ({
      key: Buffer.from(key).toString(),
      value: toHex(value),
    })),
  }
}

/** All records of the batch at `at`, read by a fresh cursor. */
export function plainRecordsOf(batch: Uint8Array, at = 0): PlainRecord[] {
  const cursor = new RecordCursor()
  cursor.reset(batch, at)
  const records: PlainRecord[] = []
  while (cursor.next()) records.push(plainRecordAt(cursor))
  return records
}

export function plainRecordAt(cursor: RecordCursor): PlainRecord {
  const { bytes, keyStart, keyEnd, valueStart, valueEnd } = cursor
  return {
    key: keyStart < 0 ? undefined : toHex(bytes.subarray(keyStart, keyEnd)),
    value: valueStart < 0 ? undefined : toHex(bytes.subarray(valueStart, valueEnd)),
    timestampMs: cursor.timestampMs,
    headers: cursor.readHeaders().map(({ key, value }) => ({ key, value: toHex(value) })),
  }
}

function toHex(payload: Uint8Array | string | undefined): string | undefined {
  if (payload === undefined) return undefined
  return Buffer.from(payload as string).toString('hex') // Buffer.from takes both; its overloads do not say so.
}
