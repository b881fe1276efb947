import { describe, expect, it } from 'vitest'
import { assert, integer, property, string } from 'fast-check'
import { toOffset } from '../../../src/common/offset.ts'
import { BatchBuilder, type RecordHeader } from '../../../src/record/batch-builder.ts'
import {
  buildDeadLetter,
  type DeathFacts,
  FAILURES_HEADER,
  findFormerFailures,
  findRedrives,
  readDeadLetter,
  REDRIVE_ID_HEADER,
  type StoredRecord,
  toRedrivenHeaders,
  withoutDeadLetterHeaders,
} from '../../../src/coordination/queue/dead-letter-record.ts'
import { retryTopicName } from '../../../src/coordination/queue/names.ts'
import type { FailureInfo } from '../../../src/coordination/queue/queue-types.ts'

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
const header = (key: string, value: string): RecordHeader => ({ key, value: bytes(value) })
const whole = { copyPayload: true, maxBytes: 1_000_000 }

function textOf(record: StoredRecord, name: string): string | undefined {
  const found = record.headers.filter(({ key }) => key === name)
  expect(found.length).toBeLessThanOrEqual(1)
  return found[0]?.value === undefined ? undefined : new TextDecoder().decode(found[0].value)
}

function aRecord(some: Partial<StoredRecord> = {}): StoredRecord {
  return { key: bytes('k'), value: bytes('payload'), headers: [header('trace', '1')], ...some }
}

function aFailure(message: string, stack = `at ${message}`): FailureInfo {
  const error = { type: 'TypeError', message, stack }
  return { error, atMs: 500, memberId: 'm-1', kind: 'retry' }
}

function aDeath(some: Partial<DeathFacts> = {}): DeathFacts {
  return {
    group: 'workers',
    topic: 'orders',
    partition: 3,
    offset: toOffset(91),
    reason: 'attempts_exhausted',
    deliveries: 6,
    failures: 5,
    firstFailedMs: 1000,
    lastFailedMs: 9000,
    errors: ['one', 'two', 'three', 'four'].map((message) => aFailure(message)),
    memberId: 'm-1',
    ...some,
  }
}

/** Bytes of the batch that the record makes alone, as the broker will build it. */
function batchBytes(record: StoredRecord): number {
  const builder = new BatchBuilder({ maxBytes: 64_000_000 })
  expect(builder.tryAppend(record.key, record.value, 0, record.headers)).toBe(true)
  return builder.finish().length
}

describe('buildDeadLetter', () => {
  it('keeps key, value and headers, and adds where it comes from and why it died', () => {
    const letter = buildDeadLetter(aRecord(), aDeath(), whole)
    const texts = letter.headers.map(({ key, value }) => [key, new TextDecoder().decode(value)])
    expect([letter.key, letter.value]).toEqual([bytes('k'), bytes('payload')])
    expect(texts).toEqual([
      ['trace', '1'],
      ['dlq.id', 'workers/orders/3/91/0'],
      ['dlq.topic', 'orders'],
      ['dlq.partition', '3'],
      ['dlq.offset', '91'],
      ['dlq.group', 'workers'],
      ['dlq.reason', 'attempts_exhausted'],
      ['dlq.deliveries', '6'],
      ['dlq.failures', '5'],
      ['dlq.first_failed_at', '1000'],
      ['dlq.last_failed_at', '9000'],
      ['dlq.member', 'm-1'],
      ['dlq.redrives', '0'],
      ['dlq.error.type', 'TypeError'],
      ['dlq.error.message', 'four'],
      ['dlq.error.stack', 'at four'],
      [
        'dlq.errors',
        '[{"type":"TypeError","message":"two","at":500},{"type":"TypeError","message":"three","at":500},{"type":"TypeError","message":"four","at":500}]',
      ],
    ])
  })

  it('is read back', () => {
    expect(readDeadLetter(buildDeadLetter(aRecord(), aDeath(), whole).headers)).toEqual({
      id: 'workers/orders/3/91/0',
      topic: 'orders',
      partition: 3,
      offset: 91,
      group: 'workers',
      reason: 'attempts_exhausted',
      deliveries: 6,
      failures: 5,
      firstFailedMs: 1000,
      lastFailedMs: 9000,
      error: { type: 'TypeError', message: 'four', stack: 'at four' },
      errors: ['two', 'three', 'four'].map((message) => ({
        type: 'TypeError',
        message,
        atMs: 500,
      })),
      memberId: 'm-1',
      redrives: 0,
      truncated: false,
      hasPayload: true,
    })
  })

  it('tells of no error and no member when there was none', () => {
    const death = aDeath({
      reason: 'expired',
      errors: [],
      memberId: '',
      deliveries: 0,
      failures: 0,
    })
    const letter = buildDeadLetter(aRecord(), death, whole)
    expect(letter.headers.some(({ key }) => /^dlq\.(error|member)/.test(key))).toBe(false)
    expect(readDeadLetter(letter.headers)).toMatchObject({ reason: 'expired', memberId: '' })
  })

  it('leaves the value out when it is not to be copied, and says so', () => {
    const letter = buildDeadLetter(aRecord(), aDeath(), { ...whole, copyPayload: false })
    expect([letter.key, letter.value]).toEqual([bytes('k'), undefined])
    expect(readDeadLetter(letter.headers)).toMatchObject({ hasPayload: false, truncated: false })
    const tombstone = aRecord({ value: undefined })
    const kept = buildDeadLetter(tombstone, aDeath(), { ...whole, copyPayload: false })
    expect(readDeadLetter(kept.headers)?.hasPayload).toBe(true)
  })

  it('replaces dlq headers that a producer made up', () => {
    const earlier = aDeath({ topic: 'other', offset: toOffset(7) })
    const forged = toRedrivenHeaders(buildDeadLetter(aRecord(), earlier, whole).headers, 'x', false)
    const letter = buildDeadLetter(aRecord({ headers: forged }), aDeath(), whole)
    expect(readDeadLetter(letter.headers)).toMatchObject({
      topic: 'orders',
      offset: 91,
      failures: 5,
      redrives: 0,
    })
    expect(findRedrives('workers', 'orders', forged)).toBe(0)
  })

  it('cuts long texts at a letter', () => {
    const long = aFailure('é'.repeat(3000), '€'.repeat(9000))
    const letter = buildDeadLetter(aRecord(), aDeath({ errors: [long] }), whole)
    expect(textOf(letter, 'dlq.error.message')).toBe('é'.repeat(1024))
    expect(textOf(letter, 'dlq.error.stack')).toBe('€'.repeat(2730))
    expect(textOf(letter, 'dlq.truncated')).toBeUndefined()
  })
})

describe('a record that dies again', () => {
  const retry = retryTopicName('workers', 'orders')
  const first = buildDeadLetter(aRecord(), aDeath(), whole)
  const again = aDeath({
    topic: retry,
    partition: 0,
    offset: toOffset(2),
    reason: 'rejected',
    deliveries: 1,
    failures: 1,
    firstFailedMs: 20_000,
    lastFailedMs: 20_000,
    errors: [aFailure('five')],
    memberId: 'm-2',
  })

  it('keeps the place and the first failure of its first life, and goes on counting', () => {
    const redriven = { ...first, headers: toRedrivenHeaders(first.headers, 'id/0/5', true) }
    expect(findRedrives('workers', retry, redriven.headers)).toBe(1)
    const letter = buildDeadLetter(redriven, again, whole)
    expect(readDeadLetter(letter.headers)).toMatchObject({
      id: `workers/${retry}/0/2/1`,
      topic: 'orders',
      partition: 3,
      offset: 91,
      reason: 'rejected',
      deliveries: 7,
      failures: 6,
      firstFailedMs: 1000,
      lastFailedMs: 20_000,
      error: { message: 'five' },
      errors: [{ message: 'five' }],
      memberId: 'm-2',
      redrives: 1,
    })
    expect(textOf(letter, 'trace')).toBe('1')
    expect(textOf(letter, REDRIVE_ID_HEADER)).toBeUndefined()
    const third = toRedrivenHeaders(letter.headers, 'id/0/6', true)
    expect(findRedrives('workers', retry, third)).toBe(2)
  })

  it('does not count twice the failures that a redrive let it keep', () => {
    const headers = toRedrivenHeaders(first.headers, 'id/0/5', false)
    expect(findFormerFailures(retry, headers)).toBe(5)
    const letter = buildDeadLetter({ ...first, headers }, { ...again, failures: 6 }, whole)
    expect(textOf(letter, 'dlq.failures')).toBe('6')
    expect(textOf(letter, FAILURES_HEADER)).toBeUndefined()
  })

  it('believes headers only in its own group’s retry topic', () => {
    const headers = toRedrivenHeaders(first.headers, 'id/0/5', false)
    for (const death of [again, { ...again, topic: 'plain' }]) {
      const other = { ...death, group: 'others' }
      const letter = buildDeadLetter({ ...first, headers }, other, whole)
      expect(readDeadLetter(letter.headers)).toMatchObject({ topic: death.topic, redrives: 0 })
    }
    expect(findFormerFailures('plain', headers)).toBe(0)
  })

  it('still has no payload when it was redriven without', () => {
    const shell = buildDeadLetter(aRecord(), aDeath(), { ...whole, copyPayload: false })
    const redriven = { ...shell, headers: toRedrivenHeaders(shell.headers, 'id/0/5', true) }
    expect(readDeadLetter(buildDeadLetter(redriven, again, whole).headers)?.hasPayload).toBe(false)
    const restored = { ...redriven, value: bytes('payload') }
    expect(readDeadLetter(buildDeadLetter(restored, again, whole).headers)?.hasPayload).toBe(true)
  })
})

describe('a dead letter that is too large', () => {
  const large = aRecord({
    key: bytes('k'.repeat(1000)),
    value: bytes('v'.repeat(30_000)),
    headers: [header('trace', 't'.repeat(1500))],
  })
  const death = aDeath({ errors: [aFailure('m'.repeat(2000), 's'.repeat(8000))] })

  it('loses the stack, then the messages, then the value, then its headers, then its key', () => {
    const seen: string[] = []
    for (let maxBytes = 50_000; maxBytes > 500; maxBytes -= 250) {
      const letter = buildDeadLetter(large, death, { copyPayload: true, maxBytes })
      const has = [
        textOf(letter, 'dlq.error.stack') === undefined ? '' : 'stack',
        textOf(letter, 'dlq.error.message') === undefined ? '' : 'message',
        textOf(letter, 'dlq.errors') === undefined ? '' : 'errors',
        letter.value === undefined ? '' : 'value',
        textOf(letter, 'trace') === undefined ? '' : 'trace',
        letter.key === undefined ? '' : 'key',
        textOf(letter, 'dlq.payload') === undefined ? '' : 'shell',
        textOf(letter, 'dlq.truncated') === undefined ? '' : 'truncated',
      ].filter((one) => one !== '')
      if (seen.at(-1) !== has.join(' ')) seen.push(has.join(' '))
    }
    expect(seen).toEqual([
      'stack message errors value trace key',
      'message errors value trace key truncated',
      'value trace key truncated',
      'trace key shell truncated',
      'key shell truncated',
      'shell truncated',
    ])
  })

  it('fits, whatever the record is', () => {
    assert(
      property(
        integer({ min: 0, max: 3000 }),
        integer({ min: 0, max: 6000 }),
        string({ minLength: 1, maxLength: 40, unit: 'grapheme' }),
        integer({ min: 0, max: 100 }),
        integer({ min: 2500, max: 20_000 }),
        (keyBytes, valueBytes, letters, times, maxBytes) => {
          const text = letters.repeat(times)
          const key = new Uint8Array(keyBytes)
          const value = new Uint8Array(valueBytes)
          const record = { key, value, headers: [header(letters, text)] }
          const errors = [aFailure(text, text.repeat(3)), aFailure(`\u0001${text}`)]
          const bytesAt = (maxBytes: number): number =>
            batchBytes(buildDeadLetter(record, aDeath({ errors }), { copyPayload: true, maxBytes }))
          expect(bytesAt(maxBytes)).toBeLessThanOrEqual(maxBytes)
          // Nothing is cut that fits, to the byte.
          const full = bytesAt(1_000_000)
          expect(bytesAt(full)).toBe(full)
          if (full > 2500) expect(bytesAt(full - 1)).toBeLessThan(full)
        },
      ),
    )
  })

  it('fits into 3 KiB with the longest names there are', () => {
    const name = 'n'.repeat(249)
    const longest = aDeath({
      group: name,
      topic: name,
      offset: toOffset(Number.MAX_SAFE_INTEGER),
      memberId: 'm'.repeat(100),
    })
    const letter = buildDeadLetter(large, longest, { copyPayload: true, maxBytes: 3072 })
    expect(batchBytes(letter)).toBeLessThanOrEqual(3072)
  })
})

describe('readDeadLetter', () => {
  it('reads what a stream group’s consumer writes', () => {
    const headers = [
      header('dlq.topic', 'orders'),
      header('dlq.partition', '0'),
      header('dlq.offset', '4'),
      header('dlq.group', 'g'),
      header('dlq.reason', 'rejected'),
      header('dlq.failures', '2'),
      header('dlq.last_failed_at', '77'),
    ]
    expect(readDeadLetter(headers)).toMatchObject({
      id: 'g/orders/0/4/0',
      deliveries: 2,
      failures: 2,
      redrives: 0,
      firstFailedMs: 77,
    })
  })

  it('takes a record without a place for none, and a garbled header for absent', () => {
    expect(readDeadLetter([])).toBeUndefined()
    expect(readDeadLetter([header('dlq.topic', 'orders')])).toBeUndefined()
    const good = buildDeadLetter(aRecord(), aDeath(), whole).headers
    const swap = (key: string, value: string): RecordHeader[] =>
      good.map((one) => (one.key === key ? header(key, value) : one))
    for (const bad of ['', '-1', '1e3', '99999999999999999', 'x']) {
      expect(readDeadLetter(swap('dlq.offset', bad))).toBeUndefined()
      expect(readDeadLetter(swap('dlq.redrives', bad))?.redrives).toBe(0)
    }
    for (const bad of ['', '{', '{}', '[1]', '[{"type":1}]', 'null']) {
      expect(readDeadLetter(swap('dlq.errors', bad))?.errors).toEqual([])
    }
  })
})

describe('withoutDeadLetterHeaders', () => {
  it('leaves what the producer wrote', () => {
    const letter = buildDeadLetter(aRecord(), aDeath(), whole)
    const copy = toRedrivenHeaders(letter.headers, 'id/0/5', false)
    expect(withoutDeadLetterHeaders(copy)).toEqual([header('trace', '1')])
  })
})
