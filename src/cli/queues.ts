import { toPairs } from './arguments.ts'
import { envelopeText } from './envelope.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE } from './io.ts'
import { formatCount } from './progress-line.ts'
import { toRecordPlace } from './queue-arguments.ts'
import { withQueueHints } from './queue-hints.ts'
import type { QueueCommands } from './queue-hints.ts'
import { fieldsOf } from './record-fields.ts'
import { toPrintable } from './record-format.ts'
import { repeat } from './repeat.ts'
import { withClient } from './session.ts'
import { formatTable } from './text-table.ts'
import { formatAge, formatIso } from './time-format.ts'
import { print } from './topics.ts'
import type { AdminOptions } from './topics.ts'
import { UsageError } from './usage-error.ts'
import type {
  QueueInfo,
  QueuePartitionInfo,
  QueueRecordState,
  RecordExplanation,
} from '../client/index.ts'

/** What a record is now, in words that fit a column. */
export const STATE_WORDS: Readonly<Record<QueueRecordState, string>> = {
  unscanned: 'ready',
  available: 'ready',
  acquired: 'with a worker',
  parked: 'to be retried',
  'dead-lettering': 'becoming a dead letter',
  blocked: 'blocked',
  done: 'done',
  dead: 'dead',
  gone: 'gone',
  'not-yet': 'not there yet',
}

// ── describe ──────────────────────────────────────────────────────────────────────────────────────────────────────

export interface DescribeQueueOptions extends AdminOptions {
  /** Only what is named; nothing named: members and partitions, and settings that are the group's own. */
  readonly members: boolean
  readonly partitions: boolean
  readonly config: boolean
  readonly watchMs?: number | undefined
}

export function describeQueue(
  io: CliIo,
  group: string,
  options: DescribeQueueOptions,
): Promise<number> {
  return withClient(io, options, ({ admin }) => showQueue(io, admin, group, options))
}

export function showQueue(
  io: CliIo,
  admin: QueueCommands,
  group: string,
  options: DescribeQueueOptions,
): Promise<number> {
  return repeat(io, options.watchMs, async (dress) => {
    const info = await withQueueHints(admin, group, () => admin.describeQueue(group))
    print(io, options, factsOf(info), dress(formatQueue(info, options)))
  })
}

function partitionsOf(info: QueueInfo): readonly QueuePartitionInfo[] {
  return info.topics.flatMap(({ partitions }) => partitions)
}

function totalsOf(info: QueueInfo): Record<(typeof COUNTED)[number], number> {
  const totals = { ready: 0, acquired: 0, parked: 0, deadLettering: 0, blocked: 0 }
  for (const row of partitionsOf(info)) for (const name of COUNTED) totals[name] += row[name]
  return totals
}

const COUNTED = ['ready', 'acquired', 'parked', 'deadLettering', 'blocked'] as const

function factsOf(info: QueueInfo): object {
  return {
    ...info,
    pausedUntil: info.pausedUntil ?? null,
    throttledUntil: info.throttledUntil ?? null,
    totals: totalsOf(info),
    topics: info.topics.map((topic) => ({
      ...topic,
      partitions: topic.partitions.map(({ error, oldestReadyMs, ...row }) => ({
        ...row,
        oldestReadyMs: oldestReadyMs ?? null,
        error: error === undefined ? null : { code: error.code, message: error.message },
      })),
    })),
  }
}

function formatQueue(info: QueueInfo, options: DescribeQueueOptions): string {
  const isAll = !options.members && !options.partitions && !options.config
  const sections = [summaryOf(info)]
  if ((isAll || options.members) && info.members.length > 0) sections.push(memberTable(info))
  if ((isAll || options.partitions) && info.topics.length > 0) sections.push(partitionTable(info))
  const config = options.config ? info.config : info.config.filter((row) => row.overridden)
  if ((isAll || options.config) && config.length > 0) {
    sections.push(configTable(config, options.config))
  }
  return sections.join('\n')
}

function summaryOf(info: QueueInfo): string {
  const totals = totalsOf(info)
  const oldest = Math.max(0, ...partitionsOf(info).map(({ oldestReadyMs }) => oldestReadyMs ?? 0))
  const members = info.members.length
  const gone = info.members.filter(({ connected }) => !connected).length
  const facts: [name: string, value: string][] = [
    ['group', info.group],
    ['type', 'queue'],
    ['state', stateOf(info)],
    ['workers', `${formatCount(members)}${gone === 0 ? '' : `, ${gone} of them gone`}`],
    [
      'ready',
      `${formatCount(totals.ready)}${oldest > 0 ? `, for up to ${formatAge(oldest)}` : ''}`,
    ],
    ['in hand', formatCount(totals.acquired)],
    ['to retry', formatCount(totals.parked)],
  ]
  if (totals.blocked > 0) facts.push(['blocked', formatCount(totals.blocked)])
  if (totals.deadLettering > 0) facts.push(['dying', formatCount(totals.deadLettering)])
  const { counters } = info
  const counted = Object.entries(counters).filter(([, count]) => count > 0)
  if (counted.length > 0) {
    facts.push([
      'so far',
      counted.map(([name, count]) => `${formatCount(count)} ${wordsOf(name)}`).join(', '),
    ])
  }
  for (const note of notesOf(info)) facts.push(['note', note])
  return facts.map(([name, value]) => `${name.padEnd(8)}  ${value}\n`).join('')
}

/** `deadLettered` is `dead lettered`. */
function wordsOf(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)
}

function stateOf(info: QueueInfo): string {
  if (info.paused) {
    return info.pausedUntil === undefined ? 'paused' : `paused until ${formatIso(info.pausedUntil)}`
  }
  return info.members.length === 0 ? 'nobody works' : 'working'
}

function notesOf(info: QueueInfo): string[] {
  const notes: string[] = []
  if (info.throttledUntil !== undefined && info.throttledUntil > Date.now()) {
    notes.push(`nothing is given out before ${formatIso(info.throttledUntil)} (rate limit)`)
  }
  if (info.windowFull) {
    notes.push(
      'so much is in hand or waits for its retry that no further record is looked at (queue.max.inflight.per.partition, queue.max.runs.per.partition)',
    )
  }
  if (info.dlqUnavailable) {
    notes.push('dead letters cannot be written; nothing more is given out until they can')
  }
  for (const row of partitionsOf(info)) {
    if (row.error === undefined) continue
    notes.push(`${row.topic}/${row.partition} rests: ${row.error.message} (${row.error.code})`)
  }
  return notes
}

function memberTable({ members }: QueueInfo): string {
  return formatTable(
    [
      { name: 'WORKER' },
      { name: 'CLIENT' },
      { name: 'HOST' },
      { name: 'TOPIC' },
      { name: 'IN HAND', align: 'right' },
      { name: 'TAKES', align: 'right' },
      { name: 'SEEN', align: 'right' },
    ],
    members.map((row) => [
      labelOf(row),
      row.clientId,
      row.host,
      row.topic,
      formatCount(row.acquired),
      formatCount(row.credit),
      row.connected ? formatAge(row.sinceHeardMs) : `gone ${formatAge(row.sinceHeardMs)}`,
    ]),
  )
}

/** Without the client's name, which the broker puts before it, and which stands in the next column. */
function labelOf({ memberId, clientId }: QueueInfo['members'][number]): string {
  return memberId.startsWith(`${clientId}-`) ? memberId.slice(clientId.length + 1) : memberId
}

function partitionTable({ topics }: QueueInfo): string {
  const rows = topics.flatMap((topic) => topic.partitions)
  const table = formatTable(
    [
      { name: 'TOPIC' },
      { name: 'PARTITION', align: 'right' },
      { name: 'READY', align: 'right' },
      { name: 'IN HAND', align: 'right' },
      { name: 'TO RETRY', align: 'right' },
      { name: 'BLOCKED', align: 'right' },
      { name: 'START', align: 'right' },
      { name: 'SCANNED', align: 'right' },
      { name: 'END', align: 'right' },
      { name: 'OLDEST', align: 'right' },
    ],
    rows.map((row) => [
      row.topic,
      String(row.partition),
      formatCount(row.ready),
      formatCount(row.acquired),
      formatCount(row.parked),
      formatCount(row.blocked),
      String(row.startOffset),
      String(row.scanOffset),
      String(row.highWatermark),
      row.oldestReadyMs === undefined ? '-' : formatAge(row.oldestReadyMs),
    ]),
  )
  const dead = topics
    .filter(({ deadLetterTopic }) => deadLetterTopic !== '')
    .map(({ topic, deadLetterTopic }) => `dead letters of ${topic}: ${deadLetterTopic}\n`)
  return table + dead.join('')
}

function configTable(config: QueueInfo['config'], isWhole: boolean): string {
  const columns = [{ name: 'SETTING' }, { name: 'VALUE' }, { name: '' }, { name: 'ALLOWED' }]
  const rows = config.map((row) => [
    row.name,
    row.value === '' ? '-' : row.value,
    row.overridden ? "the group's" : 'default',
    isWhole ? row.allowed : '',
  ])
  return formatTable(isWhole ? columns : columns.slice(0, 3), rows)
}

// ── config ────────────────────────────────────────────────────────────────────────────────────────────────────────

export interface ConfigureQueueOptions extends AdminOptions {
  readonly set: readonly string[]
  readonly clear: readonly string[]
  readonly dryRun: boolean
}

/** Shows all settings, or changes some. */
export function configureQueue(
  io: CliIo,
  group: string,
  options: ConfigureQueueOptions,
): Promise<number> {
  const set = Object.fromEntries(toPairs('--set', options.set))
  return withClient(io, options, ({ admin }) => applyConfig(io, admin, group, set, options))
}

export async function applyConfig(
  io: CliIo,
  admin: QueueCommands,
  group: string,
  set: Readonly<Record<string, string>>,
  options: ConfigureQueueOptions,
): Promise<number> {
  const changes = Object.keys(set).length + options.clear.length
  if (changes === 0) {
    if (options.dryRun) throw new UsageError('nothing to change', '--set name=value, --clear name')
    const { config } = await withQueueHints(admin, group, () => admin.describeQueue(group))
    print(io, options, { group, config }, configTable(config, true))
    return EXIT_DONE
  }
  const config = await withQueueHints(admin, group, () =>
    admin.configureQueue(group, { set, clear: options.clear, validateOnly: options.dryRun }),
  )
  const named = new Set([...Object.keys(set), ...options.clear])
  const changed = config.filter((row) => named.has(row.name))
  const done = options.dryRun ? 'could be changed' : 'changed'
  print(
    io,
    options,
    { group, dryRun: options.dryRun, config },
    `group ${group} ${done}\n${changed.length === 0 ? '' : configTable(changed, false)}`,
  )
  return EXIT_DONE
}

// ── pause, resume ─────────────────────────────────────────────────────────────────────────────────────────────────

export interface PauseQueueOptions extends AdminOptions {
  readonly until?: Date | undefined
  readonly forMs?: number | undefined
}

/** Undefined: until resumed. @throws UsageError */
function pausedUntil(options: PauseQueueOptions): Date | undefined {
  const { until, forMs } = options
  if (until !== undefined && forMs !== undefined) {
    throw new UsageError('--until and --for contradict each other')
  }
  const end = forMs === undefined ? until : new Date(Date.now() + forMs)
  if (end !== undefined && end.getTime() <= Date.now()) {
    throw new UsageError(`--until ${formatIso(end.getTime())} is over already`)
  }
  return end
}

export function pauseQueue(io: CliIo, group: string, options: PauseQueueOptions): Promise<number> {
  const until = pausedUntil(options)
  return withClient(io, options, ({ admin }) => pause(io, admin, group, until, options))
}

export async function pause(
  io: CliIo,
  admin: QueueCommands,
  group: string,
  until: Date | undefined,
  options: AdminOptions,
): Promise<number> {
  await withQueueHints(admin, group, () => admin.pauseQueue(group, { until }))
  const end = until === undefined ? undefined : formatIso(until.getTime())
  print(
    io,
    options,
    { group, paused: true, until: until?.getTime() ?? null },
    `group ${group} is paused${end === undefined ? `; \`millrace queue resume ${group}\` ends that` : ` until ${end}`}; what is in hand may finish\n`,
  )
  return EXIT_DONE
}

export function resumeQueue(io: CliIo, group: string, options: AdminOptions): Promise<number> {
  return withClient(io, options, ({ admin }) => resume(io, admin, group, options))
}

export async function resume(
  io: CliIo,
  admin: QueueCommands,
  group: string,
  options: AdminOptions,
): Promise<number> {
  await withQueueHints(admin, group, () => admin.resumeQueue(group))
  print(io, options, { group, paused: false }, `group ${group} goes on\n`)
  return EXIT_DONE
}

// ── peek, explain, unblock ────────────────────────────────────────────────────────────────────────────────────────

export interface PeekOptions extends AdminOptions {
  readonly partition?: number | undefined
  readonly state?: QueueRecordState | undefined
  readonly limit?: number | undefined
}

export function peekQueue(
  io: CliIo,
  group: string,
  topic: string,
  options: PeekOptions,
): Promise<number> {
  return withClient(io, options, ({ admin }) => peek(io, admin, group, topic, options))
}

/** In JSON one line for each record, with its envelope as `record`. */
export async function peek(
  io: CliIo,
  admin: QueueCommands,
  group: string,
  topic: string,
  options: PeekOptions,
): Promise<number> {
  const { partition, state, limit } = options
  const found = await withQueueHints(admin, group, () =>
    admin.peekQueue(group, topic, { partition, state, limit }),
  )
  if (options.format === 'json') {
    for (const row of found) {
      const envelope = envelopeText(row.topic, row.partition, fieldsOf(row.record))
      io.stdout.write(withRecord({ group, ...explanationFacts(row.state) }, envelope))
    }
    return EXIT_DONE
  }
  const width = io.stdout.isTTY === true ? LONGEST_VALUE : Infinity
  io.stdout.write(
    formatTable(
      [
        { name: 'PLACE' },
        { name: 'STATE' },
        { name: 'DELIVERIES', align: 'right' },
        { name: 'FAILURES', align: 'right' },
        { name: 'KEY' },
        { name: 'VALUE' },
      ],
      found.map(({ topic: name, partition: index, record, state: why }) => [
        `${name}/${index}:${record.offset}`,
        withTime(why),
        String(why.deliveryCount),
        String(why.failureCount),
        record.key === undefined ? '-' : cut(toPrintable(record.key), LONGEST_KEY),
        record.value === null ? '(tombstone)' : cut(toPrintable(record.value), width),
      ]),
    ),
  )
  return EXIT_DONE
}

const LONGEST_KEY = 24
const LONGEST_VALUE = 60

/** At most so many letters, the last of them an ellipsis when something is missing. */
export function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, width - 1)}…`
}

/** Facts with a record's envelope, which is text already, as their last member. */
export function withRecord(facts: object, envelope: string): string {
  return `${JSON.stringify(facts).slice(0, -1)},"record":${envelope}}\n`
}

function withTime(why: RecordExplanation): string {
  const word = STATE_WORDS[why.state]
  const nowMs = Date.now()
  if (why.blockedByOffset !== undefined) return `${word}, after ${why.blockedByOffset}`
  if (why.state === 'parked' && why.dueAt !== undefined) {
    return `${word} in ${formatAge(why.dueAt - nowMs)}`
  }
  if (why.state === 'acquired' && why.leaseExpiresAt !== undefined) {
    return `${word} for ${formatAge(why.leaseExpiresAt - nowMs)}`
  }
  return word
}

export function explanationFacts(why: RecordExplanation): object {
  return {
    ...why,
    dueAt: why.dueAt ?? null,
    memberId: why.memberId ?? null,
    leaseExpiresAt: why.leaseExpiresAt ?? null,
    blockedByOffset: why.blockedByOffset ?? null,
  }
}

export function explainRecord(
  io: CliIo,
  group: string,
  words: readonly string[],
  options: AdminOptions,
): Promise<number> {
  toRecordPlace(words)
  return withClient(io, options, ({ admin }) => explain(io, admin, group, words, options))
}

export async function explain(
  io: CliIo,
  admin: QueueCommands,
  group: string,
  words: readonly string[],
  options: AdminOptions,
): Promise<number> {
  const { topic, partition, offset } = toRecordPlace(words)
  const why = await withQueueHints(admin, group, () =>
    admin.explainRecord(group, topic, partition, offset),
  )
  const place = `${topic}/${partition}:${offset}`
  const facts: [name: string, value: string][] = [
    ['record', place],
    ['state', `${why.state}: ${why.reason}`],
    ['deliveries', `${why.deliveryCount}, failures ${why.failureCount}`],
  ]
  if (why.memberId !== undefined) facts.push(['worker', why.memberId])
  if (why.leaseExpiresAt !== undefined) facts.push(['lease', formatUntil(why.leaseExpiresAt)])
  if (why.dueAt !== undefined) facts.push(['due', formatUntil(why.dueAt)])
  if (why.blockedByOffset !== undefined) {
    facts.push(['waits for', `${topic}/${partition}:${why.blockedByOffset}`])
  }
  facts.push([
    'partition',
    `start ${why.startOffset}, scanned ${why.scanOffset}, end ${why.highWatermark}`,
  ])
  for (const failure of why.failures) {
    const error = [failure.type, failure.message].filter((text) => text !== '').join(': ')
    facts.push(['failed', `${formatIso(failure.at)}  ${failure.kind}  ${error}`.trimEnd()])
  }
  print(
    io,
    options,
    { group, topic, partition, offset, ...explanationFacts(why) },
    facts
      .map(([name, value]) => `${name.padEnd(10)}  ${toPrintable(Buffer.from(value))}\n`)
      .join(''),
  )
  return EXIT_DONE
}

function formatUntil(atMs: number): string {
  const inMs = atMs - Date.now()
  return `${formatIso(atMs)}, ${inMs >= 0 ? `in ${formatAge(inMs)}` : `${formatAge(-inMs)} ago`}`
}

export interface UnblockOptions extends AdminOptions {
  readonly skip: boolean
  readonly retry: boolean
}

export function unblockRecord(
  io: CliIo,
  group: string,
  words: readonly string[],
  options: UnblockOptions,
): Promise<number> {
  toRecordPlace(words)
  if (options.skip === options.retry) {
    throw new UsageError(
      options.skip ? '--skip and --retry contradict each other' : 'what is to become of it?',
      '--skip gives the record up, --retry has it tried again with its failures forgotten',
    )
  }
  return withClient(io, options, ({ admin }) => unblock(io, admin, group, words, options))
}

export async function unblock(
  io: CliIo,
  admin: QueueCommands,
  group: string,
  words: readonly string[],
  options: UnblockOptions,
): Promise<number> {
  const { topic, partition, offset } = toRecordPlace(words)
  const what = options.skip ? 'skip' : 'retry'
  await withQueueHints(admin, group, () =>
    admin.unblockRecord(group, topic, partition, offset, what),
  )
  print(
    io,
    options,
    { group, topic, partition, offset, unblocked: what },
    `${topic}/${partition}:${offset} ${options.skip ? 'is skipped' : 'is tried again'}\n`,
  )
  return EXIT_DONE
}
