import { array, assert, boolean, constantFrom, integer, nat, property, record } from 'fast-check'
import { beforeEach, describe, expect, it } from 'vitest'
import { crc32c } from '../../src/bytes/crc32c.ts'
import { BrokerError } from '../../src/common/errors.ts'
import type { ErrorCode } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import type { Offset } from '../../src/common/offset.ts'
import { DAY_MS, HOUR_MS } from '../../src/common/units.ts'
import { stampBatch } from '../../src/record/batch-header.ts'
import { ProducerState, REMEMBERED_BATCHES } from '../../src/log/producer-state.ts'
import { aBatch, BATCH_TIME_MS } from '../support/batches.ts'

const ID = 77
const MOST_SEQUENCE = 2 ** 31 - 1

describe('ProducerState', () => {
  let state: ProducerState

  beforeEach(() => {
    state = new ProducerState()
  })

  /** A batch of one record, checked and recorded. The sequence is the offset unless given. */
  function add(
    offset: number,
    shape: {
      id?: number
      epoch?: number
      sequence?: number
      count?: number
      timeMs?: number
      usedMs?: number
    } = {},
  ): void {
    const { id = ID, epoch = 0, sequence = offset, count = 1, timeMs = BATCH_TIME_MS } = shape
    expect(state.check(id, epoch, sequence, count)).toEqual({ kind: 'new' })
    const usedMs = shape.usedMs ?? timeMs
    state.record(id, epoch, sequence, count, toOffset(offset), timeMs, usedMs)
  }

  function refuse(
    code: ErrorCode,
    { id = ID, epoch = 0, sequence = 0, count = 1 } = {},
  ): BrokerError {
    let caught: unknown
    try {
      state.check(id, epoch, sequence, count)
    } catch (error) {
      caught = error
    }
    expect(caught).toBeInstanceOf(BrokerError)
    expect(caught).toMatchObject({ code })
    return caught as BrokerError // Checked above.
  }

  describe('check', () => {
    it('changes nothing', () => {
      expect(state.check(ID, 0, 0, 3)).toEqual({ kind: 'new' })
      expect(state.check(ID, 0, 0, 3)).toEqual({ kind: 'new' })
      expect(state.size).toBe(0)
    })

    it('answers the offsets of a batch that is repeated', () => {
      add(0, { count: 3 })
      add(10, { sequence: 3, count: 2, timeMs: 123 })
      expect(state.check(ID, 0, 0, 3)).toMatchObject({
        kind: 'duplicate',
        baseOffset: 0,
        endOffset: 3,
      })
      expect(state.check(ID, 0, 3, 2)).toEqual({
        kind: 'duplicate',
        baseOffset: 10,
        endOffset: 12,
        timeMs: 123,
      })
    })

    it('names what it expected in a gap', () => {
      add(0, { count: 3 })
      const error = refuse('OUT_OF_ORDER_SEQUENCE', { sequence: 4 })
      expect(error.details).toMatchObject({ producerId: ID, expected: 3, actual: 4 })
      expect(error.message).toContain('gap')
    })

    it('refuses a repeat that is cut differently', () => {
      add(0, { count: 3 })
      for (const [sequence, count] of [
        [0, 2],
        [0, 4],
        [1, 2],
        [2, 1],
      ] as const) {
        const error = refuse('OUT_OF_ORDER_SEQUENCE', { sequence, count })
        expect(error.message).toContain('other bounds')
      }
    })

    it('remembers five batches, and says of older ones that they are too old', () => {
      for (let i = 0; i <= REMEMBERED_BATCHES; i++) add(i)
      state.setStableEnd(toOffset(6))
      for (let i = 1; i <= REMEMBERED_BATCHES; i++) {
        expect(state.check(ID, 0, i, 1)).toMatchObject({ kind: 'duplicate', baseOffset: i })
      }
      const error = refuse('OUT_OF_ORDER_SEQUENCE', { sequence: 0 })
      expect(error.message).toContain('duplicate too old')
    })

    it('fences an older epoch', () => {
      add(0, { epoch: 2 })
      const error = refuse('PRODUCER_FENCED', { epoch: 1, sequence: 1 })
      expect(error.details).toMatchObject({ producerEpoch: 1, currentEpoch: 2 })
    })

    it('wants a higher epoch to start at 0, and forgets the batches of the one before', () => {
      add(0)
      const error = refuse('OUT_OF_ORDER_SEQUENCE', { epoch: 1, sequence: 1 })
      expect(error.details).toMatchObject({ expected: 0, actual: 1 })
      add(1, { epoch: 1, sequence: 0 })
      expect(state.check(ID, 1, 0, 1)).toMatchObject({ kind: 'duplicate', baseOffset: 1 })
      expect(refuse('PRODUCER_FENCED', { sequence: 0 }).details).toMatchObject({ currentEpoch: 1 })
    })

    it('does not take a gap in a new epoch for a repeat of the one before', () => {
      for (let i = 0; i < 3; i++) add(i)
      add(3, { epoch: 1, sequence: 0 })
      expect(refuse('OUT_OF_ORDER_SEQUENCE', { epoch: 1, sequence: 2 }).message).toContain('gap')
    })

    it('wants an unknown id to start at 0', () => {
      refuse('UNKNOWN_PRODUCER', { sequence: 1 })
      refuse('UNKNOWN_PRODUCER', { sequence: MOST_SEQUENCE })
    })

    it('goes on at 0 after 2^31 - 1', () => {
      state.record(ID, 0, MOST_SEQUENCE - 1, 2, toOffset(0), 0)
      refuse('OUT_OF_ORDER_SEQUENCE', { sequence: 1 })
      add(2, { sequence: 0 })
      expect(state.check(ID, 0, MOST_SEQUENCE - 1, 2)).toMatchObject({ baseOffset: 0 })
    })

    it('goes on inside a batch over 2^31 - 1', () => {
      state.record(ID, 0, MOST_SEQUENCE - 1, 4, toOffset(0), 0)
      expect(refuse('OUT_OF_ORDER_SEQUENCE', { sequence: 0 }).message).toContain('other bounds')
      expect(refuse('OUT_OF_ORDER_SEQUENCE', { sequence: 4 }).message).toContain('gap')
      expect(refuse('OUT_OF_ORDER_SEQUENCE', { sequence: MOST_SEQUENCE - 5 }).message).toContain(
        'too old',
      )
      add(4, { sequence: 2 })
    })
  })

  describe('rollBackTo', () => {
    it('forgets what a failed write took along, and finds the five before it again', () => {
      for (let i = 0; i < 5; i++) add(i)
      state.setStableEnd(toOffset(5))
      for (let i = 5; i < 12; i++) add(i)
      add(12, { id: 5, sequence: 0 })
      state.rollBackTo(toOffset(5))
      expect(state.size).toBe(1)
      for (let i = 0; i < 5; i++) {
        expect(state.check(ID, 0, i, 1)).toMatchObject({ kind: 'duplicate', baseOffset: i })
      }
      expect(state.check(ID, 0, 5, 1)).toEqual({ kind: 'new' })
    })

    it('takes back a new epoch', () => {
      add(0)
      state.setStableEnd(toOffset(1))
      add(1, { epoch: 1, sequence: 0 })
      state.rollBackTo(toOffset(1))
      expect(state.check(ID, 0, 1, 1)).toEqual({ kind: 'new' })
    })

    it('never takes back what is stable', () => {
      add(0)
      state.setStableEnd(toOffset(1))
      expect(() => state.rollBackTo(toOffset(0))).toThrow('broken invariant')
    })
  })

  describe('expire', () => {
    const END = toOffset(100)

    it('forgets the idle, and only them', () => {
      add(0, { usedMs: 1000 })
      add(1, { id: 5, sequence: 0, usedMs: 2000 })
      state.setStableEnd(END)
      state.expire(2000, 1000)
      expect(state.size).toBe(2)
      state.expire(2001, 1000)
      expect(state.size).toBe(1)
      expect(state.check(5, 0, 1, 1)).toEqual({ kind: 'new' })
    })

    it('goes by use, not by the times in the records', () => {
      add(0, { timeMs: 1, usedMs: 10 * DAY_MS })
      state.setStableEnd(END)
      state.expire(10 * DAY_MS, DAY_MS)
      expect(state.size).toBe(1)
      state.expire(11 * DAY_MS + 1, DAY_MS)
      expect(state.size).toBe(0)
    })

    it('keeps whom only the log knows for an hour after a start', () => {
      add(0, { timeMs: 1 })
      state.setStableEnd(END)
      const restarted = ProducerState.decode(state.encode())
      restarted.expire(10 * DAY_MS, 7 * DAY_MS)
      restarted.expire(10 * DAY_MS + HOUR_MS, 7 * DAY_MS)
      expect(restarted.size).toBe(1)
      restarted.expire(10 * DAY_MS + HOUR_MS + 1, 7 * DAY_MS)
      expect(restarted.size).toBe(0)
    })

    it('is not held up by a clock that was ahead once', () => {
      add(0, { usedMs: 1000 * DAY_MS })
      state.setStableEnd(END)
      state.expire(DAY_MS, DAY_MS)
      state.expire(2 * DAY_MS, DAY_MS)
      expect(state.size).toBe(1)
      state.expire(2 * DAY_MS + 1, DAY_MS)
      expect(state.size).toBe(0)
    })

    it('leaves those alone whose batches are not stable yet', () => {
      add(0, { usedMs: 0 })
      state.expire(DAY_MS, 1)
      expect(state.size).toBe(1)
    })
  })

  describe('replay', () => {
    it('does what recording did, from the header alone', () => {
      const batch = aBatch({ records: 3, producer: { id: ID, epoch: 4, sequence: 9 } })
      stampBatch(batch, 0, 100, 1)
      state.replay(batch, 0)
      expect(state.check(ID, 4, 9, 3)).toEqual({
        kind: 'duplicate',
        baseOffset: 100,
        endOffset: 103,
        timeMs: BATCH_TIME_MS,
      })
    })

    it('ignores batches without a producer', () => {
      state.replay(aBatch({ records: 3 }), 0)
      expect(state.size).toBe(0)
    })

    it('ignores what the snapshot knows already', () => {
      const batch = aBatch({ producer: { id: ID, sequence: 0 } })
      state.replay(batch, 0)
      state.replay(batch, 0)
      expect(state.check(ID, 0, 0, 1)).toMatchObject({ kind: 'duplicate' })
      expect(state.check(ID, 0, 1, 1)).toEqual({ kind: 'new' })
    })

    it('finds the batch at its position in a run of them', () => {
      const first = aBatch({ producer: { id: 1, sequence: 0 } })
      const second = aBatch({ producer: { id: 2, sequence: 0 }, baseOffset: 1 })
      state.replay(Buffer.concat([first, second]), first.length)
      expect(state.check(2, 0, 0, 1)).toMatchObject({ kind: 'duplicate', baseOffset: 1 })
      expect(state.size).toBe(1)
    })
  })

  describe('a snapshot', () => {
    it('holds nothing that is not stable', () => {
      add(0)
      add(1)
      add(2, { id: 5, sequence: 0 })
      state.setStableEnd(toOffset(1))
      const read = ProducerState.decode(state.encode())
      expect(read.stableEnd).toBe(1)
      expect(read.size).toBe(1)
      expect(read.check(ID, 0, 0, 1)).toMatchObject({ kind: 'duplicate', baseOffset: 0 })
      expect(read.check(ID, 0, 1, 1)).toEqual({ kind: 'new' })
    })

    it('has its producers in the order of their ids', () => {
      add(0, { id: 2, sequence: 0 })
      add(1, { id: 1, sequence: 0 })
      state.setStableEnd(toOffset(2))
      const other = new ProducerState()
      other.record(1, 0, 0, 1, toOffset(1), BATCH_TIME_MS)
      other.record(2, 0, 0, 1, toOffset(0), BATCH_TIME_MS)
      other.setStableEnd(toOffset(2))
      expect(Buffer.from(other.encode()).equals(state.encode())).toBe(true)
    })

    it('is refused when its checksum is right and its content is not', () => {
      add(0)
      state.setStableEnd(toOffset(1))
      const bytes = state.encode()
      const withCrc = (changed: Buffer): Buffer => {
        changed.writeUInt32BE(crc32c(changed, 4))
        return changed
      }
      const change = (at: number, value: number): Buffer => {
        const changed = Buffer.from(bytes)
        changed[at] = value
        return withCrc(changed)
      }
      expect(() => ProducerState.decode(change(5, 2))).toThrow(/version 2/)
      expect(() => ProducerState.decode(change(6, 0x80))).toThrow(/no offset/)
      expect(() => ProducerState.decode(change(17, 2))).toThrow(/ends in a producer/)
      expect(() => ProducerState.decode(change(26, 0))).toThrow(/0 batches/)
      expect(() => ProducerState.decode(change(26, 2))).toThrow(/ends in a batch/)
      const longer = withCrc(Buffer.concat([bytes, Buffer.alloc(3)]))
      expect(() => ProducerState.decode(longer)).toThrow(/3 bytes are left over/)
    })

    it('of nothing can be read back', () => {
      expect(ProducerState.decode(state.encode()).size).toBe(0)
    })

    it('is refused after any change of a byte, and at any other length', () => {
      add(0)
      add(1, { id: 2 ** 52 + 1, sequence: 0 })
      state.setStableEnd(toOffset(2))
      const bytes = state.encode()
      for (let at = 0; at < bytes.length; at++) {
        const changed = Uint8Array.from(bytes)
        changed[at] = (changed[at] ?? 0) ^ 0x10
        expect(() => ProducerState.decode(changed)).toThrow(/damaged/)
        expect(() => ProducerState.decode(bytes.subarray(0, at))).toThrow(/damaged/)
      }
      expect(() => ProducerState.decode(Buffer.concat([bytes, bytes]))).toThrow(/damaged/)
    })
  })

  interface Step {
    id: number
    count: number
    timeMs: number
    stable: boolean
    isFailed: boolean
    newEpoch: boolean
  }

  it('is a pure function of the log: live, replayed, and from any snapshot on', () => {
    const step = record<Step>({
      id: constantFrom(1, 2, 3, 2 ** 40),
      count: integer({ min: 1, max: 4 }),
      timeMs: integer({ min: -1, max: 2 ** 42 }),
      stable: boolean(),
      isFailed: boolean(),
      newEpoch: nat(9).map((n) => n === 0),
    })
    assert(
      property(array(step, { maxLength: 60 }), nat(60), (steps, cutAt) => {
        const live = new ProducerState()
        const log: { batch: Uint8Array; base: number }[] = []
        const next = new Map<number, { epoch: number; sequence: number }>()
        let end = 0
        let snapshot: { bytes: Uint8Array; end: Offset } | undefined
        steps.forEach(({ id, count, timeMs, stable, isFailed, newEpoch }, i) => {
          const at = next.get(id) ?? { epoch: 0, sequence: 0 }
          const own = newEpoch ? { epoch: at.epoch + 1, sequence: 0 } : at
          const { epoch, sequence } = own
          expect(live.check(id, epoch, sequence, count)).toEqual({ kind: 'new' })
          live.record(id, epoch, sequence, count, toOffset(end), timeMs, i)
          if (isFailed) {
            live.rollBackTo(toOffset(end))
          } else {
            const shape = { records: count, timestampMs: timeMs, baseOffset: end }
            log.push({ batch: aBatch({ ...shape, producer: { id, epoch, sequence } }), base: end })
            end += count
            next.set(id, { epoch, sequence: sequence + count })
          }
          if (stable) live.setStableEnd(toOffset(end))
          if (i === cutAt) snapshot = { bytes: live.encode(), end: live.stableEnd }
        })
        const stableEnd = live.stableEnd
        const replayed = new ProducerState()
        for (const { batch, base } of log) if (base < stableEnd) replayed.replay(batch, 0)
        replayed.setStableEnd(stableEnd)
        expect(Buffer.from(replayed.encode()).equals(live.encode())).toBe(true)
        expect(
          Buffer.from(ProducerState.decode(live.encode()).encode()).equals(live.encode()),
        ).toBe(true)
        if (snapshot === undefined) return
        // A scan may start below the end of the snapshot: here, at the very beginning.
        for (const from of [0, snapshot.end]) {
          const recovered = ProducerState.decode(snapshot.bytes)
          for (const { batch, base } of log) {
            if (base >= from && base < stableEnd) recovered.replay(batch, 0)
          }
          recovered.setStableEnd(stableEnd)
          expect(Buffer.from(recovered.encode()).equals(live.encode())).toBe(true)
        }
      }),
    )
  })
})
