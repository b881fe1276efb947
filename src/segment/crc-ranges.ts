import { crc32c } from '../bytes/crc32c.ts'
import { invariant } from '../common/assert.ts'
import { KIB } from '../common/units.ts'
import { combineCrc32c } from './crc-combine.ts'

/** A checksum is kept for each of these; the rest of a range, less than one, is read when it is asked for. */
const STEP_BYTES: number = 4 * KIB
const READ_BYTES: number = 256 * KIB

type Read = (into: Uint8Array, position: number) => Promise<number>

/**
 * Checksums of any ranges of a file from `origin` on, at the price of one pass over it: of each 4 KiB the CRC-32C of everything up to there is
 * kept, and that of a range comes from those of its two ends, since crc(A‖B) = shift(crc(A), |B|) + crc(B).
 */
export class CrcRanges {
  readonly origin: number
  readonly #read: Read
  /** Entry k is the checksum of [origin, origin + k · STEP_BYTES). */
  readonly #upToStep: number[] = [0]
  readonly #rest: Buffer = Buffer.allocUnsafe(STEP_BYTES)

  constructor(read: Read, origin: number) {
    this.#read = read
    this.origin = origin
  }

  /** CRC-32C of [start, end), not before `origin`; undefined when the file ends earlier. */
  async find(start: number, end: number): Promise<number | undefined> {
    invariant(start >= this.origin && end >= start, 'a range lies behind the origin')
    const whole = await this.#findUpTo(end)
    const before = await this.#findUpTo(start)
    if (whole === undefined || before === undefined) return undefined
    return (whole ^ combineCrc32c(before, 0, end - start)) >>> 0
  }

  async #findUpTo(position: number): Promise<number | undefined> {
    const step = Math.floor((position - this.origin) / STEP_BYTES)
    if (this.#upToStep.length <= step && !(await this.#extendTo(step))) return undefined
    const crc = this.#upToStep[step] ?? 0
    const from = this.origin + step * STEP_BYTES
    if (position === from) return crc
    const rest = this.#rest.subarray(0, position - from)
    if ((await this.#read(rest, from)) < rest.length) return undefined
    return crc32c(rest, 0, rest.length, crc)
  }

  async #extendTo(step: number): Promise<boolean> {
    const block = Buffer.allocUnsafe(READ_BYTES)
    while (this.#upToStep.length <= step) {
      const done = this.#upToStep.length - 1
      const wanted = Math.min(READ_BYTES, (step - done) * STEP_BYTES)
      const have = await this.#read(block.subarray(0, wanted), this.origin + done * STEP_BYTES)
      for (let at = 0; at + STEP_BYTES <= have; at += STEP_BYTES) {
        this.#upToStep.push(crc32c(block, at, at + STEP_BYTES, this.#upToStep.at(-1) ?? 0))
      }
      if (have < wanted) return this.#upToStep.length > step
    }
    return true
  }
}
