import { createHash } from 'node:crypto'
import { LONGEST_NAME } from '../../common/names.ts'

/** 64 bits of SHA-256. Two pairs of names that share it are not found by chance. */
const HASH_DIGITS = 16

const RETRY_PREFIX = '__retry.'

/**
 * Where a group's dead letters from a topic go when it names no other place: `dlq.<group>.<topic>`, the end cut for a hash when that is too
 * long. Dots may make two pairs share it (`a.b` of `c`, `a` of `b.c`): each letter says whose it is.
 */
export function deadLetterTopicName(group: string, topic: string): string {
  const name = `dlq.${group}.${topic}`
  if (name.length <= LONGEST_NAME) return name
  return `${name.slice(0, LONGEST_NAME - HASH_DIGITS - 1)}.${hashOf(group, topic)}`
}

/**
 * The internal topic of records that go to one group once more: `__retry.<group>.<topic>`, and never the same for two pairs. A hash is added where a dot in a
 * name would leave open where the group ends, and where the name is too long, so a name without a hash has two dots, and all others more.
 */
export function retryTopicName(group: string, topic: string): string {
  const name = `${RETRY_PREFIX}${group}.${topic}`
  const isPlain = !group.includes('.') && !topic.includes('.')
  if (isPlain && name.length <= LONGEST_NAME) return name
  return `${name.slice(0, LONGEST_NAME - HASH_DIGITS - 1)}.${hashOf(group, topic)}`
}

/** Whether a topic holds records that go to one group once more. Only the broker writes to these. */
export function isRetryTopic(topic: string): boolean {
  return topic.startsWith(RETRY_PREFIX)
}

function hashOf(group: string, topic: string): string {
  // Neither name can hold a slash, so the pair is read off the text in one way only.
  return createHash('sha256').update(`${group}/${topic}`).digest('hex').slice(0, HASH_DIGITS)
}
