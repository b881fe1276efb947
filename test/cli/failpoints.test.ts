import { describe, expect, it } from 'vitest'
import { parseFailpoints } from '../../src/cli/failpoints.ts'

describe('failpoints', () => {
  it('fire at the Nth call of their operation, on their path, once', () => {
    const { beforeOperation, afterOperation } = parseFailpoints('before-sync(orders):EIO@2')
    const sync = (path: string): void => beforeOperation?.('sync', path)
    sync('/d/orders-0/x.log')
    sync('/d/other-0/x.log')
    beforeOperation?.('write', '/d/orders-0/x.log')
    afterOperation?.('sync', '/d/orders-0/x.log')
    expect(() => sync('/d/orders-0/x.log')).toThrow('EIO')
    sync('/d/orders-0/x.log')
  })

  it('may be several', () => {
    const { afterOperation } = parseFailpoints('after-write:ENOSPC, after-rename:EIO')
    expect(() => afterOperation?.('rename', 'x')).toThrow('EIO')
    expect(() => afterOperation?.('write', 'x')).toThrow('ENOSPC')
  })

  it.each(['', 'write:kill', 'after-wriet:kill', 'after-write:boom', 'after-write:kill@x'])(
    'refuses %j: a test that tests nothing must not pass',
    (text) => {
      expect(() => parseFailpoints(text)).toThrow('makes no sense')
    },
  )
})
