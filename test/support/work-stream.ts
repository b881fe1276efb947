import type * as grpc from '@grpc/grpc-js'
import type {
  AckItemMessage,
  WorkRequestMessage,
  WorkResponseMessage,
} from '../../src/wire/work-codec.ts'
import { CallError, type RawClient, StreamReader } from './raw-client.ts'

type Outgoing = Exclude<WorkRequestMessage, { readonly kind: 'unknown' }>

/** A Work stream: what comes on it one by one, and how it ends. */
export class WorkStream extends StreamReader<WorkResponseMessage> {
  readonly duplex: grpc.ClientDuplexStream<unknown, unknown>

  constructor(client: RawClient, raw = false) {
    const duplex = client.duplex('Work', raw)
    super(duplex)
    this.duplex = duplex
  }

  say(...messages: Outgoing[]): void {
    for (const message of messages) this.duplex.write(message)
  }

  /** Starts, and answers with what the broker says to that. @throws CallError */
  async begin(
    start: Partial<Extract<Outgoing, { kind: 'start' }>['start']> = {},
  ): Promise<NonNullable<WorkResponseMessage['started']>> {
    this.say(aStart(start))
    const { started } = await this.next()
    if (started === undefined) throw new Error('the first answer is not started')
    return started
  }

  /** Why the stream ended, or undefined for OK; what came before is thrown away. */
  async end(): Promise<CallError | undefined> {
    for (;;) {
      try {
        await this.next()
      } catch (error) {
        if (error instanceof CallError) return error
        return undefined
      }
    }
  }

  async reason(): Promise<string> {
    return (await this.end())?.reason ?? 'OK'
  }
}

export function aStart(
  start: Partial<Extract<Outgoing, { kind: 'start' }>['start']> = {},
): Outgoing {
  return {
    kind: 'start',
    start: {
      group: 'workers',
      topic: 'orders',
      memberId: '',
      clientId: '',
      leaseMs: 0,
      settings: [],
      ...start,
    },
  }
}

export function acks(correlationId: number, ...items: Partial<AckItemMessage>[]): Outgoing {
  return { kind: 'acks', correlationId, items: items.map(anAck) }
}

export function anAck(item: Partial<AckItemMessage> = {}): AckItemMessage {
  return {
    token: Buffer.alloc(16),
    first: 0,
    end: 1,
    verdict: 'accept',
    delayMs: undefined,
    error: undefined,
    pauseGroupMs: 0,
    ...item,
  }
}

export function credit(records: number, bytes: number): Outgoing {
  return { kind: 'credit', records, bytes }
}

export const END: Outgoing = { kind: 'end' }
