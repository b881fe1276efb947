import type { Output } from './output.ts'

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
