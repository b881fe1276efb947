import { RequestProcess } from './child-process.ts'
import type { LoadAnswer, LoadRequest } from './load-process.ts'
import type { ProduceLoadOptions, ProduceLoadResult } from './produce-load.ts'
import type { ReadLoadOptions, ReadLoadResult } from './read-load.ts'
import type { SteadyLoadOptions } from './steady-load.ts'

/** A process that produces or reads. It ends with this one. */
export class LoadProcess {
  readonly #process: RequestProcess<LoadRequest, LoadAnswer> = new RequestProcess('load-process')

  get pid(): number {
    return this.#process.pid
  }

  async produce(options: ProduceLoadOptions): Promise<ProduceLoadResult> {
    const answer = await this.#process.ask({ type: 'produce', options })
    if (answer.type !== 'produced') throw this.#process.unexpected(answer)
    return answer.result
  }

  /** Resolves when its readers have been started. */
  async read(options: ReadLoadOptions): Promise<void> {
    const answer = await this.#process.ask({ type: 'read', options })
    if (answer.type !== 'reading') throw this.#process.unexpected(answer)
  }

  /** Resolves when each of its readers has got a record. */
  async begun(): Promise<void> {
    const answer = await this.#process.ask({ type: 'await-begin' })
    if (answer.type !== 'reading') throw this.#process.unexpected(answer)
  }

  /** Tells its readers what to count: see `ReadLoad.measure`. */
  async measure(edges: readonly number[]): Promise<void> {
    const answer = await this.#process.ask({ type: 'measure', edges })
    if (answer.type !== 'reading') throw this.#process.unexpected(answer)
  }

  /** Resolves when its readers have all of `sent`. */
  async finish(sent: readonly number[]): Promise<ReadLoadResult> {
    const answer = await this.#process.ask({ type: 'finish', sent })
    if (answer.type !== 'read') throw this.#process.unexpected(answer)
    return answer.result
  }

  async beginSteady(options: SteadyLoadOptions): Promise<void> {
    const answer = await this.#process.ask({ type: 'begin-steady', options })
    if (answer.type !== 'writing') throw this.#process.unexpected(answer)
  }

  /** How many records each partition has got. */
  async endSteady(): Promise<number> {
    const answer = await this.#process.ask({ type: 'end-steady' })
    if (answer.type !== 'written') throw this.#process.unexpected(answer)
    return answer.records
  }

  signal(signal: NodeJS.Signals): void {
    this.#process.signal(signal)
  }

  end(): void {
    this.#process.end()
  }
}
