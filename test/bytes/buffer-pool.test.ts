import { describe, expect, it } from 'vitest'
import { BufferPool } from '../../src/bytes/buffer-pool.ts'

describe('a buffer pool', () => {
  it('gives the whole buffer again that a view of it was given back for', () => {
    const pool = new BufferPool(2)
    const first = pool.take(1000)
    pool.give(first.subarray(0, 900))
    const second = pool.take(1000)
    expect(second.buffer).toBe(first.buffer)
    expect(second.length).toBe(1000)
    expect(pool.take(1000).buffer).not.toBe(first.buffer)
  })

  it('makes a new one when the size is another', () => {
    const pool = new BufferPool(2)
    pool.give(pool.take(1000))
    expect(pool.take(2000)).toHaveLength(2000)
  })

  it('keeps no more than it may, none of another size, and no piece of a larger buffer', () => {
    const pool = new BufferPool(1)
    const [a, b] = [Buffer.allocUnsafeSlow(1000), Buffer.allocUnsafeSlow(1000)]
    pool.give(a)
    pool.give(b)
    expect(pool.take(1000).buffer).toBe(a.buffer)
    pool.give(b.subarray(10))
    expect(pool.take(1000).buffer).not.toBe(b.buffer)
  })
})
