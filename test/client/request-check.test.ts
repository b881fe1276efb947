import { describe, expect, it } from 'vitest'
import { checkNumbers } from '../../src/client/request-check.ts'

describe('the check of a request', () => {
  it('takes what the wire carries, at any depth', () => {
    checkNumbers({ topic: 'a', partitions: [{ partition: 0, beforeOffset: -1 }], offset: 2 ** 52 })
    checkNumbers({ bytes: new Uint8Array(3), absent: undefined, no: null })
  })

  it.each([
    [{ partitions: 2 ** 32 + 1 }, 'INVALID_PARTITION'],
    [{ partitions: [0, 2 ** 31] }, 'INVALID_PARTITION'],
    [{ partitions: [{ partition: 1.5 }] }, 'INVALID_PARTITION'],
    [{ total: Number.NaN }, 'INVALID_PARTITION'],
    [{ maxBytes: 2 ** 31 }, 'INVALID_REQUEST'],
    [{ timestampMs: 2 ** 60 }, 'INVALID_REQUEST'],
  ])('refuses %o', (request, code) => {
    expect(() => checkNumbers(request)).toThrow(expect.objectContaining({ code }))
  })
})
