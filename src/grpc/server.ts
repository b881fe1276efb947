import * as grpc from '@grpc/grpc-js'
import { ReflectionService } from '@grpc/reflection'
import type { Clock } from '../common/clock.ts'
import { BrokerError } from '../common/errors.ts'
import type { Random } from '../common/random.ts'
import type { Groups } from '../coordination/group/group-types.ts'
import type { DeadLetters, Queues, Sends } from '../coordination/queue/queue-types.ts'
import type { Topics } from '../topic/topics.ts'
import { fileDescriptors, HEALTH_SERVICE } from '../wire/definitions.ts'
import { CLUSTER_SERVICE_DEFINITION, clusterService } from './cluster-service.ts'
import { Drain } from './drain.ts'
import type { BrokerIdentity, ServiceEnvironment } from './environment.ts'
import { Budgets } from './flow-control.ts'
import { GROUP_SERVICE_DEFINITION, groupService } from './group-service.ts'
import { ConnectionGuard, SERVER_OPTIONS } from './guard.ts'
import { Health } from './health.ts'
import { LOG_SERVICE_DEFINITION, logService } from './log-service.ts'
import { QUEUE_SERVICE_DEFINITION, queueService } from './queue-service.ts'
import { ErrorMapper, type GrpcLogger } from './status.ts'
import { TOPIC_SERVICE_DEFINITION, topicService } from './topic-service.ts'
import { findHttp2Servers, widenWindows } from './windows.ts'

export interface GrpcServerOptions {
  readonly clock: Clock
  readonly random: Random
  readonly logger: GrpcLogger
  readonly identity: BrokerIdentity
  readonly maxMessageBytes: number
  /** Where clients are sent; undefined: where the server listens. */
  readonly advertise?: { readonly host: string; readonly port: number } | undefined
  readonly freeBytes?: (() => number) | undefined
  /** Leaves grpc-js's HTTP/2 servers alone, as if they could not be found: for the tests of what works then. */
  readonly plainTransport?: boolean | undefined
}

/** What stands behind QueueService. */
export interface QueueParts {
  readonly queues: Queues
  readonly sends: Sends
  readonly deadLetters: DeadLetters
}

/** Services that reflection and health know by name. */
const SERVICE_NAMES: readonly string[] = [
  'millrace.v1.LogService',
  'millrace.v1.TopicService',
  'millrace.v1.ClusterService',
  'millrace.v1.GroupService',
  'millrace.v1.QueueService',
]

/**
 * The gRPC port: all services, health, reflection, windows and guard. It listens before the topics are there and answers LOADING until
 * {@link GrpcServer.serve} is called.
 */
export class GrpcServer {
  readonly health: Health = new Health(SERVICE_NAMES)
  readonly #options: GrpcServerOptions
  readonly #server: grpc.Server
  readonly #drain: Drain = new Drain()
  readonly #guard: ConnectionGuard
  #topics: Topics | undefined
  #groups: Groups | undefined
  #queueParts: QueueParts | undefined
  #address: { readonly host: string; readonly port: number } | undefined

  constructor(options: GrpcServerOptions) {
    this.#options = options
    this.#guard = new ConnectionGuard(options.clock, options.logger)
    this.#server = new grpc.Server(SERVER_OPTIONS)
    const environment = this.#environment()
    this.#server.addService(toGrpc(LOG_SERVICE_DEFINITION), logService(environment))
    this.#server.addService(toGrpc(TOPIC_SERVICE_DEFINITION), topicService(environment))
    this.#server.addService(toGrpc(CLUSTER_SERVICE_DEFINITION), clusterService(environment))
    this.#server.addService(toGrpc(GROUP_SERVICE_DEFINITION), groupService(environment))
    this.#server.addService(toGrpc(QUEUE_SERVICE_DEFINITION), queueService(environment))
    this.#server.addService(toGrpc(HEALTH_SERVICE), this.health.implementation())
    addReflection(this.#server)
  }

  /** Where the server listens. @throws Error before {@link listen} */
  get address(): { readonly host: string; readonly port: number } {
    if (this.#address === undefined) throw new Error('the server does not listen yet')
    return this.#address
  }

  /** Calls and streams that are under way. */
  get activeCalls(): number {
    return this.#drain.active
  }

  /** @throws BrokerError ADDRESS_IN_USE; INVALID_CONFIG when the address is not this machine's or may not be used */
  async listen(host: string, port: number): Promise<void> {
    const { logger } = this.#options
    // grpc-js writes to the console by itself; what it says belongs in our log.
    const quiet = (...words: unknown[]): void =>
      logger.debug({}, `grpc-js: ${words.map(String).join(' ')}`)
    grpc.setLogger({ error: quiet, info: quiet, debug: quiet })
    const target = `${host.includes(':') ? `[${host}]` : host}:${port}`
    const bound = await new Promise<number>((resolve, reject) => {
      this.#server.bindAsync(target, grpc.ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(toListenError(target, error)),
      )
    })
    const found =
      this.#options.plainTransport === true ? [] : findHttp2Servers(this.#server, logger)
    for (const http2Server of found) {
      widenWindows(http2Server)
      this.#guard.attach(http2Server)
    }
    this.#address = { host, port: bound }
  }

  /** From here on calls are served, and health says so. Without `queueParts` QueueService goes on answering LOADING. */
  serve(topics: Topics, groups: Groups, queueParts?: QueueParts): void {
    this.#topics = topics
    this.#groups = groups
    this.#queueParts = queueParts
    this.health.setServing(true)
  }

  /**
   * Refuses new work with BROKER_DRAINING, ends streams that follow, waits up to `timeoutMs` for what is under way, then closes the port and
   * every connection. Resolves to false when calls had to be cut off.
   */
  async stop(timeoutMs: number): Promise<boolean> {
    const { clock } = this.#options
    this.health.close()
    this.#drain.begin()
    const deadlineMs = clock.monotonicMs() + timeoutMs
    let finished = await this.#drain.idle(clock, timeoutMs)
    // Statuses may still be on their way: closing politely waits for them, but not for peers that keep a connection open.
    const leftMs = Math.max(100, deadlineMs - clock.monotonicMs())
    const closed = await new Promise<boolean>((resolve) => {
      const cancel = clock.schedule(leftMs, () => resolve(false))
      this.#server.tryShutdown(() => {
        cancel()
        resolve(true)
      })
    })
    if (!closed) {
      this.#server.forceShutdown()
      this.#guard.cutOff()
    }
    finished &&= closed
    return finished
  }

  #environment(): ServiceEnvironment {
    const { clock, random, logger, identity, maxMessageBytes } = this.#options
    return {
      clock,
      random,
      logger,
      identity,
      maxMessageBytes,
      errors: new ErrorMapper(logger, random),
      drain: this.#drain,
      budgets: new Budgets(),
      topics: () => this.#topics ?? loading(),
      groups: () => this.#groups ?? loading(),
      queues: () => this.#queueParts?.queues ?? loading(),
      sends: () => this.#queueParts?.sends ?? loading(),
      deadLetters: () => this.#queueParts?.deadLetters ?? loading(),
      address: () => this.#options.advertise ?? this.address,
      freeBytes: () => this.#options.freeBytes?.() ?? 0,
      findStream: (headers) => this.#guard.findStream(headers),
    }
  }
}

function loading(): never {
  throw new BrokerError('LOADING', 'the broker is starting: its logs are being opened')
}

function toGrpc(methods: object): grpc.ServiceDefinition {
  return methods as grpc.ServiceDefinition // Made of MethodDefinitions by wire/definitions.ts.
}

function addReflection(server: grpc.Server): void {
  // ReflectionService looks at nothing but the file descriptors of a package definition.
  const files = { schema: { fileDescriptorProtos: fileDescriptors() } }
  const services = [...SERVICE_NAMES, 'grpc.health.v1.Health']
  const definition = files as unknown as ConstructorParameters<typeof ReflectionService>[0]
  new ReflectionService(definition, { services }).addToServer(server)
}

function toListenError(target: string, error: Error): BrokerError {
  const { message } = error
  if (message.includes('EADDRINUSE')) {
    return new BrokerError(
      'ADDRESS_IN_USE',
      `${target} is taken by another program`,
      { listen: target },
      error,
    )
  }
  const code = /\bE[A-Z]{3,}\b/.exec(message)?.[0] ?? message
  return new BrokerError(
    'INVALID_CONFIG',
    `cannot listen on ${target}: ${code}`,
    { listen: target },
    error,
  )
}
