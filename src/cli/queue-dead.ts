import { ask, canAsk } from './confirm.ts'
import { envelopeText } from './envelope.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, EXIT_FAILED, EXIT_USAGE, say } from './io.ts'
import { formatCount } from './progress-line.ts'
import { isOffsetText, toFilter, toRecordPlace } from './queue-arguments.ts'
import type { FilterArguments } from './queue-arguments.ts'
import { checkPlaceWords, findDeadLetters, nameOfPlace, withQueueHints } from './queue-hints.ts'
import type { QueueCommands } from './queue-hints.ts'
import { cut, withRecord } from './queues.ts'
import { fieldsOf } from './record-fields.ts'
import { escapeControls, toPrintable } from './record-format.ts'
import { withClient } from './session.ts'
import { formatTable } from './text-table.ts'
import { formatIso } from './time-format.ts'
import { print } from './topics.ts'
import type { AdminOptions } from './topics.ts'
import { UsageError } from './usage-error.ts'
import { MillraceError } from '../client/index.ts'
import type { DeadLetterFilter, DeadLetterInfo, DeadLetterPlace } from '../client/index.ts'

// ── what is to happen, and whether it may ─────────────────────────────────────────────────────────────────────────

export interface ConsentOptions {
  readonly yes: boolean
  readonly dryRun: boolean
}

/** What a person, or an option in their place, has said to a plan. */
export type Consent = 'go' | 'dry-run' | 'refused' | 'nobody'

/** Asks on a terminal; a script has to have said --yes or --dry-run. */
export async function findConsent(
  io: CliIo,
  options: ConsentOptions,
  question: string,
): Promise<Consent> {
  if (options.dryRun) return 'dry-run'
  if (options.yes) return 'go'
  if (!canAsk(io)) return 'nobody'
  return (await ask(io, question)) ? 'go' : 'refused'
}

/** How a command ends that has not been allowed to do anything. */
export function endWithout(io: CliIo, consent: Exclude<Consent, 'go'>): number {
  if (consent === 'dry-run') return EXIT_DONE
  if (consent === 'refused') return EXIT_FAILED
  say(io, 'error: nothing was changed: there is nobody here to ask')
  say(io, 'hint: --yes does what the plan says; --dry-run only shows it, and ends with 0')
  return EXIT_USAGE
}

/** Errors about a place name the group where there is one. */
export function withPlaceHints<T>(
  admin: QueueCommands,
  place: DeadLetterPlace,
  work: () => Promise<T>,
): Promise<T> {
  return typeof place === 'string' ? work() : withQueueHints(admin, place.group, work)
}

export function countLetters(count: number): string {
  return `${formatCount(count)} dead ${count === 1 ? 'letter' : 'letters'}`
}

// ── list ──────────────────────────────────────────────────────────────────────────────────────────────────────────

export interface ListDeadOptions extends AdminOptions, FilterArguments {
  /** Also those that have been redriven or discarded. */
  readonly all: boolean
}

/** A table has to be held in memory, and nobody reads more of it. */
const MOST_ROWS = 100

export function listDead(
  io: CliIo,
  words: readonly string[],
  options: ListDeadOptions,
): Promise<number> {
  checkPlaceWords(words)
  const filter = toFilter(options)
  return withClient(io, options, ({ admin }) => showDead(io, admin, words, filter, options))
}

/** In JSON one line for each, with the record's envelope as `record`, however many there are. */
export async function showDead(
  io: CliIo,
  admin: QueueCommands,
  words: readonly string[],
  filter: DeadLetterFilter,
  options: Pick<ListDeadOptions, 'format' | 'all'>,
): Promise<number> {
  const place = await findDeadLetters(admin, words)
  const isJson = options.format === 'json'
  const most = filter.limit ?? (isJson ? Infinity : MOST_ROWS)
  const letters: DeadLetterInfo[] = []
  let count = 0
  let hasMore = false
  await withPlaceHints(admin, place, async () => {
    const limit = most === Infinity ? undefined : most + (filter.limit === undefined ? 1 : 0)
    const found = admin.deadLetters(place, { ...filter, limit, includeSettled: options.all })
    for await (const letter of found) {
      if (count >= most) {
        hasMore = true
        break
      }
      // Nobody reads any more.
      if (io.stdout.destroyed) break
      count++
      if (!isJson) letters.push(letter)
      else if (!io.stdout.write(`${letterText(letter)}\n`)) await drained(io)
    }
  })
  if (isJson) return EXIT_DONE
  io.stdout.write(letterTable(letters, io))
  if (hasMore) say(io, `the first ${MOST_ROWS}; -n shows more of them, --format json shows all`)
  return EXIT_DONE
}

/** Somebody reads slowly, or not at all any more. */
export function drained(io: CliIo): Promise<void> {
  const { stdout } = io
  return new Promise((resolve) => {
    if (!stdout.writableNeedDrain || stdout.destroyed) {
      resolve()
      return
    }
    const done = (): void => {
      stdout.off('drain', done)
      stdout.off('error', done)
      stdout.off('close', done)
      resolve()
    }
    stdout.once('drain', done)
    stdout.once('error', done)
    stdout.once('close', done)
  })
}

export function letterTable(letters: readonly DeadLetterInfo[], io: CliIo): string {
  const width = io.stdout.isTTY === true ? 60 : Infinity
  return formatTable(
    [
      { name: 'LETTER', align: 'right' },
      { name: 'DIED' },
      { name: 'RECORD' },
      { name: 'REASON' },
      { name: 'FAILURES', align: 'right' },
      { name: 'ERROR' },
    ],
    letters.map((letter) => [
      `${letter.partition}:${letter.record.offset}`,
      formatIso(letter.lastFailedAt),
      `${letter.sourceTopic}/${letter.sourcePartition}:${letter.sourceOffset}`,
      letter.settled ? `${letter.reason}, settled` : letter.reason,
      String(letter.failures),
      cut(errorOf(letter), width),
    ]),
  )
}

function errorOf({ error }: DeadLetterInfo): string {
  return [error.type, error.message].filter((text) => text !== '').join(': ')
}

/** JSON of a letter, with the envelope of its record. */
export function letterText(letter: DeadLetterInfo): string {
  const { record, ...facts } = letter
  const envelope = envelopeText(letter.topic, letter.partition, fieldsOf(record))
  return withRecord({ ...facts, offset: record.offset }, envelope).trimEnd()
}

// ── show ──────────────────────────────────────────────────────────────────────────────────────────────────────────

export function showDeadLetter(
  io: CliIo,
  words: readonly string[],
  options: AdminOptions,
): Promise<number> {
  toLetterWords(words)
  return withClient(io, options, ({ admin }) => showLetter(io, admin, words, options))
}

/** `DLQ 0:3`, `GROUP TOPIC 0:3`, `DLQ/0:3`: whose letters, and which. @throws UsageError */
function toLetterWords(words: readonly string[]): {
  readonly whose: readonly string[]
  readonly partition: number
  readonly offset: number
} {
  const last = words.at(-1)
  if (words.length === 1 && last?.includes('/') === true) {
    const { topic, partition, offset } = toRecordPlace([last])
    return { whose: [topic], partition, offset }
  }
  if (last === undefined || words.length < 2 || words.length > 3 || !isOffsetText(last)) {
    throw new UsageError(
      'which dead letter?',
      'write DLQ PARTITION:OFFSET or GROUP TOPIC PARTITION:OFFSET, as the first column of `millrace queue dead list` has it',
    )
  }
  const { partition, offset } = toRecordPlace(['letters', last])
  return { whose: words.slice(0, -1), partition, offset }
}

export async function showLetter(
  io: CliIo,
  admin: QueueCommands,
  words: readonly string[],
  options: AdminOptions,
): Promise<number> {
  const { whose, partition, offset } = toLetterWords(words)
  const place = await findDeadLetters(admin, whose)
  const letter = await withPlaceHints(admin, place, () =>
    findLetter(admin, place, partition, offset),
  )
  if (options.format === 'json') {
    io.stdout.write(`${letterText(letter)}\n`)
    return EXIT_DONE
  }
  const { record, error } = letter
  const facts: [name: string, value: string][] = [
    ['letter', `${letter.topic}/${letter.partition}:${record.offset}`],
    ['record', `${letter.sourceTopic}/${letter.sourcePartition}:${letter.sourceOffset}`],
    ['group', letter.group],
    ['reason', letter.settled ? `${letter.reason}; redriven or discarded since` : letter.reason],
    [
      'tries',
      `deliveries ${letter.deliveries}, failures ${letter.failures}, redrives ${letter.redrives}`,
    ],
    ['first', formatIso(letter.firstFailedAt)],
    ['last', formatIso(letter.lastFailedAt)],
    ['worker', letter.memberId === '' ? '-' : letter.memberId],
    ['error', errorOf(letter)],
  ]
  for (const line of error.stack === '' ? [] : error.stack.split('\n')) facts.push(['', line])
  facts.push(['key', record.key === undefined ? '-' : toPrintable(record.key)])
  for (const [name, value] of Object.entries(record.headers)) {
    if (name.startsWith('dlq.')) continue
    const text = typeof value === 'string' ? value : toPrintable(value)
    facts.push(['header', `${name}=${text}`])
  }
  facts.push(['value', record.value === null ? '(tombstone)' : toPrintable(record.value)])
  io.stdout.write(
    facts
      .map(([name, value]) => `${name.padEnd(8)}  ${escapeControls(value)}`.trimEnd() + '\n')
      .join(''),
  )
  return EXIT_DONE
}

async function findLetter(
  admin: QueueCommands,
  place: DeadLetterPlace,
  partition: number,
  offset: number,
): Promise<DeadLetterInfo> {
  const range = { firstOffset: offset, endOffset: offset + 1, includeSettled: true }
  for await (const letter of admin.deadLetters(place, range)) {
    if (letter.partition === partition) return letter
  }
  throw new MillraceError(
    'OFFSET_OUT_OF_RANGE',
    `there is no dead letter ${partition}:${offset} of ${nameOfPlace(place)}`,
    { partition, offset, hint: '`millrace queue dead list` shows those that are there' },
  )
}

// ── discard ───────────────────────────────────────────────────────────────────────────────────────────────────────

export interface DiscardOptions extends AdminOptions, FilterArguments, ConsentOptions {}

export function discardDead(
  io: CliIo,
  words: readonly string[],
  options: DiscardOptions,
): Promise<number> {
  checkPlaceWords(words)
  const filter = toFilter(options)
  return withClient(io, options, ({ admin }) => performDiscard(io, admin, words, filter, options))
}

/** They stay where they are, to be read; nothing redrives them any more. */
export async function performDiscard(
  io: CliIo,
  admin: QueueCommands,
  words: readonly string[],
  filter: DeadLetterFilter,
  options: ConsentOptions & AdminOptions,
): Promise<number> {
  const place = await findDeadLetters(admin, words)
  const name = nameOfPlace(place)
  const planned = await withPlaceHints(admin, place, () =>
    admin.discardDeadLetters(place, { ...filter, dryRun: true }),
  )
  const finish = (discarded: number, text: string): void => {
    const facts = { place: name, found: planned.discarded, dryRun: options.dryRun, discarded }
    print(io, options, facts, text)
  }
  const what = `${countLetters(planned.discarded)} of ${name}`
  if (planned.discarded === 0) {
    finish(0, `nothing to discard in ${name}\n`)
    return EXIT_DONE
  }
  const consent = await findConsent(io, options, `discard ${what}?`)
  if (consent !== 'go') {
    finish(0, `${what} would be discarded\n`)
    return endWithout(io, consent)
  }
  const { discarded } = await withPlaceHints(admin, place, () =>
    admin.discardDeadLetters(place, { ...filter, dryRun: false }),
  )
  finish(discarded, `${countLetters(discarded)} of ${name} discarded\n`)
  return EXIT_DONE
}
