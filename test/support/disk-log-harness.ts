import { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import type { PartitionLog } from '../../src/log/partition-log.ts'
import { ORDERS } from '../conformance/partition-log.ts'
import type { LogHarness } from '../conformance/partition-log.ts'
import { aLogConfig, openDiskStore } from './disk-harness.ts'
import { FakeClock } from './fake-clock.ts'

/** A disk whose flushes take `syncMs` on the fake clock. */
export async function makeDiskHarness(syncMs: number): Promise<LogHarness> {
  const clock = new FakeClock()
  const fs = new MemoryFileSystem({
    strictSync: true,
    delay: (operation) =>
      operation !== 'sync' || syncMs === 0
        ? undefined
        : new Promise((resolve) => {
            clock.schedule(syncMs, () => resolve(undefined))
          }),
  })
  const opening = openDiskStore({ fs, clock })
  const settle = async (): Promise<void> => {
    await clock.advance(Math.max(1, syncMs))
  }
  let store = await complete(settle, opening)
  return {
    clock,
    get store() {
      return store
    },
    settle,
    open: (config) => complete(settle, store.open(ORDERS, aLogConfig(config))),
    reopen: async (config): Promise<PartitionLog> => {
      await complete(settle, store.close())
      store = await complete(settle, openDiskStore({ fs, clock }))
      return await complete(settle, store.open(ORDERS, aLogConfig(config)))
    },
  }
}

async function complete<T>(settle: () => Promise<void>, promise: Promise<T>): Promise<T> {
  const state = { isDone: false }
  const mark = (): void => {
    state.isDone = true
  }
  promise.then(mark, mark)
  while (!state.isDone) await settle()
  return await promise
}
