import { unreachable } from '../src/common/assert.ts'
import { answerRequests } from './child-process.ts'
import type { CommitLoadOptions, CommitLoadResult } from './commit-load.ts'
import {
  type Interval,
  MemberLoad,
  type MemberLoadOptions,
  type MemberOwnership,
  type MemberProgress,
} from './member-load.ts'

/** To a process of members. */
export type MemberRequest =
  | { readonly type: 'open'; readonly options: MemberLoadOptions }
  | { readonly type: 'join'; readonly count: number; readonly assignor: string }
  | { readonly type: 'leave'; readonly count: number }
  | { readonly type: 'progress' }
  | { readonly type: 'ownership' }
  | { readonly type: 'begin-commits'; readonly options: CommitLoadOptions }
  | { readonly type: 'end-commits'; readonly closes: boolean }
  | { readonly type: 'close' }

/** From it. */
export type MemberAnswer =
  | { readonly type: 'done' }
  | { readonly type: 'interval'; readonly interval: Interval }
  | { readonly type: 'progress'; readonly progress: MemberProgress }
  | { readonly type: 'ownership'; readonly ownership: MemberOwnership }
  | { readonly type: 'committed'; readonly result: CommitLoadResult }

/** Members in a process of their own; `MemberProcess` in member-processes.ts talks to it. */
let load: MemberLoad | undefined
let commits: Promise<CommitLoadResult> | undefined

async function handle(request: MemberRequest): Promise<MemberAnswer> {
  if (request.type === 'open') {
    load = new MemberLoad(request.options)
    await load.open()
    return { type: 'done' }
  }
  if (load === undefined) throw new Error(`${request.type} has to come after open`)
  switch (request.type) {
    case 'join':
      return { type: 'interval', interval: await load.join(request.count, request.assignor) }
    case 'leave':
      return { type: 'interval', interval: await load.leave(request.count) }
    case 'progress':
      return { type: 'progress', progress: load.progress() }
    case 'ownership':
      return { type: 'ownership', ownership: load.ownership() }
    case 'begin-commits':
      commits = load.commit(request.options)
      commits.catch(() => undefined) // end-commits tells of it.
      return { type: 'done' }
    case 'end-commits':
      if (request.closes) load.close()
      if (commits === undefined) throw new Error('nothing is being committed')
      return { type: 'committed', result: await commits }
    case 'close':
      load.close()
      return { type: 'done' }
    default:
      return unreachable(request)
  }
}

answerRequests(handle)
