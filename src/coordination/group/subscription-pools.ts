import { invariant } from '../../common/assert.ts'

/** Partitions by topic, numbers rising. The topic is an opaque string here (the coordinator uses topic ids). */
export type TopicPartitions = ReadonlyMap<string, readonly number[]>

export interface AssignorMember {
  readonly memberId: string
  readonly instanceId: string | undefined
  /** Not looked at yet. */
  readonly rack: string | undefined
  /** Topics that it may get partitions of. Members with one subscription should share one set: then it is read once for all of them. */
  readonly topics: ReadonlySet<string>
  /** What it has been meant to have until now; may name what is gone, or is not subscribed any more. */
  readonly target: TopicPartitions
}

export interface AssignorInput {
  readonly members: readonly AssignorMember[]
  readonly partitionCounts: ReadonlyMap<string, number>
}

/** Answers by member id. Every member has an entry, which names only topics that it gets something of. */
export type Assignor = (input: AssignorInput) => Map<string, TopicPartitions>

/** Topics with exactly the same subscribers: to an assignor their partitions are alike. */
export interface SubscriptionPool {
  /** Places in {@link SubscriptionPools.topics}, rising. */
  readonly topics: readonly number[]
  /** Places in {@link SubscriptionPools.members}, rising. Never empty. */
  readonly members: Int32Array
}

/**
 * An input in the form that assignors count with: members and topics in a fixed order, so that the order of the input changes nothing, and
 * a dense number for every partition, `bases[topic] + partition`.
 */
export interface SubscriptionPools {
  /** By member id. */
  readonly members: readonly AssignorMember[]
  /** By name. */
  readonly topics: readonly string[]
  readonly topicAt: ReadonlyMap<string, number>
  /** One more than there are topics: the last one is how many partitions there are. */
  readonly bases: Int32Array
  /** Fewest subscribers first: who can go nowhere else is served first. Topics without subscribers are in none. */
  readonly pools: readonly SubscriptionPool[]
}

/** Members with the same subscription. */
interface SubscriptionClass {
  /** Places of topics, rising. */
  readonly topics: Int32Array
  readonly members: number[]
}

/**
 * Groups members by subscription, then topics by subscribers. O(topics of all distinct sets + partitions + members·log(members)); a
 * set that two members share as one object counts once.
 */
export function toSubscriptionPools(input: AssignorInput): SubscriptionPools {
  const members = input.members.toSorted((a, b) => compareText(a.memberId, b.memberId))
  const topics = [...input.partitionCounts.keys()].sort(compareText)
  const topicAt = new Map<string, number>()
  const bases = new Int32Array(topics.length + 1)
  for (const [place, topic] of topics.entries()) {
    const count = input.partitionCounts.get(topic) ?? 0
    invariant(Number.isSafeInteger(count) && count >= 0, `${topic} has ${count} partitions`)
    topicAt.set(topic, place)
    bases[place + 1] = (bases[place] ?? 0) + count
  }
  const pools = groupTopics(groupMembers(members, topicAt), topics.length)
  return { members, topics, topicAt, bases, pools }
}

/** By code units: the same everywhere, which the order of a locale is not. */
export function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}

function groupMembers(
  members: readonly AssignorMember[],
  topicAt: ReadonlyMap<string, number>,
): SubscriptionClass[] {
  const bySet = new Map<ReadonlySet<string>, SubscriptionClass>()
  const byHash = new Map<number, SubscriptionClass[]>()
  const classes: SubscriptionClass[] = []
  for (const [place, member] of members.entries()) {
    let found = bySet.get(member.topics)
    if (found === undefined) {
      const subscribed = toPlaces(member.topics, topicAt)
      const alike = getOrAdd(byHash, hashOf(subscribed), () => [])
      found = alike.find((other) => sameNumbers(other.topics, subscribed))
      if (found === undefined) {
        found = { topics: subscribed, members: [] }
        alike.push(found)
        classes.push(found)
      }
      bySet.set(member.topics, found)
    }
    found.members.push(place)
  }
  return classes
}

function groupTopics(
  classes: readonly SubscriptionClass[],
  topicCount: number,
): SubscriptionPool[] {
  const classesOf: number[][] = Array.from({ length: topicCount }, () => [])
  for (const [at, { topics }] of classes.entries()) {
    for (const topic of topics) classesOf[topic]?.push(at)
  }
  const byHash = new Map<number, { classes: number[]; topics: number[] }[]>()
  const groups: { classes: number[]; topics: number[] }[] = []
  for (const [topic, subscribers] of classesOf.entries()) {
    if (subscribers.length === 0) continue
    const alike = getOrAdd(byHash, hashOf(subscribers), () => [])
    const found = alike.find((other) => sameNumbers(other.classes, subscribers))
    if (found === undefined) {
      const group = { classes: subscribers, topics: [topic] }
      alike.push(group)
      groups.push(group)
    } else {
      found.topics.push(topic)
    }
  }
  const pools = groups.map((group): SubscriptionPool => {
    return { topics: group.topics, members: joinMembers(classes, group.classes) }
  })
  return pools.sort((a, b) => a.members.length - b.members.length)
}

/** Not `flatMap`: with 1 000 subscriptions to 500 topics each, this is half a million numbers. */
function joinMembers(classes: readonly SubscriptionClass[], wanted: readonly number[]): Int32Array {
  let count = 0
  for (const at of wanted) count += classes[at]?.members.length ?? 0
  const joined = new Int32Array(count)
  let end = 0
  let rising = true
  for (const at of wanted) {
    for (const member of classes[at]?.members ?? []) {
      rising &&= end === 0 || (joined[end - 1] ?? 0) < member
      joined[end++] = member
    }
  }
  return rising ? joined : joined.sort()
}

function toPlaces(topics: ReadonlySet<string>, topicAt: ReadonlyMap<string, number>): Int32Array {
  const places = new Int32Array(topics.size)
  let count = 0
  for (const topic of topics) {
    const place = topicAt.get(topic)
    // A topic that has no count has no partitions to give.
    if (place !== undefined) places[count++] = place
  }
  return places.subarray(0, count).sort()
}

/** FNV-1a over whole numbers. It only has to spread; equality is checked. */
function hashOf(numbers: ArrayLike<number>): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < numbers.length; i++) {
    hash = Math.imul(hash ^ (numbers[i] ?? 0), 0x01000193)
    hash ^= hash >>> 15
  }
  return hash
}

function sameNumbers(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}

function getOrAdd<K, V>(map: Map<K, V>, key: K, make: () => V): V {
  const found = map.get(key)
  if (found !== undefined) return found
  const made = make()
  map.set(key, made)
  return made
}

/** Answers by member id from the owner of every partition, by dense number; -1 is nobody. O(partitions + members). */
export function toAssignment(
  input: SubscriptionPools,
  owners: Int32Array,
): Map<string, TopicPartitions> {
  const { members, topics, bases } = input
  const answers = members.map(() => new Map<string, number[]>())
  // The list that a member is being given, as long as it is still the same topic's.
  const lists: (number[] | undefined)[] = members.map(() => undefined)
  const listTopics = new Int32Array(members.length).fill(-1)
  for (const [at, topic] of topics.entries()) {
    const base = bases[at] ?? 0
    const end = bases[at + 1] ?? 0
    for (let i = base; i < end; i++) {
      const owner = owners[i] ?? -1
      if (owner < 0) continue
      if (listTopics[owner] === at) {
        lists[owner]?.push(i - base)
      } else {
        const list = [i - base]
        answers[owner]?.set(topic, list)
        lists[owner] = list
        listTopics[owner] = at
      }
    }
  }
  const assignment = new Map<string, TopicPartitions>()
  for (const [at, member] of members.entries()) {
    assignment.set(member.memberId, answers[at] ?? new Map())
  }
  invariant(assignment.size === members.length, 'member ids are unique')
  return assignment
}
