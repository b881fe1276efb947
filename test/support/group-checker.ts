/**
 * Judges what happened to a stream group (CONTRACT §4, C10 and C11) from a history of events alone: it knows nothing of how the coordinator works.
 * Times are milliseconds on one monotonic clock. A partition's name has its topic's id in it: one made anew is another.
 */
export type GroupEvent =
  /** A partition of a subscribed topic has come, or has gone for good. */
  | { readonly type: 'created'; readonly atMs: number; readonly partition: string }
  | { readonly type: 'deleted'; readonly atMs: number; readonly partition: string }
  /** A client had it, from when it was told until it said that it gave it up, or its session ended by its own clock. */
  | {
      readonly type: 'owned'
      readonly client: string
      readonly partition: string
      readonly fromMs: number
      readonly untilMs: number
    }
  /** The coordinator told a member that something is its own now, and where to begin. */
  | {
      readonly type: 'granted'
      readonly atMs: number
      readonly memberId: string
      readonly memberEpoch: number
      readonly partition: string
      readonly committed: number | undefined
    }
  /** The coordinator told a member that something is no longer its own. */
  | {
      readonly type: 'revoked'
      readonly atMs: number
      readonly memberId: string
      readonly partition: string
    }
  /** A commit that was accepted: it reached the coordinator at `atMs`, and was answered at `answeredMs`. */
  | {
      readonly type: 'committed'
      readonly atMs: number
      readonly answeredMs: number
      readonly memberId: string
      readonly memberEpoch: number
      readonly partition: string
      readonly offset: number
    }
  /** Somebody asked for the committed offset at `atMs`; undefined: there was none. */
  | {
      readonly type: 'read'
      readonly atMs: number
      readonly partition: string
      readonly offset: number | undefined
    }
  /** A client has processed records of [from, to). */
  | {
      readonly type: 'processed'
      readonly partition: string
      readonly from: number
      readonly to: number
    }
  /** What the partition held in the end. */
  | { readonly type: 'ended'; readonly partition: string; readonly endOffset: number }
  /**
   * Something that may leave partitions without an owner for a while; undefined: all of them. When it happened to a member, also those that are, or
   * before its session is over come to be, in its target: they go to it, and when it does not take them, wait for its session to end.
   */
  | {
      readonly type: 'disturbed'
      readonly atMs: number
      readonly what: string
      readonly memberId: string | undefined
      readonly partitions: readonly string[] | undefined
    }
  /** A new target assignment, from the coordinator's log. */
  | {
      readonly type: 'target'
      readonly atMs: number
      /** By member id, of those who were members then. */
      readonly before: ReadonlyMap<string, ReadonlySet<string>>
      readonly after: ReadonlyMap<string, ReadonlySet<string>>
      /** True when all members subscribe to the same, so that how much has to move is a formula. */
      readonly isUniform: boolean
    }
  /** A state of the coordinator's log in which two members own a partition. */
  | {
      readonly type: 'overlap'
      readonly atMs: number
      readonly partition: string
      readonly memberIds: readonly string[]
    }

export interface CheckOptions {
  /** After a disturbance a partition may be without an owner for so long: the session timeout and two seconds. */
  readonly unownedMs: number
  /** A message that is on its way, or a record that is being made durable, lags behind the target by so much at most. */
  readonly lagMs: number
  readonly endMs: number
}

export type GroupRule =
  | 'two owners'
  | 'two owners in the log'
  | 'unowned'
  | 'stale commit'
  | 'offset went back'
  | 'not processed'
  | 'needless revocation'
  | 'needless move'

export interface Violation {
  readonly rule: GroupRule
  readonly atMs: number
  readonly facts: string
}

type Of<T extends GroupEvent['type']> = Extract<GroupEvent, { readonly type: T }>

/** Everything that is wrong with `history`, in order of time. O(n log n). */
export function checkGroupHistory(
  history: readonly GroupEvent[],
  options: CheckOptions,
): readonly Violation[] {
  const byPartition = new Map<string, GroupEvent[]>()
  const disturbances: Of<'disturbed'>[] = []
  const targets: Of<'target'>[] = []
  for (const event of history) {
    if (event.type === 'disturbed') disturbances.push(event)
    else if (event.type === 'target') targets.push(event)
    else {
      const events = byPartition.get(event.partition)
      if (events === undefined) byPartition.set(event.partition, [event])
      else events.push(event)
    }
  }
  disturbances.sort((a, b) => a.atMs - b.atMs)
  targets.sort((a, b) => a.atMs - b.atMs)
  const violations: Violation[] = []
  const targetsOf = listTargetsByMember(targets)
  const reach = disturbances.map((event) => ({
    atMs: event.atMs,
    what: event.what,
    partitions: findReach(event, targets, options),
  }))
  for (const [partition, events] of byPartition) {
    const pick = <T extends GroupEvent['type']>(type: T): Of<T>[] =>
      events.filter((event): event is Of<T> => event.type === type)
    for (const { atMs, memberIds } of pick('overlap')) {
      const facts = `${partition} is owned by ${memberIds.join(' and ')}`
      violations.push({ rule: 'two owners in the log', atMs, facts })
    }
    const owned = pick('owned').sort((a, b) => a.fromMs - b.fromMs)
    const deletedMs = pick('deleted')[0]?.atMs ?? Infinity
    violations.push(...findTwoOwners(partition, owned))
    const created = pick('created')[0]
    if (created !== undefined) {
      const untilMs = Math.min(deletedMs, options.endMs)
      const near = reach.filter(({ partitions }) => partitions?.has(partition) !== false)
      violations.push(...findUnowned(partition, owned, near, created.atMs, untilMs, options))
    }
    violations.push(...findStaleCommits(partition, pick('granted'), pick('committed')))
    violations.push(...findBackwards(partition, events, deletedMs))
    const end = pick('ended')[0]
    if (end !== undefined) {
      violations.push(...findUnprocessed(partition, pick('processed'), end, options))
    }
    for (const event of pick('revoked')) {
      if (event.atMs >= deletedMs) continue
      violations.push(...findNeedlessRevocation(event, targetsOf.get(event.memberId), options))
    }
  }
  for (const target of targets) violations.push(...findNeedlessMoves(target))
  return violations.sort((a, b) => a.atMs - b.atMs)
}

function findReach(
  { atMs, memberId, partitions }: Of<'disturbed'>,
  targets: readonly Of<'target'>[],
  { unownedMs }: CheckOptions,
): ReadonlySet<string> | undefined {
  if (partitions === undefined) return undefined
  const reached = new Set(partitions)
  if (memberId === undefined || memberId === '') return reached
  let untilMs = Infinity
  for (const target of targets.toReversed()) {
    // Of each target assignment: what it was before, and what it was from then on until the next one.
    if (target.atMs >= atMs && target.atMs <= atMs + unownedMs) {
      for (const name of target.before.get(memberId) ?? []) reached.add(name)
    }
    if (target.atMs <= atMs + unownedMs && untilMs >= atMs) {
      for (const name of target.after.get(memberId) ?? []) reached.add(name)
    }
    untilMs = target.atMs
  }
  return reached
}

function findTwoOwners(partition: string, owned: readonly Of<'owned'>[]): Violation[] {
  const violations: Violation[] = []
  let last: Of<'owned'> | undefined
  for (const next of owned) {
    if (last !== undefined && next.fromMs < last.untilMs && next.client !== last.client) {
      violations.push({
        rule: 'two owners',
        atMs: next.fromMs,
        facts: `${partition}: ${last.client} until ${last.untilMs}, ${next.client} from ${next.fromMs}`,
      })
    }
    if (last === undefined || next.untilMs > last.untilMs) last = next
  }
  return violations
}

function findUnowned(
  partition: string,
  owned: readonly Of<'owned'>[],
  disturbances: readonly { readonly atMs: number; readonly what: string }[],
  fromMs: number,
  untilMs: number,
  { unownedMs }: CheckOptions,
): Violation[] {
  const violations: Violation[] = []
  const look = (startMs: number, endMs: number): void => {
    if (endMs - startMs <= unownedMs) return
    let sinceMs = startMs
    let what = 'it was last owned'
    for (const disturbance of [...disturbances, { atMs: endMs, what: 'the end' }]) {
      if (disturbance.atMs <= startMs) continue
      const atMs = Math.min(disturbance.atMs, endMs)
      if (atMs - sinceMs > unownedMs) {
        const facts = `${partition} without an owner for ${atMs - sinceMs} ms from ${sinceMs} (${what})`
        violations.push({ rule: 'unowned', atMs: sinceMs, facts })
      }
      if (disturbance.atMs >= endMs) return
      sinceMs = atMs
      what = disturbance.what
    }
  }
  let freeMs = fromMs
  for (const interval of owned) {
    if (interval.fromMs > freeMs) look(freeMs, Math.min(interval.fromMs, untilMs))
    freeMs = Math.max(freeMs, interval.untilMs)
  }
  if (freeMs < untilMs) look(freeMs, untilMs)
  return violations
}

/** Accepted though somebody else has been given the partition since, or with an epoch from before somebody else had it. */
function findStaleCommits(
  partition: string,
  granted: readonly Of<'granted'>[],
  committed: readonly Of<'committed'>[],
): Violation[] {
  const violations: Violation[] = []
  for (const commit of committed) {
    const before = granted.filter((grant) => grant.atMs <= commit.atMs)
    const facts = `${partition}: ${commit.memberId} committed ${commit.offset} with epoch ${commit.memberEpoch}`
    const last = before.at(-1)
    if (last?.memberId !== commit.memberId) {
      const holder = last?.memberId ?? 'nobody'
      violations.push({
        rule: 'stale commit',
        atMs: commit.atMs,
        facts: `${facts}, but ${holder} had it`,
      })
      continue
    }
    const other = before.findLast((grant) => grant.memberId !== commit.memberId)
    if (other !== undefined && commit.memberEpoch < other.memberEpoch) {
      violations.push({
        rule: 'stale commit',
        atMs: commit.atMs,
        facts: `${facts}, but ${other.memberId} had it in epoch ${other.memberEpoch}`,
      })
    }
  }
  return violations
}

/** What was answered with yes stays: no later read, start or accepted commit is below it. */
function findBackwards(
  partition: string,
  events: readonly GroupEvent[],
  deletedMs: number,
): Violation[] {
  interface Point {
    readonly atMs: number
    /** A promise raises the floor, a look is measured against it. Of one instant, looks come first: they may have been on their way. */
    readonly isPromise: boolean
    readonly offset: number
    readonly what: string
  }
  const points: Point[] = []
  for (const event of events) {
    if (event.type === 'committed') {
      const { atMs, answeredMs, offset, memberId } = event
      points.push({ atMs, isPromise: false, offset, what: `a commit by ${memberId}` })
      points.push({ atMs: answeredMs, isPromise: true, offset, what: '' })
    } else if (event.type === 'granted') {
      const what = `the start of ${event.memberId}`
      points.push({ atMs: event.atMs, isPromise: false, offset: event.committed ?? 0, what })
    } else if (event.type === 'read' && event.atMs < deletedMs) {
      points.push({ atMs: event.atMs, isPromise: false, offset: event.offset ?? 0, what: 'a read' })
    }
  }
  points.sort((a, b) => a.atMs - b.atMs || Number(a.isPromise) - Number(b.isPromise))
  const violations: Violation[] = []
  let floor = 0
  for (const { atMs, isPromise, offset, what } of points) {
    if (isPromise) floor = Math.max(floor, offset)
    else if (offset < floor) {
      const facts = `${partition}: ${what} at ${offset}, after ${floor} was committed`
      violations.push({ rule: 'offset went back', atMs, facts })
    }
  }
  return violations
}

function findUnprocessed(
  partition: string,
  processed: readonly Of<'processed'>[],
  end: Of<'ended'>,
  { endMs }: CheckOptions,
): Violation[] {
  const violations: Violation[] = []
  const miss = (from: number, to: number): void => {
    const facts = `${partition}: nobody processed [${from}, ${to})`
    violations.push({ rule: 'not processed', atMs: endMs, facts })
  }
  let done = 0
  for (const { from, to } of [...processed].sort((a, b) => a.from - b.from)) {
    if (from > done) miss(done, from)
    done = Math.max(done, to)
  }
  if (done < end.endOffset) miss(done, end.endOffset)
  return violations
}

/** From when on a member was meant to have what. */
interface MemberTarget {
  readonly fromMs: number
  readonly partitions: ReadonlySet<string>
}

function listTargetsByMember(targets: readonly Of<'target'>[]): Map<string, MemberTarget[]> {
  const byMember = new Map<string, MemberTarget[]>()
  for (const { atMs, after } of targets) {
    for (const [memberId, partitions] of after) {
      const list = byMember.get(memberId)
      if (list === undefined) byMember.set(memberId, [{ fromMs: atMs, partitions }])
      else if (list.at(-1)?.partitions !== partitions) list.push({ fromMs: atMs, partitions })
    }
  }
  return byMember
}

/** Taken from a member that was meant to keep it, all the time that the order may have been on its way. */
function findNeedlessRevocation(
  { atMs, memberId, partition }: Of<'revoked'>,
  targets: readonly MemberTarget[] | undefined,
  { lagMs }: CheckOptions,
): Violation[] {
  const valid = (targets ?? []).filter(
    ({ fromMs }, i) => fromMs <= atMs && (targets?.[i + 1]?.fromMs ?? Infinity) >= atMs - lagMs,
  )
  if (valid.length === 0 || !valid.every(({ partitions }) => partitions.has(partition))) return []
  const facts = `${partition} was taken from ${memberId}, which was meant to keep it`
  return [{ rule: 'needless revocation', atMs, facts }]
}

/** A target that takes more away from members who stay than balance asks for. */
function findNeedlessMoves({ atMs, before, after, isUniform }: Of<'target'>): Violation[] {
  if (!isUniform) return [] // Where subscriptions differ there is no formula.
  const owners = new Map<string, string>()
  for (const [memberId, partitions] of after) {
    for (const partition of partitions) owners.set(partition, memberId)
  }
  let kept = 0
  const had: number[] = []
  for (const memberId of after.keys()) {
    const partitions = [...(before.get(memberId) ?? [])].filter((name) => owners.has(name))
    kept += partitions.filter((name) => owners.get(name) === memberId).length
    had.push(partitions.length)
  }
  const held = had.reduce((sum, count) => sum + count, 0)
  const part = Math.floor(owners.size / Math.max(1, after.size))
  let best = had.reduce((sum, count) => sum + Math.min(count, part), 0)
  best += Math.min(
    owners.size % Math.max(1, after.size),
    had.filter((count) => count > part).length,
  )
  if (kept >= best) return []
  const facts = `${held - kept} of ${held} partitions moved, where ${held - best} had to`
  return [{ rule: 'needless move', atMs, facts }]
}
