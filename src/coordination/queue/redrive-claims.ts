import type { Partition } from '../../topic/partition.ts'

/** The letters that somebody is about to settle: nobody else touches these. In memory alone; what a task has on its way is claimed again after a start. */
export class LetterClaims {
  readonly #claimed = new Map<string, Set<number>>()

  has(partition: Partition, offset: number): boolean {
    return this.#claimed.get(keyOf(partition.topicId, partition.index))?.has(offset) === true
  }

  claim(topicId: string, partition: number, offset: number): void {
    const key = keyOf(topicId, partition)
    const claimed = this.#claimed.get(key)
    if (claimed === undefined) this.#claimed.set(key, new Set([offset]))
    else claimed.add(offset)
  }

  release(topicId: string, partition: number, offset: number): void {
    const key = keyOf(topicId, partition)
    const claimed = this.#claimed.get(key)
    claimed?.delete(offset)
    if (claimed?.size === 0) this.#claimed.delete(key)
  }
}

function keyOf(topicId: string, partition: number): string {
  return `${topicId}/${partition}`
}
