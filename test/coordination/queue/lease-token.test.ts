import { expect, it } from 'vitest'
import { assert, integer, maxSafeInteger, property, uint8Array } from 'fast-check'
import {
  decodeToken,
  encodeToken,
  LEASE_TOKEN_BYTES,
  tokenKey,
} from '../../../src/coordination/queue/lease-token.ts'

const u32 = integer({ min: 0, max: 2 ** 32 - 1 })

it('reads back what it writes, in 16 bytes', () => {
  assert(
    property(u32, u32, maxSafeInteger(), (epoch, queue, number) => {
      const token = { epoch, queue, number: Math.abs(number) }
      const bytes = encodeToken(token)
      expect(bytes.length).toBe(LEASE_TOKEN_BYTES)
      expect(decodeToken(bytes)).toEqual(token)
    }),
  )
})

it('recognizes bytes that are no token', () => {
  for (const length of [0, 1, 15, 17, 32])
    expect(decodeToken(new Uint8Array(length))).toBeUndefined()
  expect(decodeToken(new Uint8Array(16).fill(255))).toBeUndefined()
  const tooLarge = encodeToken({ epoch: 1, queue: 2, number: 0 })
  tooLarge[9] = 0x20 // 2^53
  expect(decodeToken(tooLarge)).toBeUndefined()
  tooLarge[9] = 0x1f
  expect(decodeToken(tooLarge)?.number).toBe(0x1f * 2 ** 48)
})

it('takes any 16 bytes for one token at most', () => {
  assert(
    property(uint8Array({ minLength: 16, maxLength: 16 }), (bytes) => {
      const token = decodeToken(bytes)
      if (token !== undefined) expect(encodeToken(token)).toEqual(bytes)
    }),
  )
})

it('has a key that says all of it', () => {
  const bytes = encodeToken({ epoch: 1, queue: 0xfffffffe, number: 3 })
  expect(tokenKey(bytes)).toBe('00000001fffffffe0000000000000003')
  expect(tokenKey(new Uint8Array([9, ...bytes, 9]).subarray(1, 17))).toBe(tokenKey(bytes))
})
