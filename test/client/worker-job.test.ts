import { describe, expect, it } from 'vitest'
import { fromThreadError, toThreadError } from '../../src/client/thread-messages.ts'
import { type Job, toWorkError, type VerdictOptions } from '../../src/client/worker-job.ts'
import { settleByError } from '../../src/client/worker-runs.ts'

function withField(name: string, value: unknown): Error {
  return Object.defineProperty(new Error('it failed'), name, { value })
}

function withGetter(name: string): Error {
  const get = (): never => {
    throw new Error('nobody may look')
  }
  return Object.defineProperty(new Error('it failed'), name, { get })
}

const hostile = new Proxy(
  {},
  {
    get: () => {
      throw new Error('nobody may look')
    },
  },
)

/** What handlers of programs in plain JavaScript throw. */
const ODD: readonly (readonly [string, unknown])[] = [
  ['undefined', undefined],
  ['null', null],
  ['a symbol', Symbol('s')],
  ['a bigint', 10n],
  ['a function', () => 1],
  ['an object without a prototype', Object.create(null)],
  ['an object whose toJSON says nothing', { toJSON: () => undefined }],
  ['a proxy that throws', hostile],
  ['an error with an object for a message', withField('message', { reason: 'no' })],
  ['an error without a message', withField('message', undefined)],
  ['an error with an object for a stack', withField('stack', { frames: [] })],
  ['an error with a number for a name', withField('name', 5)],
  ['an error with a function for a message', withField('message', () => 1)],
  ['an error whose prototype has no constructor', Object.setPrototypeOf(new Error('x'), null)],
  ['an error whose message throws', withGetter('message')],
  ['an error whose name throws', withGetter('name')],
  ['an error whose code throws', withGetter('code')],
]

describe('what a handler throws', () => {
  it.each(ODD)('becomes an error that the broker takes, of %s', (_, thrown) => {
    const { type, message, stack } = toWorkError(thrown)
    expect([typeof type, typeof message, typeof stack]).toEqual(['string', 'string', 'string'])
  })

  it.each(ODD)('crosses between threads, of %s', (_, thrown) => {
    const error = fromThreadError(structuredClone(toThreadError(thrown)))
    expect(error).toBeInstanceOf(Error)
    expect(typeof error.message).toBe('string')
  })

  it.each(ODD)('is a failure that is retried, of %s', (_, thrown) => {
    const settled: [string, VerdictOptions | undefined][] = []
    const job = {
      settle: (verdict: string, options?: VerdictOptions) => settled.push([verdict, options]),
    }
    settleByError(job as unknown as Job<unknown, unknown>, thrown, undefined, undefined)
    expect(settled).toHaveLength(1)
    expect(settled[0]?.[0]).toBe('retry')
    expect(settled[0]?.[1]?.error === thrown).toBe(true)
  })

  it('keeps the text of a message that is no text', () => {
    expect(toWorkError(withField('message', { reason: 'no' })).message).toBe('{"reason":"no"}')
    expect(toThreadError({ status: 503 }).message).toBe('{"status":503}')
  })
})
