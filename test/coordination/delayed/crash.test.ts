import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { aSend, SendBench } from '../../support/send-bench.ts'

const TOPICS = ['orders-0', 'orders-1', '__delayed-0', '__delayed-1', '__delayed-2', '__delayed-3']
const FIRST_DUE_MS = 100

/** What was answered, by value. */
interface Story {
  readonly accepted: Set<string>
  readonly cancelled: Set<string>
  /** Under way, or refused, when the broker went down: nobody knows. */
  readonly unknown: Set<string>
  /** What the dead process still says, nobody hears. */
  isOver: boolean
}

function newStory(): Story {
  return { accepted: new Set(), cancelled: new Set(), unknown: new Set(), isOver: false }
}

/** Ten records for two partitions, three due together; one is cancelled, one moved, one fired by hand. */
function begin(bench: SendBench, story: Story): void {
  const note = async (value: string, task: () => Promise<unknown>): Promise<void> => {
    story.unknown.add(value)
    try {
      await task()
      if (!story.isOver) story.unknown.delete(value)
    } catch (error) {
      if (!(error instanceof BrokerError)) throw error
    }
  }
  const startMs = bench.clock.wallMs()
  for (let i = 0; i < 10; i++) {
    const value = `v${i}`
    const dedupeId = i % 3 === 0 ? `d${i}` : ''
    const record = aSend({
      value: Buffer.from(value),
      partition: i % 2,
      deliverAtMs: startMs + FIRST_DUE_MS + Math.floor(i / 3) * 4,
      dedupeId,
    })
    void note(value, async () => {
      const [result] = await bench.sends.send('orders', [record])
      if (result === undefined || result.error !== undefined) throw result?.error ?? new Error()
      if (story.isOver) return
      story.accepted.add(value)
      if (i === 4) {
        story.unknown.add(value)
        await bench.sends.cancelDelayed(result.delayId)
        if (!story.isOver) story.cancelled.add(value)
      }
      if (i === 5) await bench.sends.updateDelayed(result.delayId, startMs + FIRST_DUE_MS + 9)
      if (i === 6) await bench.sends.fireDelayed(result.delayId)
    })
  }
}

async function check(bench: SendBench, story: Story): Promise<void> {
  const all = [...(await bench.delivered(0)), ...(await bench.delivered(1))]
  const copies = new Map<string, number>()
  for (const { value = '' } of all) copies.set(value, (copies.get(value) ?? 0) + 1)
  for (const [value, count] of copies) {
    expect([value, count]).toEqual([value, 1])
    expect(story.cancelled.has(value)).toBe(false)
  }
  for (const value of story.accepted) {
    if (story.cancelled.has(value)) continue
    // Cancelled without an answer: gone or not, but never twice.
    if (value === 'v4' && story.unknown.has(value)) continue
    expect([value, copies.get(value) ?? 0]).toEqual([value, 1])
  }
  expect(await bench.finish(bench.sends.countDelayed(''))).toBe(0)
}

async function aBench(durableDelayMs: number): Promise<SendBench> {
  const bench = await SendBench.started({}, 2, { durableDelayMs })
  // The topic of delayed records is there before: its making is not what this is about.
  await bench.send({ delayMs: 1, value: Buffer.from('first') })
  await bench.clock.advance(100)
  return bench
}

describe('exactly one copy', () => {
  it('is there after a crash at any moment of accepting, cancelling, moving and firing', async () => {
    for (let crashMs = 0; crashMs < FIRST_DUE_MS + 60; crashMs += crashMs < 20 ? 1 : 2) {
      const bench = await aBench(3)
      const story = newStory()
      begin(bench, story)
      await bench.clock.advance(crashMs)
      story.isOver = true
      await bench.restart()
      await bench.clock.advance(crashMs % 7)
      await bench.restart()
      await bench.clock.advance(20_000)
      await check(bench, story)
      await bench.close()
    }
  })

  it('is there after two crashes in a row, while firing', async () => {
    for (let crashMs = FIRST_DUE_MS - 2; crashMs < FIRST_DUE_MS + 24; crashMs++) {
      for (let againMs = 0; againMs < 24; againMs += 2) {
        const bench = await aBench(3)
        const story = newStory()
        begin(bench, story)
        await bench.clock.advance(crashMs)
        story.isOver = true
        await bench.restart()
        await bench.clock.advance(againMs)
        await bench.restart()
        await bench.clock.advance(20_000)
        await check(bench, story)
        await bench.close()
      }
    }
  })

  it('is there whichever append fails, and however many after it', async () => {
    for (const failures of [1, 2, 5]) {
      for (let at = 0; ; at++) {
        const bench = await aBench(3)
        const story = newStory()
        let appends = 0
        for (const name of TOPICS) {
          bench.store.beforeAppend.set(name, () => {
            const number = appends++
            if (number >= at && number < at + failures) {
              throw new BrokerError('STORAGE_ERROR', `append ${number} to ${name} fails`)
            }
          })
        }
        begin(bench, story)
        await bench.clock.advance(20_000)
        const total = appends
        await check(bench, story)
        await bench.restart()
        await bench.clock.advance(20_000)
        await check(bench, story)
        await bench.close()
        if (at > total) break
      }
    }
  })

  it('is there where the append went well and its answer was lost', async () => {
    for (let at = 0; at < 40; at++) {
      const bench = await aBench(3)
      const story = newStory()
      begin(bench, story)
      let appends = 0
      bench.store.aroundAppend = async (name, append) => {
        const result = await append()
        if (name.startsWith('orders') && appends++ === at) {
          throw new BrokerError('STORAGE_ERROR', `the answer of ${name} was lost`)
        }
        return result
      }
      await bench.clock.advance(20_000)
      await check(bench, story)
      await bench.close()
    }
  })
})
