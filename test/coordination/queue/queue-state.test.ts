import {
  type Arbitrary,
  array,
  assert,
  boolean,
  constantFrom,
  integer,
  nat,
  oneof,
  option,
  property,
  record,
  tuple,
} from 'fast-check'
import { describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import {
  decodeEvents,
  encodeEvents,
  type QueueEvent,
  QueueState,
  type RunState,
} from '../../../src/coordination/queue/queue-state.ts'
import type { FailureInfo } from '../../../src/coordination/queue/queue-types.ts'

const END = 40

/** What is known of one offset. */
interface Cell {
  readonly state: RunState
  readonly deliveries: number
  readonly failures: number
  readonly stalled: boolean
  readonly dueMs: number
  readonly reason: string
  readonly history: readonly FailureInfo[]
}

const FRESH: Cell = {
  state: 'available',
  deliveries: 0,
  failures: 0,
  stalled: false,
  dueMs: 0,
  reason: '',
  history: [],
}

/** The same state machine with an entry for every offset: undefined is settled. */
class NaiveState {
  readonly cells = new Map<number, Cell>()
  scan = 0

  #reach(first: number, end: number): void {
    if (end <= this.scan) return
    for (let offset = this.scan; offset < first; offset++) this.cells.set(offset, FRESH)
    this.scan = end
  }

  #set(first: number, end: number, to: (old: Cell | undefined) => Cell | undefined): void {
    for (let offset = first; offset < end; offset++) {
      const cell = to(this.cells.get(offset))
      if (cell === undefined) this.cells.delete(offset)
      else this.cells.set(offset, cell)
    }
  }

  apply(event: QueueEvent): void {
    if (event.type === 'marked') return
    if (event.type === 'started') {
      this.#set(0, event.offset, () => undefined)
      this.scan = Math.max(this.scan, event.offset)
      return
    }
    this.#reach(event.first, event.end)
    if (event.type === 'accepted' || event.type === 'dead') {
      this.#set(event.first, event.end, () => undefined)
      return
    }
    const { deliveries, failures, stalled, type } = event
    const old = this.cells.get(event.first)?.history ?? []
    const failure = 'failure' in event ? event.failure : undefined
    this.#set(event.first, event.end, () => ({
      state: type,
      deliveries,
      failures,
      stalled,
      dueMs: type === 'parked' ? event.dueMs : 0,
      reason: 'reason' in event ? event.reason : '',
      history: failure === undefined ? old : [...old, failure].slice(-3),
    }))
  }

  acquire(first: number, end: number): void {
    if (first >= this.scan) this.scan = end
    this.#set(first, end, (old = FRESH) => ({
      ...old,
      state: 'acquired',
      deliveries: old.deliveries + 1,
    }))
  }

  pass(first: number, end: number): void {
    this.#set(first, end, () => undefined)
    this.scan = Math.max(this.scan, end)
  }
}

function cellsOf(state: QueueState): Map<number, Cell> {
  const cells = new Map<number, Cell>()
  for (const run of state.runs) {
    // Of runs that are joined the first delivery of one is kept: it is for people.
    const { first, end, lease: _lease, firstDeliveredMs: _ms, ...cell } = run
    for (let offset = first; offset < end; offset++) cells.set(offset, cell)
  }
  return cells
}

function expectSame(state: QueueState, naive: NaiveState): void {
  expect(cellsOf(state)).toEqual(naive.cells)
  expect(state.scan).toBe(naive.scan)
  expect(state.start).toBe(Math.min(naive.scan, ...naive.cells.keys()))
  const counts: Record<RunState, number> = {
    available: 0,
    acquired: 0,
    parked: 0,
    'dead-lettering': 0,
    blocked: 0,
  }
  for (const { state: name } of naive.cells.values()) counts[name]++
  for (const [name, count] of Object.entries(counts))
    expect(state.count(name as RunState)).toBe(count)
  expect(state.settled).toBe(naive.scan - state.start - naive.cells.size)
  for (const [i, run] of state.runs.entries()) {
    expect(run.first).toBeLessThan(run.end)
    expect(run.first).toBeGreaterThanOrEqual(state.runs[i - 1]?.end ?? 0)
    expect(state.find(run.first)).toBe(run)
    expect(state.find(run.end - 1)).toBe(run)
  }
}

const aRange = tuple(nat(END), integer({ min: 1, max: 8 })).map(([first, length]) => ({
  first,
  end: first + length,
}))
const someText = constantFrom('', 'x', '\u{1f41b} and "quotes"\n', 'y'.repeat(300))
const aFailure: Arbitrary<FailureInfo> = record({
  error: record({ type: someText, message: someText, stack: someText }),
  atMs: nat(),
  memberId: someText,
  kind: constantFrom('retry', 'lease_expired', 'rejected'),
})
const someCounts = record({
  deliveries: nat(3),
  failures: nat(2),
  stalled: boolean(),
  firstDeliveredMs: nat(2),
})
const aReason = constantFrom('rejected', 'attempts_exhausted', 'retention', 'skipped')
const maybeFailure = option(aFailure, { nil: undefined })
const anEvent: Arbitrary<QueueEvent> = oneof(
  aRange.map((range) => ({ type: 'accepted' as const, ...range })),
  tuple(aRange, someCounts).map(([range, counts]) => ({
    type: 'available' as const,
    ...range,
    ...counts,
  })),
  tuple(aRange, someCounts, nat(5), maybeFailure).map(([range, counts, dueMs, failure]) => ({
    type: 'parked' as const,
    ...range,
    ...counts,
    dueMs,
    failure,
  })),
  tuple(
    aRange,
    someCounts,
    aReason,
    maybeFailure,
    constantFrom('dead-lettering' as const, 'blocked' as const),
  ).map(([range, counts, reason, failure, type]) => ({
    type,
    ...range,
    ...counts,
    reason,
    failure,
  })),
  tuple(aRange, aReason, nat()).map(([range, reason, atMs]) => ({
    type: 'dead' as const,
    ...range,
    reason,
    atMs,
  })),
  nat(END).map((offset) => ({ type: 'started' as const, offset: toOffset(offset) })),
  nat(9).map((end) => ({
    type: 'marked' as const,
    mark: { topic: 'dlq', topicId: 'id', partition: 1, end: toOffset(end) },
  })),
)

type Step =
  | { readonly do: 'event'; readonly event: QueueEvent }
  | { readonly do: 'acquire'; readonly length: number; readonly pick: number }
  | { readonly do: 'pass'; readonly length: number }
  | { readonly do: 'wake'; readonly pick: number }

const aStep: Arbitrary<Step> = oneof(
  { weight: 4, arbitrary: anEvent.map((event) => ({ do: 'event' as const, event })) },
  {
    weight: 2,
    arbitrary: tuple(integer({ min: 1, max: 6 }), nat(9)).map(([length, pick]) => ({
      do: 'acquire' as const,
      length,
      pick,
    })),
  },
  {
    weight: 1,
    arbitrary: integer({ min: 1, max: 4 }).map((length) => ({ do: 'pass' as const, length })),
  },
  { weight: 1, arbitrary: nat(9).map((pick) => ({ do: 'wake' as const, pick })) },
)

/** Does the same to both. Returns what would have been written. */
function perform(step: Step, state: QueueState, naive: NaiveState, number: number): QueueEvent[] {
  if (step.do === 'event') {
    state.apply(step.event)
    naive.apply(step.event)
    return [step.event]
  }
  if (step.do === 'acquire') {
    const runs = state.runs.filter((run) => run.state === 'available')
    const run = runs[step.pick % (runs.length + 1)]
    const first = run?.first ?? state.scan
    const end = Math.min(run?.end ?? Infinity, first + step.length)
    state.acquire(first, end, number, 7)
    naive.acquire(first, end)
    return []
  }
  if (step.do === 'pass') {
    const { scan } = state
    state.pass(scan, scan + step.length)
    naive.pass(scan, scan + step.length)
    return []
  }
  const parked = state.runs.filter((run) => run.state === 'parked')
  const run = parked[step.pick % Math.max(1, parked.length)]
  if (run === undefined) return []
  state.wake(run)
  for (let offset = run.first; offset < run.end; offset++) {
    const cell = naive.cells.get(offset)
    if (cell !== undefined) naive.cells.set(offset, { ...cell, state: 'available', dueMs: 0 })
  }
  return []
}

describe('the state of a queue', () => {
  it('knows of every record what a table of all records knows', () => {
    assert(
      property(array(aStep, { maxLength: 60 }), (steps) => {
        const state = new QueueState()
        const naive = new NaiveState()
        for (const [number, step] of steps.entries()) {
          perform(step, state, naive, number + 1)
          expectSame(state, naive)
        }
      }),
      { numRuns: 300 },
    )
  })

  it('is the same when its events are read back and applied, and when its snapshot is', () => {
    assert(
      property(array(anEvent, { maxLength: 60 }), nat(60), (events, cut) => {
        const live = new QueueState()
        for (const event of events) live.apply(event)
        const replayed = new QueueState()
        for (const event of decodeEvents(encodeEvents(events))) replayed.apply(event)
        expect(replayed.snapshot()).toBe(live.snapshot())
        let from = new QueueState()
        for (const event of events.slice(0, cut)) from.apply(event)
        from = QueueState.restore(from.snapshot())
        for (const event of events.slice(cut)) from.apply(event)
        expect(cellsOf(from)).toEqual(cellsOf(live))
        expect([from.scan, from.start, from.mark]).toEqual([live.scan, live.start, live.mark])
        for (let offset = 0; offset < END; offset++)
          expect(from.findDead(offset)).toEqual(live.findDead(offset))
      }),
      { numRuns: 300 },
    )
  })

  it('gives back what was given out, and forgets nothing else, when it is restored', () => {
    assert(
      property(array(aStep, { maxLength: 60 }), (steps) => {
        const state = new QueueState()
        const naive = new NaiveState()
        for (const [number, step] of steps.entries()) perform(step, state, naive, number + 1)
        const restored = QueueState.restore(state.snapshot())
        for (const [offset, cell] of naive.cells)
          if (cell.state === 'acquired') naive.cells.set(offset, { ...cell, state: 'available' })
        expectSame(restored, naive)
      }),
      { numRuns: 200 },
    )
  })

  it('makes what was looked at before a restart, and not settled, available after it', () => {
    const state = new QueueState()
    state.apply({ type: 'started', offset: toOffset(10) })
    state.apply({ type: 'accepted', first: 14, end: 16 })
    expect(state.runs).toMatchObject([{ first: 10, end: 14, state: 'available', deliveries: 0 }])
    expect([state.start, state.scan]).toEqual([10, 16])
  })

  it('writes neighbours that were accepted as one', () => {
    const events: QueueEvent[] = Array.from({ length: 500 }, (_, i) => ({
      type: 'accepted',
      first: i,
      end: i + 1,
    }))
    expect(encodeEvents(events)).toBe('[["a",0,500]]')
  })

  it('keeps long errors for as long as there is room, however often runs are cut and joined', () => {
    const state = new QueueState()
    const error = { type: 'Error', message: 'm'.repeat(2000), stack: 's'.repeat(8000) }
    const counts = { deliveries: 1, failures: 1, stalled: false, firstDeliveredMs: 1 }
    const failure: FailureInfo = { error, atMs: 1, memberId: 'a', kind: 'retry' }
    const park = (first: number): void =>
      state.apply({ type: 'parked', first, end: first + 2, ...counts, dueMs: 5, failure })
    park(0)
    const [run] = state.runs
    if (run !== undefined) state.wake(run)
    for (let i = 1; i <= 2000; i++) {
      state.acquire(0, 1, i, 1)
      state.apply({ type: 'available', first: 0, end: 1, ...counts })
      expect(state.runs).toHaveLength(1)
    }
    park(2)
    expect(state.find(2)?.history[0]?.error.stack).toHaveLength(8000)
    // And when there is none any more, messages are cut.
    for (let i = 0; i < 1000; i++) park(4 + 2 * i)
    expect(state.runs.at(-1)?.history[0]?.error).toMatchObject({ stack: '' })
  })

  it.each([
    ['{"v":2,"scan":0,"runs":[],"dead":[]}', 'UNSUPPORTED_FORMAT'],
    ['{"v":1,"scan":-1,"runs":[],"dead":[]}', 'INVALID_RECORD'],
    ['{"v":1,"scan":9,"runs":[[5,3,"parked",0,0,0,0,0,"",[]]],"dead":[]}', 'INVALID_RECORD'],
    ['{"v":1,"scan":2,"runs":[[0,3,"parked",0,0,0,0,0,"",[]]],"dead":[]}', 'INVALID_RECORD'],
    ['{"v":1,"scan":9,"runs":[[0,3,"acquired",0,0,0,0,0,"",[]]],"dead":[]}', 'INVALID_RECORD'],
    ['[]', 'INVALID_RECORD'],
    ['{', 'INVALID_RECORD'],
  ])('refuses the snapshot %s', (text, code) => {
    expect(() => QueueState.restore(text)).toThrow(expect.objectContaining({ code }))
  })

  it.each([
    ['[["z",1,2]]', 'UNSUPPORTED_FORMAT'],
    ['[["a",2,2]]', 'INVALID_RECORD'],
    ['[["a",1.5,2]]', 'INVALID_RECORD'],
    ['{"a":1}', 'INVALID_RECORD'],
    ['[', 'INVALID_RECORD'],
  ])('refuses the events %s', (text, code) => {
    expect(() => decodeEvents(text)).toThrow(expect.objectContaining({ code }))
  })
})
