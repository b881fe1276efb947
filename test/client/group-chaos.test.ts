import { describe, expect, it, onTestFinished, vi } from 'vitest'
import {
  type Client,
  connect,
  type Consumer,
  text,
  topic,
  type TopicPartition,
} from '../../src/client/index.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { type FlakyProxy, startFlakyProxy } from '../support/flaky-proxy.ts'
import { type LoopbackBroker, startLoopbackBroker } from '../support/loopback-broker.ts'

const lines = topic('lines', { value: text })
const SESSION_TIMEOUT_MS = 800
const PARTITIONS = 8
const MOST_UNHANDLED = 1000
const EVENTS = 40
const MOST_MEMBERS = 6

/** Sees everything that happens, and notes what must not. */
class Checker {
  readonly faults: string[] = []
  readonly #owners: Map<number, Member> = new Map()
  readonly #handled: Set<string> = new Set()
  readonly #committed: Map<number, number> = new Map()
  sent = 0

  get handled(): number {
    return this.#handled.size
  }

  get missing(): string[] {
    return Array.from({ length: this.sent }, (_, i) => `${i}`).filter(
      (id) => !this.#handled.has(id),
    )
  }

  owned(): number {
    return this.#owners.size
  }

  assigned(member: Member, partitions: readonly TopicPartition[]): void {
    for (const { partition } of partitions) {
      const owner = this.#owners.get(partition)
      if (owner !== undefined) {
        this.faults.push(`${partition} is ${owner.name}'s, and assigned to ${member.name}`)
      }
      this.#owners.set(partition, member)
    }
  }

  gone(member: Member, partitions: readonly TopicPartition[]): void {
    for (const { partition } of partitions) {
      if (this.#owners.get(partition) === member) this.#owners.delete(partition)
    }
  }

  record(member: Member, partition: number, id: string): void {
    if (this.#owners.get(partition) !== member) {
      this.faults.push(`${member.name} is handed ${id} of ${partition}, which it does not own`)
    }
  }

  done(id: string): void {
    this.#handled.add(id)
  }

  sawCommitted(partition: number, offset: number): void {
    const before = this.#committed.get(partition) ?? 0
    if (offset < before) this.faults.push(`${partition} went back from ${before} to ${offset}`)
    this.#committed.set(partition, offset)
  }
}

/** A consumer as a process would have it: a connection of its own, which can break. */
class Member {
  readonly name: string
  readonly proxy: FlakyProxy
  readonly consumer: Consumer<string>
  readonly ended: Promise<void>
  readonly #client: Client
  #isDead = false
  readonly #checker: Checker

  static async start(name: string, url: string, checker: Checker, seed: number): Promise<Member> {
    const proxy = await startFlakyProxy(url)
    const client = await connect({ url: proxy.address, clientId: name })
    return new Member(name, proxy, client, checker, seed)
  }

  private constructor(
    name: string,
    proxy: FlakyProxy,
    client: Client,
    checker: Checker,
    seed: number,
  ) {
    this.name = name
    this.proxy = proxy
    this.#client = client
    this.#checker = checker
    this.consumer = client.consumer(lines, { group: 'g', sessionTimeoutMs: SESSION_TIMEOUT_MS })
    this.consumer.on('assigned', (partitions) => checker.assigned(this, partitions))
    this.consumer.on('revoked', (partitions) => checker.gone(this, partitions))
    this.consumer.on('lost', (partitions) => checker.gone(this, partitions))
    const random = new SeededRandom(seed)
    this.ended = this.consumer.run(
      async ({ partition, value }) => {
        checker.record(this, partition, value ?? '')
        // Some take longer than a commit, so that one which runs ahead of them is found out by a kill.
        const slow = random.chance(0.02) ? 300 : 0
        for (let turns = slow + random.below(4); turns > 0 && !this.#isDead; turns--) {
          await new Promise((resolve) => setImmediate(resolve))
        }
        if (!this.#isDead) checker.done(value ?? '')
      },
      { concurrency: 1 + random.below(8), ordered: random.pick(['partition', 'key', false]) },
    )
  }

  async leave(): Promise<void> {
    await this.#client.close()
    await this.ended
    await this.proxy[Symbol.asyncDispose]()
  }

  /** Nothing that it says is heard any more, and it does nothing any more either. */
  async kill(): Promise<void> {
    this.#isDead = true
    this.proxy.refuse(true)
    this.proxy.cut()
    this.ended.catch(() => undefined) // Ends with an error: it has been killed.
    // What it owns is nobody's from now on; the broker learns by the session's time.
    this.#checker.gone(this, this.consumer.assignment())
    await this.#client.close({ timeoutMs: 0 }).catch(() => undefined) // As above.
    await this.proxy[Symbol.asyncDispose]()
  }
}

async function produce(broker: LoopbackBroker, checker: Checker, stop: AbortSignal): Promise<void> {
  const client = await connect(broker.url)
  const producer = client.producer()
  while (!stop.aborted) {
    // Not so far ahead that handling the rest takes longer than everything that the test is about.
    if (checker.sent - checker.handled > MOST_UNHANDLED) {
      await new Promise((resolve) => setImmediate(resolve))
      continue
    }
    const batch = Array.from({ length: 20 }, () => checker.sent++)
    await Promise.all(
      batch.map((id) =>
        producer.send(lines, { value: `${id}`, key: `k${id % 13}`, partition: id % PARTITIONS }),
      ),
    )
  }
  await client.close()
}

describe.each([1, 2, 3])(
  'members that come, go, die and lose their connections (seed %i)',
  (seed) => {
    it(
      'handle every record, own nothing twice, and take no commit back',
      { timeout: 60_000 },
      async () => {
        const random = new SeededRandom(seed)
        const checker = new Checker()
        const broker = await startLoopbackBroker()
        const admin = await connect(broker.url)
        await admin.admin.createTopic('lines', { partitions: PARTITIONS })
        const members: Member[] = []
        const stop = new AbortController()
        const producing = produce(broker, checker, stop.signal)
        let started = 0
        const join = async (): Promise<void> => {
          const name = `m${++started}`
          members.push(await Member.start(name, broker.url, checker, seed * 1000 + started))
        }
        onTestFinished(async () => {
          stop.abort()
          await producing
          await admin.close()
          await broker[Symbol.asyncDispose]()
        })
        const watch = async (): Promise<void> => {
          for (const { partition, offset } of await admin.admin.groupOffsets('g')) {
            checker.sawCommitted(partition, offset)
          }
        }
        const history: string[] = []
        /** For a test that failed. */
        const explain = async (): Promise<string> => {
          const group = await admin.admin.describeGroup('g', { timeLag: false })
          const names = (partitions: readonly TopicPartition[]): string =>
            partitions.map(({ partition }) => partition).join()
          const states = group.members.map(
            (member) =>
              `${member.memberId.slice(0, 8)} ${member.connected ? 'connected' : `gone for ${member.sinceHeartbeatMs} ms`} ` +
              `owns ${names(member.owned)} wants ${names(member.target)} gives up ${names(member.revoking)}`,
          )
          const views = members.map(
            (member) =>
              `${member.name} has ${names(member.consumer.assignment())} (${member.proxy.open})`,
          )
          const lags = group.partitions.map(({ lag }) => lag).join()
          return [
            `${checker.owned()} owned, ${checker.handled} of ${checker.sent} handled, lags ${lags}, ${group.state}`,
            ...states,
            ...views,
            ...history.slice(-10),
            ...checker.faults,
          ].join('\n')
        }
        /** Everything is owned, and records are handled. */
        const recovered = async (): Promise<void> => {
          const target = checker.handled + 50
          try {
            await vi.waitUntil(
              async () => {
                await watch()
                const { length } = broker.topics.get('lines').partitions
                return checker.owned() === length && checker.handled >= target
              },
              { timeout: SESSION_TIMEOUT_MS + 10_000, interval: 10 },
            )
          } catch (error) {
            throw new Error(`not recovered: ${await explain()}`, { cause: error })
          }
        }
        /**
         * All that it has goes silent at once, as when its network goes: what tells it is its session. Had it nothing but calls that wait, it would find out
         * by HTTP/2's pings, in 40 s.
         */
        const mute = async (member: Member): Promise<void> => {
          await recovered()
          await vi.waitUntil(
            async () => {
              const group = await admin.admin.describeGroup('g')
              const connected = group.members.filter((one) => one.connected)
              return member.proxy.open === 2 && connected.length === members.length
            },
            { timeout: 5000, interval: 10 },
          )
          member.proxy.mute()
        }
        await join()
        await vi.waitUntil(() => checker.owned() > 0, { timeout: 5000, interval: 5 })
        await recovered()

        for (let event = 0; event < EVENTS; event++) {
          const member = random.pick(members)
          const kind = random.pick([
            'join',
            'leave',
            'kill',
            'cut',
            'mute',
            'outage',
            'grow',
          ] as const)
          history.push(`${kind} ${member.name}`)
          if (kind === 'join' || members.length === 1) {
            if (members.length < MOST_MEMBERS) await join()
          } else if (kind === 'leave') {
            members.splice(members.indexOf(member), 1)
            await member.leave()
          } else if (kind === 'kill') {
            members.splice(members.indexOf(member), 1)
            await member.kill()
          } else if (kind === 'cut') member.proxy.cut()
          else if (kind === 'mute') await mute(member)
          else if (kind === 'outage') {
            member.proxy.refuse(true)
            member.proxy.cut()
            if (random.chance(0.5)) {
              // Longer than the session lasts.
              await vi.waitUntil(() => member.consumer.assignment().length === 0, {
                timeout: 5000,
                interval: 5,
              })
            }
            member.proxy.refuse(false)
          } else if (random.chance(0.3)) {
            const { length } = broker.topics.get('lines').partitions
            await admin.admin.addPartitions('lines', length + 1)
          }
          // Sometimes the next comes while the group has not recovered yet.
          if (random.chance(0.6)) await recovered()
        }

        stop.abort()
        await producing
        try {
          await vi.waitUntil(
            async () => {
              await watch()
              return checker.missing.length === 0
            },
            { timeout: 15_000, interval: 20 },
          )
          await vi.waitUntil(async () => (await admin.admin.describeGroup('g')).lag === 0, {
            timeout: 10_000,
            interval: 20,
          })
        } catch (error) {
          throw new Error(`not finished: ${await explain()}`, { cause: error })
        }
        for (const member of members) await member.leave()
        expect(checker.faults).toEqual([])
        expect(
          (await admin.admin.describeGroup('g')).members.filter(({ connected }) => connected),
        ).toEqual([])
      },
    )
  },
)
