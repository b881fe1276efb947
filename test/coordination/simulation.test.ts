import { describe, expect, it } from 'vitest'
import { GroupCoordinator } from '../../src/coordination/group/group-coordinator.ts'
import type { Groups, MemberSession } from '../../src/coordination/group/group-types.ts'
import type { GroupRule } from '../support/group-checker.ts'
import {
  GroupSimulation,
  SESSION_MS,
  type SimulatedBroker,
  type SimulationResult,
} from '../support/group-simulation.ts'

/** SIM_SEED replays one and prints what happened; SIM_SEEDS runs more of them, and SIM_EVENTS makes each longer. */
const SEED = process.env['SIM_SEED']
const EVENTS = Number(process.env['SIM_EVENTS'] ?? 150)
const SEEDS: readonly number[] =
  SEED === undefined
    ? Array.from({ length: Number(process.env['SIM_SEEDS'] ?? 5) }, (_, i) => i + 1)
    : [Number(SEED)]

function open({ topics, clock, random, logger }: SimulatedBroker): Promise<GroupCoordinator> {
  const options = { partitions: 1, minSessionTimeoutMs: SESSION_MS / 2 }
  return GroupCoordinator.open({ topics, clock, random, logger, options })
}

function simulate(
  seed: number,
  events: number,
  openGroups: (broker: SimulatedBroker) => Promise<Groups> = open,
): Promise<SimulationResult> {
  return new GroupSimulation({ seed, events, open: openGroups }).run()
}

describe('a stream group', () => {
  const counts = new Map<string, number>()

  it.each(SEEDS)('keeps its promises through random events (seed %i)', async (seed) => {
    const result = await simulate(seed, EVENTS)
    for (const [what, count] of result.counts) counts.set(what, (counts.get(what) ?? 0) + count)
    if (SEED !== undefined) {
      console.log(result.trace.join('\n'), Object.fromEntries(result.counts), result.simulatedMs)
    }
    expect(result.violations).toEqual([])
  })

  it.skipIf(SEED !== undefined || EVENTS < 150)('has been through everything by then', () => {
    const happened = [...counts.keys()]
    expect(happened).toEqual(
      expect.arrayContaining([
        'join',
        'leave',
        'kill',
        'pause',
        'long pause',
        'own deadline',
        'disconnect',
        'slow revocation',
        'member did not give up its partitions in time: it is put out of the group',
        'session of a member expired',
        'new partitions',
        'new topic',
        'deleted topic',
        'static restart',
        'fenced instance',
        'coordinator killed',
        'coordinator restarted',
        'killed in the middle of appends',
        'group state could not be written: loading it again',
        'subscription',
        'commit accepted',
        'commit refused: STALE_MEMBER_EPOCH',
        'commit refused: PARTITION_NOT_OWNED',
        'commit refused: UNKNOWN_MEMBER',
      ]),
    )
    expect(counts.get('late commit')).toBeGreaterThan(20)
  })
})

/** A coordinator that is wrong in one way. */
type Sabotage = (groups: Groups) => Pick<Groups, 'join'>

async function openBroken(broker: SimulatedBroker, sabotage: Sabotage): Promise<Groups> {
  const groups = await open(broker)
  const { join } = sabotage(groups)
  return {
    join,
    commit: (...rest) => groups.commit(...rest),
    committed: (...rest) => groups.committed(...rest),
    list: (...rest) => groups.list(...rest),
    describe: (...rest) => groups.describe(...rest),
    delete: (...rest) => groups.delete(...rest),
    deleteOffsets: (...rest) => groups.deleteOffsets(...rest),
    reset: (...rest) => groups.reset(...rest),
    close: (...rest) => groups.close(...rest),
  }
}

/** A session of which one call is another. */
function withCommit(session: MemberSession, commit: MemberSession['commit']): MemberSession {
  const { memberId, memberEpoch, heartbeatIntervalMs, sessionTimeoutMs } = session
  const { rebalanceTimeoutMs, resumed } = session
  return {
    memberId,
    memberEpoch,
    heartbeatIntervalMs,
    sessionTimeoutMs,
    rebalanceTimeoutMs,
    resumed,
    commit,
    heartbeat: () => session.heartbeat(),
    confirm: (number) => session.confirm(number),
    subscribe: (subscription) => session.subscribe(subscription),
    leave: () => session.leave(),
    detach: () => session.detach(),
  }
}

/** Negative controls: what would go unnoticed otherwise. */
describe('the simulation notices', () => {
  async function violatedRules(sabotage: Sabotage, events = 40): Promise<readonly GroupRule[]> {
    const rules = new Set<GroupRule>()
    for (const seed of [1, 2]) {
      const result = await simulate(seed, events, (broker) => openBroken(broker, sabotage))
      for (const { rule } of result.violations) rules.add(rule)
    }
    return [...rules]
  }

  it('partitions that are given on before they have been given up', async () => {
    const rules = await violatedRules((groups) => ({
      join: async (request, listener) => {
        const session: MemberSession = await groups.join(request, {
          ended: (error) => listener.ended(error),
          assigned: (assignment) => {
            listener.assigned(assignment)
            session.confirm(assignment.number)
          },
        })
        return session
      },
    }))
    expect(rules).toContain('two owners')
  })

  it('sessions that expire before the member thinks so', async () => {
    const rules = await violatedRules((groups) => ({
      join: (request, listener) =>
        groups.join({ ...request, sessionTimeoutMs: SESSION_MS / 2 }, listener),
    }))
    expect(rules).toContain('two owners')
  })

  it('commits that are accepted and forgotten', async () => {
    let commits = 0
    const rules = await violatedRules((groups) => ({
      join: async (request, listener) => {
        const session = await groups.join(request, listener)
        return withCommit(session, (epoch, offsets) => {
          commits++
          return commits % 10 === 0 ? Promise.resolve([]) : session.commit(epoch, offsets)
        })
      },
    }))
    expect(rules).toContain('offset went back')
  })

  it('target assignments that move more than they have to', async () => {
    const rules = await violatedRules((groups) => ({
      join: (request, listener) => groups.join({ ...request, assignor: 'range' }, listener),
    }))
    expect(rules).toEqual(['needless move'])
  })
})
