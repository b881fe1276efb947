import { describe, expect, it } from 'vitest'
import { decodeToken } from '../../../src/coordination/queue/lease-token.ts'
import {
  type Lease,
  LeaseBook,
  type LeaseHolder,
  wasSettledAs,
} from '../../../src/coordination/queue/lease.ts'

function aHolder(): LeaseHolder {
  return { memberId: 'worker-1', acquired: 0, lastChances: 0 }
}

function aBook(): LeaseBook {
  return new LeaseBook({ expired: () => undefined }, 7, 99)
}

function grant(book: LeaseBook, holder: LeaseHolder, first: number, end: number): Lease {
  return book.grant(holder, { first, end, count: end - first }, 1000, 5, false)
}

describe('the leases of a partition', () => {
  it('have tokens that name them', () => {
    const book = aBook()
    const lease = grant(book, aHolder(), 10, 20)
    expect(decodeToken(lease.token)).toEqual({ epoch: 7, queue: 99, number: lease.number })
    expect(book.find(lease.number)).toBe(lease)
    expect(lease).toMatchObject({ deadlineMs: 1005, open: 10, isOver: false })
  })

  it('are over with the last record that is settled', () => {
    const [book, holder] = [aBook(), aHolder()]
    const lease = grant(book, holder, 10, 13)
    book.settle(lease, 11, 12, 1, 'accept')
    book.settle(lease, 10, 11, 1, 'retry')
    expect([lease.isOver, holder.acquired]).toEqual([false, 1])
    book.settle(lease, 12, 13, 1, 'accept')
    expect([lease.isOver, holder.acquired, [...book.living()].length]).toEqual([true, 0, 0])
  })

  it('know what was settled under them, in whatever order it came', () => {
    const book = aBook()
    const lease = grant(book, aHolder(), 0, 10)
    book.settle(lease, 5, 7, 2, 'accept')
    book.settle(lease, 3, 5, 2, 'accept')
    book.settle(lease, 7, 8, 1, 'retry')
    expect(wasSettledAs(lease, 3, 7, 'accept')).toBe(true)
    expect(wasSettledAs(lease, 4, 6, 'accept')).toBe(true)
    expect(wasSettledAs(lease, 3, 8, 'accept')).toBe(false)
    expect(wasSettledAs(lease, 7, 8, 'retry')).toBe(true)
    expect(wasSettledAs(lease, 2, 4, 'accept')).toBe(false)
    expect(wasSettledAs(lease, 7, 8, 'accept')).toBe(false)
  })

  it('take any verdict on offsets that hold no record', () => {
    const book = aBook()
    const lease = grant(book, aHolder(), 0, 3)
    lease.settled.push({ first: 1, end: 2, verdict: 'none' })
    book.settle(lease, 0, 1, 1, 'accept')
    book.settle(lease, 2, 3, 1, 'accept')
    expect(wasSettledAs(lease, 0, 3, 'accept')).toBe(true)
    expect(wasSettledAs(lease, 0, 3, 'retry')).toBe(false)
  })

  it('give back what is left of them when they run out, once', () => {
    const [book, holder] = [aBook(), aHolder()]
    const lease = book.grant(holder, { first: 0, end: 5, count: 5 }, 1000, 0, true)
    grant(book, holder, 5, 7)
    book.settle(lease, 0, 1, 1, 'accept')
    expect(holder).toMatchObject({ acquired: 6, lastChances: 1 })
    book.finish(lease)
    book.finish(lease)
    expect(holder).toMatchObject({ acquired: 2, lastChances: 0 })
  })

  it('are remembered for repeats after they are over, and forgotten in the end', () => {
    const [book, holder] = [aBook(), aHolder()]
    const living = grant(book, holder, 0, 1)
    const numbers: number[] = []
    for (let i = 1; i <= 10_000; i++) {
      const lease = grant(book, holder, i, i + 1)
      numbers.push(lease.number)
      book.settle(lease, i, i + 1, 1, 'accept')
    }
    const known = numbers.filter((number) => book.find(number) !== undefined)
    expect(known).toEqual(numbers.slice(-4096))
    expect(book.find(living.number)).toBe(living)
    expect(holder.acquired).toBe(1)
  })
})
