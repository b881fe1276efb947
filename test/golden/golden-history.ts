import { toOffset } from '../../src/common/offset.ts'
import type { LogConfig } from '../../src/log/log-config.ts'
import type { LogStore, PartitionId, PartitionLog } from '../../src/log/partition-log.ts'
import { BATCH_TIME_MS, aBatch } from '../support/batches.ts'
import { aLogConfig } from '../support/disk-harness.ts'

/** A record as a golden folder has to give it back, for ever. */
export interface GoldenRecord {
  readonly offset: number
  readonly timestampMs: number
  readonly key: string | undefined
  readonly value: string | undefined
  readonly headers: readonly { readonly key: string; readonly value: string | undefined }[]
}

export interface GoldenLog {
  readonly id: PartitionId
  readonly logStartOffset: number
  readonly records: readonly GoldenRecord[]
}

export const GOLDEN_CONFIG: LogConfig = aLogConfig({
  segmentBytes: 700,
  indexIntervalBytes: 200,
  deleteDelayMs: 0,
})

const TOPIC_ID = '5e6d1c3a-7b0f-4d55-8f5e-0a1b2c3d4e5f'

export function goldenId(partition: number): PartitionId {
  return { topic: 'golden', partition, topicId: TOPIC_ID }
}

/** Appends of every kind to two partitions. Remembers what has to be there. */
export class GoldenHistory {
  readonly #records: GoldenRecord[][] = [[], []]
  readonly #logStarts = [0, 0]
  #sequence = 0

  get logs(): GoldenLog[] {
    return this.#records.map((records, partition) => ({
      id: goldenId(partition),
      logStartOffset: this.#logStarts[partition] ?? 0,
      records: records.filter(({ offset }) => offset >= (this.#logStarts[partition] ?? 0)),
    }))
  }

  async open(store: LogStore): Promise<PartitionLog[]> {
    const logs: PartitionLog[] = []
    for (const partition of [0, 1]) logs.push(await store.open(goldenId(partition), GOLDEN_CONFIG))
    await store.ready()
    return logs
  }

  async append(log: PartitionLog, partition: number, batches: number): Promise<void> {
    for (let i = 0; i < batches; i++) {
      const base = log.logEndOffset
      const compression = (['none', 'gzip', 'lz4'] as const)[base % 3] ?? 'none'
      const count = 1 + (base % 4)
      const key = base % 2 === 0 ? `key-${base}` : undefined
      const values = Array.from({ length: count }, (_, n) =>
        (base + n) % 7 === 6 ? undefined : `value ${base + n} ${'~'.repeat((base + n) % 30)} é`,
      )
      const timestampsMs = values.map((_, n) => BATCH_TIME_MS + (base + n) * 1000 + (n % 2) * 300)
      const headers = base % 5 === 0 ? [{ key: 'trace', value: Buffer.from(`t${base}`) }] : []
      const producer =
        partition === 0 ? { producer: { id: 4711, epoch: 1, sequence: this.#sequence } } : {}
      const shape = { values, timestampsMs, compression, headers, ...producer }
      await log.append(aBatch(key === undefined ? shape : { ...shape, key }), 'durable')
      if (partition === 0) this.#sequence += count
      this.#records[partition]?.push(
        ...values.map((value, n) => ({
          offset: base + n,
          timestampMs: timestampsMs[n] ?? 0,
          key,
          value,
          headers: headers.map(({ key: name, value: bytes }) => ({
            key: name,
            value: bytes.toString(),
          })),
        })),
      )
    }
  }

  async moveLogStart(log: PartitionLog, partition: number, to: number): Promise<void> {
    await log.advanceLogStart(toOffset(to))
    await log.applyRetention()
    this.#logStarts[partition] = to
  }
}
