import { describe, expect, it } from 'vitest'
import { checkSingleOwners, OwnershipLedger, toPartitionKey } from '../../bench/ownership.ts'
import { VerificationError } from '../../bench/verifier.ts'

describe('OwnershipLedger', () => {
  it('counts what members own, and what two of them own twice', () => {
    const ledger = new OwnershipLedger()
    ledger.set(0, new Set([1, 2, 3]), 10)
    ledger.set(1, new Set([3, 4]), 20)
    expect(ledger.owned).toBe(5)
    ledger.set(0, new Set([1]), 30)
    expect([ledger.owned, ledger.countOf(0), ledger.countOf(1)]).toEqual([3, 1, 2])
    expect([...ledger.keysOf(1)]).toEqual([3, 4])
  })

  it('notes the time of the last change, and none when nothing changes', () => {
    const ledger = new OwnershipLedger()
    ledger.set(0, new Set([1]), 10)
    ledger.set(0, new Set([1]), 20)
    expect(ledger.changedMs).toBe(10)
  })

  it('gives a span for each time that a member had a partition, open while it has it', () => {
    const ledger = new OwnershipLedger()
    ledger.set(0, new Set([7]), 10)
    ledger.set(0, new Set(), 20)
    ledger.set(1, new Set([7]), 25)
    expect([...ledger.toSpans()]).toEqual([7, 10, 20, 7, 25, Infinity])
  })
})

describe('checkSingleOwners', () => {
  const spans = (...rows: readonly number[][]): Float64Array => Float64Array.from(rows.flat())

  it('takes owners one after the other, also when they come from several processes', () => {
    const parts = [spans([7, 10, 20], [8, 0, Infinity]), spans([7, 20, Infinity])]
    expect(checkSingleOwners(parts)).toBe(3)
  })

  it.each([
    ['one begins before the other has ended', [[7, 10, 20]], [[7, 19, 30]]],
    ['one lies within the other', [[7, 10, Infinity]], [[7, 15, 16]]],
    ['both own it still', [[7, 10, Infinity]], [[7, 15, Infinity]]],
  ])('refuses two owners at a time: %s', (_, first, second) => {
    expect(() => checkSingleOwners([spans(...first), spans(...second)])).toThrow(VerificationError)
  })

  it('tells partitions of different topics apart', () => {
    const rows = [toPartitionKey(0, 3), toPartitionKey(1, 3)].map((key) => [key, 0, Infinity])
    expect(checkSingleOwners([spans(...rows)])).toBe(2)
  })
})
