import { expect } from 'vitest'
import type { DiskOptions } from '../../src/log/disk/disk-environment.ts'
import type { LogConfig } from '../../src/log/log-config.ts'
import type { CompactionReport, PartitionLog } from '../../src/log/partition-log.ts'
import { aBatch } from './batches.ts'
import { DiskBroker, readOver } from './disk-broker.ts'
import { DATA } from './disk-harness.ts'
import { settle } from './fake-clock.ts'

export const SMALL: Partial<LogConfig> = {
  compact: true,
  segmentBytes: 400,
  indexIntervalBytes: 100,
  deleteDelayMs: 0,
}

export async function aBroker(
  config: Partial<LogConfig> = {},
  options: Partial<DiskOptions> = {},
): Promise<DiskBroker> {
  return await DiskBroker.started({ config: { ...SMALL, ...config }, options })
}

/** `count` records over `keys` keys, each in a batch of its own, or three. Their values say their offsets. */
export async function fill(log: PartitionLog, count: number, keys = 4): Promise<void> {
  while (count > 0) {
    const size = count % 2 === 0 ? 1 : Math.min(3, count)
    const first = log.logEndOffset
    const offsets = Array.from({ length: size }, (_, i) => first + i)
    await log.append(
      aBatch({
        keys: offsets.map((offset) => `k${(offset * 7) % keys}`),
        values: offsets.map((offset) => `v${offset}`),
      }),
      'durable',
    )
    count -= size
  }
}

/** Waits for a round, over the rests that it takes. */
export async function compact(broker: DiskBroker): Promise<CompactionReport> {
  return await over(broker, broker.log.compact())
}

export async function over<T>(broker: DiskBroker, promise: Promise<T>): Promise<T> {
  const state = { isDone: false }
  const mark = (): boolean => (state.isDone = true)
  promise.then(mark, mark)
  await settle()
  while (!state.isDone) await broker.clock.advance(100)
  return await promise
}

/** Every key of the log has its newest record, and what else is found stands where it was written. */
export async function expectLatest(log: PartitionLog, keys = 4): Promise<void> {
  const { values, holes } = await readOver(log)
  expect(holes).toEqual([])
  for (const [offset, value] of values) expect(value).toBe(`v${offset}`)
  const end = log.highWatermark
  for (let offset = Math.max(0, end - keys); offset < end; offset++) {
    expect(values.get(offset)).toBe(`v${offset}`)
  }
}

export function logNames(broker: DiskBroker): Promise<string[]> {
  return broker.fs
    .list(`${DATA}/orders-0`)
    .then((names) => names.filter((name) => /\.log(\.tmp)?$|\.swap$/.test(name)).sort())
}
