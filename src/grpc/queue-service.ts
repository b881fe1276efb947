import type { UntypedServiceImplementation } from '@grpc/grpc-js'
import { BrokerError } from '../common/errors.ts'
import { MIB, MINUTE_MS } from '../common/units.ts'
import type {
  ReceiveRequest as WantedRecords,
  SendRecordRequest,
  SendResult as SendOutcome,
} from '../coordination/queue/queue-types.ts'
import type {
  AckFailure,
  QueueServiceMethods,
  ReceiveRequest,
  SendRecord,
  SendRequest,
  SendResult,
} from '../gen/types.ts'
import { QUEUE_SERVICE, type ServiceMethods } from '../wire/definitions.ts'
import type { WireParts } from '../wire/wire-parts.ts'
import {
  type AcknowledgeMessage,
  decodeAcknowledgeRequest,
  receiveResponseParts,
} from '../wire/work-codec.ts'
import { acknowledge, checkAckCount, toAckFailures } from './ack-messages.ts'
import { drainingError } from './drain.ts'
import type { ServiceEnvironment } from './environment.ts'
import {
  RECORD_STATE_NAMES,
  toDeadFilter,
  toDeadLetter,
  toDelayedRecord,
  toDescription,
  toExplanation,
  toPeeked,
  toPlace,
  toPreview,
  toTask,
} from './queue-messages.ts'
import { toSettingTexts } from './setting-messages.ts'
import {
  checkEnum,
  checkRange,
  implementService,
  implementUnary,
  type Reply,
  takeRawRequests,
  type UnaryCall,
  type UnaryHandlers,
} from './unary.ts'
import { checkClientId, checkLease, type WorkCall, WorkSession } from './work-session.ts'

export const QUEUE_SERVICE_DEFINITION: ServiceMethods = takeRawRequests(QUEUE_SERVICE)

const MOST_RECEIVED = 1000
const LONGEST_WAIT_MS = 30_000
const MOST_RECEIVED_BYTES: number = 16 * MIB
/** A Receive that waits has this long (CONTRACT §5: long polls). */
const RECEIVE_TIMEOUT_MS: number = MINUTE_MS
const MOST_PEEKED = 1000
const DEFAULT_PEEKED = 20
const MOST_PAGE = 1000
const DEFAULT_PAGE = 100
const FASTEST_REDRIVE = 10_000
const DEFAULT_REDRIVE = 100
const SEND_ID_BYTES = 16

type UnaryMethods = Omit<QueueServiceMethods, 'Work' | 'Receive' | 'Acknowledge' | 'Send'>

/** QueueService: a thin face of Queues, Sends and DeadLetters, which hold the rules. */
export function queueService(environment: ServiceEnvironment): UntypedServiceImplementation {
  const handlers: UnaryHandlers<UnaryMethods> = {
    DescribeQueue: async ({ group }) =>
      toDescription(await environment.queues().describe(group), environment.errors),
    ConfigureQueue: async ({ group, set, clear, validateOnly }) => {
      const change = { set: toSettingTexts(set), clear, validateOnly }
      return { config: [...(await environment.queues().configure(group, change))] }
    },
    PauseQueue: async ({ group, untilMs }) => {
      checkRange('until_ms', untilMs, 0, Number.MAX_SAFE_INTEGER)
      const nowMs = environment.clock.wallMs()
      if (untilMs !== 0 && untilMs <= nowMs) {
        throw new BrokerError('INVALID_REQUEST', `until_ms ${untilMs} is past: it is ${nowMs}`, {
          field: 'until_ms',
          actual: untilMs,
          limit: nowMs,
        })
      }
      await environment.queues().pause(group, untilMs)
      return {}
    },
    ResumeQueue: async ({ group }) => {
      await environment.queues().resume(group)
      return {}
    },
    Peek: async ({ group, topic, partition, state, limit }) => {
      checkEnum('state', state)
      const records = await environment.queues().peek({
        group,
        topic,
        partition,
        state: RECORD_STATE_NAMES[state],
        limit: orDefault('limit', limit, MOST_PEEKED, DEFAULT_PEEKED),
      })
      return { records: records.map(toPeeked) }
    },
    Explain: async ({ group, topic, partition, offset }) => {
      checkOffset(offset)
      return toExplanation(await environment.queues().explain(group, topic, partition, offset))
    },
    Unblock: async ({ group, topic, partition, offset, skip }) => {
      checkOffset(offset)
      await environment.queues().unblock(group, topic, partition, offset, skip)
      return {}
    },

    ListDead: async (request) => {
      const found = await environment.deadLetters().list({
        place: toPlace(request),
        filter: toDeadFilter(request.filter),
        pageSize: orDefault('page_size', request.pageSize, MOST_PAGE, DEFAULT_PAGE),
        pageToken: request.pageToken,
        includeSettled: request.includeSettled,
      })
      const { topic, letters, nextPageToken } = found
      return { topic, letters: letters.map(toDeadLetter), nextPageToken }
    },
    DiscardDead: async (request) => {
      const filter = toDeadFilter(request.filter)
      const place = toPlace(request)
      return { discarded: await environment.deadLetters().discard(place, filter, request.dryRun) }
    },
    StartRedrive: async (request) => {
      const { task, preview } = await environment.deadLetters().startRedrive({
        place: toPlace(request),
        filter: toDeadFilter(request.filter),
        toTopic: request.toTopic,
        maxPerSec: orDefault('max_per_sec', request.maxPerSec, FASTEST_REDRIVE, DEFAULT_REDRIVE),
        dryRun: request.dryRun,
        resetAttempts: request.resetAttempts ?? true,
      })
      return {
        task: task === undefined ? null : toTask(task),
        preview: preview === undefined ? null : toPreview(preview),
      }
    },
    GetRedrive: async ({ taskId }) => toTask(await environment.deadLetters().getRedrive(taskId)),
    ListRedrives: async () => {
      const tasks = await environment.deadLetters().listRedrives()
      return { tasks: tasks.map(toTask) }
    },
    CancelRedrive: async ({ taskId }) =>
      toTask(await environment.deadLetters().cancelRedrive(taskId)),

    ListDelayed: async ({ topic, fromMs, toMs, pageSize, pageToken }) => {
      if (fromMs !== undefined) checkTime('from_ms', fromMs)
      if (toMs !== undefined) checkTime('to_ms', toMs)
      const found = await environment.sends().listDelayed({
        topic,
        fromMs,
        toMs,
        pageSize: orDefault('page_size', pageSize, MOST_PAGE, DEFAULT_PAGE),
        pageToken,
      })
      return { records: found.records.map(toDelayedRecord), nextPageToken: found.nextPageToken }
    },
    CountDelayed: async ({ topic }) => ({ count: await environment.sends().countDelayed(topic) }),
    CancelDelayed: async ({ delayId }) => {
      await environment.sends().cancelDelayed(delayId)
      return {}
    },
    UpdateDelayed: async ({ delayId, deliverAtMs }) => {
      checkRange('deliver_at_ms', deliverAtMs, 0, Number.MAX_SAFE_INTEGER, 'INVALID_DELAY')
      await environment.sends().updateDelayed(delayId, deliverAtMs)
      return { deliverAtMs }
    },
    FireDelayed: ({ delayId }) => environment.sends().fireDelayed(delayId),
  }
  return {
    Work: (call: WorkCall) => new WorkSession(call, environment).start(),
    Receive: implementUnary(
      environment,
      'Receive',
      // What the method's own deserializer makes, which is the type that gen/types.ts has for it.
      (bytes) => QUEUE_SERVICE['Receive']?.requestDeserialize(bytes) as ReceiveRequest,
      (request, call) => receive(environment, request, call),
      { timeoutMs: RECEIVE_TIMEOUT_MS },
    ),
    Acknowledge: implementUnary(
      environment,
      'Acknowledge',
      decodeAcknowledgeRequest,
      (request) => acknowledgeReceived(environment, request),
      { timeoutCode: 'COMMIT_TIMEOUT', whileDraining: true },
    ),
    Send: implementUnary(
      environment,
      'Send',
      (bytes) => QUEUE_SERVICE['Send']?.requestDeserialize(bytes) as SendRequest, // As above.
      (request) => send(environment, request),
      { timeoutCode: 'APPEND_TIMEOUT' },
    ),
    ...implementService<UnaryMethods>(environment, QUEUE_SERVICE, handlers),
  }
}

/** Waits as long as there is somebody who waits for it. */
async function receive(
  environment: ServiceEnvironment,
  request: ReceiveRequest,
  call: UnaryCall,
): Promise<WireParts> {
  const { drain } = environment
  const wanted = toWantedRecords(request, call.getPeer())
  const queues = environment.queues()
  const controller = new AbortController()
  const stop = (): void => controller.abort()
  call.on('cancelled', stop)
  drain.signal.addEventListener('abort', stop)
  try {
    const { deliveries, notice } = await queues.receive(wanted, controller.signal)
    if (call.cancelled && deliveries.length > 0) {
      // Nobody gets them: the next one need not wait until their leases expire.
      await queues.acknowledge(
        request.group,
        deliveries.map(({ token, first, end }) => ({
          token,
          first,
          end,
          verdict: 'release',
          delayMs: undefined,
          error: undefined,
          pauseGroupMs: 0,
        })),
      )
    }
    if (deliveries.length === 0 && drain.draining) throw drainingError()
    return receiveResponseParts({ deliveries, notice })
  } catch (error) {
    // However it was said that the wait was broken off.
    if (drain.draining && controller.signal.aborted) throw drainingError()
    throw error
  } finally {
    drain.signal.removeEventListener('abort', stop)
  }
}

/** @throws BrokerError INVALID_REQUEST, INVALID_CONFIG */
function toWantedRecords(request: ReceiveRequest, host: string): WantedRecords {
  const { group, topic, waitMs, maxBytes, leaseMs, clientId } = request
  checkRange('wait_ms', waitMs, 0, LONGEST_WAIT_MS)
  checkRange('max_bytes', maxBytes, 0, MOST_RECEIVED_BYTES)
  checkLease(leaseMs)
  checkClientId(clientId)
  return {
    group,
    topic,
    max: orDefault('max', request.max, MOST_RECEIVED, 1),
    waitMs,
    maxBytes,
    leaseMs,
    clientId,
    host,
    settings: toSettingTexts(request.settings),
  }
}

async function acknowledgeReceived(
  environment: ServiceEnvironment,
  { group, items }: AcknowledgeMessage,
): Promise<{ failures: Reply<AckFailure>[] }> {
  checkAckCount(items)
  const queues = environment.queues()
  const failures = await acknowledge(items, (valid) => queues.acknowledge(group, valid))
  return { failures: toAckFailures(failures, environment.errors, 'Acknowledge') }
}

/** What is malformed is refused by itself, the rest is sent: one result each, in their order. */
async function send(
  environment: ServiceEnvironment,
  { topic, records }: SendRequest,
): Promise<{ results: SendResult[] }> {
  const sends = environment.sends()
  const outcomes: (SendOutcome | undefined)[] = []
  const valid: SendRecordRequest[] = []
  for (const record of records) {
    const request = toSendRequest(record)
    if (request instanceof BrokerError) outcomes.push({ error: request })
    else {
      outcomes.push(undefined)
      valid.push(request)
    }
  }
  // Also when there is none: the queue says so then.
  const done = valid.length > 0 || records.length === 0 ? await sends.send(topic, valid) : []
  let next = 0
  return {
    results: outcomes.map((outcome) =>
      toSendResult(outcome ?? done[next++] ?? missing(topic), environment),
    ),
  }
}

function missing(topic: string): SendOutcome {
  const message = `a record that was sent to ${topic} has no result`
  return { error: new BrokerError('INTERNAL_ERROR', message, { topic }) }
}

function toSendRequest(sent: SendRecord): SendRecordRequest | BrokerError {
  const { partition, dedupeId, deliverAtMs, delayMs, sendId } = sent
  // proto-loader leaves out what is not there, whatever the generated type says.
  const record = sent.record ?? undefined
  if (record === undefined) {
    return new BrokerError('INVALID_RECORD', 'there is no record', { field: 'record' })
  }
  if (sendId.length !== 0 && sendId.length !== SEND_ID_BYTES) {
    return new BrokerError(
      'INVALID_REQUEST',
      `a send id has ${SEND_ID_BYTES} bytes, not ${sendId.length}`,
      { field: 'send_id', actual: sendId.length, limit: SEND_ID_BYTES },
    )
  }
  const { key, value, headers, timestampMs } = record
  if (timestampMs !== undefined && !(Number.isSafeInteger(timestampMs) && timestampMs >= 0)) {
    return new BrokerError('INVALID_TIMESTAMP', `the record has the timestamp ${timestampMs}`, {
      field: 'timestamp_ms',
      actual: timestampMs,
    })
  }
  return { key, value, headers, timestampMs, partition, dedupeId, deliverAtMs, delayMs, sendId }
}

function toSendResult(outcome: SendOutcome, environment: ServiceEnvironment): SendResult {
  if (outcome.error !== undefined) {
    return {
      partition: 0,
      delayId: '',
      deliverAtMs: 0,
      duplicate: false,
      timestampMs: 0,
      error: environment.errors.toDetail(outcome.error, 'Send'),
    }
  }
  const { partition, offset, delayId, deliverAtMs, duplicate, timestampMs } = outcome
  const result: SendResult = {
    partition,
    delayId,
    deliverAtMs,
    duplicate,
    timestampMs,
    error: null,
  }
  if (offset !== undefined) result.offset = offset
  return result
}

/** 0 is for the default. @throws BrokerError INVALID_REQUEST */
function orDefault(field: string, value: number, most: number, otherwise: number): number {
  if (value === 0) return otherwise
  checkRange(field, value, 1, most)
  return value
}

/** @throws BrokerError INVALID_REQUEST */
function checkOffset(offset: number): void {
  checkRange('offset', offset, 0, Number.MAX_SAFE_INTEGER)
}

/** @throws BrokerError INVALID_REQUEST */
function checkTime(field: string, timeMs: number): void {
  checkRange(field, timeMs, 0, Number.MAX_SAFE_INTEGER)
}
