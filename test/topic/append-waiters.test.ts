import { getEventListeners } from 'node:events'
import { describe, expect, it } from 'vitest'
import { array, assert, asyncProperty, boolean, nat, oneof, record } from 'fast-check'
import { toOffset } from '../../src/common/offset.ts'
import { AppendWaiters } from '../../src/topic/append-waiters.ts'
import { settle } from '../support/fake-clock.ts'

/** Notes how a promise ended, so that a test can say that it has not. */
function watch(promise: Promise<void>): { state: string } {
  const seen = { state: 'waiting' }
  promise.then(
    () => (seen.state = 'woken'),
    (error: unknown) => (seen.state = String(error)),
  )
  return seen
}

describe('AppendWaiters', () => {
  it('wakes who waits below the end, and nobody at it or above', async () => {
    const waiters = new AppendWaiters()
    const below = watch(waiters.wait(toOffset(4)))
    const at = watch(waiters.wait(toOffset(5)))
    const above = watch(waiters.wait(toOffset(6)))
    waiters.wake(toOffset(5))
    await settle()
    expect([below.state, at.state, above.state]).toEqual(['woken', 'waiting', 'waiting'])
    expect(waiters.size).toBe(2)
  })

  it('does nothing when nobody waits', () => {
    const waiters = new AppendWaiters()
    waiters.wake(toOffset(5))
    waiters.endAll()
    expect(waiters.size).toBe(0)
  })

  it('wakes everyone with the error it is ended with', async () => {
    const waiters = new AppendWaiters()
    const seen = [1, 2, 2].map((from) => watch(waiters.wait(toOffset(from))))
    waiters.endAll(new Error('gone'))
    await settle()
    expect(seen.map((one) => one.state)).toEqual(['Error: gone', 'Error: gone', 'Error: gone'])
    expect(waiters.size).toBe(0)
  })

  it('wakes at once when the signal has aborted before', async () => {
    const waiters = new AppendWaiters()
    await waiters.wait(toOffset(0), AbortSignal.abort())
    expect(waiters.size).toBe(0)
  })

  it('ends all waits of a signal when it aborts, in every partition, and no others', async () => {
    const one = new AppendWaiters()
    const other = new AppendWaiters()
    const controller = new AbortController()
    const ended = [
      watch(one.wait(toOffset(0), controller.signal)),
      watch(other.wait(toOffset(0), controller.signal)),
      watch(other.wait(toOffset(7), controller.signal)),
    ]
    const stays = watch(one.wait(toOffset(0)))
    controller.abort()
    await settle()
    expect(ended.map((wait) => wait.state)).toEqual(['woken', 'woken', 'woken'])
    expect(stays.state).toBe('waiting')
    expect([one.size, other.size]).toEqual([1, 0])
  })

  it('puts one listener on a signal, however often it waits', async () => {
    const waiters = new AppendWaiters()
    const { signal } = new AbortController()
    for (let end = 1; end <= 100; end++) {
      const wait = waiters.wait(toOffset(end - 1), signal)
      waiters.wake(toOffset(end))
      await wait
    }
    expect(getEventListeners(signal, 'abort')).toHaveLength(1)
  })

  it('wakes exactly those whom a plain list would wake, in any history', async () => {
    const step = oneof(
      record({ wait: nat(12), abortable: boolean() }),
      record({ wake: nat(12) }),
      record({ abort: nat(30) }),
    )
    await assert(
      asyncProperty(array(step, { maxLength: 40 }), async (steps) => {
        const waiters = new AppendWaiters()
        const model: { from: number; done: boolean }[] = []
        const seen: { state: string }[] = []
        const controllers: (AbortController | undefined)[] = []
        for (const step of steps) {
          if ('wait' in step) {
            const controller = step.abortable ? new AbortController() : undefined
            controllers.push(controller)
            model.push({ from: step.wait, done: false })
            seen.push(watch(waiters.wait(toOffset(step.wait), controller?.signal)))
          } else if ('wake' in step) {
            waiters.wake(toOffset(step.wake))
            for (const one of model) one.done ||= one.from < step.wake
          } else {
            const controller = controllers[step.abort]
            const one = model[step.abort]
            if (controller === undefined || one === undefined) continue
            controller.abort()
            one.done = true
          }
          expect(waiters.size).toBe(model.filter((one) => !one.done).length)
        }
        await settle()
        expect(seen.map((one) => one.state)).toEqual(
          model.map((one) => (one.done ? 'woken' : 'waiting')),
        )
      }),
    )
  })
})
