import { describe, expect, it } from 'vitest'
import {
  checkGroupHistory,
  type GroupEvent,
  type GroupRule,
  type Violation,
} from '../support/group-checker.ts'

const P = 'orders/0'
const Q = 'orders/1'

function check(history: readonly GroupEvent[], endMs = 20_000): readonly Violation[] {
  return checkGroupHistory(history, { unownedMs: 8000, lagMs: 200, endMs })
}

function owned(client: string, partition: string, fromMs: number, untilMs: number): GroupEvent {
  return { type: 'owned', client, partition, fromMs, untilMs }
}

function granted(
  memberId: string,
  memberEpoch: number,
  atMs: number,
  committed?: number,
): GroupEvent {
  return { type: 'granted', atMs, memberId, memberEpoch, partition: P, committed }
}

function committed(
  memberId: string,
  memberEpoch: number,
  atMs: number,
  offset: number,
): GroupEvent {
  const answeredMs = atMs + 5
  return { type: 'committed', atMs, answeredMs, memberId, memberEpoch, partition: P, offset }
}

function target(
  atMs: number,
  before: Readonly<Record<string, readonly string[]>>,
  after: Readonly<Record<string, readonly string[]>>,
  isUniform = true,
): GroupEvent {
  const toSets = (by: typeof before): Map<string, Set<string>> =>
    new Map(Object.entries(by).map(([id, names]) => [id, new Set(names)]))
  return { type: 'target', atMs, before: toSets(before), after: toSets(after), isUniform }
}

/** One partition goes from a to b in good order, and everything is processed; the other stays. */
const GOOD: readonly GroupEvent[] = [
  { type: 'created', atMs: 0, partition: P },
  { type: 'created', atMs: 0, partition: Q },
  target(100, { a: [] }, { a: [P, Q] }),
  granted('a', 1, 110),
  owned('A', P, 120, 5000),
  owned('A', Q, 120, Infinity),
  { type: 'processed', partition: P, from: 0, to: 7 },
  committed('a', 1, 2000, 5),
  { type: 'read', atMs: 2100, partition: P, offset: 5 },
  target(4000, { a: [P, Q], b: [] }, { a: [Q], b: [P] }),
  { type: 'revoked', atMs: 4010, memberId: 'a', partition: P },
  committed('a', 1, 4990, 7),
  granted('b', 2, 5010, 7),
  owned('B', P, 5020, Infinity),
  { type: 'processed', partition: P, from: 7, to: 9 },
  committed('b', 2, 6000, 9),
  { type: 'read', atMs: 7000, partition: P, offset: 9 },
  { type: 'ended', partition: P, endOffset: 9 },
]

/** The good history with something wrong in it. */
const ANOMALIES: readonly (readonly [string, GroupRule, readonly GroupEvent[]])[] = [
  ['two clients at once', 'two owners', [owned('C', P, 4999, 5001)]],
  ['a second client inside a long ownership', 'two owners', [owned('C', Q, 9000, 9001)]],
  [
    'two owners in the log',
    'two owners in the log',
    [{ type: 'overlap', atMs: 1, partition: P, memberIds: ['a', 'b'] }],
  ],
  [
    'a new partition that nobody gets',
    'unowned',
    [{ type: 'created', atMs: 3000, partition: 'orders/2' }],
  ],
  [
    'a partition that nobody gets back',
    'unowned',
    [
      { type: 'created', atMs: 0, partition: 'orders/2' },
      owned('A', 'orders/2', 10, 11_000),
      { type: 'disturbed', atMs: 9000, what: 'before', memberId: undefined, partitions: undefined },
      {
        type: 'disturbed',
        atMs: 11_500,
        what: 'elsewhere',
        memberId: 'b',
        partitions: ['orders/9'],
      },
    ],
  ],
  ['a commit by who lost it', 'stale commit', [committed('a', 1, 5015, 9)]],
  ['a commit by who never had it', 'stale commit', [committed('c', 2, 5015, 9)]],
  [
    'a commit with an epoch from before another owner',
    'stale commit',
    [granted('a', 3, 7000, 9), committed('a', 1, 7500, 9)],
  ],
  ['a commit below another', 'offset went back', [committed('b', 2, 8000, 8)]],
  [
    'a read below a commit',
    'offset went back',
    [{ type: 'read', atMs: 8000, partition: P, offset: 8 }],
  ],
  [
    'a commit that is gone',
    'offset went back',
    [{ type: 'read', atMs: 8000, partition: P, offset: undefined }],
  ],
  ['a start below a commit', 'offset went back', [granted('c', 3, 8000, 7)]],
  [
    'records at the end that nobody processed',
    'not processed',
    [{ type: 'ended', partition: Q, endOffset: 1 }],
  ],
  [
    'records in the middle that nobody processed',
    'not processed',
    [
      { type: 'processed', partition: Q, from: 0, to: 2 },
      { type: 'processed', partition: Q, from: 3, to: 4 },
      { type: 'ended', partition: Q, endOffset: 4 },
    ],
  ],
  [
    'a partition taken from who was to keep it',
    'needless revocation',
    [{ type: 'revoked', atMs: 4300, memberId: 'a', partition: Q }],
  ],
  [
    'two partitions that change places',
    'needless move',
    [target(9000, { a: [Q], b: [P] }, { a: [P], b: [Q] })],
  ],
]

describe('the checker of group histories', () => {
  it('finds nothing wrong with a good history', () => {
    expect(check(GOOD)).toEqual([])
  })

  it.each(ANOMALIES)('finds %s', (_, rule, wrong) => {
    expect(check([...GOOD, ...wrong]).map((violation) => violation.rule)).toContain(rule)
  })

  it('finds an anomaly for each of its rules', () => {
    const rules: Readonly<Record<GroupRule, true>> = {
      'two owners': true,
      'two owners in the log': true,
      unowned: true,
      'stale commit': true,
      'offset went back': true,
      'not processed': true,
      'needless revocation': true,
      'needless move': true,
    }
    expect(new Set(ANOMALIES.map(([, rule]) => rule))).toEqual(new Set(Object.keys(rules)))
  })

  it('forgives a partition without an owner as long as something disturbs it', () => {
    const pause = { type: 'disturbed', what: 'paused', memberId: 'b', partitions: [] } as const
    const history: GroupEvent[] = [
      { type: 'created', atMs: 0, partition: P },
      owned('A', P, 10, 1000),
      target(2000, { a: [P], b: [] }, { b: [P] }, false),
      { ...pause, atMs: 7000 },
      owned('B', P, 14_000, Infinity),
    ]
    expect(check(history)).toEqual([])
    expect(check(history.filter((event) => event.type !== 'disturbed'))).not.toEqual([])
  })

  it('asks nothing of a topic after its end', () => {
    const history: GroupEvent[] = [
      ...GOOD,
      { type: 'deleted', atMs: 9000, partition: P },
      { type: 'read', atMs: 9001, partition: P, offset: undefined },
      { type: 'revoked', atMs: 9001, memberId: 'b', partition: P },
    ]
    expect(check(history)).toEqual([])
  })

  it('forgives an order that was on its way while the target changed', () => {
    const history: GroupEvent[] = [
      target(4050, { a: [Q], b: [P] }, { a: [P, Q], b: [] }, false),
      { type: 'revoked', atMs: 4100, memberId: 'a', partition: P },
    ]
    expect(check([...GOOD, ...history])).toEqual([])
  })

  it('judges a hundred thousand events in a second or two', () => {
    const history: GroupEvent[] = []
    for (let i = 0; i < 2000; i++) {
      const partition = `orders/${i}`
      for (let at = 0; at < 50; at++) {
        history.push(owned(at % 2 === 0 ? 'A' : 'B', partition, at * 10, at * 10 + 10))
      }
    }
    const start = performance.now()
    expect(check(history)).toEqual([])
    expect(performance.now() - start).toBeLessThan(5000)
  })
})
