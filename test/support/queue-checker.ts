import type { Verdict } from '../../src/coordination/queue/queue-types.ts'

/** One thing that a worker says, of records of one lease. */
export interface QueueCallItem {
  readonly token: string
  readonly partition: string
  /** [first, end). Not looked at for `renew`. */
  readonly first: number
  readonly end: number
  readonly verdict: Verdict
  readonly delayMs: number | undefined
}

/**
 * Judges what happened to a queue group (CONTRACT §4, C12) from a history of events alone: it knows nothing of how the queue works. Events are in the order in
 * which they happened; times are milliseconds on one monotonic clock. Where only workers were watched, `delivered` is the start of a handler.
 */
export type QueueEvent =
  /** Records of one partition were given out under a lease. */
  | {
      readonly type: 'delivered'
      readonly atMs: number
      readonly member: string
      readonly token: string
      readonly partition: string
      readonly first: number
      readonly end: number
      readonly deliveryCount: number
      readonly failureCount: number
      /** The lease lasts until then, unless it is renewed. */
      readonly expiresMs: number
    }
  /** Items of one call have reached the queue. */
  | {
      readonly type: 'called'
      readonly atMs: number
      readonly call: number
      readonly items: readonly QueueCallItem[]
    }
  /** What the call was answered with: nothing failed but these. A call without an answer: nobody knows. */
  | {
      readonly type: 'answered'
      readonly atMs: number
      readonly call: number
      readonly failures: readonly { readonly index: number; readonly code: string }[]
    }
  /** A worker was told that its lease is over. */
  | {
      readonly type: 'lease-lost'
      readonly atMs: number
      readonly token: string
      readonly reason: string
    }
  /** A member said that it goes; or its connection broke, and the group takes leases back for that. From then on its leases may be anybody's. */
  | { readonly type: 'left'; readonly atMs: number; readonly member: string }
  /** Another broker process from here on: no lease of the former one is good any more. */
  | { readonly type: 'restarted'; readonly atMs: number }
  /** The same for one partition: its state could not be written, and was loaded anew. */
  | { readonly type: 'reloaded'; readonly atMs: number; readonly partition: string }
  /** What a topic of dead letters held in the end. */
  | {
      readonly type: 'dead-letter'
      readonly id: string
      readonly partition: string
      readonly offset: number
      readonly reason: string
      readonly deliveries: number
      readonly failures: number
    }
  /** What the partition held in the end; nothing more was to be done with any of it, said the queue. */
  | { readonly type: 'ended'; readonly partition: string; readonly endOffset: number }

export interface QueueCheckOptions {
  /** `retry.max.attempts`; 0: no limit. */
  readonly maxAttempts: number
  /** A record's own limit. */
  readonly attemptsOf?: ((partition: string, offset: number) => number | undefined) | undefined
  readonly order?: 'none' | 'key' | 'partition' | undefined
  readonly orderOnFailure?: 'block' | 'skip' | undefined
  /** With order=key. Undefined: a record without one. */
  readonly keyOf?: ((partition: string, offset: number) => string | undefined) | undefined
  /** What happens to a dead record: copied, or only counted. */
  readonly policy?: 'topic' | 'drop' | undefined
  /** `queue`: deliveries were seen as they were given out. `workers`: as handlers began, which may be this much later. */
  readonly seenBy?: 'queue' | 'workers' | undefined
  readonly slackMs?: number | undefined
  /** A lease also counts that nobody saw: the worker was gone by the time that its records had been read, or the lease been written down. */
  readonly hasUnseenLeases?: boolean | undefined
  /** Delays are by the wall clock, and somebody moved that. */
  readonly wallJumps?: boolean | undefined
}

export type QueueRule =
  | 'lost'
  | 'delivered after it was settled'
  | 'two leases'
  | 'two verdicts'
  | 'late verdict accepted'
  | 'lease ended early'
  | 'over the limit'
  | 'failures forgotten'
  | 'failures invented'
  | 'wrong delivery count'
  | 'too early'
  | 'dead letter missing'
  | 'dead letter without a reason'
  | 'dead letter twice'
  | 'out of order'
  | 'key leased twice'
  | 'unknown record'

export interface QueueViolation {
  readonly rule: QueueRule
  readonly atMs: number
  readonly facts: string
}

/** Refused, and sure to have changed nothing. Any other error leaves open what has happened. */
const REFUSALS: ReadonlySet<string> = new Set([
  'LEASE_LOST',
  'LEASE_LIMIT_REACHED',
  'INVALID_ACK_RANGE',
  'INVALID_DELAY',
  'INVALID_LEASE_TOKEN',
  'STORAGE_ERROR',
  'STORAGE_FULL',
])

interface Lease {
  readonly token: string
  readonly member: string
  readonly partition: string
  readonly first: number
  readonly end: number
  readonly givenMs: number
  readonly incarnation: number
  expiresMs: number
  /** From then on it may be over, or is. */
  freeMs: number
  /** Its worker has been told that it has expired. */
  isExpired: boolean
  isLost: boolean
  /** What was said of it and not refused. */
  readonly said: { readonly call: number; readonly item: QueueCallItem }[]
}

type Standing = 'open' | 'asked' | 'settled'

/** What is known of one record. */
interface Track {
  lease: Lease | undefined
  leases: number
  /** Leases since the last restart, and the count that the newest of them had. */
  countInIncarnation: number
  countIncarnation: number
  failuresSeen: number
  /** Of the newest lease: what was asked for and not refused. */
  verdict: Verdict | undefined
  verdictCall: number
  verdictIsAnswered: boolean
  /** Failures that are sure, because they were answered; and as many as there may have been, those of former leases. */
  sureFailures: number
  mostFailures: number
  accepted: Standing
  rejected: Standing
  /** Under which lease it was accepted or rejected for sure, and when that was answered. */
  settledBy: Lease | undefined
  settledMs: number
  notBeforeMs: number
  /** Dead letters of it. */
  deaths: number
}

interface Call {
  readonly atMs: number
  readonly items: readonly QueueCallItem[]
  /** By item: the lease was sure to be good when the call came. */
  readonly wasGood: readonly boolean[]
  /** By item: the lease was the newest of its records, and lost to nobody that we know of. */
  readonly isOwn: readonly boolean[]
  /** By item: the same had been said before under the same lease, and not refused. */
  readonly isRepeat: readonly boolean[]
  /** Something was delivered while it was on its way. */
  overtaken: string | undefined
}

/** Everything that is wrong with `history`, in the order found. O(n log n). */
export function checkQueueHistory(
  history: readonly QueueEvent[],
  options: QueueCheckOptions,
): readonly QueueViolation[] {
  return new QueueCheck(options).run(history)
}

class QueueCheck {
  readonly #options: QueueCheckOptions
  readonly #violations: QueueViolation[] = []
  /** By partition, then by offset. */
  readonly #tracks = new Map<string, Map<number, Track>>()
  readonly #leases = new Map<string, Lease>()
  readonly #byMember = new Map<string, Lease[]>()
  readonly #calls = new Map<number, Call>()
  readonly #letters = new Map<string, number>()
  readonly #keys: KeyOrder | undefined
  readonly #reloads = new Map<string, { readonly reloads: number; readonly atMs: number }>()
  #restarts = 0
  #startedMs = -Infinity

  constructor(options: QueueCheckOptions) {
    this.#options = options
    const { order = 'none', keyOf } = options
    if (order === 'partition') this.#keys = new KeyOrder(() => '')
    else if (order === 'key' && keyOf !== undefined) this.#keys = new KeyOrder(keyOf)
  }

  get #seesLeases(): boolean {
    return this.#options.seenBy !== 'workers'
  }

  run(history: readonly QueueEvent[]): readonly QueueViolation[] {
    if (this.#keys !== undefined) {
      for (const event of history) {
        if (event.type === 'ended') this.#keys.add(event.partition, event.endOffset)
      }
    }
    for (const event of history) this.#take(event)
    for (const event of history) if (event.type === 'ended') this.#finish(event)
    return this.#violations
  }

  #take(event: QueueEvent): void {
    switch (event.type) {
      case 'delivered':
        this.#deliver(event)
        break
      case 'called':
        this.#call(event)
        break
      case 'answered':
        this.#answer(event)
        break
      case 'lease-lost': {
        const lease = this.#leases.get(event.token)
        if (lease === undefined) break
        this.#checkEnd(lease, event.atMs)
        lease.freeMs = Math.min(lease.freeMs, event.atMs)
        lease.isLost = true
        lease.isExpired ||= event.reason === 'lease_expired'
        break
      }
      case 'left':
        for (const lease of this.#byMember.get(event.member) ?? []) {
          lease.freeMs = Math.min(lease.freeMs, event.atMs)
        }
        this.#byMember.delete(event.member)
        break
      case 'restarted':
        this.#restarts++
        this.#startedMs = event.atMs
        break
      case 'reloaded': {
        const { reloads } = this.#reloadsOf(event.partition)
        this.#reloads.set(event.partition, { reloads: reloads + 1, atMs: event.atMs })
        break
      }
      case 'dead-letter':
        this.#bury(event)
        break
      case 'ended':
        break
    }
  }

  #reloadsOf(partition: string): { readonly reloads: number; readonly atMs: number } {
    return this.#reloads.get(partition) ?? { reloads: 0, atMs: -Infinity }
  }

  /** Rises whenever leases of the partition end because what gave them is no more. */
  #incarnationOf(partition: string): number {
    return this.#restarts + this.#reloadsOf(partition).reloads
  }

  #checkEnd(lease: Lease, atMs: number): void {
    const isOver = atMs >= lease.expiresMs || lease.freeMs <= atMs
    const isOld = lease.incarnation < this.#incarnationOf(lease.partition)
    if (this.#seesLeases && !isOver && !isOld) {
      this.#fail('lease ended early', atMs, `${nameOf(lease)} until ${lease.expiresMs}`)
    }
  }

  #trackOf(partition: string, offset: number): Track {
    let tracks = this.#tracks.get(partition)
    if (tracks === undefined) {
      tracks = new Map()
      this.#tracks.set(partition, tracks)
    }
    let track = tracks.get(offset)
    if (track === undefined) {
      track = {
        lease: undefined,
        leases: 0,
        countInIncarnation: 0,
        countIncarnation: -1,
        failuresSeen: 0,
        verdict: undefined,
        verdictCall: -1,
        verdictIsAnswered: false,
        sureFailures: 0,
        mostFailures: 0,
        accepted: 'open',
        rejected: 'open',
        settledBy: undefined,
        settledMs: Infinity,
        notBeforeMs: -Infinity,
        deaths: 0,
      }
      tracks.set(offset, track)
    }
    return track
  }

  #limitOf(partition: string, offset: number): number {
    const { maxAttempts, attemptsOf } = this.#options
    const group = maxAttempts === 0 ? Infinity : maxAttempts
    return Math.min(group, attemptsOf?.(partition, offset) ?? Infinity)
  }

  // ── leases ──

  /** Whether the lease may be over for this record at `atMs`, for any reason but a verdict. */
  #mayBeOver(lease: Lease, atMs: number): boolean {
    if (!this.#seesLeases || lease.incarnation < this.#incarnationOf(lease.partition)) return true
    return lease.isLost || atMs >= lease.expiresMs || atMs >= lease.freeMs
  }

  /** Whether the record's newest lease may have cost it a failure by `atMs`. */
  #mayHaveFailed(track: Track, atMs: number): boolean {
    const { lease, verdict } = track
    if (lease === undefined) return false
    if (verdict === 'retry' || verdict === 'reject' || lease.isExpired) return true
    if (verdict !== undefined && track.verdictIsAnswered) return false
    if (!this.#seesLeases) return true
    // It ended before it could expire: with its broker, or because its member went.
    const isOld = lease.incarnation < this.#incarnationOf(lease.partition)
    const startedMs = Math.max(this.#startedMs, this.#reloadsOf(lease.partition).atMs)
    const endMs = isOld ? startedMs : Infinity
    return lease.expiresMs <= Math.min(atMs, endMs)
  }

  #deliver(event: Extract<QueueEvent, { type: 'delivered' }>): void {
    const { atMs, partition, token, member } = event
    const lease: Lease = {
      token,
      member,
      partition,
      first: event.first,
      end: event.end,
      givenMs: atMs,
      incarnation: this.#incarnationOf(partition),
      expiresMs: event.expiresMs,
      freeMs: Infinity,
      isExpired: false,
      isLost: false,
      said: [],
    }
    for (let offset = event.first; offset < event.end; offset++) {
      const track = this.#trackOf(partition, offset)
      this.#checkDelivery(track, event, offset)
      // It was told that the lease had run out, and nothing else had been said: that counts.
      if (track.lease?.isExpired === true && track.verdict === undefined) track.failuresSeen++
      if (this.#mayHaveFailed(track, atMs)) track.mostFailures++
      track.lease = lease
      track.leases++
      // What was asked for and never answered has not happened, or it would not be here.
      if (track.accepted === 'asked') track.accepted = 'open'
      if (track.rejected === 'asked') track.rejected = 'open'
      track.verdict = undefined
      track.verdictCall = -1
      track.verdictIsAnswered = false
      this.#checkCounts(track, event, offset)
      if (this.#keys !== undefined) this.#checkOrder(this.#keys, partition, offset, atMs)
    }
    this.#leases.set(token, lease)
    const others = this.#byMember.get(member)
    if (others === undefined) this.#byMember.set(member, [lease])
    else others.push(lease)
  }

  #checkDelivery(
    track: Track,
    event: Extract<QueueEvent, { type: 'delivered' }>,
    offset: number,
  ): void {
    const { atMs, partition } = event
    const where = `${partition}:${offset} to ${event.member}`
    const slackMs = this.#options.slackMs ?? 0
    const { settledBy, settledMs } = track
    if (settledBy !== undefined && (this.#seesLeases || atMs > settledMs + slackMs)) {
      const what = track.accepted === 'settled' ? 'accepted' : 'rejected'
      this.#fail('delivered after it was settled', atMs, `${where}: ${what} at ${settledMs}`)
    }
    const { lease } = track
    if (lease === undefined || !this.#seesLeases) return
    if (track.verdict !== undefined && !track.verdictIsAnswered) {
      // Only a verdict that gives the record back can be seen before its answer.
      if (track.verdict === 'accept' || track.verdict === 'reject') {
        const call = this.#calls.get(track.verdictCall)
        if (call !== undefined) call.overtaken ??= where
      }
    } else if (track.verdict === undefined && !this.#mayBeOver(lease, atMs)) {
      this.#fail('two leases', atMs, `${where}, ${nameOf(lease)} until ${lease.expiresMs}`)
    }
    if (atMs < track.notBeforeMs && this.#options.wallJumps !== true) {
      this.#fail('too early', atMs, `${where}: not before ${track.notBeforeMs}`)
    }
  }

  #checkCounts(
    track: Track,
    event: Extract<QueueEvent, { type: 'delivered' }>,
    offset: number,
  ): void {
    const { atMs, partition, deliveryCount, failureCount } = event
    const where = `${partition}:${offset} to ${event.member}`
    if (this.#seesLeases) {
      const incarnation = this.#incarnationOf(partition)
      const isSame = track.countIncarnation === incarnation
      const least = isSame ? track.countInIncarnation + 1 : 1
      const most = this.#options.hasUnseenLeases === true ? Infinity : track.leases
      if (deliveryCount < least || deliveryCount > most) {
        const facts = `${where}: ${deliveryCount} is not in [${least}, ${most}]`
        this.#fail('wrong delivery count', atMs, facts)
      }
      track.countInIncarnation = deliveryCount
      track.countIncarnation = incarnation
      // What a broker has only told, and not answered, it may forget when it is killed.
      const leastFailures = Math.max(track.sureFailures, isSame ? track.failuresSeen : 0)
      if (failureCount < leastFailures) {
        const facts = `${where}: ${failureCount}, but ${leastFailures} had been told`
        this.#fail('failures forgotten', atMs, facts)
      }
      track.failuresSeen = failureCount
      if (failureCount > track.mostFailures) {
        const facts = `${where}: ${failureCount}, but ${track.mostFailures} at most`
        this.#fail('failures invented', atMs, facts)
      }
    }
    const limit = this.#limitOf(partition, offset)
    if (failureCount >= limit || track.sureFailures >= limit) {
      const facts = `${where}: ${Math.max(failureCount, track.sureFailures)} failures of ${limit}`
      this.#fail('over the limit', atMs, facts)
    }
  }

  // ── verdicts ──

  #call({ atMs, call, items }: Extract<QueueEvent, { type: 'called' }>): void {
    const wasGood: boolean[] = []
    const isOwns: boolean[] = []
    const isRepeat: boolean[] = []
    for (const item of items) {
      const lease = this.#leases.get(item.token)
      const tracks = this.#tracksOf(item, lease)
      const isOwn = (track: Track): boolean => track.lease === lease
      isOwns.push(lease !== undefined && tracks.every(isOwn))
      wasGood.push(
        lease !== undefined &&
          !this.#mayBeOver(lease, atMs) &&
          tracks.every((track) => isOwn(track) && track.verdict === undefined),
      )
      isRepeat.push(lease?.said.some((said) => isPart(item, said.item)) ?? false)
      if (item.verdict === 'renew') continue
      lease?.said.push({ call, item })
      for (const track of tracks) {
        if (!isOwn(track) || track.verdict !== undefined) continue
        track.verdict = item.verdict
        track.verdictCall = call
        track.verdictIsAnswered = false
        if (item.verdict === 'accept' && track.accepted === 'open') track.accepted = 'asked'
        if (item.verdict === 'reject' && track.rejected === 'open') track.rejected = 'asked'
      }
    }
    this.#calls.set(call, { atMs, items, wasGood, isOwn: isOwns, isRepeat, overtaken: undefined })
  }

  #tracksOf(item: QueueCallItem, lease: Lease | undefined): Track[] {
    const [first, end] =
      item.verdict === 'renew' ? [lease?.first ?? 0, lease?.end ?? 0] : [item.first, item.end]
    const tracks: Track[] = []
    for (let offset = first; offset < end; offset++) {
      const track = this.#tracks.get(item.partition)?.get(offset)
      if (track !== undefined) tracks.push(track)
    }
    return tracks
  }

  #answer({ atMs, call: id, failures }: Extract<QueueEvent, { type: 'answered' }>): void {
    const call = this.#calls.get(id)
    if (call === undefined) return
    const codes = new Map(failures.map(({ index, code }) => [index, code]))
    const reason = call.overtaken
    for (const [index, item] of call.items.entries()) {
      const code = codes.get(index)
      const lease = this.#leases.get(item.token)
      const tracks = this.#tracksOf(item, lease)
      if (code === undefined) this.#succeed(id, call, index, item, lease, tracks, atMs)
      else this.#refuse(id, call, code, item, tracks, atMs)
    }
    if (reason !== undefined && codes.size < call.items.length) {
      this.#fail('delivered after it was settled', atMs, `${reason}, while that was on its way`)
    }
  }

  #succeed(
    id: number,
    call: Call,
    index: number,
    item: QueueCallItem,
    lease: Lease | undefined,
    tracks: readonly Track[],
    atMs: number,
  ): void {
    const where = `${item.partition}:[${item.first}, ${item.end}) ${item.verdict} by ${lease?.member ?? 'nobody'}`
    const isRepeat = call.isRepeat[index] === true
    if (lease === undefined || (this.#seesLeases && call.isOwn[index] !== true && !isRepeat)) {
      this.#fail('late verdict accepted', atMs, where)
    } else if (this.#seesLeases && lease.isLost && lease.freeMs < call.atMs) {
      if (!isRepeat) {
        this.#fail(
          'late verdict accepted',
          atMs,
          `${where}: told at ${lease.freeMs} that it is over`,
        )
      }
    }
    const isOther = (track: Track): boolean =>
      track.lease === lease && track.verdictIsAnswered && track.verdict !== item.verdict
    if (item.verdict !== 'renew' && !isRepeat && tracks.some(isOther)) {
      this.#fail('late verdict accepted', atMs, `${where}: something else had been said`)
    }
    if (item.verdict === 'renew') {
      if (lease !== undefined && item.delayMs !== undefined) {
        lease.expiresMs = Math.max(lease.expiresMs, call.atMs + item.delayMs)
      }
      return
    }
    for (const track of tracks) {
      if (item.verdict === 'accept' || item.verdict === 'reject') {
        const isSame = item.verdict === 'accept' ? track.accepted : track.rejected
        if (track.settledBy !== undefined && (track.settledBy !== lease || isSame !== 'settled')) {
          this.#fail('two verdicts', atMs, where)
        }
        if (track.settledBy === undefined) {
          track.settledBy = lease
          track.settledMs = atMs
        }
        if (item.verdict === 'accept') track.accepted = 'settled'
        else track.rejected = 'settled'
      }
      const isNews = track.verdictCall === id || track.verdict === item.verdict
      if (track.lease !== lease || !isNews || track.verdictIsAnswered) continue
      track.verdictIsAnswered = true
      if (item.verdict === 'retry') track.sureFailures++
      if (item.verdict !== 'accept' && item.delayMs !== undefined) {
        track.notBeforeMs = call.atMs + item.delayMs
      }
    }
  }

  #refuse(
    id: number,
    call: Call,
    code: string,
    item: QueueCallItem,
    tracks: readonly Track[],
    atMs: number,
  ): void {
    // Items of one partition stand and fall together.
    const allGood = call.items.every(
      (other, i) => other.partition !== item.partition || call.wasGood[i] === true,
    )
    const lease = this.#leases.get(item.token)
    const isStillGood = lease !== undefined && !this.#mayBeOver(lease, atMs)
    // The same worker may have said something else of it meanwhile.
    const isOpen = tracks.every(
      (track) => track.verdictCall === id && track.settledBy === undefined,
    )
    if (code === 'LEASE_LOST' && this.#seesLeases && allGood && isStillGood && isOpen) {
      const facts = `${nameOf(lease)} until ${lease.expiresMs}: ${item.verdict} of [${item.first}, ${item.end}) refused`
      this.#fail('lease ended early', atMs, facts)
    }
    // A worker that cannot reach the queue takes its lease for lost, and does not know what has become of its word.
    if (!this.#seesLeases || !REFUSALS.has(code)) return
    if (lease !== undefined) {
      const at = lease.said.findIndex((said) => said.call === id && said.item === item)
      if (at >= 0) lease.said.splice(at, 1)
    }
    for (const track of tracks) {
      if (track.verdictCall !== id || track.verdictIsAnswered) continue
      track.verdict = undefined
      track.verdictCall = -1
      if (item.verdict === 'accept' && track.accepted === 'asked') track.accepted = 'open'
      if (item.verdict === 'reject' && track.rejected === 'asked') track.rejected = 'open'
    }
  }

  // ── order ──

  /** Whether nothing more has to be done with the record, as far as anybody can know. */
  #mayBeSettled(partition: string, offset: number, atMs: number): boolean {
    const track = this.#tracks.get(partition)?.get(offset)
    if (track === undefined) return false
    if (track.accepted !== 'open' || track.rejected !== 'open') return true
    const failures = track.mostFailures + (this.#mayHaveFailed(track, atMs) ? 1 : 0)
    return failures >= this.#limitOf(partition, offset)
  }

  #checkOrder(keys: KeyOrder, partition: string, offset: number, atMs: number): void {
    const line = keys.lineOf(partition, offset)
    if (line === undefined) return
    const where = `${partition}:${offset} of key ${line.key}`
    const before = line.leased
    if (before !== undefined && before !== offset && this.#seesLeases) {
      const track = this.#trackOf(partition, before)
      const isOver =
        track.lease === undefined ||
        track.verdict !== undefined ||
        this.#mayBeOver(track.lease, atMs)
      if (!isOver) this.#fail('key leased twice', atMs, `${where}, and ${before}`)
    }
    line.leased = offset
    if (this.#options.orderOnFailure === 'skip') return
    for (; line.next < line.offsets.length; line.next++) {
      const next = line.offsets[line.next] ?? 0
      if (next >= offset) break
      if (!this.#mayBeSettled(partition, next, atMs)) break
    }
    const due = line.offsets[line.next]
    if (due !== undefined && due < offset) {
      this.#fail('out of order', atMs, `${where}, before ${due}`)
    }
  }

  // ── the end ──

  #bury(event: Extract<QueueEvent, { type: 'dead-letter' }>): void {
    const { id, partition, offset } = event
    const count = (this.#letters.get(id) ?? 0) + 1
    this.#letters.set(id, count)
    const track = this.#trackOf(partition, offset)
    track.deaths++
    const where = `${partition}:${offset} (${event.reason}, ${event.failures} failures)`
    if (count > 1 || track.deaths > 1) {
      this.#fail('dead letter twice', Infinity, where)
      return
    }
    const limit = this.#limitOf(partition, offset)
    // Leases of which no worker began a handler cost a failure too, and only the queue saw them.
    const most = this.#seesLeases
      ? track.mostFailures + (this.#mayHaveFailed(track, Infinity) ? 1 : 0)
      : Infinity
    if (track.accepted === 'settled') {
      this.#fail('dead letter without a reason', Infinity, `${where}: it was accepted`)
    } else if (event.reason === 'rejected') {
      if (track.rejected === 'open') {
        this.#fail('dead letter without a reason', Infinity, `${where}: nobody rejected it`)
      }
    } else if (most < limit || event.failures < limit) {
      const facts = `${where}: ${most} failures at most, the limit is ${limit}`
      this.#fail('dead letter without a reason', Infinity, facts)
    }
    if (event.failures > most || event.failures < track.sureFailures) {
      const facts = `${where}: ${track.sureFailures} to ${most} were possible`
      const rule = event.failures > most ? 'failures invented' : 'failures forgotten'
      this.#fail(rule, Infinity, facts)
    }
  }

  #finish({ partition, endOffset }: Extract<QueueEvent, { type: 'ended' }>): void {
    const tracks = this.#tracks.get(partition)
    const isDropped = this.#options.policy === 'drop'
    for (let offset = 0; offset < endOffset; offset++) {
      const track = tracks?.get(offset)
      const where = `${partition}:${offset}`
      if (track === undefined) {
        this.#fail('lost', Infinity, `${where}: never delivered`)
        continue
      }
      const isDoomed =
        track.rejected === 'settled' || track.sureFailures >= this.#limitOf(partition, offset)
      if (isDropped) {
        if (track.accepted === 'open' && !this.#mayBeSettled(partition, offset, Infinity)) {
          this.#fail('lost', Infinity, `${where}: neither accepted nor given up`)
        }
      } else if (isDoomed) {
        if (track.deaths === 0) this.#fail('dead letter missing', Infinity, where)
      } else if (track.accepted === 'open' && track.deaths === 0) {
        const facts = `${where}: delivered ${track.leases} times, neither accepted nor a dead letter`
        this.#fail('lost', Infinity, facts)
      }
    }
    for (const offset of tracks?.keys() ?? []) {
      if (offset >= endOffset) this.#fail('unknown record', Infinity, `${partition}:${offset}`)
    }
  }

  #fail(rule: QueueRule, atMs: number, facts: string): void {
    this.#violations.push({ rule, atMs, facts })
  }
}

function isPart(item: QueueCallItem, whole: QueueCallItem): boolean {
  return item.verdict === whole.verdict && item.first >= whole.first && item.end <= whole.end
}

function nameOf(lease: Lease): string {
  return `${lease.partition}:[${lease.first}, ${lease.end}) of ${lease.member} since ${lease.givenMs}`
}

/** Records that must be worked off one after the other. */
interface Line {
  readonly key: string
  readonly offsets: number[]
  /** Index of the first that may not be settled. */
  next: number
  /** The one that was given out last. */
  leased: number | undefined
}

class KeyOrder {
  readonly #keyOf: (partition: string, offset: number) => string | undefined
  readonly #lines = new Map<string, Map<string, Line>>()

  constructor(keyOf: (partition: string, offset: number) => string | undefined) {
    this.#keyOf = keyOf
  }

  add(partition: string, endOffset: number): void {
    const lines = new Map<string, Line>()
    for (let offset = 0; offset < endOffset; offset++) {
      const key = this.#keyOf(partition, offset)
      if (key === undefined) continue
      const line = lines.get(key)
      if (line === undefined) lines.set(key, { key, offsets: [offset], next: 0, leased: undefined })
      else line.offsets.push(offset)
    }
    this.#lines.set(partition, lines)
  }

  lineOf(partition: string, offset: number): Line | undefined {
    const key = this.#keyOf(partition, offset)
    return key === undefined ? undefined : this.#lines.get(partition)?.get(key)
  }
}

/** All that happened to the record that `facts` name first (`jobs-0:17`), for people. */
export function queueStory(history: readonly QueueEvent[], facts: string): readonly string[] {
  const [, partition = '', text = ''] = /([\w.-]+):\[?(\d+)/.exec(facts) ?? []
  const offset = Number(text)
  const tokens = new Set<string>()
  const calls = new Set<number>()
  const holds = ({ first, end }: { readonly first: number; readonly end: number }): boolean =>
    first <= offset && offset < end
  const lines: string[] = []
  for (const event of history) {
    if (event.type === 'delivered') {
      if (event.partition !== partition || !holds(event)) continue
      tokens.add(event.token)
    } else if (event.type === 'called') {
      const items = event.items.filter((item) => tokens.has(item.token) && holds(item))
      if (items.length === 0) continue
      calls.add(event.call)
      lines.push(JSON.stringify({ ...event, items }))
      continue
    } else if (event.type === 'answered') {
      if (!calls.has(event.call)) continue
    } else if (event.type === 'lease-lost') {
      if (!tokens.has(event.token)) continue
    } else if (event.type === 'dead-letter') {
      if (event.partition !== partition || event.offset !== offset) continue
    } else if (event.type === 'reloaded') {
      if (event.partition !== partition) continue
    } else if (event.type !== 'restarted') continue
    lines.push(JSON.stringify(event))
  }
  return lines
}
