import type { TopicPartitions } from './assignor.ts'
import type { MemberRecord } from './group-events.ts'
import type { MemberListener } from './group-types.ts'
import { isSamePartitions } from './partition-set.ts'

/** What one stream of a member has been told, and has still to confirm. A member that comes back has a new one. */
export class MemberStream {
  readonly listener: MemberListener
  /** Assignments go out only when the member has been told that it is one. */
  isOpen = false
  #number = 0
  #told: TopicPartitions | undefined
  /** Partitions that the member owns and has been told to give up: with the number of the first assignment that left them out. */
  readonly #excluded = new Map<string, Map<number, number>>()

  constructor(listener: MemberListener) {
    this.listener = listener
  }

  get isGivingUp(): boolean {
    return this.#excluded.size > 0
  }

  /**
   * What the member is to be told, when that is something new: all that it owns and is meant to have, less what it has been told to give up and
   * has not confirmed. A partition that has been left out once does not come back before that.
   */
  takeNext(member: MemberRecord): { number: number; partitions: TopicPartitions } | undefined {
    const partitions = new Map<string, readonly number[]>()
    for (const [topicId, wanted] of member.target) {
      const had = member.owned.get(topicId)
      if (had === undefined) continue
      const excluded = this.#excluded.get(topicId)
      const some = wanted.filter((p) => had.has(p) && excluded?.has(p) !== true)
      if (some.length > 0) partitions.set(topicId, some)
    }
    if (this.#told !== undefined && isSamePartitions(this.#told, partitions)) return undefined
    this.#told = partitions
    const number = ++this.#number
    for (const [topicId, had] of member.owned) {
      const kept = new Set(partitions.get(topicId))
      if (kept.size === had.size) continue
      let excluded = this.#excluded.get(topicId)
      for (const partition of had.keys()) {
        if (kept.has(partition) || excluded?.has(partition) === true) continue
        if (excluded === undefined)
          this.#excluded.set(topicId, (excluded = new Map<number, number>()))
        excluded.set(partition, number)
      }
    }
    return { number, partitions }
  }

  /** The member has confirmed assignment `number`: what it has given up by that, or undefined when that is nothing. */
  takeConfirmed(number: number): ((topicId: string, partition: number) => boolean) | undefined {
    if (number > this.#number) return undefined
    const released = new Map<string, Set<number>>()
    for (const [topicId, excluded] of this.#excluded) {
      const some = new Set<number>()
      for (const [partition, since] of excluded) {
        if (since > number) continue
        some.add(partition)
        excluded.delete(partition)
      }
      if (excluded.size === 0) this.#excluded.delete(topicId)
      if (some.size > 0) released.set(topicId, some)
    }
    if (released.size === 0) return undefined
    return (topicId, partition) => released.get(topicId)?.has(partition) === true
  }
}
