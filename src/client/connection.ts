import { type Clock, holdProcess, sleep } from '../common/clock.ts'
import { type ErrorCode, isErrorCode } from '../common/errors.ts'
import type { Random } from '../common/random.ts'
import { MINUTE_MS, SECOND_MS } from '../common/units.ts'
import type { MetadataResponse, TopicMetadata } from '../gen/types.ts'
import type { ClientLogger, ConnectOptions } from './api.ts'
import {
  BrokerChannel,
  type SessionStream,
  type UnaryMethods,
  type WorkStream,
} from './broker-channel.ts'
import { MillraceError, toMillraceError } from './errors.ts'
import { checkNumbers } from './request-check.ts'
import { Backoff } from './retry.ts'

const DEFAULT_PORT = 9292
/** Partitions may have been added: routes older than this are asked for anew (Kafka's metadata.max.age). */
const ROUTE_AGE_MS: number = 5 * MINUTE_MS
const CALL_TIMEOUT_MS: number = 30 * SECOND_MS
/** Of one try of a repeated call: a connection that has gone silent must not use up all the time. */
const TRY_TIMEOUT_MS: number = 10 * SECOND_MS

/** After these errors the route that we know may be wrong. */
export const STALE_ROUTE: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'NOT_LEADER',
  'UNKNOWN_TOPIC',
  'UNKNOWN_TOPIC_ID',
  'UNKNOWN_PARTITION',
])

/** Where the partitions of a topic are served, as of `fetchedMs` (monotonic). */
export interface TopicRoute {
  readonly topic: string
  readonly topicId: string
  readonly maxBatchBytes: number
  /** Broker id by partition. */
  readonly leaders: readonly number[]
  readonly leaderEpochs: readonly number[]
  readonly fetchedMs: number
}

export interface ConnectionOptions {
  readonly targets: readonly string[]
  readonly tls: ConnectOptions['tls']
  readonly clientId: string | undefined
  readonly clock: Clock
  readonly random: Random
  readonly logger: ClientLogger | undefined
}

/**
 * Reads `host:port`, `host`, `[::1]:9292` or `millrace://host:port`.
 * @throws MillraceError INVALID_REQUEST for anything else
 */
export function parseTarget(target: string): string {
  const bare = target
    .trim()
    .replace(/^millrace:\/\//i, '')
    .replace(/\/$/, '')
  const match = /^(\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?$/.exec(bare)
  const port = Number(match?.[2] ?? DEFAULT_PORT)
  if (match?.[1] === undefined || port < 1 || port > 65_535) {
    throw new MillraceError(
      'INVALID_REQUEST',
      `${JSON.stringify(target)} is not a server: write host:port or millrace://host:port`,
      { field: 'url' },
    )
  }
  return `${match[1]}:${port}`
}

/** Knows the brokers and who serves what. Everything that crosses the wire goes through here. */
export class Connection {
  readonly clock: Clock
  readonly random: Random
  readonly logger: ClientLogger | undefined
  readonly #options: ConnectionOptions
  readonly #channels: Map<string, BrokerChannel> = new Map()
  readonly #addresses: Map<number, string> = new Map()
  readonly #routes: Map<string, TopicRoute> = new Map()
  readonly #asking: Map<string, Promise<TopicRoute>> = new Map()
  /** Broker id by group. */
  readonly #coordinators: Map<string, number> = new Map()
  readonly #askingCoordinator: Map<string, Promise<number>> = new Map()
  #target = 0
  #isClosed = false

  constructor(options: ConnectionOptions) {
    this.#options = options
    this.clock = options.clock
    this.random = options.random
    this.logger = options.logger
  }

  /** How this program is named to the broker; may be empty. */
  get clientId(): string {
    return this.#options.clientId ?? ''
  }

  get isClosed(): boolean {
    return this.#isClosed
  }

  /**
   * Asks for the brokers until one answers.
   * @throws MillraceError UNREACHABLE after `timeoutMs`
   */
  async open(timeoutMs: number): Promise<void> {
    const release = holdProcess()
    const endMs = this.clock.monotonicMs() + timeoutMs
    const backoff = new Backoff(this.random)
    try {
      for (;;) {
        const leftMs = Math.max(1, endMs - this.clock.monotonicMs())
        try {
          await this.#askMetadata([], Math.min(leftMs, TRY_TIMEOUT_MS))
          return
        } catch (error) {
          const failure = toMillraceError(error)
          this.#nextTarget()
          const delayMs = backoff.nextDelayMs()
          if (!failure.retryable || this.clock.monotonicMs() + delayMs >= endMs) {
            throw this.#unreachable(failure, timeoutMs)
          }
          await sleep(this.clock, delayMs)
        }
      }
    } finally {
      release()
    }
  }

  /** The channel to the first broker that is known to answer. */
  get home(): BrokerChannel {
    return this.#channel(this.#options.targets[this.#target] ?? `localhost:${DEFAULT_PORT}`)
  }

  /** The channel to a broker by id. */
  leader(brokerId: number): BrokerChannel {
    // A lone broker is the one that answered at the address we were given. The address that it believes to have may be of no use
    // from here: behind a proxy, a container's port or a tunnel.
    if (this.#addresses.size <= 1) return this.home
    const address = this.#addresses.get(brokerId)
    return address === undefined ? this.home : this.#channel(address)
  }

  /** The channels to all brokers that are known. */
  brokers(): readonly BrokerChannel[] {
    if (this.#addresses.size <= 1) return [this.home]
    return [...this.#addresses.values()].map((address) => this.#channel(address))
  }

  /** Opens a stream for a member's session, at the broker that coordinates its group. @throws MillraceError CLOSED */
  openSession(brokerId: number): SessionStream {
    return this.leader(brokerId).join()
  }

  /** Opens a stream for a worker, at the broker that coordinates its group. @throws MillraceError CLOSED */
  openWork(brokerId: number): WorkStream {
    return this.leader(brokerId).work()
  }

  /**
   * The id of the broker that coordinates a group. Asked for once, until {@link forgetCoordinator}. Callers that come while that is under way share
   * the answer.
   * @throws MillraceError INVALID_GROUP_ID, and what {@link call} throws
   */
  getCoordinator(group: string): Promise<number> {
    const known = this.#coordinators.get(group)
    if (known !== undefined) return Promise.resolve(known)
    const asking = this.#askingCoordinator.get(group)
    if (asking !== undefined) return asking
    const answer = this.#fetchCoordinator(group).finally(() =>
      this.#askingCoordinator.delete(group),
    )
    this.#askingCoordinator.set(group, answer)
    return answer
  }

  forgetCoordinator(group: string): void {
    this.#coordinators.delete(group)
  }

  /** What is known of a topic, without asking. Asks behind the scenes when that is old. */
  findRoute(topic: string): TopicRoute | undefined {
    const route = this.#routes.get(topic)
    if (route !== undefined && this.clock.monotonicMs() - route.fetchedMs > ROUTE_AGE_MS) {
      this.refreshRoute(topic).catch((error: unknown) => {
        this.logger?.debug(`metadata of ${topic} could not be refreshed`, { error })
      })
    }
    return route
  }

  /** @throws MillraceError UNKNOWN_TOPIC with the nearest names, and what {@link call} throws */
  async getRoute(topic: string): Promise<TopicRoute> {
    return this.#routes.get(topic) ?? (await this.refreshRoute(topic))
  }

  /** Asks anew who serves `topic`. Callers that come while it is under way share the answer. */
  refreshRoute(topic: string): Promise<TopicRoute> {
    const asking = this.#asking.get(topic)
    if (asking !== undefined) return asking
    const answer = this.#fetchRoute(topic).finally(() => this.#asking.delete(topic))
    this.#asking.set(topic, answer)
    return answer
  }

  forgetRoute(topic: string): void {
    this.#routes.delete(topic)
  }

  /**
   * One call, repeated while that is harmless: `isRead` calls after any failure that may pass, others only when nothing was changed for
   * certain. Gives up after 30 s, and at once on an error `notAgain`. With `group` the call goes to that group's coordinator.
   */
  async call<Name extends keyof UnaryMethods>(
    name: Name,
    request: UnaryMethods[Name]['request'],
    options: {
      readonly isRead: boolean
      readonly channel?: (() => BrokerChannel) | undefined
      readonly group?: string | undefined
      readonly signal?: AbortSignal | undefined
      readonly timeoutMs?: number | undefined
      readonly notAgain?: ErrorCode | undefined
    },
  ): Promise<UnaryMethods[Name]['response']> {
    checkNumbers(request)
    const release = holdProcess()
    const { isRead, signal, group } = options
    const timeoutMs = options.timeoutMs ?? CALL_TIMEOUT_MS
    const endMs = this.clock.monotonicMs() + timeoutMs
    const backoff = new Backoff(this.random)
    try {
      for (;;) {
        this.#checkOpen()
        const leftMs = Math.max(1, endMs - this.clock.monotonicMs())
        const tryMs = isRead ? Math.min(leftMs, TRY_TIMEOUT_MS) : leftMs
        try {
          const channel =
            group === undefined
              ? (options.channel?.() ?? this.home)
              : this.leader(await this.getCoordinator(group))
          return await channel.call(name, request, tryMs, signal)
        } catch (error) {
          const failure = toMillraceError(error)
          if (signal?.aborted === true) throw failure
          this.#checkOpen()
          const isHarmless = (isRead || failure.noSideEffects) && failure.code !== options.notAgain
          const delayMs = Math.max(backoff.nextDelayMs(), retryAfterMs(failure))
          if (!failure.retryable || !isHarmless || this.clock.monotonicMs() + delayMs >= endMs) {
            throw failure
          }
          if (failure.code === 'UNREACHABLE') this.#nextTarget()
          if (group !== undefined) this.forgetCoordinator(group)
          await sleep(this.clock, delayMs, signal)
        }
      }
    } finally {
      release()
    }
  }

  close(): void {
    this.#isClosed = true
    for (const channel of this.#channels.values()) channel.close()
    this.#channels.clear()
  }

  async #fetchRoute(topic: string): Promise<TopicRoute> {
    const answer = await this.call(
      'Metadata',
      { topics: [topic], allTopics: false, groups: [] },
      { isRead: true },
    )
    this.#keepBrokers(answer)
    const found = answer.topics.find((entry) => entry.topic === topic) ?? answer.topics[0]
    if (found === undefined || found.error !== '') {
      this.#routes.delete(topic)
      throw toTopicError(topic, found)
    }
    const route: TopicRoute = {
      topic,
      topicId: found.topicId,
      maxBatchBytes: found.maxBatchBytes,
      leaders: byPartition(found, (partition) => partition.leader),
      leaderEpochs: byPartition(found, (partition) => partition.leaderEpoch),
      fetchedMs: this.clock.monotonicMs(),
    }
    this.#routes.set(topic, route)
    return route
  }

  async #fetchCoordinator(group: string): Promise<number> {
    const answer = await this.call(
      'Metadata',
      { topics: [], allTopics: false, groups: [group] },
      { isRead: true },
    )
    this.#keepBrokers(answer)
    const found = answer.groups.find((entry) => entry.group === group) ?? answer.groups[0]
    if (found === undefined) {
      throw new MillraceError('UNSUPPORTED_FEATURE', 'this broker knows no groups', { group })
    }
    if (found.error !== '') {
      const code = isErrorCode(found.error) ? found.error : 'INTERNAL_ERROR'
      throw new MillraceError(code, found.errorMessage, { group })
    }
    this.#coordinators.set(group, found.coordinator)
    return found.coordinator
  }

  async #askMetadata(topics: string[], timeoutMs: number): Promise<void> {
    const answer = await this.home.call(
      'Metadata',
      { topics, allTopics: false, groups: [] },
      timeoutMs,
    )
    this.#keepBrokers(answer)
  }

  #keepBrokers(answer: MetadataResponse): void {
    this.#addresses.clear()
    for (const { brokerId, host, port } of answer.brokers) {
      this.#addresses.set(brokerId, host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`)
    }
  }

  #channel(address: string): BrokerChannel {
    this.#checkOpen()
    let channel = this.#channels.get(address)
    if (channel === undefined) {
      channel = new BrokerChannel(address, this.#options.tls, this.#options.clientId)
      this.#channels.set(address, channel)
    }
    return channel
  }

  #nextTarget(): void {
    this.#target = (this.#target + 1) % this.#options.targets.length
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new MillraceError('CLOSED', 'the client has been closed')
  }

  #unreachable(failure: MillraceError, timeoutMs: number): MillraceError {
    if (failure.code !== 'UNREACHABLE' && failure.code !== 'REQUEST_TIMEOUT') return failure
    const targets = this.#options.targets.join(', ')
    return new MillraceError(
      'UNREACHABLE',
      `no broker answers at ${targets} (tried for ${timeoutMs} ms: ${failure.message}); ` +
        'start one with "npx millrace serve", or say where it is with MILLRACE_SERVER',
      { address: targets, timeoutMs },
      failure,
    )
  }
}

/** How long the broker asked us to wait, or 0. */
export function retryAfterMs(error: MillraceError): number {
  const value = error.details['retryAfterMs']
  return typeof value === 'number' && value > 0 ? value : 0
}

function byPartition(
  topic: TopicMetadata,
  pick: (partition: TopicMetadata['partitions'][number]) => number,
): number[] {
  const values: number[] = []
  for (const partition of topic.partitions) values[partition.partition] = pick(partition)
  return values
}

function toTopicError(topic: string, found: TopicMetadata | undefined): MillraceError {
  const code = found !== undefined && isErrorCode(found.error) ? found.error : 'UNKNOWN_TOPIC'
  const message = found?.errorMessage ?? ''
  return new MillraceError(code, message === '' ? `there is no topic ${topic}` : message, {
    topic,
    nearest: found?.nearest ?? [],
  })
}
