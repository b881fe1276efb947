import { describe, expect, it } from 'vitest'
import { MemoryFileSystem } from '../../../src/fs/memory-file-system.ts'
import type { PartitionId, PartitionLog } from '../../../src/log/partition-log.ts'
import { aBatch } from '../../support/batches.ts'
import { cutTo, DiskBroker, ORDERS, overwrite, readOver } from '../../support/disk-broker.ts'
import { DATA } from '../../support/disk-harness.ts'

const STATE: PartitionId = { ...ORDERS, companion: 'state' }

async function append(log: PartitionLog, ...values: string[]): Promise<void> {
  for (const value of values) await log.append(aBatch({ values: [value] }), 'durable')
}

async function valuesOf(log: PartitionLog): Promise<(string | undefined)[]> {
  return [...(await readOver(log)).values.values()]
}

async function openState(broker: DiskBroker): Promise<PartitionLog> {
  return broker.store.open(STATE, broker.config)
}

describe('a companion on the disk', () => {
  it('has a folder beside that of its partition, which says what it is', async () => {
    const broker = await DiskBroker.started()
    await openState(broker)
    const text = String(broker.fs.contentOf(`${DATA}/orders-0.state/partition.json`))
    expect(JSON.parse(text)).toEqual({ format: 1, ...STATE })
    expect(String(broker.fs.contentOf(`${DATA}/orders-0/partition.json`))).not.toContain('state')
  })

  it.each(['clean', 'killed'] as const)('is whole after a %s stop', async (stop) => {
    const broker = await DiskBroker.started({ config: { segmentBytes: 400 } })
    await append(broker.log, 'x')
    const values = Array.from({ length: 12 }, (_, i) => `v${i}`)
    await append(await openState(broker), ...values)
    await (stop === 'clean' ? broker.restartClean() : broker.restartKilled())
    expect(await valuesOf(await openState(broker))).toEqual(values)
    expect(await valuesOf(broker.log)).toEqual(['x'])
  })

  it('costs a clean start no scan', async () => {
    const broker = await DiskBroker.started()
    await append(await openState(broker), 'a', 'b')
    await broker.store.close()
    const store = await broker.openStore()
    await store.open(ORDERS, broker.config)
    const log = await store.open(STATE, broker.config)
    expect(await store.ready()).toMatchObject({ clean: true, partitions: 1, scannedBytes: 0 })
    expect(await valuesOf(log)).toEqual(['a', 'b'])
    await store.close()
  })

  it('loses nothing when it is not opened after a crash, and the next stop is a clean one', async () => {
    const broker = await DiskBroker.started()
    await append(await openState(broker), 'a', 'b')
    await broker.checkpoint()
    await append(await openState(broker), 'c')
    await broker.restartKilled()
    await broker.restartClean()
    const log = await openState(broker)
    expect(await valuesOf(log)).toEqual(['a', 'b', 'c'])
    await append(log, 'd')
    expect(log.highWatermark).toBe(4)
  })

  it('keeps a torn tail apart from that of its partition', async () => {
    const broker = await DiskBroker.started()
    const log = await openState(broker)
    await append(broker.log, 'x')
    await append(log, 'a')
    const first = '00000000000000000000.log'
    await broker.restartKilled(async (fs) => {
      for (const folder of ['orders-0', 'orders-0.state']) {
        const path = `${DATA}/${folder}/${first}`
        const size = fs.contentOf(path)?.length ?? 0
        await overwrite(fs, path, size, Buffer.from(folder))
      }
    })
    await openState(broker)
    const torn = broker.fs.files().filter((path) => path.startsWith(`${DATA}/torn/`))
    const texts = torn.map((path) => String(broker.fs.contentOf(path)))
    expect(texts.sort()).toEqual(['orders-0', 'orders-0.state'])
  })

  it('takes records while there is no room for those of clients', async () => {
    const broker = new DiskBroker({
      fs: new MemoryFileSystem({ strictSync: true, capacityBytes: 1_000_000 }),
      options: { diskFloorBytes: 2_000_000, diskCheckMs: 1000 },
    })
    await broker.start()
    await broker.clock.advance(2000)
    expect(broker.store.storageFull).toBe(true)
    await expect(append(broker.log, 'x')).rejects.toMatchObject({ code: 'STORAGE_FULL' })
    await append(await openState(broker), 'a')
  })

  it('is found by the id of its topic where the name would be too long for a folder', async () => {
    const broker = await DiskBroker.started()
    const long: PartitionId = { ...ORDERS, topic: 't'.repeat(249), partition: 9999 }
    const state: PartitionId = { ...long, companion: 'state' }
    await broker.store.open(long, broker.config)
    await append(await broker.store.open(state, broker.config), 'a')
    const names = await broker.fs.list(DATA)
    expect(names).toContain(`~${ORDERS.topicId}-9999.state`)
    expect(Math.max(...names.map((name) => name.length))).toBeLessThanOrEqual(255)
    await broker.restartKilled()
    expect(await broker.store.list()).toContainEqual(state)
    expect(await valuesOf(await broker.store.open(state, broker.config))).toEqual(['a'])
    await broker.store.remove(state)
    expect(await broker.store.list()).not.toContainEqual(state)
  })

  it('is refused when the folder is a copy of its partition’s', async () => {
    const broker = await DiskBroker.started()
    await openState(broker)
    await broker.store.close()
    const mark = `${DATA}/orders-0.state/partition.json`
    const data = broker.fs.contentOf(`${DATA}/orders-0/partition.json`) ?? Buffer.alloc(0)
    await overwrite(broker.fs, mark, 0, data)
    await cutTo(broker.fs, mark, data.length)
    await broker.start()
    await expect(openState(broker)).rejects.toMatchObject({
      code: 'STORAGE_ERROR',
      message: expect.stringContaining('(orders-0), not to') as string,
    })
  })

  it('is not guessed at when a later millrace has made it', async () => {
    const broker = await DiskBroker.started()
    await openState(broker)
    await broker.store.close()
    const mark = `${DATA}/orders-0.state/partition.json`
    const text = String(broker.fs.contentOf(mark)).replace('"state"', '"later"')
    await overwrite(broker.fs, mark, 0, Buffer.from(text))
    await broker.start()
    await expect(openState(broker)).rejects.toMatchObject({ code: 'STORAGE_ERROR' })
  })
})

describe('a removed companion', () => {
  it('is gone at once, and its bytes soon', async () => {
    const broker = await DiskBroker.started()
    await append(await openState(broker), 'a')
    await broker.store.remove(STATE)
    await broker.store.remove(ORDERS)
    await broker.restartClean()
    const left = broker.fs.files().filter((path) => /state|~deleted/.test(path))
    expect(left).toEqual([])
  })

  it.each(['at once', 'later'] as const)('stays away after a kill %s', async (when) => {
    const broker = await DiskBroker.started()
    await append(await openState(broker), 'a')
    await broker.store.remove(STATE)
    if (when === 'later') await broker.checkpoint()
    await broker.restartKilled()
    expect(await broker.store.list()).toEqual([ORDERS])
    const anew = await openState(broker)
    expect([anew.logStartOffset, anew.highWatermark]).toEqual([0, 0])
  })
})
