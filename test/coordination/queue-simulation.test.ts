import { describe, expect, it } from 'vitest'
import type {
  QueueDelivery,
  WorkListener,
  WorkSession,
} from '../../src/coordination/queue/queue-types.ts'
import { openQueues } from '../support/open-queues.ts'
import { queueStory } from '../support/queue-checker.ts'
import {
  QueueSimulation,
  type QueueSimulationOptions,
  type QueueSimulationResult,
  type SimulatedQueueBroker,
  type SimulatedQueues,
  type SimulationRule,
} from '../support/queue-simulation.ts'

/** SIM_SEED replays one and prints what happened; SIM_SEEDS runs more of them, and SIM_RECORDS (of all together) makes each longer. */
const SEED = process.env['SIM_SEED']
const SEEDS: readonly number[] =
  SEED === undefined
    ? Array.from({ length: Number(process.env['SIM_SEEDS'] ?? 12) }, (_, i) => i + 1)
    : [Number(SEED)]
const QUICK_RECORDS = 36_000
const RECORDS = Number(process.env['SIM_RECORDS'] ?? QUICK_RECORDS)
const MOST_ORDERED = 5000
const TIMEOUT_MS: number = 60_000 + RECORDS * 3

/** What is asked of the group goes with the seed: most of the time no order. */
function shapeOf(seed: number): Partial<QueueSimulationOptions> {
  if (seed % 5 === 3) return { order: 'key' }
  if (seed % 10 === 4) return { order: 'partition' }
  if (seed % 10 === 9) return { order: 'key', onFailure: 'skip' }
  return seed % 6 === 5 ? { policy: 'drop' } : {}
}

function simulate(
  seed: number,
  records: number,
  more: Partial<QueueSimulationOptions> = shapeOf(seed),
): Promise<QueueSimulationResult> {
  return new QueueSimulation({ seed, records, open: openQueues, ...more }).run()
}

/** What should have happened in any run of some length. */
const EVERYTHING: readonly string[] = [
  'worker died',
  'receiver died',
  'handler hung',
  'slow handler',
  'disconnected at work',
  'resumed',
  'worker left',
  'answer lost',
  'lease lost: lease_expired',
  'verdict refused: LEASE_LOST',
  'verdict refused: STORAGE_ERROR',
  'broker killed',
  'broker stopped',
  'killed before an append to a companion',
  'killed during an append to a companion',
  'killed after an append to a companion',
  'failed append to a companion',
  'append refused for a while by a companion',
  'slow read of the topic',
  'second thoughts',
  'paused',
  'wall clock jumped',
  'dead: rejected',
  'dead: attempts_exhausted',
]

describe('a queue group', () => {
  const counts = new Map<string, number>()

  it.each(SEEDS)(
    'keeps its promises through random faults (seed %i)',
    async (seed) => {
      // One at a time of each partition takes its time.
      const most = shapeOf(seed).order === 'partition' ? MOST_ORDERED : Infinity
      const result = await simulate(seed, Math.min(most, Math.ceil(RECORDS / SEEDS.length)))
      for (const [what, count] of result.counts) counts.set(what, (counts.get(what) ?? 0) + count)
      if (SEED !== undefined || result.violations.length > 0) {
        const first = result.violations[0]
        console.log(Object.fromEntries(result.counts), result.simulatedMs, shapeOf(seed))
        if (first !== undefined) console.log(queueStory(result.history, first.facts).join('\n'))
      }
      expect(result.violations.slice(0, 10)).toEqual([])
    },
    TIMEOUT_MS,
  )

  it.skipIf(SEED !== undefined || RECORDS < QUICK_RECORDS)(
    'has been through everything by then',
    () => {
      expect(EVERYTHING.filter((what) => !counts.has(what))).toEqual([])
      const deaths = ['worker died', 'receiver died', 'handler hung', 'disconnected at work']
      const gone = deaths.reduce((sum, what) => sum + (counts.get(what) ?? 0), 0)
      expect(gone).toBeGreaterThan(100)
    },
  )
})

/** Queues that are wrong in one way. */
type Sabotage = (
  queues: SimulatedQueues,
  broker: SimulatedQueueBroker,
) => Partial<Pick<SimulatedQueues, 'work' | 'receive' | 'acknowledge'>>

function sabotaged(sabotage: Sabotage): (broker: SimulatedQueueBroker) => Promise<SimulatedQueues> {
  return async (broker) => {
    const queues = await openQueues(broker)
    const { work, receive, acknowledge } = sabotage(queues, broker)
    return {
      work: work ?? ((...rest) => queues.work(...rest)),
      receive: receive ?? ((...rest) => queues.receive(...rest)),
      acknowledge: acknowledge ?? ((...rest) => queues.acknowledge(...rest)),
      describe: (...rest) => queues.describe(...rest),
      configure: (...rest) => queues.configure(...rest),
      pause: (...rest) => queues.pause(...rest),
      resume: (...rest) => queues.resume(...rest),
      explain: (...rest) => queues.explain(...rest),
      close: (...rest) => queues.close(...rest),
    }
  }
}

/** A session of which one call is another. */
function withAcknowledge(
  session: WorkSession,
  acknowledge: WorkSession['acknowledge'],
): WorkSession {
  const { memberId, leaseMs, resumed, leased } = session
  return {
    memberId,
    leaseMs,
    resumed,
    leased,
    acknowledge,
    credit: (...rest) => session.credit(...rest),
    end: () => session.end(),
    detach: () => session.detach(),
  }
}

function listening(
  listener: WorkListener,
  delivered: (delivery: QueueDelivery) => void,
): WorkListener {
  return {
    delivered,
    leaseLost: (...rest) => listener.leaseLost(...rest),
    notice: (...rest) => listener.notice(...rest),
    ended: (...rest) => listener.ended(...rest),
  }
}

/** Negative controls: what would go unnoticed otherwise. */
describe('the simulation notices', () => {
  async function violatedRules(
    sabotage: Sabotage,
    more: Partial<QueueSimulationOptions> = {},
  ): Promise<readonly SimulationRule[]> {
    const rules = new Set<SimulationRule>()
    for (const seed of [1, 2]) {
      const result = await simulate(seed, 1500, { ...more, open: sabotaged(sabotage) })
      for (const { rule } of result.violations) rules.add(rule)
    }
    return [...rules]
  }

  it('records that are settled without a word of their worker', async () => {
    const rules = await violatedRules((queues) => ({
      work: async (request, listener) => {
        let deliveries = 0
        const session: WorkSession = await queues.work(
          request,
          listening(listener, (delivery) => {
            if (++deliveries % 10 !== 0) {
              listener.delivered(delivery)
              return
            }
            const { token, first, end } = delivery
            const rest = { delayMs: undefined, error: undefined, pauseGroupMs: 0 }
            void session.acknowledge([{ token, first, end, verdict: 'accept', ...rest }])
            session.credit(end - first, 0)
          }),
        )
        return session
      },
    }))
    expect(rules).toContain('lost')
  })

  it('acceptances that are answered and forgotten', async () => {
    let calls = 0
    const rules = await violatedRules((queues) => ({
      work: async (request, listener) => {
        const session = await queues.work(request, listener)
        return withAcknowledge(session, (items) =>
          ++calls % 10 === 0 && items[0]?.verdict === 'accept'
            ? Promise.resolve([])
            : session.acknowledge(items),
        )
      },
    }))
    expect(rules).toContain('delivered after it was settled')
  })

  it('acceptances that are answered before they are durable', async () => {
    const rules = await violatedRules((queues) => ({
      work: async (request, listener) => {
        const session = await queues.work(request, listener)
        return withAcknowledge(session, (items) => {
          session.acknowledge(items).catch(() => undefined)
          return Promise.resolve([])
        })
      },
    }))
    expect(rules).toContain('delivered after it was settled')
  })

  it('the same records given to two', async () => {
    const rules = await violatedRules((queues) => ({
      work: async (request, listener) => {
        return queues.work(
          request,
          listening(listener, (delivery) => {
            listener.delivered(delivery)
            if (delivery.first % 7 !== 0) return
            listener.delivered({ ...delivery, token: Buffer.from(delivery.token).reverse() })
          }),
        )
      },
    }))
    expect(rules).toContain('two leases')
  })

  it('records that are not those it says they are', async () => {
    const rules = await violatedRules((queues) => ({
      work: (request, listener) =>
        queues.work(
          request,
          listening(listener, (delivery) =>
            listener.delivered({ ...delivery, count: delivery.count + 1 }),
          ),
        ),
    }))
    expect(rules).toEqual(['wrong records'])
  })

  it('leases that are shorter than they say', async () => {
    const rules = await violatedRules((queues) => ({
      work: (request, listener) =>
        queues.work(
          request,
          listening(listener, (delivery) =>
            listener.delivered({
              ...delivery,
              leaseMs: delivery.leaseMs + 500,
              leaseExpiresMs: delivery.leaseExpiresMs + 500,
            }),
          ),
        ),
    }))
    expect(rules).toContain('two leases')
  })

  it('no order where order was asked for', async () => {
    const result = await simulate(1, 1500, { order: 'key', settings: { order: 'none' } })
    const rules = new Set(result.violations.map(({ rule }) => rule))
    expect([...rules]).toEqual(expect.arrayContaining(['out of order', 'key leased twice']))
  })

  it('more attempts than were asked for', async () => {
    const settings = { 'retry.max.attempts': '6' }
    const result = await simulate(1, 1500, { settings })
    expect(result.violations.map(({ rule }) => rule)).toContain('over the limit')
  })
})
