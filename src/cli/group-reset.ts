import { readFile } from 'node:fs/promises'
import { toPosition } from './arguments.ts'
import { ask, canAsk } from './confirm.ts'
import { withGroupHints } from './group-hints.ts'
import { checkTopics } from './groups.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, EXIT_FAILED, EXIT_USAGE, say } from './io.ts'
import { parseOffsets } from './offsets-file.ts'
import type { OffsetEntry } from './offsets-file.ts'
import { compareTopicPartitions } from './partition-names.ts'
import { formatCount } from './progress-line.ts'
import { withClient } from './session.ts'
import { formatTable } from './text-table.ts'
import { print } from './topics.ts'
import type { AdminOptions } from './topics.ts'
import { ExitError, UsageError } from './usage-error.ts'
import type { GroupAdmin, OffsetResetPlan, ResetTo } from '../client/index.ts'
import { MillraceError, parsePosition } from '../client/index.ts'
import type { Admin, Position } from '../client/index.ts'
import { findSystemCode } from '../common/errors.ts'
import { toOffset } from '../common/offset.ts'

export interface ResetGroupOptions extends AdminOptions {
  /** A position, or `group:NAME` for where another group is. */
  readonly to?: string | undefined
  readonly shift?: number | undefined
  /** `-`: stdin. */
  readonly fromFile?: string | undefined
  /** None: all that the group has offsets for. */
  readonly topic: readonly string[]
  readonly partitions?: readonly number[] | undefined
  readonly yes: boolean
  readonly dryRun: boolean
  /** Make the group if there is none. */
  readonly create: boolean
}

/** What a reset needs of a client's `admin`. */
export type ResetAdmin = GroupAdmin & Pick<Admin, 'offsets'>

/** What was asked for, as far as it can be known without a broker. */
export type ResetTarget =
  | { readonly kind: 'position'; readonly position: Position }
  | { readonly kind: 'shift'; readonly by: number }
  | { readonly kind: 'offsets'; readonly offsets: readonly OffsetEntry[] }
  | { readonly kind: 'group'; readonly group: string }

/**
 * Shows the plan, asks (on a terminal), then does just that. Without a terminal and without --yes or --dry-run it ends with 2 and has changed nothing:
 * a script that forgot --yes must not go on as if its group had been reset.
 */
export async function resetGroup(
  io: CliIo,
  group: string,
  options: ResetGroupOptions,
): Promise<number> {
  checkTopics({
    ...options,
    partitions: options.fromFile === undefined ? options.partitions : undefined,
  })
  const target = await toTarget(io, options)
  return withClient(io, options, ({ admin }) => performReset(io, admin, group, target, options))
}

/** @throws UsageError; MillraceError INVALID_POSITION */
async function toTarget(io: CliIo, options: ResetGroupOptions): Promise<ResetTarget> {
  const { to, shift, fromFile } = options
  const given = [to, shift, fromFile].filter((value) => value !== undefined).length
  if (given !== 1) {
    throw new UsageError(
      given === 0 ? 'where to?' : '--to, --shift and --from-file contradict each other',
      'one of --to POSITION (`millrace help offsets`), --shift N, --from-file FILE',
    )
  }
  if (shift !== undefined) return { kind: 'shift', by: shift }
  if (fromFile !== undefined) {
    const name = fromFile === '-' ? 'stdin' : fromFile
    return { kind: 'offsets', offsets: parseOffsets(await readText(io, fromFile), name) }
  }
  const other = /^group:(.+)$/.exec(to ?? '')?.[1]
  if (other !== undefined) return { kind: 'group', group: other }
  return { kind: 'position', position: toPosition(parsePosition(to ?? '', Date.now())) }
}

async function readText(io: CliIo, file: string): Promise<string> {
  if (file === '-') {
    const pieces: Buffer[] = []
    for await (const piece of io.stdin) pieces.push(Buffer.from(piece as Uint8Array)) // Without an encoding a stream gives bytes.
    return Buffer.concat(pieces).toString('utf8')
  }
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    const code = findSystemCode(error)
    if (code === undefined) throw error
    throw new ExitError(EXIT_FAILED, `${file} cannot be read: ${code}`)
  }
}

export async function performReset(
  io: CliIo,
  admin: ResetAdmin,
  group: string,
  target: ResetTarget,
  options: ResetGroupOptions,
): Promise<number> {
  const { plan, isNew } = await makePlan(admin, group, target, options)
  const changes = plan.filter(({ from, to }) => from !== to)
  const canGoOn = options.yes && !options.dryRun
  const willAsk = !options.yes && !options.dryRun && canAsk(io)
  // In JSON there is one document, at the end; whoever is asked sees the plan before.
  if (options.format === 'text') io.stdout.write(formatPlan(plan))
  else if (willAsk) io.stderr.write(formatPlan(plan))
  const finish = (executed: boolean, text: string): void => {
    print(io, options, factsOf(group, plan, executed), text)
  }
  if (changes.length === 0) {
    finish(false, plan.length === 0 ? `${nothingFor(group, options)}\n` : 'nothing to change\n')
    return EXIT_DONE
  }
  const what = `${formatCount(changes.length)} ${changes.length === 1 ? 'partition' : 'partitions'}`
  if (options.dryRun) {
    if (!isNew) await warnOfMembers(io, admin, group)
    finish(false, `a dry run: ${what} of ${group} would change; --yes does it\n`)
    return EXIT_DONE
  }
  if (!canGoOn && !willAsk) {
    finish(false, '')
    say(io, 'error: nothing was changed: there is nobody here to ask')
    say(io, 'hint: --yes does what the plan says; --dry-run only shows it, and ends with 0')
    return EXIT_USAGE
  }
  if (!isNew) await withGroupHints(admin, group, () => checkEmpty(admin, group))
  const question = `${isNew ? 'make' : 'reset'} group ${group}, ${what}?`
  if (willAsk && !(await ask(io, question))) {
    if (options.format === 'json') finish(false, '')
    return EXIT_FAILED
  }
  await withGroupHints(admin, group, () => execute(io, admin, group, changes, isNew))
  finish(true, `group ${group} ${isNew ? 'made' : 'reset'}: ${what}\n`)
  return EXIT_DONE
}

/** Before anybody is asked: an answer that the broker refuses was asked for in vain. @throws MillraceError GROUP_NOT_EMPTY */
async function checkEmpty(admin: ResetAdmin, group: string): Promise<void> {
  const { members } = await admin.describeGroup(group, { timeLag: false })
  if (members.length === 0) return
  throw new MillraceError(
    'GROUP_NOT_EMPTY',
    `group ${group} has ${formatCount(members.length)} ${members.length === 1 ? 'member' : 'members'}, which would go on where they are`,
    { group, members: members.length },
  )
}

async function warnOfMembers(io: CliIo, admin: ResetAdmin, group: string): Promise<void> {
  const { members } = await admin.describeGroup(group, { timeLag: false })
  if (members.length === 0) return
  const count = `${formatCount(members.length)} ${members.length === 1 ? 'member' : 'members'}`
  say(io, `note: ${group} has ${count} now; it can be reset once they are stopped`)
}

function nothingFor(group: string, options: ResetGroupOptions): string {
  const where = options.topic.length === 0 ? '' : ` in ${options.topic.join(', ')}`
  return `nothing to reset: ${group} has no committed offsets${where}`
}

/** @throws MillraceError WRONG_EXPECTED_OFFSET when the group has moved since the plan was made, and could not be stopped from it */
async function execute(
  io: CliIo,
  admin: ResetAdmin,
  group: string,
  changes: readonly OffsetResetPlan[],
  isNew: boolean,
): Promise<void> {
  const offsets = changes.map(({ topic, partition, to }) => ({ topic, partition, offset: to }))
  if (isNew) {
    await admin.commitOffsets(group, offsets)
    return
  }
  const done = await admin.resetOffsets(group, { to: { offsets } })
  const before = new Map(changes.map((row) => [`${row.topic}/${row.partition}`, row.from]))
  for (const { topic, partition, from } of done) {
    const place = `${topic}/${partition}`
    if (before.get(place) === from) continue
    // Somebody was faster than the answer to our question. The end is what was agreed to.
    say(io, `note: ${place} was at ${from ?? 'nothing'} by then`)
  }
}

interface ResetPlan {
  readonly plan: readonly OffsetResetPlan[]
  /** There is no such group yet. */
  readonly isNew: boolean
}

async function makePlan(
  admin: ResetAdmin,
  group: string,
  target: ResetTarget,
  options: ResetGroupOptions,
): Promise<ResetPlan> {
  const topics = options.topic.length === 0 ? undefined : [...new Set(options.topic)]
  const to = await toResetTo(admin, target, topics, options)
  try {
    const plan = await admin.resetOffsets(group, {
      to,
      dryRun: true,
      // A list of offsets names its topics itself.
      ...(isExact(to) ? {} : { topic: topics, partitions: options.partitions }),
    })
    return { plan: [...plan].sort(compareTopicPartitions), isNew: false }
  } catch (error) {
    if (!(error instanceof MillraceError)) throw error
    if (error.code !== 'UNKNOWN_GROUP' || !options.create) {
      return withGroupHints(admin, group, () => Promise.reject(error))
    }
    const offsets = isExact(to) ? to.offsets : await findTargets(admin, target, topics, options)
    return { plan: await planNew(admin, offsets), isNew: true }
  }
}

type ExactOffsets = { readonly offsets: readonly OffsetEntry[] }

function isExact(to: ResetTo): to is ExactOffsets {
  return typeof to === 'object' && 'offsets' in to
}

async function toResetTo(
  admin: ResetAdmin,
  target: ResetTarget,
  topics: readonly string[] | undefined,
  options: ResetGroupOptions,
): Promise<ResetTo> {
  if (target.kind === 'position') return target.position
  if (target.kind === 'shift') return { shift: target.by }
  const all =
    target.kind === 'offsets'
      ? target.offsets
      : await withGroupHints(admin, target.group, () => admin.groupOffsets(target.group))
  const wanted = (entry: OffsetEntry): boolean =>
    (topics === undefined || topics.includes(entry.topic)) &&
    (options.partitions === undefined || options.partitions.includes(entry.partition))
  const offsets = all.filter(wanted)
  if (offsets.length === 0) {
    const source = target.kind === 'offsets' ? (options.fromFile ?? 'the file') : target.group
    throw new UsageError(
      `${source} has no offsets${topics === undefined ? '' : ` for ${topics.join(', ')}`}`,
      'without --topic all that it has are taken',
    )
  }
  return {
    offsets: offsets.map(({ topic, partition, offset }) => ({ topic, partition, offset })),
  }
}

/** Where a group that does not exist yet is to begin. */
async function findTargets(
  admin: ResetAdmin,
  target: ResetTarget,
  topics: readonly string[] | undefined,
  options: ResetGroupOptions,
): Promise<readonly OffsetEntry[]> {
  if (target.kind !== 'position' || topics === undefined) {
    throw new UsageError(
      'there is no such group yet, so nothing says which topics are meant',
      '--create goes with --to POSITION and --topic, or with --from-file',
    )
  }
  const { partitions } = options
  const found: OffsetEntry[] = []
  for (const topic of topics) {
    for (const [partition, offset] of await admin.offsets(topic, target.position, { partitions })) {
      found.push({ topic, partition, offset })
    }
  }
  return found
}

/** What the broker plans for a group that it has. */
async function planNew(
  admin: ResetAdmin,
  offsets: readonly OffsetEntry[],
): Promise<readonly OffsetResetPlan[]> {
  const plan: OffsetResetPlan[] = []
  for (const name of new Set(offsets.map(({ topic }) => topic))) {
    const partitions = offsets.filter(({ topic }) => topic === name)
    const wanted = { partitions: partitions.map(({ partition }) => partition) }
    const starts = await admin.offsets(name, 'start', wanted)
    const ends = await admin.offsets(name, 'end', wanted)
    for (const { partition, offset } of partitions) {
      const logStartOffset = starts.get(partition) ?? toOffset(0)
      const highWatermark = ends.get(partition) ?? logStartOffset
      const to = toOffset(Math.min(Math.max(offset, logStartOffset), highWatermark))
      const clamped = to !== offset
      plan.push({
        topic: name,
        partition,
        from: undefined,
        to,
        logStartOffset,
        highWatermark,
        clamped,
      })
    }
  }
  return plan.sort(compareTopicPartitions)
}

/** Undefined: nothing was committed, so there is nothing to subtract. */
function deltaOf({ from, to }: OffsetResetPlan): number | undefined {
  return from === undefined ? undefined : to - from
}

function factsOf(group: string, plan: readonly OffsetResetPlan[], executed: boolean): object {
  return {
    group,
    executed,
    offsets: plan.map(({ topic, partition, from, to, logStartOffset, highWatermark, clamped }) => ({
      topic,
      partition,
      from: from ?? null,
      to,
      delta: from === undefined ? null : to - from,
      lag: highWatermark - to,
      logStartOffset,
      highWatermark,
      clamped,
    })),
  }
}

function formatPlan(plan: readonly OffsetResetPlan[]): string {
  if (plan.length === 0) return ''
  const signed = (delta: number): string => (delta > 0 ? '+' : '') + formatCount(delta)
  return formatTable(
    [
      { name: 'TOPIC' },
      { name: 'PARTITION', align: 'right' },
      { name: 'FROM', align: 'right' },
      { name: 'TO', align: 'right' },
      { name: 'DELTA', align: 'right' },
      { name: 'LAG THEN', align: 'right' },
      { name: '' },
    ],
    plan.map((row) => {
      const delta = deltaOf(row)
      return [
        row.topic,
        String(row.partition),
        row.from === undefined ? '-' : String(row.from),
        String(row.to),
        delta === undefined ? '-' : signed(delta),
        formatCount(row.highWatermark - row.to),
        row.clamped ? `brought into [${row.logStartOffset}, ${row.highWatermark}]` : '',
      ]
    }),
  )
}
