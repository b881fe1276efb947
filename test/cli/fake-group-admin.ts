import { MillraceError } from '../../src/client/index.ts'
import type {
  Admin,
  GroupAdmin,
  GroupDetails,
  GroupInfo,
  GroupMemberInfo,
  GroupOffset,
  GroupPartitionInfo,
  OffsetResetPlan,
  Position,
  ResetOptions,
  TopicPartition,
} from '../../src/client/index.ts'
import { toOffset } from '../../src/common/offset.ts'

/** What a partition of a fake group has. */
export interface FakePartition extends TopicPartition {
  readonly start: number
  readonly end: number
  readonly committed?: number
}

export function aMember(shape: Partial<GroupMemberInfo> = {}): GroupMemberInfo {
  return {
    memberId: 'aaaaaaaa-1111',
    instanceId: undefined,
    clientId: 'app',
    host: '127.0.0.1',
    epoch: 3,
    subscription: { topics: ['orders'], pattern: undefined },
    owned: [],
    target: [],
    revoking: [],
    connected: true,
    sessionTimeoutMs: 45_000,
    sinceHeartbeatMs: 1_200,
    ...shape,
  }
}

/** One group, `billing`, in memory: enough for what the command line asks. Calls that change something are kept. */
export class FakeGroupAdmin implements GroupAdmin, Pick<Admin, 'offsets'> {
  partitions: FakePartition[]
  members: readonly GroupMemberInfo[] = []
  readonly details: { lagMs?: number; emptySince?: number } = {}
  readonly resets: { readonly group: string; readonly options: ResetOptions }[] = []
  readonly commits: { readonly group: string; readonly offsets: readonly object[] }[] = []
  readonly deleted: string[] = []

  constructor(partitions: readonly FakePartition[] = []) {
    this.partitions = [...partitions]
  }

  // oxlint-disable-next-line require-await -- the interface is asynchronous
  async *groups(filter: Parameters<GroupAdmin['groups']>[0] = {}): AsyncGenerator<GroupInfo> {
    for (const group of ['audit', 'billing']) {
      if (filter.match?.test(group) === false) continue
      yield {
        group,
        type: 'stream',
        state: this.members.length === 0 ? 'empty' : 'stable',
        members: this.members.length,
        epoch: 7,
      }
    }
  }

  async describeGroup(group: string): Promise<GroupDetails> {
    await this.#check(group)
    const partitions = this.partitions.map((row): GroupPartitionInfo => {
      const lag = row.end - (row.committed ?? row.start)
      return {
        topic: row.topic,
        partition: row.partition,
        memberId: this.members.find((member) =>
          member.owned.some((p) => p.topic === row.topic && p.partition === row.partition),
        )?.memberId,
        committed: row.committed === undefined ? undefined : toOffset(row.committed),
        metadata: '',
        committedAt: row.committed === undefined ? undefined : 1_767_225_600_000,
        logStartOffset: toOffset(row.start),
        highWatermark: toOffset(row.end),
        lag,
        lagMs: lag > 0 ? this.details.lagMs : undefined,
      }
    })
    return {
      group,
      type: 'stream',
      state: this.members.length === 0 ? 'empty' : 'stable',
      epoch: 7,
      assignor: 'uniform',
      members: this.members,
      partitions,
      lag: partitions.reduce((sum, row) => sum + row.lag, 0),
      emptySince: this.details.emptySince,
    }
  }

  async deleteGroup(group: string): Promise<void> {
    await this.#check(group)
    this.#checkEmpty(group)
    this.deleted.push(group)
  }

  async groupOffsets(group: string): Promise<readonly GroupOffset[]> {
    await this.#check(group)
    return this.partitions.flatMap(({ topic, partition, committed }) =>
      committed === undefined
        ? []
        : [
            {
              topic,
              partition,
              offset: toOffset(committed),
              metadata: '',
              committedAt: 1_767_225_600_000,
            },
          ],
    )
  }

  commitOffsets(group: string, offsets: Parameters<GroupAdmin['commitOffsets']>[1]): Promise<void> {
    this.commits.push({ group, offsets })
    return Promise.resolve()
  }

  async deleteGroupOffsets(
    group: string,
    topic: string,
    partitions?: readonly number[],
  ): Promise<number> {
    await this.#check(group)
    const isGone = (row: FakePartition): boolean =>
      row.topic === topic && (partitions === undefined || partitions.includes(row.partition))
    const gone = this.partitions.filter(isGone).length
    this.partitions = this.partitions.filter((row) => !isGone(row))
    return gone
  }

  async resetOffsets(group: string, options: ResetOptions): Promise<readonly OffsetResetPlan[]> {
    await this.#check(group)
    if (options.dryRun !== true) {
      this.#checkEmpty(group)
      this.resets.push({ group, options })
    }
    const { to, topic, partitions } = options
    return this.partitions.flatMap((row): OffsetResetPlan[] => {
      if (topic !== undefined && !topic.includes(row.topic)) return []
      if (partitions !== undefined && !partitions.includes(row.partition)) return []
      let asked: number
      if (to === 'start') asked = row.start
      else if (to === 'end') asked = row.end
      else if (typeof to === 'object' && 'shift' in to) asked = (row.committed ?? 0) + to.shift
      else if (typeof to === 'object' && 'offsets' in to) {
        const found = to.offsets.find(
          (entry) => entry.topic === row.topic && entry.partition === row.partition,
        )
        if (found === undefined) return []
        asked = found.offset
      } else asked = Number(to)
      const end = Math.min(Math.max(asked, row.start), row.end)
      return [
        {
          topic: row.topic,
          partition: row.partition,
          from: row.committed === undefined ? undefined : toOffset(row.committed),
          to: toOffset(end),
          logStartOffset: toOffset(row.start),
          highWatermark: toOffset(row.end),
          clamped: end !== asked,
        },
      ]
    })
  }

  offsets(
    topic: string,
    at: Position,
    options: { readonly partitions?: readonly number[] | undefined } = {},
  ): ReturnType<Admin['offsets']> {
    const rows = this.partitions.filter(
      (row) => row.topic === topic && (options.partitions?.includes(row.partition) ?? true),
    )
    return Promise.resolve(
      new Map(
        rows.map((row) => [
          row.partition,
          toOffset(at === 'start' ? row.start : at === 'end' ? row.end : Number(at)),
        ]),
      ),
    )
  }

  async #check(group: string): Promise<void> {
    if (group === 'billing') return
    throw new MillraceError('UNKNOWN_GROUP', `there is no group ${group}`, { group })
  }

  #checkEmpty(group: string): void {
    if (this.members.length === 0) return
    throw new MillraceError('GROUP_NOT_EMPTY', `group ${group} has members`, { group })
  }
}
