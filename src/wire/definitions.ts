import type { MethodDefinition } from '@grpc/grpc-js'
import { fromJSON } from '@grpc/proto-loader'
import { FILE_DESCRIPTORS, SCHEMA_JSON } from '../gen/descriptor.ts'
import { decodeFetchResponse } from './fetch-codec.ts'
import {
  decodeProduceResponse,
  decodeProduceResult,
  encodeProduceResult,
  produceRequestParts,
} from './produce-codec.ts'
import { decodeReceiveResponse, decodeWorkResponse, encodeWorkRequest } from './work-codec.ts'

/**
 * The services as grpc-js wants them, on both sides of the wire. Messages of the control calls are proto-loader's (types in gen/types.ts):
 * longs as numbers, enums as names, defaults set. The hot calls are ours (DEPENDENCIES §3.1):
 *
 * | call    | the client writes | the server gets | the server writes            | the client gets          |
 * | Produce | ProduceEnvelope   | Buffer          | Buffer                       | ProduceResultMessage[]   |
 * | Append  | ProduceEnvelope   | Buffer          | ProduceResultMessage         | ProduceResultMessage     |
 * | Fetch   | FetchRequest      | FetchRequest    | Buffer or WireParts          | FetchMessage             |
 * | Work    | WorkRequestMessage| Buffer          | Buffer or WireParts          | WorkResponseMessage      |
 * | Receive | ReceiveRequest    | ReceiveRequest  | Buffer or WireParts          | ReceiveResponseMessage   |
 *
 * The server gets bytes because a deserializer that throws would end the call with an error that is not ours.
 *
 * The small messages of Join stay proto-loader's: a commit of one partition and its answer cost 2.1 µs together, written and read (Node 20).
 */
type AnyMethod = MethodDefinition<unknown, unknown>
export type ServiceMethods = Readonly<Record<string, AnyMethod>>

const schema = fromJSON(JSON.parse(SCHEMA_JSON) as Parameters<typeof fromJSON>[0], {
  longs: Number,
  enums: String,
  defaults: true,
})

function service(name: string): Record<string, AnyMethod> {
  // proto-loader's table has services, messages and enums in one; these names are services of proto/.
  return { ...(schema[name] as unknown as Record<string, AnyMethod>) }
}

function replace(
  methods: Record<string, AnyMethod>,
  name: string,
  change: Partial<AnyMethod>,
): void {
  const method = methods[name]
  if (method === undefined) throw new Error(`proto/ has no method ${name}`)
  methods[name] = { ...method, ...change }
}

const same = (bytes: unknown): Buffer => bytes as Buffer // By the table above. WireParts behave as grpc-js needs a Buffer to.

function logService(): ServiceMethods {
  const methods = service('millrace.v1.LogService')
  replace(methods, 'Produce', {
    requestSerialize: produceRequestParts as unknown as AnyMethod['requestSerialize'],
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: decodeProduceResponse,
  })
  replace(methods, 'Append', {
    requestSerialize: produceRequestParts as unknown as AnyMethod['requestSerialize'],
    requestDeserialize: same,
    responseSerialize: encodeProduceResult as AnyMethod['responseSerialize'],
    responseDeserialize: decodeProduceResult,
  })
  replace(methods, 'Fetch', { responseSerialize: same, responseDeserialize: decodeFetchResponse })
  return methods
}

function queueService(): ServiceMethods {
  const methods = service('millrace.v1.QueueService')
  replace(methods, 'Work', {
    requestSerialize: encodeWorkRequest as AnyMethod['requestSerialize'],
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: decodeWorkResponse,
  })
  replace(methods, 'Receive', {
    responseSerialize: same,
    responseDeserialize: decodeReceiveResponse,
  })
  return methods
}

export const LOG_SERVICE: ServiceMethods = logService()
export const TOPIC_SERVICE: ServiceMethods = service('millrace.v1.TopicService')
export const CLUSTER_SERVICE: ServiceMethods = service('millrace.v1.ClusterService')
export const GROUP_SERVICE: ServiceMethods = service('millrace.v1.GroupService')
export const QUEUE_SERVICE: ServiceMethods = queueService()
export const HEALTH_SERVICE: ServiceMethods = service('grpc.health.v1.Health')

/** proto-loader's own codecs of the services with hand-written ones: the reference that tests hold these against. */
export const PLAIN_LOG_SERVICE: ServiceMethods = service('millrace.v1.LogService')
export const PLAIN_QUEUE_SERVICE: ServiceMethods = service('millrace.v1.QueueService')

/** Each file of proto/ as an encoded FileDescriptorProto, names as written: what server reflection answers. */
export function fileDescriptors(): Buffer[] {
  return FILE_DESCRIPTORS.map((text) => Buffer.from(text, 'base64'))
}
