import { isUtf8 } from 'node:buffer'
import type { RecordFields } from './record-fields.ts'
import { viewOf } from './record-fields.ts'
import { UsageError } from './usage-error.ts'

export type RecordFilter = (record: RecordFields) => boolean

export interface FilterOptions {
  /** A regular expression for the value. */
  readonly grep?: string | undefined
  readonly ignoreCase: boolean
  /** The key, exactly. */
  readonly key?: string | undefined
  /** `name` or `name=value`; all must hold. */
  readonly headers: readonly string[]
}

/**
 * What a record must pass to be shown, or undefined when everything passes.
 * @throws UsageError when the pattern is no regular expression
 */
export function compileFilter(options: FilterOptions): RecordFilter | undefined {
  const tests: RecordFilter[] = []
  if (options.key !== undefined) tests.push(keyFilter(options.key))
  for (const header of options.headers) tests.push(headerFilter(header))
  if (options.grep !== undefined) tests.push(grepFilter(options.grep, options.ignoreCase))
  const [first] = tests
  if (first === undefined) return undefined
  return tests.length === 1 ? first : (record) => tests.every((test) => test(record))
}

function keyFilter(key: string): RecordFilter {
  const wanted = Buffer.from(key)
  return ({ bytes, keyStart, keyEnd }) =>
    keyStart >= 0 &&
    keyEnd - keyStart === wanted.length &&
    wanted.equals(viewOf(bytes, keyStart, keyEnd))
}

function headerFilter(text: string): RecordFilter {
  const at = text.indexOf('=')
  const name = at < 0 ? text : text.slice(0, at)
  if (name === '')
    throw new UsageError(`--header ${text} names no header`, 'write name or name=value')
  const wanted = at < 0 ? undefined : Buffer.from(text.slice(at + 1))
  return (record) =>
    record.headerCount > 0 &&
    record
      .readHeaders()
      .some(
        (header) =>
          header.key === name &&
          (wanted === undefined || (header.value !== undefined && wanted.equals(header.value))),
      )
}

/** Letters that mean only themselves in a regular expression. */
const PLAIN_PATTERN = /^[^\\^$.*+?()[\]{}|]+$/

function grepFilter(pattern: string, ignoreCase: boolean): RecordFilter {
  if (!ignoreCase && PLAIN_PATTERN.test(pattern)) {
    // No text is made of a value when bytes can be compared: five times as fast, and right for any bytes.
    const wanted = Buffer.from(pattern)
    return ({ bytes, valueStart, valueEnd }) =>
      valueStart >= 0 && viewOf(bytes, valueStart, valueEnd).includes(wanted)
  }
  let expression: RegExp
  try {
    expression = new RegExp(pattern, ignoreCase ? 'iu' : 'u')
  } catch (error) {
    throw new UsageError(
      `--grep ${pattern} is no regular expression: ${error instanceof Error ? error.message : String(error)}`,
    )
  }
  return ({ bytes, valueStart, valueEnd }) => {
    if (valueStart < 0) return false
    const view = viewOf(bytes, valueStart, valueEnd)
    return expression.test(view.toString(isUtf8(view) ? 'utf8' : 'latin1'))
  }
}
