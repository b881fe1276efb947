import { afterEach, describe, expect, it, vi } from 'vitest'
import { TopicPattern } from '../../../src/coordination/group/topic-pattern.ts'
import { TopicView } from '../../../src/coordination/group/topic-view.ts'
import { GroupBench } from '../../support/group-bench.ts'

afterEach(() => {
  vi.restoreAllMocks()
})

describe('a pattern of topics', () => {
  it('follows topics as they come and go, and looks at each name once', async () => {
    const bench = await new GroupBench().start({ 'orders-eu': 1, 'orders-us': 1, lines: 1 })
    const { topics } = bench
    const view = new TopicView(topics)
    topics.onChange(() => view.invalidate())
    const matches = vi.spyOn(TopicPattern.prototype, 'matches')
    const found = (): (string | undefined)[] =>
      [...view.resolve({ topics: [], pattern: '^orders-' })].map((id) => view.nameOf(id)).sort()
    expect(found()).toEqual(['orders-eu', 'orders-us'])
    expect(found()).toEqual(['orders-eu', 'orders-us'])
    await topics.create({ name: 'orders-asia', partitions: 1 })
    expect(found()).toEqual(['orders-asia', 'orders-eu', 'orders-us'])
    await topics.delete('orders-eu')
    expect(found()).toEqual(['orders-asia', 'orders-us'])
    await topics.create({ name: 'orders-eu', partitions: 1 })
    await topics.create({ name: 'payments', partitions: 1 })
    expect(found()).toEqual(['orders-asia', 'orders-eu', 'orders-us'])
    // The three of the beginning, and the three that came: one of them under an old name.
    expect(matches).toHaveBeenCalledTimes(6)
  })
})
