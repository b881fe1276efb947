import { invariant } from '../../common/assert.ts'
import type { DelayHeap } from './delay-heap.ts'
import type { DelayTarget } from './delay-record.ts'
import type { Offset } from '../../common/offset.ts'

/** Appended or not, that is not known: to be looked for before anything else goes there. */
export interface Unsettled {
  /** Of the intent that was written before. */
  readonly key: Uint8Array
  readonly end: Offset
  readonly records: readonly { readonly offset: Offset; readonly dueMs: number }[]
}

/** A place with waiting records. */
export interface LiveTarget extends DelayTarget {
  /** Its waiting records, those that are on their way included. */
  count: number
  /** Times in a row that nothing could be appended there. */
  failures: number
  /** On the monotonic clock: not before. */
  retryAtMs: number
  /** What has become due meanwhile. */
  stuck: DelayHeap | undefined
  readonly unsettled: Unsettled[]
}

/** The places that delayed records wait for, numbered, with how many wait for each: all counts are exact and cost nothing. */
export class DelayTargets {
  readonly #numbers = new Map<string, number>()
  readonly #targets: (LiveTarget | undefined)[] = []
  readonly #free: number[] = []
  readonly #perTopic = new Map<string, number>()
  #total = 0

  get total(): number {
    return this.#total
  }

  /** By the topic's name, whichever of that name they are for. */
  countOf(topic: string): number {
    return this.#perTopic.get(topic) ?? 0
  }

  get(number: number): LiveTarget {
    const target = this.#targets[number]
    invariant(target !== undefined, 'a record that waits has a target')
    return target
  }

  numberOf(topicId: string, partition: number): number | undefined {
    return this.#numbers.get(keyOf(topicId, partition))
  }

  /** Those of one topic, by name; all when it is empty. */
  numbersOf(topic: string): ReadonlySet<number> {
    const found = new Set<number>()
    for (const [number, target] of this.#targets.entries()) {
      if (target !== undefined && (topic === '' || target.topic === topic)) found.add(number)
    }
    return found
  }

  /** Counts one more that waits; the number of its target, good for as long as one waits. */
  added(target: DelayTarget): number {
    const key = keyOf(target.topicId, target.partition)
    let number = this.#numbers.get(key)
    if (number === undefined) {
      number = this.#free.pop() ?? this.#targets.length
      this.#numbers.set(key, number)
      const { topic, topicId, partition } = target
      this.#targets[number] = {
        topic,
        topicId,
        partition,
        count: 0,
        failures: 0,
        retryAtMs: 0,
        stuck: undefined,
        unsettled: [],
      }
    }
    this.get(number).count++
    this.#total++
    this.#perTopic.set(target.topic, this.countOf(target.topic) + 1)
    return number
  }

  /** One that waited has been appended, cancelled or dropped. */
  removed(number: number): void {
    const target = this.get(number)
    this.#total--
    const left = this.countOf(target.topic) - 1
    if (left === 0) this.#perTopic.delete(target.topic)
    else this.#perTopic.set(target.topic, left)
    if (--target.count > 0) return
    this.#numbers.delete(keyOf(target.topicId, target.partition))
    this.#targets[number] = undefined
    this.#free.push(number)
  }
}

function keyOf(topicId: string, partition: number): string {
  return `${topicId}/${partition}`
}
