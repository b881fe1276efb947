import { crc32c } from '../../bytes/crc32c.ts'

/** What `dedupe.verify` compares: 32 bits of key and value; never 0. */
export function checksumOf(key: Uint8Array | undefined, value: Uint8Array | undefined): number {
  const ofKey = key === undefined ? 1 : crc32c(key)
  const ofValue = value === undefined ? 2 : crc32c(value)
  return (Math.imul(ofKey, 0x9e3779b1) ^ ofValue) >>> 0 || 1
}
