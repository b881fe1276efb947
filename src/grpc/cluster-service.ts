import type { UntypedServiceImplementation } from '@grpc/grpc-js'
import { crc32cTier } from '../bytes/crc32c.ts'
import { toBrokerError } from '../common/errors.ts'
import { checkGroupId } from '../common/names.ts'
import type { ClusterServiceMethods, GroupMetadata, TopicMetadata } from '../gen/types.ts'
import { isCompressionAvailable, lz4Tier } from '../record/compression.ts'
import type { Topics } from '../topic/topics.ts'
import { CLUSTER_SERVICE, type ServiceMethods } from '../wire/definitions.ts'
import type { ServiceEnvironment } from './environment.ts'
import { implementService, takeRawRequests, type UnaryHandlers } from './unary.ts'

export const CLUSTER_SERVICE_DEFINITION: ServiceMethods = takeRawRequests(CLUSTER_SERVICE)

/** ClusterService: who serves what. One broker today; the answers have room for more. */
export function clusterService(environment: ServiceEnvironment): UntypedServiceImplementation {
  const { identity } = environment
  const handlers: UnaryHandlers<ClusterServiceMethods> = {
    Metadata: (request) => {
      const topics = environment.topics()
      const names = request.allTopics ? topics.list().map((topic) => topic.name) : request.topics
      return {
        clusterId: topics.store.clusterId,
        mapVersion: topics.mapVersion,
        brokers: [{ brokerId: identity.brokerId, ...environment.address() }],
        topics: names.map((name) => describe(topics, name, identity.brokerId)),
        groups: request.groups.map((group) => locate(group, identity.brokerId)),
      }
    },
    DescribeBroker: () => {
      const topics = environment.topics()
      const all = topics.list({ internal: true })
      return {
        version: identity.version,
        clusterId: topics.store.clusterId,
        brokerId: identity.brokerId,
        incarnation: topics.store.incarnation,
        startedMs: identity.startedMs,
        nodeVersion: process.version,
        lz4: lz4Tier,
        crc32c: crc32cTier,
        zstd: isCompressionAvailable('zstd'),
        topics: all.filter((topic) => !topic.internal).length,
        partitions: all.reduce((sum, topic) => sum + topic.partitions.length, 0),
        storageFull: topics.store.storageFull,
        freeBytes: environment.freeBytes(),
        rssBytes: process.memoryUsage.rss(),
      }
    },
  }
  return implementService<ClusterServiceMethods>(environment, CLUSTER_SERVICE, handlers)
}

/** One broker coordinates every group, also those that are not there yet. */
function locate(group: string, coordinator: number): GroupMetadata {
  try {
    checkGroupId(group)
    return { group, coordinator, error: '', errorMessage: '' }
  } catch (failure) {
    const error = toBrokerError(failure)
    return { group, coordinator: 0, error: error.code, errorMessage: error.message }
  }
}

function describe(topics: Topics, name: string, leader: number): TopicMetadata {
  try {
    const topic = topics.get(name)
    return {
      topic: name,
      topicId: topic.id,
      partitions: topic.partitions.map((partition) => ({
        partition: partition.index,
        leader,
        leaderEpoch: partition.leaderEpoch,
      })),
      error: '',
      errorMessage: '',
      nearest: [],
      maxBatchBytes: topic.config.maxMessageBytes,
    }
  } catch (failure) {
    const error = toBrokerError(failure)
    const { nearest } = error.details
    return {
      topic: name,
      topicId: '',
      partitions: [],
      error: error.code,
      errorMessage: error.message,
      nearest: typeof nearest === 'object' ? [...nearest] : [],
      maxBatchBytes: 0,
    }
  }
}
