import { CommanderError } from 'commander'
import type { CliIo } from './io.ts'
import {
  EXIT_DIRECTORY_IN_USE,
  EXIT_DONE,
  EXIT_FAILED,
  EXIT_STORAGE_FAILED,
  EXIT_USAGE,
  say,
} from './io.ts'
import { escapeControls } from './record-format.ts'
import { ExitError, UsageError } from './usage-error.ts'
import { BrokerError, findSystemCode } from '../common/errors.ts'
import type { Action, ErrorCode } from '../common/errors.ts'

/** What helps a person at a command line, where more can be said than the remedy's word. */
const HINT_OF_CODE: Partial<Record<ErrorCode, string>> = {
  UNREACHABLE:
    'is a broker running there? `millrace serve` starts one; --server HOST:PORT or MILLRACE_SERVER names another',
  UNKNOWN_TOPIC:
    '`millrace topic list` shows what there is; `millrace topic create NAME` makes one',
  TOPIC_EXISTS: '`millrace topic describe NAME` shows it; --if-not-exists is content with any',
  OFFSET_OUT_OF_RANGE: '`millrace tail TOPIC --offsets` shows which offsets are there',
  SEGMENT_QUARANTINED:
    'a range of the log is damaged; `-o` with the next good offset reads on after it, `millrace dump` looks at the file',
  DIRECTORY_IN_USE: 'stop the other broker, or give this one its own directory with --data',
  ADDRESS_IN_USE: 'use another port with --listen HOST:PORT; port 0 takes a free one',
  STORAGE_FULL: 'make room on the disk, or delete records; the broker goes on by itself',
  RECORD_TOO_LARGE: '`millrace topic alter NAME --set max.message.bytes=…` raises the limit',
  INVALID_PATTERN:
    "the broker matches names by RE2 expressions: no look-around, no back references; '^orders-.*' is one",
  UNKNOWN_GROUP:
    '`millrace group list` shows what there is; `millrace tail TOPIC -g NAME` makes one',
  GROUP_NOT_EMPTY:
    'stop its members first; `millrace group describe NAME` shows them. One that was killed counts until its session has run out',
  GROUP_SUBSCRIBED: 'a member reads that topic; `millrace group describe NAME` shows which',
  GROUP_TYPE_MISMATCH:
    'a name belongs to a stream group (`tail -g`) or to a queue group (`work -g`) for life; `millrace group list` shows which, another name is free',
  GROUP_FULL: 'more members than the broker allows; `serve --group-max-size` is its limit',
  INSTANCE_ID_IN_USE:
    'another process reads with this --instance-id; give each its own, or stop that one (a killed one counts until its session has run out)',
  INSTANCE_FENCED: 'another process has come with the same --instance-id, and has taken over',
  WRONG_EXPECTED_OFFSET: 'somebody else has moved it meanwhile; look again, then try again',
  COMMIT_TIMEOUT: 'try again; the offsets may or may not have been committed',
  INVALID_BACKOFF: 'write none, fixed:5s, linear:500ms, exponential:1s or list:1s,5s,1m',
  DELAY_TOO_LONG: '`millrace topic alter NAME --set delay.max.ms=…` raises the limit, up to 400d',
  INVALID_CONFIG:
    '`millrace queue config GROUP` and `millrace topic describe NAME` show names, values and ranges',
  DLQ_CYCLE: 'dead letters may go through two topics at most; name another one with dlq.topic',
  NOT_A_DLQ:
    'a topic of dead letters carries the setting dlq=true; `millrace queue describe GROUP` names those of a group',
  DLQ_UNAVAILABLE:
    'dead letters cannot be written; `millrace queue describe GROUP` shows more, and so does the log of the broker',
  REDRIVE_IN_PROGRESS:
    '`millrace queue redrive list` shows it, `millrace queue redrive cancel ID` ends it',
  TASK_NOT_FOUND: '`millrace queue redrive list` shows those under way, and the last ones',
  DELAY_NOT_FOUND: '`millrace queue delayed list` shows what waits',
  ALREADY_FIRED: 'it does not wait any more; `millrace queue delayed list` shows what does',
  DEDUPE_MISMATCH: 'the first record with this id had other bytes; another id sends this one, too',
  LEASE_LOST: 'the worker was silent for too long; others have the record now',
  UNSUPPORTED_CODEC: '`millrace version` shows which codecs this installation has',
}

const HINT_OF_ACTION: Readonly<Record<Action, string | undefined>> = {
  none: undefined,
  retry: 'try again; this may pass',
  retry_after: 'try again later',
  refresh: '`millrace topic list` and `millrace topic describe NAME` show what there is',
  rejoin: 'start the command anew',
  new_producer: 'start the command anew',
  fix: undefined,
}

/** Says what went wrong, in one line and a hint, and gives the exit code that stands for it. */
export function reportError(io: CliIo, error: unknown): number {
  if (error instanceof CommanderError) return reportCommander(io, error)
  if (findSystemCode(error) === 'EPIPE') return EXIT_DONE
  const message = error instanceof Error ? error.message : String(error)
  // The first line is the error; a grammar may follow it.
  const [first = '', ...rest] = message.split('\n')
  const code = error instanceof BrokerError ? ` (${error.code})` : ''
  say(io, `error: ${escapeControls(first)}${code}`)
  for (const line of rest) say(io, escapeControls(line))
  const hint = hintOf(error)
  if (hint !== undefined) say(io, `hint: ${escapeControls(hint)}`)
  if (io.env['MILLRACE_DEBUG'] !== undefined && error instanceof Error) {
    say(io, error.stack ?? message)
    if (error.cause instanceof Error) say(io, `caused by: ${error.cause.stack ?? ''}`)
  }
  return exitCodeOf(error)
}

function hintOf(error: unknown): string | undefined {
  if (error instanceof UsageError || error instanceof ExitError) return error.hint
  if (!(error instanceof BrokerError)) return undefined
  const hint = error.details['hint']
  if (typeof hint === 'string') return hint
  const nearest = nearestOf(error)
  if (nearest !== undefined) return `did you mean ${nearest}?`
  if (error.message.includes('did you mean')) return undefined
  return HINT_OF_CODE[error.code] ?? HINT_OF_ACTION[error.action]
}

/** Over the wire a list arrives as one text. */
function nearestOf(error: BrokerError): string | undefined {
  const nearest = error.details['nearest']
  if (typeof nearest === 'string') return nearest === '' ? undefined : nearest
  if (Array.isArray(nearest) && nearest.length > 0) return nearest.join(' or ')
  return undefined
}

function exitCodeOf(error: unknown): number {
  if (error instanceof UsageError) return EXIT_USAGE
  if (error instanceof ExitError) return error.exitCode
  if (!(error instanceof BrokerError)) return EXIT_FAILED
  switch (error.code) {
    case 'DIRECTORY_IN_USE':
      return EXIT_DIRECTORY_IN_USE
    case 'FLUSH_FAILED':
      return EXIT_STORAGE_FAILED
    case 'INVALID_POSITION':
      return EXIT_USAGE
    default:
      return EXIT_FAILED
  }
}

/** commander has printed help and versions by itself; its complaints are ours to print. */
function reportCommander(io: CliIo, error: CommanderError): number {
  if (error.exitCode === EXIT_DONE) return EXIT_DONE
  if (error.code === 'commander.help') return EXIT_USAGE
  const [first = '', suggestion] = error.message.split('\n')
  say(io, `error: ${escapeControls(first.replace(/^error: /, ''))}`)
  const match = /^\(Did you mean (.+)\?\)$/.exec(suggestion ?? '')
  const about = first.includes("'-f, --format")
    ? '-f is the format; `tail -o -10` shows the last 10 of each partition and goes on'
    : undefined
  say(
    io,
    `hint: ${match === null ? (about ?? 'see `millrace --help`') : `did you mean ${match[1]}?`}`,
  )
  return EXIT_USAGE
}
