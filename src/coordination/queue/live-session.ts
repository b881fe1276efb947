import type { GroupTopic, QueueGroup, QueueMember } from './queue-group.ts'
import type { AckFailure, AckItem, WorkListener, WorkSession } from './queue-types.ts'

/** Takes acknowledgements for all topics of a group. */
export interface Settler {
  settle(group: string, items: readonly AckItem[], dead?: number[]): Promise<readonly AckFailure[]>
}

/** One member's session. */
export class LiveSession implements WorkSession {
  readonly memberId: string
  readonly leaseMs: number
  readonly resumed: boolean
  readonly #settler: Settler
  readonly #group: QueueGroup
  readonly #topic: GroupTopic
  readonly #member: QueueMember
  readonly #listener: WorkListener

  constructor(
    settler: Settler,
    group: QueueGroup,
    topic: GroupTopic,
    member: QueueMember,
    listener: WorkListener,
    resumed: boolean,
  ) {
    this.memberId = member.memberId
    this.leaseMs = member.leaseMs
    this.resumed = resumed
    this.#settler = settler
    this.#group = group
    this.#topic = topic
    this.#member = member
    this.#listener = listener
  }

  /** Another stream may have taken the member over: this one says nothing for it any more. */
  get #isOurs(): boolean {
    return this.#member.listener === this.#listener
  }

  get leased(): number {
    return this.#member.acquired
  }

  credit(records: number, bytes: number, replaces = false): void {
    if (this.#isOurs) this.#topic.credit(this.#member, records, bytes, replaces)
  }

  async acknowledge(items: readonly AckItem[], dead?: number[]): Promise<readonly AckFailure[]> {
    this.#member.heardMs = this.#group.clock.monotonicMs()
    return this.#settler.settle(this.#group.id, items, dead)
  }

  async end(): Promise<void> {
    if (this.#isOurs) await this.#topic.dismiss(this.#member)
  }

  detach(): void {
    if (this.#isOurs) this.#topic.detach(this.#member)
  }
}
