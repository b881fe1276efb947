import type { TopicPartition } from '../client/index.ts'

/** `0-2,5`: how `--partitions` takes them. */
export function formatPartitions(partitions: readonly number[]): string {
  const sorted = [...new Set(partitions)].sort((a, b) => a - b)
  const runs: string[] = []
  for (let i = 0; i < sorted.length; i++) {
    const first = sorted[i] ?? 0
    let last = first
    while (sorted[i + 1] === last + 1) {
      last++
      i++
    }
    runs.push(last === first ? String(first) : `${first}-${last}`)
  }
  return runs.join(',')
}

/** `orders/0-2,5 payments/1`, by name. */
export function formatTopicPartitions(list: readonly TopicPartition[]): string {
  const byTopic = new Map<string, number[]>()
  for (const { topic, partition } of list) {
    const partitions = byTopic.get(topic)
    if (partitions === undefined) byTopic.set(topic, [partition])
    else partitions.push(partition)
  }
  return [...byTopic]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([topic, partitions]) => `${topic}/${formatPartitions(partitions)}`)
    .join(' ')
}

export function compareTopicPartitions(a: TopicPartition, b: TopicPartition): number {
  if (a.topic !== b.topic) return a.topic < b.topic ? -1 : 1
  return a.partition - b.partition
}
