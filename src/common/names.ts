import { BrokerError } from './errors.ts'

/** Letters in the name of a topic or a group. */
export const LONGEST_NAME = 249

/**
 * Checks a topic name: 1 to 249 of [A-Za-z0-9._-], not `.` or `..`, so that no name can leave the data directory.
 * @throws BrokerError INVALID_TOPIC_NAME that says which rule was broken and where
 */
export function checkTopicName(name: string): void {
  const fail = (why: string, position: number): never => {
    const shown = name.length > 60 ? `${name.slice(0, 60)}…` : name
    throw new BrokerError(
      'INVALID_TOPIC_NAME',
      `topic name ${JSON.stringify(shown)} ${why}; a name has 1 to ${LONGEST_NAME} of the letters A-Z a-z 0-9 . _ -`,
      { position, length: name.length, limit: LONGEST_NAME, field: 'topic' },
    )
  }
  if (name.length === 0) fail('is empty', 0)
  const at = name.search(/[^A-Za-z0-9._-]/)
  if (at >= 0) fail(`has ${JSON.stringify(name[at])} at position ${at}`, at)
  if (name.length > LONGEST_NAME) fail(`is ${name.length} letters long`, LONGEST_NAME)
  if (name === '.' || name === '..') fail('would name a directory', 0)
}

/**
 * Checks the id of a group: the rules of topic names.
 * @throws BrokerError INVALID_GROUP_ID that says which rule was broken and where
 */
export function checkGroupId(group: string): void {
  const fail = (why: string, position: number): never => {
    const shown = group.length > 60 ? `${group.slice(0, 60)}…` : group
    throw new BrokerError(
      'INVALID_GROUP_ID',
      `group id ${JSON.stringify(shown)} ${why}; a group id has 1 to ${LONGEST_NAME} of the letters A-Z a-z 0-9 . _ - and does not begin with __`,
      { position, length: group.length, limit: LONGEST_NAME, field: 'group' },
    )
  }
  if (group.length === 0) fail('is empty', 0)
  const at = group.search(/[^A-Za-z0-9._-]/)
  if (at >= 0) fail(`has ${JSON.stringify(group[at])} at position ${at}`, at)
  if (group.length > LONGEST_NAME) fail(`is ${group.length} letters long`, LONGEST_NAME)
  if (group === '.' || group === '..') fail('would name a directory', 0)
  if (group.startsWith('__')) fail('begins with __, which is for the broker', 0)
}

/** Names that start with `__` belong to the broker. */
export function isInternalTopic(name: string): boolean {
  return name.startsWith('__')
}

/** Edit distance (insert, delete, replace), for "did you mean". O(n·m); callers pass short names. */
export function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const current = [i]
    for (let j = 1; j <= b.length; j++) {
      const replace = (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      current.push(Math.min(replace, (previous[j] ?? 0) + 1, (current[j - 1] ?? 0) + 1))
    }
    previous = current
  }
  return previous[b.length] ?? 0
}

/** Up to `most` of `candidates` that look like `name`, nearest first. */
export function findNearest(name: string, candidates: Iterable<string>, most = 3): string[] {
  const reach = Math.max(2, Math.floor(name.length / 3))
  const scored: { candidate: string; distance: number }[] = []
  for (const candidate of candidates) {
    if (Math.abs(candidate.length - name.length) > reach && !candidate.startsWith(name)) continue
    const distance = candidate.startsWith(name)
      ? 1
      : editDistance(name.toLowerCase(), candidate.toLowerCase())
    if (distance <= reach) scored.push({ candidate, distance })
  }
  scored.sort((x, y) => x.distance - y.distance || x.candidate.localeCompare(y.candidate))
  return scored.slice(0, most).map((entry) => entry.candidate)
}
