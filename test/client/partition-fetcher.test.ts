import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { Connection } from '../../src/client/connection.ts'
import { connect, type MillraceError, text, topic } from '../../src/client/index.ts'
import { type PartitionFetch, PartitionFetcher } from '../../src/client/partition-fetcher.ts'
import { settle } from '../support/fake-clock.ts'
import { FakeBroker } from '../support/fake-broker.ts'

const lines = topic('lines', { value: text })
const FROM_START = { from: 0, mayClamp: false, until: undefined }

let broker: FakeBroker
let connection: Connection
let fetcher: PartitionFetcher<string, string>
let errors: MillraceError[]

/** Asks until it holds: longer than a busy machine takes, and no longer than needed. */
function eventually<T>(look: () => T): ReturnType<typeof expect.poll<Awaited<T>>> {
  return expect.poll(look, { timeout: 20_000 })
}

beforeEach(async () => {
  broker = await FakeBroker.start(12)
  connection = new Connection({
    targets: [broker.url],
    tls: undefined,
    clientId: undefined,
    clock: systemClock,
    random: new SeededRandom(5),
    logger: undefined,
  })
  await connection.open(5000)
  errors = []
  fetcher = create(1 << 20)
})

afterEach(async () => {
  fetcher.stop()
  connection.close()
  await broker[Symbol.asyncDispose]()
})

function create(prefetchBytes: number): PartitionFetcher<string, string> {
  return new PartitionFetcher(
    connection,
    { follow: true, prefetchBytes, patienceMs: undefined, what: 'a test' },
    {
      changed: () => undefined,
      refused: (_fetch, error) => errors.push(error),
      failed: (error) => errors.push(error),
    },
  )
}

async function fill(partition: number, count: number, bytes = 10): Promise<void> {
  await using mill = await connect(broker.url)
  await using producer = mill.producer({ batchBytes: Math.max(1024, bytes * 4) })
  const padding = 'x'.repeat(bytes)
  for (let i = 0; i < count; i++) {
    producer.post(lines, { partition, value: padding })
    if (i % 4 === 3) await producer.flush() // Batches of four.
  }
  await producer.flush()
}

const add = (partition: number): PartitionFetch<string, string> =>
  fetcher.add(lines, '', partition, FROM_START)

/** Everything that is here, by partition: the offsets. */
function drain(into: Map<number, number[]> = new Map()): Map<number, number[]> {
  for (let next = fetcher.shift(); next !== undefined; next = fetcher.shift()) {
    const offsets = into.get(next.batch.partition) ?? []
    for (let offset: number = next.batch.baseOffset; offset < next.batch.endOffset; offset++) {
      offsets.push(offset)
    }
    into.set(next.batch.partition, offsets)
  }
  return into
}

const numbers = (count: number, from = 0): number[] =>
  Array.from({ length: count }, (_, i) => i + from)

describe('a partition fetcher', () => {
  it('brings partitions that come in one turn by one call, and later ones by another', async () => {
    for (let partition = 0; partition < 3; partition++) await fill(partition, 8)
    fetcher.open()
    add(0)
    add(1)
    const seen = new Map<number, number[]>()
    await eventually(() => drain(seen).get(1)).toHaveLength(8)
    expect(broker.fetchCalls).toBe(1)
    add(2)
    await eventually(() => drain(seen).get(2)).toHaveLength(8)
    expect(broker.fetchCalls).toBe(2)
    expect([...seen.values()]).toEqual([numbers(8), numbers(8), numbers(8)])
  })

  it('misses no partition that comes in the moment in which calls have just been opened', async () => {
    await fill(0, 4)
    await fill(1, 4)
    const leader = connection.leader.bind(connection)
    let isSecondAdded = false
    connection.leader = (brokerId) => {
      if (!isSecondAdded) queueMicrotask(() => add(1))
      isSecondAdded = true
      return leader(brokerId)
    }
    fetcher.open()
    add(0)
    const seen = new Map<number, number[]>()
    await eventually(() => drain(seen).get(0)).toHaveLength(4)
    await eventually(() => drain(seen).get(1)).toHaveLength(4)
  })

  it('misses nothing when so many come one by one that calls are put together', async () => {
    for (let partition = 0; partition < 12; partition++) await fill(partition, 4)
    fetcher.open()
    const seen = new Map<number, number[]>()
    for (let partition = 0; partition < 12; partition++) {
      add(partition)
      await eventually(() => drain(seen).get(partition)).toHaveLength(4)
    }
    expect([...seen.values()]).toEqual(numbers(12).map(() => numbers(4)))
    expect(broker.fetchCalls).toBe(12)
  })

  it('hands nothing over of a partition that has gone, and leaves the others alone', async () => {
    await fill(0, 8)
    await fill(1, 8)
    fetcher.open()
    const gone = add(0)
    add(1)
    await eventually(() => broker.fetchCalls).toBe(1)
    await settle()
    fetcher.remove(gone)
    const seen = new Map<number, number[]>()
    await eventually(() => drain(seen).get(1)).toEqual(numbers(8))
    expect(seen.get(0)).toBeUndefined()
    expect(broker.fetchCalls).toBe(1)
  })

  it('asks anew when too much comes that nobody wants any more', async () => {
    await fill(0, 64, 50_000)
    await fill(1, 8)
    fetcher.open()
    const gone = add(0)
    add(1)
    await eventually(() => gone.queue.length).toBeGreaterThan(0)
    fetcher.remove(gone)
    const seen = new Map<number, number[]>()
    await eventually(() => drain(seen).get(1)).toEqual(numbers(8))
    expect(seen.get(0)).toBeUndefined()
    expect(broker.fetchCalls).toBe(2)
  })

  it('goes on where it is sought to, with nothing of before', async () => {
    await fill(0, 16)
    await fill(1, 16)
    fetcher.open()
    const fetch = add(0)
    add(1)
    await eventually(() => fetch.queue.length).toBeGreaterThan(0)
    fetcher.seek(fetch, 10, false)
    const seen = new Map<number, number[]>()
    await eventually(() => drain(seen).get(0)).toEqual(numbers(6, 10))
    await eventually(() => drain(seen).get(1)).toEqual(numbers(16))
    fetcher.seek(fetch, 2, false)
    seen.clear()
    await eventually(() => drain(seen).get(0)).toEqual(numbers(14, 2))
    expect(seen.get(1)).toBeUndefined()
  })

  it('keeps held partitions from taking the room of others, and loses nothing of them', async () => {
    await fill(0, 64, 10_000)
    await fill(1, 64, 10_000)
    fetcher = create(100_000)
    fetcher.open()
    const held = add(0)
    add(1)
    fetcher.hold(held)
    const seen = new Map<number, number[]>()
    // The broker sends all of the first before it begins with the second.
    await eventually(() => drain(seen).get(1)).toEqual(numbers(64))
    expect(seen.get(0)).toBeUndefined()
    expect(held.queuedBytes).toBeLessThan(150_000)
    fetcher.release(held)
    await eventually(() => drain(seen).get(0)).toEqual(numbers(64))
    expect(seen.get(1)).toHaveLength(64)
  })

  it('holds in the middle of what has come, too', async () => {
    await fill(0, 64, 10_000)
    await fill(1, 64, 10_000)
    fetcher = create(100_000)
    fetcher.open()
    const held = add(0)
    add(1)
    const seen = new Map<number, number[]>()
    await eventually(() => held.queue.length).toBeGreaterThan(1)
    const first = fetcher.shift()
    const end = first?.batch.endOffset ?? 0
    expect(end).toBeGreaterThan(0)
    fetcher.hold(held)
    await eventually(() => drain(seen).get(1)).toEqual(numbers(64))
    fetcher.release(held)
    await eventually(() => drain(seen).get(0)).toEqual(numbers(64 - end, end))
  })

  it('goes on after a break, without a gap or a repeat', async () => {
    await fill(0, 16)
    await fill(1, 16)
    broker.fetchMessagesPerCall = 3
    fetcher.open()
    add(0)
    add(1)
    const seen = new Map<number, number[]>()
    await eventually(() => drain(seen).get(1)).toEqual(numbers(16))
    expect(seen.get(0)).toEqual(numbers(16))
    expect(broker.fetchCalls).toBeGreaterThan(2)
    expect(errors).toEqual([])
  })

  it('is finished when all partitions are at their ends and everything is handed over', async () => {
    await fill(0, 8)
    fetcher = new PartitionFetcher(
      connection,
      { follow: false, prefetchBytes: 1 << 20, patienceMs: undefined, what: 'a test' },
      { changed: () => undefined, refused: () => undefined, failed: () => undefined },
    )
    fetcher.open()
    const fetch = fetcher.add(lines, '', 0, { ...FROM_START, until: 8 })
    fetcher.addEnded(lines, '', 1, { ...FROM_START, until: 0 })
    expect(fetcher.isFinished).toBe(false)
    await eventually(() => fetch.state).toBe('ended')
    expect(fetcher.isFinished).toBe(false)
    drain()
    expect(fetcher.isFinished).toBe(true)
    fetcher.seek(fetch, 4, false)
    expect(fetcher.isFinished).toBe(false)
    const seen = new Map<number, number[]>()
    await eventually(() => drain(seen).get(0)).toEqual(numbers(4, 4))
    expect(fetcher.isFinished).toBe(true)
  })
})
