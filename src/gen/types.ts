// Made from proto/ by scripts/gen.mjs. Not to be edited: change proto/ and run `npm run gen`.
// What proto-loader hands out with longs as numbers, enums as names and defaults set: fields are there, but `optional` ones may be
// absent and messages may be null. An enum value that this version does not know arrives as its number, whatever the type says.

export type HealthCheckResponseServingStatus =
  | 'UNKNOWN'
  | 'SERVING'
  | 'NOT_SERVING'
  | 'SERVICE_UNKNOWN'

export type Reason =
  | 'REASON_UNSPECIFIED'
  | 'INVALID_REQUEST'
  | 'INVALID_TOPIC_NAME'
  | 'INVALID_CONFIG'
  | 'IMMUTABLE_CONFIG'
  | 'INVALID_PARTITION'
  | 'INVALID_POSITION'
  | 'INVALID_RECORD'
  | 'INVALID_TIMESTAMP'
  | 'UNSUPPORTED_CODEC'
  | 'RECORD_TOO_LARGE'
  | 'BATCH_TOO_LARGE'
  | 'EMPTY_BATCH'
  | 'DECOMPRESSED_TOO_LARGE'
  | 'CORRUPT_BATCH'
  | 'OFFSET_OUT_OF_RANGE'
  | 'UNKNOWN_TOPIC'
  | 'UNKNOWN_TOPIC_ID'
  | 'UNKNOWN_PARTITION'
  | 'UNKNOWN_PRODUCER'
  | 'TOPIC_EXISTS'
  | 'TOPIC_INTERNAL'
  | 'WRONG_EXPECTED_OFFSET'
  | 'PRODUCER_FENCED'
  | 'OUT_OF_ORDER_SEQUENCE'
  | 'QUOTA_EXCEEDED'
  | 'STORAGE_FULL'
  | 'TOO_MANY_TOPICS'
  | 'TOO_MANY_OPEN_FILES'
  | 'NOT_LEADER'
  | 'LOADING'
  | 'BROKER_DRAINING'
  | 'READ_ONLY'
  | 'UNREACHABLE'
  | 'FLUSH_FAILED'
  | 'REQUEST_TIMEOUT'
  | 'APPEND_TIMEOUT'
  | 'CANCELLED_BY_CLIENT'
  | 'SEGMENT_QUARANTINED'
  | 'CORRUPT_INDEX'
  | 'STORAGE_ERROR'
  | 'INTERNAL_ERROR'
  | 'UNSUPPORTED_FEATURE'
  | 'PERMISSION_DENIED'
  | 'UNAUTHENTICATED'
  | 'DIRECTORY_IN_USE'
  | 'DIRECTORY_UNUSABLE'
  | 'UNSUPPORTED_FORMAT'
  | 'ADDRESS_IN_USE'
  | 'CLOSED'
  | 'INVALID_GROUP_ID'
  | 'INVALID_PATTERN'
  | 'UNKNOWN_GROUP'
  | 'UNKNOWN_MEMBER'
  | 'GROUP_TYPE_MISMATCH'
  | 'GROUP_NOT_EMPTY'
  | 'GROUP_SUBSCRIBED'
  | 'GROUP_FULL'
  | 'INSTANCE_ID_IN_USE'
  | 'INSTANCE_FENCED'
  | 'STALE_MEMBER_EPOCH'
  | 'PARTITION_NOT_OWNED'
  | 'NOT_COORDINATOR'
  | 'COMMIT_TIMEOUT'
  | 'INVALID_BACKOFF'
  | 'INVALID_ACK_RANGE'
  | 'INVALID_LEASE_TOKEN'
  | 'INVALID_DELAY'
  | 'DELAY_TOO_LONG'
  | 'CONFLICTING_FIELDS'
  | 'INVALID_CURSOR'
  | 'INVALID_FILTER'
  | 'LEASE_LOST'
  | 'LEASE_LIMIT_REACHED'
  | 'DLQ_CYCLE'
  | 'NOT_A_DLQ'
  | 'DLQ_UNAVAILABLE'
  | 'REDRIVE_IN_PROGRESS'
  | 'TASK_NOT_FOUND'
  | 'DELAY_NOT_FOUND'
  | 'ALREADY_FIRED'
  | 'DEDUPE_MISMATCH'

export type GroupType =
  | 'GROUP_TYPE_UNSPECIFIED'
  | 'GROUP_TYPE_STREAM'
  | 'GROUP_TYPE_QUEUE'

export type GroupState =
  | 'GROUP_STATE_UNSPECIFIED'
  | 'GROUP_STATE_EMPTY'
  | 'GROUP_STATE_ASSIGNING'
  | 'GROUP_STATE_RECONCILING'
  | 'GROUP_STATE_STABLE'

export type ResetTo =
  | 'RESET_TO_UNSPECIFIED'
  | 'RESET_TO_EARLIEST'
  | 'RESET_TO_LATEST'
  | 'RESET_TO_OFFSET'
  | 'RESET_TO_TIMESTAMP'
  | 'RESET_TO_DURATION'
  | 'RESET_TO_SHIFT'
  | 'RESET_TO_OFFSETS'

export type Acks =
  | 'ACKS_UNSPECIFIED'
  | 'ACKS_NONE'
  | 'ACKS_WRITTEN'
  | 'ACKS_DURABLE'

export type Compression =
  | 'COMPRESSION_NONE'
  | 'COMPRESSION_GZIP'
  | 'COMPRESSION_LZ4'
  | 'COMPRESSION_ZSTD'

export type StartAt =
  | 'START_AT_OFFSET'
  | 'START_AT_EARLIEST'
  | 'START_AT_LATEST'
  | 'START_AT_TIMESTAMP'

export type Verdict =
  | 'VERDICT_UNSPECIFIED'
  | 'VERDICT_ACCEPT'
  | 'VERDICT_RELEASE'
  | 'VERDICT_RETRY'
  | 'VERDICT_REJECT'
  | 'VERDICT_RENEW'

export type RecordState =
  | 'RECORD_STATE_UNSPECIFIED'
  | 'RECORD_STATE_UNSCANNED'
  | 'RECORD_STATE_AVAILABLE'
  | 'RECORD_STATE_ACQUIRED'
  | 'RECORD_STATE_PARKED'
  | 'RECORD_STATE_DEAD_LETTERING'
  | 'RECORD_STATE_BLOCKED'
  | 'RECORD_STATE_DONE'
  | 'RECORD_STATE_DEAD'
  | 'RECORD_STATE_GONE'
  | 'RECORD_STATE_NOT_YET'

export type RedriveState =
  | 'REDRIVE_STATE_UNSPECIFIED'
  | 'REDRIVE_STATE_RUNNING'
  | 'REDRIVE_STATE_DONE'
  | 'REDRIVE_STATE_CANCELLED'
  | 'REDRIVE_STATE_FAILED'

export const HEALTH_CHECK_RESPONSE_SERVING_STATUS_NUMBERS: { readonly [name in HealthCheckResponseServingStatus]: number } = {
  UNKNOWN: 0,
  SERVING: 1,
  NOT_SERVING: 2,
  SERVICE_UNKNOWN: 3,
}

export const REASON_NUMBERS: { readonly [name in Reason]: number } = {
  REASON_UNSPECIFIED: 0,
  INVALID_REQUEST: 1,
  INVALID_TOPIC_NAME: 2,
  INVALID_CONFIG: 3,
  IMMUTABLE_CONFIG: 4,
  INVALID_PARTITION: 5,
  INVALID_POSITION: 6,
  INVALID_RECORD: 7,
  INVALID_TIMESTAMP: 8,
  UNSUPPORTED_CODEC: 9,
  RECORD_TOO_LARGE: 10,
  BATCH_TOO_LARGE: 11,
  EMPTY_BATCH: 12,
  DECOMPRESSED_TOO_LARGE: 13,
  CORRUPT_BATCH: 14,
  OFFSET_OUT_OF_RANGE: 15,
  UNKNOWN_TOPIC: 16,
  UNKNOWN_TOPIC_ID: 17,
  UNKNOWN_PARTITION: 18,
  UNKNOWN_PRODUCER: 19,
  TOPIC_EXISTS: 20,
  TOPIC_INTERNAL: 21,
  WRONG_EXPECTED_OFFSET: 22,
  PRODUCER_FENCED: 23,
  OUT_OF_ORDER_SEQUENCE: 24,
  QUOTA_EXCEEDED: 25,
  STORAGE_FULL: 26,
  TOO_MANY_TOPICS: 27,
  TOO_MANY_OPEN_FILES: 28,
  NOT_LEADER: 29,
  LOADING: 30,
  BROKER_DRAINING: 31,
  READ_ONLY: 32,
  UNREACHABLE: 33,
  FLUSH_FAILED: 34,
  REQUEST_TIMEOUT: 35,
  APPEND_TIMEOUT: 36,
  CANCELLED_BY_CLIENT: 37,
  SEGMENT_QUARANTINED: 38,
  CORRUPT_INDEX: 39,
  STORAGE_ERROR: 40,
  INTERNAL_ERROR: 41,
  UNSUPPORTED_FEATURE: 42,
  PERMISSION_DENIED: 43,
  UNAUTHENTICATED: 44,
  DIRECTORY_IN_USE: 45,
  DIRECTORY_UNUSABLE: 46,
  UNSUPPORTED_FORMAT: 47,
  ADDRESS_IN_USE: 48,
  CLOSED: 49,
  INVALID_GROUP_ID: 50,
  INVALID_PATTERN: 51,
  UNKNOWN_GROUP: 52,
  UNKNOWN_MEMBER: 53,
  GROUP_TYPE_MISMATCH: 54,
  GROUP_NOT_EMPTY: 55,
  GROUP_SUBSCRIBED: 56,
  GROUP_FULL: 57,
  INSTANCE_ID_IN_USE: 58,
  INSTANCE_FENCED: 59,
  STALE_MEMBER_EPOCH: 60,
  PARTITION_NOT_OWNED: 61,
  NOT_COORDINATOR: 62,
  COMMIT_TIMEOUT: 63,
  INVALID_BACKOFF: 64,
  INVALID_ACK_RANGE: 65,
  INVALID_LEASE_TOKEN: 66,
  INVALID_DELAY: 67,
  DELAY_TOO_LONG: 68,
  CONFLICTING_FIELDS: 69,
  INVALID_CURSOR: 70,
  INVALID_FILTER: 71,
  LEASE_LOST: 72,
  LEASE_LIMIT_REACHED: 73,
  DLQ_CYCLE: 74,
  NOT_A_DLQ: 75,
  DLQ_UNAVAILABLE: 76,
  REDRIVE_IN_PROGRESS: 77,
  TASK_NOT_FOUND: 78,
  DELAY_NOT_FOUND: 79,
  ALREADY_FIRED: 80,
  DEDUPE_MISMATCH: 81,
}

export const GROUP_TYPE_NUMBERS: { readonly [name in GroupType]: number } = {
  GROUP_TYPE_UNSPECIFIED: 0,
  GROUP_TYPE_STREAM: 1,
  GROUP_TYPE_QUEUE: 2,
}

export const GROUP_STATE_NUMBERS: { readonly [name in GroupState]: number } = {
  GROUP_STATE_UNSPECIFIED: 0,
  GROUP_STATE_EMPTY: 1,
  GROUP_STATE_ASSIGNING: 2,
  GROUP_STATE_RECONCILING: 3,
  GROUP_STATE_STABLE: 4,
}

export const RESET_TO_NUMBERS: { readonly [name in ResetTo]: number } = {
  RESET_TO_UNSPECIFIED: 0,
  RESET_TO_EARLIEST: 1,
  RESET_TO_LATEST: 2,
  RESET_TO_OFFSET: 3,
  RESET_TO_TIMESTAMP: 4,
  RESET_TO_DURATION: 5,
  RESET_TO_SHIFT: 6,
  RESET_TO_OFFSETS: 7,
}

export const ACKS_NUMBERS: { readonly [name in Acks]: number } = {
  ACKS_UNSPECIFIED: 0,
  ACKS_NONE: 1,
  ACKS_WRITTEN: 2,
  ACKS_DURABLE: 3,
}

export const COMPRESSION_NUMBERS: { readonly [name in Compression]: number } = {
  COMPRESSION_NONE: 0,
  COMPRESSION_GZIP: 1,
  COMPRESSION_LZ4: 2,
  COMPRESSION_ZSTD: 3,
}

export const START_AT_NUMBERS: { readonly [name in StartAt]: number } = {
  START_AT_OFFSET: 0,
  START_AT_EARLIEST: 1,
  START_AT_LATEST: 2,
  START_AT_TIMESTAMP: 3,
}

export const VERDICT_NUMBERS: { readonly [name in Verdict]: number } = {
  VERDICT_UNSPECIFIED: 0,
  VERDICT_ACCEPT: 1,
  VERDICT_RELEASE: 2,
  VERDICT_RETRY: 3,
  VERDICT_REJECT: 4,
  VERDICT_RENEW: 5,
}

export const RECORD_STATE_NUMBERS: { readonly [name in RecordState]: number } = {
  RECORD_STATE_UNSPECIFIED: 0,
  RECORD_STATE_UNSCANNED: 1,
  RECORD_STATE_AVAILABLE: 2,
  RECORD_STATE_ACQUIRED: 3,
  RECORD_STATE_PARKED: 4,
  RECORD_STATE_DEAD_LETTERING: 5,
  RECORD_STATE_BLOCKED: 6,
  RECORD_STATE_DONE: 7,
  RECORD_STATE_DEAD: 8,
  RECORD_STATE_GONE: 9,
  RECORD_STATE_NOT_YET: 10,
}

export const REDRIVE_STATE_NUMBERS: { readonly [name in RedriveState]: number } = {
  REDRIVE_STATE_UNSPECIFIED: 0,
  REDRIVE_STATE_RUNNING: 1,
  REDRIVE_STATE_DONE: 2,
  REDRIVE_STATE_CANCELLED: 3,
  REDRIVE_STATE_FAILED: 4,
}

export interface HealthCheckRequest {
  service: string
}

export interface HealthCheckResponse {
  status: HealthCheckResponseServingStatus
}

export interface MetadataRequest {
  topics: string[]
  allTopics: boolean
  groups: string[]
}

export interface MetadataResponse {
  clusterId: string
  mapVersion: number
  brokers: BrokerAddress[]
  topics: TopicMetadata[]
  groups: GroupMetadata[]
}

export interface GroupMetadata {
  group: string
  coordinator: number
  error: string
  errorMessage: string
}

export interface BrokerAddress {
  brokerId: number
  host: string
  port: number
}

export interface TopicMetadata {
  topic: string
  topicId: string
  partitions: PartitionMetadata[]
  error: string
  errorMessage: string
  nearest: string[]
  maxBatchBytes: number
}

export interface PartitionMetadata {
  partition: number
  leader: number
  leaderEpoch: number
}

export type DescribeBrokerRequest = { [name: string]: never }

export interface DescribeBrokerResponse {
  version: string
  clusterId: string
  brokerId: number
  incarnation: number
  startedMs: number
  nodeVersion: string
  lz4: string
  crc32c: string
  zstd: boolean
  topics: number
  partitions: number
  storageFull: boolean
  freeBytes: number
  rssBytes: number
}

export interface ErrorDetail {
  reason: Reason
  message: string
  action: string
  retryable: boolean
  noSideEffects: boolean
  retryAfterMs: number
  facts: ErrorFact[]
  traceId: string
}

export interface ErrorFact {
  name: string
  value: string
}

export interface JoinRequest {
  join: JoinGroup | null
  heartbeat: Heartbeat | null
  commit: CommitRequest | null
  confirm: ConfirmAssignment | null
  subscribe: Subscription | null
  leave: LeaveGroup | null
}

export interface JoinResponse {
  joined: Joined | null
  heartbeat: Heartbeat | null
  commit: CommitResult | null
  assignment: Assignment | null
}

export interface Subscription {
  topics: string[]
  pattern: string
}

export interface JoinGroup {
  group: string
  memberId: string
  memberEpoch: number
  instanceId: string
  clientId: string
  subscription: Subscription | null
  assignor: string
  sessionTimeoutMs: number
  rebalanceTimeoutMs: number
  rack: string
}

export interface Joined {
  memberId: string
  memberEpoch: number
  heartbeatIntervalMs: number
  sessionTimeoutMs: number
  rebalanceTimeoutMs: number
  resumed: boolean
}

export interface Heartbeat {
  nonce: number
}

export interface Assignment {
  number: number
  memberEpoch: number
  groupEpoch: number
  topics: AssignedTopic[]
}

export interface AssignedTopic {
  topic: string
  topicId: string
  partitions: AssignedPartition[]
}

export interface AssignedPartition {
  partition: number
  committedOffset?: number
  committedLeaderEpoch: number
  metadata: string
  logStartOffset: number
  highWatermark: number
}

export interface ConfirmAssignment {
  number: number
}

export type LeaveGroup = { [name: string]: never }

export interface OffsetCommit {
  topic: string
  partition: number
  offset: number
  leaderEpoch: number
  metadata: string
  topicId: string
}

export interface CommitRequest {
  correlationId: number
  memberEpoch: number
  offsets: OffsetCommit[]
}

export interface CommitResult {
  correlationId: number
  errors: OffsetError[]
}

export interface OffsetError {
  topic: string
  partition: number
  error: ErrorDetail | null
}

export interface CommitOffsetsRequest {
  group: string
  memberId: string
  memberEpoch: number
  offsets: OffsetCommit[]
}

export interface CommitOffsetsResponse {
  errors: OffsetError[]
}

export interface FetchOffsetsRequest {
  group: string
  topics: string[]
}

export interface FetchOffsetsResponse {
  offsets: CommittedOffset[]
}

export interface CommittedOffset {
  topic: string
  partition: number
  offset: number
  leaderEpoch: number
  metadata: string
  committedMs: number
}

export interface ListGroupsRequest {
  type: GroupType
  state: GroupState
}

export interface ListGroupsResponse {
  groups: GroupSummary[]
}

export interface GroupSummary {
  group: string
  type: GroupType
  state: GroupState
  members: number
  groupEpoch: number
}

export interface DescribeGroupRequest {
  group: string
  timeLag: boolean
}

export interface DescribeGroupResponse {
  group: string
  type: GroupType
  state: GroupState
  groupEpoch: number
  assignor: string
  members: GroupMember[]
  partitions: GroupPartition[]
  lag: number
  emptySinceMs: number
}

export interface GroupMember {
  memberId: string
  instanceId: string
  clientId: string
  host: string
  rack: string
  memberEpoch: number
  subscription: Subscription | null
  owned: TopicPartitions[]
  target: TopicPartitions[]
  revoking: TopicPartitions[]
  connected: boolean
  sessionTimeoutMs: number
  sinceHeartbeatMs: number
}

export interface TopicPartitions {
  topic: string
  partitions: number[]
}

export interface GroupPartition {
  topic: string
  partition: number
  memberId: string
  committedOffset?: number
  logStartOffset: number
  highWatermark: number
  lag: number
  lagMs?: number
  metadata: string
  committedMs: number
}

export interface DeleteGroupRequest {
  group: string
}

export type DeleteGroupResponse = { [name: string]: never }

export interface DeleteOffsetsRequest {
  group: string
  topics: TopicPartitions[]
}

export interface DeleteOffsetsResponse {
  deleted: number
}

export interface ResetOffsetsRequest {
  group: string
  topics: TopicPartitions[]
  to: ResetTo
  value: number
  offsets: OffsetReset[]
  execute: boolean
}

export interface OffsetReset {
  topic: string
  partition: number
  offset: number
  expectedOffset?: number
}

export interface ResetOffsetsResponse {
  offsets: ResetOffset[]
  executed: boolean
}

export interface ResetOffset {
  topic: string
  partition: number
  from?: number
  to: number
  logStartOffset: number
  highWatermark: number
  clamped: boolean
}

export interface Header {
  key: string
  value: Buffer
}

export interface NewRecord {
  key?: Buffer
  value?: Buffer
  headers: Header[]
  timestampMs?: number
}

export interface ProduceRequest {
  topic: string
  partition?: number
  acks: Acks
  batch: Buffer
  records: NewRecord[]
  compression: Compression
  expectedOffset?: number
  topicId: string
  correlationId: number
}

export interface ProduceResponse {
  results: ProduceResult[]
}

export interface ProduceResult {
  correlationId: number
  partition: number
  baseOffset: number
  endOffset: number
  appendTimeMs?: number
  duplicate: boolean
  acks: Acks
  leaderEpoch: number
  highWatermark: number
  error: ErrorDetail | null
}

export interface FetchRequest {
  partitions: FetchPartition[]
  follow: boolean
  maxBytes: number
  plainRecords: boolean
  maxWaitMs: number
  minBytes: number
}

export interface FetchPartition {
  topic: string
  partition: number
  startAt: StartAt
  offset: number
  timestampMs: number
  endOffset?: number
  clamp: boolean
  topicId: string
  leaderEpoch: number
}

export interface FetchResponse {
  index: number
  batches: Buffer
  records: Record[]
  nextOffset: number
  highWatermark: number
  logStartOffset: number
  leaderEpoch: number
  end: boolean
  error: ErrorDetail | null
  skippedFrom: number
  skippedTo: number
}

export interface Record {
  offset: number
  timestampMs: number
  key?: Buffer
  value?: Buffer
  headers: Header[]
}

export interface ListOffsetsRequest {
  topic: string
  partitions: number[]
  at: StartAt
  timestampMs: number
}

export interface ListOffsetsResponse {
  offsets: PartitionOffset[]
}

export interface PartitionOffset {
  partition: number
  offset: number
  timestampMs?: number
  logStartOffset: number
  highWatermark: number
  logEndOffset: number
  leaderEpoch: number
  error: ErrorDetail | null
}

export interface InitProducerRequest {
  producerId: number
  producerEpoch: number
}

export interface InitProducerResponse {
  producerId: number
  producerEpoch: number
}

export interface WorkRequest {
  start: WorkStart | null
  credit: WorkCredit | null
  acks: AckList | null
  end: WorkEnd | null
}

export interface WorkStart {
  group: string
  topic: string
  memberId: string
  clientId: string
  leaseMs: number
  settings: QueueSetting[]
}

export interface QueueSetting {
  name: string
  value: string
}

export interface WorkCredit {
  records: number
  bytes: number
  replaces: boolean
}

export type WorkEnd = { [name: string]: never }

export interface AckList {
  correlationId: number
  items: AckItem[]
}

export interface AckItem {
  token: Buffer
  first: number
  end: number
  verdict: Verdict
  delayMs?: number
  error: WorkError | null
  pauseGroupMs: number
}

export interface WorkError {
  type: string
  message: string
  stack: string
}

export interface WorkResponse {
  started: WorkStarted | null
  deliveries: WorkDelivery[]
  results: AckResult[]
  leasesLost: LeaseEnd[]
  notice: WorkNotice | null
}

export interface WorkStarted {
  memberId: string
  leaseMs: number
  group: string
  resumed: boolean
}

export interface WorkDelivery {
  token: Buffer
  topic: string
  partition: number
  first: number
  end: number
  deliveryCount: number
  failureCount: number
  leaseMs: number
  leaseExpiresMs: number
  firstDeliveredMs: number
  batch: Buffer
}

export interface AckResult {
  correlationId: number
  failures: AckFailure[]
  dead: number[]
}

export interface AckFailure {
  index: number
  error: ErrorDetail | null
}

export interface LeaseEnd {
  token: Buffer
  error: ErrorDetail | null
}

export interface WorkNotice {
  throttledUntilMs: number
  windowFull: boolean
  paused: boolean
  dlqUnavailable: boolean
}

export interface ReceiveRequest {
  group: string
  topic: string
  max: number
  waitMs: number
  maxBytes: number
  leaseMs: number
  clientId: string
  settings: QueueSetting[]
}

export interface ReceiveResponse {
  deliveries: WorkDelivery[]
  notice: WorkNotice | null
}

export interface AcknowledgeRequest {
  group: string
  items: AckItem[]
}

export interface AcknowledgeResponse {
  failures: AckFailure[]
}

export interface SendRequest {
  topic: string
  records: SendRecord[]
}

export interface SendRecord {
  record: NewRecord | null
  partition?: number
  dedupeId: string
  deliverAtMs?: number
  delayMs?: number
  sendId: Buffer
}

export interface SendResponse {
  results: SendResult[]
}

export interface SendResult {
  partition: number
  offset?: number
  delayId: string
  deliverAtMs: number
  duplicate: boolean
  timestampMs: number
  error: ErrorDetail | null
}

export interface DescribeQueueRequest {
  group: string
}

export interface DescribeQueueResponse {
  group: string
  topics: QueueTopic[]
  members: QueueMember[]
  config: QueueConfigEntry[]
  paused: boolean
  pausedUntilMs: number
  notice: WorkNotice | null
  counters: QueueCounters | null
}

export interface QueueTopic {
  topic: string
  deadLetterTopic: string
  partitions: QueuePartition[]
}

export interface QueuePartition {
  topic: string
  partition: number
  logStartOffset: number
  startOffset: number
  scanOffset: number
  highWatermark: number
  ready: number
  acquired: number
  parked: number
  deadLettering: number
  blocked: number
  done: number
  runs: number
  oldestReadyMs?: number
  error: ErrorDetail | null
}

export interface QueueMember {
  memberId: string
  clientId: string
  host: string
  topic: string
  acquired: number
  credit: number
  connected: boolean
  sinceHeardMs: number
}

export interface QueueConfigEntry {
  name: string
  value: string
  overridden: boolean
  description: string
  allowed: string
}

export interface QueueCounters {
  delivered: number
  accepted: number
  released: number
  retried: number
  rejected: number
  expired: number
  deadLettered: number
  dropped: number
  lostToRetention: number
}

export interface ConfigureQueueRequest {
  group: string
  set: QueueSetting[]
  clear: string[]
  validateOnly: boolean
}

export interface ConfigureQueueResponse {
  config: QueueConfigEntry[]
}

export interface PauseQueueRequest {
  group: string
  untilMs: number
}

export type PauseQueueResponse = { [name: string]: never }

export interface ResumeQueueRequest {
  group: string
}

export type ResumeQueueResponse = { [name: string]: never }

export interface PeekRequest {
  group: string
  topic: string
  partition?: number
  state: RecordState
  limit: number
}

export interface PeekResponse {
  records: PeekedRecord[]
}

export interface PeekedRecord {
  topic: string
  partition: number
  record: Record | null
  state: ExplainResponse | null
}

export interface ExplainRequest {
  group: string
  topic: string
  partition: number
  offset: number
}

export interface ExplainResponse {
  state: RecordState
  reason: string
  deliveryCount: number
  failureCount: number
  dueMs?: number
  memberId: string
  leaseExpiresMs?: number
  blockedByOffset?: number
  failures: FailureInfo[]
  startOffset: number
  scanOffset: number
  highWatermark: number
}

export interface FailureInfo {
  error: WorkError | null
  atMs: number
  memberId: string
  kind: string
}

export interface UnblockRequest {
  group: string
  topic: string
  partition: number
  offset: number
  skip: boolean
}

export type UnblockResponse = { [name: string]: never }

export interface DeadFilter {
  reason: string
  errorType: string
  firstOffset?: number
  endOffset?: number
  fromMs?: number
  toMs?: number
  headers: Header[]
  group: string
  topic: string
  limit: number
}

export interface ListDeadRequest {
  topic: string
  group: string
  sourceTopic: string
  filter: DeadFilter | null
  pageSize: number
  pageToken: string
  includeSettled: boolean
}

export interface ListDeadResponse {
  letters: DeadLetter[]
  nextPageToken: string
  topic: string
}

export interface DeadLetter {
  partition: number
  offset: number
  record: Record | null
  group: string
  sourceTopic: string
  sourcePartition: number
  sourceOffset: number
  reason: string
  deliveries: number
  failures: number
  firstFailedMs: number
  lastFailedMs: number
  error: WorkError | null
  memberId: string
  redrives: number
  settled: boolean
}

export interface DiscardDeadRequest {
  topic: string
  group: string
  sourceTopic: string
  filter: DeadFilter | null
  dryRun: boolean
}

export interface DiscardDeadResponse {
  discarded: number
}

export interface StartRedriveRequest {
  topic: string
  group: string
  sourceTopic: string
  filter: DeadFilter | null
  toTopic: string
  maxPerSec: number
  dryRun: boolean
  resetAttempts?: boolean
}

export interface StartRedriveResponse {
  task: RedriveTask | null
  preview: RedrivePreview | null
}

export interface RedrivePreview {
  count: number
  bytes: number
  firstMs: number
  lastMs: number
  samples: DeadLetter[]
}

export interface RedriveTask {
  taskId: string
  topic: string
  toTopic: string
  state: RedriveState
  moved: number
  total: number
  startedMs: number
  endedMs: number
  maxPerSec: number
  error: string
}

export interface GetRedriveRequest {
  taskId: string
}

export type ListRedrivesRequest = { [name: string]: never }

export interface ListRedrivesResponse {
  tasks: RedriveTask[]
}

export interface CancelRedriveRequest {
  taskId: string
}

export interface ListDelayedRequest {
  topic: string
  fromMs?: number
  toMs?: number
  pageSize: number
  pageToken: string
}

export interface ListDelayedResponse {
  records: DelayedRecord[]
  nextPageToken: string
}

export interface DelayedRecord {
  delayId: string
  topic: string
  partition: number
  deliverAtMs: number
  acceptedMs: number
  dedupeId: string
  record: Record | null
}

export interface CountDelayedRequest {
  topic: string
}

export interface CountDelayedResponse {
  count: number
}

export interface CancelDelayedRequest {
  delayId: string
}

export type CancelDelayedResponse = { [name: string]: never }

export interface UpdateDelayedRequest {
  delayId: string
  deliverAtMs: number
}

export interface UpdateDelayedResponse {
  deliverAtMs: number
}

export interface FireDelayedRequest {
  delayId: string
}

export interface FireDelayedResponse {
  partition: number
  offset: number
}

export interface ConfigEntry {
  name: string
  value: string
}

export interface CreateTopicRequest {
  topic: string
  partitions: number
  config: ConfigEntry[]
  ifNotExists: boolean
  validateOnly: boolean
}

export interface CreateTopicResponse {
  created: boolean
  topicId: string
  partitions: number
}

export interface DeleteTopicRequest {
  topic: string
}

export interface DeleteTopicResponse {
  topicId: string
}

export interface ListTopicsRequest {
  internal: boolean
  sizes: boolean
}

export interface ListTopicsResponse {
  topics: TopicSummary[]
}

export interface TopicSummary {
  topic: string
  topicId: string
  partitions: number
  bytes: number
  records: number
}

export interface DescribeTopicRequest {
  topic: string
}

export interface DescribeTopicResponse {
  topic: string
  topicId: string
  createdMs: number
  partitions: PartitionDescription[]
  config: ConfigDescription[]
}

export interface PartitionDescription {
  partition: number
  logStartOffset: number
  highWatermark: number
  logEndOffset: number
  bytes: number
  segments: number
  leaderEpoch: number
  damaged: OffsetRange[]
}

export interface OffsetRange {
  start: number
  end: number
}

export interface ConfigDescription {
  name: string
  value: string
  overridden: boolean
  description: string
  allowed: string
}

export interface AlterTopicRequest {
  topic: string
  set: ConfigEntry[]
  clear: string[]
  validateOnly: boolean
}

export interface AlterTopicResponse {
  config: ConfigDescription[]
}

export interface AddPartitionsRequest {
  topic: string
  total: number
}

export interface AddPartitionsResponse {
  partitions: number
}

export interface DeleteRecordsRequest {
  topic: string
  partitions: DeleteRecordsPartition[]
}

export interface DeleteRecordsPartition {
  partition: number
  beforeOffset: number
}

export interface DeleteRecordsResponse {
  partitions: DeletedRecords[]
}

export interface DeletedRecords {
  partition: number
  logStartOffset: number
}

export interface HealthMethods {
  Check: { request: HealthCheckRequest; response: HealthCheckResponse }
  Watch: { request: HealthCheckRequest; response: HealthCheckResponse }
}

export interface ClusterServiceMethods {
  Metadata: { request: MetadataRequest; response: MetadataResponse }
  DescribeBroker: { request: DescribeBrokerRequest; response: DescribeBrokerResponse }
}

export interface GroupServiceMethods {
  Join: { request: JoinRequest; response: JoinResponse }
  CommitOffsets: { request: CommitOffsetsRequest; response: CommitOffsetsResponse }
  FetchOffsets: { request: FetchOffsetsRequest; response: FetchOffsetsResponse }
  ListGroups: { request: ListGroupsRequest; response: ListGroupsResponse }
  DescribeGroup: { request: DescribeGroupRequest; response: DescribeGroupResponse }
  DeleteGroup: { request: DeleteGroupRequest; response: DeleteGroupResponse }
  DeleteOffsets: { request: DeleteOffsetsRequest; response: DeleteOffsetsResponse }
  ResetOffsets: { request: ResetOffsetsRequest; response: ResetOffsetsResponse }
}

export interface LogServiceMethods {
  Produce: { request: ProduceRequest; response: ProduceResponse }
  Append: { request: ProduceRequest; response: ProduceResult }
  Fetch: { request: FetchRequest; response: FetchResponse }
  ListOffsets: { request: ListOffsetsRequest; response: ListOffsetsResponse }
  InitProducer: { request: InitProducerRequest; response: InitProducerResponse }
}

export interface QueueServiceMethods {
  Work: { request: WorkRequest; response: WorkResponse }
  Receive: { request: ReceiveRequest; response: ReceiveResponse }
  Acknowledge: { request: AcknowledgeRequest; response: AcknowledgeResponse }
  Send: { request: SendRequest; response: SendResponse }
  DescribeQueue: { request: DescribeQueueRequest; response: DescribeQueueResponse }
  ConfigureQueue: { request: ConfigureQueueRequest; response: ConfigureQueueResponse }
  PauseQueue: { request: PauseQueueRequest; response: PauseQueueResponse }
  ResumeQueue: { request: ResumeQueueRequest; response: ResumeQueueResponse }
  Peek: { request: PeekRequest; response: PeekResponse }
  Explain: { request: ExplainRequest; response: ExplainResponse }
  Unblock: { request: UnblockRequest; response: UnblockResponse }
  ListDead: { request: ListDeadRequest; response: ListDeadResponse }
  DiscardDead: { request: DiscardDeadRequest; response: DiscardDeadResponse }
  StartRedrive: { request: StartRedriveRequest; response: StartRedriveResponse }
  GetRedrive: { request: GetRedriveRequest; response: RedriveTask }
  ListRedrives: { request: ListRedrivesRequest; response: ListRedrivesResponse }
  CancelRedrive: { request: CancelRedriveRequest; response: RedriveTask }
  ListDelayed: { request: ListDelayedRequest; response: ListDelayedResponse }
  CountDelayed: { request: CountDelayedRequest; response: CountDelayedResponse }
  CancelDelayed: { request: CancelDelayedRequest; response: CancelDelayedResponse }
  UpdateDelayed: { request: UpdateDelayedRequest; response: UpdateDelayedResponse }
  FireDelayed: { request: FireDelayedRequest; response: FireDelayedResponse }
}

export interface TopicServiceMethods {
  CreateTopic: { request: CreateTopicRequest; response: CreateTopicResponse }
  DeleteTopic: { request: DeleteTopicRequest; response: DeleteTopicResponse }
  ListTopics: { request: ListTopicsRequest; response: ListTopicsResponse }
  DescribeTopic: { request: DescribeTopicRequest; response: DescribeTopicResponse }
  AlterTopic: { request: AlterTopicRequest; response: AlterTopicResponse }
  AddPartitions: { request: AddPartitionsRequest; response: AddPartitionsResponse }
  DeleteRecords: { request: DeleteRecordsRequest; response: DeleteRecordsResponse }
}
