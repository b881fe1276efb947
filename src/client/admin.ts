import { type Offset, toOffset } from '../common/offset.ts'
import type { ConfigDescription, ConfigEntry } from '../gen/types.ts'
import type {
  Admin,
  BrokerInfo,
  ClusterInfo,
  ConfigInfo,
  TopicDescription,
  TopicInfo,
} from './api.ts'
import type { Connection } from './connection.ts'
import type {
  GroupAdmin,
  GroupDetails,
  GroupInfo,
  GroupOffset,
  OffsetResetPlan,
  ResetOptions,
} from './consumer-api.ts'
import { LogGroupAdmin } from './group-admin.ts'
import { choosePartitions, findOffsets } from './offset-lookup.ts'
import { parsePosition, type Position } from './position.ts'
import { LogQueueAdmin } from './queue-admin.ts'
import type {
  DeadLetterInfo,
  DeadLetterPlace,
  DelayedInfo,
  QueueAdmin,
  QueueInfo,
  RecordExplanation,
  RedriveInfo,
  RedriveOptions,
  RedriveResult,
} from './worker-api.ts'

export class LogAdmin implements Admin {
  readonly #connection: Connection
  readonly #groups: GroupAdmin
  readonly #queues: QueueAdmin

  constructor(connection: Connection) {
    this.#connection = connection
    this.#groups = new LogGroupAdmin(connection)
    this.#queues = new LogQueueAdmin(connection)
  }

  async createTopic(
    name: string,
    options: Parameters<Admin['createTopic']>[1] = {},
  ): Promise<{ readonly created: boolean; readonly topicId: string; readonly partitions: number }> {
    const { created, topicId, partitions } = await this.#connection.call(
      'CreateTopic',
      {
        topic: name,
        partitions: options.partitions ?? 0,
        config: toEntries(options.config),
        ifNotExists: options.ifNotExists ?? false,
        validateOnly: options.validateOnly ?? false,
      },
      { isRead: false },
    )
    return { created, topicId, partitions }
  }

  async *topics(options: Parameters<Admin['topics']>[0] = {}): AsyncGenerator<TopicInfo> {
    const { topics } = await this.#connection.call(
      'ListTopics',
      { internal: options.internal ?? false, sizes: options.sizes ?? true },
      { isRead: true },
    )
    const sorted = topics.sort((a, b) => (a.topic < b.topic ? -1 : 1))
    for (const { topic, topicId, partitions, bytes, records } of sorted) {
      if (options.match === undefined || topic.search(options.match) >= 0) {
        yield { name: topic, topicId, partitions, bytes, records }
      }
    }
  }

  async describeTopic(name: string): Promise<TopicDescription> {
    const answer = await this.#connection.call('DescribeTopic', { topic: name }, { isRead: true })
    return {
      name: answer.topic,
      topicId: answer.topicId,
      createdAt: answer.createdMs,
      partitions: answer.partitions.map((entry) => ({
        partition: entry.partition,
        logStartOffset: toOffset(entry.logStartOffset),
        highWatermark: toOffset(entry.highWatermark),
        logEndOffset: toOffset(entry.logEndOffset),
        bytes: entry.bytes,
        segments: entry.segments,
        leaderEpoch: entry.leaderEpoch,
        damaged: entry.damaged.map(({ start, end }) => ({
          start: toOffset(start),
          end: toOffset(end),
        })),
      })),
      config: answer.config.map(toConfigInfo),
    }
  }

  async alterTopic(
    name: string,
    change: Parameters<Admin['alterTopic']>[1],
  ): Promise<readonly ConfigInfo[]> {
    // Settings first: they are checked whole, and a bad one leaves the partitions as they were.
    const { config } = await this.#connection.call(
      'AlterTopic',
      {
        topic: name,
        set: toEntries(change.set),
        clear: [...(change.clear ?? [])],
        validateOnly: change.validateOnly ?? false,
      },
      { isRead: false },
    )
    if (change.partitions !== undefined && change.validateOnly !== true) {
      await this.addPartitions(name, change.partitions)
    }
    return config.map(toConfigInfo)
  }

  async addPartitions(name: string, total: number): Promise<number> {
    const { partitions } = await this.#connection.call(
      'AddPartitions',
      { topic: name, total },
      { isRead: false },
    )
    this.#connection.forgetRoute(name)
    return partitions
  }

  async deleteTopic(name: string): Promise<void> {
    await this.#connection.call('DeleteTopic', { topic: name }, { isRead: false })
    this.#connection.forgetRoute(name)
  }

  async deleteRecords(
    name: string,
    before: ReadonlyMap<number, Offset | number | 'end'>,
  ): Promise<ReadonlyMap<number, Offset>> {
    const { partitions } = await this.#connection.call(
      'DeleteRecords',
      {
        topic: name,
        partitions: [...before].map(([partition, offset]) => ({
          partition,
          beforeOffset: offset === 'end' ? -1 : offset,
        })),
      },
      { isRead: true }, // Moving a log start up to the same place again changes nothing.
    )
    return new Map(
      partitions.map(({ partition, logStartOffset }) => [partition, toOffset(logStartOffset)]),
    )
  }

  async offsets(
    name: string,
    at: Position,
    options: { readonly partitions?: readonly number[] | undefined } = {},
  ): Promise<ReadonlyMap<number, Offset>> {
    const position = parsePosition(at, this.#connection.clock.wallMs())
    // Asked anew: partitions may have been added since.
    const route = await this.#connection.refreshRoute(name)
    const partitions = choosePartitions(route, options.partitions)
    const found = await findOffsets(this.#connection, name, partitions, position)
    return new Map([...found].sort(([a], [b]) => a - b))
  }

  async broker(): Promise<BrokerInfo> {
    const { startedMs, ...rest } = await this.#connection.call(
      'DescribeBroker',
      {},
      { isRead: true },
    )
    return { ...rest, startedAt: startedMs }
  }

  async cluster(): Promise<ClusterInfo> {
    const { clusterId, mapVersion, brokers } = await this.#connection.call(
      'Metadata',
      { topics: [], groups: [], allTopics: false },
      { isRead: true },
    )
    return {
      clusterId,
      mapVersion,
      brokers: brokers.map(({ brokerId, host, port }) => ({ brokerId, host, port })),
    }
  }

  groups(filter?: Parameters<GroupAdmin['groups']>[0]): AsyncIterable<GroupInfo> {
    return this.#groups.groups(filter)
  }

  describeGroup(
    group: string,
    options?: Parameters<GroupAdmin['describeGroup']>[1],
  ): Promise<GroupDetails> {
    return this.#groups.describeGroup(group, options)
  }

  deleteGroup(group: string): Promise<void> {
    return this.#groups.deleteGroup(group)
  }

  groupOffsets(group: string): Promise<readonly GroupOffset[]> {
    return this.#groups.groupOffsets(group)
  }

  commitOffsets(group: string, offsets: Parameters<GroupAdmin['commitOffsets']>[1]): Promise<void> {
    return this.#groups.commitOffsets(group, offsets)
  }

  deleteGroupOffsets(
    group: string,
    topic: string,
    partitions?: readonly number[],
  ): Promise<number> {
    return this.#groups.deleteGroupOffsets(group, topic, partitions)
  }

  resetOffsets(group: string, options: ResetOptions): Promise<readonly OffsetResetPlan[]> {
    return this.#groups.resetOffsets(group, options)
  }

  describeQueue(group: string): Promise<QueueInfo> {
    return this.#queues.describeQueue(group)
  }

  configureQueue(
    group: string,
    change: Parameters<QueueAdmin['configureQueue']>[1],
  ): Promise<QueueInfo['config']> {
    return this.#queues.configureQueue(group, change)
  }

  pauseQueue(group: string, options?: Parameters<QueueAdmin['pauseQueue']>[1]): Promise<void> {
    return this.#queues.pauseQueue(group, options)
  }

  resumeQueue(group: string): Promise<void> {
    return this.#queues.resumeQueue(group)
  }

  peekQueue(
    group: string,
    topic: string,
    options?: Parameters<QueueAdmin['peekQueue']>[2],
  ): ReturnType<QueueAdmin['peekQueue']> {
    return this.#queues.peekQueue(group, topic, options)
  }

  explainRecord(
    group: string,
    topic: string,
    partition: number,
    offset: number,
  ): Promise<RecordExplanation> {
    return this.#queues.explainRecord(group, topic, partition, offset)
  }

  unblockRecord(
    group: string,
    topic: string,
    partition: number,
    offset: number,
    what: 'skip' | 'retry',
  ): Promise<void> {
    return this.#queues.unblockRecord(group, topic, partition, offset, what)
  }

  deadLetters(
    place: DeadLetterPlace,
    options?: Parameters<QueueAdmin['deadLetters']>[1],
  ): AsyncIterable<DeadLetterInfo> {
    return this.#queues.deadLetters(place, options)
  }

  discardDeadLetters(
    place: DeadLetterPlace,
    options?: Parameters<QueueAdmin['discardDeadLetters']>[1],
  ): Promise<{ readonly discarded: number }> {
    return this.#queues.discardDeadLetters(place, options)
  }

  redrive(place: DeadLetterPlace, options?: RedriveOptions): Promise<RedriveResult> {
    return this.#queues.redrive(place, options)
  }

  redrives(): Promise<readonly RedriveInfo[]> {
    return this.#queues.redrives()
  }

  cancelRedrive(taskId: string): Promise<RedriveInfo> {
    return this.#queues.cancelRedrive(taskId)
  }

  delayed(options?: Parameters<QueueAdmin['delayed']>[0]): AsyncIterable<DelayedInfo> {
    return this.#queues.delayed(options)
  }

  countDelayed(topic?: string): Promise<number> {
    return this.#queues.countDelayed(topic)
  }

  cancelDelayed(delayId: string): Promise<void> {
    return this.#queues.cancelDelayed(delayId)
  }

  updateDelayed(delayId: string, deliverAt: Date): Promise<void> {
    return this.#queues.updateDelayed(delayId, deliverAt)
  }

  fireDelayed(delayId: string): Promise<{ readonly partition: number; readonly offset: number }> {
    return this.#queues.fireDelayed(delayId)
  }
}

function toEntries(config: Readonly<Record<string, string>> | undefined): ConfigEntry[] {
  return Object.entries(config ?? {}).map(([name, value]) => ({ name, value }))
}

function toConfigInfo(entry: ConfigDescription): ConfigInfo {
  const { name, value, overridden, description, allowed } = entry
  return { name, value, overridden, description, allowed }
}
