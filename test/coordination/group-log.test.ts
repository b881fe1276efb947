import { assert, asyncProperty, integer } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../src/common/offset.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { decodeGroupEvent } from '../../src/coordination/group/group-events.ts'
import { GROUPS_TOPIC } from '../../src/coordination/group/group-coordinator.ts'
import { StreamGroup } from '../../src/coordination/group/stream-group.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import { endOfBatch } from '../../src/record/batch-header.ts'
import { GroupBench, type TestMember } from '../support/group-bench.ts'

/** Joins, leaves, silences, late confirmations and new partitions, as the seed has it. */
async function runHistory(seed: number, steps: number): Promise<GroupBench> {
  const random = new SeededRandom(seed)
  const bench = await new GroupBench({ partitions: 1 }, seed).start({ orders: 7, bills: 3 })
  const members: TestMember[] = []
  const subscriptions = [['orders'], ['bills'], ['orders', 'bills']]
  for (let step = 0; step < steps; step++) {
    const member = members.length === 0 ? undefined : random.pick(members)
    switch (random.below(8)) {
      case 0:
      case 1: {
        const instanceId = random.chance(0.3) ? `i${random.below(3)}` : ''
        const subscription = { topics: random.pick(subscriptions), pattern: '' }
        const request = { instanceId, subscription, sessionTimeoutMs: 6000 }
        try {
          members.push(await bench.join(request, random.chance(0.6)))
        } catch {
          // The instance id is in use: an answer like any other.
        }
        break
      }
      case 2:
        await member?.session.leave().catch(() => undefined)
        break
      case 3:
        member?.session.detach()
        break
      case 4:
        member?.confirmLast()
        break
      case 5:
        await member?.resume(bench).catch(() => undefined)
        break
      case 6:
        for (const some of members) if (random.chance(0.8)) some.session.heartbeat()
        await bench.clock.advance(random.below(3000))
        break
      default:
        if (random.chance(0.2)) await bench.restart()
        else await bench.clock.advance(random.below(1500))
    }
  }
  await bench.clock.advance(10)
  return bench
}

async function* eventsOf(bench: GroupBench): AsyncIterable<ReturnType<typeof decodeGroupEvent>> {
  const partition = bench.topics.getPartition(GROUPS_TOPIC, 0)
  const cursor = new RecordCursor()
  for (let from = partition.logStartOffset; from < partition.highWatermark;) {
    const { chunks, nextOffset } = await partition.read(from, 1 << 20)
    for (const chunk of chunks) {
      for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
        cursor.reset(chunk, at)
        while (cursor.next()) {
          const bytes = Buffer.from(cursor.bytes)
          const key = bytes.toString('utf8', cursor.keyStart, cursor.keyEnd)
          const value =
            cursor.valueStart < 0
              ? null
              : bytes.toString('utf8', cursor.valueStart, cursor.valueEnd)
          yield decodeGroupEvent(key, value)
        }
      }
    }
    from = toOffset(nextOffset)
  }
}

describe('the log of groups', () => {
  it('names one owner at most for each partition, wherever it is cut off', async () => {
    let checked = 0
    await assert(
      asyncProperty(integer({ min: 0, max: 1e9 }), async (seed) => {
        const bench = await runHistory(seed, 60)
        const group = new StreamGroup('billing')
        for await (const event of eventsOf(bench)) {
          group.apply(event)
          const owners = new Map<string, string>()
          for (const [memberId, member] of group.members) {
            for (const [topicId, partitions] of member.owned) {
              for (const partition of partitions.keys()) {
                const name = `${topicId}-${partition}`
                expect(owners.get(name), `${name} after ${JSON.stringify(event)}`).toBeUndefined()
                owners.set(name, memberId)
                expect(group.findOwner(topicId, partition)).toBe(memberId)
              }
            }
          }
          checked++
        }
      }),
      { numRuns: 60 },
    )
    expect(checked).toBeGreaterThan(500)
  })

  it('is replayed to what was known when it was written', async () => {
    await assert(
      asyncProperty(integer({ min: 0, max: 1e9 }), async (seed) => {
        const bench = await runHistory(seed, 40)
        const before = await describeGroup(bench)
        await bench.restart()
        expect(await describeGroup(bench)).toEqual(before)
      }),
      { numRuns: 40 },
    )
  })
})

async function describeGroup(bench: GroupBench): Promise<unknown> {
  const [summary] = await bench.groups.list()
  if (summary === undefined) return undefined
  const { groupEpoch, members, partitions } = await bench.groups.describe('billing')
  return {
    groupEpoch,
    members: members.map((member) => ({
      ...member,
      connected: false,
      sinceHeartbeatMs: 0,
    })),
    owners: partitions.map(({ topic, partition, memberId }) => [topic, partition, memberId]),
  }
}
