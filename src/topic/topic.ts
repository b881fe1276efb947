import { crc32c } from '../bytes/crc32c.ts'
import type { CatalogTopic } from './catalog-events.ts'
import { isInternalTopic, LONGEST_NAME } from '../common/names.ts'
import type { Partition } from './partition.ts'
import {
  type ConfigDescription,
  decodeOverrides,
  describeConfig,
  resolveConfig,
  type TopicConfig,
  type TopicOverrides,
} from './topic-config.ts'

/** One topic: what the catalog says of it, and its open partitions. */
export class Topic {
  readonly name: string
  /** A lower-case UUID. A topic made anew under an old name has a new one. */
  readonly id: string
  readonly createdMs: number
  /** True for names that begin with `__`, which belong to the broker. */
  readonly internal: boolean
  #entry: CatalogTopic
  #overrides: TopicOverrides
  #config: TopicConfig
  #partitions: readonly Partition[] = []

  /** @throws BrokerError INVALID_CONFIG, UNSUPPORTED_FEATURE when the settings of `entry` cannot be read */
  constructor(entry: CatalogTopic) {
    this.name = entry.topic
    this.id = entry.topicId
    this.createdMs = entry.createdMs
    this.internal = isInternalTopic(entry.topic)
    this.#entry = entry
    this.#overrides = decodeOverrides(entry.config).overrides
    this.#config = resolveConfig(this.#overrides)
  }

  /** By index. Another array after partitions have been added. */
  get partitions(): readonly Partition[] {
    return this.#partitions
  }

  get config(): TopicConfig {
    return this.#config
  }

  get overrides(): TopicOverrides {
    return this.#overrides
  }

  /** Every setting with its value, and whether it is the topic's own. */
  describeConfig(): readonly ConfigDescription[] {
    return describeConfig(this.#overrides)
  }

  /** What the catalog says. For `Topics` only, as all that follow. */
  get entry(): CatalogTopic {
    return this.#entry
  }

  addPartitions(partitions: readonly Partition[]): void {
    this.#partitions = [...this.#partitions, ...partitions]
  }

  /** Takes over a newer catalog entry of the same topic; its settings are in force when this returns. */
  update(entry: CatalogTopic): void {
    this.#entry = entry
    this.#overrides = decodeOverrides(entry.config).overrides
    this.#config = resolveConfig(this.#overrides)
    for (const partition of this.#partitions) partition.configure(this.#config)
  }
}

const HOME_SUFFIX = '.workers'

/**
 * The group that works through a topic of jobs: `jobs.group`, or `<topic>.workers`. Undefined when jobs are off. A topic's name that leaves no
 * room for that is cut, and told from others by a checksum of it all.
 */
export function homeGroupOf(topic: Pick<Topic, 'name' | 'config'>): string | undefined {
  const { jobsEnable, jobsGroup } = topic.config
  if (!jobsEnable) return undefined
  if (jobsGroup !== '') return jobsGroup
  const full = `${topic.name}${HOME_SUFFIX}`
  if (full.length <= LONGEST_NAME) return full
  const mark = `.${crc32c(Buffer.from(topic.name)).toString(16).padStart(8, '0')}${HOME_SUFFIX}`
  return topic.name.slice(0, LONGEST_NAME - mark.length) + mark
}
