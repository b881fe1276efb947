import type { Output } from './output.ts'
import type { Headers } from '../client/index.ts'

export interface HeaderField {
  readonly key: string
  readonly value: Uint8Array | undefined
}

/** What formats and filters read of a record: fields of the record cursor, which hold until its next step. */
export interface RecordFields {
  readonly bytes: Uint8Array
  readonly offset: number
  readonly timestampMs: number
  /** -1 when there is no key. */
  readonly keyStart: number
  readonly keyEnd: number
  /** -1 when the value is null: a tombstone. */
  readonly valueStart: number
  readonly valueEnd: number
  readonly headerCount: number
  readHeaders(): readonly HeaderField[]
}

/** Writes one record. */
export type RecordWriter = (
  topic: string,
  partition: number,
  record: RecordFields,
  out: Output,
) => void

/** A Buffer over `bytes[start, end)`; no copy. */
export function viewOf(bytes: Uint8Array, start: number, end: number): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start)
}

/** A record that the client has taken apart. */
export interface WholeRecord {
  readonly offset: number
  readonly timestamp: number
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | null
  readonly headers: Headers
}

const NO_BYTES = new Uint8Array(0)

/** A record as formats, filters and commands look at it. Copies key and value. */
export function fieldsOf(record: WholeRecord): RecordFields {
  const { key, value, headers } = record
  const keyEnd = key?.length ?? 0
  const list = Object.entries(headers).map(([name, content]) => ({
    key: name,
    value: typeof content === 'string' ? Buffer.from(content) : content,
  }))
  return {
    bytes: Buffer.concat([key ?? NO_BYTES, value ?? NO_BYTES]),
    offset: record.offset,
    timestampMs: record.timestamp,
    keyStart: key === undefined ? -1 : 0,
    keyEnd,
    valueStart: value === null ? -1 : keyEnd,
    valueEnd: keyEnd + (value?.length ?? 0),
    headerCount: list.length,
    readHeaders: () => list,
  }
}
