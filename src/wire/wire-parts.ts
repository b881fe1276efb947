/** Average size of pieces below which they are joined. */
const JOIN_BELOW_BYTES = 4096

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

  /**
   * The message as gRPC frames it: a flag, 0 for not compressed, and the length; then the pieces. Large pieces are not copied. Small ones are
   * joined: handing a piece to a socket costs more than copying a few KiB.
   */
  framed(): readonly Uint8Array[] {
    const join = this.length / this.#parts.length < JOIN_BELOW_BYTES
    const frame = Buffer.allocUnsafe(join ? 5 + this.length : 5)
    frame.writeUInt8(0, 0)
    frame.writeUInt32BE(this.length, 1)
    if (!join) return [frame, ...this.#parts]
    this.copy(frame, 5)
    return [frame]
  }

  toBuffer(): Buffer {
    const out = Buffer.allocUnsafe(this.length)
    this.copy(out)
    return out
  }
}
