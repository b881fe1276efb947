import { RequestProcess } from './child-process.ts'
import type { CommitLoadOptions, CommitLoadResult } from './commit-load.ts'
import type { Interval, MemberLoadOptions, MemberOwnership, MemberProgress } from './member-load.ts'
import type { MemberAnswer, MemberRequest } from './member-process.ts'

/** A process full of members. It ends with this one. */
export class MemberProcess {
  readonly #process: RequestProcess<MemberRequest, MemberAnswer> = new RequestProcess(
    'member-process',
  )

  get pid(): number {
    return this.#process.pid
  }

  open(options: MemberLoadOptions): Promise<void> {
    return this.#do({ type: 'open', options })
  }

  join(count: number, assignor: string): Promise<Interval> {
    return this.#during({ type: 'join', count, assignor })
  }

  leave(count: number): Promise<Interval> {
    return this.#during({ type: 'leave', count })
  }

  async progress(): Promise<MemberProgress> {
    const answer = await this.#process.ask({ type: 'progress' })
    if (answer.type !== 'progress') throw this.#process.unexpected(answer)
    return answer.progress
  }

  async ownership(): Promise<MemberOwnership> {
    const answer = await this.#process.ask({ type: 'ownership' })
    if (answer.type !== 'ownership') throw this.#process.unexpected(answer)
    return answer.ownership
  }

  beginCommits(options: CommitLoadOptions): Promise<void> {
    return this.#do({ type: 'begin-commits', options })
  }

  /** With `closes` it ends the sessions first; without, it waits for the load's own end. */
  async endCommits(closes: boolean): Promise<CommitLoadResult> {
    const answer = await this.#process.ask({ type: 'end-commits', closes })
    if (answer.type !== 'committed') throw this.#process.unexpected(answer)
    return answer.result
  }

  close(): Promise<void> {
    return this.#do({ type: 'close' })
  }

  end(): void {
    this.#process.end()
  }

  async #do(request: MemberRequest): Promise<void> {
    const answer = await this.#process.ask(request)
    if (answer.type !== 'done') throw this.#process.unexpected(answer)
  }

  async #during(request: MemberRequest): Promise<Interval> {
    const answer = await this.#process.ask(request)
    if (answer.type !== 'interval') throw this.#process.unexpected(answer)
    return answer.interval
  }
}
