import { ORDERING_KEY_HEADER } from '../../common/job-headers.ts'
import { toOffset } from '../../common/offset.ts'
import type { RecordCursor } from '../../record/record-cursor.ts'
import type { Partition } from '../../topic/partition.ts'
import type { BatchShelf, Shelved } from './batch-shelf.ts'
import { findFormerFailures } from './dead-letter-record.ts'
import { findHeaderText } from './header-text.ts'
import { type Admission, type KeyedRecord, KeyLanes } from './key-lanes.ts'
import type { LeaseHolder } from './lease.ts'
import { isRetryTopic } from './names.ts'
import { isolate, type Offer } from './offer.ts'
import type { QueueConfig } from './queue-config.ts'
import type { QueueOwner } from './queue-owner.ts'
import type { QueueEvent, QueueState, Run } from './queue-state.ts'

/** The partition whose records have keys. */
export interface KeyedPartition {
  readonly owner: QueueOwner
  readonly source: Partition
  readonly state: QueueState
  readonly shelf: BatchShelf
  readonly config: QueueConfig
  readonly isClosed: boolean
}

export interface KeyedQueueOptions {
  readonly queue: KeyedPartition
  /** Reads ahead from an offset that is not on the shelf. */
  load(offset: number): Promise<Shelved>
  /** `queue.delay.ms` forbids to look at it yet; then it is looked at again when it does not. */
  isTooYoung(shelved: Shelved): boolean
  /** Retention may have less to wait for. */
  holdRetention(): void
}

/**
 * How a partition gives out records where keys matter (`order=key`, limits by key), and those of retry topics: every record is looked at, and goes out alone
 * when its keys are free. Off otherwise; then only keys still held from before are known.
 */
export class KeyedQueue {
  readonly #queue: KeyedPartition
  readonly #options: KeyedQueueOptions
  #lanes: KeyLanes | undefined
  #isLoaded = true
  /** Lanes were passed over for what their member has in hand: another one may have them. */
  #hasHeldBack = false
  /** Of leased records, by offset, the keys that `concurrency.key.max` counts. */
  readonly #heldKeys = new Map<number, string>()

  constructor(options: KeyedQueueOptions) {
    this.#queue = options.queue
    this.#options = options
  }

  /** Records go out by their keys. */
  get isOn(): boolean {
    return this.#lanes !== undefined
  }

  /** The keys of all that is not settled are known; else {@link load} them first. */
  get isLoaded(): boolean {
    return this.#isLoaded
  }

  /** {@link offer} might find something. */
  get hasReady(): boolean {
    return this.#lanes !== undefined && (this.#lanes.hasReady || this.#hasHeldBack)
  }

  /** More may be looked at. */
  get hasRoom(): boolean {
    const lanes = this.#lanes
    const { state, config } = this.#queue
    return (
      lanes !== undefined &&
      state.runs.length < config.maxRuns &&
      state.count('acquired') < config.maxInflight &&
      lanes.waiting < config.maxRuns &&
      lanes.keys < config.orderMaxBusyKeys
    )
  }

  /** Settings are others now, or known for the first time. */
  configure(): void {
    const { config, source, state } = this.#queue
    const wanted =
      config.order === 'key' ||
      config.concurrencyKeyMax > 0 ||
      (config.rateMax > 0 && config.rateKey !== '') ||
      // Redriven records may begin with failures, which stands in their headers.
      isRetryTopic(source.topic)
    // Which keys records have depends on the settings, so they are looked up anew, also when there were lanes before.
    this.#lanes = wanted ? new KeyLanes() : undefined
    this.#isLoaded = !wanted || state.runs.length === 0
  }

  /** Other limits may have room now. */
  retryStuck(): void {
    this.#lanes?.retryStuck()
  }

  /** Another member asks: it may have what was kept from the last one. */
  retryHeldBack(): void {
    if (!this.#hasHeldBack) return
    this.#hasHeldBack = false
    this.#lanes?.retryStuck()
  }

  /**
   * Looks up the keys of what is below the scan offset and not settled.
   * @throws BrokerError (as rejection) what `load` throws
   */
  async load(): Promise<void> {
    const lanes = this.#lanes
    if (lanes === undefined) return
    const { state, shelf } = this.#queue
    const add = (cursor: RecordCursor): void => {
      const run = state.find(cursor.offset)
      if (run === undefined || lanes.find(cursor.offset) !== undefined) return
      this.#bear(cursor, run)
      this.#add(lanes, cursor, this.#placeOf(run))
      const key = lanes.find(cursor.offset)?.concurrencyKey
      if (run.state === 'acquired' && key !== undefined) this.#holdKey(cursor.offset, key)
    }
    for (let from = state.start; from < state.scan;) {
      const run = state.find(from) ?? state.runs.find((one) => one.first >= from)
      if (run === undefined) break
      let at = Math.max(run.first, from)
      const shelved = shelf.find(at) ?? (await this.#options.load(at))
      if (this.#lanes !== lanes || this.#queue.isClosed) return
      const end = Math.min(shelved.end, state.scan)
      while (at < end) {
        const cursor = shelved.seek(at)
        const next = Math.min(cursor?.offset ?? end, end)
        // Nobody will ever ask for what is not there.
        if (next > at) state.pass(at, next)
        if (cursor === undefined || next === end) break
        add(cursor)
        at = next + 1
      }
      from = toOffset(end)
    }
    this.#isLoaded = true
    this.#options.holdRetention()
  }

  /** The next record whose keys are free, of those that have been looked at. */
  offer(holder: LeaseHolder): Offer | undefined {
    const lanes = this.#lanes
    if (lanes === undefined) return undefined
    const { state, config, owner } = this.#queue
    const admit = (record: KeyedRecord): Admission => {
      if (holder.lastChances > 0) {
        const run = state.find(record.offset)
        if (run !== undefined && isolate(run, config.maxAttempts).isLastChance) {
          this.#hasHeldBack = true
          return 'later'
        }
      }
      return owner.admit(record)
    }
    for (;;) {
      const keyed = lanes.peek(admit)
      if (keyed === undefined) return undefined
      const run = state.find(keyed.offset)
      if (run?.state !== 'available') {
        lanes.remove(keyed.offset) // Retention has taken it.
        continue
      }
      const { isLastChance } = isolate(run, config.maxAttempts)
      return { first: keyed.offset, end: keyed.offset + 1, run, most: 1, isLastChance, keyed }
    }
  }

  /**
   * Puts the records of one batch into their lanes. False when there is nothing to look at now.
   * @throws BrokerError (as rejection) what `load` throws
   */
  async lookAhead(): Promise<boolean> {
    const lanes = this.#lanes
    if (lanes === undefined) return false
    const { state, source, shelf } = this.#queue
    const from = Math.max(state.scan, source.logStartOffset)
    const shelved = shelf.find(from) ?? (await this.#options.load(from))
    if (this.#queue.isClosed) return false
    // Settings have changed, or retention has gone on.
    if (this.#lanes !== lanes || from < state.scan) return true
    const end = Math.min(shelved.end, source.highWatermark)
    if (shelved.isGap) {
      state.pass(from, end)
      return true
    }
    if (this.#options.isTooYoung(shelved)) return false
    let at: number = from
    while (at < end && this.hasRoom) {
      const cursor = shelved.seek(at)
      if (cursor === undefined || cursor.offset >= end) {
        state.pass(at, end)
        at = end
        break
      }
      if (cursor.offset > at) state.pass(at, cursor.offset)
      at = cursor.offset + 1
      state.advanceScan(at, 'available')
      this.#bear(cursor, state.find(cursor.offset))
      this.#add(lanes, cursor, 'waiting')
    }
    return true
  }

  /** What {@link offer} told goes out. */
  hold(record: KeyedRecord): void {
    this.#lanes?.hold(record)
    if (record.concurrencyKey !== undefined) this.#holdKey(record.offset, record.concurrencyKey)
    this.#queue.owner.admitted(record)
  }

  /** Its retry is due. */
  giveBack(offset: number): void {
    this.#lanes?.giveBack(offset)
  }

  /** There is no such record. */
  remove(offset: number): void {
    this.#lanes?.remove(offset)
  }

  /** What happened to records, as their keys are concerned. */
  follow(type: QueueEvent['type'], first: number, end: number): void {
    const lanes = this.#lanes
    if (lanes === undefined) return
    for (let offset = first; offset < end; offset++) {
      if (type === 'available') lanes.giveBack(offset)
      else if (type === 'accepted' || type === 'dead') lanes.remove(offset)
      else if (!this.#keepsKey()) lanes.setAside(offset)
    }
  }

  /** Records are not leased any more. Also when keys do not count any more: they did when the records went out. */
  freeKeys(range: { readonly first: number; readonly end: number }): void {
    for (let offset = range.first; offset < range.end && this.#heldKeys.size > 0; offset++)
      this.#freeKey(offset)
  }

  freeAllKeys(): void {
    for (const key of this.#heldKeys.values()) this.#queue.owner.heldKey(key, -1)
    this.#heldKeys.clear()
  }

  /** See {@link KeyLanes.findBlocking}. */
  findBlocking(offset: number): number | undefined {
    return this.#lanes?.findBlocking(offset)
  }

  #placeOf(run: Run): KeyedRecord['place'] {
    if (run.state === 'available') return 'waiting'
    if (run.state === 'acquired') return 'held'
    return this.#keepsKey() ? 'held' : 'aside'
  }

  /** What is not settled, and not to be had now, holds its key. */
  #keepsKey(): boolean {
    const { config } = this.#queue
    return config.order !== 'none' && config.orderOnFailure === 'block'
  }

  #add(lanes: KeyLanes, cursor: RecordCursor, place: KeyedRecord['place']): void {
    const { config } = this.#queue
    const headers = cursor.headerCount === 0 ? [] : cursor.readHeaders()
    const ordering = findHeaderText(headers, ORDERING_KEY_HEADER) ?? keyOf(cursor)
    const concurrencyKey =
      config.concurrencyKeyMax === 0
        ? undefined
        : config.concurrencyKey === ''
          ? ordering
          : findHeaderText(headers, config.concurrencyKey)
    const rateKey =
      config.rateMax === 0 || config.rateKey === ''
        ? undefined
        : config.rateKey === 'key'
          ? ordering
          : findHeaderText(headers, config.rateKey)
    const ordered =
      config.order === 'partition' || (config.order === 'key' && ordering !== undefined)
    // A letter in front keeps a key from being taken for the absence of one. Other limits' keys make lanes too, so that one that is stuck holds up only its own.
    const lane = ordered
      ? config.order === 'partition'
        ? 'p'
        : `k${ordering}`
      : concurrencyKey !== undefined
        ? `c${concurrencyKey}`
        : rateKey === undefined
          ? ''
          : `r${rateKey}`
    lanes.add(cursor.offset, lane, ordered ? 1 : Infinity, { concurrencyKey, rateKey }, place)
  }

  /** A redriven record may begin with the failures that its headers tell of. Not written: it will be found so again. */
  #bear(cursor: RecordCursor, run: Run | undefined): void {
    const { source, state } = this.#queue
    if (run?.state !== 'available' || run.deliveries > 0 || run.failures > 0) return
    if (cursor.headerCount === 0 || !isRetryTopic(source.topic)) return
    const failures = findFormerFailures(source.topic, cursor.readHeaders())
    if (failures === 0) return
    state.apply({
      type: 'available',
      first: cursor.offset,
      end: cursor.offset + 1,
      deliveries: 0,
      failures,
      stalled: false,
      firstDeliveredMs: 0,
    })
  }

  #holdKey(offset: number, key: string): void {
    if (this.#heldKeys.has(offset)) return
    this.#heldKeys.set(offset, key)
    this.#queue.owner.heldKey(key, 1)
  }

  #freeKey(offset: number): void {
    const key = this.#heldKeys.get(offset)
    if (key === undefined) return
    this.#heldKeys.delete(offset)
    this.#queue.owner.heldKey(key, -1)
  }
}

/** One byte a letter: keys are compared, never shown. */
function keyOf(cursor: RecordCursor): string | undefined {
  if (cursor.keyStart < 0) return undefined
  const { bytes, keyStart, keyEnd } = cursor
  return Buffer.from(bytes.buffer, bytes.byteOffset + keyStart, keyEnd - keyStart).toString(
    'latin1',
  )
}
