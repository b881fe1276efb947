import { describe, expect, it } from 'vitest'
import { GroupVerifier } from '../../bench/group-verifier.ts'
import { partOf } from '../../bench/group-settling.ts'
import { Values } from '../../bench/values.ts'
import { VerificationError } from '../../bench/verifier.ts'
import type { Batch } from '../../src/client/index.ts'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'

const PAYLOAD = 64

/** Records `[from, end)` of a partition; `sequence` says which number each holds, its offset by default. */
function aBatch(
  partition: number,
  from: number,
  end: number,
  sequence = (offset: number): number => offset,
): Batch<Uint8Array> {
  const values = aValues()
  const builder = new BatchBuilder({ maxBytes: 1 << 16, initialBytes: 1024 })
  for (let offset = from; offset < end; offset++) {
    builder.tryAppend(undefined, values.make(partition, sequence(offset), 0), 0)
  }
  const bytes = builder.finish()
  new DataView(bytes.buffer, bytes.byteOffset).setBigInt64(0, BigInt(from))
  return {
    partition,
    cursor: () => {
      const cursor = new RecordCursor()
      cursor.reset(bytes, 0)
      return cursor
    },
  } as unknown as Batch<Uint8Array> // All that the verifier looks at.
}

function aValues(): Values {
  return new Values({ seed: 1, payloadBytes: PAYLOAD, isStamped: true, content: 'random' })
}

function aVerifier(partitions = 2): GroupVerifier {
  return new GroupVerifier(aValues(), partitions)
}

describe('GroupVerifier', () => {
  it('takes each partition from its start to its end', () => {
    const verifier = aVerifier()
    verifier.take(aBatch(0, 0, 3))
    verifier.take(aBatch(1, 0, 2))
    verifier.take(aBatch(0, 3, 5))
    expect([verifier.records, verifier.repeated]).toEqual([7, 0])
    expect([verifier.hasAll(2), verifier.hasAll(3)]).toEqual([true, false])
  })

  it('counts what a new owner reads again', () => {
    const verifier = aVerifier(1)
    verifier.take(aBatch(0, 0, 5))
    verifier.moved(0)
    verifier.take(aBatch(0, 3, 7))
    verifier.finish(7)
    expect([verifier.records, verifier.repeated]).toEqual([9, 2])
  })

  it('refuses a new owner that begins behind what has been seen', () => {
    const verifier = aVerifier(1)
    verifier.take(aBatch(0, 0, 5))
    verifier.moved(0)
    expect(() => verifier.take(aBatch(0, 6, 7))).toThrow(VerificationError)
  })

  it.each([
    ['a gap', () => aBatch(0, 4, 5)],
    ['a repeat without a move', () => aBatch(0, 2, 4)],
    ['another record than was written there', () => aBatch(0, 3, 4, () => 9)],
  ])('refuses %s', (_, second) => {
    const verifier = aVerifier(1)
    verifier.take(aBatch(0, 0, 3))
    expect(() => verifier.take(second())).toThrow(VerificationError)
  })

  it('refuses an end before, or after, what was written', () => {
    const verifier = aVerifier(1)
    verifier.take(aBatch(0, 0, 3))
    verifier.finish(3)
    expect(() => verifier.finish(4)).toThrow(VerificationError)
    expect(() => verifier.finish(2)).toThrow(VerificationError)
  })
})

describe('partOf', () => {
  it('cuts a number into parts that differ by one at most', () => {
    expect([0, 1, 2].map((i) => partOf(10, 3, i))).toEqual([4, 3, 3])
    expect([0, 1].map((i) => partOf(1, 2, i))).toEqual([1, 0])
  })
})
