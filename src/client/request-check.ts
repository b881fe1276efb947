import { MillraceError } from './errors.ts'

/** Fields of proto/ that are int32. Encoded, a larger number would lose its upper bits, and another topic, partition or count be meant. */
const INT32_FIELDS: ReadonlySet<string> = new Set([
  'partition',
  'partitions',
  'total',
  'maxBytes',
  'maxWaitMs',
  'minBytes',
  'leaderEpoch',
  'producerEpoch',
  'memberEpoch',
  'sessionTimeoutMs',
  'rebalanceTimeoutMs',
])

/**
 * Checks the numbers of a request, at any depth, before they are encoded.
 * @throws MillraceError INVALID_PARTITION or INVALID_REQUEST that names the field, for a number that the wire could not carry
 */
export function checkNumbers(value: unknown, field = ''): void {
  if (typeof value === 'number') checkNumber(value, field)
  else if (Array.isArray(value)) for (const item of value) checkNumbers(item, field)
  else if (typeof value === 'object' && value !== null && !(value instanceof Uint8Array)) {
    for (const [name, item] of Object.entries(value)) checkNumbers(item, name)
  }
}

function checkNumber(value: number, field: string): void {
  const isInt32 = INT32_FIELDS.has(field)
  const limit = isInt32 ? 2 ** 31 - 1 : Number.MAX_SAFE_INTEGER
  if (Number.isInteger(value) && Math.abs(value) <= limit) return
  const isPartition = field === 'partition' || field === 'partitions' || field === 'total'
  throw new MillraceError(
    isPartition ? 'INVALID_PARTITION' : 'INVALID_REQUEST',
    `${field} ${value} is no whole number of at most ${limit}`,
    { field, actual: value, limit },
  )
}
