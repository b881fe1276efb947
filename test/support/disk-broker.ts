import { toOffset } from '../../src/common/offset.ts'
import type { DiskOptions } from '../../src/log/disk/disk-environment.ts'
import type { DiskStore } from '../../src/log/disk/disk-store.ts'
import type { LogConfig } from '../../src/log/log-config.ts'
import { BrokerError } from '../../src/common/errors.ts'
import { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import type { PartitionId, PartitionLog, StartReport } from '../../src/log/partition-log.ts'
import { recordsOf } from './batches.ts'
import { DATA, aLogConfig, openDiskStore } from './disk-harness.ts'
import { FakeClock } from './fake-clock.ts'

export const ORDERS: PartitionId = {
  topic: 'orders',
  partition: 0,
  topicId: '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405161',
}
export const ORDERS_FOLDER: string = `${DATA}/orders-0`

/** A line of the log: level, message, details. */
export interface LoggedLine {
  readonly level: 'info' | 'warn' | 'error'
  readonly message: string
  readonly details: Readonly<Record<string, unknown>>
}

/** One partition on the disk engine, on a simulated disk, with one start after the other. */
export class DiskBroker {
  fs: MemoryFileSystem
  readonly clock: FakeClock = new FakeClock()
  readonly lines: LoggedLine[] = []
  options: Partial<DiskOptions>
  config: LogConfig
  report: StartReport | undefined
  #store: DiskStore | undefined
  #log: PartitionLog | undefined

  constructor(
    setup: {
      readonly fs?: MemoryFileSystem
      readonly options?: Partial<DiskOptions>
      readonly config?: Partial<LogConfig>
    } = {},
  ) {
    this.fs = setup.fs ?? new MemoryFileSystem({ strictSync: true })
    // Reads go to the disk unless a test wants otherwise.
    this.options = { cacheBytes: 0, ...setup.options }
    this.config = aLogConfig(setup.config)
  }

  static async started(...setup: ConstructorParameters<typeof DiskBroker>): Promise<DiskBroker> {
    const broker = new DiskBroker(...setup)
    await broker.start()
    return broker
  }

  get store(): DiskStore {
    if (this.#store === undefined) throw new Error('the broker has not been started')
    return this.#store
  }

  get log(): PartitionLog {
    if (this.#log === undefined) throw new Error('the broker has not been started')
    return this.#log
  }

  async openStore(): Promise<DiskStore> {
    const note =
      (level: LoggedLine['level']) =>
      (details: Readonly<Record<string, unknown>>, message: string): void => {
        this.lines.push({ level, message, details })
      }
    this.#store = await openDiskStore({
      fs: this.fs,
      clock: this.clock,
      options: this.options,
      logger: { info: note('info'), warn: note('warn'), error: note('error') },
    })
    return this.#store
  }

  async start(): Promise<PartitionLog> {
    const store = await this.openStore()
    this.#log = await store.open(ORDERS, this.config)
    this.report = await store.ready()
    return this.#log
  }

  /** kill -9, and a start on what is left. */
  async restartKilled(
    change: (fs: MemoryFileSystem) => void | Promise<void> = () => {},
  ): Promise<PartitionLog> {
    this.fs = this.fs.kill()
    await change(this.fs)
    return await this.start()
  }

  async restartClean(
    change: (fs: MemoryFileSystem) => void | Promise<void> = () => {},
  ): Promise<PartitionLog> {
    await this.store.close()
    await change(this.fs)
    return await this.start()
  }

  /** Has a checkpoint written of all there is. */
  async checkpoint(): Promise<void> {
    await this.clock.advance(6000)
  }

  file(name: string): string {
    return `${ORDERS_FOLDER}/${name}`
  }

  size(name: string): number | undefined {
    return this.fs.contentOf(this.file(name))?.length
  }

  warned(pattern: RegExp): boolean {
    return this.lines.some(({ level, message }) => level !== 'info' && pattern.test(message))
  }
}

/** Name of a segment's file. */
export function segment(base: number, kind = 'log'): string {
  return `${String(base).padStart(20, '0')}.${kind}`
}

/** A hole: [start, end). */
export type Hole = readonly [number, number]

/** Reads a log from one offset (its start) to its end, over holes. */
export async function readOver(
  log: PartitionLog,
  from: number = log.logStartOffset,
): Promise<{ values: Map<number, string | undefined>; holes: Hole[] }> {
  const values = new Map<number, string | undefined>()
  const holes: Hole[] = []
  let offset = from
  while (offset < log.highWatermark) {
    try {
      const got = await log.read(toOffset(offset), 100_000)
      for (const record of recordsOf(got.chunks)) {
        if (record.offset >= offset) values.set(record.offset, record.value)
      }
      if (got.nextOffset <= offset) throw new Error(`reading at ${offset} does not go on`)
      offset = got.nextOffset
    } catch (error) {
      if (!(error instanceof BrokerError) || error.code !== 'SEGMENT_QUARANTINED') throw error
      const next = Number(error.details['nextOffset'])
      holes.push([offset, next])
      offset = next
    }
  }
  return { values, holes }
}

/** Overwrites bytes of a file, durably, as rot or a person would. */
export async function overwrite(
  fs: MemoryFileSystem,
  path: string,
  position: number,
  bytes: Uint8Array,
): Promise<void> {
  const file = await fs.open(path, 'write')
  await file.write([bytes], position)
  await file.sync()
  await file.close()
}

export async function cutTo(fs: MemoryFileSystem, path: string, sizeBytes: number): Promise<void> {
  const file = await fs.open(path, 'write')
  await file.truncate(sizeBytes)
  await file.sync()
  await file.close()
}
