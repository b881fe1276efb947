import { SeededRandom } from '../../src/common/random.ts'
import type { LogConfig } from '../../src/log/log-config.ts'
import { DEFAULT_LOG_CONFIG } from '../../src/log/log-config.ts'
import type { DiskLogger, DiskOptions } from '../../src/log/disk/disk-environment.ts'
import { DiskStore } from '../../src/log/disk/disk-store.ts'
import type { FileSystem } from '../../src/fs/file-system.ts'
import type { Clock } from '../../src/common/clock.ts'

/** Where a simulated broker keeps its data. */
export const DATA = '/data'

export const SILENT: DiskLogger = { info: () => {}, warn: () => {}, error: () => {} }

/** The engine's settings without what a test of something else does not want: ballast, floor, scrubbing. */
export const QUIET_OPTIONS: Partial<DiskOptions> = {
  ballastBytes: 0,
  diskFloorBytes: 0,
  diskCheckMs: 0,
  scrubBytesPerSecond: 0,
}

/** Opens a store on a (simulated) disk, as a starting broker does. */
export function openDiskStore(options: {
  readonly fs: FileSystem
  readonly clock: Clock
  readonly directory?: string
  readonly options?: Partial<DiskOptions>
  readonly logger?: DiskLogger
}): Promise<DiskStore> {
  return DiskStore.open({
    fs: options.fs,
    clock: options.clock,
    directory: options.directory ?? DATA,
    random: new SeededRandom(1),
    logger: options.logger ?? SILENT,
    options: { ...QUIET_OPTIONS, ...options.options },
  })
}

export function aLogConfig(config: Partial<LogConfig> = {}): LogConfig {
  return { ...DEFAULT_LOG_CONFIG, ...config }
}
