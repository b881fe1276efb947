import { unreachable } from '../src/common/assert.ts'
import { answerRequests } from './child-process.ts'
import {
  type DelayedLoadOptions,
  type DelayedLoadResult,
  QueueLoad,
  type QueueLoadOptions,
  type QueueLoadResult,
  type QueueProgress,
  sendDelayed,
} from './queue-load.ts'

/** To a worker's process. */
export type QueueRequest =
  | { readonly type: 'work'; readonly options: QueueLoadOptions }
  | { readonly type: 'measure'; readonly fromMs: number; readonly untilMs: number }
  | { readonly type: 'progress' }
  | { readonly type: 'finish' }
  | { readonly type: 'send-delayed'; readonly options: DelayedLoadOptions }

/** From it. */
export type QueueAnswer =
  | { readonly type: 'done' }
  | { readonly type: 'progress'; readonly progress: QueueProgress }
  | { readonly type: 'worked'; readonly result: QueueLoadResult }
  | { readonly type: 'sent'; readonly result: DelayedLoadResult }

/** A worker of a queue in a process of its own; `QueueProcess` in queue-processes.ts talks to it. */
let load: QueueLoad | undefined

async function handle(request: QueueRequest): Promise<QueueAnswer> {
  switch (request.type) {
    case 'work':
      load = new QueueLoad(request.options)
      await load.start()
      return { type: 'done' }
    case 'measure':
      theLoad().measure(request.fromMs, request.untilMs)
      return { type: 'done' }
    case 'progress':
      return { type: 'progress', progress: theLoad().progress() }
    case 'finish':
      return { type: 'worked', result: await theLoad().finish() }
    case 'send-delayed':
      return { type: 'sent', result: await sendDelayed(request.options) }
    default:
      return unreachable(request)
  }
}

function theLoad(): QueueLoad {
  if (load === undefined) throw new Error('nobody works here yet')
  return load
}

answerRequests(handle)
