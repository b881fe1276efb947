import { unreachable } from '../../common/assert.ts'
import { BrokerError } from '../../common/errors.ts'
import type { Random } from '../../common/random.ts'
import {
  type BackoffType,
  parseBackoffDelay,
  parseBackoffList,
  type QueueConfig,
} from './queue-config.ts'

/** What a record's own `backoff` header asks for instead of the group's type and delays. */
export interface BackoffOverride {
  readonly type: BackoffType
  /** Of `fixed`, `linear` and `exponential`; else 0. */
  readonly initialMs: number
  /** Of `list`; else empty. */
  readonly listMs: readonly number[]
}

export type BackoffConfig = Pick<
  QueueConfig,
  | 'backoffType'
  | 'backoffInitialMs'
  | 'backoffMultiplier'
  | 'backoffMaxMs'
  | 'backoffJitter'
  | 'backoffListMs'
>

/** What {@link parseBackoff} takes: for messages. */
export const BACKOFF_ALLOWED = 'none, fixed:5s, linear:500ms, exponential:1s or list:1s,5s,1m'

/** 32 delays and the name of the type. Keeps errors, which repeat the text, short. */
const MOST_LETTERS = 512
const NO_DELAYS: readonly number[] = Object.freeze([])

/**
 * How long a record waits after its `failures`th failure (1: the first), in whole milliseconds: taken at random from [d × (1 - jitter), d], where
 * d grows as the type says and is never above `backoffMaxMs`. The multiplier, the cap and the jitter are the group's, also under an `override`.
 */
export function backoffDelayMs(
  config: BackoffConfig,
  failures: number,
  random: Random,
  override?: BackoffOverride,
): number {
  const grownMs = growDelayMs(
    override?.type ?? config.backoffType,
    override?.initialMs ?? config.backoffInitialMs,
    override?.listMs ?? config.backoffListMs,
    config.backoffMultiplier,
    Math.max(1, failures),
  )
  const fullMs = Math.round(Math.min(grownMs, config.backoffMaxMs))
  const share = config.backoffJitter * (random.uint32() / 2 ** 32)
  return fullMs - Math.floor(fullMs * share)
}

function growDelayMs(
  type: BackoffType,
  initialMs: number,
  listMs: readonly number[],
  multiplier: number,
  failures: number,
): number {
  switch (type) {
    case 'none':
      return 0
    case 'fixed':
      return initialMs
    case 'linear':
      return initialMs * failures
    case 'exponential':
      // From some 300 failures on the power is infinite, which the cap takes care of; but 0 times that is no number.
      return initialMs === 0 ? 0 : initialMs * multiplier ** (failures - 1)
    case 'list':
      return listMs[Math.min(failures, listMs.length) - 1] ?? 0
    default:
      return unreachable(type)
  }
}

/**
 * Reads the `backoff` of a record: `none`, `fixed:5s`, `linear:500ms`, `exponential:1s` or `list:1s,5s,1m`; delays up to 30 days, which the
 * group's `retry.backoff.max.ms` caps.
 * @throws BrokerError INVALID_BACKOFF that names what is allowed
 */
export function parseBackoff(text: string): BackoffOverride {
  const fail = (why: string, cause?: unknown): BrokerError =>
    new BrokerError(
      'INVALID_BACKOFF',
      `backoff ${why}; write ${BACKOFF_ALLOWED}`,
      { field: 'backoff', allowed: BACKOFF_ALLOWED },
      cause,
    )
  if (text.length > MOST_LETTERS) throw fail(`is ${text.length} letters long`)
  const colonAt = text.indexOf(':')
  const type = (colonAt < 0 ? text : text.slice(0, colonAt)).trim().toLowerCase()
  const rest = colonAt < 0 ? '' : text.slice(colonAt + 1).trim()
  try {
    switch (type) {
      case 'none':
        if (rest !== '') throw fail('none has no delay')
        return { type, initialMs: 0, listMs: NO_DELAYS }
      case 'fixed':
      case 'linear':
      case 'exponential':
        if (rest === '') throw fail(`${type} has no delay`)
        return { type, initialMs: parseBackoffDelay(rest), listMs: NO_DELAYS }
      case 'list':
        if (rest === '') throw fail('list has no delays')
        return { type, initialMs: 0, listMs: parseBackoffList(rest) }
      default:
        throw fail(`"${text}" is of no known type`)
    }
  } catch (error) {
    if (error instanceof BrokerError && error.details['field'] === undefined) {
      throw fail(`"${text}": ${error.message}`, error)
    }
    throw error
  }
}
