import { invariant, unreachable } from '../../common/assert.ts'
import { BrokerError } from '../../common/errors.ts'
import { isOffset, type Offset, toOffset } from '../../common/offset.ts'
import type { PeerMark } from '../peer.ts'
import type { DeadReason as DeadLetterReason } from './dead-letter-record.ts'
import type { FailureInfo, WorkError } from './queue-types.ts'

/** Where records are that are not settled. `acquired` lives in memory alone: after a restart such records are available again. */
export type RunState = 'available' | 'acquired' | 'parked' | 'dead-lettering' | 'blocked'

/** Why a record was given up; `skipped`: by an operator. */
export type DeadReason = DeadLetterReason | 'skipped'

/** Records next to each other, [first, end), of which the same is known. */
export interface Run {
  readonly first: number
  readonly end: number
  readonly state: RunState
  /** How often they have been given out. */
  readonly deliveries: number
  readonly failures: number
  /** The last failure was a lease that expired: one of them may be what kills its workers. */
  readonly stalled: boolean
  /** When they are tried again, on the wall clock; of `parked` ones, else 0. */
  readonly dueMs: number
  /** Number of the lease; of `acquired` ones, else 0. */
  readonly lease: number
  /** On the wall clock; 0: never. */
  readonly firstDeliveredMs: number
  /** Newest last, at most three. */
  readonly history: readonly FailureInfo[]
  /** Of `dead-lettering` and `blocked` ones, else ''. */
  readonly reason: DeadReason | ''
}

interface Range {
  readonly first: number
  readonly end: number
}

interface Counts {
  readonly deliveries: number
  readonly failures: number
  readonly stalled: boolean
  readonly firstDeliveredMs: number
}

/** What happens to records, as it is written down. Each is about records of one run, or of none yet. */
export type QueueEvent =
  | (Range & { readonly type: 'accepted' })
  | (Range & Counts & { readonly type: 'available' })
  | (Range &
      Counts & {
        readonly type: 'parked'
        readonly dueMs: number
        readonly failure: FailureInfo | undefined
      })
  | (Range &
      Counts & {
        readonly type: 'dead-lettering' | 'blocked'
        readonly reason: DeadReason
        readonly failure: FailureInfo | undefined
      })
  | (Range & { readonly type: 'dead'; readonly reason: DeadReason; readonly atMs: number })
  /** Nothing below is this group's business (any more). */
  | { readonly type: 'started'; readonly offset: number }
  /** Dead letters appended from here on may have arrived although the next event does not say so. */
  | { readonly type: 'marked'; readonly mark: PeerMark }

export interface DeadRange {
  readonly first: number
  readonly end: number
  readonly reason: DeadReason
  /** On the wall clock. */
  readonly atMs: number
}

const NO_HISTORY: readonly FailureInfo[] = []
const MOST_HISTORY = 3
/** Ranges of dead records that are remembered after the start has passed them, so that `explain` can tell. */
const MOST_DEAD = 1000
/** Characters of error texts that runs may hold in one partition; beyond it stacks are dropped and messages cut. */
const MOST_ERROR_TEXT = 8 * 1024 * 1024
const SHORT_MESSAGE = 200

/**
 * What one group knows of one partition: a scan offset, and the runs below it that are not settled; everything else below it is. Pure: {@link apply} is the
 * same in live traffic and in recovery, and {@link snapshot} with {@link restore} say all of it.
 */
export class QueueState {
  readonly #runs: Run[] = []
  readonly #counts: Record<RunState, number> = {
    available: 0,
    acquired: 0,
    parked: 0,
    'dead-lettering': 0,
    blocked: 0,
  }
  #scan = 0
  #mark: PeerMark | undefined
  #dead: DeadRange[] = []
  #errorText = 0

  /** Everything below is settled. */
  get start(): Offset {
    return toOffset(this.#runs[0]?.first ?? this.#scan)
  }

  /** The first record that has never been looked at. */
  get scan(): Offset {
    return toOffset(this.#scan)
  }

  get runs(): readonly Run[] {
    return this.#runs
  }

  get mark(): PeerMark | undefined {
    return this.#mark
  }

  /** Records in a state. */
  count(state: RunState): number {
    return this.#counts[state]
  }

  /** Records below the scan offset that are settled, from the start on. */
  get settled(): number {
    const { available, acquired, parked, blocked } = this.#counts
    const open = available + acquired + parked + blocked + this.#counts['dead-lettering']
    return this.#scan - this.start - open
  }

  /** The run that holds `offset`. O(log n). */
  find(offset: number): Run | undefined {
    const run = this.#runs[this.#indexOf(offset)]
    return run !== undefined && run.first <= offset ? run : undefined
  }

  /** The runs that have something of [first, end), cut to it, as they are now: what is done to the state meanwhile does not show. */
  within(first: number, end: number): Run[] {
    const found: Run[] = []
    for (let i = this.#indexOf(first); i < this.#runs.length; i++) {
      const run = this.#runs[i]
      if (run === undefined || run.first >= end) break
      found.push(cut(run, Math.max(first, run.first), Math.min(end, run.end)))
    }
    return found
  }

  /** What is remembered of a record that died. */
  findDead(offset: number): DeadRange | undefined {
    return this.#dead.findLast((range) => range.first <= offset && offset < range.end)
  }

  /** The first offset past `offset` of which {@link findDead} knows. */
  findNextDead(offset: number): number | undefined {
    let next = Infinity
    for (const { first } of this.#dead) if (first > offset && first < next) next = first
    return next === Infinity ? undefined : next
  }

  // ── In memory alone ──

  /** Gives out [first, end): records never looked at, at or past the scan offset, or such as are available. What lies between the scan offset and `first` counts as settled. */
  acquire(first: number, end: number, lease: number, nowMs: number): void {
    if (first >= this.#scan) {
      this.#scan = end
      this.#put(first, end, {
        ...fresh(first, end),
        state: 'acquired',
        deliveries: 1,
        lease,
        firstDeliveredMs: nowMs,
      })
      return
    }
    for (const run of this.within(first, end)) {
      invariant(run.state === 'available', 'only what is available is given out')
      this.#put(run.first, run.end, {
        ...run,
        state: 'acquired',
        deliveries: run.deliveries + 1,
        lease,
        firstDeliveredMs: run.firstDeliveredMs === 0 ? nowMs : run.firstDeliveredMs,
      })
    }
  }

  /** Has looked at everything below `to`: records from the old scan offset on become available, or, with `settled`, are passed over. */
  advanceScan(to: number, how: 'available' | 'settled'): void {
    if (to <= this.#scan) return
    const from = this.#scan
    this.#scan = to
    if (how === 'available') this.#put(from, to, fresh(from, to))
  }

  /** There is no such record (compacted away, a control record): settled without being written, for it will be found so again. */
  pass(first: number, end: number): void {
    if (first < this.#scan) this.#put(first, Math.min(end, this.#scan), undefined)
    if (end > this.#scan) this.#scan = end
  }

  /** Parked records whose time has come. */
  wake(run: Run): void {
    this.#put(run.first, run.end, { ...run, state: 'available', dueMs: 0 })
  }

  // ── Written ──

  apply(event: QueueEvent): void {
    switch (event.type) {
      case 'accepted':
        this.#reach(event.first, event.end)
        this.#put(event.first, event.end, undefined)
        return
      case 'available':
        this.#reach(event.first, event.end)
        this.#put(event.first, event.end, this.#next(event, 'available'))
        return
      case 'parked':
        this.#reach(event.first, event.end)
        this.#put(event.first, event.end, {
          ...this.#next(event, 'parked', event.failure),
          dueMs: event.dueMs,
        })
        return
      case 'dead-lettering':
      case 'blocked':
        this.#reach(event.first, event.end)
        this.#put(event.first, event.end, {
          ...this.#next(event, event.type, event.failure),
          reason: event.reason,
        })
        return
      case 'dead':
        this.#reach(event.first, event.end)
        this.#put(event.first, event.end, undefined)
        this.#bury(event)
        return
      case 'started':
        this.#put(0, event.offset, undefined)
        if (event.offset > this.#scan) this.#scan = event.offset
        return
      case 'marked':
        this.#mark = event.mark
        return
      default:
        unreachable(event)
    }
  }

  /** Something was written of records that recovery has not come to yet: those before them were looked at too, and not settled. */
  #reach(first: number, end: number): void {
    if (end <= this.#scan) return
    const from = this.#scan
    this.#scan = end
    if (first > from) this.#put(from, first, fresh(from, first))
  }

  #next(event: Range & Counts, state: RunState, failure?: FailureInfo): Run {
    const old = this.find(event.first)?.history ?? NO_HISTORY
    const history =
      failure === undefined ? old : [...old.slice(1 - MOST_HISTORY), this.#shorten(failure)]
    return {
      first: event.first,
      end: event.end,
      state,
      deliveries: event.deliveries,
      failures: event.failures,
      stalled: event.stalled,
      dueMs: 0,
      lease: 0,
      firstDeliveredMs: event.firstDeliveredMs,
      history,
      reason: '',
    }
  }

  #shorten(failure: FailureInfo): FailureInfo {
    if (this.#errorText < MOST_ERROR_TEXT) return failure
    const { type, message } = failure.error
    return { ...failure, error: { type, message: message.slice(0, SHORT_MESSAGE), stack: '' } }
  }

  #bury(range: DeadRange): void {
    const { first, end, reason, atMs } = range
    this.#dead.push({ first, end, reason, atMs })
    if (this.#dead.length > 2 * MOST_DEAD) this.#dead = this.#dead.slice(-MOST_DEAD)
  }

  /** Index of the first run that ends past `offset`. */
  #indexOf(offset: number): number {
    const runs = this.#runs
    let low = 0
    let high = runs.length
    while (low < high) {
      const middle = (low + high) >>> 1
      const run = runs[middle]
      if (run !== undefined && run.end <= offset) low = middle + 1
      else high = middle
    }
    return low
  }

  /** Makes [first, end) one run, or settled. What other runs have of it is cut off. */
  #put(first: number, end: number, run: Run | undefined): void {
    if (first >= end) return
    const runs = this.#runs
    const from = this.#indexOf(first)
    let to = from
    let left: Run | undefined
    let right: Run | undefined
    for (; to < runs.length; to++) {
      const old = runs[to]
      if (old === undefined || old.first >= end) break
      this.#counts[old.state] -= Math.min(end, old.end) - Math.max(first, old.first)
      this.#errorText -= textOf(old.history)
      if (old.first < first) left = cut(old, old.first, first)
      if (old.end > end) right = cut(old, end, old.end)
    }
    if (run !== undefined) this.#counts[run.state] += end - first
    for (const one of [left, run, right])
      if (one !== undefined) this.#errorText += textOf(one.history)
    // The common cases, in place: one run is replaced, or loses its head.
    if (to - from === 1 && left === undefined && (run === undefined) !== (right === undefined)) {
      runs[from] = (run ?? right) as Run // One of the two is there.
    } else if (from === runs.length && run !== undefined) {
      runs.push(run)
    } else {
      const pieces = [left, run, right].filter((piece) => piece !== undefined)
      runs.splice(from, to - from, ...pieces)
    }
    if (run !== undefined) this.#merge(left === undefined ? from : from + 1)
  }

  /** Joins the run at `index` with its neighbours where they are alike. */
  #merge(index: number): void {
    for (const at of [index, index - 1]) {
      const a = this.#runs[at]
      const b = this.#runs[at + 1]
      if (a === undefined || b === undefined || a.end !== b.first || !isAlike(a, b)) continue
      this.#errorText -= textOf(b.history) // The same as the other's.
      this.#runs.splice(at, 2, cut(a, a.first, b.end))
    }
  }

  // ── Snapshots ──

  /** All that has to be remembered, as JSON. What is given out is written as available: its lease ends with this process. */
  snapshot(): string {
    return JSON.stringify({
      v: VERSION,
      scan: this.#scan,
      mark: this.#mark,
      runs: this.#runs.map((run) => encodeRun(run)),
      dead: this.#dead
        .slice(-MOST_DEAD)
        .map(({ first, end, reason, atMs }) => [first, end, reason, atMs]),
    })
  }

  /** @throws BrokerError INVALID_RECORD, UNSUPPORTED_FORMAT */
  static restore(text: string): QueueState {
    const json = parse(text)
    const state = new QueueState()
    state.#scan = number(json['scan'])
    state.#mark = json['mark'] === undefined ? undefined : decodeMark(json['mark'])
    for (const value of array(json['runs'])) {
      const run = decodeRun(array(value))
      if (
        run.first >= run.end ||
        run.first < (state.#runs.at(-1)?.end ?? 0) ||
        run.end > state.#scan
      )
        throw damaged('has runs that overlap')
      state.#put(run.first, run.end, run)
    }
    state.#dead = array(json['dead']).map((value) => {
      const [first, end, reason, atMs] = array(value)
      return {
        first: number(first),
        end: number(end),
        reason: asText(reason) as DeadReason,
        atMs: number(atMs),
      } // Only shown.
    })
    return state
  }
}

function fresh(first: number, end: number): Run {
  return {
    first,
    end,
    state: 'available',
    deliveries: 0,
    failures: 0,
    stalled: false,
    dueMs: 0,
    lease: 0,
    firstDeliveredMs: 0,
    history: NO_HISTORY,
    reason: '',
  }
}

function cut(run: Run, first: number, end: number): Run {
  if (first === run.first && end === run.end) return run
  return {
    first,
    end,
    state: run.state,
    deliveries: run.deliveries,
    failures: run.failures,
    stalled: run.stalled,
    dueMs: run.dueMs,
    lease: run.lease,
    firstDeliveredMs: run.firstDeliveredMs,
    history: run.history,
    reason: run.reason,
  }
}

function isAlike(a: Run, b: Run): boolean {
  return (
    a.state === b.state &&
    a.deliveries === b.deliveries &&
    a.failures === b.failures &&
    a.stalled === b.stalled &&
    a.dueMs === b.dueMs &&
    a.lease === b.lease &&
    a.reason === b.reason &&
    (a.history === b.history || (a.history.length === 0 && b.history.length === 0))
  )
}

function textOf(history: readonly FailureInfo[]): number {
  let letters = 0
  for (const { error } of history) letters += error.message.length + error.stack.length
  return letters
}

// ── How it is written ──

/** In every snapshot as `v`. */
const VERSION = 1

/**
 * Events as JSON arrays, for they are many:
 *   ["a",first,end]  ["v",first,end,counts]  ["p",first,end,counts,due,failure?]  ["d"|"b",first,end,counts,reason,failure?]  ["x",first,end,reason,at]
 *   ["s",offset]  ["m",mark]      counts: deliveries,failures,stalled 0 or 1,first delivered
 */
export function encodeEvents(events: readonly QueueEvent[]): string {
  let out = '['
  let open: { first: number; end: number } | undefined
  const close = (): void => {
    if (open !== undefined) out += `${out === '[' ? '' : ','}["a",${open.first},${open.end}]`
    open = undefined
  }
  for (const event of events) {
    // Acknowledgements come record by record, and mostly in order: neighbours are written as one.
    if (event.type === 'accepted') {
      if (open?.end === event.first) open.end = event.end
      else {
        close()
        open = { first: event.first, end: event.end }
      }
      continue
    }
    close()
    out += `${out === '[' ? '' : ','}${JSON.stringify(encodeEvent(event))}`
  }
  close()
  return `${out}]`
}

function encodeEvent(event: Exclude<QueueEvent, { type: 'accepted' }>): readonly unknown[] {
  switch (event.type) {
    case 'available':
      return ['v', event.first, event.end, ...encodeCounts(event)]
    case 'parked':
      return [
        'p',
        event.first,
        event.end,
        ...encodeCounts(event),
        event.dueMs,
        ...encodeFailure(event.failure),
      ]
    case 'dead-lettering':
    case 'blocked':
      return [
        event.type === 'blocked' ? 'b' : 'd',
        event.first,
        event.end,
        ...encodeCounts(event),
        event.reason,
        ...encodeFailure(event.failure),
      ]
    case 'dead':
      return ['x', event.first, event.end, event.reason, event.atMs]
    case 'started':
      return ['s', event.offset]
    case 'marked':
      return ['m', event.mark]
    default:
      return unreachable(event)
  }
}

/** @throws BrokerError INVALID_RECORD when it is damaged, UNSUPPORTED_FORMAT when a newer millrace wrote it */
export function decodeEvents(text: string): QueueEvent[] {
  return array(parseJson(text)).map((value) => decodeEvent(array(value)))
}

function decodeEvent(parts: readonly unknown[]): QueueEvent {
  const [kind, a, b, ...rest] = parts
  switch (kind) {
    case 'a':
      return { type: 'accepted', ...range(a, b) }
    case 'v':
      return { type: 'available', ...range(a, b), ...decodeCounts(rest) }
    case 'p':
      return {
        type: 'parked',
        ...range(a, b),
        ...decodeCounts(rest),
        dueMs: number(rest[4]),
        failure: decodeFailure(rest[5]),
      }
    case 'd':
    case 'b':
      return {
        type: kind === 'b' ? 'blocked' : 'dead-lettering',
        ...range(a, b),
        ...decodeCounts(rest),
        reason: asText(rest[4]) as DeadReason, // Only shown, and copied to the dead letter.
        failure: decodeFailure(rest[5]),
      }
    case 'x':
      return {
        type: 'dead',
        ...range(a, b),
        reason: asText(rest[0]) as DeadReason,
        atMs: number(rest[1]),
      } // The same.
    case 's':
      return { type: 'started', offset: number(a) }
    case 'm':
      return { type: 'marked', mark: decodeMark(a) }
    default:
      throw new BrokerError(
        'UNSUPPORTED_FORMAT',
        `queue state has an event ${String(kind)}, which a newer millrace wrote: start that one`,
      )
  }
}

function encodeCounts(counts: Counts): readonly number[] {
  return [counts.deliveries, counts.failures, counts.stalled ? 1 : 0, counts.firstDeliveredMs]
}

function decodeCounts(parts: readonly unknown[]): Counts {
  return {
    deliveries: number(parts[0]),
    failures: number(parts[1]),
    stalled: parts[2] === 1,
    firstDeliveredMs: number(parts[3]),
  }
}

type EncodedFailure = readonly [number, string, string, string, string, string]

function encodeFailure(failure: FailureInfo | undefined): readonly EncodedFailure[] {
  if (failure === undefined) return []
  const { error, atMs, memberId, kind } = failure
  return [[atMs, kind, memberId, error.type, error.message, error.stack]]
}

function decodeFailure(value: unknown): FailureInfo | undefined {
  if (value === undefined) return undefined
  const [atMs, kind, memberId, type, message, stack] = array(value)
  const error: WorkError = { type: asText(type), message: asText(message), stack: asText(stack) }
  return {
    error,
    atMs: number(atMs),
    memberId: asText(memberId),
    kind: asText(kind) as FailureInfo['kind'],
  } // Only shown.
}

/** first, end, state, counts, due, reason, failures. */
function encodeRun(run: Run): readonly unknown[] {
  const state = run.state === 'acquired' ? 'available' : run.state
  return [
    run.first,
    run.end,
    state,
    ...encodeCounts(run),
    run.dueMs,
    run.reason,
    run.history.flatMap((failure) => encodeFailure(failure)),
  ]
}

const STATES: ReadonlySet<string> = new Set(['available', 'parked', 'dead-lettering', 'blocked'])

function decodeRun(parts: readonly unknown[]): Run {
  const [first, end, state, ...rest] = parts
  if (typeof state !== 'string' || !STATES.has(state))
    throw damaged(`has a run in state ${String(state)}`)
  return {
    ...range(first, end),
    state: state as RunState, // Looked up just now.
    ...decodeCounts(rest),
    dueMs: number(rest[4]),
    lease: 0,
    history: array(rest[6])
      .map((value) => decodeFailure(value))
      .filter((failure) => failure !== undefined),
    reason: asText(rest[5]) as DeadReason | '', // As above.
  }
}

function decodeMark(value: unknown): PeerMark {
  if (typeof value !== 'object' || value === null) throw damaged('has no valid mark')
  const json = value as Readonly<Record<string, unknown>> // An object; each member is checked as it is read.
  return {
    topic: asText(json['topic']),
    topicId: asText(json['topicId']),
    partition: number(json['partition']),
    end: toOffset(number(json['end'])),
  }
}

function range(first: unknown, end: unknown): Range {
  const from = number(first)
  const to = number(end)
  if (from >= to) throw damaged(`has the range [${from}, ${to})`)
  return { first: from, end: to }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw damaged('is not JSON', error)
  }
}

function parse(text: string): Readonly<Record<string, unknown>> {
  const json = parseJson(text)
  if (typeof json !== 'object' || json === null) throw damaged('is not an object')
  const fields = json as Readonly<Record<string, unknown>> // As in decodeMark.
  if (number(fields['v']) > VERSION) {
    throw new BrokerError(
      'UNSUPPORTED_FORMAT',
      `queue state has version ${String(fields['v'])}, which a newer millrace wrote: start that one`,
    )
  }
  return fields
}

function number(value: unknown): number {
  if (!isOffset(value)) throw damaged(`has ${String(value)} where a number should be`)
  return value
}

function asText(value: unknown): string {
  if (typeof value !== 'string') throw damaged(`has ${String(value)} where a text should be`)
  return value
}

function array(value: unknown): readonly unknown[] {
  if (!Array.isArray(value)) throw damaged(`has ${String(value)} where a list should be`)
  return value as readonly unknown[]
}

function damaged(why: string, cause?: unknown): BrokerError {
  return new BrokerError('INVALID_RECORD', `a record of queue state ${why}`, {}, cause)
}
