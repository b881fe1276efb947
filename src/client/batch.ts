import { type Offset, toOffset } from '../common/offset.ts'
import type { RecordHeader } from '../record/batch-builder.ts'
import { RecordCursor } from '../record/record-cursor.ts'
import type { Batch, Headers, ReceivedRecord } from './api.ts'
import type { Codec, Topic } from './codecs.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { isUtf8 } from 'node:buffer'

export const NO_HEADERS: Headers = Object.freeze({})

/** A cursor that shows only the records in [from, until). */
class RangeCursor extends RecordCursor {
  readonly #from: number
  readonly #until: number

  constructor(bytes: Uint8Array, from: number, until: number) {
    super()
    this.#from = from
    this.#until = until
    this.reset(bytes, 0)
  }

  override next(): boolean {
    while (super.next()) {
      if (this.offset >= this.#from) return this.offset < this.#until
    }
    return false
  }
}

/** Own class, so that every record has the same hidden class. */
class FetchedRecord<V, K> implements ReceivedRecord<V, K> {
  readonly topic: string
  readonly partition: number
  readonly offset: Offset
  readonly timestamp: number
  readonly key: K | undefined
  readonly value: V | null
  readonly headers: Headers

  constructor(
    topic: string,
    partition: number,
    offset: Offset,
    timestamp: number,
    key: K | undefined,
    value: V | null,
    headers: Headers,
  ) {
    this.topic = topic
    this.partition = partition
    this.offset = offset
    this.timestamp = timestamp
    this.key = key
    this.value = value
    this.headers = headers
  }
}

/** Steps through a batch and makes an object of each record. */
export class RecordIterator<V, K> implements IterableIterator<ReceivedRecord<V, K>> {
  readonly #topic: Topic<V, K>
  readonly #partition: number
  readonly #cursor: RecordCursor

  constructor(topic: Topic<V, K>, partition: number, cursor: RecordCursor) {
    this.#topic = topic
    this.#partition = partition
    this.#cursor = cursor
  }

  /** Of the record that `next` has come to, also when it could not be decoded. */
  get offset(): number {
    return this.#cursor.offset
  }

  /** The key of that record as text with a letter for each byte: equal for equal bytes. Undefined without a key. */
  get keyText(): string | undefined {
    const { bytes, keyStart, keyEnd } = this.#cursor
    if (keyStart < 0) return undefined
    return Buffer.from(bytes.buffer, bytes.byteOffset + keyStart, keyEnd - keyStart).toString(
      'latin1',
    )
  }

  next(): IteratorResult<ReceivedRecord<V, K>, undefined> {
    const cursor = this.#cursor
    if (!cursor.next()) return { done: true, value: undefined }
    const { bytes, offset } = cursor
    const key =
      cursor.keyStart < 0
        ? undefined
        : this.#decode(this.#topic.key, bytes.subarray(cursor.keyStart, cursor.keyEnd), 'key')
    const value =
      cursor.valueStart < 0
        ? null
        : this.#decode(
            this.#topic.value,
            bytes.subarray(cursor.valueStart, cursor.valueEnd),
            'value',
          )
    return {
      done: false,
      value: new FetchedRecord(
        this.#topic.name,
        this.#partition,
        toOffset(offset),
        cursor.timestampMs,
        key,
        value,
        cursor.headerCount === 0 ? NO_HEADERS : toHeaders(cursor.readHeaders()),
      ),
    }
  }

  [Symbol.iterator](): this {
    return this
  }

  #decode<T>(codec: Codec<T>, bytes: Uint8Array, field: string): T {
    try {
      return codec.decode(bytes)
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error)
      const { offset } = this.#cursor
      throw new MillraceError(
        'INVALID_RECORD',
        `the ${field} at offset ${offset} of ${this.#topic.name}-${this.#partition} could not be decoded: ${message}`,
        { topic: this.#topic.name, partition: this.#partition, offset, field },
        error,
      )
    }
  }
}

export class LogBatch<V, K> implements Batch<V, K> {
  readonly partition: number
  readonly baseOffset: Offset
  readonly endOffset: Offset
  readonly highWatermark: Offset
  readonly bytes: Uint8Array
  readonly #topic: Topic<V, K>

  constructor(
    topic: Topic<V, K>,
    partition: number,
    baseOffset: Offset,
    endOffset: Offset,
    highWatermark: Offset,
    bytes: Uint8Array,
  ) {
    this.#topic = topic
    this.partition = partition
    this.baseOffset = baseOffset
    this.endOffset = endOffset
    this.highWatermark = highWatermark
    this.bytes = bytes
  }

  get topic(): string {
    return this.#topic.name
  }

  get count(): number {
    return this.endOffset - this.baseOffset
  }

  cursor(): RecordCursor {
    try {
      return new RangeCursor(this.bytes, this.baseOffset, this.endOffset)
    } catch (error) {
      throw toMillraceError(error)
    }
  }

  [Symbol.iterator](): RecordIterator<V, K> {
    return new RecordIterator(this.#topic, this.partition, this.cursor())
  }
}

/** Headers as users see them. */
export function toHeaders(list: readonly RecordHeader[]): Headers {
  // Without a prototype, or a header named __proto__ would set one.
  const headers = Object.create(null) as Record<string, string | Uint8Array>
  for (const { key, value } of list) {
    if (value === undefined) headers[key] = ''
    else headers[key] = isUtf8(value) ? toText(value) : value
  }
  return headers
}

function toText(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8')
}
