import { describe, expect, it } from 'vitest'
import { forEachLimited, SerialQueue } from '../../src/topic/concurrency.ts'
import { settle } from '../support/fake-clock.ts'

describe('SerialQueue', () => {
  it('runs tasks in order, one at a time, also behind one that fails', async () => {
    const queue = new SerialQueue()
    const seen: string[] = []
    const task =
      (name: string, fails = false) =>
      async (): Promise<string> => {
        seen.push(`${name} begins`)
        await settle()
        seen.push(`${name} ends`)
        if (fails) throw new Error(name)
        return name
      }
    const first = queue.run(task('a'))
    const second = queue.run(task('b', true))
    const third = queue.run(task('c'))
    await expect(second).rejects.toThrow('b')
    expect([await first, await third]).toEqual(['a', 'c'])
    expect(seen).toEqual(['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends'])
  })
})

describe('forEachLimited', () => {
  it('runs every item, and no more than asked at once', async () => {
    let running = 0
    let most = 0
    const seen: number[] = []
    await forEachLimited([1, 2, 3, 4, 5, 6, 7], 3, async (item) => {
      most = Math.max(most, ++running)
      await settle()
      running--
      seen.push(item)
    })
    expect(most).toBe(3)
    expect(seen.sort((a, b) => a - b)).toEqual([1, 2, 3, 4, 5, 6, 7])
  })

  it('runs the others when one fails, and then throws', async () => {
    const seen: number[] = []
    const run = forEachLimited([1, 2, 3], 1, async (item) => {
      if (item === 1) throw new Error('first')
      seen.push(item)
    })
    await expect(run).rejects.toThrow('first')
    expect(seen).toEqual([2, 3])
  })

  it('does nothing for no items', async () => {
    await forEachLimited([], 4, () => Promise.reject(new Error('never called')))
  })
})
