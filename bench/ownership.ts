import { VerificationError } from './verifier.ts'

/** A partition, of several topics, as one number. */
export function toPartitionKey(topic: number, partition: number): number {
  return topic * TOPIC_STRIDE + partition
}

/** No topic of a benchmark has more partitions. */
const TOPIC_STRIDE = 1_000_000

/** Who owned which partition from when until when. Plain numbers in rows of three: thousands of them cross between processes. */
export class OwnershipLedger {
  readonly #since: Map<number, number>[] = []
  readonly #spans: number[] = []
  #owned = 0
  #changedMs = 0

  /** Partitions owned now, by all members together: one that two members own counts twice. */
  get owned(): number {
    return this.#owned
  }

  /** When a member got or gave up a partition last. */
  get changedMs(): number {
    return this.#changedMs
  }

  countOf(member: number): number {
    return this.#since[member]?.size ?? 0
  }

  keysOf(member: number): Iterable<number> {
    return this.#since[member]?.keys() ?? []
  }

  /** The member owns exactly `keys` from now on: what it does not own any more has been given up, before what is new has come. */
  set(member: number, keys: ReadonlySet<number>, nowMs: number): void {
    const since = (this.#since[member] ??= new Map<number, number>())
    for (const [key, fromMs] of since) {
      if (keys.has(key)) continue
      since.delete(key)
      this.#spans.push(key, fromMs, nowMs)
      this.#note(-1, nowMs)
    }
    for (const key of keys) {
      if (since.has(key)) continue
      since.set(key, nowMs)
      this.#note(1, nowMs)
    }
  }

  /** Rows of key, from, until; `until` is Infinity for what is owned now. */
  toSpans(): Float64Array {
    const spans = [...this.#spans]
    for (const since of this.#since) {
      for (const [key, fromMs] of since ?? []) spans.push(key, fromMs, Infinity)
    }
    return Float64Array.from(spans)
  }

  #note(change: number, nowMs: number): void {
    this.#owned += change
    this.#changedMs = nowMs
  }
}

/**
 * Holds that no partition had two owners at any time, whatever processes they were in. Times are of the machine's monotonic clock.
 * @returns how many spans there are: how often a partition came to an owner
 * @throws VerificationError
 */
export function checkSingleOwners(parts: readonly Float64Array[]): number {
  const spans: { key: number; fromMs: number; untilMs: number }[] = []
  for (const part of parts) {
    for (let at = 0; at + 2 < part.length; at += 3) {
      spans.push({ key: part[at] ?? 0, fromMs: part[at + 1] ?? 0, untilMs: part[at + 2] ?? 0 })
    }
  }
  spans.sort((a, b) => a.key - b.key || a.fromMs - b.fromMs || a.untilMs - b.untilMs)
  for (const [i, span] of spans.entries()) {
    const former = spans[i - 1]
    if (former?.key !== span.key || former.untilMs <= span.fromMs) continue
    throw new VerificationError(
      `partition ${span.key} came to an owner at ${span.fromMs} ms, while another had it until ${former.untilMs} ms`,
    )
  }
  return spans.length
}
