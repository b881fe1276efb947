import { MIB } from '../common/units.ts'

/** Bytes that are on their way, with a bound. Taking is never refused: whoever takes looks whether there is room and stops if not. */
export class ByteBudget {
  readonly limitBytes: number
  #usedBytes = 0
  #waiters: (() => void)[] = []

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes
  }

  get usedBytes(): number {
    return this.#usedBytes
  }

  get hasRoom(): boolean {
    return this.#usedBytes < this.limitBytes
  }

  take(bytes: number): void {
    this.#usedBytes += bytes
  }

  /** Gives back, and calls those who wait once there is room. */
  give(bytes: number): void {
    this.#usedBytes -= bytes
    if (this.#waiters.length === 0 || !this.hasRoom) return
    const waiters = this.#waiters
    this.#waiters = []
    for (const wake of waiters) wake()
  }

  /** Calls `wake` once, when there is room; soon, when there is some now. It may be gone again by then: look. */
  onRoom(wake: () => void): void {
    if (this.hasRoom) queueMicrotask(wake)
    else this.#waiters.push(wake)
  }
}

/** CONTRACT §5. */
export const CONNECTION_IN_FLIGHT_BYTES: number = 32 * MIB
export const GLOBAL_IN_FLIGHT_BYTES: number = 256 * MIB
export const STREAM_UNSENT_BYTES: number = MIB
export const CONNECTION_UNSENT_BYTES: number = 8 * MIB

/** What one connection has under way, all its streams together. */
export interface ConnectionBudgets {
  /** Received and not yet appended. */
  readonly inFlight: ByteBudget
  /** Handed to grpc-js and not yet on the socket. */
  readonly unsent: ByteBudget
}

/** The budgets of the broker and of each connection. Connections are known by the peer's address and port. */
export class Budgets {
  readonly inFlight: ByteBudget = new ByteBudget(GLOBAL_IN_FLIGHT_BYTES)
  readonly #connections = new Map<string, ConnectionBudgets & { streams: number }>()

  /** Connections that have a stream open. */
  get connections(): number {
    return this.#connections.size
  }

  /** The budgets of a connection, for one stream more. Pair with {@link leave}. */
  enter(peer: string): ConnectionBudgets {
    let connection = this.#connections.get(peer)
    if (connection === undefined) {
      connection = {
        inFlight: new ByteBudget(CONNECTION_IN_FLIGHT_BYTES),
        unsent: new ByteBudget(CONNECTION_UNSENT_BYTES),
        streams: 0,
      }
      this.#connections.set(peer, connection)
    }
    connection.streams++
    return connection
  }

  leave(peer: string): void {
    const connection = this.#connections.get(peer)
    if (connection === undefined) return
    connection.streams--
    if (connection.streams === 0) this.#connections.delete(peer)
  }
}

interface ReadableState {
  highWaterMark?: unknown
}

/**
 * How many messages grpc-js reads ahead while a stream is paused: 16 unless told otherwise, whatever their size, and there is no option for
 * it. Node keeps the number in the stream's state; where that field is gone, 16 it stays.
 */
export function setReadAhead(call: object, messages: number): void {
  // A private field of Node's streams, read as unknown and written only when it is the number that we know.
  const state = (call as { _readableState?: ReadableState })._readableState
  if (state !== undefined && typeof state.highWaterMark === 'number') state.highWaterMark = messages
}
