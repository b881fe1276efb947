import { describe, expect, it } from 'vitest'
import {
  checkQueueHistory,
  type QueueCallItem,
  type QueueCheckOptions,
  type QueueEvent,
  type QueueRule,
} from '../../support/queue-checker.ts'

const LEASE_MS = 1000

type Step = QueueEvent | readonly QueueEvent[]

/** The rules that the history breaks, each once. */
function rulesOf(
  steps: readonly Step[],
  options: Partial<QueueCheckOptions> = {},
): readonly QueueRule[] {
  const violations = checkQueueHistory(steps.flat(), { maxAttempts: 3, ...options })
  return [...new Set(violations.map(({ rule }) => rule))]
}

function delivered(
  atMs: number,
  token: string,
  [first, end]: readonly [number, number],
  more: Partial<Extract<QueueEvent, { type: 'delivered' }>> = {},
): QueueEvent {
  return {
    type: 'delivered',
    atMs,
    member: `m-${token}`,
    token,
    partition: 'jobs-0',
    first,
    end,
    deliveryCount: 1,
    failureCount: 0,
    expiresMs: atMs + LEASE_MS,
    ...more,
  }
}

let calls = 0

/** A call that is answered 5 ms later: `codes` by item. */
function said(
  atMs: number,
  token: string,
  [first, end]: readonly [number, number],
  verdict: QueueCallItem['verdict'] = 'accept',
  code?: string,
  delayMs?: number,
): readonly QueueEvent[] {
  const call = ++calls
  return [
    {
      type: 'called',
      atMs,
      call,
      items: [{ token, partition: 'jobs-0', first, end, verdict, delayMs }],
    },
    {
      type: 'answered',
      atMs: atMs + 5,
      call,
      failures: code === undefined ? [] : [{ index: 0, code }],
    },
  ]
}

function unanswered(...args: Parameters<typeof said>): QueueEvent {
  const [called] = said(...args)
  if (called === undefined) throw new Error('a call is an event')
  return called
}

function letter(
  offset: number,
  more: Partial<Extract<QueueEvent, { type: 'dead-letter' }>> = {},
): QueueEvent {
  return {
    type: 'dead-letter',
    id: `sim/jobs/0/${offset}/0`,
    partition: 'jobs-0',
    offset,
    reason: 'rejected',
    deliveries: 1,
    failures: 1,
    ...more,
  }
}

function ended(endOffset: number): QueueEvent {
  return { type: 'ended', partition: 'jobs-0', endOffset }
}

const restarted: QueueEvent = { type: 'restarted', atMs: 500 }

describe('a good history', () => {
  it('may hold leases that end in every way', () => {
    const history: readonly Step[] = [
      delivered(0, 'a', [0, 6]),
      said(10, 'a', [0, 2]),
      said(20, 'a', [2, 3], 'release', undefined, 50),
      delivered(80, 'b', [2, 3], { deliveryCount: 2 }),
      said(90, 'b', [2, 3]),
      said(100, 'a', [3, 4], 'retry'),
      delivered(200, 'c', [3, 4], { deliveryCount: 2, failureCount: 1 }),
      said(210, 'c', [3, 4], 'reject'),
      { type: 'lease-lost', atMs: 1005, token: 'a', reason: 'lease_expired' },
      said(1010, 'a', [4, 6], 'accept', 'LEASE_LOST'),
      delivered(1200, 'd', [4, 6], { deliveryCount: 2, failureCount: 1 }),
      { type: 'left', atMs: 1250, member: 'm-d' },
      delivered(1260, 'e', [4, 6], { deliveryCount: 3, failureCount: 1 }),
      unanswered(1270, 'e', [4, 5]),
      { ...restarted, atMs: 1272 },
      delivered(1300, 'f', [5, 6], { deliveryCount: 2, failureCount: 1 }),
      said(1310, 'f', [5, 6]),
      said(1320, 'f', [5, 6]),
      letter(3, { failures: 2 }),
      ended(6),
    ]
    expect(rulesOf(history)).toEqual([])
  })

  it('may hold a lease that is renewed, and a record that nobody can handle', () => {
    const history: readonly Step[] = [
      delivered(0, 'a', [0, 1]),
      said(900, 'a', [0, 1], 'renew', undefined, LEASE_MS),
      said(1800, 'a', [0, 1], 'retry'),
      delivered(2000, 'b', [0, 1], { deliveryCount: 2, failureCount: 1 }),
      delivered(3001, 'c', [0, 1], { deliveryCount: 3, failureCount: 2 }),
      said(3010, 'c', [0, 1], 'retry'),
      letter(0, { reason: 'attempts_exhausted', failures: 3 }),
      ended(1),
    ]
    expect(rulesOf(history)).toEqual([])
  })

  it('may come from workers, who see a delivery late', () => {
    const history: readonly Step[] = [
      delivered(0, 'a', [0, 1]),
      said(10, 'a', [0, 1]),
      delivered(40, 'b', [0, 1]),
      said(45, 'b', [0, 1], 'accept', 'LEASE_LOST'),
      ended(1),
    ]
    expect(rulesOf(history, { seenBy: 'workers', slackMs: 100 })).toEqual([])
    expect(rulesOf(history, { seenBy: 'workers' })).toEqual(['delivered after it was settled'])
  })
})

describe('the checker notices', () => {
  it.each<[string, QueueRule, readonly Step[], Partial<QueueCheckOptions>?]>([
    ['a record that was never given out', 'lost', [ended(1)]],
    [
      'a record that nobody accepted',
      'lost',
      [delivered(0, 'a', [0, 1]), said(5, 'a', [0, 1], 'accept', 'STORAGE_ERROR'), ended(1)],
    ],
    [
      'a record that is given out again after it was accepted',
      'delivered after it was settled',
      [
        delivered(0, 'a', [0, 1]),
        said(5, 'a', [0, 1]),
        restarted,
        delivered(600, 'b', [0, 1]),
        said(700, 'b', [0, 1], 'accept', 'LEASE_LOST'),
        ended(1),
      ],
    ],
    [
      'a record that is given out while its acceptance is being written',
      'delivered after it was settled',
      (() => {
        const [call, answer] = said(990, 'a', [0, 1]) as [QueueEvent, QueueEvent]
        return [
          delivered(0, 'a', [0, 1]),
          call,
          delivered(1000, 'b', [0, 1], { deliveryCount: 2, failureCount: 1 }),
          answer,
          ended(1),
        ]
      })(),
    ],
    [
      'two leases of one record',
      'two leases',
      [
        delivered(0, 'a', [0, 2]),
        delivered(999, 'b', [1, 2], { deliveryCount: 2 }),
        said(1000, 'b', [1, 2]),
        ended(0),
      ],
    ],
    [
      'two acceptances of one record',
      'two verdicts',
      [
        delivered(0, 'a', [0, 1]),
        delivered(10, 'b', [0, 1]),
        said(20, 'a', [0, 1]),
        said(30, 'b', [0, 1]),
        ended(1),
      ],
      { seenBy: 'workers' },
    ],
    [
      'a verdict that is taken from whoever has lost the lease',
      'late verdict accepted',
      [
        delivered(0, 'a', [0, 1]),
        { type: 'lease-lost', atMs: 1000, token: 'a', reason: 'lease_expired' },
        said(1001, 'a', [0, 1]),
        ended(1),
      ],
    ],
    [
      'a verdict that is taken from the former lease',
      'late verdict accepted',
      [
        delivered(0, 'a', [0, 1]),
        delivered(1000, 'b', [0, 1], { deliveryCount: 2, failureCount: 1 }),
        said(1001, 'a', [0, 1]),
        ended(1),
      ],
    ],
    [
      'a lease that ends before its time',
      'lease ended early',
      [
        delivered(0, 'a', [0, 1]),
        { type: 'lease-lost', atMs: 999, token: 'a', reason: 'lease_expired' },
        ended(0),
      ],
    ],
    [
      'a verdict that is refused within the lease',
      'lease ended early',
      [delivered(0, 'a', [0, 1]), said(500, 'a', [0, 1], 'accept', 'LEASE_LOST'), ended(0)],
    ],
    [
      'more runs than are allowed',
      'over the limit',
      [0, 1, 2, 3].map((i) => [
        delivered(i * 10, `t${i}`, [0, 1], { deliveryCount: i + 1, failureCount: i }),
        ...said(i * 10 + 1, `t${i}`, [0, 1], 'retry'),
      ]),
    ],
    [
      "more runs than the record's own limit",
      'over the limit',
      [0, 1].map((i) => [
        delivered(i * 10, `t${i}`, [0, 1], { deliveryCount: i + 1, failureCount: i }),
        ...said(i * 10 + 1, `t${i}`, [0, 1], 'retry'),
      ]),
      { attemptsOf: () => 1 },
    ],
    [
      'failures that are forgotten',
      'failures forgotten',
      [
        delivered(0, 'a', [0, 1]),
        said(5, 'a', [0, 1], 'retry'),
        restarted,
        delivered(600, 'b', [0, 1]),
        said(605, 'b', [0, 1]),
        ended(1),
      ],
    ],
    [
      'failures that never were',
      'failures invented',
      [
        delivered(0, 'a', [0, 1]),
        restarted,
        delivered(600, 'b', [0, 1], { deliveryCount: 2, failureCount: 1 }),
        said(605, 'b', [0, 1]),
        ended(1),
      ],
    ],
    [
      'deliveries that are not counted',
      'wrong delivery count',
      [
        delivered(0, 'a', [0, 1]),
        said(5, 'a', [0, 1], 'release'),
        delivered(20, 'b', [0, 1]),
        said(25, 'b', [0, 1]),
        ended(1),
      ],
    ],
    [
      'a retry before its time',
      'too early',
      [
        delivered(0, 'a', [0, 1]),
        said(5, 'a', [0, 1], 'retry', undefined, 100),
        delivered(104, 'b', [0, 1], { deliveryCount: 2, failureCount: 1 }),
        said(105, 'b', [0, 1]),
        ended(1),
      ],
    ],
    [
      'a rejected record that is nowhere',
      'dead letter missing',
      [delivered(0, 'a', [0, 1]), said(5, 'a', [0, 1], 'reject'), ended(1)],
    ],
    [
      'a dead letter of a record that was accepted',
      'dead letter without a reason',
      [delivered(0, 'a', [0, 1]), said(5, 'a', [0, 1]), letter(0), ended(1)],
    ],
    [
      'a dead letter of a record that has not failed often enough',
      'dead letter without a reason',
      [
        delivered(0, 'a', [0, 1]),
        said(5, 'a', [0, 1], 'retry'),
        letter(0, { reason: 'attempts_exhausted', failures: 3 }),
        ended(1),
      ],
    ],
    [
      'a dead letter that is there twice',
      'dead letter twice',
      [delivered(0, 'a', [0, 1]), said(5, 'a', [0, 1], 'reject'), letter(0), letter(0), ended(1)],
    ],
    [
      'records of a key out of order',
      'out of order',
      [
        delivered(0, 'a', [0, 1]),
        said(5, 'a', [0, 1], 'retry'),
        delivered(20, 'b', [1, 2]),
        said(25, 'b', [1, 2]),
        ended(2),
      ],
      { order: 'key', keyOf: () => 'k' },
    ],
    [
      'two records of a key at once',
      'key leased twice',
      [
        delivered(0, 'a', [0, 1]),
        delivered(20, 'b', [1, 2]),
        said(25, 'a', [0, 1]),
        said(25, 'b', [1, 2]),
        ended(2),
      ],
      { order: 'key', orderOnFailure: 'skip', keyOf: () => 'k' },
    ],
    [
      'two records of an ordered partition at once',
      'key leased twice',
      [delivered(0, 'a', [0, 2]), ended(2)],
      { order: 'partition' },
    ],
    [
      'a record that nobody wrote',
      'unknown record',
      [delivered(0, 'a', [0, 1]), said(5, 'a', [0, 1]), ended(0)],
    ],
  ])('%s', (_, rule, history, options) => {
    expect(rulesOf(history, options)).toContain(rule)
  })

  it('nothing wrong with a key that goes on when its record is settled', () => {
    const history: readonly Step[] = [
      delivered(0, 'a', [0, 1]),
      delivered(1, 'x', [1, 2]),
      said(5, 'a', [0, 1]),
      delivered(10, 'b', [2, 3]),
      said(15, 'b', [2, 3], 'reject'),
      said(16, 'x', [1, 2]),
      delivered(20, 'c', [3, 4]),
      said(25, 'c', [3, 4]),
      letter(2),
      ended(4),
    ]
    const keyOf = (_: string, offset: number): string => (offset === 1 ? 'other' : 'k')
    expect(rulesOf(history, { order: 'key', keyOf })).toEqual([])
  })

  it('many events in seconds', () => {
    const history: QueueEvent[] = []
    const records = 100_000
    for (let i = 0; i < records; i++) {
      history.push(delivered(i, `t${i}`, [i, i + 1]), ...said(i, `t${i}`, [i, i + 1]))
    }
    history.push(ended(records))
    const startedMs = performance.now()
    expect(rulesOf(history)).toEqual([])
    expect(performance.now() - startedMs).toBeLessThan(10_000)
  })
})
