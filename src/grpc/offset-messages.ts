import { BrokerError } from '../common/errors.ts'
import { isOffset } from '../common/offset.ts'
import type { CommitFailure, OffsetCommitRequest } from '../coordination/group/group-types.ts'
import type { OffsetError } from '../gen/types.ts'
import type { ErrorMapper } from './status.ts'

/** Every partition of a large broker several times over; deciding about more at once would hold everybody else up. */
export const MOST_OFFSETS = 100_000

/** @throws BrokerError INVALID_REQUEST */
export function checkCommitCount(offsets: readonly unknown[]): void {
  if (offsets.length <= MOST_OFFSETS) return
  throw new BrokerError(
    'INVALID_REQUEST',
    `${offsets.length} offsets in one request are more than ${MOST_OFFSETS}`,
    { field: 'offsets', limit: MOST_OFFSETS, actual: offsets.length },
  )
}

/** What may go to the coordinator, and what is no offset at all: refused by itself, without the rest of its commit. */
export function sortOutOffsets(offsets: readonly OffsetCommitRequest[]): {
  readonly valid: readonly OffsetCommitRequest[]
  readonly refused: readonly CommitFailure[]
} {
  if (offsets.every(({ offset }) => isOffset(offset))) return { valid: offsets, refused: [] }
  const refused = offsets
    .filter(({ offset }) => !isOffset(offset))
    .map(({ topic, partition, offset }) => ({
      topic,
      partition,
      error: new BrokerError('INVALID_REQUEST', `${offset} is no offset`, {
        field: 'offset',
        topic,
        partition,
        actual: offset,
      }),
    }))
  return { valid: offsets.filter(({ offset }) => isOffset(offset)), refused }
}

export function toOffsetErrors(
  failures: readonly CommitFailure[],
  errors: ErrorMapper,
  where: string,
): OffsetError[] {
  return failures.map(({ topic, partition, error }) => ({
    topic,
    partition,
    error: errors.toDetail(error, where),
  }))
}
