import type { PartitionId } from './partition-log.ts'

/**
 * Names a log of one broker: `orders-0`, and `orders-0.state` for the companion beside it. No two have the same name: that of a topic's own
 * partition ends in its number, that of a companion never does (a topic `orders-0.state` has `orders-0.state-0`).
 */
export function partitionName(id: Pick<PartitionId, 'topic' | 'partition' | 'companion'>): string {
  const name = `${id.topic}-${id.partition}`
  return id.companion === undefined ? name : `${name}.${id.companion}`
}

/** True for logs that only the broker writes to: what they hold is how it keeps its promises, also when space is low. */
export function isBrokersOwn(id: Pick<PartitionId, 'topic' | 'companion'>): boolean {
  return id.companion !== undefined || id.topic.startsWith('__')
}
