import type { Clock } from '../../src/common/clock.ts'
import type { Random } from '../../src/common/random.ts'
import { GroupCoordinator } from '../../src/coordination/group/group-coordinator.ts'
import { LocalPeer } from '../../src/coordination/local-peer.ts'
import type { QueueLogger } from '../../src/coordination/queue/companion.ts'
import { QueueCoordinator } from '../../src/coordination/queue/queue-coordinator.ts'
import type { Topics } from '../../src/topic/topics.ts'

/** The queue groups of one broker process, and what they stand on, as the broker wires them. */
export async function openQueues(options: {
  readonly topics: Topics
  readonly clock: Clock
  readonly random: Random
  readonly logger?: QueueLogger | undefined
  /** Made here unless given. */
  readonly groups?: GroupCoordinator | undefined
}): Promise<QueueCoordinator> {
  const { topics, clock, random, logger } = options
  const groups = options.groups ?? (await openGroups(options))
  const peer = new LocalPeer({ topics, clock })
  return QueueCoordinator.open({ topics, groups, peer, clock, random, logger })
}

export function openGroups(options: {
  readonly topics: Topics
  readonly clock: Clock
  readonly random: Random
}): Promise<GroupCoordinator> {
  const { topics, clock, random } = options
  return GroupCoordinator.open({ topics, clock, random, options: { partitions: 1 } })
}
