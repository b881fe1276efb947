import { Writable } from 'node:stream'
import { pino } from 'pino'
import type { LogFormat, LogLevel } from './config.ts'

type Facts = Readonly<Record<string, unknown>>

/** The log that every part gets: facts first, then one sentence. */
export interface Logger {
  debug(facts: Facts, message: string): void
  info(facts: Facts, message: string): void
  warn(facts: Facts, message: string): void
  error(facts: Facts, message: string): void
}

export interface LoggerOptions {
  readonly level: LogLevel
  /** `auto`: pretty on a terminal, else JSON. */
  readonly format: LogFormat
  readonly stream: NodeJS.WritableStream & { readonly isTTY?: boolean | undefined }
}

/** pino, as JSON lines or, on a terminal, as text by the small printer below. Control characters are escaped in both. */
export function makeLogger(options: LoggerOptions): Logger {
  const { stream } = options
  const pretty = options.format === 'pretty' || (options.format === 'auto' && stream.isTTY === true)
  const settings = {
    level: options.level,
    base: null,
    messageKey: 'message',
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
    serializers: { error: pino.stdSerializers.err, cause: pino.stdSerializers.err },
  }
  const target = pretty ? prettyStream(stream, stream.isTTY === true) : stream
  return pino(settings, target)
}

/** A log that says nothing: for tests and short-lived tools. */
export const silentLogger: Logger = {
  debug() {},
  info() {},
  warn() {},
  error() {},
}

const COLOUR_OF: Readonly<Record<string, string>> = {
  trace: '90',
  debug: '90',
  info: '32',
  warn: '33',
  error: '31',
  fatal: '31',
}

function prettyStream(out: NodeJS.WritableStream, colour: boolean): Writable {
  return new Writable({
    decodeStrings: false,
    write(chunk: string | Buffer, _encoding, done) {
      const text = chunk.toString()
      const lines = text.split('\n').filter((line) => line !== '')
      out.write(lines.map((line) => `${formatLogLine(line, colour)}\n`).join(''), () => done())
    },
  })
}

/** One JSON line of pino as text: time, level, message, then the facts. A line that is no JSON stays as it is. */
export function formatLogLine(line: string, colour: boolean): string {
  let entry: unknown
  try {
    entry = JSON.parse(line)
  } catch {
    return escapeControls(line)
  }
  if (typeof entry !== 'object' || entry === null) return escapeControls(line)
  const facts: Record<string, unknown> = { ...entry }
  const { time, level, message } = facts
  delete facts['time']
  delete facts['level']
  delete facts['message']
  const paint = (code: string, text: string): string =>
    colour ? `\u001b[${code}m${text}\u001b[0m` : text
  const levelText = typeof level === 'string' ? level : 'info'
  const parts = [
    paint('90', typeof time === 'string' ? time.slice(11, 23) : ''),
    paint(COLOUR_OF[levelText] ?? '0', levelText.toUpperCase().padEnd(5)),
    escapeControls(typeof message === 'string' ? message : ''),
  ]
  for (const [name, value] of Object.entries(facts)) {
    const text = typeof value === 'string' ? value : JSON.stringify(value)
    parts.push(`${paint('90', `${escapeControls(name)}=`)}${escapeControls(text)}`)
  }
  return parts.join(' ')
}

/** Nothing that a client sends may move the cursor, colour the screen or begin a line of a log. */
export function escapeControls(text: string): string {
  // eslint-disable-next-line no-control-regex -- they are what is looked for
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, (character) => {
    const code = character.charCodeAt(0)
    return code < 0x100
      ? `\\x${code.toString(16).padStart(2, '0')}`
      : `\\u${code.toString(16).padStart(4, '0')}`
  })
}
