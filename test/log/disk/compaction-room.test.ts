import { expect, it } from 'vitest'
import { KIB, MIB } from '../../../src/common/units.ts'
import { MemoryFileSystem } from '../../../src/fs/memory-file-system.ts'
import { aBatch } from '../../support/batches.ts'
import { over, SMALL } from '../../support/compacted-log.ts'
import { DiskBroker } from '../../support/disk-broker.ts'
import { aLogConfig } from '../../support/disk-harness.ts'
import { codeOf } from '../../support/group-bench.ts'

const OFFSETS = {
  topic: '__offsets',
  partition: 0,
  topicId: '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405199',
}

/** A log of which a round would write 300 KiB anew, and a log that commits go to, with so much left on the disk. */
async function aNearlyFullDisk(
  freeBytes: number,
): Promise<{ broker: DiskBroker; commit: () => Promise<string> }> {
  const fs = new MemoryFileSystem({ strictSync: true })
  const config = { ...SMALL, segmentBytes: 300 * KIB }
  const broker = await DiskBroker.started({ fs, config, options: { ballastBytes: 0 } })
  const offsets = await broker.store.open(OFFSETS, aLogConfig({}))
  for (let i = 0; i < 13; i++) {
    const batch = aBatch({ keys: [i < 2 ? 'k' : `u${i}`], valueBytes: 25 * KIB })
    await broker.log.append(batch, 'durable')
  }
  await broker.checkpoint()
  await broker.checkpoint()
  fs.capacityBytes = 1024 * MIB
  fs.capacityBytes -= (await fs.space('/data')).freeBytes - freeBytes
  return {
    broker,
    commit: () => codeOf(offsets.append(aBatch({ keys: ['g'], valueBytes: 20 }), 'durable')),
  }
}

it('leaves the space that commits need on a disk that is nearly full', async () => {
  const { broker, commit } = await aNearlyFullDisk(60 * KIB)
  const state = { isDone: false }
  const round = codeOf(broker.log.compact()).finally(() => {
    state.isDone = true
  })
  const commitAll = async (): Promise<string[]> => {
    const codes = new Set<string>()
    while (!state.isDone) codes.add(await commit())
    return [...codes]
  }
  const commits = commitAll()
  expect(await over(broker, round)).toBe('STORAGE_FULL')
  expect(await commits).toEqual(['none'])
})

it('compacts where there is room for the segment and for everybody else', async () => {
  const { broker } = await aNearlyFullDisk(65 * MIB)
  expect(await over(broker, codeOf(broker.log.compact()))).toBe('none')
})
