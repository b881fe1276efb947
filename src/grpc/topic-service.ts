import type { UntypedServiceImplementation } from '@grpc/grpc-js'
import { BrokerError } from '../common/errors.ts'
import { isOffset } from '../common/offset.ts'
import type { PartitionDescription, TopicServiceMethods, TopicSummary } from '../gen/types.ts'
import type { Partition } from '../topic/partition.ts'
import type { Topic } from '../topic/topic.ts'
import { type ServiceMethods, TOPIC_SERVICE } from '../wire/definitions.ts'
import type { ServiceEnvironment } from './environment.ts'
import { toSettingTexts } from './setting-messages.ts'
import { implementService, takeRawRequests, type UnaryHandlers } from './unary.ts'

export const TOPIC_SERVICE_DEFINITION: ServiceMethods = takeRawRequests(TOPIC_SERVICE)

/** TopicService: a thin face of Topics, which holds the rules. */
export function topicService(environment: ServiceEnvironment): UntypedServiceImplementation {
  const handlers: UnaryHandlers<TopicServiceMethods> = {
    CreateTopic: (request) =>
      environment.topics().create({
        name: request.topic,
        partitions: request.partitions === 0 ? undefined : request.partitions,
        config: toSettingTexts(request.config),
        ifNotExists: request.ifNotExists,
        validateOnly: request.validateOnly,
      }),
    DeleteTopic: (request) => environment.topics().delete(request.topic),
    ListTopics: async (request) => {
      const topics = environment.topics().list({ internal: request.internal })
      return { topics: await Promise.all(topics.map((topic) => summarize(topic, request.sizes))) }
    },
    DescribeTopic: async (request) => {
      const topic = environment.topics().get(request.topic)
      return {
        topic: topic.name,
        topicId: topic.id,
        createdMs: topic.createdMs,
        partitions: await Promise.all(topic.partitions.map(describePartition)),
        config: [...topic.describeConfig()],
      }
    },
    AlterTopic: async (request) => ({
      config: [
        ...(await environment.topics().alter(request.topic, {
          set: toSettingTexts(request.set),
          clear: request.clear,
          validateOnly: request.validateOnly,
        })),
      ],
    }),
    AddPartitions: async (request) => ({
      partitions: await environment.topics().addPartitions(request.topic, request.total),
    }),
    DeleteRecords: async (request) => {
      const topics = environment.topics()
      topics.checkWritable(request.topic)
      // All of them are looked at before the first is changed.
      const moves = request.partitions.map(({ partition, beforeOffset }) => {
        if (beforeOffset !== -1 && !isOffset(beforeOffset)) {
          throw new BrokerError('INVALID_REQUEST', `before_offset ${beforeOffset} is no offset`, {
            field: 'before_offset',
            actual: beforeOffset,
          })
        }
        const found = topics.getPartition(request.topic, partition)
        if (isOffset(beforeOffset) && beforeOffset > found.highWatermark) {
          throw new BrokerError(
            'OFFSET_OUT_OF_RANGE',
            `offset ${beforeOffset} is above the end ${found.highWatermark} of ${request.topic}-${partition}`,
            {
              topic: request.topic,
              partition,
              offset: beforeOffset,
              logStartOffset: found.logStartOffset,
              endOffset: found.highWatermark,
            },
          )
        }
        return { partition: found, to: isOffset(beforeOffset) ? beforeOffset : ('end' as const) }
      })
      const moved = moves.map(async ({ partition, to }) => {
        await partition.advanceLogStart(to)
        return { partition: partition.index, logStartOffset: partition.logStartOffset }
      })
      return { partitions: await Promise.all(moved) }
    },
  }
  return implementService<TopicServiceMethods>(environment, TOPIC_SERVICE, handlers)
}

async function summarize(topic: Topic, sizes: boolean): Promise<TopicSummary> {
  const summary: TopicSummary = {
    topic: topic.name,
    topicId: topic.id,
    partitions: topic.partitions.length,
    bytes: 0,
    records: 0,
  }
  if (!sizes) return summary
  for (const partition of topic.partitions) {
    if (partition.failure !== undefined) continue
    summary.bytes += (await partition.stats()).bytes
    summary.records += partition.highWatermark - partition.logStartOffset
  }
  return summary
}

async function describePartition(partition: Partition): Promise<PartitionDescription> {
  const stats =
    partition.failure === undefined
      ? await partition.stats()
      : { bytes: 0, segments: 0, damaged: [] }
  return {
    partition: partition.index,
    logStartOffset: partition.logStartOffset,
    highWatermark: partition.highWatermark,
    logEndOffset: partition.logEndOffset,
    bytes: stats.bytes,
    segments: stats.segments,
    leaderEpoch: partition.leaderEpoch,
    damaged: stats.damaged.map(({ start, end }) => ({ start, end })),
  }
}
