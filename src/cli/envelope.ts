/**
 * The JSON envelope: one record, one line. `tail -f json` writes it and `produce --json` reads it, and what went through
 * both is the same to the byte (a property test holds them to it):
 *
 *   {"topic":"t","partition":0,"offset":7,"timestamp":1767225600000,"key":"k","value":…,"headers":[{"key":"a","value":"x"}]}
 *
 * value    an object, array, number or boolean   the bytes of the value, which are JSON on one line, stand here as they are
 *          a string                               the bytes are UTF-8 text (also JSON that is a string, null, or on several lines)
 *          a string and "valueEncoding":"base64"  anything else
 *          null                                   no value: a tombstone
 * key      a string, the same with "keyEncoding":"base64", or null for no key
 * headers  absent when there are none; each value a string, null, or base64 with "encoding":"base64"
 *
 * JSON values are cut out of the line rather than parsed and printed again: 12345678901234567890 and 1.0 stay what they are.
 */
import { isUtf8 } from 'node:buffer'
import type { HeaderField, RecordFields } from './record-fields.ts'
import { viewOf } from './record-fields.ts'
import type { ByteSink } from './output.ts'
import { BrokerError } from '../common/errors.ts'

const NEWLINE = 0x0a
const RETURN = 0x0d

export interface EnvelopeOptions {
  /** Leave out key, value and headers; tell their sizes. */
  readonly metaOnly: boolean
  readonly delimiter: number
}

export function writeEnvelope(
  topic: string,
  partition: number,
  record: RecordFields,
  out: ByteSink,
  options: EnvelopeOptions,
): void {
  out.writeText(prefixOf(topic, partition))
  out.writeText(`${record.offset},"timestamp":${record.timestampMs}`)
  const { bytes, keyStart, keyEnd, valueStart, valueEnd } = record
  if (options.metaOnly) {
    out.writeText(`,"keyBytes":${keyStart < 0 ? 'null' : keyEnd - keyStart}`)
    out.writeText(`,"valueBytes":${valueStart < 0 ? 'null' : valueEnd - valueStart}`)
    out.writeText(`,"headerCount":${record.headerCount}}`)
    out.writeByte(options.delimiter)
    return
  }
  if (keyStart < 0) out.writeText(',"key":null')
  else writeText(viewOf(bytes, keyStart, keyEnd), ',"key":', ',"keyEncoding":"base64"', out)
  if (valueStart < 0) out.writeText(',"value":null')
  else if (isInlineJson(bytes, valueStart, valueEnd)) {
    out.writeText(',"value":')
    out.write(bytes, valueStart, valueEnd)
  } else {
    writeText(viewOf(bytes, valueStart, valueEnd), ',"value":', ',"valueEncoding":"base64"', out)
  }
  if (record.headerCount > 0) {
    out.writeText(',"headers":[')
    let separator = ''
    for (const header of record.readHeaders()) {
      out.writeText(`${separator}{"key":${JSON.stringify(header.key)}`)
      if (header.value === undefined) out.writeText(',"value":null')
      else {
        const { buffer, byteOffset, byteLength } = header.value
        writeText(
          Buffer.from(buffer, byteOffset, byteLength),
          ',"value":',
          ',"encoding":"base64"',
          out,
        )
      }
      out.writeText('}')
      separator = ','
    }
    out.writeText(']')
  }
  out.writeText('}')
  out.writeByte(options.delimiter)
}

/** The envelope of one record as a text, without a newline, for where it stands inside of other JSON. */
export function envelopeText(topic: string, partition: number, record: RecordFields): string {
  const pieces: Buffer[] = []
  const sink: ByteSink = {
    write: (source, start, end) => pieces.push(Buffer.from(source.subarray(start, end))),
    writeByte: (byte) => pieces.push(Buffer.of(byte)),
    writeText: (text) => pieces.push(Buffer.from(text)),
  }
  writeEnvelope(topic, partition, record, sink, { metaOnly: false, delimiter: NEWLINE })
  return Buffer.concat(pieces).toString('utf8').trimEnd()
}

let lastTopic = ''
let lastPartition = -1
let lastPrefix = ''

/** Records come in runs of one partition: its part of the line is made once per run. */
function prefixOf(topic: string, partition: number): string {
  if (topic !== lastTopic || partition !== lastPartition) {
    lastTopic = topic
    lastPartition = partition
    lastPrefix = `{"topic":${JSON.stringify(topic)},"partition":${partition},"offset":`
  }
  return lastPrefix
}

const QUOTE = 0x22
const BACKSLASH = 0x5c

function writeText(bytes: Buffer, before: string, flag: string, out: ByteSink): void {
  out.writeText(before)
  // Plain ASCII, which most keys and log lines are, stands in JSON as it is: 4 times as fast as by way of a string.
  if (isPlainText(bytes)) {
    out.writeByte(QUOTE)
    out.write(bytes, 0, bytes.length)
    out.writeByte(QUOTE)
  } else if (isUtf8(bytes)) out.writeText(JSON.stringify(bytes.toString('utf8')))
  else out.writeText(`"${bytes.toString('base64')}"${flag}`)
}

function isPlainText(bytes: Buffer): boolean {
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i] as number // In range.
    if (byte < 0x20 || byte > 0x7e || byte === QUOTE || byte === BACKSLASH) return false
  }
  return true
}

/** True when the bytes are a JSON object, array, number or boolean that can stand in a line as it is. */
export function isInlineJson(bytes: Uint8Array, start: number, end: number): boolean {
  if (!mayBeJson(bytes, start, end)) return false
  const view = viewOf(bytes, start, end)
  // Between tokens JSON allows line ends; inside a line of ours they would cut it in two. NUL never passes JSON.parse.
  if (view.includes(NEWLINE) || view.includes(RETURN) || !isUtf8(view)) return false
  try {
    JSON.parse(view.toString('utf8'))
    return true
  } catch (error) {
    if (error instanceof SyntaxError) return false
    throw error
  }
}

const LONGEST_NUMBER = 64

/**
 * A look at the ends, because an exception for each line of a log (which like to begin with a digit or a bracket) costs 5 µs. No
 * white space outside, which a reader would drop. Strings and null go the way of text, or nobody could tell "a" from a, null from nothing.
 */
function mayBeJson(bytes: Uint8Array, start: number, end: number): boolean {
  const first = bytes[start]
  const last = bytes[end - 1]
  if (end === start || first === undefined) return false
  if (first === 0x7b) return last === 0x7d // { }
  if (first === 0x5b) return last === 0x5d // [ ]
  if (first === 0x74) return end - start === 4 && last === 0x65 // true
  if (first === 0x66) return end - start === 5 && last === 0x65 // false
  if (end - start > LONGEST_NUMBER) return false
  for (let i = start; i < end; i++) if (!isNumberLetter(bytes[i] as number)) return false
  return true
}

/** `0…9 + - . e E` */
function isNumberLetter(byte: number): boolean {
  return (
    (byte >= 0x30 && byte <= 0x39) ||
    byte === 0x2b ||
    byte === 0x2d ||
    byte === 0x2e ||
    byte === 0x65 ||
    byte === 0x45
  )
}

export interface EnvelopeRecord {
  readonly partition: number | undefined
  readonly timestampMs: number | undefined
  readonly key: Uint8Array | undefined
  readonly value: Uint8Array | undefined
  readonly headers: readonly HeaderField[]
}

const KNOWN_FIELDS: ReadonlySet<string> = new Set([
  'topic',
  'partition',
  'offset',
  'timestamp',
  'key',
  'keyEncoding',
  'value',
  'valueEncoding',
  'headers',
])

/**
 * Reads one envelope. `topic` and `offset` are allowed and mean nothing here.
 * @throws BrokerError INVALID_RECORD that says what is wrong with the line
 */
export function decodeEnvelope(line: Buffer): EnvelopeRecord {
  const text = line.toString('utf8')
  const parsed = parseObject(text)
  for (const name of Object.keys(parsed)) {
    if (!KNOWN_FIELDS.has(name)) throw bad(`has an unknown field ${JSON.stringify(name)}`)
  }
  if (!('value' in parsed)) throw bad('has no "value"; a tombstone is "value":null')
  const { partition, timestamp } = parsed
  if (partition !== undefined && !isCount(partition)) throw bad('has a "partition" that is none')
  if (timestamp !== undefined && !Number.isSafeInteger(timestamp)) {
    throw bad('has a "timestamp" that is no count of milliseconds')
  }
  return {
    partition: isCount(partition) ? partition : undefined,
    timestampMs: typeof timestamp === 'number' ? timestamp : undefined,
    key: toBytes('key', parsed['key'], parsed['keyEncoding']),
    value: toValue(text, parsed['value'], parsed['valueEncoding']),
    headers: toHeaders(parsed['headers']),
  }
}

function bad(why: string): BrokerError {
  return new BrokerError('INVALID_RECORD', `the envelope ${why}`)
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}

function parseObject(text: string): Record<string, unknown> {
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (error) {
    throw new BrokerError('INVALID_RECORD', 'the line is no JSON', {}, error)
  }
  if (!isObject(parsed)) throw bad('is no JSON object')
  return parsed
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function toBytes(field: string, value: unknown, encoding: unknown): Uint8Array | undefined {
  if (value === undefined || value === null) return undefined
  if (typeof value !== 'string') throw bad(`has a "${field}" that is no string`)
  if (encoding === undefined || encoding === 'text') return Buffer.from(value, 'utf8')
  if (encoding !== 'base64')
    throw bad(`has an encoding of "${field}" that is neither text nor base64`)
  const bytes = Buffer.from(value, 'base64')
  // Buffer skips what is no base64; half a value must not pass.
  if (bytes.toString('base64').replaceAll('=', '') !== value.replaceAll('=', '')) {
    throw bad(`has a "${field}" that is no base64`)
  }
  return bytes
}

function toValue(line: string, value: unknown, encoding: unknown): Uint8Array | undefined {
  if (value === null || typeof value === 'string') return toBytes('value', value, encoding)
  if (encoding !== undefined) throw bad('has a "valueEncoding", but its "value" is no string')
  return Buffer.from(findMember(line, 'value'), 'utf8')
}

function toHeaders(value: unknown): HeaderField[] {
  if (value === undefined || value === null) return []
  if (!Array.isArray(value)) throw bad('has "headers" that are no list')
  return value.map((entry: unknown) => {
    if (!isObject(entry) || typeof entry['key'] !== 'string') {
      throw bad('has a header without a "key"')
    }
    return {
      key: entry['key'],
      value: toBytes(`headers.${entry['key']}`, entry['value'], entry['encoding']),
    }
  })
}

/**
 * The text of a member's value in a JSON object, as it stands there. `text` must have passed JSON.parse, which is why this
 * may step over what it does not look at. With a repeated name the last counts, as in JSON.parse.
 */
export function findMember(text: string, name: string): string {
  let found = ''
  let at = text.indexOf('{') + 1
  for (;;) {
    at = skipSpace(text, at)
    if (text[at] === ',') at = skipSpace(text, at + 1)
    if (at >= text.length || text[at] === '}') return found
    const nameEnd = skipString(text, at)
    const isWanted = JSON.parse(text.slice(at, nameEnd)) === name
    at = skipSpace(text, skipSpace(text, nameEnd) + 1) // Past the colon.
    const valueEnd = skipValue(text, at)
    if (isWanted) found = text.slice(at, valueEnd)
    at = valueEnd
  }
}

function skipSpace(text: string, at: number): number {
  while (at < text.length && text.charCodeAt(at) <= 0x20) at++
  return at
}

function skipString(text: string, at: number): number {
  for (let i = at + 1; i < text.length; i++) {
    const code = text.charCodeAt(i)
    if (code === 0x5c) i++
    else if (code === 0x22) return i + 1
  }
  return text.length
}

function skipValue(text: string, at: number): number {
  let depth = 0
  let i = at
  while (i < text.length) {
    const letter = text[i]
    if (letter === '"') {
      i = skipString(text, i)
      if (depth === 0) return i
      continue
    }
    if (letter === '{' || letter === '[') depth++
    else if (letter === '}' || letter === ']') {
      if (depth === 0) return i // The end of the object that the scalar stands in.
      if (--depth === 0) return i + 1
    } else if (depth === 0 && (letter === ',' || text.charCodeAt(i) <= 0x20)) return i
    i++
  }
  return i
}
