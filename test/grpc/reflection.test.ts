import * as grpc from '@grpc/grpc-js'
import { loadFileDescriptorSetFromBuffer, type ServiceDefinition } from '@grpc/proto-loader'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Broker } from '../../src/server/broker.ts'
import { startTestBroker } from '../support/test-broker.ts'

/**
 * A client that knows nothing of our schema: it asks the server for it, as grpcurl does, builds its codecs from the answer and calls by name.
 * The reflection messages are small enough to be written and read by hand here.
 */
class ReflectionClient {
  readonly #client: grpc.Client

  constructor(address: string) {
    this.#client = new grpc.Client(address, grpc.credentials.createInsecure())
  }

  close(): void {
    this.#client.close()
  }

  /** One request of ServerReflectionInfo: field `field` with a text. Answers the raw response. */
  #ask(field: number, text: string): Promise<Buffer> {
    const same = (bytes: Buffer): Buffer => bytes
    const path = '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo'
    const call = this.#client.makeBidiStreamRequest(path, same, same)
    const value = Buffer.from(text)
    call.end(Buffer.concat([Buffer.from([field * 8 + 2, value.length]), value]))
    return new Promise((resolve, reject) => {
      call.on('data', resolve)
      call.on('error', reject)
    })
  }

  async listServices(): Promise<string[]> {
    const answer = await this.#ask(7, '*')
    const list = fieldsOf(answer).filter(([field]) => field === 6)
    return list
      .flatMap(([, bytes]) => fieldsOf(bytes))
      .flatMap(([, service]) => fieldsOf(service))
      .map(([, name]) => name.toString())
  }

  /** The files that declare `symbol` and what it needs, as a FileDescriptorSet. */
  async describe(symbol: string): Promise<Record<string, unknown>> {
    const answer = await this.#ask(4, symbol)
    const [found] = fieldsOf(answer).filter(([field]) => field === 4)
    if (found === undefined) throw new Error(`${symbol} is not in the schema`)
    const files = fieldsOf(found[1]).map(([, file]) => file)
    const set = Buffer.concat(
      files.flatMap((file) => [Buffer.from([0x0a]), varint(file.length), file]),
    )
    return loadFileDescriptorSetFromBuffer(set, {
      longs: Number,
      enums: String,
      defaults: true,
      keepCase: true,
    })
  }

  async call(service: string, name: string, request: object): Promise<Record<string, unknown>[]> {
    const schema = await this.describe(service)
    const method = (schema[service] as ServiceDefinition)[name]
    if (method === undefined) throw new Error(`no ${name}`)
    const { path, requestSerialize, responseDeserialize } = method
    const answers: Record<string, unknown>[] = []
    // A server stream and a unary call look the same from here: one request, then answers until the end.
    const call = this.#client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
    )
    return new Promise((resolve, reject) => {
      call.on('data', (answer: Record<string, unknown>) => answers.push(answer))
      call.on('end', () => resolve(answers))
      call.on('error', reject)
    })
  }
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  for (let rest = value; ; rest >>>= 7) {
    bytes.push(rest < 128 ? rest : (rest & 127) | 128)
    if (rest < 128) return Buffer.from(bytes)
  }
}

/** The length-delimited fields of a message: number and bytes. */
function fieldsOf(bytes: Buffer): [number, Buffer][] {
  const fields: [number, Buffer][] = []
  let at = 0
  const number = (): number => {
    let value = 0
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++] ?? 0
      value += (byte & 127) * 2 ** shift
      if (byte < 128) return value
    }
  }
  while (at < bytes.length) {
    const tag = number()
    const length = number()
    if (tag % 8 !== 2) continue
    fields.push([Math.floor(tag / 8), bytes.subarray(at, at + length)])
    at += length
  }
  return fields
}

describe('by reflection alone', () => {
  let broker: Broker
  let client: ReflectionClient

  beforeEach(async () => {
    broker = (await startTestBroker()).broker
    client = new ReflectionClient(broker.address)
  })

  afterEach(async () => {
    client.close()
    await broker.stop()
  })

  it('a client finds the services', async () => {
    expect((await client.listServices()).sort()).toEqual([
      'grpc.health.v1.Health',
      'millrace.v1.ClusterService',
      'millrace.v1.GroupService',
      'millrace.v1.LogService',
      'millrace.v1.QueueService',
      'millrace.v1.TopicService',
    ])
  })

  it('a client learns the calls of queues, streams among them', async () => {
    const schema = await client.describe('millrace.v1.QueueService')
    const service = schema['millrace.v1.QueueService'] as ServiceDefinition
    expect(service['Work']).toMatchObject({ requestStream: true, responseStream: true })
    expect(service['Receive']).toMatchObject({ requestStream: false, responseStream: false })
    expect(Object.keys(service)).toContain('StartRedrive')
  })

  it('a client appends plain records and fetches them, with the field names of proto/', async () => {
    await client.call('millrace.v1.TopicService', 'CreateTopic', { topic: 'orders', partitions: 1 })
    const [appended] = await client.call('millrace.v1.LogService', 'Append', {
      topic: 'orders',
      records: [
        { key: Buffer.from('k'), value: Buffer.from('hello'), timestamp_ms: 5 },
        { headers: [{ key: 'h', value: Buffer.from('v') }] },
      ],
    })
    expect(appended).toMatchObject({ base_offset: 0, end_offset: 2, acks: 'ACKS_DURABLE' })
    const messages = await client.call('millrace.v1.LogService', 'Fetch', {
      partitions: [{ topic: 'orders', start_at: 'START_AT_EARLIEST' }],
      plain_records: true,
    })
    const records = messages.flatMap((message) => message['records'] as Record<string, unknown>[])
    expect(records[0]).toMatchObject({ offset: 0, timestamp_ms: 5, value: Buffer.from('hello') })
    expect(records[1]).toMatchObject({
      offset: 1,
      headers: [{ key: 'h', value: Buffer.from('v') }],
    })
    expect(records[1]).not.toHaveProperty('value')
    expect(messages.at(-1)).toMatchObject({ end: true, next_offset: 2 })
  })

  it('a client asks for health', async () => {
    const answers = await client.call('grpc.health.v1.Health', 'Check', {})
    expect(answers).toEqual([{ status: 'SERVING' }])
  })
})
