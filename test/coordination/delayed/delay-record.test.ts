import { assert, integer, option, property, record, string, uint8Array, uuid } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import {
  decodeEnd,
  decodeEnvelope,
  decodeIntent,
  encodeEnd,
  encodeEnvelope,
  encodeIntent,
  formatDelayId,
  parseDelayId,
} from '../../../src/coordination/delayed/delay-record.ts'

const nothing = { nil: undefined }
const aTime = integer({ min: 0, max: 2 ** 45 })
const anOffset = integer({ min: 0, max: 2 ** 53 - 1 }).map(toOffset)
const aTarget = record({
  topic: string({ unit: 'grapheme-ascii', minLength: 1, maxLength: 249 }),
  topicId: uuid(),
  partition: integer({ min: 0, max: 2 ** 31 }),
})
const anEnvelope = record({
  target: aTarget,
  acceptedMs: aTime,
  deliverAtMs: aTime,
  dedupeId: string({ unit: 'grapheme', maxLength: 12 }),
  checksum: integer({ min: 0, max: 2 ** 32 - 1 }),
  sendId: option(uint8Array({ minLength: 16, maxLength: 16 }), { nil: new Uint8Array(0) }),
  moved: option(record({ origin: anOffset, offset: anOffset, dueMs: aTime }), nothing),
  key: option(uint8Array({ maxLength: 300 }), nothing),
  value: option(uint8Array({ maxLength: 3000 }), nothing),
  timestampMs: option(integer({ min: -1, max: 2 ** 45 }), nothing),
})

/** Views and arrays of their own look alike. */
function plain(value: object): unknown {
  const entries = Object.entries(value).map(([name, one]: [string, unknown]) => [
    name,
    one instanceof Uint8Array ? Buffer.from(one).toString('hex') : one,
  ])
  return Object.fromEntries(entries)
}

describe('records of __delayed', () => {
  it('read back what was written', () => {
    assert(
      property(anEnvelope, integer({ min: 0, max: 5 }), (envelope, before) => {
        const bytes = Buffer.concat([Buffer.alloc(before, 0xff), encodeEnvelope(envelope)])
        const decoded = decodeEnvelope(bytes, before, bytes.length)
        // Without a dedupe id there is nothing to verify.
        const checksum = envelope.dedupeId === '' ? 0 : envelope.checksum
        expect(plain(decoded)).toEqual(plain({ ...envelope, checksum }))
      }),
    )
  })

  it('tell intents and ends', () => {
    const intent = {
      target: { topic: 'orders', topicId: '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405161', partition: 3 },
      end: toOffset(77),
      records: [
        { offset: toOffset(1), dueMs: 5 },
        { offset: toOffset(2 ** 50), dueMs: 2 ** 44 },
      ],
    }
    const bytes = encodeIntent(intent)
    expect(decodeIntent(bytes, 0, bytes.length)).toEqual(intent)
    const end = { offset: toOffset(2 ** 40), dueMs: 1_767_225_600_000, dedupeId: 'größe' }
    expect(decodeEnd([{ key: 'x', value: undefined }, encodeEnd(end)])).toEqual(end)
  })

  it('that are cut off, or of a newer version, are refused by name', () => {
    const bytes = encodeIntent({
      target: { topic: 'o', topicId: '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405161', partition: 0 },
      end: toOffset(0),
      records: [],
    })
    for (let end = 0; end < bytes.length; end++) {
      expect(() => decodeIntent(bytes, 0, end)).toThrow(/not what was written/)
    }
    expect(() => decodeIntent(Uint8Array.of(9), 0, 1)).toThrow(/newer millrace/)
  })

  it('have ids that can be read back, and nothing else can', () => {
    assert(
      property(
        integer({ min: 0, max: 99_999 }),
        anOffset,
        uint8Array({ minLength: 12, maxLength: 12 }),
        (shard, offset, key) => {
          const id = parseDelayId(formatDelayId(shard, offset, key))
          expect(id === undefined ? undefined : plain(id)).toEqual(plain({ shard, offset, key }))
        },
      ),
    )
    for (const text of [
      '',
      '0.0',
      '0.0.',
      '0.9999999999999999.AAAAAAAAAAAAAAAA',
      'a.0.AAAAAAAAAAAAAAAA',
    ]) {
      expect(parseDelayId(text)).toBeUndefined()
    }
  })
})
