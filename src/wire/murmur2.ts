const SEED = 0x9747b28c
const MULTIPLIER = 0x5bd1e995

/** Kafka's 32-bit murmur2, signed, so that a key lands in the partition that Kafka's clients would choose. */
export function murmur2(bytes: Uint8Array): number {
  const length = bytes.length
  let hash = SEED ^ length
  let at = 0
  for (; at + 4 <= length; at += 4) {
    let word =
      (bytes[at] ?? 0) |
      ((bytes[at + 1] ?? 0) << 8) |
      ((bytes[at + 2] ?? 0) << 16) |
      ((bytes[at + 3] ?? 0) << 24)
    word = Math.imul(word, MULTIPLIER)
    word ^= word >>> 24
    word = Math.imul(word, MULTIPLIER)
    hash = Math.imul(hash, MULTIPLIER) ^ word
  }
  const left = length - at
  if (left > 0) {
    for (let i = left - 1; i >= 0; i--) hash ^= (bytes[at + i] ?? 0) << (8 * i)
    hash = Math.imul(hash, MULTIPLIER)
  }
  hash ^= hash >>> 13
  hash = Math.imul(hash, MULTIPLIER)
  hash ^= hash >>> 15
  return hash | 0
}

/** The partition of a key, as Kafka's default partitioner chooses it: the sign bit is masked, not negated. */
export function partitionForKey(key: Uint8Array, partitions: number): number {
  return (murmur2(key) & 0x7fffffff) % partitions
}
