import { EventEmitter } from 'node:events'
import { describe, expect, it } from 'vitest'
import type { WorkCall, WorkStream } from '../../src/client/broker-channel.ts'
import type { MillraceError } from '../../src/client/errors.ts'
import { type LinkOwner, WorkLink } from '../../src/client/work-link.ts'
import { SeededRandom } from '../../src/common/random.ts'
import type {
  AckItemMessage,
  WorkRequestMessage,
  WorkResponseMessage,
} from '../../src/wire/work-codec.ts'
import { FakeClock, settle } from '../support/fake-clock.ts'

/** What a test says in the broker's place over one stream. Nothing happens by itself. */
class FakeStream {
  readonly written: WorkRequestMessage[] = []
  isDiscarded = false
  isCancelled = false
  /** Whether its connection brings answers to anything. */
  isAnswering = true
  readonly #call = new EventEmitter()

  get stream(): WorkStream {
    const call = Object.assign(this.#call, {
      write: (message: WorkRequestMessage) => this.written.push(message),
      cancel: () => {
        this.isCancelled = true
      },
    })
    return {
      call: call as unknown as WorkCall, // A link uses no more of it than this.
      address: 'broker',
      discard: () => {
        this.isDiscarded = true
      },
      isAnswering: () => Promise.resolve(this.isAnswering),
    }
  }

  say(message: Partial<WorkResponseMessage>): void {
    const nothing = { started: undefined, deliveries: [], results: [], leasesLost: [] }
    this.#call.emit('data', { ...nothing, notice: undefined, ...message })
  }

  started(memberId = 'member-1', resumed = false): void {
    this.say({ started: { memberId, leaseMs: 30_000, group: 'g', resumed } })
  }

  break(): void {
    this.#call.emit('error', Object.assign(new Error('read ECONNRESET'), { code: 14 }))
  }

  end(): void {
    this.#call.emit('end')
  }

  get kinds(): string[] {
    return this.written.map(({ kind }) => kind)
  }
}

interface Setting {
  readonly clock: FakeClock
  readonly link: WorkLink
  readonly streams: FakeStream[]
  readonly told: string[]
  /** The newest stream. */
  readonly last: () => FakeStream
}

async function start(): Promise<Setting> {
  const clock = new FakeClock()
  const streams: FakeStream[] = []
  const told: string[] = []
  const owner: LinkOwner = {
    started: (isResumed) => told.push(isResumed ? 'resumed' : 'started'),
    delivered: () => told.push('delivered'),
    leaseLost: () => told.push('lost'),
    noticed: () => told.push('noticed'),
    failed: ({ code }) => told.push(`failed ${code}`),
  }
  const connection = {
    clock,
    random: new SeededRandom(1),
    logger: undefined,
    clientId: 'test',
    isClosed: false,
    getCoordinator: () => Promise.resolve(0),
    forgetCoordinator: () => undefined,
    openWork: () => {
      const stream = new FakeStream()
      streams.push(stream)
      return stream.stream
    },
  }
  const target = { group: 'g', topic: 'orders', leaseMs: 0, settings: [] }
  const link = new WorkLink(connection, target, owner)
  link.start()
  await settle()
  const last = (): FakeStream => {
    const stream = streams.at(-1)
    if (stream === undefined) throw new Error('no stream has been opened')
    return stream
  }
  return { clock, link, streams, told, last }
}

const ITEM: AckItemMessage = {
  token: new Uint8Array(16),
  first: 0,
  end: 1,
  verdict: 'accept',
  delayMs: undefined,
  error: undefined,
  pauseGroupMs: 0,
}

function answered(stream: FakeStream): void {
  for (const message of stream.written) {
    if (message.kind !== 'acks') continue
    stream.say({ results: [{ correlationId: message.correlationId, failures: [], dead: [2] }] })
  }
}

describe('a work link', () => {
  it('says nothing but its start before the broker has answered', async () => {
    const { link, last, told } = await start()
    const acknowledging = link.acknowledge([ITEM], true)
    expect(last().kinds).toEqual(['start'])
    expect(link.isUp).toBe(false)
    last().started()
    expect(told).toEqual(['started'])
    expect(last().kinds).toEqual(['start', 'acks'])
    answered(last())
    expect(await acknowledging).toEqual({ refused: [], dead: [2] })
  })

  it('opens another stream when the wire is silent, and says again what had no answer', async () => {
    const { clock, link, last, streams } = await start()
    last().started()
    const acknowledging = link.acknowledge([ITEM], true)
    last().isAnswering = false
    await clock.advance(2_999)
    expect(streams).toHaveLength(1)
    await clock.advance(1)
    await clock.advance(100)
    expect(streams).toHaveLength(2)
    expect(streams[0]).toMatchObject({ isDiscarded: true, isCancelled: true })
    last().started('member-1', true)
    expect(last().kinds).toEqual(['start', 'acks'])
    expect(last().written[0]).toMatchObject({ start: { memberId: 'member-1' } })
    answered(last())
    await acknowledging
  })

  it('waits for a broker that is only slow', async () => {
    const { clock, link, last, streams } = await start()
    last().started()
    const acknowledging = link.acknowledge([ITEM], true)
    await clock.advance(120_000)
    expect(streams).toHaveLength(1)
    answered(last())
    await acknowledging
  })

  it('does not repeat what is not to be repeated', async () => {
    const { clock, link, last } = await start()
    last().started()
    const renewing = link.acknowledge([ITEM], false)
    last().break()
    await expect(renewing).rejects.toMatchObject({ code: 'UNREACHABLE' })
    await expect(link.acknowledge([ITEM], false)).rejects.toMatchObject({ code: 'UNREACHABLE' })
    await clock.advance(100)
    last().started('member-1', true)
    expect(last().kinds).toEqual(['start'])
  })

  it('takes nothing from a stream that it has given up', async () => {
    const { clock, last, streams, told } = await start()
    last().started()
    last().break()
    await clock.advance(100)
    streams[0]?.started('other')
    streams[0]?.say({
      notice: { throttledUntilMs: 0, windowFull: false, paused: true, dlqUnavailable: false },
    })
    streams[0]?.break()
    expect(told).toEqual(['started'])
    expect(streams).toHaveLength(2)
  })

  it('that ends before it is up tells its owner nothing', async () => {
    const { link, told, last } = await start()
    await link.end(5_000)
    expect(told).toEqual([])
    expect(last().isCancelled).toBe(true)
    await expect(link.acknowledge([ITEM], true)).rejects.toMatchObject({ code: 'CLOSED' })
  })

  it('cancels a call again that came about in spite of it', async () => {
    const { link, last } = await start()
    await link.end(5_000)
    const stream = last()
    stream.isCancelled = false
    stream.stream.call.emit('metadata')
    expect(stream.isCancelled).toBe(true)
  })

  it('ends when the broker has ended the stream, or does not within the patience', async () => {
    for (const isAnswered of [true, false]) {
      const { clock, link, last, told } = await start()
      last().started()
      const lost = expect(link.acknowledge([ITEM], true)).rejects.toMatchObject({ code: 'CLOSED' })
      let isOver = false
      const ending = link.end(5_000).then(() => (isOver = true))
      expect(last().kinds).toEqual(['start', 'acks', 'end'])
      if (isAnswered) last().end()
      else await clock.advance(4_999)
      await settle()
      expect(isOver).toBe(isAnswered)
      await clock.advance(1)
      await ending
      await lost
      expect(told).toEqual(['started'])
      await expect(link.acknowledge([ITEM], true)).rejects.toMatchObject({ code: 'CLOSED' })
    }
  })

  it('backs off from a broker that breaks every stream at once', async () => {
    const { clock, streams, last } = await start()
    for (let round = 0; round < 200 && clock.monotonicMs() < 10_000; round++) {
      last().started()
      last().break()
      const before = streams.length
      while (streams.length === before) await clock.advance(20)
    }
    expect(clock.monotonicMs()).toBeGreaterThanOrEqual(10_000)
    expect(streams.length).toBeLessThan(40)
  })

  it('is over at once when it is abandoned', async () => {
    const { link, last, told } = await start()
    last().started()
    const lost = link.acknowledge([ITEM], true)
    const reason = Object.assign(new Error('enough'), { code: 'CLOSED' }) as MillraceError
    link.abandon(reason)
    await expect(lost).rejects.toBe(reason)
    expect(told).toEqual(['started', 'failed CLOSED'])
    expect(last().isCancelled).toBe(true)
  })
})
