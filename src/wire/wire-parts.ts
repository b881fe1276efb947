/**
 * A message in pieces, for grpc-js. Before it writes a message grpc-js makes a buffer of `length + 5` bytes, puts its header there and calls
 * `message.copy(buffer, 5)`: both the server (`byteLength`) and the client (`length`) use nothing else of the message. So the pieces are copied
 * once, straight to where they are sent from, and a chunk that a thousand readers wait for is never copied for the message's own sake. The
 * version of grpc-js is pinned to the minor, and the tests over loopback fail if this stops to hold.
 */
export class WireParts {
  readonly length: number
  readonly #parts: readonly Uint8Array[]

  constructor(parts: readonly Uint8Array[]) {
    let length = 0
    for (const part of parts) length += part.length
    this.length = length
    this.#parts = parts
  }

  get byteLength(): number {
    return this.length
  }

  /** Writes the pieces one after the other into `target` from `targetStart` on. */
  copy(target: Uint8Array, targetStart = 0): number {
    let at = targetStart
    for (const part of this.#parts) {
      target.set(part, at)
      at += part.length
    }
    return this.length
  }

  toBuffer(): Buffer {
    const out = Buffer.allocUnsafe(this.length)
    this.copy(out)
    return out
  }
}
