import type { CliIo } from './io.ts'
import { compileFilter } from './record-filter.ts'
import type { RecordFilter } from './record-filter.ts'
import { compileFormat } from './record-format.ts'
import type { RecordFormat } from './record-format.ts'
import { UsageError } from './usage-error.ts'

/** What `tail` shows, and how, however it reads. */
export interface TailOutputOptions {
  readonly num?: number | undefined
  /** Undefined: pretty on a terminal, JSON lines elsewhere. */
  readonly format?: string | undefined
  readonly grep?: string | undefined
  readonly ignoreCase: boolean
  readonly key?: string | undefined
  readonly header: readonly string[]
  readonly exec?: string | undefined
  readonly null: boolean
  readonly metaOnly: boolean
}

export interface TailOutput {
  readonly format: RecordFormat
  /** Undefined: everything passes. */
  readonly filter: RecordFilter | undefined
  /** How many records to show. */
  readonly limit: number
}

/** @throws UsageError when the options make no sense */
export function compileOutput(io: CliIo, options: TailOutputOptions): TailOutput {
  const isTerminal = io.stdout.isTTY === true
  if (options.exec !== undefined && options.format !== undefined) {
    throw new UsageError(
      '--exec and --format contradict each other',
      'what the command prints is what is shown; it finds the rest in MILLRACE_TOPIC, MILLRACE_OFFSET …',
    )
  }
  const filter = compileFilter({ ...options, headers: options.header })
  const format = compileFormat(options.format ?? (isTerminal ? 'pretty' : 'json'), {
    delimiter: options.null ? 0 : 0x0a,
    metaOnly: options.metaOnly,
    colour: isTerminal && io.env['NO_COLOR'] === undefined,
    columns: isTerminal ? io.stdout.columns : undefined,
  })
  return { format, filter, limit: options.num ?? Infinity }
}
