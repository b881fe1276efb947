import { envelopeText } from './envelope.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, say } from './io.ts'
import { formatCount } from './progress-line.ts'
import { drained } from './queue-dead.ts'
import type { QueueCommands } from './queue-hints.ts'
import { cut, withRecord } from './queues.ts'
import { fieldsOf } from './record-fields.ts'
import { toPrintable } from './record-format.ts'
import { withClient } from './session.ts'
import { formatTable } from './text-table.ts'
import { formatAge, formatIso } from './time-format.ts'
import { print } from './topics.ts'
import type { AdminOptions } from './topics.ts'
import { UsageError } from './usage-error.ts'
import type { DelayedInfo } from '../client/index.ts'

export interface ListDelayedOptions extends AdminOptions {
  readonly from?: Date | undefined
  readonly to?: Date | undefined
  readonly limit?: number | undefined
}

const MOST_ROWS = 100

export function listDelayed(
  io: CliIo,
  topic: string | undefined,
  options: ListDelayedOptions,
): Promise<number> {
  return withClient(io, options, ({ admin }) => showDelayed(io, admin, topic, options))
}

/** In the order in which they are due. In JSON one line for each, with the record's envelope as `record`. */
export async function showDelayed(
  io: CliIo,
  admin: QueueCommands,
  topic: string | undefined,
  options: ListDelayedOptions,
): Promise<number> {
  const { from, to } = options
  const isJson = options.format === 'json'
  const most = options.limit ?? (isJson ? Infinity : MOST_ROWS)
  const rows: DelayedInfo[] = []
  let count = 0
  let hasMore = false
  for await (const row of admin.delayed({ topic, from, to })) {
    if (count >= most) {
      hasMore = true
      break
    }
    // Nobody reads any more.
    if (io.stdout.destroyed) break
    count++
    if (!isJson) rows.push(row)
    else if (!io.stdout.write(delayedText(row))) await drained(io)
  }
  if (isJson) return EXIT_DONE
  io.stdout.write(delayedTable(rows, io))
  if (hasMore && options.limit === undefined) {
    say(io, `the first ${MOST_ROWS}; -n shows more of them, --format json shows all`)
  }
  return EXIT_DONE
}

function delayedText(row: DelayedInfo): string {
  const { record, ...facts } = row
  const envelope = envelopeText(row.topic, row.partition, fieldsOf(record))
  return withRecord({ ...facts, dedupeId: row.dedupeId ?? null }, envelope)
}

function delayedTable(rows: readonly DelayedInfo[], io: CliIo): string {
  const width = io.stdout.isTTY === true ? 40 : Infinity
  const nowMs = Date.now()
  return formatTable(
    [
      { name: 'DUE' },
      { name: 'IN', align: 'right' },
      { name: 'TOPIC' },
      { name: 'DELAY ID' },
      { name: 'KEY' },
      { name: 'VALUE' },
    ],
    rows.map(({ record, ...row }) => [
      formatIso(row.deliverAt),
      row.deliverAt <= nowMs ? 'due' : formatAge(row.deliverAt - nowMs),
      row.topic,
      row.delayId,
      record.key === undefined ? '-' : cut(toPrintable(record.key), 24),
      record.value === null ? '(tombstone)' : cut(toPrintable(record.value), width),
    ]),
  )
}

export function countDelayed(
  io: CliIo,
  topic: string | undefined,
  options: AdminOptions,
): Promise<number> {
  return withClient(io, options, ({ admin }) => showCount(io, admin, topic, options))
}

export async function showCount(
  io: CliIo,
  admin: QueueCommands,
  topic: string | undefined,
  options: AdminOptions,
): Promise<number> {
  const count = await admin.countDelayed(topic)
  print(
    io,
    options,
    { topic: topic ?? null, count },
    `${formatCount(count)} ${count === 1 ? 'record waits' : 'records wait'}${topic === undefined ? '' : ` for ${topic}`}\n`,
  )
  return EXIT_DONE
}

export function cancelDelayed(
  io: CliIo,
  ids: readonly string[],
  options: AdminOptions,
): Promise<number> {
  return withClient(io, options, ({ admin }) => cancelThem(io, admin, ids, options))
}

export async function cancelThem(
  io: CliIo,
  admin: QueueCommands,
  ids: readonly string[],
  options: AdminOptions,
): Promise<number> {
  for (const delayId of new Set(ids)) {
    await admin.cancelDelayed(delayId)
    print(io, options, { delayId, cancelled: true }, `${delayId} is cancelled\n`)
  }
  return EXIT_DONE
}

export interface MoveDelayedOptions extends AdminOptions {
  readonly at?: Date | undefined
  /** From now on. */
  readonly delayMs?: number | undefined
}

export function moveDelayed(
  io: CliIo,
  delayId: string,
  options: MoveDelayedOptions,
): Promise<number> {
  const { at, delayMs } = options
  if ((at === undefined) === (delayMs === undefined)) {
    throw new UsageError(
      at === undefined ? 'when?' : '--at and --delay contradict each other',
      'one of --at TIME, --delay DURATION (from now)',
    )
  }
  const deliverAt = at ?? new Date(Date.now() + (delayMs ?? 0))
  return withClient(io, options, ({ admin }) => moveIt(io, admin, delayId, deliverAt, options))
}

export async function moveIt(
  io: CliIo,
  admin: QueueCommands,
  delayId: string,
  deliverAt: Date,
  options: AdminOptions,
): Promise<number> {
  await admin.updateDelayed(delayId, deliverAt)
  print(
    io,
    options,
    { delayId, deliverAt: deliverAt.getTime() },
    `${delayId} is due ${formatIso(deliverAt.getTime())}\n`,
  )
  return EXIT_DONE
}

export function fireDelayed(
  io: CliIo,
  ids: readonly string[],
  options: AdminOptions,
): Promise<number> {
  return withClient(io, options, ({ admin }) => fireThem(io, admin, ids, options))
}

export async function fireThem(
  io: CliIo,
  admin: QueueCommands,
  ids: readonly string[],
  options: AdminOptions,
): Promise<number> {
  for (const delayId of new Set(ids)) {
    const { partition, offset } = await admin.fireDelayed(delayId)
    print(
      io,
      options,
      { delayId, partition, offset },
      `${delayId} is in partition ${partition} at offset ${offset}\n`,
    )
  }
  return EXIT_DONE
}
