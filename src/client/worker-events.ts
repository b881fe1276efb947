import { Ring } from '../bytes/ring.ts'
import type { ClientLogger } from './api.ts'
import type { WorkerEvent, WorkerEventStream } from './worker-api.ts'

/** What waits for one iterator. */
const MOST_WAITING = 10_000

type Listener<V, R, K> = (event: WorkerEvent<V, R, K>) => void

/** Hands the events of a worker to those who listen. Costs nothing as long as nobody does: see {@link WorkerEvents.isHeard}. */
export class WorkerEvents<V, R, K> {
  readonly #logger: ClientLogger | undefined
  readonly #listeners: Map<WorkerEvent<V, R, K>['type'], Set<Listener<V, R, K>>> = new Map()
  readonly #streams: Set<EventStream<V, R, K>> = new Set()
  #isClosed = false
  /** Somebody listens, to whatever it be. */
  isHeard = false

  constructor(logger: ClientLogger | undefined) {
    this.#logger = logger
  }

  on(type: WorkerEvent<V, R, K>['type'], listener: Listener<V, R, K>): () => void {
    // Of its own: whoever listens twice is told twice, and stops once for each.
    const own: Listener<V, R, K> = (event) => listener(event)
    const listeners = this.#listeners.get(type) ?? new Set()
    this.#listeners.set(type, listeners)
    listeners.add(own)
    this.#look()
    return () => {
      listeners.delete(own)
      if (listeners.size === 0) this.#listeners.delete(type)
      this.#look()
    }
  }

  open(): WorkerEventStream<V, R, K> {
    const stream = new EventStream<V, R, K>(() => {
      this.#streams.delete(stream)
      this.#look()
    })
    if (this.#isClosed) stream.end()
    else this.#streams.add(stream)
    this.#look()
    return stream
  }

  emit(event: WorkerEvent<V, R, K>): void {
    for (const stream of this.#streams) stream.push(event)
    const listeners = this.#listeners.get(event.type)
    if (listeners === undefined) return
    for (const listener of listeners) {
      try {
        listener(event)
      } catch (error) {
        this.#logger?.error(`a listener to '${event.type}' of a worker failed`, { error })
      }
    }
  }

  /** No more will come. */
  close(): void {
    this.#isClosed = true
    for (const stream of this.#streams) stream.end()
    this.#streams.clear()
    this.#look()
  }

  #look(): void {
    this.isHeard = this.#streams.size > 0 || this.#listeners.size > 0
  }
}

class EventStream<V, R, K> implements WorkerEventStream<V, R, K> {
  readonly #onReturn: () => void
  readonly #events: Ring<WorkerEvent<V, R, K>> = new Ring()
  readonly #takers: Ring<(result: IteratorResult<WorkerEvent<V, R, K>, undefined>) => void> =
    new Ring()
  #dropped = 0
  #isOver = false

  constructor(onReturn: () => void) {
    this.#onReturn = onReturn
  }

  get dropped(): number {
    return this.#dropped
  }

  push(event: WorkerEvent<V, R, K>): void {
    const taker = this.#takers.shift()
    if (taker !== undefined) {
      taker({ done: false, value: event })
      return
    }
    if (this.#events.length >= MOST_WAITING) {
      this.#events.shift()
      this.#dropped++
    }
    this.#events.push(event)
  }

  end(): void {
    this.#isOver = true
    for (let taker = this.#takers.shift(); taker !== undefined; taker = this.#takers.shift()) {
      taker({ done: true, value: undefined })
    }
  }

  next(): Promise<IteratorResult<WorkerEvent<V, R, K>, undefined>> {
    const event = this.#events.shift()
    if (event !== undefined) return Promise.resolve({ done: false, value: event })
    if (this.#isOver) return Promise.resolve({ done: true, value: undefined })
    return new Promise((resolve) => {
      this.#takers.push(resolve)
    })
  }

  return(): Promise<IteratorReturnResult<undefined>> {
    this.#events.clear()
    this.end()
    this.#onReturn()
    return Promise.resolve({ done: true, value: undefined })
  }

  [Symbol.asyncIterator](): this {
    return this
  }
}
