import { invariant } from '../../common/assert.ts'
import type { Assignor, TopicPartitions } from './assignor.ts'
import type {
  GroupEvent,
  GroupRecord,
  MemberRecord,
  OffsetEvent,
  OffsetRecord,
} from './group-events.ts'
import type { AssignorName, GroupStateName, GroupType } from './group-types.ts'
import {
  isSamePartitions,
  keepOnly,
  NO_PARTITIONS,
  NOTHING_OWNED,
  type OwnedPartitions,
  withGained,
  without,
} from './partition-set.ts'

/** What the world looks like to a group that decides on a target assignment. */
export interface AssignmentInputs {
  /** By topic id. */
  readonly partitionCounts: ReadonlyMap<string, number>
  /** Topic ids that a subscription means now. Equal subscriptions may get one set. */
  resolve(subscription: MemberRecord['subscription']): ReadonlySet<string>
}

/** Who has each partition of a topic. */
type Holders = Map<string, (string | undefined)[]>

const NONE_LEFT: ReadonlyMap<string, MemberRecord> = new Map()

const NEW_GROUP: GroupRecord = {
  type: 'stream',
  epoch: 0,
  assignor: 'uniform',
  emptySinceMs: undefined,
}

/**
 * One group: what is known of it, and what follows from that. `decide…` say what should be written and change nothing; {@link apply} changes, in live
 * traffic and in recovery alike (STYLE §6).
 *
 * A partition has an owner, the member that may read and commit it, and it may have another member in whose target it is. The owner gives it up
 * first (confirmed, left, or its session expired); only the same or a later record makes the next one its owner. So at every prefix of the log
 * a partition has one owner at most.
 */
export class StreamGroup {
  readonly id: string
  readonly members: Map<string, MemberRecord> = new Map()
  /** What is committed, by topic name and partition, as the keys of the records are. A record of a topic made anew since is worth nothing. */
  readonly offsets: Map<string, (OffsetRecord | undefined)[]> = new Map()
  /** The member that stands for an instance id. */
  readonly instances: Map<string, string> = new Map()
  readonly #owners: Holders = new Map()
  readonly #wanters: Holders = new Map()
  #record: GroupRecord | undefined

  constructor(id: string) {
    this.id = id
  }

  get record(): GroupRecord {
    return this.#record ?? NEW_GROUP
  }

  /** False when only offsets are known of it. */
  get isRecorded(): boolean {
    return this.#record !== undefined
  }

  get type(): GroupType {
    return this.record.type
  }

  get epoch(): number {
    return this.record.epoch
  }

  /** True when nothing at all is known of it. */
  get isGone(): boolean {
    return this.#record === undefined && this.members.size === 0 && this.offsets.size === 0
  }

  /** The state but for `assigning`, which is not remembered. */
  get state(): GroupStateName {
    if (this.members.size === 0) return 'empty'
    for (const member of this.members.values()) {
      if (member.standing === 'fenced' || !hasAll(member)) return 'reconciling'
    }
    return 'stable'
  }

  findOwner(topicId: string, partition: number): string | undefined {
    return this.#owners.get(topicId)?.[partition]
  }

  /** What is committed for a partition of the topic that has this name and this id. */
  findCommitted(topic: string, topicId: string, partition: number): OffsetRecord | undefined {
    const record = this.offsets.get(topic)?.[partition]
    return record?.topicId === topicId ? record : undefined
  }

  // ── applying ──

  apply(event: GroupEvent | OffsetEvent): void {
    switch (event.type) {
      case 'group':
        this.#record = event.record
        return
      case 'group-deleted':
        this.#record = undefined
        return
      case 'member':
        this.#applyMember(event.memberId, event.record)
        return
      case 'member-left':
        this.#applyMember(event.memberId, undefined)
        return
      case 'offset':
        this.#applyOffset(event.topic, event.partition, event.record)
        return
      case 'offset-deleted':
        this.#applyOffsetDeleted(event.topic, event.partition)
    }
  }

  #applyMember(memberId: string, record: MemberRecord | undefined): void {
    const old = this.members.get(memberId)
    if (old !== undefined) {
      if (old.owned !== record?.owned) unhold(this.#owners, memberId, keysOf(old.owned))
      if (old.target !== record?.target) unhold(this.#wanters, memberId, old.target)
      if (this.instances.get(old.instanceId) === memberId) this.instances.delete(old.instanceId)
    }
    if (record === undefined) {
      this.members.delete(memberId)
      return
    }
    this.members.set(memberId, record)
    if (old?.owned !== record.owned) hold(this.#owners, memberId, keysOf(record.owned))
    if (old?.target !== record.target) hold(this.#wanters, memberId, record.target)
    if (record.instanceId !== '' && record.standing !== 'fenced') {
      this.instances.set(record.instanceId, memberId)
    }
  }

  #applyOffset(topic: string, partition: number, record: OffsetRecord): void {
    let records = this.offsets.get(topic)
    if (records === undefined) this.offsets.set(topic, (records = []))
    while (records.length <= partition) records.push(undefined)
    records[partition] = record
  }

  #applyOffsetDeleted(topic: string, partition: number): void {
    const records = this.offsets.get(topic)
    if (records?.[partition] === undefined) return
    records[partition] = undefined
    if (records.every((record) => record === undefined)) this.offsets.delete(topic)
  }

  /**
   * After a replay: partitions that two members own, which no order of records can have brought about. They are taken from the one that got them
   * earlier. Resolves how many there were.
   */
  mendOverlaps(): number {
    let overlaps = 0
    const all = [...this.members]
    for (const [memberId, member] of all) {
      const lost = (topicId: string, partition: number): boolean => {
        const owner = this.findOwner(topicId, partition)
        return owner !== undefined && owner !== memberId
      }
      const owned = without(member.owned, lost)
      const had = count(member.owned)
      if (count(owned) === had) continue
      overlaps += had - count(owned)
      this.members.set(memberId, { ...member, owned })
    }
    return overlaps
  }

  // ── deciding ──

  /** The group's own record with changes. */
  decideRecord(change: Partial<GroupRecord>): GroupEvent {
    return { type: 'group', group: this.id, record: { ...this.record, ...change } }
  }

  /** A new member, with nothing yet. */
  decideJoin(
    memberId: string,
    member: Omit<MemberRecord, 'epoch' | 'standing' | 'owned' | 'target'>,
    assignor: AssignorName | undefined,
  ): GroupEvent[] {
    const events: GroupEvent[] = []
    const { record } = this
    const chosen = assignor ?? record.assignor
    if (!this.isRecorded || record.emptySinceMs !== undefined || chosen !== record.assignor) {
      events.push(this.decideRecord({ assignor: chosen, emptySinceMs: undefined }))
    }
    const fresh: MemberRecord = {
      ...member,
      epoch: record.epoch,
      standing: 'active',
      owned: NOTHING_OWNED,
      target: NO_PARTITIONS,
    }
    const formerId = member.instanceId === '' ? undefined : this.instances.get(member.instanceId)
    const former = formerId === undefined ? undefined : this.members.get(formerId)
    if (formerId === undefined || former === undefined) {
      events.push(this.#member(memberId, fresh))
    } else if (former.standing === 'left') {
      // It left in good order, so what it had can be had at once.
      events.push({ type: 'member-left', group: this.id, memberId: formerId })
      const { owned, target } = former
      events.push(this.#member(memberId, { ...fresh, owned, target }))
    } else {
      // It may still be alive behind a broken connection: its place goes to the new one, its partitions when its session has expired.
      const fenced = { ...former, standing: 'fenced', target: NO_PARTITIONS } as const
      events.push(this.#member(formerId, fenced))
      events.push(this.#member(memberId, { ...fresh, target: former.target }))
    }
    return events
  }

  /** A member with other facts than before; nothing when there is no such member. */
  decideChange(memberId: string, change: Partial<MemberRecord>): GroupEvent[] {
    const member = this.members.get(memberId)
    return member === undefined ? [] : [this.#member(memberId, { ...member, ...change })]
  }

  /** A member that must own nothing new, and loses what it owns when its session expires. */
  decideFence(memberId: string): GroupEvent[] {
    return this.decideChange(memberId, { standing: 'fenced', target: NO_PARTITIONS })
  }

  /** A member goes; partitions that others wait for are theirs. */
  decideLeave(memberId: string, nowMs: number): GroupEvent[] {
    const member = this.members.get(memberId)
    if (member === undefined) return []
    const events: GroupEvent[] = [{ type: 'member-left', group: this.id, memberId }]
    if (this.members.size === 1) events.push(this.decideRecord({ emptySinceMs: nowMs }))
    return [...events, ...this.#decideGains(keysOf(member.owned), memberId, NONE_LEFT)]
  }

  /** A static member goes in good order: its place is kept, and what it was to give up anyway goes to those who wait for it. */
  decideStepDown(memberId: string): GroupEvent[] {
    const member = this.members.get(memberId)
    if (member === undefined) return []
    const owned = keepOnly(member.owned, member.target)
    const released = without(member.owned, (topicId, p) => owned.get(topicId)?.has(p) === true)
    const left: MemberRecord = { ...member, standing: 'left', owned }
    return [
      this.#member(memberId, left),
      ...this.#decideGains(keysOf(released), memberId, NONE_LEFT),
    ]
  }

  /**
   * Members have given up partitions: whoever waits for them gets them. Of many at once each gainer has one record, which makes a full rebalance
   * linear in partitions. At most `mostGains` members are given something; what is left is for {@link decideGrants}.
   */
  decideReleases(
    releases: ReadonlyMap<string, (topicId: string, partition: number) => boolean>,
    mostGains: number = Infinity,
  ): GroupEvent[] {
    const left = new Map<string, MemberRecord>()
    const freed = new Map<string, number[]>()
    for (const [memberId, isReleased] of releases) {
      const member = this.members.get(memberId)
      if (member === undefined) continue
      const owned = without(member.owned, isReleased)
      if (count(owned) === count(member.owned)) continue
      left.set(memberId, { ...member, owned, epoch: this.epoch })
      for (const [topicId, partitions] of member.owned) {
        const some = [...partitions.keys()].filter((partition) => isReleased(topicId, partition))
        if (some.length === 0) continue
        const others = freed.get(topicId)
        if (others === undefined) freed.set(topicId, some)
        else others.push(...some)
      }
    }
    // What is given up is given up before anybody gets it, also when whoever gives up gets something at the same time.
    return [
      ...[...left].map(([memberId, record]) => this.#member(memberId, record)),
      ...this.#decideGains(freed, undefined, left, mostGains),
    ]
  }

  /** Gives what is nobody's to those in whose targets it is: to `most` members at most, so that a thousand do not take one turn. */
  decideGrants(most: number): GroupEvent[] {
    const events: GroupEvent[] = []
    for (const [memberId, member] of this.members) {
      if (events.length >= most) break
      const gained = this.#findFree(member.target, member.owned, undefined)
      if (gained.size === 0) continue
      const owned = withGained(member.owned, gained, this.epoch)
      events.push(this.#member(memberId, { ...member, owned, epoch: this.epoch }))
    }
    return events
  }

  /**
   * Gives `freed` to those in whose targets it is, but for `goneId`. `left` has what remains of members that have just given something up: they may
   * get some back.
   */
  #decideGains(
    freed: Iterable<[string, Iterable<number>]>,
    goneId: string | undefined,
    left: ReadonlyMap<string, MemberRecord>,
    most = Infinity,
  ): GroupEvent[] {
    const gains = new Map<string, Map<string, number[]>>()
    for (const [topicId, partitions] of freed) {
      const wanters = this.#wanters.get(topicId)
      for (const partition of partitions) {
        const wanter = wanters?.[partition]
        if (wanter === undefined || wanter === goneId) continue
        let topics = gains.get(wanter)
        if (topics === undefined) {
          if (gains.size >= most) continue
          gains.set(wanter, (topics = new Map<string, number[]>()))
        }
        const some = topics.get(topicId)
        if (some === undefined) topics.set(topicId, [partition])
        else some.push(partition)
      }
    }
    return [...gains].map(([wanter, gained]) => {
      const member = left.get(wanter) ?? this.members.get(wanter)
      invariant(member !== undefined, 'whoever has a target is a member')
      const owned = withGained(member.owned, gained, this.epoch)
      return this.#member(wanter, { ...member, owned, epoch: this.epoch })
    })
  }

  /**
   * A new target for everyone, in a new epoch; what is free is given at once. `isForced`: members have come or gone, so there is a new epoch even
   * when no target changes. Nothing when nothing changes. O(partitions + members).
   */
  decideTargets(inputs: AssignmentInputs, assignor: Assignor, isForced: boolean): GroupEvent[] {
    const active = [...this.members].filter(([, member]) => member.standing !== 'fenced')
    if (active.length === 0) return []
    const members = active.map(([memberId, member]) => ({
      memberId,
      instanceId: member.instanceId === '' ? undefined : member.instanceId,
      rack: member.rack === '' ? undefined : member.rack,
      topics: inputs.resolve(member.subscription),
      target: member.target,
    }))
    const subscribed = new Set(members.map(({ topics }) => topics))
    const partitionCounts = pickCounts(inputs.partitionCounts, subscribed)
    const targets = assignor({ partitionCounts, members })
    const epoch = this.epoch + 1
    const events: GroupEvent[] = []
    // Whoever has left in good order gives up at once what it is no longer to have, before anybody gets it.
    const left = active.filter(([, member]) => member.standing === 'left')
    const freed = new Map<string, Set<number>>()
    for (const [memberId, member] of left) {
      const kept = keepOnly(member.owned, targets.get(memberId) ?? NO_PARTITIONS)
      for (const [topicId, partitions] of member.owned) {
        for (const partition of partitions.keys()) {
          if (kept.get(topicId)?.has(partition) === true) continue
          const some = freed.get(topicId)
          if (some === undefined) freed.set(topicId, new Set([partition]))
          else some.add(partition)
        }
      }
    }
    const present = active.filter(([, member]) => member.standing !== 'left')
    for (const [memberId, member] of [...left, ...present]) {
      const computed = targets.get(memberId) ?? NO_PARTITIONS
      const isSame = isSamePartitions(computed, member.target)
      const target = isSame ? member.target : computed
      const isLeft = member.standing === 'left'
      const owned = isLeft ? keepOnly(member.owned, target) : member.owned
      // One that is away gains nothing from another: its record may come before that one's, and it has no use for it before it is back.
      const gained = this.#findFree(target, member.owned, isLeft ? undefined : freed)
      if (isSame && gained.size === 0 && count(owned) === count(member.owned)) continue
      // The epoch is the member's from the moment its partitions change: a target alone changes nothing that it may do.
      const changed =
        gained.size === 0
          ? { ...member, target, owned }
          : { ...member, target, epoch, owned: withGained(owned, gained, epoch) }
      events.push(this.#member(memberId, changed))
    }
    if (events.length === 0 && !isForced) return []
    return [this.decideRecord({ epoch }), ...events]
  }

  /** What of `target` is nobody's, or in `freed`. */
  #findFree(
    target: TopicPartitions,
    owned: OwnedPartitions,
    freed: ReadonlyMap<string, ReadonlySet<number>> | undefined,
  ): TopicPartitions {
    const free = new Map<string, readonly number[]>()
    for (const [topicId, partitions] of target) {
      const owners = this.#owners.get(topicId)
      const had = owned.get(topicId)
      if (had !== undefined && had.size === partitions.length) {
        // Mostly it has them all: no array is made then.
        if (partitions.every((partition) => had.has(partition))) continue
      }
      const given = freed?.get(topicId)
      const some = partitions.filter(
        (partition) => owners?.[partition] === undefined || given?.has(partition) === true,
      )
      if (some.length > 0) free.set(topicId, some)
    }
    return free
  }

  #member(memberId: string, record: MemberRecord): GroupEvent {
    return { type: 'member', group: this.id, memberId, record }
  }
}

/** Of the topics that anybody subscribes to: a small group must not cost what all topics of the broker cost, a thousand of them least of all. */
function pickCounts(
  all: ReadonlyMap<string, number>,
  subscribed: ReadonlySet<ReadonlySet<string>>,
): ReadonlyMap<string, number> {
  const picked = new Map<string, number>()
  for (const topics of subscribed) {
    if (picked.size === all.size) return all
    for (const topicId of topics) {
      const count = all.get(topicId)
      if (count !== undefined) picked.set(topicId, count)
    }
  }
  return picked
}

/** A member has what it is meant to have, and nothing beyond. */
function hasAll(member: MemberRecord): boolean {
  if (member.owned.size !== member.target.size) return false
  for (const [topicId, partitions] of member.target) {
    const had = member.owned.get(topicId)
    if (had === undefined || had.size !== partitions.length) return false
    if (!partitions.every((partition) => had.has(partition))) return false
  }
  return true
}

function* keysOf(owned: OwnedPartitions): Iterable<[string, Iterable<number>]> {
  for (const [topicId, partitions] of owned) yield [topicId, partitions.keys()]
}

function hold(
  holders: Holders,
  id: string,
  partitions: Iterable<[string, Iterable<number>]>,
): void {
  for (const [topicId, some] of partitions) {
    let ids = holders.get(topicId)
    if (ids === undefined) holders.set(topicId, (ids = []))
    for (const partition of some) {
      while (ids.length < partition) ids.push(undefined)
      ids[partition] = id
    }
  }
}

/** Takes away only what is still its own: of two records that move a partition, the one of the gainer may come first. */
function unhold(
  holders: Holders,
  id: string,
  partitions: Iterable<[string, Iterable<number>]>,
): void {
  for (const [topicId, some] of partitions) {
    const ids = holders.get(topicId)
    if (ids === undefined) continue
    for (const partition of some) if (ids[partition] === id) ids[partition] = undefined
  }
}

function count(owned: OwnedPartitions): number {
  let total = 0
  for (const partitions of owned.values()) total += partitions.size
  return total
}
