import type { CliIo } from './io.ts'
import { EXIT_DONE, EXIT_UNHEALTHY } from './io.ts'
import { withClient } from './session.ts'
import type { AdminOptions } from './topics.ts'
import { print } from './topics.ts'
import type { BrokerInfo } from '../client/index.ts'
import { MillraceError } from '../client/index.ts'
import { formatBytes, formatDurationMs } from '../common/units.ts'

export interface HealthOptions extends AdminOptions {
  /** How long the broker may take to become healthy. */
  readonly waitMs?: number | undefined
}

const PATIENCE_MS = 5_000
const RETRY_MS = 200

interface Verdict {
  readonly healthy: boolean
  readonly reason: string
  readonly broker: BrokerInfo | undefined
}

/** Resolves to 0 when the broker answers and takes records, else to 10. */
export async function health(io: CliIo, options: HealthOptions): Promise<number> {
  const startedMs = performance.now()
  const deadlineMs = startedMs + (options.waitMs ?? 0)
  let verdict = await ask(io, options, Math.max(PATIENCE_MS, 0))
  while (!verdict.healthy && performance.now() < deadlineMs) {
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
    verdict = await ask(io, options, Math.max(RETRY_MS, deadlineMs - performance.now()))
  }
  const { healthy, reason, broker } = verdict
  const about =
    broker === undefined
      ? ''
      : ` (version ${broker.version}, up ${formatDurationMs(Math.max(0, Math.floor((Date.now() - broker.startedAt) / 1000) * 1000))}, ` +
        `${broker.topics} topics, ${broker.partitions} partitions, ${formatBytes(broker.freeBytes)} free)`
  print(
    io,
    options,
    { healthy, reason, broker },
    healthy ? `healthy${about}\n` : `unhealthy: ${reason}${about}\n`,
  )
  return healthy ? EXIT_DONE : EXIT_UNHEALTHY
}

async function ask(io: CliIo, options: HealthOptions, timeoutMs: number): Promise<Verdict> {
  try {
    const broker = await withClient(
      io,
      options,
      ({ admin }) => withTimeout(admin.broker(), timeoutMs),
      timeoutMs,
    )
    if (broker.storageFull) return { healthy: false, reason: 'the disk is full', broker }
    return { healthy: true, reason: '', broker }
  } catch (error) {
    if (!(error instanceof MillraceError)) throw error
    // What we were asked for is wrong, rather than the broker.
    if (error.remedy === 'fix') throw error
    return { healthy: false, reason: `${error.code}: ${error.message}`, broker: undefined }
  }
}

/** The client repeats a read for half a minute; a health check is not that patient. */
function withTimeout<T>(promise: Promise<T>, timeoutMs: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () =>
        reject(new MillraceError('REQUEST_TIMEOUT', `no answer in ${Math.round(timeoutMs)} ms`)),
      timeoutMs,
    )
    promise.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}
