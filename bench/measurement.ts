import { setTimeout as delay } from 'node:timers/promises'
import { askLoopDelay, type BrokerProcess, readLoopDelay } from './broker-process.ts'
import type { RunFigures } from './report.ts'
import { cpuBetween, findUsage, peakRss, type Usage } from './usage.ts'
import { monotonicMs } from './values.ts'

/** How long the broker has to write down its event loop's delay. */
const LOOP_REPORT_MS = 100

/** Watches what broker and clients use while `[fromMs, untilMs)` of {@link monotonicMs} goes by. */
export class UsageWatch {
  readonly #broker: BrokerProcess
  readonly #clients: readonly number[]
  readonly #end: AbortController = new AbortController()
  readonly #done: Promise<readonly [Look, Look]>

  /** Without `untilMs` it lasts until {@link end}. */
  constructor(
    broker: BrokerProcess,
    clientPids: readonly number[],
    fromMs: number,
    untilMs?: number,
  ) {
    this.#broker = broker
    this.#clients = clientPids
    this.#done = this.#watch(fromMs, untilMs)
    this.#done.catch(() => undefined) // `figures` tells of it, if anybody still asks.
  }

  end(): void {
    this.#end.abort()
  }

  async figures(): Promise<RunFigures> {
    const [before, after] = await this.#done
    await delay(LOOP_REPORT_MS)
    return {
      brokerCpuSeconds: cpuBetween([before.broker], [after.broker]),
      clientCpuSeconds: cpuBetween(before.clients, after.clients),
      brokerPeakRssBytes: peakRss([after.broker]),
      clientPeakRssBytes: peakRss(after.clients),
      brokerLoopP99Ms: readLoopDelay(this.#broker)?.p99Ms,
    }
  }

  async #watch(fromMs: number, untilMs: number | undefined): Promise<readonly [Look, Look]> {
    await this.#wait(fromMs)
    askLoopDelay(this.#broker) // Forgets the warm-up.
    const before = this.#look()
    await this.#wait(untilMs)
    const after = this.#look()
    askLoopDelay(this.#broker)
    return [before, after]
  }

  async #wait(untilMs: number | undefined): Promise<void> {
    const { signal } = this.#end
    if (untilMs === undefined) {
      await new Promise<void>((resolve) => {
        if (signal.aborted) resolve()
        signal.addEventListener('abort', () => resolve(), { once: true })
      })
      return
    }
    await delay(Math.max(0, untilMs - monotonicMs()))
  }

  #look(): Look {
    return {
      broker: findUsage(this.#broker.pid),
      clients: this.#clients.map((pid) => findUsage(pid)),
    }
  }
}

interface Look {
  readonly broker: Usage | undefined
  readonly clients: readonly (Usage | undefined)[]
}
