import { ATTEMPTS_HEADER, BACKOFF_HEADER } from '../../common/job-headers.ts'
import type { RecordHeader } from '../../record/batch-builder.ts'
import { type BackoffOverride, parseBackoff } from './backoff.ts'
import type { BatchShelf } from './batch-shelf.ts'
import { findHeaderText } from './header-text.ts'
import type { QueueState, Run } from './queue-state.ts'

/** What a record says of its own retries. */
export interface RecordLimits {
  readonly attempts: number | undefined
  readonly backoff: BackoffOverride | undefined
}

export const NO_LIMITS: RecordLimits = { attempts: undefined, backoff: undefined }

/**
 * Adds to `limits`, by offset, what records of [first, end) that are not settled say of their own retries; most say nothing. What was found before a failure stays.
 * @throws BrokerError (as rejection) what {@link BatchShelf.load} throws
 */
export async function readLimits(
  queue: { readonly state: QueueState; readonly shelf: BatchShelf },
  first: number,
  end: number,
  limits: Map<number, RecordLimits>,
): Promise<void> {
  for (const run of queue.state.within(first, end)) {
    let at = run.first
    while (at < run.end) {
      const shelved = queue.shelf.find(at) ?? (await queue.shelf.load(at, false))
      const cursor = shelved.seek(at)
      if (cursor === undefined) {
        at = shelved.end
        continue
      }
      if (cursor.offset < run.end && cursor.headerCount > 0) {
        const own = toLimits(cursor.readHeaders())
        if (own !== undefined) limits.set(cursor.offset, own)
      }
      at = cursor.offset + 1
    }
  }
}

/** Failures after which a record is given up; 0: never. A record may ask for fewer than its group allows, not for more. */
export function toAttemptsLimit(own: RecordLimits, maxAttempts: number): number {
  if (own.attempts === undefined) return maxAttempts
  return maxAttempts === 0 ? own.attempts : Math.min(own.attempts, maxAttempts)
}

/** Pieces whose records have the same limits: those with their own stand alone. */
export function splitByLimits(
  run: Run,
  limits: ReadonlyMap<number, RecordLimits> | undefined,
): Run[] {
  if (limits === undefined || limits.size === 0) return [run]
  const parts: Run[] = []
  let from = run.first
  for (let offset = run.first; offset < run.end; offset++) {
    if (!limits.has(offset)) continue
    if (from < offset) parts.push({ ...run, first: from, end: offset })
    parts.push({ ...run, first: offset, end: offset + 1 })
    from = offset + 1
  }
  if (from < run.end) parts.push({ ...run, first: from })
  return parts
}

function toLimits(headers: readonly RecordHeader[]): RecordLimits | undefined {
  const attemptsText = findHeaderText(headers, ATTEMPTS_HEADER)
  const backoffText = findHeaderText(headers, BACKOFF_HEADER)
  if (attemptsText === undefined && backoffText === undefined) return undefined
  const attempts =
    attemptsText !== undefined && /^\d{1,4}$/.test(attemptsText) ? Number(attemptsText) : undefined
  let backoff: BackoffOverride | undefined
  try {
    if (backoffText !== undefined) backoff = parseBackoff(backoffText)
  } catch {
    backoff = undefined // A producer of another kind wrote it: the group's rule is what is left.
  }
  return { attempts: attempts === 0 ? undefined : attempts, backoff }
}
