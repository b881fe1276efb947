import type { Topic } from '../../topic/topic.ts'
import type { Topics } from '../../topic/topics.ts'
import type { SubscriptionRequest } from './group-types.ts'
import type { AssignmentInputs } from './stream-group.ts'
import { TopicPattern } from './topic-pattern.ts'

/** Patterns of which it is remembered what they match. Of more, those that were asked for longest ago are matched anew. */
const MOST_PATTERNS = 1000
/** Subscriptions by their text; with more they are all forgotten, and looked up again. */
const MOST_RESOLVED = 10_000

/** The topics that a pattern finds. */
interface Matched {
  readonly pattern: TopicPattern
  ids: ReadonlySet<string>
}

/** The topics as groups see them: by id, without the broker's own. Made anew when the map of topics has changed. */
export class TopicView implements AssignmentInputs {
  readonly #topics: Topics
  #version = -1
  #all: readonly Topic[] = []
  #byId = new Map<string, Topic>()
  #partitionCounts = new Map<string, number>()
  /** By the subscription's text: members that subscribe to the same share one set. */
  readonly #resolved = new Map<string, ReadonlySet<string>>()
  /** The same without the text: 1 000 lists of 1 000 names take 70 ms to join, and each target assignment asks for all of them. */
  #known = new WeakMap<SubscriptionRequest, ReadonlySet<string>>()
  /** Kept when the map changes: a name never changes, so only new topics have to be matched. Those asked for last are last. */
  readonly #matched: Map<string, Matched> = new Map()

  constructor(topics: Topics) {
    this.#topics = topics
  }

  /**
   * Topics or partitions have come or gone. The map's version alone would not do: it rises when the catalog has a new topic, a little before the topic
   * is there.
   */
  invalidate(): void {
    this.#version = -1
  }

  get partitionCounts(): ReadonlyMap<string, number> {
    this.#refresh()
    return this.#partitionCounts
  }

  findById(topicId: string): Topic | undefined {
    this.#refresh()
    return this.#byId.get(topicId)
  }

  /** For people: the name, or the id of a topic that is gone. */
  nameOf(topicId: string): string {
    return this.findById(topicId)?.name ?? topicId
  }

  /** The ids of the topics that a subscription means now. The pattern has been checked when it came in. */
  resolve(subscription: SubscriptionRequest): ReadonlySet<string> {
    this.#refresh()
    const known = this.#known.get(subscription) ?? this.#resolve(subscription)
    this.#known.set(subscription, known)
    return known
  }

  #resolve(subscription: SubscriptionRequest): ReadonlySet<string> {
    const key = `${subscription.pattern}\n${subscription.topics.join('\n')}`
    const known = this.#resolved.get(key)
    if (known !== undefined) return known
    const ids =
      subscription.pattern === ''
        ? this.#findNamed(subscription.topics)
        : this.#match(subscription.pattern)
    if (this.#resolved.size >= MOST_RESOLVED) this.#resolved.clear()
    this.#resolved.set(key, ids)
    return ids
  }

  #findNamed(names: readonly string[]): ReadonlySet<string> {
    const ids = new Set<string>()
    for (const name of names) {
      const topic = this.#topics.find(name)
      if (topic !== undefined && !topic.internal) ids.add(topic.id)
    }
    return ids
  }

  #match(text: string): ReadonlySet<string> {
    let matched = this.#matched.get(text)
    if (matched === undefined) {
      const pattern = TopicPattern.parse(text)
      matched = { pattern, ids: findMatches(pattern, this.#all) }
    } else this.#matched.delete(text)
    this.#matched.set(text, matched)
    if (this.#matched.size > MOST_PATTERNS) {
      for (const oldest of this.#matched.keys()) {
        this.#matched.delete(oldest)
        break
      }
    }
    return matched.ids
  }

  /** Brings what patterns match up to date. O(patterns · topics that have come or gone) */
  #rematch(added: readonly Topic[], removed: readonly string[]): void {
    for (const matched of this.#matched.values()) {
      const found = findMatches(matched.pattern, added)
      const gone = removed.filter((id) => matched.ids.has(id))
      if (found.size === 0 && gone.length === 0) continue
      const ids = new Set([...matched.ids, ...found])
      for (const id of gone) ids.delete(id)
      matched.ids = ids
    }
  }

  #refresh(): void {
    const version = this.#topics.mapVersion
    if (version === this.#version) return
    this.#version = version
    this.#all = this.#topics.list()
    const before = this.#byId
    this.#byId = new Map(this.#all.map((topic) => [topic.id, topic]))
    this.#rematch(
      this.#all.filter(({ id }) => !before.has(id)),
      [...before.keys()].filter((id) => !this.#byId.has(id)),
    )
    this.#partitionCounts = new Map(this.#all.map((topic) => [topic.id, topic.partitions.length]))
    this.#resolved.clear()
    this.#known = new WeakMap()
  }
}

function findMatches(pattern: TopicPattern, topics: readonly Topic[]): Set<string> {
  const ids = new Set<string>()
  for (const topic of topics) if (pattern.matches(topic.name)) ids.add(topic.id)
  return ids
}
