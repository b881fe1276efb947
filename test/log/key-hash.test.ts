import { assert, property, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { KeyHash } from '../../src/log/key-hash.ts'

const SECRET = Uint8Array.from({ length: 16 }, (_, i) => i)

function hashOf(bytes: Uint8Array, start = 0, end: number = bytes.length): string {
  const hash = new KeyHash(SECRET)
  hash.update(bytes, start, end)
  const out = Buffer.alloc(16)
  for (const [i, word] of hash.words.entries()) out.writeUInt32LE(word, i * 4)
  return out.toString('hex')
}

describe('the hash of keys', () => {
  // From vectors.h of the reference implementation: key 00 01 … 0f, input 00 01 … of the given length.
  it.each([
    [0, 'a3817f04ba25a8e66df67214c7550293'],
    [1, 'da87c1d86b99af44347659119b22fc45'],
    [2, '8177228da4a45dc7fca38bdef60affe4'],
    [3, '9c70b60c5267a94e5f33b6b02985ed51'],
    [7, 'a1f1ebbed8dbc153c0b84aa61ff08239'],
    [8, '3b62a9ba6258f5610f83e264f31497b4'],
    [9, '264499060ad9baabc47f8b02bb6d71ed'],
  ])('is SipHash-2-4-128: %i bytes', (length, expected) => {
    expect(hashOf(Uint8Array.from({ length }, (_, i) => i))).toBe(expected)
  })

  it('depends on nothing but the bytes between start and end', () => {
    assert(
      property(uint8Array(), uint8Array(), uint8Array(), (before, key, after) => {
        const bytes = Buffer.concat([before, key, after])
        expect(hashOf(bytes, before.length, before.length + key.length)).toBe(hashOf(key))
      }),
    )
  })
})
