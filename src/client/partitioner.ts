import type { Random } from '../common/random.ts'
import { partitionForKey } from '../wire/murmur2.ts'
import type { Partitioner, ProducerOptions } from './api.ts'
import { MillraceError } from './errors.ts'

/**
 * Chooses the partitions of one topic. Keyless records stick to one partition until its batch goes (`batchSealed`), then move to another:
 * full batches at high rates, an even spread at low ones (KIP-480).
 */
export class PartitionChooser {
  readonly #kind: 'murmur2' | 'sticky' | 'round-robin' | Partitioner
  readonly #random: Random
  #sticky = -1
  #next = 0

  constructor(kind: ProducerOptions['partitioner'], random: Random) {
    this.#kind = kind ?? 'murmur2'
    this.#random = random
  }

  /** True when only the program knows how keys choose: the broker's rule is Kafka's. */
  get isCustom(): boolean {
    return typeof this.#kind === 'function'
  }

  /** True when {@link choose} looks at the key, which must then be encoded before it. */
  needsKey(partitions: number): boolean {
    if (typeof this.#kind === 'function') return true
    return this.#kind === 'murmur2' && partitions > 1
  }

  /**
   * An integer in [0, partitions).
   * @throws MillraceError INVALID_PARTITION when the user's own function answers anything else
   */
  choose(key: Uint8Array | undefined, partitions: number): number {
    if (partitions === 1 && typeof this.#kind !== 'function') return 0
    if (this.#kind === 'round-robin') {
      if (this.#next >= partitions) this.#next = 0
      return this.#next++
    }
    if (typeof this.#kind === 'function') return this.#askUser(this.#kind, key, partitions)
    if (this.#kind === 'murmur2' && key !== undefined) return partitionForKey(key, partitions)
    if (this.#sticky < 0 || this.#sticky >= partitions) this.#sticky = this.#draw(partitions)
    return this.#sticky
  }

  /** A batch of `partition` is on its way: keyless records move on, when it was theirs. */
  batchSealed(partition: number, partitions: number): void {
    if (partition !== this.#sticky || partitions < 2) return
    // One of the others, each as likely.
    const drawn = this.#draw(partitions - 1)
    this.#sticky = drawn >= partition ? drawn + 1 : drawn
  }

  #draw(bound: number): number {
    return Math.floor((this.#random.uint32() / 2 ** 32) * bound)
  }

  #askUser(ask: Partitioner, key: Uint8Array | undefined, partitions: number): number {
    const partition = ask(key, partitions)
    if (Number.isInteger(partition) && partition >= 0 && partition < partitions) return partition
    throw new MillraceError(
      'INVALID_PARTITION',
      `the partitioner answered ${partition}, which is not an integer in [0, ${partitions})`,
      { actual: partition, limit: partitions },
    )
  }
}
