import { BrokerError } from '../../common/errors.ts'
import { checkGroupId, checkTopicName, isInternalTopic } from '../../common/names.ts'
import type { MemberRecord } from './group-events.ts'
import type { GroupOptions } from './group-options.ts'
import type { AssignorName, JoinGroupRequest, SubscriptionRequest } from './group-types.ts'
import { TopicPattern } from './topic-pattern.ts'

const MOST_TOPICS = 10_000
const LONGEST_TEXT = 249

export interface WantedMember {
  readonly subscription: SubscriptionRequest
  /** Undefined: whatever the group has. */
  readonly assignor: AssignorName | undefined
  readonly member: Omit<MemberRecord, 'epoch' | 'standing' | 'owned' | 'target'>
}

/** @throws BrokerError as `Groups.join` for what is wrong with the request as such */
export function checkJoin(request: JoinGroupRequest, options: GroupOptions): WantedMember {
  checkGroupId(request.group)
  checkSubscription(request.subscription)
  for (const field of ['instanceId', 'clientId', 'rack', 'memberId'] as const) {
    checkText(field, request[field])
  }
  const assignor = request.assignor
  if (assignor !== '' && assignor !== 'uniform' && assignor !== 'range') {
    throw new BrokerError(
      'INVALID_REQUEST',
      `there is no assignor ${JSON.stringify(assignor.slice(0, 60))}: use uniform or range`,
      { field: 'assignor', actual: assignor.slice(0, 60) },
    )
  }
  return {
    subscription: request.subscription,
    assignor: assignor === '' ? undefined : assignor,
    member: {
      instanceId: request.instanceId,
      clientId: request.clientId,
      host: request.host,
      rack: request.rack,
      subscription: {
        topics: [...request.subscription.topics],
        pattern: request.subscription.pattern,
      },
      sessionTimeoutMs: checkMs(
        'session_timeout_ms',
        request.sessionTimeoutMs,
        options.sessionTimeoutMs,
        options.minSessionTimeoutMs,
        options.maxSessionTimeoutMs,
      ),
      rebalanceTimeoutMs: checkMs(
        'rebalance_timeout_ms',
        request.rebalanceTimeoutMs,
        options.rebalanceTimeoutMs,
        1,
        options.maxRebalanceTimeoutMs,
      ),
    },
  }
}

/** @throws BrokerError INVALID_REQUEST, INVALID_PATTERN, INVALID_TOPIC_NAME, TOPIC_INTERNAL */
export function checkSubscription(subscription: SubscriptionRequest): void {
  const { topics, pattern } = subscription
  const fail = (why: string): never => {
    throw new BrokerError('INVALID_REQUEST', why, { field: 'subscription' })
  }
  if (topics.length === 0 && pattern === '') fail('nothing is subscribed: name topics or a pattern')
  if (topics.length > 0 && pattern !== '') fail('subscribe to topics or to a pattern, not to both')
  if (topics.length > MOST_TOPICS) fail(`${topics.length} topics are more than ${MOST_TOPICS}`)
  for (const topic of topics) {
    checkTopicName(topic)
    if (!isInternalTopic(topic)) continue
    throw new BrokerError(
      'TOPIC_INTERNAL',
      `${topic} belongs to the broker: a group cannot consume it`,
      { topic },
    )
  }
  if (pattern !== '') TopicPattern.parse(pattern)
}

export function isSameSubscription(a: SubscriptionRequest, b: SubscriptionRequest): boolean {
  return (
    a.pattern === b.pattern &&
    a.topics.length === b.topics.length &&
    a.topics.every((topic, i) => topic === b.topics[i])
  )
}

function checkText(field: string, value: string): void {
  if (value.length <= LONGEST_TEXT && !/[/\p{Cc}]/u.test(value)) return
  throw new BrokerError(
    'INVALID_REQUEST',
    `${field} has up to ${LONGEST_TEXT} characters, without / and control characters`,
    { field, length: value.length, limit: LONGEST_TEXT },
  )
}

function checkMs(
  field: string,
  value: number,
  ifZero: number,
  least: number,
  most: number,
): number {
  if (value === 0) return Math.min(most, Math.max(least, ifZero))
  if (Number.isSafeInteger(value) && value >= least && value <= most) return value
  throw new BrokerError('INVALID_REQUEST', `${field} ${value} is outside [${least}, ${most}]`, {
    field,
    actual: value,
    limit: most,
  })
}
