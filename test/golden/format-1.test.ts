import { appendFile, cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import { NodeFileSystem } from '../../src/fs/node-file-system.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import type { DiskStore } from '../../src/log/disk/disk-store.ts'
import type { PartitionLog } from '../../src/log/partition-log.ts'
import { aBatch, batchesOf } from '../support/batches.ts'
import { plainRecordsOf } from '../support/records.ts'
import { DATA, openDiskStore } from '../support/disk-harness.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { GoldenHistory } from './golden-history.ts'
import type { GoldenLog, GoldenRecord } from './golden-history.ts'
import { readDataFolder } from './independent-reader.ts'

/**
 * Folders that millrace wrote in format 1. They are never written again: whatever the code becomes, it opens them. GOLDEN=write made them;
 * it is kept for the folders of the next format.
 */
const GOLDEN = join(dirname(fileURLToPath(import.meta.url)), 'format-1')
const STOPS = ['clean', 'killed'] as const

function open(directory: string): Promise<DiskStore> {
  return openDiskStore({ fs: new NodeFileSystem(), clock: new FakeClock(), directory })
}

async function writeGolden(stop: (typeof STOPS)[number]): Promise<void> {
  const fs = new MemoryFileSystem()
  const clock = new FakeClock()
  const history = new GoldenHistory()
  let store = await openDiskStore({ fs, clock })
  let logs = await history.open(store)
  for (const [partition, log] of logs.entries()) await history.append(log, partition, 5)
  await store.close()
  store = await openDiskStore({ fs, clock })
  logs = await history.open(store)
  const [first] = logs
  if (first === undefined) throw new Error('it is there')
  await history.moveLogStart(first, 0, 3)
  for (const [partition, log] of logs.entries()) await history.append(log, partition, 3)
  await clock.advance(1) // Everything is sealed.
  if (stop === 'clean') await store.close()
  const directory = join(GOLDEN, stop)
  await rm(directory, { recursive: true, force: true })
  for (const path of fs.files()) {
    const target = join(directory, path.slice(DATA.length))
    await mkdir(dirname(target), { recursive: true })
    await writeFile(target, fs.contentOf(path) ?? '')
  }
  const expected = { clusterId: store.clusterId, logs: history.logs }
  await writeFile(join(GOLDEN, `${stop}.json`), `${JSON.stringify(expected)}\n`)
  if (stop === 'clean') return
  // Half of a batch that was being written.
  const torn = aBatch({ values: ['torn'], baseOffset: first.logEndOffset, leaderEpoch: 2 })
  const logPaths = fs.files().filter((path) => /golden-0\/.*\.log$/.test(path))
  await appendFile(join(directory, logPaths.at(-1)?.slice(DATA.length) ?? ''), torn.subarray(0, 50))
}

interface Expected {
  readonly clusterId: string
  readonly logs: readonly GoldenLog[]
}

/** JSON has no undefined: what is absent there is undefined here. */
function toGolden(record: GoldenRecord): GoldenRecord {
  const headers = record.headers.map(({ key, value }) => ({ key, value }))
  const { offset, timestampMs, key, value } = record
  return { offset, timestampMs, key, value, headers }
}

async function recordsIn(log: PartitionLog): Promise<GoldenRecord[]> {
  const text = (hex: string | undefined): string | undefined =>
    hex === undefined ? undefined : Buffer.from(hex, 'hex').toString()
  const found: GoldenRecord[] = []
  for (let offset = log.logStartOffset; offset < log.highWatermark;) {
    const got = await log.read(offset, 500)
    for (const { bytes, baseOffset } of batchesOf(got.chunks)) {
      for (const [i, record] of plainRecordsOf(bytes).entries()) {
        if (baseOffset + i < offset) continue
        found.push({
          offset: baseOffset + i,
          timestampMs: record.timestampMs,
          key: text(record.key),
          value: text(record.value),
          headers: record.headers.map(({ key, value }) => ({ key, value: text(value) })),
        })
      }
    }
    offset = got.nextOffset
  }
  return found
}

describe('a data folder of format 1', () => {
  let folder: string

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'millrace-golden-'))
  })

  afterEach(async () => {
    await rm(folder, { recursive: true })
  })

  if (process.env['GOLDEN'] === 'write') it.each(STOPS)('is written: %s', writeGolden)

  it.each(STOPS)('is opened and read for ever (%s stop)', async (stop) => {
    await cp(join(GOLDEN, stop), folder, { recursive: true })
    const text = await readFile(join(GOLDEN, `${stop}.json`), 'utf8')
    const expected = JSON.parse(text) as Expected // We wrote it.
    const read = readDataFolder(folder)
    expect(read).toMatchObject({ clusterId: expected.clusterId, isClean: stop === 'clean' })
    const store = await open(folder)
    expect(store).toMatchObject({ clusterId: expected.clusterId, incarnation: 3 })
    expect(await store.list()).toHaveLength(expected.logs.length)
    for (const [i, golden] of expected.logs.entries()) {
      const records = golden.records.map(toGolden)
      const log = await store.open(golden.id, DEFAULT_LOG_CONFIG)
      expect(log.logStartOffset).toBe(golden.logStartOffset)
      expect(await recordsIn(log)).toEqual(records)
      expect(read.partitions[i]?.records).toEqual(records)
      const answer = await log.append(aBatch(), 'durable')
      expect(answer.baseOffset).toBe((records.at(-1)?.offset ?? -1) + 1)
    }
    const report = await store.ready()
    expect(report).toMatchObject({
      clean: stop === 'clean',
      tornBytes: stop === 'clean' ? 0 : 50,
      damagedRanges: 0,
    })
    await store.close()
  })
})
