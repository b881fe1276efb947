import { describe, expect, it } from 'vitest'
import { assert, constantFrom, oneof, property, string, stringMatching, tuple } from 'fast-check'
import { checkTopicName, isInternalTopic } from '../../../src/common/names.ts'
import {
  deadLetterTopicName,
  isRetryTopic,
  retryTopicName,
} from '../../../src/coordination/queue/names.ts'

/** Short ones of few letters meet each other often; long ones are cut. */
const anyName = oneof(
  stringMatching(/^[a.]{1,4}$/).filter((name) => name !== '.' && name !== '..'),
  string({ unit: constantFrom('a', 'b', '.', '-'), minLength: 100, maxLength: 249 }),
  constantFrom('x'.repeat(249), `${'x'.repeat(248)}y`, `${'x'.repeat(248)}.`),
)

describe('retryTopicName', () => {
  it('is plain for plain names', () => {
    expect(retryTopicName('workers', 'orders')).toBe('__retry.workers.orders')
  })

  it('tells pairs apart that read the same', () => {
    const a = retryTopicName('a.b', 'c')
    const b = retryTopicName('a', 'b.c')
    expect(a).not.toBe(b)
    expect(a).toMatch(/^__retry\.a\.b\.c\.[0-9a-f]{16}$/)
  })

  it('is the name of an internal topic, and never that of another pair', () => {
    assert(
      property(tuple(anyName, anyName), tuple(anyName, anyName), (one, other) => {
        const name = retryTopicName(...one)
        checkTopicName(name)
        expect(isInternalTopic(name) && isRetryTopic(name)).toBe(true)
        const isSame = one[0] === other[0] && one[1] === other[1]
        expect(name === retryTopicName(...other)).toBe(isSame)
      }),
      { numRuns: 2000 },
    )
  })

  it('never gives a plain pair the name of a hashed one', () => {
    const hashed = retryTopicName('a.b', 'c')
    const parts = hashed.slice('__retry.'.length).split('.')
    expect(parts.length).toBeGreaterThan(2)
    const long = retryTopicName('x'.repeat(200), 'y'.repeat(200))
    expect(long).toHaveLength(249)
  })
})

describe('deadLetterTopicName', () => {
  it('names the group and the topic', () => {
    expect(deadLetterTopicName('orders.workers', 'orders')).toBe('dlq.orders.workers.orders')
  })

  it('cuts and hashes what is too long, and only that', () => {
    const most = deadLetterTopicName('g'.repeat(100), 't'.repeat(144))
    expect(most).toBe(`dlq.${'g'.repeat(100)}.${'t'.repeat(144)}`)
    const cut = deadLetterTopicName('g'.repeat(100), 't'.repeat(145))
    expect([most.length, cut.length]).toEqual([249, 249])
    expect(cut).toMatch(/^dlq\.g{100}\.t+\.[0-9a-f]{16}$/)
    expect(cut).not.toBe(deadLetterTopicName('g'.repeat(100), 't'.repeat(146)))
  })

  it('is always the name of a topic that users may read', () => {
    assert(
      property(anyName, anyName, (group, topic) => {
        const name = deadLetterTopicName(group, topic)
        checkTopicName(name)
        expect(isInternalTopic(name)).toBe(false)
      }),
    )
  })
})
