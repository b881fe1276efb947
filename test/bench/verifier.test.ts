import { fc, it as prop } from '@fast-check/vitest'
import { describe, expect, it } from 'vitest'
import { Values, type ValueOptions } from '../../bench/values.ts'
import { Verifier } from '../../bench/verifier.ts'

const OPTIONS: ValueOptions = { seed: 3, payloadBytes: 100, isStamped: false, content: 'random' }

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
}

/** A verifier, and a way to give it records of one partition that lie at the offsets that they should. */
function aVerifier(): { take: (producer: number, sequence: number) => void; verifier: Verifier } {
  const values = new Values(OPTIONS)
  const verifier = new Verifier(values)
  let offset = 0
  return {
    verifier,
    take: (producer, sequence) => {
      verifier.takeValue(0, offset++, values.make(producer, sequence))
    },
  }
}

describe('Values', () => {
  const anOption = fc.record({
    seed: fc.nat(),
    payloadBytes: fc.integer({ min: 16, max: 1_000 }),
    isStamped: fc.boolean(),
    content: fc.constantFrom('random' as const, 'text' as const),
  })

  prop.prop([anOption, fc.nat(65_535), fc.nat(2 ** 40)])(
    'are known again by whoever has the same seed',
    (options, producer, sequence) => {
      const value = Buffer.from(new Values(options).make(producer, sequence, 1234.5))
      const other = new Values(options)
      expect(other.producerAt(viewOf(value), 0)).toBe(producer)
      expect(other.sequenceAt(viewOf(value), 0)).toBe(sequence)
      if (options.isStamped) expect(other.stampAt(viewOf(value), 0)).toBe(1234.5)
      expect(other.isIntact(value, viewOf(value), 0, value.length)).toBe(true)
    },
  )

  prop.prop([anOption, fc.nat(5_000), fc.nat(), fc.nat(7)])(
    'are not intact with any bit of the body flipped',
    (options, sequence, place, bit) => {
      const values = new Values(options)
      const value = Buffer.from(values.make(1, sequence))
      const bodyAt = options.isStamped ? 16 : 8
      fc.pre(value.length > bodyAt)
      const at = bodyAt + (place % (value.length - bodyAt))
      value[at] = (value[at] ?? 0) ^ (1 << bit)
      expect(values.isIntact(value, viewOf(value), 0, value.length)).toBe(false)
    },
  )

  it('refuses a payload without room for its header', () => {
    expect(() => new Values({ ...OPTIONS, payloadBytes: 7 })).toThrow(RangeError)
    expect(() => new Values({ ...OPTIONS, payloadBytes: 15, isStamped: true })).toThrow(RangeError)
  })
})

describe('Verifier', () => {
  it('is content when every record came once and in order', () => {
    const { take, verifier } = aVerifier()
    for (let i = 0; i < 70_000; i++) take(i % 2, Math.floor(i / 2))
    expect(() => verifier.finish([35_000, 35_000])).not.toThrow()
  })

  it('tells of a record that is missing', () => {
    const { take, verifier } = aVerifier()
    take(0, 0)
    take(0, 2)
    expect(() => verifier.finish([3])).toThrow(
      '3 records of producer 0 were sent, 2 have been read',
    )
  })

  it('tells of a record that nobody sent', () => {
    const { take, verifier } = aVerifier()
    take(0, 0)
    take(5, 0)
    expect(() => verifier.finish([1])).toThrow('1 records were sent, 2 have been read')
  })

  it('tells of a record that is there twice, in the same partition or in another', () => {
    const { take } = aVerifier()
    take(0, 4)
    expect(() => take(0, 4)).toThrow('after 4')
    const values = new Values(OPTIONS)
    const verifier = new Verifier(values)
    verifier.takeValue(0, 0, values.make(0, 4))
    expect(() => verifier.takeValue(1, 0, values.make(0, 4))).toThrow('twice')
  })

  it('tells of records out of order', () => {
    const { take } = aVerifier()
    take(0, 4)
    expect(() => take(0, 3)).toThrow('after 4')
  })

  it('tells of a gap in the offsets', () => {
    const values = new Values(OPTIONS)
    const verifier = new Verifier(values)
    verifier.takeValue(0, 0, values.make(0, 0))
    expect(() => verifier.takeValue(0, 2, values.make(0, 1))).toThrow('where 1 was due')
  })

  it('tells of changed bytes and of another size', () => {
    const values = new Values(OPTIONS)
    const value = Buffer.from(values.make(0, 0))
    value[99] = (value[99] ?? 0) ^ 1
    expect(() => new Verifier(values).takeValue(0, 0, value)).toThrow('is not what producer 0 sent')
    expect(() => new Verifier(values).takeValue(0, 0, value.subarray(1))).toThrow('has 99 bytes')
    expect(() => new Verifier(values).takeValue(0, 0, null)).toThrow('tombstone')
  })

  it('tells of a receipt that named another place', () => {
    const values = new Values(OPTIONS)
    const samples = {
      every: 1,
      partitions: [Int32Array.of(0, 0)],
      offsets: [Float64Array.of(0, 5)],
    }
    const verifier = new Verifier(values, { samples })
    verifier.takeValue(0, 0, values.make(0, 0))
    expect(verifier.checkedReceipts).toBe(1)
    expect(() => verifier.takeValue(0, 1, values.make(0, 1))).toThrow('its receipt said 0:5')
  })
})
