/** The public API of the package. Everything else under src/ may change without notice. */
export type { Acks } from '../common/acks.ts'
export type { ErrorCode, ErrorDetails } from '../common/errors.ts'
export type { Offset } from '../common/offset.ts'
export type { RecordHeader } from '../record/batch-builder.ts'
export type { RecordCursor } from '../record/record-cursor.ts'
export type {
  Admin,
  Batch,
  BrokerInfo,
  Client,
  ClientLogger,
  ClusterInfo,
  Compression,
  ConfigInfo,
  ConnectOptions,
  Headers,
  KeyOf,
  NewRecord,
  PartitionInfo,
  Partitioner,
  Producer,
  ProducerOptions,
  ReadOptions,
  ReceivedRecord,
  Receipt,
  RecordStream,
  TopicDescription,
  TopicInfo,
  ValueOf,
} from './api.ts'
export { connect } from './client.ts'
export type {
  BatchContext,
  Consumer,
  ConsumerOptions,
  GroupAdmin,
  GroupDetails,
  GroupInfo,
  GroupMemberInfo,
  GroupOffset,
  GroupPartitionInfo,
  GroupState,
  GroupType,
  HandlerContext,
  OffsetResetEvent,
  OffsetResetPlan,
  PartitionLag,
  PartitionsListener,
  ResetOptions,
  ResetTo,
  RunOptions,
  TopicPartition,
} from './consumer-api.ts'
export { type Codec, type Topic, bytes, json, text, topic } from './codecs.ts'
export { MillraceError, type Remedy } from './errors.ts'
export {
  POSITION_GRAMMAR,
  type ParsedPosition,
  type ParsedRange,
  type Position,
  parsePosition,
  parseRange,
} from './position.ts'
