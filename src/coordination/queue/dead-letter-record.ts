import { varintBytes } from '../../bytes/varint.ts'
import { isOffset, type Offset } from '../../common/offset.ts'
import type { RecordHeader } from '../../record/batch-builder.ts'
import { BATCH_HEADER_BYTES } from '../../record/batch-header.ts'
import { isRetryTopic } from './names.ts'
import type { FailureInfo, WorkError } from './queue-types.ts'

/** Why a record was given up (SEMANTICS §3.6). */
export type DeadReason =
  | 'rejected'
  | 'attempts_exhausted'
  | 'lease_expired'
  | 'expired'
  | 'retention'
  | 'unroutable'
  | 'too_old'

/** A record as it is stored. */
export interface StoredRecord {
  readonly key: Uint8Array | undefined
  /** Undefined for a tombstone. */
  readonly value: Uint8Array | undefined
  readonly headers: readonly RecordHeader[]
}

/** What is known of a record's death. Times are milliseconds since the epoch. */
export interface DeathFacts {
  readonly group: string
  /** Where the group read it: of a redriven record its retry topic, which holds the place of the original in its headers. */
  readonly topic: string
  readonly partition: number
  readonly offset: Offset
  readonly reason: DeadReason
  /** Of this life: those before a redrive are in the record's headers, and are added. */
  readonly deliveries: number
  readonly failures: number
  readonly firstFailedMs: number
  readonly lastFailedMs: number
  /** Newest last; the last three are told. */
  readonly errors: readonly FailureInfo[]
  /** The member that had it last; empty when none did. */
  readonly memberId: string
}

export interface DeadLetterOptions {
  /** `dlq.copy.payload`. */
  readonly copyPayload: boolean
  /** Most that a batch with this record alone may take: `max.message.bytes` of the topic of dead letters. */
  readonly maxBytes: number
}

/** What a dead letter tells of itself. */
export interface DeadLetterFacts {
  /** {@link deadLetterId}. */
  readonly id: string
  /** Where the record was sent to first, however often it has been redriven since. */
  readonly topic: string
  readonly partition: number
  readonly offset: Offset
  readonly group: string
  /** One of {@link DeadReason}, unless a later version wrote it. */
  readonly reason: string
  /** Over all its lives, as the failures. */
  readonly deliveries: number
  readonly failures: number
  /** In its first life. */
  readonly firstFailedMs: number
  readonly lastFailedMs: number
  /** The last one; empty texts when there was none. */
  readonly error: WorkError
  /** Up to three, newest last, without their stacks. */
  readonly errors: readonly {
    readonly type: string
    readonly message: string
    readonly atMs: number
  }[]
  readonly memberId: string
  /** How often it had been redriven before it died. */
  readonly redrives: number
  /** Something had to be cut to make it fit. */
  readonly truncated: boolean
  /** False when the value was left out; the original may still be at its offset. */
  readonly hasPayload: boolean
}

const PREFIX = 'dlq.'

/** The header that makes a repeated append harmless: `Peer.findIds` looks for it. */
export const DEAD_LETTER_ID_HEADER = 'dlq.id'

/** Of a record in a retry topic: the dead letter that it is the copy of, so that a repeated append is harmless. */
export const REDRIVE_ID_HEADER = 'redrive.id'

/** Of a record in a retry topic: the failures that it begins with there, when a redrive did not reset them. */
export const FAILURES_HEADER = 'job.failures'

const MOST_TYPE_BYTES = 128
const MOST_MESSAGE_BYTES = 2048
const MOST_STACK_BYTES = 8192
const MOST_ERRORS = 3
const REDRIVES_HEADER = `${PREFIX}redrives`

const encoder = new TextEncoder()
const decoder = new TextDecoder()

/**
 * Names one death: `<group>/<topic>/<partition>/<offset>/<redrives>`, the place being where the group read the record. The same after a crash,
 * and no other death's: no name can hold a slash.
 */
export function deadLetterId(
  group: string,
  topic: string,
  partition: number,
  offset: number,
  redrives: number,
): string {
  return `${group}/${topic}/${partition}/${offset}/${redrives}`
}

/** How often the record has been redriven to this group, as its headers tell: 0 outside of the group's retry topics. */
export function findRedrives(
  group: string,
  topic: string,
  headers: readonly RecordHeader[],
): number {
  return findFormerDeath(group, topic, headers)?.redrives ?? 0
}

/**
 * The dead letter of a record: key, value and headers as they were, and `dlq.*` headers that tell where it comes from and why it died. A record that died,
 * was redriven and dies again keeps the place and the first failure of its first life, and its counters go on. To fit into `maxBytes` it loses, in this
 * order and only as far as needed: its stack, its messages, its value, its own headers, its key.
 */
export function buildDeadLetter(
  record: StoredRecord,
  facts: DeathFacts,
  options: DeadLetterOptions,
): StoredRecord {
  const former = findFormerDeath(facts.group, facts.topic, record.headers)
  // Those that a redrive let it begin with are among the failures of its former lives.
  const kept = former === undefined ? 0 : findFormerFailures(facts.topic, record.headers)
  const death: Death = {
    ...facts,
    id: deadLetterId(
      facts.group,
      facts.topic,
      facts.partition,
      facts.offset,
      former?.redrives ?? 0,
    ),
    topic: former?.topic ?? facts.topic,
    partition: former?.partition ?? facts.partition,
    offset: former?.offset ?? facts.offset,
    deliveries: (former?.deliveries ?? 0) + facts.deliveries,
    failures: (former?.failures ?? 0) + Math.max(0, facts.failures - kept),
    firstFailedMs: former?.firstFailedMs ?? facts.firstFailedMs,
    redrives: former?.redrives ?? 0,
    isShell: former?.hasPayload === false && record.value === undefined,
  }
  let letter = assemble(record, death, options.copyPayload, 0)
  for (let cut = 1; cut <= MOST_CUTS && bytesAlone(letter) > options.maxBytes; cut++) {
    letter = assemble(record, death, options.copyPayload, cut)
  }
  return letter
}

/** The facts of all lives of a record, and the place of the first. */
interface Death extends DeathFacts {
  readonly id: string
  readonly redrives: number
  /** It was redriven without the value that it once had. */
  readonly isShell: boolean
}

/** With all of these cut, what is left are `dlq.*` headers of at most some 2 KiB, most of it names. */
const MOST_CUTS = 5

/** `cut`: 1 without the stack, 2 and without messages, 3 and without the value, 4 and without the record's own headers, 5 and without its key. */
function assemble(
  record: StoredRecord,
  death: Death,
  copyPayload: boolean,
  cut: number,
): StoredRecord {
  const isCopied = copyPayload && cut < 3
  const hasPayload = isCopied ? !death.isShell : record.value === undefined && !death.isShell
  const own = cut < 4 ? withoutDeadLetterHeaders(record.headers) : []
  return {
    key: cut < 5 ? record.key : undefined,
    value: isCopied ? record.value : undefined,
    headers: [...own, ...deathHeaders(death, hasPayload, cut)],
  }
}

function deathHeaders(death: Death, hasPayload: boolean, cut: number): readonly RecordHeader[] {
  const headers: RecordHeader[] = []
  const put = (name: string, value: string | number): void => {
    headers.push({ key: `${PREFIX}${name}`, value: encoder.encode(String(value)) })
  }
  put('id', death.id)
  put('topic', death.topic)
  put('partition', death.partition)
  put('offset', death.offset)
  put('group', death.group)
  put('reason', death.reason)
  put('deliveries', death.deliveries)
  put('failures', death.failures)
  put('first_failed_at', death.firstFailedMs)
  put('last_failed_at', death.lastFailedMs)
  if (death.memberId !== '') put('member', death.memberId)
  put('redrives', death.redrives)
  const told = death.errors.slice(-MOST_ERRORS)
  const last = told.at(-1)
  if (last !== undefined) {
    put('error.type', cutText(last.error.type, MOST_TYPE_BYTES))
    if (cut < 2) put('error.message', cutText(last.error.message, MOST_MESSAGE_BYTES))
    if (cut < 1) put('error.stack', cutText(last.error.stack, MOST_STACK_BYTES))
    if (cut < 2) put('errors', JSON.stringify(told.map(toTold)))
  }
  if (!hasPayload) put('payload', 'false')
  if (cut > 0) put('truncated', 'true')
  return headers
}

function toTold(failure: FailureInfo): { type: string; message: string; at: number } {
  return {
    type: cutText(failure.error.type, MOST_TYPE_BYTES),
    message: cutText(failure.error.message, MOST_MESSAGE_BYTES),
    at: failure.atMs,
  }
}

/** The beginning of `text`, at most so many bytes of UTF-8, without half a letter at its end. */
function cutText(text: string, mostBytes: number): string {
  if (text.length * 3 <= mostBytes) return text
  const bytes = encoder.encode(text.slice(0, mostBytes))
  if (bytes.length <= mostBytes && text.length <= mostBytes) return text
  let end = Math.min(mostBytes, bytes.length)
  // 10xxxxxx goes on with a letter that began before.
  while (end > 0 && end < bytes.length && (bytes[end]! & 0xc0) === 0x80) end--
  return decoder.decode(bytes.subarray(0, end))
}

/** Bytes of a batch that holds this record alone, uncompressed. */
function bytesAlone(record: StoredRecord): number {
  let bytes = 1 + 1 + 1 // Attributes and two deltas of 0.
  bytes += fieldBytes(record.key?.length) + fieldBytes(record.value?.length)
  bytes += varintBytes(record.headers.length)
  for (const { key, value } of record.headers) {
    bytes += fieldBytes(Buffer.byteLength(key)) + fieldBytes(value?.length)
  }
  return BATCH_HEADER_BYTES + varintBytes(bytes) + bytes
}

function fieldBytes(length: number | undefined): number {
  return length === undefined ? varintBytes(-1) : varintBytes(length) + length
}

/**
 * The death that a redriven record has behind it. Headers are believed only where the broker alone writes, and only of the group itself: a record that a
 * producer made, or a dead letter of another group that this one reads, has none.
 */
function findFormerDeath(
  group: string,
  topic: string,
  headers: readonly RecordHeader[],
): DeadLetterFacts | undefined {
  if (!isRetryTopic(topic)) return undefined
  const former = readDeadLetter(headers)
  return former?.group === group ? former : undefined
}

/**
 * What the headers of a dead letter say; undefined when the record is none. Reads also those that a stream group's consumer writes, which know
 * of no deliveries and no redrives. A header that is garbled counts as absent.
 */
export function readDeadLetter(headers: readonly RecordHeader[]): DeadLetterFacts | undefined {
  const texts = new Map<string, string>()
  for (const { key, value } of headers) {
    if (key.startsWith(PREFIX)) texts.set(key.slice(PREFIX.length), decoder.decode(value))
  }
  const topic = texts.get('topic')
  const group = texts.get('group')
  const partition = toCount(texts.get('partition'))
  const offset = toCount(texts.get('offset'))
  if (!topic || !group || partition === undefined || offset === undefined) return undefined
  const redrives = toCount(texts.get('redrives')) ?? 0
  const failures = toCount(texts.get('failures')) ?? 0
  const lastFailedMs = toCount(texts.get('last_failed_at')) ?? 0
  return {
    id: texts.get('id') ?? deadLetterId(group, topic, partition, offset, redrives),
    topic,
    partition,
    offset,
    group,
    reason: texts.get('reason') ?? '',
    deliveries: toCount(texts.get('deliveries')) ?? failures,
    failures,
    firstFailedMs: toCount(texts.get('first_failed_at')) ?? lastFailedMs,
    lastFailedMs,
    error: {
      type: texts.get('error.type') ?? '',
      message: texts.get('error.message') ?? '',
      stack: texts.get('error.stack') ?? '',
    },
    errors: toErrors(texts.get('errors')),
    memberId: texts.get('member') ?? '',
    redrives,
    truncated: texts.get('truncated') === 'true',
    hasPayload: texts.get('payload') !== 'false',
  }
}

function toCount(text: string | undefined): Offset | undefined {
  if (text === undefined || !/^\d+$/.test(text)) return undefined
  const value = Number(text)
  return isOffset(value) ? value : undefined
}

function toErrors(text: string | undefined): DeadLetterFacts['errors'] {
  if (text === undefined) return []
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch {
    return [] // Garbled: as if it were not there.
  }
  if (!Array.isArray(parsed)) return []
  return parsed.slice(-MOST_ERRORS).flatMap((one: unknown) => {
    if (typeof one !== 'object' || one === null) return []
    const { type, message, at } = one as Record<string, unknown> // Every field is looked at below.
    if (typeof type !== 'string' || typeof message !== 'string' || !isOffset(at)) return []
    return [{ type, message, atMs: at }]
  })
}

/** A record's headers without those that tell of a death or a redrive: for a redrive to another topic, where it begins anew. */
export function withoutDeadLetterHeaders(
  headers: readonly RecordHeader[],
): readonly RecordHeader[] {
  return headers.filter(({ key }) => !key.startsWith(PREFIX) && !isRedriveHeader(key))
}

/**
 * The headers of the copy that goes to the group's retry topic: those of the dead letter with one redrive more, and `redriveId` instead of the id of the
 * death, which is over. Unless `resetAttempts` says so, the record begins with the failures that it has.
 */
export function toRedrivenHeaders(
  headers: readonly RecordHeader[],
  redriveId: string,
  resetAttempts: boolean,
): readonly RecordHeader[] {
  const letter = readDeadLetter(headers)
  const failures = resetAttempts ? 0 : (letter?.failures ?? 0)
  const replaced = new Set([DEAD_LETTER_ID_HEADER, REDRIVES_HEADER])
  const text = (key: string, value: string | number): RecordHeader => {
    return { key, value: encoder.encode(String(value)) }
  }
  return [
    ...headers.filter(({ key }) => !replaced.has(key) && !isRedriveHeader(key)),
    text(REDRIVES_HEADER, (letter?.redrives ?? 0) + 1),
    text(REDRIVE_ID_HEADER, redriveId),
    ...(failures > 0 ? [text(FAILURES_HEADER, failures)] : []),
  ]
}

/** The failures that a record begins with in a group: 0, unless it is read from a retry topic and a redrive left it those that it had. */
export function findFormerFailures(topic: string, headers: readonly RecordHeader[]): number {
  if (!isRetryTopic(topic)) return 0
  const header = headers.findLast(({ key }) => key === FAILURES_HEADER)
  return header === undefined ? 0 : (toCount(decoder.decode(header.value)) ?? 0)
}

function isRedriveHeader(key: string): boolean {
  return key === REDRIVE_ID_HEADER || key === FAILURES_HEADER
}
