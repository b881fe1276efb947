import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const dist = import.meta.url.endsWith('.ts') ? '../dist/bench/' : './'

interface Failed {
  readonly type: 'failed'
  readonly message: string
}

/** A module of this folder in a process of its own, which answers one request after the other. It ends with this process. */
export class RequestProcess<Request extends object, Answer extends object> {
  readonly #child: ChildProcess
  readonly #name: string
  #waiting: { resolve: (answer: Answer) => void; reject: (error: Error) => void } | undefined

  /** `module`: its file name in dist/bench/, without `.js`. */
  constructor(module: string) {
    this.#name = module
    const path = fileURLToPath(new URL(`${dist}${module}.js`, import.meta.url))
    // `advanced`, because results hold typed arrays.
    this.#child = fork(path, { serialization: 'advanced' })
    this.#child.on('message', (answer: Answer | Failed) => {
      if ('type' in answer && answer.type === 'failed') this.#fail(new Error(answer.message))
      // All but `failed` is what the module's own handler has given.
      else this.#settle(answer as Answer)
    })
    this.#child.on('exit', (code, signal) => {
      this.#fail(new Error(`${module} ended with ${code ?? signal}`))
    })
    this.#child.on('error', (error) => this.#fail(error))
  }

  get pid(): number {
    return this.#child.pid ?? 0 // 0 when it could not be started, which the next call tells of.
  }

  /** One at a time. */
  ask(request: Request): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject }
      this.#child.send(request, (error) => {
        if (error !== null) this.#fail(error)
      })
    })
  }

  /** Of an answer of another type than was due. */
  unexpected(answer: { readonly type: string }): Error {
    return new Error(`${this.#name} answered ${answer.type}`)
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  end(): void {
    this.#child.removeAllListeners('exit')
    this.#child.kill('SIGKILL') // Also one that is stopped.
  }

  #settle(answer: Answer): void {
    this.#waiting?.resolve(answer)
    this.#waiting = undefined
  }

  #fail(error: Error): void {
    this.#waiting?.reject(error)
    this.#waiting = undefined
  }
}

/** The other side: answers what {@link RequestProcess.ask} sends, which is what `handle` takes. */
export function answerRequests(handle: (request: never) => Promise<object>): void {
  process.on('message', (request: unknown) => {
    handle(request as never) // Sent by the RequestProcess that has started this module.
      .catch((error: unknown): Failed => ({
        type: 'failed',
        message: error instanceof Error ? (error.stack ?? error.message) : String(error),
      }))
      .then((answer) => process.send?.(answer))
      .catch((error: unknown) => {
        console.error(error)
        process.exitCode = 1
      })
  })
  // Whoever started us has gone: so do we.
  process.on('disconnect', () => process.exit())
}
