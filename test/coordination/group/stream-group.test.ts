import { describe, expect, it } from 'vitest'
import { StreamGroup } from '../../../src/coordination/group/stream-group.ts'
import { assignUniform } from '../../../src/coordination/group/uniform-assignor.ts'

describe('a target assignment', () => {
  it('looks only at topics that somebody subscribes to, however many there are', () => {
    const group = new StreamGroup('billing')
    for (const memberId of ['a', 'b']) {
      const member = {
        instanceId: '',
        clientId: '',
        host: '',
        rack: '',
        subscription: { topics: memberId === 'a' ? ['t1'] : ['t1', 't2', 'gone'], pattern: '' },
        sessionTimeoutMs: 45_000,
        rebalanceTimeoutMs: 300_000,
      }
      for (const event of group.decideJoin(memberId, member, undefined)) group.apply(event)
    }
    const partitionCounts = new Map(Array.from({ length: 100 }, (_, i) => [`t${i}`, 4]))
    const looked: string[][] = []
    const events = group.decideTargets(
      { partitionCounts, resolve: ({ topics }) => new Set(topics) },
      (input) => {
        looked.push([...input.partitionCounts.keys()].sort())
        return assignUniform(input)
      },
      true,
    )
    for (const event of events) group.apply(event)
    expect(looked).toEqual([['t1', 't2']])
    expect([...(group.members.get('a')?.owned.keys() ?? [])]).toEqual(['t1'])
    expect(group.state).toBe('stable')
  })
})
