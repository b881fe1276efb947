import { readErrorDetail, writeErrorDetail } from './error-detail.ts'
import type { ErrorDetailMessage } from './error-detail.ts'
import { readHeader, writeHeader } from './produce-codec.ts'
import type { HeaderMessage } from './produce-codec.ts'
import { ProtoReader } from './proto-reader.ts'
import { ProtoWriter } from './proto-writer.ts'
import { WireParts } from './wire-parts.ts'

/** millrace.v1.Record. */
export interface RecordMessage {
  readonly offset: number
  readonly timestampMs: number
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | undefined
  readonly headers: readonly HeaderMessage[]
}

/** All of millrace.v1.FetchResponse but the batches. */
export interface FetchHead {
  /** Which of the request's partitions. */
  readonly index: number
  readonly records: readonly RecordMessage[]
  readonly nextOffset: number
  readonly highWatermark: number
  readonly logStartOffset: number
  readonly leaderEpoch: number
  readonly end: boolean
  readonly error: ErrorDetailMessage | undefined
  /** [skippedFrom, skippedTo): a damaged range that was passed over. Equal: none. */
  readonly skippedFrom: number
  readonly skippedTo: number
}

export interface FetchMessage extends FetchHead {
  /** Whole batches: a view of the message. */
  readonly batches: Uint8Array | undefined
}

// Encoding never awaits, so one writer serves everybody.
const shared = new ProtoWriter()

/** The chunks stand last, uncopied. */
export function fetchResponseParts(head: FetchHead, chunks: readonly Uint8Array[]): WireParts {
  shared.reset()
  shared.int(1, head.index)
  for (const record of head.records) {
    shared.message(3, (writer) => writeRecord(writer, record))
  }
  shared.int(4, head.nextOffset)
  shared.int(5, head.highWatermark)
  shared.int(6, head.logStartOffset)
  shared.int(7, head.leaderEpoch)
  shared.bool(8, head.end)
  const { error } = head
  if (error !== undefined) shared.message(9, (writer) => writeErrorDetail(writer, error))
  shared.int(10, head.skippedFrom)
  shared.int(11, head.skippedTo)
  let total = 0
  for (const chunk of chunks) total += chunk.length
  if (total > 0) shared.bytesHead(2, total)
  return new WireParts([shared.finish(), ...chunks])
}

/** The same in one buffer. Copies the chunks once. */
export function encodeFetchResponse(head: FetchHead, chunks: readonly Uint8Array[]): Buffer {
  return fetchResponseParts(head, chunks).toBuffer()
}

/**
 * `batches` and the keys and values of `records` are views of `bytes`. Unknown fields are skipped.
 * @throws BrokerError INVALID_REQUEST when the bytes are no FetchResponse
 */
export function decodeFetchResponse(bytes: Buffer): FetchMessage {
  let index = 0
  let batches: Uint8Array | undefined
  const records: RecordMessage[] = []
  let nextOffset = 0
  let highWatermark = 0
  let logStartOffset = 0
  let leaderEpoch = 0
  let end = false
  let error: ErrorDetailMessage | undefined
  let skippedFrom = 0
  let skippedTo = 0
  const reader = new ProtoReader(bytes)
  while (reader.next()) {
    const field = reader.field
    if (field === 2) batches = reader.bytes()
    else if (field === 1) index = reader.int32()
    else if (field === 3) records.push(readRecord(reader.message()))
    else if (field === 4) nextOffset = reader.int64()
    else if (field === 5) highWatermark = reader.int64()
    else if (field === 6) logStartOffset = reader.int64()
    else if (field === 7) leaderEpoch = reader.int32()
    else if (field === 8) end = reader.bool()
    else if (field === 9) error = readErrorDetail(reader.message())
    else if (field === 10) skippedFrom = reader.int64()
    else if (field === 11) skippedTo = reader.int64()
    else reader.skip()
  }
  if (batches !== undefined && batches.length === 0) batches = undefined
  return {
    index,
    batches,
    records,
    nextOffset,
    highWatermark,
    logStartOffset,
    leaderEpoch,
    end,
    error,
    skippedFrom,
    skippedTo,
  }
}

function writeRecord(writer: ProtoWriter, record: RecordMessage): void {
  writer.int(1, record.offset)
  writer.int(2, record.timestampMs)
  if (record.key !== undefined) writer.presentBytes(3, record.key)
  if (record.value !== undefined) writer.presentBytes(4, record.value)
  for (const header of record.headers) writer.message(5, (inner) => writeHeader(inner, header))
}

function readRecord(reader: ProtoReader): RecordMessage {
  let offset = 0
  let timestampMs = 0
  let key: Uint8Array | undefined
  let value: Uint8Array | undefined
  const headers: HeaderMessage[] = []
  while (reader.next()) {
    if (reader.field === 1) offset = reader.int64()
    else if (reader.field === 2) timestampMs = reader.int64()
    else if (reader.field === 3) key = reader.bytes()
    else if (reader.field === 4) value = reader.bytes()
    else if (reader.field === 5) headers.push(readHeader(reader.message()))
    else reader.skip()
  }
  return { offset, timestampMs, key, value, headers }
}
