import { beforeEach, describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { AppendGate } from '../../src/log/append-gate.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import { ProducerState } from '../../src/log/producer-state.ts'
import {
  isCrcValid,
  readBaseOffset,
  readLeaderEpoch,
  readMaxTimestamp,
} from '../../src/record/batch-header.ts'
import { aBatch } from '../support/batches.ts'
import { FakeClock } from '../support/fake-clock.ts'

const APPEND_TIME = { ...DEFAULT_LOG_CONFIG, timestampType: 'append' } as const

describe('AppendGate', () => {
  let clock: FakeClock
  let gate: AppendGate

  const makeGate = (config = DEFAULT_LOG_CONFIG, lastAppendTimeMs?: number): AppendGate =>
    new AppendGate({
      nextOffset: toOffset(40),
      leaderEpoch: 7,
      producers: new ProducerState(),
      clock,
      config,
      lastAppendTimeMs,
    })

  beforeEach(() => {
    clock = new FakeClock()
    gate = makeGate()
  })

  it('gives the next offsets and stamps them with its epoch', () => {
    const batch = aBatch({ records: 3 })
    expect(gate.admit(batch)).toEqual({
      duplicate: false,
      baseOffset: 40,
      endOffset: 43,
      appendTimeMs: undefined,
    })
    expect(readBaseOffset(batch, 0)).toBe(40)
    expect(readLeaderEpoch(batch, 0)).toBe(7)
    expect(isCrcValid(batch, 0)).toBe(true)
    expect(gate.nextOffset).toBe(43)
  })

  it.each([
    ['NOT_LEADER', {}, { leaderEpoch: 6 }],
    ['WRONG_EXPECTED_OFFSET', {}, { expectedOffset: toOffset(39) }],
    ['UNKNOWN_PRODUCER', { producer: { id: 1, sequence: 2 } }, {}],
  ])('changes neither itself nor the batch when it refuses with %s', (code, shape, options) => {
    gate = makeGate(APPEND_TIME)
    const batch = aBatch(shape)
    const copy = Buffer.from(batch)
    expect(() => gate.admit(batch, options)).toThrow(expect.objectContaining({ code }))
    expect(Buffer.from(batch).equals(copy)).toBe(true)
    expect(gate.nextOffset).toBe(40)
    expect(gate.producers.size).toBe(0)
  })

  it('takes a caller that knows the epoch, or a later one', () => {
    gate.admit(aBatch(), { leaderEpoch: 7 })
    gate.admit(aBatch(), { leaderEpoch: 8 })
    expect(gate.nextOffset).toBe(42)
  })

  it('recognises a repeat before it looks at the expected offset', () => {
    const shape = { records: 2, producer: { id: 1, sequence: 0 } }
    gate.admit(aBatch(shape), { expectedOffset: toOffset(40) })
    expect(gate.admit(aBatch(shape), { expectedOffset: toOffset(40) })).toMatchObject({
      duplicate: true,
      baseOffset: 40,
      endOffset: 42,
    })
    expect(gate.nextOffset).toBe(42)
  })

  it('refuses a repeat from a caller whose leader epoch is over', () => {
    const shape = { producer: { id: 1, sequence: 0 } }
    gate.admit(aBatch(shape))
    expect(() => gate.admit(aBatch(shape), { leaderEpoch: 6 })).toThrow(/epoch 6 is over/)
  })

  it('stamps append times that never decrease, also not below that of the log it continues', () => {
    const startMs = clock.wallMs()
    gate = makeGate(APPEND_TIME, startMs + 50)
    const stamp = (): number | undefined => {
      const batch = aBatch({ timestampMs: 5 })
      const { appendTimeMs } = gate.admit(batch)
      expect(readMaxTimestamp(batch, 0)).toBe(appendTimeMs)
      expect(isCrcValid(batch, 0)).toBe(true)
      return appendTimeMs
    }
    expect(stamp()).toBe(startMs + 50)
    clock.setWall(startMs + 100)
    expect(stamp()).toBe(startMs + 100)
    clock.setWall(startMs)
    expect(stamp()).toBe(startMs + 100)
  })

  it('takes offsets and producers back', () => {
    const shape = { records: 2, producer: { id: 1, sequence: 0 } }
    gate.admit(aBatch())
    gate.admit(aBatch(shape))
    gate.rollBackTo(toOffset(41))
    expect(gate.nextOffset).toBe(41)
    expect(gate.admit(aBatch(shape))).toMatchObject({ duplicate: false, baseOffset: 41 })
    expect(() => gate.rollBackTo(toOffset(44))).toThrow('broken invariant')
  })
})
