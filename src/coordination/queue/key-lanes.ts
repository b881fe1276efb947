import { Ring } from '../../bytes/ring.ts'

/** A record as its keys have it. */
export interface KeyedRecord {
  readonly offset: number
  readonly lane: Lane
  /** What `concurrency.key.max` goes by; undefined: nothing. */
  readonly concurrencyKey: string | undefined
  /** What `rate.key` goes by; undefined: nothing. */
  readonly rateKey: string | undefined
  /** `waiting`: available; `held`: leased, or waiting for a retry that keeps its key. */
  place: 'waiting' | 'held' | 'aside'
}

/** The records of one key, in order. */
export interface Lane {
  readonly key: string
  /** Undefined: any number at a time. */
  readonly limit: number
  /** Ascending by offset. */
  readonly waiting: KeyedRecord[]
  held: number
  /** Records that wait for a retry and let others pass. */
  aside: number
  /** In the ring of lanes to be looked at. */
  isQueued: boolean
}

export type Admission = 'yes' | 'later'

/**
 * Which record comes next where keys matter: of each key the oldest, and of keys the one that has been waiting longest. The broker tracks busy keys, not
 * ranges of keys per worker, so that workers coming and going change nothing (SEMANTICS §3.9).
 */
export class KeyLanes {
  readonly #lanes = new Map<string, Lane>()
  readonly #records = new Map<number, KeyedRecord>()
  readonly #ready = new Ring<Lane>()
  /** Lanes whose first record was not admitted: looked at again when something has changed. */
  readonly #stuck = new Set<Lane>()
  #waiting = 0

  /** Records known: waiting, held and aside. */
  get size(): number {
    return this.#records.size
  }

  get waiting(): number {
    return this.#waiting
  }

  /** Keys that have records. */
  get keys(): number {
    return this.#lanes.size
  }

  get hasReady(): boolean {
    return this.#ready.length > 0
  }

  find(offset: number): KeyedRecord | undefined {
    return this.#records.get(offset)
  }

  /** A record that is available, in a lane of its key; `limit` of it at a time. */
  add(
    offset: number,
    key: string,
    limit: number,
    keys: { readonly concurrencyKey: string | undefined; readonly rateKey: string | undefined },
    place: 'waiting' | 'held' | 'aside' = 'waiting',
  ): void {
    let lane = this.#lanes.get(key)
    if (lane === undefined) {
      lane = { key, limit, waiting: [], held: 0, aside: 0, isQueued: false }
      this.#lanes.set(key, lane)
    }
    const record: KeyedRecord = { offset, lane, ...keys, place }
    this.#records.set(offset, record)
    if (place === 'held') lane.held++
    if (place === 'aside') lane.aside++
    if (place !== 'waiting') return
    this.#insert(record)
  }

  /** The record that could be given out now, or undefined. It stays where it is until {@link hold}. `admit` says whether other limits let it. */
  peek(admit: (record: KeyedRecord) => Admission): KeyedRecord | undefined {
    for (;;) {
      const lane = this.#ready.peek()
      if (lane === undefined) return undefined
      const record = lane.waiting[0]
      if (record === undefined || lane.held >= lane.limit) {
        this.#ready.shift()
        lane.isQueued = false
        continue
      }
      if (admit(record) === 'yes') return record
      this.#ready.shift()
      lane.isQueued = false
      this.#stuck.add(lane)
    }
  }

  /** The record that {@link peek} told has been given out. */
  hold(record: KeyedRecord): void {
    const { lane } = record
    this.#removeWaiting(record)
    record.place = 'held'
    lane.held++
    // Behind the others: every key has its turn.
    if (this.#ready.peek() === lane) {
      this.#ready.shift()
      lane.isQueued = false
    }
    this.#queue(lane)
  }

  /** A held record is available again, in its old place; also one that was aside. */
  giveBack(offset: number): void {
    const record = this.#records.get(offset)
    if (record === undefined || record.place === 'waiting') return
    if (record.place === 'held') record.lane.held--
    else record.lane.aside--
    record.place = 'waiting'
    this.#insert(record)
  }

  /** A held record waits for its retry and lets others of its key pass. */
  setAside(offset: number): void {
    const record = this.#records.get(offset)
    if (record === undefined || record.place !== 'held') return
    record.place = 'aside'
    record.lane.held--
    record.lane.aside++
    this.#queue(record.lane)
  }

  /** The record is settled. */
  remove(offset: number): void {
    const record = this.#records.get(offset)
    if (record === undefined) return
    this.#records.delete(offset)
    const { lane } = record
    if (record.place === 'waiting') this.#removeWaiting(record)
    else if (record.place === 'held') lane.held--
    else lane.aside--
    if (lane.waiting.length === 0 && lane.held === 0 && lane.aside === 0) {
      this.#lanes.delete(lane.key)
      this.#stuck.delete(lane)
    } else this.#queue(lane)
  }

  /** The offset of the record of the same key that has to be settled before this one, if there is one. */
  findBlocking(offset: number): number | undefined {
    const record = this.#records.get(offset)
    if (record === undefined || record.place !== 'waiting') return undefined
    const { lane } = record
    if (lane.limit === Infinity) return undefined
    if (lane.held >= lane.limit) {
      for (const other of this.#records.values()) {
        if (other.lane === lane && other.place === 'held') return other.offset
      }
    }
    const head = lane.waiting[0]
    return head === undefined || head === record ? undefined : head.offset
  }

  /** Other limits may have room now. */
  retryStuck(): void {
    for (const lane of this.#stuck) {
      this.#stuck.delete(lane)
      this.#queue(lane)
    }
  }

  #insert(record: KeyedRecord): void {
    const { lane } = record
    const { waiting } = lane
    let at = waiting.length
    while (at > 0 && (waiting[at - 1]?.offset ?? 0) > record.offset) at--
    waiting.splice(at, 0, record)
    this.#waiting++
    this.#queue(lane)
  }

  #removeWaiting(record: KeyedRecord): void {
    const at = record.lane.waiting.indexOf(record)
    if (at < 0) return
    record.lane.waiting.splice(at, 1)
    this.#waiting--
  }

  #queue(lane: Lane): void {
    if (lane.isQueued || lane.waiting.length === 0 || lane.held >= lane.limit) return
    if (this.#stuck.has(lane)) return
    lane.isQueued = true
    this.#ready.push(lane)
  }
}
