import { describe, expect, it } from 'vitest'
import {
  array,
  assert,
  constantFrom,
  nat,
  option,
  property,
  record,
  string,
  uint8Array,
} from 'fast-check'
import { BrokerError } from '../../../src/common/errors.ts'
import { toOffset } from '../../../src/common/offset.ts'
import {
  checkDeadFilter,
  decodeDeadFilter,
  diedAtMs,
  encodeDeadFilter,
  type FilteredLetter,
  fingerprintOf,
  matchesDeadFilter,
} from '../../../src/coordination/queue/dead-filter.ts'
import { readDeadLetter } from '../../../src/coordination/queue/dead-letter-record.ts'
import type { DeadFilter } from '../../../src/coordination/queue/queue-types.ts'
import { ALL, aLetter, type LetterShape } from '../../support/redrive-bench.ts'

function found(id: number, shape: LetterShape = {}): FilteredLetter {
  const letter = aLetter(id, shape)
  const record = { ...letter, offset: toOffset(id), timestampMs: 77 }
  return { record, facts: readDeadLetter(letter.headers) }
}

const foreign: FilteredLetter = {
  record: { offset: toOffset(3), timestampMs: 500, key: undefined, value: undefined, headers: [] },
  facts: undefined,
}

function matches(filter: Partial<DeadFilter>, letter: FilteredLetter): boolean {
  return matchesDeadFilter({ ...ALL, ...filter }, letter)
}

function fieldOf(filter: Partial<DeadFilter>): unknown {
  try {
    checkDeadFilter({ ...ALL, ...filter })
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error
    expect(error.code).toBe('INVALID_FILTER')
    return error.details['field']
  }
  return undefined
}

describe('a filter of dead letters', () => {
  it('matches everything when it says nothing', () => {
    expect(matches({}, found(1))).toBe(true)
    expect(matches({}, foreign)).toBe(true)
  })

  it('goes by reason, type of error, group and topic', () => {
    const letter = found(1, { reason: 'rejected' })
    const cases: readonly (readonly [Partial<DeadFilter>, boolean])[] = [
      [{ reason: 'rejected' }, true],
      [{ reason: 'expired' }, false],
      [{ errorType: 'TypeError' }, true],
      [{ errorType: 'Type' }, false],
      [{ group: 'workers' }, true],
      [{ group: 'worker' }, false],
      [{ topic: 'orders' }, true],
      [{ topic: 'order' }, false],
      [{ reason: 'rejected', group: 'workers', topic: 'orders', errorType: 'Other' }, false],
    ]
    for (const [filter, expected] of cases) {
      expect([filter, matches(filter, letter)]).toEqual([filter, expected])
      expect(matches(filter, foreign)).toBe(false)
    }
  })

  it('goes by the time of death, the end left out; of what is no dead letter by its timestamp', () => {
    const letter = found(1, { lastFailedMs: 1000 })
    expect(diedAtMs(letter)).toBe(1000)
    expect(matches({ fromMs: 1000 }, letter)).toBe(true)
    expect(matches({ fromMs: 1001 }, letter)).toBe(false)
    expect(matches({ toMs: 1000 }, letter)).toBe(false)
    expect(matches({ toMs: 1001 }, letter)).toBe(true)
    expect(matches({ fromMs: 500, toMs: 501 }, foreign)).toBe(true)
    expect(matches({ fromMs: 501 }, foreign)).toBe(false)
  })

  it('wants all headers to be there, each with its value, in any of several of a name', () => {
    const header = (key: string, value: string) => ({ key, value: Buffer.from(value) })
    const letter = found(1, { headers: [header('a', '1'), header('a', '2'), header('b', '')] })
    expect(matches({ headers: [header('a', '1')] }, letter)).toBe(true)
    expect(matches({ headers: [header('a', '2'), header('b', '')] }, letter)).toBe(true)
    expect(matches({ headers: [header('a', '3')] }, letter)).toBe(false)
    expect(matches({ headers: [header('a', '1'), header('c', '')] }, letter)).toBe(false)
    expect(matches({ headers: [header('dlq.topic', 'orders')] }, letter)).toBe(true)
  })

  it('is refused when it cannot mean anything, and says where', () => {
    expect(fieldOf({})).toBeUndefined()
    expect(fieldOf({ reason: 'attempts_exhausted', limit: 5 })).toBeUndefined()
    expect(fieldOf({ firstOffset: 5, endOffset: 5 })).toBeUndefined()
    expect(fieldOf({ reason: 'rejcted' })).toBe('reason')
    expect(fieldOf({ reason: 'toString' })).toBe('reason')
    expect(fieldOf({ firstOffset: 5, endOffset: 4 })).toBe('end_offset')
    expect(fieldOf({ fromMs: 5, toMs: 4 })).toBe('to_ms')
    expect(fieldOf({ firstOffset: -1 })).toBe('first_offset')
    expect(fieldOf({ endOffset: 1.5 })).toBe('end_offset')
    expect(fieldOf({ fromMs: Number.NaN })).toBe('from_ms')
    expect(fieldOf({ limit: -1 })).toBe('limit')
    expect(fieldOf({ limit: 2 ** 53 })).toBe('limit')
    expect(fieldOf({ headers: [{ key: '', value: Buffer.from('x') }] })).toBe('headers')
    expect(fieldOf({ group: 'no group' })).toBe('group')
    expect(fieldOf({ topic: 'a/b' })).toBe('topic')
  })

  it('names the reason that was probably meant', () => {
    expect(() => checkDeadFilter({ ...ALL, reason: 'rejectd' })).toThrow(/did you mean rejected\?/)
  })

  it('reads back as it was written, and has a fingerprint of its own', () => {
    const filters = record({
      reason: constantFrom('', 'rejected', 'expired'),
      errorType: string(),
      firstOffset: option(nat(100), { nil: undefined }),
      endOffset: option(
        nat(100).map((n) => n + 100),
        { nil: undefined },
      ),
      fromMs: option(nat(100), { nil: undefined }),
      toMs: option(
        nat(100).map((n) => n + 100),
        { nil: undefined },
      ),
      headers: array(record({ key: string({ minLength: 1 }), value: uint8Array() }), {
        maxLength: 3,
      }),
      group: constantFrom('', 'workers'),
      topic: constantFrom('', 'orders'),
      limit: nat(),
    })
    assert(
      property(filters, filters, (one, other) => {
        const text = JSON.stringify(encodeDeadFilter(one))
        const read = decodeDeadFilter(JSON.parse(text))
        expect(JSON.stringify(encodeDeadFilter(read))).toBe(text)
        expect(fingerprintOf(read)).toBe(fingerprintOf(one))
        const isSame = JSON.stringify(encodeDeadFilter(other)) === text
        expect(fingerprintOf(other) === fingerprintOf(one)).toBe(isSame)
      }),
    )
  })

  it('is not read from anything else', () => {
    const good = encodeDeadFilter(ALL)
    const bad = [
      undefined,
      'x',
      {},
      { ...good, reason: 'nothing' },
      { ...good, limit: 'x' },
      { ...good, headers: [['a']] },
      { ...good, headers: 'x' },
    ]
    for (const json of bad) expect(() => decodeDeadFilter(json)).toThrow(BrokerError)
  })
})
