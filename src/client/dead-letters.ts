import type { RecordHeader } from '../record/batch-builder.ts'
import type { Headers, Producer } from './api.ts'
import type { LogBatch } from './batch.ts'
import { bytes, type Topic, topic } from './codecs.ts'
import { MillraceError, toMillraceError } from './errors.ts'

const MOST_MESSAGE_LETTERS = 2048
const MOST_STACK_LETTERS = 8192

/** Why and when a record was given up. Times are milliseconds since the epoch. */
export interface DeadLetter {
  readonly batch: LogBatch<unknown, unknown>
  readonly offset: number
  /** `attempts_exhausted`: its handler failed each time. `rejected`: it could not even be decoded. */
  readonly reason: 'attempts_exhausted' | 'rejected'
  readonly failures: number
  readonly firstFailedMs: number
  readonly lastFailedMs: number
  readonly error: unknown
}

/** Whose dead letters they are. */
interface Sender {
  readonly group: string
  readonly memberId: string
}

interface RawRecord {
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | null
  readonly headers: readonly RecordHeader[]
}

/**
 * Writes records that were given up to another topic: key, value and headers byte by byte as they were, and headers that tell where they come from and why
 * they died (SEMANTICS §3.6). One that is too large with these loses the stack, then the message, then its value, and says so by `dlq.truncated`.
 */
export class DeadLetters {
  readonly #topic: Topic<Uint8Array, Uint8Array>
  readonly #sender: Sender
  readonly #createProducer: () => Producer
  #producer: Producer | undefined

  constructor(name: string, sender: Sender, createProducer: () => Producer) {
    this.#topic = topic<Uint8Array, Uint8Array>(name, { value: bytes, key: bytes })
    this.#sender = sender
    this.#createProducer = createProducer
  }

  get name(): string {
    return this.#topic.name
  }

  /** Durable when it resolves. @throws MillraceError as {@link Producer.send} */
  async send(letter: DeadLetter): Promise<void> {
    this.#producer ??= this.#createProducer()
    const { key, value, headers } = readRaw(letter.batch, letter.offset)
    for (let cut = 0; ; cut++) {
      try {
        await this.#producer.send(this.#topic, {
          key,
          value: cut < 3 ? value : null,
          headers: { ...toHeaders(headers), ...this.#headersOf(letter, cut) },
        })
        return
      } catch (error) {
        if (cut === 3 || toMillraceError(error).code !== 'RECORD_TOO_LARGE') throw error
      }
    }
  }

  async close(): Promise<void> {
    await this.#producer?.close()
  }

  #headersOf(letter: DeadLetter, cut: number): Headers {
    const { error } = letter
    const isError = error instanceof Error
    const message = isError ? error.message : String(error)
    const stack = isError ? (error.stack ?? '') : ''
    return {
      'dlq.topic': letter.batch.topic,
      'dlq.partition': String(letter.batch.partition),
      'dlq.offset': String(letter.offset),
      'dlq.group': this.#sender.group,
      'dlq.member': this.#sender.memberId,
      'dlq.reason': letter.reason,
      'dlq.failures': String(letter.failures),
      'dlq.first_failed_at': String(letter.firstFailedMs),
      'dlq.last_failed_at': String(letter.lastFailedMs),
      'dlq.error.type': toErrorType(error),
      ...(cut < 2 ? { 'dlq.error.message': message.slice(0, MOST_MESSAGE_LETTERS) } : {}),
      ...(cut < 1 ? { 'dlq.error.stack': stack.slice(0, MOST_STACK_LETTERS) } : {}),
      ...(cut > 0 ? { 'dlq.truncated': 'true' } : {}),
    }
  }
}

function toErrorType(error: unknown): string {
  if (error instanceof MillraceError) return error.code
  return error instanceof Error ? error.name : typeof error
}

/** A record by its offset, as it is stored. */
function readRaw(batch: LogBatch<unknown, unknown>, offset: number): RawRecord {
  const cursor = batch.cursor()
  while (cursor.next()) {
    if (cursor.offset !== offset) continue
    const { bytes: all, keyStart, keyEnd, valueStart, valueEnd } = cursor
    return {
      key: keyStart < 0 ? undefined : all.subarray(keyStart, keyEnd),
      value: valueStart < 0 ? null : all.subarray(valueStart, valueEnd),
      headers: cursor.readHeaders(),
    }
  }
  throw new MillraceError('INTERNAL_ERROR', `offset ${offset} is not in its batch`)
}

function toHeaders(list: readonly RecordHeader[]): Headers {
  // Without a prototype, or a header named __proto__ would set one.
  const headers = Object.create(null) as Record<string, Uint8Array>
  for (const { key, value } of list) headers[key] = value ?? new Uint8Array(0)
  return headers
}
