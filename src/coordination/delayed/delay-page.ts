import { BrokerError } from '../../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../../common/offset.ts'
import type { DelayShard } from './delay-shard.ts'

/** Where a waiting record stands in the order of all: by due time, then partition, then offset. */
export interface PagePlace {
  readonly dueMs: number
  readonly shard: number
  readonly offset: Offset
}

/** Picks the first waiting records behind a place, in memory for those alone. */
export class DelayPage {
  readonly #limit: number
  readonly #after: PagePlace | undefined
  /** In order. */
  readonly #places: PagePlace[] = []

  constructor(limit: number, after: PagePlace | undefined) {
    this.#limit = limit + 1 // One more, to know whether there is one.
    this.#after = after
  }

  get places(): readonly PagePlace[] {
    return this.#places.slice(0, this.#limit - 1)
  }

  get hasMore(): boolean {
    return this.#places.length === this.#limit
  }

  add(
    shard: DelayShard,
    range: { readonly topic: string; readonly fromMs: number; readonly toMs: number },
  ): void {
    const { topic, fromMs, toMs } = range
    const numbers = topic === '' ? undefined : shard.targets.numbersOf(topic)
    if (numbers?.size === 0) return
    const startMs = Math.max(fromMs, this.#after?.dueMs ?? -Infinity)
    const visit = (dueMs: number, offset: number, number: number): void => {
      if (dueMs < startMs || dueMs >= toMs) return
      if (numbers === undefined || numbers.has(number)) this.#offer(dueMs, shard.index, offset)
    }
    shard.due.visit(startMs, toMs, () => this.#lastMs(), visit)
    for (const number of shard.troubled) shard.targets.get(number).stuck?.forEach(visit)
  }

  #lastMs(): number {
    return this.#places.length < this.#limit ? Infinity : (this.#places.at(-1)?.dueMs ?? Infinity)
  }

  #offer(dueMs: number, shard: number, offset: number): void {
    if (dueMs > this.#lastMs()) return
    const place: PagePlace = { dueMs, shard, offset: toOffset(offset) }
    if (this.#after !== undefined && compare(place, this.#after) <= 0) return
    let low = 0
    let high = this.#places.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (compare(this.#places[middle]!, place) < 0) low = middle + 1
      else high = middle
    }
    this.#places.splice(low, 0, place)
    if (this.#places.length > this.#limit) this.#places.pop()
  }
}

export function formatPageToken(place: PagePlace | undefined): string {
  return place === undefined ? '' : `${place.dueMs}.${place.shard}.${place.offset}`
}

/** @throws BrokerError INVALID_CURSOR */
export function parsePageToken(token: string): PagePlace | undefined {
  if (token === '') return undefined
  const match = /^(\d{1,16})\.(\d{1,5})\.(\d{1,16})$/.exec(token)
  const [dueMs, shard, offset] = (match?.slice(1) ?? []).map(Number)
  if (dueMs === undefined || shard === undefined || !isOffset(offset)) {
    throw new BrokerError('INVALID_CURSOR', 'the page token is none that this broker gave out', {
      pageToken: token.slice(0, 60),
    })
  }
  return { dueMs, shard, offset }
}

function compare(a: PagePlace, b: PagePlace): number {
  return a.dueMs - b.dueMs || a.shard - b.shard || a.offset - b.offset
}
