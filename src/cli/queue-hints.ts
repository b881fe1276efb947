import type { DeadLetterPlace, GroupAdmin, QueueAdmin } from '../client/index.ts'
import { MillraceError } from '../client/index.ts'
import { findNearest } from '../common/names.ts'
import { UsageError } from './usage-error.ts'

/** What commands about queues need of a client's `admin`. */
export type QueueCommands = QueueAdmin & Pick<GroupAdmin, 'groups'>

/** Does `work`; when it fails because of which group was meant, the error tells what there is. One more call, and only then. */
export async function withQueueHints<T>(
  admin: QueueCommands,
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
  admin: QueueCommands,
  group: string,
  error: MillraceError,
): Promise<string | undefined> {
  if (error.code === 'GROUP_TYPE_MISMATCH') {
    return `${group} is a stream group: \`millrace group describe ${group}\` shows it; \`millrace queue list\` shows the queues`
  }
  if (error.code !== 'UNKNOWN_GROUP' || error.details['nearest'] !== undefined) return undefined
  try {
    const names: string[] = []
    for await (const info of admin.groups({ type: 'queue' })) names.push(info.group)
    if (names.length === 0) {
      return 'there is no queue group at all; one comes into being with its first worker: `millrace work TOPIC -g NAME`'
    }
    const nearest = findNearest(group, names, 3)
    return nearest.length === 0
      ? '`millrace queue list` shows what there is'
      : `did you mean ${nearest.join(' or ')}?`
  } catch (failure) {
    // The first error is the one to tell; a broker that is gone meanwhile has nothing to add to it.
    if (failure instanceof MillraceError) return undefined
    throw failure
  }
}

const NOT_THERE: ReadonlySet<string> = new Set(['UNKNOWN_TOPIC', 'NOT_A_DLQ'])
const NO_QUEUE: ReadonlySet<string> = new Set(['UNKNOWN_GROUP', 'GROUP_TYPE_MISMATCH'])

/**
 * Whose dead letters `GROUP TOPIC`, `GROUP` or `DLQ` means. One word is a topic of dead letters where there is one of that name, else a group that
 * works on one topic.
 * @throws UsageError; MillraceError UNKNOWN_TOPIC, NOT_A_DLQ
 */
export async function findDeadLetters(
  admin: QueueCommands,
  words: readonly string[],
): Promise<DeadLetterPlace> {
  checkPlaceWords(words)
  const [first = '', topic] = words
  if (topic !== undefined) return { group: first, topic }
  try {
    const letters = admin.deadLetters(first, { limit: 1, includeSettled: true })
    for await (const _ of letters) break
    return first
  } catch (error) {
    if (!(error instanceof MillraceError) || !NOT_THERE.has(error.code)) throw error
    return findTopicOf(admin, first, error)
  }
}

/** Before a broker is asked. @throws UsageError */
export function checkPlaceWords(words: readonly string[]): void {
  if (words.length === 1 || words.length === 2) return
  throw new UsageError(
    'whose dead letters?',
    'write GROUP TOPIC, or the name of a topic of dead letters, such as dlq.mailer.emails',
  )
}

async function findTopicOf(
  admin: QueueCommands,
  group: string,
  failure: MillraceError,
): Promise<DeadLetterPlace> {
  let topics: readonly string[]
  try {
    topics = (await admin.describeQueue(group)).topics.map(({ topic }) => topic)
  } catch (error) {
    if (!(error instanceof MillraceError) || !NO_QUEUE.has(error.code)) throw error
    const hint = `\`millrace queue describe GROUP\` names the topic of its dead letters; GROUP TOPIC does, too`
    throw new MillraceError(failure.code, failure.message, { ...failure.details, hint }, failure)
  }
  const [topic] = topics
  if (topic === undefined || topics.length > 1) {
    throw new UsageError(
      topics.length === 0
        ? `group ${group} works on no topic`
        : `group ${group} works on several topics`,
      topics.length === 0 ? undefined : `write ${group} and one of ${topics.join(', ')}`,
    )
  }
  return { group, topic }
}

/** As it is typed. */
export function nameOfPlace(place: DeadLetterPlace): string {
  return typeof place === 'string' ? place : `${place.group} ${place.topic}`
}
