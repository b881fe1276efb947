import { resolve } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { resolveConfig } from './config-list.ts'
import { parseFailpoints } from './failpoints.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, EXIT_STORAGE_FAILED, Interrupt, say } from './io.ts'
import { MemoryTrim, processMemory } from './memory-trim.ts'
import type { AdminOptions } from './topics.ts'
import { UsageError } from './usage-error.ts'
import { systemClock } from '../common/clock.ts'
import { BrokerError } from '../common/errors.ts'
import { systemRandom } from '../common/random.ts'
import { NodeFileSystem } from '../fs/node-file-system.ts'
import { explainConfig, printConfig } from '../server/config.ts'
import type { ResolvedConfig } from '../server/config.ts'

/**
 * V8 counts buffers outside its heap against a limit that it derives from what is alive inside, and a broker has little inside: some 10 MB. So it
 * collected everything for each 10 to 20 MB received, at a cost of half the broker's CPU. With a limit of five times the live heap, producing
 * 1 KiB records took 1.9 ms of user time a MB instead of 3.6 (bench produce --payload 1024, two busy cores).
 */
const HEAP_GROWTH = '--heap-growing-percent=400'

export interface ServeOptions {
  readonly config: string | undefined
  readonly printConfig: boolean
  readonly format: AdminOptions['format']
}

/**
 * Runs a broker until a signal comes (exit code 0) or its disk breaks its word (74). The one line on stdout says that it is
 * ready, and where; the log goes to stderr.
 */
export async function serve(
  io: CliIo,
  flags: Readonly<Record<string, string | boolean | undefined>>,
  options: ServeOptions,
): Promise<number> {
  const resolved = await resolveSettings(io, flags, options.config)
  if (options.printConfig) {
    const text =
      options.format === 'json'
        ? `${JSON.stringify({ settings: explainConfig(resolved) })}\n`
        : printConfig(resolved)
    io.stdout.write(text)
    return EXIT_DONE
  }
  // What the settings say stays as it was written; the storage wants to know where that is.
  const config = { ...resolved.config, data: resolve(resolved.config.data) }
  // The broker brings gRPC with it: not before it is needed.
  setFlagsFromString(HEAP_GROWTH)
  const { Broker } = await import('../server/broker.ts')
  const { makeLogger } = await import('../server/logger.ts')
  const failpoint = io.env['FAILPOINT']
  const fs = new NodeFileSystem(
    failpoint === undefined || failpoint === '' ? {} : parseFailpoints(failpoint),
  )
  const logger = makeLogger({ level: config.logLevel, format: config.logFormat, stream: io.stderr })
  // From here on: a signal during the start ends it as soon as it is through.
  using interrupt = new Interrupt(io)
  const broker = await Broker.start({
    config,
    fs,
    clock: systemClock,
    random: systemRandom,
    logger,
  })
  const trim = new MemoryTrim(systemClock, processMemory())
  trim.start()
  io.stdout.write(`millrace listening on ${broker.address}\n`)
  if (io.stderr.isTTY === true) showNextSteps(io, broker.address)
  const interrupted = new Promise<'signal'>((settle) => {
    if (interrupt.signal.aborted) settle('signal')
    interrupt.signal.addEventListener('abort', () => settle('signal'), { once: true })
  })
  const end = await Promise.race([interrupted, broker.failed])
  trim.stop()
  if (end === 'signal') {
    // While it drains, the disk may still fail: what was not flushed must not look like a clean stop.
    const stopped = await Promise.race([broker.stop().then(() => undefined), broker.failed])
    if (stopped === undefined) return EXIT_DONE
    return reportStorageFailure(io, stopped)
  }
  return reportStorageFailure(io, end)
}

async function resolveSettings(
  io: CliIo,
  flags: Readonly<Record<string, string | boolean | undefined>>,
  file: string | undefined,
): Promise<ResolvedConfig> {
  try {
    return await resolveConfig(io, flags, file)
  } catch (error) {
    // Settings are what was typed: exit code 2, with the way to all of them.
    if (!(error instanceof BrokerError)) throw error
    throw new UsageError(error.message, '`millrace config list` shows all settings')
  }
}

/** Nothing is flushed or closed after this: the pages may be gone, and the restart finds the truth on the disk (CONTRACT §2.3). */
function reportStorageFailure(io: CliIo, cause: Error): number {
  say(io, `error: the storage failed, so the broker has stopped: ${cause.message}`)
  say(
    io,
    'hint: look after the disk, then start the broker again; what was acknowledged is checked then',
  )
  return EXIT_STORAGE_FAILED
}

function showNextSteps(io: CliIo, address: string): void {
  const server = address === '127.0.0.1:9292' ? '' : ` --server ${address}`
  say(io, '')
  say(
    io,
    `  echo hello | millrace produce greetings${server}   (after: millrace topic create greetings${server})`,
  )
  say(io, `  millrace tail greetings${server}`)
  say(io, '')
}
