import { isUtf8 } from 'node:buffer'
import { styleText } from 'node:util'
import { isInlineJson, writeEnvelope } from './envelope.ts'
import type { Output } from './output.ts'
import type { HeaderField, RecordFields, RecordWriter } from './record-fields.ts'
import { viewOf } from './record-fields.ts'
import { compileTimePattern, formatIso } from './time-format.ts'
import { UsageError } from './usage-error.ts'
import { findNearest } from '../common/names.ts'

export const NAMED_FORMATS = ['raw', 'json', 'table', 'pretty'] as const
export type NamedFormat = (typeof NAMED_FORMATS)[number]

export interface FormatOptions {
  /** Ends a record: a newline, or NUL with `-0`. */
  readonly delimiter: number
  readonly metaOnly: boolean
  readonly colour: boolean
  /** Width of the terminal, for tables; undefined when there is none. */
  readonly columns: number | undefined
}

export interface RecordFormat {
  /** Written once, before the first record. */
  readonly heading: string | undefined
  readonly write: RecordWriter
}

/**
 * Makes what writes a record from the text after `-f`: a name, or a format string, which has a `%` or a `\` in it.
 * @throws UsageError that shows the place, and where to read on
 */
export function compileFormat(text: string, options: FormatOptions): RecordFormat {
  switch (text as NamedFormat) {
    case 'raw':
      if (options.metaOnly) throw metaOnlyNeedsMeta('raw')
      return { heading: undefined, write: rawWriter(options.delimiter) }
    case 'json':
      return {
        heading: undefined,
        write: (topic, partition, record, out) =>
          writeEnvelope(topic, partition, record, out, options),
      }
    case 'table':
      return tableFormat(options)
    case 'pretty':
      return { heading: undefined, write: prettyWriter(options) }
  }
  if (!/[%\\]/.test(text)) {
    const nearest = findNearest(text, NAMED_FORMATS, 1)[0]
    throw new UsageError(
      `"${text}" is no format`,
      nearest === undefined
        ? `write ${NAMED_FORMATS.join(', ')} or a format string such as '%p:%o %v\\n'; see \`millrace help formats\``
        : `did you mean ${nearest}? See \`millrace help formats\``,
    )
  }
  if (options.metaOnly) throw metaOnlyNeedsMeta('a format string')
  return { heading: undefined, write: compileFormatString(text, options.delimiter) }
}

function metaOnlyNeedsMeta(what: string): UsageError {
  return new UsageError(
    `--meta-only does not go with ${what}`,
    'use it with -f json, table or pretty',
  )
}

function rawWriter(delimiter: number): RecordWriter {
  return (_topic, _partition, record, out) => {
    if (record.valueStart >= 0) out.write(record.bytes, record.valueStart, record.valueEnd)
    out.writeByte(delimiter)
  }
}

// ── format strings ────────────────────────────────────────────────────────────────────────────────────────────────

type BytesWriter = (bytes: Uint8Array, start: number, end: number, out: Output) => void
type HeaderWriter = (header: HeaderField, out: Output) => void

const ESCAPES: Readonly<Record<string, number>> = {
  n: 0x0a,
  t: 0x09,
  r: 0x0d,
  '0': 0x00,
  '\\': 0x5c,
}

/**
 * Compiles `%t/%p %o %k %v\n` to a list of writers. Nothing is added at the end of a record but NUL with `-0`.
 * @throws UsageError at a verb or an escape that is not there
 */
export function compileFormatString(text: string, delimiter = 0x0a): RecordWriter {
  const pieces: RecordWriter[] = []
  const literal = (bytes: Uint8Array): void => {
    pieces.push((_topic, _partition, _record, out) => out.write(bytes, 0, bytes.length))
  }
  for (const token of tokensOf(text)) {
    if (token.type === 'literal') literal(token.bytes)
    else pieces.push(compileVerb(token))
  }
  if (delimiter === 0) literal(Uint8Array.of(0))
  return (topic, partition, record, out) => {
    for (const piece of pieces) piece(topic, partition, record, out)
  }
}

type Token =
  | { readonly type: 'literal'; readonly bytes: Uint8Array }
  | { readonly type: 'verb'; readonly verb: string; readonly argument: string | undefined }

type Verb = Extract<Token, { type: 'verb' }>

function tokensOf(text: string): Token[] {
  const tokens: Token[] = []
  let plain: Buffer[] = []
  const endPlain = (): void => {
    if (plain.length > 0) tokens.push({ type: 'literal', bytes: Buffer.concat(plain) })
    plain = []
  }
  let at = 0
  while (at < text.length) {
    const letter = text[at]
    if (letter === '\\') {
      const [byte, used] = readEscape(text, at)
      plain.push(Buffer.of(byte))
      at += used
    } else if (letter === '%') {
      const verb = text[at + 1]
      if (verb === undefined) throw new UsageError('the format ends in a bare %', 'write %% for %')
      at += 2
      if (verb === '%') {
        plain.push(Buffer.from('%'))
        continue
      }
      endPlain()
      let argument: string | undefined
      if (text[at] === '{' && TAKES_ARGUMENT.has(verb)) {
        const end = findClosingBrace(text, at)
        argument = text.slice(at + 1, end)
        at = end + 1
      }
      tokens.push({ type: 'verb', verb, argument })
    } else {
      const next = text.slice(at).search(/[%\\]/)
      const end = next < 0 ? text.length : at + next
      plain.push(Buffer.from(text.slice(at, end)))
      at = end
    }
  }
  endPlain()
  return tokens
}

function readEscape(text: string, at: number): readonly [byte: number, used: number] {
  const letter = text[at + 1] ?? ''
  if (letter === 'x') {
    const digits = text.slice(at + 2, at + 4)
    if (!/^[0-9a-fA-F]{2}$/.test(digits)) {
      throw new UsageError(`\\x${digits} is no byte`, 'write two hexadecimal digits, such as \\x1e')
    }
    return [Number.parseInt(digits, 16), 4]
  }
  const byte = ESCAPES[letter]
  if (byte === undefined) {
    throw new UsageError(`the format has no \\${letter}`, 'it knows \\n \\t \\r \\0 \\\\ and \\xNN')
  }
  return [byte, 2]
}

/** Braces nest: `%h{%k={%v{hex}} }`. */
function findClosingBrace(text: string, open: number): number {
  let depth = 0
  for (let i = open; i < text.length; i++) {
    if (text[i] === '{') depth++
    else if (text[i] === '}' && --depth === 0) return i
  }
  throw new UsageError(`the brace at ${open + 1} of the format is never closed`)
}

const TAKES_ARGUMENT: ReadonlySet<string> = new Set(['k', 'v', 's', 'd', 'h'])

function compileVerb({ verb, argument }: Verb): RecordWriter {
  switch (verb) {
    case 't':
      return (topic, _partition, _record, out) => out.writeText(topic)
    case 'p':
      return (_topic, partition, _record, out) => out.writeText(String(partition))
    case 'o':
      return (_topic, _partition, record, out) => out.writeText(String(record.offset))
    case 'T':
      return (_topic, _partition, record, out) => out.writeText(String(record.timestampMs))
    case 'd': {
      const format = compileTime(argument)
      return (_topic, _partition, record, out) => out.writeText(format(record.timestampMs))
    }
    case 'k': {
      const write = compileBytes(argument)
      return (_topic, _partition, record, out) => {
        if (record.keyStart >= 0) write(record.bytes, record.keyStart, record.keyEnd, out)
        else if (argument === 'json') out.writeText('null')
      }
    }
    case 'v':
    case 's': {
      const write = compileBytes(argument)
      return (_topic, _partition, record, out) => {
        if (record.valueStart >= 0) write(record.bytes, record.valueStart, record.valueEnd, out)
        else if (argument === 'json') out.writeText('null')
      }
    }
    case 'K':
      // As in kcat: -1 tells an absent key from an empty one.
      return (_topic, _partition, record, out) =>
        out.writeText(String(record.keyStart < 0 ? -1 : record.keyEnd - record.keyStart))
    case 'V':
    case 'S':
      return (_topic, _partition, record, out) =>
        out.writeText(String(record.valueStart < 0 ? -1 : record.valueEnd - record.valueStart))
    case 'H':
      return (_topic, _partition, record, out) => out.writeText(String(record.headerCount))
    case 'h':
      return compileHeaders(argument)
    default: {
      throw new UsageError(
        `the format has no %${verb}`,
        'it knows %t %p %o %k %v %s %h %d %T %K %V %S %H and %%; see `millrace help formats`',
      )
    }
  }
}

function compileTime(argument: string | undefined): (timeMs: number) => string {
  if (argument === undefined || argument === 'ms') return String
  if (argument === 'iso') return formatIso
  if (argument === 'unix') return (timeMs) => String(Math.floor(timeMs / 1000))
  if (argument.startsWith('strftime:')) return compileTimePattern(argument.slice(9))
  throw new UsageError(
    `the format has no %d{${argument}}`,
    'it knows %d{iso} %d{unix} %d{ms} and %d{strftime:%F %T}',
  )
}

function compileBytes(argument: string | undefined): BytesWriter {
  switch (argument) {
    case undefined:
    case 'text':
      return (bytes, start, end, out) => out.write(bytes, start, end)
    case 'hex':
      return (bytes, start, end, out) => out.writeText(viewOf(bytes, start, end).toString('hex'))
    case 'base64':
      return (bytes, start, end, out) => out.writeText(viewOf(bytes, start, end).toString('base64'))
    case 'json':
      return writeJson
    default: {
      const nearest = findNearest(argument, ['hex', 'base64', 'json', 'text'], 1)[0]
      throw new UsageError(
        `the format has no {${argument}}`,
        nearest === undefined
          ? 'it knows {hex} {base64} {json} and {text}'
          : `did you mean {${nearest}}?`,
      )
    }
  }
}

/** JSON stays as it is; everything else becomes a JSON string, of text when it is UTF-8, else of base64. */
function writeJson(bytes: Uint8Array, start: number, end: number, out: Output): void {
  if (isInlineJson(bytes, start, end)) {
    out.write(bytes, start, end)
    return
  }
  const view = viewOf(bytes, start, end)
  out.writeText(JSON.stringify(view.toString(isUtf8(view) ? 'utf8' : 'base64')))
}

/** `%h` is `a=1,b=2`; `%h{…}` repeats what is inside for each header, where %k and %v are the header's. */
function compileHeaders(argument: string | undefined): RecordWriter {
  if (argument === undefined) {
    return (_topic, _partition, record, out) => {
      if (record.headerCount === 0) return
      let separator = ''
      for (const header of record.readHeaders()) {
        out.writeText(`${separator}${header.key}=`)
        if (header.value !== undefined) out.write(header.value, 0, header.value.length)
        separator = ','
      }
    }
  }
  const pieces = tokensOf(argument).map(compileHeaderPiece)
  return (_topic, _partition, record, out) => {
    if (record.headerCount === 0) return
    for (const header of record.readHeaders()) for (const piece of pieces) piece(header, out)
  }
}

function compileHeaderPiece(token: Token): HeaderWriter {
  if (token.type === 'literal') {
    const { bytes } = token
    return (_header, out) => out.write(bytes, 0, bytes.length)
  }
  const { verb, argument } = token
  switch (verb) {
    case 'k': {
      const write = compileBytes(argument)
      return (header, out) => {
        const bytes = Buffer.from(header.key)
        write(bytes, 0, bytes.length, out)
      }
    }
    case 'v':
    case 's': {
      const write = compileBytes(argument)
      return (header, out) => {
        if (header.value !== undefined) write(header.value, 0, header.value.length, out)
      }
    }
    case 'K':
      return (header, out) => out.writeText(String(Buffer.byteLength(header.key)))
    case 'V':
    case 'S':
      return (header, out) => out.writeText(String(header.value?.length ?? -1))
    default: {
      throw new UsageError(`inside %h{…} there is no %${verb}`, 'it knows %k %v %s %K %V %S and %%')
    }
  }
}

// ── for people ────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * Text that a terminal may be given: no control character of the data reaches it, so that no record can move the cursor,
 * change colours or set the window's title.
 */
export function toPrintable(bytes: Uint8Array): string {
  const view = viewOf(bytes, 0, bytes.length)
  if (!isUtf8(view)) return `0x${view.toString('hex')}`
  return escapeControls(view.toString('utf8'))
}

/** Control characters (C0, DEL, C1), line separators and direction marks as escapes; the rest as it is. */
export function escapeControls(text: string): string {
  return text.replaceAll(CONTROLS, (letter) => {
    if (letter === '\n') return '\\n'
    if (letter === '\t') return '\\t'
    if (letter === '\r') return '\\r'
    const code = letter.charCodeAt(0)
    return code <= 0xff
      ? `\\x${code.toString(16).padStart(2, '0')}`
      : `\\u${code.toString(16).padStart(4, '0')}`
  })
}

const CONTROLS =
  // Control characters are what this is about.
  // oxlint-disable-next-line no-control-regex
  /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g

function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`
}

function slice(record: RecordFields, start: number, end: number): Uint8Array {
  return record.bytes.subarray(start, end)
}

function prettyHeaders(record: RecordFields): string {
  if (record.headerCount === 0) return ''
  return record
    .readHeaders()
    .map(
      (header) =>
        `${escapeControls(header.key)}=${header.value === undefined ? '' : toPrintable(header.value)}`,
    )
    .join(' ')
}

function prettyWriter(options: FormatOptions): RecordWriter {
  const paint = (colour: 'dim' | 'cyan' | 'yellow', text: string): string =>
    options.colour ? styleText(colour, text, { validateStream: false }) : text
  return (topic, partition, record, out) => {
    const place = `${topic}/${partition}:${record.offset}`
    const parts = [paint('dim', `${formatIso(record.timestampMs)}  ${place}`)]
    if (options.metaOnly) parts.push(sizesOf(record))
    else {
      if (record.keyStart >= 0) {
        parts.push(paint('cyan', toPrintable(slice(record, record.keyStart, record.keyEnd))))
      }
      if (record.headerCount > 0) parts.push(paint('yellow', `[${prettyHeaders(record)}]`))
      parts.push(
        record.valueStart < 0
          ? paint('dim', '(tombstone)')
          : toPrintable(slice(record, record.valueStart, record.valueEnd)),
      )
    }
    out.writeText(parts.join('  '))
    out.writeByte(options.delimiter)
  }
}

function sizesOf(record: RecordFields): string {
  const key = record.keyStart < 0 ? 'none' : `${record.keyEnd - record.keyStart}B`
  const value = record.valueStart < 0 ? 'none' : `${record.valueEnd - record.valueStart}B`
  return `key ${key}  value ${value}  headers ${record.headerCount}`
}

const PLACE_WIDTH = 24
const TIME_WIDTH = 24
const KEY_WIDTH = 20

function tableFormat(options: FormatOptions): RecordFormat {
  const left = PLACE_WIDTH + TIME_WIDTH + KEY_WIDTH + 6
  const valueWidth = options.columns === undefined ? Infinity : Math.max(16, options.columns - left)
  const row = (place: string, time: string, key: string, value: string): string =>
    `${place.padEnd(PLACE_WIDTH)}  ${time.padEnd(TIME_WIDTH)}  ${key.padEnd(KEY_WIDTH)}  ${value}`
  return {
    heading: row('PLACE', 'TIME', 'KEY', options.metaOnly ? 'SIZES' : 'VALUE'),
    write: (topic, partition, record, out) => {
      const key =
        record.keyStart < 0 || options.metaOnly
          ? '-'
          : cut(toPrintable(slice(record, record.keyStart, record.keyEnd)), KEY_WIDTH)
      const value = options.metaOnly
        ? sizesOf(record)
        : record.valueStart < 0
          ? '(tombstone)'
          : cut(toPrintable(slice(record, record.valueStart, record.valueEnd)), valueWidth)
      out.writeText(
        row(`${topic}/${partition}:${record.offset}`, formatIso(record.timestampMs), key, value),
      )
      out.writeByte(options.delimiter)
    },
  }
}
