import { beforeEach, describe, expect, it } from 'vitest'
import { BufferPool } from '../../src/bytes/buffer-pool.ts'
import {
  FlushWaiter,
  PartitionAccumulator,
  type PendingBatch,
} from '../../src/client/batch-accumulator.ts'
import { MillraceError, type Receipt } from '../../src/client/index.ts'
import { readBaseSequence, readProducerId, readRecordCount } from '../../src/record/batch-header.ts'
import { FakeClock } from '../support/fake-clock.ts'

let clock: FakeClock
let released: number
let posts: [string, number][]

beforeEach(() => {
  clock = new FakeClock()
  released = 0
  posts = []
})

function anAccumulator(
  options: { batchBytes?: number; idempotent?: boolean } = {},
): PartitionAccumulator {
  return new PartitionAccumulator(
    {
      topic: 'lines',
      partition: 3,
      batchBytes: options.batchBytes ?? 1024,
      compression: 'none',
      maxInFlight: 5,
      idempotent: options.idempotent ?? true,
      answered: true,
      pool: new BufferPool(4),
      clock,
    },
    {
      released: (bytes) => {
        released += bytes
      },
      postFailed: (error, records) => posts.push([error.code, records]),
    },
  )
}

/** Appends `count` posted records and seals them into one batch. */
function fill(accumulator: PartitionAccumulator, count = 1): void {
  for (let i = 0; i < count; i++) accumulator.append(undefined, 'value', clock.wallMs(), undefined)
  accumulator.seal()
}

/** Appends one record that wants a receipt and seals it into a batch, with whatever was there before. */
function fillSend(accumulator: PartitionAccumulator): Promise<Receipt> {
  accumulator.append(undefined, 'value', clock.wallMs(), undefined)
  const receipt = accumulator.promiseReceipt(clock.wallMs())
  accumulator.seal()
  return receipt
}

function take(accumulator: PartitionAccumulator): PendingBatch {
  const batch = accumulator.takeNext()
  if (batch === undefined) throw new Error('nothing to send')
  return batch
}

const sequences = (batch: PendingBatch): number[] => [
  readProducerId(batch.bytes, 0),
  readBaseSequence(batch.bytes, 0),
  readRecordCount(batch.bytes, 0),
]
const answer = { baseOffset: 100, appendTimeMs: undefined, duplicate: false }
const identity = { producerId: 7, epoch: 0 }

describe('an accumulator', () => {
  it('seals by itself when the next record does not fit, and counts the bytes it holds', () => {
    const accumulator = anAccumulator()
    let held = 0
    for (let i = 0; i < 3; i++) {
      held += accumulator.append(undefined, 'x'.repeat(400), clock.wallMs(), undefined)
    }
    expect([accumulator.readyBatches, accumulator.openRecords]).toEqual([1, 1])
    accumulator.setIdentity(identity)
    accumulator.seal()
    for (let i = 0; i < 2; i++) accumulator.succeeded(take(accumulator), answer)
    expect(released).toBe(held)
    expect(accumulator.isEmpty).toBe(true)
  })

  it('numbers batches from 0, those too that were sealed before it had an identity', () => {
    const accumulator = anAccumulator()
    fill(accumulator, 2)
    expect(accumulator.takeNext()).toBeUndefined()
    fill(accumulator, 3)
    accumulator.setIdentity(identity)
    fill(accumulator, 1)
    expect([1, 2, 3].map(() => sequences(take(accumulator)))).toEqual([
      [7, 0, 2],
      [7, 2, 3],
      [7, 5, 1],
    ])
  })

  it('has at most five batches under way', () => {
    const accumulator = anAccumulator()
    accumulator.setIdentity(identity)
    for (let i = 0; i < 7; i++) fill(accumulator)
    const sent = [1, 2, 3, 4, 5].map(() => take(accumulator))
    expect(accumulator.takeNext()).toBeUndefined()
    accumulator.succeeded(sent[0] as PendingBatch, answer)
    expect(accumulator.takeNext()).toBeDefined()
  })

  it('gives each send its own receipt, also with posts in between', async () => {
    const accumulator = anAccumulator()
    accumulator.setIdentity(identity)
    accumulator.append(undefined, 'posted', 1000, undefined)
    accumulator.append(undefined, 'a', 2000, undefined)
    const a = accumulator.promiseReceipt(2000)
    accumulator.append(undefined, 'posted', 3000, undefined)
    accumulator.append(undefined, 'b', 4000, undefined)
    const b = accumulator.promiseReceipt(4000)
    accumulator.seal()
    accumulator.succeeded(take(accumulator), answer)
    expect(await Promise.all([b, a])).toEqual([
      { topic: 'lines', partition: 3, offset: 103, timestamp: 4000, duplicate: false },
      { topic: 'lines', partition: 3, offset: 101, timestamp: 2000, duplicate: false },
    ])
  })

  it('tells sends and posts of a failure, each in its way', async () => {
    const accumulator = anAccumulator()
    accumulator.setIdentity(identity)
    accumulator.append(undefined, 'posted', 1000, undefined)
    const send = fillSend(accumulator)
    accumulator.failed(take(accumulator), new MillraceError('INVALID_RECORD', 'no'))
    await expect(send).rejects.toMatchObject({ code: 'INVALID_RECORD' })
    expect(posts).toEqual([['INVALID_RECORD', 1]])
  })

  it('expires what has waited too long, and numbers the rest without a gap', async () => {
    const accumulator = anAccumulator()
    accumulator.setIdentity(identity)
    const old = fillSend(accumulator)
    await clock.advance(100)
    fill(accumulator)
    accumulator.expire(50, () => new MillraceError('APPEND_TIMEOUT', 'late'))
    await expect(old).rejects.toMatchObject({ code: 'APPEND_TIMEOUT' })
    expect(accumulator.isHalted).toBe(true)
    accumulator.resume()
    expect(sequences(take(accumulator))).toEqual([7, 0, 1])
  })

  it('asks for a new identity rather than reuse a sequence that may be taken', async () => {
    const accumulator = anAccumulator()
    accumulator.setIdentity(identity)
    const lost = fillSend(accumulator)
    fill(accumulator)
    const first = take(accumulator)
    accumulator.lost(first, new MillraceError('UNREACHABLE', 'broke'))
    accumulator.resume()
    accumulator.failed(take(accumulator), new MillraceError('INVALID_RECORD', 'no'))
    await expect(lost).rejects.toMatchObject({ code: 'INVALID_RECORD' })
    expect(accumulator.needsIdentity).toBe(true)
    accumulator.resume()
    expect(accumulator.takeNext()).toBeUndefined()
    accumulator.setIdentity({ producerId: 8, epoch: 0 })
    expect(sequences(take(accumulator))).toEqual([8, 0, 1])
  })

  it('lets a flush go when all that was there has been settled, and not before', async () => {
    const accumulator = anAccumulator({ idempotent: false })
    fill(accumulator)
    accumulator.append(undefined, 'open', 1000, undefined)
    const waiter = new FlushWaiter()
    accumulator.addWaiter(waiter)
    accumulator.seal()
    fill(accumulator)
    let isDone = false
    const done = waiter.done.then(() => {
      isDone = true
      return undefined
    })
    accumulator.succeeded(take(accumulator), answer)
    await Promise.resolve()
    expect(isDone).toBe(false)
    accumulator.succeeded(take(accumulator), answer)
    await done
    expect(accumulator.readyBatches).toBe(1)
  })
})
