import { unreachable } from '../src/common/assert.ts'
import { answerRequests } from './child-process.ts'
import { produceLoad, type ProduceLoadOptions, type ProduceLoadResult } from './produce-load.ts'
import { ReadLoad, type ReadLoadOptions, type ReadLoadResult } from './read-load.ts'
import { SteadyLoad, type SteadyLoadOptions } from './steady-load.ts'

/** To a load's process. */
export type LoadRequest =
  | { readonly type: 'produce'; readonly options: ProduceLoadOptions }
  | { readonly type: 'read'; readonly options: ReadLoadOptions }
  | { readonly type: 'await-begin' }
  | { readonly type: 'measure'; readonly edges: readonly number[] }
  | { readonly type: 'finish'; readonly sent: readonly number[] }
  | { readonly type: 'begin-steady'; readonly options: SteadyLoadOptions }
  | { readonly type: 'end-steady' }

/** From it. */
export type LoadAnswer =
  | { readonly type: 'produced'; readonly result: ProduceLoadResult }
  | { readonly type: 'reading' }
  | { readonly type: 'read'; readonly result: ReadLoadResult }
  | { readonly type: 'writing' }
  | { readonly type: 'written'; readonly records: number }

/** Producers or readers in a process of their own; `LoadProcess` in load-processes.ts talks to it. */
let reading: ReadLoad | undefined
let steady: SteadyLoad | undefined

async function handle(request: LoadRequest): Promise<LoadAnswer> {
  switch (request.type) {
    case 'produce':
      return { type: 'produced', result: await produceLoad(request.options) }
    case 'read':
      reading = new ReadLoad(request.options)
      await reading.start()
      return { type: 'reading' }
    case 'await-begin':
      await reading?.begun()
      return { type: 'reading' }
    case 'measure':
      reading?.measure(request.edges)
      return { type: 'reading' }
    case 'finish':
      if (reading === undefined) throw new Error('nothing is being read')
      return { type: 'read', result: await reading.finish(request.sent) }
    case 'begin-steady':
      steady = new SteadyLoad(request.options)
      steady.start()
      return { type: 'writing' }
    case 'end-steady':
      if (steady === undefined) throw new Error('nothing is being written')
      return { type: 'written', records: await steady.finish() }
    default:
      return unreachable(request)
  }
}

answerRequests(handle)
