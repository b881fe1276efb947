import type { AssignorInput, AssignorMember, TopicPartitions } from './subscription-pools.ts'
import { compareText, toAssignment, toSubscriptionPools } from './subscription-pools.ts'

/**
 * Each topic's partitions in contiguous ranges over its subscribers, in the order of instance ids, then of member ids. The first subscribers
 * get one more where it does not come out even. Topics with equal partition counts and the same subscribers are co-partitioned: number 7
 * of both is one member's, so it can join them. The price: what is left over piles up on the first members, topic by topic, and a
 * change of members moves most partitions. Kafka's RangeAssignor.
 */
export function assignRange(input: AssignorInput): Map<string, TopicPartitions> {
  const pools = toSubscriptionPools(input)
  const { members, bases } = pools
  const owners = new Int32Array(bases[pools.topics.length] ?? 0).fill(-1)
  for (const pool of pools.pools) {
    const order = Array.from(pool.members).sort((a, b) => compareMembers(members[a], members[b]))
    for (const topic of pool.topics) {
      const base = bases[topic] ?? 0
      const count = (bases[topic + 1] ?? 0) - base
      const each = Math.floor(count / order.length)
      const longer = count % order.length
      let at = base
      // Only as many subscribers as there are partitions get any.
      for (let i = 0; at < base + count; i++) {
        const end = at + each + (i < longer ? 1 : 0)
        owners.fill(order[i] ?? -1, at, end)
        at = end
      }
    }
  }
  return toAssignment(pools, owners)
}

/** Members with an instance id first: they keep their place through restarts, whoever else comes and goes. */
function compareMembers(a: AssignorMember | undefined, b: AssignorMember | undefined): number {
  const left = a?.instanceId
  const right = b?.instanceId
  if (left !== undefined && right !== undefined && left !== right) return compareText(left, right)
  if ((left === undefined) !== (right === undefined)) return left === undefined ? 1 : -1
  return compareText(a?.memberId ?? '', b?.memberId ?? '')
}
