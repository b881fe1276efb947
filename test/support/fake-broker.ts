import {
  type sendUnaryData,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type ServerWritableStream,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js'
import { systemClock } from '../../src/common/clock.ts'
import { toBrokerError } from '../../src/common/errors.ts'
import type { ErrorCode } from '../../src/common/errors.ts'
import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import type { FetchRequest, ListOffsetsRequest, MetadataRequest } from '../../src/gen/types.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import type { PartitionLog } from '../../src/log/partition-log.ts'
import { CLUSTER_SERVICE, LOG_SERVICE } from '../../src/wire/definitions.ts'
import { toErrorDetail } from '../../src/wire/error-detail.ts'
import { encodeFetchResponse } from '../../src/wire/fetch-codec.ts'
import {
  decodeProduceRequest,
  encodeProduceResponse,
  type ProduceEnvelope,
  type ProduceResultMessage,
} from '../../src/wire/produce-codec.ts'

/** What the fake does with one produce request. */
export type ProduceAction =
  | { readonly kind: 'append' }
  /** Answers this instead of appending. */
  | { readonly kind: 'refuse'; readonly code: ErrorCode }
  /** Breaks the stream, after appending or before. */
  | { readonly kind: 'break'; readonly append: boolean }
  /** Appends, and answers only when `release` is called. */
  | { readonly kind: 'hold' }

const TOPIC_ID = '00000000-0000-4000-8000-000000000001'

/**
 * A broker of one topic, `lines`, that misbehaves on demand. Appends go to real (memory) logs, so that sequences are checked as the real one
 * checks them; everything else is as little as the client needs.
 */
export class FakeBroker implements AsyncDisposable {
  /** Asked for each produce request, in order of arrival. */
  onProduce: (envelope: ProduceEnvelope, arrival: number) => ProduceAction = () => ({
    kind: 'append',
  })
  /** Messages of one Fetch call before its stream is broken. */
  fetchMessagesPerCall: number = Number.POSITIVE_INFINITY
  fetchCalls = 0
  arrivals = 0
  metadataCalls = 0
  producersMade = 0
  readonly logs: PartitionLog[] = []
  url = ''
  readonly #held: (() => void)[] = []
  #server: Server | undefined
  #port = 0
  readonly #store = new MemoryStore({ clock: systemClock, random: new SeededRandom(3) })

  static async start(partitions = 1): Promise<FakeBroker> {
    const broker = new FakeBroker()
    for (let partition = 0; partition < partitions; partition++) {
      const id = { topic: 'lines', partition, topicId: TOPIC_ID }
      broker.logs.push(await broker.#store.open(id, DEFAULT_LOG_CONFIG))
    }
    await broker.listen()
    return broker
  }

  /** Answers what was held. */
  release(): void {
    for (const answer of this.#held.splice(0)) answer()
  }

  /** Cuts every connection and closes the port. */
  stop(): void {
    this.#server?.forceShutdown()
    this.#server = undefined
  }

  /** Opens the port, the same as before if there was one. */
  async listen(): Promise<void> {
    const server = new Server()
    const implementation: UntypedServiceImplementation = {
      Produce: (call: ServerDuplexStream<Buffer, Buffer>) => this.#produce(call),
      Fetch: (call: ServerWritableStream<FetchRequest, Buffer>) => {
        void this.#fetch(call)
      },
      Append: () => undefined,
      ListOffsets: (
        call: ServerUnaryCall<ListOffsetsRequest, unknown>,
        done: sendUnaryData<unknown>,
      ) => done(null, { offsets: this.#offsets(call.request) }),
      InitProducer: (_call: unknown, done: sendUnaryData<unknown>) =>
        done(null, { producerId: ++this.producersMade, producerEpoch: 0 }),
    }
    server.addService(LOG_SERVICE, implementation)
    server.addService(CLUSTER_SERVICE, {
      Metadata: (call: ServerUnaryCall<MetadataRequest, unknown>, done: sendUnaryData<unknown>) =>
        done(null, this.#metadata(call.request)),
      DescribeBroker: () => undefined,
    })
    this.#port = await new Promise<number>((resolve, reject) => {
      server.bindAsync(
        `127.0.0.1:${this.#port}`,
        ServerCredentials.createInsecure(),
        (error, port) => (error === null ? resolve(port) : reject(error)),
      )
    })
    this.#server = server
    this.url = `127.0.0.1:${this.#port}`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.stop()
    await this.#store.close()
  }

  #metadata(request: MetadataRequest): object {
    this.metadataCalls++
    return {
      clusterId: 'fake',
      mapVersion: 1,
      brokers: [{ brokerId: 0, host: '127.0.0.1', port: this.#port }],
      topics: request.topics.map((topic) => ({
        topic,
        topicId: TOPIC_ID,
        partitions: this.logs.map((_, partition) => ({ partition, leader: 0, leaderEpoch: 1 })),
        error: '',
        errorMessage: '',
        nearest: [],
        maxBatchBytes: 1 << 20,
      })),
    }
  }

  #offsets(request: ListOffsetsRequest): object[] {
    return request.partitions.map((partition) => {
      const log = this.logs[partition] as PartitionLog // Asked for by metadata.
      const { logStartOffset, highWatermark, logEndOffset } = log
      return {
        partition,
        offset: request.at === 'START_AT_EARLIEST' ? logStartOffset : highWatermark,
        logStartOffset,
        highWatermark,
        logEndOffset,
        leaderEpoch: 1,
      }
    })
  }

  #produce(call: ServerDuplexStream<Buffer, Buffer>): void {
    let queue: Promise<void> = Promise.resolve()
    let isBroken = false
    call.on('error', () => undefined)
    call.on('end', () => call.end())
    call.on('data', (bytes: Buffer) => {
      if (isBroken) return
      const envelope = decodeProduceRequest(Buffer.from(bytes))
      const action = this.onProduce(envelope, this.arrivals++)
      if (action.kind === 'break') {
        isBroken = true
        const appended = action.append ? this.#append(envelope) : Promise.resolve()
        queue = queue.then(async () => {
          await appended
          call.emit('error', { code: status.UNAVAILABLE, details: 'broken on purpose' })
          return undefined
        })
        return
      }
      const answer =
        action.kind === 'refuse'
          ? Promise.resolve(refusal(envelope, action.code))
          : this.#append(envelope)
      const held =
        action.kind === 'hold'
          ? new Promise<void>((resolve) => this.#held.push(resolve))
          : Promise.resolve()
      queue = queue.then(async () => {
        await held
        const result = await answer
        if (!isBroken || action.kind !== 'hold') call.write(encodeProduceResponse([result]))
        return undefined
      })
    })
  }

  async #append(envelope: ProduceEnvelope): Promise<ProduceResultMessage> {
    const log = this.logs[envelope.partition ?? 0] as PartitionLog // The client goes by our metadata.
    try {
      const result = await log.append(envelope.batch ?? new Uint8Array(0), envelope.acks)
      return {
        correlationId: envelope.correlationId,
        partition: envelope.partition ?? 0,
        baseOffset: result.baseOffset,
        endOffset: result.endOffset,
        appendTimeMs: result.appendTimeMs,
        duplicate: result.duplicate,
        acks: result.acks,
        leaderEpoch: result.leaderEpoch,
        highWatermark: result.highWatermark,
        error: undefined,
      }
    } catch (error) {
      return refusal(envelope, toBrokerError(error).code)
    }
  }

  async #fetch(call: ServerWritableStream<FetchRequest, Buffer>): Promise<void> {
    this.fetchCalls++
    let left = this.fetchMessagesPerCall
    for (const [index, wanted] of call.request.partitions.entries()) {
      const log = this.logs[wanted.partition] as PartitionLog // The client goes by our metadata.
      let offset = wanted.startAt === 'START_AT_EARLIEST' ? log.logStartOffset : wanted.offset
      const end = Math.min(wanted.endOffset ?? Number.MAX_SAFE_INTEGER, log.highWatermark)
      while (offset < end) {
        const read = await log.read(toOffset(offset), 1)
        if (left-- <= 0) {
          call.emit('error', { code: status.UNAVAILABLE, details: 'broken on purpose' })
          return
        }
        offset = read.nextOffset
        const head = {
          index,
          records: [],
          nextOffset: offset,
          highWatermark: log.highWatermark,
          logStartOffset: log.logStartOffset,
          leaderEpoch: 1,
          end: offset >= end && !call.request.follow,
          error: undefined,
          skippedFrom: 0,
          skippedTo: 0,
        }
        call.write(encodeFetchResponse(head, read.chunks))
      }
    }
    if (!call.request.follow) call.end()
  }
}

function refusal(envelope: ProduceEnvelope, code: ErrorCode): ProduceResultMessage {
  return {
    correlationId: envelope.correlationId,
    partition: envelope.partition ?? 0,
    baseOffset: 0,
    endOffset: 0,
    appendTimeMs: undefined,
    duplicate: false,
    acks: envelope.acks,
    leaderEpoch: 0,
    highWatermark: 0,
    error: toErrorDetail(code, `${code} on purpose`, {}),
  }
}
