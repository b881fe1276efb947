import { mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'
import {
  type BrokerEnd,
  BrokerProcess,
  type BrokerProcessOptions,
  type BrokerStart,
} from '../../bench/broker-process.ts'

// MILLRACE_E2E_MAIN: another build than the one of `npm run build`.
export const MILLRACE_MAIN: string =
  process.env['MILLRACE_E2E_MAIN'] ??
  fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url))

/**
 * The built broker as a process of its own, for one test: on a temporary data directory unless one is given, ended by its process id and
 * cleaned up when the test ends. `restart` keeps data and port.
 */
export class ServerProcess {
  #broker: BrokerProcess

  /** Call it inside a test. */
  static async start(options: Partial<BrokerProcessOptions> = {}): Promise<ServerProcess> {
    const directory = options.directory ?? makeDirectory()
    const broker = await BrokerProcess.start({ ...options, main: MILLRACE_MAIN, directory })
    const server = new ServerProcess(broker)
    // Before the folder goes: finishers run in reverse order.
    onTestFinished(async () => {
      await server.kill('SIGKILL')
    })
    return server
  }

  private constructor(broker: BrokerProcess) {
    this.#broker = broker
  }

  get address(): string {
    return this.#broker.address
  }

  get directory(): string {
    return this.#broker.directory
  }

  get pid(): number {
    return this.#broker.pid
  }

  /** The last of its log, as JSON lines. */
  get log(): string {
    return this.#broker.log
  }

  /** What recovery found at the last start. */
  get recovery(): BrokerStart | undefined {
    return this.#broker.start
  }

  /** Sends the signal and waits for the end; at once when it has ended already. */
  kill(signal: NodeJS.Signals): Promise<BrokerEnd> {
    return this.#broker.kill(signal)
  }

  /** Starts it again on the same data and port. It must have ended. */
  async restart(): Promise<void> {
    this.#broker = await this.#broker.restart()
  }
}

/** On the disk where the tests' temporary folder is; removed after the test. */
function makeDirectory(): string {
  const path = mkdtempSync(join(realpathSync(tmpdir()), 'millrace-server-'))
  onTestFinished(() => rmSync(path, { recursive: true, force: true }))
  return path
}
