import { unreachable } from '../src/common/assert.ts'
import { produceLoad, type ProduceLoadOptions, type ProduceLoadResult } from './produce-load.ts'
import { ReadLoad, type ReadLoadOptions, type ReadLoadResult } from './read-load.ts'

/** To a load's process. */
export type LoadRequest =
  | { readonly type: 'produce'; readonly options: ProduceLoadOptions }
  | { readonly type: 'read'; readonly options: ReadLoadOptions }
  | { readonly type: 'await-begin' }
  | { readonly type: 'measure'; readonly edges: readonly number[] }
  | { readonly type: 'finish'; readonly sent: readonly number[] }

/** From it. */
export type LoadAnswer =
  | { readonly type: 'produced'; readonly result: ProduceLoadResult }
  | { readonly type: 'reading' }
  | { readonly type: 'read'; readonly result: ReadLoadResult }
  | { readonly type: 'failed'; readonly message: string }

/** Producers or readers in a process of their own; `LoadProcess` in load-processes.ts talks to it. */
let reading: ReadLoad | undefined

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
    default:
      return unreachable(request)
  }
}

process.on('message', (request: LoadRequest) => {
  handle(request)
    .catch((error: unknown): LoadAnswer => ({
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
