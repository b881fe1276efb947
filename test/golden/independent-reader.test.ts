import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { NodeFileSystem } from '../../src/fs/node-file-system.ts'
import type { DiskStore } from '../../src/log/disk/disk-store.ts'
import { readOver } from '../support/disk-broker.ts'
import { aBatch, BATCH_TIME_MS, recordsOf } from '../support/batches.ts'
import { aLogConfig, openDiskStore } from '../support/disk-harness.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { GoldenHistory } from './golden-history.ts'
import { crcOf, readDataFolder } from './independent-reader.ts'

let folder: string
let clock: FakeClock

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'millrace-format-'))
  clock = new FakeClock()
})

afterEach(async () => {
  await rm(folder, { recursive: true })
})

function open(): Promise<DiskStore> {
  return openDiskStore({
    fs: new NodeFileSystem(),
    clock,
    directory: folder,
    options: { cacheBytes: 0 },
  })
}

describe('a reader that was written from segments/README.md alone', () => {
  it('knows the check value of the checksum', () => {
    expect(crcOf(Buffer.from('123456789'))).toBe(0xe3069283)
  })

  it('agrees with the log about every record, index entry, seal and checkpoint', async () => {
    const history = new GoldenHistory()
    let store = await open()
    let logs = await history.open(store)
    for (let n = 0; n < 8; n++) {
      for (const [partition, log] of logs.entries()) await history.append(log, partition, 3)
    }
    await store.close()
    store = await open()
    logs = await history.open(store)
    for (const [partition, log] of logs.entries()) await history.append(log, partition, 5)
    const [first] = logs
    if (first !== undefined) await history.moveLogStart(first, 0, 17)
    const seen = await Promise.all(logs.map((log) => readOver(log)))
    await store.close()

    const read = readDataFolder(folder)
    expect(read).toMatchObject({ clusterId: store.clusterId, incarnation: 2, isClean: true })
    expect(read.partitions).toHaveLength(2)
    for (const [i, partition] of read.partitions.entries()) {
      const expected = history.logs[i]
      expect(partition).toMatchObject({ ...expected?.id })
      expect(partition.logStartOffset).toBe(expected?.logStartOffset)
      expect(partition.endOffset).toBe(logs[i]?.highWatermark)
      expect(partition.records).toEqual(expected?.records)
      expect(new Map(partition.records.map((one) => [one.offset, one.value]))).toEqual(
        seen[i]?.values,
      )
      expect(partition.checked.seals).toBeGreaterThan(3)
      expect(partition.checked.index).toBeGreaterThan(5)
      expect(partition.checked.timeindex).toBeGreaterThan(5)
      expect(partition.checked.snapshots).toBeGreaterThan(0)
    }
    expect(read.partitions[0]?.lastSequences.get(4711)).toBeGreaterThan(50)
  })

  it('agrees about a log that has been compacted', async () => {
    const id = { topic: 'golden', partition: 7, topicId: '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405161' }
    const config = aLogConfig({ compact: true, segmentBytes: 900, indexIntervalBytes: 200 })
    let store = await open()
    let log = await store.open(id, config)
    for (let n = 0; n < 60; n++) {
      const keys = [`k${n % 7}`, `k${(n * 3) % 11}`, `k${n % 2}`]
      const values = [`v${n}`, n % 5 === 0 ? undefined : `w${n}`, `x${n}`]
      const compression = (['none', 'lz4', 'gzip'] as const)[n % 3] ?? 'none'
      const timestampsMs = [0, 5, 3].map((ms) => BATCH_TIME_MS + n * 4 + ms)
      const producer = { id: 4711 + (n % 2), sequence: Math.floor(n / 2) * 3 }
      const batch = aBatch({ keys, values, compression, timestampsMs, producer })
      await log.append(batch, 'durable')
      if (n === 30) await log.compact()
    }
    await log.compact()
    await store.close()
    store = await open()
    log = await store.open(id, config)
    const chunks: Uint8Array[] = []
    for (let from = log.logStartOffset; from < log.highWatermark;) {
      const got = await log.read(from, 500)
      chunks.push(...got.chunks)
      from = got.nextOffset
    }
    await store.close()
    const [partition] = readDataFolder(folder).partitions
    const found = partition?.records ?? []
    expect(found.map(({ offset, value, timestampMs }) => ({ offset, value, timestampMs }))).toEqual(
      recordsOf(chunks),
    )
    expect(found.length).toBeLessThan(60)
    expect(partition).toMatchObject({ endOffset: 180 })
    expect(partition?.checked.seals).toBeGreaterThan(0)
    expect(partition?.lastSequences).toEqual(
      new Map([
        [4711, 89],
        [4712, 89],
      ]),
    )
  })

  it('finds the tail that no checkpoint knows when the broker was not stopped', async () => {
    const history = new GoldenHistory()
    const store = await open()
    const logs = await history.open(store)
    for (const [partition, log] of logs.entries()) await history.append(log, partition, 7)
    const read = readDataFolder(folder)
    expect(read.isClean).toBe(false)
    for (const [i, partition] of read.partitions.entries()) {
      expect(partition.records).toEqual(history.logs[i]?.records)
    }
    await store.close()
  })
})
