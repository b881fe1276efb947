import type * as grpc from '@grpc/grpc-js'
import type { Assignment, Joined, JoinResponse, OffsetCommit } from '../../src/gen/types.ts'
import { CallError, type RawClient, StreamReader } from './raw-client.ts'

/** A Join stream: what comes on it one by one, and how it ends. */
export class JoinStream extends StreamReader<JoinResponse> {
  readonly duplex: grpc.ClientDuplexStream<unknown, unknown>

  constructor(client: RawClient, raw = false) {
    const duplex = client.duplex('Join', raw)
    super(duplex)
    this.duplex = duplex
  }

  say(...messages: object[]): void {
    for (const message of messages) this.duplex.write(message)
  }

  /** Joins, and answers with what the broker says to that. @throws CallError */
  async join(request: object): Promise<Joined> {
    this.say({ join: request })
    const { joined } = await this.next()
    if (joined === undefined || joined === null) throw new Error('the first answer is not joined')
    return joined
  }

  /** The next answer of a kind; others are thrown away. @throws CallError when the stream fails before */
  async nextOf<K extends keyof JoinResponse>(kind: K): Promise<NonNullable<JoinResponse[K]>> {
    for (;;) {
      const { [kind]: found } = await this.next()
      if (found !== undefined && found !== null) return found
    }
  }

  /** Takes assignments and confirms each until one has `partitions` of them. */
  async assigned(partitions: number): Promise<Assignment> {
    for (;;) {
      const assignment = await this.nextOf('assignment')
      this.say({ confirm: { number: assignment.number } })
      if (partitionsOf(assignment).length === partitions) return assignment
    }
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

/** `orders-0`, `orders-1`, … */
export function partitionsOf(assignment: Assignment): string[] {
  return assignment.topics.flatMap(({ topic, partitions }) =>
    partitions.map(({ partition }) => `${topic}-${partition}`),
  )
}

export function aCommit(
  correlationId: number,
  memberEpoch: number,
  ...offsets: Partial<OffsetCommit>[]
): object {
  return { commit: { correlationId, memberEpoch, offsets } }
}
