import { asyncProperty, assert as fcAssert, array, constantFrom } from 'fast-check'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { LogAdmin } from '../../src/client/admin.ts'
import { Connection } from '../../src/client/connection.ts'
import { MillraceError } from '../../src/client/errors.ts'
import {
  GroupSession,
  type SessionAssignment,
  type SessionCommit,
  type SessionOptions,
  type SessionOwner,
} from '../../src/client/group-session.ts'
import { systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { aBatch } from '../support/batches.ts'
import { settle } from '../support/fake-clock.ts'
import { aCommit, failureOf, SessionHarness } from '../support/fake-session.ts'
import { type FlakyProxy, startFlakyProxy } from '../support/flaky-proxy.ts'
import { type LoopbackBroker, startLoopbackBroker } from '../support/loopback-broker.ts'

async function waitUntil(condition: () => boolean | Promise<boolean>): Promise<void> {
  await vi.waitUntil(condition, { timeout: 20_000, interval: 5 })
}

describe('joining', () => {
  it('asks who coordinates the group, and joins there with what it was told', async () => {
    const harness = new SessionHarness({
      instanceId: 'worker-7',
      assignor: 'range',
      sessionTimeoutMs: 10_000,
      rebalanceTimeoutMs: 60_000,
      rack: 'r1',
    })
    harness.coordinator = 3
    harness.session.start()
    await settle()

    expect(harness.stream.brokerId).toBe(3)
    expect(harness.stream.written).toEqual([
      {
        join: {
          group: 'workers',
          memberId: '',
          memberEpoch: 0,
          instanceId: 'worker-7',
          clientId: 'test',
          subscription: { topics: ['orders'], pattern: '' },
          assignor: 'range',
          sessionTimeoutMs: 10_000,
          rebalanceTimeoutMs: 60_000,
          rack: 'r1',
        },
      },
    ])
  })

  it('tells the owner the whole of each assignment, with rising numbers', async () => {
    const harness = new SessionHarness()
    await harness.join([0, 1])
    harness.stream.assign(2, [1])

    expect(harness.told).toEqual(['assigned 0,1', 'assigned 1'])
    expect(harness.assignments.map(({ number }) => number)).toEqual([1, 2])
    expect(harness.session.memberId).toBe('m-1')
    expect(harness.session.memberEpoch).toBe(3)
    expect(harness.assignments[0]?.topics[0]?.partitions[0]).toEqual({
      partition: 0,
      committed: undefined,
      committedLeaderEpoch: 0,
      metadata: '',
      logStartOffset: 0,
      highWatermark: 100,
    })
  })

  it.each(['LOADING', 'BROKER_DRAINING', 'NOT_COORDINATOR', 'UNREACHABLE'] as const)(
    'tries again after %s',
    async (code) => {
      const harness = new SessionHarness()
      harness.session.start()
      await settle()
      harness.stream.refuse(code)
      const second = await harness.reopened()
      second.joined('m-1')

      expect(harness.told).toEqual([])
      expect(second.sent('join')[0]?.memberId).toBe('')
    },
  )

  it('asks anew who coordinates once the broker says that it does not', async () => {
    const harness = new SessionHarness()
    harness.session.start()
    await settle()
    harness.stream.refuse('NOT_COORDINATOR')
    harness.coordinator = 5
    expect(harness.events).toEqual(['forgot'])
    expect((await harness.reopened()).brokerId).toBe(5)
  })

  it('also after a second failure in a row, but not after a first break', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    harness.stream.break()
    expect(harness.events).toEqual(['assigned 0'])
    const second = await harness.reopened()
    second.break()
    expect(harness.events).toEqual(['assigned 0', 'forgot'])
  })

  it.each([
    'INVALID_GROUP_ID',
    'INVALID_PATTERN',
    'INVALID_REQUEST',
    'GROUP_TYPE_MISMATCH',
    'INSTANCE_ID_IN_USE',
    'INSTANCE_FENCED',
    'UNSUPPORTED_FEATURE',
  ] as const)('fails for good after %s', async (code) => {
    const harness = new SessionHarness()
    harness.session.start()
    await settle()
    harness.stream.refuse(code)
    await harness.clock.advance(60_000)

    expect(harness.told).toEqual([`failed ${code}`])
    expect(harness.streams).toHaveLength(1)
    expect(harness.clock.fake.pendingTimers).toBe(0)
    expect((await failureOf(harness.session.commit([aCommit(0, 1)]))).code).toBe(code)
  })

  it('fails for good when the group has no such name', async () => {
    const harness = new SessionHarness()
    harness.lookupError = new MillraceError('INVALID_GROUP_ID', 'no')
    harness.session.start()
    await settle()
    expect(harness.told).toEqual(['failed INVALID_GROUP_ID'])
  })

  it('asks a full group for half a minute, then gives up', async () => {
    const harness = new SessionHarness()
    harness.session.start()
    await settle()
    let refusals = 0
    while (harness.told.length === 0) {
      harness.stream.refuse('GROUP_FULL', { retryAfterMs: 1000 })
      refusals++
      if (harness.told.length === 0) await harness.reopened()
    }
    expect(harness.told).toEqual(['failed GROUP_FULL'])
    expect(harness.clock.monotonicMs()).toBeGreaterThanOrEqual(30_000)
    expect(refusals).toBeGreaterThan(10)
  })

  it('gives up a join that is not answered, and tries over another connection', async () => {
    const harness = new SessionHarness()
    harness.session.start()
    await settle()
    const first = harness.stream
    await harness.clock.advance(30_000)
    await harness.reopened()

    expect(first.cancelled).toBe(true)
    expect(first.discarded).toBe(true)
    first.joined('m-0')
    expect(harness.session.memberId).toBe('')
  })

  it('gives up a join early when nothing at all comes over its connection', async () => {
    const harness = new SessionHarness()
    harness.session.start()
    await settle()
    const first = harness.stream
    await harness.clock.advance(3000)
    expect(first.discarded).toBe(false)
    first.isAnswering = false
    await harness.clock.advance(3000)
    expect(first.discarded).toBe(true)
    expect((await harness.reopened()).sent('join')).toHaveLength(1)
  })

  it('waits for its own ghost: an instance id in use by a join whose answer was lost', async () => {
    const harness = new SessionHarness({ instanceId: 'worker-7', sessionTimeoutMs: 6000 })
    harness.session.start()
    await settle()
    harness.stream.break()
    const second = await harness.reopened()
    second.refuse('INSTANCE_ID_IN_USE')
    const third = await harness.reopened()
    expect(harness.told).toEqual([])

    await harness.clock.advance(8000)
    third.refuse('INSTANCE_ID_IN_USE')
    expect(harness.told).toEqual(['failed INSTANCE_ID_IN_USE'])
  })

  it('says what is wrong with a timeout that the wire cannot carry', async () => {
    const harness = new SessionHarness({ sessionTimeoutMs: 2 ** 40 })
    harness.session.start()
    await settle()
    expect(harness.told).toEqual(['failed INVALID_REQUEST'])
  })
})

describe('staying alive', () => {
  it('sends a heartbeat in each interval, with rising nonces', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    await harness.live(20_000)
    expect(harness.stream.sent('heartbeat').map(({ nonce }) => nonce)).toEqual([1, 2, 3, 4])
    expect(harness.told).toEqual(['assigned 0'])
  })

  it('counts from the sending of the last answered heartbeat, not from its answer', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    await harness.clock.advance(5000)
    await harness.clock.advance(4000)
    harness.stream.echo()
    harness.stream.break()
    // Sent at 5 s, answered at 9 s: good until 50 s.
    await harness.clock.advance(40_999)
    expect(harness.told).toEqual(['assigned 0'])
    await harness.clock.advance(1)
    expect(harness.told).toEqual(['assigned 0', 'lost UNKNOWN_MEMBER'])
  })

  it('counts from the sending of the join while no heartbeat has been answered', async () => {
    const harness = new SessionHarness()
    harness.session.start()
    await settle()
    await harness.clock.advance(10_000)
    harness.stream.joined('m-1')
    harness.stream.assign(1, [0])
    harness.stream.break()
    await harness.clock.advance(34_999)
    expect(harness.told).toEqual(['assigned 0'])
    await harness.clock.advance(1)
    expect(harness.told).toEqual(['assigned 0', 'lost UNKNOWN_MEMBER'])
  })

  it('leaves a connection that has been silent for half of the time, and comes back over another', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    await harness.live(10_000)
    const silent = harness.stream
    await harness.clock.advance(30_000)

    expect(silent.discarded).toBe(true)
    expect(silent.cancelled).toBe(true)
    expect(harness.streams).toHaveLength(2)
    expect(harness.stream.sent('join')[0]).toMatchObject({ memberId: 'm-1', memberEpoch: 2 })
    harness.stream.joined('m-1', { epoch: 2, resumed: true })
    await harness.live(60_000)
    expect(harness.told).toEqual(['assigned 0'])
  })

  it('loses everything when the time is out, then joins under its old name', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    harness.stream.break()
    while (harness.told.length < 2) {
      await harness.reopened()
      harness.stream.break()
    }
    expect(harness.told).toEqual(['assigned 0', 'lost UNKNOWN_MEMBER'])
    expect(harness.clock.monotonicMs()).toBeLessThan(46_000)

    const next = await harness.reopened()
    expect(next.sent('join')[0]?.memberId).toBe('m-1')
    next.joined('m-1', { epoch: 2, resumed: true })
    next.assign(1, [0])
    expect(harness.told.slice(2)).toEqual(['assigned 0'])
    expect(harness.assignments.map(({ number }) => number)).toEqual([1, 2])
  })

  it('warns of a blocked event loop, and goes on when the session has outlived it', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    await harness.live(10_000)
    harness.clock.block(30_000)
    await harness.clock.advance(5000)

    expect(harness.warnings).toHaveLength(1)
    expect(harness.warnings[0]).toContain('30000 ms')
    expect(harness.stream.discarded).toBe(false)
    harness.stream.echo()
    await harness.live(60_000)
    expect(harness.told).toEqual(['assigned 0'])
    expect(harness.streams).toHaveLength(1)
  })

  it.each<[string, (harness: SessionHarness) => unknown]>([
    ['a timer', (harness: SessionHarness) => harness.clock.advance(5000)],
    ['an assignment', (harness: SessionHarness) => harness.stream.assign(2, [0, 1])],
    ['a confirmation', (harness: SessionHarness) => harness.session.confirm(1)],
    ['a question', (harness: SessionHarness) => expect(harness.session.isAlive).toBe(false)],
    [
      'a commit',
      async (harness: SessionHarness) => {
        const error = await failureOf(harness.session.commit([aCommit(0, 5)]))
        expect(error.code).toBe('UNKNOWN_MEMBER')
      },
    ],
  ])('knows that it is lost before it acts on %s', async (_, act) => {
    const harness = new SessionHarness()
    await harness.join([0])
    await harness.live(10_000)
    const stream = harness.stream
    const { length } = stream.written
    harness.clock.block(50_000)
    await act(harness)

    expect(harness.told).toEqual(['assigned 0', 'lost UNKNOWN_MEMBER'])
    expect(stream.written).toHaveLength(length)
    expect(stream.cancelled).toBe(true)
    expect(stream.discarded).toBe(true)
  })

  it('counts an answer that waited in the socket while it was blocked', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    await harness.clock.advance(5000)
    harness.clock.block(41_000)
    harness.stream.echo() // Sent at 5 s: good until 50 s, and it is 46 s.
    expect(harness.session.isAlive).toBe(true)
    expect(harness.told).toEqual(['assigned 0'])
  })
})

describe('coming back', () => {
  it('resumes after a break with member id and epoch, and tells nobody', async () => {
    const harness = new SessionHarness()
    await harness.join([0, 1])
    harness.stream.break()
    const second = await harness.reopened()
    second.joined('m-1', { epoch: 2, resumed: true })

    expect(second.sent('join')[0]).toMatchObject({ memberId: 'm-1', memberEpoch: 2 })
    expect(harness.told).toEqual(['assigned 0,1'])
  })

  it('also when the broker ends the stream without a word', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    harness.stream.end()
    expect((await harness.reopened()).sent('join')[0]?.memberId).toBe('m-1')
  })

  it.each(['UNKNOWN_MEMBER', 'STALE_MEMBER_EPOCH'] as const)(
    'loses everything and joins as new after %s',
    async (code) => {
      const harness = new SessionHarness()
      await harness.join([0])
      harness.stream.refuse(code)
      expect(harness.told).toEqual(['assigned 0', `lost ${code}`])
      const second = await harness.reopened()
      expect(second.sent('join')[0]).toMatchObject({ memberId: '', memberEpoch: 0 })
      second.joined('m-2')
      second.assign(1, [3])
      expect(harness.told.slice(2)).toEqual(['assigned 3'])
      expect(harness.session.memberId).toBe('m-2')
    },
  )

  it('tells of one loss once: by time first, by the broker later', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    harness.clock.block(50_000)
    expect(harness.session.isAlive).toBe(false)
    const second = await harness.reopened()
    second.refuse('UNKNOWN_MEMBER')
    const third = await harness.reopened()
    expect(third.sent('join')[0]?.memberId).toBe('')
    expect(harness.told).toEqual(['assigned 0', 'lost UNKNOWN_MEMBER'])
  })

  it('has lost everything when the broker takes it for a new member', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    harness.stream.break()
    const second = await harness.reopened()
    second.joined('m-9', { resumed: false })
    second.assign(1, [0])
    expect(harness.told).toEqual(['assigned 0', 'lost UNKNOWN_MEMBER', 'assigned 0'])
    second.break()
    const third = await harness.reopened()
    third.joined('m-9', { resumed: false })
    expect(harness.told.slice(3)).toEqual(['lost UNKNOWN_MEMBER'])
  })

  it('stops when another process has taken its instance id', async () => {
    const harness = new SessionHarness({ instanceId: 'worker-7' })
    await harness.join([0])
    harness.stream.refuse('INSTANCE_FENCED')
    await harness.clock.advance(60_000)
    expect(harness.told).toEqual(['assigned 0', 'failed INSTANCE_FENCED'])
    expect(harness.streams).toHaveLength(1)
  })

  it('may be closed by its owner in the middle of a loss', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    harness.onLost = () => harness.session.close()
    harness.stream.refuse('UNKNOWN_MEMBER')
    await harness.clock.advance(60_000)
    expect(harness.streams).toHaveLength(1)
    expect(harness.clock.fake.pendingTimers).toBe(0)
  })
})

describe('confirming', () => {
  it('passes the number on in the broker’s own count', async () => {
    const harness = new SessionHarness()
    await harness.join([0, 1])
    harness.stream.assign(2, [0])
    harness.session.confirm(2)
    expect(harness.stream.sent('confirm')).toEqual([{ number: 2 }])
  })

  it('says nothing of an assignment from before a break, and confirms the one that comes after it', async () => {
    const harness = new SessionHarness()
    await harness.join([0, 1])
    harness.stream.assign(2, [0])
    harness.stream.break()
    const second = await harness.reopened()
    second.joined('m-1', { epoch: 3, resumed: true })
    harness.session.confirm(2)
    expect(second.sent('confirm')).toEqual([])
    second.assign(1, [0])
    harness.session.confirm(2)
    expect(second.sent('confirm')).toEqual([])
    harness.session.confirm(harness.assignments.at(-1)?.number ?? 0)
    expect(second.sent('confirm')).toEqual([{ number: 1 }])
  })

  it('says nothing while there is no stream', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    harness.stream.break()
    harness.session.confirm(1)
    expect(harness.stream.sent('confirm')).toEqual([])
  })
})

describe('committing', () => {
  it('sends each commit at once with the epoch of the moment, and resolves in their order', async () => {
    const harness = new SessionHarness()
    await harness.join([0, 1])
    const answered: number[] = []
    const first = harness.session.commit([aCommit(0, 5)]).then(() => answered.push(1))
    harness.stream.assign(2, [0, 1], 7)
    const second = harness.session.commit([aCommit(1, 6)]).then(() => answered.push(2))

    expect(harness.stream.sent('commit')).toEqual([
      { correlationId: 1, memberEpoch: 2, offsets: [aCommit(0, 5)] },
      { correlationId: 2, memberEpoch: 7, offsets: [aCommit(1, 6)] },
    ])
    harness.stream.answerCommit(0)
    harness.stream.answerCommit(1)
    await Promise.all([first, second])
    expect(answered).toEqual([1, 2])
  })

  it('resolves to what was refused, by partition', async () => {
    const harness = new SessionHarness()
    await harness.join([0, 1])
    const committing = harness.session.commit([aCommit(0, 5), aCommit(1, 6)])
    harness.stream.answerCommit(0, [{ partition: 1, code: 'PARTITION_NOT_OWNED' }])
    const failures = await committing
    expect(failures).toHaveLength(1)
    expect(failures[0]).toMatchObject({ topic: 'orders', partition: 1 })
    expect(failures[0]?.error).toBeInstanceOf(MillraceError)
    expect(failures[0]?.error.code).toBe('PARTITION_NOT_OWNED')
  })

  it.each(['LOADING', 'BROKER_DRAINING'] as const)(
    'repeats what a broker on its way out refused with %s',
    async (code) => {
      const harness = new SessionHarness()
      await harness.join([0])
      const first = harness.session.commit([aCommit(0, 5)])
      const second = harness.session.commit([aCommit(0, 6)])
      harness.stream.answerCommit(0, [{ partition: 0, code }])
      harness.stream.answerCommit(1, [{ partition: 0, code }])
      harness.stream.refuse(code)
      const next = await harness.reopened()
      next.joined('m-1', { epoch: 2, resumed: true })
      expect(next.sent('commit').map(({ offsets }) => offsets)).toEqual([[aCommit(0, 6)]])
      next.answerCommit(0)
      expect(await Promise.all([first, second])).toEqual([[], []])
    },
  )

  it('repeats what was unanswered after a break, once, with the newest offset of each partition', async () => {
    const harness = new SessionHarness()
    await harness.join([0, 1])
    const before = [
      harness.session.commit([aCommit(0, 5)]),
      harness.session.commit([aCommit(0, 9), aCommit(1, 3)]),
    ]
    harness.stream.break()
    const during = harness.session.commit([aCommit(1, 4)])
    const second = await harness.reopened()
    expect(second.sent('commit')).toEqual([])
    second.joined('m-1', { epoch: 4, resumed: true })

    expect(second.sent('commit').map(({ memberEpoch, offsets }) => [memberEpoch, offsets])).toEqual(
      [[2, [aCommit(0, 9), aCommit(1, 4)]]],
    )
    second.answerCommit(0, [{ partition: 1, code: 'PARTITION_NOT_OWNED' }])
    const answers = await Promise.all([...before, during])
    expect(answers.map((failures) => failures.map(({ partition }) => partition))).toEqual([
      [],
      [1],
      [1],
    ])
  })

  it('repeats a commit under the epoch in which it was made, so that it is refused where another owner came between', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    const before = harness.session.commit([aCommit(0, 5)])
    harness.stream.break()
    const second = await harness.reopened()
    second.joined('m-1', { epoch: 9, resumed: true })
    second.assign(1, [0, 1], 9)
    const after = harness.session.commit([aCommit(1, 4)])
    expect(second.sent('commit').map(({ memberEpoch, offsets }) => [memberEpoch, offsets])).toEqual(
      [
        [2, [aCommit(0, 5)]],
        [9, [aCommit(1, 4)]],
      ],
    )
    second.answerCommit(0, [{ partition: 0, code: 'STALE_MEMBER_EPOCH' }])
    second.answerCommit(1)
    expect((await before).map(({ error }) => error.code)).toEqual(['STALE_MEMBER_EPOCH'])
    expect(await after).toEqual([])
  })

  it('keeps a lone unanswered commit as it was through several breaks', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    const committing = harness.session.commit([aCommit(0, 5)])
    for (let i = 0; i < 3; i++) {
      harness.stream.break()
      const next = await harness.reopened()
      next.joined('m-1', { epoch: 2, resumed: true })
      expect(next.sent('commit').map(({ offsets }) => offsets)).toEqual([[aCommit(0, 5)]])
    }
    harness.stream.answerCommit(0)
    expect(await committing).toEqual([])
  })

  it('rejects what is unanswered when the session is lost, and does not send it later', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    const committing = failureOf(harness.session.commit([aCommit(0, 5)]))
    harness.stream.refuse('UNKNOWN_MEMBER')
    expect((await committing).code).toBe('UNKNOWN_MEMBER')
    const second = await harness.reopened()
    second.joined('m-2')
    expect(second.sent('commit')).toEqual([])
  })

  it('refuses while it is no member', async () => {
    const harness = new SessionHarness()
    expect((await failureOf(harness.session.commit([aCommit(0, 5)]))).code).toBe('UNKNOWN_MEMBER')
    harness.session.start()
    expect((await failureOf(harness.session.commit([aCommit(0, 5)]))).code).toBe('UNKNOWN_MEMBER')
  })

  it('has nothing to ask for a commit of nothing', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    expect(await harness.session.commit([])).toEqual([])
    expect(harness.stream.sent('commit')).toEqual([])
  })

  it('never turns a partition back, whatever breaks when', async () => {
    const steps = constantFrom('commit', 'answer', 'break', 'take')
    await fcAssert(
      asyncProperty(array(steps, { maxLength: 30 }), async (history) => {
        const harness = new SessionHarness()
        await harness.join([0])
        const committed: number[] = []
        let offset = 0
        // The broker takes commits in order and answers them in order; what it has taken may lose its answer.
        let taken = 0
        let answered = 0
        const results: Promise<unknown>[] = []
        for (const step of history) {
          if (step === 'commit') {
            results.push(harness.session.commit([aCommit(0, ++offset)]))
          } else if (step === 'take') {
            const next = harness.stream.sent('commit')[taken]
            if (next === undefined) continue
            committed.push(next.offsets[0]?.offset ?? -1)
            taken++
          } else if (step === 'answer') {
            if (answered < taken) harness.stream.answerCommit(answered++)
          } else {
            harness.stream.break()
            taken = 0
            answered = 0
            const next = await harness.reopened()
            next.joined('m-1', { epoch: 2, resumed: true })
          }
        }
        expect(committed).toEqual(committed.toSorted((a, b) => a - b))
        for (const [index] of harness.stream.sent('commit').entries()) {
          harness.stream.answerCommit(index)
        }
        await Promise.all(results)
        harness.session.close()
      }),
      { numRuns: 60 },
    )
  })
})

describe('ending', () => {
  it('leaves after the commits sent before, and resolves when the broker ends the stream', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    const committing = harness.session.commit([aCommit(0, 5)])
    let hasLeft = false
    const leaving = harness.session.leave().then(() => {
      hasLeft = true
      return undefined
    })
    expect(harness.stream.written.slice(-2).map((message) => Object.keys(message))).toEqual([
      ['commit'],
      ['leave'],
    ])
    harness.stream.answerCommit(0)
    expect(await committing).toEqual([])
    await settle()
    expect(hasLeft).toBe(false)
    harness.stream.end()
    await leaving
    expect(harness.told).toEqual(['assigned 0'])
    expect(harness.clock.fake.pendingTimers).toBe(0)
    expect((await failureOf(harness.session.commit([aCommit(0, 6)]))).code).toBe('CLOSED')
  })

  it('takes no commits and no assignments once it is leaving', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    const leaving = harness.session.leave()
    harness.stream.assign(2, [0, 1])
    expect((await failureOf(harness.session.commit([aCommit(0, 6)]))).code).toBe('CLOSED')
    harness.stream.end()
    await leaving
    expect(harness.told).toEqual(['assigned 0'])
  })

  it('leaves at once when there is no contact', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    const committing = failureOf(harness.session.commit([aCommit(0, 5)]))
    harness.stream.break()
    await harness.session.leave()
    expect((await committing).code).toBe('CLOSED')
    await harness.clock.advance(60_000)
    expect(harness.streams).toHaveLength(1)
    expect(harness.told).toEqual(['assigned 0'])
  })

  it('does not wait for ever for a broker that does not answer', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    const leaving = harness.session.leave()
    await harness.clock.advance(5000)
    await leaving
    expect(harness.stream.cancelled).toBe(true)
  })

  it('leaves after a join that is still under way', async () => {
    const harness = new SessionHarness()
    harness.session.start()
    await settle()
    const leaving = harness.session.leave()
    expect(harness.stream.sent('leave')).toEqual([])
    harness.stream.joined('m-1')
    expect(harness.stream.sent('leave')).toHaveLength(1)
    harness.stream.end()
    await leaving
    expect(harness.clock.fake.pendingTimers).toBe(0)
  })

  it('says why commits failed that a broken stream left open while leaving', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    const committing = failureOf(harness.session.commit([aCommit(0, 5)]))
    const leaving = harness.session.leave()
    harness.stream.break()
    await leaving
    expect((await committing).code).toBe('UNREACHABLE')
  })

  it('closes without a word to the broker', async () => {
    const harness = new SessionHarness()
    await harness.join([0])
    const { length } = harness.stream.written
    harness.session.close()
    harness.session.close()
    await harness.session.leave()
    expect(harness.stream.written).toHaveLength(length)
    expect(harness.stream.cancelled).toBe(true)
    expect(harness.clock.fake.pendingTimers).toBe(0)
  })

  it('never starts once it has been closed', async () => {
    const harness = new SessionHarness()
    harness.session.close()
    harness.session.start()
    await settle()
    expect(harness.streams).toEqual([])
  })
})

/** A member over a real connection, which gives up at once what it is asked to. */
class Member implements SessionOwner {
  readonly session: GroupSession
  readonly told: string[] = []
  owned: string[] = []
  onAssigned: () => void = () => undefined

  constructor(connection: Connection, options: Partial<SessionOptions> = {}) {
    this.session = new GroupSession(
      connection,
      {
        group: 'workers',
        subscription: { topics: ['orders'], pattern: '' },
        instanceId: '',
        assignor: '',
        sessionTimeoutMs: 0,
        rebalanceTimeoutMs: 0,
        rack: '',
        ...options,
      },
      this,
    )
    this.session.start()
  }

  assigned({ number, topics }: SessionAssignment): void {
    this.owned = topics.flatMap(({ topic, partitions }) =>
      partitions.map(({ partition }) => `${topic}-${partition}`),
    )
    this.told.push(`assigned ${this.owned.length}`)
    this.onAssigned()
    this.session.confirm(number)
  }

  lost(reason: MillraceError): void {
    this.owned = []
    this.told.push(`lost ${reason.code}`)
  }

  failed(error: MillraceError): void {
    this.owned = []
    this.told.push(`failed ${error.code}`)
  }
}

describe('with a real broker', () => {
  let broker: LoopbackBroker
  let proxy: FlakyProxy
  let connection: Connection

  async function connectTo(address: string): Promise<Connection> {
    const opened = new Connection({
      targets: [address],
      tls: undefined,
      clientId: 'session-test',
      clock: systemClock,
      random: new SeededRandom(5),
      logger: undefined,
    })
    await opened.open(5000)
    return opened
  }

  beforeEach(async () => {
    broker = await startLoopbackBroker()
    proxy = await startFlakyProxy(broker.url)
    connection = await connectTo(proxy.address)
    await new LogAdmin(connection).createTopic('orders', { partitions: 6 })
    const orders = broker.topics.get('orders')
    for (const partition of orders.partitions) {
      await partition.append(aBatch({ records: 100 }), 'durable')
    }
  })

  afterEach(async () => {
    connection.close()
    await proxy[Symbol.asyncDispose]()
    await broker[Symbol.asyncDispose]()
  })

  const sizes = (members: readonly Member[]): number[] =>
    members.map(({ owned }) => owned.length).sort((a, b) => a - b)

  function commitOf(partition: number, offset: number): SessionCommit {
    return { ...aCommit(partition, offset), topicId: broker.topics.get('orders').id }
  }

  async function committed(partition: number): Promise<number | undefined> {
    const offsets = await broker.groups.committed('workers')
    return offsets.find((entry) => entry.partition === partition)?.offset
  }

  it('shares the partitions, and gives a member’s to the others when it leaves', async () => {
    const first = new Member(connection)
    await waitUntil(() => first.owned.length === 6)
    const second = new Member(connection)
    const third = new Member(connection)
    await waitUntil(() => sizes([first, second, third]).join() === '2,2,2')
    expect(new Set([first, second, third].flatMap(({ owned }) => owned)).size).toBe(6)

    await second.session.leave()
    await waitUntil(() => sizes([first, third]).join() === '3,3')
    for (const member of [first, third]) await member.session.leave()
    expect((await broker.groups.describe('workers')).members).toEqual([])
  })

  it('commits, and is told of each partition that it may not commit', async () => {
    const member = new Member(connection)
    await waitUntil(() => member.owned.length === 6)
    expect(await member.session.commit([commitOf(0, 7), commitOf(1, 8)])).toEqual([])
    expect(await committed(0)).toBe(7)

    const failures = await member.session.commit([commitOf(0, 9), commitOf(1, 101), commitOf(6, 1)])
    expect(failures.map(({ partition, error }) => [partition, error.code])).toEqual(
      expect.arrayContaining([
        [1, 'OFFSET_OUT_OF_RANGE'],
        [6, 'UNKNOWN_PARTITION'],
      ]),
    )
    expect(failures).toHaveLength(2)
    expect(await committed(0)).toBe(9)
    expect(await committed(1)).toBe(8)
    await member.session.leave()
  })

  it('answers many commits under way in their order', async () => {
    const member = new Member(connection)
    await waitUntil(() => member.owned.length === 6)
    const order: number[] = []
    const commits = Array.from({ length: 500 }, async (_, i) => {
      const failures = await member.session.commit([commitOf(i % 6, Math.floor(i / 6))])
      order.push(i)
      return failures.length
    })
    const refused = await Promise.all(commits)
    expect(refused.every((count) => count === 0)).toBe(true)
    expect(order).toEqual(Array.from({ length: 500 }, (_, i) => i))
    await member.session.leave()
  })

  it('comes back after a cut without losing anything, and repeats its commits', async () => {
    const members = [new Member(connection), new Member(connection)]
    await waitUntil(() => sizes(members).join() === '3,3')
    const told = members.map((member) => [...member.told])
    for (let round = 1; round <= 5; round++) {
      const commits = members.map((member) =>
        member.session.commit(
          member.owned.map((name) => commitOf(Number(name.slice('orders-'.length)), round)),
        ),
      )
      proxy.cut()
      expect(await Promise.all(commits)).toEqual([[], []])
      for (let partition = 0; partition < 6; partition++) {
        expect(await committed(partition)).toBe(round)
      }
    }
    expect(sizes(members)).toEqual([3, 3])
    for (const [index, member] of members.entries()) {
      expect(member.told.filter((event) => event.startsWith('lost'))).toEqual([])
      expect(member.told.slice(0, told[index]?.length)).toEqual(told[index])
      await member.session.leave()
    }
  })

  it('leaves a connection that has gone silent in time', async () => {
    const member = new Member(connection, { sessionTimeoutMs: 900 })
    await waitUntil(() => member.owned.length === 6)
    const { memberId } = member.session
    // The session's own connection and that of the calls.
    expect(proxy.open).toBe(2)
    proxy.mute()
    const committing = member.session.commit([commitOf(2, 5)])
    expect(await committing).toEqual([])
    expect(member.session.memberId).toBe(memberId)
    expect(member.told.filter((event) => event.startsWith('lost'))).toEqual([])
    await member.session.leave()
  })

  it('loses everything before anybody else has it, and gets its share again', async () => {
    const other = await connectTo(broker.url)
    const victim = new Member(connection, { sessionTimeoutMs: 500 })
    await waitUntil(() => victim.owned.length === 6)
    proxy.refuse(true)
    proxy.cut()
    const heir = new Member(other)
    let overlaps = 0
    heir.onAssigned = () => {
      if (victim.owned.length > 0 && heir.owned.length > 0) overlaps++
    }
    await waitUntil(() => heir.owned.length === 6)
    expect(overlaps).toBe(0)
    expect(victim.told.at(-1)).toBe('lost UNKNOWN_MEMBER')

    proxy.refuse(false)
    await waitUntil(() => sizes([victim, heir]).join() === '3,3')
    expect(victim.told.filter((event) => event.startsWith('lost'))).toHaveLength(1)
    await victim.session.leave()
    await heir.session.leave()
    other.close()
  })

  it('keeps two processes from using one instance id, and gives the place of a dead one to its heir', async () => {
    const options = { instanceId: 'worker-7', sessionTimeoutMs: 500 }
    const first = new Member(connection, options)
    await waitUntil(() => first.owned.length === 6)
    const second = new Member(connection, options)
    await waitUntil(() => second.told.length > 0)
    expect(second.told).toEqual(['failed INSTANCE_ID_IN_USE'])

    first.session.close()
    await waitUntil(async () => {
      const { members } = await broker.groups.describe('workers')
      return members.every(({ connected }) => !connected)
    })
    const heir = new Member(connection, options)
    await waitUntil(() => heir.owned.length === 6)
    await heir.session.leave()
  })

  it('joins 1 000 members from one process, over several connections', async () => {
    const members = Array.from({ length: 1000 }, () => new Member(connection))
    await waitUntil(() => members.every(({ told }) => told.length > 0))
    // Room for calls is left while all of them are there.
    await new LogAdmin(connection).describeTopic('orders')
    expect(proxy.open).toBe(5)
    await waitUntil(() => sizes(members).slice(-6).join() === '1,1,1,1,1,1')
    await Promise.all(members.map((member) => member.session.leave()))
    await waitUntil(() => proxy.open <= 2)
  })
})
