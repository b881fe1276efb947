import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import {
  bytes,
  type Client,
  connect,
  type Consumer,
  json,
  MillraceError,
  type ReceivedRecord,
  text,
  topic,
  type TopicPartition,
} from '../../src/client/index.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { type LoopbackBroker, startLoopbackBroker } from '../support/loopback-broker.ts'

const lines = topic('lines', { value: text })

let broker: LoopbackBroker
let mill: Client
const clients: Client[] = []

/** Asks until it holds: longer than a busy machine takes, and no longer than needed. */
function eventually<T>(look: () => T): ReturnType<typeof expect.poll<Awaited<T>>> {
  return expect.poll(look, { timeout: 20_000 })
}

beforeEach(async () => {
  broker = await startLoopbackBroker()
  mill = await another()
})

afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.close({ timeoutMs: 2000 })))
  await broker[Symbol.asyncDispose]()
})

/** A consumer of another process would have a connection of its own. */
async function another(): Promise<Client> {
  const client = await connect(broker.url)
  clients.push(client)
  return client
}

async function fill(count: number, partitions = 1, from = 0): Promise<void> {
  await mill.admin.createTopic('lines', { partitions, ifNotExists: true })
  await using producer = mill.producer()
  for (let i = from; i < from + count; i++) {
    producer.post(lines, { value: `${i}`, key: `k${i % 7}`, partition: i % partitions })
  }
  await producer.flush()
}

const numbers = (count: number, from = 0): number[] =>
  Array.from({ length: count }, (_, i) => i + from)

const sorted = (values: readonly number[]): number[] => values.toSorted((a, b) => a - b)

async function takeValues(consumer: Consumer<string>, count: number): Promise<number[]> {
  const values: number[] = []
  for await (const { value } of consumer) {
    values.push(Number(value))
    if (values.length === count) break
  }
  return values
}

async function takeOne(
  records: AsyncIterator<ReceivedRecord<string>, unknown>,
): Promise<ReceivedRecord<string>> {
  const step = await records.next()
  if (step.done === true) throw new Error('there are no more records')
  return step.value
}

async function committed(group: string): Promise<Record<number, number>> {
  const offsets = await mill.admin.groupOffsets(group)
  return Object.fromEntries(offsets.map(({ partition, offset }) => [partition, offset]))
}

async function failure(promise: Promise<unknown>): Promise<MillraceError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(MillraceError)
  return error as MillraceError
}

/** Lets others go first. */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve)
  })
}

interface Gate {
  readonly opened: Promise<void>
  readonly open: () => void
}

function gate(): Gate {
  let open = (): void => undefined
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { opened, open }
}

/** Runs until it is stopped, and keeps what it has handled. */
class Worker {
  readonly values: number[] = []
  readonly events: string[] = []
  readonly consumer: Consumer<string>
  readonly ended: Promise<void>

  constructor(client: Client, options: Partial<Parameters<Client['consumer']>[1]> = {}) {
    this.consumer = client.consumer(lines, { group: 'g', ...options })
    for (const event of ['assigned', 'revoked', 'lost'] as const) {
      this.consumer.on(event, (partitions) => {
        this.events.push(`${event} ${names(partitions)}`)
      })
    }
    this.ended = this.consumer.run(({ value }) => {
      this.values.push(Number(value))
    })
    this.ended.catch(() => undefined) // Looked at by those tests that expect a failure.
  }

  get owned(): number {
    return this.consumer.assignment().length
  }
}

function names(partitions: readonly TopicPartition[]): string {
  return partitions.map(({ partition }) => partition).join(' ')
}

describe('iterating', () => {
  it('delivers every record, in order within a partition, and goes on at what is committed', async () => {
    await fill(10)
    expect(await takeValues(mill.consumer(lines, { group: 'g' }), 6)).toEqual(numbers(6))
    // The one in hand at the break was not finished.
    expect(await committed('g')).toEqual({ 0: 5 })
    expect(await takeValues(mill.consumer(lines, { group: 'g' }), 3)).toEqual([5, 6, 7])
  })

  it('commits nothing of the record in hand when the loop throws', async () => {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g' })
    const loop = async (): Promise<void> => {
      for await (const { value } of consumer) if (value === '3') throw new Error('boom')
    }
    await expect(loop()).rejects.toThrow('boom')
    expect(await committed('g')).toEqual({ 0: 3 })
  })

  it('delivers batches, each finished when the next is asked for', async () => {
    await fill(10)
    await fill(10, 1, 10)
    const ends: number[] = []
    for await (const batch of mill.consumer(lines, { group: 'g' }).batches()) {
      ends.push(batch.endOffset)
      if (batch.endOffset === 20) break
    }
    expect(await committed('g')).toEqual({ 0: ends.at(-2) })
  })

  it('commits in the background while it goes on', async () => {
    await fill(3)
    const consumer = mill.consumer(lines, { group: 'g' })
    const records = consumer[Symbol.asyncIterator]()
    for (let i = 0; i < 3; i++) await records.next()
    const next = records.next()
    await eventually(() => committed('g')).toEqual({ 0: 3 })
    await consumer.close()
    expect((await next).done).toBe(true)
  })

  it('finishes what is in hand when its signal aborts, commits, and ends', async () => {
    await fill(10)
    const stop = new AbortController()
    const values: number[] = []
    for await (const { value } of mill.consumer(lines, { group: 'g', signal: stop.signal })) {
      values.push(Number(value))
      if (values.length === 4) stop.abort()
    }
    expect(values).toEqual(numbers(4))
    expect(await committed('g')).toEqual({ 0: 4 })
    expect((await mill.admin.describeGroup('g')).members).toEqual([])
  })

  it('ends at once when its signal has aborted before', async () => {
    await fill(1)
    const consumer = mill.consumer(lines, { group: 'g', signal: AbortSignal.abort() })
    expect(await takeValues(consumer, 1)).toEqual([])
  })

  it('ends at the end that there was, without follow', async () => {
    await fill(30, 3)
    const consumer = mill.consumer(lines, { group: 'g', follow: false })
    expect(sorted(await takeValues(consumer, 1000))).toEqual(numbers(30))
    expect(await committed('g')).toEqual({ 0: 10, 1: 10, 2: 10 })
    const again = mill.consumer(lines, { group: 'g', follow: false })
    expect(await takeValues(again, 1000)).toEqual([])
  })

  it('can be used once', async () => {
    const consumer = mill.consumer(lines, { group: 'g' })
    consumer.batches()
    expect(() => consumer[Symbol.asyncIterator]()).toThrow('used once')
    expect((await failure(consumer.run(() => undefined))).code).toBe('INVALID_REQUEST')
  })

  it('ends when the client is closed', async () => {
    await fill(3)
    const client = await another()
    const records = client.consumer(lines, { group: 'g' })[Symbol.asyncIterator]()
    for (let i = 0; i < 3; i++) await records.next()
    const next = records.next()
    await client.close()
    expect((await next).done).toBe(true)
    expect(await committed('g')).toEqual({ 0: 3 })
  })

  it('tells what a record that cannot be decoded is, and commits what was before it', async () => {
    await fill(2)
    await using producer = mill.producer()
    await producer.send(lines, { value: 'no json' })
    const consumer = mill.consumer(topic('lines', { value: json<number>() }), { group: 'g' })
    const seen: (number | null)[] = []
    const loop = async (): Promise<void> => {
      for await (const { value } of consumer) seen.push(value)
    }
    const error = await failure(loop())
    expect(error.code).toBe('INVALID_RECORD')
    expect(error.details).toMatchObject({ offset: 2, field: 'value' })
    expect(seen).toEqual([0, 1])
    expect(await committed('g')).toEqual({ 0: 2 })
  })
})

describe('where a consumer begins', () => {
  it('begins at the end when told so, and misses nothing that comes after it has joined', async () => {
    await fill(10)
    const worker = new Worker(mill, { from: 'end' })
    await eventually(() => worker.owned).toBe(1)
    await eventually(() => committed('g')).toEqual({ 0: 10 })
    await worker.consumer.close()
    // Nothing was finished, but where it stood was kept.
    await fill(2, 1, 10)
    expect(await takeValues(mill.consumer(lines, { group: 'g', from: 'end' }), 2)).toEqual([10, 11])
  })

  it('begins so many records before the end', async () => {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g', from: '-3' })
    expect(await takeValues(consumer, 3)).toEqual([7, 8, 9])
  })

  it('fails when nothing is committed and `from` is none', async () => {
    await fill(1)
    const error = await failure(takeValues(mill.consumer(lines, { group: 'g', from: 'none' }), 1))
    expect(error.code).toBe('OFFSET_OUT_OF_RANGE')
    expect(error.message).toContain('lines-0')
  })

  it('reads topics that come later, by name and by pattern', async () => {
    const worker = new Worker(mill)
    const pattern = mill.consumer(/^lin/, { group: 'p' })
    const found = takeBytes(pattern, 3)
    await fill(3)
    await eventually(() => worker.values).toEqual(numbers(3))
    expect(await found).toEqual(['0', '1', '2'])
  })

  it('reads several topics, each with its own codecs', async () => {
    await fill(2)
    const orders = topic('orders', { value: json<{ id: number }>() })
    await mill.admin.createTopic('orders', { partitions: 1 })
    await using producer = mill.producer()
    await producer.send(orders, { value: { id: 7 } })
    const seen = new Map<string, (string | { id: number } | null)[]>()
    let count = 0
    for await (const record of mill.consumer([lines, orders], { group: 'g' })) {
      seen.set(record.topic, [...(seen.get(record.topic) ?? []), record.value])
      count++
      if (count === 3) break
    }
    expect(seen.get('lines')).toEqual(['0', '1'])
    expect(seen.get('orders')).toEqual([{ id: 7 }])
  })

  it('refuses what makes no sense, and says what to do', () => {
    const code = (make: () => unknown): string => {
      try {
        make()
      } catch (error) {
        return error instanceof MillraceError ? error.code : String(error)
      }
      return ''
    }
    expect(code(() => mill.consumer(lines, { group: '' }))).toBe('INVALID_GROUP_ID')
    expect(code(() => mill.consumer(topic('a/b', { value: text }), { group: 'g' }))).toBe(
      'INVALID_TOPIC_NAME',
    )
    expect(code(() => mill.consumer(lines, { group: 'g', from: 'soon' }))).toBe('INVALID_POSITION')
    expect(code(() => mill.consumer([], { group: 'g' }))).toBe('INVALID_REQUEST')
    expect(code(() => mill.consumer([lines, lines], { group: 'g' }))).toBe('INVALID_REQUEST')
    expect(code(() => mill.consumer(lines, { group: 'g', prefetchBytes: 0 }))).toBe(
      'INVALID_REQUEST',
    )
    expect(code(() => mill.consumer(lines, { group: 'g', sessionTimeoutMs: 0.5 }))).toBe(
      'INVALID_REQUEST',
    )
    expect(() => mill.consumer(/lines/i, { group: 'g' })).toThrow('(?i)')
  })

  it('tells what the broker has against it', async () => {
    await fill(1)
    expect((await failure(mill.consumer(/(?=x)/, { group: 'g' }).run(() => undefined))).code).toBe(
      'INVALID_PATTERN',
    )
    const short = mill.consumer(lines, { group: 'g', sessionTimeoutMs: 1 })
    expect((await failure(takeValues(short, 1))).code).toBe('INVALID_REQUEST')
  })
})

async function takeBytes(
  consumer: Consumer<Uint8Array, Uint8Array>,
  count: number,
): Promise<string[]> {
  const values: string[] = []
  for await (const { value } of consumer) {
    values.push(Buffer.from(value ?? []).toString())
    if (values.length === count) break
  }
  return values
}

describe('commits', () => {
  it('commits by hand only, up to and including the record', async () => {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g', commit: 'manual' })
    for await (const record of consumer) {
      if (record.offset === 3) {
        await consumer.commit(record)
        expect(await committed('g')).toEqual({ 0: 4 })
      }
      if (record.offset === 6) {
        // Without a record: what is finished, which the one in hand is not.
        await consumer.commit()
        expect(await committed('g')).toEqual({ 0: 6 })
      }
      if (record.offset === 8) break
    }
    expect(await committed('g')).toEqual({ 0: 6 })
  })

  it('does not turn back what is committed when an older record is committed', async () => {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g', commit: 'manual' })
    const records = consumer[Symbol.asyncIterator]()
    const taken: ReceivedRecord<string>[] = []
    for (let i = 0; i < 5; i++) taken.push(await takeOne(records))
    await consumer.commit(taken[4])
    await consumer.commit(taken[1])
    expect(await committed('g')).toEqual({ 0: 5 })
    await records.return?.()
  })

  it('commits each interval, and at the end', async () => {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g', commit: 'interval', commitIntervalMs: 30 })
    const records = consumer[Symbol.asyncIterator]()
    for (let i = 0; i < 5; i++) await records.next()
    expect(await committed('g')).toEqual({})
    await eventually(() => committed('g')).toEqual({ 0: 4 })
    await records.next()
    await records.return?.()
    expect(await committed('g')).toEqual({ 0: 5 })
  })

  it('refuses to commit what it does not own, and after it has been closed', async () => {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g' })
    const records = consumer[Symbol.asyncIterator]()
    const record = await takeOne(records)
    const error = await failure(consumer.commit({ ...record, partition: 9 }))
    expect(error.code).toBe('PARTITION_NOT_OWNED')
    await records.return?.()
    expect((await failure(consumer.commit(record))).code).toBe('CLOSED')
  })

  it('repeats at most what was not committed when a member is killed', async () => {
    await fill(100)
    const client = await another()
    const seen: number[] = []
    const dying = client.consumer(lines, { group: 'g', sessionTimeoutMs: 500 })
    const records = dying[Symbol.asyncIterator]()
    for (let i = 0; i < 40; i++) seen.push(Number((await takeOne(records)).value))
    await eventually(() => committed('g')).toEqual({ 0: 39 })
    await client.close({ timeoutMs: 1 }) // Without a word: nothing in hand is waited for.
    const worker = new Worker(mill)
    await eventually(() => worker.values.length).toBeGreaterThan(59)
    expect(worker.values).toEqual(numbers(61, 39))
  })
})

describe('many events', () => {
  it('loses no record and keeps the order of each partition, whoever comes, goes or dies', async () => {
    const partitions = 8
    await fill(0, partitions)
    const random = new SeededRandom(11)
    const below = (limit: number): number => Math.floor((random.uint32() / 2 ** 32) * limit)
    // What has been handled of each partition, by whom, in order.
    const handled: number[][] = Array.from({ length: partitions }, () => [])
    const living: { client: Client; consumer: Consumer<string>; ended: Promise<void> }[] = []
    const join = async (): Promise<void> => {
      const client = await another()
      const consumer = client.consumer(lines, { group: 'g', sessionTimeoutMs: 300 })
      const seen = new Map<number, number>()
      consumer.on('assigned', (added) => {
        for (const { partition } of added) seen.delete(partition)
      })
      const ended = consumer.run(
        async ({ partition, offset }, { signal }) => {
          if (below(4) === 0) await turn()
          if (signal.aborted) return
          // Within a time of owning a partition nothing is repeated or passed over.
          const last = seen.get(partition)
          if (last !== undefined) expect(offset).toBe(last + 1)
          seen.set(partition, offset)
          handled[partition]?.push(offset)
        },
        { concurrency: 3 },
      )
      ended.catch(() => undefined) // Those that are killed fail; the others are looked at in the end.
      living.push({ client, consumer, ended })
    }
    await using producer = mill.producer()
    let sent = 0
    for (let event = 0; event < 30; event++) {
      for (let i = 0; i < 400; i++) {
        producer.post(lines, { value: `${sent}`, partition: sent % partitions })
        sent++
      }
      await producer.flush()
      const victim = living[below(Math.max(1, living.length))]
      const dice = below(10)
      if (living.length === 0 || (dice < 4 && living.length < 5)) await join()
      else if (dice < 7 && victim !== undefined) {
        living.splice(living.indexOf(victim), 1)
        await victim.consumer.close()
        await victim.ended
      } else if (dice < 9 && victim !== undefined) {
        living.splice(living.indexOf(victim), 1)
        await victim.client.close({ timeoutMs: 0 }).catch(() => undefined) // Killed.
      }
    }
    if (living.length === 0) await join()
    const end = sent / partitions
    await eventually(() => committed('g')).toEqual(
      Object.fromEntries(handled.map((_, partition) => [partition, end])),
    )
    for (const offsets of handled) {
      expect(new Set(offsets)).toEqual(new Set(numbers(end)))
    }
    const repeats = handled.reduce((sum, offsets) => sum + offsets.length - end, 0)
    console.log(`${sent} records through 30 events: ${repeats} repeated, none lost`)
  })
})

describe('a handler', () => {
  it('handles records of a partition one after the other, and of several at once', async () => {
    await fill(40, 4)
    const consumer = mill.consumer(lines, { group: 'g' })
    const perPartition = new Map<number, number[]>()
    const busy = new Set<number>()
    let most = 0
    const all = gate()
    let count = 0
    const ended = consumer.run(
      async ({ partition, value }) => {
        expect(busy.has(partition)).toBe(false)
        busy.add(partition)
        most = Math.max(most, busy.size)
        await Promise.resolve()
        await turn()
        perPartition.set(partition, [...(perPartition.get(partition) ?? []), Number(value)])
        busy.delete(partition)
        count++
        if (count === 40) all.open()
      },
      { concurrency: 3 },
    )
    await all.opened
    await consumer.close()
    await ended
    expect(most).toBe(3)
    for (const [partition, values] of perPartition) {
      expect(values).toEqual(numbers(10).map((i) => i * 4 + partition))
    }
    expect(await committed('g')).toEqual({ 0: 10, 1: 10, 2: 10, 3: 10 })
  })

  it('handles records of a key one after the other, those of other keys meanwhile', async () => {
    await fill(70)
    const consumer = mill.consumer(lines, { group: 'g' })
    const perKey = new Map<string, number[]>()
    const busy = new Set<string>()
    let most = 0
    let count = 0
    const all = gate()
    const ended = consumer.run(
      async ({ key = '', value }) => {
        expect(busy.has(key)).toBe(false)
        busy.add(key)
        most = Math.max(most, busy.size)
        // Those of one key are so slow that the others are far ahead of them.
        for (let turns = key === 'k3' ? 30 : 1; turns > 0; turns--) await turn()
        perKey.set(key, [...(perKey.get(key) ?? []), Number(value)])
        busy.delete(key)
        count++
        if (count === 70) all.open()
      },
      { concurrency: 5, ordered: 'key' },
    )
    await Promise.race([all.opened, ended])
    await consumer.close()
    await ended
    expect(most).toBe(5)
    expect(perKey.size).toBe(7)
    for (const [key, values] of perKey) {
      expect(values).toEqual(numbers(10).map((i) => i * 7 + Number(key.slice(1))))
    }
    expect(await committed('g')).toEqual({ 0: 70 })
  })

  it('commits only the contiguous prefix, whatever finishes behind it', async () => {
    await fill(20)
    const consumer = mill.consumer(lines, { group: 'g' })
    const slow = gate()
    let count = 0
    const ended = consumer.run(
      async ({ offset }) => {
        if (offset === 5) await slow.opened
        count++
      },
      { concurrency: 4, ordered: false },
    )
    await eventually(() => count).toBe(19)
    await eventually(() => committed('g')).toEqual({ 0: 5 })
    slow.open()
    await eventually(() => committed('g')).toEqual({ 0: 20 })
    await consumer.close()
    await ended
  })

  it('stops the partition of a slow record after 10 000 others, and no other partition', async () => {
    await fill(24_000, 2)
    const consumer = mill.consumer(lines, { group: 'g' })
    const slow = gate()
    const handled = [0, 0]
    const ended = consumer.run(
      async ({ partition, offset }) => {
        if (partition === 0 && offset === 0) await slow.opened
        handled[partition]!++
      },
      { concurrency: 4, ordered: false },
    )
    await eventually(() => handled).toEqual([9_999, 12_000])
    await eventually(() => committed('g')).toEqual({ 1: 12_000 })
    expect(handled[0]).toBe(9_999)
    slow.open()
    await eventually(() => handled).toEqual([12_000, 12_000])
    await consumer.close()
    await ended
  })

  it('keeps no more records behind a slow one of their key than prefetchBytes', async () => {
    await mill.admin.createTopic('lines', { partitions: 2 })
    await using producer = mill.producer()
    const value = 'x'.repeat(1000)
    for (let i = 0; i < 400; i++) producer.post(lines, { value, key: 'k', partition: i % 2 })
    await producer.flush()
    const consumer = mill.consumer(lines, { group: 'g', prefetchBytes: 20_000 })
    const slow = gate()
    const handled = [0, 0]
    const ended = consumer.run(
      async ({ partition, offset }) => {
        if (partition === 0 && offset === 0) await slow.opened
        handled[partition]!++
      },
      { concurrency: 4, ordered: 'key' },
    )
    await eventually(() => handled).toEqual([0, 200])
    const lag = await consumer.lag()
    expect(lag.find(({ partition }) => partition === 0)?.position).toBeLessThan(25)
    slow.open()
    await eventually(() => handled).toEqual([200, 200])
    await consumer.close()
    await ended
  })

  it('stops at a failure, lets what is in hand finish, and commits what is before it', async () => {
    await fill(40, 2)
    const consumer = mill.consumer(lines, { group: 'g' })
    const boom = new Error('boom')
    const isInHand = gate()
    let isAborted = false
    const ended = consumer.run(
      async ({ partition, offset }, { signal }) => {
        if (partition === 0 && offset === 5) {
          await isInHand.opened
          throw boom
        }
        if (partition === 1 && offset === 3) {
          const aborted = new Promise((resolve) => {
            signal.addEventListener('abort', resolve)
          })
          isInHand.open()
          await aborted
          isAborted = true
        }
      },
      { concurrency: 2 },
    )
    await expect(ended).rejects.toBe(boom)
    expect(isAborted).toBe(true)
    expect(await committed('g')).toEqual({ 0: 5, 1: 4 })
    expect((await mill.admin.describeGroup('g')).members).toEqual([])
  })

  it('skips what fails when told so', async () => {
    await fill(10)
    const worker: number[] = []
    const consumer = mill.consumer(lines, { group: 'g' })
    const ended = consumer.run(
      ({ value }) => {
        if (value === '4') throw new Error('boom')
        worker.push(Number(value))
      },
      { onError: 'skip' },
    )
    await eventually(() => committed('g')).toEqual({ 0: 10 })
    expect(worker).toEqual([0, 1, 2, 3, 5, 6, 7, 8, 9])
    await consumer.close()
    await ended
  })

  it('gives a record that fails each time to the dead letters, as it was, with the reason', async () => {
    await mill.admin.createTopic('lines', { partitions: 1 })
    await mill.admin.createTopic('dead', { partitions: 1 })
    await using producer = mill.producer()
    await producer.send(lines, { value: 'good', key: 'a' })
    await producer.send(lines, { value: 'bad', key: 'b', headers: { trace: 't-1' } })
    await producer.send(lines, { value: 'flaky', key: 'c' })
    const tries = new Map<string, number>()
    const consumer = mill.consumer(lines, { group: 'g' })
    const ended = consumer.run(
      ({ value }) => {
        const tried = (tries.get(value ?? '') ?? 0) + 1
        tries.set(value ?? '', tried)
        if (value === 'bad' || (value === 'flaky' && tried < 3)) throw new TypeError(`no ${value}`)
      },
      { onError: { deadLetter: 'dead', attempts: 3 } },
    )
    await eventually(() => committed('g')).toEqual({ 0: 3 })
    await consumer.close()
    await ended
    expect(Object.fromEntries(tries)).toEqual({ good: 1, bad: 3, flaky: 3 })
    const dead: ReceivedRecord<string>[] = []
    for await (const record of mill.read(topic('dead', { value: text }), { until: 'end' })) {
      dead.push(record)
    }
    expect(dead).toHaveLength(1)
    expect(dead[0]).toMatchObject({ key: 'b', value: 'bad' })
    expect({ ...dead[0]?.headers }).toMatchObject({
      trace: 't-1',
      'dlq.topic': 'lines',
      'dlq.partition': '0',
      'dlq.offset': '1',
      'dlq.group': 'g',
      'dlq.reason': 'attempts_exhausted',
      'dlq.failures': '3',
      'dlq.error.type': 'TypeError',
      'dlq.error.message': 'no bad',
    })
  })

  it('gives what cannot be decoded to the dead letters at once', async () => {
    await fill(1)
    await mill.admin.createTopic('dead', { partitions: 1 })
    await using producer = mill.producer()
    await producer.send(lines, { value: 'no json' })
    await producer.send(lines, { value: '5' })
    const seen: (number | null)[] = []
    const consumer = mill.consumer(topic('lines', { value: json<number>() }), { group: 'g' })
    const ended = consumer.run(({ value }) => void seen.push(value), {
      onError: { deadLetter: 'dead', attempts: 3 },
    })
    await eventually(() => committed('g')).toEqual({ 0: 3 })
    await consumer.close()
    await ended
    expect(seen).toEqual([0, 5])
    for await (const record of mill.read(topic('dead', { value: bytes }), { until: 'end' })) {
      expect(Buffer.from(record.value ?? []).toString()).toBe('no json')
      expect(record.headers['dlq.reason']).toBe('rejected')
    }
  })

  it('stops when there is no topic for the dead letters', async () => {
    await fill(3)
    const ended = mill.consumer(lines, { group: 'g' }).run(
      ({ value }) => {
        if (value === '1') throw new Error('boom')
      },
      { onError: { deadLetter: 'nowhere', attempts: 1 } },
    )
    expect((await failure(ended)).code).toBe('UNKNOWN_TOPIC')
    expect(await committed('g')).toEqual({ 0: 1 })
  })

  it('refuses options that make no sense', async () => {
    const run = (options: object): Promise<MillraceError> =>
      failure(mill.consumer(lines, { group: 'g' }).run(() => undefined, options))
    expect((await run({ concurrency: 0 })).details).toMatchObject({ field: 'concurrency' })
    expect((await run({ ordered: true })).details).toMatchObject({ field: 'ordered' })
    expect((await run({ onError: 'retry' })).details).toMatchObject({ field: 'onError' })
    const onError = { deadLetter: 'dead', attempts: 0 }
    expect((await run({ onError })).details).toMatchObject({ field: 'onError.attempts' })
  })

  it('handles batches, one of a partition at a time, and commits what is done of them', async () => {
    await fill(40, 4)
    const consumer = mill.consumer(lines, { group: 'g' })
    const busy = new Set<number>()
    const hang = gate()
    let count = 0
    const ended = consumer.runBatches(
      async (batch, { done }) => {
        expect(busy.has(batch.partition)).toBe(false)
        busy.add(batch.partition)
        for (const { offset } of batch) {
          count++
          if (batch.partition === 2 && offset === 4) {
            done(4)
            await hang.opened
          }
        }
        busy.delete(batch.partition)
      },
      { concurrency: 4 },
    )
    await eventually(() => committed('g')).toEqual({ 0: 10, 1: 10, 2: 4, 3: 10 })
    hang.open()
    await eventually(() => committed('g')).toEqual({ 0: 10, 1: 10, 2: 10, 3: 10 })
    expect(count).toBe(40)
    await consumer.close()
    await ended
  })

  it('ends a run over batches with the error of its handler', async () => {
    await fill(10)
    const boom = new Error('boom')
    const consumer = mill.consumer(lines, { group: 'g' })
    await expect(
      consumer.runBatches((batch, { done }) => {
        done(batch.baseOffset + 2)
        throw boom
      }),
    ).rejects.toBe(boom)
    expect(await committed('g')).toEqual({ 0: 2 })
  })
})

describe('sharing', () => {
  it('shares the partitions of a topic among consumers, with every record handled once', async () => {
    await fill(60, 6)
    const first = new Worker(mill)
    await eventually(() => first.values.length).toBe(60)
    const second = new Worker(await another())
    await eventually(() => [first.owned, second.owned]).toEqual([3, 3])
    await fill(60, 6, 60)
    await eventually(() => first.values.length + second.values.length).toBe(120)
    expect(sorted([...first.values, ...second.values])).toEqual(numbers(120))
    await second.consumer.close()
    await eventually(() => first.owned).toBe(6)
    await fill(6, 6, 120)
    await eventually(() => first.values.length + second.values.length).toBe(126)
    expect(second.events.at(-1)).toMatch(/^revoked \d \d \d$/)
  })

  it('stops nobody when a static member restarts', async () => {
    await fill(60, 6)
    const other = new Worker(mill)
    const client = await another()
    const first = new Worker(client, { instanceId: 'i-1' })
    await eventually(() => [first.owned, other.owned]).toEqual([3, 3])
    const before = other.events.length
    const had = names(first.consumer.assignment())
    await first.consumer.close()
    await client.close()
    const back = new Worker(await another(), { instanceId: 'i-1' })
    await eventually(() => back.owned).toBe(3)
    expect(names(back.consumer.assignment())).toBe(had)
    expect(other.events.slice(before)).toEqual([])
  })

  it('refuses a second living consumer with the same instance id', async () => {
    await fill(6, 6)
    const first = new Worker(mill, { instanceId: 'i-1' })
    await eventually(() => first.owned).toBe(6)
    const second = new Worker(await another(), { instanceId: 'i-1' })
    expect((await failure(second.ended)).code).toBe('INSTANCE_ID_IN_USE')
    expect(first.owned).toBe(6)
  })

  it('moves 9 of 90 partitions to the tenth consumer, 1 from each of nine, and stops none of the other 81', async () => {
    await mill.admin.createTopic('lines', { partitions: 90 })
    const client = await another()
    const nine = Array.from({ length: 9 }, () => new Worker(client))
    await eventually(() => nine.map((worker) => worker.owned)).toEqual(nine.map(() => 10))
    const before = nine.map((worker) => new Set(worker.consumer.assignment().map(toName)))
    const events = nine.map((worker) => worker.events.length)
    const tenth = new Worker(await another())
    await eventually(() => tenth.owned).toBe(9)
    const told = nine.flatMap((worker, i) => worker.events.slice(events[i]))
    const moved = told.flatMap((event) => event.replace(/^revoked /, '').split(' '))
    expect(told.every((event) => event.startsWith('revoked '))).toBe(true)
    expect(moved).toHaveLength(9)
    let kept = 0
    for (const [i, worker] of nine.entries()) {
      const still = worker.consumer.assignment().map(toName)
      expect(still).toHaveLength(9)
      expect(still.every((name) => before[i]?.has(name))).toBe(true)
      kept += still.length
    }
    await fill(90, 90)
    const all = [...nine, tenth]
    await eventually(() => all.flatMap((worker) => worker.values).length).toBe(90)
    console.log(
      `adding the tenth member to nine over 90 partitions: ${moved.length} moved, 81 not touched`,
    )
  })
})

function toName({ topic: name, partition }: TopicPartition): string {
  return `${name}-${partition}`
}

describe('a slow handler', () => {
  it('does not lose its session, however long it takes', async () => {
    await fill(2)
    const clock = new FakeClock()
    const client = await connect({ url: broker.url, clock })
    clients.push(client)
    const consumer = client.consumer(lines, { group: 'g', sessionTimeoutMs: 6000 })
    const events: string[] = []
    consumer.on('lost', () => void events.push('lost'))
    consumer.on('revoked', () => void events.push('revoked'))
    const slow = gate()
    const isInHand = gate()
    const ended = consumer.run(async ({ offset }, { signal }) => {
      signal.addEventListener('abort', () => events.push('aborted'))
      if (offset === 0) {
        isInHand.open()
        await slow.opened
      }
    })
    await isInHand.opened
    // Ten minutes, in steps in which heartbeats have the time to come back. The broker's clock is another, which hardly moves.
    for (let i = 0; i < 600; i++) {
      await clock.advance(1000)
      await client.admin.cluster()
    }
    expect(events).toEqual([])
    slow.open()
    await eventually(async () => {
      await clock.advance(5)
      return committed('g')
    }).toEqual({ 0: 2 })
    await consumer.close()
    await ended
    expect(events).toEqual(['revoked'])
  })

  it('loses it when the broker does not hear of it, and finds it again', async () => {
    await fill(4)
    const clock = new FakeClock()
    const client = await connect({ url: broker.url, clock })
    clients.push(client)
    const worker = new Worker(client, { sessionTimeoutMs: 6000 })
    await eventually(() => worker.values).toEqual(numbers(4))
    // All at once: as if the process had been stopped.
    await clock.advance(60_000)
    await eventually(() => worker.events).toEqual(['assigned 0', 'lost 0'])
    await eventually(async () => {
      await clock.advance(50)
      return worker.events
    }).toEqual(['assigned 0', 'lost 0', 'assigned 0'])
    await fill(2, 1, 4)
    await eventually(() => worker.values.slice(4)).toEqual([4, 5])
  })
})

describe('seek, pause and lag', () => {
  it('goes on where it is sought to, in one partition or in all', async () => {
    await fill(20, 2)
    const consumer = mill.consumer(lines, { group: 'g' })
    const values: number[] = []
    for await (const { value } of consumer) {
      values.push(Number(value))
      if (values.length === 20) {
        await consumer.seek('8', { topic: 'lines', partition: 1 })
        await consumer.seek('-1', { topic: 'lines', partition: 0 })
      }
      if (values.length === 23) break
    }
    expect(sorted(values.slice(20))).toEqual([17, 18, 19])
  })

  it('refuses to seek to where nothing is', async () => {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g' })
    const records = consumer[Symbol.asyncIterator]()
    await records.next()
    expect((await failure(consumer.seek('11'))).code).toBe('OFFSET_OUT_OF_RANGE')
    expect((await failure(consumer.seek('soon'))).code).toBe('INVALID_POSITION')
    const nowhere = { topic: 'lines', partition: 5 }
    expect((await failure(consumer.seek('1', nowhere))).code).toBe('PARTITION_NOT_OWNED')
    await consumer.seek('10')
    await records.return?.()
  })

  it('goes back to what is committed', async () => {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g', commit: 'manual' })
    const values: number[] = []
    for await (const record of consumer) {
      values.push(Number(record.value))
      if (values.length === 3) await consumer.commit(record)
      if (values.length === 6) await consumer.seek('committed')
      if (values.length === 8) break
    }
    expect(values).toEqual([0, 1, 2, 3, 4, 5, 3, 4])
  })

  it('begins where an assigned listener has sought', async () => {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g' })
    consumer.on('assigned', () => consumer.seek('7'))
    expect(await takeValues(consumer, 2)).toEqual([7, 8])
  })

  it('delivers nothing of paused partitions until they are resumed, and all of the others', async () => {
    await fill(40, 2)
    const consumer = mill.consumer(lines, { group: 'g', prefetchBytes: 100 })
    const values: number[] = []
    const paused = [{ topic: 'lines', partition: 0 }]
    const ended = consumer.run(({ value }) => {
      values.push(Number(value))
      if (values.length === 2) consumer.pause(paused)
    })
    await eventually(() => values.filter((value) => value % 2 === 1)).toHaveLength(20)
    const early = values.filter((value) => value % 2 === 0).length
    expect(early).toBeLessThanOrEqual(2)
    await fill(2, 2, 40)
    await eventually(() => values.includes(41)).toBe(true)
    expect(values.filter((value) => value % 2 === 0)).toHaveLength(early)
    consumer.resume(paused)
    await eventually(() => values.length).toBe(42)
    expect(sorted(values)).toEqual(numbers(42))
    await consumer.close()
    await ended
  })

  it('tells how far it is', async () => {
    await fill(20, 2)
    const consumer = mill.consumer(lines, { group: 'g', commit: 'manual' })
    const records = consumer[Symbol.asyncIterator]()
    let record: ReceivedRecord<string> | undefined
    for (let i = 0; i < 4; i++) {
      record = await takeOne(records)
    }
    await consumer.commit(record)
    await fill(2, 2, 20)
    const lag = await consumer.lag()
    const own = lag.find(({ partition }) => partition === record?.partition)
    expect(own).toEqual({
      topic: 'lines',
      partition: record?.partition,
      committed: 4,
      position: 4,
      highWatermark: 11,
      lag: 7,
    })
    await records.return?.()
  })
})

describe('a compacted topic', () => {
  it('is consumed to its end, with what compaction has removed counted as finished', async () => {
    const config = { 'cleanup.policy': 'compact', 'segment.bytes': '1MiB' }
    await mill.admin.createTopic('lines', { partitions: 1, config })
    await using producer = mill.producer()
    for (let i = 0; i < 60; i++) {
      const key = i < 20 ? 'first' : i < 40 ? 'second' : 'last'
      await producer.send(lines, { key, value: String(i).padEnd(60_000, '.') })
    }
    await broker.topics.getPartition('lines', 0).compact()
    const expected = [19, 39, ...numbers(20, 40)]
    const isAt = (value: string | null): number => Number(value?.replace(/\.+$/, ''))
    const values: number[] = []
    const consumer = mill.consumer(lines, { group: 'g' })
    const ended = consumer.run(({ value }) => void values.push(isAt(value)))
    await eventually(() => committed('g')).toEqual({ 0: 60 })
    expect(values.slice(0, 2)).toEqual(expected.slice(0, 2))
    expect(values.length).toBeLessThan(30)
    expect(values.at(-1)).toBe(59)
    // All that is left at the end is a gap.
    await consumer.close()
    await ended
    await broker.topics.getPartition('lines', 0).compact()
    const again: number[] = []
    for await (const { value } of mill.consumer(lines, { group: 'h', follow: false })) {
      again.push(isAt(value))
    }
    expect(again).toEqual(values)
    expect(await committed('h')).toEqual({ 0: 60 })
  })
})

describe('offsets that are lost', () => {
  /** Something is committed at 3, and retention has been faster. */
  async function lose(): Promise<void> {
    await fill(10)
    const consumer = mill.consumer(lines, { group: 'g' })
    await takeValues(consumer, 4)
    await mill.admin.deleteRecords('lines', new Map([[0, 6]]))
  }

  it('fails with both offsets, unless told what to do', async () => {
    await lose()
    const error = await failure(takeValues(mill.consumer(lines, { group: 'g' }), 1))
    expect(error.code).toBe('OFFSET_OUT_OF_RANGE')
    expect(error.details).toMatchObject({ offset: 3, logStartOffset: 6, partition: 0 })
    expect(error.message).toContain('onLostOffset')
  })

  it.each([
    ['start', 6, [6, 7]],
    ['-2', 8, [8, 9]],
    ['7', 7, [7, 8]],
    ['end', 10, [10, 11]],
  ] as const)('goes on at %s when told so, and says so', async (onLostOffset, to, expected) => {
    await lose()
    const consumer = mill.consumer(lines, { group: 'g', onLostOffset })
    const resets: object[] = []
    consumer.on('reset', (reset) => {
      resets.push(reset)
      void fill(2, 1, 10)
    })
    expect(await takeValues(consumer, 2)).toEqual(expected)
    expect(resets).toEqual([
      { topic: 'lines', partition: 0, from: 3, to, logStartOffset: 6, highWatermark: 10 },
    ])
    expect(await committed('g')).toEqual({ 0: to + 1 })
  })
})
