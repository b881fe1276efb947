import type { Clock } from '../../src/common/clock.ts'
import { BrokerError } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { decodeGroupEvent, type MemberRecord } from '../../src/coordination/group/group-events.ts'
import type { GroupLogger } from '../../src/coordination/group/group-shard.ts'
import type {
  CommitFailure,
  Groups,
  MemberAssignment,
  MemberSession,
  SubscriptionRequest,
} from '../../src/coordination/group/group-types.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { endOfBatch } from '../../src/record/batch-header.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import { Topics } from '../../src/topic/topics.ts'
import { aBatch } from './batches.ts'
import { FakeClock } from './fake-clock.ts'
import { checkGroupHistory, type GroupEvent, type Violation } from './group-checker.ts'
import { ProcessClock } from './process-clock.ts'

/** The same for all, so that how long a partition may be without an owner is one number. */
export const SESSION_MS = 6000
const REBALANCE_MS = 4000
/**
 * What the issue allows a partition to be without an owner. Rebalance timeouts need not be added: a slow member keeps what it was told to give up,
 * and works on it, until it lets go, or has been put out: then its session has to be over, which is no more than this either.
 */
const UNOWNED_MS = SESSION_MS + 2000
const DURABLE_MS = 5
const TICK_MS = 250
const COMMIT_MS = 900
const GROUP = 'sim'
const MOST_CLIENTS = 10
const MOST_TOPICS = 5
const MOST_PARTITIONS = 12

/** What the coordinator under test is opened with. */
export interface SimulatedBroker {
  readonly topics: Topics
  readonly clock: Clock
  readonly random: SeededRandom
  /** From what it is told the simulation knows when the state was loaded. */
  readonly logger: GroupLogger
}

export interface SimulationOptions {
  readonly seed: number
  readonly events: number
  readonly open: (broker: SimulatedBroker) => Promise<Groups>
}

export interface SimulationResult {
  readonly violations: readonly Violation[]
  /** How often each kind of event happened. */
  readonly counts: ReadonlyMap<string, number>
  readonly history: readonly GroupEvent[]
  /** What was done, in order, for people. */
  readonly trace: readonly string[]
  readonly simulatedMs: number
}

/** One broker process. What it answers after it was killed nobody hears. */
interface Process {
  readonly clock: ProcessClock
  readonly topics: Topics
  readonly groups: Groups
  isAlive: boolean
}

/** A connection, with a delay each way. Messages keep their order. */
class Link {
  readonly process: Process
  readonly #clock: Clock
  readonly #delayMs: number
  session: MemberSession | undefined
  /** The client's side. A broken connection delivers nothing more to it. */
  isUp = true
  /** The broker's side: what was on its way may still arrive after the client's side has broken. */
  isUpAtBroker = true
  /** The coordinator has ended the session: nothing is answered any more. */
  isEnded = false

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

  /** The client's side is gone. The broker notices `noticedMs` later; undefined: never, as when a machine loses its power. */
  break(noticedMs: number | undefined): void {
    if (!this.isUp) return
    this.isUp = false
    if (noticedMs === undefined) return
    this.#clock.schedule(noticedMs, () => {
      if (!this.isUpAtBroker || !this.process.isAlive) return
      this.isUpAtBroker = false
      this.session?.detach()
    })
  }
}

interface OwnedPartition {
  readonly topic: string
  readonly topicId: string
  readonly index: number
  readonly fromMs: number
  position: number
  committed: number
}

/** What a client knew when it lost a partition: what it might still send, if it were wrong or slow. */
interface Leftover {
  readonly memberId: string
  readonly memberEpoch: number
  readonly owned: OwnedPartition
}

/**
 * A consumer process: joins, processes from the committed offset on, commits, gives up what it is told to, comes back when its connection breaks. It
 * keeps what it owns until it has said that it gave it up, or its session has ended by its own clock: counted from the sending of the last
 * heartbeat (or join) that was answered.
 */
class SimulatedClient {
  readonly name: string
  readonly instanceId: string
  subscription: SubscriptionRequest
  readonly owned: Map<string, OwnedPartition> = new Map()
  memberId: string = ''
  memberEpoch: number = 0
  isPaused: boolean = false
  isDead: boolean = false
  /** Of the next revocations: how long they take. */
  slowMs: number = 0
  readonly #simulation: GroupSimulation
  #link: Link | undefined
  #joinSentMs = 0
  #contactMs = -Infinity
  #heartbeatMs = 0
  #heartbeatIntervalMs = 2000
  #commitMs = 0
  #isRevoking = false
  #lastNumber = 0
  #assigned: ReadonlySet<string> = new Set()
  readonly #inbox: (() => void)[] = []

  constructor(
    simulation: GroupSimulation,
    name: string,
    instanceId: string,
    subscription: SubscriptionRequest,
  ) {
    this.#simulation = simulation
    this.name = name
    this.instanceId = instanceId
    this.subscription = subscription
    this.#tick()
    this.#connect()
  }

  get #nowMs(): number {
    return this.#simulation.clock.monotonicMs()
  }

  /** What the broker calls it, also while it has not heard that itself. */
  get idAtBroker(): string {
    return this.memberId === '' ? (this.#link?.session?.memberId ?? '') : this.memberId
  }

  get isConnected(): boolean {
    return this.#link?.isUp === true && this.#link.session !== undefined
  }

  // ── the connection ──

  #connect(): void {
    const { process, random, clock } = this.#simulation
    if (this.isDead) return
    if (process === undefined) {
      this.#reconnectSoon()
      return
    }
    const link = new Link(process, clock, 1 + random.below(30))
    this.#link = link
    const sentMs = this.#nowMs
    this.#joinSentMs = sentMs
    this.#lastNumber = 0
    link.toBroker(() => void this.#join(link, sentMs))
  }

  async #join(link: Link, sentMs: number): Promise<void> {
    const listener = {
      assigned: (assignment: MemberAssignment) => {
        if (!link.process.isAlive) return
        this.#simulation.noteAssignment(session().memberId, assignment)
        link.toClient(() => this.#handle(link, () => this.#assign(link, assignment)))
      },
      ended: (error: BrokerError) => {
        link.isEnded = true
        link.toClient(() => this.#handle(link, () => this.#sessionEnded(link, error)))
      },
    }
    const session = (): MemberSession => {
      if (link.session === undefined) throw new Error('nothing is assigned before the join is over')
      return link.session
    }
    const request = {
      group: GROUP,
      memberId: this.memberId,
      memberEpoch: this.memberEpoch,
      instanceId: this.instanceId,
      clientId: this.name,
      host: 'simulated',
      rack: '',
      subscription: this.subscription,
      assignor: '',
      sessionTimeoutMs: SESSION_MS,
      rebalanceTimeoutMs: REBALANCE_MS,
    }
    try {
      const joined = await link.process.groups.join(request, listener)
      link.session = joined
      if (!link.isUpAtBroker) joined.detach()
      if (this.isDead || this.isPaused) {
        // A member that nobody is: until its session is over, it is given partitions.
        this.#simulation.disturb('joined when it was gone', this)
      }
      link.toClient(() => this.#handle(link, () => this.#joined(link, joined, sentMs)))
    } catch (error) {
      link.toClient(() => this.#handle(link, () => this.#refused(link, toError(error))))
    }
  }

  /** Does what a message asks for: now, or when the process goes on. */
  #handle(link: Link, act: () => void): void {
    const run = (): void => {
      this.#checkDeadline()
      if (link === this.#link && !this.isDead) act()
    }
    if (this.isPaused) this.#inbox.push(run)
    else run()
  }

  #joined(link: Link, session: MemberSession, sentMs: number): void {
    if (this.memberId !== '' && !session.resumed) throw new Error('came back as somebody else')
    this.memberId = session.memberId
    this.memberEpoch = Math.max(this.memberEpoch, session.memberEpoch)
    this.#heartbeatIntervalMs = session.heartbeatIntervalMs
    this.#contactMs = Math.max(this.#contactMs, sentMs)
    this.#heartbeatMs = sentMs
    link.session = session
  }

  #refused(link: Link, error: BrokerError): void {
    link.break(0)
    if (error.code === 'INSTANCE_FENCED') {
      this.#simulation.count('fenced instance')
      this.die('instance fenced', 0)
      return
    }
    if (error.code === 'UNKNOWN_MEMBER') this.#lose('member unknown')
    this.#reconnectSoon()
  }

  #sessionEnded(link: Link, error: BrokerError): void {
    this.#refused(link, error)
  }

  #reconnectSoon(): void {
    const { clock, random } = this.#simulation
    const link = this.#link
    this.#link = undefined
    if (link !== undefined) link.break(0)
    clock.schedule(50 + random.below(400), () => {
      if (this.#link !== undefined || this.isDead) return
      if (this.isPaused) this.#inbox.push(() => this.#link ?? this.#connect())
      else this.#connect()
    })
  }

  // ── what it owns ──

  #assign(link: Link, assignment: MemberAssignment): void {
    const nowMs = this.#nowMs
    this.memberEpoch = assignment.memberEpoch
    this.#lastNumber = assignment.number
    const named = new Set<string>()
    for (const { topic, topicId, partitions } of assignment.topics) {
      for (const { partition, committed, logStartOffset } of partitions) {
        const key = toKey(topicId, partition)
        named.add(key)
        if (this.owned.has(key)) continue
        const position = committed?.offset ?? logStartOffset
        this.owned.set(key, {
          topic,
          topicId,
          index: partition,
          fromMs: nowMs,
          position,
          committed: position,
        })
      }
    }
    this.#assigned = named
    const mustGive = [...this.owned.keys()].some((key) => !named.has(key))
    if (this.#isRevoking) return
    if (this.slowMs === 0 || !mustGive) {
      this.#giveUp(link)
      return
    }
    this.#isRevoking = true
    this.#simulation.count('slow revocation')
    const { slowMs } = this
    this.slowMs = 0
    this.#simulation.clock.schedule(slowMs, () => {
      this.#isRevoking = false
      const current = this.#link
      if (current === undefined || this.isDead) return
      this.#handle(current, () => this.#giveUp(current))
    })
  }

  /** Commits a last time, lets go, and says so; also when there was nothing to let go: the broker may know of more. */
  #giveUp(link: Link): void {
    const going = [...this.owned.keys()].filter((key) => !this.#assigned.has(key))
    this.#commit(link, going)
    for (const key of going) this.#release(key, this.#nowMs)
    const number = this.#lastNumber
    link.toBroker(() => link.session?.confirm(number))
  }

  #release(key: string, untilMs: number): void {
    const owned = this.owned.get(key)
    if (owned === undefined) return
    this.owned.delete(key)
    const { fromMs } = owned
    this.#simulation.note({ type: 'owned', client: this.name, partition: key, fromMs, untilMs })
    this.#simulation.leave({ memberId: this.memberId, memberEpoch: this.memberEpoch, owned })
  }

  /** Everything is gone: the member is no more. */
  #lose(what: string): void {
    this.#simulation.disturb(what, this)
    // A process that stood still may have outlived its session.
    const atMs = Math.min(this.#nowMs, this.#contactMs + SESSION_MS)
    for (const key of this.owned.keys()) this.#release(key, atMs)
    this.#assigned = new Set()
    this.memberId = ''
    this.memberEpoch = 0
    this.#contactMs = -Infinity
  }

  /** Before anything else: what is owned is so only as long as the broker is sure to wait. */
  #checkDeadline(): void {
    const deadlineMs = this.#contactMs + SESSION_MS
    if (this.memberId === '' || this.#nowMs < deadlineMs) return
    this.#simulation.count('own deadline')
    this.#lose('session over by its own clock')
    this.#reconnectSoon()
  }

  // ── work ──

  #tick(): void {
    const { clock, random } = this.#simulation
    clock.schedule(TICK_MS - 20 + random.below(40), () => {
      if (this.isDead) return
      if (!this.isPaused) this.#work()
      this.#tick()
    })
  }

  #work(): void {
    this.#checkDeadline()
    const link = this.#link
    const nowMs = this.#nowMs
    if (link === undefined || !link.isUp) return
    if (link.session === undefined || this.memberId === '') {
      // No answer to a join: the broker may have been killed meanwhile.
      if (nowMs - this.#joinSentMs > 3000) this.#reconnectSoon()
      return
    }
    if (nowMs - this.#heartbeatMs >= this.#heartbeatIntervalMs) {
      this.#heartbeatMs = nowMs
      link.toBroker(() => {
        if (link.isEnded) return
        link.session?.heartbeat()
        link.toClient(() => this.#handle(link, () => void (this.#contactMs = nowMs)))
      })
    }
    this.#process(link)
    if (nowMs - this.#commitMs >= COMMIT_MS) {
      this.#commitMs = nowMs
      this.#commit(link, [...this.owned.keys()])
    }
  }

  #process(link: Link): void {
    if (!link.process.isAlive) return
    for (const [key, owned] of this.owned) {
      const topic = link.process.topics.find(owned.topic)
      if (topic?.id !== owned.topicId) continue
      const end = topic.partitions[owned.index]?.visibleEnd ?? 0
      const to = Math.min(end, owned.position + 50)
      if (to <= owned.position) continue
      this.#simulation.note({ type: 'processed', partition: key, from: owned.position, to })
      owned.position = to
    }
  }

  #commit(link: Link, keys: readonly string[]): void {
    const offsets = keys.flatMap((key) => {
      const owned = this.owned.get(key)
      if (owned === undefined || owned.position === owned.committed) return []
      return [{ owned, offset: owned.position }]
    })
    if (offsets.length === 0) return
    const { memberId, memberEpoch } = this
    link.toBroker(() => {
      const { session } = link
      if (session === undefined) return
      const by = { memberId, memberEpoch }
      void this.#simulation.judgeCommit(
        link.process,
        by,
        offsets,
        session.commit(memberEpoch, offsets.map(toRequest)),
        (accepted) =>
          link.toClient(() => {
            for (const { owned, offset } of accepted) {
              owned.committed = Math.max(owned.committed, offset)
            }
          }),
      )
    })
  }

  // ── what happens to it ──

  pause(forMs: number): void {
    this.isPaused = true
    this.#simulation.disturb('paused', this)
    this.#simulation.clock.schedule(forMs, () => this.resume())
  }

  resume(): void {
    if (!this.isPaused || this.isDead) return
    this.isPaused = false
    this.#simulation.disturb('went on', this)
    this.#checkDeadline()
    // A message may pause nobody, so all of them are handled now.
    for (const run of this.#inbox.splice(0)) run()
  }

  /** The connection breaks; the client comes back soon. */
  disconnect(noticedMs: number | undefined): void {
    this.#simulation.disturb('disconnected', this)
    this.#link?.break(noticedMs)
    this.#reconnectSoon()
  }

  /** The broker has gone: its connections are reset. */
  processGone(): void {
    const link = this.#link
    if (link === undefined) return
    link.isUp = false
    link.isUpAtBroker = false
    this.#link = undefined
    if (this.isPaused) this.#inbox.push(() => this.#link ?? this.#reconnectSoon())
    else this.#reconnectSoon()
  }

  leave(): void {
    const link = this.#link
    if (link?.session !== undefined && link.isUp) {
      this.#commit(link, [...this.owned.keys()])
      link.toBroker(() => {
        // A broker that cannot take it lets the session time out.
        link.session?.leave().catch(() => undefined)
      })
    } else {
      link?.break(0)
    }
    this.#end('left')
  }

  /** The process is killed. See {@link Link.break}. */
  die(what: string, noticedMs: number | undefined): void {
    this.#link?.break(noticedMs)
    this.#end(what)
  }

  #end(what: string): void {
    this.#lose(what)
    this.isDead = true
    this.#inbox.length = 0
  }

  /** What it still has when the simulation is over. */
  close(): void {
    for (const key of this.owned.keys()) this.#release(key, Infinity)
    this.isDead = true
  }

  changeSubscription(subscription: SubscriptionRequest): void {
    this.subscription = subscription
    this.#simulation.disturb('subscription', this)
    const link = this.#link
    if (link?.session === undefined || !link.isUp) return
    link.toBroker(() => {
      link.session?.subscribe(subscription).catch(() => undefined)
    })
  }
}

/** One group, its clients and its broker in simulated time: random events from a seed, and a history for the checker. */
export class GroupSimulation {
  readonly clock: FakeClock = new FakeClock()
  readonly random: SeededRandom
  process: Process | undefined
  readonly #options: SimulationOptions
  readonly #history: GroupEvent[] = []
  readonly #counts = new Map<string, number>()
  readonly #trace: string[] = []
  readonly #clients = new Set<SimulatedClient>()
  readonly #leftovers: Leftover[] = []
  /** Who was told last that a partition is its own, and all that a member has been told. */
  readonly #holders = new Map<string, string>()
  readonly #told = new Map<string, ReadonlySet<string>>()
  readonly #isUniform: boolean
  /** When the state has been loaded, after a failed write too, members have all of their session from then on. */
  readonly #logger: GroupLogger = {
    info: (_, message) => this.#noteLogged(message),
    warn: (_, message) => this.#noteLogged(message),
    error: (_, message) => this.#noteLogged(message),
  }
  #store: MemoryStore
  #names = 0
  #isProducing = true

  constructor(options: SimulationOptions) {
    this.#options = options
    this.random = new SeededRandom(options.seed)
    this.#isUniform = this.random.chance(0.6)
    this.#store = new MemoryStore({
      clock: this.clock,
      random: this.random,
      durableDelayMs: DURABLE_MS,
    })
  }

  async run(): Promise<SimulationResult> {
    await this.#start()
    await this.#createTopic()
    await this.#createTopic()
    this.#produce()
    for (let i = 0; i < 3; i++) this.#join()
    await this.clock.advance(2000)
    for (let i = 0; i < this.#options.events; i++) {
      await this.#happen()
      await this.clock.advance(this.#pickGapMs(i))
      await this.#read()
    }
    await this.#calmDown()
    const endMs = this.clock.monotonicMs()
    for (const client of this.#clients) client.close()
    await this.#noteEnds()
    await this.#noteLog()
    await this.#stop()
    const check = { unownedMs: UNOWNED_MS, lagMs: 200, endMs }
    return {
      violations: checkGroupHistory(this.#history, check),
      counts: this.#counts,
      history: this.#history,
      trace: this.#trace,
      simulatedMs: endMs,
    }
  }

  // ── the history ──

  note(event: GroupEvent): void {
    this.#history.push(event)
  }

  count(what: string): void {
    this.#counts.set(what, (this.#counts.get(what) ?? 0) + 1)
  }

  leave(leftover: Leftover): void {
    this.#leftovers.push(leftover)
    if (this.#leftovers.length > 100) this.#leftovers.shift()
    // Some of what is lost is on its way still.
    if (!this.random.chance(0.1)) return
    this.clock.schedule(this.random.below(2000), () => this.#sendLate(leftover))
  }

  /** Something happened that may leave what this client has, or was just given, without an owner. */
  disturb(what: string, client: SimulatedClient | undefined): void {
    const atMs = this.clock.monotonicMs()
    const memberId = client?.idAtBroker
    this.#trace.push(`${atMs} ${what} ${client?.name ?? ''} ${memberId ?? ''}`)
    const held = [...this.#holders].filter(([, holder]) => holder === memberId)
    const partitions =
      client === undefined
        ? undefined
        : [...new Set([...client.owned.keys(), ...held.map(([key]) => key)])]
    this.note({
      type: 'disturbed',
      atMs,
      what: `${what} ${client?.name ?? ''}`,
      memberId,
      partitions,
    })
  }

  #noteLogged(message: string): void {
    if (/loaded/.test(message)) this.disturb(message, undefined)
    else if (!/joined|left|new target/.test(message)) this.count(message)
  }

  noteAssignment(memberId: string, assignment: MemberAssignment): void {
    const atMs = this.clock.monotonicMs()
    const before = this.#told.get(memberId) ?? new Set()
    const now = new Set<string>()
    for (const { topicId, partitions } of assignment.topics) {
      for (const { partition, committed } of partitions) {
        const key = toKey(topicId, partition)
        now.add(key)
        // Told again after it came back: nothing new, unless somebody else had it.
        if (before.has(key) && this.#holders.get(key) === memberId) continue
        this.#holders.set(key, memberId)
        this.note({
          type: 'granted',
          atMs,
          memberId,
          memberEpoch: assignment.memberEpoch,
          partition: key,
          committed: committed?.offset,
        })
      }
    }
    for (const key of before) {
      if (!now.has(key)) this.note({ type: 'revoked', atMs, memberId, partition: key })
    }
    this.#told.set(memberId, now)
    this.#trace.push(
      `${atMs} told ${memberId} #${assignment.number} e${assignment.memberEpoch}: ${now.size} partitions`,
    )
  }

  /** Follows a commit that has just reached the coordinator. */
  async judgeCommit(
    process: Process,
    by: { readonly memberId: string; readonly memberEpoch: number },
    offsets: readonly CommitOf[],
    answer: Promise<readonly CommitFailure[]>,
    accept: (accepted: readonly CommitOf[]) => void,
  ): Promise<void> {
    const atMs = this.clock.monotonicMs()
    try {
      const failures = await answer
      if (!process.isAlive) return
      for (const { error } of failures) this.count(`commit refused: ${error.code}`)
      const accepted = offsets.filter(
        ({ owned }) =>
          !failures.some((f) => f.topic === owned.topic && f.partition === owned.index),
      )
      for (const { owned, offset } of accepted) {
        this.note({
          type: 'committed',
          atMs,
          answeredMs: this.clock.monotonicMs(),
          ...by,
          partition: toKey(owned.topicId, owned.index),
          offset,
        })
      }
      if (accepted.length > 0) this.count('commit accepted')
      accept(accepted)
    } catch (error) {
      if (process.isAlive) this.count(`commit refused: ${toError(error).code}`)
    }
  }

  async #read(): Promise<void> {
    const { process } = this
    if (process === undefined) return
    const atMs = this.clock.monotonicMs()
    const topics = process.topics.list()
    try {
      const offsets = await this.#drive(process.groups.committed(GROUP))
      const found = new Map(
        offsets.map(({ topicId, partition, offset }) => [toKey(topicId, partition), offset]),
      )
      for (const topic of topics) {
        for (const index of topic.partitions.keys()) {
          const partition = toKey(topic.id, index)
          this.note({ type: 'read', atMs, partition, offset: found.get(partition) })
        }
      }
    } catch (error) {
      this.count(`read refused: ${toError(error).code}`)
    }
  }

  // ── the broker ──

  /** Lets time pass until `promise` has settled. */
  async #drive<T>(promise: Promise<T>): Promise<T> {
    let isDone = false
    const watched = promise.finally(() => {
      isDone = true
    })
    // Looked at by whoever awaits it below; until then it may already have failed.
    watched.catch(() => undefined)
    for (let i = 0; i < 10_000; i++) {
      if (isDone) break
      await this.clock.advance(1)
    }
    return watched
  }

  async #start(): Promise<void> {
    const clock = new ProcessClock(this.clock)
    const { random } = this
    const store = this.#store
    const topics = await this.#drive(Topics.open({ store, clock, random }))
    const groups = await this.#drive(
      this.#options.open({ topics, clock, random, logger: this.#logger }),
    )
    this.process = { clock, topics, groups, isAlive: true }
    this.disturb('broker started', undefined)
  }

  async #stop(): Promise<void> {
    const { process } = this
    if (process === undefined) return
    const draining = new BrokerError('BROKER_DRAINING', 'the broker is stopping')
    await this.#drive(process.groups.close(draining))
    await this.#drive(process.topics.close())
    process.isAlive = false
    process.clock.kill()
    this.process = undefined
  }

  async #restart(isKill: boolean): Promise<void> {
    const { process } = this
    if (process === undefined) return
    this.disturb(isKill ? 'broker killed' : 'broker stopped', undefined)
    if (isKill) {
      process.isAlive = false
      process.clock.kill()
      this.process = undefined
    } else {
      await this.#stop()
    }
    this.#store = this.#store.restart()
    for (const client of this.#clients) client.processGone()
    await this.clock.advance(this.random.below(2000))
    await this.#start()
  }

  async #createTopic(): Promise<void> {
    const { process } = this
    if (process === undefined) return
    const name = `t${this.#names++}`
    const partitions = 1 + this.random.below(8)
    // A topic is there for the group before its maker hears of it; for the time in between nobody counts.
    await this.#drive(process.topics.create({ name, partitions }))
    this.#noteCreated(name, 0)
  }

  #noteCreated(name: string, from: number): void {
    const topic = this.process?.topics.find(name)
    if (topic === undefined) return
    const atMs = this.clock.monotonicMs()
    for (let i = from; i < topic.partitions.length; i++) {
      this.note({ type: 'created', atMs, partition: toKey(topic.id, i) })
    }
  }

  #produce(): void {
    this.clock.schedule(50 + this.random.below(150), () => {
      const topics = this.process?.topics.list() ?? []
      if (topics.length > 0 && this.#isProducing) {
        const partition = this.random.pick(this.random.pick(topics).partitions)
        // A refused append is no record; the end of the log says in the end what there is.
        partition.append(aBatch({ records: 1 + this.random.below(5) }), 'durable').catch(() => {
          this.count('append refused')
        })
      }
      this.#produce()
    })
  }

  // ── what happens ──

  #pickGapMs(event: number): number {
    if (event % 25 === 24) return UNOWNED_MS + REBALANCE_MS + this.random.below(4000)
    const roll = this.random.below(10)
    if (roll < 3) return this.random.below(150)
    return roll < 8 ? 200 + this.random.below(2000) : 2000 + this.random.below(5000)
  }

  async #happen(): Promise<void> {
    const { random } = this
    const kinds: readonly (readonly [number, string, () => Promise<void> | void])[] = [
      [14, 'join', () => this.#join()],
      [7, 'leave', () => this.#withVictim((client) => client.leave())],
      [7, 'kill', () => this.#withVictim((client) => this.#kill(client))],
      [4, 'pause', () => this.#withVictim((client) => client.pause(random.below(5000)))],
      [6, 'long pause', () => this.#withVictim((client) => client.pause(random.below(15_000)))],
      [9, 'disconnect', () => this.#disconnect()],
      [9, 'slow revoke', () => this.#slowDown()],
      [4, 'new partitions', () => this.#addPartitions()],
      [4, 'new topic', () => this.#maybeCreateTopic()],
      [3, 'deleted topic', () => this.#deleteTopic()],
      [6, 'static restart', () => this.#restartStatic()],
      [3, 'instance taken over', () => this.#takeOver()],
      [5, 'coordinator killed', () => this.#restart(true)],
      [2, 'coordinator restarted', () => this.#restart(false)],
      [4, 'killed in the middle of appends', () => this.#killWhileWriting()],
      [4, 'failed append', () => this.#failAppend()],
      [10, 'late commit', () => this.#commitLate()],
      [4, 'subscription', () => this.#changeSubscription()],
    ]
    let roll = random.below(kinds.reduce((sum, [weight]) => sum + weight, 0))
    for (const [weight, what, act] of kinds) {
      roll -= weight
      if (roll >= 0) continue
      this.count(what)
      this.#trace.push(`${this.clock.monotonicMs()} ── ${what}`)
      await act()
      return
    }
  }

  #subscription(): SubscriptionRequest {
    if (this.#isUniform || this.random.chance(0.6)) return { topics: [], pattern: '^t[0-9]+$' }
    if (this.random.chance(0.3)) return { topics: [], pattern: '[02468]$' }
    const topics = [...new Set([0, 1].map(() => `t${this.random.below(this.#names + 2)}`))]
    return { topics: topics.sort(), pattern: '' }
  }

  #join(instanceId?: string): void {
    if (this.#clients.size >= MOST_CLIENTS) return
    const name = `c${this.#names++}`
    const instance = instanceId ?? (this.random.chance(0.3) ? `i${name}` : '')
    const client = new SimulatedClient(this, name, instance, this.#subscription())
    this.#clients.add(client)
    this.disturb(`joins as ${instance}`, client)
    this.#keepOneWell()
  }

  /** Somebody who could have every partition is at work all the time; otherwise nothing could be asked for. */
  #keepOneWell(): void {
    const isWell = (client: SimulatedClient): boolean =>
      !client.isDead && !client.isPaused && client.subscription.pattern === '^t[0-9]+$'
    if ([...this.#clients].some(isWell)) return
    const name = `c${this.#names++}`
    const everything = { topics: [], pattern: '^t[0-9]+$' }
    this.#clients.add(new SimulatedClient(this, name, '', everything))
    this.disturb('joins, because nobody else is well', undefined)
  }

  #pickClient(isFit: (client: SimulatedClient) => boolean): SimulatedClient | undefined {
    const fit = [...this.#clients].filter((client) => !client.isDead && isFit(client))
    return fit.length === 0 ? undefined : this.random.pick(fit)
  }

  #withVictim(act: (client: SimulatedClient) => void): void {
    const client = this.#pickClient(({ isPaused }) => !isPaused)
    if (client !== undefined) act(client)
    this.#bury()
    this.#keepOneWell()
  }

  #bury(): void {
    for (const client of this.#clients) if (client.isDead) this.#clients.delete(client)
  }

  #pickNotice(): number | undefined {
    return this.random.chance(0.3) ? undefined : this.random.below(200)
  }

  #kill(client: SimulatedClient): void {
    client.die('killed', this.#pickNotice())
  }

  #disconnect(): void {
    this.#pickClient(({ isPaused }) => !isPaused)?.disconnect(this.#pickNotice())
  }

  #slowDown(): void {
    const client = this.#pickClient(() => true)
    if (client !== undefined) client.slowMs = 200 + this.random.below(REBALANCE_MS * 2)
    // Somebody has to give something up for it to matter.
    if (this.random.chance(0.7)) this.#join()
  }

  async #addPartitions(): Promise<void> {
    const { process, random } = this
    const topics = process?.topics.list().filter((t) => t.partitions.length < MOST_PARTITIONS) ?? []
    if (process === undefined || topics.length === 0) return
    const topic = random.pick(topics)
    const before = topic.partitions.length
    await this.#drive(process.topics.addPartitions(topic.name, before + 1 + random.below(3)))
    this.#noteCreated(topic.name, before)
  }

  async #maybeCreateTopic(): Promise<void> {
    if ((this.process?.topics.list().length ?? MOST_TOPICS) < MOST_TOPICS) await this.#createTopic()
  }

  async #deleteTopic(): Promise<void> {
    const topics = this.process?.topics.list() ?? []
    if (this.process === undefined || topics.length < 2) return
    const topic = this.random.pick(topics)
    const atMs = this.clock.monotonicMs()
    for (const [index] of topic.partitions.entries()) {
      this.note({ type: 'deleted', atMs, partition: toKey(topic.id, index) })
    }
    await this.#drive(this.process.topics.delete(topic.name))
    // Sometimes made anew at once, under the same name: another topic.
    if (!this.random.chance(0.4)) return
    const partitions = 1 + this.random.below(6)
    await this.#drive(this.process.topics.create({ name: topic.name, partitions }))
    this.#noteCreated(topic.name, 0)
  }

  #restartStatic(): void {
    const client = this.#pickClient(({ instanceId }) => instanceId !== '')
    if (client === undefined) return
    if (this.random.chance(0.6) && !client.isPaused) client.leave()
    else this.#kill(client)
    this.#bury()
    this.clock.schedule(this.random.below(3000), () => this.#join(client.instanceId))
    this.#keepOneWell()
  }

  /** A second process with the instance id of one that is cut off and does not know yet. */
  #takeOver(): void {
    const client = this.#pickClient(
      ({ instanceId, isPaused, isConnected }) => instanceId !== '' && !isPaused && isConnected,
    )
    if (client === undefined) return
    client.pause(1000 + this.random.below(6000))
    client.disconnect(0)
    this.clock.schedule(100, () => this.#join(client.instanceId))
    this.#keepOneWell()
  }

  async #killWhileWriting(): Promise<void> {
    for (let i = this.random.below(3); i >= 0; i--) this.#join()
    this.#pickClient(({ isPaused }) => !isPaused)?.leave()
    this.#bury()
    this.#keepOneWell()
    await this.clock.advance(this.random.below(60))
    await this.#restart(true)
  }

  async #failAppend(): Promise<void> {
    const names = this.random.chance(0.5) ? ['__groups'] : ['__offsets']
    this.disturb(`append to ${names.join()} fails`, undefined)
    for (const name of names) {
      const partition = this.process?.topics.find(name)?.partitions[0]
      if (partition === undefined) continue
      const log = await this.#store.open(partition.id, DEFAULT_LOG_CONFIG)
      log.failNextAppend(new BrokerError('STORAGE_ERROR', 'injected: the write failed'))
    }
    this.#join()
  }

  #commitLate(): void {
    for (let i = 0; i < 3; i++) {
      if (this.#leftovers.length === 0) return
      // Rather by one that has the partition again: its old epoch alone gives it away.
      const again = this.#leftovers.filter(({ memberId, owned }) =>
        [...this.#clients].some(
          (client) =>
            client.memberId === memberId && client.owned.has(toKey(owned.topicId, owned.index)),
        ),
      )
      const isAgain = again.length > 0 && this.random.chance(0.7)
      this.#sendLate(this.random.pick(isAgain ? again : this.#leftovers))
    }
  }

  /** A commit from the past: what a member knew when it lost a partition, by the session-less call. */
  #sendLate({ memberId, memberEpoch, owned }: Leftover): void {
    const { process } = this
    if (process === undefined) return
    // All that it had done: less could be a commit that a later one of the same session has overtaken, which only a client can know.
    const offsets = [{ owned, offset: owned.position }]
    const by = { memberId, memberEpoch }
    const answer = process.groups.commit(GROUP, by, offsets.map(toRequest))
    void this.judgeCommit(process, by, offsets, answer, (accepted) => {
      if (accepted.length > 0) this.count('late commit accepted')
    })
  }

  #changeSubscription(): void {
    if (this.#isUniform) return
    const client = this.#pickClient(({ isPaused }) => !isPaused)
    client?.changeSubscription(this.#subscription())
    this.#keepOneWell()
  }

  // ── the end ──

  /** No more trouble: everybody goes on, and works off what there is. */
  async #calmDown(): Promise<void> {
    this.disturb('calm', undefined)
    for (const client of this.#clients) {
      client.slowMs = 0
      client.resume()
    }
    this.#bury()
    this.#keepOneWell()
    await this.clock.advance(2 * UNOWNED_MS + 3 * REBALANCE_MS)
    this.#isProducing = false
    await this.clock.advance(2 * UNOWNED_MS)
  }

  async #noteEnds(): Promise<void> {
    const atMs = this.clock.monotonicMs()
    for (const topic of this.process?.topics.list() ?? []) {
      for (const [index, { visibleEnd }] of topic.partitions.entries()) {
        const partition = toKey(topic.id, index)
        this.note({ type: 'ended', partition, endOffset: visibleEnd })
        // All of it is committed by now: whoever owns it has had the time.
        this.note({
          type: 'committed',
          atMs: atMs - 1,
          answeredMs: atMs - 1,
          memberId: this.#holders.get(partition) ?? '',
          memberEpoch: Number.MAX_SAFE_INTEGER,
          partition,
          offset: visibleEnd,
        })
      }
    }
    await this.#read()
  }

  /** Reads the coordinator's log as it wrote it: targets as they changed, and whether a partition ever had two owners in it. */
  async #noteLog(): Promise<void> {
    const partition = this.process?.topics.find('__groups')?.partitions[0]
    if (partition === undefined) return
    const reader = new GroupLogReader(
      this.#isUniform,
      this.clock.wallMs() - this.clock.monotonicMs(),
    )
    const cursor = new RecordCursor({})
    for (let from = partition.logStartOffset; from < partition.highWatermark;) {
      const { chunks, nextOffset } = await this.#drive(partition.read(from, 1 << 20))
      for (const chunk of chunks) {
        for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
          cursor.reset(chunk, at)
          while (cursor.next()) {
            const text = Buffer.from(cursor.bytes.buffer, cursor.bytes.byteOffset)
            const key = text.toString('utf8', cursor.keyStart, cursor.keyEnd)
            const value =
              cursor.valueStart < 0
                ? null
                : text.toString('utf8', cursor.valueStart, cursor.valueEnd)
            reader.read(key, value, cursor.timestampMs)
          }
          reader.endBatch()
        }
      }
      from = nextOffset
    }
    this.#history.push(...reader.events)
  }
}

interface CommitOf {
  readonly owned: OwnedPartition
  readonly offset: number
}

/** Follows the records of `__groups`. */
class GroupLogReader {
  readonly events: GroupEvent[] = []
  readonly #isUniform: boolean
  readonly #wallAheadMs: number
  readonly #members = new Map<string, MemberRecord>()
  readonly #targets = new Map<string, ReadonlySet<string>>()
  #epoch = 0
  #atMs = 0
  #before: ReadonlyMap<string, ReadonlySet<string>> | undefined

  constructor(isUniform: boolean, wallAheadMs: number) {
    this.#isUniform = isUniform
    this.#wallAheadMs = wallAheadMs
  }

  read(key: string, value: string | null, timestampMs: number): void {
    const event = decodeGroupEvent(key, value)
    if (event.type === 'group' && event.record.epoch > this.#epoch) {
      // Targets of one assignment follow the group's record, in the same batch.
      this.endBatch()
      this.#epoch = event.record.epoch
      this.#atMs = timestampMs - this.#wallAheadMs
      this.#before = new Map(
        [...this.#targets].filter(([id]) => this.#members.get(id)?.standing !== 'fenced'),
      )
    } else if (event.type === 'member') {
      const { memberId, record } = event
      const old = this.#members.get(memberId)
      this.#members.set(memberId, record)
      const target = new Set(
        [...record.target].flatMap(([topicId, some]) => some.map((p) => toKey(topicId, p))),
      )
      if (old === undefined || !isSameSet(target, this.#targets.get(memberId))) {
        this.#targets.set(memberId, target)
      }
      this.#checkOwners(memberId, record, timestampMs - this.#wallAheadMs)
    } else if (event.type === 'member-left') {
      this.#members.delete(event.memberId)
      this.#targets.delete(event.memberId)
    }
  }

  endBatch(): void {
    const before = this.#before
    this.#before = undefined
    if (before === undefined) return
    const after = new Map([...this.#targets].filter(([id]) => before.has(id)))
    this.events.push({
      type: 'target',
      atMs: this.#atMs,
      before,
      after,
      isUniform: this.#isUniform,
    })
  }

  #checkOwners(memberId: string, record: MemberRecord, atMs: number): void {
    for (const [topicId, partitions] of record.owned) {
      for (const [otherId, other] of this.#members) {
        if (otherId === memberId) continue
        const theirs = other.owned.get(topicId)
        for (const index of partitions.keys()) {
          if (theirs?.has(index) !== true) continue
          const partition = toKey(topicId, index)
          this.events.push({ type: 'overlap', atMs, partition, memberIds: [otherId, memberId] })
        }
      }
    }
  }
}

function isSameSet(a: ReadonlySet<string>, b: ReadonlySet<string> | undefined): boolean {
  return a.size === b?.size && [...a].every((item) => b.has(item))
}

function toKey(topicId: string, partition: number): string {
  return `${topicId}/${partition}`
}

function toRequest({ owned, offset }: CommitOf): {
  topic: string
  topicId: string
  partition: number
  offset: number
  leaderEpoch: number
  metadata: string
} {
  const { topic, topicId, index } = owned
  return { topic, topicId, partition: index, offset, leaderEpoch: 0, metadata: '' }
}

function toError(error: unknown): BrokerError {
  if (error instanceof BrokerError) return error
  throw error
}
