import { toPosition } from './arguments.ts'
import { UsageError } from './usage-error.ts'
import type { GroupAdmin } from '../client/index.ts'
import { parsePosition, parseRange } from '../client/index.ts'
import type { Admin, Position } from '../client/index.ts'
import { parseDurationMs } from '../common/units.ts'

/** Where a plain `tail` begins: a position, or where a group is, which is another offset in each partition. */
export type ReadFrom =
  | { readonly kind: 'position'; readonly position: Position }
  | { readonly kind: 'group'; readonly group: string }

export interface ReadRange {
  readonly from: ReadFrom
  readonly until: Position | undefined
}

export interface RangeOptions {
  readonly offset?: string | undefined
  readonly since?: string | undefined
  readonly until?: string | undefined
}

/** Letters of a group id; it holds no colon, so that a range may follow. */
const AT_GROUP = /^group:([^:]+)(?::(.*))?$/is

/** @throws MillraceError INVALID_POSITION; UsageError when options contradict each other */
export function toRange(options: RangeOptions): ReadRange {
  const nowMs = Date.now()
  const { offset, since } = options
  if (since !== undefined && offset !== undefined) {
    throw new UsageError('--since and --offset contradict each other', '--since 1h is -o @-1h')
  }
  if (/^(?:committed|stored)$/i.test(offset?.trim() ?? '')) {
    throw new UsageError(
      `-o ${offset} needs a group`,
      '-o group:NAME reads from where a group is and changes nothing; --group NAME reads as its member',
    )
  }
  const atGroup = AT_GROUP.exec(offset?.trim() ?? '')
  const group = atGroup?.[1]
  const end = atGroup?.[2]
  const parsed =
    group === undefined
      ? parseRange(since === undefined ? (offset ?? 'start') : sincePosition(since), nowMs)
      : undefined
  const ranged =
    parsed?.until ?? (end === undefined || end === '' ? undefined : parsePosition(end, nowMs))
  if (ranged !== undefined && options.until !== undefined) {
    throw new UsageError(`--until contradicts the end in ${offset ?? since ?? ''}`)
  }
  const until =
    options.until === undefined ? ranged : parsePosition(untilPosition(options.until), nowMs)
  return {
    from:
      parsed === undefined
        ? { kind: 'group', group: group ?? '' }
        : { kind: 'position', position: toPosition(parsed.from) },
    until: until === undefined ? undefined : toPosition(until),
  }
}

/** `1h` is an hour ago; a time may have its @ or not. */
export function sincePosition(text: string): string {
  if (text.startsWith('@')) return text
  return isDuration(text) ? `@-${text}` : `@${text}`
}

/** A bare duration is so long ago; offsets, `end` and times are what they are elsewhere. */
function untilPosition(text: string): string {
  return isDuration(text) && !/^\d+$/.test(text) ? `@-${text}` : text
}

function isDuration(text: string): boolean {
  if (!/^\d+[a-z]/i.test(text)) return false
  try {
    parseDurationMs(text)
    return true
  } catch {
    return false // Then it is taken for a time, whose reader has the better message.
  }
}

/** Some partitions of a topic, and where to begin in them. */
export interface ReadPart {
  readonly topic: string
  /** Undefined: all. */
  readonly partitions: readonly number[] | undefined
  readonly from: Position
}

/** Partitions in which the group has committed nothing are read from their start. @throws MillraceError UNKNOWN_GROUP, UNKNOWN_TOPIC */
export async function findParts(
  admin: Pick<Admin, 'offsets'> & Pick<GroupAdmin, 'groupOffsets'>,
  topics: readonly string[],
  from: ReadFrom,
  partitions: readonly number[] | undefined,
): Promise<readonly ReadPart[]> {
  if (from.kind === 'position') {
    return topics.map((topic) => ({ topic, partitions, from: from.position }))
  }
  const committed = await admin.groupOffsets(from.group)
  const parts: ReadPart[] = []
  for (const topic of topics) {
    const offsets = new Map(await admin.offsets(topic, 'start', { partitions }))
    for (const row of committed) {
      if (row.topic === topic && offsets.has(row.partition)) offsets.set(row.partition, row.offset)
    }
    // One read for all that begin at the same offset.
    const byOffset = new Map<Position, number[]>()
    for (const [partition, offset] of offsets) {
      const same = byOffset.get(offset)
      if (same === undefined) byOffset.set(offset, [partition])
      else same.push(partition)
    }
    for (const [offset, same] of byOffset) parts.push({ topic, partitions: same, from: offset })
  }
  return parts
}
