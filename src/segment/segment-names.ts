import { toOffset } from '../common/offset.ts'
import type { Offset } from '../common/offset.ts'

/** What a file of a partition's folder is, by its ending. */
export type SegmentFileKind = 'log' | 'index' | 'timeindex' | 'seal' | 'snapshot'

const DIGITS = 20
const NAME = /^(\d{20})\.(log|index|timeindex|seal|snapshot)$/

/** `00000000000000184032.log`: the base offset in 20 digits, as Kafka names its segments. */
export function segmentFileName(baseOffset: Offset, kind: SegmentFileKind): string {
  return `${String(baseOffset).padStart(DIGITS, '0')}.${kind}`
}

const SWAP = /^(\d{20})-(\d{20})\.swap$/

/** `00000000000000000000-00000000000000184032.swap`: a whole segment that takes the place of all that lie in [base, end). */
export function swapFileName(baseOffset: Offset, endOffset: Offset): string {
  const [base, end] = [baseOffset, endOffset].map((one) => String(one).padStart(DIGITS, '0'))
  return `${base}-${end}.swap`
}

/** The range in the name of a swap file, or undefined when it is none. */
export function parseSwapFileName(
  name: string,
): { readonly baseOffset: Offset; readonly endOffset: Offset } | undefined {
  const match = SWAP.exec(name)
  if (match === null) return undefined
  const [baseOffset, endOffset] = [Number(match[1]), Number(match[2])]
  if (!Number.isSafeInteger(endOffset) || baseOffset >= endOffset) return undefined
  return { baseOffset: toOffset(baseOffset), endOffset: toOffset(endOffset) }
}

/** What a file name says, or undefined when it is none of a segment's. */
export function parseSegmentFileName(
  name: string,
): { readonly baseOffset: Offset; readonly kind: SegmentFileKind } | undefined {
  const match = NAME.exec(name)
  if (match === null) return undefined
  const baseOffset = Number(match[1])
  if (!Number.isSafeInteger(baseOffset)) return undefined
  return { baseOffset: toOffset(baseOffset), kind: match[2] as SegmentFileKind } // The pattern lists the kinds.
}
