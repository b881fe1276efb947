import { BrokerError } from '../common/errors.ts'
import { HOUR_MS, KIB } from '../common/units.ts'
import type { AckFailure, AckItem, WorkError } from '../coordination/queue/queue-types.ts'
import type { ErrorDetailMessage } from '../wire/error-detail.ts'
import type { AckItemMessage, WorkErrorMessage } from '../wire/work-codec.ts'
import type { ErrorMapper } from './status.ts'

/** A worker that leased more with one token each may say so in several lists; deciding about more at once would hold everybody else up. */
const MOST_ITEMS = 10_000
const TOKEN_BYTES = 16
const LONGEST_PAUSE_MS: number = HOUR_MS
const MOST_TYPE_BYTES = 128
const MOST_MESSAGE_BYTES: number = 2 * KIB
const MOST_STACK_BYTES: number = 8 * KIB

/** @throws BrokerError INVALID_REQUEST */
export function checkAckCount(items: readonly unknown[]): void {
  if (items.length <= MOST_ITEMS) return
  throw new BrokerError(
    'INVALID_REQUEST',
    `${items.length} acknowledgements in one list are more than ${MOST_ITEMS}`,
    { field: 'items', limit: MOST_ITEMS, actual: items.length },
  )
}

/**
 * Has `act` do what can be done of `items`, called before this returns; what is malformed is refused by itself, without the rest.
 * Resolves to all that was refused, in the order of the items; `act` may add places of items to `dead`. Rejects as `act` does.
 */
export async function acknowledge(
  items: readonly AckItemMessage[],
  act: (valid: readonly AckItem[], dead: number[]) => Promise<readonly AckFailure[]>,
  dead: number[] = [],
): Promise<readonly AckFailure[]> {
  const refused: AckFailure[] = []
  for (const [index, item] of items.entries()) {
    const error = findFault(item)
    if (error !== undefined) refused.push({ index, error })
  }
  if (refused.length === 0) return items.length === 0 ? [] : act(items.map(cutError), dead)
  const faults = new Set(refused.map(({ index }) => index))
  const places: number[] = []
  const valid: AckItem[] = []
  for (const [index, item] of items.entries()) {
    if (faults.has(index)) continue
    places.push(index)
    valid.push(cutError(item))
  }
  if (valid.length === 0) return refused
  const given: number[] = []
  for (const { index, error } of await act(valid, given)) {
    refused.push({ index: places[index] ?? index, error })
  }
  for (const index of given) dead.push(places[index] ?? index)
  return refused.sort((a, b) => a.index - b.index)
}

/** Failures as they go out. Those that share an error are logged once. */
export function toAckFailures(
  failures: readonly AckFailure[],
  errors: ErrorMapper,
  where: string,
): { readonly index: number; readonly error: ErrorDetailMessage }[] {
  const details = new Map<BrokerError, ErrorDetailMessage>()
  return failures.map(({ index, error }) => {
    let detail = details.get(error)
    if (detail === undefined) {
      detail = errors.toDetail(error, where)
      details.set(error, detail)
    }
    return { index, error: detail }
  })
}

/** What is wrong with an item whatever it is about; ranges and delays are the queue's to judge. */
function findFault(item: AckItemMessage): BrokerError | undefined {
  const { problem, token, verdict, pauseGroupMs } = item
  if (problem !== undefined) return problem
  if (token.length !== TOKEN_BYTES) {
    return new BrokerError(
      'INVALID_LEASE_TOKEN',
      `a lease token has ${TOKEN_BYTES} bytes, not ${token.length}`,
      { field: 'token', actual: token.length, limit: TOKEN_BYTES },
    )
  }
  if (pauseGroupMs === 0) return undefined
  if (verdict !== 'release') {
    return new BrokerError(
      'CONFLICTING_FIELDS',
      `pause_group_ms goes with release only, not with ${verdict}`,
      { field: 'pause_group_ms', actual: pauseGroupMs },
    )
  }
  if (pauseGroupMs > 0 && pauseGroupMs <= LONGEST_PAUSE_MS) return undefined
  return new BrokerError(
    'INVALID_DELAY',
    `pause_group_ms ${pauseGroupMs} is outside [0, ${LONGEST_PAUSE_MS}]`,
    { field: 'pause_group_ms', actual: pauseGroupMs, limit: LONGEST_PAUSE_MS },
  )
}

function cutError(item: AckItemMessage): AckItem {
  return item.error === undefined ? item : { ...item, error: toWorkError(item.error) }
}

function toWorkError({ type, message, stack }: WorkErrorMessage): WorkError {
  return {
    type: cutText(type, MOST_TYPE_BYTES),
    message: cutText(message, MOST_MESSAGE_BYTES),
    stack: cutText(stack, MOST_STACK_BYTES),
  }
}

/** At most `most` bytes of UTF-8, no letter in halves. */
export function cutText(text: string, most: number): string {
  if (text.length * 3 <= most) return text
  const bytes = Buffer.from(text)
  if (bytes.length <= most) return text
  let end = most
  while (end > 0 && ((bytes[end] ?? 0) & 0xc0) === 0x80) end--
  return bytes.toString('utf8', 0, end)
}
