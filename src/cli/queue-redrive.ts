import type { CliIo } from './io.ts'
import { EXIT_DONE, EXIT_FAILED, Interrupt, say } from './io.ts'
import { ProgressLine, formatCount } from './progress-line.ts'
import { toFilter } from './queue-arguments.ts'
import type { FilterArguments } from './queue-arguments.ts'
import {
  countLetters,
  endWithout,
  findConsent,
  letterTable,
  letterText,
  withPlaceHints,
} from './queue-dead.ts'
import type { ConsentOptions } from './queue-dead.ts'
import { checkPlaceWords, findDeadLetters, nameOfPlace } from './queue-hints.ts'
import type { QueueCommands } from './queue-hints.ts'
import { waitFor } from './repeat.ts'
import { withClient } from './session.ts'
import { formatTable } from './text-table.ts'
import { formatAge, formatIso } from './time-format.ts'
import { print } from './topics.ts'
import type { AdminOptions } from './topics.ts'
import { ExitError } from './usage-error.ts'
import { MillraceError } from '../client/index.ts'
import type { DeadLetterFilter, RedriveInfo, RedriveResult } from '../client/index.ts'
import { unreachable } from '../common/assert.ts'
import { formatBytes } from '../common/units.ts'

export interface RedriveArguments extends AdminOptions, FilterArguments, ConsentOptions {
  /** A topic; undefined: back to the group that they come from, and to no other. */
  readonly to?: string | undefined
  readonly rate?: number | undefined
  readonly keepAttempts: boolean
  /** Started is enough. */
  readonly background: boolean
}

type Preview = NonNullable<RedriveResult['preview']>

const POLL_MS = 200

/** Shows what would be moved, asks (on a terminal), moves it, and waits for the end. */
export function redrive(
  io: CliIo,
  words: readonly string[],
  options: RedriveArguments,
): Promise<number> {
  checkPlaceWords(words)
  const filter = toFilter(options)
  return withClient(io, options, ({ admin }) => performRedrive(io, admin, words, filter, options))
}

export async function performRedrive(
  io: CliIo,
  admin: QueueCommands,
  words: readonly string[],
  filter: DeadLetterFilter,
  options: RedriveArguments,
): Promise<number> {
  const place = await findDeadLetters(admin, words)
  const wanted = {
    ...filter,
    to: options.to,
    maxPerSec: options.rate,
    resetAttempts: !options.keepAttempts,
  }
  const { preview } = await withPlaceHints(admin, place, () =>
    admin.redrive(place, { ...wanted, dryRun: true }),
  )
  const plan: Preview = preview ?? { count: 0, bytes: 0, firstAt: 0, lastAt: 0, samples: [] }
  const group = typeof place === 'string' ? 'the group that they come from' : `group ${place.group}`
  const where = options.to === undefined ? group : `topic ${options.to}`
  const finish = (task: RedriveInfo | undefined, text: string): void => {
    if (options.format === 'text') io.stdout.write(text)
    else io.stdout.write(documentOf(nameOfPlace(place), options, plan, task))
  }
  if (plan.count === 0) {
    finish(undefined, `nothing to redrive in ${nameOfPlace(place)}\n`)
    return EXIT_DONE
  }
  const planText = formatPlan(plan, nameOfPlace(place), where, io)
  if (options.format === 'text') io.stdout.write(planText)
  const question = `redrive ${countLetters(plan.count)} to ${where}?`
  const consent = await findConsent(io, options, question)
  if (consent !== 'go') {
    finish(undefined, consent === 'dry-run' ? 'a dry run: --yes does it\n' : '')
    return endWithout(io, consent)
  }
  const started = await withPlaceHints(admin, place, () =>
    admin.redrive(place, { ...wanted, background: true }),
  )
  const { task } = started
  if (task === undefined) {
    throw new MillraceError('INTERNAL_ERROR', 'the broker has named no redrive task')
  }
  if (options.background) {
    finish(task, `redrive ${task.taskId} is under way; ${howToCancel(task)}\n`)
    return EXIT_DONE
  }
  return follow(io, admin, task, finish)
}

/** Until the task has ended, or nobody wants to look any more: the broker goes on all the same. */
async function follow(
  io: CliIo,
  admin: QueueCommands,
  started: RedriveInfo,
  finish: (task: RedriveInfo, text: string) => void,
): Promise<number> {
  using interrupt = new Interrupt(io)
  let task = started
  const progress = new ProgressLine(
    io,
    () => `${formatCount(task.moved)} of ${formatCount(task.total)} moved`,
  )
  try {
    while (task.state === 'running' && !interrupt.signal.aborted) {
      await waitFor(POLL_MS, interrupt.signal)
      task = (await admin.redrives()).find(({ taskId }) => taskId === started.taskId) ?? task
    }
  } finally {
    progress.end()
  }
  const moved = `${formatCount(task.moved)} of ${formatCount(task.total)} moved`
  switch (task.state) {
    case 'running':
      say(io, `${moved}; the redrive goes on without this command: ${howToCancel(task)}`)
      return interrupt.exitCode
    case 'done':
      finish(task, `${countLetters(task.moved)} moved\n`)
      // Some could not be moved; the broker says how many, and why.
      if (task.error !== undefined) say(io, task.error)
      return EXIT_DONE
    case 'cancelled':
      finish(task, `${moved}, then somebody cancelled it\n`)
      return EXIT_FAILED
    case 'failed':
      throw new ExitError(
        EXIT_FAILED,
        `the redrive has failed after ${formatCount(task.moved)} of ${formatCount(task.total)}: ${task.error ?? 'nobody knows why'}`,
        'what has been moved stays moved; the same command line moves the rest',
      )
    default:
      return unreachable(task.state)
  }
}

function howToCancel({ taskId }: RedriveInfo): string {
  return `\`millrace queue redrive list\` shows it, \`millrace queue redrive cancel ${taskId}\` ends it`
}

function formatPlan(plan: Preview, name: string, where: string, io: CliIo): string {
  const times = `${formatIso(plan.firstAt)} to ${formatIso(plan.lastAt)}`
  const more = plan.count - plan.samples.length
  return (
    letterTable(plan.samples, io) +
    (more > 0 ? `… and ${formatCount(more)} more\n` : '') +
    `${countLetters(plan.count)} of ${name} (${formatBytes(plan.bytes)}), ${times}, to ${where}\n`
  )
}

function documentOf(
  name: string,
  options: RedriveArguments,
  plan: Preview,
  task: RedriveInfo | undefined,
): string {
  const { samples, ...counts } = plan
  const facts = { place: name, to: options.to ?? null, dryRun: options.dryRun, task: task ?? null }
  const preview = `${JSON.stringify(counts).slice(0, -1)},"samples":[${samples.map(letterText).join(',')}]}`
  return `${JSON.stringify(facts).slice(0, -1)},"preview":${preview}}\n`
}

// ── list, cancel ──────────────────────────────────────────────────────────────────────────────────────────────────

export function listRedrives(io: CliIo, options: AdminOptions): Promise<number> {
  return withClient(io, options, ({ admin }) => showRedrives(io, admin, options))
}

export async function showRedrives(
  io: CliIo,
  admin: QueueCommands,
  options: AdminOptions,
): Promise<number> {
  const redrives = await admin.redrives()
  const text = formatTable(
    [
      { name: 'TASK' },
      { name: 'LETTERS OF' },
      { name: 'TO' },
      { name: 'STATE' },
      { name: 'MOVED', align: 'right' },
      { name: 'OF', align: 'right' },
      { name: 'PER SECOND', align: 'right' },
      { name: 'STARTED' },
      { name: 'TOOK', align: 'right' },
    ],
    redrives.map((task) => [
      task.taskId,
      task.topic,
      task.to === '' ? 'their group' : task.to,
      task.state,
      formatCount(task.moved),
      formatCount(task.total),
      formatCount(task.maxPerSec),
      formatIso(task.startedAt),
      formatAge((task.endedAt ?? Date.now()) - task.startedAt),
    ]),
  )
  const facts = redrives.map((task) => ({ ...task, endedAt: task.endedAt ?? null }))
  print(io, options, { redrives: facts }, text)
  return EXIT_DONE
}

export function cancelRedrive(io: CliIo, taskId: string, options: AdminOptions): Promise<number> {
  return withClient(io, options, ({ admin }) => stopRedrive(io, admin, taskId, options))
}

export async function stopRedrive(
  io: CliIo,
  admin: QueueCommands,
  taskId: string,
  options: AdminOptions,
): Promise<number> {
  const task = await admin.cancelRedrive(taskId)
  const count = `${formatCount(task.moved)} of ${formatCount(task.total)} had been moved`
  print(
    io,
    options,
    { ...task, endedAt: task.endedAt ?? null },
    `redrive ${taskId} is ${task.state}; ${count}\n`,
  )
  return EXIT_DONE
}
