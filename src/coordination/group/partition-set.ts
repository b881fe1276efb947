import type { TopicPartitions } from './assignor.ts'

/** Who has it and since which epoch: partitions by topic id, each with the member epoch at which it was given. */
export type OwnedPartitions = ReadonlyMap<string, ReadonlyMap<number, number>>

export const NOTHING_OWNED: OwnedPartitions = new Map()
export const NO_PARTITIONS: TopicPartitions = new Map()

/** `0-9,12`: numbers that rise, as ranges with both ends. */
export function encodeRanges(partitions: readonly number[]): string {
  const parts: string[] = []
  for (let i = 0; i < partitions.length;) {
    const first = partitions[i] ?? 0
    let last = first
    while (partitions[i + 1] === last + 1) {
      last++
      i++
    }
    i++
    parts.push(first === last ? String(first) : `${first}-${last}`)
  }
  return parts.join(',')
}

/** The reverse; undefined when `text` is nothing that {@link encodeRanges} writes. */
export function decodeRanges(text: string): number[] | undefined {
  const partitions: number[] = []
  if (text === '') return partitions
  for (const part of text.split(',')) {
    const match = /^(\d{1,6})(?:-(\d{1,6}))?$/.exec(part)
    if (match === null) return undefined
    const first = Number(match[1])
    const last = match[2] === undefined ? first : Number(match[2])
    if (last < first || first <= (partitions.at(-1) ?? -1)) return undefined
    for (let partition = first; partition <= last; partition++) partitions.push(partition)
  }
  return partitions
}

export function isSamePartitions(a: TopicPartitions, b: TopicPartitions): boolean {
  if (a.size !== b.size) return false
  for (const [topic, left] of a) {
    const right = b.get(topic)
    if (right === undefined || left.length !== right.length) return false
    for (let i = 0; i < left.length; i++) if (left[i] !== right[i]) return false
  }
  return true
}

/** Without the epochs. */
export function toPartitions(owned: OwnedPartitions): TopicPartitions {
  const result = new Map<string, number[]>()
  for (const [topic, partitions] of owned) {
    result.set(
      topic,
      [...partitions.keys()].sort((a, b) => a - b),
    )
  }
  return result
}

/** What of `owned` is in `kept`. */
export function keepOnly(owned: OwnedPartitions, kept: TopicPartitions): OwnedPartitions {
  const result = new Map<string, ReadonlyMap<number, number>>()
  for (const [topic, partitions] of kept) {
    const had = owned.get(topic)
    if (had === undefined) continue
    const left = new Map<number, number>()
    for (const partition of partitions) {
      const epoch = had.get(partition)
      if (epoch !== undefined) left.set(partition, epoch)
    }
    if (left.size > 0) result.set(topic, left)
  }
  return result
}

/** `owned` and, since `epoch`, `gained`. */
export function withGained(
  owned: OwnedPartitions,
  gained: TopicPartitions,
  epoch: number,
): OwnedPartitions {
  const result = new Map(owned)
  for (const [topic, partitions] of gained) {
    const all = new Map(owned.get(topic))
    for (const partition of partitions) all.set(partition, epoch)
    result.set(topic, all)
  }
  return result
}

/** `owned` without what `excluded` says. */
export function without(
  owned: OwnedPartitions,
  excluded: (topic: string, partition: number) => boolean,
): OwnedPartitions {
  const result = new Map<string, ReadonlyMap<number, number>>()
  for (const [topic, partitions] of owned) {
    const left = new Map<number, number>()
    for (const [partition, epoch] of partitions) {
      if (!excluded(topic, partition)) left.set(partition, epoch)
    }
    if (left.size > 0) result.set(topic, left)
  }
  return result
}

export function countPartitions(partitions: {
  values(): Iterable<{ readonly size: number } | { readonly length: number }>
}): number {
  let count = 0
  for (const some of partitions.values()) count += 'size' in some ? some.size : some.length
  return count
}
