import { type Clock, sleep } from '../../src/common/clock.ts'
import { BrokerError } from '../../src/common/errors.ts'
import { ATTEMPTS_HEADER, ORDERING_KEY_HEADER } from '../../src/common/job-headers.ts'
import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { readDeadLetter } from '../../src/coordination/queue/dead-letter-record.ts'
import type { QueueLogger } from '../../src/coordination/queue/companion.ts'
import { tokenKey } from '../../src/coordination/queue/lease-token.ts'
import type {
  AckFailure,
  AckItem,
  QueueDelivery,
  QueueDescription,
  Queues,
  Verdict,
  WorkListener,
  WorkSession,
} from '../../src/coordination/queue/queue-types.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import type { AppendResult, FetchResult } from '../../src/log/partition-log.ts'
import { BatchBuilder, type RecordHeader } from '../../src/record/batch-builder.ts'
import { type Compression, endOfBatch, isCrcValid } from '../../src/record/batch-header.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import type { Partition } from '../../src/topic/partition.ts'
import { Topics } from '../../src/topic/topics.ts'
import { FakeClock } from './fake-clock.ts'
import { FaultyStore } from './faulty-store.ts'
import { ProcessClock } from './process-clock.ts'
import {
  checkQueueHistory,
  type QueueCallItem,
  type QueueCheckOptions,
  type QueueEvent,
  type QueueRule,
  type QueueViolation,
} from './queue-checker.ts'

export const TOPIC = 'jobs'
export const GROUP = 'sim'
const DURABLE_MS = 5
const LEASE_MS = 2000
const ATTEMPTS = 5
/** Of records that say so themselves. */
const FEW_ATTEMPTS = 2
/** How often something happens to everybody. */
const CHAOS_MS = 400
/** When nothing happens any more, everything is done within this, or never. Retries wait for the wall clock, which may have been set back by an hour. */
const PATIENCE_MS = 4_500_000
const WALL_MS: number = new FakeClock().wallMs()
const KEYS = 40
const SNAPSHOT = 'a snapshot'
const RELOADED = /state of queues could not be written/

/** What the queues under test are opened with. */
export interface SimulatedQueueBroker {
  readonly topics: Topics
  readonly clock: Clock
  readonly random: SeededRandom
  /** From what it is told the simulation knows when a state was loaded anew. */
  readonly logger: QueueLogger
}

export type SimulatedQueues = Pick<
  Queues,
  'work' | 'receive' | 'acknowledge' | 'describe' | 'configure' | 'pause' | 'resume' | 'explain'
> & {
  close(error: BrokerError): Promise<void>
}

export interface QueueSimulationOptions {
  readonly seed: number
  readonly records: number
  readonly open: (broker: SimulatedQueueBroker) => Promise<SimulatedQueues>
  readonly order?: 'none' | 'key' | 'partition'
  readonly onFailure?: 'block' | 'skip'
  readonly policy?: 'topic' | 'drop'
  /** Nothing goes wrong but what workers do. */
  readonly calm?: boolean
  readonly settings?: Readonly<Record<string, string>>
}

/** What the simulation itself looks at, besides the checker. */
export type SimulationRule = QueueRule | 'wrong records' | 'stuck' | 'over the cap'

export interface SimulationViolation extends Omit<QueueViolation, 'rule'> {
  readonly rule: SimulationRule
}

export interface QueueSimulationResult {
  readonly violations: readonly SimulationViolation[]
  readonly counts: ReadonlyMap<string, number>
  readonly history: readonly QueueEvent[]
  readonly records: number
  readonly simulatedMs: number
  readonly check: QueueCheckOptions
}

/** One broker process. What it answers after it was killed nobody hears. */
class Process {
  readonly clock: ProcessClock
  isAlive = true
  topics: Topics | undefined
  queues: SimulatedQueues | undefined

  constructor(clock: ProcessClock) {
    this.clock = clock
  }
}

/** Thrown at whoever waits for a broker that is no more. */
class Killed extends Error {}

/** A connection, with a delay each way. Messages keep their order. */
class Link {
  readonly process: Process
  readonly #clock: Clock
  readonly #delayMs: number
  session: WorkSession | undefined
  isUp = true
  isUpAtBroker = true

  constructor(process: Process, clock: Clock, delayMs: number) {
    this.process = process
    this.#clock = clock
    this.#delayMs = delayMs
  }

  toBroker(deliver: () => void): void {
    if (!this.isUp) return
    this.#clock.schedule(this.#delayMs, () => {
      if (this.isUpAtBroker && this.process.isAlive) deliver()
    })
  }

  toClient(deliver: () => void): void {
    if (!this.isUpAtBroker || !this.process.isAlive) return
    this.#clock.schedule(this.#delayMs, () => {
      if (this.isUp) deliver()
    })
  }

  /** The client's side is gone. The broker notices `noticedMs` later; undefined: never. */
  break(noticedMs: number | undefined, noticed: () => void): void {
    if (!this.isUp) return
    this.isUp = false
    if (noticedMs === undefined) return
    this.#clock.schedule(noticedMs, () => {
      if (!this.isUpAtBroker || !this.process.isAlive) return
      this.isUpAtBroker = false
      noticed()
      this.session?.detach()
    })
  }
}

/** Records of one delivery that a worker holds. */
interface Held {
  readonly token: Uint8Array
  readonly key: string
  readonly partition: string
  readonly first: number
  readonly end: number
  /** By record: what it is, which decides what becomes of it. */
  readonly natures: readonly number[]
  readonly leaseMs: number
  readonly givenMs: number
  /** Verdicts that have not been answered yet, in records. */
  left: number
  isLost: boolean
}

/** A record's serial number is all that decides about it, so that it is the same for whoever has it. */
type Nature = 'good' | 'retried' | 'rejected' | 'flaky' | 'released'

function natureOf(serial: number): Nature {
  const place = (Math.imul(serial + 1, 0x9e3779b1) >>> 0) % 1000
  if (place < 4) return 'retried'
  if (place < 8) return 'rejected'
  if (place < 88) return 'flaky'
  return place < 118 ? 'released' : 'good'
}

function hasFewAttempts(serial: number): boolean {
  return (Math.imul(serial + 7, 0x85ebca6b) >>> 0) % 50 === 0
}

/**
 * A worker process with a session: takes what it is given, works for a while, says what became of it, and goes wrong in every way that is known of workers: it dies
 * with records in hand, hangs, is slow, renews too late, loses its connection and comes back, hears no answer and asks again.
 */
class SimulatedWorker {
  readonly name: string
  memberId = ''
  isDead = false
  readonly #simulation: QueueSimulation
  readonly #credit: number
  #link: Link | undefined
  readonly #held = new Map<string, Held>()

  constructor(simulation: QueueSimulation, name: string) {
    this.#simulation = simulation
    this.name = name
    const { random } = simulation
    this.#credit = random.pick([1, 1, 5, 30, 100, 400])
    this.#connect()
  }

  get #random(): SeededRandom {
    return this.#simulation.random
  }

  get #clock(): FakeClock {
    return this.#simulation.clock
  }

  // ── the connection ──

  #connect(): void {
    if (this.isDead) return
    const { process } = this.#simulation
    if (process?.queues === undefined) {
      this.#reconnectSoon()
      return
    }
    const link = new Link(process, this.#clock, 1 + this.#random.below(15))
    this.#link = link
    link.toBroker(() => void this.#open(link))
    // Nobody may answer: the broker may be killed before.
    this.#clock.schedule(3000, () => {
      if (link === this.#link && link.session === undefined) this.#reconnectSoon()
    })
  }

  async #open(link: Link): Promise<void> {
    const simulation = this.#simulation
    let memberId = this.memberId
    const early: QueueDelivery[] = []
    const take = (delivery: QueueDelivery): void => {
      const held = simulation.noteDelivery(memberId, delivery)
      link.toClient(() => this.#work(link, held))
    }
    const listener: WorkListener = {
      delivered: (delivery) => {
        if (!link.process.isAlive) return
        if (link.session === undefined) early.push(delivery)
        else take(delivery)
      },
      leaseLost: (token, error) => {
        if (!link.process.isAlive) return
        simulation.noteLost(token, error)
        link.toClient(() => this.#lose(link, tokenKey(token)))
      },
      notice: () => undefined,
      ended: (error) => {
        if (link.process.isAlive) simulation.count(`session ended: ${error.code}`)
        link.toClient(() => this.#ended(link, error))
      },
    }
    const request = {
      group: GROUP,
      topic: TOPIC,
      memberId: this.memberId,
      clientId: this.name,
      host: 'simulated',
      leaseMs: 0,
      settings: {},
    }
    try {
      const session = await link.process.queues?.work(request, listener)
      if (session === undefined) throw new BrokerError('LOADING', 'there are no queues yet')
      memberId = session.memberId
      link.session = session
      if (early.length > 0) simulation.count('delivered before the session was there')
      for (const delivery of early) take(delivery)
      if (!link.isUpAtBroker) session.detach()
      link.toClient(() => this.#opened(link, session))
    } catch (error) {
      const failure = toError(error)
      if (link.process.isAlive) simulation.count(`session refused: ${failure.code}`)
      link.toClient(() => this.#ended(link, failure))
    }
  }

  #opened(link: Link, session: WorkSession): void {
    if (link !== this.#link || this.isDead) return
    if (session.resumed) this.#simulation.count('resumed')
    else this.#held.clear()
    this.memberId = session.memberId
    // What nobody has told it, but is over by its own clock.
    for (const [key, one] of this.#held) {
      if (this.#clock.monotonicMs() < one.givenMs + 4 * one.leaseMs) continue
      one.isLost = true
      this.#held.delete(key)
    }
    const held = [...this.#held.values()].reduce((sum, { left }) => sum + left, 0)
    const credit = Math.max(0, this.#credit - held)
    if (credit > 0) link.toBroker(() => session.credit(credit, 1 << 24))
    // What it finished meanwhile, or began before, it says now.
    for (const one of this.#held.values()) if (one.left > 0) this.#work(link, one)
  }

  #ended(link: Link, error: BrokerError): void {
    if (link !== this.#link) return
    if (error.code === 'UNKNOWN_MEMBER') {
      this.memberId = ''
      this.#held.clear()
    }
    this.#reconnectSoon()
  }

  #reconnectSoon(): void {
    this.#link = undefined
    this.#clock.schedule(50 + this.#random.below(500), () => {
      if (this.#link === undefined && !this.isDead) this.#connect()
    })
  }

  /** The broker has gone: its connections are reset. */
  processGone(): void {
    const link = this.#link
    if (link === undefined) return
    link.isUp = false
    link.isUpAtBroker = false
    this.#reconnectSoon()
  }

  #noticed(): number | undefined {
    return this.#random.chance(0.3) ? undefined : this.#random.below(300)
  }

  /** Its connection breaks; it comes back soon, with what it holds. */
  disconnect(): void {
    const { memberId } = this
    this.#link?.break(this.#noticed(), () => this.#simulation.noteDetached(memberId))
    this.#reconnectSoon()
  }

  die(): void {
    const { memberId } = this
    this.#simulation.count('worker died')
    this.#link?.break(this.#noticed(), () => this.#simulation.noteDetached(memberId))
    this.isDead = true
    this.#held.clear()
  }

  /** A clean leave: what it holds is released. */
  leave(): void {
    const link = this.#link
    this.isDead = true
    if (link?.session === undefined || !link.isUp) return
    this.#simulation.count('worker left')
    const { session } = link
    link.toBroker(() => {
      this.#simulation.note({
        type: 'left',
        atMs: this.#clock.monotonicMs(),
        member: session.memberId,
      })
      session.end().catch((error: unknown) => {
        if (link.process.isAlive) this.#simulation.count(`leave refused: ${toError(error).code}`)
      })
    })
  }

  // ── work ──

  #work(link: Link, held: Held): void {
    if (link !== this.#link || this.isDead) return
    const random = this.#random
    this.#held.set(held.key, held)
    if (!this.#simulation.isCalm && random.chance(0.1)) {
      const how = random.below(10)
      if (how < 4) {
        this.die()
        this.#simulation.replaceWorker()
        return
      }
      if (how < 7) {
        // Its handler never comes back, and nobody renews: the lease runs out.
        this.#simulation.count('handler hung')
        return
      }
      this.#simulation.count('disconnected at work')
      this.disconnect()
      return
    }
    this.#handle(held)
  }

  /** Says what became of it, in one call or in several, sooner or later. */
  #handle(held: Held): void {
    const random = this.#random
    const isSlow = !this.#simulation.isCalm && random.chance(0.05)
    const parts = splitByVerdict(held, random)
    if (isSlow) {
      this.#simulation.count('slow handler')
      this.#renew(held, random.chance(0.4) ? 0.5 : 1.02, 1 + random.below(3))
    }
    const workMs = isSlow ? LEASE_MS + random.below(3 * LEASE_MS) : random.below(120)
    const calls = parts.length > 1 && random.chance(0.5) ? parts.map((part) => [part]) : [parts]
    for (const items of calls) {
      this.#clock.schedule(workMs + random.below(60), () => this.#send(held, items))
    }
  }

  /** `share` of the lease between one renewal and the next: above 1 it comes too late. */
  #renew(held: Held, share: number, times: number): void {
    if (times === 0) return
    this.#clock.schedule(held.leaseMs * share, () => {
      if (held.left === 0 || held.isLost || this.isDead) return
      this.#send(held, [aRenewal(held)])
      this.#renew(held, share, times - 1)
    })
  }

  #send(held: Held, items: readonly AckItem[]): void {
    const link = this.#link
    const session = link?.session
    if (this.isDead || this.#held.get(held.key) !== held || held.left === 0) return
    if (link === undefined || session === undefined || !link.isUp) return
    link.toBroker(() => {
      const answer = this.#simulation.watchCall(link.process, held.partition, items, () =>
        session.acknowledge(items),
      )
      void answer.then((failures) => {
        if (failures === undefined) return undefined
        const isLost =
          !this.#simulation.isCalm && this.#random.chance(0.03) && items[0]?.verdict !== 'renew'
        if (isLost) this.#simulation.count('answer lost')
        else link.toClient(() => this.#answered(link, held, items, failures))
        return undefined
      })
    })
    if (items[0]?.verdict === 'renew') return
    // Whoever hears nothing asks again.
    this.#clock.schedule(500, () => {
      if (this.#isOpen(held, items)) this.#send(held, items)
    })
  }

  readonly #answeredItems = new WeakSet<readonly AckItem[]>()

  #isOpen(held: Held, items: readonly AckItem[]): boolean {
    return !held.isLost && held.left > 0 && !this.#answeredItems.has(items)
  }

  #answered(
    link: Link,
    held: Held,
    items: readonly AckItem[],
    failures: readonly AckFailure[],
  ): void {
    if (this.isDead || this.#answeredItems.has(items) || items[0]?.verdict === 'renew') return
    const isOver = failures.some(({ error }) => /LEASE/.test(error.code))
    // Could not be written: it will be sent once more, as if nothing had been heard.
    if (failures.length > 0 && !isOver) return
    this.#answeredItems.add(items)
    const [item] = items
    if (item !== undefined && !this.#simulation.isCalm && this.#random.chance(0.05)) {
      // With the same token, for the same records: it had its say.
      this.#simulation.count('second thoughts')
      const verdict = item.verdict === 'accept' ? 'retry' : 'accept'
      this.#clock.schedule(this.#random.below(800), () => this.#saySo(held, { ...item, verdict }))
    }
    const records = items.reduce((sum, { first, end }) => sum + end - first, 0)
    held.left -= records
    if (held.left <= 0) this.#held.delete(held.key)
    this.#giveCredit(link, records)
  }

  #saySo(held: Held, item: AckItem): void {
    const link = this.#link
    const session = link?.session
    if (this.isDead || link === undefined || session === undefined) return
    link.toBroker(() => {
      void this.#simulation.watchCall(link.process, held.partition, [item], () =>
        session.acknowledge([item]),
      )
    })
  }

  #lose(link: Link, key: string): void {
    const held = this.#held.get(key)
    if (held === undefined) return
    this.#held.delete(key)
    held.isLost = true
    if (link === this.#link && !this.isDead) this.#giveCredit(link, held.left)
  }

  #giveCredit(link: Link, records: number): void {
    const current = this.#link
    if (current !== link || records <= 0) return
    link.toBroker(() => link.session?.credit(records, 0))
  }
}

/** A short-lived function that asks for some records, works, and says what became of them. Or is gone before. */
class SimulatedReceiver {
  isDead = false
  readonly #simulation: QueueSimulation

  constructor(simulation: QueueSimulation) {
    this.#simulation = simulation
    this.#again(0)
  }

  #again(delayMs: number): void {
    this.#simulation.clock.schedule(delayMs, () => {
      if (!this.isDead) void this.#receive()
    })
  }

  async #receive(): Promise<void> {
    const simulation = this.#simulation
    const { random, process } = simulation
    const queues = process?.queues
    if (process === undefined || queues === undefined) {
      this.#again(500)
      return
    }
    const stop = new AbortController()
    const waitMs = random.pick([0, 100, 2000])
    if (random.chance(0.1)) simulation.clock.schedule(random.below(500), () => stop.abort())
    const request = {
      group: GROUP,
      topic: TOPIC,
      max: random.pick([1, 10, 100]),
      waitMs,
      maxBytes: 0,
      leaseMs: random.pick([0, 1000, 3000]),
      clientId: 'receiver',
      host: 'simulated',
      settings: {},
    }
    let isDone = false
    // A killed broker answers nothing.
    simulation.clock.schedule(waitMs + 2000, () => {
      if (!isDone && !process.isAlive) this.#again(0)
    })
    try {
      const startMs = simulation.clock.monotonicMs()
      const { deliveries } = await queues.receive(request, stop.signal)
      isDone = true
      if (!process.isAlive) {
        this.#again(200)
        return
      }
      for (const delivery of deliveries) {
        const held = simulation.noteReceived(delivery, startMs)
        if (!simulation.isCalm && random.chance(0.1)) simulation.count('receiver died')
        else this.#handle(held)
      }
      this.#again(deliveries.length === 0 ? 100 + random.below(300) : 20 + random.below(200))
    } catch (error) {
      isDone = true
      if (process.isAlive) simulation.count(`receive refused: ${toError(error).code}`)
      this.#again(300)
    }
  }

  #handle(held: Held): void {
    const simulation = this.#simulation
    const { random } = simulation
    const items = splitByVerdict(held, random)
    const isSlow = !simulation.isCalm && random.chance(0.04)
    const workMs = random.below(100) + (isSlow ? held.leaseMs : 0)
    simulation.clock.schedule(workMs, () => {
      // Any process that serves the group will do.
      const queues = simulation.process?.queues
      if (queues === undefined || this.isDead || simulation.process === undefined) return
      void simulation.watchCall(simulation.process, held.partition, items, () =>
        queues.acknowledge(GROUP, items),
      )
    })
  }
}

/** One queue group, its workers and its broker in simulated time: random events from a seed, and a history for the checker. */
export class QueueSimulation {
  readonly clock: FakeClock = new FakeClock()
  readonly random: SeededRandom
  process: Process | undefined
  isCalm: boolean
  /** When the state of a partition was loaded anew. */
  readonly #reloads = new Map<string, number>()
  readonly #options: QueueSimulationOptions
  readonly #history: QueueEvent[] = []
  readonly #violations: SimulationViolation[] = []
  readonly #counts = new Map<string, number>()
  readonly #workers = new Set<SimulatedWorker>()
  readonly #receivers: SimulatedReceiver[] = []
  /** Serial number by partition and offset, as they were seen. */
  readonly #seen = new Map<string, Map<number, number>>()
  readonly #cursor = new RecordCursor({ reuseMemory: true })
  readonly #partitions: number
  #store: MemoryStore
  #names = 0
  #calls = 0
  #sent = 0
  #produced = 0
  /** Of appends: how many until one of them kills the broker; undefined: none does. */
  #killAfter: number | undefined
  #killWhen: 'before' | 'during' | 'after' = 'before'
  #killKind: string | undefined
  #failures = 0
  /** What cannot be written at all until then. */
  #broken: { readonly kind: string; readonly untilMs: number } | undefined
  #pauseMs = 0

  constructor(options: QueueSimulationOptions) {
    this.#options = options
    this.random = new SeededRandom(options.seed)
    this.isCalm = options.calm ?? false
    this.#partitions = 1 + this.random.below(4)
    this.#store = new MemoryStore({
      clock: this.clock,
      random: this.random,
      durableDelayMs: DURABLE_MS,
    })
  }

  async run(): Promise<QueueSimulationResult> {
    await this.#begin()
    for (let i = 0; i < 4; i++) this.#workers.add(new SimulatedWorker(this, `w${this.#names++}`))
    for (let i = 0; i < 2; i++) this.#receivers.push(new SimulatedReceiver(this))
    this.#produce()
    while (this.#sent < this.#options.records) await this.#step()
    this.isCalm = true
    this.#killAfter = undefined
    this.#failures = 0
    this.#broken = undefined
    const isDone = await this.#finish()
    const check = await this.#noteEnd(isDone)
    const endMs = this.clock.monotonicMs()
    for (const worker of this.#workers) worker.isDead = true
    for (const receiver of this.#receivers) receiver.isDead = true
    await this.#stop()
    return {
      violations: [...this.#violations, ...checkQueueHistory(this.#history, check)],
      counts: this.#counts,
      history: this.#history,
      records: this.#produced,
      simulatedMs: endMs,
      check,
    }
  }

  // ── the history ──

  note(event: QueueEvent): void {
    this.#history.push(event)
  }

  count(what: string, by = 1): void {
    this.#counts.set(what, (this.#counts.get(what) ?? 0) + by)
  }

  #fail(rule: SimulationRule, facts: string): void {
    this.#violations.push({ rule, atMs: this.clock.monotonicMs(), facts })
  }

  /** Of a call that began at `startMs`: it may have waited for other partitions, and this one's leases may have ended meanwhile. */
  noteReceived(delivery: QueueDelivery, startMs: number): Held {
    const atMs = this.clock.monotonicMs()
    const name = `${delivery.topic}-${delivery.partition}`
    const givenMs = atMs + delivery.leaseExpiresMs - this.clock.wallMs() - delivery.leaseMs
    const reloadMs = this.#reloads.get(name) ?? -Infinity
    const isKnown = givenMs >= startMs && givenMs <= atMs
    const isOver = isKnown && givenMs < reloadMs
    const expiresMs = (isKnown ? givenMs : startMs) + delivery.leaseMs
    const held = this.noteDelivery('', delivery, expiresMs, isOver)
    if (reloadMs >= startMs && (!isKnown || givenMs === reloadMs)) {
      this.note({ type: 'left', atMs, member: `receive ${held.key}` })
    }
    return held
  }

  /** `mostMs`: the lease is over by then. `isOver`: nobody has ever had it. */
  noteDelivery(
    member: string,
    delivery: QueueDelivery,
    mostMs: number = Infinity,
    isOver: boolean = false,
  ): Held {
    const { topic, partition, first, end, token, leaseMs } = delivery
    const name = `${topic}-${partition}`
    const atMs = this.clock.monotonicMs()
    const key = tokenKey(token)
    this.count('delivered', end - first)
    if (delivery.deliveryCount > 1) this.count('redelivered', end - first)
    const event: QueueEvent = {
      type: 'delivered',
      atMs,
      member: member === '' ? `receive ${key}` : member,
      token: key,
      partition: name,
      first,
      end,
      deliveryCount: delivery.deliveryCount,
      failureCount: delivery.failureCount,
      // With `queue.persist.acquire` it began before it was written down, and given out after that.
      expiresMs: Math.min(
        mostMs,
        atMs + Math.min(leaseMs, delivery.leaseExpiresMs - this.clock.wallMs()),
      ),
    }
    if (!isOver) this.note(event)
    const natures = this.#readSerials(name, delivery)
    return {
      token,
      key,
      partition: name,
      first,
      end,
      natures,
      leaseMs,
      givenMs: atMs,
      left: end - first,
      isLost: false,
    }
  }

  /** Looks at every byte that was delivered, and remembers which record it was. */
  #readSerials(name: string, delivery: QueueDelivery): number[] {
    const { batch, first, end, count } = delivery
    const serials: number[] = []
    const where = `${name}:[${first}, ${end})`
    if (endOfBatch(batch, 0) !== batch.length || !isCrcValid(batch, 0)) {
      this.#fail('wrong records', `${where} came in something that is not one whole batch`)
      return serials
    }
    let seen = this.#seen.get(name)
    if (seen === undefined) {
      seen = new Map()
      this.#seen.set(name, seen)
    }
    const cursor = this.#cursor
    cursor.reset(batch, 0)
    while (cursor.next()) {
      if (cursor.offset < first || cursor.offset >= end) continue
      const serial = Number(
        Buffer.from(cursor.bytes.buffer, cursor.bytes.byteOffset).toString(
          'latin1',
          cursor.valueStart,
          cursor.valueStart + 9,
        ),
      )
      const before = seen.get(cursor.offset)
      if (before !== undefined && before !== serial) {
        this.#fail('wrong records', `${name}:${cursor.offset} was ${before}, is ${serial}`)
      }
      if (cursor.offset !== first + serials.length) {
        this.#fail('wrong records', `${where} lacks ${first + serials.length}`)
      }
      seen.set(cursor.offset, serial)
      serials.push(serial)
    }
    if (serials.length !== end - first || count !== serials.length) {
      this.#fail('wrong records', `${where} holds ${serials.length} records, ${count} it says`)
    }
    return serials
  }

  noteLost(token: Uint8Array, error: BrokerError): void {
    const reason = String(error.details['reason'])
    this.count(`lease lost: ${reason}`)
    this.note({
      type: 'lease-lost',
      atMs: this.clock.monotonicMs(),
      token: tokenKey(token),
      reason,
    })
  }

  noteDetached(member: string): void {
    if (this.#settings['queue.release.on.disconnect'] !== 'true') return
    this.note({ type: 'left', atMs: this.clock.monotonicMs(), member })
  }

  /** Follows a call that has just reached the queues. Resolves to undefined when nobody hears the answer. */
  async watchCall(
    process: Process,
    partition: string,
    items: readonly AckItem[],
    ask: () => Promise<readonly AckFailure[]>,
  ): Promise<readonly AckFailure[] | undefined> {
    const call = this.#calls++
    this.note({
      type: 'called',
      atMs: this.clock.monotonicMs(),
      call,
      items: items.map((item): QueueCallItem => {
        const { first, end, verdict, delayMs } = item
        return { token: tokenKey(item.token), partition, first, end, verdict, delayMs }
      }),
    })
    let failures: readonly AckFailure[]
    try {
      failures = await ask()
    } catch (error) {
      const failure = toError(error)
      failures = items.map((_, index) => ({ index, error: failure }))
    }
    if (!process.isAlive) return undefined
    for (const { error } of failures) this.count(`verdict refused: ${error.code}`)
    this.note({
      type: 'answered',
      atMs: this.clock.monotonicMs(),
      call,
      failures: failures.map(({ index, error }) => ({ index, code: error.code })),
    })
    return failures
  }

  // ── the broker ──

  get #settings(): Readonly<Record<string, string>> {
    const { order = 'none', onFailure = 'block', policy = 'topic', seed } = this.#options
    return {
      'queue.start': 'earliest',
      'queue.lease.ms': `${LEASE_MS}ms`,
      'retry.max.attempts': String(ATTEMPTS),
      'retry.backoff.initial.ms': '100ms',
      'retry.backoff.max.ms': '2s',
      'dlq.enable': String(policy === 'topic'),
      order,
      'order.on.failure': onFailure,
      'queue.release.on.disconnect': String(seed % 2 === 0),
      'queue.persist.acquire': String(seed % 5 === 0),
      ...this.#options.settings,
    }
  }

  /** Lets time pass until `promise` has settled, or its broker is killed. */
  async #drive<T>(process: Process, promise: Promise<T>): Promise<T> {
    let isDone = false
    const watched = promise.finally(() => {
      isDone = true
    })
    // Looked at by whoever awaits it below; until then it may already have failed.
    watched.catch(() => undefined)
    for (let i = 0; i < 20_000; i++) {
      if (isDone) break
      if (!process.isAlive) throw new Killed()
      await this.clock.advance(1)
    }
    if (!process.isAlive) throw new Killed()
    if (!isDone) throw new Error('the broker does not answer')
    return watched
  }

  async #begin(): Promise<void> {
    const wasCalm = this.isCalm
    this.isCalm = true
    await this.#start()
    const { process } = this
    if (process?.topics === undefined || process.queues === undefined) {
      throw new Error('the broker does not start')
    }
    await this.#drive(process, process.topics.create({ name: TOPIC, partitions: this.#partitions }))
    await this.#drive(
      process,
      process.queues.configure(GROUP, { set: this.#settings, clear: [], validateOnly: false }),
    )
    this.isCalm = wasCalm
  }

  async #start(): Promise<void> {
    const store = new FaultyStore(this.#store)
    const process = new Process(new ProcessClock(this.clock))
    store.aroundAppend = (name, append, batch) => this.#append(process, kindOf(name, batch), append)
    store.aroundRead = (name, read) => this.#read(name, read)
    this.process = process
    const { random } = this
    const { clock } = process
    try {
      process.topics = await this.#drive(process, Topics.open({ store, clock, random }))
      const { topics } = process
      process.queues = await this.#drive(
        process,
        this.#options.open({ topics, clock, random, logger: this.#loggerOf(process) }),
      )
      this.count('broker started')
    } catch (error) {
      if (!(error instanceof Killed)) throw error
      this.count('broker killed while starting')
    }
  }

  #loggerOf(process: Process): QueueLogger {
    const hear = (details: object, message: string): void => {
      if (!process.isAlive) return
      this.count(`logged: ${message}`)
      if (!RELOADED.test(message) || !('partition' in details)) return
      const partition = String(details.partition).replace('.state', '')
      this.#reloads.set(partition, this.clock.monotonicMs())
      this.note({ type: 'reloaded', atMs: this.clock.monotonicMs(), partition })
    }
    return { info: hear, warn: hear, error: hear }
  }

  /** The disk, as it goes wrong: an append fails, or the broker is killed before or after it. */
  async #append(
    process: Process,
    kind: string,
    append: () => Promise<AppendResult>,
  ): Promise<AppendResult> {
    // Nobody lives here any more.
    if (!process.isAlive) return new Promise(() => undefined)
    const isMeant = this.#killKind === undefined || this.#killKind === kind
    if (this.#killAfter !== undefined && isMeant && --this.#killAfter < 0) {
      this.#killAfter = undefined
      const when = this.#killWhen
      const kill = (): void => {
        if (!process.isAlive) return
        this.count(`killed ${when} an append to ${kind}`)
        this.#kill(process)
      }
      if (when === 'during') {
        this.clock.schedule(this.random.below(DURABLE_MS), kill)
        return append()
      }
      if (when === 'after') await append()
      kill()
      return new Promise(() => undefined)
    }
    if (kind === SNAPSHOT) this.count('snapshot')
    if (this.#failures > 0 && kind !== '__catalog-0' && this.random.chance(0.5)) {
      this.#failures--
      this.count(`failed append to ${kind}`)
      throw new BrokerError('STORAGE_ERROR', 'injected: the write failed')
    }
    const broken = this.#broken
    if (broken !== undefined && broken.untilMs > this.clock.monotonicMs()) {
      if (kind === broken.kind) {
        this.count(`append refused for a while by ${broken.kind}`)
        throw new BrokerError('STORAGE_ERROR', 'injected: writes fail for a while')
      }
    }
    return append()
  }

  /** Mostly at once; what takes its time leaves a door open. */
  async #read(name: string, read: () => Promise<FetchResult>): Promise<FetchResult> {
    if (this.isCalm || !this.random.chance(0.3)) return read()
    this.count(`slow read of ${kindOf(name)}`)
    await sleep(this.clock, this.random.below(200))
    return read()
  }

  #kill(process: Process): void {
    process.isAlive = false
    process.clock.kill()
    this.#store = this.#store.restart()
    this.process = undefined
    this.note({ type: 'restarted', atMs: this.clock.monotonicMs() })
    for (const worker of this.#workers) worker.processGone()
  }

  async #stop(): Promise<void> {
    const { process } = this
    if (process?.queues === undefined || process.topics === undefined) return
    const { queues, topics } = process
    this.note({ type: 'restarted', atMs: this.clock.monotonicMs() })
    try {
      const draining = new BrokerError('BROKER_DRAINING', 'the broker is stopping')
      await this.#drive(process, queues.close(draining))
      await this.#drive(process, topics.close())
    } catch (error) {
      if (!(error instanceof Killed)) throw error
    }
    this.count('broker stopped')
    if (process.isAlive) this.#kill(process)
  }

  // ── what happens ──

  async #step(): Promise<void> {
    if (this.process === undefined) {
      await this.clock.advance(this.random.below(800))
      await this.#start()
      return
    }
    if (!this.isCalm) await this.#happen(this.process)
    await this.clock.advance(CHAOS_MS / 2 + this.random.below(CHAOS_MS))
  }

  async #happen(process: Process): Promise<void> {
    const { random } = this
    // Of one seed in three little is asked, so that a state lives long enough for snapshots.
    const isSeldom = this.#options.seed % 3 === 0
    const roll = random.below(isSeldom ? 300 : 100)
    if (roll < 25) {
      const kinds = [undefined, 'a companion', 'a companion', 'dead letters', '__queues-0']
      this.#killKind = isSeldom && random.chance(0.7) ? SNAPSHOT : random.pick(kinds)
      this.#killAfter = random.below(this.#killKind === undefined ? 40 : 4)
      if (this.#killKind === SNAPSHOT) this.#killAfter = 0
      this.#killWhen = random.pick(['before', 'during', 'after'])
    } else if (roll < 28) {
      this.count('broker killed')
      this.#kill(process)
    } else if (roll < 31) {
      await this.#stop()
    } else if (roll < 45) {
      this.#failures += 1 + random.below(3)
    } else if (roll < 52) {
      this.count('disconnected')
      this.#pick()?.disconnect()
    } else if (roll < 58) {
      this.#pick()?.leave()
      this.replaceWorker()
    } else if (roll < 62) {
      this.replaceWorker()
    } else if (roll < 66) {
      await this.#pause(process)
    } else if (roll < 70) {
      const kind = random.pick(['a companion', 'a companion', 'dead letters', '__queues-0'])
      this.#broken = { kind, untilMs: this.clock.monotonicMs() + random.below(3000) }
    } else if (roll < 73) {
      this.count('wall clock jumped')
      const byMs = random.pick([-3_600_000, 3_600_000, -5000, 700, 0])
      this.clock.setWall(WALL_MS + this.clock.monotonicMs() + byMs)
    }
    this.#bury()
  }

  #pick(): SimulatedWorker | undefined {
    const fit = [...this.#workers].filter(({ isDead }) => !isDead)
    return fit.length === 0 ? undefined : this.random.pick(fit)
  }

  #bury(): void {
    for (const worker of this.#workers) if (worker.isDead) this.#workers.delete(worker)
    while (this.#workers.size < 3) this.#workers.add(new SimulatedWorker(this, `w${this.#names++}`))
  }

  /** Somebody new comes, soon. */
  replaceWorker(): void {
    this.clock.schedule(this.random.below(500), () => {
      if (this.#workers.size < 10) this.#workers.add(new SimulatedWorker(this, `w${this.#names++}`))
      this.#bury()
    })
  }

  async #pause(process: Process): Promise<void> {
    const { queues } = process
    if (queues === undefined) return
    try {
      if (this.#pauseMs > 0) {
        await this.#drive(process, queues.resume(GROUP))
        this.#pauseMs = 0
      } else {
        this.#pauseMs = 500
        await this.#drive(process, queues.pause(GROUP, this.clock.wallMs() + this.#pauseMs))
        this.count('paused')
      }
    } catch (error) {
      if (!(error instanceof Killed)) this.count(`pause refused: ${toError(error).code}`)
    }
  }

  #produce(): void {
    this.clock.schedule(20 + this.random.below(120), () => {
      if (this.#sent >= this.#options.records) return
      const partition = this.process?.topics?.find(TOPIC)?.partitions
      if (partition !== undefined) this.#appendBatch(this.random.pick(partition))
      this.#produce()
    })
  }

  /** A refused append is no record; the end of the log says in the end what there is. */
  #appendBatch(partition: Partition): void {
    const { random } = this
    const count = random.pick([1, 1, 3, 10, 50, 50, 200])
    const compression: Compression = random.pick(['none', 'none', 'none', 'gzip', 'lz4'])
    const builder = new BatchBuilder({ maxBytes: 1 << 20, compression })
    for (let i = 0; i < count; i++) {
      const serial = this.#sent++
      const headers: RecordHeader[] = []
      if (hasFewAttempts(serial)) headers.push(header(ATTEMPTS_HEADER, String(FEW_ATTEMPTS)))
      const key = random.chance(0.1) ? undefined : `k${random.below(KEYS)}`
      if (random.chance(0.1)) {
        headers.push(header(ORDERING_KEY_HEADER, `k${random.below(KEYS)}`))
      }
      const value = String(serial).padStart(9, '0').padEnd(20, '.')
      builder.tryAppend(key, value, this.clock.wallMs(), headers)
    }
    partition.append(builder.finish(), 'durable').catch(() => {
      this.count('append refused')
    })
  }

  // ── the end ──

  /** Everybody works until nothing is left to do. */
  async #finish(): Promise<boolean> {
    this.clock.setWall(WALL_MS + this.clock.monotonicMs())
    const startMs = this.clock.monotonicMs()
    while (this.clock.monotonicMs() < startMs + PATIENCE_MS) {
      if (this.process === undefined) await this.#start()
      this.#bury()
      // A while, and then in larger steps: by then somebody waits for a clock that was set back.
      const sinceMs = this.clock.monotonicMs() - startMs
      await this.clock.advance(sinceMs < 60_000 ? 500 : 30_000)
      const { process } = this
      if (process?.queues === undefined) continue
      if (this.#pauseMs > 0) await this.#pause(process)
      const description = await this.#drive(process, process.queues.describe(GROUP))
      if (isFinished(description)) return true
    }
    return false
  }

  async #noteEnd(isDone: boolean): Promise<QueueCheckOptions> {
    const { process } = this
    const topic = process?.topics?.find(TOPIC)
    const keys = new Map<string, (string | undefined)[]>()
    const { order = 'none', onFailure = 'block', policy = 'topic' } = this.#options
    const check: QueueCheckOptions = {
      maxAttempts: ATTEMPTS,
      attemptsOf: (partition, offset) => {
        const serial = this.#seen.get(partition)?.get(offset)
        return serial !== undefined && hasFewAttempts(serial) ? FEW_ATTEMPTS : undefined
      },
      order,
      orderOnFailure: onFailure,
      keyOf: (partition, offset) => keys.get(partition)?.[offset],
      policy,
      hasUnseenLeases: true,
      wallJumps: (this.#counts.get('wall clock jumped') ?? 0) > 0,
    }
    if (process?.queues === undefined || topic === undefined) return check
    const description = await this.#drive(process, process.queues.describe(GROUP))
    if (!isDone) await this.#tellStuck(process, description)
    await this.#noteLetters(process, description)
    for (const partition of topic.partitions) {
      const { name } = partition
      const found: (string | undefined)[] = []
      keys.set(name, found)
      await this.#readAll(process, partition, (cursor) => {
        const text = Buffer.from(cursor.bytes.buffer, cursor.bytes.byteOffset)
        const own = cursor.readHeaders().find(({ key }) => key === ORDERING_KEY_HEADER)
        const key =
          cursor.keyStart < 0 ? undefined : text.toString('latin1', cursor.keyStart, cursor.keyEnd)
        found.push(own === undefined ? key : Buffer.from(own.value ?? []).toString())
        const serial = Number(text.toString('latin1', cursor.valueStart, cursor.valueStart + 9))
        const seen = this.#seen.get(name)?.get(cursor.offset)
        if (seen !== undefined && seen !== serial) {
          this.#fail('wrong records', `${name}:${cursor.offset} is ${serial}, came as ${seen}`)
        }
      })
      this.#produced += partition.highWatermark
      this.note({ type: 'ended', partition: name, endOffset: partition.highWatermark })
    }
    return check
  }

  async #tellStuck(process: Process, description: QueueDescription): Promise<void> {
    for (const { partitions } of description.topics) {
      for (const one of partitions) {
        if (one.startOffset >= one.highWatermark) continue
        const { topic, partition, startOffset } = one
        const why = await this.#drive(
          process,
          process.queues?.explain(GROUP, topic, partition, startOffset) ?? Promise.reject(),
        )
        const { error: _, ...numbers } = one
        const members = description.members.map(({ memberId, credit, acquired, connected }) =>
          [memberId, credit, acquired, connected].join(' '),
        )
        const facts = `${JSON.stringify(numbers)}: ${why.state}, ${why.reason}; ${members.join(', ')}`
        this.#fail('stuck', facts)
      }
    }
    if (this.#violations.length === 0) this.#fail('stuck', JSON.stringify(description.notice))
  }

  async #noteLetters(process: Process, description: QueueDescription): Promise<void> {
    for (const { deadLetterTopic } of description.topics) {
      const topic = deadLetterTopic === '' ? undefined : process.topics?.find(deadLetterTopic)
      for (const partition of topic?.partitions ?? []) {
        await this.#readAll(process, partition, (cursor) => {
          const letter = readDeadLetter(cursor.readHeaders())
          if (letter === undefined) {
            this.#fail('wrong records', `${partition.name}:${cursor.offset} is no dead letter`)
            return
          }
          this.count(`dead: ${letter.reason}`)
          this.note({
            type: 'dead-letter',
            id: letter.id,
            partition: `${letter.topic}-${letter.partition}`,
            offset: letter.offset,
            reason: letter.reason,
            deliveries: letter.deliveries,
            failures: letter.failures,
          })
        })
      }
    }
  }

  async #readAll(
    process: Process,
    partition: Partition,
    take: (cursor: RecordCursor) => void,
  ): Promise<void> {
    const cursor = new RecordCursor()
    for (let from = partition.logStartOffset; from < partition.highWatermark;) {
      const found = await this.#drive(process, partition.read(toOffset(from), 1 << 20))
      for (const chunk of found.chunks) {
        for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
          cursor.reset(chunk, at)
          while (cursor.next()) take(cursor)
        }
      }
      from = found.nextOffset
    }
  }
}

function isFinished(description: QueueDescription): boolean {
  return description.topics.every(({ partitions }) =>
    partitions.every(
      ({ startOffset, highWatermark, ready, acquired, parked, deadLettering, error }) =>
        error === undefined &&
        startOffset >= highWatermark &&
        ready + acquired + parked + deadLettering === 0,
    ),
  )
}

function kindOf(name: string, batch?: Uint8Array): string {
  if (name.endsWith('.state')) {
    return batch !== undefined && Buffer.from(batch).includes('S0/') ? SNAPSHOT : 'a companion'
  }
  if (name.startsWith('dlq.')) return 'dead letters'
  return name.startsWith('__') ? name : 'the topic'
}

/** Verdicts of a delivery: neighbours with the same one in one item. */
function splitByVerdict(held: Held, random: SeededRandom): AckItem[] {
  const items: { first: number; end: number; verdict: Verdict; delayMs: number | undefined }[] = []
  for (let offset = held.first; offset < held.end; offset++) {
    const { verdict, delayMs } = judge(held.natures[offset - held.first] ?? 0, random)
    const last = items.at(-1)
    if (last?.verdict === verdict && last.delayMs === delayMs) last.end = offset + 1
    else items.push({ first: offset, end: offset + 1, verdict, delayMs })
  }
  return items.map(({ first, end, verdict, delayMs }) => ({
    token: held.token,
    first,
    end,
    verdict,
    delayMs,
    error:
      verdict === 'retry' || verdict === 'reject'
        ? { type: 'Simulated', message: 'it went wrong', stack: '' }
        : undefined,
    pauseGroupMs: 0,
  }))
}

function judge(
  serial: number,
  random: SeededRandom,
): { readonly verdict: Verdict; readonly delayMs: number | undefined } {
  const nature = natureOf(serial)
  if (nature === 'rejected') return { verdict: 'reject', delayMs: undefined }
  if (nature === 'retried' || (nature === 'flaky' && random.chance(0.4))) {
    return { verdict: 'retry', delayMs: random.chance(0.3) ? random.below(1500) : undefined }
  }
  if (nature === 'released' && random.chance(0.5)) {
    return { verdict: 'release', delayMs: random.chance(0.5) ? random.below(1000) : undefined }
  }
  return { verdict: 'accept', delayMs: undefined }
}

function aRenewal(held: Held): AckItem {
  return {
    token: held.token,
    first: held.first,
    end: held.end,
    verdict: 'renew',
    delayMs: held.leaseMs,
    error: undefined,
    pauseGroupMs: 0,
  }
}

function header(key: string, value: string): RecordHeader {
  return { key, value: Buffer.from(value) }
}

function toError(error: unknown): BrokerError {
  if (error instanceof BrokerError) return error
  throw error
}
