import { sleep } from '../../src/common/clock.ts'
import { FakeClock } from '../support/fake-clock.ts'
import { expect, it } from 'vitest'

it('fires timers in order of due time, those of one instant in order of scheduling', async () => {
  const clock = new FakeClock()
  const fired: string[] = []
  const note = (name: string) => (): void => void fired.push(`${name}@${clock.monotonicMs()}`)
  clock.schedule(20, note('c'))
  clock.schedule(10, note('a'))
  clock.schedule(20, note('d'))
  clock.schedule(10, note('b'))
  clock.schedule(21, note('late'))
  await clock.advance(20)
  expect(fired).toEqual(['a@10', 'b@10', 'c@20', 'd@20'])
  expect(clock.monotonicMs()).toBe(20)
  expect(clock.nextDueInMs).toBe(1)
})

it('fires timers that are set while it advances, when they fall due on the way', async () => {
  const clock = new FakeClock()
  let ticks = 0
  const tick = (): void => {
    ticks++
    clock.schedule(10, tick)
  }
  clock.schedule(10, tick)
  await clock.advance(95)
  expect(ticks).toBe(9)
  expect(clock.pendingTimers).toBe(1)
})

it('lets promises run between two timers', async () => {
  const clock = new FakeClock()
  const log: string[] = []
  const run = async (): Promise<void> => {
    await sleep(clock, 10)
    log.push(`woke@${clock.monotonicMs()}`)
    await sleep(clock, 10)
    log.push(`again@${clock.monotonicMs()}`)
  }
  const done = run()
  clock.schedule(15, () => log.push('between'))
  await clock.advance(100)
  await done
  expect(log).toEqual(['woke@10', 'between', 'again@20'])
})

it('does not fire what was cancelled, however often', async () => {
  const clock = new FakeClock()
  let fired = 0
  const cancel = clock.schedule(10, () => fired++)
  cancel()
  cancel()
  const other = clock.schedule(10, () => fired++)
  await clock.advance(10)
  other()
  expect(fired).toBe(1)
  expect(clock.pendingTimers).toBe(0)
})

it('steps the wall clock without moving timers', async () => {
  const clock = new FakeClock(1000)
  let fired = false
  clock.schedule(10, () => (fired = true))
  clock.setWall(1_000_000)
  expect(fired).toBe(false)
  expect(clock.monotonicMs()).toBe(0)
  clock.setWall(5)
  await clock.advance(10)
  expect(fired).toBe(true)
  expect(clock.wallMs()).toBe(15)
})
