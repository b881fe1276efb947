import { describe, expect, it } from 'vitest'
import { array, assert, asyncProperty, constantFrom, integer, oneof, record } from 'fast-check'
import { HOUR_MS } from '../../../src/common/units.ts'
import { TimingWheel, type WheelEntry } from '../../../src/coordination/queue/timing-wheel.ts'
import { FakeClock } from '../../support/fake-clock.ts'

interface Entry extends WheelEntry {
  readonly name: string
}

function anEntry(name: string, deadlineMs: number): Entry {
  return { name, deadlineMs, wheelSlot: -1, wheelIndex: -1 }
}

function aWheel(options: { tickMs?: number; slots?: number } = {}): {
  clock: FakeClock
  wheel: TimingWheel<Entry>
  expired: string[]
  calls: number[]
} {
  const clock = new FakeClock()
  const expired: string[] = []
  const calls: number[] = []
  const wheel = new TimingWheel<Entry>(
    clock,
    (entries) => {
      calls.push(entries.length)
      for (const { name } of entries) expired.push(`${name}@${clock.monotonicMs()}`)
    },
    options,
  )
  return { clock, wheel, expired, calls }
}

describe('TimingWheel', () => {
  it('expires at the first tick that is not before the deadline', async () => {
    const { clock, wheel, expired } = aWheel()
    for (const deadlineMs of [99, 100, 101, 250]) wheel.add(anEntry(`${deadlineMs}`, deadlineMs))
    await clock.advance(1000)
    expect(expired.toSorted()).toEqual(['100@100', '101@200', '250@300', '99@100'])
    expect(wheel.size).toBe(0)
  })

  it('tells of all that are due at a tick in one call', async () => {
    const { clock, wheel, calls } = aWheel()
    for (let i = 0; i < 1000; i++) wheel.add(anEntry(`${i}`, 150 + (i % 50)))
    await clock.advance(1000)
    expect(calls).toEqual([1000])
  })

  it('has no timer while it is empty', async () => {
    const { clock, wheel } = aWheel()
    expect(clock.pendingTimers).toBe(0)
    const entry = anEntry('a', 500)
    wheel.add(entry)
    expect(clock.pendingTimers).toBe(1)
    wheel.remove(entry)
    expect(clock.pendingTimers).toBe(0)
    wheel.add(entry)
    await clock.advance(500)
    expect(clock.pendingTimers).toBe(0)
  })

  it('sleeps until the first deadline of its round, and never longer than an hour', () => {
    const { clock, wheel } = aWheel()
    wheel.add(anEntry('a', 30_000))
    expect(clock.nextDueInMs).toBe(30_000)
    wheel.add(anEntry('b', 7000))
    expect(clock.nextDueInMs).toBe(7000)
    const slow = aWheel({ tickMs: HOUR_MS / 4 })
    slow.wheel.add(anEntry('c', 100 * HOUR_MS))
    expect(slow.clock.nextDueInMs).toBe(HOUR_MS)
  })

  it('expires what is due after many rounds, to the tick', async () => {
    const { clock, wheel, expired } = aWheel({ slots: 8 })
    wheel.add(anEntry('a', 12_345))
    await clock.advance(12_399)
    expect(expired).toEqual([])
    await clock.advance(1)
    expect(expired).toEqual(['a@12400'])
  })

  it('keeps what is given more time while it waits', async () => {
    const { clock, wheel, expired } = aWheel()
    const entry = anEntry('a', 300)
    wheel.add(entry)
    await clock.advance(299)
    entry.deadlineMs = 900
    await clock.advance(600)
    expect(expired).toEqual([])
    await clock.advance(1)
    expect(expired).toEqual(['a@900'])
  })

  it('expires at the next tick what is overdue when it is added', async () => {
    const { clock, wheel, expired } = aWheel()
    await clock.advance(1050)
    wheel.add(anEntry('a', 10))
    await clock.advance(50)
    expect(expired).toEqual(['a@1100'])
  })

  it('does nothing when something is removed that has expired, or twice', async () => {
    const { clock, wheel } = aWheel()
    const [a, b] = [anEntry('a', 100), anEntry('b', 1000)]
    wheel.add(a)
    wheel.add(b)
    await clock.advance(100)
    wheel.remove(a)
    expect(wheel.size).toBe(1)
    wheel.remove(b)
    wheel.remove(b)
    expect(wheel.size).toBe(0)
  })

  it('takes back from the callback what is to wait once more', async () => {
    const clock = new FakeClock()
    const times: number[] = []
    const wheel: TimingWheel<Entry> = new TimingWheel<Entry>(clock, (entries) => {
      for (const entry of entries) {
        times.push(clock.monotonicMs())
        if (times.length === 3) continue
        entry.deadlineMs = clock.monotonicMs()
        wheel.add(entry)
      }
    })
    wheel.add(anEntry('a', 100))
    await clock.advance(1000)
    expect(times).toEqual([100, 200, 300])
    expect(clock.pendingTimers).toBe(0)
  })

  it('goes on after a callback that threw', async () => {
    const clock = new FakeClock()
    const seen: string[] = []
    const wheel = new TimingWheel<Entry>(clock, ([entry]) => {
      seen.push(entry?.name ?? '')
      if (seen.length === 1) throw new Error('planned')
    })
    wheel.add(anEntry('a', 100))
    wheel.add(anEntry('b', 300))
    await expect(clock.advance(1000)).rejects.toThrow('planned')
    await clock.advance(1000)
    expect(seen).toEqual(['a', 'b'])
  })

  it('is silent once closed, with what it held and with what comes', async () => {
    const { clock, wheel, expired } = aWheel()
    const held = anEntry('a', 100)
    wheel.add(held)
    wheel.close()
    expect([clock.pendingTimers, wheel.size]).toEqual([0, 0])
    wheel.remove(held)
    wheel.add(anEntry('b', 100))
    await clock.advance(1000)
    expect(expired).toEqual([])
    expect(clock.pendingTimers).toBe(0)
  })

  it('agrees with a sorted list, through jumps of the clock: never early, at most a tick late', async () => {
    const step = oneof(
      record({ kind: constantFrom('add' as const), ms: integer({ min: -500, max: 6000 }) }),
      record({ kind: constantFrom('add' as const), ms: integer({ min: 0, max: 200_000 }) }),
      record({ kind: constantFrom('remove' as const), ms: integer({ min: 0, max: 1000 }) }),
      record({ kind: constantFrom('renew' as const), ms: integer({ min: 0, max: 9000 }) }),
      record({ kind: constantFrom('advance' as const), ms: integer({ min: 0, max: 3000 }) }),
      record({ kind: constantFrom('jump' as const), ms: integer({ min: 0, max: 50_000 }) }),
    )
    const steps = array(step, { maxLength: 60, size: 'max' })
    await assert(
      asyncProperty(steps, constantFrom(2, 7, 64), async (steps, slots) => {
        const clock = new JumpingClock()
        /** What waits, and the earliest time at which it may have become due. */
        const waiting = new Map<Entry, number>()
        let latestMs = 0
        const wheel = new TimingWheel<Entry>(
          clock,
          (entries) => {
            const nowMs = clock.monotonicMs()
            for (const entry of entries) {
              const dueMs = waiting.get(entry)
              expect(dueMs).toBeDefined()
              expect(entry.deadlineMs).toBeLessThanOrEqual(nowMs)
              // A jump is a process that stood still: what fell due meanwhile is due when it wakes.
              if (!clock.isJumping) expect(nowMs - (dueMs ?? 0)).toBeLessThan(100 + 1e-6)
              waiting.delete(entry)
            }
          },
          { slots },
        )
        for (const { kind, ms } of steps) {
          const nowMs = clock.monotonicMs()
          if (kind === 'add') {
            const entry = anEntry('', nowMs + ms)
            waiting.set(entry, Math.max(nowMs, entry.deadlineMs))
            latestMs = Math.max(latestMs, entry.deadlineMs)
            wheel.add(entry)
          } else if (kind === 'advance') await clock.advance(ms)
          else if (kind === 'jump') await clock.jump(ms)
          else {
            const entry = [...waiting.keys()][ms % Math.max(1, waiting.size)]
            if (entry === undefined) continue
            if (kind === 'renew') {
              entry.deadlineMs = Math.max(entry.deadlineMs, nowMs + ms)
              waiting.set(entry, Math.max(nowMs, entry.deadlineMs))
              latestMs = Math.max(latestMs, entry.deadlineMs)
            } else {
              waiting.delete(entry)
              wheel.remove(entry)
            }
          }
          expect(wheel.size).toBe(waiting.size)
        }
        await clock.advance(Math.max(0, latestMs - clock.monotonicMs()) + 100)
        expect(waiting.size).toBe(0)
        expect(clock.pendingTimers).toBe(0)
      }),
      { numRuns: 150 },
    )
  })
})

/** A clock under which a process can be stopped for a while: timers that fall due meanwhile fire after, and new ones may be early. */
class JumpingClock extends FakeClock {
  #noEarlierMs = 0
  isJumping = false

  override monotonicMs(): number {
    return Math.max(super.monotonicMs(), this.#noEarlierMs)
  }

  async jump(byMs: number): Promise<void> {
    this.#noEarlierMs = this.monotonicMs() + byMs
    this.isJumping = true
    await this.advance(byMs)
    this.isJumping = false
  }
}
