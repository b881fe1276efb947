import { isConfirmed } from './confirm.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, EXIT_FAILED } from './io.ts'
import { withGroupHints } from './group-hints.ts'
import { formatOffsetsAsCsv, formatOffsetsAsJson } from './offsets-file.ts'
import { compareTopicPartitions, formatTopicPartitions } from './partition-names.ts'
import { formatCount } from './progress-line.ts'
import type { ServerOptions } from './session.ts'
import { repeat } from './repeat.ts'
import { withClient } from './session.ts'
import { formatTable } from './text-table.ts'
import { formatAge } from './time-format.ts'
import { print, toExpression } from './topics.ts'
import type { AdminOptions } from './topics.ts'
import { UsageError } from './usage-error.ts'
import type {
  GroupAdmin,
  GroupDetails,
  GroupInfo,
  GroupMemberInfo,
  GroupPartitionInfo,
  GroupState,
  GroupType,
} from '../client/index.ts'

export interface ListGroupsOptions extends AdminOptions {
  readonly type?: GroupType | undefined
  readonly state?: GroupState | undefined
  readonly match?: string | undefined
}

export function listGroups(io: CliIo, options: ListGroupsOptions): Promise<number> {
  // A typing error is told before a broker is asked.
  const match = options.match === undefined ? undefined : toExpression('--match', options.match)
  return withClient(io, options, ({ admin }) => showGroups(io, admin, options, match))
}

export async function showGroups(
  io: CliIo,
  admin: GroupAdmin,
  options: ListGroupsOptions,
  match: RegExp | undefined,
): Promise<number> {
  const groups: GroupInfo[] = []
  const { type, state } = options
  for await (const group of admin.groups({ match, type, state })) groups.push(group)
  const text = formatTable(
    [
      { name: 'GROUP' },
      { name: 'TYPE' },
      { name: 'STATE' },
      { name: 'MEMBERS', align: 'right' },
      { name: 'EPOCH', align: 'right' },
    ],
    groups.map((group) => [
      group.group,
      group.type,
      group.state,
      formatCount(group.members),
      String(group.epoch),
    ]),
  )
  print(io, options, { groups }, text)
  return EXIT_DONE
}

export interface DescribeGroupOptions extends AdminOptions {
  /** Only the members; only the partitions. Both, or neither: both. */
  readonly members: boolean
  readonly offsets: boolean
  readonly timeLag: boolean
  /** Again and again, so often. */
  readonly watchMs?: number | undefined
}

export function describeGroup(
  io: CliIo,
  group: string,
  options: DescribeGroupOptions,
): Promise<number> {
  return withClient(io, options, ({ admin }) => showGroup(io, admin, group, options))
}

export async function showGroup(
  io: CliIo,
  admin: GroupAdmin,
  group: string,
  options: DescribeGroupOptions,
): Promise<number> {
  return repeat(io, options.watchMs, async (dress) => {
    const details = await withGroupHints(admin, group, () =>
      admin.describeGroup(group, { timeLag: options.timeLag }),
    )
    print(io, options, factsOf(details, options), dress(formatGroup(details, options)))
  })
}

function showsMembers(options: DescribeGroupOptions): boolean {
  return options.members || !options.offsets
}

function showsPartitions(options: DescribeGroupOptions): boolean {
  return options.offsets || !options.members
}

function factsOf(details: GroupDetails, options: DescribeGroupOptions): object {
  const { members, partitions, ...rest } = details
  return {
    ...rest,
    ...(showsMembers(options) ? { members } : {}),
    ...(showsPartitions(options)
      ? { partitions: [...partitions].sort(compareTopicPartitions) }
      : {}),
  }
}

function formatGroup(details: GroupDetails, options: DescribeGroupOptions): string {
  const { emptySince } = details
  const behind = Math.max(0, ...details.partitions.map(({ lagMs }) => lagMs ?? 0))
  const lag = `${formatCount(details.lag)} ${details.lag === 1 ? 'record' : 'records'}`
  const facts: [name: string, value: string][] = [
    ['group', details.group],
    ['type', details.type],
    [
      'state',
      emptySince === undefined
        ? details.state
        : `${details.state}, for ${formatAge(Date.now() - emptySince)}`,
    ],
    ['epoch', String(details.epoch)],
    ['assignor', details.assignor],
    ['members', formatCount(details.members.length)],
    ['lag', behind > 0 ? `${lag}, ${formatAge(behind)}` : lag],
  ]
  const sections = [facts.map(([name, value]) => `${name.padEnd(8)}  ${value}\n`).join('')]
  if (showsMembers(options) && details.members.length > 0) sections.push(memberTable(details))
  if (showsPartitions(options) && details.partitions.length > 0) {
    sections.push(partitionTable(details))
  }
  return sections.join('\n')
}

function memberTable({ members }: GroupDetails): string {
  const labels = labelsOf(members)
  const columns = [
    { name: 'MEMBER' },
    { name: 'CLIENT' },
    { name: 'HOST' },
    { name: 'EPOCH', align: 'right' },
    { name: 'SEEN', align: 'right' },
    { name: 'OWNS' },
    { name: 'GIVES UP' },
    { name: 'WAITS FOR' },
  ] as const
  const rows = members.map((member) => [
    labels.get(member.memberId) ?? member.memberId,
    member.clientId,
    member.host,
    String(member.epoch),
    seenOf(member),
    formatTopicPartitions(member.owned),
    formatTopicPartitions(member.revoking),
    formatTopicPartitions(missingOf(member)),
  ])
  // The last two are about a change under way, and empty most of the time.
  const isChanging = rows.some((row) => row.slice(-2).join('') !== '')
  const shown = isChanging ? columns.length : columns.length - 2
  return formatTable(
    columns.slice(0, shown),
    rows.map((row) => row.slice(0, shown)),
  )
}

/** When it was last heard of; for one whose connection is gone, also how long its session lasts. */
function seenOf(member: GroupMemberInfo): string {
  const seen = formatAge(member.sinceHeartbeatMs)
  return member.connected ? seen : `gone ${seen} of ${formatAge(member.sessionTimeoutMs)}`
}

/** Meant for it, and not yet its own: others have to give them up first. */
function missingOf(member: GroupMemberInfo): GroupMemberInfo['target'] {
  const owned = new Set(member.owned.map(({ topic, partition }) => `${topic}/${partition}`))
  return member.target.filter(({ topic, partition }) => !owned.has(`${topic}/${partition}`))
}

function partitionTable({ partitions, members }: GroupDetails): string {
  const labels = labelsOf(members)
  return formatTable(
    [
      { name: 'TOPIC' },
      { name: 'PARTITION', align: 'right' },
      { name: 'START', align: 'right' },
      { name: 'COMMITTED', align: 'right' },
      { name: 'END', align: 'right' },
      { name: 'LAG', align: 'right' },
      { name: 'BEHIND', align: 'right' },
      { name: 'MEMBER' },
    ],
    [...partitions]
      .sort(compareTopicPartitions)
      .map((row) => [
        row.topic,
        String(row.partition),
        String(row.logStartOffset),
        committedOf(row),
        String(row.highWatermark),
        formatCount(row.lag),
        row.lagMs === undefined ? '-' : formatAge(row.lagMs),
        row.memberId === undefined ? '-' : (labels.get(row.memberId) ?? row.memberId),
      ]),
  )
}

function committedOf({ committed, logStartOffset, highWatermark }: GroupPartitionInfo): string {
  if (committed === undefined) return '-'
  // Its next reader gets OFFSET_OUT_OF_RANGE, or goes on where its policy says.
  const isLost = committed < logStartOffset || committed > highWatermark
  return isLost ? `${committed} lost` : String(committed)
}

/** Of the part of a member id that is random. */
const SHORTEST_LABEL = 8

/** What a member is called in tables: its instance id, else as much of its member id as tells it from the others. */
function labelsOf(members: readonly GroupMemberInfo[]): ReadonlyMap<string, string> {
  const cut = (member: GroupMemberInfo, length: number): string => {
    const { memberId, clientId } = member
    // The broker puts the client's name before it.
    const from = memberId.startsWith(`${clientId}-`) ? clientId.length + 1 : 0
    return member.instanceId ?? memberId.slice(0, from + length)
  }
  const longest = Math.max(0, ...members.map(({ memberId }) => memberId.length))
  let length = SHORTEST_LABEL
  const isClear = (): boolean =>
    new Set(members.map((member) => cut(member, length))).size === members.length
  while (length < longest && !isClear()) length++
  return new Map(members.map((member) => [member.memberId, cut(member, length)]))
}

export interface ExportOptions extends ServerOptions {
  readonly csv: boolean
}

/** Always something that `reset --from-file` reads: JSON lines, or CSV. */
export function exportGroup(io: CliIo, group: string, options: ExportOptions): Promise<number> {
  return withClient(io, options, ({ admin }) => writeOffsets(io, admin, group, options))
}

export async function writeOffsets(
  io: CliIo,
  admin: GroupAdmin,
  group: string,
  options: ExportOptions,
): Promise<number> {
  const offsets = await withGroupHints(admin, group, () => admin.groupOffsets(group))
  io.stdout.write(options.csv ? formatOffsetsAsCsv(offsets) : formatOffsetsAsJson(offsets))
  return EXIT_DONE
}

export interface DeleteGroupsOptions extends AdminOptions {
  readonly yes: boolean
}

export function deleteGroups(
  io: CliIo,
  groups: readonly string[],
  options: DeleteGroupsOptions,
): Promise<number> {
  return withClient(io, options, ({ admin }) => removeGroups(io, admin, groups, options))
}

export async function removeGroups(
  io: CliIo,
  admin: GroupAdmin,
  groups: readonly string[],
  options: DeleteGroupsOptions,
): Promise<number> {
  const question = `delete ${groups.join(', ')} with all committed offsets?`
  if (!(await isConfirmed(io, question, options.yes))) return EXIT_FAILED
  for (const group of new Set(groups)) {
    await withGroupHints(admin, group, () => admin.deleteGroup(group))
    print(io, options, { group, deleted: true }, `group ${group} deleted\n`)
  }
  return EXIT_DONE
}

export interface DeleteOffsetsOptions extends AdminOptions {
  readonly topic: readonly string[]
  readonly partitions?: readonly number[] | undefined
  readonly yes: boolean
}

export function deleteOffsets(
  io: CliIo,
  group: string,
  options: DeleteOffsetsOptions,
): Promise<number> {
  checkTopics(options)
  if (options.topic.length === 0) {
    throw new UsageError(
      'which topics? --topic is missing',
      `\`millrace group delete ${group}\` forgets all of them`,
    )
  }
  return withClient(io, options, ({ admin }) => removeOffsets(io, admin, group, options))
}

export async function removeOffsets(
  io: CliIo,
  admin: GroupAdmin,
  group: string,
  options: DeleteOffsetsOptions,
): Promise<number> {
  const topics = [...new Set(options.topic)]
  const question = `forget where ${group} is in ${topics.join(', ')}?`
  if (!(await isConfirmed(io, question, options.yes))) return EXIT_FAILED
  for (const topic of topics) {
    const deleted = await withGroupHints(admin, group, () =>
      admin.deleteGroupOffsets(group, topic, options.partitions),
    )
    print(
      io,
      options,
      { group, topic, deleted },
      `${formatCount(deleted)} committed ${deleted === 1 ? 'offset' : 'offsets'} of ${group} in ${topic} deleted\n`,
    )
  }
  return EXIT_DONE
}

/** @throws UsageError when partitions are named and it is not clear whose */
export function checkTopics(options: {
  readonly topic: readonly string[]
  readonly partitions?: readonly number[] | undefined
}): void {
  if (options.partitions !== undefined && new Set(options.topic).size !== 1) {
    throw new UsageError(
      '--partitions goes with one --topic',
      'run the command once for each topic',
    )
  }
}
