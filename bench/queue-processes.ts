import { RequestProcess } from './child-process.ts'
import type {
  DelayedLoadOptions,
  DelayedLoadResult,
  QueueLoadOptions,
  QueueLoadResult,
  QueueProgress,
} from './queue-load.ts'
import type { QueueAnswer, QueueRequest } from './queue-process.ts'

/** A process with one worker of a queue, or one that sends delayed records. It ends with this one. */
export class QueueProcess {
  readonly #process: RequestProcess<QueueRequest, QueueAnswer> = new RequestProcess('queue-process')

  get pid(): number {
    return this.#process.pid
  }

  /** Resolves when the broker has taken the worker in. */
  work(options: QueueLoadOptions): Promise<void> {
    return this.#do({ type: 'work', options })
  }

  /** See {@link QueueLoad.measure}. */
  measure(fromMs: number, untilMs: number): Promise<void> {
    return this.#do({ type: 'measure', fromMs, untilMs })
  }

  async progress(): Promise<QueueProgress> {
    const answer = await this.#process.ask({ type: 'progress' })
    if (answer.type !== 'progress') throw this.#process.unexpected(answer)
    return answer.progress
  }

  async finish(): Promise<QueueLoadResult> {
    const answer = await this.#process.ask({ type: 'finish' })
    if (answer.type !== 'worked') throw this.#process.unexpected(answer)
    return answer.result
  }

  async sendDelayed(options: DelayedLoadOptions): Promise<DelayedLoadResult> {
    const answer = await this.#process.ask({ type: 'send-delayed', options })
    if (answer.type !== 'sent') throw this.#process.unexpected(answer)
    return answer.result
  }

  end(): void {
    this.#process.end()
  }

  async #do(request: QueueRequest): Promise<void> {
    const answer = await this.#process.ask(request)
    if (answer.type !== 'done') throw this.#process.unexpected(answer)
  }
}
