import { readI64, readU32 } from '../../bytes/big-endian.ts'
import { ByteWriter } from '../../bytes/byte-writer.ts'
import { BrokerError } from '../../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../../common/offset.ts'
import type { RecordHeader } from '../../record/batch-builder.ts'

/** A place that delayed records are for. */
export interface DelayTarget {
  readonly topic: string
  /** A lower-case UUID. */
  readonly topicId: string
  readonly partition: number
}

/** A waiting record, as it lies in `__delayed`. */
export interface DelayedEnvelope {
  readonly target: DelayTarget
  readonly acceptedMs: number
  readonly deliverAtMs: number
  /** Empty: none. */
  readonly dedupeId: string
  /** Of key and value, where the topic wants dedupe ids verified; 0: not known. 32 bits. */
  readonly checksum: number
  /** 16 bytes, or empty. */
  readonly sendId: Uint8Array
  /** Set when this record has taken the place of another one, with another due time. */
  readonly moved: MovedFrom | undefined
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | undefined
  readonly timestampMs: number | undefined
}

export interface MovedFrom {
  /** What the delay id names, whatever has happened since. */
  readonly origin: Offset
  /** What this record replaces, and when that was due. */
  readonly offset: Offset
  readonly dueMs: number
}

/** Bytes of the key of a waiting record: random, so that no two are ever the same. */
export const DELAY_KEY_BYTES = 12
/** The key of an intent is longer by this byte. */
const INTENT_MARK = 0x69
export const INTENT_KEY_BYTES: number = DELAY_KEY_BYTES + 1
export const SEND_ID_BYTES = 16

const VERSION = 1
const HAS_VALUE = 1
const HAS_KEY = 2
const HAS_TIMESTAMP = 4
const HAS_SEND_ID = 8
const HAS_DEDUPE_ID = 16
const IS_MOVED = 32
const UUID_BYTES = 16

const writer: ByteWriter = new ByteWriter(1024)

/**
 * The value of a waiting record: what is known of it, then its own value as it came. Its headers are headers of the record in `__delayed` too.
 *
 *   version u8 │ flags u8 │ accepted ms i64 │ deliver at ms i64 │ partition u32 │ topic id 16 B │ topic u8 length, UTF-8
 *   then what the flags say: │ timestamp i64 │ send id 16 B │ checksum u32, dedupe id u8 length, UTF-8 │
 *                            │ origin i64, offset i64, due ms i64 of what it replaces │ key u32 length, bytes │ value to the end
 *
 * The result is a view that holds until the next call.
 */
export function encodeEnvelope(envelope: DelayedEnvelope): Uint8Array {
  const { target, key, value, timestampMs, sendId, dedupeId, moved } = envelope
  writer.reset()
  writer.u8(VERSION)
  writer.u8(
    (value === undefined ? 0 : HAS_VALUE) |
      (key === undefined ? 0 : HAS_KEY) |
      (timestampMs === undefined ? 0 : HAS_TIMESTAMP) |
      (sendId.length === 0 ? 0 : HAS_SEND_ID) |
      (dedupeId === '' ? 0 : HAS_DEDUPE_ID) |
      (moved === undefined ? 0 : IS_MOVED),
  )
  writer.i64(envelope.acceptedMs)
  writer.i64(envelope.deliverAtMs)
  writeTarget(target)
  if (timestampMs !== undefined) writer.i64(timestampMs)
  if (sendId.length > 0) writer.bytes(sendId)
  if (dedupeId !== '') {
    writer.u32(envelope.checksum)
    writeText(dedupeId)
  }
  if (moved !== undefined) {
    writer.i64(moved.origin)
    writer.i64(moved.offset)
    writer.i64(moved.dueMs)
  }
  if (key !== undefined) {
    writer.u32(key.length)
    writer.bytes(key)
  }
  if (value !== undefined) writer.bytes(value)
  return writer.view()
}

/** Key and value are views into `bytes`. @throws BrokerError UNSUPPORTED_FORMAT, INVALID_RECORD */
export function decodeEnvelope(bytes: Uint8Array, start: number, end: number): DelayedEnvelope {
  const reader = new EnvelopeReader(bytes, start, end)
  checkVersion(reader.u8())
  const flags = reader.u8()
  const acceptedMs = reader.i64()
  const deliverAtMs = reader.i64()
  const target = reader.target()
  const timestampMs = (flags & HAS_TIMESTAMP) === 0 ? undefined : reader.i64()
  const sendId = (flags & HAS_SEND_ID) === 0 ? NOTHING : reader.bytes(SEND_ID_BYTES)
  const hasDedupeId = (flags & HAS_DEDUPE_ID) !== 0
  const checksum = hasDedupeId ? reader.u32() : 0
  const dedupeId = hasDedupeId ? reader.text() : ''
  const moved =
    (flags & IS_MOVED) === 0
      ? undefined
      : { origin: reader.offset(), offset: reader.offset(), dueMs: reader.i64() }
  const key = (flags & HAS_KEY) === 0 ? undefined : reader.bytes(reader.u32())
  const value = (flags & HAS_VALUE) === 0 ? undefined : reader.rest()
  return {
    target,
    acceptedMs,
    deliverAtMs,
    dedupeId,
    checksum,
    sendId,
    moved,
    key,
    value,
    timestampMs,
  }
}

/** Records that are about to be appended to their target: written down before. */
export interface Intent {
  readonly target: DelayTarget
  /** The end of the target then, see `PeerMark`. */
  readonly end: Offset
  readonly records: readonly { readonly offset: Offset; readonly dueMs: number }[]
}

/** `random` has {@link DELAY_KEY_BYTES}. */
export function intentKey(random: Uint8Array): Uint8Array {
  const key = new Uint8Array(INTENT_KEY_BYTES)
  key[0] = INTENT_MARK
  key.set(random, 1)
  return key
}

/** version u8 │ partition u32 │ topic id 16 B │ topic u8 length, UTF-8 │ end i64 │ of each record: offset i64, due ms i64. In memory of its own. */
export function encodeIntent(intent: Intent): Uint8Array {
  writer.reset()
  writer.u8(VERSION)
  writeTarget(intent.target)
  writer.i64(intent.end)
  for (const { offset, dueMs } of intent.records) {
    writer.i64(offset)
    writer.i64(dueMs)
  }
  return writer.copy()
}

/** @throws BrokerError UNSUPPORTED_FORMAT, INVALID_RECORD */
export function decodeIntent(bytes: Uint8Array, start: number, end: number): Intent {
  const reader = new EnvelopeReader(bytes, start, end)
  checkVersion(reader.u8())
  const target = reader.target()
  const targetEnd = reader.offset()
  const records: { offset: Offset; dueMs: number }[] = []
  while (reader.left > 0) records.push({ offset: reader.offset(), dueMs: reader.i64() })
  return { target, end: targetEnd, records }
}

/** What the tombstone of a waiting record says of it, so that a replay needs no table of keys. */
export interface DelayEnd {
  readonly offset: Offset
  readonly dueMs: number
  readonly dedupeId: string
}

const END_HEADER = 'end'

/** version u8 │ offset i64 │ due ms i64 │ dedupe id u8 length, UTF-8. In memory of its own. */
export function encodeEnd(end: DelayEnd): RecordHeader {
  writer.reset()
  writer.u8(VERSION)
  writer.i64(end.offset)
  writer.i64(end.dueMs)
  writeText(end.dedupeId)
  return { key: END_HEADER, value: writer.copy() }
}

/** @throws BrokerError UNSUPPORTED_FORMAT, INVALID_RECORD */
export function decodeEnd(headers: readonly RecordHeader[]): DelayEnd {
  const bytes = headers.find(({ key }) => key === END_HEADER)?.value
  if (bytes === undefined) throw malformed()
  const reader = new EnvelopeReader(bytes, 0, bytes.length)
  checkVersion(reader.u8())
  return { offset: reader.offset(), dueMs: reader.i64(), dedupeId: reader.text() }
}

/** What a sender is given to name its waiting record by. */
export interface DelayId {
  readonly shard: number
  readonly offset: Offset
  /** {@link DELAY_KEY_BYTES} of them. */
  readonly key: Uint8Array
}

/** `<partition>.<offset>.<key>`, of letters that need no quoting anywhere. */
export function formatDelayId(shard: number, offset: number, key: Uint8Array): string {
  const bytes = Buffer.from(key.buffer, key.byteOffset, key.length)
  return `${shard}.${offset}.${bytes.toString('base64url')}`
}

export function parseDelayId(text: string): DelayId | undefined {
  const match = /^(\d{1,5})\.(\d{1,16})\.([A-Za-z0-9_-]{16})$/.exec(text)
  if (match === null) return undefined
  const offset = Number(match[2])
  const key = Buffer.from(match[3] ?? '', 'base64url')
  if (!isOffset(offset) || key.length !== DELAY_KEY_BYTES) return undefined
  return { shard: Number(match[1]), offset, key }
}

export const NOTHING: Uint8Array = new Uint8Array(0)

function writeTarget(target: DelayTarget): void {
  writer.u32(target.partition)
  writer.bytes(Buffer.from(target.topicId.replaceAll('-', ''), 'hex'))
  writeText(target.topic)
}

/** Names and ids: at most 255 bytes, which whoever took them in has seen to. */
function writeText(text: string): void {
  const at = writer.length
  writer.u8(0)
  const bytes = writer.utf8(text)
  writer.view()[at] = bytes
}

class EnvelopeReader {
  readonly #bytes: Buffer
  #at: number
  readonly #end: number

  constructor(bytes: Uint8Array, start: number, end: number) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    this.#at = start
    this.#end = end
  }

  get left(): number {
    return this.#end - this.#at
  }

  u8(): number {
    return this.#bytes[this.#skip(1)]!
  }

  u32(): number {
    return readU32(this.#bytes, this.#skip(4))
  }

  i64(): number {
    const value = readI64(this.#bytes, this.#skip(8))
    if (!Number.isSafeInteger(value)) throw malformed()
    return value
  }

  offset(): Offset {
    const value = this.i64()
    if (value < 0) throw malformed()
    return toOffset(value)
  }

  text(): string {
    const length = this.u8()
    const start = this.#skip(length)
    return this.#bytes.toString('utf8', start, start + length)
  }

  bytes(count: number): Uint8Array {
    const start = this.#skip(count)
    return this.#bytes.subarray(start, start + count)
  }

  rest(): Uint8Array {
    return this.bytes(this.left)
  }

  target(): DelayTarget {
    const partition = this.u32()
    const start = this.#skip(UUID_BYTES)
    const hex = this.#bytes.toString('hex', start, start + UUID_BYTES)
    const topicId = `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
    return { partition, topicId, topic: this.text() }
  }

  #skip(count: number): number {
    const start = this.#at
    if (start + count > this.#end) throw malformed()
    this.#at = start + count
    return start
  }
}

function checkVersion(version: number): void {
  if (version === VERSION) return
  throw new BrokerError(
    'UNSUPPORTED_FORMAT',
    `a record of __delayed has version ${version}: a newer millrace wrote it`,
    { version },
  )
}

function malformed(): BrokerError {
  return new BrokerError('INVALID_RECORD', 'a record of __delayed is not what was written there')
}
