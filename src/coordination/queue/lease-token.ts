import { readI64, readU32, writeI32, writeI64 } from '../../bytes/big-endian.ts'

/**
 * What a worker shows to say that it holds a lease; integers are big-endian. To everybody but the broker these are 16 bytes.
 *   byte  0       4       8               16
 *        ┌───────┬───────┬────────────────┐
 *        │ epoch │ queue │ acquire number │
 *        │ u32   │ u32   │ u64, < 2^53    │
 *        └───────┴───────┴────────────────┘
 */
export interface LeaseToken {
  /** Of the broker's start that gave the lease: a token from before it is recognized and refused. */
  readonly epoch: number
  /** Which partition's state of which group, by a number drawn at random when it was loaded: one from another state is not taken for ours. */
  readonly queue: number
  /** Counts the leases of that state. */
  readonly number: number
}

export const LEASE_TOKEN_BYTES = 16

const queueAt = 4
const numberAt = 8

/** `epoch` and `queue` in [0, 2^32), `number` in [0, 2^53). */
export function encodeToken(token: LeaseToken): Uint8Array {
  const bytes = new Uint8Array(LEASE_TOKEN_BYTES)
  writeI32(bytes, 0, token.epoch)
  writeI32(bytes, queueAt, token.queue)
  writeI64(bytes, numberAt, token.number)
  return bytes
}

/** Undefined for bytes that no broker has given out: INVALID_LEASE_TOKEN. A token that is whole may still name a lease that is over. */
export function decodeToken(bytes: Uint8Array): LeaseToken | undefined {
  if (bytes.length !== LEASE_TOKEN_BYTES) return undefined
  const number = readI64(bytes, numberAt)
  if (number < 0 || !Number.isSafeInteger(number)) return undefined
  return { epoch: readU32(bytes, 0), queue: readU32(bytes, queueAt), number }
}

/** The token as a key of a map, and for people: 32 hexadecimal digits. */
export function tokenKey(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex')
}
