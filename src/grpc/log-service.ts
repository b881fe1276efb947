import type { UntypedServiceImplementation } from '@grpc/grpc-js'
import { unreachable } from '../common/assert.ts'
import { BrokerError, toBrokerError } from '../common/errors.ts'
import type {
  FetchRequest,
  InitProducerRequest,
  ListOffsetsRequest,
  LogServiceMethods,
  PartitionOffset,
} from '../gen/types.ts'
import type { Partition } from '../topic/partition.ts'
import { LOG_SERVICE, type ServiceMethods } from '../wire/definitions.ts'
import { decodeProduceRequest, type ProduceResultMessage } from '../wire/produce-codec.ts'
import { startAppend, toResultMessage } from './append.ts'
import type { ServiceEnvironment } from './environment.ts'
import { checkTimestamp, FetchSession, type FetchCall } from './fetch-session.ts'
import { ProduceSession, type ProduceCall } from './produce-session.ts'
import { ProducerIds } from './producer-ids.ts'
import { SharedReads } from './shared-reads.ts'
import { checkEnum, implementService, implementUnary, takeRawRequests } from './unary.ts'

export const LOG_SERVICE_DEFINITION: ServiceMethods = takeRawRequests(LOG_SERVICE)

/** LogService: records in and out. */
export function logService(environment: ServiceEnvironment): UntypedServiceImplementation {
  const reads = new SharedReads()
  let ids: ProducerIds | undefined

  const append = async (bytes: Buffer): Promise<ProduceResultMessage> => {
    const envelope = decodeProduceRequest(bytes)
    const { partition, result } = startAppend(environment, envelope, bytes.length)
    return toResultMessage(envelope.correlationId, partition, await result)
  }

  const listOffsets = async (
    request: ListOffsetsRequest,
  ): Promise<{ offsets: PartitionOffset[] }> => {
    checkEnum('at', request.at)
    if (request.at === 'START_AT_TIMESTAMP') checkTimestamp(request.timestampMs)
    const topics = environment.topics()
    const topic = topics.get(request.topic)
    const indexes =
      request.partitions.length > 0
        ? request.partitions
        : topic.partitions.map((partition) => partition.index)
    const offsets = indexes.map(async (index) => {
      try {
        const partition = topics.getPartition(request.topic, index)
        if (partition.failure !== undefined) throw partition.failure
        return await findOffset(partition, request)
      } catch (error) {
        return offsetError(index, environment, error)
      }
    })
    return { offsets: await Promise.all(offsets) }
  }

  const initProducer = (
    request: InitProducerRequest,
  ): { producerId: number; producerEpoch: number } => {
    ids ??= new ProducerIds(environment.topics().store.incarnation)
    return ids.init(request.producerId, request.producerEpoch)
  }

  const readFetchRequest = (bytes: Buffer): FetchRequest =>
    // What the method's own deserializer makes, which is the type that gen/types.ts has for it.
    LOG_SERVICE['Fetch']?.requestDeserialize(bytes) as FetchRequest

  return {
    Produce: (call: ProduceCall) => new ProduceSession(call, environment).start(),
    Append: implementUnary(environment, 'Append', (bytes) => bytes, append, {
      timeoutCode: 'APPEND_TIMEOUT',
    }),
    Fetch: (call: FetchCall) => {
      let request: FetchRequest
      try {
        request = readFetchRequest(call.request)
      } catch (error) {
        const why = toBrokerError(error).message
        const failure = new BrokerError(
          'INVALID_REQUEST',
          `the message is not valid protobuf: ${why}`,
        )
        call.emit('error', environment.errors.toStatus(failure, 'Fetch'))
        return
      }
      const session = new FetchSession(call, environment, reads, request)
      // run() handles every failure itself and never rejects.
      void session.run()
    },
    ...implementService<Pick<LogServiceMethods, 'ListOffsets' | 'InitProducer'>>(
      environment,
      LOG_SERVICE,
      { ListOffsets: listOffsets, InitProducer: initProducer },
    ),
  }
}

async function findOffset(
  partition: Partition,
  request: ListOffsetsRequest,
): Promise<PartitionOffset> {
  const answer: PartitionOffset = {
    partition: partition.index,
    offset: partition.visibleEnd,
    logStartOffset: partition.logStartOffset,
    highWatermark: partition.highWatermark,
    logEndOffset: partition.logEndOffset,
    leaderEpoch: partition.leaderEpoch,
    error: null,
  }
  switch (request.at) {
    case 'START_AT_OFFSET':
      throw new BrokerError('INVALID_POSITION', 'ask for earliest, latest or a timestamp', {
        field: 'at',
      })
    case 'START_AT_EARLIEST':
      return { ...answer, offset: partition.logStartOffset }
    case 'START_AT_LATEST':
      return answer
    case 'START_AT_TIMESTAMP': {
      const found = await partition.findOffsetByTimestamp(request.timestampMs)
      if (found === undefined) return answer
      return { ...answer, offset: found.offset, timestampMs: found.timestampMs }
    }
    default:
      return unreachable(request.at)
  }
}

function offsetError(
  partition: number,
  environment: ServiceEnvironment,
  error: unknown,
): PartitionOffset {
  return {
    partition,
    offset: 0,
    logStartOffset: 0,
    highWatermark: 0,
    logEndOffset: 0,
    leaderEpoch: 0,
    error: environment.errors.toDetail(error, 'ListOffsets'),
  }
}
