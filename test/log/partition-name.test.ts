import { array, assert, constantFrom, nat, property, record } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { isBrokersOwn, partitionName } from '../../src/log/partition-name.ts'

/** Names made of what names of partitions and companions are made of. */
const trickyTopics = array(constantFrom('a', '-', '0', '1', '.state', '.'), {
  minLength: 1,
  maxLength: 6,
}).map((parts) => parts.join(''))
const ids = record({
  topic: trickyTopics,
  partition: nat(11),
  companion: constantFrom(undefined, 'state' as const),
})

describe('partitionName', () => {
  it('marks a companion', () => {
    expect(partitionName({ topic: 'orders', partition: 3 })).toBe('orders-3')
    expect(partitionName({ topic: 'orders', partition: 3, companion: 'state' })).toBe(
      'orders-3.state',
    )
  })

  it('gives no two logs the same name', () => {
    assert(
      property(ids, ids, (a, b) => {
        const isSame =
          a.topic === b.topic && a.partition === b.partition && a.companion === b.companion
        expect(partitionName(a) === partitionName(b)).toBe(isSame)
      }),
      { numRuns: 5000 },
    )
  })
})

describe('isBrokersOwn', () => {
  it('knows internal topics and companions', () => {
    expect(isBrokersOwn({ topic: 'orders' })).toBe(false)
    expect(isBrokersOwn({ topic: '__offsets' })).toBe(true)
    expect(isBrokersOwn({ topic: 'orders', companion: 'state' })).toBe(true)
  })
})
