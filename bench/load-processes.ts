import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { LoadAnswer, LoadRequest } from './load-process.ts'
import type { ProduceLoadOptions, ProduceLoadResult } from './produce-load.ts'
import type { ReadLoadOptions, ReadLoadResult } from './read-load.ts'

const dist = import.meta.url.endsWith('.ts') ? '../dist/bench/' : './'
const MODULE: string = fileURLToPath(new URL(`${dist}load-process.js`, import.meta.url))

/** A process that produces or reads. It ends with this one. */
export class LoadProcess {
  readonly #child: ChildProcess
  #answer: { resolve: (answer: LoadAnswer) => void; reject: (error: Error) => void } | undefined

  constructor() {
    // `advanced`, because results hold typed arrays.
    this.#child = fork(MODULE, { serialization: 'advanced' })
    this.#child.on('message', (answer: LoadAnswer) => this.#settle(answer))
    this.#child.on('exit', (code, signal) => {
      this.#fail(new Error(`a load process ended with ${code ?? signal}`))
    })
    this.#child.on('error', (error) => this.#fail(error))
  }

  get pid(): number {
    return this.#child.pid ?? 0 // 0 when it could not be started, which the next call tells of.
  }

  async produce(options: ProduceLoadOptions): Promise<ProduceLoadResult> {
    const answer = await this.#ask({ type: 'produce', options })
    if (answer.type !== 'produced') throw unexpected(answer)
    return answer.result
  }

  /** Resolves when its readers have been started. */
  async read(options: ReadLoadOptions): Promise<void> {
    const answer = await this.#ask({ type: 'read', options })
    if (answer.type !== 'reading') throw unexpected(answer)
  }

  /** Resolves when each of its readers has got a record. */
  async begun(): Promise<void> {
    const answer = await this.#ask({ type: 'await-begin' })
    if (answer.type !== 'reading') throw unexpected(answer)
  }

  /** Tells its readers what to count: see `ReadLoad.measure`. */
  async measure(edges: readonly number[]): Promise<void> {
    const answer = await this.#ask({ type: 'measure', edges })
    if (answer.type !== 'reading') throw unexpected(answer)
  }

  /** Resolves when its readers have all of `sent`. */
  async finish(sent: readonly number[]): Promise<ReadLoadResult> {
    const answer = await this.#ask({ type: 'finish', sent })
    if (answer.type !== 'read') throw unexpected(answer)
    return answer.result
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  end(): void {
    this.#child.removeAllListeners('exit')
    this.#child.kill('SIGKILL') // Also one that is stopped.
  }

  #ask(request: LoadRequest): Promise<LoadAnswer> {
    return new Promise((resolve, reject) => {
      this.#answer = { resolve, reject }
      this.#child.send(request, (error) => {
        if (error !== null) this.#fail(error)
      })
    })
  }

  #settle(answer: LoadAnswer): void {
    if (answer.type === 'failed') this.#fail(new Error(answer.message))
    else {
      this.#answer?.resolve(answer)
      this.#answer = undefined
    }
  }

  #fail(error: Error): void {
    this.#answer?.reject(error)
    this.#answer = undefined
  }
}

function unexpected(answer: LoadAnswer): Error {
  return new Error(`a load process answered ${answer.type}`)
}
