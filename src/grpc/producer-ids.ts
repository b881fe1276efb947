import { invariant } from '../common/assert.ts'
import { BrokerError } from '../common/errors.ts'

const IDS_PER_INCARNATION = 2 ** 31
const LAST_EPOCH = 32_767

/**
 * Producer ids without I/O: incarnation · 2^31 + a counter. The incarnation is on the disk before the broker takes any work and never
 * comes again, so no id does. 2^22 incarnations fit below 2^53.
 */
export class ProducerIds {
  readonly #incarnation: number
  #count = 0

  constructor(incarnation: number) {
    invariant(
      Number.isInteger(incarnation) && incarnation >= 1 && incarnation < 2 ** 22,
      'an incarnation is from 1 to 2^22 - 1',
    )
    this.#incarnation = incarnation
  }

  /**
   * A new id for `producerId` 0, else the same id with the next epoch; after the last epoch, a new id.
   * @throws BrokerError UNKNOWN_PRODUCER for an id that no broker has given out
   */
  init(producerId: number, producerEpoch: number): { producerId: number; producerEpoch: number } {
    if (producerId === 0) return { producerId: this.#next(), producerEpoch: 0 }
    const known =
      Number.isSafeInteger(producerId) &&
      producerId >= IDS_PER_INCARNATION &&
      (producerId < this.#incarnation * IDS_PER_INCARNATION ||
        producerId < this.#incarnation * IDS_PER_INCARNATION + this.#count)
    if (!known || producerEpoch < 0 || producerEpoch > LAST_EPOCH) {
      throw new BrokerError(
        'UNKNOWN_PRODUCER',
        `producer ${producerId} with epoch ${producerEpoch} is none that was given out; ask for a new one with producer_id 0`,
        { producerId, producerEpoch },
      )
    }
    if (producerEpoch === LAST_EPOCH) return { producerId: this.#next(), producerEpoch: 0 }
    return { producerId, producerEpoch: producerEpoch + 1 }
  }

  #next(): number {
    invariant(this.#count < IDS_PER_INCARNATION, 'an incarnation has 2^31 producer ids')
    return this.#incarnation * IDS_PER_INCARNATION + this.#count++
  }
}
