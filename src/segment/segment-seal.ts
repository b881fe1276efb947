import { BrokerError } from '../common/errors.ts'
import { crc32c } from '../bytes/crc32c.ts'

/**
 * What proves a sealed segment: written once when it is sealed, as one line of JSON with its own checksum at the end, so that a scrubber,
 * a restore, or a person can check the files beside it.
 */
export interface SegmentSeal {
  readonly format: 1
  readonly baseOffset: number
  /** One past the last offset. */
  readonly endOffset: number
  readonly sizeBytes: number
  /** Of all records; -1 when the segment is empty. */
  readonly maxTimestampMs: number
  /** Where compaction has been: how many records it holds. Left out where every offset has its record. */
  readonly records?: number
  /** CRC-32C of the whole files. */
  readonly logCrc: number
  readonly indexCrc: number
  readonly timeindexCrc: number
}

export function encodeSeal(seal: SegmentSeal): Buffer {
  const body = JSON.stringify(seal)
  return Buffer.from(`${body} ${crc32c(Buffer.from(body)).toString(16).padStart(8, '0')}\n`)
}

/** @throws BrokerError CORRUPT_INDEX when the text is not a whole seal */
export function decodeSeal(bytes: Uint8Array): SegmentSeal {
  const text = Buffer.from(bytes).toString('utf8')
  const match = /^(\{.*\}) ([0-9a-f]{8})\n$/.exec(text)
  const body = match?.[1] ?? ''
  if (match === null || crc32c(Buffer.from(body)) !== Number.parseInt(match[2] ?? '', 16)) {
    throw new BrokerError('CORRUPT_INDEX', 'the seal of a segment is damaged')
  }
  const seal: unknown = JSON.parse(body)
  if (!isSeal(seal)) {
    throw new BrokerError(
      'CORRUPT_INDEX',
      'the seal of a segment lacks fields or is of a later format',
    )
  }
  return seal
}

function isSeal(value: unknown): value is SegmentSeal {
  if (typeof value !== 'object' || value === null) return false
  const seal = value as Readonly<Record<string, unknown>> // An object: any field may be asked for.
  const numbers = ['baseOffset', 'endOffset', 'sizeBytes', 'maxTimestampMs', 'logCrc', 'indexCrc']
  return (
    seal['format'] === 1 &&
    (seal['records'] === undefined || Number.isSafeInteger(seal['records'])) &&
    [...numbers, 'timeindexCrc'].every((name) => Number.isSafeInteger(seal[name]))
  )
}
