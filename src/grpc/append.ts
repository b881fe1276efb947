import { BrokerError } from '../common/errors.ts'
import { isOffset } from '../common/offset.ts'
import type { AppendResult } from '../log/partition-log.ts'
import { BatchBuilder } from '../record/batch-builder.ts'
import type { Partition } from '../topic/partition.ts'
import type { Topic } from '../topic/topic.ts'
import { partitionForKey } from '../wire/murmur2.ts'
import type {
  NewRecordMessage,
  ProduceEnvelope,
  ProduceResultMessage,
} from '../wire/produce-codec.ts'
import type { ErrorDetailMessage } from '../wire/error-detail.ts'
import { drainingError } from './drain.ts'
import type { ServiceEnvironment } from './environment.ts'
import { checkSize } from './unary.ts'

/** Where a request goes, and when it will be there. */
export interface StartedAppend {
  readonly partition: Partition
  readonly result: Promise<AppendResult>
}

/**
 * Starts the append of one request. The log has given it its place when this returns, so requests of a stream keep their order without
 * waiting for each other.
 * @throws BrokerError at once for everything that can be said before the log is asked; the rest comes by `result`
 */
export function startAppend(
  environment: ServiceEnvironment,
  envelope: ProduceEnvelope,
  messageBytes: number,
): StartedAppend {
  if (environment.drain.draining) throw drainingError()
  if (envelope.problem !== undefined) throw envelope.problem
  checkSize(environment, messageBytes)
  const topics = environment.topics()
  const { records, expectedOffset, topicId } = envelope
  topics.checkWritable(envelope.topic)
  let index = envelope.partition
  let batch = envelope.batch
  if (batch === undefined) {
    if (records === undefined || records.length === 0) {
      throw new BrokerError('EMPTY_BATCH', 'the request has neither a batch nor records', {
        topic: envelope.topic,
      })
    }
    const topic = topics.get(envelope.topic)
    index ??= choosePartition(environment, topic, records)
    batch = buildBatch(environment, envelope, records, topic)
  } else if (index === undefined) {
    throw new BrokerError('INVALID_PARTITION', 'a request with a batch must name its partition', {
      topic: envelope.topic,
      field: 'partition',
    })
  }
  const partition = topics.getPartition(envelope.topic, index, topicId)
  // `none` is not answered, but its bytes count as under way until they are written: else a fast producer would fill the memory.
  const acks = envelope.acks === 'none' ? 'written' : envelope.acks
  const result =
    expectedOffset === undefined
      ? partition.append(batch, acks)
      : partition.append(batch, acks, {
          // Checked when the envelope was read; the cast is for the compiler.
          expectedOffset: isOffset(expectedOffset) ? expectedOffset : undefined,
        })
  return { partition, result }
}

function choosePartition(
  environment: ServiceEnvironment,
  topic: Topic,
  records: readonly NewRecordMessage[],
): number {
  const key = records[0]?.key
  const count = topic.partitions.length
  return key === undefined ? environment.random.uint32() % count : partitionForKey(key, count)
}

function buildBatch(
  environment: ServiceEnvironment,
  envelope: ProduceEnvelope,
  records: readonly NewRecordMessage[],
  topic: Topic,
): Uint8Array {
  // No bound here: the batch is checked against the topic's limit as any other, and the request was within the message limit.
  const builder = new BatchBuilder({
    maxBytes: Number.MAX_SAFE_INTEGER,
    compression: envelope.compression,
  })
  const limit = topic.config.maxMessageBytes
  const nowMs = environment.clock.wallMs()
  for (const [i, record] of records.entries()) {
    const bytes = (record.key?.length ?? 0) + (record.value?.length ?? 0)
    if (bytes > limit) {
      throw new BrokerError(
        'RECORD_TOO_LARGE',
        `record ${i} has ${bytes} bytes; ${topic.name} takes at most ${limit} in a batch`,
        { topic: topic.name, index: i, actual: bytes, limit },
      )
    }
    const timestampMs = record.timestampMs ?? nowMs
    if (!Number.isSafeInteger(timestampMs) || timestampMs < 0) {
      throw new BrokerError('INVALID_TIMESTAMP', `record ${i} has the timestamp ${timestampMs}`, {
        topic: topic.name,
        index: i,
        actual: timestampMs,
      })
    }
    builder.tryAppend(record.key, record.value, timestampMs, record.headers)
  }
  return builder.finish()
}

export function toResultMessage(
  correlationId: number,
  partition: Partition,
  result: AppendResult,
): ProduceResultMessage {
  return {
    correlationId,
    partition: partition.index,
    baseOffset: result.baseOffset,
    endOffset: result.endOffset,
    appendTimeMs: result.appendTimeMs,
    duplicate: result.duplicate,
    acks: result.acks,
    leaderEpoch: result.leaderEpoch,
    highWatermark: result.highWatermark,
    error: undefined,
  }
}

export function toErrorResult(
  correlationId: number,
  partition: number,
  error: ErrorDetailMessage,
): ProduceResultMessage {
  return {
    correlationId,
    partition,
    baseOffset: 0,
    endOffset: 0,
    appendTimeMs: undefined,
    duplicate: false,
    acks: 'none',
    leaderEpoch: 0,
    highWatermark: 0,
    error,
  }
}
