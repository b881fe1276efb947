import { formatTopicPartitions } from './partition-names.ts'
import { formatAge } from './time-format.ts'
import type { GroupAdmin, GroupMemberInfo } from '../client/index.ts'
import { MillraceError } from '../client/index.ts'
import { findNearest } from '../common/names.ts'

/** More than these are only counted. */
const MOST_MEMBERS = 5

/**
 * Does `work`; when it fails because of what the group is, the error tells what a person needs for going on: names that are near, or who the members
 * are. One more call, and only then.
 */
export async function withGroupHints<T>(
  admin: GroupAdmin,
  group: string,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof MillraceError)) throw error
    const hint = await findHint(admin, group, error)
    if (hint === undefined) throw error
    throw new MillraceError(error.code, error.message, { ...error.details, hint }, error)
  }
}

async function findHint(
  admin: GroupAdmin,
  group: string,
  error: MillraceError,
): Promise<string | undefined> {
  try {
    if (error.code === 'UNKNOWN_GROUP') return await findNames(admin, group, error)
    if (error.code !== 'GROUP_NOT_EMPTY' && error.code !== 'GROUP_SUBSCRIBED') return undefined
    const { members } = await admin.describeGroup(group, { timeLag: false })
    return members.length === 0 ? undefined : formatMembers(members)
  } catch (failure) {
    // The first error is the one to tell; a broker that is gone meanwhile has nothing to add to it.
    if (failure instanceof MillraceError) return undefined
    throw failure
  }
}

async function findNames(
  admin: GroupAdmin,
  group: string,
  error: MillraceError,
): Promise<string | undefined> {
  // The broker has looked already.
  if (error.details['nearest'] !== undefined) return undefined
  const names: string[] = []
  for await (const info of admin.groups()) names.push(info.group)
  if (names.length === 0) {
    return 'there is no group at all; one comes into being with its first member: `millrace tail TOPIC -g NAME`'
  }
  const nearest = findNearest(group, names, 3)
  return nearest.length === 0
    ? '`millrace group list` shows what there is'
    : `did you mean ${nearest.join(' or ')}?`
}

function formatMembers(members: readonly GroupMemberInfo[]): string {
  const shown = members.slice(0, MOST_MEMBERS).map((member) => {
    const who = member.instanceId ?? (member.clientId === '' ? member.memberId : member.clientId)
    const owned = formatTopicPartitions(member.owned)
    return `${who} at ${member.host} (${owned === '' ? 'owns nothing' : owned})`
  })
  const more = members.length - shown.length
  const longest = Math.max(...members.map((member) => member.sessionTimeoutMs))
  return (
    `stop its members first: ${shown.join(', ')}${more > 0 ? ` and ${more} more` : ''}; ` +
    `one that was killed counts until its session has run out (${formatAge(longest)})`
  )
}
